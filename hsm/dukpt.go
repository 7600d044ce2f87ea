package hsm

import (
	"container/list"
	"crypto/subtle"
	"encoding/binary"
	"errors"
	"fmt"
	"math/bits"
	"regexp"
	"slices"
	"strings"

	"github.com/miekg/pkcs11"

	"acquirerd/card"
)

// DUKPT: a device has an initial key of its own, derived from a base derivation key (BDK) and its name, and makes of it another key for each
// transaction. With what it enciphers comes its key serial number, by which the key is derived here anew. See the package documentation, "DUKPT".

// A WorkingKey is the kind of key under which a device of AES-DUKPT enciphers PIN blocks. The default is TDES2 for a format that is for TDES, and for
// format 4 AES of the length of the BDK. Of TDES-DUKPT there is one kind.
type WorkingKey string

// The kinds of working keys (ANS X9.24-3:2017, 6.3).
const (
	TDES2  WorkingKey = "2tdea"
	TDES3  WorkingKey = "3tdea"
	AES128 WorkingKey = "aes-128"
	AES192 WorkingKey = "aes-192"
	AES256 WorkingKey = "aes-256"
)

// WorkingKeys lists all of them.
var WorkingKeys = []WorkingKey{TDES2, TDES3, AES128, AES192, AES256}

// Algorithm is what a working key is for.
func (k WorkingKey) Algorithm() Algorithm {
	if keyKinds[k].keyType == pkcs11.CKK_AES {
		return AES
	}
	return TDES
}

// CheckWorkingKey fails with ErrPINFormat if no keys of a kind for PIN blocks of a format are derived from the bdk key of a label: the token says of which
// algorithm and length that is. Or with ErrUnavailable if the keys are not known at present.
func (h *HSM) CheckWorkingKey(label string, f Format, k WorkingKey) error {
	g := h.gen.Load()
	if g == nil || g.keys[label] == nil {
		return fmt.Errorf("%w: key %q is not known at present", ErrUnavailable, label)
	}
	_, err := g.key(label).pinKind(f, k)
	return err
}

// A keyKind is a kind of derived key.
type keyKind struct {
	indicator uint16 // of the algorithm (X9.24-3, 6.3)
	bytes     int
	strength  int // bits (SP 800-57 part 1, table 2)
	keyType   uint
}

var keyKinds = map[WorkingKey]keyKind{
	TDES2:  {0x0000, tdes2Bytes, 80, pkcs11.CKK_DES2},
	TDES3:  {0x0001, tdes3Bytes, 112, pkcs11.CKK_DES3},
	AES128: {0x0002, 16, 128, pkcs11.CKK_AES},
	AES192: {0x0003, 24, 192, pkcs11.CKK_AES},
	AES256: {0x0004, 32, 256, pkcs11.CKK_AES},
}

// hmacKind is a key for HMAC, of 16, 24 or 32 bytes.
func hmacKind(bytes int) keyKind { return keyKind{0x0005, bytes, 8 * bytes, pkcs11.CKK_GENERIC_SECRET} }

// aesKind is the kind of an AES key of so many bytes.
func aesKind(bytes int) keyKind {
	for _, k := range []WorkingKey{AES128, AES192, AES256} {
		if keyKinds[k].bytes == bytes {
			return keyKinds[k]
		}
	}
	return keyKind{}
}

// A keyUsage says what a derived key is for (X9.24-3, 6.3). Generation and verification, encryption and decryption are the device's.
type keyUsage uint16

const (
	usageKEK        keyUsage = 0x0002
	usagePIN        keyUsage = 0x1000
	usageMAC        keyUsage = 0x2000 // of what the device sends
	usageMACAnswer  keyUsage = 0x2001 // of what the device is sent
	usageMACBoth    keyUsage = 0x2002
	usageData       keyUsage = 0x3000 // of what the device sends
	usageDataAnswer keyUsage = 0x3001 // of what the device is sent
	usageDataBoth   keyUsage = 0x3002
	usageDerivation keyUsage = 0x8000
	usageInitial    keyUsage = 0x8001
)

