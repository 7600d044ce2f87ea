package acquirer

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"

	"acquirerd/conn"
	"acquirerd/hsm"
	"acquirerd/journal"
	"acquirerd/messages"
	"acquirerd/specs"
)

// Forwarding says how what is owed is paid.
type Forwarding struct {
	RetryMin  time.Duration // pause after the first attempt; it doubles with each
	RetryMax  time.Duration // longest pause
	ParkAfter time.Duration // age at which a reversal that was sent often enough is parked instead of tried again

	// NotFoundFinal is for how long the processor must have answered nothing but "the original is not there" before that ends a reversal.
	// Until then the original may still be on its way: slow at the processor, queued there during an outage, or in the buffers of a
	// stalled link, and be held when it comes. See absences for what interrupts it.
	NotFoundFinal time.Duration

	Poll     time.Duration // how often an endpoint or an HSM that was not ready is looked at again
	Parallel int           // in flight at once, for each endpoint
	Rate     float64       // most sends a second, for each endpoint: a backlog may not starve live traffic
}

// A Forwarder sends owed reversals and advices until each is acknowledged or parked. Each endpoint is served apart, so that one that is down
// does not hold up another; within an endpoint, a lineup says what may go.
type Forwarder struct {
	cfg    Forwarding
	owner  *Switch
	log    *slog.Logger
	pace   atomic.Uint64  // sends a second for each endpoint, as math.Float64bits; at first cfg.Rate
	random func() float64 // [0, 1)

	sometimes rate.Sometimes // for what each poll would log again

	mu       sync.Mutex
	wake     map[string]chan struct{} // capacity 1, by endpoint; guarded by mu
	absences map[string]*absences     // by endpoint; guarded by mu
	unserved []*Endpoint              // of which Run does not know yet; guarded by mu
	came     chan struct{}            // capacity 1: there are unserved ones

	waiting map[journal.OwedID][]chan struct{} // who waits for the end of the next attempt; guarded by mu
	paying  map[journal.OwedID]bool            // what is being attempted, or about to be; guarded by mu
}

func newForwarder(cfg Forwarding, owner *Switch, log *slog.Logger) (*Forwarder, error) {
	if cfg.RetryMin <= 0 || cfg.RetryMax < cfg.RetryMin || cfg.ParkAfter <= 0 || cfg.NotFoundFinal <= 0 || cfg.Poll <= 0 || cfg.Parallel < 1 || cfg.Rate <= 0 {
		return nil, errors.New("forwarding: pauses, ages, poll and rate must be positive, retry_max at least retry_min, parallel at least 1")
	}
	f := &Forwarder{cfg: cfg, owner: owner, log: log, wake: map[string]chan struct{}{}, random: rand.Float64, absences: map[string]*absences{},
		waiting: map[journal.OwedID][]chan struct{}{}, paying: map[journal.OwedID]bool{}, came: make(chan struct{}, 1), sometimes: rate.Sometimes{First: 1, Interval: 10 * time.Second}}
	f.setPace(cfg.Rate)
	for _, endpoint := range owner.table.Load().endpoints {
		f.adopt(endpoint)
	}
	return f, nil
}

// adopt takes on an endpoint, also while Run runs.
func (f *Forwarder) adopt(endpoint *Endpoint) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.wake[endpoint.Name] = make(chan struct{}, 1)
	f.absences[endpoint.Name] = newAbsences(f.cfg.NotFoundFinal)
	f.unserved = append(f.unserved, endpoint)
	select {
	case f.came <- struct{}{}:
	default:
	}
}

// adopted returns the endpoints that were taken on since the last call.
func (f *Forwarder) adopted() []*Endpoint {
	f.mu.Lock()
	defer f.mu.Unlock()
	list := f.unserved
	f.unserved = nil
	return list
}

// absencesOf returns those of an endpoint that was taken on.
func (f *Forwarder) absencesOf(endpoint string) *absences {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.absences[endpoint]
}

// wakingOf is where the server of an endpoint is woken.
func (f *Forwarder) wakingOf(endpoint string) <-chan struct{} {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.wake[endpoint]
}

