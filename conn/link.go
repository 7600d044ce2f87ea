package conn

import (
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"
)

// A link is one entry of Config.Links: a place for one connection in service. Its sessions come one after the other; there are others
// beside the one that serves only while a better host is tried, and while one that was in service drains.
type link struct {
	endpoint *Endpoint
	hosts    []string       // none if the processor dials
	number   atomic.Int32   // index in Config.Links, which can change with it; greater than all of those for a link that departs
	running  sync.WaitGroup // sessions and trials: all that run has begun
	counted  tally

	end        context.CancelCauseFunc // ends the link for good; guarded by Endpoint.mu, nil before Run
	life       context.Context         // that end ends; guarded by Endpoint.mu, nil before Run
	allowed    context.Context         // until the link may not be connected any more; guarded by Endpoint.mu
	bar        context.CancelCauseFunc // ends allowed; guarded by Endpoint.mu, nil before Run
	resumed    chan struct{}           // while an operator, or suspend, holds the link down: closed when that is over; guarded by Endpoint.mu
	suspended  bool                    // it is held by suspend; guarded by Endpoint.mu
	until      time.Time               // when suspend lets it come back by itself; zero: never; guarded by Endpoint.mu
	untrusted  []time.Time             // when messages with a wrong MAC came, within macWindow, the oldest first; guarded by Endpoint.mu
	strangers  rate.Sometimes          // for the errors in the log about connections with a wrong MAC before their sign-on
	configured Link                    // guarded by Endpoint.mu
	listener   *listener               // of a link that is dialled by the processor; guarded by Endpoint.mu
	host       int                     // index in hosts that is in use, or is tried; guarded by Endpoint.mu
	session    *session                // what the link shows; nil while down; guarded by Endpoint.mu
	sessions   []*session              // every one that is open; guarded by Endpoint.mu
	since      time.Time               // while down; guarded by Endpoint.mu
	lastError  cause                   // guarded by Endpoint.mu
	failures   map[cause]int           // guarded by Endpoint.mu
}

func newLink(e *Endpoint, number int, configured Link) *link {
	l := &link{endpoint: e, hosts: configured.Hosts, configured: configured, since: time.Now(), failures: map[cause]int{},
		strangers: rate.Sometimes{Interval: strangerInterval}}
	l.number.Store(int32(number)) //nolint:gosec // an index
	return l
}

func (l *link) log() *slog.Logger { return l.endpoint.log.With("link", l.number.Load()) }

// start begins the link. Called under Endpoint.mu.
func (l *link) start() {
	e := l.endpoint
	l.life, l.end = context.WithCancelCause(e.serving)
	l.allow()
	if l.configured.Listen != "" {
		l.listener = e.listenAt(l.configured.Listen)
	}
	e.carrying.Go(l.run)
}

// allow lets the link connect. Called under Endpoint.mu.
func (l *link) allow() {
	if l.life != nil && l.resumed == nil {
		l.allowed, l.bar = context.WithCancelCause(l.life)
	}
}

// retire has the link's connections drain, and lets it make no other. Called under Endpoint.mu.
func (l *link) retire(why cause, bar context.CancelCauseFunc) {
	if bar != nil {
		bar(why)
	}
	for _, s := range l.sessions {
		s.leave(why)
	}
}

// permit waits until the link may connect, and returns a context that ends when it may not any more. It is nil at the link's end.
func (l *link) permit() context.Context {
	for {
		l.endpoint.mu.Lock()
		allowed, resumed, life, until := l.allowed, l.resumed, l.life, l.until
		l.endpoint.mu.Unlock()
		switch {
		case life.Err() != nil:
			return nil
		case resumed == nil:
			return allowed
		}
		var over <-chan time.Time
		if !until.IsZero() {
			over = time.After(time.Until(until))
		}
		select {
		case <-resumed:
		case <-over:
			l.endpoint.mu.Lock()
			if l.resumed == resumed && !l.until.IsZero() { // else an operator holds it now
				l.log().Warn("link resumed: its suspension is over")
				l.resume()
			}
			l.endpoint.mu.Unlock()
		case <-life.Done():
		}
	}
}

