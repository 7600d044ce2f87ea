package acquirerd_test

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"acquirerd/acquirer"
	"acquirerd/card"
	"acquirerd/conn"
	"acquirerd/hsm"
	"acquirerd/journal"
	"acquirerd/messages"
	"acquirerd/simulator"
	"acquirerd/specs"
	"acquirerd/upstream"
)

var (
	seeds = flag.Int("seeds", 20, "how many seeds the simulation runs")
	seed  = flag.Uint64("seed", 0, "run the simulation with this seed only")
)

// TestSimulation runs the real doors, switch, journal, forwarder and links between several upstreams that do their duty and a simulated
// processor that loses, delays, duplicates, reorders and garbles, cuts answers at each byte, stops reading, demands, drops links and is restarted.
// HSM and journal fail; the daemon stops dead at random moments and recovers. All of it in fake time. At rest, the processor's ledger, the
// upstreams' book and the journal must agree: the holds are exactly the approvals that the upstreams know.
//
//	go test -run Simulation . -seed 7
func TestSimulation(t *testing.T) {
	first, last := uint64(1), uint64(*seeds)
	if *seed != 0 {
		first, last = *seed, *seed
	}
	var total simulated
	for s := first; s <= last; s++ {
		t.Run(fmt.Sprintf("seed %d", s), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { total.add(simulate(t, s)) })
			if t.Failed() {
				t.Logf("to repeat: go test -run Simulation . -seed %d", s)
			}
		})
		if *seeds > shownSeeds && (s%shownSeeds == 0 || s == last) {
			fmt.Printf("%d of %d seeds: %s\n", s, last, total.text())
		}
	}
	t.Logf("%s", total.text())
	// A single seed may do without; a few must not.
	if total.Seeds >= 10 && (total.Demands == 0 || total.WrongMACs == 0) {
		t.Error("no demand of the processor was answered, or no answer of it had a wrong MAC")
	}
}

// shownSeeds is after how many seeds a long run says how far it is.
const shownSeeds = 25

// A simulated is what some seeds came to.
type simulated struct {
	Seeds     int   `json:"seeds"`
	Restarts  int   `json:"restarts"`   // after the daemon stopped dead, or by itself because its journal failed
	Demands   int64 `json:"demands"`    // of the processor that were answered
	WrongMACs int64 `json:"wrong_macs"` // of its answers
	simulator.Verdict
}

func (s *simulated) add(one simulated) {
	s.Seeds++
	s.Restarts += one.Restarts
	s.Demands += one.Demands
	s.WrongMACs += one.WrongMACs
	for _, count := range []struct{ to, from *int }{
		{&s.Transactions, &one.Transactions}, {&s.Approved, &one.Approved}, {&s.Declined, &one.Declined}, {&s.NotSent, &one.NotSent},
		{&s.Unknown, &one.Unknown}, {&s.Advices, &one.Advices}, {&s.Reversed, &one.Reversed}, {&s.Partial, &one.Partial},
		{&s.Parked, &one.Parked}, {&s.Unanswered, &one.Unanswered}, {&s.Late, &one.Late},
		{&s.DuplicatesAnswered, &one.DuplicatesAnswered}, {&s.Mismatches, &one.Mismatches},
	} {
		*count.to += *count.from
	}
}

func (s *simulated) text() string {
	text, err := json.Marshal(s)
	if err != nil {
		return err.Error()
	}
	return string(text)
}

const (
	simulatedUpstreams = 3
	simulatedRequests  = 150 // of each upstream
	simulatedCrashes   = 4
)

