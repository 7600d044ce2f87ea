package specs

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// A LengthHeader is the form of the length before a message. It counts the message without itself.
type LengthHeader string

// The length headers.
const (
	LengthASCII4  LengthHeader = "ascii-4"  // four ASCII digits
	LengthBinary2 LengthHeader = "binary-2" // two bytes, high byte first
)

// lengthLimits are the longest messages that a header can announce.
var lengthLimits = map[LengthHeader]int{LengthASCII4: 9999, LengthBinary2: 65535}

// ErrLengthHeader says that a header is not a length.
var ErrLengthHeader = errors.New("length header is not a length")

// Size is the header's length in bytes.
func (h LengthHeader) Size() int {
	if h == LengthASCII4 {
		return 4
	}
	return 2
}

// Append appends the header of a message of n bytes.
func (h LengthHeader) Append(b []byte, n int) []byte {
	if h == LengthASCII4 {
		return fmt.Appendf(b, "%04d", n)
	}
	return binary.BigEndian.AppendUint16(b, uint16(n)) //nolint:gosec // the codec refuses messages over the dialect's maximum, which lint keeps within 16 bits
}

// Parse returns the length that a header of Size bytes announces.
func (h LengthHeader) Parse(header []byte) (int, error) {
	if h == LengthBinary2 {
		return int(binary.BigEndian.Uint16(header)), nil
	}
	if !allDigits(header) {
		return 0, ErrLengthHeader
	}
	n := 0
	for _, c := range header {
		n = 10*n + int(c-'0')
	}
	return n, nil
}
