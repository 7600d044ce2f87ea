package conn

import (
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"time"

	"acquirerd/messages"
)

// Message authentication codes (MACs) of a processor whose dialect wants them. The key is in an HSM, which can be slow or gone, and is never
// waited for by what reads a link: each message that was read is checked beside the others, a few at a time. Before that nothing is made of it.
// Requests but for echoes are handed on in the order in which they came; an answer finds its request whenever it is through, so that none waits for another. Each check has a deadline; who has no answer by then has none.
//
// What is not proven to be the processor's is not heard: an answer ends the wait for it as one whose fate is unknown, whatever it says; a late one is
// dropped, but that the callback of Run is told, with ErrMAC as its fault, of one that can have brought a key; a request is told so, to be refused.
// Messages with a wrong code, enough of them in a short time, suspend the link: somebody is on it, or the two sides have different keys, and neither
// mends itself. But before its sign-on a connection need not be the processor's at all, and who is not must not take the processor's link away: the first such message closes it, and nothing of that
// counts for the link.

const (
	checksAtOnce       = 16 // calls of one endpoint into the HSM for what it has read: as many as an HSM has sessions, and few beside its queue
	macWindow          = time.Minute
	defaultMACFailures = 5

	strangerInterval = time.Minute // between two errors in the log for connections of one link that were closed before their sign-on
)

var (
	errUnchecked     = errors.New("it could not be checked in time")
	errUncheckedFull = errors.New("too many messages wait to be checked")
	errCameBack      = fmt.Errorf("%w: it is one of ours that came back", messages.ErrMAC)
)

// frame encodes a message of ours with its MAC, if it carries one. The HSM has as long as that, or until ctx ends.
func (e *Endpoint) frame(ctx context.Context, m *messages.Message, longest time.Duration) ([]byte, error) {
	key := e.config().MAC
	if key == nil {
		return e.codec.EncodeFrame(m)
	}
	ctx, cancel := context.WithTimeout(ctx, longest)
	defer cancel()
	return e.codec.EncodeFrameWithMAC(ctx, key, m)
}

// check has a message checked that the session has read, and does not wait for it. fault is why it does not keep the format: then there is
// nothing to check. What is over the limit is not checked: as many as wait for answers or may be unasked are there already.
func (s *session) check(m *messages.Message, fault error) {
	e := s.endpoint
	cfg := e.config()
	if e.unchecked.Add(1) > int64(cfg.InFlight+cfg.Unasked) {
		e.unchecked.Add(-1)
		e.disbelieve(s, m, errUncheckedFull)
		return
	}
	var before <-chan struct{}
	through := func() {}
	if m == nil || !m.MTI.IsAnswer() && (fault != nil || e.codec.Demanded(m) != messages.Echo) {
		done := make(chan struct{})
		before, through, s.checked = s.checked, func() { close(done) }, done
	}
	e.checking.Go(func() {
		defer through()
		defer e.unchecked.Add(-1)
		var err error
		if fault == nil && m.Rejected() == "" {
			err = e.authentic(m, cfg)
		}
		if before != nil {
			<-before
		}
		if err == nil && (fault == nil && e.isOurs(m) || fault != nil && e.hasNumbersOfOurs(m)) {
			err = errCameBack
		}
		if err != nil {
			e.disbelieve(s, m, err)
			return
		}
		s.take(m, fault)
	})
}

// authentic is nil for a message of the processor's. An error that does not wrap messages.ErrMAC means that nobody knows. A check takes no
// longer than an answer is waited for: after that it would be late.
func (e *Endpoint) authentic(m *messages.Message, cfg *settings) error {
	ctx, cancel := context.WithTimeout(context.Background(), cfg.ReplyTimeout)
	defer cancel()
	select {
	case e.checks <- struct{}{}:
		defer func() { <-e.checks }()
	case <-ctx.Done():
		return errUnchecked
	}
	if ctx.Err() != nil {
		return errUnchecked
	}
	return e.codec.CheckMAC(ctx, cfg.MAC, m)
}

// disbelieve does what is to be done about a message that is not proven to be the processor's.
func (e *Endpoint) disbelieve(s *session, m *messages.Message, why error) {
	if m == nil {
		return // it was not to be checked
	}
	outcome, stranger := kindUnchecked, false
	if errors.Is(why, messages.ErrMAC) {
		outcome = kindWrongMAC
		e.metrics.macs.Inc()
		stranger = !s.link.mistrust(s, time.Now())
	}
	e.sometimes.Do(func() {
		s.log().Warn("message is not proven to be the processor's", "kind", string(outcome), "mti", string(m.MTI), "stan", m.Get(messages.STAN), "error", why)
	})
	fault := fmt.Errorf("%w: %w", ErrMAC, why)
	if m.MTI.IsAnswer() {
		e.metrics.answers[outcome].Inc()
	}
	switch {
	case stranger:
		s.turnOut() // and nobody hears of it: it would end the wait for the processor's answer
		return
	case m.MTI.IsAnswer():
		if _, news, _ := e.deliver(s, m, fault); news != nil {
			e.tell(*news)
		}
		return
	}
	if errors.Is(why, errCameBack) || e.hasNumbersOfOurs(m) {
		return
	}
	unproven := s.demand(m)
	unproven.Fault = fault
	e.tell(unproven)
}

