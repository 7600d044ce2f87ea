package simulator

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"acquirerd/card"
	"acquirerd/messages"
)

// ChaosConfig says how the daemon is killed.
type ChaosConfig struct {
	Dir    string // of the stage
	Daemon string // path of the acquirerd binary
	Kills  int
	Rate   int       // transactions a second, whether the daemon answers or not
	Seed   uint64    // of the moments, the amounts, the processor's faults and the network's
	Report io.Writer // for the progress, and for what does not agree
}

// ChaosResult is what came of it. The JSON form is one line.
type ChaosResult struct {
	Kills int `json:"kills"`
	Verdict
	Requests          int    `json:"requests"`      // transactions that the upstream began
	Unsent            int    `json:"unsent"`        // of which nothing was sent: the upstream had no connection
	Shed              int    `json:"shed"`          // that were due and not begun, because too many were under way: the rate was not reached
	Seconds           int    `json:"seconds"`       // of load
	Rate              int    `json:"rate"`          // transactions begun a second of load, restarts included
	RateRecorded      int    `json:"rate_recorded"` // that the daemon took; it takes none while it is dead
	Cuts              int    `json:"cuts"`          // connections that the network cut
	ProcessorRestarts int    `json:"processor_restarts"`
	DiskFills         int    `json:"disk_fills"`
	Disk              string `json:"disk"` // how the disk was filled: "full", or "limit" where nothing may be mounted
	Seed              uint64 `json:"seed"`
}

const (
	chaosReplyTimeout = 500 * time.Millisecond
	chaosEchoInterval = 500 * time.Millisecond
	chaosNotFound     = 2500 * time.Millisecond // longer than the network holds anything up, and shorter than a calm spell
	chaosInFlight     = 512
	chaosConnections  = 4
	chaosCards        = 5_000
	chaosUnderWay     = 20_000           // most transactions at a time
	chaosRest         = 90 * time.Second // longest wait for the last answer and the last reversal
	chaosDisk         = 64 << 20         // bytes; the journal of the first seconds is a tenth of it
	chaosDiskEnds     = 20 * time.Second // longest wait for the daemon's end on a full disk
)

// What is drawn from the seed, each from a source of its own, so that the draws of one do not depend on the pace of another.
const (
	sourceKills = iota + 1
	sourceLoad
	sourceNetwork
	sourceProcessor
)

// chaosFaults are the processor's own: enough to owe reversals while nothing is killed, too.
func chaosFaults(seed uint64) Faults {
	return Faults{Seed: seed, Lost: .002, Delay: .02, MaxDelay: 800 * time.Millisecond, Silence: .004, Drop: .0005, Duplicate: .002, Garble: .001}
}

// A chaos is one run.
type chaos struct {
	cfg      ChaosConfig
	cast     *Cast
	duty     *Duty
	cards    []card.PAN
	result   ChaosResult
	lasted   time.Duration // the load
	underWay sync.WaitGroup
	failed   chan error // capacity 1: why a transaction could not be made
}

// Chaos puts the real daemon under an open-loop load and does to it what happens to daemons: its disk is filled, it is killed with SIGKILL
// at random moments and started again, its connections are cut, torn, stalled, slowed and left half-open, and the processor is restarted.
// Then it lets everything come to rest, and compares the processor's ledger, the upstream's book and the daemon's journal. It says on
// Report what does not agree.
func Chaos(ctx context.Context, cfg ChaosConfig) (result ChaosResult, err error) {
	c := &chaos{cfg: cfg, result: ChaosResult{Seed: cfg.Seed}, failed: make(chan error, 1)}
	c.cast, err = NewCast(ctx, CastConfig{Stage: StageConfig{Dir: cfg.Dir, Daemon: cfg.Daemon, ReplyTimeout: chaosReplyTimeout,
		RetryMin: 200 * time.Millisecond, RetryMax: time.Second, NotFound: chaosNotFound, EchoInterval: chaosEchoInterval, InFlight: chaosInFlight},
		Processor: ProcessorConfig{Faults: chaosFaults(cfg.Seed)},
		Upstream:  UpstreamConfig{Connections: chaosConnections, RetryDelay: 20 * time.Millisecond, ReplyTimeout: 2 * chaosReplyTimeout},
		Proxied:   true, Seed: cfg.Seed})
	if err != nil {
		return result, err
	}
	defer func() { err = errors.Join(err, c.cast.Close()) }()
	if c.duty, err = NewDuty(DutyConfig{Upstream: c.cast.Upstream, Seed: cfg.Seed, RepeatShare: .5, CancelShare: .03, PartialShare: .02,
		AdviceShare: .05, RequestShare: .5, ResendShare: .01, Pause: chaosReplyTimeout / 2}); err != nil {
		return result, err
	}
	if c.cards, err = manyCards(chaosCards); err != nil {
		return result, err
	}
	if err := c.run(ctx); err != nil {
		return c.result, err
	}
	return c.result, c.compare(ctx)
}

