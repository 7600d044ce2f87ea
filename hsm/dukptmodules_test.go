package hsm_test

import (
	"crypto/aes"
	"crypto/subtle"
	"errors"
	"fmt"
	"testing"

	"acquirerd/card"
	"acquirerd/hsm"
	"acquirerd/hsm/hsmtest"
)

// Keys and blocks of the standards' examples; vectors.json has all of them.
const (
	tdesBDK   = "0123456789ABCDEFFEDCBA9876543210" // X9.24-1:2009, A.4
	aesBDK128 = "FEDCBA9876543210F1F1F1F1F1F1F1F1" // X9.24-3:2017, supplement
	aesBDK256 = aesBDK128 + aesBDK128

	tdesCardOf = "4012345678909"
	aesCardOf  = "4111111111111111"
)

// forBDK puts the keys of a standard token, but for the upstream's: its value is that of tdesBDK, and a key has one purpose.
func forBDK(token *hsmtest.Token) *hsmtest.Token {
	token.Put(hsmtest.ProcessorKey, hsm.PINOut, hsmtest.ProcessorZPK)
	token.Put(hsmtest.SealKey, hsm.PANSeal, hsmtest.SealValue)
	token.Put(hsmtest.TokenKey, hsm.PANToken, hsmtest.TokenValue)
	return token
}

func TestBlocksOfTheStandardsUnderDUKPT(t *testing.T) {
	token := forBDK(hsmtest.New(t))
	token.Put("bdk-tdes", hsm.BDK, unhex(t, tdesBDK))
	token.PutAES("bdk-128", hsm.BDK, unhex(t, aesBDK128))
	token.PutAES("bdk-256", hsm.BDK, unhex(t, aesBDK256))
	h := run(t, token.Config())
	for _, row := range []struct {
		bdk, ksn, pan, block string
		format               hsm.Format
		working              hsm.WorkingKey
	}{
		{"bdk-tdes", "FFFF9876543210E00001", tdesCardOf, "1B9C1845EB993A7A", hsm.ISO0, ""},
		{"bdk-tdes", "9876543210E00002", tdesCardOf, "10A01C8D02C69107", hsm.ISO0, ""},
		{"bdk-tdes", "98765432100000400002", tdesCardOf, "AEF0F261B1222EB1", hsm.ISO0, ""},
		{"bdk-128", "123456789012345600000001", aesCardOf, "A912150391AB65A67E52883D81CE2D15", hsm.ISO4, ""},
		{"bdk-128", "123456789012345600000001", aesCardOf, "A912150391AB65A67E52883D81CE2D15", hsm.ISO4, hsm.AES128},
		{"bdk-128", "123456789012345600000001", aesCardOf, under(t, "630C706D9546E47D4449313F61C4D4AB"), hsm.ISO0, ""},
		{"bdk-128", "123456789012345600000001", aesCardOf, under(t, "630C706D9546E47D4449313F61C4D4AB"), hsm.ISO0, hsm.TDES2},
		{"bdk-128", "123456789012345600000001", aesCardOf, under(t, "EA8B3F37EB9B15831167EF2977FD8762D9B5913F35766F6A"), hsm.ISO0, hsm.TDES3},
		{"bdk-256", "123456789012345600000001", aesCardOf, format4(t, "8C1AB7BEE973829E30242E0BBBDD4946D540C98FC1B5BDCF94790001A23FD502"), hsm.ISO4, ""},
		{"bdk-256", "123456789012345600000001", aesCardOf, format4(t, "09C9C432966811D6B2C3336BAC1B1202"), hsm.ISO4, hsm.AES128},
	} {
		ksn, err := card.ParseKSN(row.ksn)
		if err != nil {
			t.Fatal(err)
		}
		got, err := h.Protect(t.Context(), hsm.Card{PAN: pan(t, row.pan), PINBlock: pinBlockOf(t, row.block), KSN: ksn, Working: row.working,
			From: row.bdk, FromFormat: row.format, To: hsmtest.ProcessorKey})
		if err != nil {
			t.Errorf("%s %s: %v", row.bdk, row.ksn, err)
			continue
		}
		if pin := hsmtest.DecipherPIN(hsmtest.ProcessorZPK, row.pan, got.PINBlock); pin != "1234" {
			t.Errorf("%s %s: got PIN %q", row.bdk, row.ksn, pin)
		}
	}
	for label, want := range map[string]error{"bdk-128": hsm.ErrPINFormat, "bdk-256": nil, "bdk-tdes": hsm.ErrPINFormat} {
		if err := h.CheckWorkingKey(label, hsm.ISO4, hsm.AES256); !errors.Is(err, want) {
			t.Errorf("AES-256 of %s: got %v", label, err)
		}
	}
}

