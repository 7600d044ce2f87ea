package messages_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"acquirerd/messages"
	"acquirerd/specs"
)

// noon is when the messages of these tests are carried.
var noon = time.Date(2026, 11, 23, 12, 1, 0, 0, time.UTC)

var numbers = messages.Numbers{STAN: "900001", RRN: "632700900001"}

func passage(t testing.TB, from, to string) messages.Passage {
	t.Helper()
	return messages.NewPassage(codec(t, from), codec(t, to))
}

func TestARequestGoesIntoTheOtherEdition(t *testing.T) {
	m := request(t)
	m.Set(messages.LocalTime, "130059")
	m.Set(messages.LocalDate, "1123")
	m.Set(messages.POSEntryMode, "051")
	m.Set(messages.POSConditionCode, "00")
	m.Set(28, "C00000100")
	if _, err := passage(t, "iso87-ascii", "iso93-binary").ForProcessor(m, numbers, noon); err == nil || err.Error() != "DE 28 cannot be carried into the processor's dialect" {
		t.Errorf("a fee that has no place there, and is not dropped: got %v", err)
	}
	m.Delete(28)
	m.Set(messages.FunctionCode, "183") // the network's identifier, in this edition
	sent, err := passage(t, "iso87-ascii", "iso93-binary").ForProcessor(m, numbers, noon)
	if err != nil {
		t.Fatal(err)
	}
	for e, want := range map[messages.Element]string{messages.LocalTime: "261123130059", messages.LocalDate: "", messages.FunctionCode: "100",
		messages.POSEntryMode: "", messages.POSConditionCode: "", messages.STAN: "900001", messages.RRN: "632700900001",
		messages.TransmissionTime: "1123120100", messages.Amount: "000000012345", messages.Terminal: "TERM0001"} {
		if got := sent.Get(e); got != want {
			t.Errorf("%s: got %q, want %q", e, got, want)
		}
	}
	if err := codec(t, "iso93-binary").Validate(sent); err != nil {
		t.Error(err)
	}
	wire, err := codec(t, "iso93-binary").Encode(sent)
	if err != nil || fmt.Sprintf("%X", wire[:2]) != "1100" {
		t.Errorf("on the wire: %X, %v", wire[:min(2, len(wire))], err)
	}

	m.Delete(messages.LocalTime)
	m.Delete(messages.LocalDate)
	if sent, err = passage(t, "iso87-ascii", "iso93-binary").ForProcessor(m, numbers, noon); err != nil || sent.Get(messages.LocalTime) != "261123120100" {
		t.Errorf("without a local time, by which a reversal names its original: got %q, %v", sent.Get(messages.LocalTime), err)
	}
}

func TestTheYearOfALocalDateIsTheNearest(t *testing.T) {
	for _, row := range []struct{ at, date, want string }{
		{"2026-12-31T23:59:00Z", "0101", "270101"}, {"2027-01-01T00:01:00Z", "1231", "261231"}, {"2026-11-23T12:00:00Z", "1123", "261123"},
		{"2028-03-01T00:00:00Z", "0229", "280229"}, {"2026-03-01T00:00:00Z", "0229", ""}, {"2026-11-23T12:00:00Z", "1332", ""},
	} {
		at, err := time.Parse(time.RFC3339, row.at)
		if err != nil {
			t.Fatal(err)
		}
		m := request(t)
		m.Set(messages.LocalTime, "101112")
		m.Set(messages.LocalDate, row.date)
		carried, _ := passage(t, "iso87-ascii", "iso93-binary").Carry(m, at)
		if got := carried.Get(messages.LocalTime); got != row.want+strings.Repeat("101112", min(1, len(row.want))) {
			t.Errorf("%s at %s: got %q, want %s", row.date, row.at, got, row.want)
		}
	}
}

func TestAnAnswerComesBackInTheWordsOfTheAsker(t *testing.T) {
	asked := request(t)
	asked.Set(messages.LocalTime, "130059")
	asked.Set(messages.LocalDate, "1123")
	p := passage(t, "iso87-ascii", "iso93-binary")
	sent, err := p.ForProcessor(asked, numbers, noon)
	if err != nil {
		t.Fatal(err)
	}
	for _, row := range []struct{ said, told string }{
		{"0000", "00"}, {"0001", "08"}, {"0002", "10"}, {"0005", "00"}, {"1016", "51"}, {"9107", "91"}, {"1999", "05"}, {"0009", "05"}, {"9999", "05"},
	} {
		answer := messages.NewAnswer(sent, row.said)
		answer.Set(messages.AuthorizationID, "A1B2C3")
		answer.Set(messages.Amount, "000000009999")
		told, lost := passage(t, "iso93-binary", "iso87-ascii").ForUpstream(asked, answer, noon)
		if len(lost) > 0 {
			t.Errorf("lost %v", lost)
		}
		for e, want := range map[messages.Element]string{messages.ResponseCode: row.told, messages.AuthorizationID: "A1B2C3", messages.STAN: "000042",
			messages.TransmissionTime: "1123120059", messages.LocalTime: "130059", messages.LocalDate: "1123", messages.RRN: "632700000042",
			messages.FunctionCode: "", messages.Amount: "000000009999"} {
			if got := told.Get(e); got != want {
				t.Errorf("%s, %s: got %q, want %q", row.said, e, got, want)
			}
		}
		if _, err := codec(t, "iso87-ascii").Encode(told); err != nil {
			t.Error(err)
		}
	}
}

