package conn

import (
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"acquirerd/messages"
)

// silent reads requests and answers nothing.
func silent(h *host) {
	h.script(func(h *host) { h.handle = func(*hostLink, *messages.Message) {} })
}

// last waits until nothing moves and returns the link that received a transaction last, with that.
func last(h *host, stan string) (*hostLink, *messages.Message) {
	synctest.Wait()
	for _, l := range h.open() {
		l.mu.Lock()
		for _, m := range l.received {
			if m.MTI.Class() != messages.Network && m.Get(messages.STAN) == stan {
				l.mu.Unlock()
				return l, m
			}
		}
		l.mu.Unlock()
	}
	h.t.Fatalf("the host has not received %s", stan)
	return nil, nil
}

func TestAnAnswerEndsItsExchange(t *testing.T) {
	inBubble(t, nil, func(r *rig, h *host) {
		for stan := 1; stan <= 10; stan++ {
			r.exchange(request(stan)).want(t, nil)
		}
		r.wantAnswers(kindMatched, 12) // and two sign-ons
		if got := r.metric("acquirerd_exchange_seconds", "processor-a"); got != 10 {
			t.Errorf("observed %v exchanges, want 10", got)
		}
		if got := r.metric("acquirerd_exchanges_in_flight"); got != 0 {
			t.Errorf("in flight: %v", got)
		}
		for i, l := range h.open() {
			if got := len(l.seen()); got != 6 {
				t.Errorf("link %d carried %d messages, want a sign-on and half of 10", i, got)
			}
		}
	})
}

// wantTraced checks that an exchange names the link on which the host has received its request.
func wantTraced(t *testing.T, r *rig, h *host, a *attempt) {
	t.Helper()
	carried, _ := last(h, a.request.Get(messages.STAN))
	if a.trace.Link < 0 || r.config().Links[a.trace.Link].Hosts[0] != carried.address {
		t.Errorf("traced to link %d, and received on %q", a.trace.Link, carried.address)
	}
}

func TestATraceNamesTheLink(t *testing.T) {
	inBubble(t, nil, func(r *rig, h *host) {
		links := map[int]bool{}
		for stan := 1; stan <= 4; stan++ {
			a := r.exchange(request(stan))
			a.want(t, nil)
			wantTraced(t, r, h, a)
			links[a.trace.Link] = true
		}
		if len(links) != 2 {
			t.Errorf("links %v, want both", links)
		}
		silent(h)
		a := r.exchange(request(5))
		a.want(t, ErrTimeout)
		wantTraced(t, r, h, a)
	})
}

func TestAnswersComeInAnyOrderOverTwoLinks(t *testing.T) {
	inBubble(t, nil, func(r *rig, h *host) {
		type arrival struct {
			l *hostLink
			m *messages.Message
		}
		var mu sync.Mutex
		var arrived []arrival
		h.script(func(h *host) {
			h.handle = func(l *hostLink, m *messages.Message) {
				mu.Lock()
				defer mu.Unlock()
				arrived = append(arrived, arrival{l, m})
			}
		})
		var attempts []*attempt
		for stan := 1; stan <= 60; stan++ {
			attempts = append(attempts, r.exchange(request(stan)))
		}
		synctest.Wait()
		rand.New(rand.NewPCG(1, 2)).Shuffle(len(arrived), func(i, j int) { arrived[i], arrived[j] = arrived[j], arrived[i] })
		for _, a := range arrived {
			a.l.answer(a.m, "00")
		}
		for _, a := range attempts {
			a.want(t, nil)
		}
	})
}

func TestAnAnswerMayComeOnTheOtherLink(t *testing.T) {
	inBubble(t, nil, func(r *rig, h *host) {
		silent(h)
		a := r.exchange(request(1))
		carried, m := last(h, "000001")
		for _, l := range h.open() {
			if l != carried {
				l.answer(m, "00")
			}
		}
		a.want(t, nil)
	})
}

