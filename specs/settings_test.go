package specs_test

import (
	"errors"
	"os"
	"slices"
	"testing"

	"acquirerd/specs"
)

func TestEveryDifferenceOfTwoDialectsIsNamed(t *testing.T) {
	raw, err := os.ReadFile("iso87-ascii.yaml")
	if err != nil {
		t.Fatal(err)
	}
	text := string(raw)
	a, err := specs.Parse(raw)
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		changes []string
		want    []specs.Difference
	}{
		{[]string{"name: iso87-ascii", "name: other", `version: "2"`, `version: "3"`}, nil},
		{[]string{"length: ascii-4", "inclusive: true, length: ascii-4"}, []specs.Difference{{Path: "framing.inclusive", B: "true"}}},
		{[]string{"transaction: [7, 11, 41]", "transaction: [7, 11]"}, []specs.Difference{{"match.transaction", "7, 11, 41", "7, 11"}}},
		{[]string{field39, "39: { type: String, length: 2, enc: Digits, prefix: Fixed,"}, []specs.Difference{{"fields.39", "String 2 Text", "String 2 Digits"}}},
		{[]string{answerLine, `"0110": { mandatory: [7, 11, 39], when: [ { if: 39, begins: ["00"], then: [38, 37] } ] }`}, []specs.Difference{
			{"messages.0110.when[0].if", "", "39"}, {"messages.0110.when[0].begins", "", "00"}, {"messages.0110.when[0].then", "", "38, 37"}}},
		{[]string{answerLine, `"0110": { mandatory: [7, 11, 39], fields: { 44: { type: String, length: 5, enc: Digits, prefix: ASCII.L, description: x } } }`},
			[]specs.Difference{{"messages.0110.fields.44", "", "String ..5 Digits after ASCII.L"}}},
		{[]string{`"0820": { mandatory: [7, 11, 70] }`, `#`}, []specs.Difference{{"messages.0820", "known", ""}}},
		{[]string{answerLine, answerLine + "\n  \"0112\": {}"}, []specs.Difference{{"messages.0112", "", "known"}}},
		{[]string{echoedLine, echoedLine + "\ntimers: { reply: 10s }\nvalues: { 22: { \"051\": \"052\" } }"}, []specs.Difference{
			{"values.22.051", "", "052"}, {"timers.reply", "", "10s"}}},
	} {
		b, err := specs.Parse([]byte(changed(t, text, test.changes...)))
		if err != nil {
			t.Fatal(err)
		}
		got, err := specs.Differences(a, b)
		if err != nil || !slices.Equal(got, test.want) {
			t.Errorf("got %q, %v, want %q", got, err, test.want)
		}
		back, err := specs.Differences(b, a)
		if err != nil || len(back) != len(got) {
			t.Errorf("back: got %q, %v", back, err)
		}
	}
}

func TestFaultsAreThoseOfParse(t *testing.T) {
	if got := specs.Faults(nil); got != nil {
		t.Errorf("of none: got %v", got)
	}
	if got := specs.Faults(errors.New("is too large")); len(got) != 1 || got[0].Path != "" || got[0].Text != "is too large" {
		t.Errorf("of another error: got %v", got)
	}
	_, err := specs.Parse(nil)
	if got := specs.Faults(err); len(got) != 1 || *got[0] != (specs.Fault{Path: "reading", Text: "it is empty"}) {
		t.Errorf("of one: got %v", got)
	}
}