// A station is the daemon without its process: every room wired as serve wires it, with a software vault and pipes for links.
type station struct {
	t    *testing.T
	path string
	macs *simulator.MACKey // of both sides of the daemon; nil: their messages carry none

	mu       sync.Mutex
	chance   *rand.Rand                         // guarded by mu
	links    map[string]*simulator.PipeListener // of the processor, by address; guarded by mu
	doors    []*simulator.PipeListener          // of the running daemon, by upstream; guarded by mu
	clients  []net.Conn                         // of the upstreams; guarded by mu
	calm     bool                               // HSM and journal do not fail any more; guarded by mu
	restarts int                                // guarded by mu

	running  chan struct{} // capacity 1: held by whoever starts or stops the daemon
	stop     func()        // guarded by running
	stopDead func()        // guarded by running
	failed   chan struct{} // capacity 1: a part of the daemon has ended by itself
}

// chances draws for all that is left to chance: [0, n).
func (s *station) chances(n int) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.chance.IntN(n)
}

// strikes reports whether something fails that fails once in n times.
func (s *station) strikes(n int) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return !s.calm && s.chance.IntN(n) == 0
}

func simulate(t *testing.T, seed uint64) simulated {
	s := &station{t: t, path: filepath.Join(t.TempDir(), "journal.db"), chance: rand.New(rand.NewPCG(seed, 0)),
		running: make(chan struct{}, 1), failed: make(chan struct{}, 1)}
	faults := simulator.Faults{Seed: seed,
		Lost: .02, Late: .01, Delay: .1, MaxDelay: 25 * time.Second, Silence: .03, Drop: .01, Close: .01, Duplicate: .03, Reorder: .05,
		Garble: .02, NoSTAN: .01, OtherLink: .05, CutAnswer: .01, Stall: .005, Demand: .02}
	if seed%2 == 0 {
		var err error
		if s.macs, err = simulator.NewMACKey(simulator.MACHMAC, 0, make([]byte, 32)); err != nil {
			t.Fatal(err)
		}
		faults.BadMAC = .02
	}
	if err := journal.Create(s.path, "simulated"); err != nil {
		t.Fatal(err)
	}
	processor, err := simulator.NewProcessor(simulator.ProcessorConfig{Codec: s.codec("iso87-ascii"), Faults: faults, MAC: s.softMAC()})
	if err != nil {
		t.Fatal(err)
	}
	outside, end := context.WithCancel(t.Context())
	var living, asking sync.WaitGroup
	living.Go(func() { s.host(outside, processor) })
	s.start()
	watching, unwatch := context.WithCancel(t.Context())
	var watch sync.WaitGroup
	watch.Go(func() { s.watch(watching) })

	book := simulator.NewBook(0)
	for u := range simulatedUpstreams {
		client, err := simulator.NewUpstream(simulator.UpstreamConfig{Codec: s.codec("iso87-binary"), Book: book, Connections: 2, MAC: s.softMAC(),
			Dial: func(ctx context.Context) (net.Conn, error) { return s.dial(ctx, u) }, ReplyTimeout: 40 * time.Second})
		if err != nil {
			t.Fatal(err)
		}
		duty, err := simulator.NewDuty(simulator.DutyConfig{Upstream: client, Seed: seed, RepeatShare: .5, CancelShare: .1, PartialShare: .1,
			AdviceShare: .2, RequestShare: .3, ResendShare: .1, Pause: 2 * time.Second})
		if err != nil {
			t.Fatal(err)
		}
		living.Go(func() { _ = client.Run(outside) })
		asking.Go(func() { s.trade(outside, u, duty) })
	}
	for range simulatedCrashes {
		<-time.After(time.Duration(s.chances(60_000)) * time.Millisecond)
		s.restart(true)
		processor.DropLinks()
		s.cut()
	}
	<-time.After(time.Minute)

	// Nothing breaks any more; the upstreams end what they owe; what is owed is paid; one restart more, for what is still open.
	if err := processor.SetFaults(simulator.Faults{}); err != nil {
		t.Error(err)
	}
	s.mu.Lock()
	s.calm = true
	s.mu.Unlock()
	asking.Wait()
	<-time.After(10 * time.Minute)
	s.restart(false)
	<-time.After(20 * time.Minute)
	synctest.Wait()
	unwatch()
	watch.Wait()
	s.stop()
	end()
	living.Wait()
	result := simulated{Restarts: s.restarts, Verdict: simulator.Compare(s.accounts(), processor.Ledger().Snapshot(), book.Snapshot())}
	for _, disagreement := range result.Disagreements {
		t.Error(disagreement)
	}
	for _, line := range result.Transcript() {
		t.Log(line)
	}
	counts := processor.Ledger().Counts()
	result.Demands, result.WrongMACs = counts.DemandsAnswered, counts.Effects["wrong_mac"]
	if counts.WrongMACs != 0 {
		t.Errorf("%d of our messages had a wrong MAC", counts.WrongMACs)
	}
	if result.Transactions < simulatedUpstreams*simulatedRequests/5 || result.Approved == 0 || result.Unknown == 0 || result.Reversed == 0 ||
		result.Advices == 0 || result.DuplicatesAnswered == 0 {
		t.Errorf("the simulation did not meet what it is for: %s", (&result).text())
	}
	return result
}

