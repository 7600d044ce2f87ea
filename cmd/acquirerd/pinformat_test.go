package main

import (
	"crypto/des"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"acquirerd/hsm/hsmtest"
	"acquirerd/messages"
)

func TestAReloadChangesTheFormatOfAnEndpoint(t *testing.T) {
	var control atomic.Int32 // the first nibble of the last block, -1 if its PIN is wrong
	site := newSite(t, newProcessor(t, func(request *messages.Message) *messages.Message {
		block, err := request.PINBlock()
		if err != nil {
			t.Error(err)
		}
		cipher, err := des.NewTripleDESCipher(slices.Concat(hsmtest.ProcessorZPK, hsmtest.ProcessorZPK[:8]))
		if err != nil {
			t.Error(err)
		}
		clearBlock := make([]byte, 8)
		cipher.Decrypt(clearBlock, block.Reveal())
		if clearBlock[0]&0xF != byte(len(testPIN)) || clearBlock[1] != 0x12 { // the account number field begins with zeros
			control.Store(-1)
		} else {
			control.Store(int32(clearBlock[0] >> 4))
		}
		return messages.NewAnswer(request, "00")
	}))
	site.create()
	daemon := site.start()
	daemon.inService(1)
	upstream := daemon.dial()
	for i, c := range []struct {
		reload []string
		want   int32
	}{
		{nil, 0},
		{[]string{"pin_key: " + hsmtest.ProcessorKey, "pin_key: " + hsmtest.ProcessorKey + ", pin_format: iso-3"}, 3},
		{[]string{"pin_format: iso-3", "pin_format: iso-0"}, 0},
	} {
		if c.reload != nil {
			daemon.rewrite(c.reload...)
			if got := command(t, "config", "reload", "--config", daemon.config); got.out != "changed endpoints[0].pin_format\n" {
				t.Fatalf("reload %d: %+v", i, got)
			}
		}
		stan := []string{"000001", "000002", "000003"}[i]
		if got := upstream.ask(authorization(stan, testPIN)).Get(messages.ResponseCode); got != "00" || control.Load() != c.want {
			t.Errorf("reload %d: answered %q, a block of format %d, want %d", i, got, control.Load(), c.want)
		}
	}
	for _, change := range [][]string{
		{"pin_key: " + hsmtest.UpstreamKey, "pin_format: iso-1, pin_key: " + hsmtest.UpstreamKey},
		{"pin_format: iso-0", "pin_format: iso-1"},
	} {
		daemon.rewrite(change...)
		got := command(t, "config", "reload", "--config", daemon.config)
		if got.code != 1 || !strings.Contains(got.err, ".pin_format: ") {
			t.Errorf("%s: got %+v", change[1], got)
		}
		daemon.rewrite(change[1], change[0])
	}
	daemon.stop()
	if code := daemon.exit(); code != 0 {
		t.Errorf("exit %d", code)
	}
}

func TestAFormatThatIsNotForItsKeyRefusesTheStart(t *testing.T) {
	site := newSite(t)
	own := dialectFile(t, "iso87-binary", "52: { type: Binary, length: 8,", "52: { type: Binary, length: 16,")
	site.change("dialect: iso87-binary, ", "dialect: "+own+", pin_format: iso-4, ")
	site.create()
	const want = `upstreams[0].pin_format: PIN block format is not allowed: iso-4 is not for key "` + hsmtest.UpstreamKey + `", which is tdes`
	if got := command(t, "serve", "--config", site.config()); got.code != 1 || !strings.Contains(got.err, want) {
		t.Errorf("got %+v", got)
	}
}
