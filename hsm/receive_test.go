package hsm_test

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"acquirerd/hsm"
	"acquirerd/hsm/hsmtest"
)

// eachKind runs a test on an empty token of each kind: SoftHSM, where keys pass through locked memory, and NSS, where they do not.
func eachKind(t *testing.T, do func(*testing.T, *hsmtest.Token)) {
	t.Run("softhsm", func(t *testing.T) { do(t, hsmtest.New(t)) })
	t.Run("nss", func(t *testing.T) { do(t, hsmtest.NewNSS(t)) })
}

// labels of all secret keys in a token.
func labels(t *testing.T, token *hsmtest.Token) []string {
	t.Helper()
	keys, err := hsm.List(token.Config())
	if err != nil {
		t.Fatal(err)
	}
	var all []string
	for _, k := range keys {
		all = append(all, k.Label)
	}
	return all
}

// Blocks of the standards, as each use of ours takes them or not.
func TestKeyBlocksAreImported(t *testing.T) {
	eachKind(t, func(t *testing.T, token *hsmtest.Token) {
		cfg := token.Config()
		tdes := token.Put("kbpk-tdes", hsm.KBPK, unhex(t, "DD7515F2BFC17F85CE48F3CA25CB21F6"))
		token.PutAES("kbpk-aes", hsm.KBPK, unhex(t, "88E1AB2A2E3DD38C1FA039A536500CC8A87AB9D62DC92C01058FA79F44657DE6"))
		token.Put("zmk", hsm.ZMK, hsmtest.ZoneKey("zmk", 16))
		const (
			b    = "B0080P0TE00E000094B420079CC80BA3461F86FE26EFC4A3B8E4FA4C5F5341176EED7B727B8A248E"                                                                 // TR-31:2018, A.7.2.2
			d    = "D0112P0AE00E0000B82679114F470F540165EDFBF7E250FCEA43F810D215F8D207E2E417C07156A27E8E31DA05F7425509593D03A457DC34"                                 // A.7.4
			d143 = "D0144P0AE00E00002C77FA3F4A553BED6E88AE5C172A4166E3D4ACA8E2AC71C158A476FAC12C13C3829DE55D3AB54C48F4C4FEF7AC75E90FC47F1B77E7B19A73ED46E64410082557" // X9.143:2021, 8.1
			a    = "A0072P0TE00E0000F5161ED902807AF26F1D62263644BD24192FDB3193C730301CEE8701"                                                                         // A.7.2.1
		)
		before := labels(t, token)
		for _, test := range []struct {
			name, block, kbpk string
			key               hsm.NewKey
			want              error
			says              string
		}{
			{"another use", b, "kbpk-tdes", hsm.NewKey{Use: hsm.ZMK}, hsm.ErrKeyBlock, "usage is P0, and that of a zmk key is K0"},
			{"another mode", b, "kbpk-tdes", hsm.NewKey{Use: hsm.PINIn}, hsm.ErrKeyBlock, "mode is E, and a pin-in key needs D or B or N"},
			{"another algorithm", b, "kbpk-tdes", hsm.NewKey{Use: hsm.PINOut, Algorithm: hsm.AES}, hsm.ErrKeyBlock, "key is for tdes, not for aes"},
			{"another length", b, "kbpk-tdes", hsm.NewKey{Use: hsm.PINOut, Bits: 192}, hsm.ErrKeyLength, "has 192 bits, not 128"},
			{"another check value", b, "kbpk-tdes", hsm.NewKey{Use: hsm.PINOut, KCV: "000000"}, hsm.ErrOtherKCV, "57C409, not 000000"},
			{"a changed MAC", b[:len(b)-1] + "F", "kbpk-tdes", hsm.NewKey{Use: hsm.PINOut}, hsm.ErrKeyBlock, "MAC is not right"},
			{"a changed header", strings.Replace(b, "E00E", "B00E", 1), "kbpk-tdes", hsm.NewKey{Use: hsm.PINOut}, hsm.ErrKeyBlock, "MAC is not right"},
			{"a version of the other algorithm", d, "kbpk-tdes", hsm.NewKey{Use: hsm.PINOut}, hsm.ErrKeyBlock, `"kbpk-tdes" is for tdes`},
			{"a version that protects too little", a, "kbpk-tdes", hsm.NewKey{Use: hsm.PINOut}, hsm.ErrKeyBlock, "version A"},
			{"a protection key that is none", b, "zmk", hsm.NewKey{Use: hsm.PINOut}, hsm.ErrKeyCheck, "is no kbpk key"},
			{"a protection key that is not there", b, "none", hsm.NewKey{Use: hsm.PINOut}, hsm.ErrKeyCheck, "is missing"},
			{"no block", "nothing", "kbpk-tdes", hsm.NewKey{Use: hsm.PINOut}, hsm.ErrKeyBlock, "7 characters"},
		} {
			test.key.Label = "refused"
			if _, err := hsm.ImportKeyBlock(cfg, test.key, []byte(test.block), test.kbpk); !errors.Is(err, test.want) || !strings.Contains(err.Error(), test.says) {
				t.Errorf("%s: got %v", test.name, err)
			}
		}
		if got := labels(t, token); !slices.Equal(got, before) {
			t.Fatalf("refused blocks left keys: %q", got)
		}
		for _, test := range []struct {
			label, block, kbpk, kcv string
			algorithm               hsm.Algorithm
		}{{"b", b, "kbpk-tdes", "57C409", hsm.TDES}, {"d", d, "kbpk-aes", "08793E", hsm.AES}, {"d143", strings.ToLower(d143[16:]), "kbpk-aes", "08793E", hsm.AES}} {
			block := test.block
			if test.label == "d143" {
				block = d143[:16] + block
			}
			about, err := hsm.ImportKeyBlock(cfg, hsm.NewKey{Label: test.label, Use: hsm.PINOut, KCV: strings.ToLower(test.kcv)}, []byte(block), test.kbpk)
			if err != nil || about.KCV != test.kcv || about.Use != hsm.PINOut || about.Algorithm != test.algorithm || about.Bits != 128 {
				t.Errorf("%s: got %+v, %v", test.label, about, err)
			}
			if _, err := hsm.ImportKeyBlock(cfg, hsm.NewKey{Label: test.label, Use: hsm.PINOut}, []byte(block), test.kbpk); !errors.Is(err, hsm.ErrKeyExists) {
				t.Errorf("%s twice: got %v", test.label, err)
			}
		}
		if tdes.KCV != hsmtest.KCV(hsm.KBPK, unhex(t, "DD7515F2BFC17F85CE48F3CA25CB21F6")) {
			t.Errorf("got KCV %s", tdes.KCV)
		}
		if _, err := hsm.ImportLegacyKeyBlock(cfg, hsm.NewKey{Label: "legacy", Use: hsm.PINOut}, []byte(b), []hsm.Component{{Value: bytes.Repeat([]byte{1}, 16)}, {Value: bytes.Repeat([]byte{2}, 16)}}, "000000"); !errors.Is(err, hsm.ErrKeyBlock) ||
			!strings.Contains(err.Error(), "version B, which needs no legacy") {
			t.Errorf("got %v", err)
		}
		kbpk := unhex(t, "89E88CF7931444F334BD7547FC3F380C")
		part := bytes.Repeat([]byte{0x31}, 16)
		rest := make([]byte, 16)
		for i := range rest {
			rest[i] = part[i] ^ kbpk[i]
		}
		about, err := hsm.ImportLegacyKeyBlock(cfg, hsm.NewKey{Label: "legacy", Use: hsm.PINOut}, []byte(a), []hsm.Component{{Value: part}, {Value: rest}}, hsmtest.KCV(hsm.KBPK, kbpk))
		if err != nil || about.KCV != "CB9DEA" {
			t.Errorf("got %+v, %v", about, err)
		}
	})
}

