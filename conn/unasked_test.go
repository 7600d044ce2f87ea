package conn

import (
	"context"
	"errors"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"acquirerd/messages"
)

// demanded waits for what arrived unasked, and returns the nth.
func (r *rig) demanded(n int) Unasked {
	r.t.Helper()
	synctest.Wait()
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.inbox) <= n {
		r.t.Fatalf("%d messages arrived", len(r.inbox))
	}
	return r.inbox[n]
}

func keyChange() *messages.Message {
	return management("161", "0102030405", "000778")
}

func TestWhatTheProcessorDemandsIsAnsweredWhereItCame(t *testing.T) {
	inBubble(t, nil, func(r *rig, h *host) {
		for i, l := range h.open() {
			l.send(keyChange())
			m := r.demanded(i)
			if err := m.Reply(context.Background(), messages.NewAnswer(m.Message, "00")); err != nil {
				t.Fatal(err)
			}
			synctest.Wait()
			if got := l.seen(); !slices.Equal(got, []string{"0800/001", "0810/161"}) {
				t.Errorf("received %v", got)
			}
			if err := m.Reply(context.Background(), messages.NewAnswer(m.Message, "00")); !errors.Is(err, errReplied) || !errors.Is(err, ErrNotSent) {
				t.Errorf("a second answer: %v", err)
			}
			synctest.Wait()
			if got := l.seen(); len(got) != 2 {
				t.Errorf("received %v", got)
			}
		}
		// While it drains, it is up.
		silent(h)
		a := r.exchange(request(1))
		l, x := last(h, "000001")
		if err := r.Drain(-1); err != nil {
			t.Fatal(err)
		}
		l.send(keyChange())
		m := r.demanded(2)
		if err := m.Reply(context.Background(), messages.NewAnswer(m.Message, "00")); err != nil {
			t.Error(err)
		}
		l.answer(x, "00")
		a.want(t, nil)
	})
}

func TestAnAnswerForAConnectionThatIsGoneIsNotSent(t *testing.T) {
	inBubble(t, nil, func(r *rig, h *host) {
		l := h.open()[0]
		l.send(keyChange())
		m := r.demanded(0)
		_ = l.Close()
		pass(2 * time.Second) // the link has another connection
		r.wantStates(InService, InService)
		before := h.traffic()
		if err := m.Reply(context.Background(), messages.NewAnswer(m.Message, "00")); !errors.Is(err, ErrNotSent) {
			t.Errorf("got %v", err)
		}
		synctest.Wait()
		if h.traffic() != before {
			t.Error("it was sent")
		}
	})
}

func TestWhatIsNoAnswerIsNotSent(t *testing.T) {
	inBubble(t, nil, func(r *rig, h *host) {
		l := h.open()[0]
		l.send(keyChange())
		m := r.demanded(0)
		before := h.traffic()
		spoiled := messages.NewAnswer(m.Message, "00")
		spoiled.Set(messages.STAN, "12")
		for what, err := range map[string]error{
			"a request":        m.Reply(context.Background(), m.Message),
			"another's answer": m.Reply(context.Background(), messages.NewAnswer(request(1), "00")),
			"a faulty one":     m.Reply(context.Background(), spoiled),
		} {
			if !errors.Is(err, ErrNotSent) {
				t.Errorf("%s: got %v", what, err)
			}
		}
		synctest.Wait()
		if h.traffic() != before {
			t.Error("it was sent")
		}
		if err := m.Reply(context.Background(), messages.NewAnswer(m.Message, "00")); err != nil {
			t.Errorf("after the faulty ones: %v", err)
		}
	})
}

func TestAnAnswerHasTheTimeOfAWrite(t *testing.T) {
	inBubble(t, func(c *Config) { c.Links = c.Links[:1] }, func(r *rig, h *host) {
		l := h.open()[0]
		l.send(keyChange())
		m := r.demanded(0)
		h.script(func(h *host) {
			most := l.bytes() + 10
			h.deaf = func(other *hostLink) (int, bool) { return most, other == l }
		})
		began := time.Now()
		err := m.Reply(context.Background(), messages.NewAnswer(m.Message, "00"))
		if took := time.Since(began); err == nil || errors.Is(err, ErrNotSent) || took != 2*time.Second {
			t.Errorf("after %v: %v", took, err)
		}
		if again := m.Reply(context.Background(), messages.NewAnswer(m.Message, "00")); !errors.Is(again, errReplied) {
			t.Errorf("what may have been sent is sent again: %v", again)
		}
	})
}

