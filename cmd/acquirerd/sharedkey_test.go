package main

import (
	"strings"
	"testing"

	"acquirerd/hsm"
	"acquirerd/hsm/hsmtest"
)

// A key that two processors share is changed for both by a message of one: from then on the other one reads no PIN. Each zone has a key of
// its own (PCI PIN 17).
func TestAKeyThatAProcessorCanChangeBelongsToOneEndpoint(t *testing.T) {
	code, faults := checked(t, changed(t,
		`use: pin-out }`, "use: pin-out, zmk: zmk-1 }\n    - { label: zmk-1, kcv: \"6F7081\", use: zmk }",
		"    reply_timeout: 10s", "    reply_timeout: 10s\n  - name: processor-b\n    dialect: iso87-ascii\n    links: [\"127.0.0.1:9003\"]\n    pin_key: zpk-proc-a\n    reply_timeout: 10s"))
	const want = `endpoints[1].pin_key: key "zpk-proc-a" has a zmk and is endpoints[0].pin_key already: a message of one would change it for both`
	if code == 0 || !strings.Contains(faults, want) {
		t.Errorf("got exit %d\n%s", code, faults)
	}
}

func TestAKeyThatAnUpstreamCanChangeBelongsToOneUpstream(t *testing.T) {
	second := []string{"upstreams:", "upstreams:\n  - { name: web, dialect: iso87-binary, listen: \"127.0.0.1:8584\", pin_key: zpk-pos }"}
	if code, faults := checked(t, changed(t, second...)); code != 0 {
		t.Errorf("a key that no message changes: got exit %d\n%s", code, faults)
	}
	code, faults := checked(t, changed(t, append(second, `use: pin-in }`, "use: pin-in, zmk: zmk-1 }\n    - { label: zmk-1, kcv: \"6F7081\", use: zmk }")...))
	if code == 0 || !strings.Contains(faults, `upstreams[1].pin_key: key "zpk-pos" has a zmk and is upstreams[0].pin_key already`) {
		t.Errorf("got exit %d\n%s", code, faults)
	}
}

func TestAReloadRefusesASecondProcessorOfAKeyThatCanChange(t *testing.T) {
	site := newSite(t, newProcessor(t, approveRightPIN))
	site.token.Put("zmk-a", hsm.ZMK, hsmtest.ZoneKey("zmk-a", 16))
	site.change("use: pin-out }", "use: pin-out, zmk: zmk-a }")
	site.create()
	daemon := site.start()
	daemon.inService(1)
	daemon.rewrite("endpoints:", "endpoints:\n  - { name: processor-b, dialect: iso87-ascii, links: [\"127.0.0.1:1\"], pin_key: "+hsmtest.ProcessorKey+" }")
	if got := command(t, "config", "reload", "--config", daemon.config); got.code != 1 || !strings.Contains(got.err, "endpoints[1].pin_key: key") {
		t.Errorf("got %+v", got)
	}
	daemon.log.await(t, "config is not reloaded: the old one stays in force", func(line map[string]any) bool { return line["key"] == "endpoints[1].pin_key" })
	daemon.stop()
	if code := daemon.exit(); code != 0 {
		t.Errorf("exit %d", code)
	}
}

// Serve refuses two keys of one use and one check value, whatever the use but those for PANs; config check says so before.
func TestTwoZoneMasterKeysOfOneCheckValueAreRefused(t *testing.T) {
	code, faults := checked(t, changed(t, `use: pin-out }`, "use: pin-out, zmk: zmk-1 }\n    - { label: zmk-1, kcv: \"6F7081\", use: zmk }\n    - { label: zmk-2, kcv: \"6f7081\", use: zmk }"))
	if code == 0 || !strings.Contains(faults, ".kcv: ") {
		t.Errorf("got exit %d\n%s", code, faults)
	}
	code, faults = checked(t, changed(t, `use: pin-out }`, "use: pin-out }\n    - { label: seal-2, kcv: \"6F7081\", use: pan-seal }\n    - { label: seal-3, kcv: \"6F7081\", use: pan-seal }"))
	if code != 0 {
		t.Errorf("keys for PANs: got exit %d\n%s", code, faults)
	}
}
