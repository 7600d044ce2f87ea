package conn

import (
	"context"
	"net"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"acquirerd/messages"
)

// A swallowing connection's writes, once it is full, stay in the buffer of this host: they succeed, and the processor does not read them.
type swallowing struct {
	lingering
	full *atomic.Bool
}

func (s swallowing) Write(p []byte) (int, error) {
	if s.full.Load() {
		return len(p), nil
	}
	return s.lingering.Write(p)
}

// The exchange ends as Unknown and is reversed on another link. If its request is still in our buffer, the close must not deliver it after
// its reversal.
func TestACloseOfAStalledLinkDropsWhatWasNotTaken(t *testing.T) {
	for name, leave := range map[string]func(r *rig) error{
		"drained": func(r *rig) error { return r.Drain(0) },
		"removed": func(r *rig) error {
			return r.reconfigure(func(c *Config) { c.Links = Dialled("two") })
		},
		"stopped": func(r *rig) error { r.stop(); return nil },
		"stalled inside a frame": func(r *rig) error {
			go r.host.open()[0].write([]byte("0"))
			return nil
		},
	} {
		t.Run(name, func(t *testing.T) {
			var full, later atomic.Bool // the first connection's buffer alone fills up
			inBubble(t, func(c *Config) {
				dial := c.Dial
				c.Links = Dialled("one")
				c.Dial = func(ctx context.Context, address string) (net.Conn, error) {
					under, err := dial(ctx, address)
					if err != nil || later.Swap(true) {
						return under, err
					}
					return swallowing{under.(lingering), &full}, nil
				}
			}, func(r *rig, h *host) {
				full.Store(true)
				a := r.exchange(request(1))
				synctest.Wait()
				if err := leave(r); err != nil {
					t.Fatal(err)
				}
				a.want(t, ErrTimeout)
				pass(time.Minute)
				h.script(func(h *host) {
					if h.dropped != 1 {
						t.Errorf("%d connections were closed with what stood in their buffers, want 1", h.dropped)
					}
				})
			})
		})
	}
}

// Many processors close the connection as their answer to a sign-off. That is the end that was asked for.
func TestAProcessorThatClosesAtTheSignOffIsNoFailure(t *testing.T) {
	inBubble(t, func(c *Config) { c.Links = Dialled("one") }, func(r *rig, h *host) {
		h.script(func(h *host) {
			h.manage = func(l *hostLink, m *messages.Message) {
				if m.Get(messages.NetworkManagement) == "002" {
					_ = l.Close()
				} else {
					l.answer(m, "00")
				}
			}
		})
		if err := r.Drain(0); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if got := r.Status()[0]; got.State != Down || got.LastError != "" {
			t.Errorf("got %+v", got)
		}
	})
}

// A confirmed sign-off shows that everything before it was read; without one nobody knows.
func TestAnExchangeWithoutAnAnswerIsDroppedUnlessTheSignOffIsConfirmed(t *testing.T) {
	for name, c := range map[string]struct {
		signOff string
		want    int
	}{"confirmed": {"002", 0}, "of a dialect without one": {"", 1}} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(cfg *Config) {
				cfg.Links = Dialled("one")
				cfg.Codec.Dialect().NetworkManagement.SignOff = c.signOff
			}, func(r *rig, h *host) {
				silent(h)
				r.exchange(request(1)).want(t, ErrTimeout)
				if err := r.Drain(0); err != nil {
					t.Fatal(err)
				}
				synctest.Wait()
				r.wantStates(Down)
				h.script(func(h *host) {
					if h.dropped != c.want {
						t.Errorf("%d connections were closed with what stood in their buffers, want %d", h.dropped, c.want)
					}
				})
			})
		})
	}
}

// It waits for its answer elsewhere, and the processor may read on the connection whose sending half it has closed.
func TestALostConnectionWithAnExchangeInFlightIsDropped(t *testing.T) {
	inBubble(t, func(c *Config) { c.Links = Dialled("one") }, func(r *rig, h *host) {
		silent(h)
		a := r.exchange(request(1))
		l, _ := last(h, "000001")
		_ = l.Close()
		synctest.Wait()
		h.script(func(h *host) {
			if h.dropped != 1 {
				t.Errorf("%d connections were closed with what stood in their buffers, want 1", h.dropped)
			}
		})
		a.want(t, ErrTimeout)
	})
}

// At a kill of the process nobody closes anything in good order: what a stalled link still holds must not arrive after its reversal.
func TestAKillDeliversNothingThatAStalledLinkStillHolds(t *testing.T) {
	var dialled []lingering
	inBubble(t, func(c *Config) {
		dial := c.Dial
		c.Dial = func(ctx context.Context, address string) (net.Conn, error) {
			under, err := dial(ctx, address)
			if is, ours := under.(lingering); ours {
				dialled = append(dialled, is)
			}
			return under, err
		}
	}, func(_ *rig, h *host) {
		h.mu.Lock()
		defer h.mu.Unlock()
		for i, c := range dialled {
			if !*c.drops {
				t.Errorf("connection %d would be delivered by the system", i)
			}
		}
		if len(dialled) != 2 {
			t.Errorf("%d connections", len(dialled))
		}
	})
}
