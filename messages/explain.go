package messages

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"iter"
	"slices"

	"acquirerd/specs"
)

// An Explanation says whether a dialect takes a message, and what stands against it. It quotes nothing of the message: what could be read
// shows itself masked.
type Explanation struct {
	Message *Message // what could be read; nil if not even the MTI could
	Faults  []Fault  // in the order in which they are found; none if the message would be taken
}

// A Fault is one rule that a message breaks.
type Fault struct {
	Element  Element
	Offset   int    // of the byte, counted from 0 with framing and header, where the rule is broken; -1 if it is about none
	Rule     string // without a subject: "is missing"
	Expected string // what the dialect has there, "" where the rule says it
}

// Error says all of it on one line.
func (f *Fault) Error() string {
	text := f.Element.String() + " " + f.Rule
	if f.Offset >= 0 {
		text += fmt.Sprintf(", at byte %d", f.Offset)
	}
	if f.Expected != "" {
		text += ": expected " + f.Expected
	}
	return text
}

// ExplainFrame is Explain of a message with its framing.
func (c *Codec) ExplainFrame(frame []byte) Explanation {
	framing := &c.dialect.Framing
	stream := bytes.NewReader(frame)
	body, err := c.ReadFrame(stream)
	broken := &FrameError{}
	fault := Fault{Expected: framing.Describe()}
	switch {
	case errors.As(err, &broken):
		fault.Rule = "does not stand in a frame of the dialect's: "
		switch broken.Class {
		case FrameHeader:
			fault.Rule += "the length is not one"
		case FrameLength:
			fault.Rule += "the length is none that a frame can have"
		case FrameShort:
			fault.Offset, fault.Rule = len(frame), fault.Rule+"it ends before the length says"
		case FrameTrailer:
			fault.Offset, fault.Rule = len(frame)-stream.Len()-len(framing.Trailer), fault.Rule+"the trailer is another"
		}
	case errors.Is(err, io.EOF):
		fault.Rule = "is missing: there is no frame"
	case len(body) == 0:
		fault.Rule = "is missing: the frame only shows that the peer is there"
	default:
		e := c.explain(body, framing.Size())
		if stream.Len() > 0 {
			fault.Offset = len(frame) - stream.Len()
			fault.Rule = fmt.Sprintf("is of a frame that %d bytes follow", stream.Len())
			e.Faults = append(e.Faults, fault)
		}
		return e
	}
	return Explanation{Faults: []Fault{fault}}
}

// Explain says what stands against a message with its header and without its framing: the first fault of its form, after which nobody knows
// what the bytes are; every element that the bit map announces and the dialect does not have; and everything that Validate would find in what
// could be read.
func (c *Codec) Explain(body []byte) Explanation { return c.explain(body, 0) }

func (c *Codec) explain(body []byte, before int) Explanation {
	m, err := c.Decode(bytes.Clone(body))
	e := Explanation{Message: m}
	format := &FormatError{}
	if err != nil && !errors.As(err, &format) {
		format = &FormatError{0, "cannot be read"}
	}
	if m == nil {
		e.Faults = []Fault{c.faultBeforeMTI(body, before, format)}
		return e
	}
	l := c.layout(m, body)
	if err != nil {
		e.Faults = append(e.Faults, c.faultAt(l, body, before, format))
	}
	for _, number := range l.announced {
		if _, known := l.field(number); !known && (err == nil || number != format.Element) {
			e.Faults = append(e.Faults, Fault{number, before + l.bitOf(number), notOfDialect, ""})
		}
	}
	var unread []Element
	for _, number := range l.announced {
		if !m.Has(number) {
			unread = append(unread, number)
		}
	}
	for violation := range c.violations(m, unread) {
		broken := &FormatError{0, "is of a type that the dialect does not know"}
		errors.As(violation, &broken) // ErrUnsupported is none
		at, there := l.starts[broken.Element]
		switch {
		case broken.Element == 0:
			at, there = len(m.header), true
		case slices.Contains(unread, broken.Element):
			at, there = l.bitOf(broken.Element), true
		}
		if !there {
			at = -1 - before
		}
		e.Faults = append(e.Faults, Fault{broken.Element, before + at, broken.Rule, ""})
	}
	if err == nil {
		if again, errAgain := c.Encode(m); errAgain != nil || !bytes.Equal(again, body) {
			e.Faults = append(e.Faults, Fault{0, -1, "begins a message that does not encode back to the same bytes", ""})
		}
	}
	return e
}

// faultBeforeMTI places a fault of a message whose MTI could not be read.
func (c *Codec) faultBeforeMTI(body []byte, before int, format *FormatError) Fault {
	fault := Fault{format.Element, before, format.Rule, ""}
	if len(body) > c.dialect.Framing.Max {
		fault.Offset, fault.Expected = before+c.dialect.Framing.Max, fmt.Sprintf("at most %d bytes", c.dialect.Framing.Max)
		return fault
	}
	header, _, _, err := c.dialect.Header.Split(body)
	if err != nil {
		fault.Expected = c.dialect.Header.Describe()
		return fault
	}
	fault.Offset += len(header)
	fault.Expected = "an MTI that begins with " + string(c.dialect.Standard.Digit()) + ": " + expected(c.dialect.Fields[0])
	return fault
}

// faultAt places a fault of the form of a message whose MTI could be read.
func (c *Codec) faultAt(l layout, body []byte, before int, format *FormatError) Fault {
	fault := Fault{format.Element, before + l.end, format.Rule, ""}
	f, known := l.field(format.Element)
	switch start, there := l.starts[format.Element]; {
	case format.Element <= 1:
		fault.Offset, fault.Expected = before+l.bitmap, expected(c.dialect.Fields[1])
	case !known:
		fault.Offset = before + l.bitOf(format.Element)
	case l.complete:
		fault.Expected = "the end of the message"
	case there:
		fault.Offset, fault.Expected = before+start, expected(f)
		if _, read, err := f.ReadLength(body[min(start, len(body)):]); err == nil {
			fault.Offset += read // the length is one: what it counts is not
		}
	}
	return fault
}

