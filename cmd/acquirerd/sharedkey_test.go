package main

import (
	"strings"
	"testing"
)

// A key that two processors share is changed for both by a message of one: from then on the other one reads no PIN. Each zone has a key of
// its own (PCI PIN 17).
func TestAKeyThatAProcessorCanChangeBelongsToOneEndpoint(t *testing.T) {
	code, faults := checked(t, changed(t,
		`use: pin-out }`, "use: pin-out, zmk: zmk-1 }\n    - { label: zmk-1, kcv: \"6F7081\", use: zmk }",
		"    reply_timeout: 10s", "    reply_timeout: 10s\n  - name: processor-b\n    dialect: iso87-ascii\n    links: [\"127.0.0.1:9003\"]\n    pin_key: zpk-proc-a\n    reply_timeout: 10s"))
	if code == 0 || !strings.Contains(faults, "endpoints[1].pin_key") {
		t.Errorf("got exit %d\n%s", code, faults)
	}
}
