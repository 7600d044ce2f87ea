package hsm

import (
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
	const record = "zpk#2 08D7B4 2026-11-25T16:45:38Z"
	if got := recordOf("zpk#2", "08D7B4", made.In(time.FixedZone("", 3600))); got != record {
		t.Errorf("written %q", got)
	}
	if kcv, at, ok := parseRecord("zpk#2", record); kcv != "08D7B4" || !at.Equal(made) || !ok {
		t.Errorf("read %q, %v, %t", kcv, at, ok)
	}
	for _, bad := range []string{"", "zpk#2", "zpk#3 08D7B4 2026-11-25T16:45:38Z", "zpk#2 08D7 2026-11-25T16:45:38Z", "zpk#2 08D7B4", "zpk#2 08D7B4 now", record + " x", record + "\x00"} {
		if _, _, ok := parseRecord("zpk#2", bad); ok {
			t.Errorf("%q is taken for a record", bad)
		}
	}
}
