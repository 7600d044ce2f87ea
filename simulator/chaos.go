package simulator

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"strconv"
	"sync"
	"time"

	"acquirerd/messages"
)

// ChaosConfig says how the daemon is killed.
type ChaosConfig struct {
	Dir    string // of the stage
	Daemon string // path of the acquirerd binary
	Kills  int
	Rate   int       // requests a second, whether the daemon answers or not
	Seed   uint64    // of the moments, the amounts and the processor's faults
	Report io.Writer // for the progress, and for what does not agree
}

// ChaosResult is what came of it. The JSON form is one line.
type ChaosResult struct {
	Kills int `json:"kills"`
	Verdict
	Seconds int `json:"seconds"`
	Rate    int `json:"rate"` // answered requests a second of load, restarts included
}

const (
	chaosReplyTimeout = 500 * time.Millisecond
	chaosInFlight     = 512
	chaosConnections  = 4
	chaosRest         = 90 * time.Second // longest wait for the last reversal
)

// chaosFaults are the processor's own: enough to owe reversals while nothing is killed, too.
func chaosFaults(seed uint64) Faults {
	return Faults{Seed: seed, Lost: .002, Delay: .02, MaxDelay: 800 * time.Millisecond, Silence: .004, Drop: .0005, Duplicate: .002, Garble: .001}
}

// Chaos puts the real daemon under an open-loop load, kills it with SIGKILL at random moments and starts it again, and at the end
// compares the processor's ledger, the upstream's book and the daemon's journal. It says on Report what does not agree.
func Chaos(ctx context.Context, cfg ChaosConfig) (result ChaosResult, err error) {
	cast, err := NewCast(ctx, StageConfig{Dir: cfg.Dir, Daemon: cfg.Daemon, ReplyTimeout: chaosReplyTimeout,
		RetryMin: 200 * time.Millisecond, RetryMax: 2 * time.Second, InFlight: chaosInFlight},
		ProcessorConfig{Faults: chaosFaults(cfg.Seed)},
		UpstreamConfig{Connections: chaosConnections, RetryDelay: 20 * time.Millisecond, ReplyTimeout: 3 * chaosReplyTimeout})
	if err != nil {
		return result, err
	}
	defer func() { err = errors.Join(err, cast.Close()) }()

	began := time.Now()
	if err := killing(ctx, cfg, cast); err != nil {
		return result, err
	}
	result.Kills, result.Seconds = cfg.Kills, int(time.Since(began).Seconds())

	// At rest: nothing breaks any more, the daemon pays what it owes, and stops as it should.
	if err := cast.Processor.SetFaults(Faults{}); err != nil {
		return result, err
	}
	if err := awaitNothingOwed(ctx, cast.Stage); err != nil {
		return result, err
	}
	if err := cast.Stage.Stop(); err != nil {
		return result, err
	}
	accounts, err := readJournal(ctx, cast.Stage)
	if err != nil {
		return result, err
	}
	book := cast.Upstream.Book().Snapshot()
	result.Verdict = Compare(accounts, cast.Processor.Ledger().Snapshot(), book)
	result.Rate = int(book.Counts.Outcomes[Answered]) / max(1, result.Seconds)
	for _, disagreement := range result.Disagreements {
		if _, err := fmt.Fprintln(cfg.Report, "mismatch:", disagreement); err != nil {
			return result, err
		}
	}
	return result, nil
}

// killing runs the load, and kills and restarts the daemon under it.
func killing(ctx context.Context, cfg ChaosConfig, cast *Cast) error {
	chance := rand.New(rand.NewPCG(cfg.Seed, 1)) //nolint:gosec // the moments must be repeatable
	loading, stopLoad := context.WithCancel(ctx)
	var load sync.WaitGroup
	load.Go(func() { chaosLoad(loading, cfg, cast.Upstream) })
	defer load.Wait()
	defer stopLoad()
	for kill := range cfg.Kills {
		if !pause(ctx, time.Duration(200+chance.IntN(1000))*time.Millisecond) {
			return ctx.Err()
		}
		if err := cast.Stage.Kill(); err != nil {
			return fmt.Errorf("killing acquirerd: %w", err)
		}
		if err := cast.Stage.Start(ctx, false); err != nil {
			return fmt.Errorf("after kill %d: %w", kill+1, err)
		}
		counts := cast.Upstream.Book().Counts()
		if _, err := fmt.Fprintf(cfg.Report, "kill %d of %d: %d requests, %d approved\n", kill+1, cfg.Kills, counts.Requests, counts.Approved); err != nil {
			return err
		}
	}
	pause(ctx, time.Second)
	return ctx.Err()
}

// chaosLoad sends at the rate, whatever becomes of what it sent. What it sends while nobody listens is in the book as not sent.
func chaosLoad(ctx context.Context, cfg ChaosConfig, upstream *Upstream) {
	chance := rand.New(rand.NewPCG(cfg.Seed, 2)) //nolint:gosec // the amounts must be repeatable
	pin, cards := defaultPIN, TestCards()[3:5]
	var asking sync.WaitGroup
	defer asking.Wait()
	places := make(chan struct{}, 4*chaosInFlight)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	owed := 0.0
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		for owed += float64(cfg.Rate) * .005; owed >= 1; owed-- {
			request := Request{PAN: cards[chance.IntN(len(cards))].PAN, Amount: 1000 + int64(chance.IntN(5000)),
				Terminal: "KILL" + strconv.Itoa(1000+chance.IntN(9000))}
			if chance.IntN(4) == 0 {
				request.PIN = pin
			}
			if chance.IntN(10) == 0 {
				request.Amount = 9051 // declined with 51
			}
			if chance.IntN(3) == 0 {
				request.MTI = messages.FinancialRequest
			}
			select {
			case places <- struct{}{}:
			default:
				continue // the machine does not take more
			}
			asking.Go(func() {
				defer func() { <-places }()
				_, _ = upstream.Do(context.WithoutCancel(ctx), request)
			})
		}
	}
}

func pause(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// awaitNothingOwed waits until the daemon has paid all reversals.
func awaitNothingOwed(ctx context.Context, stage *Stage) error {
	ctx, cancel := context.WithTimeout(ctx, chaosRest)
	defer cancel()
	for {
		out, err := stage.Command(ctx, "journal", "owed", "--state", "owed", "--limit", "1", "--output", "json")
		if err != nil {
			return err
		}
		var rows []json.RawMessage
		if err := json.Unmarshal(out, &rows); err != nil {
			return fmt.Errorf("reading what is owed: %w", err)
		}
		if len(rows) == 0 {
			return nil
		}
		if !pause(ctx, 200*time.Millisecond) {
			return fmt.Errorf("reversals are still owed after %v", chaosRest)
		}
	}
}

// readJournal reads all transactions by the daemon's own command, page by page.
func readJournal(ctx context.Context, stage *Stage) ([]Account, error) {
	var all []Account
	before := int64(0)
	for {
		out, err := stage.Command(ctx, "journal", "list", "--limit", "50000", "--before", strconv.FormatInt(before, 10), "--output", "json")
		if err != nil {
			return nil, err
		}
		var page []Account
		if err := json.Unmarshal(out, &page); err != nil {
			return nil, fmt.Errorf("reading the journal: %w", err)
		}
		if len(page) == 0 {
			return all, nil
		}
		all, before = append(all, page...), page[len(page)-1].ID
	}
}
