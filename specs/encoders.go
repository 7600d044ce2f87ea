package specs

import (
	"errors"

	"github.com/moov-io/iso8583/encoding"
)

// Errors of the encoders: rules, never content.
var (
	errShort   = errors.New("less content than its length says")
	errDigits  = errors.New("a character that is not a digit")
	errContent = errors.New("a character that its kind does not allow")
	errPad     = errors.New("a pad nibble that is not 0")
	errSign    = errors.New("a sign that is neither C nor D")
	errHex     = errors.New("a character that is not an upper-case hexadecimal digit")
)

// A wireForm is an encoder that is one to one: it refuses wire bytes that it would not write.
type wireForm interface {
	encoding.Encoder
	wireLength(n int) int // bytes on the wire for n characters, digits or bytes
}

// asciiForm is text that stands on the wire as it is.
type asciiForm struct {
	allowed func([]byte) bool
}

func (a asciiForm) wireLength(n int) int { return n }

func (a asciiForm) Encode(value []byte) ([]byte, error) {
	if !a.allowed(value) {
		return nil, errContent
	}
	return value, nil
}

func (a asciiForm) Decode(wire []byte, length int) ([]byte, int, error) {
	if len(wire) < length {
		return nil, 0, errShort
	}
	if !a.allowed(wire[:length]) {
		return nil, 0, errContent
	}
	return wire[:length:length], length, nil
}

// binaryForm is bytes as they are.
type binaryForm struct{}

func (binaryForm) wireLength(n int) int { return n }

func (binaryForm) Encode(value []byte) ([]byte, error) { return value, nil }

func (binaryForm) Decode(wire []byte, length int) ([]byte, int, error) {
	if len(wire) < length {
		return nil, 0, errShort
	}
	return wire[:length:length], length, nil
}

// hexText is bytes as two upper-case hexadecimal characters each. Its length counts bytes. Lower case is refused: a MAC over
// the message would not survive writing it back.
type hexText struct{}

const hexDigits = "0123456789ABCDEF"

func (hexText) wireLength(n int) int { return 2 * n }

func (hexText) Encode(value []byte) ([]byte, error) {
	wire := make([]byte, 2*len(value))
	for i, b := range value {
		wire[2*i], wire[2*i+1] = hexDigits[b>>4], hexDigits[b&15]
	}
	return wire, nil
}

func (hexText) Decode(wire []byte, length int) ([]byte, int, error) {
	if len(wire) < 2*length {
		return nil, 0, errShort
	}
	value := make([]byte, length)
	for i := range value {
		high, low := unhex(wire[2*i]), unhex(wire[2*i+1])
		if high > 15 || low > 15 {
			return nil, 0, errHex
		}
		value[i] = high<<4 | low
	}
	return value, 2 * length, nil
}

func unhex(c byte) byte {
	switch {
	case '0' <= c && c <= '9':
		return c - '0'
	case 'A' <= c && c <= 'F':
		return c - 'A' + 10
	}
	return 255
}

// bcd packs two digits a byte. An odd count gets a pad nibble 0, on the left or on the right. With separator, the nibble D is the
// "=" of track 2.
type bcd struct{ padLeft, separator bool }

func (bcd) wireLength(n int) int { return (n + 1) / 2 }

func (b bcd) Encode(value []byte) ([]byte, error) {
	wire := make([]byte, (len(value)+1)/2)
	at := 0
	if b.padLeft {
		at = len(value) % 2
	}
	for _, c := range value {
		nibble := c - '0'
		if c < '0' || c > '9' {
			if !b.separator || (c != '=' && c != 'D') {
				return nil, errDigits
			}
			nibble = 0xD
		}
		wire[at/2] |= nibble << (4 * (1 - at%2))
		at++
	}
	return wire, nil
}

func (b bcd) Decode(wire []byte, length int) ([]byte, int, error) {
	read := (length + 1) / 2
	if len(wire) < read {
		return nil, 0, errShort
	}
	at := 0
	if length%2 == 1 {
		pad := wire[read-1] & 15
		if b.padLeft {
			at, pad = 1, wire[0]>>4
		}
		if pad != 0 {
			return nil, 0, errPad
		}
	}
	value := make([]byte, length)
	for i := range value {
		nibble := wire[at/2] >> (4 * (1 - at%2)) & 15
		switch {
		case nibble <= 9:
			value[i] = '0' + nibble
		case nibble == 0xD && b.separator:
			value[i] = '='
		default:
			return nil, 0, errDigits
		}
		at++
	}
	return value, read, nil
}

// signedBCD is an amount with sign (x+n): "C" or "D" as a character, then packed digits.
type signedBCD struct{}

func (signedBCD) wireLength(n int) int { return 1 + n/2 }

func (signedBCD) Encode(value []byte) ([]byte, error) {
	if !signedDigits(value) {
		return nil, errSign
	}
	digits, err := bcd{padLeft: true}.Encode(value[1:])
	if err != nil {
		return nil, err
	}
	return append([]byte{value[0]}, digits...), nil
}

func (signedBCD) Decode(wire []byte, length int) ([]byte, int, error) {
	if len(wire) < 1 || length < 1 {
		return nil, 0, errShort
	}
	if wire[0] != 'C' && wire[0] != 'D' {
		return nil, 0, errSign
	}
	digits, read, err := bcd{padLeft: true}.Decode(wire[1:], length-1)
	if err != nil {
		return nil, 0, err
	}
	return append([]byte{wire[0]}, digits...), 1 + read, nil
}

func allDigits(b []byte) bool {
	for _, c := range b {
		if c < '0' || c > '9' {
			return false
		}
	}
	return true
}

func allPrintable(b []byte) bool {
	for _, c := range b {
		if c < ' ' || c > '~' {
			return false
		}
	}
	return true
}

func allTrack2(b []byte) bool {
	for _, c := range b {
		if (c < '0' || c > '9') && c != '=' {
			return false
		}
	}
	return true
}

func signedDigits(b []byte) bool {
	return len(b) > 1 && (b[0] == 'C' || b[0] == 'D') && allDigits(b[1:])
}

// Rule returns the rule that an error of an encoder or prefixer of this package names, wherever it stands in a chain. Such a text
// quotes no content, which is not true of the library's texts around it.
func Rule(err error) (string, bool) {
	for _, rule := range []error{errShort, errDigits, errContent, errPad, errSign, errHex, errLengthDigits, errLengthMax, errLengthFixed} {
		if errors.Is(err, rule) {
			return rule.Error(), true
		}
	}
	return "", false
}
