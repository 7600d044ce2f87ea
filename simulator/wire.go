package simulator

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"acquirerd/messages"
	"acquirerd/specs"
)

// Limits of one connection.
const (
	queuedFrames   = 1024                  // frames that wait to be written; then the sender waits
	writeBatch     = 16 << 10              // bytes of waiting frames that one write takes together, about
	reorderWindow  = 50 * time.Millisecond // longest time that a frame stands aside for another to go first
	readBuffer     = 16 << 10
	defaultTimeout = 5 * time.Second
)

// A Direction is that of a message, seen from the simulator.
type Direction string

// The directions of a message.
const (
	Received Direction = "received"
	Sent     Direction = "sent"
)

// A TraceEvent is one message on one connection. The message prints itself masked; who is told of it may read it during the call,
// and neither keep nor change it.
type TraceEvent struct {
	Time      time.Time
	Link      string // the connection's name: "link 1", "link 2" …
	Direction Direction
	Message   *messages.Message
	Bytes     int    // length of the frame; 0 if the message was not sent
	Note      string // what was done to it, or to the link: "garbled", "silence", "link dropped"
}

// A wire writes the frames of one connection. What waits at the same time goes out in one write.
type wire struct {
	conn    net.Conn
	timeout time.Duration // of one write
	queue   chan outgoing
	closed  chan struct{}
	once    sync.Once
	beats   atomic.Int64 // keep-alives of ours that are to be answered
}

type outgoing struct {
	frame   []byte
	reorder bool // let the next frame go first
	last    bool // close the connection after it
	cut     bool // it is not whole: nothing may follow it
}

func newWire(conn net.Conn, timeout time.Duration) *wire {
	return &wire{conn: conn, timeout: timeout, queue: make(chan outgoing, queuedFrames), closed: make(chan struct{})}
}

// framed is the length of a message's frame.
func (r reader) framed(body []byte) int { return r.Framing.Size() + len(body) + len(r.Framing.Trailer) }

// takesKeepalives reports whether a frame of no bytes is one of the dialect's.
func (r reader) takesKeepalives() bool {
	return r.Framing.Keepalive == specs.KeepaliveIgnored || r.Framing.Keepalive == specs.KeepaliveAnswered
}

// beat sends a keep-alive of our own, if the dialect takes any.
func (w *wire) beat(r reader) {
	if !r.takesKeepalives() {
		return
	}
	if r.Framing.Keepalive == specs.KeepaliveAnswered {
		w.beats.Add(1)
	}
	w.send(outgoing{frame: r.Framing.Append(nil, nil)})
}

// beaten takes a keep-alive. It is false if it only answers one of ours; the peer's own is answered, where the dialect wants that. Two
// parties that answered answers would never end.
func (w *wire) beaten(r reader) (own bool) {
	if r.Framing.Keepalive != specs.KeepaliveAnswered {
		return true
	}
	for n := w.beats.Load(); n > 0; n = w.beats.Load() {
		if w.beats.CompareAndSwap(n, n-1) {
			return false
		}
	}
	w.send(outgoing{frame: r.Framing.Append(nil, nil)})
	return true
}

// shake does the TLS handshake of a connection that has one.
func (w *wire) shake(ctx context.Context) error {
	secured, is := w.conn.(*tls.Conn)
	if !is {
		return nil
	}
	ctx, release := context.WithTimeout(ctx, w.timeout)
	defer release()
	if err := secured.HandshakeContext(ctx); err != nil {
		return fmt.Errorf("shaking hands: %w", err)
	}
	return nil
}

// send queues a frame. It is false if the connection is closed, and then nothing of the frame was or will be written.
func (w *wire) send(o outgoing) bool {
	select {
	case <-w.closed:
		return false
	default:
	}
	select {
	case w.queue <- o:
		return true
	case <-w.closed:
		return false
	}
}

// close ends the connection, and run with it.
func (w *wire) close() {
	first := false
	w.once.Do(func() {
		close(w.closed)
		first = true
	})
	if first {
		_ = w.conn.Close() // TLS says goodbye, which may take a while
	}
}

// run writes until the connection is closed or a write fails.
func (w *wire) run() {
	defer w.close()
	var aside []byte
	var asideEnds <-chan time.Time
	batch := make([]byte, 0, writeBatch)
	for {
		batch = batch[:0]
		last := false
		take := func(o outgoing) {
			if o.cut {
				batch = append(append(batch, aside...), o.frame...)
				aside, asideEnds = nil, nil
			} else if o.reorder && aside == nil {
				aside, asideEnds = o.frame, time.After(reorderWindow)
			} else {
				batch = append(append(batch, o.frame...), aside...)
				aside, asideEnds = nil, nil
			}
			last = o.last
		}
		select {
		case <-w.closed:
			return
		case <-asideEnds:
			batch = append(batch, aside...)
			aside, asideEnds = nil, nil
		case o := <-w.queue:
			take(o)
		}
		for waiting := true; waiting && !last && len(batch) < writeBatch; {
			select {
			case o := <-w.queue:
				take(o)
			default:
				waiting = false
			}
		}
		if last {
			batch = append(batch, aside...)
		}
		if len(batch) > 0 && !w.write(batch) || last {
			return
		}
	}
}

func (w *wire) write(batch []byte) bool {
	if err := w.conn.SetWriteDeadline(time.Now().Add(w.timeout)); err != nil {
		return false
	}
	_, err := w.conn.Write(batch)
	return err == nil
}
