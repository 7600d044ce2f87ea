package conn

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"sync/atomic"
	"time"

	"github.com/moov-io/iso8583"
	connection "github.com/moov-io/iso8583-connection"

	"acquirerd/messages"
)

// A session is one connection of a link, from dial to close.
//
// The connection library's goroutines read and write it. What they read they give to receive of the endpoint; what is written goes
// through write.
type session struct {
	endpoint *Endpoint
	number   int          // the link's
	log      *slog.Logger // the link's
	wire     *connection.Connection
	turn     chan struct{}          // capacity 1: held by whoever writes
	requests chan *messages.Message // the processor's own, which the link answers
	read     chan struct{}          // closed when the library has read its last
	began    time.Time
	last     atomic.Int64 // when the last frame arrived, in nanoseconds after began
	why      atomic.Pointer[cause]

	signedOff bool // by the processor; owned by the link

	inFlight int           // guarded by Endpoint.mu
	idle     chan struct{} // closed once the session drains and nothing is in flight on it; guarded by Endpoint.mu
	draining bool          // guarded by Endpoint.mu
}

// requestsQueued is how many of the processor's own sign-ons and echoes may wait for the link: a few, because the processor waits for
// each before the next. Over it they are not answered.
const requestsQueued = 8

// never is the library's timer for what we do not have it do. It may not be 0, which would start a goroutine without a pause.
const never = 24 * time.Hour

// newSession gives a connection of the link to the library. It is closed with the session.
func newSession(l *link, c net.Conn) (*session, error) {
	e := l.endpoint
	s := &session{endpoint: e, number: l.number, log: l.log, turn: make(chan struct{}, 1),
		requests: make(chan *messages.Message, requestsQueued), read: make(chan struct{}), began: time.Now(), idle: make(chan struct{})}
	stream := &stream{Conn: c, session: s}
	var err error
	s.wire, err = connection.NewFrom(stream, e.cfg.Codec.Dialect().Spec(), nil, nil,
		connection.SetMessageReader(&reader{session: s, stream: stream}), connection.IdleTime(never), connection.ReadTimeout(never))
	if err != nil {
		return nil, fmt.Errorf("beginning session: %w", err)
	}
	return s, nil
}

// ended is closed when the connection is.
func (s *session) ended() <-chan struct{} { return s.wire.Done() }

// blame says why the session ends. The first one to say so is right: what follows is its consequence.
func (s *session) blame(why cause) { s.why.CompareAndSwap(nil, &why) }

// close ends the session, for this reason if it has not ended yet, waits until the library has let go of it, and returns the cause.
func (s *session) close(why cause) cause {
	s.blame(why)
	_ = s.wire.Close() // returns at once, and nil, if the library is closing it already
	<-s.wire.Done()
	<-s.read
	return *s.why.Load()
}

// quiet is for how long nothing has arrived.
func (s *session) quiet() time.Duration { return time.Since(s.began) - time.Duration(s.last.Load()) }

// left takes one exchange off the session. Called under Endpoint.mu.
func (s *session) left() {
	s.inFlight--
	s.checkIdle()
}

// drain says that the session gets no more exchanges. Called under Endpoint.mu.
func (s *session) drain() {
	s.draining = true
	s.checkIdle()
}

func (s *session) checkIdle() {
	if s.draining && s.inFlight == 0 {
		select {
		case <-s.idle:
		default:
			close(s.idle)
		}
	}
}

var (
	errClosed = errors.New("the link was closed before the write")
	errTurn   = errors.New("the link is busy with other writes")
)

