package hsm

import (
	"bytes"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/miekg/pkcs11"
)

// The part of a key block that is done with keys. The two keys of a block, KBEK (encipher) and KBAK (authenticate), come from its protection key (KBPK): they
// are derived inside the token always. The key that the block holds is opened token-resident where the token can unwrap it, XOR into it and cut it out
// (NSS), and else transient, in locked memory.
//
// The CMAC of versions B and D is made by CBC under KBAK with its subkey in the last block, and not by a mechanism for CMAC: so one way does for TDES and
// AES, for a text that is in this process and for one that is in the token, and for tokens that lack CKM_DES3_CMAC.

// cbc is the algorithm's mechanism for chained blocks without padding.
func (a Algorithm) cbc() uint {
	if a == AES {
		return pkcs11.CKM_AES_CBC
	}
	return pkcs11.CKM_DES3_CBC
}

// encryptData is the mechanism that derives a key from what the key enciphers data to.
func (a Algorithm) encryptData() uint {
	if a == AES {
		return pkcs11.CKM_AES_ECB_ENCRYPT_DATA
	}
	return pkcs11.CKM_DES3_ECB_ENCRYPT_DATA
}

// chained is CBC with an initial vector. It always has one: SoftHSM 2.6.1 refuses a missing one.
func chained(a Algorithm, iv []byte) []*pkcs11.Mechanism {
	return []*pkcs11.Mechanism{pkcs11.NewMechanism(a.cbc(), iv)}
}

// mostSealed bounds the enciphered part of a block, in bytes. A symmetric key has at most 48 there, a private key of an elliptic curve 176.
const mostSealed = 512

// worksInside tries with throw-away keys whether the token can do all by itself that opening and making a key block, and making a key of another, takes. It is tried, because what a
// token says of its mechanisms is not all that it does (NSS).
func (c *ceremony) worksInside() bool {
	const length = 32
	var made []pkcs11.ObjectHandle
	defer func() {
		for _, k := range made {
			_ = c.m.DestroyObject(c.s, k) // ends with the session
		}
	}()
	last, works := pkcs11.ObjectHandle(0), true
	step := func(k pkcs11.ObjectHandle, err error) {
		if err != nil {
			works = false
			return
		}
		made, last = append(made, k), k
	}
	for _, do := range []func(){
		func() { step(c.extractable(AES, length)) },
		func() {
			step(c.m.DeriveString(c.s, pkcs11.CKM_XOR_BASE_AND_DATA, make([]byte, length), last, inside(length)))
		},
		func() {
			step(c.m.DeriveNumber(c.s, pkcs11.CKM_EXTRACT_KEY_FROM_KEY, 8*lengthBytes, last, inside(length/2)))
		},
		func() {
			step(c.m.DeriveString(c.s, pkcs11.CKM_CONCATENATE_DATA_AND_BASE, make([]byte, lengthBytes), last, inside(0)))
		},
		func() {
			step(c.m.DeriveString(c.s, pkcs11.CKM_CONCATENATE_BASE_AND_DATA, make([]byte, length/2-lengthBytes), last, inside(0)))
		},
		func() {
			payload, iv := last, make([]byte, aesBytes)
			step(c.m.GenerateKey(c.s, mechanism(pkcs11.CKM_AES_KEY_GEN), secret(pkcs11.CKK_AES, length, []uint{pkcs11.CKA_WRAP, pkcs11.CKA_UNWRAP}, []uint{pkcs11.CKM_AES_CBC})))
			if !works {
				return
			}
			wrapped, err := c.m.WrapKey(c.s, chained(AES, iv), last, payload)
			if works = err == nil && len(wrapped) == length; works {
				step(c.m.UnwrapKey(c.s, chained(AES, iv), last, wrapped, inside(length)))
			}
		},
	} {
		if do(); !works {
			return false
		}
	}
	return true
}

