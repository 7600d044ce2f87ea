package specs

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// Framing is how messages follow each other on a link.
type Framing struct {
	Length       LengthHeader `yaml:"length"`
	LittleEndian bool         `yaml:"little_endian,omitempty"` // of a binary length: low byte first
	Inclusive    bool         `yaml:"inclusive,omitempty"`     // the length counts itself too
	Trailer      Bytes        `yaml:"trailer,omitempty"`       // after each message, "03" (ETX) say
	// TrailerCounted: the length counts the trailer too.
	TrailerCounted bool      `yaml:"trailer_counted,omitempty"`
	Keepalive      Keepalive `yaml:"keepalive,omitempty"` // what becomes of a frame of no bytes; default refused
	Max            int       `yaml:"max"`                 // longest message, in bytes with its header and without the framing
}

// A LengthHeader is the form of the length before a message.
type LengthHeader string

// The length headers.
const (
	LengthASCII4  LengthHeader = "ascii-4"  // four ASCII digits
	LengthHex4    LengthHeader = "hex-4"    // four hexadecimal digits
	LengthBCD2    LengthHeader = "bcd-2"    // four digits packed in two bytes
	LengthBinary2 LengthHeader = "binary-2" // two bytes
	LengthBinary4 LengthHeader = "binary-4" // four bytes
	LengthVMLH    LengthHeader = "vmlh"     // two bytes and two that are reserved and zero (VisaNet message length header)
	LengthNone    LengthHeader = "none"     // the trailer ends a message
)

// LengthHeaders are all of them.
var LengthHeaders = []LengthHeader{LengthASCII4, LengthHex4, LengthBCD2, LengthBinary2, LengthBinary4, LengthVMLH, LengthNone}

// most is the longest that a header can announce. Of four bytes, as many as a process may be made to allocate by a stranger.
func (h LengthHeader) most() int {
	switch h {
	case LengthASCII4, LengthBCD2:
		return 9999
	case LengthHex4, LengthBinary2, LengthVMLH, LengthNone:
		return 65535
	case LengthBinary4:
		return 1 << 20
	}
	return 0
}

// A Keepalive says what becomes of a frame of no bytes, by which some peers show that they are there.
type Keepalive string

// The ways with a frame of no bytes.
const (
	KeepaliveRefused  Keepalive = "refused"  // it ends the link
	KeepaliveIgnored  Keepalive = "ignored"  // it is read over
	KeepaliveAnswered Keepalive = "answered" // it is answered by another one
)

// Errors of a length.
var (
	ErrLengthHeader = errors.New("length header is not a length")        // its bytes are none
	ErrFrameLength  = errors.New("length is none that a frame can have") // under its own size, zero, or over the maximum
)

// Size is the header's length in bytes.
func (f *Framing) Size() int {
	switch f.Length {
	case LengthASCII4, LengthHex4, LengthBinary4, LengthVMLH:
		return 4
	case LengthBCD2, LengthBinary2:
		return 2
	case LengthNone:
	}
	return 0
}

// Append appends the frame of a message, which the codec has checked to be no longer than Max. A message of no bytes makes a keep-alive.
func (f *Framing) Append(b, message []byte) []byte {
	length := len(message)
	switch {
	case length > 0:
		length += f.counted()
	case f.Inclusive:
		length = f.Size() // it has no trailer
	}
	switch f.Length {
	case LengthASCII4:
		b = fmt.Appendf(b, "%04d", length)
	case LengthHex4:
		b = fmt.Appendf(b, "%04X", length)
	case LengthBCD2:
		b = append(b, byte(length/1000%10<<4|length/100%10), byte(length/10%10<<4|length%10)) //nolint:gosec // nibbles
	case LengthBinary2:
		b = f.order().AppendUint16(b, uint16(length)) //nolint:gosec // lint keeps Max within the header's most
	case LengthBinary4:
		b = f.order().AppendUint32(b, uint32(length)) //nolint:gosec // as above
	case LengthVMLH:
		b = append(f.order().AppendUint16(b, uint16(length)), 0, 0) //nolint:gosec // as above
	case LengthNone:
	}
	b = append(b, message...)
	if len(message) > 0 {
		b = append(b, f.Trailer...)
	}
	return b
}