// write sends one frame. Its error wraps ErrNotSent if no byte of it can have been sent. It waits at most WriteTimeout for its turn and
// then for the write; ctx counts until its turn.
func (s *session) write(ctx context.Context, frame []byte) error {
	select {
	case s.turn <- struct{}{}:
	default:
		patience := time.NewTimer(s.endpoint.cfg.WriteTimeout)
		defer patience.Stop()
		select {
		case s.turn <- struct{}{}:
		case <-s.ended():
			return notSent(errClosed)
		case <-ctx.Done():
			return notSent(ctx.Err())
		case <-patience.C:
			return notSent(errTurn)
		}
	}
	_, err := s.wire.Write(frame)
	<-s.turn
	switch {
	case errors.Is(err, connection.ErrConnectionClosed), errors.Is(err, errUnbegun):
		return notSent(errClosed) // the library's loop had not taken the frame, or the connection was closed under it
	case err != nil:
		return fmt.Errorf("writing frame: %w", err) // and the library closes the connection
	}
	return nil
}

// signOn signs the session on. If it is false the session is blamed, or ctx has ended.
func (s *session) signOn(ctx context.Context) bool {
	code, err := s.manage(ctx, s.endpoint.cfg.Codec.Dialect().NetworkManagement.SignOn, s.endpoint.cfg.SignOnTimeout)
	switch {
	case err == nil && s.accepted(code):
		return true
	case err == nil:
		s.log.Warn("sign-on refused", "response_code", code)
		s.blame(causeSignOnRefused)
	case errors.Is(err, ErrTimeout):
		s.blame(causeSignOnTimeout)
	case ctx.Err() == nil:
		s.blame(causeSignOnUnusable) // unless the session has ended, and why is known
	}
	return false
}

// signOff signs the session off. Whatever the answer, the session ends after it.
func (s *session) signOff() {
	_, err := s.manage(context.Background(), s.endpoint.cfg.Codec.Dialect().NetworkManagement.SignOff, s.endpoint.cfg.SignOnTimeout)
	if err != nil {
		s.log.Warn("sign-off not confirmed", "error", err)
	}
	s.blame(causeStopped)
}

// echo asks the processor for an echo, and returns how many were missed in a row. Any frame shows that the processor is there.
func (s *session) echo(ctx context.Context, missed int) int {
	last := s.last.Load()
	code, err := s.manage(ctx, s.endpoint.cfg.Codec.Dialect().NetworkManagement.Echo, s.endpoint.cfg.EchoTimeout)
	switch {
	case err == nil && !s.accepted(code):
		s.log.Warn("echo refused", "response_code", code)
		s.close(causeEchoRefused)
		return 0
	case errors.Is(err, ErrTimeout) && s.last.Load() == last:
		return missed + 1
	}
	return 0
}

func (s *session) accepted(code string) bool {
	for _, accepted := range s.endpoint.cfg.Codec.Dialect().NetworkManagement.Accepted {
		if code == accepted {
			return true
		}
	}
	return false
}

// manage sends one network management request on this session and returns the code of its answer. Meanwhile the processor's own
// requests are answered: it may want that before it answers ours.
func (s *session) manage(ctx context.Context, code string, timeout time.Duration) (string, error) {
	e := s.endpoint
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	x, frame, err := e.beginManagement(code, s)
	if err != nil {
		return "", err
	}
	answer := x.done
	if err := s.write(ctx, frame); err != nil {
		e.abandon(x)
		return "", err
	}
	for {
		var err error
		select {
		case r := <-answer:
			if r.err != nil {
				return "", r.err
			}
			return r.answer.Get(messages.ResponseCode), nil
		case request := <-s.requests:
			s.respond(request)
			continue
		case <-s.ended():
			err = errClosed
		case <-ctx.Done():
			if err = ctx.Err(); errors.Is(err, context.DeadlineExceeded) {
				err = ErrTimeout
			}
		}
		if e.abandon(x) {
			return "", err
		}
		// It was answered at this moment: the next round finds the answer.
	}
}

