package conn

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"acquirerd/messages"
)

// An Unasked is a message that no caller of Exchange waits for.
type Unasked struct {
	*messages.Message
	Arrival Arrival
	// Fault is why a demand does not keep the format; the message holds what stood before it. With ErrMAC in it, nobody knows who sent the
	// demand, and nothing that it says may be done. nil: it is whole, and the processor's. Of the answer to a key request it is the same;
	// no other answer with a fault is told.
	Fault error
	// KeyAsked is of an answer that can bring a zone key, by the dialect: when the request of RequestKey that it answers was made, which has
	// ended without it. Zero of every other message: the key in an answer that no request of ours is known to is not to be taken.
	KeyAsked time.Time
	// Reply answers what the processor demanded, once, on the connection that it came on; on no other, because the processor does not look
	// for it there. It is nil for answers. It takes at most WriteTimeout for its turn to write and then for the write; ctx counts until its
	// turn. An error that wraps ErrNotSent proves that nothing was sent, and Reply may be called again; after any other the answer may have
	// arrived.
	Reply func(ctx context.Context, answer *messages.Message) error
}

// An Arrival says in which respect a message was not asked for.
type Arrival string

// The arrivals.
const (
	Demanding Arrival = "request" // the processor's own request
	Late      Arrival = "late"    // answers an exchange that had ended without its answer, or one that is not remembered any more
	Second    Arrival = "second"  // answers an exchange that had its answer
)

// ownAnswer reports whether the links answer a request of the processor themselves.
func (e *Endpoint) ownAnswer(m *messages.Message) bool {
	switch e.codec.Demanded(m) {
	case messages.SignOn, messages.SignOff, messages.Echo:
		return true
	case messages.KeyChange, messages.Cutover, messages.KeyRequest:
	}
	return false
}

var (
	errReplied    = errors.New("it was answered before")
	errNotAnswer  = errors.New("it is not the answer to what was demanded")
	errNotDemands = errors.New("what arrived demands no answer")
)

// demand is a request of the processor that the callback of Run answers.
func (s *session) demand(m *messages.Message) Unasked {
	var replied atomic.Bool
	wanted, request := m.MTI.Answer(), m.MTI.IsRequest()
	return Unasked{Message: m, Arrival: Demanding, Reply: func(ctx context.Context, answer *messages.Message) error {
		if err := s.reply(ctx, answer, wanted, request, &replied); err != nil {
			return fmt.Errorf("answering %s: %w", m.MTI, err)
		}
		return nil
	}}
}

func (s *session) reply(ctx context.Context, answer *messages.Message, wanted messages.MTI, request bool, replied *atomic.Bool) error {
	switch {
	case !request:
		return notSent(errNotDemands)
	case answer.MTI != wanted:
		return notSent(errNotAnswer)
	}
	frame, err := s.endpoint.frame(ctx, answer, s.endpoint.config().WriteTimeout)
	if err != nil {
		return notSent(err)
	}
	defer clear(frame) // it may hold card data
	if !replied.CompareAndSwap(false, true) {
		return notSent(errReplied)
	}
	_, err = s.write(ctx, frame, s.endpoint.config().WriteTimeout)
	if errors.Is(err, ErrNotSent) {
		replied.Store(false)
	}
	return err
}

// tell hands a message to the callback of Run. It does not wait: behind it are answers that callers wait for.
func (e *Endpoint) tell(m Unasked) {
	if limit := e.config().Unasked; !e.unasked.put(m, limit) {
		e.metrics.dropped.Inc()
		e.sometimes.Do(func() {
			e.log.Error("unasked message dropped: too many wait", "mti", string(m.MTI), "stan", m.Get(messages.STAN), "limit", limit)
		})
	}
}

// An inbox is a queue from the sessions to the callers of the callback. Its limit can change, which a channel's cannot.
type inbox struct {
	mu      sync.Mutex
	more    sync.Cond
	waiting []Unasked // guarded by mu
	idle    int       // guarded by mu: takers that wait, or were woken and are on their way
	closed  bool      // guarded by mu
}

func newInbox() *inbox {
	i := &inbox{}
	i.more.L = &i.mu
	return i
}

// put is false if as many wait as may, beside those that somebody is there to take.
func (i *inbox) put(m Unasked, limit int) bool {
	i.mu.Lock()
	defer i.mu.Unlock()
	if len(i.waiting)-i.idle >= limit {
		return false
	}
	i.waiting = append(i.waiting, m)
	i.more.Signal()
	return true
}

// take waits for a message. It is false when there is none and the inbox is closed.
func (i *inbox) take() (Unasked, bool) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.idle++
	for len(i.waiting) == 0 && !i.closed {
		i.more.Wait()
	}
	i.idle--
	if len(i.waiting) == 0 {
		return Unasked{}, false
	}
	m := i.waiting[0]
	i.waiting[0] = Unasked{}
	i.waiting = i.waiting[1:]
	return m, true
}

func (i *inbox) close() {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.closed = true
	i.more.Broadcast()
}
