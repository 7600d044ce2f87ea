package conn

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/time/rate"

	"acquirerd/messages"
)

// Errors of Exchange, for errors.Is.
var (
	// ErrNotSent proves that no byte of the request can have left this host. Every other error means that the processor may have
	// acted on the request.
	ErrNotSent = errors.New("not sent")
	// ErrTimeout: sent, and not answered in time. The answer may still come.
	ErrTimeout = errors.New("no answer in time")
	// ErrWrite: the write failed after it began, and no answer came in time.
	ErrWrite = errors.New("write failed, and no answer came in time")
	// ErrUndecodable: the request's answer came, and it does not keep the format. The wait ends with it, because a second answer is
	// not to be expected, and what the caller must do is the same and can begin at once.
	ErrUndecodable = errors.New("answer does not keep the format")
	// ErrMismatch: an answer with the request's key came, and it disagrees with the request.
	ErrMismatch = errors.New("answer disagrees with its request")
	// ErrMAC: an answer with the request's key came, and its message authentication code is wrong or missing, or could not be checked. Nothing
	// that it says counts, for or against the request.
	ErrMAC = errors.New("answer is not proven to be the processor's")
)

// An Endpoint is a processor's group of links. It may be used by many goroutines.
type Endpoint struct {
	codec   *messages.Codec
	log     *slog.Logger
	metrics *metrics
	unasked *inbox // from the links to the callback of Run

	sometimes rate.Sometimes // for what a misbehaving processor could fill the log with; the metrics count all of it

	configured atomic.Pointer[settings] // swapped under mu, by Reconfigure

	mu        sync.Mutex
	pending   pending              // guarded by mu
	sent      sentMemory           // guarded by mu
	links     []*link              // in the order of the configuration; guarded by mu, as what is in them is where it says so
	departing []*link              // not in the configuration any more, and have a connection; guarded by mu
	relieved  chan struct{}        // while they carry on, until one of the configuration is in service: closed then; guarded by mu
	listeners map[string]*listener // by address; guarded by mu
	turn      int                  // guarded by mu: the link that the next search begins with
	lastSTAN  int                  // guarded by mu: of the links' own messages
	begun     bool                 // guarded by mu: Run was called
	draining  bool                 // guarded by mu: nothing new is sent, and no link begins
	serving   context.Context      // of all links, from Run's begin; guarded by mu
	carrying  sync.WaitGroup       // links and listeners; one begins under mu, and none while the endpoint drains

	checking  sync.WaitGroup // messages whose MAC is checked; only what reads a session begins one
	unchecked atomic.Int64   // of them, those that are not through
	checks    chan struct{}  // one for each check that goes on
}

// settings are the configuration that holds. Whoever waits by one of its times hears when another takes its place.
type settings struct {
	Config
	replaced chan struct{} // closed when another one holds
}

// config is the configuration that holds now. What belongs together is taken from one call.
func (e *Endpoint) config() *settings { return e.configured.Load() }

// New checks the configuration, naming every fault in it, and starts nothing. Endpoints of one process may share a registry if their
// names differ.
func New(cfg Config, log *slog.Logger, registry prometheus.Registerer) (*Endpoint, error) {
	if err := cfg.check(); err != nil {
		return nil, fmt.Errorf("configuring endpoint %q: %w", cfg.Name, err)
	}
	e := &Endpoint{codec: cfg.Codec, log: log.With("endpoint", cfg.Name), unasked: newInbox(),
		sometimes: rate.Sometimes{First: 10, Interval: time.Second}, pending: newPending(cfg.Abandoned, cfg.ReplyTimeout),
		listeners: map[string]*listener{}, checks: make(chan struct{}, checksAtOnce)}
	e.configured.Store(&settings{cfg, make(chan struct{})})
	for i, configured := range cfg.Links {
		e.links = append(e.links, newLink(e, i, configured))
	}
	var err error
	if e.metrics, err = newMetrics(e, registry); err != nil {
		return nil, fmt.Errorf("configuring endpoint %q: %w", cfg.Name, err)
	}
	return e, nil
}

// tellers is how many calls of the callback go on at the same time: each may wait for a record, and records are written together.
const tellers = 16

