package simulator

import (
	"net"
	"sync"
	"time"

	"acquirerd/messages"
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
	w.once.Do(func() {
		close(w.closed)
		_ = w.conn.Close()
	})
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
