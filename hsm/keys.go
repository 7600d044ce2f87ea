package hsm

import (
	"crypto/subtle"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
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
	ZMK      Use = "zmk"       // zone master key: new zone PIN keys arrive enciphered under it (see ChangeKey)
)

// Uses lists all of them.
var Uses = []Use{PINIn, PINOut, PANSeal, PANToken, ZMK}

// A Key is what the configuration says of a key in the token.
type Key struct {
	Label string // CKA_LABEL, unique in the token
	KCV   string // 6 hexadecimal digits; package documentation, "Key check values"
	Use   Use
	ZMK   string // label of the zmk key under which a pin-in or pin-out key may be changed; "": never
}

// A recipe is what a use demands of its key: STANDARDS "Templates", with the transient way of PIN translation.
type recipe struct {
	keyTypes   []uint // the first one is generated
	lengths    []int  // bytes of the value; the first one is generated, each may be imported
	flags      []uint // usage flags that are true; all others are false
	inside     []uint // instead of flags where the token can unwrap a zone key by itself; nil where that makes no difference
	mechanisms []uint // CKA_ALLOWED_MECHANISMS
	check      func(m module, s pkcs11.SessionHandle, k pkcs11.ObjectHandle) (kcv string, err error)
}

// The second mechanism of a zmk key tells it from a pin-in key where both decipher: the one may not pass for the other.
var recipes = map[Use]recipe{
	PINIn:    {tdesTypes, tdesLengths, []uint{pkcs11.CKA_DECRYPT}, nil, []uint{pkcs11.CKM_DES3_ECB}, checkPINIn},
	PINOut:   {tdesTypes, tdesLengths, []uint{pkcs11.CKA_ENCRYPT}, nil, []uint{pkcs11.CKM_DES3_ECB}, checkPINOut},
	PANSeal:  {[]uint{pkcs11.CKK_AES}, []int{32}, []uint{pkcs11.CKA_ENCRYPT, pkcs11.CKA_DECRYPT}, nil, []uint{pkcs11.CKM_AES_GCM}, checkPANSeal},
	PANToken: {[]uint{pkcs11.CKK_GENERIC_SECRET, pkcs11.CKK_SHA256_HMAC}, []int{32}, []uint{pkcs11.CKA_SIGN}, nil, []uint{pkcs11.CKM_SHA256_HMAC}, checkPANToken},
	ZMK:      {tdesTypes, tdesLengths, []uint{pkcs11.CKA_DECRYPT}, []uint{pkcs11.CKA_UNWRAP}, []uint{pkcs11.CKM_DES3_ECB, pkcs11.CKM_DES3_CBC}, checkZMK},
}

// Of TDES the type is the length: two keys or three.
var (
	tdesTypes   = []uint{pkcs11.CKK_DES2, pkcs11.CKK_DES3}
	tdesLengths = []int{tdes2Bytes, tdes3Bytes}
)

const (
	desBytes   = 8
	tdes2Bytes = 2 * desBytes
	tdes3Bytes = 3 * desBytes
)

func (r recipe) isTDES() bool { return r.keyTypes[0] == pkcs11.CKK_DES2 }

