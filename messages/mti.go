package messages

// An MTI is a message type indicator of four digits: version, class, function, origin (ISO 8583:1987, 4.1).
type MTI string

// The message types that acquirerd's rooms name.
const (
	AuthorizationRequest     MTI = "0100"
	FinancialRequest         MTI = "0200"
	AuthorizationAdvice      MTI = "0120"
	FinancialAdvice          MTI = "0220"
	ReversalRequest          MTI = "0400"
	ReversalAdvice           MTI = "0420"
	NetworkManagementRequest MTI = "0800"
)

// A Class is the second digit of an MTI: what the message is about.
type Class byte

// The classes that acquirerd handles.
const (
	Authorization Class = '1'
	Financial     Class = '2'
	Reversal      Class = '4'
	Network       Class = '8'
)

// Class returns the second digit, 0 if there is none.
func (t MTI) Class() Class {
	if len(t) != 4 {
		return 0
	}
	return Class(t[1])
}

// function is the third digit: 0 request, 1 its answer, 2 advice, 3 its answer.
func (t MTI) function() byte {
	if len(t) != 4 {
		return 0
	}
	return t[2]
}

// IsAnswer reports whether the message answers another: an odd function.
func (t MTI) IsAnswer() bool { return t.function() == '1' || t.function() == '3' }

// IsRequest reports whether the message is a request or an advice, which wants an answer.
func (t MTI) IsRequest() bool { return t.function() == '0' || t.function() == '2' }

// IsResponse reports whether the message answers a request, not an advice.
func (t MTI) IsResponse() bool { return t.function() == '1' }

// IsAdvice reports whether the message tells of something that has happened: it cannot be refused.
func (t MTI) IsAdvice() bool { return t.function() == '2' }

// IsRepeat reports whether the message was sent before: an odd origin (0421 repeats 0420).
func (t MTI) IsRepeat() bool { return len(t) == 4 && (t[3]-'0')%2 == 1 }

// Answer returns the type of the answer: 0110 for 0100 and 0101, 0430 for 0420 and 0421.
func (t MTI) Answer() MTI {
	if !t.IsRequest() {
		return t
	}
	return MTI([]byte{t[0], t[1], t[2] + 1, t[3] - (t[3]-'0')%2})
}

// First returns the type of the first sending: 0420 for 0421 and for 0420.
func (t MTI) First() MTI {
	if !t.IsRepeat() {
		return t
	}
	return t[:3] + MTI(t[3]-1)
}

// Repeat returns the type of a resend: 0421 for 0420 and for 0421.
func (t MTI) Repeat() MTI {
	if len(t) != 4 || t.IsRepeat() {
		return t
	}
	return t[:3] + MTI(t[3]+1)
}