func (f *Forwarder) setPace(perSecond float64) { f.pace.Store(math.Float64bits(perSecond)) }

// Wake makes the forwarder look at the journal now.
func (f *Forwarder) Wake() {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, wake := range f.wake {
		select {
		case wake <- struct{}{}:
		default:
		}
	}
}

// Run pays what is owed until ctx ends; then it waits for the attempts in flight. It returns an error only if the journal failed.
func (f *Forwarder) Run(ctx context.Context) error {
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	var running sync.WaitGroup
	for ctx.Err() == nil {
		for _, endpoint := range f.adopted() {
			running.Go(func() {
				if err := f.serve(ctx, endpoint); err != nil {
					stop(err)
				}
			})
		}
		wait(ctx, f.came)
	}
	running.Wait()
	if err := context.Cause(ctx); err != nil && !errors.Is(err, context.Canceled) && !errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	return nil
}

// serve pays what is owed to one endpoint, up to Parallel at once and Rate a second. What waits long for its answer holds one place, not the
// others.
func (f *Forwarder) serve(ctx context.Context, endpoint *Endpoint) error {
	c := &counter{Forwarder: f, endpoint: endpoint, lineup: newLineup(), limit: rate.NewLimiter(rate.Limit(f.cfg.Rate), f.cfg.Parallel),
		settled: make(chan payment, f.cfg.Parallel)}
	var paying sync.WaitGroup
	defer paying.Wait()
	timer := time.NewTimer(0)
	defer timer.Stop()
	waking := f.wakingOf(endpoint.Name)
	for {
		timer.Reset(time.Until(c.start(ctx, &paying)))
		select {
		case <-ctx.Done():
			return nil
		case p := <-c.settled:
			if err := c.take(p); err != nil {
				return err
			}
		case <-timer.C:
		case <-waking:
		}
	}
}

// A counter is where one endpoint is paid. It is owned by serve.
type counter struct {
	*Forwarder
	endpoint *Endpoint
	lineup   *lineup
	limit    *rate.Limiter
	underWay int
	held     time.Time    // the HSM or the journal had no room: nothing is sent before
	settled  chan payment // one place for each that can be under way: nobody waits to report
}

// A payment is the end of one attempt.
type payment struct {
	of   *place
	turn       // the next one; not due: it is not owed any more
	err  error // errHeld, or fatal
}

// errHeld says that something owed could not be attempted now, and that nothing was recorded or sent.
var errHeld = errors.New("held")

// start begins what may be sent now, and returns when to look again.
func (c *counter) start(ctx context.Context, paying *sync.WaitGroup) time.Time {
	now := time.Now()
	if allowed := rate.Limit(math.Float64frombits(c.pace.Load())); allowed != c.limit.Limit() {
		c.limit.SetLimitAt(now, allowed)
	}
	for _, debt := range c.owner.journal.Incurred(c.endpoint.Name) {
		// The wall clock may have been set since: nothing waits longer than the longest pause.
		c.lineup.add(debt, now.Add(min(max(0, debt.DueAt.Sub(now)), c.cfg.RetryMax)))
	}
	poll := now.Add(c.cfg.Poll)
	// Without a link nothing is attempted: an attempt that cannot leave would be work for nothing.
	if !c.endpoint.processor.InService() {
		c.absencesOf(c.endpoint.Name).interrupt()
		return poll
	}
	if now.Before(c.held) {
		return c.held
	}
	for c.underWay < c.cfg.Parallel {
		next, at := c.lineup.next(now)
		if next == nil {
			if !at.IsZero() && at.Before(poll) {
				return at
			}
			return poll
		}
		reserved := c.limit.ReserveN(now, 1)
		if wait := reserved.DelayFrom(now); wait > 0 {
			reserved.CancelAt(now)
			c.lineup.again(next, next.turn)
			return now.Add(wait)
		}
		c.underWay++
		present := next.turn
		paying.Go(func() {
			following, err := c.pay(ctx, c.endpoint, next.ID)
			if err != nil {
				following = present
			}
			c.settled <- payment{next, following, err}
		})
	}
	return poll
}

