package specs

import (
	"bytes"
	"errors"

	"github.com/moov-io/iso8583/encoding"
)

// Errors of the encoders: rules, never content.
var (
	errShort   = errors.New("less content than its length says")
	errDigits  = errors.New("a character that is not a digit")
	errContent = errors.New("a character that its kind does not allow")
	errPad     = errors.New("a pad nibble that is not the dialect's")
	errSign    = errors.New("a sign that is neither C nor D")
	errHex     = errors.New("a character that is not a hexadecimal digit of the dialect's case")
	errHalf    = errors.New("a length that ends within a byte")
)

// A wireForm is an encoder that is one to one: it refuses wire bytes that it would not write. Values are in ASCII or, of binary elements,
// the bytes themselves, whatever stands on the wire.
type wireForm interface {
	encoding.Encoder
	wireLength(n int) int           // bytes on the wire for n characters, digits or bytes of the value
	valueLength(w int) (int, error) // the inverse: the longest value that w bytes on the wire hold
}

// encoders are the names that a field's enc may have.
var encoders = func() map[string]wireForm {
	known := map[string]wireForm{
		"Binary":          binaryForm{},
		"Raw":             binaryForm{}, // text in a character set of its own: GBK, UTF-8, Latin-1
		"BCDLeft":         bcd{padLeft: true},
		"BCDRight":        bcd{},
		"BCDLeftF":        bcd{padLeft: true, pad: 0xF},
		"BCDRightF":       bcd{pad: 0xF},
		"Track2BCD":       bcd{separator: true},
		"Track2BCDLeft":   bcd{separator: true, padLeft: true},
		"Track2BCDF":      bcd{separator: true, pad: 0xF},
		"SignNibble":      signNibble{},
		"SignedBCD":       signedBCD{},
		"SignedEBCDICBCD": signedBCD{page: cp500},
		"HexText":         hexText{digits: upperHex},
		"HexTextLower":    hexText{digits: lowerHex},
		"EBCDICHexText":   hexText{digits: upperHex, page: cp500},
		"EBCDICRaw":       rawPage{cp500},
		"EBCDIC1047Raw":   rawPage{cp1047},
		"Text":            textForm{allowed: allPrintable},
		"EBCDICText":      textForm{allowed: allPrintable, page: cp500},
		"EBCDIC1047Text":  textForm{allowed: allPrintable, page: cp1047},
		"ASCII7":          textForm{allowed: allASCII}, // also control characters
		"Track2D":         textForm{allowed: allTrack2, separator: 'D'},
		"EBCDICTrack2D":   textForm{allowed: allTrack2, page: cp500, separator: 'D'},
	}
	for name, allowed := range map[string]func([]byte) bool{"Digits": allDigits, "Track2": allTrack2, "SignedDigits": signedDigits} {
		known[name] = textForm{allowed: allowed}
		known["EBCDIC"+name] = textForm{allowed: allowed, page: cp500} // the pages agree in digits, letters and "="
	}
	return known
}()

// A textForm has one byte a character.
type textForm struct {
	allowed   func(ascii []byte) bool
	page      *page // nil for ASCII
	separator byte  // stands on the wire instead of "=", if not 0
}

func (textForm) wireLength(n int) int           { return n }
func (textForm) valueLength(w int) (int, error) { return w, nil }

func (t textForm) Encode(value []byte) ([]byte, error) {
	if !t.allowed(value) {
		return nil, errContent
	}
	if t.separator != 0 {
		value = bytes.ReplaceAll(value, []byte{'='}, []byte{t.separator})
	}
	if t.page != nil {
		return t.page.encode(value), nil
	}
	return value, nil
}

func (t textForm) Decode(wire []byte, length int) ([]byte, int, error) {
	if len(wire) < length {
		return nil, 0, errShort
	}
	value := wire[:length:length]
	if t.page != nil {
		value = t.page.decode(value)
	}
	if t.separator != 0 {
		if bytes.IndexByte(value, '=') >= 0 {
			return nil, 0, errContent // it would be written as the other one
		}
		value = bytes.ReplaceAll(value, []byte{t.separator}, []byte{'='})
	}
	if !t.allowed(value) {
		return nil, 0, errContent
	}
	return value, length, nil
}

// binaryForm is bytes as they are.
type binaryForm struct{}

func (binaryForm) wireLength(n int) int           { return n }
func (binaryForm) valueLength(w int) (int, error) { return w, nil }

func (binaryForm) Encode(value []byte) ([]byte, error) { return value, nil }

func (binaryForm) Decode(wire []byte, length int) ([]byte, int, error) {
	if len(wire) < length {
		return nil, 0, errShort
	}
	return wire[:length:length], length, nil
}

// rawPage is EBCDIC of any bytes, control characters included, as Latin-1.
type rawPage struct{ page *page }

func (rawPage) wireLength(n int) int           { return n }
func (rawPage) valueLength(w int) (int, error) { return w, nil }

func (r rawPage) Encode(value []byte) ([]byte, error) { return r.page.encode(value), nil }

func (r rawPage) Decode(wire []byte, length int) ([]byte, int, error) {
	if len(wire) < length {
		return nil, 0, errShort
	}
	return r.page.decode(wire[:length]), length, nil
}

// hexText is bytes as two hexadecimal characters each. Its length counts bytes. The other case is refused: a MAC over the message would
// not survive writing it back.
type hexText struct {
	digits string
	page   *page // nil for ASCII
}

