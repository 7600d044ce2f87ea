package hsm_test

import (
	"testing"

	"acquirerd/hsm"
)

// Whatever call fails, there is a whole key and no error, or an error and nothing.
func TestAKeyIsMadeWhollyOrNotAtAll(t *testing.T) {
	eachCeremony(t, func(t *testing.T, c *hsm.Ceremony) {
		for _, n := range []struct {
			hsm.NewKey
			objects int
		}{
			{hsm.NewKey{Label: "key", Use: hsm.PINIn}, 1},
			{hsm.NewKey{Label: "key", Use: hsm.PINOut}, 1},
			{hsm.NewKey{Label: "key", Use: hsm.MACX919}, 2},
			{hsm.NewKey{Label: "key", Use: hsm.BDK, Algorithm: hsm.TDES}, 2},
		} {
			for at := 1; ; at++ {
				failed, left, err := c.GenerateFailing(n.NewKey, at)
				if failed == "" {
					if err != nil || len(left) != n.objects {
						t.Errorf("%s: got %q, %v", n.Use, left, err)
					}
					break
				}
				if err == nil && len(left) != n.objects || err != nil && len(left) != 0 {
					t.Errorf("%s: after call %d (%s): %q, %v", n.Use, at, failed, left, err)
				}
				if !c.IsClean() {
					t.Errorf("%s: after call %d (%s): the key is left in memory", n.Use, at, failed)
				}
			}
		}
	})
}
