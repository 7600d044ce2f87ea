package simulator

import (
	"crypto/subtle"
	"errors"
	"fmt"
	"log/slog"

	"acquirerd/card"
)

// A format 0 PIN block (ISO 9564-1, 9.3.2) is the PIN field XOR the account number field:
//
//	PIN field             0 | length 4 to 12 | PIN digits | F … F      16 nibbles
//	account number field  0000 | the 12 right-most PAN digits without the check digit
const (
	minPINDigits, maxPINDigits = 4, 12
	panFieldDigits             = 12
	pinFieldFill               = 0xF
)

// ErrPIN is the error of ParsePIN. It does not quote what was given.
var ErrPIN = errors.New("PIN is not 4 to 12 digits")

// A PIN is a test card's PIN in clear. The zero PIN is none. It prints itself as asterisks.
type PIN struct{ digits *string }

// ParsePIN checks the digits; "" gives the zero PIN.
func ParsePIN(s string) (PIN, error) {
	if s == "" {
		return PIN{}, nil
	}
	if len(s) < minPINDigits || len(s) > maxPINDigits || !digitsOnly(s) {
		return PIN{}, ErrPIN
	}
	return PIN{&s}, nil
}

// IsZero reports whether there is no PIN.
func (p PIN) IsZero() bool { return p.digits == nil }

// Format prints asterisks, whatever the verb.
func (p PIN) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte("****")) }

// LogValue is asterisks.
func (p PIN) LogValue() slog.Value { return slog.StringValue("****") }

// MarshalText is asterisks.
func (p PIN) MarshalText() ([]byte, error) { return []byte("****"), nil }

func (p PIN) reveal() string {
	if p.digits == nil {
		return ""
	}
	return *p.digits
}

// PINBlock enciphers a PIN for a card as a format 0 block under the key. The zero PIN gives the zero block.
func (k *Key) PINBlock(pin PIN, pan card.PAN) (card.PINBlock, error) {
	if pin.IsZero() {
		return card.PINBlock{}, nil
	}
	if pan.IsZero() {
		return card.PINBlock{}, errors.New("enciphering PIN: a format 0 block needs a PAN")
	}
	clearBlock := format0(pin, pan)
	defer clear(clearBlock[:])
	enciphered := make([]byte, len(clearBlock))
	k.cipher.Encrypt(enciphered, clearBlock[:])
	return card.NewPINBlock(enciphered)
}

// A pinVerdict is what a PIN block turned out to be.
type pinVerdict int

const (
	pinRight     pinVerdict = iota
	pinWrong                // another PIN of that card
	pinMalformed            // no format 0 block of that card: another key, another card, or another format
)

// verify deciphers a PIN block and compares it with the card's PIN.
func (k *Key) verify(block card.PINBlock, pin PIN, pan card.PAN) pinVerdict {
	want, field := format0(pin, pan), accountField(pan)
	var got [8]byte
	k.cipher.Decrypt(got[:], block.Reveal())
	defer clear(got[:])
	if subtle.ConstantTimeCompare(got[:], want[:]) == 1 {
		return pinRight
	}
	nibble := func(i int) byte { return (got[i/2] ^ field[i/2]) >> (4 * (1 - i%2)) & 0xF }
	length := int(nibble(1))
	if nibble(0) != 0 || length < minPINDigits || length > maxPINDigits {
		return pinMalformed
	}
	for i := 2; i < 16; i++ {
		isDigit := i < 2+length
		if n := nibble(i); isDigit && n > 9 || !isDigit && n != pinFieldFill {
			return pinMalformed
		}
	}
	return pinWrong
}

// format0 is the clear block.
func format0(pin PIN, pan card.PAN) [8]byte {
	digits := pin.reveal()
	block := [8]byte{byte(len(digits)), 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF} //nolint:gosec // 4 to 12
	for i := range len(digits) {
		setNibble(&block, 2+i, digits[i]-'0')
	}
	field := accountField(pan)
	subtle.XORBytes(block[:], block[:], field[:])
	return block
}

// accountField takes the digits from the right; a PAN of 12 has only 11 beside its check digit and gets a zero on the left.
func accountField(pan card.PAN) [8]byte {
	var field [8]byte
	digits := pan.Reveal()
	if digits == "" {
		return field
	}
	digits = digits[:len(digits)-1]
	digits = digits[max(0, len(digits)-panFieldDigits):]
	for i := range len(digits) {
		setNibble(&field, 16-len(digits)+i, digits[i]-'0')
	}
	return field
}

func setNibble(block *[8]byte, i int, value byte) {
	shift := 4 * (1 - i%2)
	block[i/2] = block[i/2]&^(0xF<<shift) | value<<shift
}

func digitsOnly(s string) bool {
	for i := range len(s) {
		if s[i] < '0' || s[i] > '9' {
			return false
		}
	}
	return s != ""
}