func TestTheLossOfALinkIsNotAnAnswer(t *testing.T) {
	inBubble(t, func(c *Config) { c.Links = c.Links[:1] }, func(r *rig, h *host) {
		silent(h)
		a := r.exchange(request(1))
		carried, m := last(h, "000001")
		_ = carried.Close()
		synctest.Wait()
		if !a.running() || r.InService() {
			t.Fatalf("running %v, in service %v", a.running(), r.InService())
		}
		pass(3 * time.Second)
		links := h.open()
		if len(links) != 2 || !r.InService() {
			t.Fatalf("%d connections, in service %v", len(links), r.InService())
		}
		links[1].answer(m, "00")
		a.want(t, nil)
		if got := r.metric("acquirerd_link_reconnects_total"); got != 1 {
			t.Errorf("reconnects: %v", got)
		}
	})
}

func TestNoAnswerIsATimeoutAndALateOneIsHandedOver(t *testing.T) {
	inBubble(t, nil, func(r *rig, h *host) {
		silent(h)
		a := r.exchange(request(1))
		l, m := last(h, "000001")
		a.want(t, ErrTimeout)
		if a.took != 10*time.Second || errors.Is(a.err, ErrNotSent) {
			t.Errorf("took %v: %v", a.took, a.err)
		}
		pass(80 * time.Second)
		l.answer(m, "00")
		l.answer(m, "00")
		synctest.Wait()
		r.wantAnswers(kindLate, 1)
		r.wantAnswers(kindDuplicate, 1)
		if got := r.arrivals(); !slices.Equal(got, []Arrival{Late, Second}) {
			t.Errorf("inbound got %v", got)
		}
	})
}

func TestADeadlineOfTheContextEndsTheWaitButItsCancellationDoesNot(t *testing.T) {
	inBubble(t, nil, func(r *rig, h *host) {
		silent(h)
		ctx, cancel := context.WithTimeout(context.Background(), 3*time.Second)
		began := time.Now()
		_, err := r.Exchange(ctx, request(1))
		cancel()
		if took := time.Since(began); took != 3*time.Second || !errors.Is(err, ErrTimeout) {
			t.Errorf("took %v: %v", took, err)
		}
		ctx, cancel = context.WithCancel(context.Background())
		time.AfterFunc(time.Second, cancel)
		began = time.Now()
		_, err = r.Exchange(ctx, request(2))
		if took := time.Since(began); took != 10*time.Second || !errors.Is(err, ErrTimeout) {
			t.Errorf("took %v: %v", took, err)
		}
		if _, err = r.Exchange(ctx, request(3)); !errors.Is(err, ErrNotSent) || !errors.Is(err, context.Canceled) {
			t.Errorf("a context that had ended: %v", err)
		}
	})
}

func TestAKeyInFlightOrAbandonedIsRefused(t *testing.T) {
	inBubble(t, nil, func(r *rig, h *host) {
		silent(h)
		a := r.exchange(request(1))
		last(h, "000001")
		b := r.exchange(request(1))
		b.want(t, ErrNotSent)
		if !errors.Is(b.err, errKeyInFlight) {
			t.Error(b.err)
		}
		a.want(t, ErrTimeout)
		for range 9 {
			pass(10 * time.Second)
			b := r.exchange(request(1))
			if b.want(t, ErrNotSent); !errors.Is(b.err, errKeyRemembered) {
				t.Error(b.err)
			}
		}
		received := 0
		for _, n := range h.requests() {
			received += n
		}
		if received != 1 {
			t.Errorf("host received %d transactions, want 1", received)
		}
		pass(11 * time.Second) // ten reply timeouts are over
		c := r.exchange(request(1))
		l, m := last(h, "000001")
		l.answer(m, "00")
		c.want(t, nil)
	})
}

func TestAnAnsweredKeyIsRefusedForOneReplyTimeout(t *testing.T) {
	inBubble(t, nil, func(r *rig, h *host) {
		r.exchange(request(1)).want(t, nil)
		r.exchange(request(1)).want(t, ErrNotSent)
		pass(10 * time.Second)
		r.exchange(request(1)).want(t, nil)
	})
}

