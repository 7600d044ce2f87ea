package hsm_test

import (
	"fmt"
	"os"
	"runtime/debug"
	"strings"
	"testing"

	"acquirerd/card"
	"acquirerd/hsm"
	"acquirerd/hsm/hsmtest"
)

// resident is the memory of this process without what Go's heap has free, in kB.
func resident(t *testing.T) int {
	t.Helper()
	debug.FreeOSMemory()
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(status)) {
		var kb int
		if n, _ := fmt.Sscanf(line, "VmRSS: %d kB", &kb); n == 1 {
			return kb
		}
	}
	t.Fatal("/proc/self/status has no VmRSS")
	return 0
}

// Key serial numbers of devices without end, each of a counter with as many ones as one may have, cost time and take no memory that is not given back: no object of a derivation
// stays. SoftHSM 2.6.1 itself keeps some 250 bytes of each object that was destroyed, so that this cannot be seen there.
func TestKeySerialNumbersTakeNoMemory(t *testing.T) {
	token := hsmtest.StandardNSS(t)
	token.PutAES("bdk", hsm.BDK, hsmtest.ZoneKey("bdk", 32))
	cfg := token.Config()
	cfg.Workers = 1
	h := run(t, cfg)
	device := 0
	serve := func(calls int) {
		for range calls {
			ksn, err := card.ParseKSN(fmt.Sprintf("12345678%08XFFFF0000", device))
			if err != nil {
				t.Fatal(err)
			}
			device++
			if _, err := h.MAC(t.Context(), hsm.MACKey{Label: "bdk", KSN: ksn}, []byte("x")); err != nil {
				t.Fatal(err)
			}
		}
	}
	const calls, most = 6000, 13_000 // kB; 250 bytes of each of 18 objects would be 27,000, and the race detector's own may be 6,000
	serve(1000)                      // fills the cache of initial keys, and what the module keeps for itself
	before := resident(t)
	serve(calls)
	if took := resident(t) - before; took > most {
		t.Errorf("%d calls took %d kB, and may take %d", calls, took, most)
	}
}
