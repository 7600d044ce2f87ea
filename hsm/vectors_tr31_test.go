package hsm_test

import (
	"bytes"
	"errors"
	"strings"
	"testing"

	"acquirerd/hsm"
)

// The vectors of key blocks, check values and cryptograms.
func init() {
	for op, do := range map[string]func(*testing.T, *hsm.Ceremony, *vector){
		"tr31_unwrap": openBlock, "tr31_reject": refuseBlock, "tr31_kdf": deriveBlockKeys, "kcv": checkValues, "zmk_unwrap": openCryptogram,
	} {
		registerVectors(op, true, func(t *testing.T, on *vectorToken, v *vector) {
			inCeremony(t, on.Token, func(c *hsm.Ceremony) { do(t, c, v) })
		})
	}
}

// openBlock compares the key of the transient way, and where the token can, what the key of the token-resident way enciphers.
func openBlock(t *testing.T, c *hsm.Ceremony, v *vector) {
	kbpk, text := v.bytes(t, "kbpk"), v.text(t, "block")
	key, err := c.OpenClear(kbpk, text)
	if v.refused(t, err) {
		return
	}
	v.want(t, "key", key)
	header, err := hsm.ParseHeader(text)
	if err != nil {
		t.Fatal(err)
	}
	isAES := header.Algorithm == 'A'
	taken := isAES || header.Algorithm == 'T' && len(key) > 8 // by a use of ours: no single DES, no private key
	if v.expects("kcv") {
		usual := ""
		if taken {
			usual, _, err = c.CheckValues(map[bool]hsm.Algorithm{true: hsm.AES, false: hsm.TDES}[isAES], key)
		}
		if usual == "" || err != nil {
			t.Fatalf("got %q, %v", usual, err)
		}
		v.wantText(t, "kcv", cut(usual, v.Out["kcv"]))
	}
	if !c.Resident() {
		return
	}
	zeros, err := c.OpenInside(kbpk, text)
	switch {
	case !taken && err == nil:
		t.Error("token-resident: a key was taken that no use has")
	case taken && (err != nil || !bytes.Equal(zeros, zerosUnder(t, isAES, key))):
		t.Errorf("token-resident: another key, or %v", err)
	}
}

// cut makes a check value of ours as long as the one that is expected, up to the 3 bytes that we compare.
func cut(usual string, want any) string {
	if text, is := want.(string); is && strings.HasPrefix(text, usual) {
		return text
	}
	return usual
}

func refuseBlock(t *testing.T, c *hsm.Ceremony, v *vector) {
	kbpk, text := v.bytes(t, "kbpk"), v.text(t, "block")
	_, err := c.OpenClear(kbpk, text)
	v.refused(t, err)
	if !errors.Is(err, hsm.ErrKeyBlock) {
		t.Errorf("transient: got %v", err)
	}
	if c.Resident() {
		if _, err := c.OpenInside(kbpk, text); !errors.Is(err, hsm.ErrKeyBlock) {
			t.Errorf("token-resident: got %v", err)
		}
	}
}

// deriveBlockKeys compares what the two keys encipher zeros to: they never leave the token.
func deriveBlockKeys(t *testing.T, c *hsm.Ceremony, v *vector) {
	version, known := map[string]byte{"variant tdes": 'A', "derive tdes": 'B', "derive aes": 'D'}[v.text(t, "method")+" "+v.text(t, "alg")]
	if !known {
		t.Fatal("no key block is protected in this way")
	}
	kbek, kbak, err := c.KDFZeros(v.bytes(t, "kbpk"), version)
	if v.refused(t, err) {
		return
	}
	for field, zeros := range map[string][]byte{"kbek": kbek, "kbak": kbak} {
		want, _ := v.Out[field].(string)
		if bytes.Equal(zeros, zerosUnder(t, version == 'D', unhex(t, want))) {
			v.want(t, field, unhex(t, want))
		}
	}
}

func checkValues(t *testing.T, c *hsm.Ceremony, v *vector) {
	algorithm, known := map[string]hsm.Algorithm{"tdea": hsm.TDES, "aes": hsm.AES}[v.text(t, "alg")]
	if !known {
		t.Fatal("no key of ours is of this algorithm")
	}
	usual, zeros, err := c.CheckValues(algorithm, v.bytes(t, "key"))
	if v.refused(t, err) {
		return
	}
	switch method := v.text(t, "method"); {
	case method == "ecb0":
		v.wantText(t, "kcv", cut(zeros, v.Out["kcv"]))
	case method == "cmac0" && algorithm == hsm.AES:
		v.wantText(t, "kcv", cut(usual, v.Out["kcv"]))
	}
}

func openCryptogram(t *testing.T, c *hsm.Ceremony, v *vector) {
	mode := v.text(t, "mode")
	if mode != "ecb" && mode != "cbc" {
		t.Fatal("no cryptogram comes in this mode")
	}
	kcv, err := c.CryptogramKCV(v.bytes(t, "zmk"), v.bytes(t, "cryptogram"), mode == "cbc")
	if v.refused(t, err) {
		return
	}
	v.wantText(t, "kcv", kcv)
}