// derivationData is what is enciphered to make a key (X9.24-3, 6.3): a block for each 16 bytes of it, numbered. It is not secret. The device is
// 8 bytes of its name for an initial key, else the last 4 of them and the counter.
func derivationData(usage keyUsage, kind keyKind, device [8]byte) []byte {
	const version = 1
	data := make([]byte, (kind.bytes+aesBytes-1)/aesBytes*aesBytes)
	for i := 0; i < len(data); i += aesBytes {
		block := data[i : i+aesBytes]
		block[0], block[1] = version, byte(i/aesBytes+1)
		binary.BigEndian.PutUint16(block[2:], uint16(usage))        // what for
		binary.BigEndian.PutUint16(block[4:], kind.indicator)       // of what
		binary.BigEndian.PutUint16(block[6:], uint16(8*kind.bytes)) //nolint:gosec // at most 256 bits
		copy(block[8:], device[:])
	}
	return data
}

// A base is what a bdk key has beside its handle.
type base struct {
	bytes int // of an AES key

	// Of a TDES key, the object with its value XOR variantMask, and the check value of that.
	variant pkcs11.ObjectHandle
	kcv     string
}

// A TDES-DUKPT BDK is two objects, because half of each initial key is made with the BDK XOR variantMask, and no object gives another one its
// value with some bits changed: not on every token, and never without a flag that lets others do more. Both are made at once from the clear value, at
// its ceremony, and only encipher. So the BDK stays in the token; what is ever clear is the initial key of one device, for the length of a call. The
// second one's CKA_ID says of which key it is the variant, and its own check value, so that an operator does not mix two ceremonies; nothing proves it.
const variantSuffix = "/variant"

// variantOf is the label of the variant of a TDES BDK.
func variantOf(label string) string { return label + variantSuffix }

// variantID ends its CKA_ID. Before it stands the label: in NSS's database a new key takes the place of the one that has its CKA_ID, without a word.
func variantID(kcv, own string) string { return "variant-of:" + kcv + " kcv:" + own }

// variantOfKCV is in the CKA_ID of a variant, and of no other key.
var variantOfKCV = regexp.MustCompile(`(?:^| )variant-of:[0-9A-F]{6} `)

// findBase completes a bdk key, or says what is wrong with it.
func (k *key) findBase(m module, s pkcs11.SessionHandle) (problem string, err error) {
	if k.recipe.algorithm == AES {
		n, err := number(m, s, k.handle, pkcs11.CKA_VALUE_LEN)
		k.bdk.bytes = int(n)
		return "", err
	}
	label := variantOf(k.Label)
	handles, err := find(m, s, label)
	if err != nil {
		return "", err
	}
	if len(handles) != 1 {
		return fmt.Sprintf("has %d variants %q in the token, not one: TDES-DUKPT needs it, and it is made with the key", len(handles), label), nil
	}
	problems, err := k.recipe.judge(m, s, handles[0])
	if err != nil {
		return "", err
	}
	if len(problems) > 0 {
		return fmt.Sprintf("has a variant %q that %s", label, strings.Join(problems, ", ")), nil
	}
	own, err := k.recipe.kcv(m, s, handles[0])
	if err != nil {
		return "", err
	}
	id, _, err := attribute(m, s, handles[0], pkcs11.CKA_ID)
	if err != nil {
		return "", err
	}
	if !strings.HasSuffix(string(id), " "+variantID(strings.ToUpper(k.KCV), own)) {
		return fmt.Sprintf("has a variant %q that was not made with it, by its CKA_ID", label), nil
	}
	k.bdk.variant, k.bdk.kcv = handles[0], own
	return "", nil
}

// withPINKey lends the key under which a device has enciphered a PIN block: derived for this call, fit for the way that the other key goes, and
// destroyed when do has returned. Errors: ErrKSN, and those of do.
func (w *worker) withPINKey(bdk *key, c Card, way Way, do func(*key) error) error {
	derived, err := w.pinKey(bdk, c, way)
	if err != nil {
		return err
	}
	err = do(derived)
	if also := w.m.DestroyObject(w.session, derived.handle); also != nil {
		err = errors.Join(err, fmt.Errorf("destroying the key of a PIN block: %w", also))
	}
	return err
}

