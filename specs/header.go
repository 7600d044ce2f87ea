package specs

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"strings"
)

// A Header is what stands between a frame's length and the MTI. Its length is stated, never guessed: a header can look like a message.
type Header struct {
	Form  HeaderForm `yaml:"form,omitempty"`  // default none
	Value Bytes      `yaml:"value,omitempty"` // of requests that this party is sent, before what is computed in it
}

// A HeaderForm says what a header is made of.
type HeaderForm string

// The forms of a header.
const (
	HeaderNone    HeaderForm = "none"
	HeaderLiteral HeaderForm = "literal" // the value, always
	HeaderEchoed  HeaderForm = "echoed"  // as long as the value, with any content; an answer repeats its request's
	// HeaderTPDU: the first five bytes are an ISO 8583 transport header, an identifier and two addresses (destination, source), which change
	// places in an answer; the rest of it is echoed.
	HeaderTPDU HeaderForm = "tpdu"
	// HeaderBase1: 22 bytes like those of BASE I: own length, flag, text format, length of header and message (two bytes), destination and
	// source station (three each), and status fields. The stations change places in an answer. In front of a message that comes back
	// rejected stand 26 bytes of the same with the reject code in the last two.
	HeaderBase1 HeaderForm = "base1"
)

// HeaderForms are all of them.
var HeaderForms = []HeaderForm{HeaderNone, HeaderLiteral, HeaderEchoed, HeaderTPDU, HeaderBase1}

// Places in a BASE I-like header.
const (
	base1Size        = 22
	base1Reject      = 26
	base1Length      = 3 // two bytes
	base1Destination = 5 // three bytes
	base1Source      = 8 // three bytes
	base1Code        = 24
)

const tpduSize = 5

// ErrHeader says that a message does not begin with the dialect's header.
var ErrHeader = errors.New("does not begin with the dialect's header")

// Split takes the header off a received message. rejected is the code with which a network returned a message that it has not passed on, ""
// for every other one. Its error is ErrHeader.
func (h *Header) Split(body []byte) (header, message []byte, rejected string, err error) {
	size := len(h.Value)
	switch h.Form {
	case "", HeaderNone:
		return nil, body, "", nil
	case HeaderLiteral:
		if !bytes.HasPrefix(body, h.Value) {
			return nil, nil, "", ErrHeader
		}
	case HeaderEchoed:
	case HeaderTPDU:
		if len(body) < 1 || body[0] != h.Value[0] {
			return nil, nil, "", ErrHeader
		}
	case HeaderBase1:
		if len(body) < base1Size || int(binary.BigEndian.Uint16(body[base1Length:])) != len(body) {
			return nil, nil, "", ErrHeader
		}
		switch body[0] {
		case base1Size:
		case base1Reject:
			if size = base1Reject + base1Size; len(body) < size || body[base1Reject] != base1Size {
				return nil, nil, "", ErrHeader
			}
			rejected = strings.ToUpper(hex.EncodeToString(body[base1Code:base1Reject]))
		default:
			return nil, nil, "", ErrHeader
		}
	}
	if len(body) < size {
		return nil, nil, "", ErrHeader
	}
	return body[:size:size], body[size:], rejected, nil
}

// Join puts a header before a message: the one that is given, or the dialect's own for none.
func (h *Header) Join(header, message []byte) []byte {
	if header == nil {
		header = h.Value
	}
	if h.Form == "" || h.Form == HeaderNone {
		return message
	}
	body := append(append(make([]byte, 0, len(header)+len(message)), header...), message...)
	if h.Form == HeaderBase1 {
		binary.BigEndian.PutUint16(body[base1Length:], uint16(len(body))) //nolint:gosec // lint keeps framing.max within 16 bits
	}
	return body
}

// Answer returns the header of the answer to a request with this one.
func (h *Header) Answer(request []byte) []byte {
	answer := bytes.Clone(request)
	switch {
	case h.Form == HeaderTPDU && len(answer) >= tpduSize:
		swap(answer[1:3], answer[3:tpduSize])
	case h.Form == HeaderBase1 && len(answer) == base1Size:
		swap(answer[base1Destination:base1Source], answer[base1Source:base1Source+3])
	}
	return answer
}

func swap(a, b []byte) {
	for i := range a {
		a[i], b[i] = b[i], a[i]
	}
}

func (h *Header) lint(maximum int, fault func(path, format string, args ...any)) {
	switch h.Form {
	case "", HeaderNone:
		if len(h.Value) > 0 {
			fault("header.value", "is only of a header: set header.form")
		}
	case HeaderLiteral, HeaderEchoed:
		if len(h.Value) < 1 || len(h.Value) > 64 {
			fault("header.value", "is not 1 to 64 bytes long")
		}
	case HeaderTPDU:
		if len(h.Value) < tpduSize || len(h.Value) > 64 {
			fault("header.value", "is not 5 to 64 bytes long")
		}
	case HeaderBase1:
		if len(h.Value) != base1Size || h.Value[0] != base1Size {
			fault("header.value", "is not 22 bytes that begin with 16, their length")
		}
		if maximum > 65535 {
			fault("framing.max", "%d does not fit the two bytes of the header's length", maximum)
		}
	default:
		fault("header.form", "%q is not one of %s", h.Form, oneOf(HeaderForms))
	}
}
