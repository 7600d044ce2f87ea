package acquirer_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"acquirerd/acquirer"
	"acquirerd/card"
	"acquirerd/hsm"
	"acquirerd/journal"
	"acquirerd/messages"
)

// A sealer is an HSM of several keys: a seal is the text turned, behind its key and purpose.
type sealer struct {
	key  string        // seals
	took time.Duration // of each call

	mu     sync.Mutex
	calls  int
	inside int
	most   int          // calls at the same time
	fault  func() error // of a call, nil if none
	before func(n int)  // called in the n-th call
}

func (v *sealer) call() error {
	v.mu.Lock()
	v.calls++
	n, before, fault := v.calls, v.before, v.fault
	v.inside++
	v.most = max(v.most, v.inside)
	v.mu.Unlock()
	defer func() { v.mu.Lock(); v.inside--; v.mu.Unlock() }()
	if v.took > 0 {
		<-time.After(v.took)
	}
	if before != nil {
		before(n)
	}
	if fault != nil {
		return fault()
	}
	return nil
}

func complement(text []byte) []byte {
	other := make([]byte, len(text))
	for i, c := range text {
		other[i] = ^c
	}
	return other
}

func sealUnder(key, purpose string, text []byte) card.SealedPAN {
	return card.SealedPAN{KeyID: key, Nonce: []byte("123456789012"), Ciphertext: append([]byte(key+"|"+purpose+"|"), complement(text)...)}
}

func (v *sealer) open(purpose string, s card.SealedPAN) ([]byte, error) {
	if err := v.call(); err != nil {
		return nil, err
	}
	text, found := bytes.CutPrefix(s.Ciphertext, []byte(s.KeyID+"|"+purpose+"|"))
	if !found {
		return nil, hsm.ErrSealedPAN
	}
	return complement(text), nil
}

func (v *sealer) OpenPAN(_ context.Context, s card.SealedPAN) (card.PAN, error) {
	digits, err := v.open("pan", s)
	if err != nil {
		return card.PAN{}, err
	}
	return card.ParsePAN(string(digits))
}

func (v *sealer) SealPAN(_ context.Context, pan card.PAN) (card.SealedPAN, error) {
	return sealUnder(v.key, "pan", []byte(pan.Reveal())), v.call()
}

func (v *sealer) OpenRest(_ context.Context, s card.SealedRest) ([]byte, error) {
	return v.open("rest", card.SealedPAN(s))
}

func (v *sealer) SealRest(_ context.Context, rest []byte) (card.SealedRest, error) {
	return card.SealedRest(sealUnder(v.key, "rest", bytes.Clone(rest))), v.call()
}

// A vaultful is a journal full of seals, with its resealer.
type vaultful struct {
	*journal.Journal
	t        *testing.T
	path     string
	vault    *sealer
	registry *prometheus.Registry
	ended    []acquirer.ResealProgress
	stop     func()
}

// sealedPAN is the PAN of the n-th record: a different one each.
func sealedPAN(n int) string { return fmt.Sprintf("41111111%08d", n) }

func newVaultful(t *testing.T) *vaultful {
	t.Helper()
	v := &vaultful{t: t, path: filepath.Join(t.TempDir(), "journal.db"), vault: &sealer{key: "seal-2"}}
	if err := journal.Create(v.path, "test"); err != nil {
		t.Fatal(err)
	}
	v.open()
	return v
}

func (v *vaultful) open() {
	v.t.Helper()
	v.registry = prometheus.NewRegistry()
	opened, err := journal.Open(journal.Config{Path: v.path, Station: "test"}, slog.New(slog.DiscardHandler), v.registry)
	if err != nil {
		v.t.Fatal(err)
	}
	v.Journal = opened
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- opened.Run(ctx) }()
	v.stop = func() {
		cancel()
		if err := errors.Join(<-ended, opened.Close()); err != nil {
			v.t.Error(err)
		}
	}
}

// begin records a request with a PAN sealed under a key.
func (v *vaultful) begin(n int, sealed card.SealedPAN) {
	v.t.Helper()
	if err := v.record(n, sealed); err != nil {
		v.t.Fatal(err)
	}
}

func (v *vaultful) record(n int, sealed card.SealedPAN) error {
	m := messages.New(messages.AuthorizationRequest)
	m.Set(messages.STAN, fmt.Sprintf("%06d", n))
	m.Set(messages.Amount, "000000001000")
	m.Set(messages.Currency, "978")
	ticket, err := v.Begin(v.t.Context(), journal.Intent{Upstream: "pos", Endpoint: "bank", Original: m.Original(), MaskedPAN: "411111******1111",
		Token: card.PANToken{byte(n)}, PAN: sealed})
	if err == nil {
		err = v.Finish(v.t.Context(), ticket, journal.Outcome{Kind: journal.NotSent, Reason: "no_link"})
	}
	return err
}