func (w *worker) pinKey(bdk *key, c Card, way Way) (*key, error) {
	kind, err := bdk.pinKind(c.FromFormat, c.Working)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	r := pinRecipe(c.FromFormat.Algorithm(), way)
	derived := &key{Key: Key{Label: bdk.Label, Use: PINIn}, recipe: r, fleeting: true}
	if bdk.recipe.algorithm == TDES {
		defer w.mem.clear()
		err := w.deriveTDES(&w.mem.tdes, bdk, c.KSN)
		if err == nil {
			derived.handle, err = w.workingTDES(&w.mem.tdes, variantPIN, false, r)
		}
		return derived, err
	}
	d, err := w.newDerivation(bdk, c.KSN)
	if err != nil {
		return nil, err
	}
	derived.handle, err = d.working(usagePIN, kind, kind.template(r))
	return derived, err
}

// pinRecipe is that of a pin-in key of an algorithm that goes a way.
func pinRecipe(algorithm Algorithm, way Way) recipe {
	for _, r := range recipes[PINIn] {
		if r.algorithm == algorithm && r.way == way {
			return r
		}
	}
	return recipe{}
}

// pinKind is the kind of the keys of PIN blocks that are derived from a bdk key. Error: ErrPINFormat.
func (k *key) pinKind(f Format, wanted WorkingKey) (keyKind, error) {
	switch {
	case k.recipe.algorithm == TDES && (wanted != "" || f.Algorithm() != TDES):
		return keyKind{}, fmt.Errorf("%w: key %q is for TDES-DUKPT, which has one kind of PIN key, of TDES", ErrPINFormat, k.Label)
	case wanted == "" && f.Algorithm() == AES:
		return aesKind(k.bdk.bytes), nil
	case wanted == "":
		return keyKinds[TDES2], nil
	}
	kind, known := keyKinds[wanted]
	switch {
	case !known || wanted.Algorithm() != f.Algorithm():
		return keyKind{}, fmt.Errorf("%w: %q is no kind of key for %s", ErrPINFormat, string(wanted), f.orDefault())
	case kind.strength > 8*k.bdk.bytes:
		return keyKind{}, fmt.Errorf("%w: %s keys are stronger than key %q, from which they would be derived (X9.24-3, 6.2)", ErrPINFormat, wanted, k.Label)
	}
	return kind, nil
}

// A derivation is of one device by one worker, inside the token.
type derivation struct {
	w    *worker
	bdk  *key
	kind keyKind // of the BDK, of the initial key and of what is between that and a working key
	ksn  card.KSN
}

// newDerivation refuses a KSN that is not of this BDK (ErrKSN).
func (w *worker) newDerivation(bdk *key, ksn card.KSN) (derivation, error) {
	if bdk.recipe.algorithm != AES || !ksn.IsAES() {
		return derivation{}, fmt.Errorf("%w: it is of another algorithm", ErrKSN)
	}
	return derivation{w, bdk, aesKind(bdk.bdk.bytes), ksn}, nil
}

// derive makes one key of another.
func (d derivation) derive(base pkcs11.ObjectHandle, usage keyUsage, kind keyKind, device [8]byte, template []*pkcs11.Attribute) (pkcs11.ObjectHandle, error) {
	return d.w.m.DeriveString(d.w.session, pkcs11.CKM_AES_ECB_ENCRYPT_DATA, derivationData(usage, kind, device), base, template)
}

