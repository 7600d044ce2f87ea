package hsm_test

import (
	"bytes"
	"context"
	"log/slog"
	"strings"
	"testing"

	"acquirerd/hsm"
)

func init() {
	registerVectors("retail_mac", true, retailMAC)
	registerVectors("cbc_mac", true, isNoRetailMAC)
	registerVectors("cmac", true, cmacOfVector)
}

// macOn makes a whole MAC on a token, by a key that put makes there.
func macOn(t *testing.T, on *vectorToken, v *vector, put func(label string) hsm.Key, padding hsm.Padding) ([]byte, error) {
	t.Helper()
	key := put(v.ID)
	seal, token := on.Put(v.ID+" seal", hsm.PANSeal, bytes.Repeat([]byte{1}, 32)), on.Put(v.ID+" token", hsm.PANToken, bytes.Repeat([]byte{2}, 32))
	cfg := on.Config()
	cfg.Keys, cfg.SealKey, cfg.TokenKey = []hsm.Key{key, seal, token}, seal.Label, token.Label
	h, err := hsm.New(cfg, slog.New(slog.DiscardHandler), nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := h.Open(t.Context()); err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- h.Run(ctx) }()
	defer func() {
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}()
	return h.WholeMAC(t.Context(), hsm.MACKey{Label: key.Label, Padding: padding}, v.bytes(t, "data"))
}

// paddingOf is a method of ISO/IEC 9797-1.
func paddingOf(t *testing.T, v *vector) hsm.Padding {
	t.Helper()
	number, is := v.In["padding"].(float64)
	if !is {
		t.Fatal("the vector has no padding")
	}
	return hsm.Padding(number)
}

func retailMACOn(t *testing.T, on *vectorToken, v *vector) ([]byte, error) {
	t.Helper()
	return macOn(t, on, v, func(label string) hsm.Key { return on.Put(label, hsm.MACX919, v.bytes(t, "key")) }, paddingOf(t, v))
}

func retailMAC(t *testing.T, on *vectorToken, v *vector) {
	got, err := retailMACOn(t, on, v)
	if v.refused(t, err) {
		return
	}
	v.want(t, "mac", got)
}

// isNoRetailMAC is of controls: TDES in CBC over all blocks is no MAC of ours, though a token has it (CKM_DES3_MAC).
func isNoRetailMAC(t *testing.T, on *vectorToken, v *vector) {
	got, err := retailMACOn(t, on, v)
	if v.refused(t, err) {
		return
	}
	block := tripleDES(t, v.bytes(t, "key"))
	text := v.bytes(t, "data")
	bits := byte(8 * len(text))
	if paddingOf(t, v) == hsm.PaddingOne {
		text = append(text, 0x80)
	}
	for len(text)%8 != 0 {
		text = append(text, 0)
	}
	if paddingOf(t, v) == hsm.PaddingLength {
		text = append([]byte{7: bits}, text...)
	}
	chained := make([]byte, 8)
	for i := 0; i < len(text); i += 8 {
		for j := range chained {
			chained[j] ^= text[i+j]
		}
		block.Encrypt(chained, chained)
	}
	v.want(t, "mac", chained)
	if bytes.Equal(got, chained) {
		t.Error("X9.19 is taken for a CBC-MAC by TDES")
	}
}

func cmacOfVector(t *testing.T, on *vectorToken, v *vector) {
	algorithm := v.text(t, "alg")
	if algorithm == "aes192" {
		v.skip(t, "AES keys have 128 or 256 bits here")
	}
	put := on.Put
	if strings.HasPrefix(algorithm, "aes") {
		put = on.PutAES
	}
	got, err := macOn(t, on, v, func(label string) hsm.Key { return put(label, hsm.MACCMAC, v.bytes(t, "key")) }, 0)
	if v.refused(t, err) {
		return
	}
	v.want(t, "mac", got)
}
