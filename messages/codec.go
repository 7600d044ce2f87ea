package messages

import (
	"bytes"
	"errors"
	"strconv"

	"github.com/moov-io/iso8583"
	fielderrors "github.com/moov-io/iso8583/errors"

	"acquirerd/specs"
)

// A FormatError says which element of a message breaks which rule. It never holds content.
type FormatError struct {
	Element Element // 0 is the MTI, 1 the bit map
	Rule    string
}

func (e *FormatError) Error() string { return e.Element.String() + " " + e.Rule }

// ErrUnsupported is the error of Validate for a message type that the dialect does not know.
var ErrUnsupported = errors.New("message type is not one of the dialect's")

// A Codec turns messages of one dialect into bytes and back. It may be used by many goroutines.
//
// What it decodes it encodes to the same bytes: it refuses bytes that the dialect would not write (trailing bytes, other pad
// nibbles, lower-case hexadecimal, signs in lengths).
type Codec struct {
	dialect *specs.Dialect
}

// NewCodec returns the dialect's codec.
func NewCodec(dialect *specs.Dialect) *Codec { return &Codec{dialect} }

// Dialect returns the dialect of the codec.
func (c *Codec) Dialect() *specs.Dialect { return c.dialect }

// Decode reads one message without its length header. Its error is a *FormatError; then the message holds what stood before the
// fault, and is nil only if not even the MTI could be read. The message keeps body, which the caller leaves alone from then on.
func (c *Codec) Decode(body []byte) (m *Message, err error) {
	if len(body) > c.dialect.Framing.Max {
		return nil, &FormatError{0, "begins a message longer than the dialect's maximum"}
	}
	// The library has panicked on peer data before. Bytes from outside must not end the process.
	defer func() {
		if recover() != nil {
			m, err = nil, &FormatError{0, "begins a message that cannot be read"}
		}
	}()
	wire := iso8583.NewMessage(c.dialect.Spec())
	fault := unpackFault(wire.Unpack(body))
	mti, err := wire.GetBytes(0)
	if err != nil || len(mti) != 4 || fault != nil && fault.Element == 0 {
		return nil, &FormatError{0, "is not four digits"}
	}
	return c.collect(wire, string(mti), len(body), fault)
}

// collect copies the elements that the library has read, up to the fault, and checks what the library does not.
func (c *Codec) collect(wire *iso8583.Message, mti string, size int, fault *FormatError) (*Message, error) {
	m := &Message{MTI: MTI(mti), elements: make([]entry, 0, 32)}
	bitmap := wire.Bitmap()
	if bitmap.IsSet(65) { // the library goes on to read a third bit map
		return m, &FormatError{65, "announces a third bit map"}
	}
	if fault != nil && fault.Element == 1 {
		return m, fault
	}
	consumed := c.dialect.WireLength(0, len(mti)) + c.dialect.WireLength(1, bitmap.Len()/8)
	for number := 2; number <= bitmap.Len(); number++ {
		if !bitmap.IsSet(number) || bitmap.IsBitmapPresenceBit(number) {
			continue
		}
		if fault != nil && number >= int(fault.Element) {
			return m, fault
		}
		value, err := wire.GetBytes(number)
		if err != nil {
			return m, &FormatError{Element(number), "cannot be read"}
		}
		m.elements = append(m.elements, entry{Element(number), value})
		consumed += c.dialect.WireLength(number, len(value))
	}
	if fault != nil {
		return m, fault
	}
	if bitmap.Len() > 64 && m.last() <= 64 {
		return m, &FormatError{1, "announces a second bit map that announces nothing"}
	}
	if consumed != size {
		return m, &FormatError{m.last(), "is followed by bytes that belong to no element"}
	}
	return m, nil
}

func (m *Message) last() Element {
	if len(m.elements) == 0 {
		return 1
	}
	return m.elements[len(m.elements)-1].element
}

// unpackFault finds the element that the library failed on. The library's texts and its copy of the raw message stay behind.
func unpackFault(err error) *FormatError {
	if err == nil {
		return nil
	}
	var unpack *fielderrors.UnpackError
	if !errors.As(err, &unpack) {
		return &FormatError{0, "begins a message that cannot be read"}
	}
	number, errNumber := strconv.Atoi(unpack.FieldID)
	if errNumber != nil || number < 0 || number > 128 {
		return &FormatError{1, "announces elements that the dialect does not have"}
	}
	return &FormatError{Element(number), rule(err)}
}

