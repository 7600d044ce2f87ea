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
	Label      string    `json:"label"`
	Type       string    `json:"type"`       // DES2, DES3, AES, GENERIC_SECRET, SHA256_HMAC, EC, RSA, or its number
	Algorithm  Algorithm `json:"algorithm"`  // "" of a key pair
	Bits       int       `json:"bits"`       // of the value, parity included; 0 if the token does not say
	Use        Use       `json:"use"`        // "" if the key fits no use; TLSKey if it is fit for a Signer
	KCV        string    `json:"kcv"`        // "" without a use, or if the key does not work
	Version    int       `json:"version"`    // 1, or of a key that a key change made the number in its label
	Flags      []string  `json:"flags"`      // usage flags and guards that are set
	Mechanisms []string  `json:"mechanisms"` // all that the key may be used with; none if the token does not say
}

// A TokenInfo is what a token says of itself.
type TokenInfo struct {
	Token        string `json:"token"` // label
	Serial       string `json:"serial"`
	Manufacturer string `json:"manufacturer"`
	Model        string `json:"model"`
}

// List returns all secret and private keys of the token, by label.
func List(cfg Config) ([]KeyInfo, error) {
	_, keys, err := Inventory(cfg)
	return keys, err
}

// Inventory is List, with the token.
func Inventory(cfg Config) (about TokenInfo, keys []KeyInfo, err error) {
	release, err := claim(cfg.Module)
	if err == nil {
		defer release()
		err = onToken(cfg, 0, func(m *library, s pkcs11.SessionHandle, slot uint) error {
			token, err := m.GetTokenInfo(slot)
			if err != nil {
				return err
			}
			about = TokenInfo{token.Label, strings.TrimSpace(token.SerialNumber), strings.TrimSpace(token.ManufacturerID), strings.TrimSpace(token.Model)}
			keys, err = listKeys(m, s)
			return err
		})
	}
	if err != nil {
		return TokenInfo{}, nil, fmt.Errorf("listing keys: %w", err)
	}
	sort.SliceStable(keys, func(i, j int) bool { return keys[i].Label < keys[j].Label })
	return about, keys, nil
}

func listKeys(m module, s pkcs11.SessionHandle) (keys []KeyInfo, err error) {
	for _, of := range []struct {
		class    uint
		describe func(module, pkcs11.SessionHandle, pkcs11.ObjectHandle) (KeyInfo, error)
	}{{pkcs11.CKO_SECRET_KEY, describe}, {pkcs11.CKO_PRIVATE_KEY, describePrivate}} {
		handles, err := findClass(m, s, of.class, "")
		if err != nil {
			return nil, err
		}
		for _, k := range handles {
			if marks, err := isMark(m, s, k); err != nil {
				return nil, err
			} else if marks {
				continue
			}
			about, err := of.describe(m, s, k)
			if err != nil {
				return nil, err
			}
			keys = append(keys, about)
		}
	}
	return keys, nil
}

// What a ceremony refuses, beside ErrComponents, ErrKeyBlock and ErrKeyExists.
var (
	// ErrOtherKCV: the key has another check value than the one that it must have.
	ErrOtherKCV = errors.New("key has another check value")
	// ErrKeyLength: no key of the use has that length.
	ErrKeyLength = errors.New("key has a wrong length")
	// ErrWeakerKey: the key is stronger than the one that it came or would go under (PCI PIN 10).
	ErrWeakerKey = errors.New("wrapping key is weaker than the key")
)

// A NewKey says which key is to be made in the token.
type NewKey struct {
	Label     string
	Use       Use
	Algorithm Algorithm // "" is the first that the use can have; of a key block, the one that its header says
	Bits      int       // of the value, parity included; 0 is the first that the use takes, or any where the value comes from outside
	KCV       string    // that it must have, 6 hexadecimal digits; "" takes any. A key with another one does not stay in the token.
}

// Algorithms lists all of them.
var Algorithms = []Algorithm{TDES, AES, HMAC}

