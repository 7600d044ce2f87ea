package acquirer_test

import (
	"fmt"
	"testing"
	"time"

	"acquirerd/conn"
	"acquirerd/journal"
	"acquirerd/messages"
)

// parked returns what is parked.
func parked(t *testing.T, w *world) journal.OwedID {
	t.Helper()
	owed, err := w.journal.Owed(t.Context(), journal.OwedFilter{State: journal.StateParked})
	if err != nil || len(owed) != 1 {
		t.Fatal(owed, err)
	}
	return owed[0].ID
}

// An advice that was parked is released while its reversal is with the processor, which acknowledges it. The advice must not be posted after it.
func TestAnAdviceIsNotPostedAfterAReversalThatWasUnderWayWhenItWasReleased(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.bank.unknown = true // many processors acknowledge a reversal of what they do not have
		w.bank.answer = func(*messages.Message) (string, error) { return "30", nil }
		req := w.advice()
		w.advise(req)
		<-time.After(time.Minute)
		w.bank.answer = func(*messages.Message) (string, error) { return "00", nil }
		w.bank.reversal = func(*messages.Message) (string, error) {
			// Done when it came, and there was nothing to undo. Its answer is slow.
			w.bank.mu.Lock()
			nothing := len(w.bank.holds) == 0
			w.bank.mu.Unlock()
			<-time.After(5 * time.Second)
			w.bank.mu.Lock()
			defer w.bank.mu.Unlock()
			for key, hold := range w.bank.holds {
				if nothing && hold == "held" {
					w.bank.holds[key] = "posted since"
				}
			}
			return "00", nil
		}
		if answer := w.reverse(reversalOf(req, "0420")); codeOf(answer) != "00" {
			t.Fatalf("got %v", answer)
		}
		<-time.After(2 * time.Second) // it is with the processor
		released := w.journal.Release(t.Context(), parked(t, w))
		<-time.After(10 * time.Minute)
		for key, hold := range w.bank.holds {
			if hold == "held" || hold == "posted since" {
				t.Errorf("the bank has posted %s, whose reversal is acknowledged; released: %v; the last that was sent is %s", key, released, w.bank.sent[len(w.bank.sent)-1].MTI)
			}
		}
	})
}

// The processor has approved, late, while the reversal is parked. When that is released, "not found" does not end it.
func TestALateApprovalOfWhatIsParked(t *testing.T) {
	for _, restarts := range []bool{false, true} {
		t.Run(fmt.Sprintf("restarted %v", restarts), func(t *testing.T) {
			inWorld(t, func(t *testing.T, w *world) {
				w.bank.answer = func(*messages.Message) (string, error) { return "00", conn.ErrTimeout }
				w.bank.reversal = func(*messages.Message) (string, error) { return "12", nil }
				w.ask(w.request(), delivered)
				<-time.After(time.Minute)
				id := parked(t, w)
				w.desk.Inbound(t.Context(), "bank", lateApproval(t, w))
				if restarts {
					w.restart()
				}
				w.bank.reversal = func(*messages.Message) (string, error) { return "25", nil }
				if err := w.journal.Release(t.Context(), id); err != nil {
					t.Fatal(err)
				}
				<-time.After(10 * time.Minute)
				owed, err := w.journal.Owed(t.Context(), journal.OwedFilter{})
				if err != nil || len(owed) != 1 {
					t.Fatal(owed, err)
				}
				if owed[0].State == journal.StateAcknowledged {
					t.Errorf("restarted %v: it ended with %s, and the approval was heard of before; the bank: %v", restarts, owed[0].ResponseCode, w.bank.holds)
				}
			})
		})
	}
}
