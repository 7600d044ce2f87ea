package messages

import "slices"

// identifying are the elements by which an answer repeats its request, so that the asker recognises it (ISO 8583:1987, table of
// messages: "echo").
var identifying = []Element{PAN, ProcessingCode, Amount, TransmissionTime, STAN, LocalTime, LocalDate, POSConditionCode,
	AcquirerID, ForwarderID, RRN, Terminal, Merchant, Currency, NetworkManagement}

// NewAnswer builds an answer of our own to a request: its identifying elements and the response code.
func NewAnswer(request *Message, responseCode string) *Message {
	answer := New(request.MTI.Answer())
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

// ForProcessor builds the processor's request from the upstream's: all that was asked, with numbers and time of our own and
// without the cryptograms of the upstream's hop, its PIN block above all. It is a first sending, also of an upstream's repeat, whose first
// never came. transmissionTime is DE 7, MMDDhhmmss in UTC.
func ForProcessor(request *Message, numbers Numbers, transmissionTime string) *Message {
	m := request.Clone()
	m.MTI = m.MTI.First()
	for _, e := range cryptograms {
		m.Delete(e)
	}
	m.Set(TransmissionTime, transmissionTime)
	m.Set(STAN, numbers.STAN)
	m.Set(RRN, numbers.RRN)
	return m
}

// ForUpstream builds the upstream's answer from the processor's: what the processor said, under the upstream's own numbers, time and
// institutions. An upstream that sent no RRN of its own is given ours.
func ForUpstream(request, answer *Message) *Message {
	m := NewAnswer(request, answer.Get(ResponseCode))
	for _, entry := range answer.elements {
		switch e := entry.element; {
		case slices.Contains(cryptograms, e), e == TransmissionTime, e == STAN, e == AcquirerID, e == ForwarderID, e == PAN, e == Track2:
			// The upstream's own are there already, or it sent none.
		case !m.Has(e), e == Amount: // the amount of a partial approval is the processor's
			m.SetSensitive(e, string(entry.value))
		}
	}
	return m
}

// Essence reduces an answer to what must reach the asker: by what it recognises its request, and what was decided. It is for an
// answer that holds an element for which the asker's dialect has no room.
func Essence(answer *Message) *Message {
	m := New(answer.MTI)
	for _, e := range append([]Element{ResponseCode, AuthorizationID}, identifying...) {
		m.SetSensitive(e, answer.Reveal(e))
	}
	return m
}