// counted is what the length counts beside the message.
func (f *Framing) counted() int {
	n := 0
	if f.Inclusive {
		n += f.Size()
	}
	if f.TrailerCounted {
		n += len(f.Trailer)
	}
	return n
}

func (f *Framing) order() interface {
	binary.ByteOrder
	binary.AppendByteOrder
} {
	if f.LittleEndian {
		return binary.LittleEndian
	}
	return binary.BigEndian
}

// Parse returns the length of the message that a header of Size bytes announces, 0 for a keep-alive. Its error is ErrLengthHeader or
// ErrFrameLength.
func (f *Framing) Parse(header []byte) (int, error) {
	length, err := f.parse(header)
	if err != nil {
		return 0, err
	}
	if length == 0 || f.Inclusive && length == f.Size() {
		if f.Keepalive == KeepaliveIgnored || f.Keepalive == KeepaliveAnswered {
			return 0, nil
		}
		return 0, ErrFrameLength
	}
	if length -= f.counted(); length < 1 || length > f.Max {
		return 0, ErrFrameLength
	}
	return length, nil
}

// parse returns the number in the header.
func (f *Framing) parse(header []byte) (int, error) {
	switch f.Length {
	case LengthBinary2:
		return int(f.order().Uint16(header)), nil
	case LengthBinary4:
		length := f.order().Uint32(header)
		if length > 1<<30 {
			return 0, ErrFrameLength
		}
		return int(length), nil
	case LengthVMLH:
		if header[2] != 0 || header[3] != 0 {
			return 0, ErrLengthHeader
		}
		return int(f.order().Uint16(header)), nil
	case LengthASCII4, LengthHex4, LengthBCD2, LengthNone:
	}
	form := lengthForm{4, map[LengthHeader]lengthKind{LengthASCII4: lengthASCII, LengthHex4: lengthHex, LengthBCD2: lengthBCD}[f.Length]}
	length, err := form.parse(header)
	if err != nil {
		return 0, ErrLengthHeader
	}
	return length, nil
}

func (f *Framing) lint(fault func(path, format string, args ...any)) {
	most := f.Length.most()
	if most == 0 {
		fault("framing.length", "%q is not one of %s", f.Length, oneOf(LengthHeaders))
		return
	}
	if f.Max < 1 || f.Max > most-f.counted() {
		fault("framing.max", "%d is not within 1 to %d", f.Max, most-f.counted())
	}
	if len(f.Trailer) > 8 {
		fault("framing.trailer", "is longer than 8 bytes")
	}
	switch {
	case f.Length == LengthNone && len(f.Trailer) == 0:
		fault("framing.trailer", "missing: nothing else would end a message")
	case f.Length == LengthNone && (f.Inclusive || f.TrailerCounted):
		fault("framing.length", "none counts nothing: neither inclusive nor trailer_counted may be set")
	case f.TrailerCounted && len(f.Trailer) == 0:
		fault("framing.trailer", "missing: trailer_counted is set")
	}
	binaryLength := f.Length == LengthBinary2 || f.Length == LengthBinary4 || f.Length == LengthVMLH
	if f.LittleEndian && !binaryLength {
		fault("framing.little_endian", "is only of a binary length")
	}
	switch f.Keepalive {
	case "", KeepaliveRefused:
	case KeepaliveIgnored, KeepaliveAnswered:
		if f.Length == LengthNone {
			fault("framing.keepalive", "%q needs a length", f.Keepalive)
		}
	default:
		fault("framing.keepalive", "%q is not one of refused, ignored, answered", f.Keepalive)
	}
}
