package hsm

import (
	"errors"
	"testing"

	"acquirerd/card"

	"github.com/miekg/pkcs11"
)

// A DUKPTBench derives keys in a token as a worker does, of a base derivation key that the test knows. What it derives for a test can be read.
type DUKPTBench struct {
	t testing.TB
	w *worker
}

// NewDUKPTBench is of a session that is logged in.
func NewDUKPTBench(t testing.TB, l *library, s pkcs11.SessionHandle) DUKPTBench {
	t.Helper()
	memory, err := lockMemory(1)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(memory.free)
	return DUKPTBench{t, &worker{m: l, session: s, mem: memory.scratch(0)}}
}

var (
	usagesByName = map[string]keyUsage{"pin": usagePIN, "macgen": usageMAC, "macver": usageMACAnswer, "macboth": usageMACBoth, "dataenc": usageData,
		"datadec": usageDataAnswer, "databoth": usageDataBoth, "kek": usageKEK}
	kindsByName = map[string]keyKind{"tdea2": keyKinds[TDES2], "tdea3": keyKinds[TDES3], "aes128": keyKinds[AES128], "aes192": keyKinds[AES192],
		"aes256": keyKinds[AES256], "hmac128": hmacKind(16), "hmac256": hmacKind(32)}
)

// open lets a derived key be read and used for everything.
func open(kind keyKind) []*pkcs11.Attribute {
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

// derivation is that of a device of AES-DUKPT.
func (b DUKPTBench) derivation(bdk []byte, ksn card.KSN) derivation {
	b.t.Helper()
	d, err := b.w.newDerivation(b.aesBDK(bdk), ksn)
	if err != nil {
		b.t.Fatal(err)
	}
	return d
}

func (b DUKPTBench) aesBDK(value []byte) *key {
	b.t.Helper()
	r := recipes[BDK][0]
	handle, err := b.w.m.CreateSecret(b.w.session, inSession(r.template("", "", len(value))), value)
	if err != nil {
		b.t.Fatal(err)
	}
	return &key{Key: Key{Label: "aes", Use: BDK}, handle: handle, bdk: base{bytes: len(value)}, recipe: r}
}

func (b DUKPTBench) tdesBDK(value []byte) *key {
	b.t.Helper()
	mem, r := &b.w.mem.tdes, recipes[BDK][1]
	k := &key{Key: Key{Label: "tdes", Use: BDK}, recipe: r}
	for _, handle := range []*pkcs11.ObjectHandle{&k.handle, &k.bdk.variant} {
		copy(mem.value[:], value)
		if handle == &k.bdk.variant {
			for i, m := range variantMask {
				mem.value[i] ^= m
			}
		}
		var err error
		if *handle, err = b.w.secretTDES(mem, r); err != nil {
			b.t.Fatal(err)
		}
	}
	return k
}

// value reads a key of the session.
func (b DUKPTBench) value(k pkcs11.ObjectHandle, err error) []byte {
	b.t.Helper()
	out := make([]byte, 64)
	if err != nil {
		b.t.Fatal(err)
	}
	n, err := b.w.m.ReadValue(b.w.session, k, pkcs11.CKA_VALUE, out)
	if err != nil {
		b.t.Fatal(err)
	}
	return out[:n]
}

// Initial is the initial key of a device of AES-DUKPT.
func (b DUKPTBench) Initial(bdk []byte, ksn card.KSN) []byte {
	b.t.Helper()
	d := b.derivation(bdk, ksn)
	var device [8]byte
	copy(device[:], ksn.Bytes())
	return b.value(d.derive(d.bdk.handle, usageInitial, d.kind, device, open(d.kind)))
}

// Intermediate is the key from which those of a transaction are derived.
func (b DUKPTBench) Intermediate(bdk []byte, ksn card.KSN) []byte {
	b.t.Helper()
	d, counter := b.derivation(bdk, ksn), ksn.Counter()
	initial, err := d.initial()
	if err != nil {
		b.t.Fatal(err)
	}
	parent, err := d.descend(initial, counter&(counter-1)) // all but the last step, whose key can be read
	if err != nil {
		b.t.Fatal(err)
	}
	return b.value(d.derive(parent, usageDerivation, d.kind, d.context(counter), open(d.kind)))
}

// Working is a key of a transaction, by the vectors' names of its usage and kind: its value, and its handle.
func (b DUKPTBench) Working(bdk []byte, ksn card.KSN, usage, kind string) ([]byte, pkcs11.ObjectHandle) {
	b.t.Helper()
	for name, of := range map[string]bool{usage: usagesByName[usage] != 0, kind: kindsByName[kind].bytes != 0} {
		if !of {
			b.t.Fatalf("nobody knows a key %q", name)
		}
	}
	k, err := b.derivation(bdk, ksn).working(usagesByName[usage], kindsByName[kind], open(kindsByName[kind]))
	return b.value(k, err), k
}

// Transaction is the key of a transaction of TDES-DUKPT; of a counter 0, the initial key.
func (b DUKPTBench) Transaction(bdk []byte, ksn card.KSN) []byte {
	b.t.Helper()
	defer b.w.mem.clear()
	if err := b.w.deriveTDES(&b.w.mem.tdes, b.tdesBDK(bdk), ksn); err != nil {
		b.t.Fatal(err)
	}
	return append([]byte(nil), b.w.mem.tdes.key[:]...)
}

// Variant is a working key of TDES-DUKPT: "pin", "mac_request", "mac_response", "data_request", "data_response". It enciphers.
func (b DUKPTBench) Variant(bdk []byte, ksn card.KSN, name string) pkcs11.ObjectHandle {
	b.t.Helper()
	defer b.w.mem.clear()
	variant, known := map[string][desBytes]byte{"pin": variantPIN, "mac_request": variantMAC, "mac_response": variantMACAnswer,
		"data_request": variantData, "data_response": variantDataAnswer}[name]
	if !known {
		b.t.Fatalf("nobody knows a variant %q", name)
	}
	err := b.w.deriveTDES(&b.w.mem.tdes, b.tdesBDK(bdk), ksn)
	var k pkcs11.ObjectHandle
	if err == nil {
		enciphers := recipe{algorithm: TDES, flags: []uint{pkcs11.CKA_ENCRYPT}, mechanisms: []uint{pkcs11.CKM_DES3_ECB, pkcs11.CKM_DES3_CBC}}
		k, err = b.w.workingTDES(&b.w.mem.tdes, variant, variant == variantData || variant == variantDataAnswer, enciphers)
	}
	if err != nil {
		b.t.Fatal(err)
	}
	return k
}

// MAC is what MAC makes under DUKPT, in full: of AES of a BDK of that many bytes, else of TDES.
func (b DUKPTBench) MAC(bdk []byte, of MACKey, data string) []byte {
	b.t.Helper()
	k := b.tdesBDK
	if of.KSN.IsAES() {
		k = b.aesBDK
	}
	mac, err := b.w.macOfDevice(k(bdk), of, []byte(data))
	if err != nil {
		b.t.Fatal(err)
	}
	return mac
}

// TDESCMAC is CMAC by a key that enciphers, as tokens without CKM_DES3_CMAC have it.
func (b DUKPTBench) TDESCMAC(k pkcs11.ObjectHandle, data string) []byte {
	b.t.Helper()
	mac, err := cmacByCBC(b.w.m, b.w.session, k, append(make([]byte, 0, len(data)+desBytes), data...))
	if err != nil {
		b.t.Fatal(err)
	}
	return mac
}

// Encipher enciphers with a key and a mechanism.
func (b DUKPTBench) Encipher(k pkcs11.ObjectHandle, mechanism uint, iv, data []byte) []byte {
	b.t.Helper()
	out := make([]byte, len(data))
	err := b.w.m.EncryptInit(b.w.session, []*pkcs11.Mechanism{pkcs11.NewMechanism(mechanism, iv)}, k)
	if err == nil {
		_, err = b.w.m.EncryptTo(b.w.session, data, out)
	}
	if err != nil {
		b.t.Fatal(err)
	}
	return out
}

// HMAC signs with a key, or says that the token does not take one so short.
func (b DUKPTBench) HMAC(k pkcs11.ObjectHandle, data string) (mac []byte, tooShort bool) {
	b.t.Helper()
	mac, err := signed(b.w.m, b.w.session, pkcs11.CKM_SHA256_HMAC, k, []byte(data))
	if errors.Is(err, pkcs11.Error(pkcs11.CKR_KEY_SIZE_RANGE)) {
		return nil, true
	}
	if err != nil {
		b.t.Fatal(err)
	}
	return mac, false
}
