package upstream

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/time/rate"

	"acquirerd/acquirer"
	"acquirerd/conn"
	"acquirerd/messages"
)

// A Desk takes messages through their life: *acquirer.Switch. An error of any method means that the process must stop, and that nothing may
// be answered.
type Desk interface {
	// Admit gives a message its place among those of the same key. It does not wait, and is called in the order of arrival.
	Admit(req acquirer.Request) *acquirer.Visit
	Authorize(ctx context.Context, visit *acquirer.Visit) (acquirer.Result, error)
	Reverse(ctx context.Context, visit *acquirer.Visit) (acquirer.Result, error)
	Advise(ctx context.Context, visit *acquirer.Visit) (acquirer.Result, error)
	// TurnAway refuses a message for which the door has no room; nil if it must not be answered.
	TurnAway(ctx context.Context, req acquirer.Request) *messages.Message
	// Known reports whether a refusal of a message would be believed of what may have been approved. It leaves no trace of it.
	Known(ctx context.Context, req acquirer.Request) bool

	Delivered(result acquirer.Result)
	Undelivered(ctx context.Context, result acquirer.Result) error
}

// A Door serves one upstream.
type Door struct {
	upstream *acquirer.Upstream
	desk     Desk
	log      *slog.Logger
	metrics  *metrics

	terms    atomic.Pointer[terms] // stored under mu
	inFlight places
	checks   chan struct{} // one for each MAC that is being checked

	mu   sync.Mutex
	open map[*session]struct{} // the connections that hold a place; guarded by mu

	failed chan error // capacity 1: the first fatal error

	// For what a misbehaving upstream, or a stranger at the door, could fill the log with; the metrics count all of it.
	sometimes, knocking rate.Sometimes
}

// New checks the configuration and starts nothing. Doors of one process share a registry.
func New(cfg Config, desk Desk, log *slog.Logger, registry prometheus.Registerer) (*Door, error) {
	t, err := newTerms(cfg)
	if err != nil {
		return nil, err
	}
	m := newMetrics(registry)
	m.begin(cfg.Upstream.Name)
	if cfg.MAC != nil {
		m.macs.WithLabelValues(sideUpstream, cfg.Upstream.Name)
	}
	d := &Door{upstream: cfg.Upstream, desk: desk, log: log.With("upstream", cfg.Upstream.Name), metrics: m,
		inFlight: places{size: cfg.InFlight}, checks: make(chan struct{}, checksAtOnce), open: map[*session]struct{}{}, failed: make(chan error, 1),
		sometimes: rate.Sometimes{First: 10, Interval: time.Second}, knocking: rate.Sometimes{First: 10, Interval: time.Second}}
	d.terms.Store(t)
	return d, nil
}

// Serve accepts connections until ctx ends. Then it reads no more, lets the requests in flight be answered, and closes. It
// returns an error if the listener fails or the process must stop.
func (d *Door) Serve(ctx context.Context, listener net.Listener) error {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	release := context.AfterFunc(ctx, func() { _ = listener.Close() })
	defer release()

	var serving sync.WaitGroup
	defer serving.Wait()
	accepted := make(chan error, 1)
	serving.Go(func() {
		accepted <- d.accept(ctx, listener, &serving)
	})
	select {
	case err := <-accepted:
		stop()
		return err
	case err := <-d.failed:
		stop()
		return errors.Join(err, <-accepted)
	}
}

// exhausted are the errors of accept that pass: the process or the machine is short of something for now, or the peer was gone already.
var exhausted = []error{syscall.EMFILE, syscall.ENFILE, syscall.ENOBUFS, syscall.ENOMEM, syscall.ECONNABORTED}

// acceptPause is the longest time that accept waits for what is short.
const acceptPause = time.Second

// accept hands each connection to a goroutine of its own, as many as there are places.
func (d *Door) accept(ctx context.Context, listener net.Listener, serving *sync.WaitGroup) error {
	pause := 5 * time.Millisecond
	for {
		connection, err := listener.Accept()
		switch {
		case ctx.Err() != nil && err != nil:
			return nil
		case err != nil && slices.ContainsFunc(exhausted, func(passing error) bool { return errors.Is(err, passing) }):
			d.log.Error("connection not accepted", "error", err, "pause", pause)
			select {
			case <-ctx.Done():
				return nil
			case <-time.After(pause):
			}
			pause = min(2*pause, acceptPause)
			continue
		case err != nil:
			return fmt.Errorf("accepting connections of %s: %w", d.upstream.Name, err)
		}
		pause = 5 * time.Millisecond
		s, reason := d.admit(ctx, connection)
		if s == nil {
			d.refuseConnection(connection.RemoteAddr(), reason)
			_ = connection.Close()
			continue
		}
		serving.Go(s.serve)
	}
}

