package hsm_test

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"acquirerd/card"
	"acquirerd/hsm"
	"acquirerd/hsm/hsmtest"

	"github.com/miekg/pkcs11"
)

func TestAnHSMServesOnNSSAndFindsItsKeysAgain(t *testing.T) {
	token := hsmtest.StandardNSS(t)
	token.PutAES("in of AES", hsm.PINIn, aesKey)
	token.PutAES("out of AES", hsm.PINOut, aesKey[:16])
	token.Put("zmk", hsm.ZMK, tripleKey)
	token.PutAES("zmk of AES", hsm.ZMK, aesZMK)
	var sealed card.SealedPAN
	var pseudonym card.PANToken
	for _, life := range []string{"first", "second"} {
		t.Run(life, func(t *testing.T) {
			h := run(t, token.Config())
			protected, err := h.Protect(t.Context(), hsm.Card{PAN: pan(t, "4111111111111111")})
			if err != nil {
				t.Fatal(err)
			}
			if life == "first" {
				sealed, pseudonym = protected.Sealed, protected.Token
			}
			if opened, err := h.OpenPAN(t.Context(), sealed); err != nil || opened.Reveal() != "4111111111111111" {
				t.Errorf("opened %v: %v", opened, err)
			}
			if protected.Token != pseudonym {
				t.Error("another PAN token")
			}
		})
	}
}

func TestArgumentsThatWouldEndEarlyAreRefused(t *testing.T) {
	cfg := hsm.Config{Module: "/some/module.so", Arguments: "configdir='a'\x00 flags=noModDB"}
	if _, err := hsm.New(cfg, slog.New(slog.DiscardHandler), nil); err == nil || !strings.Contains(err.Error(), "HSM module arguments: they hold a zero byte") {
		t.Errorf("got %v", err)
	}
}

func TestTokensOfNSSDoNotEndEachOther(t *testing.T) {
	a, b := hsmtest.NewNSS(t), hsmtest.NewNSS(t)
	on := newBench(t, a)
	b.Use(func(m *pkcs11.Ctx) { b.Login(m) })
	if err := hsmtest.Create(on.Ctx, on.s, "after the other's end", hsm.PINOut, doubleKey); err != nil { // needs random numbers
		t.Error(err)
	}
	if _, err := on.GenerateRandom(on.s, 8); err != nil {
		t.Error(err)
	}
}

func TestKeysAreMadeInNSSAsInOtherTokens(t *testing.T) {
	token := hsmtest.NewNSS(t)
	for _, use := range []hsm.Use{hsm.PINIn, hsm.PINOut, hsm.ZMK} {
		whole := hsmtest.ZoneKey(string(use), 16)
		one, other := bytes.Repeat([]byte{0x5A}, 16), make([]byte, 16)
		for i := range other {
			other[i] = whole[i] ^ one[i]
		}
		about, err := hsm.ImportComponents(token.Config(), hsm.NewKey{Label: "of components " + string(use), Use: use, KCV: hsmtest.KCV(use, whole)}, []hsm.Component{{Value: one}, {Value: other}})
		if err != nil || about.KCV != hsmtest.KCV(use, whole) {
			t.Errorf("%s: %+v, want KCV %s: %v", use, about, hsmtest.KCV(use, whole), err)
		}
	}
	for _, use := range hsm.Uses {
		if about, err := hsm.Generate(token.Config(), hsm.NewKey{Label: "generated " + string(use), Use: use}); err != nil || len(about.KCV) != 6 || about.Use != use {
			t.Errorf("%s: %+v: %v", use, about, err)
		}
	}
}