// template is that of a derived key, which ends with its session at the latest. A DES key has its length by its type. CKA_MODIFIABLE is not said:
// SoftHSM 2.6.1 derives no key without it (it could not write the value). Who is logged in could give such a key other flags while it lasts, and
// could as well derive it with those.
func (k keyKind) template(r recipe) []*pkcs11.Attribute {
	t := slices.DeleteFunc(inSession(r.template("", "", k.bytes)), func(a *pkcs11.Attribute) bool {
		return a.Type == pkcs11.CKA_MODIFIABLE || a.Type == pkcs11.CKA_KEY_TYPE
	})
	t = append(t, pkcs11.NewAttribute(pkcs11.CKA_KEY_TYPE, k.keyType))
	if k.keyType != pkcs11.CKK_DES2 && k.keyType != pkcs11.CKK_DES3 {
		t = append(t, pkcs11.NewAttribute(pkcs11.CKA_VALUE_LEN, k.bytes))
	}
	return t
}

// derivesOnly is what an initial key and those between it and a working key are for.
var derivesOnly = recipe{algorithm: AES, flags: []uint{pkcs11.CKA_DERIVE}, mechanisms: []uint{pkcs11.CKM_AES_ECB_ENCRYPT_DATA}}

// initial returns the initial key of the device: the worker's, or a new one.
func (d derivation) initial() (pkcs11.ObjectHandle, error) {
	name := deviceName{d.bdk.Label, d.ksn.Device()}
	if k, known := d.w.initialKeys.find(name); known {
		return k, nil
	}
	var device [8]byte
	copy(device[:], d.ksn.Bytes())
	k, err := d.derive(d.bdk.handle, usageInitial, d.kind, device, d.kind.template(derivesOnly))
	if err != nil {
		return 0, fmt.Errorf("deriving initial key: %w", err)
	}
	if old, full := d.w.initialKeys.enter(name, k); full {
		if err := d.w.m.DestroyObject(d.w.session, old); err != nil {
			return 0, fmt.Errorf("destroying the oldest initial key: %w", err)
		}
	}
	return k, nil
}

// working returns the key of this counter for a usage, which its caller destroys. Of a counter with n ones it takes n+1 derivations, and one more
// without the initial key; what is between is destroyed whatever happens. Nothing of it leaves the token.
func (d derivation) working(usage keyUsage, kind keyKind, template []*pkcs11.Attribute) (pkcs11.ObjectHandle, error) {
	initial, err := d.initial()
	if err != nil {
		return 0, err
	}
	k, err := d.descend(initial, d.ksn.Counter())
	if err != nil {
		return 0, fmt.Errorf("deriving key of a transaction: %w", err)
	}
	working, err := d.derive(k, usage, kind, d.context(d.ksn.Counter()), template)
	if err != nil {
		err = fmt.Errorf("deriving working key: %w", err)
	}
	return d.w.instead(working, k, initial, err)
}

// descend returns the derivation key of a counter: one step for each of its ones, from the highest (X9.24-3, 6.3).
func (d derivation) descend(initial pkcs11.ObjectHandle, counter uint32) (pkcs11.ObjectHandle, error) {
	k, at, template := initial, uint32(0), d.kind.template(derivesOnly)
	for rest := counter; rest != 0; {
		one := uint32(1) << (bits.Len32(rest) - 1)
		rest, at = rest^one, at|one
		next, err := d.derive(k, usageDerivation, d.kind, d.context(at), template)
		if k, err = d.w.instead(next, k, initial, err); err != nil {
			return 0, err
		}
	}
	return k, nil
}

// context is the second half of derivation data: the end of the device's name, and a counter.
func (d derivation) context(counter uint32) (context [8]byte) {
	copy(context[:4], d.ksn.Bytes()[4:8])
	binary.BigEndian.PutUint32(context[4:], counter)
	return context
}

// instead destroys the key that another was derived from, unless it is one to keep, and returns the other. With an error it returns none.
func (w *worker) instead(next, k, kept pkcs11.ObjectHandle, err error) (pkcs11.ObjectHandle, error) {
	if k != kept {
		if also := w.m.DestroyObject(w.session, k); also != nil {
			if err == nil {
				also = errors.Join(also, w.m.DestroyObject(w.session, next))
			}
			err = errors.Join(err, also)
		}
	}
	if err != nil {
		return 0, err
	}
	return next, nil
}

