package conn

import (
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"acquirerd/messages"
)

func TestADrainedLinkLosesNothingSignsOffAndStaysDown(t *testing.T) {
	inBubble(t, nil, func(r *rig, h *host) {
		silent(h)
		a, b := r.exchange(request(1)), r.exchange(request(2))
		l, m := last(h, "000001")
		other, n := last(h, "000002")
		number := slices.IndexFunc(r.Status(), func(s LinkStatus) bool { return s.Address == l.address })
		if err := r.Drain(number); err != nil {
			t.Fatal(err)
		}
		if got := r.Status()[number]; got.State != Draining || !got.Held || got.InFlight != 1 {
			t.Errorf("got %+v at once", got)
		}
		before := l.bytes()
		c, d := r.exchange(request(3)), r.exchange(request(4)) // where the other has more in flight
		synctest.Wait()
		if l.bytes() != before || len(other.seen()) != 1+3 {
			t.Errorf("a draining link carries a new exchange: %v, %v", l.seen(), other.seen())
		}
		pass(5 * time.Second)
		l.answer(m, "00")
		a.want(t, nil)
		synctest.Wait()
		if got := l.seen(); got[len(got)-1] != "0800/002" {
			t.Errorf("%v, want a sign-off at the end", got)
		}
		for _, x := range []*messages.Message{n, request(3), request(4)} {
			other.answer(x, "00")
		}
		for _, x := range []*attempt{b, c, d} {
			x.want(t, nil)
		}
		pass(24 * time.Hour)
		if got := r.Status()[number]; got.State != Down || !got.Held || got.LastError != "" || got.Reconnects != 0 {
			t.Errorf("got %+v", got)
		}
		if err := r.Drain(number); err != nil { // once more changes nothing
			t.Fatal(err)
		}
		if err := r.Resume(number); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		r.wantStates(InService, InService)
		if r.Status()[number].Held {
			t.Error("held")
		}
		if err := r.Resume(number); err != nil || len(h.open()) != 3 {
			t.Errorf("%v, %d connections", err, len(h.open()))
		}
	})
}

func TestADrainWaitsNoLongerThanForTheExchangesInFlight(t *testing.T) {
	inBubble(t, nil, func(r *rig, h *host) {
		silent(h)
		a := r.exchange(request(1))
		synctest.Wait()
		if err := r.Drain(-1); err != nil {
			t.Fatal(err)
		}
		r.exchange(request(2)).want(t, ErrNotSent)
		if r.InService() {
			t.Error("in service")
		}
		a.want(t, ErrTimeout)
		synctest.Wait()
		if got := r.states(); a.took != 10*time.Second || !slices.Equal(got, []State{Down, Down}) {
			t.Errorf("after %v: %v", a.took, got)
		}
		if err := r.Resume(-1); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		r.wantStates(InService, InService)
		h.script(func(h *host) { h.handle = nil })
		r.exchange(request(3)).want(t, nil)
	})
}

func TestDrainingALinkThatIsNotInService(t *testing.T) {
	for name, prepare := range map[string]func(c *Config, ways *roads){
		"while it pauses":   func(_ *Config, ways *roads) { ways.closed["a"] = true },
		"while it dials":    func(c *Config, ways *roads) { ways.lost["a"], c.DialTimeout = true, 24*time.Hour },
		"while it signs on": func(c *Config, ways *roads) { ways.h.manage = func(*hostLink, *messages.Message) {} },
	} {
		t.Run(name, func(t *testing.T) {
			onHosts(t, []string{"a"}, prepare, func(r *rig, h *host, ways *roads) {
				pass(100 * time.Millisecond)
				if err := r.Drain(0); err != nil {
					t.Fatal(err)
				}
				synctest.Wait()
				dials := len(ways.dialled())
				pass(time.Hour)
				if got := r.Status()[0]; got.State != Down || len(ways.dialled()) != dials || (got.LastError != "" && name != "while it pauses") {
					t.Errorf("got %+v, %v", got, ways.dialled())
				}
				ways.set(ways.closed, "a", false)
				ways.set(ways.lost, "a", false)
				h.script(func(h *host) { h.manage = nil })
				if err := r.Resume(0); err != nil {
					t.Fatal(err)
				}
				synctest.Wait()
				r.wantStates(InService)
			})
		})
	}
}

