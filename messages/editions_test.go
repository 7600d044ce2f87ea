package messages_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"acquirerd/messages"
)

// DE 56 is original data in ISO 8583:1993 alone. In 1987 it is reserved, and hosts put cardholder and verification data into it.
func TestDE56OfISO87IsNeitherShownNorKept(t *testing.T) {
	for _, name := range []string{"iso87-binary", "iso87-ascii", "iso87-ebcdic", "visa-like"} {
		const secret = "CVV2 123 4111111111111111"
		m := request(t)
		m.SetSensitive(56, secret)
		wire, err := codec(t, name).Encode(m)
		if err != nil {
			t.Fatal(err)
		}
		read, err := codec(t, name).Decode(wire)
		if err != nil {
			t.Fatal(err)
		}
		if shown := fmt.Sprint(read); strings.Contains(shown, "CVV2 123") || strings.Contains(shown, testPAN) {
			t.Errorf("%s shows DE 56 in clear", name)
		}
		text, err := read.Original().MarshalJSON()
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(string(text), "123 4111") {
			t.Errorf("%s: the journal is given DE 56 in clear", name)
		}
	}
}

// DE 72 of ISO 8583:1993 is a data record, up to 999 characters of anything.
func TestTheDataRecordOfISO93IsNeitherShownNorKept(t *testing.T) {
	c := codec(t, "iso93-binary")
	m := request(t)
	m.Set(messages.LocalTime, "261123130059")
	m.Set(messages.FunctionCode, "100")
	m.SetSensitive(72, "CVV2 123 PAN 4111111111111111")
	wire, err := c.Encode(m)
	if err != nil {
		t.Fatal(err)
	}
	read, err := c.Decode(wire)
	if err != nil {
		t.Fatal(err)
	}
	kept, err := read.Original().MarshalJSON()
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(fmt.Sprint(read), testPAN) || strings.Contains(string(kept), testPAN) {
		t.Error("a card number in DE 72 is shown, and kept in clear")
	}
}

// A request without a local date, or with one that is none, is sent with a date made from the time of its coming. A repeat after midnight is
// the same request.
func TestARepeatAfterMidnightIsTheSameRequest(t *testing.T) {
	p := passage(t, "iso87-ascii", "iso93-binary")
	for name, edit := range map[string]func(*messages.Message){
		"time without date":     func(m *messages.Message) { m.Set(messages.LocalTime, "235959") },
		"a date that is none":   func(m *messages.Message) { m.Set(messages.LocalTime, "235959"); m.Set(messages.LocalDate, "0000") },
		"29 February last year": func(m *messages.Message) { m.Set(messages.LocalTime, "235959"); m.Set(messages.LocalDate, "0229") },
	} {
		asked := edited(t, edit)
		at := time.Date(2026, 11, 23, 23, 59, 59, 0, time.UTC)
		sent, err := p.ForProcessor(asked, numbers, at)
		if err != nil {
			continue // refused: nothing to repeat
		}
		again := asked.Clone()
		again.MTI = again.MTI.Repeat()
		if !p.SameContent(sent.Original(), again, false, at.Add(5*time.Second)) {
			t.Errorf("%s: the repeat is another request, and would be answered as a duplicate of what may stand approved", name)
		}
	}
}

// A local time without a date is the nearest to now, not that of the UTC day.
func TestALocalTimeWithoutADateHasTheNearestDay(t *testing.T) {
	m := request(t)
	m.Set(messages.LocalTime, "235959")
	carried, _ := passage(t, "iso87-ascii", "iso93-binary").Carry(m, time.Date(2027, 1, 1, 0, 0, 2, 0, time.UTC))
	if got := carried.Get(messages.LocalTime); got != "261231235959" {
		t.Errorf("a transaction at 23:59:59, two seconds after it: got %s", got)
	}
}