// fill makes as many transactions under the old key, one with a rest, and an advice of a processor.
func (v *vaultful) fill(count int) {
	v.t.Helper()
	for n := range count {
		v.begin(n+1, sealUnder("seal-1", "pan", []byte(sealedPAN(n+1))))
	}
	m := messages.New("0220")
	m.Set(messages.STAN, "900001")
	m.Set(messages.Amount, "000000001000")
	m.Set(messages.Currency, "978")
	if _, err := v.Accept(v.t.Context(), journal.Intent{Upstream: "pos", Endpoint: "bank", Original: m.Original(), PAN: sealUnder("seal-1", "pan", []byte(sealedPAN(900001))),
		Rest: card.SealedRest(sealUnder("seal-1", "rest", []byte(`{"14":"2912"}`)))}, messages.Reply{}); err != nil {
		v.t.Fatal(err)
	}
	m = messages.New("0420")
	if _, err := v.Keep(v.t.Context(), journal.Advising{Endpoint: "bank", Identity: "one", Original: m.Original(), ResponseCode: "00",
		PAN: sealUnder("seal-1", "pan", []byte(sealedPAN(900002)))}); err != nil {
		v.t.Fatal(err)
	}
}

func (v *vaultful) resealer(opens ...string) *acquirer.Resealer {
	v.t.Helper()
	r, err := acquirer.NewResealer(acquirer.ResealConfig{Store: v, Vault: v.vault, Key: "seal-2", Opens: append(opens, "seal-2"),
		Ended: func(p acquirer.ResealProgress) { v.ended = append(v.ended, p) }}, slog.New(slog.DiscardHandler), prometheus.NewRegistry())
	if err != nil {
		v.t.Fatal(err)
	}
	return r
}

func (v *vaultful) counts(want map[string]int64) {
	v.t.Helper()
	if got, err := v.SealedUnder(v.t.Context()); err != nil || !maps.Equal(got, want) {
		v.t.Errorf("sealed under %v, want %v: %v", got, want, err)
	}
}

// opens checks that each PAN is what it was.
func (v *vaultful) opens(count int) {
	v.t.Helper()
	reader, err := journal.OpenReadOnly(v.path)
	if err != nil {
		v.t.Fatal(err)
	}
	defer reader.Close()
	for n := range count {
		sealed, err := reader.Sealed(v.t.Context(), journal.TransactionID(n+1))
		if err != nil {
			v.t.Fatal(err)
		}
		if pan, err := (&sealer{}).OpenPAN(v.t.Context(), sealed); err != nil || pan.Reveal() != sealedPAN(n+1) {
			v.t.Errorf("transaction %d: another PAN: %v", n+1, err)
		}
	}
}

func TestAllSealsAreRenewed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := newVaultful(t)
		defer func() { v.stop() }()
		v.fill(150) // more than two batches
		v.begin(151, sealUnder("seal-2", "pan", []byte(sealedPAN(151))))
		r := v.resealer("seal-1")
		p, err := r.Pass(t.Context())
		if err != nil || p.Running || p.Total != 153 || p.Resealed != 153 || p.Remaining != 0 || p.Unreadable != 0 || p.Gone != 0 || p.EndedAt.IsZero() {
			t.Errorf("%+v, %v", p, err)
		}
		v.counts(map[string]int64{"seal-2": 154})
		v.opens(150)
		owed, err := v.Owed(t.Context(), journal.OwedFilter{})
		if err != nil || len(owed) != 1 {
			t.Fatal(owed, err)
		}
		if rest, err := v.vault.OpenRest(t.Context(), owed[0].Rest); err != nil || string(rest) != `{"14":"2912"}` || owed[0].Rest.KeyID != "seal-2" {
			t.Errorf("rest %s under %s, %v", rest, owed[0].Rest.KeyID, err)
		}
		calls := v.vault.calls
		if p, err := r.Pass(t.Context()); err != nil || p.Total != 0 || p.Resealed != 0 || v.vault.calls != calls {
			t.Errorf("again: %+v, %v, %d calls more", p, err, v.vault.calls-calls)
		}
	})
}

