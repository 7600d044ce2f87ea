package hsm_test

import (
	"errors"
	"slices"
	"testing"

	"acquirerd/hsm"
	"acquirerd/hsm/hsmtest"

	"github.com/miekg/pkcs11"
)

// A key of one object has no parts: what happens to have such a label is a key of its own, and stays.
func TestTheEndOfAKeyIsNotThatOfAnotherOne(t *testing.T) {
	eachKind(t, func(t *testing.T, token *hsmtest.Token) {
		cfg := token.Config()
		token.Put("zpk/left", hsm.PINIn, hsmtest.ZoneKey("left", 16))
		token.Put("zpk/variant", hsm.PINOut, hsmtest.ZoneKey("variant", 16))
		about, err := hsm.Generate(cfg, hsm.NewKey{Label: "zpk", Use: hsm.PINIn})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := hsm.Destroy(cfg, "zpk", about.KCV); err != nil {
			t.Error(err)
		}
		if got, want := labels(t, token), []string{"zpk/left", "zpk/variant"}; !slices.Equal(got, want) {
			t.Errorf("left are %q, want %q", got, want)
		}
	})
}

// A part is not made as a key of its own, so that no key is ever taken for one.
func TestALabelOfAPartIsRefused(t *testing.T) {
	cfg := hsmtest.New(t).Config()
	for _, label := range []string{"zpk/left", "zpk/variant"} {
		if about, err := hsm.Generate(cfg, hsm.NewKey{Label: label, Use: hsm.PINIn}); err == nil {
			t.Errorf("%s: got %+v", label, about)
		}
	}
}

// What a crash between the two objects of a key has left can be taken away: nothing else would, and its label would be of no use for ever.
func TestAPartWithoutItsKeyIsDestroyed(t *testing.T) {
	eachKind(t, func(t *testing.T, token *hsmtest.Token) {
		cfg := token.Config()
		for part, n := range map[string]hsm.NewKey{"/left": {Use: hsm.MACX919}, "/variant": {Use: hsm.BDK, Algorithm: hsm.TDES}} {
			n.Label = "key"
			if _, err := hsm.Generate(cfg, n); err != nil {
				t.Fatal(err)
			}
			token.Use(func(m *pkcs11.Ctx) {
				s := token.Login(m)
				if err := m.FindObjectsInit(s, []*pkcs11.Attribute{pkcs11.NewAttribute(pkcs11.CKA_LABEL, "key")}); err != nil {
					t.Fatal(err)
				}
				whole, _, err := m.FindObjects(s, 2)
				if err != nil || len(whole) != 1 {
					t.Fatalf("%d keys, %v", len(whole), err)
				}
				if err := errors.Join(m.FindObjectsFinal(s), m.DestroyObject(s, whole[0])); err != nil {
					t.Fatal(err)
				}
			})
			keys, err := hsm.List(cfg)
			if err != nil || len(keys) != 1 || keys[0].Label != "key"+part {
				t.Fatalf("got %+v, %v", keys, err)
			}
			if _, err := hsm.Generate(cfg, n); !errors.Is(err, hsm.ErrKeyExists) {
				t.Errorf("beside what is left: %v", err)
			}
			if _, err := hsm.Destroy(cfg, "key"+part, keys[0].KCV); err != nil || len(labels(t, token)) > 0 {
				t.Errorf("%s: %q are left, %v", part, labels(t, token), err)
			}
		}
	})
}

// Components are of no label yet, so that no key is in their way.
func TestComponentsAreMadeBesideEveryKey(t *testing.T) {
	token := hsmtest.New(t)
	token.Put("none", hsm.PINIn, hsmtest.ZoneKey("none", 16))
	if kcv, err := hsm.MakeComponents(token.Config(), hsm.NewKey{Use: hsm.ZMK}, 2, func(int, []byte, string) error { return nil }); err != nil || len(kcv) != 6 {
		t.Errorf("got %q, %v", kcv, err)
	}
}