// take takes the end of an attempt. Its error is fatal.
func (c *counter) take(p payment) error {
	c.underWay--
	switch {
	case errors.Is(p.err, errHeld):
		c.held = time.Now().Add(c.cfg.Poll)
		c.lineup.again(p.of, p.turn)
	case p.err != nil:
		return p.err
	case p.due.IsZero():
		c.lineup.remove(p.of)
	default:
		c.lineup.again(p.of, p.turn)
	}
	return nil
}

// pay makes one attempt at one reversal or advice, and returns when the next one is to be: the zero turn if it is not owed any more. Its
// error, but for errHeld, is fatal: the journal did not take a record.
func (f *Forwarder) pay(ctx context.Context, endpoint *Endpoint, id journal.OwedID) (turn, error) {
	attempted := false
	f.begins(id)
	defer func() { f.ends(id, attempted) }()
	owed, err := f.owner.journal.Owing(context.WithoutCancel(ctx), id)
	if err != nil {
		return turn{}, fmt.Errorf("reading what is owed to %s: %w", endpoint.Name, err)
	}
	if owed.State != journal.StateOwed {
		return turn{}, nil // a person has parked it
	}
	message, err := f.message(ctx, endpoint, owed)
	switch {
	case errors.Is(err, hsm.ErrSealedPAN):
		return f.setAside(ctx, endpoint, owed, err)
	case errors.As(err, new(*messages.FormatError)): // a part, and the dialect has come to have none since
		attempted = true
		return f.giveUp(ctx, owed, err)
	case err != nil:
		f.sometimes.Do(func() { f.log.Warn("reversals and advices are held", "endpoint", endpoint.Name, "error", err) })
		return turn{}, errHeld
	}
	defer message.Clear()
	own, err := f.numbers(ctx, endpoint, owed)
	if err != nil {
		return turn{}, errHeld
	}

	// Recorded before the send: after a crash in between, the next attempt is marked as a repeat, which is the safe side.
	ticket, err := f.attempt(ctx, owed.ID, own)
	if errors.Is(err, journal.ErrNotOwed) {
		return turn{}, nil
	}
	if err != nil {
		return turn{}, err
	}
	if own = ticket.Own(); own.STAN != "" {
		message.Set(messages.STAN, own.STAN)
		message.Set(messages.TransmissionTime, own.TransmissionTime)
	}
	if ticket.Attempt() > 1 {
		message.MTI = message.MTI.Repeat()
	}
	var trace conn.Trace
	answer, errSend := endpoint.send(conn.WithTrace(ctx, &trace), ticket, message)
	settlement := f.settle(endpoint.Codec.Dialect(), owed, ticket.Attempt(), answer, errSend)
	if settlement.State() != journal.StateOwed {
		f.absencesOf(owed.Endpoint).forget(owed.ID)
	}
	if err := f.owner.journal.Settle(context.WithoutCancel(ctx), ticket, settlement); err != nil {
		return turn{}, fmt.Errorf("recording settlement of %s %d: %w", owed.Kind, owed.ID, err)
	}
	f.report(attempt{owed: owed, number: ticket.Attempt(), mti: message.MTI, own: ticket.Own(), link: trace.Link, settlement: settlement, errSend: errSend})
	attempted = true
	attempts := ticket.Attempt()
	if settlement.Unsent() {
		attempts--
	}
	// Of what the processor does not have, no order matters.
	return turn{attempts: attempts, aside: settlement.Reason() == reasonNotFound, due: settlement.DueAt()}, nil
}

