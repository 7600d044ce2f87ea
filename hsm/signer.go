package hsm

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"fmt"
	"io"
	"math/big"
	"slices"
	"strings"

	"github.com/miekg/pkcs11"
)

// A private key in the token signs for TLS. It takes the workers' way into the module, and not crypto11's: crypto11 keeps sessions of its own,
// which go bad for ever when a generation is rebuilt, and logs out and finalises the module under the payments when it is
// closed or its configuration fails. It makes the keys (GenerateSigner), where it has the module to itself.
//
// Nothing is remembered of such a key but its public half: each signature looks the private key up again and is checked before it
// is given away, so that neither a handle of another generation nor a fault in RSA-CRT (Boneh, DeMillo, Lipton 1997) gets out. A
// handshake can afford that: TLS needs one signature for a connection.

// TLSKey is the use of a private key for a Signer. It is none of Uses: the certificate pins such a key, and hsm.keys does not name it.
const TLSKey Use = "tls"

// A KeyType is a kind of private key that GenerateSigner makes.
type KeyType string

const (
	ECP256  KeyType = "ec-p256"
	RSA2048 KeyType = "rsa-2048"
	RSA3072 KeyType = "rsa-3072"
)

// KeyTypes lists all of them.
var KeyTypes = []KeyType{ECP256, RSA2048, RSA3072}

// fewestRSABits is the least that TLS should take (NIST SP 800-57 Part 1 Rev. 5, 5.6.1: 112 bits of strength).
const fewestRSABits = 2048

// privateFlags are all flags that let a private key do something.
var privateFlags = []struct {
	attribute uint
	name      string
}{
	{pkcs11.CKA_SIGN, "sign"},
	{pkcs11.CKA_SIGN_RECOVER, "sign_recover"},
	{pkcs11.CKA_DECRYPT, "decrypt"},
	{pkcs11.CKA_UNWRAP, "unwrap"},
	{pkcs11.CKA_DERIVE, "derive"},
}

// p256 is the value of CKA_EC_PARAMS: the object identifier prime256v1 (RFC 5480, 2.1.1.1).
var p256 = []byte{0x06, 0x08, 0x2A, 0x86, 0x48, 0xCE, 0x3D, 0x03, 0x01, 0x07}

// A privateKey is a private key in the token with its public half.
type privateKey struct {
	handle pkcs11.ObjectHandle
	public crypto.PublicKey // *ecdsa.PublicKey on P-256, or *rsa.PublicKey
}

// findPrivateKey finds a private key and the public key of the same label, and refuses one that is not fit.
func findPrivateKey(m module, s pkcs11.SessionHandle, label string) (*privateKey, error) {
	handles, err := findClass(m, s, pkcs11.CKO_PRIVATE_KEY, label)
	if err != nil {
		return nil, err
	}
	publics, err := findClass(m, s, pkcs11.CKO_PUBLIC_KEY, label)
	if err != nil {
		return nil, err
	}
	if len(handles) != 1 || len(publics) != 1 {
		return nil, fmt.Errorf("%w: label %q has %d private and %d public keys, not one of each", ErrSigner, label, len(handles), len(publics))
	}
	k := &privateKey{handle: handles[0]}
	if problem, err := judgePrivate(m, s, k.handle); err != nil {
		return nil, err
	} else if problem != "" {
		return nil, fmt.Errorf("%w: %q %s", ErrSigner, label, problem)
	}
	k.public, err = publicKey(m, s, publics[0])
	if errors.Is(err, ErrSigner) {
		return nil, fmt.Errorf("%w: that is %q", err, label)
	}
	return k, err
}

// judgePrivate returns what is wrong with a private key, "" if nothing.
func judgePrivate(m module, s pkcs11.SessionHandle, k pkcs11.ObjectHandle) (string, error) {
	var problems []string
	for _, g := range guards {
		value, known, err := flag(m, s, k, g.attribute)
		if err != nil {
			return "", err
		}
		if known && value != g.value || !known && !g.optional {
			problems = append(problems, fmt.Sprintf("is not %s=%t", g.name, g.value))
		}
	}
	for _, u := range privateFlags {
		value, known, err := flag(m, s, k, u.attribute)
		if err != nil {
			return "", err
		}
		if want := u.attribute == pkcs11.CKA_SIGN; value != want || want && !known {
			problems = append(problems, fmt.Sprintf("is not %s=%t", u.name, want))
		}
	}
	return strings.Join(problems, ", "), nil
}

