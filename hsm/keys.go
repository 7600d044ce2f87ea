package hsm

import (
	"cmp"
	"crypto/subtle"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/miekg/pkcs11"
)

// A Use is the one purpose of a key (PCI PIN 19). Its text stands in the configuration.
type Use string

const (
	PINIn    Use = "pin-in"    // zone PIN key of an upstream: deciphers PIN blocks
	PINOut   Use = "pin-out"   // zone PIN key of an endpoint: enciphers PIN blocks
	PANSeal  Use = "pan-seal"  // AES-256-GCM: seals and opens PANs
	PANToken Use = "pan-token" // HMAC-SHA-256: makes PAN tokens
	BDK      Use = "bdk"       // base derivation key of DUKPT: the keys of devices are derived from it
	ZMK      Use = "zmk"       // zone master key: new zone PIN keys arrive enciphered under it (see ChangeKey)
	MACX919  Use = "mac-x919"  // MACs by ANS X9.19 (ISO/IEC 9797-1, algorithm 3): two objects, see macpair.go
	MACCMAC  Use = "mac-cmac"  // MACs by CMAC of TDES or AES (NIST SP 800-38B)
	MACHMAC  Use = "mac-hmac"  // MACs by HMAC-SHA-256
	KBPK     Use = "kbpk"      // key block protection key: keys arrive and leave in key blocks under it (see ImportKeyBlock)
)

// Uses lists all of them.
var Uses = []Use{PINIn, PINOut, PANSeal, PANToken, ZMK, MACX919, MACCMAC, MACHMAC, BDK, KBPK}

// A Key is what the configuration says of a key in the token.
type Key struct {
	Label string // CKA_LABEL, unique in the token
	KCV   string // 6 hexadecimal digits; package documentation, "Key check values"
	Use   Use
	ZMK   string // label of the zmk key under which a pin-in or pin-out key may be changed; "": never
}

// An Algorithm is what a key is for. It is the key's own: the type of its object in the token.
type Algorithm string

const (
	TDES Algorithm = "tdes" // of double or triple length
	AES  Algorithm = "aes"
	HMAC Algorithm = "hmac" // a generic secret
)

// A recipe is what a use demands of its key (STANDARDS "Templates"). A use has more than one where algorithms differ, or the ways: see Way.
type recipe struct {
	algorithm  Algorithm
	way        Way                                                                                   // TokenResident too where what passes through this process is no PIN block and no key
	lengths    []int                                                                                 // bytes of the value; the first one is generated, each may be imported
	flags      []uint                                                                                // usage flags that are true; all others are false
	mechanisms []uint                                                                                // CKA_ALLOWED_MECHANISMS; the first one is what the key is used with
	check      func(m module, s pkcs11.SessionHandle, k pkcs11.ObjectHandle) (kcv string, err error) // nil: of single blocks, see kcv
}

// keyTypes of an algorithm; the first one is generated. Of TDES the type is the length: two keys or three.
var algorithmTypes = map[Algorithm][]uint{
	TDES: {pkcs11.CKK_DES2, pkcs11.CKK_DES3},
	AES:  {pkcs11.CKK_AES},
	HMAC: {pkcs11.CKK_GENERIC_SECRET, pkcs11.CKK_SHA256_HMAC},
}

func (r recipe) keyTypes() []uint { return algorithmTypes[r.algorithm] }

const (
	desBytes   = 8
	aesBytes   = 16 // a block
	tdes2Bytes = 2 * desBytes
	tdes3Bytes = 3 * desBytes
	hmacBytes  = 32 // of a key for HMAC-SHA-256, and of what it makes; SoftHSM 2.6.1 takes none that is shorter

	aes256Bytes = 2 * aesBytes // the longest key
)

var (
	tdesLengths = []int{tdes2Bytes, tdes3Bytes}
	aesLengths  = []int{32, 16}
)

