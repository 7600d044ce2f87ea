package messages_test

import (
	"bytes"
	"testing"

	"acquirerd/messages"
	"acquirerd/specs"
)

func TestAMACIsMadeOverAllBeforeIt(t *testing.T) {
	dialect := *codec(t, "iso87-binary").Dialect()
	dialect.MAC = specs.MAC{Place: specs.MACLast}
	c := messages.NewCodec(&dialect)
	m := undo(t, codec(t, "iso87-binary"), request(t).Original(), pan(t), "", "")
	m.SetSensitive(messages.MAC2, "12345678")
	whole, err := c.Encode(m)
	if err != nil {
		t.Fatal(err)
	}
	if got, has := c.MACInput(m); !has || !bytes.Equal(got, whole[:len(whole)-8]) {
		t.Errorf("got %X, %v; want all but the last 8 bytes of %X", got, has, whole)
	}

	repeat := m.Clone()
	repeat.MTI = m.MTI.Repeat()
	first, _ := c.MACInput(m)
	if got, _ := c.MACInput(repeat); bytes.Equal(got, first) {
		t.Error("the code of a repeat is made over the bytes of its first")
	}
	dialect.MAC.ClearRepeat = true // AS 2805.4
	if got, has := c.MACInput(repeat); !has || !bytes.Equal(got, first) {
		t.Errorf("got %X, want %X", got, first)
	}
	if repeat.MTI != m.MTI.Repeat() {
		t.Error("the message was changed")
	}

	for name, m := range map[string]*messages.Message{"none": request(t), "one in the wrong place": m.Clone()} {
		m.SetSensitive(messages.MAC, "")
		m.SetSensitive(messages.MAC2, "")
		if name != "none" {
			m.SetSensitive(messages.MAC, "12345678")
			if err := c.Validate(m); err == nil || err.Error() != "DE 64 is not the last element, as a MAC is" {
				t.Errorf("%s: got %v", name, err)
			}
		}
		if got, has := c.MACInput(m); has {
			t.Errorf("%s: got %X", name, got)
		}
	}
}