// manyCards makes so many cards of the reserved 4000 00 kind. A few would not do: the daemon reverses and advises one after the other for
// each card, and what the processor does not find is sent for seconds.
func manyCards(n int) (cards []card.PAN, err error) {
	for i := range n {
		for digit := range 10 {
			pan, err := card.ParsePAN(fmt.Sprintf("4000001%08d%d", i, digit))
			if err != nil {
				return nil, err
			}
			if pan.LuhnValid() {
				cards = append(cards, pan)
			}
		}
	}
	return cards, nil
}

// run is the load and what happens under it, and the way to rest.
func (c *chaos) run(ctx context.Context) error {
	bearing, abandon := context.WithCancel(ctx) // of the transactions, which outlast the load
	defer c.underWay.Wait()
	defer abandon()
	loading, stopLoad := context.WithCancel(ctx)
	var load sync.WaitGroup
	defer load.Wait()
	defer stopLoad()
	load.Go(func() { c.load(loading, bearing) })

	if err := c.fillDisk(ctx); err != nil {
		return fmt.Errorf("with a full disk: %w", err)
	}
	if err := c.storm(ctx); err != nil {
		return err
	}
	pause(ctx, time.Second)
	stopLoad()
	load.Wait()

	// At rest: nothing breaks any more, the upstream does its duty, the daemon pays what it owes, and stops as it should.
	if err := c.cast.Processor.SetFaults(Faults{}); err != nil {
		return err
	}
	patience := time.AfterFunc(chaosRest, abandon) // what is open then, the comparison finds
	defer patience.Stop()
	c.underWay.Wait()
	if err := reported(c.failed); err != nil {
		return err
	}
	if err := c.cast.Stage.AwaitNothingOwed(ctx); err != nil {
		return err
	}
	return c.cast.Stage.Stop()
}

// load begins transactions at the rate, whatever becomes of those before. What it begins while nobody listens is in the book as not sent.
func (c *chaos) load(ctx, bearing context.Context) {
	chance := c.source(sourceLoad)
	places := make(chan struct{}, chaosUnderWay)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	began, due := time.Now(), 0
	for {
		select {
		case <-ctx.Done():
			c.lasted = time.Since(began)
			return
		case <-tick.C:
		}
		for ; due < int(time.Since(began).Seconds()*float64(c.cfg.Rate)); due++ {
			request := c.request(chance)
			select {
			case places <- struct{}{}:
			default:
				c.result.Shed++
				continue
			}
			c.result.Requests++
			c.underWay.Go(func() {
				defer func() { <-places }()
				if _, err := c.duty.Do(bearing, request); err != nil && bearing.Err() == nil {
					report(c.failed, err)
				}
			})
		}
	}
}

// request draws one transaction.
func (c *chaos) request(chance *rand.Rand) Request {
	request := Request{PAN: c.cards[chance.IntN(len(c.cards))], Amount: 1000 + int64(chance.IntN(5000)),
		Terminal: "KILL" + strconv.Itoa(1000+chance.IntN(9000))}
	if chance.IntN(10) == 0 {
		request.PIN = defaultPIN
	}
	if chance.IntN(10) == 0 {
		request.Amount = loadDeclined
	}
	if chance.IntN(3) == 0 {
		request.MTI = messages.FinancialRequest
	}
	return request
}

func (c *chaos) source(of uint64) *rand.Rand {
	return rand.New(rand.NewPCG(c.cfg.Seed, of)) //nolint:gosec // it must be repeatable
}

// within draws a time.
func within(chance *rand.Rand, shortest, longest time.Duration) time.Duration {
	return shortest + time.Duration(chance.Int64N(int64(longest-shortest)))
}

// storm kills the daemon while network and processor trouble it.
func (c *chaos) storm(ctx context.Context) error {
	storm, calm := context.WithCancel(ctx)
	defer calm()
	var group errgroup.Group
	group.Go(func() error { c.network(storm); return nil })
	group.Go(func() error { return c.processor(storm) })
	group.Go(func() error {
		defer calm()
		return c.kill(ctx)
	})
	err := group.Wait()
	for _, proxy := range c.proxies() {
		c.result.Cuts += int(proxy.Counts().Cuts)
	}
	return err
}

