package acquirer_test

import (
	"context"
	"log/slog"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"acquirerd/acquirer"
	"acquirerd/journal"
)

// A recorder that has nothing.
type emptyRecorder struct{ acquirer.Recorder }

func (emptyRecorder) Find(context.Context, string, string) (journal.Found, bool, error) {
	return journal.Found{}, false, nil
}

// One copy of a request finds no room at its door, another is admitted at the same moment. What the door says of the one is what the other
// is told, or the door says nothing.
func TestADoorAndTheSwitchSayTheSameOfTwoCopies(t *testing.T) {
	w := newWorld(t)
	desk, err := acquirer.New(acquirer.Config{Journal: emptyRecorder{}, Vault: w.vault, InFlight: 64, Forward: w.forward,
		Endpoints: []*acquirer.Endpoint{acquirer.NewEndpoint("bank", "zpk-bank", w.dialect, w.bank)}}, slog.New(slog.DiscardHandler), prometheus.NewRegistry())
	if err != nil {
		t.Fatal(err)
	}
	// Others keep the switch busy meanwhile.
	var over atomic.Bool
	var others sync.WaitGroup
	for range 8 {
		req := named(w.request())
		others.Go(func() {
			for !over.Load() {
				v := desk.Admit(req)
				r, _ := desk.Authorize(t.Context(), v)
				desk.Delivered(r)
			}
		})
	}
	defer others.Wait()
	defer over.Store(true)
	for tries := range 3000 {
		req := named(w.request())
		var turned, told string
		var both sync.WaitGroup
		begin := make(chan struct{})
		both.Go(func() {
			<-begin
			turned = codeOf(desk.TurnAway(t.Context(), again(req)))
		})
		both.Go(func() {
			<-begin
			result, _ := desk.Authorize(t.Context(), desk.Admit(req))
			told = codeOf(result.Answer)
			desk.Delivered(result)
		})
		close(begin)
		both.Wait()
		if turned != "none" && turned != told { // without a route a request is refused with 92
			t.Fatalf("try %d: one copy is told %s by the door, the other %s by the switch", tries, turned, told)
		}
	}
}
