package conn

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"

	"acquirerd/messages"
	"acquirerd/specs"
)

// dialects are loaded once: they do not change.
var dialects = map[string]*specs.Dialect{}

func TestMain(m *testing.M) {
	for _, name := range []string{"iso87-ascii", "iso87-binary", "visa-like"} {
		d, err := specs.Load(name)
		if err != nil {
			panic(err)
		}
		dialects[name] = d
	}
	goleak.VerifyTestMain(m)
}

// A host is a scripted processor. Its connections come from dial (pipes) or from a listener.
type host struct {
	t     testing.TB
	codec *messages.Codec
	key   messages.MACKey // nil: what it sends has no MAC

	mu      sync.Mutex
	links   []*hostLink                              // every connection there ever was
	refuse  func(n int) error                        // fails the nth dial, from 0
	manage  func(l *hostLink, m *messages.Message)   // nil: accepts
	handle  func(l *hostLink, m *messages.Message)   // nil: approves
	deaf    func(l *hostLink) (stop int, block bool) // nil: reads all; else reads stop bytes and then blocks
	slow    func(l *hostLink)                        // before each read
	dials   int
	dropped int // connections that were closed with what stood in their buffers
	dialled []time.Time
	running sync.WaitGroup
	stopped chan struct{}
}

// A hostLink is the host's side of one connection.
type hostLink struct {
	host    *host
	address string
	net.Conn

	writing  sync.Mutex
	mu       sync.Mutex
	raw      bytes.Buffer        // every byte that was received
	received []*messages.Message // in order
	after    func()              // of a test's own
	over     bool                // the other side has closed it
}

func newHost(t testing.TB, dialect string) *host {
	t.Helper()
	d, found := dialects[dialect]
	if !found {
		t.Fatalf("no dialect %s", dialect)
	}
	own := *d // a test may change it
	return &host{t: t, codec: messages.NewCodec(&own), stopped: make(chan struct{})}
}

func (h *host) dial(_ context.Context, address string) (net.Conn, error) {
	h.mu.Lock()
	n := h.dials
	h.dials++
	h.dialled = append(h.dialled, time.Now())
	refuse := h.refuse
	h.mu.Unlock()
	if refuse != nil {
		if err := refuse(n); err != nil {
			return nil, err
		}
	}
	ours, theirs := net.Pipe()
	h.serve(ours, address)
	return newLingering(theirs, h), nil
}

// A lingering pipe counts how often a connection was closed so that what stands in its buffers is dropped.
type lingering struct {
	net.Conn
	host  *host
	drops *bool // at a close; guarded by host.mu
}

func newLingering(c net.Conn, h *host) lingering { return lingering{c, h, new(bool)} }

func (c lingering) SetLinger(seconds int) error {
	c.host.mu.Lock()
	defer c.host.mu.Unlock()
	*c.drops = seconds == 0
	return nil
}

func (c lingering) Close() error {
	c.host.mu.Lock()
	if *c.drops {
		c.host.dropped++
	}
	*c.drops = false // it is closed once
	c.host.mu.Unlock()
	return c.Conn.Close()
}

// listen serves real connections on a free port and returns its address.
func (h *host) listen() string {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		h.t.Fatal(err)
	}
	h.running.Go(func() {
		for {
			c, err := listener.Accept()
			if err != nil {
				return
			}
			h.serve(c, listener.Addr().String())
		}
	})
	h.running.Go(func() {
		<-h.stopped
		_ = listener.Close()
	})
	return listener.Addr().String()
}

func (h *host) serve(c net.Conn, address string) *hostLink {
	l := &hostLink{host: h, address: address, Conn: c}
	h.mu.Lock()
	h.links = append(h.links, l)
	h.mu.Unlock()
	h.running.Go(l.run)
	return l
}

// stop closes everything and waits.
func (h *host) stop() {
	close(h.stopped)
	h.mu.Lock()
	for _, l := range h.links {
		_ = l.Close()
	}
	h.mu.Unlock()
	h.running.Wait()
}

// script changes what the host does.
func (h *host) script(change func(h *host)) {
	h.mu.Lock()
	defer h.mu.Unlock()
	change(h)
}

func (h *host) open() []*hostLink {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Clone(h.links)
}

// Read records what arrives, before anything is made of it.
func (l *hostLink) Read(p []byte) (int, error) {
	l.host.mu.Lock()
	deaf, slow := l.host.deaf, l.host.slow
	l.host.mu.Unlock()
	if slow != nil {
		slow(l)
	}
	if deaf != nil {
		if most, block := deaf(l); block {
			l.mu.Lock()
			most -= l.raw.Len()
			l.mu.Unlock()
			if most <= 0 {
				<-l.host.stopped
				return 0, io.EOF
			}
			p = p[:min(len(p), most)]
		}
	}
	n, err := l.Conn.Read(p)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.raw.Write(p[:n])
	l.over = l.over || err != nil
	return n, err
}

