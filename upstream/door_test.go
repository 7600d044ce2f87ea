package upstream_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"

	"acquirerd/acquirer"
	"acquirerd/journal"
	"acquirerd/messages"
	"acquirerd/simulator"
	"acquirerd/specs"
	"acquirerd/upstream"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var errJournal = errors.New("journal has failed")

// A desk stands in for the switch.
type desk struct {
	authorize func(ctx context.Context, req acquirer.Request) (acquirer.Result, error)

	mu          sync.Mutex
	undelivered []acquirer.Result
	delivered   int
	keys        []string
	known       string   // the key that the switch knows
	turned      []string // keys of what was turned away: their refusals are remembered
}

func (d *desk) Admit(req acquirer.Request) *acquirer.Visit { return &acquirer.Visit{Request: req} }

func (d *desk) Authorize(ctx context.Context, v *acquirer.Visit) (acquirer.Result, error) {
	d.mu.Lock()
	d.keys = append(d.keys, v.Key)
	d.mu.Unlock()
	return d.authorize(ctx, v.Request)
}

func (d *desk) Reverse(ctx context.Context, v *acquirer.Visit) (acquirer.Result, error) {
	return d.other(ctx, "reverse", v)
}

func (d *desk) Advise(ctx context.Context, v *acquirer.Visit) (acquirer.Result, error) {
	return d.other(ctx, "advise", v)
}

func (d *desk) other(ctx context.Context, what string, v *acquirer.Visit) (acquirer.Result, error) {
	d.mu.Lock()
	d.keys = append(d.keys, what+" "+v.Key)
	d.mu.Unlock()
	return d.authorize(ctx, v.Request)
}

func (d *desk) TurnAway(_ context.Context, req acquirer.Request) *messages.Message {
	if req.Key != "" && req.Key == d.known {
		return nil
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.turned = append(d.turned, req.Key)
	return messages.NewAnswer(req.Message, "96")
}

func (d *desk) Known(_ context.Context, req acquirer.Request) bool {
	return req.Key != "" && req.Key == d.known
}

func (d *desk) Delivered(acquirer.Result) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.delivered++
}

func (d *desk) Undelivered(_ context.Context, result acquirer.Result) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.undelivered = append(d.undelivered, result)
	return nil
}

func approve(_ context.Context, req acquirer.Request) (acquirer.Result, error) {
	return acquirer.Result{Answer: messages.NewAnswer(req.Message, "00"), Outcome: journal.Approved}, nil
}

// A hall is a door with its desk and a way in.
type hall struct {
	t        *testing.T
	desk     *desk
	door     *upstream.Door
	cfg      upstream.Config // of the door at first
	dial     func(context.Context) (net.Conn, error)
	codec    *messages.Codec
	registry *prometheus.Registry
	log      *logbook
	cancel   context.CancelFunc
	served   chan error
}

// A logbook is what was logged.
type logbook struct {
	mu   sync.Mutex
	text strings.Builder
}

func (l *logbook) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *logbook) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

func open(t *testing.T, change func(*upstream.Config)) *hall {
	t.Helper()
	listener := simulator.NewPipeListener()
	return openAt(t, listener, listener.Dial, change)
}

func openAt(t *testing.T, listener net.Listener, dial func(context.Context) (net.Conn, error), change func(*upstream.Config)) *hall {
	t.Helper()
	h := &hall{t: t, desk: &desk{authorize: approve}, dial: dial, codec: codecOf(t), registry: prometheus.NewRegistry(), log: &logbook{},
		served: make(chan error, 1)}
	cfg := upstream.Config{Upstream: &acquirer.Upstream{Name: "pos", Codec: h.codec}, InFlight: 8, Connections: 4, Budget: 30 * time.Second,
		IdleTimeout: 5 * time.Minute, FrameTimeout: 5 * time.Second, WriteTimeout: 5 * time.Second}
	if change != nil {
		change(&cfg)
	}
	door, err := upstream.New(cfg, h.desk, slog.New(slog.NewTextHandler(h.log, nil)), h.registry)
	if err != nil {
		t.Fatal(err)
	}
	h.cfg, h.door = cfg, door
	ctx, cancel := context.WithCancel(t.Context())
	h.cancel = cancel
	go func() { h.served <- door.Serve(ctx, listener) }()
	return h
}