func publicKey(m module, s pkcs11.SessionHandle, k pkcs11.ObjectHandle) (crypto.PublicKey, error) {
	keyType, err := number(m, s, k, pkcs11.CKA_KEY_TYPE)
	if err != nil {
		return nil, err
	}
	read := func(which uint) []byte {
		value, _, readErr := attribute(m, s, k, which)
		if err == nil {
			err = readErr
		}
		return value
	}
	switch keyType {
	case pkcs11.CKK_EC:
		params, point := read(pkcs11.CKA_EC_PARAMS), read(pkcs11.CKA_EC_POINT)
		if err != nil {
			return nil, err
		}
		if !bytes.Equal(params, p256) {
			return nil, fmt.Errorf("%w: its curve is not P-256", ErrSigner)
		}
		var inner []byte
		if rest, err := asn1.Unmarshal(point, &inner); err != nil || len(rest) > 0 {
			inner = point // some tokens give it without its OCTET STRING
		}
		public, err := ecdsa.ParseUncompressedPublicKey(elliptic.P256(), inner)
		if err != nil {
			return nil, fmt.Errorf("%w: its public key is not a point of P-256", ErrSigner)
		}
		return public, nil
	case pkcs11.CKK_RSA:
		modulus, exponent := new(big.Int).SetBytes(read(pkcs11.CKA_MODULUS)), new(big.Int).SetBytes(read(pkcs11.CKA_PUBLIC_EXPONENT))
		if err != nil {
			return nil, err
		}
		if modulus.BitLen() < fewestRSABits || exponent.BitLen() > 31 {
			return nil, fmt.Errorf("%w: it is RSA of %d bits, fewer than %d, or with a large exponent", ErrSigner, modulus.BitLen(), fewestRSABits)
		}
		return &rsa.PublicKey{N: modulus, E: int(exponent.Int64())}, nil
	}
	return nil, fmt.Errorf("%w: it is neither EC nor RSA", ErrSigner)
}

// digestInfo is what stands before a digest in PKCS #1 v1.5 (RFC 8017, 9.2, note 1). Other digests are not signed.
var digestInfo = map[crypto.Hash][]byte{
	crypto.SHA256: {0x30, 0x31, 0x30, 0x0d, 0x06, 0x09, 0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, 0x01, 0x05, 0x00, 0x04, 0x20},
	crypto.SHA384: {0x30, 0x41, 0x30, 0x0d, 0x06, 0x09, 0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, 0x02, 0x05, 0x00, 0x04, 0x30},
	crypto.SHA512: {0x30, 0x51, 0x30, 0x0d, 0x06, 0x09, 0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, 0x03, 0x05, 0x00, 0x04, 0x40},
}

// pssHash are the mechanisms of PSS by its hash.
var pssHash = map[crypto.Hash]struct{ hash, mask uint }{
	crypto.SHA256: {pkcs11.CKM_SHA256, pkcs11.CKG_MGF1_SHA256},
	crypto.SHA384: {pkcs11.CKM_SHA384, pkcs11.CKG_MGF1_SHA384},
	crypto.SHA512: {pkcs11.CKM_SHA512, pkcs11.CKG_MGF1_SHA512},
}

// sign signs a digest and checks the signature. ECDSA gives ASN.1 as crypto.Signer wants it; RSA is PSS with a salt as long as the
// digest (RFC 8446, 4.2.3) if opts say PSS, else PKCS #1 v1.5.
func (k *privateKey) sign(m module, s pkcs11.SessionHandle, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	hash := opts.HashFunc()
	prefix, known := digestInfo[hash]
	if !known || len(digest) != hash.Size() {
		return nil, fmt.Errorf("%w: a digest of %d bytes that is not SHA-256, SHA-384 or SHA-512", ErrSigner, len(digest))
	}
	raw := func(mechanism uint, parameter any, input []byte) ([]byte, error) {
		if err := m.SignInit(s, []*pkcs11.Mechanism{pkcs11.NewMechanism(mechanism, parameter)}, k.handle); err != nil {
			return nil, err
		}
		return m.Sign(s, input)
	}
	var signature []byte
	var err error
	good := false
	switch public := k.public.(type) {
	case *ecdsa.PublicKey:
		signature, err = raw(pkcs11.CKM_ECDSA, nil, digest)
		if n := len(signature) / 2; err == nil {
			signature, err = asn1.Marshal(struct{ R, S *big.Int }{new(big.Int).SetBytes(signature[:n]), new(big.Int).SetBytes(signature[n:])})
		}
		good = err == nil && ecdsa.VerifyASN1(public, digest, signature)
	case *rsa.PublicKey:
		if pss, isPSS := opts.(*rsa.PSSOptions); isPSS {
			if pss.SaltLength > 0 && pss.SaltLength != hash.Size() {
				return nil, fmt.Errorf("%w: PSS with a salt of %d bytes, not %d", ErrSigner, pss.SaltLength, hash.Size())
			}
			parameter := pkcs11.NewPSSParams(pssHash[hash].hash, pssHash[hash].mask, uint(hash.Size()))
			signature, err = raw(pkcs11.CKM_RSA_PKCS_PSS, parameter, digest)
			good = err == nil && rsa.VerifyPSS(public, hash, digest, signature, &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash}) == nil
		} else {
			signature, err = raw(pkcs11.CKM_RSA_PKCS, nil, slices.Concat(prefix, digest))
			good = err == nil && rsa.VerifyPKCS1v15(public, hash, digest, signature) == nil
		}
	}
	if err == nil && !good {
		err = fmt.Errorf("%w: the token made a signature that does not verify", ErrSigner)
	}
	return signature, err
}

