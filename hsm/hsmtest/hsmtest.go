// Package hsmtest makes throw-away SoftHSM tokens with known keys. It is for tests only: its keys are clear.
//
// Each token has its own copy of the module, so that tokens of one process do not finalise each other: a PKCS#11 module
// has one initialisation and one login for all of a process. All tokens of a test share one SoftHSM configuration,
// because SoftHSM reads SOFTHSM2_CONF whenever it is initialised.
//
// The package computes check values and PIN blocks with the standard library, apart from package hsm, so that the two
// check each other.
package hsmtest

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/des"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"math/bits"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"acquirerd/card"
	"acquirerd/hsm"

	"github.com/miekg/pkcs11"
)

// Labels of the keys of Standard. The zone keys are those of the translation vectors.
const (
	UpstreamKey  = "zpk-pos"    // pin-in
	ProcessorKey = "zpk-proc-a" // pin-out
	SealKey      = "pan-seal-1"
	TokenKey     = "pan-token-1"
)

// Clear values of the keys of Standard: of the zone keys for those who play an upstream or a processor.
var (
	UpstreamZPK  = mustHex("0123456789ABCDEFFEDCBA9876543210")
	ProcessorZPK = mustHex("112233445566778889ABCDEF01234567")
	SealValue    = sum("test key that seals")
	TokenValue   = sum("test key that makes tokens")
)

const (
	userPIN = "test-user-pin"
	soPIN   = "test-so-pin"
)

// A Token is a SoftHSM token in the test's temporary directory.
type Token struct {
	Module string // path of this token's copy of the module
	Label  string
	Keys   []hsm.Key // those that were Put, with their check values
	t      testing.TB
}

// New makes an empty token. Where SoftHSM is not installed it skips the test, or fails it if the environment has CI.
func New(t testing.TB) *Token {
	t.Helper()
	const marker = "hsmtest.conf"
	conf := os.Getenv("SOFTHSM2_CONF")
	if filepath.Base(conf) != marker { // the first token of this test
		dir := t.TempDir()
		conf = filepath.Join(dir, marker)
		must(t, os.Mkdir(filepath.Join(dir, "tokens"), 0o700))
		must(t, os.WriteFile(conf, []byte("directories.tokendir = "+filepath.Join(dir, "tokens")+"\nobjectstore.backend = file\nlog.level = ERROR\n"), 0o600))
		t.Setenv("SOFTHSM2_CONF", conf)
	}
	dir := t.TempDir()
	token := &Token{Module: filepath.Join(dir, "libsofthsm2.so"), Label: "test-" + filepath.Base(filepath.Dir(dir)) + filepath.Base(dir), t: t}
	if len(token.Label) > 32 { // the longest of a token
		token.Label = token.Label[len(token.Label)-32:]
	}
	library, err := os.ReadFile(softHSM(t))
	must(t, err)
	must(t, os.WriteFile(token.Module, library, 0o700))
	token.Use(func(m *pkcs11.Ctx) {
		slots, err := m.GetSlotList(true)
		must(t, err)
		free := slots[len(slots)-1] // SoftHSM ends the list with one that is not initialised
		must(t, m.InitToken(free, soPIN, token.Label))
		s, err := m.OpenSession(token.Slot(m), pkcs11.CKF_SERIAL_SESSION|pkcs11.CKF_RW_SESSION)
		must(t, err)
		must(t, m.Login(s, pkcs11.CKU_SO, soPIN))
		must(t, m.InitPIN(s, userPIN))
	})
	return token
}

// softHSM finds the installed module: SOFTHSM2_MODULE, or where the distributions put it.
func softHSM(t testing.TB) string {
	t.Helper()
	for _, path := range []string{
		os.Getenv("SOFTHSM2_MODULE"), "/usr/lib/softhsm/libsofthsm2.so", "/usr/lib64/softhsm/libsofthsm2.so",
		"/usr/lib/x86_64-linux-gnu/softhsm/libsofthsm2.so", "/usr/lib/aarch64-linux-gnu/softhsm/libsofthsm2.so",
	} {
		if path == "" {
			continue
		}
		if _, err := os.Stat(path); err == nil {
			return path
		}
	}
	if os.Getenv("CI") != "" {
		t.Fatal("SoftHSM is not installed (package softhsm2), or SOFTHSM2_MODULE does not name it")
	}
	t.Skip("SKIPPED, NOT TESTED: SoftHSM is not installed (package softhsm2)")
	return ""
}

// Standard makes a token with one key of each use: see UpstreamKey, ProcessorKey, SealKey, TokenKey.
func Standard(t testing.TB) *Token {
	t.Helper()
	token := New(t)
	token.Put(UpstreamKey, hsm.PINIn, UpstreamZPK)
	token.Put(ProcessorKey, hsm.PINOut, ProcessorZPK)
	token.Put(SealKey, hsm.PANSeal, SealValue)
	token.Put(TokenKey, hsm.PANToken, TokenValue)
	return token
}

