package hsm_test

import (
	"errors"
	"log/slog"
	"slices"
	"strings"
	"testing"

	"acquirerd/card"
	"acquirerd/hsm"
	"acquirerd/hsm/hsmtest"
)

// labelsOf are those of the token's keys of use bdk.
func labelsOf(t *testing.T, cfg hsm.Config) (labels []string) {
	t.Helper()
	keys, err := hsm.List(cfg)
	if err != nil {
		t.Fatal(err)
	}
	for _, k := range keys {
		if k.Use == hsm.BDK {
			labels = append(labels, k.Label)
		}
	}
	return labels
}

func TestABDKOfTDESIsMadeWithItsVariant(t *testing.T) {
	for name, empty := range map[string]func(testing.TB) *hsmtest.Token{"SoftHSM": hsmtest.New, "NSS": hsmtest.NewNSS} {
		t.Run(name, func(t *testing.T) {
			token := forBDK(empty(t))
			cfg := token.Config()
			generated, err := hsm.Generate(cfg, hsm.NewKey{Label: "generated", Use: hsm.BDK, Algorithm: hsm.TDES})
			if err != nil {
				t.Fatal(err)
			}
			value, first, second := unhex(t, tdesBDK), unhex(t, "112233445566778899AABBCCDDEEFF00"), make([]byte, 16)
			for i := range second {
				second[i] = value[i] ^ first[i]
			}
			imported, err := hsm.ImportComponents(cfg, hsm.NewKey{Label: "imported", Use: hsm.BDK, Algorithm: hsm.TDES, KCV: "08D7B4"},
				[]hsm.Component{{Value: first}, {Value: second}})
			if err != nil {
				t.Fatal(err)
			}
			if want := []string{"generated", "generated/variant", "imported", "imported/variant"}; !slices.Equal(labelsOf(t, cfg), want) {
				t.Errorf("got %v", labelsOf(t, cfg))
			}
			for _, k := range []hsm.KeyInfo{generated, imported} {
				cfg.Keys = append(cfg.Keys, hsm.Key{Label: k.Label, Use: hsm.BDK, KCV: k.KCV})
			}
			h := run(t, cfg)
			ksn, err := card.ParseKSN("FFFF9876543210E00001")
			if err != nil {
				t.Fatal(err)
			}
			data := []byte("4012345678909D987")
			if mac, err := h.MAC(t.Context(), hsm.MACKey{Label: "imported", KSN: ksn}, data); err != nil || !slices.Equal(mac, unhex(t, "9CCC78173FC4FB64")) {
				t.Errorf("under what custodians brought: got %X, %v", mac, err) // X9.24-1, A.4
			}
			if _, err := h.MAC(t.Context(), hsm.MACKey{Label: "generated", KSN: ksn}, data); err != nil {
				t.Errorf("under what was generated: %v", err)
			}
		})
	}
}

func TestABDKOfTDESComesInAKeyBlockAndGoesWhole(t *testing.T) {
	for name, standard := range map[string]func(testing.TB) *hsmtest.Token{"SoftHSM": hsmtest.Standard, "NSS": hsmtest.StandardNSS} {
		t.Run(name, func(t *testing.T) {
			token := standard(t)
			token.PutAES("kbpk", hsm.KBPK, unhex(t, aesBDK256))
			cfg := token.Config()
			made, block, err := hsm.ExportKey(cfg, hsm.NewKey{Label: "ours", Use: hsm.BDK, Algorithm: hsm.TDES}, hsm.Export{KBPK: "kbpk"})
			if err != nil {
				t.Fatal(err)
			}
			taken, err := hsm.ImportKeyBlock(cfg, hsm.NewKey{Label: "theirs", Use: hsm.BDK}, block, "kbpk")
			if err != nil || taken.KCV != made.KCV {
				t.Fatalf("got %+v, %v, want the key %+v", taken, err, made)
			}
			if want := []string{"ours", "ours/variant", "theirs", "theirs/variant"}; !slices.Equal(labelsOf(t, cfg), want) {
				t.Errorf("got %v", labelsOf(t, cfg))
			}
			for _, k := range []hsm.KeyInfo{made, taken} { // not both at once: they are one key
				with := cfg
				with.Keys = append(slices.Clone(cfg.Keys), hsm.Key{Label: k.Label, Use: hsm.BDK, KCV: k.KCV})
				h, err := hsm.New(with, slog.New(slog.DiscardHandler), nil)
				if err == nil {
					err = h.Open(t.Context())
				}
				if err == nil {
					err = h.Close()
				}
				if err != nil {
					t.Fatal(err)
				}
			}

			if _, err := hsm.Destroy(cfg, "ours/variant", made.KCV); !errors.Is(err, hsm.ErrKeyCheck) || !strings.Contains(err.Error(), "goes with it") {
				t.Errorf("half of a key is destroyed: %v", err)
			}
			if _, err := hsm.Destroy(cfg, "ours", made.KCV); err != nil {
				t.Error(err)
			}
			if want := []string{"theirs", "theirs/variant"}; !slices.Equal(labelsOf(t, cfg), want) {
				t.Errorf("after the end of one: %v", labelsOf(t, cfg))
			}
		})
	}
}

// A variant that a broken ceremony has left keeps its label from being used before somebody has looked.
func TestALabelWithALeftVariantIsRefused(t *testing.T) {
	token := hsmtest.New(t)
	token.Put("bdk/variant", hsm.PINOut, hsmtest.ProcessorZPK)
	if _, err := hsm.Generate(token.Config(), hsm.NewKey{Label: "bdk", Use: hsm.BDK, Algorithm: hsm.TDES}); !errors.Is(err, hsm.ErrKeyExists) {
		t.Errorf("got %v", err)
	}
}