// prove signs something random: the two halves belong together, and the key works.
func (k *privateKey) prove(m module, s pkcs11.SessionHandle) error {
	var digest [sha256.Size]byte
	_, _ = rand.Read(digest[:]) // never fails: see crypto/rand
	_, err := k.sign(m, s, digest[:], crypto.SHA256)
	return err
}

// Signer returns the private key of the label for TLS: ECDSA on P-256, or RSA of at least 2,048 bits, with its public key under the same label.
// It can be called as soon as Open has returned. The Signer works while Run runs, from many goroutines, and through rebuilds; a
// call takes no longer than CallTimeout. A key that is lost later costs handshakes, and not the generation.
//
// Errors: ErrSigner if the key is missing or not fit, ErrUnavailable.
func (h *HSM) Signer(label string) (crypto.Signer, error) {
	var found crypto.PublicKey
	err := h.borrow(func(w *worker) error {
		k, err := findPrivateKey(w.m, w.session, label)
		if err == nil {
			err = k.prove(w.m, w.session)
		}
		if err != nil {
			return keepGeneration(err)
		}
		found = k.public
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("opening signer %q: %w", label, err)
	}
	return &signer{h, label, found}, nil
}

// borrow is call, and works before Run too: there is no worker yet, so that their first session is free.
func (h *HSM) borrow(run func(*worker) error) error {
	h.starting.Lock()
	if h.release == nil || h.running.Load() {
		h.starting.Unlock()
		return h.call(context.Background(), signDigest, run)
	}
	defer h.starting.Unlock()
	g := h.gen.Load()
	if g == nil || h.hung.Load() {
		return errDown
	}
	ctx, cancel := context.WithTimeout(context.Background(), h.cfg.CallTimeout)
	defer cancel()
	return h.await(ctx, func() error { return run(&worker{m: h.module, gen: g, session: g.sessions[0]}) })
}

type signer struct {
	h      *HSM
	label  string
	public crypto.PublicKey
}

func (s *signer) Public() crypto.PublicKey { return s.public }

func (s *signer) Sign(_ io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	held := bytes.Clone(digest) // after a timeout the task may still run when the caller reuses his
	var out []byte
	err := s.h.call(context.Background(), signDigest, func(w *worker) error {
		k, err := findPrivateKey(w.m, w.session, s.label)
		if err != nil {
			return keepGeneration(err)
		}
		if !sameKey(k.public, s.public) {
			return fmt.Errorf("%w: the token has another key of that label now", ErrSigner)
		}
		signature, err := k.sign(w.m, w.session, held, opts)
		if err != nil {
			return keepGeneration(err)
		}
		out = signature
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("signing with %q: %w", s.label, err)
	}
	return out, nil
}

func sameKey(a, b crypto.PublicKey) bool {
	k, ok := a.(interface{ Equal(crypto.PublicKey) bool })
	return ok && k.Equal(b)
}

// A sessionSigner signs for a short-lived command, which has the module to itself.
type sessionSigner struct {
	*privateKey
	m module
	s pkcs11.SessionHandle
}

func (s sessionSigner) Public() crypto.PublicKey { return s.public }

func (s sessionSigner) Sign(_ io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	return s.sign(s.m, s.s, digest, opts)
}

// CertificateRequest returns a certificate signing request (PKCS #10, DER) of a private key in the token. Of the Config it uses what the
// other functions for commands use.
func CertificateRequest(cfg Config, label string, request *x509.CertificateRequest) (der []byte, err error) {
	err = withToken(cfg, 0, func(m *library, s pkcs11.SessionHandle) error {
		k, err := findPrivateKey(m, s, label)
		if err != nil {
			return err
		}
		der, err = x509.CreateCertificateRequest(rand.Reader, request, sessionSigner{k, m, s})
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("requesting a certificate for key %q: %w", label, err)
	}
	return der, nil
}
