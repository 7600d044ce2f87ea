package hsm_test

import (
	"bytes"
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/des"
	"crypto/hmac"
	"crypto/sha256"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"testing"

	"acquirerd/hsm"
	"acquirerd/hsm/hsmtest"

	"github.com/miekg/pkcs11"
)

// Clear keys of these tests.
var (
	retailValue = hsmtest.ZoneKey("that makes MACs", 16)
	cmacValue   = hsmtest.ZoneKey("that makes CMACs", 16)
	aesValue    = hsmtest.SealValue[:16]
	hmacValue   = hsmtest.TokenValue
)

// retail is ANS X9.19 by the standard library's single DES, which the token does not use.
func retail(key, padded []byte) []byte {
	left, err := des.NewCipher(key[:8])
	if err != nil {
		panic(err)
	}
	right, err := des.NewCipher(key[8:])
	if err != nil {
		panic(err)
	}
	mac := make([]byte, 8)
	for i := 0; i < len(padded); i += 8 {
		for j := range mac {
			mac[j] ^= padded[i+j]
		}
		left.Encrypt(mac, mac)
	}
	right.Decrypt(mac, mac)
	left.Encrypt(mac, mac)
	return mac
}

// cmacOf is NIST SP 800-38B, 6.2.
func cmacOf(block cipher.Block, text []byte) []byte {
	size := block.BlockSize()
	double := func(b []byte) []byte {
		out := make([]byte, size)
		for i := range out {
			out[i] = b[i] << 1
			if i+1 < size {
				out[i] |= b[i+1] >> 7
			}
		}
		if b[0]&0x80 != 0 {
			out[size-1] ^= map[int]byte{8: 0x1B, 16: 0x87}[size]
		}
		return out
	}
	subkey := make([]byte, size)
	block.Encrypt(subkey, subkey)
	subkey = double(subkey)
	text = bytes.Clone(text)
	if len(text) == 0 || len(text)%size != 0 {
		subkey = double(subkey)
		for text = append(text, 0x80); len(text)%size != 0; {
			text = append(text, 0)
		}
	}
	mac := make([]byte, size)
	for i := 0; i < len(text); i += size {
		for j := range mac {
			if mac[j] ^= text[i+j]; i+size == len(text) {
				mac[j] ^= subkey[j]
			}
		}
		block.Encrypt(mac, mac)
	}
	return mac
}

func aesBlock(key []byte) cipher.Block {
	block, err := aes.NewCipher(key)
	if err != nil {
		panic(err)
	}
	return block
}

func hmacOf(key, text []byte) []byte {
	h := hmac.New(sha256.New, key)
	_, _ = h.Write(text)
	return h.Sum(nil)
}

// macToken is a token with a key of each kind that makes MACs.
func macToken(t *testing.T, token *hsmtest.Token) *hsmtest.Token {
	t.Helper()
	token.Put("retail", hsm.MACX919, retailValue)
	token.PutAES("aes", hsm.MACCMAC, aesValue)
	token.Put("hmac", hsm.MACHMAC, hmacValue)
	token.Put("tdes", hsm.MACCMAC, cmacValue)
	return token
}

func TestMACsOfATokenAreThoseOfTheStandards(t *testing.T) {
	t.Run("SoftHSM", func(t *testing.T) { wantMACs(t, run(t, macToken(t, hsmtest.Standard(t)).Config())) })
	t.Run("NSS", func(t *testing.T) { wantMACs(t, run(t, macToken(t, hsmtest.StandardNSS(t)).Config())) })
}