func TestARepeatTakesTheKeyOfItsAdviceOver(t *testing.T) {
	inBubble(t, nil, func(r *rig, h *host) {
		silent(h)
		a := r.exchange(requestOf("0420", 1))
		l, m := last(h, "000001")
		a.want(t, ErrTimeout)
		repeat := r.exchange(requestOf("0421", 1))
		synctest.Wait()
		second := r.exchange(requestOf("0421", 1))
		second.want(t, ErrNotSent)
		l.answer(m, "00") // the late answer to the first
		repeat.want(t, nil)
		if n := h.requests()["000001"]; n != 2 {
			t.Errorf("the host received %d, want 0420 and 0421", n)
		}
		// After an answer that did not settle it, it may be repeated at once too.
		again := r.exchange(requestOf("0421", 1))
		synctest.Wait()
		l.answer(m, "00")
		again.want(t, nil)
	})
}

func TestARepeatThatIsNotSentLeavesItsAdviceAbandoned(t *testing.T) {
	inBubble(t, nil, func(r *rig, h *host) {
		silent(h)
		a := r.exchange(requestOf("0420", 1))
		_, m := last(h, "000001")
		a.want(t, ErrTimeout)
		h.script(func(h *host) { h.refuse = func(int) error { return errors.New("refused") } })
		now := time.Now()
		r.Endpoint.mu.Lock()
		x := &exchange{key: mustKey(t, h, requestOf("0421", 1)), request: requestOf("0421", 1), session: r.links[0].session, done: make(chan result, 1)}
		if err := r.pending.add(x, now); err != nil {
			t.Error(err)
		}
		if r.pending.abandoned != 0 {
			t.Errorf("abandoned: %d", r.pending.abandoned)
		}
		r.pending.withdraw(x, now)
		if r.pending.abandoned != 1 || r.pending.inFlight != 0 {
			t.Errorf("abandoned %d, in flight %d", r.pending.abandoned, r.pending.inFlight)
		}
		r.Endpoint.mu.Unlock()
		h.open()[0].answer(m, "00")
		synctest.Wait()
		r.wantAnswers(kindLate, 1)
	})
}

func mustKey(t *testing.T, h *host, m *messages.Message) messages.Key {
	key, ok := h.codec.Key(m)
	if !ok {
		t.Fatal("no key")
	}
	return key
}

func TestASecondAnswerIsHandedOver(t *testing.T) {
	inBubble(t, nil, func(r *rig, h *host) {
		h.script(func(h *host) {
			h.handle = func(l *hostLink, m *messages.Message) { l.answer(m, "00"); l.answer(m, "00") }
		})
		r.exchange(request(1)).want(t, nil)
		r.exchange(request(2)).want(t, nil)
		synctest.Wait()
		r.wantAnswers(kindDuplicate, 2)
		if got := r.arrivals(); !slices.Equal(got, []Arrival{Second, Second}) {
			t.Errorf("inbound got %v", got)
		}
	})
}

func TestAnAnswerThatIsNotTheRequestsDoesNotEndIt(t *testing.T) {
	for name, spoil := range map[string]func(answer *messages.Message){
		"without a STAN":             func(a *messages.Message) { a.Delete(messages.STAN) },
		"another STAN":               func(a *messages.Message) { a.Set(messages.STAN, "000099") },
		"another transmission time":  func(a *messages.Message) { a.Set(messages.TransmissionTime, "0102030406") },
		"another terminal":           func(a *messages.Message) { a.Set(messages.Terminal, "TERM0002") },
		"a 0410 with the same STAN":  func(a *messages.Message) { a.MTI = "0410" },
		"a 0430 with the same STAN":  func(a *messages.Message) { a.MTI = "0430" },
		"a 0810 with the same STAN":  func(a *messages.Message) { a.MTI = "0810" },
		"an advice's, with the same": func(a *messages.Message) { a.MTI = "0130" },
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, nil, func(r *rig, h *host) {
				h.script(func(h *host) {
					h.handle = func(l *hostLink, m *messages.Message) {
						answer := messages.NewAnswer(m, "00")
						spoil(answer)
						l.send(answer)
					}
				})
				a := r.exchange(request(1))
				a.want(t, ErrTimeout)
				if a.took != 10*time.Second {
					t.Errorf("took %v", a.took)
				}
				if n := r.metric("acquirerd_answers_total", string(kindUnmatched)) + r.metric("acquirerd_answers_total", string(kindUndecodable)); n != 1 {
					t.Errorf("not counted: %v", n)
				}
			})
		})
	}
}

