package acquirer

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"acquirerd/card"
	"acquirerd/hsm"
	"acquirerd/journal"
)

// A SealStore holds what the HSM has sealed: *journal.Journal. Reseal replaces only what is still as it was read, and is durable when it returns nil. An
// error wrapping journal.ErrBusy means that nothing was written and that it may be tried again.
type SealStore interface {
	SealedUnder(ctx context.Context) (map[string]int64, error)
	SealsElsewhere(ctx context.Context, key string, part journal.SealedPart, after int64, most int) (seals []journal.Seal, next int64, more bool, err error)
	Reseal(ctx context.Context, list []journal.Resealing) (int, error)
}

// A Sealer opens and seals: *hsm.HSM. An error wrapping hsm.ErrSealedPAN is about the seal; one wrapping hsm.ErrUnavailable says that it may work later.
type Sealer interface {
	OpenPAN(ctx context.Context, sealed card.SealedPAN) (card.PAN, error)
	SealPAN(ctx context.Context, pan card.PAN) (card.SealedPAN, error)
	OpenRest(ctx context.Context, rest card.SealedRest) ([]byte, error)
	SealRest(ctx context.Context, rest []byte) (card.SealedRest, error)
}

// A ResealConfig says what is sealed anew, and by which key.
type ResealConfig struct {
	Store SealStore
	Vault Sealer
	Key   string               // label of the key that seals now
	Opens []string             // labels of all keys that can open
	Ended func(ResealProgress) // called at the end of each pass, before its progress says so; may be nil
}

// Limits of resealing. It uses one worker of the HSM at a time, and rests for as much as restShare times what a batch took: so it takes a fifth of one
// worker and of the journal's writer at the most, and transactions wait for no more than one batch.
const (
	resealBatch    = 64
	restShare      = 4
	leastRest      = 5 * time.Millisecond
	resealRetry    = time.Second     // until an HSM or a journal that had no room is asked again
	resealPatience = 2 * time.Minute // how long they may have none
	mostUnreadable = 1000            // seals that a pass lists; all are counted
)

// A Resealer replaces seals under older keys by ones under the present key, beside live traffic. It is safe to end it anywhere: each seal is replaced as
// a whole, and a pass begins with what is left.
type Resealer struct {
	cfg       ResealConfig
	log       *slog.Logger
	remaining *prometheus.GaugeVec // no series before the first pass: nobody knows then
	unopened  *prometheus.GaugeVec
	asked     chan struct{} // capacity 1: a pass is wanted

	mu       sync.Mutex
	progress ResealProgress
}

// A ResealProgress is how far a pass is, or the last one came.
type ResealProgress struct {
	Running    bool         `json:"running"`
	Key        string       `json:"key"` // that seals
	BegunAt    time.Time    `json:"begun_at,omitzero"`
	EndedAt    time.Time    `json:"ended_at,omitzero"`
	Total      int64        `json:"total"` // seals under other keys when it began
	Resealed   int64        `json:"resealed"`
	Gone       int64        `json:"gone"`      // pruned, or resealed by another, meanwhile
	Remaining  int64        `json:"remaining"` // not yet looked at
	Unreadable int64        `json:"unreadable"`
	List       []Unreadable `json:"list"`            // of the unreadable ones, the first thousand
	Error      string       `json:"error,omitempty"` // why it ended before its end
}

// An Unreadable is a seal that cannot be opened. It stays as it is: its key may come back.
type Unreadable struct {
	Part    journal.SealedPart `json:"part"`
	ID      int64              `json:"id"` // of the transaction, or of the advice of a processor
	Key     string             `json:"key"`
	Problem string             `json:"problem"`
}

// The problems of an Unreadable.
const (
	keyGone     = "its key is not in the configuration"
	sealDamaged = "it is damaged, or was not sealed by the key that it names"
)

