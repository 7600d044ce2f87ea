package acquirer_test

import (
	"context"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"acquirerd/acquirer"
	"acquirerd/card"
	"acquirerd/conn"
	"acquirerd/hsm"
	"acquirerd/messages"
)

// A zoned vault gives as PIN block the label of the key that it was asked to translate to.
type zoned struct{ vault }

func (z *zoned) Protect(ctx context.Context, c hsm.Card) (hsm.Protected, error) {
	protected, err := z.vault.Protect(ctx, c)
	if !c.PINBlock.IsZero() {
		protected.PINBlock, _ = card.NewPINBlock([]byte(c.To))
	}
	return protected, err
}

// Transactions that are under way while routes and keys change over and over see the whole of one configuration or the whole of the other.
func TestReconfigureIsSeenWholeOrNotAtAll(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		first, second := newBank(t), newBank(t)
		var mu sync.Mutex
		keys := map[string]int{}
		for name, b := range map[string]*bank{"first": first, "second": second} {
			b.answer = func(m *messages.Message) (string, error) {
				block, err := m.PINBlock()
				if err != nil {
					t.Error(err)
				}
				mu.Lock()
				defer mu.Unlock()
				keys[name+" "+string(block.Reveal())]++
				return "00", nil
			}
		}
		endpoints := func(one, other string) []*acquirer.Endpoint {
			return []*acquirer.Endpoint{acquirer.NewEndpoint("first", one, w.dialect, first), acquirer.NewEndpoint("second", other, w.dialect, second)}
		}
		desk, err := acquirer.New(acquirer.Config{Journal: w.journal, Vault: &zoned{}, InFlight: 64, Forward: w.forward,
			Endpoints: endpoints("key-of-1", "spare--2"), Routes: []acquirer.Route{{Endpoint: "first"}}}, w.log, prometheus.NewRegistry())
		if err != nil {
			t.Fatal(err)
		}
		const askers, each = 8, 100
		var all, changing sync.WaitGroup
		asked := make(chan struct{})
		for range askers {
			var requests []acquirer.Request
			for range each {
				requests = append(requests, w.request())
			}
			all.Go(func() {
				for _, req := range requests {
					if result, err := desk.Authorize(t.Context(), desk.Admit(req)); err != nil || result.Answer.Get(messages.ResponseCode) != "00" {
						t.Errorf("got %v, %v", result, err)
					} else {
						desk.Delivered(result)
					}
				}
			})
		}
		changing.Go(func() {
			for n := 0; ; n++ {
				select {
				case <-asked:
					return
				default:
				}
				one, other, to := "key-of-1", "spare--2", "first"
				if n%2 == 0 {
					one, other, to = "spare--1", "key-of-2", "second"
				}
				if err := desk.Reconfigure([]acquirer.Route{{Endpoint: to}}, endpoints(one, other)); err != nil {
					t.Error(err)
				}
			}
		})
		all.Wait()
		close(asked)
		changing.Wait()
		if got := keys["first key-of-1"] + keys["second key-of-2"]; got != askers*each {
			t.Errorf("%d of %d went to an endpoint under its key of the same configuration: %v", got, askers*each, keys)
		}
		// The last one holds.
		if err := desk.Reconfigure([]acquirer.Route{{Endpoint: "second"}}, endpoints("spare--1", "key-of-2")); err != nil {
			t.Fatal(err)
		}
		before := keys["second key-of-2"]
		if result, err := desk.Authorize(t.Context(), desk.Admit(w.request())); err != nil || keys["second key-of-2"] != before+1 {
			t.Errorf("got %v, %v, %v", result, err, keys)
		}
	})
}

