package messages

import (
	"encoding/hex"
	"slices"
	"time"

	"acquirerd/specs"
)

// A Dialogue is a part of the network management dialogue of a link.
type Dialogue string

// The parts of the dialogue.
const (
	SignOn    Dialogue = "sign_on"
	SignOff   Dialogue = "sign_off"
	Echo      Dialogue = "echo"
	KeyChange Dialogue = "key_change"
	Cutover   Dialogue = "cutover"

	// KeyRequest asks a party for a new key. It is only ever sent to one: what a party that asks us for a key would be given, nobody has
	// needed yet.
	KeyRequest Dialogue = "key_request"
)

func codeOf(d specs.Dialogue, part Dialogue) string {
	switch part {
	case SignOn:
		return d.SignOn
	case SignOff:
		return d.SignOff
	case Echo:
		return d.Echo
	case KeyChange:
		return d.KeyChange
	case Cutover:
		return d.Cutover
	case KeyRequest: // beside the dialogue of both directions: see sent
	}
	return ""
}

// sent is the code of a part of the dialogue that this party is sent, "" if it has none.
func (c *Codec) sent(part Dialogue) string {
	if part == KeyRequest {
		return c.dialect.NetworkManagement.KeyRequest
	}
	return codeOf(c.dialect.NetworkManagement.Dialogue, part)
}

// Holds reports whether a part of the dialogue is one that this party is sent.
func (c *Codec) Holds(part Dialogue) bool {
	return c.sent(part) != ""
}

// NewDialogue builds a request of a part of the dialogue that this party is sent, see Holds.
func (c *Codec) NewDialogue(part Dialogue, at time.Time, stan string) *Message {
	n := &c.dialect.NetworkManagement
	m := New(c.networkType())
	m.dialect = c.dialect
	m.Set(TransmissionTime, at.UTC().Format(TransmissionTimeLayout))
	m.Set(STAN, stan)
	if c.dialect.Standard == specs.ISO93 {
		m.Set(LocalTime, at.UTC().Format(localTime93))
	}
	for number, value := range n.Carries {
		m.SetSensitive(Element(number), value)
	}
	m.SetSensitive(Element(n.Element), c.sent(part))
	return m
}

// TransmissionTimeLayout is the form of DE 7 for time.Time, MMDDhhmmss.
const TransmissionTimeLayout = "0102150405"

// localTime93 is DE 12 of ISO 8583:1993, YYMMDDhhmmss.
const localTime93 = "060102150405"

// networkType is the type of requests of the dialogue.
func (c *Codec) networkType() MTI {
	own, _ := c.dialect.OwnMTI(c.dialect.NetworkManagement.Type)
	return MTI(own)
}

// Demanded says which part of the dialogue a request of this party is, "" for none. An advice (0820) demands what the request would: it tells
// of what the party has done, and a sign-off, a day or a key of which it is told in vain would leave the two sides apart. Only a key change
// that brings no key is none: that confirms one.
func (c *Codec) Demanded(m *Message) Dialogue {
	if m.MTI.Class() != Network || !m.MTI.IsRequest() {
		return ""
	}
	n := &c.dialect.NetworkManagement
	demanded := n.Demanded()
	code := m.Reveal(Element(n.Element))
	isAdvice := m.MTI.IsAdvice()
	if !isAdvice && m.MTI.First() != c.networkType() {
		return ""
	}
	for _, part := range []Dialogue{SignOn, SignOff, Echo, KeyChange, Cutover} {
		if own := codeOf(demanded, part); own == "" || own != code {
			continue
		}
		if part == KeyChange && isAdvice && !m.Has(Element(n.KeyData.Element)) {
			return ""
		}
		return part
	}
	return ""
}

// Accepts reports whether the answer to a part of the dialogue accepts it.
func (c *Codec) Accepts(answer *Message) bool {
	return slices.Contains(c.dialect.NetworkManagement.Accepted, answer.Get(ResponseCode))
}

// A NewKey is what a key change brings.
type NewKey struct {
	Cryptogram []byte // of the key under the zone master key
	CheckValue []byte
}

// NewKey returns what a key change brings, or the answer to a request for a key whose dialect has it there. Its error is a *FormatError.
func (c *Codec) NewKey(m *Message) (NewKey, error) {
	where := c.dialect.NetworkManagement.KeyData
	e := Element(where.Element)
	value := m.bytes(e)
	if f, _ := c.dialect.Field(c.dialect.WireMTI(string(m.MTI)), where.Element); !f.Binary() {
		raw, err := hex.DecodeString(string(value))
		if err != nil {
			return NewKey{}, &FormatError{e, "is not a cryptogram and a check value in hexadecimal digits"}
		}
		value = raw
	}
	if where.Cryptogram == 0 || len(value) != where.Cryptogram+where.CheckValue {
		return NewKey{}, &FormatError{e, "does not have the length of a cryptogram and a check value"}
	}
	return NewKey{value[:where.Cryptogram:where.Cryptogram], value[where.Cryptogram:]}, nil
}
