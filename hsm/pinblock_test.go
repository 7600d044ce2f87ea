package hsm

import (
	"encoding/hex"
	"testing"
)

func TestAccountField(t *testing.T) {
	for _, c := range []struct{ name, pan, want string }{
		{"16 digits: the 12 before the check digit", "4111111111111111", "0000111111111111"},
		{"13 digits: all but the check digit", "4222222222222", "0000422222222222"},
		{"12 digits: a zero on the left", "501234567890", "0000050123456789"},
		{"19 digits: the first 6 are left out", "6304985028090561515", "0000502809056151"},
	} {
		t.Run(c.name, func(t *testing.T) {
			var field [pinBlockBytes]byte
			accountField(&field, c.pan)
			if got := hex.EncodeToString(field[:]); got != c.want {
				t.Errorf("got %s, want %s", got, c.want)
			}
		})
	}
}

func TestWellFormed(t *testing.T) {
	for _, c := range []struct {
		name, pinField string
		want           bool
	}{
		{"4 digits", "041234FFFFFFFFFF", true},
		{"12 digits", "0C123456789012FF", true},
		{"9 digits", "09987654321FFFFF", true},
		{"3 digits", "03123FFFFFFFFFFF", false},
		{"13 digits", "0D1234567890123F", false},
		{"length 0", "00FFFFFFFFFFFFFF", false},
		{"format 1", "141234FFFFFFFFFF", false},
		{"format 3", "341234FFFFFFFFFF", false},
		{"a letter among the digits", "0412A4FFFFFFFFFF", false},
		{"fill with a hole at its begin", "0412340FFFFFFFFF", false},
		{"fill with a hole at its end", "041234FFFFFFFFF0", false},
		{"all zeros", "0000000000000000", false},
	} {
		t.Run(c.name, func(t *testing.T) {
			var block, field [pinBlockBytes]byte
			accountField(&field, "4111111111111111")
			pinField, err := hex.DecodeString(c.pinField)
			if err != nil {
				t.Fatal(err)
			}
			for i := range block {
				block[i] = pinField[i] ^ field[i]
			}
			if got := wellFormed(&block, &field); got != c.want {
				t.Errorf("got %t, want %t", got, c.want)
			}
			accountField(&field, "4000000000000002")
			if wellFormed(&block, &field) {
				t.Error("another PAN was taken for the block's own")
			}
		})
	}
}