// message builds what is owed, as a first sending. All that it says is the record's: what was sent then, not what would be configured now;
// but its type and its form are the endpoint's.
func (f *Forwarder) message(ctx context.Context, endpoint *Endpoint, owed journal.Owed) (*messages.Message, error) {
	pan, err := f.owner.vault.OpenPAN(ctx, owed.PAN)
	if err != nil {
		return nil, err
	}
	if owed.Kind == journal.KindAdvice {
		var rest []byte
		if owed.Rest.KeyID != "" {
			if rest, err = f.owner.vault.OpenRest(ctx, owed.Rest); err != nil {
				return nil, err
			}
			defer clear(rest)
		}
		advice, err := endpoint.Codec.NewAdvice(owed.Original, pan, rest)
		if err != nil {
			return nil, fmt.Errorf("%w: %w", hsm.ErrSealedPAN, err)
		}
		return advice, nil
	}
	authorizationID := owed.AuthorizationID
	if authorizationID == "" {
		authorizationID = owed.Original.Get(messages.AuthorizationID) // an advice bears it itself
	}
	return endpoint.Codec.NewReversal(owed.Original, pan, authorizationID, owed.Replacement)
}

// numbers reserves numbers for a reversal that is to have some of its own, by the dialect or because another one of its original went before
// it, and that was not sent yet.
func (f *Forwarder) numbers(ctx context.Context, endpoint *Endpoint, owed journal.Owed) (journal.Numbers, error) {
	wants := endpoint.Codec.Dialect().Reversal.Numbers == specs.NewNumbers || owed.Reason == journal.ReasonWhole
	if owed.Kind != journal.KindReversal || !wants || owed.Attempts > 0 || owed.Own.STAN != "" {
		return journal.Numbers{}, nil
	}
	now := time.Now()
	numbers, err := f.owner.journal.Next(ctx, endpoint.Name, now)
	if err != nil {
		return journal.Numbers{}, err
	}
	return journal.Numbers{STAN: numbers.STAN, TransmissionTime: now.UTC().Format(messages.TransmissionTimeLayout)}, nil
}

// attempt records that something owed is about to be sent.
func (f *Forwarder) attempt(ctx context.Context, owed journal.OwedID, own journal.Numbers) (*journal.Ticket, error) {
	ticket, err := f.owner.journal.Attempt(ctx, owed, own)
	switch {
	case errors.Is(err, journal.ErrNotOwed):
		return nil, err
	case errors.Is(err, journal.ErrBusy), err != nil && ctx.Err() != nil:
		return nil, errHeld
	case err != nil:
		return nil, fmt.Errorf("recording attempt at %d: %w", owed, err)
	}
	return ticket, nil
}

// await waits until a reversal that the upstream asks for has been sent once, whatever came of it, or too little is left of the upstream's
// budget to answer in.
func (f *Forwarder) await(ctx context.Context, id journal.OwedID) {
	settled := make(chan struct{})
	f.mu.Lock()
	f.waiting[id] = append(f.waiting[id], settled)
	f.mu.Unlock()
	defer f.forsake(id, settled)
	// It may have been sent before somebody waited.
	owed, err := f.owner.journal.Owing(context.WithoutCancel(ctx), id)
	if err != nil || owed.State != journal.StateOwed || owed.Attempts > 0 && !f.isPaying(id) {
		return
	}
	if deadline, has := ctx.Deadline(); has {
		var release context.CancelFunc
		ctx, release = context.WithDeadline(ctx, deadline.Add(-min(time.Until(deadline)/answeringShare, longestAnswering)))
		defer release()
	}
	wait(ctx, settled)
}

// Of the upstream's budget, a tenth is left for the answer, and at most a second.
const (
	answeringShare   = 10
	longestAnswering = time.Second
)

// begins notes that an attempt goes on.
func (f *Forwarder) begins(id journal.OwedID) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.paying[id] = true
}

// ends notes that none goes on any more. If one was made, the waits for it end at the same moment, so that nobody waits for one that is over.
func (f *Forwarder) ends(id journal.OwedID, attempted bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.paying, id)
	if !attempted {
		return
	}
	for _, settled := range f.waiting[id] {
		close(settled)
	}
	delete(f.waiting, id)
}

func (f *Forwarder) isPaying(id journal.OwedID) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.paying[id]
}

// forsake ends a wait that nobody has ended.
func (f *Forwarder) forsake(id journal.OwedID, settled chan struct{}) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.waiting[id] = slices.DeleteFunc(f.waiting[id], func(c chan struct{}) bool { return c == settled }); len(f.waiting[id]) == 0 {
		delete(f.waiting, id)
	}
}

