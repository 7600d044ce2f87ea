package acquirer_test

import (
	"testing"

	"acquirerd/conn"
	"acquirerd/journal"
	"acquirerd/messages"
)

// sharing makes a message of the same transaction as another: STAN, DE 7 and terminal are those of its first message (ISO 8583:1987, DE 11).
func sharing(w *world, mti messages.MTI, amount string) (first, second *messages.Message) {
	first = w.request().Message
	second = first.Clone()
	second.MTI = mti
	second.Delete(messages.PINData)
	second.Set(messages.AuthorizationID, "654321")
	second.Set(messages.Amount, amount)
	return first, second
}

// An authorization could not be sent, the upstream has stood in and says so by an advice under the same numbers, and then reverses that. Its
// reversal has no DE 90: by its own numbers it is both. What was not sent needs no reversal; what was accepted does.
func TestAReversalByItsOwnNumbersFindsWhatStands(t *testing.T) {
	for _, outcome := range []string{"not sent", "declined"} {
		t.Run(outcome, func(t *testing.T) {
			inWorld(t, func(t *testing.T, w *world) {
				first, standIn := sharing(w, messages.AuthorizationAdvice, "000000001000")
				req := w.request()
				req.Message = first
				w.bank.answer = func(*messages.Message) (string, error) {
					if outcome == "declined" {
						return "51", nil
					}
					return "", conn.ErrNotSent
				}
				w.ask(named(req), delivered)
				w.bank.answer = func(*messages.Message) (string, error) { return "00", nil }
				advice := req
				advice.Message = standIn
				if answer := w.advise(named(advice)); codeOf(answer) != "00" {
					t.Fatalf("the advice: %v", answer)
				}
				w.rest()
				reversal := reversalOf(advice, "0420")
				reversal.Message.Delete(messages.OriginalData)
				reversal.Message.Set(messages.STAN, standIn.Get(messages.STAN))
				answer := w.reverse(reversal)
				w.rest()
				owed, err := w.journal.Owed(t.Context(), journal.OwedFilter{})
				if err != nil {
					t.Fatal(err)
				}
				reversed := false
				for _, o := range owed {
					reversed = reversed || o.Kind == journal.KindReversal
				}
				if codeOf(answer) == "00" && !reversed {
					t.Errorf("the reversal is answered 00, none is owed, and the bank has %v", w.bank.holds)
				}
			})
		})
	}
}

// An authorization and its completion share their numbers. A reversal that agrees with the completion only is of that.
func TestAReversalByItsOwnNumbersFindsWhatAgreesWithIt(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		first, completion := sharing(w, messages.FinancialAdvice, "000000000800")
		req := w.request()
		req.Message = first
		w.ask(named(req), delivered)
		advice := req
		advice.Message = completion
		if answer := w.advise(named(advice)); codeOf(answer) != "00" {
			t.Fatalf("the completion: %v", answer)
		}
		w.rest()
		reversal := reversalOf(advice, "0420")
		reversal.Message.Delete(messages.OriginalData)
		reversal.Message.Set(messages.STAN, completion.Get(messages.STAN))
		if answer := w.reverse(reversal); codeOf(answer) != "00" {
			t.Errorf("the reversal of the completion is answered %s: no such original; the bank has %v", codeOf(answer), w.bank.holds)
		}
	})
}
