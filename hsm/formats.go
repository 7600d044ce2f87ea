package hsm

import (
	"crypto/rand"
	"crypto/subtle"
	"fmt"
)

// A Format is the format of a PIN block (ISO 9564-1, 9). Format 2 is between a terminal and a chip card, and is none of them: it is
// accepted nowhere (PCI PIN 3-2).
type Format string

const (
	ISO0 Format = "iso-0" // bound to the PAN
	ISO1 Format = "iso-1" // bound to no PAN, but random
	ISO3 Format = "iso-3" // bound to the PAN, and random
	ISO4 Format = "iso-4" // bound to the PAN, and random; for AES
)

// Formats lists all of them.
var Formats = []Format{ISO0, ISO1, ISO3, ISO4}

// orDefault is format 0 where none is said.
func (f Format) orDefault() Format {
	if f == "" {
		return ISO0
	}
	return f
}

// IsKnown reports whether it is one of Formats, or "", which is format 0.
func (f Format) IsKnown() bool {
	return f.layout().bytes != 0
}

// Algorithm is that of the keys that such blocks are enciphered under, "" if the format is not known. ISO 9564-1 has no other pairs: formats 0, 1
// and 3 are one block of TDES, and would need a padding under AES that it does not define; format 4 is one block of AES, and no block of TDES.
func (f Format) Algorithm() Algorithm { return f.layout().algorithm }

// Bytes is the length of an enciphered block, and so of DE 52: 8 or 16; 0 if the format is not known.
func (f Format) Bytes() int { return f.layout().bytes }

// A layout is what a format is made of. All formats have a PIN field of 16 nibbles:
//
//	control | length 4 to 12 | PIN digits | fill ... fill
//
// Format 4 has 8 random bytes behind it. The account number field of formats 0 and 3 is XORed to the PIN field; that of format 4, between the two
// encipherments of the block. Format 1 has none.
//
//	formats 0, 3   0000 | the 12 right-most PAN digits without the check digit
//	format 4       PAN digits over 12 | PAN digits | 0 ... 0      32 nibbles
type layout struct {
	control    byte // the first nibble
	algorithm  Algorithm
	bytes      int // of the block: one of the algorithm
	isOfPAN    bool
	firstFill  byte // fill nibbles are from here ...
	fillValues byte // ... to so many, each as likely
}

// layout is that of the format, zero if it is not known. (A map would cost each translation half of what its check does.)
func (f Format) layout() layout {
	switch f.orDefault() {
	case ISO0:
		return layout{0x0, TDES, desBytes, true, 0xF, 1}
	case ISO1:
		return layout{0x1, TDES, desBytes, false, 0x0, 16}
	case ISO3:
		return layout{0x3, TDES, desBytes, true, 0xA, 6}
	case ISO4:
		return layout{0x4, AES, aesBytes, true, 0xA, 1}
	}
	return layout{}
}

const (
	longestBlock  = aesBytes
	pinFieldBytes = 8
	pinNibbles    = 2 * pinFieldBytes
	firstPINDigit = 2 // nibbles: control, length
	mostDigits    = pinNibbles - firstPINDigit
	shortestPIN   = 4
	longestPIN    = 12
	panDigits     = 12 // of the account number field of formats 0 and 3; of format 4, the least
)

// A fill is what a new block has beside the PIN. It is not secret, but must not repeat.
type fill struct {
	digits [mostDigits]byte               // a nibble for each place of a PIN digit; those under the PIN are not used
	tail   [aesBytes - pinFieldBytes]byte // of format 4
}

// newFill draws what a block of the format needs.
func newFill(f Format) (out fill) {
	l := f.layout()
	if l.bytes == aesBytes {
		_, _ = rand.Read(out.tail[:]) // never fails: see crypto/rand
	}
	for i := range out.digits {
		out.digits[i] = l.firstFill
	}
	if l.fillValues == 1 {
		return out
	}
	even := 256 - 256%int(l.fillValues) // bytes from here on would make some values likelier
	var random [2 * mostDigits]byte
	for next := 0; next < mostDigits; {
		_, _ = rand.Read(random[:])
		for _, b := range random {
			if next < mostDigits && int(b) < even {
				out.digits[next] = l.firstFill + b%l.fillValues
				next++
			}
		}
	}
	return out
}

// A blockMemory is where a PIN block is in clear. It is part of a worker's locked scratch, and all zeros between calls.
type blockMemory struct {
	block   [longestBlock]byte // clear, or between the encipherments of format 4
	other   [longestBlock]byte // the same
	account [longestBlock]byte // the account number field
}

func (b *blockMemory) clear() { *b = blockMemory{} }

// A cipherBlock enciphers, or deciphers, one block of 8 or 16 bytes by a key in the token. dst and src do not overlap.
type cipherBlock func(dst, src []byte) error

// A translation is the transient way of a PIN block from one format to another: through the memory of this process.
type translation struct {
	from, to       Format
	fromPAN, toPAN string // digits; they differ only where a surrogate gives way to its PAN
	fill           func(Format) fill
}