func (l *hostLink) run() {
	defer l.Close()
	for {
		body, err := l.host.codec.ReadFrame(l)
		if err != nil {
			return
		}
		m, err := l.host.codec.Decode(body)
		if err != nil {
			l.host.t.Errorf("host received what it cannot decode: %v", err)
			return
		}
		l.mu.Lock()
		l.received = append(l.received, m)
		l.mu.Unlock()
		l.host.mu.Lock()
		manage, handle := l.host.manage, l.host.handle
		l.host.mu.Unlock()
		switch {
		case m.MTI.IsAnswer():
		case m.MTI.Class() == messages.Network && manage != nil:
			manage(l, m)
		case m.MTI.Class() != messages.Network && handle != nil:
			handle(l, m)
		default:
			l.answer(m, "00")
		}
	}
}

func (l *hostLink) answer(m *messages.Message, code string) { l.send(messages.NewAnswer(m, code)) }

func (l *hostLink) send(m *messages.Message) {
	frame, err := l.host.codec.EncodeFrameWithMAC(context.Background(), l.host.key, m)
	if err != nil {
		l.host.t.Errorf("host: %v", err)
		return
	}
	l.write(frame)
}

// write sends bytes as they are. The other side may be gone.
func (l *hostLink) write(b []byte) {
	l.writing.Lock()
	defer l.writing.Unlock()
	_, _ = l.Write(b)
}

func (l *hostLink) bytes() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.raw.Len()
}

// seen lists what was received: "0800/001", "0100/000007" …
func (l *hostLink) seen() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	var list []string
	for _, m := range l.received {
		part := m.Get(messages.NetworkManagement)
		if part == "" {
			part = m.Get(messages.STAN)
		}
		list = append(list, string(m.MTI)+"/"+part)
	}
	return list
}

// requests are the transactions that the host received whole, on all links, by STAN.
func (h *host) requests() map[string]int {
	count := map[string]int{}
	for _, l := range h.open() {
		l.mu.Lock()
		for _, m := range l.received {
			if m.MTI.Class() != messages.Network {
				count[m.Get(messages.STAN)]++
			}
		}
		l.mu.Unlock()
	}
	return count
}

// traffic is how many bytes the host received on all links.
func (h *host) traffic() int {
	n := 0
	for _, l := range h.open() {
		n += l.bytes()
	}
	return n
}

// A rig is an endpoint that runs against a host.
type rig struct {
	*Endpoint
	t        testing.TB
	host     *host
	registry *prometheus.Registry
	stop     context.CancelFunc
	ended    chan error

	mu    sync.Mutex
	inbox []Unasked
	hang  chan struct{} // the callback waits for it
}

func config(h *host) Config {
	return Config{
		Name: "processor-a", Codec: h.codec, Links: Dialled("one", "two"), Dial: h.dial,
		ReplyTimeout: 10 * time.Second, WriteTimeout: 2 * time.Second, DialTimeout: 3 * time.Second, SignOnTimeout: 4 * time.Second,
		EchoInterval: 60 * time.Second, EchoTimeout: 5 * time.Second, EchoMisses: 3,
		BackoffMin: time.Second, BackoffMax: 30 * time.Second, InFlight: 64,
	}
}

func start(t testing.TB, cfg Config, h *host) *rig {
	t.Helper()
	return startWith(t, cfg, h, slog.DiscardHandler)
}

func startWith(t testing.TB, cfg Config, h *host, log slog.Handler) *rig {
	t.Helper()
	registry := prometheus.NewRegistry()
	e, err := New(cfg, slog.New(log), registry)
	if err != nil {
		t.Fatal(err)
	}
	r := &rig{Endpoint: e, t: t, host: h, registry: registry, ended: make(chan error, 1)}
	r.run()
	return r
}

func (r *rig) run() {
	ctx, stop := context.WithCancel(context.Background())
	r.stop = stop
	go func() {
		r.ended <- r.Run(ctx, func(_ context.Context, m Unasked) {
			r.mu.Lock()
			hang := r.hang
			r.inbox = append(r.inbox, m)
			r.mu.Unlock()
			if hang != nil {
				<-hang
			}
		})
	}()
}

// end stops the endpoint, and then the host, and fails if anything went wrong with it.
func (r *rig) end() {
	r.t.Helper()
	r.stop()
	if err := <-r.ended; err != nil {
		r.t.Errorf("Run: %v", err)
	}
	r.Endpoint.mu.Lock()
	if n := r.pending.inFlight; n != 0 {
		r.t.Errorf("%d exchanges in flight after Run", n)
	}
	r.Endpoint.mu.Unlock()
	r.host.stop()
}

func (r *rig) unaskedMTIs() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	var list []string
	for _, m := range r.inbox {
		list = append(list, string(m.MTI)+"/"+m.Get(messages.STAN))
	}
	return list
}

