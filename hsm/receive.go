package hsm

import (
	"crypto/subtle"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/miekg/pkcs11"
)

// How keys come into the token from their other side, enciphered, and how they leave it: in key blocks, and for those who have nothing better as raw
// cryptograms. See keyblock.go for what is inside a block.

// A ceremony works with keys in one session of a token, with locked memory for what cannot stay inside it.
type ceremony struct {
	m    module
	s    pkcs11.SessionHandle
	slot uint
	mem  []byte // locked, ceremonyScratch; zeros between uses

	resident bool // the token can work on key blocks by itself
}

// ceremonyScratch is the locked memory of a ceremony, in bytes: for an enciphered key, deciphered, and what CBC makes of it.
const ceremonyScratch = 2*mostSealed + 64

// withCeremony lends one session of the token, logged in, with locked memory.
func withCeremony(cfg Config, do func(*ceremony) error) error {
	release, err := claim(cfg.Module)
	if err != nil {
		return err
	}
	defer release()
	return onToken(cfg, pkcs11.CKF_RW_SESSION, func(m *library, s pkcs11.SessionHandle, slot uint) error {
		return ceremonyIn(m, s, slot, do)
	})
}

func ceremonyIn(m module, s pkcs11.SessionHandle, slot uint, do func(*ceremony) error) error {
	mem, free, err := Lock(ceremonyScratch)
	if err != nil {
		return err
	}
	defer free()
	c := &ceremony{m: m, s: s, slot: slot, mem: mem}
	c.resident = c.worksInside()
	return do(c)
}

// Lock returns memory for a secret: outside the Go heap, locked, left out of core dumps, all zeros. Free clears it and gives it back; nothing may use it then.
func Lock(bytes int) (memory []byte, free func(), err error) {
	locked, err := lockMemory((bytes + scratchBytes - 1) / scratchBytes)
	if err != nil {
		return nil, nil, err
	}
	return locked.pages[:bytes:bytes], locked.free, nil
}

// ImportKeyBlock makes a key from a key block of version B or D (ANS X9.143) under the kbpk key of that label. The block has to be for a key of the use, with all that the use
// does. Its MAC is compared before anything of it is believed; the check values that it may carry are compared too.
//
// Where the token can unwrap the block and cut the key out of it, the key never leaves the token; the parity of a TDES key is then not seen. Else it passes
// through locked memory.
//
// Errors: ErrKeyBlock, ErrOtherKCV, ErrWeakerKey, ErrKeyLength, ErrKeyExists, ErrKeyCheck of the protection key.
func ImportKeyBlock(cfg Config, n NewKey, text []byte, kbpk string) (KeyInfo, error) {
	return importBlock(cfg, n, text, true, func(c *ceremony, b *keyBlock) (protection, blockKey, error) {
		k, err := c.protectionKey(kbpk, b)
		if err != nil {
			return protection{}, k, err
		}
		p, err := c.derived(k, c.opening())
		return p, k, err
	})
}

// ImportLegacyKeyBlock is ImportKeyBlock of version A or C, which protect less: their two keys are variants of the protection key, the MAC has 4 bytes. The protection key
// comes as 2 or 3 components, with its KCV: none in the token can be used, see variants. They are overwritten with zeros.
func ImportLegacyKeyBlock(cfg Config, n NewKey, text []byte, kbpk []Component, kcv string) (KeyInfo, error) {
	defer func() {
		for _, component := range kbpk {
			clear(component.Value)
		}
	}()
	if err := wellFormedComponents(kbpk); err != nil {
		return KeyInfo{}, fmt.Errorf("importing key %q: key block protection key: %w", n.Label, err)
	}
	return importBlock(cfg, n, text, false, func(c *ceremony, b *keyBlock) (protection, blockKey, error) {
		k := blockKey{algorithm: TDES, bytes: len(kbpk[0].Value)}
		if !slices.Contains(tdesLengths, k.bytes) {
			return protection{}, k, fmt.Errorf("key block protection key: %w: it has %d bytes, not %s", ErrComponents, k.bytes, oneOf(tdesLengths))
		}
		value := c.mem[:k.bytes]
		defer clear(c.mem)
		if err := c.combine(TDES, kbpk, value); err != nil {
			return protection{}, k, fmt.Errorf("key block protection key: %w", err)
		}
		if found, err := c.componentKCV(TDES, value); err != nil {
			return protection{}, k, err
		} else if !sameKCV(found, kcv) {
			return protection{}, k, fmt.Errorf("key block protection key: %w: it has the check value %s, not %s", ErrOtherKCV, found, kcv)
		}
		if err := b.carries(kbpkKCV, TDES, kcv); err != nil {
			return protection{}, k, err
		}
		p, err := c.variants(value, c.opening())
		return p, k, err
	})
}

