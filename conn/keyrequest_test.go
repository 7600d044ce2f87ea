package conn

import (
	"context"
	"errors"
	"slices"
	"testing"
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