func TestDrainingALinkThatTriesABetterHostLeavesNoConnection(t *testing.T) {
	onHosts(t, []string{"a", "b"}, func(_ *Config, ways *roads) { ways.closed["a"] = true }, func(r *rig, h *host, ways *roads) {
		ways.set(ways.closed, "a", false)
		var asked []func()
		h.script(func(h *host) {
			h.manage = func(l *hostLink, m *messages.Message) {
				if l.address == "b" {
					l.answer(m, "00")
				} else {
					asked = append(asked, func() { l.answer(m, "00") })
				}
			}
		})
		pass(61 * time.Second)
		if err := r.Drain(0); err != nil {
			t.Fatal(err)
		}
		for _, answer := range asked { // too late
			go answer()
		}
		pass(10 * time.Second)
		r.wantStates(Down)
		r.Endpoint.mu.Lock()
		if n := len(r.links[0].sessions); n != 0 {
			t.Errorf("%d sessions", n)
		}
		r.Endpoint.mu.Unlock()
	})
}

func TestALinkThatWasDrainedBeforeRunStaysDown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t, "iso87-ascii")
		e, err := New(config(h), slog.New(slog.DiscardHandler), prometheus.NewRegistry())
		if err != nil {
			t.Fatal(err)
		}
		if err := e.Drain(1); err != nil {
			t.Fatal(err)
		}
		r := &rig{Endpoint: e, t: t, host: h, ended: make(chan error, 1)}
		r.run()
		defer r.end()
		pass(time.Minute)
		r.wantStates(InService, Down)
		if err := e.Resume(1); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		r.wantStates(InService, InService)
	})
}

func TestACutIsNoAnswerAndTheLinkComesBack(t *testing.T) {
	inBubble(t, nil, func(r *rig, h *host) {
		silent(h)
		a, b := r.exchange(request(1)), r.exchange(request(2))
		l, m := last(h, "000001")
		number := slices.IndexFunc(r.Status(), func(s LinkStatus) bool { return s.Address == l.address })
		if err := r.Cut(number); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if got := r.Status()[number]; got.State != Down || got.LastError != string(causeCut) || !a.running() || !b.running() {
			t.Errorf("got %+v", got)
		}
		if err := r.Cut(number); !errors.Is(err, errNoConnection) {
			t.Errorf("cut again: %v", err)
		}
		h.script(func(h *host) {
			if h.dropped != 1 {
				t.Errorf("%d connections were closed with what stood in their buffers", h.dropped)
			}
		})
		other, n := last(h, "000002")
		other.answer(m, "00")
		other.answer(n, "00")
		a.want(t, nil)
		b.want(t, nil)
		pass(time.Second)
		r.wantStates(InService, InService)
		if err := r.Cut(-1); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		r.wantStates(Down, Down)
		if err := r.Cut(-1); err != nil {
			t.Fatal(err)
		}
		pass(2 * time.Second)
		r.wantStates(InService, InService)
	})
}

func TestALinkThatIsNotThereCannotBeOperated(t *testing.T) {
	inBubble(t, nil, func(r *rig, _ *host) {
		for _, number := range []int{2, -2} {
			for what, err := range map[string]error{"drain": r.Drain(number), "resume": r.Resume(number), "cut": r.Cut(number)} {
				if err == nil || !strings.Contains(err.Error(), "there is none") {
					t.Errorf("%s %d: %v", what, number, err)
				}
			}
		}
		r.wantStates(InService, InService)
	})
}

