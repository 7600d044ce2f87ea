package conn

import (
	"net"
	"sync"
	"time"
)

// A PacedConn is the connection under TLS, of a link and of an upstream's door. TLS also writes while it reads: alerts, and the answers to key
// updates (RFC 8446, 4.6.3). No frame has set a deadline for these writes: that of the last one has passed or there was none, the peer may not be
// reading, and an error of theirs would come out at the next frame, as if that might have been sent. So a write without a deadline is given one
// here.
type PacedConn struct {
	net.Conn
	Timeout func() time.Duration // of a write without a deadline

	mu       sync.Mutex
	deadline time.Time // of writes, as it was set; zero: none
}

// NetConn is the connection that is paced.
func (c *PacedConn) NetConn() net.Conn { return c.Conn }

// SetDeadline sets both deadlines.
func (c *PacedConn) SetDeadline(t time.Time) error {
	if err := c.SetReadDeadline(t); err != nil {
		return err
	}
	return c.SetWriteDeadline(t)
}

// SetWriteDeadline sets the deadline of writes. The zero time leaves it to each write that begins from now on; it does not take the deadline
// from one that has begun.
func (c *PacedConn) SetWriteDeadline(t time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.deadline = t
	if t.IsZero() {
		return nil
	}
	return c.Conn.SetWriteDeadline(t)
}

// Write writes one record.
func (c *PacedConn) Write(p []byte) (int, error) {
	c.mu.Lock()
	if c.deadline.IsZero() {
		if err := c.Conn.SetWriteDeadline(time.Now().Add(c.Timeout())); err != nil {
			c.mu.Unlock()
			return 0, err
		}
	}
	c.mu.Unlock()
	return c.Conn.Write(p)
}
