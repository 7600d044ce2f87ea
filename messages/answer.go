package messages

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