// secret is the template of a key that ends with the session. It is sensitive; only one that is wrapped on is extractable.
func secret(keyType uint, bytes int, flags, mechanisms []uint) []*pkcs11.Attribute {
	t := []*pkcs11.Attribute{
		pkcs11.NewAttribute(pkcs11.CKA_CLASS, pkcs11.CKO_SECRET_KEY),
		pkcs11.NewAttribute(pkcs11.CKA_KEY_TYPE, keyType),
		pkcs11.NewAttribute(pkcs11.CKA_TOKEN, false),
		pkcs11.NewAttribute(pkcs11.CKA_PRIVATE, true),
		pkcs11.NewAttribute(pkcs11.CKA_SENSITIVE, true),
		pkcs11.NewAttribute(pkcs11.CKA_EXTRACTABLE, slices.Contains(flags, pkcs11.CKA_EXTRACTABLE)),
	}
	for _, u := range usageFlags {
		t = append(t, pkcs11.NewAttribute(u.attribute, slices.Contains(flags, u.attribute)))
	}
	if keyType != pkcs11.CKK_DES2 && keyType != pkcs11.CKK_DES3 && bytes > 0 {
		t = append(t, pkcs11.NewAttribute(pkcs11.CKA_VALUE_LEN, bytes))
	}
	if len(mechanisms) > 0 {
		t = append(t, pkcs11.NewAttribute(pkcs11.CKA_ALLOWED_MECHANISMS, mechanismList(mechanisms)))
	}
	return t
}

// inside is the template of a part of a key that only the token sees, and that other keys are derived from.
func inside(bytes int) []*pkcs11.Attribute {
	return secret(pkcs11.CKK_GENERIC_SECRET, bytes, []uint{pkcs11.CKA_DERIVE, pkcs11.CKA_EXTRACTABLE}, nil)
}

// temporary destroys an object of the session. Its error is added to err: what could not be destroyed ends with the session.
func (c *ceremony) temporary(o pkcs11.ObjectHandle, err *error) {
	if also := c.m.DestroyObject(c.s, o); also != nil {
		*err = errors.Join(*err, fmt.Errorf("destroying a temporary key: %w", also))
	}
}

// chain enciphers what is not secret, in CBC.
func (c *ceremony) chain(a Algorithm, k pkcs11.ObjectHandle, iv, in []byte) ([]byte, error) {
	if err := c.m.EncryptInit(c.s, chained(a, iv), k); err != nil {
		return nil, err
	}
	out, err := c.m.Encrypt(c.s, in)
	return exactly(len(in), out, err)
}

// A protection is the two keys of one block, objects of the session.
type protection struct {
	algorithm  Algorithm
	kbek, kbak pkcs11.ObjectHandle
}

func (c *ceremony) forget(p protection, err *error) {
	for _, k := range []pkcs11.ObjectHandle{p.kbek, p.kbak} {
		if k != 0 {
			c.temporary(k, err)
		}
	}
}

// A direction is what is done with a block, and so what its two keys may do: beside enciphering, which CMAC is made of.
type direction struct{ kbek, kbak []uint }

var (
	openingTransient = direction{[]uint{pkcs11.CKA_DECRYPT}, []uint{pkcs11.CKA_ENCRYPT}}
	sealingTransient = direction{[]uint{pkcs11.CKA_ENCRYPT}, []uint{pkcs11.CKA_ENCRYPT}}
	openingResident  = direction{[]uint{pkcs11.CKA_UNWRAP}, []uint{pkcs11.CKA_ENCRYPT, pkcs11.CKA_WRAP}}
	sealingResident  = direction{[]uint{pkcs11.CKA_WRAP}, []uint{pkcs11.CKA_ENCRYPT, pkcs11.CKA_WRAP}}
)

// Of the derivation (TR-31:2018, 5.3.2.1): what the derived key is for.
const (
	kdfEncipher = 0
	kdfMAC      = 1
)

// kdfAlgorithms are the numbers of the protection key's algorithm, by its length in bytes.
var kdfAlgorithms = map[Algorithm]map[int]byte{TDES: {tdes2Bytes: 0, tdes3Bytes: 1}, AES: {16: 2, 24: 3, 32: 4}}

// kdfData is what the protection key enciphers to the derived key: for each block a counter, its purpose, its algorithm and its length, and
// CMAC's subkey over them. For TDES these 8 bytes are a whole block (K1); for AES they are padded (K2).
func kdfData(algorithm Algorithm, purpose byte, length int, k1 []byte) []byte {
	var data []byte
	for counter := byte(1); len(data) < length; counter++ {
		block := make([]byte, algorithm.block())
		copy(block, []byte{counter, 0, purpose, 0, 0, kdfAlgorithms[algorithm][length]})
		binary.BigEndian.PutUint16(block[6:], uint16(8*length)) //nolint:gosec // at most 256
		if algorithm == AES {
			block[8] = 0x80
			subtle.XORBytes(block, block, cmacSubkey(k1))
		} else {
			subtle.XORBytes(block, block, k1)
		}
		data = append(data, block...)
	}
	return data
}

