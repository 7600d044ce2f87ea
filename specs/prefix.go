package specs

import (
	"encoding/binary"
	"errors"
)

var (
	errLengthDigits = errors.New("a length that is not digits")
	errLengthMax    = errors.New("a length over the dialect's maximum")
	errLengthFixed  = errors.New("a length that is not the dialect's")
	errLengthItself = errors.New("a length that is less than its own size, which it counts")
	errLengthLeast  = errors.New("a length under the dialect's minimum")
)

// A lengthForm is how a length stands on the wire.
type lengthForm struct {
	digits int // of a decimal length; bytes of a binary one; 0 for a field of fixed length
	kind   lengthKind
}

type lengthKind uint8

const (
	lengthASCII lengthKind = iota
	lengthEBCDIC
	lengthBCD
	lengthBinary
	lengthHex // hexadecimal digits in ASCII
)

// prefixes are the names that a field's prefix may have: one letter L for each digit, or for each byte of a binary length.
var prefixes = func() map[string]lengthForm {
	known := map[string]lengthForm{"Fixed": {}}
	for name, form := range map[string]struct {
		kind lengthKind
		most int
	}{"ASCII": {lengthASCII, 6}, "EBCDIC": {lengthEBCDIC, 6}, "BCD": {lengthBCD, 6}, "Binary": {lengthBinary, 2}, "Hex": {lengthHex, 4}} {
		letters := ""
		for digits := 1; digits <= form.most; digits++ {
			letters += "L"
			known[name+"."+letters] = lengthForm{digits, form.kind}
		}
	}
	return known
}()

// most is the greatest length that fits.
func (f lengthForm) most() int {
	base, most := 10, 1
	switch f.kind {
	case lengthBinary:
		base = 256
	case lengthHex:
		base = 16
	case lengthASCII, lengthEBCDIC, lengthBCD:
	}
	for range f.digits {
		most *= base
	}
	return most - 1
}

// size is the length's own size on the wire, in bytes.
func (f lengthForm) size() int {
	if f.kind == lengthBCD {
		return (f.digits + 1) / 2
	}
	return f.digits
}

// append writes a length that fits.
func (f lengthForm) append(b []byte, length int) []byte {
	if f.kind == lengthBinary {
		var wide [4]byte
		binary.BigEndian.PutUint32(wide[:], uint32(length)) //nolint:gosec // at most most, and not negative
		return append(b, wide[4-f.digits:]...)
	}
	base := 10
	if f.kind == lengthHex {
		base = 16
	}
	text := make([]byte, f.digits)
	for i := range text {
		text[f.digits-1-i] = upperHex[length%base]
		length /= base
	}
	switch f.kind {
	case lengthBCD:
		packed, _ := bcd{padLeft: true}.Encode(text) // digits
		return append(b, packed...)
	case lengthEBCDIC:
		return append(b, cp500.encode(text)...)
	case lengthASCII, lengthHex, lengthBinary:
	}
	return append(b, text...)
}

// parse reads a length. A sign, a space or a nibble above 9 is refused, which the library's prefixers are not all strict about.
func (f lengthForm) parse(wire []byte) (length int, err error) {
	if len(wire) < f.size() {
		return 0, errShort
	}
	text, base := wire[:f.size()], 10
	switch f.kind {
	case lengthBinary:
		for _, b := range text {
			length = length<<8 | int(b)
		}
		return length, nil
	case lengthBCD:
		if text, _, err = (bcd{padLeft: true}).Decode(text, f.digits); err != nil {
			return 0, errLengthDigits
		}
	case lengthEBCDIC:
		text = cp500.decode(text)
	case lengthHex:
		base = 16
	case lengthASCII:
	}
	for _, c := range text {
		digit := int(hexText{digits: upperHex}.nibble(c))
		if digit >= base {
			return 0, errLengthDigits
		}
		length = base*length + digit
	}
	return length, nil
}

// A lengthPrefix is the length before a field of variable length, or none before a field of fixed length. It counts what the field's
// encoder counts (characters, digits, bytes), or the bytes on the wire.
type lengthPrefix struct {
	lengthForm
	content   wireForm
	countWire bool // it counts bytes on the wire
	inclusive bool // it counts itself too
	least     int  // of the field's value
}

// EncodeLength is part of the library's Prefixer.
func (p lengthPrefix) EncodeLength(maximum, length int) ([]byte, error) {
	switch {
	case p.digits == 0 && length != maximum:
		return nil, errLengthFixed
	case p.digits == 0:
		return nil, nil
	case length > maximum:
		return nil, errLengthMax
	case length < p.least:
		return nil, errLengthLeast
	}
	if p.countWire {
		wire := p.content.wireLength(length)
		if holds, err := p.content.valueLength(wire); err != nil || holds != length {
			return nil, errHalf // read again, the pad nibble would be a digit
		}
		length = wire
	}
	if p.inclusive {
		length += p.size()
	}
	if length > p.most() {
		return nil, errLengthMax
	}
	return p.append(nil, length), nil
}

// DecodeLength is part of the library's Prefixer.
func (p lengthPrefix) DecodeLength(maximum int, wire []byte) (length, read int, err error) {
	if p.digits == 0 {
		return maximum, 0, nil
	}
	if length, err = p.parse(wire); err != nil {
		return 0, 0, err
	}
	if p.inclusive {
		if length -= p.size(); length < 0 {
			return 0, 0, errLengthItself
		}
	}
	if p.countWire {
		if length, err = p.content.valueLength(length); err != nil {
			return 0, 0, err
		}
	}
	switch {
	case length > maximum:
		return 0, 0, errLengthMax
	case length < p.least:
		return 0, 0, errLengthLeast
	}
	return length, p.size(), nil
}

// Inspect is part of the library's Prefixer.
func (p lengthPrefix) Inspect() string { return "lengthPrefix" }