// Run keeps the links until ctx ends. Then nothing new is sent, the exchanges in flight end by their own deadlines while the links
// stay up for their answers, each link signs off, and Run returns nil when all that it began has ended. It may be called once.
//
// inbound is called, by several goroutines, with what arrived unasked: late, second and unmatched answers, and the processor's own
// requests but for sign-on, sign-off and echo, which the links answer. Its context is not cancelled by the end of ctx, and Run waits for
// it.
func (e *Endpoint) Run(ctx context.Context, inbound func(context.Context, Unasked)) error {
	lasting := context.WithoutCancel(ctx)
	serving, stop := context.WithCancelCause(lasting)
	defer stop(nil)
	e.mu.Lock()
	again := e.begun
	if !again {
		e.begun, e.serving = true, serving
		for _, l := range e.links {
			l.start()
		}
	}
	e.mu.Unlock()
	if again {
		return fmt.Errorf("running endpoint %q: it was run before", e.config().Name)
	}
	var telling sync.WaitGroup
	for range tellers {
		telling.Go(func() {
			for m, more := e.unasked.take(); more; m, more = e.unasked.take() {
				inbound(lasting, m)
			}
		})
	}

	<-ctx.Done()
	e.mu.Lock()
	e.draining = true
	drained := e.pending.drained()
	e.log.Info("endpoint drains", "in_flight", e.pending.inFlight)
	e.mu.Unlock()
	<-drained // each exchange ends by its own deadline
	e.mu.Lock()
	stop(causeStopped)
	for _, l := range e.links {
		l.retire(causeStopped, nil)
	}
	e.mu.Unlock()
	e.carrying.Wait()
	e.checking.Wait() // each has a deadline
	e.unasked.close() // only sessions put into it, and none is left
	telling.Wait()
	e.metrics.end()
	return nil
}

// Exchange sends a request and returns its answer, which keeps the format, has the request's key and agrees with it. It returns
// within ReplyTimeout and the time to write, or by an earlier deadline of ctx. The request is the caller's again when it returns.
//
// An error that wraps ErrNotSent proves that nothing was sent; with a *messages.FormatError in it, the request does not fit the
// processor's dialect; with messages.ErrNoMAC, it could not be given its code. Every other error means that the processor may have acted on
// the request. Once the write has begun, the
// cancellation of ctx is not heeded, only its deadline: what may have been sent is waited for.
func (e *Endpoint) Exchange(ctx context.Context, request *messages.Message) (*messages.Message, error) {
	began := time.Now()
	deadline := began.Add(e.config().ReplyTimeout)
	if earlier, has := ctx.Deadline(); has && earlier.Before(deadline) {
		deadline = earlier
	}
	if err := ctx.Err(); err != nil {
		return nil, notSent(err)
	}
	if !request.MTI.IsRequest() {
		return nil, notSent(errors.New("it is not a request"))
	}
	key, ok := e.codec.Key(request)
	if !ok {
		return nil, notSent(errors.New("it has no match key"))
	}
	frame, err := e.frame(ctx, request, time.Until(deadline))
	if err != nil {
		return nil, notSent(err)
	}
	defer clear(frame) // it holds card data

	// In the table before the write: an answer can come before the write returns.
	x := &exchange{key: key, request: request, done: make(chan result, 1)}
	answer := x.done
	s, err := e.begin(x, began)
	if err != nil {
		return nil, notSent(err)
	}
	e.metrics.inFlight.Inc()
	defer e.metrics.inFlight.Dec()

	failed := ErrTimeout
	trace := traceOf(ctx)
	err = e.send(ctx, began, deadline, x, s, frame, trace)
	if errors.Is(err, ErrNotSent) {
		if e.withdraw(x) {
			return nil, err
		}
		// It has an answer none the less: the late one of the request that it repeats.
	} else if err != nil {
		// The frame may have arrived whole. The link's loss is not an answer.
		failed = fmt.Errorf("%w: %w", ErrWrite, err)
	}

	timer := time.NewTimer(time.Until(deadline))
	defer timer.Stop()
	var r result
	select {
	case r = <-answer:
	case <-timer.C:
		if e.abandon(x) {
			r.err = failed
		} else {
			r = <-answer // delivered under the mutex, before abandon could take it
		}
	}
	if r.answer != nil {
		trace.Answered = max(0, r.at.Sub(began)-trace.Queued-trace.Written) // it may have been here before the write returned
	}
	e.metrics.seconds.Observe(time.Since(began).Seconds())
	return r.answer, r.err
}

func notSent(reason error) error { return fmt.Errorf("%w: %w", ErrNotSent, reason) }

var (
	errDraining = errors.New("the endpoint is stopping")
	errFull     = errors.New("too many exchanges are in flight")
	errNoLink   = errors.New("no link is in service")
)

