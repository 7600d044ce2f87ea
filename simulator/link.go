package simulator

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"
	"sync/atomic"
	"time"

	"acquirerd/messages"
	"acquirerd/specs"
)

// A link is one connection of the daemon, or to it.
type link struct {
	*service
	*wire
	name     string
	signedOn atomic.Bool
}

// begin makes a link of a connection, which its caller runs and serves.
func (s *service) begin(conn net.Conn) *link {
	l := &link{service: s, wire: newWire(conn, s.cfg.WriteTimeout)}
	s.mu.Lock()
	s.linkID++
	l.name = "link " + strconv.Itoa(s.linkID)
	s.links = append(s.links, l)
	s.mu.Unlock()
	s.ledger.tally(func(c *Counts) { c.Links++ })
	return l
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
	if err := l.shake(l.ctx); err != nil {
		l.cfg.Log.Warn("link closed", "link", l.name, "cause", err.Error())
		return
	}
	l.cfg.Log.Info("link connected", "link", l.name)
	l.signedOn.Store(l.reader.NetworkManagement.SignOn == "") // then there is nothing to wait for
	reader := bufio.NewReaderSize(l.conn, readBuffer)
	for {
		body, err := l.cfg.Codec.ReadFrame(reader)
		if err != nil {
			l.cfg.Log.Info("link closed", "link", l.name, "cause", err.Error())
			return
		}
		if len(body) == 0 {
			if l.beaten(l.reader) {
				l.ledger.tally(func(c *Counts) { c.Keepalives++ })
			}
			continue
		}
		m, err := l.cfg.Codec.Decode(body)
		if m != nil {
			l.trace(Received, m, l.reader.framed(body), "")
		}
		if err == nil && l.cfg.MAC != nil {
			if errMAC := l.cfg.Codec.CheckMAC(l.ctx, l.cfg.MAC, m); errMAC != nil {
				l.disbelieve(m)
				continue
			}
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

// disbelieve refuses a message that is not proven to be the daemon's.
func (l *link) disbelieve(m *messages.Message) {
	l.cfg.Log.Warn("message refused: its MAC is wrong or missing", "link", l.name, "mti", string(m.MTI), "stan", m.Get(messages.STAN))
	l.ledger.tally(func(c *Counts) { c.WrongMACs++ })
	if m.MTI.IsRequest() && m.Has(messages.STAN) {
		l.answer(messages.NewAnswer(m, l.reader.Answers.MACIncorrect), action{})
	}
}

// refuse answers what does not keep the format. It is false if not even that can be done.
func (l *link) refuse(m *messages.Message, fault error) bool {
	l.cfg.Log.Warn("message refused", "link", l.name, "error", fault)
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
		l.answer(l.formatError(m, format.Element), action{})
	default:
		l.answer(messages.NewAnswer(m, l.reader.Answers.Unsupported), action{})
	}
	return true
}

// handle takes one well-formed message through rules and chance.
func (l *link) handle(m *messages.Message) {
	if !m.MTI.IsRequest() {
		if !l.answered(m) {
			l.ledger.tally(func(c *Counts) { c.Unasked++ })
		}
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
		var rejection []byte
		switch {
		case do.lost:
			l.ledger.lost(m, do.effects)
		case do.reject:
			l.ledger.lost(m, do.effects)
			rejection = l.rejection(m, do)
		default:
			answer = l.decide(m, do)
		}
		m.Clear()
		if do.keepalive {
			l.beat(l.reader)
		}
		switch {
		case rejection != nil:
			l.later(do.delay, func() { l.deliver(m, rejection, outgoing{frame: rejection}, "rejected") })
			return
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
	if do.demand != "" {
		l.running.Go(func() { _ = l.demand(l.ctx, do.demand) }) // what became of it is in the counts
	}
	l.stall(do.stall)
}

// The reject header of a BASE I-like network: 26 bytes, own length first, length of the whole message behind a flag and a text format,
// both stations, status fields, and the code last, in front of the message with its own header.
const (
	rejectHeader = 26
	rejectLength = 3
	rejectCode   = 24
)

// rejection is the frame in which a network returns a message that it does not pass on: the same bytes behind a reject header.
func (l *link) rejection(m *messages.Message, do action) []byte {
	body, err := l.cfg.Codec.Encode(m) // which are the bytes that it came with
	if err != nil || len(body) < rejectHeader || rejectHeader+len(body) > l.reader.Framing.Max {
		l.cfg.Log.Error("message cannot be rejected", "link", l.name, "mti", string(m.MTI), "error", err)
		return nil
	}
	rejected := append(make([]byte, rejectHeader, rejectHeader+len(body)), body...)
	copy(rejected, body[:rejectCode-2]) // the stations, and what else it came with
	rejected[0] = rejectHeader
	binary.BigEndian.PutUint16(rejected[rejectLength:], uint16(len(rejected))) //nolint:gosec // checked above
	binary.BigEndian.PutUint16(rejected[rejectCode:], do.rejectCode)
	return l.reader.Framing.Append(nil, rejected)
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
	frame, err := frameWith(l.cfg.Codec, l.cfg.MAC, answer, do.mac)
	if err != nil {
		l.cfg.Log.Error("answer cannot be encoded", "link", l.name, "mti", string(answer.MTI), "error", err)
		return
	}
	if do.mac != macRight && l.cfg.MAC != nil {
		note = "wrong MAC"
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
		l.followKey(answer)
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

// garble spoils a frame so that it cannot be decoded, while its length and its header stay right: its end is cut off, or its MTI or bit
// map overwritten. A message without a MAC cannot be protected against a change that leaves it well formed, so none is made.
func garble(codec *messages.Codec, frame []byte, mode uint64) []byte {
	dialect := codec.Dialect()
	framing := &dialect.Framing
	header, message, _, err := dialect.Header.Split(slices.Clone(frame[framing.Size() : len(frame)-len(framing.Trailer)]))
	if err != nil {
		return frame // it is ours: never
	}
	framed := func() []byte {
		body := dialect.Header.Join(header, message)
		if framing.Length == specs.LengthNone && bytes.Contains(body, framing.Trailer) {
			return nil // it would be two
		}
		return body
	}
	mtiBytes := dialect.Fields[0].WireLength(4)
	switch mode % 3 {
	case 0:
		for i := mtiBytes; i < mtiBytes+8; i++ {
			message[i] = 0xFF
		}
	case 1:
		for i := range mtiBytes {
			message[i] = 0xFF
		}
	case 2:
		message = message[:len(message)-1-int(mode>>32%8)]
	}
	for body := framed(); len(message) > 1; body = framed() {
		if body != nil {
			if _, err := codec.Decode(slices.Clone(body)); err != nil {
				return framing.Append(nil, body)
			}
		}
		message = message[:len(message)-1]
	}
	return frame[:len(frame)-1-len(framing.Trailer)]
}
