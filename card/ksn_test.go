package card_test

import (
	"errors"
	"strings"
	"testing"

	"acquirerd/card"
)

func ksn(t *testing.T, digits string) card.KSN {
	t.Helper()
	k, err := card.ParseKSN(digits)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func TestKSNHasItsParts(t *testing.T) {
	for _, row := range []struct {
		digits, whole, device string
		counter               uint32
		isAES                 bool
	}{
		{"FFFF9876543210E00001", "FFFF9876543210E00001", "FFFF9876543210E00000", 1, false},
		{"FFFF9876543210F00000", "FFFF9876543210F00000", "FFFF9876543210E00000", 0x100000, false},
		{"FFFF9876543210FFFFFF", "FFFF9876543210FFFFFF", "FFFF9876543210E00000", 0x1FFFFF, false},
		{"9876543210E00008", "FFFF9876543210E00008", "FFFF9876543210E00000", 8, false},   // without leading FF
		{"ff9876543210e00008", "FFFF9876543210E00008", "FFFF9876543210E00000", 8, false}, // without one
		{"123456789012345600000001", "123456789012345600000001", "123456789012345600000000", 1, true},
		{"1234567890123456FFFF0000", "1234567890123456FFFF0000", "123456789012345600000000", 0xFFFF0000, true},
	} {
		k := ksn(t, row.digits)
		if got := k.String(); got != row.whole {
			t.Errorf("%s: got %s", row.digits, got)
		}
		if got := k.Device().String(); got != row.device || k.Device() != ksn(t, row.device) {
			t.Errorf("%s: got the device %s", row.digits, got)
		}
		if k.Counter() != row.counter || k.IsAES() != row.isAES || k.IsZero() {
			t.Errorf("%s: got counter %X, AES %v, zero %v", row.digits, k.Counter(), k.IsAES(), k.IsZero())
		}
		again, err := card.NewKSN(k.Bytes())
		if err != nil || again != k {
			t.Errorf("%s: its bytes make %v, %v", row.digits, again, err)
		}
	}
}

// X9.24-1, A.1 and X9.24-3, 6.3.2.
func TestKSNRefusesCountersOfNoTransaction(t *testing.T) {
	for digits, want := range map[string]error{
		"FFFF9876543210E00000":     card.ErrKSNCounter,
		"FFFF9876543210E00001":     nil,
		"FFFF9876543210E003FF":     nil,                // ten ones
		"FFFF9876543210E007FF":     card.ErrKSNCounter, // eleven
		"FFFF9876543210FFFC00":     card.ErrKSNCounter, // eleven; the bits before are the device's
		"FFFF9876543210FFF800":     nil,                // the last counter
		"123456789012345600000000": card.ErrKSNCounter,
		"12345678901234560000FFFF": nil, // sixteen
		"12345678901234560001FFFF": card.ErrKSNCounter,
		"1234567890123456FFFF0000": nil,
		"1234567890123456FFFFFFFF": card.ErrKSNCounter, // of the update key
	} {
		if got := ksn(t, digits).Check(); !errors.Is(got, want) {
			t.Errorf("%s: got %v, want %v", digits, got, want)
		}
	}
	if err := (card.KSN{}).Check(); !errors.Is(err, card.ErrKSN) {
		t.Errorf("absent: got %v", err)
	}
}

func TestNewKSNRefuses(t *testing.T) {
	for _, digits := range []string{"", "00", strings.Repeat("11", 7), strings.Repeat("11", 11), strings.Repeat("11", 13), "FFFF9876543210E0000", "FFFF9876543210E0000G"} {
		if k, err := card.ParseKSN(digits); !errors.Is(err, card.ErrKSN) || !k.IsZero() || k.String() != "" || len(k.Bytes()) != 0 {
			t.Errorf("%q: got %v, %v", digits, k, err)
		}
	}
}
