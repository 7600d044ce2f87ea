package conn

import (
	"testing"
	"time"

	"acquirerd/messages"
	"acquirerd/specs"
)

// Keep-alives come from the front end of a processor. They say nothing of what is behind it: that answers no echo, and its link carries no
// traffic after as many as the config has.
func TestKeepalivesDoNotStandForMissedEchoes(t *testing.T) {
	inBubble(t, func(c *Config) {
		c.Links = c.Links[:1]
		c.Codec.Dialect().Framing.Keepalive = specs.KeepaliveIgnored
	}, func(r *rig, h *host) {
		h.script(func(h *host) { h.manage = func(*hostLink, *messages.Message) {} })
		first := h.open()[0]
		for range 60 {
			pass(5 * time.Second)
			first.write([]byte("0000"))
		}
		if got := r.Status()[0]; got.Reconnects == 0 {
			t.Errorf("after five minutes without an answer to anything: %+v, asked %v", got, first.seen())
		}
		h.script(func(h *host) { h.manage = nil })
		pass(60 * time.Second)
	})
}
