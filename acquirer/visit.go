package acquirer

import (
	"context"
	"fmt"

	"acquirerd/journal"
	"acquirerd/messages"
)

// A Visit is one message of an upstream on its way through the switch. Admit makes it.
type Visit struct {
	Request

	matter  *matter         // what its key is about; nil if it has no key, or waits
	follows bool            // it repeats a request in flight, and is given that one's answer
	after   <-chan struct{} // closed when it can be admitted again; nil if it is admitted
}

// A matter is one key of an upstream while a request with it is in flight: from its admission until its answer was delivered, or is known
// not to have been. Guarded by Switch.mu, but for what decided and ended guard.
//
//	in flight → decided → ended
//
// Repeats that come in flight follow: they are given the same answer, and it is delivered if one of them could be. Those that come while it
// is being delivered, and requests with the same key and other content, wait for the end and then find the record, which says by then what
// stands.
type matter struct {
	key     asking
	request *messages.Message // the first one's, until decided

	visitors  int  // whose delivery is not over
	delivered bool // one of them was
	settled   bool // decided is closed

	decided chan struct{}     // closed when answer can be read
	answer  *messages.Message // the followers' copy; nil if none may be given
	ended   chan struct{}

	outcome     journal.Kind // of what was recorded in this matter; "" if nothing was
	transaction journal.TransactionID
}

// An asking is a request, as its upstream would name it again.
type asking struct{ upstream, key string }

// Admit gives a message its place among those of the same key. It never waits, so that doors call it in the order in which messages
// arrive: a reversal that was sent after its original then finds it in flight.
func (s *Switch) Admit(req Request) *Visit {
	v := &Visit{Request: req}
	if req.Key == "" {
		return v
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	key := asking{req.Upstream.Name, req.Key}
	m := s.matters[key]
	switch {
	case m == nil:
		v.matter = &matter{key: key, request: req.Message, visitors: 1, decided: make(chan struct{}), ended: make(chan struct{})}
		s.matters[key] = v.matter
	case m.settled, !m.request.SameRequest(req.Message):
		v.after = m.ended // then the record says what stands, or with what content the key was used
	default:
		v.matter, v.follows = m, true
		m.visitors++
	}
	return v
}

// lead waits until a visit is the first of its matter or follows it. It is false if ctx ends before.
func (s *Switch) lead(ctx context.Context, v *Visit) bool {
	for v.after != nil {
		if !wait(ctx, v.after) {
			return false
		}
		*v = *s.Admit(v.Request)
	}
	return true
}

// follow waits for the answer of the request that this one repeats; nil if there is none in time.
func (s *Switch) follow(ctx context.Context, v *Visit) *messages.Message {
	if wait(ctx, v.matter.decided) && v.matter.answer != nil {
		return messages.AnswerAlso(v.Message, v.matter.answer)
	}
	return nil
}

// decide gives the followers of a matter the answer of the first.
func (s *Switch) decide(v *Visit, result Result) {
	if v.matter == nil || v.follows {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	m := v.matter
	m.settled, m.request, m.outcome, m.transaction = true, nil, result.Outcome, result.transaction
	if m.visitors > 1 && result.Answer != nil {
		m.answer = result.Answer.Clone()
	}
	close(m.decided)
}

// leave ends the delivery to one visitor. When the last one's is over, and an approval was delivered to none, it is owed before the matter
// ends: who asks again then is told of an approval only if it stands.
func (s *Switch) leave(ctx context.Context, v *Visit, delivered bool) error {
	if v == nil || v.matter == nil {
		return nil
	}
	m := v.matter
	s.mu.Lock()
	m.visitors--
	m.delivered = m.delivered || delivered
	last, lost := m.visitors == 0, m.outcome == journal.Approved && !m.delivered
	if last && !lost {
		s.end(m)
	}
	s.mu.Unlock()
	if !last || !lost {
		return nil
	}
	owed := journal.Reversing{Transaction: m.transaction, Reason: reasonUndelivered}
	if _, err := s.journal.Owe(context.WithoutCancel(ctx), owed); err != nil {
		return fmt.Errorf("recording undelivered approval %d: %w", m.transaction, err)
	}
	s.metrics.undelivered.Inc()
	s.forwarder.Wake()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.end(m)
	return nil
}

// end forgets a matter. Called under mu.
func (s *Switch) end(m *matter) {
	delete(s.matters, m.key)
	if m.answer != nil {
		m.answer.Clear()
	}
	close(m.ended)
}

// inFlightWith returns a channel that is closed when the matter of a key has ended, nil if there is none.
func (s *Switch) inFlightWith(upstream, key string) <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	if m := s.matters[asking{upstream, key}]; m != nil {
		return m.ended
	}
	return nil
}

// Delivered is called when the answer of a result was written to the upstream whole.
func (s *Switch) Delivered(result Result) {
	_ = s.leave(context.Background(), result.visit, true) // only what was not delivered has to be recorded
}

// Undelivered is called when the answer of a result could not be written to the upstream. An approval that the upstream was not told
// of is reversed; nothing else needs to be done. An error means that the process must stop.
func (s *Switch) Undelivered(ctx context.Context, result Result) error {
	return s.leave(ctx, result.visit, false)
}

// wait is false if ctx ends first.
func wait(ctx context.Context, done <-chan struct{}) bool {
	select {
	case <-done:
		return true
	case <-ctx.Done():
		return false
	}
}