// reconfigure changes the configuration that holds.
func (r *rig) reconfigure(change func(*Config)) error {
	cfg := r.config().Config
	cfg.Links = slices.Clone(cfg.Links)
	change(&cfg)
	return r.Reconfigure(cfg)
}

func TestAReloadTouchesOnlyTheLinksThatChanged(t *testing.T) {
	inBubble(t, func(c *Config) { c.Links = Dialled("one", "two", "three") }, func(r *rig, h *host) {
		silent(h)
		var attempts []*attempt
		for stan := range 3 {
			attempts = append(attempts, r.exchange(request(stan)))
		}
		synctest.Wait()
		if err := r.Drain(1); err != nil { // held, as it stays
			t.Fatal(err)
		}
		if err := r.reconfigure(func(c *Config) { c.Links = Dialled("four", "three", "two") }); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		var got []string
		for _, s := range r.Status() {
			got = append(got, fmt.Sprint(s.Number, s.Address, s.State, s.Held))
		}
		if want := []string{"0fourin-servicefalse", "1threein-servicefalse", "2twodrainingtrue", "3onedrainingfalse"}; !slices.Equal(got, want) {
			t.Errorf("got %v, want %v", got, want)
		}
		one := h.at("one")[0]
		if got := one.seen(); len(got) != 2 {
			t.Errorf("the link that was removed: %v", got)
		}
		before := one.bytes()
		for stan := range 6 {
			attempts = append(attempts, r.exchange(request(10+stan)))
		}
		synctest.Wait()
		if one.bytes() != before {
			t.Error("a link that was removed carries a new exchange")
		}
		for _, a := range attempts { // each on the link that it went out on
			l, m := last(h, a.request.Get(messages.STAN))
			l.answer(m, "00")
		}
		for _, a := range attempts {
			a.want(t, nil)
		}
		synctest.Wait()
		if got := one.seen(); got[len(got)-1] != "0800/002" {
			t.Errorf("%v, want a sign-off at the end", got)
		}
		if a, b := len(h.at("two")), len(h.at("three")); a != 1 || b != 1 {
			t.Errorf("links that did not change were connected %d and %d times", a, b)
		}
		h.script(func(h *host) { h.handle = nil })
		for stan := range 4 {
			wantTraced(t, r, h, func() *attempt { a := r.exchange(request(20 + stan)); a.want(t, nil); return a }())
		}
		pass(time.Hour)
		if n := len(h.open()); n != 4 {
			t.Errorf("%d connections", n)
		}
	})
}

func TestTheOldLinksCarryOnUntilANewOneIsInService(t *testing.T) {
	for name, c := range map[string]struct {
		manage func(l *hostLink, m *messages.Message) // of the new one
		after  time.Duration                          // the old one leaves
	}{
		"which takes a while": {func(l *hostLink, m *messages.Message) { time.AfterFunc(2*time.Second, func() { l.answer(m, "00") }) }, 2 * time.Second},
		"which never is":      {func(l *hostLink, m *messages.Message) { l.answer(m, "05") }, 7 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			onHosts(t, []string{"a"}, nil, func(r *rig, h *host, ways *roads) {
				h.script(func(h *host) {
					h.manage = func(l *hostLink, m *messages.Message) {
						if l.address == "b" {
							c.manage(l, m)
						} else {
							l.answer(m, "00")
						}
					}
				})
				ways.set(ways.lost, "a2", true) // before the new link can come to it
				if err := r.reconfigure(func(c *Config) { c.Links = []Link{{Hosts: []string{"b", "a2"}}} }); err != nil {
					t.Fatal(err)
				}
				began, stan := time.Now(), 0
				for ; time.Since(began) < c.after; stan++ {
					if !r.InService() {
						t.Errorf("not in service after %v", time.Since(began))
					}
					wantOn(t, r, h, "a", stan)
					pass(100 * time.Millisecond)
				}
				if got := h.at("a")[0].seen(); got[len(got)-1] != "0800/002" {
					t.Errorf("%v, want a sign-off at the end", got)
				}
				if c.after < 7*time.Second {
					wantOn(t, r, h, "b", stan)
				} else {
					r.exchange(request(stan)).want(t, ErrNotSent)
				}
				if n := len(h.at("a")); n != 1 {
					t.Errorf("%d connections to a", n)
				}
			})
		})
	}
}

