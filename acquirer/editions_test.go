package acquirer_test

import (
	"os"
	"strings"
	"testing"
	"testing/synctest"

	"acquirerd/acquirer"
	"acquirerd/conn"
	"acquirerd/journal"
	"acquirerd/messages"
	"acquirerd/specs"
)

// changed is the codec of a built-in dialect whose file was edited: pairs of what stands there and what is to.
func changed(t *testing.T, name string, pairs ...string) *messages.Codec {
	t.Helper()
	text, err := os.ReadFile("../specs/" + name + ".yaml")
	if err != nil {
		t.Fatal(err)
	}
	file := string(text)
	for i := 0; i < len(pairs); i += 2 {
		if !strings.Contains(file, pairs[i]) {
			t.Fatalf("%s does not hold %q", name, pairs[i])
		}
		file = strings.Replace(file, pairs[i], pairs[i+1], 1)
	}
	dialect, err := specs.Parse([]byte(file))
	if err != nil {
		t.Fatal(err)
	}
	return messages.NewCodec(dialect)
}

// between has a test with a bank of another dialect than the usual one.
func between(t *testing.T, bank *messages.Codec, test func(t *testing.T, w *world)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.dialect = bank
		w.start()
		test(t, w)
		w.stop()
	})
}

// Answers of ISO 8583:1993 are found by STAN and DE 12; DE 7 they need not have. A late approval without it is one all the same.
func TestALateApprovalWithoutDE7IsRecorded(t *testing.T) {
	between(t, changed(t, "iso93-binary"), func(t *testing.T, w *world) {
		var sent *messages.Message
		w.bank.answer = func(m *messages.Message) (string, error) {
			sent = m.Clone()
			return "1000", nil
		}
		w.ask(named(w.request()), delivered)
		if w.only().Outcome != journal.Declined {
			t.Fatalf("got %+v", w.only())
		}
		w.bank.mend(false)
		second := messages.New("0110")
		for _, e := range []messages.Element{messages.STAN, messages.LocalTime, messages.Terminal, messages.RRN, messages.Amount, messages.Currency} {
			second.Set(e, sent.Get(e))
		}
		second.Set(messages.ResponseCode, "0000")
		if err := w.dialect.Validate(second); err != nil {
			t.Fatal(err)
		}
		w.desk.Inbound(t.Context(), "bank", conn.Unasked{Message: second, Arrival: conn.Second})
		if w.only().Owed == "" {
			t.Error("the processor has approved after all, and its reversal is not owed")
		}
	})
}

// Some processors have the currency in four digits (DIALECTS, 9). It is the same currency.
func TestAReversalFindsAnOriginalWhoseCurrencyHasAFourthDigitAtTheProcessor(t *testing.T) {
	bank := changed(t, "iso87-binary", `49: { type: String, length: 3, enc: Text, prefix: Fixed,`, `49: { type: String, length: 4, pad: left-zero, enc: BCDLeft, prefix: Fixed,`)
	between(t, bank, func(t *testing.T, w *world) {
		req := named(w.request())
		if result, _ := w.ask(req, delivered); code(result) != "00" {
			t.Fatalf("got %v", result.Answer)
		}
		if answer := w.reverse(reversalOf(req, "0420")); codeOf(answer) != "00" || w.only().Owed == "" {
			t.Errorf("answered %s, owed %q: the bank keeps its hold", codeOf(answer), w.only().Owed)
		}
		w.rest()
	})
}

// A processor may have names of its own for institutions. The upstream's reversal has the upstream's.
func TestAReversalFindsAnOriginalWhoseAcquirerHasAnotherNameAtTheProcessor(t *testing.T) {
	bank := changed(t, "iso87-ascii", "\nechoed:", "\nvalues: { 32: { \"9900\": \"12345\" } }\nechoed:")
	between(t, bank, func(t *testing.T, w *world) {
		req := named(w.request())
		req.Message.Set(messages.AcquirerID, "12345")
		if result, _ := w.ask(req, delivered); code(result) != "00" {
			t.Fatalf("got %v", result.Answer)
		}
		if answer := w.reverse(reversalOf(req, "0420")); codeOf(answer) != "00" || w.only().Owed == "" {
			t.Errorf("answered %s, owed %q: the bank keeps its hold", codeOf(answer), w.only().Owed)
		}
		w.rest()
	})
}

// A part that is forwarded as it came does not go to a processor that undoes only the whole.
func TestAPartWithoutAnOriginalIsNotForwardedToAProcessorThatTakesNone(t *testing.T) {
	bank := changed(t, "iso87-ascii", "replacement: iso87-de95", "replacement: none")
	between(t, bank, func(t *testing.T, w *world) {
		w.bank.unknown = true
		req := named(w.request())
		req.Upstream = &acquirer.Upstream{Name: "pos", Codec: changed(t, "iso87-binary", "unknown_original: answer", "unknown_original: forward")}
		part := reversalOf(req, "0420")
		part.Message.Set(messages.ReplacementAmounts, "000000000400"+strings.Repeat("0", 30))
		answer := w.reverse(part)
		w.rest()
		if codeOf(answer) == "00" || len(w.bank.sent) != 0 {
			t.Errorf("answered %s, and sent %v", codeOf(answer), w.bank.sent)
		}
	})
}

