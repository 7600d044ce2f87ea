package simulator

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
)

// The limits and defaults of a load.
const (
	defaultMaxOutstanding = 20_000
	slowestRecorded       = 10 * time.Minute
)

// LoadConfig is what a Load is made of. Shares are 0 to 1 of all requests.
type LoadConfig struct {
	Upstream *Upstream // running, with as many connections as the load is to have

	Rate     float64 // arrivals a second; they do not wait for answers. Or
	InFlight int     // so many at once, each following the answer of one before

	Count    int           // requests, or
	Duration time.Duration // how long new requests begin; one of both is needed, and the first that is reached ends the load

	PINShare     float64 // with a PIN block
	DeclineShare float64 // with an amount that the default rules decline with 51
	SilentShare  float64 // with an amount that the default rules never answer

	Cards          []Card // default: TestCards that leave the decision to the amount
	Seed           uint64 // of the mix
	MaxOutstanding int    // most requests that wait for an answer at a rate; default 20,000
}

// Amounts of a load, in minor units: what the default rules make of them is in DefaultRules.
const (
	loadDeclined = 9051
	loadSilent   = 9200
)

// Latency is a distribution of times. At a rate they count from when a request was to begin, not from when it did, so that a stall is
// seen in all requests that it held up; requests that got no answer count with the time that was waited for it.
type Latency struct {
	Mean time.Duration `json:"mean_ns"`
	P50  time.Duration `json:"p50_ns"`
	P90  time.Duration `json:"p90_ns"`
	P99  time.Duration `json:"p99_ns"`
	P999 time.Duration `json:"p999_ns"`
	Max  time.Duration `json:"max_ns"`
}

// LoadResult is what a load has seen.
type LoadResult struct {
	Requests   int64             `json:"requests"`   // begun
	Shed       int64             `json:"shed"`       // due, and not begun: too many were waiting already. A rate was not reached
	Outcomes   map[Outcome]int64 `json:"outcomes"`   //
	Codes      map[string]int64  `json:"codes"`      // of the answers
	Elapsed    time.Duration     `json:"elapsed_ns"` // until the last answer
	Throughput float64           `json:"throughput"` // answers a second
	Latency    Latency           `json:"latency"`
}

// A Load sends requests through an Upstream and measures.
type Load struct {
	cfg LoadConfig

	mu        sync.Mutex
	histogram *hdrhistogram.Histogram // microseconds
	result    LoadResult
}

// NewLoad checks the configuration and starts nothing.
func NewLoad(cfg LoadConfig) (*Load, error) {
	if cfg.Upstream == nil {
		return nil, errors.New("load: it needs an upstream")
	}
	if (cfg.Rate > 0) == (cfg.InFlight > 0) || cfg.Rate < 0 || cfg.InFlight < 0 {
		return nil, errors.New("load: it needs either a rate or a number in flight")
	}
	if cfg.Count < 0 || cfg.Duration < 0 || cfg.Count == 0 && cfg.Duration == 0 {
		return nil, errors.New("load: it needs an end, a count or a duration")
	}
	for _, share := range []float64{cfg.PINShare, cfg.DeclineShare, cfg.SilentShare, cfg.DeclineShare + cfg.SilentShare} {
		if share < 0 || share > 1 {
			return nil, fmt.Errorf("load: a share of %g is not within 0 to 1", share)
		}
	}
	if cfg.PINShare > 0 && cfg.Upstream.cfg.ZPK == nil && cfg.Upstream.cfg.Device == nil {
		return nil, errors.New("load: PINs need the upstream's zone PIN key, or its device")
	}
	if cfg.Cards == nil {
		for _, c := range TestCards() {
			if c.Effects == "" {
				cfg.Cards = append(cfg.Cards, c)
			}
		}
	}
	if len(cfg.Cards) == 0 {
		return nil, errors.New("load: it needs a card")
	}
	if cfg.MaxOutstanding == 0 {
		cfg.MaxOutstanding = defaultMaxOutstanding
	}
	if cfg.MaxOutstanding < 0 {
		return nil, errors.New("load: the limit of waiting requests is negative")
	}
	return &Load{cfg: cfg}, nil
}

