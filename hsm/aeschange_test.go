package hsm_test

import (
	"crypto/aes"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"github.com/miekg/pkcs11"

	"acquirerd/hsm"
	"acquirerd/hsm/hsmtest"
)

// blocks enciphers or deciphers whole blocks in ECB.
func blocks(do func(dst, src []byte), size int, in []byte) []byte {
	out := make([]byte, len(in))
	for i := 0; i < len(in); i += size {
		do(out[i:], in[i:])
	}
	return out
}

// aesKCV is the first three bytes of the CMAC of zeros.
func aesKCV(key []byte) string { return hsmtest.KCV(hsm.PANToken, key) }

// putAES makes an AES key of a use in the token, as its recipe has it where the token unwraps nothing by AES-ECB.
func putAES(t testing.TB, token *hsmtest.Token, label string, use hsm.Use, value []byte) hsm.Key {
	t.Helper()
	mechanisms := []uint{pkcs11.CKM_AES_ECB}
	if use == hsm.ZMK {
		mechanisms = append(mechanisms, pkcs11.CKM_AES_CBC)
	}
	var list []byte
	for _, m := range mechanisms {
		list = binary.NativeEndian.AppendUint64(list, uint64(m))
	}
	zeros := blocks(aesOf(t, value).Decrypt, aes.BlockSize, make([]byte, aes.BlockSize))
	token.Use(func(m *pkcs11.Ctx) {
		if err := hsmtest.Create(m, token.Login(m), label, use, value, pkcs11.NewAttribute(pkcs11.CKA_KEY_TYPE, pkcs11.CKK_AES),
			&pkcs11.Attribute{Type: pkcs11.CKA_ALLOWED_MECHANISMS, Value: list},
			pkcs11.NewAttribute(pkcs11.CKA_ID, fmt.Sprintf("kcv:%s zeros:%X", aesKCV(value), zeros[:3]))); err != nil {
			t.Fatal(err)
		}
	})
	key := hsm.Key{Label: label, Use: use, KCV: aesKCV(value)}
	token.Keys = append(token.Keys, key)
	return key
}

// A key is of the algorithm of the one that it replaces, and no stronger than its zone master key (PCI PIN 10), whatever the lengths say: AES-128 is
// stronger than any TDES. Each refusal leaves the key that was there.
func TestKeysOfBothAlgorithmsChangeUnderZoneMasterKeysOfBoth(t *testing.T) {
	bytesOf := func(name string, n int) []byte {
		return append(hsmtest.ZoneKey(name, 16), hsmtest.ZoneKey(name+"'", 16)...)[:n]
	}
	token := hsmtest.Standard(t)
	tdesZMK, aesZMK, shortZMK := hsmtest.ZoneKey("tdes zmk", 24), bytesOf("aes zmk", 32), bytesOf("short zmk", 16)
	token.Put("zmk-tdes", hsm.ZMK, tdesZMK)
	putAES(t, token, "zmk-aes", hsm.ZMK, aesZMK)
	putAES(t, token, "zmk-aes-128", hsm.ZMK, shortZMK)
	token.Put("tdes", hsm.PINOut, hsmtest.ZoneKey("tdes", 16))
	token.Put("triple", hsm.PINOut, hsmtest.ZoneKey("triple", 24))
	token.Put("mac", hsm.MACX919, hsmtest.ZoneKey("mac", 16))
	putAES(t, token, "aes", hsm.PINOut, bytesOf("aes", 16))
	putAES(t, token, "aes-in", hsm.PINIn, bytesOf("aes in", 16))
	putAES(t, token, "aes-128", hsm.PINOut, bytesOf("aes 128", 16))
	putAES(t, token, "aes-tdes", hsm.PINOut, bytesOf("aes tdes", 16))
	cfg := token.Config()
	for i, k := range cfg.Keys {
		cfg.Keys[i].ZMK = map[string]string{"tdes": "zmk-aes", "triple": "zmk-aes", "aes": "zmk-aes", "aes-in": "zmk-aes", "aes-128": "zmk-aes-128", "aes-tdes": "zmk-tdes"}[k.Label]
	}
	h := run(t, cfg)
	status := func(label string) hsm.KeyStatus {
		for _, k := range h.KeyStatus() {
			if k.Label == label {
				return k
			}
		}
		t.Fatalf("no key %s", label)
		return hsm.KeyStatus{}
	}
	under := func(zmk, key []byte) []byte {
		if len(zmk) == 24 {
			return hsmtest.Cryptogram(zmk, key)
		}
		return blocks(aesOf(t, zmk).Encrypt, aes.BlockSize, key)
	}
	for _, c := range []struct {
		label string
		zmk   []byte
		key   []byte
		kcv   func([]byte) string
		says  string // "": it is taken
	}{
		{"aes", aesZMK, bytesOf("aes 2", 16), aesKCV, ""},
		{"aes", aesZMK, bytesOf("aes 3", 32), aesKCV, ""},
		{"aes", aesZMK, bytesOf("aes 4", 16), aesKCV, "shorter than the one in use"},
		{"aes-in", aesZMK, bytesOf("aes in 2", 32), aesKCV, ""},
		{"aes-128", shortZMK, bytesOf("aes 128 2", 16), aesKCV, ""},
		{"aes-128", shortZMK, bytesOf("aes 128 3", 32), aesKCV, `"zmk-aes-128" is weaker`},
		{"aes-tdes", tdesZMK, bytesOf("aes tdes 2", 16), aesKCV, `"zmk-tdes" is weaker`},
		{"aes", aesZMK, bytesOf("aes 5", 32), func([]byte) string { return "012345" }, "another check value"},
		{"aes", shortZMK, bytesOf("aes 6", 32), aesKCV, "another check value"}, // under another key, which AES does not tell by parity
		{"tdes", aesZMK, hsmtest.ZoneKey("tdes 2", 16), func(k []byte) string { return hsmtest.KCV(hsm.PINOut, k) }, ""},
		{"tdes", aesZMK, hsmtest.ZoneKey("mac", 16), func(k []byte) string { return hsmtest.KCV(hsm.PINOut, k) }, `"mac" has the same check value`}, // of another purpose
		{"aes", aesZMK, hsmtest.SealValue, aesKCV, `"pan-seal-1" has the same check value`},
		{"tdes", shortZMK, hsmtest.ZoneKey("tdes 3", 16), func(k []byte) string { return hsmtest.KCV(hsm.PINOut, k) }, "odd parity"},
	} {
		before := status(c.label)
		err := h.ChangeKey(t.Context(), c.label, under(c.zmk, c.key), c.kcv(c.key))
		if c.says == "" {
			if now := status(c.label); err != nil || now.KCV != c.kcv(c.key) || now.Version != before.Version+1 || now.PreviousKCV != before.KCV {
				t.Errorf("%s: %v; %+v", c.label, err, now)
			}
			continue
		}
		if !errors.Is(err, hsm.ErrKeyChange) || !strings.Contains(err.Error(), c.says) || status(c.label) != before {
			t.Errorf("%s: got %v, want %q; %+v", c.label, err, c.says, status(c.label))
		}
	}
	// Three blocks of DES are no whole blocks of AES: ECB cannot carry them.
	if err := h.ChangeKey(t.Context(), "triple", make([]byte, 24), "012345"); !errors.Is(err, hsm.ErrKeyChange) {
		t.Errorf("a cryptogram of equal parts: %v", err)
	}
	if err := h.ChangeKey(t.Context(), "triple", bytesOf("any", 24), "012345"); !errors.Is(err, hsm.ErrKeyChange) || !strings.Contains(err.Error(), "no whole blocks") {
		t.Errorf("got %v", err)
	}
}