func codecOf(t *testing.T) *messages.Codec {
	t.Helper()
	dialect, err := specs.Load("iso87-binary")
	if err != nil {
		t.Fatal(err)
	}
	return messages.NewCodec(dialect)
}

// count is the value of a series of this upstream: of a metric without another label, or of the one whose other label has this value.
func (h *hall) count(metric, label string) float64 {
	h.t.Helper()
	families, err := h.registry.Gather()
	if err != nil {
		h.t.Fatal(err)
	}
	for _, family := range families {
		if family.GetName() != metric {
			continue
		}
		for _, m := range family.GetMetric() {
			for _, pair := range m.GetLabel() {
				if pair.GetName() != "upstream" && pair.GetValue() != label || label == "" && len(m.GetLabel()) > 1 {
					m = nil
					break
				}
			}
			if m != nil {
				return m.GetCounter().GetValue() + m.GetGauge().GetValue()
			}
		}
	}
	h.t.Fatalf("no series %s of %q", metric, label)
	return 0
}

func (h *hall) refused(reason string) float64 {
	h.t.Helper()
	return h.count("acquirerd_upstream_connections_refused_total", reason)
}

func (h *hall) told(kind string) float64 {
	h.t.Helper()
	return h.count("acquirerd_upstream_messages_total", kind)
}

// close ends the door and returns what Serve returned.
func (h *hall) close() error {
	h.cancel()
	return <-h.served
}

// A caller is one connection of the upstream.
type caller struct {
	net.Conn
	h      *hall
	reader *bufio.Reader
}

func (h *hall) connect() *caller {
	h.t.Helper()
	connection, err := h.dial(h.t.Context())
	if err != nil {
		h.t.Fatal(err)
	}
	return h.caller(connection)
}

func (h *hall) caller(connection net.Conn) *caller {
	return &caller{connection, h, bufio.NewReader(connection)}
}

// served reports whether a request on this connection is approved.
func (c *caller) served(stan int) bool {
	c.h.t.Helper()
	c.send(request(stan))
	got := c.receive()
	return got.Get(messages.STAN) == fmt.Sprintf("%06d", stan) && got.Get(messages.ResponseCode) == "00"
}

func (c *caller) send(m *messages.Message) {
	c.h.t.Helper()
	frame, err := c.h.codec.EncodeFrame(m)
	if err != nil {
		c.h.t.Fatal(err)
	}
	c.raw(frame)
}

func (c *caller) raw(frame []byte) {
	c.h.t.Helper()
	if _, err := c.Write(frame); err != nil {
		c.h.t.Fatal(err)
	}
}

func (c *caller) receive() *messages.Message {
	c.h.t.Helper()
	body, err := c.h.codec.ReadFrame(c.reader)
	if err != nil {
		c.h.t.Fatal(err)
	}
	m, err := c.h.codec.Decode(body)
	if err != nil {
		c.h.t.Fatal(err)
	}
	return m
}

// ended reports whether the door closes the connection without another byte.
func (c *caller) ended() bool {
	_, err := c.reader.ReadByte()
	return errors.Is(err, io.EOF)
}

func request(stan int) *messages.Message {
	m := messages.New(messages.AuthorizationRequest)
	m.SetSensitive(messages.PAN, "4111111111111111")
	m.Set(messages.ProcessingCode, "000000")
	m.Set(messages.Amount, "000000001000")
	m.Set(messages.TransmissionTime, "1123120000")
	m.Set(messages.STAN, fmt.Sprintf("%06d", stan))
	m.Set(messages.Terminal, "TERM0001")
	m.Set(messages.Currency, "840")
	return m
}

func inHall(t *testing.T, change func(*upstream.Config), test func(t *testing.T, h *hall)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		h := open(t, change)
		test(t, h)
		if err := h.close(); err != nil && !errors.Is(err, errJournal) {
			t.Error(err)
		}
	})
}

