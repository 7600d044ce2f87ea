package conn

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"acquirerd/messages"
)

func TestNoTrafficBeforeTheSignOnIsAccepted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t, "iso87-ascii")
		var mu sync.Mutex
		var asked []func()
		h.manage = func(l *hostLink, m *messages.Message) {
			mu.Lock()
			defer mu.Unlock()
			asked = append(asked, func() { l.answer(m, "00") })
		}
		r := start(t, config(h), h)
		defer r.end()
		synctest.Wait()
		r.wantStates(Connected, Connected)
		r.exchange(request(1)).want(t, ErrNotSent)
		asked[0]()
		synctest.Wait()
		if got := r.states(); !slices.Contains(got, InService) || !slices.Contains(got, Connected) {
			t.Errorf("links: %v", got)
		}
		r.exchange(request(2)).want(t, nil)
		asked[1]()
		synctest.Wait()
		r.wantStates(InService, InService)
		for _, l := range h.open() {
			if l.seen()[0] != "0800/001" {
				t.Errorf("the first message was %s", l.seen()[0])
			}
		}
		h.script(func(h *host) { h.manage = nil })
	})
}

func TestASignOnThatIsNotAcceptedIsTriedAgain(t *testing.T) {
	for name, c := range map[string]struct {
		want   cause
		manage func(l *hostLink, m *messages.Message)
	}{
		"refused":                {causeSignOnRefused, func(l *hostLink, m *messages.Message) { l.answer(m, "05") }},
		"not answered":           {causeSignOnTimeout, func(*hostLink, *messages.Message) {}},
		"without response code":  {causeSignOnUnusable, func(l *hostLink, m *messages.Message) { l.answer(m, "") }},
		"closed":                 {causeClosed, func(l *hostLink, _ *messages.Message) { _ = l.Close() }},
		"closed inside a frame":  {causeFrameShort, func(l *hostLink, _ *messages.Message) { l.write([]byte("0055")); _ = l.Close() }},
		"answered by a bad size": {causeFrameHeader, func(l *hostLink, _ *messages.Message) { l.write([]byte("GET / HTTP")) }},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h := newHost(t, "iso87-ascii")
				h.manage = c.manage
				cfg := config(h)
				cfg.Links = cfg.Links[:1]
				r := start(t, cfg, h)
				defer r.end()
				pass(4500 * time.Millisecond)
				if got := r.Status()[0]; got.LastError != string(c.want) || r.InService() {
					t.Errorf("got %+v, want %s", got, c.want)
				}
				h.script(func(h *host) { h.manage = nil })
				pass(30 * time.Second)
				r.wantStates(InService)
				r.exchange(request(1)).want(t, nil)
			})
		})
	}
}

func TestReconnectingBacksOffWithACap(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t, "iso87-ascii")
		h.refuse = func(n int) error {
			if n < 12 {
				return errors.New("refused")
			}
			return nil
		}
		cfg := config(h)
		cfg.Links = cfg.Links[:1]
		r := start(t, cfg, h)
		defer r.end()
		pass(10 * time.Minute)
		r.wantStates(InService)
		h.mu.Lock()
		defer h.mu.Unlock()
		if len(h.dialled) != 13 {
			t.Fatalf("%d dials", len(h.dialled))
		}
		longest := time.Second
		for i := range 12 {
			pause := h.dialled[i+1].Sub(h.dialled[i])
			if pause < longest/2 || pause > longest {
				t.Errorf("pause %d is %v, want half to whole of %v", i, pause, longest)
			}
			longest = min(2*longest, 30*time.Second)
		}
	})
}

func TestALinkThatServesOnlyBrieflyGoesOnBackingOff(t *testing.T) {
	inBubble(t, func(c *Config) { c.Links = c.Links[:1] }, func(r *rig, h *host) {
		// drop closes the connection and returns how long the next one took.
		drop := func() time.Duration {
			links := h.open()
			began := time.Now()
			_ = links[len(links)-1].Close()
			for len(h.open()) == len(links) {
				pass(10 * time.Millisecond)
			}
			return time.Since(began)
		}
		longest := time.Second
		for i := range 8 { // accepted, and dropped at once
			if took := drop(); took < longest/2 {
				t.Errorf("pause %d is %v, want at least half of %v", i, took, longest)
			}
			longest = min(2*longest, 30*time.Second)
		}
		pass(time.Minute) // in service for longer than BackoffMax
		if took := drop(); took > 1100*time.Millisecond {
			t.Errorf("it does not begin at the shortest pause again: %v", took)
		}
	})
}

