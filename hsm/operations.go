package hsm

import (
	"crypto/rand"
	"crypto/subtle"
	"errors"
	"fmt"

	"acquirerd/card"

	"github.com/miekg/pkcs11"
)

// The operations that a worker does with its session. Each is Init and a single shot, so that a session never stays in
// an operation. An error of the module keeps its return code; none quotes data.

const (
	nonceBytes = 12  // of AES-GCM
	tagBits    = 128 // of AES-GCM
)

// Purposes bind what a key makes to what it is for. kcvPurpose has letters: no PAN is ever the same bytes.
const (
	sealPurpose = "acquirerd pan-seal 1"
	restPurpose = "acquirerd advice-seal 1"
	kcvPurpose  = "acquirerd key check 1"
)

// sealAAD is the additional authenticated data of AES-GCM: purpose and key id. It is never empty: without any,
// SoftHSM 2.6.1 can crash.
func sealAAD(purpose, keyID string) []byte { return []byte(purpose + "\x00" + keyID) }

// translate re-enciphers a PIN block. The clear block stands in locked memory between the calls. out is as long as a block of the translation's format.
func (w *worker) translate(t translation, from, to *key, out, in []byte) error {
	if err := errors.Join(from.takes(t.from), to.takes(t.to)); err != nil {
		return fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	if from.recipe.way != to.recipe.way {
		return fmt.Errorf("%w: %w", ErrUnavailable, &KeyError{[]KeyFault{otherWay(to, from)}})
	}
	if from.recipe.way == TokenResident {
		return w.translateInside(t, from, to, out, in)
	}
	return t.run(&w.mem.pin, out, in,
		func(dst, src []byte) error { return w.ecb(from, true, src, dst) },
		func(dst, src []byte) error { return w.ecb(to, false, src, dst) })
}

// decipher is ECB, one block or more. Its caller clears the result.
func decipher(m module, s pkcs11.SessionHandle, algorithm Algorithm, k pkcs11.ObjectHandle, block []byte) ([]byte, error) {
	if err := m.DecryptInit(s, mechanism(algorithm.ecb()), k); err != nil {
		return nil, err
	}
	return m.Decrypt(s, block)
}

// encipher is ECB, one block or more.
func encipher(m module, s pkcs11.SessionHandle, algorithm Algorithm, k pkcs11.ObjectHandle, block []byte) ([]byte, error) {
	if err := m.EncryptInit(s, mechanism(algorithm.ecb()), k); err != nil {
		return nil, err
	}
	out, err := m.Encrypt(s, block)
	return exactly(len(block), out, err)
}

// sealUnder seals under a random nonce. Random ones must not be used more than 2^32 times under one key (SP 800-38D, 8.3).
func (w *worker) sealUnder(k *key, aad, clearText []byte) (card.SealedPAN, error) {
	nonce := make([]byte, nonceBytes)
	_, _ = rand.Read(nonce) // never fails: see crypto/rand
	sealed, err := w.sealWith(k, nonce, aad, clearText)
	if err != nil {
		return card.SealedPAN{}, err
	}
	return card.SealedPAN{KeyID: k.Label, Nonce: nonce, Ciphertext: sealed}, nil
}

// sealWith seals under a nonce that was never used with this key.
func (w *worker) sealWith(k *key, nonce, aad, clearText []byte) ([]byte, error) {
	if k.recipe.has(pkcs11.CKA_DECRYPT) {
		return sealByToken(w.m, w.session, k.handle, nonce, aad, clearText)
	}
	s, err := w.sealer(k)
	if err != nil {
		return nil, err
	}
	return s.seal(nonce, aad, clearText)
}

// openUnder opens what sealUnder made. Its caller clears the result.
//
// A token that does GCM by itself should answer CKR_ENCRYPTED_DATA_INVALID to a wrong tag, but SoftHSM 2.6.1 answers CKR_GENERAL_ERROR, as to real
// trouble. So if the key still passes its check, the data was at fault.
func (w *worker) openUnder(k *key, aad []byte, sealed card.SealedPAN) ([]byte, error) {
	if !k.recipe.has(pkcs11.CKA_DECRYPT) {
		s, err := w.sealer(k)
		if err != nil {
			return nil, err
		}
		return s.open(sealed.Nonce, aad, sealed.Ciphertext)
	}
	clearText, err := openByToken(w.m, w.session, k.handle, sealed.Nonce, aad, sealed.Ciphertext)
	switch c, _ := classify(err); {
	case err == nil:
		return clearText, nil
	case c == classData:
		return nil, ErrSealedPAN
	case errors.Is(err, pkcs11.Error(pkcs11.CKR_GENERAL_ERROR)) || errors.Is(err, pkcs11.Error(pkcs11.CKR_FUNCTION_FAILED)):
		if kcv, checkErr := checkPANSeal(w.m, w.session, k.handle); checkErr == nil && sameKCV(kcv, k.KCV) {
			return nil, ErrSealedPAN
		}
	}
	return nil, err
}

func (w *worker) sealPAN(k *key, pan string) (card.SealedPAN, error) {
	digits := []byte(pan)
	defer clear(digits)
	sealed, err := w.sealUnder(k, k.aad, digits)
	if err != nil {
		return card.SealedPAN{}, fmt.Errorf("sealing PAN: %w", err)
	}
	return sealed, nil
}

// openPAN opens a sealed PAN. What comes out and is no PAN was not sealed here.
func (w *worker) openPAN(k *key, sealed card.SealedPAN) (card.PAN, error) {
	digits, err := w.openUnder(k, k.aad, sealed)
	defer clear(digits)
	if errors.Is(err, ErrSealedPAN) {
		return card.PAN{}, ErrSealedPAN
	}
	if err != nil {
		return card.PAN{}, fmt.Errorf("opening PAN: %w", err)
	}
	pan, err := card.ParsePAN(string(digits))
	if err != nil {
		return card.PAN{}, ErrSealedPAN
	}
	return pan, nil
}

func sealByToken(m module, s pkcs11.SessionHandle, k pkcs11.ObjectHandle, nonce, aad, clearText []byte) ([]byte, error) {
	params := pkcs11.NewGCMParams(nonce, aad, tagBits)
	defer params.Free()
	if err := m.EncryptInit(s, []*pkcs11.Mechanism{pkcs11.NewMechanism(pkcs11.CKM_AES_GCM, params)}, k); err != nil {
		return nil, err
	}
	out := make([]byte, len(clearText)+tagBits/8)
	n, err := m.EncryptTo(s, clearText, out) // not Encrypt, which asks for the length first: NSS 3.87 tells that without the tag
	return exactly(len(out), out[:n], err)
}

func openByToken(m module, s pkcs11.SessionHandle, k pkcs11.ObjectHandle, nonce, aad, sealed []byte) ([]byte, error) {
	params := pkcs11.NewGCMParams(nonce, aad, tagBits)
	defer params.Free()
	if err := m.DecryptInit(s, []*pkcs11.Mechanism{pkcs11.NewMechanism(pkcs11.CKM_AES_GCM, params)}, k); err != nil {
		return nil, err
	}
	out := make([]byte, len(sealed)) // SoftHSM wants as much as comes in
	n, err := m.DecryptTo(s, sealed, out)
	return out[:n], err
}

// tokenOf makes the token of a PAN: 32 bytes by a keyed cryptographic hash (PCI DSS 3.5.1.1).
//
// Of an AES key they are two CMACs (SP 800-38B) of one block each: a number, 1 or 2, the count of digits, the digits in BCD with F to the right of
// them, zeros. Of one complete block the CMAC is the block XOR K1, enciphered; so both are one call of an operation held open, under a key that can
// only encipher. No such block is all zeros, which is that of the check value. Of a generic secret it is HMAC-SHA-256 of the digits.
func (w *worker) tokenOf(k *key, pan string) (token card.PANToken, err error) {
	if k.recipe.algorithm == HMAC {
		digits := []byte(pan)
		defer clear(digits)
		mac, err := signed(w.m, w.session, pkcs11.CKM_SHA256_HMAC, k.handle, digits)
		if err != nil {
			return card.PANToken{}, fmt.Errorf("making PAN token: %w", err)
		}
		return card.PANToken(mac), nil
	}
	blocks := &w.mem.pan
	defer clear(blocks[:])
	for i := range 2 {
		block := blocks[i*aesBytes:][:aesBytes]
		block[0], block[1] = byte(i+1), byte(len(pan)) //nolint:gosec // 12 to 19 digits
		digits := block[2:12]
		for j := range digits {
			digits[j] = 0xFF
		}
		for j := range len(pan) {
			shift := 4 * (1 - j%2)
			digits[j/2] ^= (0xF ^ (pan[j] - '0')) << shift
		}
		subtle.XORBytes(block, block, k.subkey[:])
	}
	if err := w.ecb(k, false, blocks[:], token[:]); err != nil {
		return card.PANToken{}, fmt.Errorf("making PAN token: %w", err)
	}
	return token, nil
}

// exactly turns an answer of the wrong length into a device error: a module that does that is not to be trusted further.
func exactly(n int, out []byte, err error) ([]byte, error) {
	if err == nil && len(out) != n {
		return nil, fmt.Errorf("module answered %d bytes, not %d: %w", len(out), n, pkcs11.Error(pkcs11.CKR_DEVICE_ERROR))
	}
	return out, err
}
