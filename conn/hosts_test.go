package conn

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"acquirerd/messages"
)

// roads are the ways to the addresses of a host: open, closed, or leading nowhere.
type roads struct {
	h      *host
	mu     sync.Mutex
	closed map[string]bool // a dial is refused
	lost   map[string]bool // a dial is not answered
	dials  []string
}

func (r *roads) dial(ctx context.Context, address string) (net.Conn, error) {
	r.mu.Lock()
	r.dials = append(r.dials, address)
	closed, lost := r.closed[address], r.lost[address]
	r.mu.Unlock()
	if lost {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	if closed {
		return nil, errors.New("refused")
	}
	return r.h.dial(ctx, address)
}

func (r *roads) set(road map[string]bool, address string, to bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	road[address] = to
}

func (r *roads) dialled() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.dials)
}

// onHosts runs a test with one link that has these hosts in order of preference.
func onHosts(t *testing.T, hosts []string, change func(*Config, *roads), test func(r *rig, h *host, ways *roads)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t, "iso87-ascii")
		ways := &roads{h: h, closed: map[string]bool{}, lost: map[string]bool{}}
		cfg := config(h)
		cfg.Links, cfg.Dial = []Link{{Hosts: hosts}}, ways.dial
		if change != nil {
			change(&cfg, ways)
		}
		r := start(t, cfg, h)
		defer r.end()
		synctest.Wait()
		test(r, h, ways)
	})
}

// at are the host's connections that were dialled at an address, in order.
func (h *host) at(address string) []*hostLink {
	var list []*hostLink
	for _, l := range h.open() {
		if l.address == address {
			list = append(list, l)
		}
	}
	return list
}

// wantOn sends a request and checks that the host at this address has received it, and answered.
func wantOn(t *testing.T, r *rig, h *host, address string, stan int) {
	t.Helper()
	a := r.exchange(request(stan))
	a.want(t, nil)
	if l, _ := last(h, fmt.Sprintf("%06d", stan)); l.address != address {
		t.Errorf("%d went to %s, want %s", stan, l.address, address)
	}
}

func TestHostsAreTriedInOrderAtOnceAndThenThereIsAPause(t *testing.T) {
	onHosts(t, []string{"a", "b", "c"}, func(_ *Config, ways *roads) { ways.closed = map[string]bool{"a": true, "b": true, "c": true} },
		func(r *rig, h *host, ways *roads) {
			if got := ways.dialled(); !slices.Equal(got, []string{"a", "b", "c"}) {
				t.Errorf("dialled %v at once", got)
			}
			ways.set(ways.closed, "c", false)
			pass(time.Second)
			if got := ways.dialled(); !slices.Equal(got, []string{"a", "b", "c", "a", "b", "c"}) {
				t.Errorf("dialled %v", got)
			}
			wantOn(t, r, h, "c", 1)
			if got := r.Status()[0]; got.Host != 2 || got.Address != "c" || got.Mode != "dial" || got.LastError != string(causeDial) || got.Reconnects != 5 {
				t.Errorf("got %+v", got)
			}
		})
}

func TestAHostThatDoesNotAcceptTheSignOnIsFollowedByTheNext(t *testing.T) {
	onHosts(t, []string{"a", "b"}, func(c *Config, ways *roads) {
		ways.h.manage = func(l *hostLink, m *messages.Message) {
			l.answer(m, map[string]string{"a": "05", "b": "00"}[l.address])
		}
	}, func(r *rig, h *host, _ *roads) {
		wantOn(t, r, h, "b", 1)
		if got := r.Status()[0]; got.LastError != string(causeSignOnRefused) {
			t.Errorf("got %+v", got)
		}
	})
}

