package upstream

import (
	"context"
	"errors"
	"sync"
	"time"

	"acquirerd/acquirer"
	"acquirerd/messages"
)

// Message authentication codes (MACs) of an upstream whose dialect wants them. The key is in an HSM, which can be slow or gone. Each message is
// checked before anything is made of it, beside the reading of the next ones and several at a time, and then handled in the order of arrival, because a
// reversal may stand behind what it reverses. What is not proven to be the upstream's is refused without a MAC, and what could not be checked is not
// answered: neither is believed of the upstream's own message, and neither leaves a trace by which that would be refused.

const (
	checksAtOnce       = 16 // calls of one door into the HSM for what it has read
	mostUnchecked      = 64 // messages of one connection that were read and not handled; over it no more is read
	macWindow          = time.Minute
	defaultMACFailures = 5
)

var errUnchecked = errors.New("it could not be checked in time")

// untrusted ends a connection on which too many messages with a wrong MAC came.
const untrusted bar = "messages with a wrong MAC"

// A finished is why the handling of a connection has ended, where another goroutine still reads.
type finished struct{ error }

// frame encodes an answer with its MAC, if it carries one. The HSM has as long as a write.
func (s *session) frame(answer *messages.Message) ([]byte, error) {
	t := s.door.terms.Load()
	if t.MAC == nil {
		return s.door.upstream.Codec.EncodeFrame(answer)
	}
	ctx, release := context.WithTimeout(context.WithoutCancel(s.ctx), t.WriteTimeout)
	defer release()
	return s.door.upstream.Codec.EncodeFrameWithMAC(ctx, t.MAC, answer)
}

// tell is write of an answer by which nothing is decided: without an HSM that could give it its MAC it is not sent, and its upstream asks again.
func (s *session) tell(answer *messages.Message) error {
	err := s.write(answer)
	if !errors.Is(err, messages.ErrNoMAC) {
		return err
	}
	s.door.sometimes.Do(func() { s.log.Warn("answer not sent", "mti", string(answer.MTI), "error", err) })
	return nil
}

// tellBare sends a refusal of what is not proven, without a MAC: one that is proven would be believed of the request that the upstream has made, of which
// this may be a spoiled copy that somebody sent ahead. It tells people what is wrong; the upstream's machine knows nothing by it, and asks again or
// reverses.
func (s *session) tellBare(refusal *messages.Message) error {
	return s.writeBy(s.door.upstream.Codec.EncodeFrame, refusal)
}

// An arrival is what was read of a connection.
type arrival struct {
	request *messages.Message // nil of a frame of no bytes, and of what cannot be read at all
	fault   error             // what is wrong with its form
	idle    bool              // a frame of no bytes
	at      time.Time
	proven  chan error // capacity 1: what the check of the MAC came to
	end     error      // why nothing more is read
}

// readChecked is read of an upstream whose messages carry MACs.
func (s *session) readChecked(stream *frameStream, answering *sync.WaitGroup) error {
	arrivals, over := make(chan arrival, mostUnchecked), make(chan struct{})
	var reading sync.WaitGroup
	defer reading.Wait()
	reading.Go(func() { s.feed(stream, arrivals, over) })
	for a := range arrivals {
		if err := s.handleChecked(a, answering); err != nil {
			s.end(finished{err})
			close(over)
			return err
		}
	}
	return nil // the last arrival has an error
}

// feed reads until the connection ends, or its handling does.
func (s *session) feed(stream *frameStream, arrivals chan<- arrival, over <-chan struct{}) {
	var checking sync.WaitGroup
	defer checking.Wait() // each has a deadline
	defer close(arrivals)
	codec := s.door.upstream.Codec
	for {
		body, err := codec.ReadFrame(stream)
		a := arrival{at: time.Now(), end: err, idle: len(body) == 0, proven: make(chan error, 1)}
		if err == nil {
			stream.next()
			if !a.idle {
				a.request, a.fault = codec.Decode(body)
			}
		}
		select {
		case arrivals <- a:
		case <-over:
			return
		}
		switch {
		case err != nil:
			return
		case a.request == nil, a.fault != nil, a.request.Rejected() != "":
			a.proven <- nil // there is no code to check
		default:
			checking.Go(func() { a.proven <- s.authentic(a.request, a.at) })
		}
	}
}

