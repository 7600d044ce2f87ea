package messages

import (
	"bytes"
	"errors"
	"fmt"
	"io"

	"acquirerd/specs"
)

// A FrameError says that what a peer sent is not a frame. The link it came from cannot be used any more: where the next frame
// begins is not known.
type FrameError struct {
	Class string // one of header, length, short, trailer
}

// The classes of FrameError.
const (
	FrameHeader = "header" // the length header is not a length
	FrameLength = "length" // the length is 0 or over the dialect's maximum
	FrameShort  = "short"  // the stream ended inside a frame
	// FrameTrailer: other bytes stand where the dialect's trailer must.
	FrameTrailer = "trailer"
)

func (e *FrameError) Error() string { return "frame error: " + e.Class }

// ReadFrame reads one frame, and returns its message with the header, in memory of its own; it has no bytes if the frame is one that only
// shows that the peer is there, and that the dialect takes. A length is checked before anything is allocated for it. The error is io.EOF at
// the end of the stream between two frames, a *FrameError for what is not a frame, or what the reader returned.
func (c *Codec) ReadFrame(r io.Reader) ([]byte, error) {
	framing := &c.dialect.Framing
	if framing.Length == specs.LengthNone {
		return c.readToTrailer(r)
	}
	var buffer [4]byte
	header := buffer[:framing.Size()]
	if n, err := io.ReadFull(r, header); err != nil {
		return nil, readFault(err, n)
	}
	length, err := framing.Parse(header)
	switch {
	case errors.Is(err, specs.ErrLengthHeader):
		return nil, &FrameError{FrameHeader}
	case err != nil:
		return nil, &FrameError{FrameLength}
	case length == 0:
		return []byte{}, nil
	}
	body := make([]byte, length+len(framing.Trailer))
	if _, err := io.ReadFull(r, body); err != nil {
		return nil, readFault(err, 1)
	}
	if !bytes.Equal(body[length:], framing.Trailer) {
		return nil, &FrameError{FrameTrailer}
	}
	return body[:length:length], nil
}

// readToTrailer reads a message that ends with its trailer, a byte at a time: the reader is a buffered one.
func (c *Codec) readToTrailer(r io.Reader) ([]byte, error) {
	trailer := c.dialect.Framing.Trailer
	var body []byte
	var next [1]byte
	for !bytes.HasSuffix(body, trailer) {
		if len(body) >= c.dialect.Framing.Max+len(trailer) {
			return nil, &FrameError{FrameLength}
		}
		if _, err := io.ReadFull(r, next[:]); err != nil {
			return nil, readFault(err, len(body))
		}
		body = append(body, next[0])
	}
	if body = body[:len(body)-len(trailer)]; len(body) == 0 {
		return nil, &FrameError{FrameLength}
	}
	return body, nil
}

func readFault(err error, read int) error {
	switch {
	case errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, io.EOF) && read > 0:
		return &FrameError{FrameShort}
	case errors.Is(err, io.EOF):
		return io.EOF
	}
	return fmt.Errorf("reading frame: %w", err)
}