// under is the block of PIN 1234 of aesCardOf in format 0 under a TDES key.
func under(t *testing.T, key string) string {
	t.Helper()
	return fmt.Sprintf("%X", hsmtest.EncipherPIN(unhex(t, key), aesCardOf, "1234").Reveal())
}

// format4 is the same in format 4 under an AES key.
func format4(t *testing.T, key string) string {
	t.Helper()
	cipher, err := aes.NewCipher(unhex(t, key))
	if err != nil {
		t.Fatal(err)
	}
	block, account := unhex(t, "441234AAAAAAAAAA0011223344556677"), unhex(t, "44111111111111111000000000000000")
	cipher.Encrypt(block, block)
	subtle.XORBytes(block, block, account)
	cipher.Encrypt(block, block)
	return fmt.Sprintf("%X", block)
}

func pinBlockOf(t *testing.T, digits string) card.PINBlock {
	t.Helper()
	block, err := card.NewPINBlock(unhex(t, digits))
	if err != nil {
		t.Fatal(err)
	}
	return block
}

func TestMACsUnderDUKPTAreThoseOfTheirDeviceAndDirection(t *testing.T) {
	token := forBDK(hsmtest.New(t))
	token.Put("bdk-tdes", hsm.BDK, unhex(t, tdesBDK))
	token.PutAES("bdk-128", hsm.BDK, unhex(t, aesBDK128))
	h := run(t, token.Config())
	const tdesKSN, aesKSN = "FFFF9876543210E00001", "123456789012345600000001"
	data := []byte("4012345678909D987")
	key := func(label, digits string, d hsm.Direction) hsm.MACKey {
		ksn, err := card.ParseKSN(digits)
		if err != nil {
			t.Fatal(err)
		}
		return hsm.MACKey{Label: label, KSN: ksn, Direction: d}
	}
	for _, row := range []struct {
		key  hsm.MACKey
		want string // the left-most 8 bytes, by vectors.json
	}{
		{key("bdk-tdes", tdesKSN, hsm.Request), "9CCC78173FC4FB64"},
		{key("bdk-tdes", tdesKSN, hsm.Response), "20364223C1FF00FA"},
		{key("bdk-128", aesKSN, hsm.Request), "A2EB5C1C35809E58"},
		{key("bdk-128", aesKSN, hsm.Response), "DD4E1895FD9BF53D"},
	} {
		mac, err := h.MAC(t.Context(), row.key, data)
		if err != nil || fmt.Sprintf("%X", mac) != row.want {
			t.Errorf("%+v: got %X, %v", row.key, mac, err)
		}
		if err := h.VerifyMAC(t.Context(), row.key, data, unhex(t, row.want)[:4]); err != nil {
			t.Errorf("%+v: its own MAC is refused: %v", row.key, err)
		}
		other := row.key
		other.Direction = hsm.Response - row.key.Direction
		if err := h.VerifyMAC(t.Context(), other, data, unhex(t, row.want)); !errors.Is(err, hsm.ErrMAC) {
			t.Errorf("%+v: the MAC of the other direction: got %v", row.key, err)
		}
	}
	for name, k := range map[string]hsm.MACKey{
		"no number":                    {Label: "bdk-tdes"},
		"the number of no transaction": key("bdk-tdes", "FFFF9876543210E00000", hsm.Request),
		"a number of AES":              key("bdk-tdes", aesKSN, hsm.Request),
		"a number of TDES":             key("bdk-128", tdesKSN, hsm.Request),
	} {
		if _, err := h.MAC(t.Context(), k, data); !errors.Is(err, hsm.ErrKSN) {
			t.Errorf("%s: got %v", name, err)
		}
	}
}
