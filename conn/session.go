package conn

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync/atomic"
	"time"

	connection "github.com/moov-io/iso8583-connection"

	"acquirerd/messages"
)

// A session is one connection of a link, from its establishment to its close, and its state machine.
//
// The connection library's goroutines read and write it. What they read they give to receive of the endpoint; what is written goes
// through write.
type session struct {
	endpoint  *Endpoint
	link      *link
	host      int    // index in the link's hosts; 0 if the processor has dialled
	address   string // of the host, or from which the processor has dialled
	wire      *connection.Connection
	turn      chan struct{}          // capacity 1: held by whoever writes
	requests  chan *messages.Message // the processor's own, which the session answers
	challenge chan struct{}          // capacity 1: somebody wants its place, and whether it is alive must be seen now
	read      chan struct{}          // closed when the library has read its last
	stays     context.Context        // until the session gets no more exchanges
	depart    context.CancelFunc     // ends stays; called under Endpoint.mu
	over      chan struct{}          // closed when nothing of the session is left
	dismissed chan struct{}          // closed when the processor has signed off; owned by run
	began     time.Time
	last      atomic.Int64 // when the last frame arrived, in nanoseconds after began
	writing   atomic.Int64 // when the write that goes on began, in nanoseconds after began; 0 if none does
	why       atomic.Pointer[cause]
	farewell  atomic.Pointer[cause] // once we sign off: why. The processor may close it from then on

	signedOff bool // by the processor; owned by run, and by open before it

	checked <-chan struct{} // closed once the request that was read last is through its check; nil before the first; owned by what reads

	state    State         // guarded by Endpoint.mu
	signedOn bool          // the processor has accepted its sign-on, whatever came after; guarded by Endpoint.mu
	since    time.Time     // of state; guarded by Endpoint.mu
	parting  cause         // why it leaves; guarded by Endpoint.mu, and does not change once stays has ended
	inFlight int           // guarded by Endpoint.mu
	lost     int           // what was written and has ended without an answer; guarded by Endpoint.mu
	shown    int           // of lost, what the processor has read for certain: it has answered what was written after it; guarded by Endpoint.mu
	idle     chan struct{} // closed once the session drains and nothing is in flight on it; guarded by Endpoint.mu
}

// requestsQueued is how many of the processor's own sign-ons and echoes may wait for the session: a few, because the processor waits for
// each before the next. Over it they are not answered.
const requestsQueued = 8

// never is the library's timer for what we do not have it do. It may not be 0, which would start a goroutine without a pause.
const never = 24 * time.Hour

// newSession gives a connection of the link to the library. It is closed with the session.
func newSession(l *link, host int, address string, c net.Conn) (*session, error) {
	s := &session{endpoint: l.endpoint, link: l, host: host, address: address, turn: make(chan struct{}, 1),
		requests: make(chan *messages.Message, requestsQueued), challenge: make(chan struct{}, 1), read: make(chan struct{}),
		over: make(chan struct{}), dismissed: make(chan struct{}), began: time.Now(), state: Down, idle: make(chan struct{})}
	s.stays, s.depart = context.WithCancel(context.Background())
	linger(underneath(c), 0)
	stream := &stream{Conn: c, session: s}
	var err error
	s.wire, err = connection.NewFrom(stream, l.endpoint.codec.Dialect().Spec(), nil, nil,
		connection.SetMessageReader(&reader{session: s, stream: stream}), connection.IdleTime(never), connection.ReadTimeout(never))
	if err != nil {
		return nil, fmt.Errorf("beginning session: %w", err)
	}
	return s, nil
}

func (s *session) log() *slog.Logger { return s.link.log().With("address", s.address) }

func (s *session) logState(from, to State) {
	s.log().Info("link state", "from", string(from), "to", string(to))
}

// change takes the session to the next state. Called under Endpoint.mu.
func (s *session) change(what event) {
	s.state, s.since = s.state.after(what), time.Now()
	s.signedOn = s.signedOn || what == accepted
}

// leave says that the session gets no more exchanges, if it gets any. Called under Endpoint.mu.
func (s *session) leave(why cause) {
	if s.state != InService {
		return
	}
	s.change(leaving)
	s.parting = why
	s.depart()
	s.checkIdle()
}

