package messages

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

// hopOwned are the elements that each hop of a transaction has for itself. They never pass from one link to another as they stand.
var hopOwned = []Element{TransmissionTime, STAN, RRN, AcquirerID, ForwarderID, PINData, SecurityControl, MAC, MAC2}

// ForProcessor builds the processor's request from the upstream's: all that was asked, with numbers and time of our own and
// without what belongs to the upstream's hop, its PIN block above all. transmissionTime is DE 7, MMDDhhmmss in UTC.
func ForProcessor(request *Message, numbers Numbers, transmissionTime string) *Message {
	m := request.Clone()
	for _, e := range []Element{PINData, SecurityControl, MAC, MAC2} {
		m.Delete(e)
	}
	m.Set(TransmissionTime, transmissionTime)
	m.Set(STAN, numbers.STAN)
	m.Set(RRN, numbers.RRN)
	return m
}

// ForUpstream builds the upstream's answer from the processor's: what the processor said, with the upstream's own numbers, time
// and card acceptor put back. An upstream that sent no RRN of its own is given ours.
func ForUpstream(request, answer *Message) *Message {
	m := NewAnswer(request, answer.Get(ResponseCode))
	for _, entry := range answer.elements {
		if !m.Has(entry.element) || entry.element == Amount {
			m.SetSensitive(entry.element, string(entry.value))
		}
	}
	for _, e := range hopOwned {
		if e != RRN || request.Has(RRN) {
			m.SetSensitive(e, request.Reveal(e))
		}
	}
	m.Delete(PINData)
	m.Delete(SecurityControl)
	m.Delete(MAC)
	m.Delete(MAC2)
	if !request.Has(PAN) {
		m.Delete(PAN)
	}
	m.Delete(Track2)
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