func TestWhatCannotChangeIsRefusedWhole(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		bank := func(name string) *acquirer.Endpoint { return acquirer.NewEndpoint(name, "zpk-bank", w.dialect, w.bank) }
		routes := []acquirer.Route{{BINs: []string{"5"}, Endpoint: "bank"}}
		for _, c := range []struct {
			name      string
			routes    []acquirer.Route
			endpoints []*acquirer.Endpoint
			want      string
		}{
			{"one endpoint less", nil, nil, `endpoint "bank" is not there any more`},
			{"two of a name", routes, []*acquirer.Endpoint{bank("bank"), bank("bank")}, "there are two of that name"},
			{"another processor", routes, []*acquirer.Endpoint{acquirer.NewEndpoint("bank", "zpk-bank", w.dialect, newBank(t))}, "another processor or dialect"},
			{"another dialect", routes, []*acquirer.Endpoint{acquirer.NewEndpoint("bank", "zpk-bank", codec(t, "iso87-binary"), w.bank)}, "another processor or dialect"},
			{"a route to nowhere", []acquirer.Route{{Endpoint: "other"}}, []*acquirer.Endpoint{bank("bank")}, `route to "other": no such endpoint`},
			{"a BIN that is none", []acquirer.Route{{BINs: []string{"5x"}, Endpoint: "bank"}}, []*acquirer.Endpoint{bank("bank")}, "reading route to bank"},
		} {
			if err := w.desk.Reconfigure(c.routes, c.endpoints); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%s: got %v, want %q", c.name, err, c.want)
			}
		}
		if result, answered := w.ask(w.request(), delivered); !answered || result.Answer.Get(messages.ResponseCode) != "00" {
			t.Errorf("after refusals the old routes do not hold: got %v", result)
		}
		if err := w.desk.Reconfigure(routes, []*acquirer.Endpoint{bank("bank")}); err != nil {
			t.Fatal(err)
		}
		if result, answered := w.ask(w.request(), delivered); !answered || result.Answer.Get(messages.ResponseCode) != "92" {
			t.Errorf("the new routes do not hold: got %v", result)
		}
	})
}

// What a new endpoint does not answer is reversed there, as with those that were there before.
func TestANewEndpointIsServedAndPaid(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		<-time.After(time.Second) // the forwarder runs
		other := newBank(t)
		other.answer = func(*messages.Message) (string, error) { return "00", conn.ErrTimeout }
		err := w.desk.Reconfigure([]acquirer.Route{{Endpoint: "bank"}, {BINs: []string{"4"}, Endpoint: "other"}}, []*acquirer.Endpoint{
			acquirer.NewEndpoint("bank", "zpk-bank", w.dialect, w.bank), acquirer.NewEndpoint("other", "zpk-other", w.dialect, other)})
		if err != nil {
			t.Fatal(err)
		}
		if result, answered := w.ask(w.request(), delivered); !answered || code(result) != "91" {
			t.Fatalf("got %v", result)
		}
		<-time.After(10 * time.Second)
		synctest.Wait()
		for key, state := range other.holds {
			if state != "reversed" {
				t.Errorf("%s is %s at the new endpoint", key, state)
			}
		}
		if len(other.holds) != 1 || len(w.bank.holds) != 0 {
			t.Errorf("got %v there and %v at the other", other.holds, w.bank.holds)
		}
	})
}

func TestTheForwardingRateChanges(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		const owed = 20
		w.bank.answer = func(*messages.Message) (string, error) { return "00", conn.ErrTimeout }
		w.bank.reversal = func(*messages.Message) (string, error) { return "00", nil }
		w.desk.SetForwardingRate(0.25)
		for range owed {
			w.ask(w.request(), delivered)
		}
		sent := func() int {
			synctest.Wait()
			w.bank.mu.Lock()
			defer w.bank.mu.Unlock()
			return len(w.bank.sent)
		}
		<-time.After(9 * time.Second)
		if got := sent(); got < 2 || got > w.forward.Parallel+3 {
			t.Errorf("in 9 s at 0.25 a second, %d were sent", got)
		}
		w.desk.SetForwardingRate(1000)
		<-time.After(time.Second)
		if got := sent(); got != owed {
			t.Errorf("a second later, %d of %d were sent", got, owed)
		}
	})
}