// TestCuttingThePreferredHostMovesTheTraffic sends requests without a pause, cuts the preferred host in several ways, and heals it.
func TestCuttingThePreferredHostMovesTheTraffic(t *testing.T) {
	for name, cut := range map[string]func(h *host, ways *roads){
		"its connection is reset": func(h *host, ways *roads) {
			ways.set(ways.closed, "a", true)
			for _, l := range h.at("a") {
				_ = l.Close()
			}
		},
		"it reads no more, and no dial is answered": func(h *host, ways *roads) {
			ways.set(ways.lost, "a", true)
			h.script(func(h *host) {
				h.deaf = func(l *hostLink) (int, bool) { return l.bytes(), l.address == "a" }
			})
		},
	} {
		t.Run(name, func(t *testing.T) {
			onHosts(t, []string{"a", "b"}, nil, func(r *rig, h *host, ways *roads) {
				h.script(func(h *host) {
					h.handle = func(l *hostLink, m *messages.Message) {
						time.AfterFunc(70*time.Millisecond, func() { l.answer(m, "00") }) // so that some are in flight at any time
					}
				})
				cfg := r.config()
				type try struct {
					*attempt
					at time.Time
				}
				var tries []try
				send := func(d time.Duration) {
					for end := time.Now().Add(d); time.Now().Before(end); pass(20 * time.Millisecond) {
						tries = append(tries, try{r.exchange(request(len(tries))), time.Now()})
					}
				}
				send(time.Second)
				inFlight := r.Status()[0].InFlight // at the moment of the cut
				if inFlight == 0 {
					t.Fatal("nothing is in flight on what is cut")
				}
				cutAt := time.Now()
				cut(h, ways)
				send(10 * time.Second)
				moved := cutAt.Add(cfg.WriteTimeout + cfg.BackoffMin)

				// And back. The processor that does not read is healed by a new connection.
				h.script(func(h *host) { h.deaf = nil })
				ways.set(ways.closed, "a", false)
				ways.set(ways.lost, "a", false)
				healedAt := time.Now()
				send(cfg.FailBack + cfg.DialTimeout + time.Second)
				back := healedAt.Add(cfg.FailBack + cfg.DialTimeout)
				send(5 * time.Second)

				received := map[string]string{}
				for _, l := range h.open() {
					for _, m := range l.received {
						if m.MTI.Class() == messages.Network {
							continue
						}
						if _, twice := received[m.Get(messages.STAN)]; twice {
							t.Errorf("%s was received twice", m.Get(messages.STAN))
						}
						received[m.Get(messages.STAN)] = l.address
					}
				}
				unknown, notSent, onA, onB := 0, 0, 0, 0
				for _, x := range tries {
					<-x.done
					address := received[x.request.Get(messages.STAN)]
					switch {
					case x.err == nil && address == "a":
						onA++
					case x.err == nil && address == "b":
						onB++
					case errors.Is(x.err, ErrNotSent):
						notSent++
						if address != "" {
							t.Errorf("not sent, and received by %s", address)
						}
						if x.at.After(moved) || x.at.Before(cutAt) {
							t.Errorf("not sent %v after the cut", x.at.Sub(cutAt))
						}
					default:
						unknown++
						if x.at.After(moved) {
							t.Errorf("unknown %v after the cut: %v", x.at.Sub(cutAt), x.err)
						}
					}
					if x.err == nil && x.at.After(moved) && x.at.Before(healedAt) && address != "b" {
						t.Errorf("%v after the cut on %s", x.at.Sub(cutAt), address)
					}
					if x.err == nil && x.at.After(back) && address != "a" {
						t.Errorf("%v after the healing on %s", x.at.Sub(healedAt), address)
					}
				}
				// In flight at the cut, and one whose write was under way until its deadline.
				if unknown == 0 || unknown > inFlight+1 {
					t.Errorf("%d unknown, %d were in flight on what was cut", unknown, inFlight)
				}
				if onA == 0 || onB == 0 {
					t.Errorf("%d on a, %d on b", onA, onB)
				}
				t.Logf("%d on a, %d on b, %d unknown, %d not sent", onA, onB, unknown, notSent)
			})
		})
	}
}

func TestWhatIsInFlightWhenABetterHostTakesOverIsNotLost(t *testing.T) {
	onHosts(t, []string{"a", "b"}, func(_ *Config, ways *roads) { ways.closed["a"] = true }, func(r *rig, h *host, ways *roads) {
		wantOn(t, r, h, "b", 1)
		silent(h)
		ways.set(ways.closed, "a", false)
		pass(59 * time.Second)
		a := r.exchange(request(2))
		l, m := last(h, "000002")
		pass(time.Second)
		if got := r.Status()[0]; got.State != InService || got.Host != 0 || got.InFlight != 1 {
			t.Errorf("got %+v", got)
		}
		h.script(func(h *host) { h.handle = nil })
		wantOn(t, r, h, "a", 3)
		if got := l.seen(); slices.Contains(got, "0800/002") {
			t.Errorf("signed off with an exchange in flight: %v", got)
		}
		pass(5 * time.Second)
		l.answer(m, "00") // on the connection that drains
		a.want(t, nil)
		synctest.Wait()
		if got := l.seen(); got[len(got)-1] != "0800/002" {
			t.Errorf("%v, want a sign-off at the end", got)
		}
		if got := r.Status()[0]; got.LastError != string(causeDial) || got.Reconnects != 2 {
			t.Errorf("got %+v: moving back is no failure", got)
		}
		if got := h.at("a")[0].seen(); !slices.Equal(got, []string{"0800/001", "0100/000003"}) {
			t.Errorf("a received %v", got)
		}
		pass(time.Hour)
		if n := len(ways.dialled()); n != 3 {
			t.Errorf("%d dials: on the best host there is nothing to try", n)
		}
	})
}