// PartingTime is the longest time that a connection takes to be closed after its last answer.
const PartingTime = 2 * time.Second

// partingBytes is the most that is read and dropped meanwhile.
const partingBytes = 1 << 20

// part closes a connection so that the answers that were written arrive. Closing with unread requests in the socket would have the
// kernel reset the connection and throw away what the upstream has not read yet. So the end is announced, to TLS and to TCP, and what still
// comes is dropped, for a while, until the upstream closes its side. So also the alert arrives that says why a handshake has failed.
func (s *session) part() {
	abandon := time.AfterFunc(PartingTime, func() { _ = s.raw.Close() }) // crypto/tls allows its announcement 5 s
	defer abandon.Stop()
	if s.paced != nil {
		_ = s.connection.(*tls.Conn).CloseWrite() // paced is set with it
	}
	if half, ok := s.raw.(interface{ CloseWrite() error }); ok && half.CloseWrite() == nil {
		_ = s.raw.SetReadDeadline(time.Now().Add(PartingTime))
		_, _ = io.Copy(io.Discard, io.LimitReader(s.raw, partingBytes)) // whatever ends it, it is over
	}
	_ = s.raw.Close()
}

// A session is one connection of an upstream.
type session struct {
	door       *Door
	raw        net.Conn        // as it was accepted
	connection net.Conn        // what requests are read from and answers written to: raw, or TLS over it
	paced      *conn.PacedConn // between raw and TLS; nil without a finished handshake
	address    netip.Addr
	tls        *tls.Config // of the terms by which it was accepted; nil: plain
	log        *slog.Logger

	ctx context.Context         // ends when nothing more may be read: at the end of the door's, or when Reconfigure bars the connection
	end context.CancelCauseFunc // with the reason of the bar

	certificate *x509.Certificate // the upstream's; guarded by door.mu, nil until it is verified

	untrusted []time.Time // when requests with a wrong MAC came, within macWindow, the oldest first; owned by read

	writing sync.Mutex // one frame at a time
	broken  bool       // guarded by writing: a frame was not written whole, so no other can follow
}

// serve reads requests until the connection ends or may not go on, and returns when every request it began has been answered.
func (s *session) serve() {
	d := s.door
	defer d.leave(s)
	d.metrics.connections.WithLabelValues(d.upstream.Name).Inc()
	defer d.metrics.connections.WithLabelValues(d.upstream.Name).Dec()
	defer s.part()
	if s.tls != nil {
		if err := s.handshake(); err != nil {
			s.refuseHandshake(err)
			return
		}
		state := s.connection.(*tls.Conn).ConnectionState() // a handshake has succeeded
		s.log = s.log.With("subject", subject(state.PeerCertificates[0]))
	}
	// At its end the read that waits for the next request ends; answers can still be written.
	release := context.AfterFunc(s.ctx, func() { _ = s.connection.SetReadDeadline(time.Now()) })
	defer release()

	s.log.Info("upstream connected")
	var answering sync.WaitGroup
	err := s.read(&answering)
	answering.Wait()
	s.log.Info("upstream disconnected", "cause", cause(s.ctx, err))
}

// read takes one frame after the other. It returns why it stopped.
func (s *session) read(answering *sync.WaitGroup) error {
	stream := newFrameStream(s.ctx, s.connection, s.door)
	codec := s.door.upstream.Codec
	if s.door.terms.Load().MAC != nil {
		return s.readChecked(stream, answering)
	}
	for {
		body, err := codec.ReadFrame(stream)
		if err != nil {
			return err
		}
		stream.next()
		arrived := time.Now()
		if len(body) == 0 { // it only shows that the upstream is there
			if err := s.send(codec.Keepalive()); err != nil {
				return err
			}
			continue
		}
		request, err := codec.Decode(body)
		if err := s.handle(request, err, arrived, answering); err != nil {
			return err
		}
	}
}

// handle takes what was read, with what is wrong with its form. Its error ends the connection.
func (s *session) handle(request *messages.Message, fault error, arrived time.Time, answering *sync.WaitGroup) error {
	if request != nil && request.Rejected() != "" {
		s.returned(request)
		return nil
	}
	if fault == nil {
		fault = s.door.upstream.Codec.Validate(request)
	}
	if fault != nil {
		return s.refuse(request, fault, s.tell)
	}
	return s.take(request, arrived, answering)
}