// setAside moves something whose PAN or rest cannot be opened out of the way of the others. It stays owed: the key may come back.
func (f *Forwarder) setAside(ctx context.Context, endpoint *Endpoint, owed journal.Owed, cause error) (turn, error) {
	settlement := journal.Unsent(time.Now().Add(f.pause(owed)), reasonSealedPAN)
	if _, settled, err := f.settleUnsent(ctx, owed, settlement); !settled {
		return turn{}, err
	}
	f.log.Error("reversal or advice cannot be sent: its card data cannot be opened", "kind", string(owed.Kind), "owed", int64(owed.ID),
		"transaction", int64(owed.TransactionID), "endpoint", endpoint.Name, "error", cause)
	return turn{attempts: owed.Attempts, aside: true, due: settlement.DueAt()}, nil
}

// giveUp parks something that its endpoint's dialect cannot say, so that nothing else is said in its place.
func (f *Forwarder) giveUp(ctx context.Context, owed journal.Owed, cause error) (turn, error) {
	settlement := journal.Parked(reasonFormat, "")
	ticket, settled, err := f.settleUnsent(ctx, owed, settlement)
	if !settled {
		return turn{}, err
	}
	f.report(attempt{owed: owed, number: ticket.Attempt(), mti: owed.Original.MTI, link: -1, settlement: settlement, errSend: cause})
	return turn{}, nil
}

// settleUnsent records what becomes of something of which nothing is sent. It is false if it is not owed any more, or with an error.
func (f *Forwarder) settleUnsent(ctx context.Context, owed journal.Owed, settlement journal.Settlement) (ticket *journal.Ticket, settled bool, err error) {
	ticket, err = f.attempt(ctx, owed.ID, journal.Numbers{})
	switch {
	case errors.Is(err, journal.ErrNotOwed):
		return nil, false, nil
	case err != nil:
		return nil, false, err
	}
	if err := f.owner.journal.Settle(context.WithoutCancel(ctx), ticket, settlement); err != nil {
		return nil, false, fmt.Errorf("recording that %s %d is not sent: %w", owed.Kind, owed.ID, err)
	}
	return ticket, true, nil
}

// sentOften is how often something must have been sent before it is parked for its age: if its processor was down for a day, it has not
// been tried yet. At that often an alarm is counted; from then on each further attempt is a warning, and it holds up its card no more.
const sentOften = 6

// settle says what came of an attempt. It ends a reversal only by the processor's own word.
func (f *Forwarder) settle(dialect *specs.Dialect, owed journal.Owed, attempt int, answer *messages.Message, err error) journal.Settlement {
	is, code, pause := dialect.Reversal, "", f.pause(owed)
	if err == nil {
		code = answer.Get(messages.ResponseCode)
	}
	// What was approved, and what it was told of by an advice, is there: a processor that does not find it has not understood the reversal.
	// Of a reversal that is forwarded as it came, nobody here knows.
	mayBeAbsent := owed.Kind == journal.KindReversal && owed.Outcome == journal.Unknown && owed.Reason != journal.ReasonHeard && owed.Reason != reasonPartial ||
		owed.Kind == journal.KindAdvice && owed.Original.MTI.Class() == messages.Reversal
	absent := slices.Contains(is.NotFound, code) && mayBeAbsent
	absences := f.absencesOf(owed.Endpoint)
	missing := absences.note(owed.ID, err == nil, absent)
	if absent {
		pause = min(pause, absences.nextAttempt())
	}
	next, age := time.Now().Add(pause), time.Since(owed.Since)
	var format *messages.FormatError
	switch {
	case errors.Is(err, conn.ErrNotSent) && errors.As(err, &format):
		return journal.Parked(reasonFormat, "")
	case errors.Is(err, conn.ErrNotSent):
		return journal.Unsent(next, classify(dialect, nil, err).Reason)
	}
	reason := reasonRefused
	// "Done before" can be true only if an earlier attempt had no answer. If each had one that refused it, the processor may take the
	// reversal for the duplicate of its original, whose numbers it bears.
	unheard := attempt-1 > owed.Answered
	switch {
	case err != nil:
		reason = classify(dialect, nil, err).Reason
	case slices.Contains(is.Acknowledged, code), slices.Contains(is.Already, code) && unheard:
		return journal.Acknowledged(code)
	case absent && missing >= f.cfg.NotFoundFinal:
		return journal.Absent(code, next)
	case slices.Contains(is.NotFound, code):
		reason = reasonNotFound
	case slices.Contains(is.Already, code) && attempt >= sentOften:
		return journal.Parked(reasonAlready, code)
	case slices.Contains(is.Poison, code):
		return journal.Parked(reasonPoison, code)
	case !slices.Contains(is.Retry, code) && !slices.Contains(is.Already, code):
		reason = reasonUnlisted
	}
	if age >= f.cfg.ParkAfter && attempt >= sentOften && !absent { // one that is absent ends soon by itself
		return journal.Parked(reasonExpired, code)
	}
	return journal.Again(next, reason, code)
}

