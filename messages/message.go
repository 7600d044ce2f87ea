package messages

import (
	"bytes"
	"fmt"
	"log/slog"
	"slices"
	"strings"

	"acquirerd/card"
	"acquirerd/specs"
)

// A Message is one ISO 8583 message: its type and its elements in canonical form. It is not for two goroutines at once.
//
// It prints itself masked, whatever prints it.
type Message struct {
	MTI      MTI     // with the first digit 0, whatever edition the dialect is of
	elements []entry // ascending by element

	header   []byte         // that the message came with; nil if it was made here
	asked    []byte         // the header of the request that this answers
	rejected string         // the code with which a network returned the message
	wide     bool           // it came with a second bit map that announces nothing, or with bit 1 of one of a fixed extent
	source   *specs.Dialect // of the message that this one was carried from: what it hides stays hidden
	dialect  *specs.Dialect // that it was read in or is made for; nil if that is not known
}

type entry struct {
	element Element
	value   []byte
}

// New returns an empty message of the type.
func New(mti MTI) *Message { return &Message{MTI: mti} }

// Has reports whether the message carries the element.
func (m *Message) Has(e Element) bool {
	_, found := m.find(e)
	return found
}

// Get returns the value of an element, "" if it is absent. It panics for a sensitive element, so that card data cannot slip into
// a log or a record by a general way: see Reveal.
func (m *Message) Get(e Element) string {
	if e.Sensitive() && m.Hides(e) {
		panic("messages: Get of sensitive " + e.String())
	}
	return m.Reveal(e)
}

// Set gives an element a value, which replaces the one it has; "" removes it. It panics for a sensitive element.
func (m *Message) Set(e Element, value string) {
	if e.Sensitive() && m.Hides(e) {
		panic("messages: Set of sensitive " + e.String())
	}
	m.SetSensitive(e, value)
}

// Reveal returns the value of any element in clear, "" if it is absent. Binary elements are bytes in a string.
func (m *Message) Reveal(e Element) string { return string(m.bytes(e)) }

// SetSensitive gives any element a value; "" removes it.
func (m *Message) SetSensitive(e Element, value string) {
	if value == "" {
		m.Delete(e)
		return
	}
	m.put(e, []byte(value))
}

// Hides reports whether an element's content may not be printed or stored: see Element.Sensitive, and the dialect that the message is of.
func (m *Message) Hides(e Element) bool {
	switch m.maskOf(e) {
	case specs.MaskHidden:
		return true
	case specs.MaskNone:
		return false
	case specs.MaskPANs: // it is as private as before, but for being shown
	}
	return e.Sensitive()
}

// Delete removes an element.
func (m *Message) Delete(e Element) {
	if at, found := m.find(e); found {
		m.elements = slices.Delete(m.elements, at, at+1)
	}
}

// Rejected is the code with which a network returned the message, which it has not passed on; "" for every other message.
func (m *Message) Rejected() string { return m.rejected }

// Elements lists the elements that the message carries, ascending.
func (m *Message) Elements() []Element {
	list := make([]Element, len(m.elements))
	for i, entry := range m.elements {
		list[i] = entry.element
	}
	return list
}

// PAN returns the account number of DE 2 or, without one, of track 2; zero if there is none that is well formed.
func (m *Message) PAN() card.PAN {
	if pan, err := card.ParsePAN(m.Reveal(PAN)); err == nil {
		return pan
	}
	track, err := m.track2()
	if err != nil {
		return card.PAN{}
	}
	return track.PAN()
}

// Card returns the one card that a request is about, by DE 2, track 2 or both. Its error is a *FormatError: neither is there, one of
// them is not well formed, or they name different cards. Sent on, the processor could take the one, and a reversal would name the other.
func (m *Message) Card() (card.PAN, error) {
	var pan card.PAN
	if m.Has(PAN) {
		var err error
		if pan, err = card.ParsePAN(m.Reveal(PAN)); err != nil {
			return card.PAN{}, &FormatError{PAN, "is not a PAN"}
		}
	}
	if m.Has(Track2) {
		track, err := m.track2()
		switch {
		case err != nil:
			return card.PAN{}, &FormatError{Track2, "is not a track 2"}
		case pan.IsZero():
			pan = track.PAN()
		case !pan.Equal(track.PAN()):
			return card.PAN{}, &FormatError{Track2, "is another card's than DE 2"}
		}
	}
	if pan.IsZero() {
		return card.PAN{}, &FormatError{PAN, "is missing"}
	}
	return pan, nil
}

func (m *Message) track2() (card.Track2, error) {
	return card.ParseTrack2(strings.ReplaceAll(m.Reveal(Track2), "D", "="))
}

// SetPAN sets DE 2; the zero PAN removes it.
func (m *Message) SetPAN(pan card.PAN) { m.SetSensitive(PAN, pan.Reveal()) }

// PINBlock returns a copy of DE 52, zero if absent.
func (m *Message) PINBlock() (card.PINBlock, error) {
	if !m.Has(PINData) {
		return card.PINBlock{}, nil
	}
	block, err := card.NewPINBlock(m.bytes(PINData))
	if err != nil {
		return card.PINBlock{}, &FormatError{PINData, "is not 8 or 16 bytes long"}
	}
	return block, nil
}

// SetPINBlock sets DE 52 to a copy of the block; the zero PINBlock removes it.
func (m *Message) SetPINBlock(block card.PINBlock) {
	if block.IsZero() {
		m.Delete(PINData)
		return
	}
	m.put(PINData, bytes.Clone(block.Reveal()))
}

// Clear overwrites the sensitive elements' bytes and removes them. The message's other elements stay.
func (m *Message) Clear() {
	m.elements = slices.DeleteFunc(m.elements, func(e entry) bool {
		if m.Hides(e.element) {
			clear(e.value)
		}
		return m.Hides(e.element)
	})
}

// Clone returns a copy whose elements are its own.
func (m *Message) Clone() *Message {
	copied := *m
	copied.elements = slices.Clone(m.elements)
	for i := range copied.elements {
		copied.elements[i].value = bytes.Clone(copied.elements[i].value)
	}
	return &copied
}

func (m *Message) find(e Element) (at int, found bool) {
	for at < len(m.elements) && m.elements[at].element < e {
		at++
	}
	return at, at < len(m.elements) && m.elements[at].element == e
}

func (m *Message) bytes(e Element) []byte {
	if at, found := m.find(e); found {
		return m.elements[at].value
	}
	return nil
}

func (m *Message) put(e Element, value []byte) {
	at, found := m.find(e)
	if found {
		m.elements[at].value = value
		return
	}
	m.elements = slices.Insert(m.elements, at, entry{e, value})
}

// Format prints the message masked on one line, whatever the verb.
func (m *Message) Format(f fmt.State, _ rune) {
	if m == nil {
		_, _ = f.Write([]byte("<no message>"))
		return
	}
	text := []byte(m.MTI)
	for _, line := range m.Describe() {
		if line.Hex {
			text = fmt.Appendf(text, " %d=x'%s'", line.Element, line.Value)
		} else {
			text = fmt.Appendf(text, " %d=%q", line.Element, line.Value)
		}
	}
	_, _ = f.Write(text)
}

// LogValue is the masked line.
func (m *Message) LogValue() slog.Value { return slog.StringValue(fmt.Sprint(m)) }

// MarshalJSON gives the masked lines.
func (m *Message) MarshalJSON() ([]byte, error) { return marshalLines(m.MTI, m.Describe()) }