// KeyAlgorithm is the algorithm that the key will have.
func (n NewKey) KeyAlgorithm() Algorithm {
	if of := recipes[n.Use]; n.Algorithm == "" && len(of) > 0 {
		return of[0].algorithm
	}
	return n.Algorithm
}

// id is the CKA_ID of the key: its label and use, and the proof of a check value that it cannot show. The use is for List on tokens that keep no CKA_ALLOWED_MECHANISMS,
// where keys of two uses can look the same; nothing relies on it.
func (n NewKey) id(proved string) string {
	return strings.TrimSpace(n.Label + usePrefix + string(n.Use) + " " + proved)
}

const usePrefix = " use:"

// refuse returns what is wrong with it before anybody looks at the token.
func (n NewKey) refuse() error {
	if _, known := recipes[n.Use]; !known {
		return fmt.Errorf("%q is not a use: %v are", n.Use, Uses)
	}
	if n.Label == "" {
		return errors.New("a key needs a label")
	}
	return refuseReserved(n.Label)
}

// refuseReserved refuses a label that says of its key what it is not: a version of another one, which a key change would take away as left over, or
// a part of one, which is never destroyed by itself.
func refuseReserved(label string) error {
	for _, part := range parts {
		if strings.HasSuffix(label, part) {
			return fmt.Errorf("labels that end in %q are those of parts of keys", part)
		}
	}
	if base := FirstVersion(label); base != label {
		return fmt.Errorf("the label is that of a version of key %q after a key change", base)
	}
	return nil
}

// Generate makes a random key inside the token. It refuses a label that exists (ErrKeyExists). A key that only deciphers is made from one of the session, because
// it could never show its check value, and so is a key that is two objects (mac-x919, bdk of TDES): where the token cannot do that by itself, the value passes through locked memory. Nobody else knows what was
// generated: a key that somebody else has to have too is made by ExportKey, or from components.
func Generate(cfg Config, n NewKey) (about KeyInfo, err error) {
	err = n.refuse()
	if err == nil {
		err = withCeremony(cfg, func(c *ceremony) error {
			about, err = c.generate(n)
			return err
		})
	}
	if err != nil {
		return KeyInfo{}, fmt.Errorf("generating key %q: %w", n.Label, err)
	}
	return about, nil
}

func (c *ceremony) generate(n NewKey) (about KeyInfo, err error) {
	defer c.wholeOrNothing(&about, &err)
	r, length, err := c.recipeOf(n, 0)
	if err != nil {
		return KeyInfo{}, err
	}
	if n.Use == MACX919 || n.Use == BDK && r.algorithm == TDES || r.check == nil && !r.enciphers() {
		var from source
		if from, err = c.random(r.algorithm, length); err != nil {
			return KeyInfo{}, err
		}
		defer from.forget(&err)
		return c.settle(n, r, from)
	}
	k, err := c.m.GenerateKey(c.s, mechanism(generatedBy(r.algorithm, length)), withLength(r.template(n.Label, n.id(""), length), r.algorithm, length))
	if err != nil {
		return KeyInfo{}, err
	}
	return c.keep(n, k)
}

// recipeOf chooses the recipe of a new key, and its length in bytes: that of the value, or if that is 0 the one that is asked for. It refuses a label that is taken.
func (c *ceremony) recipeOf(n NewKey, length int) (recipe, int, error) {
	if err := refuseTaken(c.m, c.s, n.Label); err != nil {
		return recipe{}, 0, err
	}
	return c.kindOf(n, length)
}