// A blockKey is a protection key in the token.
type blockKey struct {
	handle    pkcs11.ObjectHandle
	algorithm Algorithm
	bytes     int
}

// derived makes the two keys of a block of version B or D from its protection key, inside the token.
func (c *ceremony) derived(kbpk blockKey, d direction) (protection, error) {
	zero, err := encipher(c.m, c.s, kbpk.algorithm, kbpk.handle, make([]byte, kbpk.algorithm.block()))
	if err != nil {
		return protection{}, fmt.Errorf("deriving the keys of a key block: %w", err)
	}
	k1 := cmacSubkey(zero)
	purpose := byte(kdfEncipher)
	return c.protect(kbpk.algorithm, kbpk.bytes, d, func(template []*pkcs11.Attribute) (pkcs11.ObjectHandle, error) {
		data := kdfData(kbpk.algorithm, purpose, kbpk.bytes, k1)
		purpose = kdfMAC
		return c.m.DeriveString(c.s, kbpk.algorithm.encryptData(), data, kbpk.handle, template)
	})
}

// The masks of versions A and C (TR-31:2018, 5.3.1).
const (
	maskEncipher = 0x45
	maskMAC      = 0x4D
)

// variants makes the two keys of a block of version A or C from its clear protection key, which is in locked memory and unchanged when it returns. No key in the
// token can take its place: it would need to be one that may be XORed, and so be turned into related keys by whoever is logged in.
func (c *ceremony) variants(kbpk []byte, d direction) (protection, error) {
	mask := byte(maskEncipher)
	return c.protect(TDES, len(kbpk), d, func(template []*pkcs11.Attribute) (pkcs11.ObjectHandle, error) {
		flip := func(mask byte) {
			for i := range kbpk {
				kbpk[i] ^= mask
			}
		}
		flip(mask)
		defer flip(mask)
		mask = maskMAC
		return c.m.CreateSecret(c.s, template, kbpk) // of TDES the type says the length
	})
}

// protect makes the key that enciphers, and then the one that authenticates.
func (c *ceremony) protect(algorithm Algorithm, length int, d direction, create creator) (p protection, err error) {
	p.algorithm = algorithm
	keyType := keyTypeOf(algorithm, length)
	if p.kbek, err = create(secret(keyType, length, d.kbek, []uint{algorithm.cbc()})); err == nil {
		p.kbak, err = create(secret(keyType, length, d.kbak, []uint{algorithm.cbc()}))
	}
	if err != nil {
		err = fmt.Errorf("making the keys of a key block: %w", err)
		c.forget(p, &err)
		return protection{}, err
	}
	return p, nil
}

// keyTypeOf is the type of a new object of an algorithm.
func keyTypeOf(algorithm Algorithm, length int) uint {
	if algorithm == TDES && length == tdes3Bytes {
		return pkcs11.CKK_DES3
	}
	return algorithmTypes[algorithm][0]
}

// headerState is the state of CBC under KBAK after the header, and CMAC's subkey for a text of whole blocks.
func (c *ceremony) headerState(p protection, header []byte) (state, k1 []byte, err error) {
	zeros := make([]byte, p.algorithm.block())
	out, err := c.chain(p.algorithm, p.kbak, zeros, header)
	if err != nil {
		return nil, nil, fmt.Errorf("authenticating a key block: %w", err)
	}
	zero, err := c.chain(p.algorithm, p.kbak, zeros, zeros)
	if err != nil {
		return nil, nil, fmt.Errorf("authenticating a key block: %w", err)
	}
	return out[len(out)-len(zeros):], cmacSubkey(zero), nil
}

// errBlockMAC is the one answer to all that can be wrong with a block, its protection key or its bytes.
var errBlockMAC = refuseBlock("its MAC is not right: it was changed, or is protected by another key")