func TestStoppingWhileOldLinksCarryOn(t *testing.T) {
	onHosts(t, []string{"a"}, nil, func(r *rig, h *host, ways *roads) {
		ways.set(ways.lost, "b", true)
		for range 3 {
			if err := r.reconfigure(func(c *Config) {
				c.Links = []Link{{Hosts: []string{"b"}}, {Hosts: append([]string{"b"}, c.Links[0].Hosts...)}}
			}); err != nil {
				t.Fatal(err)
			}
			pass(time.Second)
		}
		wantOn(t, r, h, "a", 1)
		began := time.Now()
		r.stop()
		if err := <-r.ended; err != nil || time.Since(began) != 0 {
			t.Errorf("after %v: %v", time.Since(began), err)
		}
		r.ended <- nil // for the rig
		if got := h.at("a")[0].seen(); got[len(got)-1] != "0800/002" {
			t.Errorf("a received %v", got)
		}
	})
}

func TestAReloadThatIsFaultyChangesNothing(t *testing.T) {
	other := *dialects["iso87-ascii"]
	other.Version += "x"
	for name, c := range map[string]struct {
		change func(*Config)
		want   string
	}{
		"another name":      {func(c *Config) { c.Name = "processor-b" }, errOtherName.Error()},
		"another dialect":   {func(c *Config) { c.Codec = messages.NewCodec(dialects["iso87-binary"]) }, errOtherDialect.Error()},
		"another version":   {func(c *Config) { c.Codec = messages.NewCodec(&other) }, errOtherDialect.Error()},
		"a missing dialect": {func(c *Config) { c.Codec = nil }, "dialect: missing"},
		"no links":          {func(c *Config) { c.Links = nil }, "links: missing"},
		"a faulty limit":    {func(c *Config) { c.InFlight = -1 }, "in_flight: "},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, nil, func(r *rig, h *host) {
				before := r.config()
				err := r.reconfigure(func(cfg *Config) { cfg.Links = Dialled("three"); c.change(cfg) })
				if err == nil || !strings.Contains(err.Error(), c.want) {
					t.Errorf("got %v, want %s", err, c.want)
				}
				if r.config() != before {
					t.Error("changed")
				}
				r.wantStates(InService, InService)
				r.exchange(request(1)).want(t, nil)
			})
		})
	}
}

func TestLimitsAndTimesChangeWithoutANewConnection(t *testing.T) {
	inBubble(t, nil, func(r *rig, h *host) {
		silent(h)
		old := r.exchange(request(1))
		synctest.Wait()
		if err := r.reconfigure(func(c *Config) {
			c.InFlight, c.ReplyTimeout, c.EchoInterval, c.Unasked, c.Abandoned = 2, 5*time.Second, 7*time.Second, 1, 100
		}); err != nil {
			t.Fatal(err)
		}
		a := r.exchange(request(2))
		synctest.Wait()
		r.exchange(request(3)).want(t, ErrNotSent)
		a.want(t, ErrTimeout)
		old.want(t, ErrTimeout)
		if a.took != 5*time.Second || old.took != 10*time.Second {
			t.Errorf("took %v, and %v what waited before", a.took, old.took)
		}
		for _, l := range h.open() {
			if got := l.seen(); got[len(got)-1] != "0800/301" {
				t.Errorf("no echo after the new interval: %v", got)
			}
		}
		if n := len(h.open()); n != 2 {
			t.Errorf("%d connections", n)
		}
		// The table of keys too.
		h.script(func(h *host) { h.handle = nil })
		r.exchange(request(4)).want(t, nil)
		r.exchange(request(4)).want(t, ErrNotSent)
		pass(5 * time.Second)
		r.exchange(request(4)).want(t, nil)
		if err := r.reconfigure(func(c *Config) { c.Abandoned = 2 }); err != nil {
			t.Fatal(err)
		}
		r.exchange(request(5)).want(t, ErrNotSent)
	})
}