// authentic is nil for a message of the upstream's. An error that does not wrap messages.ErrMAC means that nobody knows. It takes no longer than
// the upstream waits for an answer.
func (s *session) authentic(m *messages.Message, arrived time.Time) error {
	t := s.door.terms.Load()
	ctx, release := context.WithDeadline(context.WithoutCancel(s.ctx), arrived.Add(t.Budget))
	defer release()
	select {
	case s.door.checks <- struct{}{}:
		defer func() { <-s.door.checks }()
	case <-ctx.Done():
	}
	if ctx.Err() != nil {
		return errUnchecked
	}
	return s.door.upstream.Codec.CheckMAC(ctx, t.MAC, m)
}

func (s *session) handleChecked(a arrival, answering *sync.WaitGroup) error {
	switch {
	case a.end != nil:
		return a.end
	case a.idle:
		return s.send(s.door.upstream.Codec.Keepalive())
	}
	if err := <-a.proven; err != nil {
		return s.disbelieve(a.request, err)
	}
	if a.fault != nil && s.isUnproven(a.request) {
		if !s.isKnown(a.request) {
			return s.refuse(a.request, a.fault, s.tellBare)
		}
		s.door.metrics.messages.WithLabelValues(s.door.upstream.Name, kindSilent).Inc()
		a.request.Clear()
		return nil
	}
	return s.handle(a.request, a.fault, a.at, answering)
}

// disbelieve drops a message that may be somebody else's, and refuses it if its MAC is wrong. What repeats something that is in flight or on record is
// not answered: an upstream that does not look for the MAC of a refusal would believe it of what may have been approved. Nor is one that could not be
// checked: a refusal that the upstream is to believe needs the HSM for its own MAC, and would have to be remembered, so that anybody could have a
// request refused by its numbers. Its error ends the connection.
func (s *session) disbelieve(m *messages.Message, why error) error {
	defer m.Clear()
	d := s.door
	recognisable := m.MTI.IsRequest() && m.Has(messages.STAN) && (m.Has(messages.TransmissionTime) || m.Has(messages.LocalTime))
	d.sometimes.Do(func() {
		s.log.Warn("message is not proven to be the upstream's", "mti", string(m.MTI), "upstream_stan", m.Get(messages.STAN), "error", why)
	})
	if !errors.Is(why, messages.ErrMAC) {
		d.metrics.messages.WithLabelValues(d.upstream.Name, kindUnchecked).Inc()
		return nil
	}
	d.metrics.macs.WithLabelValues(sideUpstream, d.upstream.Name).Inc()
	d.metrics.messages.WithLabelValues(d.upstream.Name, kindWrongMAC).Inc()
	if recognisable && !s.isKnown(m) {
		if err := s.tellBare(messages.NewAnswer(m, d.upstream.Codec.Dialect().Answers.MACIncorrect)); err != nil {
			return err
		}
	}
	return s.mistrust(time.Now())
}

// isUnproven reports whether what cannot be read should have had a MAC. It may be a copy of a message that somebody has spoiled.
func (s *session) isUnproven(m *messages.Message) bool {
	return m != nil && m.Rejected() == "" && m.MTI.IsRequest() && s.door.upstream.Codec.HasMAC(m.MTI)
}

// isKnown reports whether a message has the numbers of what is in flight or on record.
func (s *session) isKnown(m *messages.Message) bool {
	return s.door.desk.Known(s.ctx, acquirer.Request{Upstream: s.door.upstream, Message: m, Key: s.keyOf(m)})
}

// keyOf is the key by which the switch would know a request or an advice again; "" for everything else.
func (s *session) keyOf(m *messages.Message) string {
	if class := m.MTI.Class(); class != messages.Authorization && class != messages.Financial {
		return ""
	}
	return s.door.upstream.Codec.Identity(m)
}

// mistrust counts a message with a wrong MAC. Its error ends the connection, if that was one too many.
func (s *session) mistrust(now time.Time) error {
	for len(s.untrusted) > 0 && now.Sub(s.untrusted[0]) >= macWindow {
		s.untrusted = s.untrusted[1:]
	}
	s.untrusted = append(s.untrusted, now)
	most := s.door.terms.Load().MACFailures
	if len(s.untrusted) < most {
		return nil
	}
	s.log.Error("upstream's connection ends: messages with a wrong MAC", "messages", most, "within", macWindow.String())
	return untrusted
}