// trade is one upstream's day.
func (s *station) trade(ctx context.Context, number int, duty *simulator.Duty) {
	cards := simulator.TestCards()[3:7]
	var asking sync.WaitGroup
	defer asking.Wait()
	for n := range simulatedRequests {
		<-time.After(time.Duration(s.chances(1500)) * time.Millisecond)
		request := simulator.Request{PAN: cards[s.chances(len(cards))].PAN, Amount: int64(100 + s.chances(5000)),
			Terminal: fmt.Sprintf("S%d%06d", number, n)}
		if s.chances(5) == 0 {
			request.Amount = 9051
		}
		if s.chances(3) == 0 {
			request.MTI = messages.FinancialRequest
		}
		asking.Go(func() {
			if _, err := duty.Do(ctx, request); err != nil {
				s.t.Error(err)
			}
		})
	}
}

// host keeps the processor's host, and restarts it now and then with its ledger.
func (s *station) host(ctx context.Context, processor *simulator.Processor) {
	for ctx.Err() == nil {
		a, b := simulator.NewPipeListener(), simulator.NewPipeListener()
		s.mu.Lock()
		s.links = map[string]*simulator.PipeListener{"a:1": a, "b:1": b}
		s.mu.Unlock()
		serving, stop := context.WithCancel(ctx)
		timer := time.AfterFunc(time.Duration(30+s.chances(120))*time.Second, func() {
			if s.strikes(2) {
				stop()
			}
		})
		_ = processor.Serve(serving, a, b)
		timer.Stop()
		stop()
		select {
		case <-time.After(time.Duration(s.chances(10_000)) * time.Millisecond):
		case <-ctx.Done():
		}
	}
}

// dialLink connects the daemon to the processor.
func (s *station) dialLink(ctx context.Context, address string) (net.Conn, error) {
	s.mu.Lock()
	link := s.links[address]
	s.mu.Unlock()
	if link == nil {
		return nil, net.ErrClosed
	}
	return link.Dial(ctx)
}

// dial connects an upstream to the daemon that runs now.
func (s *station) dial(ctx context.Context, upstream int) (net.Conn, error) {
	s.mu.Lock()
	door := s.doors[upstream]
	s.mu.Unlock()
	connection, err := door.Dial(ctx)
	if err == nil {
		s.mu.Lock()
		s.clients = append(s.clients, connection)
		s.mu.Unlock()
	}
	return connection, err
}

// cut closes the upstreams' connections, whatever is on them.
func (s *station) cut() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, connection := range s.clients {
		_ = connection.Close()
	}
	s.clients = nil
}

// watch starts the daemon again when a part of it has ended by itself, as a supervisor of processes would.
func (s *station) watch(ctx context.Context) {
	for {
		select {
		case <-s.failed:
			s.restart(true)
		case <-ctx.Done():
			return
		}
	}
}