// run deciphers in, checks it, and enciphers to out what it is in the other format. Where neither format nor PAN changes, the clear block stays
// the same to the bit, with its fill. mem is cleared when it returns. Errors: ErrPINBlock, which says nothing of why, or what a cipher
// returned. That the pair is allowed was checked before (AllowedPair).
//
// Garbage, and so a wrong key, passes for format 0 or 4 once in about 17 million, for format 3 once in 200,000, and for format 1, whose fill says
// nothing, once in 640. A wrong PAN is seen for certain of format 0 where it differs under the fill, and under the PIN's digits only if it makes one of
// them no digit; of format 3 less often; of format 1 never; of format 4 as a wrong key is. This guards against mistakes, it does not authenticate.
func (t translation) run(mem *blockMemory, out, in []byte, decipher, encipher cipherBlock) error {
	defer mem.clear()
	from, to := t.from.layout(), t.to.layout()
	if len(in) != from.bytes || len(out) != to.bytes || from.bytes == 0 {
		return ErrPINBlock
	}
	from.writeAccount(mem.account[:from.bytes], t.fromPAN)
	if err := from.open(mem, in, decipher); err != nil {
		return fmt.Errorf("deciphering PIN block: %w", err)
	}
	if !from.isWellFormed(mem.block[:pinFieldBytes]) {
		return ErrPINBlock
	}
	if t.from.orDefault() == t.to.orDefault() {
		mem.other = mem.block
	} else {
		to.write(mem.other[:to.bytes], mem.block[:pinFieldBytes], t.fill(t.to))
	}
	clear(mem.account[:])
	to.writeAccount(mem.account[:to.bytes], t.toPAN)
	if err := to.seal(mem, out, encipher); err != nil {
		return fmt.Errorf("enciphering PIN block: %w", err)
	}
	return nil
}

// open puts the PIN field of a block, with what is behind it, into mem.block. mem.account holds the account number field.
func (l layout) open(mem *blockMemory, in []byte, decipher cipherBlock) error {
	block, other, account := mem.block[:l.bytes], mem.other[:l.bytes], mem.account[:l.bytes]
	if err := decipher(block, in); err != nil {
		return err
	}
	subtle.XORBytes(block, block, account)
	if l.bytes != aesBytes {
		return nil
	}
	copy(other, block)
	return decipher(block, other)
}

// seal enciphers the PIN field in mem.other, with what is behind it. mem.account holds the account number field.
func (l layout) seal(mem *blockMemory, out []byte, encipher cipherBlock) error {
	block, other, account := mem.block[:l.bytes], mem.other[:l.bytes], mem.account[:l.bytes]
	if l.bytes != aesBytes {
		subtle.XORBytes(other, other, account)
		return encipher(out, other)
	}
	if err := encipher(block, other); err != nil {
		return err
	}
	subtle.XORBytes(block, block, account)
	return encipher(out, block)
}

// isWellFormed reports whether a clear PIN field is one of the format. How long it takes does not depend on what is in it.
func (l layout) isWellFormed(field []byte) bool {
	length := nibble(field, 1)
	bad := nibble(field, 0) ^ l.control
	bad |= outside(length, shortestPIN, longestPIN-shortestPIN+1)
	for i := range mostDigits {
		n, isDigit := nibble(field, firstPINDigit+i), below(byte(i), length)
		bad |= isDigit&outside(n, 0, 10) | ^isDigit&outside(n, l.firstFill, l.fillValues)
	}
	return bad == 0
}

// write makes the PIN field of this format from that of another, which is well-formed, with what is behind it. How long it takes does not
// depend on what is in it.
func (l layout) write(out, field []byte, f fill) {
	length := nibble(field, 1)
	out[0] = l.control<<4 | length
	for i := range mostDigits {
		isDigit := below(byte(i), length)
		setNibble(out, firstPINDigit+i, isDigit&nibble(field, firstPINDigit+i)|^isDigit&f.digits[i])
	}
	copy(out[pinFieldBytes:], f.tail[:])
}

// writeAccount writes the account number field of a PAN into a field of zeros. A PAN that has too few digits gets zeros to the left of them (ISO 9564-1,
// 9.3.2.3 and 9.4.2.3): of formats 0 and 3 one of less than 13, of format 4 one of less than 12.
func (l layout) writeAccount(field []byte, pan string) {
	if !l.isOfPAN || pan == "" {
		return
	}
	digits, first := pan, 1
	if l.bytes == aesBytes {
		field[0] = byte(max(0, len(pan)-panDigits)) << 4 //nolint:gosec // a PAN has at most 19 digits
		first += max(0, panDigits-len(pan))
	} else {
		digits = pan[:len(pan)-1]
		digits = digits[max(0, len(digits)-panDigits):]
		first = pinNibbles - len(digits)
	}
	for i := range len(digits) {
		setNibble(field, first+i, digits[i]-'0')
	}
}

func nibble(b []byte, i int) byte { return b[i/2] >> (4 * (1 - i%2)) & 0xF }

func setNibble(b []byte, i int, value byte) {
	shift := 4 * (1 - i%2)
	b[i/2] = b[i/2]&^(0xF<<shift) | value<<shift
}

// below is all ones if a is less than b, else zero.
func below(a, b byte) byte { return byte((int16(a) - int16(b)) >> 15) } //nolint:gosec // the sign in every bit

// outside is all ones if n is not one of so many values from first on, else zero.
func outside(n, first, values byte) byte { return ^below(n-first, values) }
