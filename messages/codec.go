package messages

import (
	"bytes"
	"errors"
	"slices"
	"strconv"
	"strings"

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

// notOfDialect is the rule that an element without a field breaks.
const notOfDialect = "is not one of the dialect's"

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

// Decode reads one message with its header and without its framing. Its error is a *FormatError; then the message holds what stood before
// the fault, and is nil only if not even the MTI could be read. The message keeps body, which the caller leaves alone from then on.
func (c *Codec) Decode(body []byte) (m *Message, err error) {
	if len(body) > c.dialect.Framing.Max {
		return nil, &FormatError{0, "begins a message longer than the dialect's maximum"}
	}
	header, wireMessage, rejected, err := c.dialect.Header.Split(body)
	if err != nil {
		return nil, &FormatError{0, "does not stand behind the dialect's header"}
	}
	// The library has panicked on peer data before. Bytes from outside must not end the process.
	defer func() {
		if recover() != nil {
			m, err = nil, &FormatError{0, "begins a message that cannot be read"}
		}
	}()
	wireMTI, err := c.dialect.ReadMTI(wireMessage)
	if err != nil || len(wireMTI) != 4 || strings.Trim(wireMTI, "0123456789") != "" {
		return nil, &FormatError{0, "is not four digits"}
	}
	mti, ours := c.dialect.OwnMTI(wireMTI)
	if !ours {
		return nil, &FormatError{0, "is of another edition than the dialect's"}
	}
	wire := iso8583.NewMessage(c.dialect.SpecOf(wireMTI))
	fault := unpackFault(wire.Unpack(wireMessage))
	if fault != nil && fault.Element > 1 {
		if _, known := c.dialect.Field(wireMTI, int(fault.Element)); !known {
			fault.Rule = notOfDialect
		}
	}
	m = &Message{MTI: MTI(mti), elements: make([]entry, 0, 32), header: header, rejected: rejected, dialect: c.dialect}
	return m, c.collect(m, wire, len(wireMessage), fault)
}

// collect copies the elements that the library has read, up to the fault, and checks what the library does not.
func (c *Codec) collect(m *Message, wire *iso8583.Message, size int, fault *FormatError) error {
	wireMTI := c.dialect.WireMTI(string(m.MTI))
	bitmap := wire.Bitmap()
	fixed := c.dialect.Fields[1].Extent == specs.ExtentFixed
	if bitmap.IsSet(65) && !fixed { // the library goes on to read a third bit map
		return &FormatError{65, "announces a third bit map"}
	}
	if fault != nil && fault.Element <= 1 {
		return fault
	}
	consumed := c.dialect.Fields[0].WireLength(len(m.MTI)) + c.dialect.Fields[1].WireLength(bitmap.Len()/8)
	for number := 2; number <= bitmap.Len(); number++ {
		if !bitmap.IsSet(number) || bitmap.IsBitmapPresenceBit(number) {
			continue
		}
		if fault != nil && number >= int(fault.Element) {
			return fault
		}
		value, err := wire.GetBytes(number)
		if err != nil {
			return &FormatError{Element(number), "cannot be read"}
		}
		m.elements = append(m.elements, entry{Element(number), value})
		f, _ := c.dialect.Field(wireMTI, number)
		consumed += f.WireLength(len(value))
	}
	if fault != nil {
		return fault
	}
	if fixed {
		m.wide = bitmap.IsSet(1)
	} else if bitmap.Len() > 64 && m.last() <= 64 {
		m.wide = true // it is written again so, because a MAC covers the bit map
	}
	if consumed != size {
		return &FormatError{m.last(), "is followed by bytes that belong to no element"}
	}
	return nil
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

// Encode writes one message with its header and without framing. The header is the one that the message came with; that of its request,
// turned round, if it is an answer of ours; else the dialect's own. Its error is a *FormatError.
func (c *Codec) Encode(m *Message) ([]byte, error) {
	message, err := c.pack(m)
	if err != nil {
		return nil, err
	}
	header := m.header
	if header == nil && m.asked != nil {
		header = c.dialect.Header.Answer(m.asked)
	}
	body := c.dialect.Header.Join(header, message)
	if len(body) > c.dialect.Framing.Max {
		return nil, &FormatError{0, "begins a message longer than the dialect's maximum"}
	}
	return body, nil
}

// pack writes a message without its header.
func (c *Codec) pack(m *Message) ([]byte, error) {
	if len(m.MTI) != 4 {
		return nil, &FormatError{0, "is not four digits"}
	}
	wireMTI := c.dialect.WireMTI(string(m.MTI))
	wire := iso8583.NewMessage(c.dialect.SpecOf(wireMTI))
	if err := wire.BinaryField(0, []byte(wireMTI)); err != nil {
		return nil, &FormatError{0, "is not four digits"}
	}
	for _, entry := range m.elements {
		f, known := c.dialect.Field(wireMTI, int(entry.element))
		if !known {
			return nil, &FormatError{entry.element, notOfDialect}
		}
		if err := wire.BinaryField(int(entry.element), f.Fill(entry.value)); err != nil {
			return nil, &FormatError{entry.element, "cannot be set"}
		}
	}
	packed, err := wire.Pack()
	if err != nil {
		return nil, c.packFault(m, err)
	}
	if m.wide {
		packed = c.widen(packed)
	}
	return packed, nil
}

// widen gives a message a second bit map that announces nothing, or sets bit 1 of a bit map of a fixed extent, which announces nothing either:
// the library writes neither.
func (c *Codec) widen(packed []byte) []byte {
	bitmap := c.dialect.Fields[1]
	at := c.dialect.Fields[0].WireLength(4)
	end := at + bitmap.WireLength(bitmap.Length)
	first, err := bitmap.Read(packed[at:end], bitmap.Length)
	if err != nil || first[0]&0x80 != 0 {
		return packed // there is one that announces something
	}
	first[0] |= 0x80
	if bitmap.Extent != specs.ExtentFixed {
		first = append(first, make([]byte, 8)...)
	}
	wide, err := bitmap.Write(first)
	if err != nil {
		return packed
	}
	return slices.Concat(packed[:at], wide, packed[end:])
}

// packFault finds the element that does not fit, which the library's error names only in its text.
func (c *Codec) packFault(m *Message, err error) *FormatError {
	spec := c.dialect.SpecOf(c.dialect.WireMTI(string(m.MTI)))
	for _, entry := range m.elements {
		f := spec.Fields[int(entry.element)].Spec()
		own, _ := c.dialect.Field(c.dialect.WireMTI(string(m.MTI)), int(entry.element))
		value := own.Fill(entry.value)
		if _, errLength := f.Pref.EncodeLength(f.Length, len(value)); errLength != nil {
			return &FormatError{entry.element, rule(errLength)}
		}
		if _, errValue := f.Enc.Encode(value); errValue != nil {
			return &FormatError{entry.element, rule(errValue)}
		}
	}
	return &FormatError{0, rule(err)}
}

// EncodeFrame writes one message with its framing: what one Write sends.
func (c *Codec) EncodeFrame(m *Message) ([]byte, error) {
	body, err := c.Encode(m)
	if err != nil {
		return nil, err
	}
	framing := &c.dialect.Framing
	if framing.Length == specs.LengthNone && bytes.Contains(body, framing.Trailer) {
		return nil, &FormatError{0, "begins a message that holds the trailer"}
	}
	return framing.Append(make([]byte, 0, framing.Size()+len(body)+len(framing.Trailer)), body), nil
}

// Keepalive is the frame of no bytes with which the dialect wants one answered, nil if it is not to be answered.
func (c *Codec) Keepalive() []byte {
	if c.dialect.Framing.Keepalive != specs.KeepaliveAnswered {
		return nil
	}
	return c.dialect.Framing.Append(nil, nil)
}

// Validate checks what the dialect demands of a message of its type beyond its form. Its error is ErrUnsupported or a
// *FormatError with the first element that is missing, not allowed, or not what its content must be, see Violations. An element without a
// character counts as missing.
func (c *Codec) Validate(m *Message) error {
	for violation := range c.violations(m, nil) {
		return violation
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