// variantMACRight compares the MAC of a version A or C block, which is over what anybody can see.
func (c *ceremony) variantMACRight(p protection, b *keyBlock) error {
	out, err := c.chain(p.algorithm, p.kbak, make([]byte, p.algorithm.block()), append(slices.Clone(b.header), b.sealed...))
	if err != nil {
		return fmt.Errorf("authenticating a key block: %w", err)
	}
	if subtle.ConstantTimeCompare(out[len(out)-p.algorithm.block():][:b.version.mac], b.mac) != 1 {
		return errBlockMAC
	}
	return nil
}

// iv of the enciphered part.
func (b *keyBlock) iv() []byte {
	if b.version.derived {
		return b.mac
	}
	return b.header[:desBytes]
}

// openTransient deciphers a block into the locked memory, and returns the key, a part of it. Its caller clears c.mem. The MAC was compared before anything of the
// key is looked at.
func (c *ceremony) openTransient(p protection, b *keyBlock) ([]byte, error) {
	n := len(b.sealed)
	if n > mostSealed {
		return nil, refuseBlock("its enciphered key has %d bytes, not at most %d", n, mostSealed)
	}
	if !b.version.derived {
		if err := c.variantMACRight(p, b); err != nil {
			return nil, err
		}
	}
	payload, out := c.mem[:n], c.mem[n:2*n+aesBytes]
	if err := c.m.DecryptInit(c.s, chained(p.algorithm, b.iv()), p.kbek); err != nil {
		return nil, fmt.Errorf("deciphering a key block: %w", err)
	}
	got, err := c.m.DecryptTo(c.s, b.sealed, c.mem[:n+aesBytes]) // some tokens want room for a block more
	if err != nil {
		return nil, fmt.Errorf("deciphering a key block: %w", err)
	}
	if got != n {
		return nil, errBlockMAC
	}
	if b.version.derived {
		mac, err := c.transientMAC(p, b.header, payload, out)
		if err != nil {
			return nil, err
		}
		if subtle.ConstantTimeCompare(mac, b.mac) != 1 {
			return nil, errBlockMAC
		}
	}
	bits := int(binary.BigEndian.Uint16(payload))
	if bits == 0 || bits%8 != 0 || bits/8 > n-lengthBytes {
		return nil, refuseBlock("the length of its key cannot be")
	}
	return payload[lengthBytes : lengthBytes+bits/8], nil
}

// transientMAC is CMAC over the header and the clear payload; out is locked memory of its length and a block more. The payload is as before when it returns.
func (c *ceremony) transientMAC(p protection, header, payload, out []byte) ([]byte, error) {
	state, k1, err := c.headerState(p, header)
	if err != nil {
		return nil, err
	}
	last := payload[len(payload)-p.algorithm.block():]
	subtle.XORBytes(last, last, k1)
	defer subtle.XORBytes(last, last, k1)
	if err := c.m.EncryptInit(c.s, chained(p.algorithm, state), p.kbak); err != nil {
		return nil, fmt.Errorf("authenticating a key block: %w", err)
	}
	n, err := c.m.EncryptTo(c.s, payload, out)
	if err != nil {
		return nil, fmt.Errorf("authenticating a key block: %w", err)
	}
	if n != len(payload) {
		return nil, fmt.Errorf("authenticating a key block: the token enciphers %d bytes to %d", len(payload), n)
	}
	return bytes.Clone(out[n-p.algorithm.block() : n]), nil
}

// A residentKey is an opened block inside the token: length, key and padding, as one object.
type residentKey struct {
	payload pkcs11.ObjectHandle
	bytes   int // of the key
}

// openResident unwraps a block inside the token, and compares its MAC. Its caller destroys the payload.
func (c *ceremony) openResident(p protection, b *keyBlock, lengths []int) (r residentKey, err error) {
	if !b.version.derived {
		if err := c.variantMACRight(p, b); err != nil {
			return r, err
		}
	}
	r.payload, err = c.m.UnwrapKey(c.s, chained(p.algorithm, b.iv()), p.kbek, b.sealed, inside(len(b.sealed)))
	if err != nil {
		return r, fmt.Errorf("unwrapping a key block: %w", err)
	}
	defer func() {
		if err != nil {
			c.temporary(r.payload, &err)
		}
	}()
	if b.version.derived {
		mac, err := c.residentMAC(p, b.header, r.payload, len(b.sealed))
		if err != nil {
			return r, err
		}
		if subtle.ConstantTimeCompare(mac, b.mac) != 1 {
			return r, errBlockMAC
		}
	}
	r.bytes, err = c.residentLength(r.payload, lengths)
	if err == nil && r.bytes > len(b.sealed)-lengthBytes {
		err = refuseBlock("the length of its key cannot be")
	}
	return r, err
}