// A part that is owed when its endpoint comes to take none is for a person: it is never sent as the whole.
func TestAPartThatIsOwedIsNotSentAsTheWholeAfterAReload(t *testing.T) {
	between(t, codec(t, "iso87-ascii"), func(t *testing.T, w *world) {
		req := named(w.request())
		w.ask(req, delivered)
		w.bank.mend(false)
		part := reversalOf(req, "0420")
		part.Message.Set(messages.ReplacementAmounts, "000000000400"+strings.Repeat("0", 30))
		if answer := w.reverse(part); codeOf(answer) != "00" {
			t.Fatalf("got %v", answer)
		}
		w.dialect = changed(t, "iso87-ascii", "replacement: iso87-de95", "replacement: none")
		w.restart()
		w.bank.mend(true)
		w.rest()
		if row := w.only(); w.bank.holds[row.STAN+row.TransmissionTime] != "held" {
			t.Errorf("the upstream has reversed 6.00 of 10.00, and the bank %s all of it", w.bank.holds[row.STAN+row.TransmissionTime])
		}
	})
}

// A repeat that comes while its first is in flight is given the same answer, behind the header of its own: by the first's, it would go to the
// station that has given up.
func TestARepeatInFlightIsAnsweredBehindItsOwnHeader(t *testing.T) {
	between(t, codec(t, "iso87-ascii"), func(t *testing.T, w *world) {
		upstream := changed(t, "iso87-binary", "framing: { length: binary-2, max: 4096 }", "framing: { length: binary-2, max: 4096 }\nheader: { form: tpdu, value: \"6000010000\" }")
		from := func(source string) acquirer.Request {
			req := w.request()
			req.Message.Set(messages.STAN, "000001")
			body, err := upstream.Encode(req.Message)
			if err != nil {
				t.Fatal(err)
			}
			copy(body[3:5], source)
			if req.Message, err = upstream.Decode(body); err != nil {
				t.Fatal(err)
			}
			req.Upstream = &acquirer.Upstream{Name: "pos", PINKey: "zpk-pos", Codec: upstream}
			return named(req)
		}
		first, second := from("\x00\x0A"), from("\x00\x0B")
		second.Message.MTI = second.Message.MTI.Repeat()
		answers := make(chan acquirer.Result, 1)
		w.bank.answer = func(*messages.Message) (string, error) {
			v := w.desk.Admit(second)
			go func() {
				result, err := w.desk.Authorize(t.Context(), v)
				if err != nil {
					t.Error(err)
				}
				answers <- result
			}()
			return "00", nil
		}
		w.ask(first, delivered)
		result := <-answers
		w.desk.Delivered(result)
		body, err := upstream.Encode(result.Answer)
		if err != nil {
			t.Fatal(err)
		}
		if got := string(body[1:5]); got != "\x00\x0B\x00\x01" {
			t.Errorf("the answer to station 000B goes to %X", got[:2])
		}
	})
}

// A completion that names its original is recorded under the numbers that the processor knows. Its repeat is the same advice.
func TestTheRepeatOfACompletionIsTheSameInAnotherDialect(t *testing.T) {
	for _, dialects := range [][2]string{{"iso87-binary", "iso87-ascii"}, {"iso87-binary", "iso93-binary"}, {"iso93-binary", "iso93-binary"}, {"iso93-binary", "iso87-ascii"}} {
		t.Run(dialects[0]+" to "+dialects[1], func(t *testing.T) {
			between(t, changed(t, dialects[1]), func(t *testing.T, w *world) {
				w.next = 500 // its numbers are not ours
				approval := w.dialect.Dialect().Approving[0]
				w.bank.answer = func(*messages.Message) (string, error) { return approval, nil }
				upstream := &acquirer.Upstream{Name: "pos", PINKey: "zpk-pos", Codec: changed(t, dialects[0])}
				accepted := upstream.Codec.Dialect().Answers.Accepted
				edition := func(req acquirer.Request) acquirer.Request {
					req.Upstream = upstream
					if upstream.Codec.Dialect().Standard == specs.ISO93 {
						req.Message.Set(messages.LocalTime, "261123130059")
					}
					return named(req)
				}
				req := edition(w.request())
				w.ask(req, delivered)
				completion := edition(w.advice())
				upstream.Codec.Name(completion.Message, req.Message.Original())
				if answer := w.advise(completion); codeOf(answer) != accepted {
					t.Fatalf("the completion: %v", answer)
				}
				if answer := w.advise(again(completion)); codeOf(answer) != accepted {
					t.Errorf("its repeat is answered %s, as another advice", codeOf(answer))
				}
				w.rest()
			})
		})
	}
}
