package messages

import (
	"bytes"
	"context"
	"errors"
	"fmt"

	"acquirerd/specs"
)

// A MACKey makes and checks message authentication codes under the key that one party and we share. It may be used by many goroutines, and
// no call lasts longer than ctx, whatever becomes of the HSM behind it.
type MACKey interface {
	// MAC returns the code of the bytes, specs.MostMAC of it. An error means that none could be made.
	MAC(ctx context.Context, data []byte) ([]byte, error)
	// VerifyMAC compares in constant time. An error that wraps ErrMAC means that the code is another one's; any other, that nobody knows.
	VerifyMAC(ctx context.Context, data, mac []byte) error
}

var (
	// ErrMAC: the message authentication code is wrong, or missing where the dialect wants one.
	ErrMAC = errors.New("message authentication code is wrong or missing")
	// ErrNoMAC: the message could not be given its code, so that it may not be sent.
	ErrNoMAC = errors.New("message authentication code cannot be made")
)

// EncodeFrameWithMAC is EncodeFrame of a message with its authentication code, which it is given here, where the dialect wants one of its type;
// what it carried there is replaced. The key is nil where none is configured. The error is a *FormatError, or wraps ErrNoMAC. The frame holds
// card data.
func (c *Codec) EncodeFrameWithMAC(ctx context.Context, key MACKey, m *Message) ([]byte, error) {
	if key == nil || !c.dialect.HasMAC(c.dialect.WireMTI(string(m.MTI))) {
		return c.EncodeFrame(m)
	}
	m.Delete(MAC)
	m.Delete(MAC2)
	e := c.macElement(m)
	f, _ := c.dialect.Field(c.dialect.WireMTI(string(m.MTI)), int(e))
	m.put(e, make([]byte, f.Length)) // whether it is there stands in the bit map, which the code covers
	input, err := c.macInput(m, e)
	if err != nil {
		return nil, err
	}
	defer clear(input)
	code, err := key.MAC(ctx, input)
	if err == nil && len(code) < c.dialect.MAC.Bytes() {
		err = fmt.Errorf("%d bytes are too few", len(code))
	}
	if err != nil {
		m.Delete(e)
		return nil, fmt.Errorf("%w: %w", ErrNoMAC, err)
	}
	value := make([]byte, f.Length)
	copy(value, code[:c.dialect.MAC.Bytes()])
	m.put(e, value)
	return c.EncodeFrame(m)
}

// CheckMAC checks the authentication code of a message that was decoded whole. It is nil if the code is right, and without one where the
// dialect wants none; a code that need not be there has to be right all the same. An error that wraps ErrMAC means that somebody else made
// or changed the message, or that its code is missing; any other, that nobody knows.
func (c *Codec) CheckMAC(ctx context.Context, key MACKey, m *Message) error {
	input, has := c.MACInput(m)
	defer clear(input)
	switch {
	case has:
	case c.dialect.HasMAC(c.dialect.WireMTI(string(m.MTI))), m.Has(MAC), m.Has(MAC2):
		return ErrMAC
	default:
		return nil
	}
	value := m.bytes(m.last())
	length := c.dialect.MAC.Bytes()
	if len(value) < length || len(bytes.Trim(value[length:], "\x00")) > 0 {
		return ErrMAC
	}
	if err := key.VerifyMAC(ctx, input, value[:length]); err != nil {
		return fmt.Errorf("checking MAC of %s: %w", m.MTI, err)
	}
	return nil
}

// HasMAC reports whether messages of this type carry an authentication code in this dialect.
func (c *Codec) HasMAC(mti MTI) bool { return c.dialect.HasMAC(c.dialect.WireMTI(string(mti))) }

// macElement is where the code of a message stands: the last bit of its bit map.
func (c *Codec) macElement(m *Message) Element {
	bitmap := c.dialect.Fields[1]
	wide := m.wide || m.last() > MAC
	if bitmap.Extent == specs.ExtentFixed {
		wide = bitmap.Length > 8
	}
	if wide {
		return MAC2
	}
	return MAC
}

// MACInput returns the bytes of a message, without its header, over which its message authentication code is made: all before the code. A
// dialect can have it made as if a repeat were the first sending, so that a repeat has the code of its first. It is false if the message has
// no code, or none where the dialect has it: last. The bytes hold card data.
func (c *Codec) MACInput(m *Message) ([]byte, bool) {
	last := m.last()
	if c.dialect.MAC.Place != specs.MACLast || last != MAC && last != MAC2 {
		return nil, false
	}
	input, err := c.macInput(m, last)
	return input, err == nil
}

// macInput is MACInput of a message whose last element is its code. The error is a *FormatError.
func (c *Codec) macInput(m *Message, last Element) ([]byte, error) {
	if c.dialect.MAC.ClearRepeat && m.MTI.IsRepeat() {
		first := *m // it shares the elements, which are only read
		first.MTI = m.MTI.First()
		m = &first
	}
	message, err := c.pack(m)
	if err != nil {
		return nil, err
	}
	f, _ := c.dialect.Field(c.dialect.WireMTI(string(m.MTI)), int(last))
	return message[:len(message)-f.WireLength(len(m.bytes(last)))], nil
}