// A pass that ends anywhere leaves each seal whole, and the next one does the rest.
func TestAPassThatWasCutShortIsTakenUpAgain(t *testing.T) {
	for _, at := range []int{1, 2, 7, 129, 200, 305} {
		t.Run(fmt.Sprint("in call ", at), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				v := newVaultful(t)
				defer func() { v.stop() }()
				v.fill(150)
				ctx, cancel := context.WithCancel(t.Context())
				v.vault.before = func(n int) {
					if n == at {
						cancel()
					}
				}
				v.vault.fault = ctx.Err
				p, err := v.resealer("seal-1").Pass(ctx)
				if !errors.Is(err, context.Canceled) || p.Error == "" || p.Running || p.Resealed+p.Remaining != 153 {
					t.Errorf("%+v, %v", p, err)
				}
				if p.Resealed > int64(at/2) {
					t.Errorf("%d resealed by %d calls", p.Resealed, at)
				}
				v.opens(150)
				v.stop()
				v.open()
				v.vault = &sealer{key: "seal-2"}
				again, err := v.resealer("seal-1").Pass(t.Context())
				if err != nil || p.Resealed+again.Resealed != 153 || again.Total != 153-p.Resealed {
					t.Errorf("first %+v, then %+v, %v", p, again, err)
				}
				v.counts(map[string]int64{"seal-2": 153})
				v.opens(150)
			})
		})
	}
}

func TestWhatCannotBeOpenedIsListedAndStays(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := newVaultful(t)
		defer func() { v.stop() }()
		v.fill(3)
		v.begin(4, sealUnder("seal-0", "pan", []byte(sealedPAN(4)))) // its key is destroyed
		damaged := sealUnder("seal-1", "pan", []byte(sealedPAN(5)))
		damaged.Ciphertext[0] ^= 1
		v.begin(5, damaged)
		r := v.resealer("seal-1")
		p, err := r.Pass(t.Context())
		if err != nil || p.Total != 8 || p.Resealed != 6 || p.Unreadable != 2 || p.Remaining != 0 {
			t.Errorf("%+v, %v", p, err)
		}
		// The advice is transaction 4.
		want := []acquirer.Unreadable{{Part: journal.TransactionPAN, ID: 5, Key: "seal-0", Problem: "its key is not in the configuration"},
			{Part: journal.TransactionPAN, ID: 6, Key: "seal-1", Problem: "it is damaged, or was not sealed by the key that it names"}}
		if len(p.List) != 2 || p.List[0] != want[0] || p.List[1] != want[1] {
			t.Errorf("listed %+v", p.List)
		}
		v.counts(map[string]int64{"seal-0": 1, "seal-1": 1, "seal-2": 6})
		// A key that comes back opens its own.
		if p, err := v.resealer("seal-0", "seal-1").Pass(t.Context()); err != nil || p.Resealed != 1 || p.Unreadable != 1 {
			t.Errorf("%+v, %v", p, err)
		}
		v.counts(map[string]int64{"seal-1": 1, "seal-2": 7})
	})
}

func TestAPassWaitsForAnHSMThatIsAway(t *testing.T) {
	for name, test := range map[string]struct {
		away time.Duration
		ends bool
	}{"for a minute": {time.Minute, false}, "for an hour": {time.Hour, true}} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				v := newVaultful(t)
				defer func() { v.stop() }()
				v.fill(5)
				back := time.Now().Add(test.away)
				v.vault.fault = func() error {
					if time.Now().Before(back) {
						return fmt.Errorf("%w: rebuilding", hsm.ErrUnavailable)
					}
					return nil
				}
				p, err := v.resealer("seal-1").Pass(t.Context())
				if test.ends {
					if !errors.Is(err, hsm.ErrUnavailable) || p.Resealed != 0 || p.Remaining != 8 || p.Unreadable != 0 || !strings.Contains(p.Error, "rebuilding") {
						t.Errorf("%+v, %v", p, err)
					}
					return
				}
				if err != nil || p.Resealed != 8 {
					t.Errorf("%+v, %v", p, err)
				}
			})
		})
	}
}

// A busyStore refuses the first records, and loses a row before one of them.
type busyStore struct {
	*vaultful
	refuse int
	before func()
}

func (b *busyStore) Reseal(ctx context.Context, list []journal.Resealing) (int, error) {
	if b.refuse > 0 {
		b.refuse--
		return 0, fmt.Errorf("resealing: %w", journal.ErrBusy)
	}
	if b.before != nil {
		b.before()
	}
	return b.vaultful.Reseal(ctx, list)
}

func TestAFullJournalIsAskedAgainAndWhatWasPrunedIsGone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := newVaultful(t)
		defer func() { v.stop() }()
		v.fill(10)
		store := &busyStore{vaultful: v, refuse: 3}
		store.before = func() {
			store.before = nil
			<-time.After(time.Hour)
			if n, err := v.Prune(t.Context(), time.Now(), 4); n != 4 || err != nil {
				t.Errorf("pruned %d, %v", n, err)
			}
		}
		r, err := acquirer.NewResealer(acquirer.ResealConfig{Store: store, Vault: v.vault, Key: "seal-2", Opens: []string{"seal-1", "seal-2"}}, slog.New(slog.DiscardHandler), prometheus.NewRegistry())
		if err != nil {
			t.Fatal(err)
		}
		p, err := r.Pass(t.Context()) // the advice of a processor, which names no transaction, was pruned before it was looked at
		if err != nil || p.Total != 12 || p.Gone != 4 || p.Resealed != 8 || store.refuse != 0 {
			t.Errorf("%+v, %v", p, err)
		}
	})
}

