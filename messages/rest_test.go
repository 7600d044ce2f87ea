package messages_test

import (
	"bytes"
	"testing"

	"acquirerd/messages"
)

// DE 55's tag 99 is the transaction's PIN data (EMV Book 3, annex A): it may not be stored, not even sealed.
func TestChipPINDataIsStored(t *testing.T) {
	m := messages.New("0220")
	m.SetSensitive(messages.ChipData, "\x9f\x02\x06\x00\x00\x00\x00\x10\x00"+"\x99\x08PINBLOCK")
	rest, err := m.Rest([]int{14, 48, 55})
	if err != nil {
		t.Fatal(err)
	}
	back, err := codec(t, "iso87-ascii").NewAdvice(messages.New("0220").Original(), m.PAN(), rest)
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Contains([]byte(back.Reveal(messages.ChipData)), []byte("PINBLOCK")) {
		t.Error("tag 99 is in what is stored of an advice")
	}
}
