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

// TestSimulation runs the real door, switch, journal, forwarder and links against a simulated processor that loses, delays, duplicates,
// reorders and garbles, drops links, and is restarted; the daemon stops dead at random moments and recovers. All of it in fake time. At
// rest, the processor's ledger, the upstream's book and the journal must agree.
//
//	go test -run Simulation . -seed 7
func TestSimulation(t *testing.T) {
	first, last := uint64(1), uint64(*seeds)
	if *seed != 0 {
		first, last = *seed, *seed
	}
	for s := first; s <= last; s++ {
		t.Run(fmt.Sprintf("seed %d", s), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { simulate(t, s) })
			if t.Failed() {
				t.Logf("to repeat: go test -run Simulation . -seed %d", s)
			}
		})
	}
}

const (
	simulatedRequests = 300
	simulatedCrashes  = 4
)

// A station is the daemon without its process: every room wired as serve wires it, with a software vault and pipes for links.
type station struct {
	t        *testing.T
	path     string
	chance   *rand.Rand
	links    map[string]*simulator.PipeListener // of the processor, by address
	door     *simulator.PipeListener            // of the running daemon; guarded by mu
	mu       sync.Mutex
	stop     func()
	stopDead func()
}

func simulate(t *testing.T, seed uint64) {
	s := &station{t: t, path: filepath.Join(t.TempDir(), "journal.db"), chance: rand.New(rand.NewPCG(seed, 0)),
		links: map[string]*simulator.PipeListener{"a:1": simulator.NewPipeListener(), "b:1": simulator.NewPipeListener()}}
	if err := journal.Create(s.path, "simulated"); err != nil {
		t.Fatal(err)
	}
	processor, err := simulator.NewProcessor(simulator.ProcessorConfig{Codec: codecOf(t, "iso87-ascii"), Faults: simulator.Faults{Seed: seed,
		Lost: .02, Late: .01, Delay: .1, MaxDelay: 25 * time.Second, Silence: .03, Drop: .01, Close: .01, Duplicate: .03, Reorder: .05,
		Garble: .02, NoSTAN: .01, OtherLink: .05}})
	if err != nil {
		t.Fatal(err)
	}
	client, err := simulator.NewUpstream(simulator.UpstreamConfig{Codec: codecOf(t, "iso87-binary"), Dial: s.dial, Connections: 3,
		ReplyTimeout: 40 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	outside, end := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() { _ = processor.Serve(outside, s.links["a:1"], s.links["b:1"]) })
	s.start()
	running.Go(func() { _ = client.Run(outside) })

	crashes := map[int]bool{}
	for range simulatedCrashes {
		crashes[s.chance.IntN(simulatedRequests)] = true
	}
	cards := simulator.TestCards()[3:7]
	var asking sync.WaitGroup
	for n := range simulatedRequests {
		<-time.After(time.Duration(s.chance.IntN(400)) * time.Millisecond)
		if crashes[n] {
			s.stopDead()
			<-time.After(time.Duration(s.chance.IntN(5000)) * time.Millisecond)
			s.start()
		}
		if s.chance.IntN(100) == 0 {
			processor.DropLinks()
		}
		request := simulator.Request{PAN: cards[s.chance.IntN(len(cards))].PAN, Amount: int64(100 + s.chance.IntN(5000)), Terminal: fmt.Sprintf("SIM%05d", n)}
		if s.chance.IntN(5) == 0 {
			request.Amount = 9051
		}
		asking.Go(func() { _, _ = client.Do(outside, request) })
	}
	asking.Wait()

	// Nothing breaks any more; what is owed is paid; one restart more, for what is still open.
	if err := processor.SetFaults(simulator.Faults{}); err != nil {
		t.Error(err)
	}
	<-time.After(10 * time.Minute)
	s.stop()
	s.start()
	<-time.After(20 * time.Minute)
	synctest.Wait()
	s.stop()
	end()
	running.Wait()
	verdict := simulator.Compare(s.accounts(), processor.Ledger().Snapshot(), client.Book().Snapshot())
	for _, disagreement := range verdict.Disagreements {
		t.Error(disagreement)
	}
	if verdict.Transactions < simulatedRequests/3 || verdict.Approved == 0 || verdict.Unknown == 0 || verdict.Reversed == 0 {
		t.Errorf("the simulation did not meet what it is for: %+v", verdict)
	}
	if testing.Verbose() {
		text, err := json.Marshal(verdict)
		t.Logf("%s %v", text, err)
	}
}

// start opens the journal, recovers and serves until stop or stopDead.
func (s *station) start() {
	t := s.t
	t.Helper()
	log, registry := slog.New(slog.DiscardHandler), prometheus.NewRegistry()
	record, err := journal.Open(journal.Config{Path: s.path, Station: "simulated", BlockSize: 50}, log, registry)
	if err != nil {
		t.Fatal(err)
	}
	endpoint, err := conn.New(conn.Config{Name: "processor", Codec: codecOf(t, "iso87-ascii"), Links: []string{"a:1", "b:1"},
		ReplyTimeout: 10 * time.Second, WriteTimeout: 2 * time.Second, DialTimeout: 2 * time.Second, SignOnTimeout: 5 * time.Second,
		EchoInterval: 15 * time.Second, EchoTimeout: 5 * time.Second, EchoMisses: 2, BackoffMin: 50 * time.Millisecond, BackoffMax: 2 * time.Second,
		InFlight: 256, Dial: func(ctx context.Context, address string) (net.Conn, error) { return s.links[address].Dial(ctx) }}, log, registry)
	if err != nil {
		t.Fatal(err)
	}
	desk, err := acquirer.New(acquirer.Config{Journal: record, Vault: &softVault{chance: rand.New(rand.NewPCG(s.chance.Uint64(), 0))}, InFlight: 256,
		Endpoints: []*acquirer.Endpoint{acquirer.NewEndpoint("processor", "", codecOf(t, "iso87-ascii"), endpoint)},
		Routes:    []acquirer.Route{{Endpoint: "processor"}},
		Forward:   acquirer.Forwarding{RetryMin: time.Second, RetryMax: 30 * time.Second, ParkAfter: 24 * time.Hour, NotFoundFinal: 100 * time.Second, Poll: time.Second, Parallel: 8, Rate: 1000}}, log, registry)
	if err != nil {
		t.Fatal(err)
	}
	door, err := upstream.New(upstream.Config{Upstream: &acquirer.Upstream{Name: "pos", Codec: codecOf(t, "iso87-binary")}, InFlight: 128,
		Connections: 8, Budget: 30 * time.Second, IdleTimeout: time.Hour, FrameTimeout: 5 * time.Second, WriteTimeout: 5 * time.Second}, desk, log, registry)
	if err != nil {
		t.Fatal(err)
	}
	listener := simulator.NewPipeListener()
	var writing, linking, forwarding, serving part
	writing.begin(record.Run)
	if _, err := desk.Recover(t.Context()); err != nil {
		t.Fatal(err)
	}
	linking.begin(func(ctx context.Context) error {
		return endpoint.Run(ctx, func(ctx context.Context, m conn.Unasked) { desk.Inbound(ctx, "processor", m) })
	})
	forwarding.begin(desk.Run)
	serving.begin(func(ctx context.Context) error { return door.Serve(ctx, listener) })
	s.mu.Lock()
	s.door = listener
	s.mu.Unlock()
	close := func() {
		if err := record.Close(); err != nil {
			t.Error(err)
		}
	}
	s.stop = func() {
		for _, p := range []*part{&serving, &forwarding, &linking, &writing} {
			if err := p.end(); err != nil {
				t.Error(err)
			}
		}
		close()
	}
	// As near to a kill as one process comes: from this moment on nothing is recorded, so that nothing is answered either.
	s.stopDead = func() {
		_ = writing.end()
		_ = listener.Close()
		_ = serving.end()
		_ = forwarding.end()
		_ = linking.end()
		close()
	}
}

// dial connects the upstream to the daemon that runs now.
func (s *station) dial(ctx context.Context) (net.Conn, error) {
	s.mu.Lock()
	door := s.door
	s.mu.Unlock()
	return door.Dial(ctx)
}

// accounts reads the journal as its JSON, which is all that the checker knows of the daemon.
func (s *station) accounts() []simulator.Account {
	s.t.Helper()
	reader, err := journal.OpenReadOnly(s.path)
	if err != nil {
		s.t.Fatal(err)
	}
	rows, err := reader.Transactions(s.t.Context(), journal.Filter{Limit: 100 * simulatedRequests})
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

func (p *part) begin(run func(context.Context) error) {
	var ctx context.Context
	ctx, p.cancel = context.WithCancel(context.Background())
	p.ended = make(chan error, 1)
	go func() { p.ended <- run(ctx) }()
}

func (p *part) end() error {
	p.cancel()
	return <-p.ended
}

// A softVault stands in for the HSM: it seals by turning the digits round, and is down now and then.
type softVault struct {
	mu     sync.Mutex
	chance *rand.Rand
}

func (v *softVault) down() bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.chance.IntN(50) == 0
}

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

func codecOf(t *testing.T, name string) *messages.Codec {
	t.Helper()
	dialect, err := specs.Load(name)
	if err != nil {
		t.Fatal(err)
	}
	return messages.NewCodec(dialect)
}