// kindOf is recipeOf of a key that has no label yet.
func (c *ceremony) kindOf(n NewKey, length int) (recipe, int, error) {
	r, err := recipeFor(c.m, c.slot, n.Use, n.Algorithm)
	if err != nil {
		return recipe{}, 0, err
	}
	wanted := bitsOf(r.lengths)
	if n.Bits != 0 && slices.Contains(wanted, n.Bits) {
		wanted = []int{n.Bits}
	}
	got := 8 * length
	switch {
	case length == 0 && n.Bits == 0:
		got = wanted[0]
	case length == 0:
		got = n.Bits
	}
	if !slices.Contains(wanted, got) {
		return recipe{}, 0, fmt.Errorf("%w: a %s key for %s has %s bits, not %d", ErrKeyLength, n.Use, r.algorithm, oneOf(wanted), got)
	}
	length = got / 8
	return r, length, nil
}

// A source makes objects of one key that the token does not keep yet.
type source struct {
	bytes  int
	create creator

	// Of a double-length TDES key: twice its left half (see macpair.go), and the key with the bits of variantMask changed (see dukpt.go).
	left, variant creator

	end func(*error) // forgets what the key is made from; nil if there is nothing
}

func (from source) forget(err *error) {
	if from.end != nil {
		from.end(err)
	}
}

// clearSource is a key in locked memory, which its caller clears.
func (c *ceremony) clearSource(value []byte) source {
	return source{
		bytes: len(value),
		create: func(template []*pkcs11.Attribute) (pkcs11.ObjectHandle, error) {
			return c.m.CreateSecret(c.s, template, value)
		},
		left: func(template []*pkcs11.Attribute) (pkcs11.ObjectHandle, error) {
			double := c.mem[len(c.mem)-tdes2Bytes:] // nothing else is there
			defer clear(double)
			copy(double[copy(double, value[:desBytes]):], value[:desBytes])
			return c.m.CreateSecret(c.s, template, double)
		},
		variant: func(template []*pkcs11.Attribute) (pkcs11.ObjectHandle, error) {
			changed := c.mem[len(c.mem)-tdes2Bytes:] // nothing else is there
			defer clear(changed)
			subtle.XORBytes(changed, value, maskOf(0))
			return c.m.CreateSecret(c.s, template, changed)
		},
	}
}

// random is a new key of the session: one that only the token sees, or, where it cannot make others of that, one in locked memory.
func (c *ceremony) random(algorithm Algorithm, length int) (source, error) {
	if !c.resident {
		value := c.mem[lengthBytes : lengthBytes+length]
		if err := c.randomValue(algorithm, value); err != nil {
			clear(value)
			return source{}, err
		}
		from := c.clearSource(value)
		from.end = func(*error) { clear(c.mem) }
		return from, nil
	}
	k, err := c.extractable(algorithm, length)
	if err != nil {
		return source{}, err
	}
	return source{
		bytes: length,
		create: func(template []*pkcs11.Attribute) (pkcs11.ObjectHandle, error) {
			return c.m.DeriveNumber(c.s, pkcs11.CKM_EXTRACT_KEY_FROM_KEY, 0, k, withLength(template, algorithm, length))
		},
		left:    c.leftOf(k, 0),
		variant: c.variantFrom(k, 0),
		end:     func(err *error) { c.temporary(k, err) },
	}, nil
}

// extractable generates a key of the session that others are made from inside the token, and that can be wrapped.
func (c *ceremony) extractable(algorithm Algorithm, length int) (pkcs11.ObjectHandle, error) {
	flags := []uint{pkcs11.CKA_DERIVE, pkcs11.CKA_EXTRACTABLE}
	return c.m.GenerateKey(c.s, mechanism(generatedBy(algorithm, length)), secret(keyTypeOf(algorithm, length), length, flags, nil))
}

// randomValue has the token make a key (PCI PIN 5: no other source of keys), and reads it into locked memory.
func (c *ceremony) randomValue(algorithm Algorithm, out []byte) (err error) {
	template := secret(keyTypeOf(algorithm, len(out)), len(out), []uint{pkcs11.CKA_EXTRACTABLE}, nil)
	for i, a := range template {
		if a.Type == pkcs11.CKA_SENSITIVE {
			template[i] = pkcs11.NewAttribute(pkcs11.CKA_SENSITIVE, false)
		}
	}
	k, err := c.m.GenerateKey(c.s, mechanism(generatedBy(algorithm, len(out))), template)
	if err != nil {
		return err
	}
	defer c.temporary(k, &err)
	n, err := c.m.ReadValue(c.s, k, pkcs11.CKA_VALUE, out)
	if err == nil && n != len(out) {
		err = fmt.Errorf("the token generates %d bytes, not %d", n, len(out))
	}
	return err
}