// importBlock imports a block whose two keys protect makes.
func importBlock(cfg Config, n NewKey, text []byte, derived bool, protect func(*ceremony, *keyBlock) (protection, blockKey, error)) (about KeyInfo, err error) {
	var b *keyBlock
	if err = n.refuse(); err == nil {
		b, err = parseKeyBlock(text)
	}
	if err == nil {
		err = b.permits(n.Use)
	}
	if err == nil {
		switch algorithm := blockAlgorithms[b.Algorithm]; {
		case b.version.derived != derived && !derived:
			err = refuseBlock("it is of version %c, which needs no legacy", b.Version)
		case b.version.derived != derived:
			err = refuseBlock("it is of version %c, which protects too little", b.Version)
		case n.Algorithm != "" && n.Algorithm != algorithm:
			err = refuseBlock("its key is for %s, not for %s", algorithm, n.Algorithm)
		default:
			n.Algorithm = algorithm
		}
	}
	if err == nil {
		err = withCeremony(cfg, func(c *ceremony) error {
			about, err = c.importBlock(n, b, protect)
			return err
		})
	}
	if err != nil {
		return KeyInfo{}, fmt.Errorf("importing key %q: %w", n.Label, err)
	}
	return about, nil
}

func (c *ceremony) importBlock(n NewKey, b *keyBlock, protect func(*ceremony, *keyBlock) (protection, blockKey, error)) (about KeyInfo, err error) {
	defer c.wholeOrNothing(&about, &err)
	if err := refuseTaken(c.m, c.s, n.Label); err != nil {
		return KeyInfo{}, err
	}
	p, under, err := protect(c, b)
	if err != nil {
		return KeyInfo{}, err
	}
	defer c.forget(p, &err)
	from, err := c.open(p, b)
	if err != nil {
		return KeyInfo{}, err
	}
	defer from.forget(&err)
	if err := strongEnough(under.algorithm, under.bytes, n.Algorithm, from.bytes); err != nil {
		return KeyInfo{}, err
	}
	r, _, err := c.recipeOf(n, from.bytes)
	if err != nil {
		return KeyInfo{}, err
	}
	if r.check == nil { // of another check value than the usual one a block cannot tell
		kcv, _, err := c.tried(r, from)
		if err == nil {
			err = b.carries(keyKCVID, n.Algorithm, kcv)
		}
		if err != nil {
			return KeyInfo{}, err
		}
	}
	return c.settle(n, r, from)
}

// Check values that a block may carry: of its key, and of its protection key (X9.143, 6.3.6). The first two characters of the value are the method.
const (
	keyKCVID  = "KC"
	kbpkKCV   = "KP"
	kcvZeros  = "00" // zeros enciphered
	kcvCMAC   = "01" // CMAC of zeros
	kcvMethod = 2    // characters
)

