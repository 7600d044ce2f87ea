package main

import (
	"context"
	"errors"

	"acquirerd/hsm"
	"acquirerd/messages"
	"acquirerd/specs"
)

// A macKey is a key of the HSM in the words of links and doors.
type macKey struct {
	vault *hsm.HSM
	key   hsm.MACKey
}

// newMACKey is nil where a party has none.
func newMACKey(vault *hsm.HSM, label string, dialect *specs.Dialect) messages.MACKey {
	if label == "" {
		return nil
	}
	return macKey{vault, hsm.MACKey{Label: label, Padding: hsm.Padding(dialect.MAC.Padding)}}
}

func (k macKey) MAC(ctx context.Context, data []byte) ([]byte, error) {
	return k.vault.MAC(ctx, k.key, data)
}

func (k macKey) VerifyMAC(ctx context.Context, data, mac []byte) error {
	err := k.vault.VerifyMAC(ctx, k.key, data, mac)
	if errors.Is(err, hsm.ErrMAC) {
		return messages.ErrMAC
	}
	return err
}

// macUses are those of keys that make MACs.
var macUses = []hsm.Use{hsm.MACX919, hsm.MACCMAC, hsm.MACHMAC}
