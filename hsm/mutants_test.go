package hsm_test

import (
	"fmt"
	"strings"
	"testing"

	"acquirerd/hsm"
	"acquirerd/hsm/hsmtest"
)

// No character of a block can be another one, and none be added or left out.
func TestNoBlockIsTakenThatIsNotAsItWasMade(t *testing.T) {
	eachCeremony(t, func(t *testing.T, c *hsm.Ceremony) {
		h := hsm.BlockHeader{Version: 'D', Usage: "P0", Algorithm: 'A', Mode: 'E', KeyVersion: "00", Exportability: 'N', Optional: []hsm.OptionalBlock{{ID: "CT", Value: "0001020304"}}}
		text, err := c.SealClear(hsmtest.SealValue, h, hsmtest.TokenValue, c.Resident())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.ImportSession(hsmtest.SealValue, text, hsm.NewKey{Label: "new", Use: hsm.PINOut}); err != nil {
			t.Fatal(err)
		}
		var mutants []string
		for i := range text {
			for _, x := range []byte("0AaZ~9NBE1") {
				if x == text[i] || strings.EqualFold(string(x), string(text[i])) && i >= 48 {
					continue
				}
				mutants = append(mutants, text[:i]+string(x)+text[i+1:])
			}
			cut := text[:i] + text[i+1:]
			mutants = append(mutants, cut, cut[:1]+fmt.Sprintf("%04d", len(cut))+cut[5:])
		}
		for _, tail := range []string{"0", "00", strings.Repeat("0", 32), "\n", " "} {
			long := text + tail
			mutants = append(mutants, long, long[:1]+fmt.Sprintf("%04d", len(long))+long[5:])
		}
		for _, mutant := range mutants {
			if len(mutant) < 5 {
				continue
			}
			if about, err := c.ImportSession(hsmtest.SealValue, mutant, hsm.NewKey{Label: "new", Use: hsm.PINOut}); err == nil || !c.IsClean() {
				t.Errorf("%s: got %+v, %v", mutant, about, err)
			}
		}
		t.Logf("%d mutants", len(mutants))
	})
}