const (
	upperHex = "0123456789ABCDEF"
	lowerHex = "0123456789abcdef"
)

func (hexText) wireLength(n int) int { return 2 * n }

func (hexText) valueLength(w int) (int, error) {
	if w%2 != 0 {
		return 0, errHalf
	}
	return w / 2, nil
}

func (h hexText) Encode(value []byte) ([]byte, error) {
	wire := make([]byte, 2*len(value))
	for i, b := range value {
		wire[2*i], wire[2*i+1] = h.digits[b>>4], h.digits[b&15]
	}
	if h.page != nil {
		return h.page.encode(wire), nil
	}
	return wire, nil
}

func (h hexText) Decode(wire []byte, length int) ([]byte, int, error) {
	if len(wire) < 2*length {
		return nil, 0, errShort
	}
	wire = wire[:2*length]
	if h.page != nil {
		wire = h.page.decode(wire)
	}
	value := make([]byte, length)
	for i := range value {
		high, low := h.nibble(wire[2*i]), h.nibble(wire[2*i+1])
		if high > 15 || low > 15 {
			return nil, 0, errHex
		}
		value[i] = high<<4 | low
	}
	return value, 2 * length, nil
}

func (h hexText) nibble(c byte) byte {
	first := h.digits[10]
	switch {
	case '0' <= c && c <= '9':
		return c - '0'
	case first <= c && c <= first+5:
		return c - first + 10
	}
	return 255
}

// bcd packs two digits a byte. An odd count gets a pad nibble, on the left or on the right. With separator, the nibble D is the "=" of
// track 2.
type bcd struct {
	padLeft, separator bool
	pad                byte // a nibble: 0 or F
}

func (bcd) wireLength(n int) int           { return (n + 1) / 2 }
func (bcd) valueLength(w int) (int, error) { return 2 * w, nil }

func (b bcd) Encode(value []byte) ([]byte, error) {
	wire := make([]byte, (len(value)+1)/2)
	at := 0
	if len(value)%2 == 1 {
		if b.padLeft {
			at = 1
			wire[0] = b.pad << 4
		} else {
			wire[len(wire)-1] = b.pad
		}
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
		if pad != b.pad {
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
type signedBCD struct {
	page *page // of the sign; nil for ASCII
}

func (signedBCD) wireLength(n int) int           { return 1 + n/2 }
func (signedBCD) valueLength(w int) (int, error) { return 2*w - 1, nil }

func (s signedBCD) Encode(value []byte) ([]byte, error) {
	if !signedDigits(value) {
		return nil, errSign
	}
	digits, err := bcd{padLeft: true}.Encode(value[1:])
	if err != nil {
		return nil, err
	}
	sign := value[:1]
	if s.page != nil {
		sign = s.page.encode(sign)
	}
	return append([]byte{sign[0]}, digits...), nil
}

func (s signedBCD) Decode(wire []byte, length int) ([]byte, int, error) {
	if len(wire) < 1 || length < 1 {
		return nil, 0, errShort
	}
	sign := wire[:1]
	if s.page != nil {
		sign = s.page.decode(sign)
	}
	if sign[0] != 'C' && sign[0] != 'D' {
		return nil, 0, errSign
	}
	digits, read, err := bcd{padLeft: true}.Decode(wire[1:], length-1)
	if err != nil {
		return nil, 0, err
	}
	return append([]byte{sign[0]}, digits...), 1 + read, nil
}

// signNibble is an amount with sign (x+n) whose sign is the first nibble, C or D, of an even count of nibbles in all.
type signNibble struct{}

func (signNibble) wireLength(n int) int           { return (n + 1) / 2 }
func (signNibble) valueLength(w int) (int, error) { return 2 * w, nil }

func (signNibble) Encode(value []byte) ([]byte, error) {
	if !signedDigits(value) || len(value)%2 != 0 {
		return nil, errSign
	}
	wire := make([]byte, len(value)/2)
	for i, c := range value {
		nibble := c - '0'
		if i == 0 {
			nibble = c - 'A' + 10
		}
		wire[i/2] |= nibble << (4 * (1 - i%2))
	}
	return wire, nil
}

func (signNibble) Decode(wire []byte, length int) ([]byte, int, error) {
	switch {
	case length < 2 || length%2 != 0:
		return nil, 0, errHalf
	case len(wire) < length/2:
		return nil, 0, errShort
	}
	sign := wire[0] >> 4
	if sign != 0xC && sign != 0xD {
		return nil, 0, errSign
	}
	value := append(make([]byte, 0, length), 'A'+sign-10)
	for i := 1; i < length; i++ {
		nibble := wire[i/2] >> (4 * (1 - i%2)) & 15
		if nibble > 9 {
			return nil, 0, errDigits
		}
		value = append(value, '0'+nibble)
	}
	return value, length / 2, nil
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

func allASCII(b []byte) bool {
	for _, c := range b {
		if c > 0x7F {
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

// rules are the errors of this package's encoders and prefixers.
var rules = []error{errShort, errDigits, errContent, errPad, errSign, errHex, errHalf, errLengthDigits, errLengthMax, errLengthFixed,
	errLengthItself, errLengthLeast}

// Rule returns the rule that an error of an encoder or prefixer of this package names, wherever it stands in a chain. Such a text
// quotes no content, which is not true of the library's texts around it.
func Rule(err error) (string, bool) {
	for _, rule := range rules {
		if errors.Is(err, rule) {
			return rule.Error(), true
		}
	}
	return "", false
}
