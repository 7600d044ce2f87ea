package conn

import (
	"errors"
	"time"

	"acquirerd/messages"
)

// An exchange is one request and what became of it. Its fields are guarded by Endpoint.mu; done is received from without it.
type exchange struct {
	key        messages.Key
	request    *messages.Message // nil once it has ended: it is the caller's, who clears it
	done       chan result       // capacity 1, sent to under Endpoint.mu, at most once
	state      exchangeState
	management bool     // sign-on, sign-off or echo of a link: outside the limits of traffic
	session    *session // on which it goes out, and by whose count it is in flight
	before     int      // of management: what was lost on the session before it

	keyAsked time.Time // of a key request whose answer brings the key: when it was made; else zero

	previous *exchange // the ended exchange whose key this repeat took over
	replaced bool      // a repeat has taken the key over
	expires  time.Time // when an ended exchange is forgotten; zero once it is
	next     *exchange // in its memory
}

type exchangeState uint8

const (
	waiting      exchangeState = iota
	answered                   // its caller has the answer
	abandoned                  // its caller was told that the fate is unknown
	lateAnswered               // abandoned, and the late answer was seen
)

// A result is how an exchange ended for its caller.
type result struct {
	answer *messages.Message
	err    error
	at     time.Time // when it was known
}

// pending is the table of an endpoint's exchanges: those in flight, and the ended ones whose keys must not be used yet. Guarded by
// Endpoint.mu.
type pending struct {
	exchanges  map[messages.Key]*exchange
	inFlight   int // waiting, without management
	abandoned  int // abandoned and lateAnswered, without management and replaced ones
	memories   [2]memory
	limit      int           // of abandoned, and of answered
	remembered time.Duration // how long an answered key is kept
	awaited    time.Duration // how long an abandoned key is kept
	idle       chan struct{} // once not nil: closed when nothing is in flight
}

// The memories: ended exchanges in the order in which they are forgotten.
const (
	ofAnswered = iota
	ofAbandoned
)

// abandonedReplies is for how many reply timeouts a late answer finds its exchange. A processor that answers later than that has been
// sent its reversal long since.
const abandonedReplies = 10

func newPending(limit int, replyTimeout time.Duration) pending {
	p := pending{exchanges: map[messages.Key]*exchange{}}
	p.bound(limit, replyTimeout)
	return p
}

// bound sets the limits. What has ended keeps its time; where times got shorter, what ended later waits for what ended before it.
func (p *pending) bound(limit int, replyTimeout time.Duration) {
	p.limit, p.remembered, p.awaited = limit, replyTimeout, abandonedReplies*replyTimeout
}

var (
	errKeyInFlight   = errors.New("its match key is in flight")
	errKeyRemembered = errors.New("its match key is that of an earlier request whose answers may still come")
	errAbandonedFull = errors.New("too many exchanges wait for late answers")
)

// add takes a request in. Its error means that the request may not be sent.
func (p *pending) add(x *exchange, now time.Time) error {
	p.forget(now)
	previous := p.exchanges[x.key]
	switch {
	case previous != nil && previous.state == waiting:
		return errKeyInFlight
	case previous != nil && !x.request.MTI.IsRepeat():
		return errKeyRemembered
	case previous == nil && !x.management && p.abandoned >= p.limit && x.request.MTI.Class() != messages.Reversal:
		// Reversals are what settles the abandoned ones, and come a few at a time.
		return errAbandonedFull
	}
	if previous != nil {
		x.previous = previous
		p.replace(previous, true)
	}
	p.exchanges[x.key] = x
	if !x.management {
		p.inFlight++
		x.session.inFlight++
	}
	return nil
}

// replace says that the key of an ended exchange is a repeat's now, or is its own again.
func (p *pending) replace(x *exchange, replaced bool) {
	x.replaced = replaced
	if !x.management && x.state != answered {
		if replaced {
			p.abandoned--
		} else {
			p.abandoned++
		}
	}
}

// move puts an exchange on another session, because nothing of it went out on the one it was on.
func (p *pending) move(x *exchange, to *session) {
	x.session.release()
	x.session = to
	to.inFlight++
}

// withdraw takes back an exchange of which nothing was sent, as if it had never been added.
func (p *pending) withdraw(x *exchange, now time.Time) {
	p.leave(x)
	x.request = nil
	if x.previous != nil && now.Before(x.previous.expires) {
		p.exchanges[x.key] = x.previous
		p.replace(x.previous, false)
	} else {
		delete(p.exchanges, x.key)
	}
	x.previous = nil
}

// end gives an exchange that was waiting its last state, and remembers it.
func (p *pending) end(x *exchange, state exchangeState, now time.Time) {
	p.leave(x)
	x.state, x.request, x.previous = state, nil, nil
	if state == answered {
		x.expires = now.Add(p.remembered)
		p.memories[ofAnswered].push(x)
		if p.memories[ofAnswered].size > p.limit {
			p.drop(p.memories[ofAnswered].pop())
		}
		return
	}
	x.expires = now.Add(p.awaited)
	p.memories[ofAbandoned].push(x)
	if !x.management {
		p.abandoned++
	}
}

func (p *pending) leave(x *exchange) {
	if !x.management {
		p.inFlight--
		x.session.release()
	}
	x.session = nil
	if p.inFlight == 0 && p.idle != nil {
		select {
		case <-p.idle:
		default:
			close(p.idle)
		}
	}
}

// forget drops what has been remembered for long enough.
func (p *pending) forget(now time.Time) {
	for i := range p.memories {
		for m := &p.memories[i]; m.first != nil && !now.Before(m.first.expires); {
			p.drop(m.pop())
		}
	}
}

func (p *pending) drop(x *exchange) {
	x.expires = time.Time{}
	if x.replaced {
		return
	}
	p.replace(x, true) // its count
	delete(p.exchanges, x.key)
}

// drained returns a channel that is closed once nothing is in flight.
func (p *pending) drained() <-chan struct{} {
	p.idle = make(chan struct{})
	if p.inFlight == 0 {
		close(p.idle)
	}
	return p.idle
}

// A memory is a queue of ended exchanges, the first to be forgotten first.
type memory struct {
	first, last *exchange
	size        int
}

func (m *memory) push(x *exchange) {
	if m.last == nil {
		m.first = x
	} else {
		m.last.next = x
	}
	m.last = x
	m.size++
}

func (m *memory) pop() *exchange {
	x := m.first
	m.first, x.next = x.next, nil
	if m.first == nil {
		m.last = nil
	}
	m.size--
	return x
}