// What one makes, its other side takes, as the use that the block permits; and nothing weaker protects anything stronger.
func TestKeysAreExportedWhenTheyAreMade(t *testing.T) {
	eachKind(t, func(t *testing.T, token *hsmtest.Token) {
		cfg := token.Config()
		token.Put("tdes-2", hsm.KBPK, hsmtest.ZoneKey("kbpk", 16))
		token.Put("tdes-3", hsm.KBPK, hsmtest.ZoneKey("kbpk", 24))
		token.PutAES("aes-128", hsm.KBPK, hsmtest.SealValue[:16])
		token.PutAES("aes-256", hsm.KBPK, hsmtest.SealValue)
		for _, test := range []struct {
			kbpk   string
			key    hsm.NewKey
			theirs hsm.Use
			header string // after the length
		}{
			{"tdes-2", hsm.NewKey{Use: hsm.PINIn}, hsm.PINOut, "P0TE00N0000"},
			{"tdes-3", hsm.NewKey{Use: hsm.PINOut, Bits: 192}, hsm.PINIn, "P0TD00N0000"},
			{"aes-128", hsm.NewKey{Use: hsm.PINOut, Bits: 192}, hsm.PINIn, "P0TD00N0000"},
			{"aes-128", hsm.NewKey{Use: hsm.PINIn, Algorithm: hsm.AES, Bits: 128}, hsm.PINOut, "P0AE00N0000"},
			{"aes-256", hsm.NewKey{Use: hsm.PINIn, Algorithm: hsm.AES, Bits: 256}, hsm.PINOut, "P0AE00N0000"},
			{"aes-256", hsm.NewKey{Use: hsm.PANToken}, hsm.PANToken, "M6AC00N0000"},
			{"aes-256", hsm.NewKey{Use: hsm.PANToken, Algorithm: hsm.HMAC}, hsm.PANToken, "M7HC00N0200HM0621PB"},
			{"aes-256", hsm.NewKey{Use: hsm.KBPK, Algorithm: hsm.AES}, hsm.KBPK, "K1AB00N0000"},
			{"tdes-2", hsm.NewKey{Use: hsm.MACX919}, hsm.MACX919, "M3TC00N0000"},
			{"aes-256", hsm.NewKey{Use: hsm.MACCMAC}, hsm.MACCMAC, "M6AC00N0000"},
			{"tdes-2", hsm.NewKey{Use: hsm.MACCMAC, Algorithm: hsm.TDES}, hsm.MACCMAC, "M6TC00N0000"},
			{"aes-256", hsm.NewKey{Use: hsm.BDK}, hsm.BDK, "B0AX00N0000"},
			{"tdes-2", hsm.NewKey{Use: hsm.BDK, Algorithm: hsm.TDES}, hsm.BDK, "B0TX00N0000"},
			{"aes-256", hsm.NewKey{Use: hsm.MACHMAC}, hsm.MACHMAC, "M7HC00N0200HM0621PB"},
			{"tdes-2", hsm.NewKey{Use: hsm.PINIn, Bits: 192}, "", ""},
			{"tdes-3", hsm.NewKey{Use: hsm.PINIn, Algorithm: hsm.AES, Bits: 128}, "", ""},
			{"aes-128", hsm.NewKey{Use: hsm.PINIn, Algorithm: hsm.AES, Bits: 256}, "", ""},
			{"aes-128", hsm.NewKey{Use: hsm.PANToken, Algorithm: hsm.HMAC}, "", ""},
		} {
			test.key.Label = fmt.Sprintf("%s %s %s %d", test.kbpk, test.key.Use, test.key.Algorithm, test.key.Bits)
			about, block, err := hsm.ExportKey(cfg, test.key, hsm.Export{KBPK: test.kbpk})
			if test.header == "" {
				if !errors.Is(err, hsm.ErrWeakerKey) || block != nil || slices.Contains(labels(t, token), test.key.Label) {
					t.Errorf("%s of %d bits: got %+v, %s, %v", test.key.Label, test.key.Bits, about, block, err)
				}
				continue
			}
			if err != nil || !strings.HasPrefix(string(block[5:]), test.header) || about.Use != test.key.Use || len(about.KCV) != 6 {
				t.Errorf("%s: got %+v, %s, %v", test.key.Label, about, block, err)
				continue
			}
			other, err := hsm.ImportKeyBlock(cfg, hsm.NewKey{Label: "their " + test.key.Label, Use: test.theirs, KCV: about.KCV}, block, test.kbpk)
			if err != nil || other.KCV != about.KCV || other.Bits != about.Bits || other.Algorithm != about.Algorithm {
				t.Errorf("%s: got %+v, %v, want %+v", test.key.Label, other, err, about)
			}
		}
		// The two objects of a key for X9.19 are of one value in both, and go together.
		keys, err := hsm.List(cfg)
		if err != nil {
			t.Fatal(err)
		}
		mine := cfg
		for _, use := range []hsm.Use{hsm.PANSeal, hsm.PANToken} {
			about, err := hsm.Generate(cfg, hsm.NewKey{Label: string(use), Use: use})
			if err != nil {
				t.Fatal(err)
			}
			mine.Keys = append(mine.Keys, hsm.Key{Label: about.Label, Use: use, KCV: about.KCV})
		}
		mine.SealKey, mine.TokenKey = string(hsm.PANSeal), string(hsm.PANToken)
		text := []byte("what is to be authenticated")
		var macs [][]byte
		for _, label := range []string{"tdes-2 mac-x919  0", "their tdes-2 mac-x919  0"} {
			t.Run(label, func(t *testing.T) { // two zones of one key are refused: one after the other
				h := mine
				at := slices.IndexFunc(keys, func(k hsm.KeyInfo) bool { return k.Label == label })
				h.Keys = append(slices.Clone(mine.Keys), hsm.Key{Label: label, Use: hsm.MACX919, KCV: keys[at].KCV})
				mac, err := run(t, h).MAC(t.Context(), hsm.MACKey{Label: label}, text)
				if err != nil {
					t.Fatal(err)
				}
				macs = append(macs, mac)
			})
		}
		if len(macs) != 2 || !bytes.Equal(macs[0], macs[1]) {
			t.Errorf("the two sides make the MACs %X", macs)
		}
	})
}