// carries compares a check value of a block, if it has one of the method that the algorithm's usual one is of.
func (b *keyBlock) carries(id string, algorithm Algorithm, kcv string) error {
	value, given := b.optional(id)
	method := kcvZeros
	if algorithm == AES {
		method = kcvCMAC
	}
	if !given || !strings.HasPrefix(value, method) || algorithm == HMAC {
		return nil
	}
	digits := value[kcvMethod:]
	if n := min(len(digits), len(kcv)); n < 4 || !sameKCV(digits[:n], kcv[:n]) {
		return refuseBlock("its %s says another check value than %s", id, kcv)
	}
	return nil
}

// strongEnough refuses a key that is stronger than the one it is wrapped by (PCI PIN 10, annex C).
func strongEnough(under Algorithm, underBytes int, algorithm Algorithm, bytes int) error {
	if wrapping, wrapped := strengthOf(under, underBytes), strengthOf(algorithm, bytes); wrapping < wrapped {
		return fmt.Errorf("%w: one of %d bits for %s (strength %d) may not be under one of %d bits for %s (strength %d)",
			ErrWeakerKey, 8*bytes, algorithm, wrapped, 8*underBytes, under, wrapping)
	}
	return nil
}

// protectionKey finds the kbpk key of a label, and refuses one that cannot protect this block.
func (c *ceremony) protectionKey(label string, b *keyBlock) (blockKey, error) {
	handle, r, err := c.only(label, KBPK)
	if err != nil {
		return blockKey{}, err
	}
	k := blockKey{handle: handle, algorithm: r.algorithm}
	if k.bytes, err = lengthOf(c.m, c.s, handle); err != nil {
		return blockKey{}, err
	}
	if v := blockVersions[b.Version]; v.algorithm != k.algorithm {
		return blockKey{}, refuseBlock("it is of version %c, whose protection key is for %s: %q is for %s", b.Version, v.algorithm, label, k.algorithm)
	}
	kcv, err := r.kcv(c.m, c.s, handle)
	if err == nil {
		err = b.carries(kbpkKCV, k.algorithm, kcv)
	}
	return k, err
}

// only finds the one key of a label, and refuses one that does not fit the use.
func (c *ceremony) only(label string, use Use) (pkcs11.ObjectHandle, recipe, error) {
	handles, err := find(c.m, c.s, label)
	if err != nil {
		return 0, recipe{}, err
	}
	switch len(handles) {
	case 0:
		return 0, recipe{}, &KeyError{[]KeyFault{{label, "is missing"}}}
	case 1:
	default:
		return 0, recipe{}, &KeyError{[]KeyFault{{label, fmt.Sprintf("is not unique: %d keys have that label", len(handles))}}}
	}
	r, problem, err := fitting(use, c.m, c.s, handles[0])
	if err == nil && problem != "" {
		err = &KeyError{[]KeyFault{{label, "is no " + string(use) + " key: it " + problem}}}
	}
	return handles[0], r, err
}

func (c *ceremony) opening() direction {
	if c.resident {
		return openingResident
	}
	return openingTransient
}

// open makes a source of an authentic block.
func (c *ceremony) open(p protection, b *keyBlock) (source, error) {
	algorithm := blockAlgorithms[b.Algorithm]
	if c.resident {
		r, err := c.openResident(p, b, keyLengths[b.Algorithm])
		if err != nil {
			return source{}, err
		}
		problem, err := c.unfitInside(algorithm, r.payload, lengthBytes, r.bytes)
		if err == nil && problem != "" {
			err = refuseBlock("its key %s", problem)
		}
		if err != nil {
			c.temporary(r.payload, &err)
			return source{}, err
		}
		return source{
			bytes: r.bytes,
			create: func(template []*pkcs11.Attribute) (pkcs11.ObjectHandle, error) {
				return c.cut(r, withLength(template, algorithm, r.bytes))
			},
			left:    c.leftOf(r.payload, lengthBytes),
			variant: c.variantFrom(r.payload, lengthBytes),
			end:     func(err *error) { c.temporary(r.payload, err) },
		}, nil
	}
	value, err := c.openTransient(p, b)
	switch {
	case err != nil:
	case !slices.Contains(keyLengths[b.Algorithm], len(value)):
		err = refuseBlock("its key has %d bits, not %s", 8*len(value), oneOf(bitsOf(keyLengths[b.Algorithm])))
	default:
		if problem := unfit(algorithm, value); problem != "" {
			err = refuseBlock("its key %s", problem)
		}
	}
	return c.scratchSource(value, err)
}