// Live traffic keeps four fifths of the worker that resealing uses, and all of the others.
func TestAPassRestsBetweenBatches(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := newVaultful(t)
		defer func() { v.stop() }()
		v.fill(200)
		v.vault.took = time.Millisecond
		began := time.Now()
		if p, err := v.resealer("seal-1").Pass(t.Context()); err != nil || p.Resealed != 203 {
			t.Errorf("%+v, %v", p, err)
		}
		busy := time.Duration(v.vault.calls) * v.vault.took
		if took := time.Since(began); v.vault.most != 1 || took < 5*busy {
			t.Errorf("%d calls at once; %v of %v busy", v.vault.most, busy, took)
		}
	})
}

func TestAPassIsAskedForBesideTraffic(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := newVaultful(t)
		defer func() { v.stop() }()
		v.fill(150)
		registry := prometheus.NewRegistry()
		var ended []acquirer.ResealProgress
		var r *acquirer.Resealer
		r, err := acquirer.NewResealer(acquirer.ResealConfig{Store: v, Vault: v.vault, Key: "seal-2", Opens: []string{"seal-1", "seal-2"},
			Ended: func(p acquirer.ResealProgress) {
				ended = append(ended, p)
				if p.Running || !r.Progress().Running {
					t.Error("who looks at the progress is told of the end before it is on record")
				}
			}}, slog.New(slog.DiscardHandler), registry)
		if err != nil {
			t.Fatal(err)
		}
		if got := gathered(t, registry, "acquirerd_reseal_remaining"); len(got) != 0 {
			t.Errorf("before the first pass: %v", got)
		}
		v.vault.took = time.Millisecond
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- r.Run(ctx) }()
		if p := r.Progress(); p.Running {
			t.Errorf("unasked: %+v", p)
		}
		recorded := make(chan int, 1)
		go func() {
			n := 0
			for ctx.Err() == nil {
				n++
				if err := v.record(1000+n, sealUnder("seal-2", "pan", []byte(sealedPAN(1000+n)))); err != nil {
					t.Error(err)
				}
				<-time.After(100 * time.Millisecond)
			}
			recorded <- n
		}()
		first := r.Begin()
		if !first.Running {
			t.Errorf("%+v", first)
		}
		<-time.After(700 * time.Millisecond) // into the second batch
		half := r.Begin()
		if !half.Running || !half.BegunAt.Equal(first.BegunAt) || half.Resealed != 64 || half.Remaining != 153-64 || half.Total != 153 {
			t.Errorf("on its way: %+v", half)
		}
		if got := gathered(t, registry, "acquirerd_reseal_remaining"); len(got) != 1 || got[0] != 153-64 {
			t.Errorf("gauge %v", got)
		}
		<-time.After(time.Minute)
		synctest.Wait()
		if p := r.Progress(); p.Running || p.Resealed != 153 || len(ended) != 1 || ended[0].Resealed != 153 {
			t.Errorf("%+v; ended %+v", p, ended)
		}
		if got := gathered(t, registry, "acquirerd_reseal_remaining"); len(got) != 1 || got[0] != 0 {
			t.Errorf("gauge %v", got)
		}
		if p := r.Begin(); !p.Running || p.BegunAt.Equal(first.BegunAt) {
			t.Errorf("again: %+v", p)
		}
		synctest.Wait()
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		n := <-recorded
		if n < 600 {
			t.Errorf("%d recorded meanwhile", n)
		}
		v.counts(map[string]int64{"seal-2": 153 + int64(n)})
	})
}

// gathered returns the values of a gauge.
func gathered(t *testing.T, registry *prometheus.Registry, name string) (values []float64) {
	t.Helper()
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, family := range families {
		if family.GetName() == name {
			for _, m := range family.GetMetric() {
				values = append(values, m.GetGauge().GetValue())
			}
		}
	}
	return values
}

func TestAResealerNeedsAKeyThatOpensWhatItSeals(t *testing.T) {
	for name, cfg := range map[string]acquirer.ResealConfig{
		"no store":    {Vault: &sealer{}, Key: "seal-2", Opens: []string{"seal-2"}},
		"no vault":    {Store: &vaultful{}, Key: "seal-2", Opens: []string{"seal-2"}},
		"another key": {Store: &vaultful{}, Vault: &sealer{}, Key: "seal-2", Opens: []string{"seal-1"}},
	} {
		if r, err := acquirer.NewResealer(cfg, slog.New(slog.DiscardHandler), prometheus.NewRegistry()); err == nil || r != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}