func TestAKeyOfTwoObjectsGoesAsAWhole(t *testing.T) {
	eachKind(t, func(t *testing.T, token *hsmtest.Token) {
		cfg := token.Config()
		for part, n := range map[string]hsm.NewKey{"/left": {Use: hsm.MACX919}, "/variant": {Use: hsm.BDK, Algorithm: hsm.TDES}} {
			n.Label = "key"
			about, err := hsm.Generate(cfg, n)
			if err != nil {
				t.Fatal(err)
			}
			if got := labels(t, token); !slices.Equal(got, []string{"key", "key" + part}) {
				t.Errorf("keys %q", got)
			}
			if _, err := hsm.Destroy(cfg, "key"+part, about.KCV); !errors.Is(err, hsm.ErrKeyCheck) {
				t.Errorf("a part of a key: got %v", err)
			}
			if _, err := hsm.Destroy(cfg, "key", about.KCV); err != nil || len(labels(t, token)) > 0 {
				t.Errorf("%q are left, %v", labels(t, token), err)
			}
		}
	})
}

// The two objects of a TDES bdk key that came in components are those that the HSM serves DUKPT with.
func TestABaseDerivationKeyIsServed(t *testing.T) {
	eachKind(t, func(t *testing.T, token *hsmtest.Token) {
		cfg := token.Config()
		value := unhex(t, "0123456789ABCDEFFEDCBA9876543210") // X9.24-1:2009, A.4
		part := bytes.Repeat([]byte{0x51}, 16)
		about, err := hsm.ImportComponents(cfg, hsm.NewKey{Label: "bdk", Use: hsm.BDK, Algorithm: hsm.TDES, KCV: "08D7B4"}, []hsm.Component{{Value: bytes.Clone(part)}, {Value: xor(part, value)}})
		if err != nil {
			t.Fatal(err)
		}
		made := []hsm.Key{{Label: "bdk", Use: hsm.BDK, KCV: about.KCV}}
		for _, use := range []hsm.Use{hsm.PANSeal, hsm.PANToken} {
			about, err := hsm.Generate(cfg, hsm.NewKey{Label: string(use), Use: use})
			if err != nil {
				t.Fatal(err)
			}
			made = append(made, hsm.Key{Label: about.Label, Use: use, KCV: about.KCV})
		}
		cfg.Keys, cfg.SealKey, cfg.TokenKey = made, string(hsm.PANSeal), string(hsm.PANToken)
		run(t, cfg) // which checks both objects
	})
}