// restart stops the daemon, dead or in order, and starts it after a while.
func (s *station) restart(dead bool) {
	s.running <- struct{}{}
	defer func() { <-s.running }()
	if dead {
		s.stopDead()
		<-time.After(time.Duration(s.chances(3000)) * time.Millisecond)
	} else {
		s.stop()
	}
	select {
	case <-s.failed: // of the one that has ended
	default:
	}
	s.start()
	s.mu.Lock()
	s.restarts++
	s.mu.Unlock()
}

// start starts the daemon. A start whose journal fails in the recovery ends, and there is another one.
func (s *station) start() {
	for !s.open() {
		<-time.After(time.Second)
	}
}

// open opens the journal, recovers and serves until stop or stopDead. It is false if the journal has failed meanwhile.
func (s *station) open() bool {
	t := s.t
	log, registry := slog.New(slog.DiscardHandler), prometheus.NewRegistry()
	record, err := journal.Open(journal.Config{Path: s.path, Station: "simulated", BlockSize: 50}, log, registry)
	if err != nil {
		t.Fatal(err)
	}
	endpoint, err := conn.New(conn.Config{Name: "processor", Codec: s.codec("iso87-ascii"), Links: conn.Dialled("a:1", "b:1"), MAC: s.frailMAC(), MACSuspension: 10 * time.Second,
		ReplyTimeout: 10 * time.Second, WriteTimeout: 2 * time.Second, DialTimeout: 2 * time.Second, SignOnTimeout: 5 * time.Second,
		EchoInterval: 15 * time.Second, EchoTimeout: 5 * time.Second, EchoMisses: 2, BackoffMin: 50 * time.Millisecond, BackoffMax: 2 * time.Second,
		InFlight: 256, Dial: s.dialLink}, log, registry)
	if err != nil {
		t.Fatal(err)
	}
	frail := &frailRecorder{Recorder: record, station: s}
	desk, err := acquirer.New(acquirer.Config{Journal: frail, Vault: &softVault{s}, InFlight: 256,
		Endpoints: []*acquirer.Endpoint{acquirer.NewEndpoint("processor", "", s.codec("iso87-ascii"), endpoint)},
		Routes:    []acquirer.Route{{Endpoint: "processor"}},
		Forward: acquirer.Forwarding{RetryMin: time.Second, RetryMax: 30 * time.Second, ParkAfter: 24 * time.Hour,
			NotFoundFinal: 100 * time.Second, Poll: time.Second, Parallel: 8, Rate: 100}}, log, registry)
	if err != nil {
		t.Fatal(err)
	}
	var writing, linking, forwarding part
	servings := make([]part, simulatedUpstreams)
	listeners := make([]*simulator.PipeListener, simulatedUpstreams)
	writing.begin(record.Run, nil)
	if _, err := desk.Recover(t.Context()); err != nil {
		if !frail.broken.Load() {
			t.Error(err)
		}
		if err := errors.Join(writing.end(), record.Close()); err != nil {
			t.Error(err)
		}
		return false
	}
	linking.begin(func(ctx context.Context) error {
		return endpoint.Run(ctx, func(ctx context.Context, m conn.Unasked) { desk.Inbound(ctx, "processor", m) })
	}, nil)
	forwarding.begin(desk.Run, s.failed)
	for u := range servings {
		door, err := upstream.New(upstream.Config{Upstream: &acquirer.Upstream{Name: fmt.Sprint("pos-", u), Codec: s.codec("iso87-binary")}, MAC: s.frailMAC(),
			InFlight: 128, Connections: 8, Budget: 30 * time.Second, IdleTimeout: time.Hour, FrameTimeout: 5 * time.Second,
			WriteTimeout: 5 * time.Second}, desk, log, registry)
		if err != nil {
			t.Fatal(err)
		}
		listeners[u] = simulator.NewPipeListener()
		servings[u].begin(func(ctx context.Context) error { return door.Serve(ctx, listeners[u]) }, s.failed)
	}
	s.mu.Lock()
	s.doors = listeners
	s.mu.Unlock()
	ending := func(parts ...*part) (err error) {
		for _, p := range parts {
			err = errors.Join(err, p.end())
		}
		return err
	}
	doors := func() (err error) {
		for u := range servings {
			err = errors.Join(err, servings[u].end())
		}
		return err
	}
	s.stop = func() {
		if err := errors.Join(doors(), ending(&forwarding, &linking, &writing), record.Close()); err != nil {
			t.Error(err)
		}
	}
	// As near to a kill as one process comes: from this moment on nothing is recorded, so that nothing is answered either. What the parts say
	// to that is not asked.
	s.stopDead = func() {
		_ = writing.end()
		_ = errors.Join(doors(), ending(&forwarding, &linking))
		if err := record.Close(); err != nil {
			t.Error(err)
		}
	}
	return true
}

