package simulator

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"sync"
	"time"

	"acquirerd/messages"
)

// DefaultMaxWaiting is how many messages may wait to be decided or answered later; then the links are read no further.
const DefaultMaxWaiting = 10_000

// ProcessorConfig is what a Processor is made of.
type ProcessorConfig struct {
	Codec  *messages.Codec // the processor's dialect
	Rules  []Rule          // tried in order before those of the cards and DefaultRules; the first that matches decides
	Faults Faults          // what breaks by chance; none by default
	Cards  []Card          // nil: TestCards. Any other card with a right check digit is taken too
	ZPK    *Key            // the zone PIN key; nil: PINs are not checked
	ZMK    *Key            // the zone master key: each demanded or requested key change brings a new random ZPK under it; nil: NewKey is brought
	Ledger *Ledger         // nil: a new one
	MAC    messages.MACKey // of the messages that carry MACs in the dialect; nil: none is made or checked
	TLS    *tls.Config     // of links, as server of those that it takes, and as client of those that it makes; nil: without TLS

	AcceptBeforeSignOn bool             // take transactions on a link that has not signed on; else they are answered 91
	NewKey             messages.NewKey  // that a demanded key change brings where there is no ZMK
	Adoption           time.Duration    // from the daemon's acceptance of a new ZPK until it is the processor's own; till then it reads no PIN under that
	DemandTimeout      time.Duration    // for how long an answer to a demand is waited for; default 5 s
	MaxWaiting         int              // default DefaultMaxWaiting
	WriteTimeout       time.Duration    // of one write; default 5 s
	Trace              func(TraceEvent) // called for each message, by several goroutines; nil: none
	Log                *slog.Logger     // nil: none
}

// A Processor is a simulated card processor.
//
// For each message it takes the action of the first rule that matches, adds what chance does (Faults), then decides, enters the
// request in its ledger, and answers, in whatever way the action breaks that.
type Processor struct {
	cfg    ProcessorConfig
	reader reader
	cards  map[string]PIN // by number
	base   []Rule
	ledger *Ledger
	wait   chan struct{} // one for each message that waits

	mu       sync.Mutex
	rules    []Rule
	faults   Faults
	attempts map[attemptKey]int64 // messages by transaction, counted only where a rule or chance asks
	links    []*link              // open ones, oldest first
	stray    [][]byte             // answers for the next link that signs on
	linkID   int

	zone       zoneKeys
	demands    map[messages.Key]*demanded // that were made, answered or not
	demandKeys []messages.Key             // of them, oldest first
	demandSTAN int
	demandTurn int // which link's turn it is
}

type attemptKey struct {
	class        messages.Class
	of, terminal string
}

