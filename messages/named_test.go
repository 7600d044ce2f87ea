package messages

import (
	"strings"
	"testing"

	"acquirerd/specs"
)

func TestNamedNumbers(t *testing.T) {
	dialect, err := specs.Load("iso87-ascii")
	if err != nil {
		t.Fatal(err)
	}
	in93 := *dialect
	in93.Standard, in93.Reversal.Original = specs.ISO93, specs.OriginalISO93
	in87, rest := NewCodec(dialect), strings.Repeat("0", 22)
	for name, test := range map[string]struct {
		codec                             *Codec
		data                              string
		stan, transmissionTime, localTime string
	}{
		"by its own":                 {in87, "", "000001", "1124000000", ""},
		"by DE 90":                   {in87, "0100" + "000777" + "1123220418" + rest, "000777", "1123220418", ""},
		"by no DE 90":                {in87, "0100" + "000777", "", "", ""},
		"by a DE 90 of letters":      {in87, "0100" + "00077A" + "1123220418" + rest, "", "", ""},
		"by a DE 90 of a network":    {in87, "0800" + "000777" + "1123220418" + rest, "", "", ""},
		"by DE 56 of 1993":           {NewCodec(&in93), "1100" + "000777" + "261123220418" + "06" + "123456", "000777", "", "261123220418"},
		"by its own, 1993":           {NewCodec(&in93), "", "000001", "1124000000", ""},
		"by DE 56 of another length": {NewCodec(&in93), "1100" + "000777" + "261123220418" + "07" + "123456", "", "", ""},
	} {
		m := New(ReversalAdvice)
		m.Set(STAN, "000001")
		m.Set(TransmissionTime, "1124000000")
		m.SetSensitive(test.codec.OriginalElement(), test.data)
		if stan, transmissionTime, localTime := test.codec.NamedNumbers(m); stan != test.stan || transmissionTime != test.transmissionTime || localTime != test.localTime {
			t.Errorf("%s: %q, %q, %q", name, stan, transmissionTime, localTime)
		}
	}
}