func TestAnExportedKeyHasItsWords(t *testing.T) {
	eachKind(t, func(t *testing.T, token *hsmtest.Token) {
		cfg := token.Config()
		token.PutAES("aes-256", hsm.KBPK, hsmtest.SealValue)
		exported, block, err := hsm.ExportKey(cfg, hsm.NewKey{Label: "with more", Use: hsm.PINIn}, hsm.Export{KBPK: "aes-256", Exportability: 'E', KeyVersion: "07"})
		if err != nil || string(block[5:16]) != "P0TE07E0000" || exported.Label != "with more" {
			t.Errorf("got %+v, %s, %v", exported, block, err)
		}
	})
}

// A check value in a block that is not that of the key, or of its protection key, refuses it.
func TestCheckValuesInKeyBlocksAreCompared(t *testing.T) {
	eachCeremony(t, func(t *testing.T, c *hsm.Ceremony) {
		kbpk, key := hsmtest.SealValue, hsmtest.TokenValue
		for _, test := range []struct {
			optional []hsm.OptionalBlock
			ok       bool
		}{
			{[]hsm.OptionalBlock{{ID: "KC", Value: "01" + hsmtest.AESKCV(key)}, {ID: "KP", Value: "01" + hsmtest.AESKCV(kbpk)}}, true},
			{[]hsm.OptionalBlock{{ID: "KC", Value: "01" + hsmtest.AESKCV(key)[:4]}}, true},
			{[]hsm.OptionalBlock{{ID: "KC", Value: "00000000"}}, true}, // of another method
			{[]hsm.OptionalBlock{{ID: "KC", Value: "01" + hsmtest.AESKCV(kbpk)}}, false},
			{[]hsm.OptionalBlock{{ID: "KC", Value: "01"}}, false},
			{[]hsm.OptionalBlock{{ID: "KP", Value: "01" + hsmtest.AESKCV(key)}}, false},
		} {
			h := hsm.BlockHeader{Version: 'D', Usage: "P0", Algorithm: 'A', Mode: 'E', KeyVersion: "00", Exportability: 'N', Optional: test.optional}
			text, err := c.SealClear(kbpk, h, key, c.Resident())
			if err != nil {
				t.Fatal(err)
			}
			about, err := c.ImportSession(kbpk, text, hsm.NewKey{Label: "new", Use: hsm.PINOut})
			if (err == nil) != test.ok || !test.ok && !errors.Is(err, hsm.ErrKeyBlock) || test.ok && about.KCV != hsmtest.AESKCV(key) || !c.IsClean() {
				t.Errorf("%v: got %+v, %v", test.optional, about, err)
			}
			if _, err := c.ImportSession(kbpk, text[:len(text)-1]+"G", hsm.NewKey{Label: "new", Use: hsm.PINOut}); err == nil || !c.IsClean() {
				t.Errorf("%v: got %v, and memory that is clean: %t", test.optional, err, c.IsClean())
			}
		}
	})
}

