package acquirer_test

import (
	"context"
	"sync"
	"testing"
	"time"

	"acquirerd/acquirer"
	"acquirerd/journal"
	"acquirerd/messages"
)

// A recorder that lets something happen before the nth Bar.
type barRecorder struct {
	acquirer.Recorder
	mu     sync.Mutex
	calls  int
	before map[int]func()
}

func (r *barRecorder) Bar(ctx context.Context, b journal.Barred) error {
	r.mu.Lock()
	r.calls++
	happens := r.before[r.calls]
	r.mu.Unlock()
	if happens != nil {
		happens()
	}
	return r.Recorder.Bar(ctx, b)
}

// An 0200 comes while its reversal, which has no DE 90, bars the names that its original could have: 0100 first. The 0200 is approved, its
// upstream is told so or not, and the reversal must find it.
func TestABarredNameHidesTheOriginal(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		bars := &barRecorder{before: map[int]func(){}}
		w.stop()
		w.recorder = func(r acquirer.Recorder) acquirer.Recorder { bars.Recorder = r; return bars }
		w.start()
		first := w.request()
		first.Message.MTI = "0200"
		first = named(first)
		bars.before[2] = func() { w.ask(first, delivered) }

		m := first.Message.Clone()
		m.MTI = "0420"
		m.Delete(messages.PINData)
		reversal := acquirer.Request{Message: m, Upstream: first.Upstream}
		for i := range 3 { // the upstream repeats it until it is acknowledged, but each time:
			result, err := w.desk.Reverse(t.Context(), w.desk.Admit(reversal))
			if err != nil || result.Answer == nil || code(result) != "00" {
				t.Errorf("reversal %d: %v, %v", i, result.Answer, err)
			}
		}
		<-time.After(2 * time.Minute)
		for key, hold := range w.bank.holds {
			if hold == "held" {
				t.Errorf("the bank holds %s, which the upstream has reversed", key)
			}
		}
	})
}

// The same without a race in this run: a crash between two bars of an earlier reversal has left the first one.
func TestABarLeftByACrashHidesTheOriginal(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		first := w.request()
		first.Message.MTI = "0200"
		first = named(first)
		m := first.Message.Clone()
		m.MTI = "0420"
		m.Delete(messages.PINData)
		reversal := acquirer.Request{Message: m, Upstream: first.Upstream}
		// What the crashed run had committed:
		name := codec(t, "iso87-ascii").OriginalIdentities(m)[0]
		if err := w.journal.Bar(t.Context(), journal.Barred{Upstream: "pos", UpstreamKey: name, MTI: messages.MTIOf(name),
			UpstreamSTAN: codec(t, "iso87-ascii").STANOf(name), MaskedPAN: m.PAN().Mask()}); err != nil {
			t.Fatal(err)
		}
		if result, ok := w.ask(first, delivered); !ok || code(result) != "00" {
			t.Fatalf("got %v", result.Answer)
		}
		if result, err := w.desk.Reverse(t.Context(), w.desk.Admit(reversal)); err != nil || code(result) != "00" {
			t.Errorf("reversal: %v, %v", result.Answer, err)
		}
		<-time.After(2 * time.Minute)
		for key, hold := range w.bank.holds {
			if hold == "held" {
				t.Errorf("the bank holds %s, which the upstream has reversed", key)
			}
		}
	})
}
