package messages

import (
	"errors"
	"fmt"
	"io"
)

// A FrameError says that what a peer sent is not a frame. The link it came from cannot be used any more: where the next frame
// begins is not known.
type FrameError struct {
	Class string // one of header, length, short
}

// The classes of FrameError.
const (
	FrameHeader = "header" // the length header is not a length
	FrameLength = "length" // the length is 0 or over the dialect's maximum
	FrameShort  = "short"  // the stream ended inside a frame
)

func (e *FrameError) Error() string { return "frame error: " + e.Class }

// ReadFrame reads one length header and the message after it, into memory of its own. A length is checked before anything is
// allocated for it. The error is io.EOF at the end of the stream between two frames, a *FrameError for what is not a frame, or what
// the reader returned.
func (c *Codec) ReadFrame(r io.Reader) ([]byte, error) {
	var buffer [4]byte
	header := buffer[:c.dialect.Framing.Length.Size()]
	if n, err := io.ReadFull(r, header); err != nil {
		return nil, readFault(err, n)
	}
	length, err := c.dialect.Framing.Length.Parse(header)
	if err != nil {
		return nil, &FrameError{FrameHeader}
	}
	if length < 1 || length > c.dialect.Framing.Max {
		return nil, &FrameError{FrameLength}
	}
	body := make([]byte, length)
	if _, err := io.ReadFull(r, body); err != nil {
		return nil, readFault(err, 1)
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
