package specs

import "errors"

var (
	errLengthDigits = errors.New("a length that is not digits")
	errLengthMax    = errors.New("a length over the dialect's maximum")
	errLengthFixed  = errors.New("a length that is not the dialect's")
)

// A lengthPrefix is the decimal length before a field of variable length, as ASCII digits or packed; without digits the field's
// length is fixed. It counts what the field's encoder counts. A sign, a space or a nibble above 9 is refused, which the
// library's prefixers are not all strict about.
type lengthPrefix struct {
	digits int
	packed bool
}

func (p lengthPrefix) wireLength() int {
	if p.packed {
		return (p.digits + 1) / 2
	}
	return p.digits
}

// EncodeLength is part of the library's Prefixer.
func (p lengthPrefix) EncodeLength(maximum, length int) ([]byte, error) {
	if p.digits == 0 {
		if length != maximum {
			return nil, errLengthFixed
		}
		return nil, nil
	}
	if length > maximum {
		return nil, errLengthMax
	}
	text := make([]byte, p.digits)
	for i := range text {
		text[p.digits-1-i] = byte('0' + length%10)
		length /= 10
	}
	if p.packed {
		return bcd{padLeft: true}.Encode(text)
	}
	return text, nil
}

// DecodeLength is part of the library's Prefixer.
func (p lengthPrefix) DecodeLength(maximum int, wire []byte) (length, read int, err error) {
	if p.digits == 0 {
		return maximum, 0, nil
	}
	read = p.wireLength()
	if len(wire) < read {
		return 0, 0, errShort
	}
	text := wire[:read]
	if p.packed {
		if text, _, err = (bcd{padLeft: true}).Decode(wire, p.digits); err != nil {
			return 0, 0, errLengthDigits
		}
	}
	if !allDigits(text) {
		return 0, 0, errLengthDigits
	}
	for _, c := range text {
		length = 10*length + int(c-'0')
	}
	if length > maximum {
		return 0, 0, errLengthMax
	}
	return length, read, nil
}

// Inspect is part of the library's Prefixer.
func (p lengthPrefix) Inspect() string { return "lengthPrefix" }
