package messages_test

import (
	"testing"

	"acquirerd/messages"
)

// Migration 2 makes the new keys from the old: the function's digit goes in. But the new ones have no leading zeros of DE 32 either.
func TestAttackTheKeyOfARequestFromBeforeTheMigration(t *testing.T) {
	m := messages.New("0100")
	m.Set(messages.TransmissionTime, "1123120000")
	m.Set(messages.STAN, "000001")
	m.Set(messages.Terminal, "TERM0001")
	m.Set(messages.AcquirerID, "00000123456")
	old := "01" + "|1123120000|000001|TERM0001|00000123456" // upstream.key of the version before
	migrated := old[:2] + string(m.MTI)[2:3] + old[2:]       // 0002_nothing_lost.sql
	if got := m.Identity(); got != migrated {
		t.Errorf("on record as %s, looked for as %s: a repeat would be sent", migrated, got)
	}
}