// beginManagement builds a network management request with a STAN of the links' own, which cannot meet a transaction's: the match key
// begins with the class of the MTI.
func (e *Endpoint) beginManagement(code string, s *session) (*exchange, []byte, error) {
	now := time.Now()
	e.mu.Lock()
	defer e.mu.Unlock()
	e.lastSTAN = e.lastSTAN%999999 + 1
	request := messages.NewNetworkManagement(code, now.UTC().Format("0102150405"), fmt.Sprintf("%06d", e.lastSTAN))
	frame, err := e.cfg.Codec.EncodeFrame(request)
	if err != nil {
		return nil, nil, err
	}
	key, ok := e.cfg.Codec.Key(request)
	if !ok {
		return nil, nil, errors.New("network management request has no match key")
	}
	x := &exchange{key: key, request: request, done: make(chan result, 1), management: true, session: s}
	return x, frame, e.pending.add(x, now)
}

// respond answers a sign-on, sign-off or echo of the processor. A request to sign off also ends the service of the link.
func (s *session) respond(request *messages.Message) {
	dialect := s.endpoint.cfg.Codec.Dialect()
	if request.Get(messages.NetworkManagement) == dialect.NetworkManagement.SignOff {
		s.signedOff = true
	}
	frame, err := s.endpoint.cfg.Codec.EncodeFrame(messages.NewAnswer(request, dialect.NetworkManagement.Accepted[0]))
	if err == nil {
		err = s.write(context.Background(), frame)
	}
	if err != nil {
		s.log.Warn("processor's request not answered", "mti", string(request.MTI), "error", err)
	}
}

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
	body, err := r.session.endpoint.cfg.Codec.ReadFrame(r)
	if err != nil {
		r.session.blame(r.stream.whyRead(err))
		close(r.session.read) // the library reads no more after an error
		return nil, err
	}
	r.session.last.Store(int64(time.Since(r.session.began)))
	if request := r.session.endpoint.receive(r.session.endpoint.cfg.Codec.Decode(body)); request != nil {
		select {
		case r.session.requests <- request:
		default:
			r.session.endpoint.sometimes.Do(func() {
				r.session.log.Warn("processor's request not answered: too many wait", "mti", string(request.MTI))
			})
		}
	}
	return nil, nil // the library's way to say: nothing for you
}

// Read is the buffered reading of a frame; with its first byte the frame's time begins to run.
func (r *reader) Read(p []byte) (int, error) {
	n, err := r.from.Read(p)
	if n > 0 && r.stream.frame.IsZero() {
		r.stream.frame = time.Now().Add(r.session.endpoint.cfg.FrameTimeout)
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
	deadline := c.frame
	if deadline.IsZero() {
		deadline = time.Now().Add(c.session.endpoint.cfg.silence())
	}
	if err := c.SetReadDeadline(deadline); err != nil {
		return 0, err
	}
	return c.Conn.Read(p)
}

// errUnbegun: the connection refused the deadline, so that it was not given a byte.
var errUnbegun = errors.New("write not begun")

func (c *stream) Write(p []byte) (int, error) {
	if err := c.SetWriteDeadline(time.Now().Add(c.session.endpoint.cfg.WriteTimeout)); err != nil {
		c.session.blame(causeWrite)
		return 0, fmt.Errorf("%w: %w", errUnbegun, err)
	}
	n, err := c.Conn.Write(p)
	if err != nil {
		c.session.blame(causeWrite)
	}
	return n, err
}

// Close drops what the processor has not taken from a link that it has stopped reading: a request that it got after its sender had given
// up would be one more hold, and its reversal may have come before it.
func (c *stream) Close() error {
	if why := c.session.why.Load(); why != nil && (*why == causeWrite || *why == causeEchoMissed || *why == causeSilence) {
		if tcp, is := c.Conn.(interface{ SetLinger(seconds int) error }); is {
			_ = tcp.SetLinger(0) // if it cannot, the close below is what is left
		}
	}
	return c.Conn.Close()
}

// whyRead is the class of an error of reading.
func (c *stream) whyRead(err error) cause {
	var frame *messages.FrameError
	var network net.Error
	switch {
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
