package acquirer_test

import (
	"context"
	"sync/atomic"
	"testing"
	"time"

	"acquirerd/acquirer"
	"acquirerd/conn"
	"acquirerd/journal"
	"acquirerd/messages"
)

// lateApproval is the processor's answer to a transaction on record.
func lateApproval(t *testing.T, w *world) conn.Unasked {
	t.Helper()
	rows, err := w.journal.Transactions(t.Context(), journal.Filter{Limit: 1})
	if err != nil || len(rows) != 1 {
		t.Fatal(rows, err)
	}
	m := messages.New("0110")
	m.Set(messages.STAN, rows[0].STAN)
	m.Set(messages.TransmissionTime, rows[0].TransmissionTime)
	m.Set(messages.ResponseCode, "00")
	m.Set(messages.Terminal, "TERM0001")
	return conn.Unasked{Message: m, Arrival: conn.Late}
}

// The processor has approved, late, and we know it, while the reversal is owed and was not found so far. From then on "not found" ends
// nothing: the hold is there.
func TestALateApprovalDuringARunOfNotFound(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.bank.answer = func(*messages.Message) (string, error) { return "00", conn.ErrTimeout }
		w.bank.reversal = func(*messages.Message) (string, error) { return "25", nil }
		w.ask(w.request(), delivered)
		<-time.After(10 * time.Second) // of the 20 that make it final
		w.desk.Inbound(t.Context(), "bank", lateApproval(t, w))
		<-time.After(10 * time.Minute)
		owed, err := w.journal.Owed(t.Context(), journal.OwedFilter{Limit: 10})
		if err != nil || len(owed) != 1 {
			t.Fatal(owed, err)
		}
		if owed[0].State == journal.StateAcknowledged {
			t.Errorf("the reversal of what is known to be approved has ended with code %s; the bank: %v", owed[0].ResponseCode, w.bank.holds)
		}
	})
}

// A recorder that lets something happen when a settlement is durable, before the forwarder's goroutine knows.
type settleRecorder struct {
	acquirer.Recorder
	calls atomic.Int32
	after func(call int32, s journal.Settlement)
}

func (r *settleRecorder) Settle(ctx context.Context, ticket *journal.Ticket, s journal.Settlement) error {
	err := r.Recorder.Settle(ctx, ticket, s)
	r.after(r.calls.Add(1), s)
	return err
}

// A late approval makes a reversal owed again that has just ended by "not found", in the moment between that record and the lineup's. The
// lineup takes the end of the old for the end of the new, and the reversal is not sent any more before a restart.
func TestAReversalOwedAgainFallsOutOfTheLineup(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		settles := &settleRecorder{}
		w.stop()
		w.recorder = func(r acquirer.Recorder) acquirer.Recorder { settles.Recorder = r; return settles }
		settles.after = func(_ int32, s journal.Settlement) {
			if s.State() == journal.StateAcknowledged && s.ResponseCode() == "25" {
				w.desk.Inbound(t.Context(), "bank", lateApproval(t, w))
				<-time.After(100 * time.Millisecond) // the forwarder looks at what has come to be owed
			}
		}
		w.start()
		found := false
		attempts := 0
		w.bank.answer = func(*messages.Message) (string, error) { return "00", conn.ErrTimeout }
		w.bank.reversal = func(*messages.Message) (string, error) {
			attempts++
			rows, _ := w.journal.Owed(t.Context(), journal.OwedFilter{Limit: 1})
			if len(rows) == 1 && rows[0].Reason == journal.ReasonHeard {
				if found {
					return "00", nil
				}
				found = true
				return "", conn.ErrTimeout // once more, and it works
			}
			return "25", nil
		}
		w.ask(w.request(), delivered)
		<-time.After(30 * time.Minute)
		owed, err := w.journal.Owed(t.Context(), journal.OwedFilter{Limit: 10})
		if err != nil || len(owed) != 1 {
			t.Fatal(owed, err)
		}
		if owed[0].State != journal.StateAcknowledged {
			t.Errorf("after half an hour the reversal is %s, %d attempts; the bank: %v", owed[0].State, attempts, w.bank.holds)
		}
	})
}
