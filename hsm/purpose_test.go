package hsm_test

import (
	"errors"
	"testing"

	"acquirerd/hsm"
	"acquirerd/hsm/hsmtest"
)

// A zone key has one purpose (PCI PIN 19): a change does not bring one that makes MACs, or that its zone's keys come under.
func TestAKeyOfAnotherPurposeIsNoNewZoneKey(t *testing.T) {
	token := hsmtest.New(t)
	token.Put(hsmtest.SealKey, hsm.PANSeal, hsmtest.SealValue)
	token.Put(hsmtest.TokenKey, hsm.PANToken, hsmtest.TokenValue)
	zmk, mac := hsmtest.ZoneKey("zmk", 16), hsmtest.ZoneKey("mac", 16)
	token.Put("zmk", hsm.ZMK, zmk)
	token.Put("mac", hsm.MACX919, mac)
	token.Put("zpk", hsm.PINOut, hsmtest.ZoneKey("zpk", 16))
	cfg := token.Config()
	for i := range cfg.Keys {
		if cfg.Keys[i].Label == "zpk" {
			cfg.Keys[i].ZMK = "zmk"
		}
	}
	h := run(t, cfg)
	for name, value := range map[string][]byte{"mac": mac, "zmk": zmk} {
		err := h.ChangeKey(t.Context(), "zpk", hsmtest.Cryptogram(zmk, value), hsmtest.KCV(hsm.PINOut, value))
		if !errors.Is(err, hsm.ErrKeyChange) {
			t.Errorf("the %s key: got %v", name, err)
		}
	}
}