func TestAnswersGoBackInTheOrderInWhichTheyBecomeKnown(t *testing.T) {
	inHall(t, nil, func(t *testing.T, h *hall) {
		turn := map[string]chan struct{}{"000001": make(chan struct{}), "000002": make(chan struct{}), "000003": make(chan struct{})}
		h.desk.authorize = func(ctx context.Context, req acquirer.Request) (acquirer.Result, error) {
			<-turn[req.Message.Get(messages.STAN)]
			return approve(ctx, req)
		}
		c := h.connect()
		for stan := 1; stan <= 3; stan++ {
			c.send(request(stan))
		}
		for _, stan := range []string{"000002", "000003", "000001"} {
			close(turn[stan])
			if got := c.receive(); got.MTI != "0110" || got.Get(messages.STAN) != stan || got.Get(messages.ResponseCode) != "00" {
				t.Errorf("got %v, want the answer to %s", got, stan)
			}
		}
		_ = c.Close()
	})
}

func TestNetworkManagementIsAnsweredHere(t *testing.T) {
	inHall(t, nil, func(t *testing.T, h *hall) {
		c := h.connect()
		for code, want := range map[string]string{"001": "00", "002": "00", "301": "00", "999": "12"} {
			c.send(management(code, "1123120000", "000042"))
			got := c.receive()
			if got.MTI != "0810" || got.Get(messages.ResponseCode) != want || got.Get(messages.NetworkManagement) != code {
				t.Errorf("%s: got %v", code, got)
			}
		}
		_ = c.Close()
	})
}

func TestAFormatErrorNamesItsElement(t *testing.T) {
	inHall(t, nil, func(t *testing.T, h *hall) {
		c := h.connect()
		missing := request(1)
		missing.Delete(messages.Currency)
		c.send(missing)
		if got := c.receive(); got.Get(messages.ResponseCode) != "30" || got.Get(messages.AdditionalResponse) != "049" || got.Get(messages.STAN) != "000001" {
			t.Errorf("a missing element: got %v", got)
		}
		frame, err := h.codec.EncodeFrame(request(2))
		if err != nil {
			t.Fatal(err)
		}
		frame[len(frame)-1] = 0x01 // the last character of DE 49
		c.raw(frame)
		if got := c.receive(); got.Get(messages.ResponseCode) != "30" || got.Get(messages.AdditionalResponse) != "049" || got.Get(messages.STAN) != "000002" {
			t.Errorf("an element that cannot be read: got %v", got)
		}
		unsupported := request(3)
		unsupported.MTI = "0600"
		c.send(unsupported)
		if got := c.receive(); got.Get(messages.ResponseCode) != "12" || got.MTI != "0610" {
			t.Errorf("an unknown type: got %v", got)
		}
		unserved := management("999", "1123120000", "000004")
		unserved.MTI = "0820"
		c.send(unserved)
		if got := c.receive(); got.Get(messages.ResponseCode) != "12" {
			t.Errorf("a type that is not served: got %v", got)
		}
		c.send(messages.NewAnswer(request(5), "00")) // an answer to nothing gets none
		c.send(request(6))
		if got := c.receive(); got.Get(messages.STAN) != "000006" {
			t.Errorf("got %v", got)
		}
		if len(h.desk.keys) != 1 {
			t.Errorf("%d requests went to the switch", len(h.desk.keys))
		}
		_ = c.Close()
	})
}

func TestAConnectionThatCannotBeUnderstoodIsClosed(t *testing.T) {
	for name, sent := range map[string]string{
		"length 0": "\x00\x00", "length over the limit": "\xff\xff", "no MTI": "\x00\x02\xff\xff", "no STAN": "\x00\x0a\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00",
		"an answer that cannot be read": "\x00\x0b\x01\x10\x20\x00\x00\x00\x00\x00\x00\x00\xff",
	} {
		t.Run(name, func(t *testing.T) {
			inHall(t, nil, func(t *testing.T, h *hall) {
				c := h.connect()
				c.raw([]byte(sent))
				if !c.ended() {
					t.Error("the connection stays open")
				}
			})
		})
	}
}