// residentMAC is CMAC over the header and a payload that only the token sees: the subkey is put in by XOR, and CBC by wrapping.
func (c *ceremony) residentMAC(p protection, header []byte, payload pkcs11.ObjectHandle, n int) (mac []byte, err error) {
	state, k1, err := c.headerState(p, header)
	if err != nil {
		return nil, err
	}
	masked, err := c.m.DeriveString(c.s, pkcs11.CKM_XOR_BASE_AND_DATA, append(make([]byte, n-p.algorithm.block()), k1...), payload, inside(n))
	if err != nil {
		return nil, fmt.Errorf("authenticating a key block: %w", err)
	}
	defer c.temporary(masked, &err)
	out, err := c.m.WrapKey(c.s, chained(p.algorithm, state), p.kbak, masked)
	if err != nil {
		return nil, fmt.Errorf("authenticating a key block: %w", err)
	}
	if len(out) != n {
		return nil, fmt.Errorf("authenticating a key block: the token wraps %d bytes to %d", n, len(out))
	}
	return out[n-p.algorithm.block():], nil
}

// residentLength finds out which of the lengths, in bytes, stands before the key. It is no secret, but it is in the token with the key: so the two bytes become an
// HMAC key of their own, and its MAC of a fixed text is compared to those of all lengths that may be.
func (c *ceremony) residentLength(payload pkcs11.ObjectHandle, lengths []int) (found int, err error) {
	template := secret(pkcs11.CKK_GENERIC_SECRET, lengthBytes, []uint{pkcs11.CKA_SIGN}, []uint{pkcs11.CKM_SHA256_HMAC})
	k, err := c.m.DeriveNumber(c.s, pkcs11.CKM_EXTRACT_KEY_FROM_KEY, 0, payload, template)
	if err != nil {
		return 0, fmt.Errorf("reading the length in a key block: %w", err)
	}
	defer c.temporary(k, &err)
	got, err := signed(c.m, c.s, pkcs11.CKM_SHA256_HMAC, k, []byte(lengthPurpose))
	if err != nil {
		return 0, fmt.Errorf("reading the length in a key block: %w", err)
	}
	for _, n := range lengths {
		bits := binary.BigEndian.AppendUint16(nil, uint16(8*n)) //nolint:gosec // of keyLengths
		if subtle.ConstantTimeCompare(got, hmacOf(bits, lengthPurpose)) == 1 {
			return n, nil
		}
	}
	return 0, refuseBlock("the length of its key is none of its algorithm")
}

const lengthPurpose = "acquirerd key block length 1"

// cut makes the key of an opened block as an object of its own.
func (c *ceremony) cut(r residentKey, template []*pkcs11.Attribute) (pkcs11.ObjectHandle, error) {
	k, err := c.m.DeriveNumber(c.s, pkcs11.CKM_EXTRACT_KEY_FROM_KEY, 8*lengthBytes, r.payload, template)
	if err != nil {
		return 0, fmt.Errorf("cutting the key out of a key block: %w", err)
	}
	return k, nil
}

// leftOf makes KL || KL, the second object of a mac-x919 key, of a key of the session in which KL begins at a byte.
func (c *ceremony) leftOf(whole pkcs11.ObjectHandle, at uint) creator {
	return func(template []*pkcs11.Attribute) (left pkcs11.ObjectHandle, err error) {
		defer c.orNone(&left, &err)
		half, err := c.m.DeriveNumber(c.s, pkcs11.CKM_EXTRACT_KEY_FROM_KEY, 8*at, whole, inside(desBytes))
		if err != nil {
			return 0, fmt.Errorf("cutting a key into halves: %w", err)
		}
		defer c.temporary(half, &err)
		if left, err = c.m.DeriveNumber(c.s, pkcs11.CKM_CONCATENATE_BASE_AND_KEY, uint(half), half, template); err != nil {
			return 0, fmt.Errorf("doubling the half of a key: %w", err)
		}
		return left, nil
	}
}