func TestACertificateIsReplacedWithoutANewConnection(t *testing.T) {
	a, b := Link{Hosts: []string{"one"}, TLS: &tls.Config{}}, Link{Hosts: []string{"one"}, TLS: &tls.Config{ServerName: "x"}}
	if !a.same(b) || a.same(Link{Hosts: []string{"one"}}) {
		t.Error("a link is the same with other settings of TLS, and another one without")
	}
}

func TestReloadingBeforeRunAndWhileStopping(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t, "iso87-ascii")
		e, err := New(config(h), slog.New(slog.DiscardHandler), prometheus.NewRegistry())
		if err != nil {
			t.Fatal(err)
		}
		r := &rig{Endpoint: e, t: t, host: h, ended: make(chan error, 1)}
		if err := r.reconfigure(func(c *Config) { c.Links = Dialled("two", "three") }); err != nil {
			t.Fatal(err)
		}
		r.run()
		synctest.Wait()
		r.wantStates(InService, InService)
		if len(h.at("one")) != 0 || len(h.at("three")) != 1 {
			t.Error("not the new links")
		}
		silent(h)
		a := r.exchange(request(1))
		synctest.Wait()
		r.stop()
		synctest.Wait()
		if err := r.reconfigure(func(c *Config) { c.Links = Dialled("four") }); !errors.Is(err, errDraining) {
			t.Errorf("got %v", err)
		}
		a.want(t, ErrTimeout)
		r.end()
	})
}

func TestTheSeriesOfALinkGoWithIt(t *testing.T) {
	inBubble(t, func(c *Config) { c.Links = Dialled("one", "two", "three") }, func(r *rig, h *host) {
		if n := r.series("acquirerd_link_state"); n != 3*len(states) {
			t.Errorf("%d series", n)
		}
		r.exchange(request(1)).want(t, nil)
		if err := r.reconfigure(func(c *Config) { c.Links = Dialled("three") }); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		for name, want := range map[string]int{"acquirerd_link_state": len(states), "acquirerd_link_state_seconds": 1, "acquirerd_link_frames_total": 2,
			"acquirerd_link_bytes_total": 2, "acquirerd_link_reconnects_total": 1, "acquirerd_link_exchanges_in_flight": 1} {
			if n := r.series(name); n != want {
				t.Errorf("%d series of %s, want %d", n, name, want)
			}
		}
		if got := r.metric("acquirerd_links", string(InService)); got != 1 {
			t.Errorf("%v in service", got)
		}
	})
}

// series is how many there are of a metric.
func (r *rig) series(name string) int {
	families, err := r.registry.Gather()
	if err != nil {
		r.t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == name {
			return len(f.GetMetric())
		}
	}
	return 0
}

