package conn

import (
	"testing"
	"time"

	"acquirerd/messages"
)

func TestAForgottenExchangeIsNotCountedAsAbandoned(t *testing.T) {
	inBubble(t, nil, func(r *rig, h *host) {
		silent(h)
		r.exchange(request(1)).want(t, ErrTimeout)
		pass(101 * time.Second)
		if got := r.metric("acquirerd_exchanges_abandoned"); got != 0 {
			t.Errorf("got %v, want 0: it was forgotten", got)
		}
	})
}

// A mismatch abandons the exchange too.
func TestAMismatchIsCountedAsAbandonedAtOnce(t *testing.T) {
	inBubble(t, nil, func(r *rig, h *host) {
		h.script(func(h *host) {
			h.handle = func(l *hostLink, m *messages.Message) {
				answer := messages.NewAnswer(m, "00")
				answer.Set(messages.Amount, "000000000001")
				l.send(answer)
			}
		})
		r.exchange(request(1)).want(t, ErrMismatch)
		if got := r.metric("acquirerd_exchanges_abandoned"); got != 1 {
			t.Errorf("got %v, want 1", got)
		}
	})
}