// arrivals are those of what was handed over, sorted: several goroutines do it.
func (r *rig) arrivals() []Arrival {
	r.mu.Lock()
	defer r.mu.Unlock()
	var list []Arrival
	for _, m := range r.inbox {
		list = append(list, m.Arrival)
	}
	slices.Sort(list)
	return list
}

// metric reads one value of the registry; labels are values in any order. For a histogram it is the count.
func (r *rig) metric(name string, labels ...string) float64 {
	families, err := r.registry.Gather()
	if err != nil {
		r.t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() != name {
			continue
		}
	next:
		for _, m := range f.GetMetric() {
			for _, want := range labels {
				found := false
				for _, l := range m.GetLabel() {
					found = found || l.GetValue() == want
				}
				if !found {
					continue next
				}
			}
			return m.GetGauge().GetValue() + m.GetCounter().GetValue() + float64(m.GetHistogram().GetSampleCount())
		}
	}
	r.t.Errorf("no metric %s %v", name, labels)
	return 0
}

func (r *rig) wantAnswers(k kind, want float64) {
	r.t.Helper()
	synctest.Wait() // an answer is delivered, and then counted
	if got := r.metric("acquirerd_answers_total", string(k)); got != want {
		r.t.Errorf("answers %s: got %v, want %v", k, got, want)
	}
}

func (r *rig) states() []State {
	var list []State
	for _, s := range r.Status() {
		list = append(list, s.State)
	}
	return list
}

func (r *rig) wantStates(want ...State) {
	r.t.Helper()
	if got := r.states(); !slices.Equal(got, want) {
		r.t.Errorf("links: got %v, want %v", got, want)
	}
}

// An attempt is an Exchange on its way.
type attempt struct {
	request *messages.Message
	answer  *messages.Message
	err     error
	trace   Trace
	took    time.Duration
	done    chan struct{}
}

func (r *rig) exchange(request *messages.Message) *attempt {
	a := &attempt{request: request, done: make(chan struct{})}
	go func() {
		defer close(a.done)
		began := time.Now()
		a.answer, a.err = r.Exchange(WithTrace(context.Background(), &a.trace), request)
		a.took = time.Since(began)
	}()
	return a
}

// want waits for the end and checks it: the answer to this request, or an error of this kind.
func (a *attempt) want(t testing.TB, kind error) {
	t.Helper()
	<-a.done
	if !errors.Is(a.err, kind) || (kind == nil && a.err != nil) {
		t.Errorf("exchange of %s: got error %v, want %v", a.request.Get(messages.STAN), a.err, kind)
	}
	if (a.err == nil) != (a.answer != nil) {
		t.Errorf("exchange of %s: got answer %v with error %v", a.request.Get(messages.STAN), a.answer, a.err)
	}
	if a.answer != nil && (a.answer.Get(messages.STAN) != a.request.Get(messages.STAN) || a.answer.Get(messages.Amount) != a.request.Get(messages.Amount) ||
		a.answer.MTI != a.request.MTI.Answer()) {
		t.Errorf("exchange of %v got the answer of another: %v", a.request, a.answer)
	}
}

func (a *attempt) running() bool {
	select {
	case <-a.done:
		return false
	default:
		return true
	}
}

func request(stan int) *messages.Message { return requestOf(messages.AuthorizationRequest, stan) }

func requestOf(mti messages.MTI, stan int) *messages.Message {
	m := messages.New(mti)
	m.SetSensitive(messages.PAN, "4111111111111111")
	m.Set(messages.ProcessingCode, "000000")
	m.Set(messages.Amount, fmt.Sprintf("%012d", stan+100))
	m.Set(messages.TransmissionTime, "0102030405")
	m.Set(messages.STAN, fmt.Sprintf("%06d", stan))
	m.Set(messages.Terminal, "TERM0001")
	m.Set(messages.Currency, "978")
	return m
}

// inBubble runs a test on fake time with an endpoint of two links that are signed on.
func inBubble(t *testing.T, change func(*Config), test func(r *rig, h *host)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t, "iso87-ascii")
		cfg := config(h)
		if change != nil {
			change(&cfg)
		}
		r := start(t, cfg, h)
		defer r.end()
		synctest.Wait()
		if !r.InService() {
			t.Errorf("not in service: %+v", r.Status())
		}
		test(r, h)
	})
}

// pass lets time pass on the fake clock. In a bubble this waits for nothing real.
func pass(d time.Duration) {
	<-time.After(d)
	synctest.Wait()
}

// management is a request of the link dialogue of ISO 8583:1987, with its code in DE 70.
func management(code, transmissionTime, stan string) *messages.Message {
	m := messages.New(messages.NetworkManagementRequest)
	m.Set(messages.TransmissionTime, transmissionTime)
	m.Set(messages.STAN, stan)
	m.Set(messages.NetworkManagement, code)
	return m
}
