package specs

import (
	"fmt"

	"github.com/moov-io/iso8583"
	"github.com/moov-io/iso8583/field"
)

// A Field is the wire form of one data element.
type Field struct {
	Type        string  `yaml:"type"`                // Bitmap, Binary (bytes) or String (text)
	Length      int     `yaml:"length"`              // exact if the prefix is Fixed, else the most: characters, digits or bytes of the value
	Least       int     `yaml:"least,omitempty"`     // of a variable length
	Enc         string  `yaml:"enc"`                 // see encoders
	Prefix      string  `yaml:"prefix"`              // see prefixes
	Counts      Counts  `yaml:"counts,omitempty"`    // what the prefix counts; default value
	Inclusive   bool    `yaml:"inclusive,omitempty"` // the prefix counts itself too
	Pad         Pad     `yaml:"pad,omitempty"`       // of values that are shorter than a fixed length, when they are written
	Content     Content `yaml:"content,omitempty"`   // what a value must be beyond its characters
	Extent      Extent  `yaml:"extent,omitempty"`    // of the bit map
	Description string  `yaml:"description"`
}

// Counts says what a length prefix counts.
type Counts string

// What a length prefix counts.
const (
	CountsValue Counts = "value" // characters, digits or bytes of the value
	CountsWire  Counts = "wire"  // bytes on the wire
)

// A Pad says how a value that is too short for its fixed length is filled up when it is written. What is read keeps its padding.
type Pad string

// The ways to fill up.
const (
	PadNone       Pad = ""
	PadLeftZero   Pad = "left-zero"
	PadRightSpace Pad = "right-space"
)

// Content says what a value must be beyond its characters.
type Content string

// The kinds of content.
const (
	ContentAny    Content = ""
	ContentBERTLV Content = "ber-tlv" // tags, lengths and values to the end (EMV Book 3, annex B)
)

// An Extent says how many bit maps there are.
type Extent string

// The extents of the bit map.
const (
	ExtentAuto  Extent = "auto"  // 64 elements, and 64 more if bit 1 is set
	ExtentFixed Extent = "fixed" // as long as the field, and bit 1 announces nothing
)

// Binary reports whether the element is bytes and not text.
func (f Field) Binary() bool { return f.Type == "Binary" }

// IsFixed reports whether all values have one length.
func (f Field) IsFixed() bool { return f.Prefix == "Fixed" }

// Fill fills up a value that is too short for its fixed length, if the field says how.
func (f Field) Fill(value []byte) []byte {
	missing := f.Length - len(value)
	if f.Pad == PadNone || missing <= 0 {
		return value
	}
	filled := make([]byte, f.Length)
	if f.Pad == PadRightSpace {
		for i := copy(filled, value); i < len(filled); i++ {
			filled[i] = ' '
		}
		return filled
	}
	for i := range missing {
		filled[i] = '0'
	}
	copy(filled[missing:], value)
	return filled
}

// binaryEncoders are those whose values are bytes and not text.
var binaryEncoders = map[string]bool{"Binary": true, "HexText": true, "HexTextLower": true, "EBCDICHexText": true}

// longestField bounds the length of a field.
const longestField = 9999

func (f Field) lint(path string, number int, fault func(path, format string, args ...any)) {
	if number < 0 || number > 128 {
		fault(path, "is not a data element that a message of at most two bit maps can carry")
	}
	isBitmap := f.Type == "Bitmap"
	if (number == 1) != isBitmap {
		fault(path+".type", "the bit map is field 1, and field 1 is the bit map")
	}
	if !isBitmap && f.Type != "String" && f.Type != "Binary" {
		fault(path+".type", "%q is not one of Bitmap, Binary, String", f.Type)
	}
	content, knownEnc := encoders[f.Enc]
	prefix, knownPrefix := prefixes[f.Prefix]
	switch {
	case !knownEnc:
		fault(path+".enc", "%q is not known", f.Enc)
	case f.Type == "String" && binaryEncoders[f.Enc], (isBitmap || f.Type == "Binary") && !binaryEncoders[f.Enc]:
		fault(path+".enc", "%s is not for %s", f.Enc, f.Type)
	}
	if f.Length < 1 || f.Length > longestField {
		fault(path+".length", "%d is not within 1 to %d", f.Length, longestField)
	}
	switch {
	case !knownPrefix:
		fault(path+".prefix", "%q is not known", f.Prefix)
	case number < 2 && prefix.digits > 0:
		fault(path+".prefix", "must be Fixed")
	case prefix.digits == 0:
		if f.Counts != "" || f.Inclusive || f.Least != 0 {
			fault(path+".prefix", "Fixed has no counts, inclusive or least")
		}
	case longest(f, content, prefix) > prefix.most():
		fault(path+".length", "%d does not fit the prefix", f.Length)
	}
	if f.Least < 0 || f.Least > f.Length {
		fault(path+".least", "%d is not within 0 to the length", f.Least)
	}
	if f.Counts != "" && f.Counts != CountsValue && f.Counts != CountsWire {
		fault(path+".counts", "%q is not one of value, wire", f.Counts)
	}
	if f.Pad != PadNone && f.Pad != PadLeftZero && f.Pad != PadRightSpace {
		fault(path+".pad", "%q is not one of left-zero, right-space", f.Pad)
	}
	if f.Pad != PadNone && (prefix.digits > 0 || f.Type != "String") {
		fault(path+".pad", "is only of text with a fixed length")
	}
	if f.Content != ContentAny && (f.Content != ContentBERTLV || f.Type != "Binary") {
		fault(path+".content", "%q is not ber-tlv of a Binary field", f.Content)
	}
	switch {
	case number == 0 && knownEnc && (f.Length != 4 || content.wireLength(4) > 4):
		fault(path+".length", "the MTI has four digits")
	case isBitmap && f.Extent != "" && f.Extent != ExtentAuto && f.Extent != ExtentFixed:
		fault(path+".extent", "%q is not one of auto, fixed", f.Extent)
	case isBitmap && f.Length != 8 && (f.Length != 16 || f.Extent != ExtentFixed):
		fault(path+".length", "a bit map has 8 bytes, or 16 with a fixed extent")
	case !isBitmap && f.Extent != "":
		fault(path+".extent", "is only of the bit map")
	}
}