// Lists of mechanisms. A second one that no usage flag lets the key do tells a key from those of another use that have the same flags: the one
// may not pass for the other.
var (
	tdesPIN  = []uint{pkcs11.CKM_DES3_ECB}
	aesPIN   = []uint{pkcs11.CKM_AES_ECB}
	tdesZMK  = []uint{pkcs11.CKM_DES3_ECB, pkcs11.CKM_DES3_CBC}
	aesZMK   = []uint{pkcs11.CKM_AES_ECB, pkcs11.CKM_AES_CBC}
	aesSeal  = []uint{pkcs11.CKM_AES_ECB, pkcs11.CKM_AES_CTR}
	aesToken = []uint{pkcs11.CKM_AES_ECB, pkcs11.CKM_AES_CMAC}
	tdesBDK  = []uint{pkcs11.CKM_DES3_ECB, pkcs11.CKM_DES3_ECB_ENCRYPT_DATA}
	aesBDK   = []uint{pkcs11.CKM_AES_ECB_ENCRYPT_DATA}
)

// recipes are those of each use. Of two that a key fits by its algorithm, its flags decide. A new key is made by the first one that its
// algorithm fits and the token can do: see recipeFor.
var recipes = map[Use][]recipe{
	PINIn: {
		{TDES, TokenResident, tdesLengths, []uint{pkcs11.CKA_UNWRAP}, tdesPIN, nil},
		{TDES, Transient, tdesLengths, []uint{pkcs11.CKA_DECRYPT}, tdesPIN, nil},
		{AES, TokenResident, aesLengths, []uint{pkcs11.CKA_DECRYPT, pkcs11.CKA_UNWRAP}, aesPIN, nil},
		{AES, Transient, aesLengths, []uint{pkcs11.CKA_DECRYPT}, aesPIN, nil},
	},
	PINOut: {
		{TDES, TokenResident, tdesLengths, []uint{pkcs11.CKA_WRAP}, tdesPIN, nil},
		{TDES, Transient, tdesLengths, []uint{pkcs11.CKA_ENCRYPT}, tdesPIN, nil},
		{AES, TokenResident, aesLengths, []uint{pkcs11.CKA_ENCRYPT, pkcs11.CKA_WRAP}, aesPIN, nil},
		{AES, Transient, aesLengths, []uint{pkcs11.CKA_ENCRYPT}, aesPIN, nil},
	},
	PANSeal: {
		{AES, TokenResident, []int{32}, []uint{pkcs11.CKA_ENCRYPT}, aesSeal, nil},
		{AES, TokenResident, []int{32}, []uint{pkcs11.CKA_ENCRYPT, pkcs11.CKA_DECRYPT}, []uint{pkcs11.CKM_AES_GCM}, checkPANSeal},
	},
	PANToken: {
		{AES, TokenResident, []int{32}, []uint{pkcs11.CKA_ENCRYPT}, aesToken, nil},
		{HMAC, TokenResident, []int{32}, []uint{pkcs11.CKA_SIGN}, []uint{pkcs11.CKM_SHA256_HMAC}, checkPANToken},
	},
	BDK: {
		{AES, TokenResident, aesLengths, []uint{pkcs11.CKA_DERIVE}, aesBDK, checkBDK},
		{TDES, Transient, []int{tdes2Bytes}, []uint{pkcs11.CKA_ENCRYPT}, tdesBDK, nil}, // and its variant: see "DUKPT"
	},
	ZMK: {
		{TDES, TokenResident, tdesLengths, []uint{pkcs11.CKA_UNWRAP}, tdesZMK, nil},
		{TDES, Transient, tdesLengths, []uint{pkcs11.CKA_DECRYPT}, tdesZMK, nil},
		{AES, TokenResident, aesLengths, []uint{pkcs11.CKA_UNWRAP}, aesZMK, nil},
		{AES, Transient, aesLengths, []uint{pkcs11.CKA_DECRYPT}, aesZMK, nil},
	},
	MACX919: {
		{TDES, TokenResident, []int{tdes2Bytes}, []uint{pkcs11.CKA_ENCRYPT}, []uint{pkcs11.CKM_DES3_CBC}, checkCBC},
	},
	MACCMAC: {
		{AES, TokenResident, aesLengths, macFlags, []uint{pkcs11.CKM_AES_CMAC}, checkAESCMAC},
		{TDES, TokenResident, tdesLengths, macFlags, []uint{pkcs11.CKM_DES3_CMAC}, checkTDESCMAC},
		{TDES, TokenResident, tdesLengths, []uint{pkcs11.CKA_ENCRYPT}, []uint{pkcs11.CKM_DES3_CBC, pkcs11.CKM_DES3_CMAC}, checkCBC}, // where there is no CMAC of TDES
	},
	MACHMAC: {
		{HMAC, TokenResident, []int{hmacBytes}, macFlags, []uint{pkcs11.CKM_SHA256_HMAC}, checkPANToken},
	},
	KBPK: { // the keys of a block are derived, for which CMAC needs zeros enciphered
		{TDES, TokenResident, tdesLengths, []uint{pkcs11.CKA_ENCRYPT, pkcs11.CKA_DERIVE}, []uint{pkcs11.CKM_DES3_ECB_ENCRYPT_DATA, pkcs11.CKM_DES3_ECB}, nil},
		{AES, TokenResident, aesLengths, []uint{pkcs11.CKA_ENCRYPT, pkcs11.CKA_DERIVE}, []uint{pkcs11.CKM_AES_ECB_ENCRYPT_DATA, pkcs11.CKM_AES_ECB}, nil},
	},
}