func TestAnAnswerThatDisagreesIsAMismatch(t *testing.T) {
	for name, spoil := range map[string]func(answer *messages.Message){
		"amount":   func(a *messages.Message) { a.Set(messages.Amount, "000000000001") },
		"currency": func(a *messages.Message) { a.Set(messages.Currency, "840") },
		"pan":      func(a *messages.Message) { a.SetSensitive(messages.PAN, "5555555555554444") },
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, nil, func(r *rig, h *host) {
				h.script(func(h *host) {
					h.handle = func(l *hostLink, m *messages.Message) {
						answer := messages.NewAnswer(m, "00")
						spoil(answer)
						l.send(answer)
						l.answer(m, "00") // what it should have said first
					}
				})
				a := r.exchange(request(1))
				a.want(t, ErrMismatch)
				synctest.Wait()
				r.wantAnswers(kindMismatch, 1)
				r.wantAnswers(kindLate, 1)
				r.exchange(request(1)).want(t, ErrNotSent)
			})
		})
	}
}

// receiving waits until the host's bytes settle, runs send, and fails if any byte left.
func noByte(t *testing.T, r *rig, h *host, send func() *attempt) {
	t.Helper()
	synctest.Wait()
	before := h.traffic()
	a := send()
	a.want(t, ErrNotSent)
	synctest.Wait()
	if after := h.traffic(); after != before {
		t.Errorf("%d bytes left for a request that was not sent", after-before)
	}
}

func TestNotSentProvesThatNoByteLeft(t *testing.T) {
	t.Run("no link is in service", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			h := newHost(t, "iso87-ascii")
			h.manage = func(*hostLink, *messages.Message) {} // no sign-on is answered
			r := start(t, config(h), h)
			defer r.end()
			synctest.Wait()
			r.wantStates(Connected, Connected)
			var a *attempt
			noByte(t, r, h, func() *attempt { a = r.exchange(request(1)); return a })
			if a.trace.Link != -1 {
				t.Errorf("traced to link %d", a.trace.Link)
			}
		})
	})
	t.Run("the endpoint is full", func(t *testing.T) {
		inBubble(t, func(c *Config) { c.InFlight = 2 }, func(r *rig, h *host) {
			silent(h)
			a, b := r.exchange(request(1)), r.exchange(request(2))
			noByte(t, r, h, func() *attempt { return r.exchange(request(3)) })
			a.want(t, ErrTimeout)
			b.want(t, ErrTimeout)
		})
	})
	t.Run("the links are full", func(t *testing.T) {
		inBubble(t, func(c *Config) { c.LinkInFlight = 1 }, func(r *rig, h *host) {
			silent(h)
			a, b := r.exchange(request(1)), r.exchange(request(2))
			noByte(t, r, h, func() *attempt { return r.exchange(request(3)) })
			a.want(t, ErrTimeout)
			b.want(t, ErrTimeout)
		})
	})
	t.Run("too many wait for late answers", func(t *testing.T) {
		inBubble(t, func(c *Config) { c.Abandoned = 2 }, func(r *rig, h *host) {
			silent(h)
			a, b := r.exchange(requestOf("0420", 1)), r.exchange(request(2))
			a.want(t, ErrTimeout)
			b.want(t, ErrTimeout)
			noByte(t, r, h, func() *attempt { return r.exchange(request(3)) })
			if got := r.metric("acquirerd_exchanges_abandoned"); got != 2 {
				t.Errorf("abandoned: %v", got)
			}
			// What is owed can be repeated all the same.
			repeat := r.exchange(requestOf("0421", 1))
			repeat.want(t, ErrTimeout)
			pass(90 * time.Second)
			h.script(func(h *host) { h.handle = nil })
			r.exchange(request(3)).want(t, nil)
		})
	})
	t.Run("the endpoint drains", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			h := newHost(t, "iso87-ascii")
			r := start(t, config(h), h)
			defer r.end()
			synctest.Wait()
			silent(h)
			a := r.exchange(request(1))
			synctest.Wait()
			r.stop()
			noByte(t, r, h, func() *attempt { return r.exchange(request(2)) })
			if r.InService() {
				t.Error("in service while it drains")
			}
			l, m := last(h, "000001")
			l.answer(m, "00")
			a.want(t, nil)
		})
	})
	t.Run("the request does not fit the dialect", func(t *testing.T) {
		inBubble(t, nil, func(r *rig, h *host) {
			m := request(1)
			m.Set(messages.Amount, "12")
			a := func() *attempt { return r.exchange(m) }
			noByte(t, r, h, a)
			var format *messages.FormatError
			if b := a(); true {
				<-b.done
				if !errors.As(b.err, &format) || format.Element != messages.Amount {
					t.Errorf("got %v", b.err)
				}
			}
		})
	})
	t.Run("it is not a request, or has no key", func(t *testing.T) {
		inBubble(t, nil, func(r *rig, h *host) {
			noByte(t, r, h, func() *attempt { return r.exchange(requestOf("0110", 1)) })
			m := request(1)
			m.Delete(messages.STAN)
			noByte(t, r, h, func() *attempt { return r.exchange(m) })
		})
	})
	t.Run("before Run and after it", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			h := newHost(t, "iso87-ascii")
			r := start(t, config(h), h)
			synctest.Wait()
			r.end()
			r.exchange(request(1)).want(t, ErrNotSent)
			r.wantStates(Down, Down)
			if err := r.Run(context.Background(), nil); err == nil {
				t.Error("a second Run")
			}
		})
	})
}

