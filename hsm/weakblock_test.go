package hsm_test

import (
	"bytes"
	"crypto/des"
	"encoding/binary"
	"errors"
	"strings"
	"testing"

	"acquirerd/hsm"
	"acquirerd/hsm/hsmtest"
)

// A key that is weaker than it looks is refused whether or not it is ever seen outside the token.
func TestWeakKeysInBlocksAreRefused(t *testing.T) {
	keys := weakTDES(t)
	eachCeremony(t, func(t *testing.T, c *hsm.Ceremony) {
		for name, key := range keys {
			h := hsm.BlockHeader{Version: 'D', Usage: "P0", Algorithm: 'T', Mode: 'E', KeyVersion: "00", Exportability: 'N'}
			text, err := c.SealClear(hsmtest.SealValue, h, key, c.Resident())
			if err != nil {
				t.Fatal(err)
			}
			if about, err := c.ImportSession(hsmtest.SealValue, text, hsm.NewKey{Label: "new", Use: hsm.PINOut}); !errors.Is(err, hsm.ErrKeyBlock) || !c.IsClean() {
				t.Errorf("%s: got %+v, %v", name, about, err)
			}
		}
		for _, zeros := range []struct {
			use             hsm.Use
			usage           string
			algorithm, mode byte
			length          int
		}{{hsm.PINOut, "P0", 'A', 'E', 32}, {hsm.PINOut, "P0", 'A', 'E', 16}, {hsm.MACHMAC, "M7", 'H', 'C', 32}} {
			h := hsm.BlockHeader{Version: 'D', Usage: zeros.usage, Algorithm: zeros.algorithm, Mode: zeros.mode, KeyVersion: "00", Exportability: 'N'}
			text, err := c.SealClear(hsmtest.SealValue, h, make([]byte, zeros.length), c.Resident())
			if err != nil {
				t.Fatal(err)
			}
			if about, err := c.ImportSession(hsmtest.SealValue, text, hsm.NewKey{Label: "new", Use: zeros.use}); !errors.Is(err, hsm.ErrKeyBlock) || !strings.Contains(err.Error(), "all zeros") {
				t.Errorf("zeros for %s: got %+v, %v", zeros.use, about, err)
			}
		}
	})
}

func TestWeakKeysInCryptogramsAreRefused(t *testing.T) {
	keys := weakTDES(t)
	eachKind(t, func(t *testing.T, token *hsmtest.Token) {
		zmk := hsmtest.ZoneKey("zmk", 24)
		token.Put("zmk", hsm.ZMK, zmk)
		for name, key := range keys {
			n := hsm.NewKey{Label: "new", Use: hsm.PINOut, KCV: hsmtest.KCV(hsm.PINOut, key)}
			if about, err := hsm.ImportCryptogram(token.Config(), n, hsmtest.Cryptogram(zmk, key), "zmk", false); !errors.Is(err, hsm.ErrCryptogram) {
				t.Errorf("%s: got %+v, %v", name, about, err)
			}
		}
	})
}

func weakTDES(t *testing.T) map[string][]byte {
	a, b := hsmtest.ZoneKey("weak", 16)[:8], hsmtest.ZoneKey("weak", 16)[8:]
	weak, semiWeak := bytes.Repeat([]byte{0xFE}, 8), unhex(t, "1FE01FE00EF10EF1")
	return map[string][]byte{
		"equal halves":            bytes.Join([][]byte{a, a}, nil),
		"equal halves but parity": bytes.Join([][]byte{a, flipParity(a)}, nil),
		"equal first thirds":      bytes.Join([][]byte{a, a, b}, nil),
		"equal last thirds":       bytes.Join([][]byte{b, a, a}, nil),
		"equal outer thirds":      bytes.Join([][]byte{a, b, a}, nil),
		"a weak half":             bytes.Join([][]byte{a, weak}, nil),
		"a semi-weak half":        bytes.Join([][]byte{semiWeak, a}, nil),
	}
}

func TestWeakKeysAreKnownByWhatTheyEncipher(t *testing.T) {
	all := hsm.WeakDES()
	for key, want := range all {
		cipher, err := des.NewCipher(key[:])
		if err != nil {
			t.Fatal(err)
		}
		out := make([]byte, 8)
		if cipher.Encrypt(out, out); binary.BigEndian.Uint64(out) != want {
			t.Errorf("%X: got %X, want %X", key, want, out)
		}
	}
	if len(all) != 16 {
		t.Errorf("got %d", len(all))
	}
}

func flipParity(part []byte) []byte {
	flipped := bytes.Clone(part)
	for i := range flipped {
		flipped[i] ^= 1
	}
	return flipped
}
