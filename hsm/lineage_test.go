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
	const text = "zpk#3 08D7B4 2026-11-25T16:45:38Z 00112233aabbccdd"
	b := birth{"zpk#3", "08D7B4", made, "00112233aabbccdd", ""}
	if got := b.text(); got != text {
		t.Errorf("written %q", got)
	}
	if got, ok := parseBirth("zpk#3", text); got != b || !ok {
		t.Errorf("read %+v, %t", got, ok)
	}
	for _, bad := range []string{"", "zpk#3", "zpk#2 08D7B4 2026-11-25T16:45:38Z 00112233aabbccdd", "zpk#3 08D7 2026-11-25T16:45:38Z 00112233aabbccdd", "zpk#3 08D7B4",
		"zpk#3 08D7B4 now 00112233aabbccdd", "zpk#3 08D7B4 2026-11-25T16:45:38Z 40D328FE988B", "zpk#3 08D7B4 2026-11-25T16:45:38Z ", text + " x", text + "1", text + "\x00"} {
		if _, ok := parseBirth("zpk#3", bad); ok {
			t.Errorf("%q is taken for a birth", bad)
		}
		if _, ok := parseMark("zpk#3", bad+" 40D328"); ok {
			t.Errorf("%q is taken for a mark", bad)
		}
	}
	m := mark{birth: text, replaced: []string{"40D328", "FE988B"}}
	if got := m.text(); got != text+" 40D328FE988B" {
		t.Errorf("written %q", got)
	}
	if got, ok := parseMark("zpk#3", m.text()); got.birth != text || !slices.Equal(got.replaced, m.replaced) || !ok {
		t.Errorf("read %+v, %t", got, ok)
	}
	for _, bad := range []string{text, text + " ", text + " 40D32", text + " 40D328FE988", text + " 40D328 FE988B", text + " 40D328FE988G"} {
		if _, ok := parseMark("zpk#3", bad); ok {
			t.Errorf("%q is taken for a mark", bad)
		}
	}
	spaced := birth{"zpk of a b#3", "08D7B4", made, "00112233aabbccdd", ""}
	if got, ok := parseBirth(spaced.label, spaced.text()); got != spaced || !ok {
		t.Errorf("of a label with spaces: read %+v, %t", got, ok)
	}
	k := &key{Key: Key{Label: strings.Repeat("k", 64), KCV: "aaaaaa"}}
	for range 2 * mostReplaced {
		k = &key{Key: Key{Label: k.Label, KCV: "08d7b4"}, replaced: k.history()}
	}
	if n := len(k.replaced); n != mostReplaced || k.replaced[0] != "08D7B4" || k.replaced[n-1] != "AAAAAA" || k.replaced[n-2] != "08D7B4" {
		t.Errorf("%d versions, the first is %s", n, k.replaced[n-1])
	}
	if got := (mark{birth: newBirth(k.Label+"#1000000", trial{kcv: "08D7B4", proof: proof("08D7B4", make([]byte, 8))}).text(), replaced: k.replaced}).text(); len(got) >= 2048 {
		t.Errorf("a mark of %d bytes", len(got))
	}
}