// kill kills and restarts the daemon: mostly while it serves, sometimes while it starts.
func (c *chaos) kill(ctx context.Context) error {
	chance, stage := c.source(sourceKills), c.cast.Stage
	reported := 0
	killAfter := func(shortest, longest time.Duration) error {
		if !pause(ctx, within(chance, shortest, longest)) {
			return ctx.Err()
		}
		if err := stage.Kill(); err != nil {
			return fmt.Errorf("kill %d: %w", c.result.Kills+1, err)
		}
		c.result.Kills++
		return nil
	}
	for c.result.Kills < c.cfg.Kills {
		shortest, longest := 200*time.Millisecond, 1200*time.Millisecond
		if chance.IntN(10) == 0 { // a calm spell, for what a restart would cut short: late answers, missed echoes, originals that are not found
			shortest, longest = 3500*time.Millisecond, 6*time.Second
		}
		if err := killAfter(shortest, longest); err != nil {
			return err
		}
		if chance.IntN(8) == 0 && c.result.Kills < c.cfg.Kills {
			if err := stage.Launch(); err != nil {
				return err
			}
			if err := killAfter(0, 300*time.Millisecond); err != nil {
				return err
			}
		}
		if err := stage.Start(ctx, false); err != nil {
			return fmt.Errorf("after kill %d: %w", c.result.Kills, err)
		}
		if step := max(1, c.cfg.Kills/20); c.result.Kills/step > reported {
			reported = c.result.Kills / step
			counts := c.cast.Upstream.Book().Counts()
			c.tell("kill %d of %d: %d transactions, %d approved", c.result.Kills, c.cfg.Kills, counts.Requests, counts.Approved)
		}
	}
	return nil
}

func (c *chaos) proxies() []*Proxy {
	return slices.Concat(c.cast.LinkProxies, []*Proxy{c.cast.DoorProxy})
}

// network troubles the connections of one proxy after the other.
func (c *chaos) network(ctx context.Context) {
	chance := c.source(sourceNetwork)
	proxies := c.proxies()
	for pause(ctx, within(chance, 50*time.Millisecond, 600*time.Millisecond)) {
		proxy, flow := proxies[chance.IntN(len(proxies))], Flow(chance.IntN(2))
		cut, d := Cut(chance.IntN(int(CutTorn)+1)), within(chance, 50*time.Millisecond, 900*time.Millisecond)
		switch kind := chance.IntN(20); {
		case kind < 8:
			proxy.CutOne(cut)
		case kind < 10:
			proxy.CutAll(cut)
		case kind < 13:
			proxy.Stall(flow, 2*d) // longer than some upstream waits, so that answers come late
		case kind < 16:
			proxy.Slow(30*time.Millisecond, d)
		case kind < 18:
			proxy.HalfOpenOne(flow, 2*d)
		default:
			proxy.Refuse(d / 2)
		}
	}
}

// processor restarts the processor now and then.
func (c *chaos) processor(ctx context.Context) error {
	chance := c.source(sourceProcessor)
	for wait := within(chance, time.Second, 2*time.Second); pause(ctx, wait); wait = within(chance, 4*time.Second, 16*time.Second) {
		if err := c.cast.RestartProcessor(ctx, within(chance, 200*time.Millisecond, 2*time.Second)); err != nil {
			return err
		}
		c.result.ProcessorRestarts++
	}
	return nil
}

// fillDisk has the daemon record on a small disk, and fills that: it must end by itself, with one clear line and a code that is not 0,
// start no more while the disk is full, and go on when there is space again.
//
// The journal is on the small disk for this alone. A tmpfs knows no fsync; that loses nothing when a process is killed, but the rest of
// the run is to cost what a real disk costs. It is done first, while the journal is small: so the disk may be too, whatever the number
// of kills, and moving the journal does not interrupt the load for long.
func (c *chaos) fillDisk(ctx context.Context) (err error) {
	stage := c.cast.Stage
	if !pause(ctx, time.Second) { // something to move
		return ctx.Err()
	}
	disk, err := MountDisk(filepath.Join(stage.Dir, diskFolder), chaosDisk)
	if errors.Is(err, ErrNoDisk) {
		c.tell("no disk of its own can be filled, so the daemon's files are limited instead: %v", err)
		return c.limitDisk(ctx)
	}
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, disk.Unmount()) }()
	if err := errors.Join(stage.Stop(), stage.MoveJournal(disk.Dir)); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, stage.Kill(), stage.MoveJournal(stage.Dir)) // for who looks into it
		}
	}()
	if err := stage.Start(ctx, true); err != nil {
		return err
	}
	pause(ctx, time.Second)
	from := stage.logSize()
	if err := disk.Fill(); err != nil {
		return err
	}
	if err := c.awaitClearEnd(ctx, from); err != nil {
		return err
	}
	from = stage.logSize()
	if err := stage.Launch(); err != nil {
		return err
	}
	if err := c.awaitClearEnd(ctx, from); err != nil {
		return fmt.Errorf("started on it: %w", err)
	}
	if err := errors.Join(disk.Free(), stage.Start(ctx, true)); err != nil {
		return err
	}
	c.result.DiskFills, c.result.Disk = 1, "full"
	pause(ctx, time.Second)
	if err := errors.Join(stage.Stop(), stage.MoveJournal(stage.Dir)); err != nil {
		return err
	}
	return stage.Start(ctx, true)
}