// macFlags are those of a key whose MACs the token makes by itself. That it may also verify tells it from a pan-token key.
var macFlags = []uint{pkcs11.CKA_SIGN, pkcs11.CKA_VERIFY}

// DefaultAlgorithm is that of a new key of a use where nobody says another; "" of what is no use.
func DefaultAlgorithm(use Use) Algorithm {
	if of := recipes[use]; len(of) > 0 {
		return of[0].algorithm
	}
	return ""
}

// recipeFor returns the recipe of a new key. Without an algorithm it is the use's first.
func recipeFor(m module, slot uint, use Use, algorithm Algorithm) (recipe, error) {
	of, known := recipes[use]
	if !known {
		return recipe{}, fmt.Errorf("%q is not a use: %v are", use, Uses)
	}
	algorithm = cmp.Or(algorithm, DefaultAlgorithm(use))
	for _, r := range of {
		if r.algorithm == algorithm && r.possible(m, slot) {
			return r, nil
		}
	}
	return recipe{}, fmt.Errorf("no key of use %s can be %s", use, algorithm)
}

// possible reports whether a token says that it can do what the recipe's flags let the key do. It is not asked about deriving, which no recipe has
// another way for: NSS does that with keys of its database, and does not say so.
func (r recipe) possible(m module, slot uint) bool {
	can := map[uint]uint{pkcs11.CKA_WRAP: pkcs11.CKF_WRAP, pkcs11.CKA_UNWRAP: pkcs11.CKF_UNWRAP, pkcs11.CKA_SIGN: pkcs11.CKF_SIGN}
	for _, f := range r.flags {
		need, special := can[f]
		if !special {
			continue
		}
		about, err := m.GetMechanismInfo(slot, mechanism(r.mechanisms[0]))
		if err != nil || about.Flags&need == 0 {
			return false
		}
	}
	return true
}

// fitting returns the recipe that a key in the token fits, or the one that it is nearest to with what is wrong.
func fitting(use Use, m module, s pkcs11.SessionHandle, k pkcs11.ObjectHandle) (fits recipe, problem string, err error) {
	least := -1
	for _, r := range recipes[use] {
		problems, err := r.judge(m, s, k)
		if err != nil {
			return recipe{}, "", err
		}
		if least < 0 || len(problems) < least {
			fits, problem, least = r, strings.Join(problems, ", "), len(problems)
		}
	}
	return fits, problem, nil
}

// usageFlags are all flags that let a secret key do something, by the names that List shows.
var usageFlags = []struct {
	attribute uint
	name      string
}{
	{pkcs11.CKA_ENCRYPT, "encrypt"},
	{pkcs11.CKA_DECRYPT, "decrypt"},
	{pkcs11.CKA_SIGN, "sign"},
	{pkcs11.CKA_VERIFY, "verify"},
	{pkcs11.CKA_WRAP, "wrap"},
	{pkcs11.CKA_UNWRAP, "unwrap"},
	{pkcs11.CKA_DERIVE, "derive"},
}

