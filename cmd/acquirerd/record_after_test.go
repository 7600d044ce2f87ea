package main

import (
	"bytes"
	"context"
	"strings"
	"testing"

	"acquirerd/hsm"
)

// Who interrupts a command when the key is dealt with does not keep that off the record.
func TestAnInterruptDoesNotKeepAKeyOffTheRecord(t *testing.T) {
	site := newSite(t, newProcessor(t, approveRightPIN))
	site.create()
	daemon := site.start() // which holds the journal
	daemon.inService(1)
	path := daemon.config
	ctx, interrupt := context.WithCancel(t.Context())
	c := &cli{out: &bytes.Buffer{}, err: &bytes.Buffer{}, config: path, output: "text"}
	_, err := c.audited(ctx, hsm.Event{What: hsm.KeyDestroyed, Key: "zpk-old", KCV: "08D7B4"}, func() (hsm.KeyInfo, error) {
		interrupt() // while the token destroys it
		return hsm.KeyInfo{Label: "zpk-old", KCV: "08D7B4"}, nil
	})
	if err != nil {
		t.Error(err)
	}
	rows := auditRows(t, path, "--key", "zpk-old")
	if len(rows) != 1 || rows[0].What != hsm.KeyDestroyed || !strings.EqualFold(rows[0].Result, "ok") {
		t.Errorf("got %+v", rows)
	}
	daemon.stop()
	if code := daemon.exit(); code != 0 {
		t.Errorf("exit %d", code)
	}
}
