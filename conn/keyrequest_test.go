package conn

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"acquirerd/messages"
)

// refusesKeys has the host answer key requests with a code, and everything else with 00. "" is no answer.
func refusesKeys(h *host, code string) {
	h.script(func(h *host) {
		h.manage = func(l *hostLink, m *messages.Message) {
			switch {
			case m.Get(messages.NetworkManagement) != "161":
				l.answer(m, "00")
			case code != "":
				l.answer(m, code)
			}
		}
	})
}

// The processor is asked on a link in service, and what it asks itself before it answers is answered by the link.
func TestAKeyIsAskedFor(t *testing.T) {
	inBubble(t, func(c *Config) { c.Links = c.Links[:1] }, func(r *rig, h *host) {
		l := h.open()[0]
		h.script(func(h *host) {
			h.manage = func(l *hostLink, m *messages.Message) {
				if m.Get(messages.NetworkManagement) == "161" {
					l.send(management("301", "0102030405", "000777")) // an echo of its own first
					l.send(keyChange())
				}
				l.answer(m, "00")
			}
		})
		answer, err := r.RequestKey(context.Background())
		if err != nil || answer.Get(messages.ResponseCode) != "00" {
			t.Fatalf("got %v, %v", answer, err)
		}
		if m := r.demanded(0); m.Get(messages.STAN) != "000778" {
			t.Errorf("the key change did not arrive: %v", m.Message)
		}
		if got := l.seen(); !slices.Contains(got, "0800/161") || !slices.Contains(got, "0810/301") {
			t.Errorf("the host has seen %v", got)
		}
		refusesKeys(h, "12")
		if answer, err := r.RequestKey(context.Background()); err != nil || answer.Get(messages.ResponseCode) != "12" {
			t.Errorf("refused: %v, %v", answer, err)
		}
	})
}

func TestAKeyRequestThatIsNotAnswered(t *testing.T) {
	inBubble(t, nil, func(r *rig, h *host) {
		refusesKeys(h, "")
		before := time.Now()
		if _, err := r.RequestKey(context.Background()); !errors.Is(err, ErrTimeout) || errors.Is(err, ErrNotSent) {
			t.Errorf("got %v", err)
		}
		if waited := time.Since(before); waited != r.config().ReplyTimeout {
			t.Errorf("waited %v", waited)
		}
		ctx, cancel := context.WithCancel(context.Background())
		time.AfterFunc(time.Second, cancel)
		if _, err := r.RequestKey(ctx); !errors.Is(err, context.Canceled) {
			t.Errorf("got %v", err)
		}
		time.AfterFunc(time.Second, func() {
			for _, l := range h.open() {
				_ = l.Close()
			}
		})
		if _, err := r.RequestKey(context.Background()); !errors.Is(err, errClosed) {
			t.Errorf("on a link that is lost: %v", err)
		}
	})
}

func TestAKeyRequestThatIsNotSent(t *testing.T) {
	inBubble(t, nil, func(r *rig, h *host) {
		if err := r.Drain(-1); err != nil {
			t.Fatal(err)
		}
		pass(time.Second)
		before := h.traffic()
		if _, err := r.RequestKey(context.Background()); !errors.Is(err, ErrNotSent) || !errors.Is(err, errNoLink) {
			t.Errorf("without a link: %v", err)
		}
		r.codec.Dialect().NetworkManagement.KeyRequest = ""
		if _, err := r.RequestKey(context.Background()); !errors.Is(err, ErrNotSent) || !errors.Is(err, ErrNoKeyRequest) {
			t.Errorf("without a code: %v", err)
		}
		if h.traffic() != before {
			t.Error("something was sent")
		}
	})
}

// keyInAnswer has the rig's dialect bring keys in answers, and the host answer key requests so long after they have timed out, by answer.
func keyInAnswer(r *rig, h *host, answer func(l *hostLink, m *messages.Message)) {
	r.codec.Dialect().NetworkManagement.KeyData.InAnswer = true
	h.script(func(h *host) {
		h.manage = func(l *hostLink, m *messages.Message) {
			if m.Get(messages.NetworkManagement) != "161" {
				l.answer(m, "00")
				return
			}
			time.AfterFunc(r.config().ReplyTimeout+time.Second, func() { answer(l, m) })
		}
	})
}