// guards are what keeps a key in the token and its flags as they are.
var guards = []struct {
	attribute uint
	name      string
	value     bool
	optional  bool // a token may not know the attribute
}{
	{pkcs11.CKA_PRIVATE, "private", true, false},
	{pkcs11.CKA_SENSITIVE, "sensitive", true, false},
	{pkcs11.CKA_EXTRACTABLE, "extractable", false, false},
	{pkcs11.CKA_MODIFIABLE, "modifiable", false, false},
	{pkcs11.CKA_COPYABLE, "copyable", false, true}, // since PKCS#11 v2.40
}

// keyTypes names the types of secret keys that this package knows.
var keyTypes = map[uint]string{
	pkcs11.CKK_DES2:           "DES2",
	pkcs11.CKK_DES3:           "DES3",
	pkcs11.CKK_AES:            "AES",
	pkcs11.CKK_GENERIC_SECRET: "GENERIC_SECRET",
	pkcs11.CKK_SHA256_HMAC:    "SHA256_HMAC",
}

// template returns the attributes of a new key in the token, without its value or length. Of TDES, bytes chooses the type.
func (r recipe) template(label, id string, bytes int) []*pkcs11.Attribute {
	keyType := r.keyTypes()[0]
	if r.algorithm == TDES && bytes == tdes3Bytes {
		keyType = pkcs11.CKK_DES3
	}
	t := []*pkcs11.Attribute{
		pkcs11.NewAttribute(pkcs11.CKA_CLASS, pkcs11.CKO_SECRET_KEY),
		pkcs11.NewAttribute(pkcs11.CKA_KEY_TYPE, keyType),
		pkcs11.NewAttribute(pkcs11.CKA_LABEL, label),
		pkcs11.NewAttribute(pkcs11.CKA_ID, id),
		pkcs11.NewAttribute(pkcs11.CKA_TOKEN, true),
		pkcs11.NewAttribute(pkcs11.CKA_ALLOWED_MECHANISMS, mechanismList(r.mechanisms)),
	}
	for _, g := range guards {
		t = append(t, pkcs11.NewAttribute(g.attribute, g.value))
	}
	for _, u := range usageFlags {
		t = append(t, pkcs11.NewAttribute(u.attribute, slices.Contains(r.flags, u.attribute)))
	}
	return t
}

// judge returns what is wrong with the key in the token for this recipe.
func (r recipe) judge(m module, s pkcs11.SessionHandle, k pkcs11.ObjectHandle) (problems []string, err error) {
	keyType, err := number(m, s, k, pkcs11.CKA_KEY_TYPE)
	if err != nil {
		return nil, err
	}
	if !slices.Contains(r.keyTypes(), keyType) {
		problems = append(problems, "has the wrong key type")
	}
	for _, g := range guards {
		value, known, err := flag(m, s, k, g.attribute)
		if err != nil {
			return nil, err
		}
		if known && value != g.value || !known && !g.optional {
			problems = append(problems, fmt.Sprintf("is not %s=%t", g.name, g.value))
		}
	}
	for _, u := range usageFlags {
		value, known, err := flag(m, s, k, u.attribute)
		if err != nil {
			return nil, err
		}
		if want := slices.Contains(r.flags, u.attribute); value != want || want && !known {
			problems = append(problems, fmt.Sprintf("is not %s=%t", u.name, want))
		}
	}
	if keyType != pkcs11.CKK_DES2 && keyType != pkcs11.CKK_DES3 {
		if n, err := number(m, s, k, pkcs11.CKA_VALUE_LEN); err != nil {
			return nil, err
		} else if !slices.Contains(r.lengths, int(n)) {
			problems = append(problems, fmt.Sprintf("has %d bits, not %s", 8*n, oneOf(bitsOf(r.lengths))))
		}
	}
	if mechanisms, known, err := attribute(m, s, k, pkcs11.CKA_ALLOWED_MECHANISMS); err != nil {
		return nil, err
	} else if known && !slices.Equal(mechanismsOf(mechanisms), slices.Sorted(slices.Values(r.mechanisms))) {
		// An empty list allows every mechanism.
		problems = append(problems, "allows other mechanisms than its use needs")
	}
	return problems, nil
}