func TestAQuietConnectionStaysAndASlowFrameDoesNot(t *testing.T) {
	inHall(t, nil, func(t *testing.T, h *hall) {
		c := h.connect()
		<-time.After(4 * time.Minute)
		c.send(request(1))
		c.receive()
		started := time.Now()
		c.raw([]byte{0x00})
		if !c.ended() || time.Since(started) > 6*time.Second {
			t.Errorf("cut after %v", time.Since(started))
		}
		idle := h.connect()
		started = time.Now()
		if !idle.ended() || time.Since(started) != 5*time.Minute {
			t.Errorf("an idle connection was closed after %v", time.Since(started))
		}
	})
}

func TestLimits(t *testing.T) {
	inHall(t, func(c *upstream.Config) { c.InFlight, c.Connections = 2, 2 }, func(t *testing.T, h *hall) {
		release := make(chan struct{})
		h.desk.authorize = func(ctx context.Context, req acquirer.Request) (acquirer.Result, error) {
			<-release
			return approve(ctx, req)
		}
		a, b := h.connect(), h.connect()
		a.send(request(1))
		b.send(request(2))
		synctest.Wait()
		a.send(request(3))
		if got := a.receive(); got.Get(messages.STAN) != "000003" || got.Get(messages.ResponseCode) != "96" {
			t.Errorf("over the limit: got %v", got)
		}
		if c := h.connect(); !c.ended() {
			t.Error("a third connection was taken")
		}
		close(release)
		a.receive()
		b.receive()
		synctest.Wait() // a place is free after the answer was read
		a.send(request(4))
		if got := a.receive(); got.Get(messages.ResponseCode) != "00" {
			t.Errorf("after the limit: got %v", got)
		}
		_ = a.Close()
		_ = b.Close()
	})
}

func TestAnAnswerThatCannotBeWrittenIsReported(t *testing.T) {
	inHall(t, nil, func(t *testing.T, h *hall) {
		release := make(chan struct{})
		h.desk.authorize = func(ctx context.Context, req acquirer.Request) (acquirer.Result, error) {
			<-release
			return approve(ctx, req)
		}
		gone := h.connect()
		gone.send(request(1))
		synctest.Wait()
		_ = gone.Close()
		stuck := h.connect() // it does not read
		stuck.send(request(2))
		synctest.Wait()
		close(release)
		<-time.After(time.Minute)
		synctest.Wait()
		if n := len(h.desk.undelivered); n != 2 {
			t.Errorf("%d undelivered, want 2", n)
		}
		_ = stuck.Close()
	})
}

func TestTheBudgetIsTheRequestsDeadline(t *testing.T) {
	inHall(t, nil, func(t *testing.T, h *hall) {
		var budget time.Duration
		h.desk.authorize = func(ctx context.Context, req acquirer.Request) (acquirer.Result, error) {
			deadline, _ := ctx.Deadline()
			budget = time.Until(deadline)
			return approve(ctx, req)
		}
		c := h.connect()
		c.send(request(1))
		c.receive()
		if budget != 30*time.Second {
			t.Errorf("got %v", budget)
		}
		_ = c.Close()
	})
}

func TestAStopLetsRequestsInFlightBeAnswered(t *testing.T) {
	inHall(t, nil, func(t *testing.T, h *hall) {
		release := make(chan struct{})
		h.desk.authorize = func(ctx context.Context, req acquirer.Request) (acquirer.Result, error) {
			<-release
			if ctx.Err() != nil {
				t.Errorf("the stop cancelled a transaction: %v", ctx.Err())
			}
			return approve(ctx, req)
		}
		c := h.connect()
		c.send(request(1))
		synctest.Wait()
		h.cancel()
		synctest.Wait()
		close(release)
		if got := c.receive(); got.Get(messages.ResponseCode) != "00" {
			t.Errorf("got %v", got)
		}
		if !c.ended() {
			t.Error("the connection stays open")
		}
	})
}