func TestADrainingConnectionThatIsLostLeavesItsExchangesWaiting(t *testing.T) {
	onHosts(t, []string{"a", "b"}, func(_ *Config, ways *roads) { ways.closed["a"] = true }, func(r *rig, h *host, ways *roads) {
		silent(h)
		ways.set(ways.closed, "a", false)
		pass(59 * time.Second)
		a, b := r.exchange(request(2)), r.exchange(request(3))
		l, m := last(h, "000002")
		pass(time.Second)
		_ = l.Close()
		pass(time.Second)
		h.at("a")[0].answer(m, "00")
		a.want(t, nil)
		b.want(t, ErrTimeout)
		if b.took != 10*time.Second {
			t.Errorf("took %v", b.took)
		}
	})
}

func TestABetterHostThatCannotServeDisturbsNothing(t *testing.T) {
	for name, c := range map[string]struct {
		want    cause
		prepare func(h *host, ways *roads)
	}{
		"refuses the dial":       {causeDial, func(*host, *roads) {}},
		"does not answer a dial": {causeDial, func(_ *host, ways *roads) { ways.set(ways.lost, "a", true) }},
		"refuses the sign-on": {causeSignOnRefused, func(h *host, ways *roads) {
			ways.set(ways.closed, "a", false)
			h.script(func(h *host) {
				h.manage = func(l *hostLink, m *messages.Message) {
					l.answer(m, map[string]string{"a": "05", "b": "00"}[l.address])
				}
			})
		}},
		"does not answer the sign-on": {causeSignOnTimeout, func(h *host, ways *roads) {
			ways.set(ways.closed, "a", false)
			h.script(func(h *host) {
				h.manage = func(l *hostLink, m *messages.Message) {
					if l.address == "b" {
						l.answer(m, "00")
					}
				}
			})
		}},
	} {
		t.Run(name, func(t *testing.T) {
			onHosts(t, []string{"a", "b"}, func(_ *Config, ways *roads) { ways.closed["a"] = true }, func(r *rig, h *host, ways *roads) {
				c.prepare(h, ways)
				for stan := range 300 {
					wantOn(t, r, h, "b", stan)
					pass(time.Second)
				}
				if n := len(h.at("b")); n != 1 {
					t.Errorf("%d connections to b", n)
				}
				if got, dials := r.Status()[0], len(ways.dialled()); got.State != InService || got.Host != 1 || got.LastError != string(c.want) || dials != 2+4 && dials != 2+5 {
					t.Errorf("got %+v, %d dials", got, dials)
				}
				h.script(func(h *host) { h.manage = nil })
				ways.set(ways.closed, "a", false)
				ways.set(ways.lost, "a", false)
				pass(2 * time.Minute)
				wantOn(t, r, h, "a", 301)
			})
		})
	}
}

func TestTheHostInUseIsLostWhileABetterOneIsTried(t *testing.T) {
	for name, signsOn := range map[string]bool{"which then serves": true, "which serves neither": false} {
		t.Run(name, func(t *testing.T) {
			onHosts(t, []string{"a", "b"}, func(_ *Config, ways *roads) { ways.closed["a"] = true }, func(r *rig, h *host, ways *roads) {
				ways.set(ways.closed, "a", false)
				h.script(func(h *host) {
					h.manage = func(l *hostLink, m *messages.Message) {
						if l.address == "b" {
							l.answer(m, "00")
						}
					}
				})
				pass(61 * time.Second) // a is asked to accept the sign-on
				if n := len(h.at("a")); n != 1 {
					t.Fatalf("%d connections to a", n)
				}
				if signsOn {
					h.script(func(h *host) { h.manage = nil })
				}
				_ = h.at("b")[0].Close()
				pass(10 * time.Second)
				h.script(func(h *host) { h.manage = nil })
				wantOn(t, r, h, map[bool]string{true: "a", false: "b"}[signsOn], 1)
				pass(2 * time.Minute)
				wantOn(t, r, h, "a", 2)
			})
		})
	}
}