// begin takes an exchange into the table and gives it the session to go out on.
func (e *Endpoint) begin(x *exchange, now time.Time) (*session, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.draining {
		return nil, errDraining
	}
	if e.pending.inFlight >= e.config().InFlight {
		return nil, errFull
	}
	s, err := e.choose(nil)
	if err != nil {
		return nil, err
	}
	x.session = s
	if err := e.pending.add(x, now); err != nil {
		return nil, err
	}
	if (x.request.MTI.IsAdvice() || x.request.MTI.Class() == messages.Reversal) && carriesMAC(x.request) {
		e.sent.enter(x.key, macOf(x.request))
	}
	return s, nil
}

// choose returns the session in service with the fewest exchanges in flight, other than those tried; among equals, each in its turn. One
// whose write is stuck is the last choice, so that what can go out on another link does not wait behind it.
// Called under mu.
func (e *Endpoint) choose(tried []*session) (*session, error) {
	var best *session
	var bestStuck, full bool
	at, limit, links := 0, e.config().LinkInFlight, e.carriers()
next:
	for i := range links {
		i = (e.turn + i) % len(links)
		s := links[i].session
		if s == nil || s.state != InService {
			continue
		}
		for _, t := range tried {
			if s == t {
				continue next
			}
		}
		if s.inFlight >= limit {
			full = true
			continue
		}
		if stuck := s.stuck(); best == nil || (bestStuck && !stuck) || (bestStuck == stuck && s.inFlight < best.inFlight) {
			best, bestStuck, at = s, stuck, i
		}
	}
	switch {
	case best != nil:
		e.turn = at + 1
		return best, nil
	case full:
		return nil, errFull
	}
	return nil, errNoLink
}

// send writes the frame on the session, or on another one for as long as nothing of it was written and there is time: at first on any that
// has a turn soon, and then on any that has one at all. Its error wraps ErrNotSent if nothing was written.
func (e *Endpoint) send(ctx context.Context, began, deadline time.Time, x *exchange, s *session, frame []byte, trace *Trace) error {
	var gone, busy []*session
	longest := e.config().WriteTimeout
	patience := e.config().quickWrite()
	for {
		turn, err := s.write(ctx, frame, patience)
		if !errors.Is(err, ErrNotSent) {
			trace.Link, trace.Queued, trace.Written = int(s.link.number.Load()), turn.Sub(began), time.Since(turn)
			return err
		}
		if ctx.Err() != nil || !time.Now().Before(deadline) {
			return err
		}
		wasBusy := errors.Is(err, errTurn)
		if wasBusy {
			busy = append(busy, s)
		} else {
			gone = append(gone, s)
		}
		e.mu.Lock()
		if x.state != waiting {
			e.mu.Unlock()
			return err
		}
		next, none := e.choose(slices.Concat(gone, busy))
		if none != nil && len(busy) > 0 && patience < longest {
			patience, busy = longest, nil
			if next, none = e.choose(gone); none != nil && wasBusy {
				next, none = s, nil // which is full, with this one
			}
		}
		if none == nil && next != s {
			e.pending.move(x, next)
		}
		e.mu.Unlock()
		if none != nil {
			return err
		}
		s = next
	}
}

// withdraw takes back an exchange of which nothing was sent. It is false if the exchange has ended.
func (e *Endpoint) withdraw(x *exchange) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	if x.state != waiting {
		return false
	}
	e.pending.withdraw(x, time.Now())
	return true
}

// abandon ends an exchange without its answer. It is false if the exchange has ended.
func (e *Endpoint) abandon(x *exchange) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	if x.state != waiting {
		return false
	}
	x.session.lost++
	e.pending.end(x, abandoned, time.Now())
	return true
}

// receive takes every message that a session has read. fault is why it does not keep the format, with what could be read of it; m
// is nil if nothing could. It never blocks. It returns a request that the session must answer itself, or nil.
func (e *Endpoint) receive(s *session, m *messages.Message, fault error) *messages.Message {
	if m != nil && m.Rejected() != "" {
		e.refused(s, m)
		return nil
	}
	if fault == nil {
		fault = e.codec.Validate(m)
	} else if m != nil && e.config().MAC != nil && e.codec.HasMAC(m.MTI) {
		fault = fmt.Errorf("%w: %w", ErrMAC, fault) // it cannot be checked: nothing of it counts
	}
	if m == nil || !m.MTI.IsAnswer() {
		switch {
		case fault != nil && !errors.Is(fault, messages.ErrUnsupported):
			e.metrics.answers[kindUndecodable].Inc()
			e.sometimes.Do(func() { e.log.Warn("message from processor does not keep the format", "error", fault) })
			if m != nil && m.MTI.IsRequest() {
				faulty := s.demand(m)
				faulty.Fault = fault
				e.tell(faulty) // to be answered so
			}
		case e.ownAnswer(m):
			return m
		default:
			e.tell(s.demand(m))
		}
		return nil
	}
	var unusable error
	if fault != nil {
		unusable = fmt.Errorf("%w: %w", ErrUndecodable, fault)
	}
	k, news, differs := e.deliver(s, m, unusable)
	e.metrics.answers[k].Inc()
	switch k {
	case kindMatched, kindDuplicate, kindLate, kindUnmatched:
	case kindUndecodable, kindMismatch, kindWrongLink, kindWrongMAC, kindUnchecked:
		e.sometimes.Do(func() {
			e.log.Warn("answer from processor is not usable", "kind", string(k), "mti", string(m.MTI), "stan", m.Get(messages.STAN),
				"error", errors.Join(fault, differs))
		})
	}
	if news != nil {
		e.tell(*news)
	}
	return nil
}

