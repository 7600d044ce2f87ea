package messages

import (
	"encoding/json"
	"fmt"
	"strings"

	"acquirerd/card"
	"acquirerd/specs"
)

// NewReversal builds the reversal that undoes a request as it was sent, whole or down to a replacement amount ("" for whole). It has STAN and
// DE 7 of the request, so that a processor finds it by either the original data elements or its own. authorizationID is DE 38 of the answer,
// "" if there was none. Its error is a *FormatError: a part is to be undone, and the dialect has none.
func (c *Codec) NewReversal(o Original, pan card.PAN, authorizationID, replacement string) (*Message, error) {
	if replacement != "" && !c.TakesParts() {
		return nil, &FormatError{c.ReplacementElement(), "cannot be said: the dialect undoes only the whole"}
	}
	own, _ := c.dialect.OwnMTI(c.dialect.Reversal.Type)
	m := New(MTI(own))
	m.dialect = c.dialect
	for _, e := range originalElements { // of an advice, more was kept
		m.Set(e, o.Get(e))
	}
	m.SetPAN(pan)
	if c.dialect.Reversal.AuthorizationID != specs.AuthorizationIDAbsent {
		m.Set(AuthorizationID, authorizationID)
	}
	c.setFunctionCode(m)
	c.Name(m, o)
	c.setReplacement(m, replacement)
	return m, nil
}

// OriginalElement is the element by which messages of this dialect name another one.
func (c *Codec) OriginalElement() Element {
	if c.dialect.Reversal.Original == specs.OriginalISO93 {
		return originalData93
	}
	return OriginalData
}

// Name makes a message name its original as that was sent, and share its RRN, as all messages of a transaction do (ISO 8583:1987, DE 37).
func (c *Codec) Name(m *Message, original Original) {
	if c.dialect.Reversal.Original == specs.OriginalISO93 {
		m.SetSensitive(originalData93, c.dataElements93(original))
	} else {
		m.Set(OriginalData, c.dataElements87(original))
	}
	m.Set(RRN, original.Get(RRN))
}

// dataElements87 is DE 90 of ISO 8583:1987, n42: the request's MTI (4), STAN (6), DE 7 (10), DE 32 (11) and DE 33 (11), each
// right-justified with zeros on the left.
func (c *Codec) dataElements87(o Original) string {
	return zeros(c.dialect.WireMTI(string(o.MTI)), 4) + zeros(o.Get(STAN), 6) + zeros(o.Get(TransmissionTime), 10) +
		zeros(o.Get(AcquirerID), 11) + zeros(o.Get(ForwarderID), 11)
}

// dataElements93 is DE 56 of ISO 8583:1993, n..35: MTI (4), STAN (6), DE 12 (12), and DE 32 with its length of two digits.
func (c *Codec) dataElements93(o Original) string {
	acquirer := o.Get(AcquirerID)
	return zeros(c.dialect.WireMTI(string(o.MTI)), 4) + zeros(o.Get(STAN), 6) + zeros(o.Get(LocalTime), 12) +
		fmt.Sprintf("%02d", len(acquirer)) + acquirer
}

func zeros(value string, width int) string {
	return strings.Repeat("0", max(0, width-len(value))) + value
}

// NewAdvice builds an advice again from what was kept of it.
func (c *Codec) NewAdvice(o Original, pan card.PAN, rest []byte) (*Message, error) {
	m := New(o.MTI.First())
	m.dialect = c.dialect
	for e, value := range o.values {
		m.SetSensitive(e, value) // DE 56 of 1993 is kept
	}
	if err := m.setRest(rest); err != nil {
		return nil, err
	}
	m.SetPAN(pan)
	return m, nil
}

// Numbers are the numbers by which a message is found again.
type Numbers struct {
	STAN string // DE 11, six digits
	RRN  string // DE 37, twelve characters
}

func marshalLines(mti MTI, lines []Line) ([]byte, error) {
	return json.Marshal(struct {
		MTI      MTI    `json:"mti"`
		Elements []Line `json:"elements"`
	}{mti, lines})
}

// elementNumber is used where an element's number itself is the content, as in DE 44 of a format error.
func elementNumber(e Element) string { return fmt.Sprintf("%03d", int(e)) }