// Config is a configuration of all keys that were Put; the last pan-seal and pan-token keys are those in use.
func (k *Token) Config() hsm.Config {
	cfg := hsm.Config{Module: k.Module, Token: k.Label, PIN: k.PIN, Workers: 2, Keys: append([]hsm.Key(nil), k.Keys...)}
	for _, key := range k.Keys {
		switch key.Use {
		case hsm.PANSeal:
			cfg.SealKey = key.Label
		case hsm.PANToken:
			cfg.TokenKey = key.Label
		case hsm.PINIn, hsm.PINOut, hsm.ZMK, hsm.TLSKey:
		}
	}
	return cfg
}

// PIN returns the user PIN, a new copy each time.
func (k *Token) PIN() ([]byte, error) { return []byte(userPIN), nil }

// PINFile writes the user PIN to a file of the test and returns its path.
func (k *Token) PINFile() string {
	path := filepath.Join(k.t.TempDir(), "token.pin")
	must(k.t, os.WriteFile(path, []byte(userPIN+"\n"), 0o600))
	return path
}

// Put makes a key with the clear value. No HSM may have the token open. It checks no weakness: vectors have weak keys.
func (k *Token) Put(label string, use hsm.Use, value []byte) hsm.Key {
	k.t.Helper()
	k.Use(func(m *pkcs11.Ctx) {
		s := k.Login(m)
		must(k.t, Create(m, s, label, use, value))
	})
	key := hsm.Key{Label: label, Use: use, KCV: KCV(use, value)}
	k.Keys = append(k.Keys, key)
	return key
}

// Use initialises the token's module, lets f work with it, and finalises it.
func (k *Token) Use(f func(*pkcs11.Ctx)) {
	k.t.Helper()
	m := pkcs11.New(k.Module)
	if m == nil {
		k.t.Fatal("SoftHSM's module cannot be loaded")
	}
	must(k.t, m.Initialize())
	defer func() { must(k.t, m.Finalize()) }()
	f(m)
}

// Slot returns the token's slot.
func (k *Token) Slot(m *pkcs11.Ctx) uint {
	k.t.Helper()
	slots, err := m.GetSlotList(true)
	must(k.t, err)
	for _, slot := range slots {
		about, err := m.GetTokenInfo(slot)
		must(k.t, err)
		if about.Label == k.Label {
			return slot
		}
	}
	k.t.Fatalf("no token %q in %d slots", k.Label, len(slots))
	return 0
}

// Login opens a session that may write and logs the user in.
func (k *Token) Login(m *pkcs11.Ctx) pkcs11.SessionHandle {
	k.t.Helper()
	s, err := m.OpenSession(k.Slot(m), pkcs11.CKF_SERIAL_SESSION|pkcs11.CKF_RW_SESSION)
	must(k.t, err)
	must(k.t, m.Login(s, pkcs11.CKU_USER, userPIN))
	return s
}

// Create makes a key object as package hsm demands it, from a template of its own. Attributes in instead replace
// those of the template, and one without a value leaves its attribute out: a test of refusals makes its bad keys so.
func Create(m *pkcs11.Ctx, s pkcs11.SessionHandle, label string, use hsm.Use, value []byte, instead ...*pkcs11.Attribute) error {
	ecb := []uint{pkcs11.CKM_DES3_ECB}
	shape := map[hsm.Use]struct {
		keyType    uint
		mechanisms []uint
	}{
		hsm.PINIn:    {pkcs11.CKK_DES2, ecb},
		hsm.PINOut:   {pkcs11.CKK_DES2, ecb},
		hsm.PANSeal:  {pkcs11.CKK_AES, []uint{pkcs11.CKM_AES_ECB, pkcs11.CKM_AES_CTR}},
		hsm.PANToken: {pkcs11.CKK_AES, []uint{pkcs11.CKM_AES_ECB, pkcs11.CKM_AES_CMAC}},
		hsm.ZMK:      {pkcs11.CKK_DES2, append(ecb, pkcs11.CKM_DES3_CBC)}, // that SoftHSM cannot unwrap decides its flags
	}[use]
	if shape.keyType == pkcs11.CKK_DES2 && len(value) == tripleBytes {
		shape.keyType = pkcs11.CKK_DES3
	}
	template := map[uint]any{
		pkcs11.CKA_CLASS: pkcs11.CKO_SECRET_KEY, pkcs11.CKA_KEY_TYPE: shape.keyType, pkcs11.CKA_LABEL: label, pkcs11.CKA_VALUE: value,
		pkcs11.CKA_TOKEN: true, pkcs11.CKA_PRIVATE: true, pkcs11.CKA_SENSITIVE: true,
		pkcs11.CKA_EXTRACTABLE: false, pkcs11.CKA_MODIFIABLE: false, pkcs11.CKA_COPYABLE: false,
		pkcs11.CKA_DECRYPT: use == hsm.PINIn || use == hsm.ZMK, pkcs11.CKA_ENCRYPT: use == hsm.PINOut || use == hsm.PANSeal || use == hsm.PANToken,
		pkcs11.CKA_SIGN: false, pkcs11.CKA_VERIFY: false,
		pkcs11.CKA_WRAP: false, pkcs11.CKA_UNWRAP: false, pkcs11.CKA_DERIVE: false,
	}
	var mechanisms []byte
	for _, m := range shape.mechanisms {
		mechanisms = binary.NativeEndian.AppendUint64(mechanisms, uint64(m))
	}
	template[pkcs11.CKA_ALLOWED_MECHANISMS] = mechanisms
	for _, a := range instead {
		template[a.Type] = a.Value
		if a.Value == nil {
			delete(template, a.Type)
		}
	}
	var attributes []*pkcs11.Attribute
	for which, value := range template {
		attributes = append(attributes, pkcs11.NewAttribute(which, value))
	}
	_, err := m.CreateObject(s, attributes)
	return err
}