func TestALinkCountsWhatItDoes(t *testing.T) {
	inBubble(t, func(c *Config) { c.Links = c.Links[:1] }, func(r *rig, h *host) {
		h.script(func(h *host) {
			h.manage = func(l *hostLink, m *messages.Message) {
				time.AfterFunc(250*time.Millisecond, func() { l.answer(m, "00") })
			}
		})
		l := h.open()[0]
		r.exchange(request(1)).want(t, nil)
		pass(61 * time.Second)
		if got := r.Status()[0]; got.EchoSeconds != .25 || got.FramesIn != 3 || got.FramesOut != 3 || got.BytesOut != uint64(l.bytes()) || got.BytesIn == 0 {
			t.Errorf("got %+v", got)
		}
		for name, want := range map[string]float64{"acquirerd_link_echo_seconds": .25, "acquirerd_link_state_seconds": 61, "acquirerd_link_reconnects_total": 0} {
			if got := r.metric(name, "processor-a", "0"); got != want {
				t.Errorf("%s: got %v, want %v", name, got, want)
			}
		}
		if in, out := r.metric("acquirerd_link_frames_total", "0", "in"), r.metric("acquirerd_link_bytes_total", "0", "out"); in != 3 || out != float64(l.bytes()) {
			t.Errorf("%v frames in, %v bytes out", in, out)
		}
		if got := r.metric("acquirerd_link_state", "0", string(InService)); got != 1 {
			t.Errorf("in service: %v", got)
		}
		_ = l.Close()
		synctest.Wait()
		if got := r.metric("acquirerd_link_failures_total", "0", string(causeClosed)); got != 1 {
			t.Errorf("failures: %v", got)
		}
		if got := r.metric("acquirerd_link_last_failure", "0", string(causeClosed)); got != 1 {
			t.Errorf("last failure: %v", got)
		}
		if in, down := r.metric("acquirerd_link_state", "0", string(InService)), r.metric("acquirerd_link_state", "0", string(Down)); in != 0 || down != 1 {
			t.Errorf("in service %v, down %v", in, down)
		}
		h.script(func(h *host) { h.manage = nil })
	})
}

func TestAnEndpointsNameIsFreeWhenItHasEnded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t, "iso87-ascii")
		r := start(t, config(h), h)
		if _, err := New(config(h), slog.New(slog.DiscardHandler), r.registry); err == nil {
			t.Error("two endpoints of one name")
		}
		r.end()
		if _, err := New(config(h), slog.New(slog.DiscardHandler), r.registry); err != nil {
			t.Error(err)
		}
	})
}

// The read that waits for the next frame has the deadline of the old configuration, and the next echo comes only by the new one.
func TestALongerEchoIntervalDoesNotCutAQuietLink(t *testing.T) {
	inBubble(t, nil, func(r *rig, h *host) {
		if err := r.reconfigure(func(c *Config) { c.EchoInterval = 10 * time.Minute }); err != nil {
			t.Fatal(err)
		}
		pass(9 * time.Minute)
		if n := len(h.open()); n != 2 {
			t.Errorf("%d connections, want the 2 that there were", n)
		}
		for _, s := range r.Status() {
			if s.LastError != "" {
				t.Errorf("link %d: %s", s.Number, s.LastError)
			}
		}
	})
}

// What waits keeps the time that it was given; so must the session that it waits on.
func TestADrainAfterAShorterReplyTimeoutWaitsForWhatWasSentBefore(t *testing.T) {
	inBubble(t, func(c *Config) { c.Links = Dialled("one") }, func(r *rig, h *host) {
		silent(h)
		a := r.exchange(request(1))
		l, m := last(h, "000001")
		if err := r.reconfigure(func(c *Config) { c.ReplyTimeout, c.WriteTimeout = 3*time.Second, time.Second }); err != nil {
			t.Fatal(err)
		}
		if err := r.Drain(0); err != nil {
			t.Fatal(err)
		}
		pass(8 * time.Second) // of the 10 s that it was given
		go l.answer(m, "00")
		a.want(t, nil)
	})
}

// A second reload gives what it adds the time of a dial and a sign-on too, and until then the old link carries on.
func TestASecondReloadGivesItsOwnLinksTheTimeToComeUp(t *testing.T) {
	onHosts(t, []string{"a"}, func(_ *Config, ways *roads) { ways.lost["b"] = true }, func(r *rig, h *host, ways *roads) {
		if err := r.reconfigure(func(c *Config) { c.Links = Dialled("b") }); err != nil { // a mistake
			t.Fatal(err)
		}
		pass(6900 * time.Millisecond)
		h.script(func(h *host) {
			h.manage = func(l *hostLink, m *messages.Message) {
				if l.address == "c" {
					<-time.After(time.Second)
				}
				l.answer(m, "00")
			}
		})
		if err := r.reconfigure(func(c *Config) { c.Links = Dialled("c") }); err != nil { // mended
			t.Fatal(err)
		}
		pass(500 * time.Millisecond)
		if !r.InService() {
			t.Error("not in service: the old link has left before the new one had its time")
		}
	})
}

