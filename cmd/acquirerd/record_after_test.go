package main

import (
	"bytes"
	"context"
	"slices"
	"testing"

	"acquirerd/hsm"
)

// Who interrupts a command when the key is dealt with does not keep that off the record, and who does it before has nothing done.
func TestAnInterruptDoesNotKeepAKeyOffTheRecord(t *testing.T) {
	site := newSite(t, newProcessor(t, approveRightPIN))
	site.create()
	daemon := site.start() // which holds the journal
	daemon.inService(1)
	path := daemon.config
	ctx, interrupt := context.WithCancel(t.Context())
	c := &cli{out: &bytes.Buffer{}, err: &bytes.Buffer{}, config: path, output: "text"}
	old := hsm.Event{What: hsm.KeyDestroyed, Key: "zpk-old", KCV: "08D7B4"}
	_, err := c.audited(ctx, old, func() (hsm.KeyInfo, error) {
		if got, want := toldBy(auditRows(t, path, "--key", "zpk-old")), []string{"destroy zpk-old 08D7B4 asked"}; !slices.Equal(got, want) {
			t.Errorf("before it is done: rows %q, want %q", got, want)
		}
		interrupt() // while the token destroys it
		return hsm.KeyInfo{Label: "zpk-old", KCV: "08D7B4"}, nil
	})
	if err != nil {
		t.Error(err)
	}
	_, err = c.audited(ctx, old, func() (hsm.KeyInfo, error) {
		t.Error("it is done after the interrupt")
		return hsm.KeyInfo{}, nil
	})
	if err == nil {
		t.Error("an interrupted command says nothing")
	}
	want := []string{"destroy zpk-old 08D7B4 asked", "destroy zpk-old 08D7B4 ok", "destroy zpk-old 08D7B4 asked", "destroy zpk-old 08D7B4 interrupted: nothing was done"}
	if got := toldBy(auditRows(t, path, "--key", "zpk-old")); !slices.Equal(got, want) {
		t.Errorf("rows %q, want %q", got, want)
	}
	daemon.stop()
	if code := daemon.exit(); code != 0 {
		t.Errorf("exit %d", code)
	}
}