func TestAPeerThatStopsReadingIsCutAndTheRequestMayHaveBeenSent(t *testing.T) {
	for name, read := range map[string]int{"at the frame's begin": 4, "inside the frame": 30} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, nil, func(r *rig, h *host) {
				silent(h)
				stuck, other := h.open()[0], h.open()[1]
				most := stuck.bytes() + read
				h.script(func(h *host) {
					h.deaf = func(l *hostLink) (int, bool) { return most, l == stuck }
				})
				var attempts []*attempt
				for stan := 1; stan <= 4; stan++ { // two for each link
					attempts = append(attempts, r.exchange(request(stan)))
					synctest.Wait()
				}
				pass(3 * time.Second)
				for _, m := range other.received {
					if m.MTI.Class() != messages.Network {
						other.answer(m, "00")
					}
				}
				answered, failed := 0, 0
				for _, a := range attempts {
					switch <-a.done; {
					case a.err == nil:
						answered++
					case errors.Is(a.err, ErrWrite) && !errors.Is(a.err, ErrNotSent) && a.took == 10*time.Second:
						failed++
					default:
						t.Errorf("after %v: %v", a.took, a.err)
					}
				}
				// One was being written. The one that waited for its turn behind it went out on the other link.
				if answered != 3 || failed != 1 {
					t.Errorf("%d answered, %d failed", answered, failed)
				}
				for _, status := range r.Status() {
					if status.Address == stuck.address && status.LastError != string(causeWrite) {
						t.Errorf("last error %q", status.LastError)
					}
				}
				r.wantStates(InService, InService)
				h.script(func(h *host) {
					if h.dropped != 1 {
						t.Errorf("%d connections were closed with what stood in their buffers, want the stuck one", h.dropped)
					}
				})
			})
		})
	}
}

func TestAnAnswerAfterAFailedWriteIsTheAnswer(t *testing.T) {
	inBubble(t, nil, func(r *rig, h *host) {
		silent(h)
		stuck := h.open()[0]
		most := stuck.bytes() + 30
		h.script(func(h *host) {
			h.deaf = func(l *hostLink) (int, bool) { return most, l == stuck }
		})
		a, b := r.exchange(request(1)), r.exchange(request(2))
		pass(3 * time.Second) // the frame's last bytes could have arrived
		h.open()[1].answer(request(1), "00")
		h.open()[1].answer(request(2), "00")
		a.want(t, nil)
		b.want(t, nil)
	})
}

