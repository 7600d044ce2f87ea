package acquirer

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"sync"
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

	Poll     time.Duration // how often the journal is asked for what has become due
	Parallel int           // reversals in flight at once, for each endpoint
}

// A Forwarder sends owed reversals until each is acknowledged or parked. Each endpoint is served apart, so that one that is down does
// not hold up another; within an endpoint, reversals are independent of each other.
type Forwarder struct {
	cfg    Forwarding
	owner  *Switch
	log    *slog.Logger
	wake   map[string]chan struct{} // capacity 1, by endpoint
	random func() float64           // [0, 1)

	sometimes rate.Sometimes // for what each poll would log again

	absences map[string]*absences // by endpoint
}

func newForwarder(cfg Forwarding, owner *Switch, log *slog.Logger) (*Forwarder, error) {
	if cfg.RetryMin <= 0 || cfg.RetryMax < cfg.RetryMin || cfg.ParkAfter <= 0 || cfg.NotFoundFinal <= 0 || cfg.Poll <= 0 || cfg.Parallel < 1 {
		return nil, errors.New("forwarding: pauses, ages and poll must be positive, retry_max at least retry_min, parallel at least 1")
	}
	f := &Forwarder{cfg: cfg, owner: owner, log: log, wake: map[string]chan struct{}{}, random: rand.Float64, absences: map[string]*absences{},
		sometimes: rate.Sometimes{First: 1, Interval: 10 * time.Second}}
	for name := range owner.endpoints {
		f.wake[name] = make(chan struct{}, 1)
		f.absences[name] = newAbsences(cfg.NotFoundFinal)
	}
	return f, nil
}

// Wake makes the forwarder look at the journal now.
func (f *Forwarder) Wake() {
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
	for _, endpoint := range f.owner.endpoints {
		running.Go(func() {
			if err := f.serve(ctx, endpoint); err != nil {
				stop(err)
			}
		})
	}
	running.Wait()
	if err := context.Cause(ctx); err != nil && !errors.Is(err, context.Canceled) && !errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	return nil
}