// What the documentation of NewNSS says of NSS: a later one that does otherwise changes what this project can promise.
func TestWhatNSSKeepsOfAKey(t *testing.T) {
	token := hsmtest.NewNSS(t)
	attribute := pkcs11.NewAttribute
	const asked = 1000
	id := fmt.Sprintf("%0*d", asked, 1)
	token.Use(func(m *pkcs11.Ctx) {
		s := token.Login(m)
		for _, unknown := range []*pkcs11.Attribute{attribute(pkcs11.CKA_COPYABLE, false), attribute(pkcs11.CKA_ALLOWED_MECHANISMS, attribute(0, pkcs11.CKM_DES3_ECB).Value)} {
			refused(t, hsmtest.Create(m, s, "not to be kept", hsm.PINOut, doubleKey, unknown), pkcs11.CKR_GENERAL_ERROR)
		}
		if err := hsmtest.Create(m, s, "key", hsm.PINOut, doubleKey, attribute(pkcs11.CKA_ID, id), attribute(pkcs11.CKA_TRUSTED, true), attribute(pkcs11.CKA_WRAP_WITH_TRUSTED, true)); err != nil {
			t.Fatal(err)
		}
		for _, where := range []uint{pkcs11.CKA_TOKEN, pkcs11.CKA_PRIVATE} {
			_, err := m.CreateObject(s, []*pkcs11.Attribute{attribute(pkcs11.CKA_CLASS, pkcs11.CKO_DATA), attribute(where, true), attribute(pkcs11.CKA_LABEL, "mark"), attribute(pkcs11.CKA_VALUE, "text")})
			refused(t, err, pkcs11.CKR_ATTRIBUTE_VALUE_INVALID)
		}
	})
	token.Use(func(m *pkcs11.Ctx) {
		find := func(s pkcs11.SessionHandle) []pkcs11.ObjectHandle {
			if err := m.FindObjectsInit(s, []*pkcs11.Attribute{attribute(pkcs11.CKA_LABEL, "key")}); err != nil {
				t.Fatal(err)
			}
			found, _, err := m.FindObjects(s, 2)
			if err := errors.Join(err, m.FindObjectsFinal(s)); err != nil {
				t.Fatal(err)
			}
			return found
		}
		stranger, err := m.OpenSession(token.Slot(m), pkcs11.CKF_SERIAL_SESSION)
		if err != nil {
			t.Fatal(err)
		}
		if found := find(stranger); len(found) != 0 {
			t.Errorf("%d keys seen without a login", len(found))
		}
		refused(t, m.Login(stranger, pkcs11.CKU_USER, "wrong"), pkcs11.CKR_PIN_INCORRECT)
		refused(t, m.Login(stranger, pkcs11.CKU_SO, ""), pkcs11.CKR_USER_TYPE_INVALID)
		s := token.Login(m)
		found := find(s)
		if len(found) != 1 {
			t.Fatalf("%d keys after a new initialisation, want 1", len(found))
		}
		for which, want := range map[uint]any{
			pkcs11.CKA_PRIVATE: true, pkcs11.CKA_SENSITIVE: true, pkcs11.CKA_EXTRACTABLE: false, pkcs11.CKA_MODIFIABLE: false, pkcs11.CKA_WRAP: true, pkcs11.CKA_UNWRAP: false,
			pkcs11.CKA_ENCRYPT: false, pkcs11.CKA_DECRYPT: false, pkcs11.CKA_DERIVE: false, pkcs11.CKA_ID: id, pkcs11.CKA_TRUSTED: true, pkcs11.CKA_WRAP_WITH_TRUSTED: true,
		} {
			got, err := m.GetAttributeValue(s, found[0], []*pkcs11.Attribute{attribute(which, nil)})
			if err != nil || !bytes.Equal(got[0].Value, attribute(which, want).Value) {
				t.Errorf("attribute %#x: %v, want %v", which, err, want)
			}
		}
		for _, which := range []uint{pkcs11.CKA_CHECK_VALUE, pkcs11.CKA_COPYABLE, pkcs11.CKA_ALLOWED_MECHANISMS} {
			_, err := m.GetAttributeValue(s, found[0], []*pkcs11.Attribute{attribute(which, nil)})
			refused(t, err, pkcs11.CKR_ATTRIBUTE_TYPE_INVALID)
		}
		refused(t, m.SetAttributeValue(s, found[0], []*pkcs11.Attribute{attribute(pkcs11.CKA_ENCRYPT, true)}), pkcs11.CKR_ATTRIBUTE_READ_ONLY)
		refused(t, m.EncryptInit(s, mechanism(pkcs11.CKM_DES3_ECB, nil), found[0]), pkcs11.CKR_KEY_TYPE_INCONSISTENT)
		// Neither can be forbidden: who is logged in makes a copy that may more, or takes the key out. So NSS is for tests.
		free, err := m.CopyObject(s, found[0], []*pkcs11.Attribute{attribute(pkcs11.CKA_TOKEN, false), attribute(pkcs11.CKA_ENCRYPT, true)})
		if err == nil {
			err = m.EncryptInit(s, mechanism(pkcs11.CKM_DES3_ECB, nil), free)
		}
		if err == nil {
			_, err = m.Encrypt(s, make([]byte, 8))
		}
		if err != nil {
			t.Errorf("a copy that may encipher: %v", err)
		}
		ours, err := m.CreateObject(s, append(readable(pkcs11.CKK_AES), attribute(pkcs11.CKA_VALUE, aesKey)))
		if err != nil {
			t.Fatal(err)
		}
		wrapped, err := m.WrapKey(s, mechanism(pkcs11.CKM_AES_ECB, nil), ours, found[0])
		if err != nil {
			t.Fatalf("a key that is not extractable is not wrapped any more: %v", err)
		}
		want := make([]byte, len(wrapped))
		aesOf(t, aesKey).Encrypt(want, doubleKey)
		if !bytes.Equal(wrapped, want) {
			t.Errorf("it wraps to %X, want %X", wrapped, want)
		}
	})
}