// generatedBy is the mechanism that generates a key.
func generatedBy(algorithm Algorithm, length int) uint {
	switch {
	case algorithm == AES:
		return pkcs11.CKM_AES_KEY_GEN
	case algorithm == HMAC:
		return pkcs11.CKM_GENERIC_SECRET_KEY_GEN
	case length == tdes3Bytes:
		return pkcs11.CKM_DES3_KEY_GEN
	}
	return pkcs11.CKM_DES2_KEY_GEN
}

// withLength says the length where neither a value nor the type does.
func withLength(template []*pkcs11.Attribute, algorithm Algorithm, length int) []*pkcs11.Attribute {
	if algorithm != TDES {
		template = append(template, pkcs11.NewAttribute(pkcs11.CKA_VALUE_LEN, length))
	}
	return template
}

// settle makes the key of a source in the token, and says what was made. First an object of the session shows its check value, so that a key which is not what its
// custodians or its other side meant is never in the token.
func (c *ceremony) settle(n NewKey, r recipe, from source) (KeyInfo, error) {
	found, proved, err := c.tried(r, from)
	if err != nil {
		return KeyInfo{}, err
	}
	if n.KCV != "" && !sameKCV(found, n.KCV) {
		return KeyInfo{}, fmt.Errorf("%w: it has the check value %s, not %s", ErrOtherKCV, found, n.KCV)
	}
	var k pkcs11.ObjectHandle
	switch {
	case n.Use == MACX919:
		k, err = createMACPair(c.m, c.s, n.Label, from.create, from.left)
	case n.Use == BDK && r.algorithm == TDES:
		k, err = c.createBase(n, r, from, found)
	default:
		k, err = from.create(r.template(n.Label, n.id(proved), from.bytes))
	}
	if err != nil {
		return KeyInfo{}, err
	}
	n.KCV = found
	return c.keep(n, k)
}

// tried makes the key of a source for the session only, and returns its check value, and the proof of it for a key that cannot show it.
func (c *ceremony) tried(r recipe, from source) (kcv, proved string, err error) {
	if r.check == nil {
		kcv, zeros, err := measure(c.m, c.s, r.algorithm, from.bytes, from.create)
		if err == nil && !r.enciphers() {
			proved = proof(kcv, zeros)
		}
		return kcv, proved, err
	}
	trial, err := from.create(inSession(r.template("", "", from.bytes)))
	if err != nil {
		return "", "", err
	}
	defer c.temporary(trial, &err)
	kcv, err = r.check(c.m, c.s, trial)
	return kcv, "", err
}

// keep describes the key that was just made, and destroys one that the daemon would refuse.
func (c *ceremony) keep(n NewKey, k pkcs11.ObjectHandle) (about KeyInfo, err error) {
	r, problem, err := fitting(n.Use, c.m, c.s, k)
	if err == nil && problem != "" {
		err = &KeyError{[]KeyFault{{n.Label, problem}}}
	}
	if err == nil {
		about, err = describe(c.m, c.s, k)
	}
	if err == nil {
		about.Use = n.Use
		about.KCV, err = r.kcv(c.m, c.s, k)
	}
	if err == nil && n.KCV != "" && !sameKCV(about.KCV, n.KCV) {
		err = fmt.Errorf("%w: it has the check value %s, not %s", ErrOtherKCV, about.KCV, n.KCV)
	}
	if err != nil {
		return KeyInfo{}, errors.Join(err, c.destroyWhole(n.Label, k))
	}
	return about, nil
}