func TestBackoffIsWithinItsBounds(t *testing.T) {
	for failures := range 100 {
		for _, jitter := range []float64{0, .5, 1} {
			got := backoff(failures, time.Second, 30*time.Second, jitter)
			if got < 500*time.Millisecond || got > 30*time.Second {
				t.Errorf("after %d failures: %v", failures, got)
			}
		}
	}
}

func TestSilenceIsEchoed(t *testing.T) {
	inBubble(t, func(c *Config) { c.Links = c.Links[:1] }, func(r *rig, h *host) {
		pass(59 * time.Second)
		if got := h.open()[0].seen(); len(got) != 1 {
			t.Errorf("got %v", got)
		}
		r.exchange(request(1)).want(t, nil)
		pass(59 * time.Second)
		if got := h.open()[0].seen(); len(got) != 2 {
			t.Errorf("got %v: traffic is not silence", got)
		}
		pass(2 * time.Second)
		pass(60 * time.Second)
		if got := h.open()[0].seen(); !slices.Equal(got, []string{"0800/001", "0100/000001", "0800/301", "0800/301"}) {
			t.Errorf("got %v", got)
		}
		r.wantStates(InService)
	})
}

func TestMissedEchoesCloseTheLink(t *testing.T) {
	inBubble(t, func(c *Config) { c.Links = c.Links[:1] }, func(r *rig, h *host) {
		h.script(func(h *host) { h.manage = func(*hostLink, *messages.Message) {} })
		pass(60*time.Second + 14*time.Second)
		r.wantStates(InService) // two missed, the third is out
		pass(1100 * time.Millisecond)
		if got := r.Status()[0]; got.LastError != string(causeEchoMissed) {
			t.Errorf("got %+v", got)
		}
		if got := h.open()[0].seen(); !slices.Equal(got, []string{"0800/001", "0800/301", "0800/301", "0800/301"}) {
			t.Errorf("got %v", got)
		}
		h.script(func(h *host) { h.manage = nil })
		pass(30 * time.Second)
		r.wantStates(InService)
	})
}

func TestAnyFrameForgivesAMissedEcho(t *testing.T) {
	inBubble(t, func(c *Config) { c.Links = c.Links[:1] }, func(r *rig, h *host) {
		h.script(func(h *host) { h.manage = func(*hostLink, *messages.Message) {} })
		for range 20 {
			pass(60*time.Second + 12*time.Second) // two missed
			h.open()[0].send(management("301", "0102030405", "000009"))
			synctest.Wait()
		}
		r.wantStates(InService)
		if n := len(h.open()); n != 1 {
			t.Errorf("%d connections", n)
		}
		h.script(func(h *host) { h.manage = nil })
	})
}

func TestARefusedEchoMeansSigningOnAgain(t *testing.T) {
	inBubble(t, func(c *Config) { c.Links = c.Links[:1] }, func(r *rig, h *host) {
		h.script(func(h *host) {
			h.manage = func(l *hostLink, m *messages.Message) {
				code := "00"
				if m.Get(messages.NetworkManagement) == "301" {
					code = "91"
				}
				l.answer(m, code)
			}
		})
		pass(62 * time.Second)
		if got := r.Status()[0]; got.LastError != string(causeEchoRefused) || got.State != InService || len(h.open()) != 2 {
			t.Errorf("got %+v, %d connections", got, len(h.open()))
		}
	})
}