// returned drops a message that the upstream's network has returned: an answer of ours, if this is not a stranger's mistake. Whoever asked
// has no answer, and asks again or reverses.
func (s *session) returned(m *messages.Message) {
	defer m.Clear()
	s.door.metrics.messages.WithLabelValues(s.door.upstream.Name, kindUnasked).Inc()
	s.door.sometimes.Do(func() {
		s.log.Error("message was returned by the upstream's network", "mti", string(m.MTI), "upstream_stan", m.Get(messages.STAN),
			"reject_code", m.Rejected())
	})
}

// take answers a well-formed request, or starts a transaction for it.
func (s *session) take(request *messages.Message, arrived time.Time, answering *sync.WaitGroup) error {
	d := s.door
	begun := false
	defer func() {
		if !begun { // else it is cleared at its end
			request.Clear()
		}
	}()
	answers := d.upstream.Codec.Dialect().Answers
	req := acquirer.Request{Upstream: d.upstream, Message: request}
	serve, limited := d.desk.Authorize, false
	switch request.MTI.First() {
	case messages.AuthorizationRequest, messages.FinancialRequest:
		req.Key, limited = d.upstream.Codec.Identity(request), true
	case messages.AuthorizationAdvice, messages.FinancialAdvice:
		req.Key, serve = d.upstream.Codec.Identity(request), d.desk.Advise
	case messages.ReversalRequest, messages.ReversalAdvice:
		serve = d.desk.Reverse
	default:
		if request.MTI.Class() == messages.Network && request.MTI.IsRequest() {
			return s.manage(request)
		}
		if !request.MTI.IsRequest() {
			// An answer to a question that we never asked: nobody waits for one in return.
			d.metrics.messages.WithLabelValues(d.upstream.Name, kindUnasked).Inc()
			return nil
		}
		d.metrics.messages.WithLabelValues(d.upstream.Name, kindUnsupported).Inc()
		s.refused(request, kindUnsupported, answers.Unsupported)
		return s.tell(messages.NewAnswer(request, answers.Unsupported))
	}
	// What settles debts is not held to the rate. An upstream believes no refusal of a reversal or an advice but sends it again until it is
	// taken: refusals would make more messages of it, and keep what is owed open. The places in flight bound it like all others.
	t := d.terms.Load()
	switch {
	case !d.inFlight.take():
		return s.turnAway(req, kindBusy)
	case limited && !t.within():
		d.inFlight.free()
		return s.turnAway(req, kindRate)
	}
	d.metrics.messages.WithLabelValues(d.upstream.Name, kindTaken).Inc()
	begun = true
	visit := d.desk.Admit(req)
	answering.Go(func() {
		defer d.inFlight.free()
		defer request.Clear()
		// The end of ctx is a shutdown or a bar, which cancels nothing: each message ends by its own deadline.
		budget, release := context.WithDeadline(context.WithoutCancel(s.ctx), arrived.Add(t.Budget))
		defer release()
		s.answer(budget, func() (acquirer.Result, error) { return serve(budget, visit) })
	})
	return nil
}

// turnAway refuses a message that is over a limit, or gives it no answer: a refusal would be believed of what may have been approved. The
// upstream then asks again, or reverses.
func (s *session) turnAway(req acquirer.Request, kind string) error {
	d := s.door
	refusal := d.desk.TurnAway(s.ctx, req)
	if refusal == nil {
		d.metrics.messages.WithLabelValues(d.upstream.Name, kindSilent).Inc()
		return nil
	}
	d.metrics.messages.WithLabelValues(d.upstream.Name, kind).Inc()
	s.refused(req.Message, kind, refusal.Get(messages.ResponseCode))
	return s.tell(refusal)
}

// refused logs a request that the door answers itself.
func (s *session) refused(request *messages.Message, reason, code string) {
	s.door.sometimes.Do(func() {
		s.log.Warn("transaction", "outcome", "refused", "reason", reason, "mti", string(request.MTI),
			"upstream_stan", request.Get(messages.STAN), "response_code", code)
	})
}

// answer takes one message through the switch and delivers its answer, or reports that it could not.
func (s *session) answer(budget context.Context, serve func() (acquirer.Result, error)) {
	result, err := serve()
	if err != nil {
		s.door.fail(err) // others of this connection may still have answers that are recorded
		return
	}
	if result.Answer == nil {
		return
	}
	defer result.Answer.Clear()
	if err := s.write(result.Answer); err == nil {
		s.door.desk.Delivered(result)
		return
	}
	if err := s.door.desk.Undelivered(budget, result); err != nil {
		s.door.fail(err)
	}
}