// scratchSource is of a clear value in the ceremony's locked memory, which is cleared with the source, or at once where an error says that there is none.
func (c *ceremony) scratchSource(value []byte, err error) (source, error) {
	if err != nil {
		clear(c.mem)
		return source{}, err
	}
	from := c.clearSource(value)
	from.end = func(*error) { clear(c.mem) }
	return from, nil
}

// An Export says how the other side gets a key.
type Export struct {
	KBPK          string // label of the kbpk key
	Exportability byte   // 'N': its receiver may not export it, 'E' under a key of its own, 'S' otherwise too; 0 is 'N'
	KeyVersion    string // 2 characters, or "" for none
}

// ExportKey makes a new key, and a key block of version B or D with it for the other side. What the block permits is the other side of the use: who has the block of our pin-in key
// enciphers with it. The key in our token is made from the block itself, by the way of ImportKeyBlock, so that a block which nobody could open leaves no key.
//
// A key that is in the token already cannot be exported: it was made not extractable, which no one can change. So a key leaves when it is made, or never.
//
// Errors: those of ImportKeyBlock.
func ExportKey(cfg Config, n NewKey, to Export) (about KeyInfo, block []byte, err error) {
	if err = n.refuse(); err == nil {
		err = withCeremony(cfg, func(c *ceremony) error {
			about, block, err = c.export(n, to)
			return err
		})
	}
	if err != nil {
		return KeyInfo{}, nil, fmt.Errorf("exporting new key %q: %w", n.Label, err)
	}
	return about, block, nil
}

func (c *ceremony) export(n NewKey, to Export) (about KeyInfo, text []byte, err error) {
	r, length, err := c.recipeOf(n, 0)
	if err != nil {
		return KeyInfo{}, nil, err
	}
	handle, protecting, err := c.only(to.KBPK, KBPK)
	if err != nil {
		return KeyInfo{}, nil, err
	}
	under := blockKey{handle: handle, algorithm: protecting.algorithm}
	if under.bytes, err = lengthOf(c.m, c.s, handle); err != nil {
		return KeyInfo{}, nil, err
	}
	if err := strongEnough(under.algorithm, under.bytes, r.algorithm, length); err != nil {
		return KeyInfo{}, nil, err
	}
	h := header(n.Use, r.algorithm, under.algorithm)
	if to.Exportability != 0 {
		h.Exportability = to.Exportability
	}
	if to.KeyVersion != "" {
		h.KeyVersion = to.KeyVersion
	}
	sealed, err := c.seal(h, under, r.algorithm, length)
	if err != nil {
		return KeyInfo{}, nil, err
	}
	text = sealed.write()
	b, err := parseKeyBlock(text)
	if err != nil {
		return KeyInfo{}, nil, err
	}
	n.Algorithm = r.algorithm
	about, err = c.importBlock(n, b, func(*ceremony, *keyBlock) (protection, blockKey, error) {
		p, err := c.derived(under, c.opening())
		return p, under, err
	})
	return about, text, err
}

// seal makes a block of a new random key, which is nowhere else afterwards.
func (c *ceremony) seal(h BlockHeader, under blockKey, algorithm Algorithm, length int) (b *keyBlock, err error) {
	n := sealedLength(h.Version, h.Algorithm)
	b = &keyBlock{BlockHeader: h, version: blockVersions[h.Version]}
	if b.header, err = h.text(n); err != nil {
		return nil, err
	}
	d := sealingTransient
	if c.resident {
		d = sealingResident
	}
	p, err := c.derived(under, d)
	if err != nil {
		return nil, err
	}
	defer c.forget(p, &err)
	if c.resident {
		var k pkcs11.ObjectHandle
		if k, err = c.extractable(algorithm, length); err != nil {
			return nil, err
		}
		defer c.temporary(k, &err)
		return b, c.sealResident(p, b, k, length, n)
	}
	defer clear(c.mem)
	if err := c.randomValue(algorithm, c.mem[lengthBytes:lengthBytes+length]); err != nil {
		return nil, err
	}
	return b, c.sealTransient(p, b, length, n)
}