// Run sends until the end of the load or of ctx, waits for what is then in flight, and returns what it saw. Each request ends by the
// upstream's reply timeout, so Run does too.
func (l *Load) Run(ctx context.Context) (LoadResult, error) {
	l.histogram = hdrhistogram.New(1, slowestRecorded.Microseconds(), 3)
	l.result = LoadResult{Outcomes: map[Outcome]int64{}, Codes: map[string]int64{}}
	started := time.Now()
	var err error
	if l.cfg.Rate > 0 {
		err = l.atRate(ctx, started)
	} else {
		err = l.inFlight(ctx, started)
	}
	l.result.Elapsed = time.Since(started)
	if seconds := l.result.Elapsed.Seconds(); seconds > 0 {
		l.result.Throughput = float64(l.result.Outcomes[Answered]) / seconds
	}
	at := func(percentile float64) time.Duration {
		return time.Duration(l.histogram.ValueAtQuantile(percentile)) * time.Microsecond
	}
	l.result.Latency = Latency{Mean: time.Duration(l.histogram.Mean() * float64(time.Microsecond)), P50: at(50), P90: at(90), P99: at(99),
		P999: at(99.9), Max: time.Duration(l.histogram.Max()) * time.Microsecond}
	return l.result, err
}

// atRate begins each request at its own time.
func (l *Load) atRate(ctx context.Context, started time.Time) error {
	var waiting sync.WaitGroup
	defer waiting.Wait()
	places := make(chan struct{}, l.cfg.MaxOutstanding)
	failed := make(chan error, 1)
	timer := time.NewTimer(0)
	defer timer.Stop()
	for i := 0; l.goesOn(i, started, l.due(i)); i++ {
		due := started.Add(l.due(i))
		if wait := time.Until(due); wait > 0 {
			timer.Reset(wait)
			select {
			case <-timer.C:
			case <-ctx.Done():
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case err := <-failed:
			return err
		case places <- struct{}{}:
		default:
			l.shed()
			continue
		}
		waiting.Go(func() {
			defer func() { <-places }()
			if err := l.one(ctx, i, due); err != nil {
				report(failed, err)
			}
		})
	}
	waiting.Wait()
	return reported(failed)
}

// due is when request i is to begin, from the start.
func (l *Load) due(i int) time.Duration {
	return time.Duration(float64(i) / l.cfg.Rate * float64(time.Second))
}

// goesOn reports whether request i still belongs to the load.
func (l *Load) goesOn(i int, started time.Time, due time.Duration) bool {
	if l.cfg.Rate == 0 {
		due = time.Since(started)
	}
	return (l.cfg.Count == 0 || i < l.cfg.Count) && (l.cfg.Duration == 0 || due < l.cfg.Duration)
}

// inFlight keeps a fixed number of requests under way.
func (l *Load) inFlight(ctx context.Context, started time.Time) error {
	var asking sync.WaitGroup
	failed := make(chan error, 1)
	var mu sync.Mutex
	next := 0
	take := func() (int, bool) {
		mu.Lock()
		defer mu.Unlock()
		next++
		return next - 1, ctx.Err() == nil && len(failed) == 0 && l.goesOn(next-1, started, 0)
	}
	for range l.cfg.InFlight {
		asking.Go(func() {
			for i, more := take(); more; i, more = take() {
				if err := l.one(ctx, i, time.Now()); err != nil {
					report(failed, err)
				}
			}
		})
	}
	asking.Wait()
	return reported(failed)
}

func report(failed chan<- error, err error) {
	select {
	case failed <- err:
	default:
	}
}

func reported(failed <-chan error) error {
	select {
	case err := <-failed:
		return err
	default:
		return nil
	}
}

// one sends request i and records what became of it. The end of the load does not cut its wait short.
func (l *Load) one(ctx context.Context, i int, due time.Time) error {
	entry, err := l.cfg.Upstream.Do(context.WithoutCancel(ctx), l.request(i))
	if err != nil {
		return err
	}
	elapsed := min(time.Since(due), slowestRecorded)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.result.Requests++
	l.result.Outcomes[entry.Outcome]++
	if entry.Outcome == Answered {
		l.result.Codes[entry.ResponseCode]++
	}
	if entry.Outcome != NotSent {
		_ = l.histogram.RecordValue(max(1, elapsed.Microseconds())) // its range holds every elapsed
	}
	return nil
}

func (l *Load) shed() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.result.Shed++
}

// request chooses card, amount and PIN of request i from the seed.
func (l *Load) request(i int) Request {
	chance := rand.New(rand.NewPCG(l.cfg.Seed, uint64(i))) //nolint:gosec // it must be repeatable, and i is not negative
	c := l.cfg.Cards[chance.IntN(len(l.cfg.Cards))]
	r := Request{PAN: c.PAN, Amount: 100 + chance.Int64N(8_000)}
	if chance.Float64() < l.cfg.PINShare {
		r.PIN = c.PIN
	}
	switch kind := chance.Float64(); {
	case kind < l.cfg.DeclineShare:
		r.Amount = loadDeclined
	case kind < l.cfg.DeclineShare+l.cfg.SilentShare:
		r.Amount = loadSilent
	}
	return r
}