// manage answers the link dialogue of an upstream.
func (s *session) manage(request *messages.Message) error {
	dialect := s.door.upstream.Codec.Dialect()
	kind, code := "", dialect.NetworkManagement.Accepted[0]
	switch s.door.upstream.Codec.Demanded(request) {
	case messages.SignOn:
		kind = kindSignOn
		s.log.Info("upstream signed on")
	case messages.SignOff:
		kind = kindSignOff
		s.log.Info("upstream signed off")
	case messages.Echo:
		kind = kindEcho
	case messages.KeyChange, messages.Cutover, messages.KeyRequest: // those are a processor's to demand
		kind, code = kindUnsupported, dialect.Answers.Unsupported
	default:
		kind, code = kindUnsupported, dialect.Answers.Unsupported
	}
	s.door.metrics.messages.WithLabelValues(s.door.upstream.Name, kind).Inc()
	return s.tell(messages.NewAnswer(request, code))
}

// refuse answers what does not keep the format, by tell. Its error ends the connection: what was read does not say what an answer to it would
// be an answer to.
func (s *session) refuse(request *messages.Message, fault error, tell func(*messages.Message) error) error {
	if request != nil {
		defer request.Clear()
	}
	s.door.metrics.messages.WithLabelValues(s.door.upstream.Name, kindFormatError).Inc()
	answers := s.door.upstream.Codec.Dialect().Answers
	if request == nil || !request.MTI.IsRequest() || !request.Has(messages.STAN) ||
		!request.Has(messages.TransmissionTime) && !request.Has(messages.LocalTime) {
		return fmt.Errorf("unreadable message: %w", fault)
	}
	s.door.sometimes.Do(func() {
		s.log.Warn("message refused", "mti", string(request.MTI), "upstream_stan", request.Get(messages.STAN), "error", fault)
	})
	var format *messages.FormatError
	if errors.As(fault, &format) {
		return tell(messages.NewFormatError(request, answers.FormatError, format.Element))
	}
	return tell(messages.NewAnswer(request, answers.Unsupported))
}

// write sends one answer. An error means that the upstream has not been given a whole frame, and will not be on this connection.
func (s *session) write(answer *messages.Message) error { return s.writeBy(s.frame, answer) }

func (s *session) writeBy(encode func(*messages.Message) ([]byte, error), answer *messages.Message) error {
	frame, err := encode(answer)
	if errors.As(err, new(*messages.FormatError)) {
		// The processor said something that this upstream's dialect has no room for. What it decided still fits.
		s.log.Error("answer does not fit the upstream's dialect", "mti", string(answer.MTI), "error", err)
		frame, err = encode(messages.Essence(answer))
	}
	if err != nil {
		return fmt.Errorf("encoding answer: %w", err)
	}
	return s.send(frame)
}

// send writes one frame, if there is one.
func (s *session) send(frame []byte) (err error) {
	if frame == nil {
		return nil
	}
	s.writing.Lock()
	defer s.writing.Unlock()
	if s.broken {
		return io.ErrClosedPipe
	}
	if err = s.connection.SetWriteDeadline(time.Now().Add(s.door.terms.Load().WriteTimeout)); err == nil {
		_, err = s.connection.Write(frame)
	}
	if err != nil {
		s.broken = true
		_ = s.raw.Close() // TLS would try to write its farewell
		return fmt.Errorf("writing answer: %w", err)
	}
	if s.paced != nil {
		_ = s.paced.SetWriteDeadline(time.Time{}) // cannot fail: see there
	}
	return nil
}

// fail reports the first fatal error to Serve.
func (d *Door) fail(err error) {
	select {
	case d.failed <- err:
	default:
	}
}

// cause names the end of a connection for the log, without quoting what was read.
func cause(ctx context.Context, err error) string {
	var frame *messages.FrameError
	var network net.Error
	var barred bar
	if own := (finished{}); errors.As(context.Cause(ctx), &own) {
		ctx, err = context.Background(), own.error
	}
	switch {
	case errors.As(context.Cause(ctx), &barred):
		return barred.Error()
	case ctx.Err() != nil:
		return "shutdown"
	case errors.Is(err, io.EOF):
		return "closed by upstream"
	case errors.As(err, &frame):
		return err.Error()
	case errors.As(err, &network) && network.Timeout():
		return "timeout"
	}
	return err.Error()
}
