package acquirer_test

import (
	"context"
	"sync"
	"testing"
	"time"

	"acquirerd/acquirer"
	"acquirerd/conn"
	"acquirerd/journal"
	"acquirerd/messages"
)

// A completion names its authorization in DE 90, by the numbers under which the upstream sent it. The processor knows that one by ours.
func TestACompletionNamesAnOriginalThatTheProcessorDoesNotKnow(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		req := named(w.request())
		w.ask(req, delivered)
		rows, err := w.journal.Transactions(t.Context(), journal.Filter{Limit: 1})
		if err != nil {
			t.Fatal(err)
		}
		completion := advice(w)
		completion.Message.Set(messages.RRN, req.Message.Get(messages.RRN))
		completion.Message.Set(messages.OriginalData, "0100"+req.Message.Get(messages.STAN)+req.Message.Get(messages.TransmissionTime)+"0000000000000000000000")
		if got := handAdvise(t, w, named(completion)); got != "00" {
			t.Fatal(got)
		}
		w.rest()
		sent := w.bank.sent[0]
		if want := "0100" + rows[0].STAN + rows[0].TransmissionTime + "0000000000000000000000"; sent.Get(messages.OriginalData) != want {
			t.Errorf("DE 90 is %s, the processor knows the original as %s", sent.Get(messages.OriginalData), want)
		}
	})
}

// Reversal requests wait for the processor and hold the slots of live traffic meanwhile.
func TestReversalRequestsTakeTheSlotsOfLiveTraffic(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		var list []acquirer.Request
		for range 64 {
			req := named(w.request())
			w.ask(req, delivered)
			list = append(list, req)
		}
		// The processor answers requests as ever, and asks for reversals to be sent again.
		w.bank.reversal = func(*messages.Message) (string, error) { return "91", nil }
		var waiting sync.WaitGroup
		for _, req := range list {
			waiting.Go(func() { handReverse(t, w, undoing(req, "0400")) })
		}
		<-time.After(10 * time.Second)
		if result, ok := w.ask(named(w.request()), delivered); !ok || code(result) != "00" {
			t.Errorf("a request is answered %v", result.Answer)
		}
		waiting.Wait()
	})
}

// The processor answers late, between the attempt and the record of its end.
func TestALateApprovalWhileTheLastNotFoundIsSettled(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.bank.answer = func(*messages.Message) (string, error) { return "00", conn.ErrTimeout }
		begun := time.Now()
		w.bank.reversal = func(*messages.Message) (string, error) {
			if time.Since(begun) > 20*time.Second { // the one that makes it final: the answers pass each other
				w.desk.Inbound(t.Context(), "bank", lateApproval(t, w))
			}
			return "25", nil
		}
		w.ask(w.request(), delivered)
		<-time.After(10 * time.Minute)
		owed, err := w.journal.Owed(t.Context(), journal.OwedFilter{Limit: 10})
		if err != nil || len(owed) != 1 {
			t.Fatal(owed, err)
		}
		if owed[0].State == journal.StateAcknowledged {
			t.Errorf("ended with %s, and the approval was heard of before; the bank: %v", owed[0].ResponseCode, w.bank.holds)
		}
	})
}

// A recorder that lets something happen before a reversal is recorded.
type oweRecorder struct {
	acquirer.Recorder
	before func()
}

func (r *oweRecorder) Owe(ctx context.Context, of journal.Reversing) (journal.Reversal, error) {
	if r.before != nil {
		r.before()
	}
	return r.Recorder.Owe(ctx, of)
}
