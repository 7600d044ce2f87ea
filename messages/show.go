package messages

import (
	"fmt"
	"strings"

	"acquirerd/card"
	"acquirerd/specs"
)

// A Line is one element as a person may see it.
type Line struct {
	Element Element `json:"element"`
	Name    string  `json:"name"`
	Value   string  `json:"value"`
	Hex     bool    `json:"hex,omitempty"` // the value is bytes, or text that a terminal may not be given, in hexadecimal digits
}

// Describe lists the elements with sensitive ones masked: the PAN and the PAN of track 2 keep six and four digits, every other
// sensitive element shows only its length.
func (m *Message) Describe() []Line { return m.lines(false) }

// DescribeUnsafe lists the elements in clear. Only for test data.
func (m *Message) DescribeUnsafe() []Line { return m.lines(true) }

func (m *Message) lines(inClear bool) []Line {
	lines := make([]Line, len(m.elements))
	for i, entry := range m.elements {
		lines[i] = Line{Element: entry.element, Name: entry.element.Name()}
		isBytes := m.isBytes(entry.element)
		if mask, hides := m.mask(entry, isBytes); hides && !inClear {
			lines[i].Value = mask
			continue
		}
		value := string(entry.value)
		if !inClear && (m.freeText(entry.element) || m.maskOf(entry.element) == specs.MaskPANs) {
			value = card.HidePANs(value)
		}
		if lines[i].Hex = isBytes || strings.ContainsFunc(value, notPrintable); lines[i].Hex {
			value = fmt.Sprintf("%X", value)
		}
		lines[i].Value = value
	}
	return lines
}

func notPrintable(r rune) bool { return r < ' ' || r > '~' }

// mask returns what is shown instead of a value, if the whole of it may not be.
func (m *Message) mask(e entry, isBytes bool) (string, bool) {
	hidden := fmt.Sprintf("**** (%d)", len(e.value))
	switch mask := m.maskOf(e.element); {
	case mask == specs.MaskHidden:
		return hidden, true
	case mask == specs.MaskPANs:
		return hidden, isBytes // in packed digits, a card number would not be found
	case !m.Hides(e.element), e.element.freeText():
		return "", false
	}
	text := string(e.value)
	if pan, err := card.ParsePAN(text); e.element == PAN && err == nil {
		return pan.Mask(), true
	}
	if track, err := card.ParseTrack2(strings.ReplaceAll(text, "D", "=")); e.element == Track2 && err == nil {
		return track.Mask(), true
	}
	return hidden, true
}

// maskOf is how the dialect masks an element.
func (m *Message) maskOf(e Element) specs.Mask {
	if m.source != nil && m.source.Masks()[int(e)] == specs.MaskHidden && (m.dialect == nil || m.source.Standard == m.dialect.Standard || !otherwise93[e]) {
		return specs.MaskHidden
	}
	if m.dialect == nil {
		return ""
	}
	return m.dialect.Masks()[int(e)]
}

// isBytes reports whether an element is bytes and not text: as the dialect says or, of a message of none, as the standard does.
func (m *Message) isBytes(e Element) bool {
	if m.dialect != nil {
		if f, known := m.dialect.Field(m.dialect.WireMTI(string(m.MTI)), int(e)); known {
			return f.Binary()
		}
	}
	return e.binary()
}

// Masking says for people how an element of a dialect is shown, "" for as it is.
func Masking(d *specs.Dialect, e Element) string {
	f, _ := d.Field("", int(e))
	switch mask := d.Sensitive[int(e)]; {
	case mask == specs.MaskHidden, mask == specs.MaskPANs && f.Binary():
		return "hidden"
	case mask == specs.MaskPANs:
		return "card numbers"
	case e.freeText():
		return "card numbers"
	case e == PAN, e == Track2:
		return "first six and last four"
	case e.Sensitive():
		return "hidden"
	case freeTextIn(d, "", e):
		return "card numbers"
	}
	return ""
}

// Header is the header that a message came with, in pieces; none if it had none.
func (c *Codec) Header(m *Message) []specs.Part { return c.dialect.Header.Parts(m.header) }