// release takes one exchange off the session. Called under Endpoint.mu.
func (s *session) release() {
	s.inFlight--
	s.checkIdle()
}

func (s *session) checkIdle() {
	if s.state == Draining && s.inFlight == 0 {
		select {
		case <-s.idle:
		default:
			close(s.idle)
		}
	}
}

// run keeps a session in service until it ends, or until it leaves and has drained.
func (s *session) run() {
	s.keep()
	select {
	case <-s.stays.Done():
		s.logState(InService, Draining)
		if s.drain() && !s.signedOff {
			s.signOff(s.parting)
		}
		s.end(s.parting)
	default:
		s.end(causeNone)
	}
}

// keep answers what the processor asks of the link, and asks for an echo when nothing has come for a while.
func (s *session) keep() {
	cfg := s.endpoint.config()
	quiet := time.NewTimer(cfg.EchoInterval)
	defer quiet.Stop()
	missed := 0
	var challenged time.Time // when echoes for a newcomer were asked for last
	for {
		if s.signedOff { // it may have been before the sign-on was accepted
			s.endpoint.mu.Lock()
			s.leave(causeSignedOffByPeer)
			s.endpoint.mu.Unlock()
			close(s.dismissed)
			return
		}
		select {
		case <-s.ended():
			return
		case <-s.stays.Done():
			return
		case request := <-s.requests:
			s.respond(request)
		case <-cfg.replaced:
			cfg = s.endpoint.config()
			quiet.Reset(max(0, cfg.EchoInterval-s.quiet()))
		case <-s.challenge:
			if time.Since(challenged) < cfg.EchoTimeout {
				continue // it has answered within that time, or the loop would have ended
			}
			challenged = time.Now()
			if !s.lives(cfg.EchoMisses) {
				s.cut(causeReplaced)
				return
			}
		case <-quiet.C:
			rest := cfg.EchoInterval - s.quiet()
			if rest > 0 {
				missed = 0
			} else {
				if missed = s.echo(missed); missed >= cfg.EchoMisses {
					s.cut(causeEchoMissed)
					return
				}
				rest = cfg.EchoInterval - s.quiet() // at once after a missed one
			}
			quiet.Reset(max(0, rest))
		}
	}
}

// drain lets the exchanges in flight end by their own deadlines, which every one has. It is false if the session ends before them.
func (s *session) drain() bool {
	for {
		select {
		case request := <-s.requests:
			s.respond(request)
		case <-s.ended():
			return false
		case <-s.idle:
			return true
		}
	}
}

// end closes the session, for this reason if it has not ended yet, and takes it off its link.
func (s *session) end(why cause) {
	why = s.close(why)
	s.endpoint.mu.Lock()
	before := s.state
	s.change(ended)
	s.link.forget(s)
	if why.isFailure() {
		s.link.fail(why)
	}
	s.endpoint.mu.Unlock()
	level := slog.LevelInfo
	if why.isFailure() {
		level = slog.LevelWarn
	}
	s.log().Log(context.Background(), level, "link state", "from", string(before), "to", string(Down), "cause", string(why))
	s.depart()
	close(s.over)
}

// ended is closed when the connection is.
func (s *session) ended() <-chan struct{} { return s.wire.Done() }

// blame says why the session ends. The first one to say so is right: what follows is its consequence.
func (s *session) blame(why cause) { s.why.CompareAndSwap(nil, &why) }

// cut begins the close of the session, for this reason if it has not ended yet.
func (s *session) cut(why cause) {
	s.blame(why)
	_ = s.wire.Close() // returns at once, and nil, if the library is closing it already
}

// close ends the session, waits until the library has let go of it, and returns the cause.
func (s *session) close(why cause) cause {
	s.cut(why)
	<-s.wire.Done()
	<-s.read
	return *s.why.Load()
}

// owes reports whether something that was written may not have been read by the processor, while its sender has given up on it, or will
// before anybody can tell.
func (s *session) owes() bool {
	s.endpoint.mu.Lock()
	defer s.endpoint.mu.Unlock()
	return s.inFlight > 0 || s.lost > s.shown
}

