package hsm

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/subtle"
	"errors"
	"fmt"
	"math/bits"
	"slices"
	"sort"
	"strconv"
	"strings"
	"time"

	"github.com/ThalesGroup/crypto11"
	"github.com/miekg/pkcs11"
)

// The work of short-lived commands on keys. Each of these functions uses the module alone (ErrInUse beside an open HSM
// of this process), logs in once, and gives everything back. Of the Config they use Module, Token and PIN.

// A KeyInfo describes a secret or private key of the token.
type KeyInfo struct {
	Label string   `json:"label"`
	Type  string   `json:"type"`  // DES2, DES3, AES, GENERIC_SECRET, SHA256_HMAC, EC, RSA, or its number
	Bits  int      `json:"bits"`  // of the value, parity included; 0 if the token does not say
	Use   Use      `json:"use"`   // "" if the key fits no use; TLSKey if it is fit for a Signer
	KCV   string   `json:"kcv"`   // "" without a use, or if the key does not work
	Flags []string `json:"flags"` // usage flags and guards that are set
}

// List returns all secret and private keys of the token, by label.
func List(cfg Config) ([]KeyInfo, error) {
	var keys []KeyInfo
	err := withToken(cfg, 0, func(m *library, s pkcs11.SessionHandle) error {
		handles, err := find(m, s, "")
		if err != nil {
			return err
		}
		for _, k := range handles {
			about, err := describe(m, s, k)
			if err != nil {
				return err
			}
			keys = append(keys, about)
		}
		if handles, err = findClass(m, s, pkcs11.CKO_PRIVATE_KEY, ""); err != nil {
			return err
		}
		for _, k := range handles {
			about, err := describePrivate(m, s, k)
			if err != nil {
				return err
			}
			keys = append(keys, about)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("listing keys: %w", err)
	}
	sort.SliceStable(keys, func(i, j int) bool { return keys[i].Label < keys[j].Label })
	return keys, nil
}

// Generate makes a random key inside the token. It refuses a label that exists (ErrKeyExists). AES and HMAC keys are
// made by crypto11; it has no double-length TDES, so those are made by C_GenerateKey. A pin-in key that was generated
// is known to nobody outside the token: of use once keys can be exported or for tests of one's own.
func Generate(cfg Config, label string, use Use) (KeyInfo, error) {
	about, err := generate(cfg, label, use)
	if err != nil {
		return KeyInfo{}, fmt.Errorf("generating key %q: %w", label, err)
	}
	return about, nil
}

func generate(cfg Config, label string, use Use) (KeyInfo, error) {
	if err := refuseLabel(label, use); err != nil {
		return KeyInfo{}, err
	}
	release, err := claim(cfg.Module)
	if err != nil {
		return KeyInfo{}, err
	}
	defer release()
	var r recipe
	err = onToken(cfg, pkcs11.CKF_RW_SESSION, func(m *library, s pkcs11.SessionHandle, slot uint) error {
		if err := refuseTaken(m, s, label); err != nil {
			return err
		}
		if r, err = recipeFor(m, slot, use, ""); err != nil || r.algorithm != TDES {
			return err
		}
		if use == MACX919 { // no token makes the half of a key by itself
			value := newTDES()
			defer clear(value)
			_, err := createMACPairOf(m, s, label, value)
			return err
		}
		_, err := m.GenerateKey(s, mechanism(pkcs11.CKM_DES2_KEY_GEN), r.template(label, label, r.lengths[0]))
		return err
	})
	if err == nil && r.algorithm != TDES {
		err = generateByCrypto11(cfg, label, r)
	}
	if err != nil {
		return KeyInfo{}, err
	}
	return inspect(cfg, label, use)
}

// generateByCrypto11 has the module to itself: crypto11 finalises it when it closes.
func generateByCrypto11(cfg Config, label string, r recipe) error {
	cipher := crypto11.CipherAES
	if r.algorithm == HMAC {
		cipher = crypto11.CipherGeneric
	}
	return withCrypto11(cfg, func(ctx *crypto11.Context) error {
		template := crypto11.NewAttributeSet()
		template.AddIfNotPresent(r.template(label, label, r.lengths[0]))
		_, err := ctx.GenerateSecretKeyWithAttributes(template, 8*r.lengths[0], cipher)
		return err
	})
}

// GenerateSigner makes a random key pair inside the token, for a Signer. It refuses a label that exists (ErrKeyExists).
func GenerateSigner(cfg Config, label string, kind KeyType) (KeyInfo, error) {
	about, err := generateSigner(cfg, label, kind)
	if err != nil {
		return KeyInfo{}, fmt.Errorf("generating key %q: %w", label, err)
	}
	return about, nil
}

func generateSigner(cfg Config, label string, kind KeyType) (about KeyInfo, err error) {
	if label == "" || !slices.Contains(KeyTypes, kind) {
		return KeyInfo{}, fmt.Errorf("a key needs a label, and a type of %v", KeyTypes)
	}
	release, err := claim(cfg.Module)
	if err != nil {
		return KeyInfo{}, err
	}
	defer release()
	err = onToken(cfg, 0, func(m *library, s pkcs11.SessionHandle, _ uint) error {
		for _, class := range []uint{pkcs11.CKO_PRIVATE_KEY, pkcs11.CKO_PUBLIC_KEY} {
			if handles, err := findClass(m, s, class, label); err != nil {
				return err
			} else if len(handles) > 0 {
				return ErrKeyExists
			}
		}
		return nil
	})
	if err != nil {
		return KeyInfo{}, err
	}
	err = withCrypto11(cfg, func(ctx *crypto11.Context) (err error) {
		public, private := crypto11.NewAttributeSet(), crypto11.NewAttributeSet()
		names := []*pkcs11.Attribute{pkcs11.NewAttribute(pkcs11.CKA_LABEL, label), pkcs11.NewAttribute(pkcs11.CKA_ID, label)}
		public.AddIfNotPresent(names)
		private.AddIfNotPresent(names)
		for _, g := range guards {
			private.AddIfNotPresent([]*pkcs11.Attribute{pkcs11.NewAttribute(g.attribute, g.value)})
		}
		for _, u := range privateFlags {
			private.AddIfNotPresent([]*pkcs11.Attribute{pkcs11.NewAttribute(u.attribute, u.attribute == pkcs11.CKA_SIGN)})
		}
		mechanisms := []uint{pkcs11.CKM_RSA_PKCS, pkcs11.CKM_RSA_PKCS_PSS}
		if kind == ECP256 {
			mechanisms = []uint{pkcs11.CKM_ECDSA}
		}
		private.AddIfNotPresent([]*pkcs11.Attribute{pkcs11.NewAttribute(pkcs11.CKA_ALLOWED_MECHANISMS, mechanismList(mechanisms))})
		switch kind {
		case ECP256:
			_, err = ctx.GenerateECDSAKeyPairWithAttributes(public, private, elliptic.P256())
		case RSA2048:
			_, err = ctx.GenerateRSAKeyPairWithAttributes(public, private, 2048)
		case RSA3072:
			_, err = ctx.GenerateRSAKeyPairWithAttributes(public, private, 3072)
		}
		return err
	})
	if err != nil {
		return KeyInfo{}, err
	}
	err = onToken(cfg, 0, func(m *library, s pkcs11.SessionHandle, _ uint) error {
		k, err := findPrivateKey(m, s, label)
		if err == nil {
			err = k.prove(m, s)
		}
		if err == nil {
			about, err = describePrivate(m, s, k.handle)
		}
		return err
	})
	return about, err
}

// describePrivate finds out whether a private key is fit for a Signer.
func describePrivate(m module, s pkcs11.SessionHandle, handle pkcs11.ObjectHandle) (KeyInfo, error) {
	label, _, err := attribute(m, s, handle, pkcs11.CKA_LABEL)
	if err != nil {
		return KeyInfo{}, err
	}
	keyType, err := number(m, s, handle, pkcs11.CKA_KEY_TYPE)
	if err != nil {
		return KeyInfo{}, err
	}
	about := KeyInfo{Label: string(label), Type: fmt.Sprintf("%#x", keyType)}
	switch keyType {
	case pkcs11.CKK_EC:
		about.Type = "EC"
	case pkcs11.CKK_RSA:
		about.Type = "RSA"
	}
	for _, u := range privateFlags {
		if set, _, err := flag(m, s, handle, u.attribute); err != nil {
			return KeyInfo{}, err
		} else if set {
			about.Flags = append(about.Flags, u.name)
		}
	}
	guarded, err := guardsOf(m, s, handle)
	if err != nil {
		return KeyInfo{}, err
	}
	about.Flags = append(about.Flags, guarded...)
	switch k, err := findPrivateKey(m, s, about.Label); {
	case errors.Is(err, ErrSigner):
	case err != nil:
		return KeyInfo{}, err
	default:
		about.Use = TLSKey
		switch public := k.public.(type) {
		case *ecdsa.PublicKey:
			about.Bits = public.Params().BitSize
		case *rsa.PublicKey:
			about.Bits = public.N.BitLen()
		}
	}
	return about, nil
}

// withCrypto11 lends a context of crypto11, and closes it.
func withCrypto11(cfg Config, do func(*crypto11.Context) error) error {
	pin, err := cfg.PIN()
	if err != nil {
		return fmt.Errorf("reading the token's user PIN: %w", withoutContent(err))
	}
	defer clear(pin)
	const sessions = 2 // one is crypto11's own
	ctx, err := crypto11.Configure(&crypto11.Config{
		Path: cfg.Module, TokenLabel: cfg.Token, Pin: string(pin), MaxSessions: sessions, PoolWaitTimeout: time.Second,
	})
	if err != nil {
		return err
	}
	return errors.Join(do(ctx), ctx.Close())
}

// ImportComponents makes a key from the XOR of 2 or 3 components of full length that different custodians hold. The
// components are overwritten with zeros before it returns, whatever it returns. It refuses (ErrComponents) a wrong
// number or length, equal or all-zero components, a key that is all zeros or, for TDES, has equal or weak halves, and
// one whose KCV the token finds to be another than kcv, if that is not "": such a key does not stay in the token.
//
// The parity of a TDES key is set to odd and not checked: the XOR of two components with odd parity always has even
// parity. Neither the cipher nor the KCV looks at it.
//
// The key is in this process's memory for the length of the call, and the PKCS#11 wrapper frees its copy without
// clearing it: run this only in a process that ends afterwards.
func ImportComponents(cfg Config, label string, use Use, components [][]byte, kcv string) (KeyInfo, error) {
	defer func() {
		for _, c := range components {
			clear(c)
		}
	}()
	about, err := importComponents(cfg, label, use, components, kcv)
	if err != nil {
		return KeyInfo{}, fmt.Errorf("importing key %q: %w", label, err)
	}
	return about, nil
}

func importComponents(cfg Config, label string, use Use, components [][]byte, kcv string) (KeyInfo, error) {
	if err := refuseLabel(label, use); err != nil {
		return KeyInfo{}, err
	}
	value, err := combine(recipes[use][0], components)
	if err != nil {
		return KeyInfo{}, err
	}
	defer clear(value)
	release, err := claim(cfg.Module)
	if err != nil {
		return KeyInfo{}, err
	}
	defer release()
	err = onToken(cfg, pkcs11.CKF_RW_SESSION, func(m *library, s pkcs11.SessionHandle, slot uint) error {
		if err := refuseTaken(m, s, label); err != nil {
			return err
		}
		r, err := recipeFor(m, slot, use, "")
		if err != nil {
			return err
		}
		create := func(template []*pkcs11.Attribute) (pkcs11.ObjectHandle, error) {
			return m.CreateObject(s, append(template, pkcs11.NewAttribute(pkcs11.CKA_VALUE, value)))
		}
		if use == MACX919 {
			key, err := createMACPairOf(m, s, label, value)
			if err != nil || kcv == "" {
				return err
			}
			found, err := r.kcv(m, s, key)
			if err == nil && !sameKCV(found, kcv) {
				err = fmt.Errorf("%w: the key that they make has the check value %s, not %s", ErrComponents, found, kcv)
			}
			if err != nil {
				return errors.Join(err, destroyMACPair(m, s, label, key))
			}
			return nil
		}
		id := label
		if r.check == nil && !r.enciphers() {
			found, zeros, err := measure(m, s, r.algorithm, len(value), create)
			if err != nil {
				return err
			}
			id += " " + proof(found, zeros)
		}
		key, err := create(r.template(label, id, len(value)))
		if err != nil || kcv == "" {
			return err
		}
		found, err := r.kcv(m, s, key)
		if err == nil && !sameKCV(found, kcv) {
			err = fmt.Errorf("%w: the key that they make has the check value %s, not %s", ErrComponents, found, kcv)
		}
		if err != nil {
			return errors.Join(err, m.DestroyObject(s, key))
		}
		return nil
	})
	if err != nil {
		return KeyInfo{}, err
	}
	return inspect(cfg, label, use)
}

// combine checks the components and returns the key. Its caller clears it.
func combine(r recipe, components [][]byte) ([]byte, error) {
	const fewest, most = 2, 3
	if len(components) < fewest || len(components) > most {
		return nil, fmt.Errorf("%w: %d of them, not %d or %d", ErrComponents, len(components), fewest, most)
	}
	length := len(components[0])
	if !slices.Contains(r.lengths, length) {
		return nil, fmt.Errorf("%w: component 1 has %d bytes, not %s", ErrComponents, length, oneOf(r.lengths))
	}
	zeros := make([]byte, length)
	for i, c := range components {
		if len(c) != length {
			return nil, fmt.Errorf("%w: component %d has %d bytes, not %d", ErrComponents, i+1, len(c), length)
		}
		if bytes.Equal(c, zeros) {
			return nil, fmt.Errorf("%w: component %d is all zeros", ErrComponents, i+1)
		}
		for j := range i {
			if subtle.ConstantTimeCompare(c, components[j]) == 1 {
				return nil, fmt.Errorf("%w: components %d and %d are equal", ErrComponents, j+1, i+1)
			}
		}
	}
	value := make([]byte, length)
	for _, c := range components {
		subtle.XORBytes(value, value, c)
	}
	problem := ""
	if r.algorithm == TDES {
		problem = weakness(value)
	} else if bytes.Equal(value, zeros) {
		problem = "is all zeros"
	}
	if problem != "" {
		clear(value)
		return nil, fmt.Errorf("%w: the key that they make %s", ErrComponents, problem)
	}
	return value, nil
}

// oneOf writes numbers with "or" between them.
func oneOf(numbers []int) string {
	texts := make([]string, len(numbers))
	for i, n := range numbers {
		texts[i] = strconv.Itoa(n)
	}
	return strings.Join(texts, " or ")
}

// bitsOf turns lengths in bytes into bits.
func bitsOf(lengths []int) []int {
	bits := make([]int, len(lengths))
	for i, n := range lengths {
		bits[i] = 8 * n
	}
	return bits
}

// weakDES are the weak and semi-weak keys of DES (NIST SP 800-67 Rev. 2, 3.3.2), with odd parity.
var weakDES = [][8]byte{
	{0x01, 0x01, 0x01, 0x01, 0x01, 0x01, 0x01, 0x01}, {0xFE, 0xFE, 0xFE, 0xFE, 0xFE, 0xFE, 0xFE, 0xFE},
	{0xE0, 0xE0, 0xE0, 0xE0, 0xF1, 0xF1, 0xF1, 0xF1}, {0x1F, 0x1F, 0x1F, 0x1F, 0x0E, 0x0E, 0x0E, 0x0E},
	{0x01, 0x1F, 0x01, 0x1F, 0x01, 0x0E, 0x01, 0x0E}, {0x1F, 0x01, 0x1F, 0x01, 0x0E, 0x01, 0x0E, 0x01},
	{0x01, 0xE0, 0x01, 0xE0, 0x01, 0xF1, 0x01, 0xF1}, {0xE0, 0x01, 0xE0, 0x01, 0xF1, 0x01, 0xF1, 0x01},
	{0x01, 0xFE, 0x01, 0xFE, 0x01, 0xFE, 0x01, 0xFE}, {0xFE, 0x01, 0xFE, 0x01, 0xFE, 0x01, 0xFE, 0x01},
	{0x1F, 0xE0, 0x1F, 0xE0, 0x0E, 0xF1, 0x0E, 0xF1}, {0xE0, 0x1F, 0xE0, 0x1F, 0xF1, 0x0E, 0xF1, 0x0E},
	{0x1F, 0xFE, 0x1F, 0xFE, 0x0E, 0xFE, 0x0E, 0xFE}, {0xFE, 0x1F, 0xFE, 0x1F, 0xFE, 0x0E, 0xFE, 0x0E},
	{0xE0, 0xFE, 0xE0, 0xFE, 0xF1, 0xFE, 0xF1, 0xFE}, {0xFE, 0xE0, 0xFE, 0xE0, 0xFE, 0xF1, 0xFE, 0xF1},
}

// weakness sets the parity of a TDES key and returns why it must not be used, "" if nothing. A triple-length key must have three
// different parts: with the same first and second, or second and third, it is single DES; with the same first and third, double length.
func weakness(key []byte) string {
	oddParity(key)
	part, parts := "half", "halves"
	if len(key) == tdes3Bytes {
		part, parts = "third", "thirds"
	}
	if equalParts(key) {
		return "has equal " + parts + ": it is shorter than it looks"
	}
	for i := 0; i < len(key); i += desBytes {
		for _, weak := range weakDES {
			if bytes.Equal(key[i:i+desBytes], weak[:]) {
				return "has a weak " + part
			}
		}
	}
	return ""
}

// hasOddParity reports whether each byte has an odd number of ones.
func hasOddParity(key []byte) bool {
	even := 0
	for _, b := range key {
		even |= 1 ^ bits.OnesCount8(b)&1
	}
	return even == 0
}

// oddParity sets the lowest bit of each byte so that the number of ones is odd.
func oddParity(key []byte) {
	for i, b := range key {
		ones := byte(1)
		for rest := b >> 1; rest != 0; rest >>= 1 {
			ones ^= rest & 1
		}
		key[i] = b&0xFE | ones
	}
}

func refuseLabel(label string, use Use) error {
	if _, known := recipes[use]; !known {
		return fmt.Errorf("%q is not a use: %v are", use, Uses)
	}
	if label == "" {
		return errors.New("a key needs a label")
	}
	return nil
}

func refuseExisting(m module, s pkcs11.SessionHandle, label string) error {
	handles, err := find(m, s, label)
	if err == nil && len(handles) > 0 {
		err = ErrKeyExists
	}
	return err
}

// refuseTaken refuses the label of a key that was replaced by key changes too: the daemon would refuse to start, and the work of its custodians be lost.
func refuseTaken(m module, s pkcs11.SessionHandle, label string) error {
	if err := refuseExisting(m, s, label); err != nil {
		return err
	}
	handles, err := findClass(m, s, pkcs11.CKO_DATA, "")
	if err != nil {
		return err
	}
	for _, handle := range handles {
		value, _, err := attribute(m, s, handle, pkcs11.CKA_LABEL)
		if err != nil {
			return err
		}
		if base, _, ok := successorOf(string(value)); !ok || base != label {
			continue
		}
		if _, ok, err := readMark(m, s, string(value), handle); err != nil {
			return err
		} else if ok {
			return fmt.Errorf("%w: it was replaced by %q, and a new key needs a new label", ErrKeyExists, value)
		}
	}
	return nil
}

// inspect describes the key that was just made, and refuses one that the daemon would refuse.
func inspect(cfg Config, label string, use Use) (about KeyInfo, err error) {
	err = onToken(cfg, 0, func(m *library, s pkcs11.SessionHandle, _ uint) error {
		handles, err := find(m, s, label)
		if err != nil {
			return err
		}
		if len(handles) != 1 {
			return fmt.Errorf("the token has %d keys of that label now: %w", len(handles), ErrKeyCheck)
		}
		if _, problem, err := fitting(use, m, s, handles[0]); err != nil {
			return err
		} else if problem != "" {
			return &KeyError{[]KeyFault{{label, problem}}}
		}
		about, err = describe(m, s, handles[0])
		return err
	})
	return about, err
}

// describe finds the use that a key fits.
func describe(m module, s pkcs11.SessionHandle, k pkcs11.ObjectHandle) (KeyInfo, error) {
	label, _, err := attribute(m, s, k, pkcs11.CKA_LABEL)
	if err != nil {
		return KeyInfo{}, err
	}
	keyType, err := number(m, s, k, pkcs11.CKA_KEY_TYPE)
	if err != nil {
		return KeyInfo{}, err
	}
	about := KeyInfo{Label: string(label), Type: keyTypes[keyType]}
	switch keyType {
	case pkcs11.CKK_DES2:
		about.Bits = 128
	case pkcs11.CKK_DES3:
		about.Bits = 192
	default:
		n, err := number(m, s, k, pkcs11.CKA_VALUE_LEN)
		if err != nil {
			return KeyInfo{}, err
		}
		about.Bits = 8 * int(n)
	}
	if about.Type == "" {
		about.Type = fmt.Sprintf("%#x", keyType)
	}
	for _, u := range usageFlags {
		if set, _, err := flag(m, s, k, u.attribute); err != nil {
			return KeyInfo{}, err
		} else if set {
			about.Flags = append(about.Flags, u.name)
		}
	}
	guarded, err := guardsOf(m, s, k)
	if err != nil {
		return KeyInfo{}, err
	}
	about.Flags = append(about.Flags, guarded...)
	for _, use := range Uses {
		r, problem, err := fitting(use, m, s, k)
		if err != nil {
			return KeyInfo{}, err
		} else if problem != "" {
			continue
		}
		about.Use = use
		if kcv, err := r.kcv(m, s, k); err == nil {
			about.KCV = kcv
		}
	}
	return about, nil
}

// guardsOf returns the names of the guards that are set.
func guardsOf(m module, s pkcs11.SessionHandle, k pkcs11.ObjectHandle) ([]string, error) {
	var names []string
	for _, g := range guards {
		if set, _, err := flag(m, s, k, g.attribute); err != nil {
			return nil, err
		} else if set {
			names = append(names, g.name)
		}
	}
	return names, nil
}

// withToken claims the module for one use of onToken.
func withToken(cfg Config, flags uint, do func(*library, pkcs11.SessionHandle) error) error {
	release, err := claim(cfg.Module)
	if err != nil {
		return err
	}
	defer release()
	return onToken(cfg, flags, func(m *library, s pkcs11.SessionHandle, _ uint) error { return do(m, s) })
}

// onToken loads and initialises the module, logs in, does, and finalises.
func onToken(cfg Config, flags uint, do func(*library, pkcs11.SessionHandle, uint) error) (err error) {
	m, err := loadModule(cfg.Module, cfg.Arguments)
	if err != nil {
		return err
	}
	if err := initialize(m); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, finalize(m)) }()
	slot, tokenFlags, err := findToken(m, cfg.Token)
	if err != nil {
		return err
	}
	s, err := m.OpenSession(slot, pkcs11.CKF_SERIAL_SESSION|flags)
	if err != nil {
		return fmt.Errorf("opening session: %w", err)
	}
	if err := newLogin().do(m, s, tokenFlags, cfg.PIN); err != nil {
		return err
	}
	return do(m, s, slot)
}
