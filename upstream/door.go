package upstream

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/time/rate"

	"acquirerd/acquirer"
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

	Delivered(result acquirer.Result)
	Undelivered(ctx context.Context, result acquirer.Result) error
}

// Config is one upstream's door.
type Config struct {
	Upstream     *acquirer.Upstream
	InFlight     int           // most requests at once over all connections of this upstream
	Connections  int           // most connections at once
	Budget       time.Duration // how long this upstream waits for an answer
	IdleTimeout  time.Duration // a connection on which nothing arrives for this long is closed
	FrameTimeout time.Duration // longest time from a frame's first byte to its last
	WriteTimeout time.Duration // longest time for an answer to be written
}

// A Door serves one upstream.
type Door struct {
	cfg     Config
	desk    Desk
	log     *slog.Logger
	metrics *metrics
	slots   chan struct{} // one for each request that may be in flight

	failed chan error // capacity 1: the first fatal error

	sometimes rate.Sometimes // for what a misbehaving upstream could fill the log with; the metrics count all of it
}

// New checks the configuration and starts nothing. Doors of one process share a registry.
func New(cfg Config, desk Desk, log *slog.Logger, registry prometheus.Registerer) (*Door, error) {
	if cfg.InFlight < 1 || cfg.Connections < 1 {
		return nil, errors.New("in_flight and connections must be at least 1")
	}
	if cfg.Budget <= 0 || cfg.IdleTimeout <= 0 || cfg.FrameTimeout <= 0 || cfg.WriteTimeout <= 0 {
		return nil, errors.New("budget and timeouts must be positive")
	}
	m := newMetrics(registry)
	m.begin(cfg.Upstream.Name)
	return &Door{cfg: cfg, desk: desk, log: log.With("upstream", cfg.Upstream.Name), metrics: m,
		slots: make(chan struct{}, cfg.InFlight), failed: make(chan error, 1), sometimes: rate.Sometimes{First: 10, Interval: time.Second}}, nil
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
	places := make(chan struct{}, d.cfg.Connections)
	accepted := make(chan error, 1)
	serving.Go(func() {
		accepted <- d.accept(ctx, listener, places, &serving)
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
func (d *Door) accept(ctx context.Context, listener net.Listener, places chan struct{}, serving *sync.WaitGroup) error {
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
			return fmt.Errorf("accepting connections of %s: %w", d.cfg.Upstream.Name, err)
		}
		pause = 5 * time.Millisecond
		select {
		case places <- struct{}{}:
		default:
			d.metrics.refused.WithLabelValues(d.cfg.Upstream.Name).Inc()
			d.sometimes.Do(func() {
				d.log.Warn("connection refused: too many", "remote", connection.RemoteAddr().String(), "limit", d.cfg.Connections)
			})
			_ = connection.Close()
			continue
		}
		serving.Go(func() {
			defer func() { <-places }()
			d.serve(ctx, connection)
		})
	}
}

// PartingTime is the longest time that a connection takes to be closed after its last answer.
const PartingTime = 2 * time.Second

// partingBytes is the most that is read and dropped meanwhile.
const partingBytes = 1 << 20

// part closes a connection so that the answers that were written arrive. Closing with unread requests in the socket would have the
// kernel reset the connection and throw away what the upstream has not read yet. So the end is announced, and what still comes is read
// and dropped, for a while, until the upstream closes its side.
func part(connection net.Conn) {
	if half, ok := connection.(interface{ CloseWrite() error }); ok && half.CloseWrite() == nil {
		_ = connection.SetReadDeadline(time.Now().Add(PartingTime))
		_, _ = io.Copy(io.Discard, io.LimitReader(connection, partingBytes)) // whatever ends it, it is over
	}
	_ = connection.Close()
}

// A session is one connection of an upstream.
type session struct {
	door       *Door
	connection net.Conn
	log        *slog.Logger

	writing sync.Mutex // one frame at a time
	broken  bool       // guarded by writing: a frame was not written whole, so no other can follow
}

// serve reads requests until the connection ends or ctx does, and returns when every request it began has been answered.
func (d *Door) serve(ctx context.Context, connection net.Conn) {
	s := &session{door: d, connection: connection, log: d.log.With("remote", connection.RemoteAddr().String())}
	d.metrics.connections.WithLabelValues(d.cfg.Upstream.Name).Inc()
	defer d.metrics.connections.WithLabelValues(d.cfg.Upstream.Name).Dec()
	defer part(connection)
	// At shutdown the read that waits for the next request ends; answers can still be written.
	release := context.AfterFunc(ctx, func() { _ = connection.SetReadDeadline(time.Now()) })
	defer release()

	s.log.Info("upstream connected")
	var answering sync.WaitGroup
	err := s.read(ctx, &answering)
	answering.Wait()
	s.log.Info("upstream disconnected", "cause", cause(ctx, err))
}

// read takes one frame after the other. It returns why it stopped.
func (s *session) read(ctx context.Context, answering *sync.WaitGroup) error {
	stream := newFrameStream(ctx, s.connection, s.door.cfg)
	codec := s.door.cfg.Upstream.Codec
	for {
		body, err := codec.ReadFrame(stream)
		if err != nil {
			return err
		}
		stream.next()
		arrived := time.Now()
		request, err := codec.Decode(body)
		if err == nil {
			err = codec.Validate(request)
		}
		if err != nil {
			if err := s.refuse(request, err); err != nil {
				return err
			}
			continue
		}
		if err := s.take(ctx, request, arrived, answering); err != nil {
			return err
		}
	}
}

// take answers a well-formed request, or starts a transaction for it.
func (s *session) take(ctx context.Context, request *messages.Message, arrived time.Time, answering *sync.WaitGroup) error {
	d := s.door
	begun := false
	defer func() {
		if !begun { // else it is cleared at its end
			request.Clear()
		}
	}()
	answers := d.cfg.Upstream.Codec.Dialect().Answers
	req := acquirer.Request{Upstream: d.cfg.Upstream, Message: request}
	serve := d.desk.Authorize
	switch request.MTI.First() {
	case messages.AuthorizationRequest, messages.FinancialRequest:
		req.Key = d.cfg.Upstream.Codec.Identity(request)
	case messages.AuthorizationAdvice, messages.FinancialAdvice:
		req.Key, serve = d.cfg.Upstream.Codec.Identity(request), d.desk.Advise
	case messages.ReversalRequest, messages.ReversalAdvice:
		serve = d.desk.Reverse
	case messages.NetworkManagementRequest:
		return s.manage(request)
	default:
		if !request.MTI.IsRequest() {
			// An answer to a question that we never asked: nobody waits for one in return.
			d.metrics.messages.WithLabelValues(d.cfg.Upstream.Name, kindUnasked).Inc()
			return nil
		}
		d.metrics.messages.WithLabelValues(d.cfg.Upstream.Name, kindUnsupported).Inc()
		s.refused(request, kindUnsupported, answers.Unsupported)
		return s.write(messages.NewAnswer(request, answers.Unsupported))
	}
	select {
	case d.slots <- struct{}{}:
	default:
		refusal := d.desk.TurnAway(ctx, req)
		if refusal == nil {
			// It would be believed of what may have been approved. The upstream asks again, or reverses.
			d.metrics.messages.WithLabelValues(d.cfg.Upstream.Name, kindSilent).Inc()
			return nil
		}
		d.metrics.messages.WithLabelValues(d.cfg.Upstream.Name, kindBusy).Inc()
		s.refused(request, kindBusy, refusal.Get(messages.ResponseCode))
		return s.write(refusal)
	}
	d.metrics.messages.WithLabelValues(d.cfg.Upstream.Name, kindTaken).Inc()
	begun = true
	visit := d.desk.Admit(req)
	answering.Go(func() {
		defer func() { <-d.slots }()
		defer request.Clear()
		// The end of ctx is a shutdown, which cancels nothing: each message ends by its own deadline.
		budget, release := context.WithDeadline(context.WithoutCancel(ctx), arrived.Add(d.cfg.Budget))
		defer release()
		s.answer(budget, func() (acquirer.Result, error) { return serve(budget, visit) })
	})
	return nil
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

// manage answers the 0800 dialogue of an upstream.
func (s *session) manage(request *messages.Message) error {
	dialect := s.door.cfg.Upstream.Codec.Dialect()
	network := dialect.NetworkManagement
	kind, code := "", network.Accepted[0]
	switch request.Get(messages.NetworkManagement) {
	case network.SignOn:
		kind = kindSignOn
		s.log.Info("upstream signed on")
	case network.SignOff:
		kind = kindSignOff
		s.log.Info("upstream signed off")
	case network.Echo:
		kind = kindEcho
	default:
		kind, code = kindUnsupported, dialect.Answers.Unsupported
	}
	s.door.metrics.messages.WithLabelValues(s.door.cfg.Upstream.Name, kind).Inc()
	return s.write(messages.NewAnswer(request, code))
}

// refuse answers what does not keep the format. Its error ends the connection: what was read does not say what an answer to it would be
// an answer to.
func (s *session) refuse(request *messages.Message, fault error) error {
	if request != nil {
		defer request.Clear()
	}
	s.door.metrics.messages.WithLabelValues(s.door.cfg.Upstream.Name, kindFormatError).Inc()
	answers := s.door.cfg.Upstream.Codec.Dialect().Answers
	if request == nil || !request.MTI.IsRequest() || !request.Has(messages.STAN) || !request.Has(messages.TransmissionTime) {
		return fmt.Errorf("unreadable message: %w", fault)
	}
	s.door.sometimes.Do(func() {
		s.log.Warn("message refused", "mti", string(request.MTI), "upstream_stan", request.Get(messages.STAN), "error", fault)
	})
	var format *messages.FormatError
	if errors.As(fault, &format) {
		return s.write(messages.NewFormatError(request, answers.FormatError, format.Element))
	}
	return s.write(messages.NewAnswer(request, answers.Unsupported))
}

// write sends one answer. An error means that the upstream has not been given a whole frame, and will not be on this connection.
func (s *session) write(answer *messages.Message) error {
	frame, err := s.door.cfg.Upstream.Codec.EncodeFrame(answer)
	if err != nil {
		// The processor said something that this upstream's dialect has no room for. What it decided still fits.
		s.log.Error("answer does not fit the upstream's dialect", "mti", string(answer.MTI), "error", err)
		if frame, err = s.door.cfg.Upstream.Codec.EncodeFrame(messages.Essence(answer)); err != nil {
			return fmt.Errorf("encoding answer: %w", err)
		}
	}
	s.writing.Lock()
	defer s.writing.Unlock()
	if s.broken {
		return io.ErrClosedPipe
	}
	if err = s.connection.SetWriteDeadline(time.Now().Add(s.door.cfg.WriteTimeout)); err == nil {
		_, err = s.connection.Write(frame)
	}
	if err != nil {
		s.broken = true
		_ = s.connection.Close()
		return fmt.Errorf("writing answer: %w", err)
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
	switch {
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