// pause is the time until the next attempt: RetryMin doubled for each attempt before, at most RetryMax, and of that between a half
// and the whole, so that reversals that failed together do not come back together. Where attempts do not count, because nothing was
// sent, it grows with the age instead.
func (f *Forwarder) pause(owed journal.Owed) time.Duration {
	pause := f.cfg.RetryMin
	for n := owed.Attempts; n > 0 && pause < f.cfg.RetryMax; n-- {
		pause *= 2
	}
	if owed.Attempts == 0 {
		pause = max(pause, time.Since(owed.Since))
	}
	pause = min(pause, f.cfg.RetryMax)
	return pause/2 + time.Duration(f.random()*float64(pause/2))
}

// An attempt is what the log tells of one.
type attempt struct {
	owed       journal.Owed
	number     int // from 1
	mti        messages.MTI
	own        journal.Numbers // zero if its message had those of its original
	link       int             // -1 if it was given to none
	settlement journal.Settlement
	errSend    error
}

func (f *Forwarder) report(a attempt) {
	o, s := a.owed, a.settlement
	f.owner.metrics.reversals.WithLabelValues(o.Endpoint, s.Event()).Inc()
	attributes := []any{"result", s.Event(), "kind", string(o.Kind), "owed", int64(o.ID), "transaction", int64(o.TransactionID), "mti", string(a.mti),
		"attempt", a.number, "stan", o.Original.Get(messages.STAN), "rrn", o.Original.Get(messages.RRN), "endpoint", o.Endpoint,
		"amount", o.Original.Get(messages.Amount), "currency", o.Original.Get(messages.Currency), "age_seconds", time.Since(o.Since).Seconds(),
		"response_code", s.ResponseCode()}
	if a.own.STAN != "" {
		attributes = append(attributes, "own_stan", a.own.STAN) // by which the processor's people find it
	}
	if a.link >= 0 {
		attributes = append(attributes, "link", a.link)
	}
	if a.errSend != nil {
		attributes = append(attributes, "error", a.errSend)
	}
	if s.Reason() != "" {
		attributes = append(attributes, "reason", s.Reason())
	}
	if s.State() == journal.StateParked {
		if o.Kind == journal.KindAdvice {
			f.log.Error("advice parked: it needs a person", attributes...)
		} else {
			f.log.Error("reversal parked: it needs a person", attributes...)
		}
		return
	}
	level := slog.LevelInfo
	if s.State() == journal.StateOwed && a.number >= sentOften {
		level = slog.LevelWarn
	}
	if s.State() == journal.StateOwed && a.number == sentOften && !s.Unsent() {
		f.owner.metrics.alarms.WithLabelValues(o.Endpoint).Inc()
	}
	if o.Kind == journal.KindAdvice {
		f.log.Log(context.Background(), level, "advice", attributes...)
	} else {
		f.log.Log(context.Background(), level, "reversal", attributes...)
	}
}
