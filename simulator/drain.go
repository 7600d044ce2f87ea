package simulator

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"
)

// DrainConfig says what is measured.
type DrainConfig struct {
	Dir    string // of the stage
	Daemon string // path of the acquirerd binary
	Owed   int    // reversals that are to be owed
	Rate   float64
	Delay  time.Duration // after which the processor answers
	Report io.Writer     // for the progress
}

// DrainResult is how fast a backlog of reversals is paid, and what that costs live traffic.
type DrainResult struct {
	Owed           int     `json:"owed"`
	Seconds        float64 `json:"seconds"`         // from the first link in service until nothing is owed
	PerSecond      float64 `json:"per_second"`      //
	LiveRate       float64 `json:"live_rate"`       // requests a second beside it
	Before, During Latency `json:"-"`               // of the live traffic
	P99Before      float64 `json:"p99_before_ms"`   // without a backlog
	P99During      float64 `json:"p99_during_ms"`   // while it is paid
	Ratio          float64 `json:"ratio"`           // of the two
	Reversed       int64   `json:"reversed"`        // by the processor's ledger
	UnmarkedRepeat int64   `json:"unmarked_repeat"` //
}

const (
	drainReplyTimeout = 20 * time.Second
	drainFilling      = 15 * time.Second // longest wait until all requests have come
	drainBaseline     = 10 * time.Second
	drainLimit        = 5 * time.Minute // then it is given up
)

// Drain lets a processor fall silent until so many reversals are owed to it, brings it back, and measures how long they take beside live
// traffic, whose latency it compares with that before the backlog.
func Drain(ctx context.Context, cfg DrainConfig) (result DrainResult, err error) {
	delay := "delay=" + cfg.Delay.String()
	answering, err := parseRules(delay, "mti=04 "+delay)
	if err != nil {
		return result, err
	}
	silent, err := parseRules("silence")
	if err != nil {
		return result, err
	}
	pans, err := manyCards(cfg.Owed)
	if err != nil {
		return result, err
	}
	cards := make([]Card, len(pans))
	for i, pan := range pans {
		cards[i].PAN = pan
	}
	cast, err := NewCast(ctx, CastConfig{
		Stage: StageConfig{Dir: cfg.Dir, Daemon: cfg.Daemon, ReplyTimeout: drainReplyTimeout, RetryMin: 5 * time.Second, RetryMax: 5 * time.Minute,
			InFlight: cfg.Owed + 1000},
		Processor: ProcessorConfig{Rules: answering},
		Upstream:  UpstreamConfig{Connections: 4, Book: NewBook(-1)}})
	if err != nil {
		return result, err
	}
	defer func() { err = errors.Join(err, cast.Close()) }()
	say := func(format string, args ...any) { _, _ = fmt.Fprintf(cfg.Report, format+"\n", args...) }
	result.LiveRate = cfg.Rate
	live := LoadConfig{Upstream: cast.Upstream, Rate: cfg.Rate, Cards: cards, Seed: 1}

	say("live traffic alone, %v", drainBaseline)
	live.Duration = drainBaseline
	before, err := runLoad(ctx, live)
	if err != nil {
		return result, err
	}

	say("the processor falls silent under %d requests, and goes away", cfg.Owed)
	if err := cast.Processor.SetRules(silent...); err != nil {
		return result, err
	}
	var away sync.WaitGroup
	var errAway error
	already := cast.Processor.Ledger().Snapshot().Counts.Requests
	away.Go(func() {
		for until := time.Now().Add(drainFilling); time.Now().Before(until) && pause(ctx, 100*time.Millisecond); {
			if cast.Processor.Ledger().Snapshot().Counts.Requests >= already+int64(cfg.Owed) {
				break
			}
		}
		errAway = cast.RestartProcessor(ctx, drainReplyTimeout+2*time.Second)
	})
	if _, err := runLoad(ctx, LoadConfig{Upstream: cast.Upstream, InFlight: cfg.Owed, Count: cfg.Owed, Cards: cards, Seed: 2}); err != nil {
		return result, err
	}
	if err := cast.Processor.SetRules(answering...); err != nil {
		return result, err
	}
	owed, err := cast.Stage.owed(ctx)
	if err != nil {
		return result, err
	}
	result.Owed = owed
	away.Wait()
	if errAway != nil {
		return result, errAway
	}

	say("the processor is back: %d reversals are owed", owed)
	loading, stop := context.WithCancel(ctx)
	defer stop()
	var during LoadResult
	var errLive error
	var load sync.WaitGroup
	live.Duration, live.Seed = drainLimit, 3
	for cast.Processor.SignedOn() == 0 && pause(ctx, 10*time.Millisecond) {
	}
	began := time.Now()
	load.Go(func() { during, errLive = runLoad(loading, live) })
	for owed > 0 {
		if !pause(ctx, 100*time.Millisecond) {
			return result, ctx.Err()
		}
		if time.Since(began) > drainLimit {
			return result, fmt.Errorf("%d reversals are still owed after %v", owed, drainLimit)
		}
		if owed, err = cast.Stage.owed(ctx); err != nil {
			return result, err
		}
	}
	result.Seconds = time.Since(began).Seconds()
	stop()
	load.Wait()
	if errLive != nil {
		return result, errLive
	}
	result.Before, result.During = before.Latency, during.Latency
	result.PerSecond = float64(result.Owed) / result.Seconds
	result.P99Before, result.P99During = milliseconds(before.Latency.P99), milliseconds(during.Latency.P99)
	result.Ratio = result.P99During / result.P99Before
	counts := cast.Processor.Ledger().Snapshot().Counts
	result.Reversed, result.UnmarkedRepeat = counts.Reversed, counts.UnmarkedRepeats
	return result, nil
}

func milliseconds(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

func parseRules(texts ...string) (rules []Rule, err error) {
	for _, text := range texts {
		rule, err := ParseRule(text)
		if err != nil {
			return nil, err
		}
		rules = append(rules, rule)
	}
	return rules, nil
}

func runLoad(ctx context.Context, cfg LoadConfig) (LoadResult, error) {
	load, err := NewLoad(cfg)
	if err != nil {
		return LoadResult{}, err
	}
	return load.Run(ctx)
}

// owed asks the daemon's metrics how many reversals and advices are owed.
func (s *Stage) owed(ctx context.Context) (int, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+s.Operations+"/metrics", nil)
	if err != nil {
		return 0, err
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return 0, fmt.Errorf("reading metrics: %w", err)
	}
	defer func() { _ = response.Body.Close() }() // it is only read
	for lines := bufio.NewScanner(response.Body); lines.Scan(); {
		if value, found := strings.CutPrefix(lines.Text(), "acquirerd_owed_messages "); found {
			owed, err := strconv.ParseFloat(value, 64)
			return int(owed), err
		}
	}
	return 0, errors.New("reading metrics: acquirerd_owed_messages is not there")
}
