package hsm_test

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/des"
	"errors"
	"testing"

	"acquirerd/hsm"
	"acquirerd/hsm/hsmtest"
)

// eachCeremony runs a test in a session of each token.
func eachCeremony(t *testing.T, do func(*testing.T, *hsm.Ceremony)) {
	for name, token := range map[string]func(testing.TB) *hsmtest.Token{"softhsm": hsmtest.New, "nss": hsmtest.NewNSS} {
		t.Run(name, func(t *testing.T) {
			inCeremony(t, token(t), func(c *hsm.Ceremony) {
				if c.Resident() != (name == "nss") {
					t.Errorf("the token works on key blocks by itself: %t", c.Resident())
				}
				do(t, c)
			})
		})
	}
}

// inCeremony lends a session of a token.
func inCeremony(t *testing.T, token *hsmtest.Token, do func(*hsm.Ceremony)) {
	t.Helper()
	if err := hsm.InCeremony(token.Config(), func(c *hsm.Ceremony) error { do(c); return nil }); err != nil {
		t.Fatal(err)
	}
}

// zerosUnder is a block of zeros enciphered by the standard library.
func zerosUnder(t *testing.T, isAES bool, key []byte) []byte {
	t.Helper()
	var block cipher.Block
	var err error
	switch {
	case isAES:
		block, err = aes.NewCipher(key)
	case len(key) == 16:
		block, err = des.NewTripleDESCipher(append(bytes.Clone(key), key[:8]...))
	default:
		block, err = des.NewTripleDESCipher(key)
	}
	if err != nil {
		t.Fatal(err)
	}
	out := make([]byte, block.BlockSize())
	block.Encrypt(out, out)
	return out
}

// blockRefused wants a block to be refused in both ways.
func blockRefused(t *testing.T, c *hsm.Ceremony, kbpk []byte, text string) {
	t.Helper()
	if _, err := c.OpenClear(kbpk, text); !errors.Is(err, hsm.ErrKeyBlock) {
		t.Errorf("%s: transient: got %v", text, err)
	}
	if c.Resident() {
		if _, err := c.OpenInside(kbpk, text); !errors.Is(err, hsm.ErrKeyBlock) {
			t.Errorf("%s: token-resident: got %v", text, err)
		}
	}
}

// A block that one way makes, the other way opens; whatever of it is changed, and by whatever other key it is opened, it is refused. Its length tells nothing of its
// key's.
func TestABlockIsSealedAndOpened(t *testing.T) {
	eachCeremony(t, func(t *testing.T, c *hsm.Ceremony) {
		tdes, aes128, aes256 := unhex(t, "DD7515F2BFC17F85CE48F3CA25CB21F6"), unhex(t, "000102030405060708090A0B0C0D0E0F"), unhex(t, "88E1AB2A2E3DD38C1FA039A536500CC8A87AB9D62DC92C01058FA79F44657DE6")
		for _, test := range []struct {
			name   string
			kbpk   []byte
			header hsm.BlockHeader
			key    string
			length int // of the block in characters
		}{
			{"TDES under TDES", tdes, hsm.BlockHeader{Version: 'B', Usage: "P0", Algorithm: 'T', Mode: 'E', KeyVersion: "00", Exportability: 'N'}, "3F419E1CB7079442AA37474C2EFBF8B8", 96},
			{"3-key TDES under TDES", tdes, hsm.BlockHeader{Version: 'B', Usage: "P0", Algorithm: 'T', Mode: 'E', KeyVersion: "00", Exportability: 'N'}, "3F419E1CB7079442AA37474C2EFBF8B85DB50B454F8389AD", 96},
			{"TDES under AES-128", aes128, hsm.BlockHeader{Version: 'D', Usage: "P0", Algorithm: 'T', Mode: 'E', KeyVersion: "00", Exportability: 'N'}, "3F419E1CB7079442AA37474C2EFBF8B8", 112},
			{"AES-128 under AES-256", aes256, hsm.BlockHeader{Version: 'D', Usage: "P0", Algorithm: 'A', Mode: 'E', KeyVersion: "00", Exportability: 'N'}, "3F419E1CB7079442AA37474C2EFBF8B8", 144},
			{"AES-256 under AES-256", aes256, hsm.BlockHeader{Version: 'D', Usage: "B0", Algorithm: 'A', Mode: 'X', KeyVersion: "12", Exportability: 'S', Optional: []hsm.OptionalBlock{{ID: "KS", Value: "1234"}}},
				"3F419E1CB7079442AA37474C2EFBF8B83F419E1CB7079442AA37474C2EFBF8B9", 160},
		} {
			t.Run(test.name, func(t *testing.T) {
				for _, resident := range []bool{false, true} {
					if resident && !c.Resident() {
						continue
					}
					text, err := c.SealClear(test.kbpk, test.header, unhex(t, test.key), resident)
					if err != nil || len(text) != test.length {
						t.Fatalf("resident %t: %d characters %s, %v", resident, len(text), text, err)
					}
					again, err := c.SealClear(test.kbpk, test.header, unhex(t, test.key), resident)
					if err != nil || again == text {
						t.Errorf("resident %t: the padding is not random", resident)
					}
					if key, err := c.OpenClear(test.kbpk, text); err != nil || !bytes.Equal(key, unhex(t, test.key)) {
						t.Errorf("resident %t: got another key, or %v", resident, err)
					}
					if c.Resident() {
						isAES := test.header.Algorithm == 'A'
						if zeros, err := c.OpenInside(test.kbpk, text); err != nil || !bytes.Equal(zeros, zerosUnder(t, isAES, unhex(t, test.key))) {
							t.Errorf("resident %t: inside: another key, or %v", resident, err)
						}
					}
					for at := range text { // whatever is changed, it is refused
						other := "0"
						if text[at] == '0' {
							other = "1"
						}
						if at%7 != 0 && at > 40 {
							continue
						}
						blockRefused(t, c, test.kbpk, text[:at]+other+text[at+1:])
					}
					wrong := bytes.Clone(test.kbpk)
					wrong[0] ^= 0x10
					blockRefused(t, c, wrong, text)
				}
			})
		}
	})
}
