package messages

import (
	"encoding/json"
	"fmt"
	"strings"

	"acquirerd/card"
)

// An Original is what a reversal must repeat of the request that it undoes, as that was sent to the processor. It cannot hold
// sensitive data: the PAN is kept sealed beside it, and a reversal carries neither PIN block nor track (STANDARDS: PIN-06,
// ISO-18). Its JSON form is an object of the elements' names, and is what the journal stores.
type Original struct {
	MTI    MTI
	values map[Element]string
}

// originalElements are the elements that a reversal repeats, or builds DE 90 from.
var originalElements = []Element{
	ProcessingCode, Amount, TransmissionTime, STAN, LocalTime, LocalDate, MerchantType, POSEntryMode, CardSequence, FunctionCode,
	POSConditionCode, AcquirerID, ForwarderID, RRN, Terminal, Merchant, MerchantName, Currency,
}

// Original takes from a request what its reversal will need. A card number where none belongs, typed into a merchant's name say, is
// masked: the journal may not hold it, and no processor finds an original by it.
func (m *Message) Original() Original {
	o := Original{MTI: m.MTI, values: make(map[Element]string, len(originalElements))}
	pan := m.PAN()
	for _, e := range originalElements {
		if value := m.Get(e); value != "" {
			if e == Merchant || e.freeText() { // the others are too short for one, or ours
				value = pan.HideIn(value)
			}
			if e.freeText() {
				value = card.HidePANs(value)
			}
			o.values[e] = value
		}
	}
	return o
}

// Get returns the value of an element, "" if it was absent.
func (o Original) Get(e Element) string { return o.values[e] }

// MarshalJSON gives {"mti":"0100","stan":"000001",…}.
func (o Original) MarshalJSON() ([]byte, error) {
	named := map[string]string{"mti": string(o.MTI)}
	for e, value := range o.values {
		named[e.Name()] = value
	}
	return json.Marshal(named)
}

// UnmarshalJSON reads what MarshalJSON wrote. A name that no reversal repeats is refused.
func (o *Original) UnmarshalJSON(text []byte) error {
	var named map[string]string
	if err := json.Unmarshal(text, &named); err != nil {
		return fmt.Errorf("reading original: %w", err)
	}
	read := Original{MTI: MTI(named["mti"]), values: make(map[Element]string, len(named))}
	delete(named, "mti")
	for _, e := range originalElements {
		if value, found := named[e.Name()]; found {
			read.values[e] = value
			delete(named, e.Name())
		}
	}
	if len(read.MTI) != 4 || len(named) > 0 {
		return fmt.Errorf("reading original: its MTI is missing, or it has elements that no reversal repeats")
	}
	*o = read
	return nil
}

// NewReversal builds the 0420 that undoes a request, with STAN and DE 7 of the request, so that a processor finds it by either
// DE 90 or its own elements. authorizationID is DE 38 of the answer, "" if there was none.
func NewReversal(o Original, pan card.PAN, authorizationID string) *Message {
	m := New(ReversalAdvice)
	for e, value := range o.values {
		m.Set(e, value)
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