// run makes one connection after the other until the end of the link. The hosts are tried in their order, the next one at once, and after
// the last one there is a pause.
func (l *link) run() {
	defer l.running.Wait()
	host, failures := 0, 0
	for {
		permit := l.permit()
		if permit == nil {
			return
		}
		var served time.Duration
		if s := l.open(permit, host, true); s != nil {
			host, served = l.serve(permit, s)
		}
		if permit.Err() != nil {
			host, failures = 0, 0
			continue
		}
		cfg := l.endpoint.config()
		if served >= cfg.BackoffMax {
			failures = 0
		}
		if host++; host >= len(l.hosts) {
			host = 0
			switch {
			case len(l.hosts) > 0:
				wait(permit, backoff(failures, cfg.BackoffMin, cfg.BackoffMax, rand.Float64())) //nolint:gosec // jitter needs no secrecy
				failures++
			case served == 0: // the processor dials in its own time; this keeps one in check that is never signed on
				wait(permit, backoff(0, cfg.BackoffMin, cfg.BackoffMax, rand.Float64())) //nolint:gosec // jitter needs no secrecy
			}
		}
		if permit.Err() == nil {
			l.counted.reconnects.Add(1)
		}
	}
}

// wait waits for so long, or until ctx ends.
func wait(ctx context.Context, pause time.Duration) {
	timer := time.NewTimer(pause)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
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

// open makes a connection and signs it on; show says that the link shows it before that. It is nil if that has failed, which is accounted
// for, or if ctx has ended.
func (l *link) open(ctx context.Context, host int, show bool) *session {
	e := l.endpoint
	connection, address, err := l.connect(ctx, host, show)
	if err != nil {
		if ctx.Err() == nil {
			l.unconnected(address, host, err)
		}
		return nil
	}
	s, err := newSession(l, host, address, connection)
	if err != nil {
		_ = connection.Close()
		l.unconnected(address, host, err)
		return nil
	}
	e.mu.Lock()
	s.change(established)
	l.sessions = append(l.sessions, s)
	if show {
		l.session = s
	}
	e.mu.Unlock()
	s.logState(Down, Connected)
	if !s.signOn(ctx) {
		s.end(causeOf(ctx))
		return nil
	}
	e.mu.Lock()
	s.change(accepted)
	e.mu.Unlock()
	s.logState(Connected, SignedOn)
	return s
}

// connect dials, or waits until the processor has, and puts TLS over it. Its error is a cause, or wraps one.
func (l *link) connect(ctx context.Context, host int, show bool) (c net.Conn, address string, err error) {
	cfg := l.endpoint.config()
	l.endpoint.mu.Lock()
	encryption, from := l.configured.TLS, l.listener
	if show {
		l.host = host
	}
	l.endpoint.mu.Unlock()

	dialled := ""
	if from == nil {
		dialled, address = l.hosts[host], l.hosts[host]
		dialling, cancel := context.WithTimeout(ctx, cfg.DialTimeout)
		defer cancel()
		ctx = dialling
		if c, err = cfg.Dial(ctx, dialled); err != nil {
			return nil, address, errors.Join(causeDial, err)
		}
	} else {
		select {
		case <-ctx.Done():
			return nil, "", ctx.Err()
		case c = <-from.arrivals:
		}
		address = c.RemoteAddr().String()
		shaking, cancel := context.WithTimeout(ctx, cfg.DialTimeout)
		defer cancel()
		ctx = shaking
	}
	if encryption == nil {
		return c, address, nil
	}
	paced := &PacedConn{Conn: c, Timeout: func() time.Duration { return l.endpoint.config().WriteTimeout }}
	over, err := secure(ctx, paced, encryption, dialled)
	if err != nil {
		return nil, address, errors.Join(causeTLS, err)
	}
	return over, address, nil
}

// causeOf is why a context has ended, or none.
func causeOf(ctx context.Context) cause {
	var why cause
	if ctx.Err() != nil && !errors.As(context.Cause(ctx), &why) {
		return causeStopped
	}
	return why
}

// serve has a session carry exchanges, and any from a better host after it, until none is left or the link may not go on. It returns the
// host that was lost, and for how long it has served.
func (l *link) serve(permit context.Context, s *session) (lost int, served time.Duration) {
	if !l.give(permit, s) {
		return s.host, 0
	}
	began := time.Now()
	var better *trial // nil while none is made
	tried := began
	// replaced reports whether a better host that was being tried takes the place of the session.
	replaced := func() bool {
		if better == nil {
			return false
		}
		better.cancel(causeFailBack) // the next host is there sooner, unless this one is there already
		next := <-better.result
		better = nil
		if next == nil || !l.give(permit, next) {
			return false
		}
		s, began = next, time.Now()
		l.counted.reconnects.Add(1)
		return true
	}
	for {
		cfg := l.endpoint.config()
		var result <-chan *session
		var due <-chan time.Time
		if better != nil {
			result = better.result
		} else if s.host > 0 {
			due = time.After(time.Until(tried.Add(cfg.FailBack)))
		}
		select {
		case <-permit.Done():
			if better != nil {
				better.giveUp(causeOf(permit))
			}
			<-s.over // it drains, by what has ended the permit
			return s.host, time.Since(began)
		case <-s.over:
			if !replaced() {
				return s.host, time.Since(began)
			}
		case <-s.dismissed:
			// The processor wants this host to be left. Another one need not wait until it has drained.
			if len(l.hosts) < 2 {
				<-s.over
			}
			if !replaced() {
				return s.host, time.Since(began)
			}
		case <-due:
			better = l.try(permit, s.host)
		case next := <-result:
			better, tried = nil, time.Now()
			if next != nil && l.give(permit, next) {
				s, began = next, time.Now()
				l.counted.reconnects.Add(1)
			}
		case <-cfg.replaced:
		}
	}
}

// give has a session that is signed on carry the exchanges. What carried them before drains, so that nothing in flight on it is lost. It is
// false if the link may not be in service any more; then the session is signed off and closed.
func (l *link) give(permit context.Context, s *session) bool {
	e := l.endpoint
	e.mu.Lock()
	if why := l.unwelcome(permit, s); why != causeNone {
		e.mu.Unlock()
		s.signOff(why)
		s.end(why)
		return false
	}
	s.change(chosen)
	before := l.session
	l.session, l.host = s, s.host
	if before != nil && before != s {
		before.leave(causeFailBack)
	}
	e.relieve()
	e.mu.Unlock()
	s.logState(SignedOn, InService)
	l.running.Go(s.run)
	return true
}

// unwelcome is why a session may not be in service, or none. It changes under mu, so that an operator who drains the link sees no exchange
// on it after that. Called under Endpoint.mu.
func (l *link) unwelcome(permit context.Context, s *session) cause {
	if why := causeOf(permit); why != causeNone {
		return why
	}
	if l.listener != nil && !l.configured.permits(s.address) {
		return causeNotAllowed // any more: by a reload, since it was accepted
	}
	return causeNone
}

// A trial is a search for a better host, while another one serves.
type trial struct {
	cancel context.CancelCauseFunc
	result chan *session // capacity 1: a session that is signed on, or nil
}

// try searches the hosts that are better than this one.
func (l *link) try(permit context.Context, than int) *trial {
	ctx, cancel := context.WithCancelCause(permit)
	t := &trial{cancel, make(chan *session, 1)}
	l.running.Go(func() {
		var found *session
		for host := 0; host < than && found == nil && ctx.Err() == nil; host++ {
			found = l.open(ctx, host, false)
		}
		t.result <- found
		cancel(nil)
	})
	return t
}

// giveUp ends a trial whose result is not wanted.
func (t *trial) giveUp(why cause) {
	t.cancel(why)
	if s := <-t.result; s != nil {
		s.signOff(why)
		s.end(why)
	}
}

// unconnected accounts for an attempt that did not come to a connection. It is logged if it failed otherwise than the last.
func (l *link) unconnected(address string, host int, err error) {
	why := causeDial
	_ = errors.As(err, &why)
	l.endpoint.mu.Lock()
	news := l.fail(why)
	l.endpoint.mu.Unlock()
	if news {
		l.log().Warn("link not connected", "address", address, "host", host, "cause", string(why))
	}
	l.log().Debug("connecting failed", "address", address, "error", err)
}

// fail notes a failure, and reports whether it differs from the last. Called under Endpoint.mu.
func (l *link) fail(why cause) (news bool) {
	news = l.lastError != why
	l.lastError = why
	l.failures[why]++
	return news
}

// forget takes a session that has ended off the link. Called under Endpoint.mu.
func (l *link) forget(s *session) {
	l.sessions = slices.DeleteFunc(l.sessions, func(other *session) bool { return other == s })
	if len(l.sessions) == 0 {
		l.endpoint.departing = slices.DeleteFunc(l.endpoint.departing, func(other *link) bool { return other == l })
	}
	if l.session == s {
		l.session, l.since = nil, time.Now()
	}
}

// state is what the link shows, and since when. Called under Endpoint.mu.
func (l *link) state() (State, time.Time) {
	if l.session == nil {
		return Down, l.since
	}
	return l.session.state, l.session.since
}

// inService is called under Endpoint.mu.
func (l *link) inService() bool { return l.session != nil && l.session.state == InService }

// inFlight counts the exchanges on all of the link's connections. Called under Endpoint.mu.
func (l *link) inFlight() int {
	n := 0
	for _, s := range l.sessions {
		n += s.inFlight
	}
	return n
}