// mostInitialKeys bounds the initial keys that each worker keeps in the token, as objects of its session. Over it, the one that was not used for
// the longest time is destroyed. Deriving one anew takes one derivation of those that a transaction needs anyway.
const mostInitialKeys = 256

// A deviceName names an initial key.
type deviceName struct {
	bdk string // label
	ksn card.KSN
}

// initialKeys are those of one worker in one generation. The zero value is empty.
type initialKeys struct {
	known map[deviceName]*list.Element
	order list.List // of initialKey; the one used last is in front
}

type initialKey struct {
	deviceName
	handle pkcs11.ObjectHandle
}

func (c *initialKeys) find(name deviceName) (pkcs11.ObjectHandle, bool) {
	at, known := c.known[name]
	if !known {
		return 0, false
	}
	c.order.MoveToFront(at)
	return at.Value.(initialKey).handle, true
}

// enter keeps a key, and returns the one that has no room any more.
func (c *initialKeys) enter(name deviceName, k pkcs11.ObjectHandle) (old pkcs11.ObjectHandle, full bool) {
	if c.known == nil {
		c.known = map[deviceName]*list.Element{}
	}
	c.known[name] = c.order.PushFront(initialKey{name, k})
	if c.order.Len() <= mostInitialKeys {
		return 0, false
	}
	oldest := c.order.Remove(c.order.Back()).(initialKey)
	delete(c.known, oldest.deviceName)
	return oldest.handle, true
}

// forget empties it: the keys were of a session that is gone, or whose token is.
func (c *initialKeys) forget() { *c = initialKeys{} }

// TDES-DUKPT (ANS X9.24-1:2009, annex A) uses keys as data: what is derived is E(K, R XOR counter) XOR R, with R the right half of the key. No
// mechanism of PKCS#11 does that, so that the key of a transaction and those on the way to it are in this process's locked memory. The cipher
// itself is the token's.

// variantMask makes of a key the one that derives left halves (X9.24-1, A.2).
var variantMask = [tdes2Bytes]byte{0xC0, 0xC0, 0xC0, 0xC0, 0, 0, 0, 0, 0xC0, 0xC0, 0xC0, 0xC0, 0, 0, 0, 0}

// Variants of the key of a transaction (X9.24-1, A.4.1): XORed to each of its halves.
var (
	variantPIN        = [desBytes]byte{7: 0xFF}
	variantMAC        = [desBytes]byte{6: 0xFF}
	variantMACAnswer  = [desBytes]byte{4: 0xFF}
	variantData       = [desBytes]byte{5: 0xFF}
	variantDataAnswer = [desBytes]byte{3: 0xFF}
)

// A tdesMemory is where clear keys of TDES-DUKPT are. It is part of a worker's locked scratch, and all zeros between calls.
type tdesMemory struct {
	key    [tdes2Bytes]byte // of the counter as far as it has been gone through
	next   [tdes2Bytes]byte
	value  [tdes2Bytes]byte // of an object that is made
	left   [desBytes]byte
	right  [desBytes]byte
	answer [2 * desBytes]byte // room for a token that wants more than it fills
}

func (t *tdesMemory) clear() { *t = tdesMemory{} }

// deriveTDES leaves the key of a transaction in mem.key.
func (w *worker) deriveTDES(mem *tdesMemory, bdk *key, ksn card.KSN) error {
	if bdk.recipe.algorithm != TDES || ksn.IsAES() {
		return fmt.Errorf("%w: it is of another algorithm", ErrKSN)
	}
	device := ksn.Device().Bytes()
	for half, k := range []pkcs11.ObjectHandle{bdk.handle, bdk.bdk.variant} { // A.6: the initial key, of the left 8 bytes
		if err := w.encipherTo(mem, mem.key[half*desBytes:(half+1)*desBytes], k, device[:desBytes]); err != nil {
			return fmt.Errorf("deriving initial key: %w", err)
		}
	}
	register := binary.BigEndian.Uint64(device[len(device)-desBytes:])
	for rest := ksn.Counter(); rest != 0; {
		one := uint32(1) << (bits.Len32(rest) - 1)
		rest, register = rest^one, register|uint64(one)
		if err := w.stepTDES(mem, register); err != nil {
			return fmt.Errorf("deriving key of a transaction: %w", err)
		}
	}
	return nil
}

