package hsm

import (
	"errors"
	"testing"

	"acquirerd/card"

	"github.com/miekg/pkcs11"
)

// A DUKPTBench derives keys in a token as a worker does, of base derivation keys that tests know. What it derives for a test can be read.
type DUKPTBench struct{ w *worker }

// NewDUKPTBench is of a session that is logged in.
func NewDUKPTBench(t testing.TB, l *library, s pkcs11.SessionHandle) DUKPTBench {
	t.Helper()
	memory, err := lockMemory(1)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(memory.free)
	return DUKPTBench{&worker{m: l, session: s, mem: memory.scratch(0)}}
}

// A DerivedKey says which key of AES-DUKPT is meant: a usage of the vectors' names, and a kind.
type DerivedKey struct {
	Usage string
	Kind  WorkingKey // or "hmac-128" ...
}

var usagesByName = map[string]keyUsage{"pin": usagePIN, "macgen": usageMAC, "macver": usageMACAnswer, "macboth": usageMACBoth, "dataenc": usageData,
	"datadec": usageDataAnswer, "databoth": usageDataBoth, "kek": usageKEK}

func (k DerivedKey) kind() keyKind {
	if k.Kind == "hmac-128" {
		return hmacKind(16)
	}
	return keyKinds[k.Kind]
}

// openTemplate lets a derived key be read and used for everything.
func openTemplate(kind keyKind) []*pkcs11.Attribute {
	template := append(openSecret(), pkcs11.NewAttribute(pkcs11.CKA_KEY_TYPE, kind.keyType))
	template = append(template[:1], template[2:]...) // openSecret has a key type of its own
	for _, u := range []uint{pkcs11.CKA_ENCRYPT, pkcs11.CKA_DECRYPT, pkcs11.CKA_SIGN} {
		template = append(template, pkcs11.NewAttribute(u, true))
	}
	if kind.keyType != pkcs11.CKK_DES2 && kind.keyType != pkcs11.CKK_DES3 {
		template = append(template, pkcs11.NewAttribute(pkcs11.CKA_VALUE_LEN, kind.bytes))
	}
	return template
}

func (b DUKPTBench) bdk(value []byte) (*key, error) {
	handle, err := b.w.m.CreateSecret(b.w.session, inSession(recipes[BDK][0].template("", "", len(value))), value)
	return &key{Key: Key{Label: string(value)}, handle: handle, bdk: base{bytes: len(value)}, recipe: recipes[BDK][0]}, err
}

// AES derives a key of AES-DUKPT under a BDK, and returns its value.
func (b DUKPTBench) AES(bdk []byte, ksn card.KSN, which DerivedKey) ([]byte, error) {
	k, err := b.bdk(bdk)
	if err != nil {
		return nil, err
	}
	d, err := b.w.newDerivation(k, ksn)
	if err != nil {
		return nil, err
	}
	derived, err := d.working(usagesByName[which.Usage], which.kind(), openTemplate(which.kind()))
	if err != nil {
		return nil, err
	}
	out := make([]byte, 64)
	n, err := b.w.m.ReadValue(b.w.session, derived, pkcs11.CKA_VALUE, out)
	return out[:n], errors.Join(err, b.w.m.DestroyObject(b.w.session, derived), b.w.m.DestroyObject(b.w.session, k.handle))
}

// TDES returns the key of a transaction of TDES-DUKPT.
func (b DUKPTBench) TDES(bdk []byte, ksn card.KSN) ([]byte, error) {
	defer b.w.mem.clear()
	mem := &b.w.mem.tdes
	of := recipe{algorithm: TDES, flags: []uint{pkcs11.CKA_ENCRYPT}, mechanisms: tdesPIN}
	k := &key{recipe: recipe{algorithm: TDES}}
	for _, handle := range []*pkcs11.ObjectHandle{&k.handle, &k.bdk.variant} {
		copy(mem.value[:], bdk)
		if handle == &k.bdk.variant {
			for i, m := range variantMask {
				mem.value[i] ^= m
			}
		}
		var err error
		if *handle, err = b.w.secretTDES(mem, of); err != nil {
			return nil, err
		}
	}
	if err := b.w.deriveTDES(mem, k, ksn); err != nil {
		return nil, err
	}
	return append([]byte(nil), mem.key[:]...), nil
}
