// Package hsmtest makes throw-away tokens with known keys, of SoftHSM and of NSS (see NewNSS). It is for tests only: its keys are clear.
//
// The two differ in what a key can do there: SoftHSM 2.6.1 can neither unwrap nor wrap single blocks, so PIN blocks and keys pass through the
// process's memory; in NSS's they stay inside. A key that is Put gets the template of STANDARDS C.4 that fits its token.
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
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"math/big"
	"math/bits"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"unsafe"

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

// A Token is in the test's temporary directory.
type Token struct {
	Module    string // path of this token's copy of the module
	Arguments string // for the module's initialisation
	Label     string
	Keys      []hsm.Key // those that were Put, with their check values
	t         testing.TB
}

// New makes an empty token of SoftHSM. Where that is not installed it skips the test, or fails it if the environment has CI.
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
	return installed(t, "SoftHSM", "softhsm2", "SOFTHSM2_MODULE", "/usr/lib/softhsm/libsofthsm2.so", "/usr/lib64/softhsm/libsofthsm2.so",
		"/usr/lib/x86_64-linux-gnu/softhsm/libsofthsm2.so", "/usr/lib/aarch64-linux-gnu/softhsm/libsofthsm2.so")
}

// installed returns the module that the environment's variable names, or the first of the paths that there is.
func installed(t testing.TB, name, debian, variable string, paths ...string) string {
	t.Helper()
	for _, path := range append([]string{os.Getenv(variable)}, paths...) {
		if path == "" {
			continue
		}
		if _, err := os.Stat(path); err == nil {
			return path
		}
	}
	if os.Getenv("CI") != "" {
		t.Fatalf("%s is not installed (package %s), or %s does not name it", name, debian, variable)
	}
	t.Skipf("SKIPPED, NOT TESTED: %s is not installed (package %s)", name, debian)
	return ""
}

// Standard makes a token of SoftHSM with one key of each use: see UpstreamKey, ProcessorKey, SealKey, TokenKey.
func Standard(t testing.TB) *Token {
	t.Helper()
	return New(t).standard()
}

func (k *Token) standard() *Token {
	k.t.Helper()
	k.Put(UpstreamKey, hsm.PINIn, UpstreamZPK)
	k.Put(ProcessorKey, hsm.PINOut, ProcessorZPK)
	k.Put(SealKey, hsm.PANSeal, SealValue)
	k.Put(TokenKey, hsm.PANToken, TokenValue)
	return k
}