func TestAReplyThatMeetsTheTimeoutIsNeverLost(t *testing.T) {
	inBubble(t, func(c *Config) { c.InFlight = 200 }, func(r *rig, h *host) {
		h.script(func(h *host) {
			h.handle = func(l *hostLink, m *messages.Message) {
				time.AfterFunc(10*time.Second, func() { l.answer(m, "00") })
			}
		})
		var attempts []*attempt
		for stan := 1; stan <= 200; stan++ {
			attempts = append(attempts, r.exchange(request(stan)))
		}
		answered := 0
		for _, a := range attempts {
			if <-a.done; a.err == nil {
				answered++
			} else {
				a.want(t, ErrTimeout)
			}
		}
		synctest.Wait()
		matched := r.metric("acquirerd_answers_total", string(kindMatched)) - 2
		late := r.metric("acquirerd_answers_total", string(kindLate))
		if int(matched) != answered || matched+late != 200 || len(r.unaskedMTIs()) != int(late) {
			t.Errorf("%d answered, %v matched, %v late, %d handed over", answered, matched, late, len(r.unaskedMTIs()))
		}
	})
}

func TestAPeerThatDropsAtTheTimeoutHangsNobody(t *testing.T) {
	inBubble(t, func(c *Config) { c.InFlight, c.BackoffMax, c.LinkInFlight = 20, time.Second, 20 }, func(r *rig, h *host) {
		h.script(func(h *host) {
			h.handle = func(l *hostLink, m *messages.Message) {
				time.AfterFunc(10*time.Second, func() { _ = l.Close() })
			}
		})
		for round := range 100 {
			var attempts []*attempt
			for i := range 8 {
				attempts = append(attempts, r.exchange(request(10*round+i)))
			}
			for _, a := range attempts {
				a.want(t, ErrTimeout)
			}
			pass(2 * time.Second)
			r.wantStates(InService, InService)
		}
	})
}

func TestAPeerThatAnswersAndClosesHasAnswered(t *testing.T) {
	inBubble(t, func(c *Config) { c.BackoffMax = time.Second }, func(r *rig, h *host) {
		h.script(func(h *host) {
			h.handle = func(l *hostLink, m *messages.Message) { l.answer(m, "00"); _ = l.Close() }
		})
		for stan := range 20 {
			r.exchange(request(stan)).want(t, nil)
			pass(2 * time.Second)
		}
	})
}

func TestWaitingForATurnToWriteIsNotSent(t *testing.T) {
	inBubble(t, func(c *Config) { c.Links, c.WriteTimeout = c.Links[:1], 9*time.Second }, func(r *rig, h *host) {
		stuck := h.open()[0]
		most := stuck.bytes() + 30
		h.script(func(h *host) { h.deaf = func(l *hostLink) (int, bool) { return most, l == stuck } })
		a := r.exchange(request(1))
		synctest.Wait()
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		_, err := r.Exchange(ctx, request(2))
		if !errors.Is(err, ErrNotSent) || !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v", err)
		}
		a.want(t, ErrWrite)
		pass(2 * time.Second)
		r.exchange(request(2)).want(t, nil) // its key is free
		if n := h.requests(); n["000001"] != 0 || n["000002"] != 1 {
			t.Errorf("received %v", n)
		}
	})
}

func TestARequestMovesFromALinkThatCloses(t *testing.T) {
	for range 50 {
		inBubble(t, nil, func(r *rig, h *host) {
			r.Endpoint.mu.Lock()
			s := r.links[r.turn%2].session // the next to be chosen
			r.Endpoint.mu.Unlock()
			_ = s.wire.Close() // and nobody has noticed
			a := r.exchange(request(1))
			a.want(t, nil)
			if n := h.requests()["000001"]; n != 1 {
				t.Errorf("received %d times", n)
			}
			wantTraced(t, r, h, a)
		})
	}
}
