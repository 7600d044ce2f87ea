package journal

import (
	"encoding/json"
	"strings"
	"testing"

	"acquirerd/messages"
)

// A row's JSON comes from a file that others could have changed: reading it must not panic, must not quote it, and what is read
// must be read the same again.
func FuzzReadOriginal(f *testing.F) {
	good, err := json.Marshal(intentOf(messages.Numbers{STAN: "000001", RRN: "632700000001"}, "").Original)
	if err != nil {
		f.Fatal(err)
	}
	for _, seed := range []string{string(good), "", "null", "{}", `{"mti":"0100"}`, `{"mti":"0100","pan":"4111111111111111"}`,
		`{"mti":"0100","stan":1}`, `{"mti":"0100","stan":"000001","stan":"000002"}`, `{"MTI":"0100"}`, `[]`, `{"mti":"\u0000100"}`} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		o, err := readOriginal(text)
		if err != nil {
			if strings.ContainsAny(err.Error(), "0123456789") {
				t.Errorf("error quotes content: %v", err)
			}
			return
		}
		once, err := json.Marshal(o)
		if err != nil {
			t.Fatal(err)
		}
		again, err := readOriginal(string(once))
		if err != nil {
			t.Fatalf("what was written cannot be read: %v", err)
		}
		if twice, err := json.Marshal(again); err != nil || string(twice) != string(once) {
			t.Errorf("%s and then %s, %v", once, twice, err)
		}
	})
}