// NewResealer starts nothing.
func NewResealer(cfg ResealConfig, log *slog.Logger, reg prometheus.Registerer) (*Resealer, error) {
	if cfg.Store == nil || cfg.Vault == nil || !slices.Contains(cfg.Opens, cfg.Key) {
		return nil, errors.New("resealing: store, vault or the key that seals is missing")
	}
	r := &Resealer{cfg: cfg, log: log, asked: make(chan struct{}, 1), progress: ResealProgress{Key: cfg.Key, List: []Unreadable{}},
		remaining: prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "acquirerd_reseal_remaining",
			Help: "Seals under an older key that the present or last pass of resealing has not looked at; no series before the first."}, nil),
		unopened: prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "acquirerd_reseal_unreadable",
			Help: "Seals that the present or last pass of resealing could not open; no series before the first."}, nil)}
	for _, c := range []prometheus.Collector{r.remaining, r.unopened} {
		if err := reg.Register(c); err != nil {
			return nil, fmt.Errorf("registering metrics: %w", err)
		}
	}
	return r, nil
}

// Run does a pass each time that Begin asks for one, until ctx ends.
func (r *Resealer) Run(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-r.asked:
		}
		if _, err := r.pass(ctx); err != nil && errors.Is(err, journal.ErrFailed) {
			return err
		}
	}
}

// Begin asks Run for a pass, unless one is under way, and returns its progress.
func (r *Resealer) Begin() ResealProgress {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.progress.Running {
		r.progress = r.fresh()
		r.asked <- struct{}{} // has room: Running was false, so that Run has taken the last one
	}
	return r.copied()
}

// Pass does one pass itself, where nobody calls Run. Its error says why it ended before its end; the progress says how far it came.
func (r *Resealer) Pass(ctx context.Context) (ResealProgress, error) {
	r.mu.Lock()
	r.progress = r.fresh()
	r.mu.Unlock()
	return r.pass(ctx)
}

func (r *Resealer) fresh() ResealProgress {
	return ResealProgress{Running: true, Key: r.cfg.Key, BegunAt: time.Now().UTC(), List: []Unreadable{}}
}

// Progress is how far the present pass is, or the last one came.
func (r *Resealer) Progress() ResealProgress {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.copied()
}

// copied is called with the lock held.
func (r *Resealer) copied() ResealProgress {
	p := r.progress
	p.List = slices.Clone(p.List)
	return p
}

// change changes the progress and shows it.
func (r *Resealer) change(by func(*ResealProgress)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	p := &r.progress
	by(p)
	p.Remaining = max(0, p.Total-p.Resealed-p.Gone-p.Unreadable)
	r.remaining.WithLabelValues().Set(float64(p.Remaining))
	r.unopened.WithLabelValues().Set(float64(p.Unreadable))
}

func (r *Resealer) pass(ctx context.Context) (ResealProgress, error) {
	err := r.through(ctx)
	r.change(func(p *ResealProgress) {
		p.EndedAt = time.Now().UTC()
		if err != nil {
			p.Error = err.Error()
		} else {
			p.Total = p.Resealed + p.Gone + p.Unreadable // what was pruned behind its back is not left
		}
	})
	p := r.Progress()
	p.Running = false
	r.log.Info("reseal ended", "key", p.Key, "resealed", p.Resealed, "gone", p.Gone, "remaining", p.Remaining, "unreadable", p.Unreadable, "error", p.Error)
	if r.cfg.Ended != nil {
		r.cfg.Ended(p)
	}
	r.change(func(p *ResealProgress) { p.Running = false }) // only now: who sees that finds what Ended has done
	return p, err
}