// What is owed is a part. A dialect that has come to take no parts since (a reload after the processor refused some) must not make the whole
// of it.
func TestAPartIsNeverSentAsTheWhole(t *testing.T) {
	c := changed(t, "iso87-binary", "replacement: iso87-de95", "replacement: none")
	o := request(t).Original()
	if m, err := c.NewReversal(o, pan(t), "", "000000008000"); err == nil {
		t.Errorf("a reversal down to 80.00 is sent as %s", m)
	}
}

// An inquiry holds nothing. The MTI of ISO 8583:1987 has no word for it: the request may not become an authorization.
func TestAnInquiryOfISO93DoesNotBecomeAnAuthorization(t *testing.T) {
	for code, what := range map[string]string{"108": "an inquiry", "102": "a replacement of another authorization", "106": "a supplement to another authorization"} {
		m := request(t)
		m.Set(messages.LocalTime, "261123130059")
		m.Set(messages.FunctionCode, code)
		m.Delete(messages.SecurityControl)
		if sent, err := passage(t, "iso93-binary", "iso87-binary").ForProcessor(m, numbers, noon); err == nil {
			t.Errorf("%s (DE 24 is %s) is sent as a plain %s", what, code, sent.MTI)
		}
	}
}

// An upstream without a code for a part would give goods for the whole (STANDARDS: ISO-06g, ISO-29).
func TestAPartIsNotToldAsTheWhole(t *testing.T) {
	upstream := changed(t, "iso87-ascii", `approving: ["00", "08", "10", "11", "85"]`, `approving: ["00", "08"]`, `partial: ["10"]`, `partial: []`)
	processor := codec(t, "iso93-binary")
	asked := request(t)
	asked.Set(messages.LocalTime, "130059")
	asked.Set(messages.LocalDate, "1123")
	sent, err := messages.NewPassage(upstream, processor).ForProcessor(asked, numbers, noon)
	if err != nil {
		t.Fatal(err)
	}
	answer := messages.NewAnswer(sent, "0002")
	answer.Set(messages.Amount, "000000005000")
	told, _ := messages.NewPassage(processor, upstream).ForUpstream(asked, answer, noon)
	if upstream.Dialect().Approves(told.Get(messages.ResponseCode)) {
		t.Errorf("50.00 of 123.45 is told as %s, a whole approval", told.Get(messages.ResponseCode))
	}
}

// DE 95 of ISO 8583:1993 is reference data of the issuer, not an amount.
func TestReferenceDataOfISO93IsNoReplacementAmount(t *testing.T) {
	c := changed(t, "iso93-binary", "replacement: iso93-de30", "replacement: none")
	for _, data := range []string{"000000000100REF", "REFERENCE"} {
		m := request(t)
		m.MTI = messages.ReversalAdvice
		m.Set(messages.FunctionCode, "400")
		m.Set(95, data)
		if amount, replacement, err := c.Reversed(m); err != nil || replacement != "" {
			t.Errorf("a full reversal with DE 95: amount %s, replacement %q, %v", amount, replacement, err)
		}
	}
}

// A partial reversal of a party that takes and sends none may not be read as a whole one.
func TestAPartialFunctionCodeIsNoFullReversal(t *testing.T) {
	c := changed(t, "iso93-binary", "replacement: iso93-de30", "replacement: none")
	m := request(t)
	m.MTI = messages.ReversalAdvice
	m.Set(messages.FunctionCode, "401")
	if amount, replacement, err := c.Reversed(m); err == nil && replacement == "" {
		t.Errorf("function code 401 is read as the reversal of the whole %s", amount)
	}
}

// Between two parties of one dialect, a code says what it says. 9112 is not 9107, nor is 0004 (update track 3) 0000.
func TestACodeStaysWhatItIsBetweenPartiesOfOneDialect(t *testing.T) {
	c := codec(t, "iso93-binary")
	p := messages.NewPassage(c, c)
	changed := 0
	for code := range c.Dialect().ResponseCodes {
		m := messages.New("0110")
		m.Set(messages.ResponseCode, code)
		if carried, _ := p.Carry(m, noon); carried.Get(messages.ResponseCode) != code {
			changed++
		}
	}
	if changed > 0 {
		t.Errorf("%d of %d codes are told as others", changed, len(c.Dialect().ResponseCodes))
	}
}

