package hsm

import (
	"slices"
	"strings"
	"testing"
	"time"
)

func TestLabelsOfSuccessors(t *testing.T) {
	for _, c := range []struct {
		label, base string
		version     int
	}{
		{"zpk#2", "zpk", 2}, {"zpk#10", "zpk", 10}, {"a#2#3", "a#2", 3}, {"zpk", "", 0}, {"zpk#", "", 0}, {"zpk#1", "", 0}, {"zpk#0", "", 0},
		{"zpk#02", "", 0}, {"zpk#+2", "", 0}, {"zpk#-2", "", 0}, {"zpk#2x", "", 0}, {"#2", "", 0}, {"", "", 0}, {"zpk#99999999999999999999", "", 0},
	} {
		base, version, ok := successorOf(c.label)
		if base != c.base || version != c.version || ok != (c.version > 0) {
			t.Errorf("%q: got %q, %d, %t", c.label, base, version, ok)
		}
		if ok && successorLabel(base, version) != c.label {
			t.Errorf("%q is written %q", c.label, successorLabel(base, version))
		}
	}
}

func TestRecordsOfSuccessors(t *testing.T) {
	made := time.Date(2026, 11, 25, 16, 45, 38, 0, time.UTC)
	const text = "zpk#3 08D7B4 2026-11-25T16:45:38Z 40D328FE988B"
	if got := (record{"08D7B4", made.In(time.FixedZone("", 3600)), []string{"40D328", "FE988B"}}).text("zpk#3"); got != text {
		t.Errorf("written %q", got)
	}
	if r, ok := parseRecord("zpk#3", text); r.kcv != "08D7B4" || !r.made.Equal(made) || !ok || !slices.Equal(r.replaced, []string{"40D328", "FE988B"}) {
		t.Errorf("read %+v, %t", r, ok)
	}
	for _, bad := range []string{"", "zpk#3", "zpk#2 08D7B4 2026-11-25T16:45:38Z 40D328", "zpk#3 08D7 2026-11-25T16:45:38Z 40D328", "zpk#3 08D7B4", "zpk#3 08D7B4 now 40D328",
		"zpk#3 08D7B4 2026-11-25T16:45:38Z", "zpk#3 08D7B4 2026-11-25T16:45:38Z ", text + " x", text + "1", text + "\x00"} {
		if _, ok := parseRecord("zpk#3", bad); ok {
			t.Errorf("%q is taken for a record", bad)
		}
	}
	k := &key{Key: Key{Label: strings.Repeat("k", 64), KCV: "08d7b4"}}
	for range 100 {
		k = &key{Key: k.Key, replaced: k.history()}
	}
	if got := (record{"08D7B4", made, k.replaced}).text(k.Label + "#1000"); len(got) > 255 || len(k.replaced) != mostReplaced || k.replaced[0] != "08D7B4" {
		t.Errorf("a record of %d bytes, %d versions", len(got), len(k.replaced))
	}
}