func wantMACs(t *testing.T, h *hsm.HSM) {
	t.Helper()
	padded := func(text []byte, first ...byte) []byte {
		for text = append(bytes.Clone(text), first...); len(text) == 0 || len(text)%8 != 0; {
			text = append(text, 0)
		}
		return text
	}
	for _, length := range []int{0, 1, 7, 8, 9, 15, 16, 17, 31, 32, 64, 999} {
		text := bytes.Repeat([]byte("0123456789ABCDEF!"), 60)[:length]
		bits := make([]byte, 8)
		bits[6], bits[7] = byte(8*length>>8), byte(8*length)
		for name, test := range map[string]struct {
			key  hsm.MACKey
			want []byte
		}{
			"X9.19":           {hsm.MACKey{Label: "retail"}, retail(retailValue, padded(text))},
			"X9.19, method 1": {hsm.MACKey{Label: "retail", Padding: hsm.PaddingZeros}, retail(retailValue, padded(text))},
			"X9.19, method 2": {hsm.MACKey{Label: "retail", Padding: hsm.PaddingOne}, retail(retailValue, padded(text, 0x80))},
			"X9.19, method 3": {hsm.MACKey{Label: "retail", Padding: hsm.PaddingLength}, retail(retailValue, append(bits, padded(text)...))},
			"CMAC of AES":     {hsm.MACKey{Label: "aes"}, cmacOf(aesBlock(aesValue), text)[:8]},
			"CMAC of TDES":    {hsm.MACKey{Label: "tdes"}, cmacOf(tripleDES(t, cmacValue), text)},
			"HMAC":            {hsm.MACKey{Label: "hmac"}, hmacOf(hmacValue, text)[:8]},
		} {
			given := bytes.Clone(text)
			got, err := h.MAC(t.Context(), test.key, given)
			if err != nil || !bytes.Equal(got, test.want) || !bytes.Equal(given, text) {
				t.Errorf("%s of %d bytes: got %X, %v; want %X", name, length, got, err, test.want)
				continue
			}
			for n := 1; n <= 8; n++ {
				if err := h.VerifyMAC(t.Context(), test.key, text, got[:n]); (err == nil) != (n >= 4) || err != nil && !errors.Is(err, hsm.ErrMAC) {
					t.Errorf("%s: %d bytes of the right one: %v", name, n, err)
				}
			}
			for bit := range 64 {
				wrong := bytes.Clone(got)
				wrong[bit/8] ^= 1 << (bit % 8)
				if err := h.VerifyMAC(t.Context(), test.key, text, wrong); !errors.Is(err, hsm.ErrMAC) {
					t.Errorf("%s: another bit %d: %v", name, bit, err)
				}
			}
			if err := h.VerifyMAC(t.Context(), test.key, text, append(got, 0)); !errors.Is(err, hsm.ErrMAC) {
				t.Errorf("%s: nine bytes: %v", name, err)
			}
		}
	}
}

func TestAMACIsMadeByItsKeysAlone(t *testing.T) {
	h := run(t, macToken(t, hsmtest.Standard(t)).Config())
	for _, label := range []string{hsmtest.UpstreamKey, hsmtest.TokenKey, hsmtest.SealKey, "retail/left", "nobody"} {
		if got, err := h.MAC(t.Context(), hsm.MACKey{Label: label}, []byte("text")); got != nil || !errors.Is(err, hsm.ErrUnavailable) {
			t.Errorf("%s: got %X, %v", label, got, err)
		}
	}
	for _, padding := range []hsm.Padding{-1, 4} {
		if _, err := h.MAC(t.Context(), hsm.MACKey{Label: "retail", Padding: padding}, []byte("text")); !errors.Is(err, hsm.ErrUnavailable) {
			t.Errorf("padding %d: %v", padding, err)
		}
	}
	if _, err := h.MAC(t.Context(), hsm.MACKey{Label: "aes"}, make([]byte, 1<<20+1)); !errors.Is(err, hsm.ErrUnavailable) {
		t.Errorf("a long one: %v", err)
	}
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	if err := h.VerifyMAC(gone, hsm.MACKey{Label: "aes"}, []byte("text"), make([]byte, 8)); !errors.Is(err, hsm.ErrUnavailable) || errors.Is(err, hsm.ErrMAC) {
		t.Errorf("a caller that is gone: %v", err)
	}
}