// It is held until it is resumed, wherever it leads to meanwhile.
func TestAHeldLinkStaysHeldWhenItsHostsChange(t *testing.T) {
	onHosts(t, []string{"a"}, nil, func(r *rig, _ *host, _ *roads) {
		if err := r.Drain(0); err != nil {
			t.Fatal(err)
		}
		if err := r.reconfigure(func(c *Config) { c.Links = []Link{{Hosts: []string{"a", "b"}}} }); err != nil {
			t.Fatal(err)
		}
		pass(time.Minute)
		if got := r.Status()[0]; got.State != Down || !got.Held {
			t.Errorf("got %+v", got)
		}
	})
}

// Until it has left, an operator sees it and can cut it.
func TestALinkThatCarriesOnAfterItsRemovalIsSeen(t *testing.T) {
	onHosts(t, []string{"a"}, func(_ *Config, ways *roads) { ways.lost["b"] = true }, func(r *rig, _ *host, _ *roads) {
		if err := r.reconfigure(func(c *Config) { c.Links = Dialled("b") }); err != nil {
			t.Fatal(err)
		}
		pass(time.Second)
		if r.InService() && r.metric("acquirerd_links", "in-service") == 0 {
			t.Error("the endpoint is in service, and no link of it is")
		}
	})
}

// The hold goes with the link, and is not left behind for the one that takes its number.
func TestALinkThatTakesTheNumberOfAHeldOneThatMovesIsNotHeld(t *testing.T) {
	inBubble(t, nil, func(r *rig, _ *host) {
		if err := r.Drain(0); err != nil {
			t.Fatal(err)
		}
		if err := r.reconfigure(func(c *Config) { c.Links = Dialled("three", "two", "one") }); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		r.wantStates(InService, InService, Down)
		if got := r.Status(); got[0].Held || !got[2].Held {
			t.Errorf("got %+v", got)
		}
	})
}

func TestALinkThatDepartsIsOperatedUnderTheNextNumber(t *testing.T) {
	for name, c := range map[string]struct {
		operate func(r *rig) error
		last    string
	}{
		"cut":             {func(r *rig) error { return r.Cut(1) }, "0800/001"},
		"drained":         {func(r *rig) error { return r.Drain(1) }, "0800/002"},
		"drained, as all": {func(r *rig) error { return r.Drain(-1) }, "0800/002"},
	} {
		t.Run(name, func(t *testing.T) {
			onHosts(t, []string{"a"}, func(_ *Config, ways *roads) { ways.lost["b"] = true }, func(r *rig, h *host, _ *roads) {
				if err := r.reconfigure(func(c *Config) { c.Links = Dialled("b") }); err != nil {
					t.Fatal(err)
				}
				if got := r.Status(); len(got) != 2 || got[0].Departing || got[1].Number != 1 || !got[1].Departing || got[1].Address != "a" {
					t.Errorf("got %+v", got)
				}
				if err := c.operate(r); err != nil {
					t.Fatal(err)
				}
				synctest.Wait()
				if got := h.at("a")[0].seen(); got[len(got)-1] != c.last || r.InService() {
					t.Errorf("in service: %v; a received %v", r.InService(), got)
				}
				if n := len(r.Status()); n != 1 {
					t.Errorf("%d links, want the one that there is", n)
				}
				if err := r.Cut(1); err == nil {
					t.Error("a link that has left is operated")
				}
			})
		})
	}
}

func TestPausesThatWouldHammerAProcessorAreFaults(t *testing.T) {
	cfg := config(newHost(t, "iso87-ascii"))
	cfg.BackoffMin, cfg.FailBack = time.Millisecond, time.Millisecond
	wantFault(t, cfg, "backoff_min: 1ms is less than 10ms")
	wantFault(t, cfg, "fail_back: 1ms is less than 100ms")
}