// KCV computes the check value of a clear key as the documentation of package hsm defines it.
func KCV(use hsm.Use, value []byte) string {
	var out []byte
	switch use {
	case hsm.PINIn, hsm.PINOut, hsm.ZMK:
		out = make([]byte, des.BlockSize)
		tdes(value).Encrypt(out, out)
	case hsm.PANSeal, hsm.PANToken: // the CMAC of zeros (SP 800-38B)
		block, err := aes.NewCipher(value)
		noError(err)
		out = make([]byte, aes.BlockSize)
		block.Encrypt(out, out)
		carry := out[0] >> 7
		for i := range out {
			out[i] <<= 1
			if i+1 < len(out) {
				out[i] |= out[i+1] >> 7
			}
		}
		out[len(out)-1] ^= 0x87 * carry
		block.Encrypt(out, out)
	case hsm.TLSKey: // a certificate pins it
		panic("hsmtest: a key for TLS has no check value")
	}
	return strings.ToUpper(hex.EncodeToString(out[:3]))
}

// tripleBytes is the length of a triple-length TDES key.
const tripleBytes = 24

// Cryptogram enciphers a clear key under a clear zone master key in ECB, as a processor does for a key change.
func Cryptogram(zmk, key []byte) []byte {
	out := bytes.Clone(key)
	for i := 0; i < len(out); i += des.BlockSize {
		tdes(zmk).Encrypt(out[i:], out[i:])
	}
	return out
}

// ZoneKey makes a TDES key of 16 or 24 bytes from a name, with odd parity.
func ZoneKey(name string, length int) []byte {
	key := sum("test zone key " + name)[:length]
	for i, b := range key {
		if bits.OnesCount8(b)%2 == 0 {
			key[i] ^= 1
		}
	}
	return key
}

// EncipherPIN makes the format 0 PIN block of a PIN and a PAN under a clear zone key, as an upstream's terminal would.
func EncipherPIN(zpk []byte, pan, pin string) card.PINBlock {
	block := format0(pan, pin)
	tdes(zpk).Encrypt(block, block)
	out, err := card.NewPINBlock(block)
	noError(err)
	return out
}

// DecipherPIN returns the PIN of a format 0 PIN block, "" if it is not one of this PAN, as a processor would.
func DecipherPIN(zpk []byte, pan string, block card.PINBlock) string {
	clearBlock := make([]byte, des.BlockSize)
	tdes(zpk).Decrypt(clearBlock, block.Reveal())
	for i, b := range format0(pan, "") {
		if i > 1 { // the account number field begins at the third byte, and the PIN field of "" is all fill
			clearBlock[i] ^= b ^ 0xFF
		}
	}
	text := strings.ToUpper(hex.EncodeToString(clearBlock))
	length := strings.IndexByte("0123456789ABC", text[1])
	if text[0] != '0' || length < 4 || strings.Trim(text[2+length:], "F") != "" || strings.ContainsAny(text[2:2+length], "ABCDEF") {
		return ""
	}
	return text[2 : 2+length]
}

// format0 is PIN field XOR account number field (ISO 9564-1, 9.3.2).
func format0(pan, pin string) []byte {
	field := mustHex(fmt.Sprintf("0%X%s", len(pin), pin) + strings.Repeat("F", 14-len(pin)))
	digits := strings.Repeat("0", 12) + pan[:len(pan)-1]
	for i, b := range mustHex("0000" + digits[len(digits)-12:]) {
		field[i] ^= b
	}
	return field
}

func tdes(key []byte) cipher.Block {
	if len(key) == 16 {
		key = append(bytes.Clone(key), key[:8]...)
	}
	block, err := des.NewTripleDESCipher(key)
	noError(err)
	return block
}

func sum(text string) []byte {
	s := sha256.Sum256([]byte(text))
	return s[:]
}

func mustHex(s string) []byte {
	b, err := hex.DecodeString(s)
	noError(err)
	return b
}

// noError is for what can only be a mistake in the test that calls.
func noError(err error) {
	if err != nil {
		panic("hsmtest: " + err.Error())
	}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
