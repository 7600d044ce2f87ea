package conn

import (
	"context"
	"log/slog"
	"math/rand/v2"
	"time"
)

// A link is one address and its state machine. All that it does, run does; only the fields that say so are read by others.
type link struct {
	endpoint *Endpoint
	number   int // its index in Config.Links, by which logs name it
	address  string
	log      *slog.Logger
	failures int // sessions in a row that were not in service for BackoffMax

	state     State     // guarded by Endpoint.mu
	since     time.Time // of state; guarded by Endpoint.mu
	session   *session  // nil while down; guarded by Endpoint.mu
	lastError cause     // guarded by Endpoint.mu
}

// run connects again and again until ctx ends.
func (l *link) run(ctx context.Context) {
	for {
		served, why := l.connect(ctx)
		l.down(why)
		if ctx.Err() != nil {
			return
		}
		if served >= l.endpoint.cfg.BackoffMax {
			l.failures = 0
		}
		pause := time.NewTimer(backoff(l.failures, l.endpoint.cfg.BackoffMin, l.endpoint.cfg.BackoffMax, rand.Float64())) //nolint:gosec // jitter needs no secrecy
		l.failures++
		select {
		case <-ctx.Done():
			pause.Stop()
			return
		case <-pause.C:
		}
		l.endpoint.metrics.reconnects.Inc()
	}
}

// backoff is the pause after so many failures: shortest doubled for each, at most longest, and of that between a half and the whole,
// so that links that fell together do not come back together. jitter is within 0 to 1.
func backoff(failures int, shortest, longest time.Duration, jitter float64) time.Duration {
	pause := shortest
	for ; failures > 0 && pause < longest; failures-- {
		pause *= 2
	}
	pause = min(pause, longest)
	return pause/2 + time.Duration(jitter*float64(pause/2))
}

// connect takes the link through one connection, from dial to close. It returns for how long the link was in service, and why it
// ended, when nothing of the connection is left.
func (l *link) connect(ctx context.Context) (served time.Duration, why cause) {
	cfg := &l.endpoint.cfg
	dialing, cancel := context.WithTimeout(ctx, cfg.DialTimeout)
	connection, err := cfg.Dial(dialing, l.address)
	cancel()
	if err != nil {
		if ctx.Err() != nil {
			return 0, causeStopped
		}
		l.log.Debug("dialling failed", "error", err)
		return 0, causeDial
	}
	s, err := newSession(l, connection)
	if err != nil {
		_ = connection.Close()
		l.log.Error("session not begun", "error", err)
		return 0, causeDial
	}
	defer func() { why = s.close(causeStopped) }()
	l.enter(Connected, s)

	if !s.signOn(ctx) {
		return 0, causeNone
	}
	l.enter(SignedOn, s)
	l.enter(InService, s)
	began := time.Now()
	l.serve(ctx, s)
	return time.Since(began), causeNone
}

// serve keeps a session in service alive until it ends, or until it must not go on and is drained.
func (l *link) serve(ctx context.Context, s *session) {
	interval := l.endpoint.cfg.EchoInterval
	quiet := time.NewTimer(interval)
	defer quiet.Stop()
	missed := 0
	for !s.signedOff {
		select {
		case <-s.ended():
			return
		case <-ctx.Done():
			l.enter(Draining, s)
			s.signOff()
			return
		case request := <-s.requests:
			s.respond(request)
		case <-quiet.C:
			rest := interval - s.quiet()
			if rest > 0 {
				missed = 0
			} else {
				if missed = s.echo(ctx, missed); missed >= l.endpoint.cfg.EchoMisses {
					s.close(causeEchoMissed)
				}
				rest = interval - s.quiet() // at once after a missed one
			}
			quiet.Reset(max(0, rest))
		}
	}
	l.drain(ctx, s)
}

// drain lets the exchanges in flight on the session end, and closes it: the processor has signed off.
func (l *link) drain(ctx context.Context, s *session) {
	l.enter(Draining, s)
	longest := time.NewTimer(l.endpoint.cfg.ReplyTimeout)
	defer longest.Stop()
	for {
		select {
		case request := <-s.requests:
			s.respond(request)
			continue
		case <-s.ended():
		case <-ctx.Done():
		case <-longest.C:
		case <-s.idle:
		}
		s.close(causeSignedOffByPeer)
		return
	}
}

// enter takes the link to the next state.
func (l *link) enter(next State, s *session) {
	l.endpoint.mu.Lock()
	l.session = s
	if next == Draining {
		s.drain()
	}
	before := l.change(next)
	l.endpoint.mu.Unlock()
	l.log.Info("link state", "from", string(before), "to", string(next))
}

// down takes the link to its first state, whichever it is in. A failure to connect again is logged only if it differs from the last.
func (l *link) down(why cause) {
	l.endpoint.mu.Lock()
	before := l.state
	news := before != Down || (why != causeStopped && why != l.lastError)
	if before != Down {
		l.change(Down)
	}
	l.session = nil
	if why != causeStopped {
		l.lastError = why
	}
	l.endpoint.mu.Unlock()
	switch {
	case !news:
	case why == causeStopped:
		l.log.Info("link state", "from", string(before), "to", string(Down), "cause", string(why))
	case before == Down:
		l.log.Warn("link not connected", "cause", string(why))
	default:
		l.log.Warn("link state", "from", string(before), "to", string(Down), "cause", string(why))
	}
}

// change sets the state. A change that the table does not have is a fault of this package. Called under Endpoint.mu.
func (l *link) change(next State) (before State) {
	before = l.state
	if !before.precedes(next) {
		panic("conn: link from " + string(before) + " to " + string(next))
	}
	l.state, l.since = next, time.Now()
	l.endpoint.metrics.links[before].Dec()
	l.endpoint.metrics.links[next].Inc()
	return before
}
