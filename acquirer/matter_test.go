package acquirer_test

import (
	"context"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"acquirerd/acquirer"
	"acquirerd/conn"
	"acquirerd/journal"
	"acquirerd/messages"
)

// What has other content than the record is on its way to be refused, when an honest repeat comes: that one is compared with the intruder,
// and refused.
func TestAnHonestRepeatBesideAnIntruder(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		req := named(w.request())
		w.ask(req, delivered)
		intruder := again(req)
		intruder.Message.Set(messages.Amount, "000000009999")
		visit := w.desk.Admit(intruder) // it waits for the journal or the HSM
		var asking sync.WaitGroup
		honest := w.desk.Admit(again(req))
		asking.Go(func() {
			result, err := w.desk.Authorize(t.Context(), honest)
			if err != nil || code(result) != "00" {
				t.Errorf("an honest repeat of a standing approval is told %v, %v", result.Answer, err)
			}
			w.desk.Delivered(result)
		})
		<-time.After(time.Second)
		result, err := w.desk.Authorize(t.Context(), visit)
		if err != nil || code(result) != "94" {
			t.Errorf("the intruder is told %v, %v", result.Answer, err)
		}
		w.desk.Delivered(result)
		asking.Wait()
	})
}

type hearRecorder struct {
	acquirer.Recorder
	calls atomic.Int32
}

func (r *hearRecorder) Hear(ctx context.Context, h journal.Hearing) (journal.Heard, error) {
	r.calls.Add(1)
	return r.Recorder.Hear(ctx, h)
}

// An answer that does not match its request in flight (its DE 41 is padded otherwise, say) is unasked for. It holds one of the 16 callers of
// Inbound, and writes to the journal ten times a second, until the request has timed out.
func TestAnUnmatchedAnswerPollsTheJournal(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		hears := &hearRecorder{}
		w.stop()
		w.recorder = func(r acquirer.Recorder) acquirer.Recorder { hears.Recorder = r; return hears }
		w.start()
		w.bank.answer = func(*messages.Message) (string, error) { <-time.After(30 * time.Second); return "00", conn.ErrTimeout }
		var asking sync.WaitGroup
		asking.Go(func() { w.ask(named(w.request()), delivered) })
		<-time.After(time.Second)
		begun := time.Now()
		w.desk.Inbound(t.Context(), "bank", lateApproval(t, w))
		if took := time.Since(begun); took > 5*time.Second || hears.calls.Load() > 10 {
			t.Errorf("it took %v and %d records", took, hears.calls.Load())
		}
		asking.Wait()
		w.rest()
	})
}