// NewProcessor checks the configuration and starts nothing.
func NewProcessor(cfg ProcessorConfig) (*Processor, error) {
	if cfg.Codec == nil {
		return nil, errors.New("processor: it needs a codec")
	}
	if cfg.Cards == nil {
		cfg.Cards = TestCards()
	}
	if cfg.MaxWaiting == 0 {
		cfg.MaxWaiting = DefaultMaxWaiting
	}
	if cfg.WriteTimeout == 0 {
		cfg.WriteTimeout = defaultTimeout
	}
	if cfg.DemandTimeout == 0 {
		cfg.DemandTimeout = defaultDemandTimeout
	}
	if cfg.MaxWaiting < 0 || cfg.WriteTimeout < 0 || cfg.DemandTimeout < 0 {
		return nil, errors.New("processor: a limit is negative")
	}
	if cfg.Ledger == nil {
		cfg.Ledger = NewLedger(0)
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	p := &Processor{cfg: cfg, reader: readerOf(cfg.Codec), cards: map[string]PIN{}, ledger: cfg.Ledger, wait: make(chan struct{}, cfg.MaxWaiting),
		attempts: map[attemptKey]int64{}, demands: map[messages.Key]*demanded{}, zone: zoneKeys{current: cfg.ZPK}}
	if err := cfg.Ledger.read(p.reader); err != nil {
		return nil, fmt.Errorf("processor: %w", err)
	}
	for _, c := range cfg.Cards {
		p.cards[c.PAN.Reveal()] = c.PIN
	}
	var err error
	if p.base, err = builtin(cfg.Cards); err != nil {
		return nil, fmt.Errorf("processor: %w", err)
	}
	if err := p.SetRules(cfg.Rules...); err != nil {
		return nil, err
	}
	return p, p.SetFaults(cfg.Faults)
}

// SetRules replaces the rules of the configuration.
func (p *Processor) SetRules(rules ...Rule) error {
	for _, r := range rules {
		if r.used == nil {
			return errors.New("processor: a rule was not made by ParseRule")
		}
		if r.do.declinesOnly && p.reader.Approves(p.reader.code(r.do.code)) {
			return fmt.Errorf("processor: rule %q: this dialect takes %s for an approval; use answer=%s", r, r.do.code, r.do.code)
		}
		if r.do.mac != macRight && p.cfg.MAC == nil {
			return fmt.Errorf("processor: rule %q: there is no key for MACs", r)
		}
		if r.do.reject && !p.reader.rejects() {
			return fmt.Errorf("processor: rule %q: this dialect has no reject header", r)
		}
		if r.do.demand != "" {
			if err := p.can(r.do.demand); err != nil {
				return fmt.Errorf("processor: rule %q: %w", r, err)
			}
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.rules = slices.Concat(rules, p.base)
	return nil
}

// SetFaults replaces the probabilities: with Faults{}, what a simulation does at its end, nothing breaks by chance any more.
func (p *Processor) SetFaults(faults Faults) error {
	faults, err := faults.check()
	if err != nil {
		return fmt.Errorf("processor: %w", err)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.faults = faults
	return nil
}

// Ledger is the processor's account.
func (p *Processor) Ledger() *Ledger { return p.ledger }

// SignedOn counts the links that have signed on.
func (p *Processor) SignedOn() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	n := 0
	for _, l := range p.links {
		if l.signedOn.Load() {
			n++
		}
	}
	return n
}

// DropLinks closes all links, as a crash of the processor's host would. Listeners stay open.
func (p *Processor) DropLinks() {
	p.mu.Lock()
	links := slices.Clone(p.links)
	p.mu.Unlock()
	for _, l := range links {
		l.close()
	}
}

// Serve takes links from the listeners until ctx ends, and then closes both. It returns when all its goroutines have ended: nil, or
// why a listener failed. It may be called again with new listeners, as after an outage.
func (p *Processor) Serve(ctx context.Context, listeners ...net.Listener) error {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	s := &service{Processor: p, ctx: ctx}
	failed := make([]error, len(listeners))
	for i, listener := range listeners {
		release := context.AfterFunc(ctx, func() { _ = listener.Close() })
		s.running.Go(func() {
			defer release()
			failed[i] = s.accept(listener)
			stop()
		})
	}
	<-ctx.Done()
	s.running.Wait()
	return errors.Join(failed...)
}

// A service is one call of Serve.
type service struct {
	*Processor
	ctx     context.Context
	running sync.WaitGroup
}

func (s *service) accept(listener net.Listener) error {
	for {
		conn, err := listener.Accept()
		if err != nil {
			if s.ctx.Err() != nil {
				return nil
			}
			return fmt.Errorf("accepting links: %w", err)
		}
		if s.cfg.TLS != nil {
			conn = tls.Server(conn, s.cfg.TLS)
		}
		l := s.begin(conn)
		s.running.Go(l.run)
		s.running.Go(l.serve)
	}
}

// later runs f after a while, if the service lasts so long. It waits itself when too much is waiting.
func (s *service) later(d time.Duration, f func()) {
	if d <= 0 {
		f()
		return
	}
	select {
	case s.wait <- struct{}{}:
	case <-s.ctx.Done():
		return
	}
	s.running.Go(func() {
		timer := time.NewTimer(d)
		defer timer.Stop()
		select {
		case <-timer.C:
			<-s.wait // before f, which may wait again
			f()
		case <-s.ctx.Done():
			<-s.wait
		}
	})
}

// plan finds what happens to a message: the first rule that matches, and chance.
func (p *Processor) plan(m *messages.Message) action {
	p.mu.Lock()
	defer p.mu.Unlock()
	var do action
	pan, attempt := m.PAN().Reveal(), int64(0)
	amount, _, err := p.reader.amounts(m)
	if err != nil {
		amount = amountOf(m)
	}
	count := func() int64 {
		if attempt == 0 {
			of := byDefault(m.Reveal(p.reader.originalElement()), m.Get(messages.STAN)+m.Get(messages.TransmissionTime))
			key := attemptKey{m.MTI.Class(), of, m.Get(messages.Terminal)}
			p.attempts[key]++
			attempt = p.attempts[key]
		}
		return attempt
	}
	for i := range p.rules {
		if p.rules[i].matches(m, pan, amount, count) {
			do = p.rules[i].do
			break
		}
	}
	if do.code == codeByAmount {
		do.code = fmt.Sprintf("%02d", max(0, amount)%100)
	}
	if do.code == codePartial && do.approved == 0 {
		do.approved = amountOfHalf
	}
	if do.delayAmount {
		do.delay = time.Duration(amount%100) * 100 * time.Millisecond
	}
	faults := p.faults
	if m.MTI.Class() == messages.Network {
		faults = Faults{Seed: p.faults.Seed, MaxDelay: p.faults.MaxDelay}
	}
	if faults.any() || do.cut == cutAnywhere {
		faults.draw(m, count(), &do, p.chosen)
	}
	do.reject = do.reject && p.reader.rejects()
	do.keepalive = do.keepalive && p.reader.takesKeepalives()
	return do
}
