package conn

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"acquirerd/messages"
)

// A troublemaker is a processor with every fault there is, by a seed.
type troublemaker struct {
	h      *host
	mu     sync.Mutex
	random *rand.Rand
	unit   time.Duration // a reply timeout is 10 units
}

func (tm *troublemaker) roll(n int) int {
	tm.mu.Lock()
	defer tm.mu.Unlock()
	return tm.random.IntN(n)
}

func (tm *troublemaker) handle(l *hostLink, m *messages.Message) {
	answer := messages.NewAnswer(m, "00")
	switch tm.roll(16) {
	case 0: // never
	case 1: // after reading
		_ = l.Close()
	case 2:
		l.send(answer)
		_ = l.Close()
	case 3:
		l.send(answer)
		l.send(answer)
	case 4: // about when the wait ends
		time.AfterFunc(10*tm.unit, func() { l.send(answer) })
	case 5: // about when the wait ends
		time.AfterFunc(10*tm.unit, func() { _ = l.Close() })
	case 6: // on whichever link
		links := tm.h.open()
		other := links[tm.roll(len(links))]
		time.AfterFunc(tm.unit, func() { other.send(answer) })
	case 7:
		answer.Set(messages.Amount, "000000000001")
		l.send(answer)
	case 8:
		answer.Delete(messages.ResponseCode)
		l.send(answer)
	case 9:
		answer.Delete(messages.STAN)
		l.send(answer)
	case 10: // half an answer
		frame, err := tm.h.codec.EncodeFrame(answer)
		if err != nil {
			tm.h.t.Error(err)
			return
		}
		l.write(frame[:tm.roll(len(frame))])
		_ = l.Close()
	case 11: // not reading for a while
		<-time.After(3 * tm.unit)
		l.send(answer)
	case 12: // another class
		answer.MTI = "0410"
		l.send(answer)
		time.AfterFunc(time.Duration(tm.roll(9))*tm.unit, func() { answer.MTI = "0110"; l.send(answer) })
	default:
		time.AfterFunc(time.Duration(tm.roll(9))*tm.unit, func() { l.send(answer) })
	}
}

// storm has callers send under faults, and checks that each exchange ends once, as its own answer or an error, and that what is
// said to be not sent was not received.
func storm(t *testing.T, r *rig, h *host, callers, each int, pause time.Duration) {
	var mu sync.Mutex
	unsent := map[string]bool{}
	var counts [3]int
	var calling sync.WaitGroup
	for caller := range callers {
		calling.Go(func() {
			for i := range each {
				m := request(caller*each + i)
				stan := m.Get(messages.STAN)
				answer, err := r.Exchange(context.Background(), m)
				m.Clear() // it is ours again: the race detector watches
				mu.Lock()
				switch {
				case errors.Is(err, ErrNotSent):
					unsent[stan] = true
					counts[0]++
				case errors.Is(err, ErrTimeout), errors.Is(err, ErrWrite), errors.Is(err, ErrMismatch), errors.Is(err, ErrUndecodable):
					counts[1]++
				case err != nil || answer == nil:
					t.Errorf("exchange of %s: %v, %v", stan, answer, err)
				default:
					counts[2]++
					if answer.Get(messages.STAN) != stan || answer.Get(messages.Amount) != m.Get(messages.Amount) || answer.MTI != "0110" {
						t.Errorf("exchange of %s got %v", stan, answer)
					}
				}
				mu.Unlock()
				if errors.Is(err, ErrNotSent) { // as whoever tries again does
					for range 200 {
						if <-time.After(pause); r.InService() {
							break
						}
					}
				}
			}
		})
	}
	calling.Wait()
	received := h.requests()
	for stan, n := range received {
		if unsent[stan] || n > 1 {
			t.Errorf("%s was received %d times; said to be not sent: %v", stan, n, unsent[stan])
		}
	}
	t.Logf("%d not sent, %d unknown, %d answered, %d received, %d connections", counts[0], counts[1], counts[2], len(received), len(h.open()))
	if counts[2] == 0 || counts[1] == 0 {
		t.Error("the storm tested nothing")
	}
}

func TestUnderEveryFaultEachExchangeEndsOnceAsItsOwn(t *testing.T) {
	for seed := range uint64(4) {
		t.Run(fmt.Sprintf("seed %d", seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h := newHost(t, []string{"iso87-ascii", "iso87-binary"}[seed%2])
				tm := &troublemaker{h: h, random: rand.New(rand.NewPCG(seed, 1)), unit: time.Second}
				h.handle = tm.handle
				cfg := config(h)
				cfg.Links = Dialled("one", "two", "three")
				cfg.BackoffMin, cfg.BackoffMax, cfg.InFlight, cfg.LinkInFlight = 100*time.Millisecond, time.Second, 150, 60
				r := start(t, cfg, h)
				synctest.Wait()
				storm(t, r, h, 200, 10, tm.unit)
				pass(11 * cfg.ReplyTimeout)
				r.Endpoint.mu.Lock()
				r.pending.forget(time.Now())
				for key, x := range r.pending.exchanges {
					if !x.management {
						t.Errorf("%s is remembered for ever in state %d", key, x.state)
					}
				}
				if n := r.pending.abandoned; n != 0 {
					t.Errorf("%d abandoned", n)
				}
				r.Endpoint.mu.Unlock()
				r.end()
			})
		})
	}
}

func TestUnderEveryFaultOverTCP(t *testing.T) {
	h := newHost(t, "iso87-ascii")
	tm := &troublemaker{h: h, random: rand.New(rand.NewPCG(5, 1)), unit: 10 * time.Millisecond}
	h.handle = tm.handle
	r := start(t, tcpConfig(h, h.listen(), h.listen()), h)
	untilInService(t, r)
	storm(t, r, h, 200, 5, tm.unit)
	r.end()
}