// stepTDES is the non-reversible key generation of A.2: mem.key becomes the next one.
func (w *worker) stepTDES(mem *tdesMemory, register uint64) error {
	var data [desBytes]byte
	binary.BigEndian.PutUint64(data[:], register)
	for _, out := range [][]byte{mem.next[desBytes:], mem.next[:desBytes]} { // the right half by the key, the left one by its variant
		left, right := mem.key[:desBytes], mem.key[desBytes:]
		subtle.XORBytes(mem.left[:], data[:], right)
		if err := w.encipherDES(mem, mem.right[:], left, mem.left[:]); err != nil {
			return err
		}
		subtle.XORBytes(out, mem.right[:], right)
		subtle.XORBytes(mem.key[:], mem.key[:], variantMask[:])
	}
	mem.key = mem.next
	return nil
}

// encipherDES enciphers one block under a key of single length: as TDES under that key twice, which is the same (E D E with one key).
func (w *worker) encipherDES(mem *tdesMemory, out, single, block []byte) (err error) {
	copy(mem.value[:desBytes], single)
	copy(mem.value[desBytes:], single)
	k, err := w.secretTDES(mem, recipe{algorithm: TDES, flags: []uint{pkcs11.CKA_ENCRYPT}, mechanisms: tdesPIN})
	if err != nil {
		return err
	}
	err = w.encipherTo(mem, out, k, block)
	return errors.Join(err, w.m.DestroyObject(w.session, k))
}

// secretTDES makes an object of the session from mem.value, whose parity becomes odd: the cipher does not look at it, but a token may.
func (w *worker) secretTDES(mem *tdesMemory, r recipe) (pkcs11.ObjectHandle, error) {
	for i, b := range mem.value {
		mem.value[i] = b&^1 | byte(bits.OnesCount8(b&^1)+1)&1 //nolint:gosec // at most 8
	}
	k, err := w.m.CreateSecret(w.session, inSession(r.template("", "", tdes2Bytes)), mem.value[:])
	clear(mem.value[:])
	return k, err
}

// encipherTo enciphers one block of TDES into locked memory.
func (w *worker) encipherTo(mem *tdesMemory, out []byte, k pkcs11.ObjectHandle, block []byte) error {
	if err := w.m.EncryptInit(w.session, mechanism(pkcs11.CKM_DES3_ECB), k); err != nil {
		return err
	}
	n, err := w.m.EncryptTo(w.session, block, mem.answer[:])
	if err == nil && n != desBytes {
		err = pkcs11.Error(pkcs11.CKR_DEVICE_ERROR)
	}
	if err == nil {
		copy(out, mem.answer[:desBytes])
	}
	clear(mem.answer[:])
	return err
}

// workingTDES makes a key of the session from the key of a transaction in mem.key and a variant, which its caller destroys. A key for data is
// enciphered under itself first (X9.24-1, A.4.1), so that nobody who has it comes back to the others.
func (w *worker) workingTDES(mem *tdesMemory, variant [desBytes]byte, oneWay bool, r recipe) (pkcs11.ObjectHandle, error) {
	vary := func() {
		subtle.XORBytes(mem.value[:desBytes], mem.key[:desBytes], variant[:])
		subtle.XORBytes(mem.value[desBytes:], mem.key[desBytes:], variant[:])
	}
	vary()
	if !oneWay {
		return w.secretTDES(mem, r)
	}
	k, err := w.secretTDES(mem, recipe{algorithm: TDES, flags: []uint{pkcs11.CKA_ENCRYPT}, mechanisms: tdesPIN})
	if err != nil {
		return 0, err
	}
	vary()
	mem.next = mem.value
	for half := 0; half < tdes2Bytes && err == nil; half += desBytes {
		err = w.encipherTo(mem, mem.value[half:half+desBytes], k, mem.next[half:half+desBytes])
	}
	if err = errors.Join(err, w.m.DestroyObject(w.session, k)); err != nil {
		return 0, err
	}
	return w.secretTDES(mem, r)
}

