package upstream

import (
	"bufio"
	"context"
	"net"
	"time"
)

// A frameStream gives each frame two deadlines: until its first byte, the idle timeout; from then on, the frame timeout. So a peer
// that is merely quiet stays connected, and one that sends a length and then nothing does not hold a connection for long.
type frameStream struct {
	ctx        context.Context
	connection net.Conn
	buffered   *bufio.Reader
	door       *Door // whose timeouts may change from frame to frame
	begun      bool
}

func newFrameStream(ctx context.Context, connection net.Conn, door *Door) *frameStream {
	s := &frameStream{ctx: ctx, connection: connection, door: door}
	s.buffered = bufio.NewReaderSize(deadlineReader{s}, 8192)
	return s
}

// next says that a frame was read whole.
func (s *frameStream) next() { s.begun = false }

// Read is the buffered reading of one frame.
func (s *frameStream) Read(p []byte) (int, error) {
	n, err := s.buffered.Read(p)
	if n > 0 && !s.begun {
		s.begun = true
		s.deadline(s.door.terms.Load().FrameTimeout)
	}
	return n, err
}

// deadline sets the read deadline, but not past the end of ctx, which sets one in the past.
func (s *frameStream) deadline(d time.Duration) {
	_ = s.connection.SetReadDeadline(time.Now().Add(d))
	if s.ctx.Err() != nil {
		_ = s.connection.SetReadDeadline(time.Now())
	}
}

// deadlineReader reads from the connection for the buffer.
type deadlineReader struct{ s *frameStream }

func (r deadlineReader) Read(p []byte) (int, error) {
	if !r.s.begun {
		r.s.deadline(r.s.door.terms.Load().IdleTimeout)
	}
	return r.s.connection.Read(p)
}