func tcpConfig(h *host, links ...string) Config {
	cfg := config(h)
	cfg.Links, cfg.Dial = Dialled(links...), nil
	cfg.ReplyTimeout, cfg.WriteTimeout, cfg.SignOnTimeout = 100*time.Millisecond, 50*time.Millisecond, time.Second
	cfg.BackoffMin, cfg.BackoffMax, cfg.InFlight = 10*time.Millisecond, 20*time.Millisecond, 400
	cfg.Abandoned = 100000
	return cfg
}

// untilInService asks as an operator would, for at most ten seconds.
func untilInService(t testing.TB, r *rig) {
	t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(10 * time.Second); !r.InService(); <-tick.C {
		if time.Now().After(deadline) {
			t.Fatalf("not in service: %+v", r.Status())
		}
	}
}

func TestAPeerThatDropsAtTheTimeoutOverTCPHangsNobody(t *testing.T) {
	h := newHost(t, "iso87-ascii")
	h.handle = func(l *hostLink, m *messages.Message) {
		time.AfterFunc(20*time.Millisecond, func() { _ = l.Close() })
	}
	cfg := tcpConfig(h, h.listen(), h.listen())
	cfg.ReplyTimeout, cfg.WriteTimeout = 20*time.Millisecond, 10*time.Millisecond
	r := start(t, cfg, h)
	for round := range 100 {
		untilInService(t, r)
		var attempts []*attempt
		for i := range 8 {
			attempts = append(attempts, r.exchange(request(10*round+i)))
		}
		for _, a := range attempts {
			if <-a.done; a.err == nil {
				t.Error("an answer out of nothing")
			}
		}
	}
	r.end()
}

func TestANearlyClosedConnectionOverTCPIsStillNotSentOrUnknown(t *testing.T) {
	h := newHost(t, "iso87-ascii")
	h.handle = func(l *hostLink, m *messages.Message) { l.answer(m, "00"); _ = l.Close() }
	r := start(t, tcpConfig(h, h.listen()), h)
	untilInService(t, r)
	storm(t, r, h, 20, 20, time.Millisecond)
	r.end()
}

func TestStartingAndStoppingUnderLoad(t *testing.T) {
	h := newHost(t, "iso87-ascii")
	address := []string{h.listen(), h.listen()}
	cfg := tcpConfig(h, address...)
	// The machine may be slow. A pause of its own that is longer than the write or frame timeout closes a link, and rightly so.
	cfg.ReplyTimeout, cfg.WriteTimeout, cfg.SignOnTimeout = time.Minute, 30*time.Second, time.Minute
	for range 50 {
		e, err := New(cfg, slog.New(slog.DiscardHandler), prometheus.NewRegistry())
		if err != nil {
			t.Fatal(err)
		}
		ctx, stop := context.WithCancel(context.Background())
		var running sync.WaitGroup
		running.Go(func() {
			if err := e.Run(ctx, func(context.Context, Unasked) {}); err != nil {
				t.Error(err)
			}
		})
		untilInService(t, &rig{Endpoint: e})
		answered := make(chan struct{}, 1)
		for caller := range 8 {
			running.Go(func() {
				for i := 0; ; i++ {
					answer, err := e.Exchange(context.Background(), request(1000*caller+i%1000))
					switch {
					case err == nil && answer.Get(messages.STAN) != fmt.Sprintf("%06d", 1000*caller+i%1000):
						t.Error("another's answer")
					case err == nil:
						select {
						case answered <- struct{}{}:
						default:
						}
					case !errors.Is(err, ErrNotSent):
						t.Error(err)
					case ctx.Err() != nil:
						return
					}
				}
			})
		}
		<-answered
		stop()
		running.Wait()
	}
	h.stop()
}

func TestAConnectionThatIsRefusedOverTCP(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	h := newHost(t, "iso87-ascii")
	cfg := tcpConfig(h, listener.Addr().String())
	_ = listener.Close()
	r := start(t, cfg, h)
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for r.Status()[0].LastError == "" {
		<-tick.C
	}
	if got := r.Status()[0].LastError; got != string(causeDial) {
		t.Errorf("last error %q", got)
	}
	r.exchange(request(1)).want(t, ErrNotSent)
	r.end()
}

func TestAProcessorDialsOverTCP(t *testing.T) {
	h := newHost(t, "iso87-ascii")
	cfg := tcpConfig(h)
	listening := Link{Listen: "127.0.0.1:0", Allow: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}}
	cfg.Links = []Link{listening, listening}
	// The machine may be slow, and no deadline is what is tested here.
	cfg.ReplyTimeout, cfg.WriteTimeout, cfg.SignOnTimeout = time.Minute, 30*time.Second, time.Minute
	r := start(t, cfg, h)
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for r.Status()[0].Address == "127.0.0.1:0" {
		<-tick.C
	}
	for range 2 {
		c, err := net.Dial("tcp", r.Status()[0].Address)
		if err != nil {
			t.Fatal(err)
		}
		h.serve(c, "here")
	}
	for s := r.Status(); s[0].State != InService || s[1].State != InService; s = r.Status() {
		<-tick.C
	}
	for stan := range 20 {
		r.exchange(request(stan)).want(t, nil)
	}
	address := r.Status()[0].Address
	r.end()
	if c, err := net.Dial("tcp", address); err == nil {
		_ = c.Close()
		t.Error("it listens after the end")
	}
}