// find returns the handles of all secret keys with the label, or of all secret keys if label is "".
func find(m module, s pkcs11.SessionHandle, label string) ([]pkcs11.ObjectHandle, error) {
	return findClass(m, s, pkcs11.CKO_SECRET_KEY, label)
}

func findClass(m module, s pkcs11.SessionHandle, class uint, label string) ([]pkcs11.ObjectHandle, error) {
	template := []*pkcs11.Attribute{pkcs11.NewAttribute(pkcs11.CKA_CLASS, class)}
	if label != "" {
		template = append(template, pkcs11.NewAttribute(pkcs11.CKA_LABEL, label))
	}
	if err := m.FindObjectsInit(s, template); err != nil {
		return nil, fmt.Errorf("searching keys: %w", err)
	}
	var handles []pkcs11.ObjectHandle
	for {
		const atOnce = 64
		more, _, err := m.FindObjects(s, atOnce)
		if err != nil {
			return nil, fmt.Errorf("searching keys: %w", err)
		}
		if len(more) == 0 {
			break
		}
		handles = append(handles, more...)
	}
	if err := m.FindObjectsFinal(s); err != nil {
		return nil, fmt.Errorf("searching keys: %w", err)
	}
	return handles, nil
}

// attribute reads one attribute. It is not known if the token does not have it for this object.
func attribute(m module, s pkcs11.SessionHandle, k pkcs11.ObjectHandle, which uint) (value []byte, known bool, err error) {
	got, err := m.GetAttributeValue(s, k, []*pkcs11.Attribute{pkcs11.NewAttribute(which, nil)})
	if errors.Is(err, pkcs11.Error(pkcs11.CKR_ATTRIBUTE_TYPE_INVALID)) || errors.Is(err, pkcs11.Error(pkcs11.CKR_ATTRIBUTE_SENSITIVE)) {
		return nil, false, nil
	}
	if err != nil {
		return nil, false, fmt.Errorf("reading attribute %#x: %w", which, err)
	}
	return got[0].Value, true, nil
}

func flag(m module, s pkcs11.SessionHandle, k pkcs11.ObjectHandle, which uint) (value, known bool, err error) {
	b, known, err := attribute(m, s, k, which)
	return len(b) == 1 && b[0] != 0, known && len(b) == 1, err
}

// number reads a CK_ULONG, 0 if the token does not know it.
func number(m module, s pkcs11.SessionHandle, k pkcs11.ObjectHandle, which uint) (uint, error) {
	b, _, err := attribute(m, s, k, which)
	if err != nil || len(b) != ulongBytes {
		return 0, err
	}
	return uint(binary.NativeEndian.Uint64(b)), nil
}

// ulongBytes is the size of a CK_ULONG where this package runs: 64-bit Linux.
const ulongBytes = 8

// mechanismList is the value of CKA_ALLOWED_MECHANISMS: an array of CK_ULONG.
func mechanismList(mechanisms []uint) []byte {
	var list []byte
	for _, m := range mechanisms {
		list = binary.NativeEndian.AppendUint64(list, uint64(m))
	}
	return list
}

// mechanismsOf reads such a list, sorted: a token keeps a set of them.
func mechanismsOf(list []byte) []uint {
	var mechanisms []uint
	for ; len(list) >= ulongBytes; list = list[ulongBytes:] {
		mechanisms = append(mechanisms, uint(binary.NativeEndian.Uint64(list)))
	}
	slices.Sort(mechanisms)
	return mechanisms
}

// Key check values. Each check also makes the key do its work once, so that a generation whose keys cannot work is
// never published. Which value is taken for which use, and why it is sound, is in the package documentation.

const kcvBytes = 3