// quiet is for how long nothing has arrived.
func (s *session) quiet() time.Duration { return time.Since(s.began) - time.Duration(s.last.Load()) }

// stuck reports whether a write goes on that takes longer than it should.
func (s *session) stuck() bool {
	at := s.writing.Load()
	return at != 0 && time.Since(s.began)-time.Duration(at) >= s.endpoint.config().quickWrite()
}

var (
	errClosed = errors.New("the link was closed before the write")
	errTurn   = errors.New("the link is busy with other writes")
)

// write sends one frame, and says when it had its turn to. Its error wraps ErrNotSent if no byte of it can have been sent. It waits at
// most so long for its turn, and then WriteTimeout for the write; ctx counts until its turn.
func (s *session) write(ctx context.Context, frame []byte, longest time.Duration) (turn time.Time, err error) {
	select {
	case s.turn <- struct{}{}:
	default:
		patience := time.NewTimer(longest)
		defer patience.Stop()
		select {
		case s.turn <- struct{}{}:
		case <-s.ended():
			return turn, notSent(errClosed)
		case <-ctx.Done():
			return turn, notSent(ctx.Err())
		case <-patience.C:
			return turn, notSent(errTurn)
		}
	}
	turn = time.Now()
	s.writing.Store(max(1, int64(turn.Sub(s.began))))
	_, err = s.wire.Write(frame)
	s.writing.Store(0)
	<-s.turn
	switch {
	case errors.Is(err, connection.ErrConnectionClosed), errors.Is(err, errUnbegun):
		return turn, notSent(errClosed) // the library's loop had not taken the frame, or the connection was closed under it
	case err != nil:
		return turn, fmt.Errorf("writing frame: %w", err) // and the library closes the connection
	}
	s.link.counted.framesOut.Add(1)
	return turn, nil
}

// signOn signs the session on. Where its dialect has no sign-on an echo stands for it: that a connection is accepted proves only that
// something is there, such as a balancer that closes it at once. If it is false the session is blamed, or ctx has ended.
func (s *session) signOn(ctx context.Context) bool {
	part := messages.SignOn
	if !s.endpoint.codec.Holds(part) {
		part = messages.Echo // which every dialect has: its lint demands it
	}
	answer, err := s.manage(ctx, part, s.endpoint.config().SignOnTimeout)
	switch {
	case err == nil && s.endpoint.codec.Accepts(answer):
		return true
	case err == nil:
		s.log().Warn("sign-on refused", "by", string(part), "response_code", answer.Get(messages.ResponseCode))
		s.blame(causeSignOnRefused)
	case errors.Is(err, ErrTimeout):
		s.blame(causeSignOnTimeout)
	case ctx.Err() == nil:
		s.blame(causeSignOnUnusable) // unless the session has ended, and why is known
	}
	return false
}

// signOff signs the session off for this reason, if its dialect has it. Whatever the answer, the session is to be ended after it. Many
// processors close the connection instead of an answer.
func (s *session) signOff(why cause) {
	if !s.endpoint.codec.Holds(messages.SignOff) {
		return
	}
	s.farewell.Store(&why)
	_, err := s.manage(context.Background(), messages.SignOff, s.endpoint.config().SignOnTimeout)
	if err != nil && !errors.Is(err, errClosed) {
		s.log().Warn("sign-off not confirmed", "error", err)
	}
}

// echo asks the processor for an echo, and returns how many were missed in a row. Any frame shows that the processor is there.
func (s *session) echo(missed int) int {
	last, began := s.last.Load(), time.Now()
	answer, err := s.manage(s.stays, messages.Echo, s.endpoint.config().EchoTimeout)
	switch {
	case err == nil && !s.endpoint.codec.Accepts(answer):
		s.log().Warn("echo refused", "response_code", answer.Get(messages.ResponseCode))
		s.cut(causeEchoRefused)
	case err == nil:
		s.link.counted.echo.Store(int64(time.Since(began)))
	case errors.Is(err, ErrTimeout) && s.last.Load() == last:
		return missed + 1
	}
	return 0
}