// on returns the recipe of a new key for this token: one with a choice takes what the token can do.
func (r recipe) on(m module, slot uint) recipe {
	if r.inside == nil {
		return r
	}
	if about, err := m.GetMechanismInfo(slot, desECB()); err == nil && about.Flags&pkcs11.CKF_UNWRAP != 0 {
		r.flags = r.inside
	}
	return r
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
	keyType := r.keyTypes[0]
	if r.isTDES() && bytes == tdes3Bytes {
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

// judge returns what is wrong with the key in the token for this use, "" if nothing.
func (r recipe) judge(m module, s pkcs11.SessionHandle, k pkcs11.ObjectHandle) (string, error) {
	var problems []string
	keyType, err := number(m, s, k, pkcs11.CKA_KEY_TYPE)
	if err != nil {
		return "", err
	}
	if !slices.Contains(r.keyTypes, keyType) {
		problems = append(problems, "has the wrong key type")
	}
	for _, g := range guards {
		value, known, err := flag(m, s, k, g.attribute)
		if err != nil {
			return "", err
		}
		if known && value != g.value || !known && !g.optional {
			problems = append(problems, fmt.Sprintf("is not %s=%t", g.name, g.value))
		}
	}
	flags := r.flags
	if r.inside != nil {
		if inside, err := unwraps(m, s, k); err != nil {
			return "", err
		} else if inside {
			flags = r.inside
		}
	}
	for _, u := range usageFlags {
		value, known, err := flag(m, s, k, u.attribute)
		if err != nil {
			return "", err
		}
		if want := slices.Contains(flags, u.attribute); value != want || want && !known {
			problems = append(problems, fmt.Sprintf("is not %s=%t", u.name, want))
		}
	}
	if keyType != pkcs11.CKK_DES2 && keyType != pkcs11.CKK_DES3 {
		if n, err := number(m, s, k, pkcs11.CKA_VALUE_LEN); err != nil {
			return "", err
		} else if !slices.Contains(r.lengths, int(n)) {
			problems = append(problems, fmt.Sprintf("has %d bits, not %d", 8*n, 8*r.lengths[0]))
		}
	}
	if mechanisms, known, err := attribute(m, s, k, pkcs11.CKA_ALLOWED_MECHANISMS); err != nil {
		return "", err
	} else if known && string(mechanisms) != string(mechanismList(r.mechanisms)) {
		// An empty list allows every mechanism: AES-ECB under a seal key gives GCM's hash key away.
		problems = append(problems, "allows other mechanisms than its use needs")
	}
	return strings.Join(problems, ", "), nil
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

// Key check values. Each check also makes the key do its work once, so that a generation whose keys cannot work is
// never published. Which value is taken for which use, and why it is sound, is in the package documentation.

const kcvBytes = 3

// checkPINOut is the usual check value of a TDES key: the first 3 bytes of zeros enciphered (ANS X9.24-1, A.3).
func checkPINOut(m module, s pkcs11.SessionHandle, k pkcs11.ObjectHandle) (string, error) {
	out, err := encipher(m, s, k, make([]byte, pinBlockBytes))
	if err != nil {
		return "", err
	}
	return kcvText(out), nil
}

// checkPINIn takes the token's word (CKA_CHECK_VALUE) for a key that may only decipher, after a trial of deciphering.
func checkPINIn(m module, s pkcs11.SessionHandle, k pkcs11.ObjectHandle) (string, error) {
	if _, err := decipher(m, s, k, make([]byte, pinBlockBytes)); err != nil {
		return "", err
	}
	return checkValue(m, s, k)
}

// checkZMK does the same, after a trial of what the key may do: decipher, or unwrap zeros into a key of the session. That a
// token refuses what comes out of zeros as a key is good enough.
func checkZMK(m module, s pkcs11.SessionHandle, k pkcs11.ObjectHandle) (string, error) {
	inside, err := unwraps(m, s, k)
	if err != nil {
		return "", err
	}
	if !inside {
		return checkPINIn(m, s, k)
	}
	useless := recipe{keyTypes: tdesTypes, mechanisms: []uint{pkcs11.CKM_DES3_ECB}}
	trial, err := m.UnwrapKey(s, desECB(), k, make([]byte, tdes2Bytes), inSession(useless.template("", "", tdes2Bytes)))
	switch {
	case err == nil:
		if err := m.DestroyObject(s, trial); err != nil {
			return "", err
		}
	case !errors.Is(err, pkcs11.Error(pkcs11.CKR_WRAPPED_KEY_INVALID)):
		return "", err
	}
	return checkValue(m, s, k)
}

// unwraps reports whether a key may unwrap others inside the token.
func unwraps(m module, s pkcs11.SessionHandle, k pkcs11.ObjectHandle) (bool, error) {
	set, _, err := flag(m, s, k, pkcs11.CKA_UNWRAP)
	return set, err
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

var errNoCheckValue = errors.New("the token gives no check value for a key that cannot encipher")

func checkValue(m module, s pkcs11.SessionHandle, k pkcs11.ObjectHandle) (string, error) {
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
	sealed, err := seal(m, s, k, nonce, aad, zeros)
	if err != nil {
		return "", err
	}
	opened, err := open(m, s, k, nonce, aad, sealed)
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
	mac, err := sign(m, s, k, []byte(kcvPurpose))
	if err != nil {
		return "", err
	}
	return kcvText(mac), nil
}

func kcvText(b []byte) string { return strings.ToUpper(hex.EncodeToString(b[:kcvBytes])) }

// sameKCV compares in constant time, whatever the case of the letters.
func sameKCV(a, b string) bool {
	return subtle.ConstantTimeCompare([]byte(strings.ToUpper(a)), []byte(strings.ToUpper(b))) == 1
}