// createBase makes both objects of a TDES bdk key. With an error neither is left, unless the token has lost itself.
func (c *ceremony) createBase(n NewKey, r recipe, from source, kcv string) (pkcs11.ObjectHandle, error) {
	if err := refuseExisting(c.m, c.s, variantOf(n.Label)); err != nil {
		return 0, err
	}
	trial, err := from.variant(inSession(r.template("", "", from.bytes)))
	if err != nil {
		return 0, err
	}
	own, err := r.kcv(c.m, c.s, trial)
	c.temporary(trial, &err)
	if err != nil {
		return 0, err
	}
	second, err := from.variant(r.template(variantOf(n.Label), NewKey{Label: variantOf(n.Label), Use: BDK}.id(variantID(kcv, own)), from.bytes))
	if err != nil {
		return 0, err
	}
	first, err := from.create(r.template(n.Label, n.id(""), from.bytes))
	if err != nil {
		c.temporary(second, &err)
		return 0, err
	}
	return first, nil
}

// parts are the labels' endings of objects that belong to a key and go with it.
var parts = []string{leftSuffix, variantSuffix}

// wholeOrNothing destroys a key that was made if something beside it went wrong afterwards: who is told of an error looks for no key. It is deferred before all else.
func (c *ceremony) wholeOrNothing(about *KeyInfo, err *error) {
	if *err == nil || about.Label == "" {
		return
	}
	handles, also := find(c.m, c.s, about.Label)
	for _, k := range handles {
		also = errors.Join(also, c.destroyWhole(about.Label, k))
	}
	*about, *err = KeyInfo{}, errors.Join(*err, also)
}

// orNone is wholeOrNothing of one object that was made.
func (c *ceremony) orNone(made *pkcs11.ObjectHandle, err *error) {
	if *err == nil || *made == 0 {
		return
	}
	*err = errors.Join(*err, c.m.DestroyObject(c.s, *made))
	*made = 0
}

// partsOf finds the objects that belong to a key, whose label it is given with. It goes by what their CKA_IDs say: a key of one object has none, and what happens to be
// called as its part would be is a key of its own.
func partsOf(m module, s pkcs11.SessionHandle, label string, k pkcs11.ObjectHandle) (all []pkcs11.ObjectHandle, err error) {
	id, _, err := attribute(m, s, k, pkcs11.CKA_ID)
	if err != nil {
		return nil, err
	}
	if leftKCV.Match(id) {
		if all, err = find(m, s, label+leftSuffix); err != nil {
			return nil, err
		}
	}
	variants, err := find(m, s, variantOf(label))
	if err != nil {
		return nil, err
	}
	for _, variant := range variants {
		if id, _, err = attribute(m, s, variant, pkcs11.CKA_ID); err != nil {
			return nil, err
		}
		if variantOfKCV.Match(id) {
			all = append(all, variant)
		}
	}
	return all, nil
}

// isPart reports whether an object is a part of a key that is in the token. What a crash has left without its key is not.
func isPart(m module, s pkcs11.SessionHandle, label string, o pkcs11.ObjectHandle) (bool, error) {
	for _, part := range parts {
		base, ends := strings.CutSuffix(label, part)
		if !ends || base == "" {
			continue
		}
		handles, err := find(m, s, base)
		if err != nil {
			return false, err
		}
		for _, k := range handles {
			if all, err := partsOf(m, s, base, k); err != nil || slices.Contains(all, o) {
				return err == nil, err
			}
		}
	}
	return false, nil
}