// unfitInside is unfit of a key that only the token sees, in a key of the session in which it begins at a byte. What its parts are shows in what they encipher zeros to,
// each as a key of its own; parity, which the cipher does not look at, does not.
func (c *ceremony) unfitInside(algorithm Algorithm, whole pkcs11.ObjectHandle, at uint, length int) (problem string, err error) {
	if algorithm != TDES {
		return c.zerosInside(algorithm, whole, at, length)
	}
	part, parts := "half", "halves"
	if length == tdes3Bytes {
		part, parts = "third", "thirds"
	}
	var shown []byte // by the parts
	for i := uint(0); i < uint(length); i += desBytes {
		out, err := c.shownInside(TDES, c.leftOf(whole, at+i), secret(pkcs11.CKK_DES2, 0, []uint{pkcs11.CKA_ENCRYPT}, tdesPIN))
		if err != nil {
			return "", err
		}
		shown = append(shown, out...)
	}
	if equalParts(shown) {
		return "has equal " + parts + ": it is shorter than it looks", nil
	}
	for i := 0; i < len(shown); i += desBytes {
		if slices.Contains(weakDESZeros, binary.BigEndian.Uint64(shown[i:])) {
			return "has a weak " + part, nil
		}
	}
	return "", nil
}

// weakDESZeros is a block of zeros enciphered by each of weakDES, and zerosAES by a key of zeros, by its length in bytes.
var (
	weakDESZeros = []uint64{
		0x8CA64DE9C1B123A7, 0xCAAAAF4DEAF1DBAE, 0x2F5D20EA397B4786, 0x94AEA8BD97D84ED9,
		0x19A64049322A0C8A, 0x16513D6A4D72D81D, 0xCFBD01E80FA6AC56, 0x9C9532E62998F50A,
		0x01DB63B42A6B7260, 0x1F1755E5CA62219D, 0xA53799F0E1390CAA, 0xDE5334466A9A67D0,
		0x4BD200B286A22E7A, 0x31B913F4751B6F21, 0x71B0A4DCDADFD267, 0x093DB6A28A31412A,
	}
	zerosAES = map[int]string{16: "66E94BD4EF8A2C3B884CFA59CA342B2E", 32: "DC95C078A2408989AD48A21492842087"}
)

// zerosInside is unfitInside of an algorithm whose keys may be anything but zeros.
func (c *ceremony) zerosInside(algorithm Algorithm, whole pkcs11.ObjectHandle, at uint, length int) (problem string, err error) {
	create := func(template []*pkcs11.Attribute) (pkcs11.ObjectHandle, error) {
		return c.m.DeriveNumber(c.s, pkcs11.CKM_EXTRACT_KEY_FROM_KEY, 8*at, whole, template)
	}
	if algorithm == AES {
		got, err := c.shownInside(AES, create, secret(pkcs11.CKK_AES, length, []uint{pkcs11.CKA_ENCRYPT}, aesPIN))
		if err != nil {
			return "", err
		}
		if strings.EqualFold(hex.EncodeToString(got), zerosAES[length]) {
			return "is all zeros", nil
		}
		return "", nil
	}
	got, err := c.shownInside(HMAC, create, secret(pkcs11.CKK_GENERIC_SECRET, length, []uint{pkcs11.CKA_SIGN}, []uint{pkcs11.CKM_SHA256_HMAC}))
	if err == nil && subtle.ConstantTimeCompare(got, hmacOf(make([]byte, length), kcvPurpose)) == 1 {
		problem = "is all zeros"
	}
	return problem, err
}

// shownInside makes a key of the session, and returns what it makes of zeros, or as an HMAC key of a text.
func (c *ceremony) shownInside(algorithm Algorithm, create creator, template []*pkcs11.Attribute) (out []byte, err error) {
	k, err := create(template)
	if err != nil {
		return nil, fmt.Errorf("looking at the parts of a key: %w", err)
	}
	defer c.temporary(k, &err)
	if algorithm == HMAC {
		return signed(c.m, c.s, pkcs11.CKM_SHA256_HMAC, k, []byte(kcvPurpose))
	}
	return encipher(c.m, c.s, algorithm, k, make([]byte, algorithm.block()))
}