// What one of the two parties hides is hidden, and not kept, on the way to the other too.
func TestWhatAPartyHidesIsNotKeptOnItsWayToAnother(t *testing.T) {
	upstream, processor := changed(t, "iso87-ascii", "\nadvices:", "\nsensitive: { 54: hidden }\nadvices:"), codec(t, "iso87-binary")
	wire, err := upstream.Encode(edited(t, func(m *messages.Message) { m.Set(messages.AdditionalAmounts, "ONCOLOGY") }))
	if err != nil {
		t.Fatal(err)
	}
	asked, err := upstream.Decode(wire)
	if err != nil {
		t.Fatal(err)
	}
	sent, err := messages.NewPassage(upstream, processor).ForProcessor(asked, numbers, noon)
	if err != nil {
		t.Fatal(err)
	}
	if kept := sent.Original().Get(messages.AdditionalAmounts); kept != "" || strings.Contains(fmt.Sprint(sent), "ONCOLOGY") {
		t.Error("an element that the upstream's dialect hides is shown, and kept in clear")
	}
}

// DE 59 of ISO 8583:1993 is transport data and DE 70 a country; in 1987 one is reserved for national use and the other a code of network
// management.
func TestElementsThatAreOthersInTheOtherEditionDoNotGoAsTheyAre(t *testing.T) {
	for _, e := range []messages.Element{59, 70} {
		m := messages.New("0100")
		m.SetSensitive(e, "826")
		if carried, lost := passage(t, "iso87-ascii", "iso93-binary").Carry(m, noon); carried.Has(e) || len(lost) != 1 {
			t.Errorf("%s goes as it is", e)
		}
	}
}

// What a dialect drops is said in its own terms: DE 46 and 56, private in 1987. Fees and the name of an original in 1993 are not that.
func TestWhatIsDroppedIsNotTheFeesAndOriginalsOfTheOtherEdition(t *testing.T) {
	for e, value := range map[messages.Element]string{46: "00840D00000100000000000D00000100840", 56: "1200000041261123115959" + "0512345"} {
		m := request(t)
		m.MTI = messages.FinancialAdvice
		m.Set(messages.LocalTime, "261123130059")
		m.SetSensitive(e, value)
		if sent, err := passage(t, "iso93-binary", "visa-like").ForProcessor(m, numbers, noon); err == nil && !sent.Has(e) {
			t.Errorf("an advice is sent without its %s, and nobody is told", e)
		}
	}
}

// Without original data, a processor's reversal is of what bears its own numbers: in ISO 8583:1993 STAN and DE 12, for DE 7 it need not have.
func TestAReversalOfAProcessorByItsOwnNumbersIsNamedByDE12(t *testing.T) {
	m := messages.New(messages.ReversalAdvice)
	m.Set(messages.STAN, "000042")
	m.Set(messages.LocalTime, "261123130059")
	if stan, at, local := codec(t, "iso93-binary").NamedNumbers(m); stan != "000042" || at == "" && local != "261123130059" {
		t.Errorf("got %q, %q, %q", stan, at, local)
	}
}

// A time that cannot be carried is named, not replaced by our own clock.
func TestALocalTimeThatIsNoneIsNotReplacedInSilence(t *testing.T) {
	for _, date := range []string{"0229", "1332", "0000"} {
		m := request(t)
		m.Set(messages.LocalTime, "130059")
		m.Set(messages.LocalDate, date)
		if sent, err := passage(t, "iso87-ascii", "iso93-binary").ForProcessor(m, numbers, noon); err == nil && !strings.HasSuffix(sent.Get(messages.LocalTime), "130059") {
			t.Errorf("on %s at 13:00:59: sent as %s", date, sent.Get(messages.LocalTime))
		}
	}
}