func TestAHostThatSignsOffIsLeftForTheNextAtOnceAndDrains(t *testing.T) {
	onHosts(t, []string{"a", "b"}, nil, func(r *rig, h *host, _ *roads) {
		silent(h)
		a := r.exchange(request(1))
		l, m := last(h, "000001")
		h.script(func(h *host) { h.handle = nil })
		l.send(management("002", "0102030405", "000777"))
		synctest.Wait()
		wantOn(t, r, h, "b", 2)
		if got := r.Status()[0]; got.State != InService || got.Host != 1 || got.InFlight != 1 {
			t.Errorf("got %+v", got)
		}
		pass(5 * time.Second)
		l.answer(m, "00")
		a.want(t, nil)
		synctest.Wait()
		if got := l.seen(); !slices.Equal(got, []string{"0800/001", "0100/000001", "0810/002"}) || !l.isClosed() {
			t.Errorf("received %v", got)
		}
		if got := r.Status()[0]; got.LastError != string(causeSignedOffByPeer) || got.InFlight != 0 {
			t.Errorf("got %+v", got)
		}
		pass(time.Minute)
		wantOn(t, r, h, "a", 3)
	})
}

func TestTheNextHostDoesNotWaitForABetterOneThatIsTried(t *testing.T) {
	onHosts(t, []string{"a", "b", "c"}, func(_ *Config, ways *roads) { ways.closed["a"] = true }, func(r *rig, h *host, ways *roads) {
		ways.set(ways.closed, "a", false)
		ways.set(ways.lost, "a", true)
		pass(61 * time.Second)
		if got := ways.dialled(); !slices.Equal(got, []string{"a", "b", "a"}) {
			t.Fatalf("dialled %v", got)
		}
		_ = h.at("b")[0].Close()
		synctest.Wait()
		wantOn(t, r, h, "c", 1)
		ways.set(ways.lost, "a", false)
		pass(time.Minute)
		wantOn(t, r, h, "a", 2)
	})
}

func TestStoppingWhileABetterHostIsTriedLeavesNothing(t *testing.T) {
	onHosts(t, []string{"a", "b"}, func(_ *Config, ways *roads) { ways.closed["a"] = true }, func(r *rig, h *host, ways *roads) {
		ways.set(ways.closed, "a", false)
		h.script(func(h *host) {
			h.manage = func(l *hostLink, m *messages.Message) {
				if l.address == "b" {
					l.answer(m, "00")
				}
			}
		})
		pass(61 * time.Second)
		began := time.Now()
		r.stop()
		if err := <-r.ended; err != nil || time.Since(began) != 0 {
			t.Errorf("after %v: %v", time.Since(began), err)
		}
		r.ended <- nil // for the rig
		r.wantStates(Down)
		if got := h.at("b")[0].seen(); got[len(got)-1] != "0800/002" {
			t.Errorf("b received %v", got)
		}
	})
}

// A host that takes connections and closes them at once, as a balancer without a server does, is not better than one that serves.
func TestWithoutASignOnAHostThatClosesAtOnceTakesNoTraffic(t *testing.T) {
	onHosts(t, []string{"a", "b"}, func(c *Config, ways *roads) {
		c.Codec.Dialect().NetworkManagement.SignOn = ""
		ways.closed["a"] = true
	}, func(r *rig, h *host, ways *roads) {
		serving := h.at("b")[0]
		h.script(func(h *host) {
			h.slow = func(l *hostLink) {
				if l.address == "a" {
					_ = l.Close()
				}
			}
		})
		ways.set(ways.closed, "a", false)
		pass(61 * time.Second)
		if serving.isClosed() || !r.InService() {
			t.Errorf("the host that serves was left for one that closes at once: %+v", r.Status())
		}
	})
}

func TestWithoutASignOnTheEchoThatStandsForItDecides(t *testing.T) {
	for code, want := range map[string]LinkStatus{
		"00": {State: InService}, "05": {State: Down, LastError: string(causeSignOnRefused)}, "": {State: Down, LastError: string(causeSignOnTimeout)},
	} {
		synctest.Test(t, func(t *testing.T) {
			h := newHost(t, "iso87-ascii")
			h.codec.Dialect().NetworkManagement.SignOn = ""
			h.manage = func(l *hostLink, m *messages.Message) {
				if m.Get(messages.NetworkManagement) == "002" {
					l.answer(m, "00")
				} else if code != "" {
					l.answer(m, code)
				}
			}
			cfg := config(h)
			cfg.Links = Dialled("one")
			r := start(t, cfg, h)
			defer r.end()
			pass(4100 * time.Millisecond)
			if got := r.Status()[0]; got.State != want.State || got.LastError != want.LastError {
				t.Errorf("%q: got %+v", code, got)
			}
			if got := h.open()[0].seen(); !slices.Equal(got, []string{"0800/301"}) {
				t.Errorf("%q: received %v", code, got)
			}
		})
	}
}
