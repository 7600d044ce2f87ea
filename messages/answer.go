package messages

import (
	"slices"

	"acquirerd/card"
	"acquirerd/specs"
)

// identifying are the elements by which an answer repeats its request, so that the asker recognises it (ISO 8583:1987, table of
// messages: "echo").
var identifying = []Element{PAN, ProcessingCode, Amount, TransmissionTime, STAN, LocalTime, LocalDate, FunctionCode, POSConditionCode,
	AcquirerID, ForwarderID, RRN, Terminal, Merchant, Currency, NetworkManagement}

// NewAnswer builds an answer of our own to a request: its identifying elements and the response code.
func NewAnswer(request *Message, responseCode string) *Message {
	answer := New(request.MTI.Answer())
	answer.asked, answer.dialect = request.header, request.dialect
	for _, e := range identifying {
		answer.SetSensitive(e, request.Reveal(e))
	}
	answer.Set(ResponseCode, responseCode)
	return answer
}

// NewFormatError builds the answer to a request that does not keep the format: the number of the failing element stands first in
// DE 44 (MDS, DE 44).
func NewFormatError(request *Message, responseCode string, failing Element) *Message {
	answer := NewAnswer(request, responseCode)
	answer.Set(AdditionalResponse, elementNumber(failing))
	return answer
}

// cryptograms are made under the keys of one hop, and mean nothing on another.
var cryptograms = []Element{PINData, SecurityControl, MAC, MAC2}

// isOfHop reports whether an element is made for the hop that a message of this dialect comes over, and means nothing on another: cryptograms,
// and the number of the key that they were made under.
func isOfHop(d *specs.Dialect, e Element) bool {
	return slices.Contains(cryptograms, e) || e == keySerialNumber(d)
}

// keySerialNumber is the element in which messages of a dialect have one, 0 if they have none.
func keySerialNumber(d *specs.Dialect) Element { return Element(d.KeySerialNumber.Element) }

// KeySerialNumberElement is the element in which requests of this dialect have the key serial number of what is under DUKPT; 0 if they have
// none.
func (c *Codec) KeySerialNumberElement() Element { return keySerialNumber(c.dialect) }

// KSN returns the key serial number of a request, zero if it has none. Its error is a *FormatError: what stands there is none, or has a counter
// that no transaction has.
func (c *Codec) KSN(m *Message) (card.KSN, error) {
	e := keySerialNumber(c.dialect)
	value := m.bytes(e)
	if e == 0 || len(value) == 0 {
		return card.KSN{}, nil
	}
	var ksn card.KSN
	var err error
	if c.dialect.KeySerialNumber.Form == specs.KeySerialNumberHex {
		ksn, err = card.ParseKSN(string(value))
	} else {
		ksn, err = card.NewKSN(value)
	}
	if err != nil {
		return card.KSN{}, &FormatError{e, "is not a key serial number"}
	}
	if ksn.Check() != nil {
		return card.KSN{}, &FormatError{e, "is a key serial number with a counter that no transaction has"}
	}
	return ksn, nil
}

// SetKSN gives a request its key serial number, if the dialect has a place for it; the zero KSN removes it.
func (c *Codec) SetKSN(m *Message, ksn card.KSN) {
	e := keySerialNumber(c.dialect)
	switch {
	case e == 0:
	case ksn.IsZero():
		m.Delete(e)
	case c.dialect.KeySerialNumber.Form == specs.KeySerialNumberHex:
		m.put(e, []byte(ksn.String()))
	default:
		m.put(e, ksn.Bytes())
	}
}

// AnswerAlso is an answer once more, to a repeat of its request: behind the header of that.
func AnswerAlso(repeat, answer *Message) *Message {
	m := answer.Clone()
	m.asked = repeat.header
	return m
}

// Essence reduces an answer to what must reach the asker: by what it recognises its request, and what was decided. It is for an
// answer that holds an element for which the asker's dialect has no room.
func Essence(answer *Message) *Message {
	m := New(answer.MTI)
	m.asked, m.dialect = answer.asked, answer.dialect
	for _, e := range append([]Element{ResponseCode, AuthorizationID}, identifying...) {
		m.SetSensitive(e, answer.Reveal(e))
	}
	return m
}