// through looks at all seals under other keys, in the order of parts and IDs.
func (r *Resealer) through(ctx context.Context) error {
	counts, err := r.cfg.Store.SealedUnder(ctx)
	if err != nil {
		return fmt.Errorf("resealing: %w", err)
	}
	r.change(func(p *ResealProgress) {
		for key, count := range counts {
			if key != r.cfg.Key {
				p.Total += count
			}
		}
	})
	r.log.Info("reseal began", "key", r.cfg.Key, "total", r.Progress().Total)
	for _, part := range journal.SealedParts {
		for after, more := int64(0), true; more; {
			began := time.Now()
			var seals []journal.Seal
			if seals, after, more, err = r.cfg.Store.SealsElsewhere(ctx, r.cfg.Key, part, after, resealBatch); err != nil {
				return fmt.Errorf("resealing: %w", err)
			}
			if err := r.batch(ctx, seals); err != nil {
				return fmt.Errorf("resealing %s: %w", part, err)
			}
			if err := rest(ctx, max(leastRest, restShare*time.Since(began))); err != nil {
				return fmt.Errorf("resealing: %w", err)
			}
		}
	}
	return nil
}

// batch seals anew what can be opened, and replaces that in one record.
func (r *Resealer) batch(ctx context.Context, seals []journal.Seal) error {
	list := make([]journal.Resealing, 0, len(seals))
	for _, s := range seals {
		if !slices.Contains(r.cfg.Opens, s.Sealed.KeyID) {
			r.cannotOpen(s, keyGone)
			continue
		}
		var renewed card.SealedPAN
		err := patiently(ctx, func() (err error) {
			renewed, err = r.renew(ctx, s)
			return err
		})
		switch {
		case errors.Is(err, hsm.ErrSealedPAN):
			r.cannotOpen(s, sealDamaged)
		case err != nil:
			return err
		default:
			list = append(list, journal.Resealing{Old: s, New: renewed})
		}
	}
	if len(list) == 0 {
		return nil
	}
	var replaced int
	err := patiently(ctx, func() (err error) {
		replaced, err = r.cfg.Store.Reseal(ctx, list)
		return err
	})
	if err != nil {
		return err
	}
	r.change(func(p *ResealProgress) {
		p.Resealed += int64(replaced)
		p.Gone += int64(len(list) - replaced)
	})
	return nil
}

// renew opens a seal and seals what was in it under the present key.
func (r *Resealer) renew(ctx context.Context, s journal.Seal) (card.SealedPAN, error) {
	if s.Part == journal.TransactionRest {
		opened, err := r.cfg.Vault.OpenRest(ctx, card.SealedRest(s.Sealed))
		if err != nil {
			return card.SealedPAN{}, err
		}
		defer clear(opened)
		sealed, err := r.cfg.Vault.SealRest(ctx, opened)
		return card.SealedPAN(sealed), err
	}
	pan, err := r.cfg.Vault.OpenPAN(ctx, s.Sealed)
	if err != nil {
		return card.SealedPAN{}, err
	}
	return r.cfg.Vault.SealPAN(ctx, pan)
}

func (r *Resealer) cannotOpen(s journal.Seal, problem string) {
	u := Unreadable{s.Part, s.ID, s.Sealed.KeyID, problem}
	listed := true
	r.change(func(p *ResealProgress) {
		p.Unreadable++
		if listed = len(p.List) < mostUnreadable; listed {
			p.List = append(p.List, u)
		}
	})
	if listed {
		r.log.Warn("seal cannot be opened", "part", string(u.Part), "id", u.ID, "key", u.Key, "problem", u.Problem)
	}
}

// patiently tries again while the HSM or the journal has no room, or the HSM is away, up to resealPatience.
func patiently(ctx context.Context, do func() error) error {
	for began := time.Now(); ; {
		err := do()
		again := errors.Is(err, hsm.ErrUnavailable) || errors.Is(err, journal.ErrBusy)
		if !again || time.Since(began) >= resealPatience {
			return err
		}
		if err := rest(ctx, resealRetry); err != nil {
			return err
		}
	}
}

// rest waits, or returns the error of ctx.
func rest(ctx context.Context, pause time.Duration) error {
	timer := time.NewTimer(pause)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