func TestAnAnswerThatWasNotSentMayBeTriedAgain(t *testing.T) {
	inBubble(t, func(c *Config) { c.Links = c.Links[:1] }, func(r *rig, h *host) {
		h.open()[0].send(keyChange())
		m := r.demanded(0)
		s := r.links[0].session
		s.turn <- struct{}{} // somebody writes
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		if err := m.Reply(ctx, messages.NewAnswer(m.Message, "00")); !errors.Is(err, ErrNotSent) || !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v", err)
		}
		<-s.turn
		if err := m.Reply(context.Background(), messages.NewAnswer(m.Message, "00")); err != nil {
			t.Error(err)
		}
	})
}

func TestAnswersHaveNoReply(t *testing.T) {
	inBubble(t, nil, func(r *rig, h *host) {
		h.open()[0].answer(request(1), "00")
		if m := r.demanded(0); m.Reply != nil || m.Arrival != Late {
			t.Errorf("got %+v", m)
		}
	})
}

func TestWhatIsDroppedIsNotAnswered(t *testing.T) {
	inBubble(t, func(c *Config) { c.Links, c.Unasked = c.Links[:1], 2 }, func(r *rig, h *host) {
		hang := make(chan struct{})
		r.mu.Lock()
		r.hang = hang
		r.mu.Unlock()
		l := h.open()[0]
		for range tellers + 5 {
			l.send(keyChange())
		}
		synctest.Wait()
		close(hang)
		synctest.Wait()
		if n := r.metric("acquirerd_unasked_dropped_total"); n != 3 {
			t.Errorf("%v dropped", n)
		}
		if got := l.seen(); len(got) != 1 {
			t.Errorf("received %v", got)
		}
	})
}

func TestAnAnswerOnTheWrongConnectionEndsNothingWhereTheDialectWantsTheSame(t *testing.T) {
	inBubble(t, func(c *Config) { c.Codec.Dialect().Match.SameLink = true }, func(r *rig, h *host) {
		silent(h)
		a, b := r.exchange(request(1)), r.exchange(request(2))
		carried, m := last(h, "000001")
		other, n := last(h, "000002")
		other.answer(m, "00")
		undecodable := messages.NewAnswer(m, "00")
		undecodable.Delete(messages.ResponseCode)
		other.send(undecodable)
		synctest.Wait()
		if !a.running() {
			t.Error("the answer on the wrong link was taken")
		}
		r.wantAnswers(kindWrongLink, 2)
		r.wantAnswers(kindMatched, 2) // the sign-ons
		carried.answer(m, "00")
		a.want(t, nil)
		if got := r.arrivals(); len(got) != 0 {
			t.Errorf("inbound got %v", got)
		}
		// What comes after the end is late, wherever it comes: the money is what counts.
		b.want(t, ErrTimeout)
		carried.answer(n, "00")
		synctest.Wait()
		r.wantAnswers(kindLate, 1)
		if got := r.arrivals(); !slices.Equal(got, []Arrival{Late}) {
			t.Errorf("inbound got %v", got)
		}
	})
}

func TestARequestThatMovedIsAnsweredWhereItWent(t *testing.T) {
	inBubble(t, func(c *Config) { c.Codec.Dialect().Match.SameLink = true }, func(r *rig, h *host) {
		r.Endpoint.mu.Lock()
		s := r.links[r.turn%2].session // the next to be chosen
		r.Endpoint.mu.Unlock()
		_ = s.wire.Close() // and nobody has noticed
		r.exchange(request(1)).want(t, nil)
	})
}