// Two zones with one key refuse the start, whatever the configuration says of them.
func TestTwoZonesWithOneKeyRefuseTheStart(t *testing.T) {
	token := hsmtest.Standard(t)
	token.Put("zpk-other", hsm.PINOut, hsmtest.ProcessorZPK)
	h, err := hsm.New(token.Config(), slog.New(slog.DiscardHandler), nil)
	if err != nil {
		t.Fatal(err)
	}
	err = h.Open(t.Context())
	if !errors.Is(err, hsm.ErrKeyCheck) || !strings.Contains(err.Error(), `"zpk-other" has KCV`) || !strings.Contains(err.Error(), "each zone has a key of its own") {
		t.Errorf("got %v", err)
	}
}

// A key of two purposes refuses the start: X9.19 of one block is that block enciphered, and so a PIN block, if the key is a PIN key, too.
func TestAKeyOfTwoPurposesRefusesTheStart(t *testing.T) {
	for _, use := range []hsm.Use{hsm.MACX919, hsm.ZMK} {
		token := hsmtest.Standard(t)
		token.Put("twin", use, hsmtest.ProcessorZPK)
		h, err := hsm.New(token.Config(), slog.New(slog.DiscardHandler), nil)
		if err != nil {
			t.Fatal(err)
		}
		err = h.Open(t.Context())
		if !errors.Is(err, hsm.ErrKeyCheck) || !strings.Contains(err.Error(), `"twin" has KCV`) || !strings.Contains(err.Error(), "a key has one purpose") {
			t.Errorf("%s: got %v", use, err)
		}
	}
	token := hsmtest.Standard(t)
	token.PutAES("twin", hsm.PANToken, hsmtest.SealValue)
	h, err := hsm.New(token.Config(), slog.New(slog.DiscardHandler), nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := h.Open(t.Context()); !errors.Is(err, hsm.ErrKeyCheck) || !strings.Contains(err.Error(), "a key has one purpose") {
		t.Errorf("a seal key that makes PAN tokens: got %v", err)
	}
	token = hsmtest.Standard(t)
	token.Put("same", hsm.PINIn, hsmtest.ProcessorZPK) // of both directions
	h, err = hsm.New(token.Config(), slog.New(slog.DiscardHandler), nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := h.Open(t.Context()); err != nil {
		t.Error(err)
	}
	_ = h.Close()
}