// destroyWhole destroys a key with its parts.
func (c *ceremony) destroyWhole(label string, k pkcs11.ObjectHandle) error {
	all, err := partsOf(c.m, c.s, label, k)
	if err != nil {
		return err
	}
	for _, o := range append(all, k) {
		if err := c.m.DestroyObject(c.s, o); err != nil {
			return err
		}
	}
	return nil
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
	about := KeyInfo{Label: string(label), Type: fmt.Sprintf("%#x", keyType), Version: firstVersion}
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
	if about.Mechanisms, err = mechanismNamesOf(m, s, handle); err != nil {
		return KeyInfo{}, err
	}
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

// A Component is what one custodian holds of a key: as long as the key itself, so that two of three say nothing of it.
type Component struct {
	Value []byte // in memory of Lock
	KCV   string // its own, see ComponentKCV; "" is not compared
}

// A key has 2 or 3 components.
const (
	fewestComponents = 2
	mostComponents   = 3
)

// ImportComponents makes a key from the XOR of 2 or 3 components that different custodians hold. The components are overwritten with zeros before it
// returns, whatever it returns. It refuses (ErrComponents) a wrong number or length, equal or all-zero components, one with another check value than its own, and a key that is
// all zeros or, for TDES, has equal or weak halves.
//
// The parity of a TDES key is set to odd and not checked: the XOR of two components with odd parity always has even
// parity. Neither the cipher nor the KCV looks at it.
//
// The components pass through this process, and so does the key, in locked memory: a token that could combine them by itself would not make it
// any better, because who sees all components has seen the key.
func ImportComponents(cfg Config, n NewKey, components []Component) (about KeyInfo, err error) {
	defer func() {
		for _, component := range components {
			clear(component.Value)
		}
	}()
	if err = n.refuse(); err == nil {
		err = wellFormedComponents(components)
	}
	if err == nil {
		err = withCeremony(cfg, func(c *ceremony) error {
			defer clear(c.mem)
			r, length, err := c.recipeOf(n, len(components[0].Value))
			if err != nil {
				return err
			}
			value := c.mem[:length]
			if err := c.combine(r.algorithm, components, value); err != nil {
				return err
			}
			about, err = c.settle(n, r, c.clearSource(value))
			return err
		})
	}
	if err != nil {
		return KeyInfo{}, fmt.Errorf("importing key %q: %w", n.Label, err)
	}
	return about, nil
}

// wellFormedComponents refuses what cannot be the components of one key.
func wellFormedComponents(components []Component) error {
	if n := len(components); n < fewestComponents || n > mostComponents {
		return fmt.Errorf("%w: %d of them, not %d or %d", ErrComponents, n, fewestComponents, mostComponents)
	}
	length := len(components[0].Value)
	zeros := make([]byte, length)
	for i, c := range components {
		if len(c.Value) != length || length == 0 {
			return fmt.Errorf("%w: component %d has %d bytes, and component 1 has %d", ErrComponents, i+1, len(c.Value), length)
		}
		if subtle.ConstantTimeCompare(c.Value, zeros) == 1 {
			return fmt.Errorf("%w: component %d is all zeros", ErrComponents, i+1)
		}
		for j := range i {
			if subtle.ConstantTimeCompare(c.Value, components[j].Value) == 1 {
				return fmt.Errorf("%w: components %d and %d are equal", ErrComponents, j+1, i+1)
			}
		}
	}
	return nil
}

// combine has the token compute the check value of each component, and makes the key.
func (c *ceremony) combine(algorithm Algorithm, components []Component, value []byte) error {
	for i, component := range components {
		if component.KCV == "" {
			continue
		}
		if found, err := c.componentKCV(algorithm, component.Value); err != nil {
			return err
		} else if !sameKCV(found, component.KCV) {
			return fmt.Errorf("%w: component %d has the check value %s as a key for %s, not %s", ErrComponents, i+1, found, algorithm, component.KCV)
		}
	}
	return combine(algorithm, components, value)
}

// combine makes the key of components that are well-formed.
func combine(algorithm Algorithm, components []Component, value []byte) error {
	clear(value)
	for _, component := range components {
		subtle.XORBytes(value, value, component.Value)
	}
	if problem := unfit(algorithm, value); problem != "" {
		clear(value)
		return fmt.Errorf("%w: the key that they make %s", ErrComponents, problem)
	}
	return nil
}

// unfit sets the parity of a TDES key and returns why a clear key must not be used, "" if nothing.
func unfit(algorithm Algorithm, value []byte) string {
	if algorithm == TDES {
		return weakness(value)
	}
	if subtle.ConstantTimeCompare(value, make([]byte, len(value))) == 1 {
		return "is all zeros"
	}
	return ""
}

// ComponentKCV has the token compute the check value of one component, as if it were a key: of TDES the first 3 bytes of zeros enciphered, of AES of the CMAC of zeros, of
// HMAC as of a pan-token key. The component stays as it is.
func ComponentKCV(cfg Config, algorithm Algorithm, component []byte) (kcv string, err error) {
	err = withCeremony(cfg, func(c *ceremony) error {
		kcv, err = c.componentKCV(algorithm, component)
		return err
	})
	if err != nil {
		return "", fmt.Errorf("computing the check value of a component: %w", err)
	}
	return kcv, nil
}

func (c *ceremony) componentKCV(algorithm Algorithm, component []byte) (kcv string, err error) {
	if !slices.Contains(componentLengths[algorithm], len(component)) {
		return "", fmt.Errorf("%w: a component of a key for %s has %s bytes, not %d", ErrComponents, algorithm, oneOf(componentLengths[algorithm]), len(component))
	}
	flag, which := uint(pkcs11.CKA_ENCRYPT), algorithm.ecb()
	if algorithm == HMAC {
		flag, which = pkcs11.CKA_SIGN, pkcs11.CKM_SHA256_HMAC
	}
	k, err := c.m.CreateSecret(c.s, secret(keyTypeOf(algorithm, len(component)), 0, []uint{flag}, []uint{which}), component)
	if err != nil {
		return "", err
	}
	defer c.temporary(k, &err)
	if algorithm == HMAC {
		return checkPANToken(c.m, c.s, k)
	}
	return recipe{algorithm: algorithm, flags: []uint{flag}}.kcv(c.m, c.s, k)
}

// componentLengths are the lengths of keys in bytes.
var componentLengths = map[Algorithm][]int{TDES: tdesLengths, AES: aesLengths, HMAC: {hmacBytes}}

// MakeComponents has the token make 2 or 3 components of a new key, and gives each to hand with its check value, one after the other, in locked memory that is
// cleared afterwards. It returns the check value that the key will have. No key is made: that is for who has all components, see ImportComponents.
func MakeComponents(cfg Config, n NewKey, count int, hand func(number int, component []byte, kcv string) error) (kcv string, err error) {
	n.Label = "none" // it has none yet, and refuse demands one
	if err = n.refuse(); err == nil && (count < fewestComponents || count > mostComponents) {
		err = fmt.Errorf("%w: %d of them, not %d or %d", ErrComponents, count, fewestComponents, mostComponents)
	}
	if err == nil {
		err = withCeremony(cfg, func(c *ceremony) error {
			defer clear(c.mem)
			kcv, err = c.makeComponents(n, count, hand)
			return err
		})
	}
	if err != nil {
		return "", fmt.Errorf("making components: %w", err)
	}
	return kcv, nil
}

func (c *ceremony) makeComponents(n NewKey, count int, hand func(int, []byte, string) error) (string, error) {
	r, length, err := c.kindOf(n, 0)
	if err != nil {
		return "", err
	}
	components := make([]Component, count)
	for i := range components {
		part := c.mem[(i+1)*length : (i+2)*length]
		if err := c.randomValue(r.algorithm, part); err != nil {
			return "", err
		}
		if components[i].KCV, err = c.componentKCV(r.algorithm, part); err != nil {
			return "", err
		}
		components[i].Value = part
	}
	value := c.mem[:length]
	if err := wellFormedComponents(components); err != nil {
		return "", err
	}
	if err := combine(r.algorithm, components, value); err != nil {
		return "", err
	}
	kcv, _, err := c.tried(r, c.clearSource(value))
	clear(value)
	if err != nil {
		return "", err
	}
	for i, component := range components {
		if err := hand(i+1, component.Value, component.KCV); err != nil {
			return "", err
		}
		clear(component.Value)
	}
	return kcv, nil
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
	for _, class := range markClasses {
		handles, err := findClass(m, s, class, "")
		if err != nil {
			return err
		}
		for _, handle := range handles {
			value, _, err := attribute(m, s, handle, pkcs11.CKA_LABEL)
			if err != nil {
				return err
			}
			successor, isMark := markedBy(class, string(value))
			if base, _, _ := successorOf(successor); !isMark || base != label {
				continue
			}
			if _, ok, err := readMark(m, s, class, successor, handle); err != nil {
				return err
			} else if ok {
				return fmt.Errorf("%w: it was replaced by %q, and a new key needs a new label", ErrKeyExists, successor)
			}
		}
	}
	return nil
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
	about := KeyInfo{Label: string(label), Type: keyTypes[keyType], Version: versionOf(string(label))}
	for algorithm, types := range algorithmTypes {
		if slices.Contains(types, keyType) {
			about.Algorithm = algorithm
		}
	}
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
	if about.Mechanisms, err = mechanismNamesOf(m, s, k); err != nil {
		return KeyInfo{}, err
	}
	id, _, err := attribute(m, s, k, pkcs11.CKA_ID)
	if err != nil {
		return KeyInfo{}, err
	}
	for _, use := range Uses {
		r, problem, err := fitting(use, m, s, k)
		if err != nil {
			return KeyInfo{}, err
		} else if problem != "" || about.Use != "" && !strings.Contains(string(id)+" ", usePrefix+string(use)+" ") {
			continue
		}
		about.Use, about.KCV = use, ""
		if kcv, err := r.kcv(m, s, k); err == nil {
			about.KCV = kcv
		}
	}
	return about, nil
}

// FirstVersion is the label of the configuration that a label of a version is of: without the number of a key change.
func FirstVersion(label string) string {
	if base, _, ok := successorOf(label); ok {
		return base
	}
	return label
}

func versionOf(label string) int {
	if _, version, ok := successorOf(label); ok {
		return version
	}
	return firstVersion
}

// mechanismNames are those of the mechanisms that keys of ours allow.
var mechanismNames = map[uint]string{
	pkcs11.CKM_DES3_ECB: "DES3_ECB", pkcs11.CKM_DES3_CBC: "DES3_CBC", pkcs11.CKM_DES3_CMAC: "DES3_CMAC", pkcs11.CKM_DES3_ECB_ENCRYPT_DATA: "DES3_ECB_ENCRYPT_DATA",
	pkcs11.CKM_AES_ECB: "AES_ECB", pkcs11.CKM_AES_CBC: "AES_CBC", pkcs11.CKM_AES_CTR: "AES_CTR", pkcs11.CKM_AES_GCM: "AES_GCM", pkcs11.CKM_AES_CMAC: "AES_CMAC",
	pkcs11.CKM_AES_ECB_ENCRYPT_DATA: "AES_ECB_ENCRYPT_DATA", pkcs11.CKM_SHA256_HMAC: "SHA256_HMAC",
	pkcs11.CKM_ECDSA: "ECDSA", pkcs11.CKM_RSA_PKCS: "RSA_PKCS", pkcs11.CKM_RSA_PKCS_PSS: "RSA_PKCS_PSS",
}

func mechanismNamesOf(m module, s pkcs11.SessionHandle, k pkcs11.ObjectHandle) ([]string, error) {
	allowed, _, err := attribute(m, s, k, pkcs11.CKA_ALLOWED_MECHANISMS)
	if err != nil {
		return nil, err
	}
	names := []string{}
	for _, which := range mechanismsOf(allowed) {
		name := mechanismNames[which]
		if name == "" {
			name = fmt.Sprintf("%#x", which)
		}
		names = append(names, name)
	}
	return names, nil
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