func TestTheProcessorsOwnRequestsAreAnswered(t *testing.T) {
	inBubble(t, func(c *Config) { c.Links = c.Links[:1] }, func(r *rig, h *host) {
		l := h.open()[0]
		for _, code := range []string{"301", "001"} {
			l.send(management(code, "0102030405", "000777"))
			synctest.Wait()
			l.mu.Lock()
			answer := l.received[len(l.received)-1]
			l.mu.Unlock()
			if answer.MTI != "0810" || answer.Get(messages.ResponseCode) != "00" || answer.Get(messages.STAN) != "000777" || answer.Get(messages.NetworkManagement) != code {
				t.Errorf("got %v", answer)
			}
		}
		// Others are the callback's: a key change, a reversal of the processor's …
		l.send(management("161", "0102030405", "000778"))
		l.send(requestOf("0420", 779))
		l.send(messages.New("0600"))
		synctest.Wait()
		got := r.unaskedMTIs()
		slices.Sort(got) // several goroutines hand them over
		if !slices.Equal(got, []string{"0420/000779", "0600/", "0800/000778"}) {
			t.Errorf("inbound got %v", got)
		}
		// The 0420 has no DE 90, so it does not keep the format: it is told of with its fault.
		r.mu.Lock()
		for _, m := range r.inbox {
			if faulty := m.MTI == "0420"; (m.Fault != nil) != faulty || m.Arrival != Demanding {
				t.Errorf("%s: fault %v, %s", m.MTI, m.Fault, m.Arrival)
			}
		}
		r.mu.Unlock()
		r.wantAnswers(kindUndecodable, 1)
	})
}

// What stood before the fault is handed over with it: by that the processor recognises the refusal.
func TestADemandThatCannotBeReadWholeIsHandedOver(t *testing.T) {
	inBubble(t, func(c *Config) { c.Links = c.Links[:1] }, func(r *rig, h *host) {
		body, err := h.codec.Encode(requestOf("0200", 7))
		if err != nil {
			t.Fatal(err)
		}
		body = body[:len(body)-1]
		l := h.open()[0]
		framing := &h.codec.Dialect().Framing
		l.write(framing.Append(nil, body))
		l.write(framing.Append(nil, []byte("02"))) // not even a type
		synctest.Wait()
		r.mu.Lock()
		defer r.mu.Unlock()
		if len(r.inbox) != 1 || r.inbox[0].MTI != "0200" || r.inbox[0].Get(messages.STAN) != "000007" || r.inbox[0].Fault == nil {
			t.Errorf("inbound got %v", r.inbox)
		}
	})
}

func TestTheProcessorsRequestIsAnsweredWhileWeSignOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t, "iso87-ascii")
		h.manage = func(l *hostLink, m *messages.Message) {
			l.send(management("001", "0102030405", "000777"))
			for !slices.Contains(l.seen(), "0810/001") { // it wants to be answered first
				body, err := h.codec.ReadFrame(l)
				if err != nil {
					return
				}
				answer, err := h.codec.Decode(body)
				if err != nil {
					return
				}
				l.mu.Lock()
				l.received = append(l.received, answer)
				l.mu.Unlock()
			}
			l.answer(m, "00")
		}
		cfg := config(h)
		cfg.Links = cfg.Links[:1]
		r := start(t, cfg, h)
		synctest.Wait()
		r.wantStates(InService)
		h.script(func(h *host) { h.manage = nil })
		r.end()
	})
}

func TestASignOffOfTheProcessorDrainsTheLink(t *testing.T) {
	inBubble(t, nil, func(r *rig, h *host) {
		silent(h)
		a, b := r.exchange(request(1)), r.exchange(request(2))
		l, m := last(h, "000001")
		other, n := last(h, "000002")
		if l == other {
			t.Fatal("both on one link")
		}
		l.send(management("002", "0102030405", "000777"))
		synctest.Wait()
		if got := l.seen(); got[len(got)-1] != "0810/002" {
			t.Errorf("got %v", got)
		}
		if got := r.states(); !slices.Contains(got, Draining) || !slices.Contains(got, InService) {
			t.Errorf("links: %v", got)
		}
		before := l.bytes()
		c := r.exchange(request(3)) // on the other link
		synctest.Wait()
		if l.bytes() != before {
			t.Error("a draining link carries a new exchange")
		}
		pass(5 * time.Second)
		if n := len(h.open()); n != 2 {
			t.Errorf("%d connections: the host that has signed off is dialled before it has drained", n)
		}
		l.answer(m, "00")
		a.want(t, nil)
		synctest.Wait()
		if got := r.states(); !slices.Contains(got, Down) {
			t.Errorf("links: %v", got)
		}
		if got := l.seen(); got[len(got)-1] == "0800/002" {
			t.Errorf("%v: who has signed off is not told so", got)
		}
		other.answer(n, "00")
		other.answer(request(3), "00")
		b.want(t, nil)
		c.want(t, nil)
		pass(2 * time.Second)
		r.wantStates(InService, InService)
	})
}