// kcv returns the check value of a key that fits the recipe, and makes the key do its work once.
//
// Of a key that enciphers or wraps it is the usual one: of TDES the first 3 bytes of zeros enciphered (ANS X9.24-1, A.3), of AES of the CMAC of a
// block of zeros (X9.24-2). For one that deciphers or unwraps see checkValue.
func (r recipe) kcv(m module, s pkcs11.SessionHandle, k pkcs11.ObjectHandle) (string, error) {
	if r.check != nil {
		return r.check(m, s, k)
	}
	zeros, err := r.onBlock(m, s, k, make([]byte, r.algorithm.block()))
	switch {
	case err != nil:
		return "", err
	case !r.enciphers():
		return checkValue(m, s, k, zeros)
	case r.algorithm == AES:
		if zeros, err = r.onBlock(m, s, k, cmacSubkey(zeros)); err != nil { // a block of zeros XOR K1 (SP 800-38B, 6.2)
			return "", err
		}
	}
	return kcvText(zeros), nil
}

func (r recipe) has(flag uint) bool { return slices.Contains(r.flags, flag) }

// enciphers reports whether what the key does is the forward direction of its cipher.
func (r recipe) enciphers() bool { return r.has(pkcs11.CKA_ENCRYPT) || r.has(pkcs11.CKA_WRAP) }

// onBlock lets a key do what its flags allow with one block in ECB. Of a key that may only unwrap it is nil if the token keeps to itself
// what comes out.
func (r recipe) onBlock(m module, s pkcs11.SessionHandle, k pkcs11.ObjectHandle, block []byte) ([]byte, error) {
	switch {
	case r.has(pkcs11.CKA_ENCRYPT):
		return encipher(m, s, r.algorithm, k, block)
	case r.has(pkcs11.CKA_DECRYPT):
		return decipher(m, s, r.algorithm, k, block)
	case r.has(pkcs11.CKA_WRAP):
		return wrapBlock(m, s, r.algorithm, k, block)
	}
	return unwrapBlock(m, s, r.algorithm, k, block)
}

// wrapBlock enciphers a block that is no secret: it wraps it as a secret of the session.
func wrapBlock(m module, s pkcs11.SessionHandle, algorithm Algorithm, k pkcs11.ObjectHandle, block []byte) ([]byte, error) {
	o, err := m.CreateObject(s, append(openSecret(), pkcs11.NewAttribute(pkcs11.CKA_VALUE, block)))
	if err != nil {
		return nil, err
	}
	out, err := m.WrapKey(s, mechanism(algorithm.ecb()), k, o)
	if also := m.DestroyObject(s, o); err == nil {
		err = also
	}
	return exactly(len(block), out, err)
}

// unwrapBlock deciphers a block that was never a secret's: it unwraps it into a readable secret of the session. It returns nil if the token does
// not allow that.
func unwrapBlock(m module, s pkcs11.SessionHandle, algorithm Algorithm, k pkcs11.ObjectHandle, block []byte) ([]byte, error) {
	o, err := m.UnwrapKey(s, mechanism(algorithm.ecb()), k, block, openSecret())
	if errors.Is(err, pkcs11.Error(pkcs11.CKR_WRAPPED_KEY_INVALID)) || errors.Is(err, pkcs11.Error(pkcs11.CKR_TEMPLATE_INCONSISTENT)) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	value, _, err := attribute(m, s, o, pkcs11.CKA_VALUE)
	if also := m.DestroyObject(s, o); err == nil {
		err = also
	}
	return value, err
}

// openSecret is the template of a secret of the session that anybody may read.
func openSecret() []*pkcs11.Attribute {
	return []*pkcs11.Attribute{
		pkcs11.NewAttribute(pkcs11.CKA_CLASS, pkcs11.CKO_SECRET_KEY),
		pkcs11.NewAttribute(pkcs11.CKA_KEY_TYPE, pkcs11.CKK_GENERIC_SECRET),
		pkcs11.NewAttribute(pkcs11.CKA_TOKEN, false),
		pkcs11.NewAttribute(pkcs11.CKA_SENSITIVE, false),
		pkcs11.NewAttribute(pkcs11.CKA_EXTRACTABLE, true),
	}
}