// A frailRecorder is a journal whose store fails now and then, before or after it has written; then it has failed for good.
type frailRecorder struct {
	acquirer.Recorder
	station *station
	broken  atomic.Bool
}

// storeFails is one call in how many.
const storeFails = 8000

// fails does something in the record, unless the store fails before; it may also fail after.
func (r *frailRecorder) fails(do func() error) error {
	if r.broken.Load() {
		return journal.ErrFailed
	}
	if r.station.strikes(2 * storeFails) {
		r.broken.Store(true)
		return journal.ErrFailed
	}
	err := do()
	if r.station.strikes(2 * storeFails) {
		r.broken.Store(true)
		return journal.ErrFailed
	}
	return err
}

func (r *frailRecorder) Begin(ctx context.Context, in journal.Intent) (ticket *journal.Ticket, err error) {
	err = r.fails(func() (err error) { ticket, err = r.Recorder.Begin(ctx, in); return err })
	return ticket, err
}

func (r *frailRecorder) Finish(ctx context.Context, ticket *journal.Ticket, out journal.Outcome) error {
	return r.fails(func() error { return r.Recorder.Finish(ctx, ticket, out) })
}

func (r *frailRecorder) Accept(ctx context.Context, in journal.Intent, answer messages.Reply) (id journal.TransactionID, err error) {
	err = r.fails(func() (err error) { id, err = r.Recorder.Accept(ctx, in, answer); return err })
	return id, err
}

func (r *frailRecorder) Bar(ctx context.Context, barred journal.Barred) error {
	return r.fails(func() error { return r.Recorder.Bar(ctx, barred) })
}

func (r *frailRecorder) Owe(ctx context.Context, of journal.Reversing) (stands journal.Reversal, err error) {
	err = r.fails(func() (err error) { stands, err = r.Recorder.Owe(ctx, of); return err })
	return stands, err
}

func (r *frailRecorder) Hear(ctx context.Context, hearing journal.Hearing) (heard journal.Heard, err error) {
	err = r.fails(func() (err error) { heard, err = r.Recorder.Hear(ctx, hearing); return err })
	return heard, err
}

func (r *frailRecorder) Attempt(ctx context.Context, id journal.OwedID, own journal.Numbers) (ticket *journal.Ticket, err error) {
	err = r.fails(func() (err error) { ticket, err = r.Recorder.Attempt(ctx, id, own); return err })
	return ticket, err
}

func (r *frailRecorder) Settle(ctx context.Context, ticket *journal.Ticket, settlement journal.Settlement) error {
	return r.fails(func() error { return r.Recorder.Settle(ctx, ticket, settlement) })
}

// accounts reads the journal as its JSON, which is all that the checker knows of the daemon.
func (s *station) accounts() []simulator.Account {
	s.t.Helper()
	reader, err := journal.OpenReadOnly(s.path)
	if err != nil {
		s.t.Fatal(err)
	}
	rows, err := reader.Transactions(s.t.Context(), journal.Filter{Limit: 100 * simulatedUpstreams * simulatedRequests})
	if err = errors.Join(err, reader.Close()); err != nil {
		s.t.Fatal(err)
	}
	var accounts []simulator.Account
	text, err := json.Marshal(rows)
	if err = errors.Join(err, json.Unmarshal(text, &accounts)); err != nil {
		s.t.Fatal(err)
	}
	return accounts
}

