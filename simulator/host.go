package simulator

import (
	"net"
	"slices"
	"sync"
	"time"
)

// A Host is one of a party's listeners, as a net.Listener, which can be taken away from its peers and given back: for the order of hosts that
// a daemon prefers, and for what it does when the first of them is gone, silent or slow.
type Host struct {
	net.Listener

	mu      sync.Mutex
	refuses bool          // guarded by mu
	mute    bool          // guarded by mu
	delay   time.Duration // guarded by mu
	refused int           // guarded by mu
	open    []*hosted     // guarded by mu
	taken   int           // guarded by mu
}

// NewHost makes a host of a listener.
func NewHost(listener net.Listener) *Host { return &Host{Listener: listener} }

// Refuse says whether new connections are reset at once. Those that are there stay, see Cut.
func (h *Host) Refuse(refuses bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.refuses = refuses
}

// Mute says whether the host is silent on all its connections, new ones too, as one that is gone without a word: what comes is lost, and
// nothing is said. When it speaks again, connections that it was silent on are reset: what stands on them is no message any more.
func (h *Host) Mute(mute bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.mute = mute
	for _, c := range h.open {
		if mute {
			c.lost = true
		} else if c.lost {
			c.end()
		}
	}
}

// Delay makes each write of the host take so long.
func (h *Host) Delay(d time.Duration) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.delay = d
}

// Cut resets all connections of the host.
func (h *Host) Cut() {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, c := range h.open {
		c.end()
	}
}

// Counts are the connections that were taken, those that were refused, and those that are open.
func (h *Host) Counts() (taken, refused, open int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.taken, h.refused, len(h.open)
}

// Accept waits for the next connection that is not refused.
func (h *Host) Accept() (net.Conn, error) {
	for {
		conn, err := h.Listener.Accept()
		if err != nil {
			return nil, err
		}
		if c := h.take(conn); c != nil {
			return c, nil
		}
		reset(conn)
	}
}

func (h *Host) take(conn net.Conn) net.Conn {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.refuses {
		h.refused++
		return nil
	}
	h.taken++
	c := &hosted{Conn: conn, host: h, over: make(chan struct{}), lost: h.mute}
	h.open = append(h.open, c)
	return c
}

// A hosted is one connection of a host.
type hosted struct {
	net.Conn
	host *Host
	once sync.Once
	over chan struct{} // closed before the connection is
	lost bool          // what is said on it is lost; guarded by Host.mu
}

// end resets the connection.
func (c *hosted) end() {
	c.once.Do(func() {
		close(c.over)
		reset(c.Conn)
	})
}

// state is whether what is said is lost, and how long a write takes.
func (c *hosted) state() (lost bool, delay time.Duration) {
	c.host.mu.Lock()
	defer c.host.mu.Unlock()
	return c.lost, c.host.delay
}

func (c *hosted) Read(b []byte) (int, error) {
	for {
		n, err := c.Conn.Read(b)
		if lost, _ := c.state(); !lost || err != nil {
			return n, err
		}
	}
}

func (c *hosted) Write(b []byte) (int, error) {
	lost, delay := c.state()
	if delay > 0 {
		timer := time.NewTimer(delay)
		defer timer.Stop()
		select {
		case <-timer.C:
		case <-c.over:
			return 0, net.ErrClosed
		}
		lost, _ = c.state()
	}
	if lost {
		return len(b), nil
	}
	return c.Conn.Write(b)
}

// Close closes the connection as its owner does.
func (c *hosted) Close() error {
	c.host.mu.Lock()
	c.host.open = slices.DeleteFunc(c.host.open, func(other *hosted) bool { return other == c })
	c.host.mu.Unlock()
	c.once.Do(func() { close(c.over) })
	return c.Conn.Close()
}