// refused takes a message of ours that the network has returned without passing it on: its request was not acted on, and is answered as one
// that does not keep the format. DE 44 of that answer is the network's own code.
func (e *Endpoint) refused(s *session, m *messages.Message) {
	e.sometimes.Do(func() {
		s.log().Error("message was returned by the network", "mti", string(m.MTI), "stan", m.Get(messages.STAN), "reject_code", m.Rejected())
	})
	if !m.MTI.IsRequest() {
		e.metrics.answers[kindUndecodable].Inc() // an answer of ours: nobody waits for it here
		return
	}
	answer := messages.NewAnswer(m, e.codec.Dialect().Answers.FormatError)
	answer.Set(messages.AdditionalResponse, m.Rejected())
	var unproven error
	if e.config().MAC != nil && e.codec.HasMAC(answer.MTI) { // anybody can send it back so
		unproven = fmt.Errorf("%w: a reject header has no MAC", ErrMAC)
	}
	k, _, _ := e.deliver(s, answer, unproven)
	e.metrics.answers[k].Inc()
}

// deliver ends the exchange that an answer belongs to. fault is why the answer cannot be used, and what its caller is told then. news is what
// the callback of Run is to be told, nil if nothing: of the links' own exchanges it is told only what can bring a key. differs is in what the answer
// disagrees with its request.
func (e *Endpoint) deliver(s *session, m *messages.Message, fault error) (k kind, news *Unasked, differs error) {
	key, ok := e.codec.Key(m)
	e.mu.Lock()
	defer e.mu.Unlock()
	x := e.pending.exchanges[key]
	switch {
	case ok && x != nil && x.state == waiting && x.session != s && e.codec.Dialect().Match.SameLink:
		return kindWrongLink, nil, nil // its own may still come
	case fault != nil:
		// What could be read may be too little for a key; then the request waits for its timeout, and its fate is as unknown.
		switch {
		case !ok || x == nil:
		case x.state == waiting:
			e.finish(x, abandoned, result{err: fault})
		case x.state == abandoned && !x.keyAsked.IsZero(): // one that can be used may still come
			news = &Unasked{Message: m, Arrival: Late, Fault: fault, KeyAsked: x.keyAsked}
		}
		return kindUndecodable, news, nil
	case !ok || x == nil:
		return kindUnmatched, &Unasked{Message: m, Arrival: Late}, nil
	case x.state == abandoned:
		x.state = lateAnswered
		if !x.management || !x.keyAsked.IsZero() {
			news = &Unasked{Message: m, Arrival: Late, KeyAsked: x.keyAsked}
		}
		return kindLate, news, nil
	case x.state != waiting:
		if !x.management {
			news = &Unasked{Message: m, Arrival: Second}
		}
		return kindDuplicate, news, nil
	}
	if err := e.codec.Echoes(x.request, m); err != nil {
		e.finish(x, abandoned, result{err: fmt.Errorf("%w: %w", ErrMismatch, err)})
		return kindMismatch, nil, err
	}
	e.finish(x, answered, result{answer: m})
	return kindMatched, nil, nil
}

// finish ends an exchange that was waiting. The result is sent under mu, into the room of its channel, so that an exchange whose time
// is up at this moment either has it or was abandoned first: none is lost. Called under mu.
func (e *Endpoint) finish(x *exchange, state exchangeState, r result) {
	r.at = time.Now()
	x.done <- r
	e.pending.end(x, state, r.at)
}

// InService reports whether a request would find a link: one is in service, and the endpoint is not stopping.
func (e *Endpoint) InService() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.draining {
		return false
	}
	return slices.ContainsFunc(e.carriers(), (*link).inService)
}

// carriers are the links that may carry exchanges. Called under mu.
func (e *Endpoint) carriers() []*link {
	if len(e.departing) == 0 {
		return e.links
	}
	return slices.Concat(e.links, e.departing)
}