// A part is one goroutine of the station.
type part struct {
	cancel context.CancelFunc
	ended  chan error
}

// begin runs a part. If it ends by itself, that is a fault of the daemon: it is told, if anybody wants to know.
func (p *part) begin(run func(context.Context) error, failed chan<- struct{}) {
	var ctx context.Context
	ctx, p.cancel = context.WithCancel(context.Background())
	p.ended = make(chan error, 1)
	go func() {
		p.ended <- run(ctx)
		if ctx.Err() != nil || failed == nil {
			return
		}
		select {
		case failed <- struct{}{}:
		default:
		}
	}()
}

func (p *part) end() error {
	p.cancel()
	return <-p.ended
}

// A softVault stands in for the HSM: it seals by turning the digits round, and is down now and then.
type softVault struct{ station *station }

func (v *softVault) down() bool { return v.station.strikes(50) }

func (v *softVault) Protect(_ context.Context, c hsm.Card) (hsm.Protected, error) {
	if v.down() {
		return hsm.Protected{}, hsm.ErrUnavailable
	}
	protected := hsm.Protected{Sealed: card.SealedPAN{KeyID: "soft", Nonce: make([]byte, 12), Ciphertext: turned([]byte(c.PAN.Reveal()))}}
	copy(protected.Token[:], protected.Sealed.Ciphertext)
	return protected, nil
}

func (v *softVault) SealRest(_ context.Context, rest []byte) (card.SealedRest, error) {
	if v.down() {
		return card.SealedRest{}, hsm.ErrUnavailable
	}
	return card.SealedRest{KeyID: "soft", Nonce: make([]byte, 12), Ciphertext: turned(rest)}, nil
}

func (v *softVault) OpenRest(_ context.Context, rest card.SealedRest) ([]byte, error) {
	if v.down() {
		return nil, hsm.ErrUnavailable
	}
	return turned(rest.Ciphertext), nil
}

func (v *softVault) OpenPAN(_ context.Context, sealed card.SealedPAN) (card.PAN, error) {
	if v.down() {
		return card.PAN{}, hsm.ErrUnavailable
	}
	return card.ParsePAN(string(turned(sealed.Ciphertext)))
}

func turned(b []byte) []byte {
	out := make([]byte, len(b))
	for i, c := range b {
		out[i] = ^c
	}
	return out
}

// codec is that of a dialect, with MACs if the station has them.
func (s *station) codec(name string) *messages.Codec {
	c := codecOf(s.t, name)
	if s.macs != nil {
		c.Dialect().MAC.Place = specs.MACLast
	}
	return c
}

// softMAC is the key of a simulated party.
func (s *station) softMAC() messages.MACKey {
	if s.macs == nil {
		return nil
	}
	return s.macs
}

// frailMAC is the same in the daemon's HSM, which is down now and then.
func (s *station) frailMAC() messages.MACKey {
	if s.macs == nil {
		return nil
	}
	return &frailMAC{s.macs, s}
}

type frailMAC struct {
	*simulator.MACKey
	station *station
}

func (k *frailMAC) MAC(ctx context.Context, data []byte) ([]byte, error) {
	if k.station.strikes(100) {
		return nil, hsm.ErrUnavailable
	}
	return k.MACKey.MAC(ctx, data)
}

func (k *frailMAC) VerifyMAC(ctx context.Context, data, mac []byte) error {
	if k.station.strikes(100) {
		return hsm.ErrUnavailable
	}
	return k.MACKey.VerifyMAC(ctx, data, mac)
}

func codecOf(t *testing.T, name string) *messages.Codec {
	t.Helper()
	dialect, err := specs.Load(name)
	if err != nil {
		t.Fatal(err)
	}
	return messages.NewCodec(dialect)
}