// Whatever two dialects list, an approval is told as one, a part as a part, and nothing else is told as an approval: over every code that one
// can say.
func TestNoPassageMakesAnApprovalOrLosesOne(t *testing.T) {
	for _, from := range specs.Names() {
		for _, to := range specs.Names() {
			one, other := codec(t, from).Dialect(), codec(t, to).Dialect()
			p := messages.NewPassage(codec(t, from), codec(t, to))
			codes := make([]string, 0, 10000)
			for i := range 10000 {
				codes = append(codes, fmt.Sprintf("%04d", i)[4-one.Fields[39].Length:])
			}
			for _, code := range slices.Compact(codes) {
				answer := messages.New("0110")
				answer.Set(messages.ResponseCode, code)
				told, _ := p.Carry(answer, noon)
				got := told.Get(messages.ResponseCode)
				if one.Approves(code) != other.Approves(got) || one.ApprovesPartially(code) != other.ApprovesPartially(got) {
					t.Fatalf("%s of %s is told to %s as %q", code, from, to, got)
				}
			}
		}
	}
}

func TestAReversalNamesItsOriginalAsTheProcessorKnowsIt(t *testing.T) {
	asked := request(t)
	asked.Set(messages.LocalTime, "130059")
	asked.Set(messages.LocalDate, "1123")
	sent, err := passage(t, "iso87-ascii", "iso93-binary").ForProcessor(asked, numbers, noon)
	if err != nil {
		t.Fatal(err)
	}
	c := codec(t, "iso93-binary")
	whole := undo(t, c, sent.Original(), pan(t), "A1B2C3", "")
	part := undo(t, c, sent.Original(), pan(t), "A1B2C3", "000000002345")
	for _, reversal := range []*messages.Message{whole, part} {
		if got, want := reversal.Reveal(56), "1100900001261123130059"+"0512345"; got != want {
			t.Errorf("DE 56: got %s, want %s", got, want)
		}
		if got := c.OriginalIdentities(reversal); len(got) != 1 || got[0] != c.Identity(sent) {
			t.Errorf("its original is %q, want %q", got, c.Identity(sent))
		}
		if err := c.Validate(reversal); err != nil {
			t.Error(err)
		}
	}
	if whole.Get(messages.FunctionCode) != "400" || whole.Get(messages.Amount) != "000000012345" || whole.Has(30) {
		t.Errorf("whole: got %s", whole)
	}
	if part.Get(messages.FunctionCode) != "401" || part.Get(messages.Amount) != "000000002345" || part.Get(30) != "000000012345000000000000" {
		t.Errorf("in part: got %s", part)
	}
	for reversal, want := range map[*messages.Message]string{whole: "", part: "000000002345"} {
		if amount, replacement, err := c.Reversed(reversal); err != nil || amount != "000000012345" || replacement != want {
			t.Errorf("read back: got %s, %q, %v", amount, replacement, err)
		}
	}
	part.Set(messages.Amount, "000000012345")
	if _, _, err := c.Reversed(part); err == nil {
		t.Error("a part that undoes nothing was taken")
	}
	part.Delete(30)
	if _, _, err := c.Reversed(part); err == nil || !strings.HasPrefix(err.Error(), "DE 30") {
		t.Errorf("a part without its original's amount: got %v", err)
	}
}

func TestARepeatInAnotherDialectIsTheSameRequest(t *testing.T) {
	for _, to := range specs.Names() {
		p := passage(t, "iso87-ascii", to)
		for name, edit := range map[string]func(*messages.Message){"with a local time": func(m *messages.Message) {
			m.Set(messages.LocalTime, "130059")
			m.Set(messages.LocalDate, "1123")
		}, "without one": func(*messages.Message) {}} {
			asked := edited(t, edit)
			sent, err := p.ForProcessor(asked, numbers, noon)
			if err != nil {
				t.Fatal(err)
			}
			again := asked.Clone()
			again.MTI = again.MTI.Repeat()
			if !p.SameContent(sent.Original(), again, false, noon.Add(time.Hour)) {
				t.Errorf("%s, %s: the repeat is another request", to, name)
			}
			again.Set(messages.Amount, "000000012346")
			if p.SameContent(sent.Original(), again, false, noon.Add(time.Hour)) {
				t.Errorf("%s, %s: another amount is the same request", to, name)
			}
		}
	}
}

// A party of ISO 8583:1993 says more of its terminal than 1987 has words for. What its dialect can do without goes no further, anything else is
// refused.
func TestWhatADialectCanDoWithoutGoesNoFurther(t *testing.T) {
	m := request(t)
	m.Set(messages.LocalTime, "261123130059")
	m.Set(messages.FunctionCode, "100")
	m.Set(messages.POSEntryMode, "510101511344")
	sent, err := passage(t, "iso93-binary", "iso87-ascii").ForProcessor(m, numbers, noon)
	if err != nil || sent.Has(messages.POSEntryMode) || sent.Get(messages.LocalTime) != "130059" {
		t.Fatalf("got %v, %v", sent, err)
	}
	m.Set(28, "261124") // the date of reconciliation
	if sent, err = passage(t, "iso93-binary", "iso87-ascii").ForProcessor(m, numbers, noon); err == nil {
		t.Errorf("it was sent without DE 28: %v", sent)
	}
}
