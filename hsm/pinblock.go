package hsm

// A format 0 PIN block (ISO 9564-1, 9.3.2) is the PIN field XOR the account number field:
//
//	PIN field             0 | length 4 to 12 | PIN digits | F ... F      16 nibbles
//	account number field  0000 | the 12 right-most PAN digits without the check digit
const (
	pinBlockBytes    = 8
	minPIN, maxPIN   = 4, 12
	panFieldDigits   = 12
	panFieldZeros    = 2 * 2 // nibbles before the digits
	format0          = 0x0
	pinFieldFill     = 0xF
	pinFieldNibbles  = 2 * pinBlockBytes
	firstPINPosition = 2 // nibbles: control, length
)

// accountField writes the account number field of a PAN into field. A PAN of 12 digits has only 11 beside its check
// digit: zeros go to the left of them (ISO 9564-1, 9.3.2.3).
func accountField(field *[pinBlockBytes]byte, pan string) {
	*field = [pinBlockBytes]byte{}
	digits := pan[:len(pan)-1]
	if len(digits) > panFieldDigits {
		digits = digits[len(digits)-panFieldDigits:]
	}
	first := panFieldZeros + panFieldDigits - len(digits)
	for i := range len(digits) {
		nibble := first + i
		field[nibble/2] |= (digits[i] - '0') << (4 * (1 - nibble%2))
	}
}

// wellFormed reports whether a deciphered block is a format 0 block of the PAN whose account number field is given.
// Garbage, and so a wrong key, passes once in about 17 million. A wrong PAN is seen for certain where it differs under the
// fill, and under the PIN's digits only if it makes one of them no digit: this guards against mistakes, it does not
// authenticate.
func wellFormed(block, field *[pinBlockBytes]byte) bool {
	nibble := func(i int) byte { return (block[i/2] ^ field[i/2]) >> (4 * (1 - i%2)) & 0xF }
	length := int(nibble(1))
	if nibble(0) != format0 || length < minPIN || length > maxPIN {
		return false
	}
	for i := firstPINPosition; i < pinFieldNibbles; i++ {
		isDigit := i < firstPINPosition+length
		if n := nibble(i); isDigit && n > 9 || !isDigit && n != pinFieldFill {
			return false
		}
	}
	return true
}