// lives asks for an echo until the processor has shown that it is there, or has missed so many in a row.
func (s *session) lives(misses int) bool {
	for missed := 0; missed < misses; {
		before := missed
		if missed = s.echo(missed); missed <= before {
			return true
		}
	}
	return false
}

// manage sends one network management request on this session and returns its answer. Meanwhile the processor's own
// requests are answered: it may want that before it answers ours.
func (s *session) manage(ctx context.Context, part messages.Dialogue, timeout time.Duration) (*messages.Message, error) {
	return s.converse(ctx, part, timeout, s.requests)
}

// converse sends one network management request on this session and returns its answer. requests are those that it answers meanwhile: the session's
// for its own goroutine, nil for any other, because what they change is that one's.
func (s *session) converse(ctx context.Context, part messages.Dialogue, timeout time.Duration, requests <-chan *messages.Message) (*messages.Message, error) {
	e := s.endpoint
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	x, frame, err := e.beginManagement(ctx, part, s)
	var answer chan result
	switch {
	case errors.Is(err, messages.ErrNoMAC) && part != messages.KeyRequest:
		s.log().Warn("request of the dialogue not sent", "part", string(part), "error", err) // as if it had no answer: it is tried again as late
	case err != nil:
		return nil, notSent(err)
	default:
		answer = x.done
		_, err := s.write(ctx, frame, e.config().WriteTimeout)
		if errors.Is(err, ErrNotSent) {
			e.withdraw(x) // what comes with its key after that answers nothing
			return nil, err
		}
		if err != nil && e.abandon(x) {
			return nil, err
		} // else it was answered before the write failed, and the first round finds the answer
	}
	for {
		var err error
		select {
		case r := <-answer:
			if r.err != nil {
				return nil, r.err
			}
			e.mu.Lock()
			s.shown = max(s.shown, x.before)
			e.mu.Unlock()
			return r.answer, nil
		case request := <-requests:
			s.respond(request)
			continue
		case <-s.ended():
			err = errClosed
		case <-ctx.Done():
			if err = ctx.Err(); errors.Is(err, context.DeadlineExceeded) {
				err = ErrTimeout
			}
		}
		if x == nil || e.abandon(x) {
			return nil, err
		}
		// It was answered at this moment: the next round finds the answer.
	}
}

// beginManagement builds a network management request with a STAN of the links' own, which cannot meet a transaction's: the match key
// begins with the class of the MTI.
func (e *Endpoint) beginManagement(ctx context.Context, part messages.Dialogue, s *session) (*exchange, []byte, error) {
	e.mu.Lock()
	e.lastSTAN = e.lastSTAN%999999 + 1
	stan := fmt.Sprintf("%06d", e.lastSTAN)
	e.mu.Unlock()
	request := e.codec.NewDialogue(part, time.Now(), stan)
	frame, err := e.frame(ctx, request, e.config().WriteTimeout)
	if err != nil {
		return nil, nil, err
	}
	key, ok := e.codec.Key(request)
	if !ok {
		return nil, nil, errors.New("network management request has no match key")
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	x := &exchange{key: key, request: request, done: make(chan result, 1), management: true, session: s, before: s.lost}
	if part == messages.KeyRequest && e.codec.Dialect().NetworkManagement.KeyData.InAnswer {
		x.keyAsked = time.Now()
	}
	if err := e.pending.add(x, time.Now()); err != nil {
		return nil, nil, err
	}
	return x, frame, nil
}

// respond answers a sign-on, sign-off or echo of the processor, or for nil a keep-alive. A request to sign off also ends the service of the
// link.
func (s *session) respond(request *messages.Message) {
	codec := s.endpoint.codec
	frame, err := codec.Keepalive(), error(nil)
	if request != nil {
		s.signedOff = s.signedOff || codec.Demanded(request) == messages.SignOff
		accepted := messages.NewAnswer(request, codec.Dialect().NetworkManagement.Accepted[0])
		frame, err = s.endpoint.frame(context.Background(), accepted, s.endpoint.config().WriteTimeout)
	}
	if err == nil {
		_, err = s.write(context.Background(), frame, s.endpoint.config().WriteTimeout)
	}
	if err != nil {
		s.log().Warn("processor's request not answered", "message", request, "error", err)
	}
}