func TestCryptogramsAreImported(t *testing.T) {
	eachKind(t, func(t *testing.T, token *hsmtest.Token) {
		cfg := token.Config()
		zmk := hsmtest.ZoneKey("zmk", 16)
		token.Put("zmk", hsm.ZMK, zmk)
		token.Put("zpk", hsm.PINOut, hsmtest.ZoneKey("zpk", 16))
		key, long := hsmtest.ZoneKey("new", 16), hsmtest.ZoneKey("new", 24)
		kcv := hsmtest.KCV(hsm.PINIn, key)
		cryptogram := hsmtest.Cryptogram(zmk, key)
		for _, test := range []struct {
			name       string
			key        hsm.NewKey
			cryptogram []byte
			zmk        string
			want       error
		}{
			{"no check value", hsm.NewKey{Use: hsm.PINIn}, cryptogram, "zmk", hsm.ErrCryptogram},
			{"another check value", hsm.NewKey{Use: hsm.PINIn, KCV: "000000"}, cryptogram, "zmk", hsm.ErrOtherKCV},
			{"a key that no zone shares", hsm.NewKey{Use: hsm.PANSeal, KCV: kcv}, append(cryptogram, cryptogram...), "zmk", hsm.ErrCryptogram},
			{"a stronger key", hsm.NewKey{Use: hsm.PINIn, KCV: kcv}, hsmtest.Cryptogram(zmk, long), "zmk", hsm.ErrWeakerKey},
			{"a single DES key", hsm.NewKey{Use: hsm.PINIn, KCV: kcv}, cryptogram[:8], "zmk", hsm.ErrKeyLength},
			{"a zone master key that is none", hsm.NewKey{Use: hsm.PINIn, KCV: kcv}, cryptogram, "zpk", hsm.ErrKeyCheck},
			{"a use that is none", hsm.NewKey{Use: "none", KCV: kcv}, cryptogram, "zmk", nil},
		} {
			test.key.Label = "refused"
			if _, err := hsm.ImportCryptogram(cfg, test.key, test.cryptogram, test.zmk, false); err == nil || test.want != nil && !errors.Is(err, test.want) {
				t.Errorf("%s: got %v", test.name, err)
			}
		}
		about, err := hsm.ImportCryptogram(cfg, hsm.NewKey{Label: "new", Use: hsm.PINIn, KCV: kcv}, cryptogram, "zmk", false)
		if err != nil || about.KCV != kcv || about.Use != hsm.PINIn {
			t.Errorf("got %+v, %v", about, err)
		}
		if got := labels(t, token); !slices.Equal(got, []string{"new", "zmk", "zpk"}) {
			t.Errorf("keys %q", got)
		}

		// AES under AES, in CBC: TDES as well.
		token.PutAES("zmk-aes", hsm.ZMK, hsmtest.SealValue)
		block, err := aes.NewCipher(hsmtest.SealValue)
		if err != nil {
			t.Fatal(err)
		}
		for algorithm, value := range map[hsm.Algorithm][]byte{hsm.AES: hsmtest.TokenValue, hsm.TDES: key} {
			want := kcv
			if algorithm == hsm.AES {
				want = hsmtest.AESKCV(value)
			}
			out := make([]byte, len(value))
			cipher.NewCBCEncrypter(block, make([]byte, aes.BlockSize)).CryptBlocks(out, value)
			n := hsm.NewKey{Label: "under aes " + string(algorithm), Use: hsm.PINOut, Algorithm: algorithm, KCV: want}
			if about, err := hsm.ImportCryptogram(cfg, n, out, "zmk-aes", true); err != nil || about.KCV != want || about.Algorithm != algorithm {
				t.Errorf("%s: got %+v, %v", algorithm, about, err)
			}
			if _, err := hsm.Destroy(cfg, n.Label, want); err != nil {
				t.Error(err)
			}
		}
		if _, err := hsm.Destroy(cfg, "zmk-aes", hsmtest.AESKCV(hsmtest.SealValue)); err != nil {
			t.Error(err)
		}

		// The end of it.
		if _, err := hsm.Destroy(cfg, "new", "000000"); !errors.Is(err, hsm.ErrOtherKCV) {
			t.Errorf("destroyed by another check value: %v", err)
		}
		if about, err := hsm.Destroy(cfg, "new", strings.ToLower(kcv)); err != nil || about.KCV != kcv {
			t.Errorf("got %+v, %v", about, err)
		}
		if _, err := hsm.Destroy(cfg, "new", kcv); !errors.Is(err, hsm.ErrKeyCheck) {
			t.Errorf("destroyed twice: %v", err)
		}
		if got := labels(t, token); !slices.Equal(got, []string{"zmk", "zpk"}) {
			t.Errorf("keys %q", got)
		}
	})
}

