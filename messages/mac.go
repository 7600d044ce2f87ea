package messages

import (
	"acquirerd/specs"
)

// MACInput returns the bytes of a message, without its header, over which its message authentication code is made: all before the code. A
// dialect can have it made as if a repeat were the first sending, so that a repeat has the code of its first. It is false if the message has
// no code, or none where the dialect has it: last.
func (c *Codec) MACInput(m *Message) ([]byte, bool) {
	last := m.last()
	if c.dialect.MAC.Place != specs.MACLast || last != MAC && last != MAC2 {
		return nil, false
	}
	if c.dialect.MAC.ClearRepeat && m.MTI.IsRepeat() {
		m = m.Clone()
		m.MTI = m.MTI.First()
	}
	message, err := c.pack(m)
	if err != nil {
		return nil, false
	}
	f, _ := c.dialect.Field(c.dialect.WireMTI(string(m.MTI)), int(last))
	return message[:len(message)-f.WireLength(len(m.bytes(last)))], true
}
