package specs

import (
	"slices"
	"strings"
)

// KeySerialNumber says where a key serial number stands, alone in its element. It is of the hop that it came over, like the PIN block: it
// is neither sent on nor kept.
type KeySerialNumber struct {
	Element int                 `yaml:"element,omitempty"`
	Form    KeySerialNumberForm `yaml:"form,omitempty"`
}

// A KeySerialNumberForm is how a key serial number is written.
type KeySerialNumberForm string

// The forms of a key serial number.
const (
	KeySerialNumberBinary KeySerialNumberForm = "binary" // bytes
	KeySerialNumberHex    KeySerialNumberForm = "hex"    // text of hexadecimal digits, two a byte
)

// otherwiseKnown are elements of which everybody knows what they hold, and it is no key serial number: card data, tracks, PIN block, chip data
// and MACs.
var otherwiseKnown = []int{2, 14, 34, 35, 36, 45, 52, 55, 64, 128}

// ksnBytes are the lengths of a key serial number: 10 bytes of TDES, of which leading ones may be left out, and 12 of AES (ANS X9.24-1, A.1 and
// X9.24-3, 6.3.2).
var ksnBytes = []int{8, 9, 10, 12}

// lintKeySerialNumber checks that a key serial number can be read, and that nothing else is taken for one. It names a device, and says which
// of its keys was used: it is neither shown nor kept.
func (l *linter) lintKeySerialNumber() {
	k := l.KeySerialNumber
	if k == (KeySerialNumber{}) {
		return
	}
	const at = "key_serial_number.element"
	if k.Form != KeySerialNumberBinary && k.Form != KeySerialNumberHex {
		l.fault("key_serial_number.form", "%q is not one of %s, %s", k.Form, KeySerialNumberBinary, KeySerialNumberHex)
		return
	}
	l.elements(at, []int{k.Element})
	if _, known := l.Fields[k.Element]; !known || k.Element < 2 {
		return
	}
	switch mask := l.Sensitive[k.Element]; {
	case slices.Contains(otherwiseKnown, k.Element), k.Element == l.Reversal.originalElement(), k.Element == l.Reversal.replacementElement():
		l.fault(at, "field %d holds something else", k.Element)
	case mask == MaskPANs, !CardData(k.Element) && mask != MaskHidden:
		l.fault(at, "field %d is shown, and a key serial number may not be: it names a device", k.Element)
	case slices.Contains(l.Advices.Stored, k.Element):
		l.fault(at, "field %d is in advices.stored, and a key serial number is not kept", k.Element)
	case len(l.Values[k.Element]) > 0:
		l.fault(at, "field %d has values", k.Element)
	}
	for path, f := range l.allFields() {
		if f.number == k.Element {
			l.lintKeySerialNumberField(path, f.Field)
		}
	}
}

func (l *linter) lintKeySerialNumberField(path string, f Field) {
	sample, digits := "A", 1
	if l.KeySerialNumber.Form == KeySerialNumberHex {
		digits = 2
	}
	switch takesOne := slices.ContainsFunc(ksnBytes, func(n int) bool { return l.takes(f, strings.Repeat(sample, n*digits)) }); {
	case f.Binary() != (l.KeySerialNumber.Form == KeySerialNumberBinary):
		l.fault(path+".type", "%q is not of key_serial_number.form, which is %s", f.Type, l.KeySerialNumber.Form)
	case !takesOne:
		l.fault(path, "does not hold a key serial number, which has 8 to 10 or 12 bytes")
	}
}