// maskOf is variantMask for a double-length key that begins at a byte.
func maskOf(at uint) []byte {
	return append(make([]byte, at), variantMask[:]...)
}

// variantFrom makes the variant of a TDES bdk key, of a key of the session in which it begins at a byte.
func (c *ceremony) variantFrom(whole pkcs11.ObjectHandle, at uint) creator {
	return func(template []*pkcs11.Attribute) (variant pkcs11.ObjectHandle, err error) {
		defer c.orNone(&variant, &err)
		mask := maskOf(at)
		changed, err := c.m.DeriveString(c.s, pkcs11.CKM_XOR_BASE_AND_DATA, mask, whole, inside(len(mask)))
		if err != nil {
			return 0, fmt.Errorf("making the variant of a key: %w", err)
		}
		defer c.temporary(changed, &err)
		if variant, err = c.m.DeriveNumber(c.s, pkcs11.CKM_EXTRACT_KEY_FROM_KEY, 8*at, changed, template); err != nil {
			return 0, fmt.Errorf("making the variant of a key: %w", err)
		}
		return variant, nil
	}
}

// sealTransient makes a block of the key that stands in c.mem behind lengthBytes of room. The rest of the payload is overwritten.
func (c *ceremony) sealTransient(p protection, b *keyBlock, length, n int) error {
	payload, out := c.mem[:n], c.mem[n:2*n+aesBytes]
	binary.BigEndian.PutUint16(payload, uint16(8*length)) //nolint:gosec // of keyLengths
	_, _ = rand.Read(payload[lengthBytes+length:])        // padding, not key; never fails: see crypto/rand
	mac, err := c.transientMAC(p, b.header, payload, out)
	if err != nil {
		return err
	}
	b.mac = mac[:b.version.mac]
	if err := c.m.EncryptInit(c.s, chained(p.algorithm, b.iv()), p.kbek); err != nil {
		return fmt.Errorf("enciphering a key block: %w", err)
	}
	got, err := c.m.EncryptTo(c.s, payload, out)
	if err != nil {
		return fmt.Errorf("enciphering a key block: %w", err)
	}
	if got != n {
		return fmt.Errorf("enciphering a key block: the token enciphers %d bytes to %d", n, got)
	}
	b.sealed = bytes.Clone(out[:n])
	return nil
}

// sealResident makes a block of an extractable key of the session, which never leaves the token in clear.
func (c *ceremony) sealResident(p protection, b *keyBlock, k pkcs11.ObjectHandle, length, n int) (err error) {
	withLength, err := c.m.DeriveString(c.s, pkcs11.CKM_CONCATENATE_DATA_AND_BASE, binary.BigEndian.AppendUint16(nil, uint16(8*length)), k, inside(0)) //nolint:gosec // of keyLengths
	if err != nil {
		return fmt.Errorf("putting a key into a key block: %w", err)
	}
	defer c.temporary(withLength, &err)
	payload := withLength
	if pad := make([]byte, n-lengthBytes-length); len(pad) > 0 {
		_, _ = rand.Read(pad) // padding, not key; never fails: see crypto/rand
		if payload, err = c.m.DeriveString(c.s, pkcs11.CKM_CONCATENATE_BASE_AND_DATA, pad, withLength, inside(0)); err != nil {
			return fmt.Errorf("putting a key into a key block: %w", err)
		}
		defer c.temporary(payload, &err)
	}
	mac, err := c.residentMAC(p, b.header, payload, n)
	if err != nil {
		return err
	}
	b.mac = mac[:b.version.mac]
	b.sealed, err = c.m.WrapKey(c.s, chained(p.algorithm, b.iv()), p.kbek, payload)
	if err != nil {
		return fmt.Errorf("wrapping a key block: %w", err)
	}
	if len(b.sealed) != n {
		return fmt.Errorf("wrapping a key block: the token wraps %d bytes to %d", n, len(b.sealed))
	}
	return nil
}

// hmacOf is HMAC-SHA-256 outside the token, with a key that is no secret.
func hmacOf(key []byte, text string) []byte {
	mac := hmac.New(sha256.New, key)
	_, _ = mac.Write([]byte(text)) // never fails: see hash.Hash
	return mac.Sum(nil)
}