// rule returns the innermost text of an error chain if it is one of our encoders', which quote nothing.
func rule(err error) string {
	if text, ok := specs.Rule(err); ok {
		return "has " + text
	}
	return "does not keep the dialect's form"
}

// Encode writes one message without a length header. Its error is a *FormatError.
func (c *Codec) Encode(m *Message) ([]byte, error) {
	if len(m.MTI) != 4 {
		return nil, &FormatError{0, "is not four digits"}
	}
	wire := iso8583.NewMessage(c.dialect.Spec())
	if err := wire.BinaryField(0, []byte(m.MTI)); err != nil {
		return nil, &FormatError{0, "is not four digits"}
	}
	for _, entry := range m.elements {
		if _, known := c.dialect.Fields[int(entry.element)]; !known {
			return nil, &FormatError{entry.element, "is not one of the dialect's"}
		}
		if err := wire.BinaryField(int(entry.element), entry.value); err != nil {
			return nil, &FormatError{entry.element, "cannot be set"}
		}
	}
	body, err := wire.Pack()
	if err != nil {
		return nil, c.packFault(m, err)
	}
	if len(body) > c.dialect.Framing.Max {
		return nil, &FormatError{0, "begins a message longer than the dialect's maximum"}
	}
	return body, nil
}

// packFault finds the element that does not fit, which the library's error names only in its text.
func (c *Codec) packFault(m *Message, err error) *FormatError {
	spec := c.dialect.Spec()
	for _, entry := range m.elements {
		f := spec.Fields[int(entry.element)].Spec()
		if _, errLength := f.Pref.EncodeLength(f.Length, len(entry.value)); errLength != nil {
			return &FormatError{entry.element, rule(errLength)}
		}
		if _, errValue := f.Enc.Encode(entry.value); errValue != nil {
			return &FormatError{entry.element, rule(errValue)}
		}
	}
	return &FormatError{0, rule(err)}
}

// EncodeFrame writes one message with its length header: what one Write sends.
func (c *Codec) EncodeFrame(m *Message) ([]byte, error) {
	body, err := c.Encode(m)
	if err != nil {
		return nil, err
	}
	header := c.dialect.Framing.Length
	return append(header.Append(make([]byte, 0, header.Size()+len(body)), len(body)), body...), nil
}

// Validate checks what the dialect demands of a message of its type beyond its form. Its error is ErrUnsupported or a
// *FormatError with the first element that is missing.
func (c *Codec) Validate(m *Message) error {
	presence, known := c.dialect.Messages[string(m.MTI)]
	if !known {
		return ErrUnsupported
	}
	for _, number := range presence.Mandatory {
		if !m.Has(Element(number)) {
			return &FormatError{Element(number), "is missing"}
		}
	}
	for _, number := range presence.OneOf {
		if m.Has(Element(number)) {
			return nil
		}
	}
	if len(presence.OneOf) > 0 {
		return &FormatError{Element(presence.OneOf[0]), "is missing"}
	}
	return nil
}

// A Key ties an answer to its request: equal for both. It holds nothing sensitive.
type Key string

// Key returns the match key of a request or an answer: class and function of the MTI and the dialect's elements. It is false
// without a STAN or for a message that is neither.
func (c *Codec) Key(m *Message) (Key, bool) {
	if !m.Has(STAN) || (!m.MTI.IsAnswer() && !m.MTI.IsRequest()) {
		return "", false
	}
	elements := c.dialect.Match.Transaction
	if m.MTI.Class() == Network {
		elements = c.dialect.Match.NetworkManagement
	}
	key := append(make([]byte, 0, 40), m.MTI.Answer()[:3]...)
	for _, number := range elements {
		key = append(append(key, '|'), m.bytes(Element(number))...)
	}
	return Key(key), true
}

// Echoes checks that an answer repeats its request where the dialect says so and both carry the element. The amount may differ if
// the answer approves partially. Its error is a *FormatError.
func (c *Codec) Echoes(request, answer *Message) error {
	for _, number := range c.dialect.Echoed {
		e := Element(number)
		if !request.Has(e) || !answer.Has(e) || bytes.Equal(request.bytes(e), answer.bytes(e)) {
			continue
		}
		partial := e == Amount && c.dialect.ApprovesPartially(answer.Get(ResponseCode)) &&
			bytes.Compare(answer.bytes(e), request.bytes(e)) < 0
		if !partial {
			return &FormatError{e, "of the answer is not the request's"}
		}
	}
	return nil
}