// What custodians get makes the key whose check value was told them, on each token.
func TestComponentsMakeTheKeyThatTheyWereMadeFor(t *testing.T) {
	eachKind(t, func(t *testing.T, token *hsmtest.Token) {
		cfg := token.Config()
		for _, use := range hsm.Uses {
			for _, count := range []int{2, 3} {
				var components []hsm.Component
				kcv, err := hsm.MakeComponents(cfg, hsm.NewKey{Use: use}, count, func(number int, component []byte, kcv string) error {
					components = append(components, hsm.Component{Value: bytes.Clone(component), KCV: kcv})
					if number != len(components) {
						t.Errorf("component %d comes as number %d", len(components), number)
					}
					return nil
				})
				if err != nil || len(components) != count {
					t.Fatalf("%s: %d components, %v", use, len(components), err)
				}
				label := string(use) + strings.Repeat("+", count)
				about, err := hsm.ImportComponents(cfg, hsm.NewKey{Label: label, Use: use, KCV: kcv}, components)
				if err != nil || about.KCV != kcv || about.Use != use {
					t.Errorf("%s: got %+v, %v, want KCV %s", label, about, err, kcv)
				}
			}
		}
		if _, err := hsm.MakeComponents(cfg, hsm.NewKey{Use: hsm.ZMK}, 4, nil); !errors.Is(err, hsm.ErrComponents) {
			t.Errorf("four components: %v", err)
		}
		stop := errors.New("no room")
		if _, err := hsm.MakeComponents(cfg, hsm.NewKey{Use: hsm.ZMK}, 2, func(int, []byte, string) error { return stop }); !errors.Is(err, stop) {
			t.Errorf("got %v", err)
		}
		if _, err := hsm.ComponentKCV(cfg, hsm.TDES, make([]byte, 8)); !errors.Is(err, hsm.ErrComponents) {
			t.Errorf("a single DES component: %v", err)
		}
	})
}