// Config is a configuration of all keys that were Put; the last pan-seal and pan-token keys are those in use.
func (k *Token) Config() hsm.Config {
	cfg := hsm.Config{Module: k.Module, Arguments: k.Arguments, Token: k.Label, PIN: k.PIN, Workers: 2, Keys: append([]hsm.Key(nil), k.Keys...)}
	for _, key := range k.Keys {
		switch key.Use {
		case hsm.PANSeal:
			cfg.SealKey = key.Label
		case hsm.PANToken:
			cfg.TokenKey = key.Label
		case hsm.PINIn, hsm.PINOut, hsm.ZMK, hsm.KBPK, hsm.TLSKey, hsm.MACX919, hsm.MACCMAC, hsm.MACHMAC, hsm.BDK:
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

// Put makes a key with the clear value, of TDES where its use has a choice. No HSM may have the token open. It checks no weakness: vectors have
// weak keys.
func (k *Token) Put(label string, use hsm.Use, value []byte) hsm.Key {
	k.t.Helper()
	return k.put(label, use, algorithmOf(use), value)
}

// PutAES is Put of an AES key, of 128 or 256 bits, for a use that is TDES otherwise.
func (k *Token) PutAES(label string, use hsm.Use, value []byte) hsm.Key {
	k.t.Helper()
	return k.put(label, use, hsm.AES, value)
}

func (k *Token) put(label string, use hsm.Use, algorithm hsm.Algorithm, value []byte) hsm.Key {
	k.t.Helper()
	k.Use(func(m *pkcs11.Ctx) {
		s := k.Login(m)
		switch {
		case use == hsm.MACX919: // a key of this use is two objects
			left := bytes.Repeat(value[:des.BlockSize], 2)
			must(k.t, create(m, s, label+"/left", use, algorithm, left))
			must(k.t, create(m, s, label, use, algorithm, value, pkcs11.NewAttribute(pkcs11.CKA_ID, label+" left:"+kcv(algorithm, left))))
			return
		case use == hsm.BDK && algorithm == hsm.TDES: // and so is one of TDES of this
			variant := bytes.Clone(value)
			for i := range variant {
				if i%8 < 4 { // X9.24-1, A.6
					variant[i] ^= 0xC0
				}
			}
			id := fmt.Sprintf("%s/variant variant-of:%s kcv:%s", label, kcv(algorithm, value), kcv(algorithm, variant))
			must(k.t, create(m, s, label+"/variant", use, algorithm, variant, pkcs11.NewAttribute(pkcs11.CKA_ID, id)))
		}
		must(k.t, create(m, s, label, use, algorithm, value))
	})
	key := hsm.Key{Label: label, Use: use, KCV: kcv(algorithm, value)}
	k.Keys = append(k.Keys, key)
	return key
}

// Use initialises the token's module, lets f work with it, and finalises it.
func (k *Token) Use(f func(*pkcs11.Ctx)) {
	k.t.Helper()
	m := pkcs11.New(k.Module)
	if m == nil {
		k.t.Fatalf("%s cannot be loaded", k.Module)
	}
	must(k.t, m.Initialize(k.options()...))
	defer func() { must(k.t, m.Finalize()) }()
	f(m)
}

// options gives the module its arguments. The bytes stand still while C_Initialize reads them, as all that C is given.
func (k *Token) options() []pkcs11.InitializeOption {
	if k.Arguments == "" {
		return nil
	}
	text := append([]byte(k.Arguments), 0)
	return []pkcs11.InitializeOption{pkcs11.InitializeWithReserved(unsafe.Pointer(&text[0]))}
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

// A shape is what the template of a use says beside what all templates say.
type shape struct {
	keyType    uint
	transient  []uint // usage flags where PIN blocks and keys pass through the process's memory
	resident   []uint // usage flags where they stay in the token
	mechanisms []uint
}

func shapeOf(use hsm.Use, algorithm hsm.Algorithm, length int) shape {
	keyType, ecb, cbc, encryptData := uint(pkcs11.CKK_DES2), uint(pkcs11.CKM_DES3_ECB), uint(pkcs11.CKM_DES3_CBC), uint(pkcs11.CKM_DES3_ECB_ENCRYPT_DATA)
	var alsoIn, alsoOut []uint // format 4 enciphers twice, with what is not secret between
	switch {
	case algorithm == hsm.AES:
		keyType, ecb, cbc, encryptData = pkcs11.CKK_AES, pkcs11.CKM_AES_ECB, pkcs11.CKM_AES_CBC, pkcs11.CKM_AES_ECB_ENCRYPT_DATA
		alsoIn, alsoOut = []uint{pkcs11.CKA_DECRYPT}, []uint{pkcs11.CKA_ENCRYPT}
	case length == tripleBytes:
		keyType = pkcs11.CKK_DES3
	}
	encrypt, deriving, sign := []uint{pkcs11.CKA_ENCRYPT}, []uint{pkcs11.CKA_ENCRYPT, pkcs11.CKA_DERIVE}, []uint{pkcs11.CKA_SIGN, pkcs11.CKA_VERIFY}
	cmac, cmacInNSS := uint(pkcs11.CKM_AES_CMAC), sign
	if algorithm == hsm.TDES { // of which NSS makes no CMAC by itself
		cmac, cmacInNSS = pkcs11.CKM_DES3_CMAC, encrypt
	}
	bdk := shape{keyType, encrypt, encrypt, []uint{ecb, pkcs11.CKM_DES3_ECB_ENCRYPT_DATA}}
	if algorithm == hsm.AES {
		derive := []uint{pkcs11.CKA_DERIVE}
		bdk = shape{keyType, derive, derive, []uint{pkcs11.CKM_AES_ECB_ENCRYPT_DATA}}
	}
	return map[hsm.Use]shape{
		hsm.PINIn:    {keyType, []uint{pkcs11.CKA_DECRYPT}, append(alsoIn, pkcs11.CKA_UNWRAP), []uint{ecb}},
		hsm.PINOut:   {keyType, encrypt, append(alsoOut, pkcs11.CKA_WRAP), []uint{ecb}},
		hsm.ZMK:      {keyType, []uint{pkcs11.CKA_DECRYPT}, []uint{pkcs11.CKA_UNWRAP}, []uint{ecb, cbc}},
		hsm.BDK:      bdk,
		hsm.KBPK:     {keyType, deriving, deriving, []uint{ecb, encryptData}},
		hsm.PANSeal:  {pkcs11.CKK_AES, encrypt, encrypt, []uint{pkcs11.CKM_AES_ECB, pkcs11.CKM_AES_CTR}},
		hsm.PANToken: {pkcs11.CKK_AES, encrypt, encrypt, []uint{pkcs11.CKM_AES_ECB, pkcs11.CKM_AES_CMAC}},
		hsm.MACX919:  {keyType, encrypt, encrypt, []uint{cbc}},
		hsm.MACCMAC:  {keyType, sign, cmacInNSS, []uint{cmac}},
		hsm.MACHMAC:  {pkcs11.CKK_GENERIC_SECRET, sign, sign, []uint{pkcs11.CKM_SHA256_HMAC}},
	}[use]
}

func algorithmOf(use hsm.Use) hsm.Algorithm {
	switch use {
	case hsm.PANSeal, hsm.PANToken:
		return hsm.AES
	case hsm.MACHMAC:
		return hsm.HMAC
	case hsm.PINIn, hsm.PINOut, hsm.ZMK, hsm.KBPK, hsm.MACX919, hsm.MACCMAC, hsm.BDK, hsm.TLSKey:
	}
	return hsm.TDES
}

// Create makes a key object as package hsm demands it, of TDES where its use has a choice, from a template of its own. Attributes in instead
// replace those of the template, and one without a value leaves its attribute out: a test of refusals makes its bad keys so.
func Create(m *pkcs11.Ctx, s pkcs11.SessionHandle, label string, use hsm.Use, value []byte, instead ...*pkcs11.Attribute) error {
	return create(m, s, label, use, algorithmOf(use), value, instead...)
}

// CreateAES is Create of an AES key for a use that is TDES otherwise.
func CreateAES(m *pkcs11.Ctx, s pkcs11.SessionHandle, label string, use hsm.Use, value []byte, instead ...*pkcs11.Attribute) error {
	return create(m, s, label, use, hsm.AES, value, instead...)
}

func create(m *pkcs11.Ctx, s pkcs11.SessionHandle, label string, use hsm.Use, algorithm hsm.Algorithm, value []byte, instead ...*pkcs11.Attribute) error {
	about, err := m.GetInfo()
	if err != nil {
		return err
	}
	inNSS := about.ManufacturerID == nssMaker
	shape := shapeOf(use, algorithm, len(value))
	flags := shape.transient
	if inNSS {
		flags = shape.resident
	}
	template := map[uint]any{
		pkcs11.CKA_CLASS: pkcs11.CKO_SECRET_KEY, pkcs11.CKA_KEY_TYPE: shape.keyType, pkcs11.CKA_LABEL: label, pkcs11.CKA_VALUE: value,
		pkcs11.CKA_TOKEN: true, pkcs11.CKA_PRIVATE: true, pkcs11.CKA_SENSITIVE: true,
		pkcs11.CKA_EXTRACTABLE: false, pkcs11.CKA_MODIFIABLE: false,
	}
	for _, flag := range []uint{pkcs11.CKA_ENCRYPT, pkcs11.CKA_DECRYPT, pkcs11.CKA_SIGN, pkcs11.CKA_VERIFY, pkcs11.CKA_WRAP, pkcs11.CKA_UNWRAP, pkcs11.CKA_DERIVE} {
		template[flag] = slices.Contains(flags, flag)
	}
	if !inNSS { // which has no place for them
		template[pkcs11.CKA_COPYABLE] = false
		var mechanisms []byte
		for _, m := range shape.mechanisms {
			mechanisms = binary.NativeEndian.AppendUint64(mechanisms, uint64(m))
		}
		template[pkcs11.CKA_ALLOWED_MECHANISMS] = mechanisms
	}
	// A key that cannot encipher has its check value from the token, where that gives one, and of the kind that is ours.
	if backward := use == hsm.PINIn || use == hsm.ZMK; backward && (inNSS || algorithm == hsm.AES) {
		template[pkcs11.CKA_ID] = label + " " + proof(algorithm, value)
	}
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
	_, err = m.CreateObject(s, attributes)
	return err
}

// proof is what the CKA_ID of a key that cannot encipher says of its check value: see the documentation of package hsm.
func proof(algorithm hsm.Algorithm, value []byte) string {
	block := cipherOf(algorithm, value)
	zeros := make([]byte, block.BlockSize())
	block.Decrypt(zeros, zeros)
	return fmt.Sprintf("kcv:%s zeros:%X", kcv(algorithm, value), zeros[:3])
}

// KCV computes the check value of a clear key as the documentation of package hsm defines it, of TDES where its use has a choice.
func KCV(use hsm.Use, value []byte) string { return kcv(algorithmOf(use), value) }

// AESKCV is KCV of an AES key for a use that is TDES otherwise.
func AESKCV(value []byte) string { return kcv(hsm.AES, value) }

func kcv(algorithm hsm.Algorithm, value []byte) string {
	if algorithm == hsm.HMAC {
		mac := hmac.New(sha256.New, value)
		_, _ = mac.Write([]byte("acquirerd key check 1"))
		return strings.ToUpper(hex.EncodeToString(mac.Sum(nil)[:3]))
	}
	block := cipherOf(algorithm, value)
	out := make([]byte, block.BlockSize())
	block.Encrypt(out, out)
	if algorithm == hsm.AES { // the CMAC of zeros: their block XOR K1, which is zeros enciphered times x (SP 800-38B)
		k1 := new(big.Int).Lsh(new(big.Int).SetBytes(out), 1)
		if k1.Bit(128) == 1 {
			k1.Xor(k1.SetBit(k1, 128, 0), big.NewInt(0x87))
		}
		block.Encrypt(out, k1.FillBytes(out))
	}
	return strings.ToUpper(hex.EncodeToString(out[:3]))
}

func cipherOf(algorithm hsm.Algorithm, key []byte) cipher.Block {
	if algorithm != hsm.AES {
		return tdes(key)
	}
	block, err := aes.NewCipher(key)
	noError(err)
	return block
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