// measure makes a key for the session only that may encipher and decipher, and returns its check value, and what it makes of zeros when it
// deciphers: of a new key, whose final object may not show both.
func measure(m module, s pkcs11.SessionHandle, algorithm Algorithm, bytes int, create creator) (kcv string, deciphered []byte, err error) {
	both := recipe{algorithm: algorithm, flags: []uint{pkcs11.CKA_ENCRYPT, pkcs11.CKA_DECRYPT}, mechanisms: []uint{algorithm.ecb()}}
	trial, err := create(inSession(both.template("", "", bytes)))
	if err != nil {
		return "", nil, err
	}
	kcv, err = both.kcv(m, s, trial)
	if err == nil {
		deciphered, err = decipher(m, s, algorithm, trial, make([]byte, algorithm.block()))
	}
	if also := m.DestroyObject(s, trial); err == nil {
		err = also
	}
	return kcv, deciphered, err
}

// cmacSubkey is K1 of CMAC, from zeros enciphered (SP 800-38B, 6.1).
func cmacSubkey(zeros []byte) []byte {
	const polynomial16, polynomial8 = 0x87, 0x1B
	polynomial := byte(polynomial16)
	if len(zeros) == desBytes {
		polynomial = polynomial8
	}
	k1, carry := make([]byte, len(zeros)), byte(0)
	for i := len(zeros) - 1; i >= 0; i-- {
		k1[i], carry = zeros[i]<<1|carry, zeros[i]>>7
	}
	k1[len(k1)-1] ^= polynomial * carry // no branch: the carry is secret
	return k1
}

// strengthOf is how many bits of work a key withstands (SP 800-57 part 1, table 2): by it a key may be enciphered under another one.
func strengthOf(a Algorithm, bytes int) int {
	switch {
	case a != TDES:
		return 8 * bytes
	case bytes == tdes3Bytes:
		return 112
	}
	return 80
}

// strength is that of a key in the token.
func (k *key) strength(m module, s pkcs11.SessionHandle) (int, error) {
	bytes, err := lengthOf(m, s, k.handle)
	return strengthOf(k.recipe.algorithm, bytes), err
}

// lengthOf is the length in bytes of a key's value.
func lengthOf(m module, s pkcs11.SessionHandle, k pkcs11.ObjectHandle) (int, error) {
	keyType, err := number(m, s, k, pkcs11.CKA_KEY_TYPE)
	if err != nil {
		return 0, err
	}
	switch keyType {
	case pkcs11.CKK_DES2:
		return tdes2Bytes, nil
	case pkcs11.CKK_DES3:
		return tdes3Bytes, nil
	}
	n, err := number(m, s, k, pkcs11.CKA_VALUE_LEN)
	return int(n), err
}

// block is the length of a block in bytes.
func (a Algorithm) block() int {
	if a == AES {
		return aesBytes
	}
	return desBytes
}

// ecb is the algorithm's mechanism for single blocks.
func (a Algorithm) ecb() uint {
	if a == AES {
		return pkcs11.CKM_AES_ECB
	}
	return pkcs11.CKM_DES3_ECB
}

func mechanism(which uint) []*pkcs11.Mechanism {
	return []*pkcs11.Mechanism{pkcs11.NewMechanism(which, nil)}
}

// inSession turns the template of a key in the token into that of one that ends with its session.
func inSession(template []*pkcs11.Attribute) []*pkcs11.Attribute {
	for i, a := range template {
		if a.Type == pkcs11.CKA_TOKEN {
			template[i] = pkcs11.NewAttribute(pkcs11.CKA_TOKEN, false)
		}
	}
	return template
}

var errNoCheckValue = errors.New("the token gives no check value for a key that cannot encipher, and its CKA_ID has no proof of one")

// A proof binds a check value to a key that cannot show it. Who makes such a key knows it, and writes into its CKA_ID what zeros are enciphered
// (the check value) and deciphered: the one is what people compare, and the other what the key can still show.
var proofText = regexp.MustCompile(`(?:^| )kcv:([0-9A-F]{6}) zeros:([0-9A-F]{6})$`)