// serve pays one endpoint's reversals, up to Parallel at once. A reversal that waits long for its answer holds one place, not the others.
func (f *Forwarder) serve(ctx context.Context, endpoint *Endpoint) error {
	var paying sync.WaitGroup
	defer paying.Wait()
	poll := time.NewTicker(f.cfg.Poll)
	defer poll.Stop()
	settled := make(chan payment, f.cfg.Parallel) // one place for each that can be under way: nobody waits to report
	underWay := map[journal.OwedID]bool{}
	held := false // the HSM or the journal had no room: nothing more before the next poll
	for {
		// Without a link nothing is attempted: an attempt that cannot leave would be work for nothing.
		inService := endpoint.processor.InService()
		if !inService {
			f.absences[endpoint.Name].interrupt()
		}
		if free := f.cfg.Parallel - len(underWay); free > 0 && !held && inService {
			due, err := f.owner.journal.Due(ctx, journal.Turn{Endpoint: endpoint.Name, Now: time.Now(), Farthest: f.cfg.RetryMax,
				Limit: f.cfg.Parallel + len(underWay)})
			if err != nil && ctx.Err() == nil {
				return fmt.Errorf("reading what is owed to %s: %w", endpoint.Name, err)
			}
			for _, owed := range due {
				if underWay[owed.ID] || len(underWay) == f.cfg.Parallel {
					continue
				}
				underWay[owed.ID] = true
				paying.Go(func() { settled <- payment{owed.ID, f.pay(ctx, endpoint, owed)} })
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case p := <-settled:
			delete(underWay, p.owed)
			if p.err != nil && !errors.Is(p.err, errHeld) {
				return p.err
			}
			held = held || p.err != nil
		case <-poll.C:
			held = false
		case <-f.wake[endpoint.Name]:
		}
	}
}

// A payment is the end of one attempt.
type payment struct {
	owed journal.OwedID
	err  error
}

// errHeld says that a reversal could not be attempted now, and that nothing was recorded or sent.
var errHeld = errors.New("held")

// pay makes one attempt at one reversal. What it returns, but for errHeld, is fatal: the journal did not take a record.
func (f *Forwarder) pay(ctx context.Context, endpoint *Endpoint, owed journal.Owed) error {
	pan, err := f.owner.vault.OpenPAN(ctx, owed.PAN)
	if err != nil && !errors.Is(err, hsm.ErrSealedPAN) {
		f.sometimes.Do(func() { f.log.Warn("reversals are held", "endpoint", endpoint.Name, "error", err) })
		return errHeld
	}
	if err != nil {
		return f.setAside(ctx, endpoint, owed, err)
	}
	// All that it says is the record's: what was sent then, not what would be configured now.
	reversal := messages.NewReversal(owed.Original, pan, owed.AuthorizationID)
	defer reversal.Clear()

	// Recorded before the send: after a crash in between, the next attempt is marked as a repeat, which is the safe side.
	ticket, err := f.attempt(ctx, owed.ID)
	if err != nil {
		return err
	}
	if ticket.Attempt() > 1 {
		reversal.MTI = reversal.MTI.Repeat()
	}
	var trace conn.Trace
	answer, errSend := endpoint.send(conn.WithTrace(ctx, &trace), ticket, reversal)
	settlement := f.settle(endpoint.Codec.Dialect(), owed, ticket.Attempt(), answer, errSend)
	if settlement.State() != journal.StateOwed {
		f.absences[owed.Endpoint].forget(owed.ID)
	}
	if err := f.owner.journal.Settle(context.WithoutCancel(ctx), ticket, settlement); err != nil {
		return fmt.Errorf("recording settlement of reversal %d: %w", owed.ID, err)
	}
	f.report(attempt{owed: owed, number: ticket.Attempt(), mti: reversal.MTI, link: trace.Link, settlement: settlement, errSend: errSend})
	return nil
}

// attempt records that a reversal is about to be sent.
func (f *Forwarder) attempt(ctx context.Context, owed journal.OwedID) (*journal.Ticket, error) {
	ticket, err := f.owner.journal.Attempt(ctx, owed)
	if errors.Is(err, journal.ErrBusy) || errors.Is(err, journal.ErrNotOwed) || err != nil && ctx.Err() != nil {
		return nil, errHeld
	}
	if err != nil {
		return nil, fmt.Errorf("recording attempt at reversal %d: %w", owed, err)
	}
	return ticket, nil
}

// setAside moves a reversal whose PAN cannot be opened out of the way of the others. It stays owed: the key may come back.
func (f *Forwarder) setAside(ctx context.Context, endpoint *Endpoint, owed journal.Owed, cause error) error {
	ticket, err := f.attempt(ctx, owed.ID)
	if err != nil {
		return err
	}
	settlement := journal.Unsent(time.Now().Add(f.pause(owed)), reasonSealedPAN)
	if err := f.owner.journal.Settle(context.WithoutCancel(ctx), ticket, settlement); err != nil {
		return fmt.Errorf("setting reversal %d aside: %w", owed.ID, err)
	}
	f.log.Error("reversal cannot be sent: its PAN cannot be opened", "reversal", int64(owed.ID), "transaction", int64(owed.TransactionID), "endpoint", endpoint.Name, "error", cause)
	return nil
}

// sentOften is how often a reversal must have been sent before it is parked for its age: one whose processor was down for a day has not
// been tried yet. From that often on each further attempt is a warning.
const sentOften = 6

// settle says what came of an attempt. It ends a reversal only by the processor's own word.
func (f *Forwarder) settle(dialect *specs.Dialect, owed journal.Owed, attempt int, answer *messages.Message, err error) journal.Settlement {
	is, code, pause := dialect.Reversal, "", f.pause(owed)
	if err == nil {
		code = answer.Get(messages.ResponseCode)
	}
	// What was approved and not delivered is there: a processor that does not find it has not understood the reversal.
	absent := slices.Contains(is.NotFound, code) && owed.Reason != reasonUndelivered
	absences := f.absences[owed.Endpoint]
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
		return journal.Unsent(next, reasonNotSent)
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
		return journal.Acknowledged(code)
	case slices.Contains(is.NotFound, code):
		reason = reasonNotFound
	case slices.Contains(is.Already, code) && attempt >= sentOften:
		return journal.Parked(reasonAlready, code)
	case slices.Contains(is.Poison, code):
		return journal.Parked(reasonPoison, code)
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
	link       int // -1 if it was given to none
	settlement journal.Settlement
	errSend    error
}

func (f *Forwarder) report(a attempt) {
	o, s := a.owed, a.settlement
	f.owner.metrics.reversals.WithLabelValues(o.Endpoint, s.Event()).Inc()
	attributes := []any{"result", s.Event(), "reversal", int64(o.ID), "transaction", int64(o.TransactionID), "mti", string(a.mti),
		"attempt", a.number, "stan", o.Original.Get(messages.STAN), "rrn", o.Original.Get(messages.RRN), "endpoint", o.Endpoint,
		"amount", o.Original.Get(messages.Amount), "currency", o.Original.Get(messages.Currency), "age_seconds", time.Since(o.Since).Seconds(),
		"response_code", s.ResponseCode()}
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
		f.log.Error("reversal parked: it needs a person", attributes...)
		return
	}
	level := slog.LevelInfo
	if s.State() == journal.StateOwed && a.number >= sentOften {
		level = slog.LevelWarn
	}
	f.log.Log(context.Background(), level, "reversal", attributes...)
}