// One key makes the MACs of both directions: a request of ours that somebody sends back is proven by it, and so would our answer be, to decline what
// the processor has approved, or to acknowledge a reversal that it never had. So it is not answered, whatever would be said.

// isOurs reports whether a proven request is one of ours that came back: to the byte, for whoever sends it has no key to change it. One that waits for
// its answer is in the table. A reversal or an advice may be sent again much later, and an answer of now be kept for that.
func (e *Endpoint) isOurs(m *messages.Message) bool {
	if m == nil || m.Rejected() != "" || !m.MTI.IsRequest() || !carriesMAC(m) {
		return false
	}
	key, ok := e.codec.Key(m)
	e.mu.Lock()
	defer e.mu.Unlock()
	x := e.pending.exchanges[key]
	return ok && (x != nil && x.state == waiting && macOf(x.request) == macOf(m) || e.sent.has(key, macOf(m)))
}

// hasNumbersOfOurs reports whether a request that is not proven has the match key of one of ours, and would be answered with a MAC.
func (e *Endpoint) hasNumbersOfOurs(m *messages.Message) bool {
	if m == nil || m.Rejected() != "" || !m.MTI.IsRequest() || !e.codec.HasMAC(m.MTI.Answer()) {
		return false
	}
	key, ok := e.codec.Key(m)
	e.mu.Lock()
	defer e.mu.Unlock()
	return ok && e.pending.exchanges[key] != nil
}

func carriesMAC(m *messages.Message) bool { return m.Has(messages.MAC) || m.Has(messages.MAC2) }

func macOf(m *messages.Message) string { return m.Reveal(messages.MAC) + m.Reveal(messages.MAC2) }

// mostSent is how many reversals and advices are known again when they come back: more than are owed in a bad hour, in 2 MB.
const mostSent = 1 << 16

// A sentMemory are the reversals and advices that went out with a MAC, the last ones of this process. Guarded by Endpoint.mu.
type sentMemory struct {
	seed  maphash.Seed
	known map[uint64]struct{}
	order []uint64 // a ring
	next  int
}

func (s *sentMemory) name(key messages.Key, mac string) uint64 {
	return maphash.String(s.seed, string(key)+"|"+mac)
}

func (s *sentMemory) enter(key messages.Key, mac string) {
	if s.known == nil {
		s.seed, s.known = maphash.MakeSeed(), map[uint64]struct{}{}
	}
	name := s.name(key, mac)
	if _, again := s.known[name]; again {
		return
	}
	s.known[name] = struct{}{}
	if len(s.order) < mostSent {
		s.order = append(s.order, name)
		return
	}
	delete(s.known, s.order[s.next])
	s.order[s.next] = name
	s.next = (s.next + 1) % mostSent
}

func (s *sentMemory) has(key messages.Key, mac string) bool {
	if s.known == nil {
		return false
	}
	_, has := s.known[s.name(key, mac)]
	return has
}

// mistrust counts a message with a wrong MAC, and suspends the link if it was one too many. It is false of a session that has never signed on, whose
// messages do not count.
func (l *link) mistrust(s *session, now time.Time) bool {
	e := l.endpoint
	e.mu.Lock()
	defer e.mu.Unlock()
	if !s.signedOn {
		return false
	}
	for len(l.untrusted) > 0 && now.Sub(l.untrusted[0]) >= macWindow {
		l.untrusted = l.untrusted[1:]
	}
	cfg := e.config()
	l.untrusted = append(l.untrusted, now)
	if len(l.untrusted) < cfg.MACFailures {
		return true
	}
	l.untrusted = nil
	if l.resumed != nil {
		return true // it is held already
	}
	back := "by an operator"
	if cfg.MACSuspension > 0 {
		l.until = now.Add(cfg.MACSuspension)
		back = l.until.UTC().Format(time.RFC3339)
	}
	l.resumed, l.suspended = make(chan struct{}), true
	l.log().Error("link suspended: messages with a wrong MAC", "messages", cfg.MACFailures, "within", macWindow.String(), "resumed", back)
	l.retire(causeMAC, l.bar)
	return true
}

// turnOut closes a session on which a message with a wrong MAC came before its sign-on. The link goes on as after any connection that could not be
// signed on, with the same pauses: one whose processor has another key never comes into service, and the log has to say why.
func (s *session) turnOut() {
	s.cut(causeMAC)
	s.link.strangers.Do(func() {
		s.log().Error("connection closed before its sign-on: a message with a wrong MAC, so that the two sides have different keys, or it is not the processor's",
			"again_after", strangerInterval.String())
	})
}

// resume lets the link come back, if it is held. Called under Endpoint.mu.
func (l *link) resume() {
	if l.resumed == nil {
		return
	}
	close(l.resumed)
	l.resumed, l.suspended, l.until, l.untrusted = nil, false, time.Time{}, nil
	l.allow()
}
