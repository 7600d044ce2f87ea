package acquirer_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"acquirerd/acquirer"
	"acquirerd/hsm"
	"acquirerd/journal"
	"acquirerd/messages"
)

// A recorder as it was before answers were stored: migration 2 gives such rows a NULL answer.
type forgetfulRecorder struct{ acquirer.Recorder }

func (r forgetfulRecorder) Finish(ctx context.Context, ticket *journal.Ticket, outcome journal.Outcome) error {
	outcome.Answer = messages.Reply{}
	return r.Recorder.Finish(ctx, ticket, outcome)
}

// An approval of the version before, whose answer is not on record, stands. Its repeat must not be told that it failed.
func TestTheRepeatOfAnApprovalFromBeforeTheMigration(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.stop()
		w.recorder = func(r acquirer.Recorder) acquirer.Recorder { return forgetfulRecorder{r} }
		w.start()
		req := named(w.request())
		w.ask(req, delivered)
		result, err := w.desk.Authorize(t.Context(), w.desk.Admit(again(req)))
		if err != nil {
			t.Fatal(err)
		}
		if result.Answer != nil && code(result) != "00" {
			t.Errorf("the repeat of a standing approval is told %s; the bank: %v", code(result), w.bank.holds)
		}
		w.desk.Delivered(result)
	})
}

// A vault whose token key was changed.
type rotatedVault struct{ vault }

func (v *rotatedVault) Protect(ctx context.Context, c hsm.Card) (hsm.Protected, error) {
	p, err := v.vault.Protect(ctx, c)
	p.Token[31]++
	return p, err
}

// After a change of the token key nobody can tell whether the card is the same. What may have been approved is not refused for that.
func TestTheRepeatAfterAChangeOfTheTokenKey(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		req := named(w.request())
		w.ask(req, delivered)
		w.stop()
		w.vault = &rotatedVault{}
		w.start()
		result, err := w.desk.Authorize(t.Context(), w.desk.Admit(again(req)))
		if err != nil {
			t.Fatal(err)
		}
		if result.Answer != nil && code(result) == "94" {
			t.Error("an honest repeat of an approval is refused with 94")
		}
		w.desk.Delivered(result)
	})
}

// A forwarded reversal whose original the processor does not have either ends by its word (ISO-12: 25 ends it).
func TestAForwardedReversalThatIsNotFound(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.bank.reversal = func(*messages.Message) (string, error) { return "25", nil }
		reversal := undoing(named(w.request()), "0420")
		reversal.Upstream.Codec = forwarding(t)
		if got := handReverse(t, w, reversal); got != "00" {
			t.Fatal(got)
		}
		<-time.After(25 * time.Hour)
		owed, err := w.journal.Owed(t.Context(), journal.OwedFilter{Limit: 10})
		if err != nil || len(owed) != 1 || owed[0].State != journal.StateAcknowledged {
			t.Errorf("it is %s after %d attempts, %v", owed[0].State, owed[0].Attempts, err)
		}
	})
}

// An advice that is parked is reversed, and released after that: the processor must not be left with it.
func TestAnAdviceIsPostedAfterItsReversalHasEnded(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.bank.answer = func(*messages.Message) (string, error) { return "30", nil }
		req := advice(w)
		if got := handAdvise(t, w, req); got != "00" {
			t.Fatal(got)
		}
		<-time.After(time.Minute) // parked
		// Many processors acknowledge a reversal of what they do not have.
		w.bank.mu.Lock()
		for key := range w.bank.advices {
			w.bank.holds[key] = "declined"
		}
		w.bank.mu.Unlock()
		if got := handReverse(t, w, undoing(req, "0420")); got != "00" {
			t.Fatalf("answered %s", got)
		}
		<-time.After(time.Minute)
		w.bank.mu.Lock()
		clear(w.bank.holds)
		w.bank.mu.Unlock()
		w.bank.answer = func(*messages.Message) (string, error) { return "00", nil }
		owed, _ := w.journal.Owed(t.Context(), journal.OwedFilter{Limit: 10})
		for _, o := range owed {
			t.Logf("%s is %s", o.Kind, o.State)
			if o.State == journal.StateParked {
				if err := w.journal.Release(t.Context(), o.ID); !errors.Is(err, journal.ErrReversed) {
					t.Errorf("released: %v", err)
				}
			}
		}
		w.desk.Inbound(t.Context(), "bank", lateApproval(t, w)) // wakes nobody: the poll finds it
		<-time.After(10 * time.Minute)
		for key, hold := range w.bank.holds {
			if hold == "held" {
				t.Errorf("the bank has posted %s, whose reversal the upstream was acknowledged", key)
			}
		}
	})
}
