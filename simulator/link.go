package simulator

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"time"

	"acquirerd/messages"
)

// A link is one connection of the daemon.
type link struct {
	*service
	*wire
	name     string
	signedOn atomic.Bool
}

// serve reads and handles messages until the link is closed.
func (l *link) serve() {
	release := context.AfterFunc(l.ctx, l.close)
	defer func() {
		release()
		l.close()
		l.signedOn.Store(false)
		l.mu.Lock()
		l.links = slices.DeleteFunc(l.links, func(other *link) bool { return other == l })
		l.mu.Unlock()
	}()
	l.cfg.Log.Info("link connected", "link", l.name)
	reader := bufio.NewReaderSize(l.conn, readBuffer)
	for {
		body, err := l.cfg.Codec.ReadFrame(reader)
		if err != nil {
			l.cfg.Log.Info("link closed", "link", l.name, "cause", err.Error())
			return
		}
		m, err := l.cfg.Codec.Decode(body)
		if m != nil {
			l.trace(Received, m, len(body)+l.cfg.Codec.Dialect().Framing.Size(), "")
		}
		if err == nil {
			err = l.cfg.Codec.Validate(m)
		}
		if err != nil {
			if !l.refuse(m, err) {
				return
			}
			continue
		}
		l.handle(m)
	}
}

// refuse answers what does not keep the format. It is false if not even that can be done.
func (l *link) refuse(m *messages.Message, fault error) bool {
	l.cfg.Log.Warn("message refused", "link", l.name, "error", fault)
	answers := l.cfg.Codec.Dialect().Answers
	var format *messages.FormatError
	isFormat := errors.As(fault, &format)
	l.ledger.tally(func(c *Counts) {
		if isFormat {
			c.FormatErrors++
		} else {
			c.Unsupported++
		}
	})
	switch {
	case m == nil || !m.MTI.IsRequest() || !m.Has(messages.STAN):
		return false
	case isFormat:
		l.answer(messages.NewFormatError(m, answers.FormatError, format.Element), action{})
	default:
		l.answer(messages.NewAnswer(m, answers.Unsupported), action{})
	}
	return true
}

// handle takes one well-formed message through rules and chance.
func (l *link) handle(m *messages.Message) {
	if !m.MTI.IsRequest() {
		l.ledger.tally(func(c *Counts) { c.Unasked++ })
		return
	}
	do := l.plan(m)
	if do.effects = do.names(); len(do.effects) > 0 {
		l.ledger.tally(func(c *Counts) {
			for _, name := range do.effects {
				c.Effects[name]++
			}
		})
	}
	l.later(do.late, func() {
		var answer *messages.Message
		if do.lost {
			l.ledger.lost(m, do.effects)
		} else {
			answer = l.decide(m, do)
		}
		m.Clear()
		switch {
		case do.drop:
			l.close()
			l.trace(Sent, answer, 0, "link dropped")
			if !do.otherLink || answer == nil {
				return
			}
		case answer == nil:
			return
		case do.silence:
			l.trace(Sent, answer, 0, "silence")
			return
		}
		l.later(do.delay, func() { l.answer(answer, do) })
	})
	l.stall(do.stall)
}

// stall keeps the link from being read.
func (l *link) stall(d time.Duration) {
	if d <= 0 {
		return
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-l.closed:
	}
}

// answer sends an answer in the way that the action says.
func (l *link) answer(answer *messages.Message, do action) {
	defer answer.Clear()
	note := ""
	if do.noSTAN {
		answer.Delete(messages.STAN)
		note = "without DE 11"
	}
	if do.wrongAmount {
		answer.Set(messages.Amount, fmt.Sprintf("%012d", max(0, amountOf(answer))+1))
		note = "another amount"
	}
	frame, err := l.cfg.Codec.EncodeFrame(answer)
	if err != nil {
		l.cfg.Log.Error("answer cannot be encoded", "link", l.name, "mti", string(answer.MTI), "error", err)
		return
	}
	if do.garble {
		frame = garble(l.cfg.Codec, frame, do.garbleMode)
		note = "garbled"
	}
	target := l
	if do.otherLink {
		if target = l.another(frame, do.drop); target == nil {
			l.trace(Sent, answer, 0, "kept for the next link")
			return
		}
	}
	if do.duplicate {
		target.deliver(answer, frame, outgoing{frame: frame}, note)
		note = "duplicate"
	}
	if do.close {
		note = "link closed after it"
	}
	if do.cut != 0 {
		frame = cutFrame(frame, do)
		note = fmt.Sprintf("cut after %d bytes", len(frame))
	}
	target.deliver(answer, frame, outgoing{frame: frame, reorder: do.reorder, last: do.close || do.cut != 0, cut: do.cut != 0}, note)
	if answer.MTI.Class() == messages.Network {
		l.sendStray()
	}
}

func (l *link) deliver(answer *messages.Message, frame []byte, o outgoing, note string) {
	// Traced before it is sent: once it is out, the daemon's next message may be traced before this one.
	l.trace(Sent, answer, len(frame), note)
	if !l.send(o) {
		l.ledger.tally(func(c *Counts) { c.LostAnswers++ })
	}
}

// another chooses the oldest other link that has signed on, else this one; if this one was dropped, the frame is kept for the next.
func (l *link) another(frame []byte, dropped bool) *link {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, other := range l.links {
		if other != l && other.signedOn.Load() {
			return other
		}
	}
	if !dropped {
		return l
	}
	if len(l.stray) < cap(l.wait) {
		l.stray = append(l.stray, frame)
	}
	return nil
}

// sendStray sends what waits for a link that has signed on.
func (l *link) sendStray() {
	if !l.signedOn.Load() {
		return
	}
	l.mu.Lock()
	stray := l.stray
	l.stray = nil
	l.mu.Unlock()
	for _, frame := range stray {
		if !l.send(outgoing{frame: frame}) {
			l.ledger.tally(func(c *Counts) { c.LostAnswers++ })
		}
	}
}

func (l *link) trace(direction Direction, m *messages.Message, size int, note string) {
	if l.cfg.Trace != nil && m != nil {
		l.cfg.Trace(TraceEvent{Time: time.Now(), Link: l.name, Direction: direction, Message: m, Bytes: size, Note: note})
	}
}

// cutFrame is the part of a frame that is still written: none of it, all of it, or what is between.
func cutFrame(frame []byte, do action) []byte {
	if do.cut == cutAnywhere {
		return frame[:do.cutMode%uint64(len(frame)+1)]
	}
	return frame[:min(do.cut-1, int64(len(frame)))]
}

// garble spoils a frame, of which the length header stays right, so that it cannot be decoded: its end is cut off, or its MTI or bit
// map overwritten. A message without a MAC cannot be protected against a change that leaves it well formed, so none is made.
func garble(codec *messages.Codec, frame []byte, mode uint64) []byte {
	framing := &codec.Dialect().Framing
	body := slices.Clone(frame[framing.Size() : len(frame)-len(framing.Trailer)])
	mtiBytes := codec.Dialect().Fields[0].WireLength(4)
	switch mode % 3 {
	case 0:
		for i := mtiBytes; i < mtiBytes+8; i++ {
			body[i] = 0xFF
		}
	case 1:
		for i := range mtiBytes {
			body[i] = 0xFF
		}
	case 2:
		body = body[:len(body)-1-int(mode>>32%8)]
	}
	if _, err := codec.Decode(slices.Clone(body)); err == nil {
		body = body[:len(body)-1]
	}
	return framing.Append(nil, body)
}
