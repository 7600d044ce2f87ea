package hsm

import (
	"bytes"

	"github.com/miekg/pkcs11"
)

// What tests of package hsm_test do with key blocks below the commands: keys there are clear, and may be of kinds that no command takes.

// A Ceremony is one session of a token.
type Ceremony = ceremony

// InCeremony lends a session of the token.
func InCeremony(cfg Config, do func(*Ceremony) error) error { return withCeremony(cfg, do) }

// IsClean reports whether nothing was left in the locked memory.
func (c *ceremony) IsClean() bool { return bytes.Equal(c.mem, make([]byte, len(c.mem))) }

// Resident reports whether the token works on key blocks by itself.
func (c *ceremony) Resident() bool { return c.resident }

func (c *ceremony) clearKBPK(algorithm Algorithm, value []byte) (blockKey, error) {
	handle, err := c.m.CreateSecret(c.s, secret(keyTypeOf(algorithm, len(value)), 0, []uint{pkcs11.CKA_ENCRYPT, pkcs11.CKA_DERIVE},
		[]uint{algorithm.encryptData(), algorithm.ecb()}), value)
	return blockKey{handle, algorithm, len(value)}, err
}

// OpenClear opens a block under a clear protection key, transient, and returns the key.
func (c *ceremony) OpenClear(kbpk []byte, text string) (key []byte, err error) {
	defer clear(c.mem)
	b, err := parseKeyBlock([]byte(text))
	if err != nil {
		return nil, err
	}
	p, err := c.protectionOfClear(kbpk, b, openingTransient)
	if err != nil {
		return nil, err
	}
	defer c.forget(p, &err)
	opened, err := c.openTransient(p, b)
	return bytes.Clone(opened), err
}

func (c *ceremony) protectionOfClear(kbpk []byte, b *keyBlock, d direction) (protection, error) {
	if !b.version.derived {
		return c.variants(bytes.Clone(kbpk), d)
	}
	k, err := c.clearKBPK(b.version.algorithm, kbpk)
	if err != nil {
		return protection{}, err
	}
	defer func() { _ = c.m.DestroyObject(c.s, k.handle) }()
	return c.derived(k, d)
}

// OpenInside opens a block inside the token, and returns what the key enciphers a block of zeros to.
func (c *ceremony) OpenInside(kbpk []byte, text string) (zeros []byte, err error) {
	b, err := parseKeyBlock([]byte(text))
	if err != nil {
		return nil, err
	}
	lengths, known := keyLengths[b.Algorithm]
	if !known {
		return nil, refuseBlock("its key is of an algorithm that is not taken")
	}
	p, err := c.protectionOfClear(kbpk, b, openingResident)
	if err != nil {
		return nil, err
	}
	defer c.forget(p, &err)
	r, err := c.openResident(p, b, lengths)
	if err != nil {
		return nil, err
	}
	defer c.temporary(r.payload, &err)
	algorithm := blockAlgorithms[b.Algorithm]
	k, err := c.cut(r, secret(keyTypeOf(algorithm, r.bytes), r.bytes, []uint{pkcs11.CKA_ENCRYPT}, []uint{algorithm.ecb()}))
	if err != nil {
		return nil, err
	}
	defer c.temporary(k, &err)
	return encipher(c.m, c.s, algorithm, k, make([]byte, algorithm.block()))
}

// KDFZeros derives the two keys of a block, or makes its variants, and returns what they encipher a block of zeros to.
func (c *ceremony) KDFZeros(kbpk []byte, version byte) (kbek, kbak []byte, err error) {
	p, err := c.protectionOfClear(kbpk, &keyBlock{version: blockVersions[version]}, sealingTransient)
	if err != nil {
		return nil, nil, err
	}
	defer c.forget(p, &err)
	zeros := make([]byte, p.algorithm.block())
	if kbek, err = c.chain(p.algorithm, p.kbek, zeros, zeros); err == nil {
		kbak, err = c.chain(p.algorithm, p.kbak, zeros, zeros)
	}
	return kbek, kbak, err
}