func TestStoppingWaitsForWhatIsInFlightAndSignsOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t, "iso87-ascii")
		r := start(t, config(h), h)
		synctest.Wait()
		silent(h)
		a, b := r.exchange(request(1)), r.exchange(request(2))
		l, m := last(h, "000001")
		began := time.Now()
		r.stop()
		pass(5 * time.Second)
		r.wantStates(InService, InService) // for the answers
		l.answer(m, "00")
		a.want(t, nil)
		b.want(t, ErrTimeout)
		if err := <-r.ended; err != nil {
			t.Error(err)
		}
		if took := time.Since(began); took != 10*time.Second {
			t.Errorf("Run took %v to end, want what was left of the reply timeout", took)
		}
		for _, l := range h.open() {
			if got := l.seen(); got[len(got)-1] != "0800/002" {
				t.Errorf("got %v, want a sign-off at the end", got)
			}
		}
		r.wantStates(Down, Down)
		h.stop()
	})
}

func TestStoppingEndsThoughTheSignOffIsNotAnswered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t, "iso87-ascii")
		r := start(t, config(h), h)
		synctest.Wait()
		h.script(func(h *host) { h.manage = func(*hostLink, *messages.Message) {} })
		began := time.Now()
		r.end()
		if took := time.Since(began); took != 4*time.Second {
			t.Errorf("Run took %v to end, want the sign-on timeout", took)
		}
	})
}

func TestAnExchangeInFlightAtTheStopFindsItsAnswerAfterAReconnect(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t, "iso87-ascii")
		cfg := config(h)
		cfg.Links = cfg.Links[:1]
		r := start(t, cfg, h)
		synctest.Wait()
		silent(h)
		a := r.exchange(request(1))
		l, m := last(h, "000001")
		r.stop()
		_ = l.Close()
		pass(2 * time.Second)
		h.open()[1].answer(m, "00")
		a.want(t, nil)
		r.end()
	})
}

func TestStoppingDuringAPauseAndADialIsQuick(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t, "iso87-ascii")
		h.refuse = func(int) error { return errors.New("refused") }
		r := start(t, config(h), h)
		pass(5 * time.Minute)
		began := time.Now()
		r.end()
		if took := time.Since(began); took != 0 {
			t.Errorf("took %v", took)
		}
	})
}

func TestEveryStateIsLoggedAndCounted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t, "iso87-ascii")
		cfg := config(h)
		cfg.Links = cfg.Links[:1]
		var text bytes.Buffer
		registry := prometheus.NewRegistry()
		e, err := New(cfg, slog.New(slog.NewTextHandler(&text, nil)), registry)
		if err != nil {
			t.Fatal(err)
		}
		r := &rig{Endpoint: e, t: t, host: h, registry: registry, ended: make(chan error, 1)}
		var ctx context.Context
		ctx, r.stop = context.WithCancel(context.Background())
		if got := r.metric("acquirerd_links", string(Down)); got != 1 {
			t.Errorf("before Run: %v down", got)
		}
		go func() { r.ended <- e.Run(ctx, func(context.Context, Unasked) {}) }()
		synctest.Wait()
		if down, in := r.metric("acquirerd_links", string(Down)), r.metric("acquirerd_links", string(InService)); down != 0 || in != 1 {
			t.Errorf("in service: %v down, %v in service", down, in)
		}
		r.end()
		var got []string
		for line := range strings.Lines(text.String()) {
			if _, to, found := strings.Cut(line, " to="); found {
				got = append(got, strings.Fields(to)[0])
			}
		}
		if !slices.Equal(got, []string{"connected", "signed-on", "in-service", "draining", "down"}) {
			t.Errorf("logged %v in\n%s", got, text.String())
		}
	})
}

