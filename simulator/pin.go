package simulator

import (
	"bytes"
	"crypto/rand"
	"crypto/subtle"
	"errors"
	"fmt"
	"log/slog"
	"strings"

	"acquirerd/card"
)

// A PINFormat is the format of PIN blocks under a key (ISO 9564-1, 9). All have a PIN field of 16 nibbles; that of format 4 has 8 random bytes behind it.
//
//	control | length 4 to 12 | PIN digits | fill … fill
//
// The account number field of formats 0 and 3 is XORed to the PIN field, that of format 4 between the two encipherments of the block.
//
//	formats 0, 3   0000 | the 12 right-most PAN digits without the check digit
//	format 4       PAN digits over 12 | PAN digits | 0 … 0
type PINFormat string

const (
	ISO0 PINFormat = "iso-0" // TDES
	ISO1 PINFormat = "iso-1" // TDES; bound to no card
	ISO3 PINFormat = "iso-3" // TDES
	ISO4 PINFormat = "iso-4" // AES
)

// pinFormats say of each its control nibble, and the fill nibbles that it may have.
var pinFormats = map[PINFormat]struct {
	control byte
	fill    string
}{ISO0: {0, "F"}, ISO1: {1, "0123456789ABCDEF"}, ISO3: {3, "ABCDEF"}, ISO4: {4, "A"}}

const (
	minPINDigits, maxPINDigits = 4, 12
	panFieldDigits             = 12
	pinFieldNibbles            = 16
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

// PINBlock enciphers a PIN for a card as a block of the key's format. The zero PIN gives the zero block.
func (k *Key) PINBlock(pin PIN, pan card.PAN) (card.PINBlock, error) {
	if pin.IsZero() {
		return card.PINBlock{}, nil
	}
	if pan.IsZero() {
		return card.PINBlock{}, errors.New("enciphering PIN: its block needs a PAN")
	}
	block := make([]byte, k.cipher.BlockSize())
	defer clear(block)
	_, _ = rand.Read(block) // never fails
	digits, fill := pin.reveal(), pinFormats[k.format].fill
	setNibble(block, 0, pinFormats[k.format].control)
	setNibble(block, 1, byte(len(digits))) //nolint:gosec // 4 to 12
	for i := 2; i < pinFieldNibbles; i++ {
		digit := fill[int(nibble(block, i))%len(fill)] // of format 3, some likelier than others: it is a simulator
		if i-2 < len(digits) {
			digit = digits[i-2]
		}
		setNibble(block, i, byte(strings.IndexByte(hexDigits, digit))) //nolint:gosec // 0 to 15
	}
	if k.format == ISO4 {
		k.cipher.Encrypt(block, block)
	}
	subtle.XORBytes(block, block, k.accountField(pan))
	k.cipher.Encrypt(block, block)
	return card.NewPINBlock(block)
}

// A pinVerdict is what a PIN block turned out to be.
type pinVerdict int

const (
	pinRight     pinVerdict = iota
	pinWrong                // another PIN of that card
	pinMalformed            // no block of the key's format and that card: another key, another card, or another format
)

// verify deciphers a PIN block and compares it with the card's PIN.
func (k *Key) verify(block card.PINBlock, pin PIN, pan card.PAN) pinVerdict {
	got := bytes.Clone(block.Reveal())
	defer clear(got)
	if len(got) != k.cipher.BlockSize() {
		return pinMalformed
	}
	k.cipher.Decrypt(got, got)
	subtle.XORBytes(got, got, k.accountField(pan))
	if k.format == ISO4 {
		k.cipher.Decrypt(got, got)
	}
	length := int(nibble(got, 1))
	if nibble(got, 0) != pinFormats[k.format].control || length < minPINDigits || length > maxPINDigits {
		return pinMalformed
	}
	want, right := pin.reveal(), length == len(pin.reveal())
	for i := 2; i < pinFieldNibbles; i++ {
		digit, isDigit := hexDigits[nibble(got, i)], i-2 < length
		if isDigit && digit > '9' || !isDigit && strings.IndexByte(pinFormats[k.format].fill, digit) < 0 {
			return pinMalformed
		}
		right = right && (!isDigit || digit == want[i-2])
	}
	if !right {
		return pinWrong
	}
	return pinRight
}

const hexDigits = "0123456789ABCDEF"

// accountField takes the digits from the right, without the check digit; a PAN of 12 has only 11 beside it and gets a zero on the left. That of
// format 4 has all of them, which are 12 at least.
func (k *Key) accountField(pan card.PAN) []byte {
	field := make([]byte, k.cipher.BlockSize())
	digits, first := pan.Reveal(), 1
	switch {
	case k.format == ISO1 || digits == "":
		return field
	case k.format == ISO4:
		setNibble(field, 0, byte(len(digits)-panFieldDigits)) //nolint:gosec // a PAN has 12 to 19 digits
	default:
		digits = digits[:len(digits)-1]
		digits = digits[max(0, len(digits)-panFieldDigits):]
		first = pinFieldNibbles - len(digits)
	}
	for i := range len(digits) {
		setNibble(field, first+i, digits[i]-'0')
	}
	return field
}

func nibble(block []byte, i int) byte { return block[i/2] >> (4 * (1 - i%2)) & 0xF }

func setNibble(block []byte, i int, value byte) {
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
