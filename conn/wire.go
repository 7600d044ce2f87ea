package conn

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"time"

	"github.com/moov-io/iso8583"

	"acquirerd/messages"
)

// A reader reads one message after the other for the library, and gives each to the endpoint instead of to the library.
type reader struct {
	session *session
	stream  *stream
	from    io.Reader // the library's buffer over the stream
}

// ReadMessage is part of the library's MessageReader. It returns no message, ever; its error ends the session.
func (r *reader) ReadMessage(from io.Reader) (*iso8583.Message, error) {
	r.from = from
	r.stream.frame = time.Time{}
	body, err := r.session.endpoint.codec.ReadFrame(r)
	if err != nil {
		why := r.stream.whyRead(err)
		if wanted := r.session.farewell.Load(); wanted != nil && (why == causeClosed || why == causeRead) {
			why = *wanted // it is what the sign-off asked for
		}
		if why == causeTLS { // it says why a write failed at the same time
			r.session.why.Store(&why)
		}
		r.session.blame(why)
		close(r.session.read) // the library reads no more after an error
		return nil, err
	}
	r.session.link.counted.framesIn.Add(1)
	if len(body) == 0 { // it shows that something is there, and not that the processor is: it stands for no echo
		if r.session.endpoint.codec.Keepalive() != nil {
			r.session.ask(nil)
		}
		return nil, nil
	}
	r.session.last.Store(int64(time.Since(r.session.began)))
	m, fault := r.session.endpoint.codec.Decode(body)
	if r.session.endpoint.config().MAC == nil {
		r.session.take(m, fault)
	} else {
		r.session.check(m, fault)
	}
	return nil, nil // the library's way to say: nothing for you
}

// take gives a message to the endpoint, and answers it if that is the session's to do.
func (s *session) take(m *messages.Message, fault error) {
	if request := s.endpoint.receive(s, m, fault); request != nil {
		s.ask(request)
	}
}

// ask has the session answer a request of the processor, or for nil a keep-alive.
func (s *session) ask(request *messages.Message) {
	select {
	case s.requests <- request:
	default:
		s.endpoint.sometimes.Do(func() {
			s.log().Warn("processor's request not answered: too many wait", "message", request)
		})
	}
}

// Read is the buffered reading of a frame; with its first byte the frame's time begins to run.
func (r *reader) Read(p []byte) (int, error) {
	n, err := r.from.Read(p)
	if n > 0 && r.stream.frame.IsZero() {
		r.stream.frame = time.Now().Add(r.session.endpoint.config().FrameTimeout)
	}
	return n, err
}

// A stream is the connection as the library sees it: every read and every write has a deadline.
type stream struct {
	net.Conn
	session *session
	frame   time.Time // when the frame being read must have ended, zero between two; owned by the library's reading goroutine
}

func (c *stream) Read(p []byte) (int, error) {
	began := time.Now()
	for {
		deadline := c.frame
		if deadline.IsZero() {
			deadline = began.Add(c.session.endpoint.config().silence())
		}
		if err := c.SetReadDeadline(deadline); err != nil {
			return 0, err
		}
		n, err := c.Conn.Read(p)
		c.session.link.counted.bytesIn.Add(uint64(n)) //nolint:gosec // not negative
		if n == 0 && c.frame.IsZero() && errors.Is(err, os.ErrDeadlineExceeded) && time.Since(began) < c.session.endpoint.config().silence() {
			continue // a reload has allowed a longer silence meanwhile
		}
		return n, err
	}
}

// errUnbegun: the connection refused the deadline, so that it was not given a byte.
var errUnbegun = errors.New("write not begun")

func (c *stream) Write(p []byte) (int, error) {
	if err := c.SetWriteDeadline(time.Now().Add(c.session.endpoint.config().WriteTimeout)); err != nil {
		c.session.blame(causeWrite)
		return 0, fmt.Errorf("%w: %w", errUnbegun, err)
	}
	n, err := c.Conn.Write(p)
	c.session.link.counted.bytesOut.Add(uint64(n)) //nolint:gosec // not negative
	if err != nil {
		c.session.blame(causeWrite)
		return n, err
	}
	_ = c.SetWriteDeadline(time.Time{}) // what TLS writes of its own accord is not this frame's: see PacedConn
	return n, nil
}

// Close drops what the processor has not taken if the session's cause says so, or if it may hold a request that its sender has given up, or
// will: an orderly close would deliver it whenever the processor reads again, and its reversal may have come before it on another link. TLS
// says farewell only where the close is ours and in order, and has no more time for it than for a frame: a peer that reads nothing would
// hold it up for its own five seconds.
func (c *stream) Close() error {
	under := underneath(c.Conn)
	why := c.session.why.Load()
	drop := (why != nil && why.drops()) || c.session.owes()
	if !drop {
		linger(under, -1)
	}
	if !drop && why != nil && !why.isFailure() {
		farewell := time.AfterFunc(c.session.endpoint.config().WriteTimeout, func() { _ = under.Close() })
		defer farewell.Stop()
		return c.Conn.Close()
	}
	return under.Close()
}

// linger says what becomes of what the processor has not taken when a connection is closed: with 0 seconds it is dropped, with -1 the system
// delivers it. A connection is at 0 all its life, and at -1 only for a close in good order: at a kill of this process nobody says anything, and
// what a stalled link still held would arrive after the reversal that recovery owes.
func linger(under net.Conn, seconds int) {
	if tcp, is := under.(interface{ SetLinger(seconds int) error }); is {
		_ = tcp.SetLinger(seconds) // if it cannot, the close is what is left
	}
}

// whyRead is the class of an error of reading.
func (c *stream) whyRead(err error) cause {
	var frame *messages.FrameError
	var network net.Error
	switch {
	case isTLS(err):
		return causeTLS
	case errors.As(err, &frame) && frame.Class == messages.FrameShort && c.frame.IsZero():
		return causeClosed // TLS without a farewell
	case errors.As(err, &frame):
		switch frame.Class {
		case messages.FrameHeader:
			return causeFrameHeader
		case messages.FrameLength:
			return causeFrameLength
		}
		return causeFrameShort
	case errors.Is(err, io.ErrClosedPipe) && !c.frame.IsZero(): // a pipe whose other end is closed takes no deadline
		return causeFrameShort
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrClosedPipe):
		return causeClosed
	case errors.As(err, &network) && network.Timeout() && c.frame.IsZero():
		return causeSilence
	case errors.As(err, &network) && network.Timeout():
		return causeFrameTimeout
	}
	return causeRead
}
