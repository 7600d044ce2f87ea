package specs

import (
	"fmt"

	"github.com/moov-io/iso8583"
	"github.com/moov-io/iso8583/field"
)

// encoders are the names that a field's enc may have.
var encoders = map[string]wireForm{
	"Digits":       asciiForm{allDigits},
	"Text":         asciiForm{allPrintable},
	"Track2":       asciiForm{allTrack2},
	"SignedDigits": asciiForm{signedDigits},
	"HexText":      hexText{},
	"Binary":       binaryForm{},
	"BCDLeft":      bcd{padLeft: true},
	"BCDRight":     bcd{},
	"Track2BCD":    bcd{separator: true},
	"SignedBCD":    signedBCD{},
}

// prefixes are the names that a field's prefix may have.
var prefixes = map[string]lengthPrefix{
	"Fixed":     {},
	"ASCII.LL":  {digits: 2},
	"ASCII.LLL": {digits: 3},
	"BCD.LL":    {digits: 2, packed: true},
	"BCD.LLL":   {digits: 3, packed: true},
}

func (f Field) lint(number int) (faults []error) {
	fault := func(key, format string, args ...any) {
		faults = append(faults, fmt.Errorf("fields.%d.%s: "+format, append([]any{number, key}, args...)...))
	}
	if number < 0 || number > 128 || number == 65 {
		fault("", "is not a data element that a message of at most two bit maps can carry")
	}
	if (number == 1) != (f.Type == "Bitmap") {
		fault("type", "the bit map is field 1, and field 1 is the bit map")
	}
	if f.Type != "Bitmap" && f.Type != "String" && f.Type != "Binary" {
		fault("type", "%q is not one of Bitmap, Binary, String", f.Type)
	}
	if f.Length < 1 || f.Length > 999 {
		fault("length", "%d is not within 1 to 999", f.Length)
	}
	if _, known := encoders[f.Enc]; !known {
		fault("enc", "%q is not known", f.Enc)
	}
	prefix, known := prefixes[f.Prefix]
	switch {
	case !known:
		fault("prefix", "%q is not known", f.Prefix)
	case prefix.digits == 2 && f.Length > 99:
		fault("length", "%d does not fit two length digits", f.Length)
	case number < 2 && prefix.digits > 0:
		fault("prefix", "must be Fixed")
	}
	return faults
}

// compile builds the library's form of the fields.
func (d *Dialect) compile() error {
	spec := &iso8583.MessageSpec{Name: d.Name, Fields: make(map[int]field.Field, len(d.Fields))}
	for number, f := range d.Fields {
		fieldSpec := &field.Spec{Length: f.Length, Description: f.Description, Enc: encoders[f.Enc], Pref: prefixes[f.Prefix]}
		if number == 1 {
			spec.Fields[number] = field.NewBitmap(fieldSpec)
		} else {
			// Text and bytes alike: a Binary field keeps what the encoder gives it, without a change and without a copy.
			spec.Fields[number] = field.NewBinary(fieldSpec)
		}
	}
	if err := spec.Validate(); err != nil {
		return fmt.Errorf("fields: %w", err)
	}
	d.spec = spec
	return nil
}

// WireLength returns how many bytes a field of this number takes on the wire, length prefix included, if its value has n
// characters, digits or bytes: what the codec counts by, because the library ignores what follows the last field.
func (d *Dialect) WireLength(number, n int) int {
	f := d.Fields[number]
	return prefixes[f.Prefix].wireLength() + encoders[f.Enc].wireLength(n)
}