// macOfDevice makes a MAC under a key of a device, which is destroyed with it: of AES-DUKPT by CMAC under AES as long as the BDK, of TDES-DUKPT by X9.19.
func (w *worker) macOfDevice(bdk *key, of MACKey, data []byte) (mac []byte, err error) {
	var keys []pkcs11.ObjectHandle
	defer func() {
		for _, k := range keys {
			if also := w.m.DestroyObject(w.session, k); also != nil {
				err = errors.Join(err, fmt.Errorf("destroying the key of a MAC: %w", also))
			}
		}
	}()
	hold := func(k pkcs11.ObjectHandle, err error) (pkcs11.ObjectHandle, error) {
		if err == nil {
			keys = append(keys, k)
		}
		return k, err
	}
	if bdk.recipe.algorithm == AES {
		d, err := w.newDerivation(bdk, of.KSN)
		if err != nil {
			return nil, err
		}
		usage := map[Direction]keyUsage{Request: usageMAC, Response: usageMACAnswer}[of.Direction]
		k, err := hold(d.working(usage, d.kind, d.kind.template(macOnly)))
		if err != nil {
			return nil, err
		}
		return signed(w.m, w.session, pkcs11.CKM_AES_CMAC, k, data)
	}
	defer w.mem.clear()
	mem := &w.mem.tdes
	if err := w.deriveTDES(mem, bdk, of.KSN); err != nil {
		return nil, err
	}
	variant := map[Direction][desBytes]byte{Request: variantMAC, Response: variantMACAnswer}[of.Direction]
	whole, err := hold(w.workingTDES(mem, variant, false, chainOnly))
	if err != nil {
		return nil, err
	}
	copy(mem.key[desBytes:], mem.key[:desBytes]) // its left half twice
	left, err := hold(w.workingTDES(mem, variant, false, chainOnly))
	if err != nil {
		return nil, err
	}
	return retailMAC(w.m, w.session, left, whole, pad(data, of.Padding))
}

// What the keys of MACs are for.
var (
	macOnly   = recipe{algorithm: AES, flags: []uint{pkcs11.CKA_SIGN}, mechanisms: []uint{pkcs11.CKM_AES_CMAC}}
	chainOnly = recipe{algorithm: TDES, flags: []uint{pkcs11.CKA_ENCRYPT}, mechanisms: []uint{pkcs11.CKM_DES3_CBC}}
)

// checkBDK is the CMAC of a block of zeros, as of other AES keys (ANS X9.24-2). A key that only derives shows what it enciphers as the value of another
// key, which is made to be read. That is no key: derivation data begin with 01, and are neither zeros nor what becomes of them.
func checkBDK(m module, s pkcs11.SessionHandle, k pkcs11.ObjectHandle) (string, error) {
	zeros, err := showDerived(m, s, k, make([]byte, aesBytes))
	if err != nil {
		return "", err
	}
	mac, err := showDerived(m, s, k, cmacSubkey(zeros))
	if err != nil {
		return "", err
	}
	return kcvText(mac), nil
}

func showDerived(m module, s pkcs11.SessionHandle, k pkcs11.ObjectHandle, block []byte) ([]byte, error) {
	o, err := m.DeriveString(s, pkcs11.CKM_AES_ECB_ENCRYPT_DATA, block, k, append(openSecret(), pkcs11.NewAttribute(pkcs11.CKA_VALUE_LEN, aesBytes)))
	if err != nil {
		return nil, err
	}
	value, _, err := attribute(m, s, o, pkcs11.CKA_VALUE)
	if also := m.DestroyObject(s, o); err == nil {
		err = also
	}
	return exactly(aesBytes, value, err)
}