// expected says what a field holds and how.
func expected(f specs.Field) string {
	if f.Type == "Bitmap" {
		return fmt.Sprintf("a bit map of %s bytes in %s", f.Extents(), f.Wire())
	}
	return fmt.Sprintf("%s %s in %s", f.Extents(), f.Characters(), f.Wire())
}

// A layout says where the elements of a message stand in its bytes.
type layout struct {
	codec     *Codec
	wireMTI   string
	bitmap    int             // offset of the bit map
	announced []Element       // by the bit map, ascending
	starts    map[Element]int // of each announced element, up to the first that could not be read
	end       int             // of what could be read
	complete  bool            // everything that is announced could be
}

func (c *Codec) layout(m *Message, body []byte) layout {
	l := layout{codec: c, wireMTI: c.dialect.WireMTI(string(m.MTI)), starts: map[Element]int{}, complete: true}
	l.bitmap = len(m.header) + c.dialect.Fields[0].WireLength(len(m.MTI))
	bits := l.readBitmap(body)
	if len(bits) == 0 {
		l.end, l.complete = l.bitmap, false
		return l
	}
	l.end = l.bitmap + c.dialect.Fields[1].WireLength(len(bits))
	fixed := c.dialect.Fields[1].Extent == specs.ExtentFixed
	for number := 2; number <= 8*len(bits); number++ {
		if bits[(number-1)/8]>>(7-(number-1)%8)&1 == 1 && (fixed || number != 65) {
			l.announced = append(l.announced, Element(number))
		}
	}
	for _, number := range l.announced {
		l.starts[number] = l.end
		f, known := l.field(number)
		if !known || !m.Has(number) {
			l.complete = false
			return l
		}
		l.end += f.WireLength(len(m.bytes(number)))
	}
	return l
}

// readBitmap returns the bit maps, none if they cannot be read.
func (l *layout) readBitmap(body []byte) []byte {
	f := l.codec.dialect.Fields[1]
	wire := body[min(l.bitmap, len(body)):]
	bits, err := f.Read(wire, f.Length)
	if err != nil {
		return nil
	}
	if f.Extent != specs.ExtentFixed && bits[0]&0x80 != 0 {
		if bits, err = f.Read(wire, 2*f.Length); err != nil {
			return nil
		}
	}
	return bits
}

func (l *layout) field(e Element) (specs.Field, bool) {
	return l.codec.dialect.Field(l.wireMTI, int(e))
}

// bitOf is the offset of the byte of the bit map that announces an element.
func (l *layout) bitOf(e Element) int {
	return l.bitmap + l.codec.dialect.Fields[1].WireLength((int(e)-1)/8)
}

// violations are what the dialect demands of a message of its type beyond its form and the message does not keep: ErrUnsupported or
// *FormatError. unread are elements that the message has and that could not be read: nothing is said of what they hold.
func (c *Codec) violations(m *Message, unread []Element) iter.Seq[error] {
	return func(yield func(error) bool) {
		presence, known := c.dialect.Messages[c.dialect.WireMTI(string(m.MTI))]
		if !known {
			yield(ErrUnsupported)
			return
		}
		lacks := func(number int) bool {
			return len(m.bytes(Element(number))) == 0 && !slices.Contains(unread, Element(number))
		}
		for _, number := range presence.Mandatory {
			if lacks(number) && !yield(&FormatError{Element(number), "is missing"}) {
				return
			}
		}
		if len(presence.OneOf) > 0 && !slices.ContainsFunc(presence.OneOf, func(number int) bool { return !lacks(number) }) &&
			!yield(&FormatError{Element(presence.OneOf[0]), "is missing"}) {
			return
		}
		for _, number := range presence.Forbidden {
			if (m.Has(Element(number)) || slices.Contains(unread, Element(number))) &&
				!yield(&FormatError{Element(number), "is not allowed in this message"}) {
				return
			}
		}
		for _, condition := range presence.When {
			if !applies(condition, m) {
				continue
			}
			for _, number := range condition.Then {
				if lacks(number) && !yield(&FormatError{Element(number), "is missing, with " + Element(condition.If).String() + " as it is"}) {
					return
				}
			}
		}
		c.contentViolations(m, unread, yield)
	}
}

func applies(condition specs.Condition, m *Message) bool {
	value := m.bytes(Element(condition.If))
	if len(condition.Begins) == 0 {
		return len(value) > 0
	}
	return slices.ContainsFunc(condition.Begins, func(beginning string) bool { return bytes.HasPrefix(value, []byte(beginning)) })
}

// contentViolations checks chip data, and that a MAC stands where the dialect has it: last.
func (c *Codec) contentViolations(m *Message, unread []Element, yield func(error) bool) {
	last := m.last()
	if len(unread) > 0 {
		last = max(last, unread[len(unread)-1])
	}
	for _, entry := range m.elements {
		f, _ := c.dialect.Field(c.dialect.WireMTI(string(m.MTI)), int(entry.element))
		if f.Content == specs.ContentBERTLV {
			if _, err := readChipData(entry.value); err != nil && !yield(&FormatError{entry.element, "is not BER-TLV"}) {
				return
			}
		}
		if c.dialect.MAC.Place == specs.MACLast && (entry.element == MAC || entry.element == MAC2) && entry.element != last &&
			!yield(&FormatError{entry.element, "is not the last element, as a MAC is"}) {
			return
		}
	}
}
