package messages_test

import (
	"testing"

	"acquirerd/messages"
)

// What may be stored of an advice's chip data goes on as it came, in whatever form the card's BER-TLV has.
func TestChipDataIsChanged(t *testing.T) {
	for name, data := range map[string]string{
		"plain":            "\x9f\x02\x06\x00\x00\x00\x00\x10\x00\x9f\x36\x02\x00\x01",
		"padded between":   "\x9f\x02\x06\x00\x00\x00\x00\x10\x00\x00\x00\x9f\x36\x02\x00\x01",
		"padded after":     "\x9f\x02\x06\x00\x00\x00\x00\x10\x00\x00\x00",
		"longer length":    "\x9f\x36\x81\x02\x00\x01",
		"empty value":      "\x9f\x36\x00\x9f\x02\x06\x00\x00\x00\x00\x10\x00",
		"constructed":      "\x72\x07\x9f\x18\x00\x86\x02\x00\x01",
		"empty template":   "\x71\x00\x9f\x36\x02\x00\x01",
		"same tag twice":   "\x86\x01\x01\x86\x01\x02",
		"private template": "\xff\x01\x04\xdf\x01\x01\x05",
	} {
		t.Run(name, func(t *testing.T) {
			m := messages.New("0220")
			m.SetSensitive(messages.ChipData, data)
			rest, err := m.Rest([]int{14, 48, 55})
			if err != nil {
				t.Fatalf("refused: %v", err)
			}
			back, err := codec(t, "iso87-ascii").NewAdvice(messages.New("0220").Original(), m.PAN(), rest)
			if err != nil {
				t.Fatal(err)
			}
			if got := back.Reveal(messages.ChipData); got != data {
				t.Errorf("came as %x, goes on as %x", data, got)
			}
		})
	}
}