// ImportCryptogram makes a key from a raw cryptogram under the zmk key of that label: ECB, or CBC with an initial vector of zeros. Nothing binds it to what it is for, and nobody
// sees that it was changed (PCI PIN 18-3): so it takes only keys that a zone shares, and only with a KCV. With that, parity says nothing more: it is set to odd.
//
// Errors: ErrCryptogram, ErrOtherKCV, ErrWeakerKey, ErrKeyLength, ErrKeyExists, ErrKeyCheck of the zmk key.
func ImportCryptogram(cfg Config, n NewKey, cryptogram []byte, zmk string, cbc bool) (about KeyInfo, err error) {
	switch err = n.refuse(); {
	case err != nil:
	case !slices.Contains(zoneUses, n.Use):
		err = fmt.Errorf("%w: a %s key comes in no raw cryptogram", ErrCryptogram, n.Use)
	case n.KCV == "":
		err = fmt.Errorf("%w: it needs its check value", ErrCryptogram)
	default:
		err = withCeremony(cfg, func(c *ceremony) error {
			about, err = c.importCryptogram(n, cryptogram, zmk, cbc)
			return err
		})
	}
	if err != nil {
		return KeyInfo{}, fmt.Errorf("importing key %q: %w", n.Label, err)
	}
	return about, nil
}

// ErrCryptogram: a raw cryptogram is refused.
var ErrCryptogram = errors.New("cryptogram refused")

// zoneUses are those of keys that a zone shares: what comes under its zmk key.
var zoneUses = []Use{PINIn, PINOut, MACX919, MACCMAC}

func (c *ceremony) importCryptogram(n NewKey, cryptogram []byte, zmk string, cbc bool) (about KeyInfo, err error) {
	defer c.wholeOrNothing(&about, &err)
	handle, under, err := c.only(zmk, ZMK)
	if err != nil {
		return KeyInfo{}, err
	}
	underBytes, err := lengthOf(c.m, c.s, handle)
	if err != nil {
		return KeyInfo{}, err
	}
	r, length, err := c.recipeOf(n, len(cryptogram))
	if err != nil {
		return KeyInfo{}, err
	}
	if err := strongEnough(under.algorithm, underBytes, r.algorithm, length); err != nil {
		return KeyInfo{}, err
	}
	from, err := c.underZMK(handle, under, r.algorithm, cryptogram, cbc)
	if err != nil {
		return KeyInfo{}, err
	}
	defer from.forget(&err)
	return c.settle(n, r, from)
}

