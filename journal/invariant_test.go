package journal

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"acquirerd/messages"
)

// Somebody else has written into the file of a running journal: what it finds is not what it left, and it must stop.
func TestAFileThatOthersHaveChangedFailsTheJournal(t *testing.T) {
	ctx := context.Background()
	for name, test := range map[string]struct {
		script string
		call   func(r *running, open, attempt *Ticket) error
	}{
		"an open transaction has ended": {"UPDATE transactions SET outcome = 'declined', finished_at = 1 WHERE outcome IS NULL",
			func(r *running, open, _ *Ticket) error { return r.Finish(ctx, open, Outcome{Kind: Unknown}) }},
		"an attempt is of what was settled": {"UPDATE owed SET state = 'acknowledged', settled_at = 1",
			func(r *running, _, attempt *Ticket) error { return r.Settle(ctx, attempt, Acknowledged("00")) }},
		"an attempt of what was settled": {"UPDATE owed SET state = 'acknowledged', settled_at = 1",
			func(r *running, _, _ *Ticket) error { _, err := r.Attempt(ctx, 2, Numbers{}); return err }},
		"a debt is gone that was to be parked": {"DELETE FROM owed WHERE id = 2",
			func(r *running, _, _ *Ticket) error { return r.Park(ctx, 2) }},
		"the next transaction is there": {"INSERT INTO transactions SELECT id + 1, upstream, NULL, upstream_stan, upstream_rrn, endpoint, mti, stan, rrn, " +
			"transmission_time, acquirer_id, terminal, merchant, amount, currency, masked_pan, pan_token, pan_key_id, pan_nonce, pan_ciphertext, NULL, NULL, " +
			"NULL, original, begun_at, NULL, NULL, NULL, NULL, NULL, NULL, NULL, '' FROM transactions ORDER BY id DESC LIMIT 1",
			func(r *running, _, _ *Ticket) error {
				_, err := r.Begin(ctx, intentOf(r.next("processor-a"), "key"))
				return err
			}},
	} {
		t.Run(name, func(t *testing.T) {
			path := create(t)
			r := start(t, Config{Path: path})
			open := r.begin("")
			r.owes()
			r.owes()
			attempt := r.attempt(1, Numbers{})
			change(t, path, test.script)
			r.stopped = true
			if err := test.call(r, open, attempt); !errors.Is(err, ErrFailed) {
				t.Errorf("got %v", err)
			}
			if err := <-r.ended; !errors.Is(err, ErrFailed) {
				t.Errorf("Run: %v", err)
			}
			if err := r.Close(); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestAttemptRefusesAndLeavesTheDebt(t *testing.T) {
	r := start(t, Config{Path: create(t)})
	id := r.owes()
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := r.Attempt(ended, id, Numbers{"900001", ""}); !errors.Is(err, context.Canceled) {
		t.Errorf("with an ended context: %v", err)
	}
	r.queue.mu.Lock()
	r.queue.limit = 0
	r.queue.mu.Unlock()
	if _, err := r.Attempt(t.Context(), id, Numbers{"900001", ""}); !errors.Is(err, ErrBusy) {
		t.Errorf("on a full queue: %v", err)
	}
	if _, err := r.Prune(t.Context(), time.Now(), 1); !errors.Is(err, ErrBusy) {
		t.Errorf("pruning on a full queue: %v", err)
	}
	r.queue.mu.Lock()
	r.queue.limit = 4096
	r.queue.mu.Unlock()
	if attempt := r.attempt(id, Numbers{}); attempt.Attempt() != 1 || attempt.Own() != (Numbers{}) {
		t.Errorf("%v with %+v", attempt, attempt.Own())
	}
}

func TestCreditorsAreThoseWhoAreOwed(t *testing.T) {
	path := create(t)
	r := start(t, Config{Path: path})
	for _, endpoint := range []string{"processor-b", "processor-a", "processor-c", "processor-b"} {
		in := intentOf(r.next(endpoint), "")
		in.Endpoint = endpoint
		ticket, err := r.Begin(t.Context(), in)
		if err != nil {
			t.Fatal(err)
		}
		r.finish(ticket, Outcome{Kind: Unknown})
	}
	r.park(3)
	for range 2 {
		if got, err := r.Creditors(t.Context()); err != nil || !slices.Equal(got, []string{"processor-a", "processor-b"}) {
			t.Errorf("got %v, %v", got, err)
		}
		if a, b, c := len(r.Incurred("processor-a")), len(r.Incurred("processor-b")), len(r.Incurred("processor-c")); a != 1 || b != 2 || c != 0 {
			t.Errorf("incurred %d, %d and %d", a, b, c)
		}
		r = r.reopened(path)
		path = r.path
	}
	r.settle(r.attempt(2, Numbers{}), Acknowledged("00"))
	if got, err := r.Creditors(t.Context()); err != nil || !slices.Equal(got, []string{"processor-b"}) {
		t.Errorf("got %v, %v", got, err)
	}
}

func TestTheGaugeOfOwedMoneyHasASeriesForEachCurrency(t *testing.T) {
	registry := prometheus.NewRegistry()
	path := create(t)
	j, err := Open(Config{Path: path, Station: "acq01"}, slog.New(slog.DiscardHandler), registry)
	if err != nil {
		t.Fatal(err)
	}
	r := run(t, j)
	gather := func() map[string]float64 {
		families, err := registry.Gather()
		if err != nil {
			t.Fatal(err)
		}
		values := map[string]float64{}
		for _, family := range families {
			if family.GetName() == "acquirerd_owed_minor_units" {
				for _, metric := range family.GetMetric() {
					values[metric.GetLabel()[0].GetValue()] = metric.GetGauge().GetValue()
				}
			}
		}
		return values
	}
	check := func(when string, want map[string]float64) {
		t.Helper()
		if got := gather(); !maps.Equal(got, want) {
			t.Errorf("%s: got %v, want %v", when, got, want)
		}
	}
	check("at first", map[string]float64{})
	id := r.accept("advice")
	check("an advice", map[string]float64{"978": 12345})
	if _, err := r.Owe(t.Context(), Reversing{Transaction: id, Reason: "upstream", Replacement: "000000000345"}); err != nil {
		t.Fatal(err)
	}
	check("and its partial reversal", map[string]float64{"978": 12345 + 12000})
	in := intentOf(r.next("processor-a"), "")
	dollars := messages.New(messages.AuthorizationRequest)
	dollars.Set(messages.STAN, in.Original.Get(messages.STAN))
	dollars.Set(messages.Amount, "000000000700")
	dollars.Set(messages.Currency, "840")
	in.Original = dollars.Original()
	ticket, err := r.Begin(t.Context(), in)
	if err != nil {
		t.Fatal(err)
	}
	r.finish(ticket, Outcome{Kind: Unknown})
	check("and dollars", map[string]float64{"978": 12345 + 12000, "840": 700})
	r.settle(r.attempt(3, Numbers{}), Acknowledged("00"))
	r.park(1)
	check("paid and parked", map[string]float64{"978": 12000})
	r.release(1)
	check("released", map[string]float64{"978": 12345 + 12000})
	r.settle(r.attempt(1, Numbers{}), Acknowledged("00"))
	r.settle(r.attempt(2, Numbers{}), Acknowledged("00"))
	check("at the end", map[string]float64{})
	// A registry that has another of the name refuses, in one line and with nothing left behind.
	if _, err := Open(Config{Path: create(t), Station: "acq01"}, slog.New(slog.DiscardHandler), registry); err == nil || strings.Contains(err.Error(), "\n") {
		t.Errorf("a second journal on the registry: %v", err)
	}
	check("after it", map[string]float64{})
}