func proof(kcv string, zerosDeciphered []byte) string {
	return "kcv:" + kcv + " zeros:" + kcvText(zerosDeciphered)
}

// checkValue returns the check value of a key that shows zeros deciphered: by the proof in its CKA_ID, or else the token's word. Of AES that word is of
// the older kind, zeros enciphered (SoftHSM 2.6.1).
func checkValue(m module, s pkcs11.SessionHandle, k pkcs11.ObjectHandle, zeros []byte) (string, error) {
	id, _, err := attribute(m, s, k, pkcs11.CKA_ID)
	if err != nil {
		return "", err
	}
	if said := proofText.FindStringSubmatch(string(id)); said != nil && len(zeros) >= kcvBytes {
		if !sameKCV(kcvText(zeros), said[2]) {
			return "", errors.New("it is not the key of which its CKA_ID tells the check value")
		}
		return said[1], nil
	}
	value, known, err := attribute(m, s, k, pkcs11.CKA_CHECK_VALUE)
	if err != nil {
		return "", err
	}
	if !known || len(value) != kcvBytes { // SoftHSM 2.6.1 leaves it empty when a key is unwrapped
		return "", errNoCheckValue
	}
	return kcvText(value), nil
}

// checkPANSeal enciphers zeros under a nonce that is kept for this, opens them again, and takes the first 3 bytes.
func checkPANSeal(m module, s pkcs11.SessionHandle, k pkcs11.ObjectHandle) (string, error) {
	nonce, aad, zeros := make([]byte, nonceBytes), []byte(kcvPurpose), make([]byte, 16)
	sealed, err := sealByToken(m, s, k, nonce, aad, zeros)
	if err != nil {
		return "", err
	}
	opened, err := openByToken(m, s, k, nonce, aad, sealed)
	if err != nil {
		return "", err
	}
	if subtle.ConstantTimeCompare(opened, zeros) != 1 {
		return "", errors.New("does not open what it sealed")
	}
	return kcvText(sealed), nil
}

// checkPANToken signs a text that cannot be a PAN and takes the first 3 bytes.
func checkPANToken(m module, s pkcs11.SessionHandle, k pkcs11.ObjectHandle) (string, error) {
	mac, err := signed(m, s, pkcs11.CKM_SHA256_HMAC, k, []byte(kcvPurpose))
	if err != nil {
		return "", err
	}
	return kcvText(mac), nil
}

// checkCBC is the usual check value of a TDES key that enciphers in CBC alone: of zeros behind a chain of zeros.
func checkCBC(m module, s pkcs11.SessionHandle, k pkcs11.ObjectHandle) (string, error) {
	zeros := make([]byte, desBytes)
	err := cbcMAC(m, s, k, zeros, make([]byte, desBytes))
	return kcvText(zeros), err
}

// checkAESCMAC is the usual check value of an AES key (X9.24-2), which is a MAC that it makes.
func checkAESCMAC(m module, s pkcs11.SessionHandle, k pkcs11.ObjectHandle) (string, error) {
	mac, err := signed(m, s, pkcs11.CKM_AES_CMAC, k, make([]byte, aesBytes))
	if err != nil {
		return "", err
	}
	return kcvText(mac), nil
}

// checkTDESCMAC is of a key that shows no zeros enciphered: by the proof of who made it, or the token's word. What it can show is the CMAC of zeros.
func checkTDESCMAC(m module, s pkcs11.SessionHandle, k pkcs11.ObjectHandle) (string, error) {
	mac, err := signed(m, s, pkcs11.CKM_DES3_CMAC, k, make([]byte, desBytes))
	if err != nil {
		return "", err
	}
	return checkValue(m, s, k, mac)
}

func kcvText(b []byte) string { return strings.ToUpper(hex.EncodeToString(b[:kcvBytes])) }

// sameKCV compares in constant time, whatever the case of the letters.
func sameKCV(a, b string) bool {
	return subtle.ConstantTimeCompare([]byte(strings.ToUpper(a)), []byte(strings.ToUpper(b))) == 1
}
