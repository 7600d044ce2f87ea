package messages

import (
	"encoding/json"
	"fmt"
	"strings"

	"acquirerd/card"
)

// NewReversal builds the 0420 that undoes a request, with STAN and DE 7 of the request, so that a processor finds it by either
// DE 90 or its own elements. authorizationID is DE 38 of the answer, "" if there was none.
func NewReversal(o Original, pan card.PAN, authorizationID string) *Message {
	m := New(ReversalAdvice)
	for _, e := range originalElements { // of an advice, more was kept
		m.Set(e, o.Get(e))
	}
	m.SetPAN(pan)
	m.Set(AuthorizationID, authorizationID)
	m.Set(OriginalData, o.dataElements())
	return m
}

// dataElements is DE 90 of ISO 8583:1987, n42: the request's MTI (4), STAN (6), DE 7 (10), DE 32 (11) and DE 33 (11), each
// right-justified with zeros on the left.
func (o Original) dataElements() string {
	part := func(value string, width int) string { return strings.Repeat("0", max(0, width-len(value))) + value }
	return part(string(o.MTI), 4) + part(o.Get(STAN), 6) + part(o.Get(TransmissionTime), 10) +
		part(o.Get(AcquirerID), 11) + part(o.Get(ForwarderID), 11)
}

// NewAdvice builds an advice again from what was kept of it.
func NewAdvice(o Original, pan card.PAN, rest []byte) (*Message, error) {
	m := New(o.MTI.First())
	for e, value := range o.values {
		m.Set(e, value)
	}
	if err := m.setRest(rest); err != nil {
		return nil, err
	}
	m.SetPAN(pan)
	return m, nil
}

// Names makes an advice name its original as that was sent: DE 90, and the RRN, which all messages of a transaction share (ISO 8583:1987,
// DE 37).
func (m *Message) Names(original Original) {
	m.Set(OriginalData, original.dataElements())
	m.Set(RRN, original.Get(RRN))
}

// NewNetworkManagement builds an 0800 with the code of DE 70. transmissionTime is DE 7, MMDDhhmmss in UTC.
func NewNetworkManagement(code, transmissionTime, stan string) *Message {
	m := New(NetworkManagementRequest)
	m.Set(TransmissionTime, transmissionTime)
	m.Set(STAN, stan)
	m.Set(NetworkManagement, code)
	return m
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