func TestATraceSplitsTheTime(t *testing.T) {
	inBubble(t, func(c *Config) { c.Links = c.Links[:1] }, func(r *rig, h *host) {
		h.script(func(h *host) {
			h.handle = func(l *hostLink, m *messages.Message) {
				time.AfterFunc(3*time.Second, func() { l.answer(m, "00") })
			}
		})
		s := r.links[0].session
		s.turn <- struct{}{}
		time.AfterFunc(time.Second, func() { <-s.turn })
		a := r.exchange(request(1))
		a.want(t, nil)
		if want := (Trace{Link: 0, Queued: time.Second, Answered: 3 * time.Second}); a.trace != want {
			t.Errorf("got %+v, want %+v", a.trace, want)
		}

		// The host reads the second half of the frame later.
		h.script(func(h *host) {
			h.slow = func(other *hostLink) { <-time.After(1500 * time.Millisecond) }
		})
		a = r.exchange(request(2))
		synctest.Wait()
		a.want(t, nil)
		if a.trace.Written != 1500*time.Millisecond || a.trace.Queued != 0 || a.trace.Answered == 0 {
			t.Errorf("got %+v", a.trace)
		}
		h.script(func(h *host) { h.slow = nil })
		silent(h)
		a = r.exchange(request(3))
		a.want(t, ErrTimeout)
		if a.trace.Answered != 0 || a.trace.Link != 0 {
			t.Errorf("got %+v", a.trace)
		}
		a = r.exchange(request(3)) // its key is remembered
		a.want(t, ErrNotSent)
		if a.trace != (Trace{Link: -1}) {
			t.Errorf("got %+v", a.trace)
		}
	})
}

func TestALinkThatIsStuckHoldsUpNoOther(t *testing.T) {
	inBubble(t, func(c *Config) { c.Links = Dialled("one", "two", "three") }, func(r *rig, h *host) {
		stuck := h.at("two")[0]
		most := stuck.bytes() + 20
		h.script(func(h *host) { h.deaf = func(l *hostLink) (int, bool) { return most, l == stuck } })
		silent(h)
		first := []*attempt{r.exchange(request(1)), r.exchange(request(2)), r.exchange(request(3))} // one for each link
		synctest.Wait()
		early := []*attempt{r.exchange(request(4)), r.exchange(request(5)), r.exchange(request(6))} // and another, before anybody can know
		synctest.Wait()
		if got := r.Status()[1].InFlight; got != 2 || len(h.requests()) != 4 {
			t.Fatalf("%d are in flight on the stuck link, %v were received", got, h.requests())
		}
		pass(101 * time.Millisecond)
		if got := r.Status()[1].InFlight; got != 1 || len(h.requests()) != 5 {
			t.Fatalf("%d are in flight on the stuck link, %v were received", got, h.requests())
		}
		// The others are kept busier than it is, so that the fewest in flight are on it, and still nobody waits behind it.
		var busy []*attempt
		for stan := range 20 {
			busy = append(busy, r.exchange(request(100+stan)))
			synctest.Wait()
		}
		h.script(func(h *host) { h.handle = nil })
		for stan := range 20 {
			a := r.exchange(request(200 + stan))
			a.want(t, nil)
			if a.took != 0 {
				t.Errorf("%d took %v", 200+stan, a.took)
			}
		}
		if got := r.Status()[1].InFlight; got != 1 {
			t.Errorf("%d are in flight on the stuck link", got)
		}
		unknown := 0
		for _, a := range first {
			if <-a.done; errors.Is(a.err, ErrWrite) {
				unknown++
			}
		}
		if unknown != 1 {
			t.Errorf("%d unknown by their write, want the one that was being written", unknown)
		}
		for _, a := range early {
			a.want(t, ErrTimeout)
			if a.trace.Link == 1 || a.trace.Queued > 100*time.Millisecond {
				t.Errorf("got %+v", a.trace)
			}
		}
		for _, a := range busy {
			a.want(t, ErrTimeout)
		}
	})
}

func TestTheOnlyLinkIsUsedThoughItIsStuckForAMoment(t *testing.T) {
	inBubble(t, func(c *Config) { c.Links = c.Links[:1] }, func(r *rig, h *host) {
		h.script(func(h *host) { h.slow = func(*hostLink) { <-time.After(time.Second) } })
		a := r.exchange(request(1))
		pass(500 * time.Millisecond)
		h.script(func(h *host) { h.slow = nil })
		b := r.exchange(request(2))
		a.want(t, nil)
		b.want(t, nil)
	})
}