// limitDisk is fillDisk by a limit on the daemon's files. Its log goes through a pipe meanwhile, which the limit does not concern.
func (c *chaos) limitDisk(ctx context.Context) error {
	stage := c.cast.Stage
	if err := stage.Stop(); err != nil {
		return err
	}
	stage.piped = true
	err := stage.Start(ctx, true)
	stage.piped = false
	if err != nil {
		return err
	}
	pause(ctx, time.Second)
	from := stage.logSize()
	if err := limitFiles(stage.PID(), 1); err != nil {
		return err
	}
	if err := c.awaitClearEnd(ctx, from); err != nil {
		return err
	}
	c.result.DiskFills, c.result.Disk = 1, "limit"
	return stage.Start(ctx, true)
}

// awaitClearEnd waits for the end of a daemon that cannot record, and checks how it ends.
func (c *chaos) awaitClearEnd(ctx context.Context, from int64) error {
	ctx, cancel := context.WithTimeout(ctx, chaosDiskEnds)
	defer cancel()
	began := time.Now()
	code, err := c.cast.Stage.AwaitEnd(ctx)
	if err != nil {
		return err
	}
	lines, err := c.cast.Stage.logged(from, func(line string) bool { return !strings.HasPrefix(line, "{") })
	if err != nil {
		return err
	}
	if code <= 0 || len(lines) != 1 || !strings.HasPrefix(lines[0], "acquirerd: ") {
		return fmt.Errorf("acquirerd ended with code %d and the lines %q, want another than 0 and one line", code, lines)
	}
	c.tell("the disk is full, and after %v the daemon ends with code %d: %s", time.Since(began).Round(time.Millisecond), code, lines[0])
	return nil
}

func (c *chaos) tell(format string, args ...any) {
	_, _ = fmt.Fprintf(c.cfg.Report, format+"\n", args...)
}

// compare puts the three accounts beside each other.
func (c *chaos) compare(ctx context.Context) error {
	accounts, err := c.cast.Stage.Accounts(ctx)
	if err != nil {
		return err
	}
	book := c.cast.Upstream.Book().Snapshot()
	c.result.Verdict = Compare(accounts, c.cast.Processor.Ledger().Snapshot(), book)
	c.result.Unsent = int(book.Counts.Outcomes[NotSent])
	perSecond := func(n int) int { return int(math.Round(float64(n) / c.lasted.Seconds())) }
	c.result.Seconds, c.result.Rate, c.result.RateRecorded = int(c.lasted.Seconds()), perSecond(c.result.Requests), perSecond(c.result.Transactions)
	for _, disagreement := range c.result.Disagreements {
		c.tell("mismatch: %s", disagreement)
	}
	if lines := c.result.Transcript(); len(lines) > 0 {
		c.tell("the first mismatch:\n%s", strings.Join(lines, "\n"))
		return c.daemonSays(c.result.Disagreements[0])
	}
	return nil
}

// namedNumbers are the STANs that a disagreement names, of either side.
var namedNumbers = regexp.MustCompile(`"(?:upstream_)?stan":"([0-9]{6})"`)

// daemonSays shows the lines of the daemon's log that hold the numbers of a disagreement. Other transactions may have had the same.
func (c *chaos) daemonSays(disagreement string) error {
	var numbers []string
	for _, named := range namedNumbers.FindAllStringSubmatch(disagreement, 4) {
		numbers = append(numbers, `"`+named[1]+`"`)
	}
	lines, err := c.cast.Stage.logged(0, func(line string) bool {
		return slices.ContainsFunc(numbers, func(number string) bool { return strings.Contains(line, number) })
	})
	c.tell("%s", strings.Join(lines, "\n"))
	return err
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

// AwaitNothingOwed waits until the daemon has paid all reversals and advices.
func (s *Stage) AwaitNothingOwed(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, chaosRest)
	defer cancel()
	for {
		out, err := s.Command(ctx, "journal", "owed", "--state", "owed", "--limit", "1", "--output", "json")
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
			return fmt.Errorf("something is still owed after %v: %s", chaosRest, rows[0])
		}
	}
}

// Accounts reads all transactions by the daemon's own command, page by page.
func (s *Stage) Accounts(ctx context.Context) ([]Account, error) {
	var all []Account
	before := int64(0)
	for {
		out, err := s.Command(ctx, "journal", "list", "--limit", "50000", "--before", strconv.FormatInt(before, 10), "--output", "json")
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