func TestAChangeThatTheTableLacksPanics(t *testing.T) {
	for state, possible := range map[State][]event{
		Down: {established}, Connected: {accepted, ended}, SignedOn: {chosen, ended}, InService: {leaving, ended}, Draining: {ended},
	} {
		for _, what := range []event{established, accepted, chosen, leaving, ended} {
			panicked := func() (panicked bool) {
				defer func() { panicked = recover() != nil }()
				state.after(what)
				return false
			}()
			if panicked == slices.Contains(possible, what) {
				t.Errorf("%s while %s: panicked %v", what, state, panicked)
			}
		}
	}
}

func TestEndpointsShareARegistry(t *testing.T) {
	h := newHost(t, "iso87-ascii")
	registry := prometheus.NewRegistry()
	a, b := config(h), config(h)
	b.Name = "processor-b"
	b.Links = Dialled("three")
	for _, cfg := range []Config{a, b} {
		if _, err := New(cfg, slog.New(slog.DiscardHandler), registry); err != nil {
			t.Fatal(err)
		}
	}
	r := &rig{t: t, registry: registry}
	if one, two := r.metric("acquirerd_links", "processor-a", "down"), r.metric("acquirerd_links", "processor-b", "down"); one != 2 || two != 1 {
		t.Errorf("got %v and %v", one, two)
	}
	// Another's metric of the same name is an error, not a panic.
	registry = prometheus.NewRegistry()
	registry.MustRegister(prometheus.NewGauge(prometheus.GaugeOpts{Name: "acquirerd_links", Help: "Another."}))
	if _, err := New(a, slog.New(slog.DiscardHandler), registry); err == nil {
		t.Error("no error")
	}
}

func TestEveryFaultOfAConfigurationIsNamed(t *testing.T) {
	_, err := New(Config{Links: Dialled("nowhere", ""), WriteTimeout: 2 * time.Second, ReplyTimeout: time.Second, BackoffMin: time.Hour,
		BackoffMax: time.Second, InFlight: -1, Unasked: -1}, slog.New(slog.DiscardHandler), prometheus.NewRegistry())
	if err == nil {
		t.Fatal("no error")
	}
	for _, want := range []string{"name: missing", "dialect: missing", `links[0].hosts[0]: "nowhere" is not host:port`, `links[1].hosts[0]: "" is not host:port`,
		"write_timeout: 2s is not less than reply_timeout 1s", "dial_timeout: must be positive", "sign_on_timeout: ", "echo_interval: ",
		"echo_timeout: ", "echo_misses: must be at least 1", "backoff_min: 1h0m0s is more than backoff_max 1s", "in_flight: ", "unasked: "} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q is not in:\n%v", want, err)
		}
	}
}

func wantFault(t *testing.T, cfg Config, want string) {
	t.Helper()
	_, err := New(cfg, slog.New(slog.DiscardHandler), prometheus.NewRegistry())
	if err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("got %v, want %s", err, want)
	}
}

func TestAnEchoThatIsAwaitedDoesNotHoldUpASignOff(t *testing.T) {
	inBubble(t, func(c *Config) { c.Links = c.Links[:1] }, func(r *rig, h *host) {
		h.script(func(h *host) {
			h.manage = func(l *hostLink, m *messages.Message) {
				if m.Get(messages.NetworkManagement) != "301" {
					l.answer(m, "00")
				}
			}
		})
		pass(61 * time.Second)
		if err := r.Drain(0); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if got := r.Status()[0]; got.State != Down || got.LastError != "" {
			t.Errorf("got %+v", got)
		}
	})
}

func TestASessionThatIsSignedOnAsItsLinkIsDrainedCarriesNothing(t *testing.T) {
	inBubble(t, func(c *Config) { c.Links = c.Links[:1] }, func(r *rig, h *host) {
		l := r.links[0]
		r.Endpoint.mu.Lock()
		permit := l.allowed
		r.Endpoint.mu.Unlock()
		s := l.open(permit, 0, false)
		if err := r.Drain(0); err != nil {
			t.Fatal(err)
		}
		if l.give(permit, s) {
			t.Error("in service")
		}
		synctest.Wait()
		r.wantStates(Down)
		for _, other := range h.open() {
			if got := other.seen(); !slices.Equal(got, []string{"0800/001", "0800/002"}) || !other.isClosed() {
				t.Errorf("received %v", got)
			}
		}
	})
}
