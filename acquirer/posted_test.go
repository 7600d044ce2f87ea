package acquirer_test

import (
	"testing"
	"time"

	"acquirerd/messages"
)

// A parked advice is reversed in part, and the processor acknowledges that although it does not have the advice. Released after that, the
// advice would stand whole: it is not sent, or the part is reversed after it.
func TestAReleasedAdviceDoesNotStandWholeWhenAPartOfItWasReversed(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.bank.unknown = true
		w.bank.answer = func(*messages.Message) (string, error) { return "30", nil }
		req := w.advice()
		w.advise(req)
		<-time.After(time.Minute)
		w.bank.answer = func(*messages.Message) (string, error) { return "00", nil }
		part := reversalOf(req, "0420")
		part.Message.Set(messages.ReplacementAmounts, "000000000400000000000000000000000000000000")
		if answer := w.reverse(part); codeOf(answer) != "00" {
			t.Fatalf("got %v", answer)
		}
		<-time.After(time.Minute)
		released := w.journal.Release(t.Context(), parked(t, w))
		<-time.After(10 * time.Minute)
		if last := w.bank.sent[len(w.bank.sent)-1]; last.MTI.Class() != messages.Reversal {
			t.Errorf("released: %v; the last that was sent is %s of %s, and only %s of it may stand", released, last.MTI, last.Get(messages.Amount), "000000000400")
		}
	})
}

// An advice names another card's transaction. It is not made to name that at the processor.
func TestACompletionDoesNotNameTheTransactionOfAnotherCard(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		req := named(w.request())
		w.ask(req, delivered)
		row := w.only()
		other := w.advice()
		other.Message.SetSensitive(messages.PAN, "5555555555554444")
		other.Message.Set(messages.OriginalData, "0100"+req.Message.Get(messages.STAN)+req.Message.Get(messages.TransmissionTime)+"0000000000000000000000")
		answer := w.advise(named(other))
		w.rest()
		for _, sent := range w.bank.sent {
			if sent.Get(messages.OriginalData)[4:20] == row.STAN+row.TransmissionTime && sent.Get(messages.RRN) == row.RRN {
				t.Errorf("answered %s; %s of another card was sent with DE 90 and RRN of transaction %d", codeOf(answer), sent.MTI, row.ID)
			}
		}
	})
}