// The two objects of a mac-x919 key belong together: a key whose left half is gone, is another's, or may do more, is refused at the start.
func TestAMACKeyIsTwoObjectsOrNone(t *testing.T) {
	other := hsmtest.ZoneKey("another", 16)
	put := func(m *pkcs11.Ctx, s pkcs11.SessionHandle, id, left []byte, instead ...*pkcs11.Attribute) error {
		label := "retail"
		err := hsmtest.Create(m, s, label, hsm.MACX919, retailValue, pkcs11.NewAttribute(pkcs11.CKA_ID, id))
		if left != nil {
			err = errors.Join(err, hsmtest.Create(m, s, label+"/left", hsm.MACX919, left, instead...))
		}
		return err
	}
	half := bytes.Repeat(retailValue[:8], 2)
	tied := []byte("retail left:" + hsmtest.KCV(hsm.MACX919, half))
	for name, test := range map[string]struct {
		id, left []byte
		instead  []*pkcs11.Attribute
		want     string
	}{
		"right":            {tied, half, nil, ""},
		"not tied":         {[]byte("retail"), half, nil, "does not say in its CKA_ID which left half it has"},
		"no left half":     {tied, nil, nil, `has 0 keys "retail/left", not one`},
		"another's half":   {tied, bytes.Repeat(other[:8], 2), nil, "has another left half"},
		"the key itself":   {tied, retailValue, nil, "has another left half"},
		"one that reveals": {tied, half, []*pkcs11.Attribute{pkcs11.NewAttribute(pkcs11.CKA_DECRYPT, true)}, "retail/left is not decrypt=false"},
	} {
		token := hsmtest.Standard(t)
		token.Use(func(m *pkcs11.Ctx) {
			if err := put(m, token.Login(m), test.id, test.left, test.instead...); err != nil {
				t.Fatal(err)
			}
		})
		cfg := token.Config()
		cfg.Keys = append(cfg.Keys, hsm.Key{Label: "retail", Use: hsm.MACX919, KCV: hsmtest.KCV(hsm.MACX919, retailValue)})
		h, err := hsm.New(cfg, slog.New(slog.DiscardHandler), nil)
		if err != nil {
			t.Fatal(err)
		}
		err = h.Open(t.Context())
		if test.want == "" && err != nil || test.want != "" && (!errors.Is(err, hsm.ErrKeyCheck) || !strings.Contains(err.Error(), test.want)) {
			t.Errorf("%s: got %v, want %q", name, err, test.want)
		}
		if err == nil {
			_ = h.Close()
		}
	}
}

func TestMACKeysAreGeneratedAndImported(t *testing.T) {
	token := hsmtest.Standard(t)
	cfg := token.Config()
	for label, use := range map[string]hsm.Use{"retail": hsm.MACX919, "aes": hsm.MACCMAC, "hmac": hsm.MACHMAC} {
		about, err := hsm.Generate(cfg, hsm.NewKey{Label: label, Use: use})
		if err != nil || about.Use != use || len(about.KCV) != 6 {
			t.Fatalf("%s: got %+v, %v", use, about, err)
		}
		cfg.Keys = append(cfg.Keys, hsm.Key{Label: label, Use: use, KCV: about.KCV})
		if _, err := hsm.Generate(cfg, hsm.NewKey{Label: label, Use: use}); !errors.Is(err, hsm.ErrKeyExists) {
			t.Errorf("%s twice: %v", use, err)
		}
	}
	// A value of custodians.
	components := func() []hsm.Component {
		one := hsmtest.ZoneKey("one", 16)
		return []hsm.Component{{Value: one}, {Value: xor(one, retailValue)}}
	}
	if _, err := hsm.ImportComponents(cfg, hsm.NewKey{Label: "theirs", Use: hsm.MACX919, KCV: "000000"}, components()); !errors.Is(err, hsm.ErrOtherKCV) {
		t.Errorf("another check value: %v", err)
	}
	about, err := hsm.ImportComponents(cfg, hsm.NewKey{Label: "theirs", Use: hsm.MACX919, KCV: hsmtest.KCV(hsm.MACX919, retailValue)}, components())
	if err != nil { // also: nothing was left of the one that was refused
		t.Fatal(err)
	}
	cfg.Keys = append(cfg.Keys, hsm.Key{Label: "theirs", Use: hsm.MACX919, KCV: about.KCV})
	h := run(t, cfg)
	text := []byte("sixteen bytes of")
	if got, err := h.MAC(t.Context(), hsm.MACKey{Label: "theirs"}, text); err != nil || !bytes.Equal(got, retail(retailValue, text)) {
		t.Errorf("got %X, %v", got, err)
	}
	for _, label := range []string{"retail", "aes", "hmac"} {
		got, err := h.MAC(t.Context(), hsm.MACKey{Label: label}, text)
		if err != nil || h.VerifyMAC(t.Context(), hsm.MACKey{Label: label}, text, got) != nil {
			t.Errorf("%s: got %X, %v", label, got, err)
		}
	}
}

func xor(a, b []byte) []byte {
	out := bytes.Clone(a)
	for i := range out {
		out[i] ^= b[i]
	}
	return out
}

func TestTheStatementSaysHowMACsAreMade(t *testing.T) {
	h := run(t, macToken(t, hsmtest.Standard(t)).Config())
	var got []string
	for _, o := range h.Statement().Operations {
		if strings.HasPrefix(o.Name, "MAC ") && o.InUse && o.Way == hsm.TokenResident {
			got = append(got, o.Mechanism)
		}
	}
	if want := []string{"CKM_DES3_CBC, twice (X9.19)", "CKM_DES3_CMAC", "CKM_AES_CMAC", "CKM_SHA256_HMAC"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}