// SealClear makes a block of a clear key: transient, or inside the token.
func (c *ceremony) SealClear(kbpk []byte, h BlockHeader, key []byte, resident bool) (text string, err error) {
	defer clear(c.mem)
	n := sealedLength(h.Version, h.Algorithm)
	b := &keyBlock{BlockHeader: h, version: blockVersions[h.Version]}
	if b.header, err = h.text(n); err != nil {
		return "", err
	}
	d := sealingTransient
	if resident {
		d = sealingResident
	}
	p, err := c.protectionOfClear(kbpk, b, d)
	if err != nil {
		return "", err
	}
	defer c.forget(p, &err)
	if !resident {
		copy(c.mem[lengthBytes:], key)
		if err := c.sealTransient(p, b, len(key), n); err != nil {
			return "", err
		}
		return string(b.write()), nil
	}
	k, err := c.m.CreateSecret(c.s, inside(0), key)
	if err != nil {
		return "", err
	}
	defer c.temporary(k, &err)
	if err := c.sealResident(p, b, k, len(key), n); err != nil {
		return "", err
	}
	return string(b.write()), nil
}

// ParseHeader reads the header of a block.
func ParseHeader(text string) (BlockHeader, error) {
	b, err := parseKeyBlock([]byte(text))
	if err != nil {
		return BlockHeader{}, err
	}
	return b.BlockHeader, nil
}

// CheckValues returns the usual check value of a clear key, and the first 3 bytes of zeros enciphered.
func (c *ceremony) CheckValues(algorithm Algorithm, key []byte) (usual, zeros string, err error) {
	if usual, err = c.componentKCV(algorithm, key); err != nil {
		return "", "", err
	}
	k, err := c.m.CreateSecret(c.s, secret(keyTypeOf(algorithm, len(key)), 0, []uint{pkcs11.CKA_ENCRYPT}, []uint{algorithm.ecb()}), key)
	if err != nil {
		return "", "", err
	}
	defer c.temporary(k, &err)
	out, err := encipher(c.m, c.s, algorithm, k, make([]byte, algorithm.block()))
	if err != nil {
		return "", "", err
	}
	return usual, kcvText(out), nil
}

// CryptogramKCV opens a TDES cryptogram under a clear TDES zone master key, in the way of the token, and returns its key's check value.
func (c *ceremony) CryptogramKCV(zmk, cryptogram []byte, cbc bool) (kcv string, err error) {
	defer clear(c.mem)
	r, err := recipeFor(c.m, c.slot, ZMK, TDES)
	if err != nil {
		return "", err
	}
	handle, err := c.m.CreateSecret(c.s, secret(keyTypeOf(TDES, len(zmk)), 0, r.flags, r.mechanisms), zmk)
	if err != nil {
		return "", err
	}
	defer c.temporary(handle, &err)
	from, err := c.underZMK(handle, r, TDES, cryptogram, cbc)
	if err != nil {
		return "", err
	}
	kcv, _, err = measure(c.m, c.s, TDES, from.bytes, from.create)
	return kcv, err
}

// ImportSession imports a block under a clear protection key, and destroys what it has made.
func (c *ceremony) ImportSession(kbpk []byte, text string, n NewKey) (about KeyInfo, err error) {
	b, err := parseKeyBlock([]byte(text))
	if err != nil {
		return KeyInfo{}, err
	}
	n.Algorithm = blockAlgorithms[b.Algorithm]
	about, err = c.importBlock(n, b, func(*ceremony, *keyBlock) (protection, blockKey, error) {
		k, err := c.clearKBPK(b.version.algorithm, kbpk)
		if err != nil {
			return protection{}, k, err
		}
		defer func() { _ = c.m.DestroyObject(c.s, k.handle) }()
		kcv, err := recipes[KBPK][1].kcv(c.m, c.s, k.handle)
		if err == nil {
			err = b.carries(kbpkKCV, k.algorithm, kcv)
		}
		if err != nil {
			return protection{}, k, err
		}
		p, err := c.derived(k, c.opening())
		return p, k, err
	})
	handles, failed := find(c.m, c.s, n.Label)
	for _, k := range handles {
		c.temporary(k, &failed)
	}
	if err == nil {
		err = failed
	}
	return about, err
}

// WeakDES are the weak keys of DES that are known here, with what each enciphers zeros to.
func WeakDES() map[[8]byte]uint64 {
	all := map[[8]byte]uint64{}
	for i, weak := range weakDES {
		all[weak] = weakDESZeros[i]
	}
	return all
}