func TestAFatalErrorStopsTheDoorWithoutAnAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := open(t, nil)
		h.desk.authorize = func(context.Context, acquirer.Request) (acquirer.Result, error) { return acquirer.Result{}, errJournal }
		c := h.connect()
		c.send(request(1))
		if !c.ended() {
			t.Error("the upstream was answered")
		}
		if err := <-h.served; !errors.Is(err, errJournal) {
			t.Errorf("got %v", err)
		}
		h.cancel()
	})
}

func TestTheKeyTellsRequestsApartAndHoldsNoCard(t *testing.T) {
	inHall(t, nil, func(t *testing.T, h *hall) {
		c := h.connect()
		base, other, advice := request(1), request(1), request(1)
		other.Set(messages.Terminal, "TERM0002")
		advice.MTI = messages.FinancialRequest
		for _, m := range []*messages.Message{base, base, other, advice} {
			c.send(m)
			c.receive()
		}
		k := h.desk.keys
		if k[0] != k[1] || k[0] == k[2] || k[0] == k[3] || strings.Contains(strings.Join(k, ""), "4111111111111111") {
			t.Errorf("got %q", k)
		}
		_ = c.Close()
	})
}

func TestEachTypeHasItsDesk(t *testing.T) {
	inHall(t, nil, func(t *testing.T, h *hall) {
		c := h.connect()
		types := []messages.MTI{"0100", "0101", "0200", "0201", "0120", "0121", "0220", "0221", "0400", "0401", "0420", "0421"}
		for i, mti := range types {
			m := request(i)
			m.MTI = mti
			if mti.Class() == messages.Reversal {
				m.Set(messages.OriginalData, "010000000111231200000000000000000000000000")
			}
			c.send(m)
			if got := c.receive(); got.MTI != mti.Answer() || got.Get(messages.ResponseCode) != "00" {
				t.Errorf("%s: got %v", mti, got)
			}
		}
		_ = c.Close()
		synctest.Wait() // an answer is read before its delivery is told
		h.desk.mu.Lock()
		defer h.desk.mu.Unlock()
		for i, key := range h.desk.keys {
			want := map[byte]string{'2': "advise 0", '0': "0"}[types[i][2]]
			if types[i].Class() == messages.Reversal {
				want = "reverse " // its original identifies it
			}
			if !strings.HasPrefix(key, want) || types[i].Class() == messages.Reversal && key != want {
				t.Errorf("%s went to %q", types[i], key)
			}
		}
		if len(h.desk.keys) != len(types) || h.desk.delivered != len(types) {
			t.Errorf("%d went to the switch, %d were delivered", len(h.desk.keys), h.desk.delivered)
		}
	})
}

// Over the limit, what repeats a request that may have been approved is not refused: it would be believed.
func TestOverTheLimitAKnownRequestIsNotRefused(t *testing.T) {
	inHall(t, func(cfg *upstream.Config) { cfg.InFlight = 1 }, func(t *testing.T, h *hall) {
		release := make(chan struct{})
		h.desk.authorize = func(ctx context.Context, req acquirer.Request) (acquirer.Result, error) {
			<-release
			return approve(ctx, req)
		}
		h.desk.known = h.codec.Identity(request(7))
		c := h.connect()
		c.send(request(1))
		synctest.Wait()
		c.send(request(7)) // no answer
		c.send(request(8))
		if got := c.receive(); got.Get(messages.STAN) != request(8).Get(messages.STAN) || got.Get(messages.ResponseCode) != "96" {
			t.Errorf("got %v", got)
		}
		close(release)
		if got := c.receive(); got.Get(messages.STAN) != request(1).Get(messages.STAN) || got.Get(messages.ResponseCode) != "00" {
			t.Errorf("got %v", got)
		}
		_ = c.Close()
	})
}

// management is a request of the link dialogue of ISO 8583:1987, with its code in DE 70.
func management(code, transmissionTime, stan string) *messages.Message {
	m := messages.New(messages.NetworkManagementRequest)
	m.Set(messages.TransmissionTime, transmissionTime)
	m.Set(messages.STAN, stan)
	m.Set(messages.NetworkManagement, code)
	return m
}
