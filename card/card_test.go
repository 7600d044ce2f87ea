package card_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"acquirerd/card"
)

const clearPAN, clearTrack, clearExpiry = "4111111111111111", "4111111111111111=29122011234500000000", "2912"

type holder struct {
	pan    card.PAN
	track  card.Track2
	expiry card.Expiry
	block  card.PINBlock
	long   card.PINBlock
	Public card.PAN
}

func newHolder(t *testing.T) holder {
	t.Helper()
	pan, err1 := card.ParsePAN(clearPAN)
	track, err2 := card.ParseTrack2(clearTrack)
	expiry, err3 := card.ParseExpiry(clearExpiry)
	block, err4 := card.NewPINBlock([]byte("S3CRET\x01\x02"))
	long, err5 := card.NewPINBlock([]byte("S3CRET\x01\x02S3CRET\x03\x04"))
	if err1 != nil || err2 != nil || err3 != nil || err4 != nil || err5 != nil {
		t.Fatal(err1, err2, err3, err4, err5)
	}
	return holder{pan, track, expiry, block, long, pan}
}

func TestNothingPrintsInClear(t *testing.T) {
	h := newHolder(t)
	var text strings.Builder
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d", "%T"} {
		for _, value := range []any{h, &h, h.pan, &h.pan, h.track, h.expiry, h.block, []any{h.pan}, map[string]any{"k": h}, fmt.Errorf("x: %v", h.pan)} {
			fmt.Fprintf(&text, verb, value)
		}
	}
	var logged bytes.Buffer
	for _, handler := range []slog.Handler{slog.NewTextHandler(&logged, nil), slog.NewJSONHandler(&logged, nil)} {
		slog.New(handler).Info("m", "h", h, "pan", h.pan, "track", h.track, "expiry", h.expiry, "block", h.block, "group", slog.GroupValue(slog.Any("p", h.pan)))
	}
	encoded, err := json.Marshal(map[string]any{"h": h, "pan": h.pan, "track": h.track, "expiry": h.expiry, "block": h.block})
	if err != nil {
		t.Fatal(err)
	}
	all := text.String() + logged.String() + string(encoded)
	for _, secret := range []string{clearPAN, clearPAN[4:14], "29122011", "S3CRET", "533343524554", "34313131313131313131313131313131", "83 51 67 82"} {
		if strings.Contains(strings.ToLower(all), strings.ToLower(secret)) {
			t.Errorf("%q is printed in %s", secret, all)
		}
	}
	if !strings.Contains(all, "411111******1111") {
		t.Errorf("the mask is not printed in %s", all)
	}
}

func TestMaskShowsAtMostSixAndFour(t *testing.T) {
	for length := card.MinPANDigits; length <= card.MaxPANDigits; length++ {
		digits := strings.Repeat("123456789", 3)[:length]
		pan, err := card.ParsePAN(digits)
		if err != nil {
			t.Fatal(err)
		}
		want := digits[:6] + strings.Repeat("*", length-10) + digits[length-4:]
		if got := pan.Mask(); got != want {
			t.Errorf("%d digits: got %s, want %s", length, got, want)
		}
	}
}

func TestParsePANRefuses(t *testing.T) {
	for _, text := range []string{"", "41111111111", "41111111111111111111", "411111111111111a", "4111 1111 1111 1", "+411111111111111"} {
		if pan, err := card.ParsePAN(text); err == nil || !pan.IsZero() || (text != "" && strings.Contains(err.Error(), text)) {
			t.Errorf("%q: got %v, %v", text, pan, err)
		}
	}
}

func TestLuhn(t *testing.T) {
	for text, want := range map[string]bool{"4111111111111111": true, "4111111111111112": false, "4222222222222": true,
		"378282246310005": true, "5555555555554444": true, "5555555555554445": false} {
		pan, err := card.ParsePAN(text)
		if err != nil {
			t.Fatal(err)
		}
		if got := pan.LuhnValid(); got != want {
			t.Errorf("%v: got %v", pan, got)
		}
	}
	if (card.PAN{}).LuhnValid() {
		t.Error("the absent PAN has no check digit")
	}
}

func TestTrack2HoldsItsPAN(t *testing.T) {
	h := newHolder(t)
	if !h.track.PAN().Equal(h.pan) {
		t.Errorf("got %v", h.track.PAN())
	}
	for _, text := range []string{"", "4111111111111111", "=2912", "41111111111=2912", "4111111111111111=" + strings.Repeat("1", 21)} {
		if _, err := card.ParseTrack2(text); err == nil {
			t.Errorf("%d characters were taken", len(text))
		}
	}
}

func TestPINBlockIsCleared(t *testing.T) {
	for _, text := range []string{"S3CRET\x01\x02", "S3CRET\x01\x02OF 16 \x03\x04"} {
		source := []byte(text)
		block, err := card.NewPINBlock(source)
		if err != nil {
			t.Fatal(err)
		}
		inside := block.Reveal()
		if string(inside) != text {
			t.Errorf("got %q, want %q", inside, text)
		}
		block.Clear()
		if !bytes.Equal(inside, make([]byte, len(text))) || string(source) != text {
			t.Errorf("got %q, source %q", inside, source)
		}
	}
	for _, length := range []int{0, 7, 9, 15, 17, 24} {
		if _, err := card.NewPINBlock(make([]byte, length)); err == nil {
			t.Errorf("%d bytes were taken", length)
		}
	}
}

func TestCardNumbersInTextAreHidden(t *testing.T) {
	for text, want := range map[string]string{
		"":                                    "",
		"HARBOUR LIGHT BOOKS":                 "HARBOUR LIGHT BOOKS",
		"4111111111111111":                    "411111******1111",
		"PAID BY 4111111111111111 THANK YOU":  "PAID BY 411111******1111 THANK YOU",
		"X5555555555554444Y378282246310005":   "X555555******4444Y378282*****0005",
		"4111111111111112":                    "4111111111111112", // not its check digit
		"411111111111":                        "411111111111",     // too short
		"41111111111111114111":                "41111111111111114111",
		"tel. 0031201234567, ref 00000000000": "tel. 0031201234567, ref 00000000000",
	} {
		if got := card.HidePANs(text); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
	pan, err := card.ParsePAN("4000000000000003") // without its check digit
	if err != nil {
		t.Fatal(err)
	}
	if got := pan.HideIn("<4000000000000003>"); got != "<400000******0003>" {
		t.Errorf("got %q", got)
	}
	if got := (card.PAN{}).HideIn("text"); got != "text" {
		t.Errorf("got %q", got)
	}
}