// underZMK makes a source of a cryptogram under a zone master key that fits a recipe.
func (c *ceremony) underZMK(zmk pkcs11.ObjectHandle, under recipe, algorithm Algorithm, cryptogram []byte, cbc bool) (source, error) {
	length := len(cryptogram)
	if length%under.algorithm.block() != 0 {
		return source{}, fmt.Errorf("%w: %d bytes are not whole blocks of %s", ErrCryptogram, length, under.algorithm)
	}
	how := mechanism(under.algorithm.ecb())
	if cbc {
		how = chained(under.algorithm, make([]byte, under.algorithm.block()))
	}
	if under.way == TokenResident {
		if err := c.fitUnderZMK(how, zmk, algorithm, cryptogram); err != nil {
			return source{}, err
		}
		return source{
			bytes: length,
			create: func(template []*pkcs11.Attribute) (pkcs11.ObjectHandle, error) {
				return c.m.UnwrapKey(c.s, how, zmk, cryptogram, withLength(template, algorithm, length))
			},
			left: func(template []*pkcs11.Attribute) (left pkcs11.ObjectHandle, err error) {
				defer c.orNone(&left, &err)
				whole, err := c.m.UnwrapKey(c.s, how, zmk, cryptogram, inside(length))
				if err != nil {
					return 0, err
				}
				defer c.temporary(whole, &err)
				return c.leftOf(whole, 0)(template)
			},
		}, nil
	}
	if err := c.m.DecryptInit(c.s, how, zmk); err != nil {
		return source{}, fmt.Errorf("deciphering key: %w", err)
	}
	got, err := c.m.DecryptTo(c.s, cryptogram, c.mem[:length+aesBytes]) // some tokens want room for a block more
	value := c.mem[:length]
	switch {
	case err != nil:
		err = fmt.Errorf("deciphering key: %w", err)
	case got != length:
		err = fmt.Errorf("deciphering key: the token deciphers %d bytes to %d", length, got)
	default:
		if problem := unfit(algorithm, value); problem != "" {
			err = fmt.Errorf("%w: the key %s", ErrCryptogram, problem)
		}
	}
	return c.scratchSource(value, err)
}

// fitUnderZMK refuses a cryptogram of a key that must not be used, inside the token.
func (c *ceremony) fitUnderZMK(how []*pkcs11.Mechanism, zmk pkcs11.ObjectHandle, algorithm Algorithm, cryptogram []byte) (err error) {
	whole, err := c.m.UnwrapKey(c.s, how, zmk, cryptogram, inside(len(cryptogram)))
	if err != nil {
		return err
	}
	defer c.temporary(whole, &err)
	problem, err := c.unfitInside(algorithm, whole, 0, len(cryptogram))
	if err == nil && problem != "" {
		err = fmt.Errorf("%w: the key %s", ErrCryptogram, problem)
	}
	return err
}

// Destroy destroys the one secret key of a label if its check value is kcv, and says what it was. It looks whether it is gone. The part of a key goes with that; one that is left
// without its key goes by its own label. Errors: ErrKeyCheck, ErrOtherKCV.
func Destroy(cfg Config, label, kcv string) (about KeyInfo, err error) {
	err = withCeremony(cfg, func(c *ceremony) error {
		handles, err := find(c.m, c.s, label)
		if err != nil {
			return err
		}
		if len(handles) != 1 {
			return &KeyError{[]KeyFault{{label, fmt.Sprintf("is not the label of one secret key, but of %d", len(handles))}}}
		}
		if marks, err := isMark(c.m, c.s, handles[0]); err != nil {
			return err
		} else if marks {
			return &KeyError{[]KeyFault{{label, "is no key: it says that a key change was done"}}}
		}
		if about, err = describe(c.m, c.s, handles[0]); err != nil {
			return err
		}
		part, err := isPart(c.m, c.s, label, handles[0])
		switch {
		case err != nil:
			return err
		case part:
			return &KeyError{[]KeyFault{{label, "is a part of a key, and goes with it"}}}
		case about.KCV == "":
			return &KeyError{[]KeyFault{{label, "shows no check value by which it could be confirmed"}}}
		case subtle.ConstantTimeCompare([]byte(strings.ToUpper(kcv)), []byte(about.KCV)) != 1:
			return fmt.Errorf("%w: it has the check value %s, not %s", ErrOtherKCV, about.KCV, kcv)
		}
		if err := c.destroyWhole(label, handles[0]); err != nil {
			return err
		}
		if handles, err = find(c.m, c.s, label); err == nil && len(handles) > 0 {
			err = &KeyError{[]KeyFault{{label, "is still there after the token destroyed it"}}}
		}
		return err
	})
	if err != nil {
		return KeyInfo{}, fmt.Errorf("destroying key %q: %w", label, err)
	}
	return about, nil
}