// longest is the greatest length that a prefix has to hold.
func longest(f Field, content wireForm, prefix lengthForm) int {
	length := f.Length
	if f.Counts == CountsWire && content != nil {
		length = content.wireLength(length)
	}
	if f.Inclusive {
		length += prefix.size()
	}
	return length
}

// compile builds the library's form of the fields: of all messages, and of those that have fields of their own.
func (d *Dialect) compile() error {
	var err error
	if d.spec, err = compiled(d.Name, d.Fields); err != nil {
		return err
	}
	d.specs = map[string]*iso8583.MessageSpec{}
	d.own = map[string]map[int]Field{}
	for mti, presence := range d.Messages {
		if len(presence.Fields) == 0 {
			continue
		}
		fields := make(map[int]Field, len(d.Fields))
		for number, f := range d.Fields {
			fields[number] = f
		}
		for number, f := range presence.Fields {
			fields[number] = f
		}
		if d.specs[mti], err = compiled(d.Name, fields); err != nil {
			return fmt.Errorf("messages.%s.%w", mti, err)
		}
		d.own[mti] = fields
	}
	return nil
}

func compiled(name string, fields map[int]Field) (*iso8583.MessageSpec, error) {
	spec := &iso8583.MessageSpec{Name: name, Fields: make(map[int]field.Field, len(fields))}
	for number, f := range fields {
		fieldSpec := &field.Spec{Length: f.Length, Description: f.Description, Enc: encoders[f.Enc], Pref: f.prefix()}
		if number == 1 {
			fieldSpec.DisableAutoExpand = f.Extent == ExtentFixed
			spec.Fields[number] = field.NewBitmap(fieldSpec)
		} else {
			// Text and bytes alike: a Binary field keeps what the encoder gives it, without a change and without a copy.
			spec.Fields[number] = field.NewBinary(fieldSpec)
		}
	}
	if err := spec.Validate(); err != nil {
		return nil, fmt.Errorf("fields: %w", err)
	}
	return spec, nil
}

func (f Field) prefix() lengthPrefix {
	return lengthPrefix{lengthForm: prefixes[f.Prefix], content: encoders[f.Enc], countWire: f.Counts == CountsWire,
		inclusive: f.Inclusive, least: f.Least}
}

// Spec is the compiled form of the fields, for the codec.
func (d *Dialect) Spec() *iso8583.MessageSpec { return d.spec }

// SpecOf is the compiled form of the fields of a message type, by its MTI on the wire.
func (d *Dialect) SpecOf(mti string) *iso8583.MessageSpec {
	if own, has := d.specs[mti]; has {
		return own
	}
	return d.spec
}

// Field returns the wire form of a data element in a message type, by its MTI on the wire.
func (d *Dialect) Field(mti string, number int) (Field, bool) {
	fields := d.Fields
	if len(d.own) > 0 { // it is asked for each element of each message
		if own, has := d.own[mti]; has {
			fields = own
		}
	}
	f, known := fields[number]
	return f, known
}

// WireLength returns how many bytes a value of n characters, digits or bytes takes on the wire, length prefix included: what the codec
// counts by, because the library ignores what follows the last field.
func (f Field) WireLength(n int) int {
	return prefixes[f.Prefix].size() + encoders[f.Enc].wireLength(n)
}

// Read decodes a value of a fixed length, and Write encodes one.
func (f Field) Read(wire []byte, length int) ([]byte, error) {
	value, _, err := encoders[f.Enc].Decode(wire, length)
	return value, err
}

// Write encodes a value without a length.
func (f Field) Write(value []byte) ([]byte, error) { return encoders[f.Enc].Encode(value) }

// ReadMTI returns the MTI that a message begins with, as digits.
func (d *Dialect) ReadMTI(message []byte) (string, error) {
	mti, _, err := encoders[d.Fields[0].Enc].Decode(message, d.Fields[0].Length)
	return string(mti), err
}