// Where the answer to a key request brings the key, the processor enciphers under it once it has answered: an answer that comes after its time must not be
// dropped without a word, and says by which request it is believed.
func TestALateAnswerThatBringsAKeyIsTold(t *testing.T) {
	whole := func(l *hostLink, m *messages.Message) { l.answer(m, "00") }
	for name, test := range map[string]struct {
		answer   func(l *hostLink, m *messages.Message)
		macs     bool
		elsewise bool // the key comes in a key change
		told     []Arrival
		fault    error
	}{
		"it is whole":         {answer: whole, told: []Arrival{Late}},
		"it comes twice":      {answer: func(l *hostLink, m *messages.Message) { l.answer(m, "00"); l.answer(m, "00") }, told: []Arrival{Late}},
		"it is proven":        {answer: whole, macs: true, told: []Arrival{Late}},
		"it brings none here": {answer: whole, elsewise: true},
		"its MAC is missing": {macs: true, told: []Arrival{Late}, fault: ErrMAC, answer: func(l *hostLink, m *messages.Message) {
			frame, err := l.host.codec.EncodeFrame(messages.NewAnswer(m, "00"))
			if err != nil {
				l.host.t.Error(err)
			}
			l.write(frame)
		}},
		"it cannot be read": {told: []Arrival{Late}, fault: ErrUndecodable, answer: func(l *hostLink, m *messages.Message) {
			answer := messages.NewAnswer(m, "00")
			answer.Delete(messages.ResponseCode)
			l.send(answer)
		}},
	} {
		t.Run(name, func(t *testing.T) {
			try := func(r *rig, h *host) {
				keyInAnswer(r, h, test.answer)
				r.codec.Dialect().NetworkManagement.KeyData.InAnswer = !test.elsewise
				asked := time.Now()
				if _, err := r.RequestKey(context.Background()); !errors.Is(err, ErrTimeout) {
					t.Fatalf("got %v", err)
				}
				pass(2 * time.Second)
				if got := r.arrivals(); !slices.Equal(got, test.told) {
					t.Fatalf("told of %v", got)
				}
				for _, m := range r.inbox {
					if !m.KeyAsked.Equal(asked) || (m.Fault == nil) != (test.fault == nil) || !errors.Is(m.Fault, test.fault) {
						t.Errorf("told of a request at %v, and of the fault %v", m.KeyAsked, m.Fault)
					}
				}
			}
			if test.macs {
				withMACs(t, []string{"0100", "0110", "0800", "0810"}, func(c *Config) { c.Links = c.Links[:1] }, func(r *rig, h *host, _ *softKey) { try(r, h) })
				return
			}
			inBubble(t, func(c *Config) { c.Links = c.Links[:1] }, try)
		})
	}
}

// Nothing but a key request that was sent makes an answer one that brings a key.
func TestAnAnswerThatNobodyAskedForBringsNoKey(t *testing.T) {
	inBubble(t, func(c *Config) { c.Links = c.Links[:1] }, func(r *rig, h *host) {
		keyInAnswer(r, h, func(*hostLink, *messages.Message) {})
		l := h.open()[0]
		l.answer(management("161", "0102030405", "000777"), "00")
		pass(time.Second)
		if got := r.arrivals(); !slices.Equal(got, []Arrival{Late}) || !r.inbox[0].KeyAsked.IsZero() {
			t.Errorf("told of %v: %+v", got, r.inbox)
		}
		// Of a request that was never sent nothing is remembered.
		s := r.links[0].session
		s.turn <- struct{}{} // somebody writes, and does not end
		defer func() { <-s.turn }()
		if _, err := r.RequestKey(context.Background()); !errors.Is(err, ErrNotSent) {
			t.Fatalf("got %v", err)
		}
		l.answer(management("161", time.Now().Add(-r.config().WriteTimeout).UTC().Format("0102150405"), fmt.Sprintf("%06d", r.lastSTAN)), "00")
		pass(time.Second)
		if got := r.arrivals(); !slices.Equal(got, []Arrival{Late, Late}) || !r.inbox[1].KeyAsked.IsZero() {
			t.Errorf("told of %v: %+v", got, r.inbox)
		}
	})
}

// A key that comes before the write of its request fails is not lost.
func TestAnAnswerBeforeAFailedWriteIsTheAnswer(t *testing.T) {
	inBubble(t, func(c *Config) { c.Links = c.Links[:1] }, func(r *rig, h *host) {
		read, length := h.open()[0].bytes(), r.codec.Dialect().Framing.Size()
		h.script(func(h *host) {
			h.deaf = func(l *hostLink) (int, bool) {
				if l.bytes() == read+length { // of the frame it has the length, and knows what it is
					h.script(func(h *host) { h.deaf = nil })
					r.Endpoint.mu.Lock()
					stan := fmt.Sprintf("%06d", r.lastSTAN)
					r.Endpoint.mu.Unlock()
					l.answer(management("161", time.Now().UTC().Format("0102150405"), stan), "00")
					synctest.Wait()
					_ = l.Close()
				}
				return 0, false
			}
		})
		if answer, err := r.RequestKey(context.Background()); err != nil || answer.Get(messages.ResponseCode) != "00" {
			t.Errorf("got %v, %v", answer, err)
		}
	})
}
