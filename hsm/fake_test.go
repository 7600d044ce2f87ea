package hsm

import (
	"bytes"
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/des"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"acquirerd/card"

	"github.com/miekg/pkcs11"
	"github.com/prometheus/client_golang/prometheus"
)

// A fakeModule behaves as a PKCS#11 module with one token whose errors and delays are scripted. It enforces its
// contract: a handle of an earlier generation names another key or nothing, and C_Finalize during a call fails the test.
type fakeModule struct {
	t  *testing.T
	mu sync.Mutex

	// Scripted by tests, under mu.
	pin          string
	flags        uint      // of the token
	keys         []fakeKey // in the order of their handles
	singleBlocks bool      // its pan-seal and pan-token keys encipher single blocks; else they do GCM and HMAC

	unwrap bool                                          // it unwraps, wraps and derives by itself, as NSS's does
	noData bool                                          // it keeps no objects of data, as NSS's does not
	script func(op string, s pkcs11.SessionHandle) error // asked before each call, without mu: it may block
	late   func(k fakeKey) error                         // asked when an object is made, with mu: its making is answered so

	initialised, loggedIn bool
	sessions              map[pkcs11.SessionHandle]*fakeOperation
	handles               uint // of sessions handed out in this life: they begin at 1 again after Initialize
	found                 []pkcs11.ObjectHandle
	inside                int // calls in a session

	lives, logins int
	clear         [][]byte // every clear text that C_Decrypt and C_DecryptUpdate gave, where the caller has it: not to be read after the HSM's end
	deciphered    [][]byte // the same, as it was
}

type fakeKey struct {
	label string
	use   Use
	isAES bool // where its use has recipes of both
	value []byte
	not   map[uint]any // attributes that differ from what its use demands

	data  bool                 // it is an object of data, with the attributes in not
	gone  bool                 // destroyed: its handle names nothing, until Initialize gives all handles anew
	owner pkcs11.SessionHandle // of a key that ends with its session
}

// isMark reports whether it is the mark of a key change, of either kind.
func (k fakeKey) isMark() bool { return k.data || strings.HasSuffix(k.label, markSuffix) }

// A fakeOperation is what a session is in: nothing while key is nil.
type fakeOperation struct {
	key       *fakeKey
	began     string // "EncryptInit", "DecryptInit" ...
	mechanism *pkcs11.Mechanism
	chain     []byte // of CBC: what the next block is chained to
}

// fakes numbers the modules: some tests leave theirs with a hung call, and so claimed for ever.
var fakes atomic.Int64

const fakePIN = "9876543210"

func newFake(t *testing.T) *fakeModule {
	sum := func(s string) []byte { b := sha256.Sum256([]byte(s)); return b[:] }
	return &fakeModule{t: t, pin: fakePIN, keys: []fakeKey{
		{label: "in", use: PINIn, value: bytesOf(t, "0123456789ABCDEFFEDCBA9876543210")},
		{label: "out", use: PINOut, value: bytesOf(t, "112233445566778889ABCDEF01234567")},
		{label: "seal", use: PANSeal, value: sum("seal")},
		{label: "token", use: PANToken, value: sum("token")},
	}}
}

func bytesOf(t *testing.T, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// before runs the script, then checks module and session.
func (f *fakeModule) before(op string, s pkcs11.SessionHandle) (*fakeOperation, error) {
	f.mu.Lock()
	f.inside++
	script := f.script
	f.mu.Unlock()
	var err error
	if script != nil {
		err = script(op, s)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.inside--
	switch {
	case err != nil:
		return nil, err
	case !f.initialised:
		return nil, pkcs11.Error(pkcs11.CKR_CRYPTOKI_NOT_INITIALIZED)
	case s != 0 && f.sessions[s] == nil:
		return nil, pkcs11.Error(pkcs11.CKR_SESSION_HANDLE_INVALID)
	}
	return f.sessions[s], nil
}

func (f *fakeModule) Initialize(...pkcs11.InitializeOption) error {
	f.mu.Lock()
	script := f.script
	f.mu.Unlock()
	if script != nil {
		if err := script("Initialize", 0); err != nil {
			return err
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.initialised {
		return pkcs11.Error(pkcs11.CKR_CRYPTOKI_ALREADY_INITIALIZED)
	}
	f.keys = slices.DeleteFunc(slices.Clone(f.keys), func(k fakeKey) bool { return k.gone || k.owner != 0 })
	f.initialised, f.loggedIn, f.handles, f.sessions = true, false, 0, map[pkcs11.SessionHandle]*fakeOperation{}
	f.lives++
	return nil
}

func (f *fakeModule) Finalize() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.inside > 0 {
		f.t.Errorf("C_Finalize while %d calls were in the module", f.inside)
	}
	if !f.initialised {
		return pkcs11.Error(pkcs11.CKR_CRYPTOKI_NOT_INITIALIZED)
	}
	f.initialised = false
	return nil
}

// loseSessions closes all sessions, as a network HSM does that was restarted.
func (f *fakeModule) loseSessions() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.loggedIn, f.sessions = false, map[pkcs11.SessionHandle]*fakeOperation{}
}

func (f *fakeModule) set(change func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change()
}

func (f *fakeModule) count(n *int) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return *n
}

func (f *fakeModule) GetInfo() (pkcs11.Info, error) {
	return pkcs11.Info{ManufacturerID: "test", LibraryDescription: "fake"}, nil
}

func (f *fakeModule) GetSlotList(bool) ([]uint, error) { return []uint{7}, nil }

func (f *fakeModule) GetTokenInfo(uint) (pkcs11.TokenInfo, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return pkcs11.TokenInfo{Label: "fake", Flags: f.flags}, nil
}

func (f *fakeModule) OpenSession(uint, uint) (pkcs11.SessionHandle, error) {
	if _, err := f.before("OpenSession", 0); err != nil {
		return 0, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.handles++
	s := pkcs11.SessionHandle(f.handles)
	f.sessions[s] = &fakeOperation{}
	return s, nil
}

func (f *fakeModule) CloseSession(s pkcs11.SessionHandle) error {
	if _, err := f.before("CloseSession", s); err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.sessions, s)
	for i := range f.keys {
		f.keys[i].gone = f.keys[i].gone || f.keys[i].owner == s
	}
	return nil
}

func (f *fakeModule) GetMechanismInfo(uint, []*pkcs11.Mechanism) (pkcs11.MechanismInfo, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.unwrap {
		return pkcs11.MechanismInfo{Flags: pkcs11.CKF_WRAP | pkcs11.CKF_UNWRAP | pkcs11.CKF_DERIVE}, nil
	}
	return pkcs11.MechanismInfo{}, nil
}

// CreateObject makes a key of the use that the flags tell.
func (f *fakeModule) CreateObject(s pkcs11.SessionHandle, template []*pkcs11.Attribute) (pkcs11.ObjectHandle, error) {
	if _, err := f.before("CreateObject", s); err != nil {
		return 0, err
	}
	return f.create(s, template, nil)
}

func (f *fakeModule) UnwrapKey(s pkcs11.SessionHandle, m []*pkcs11.Mechanism, under pkcs11.ObjectHandle, wrapped []byte, template []*pkcs11.Attribute) (pkcs11.ObjectHandle, error) {
	value, err := f.alone("UnwrapKey", s, m[0], under, func(o *fakeOperation) ([]byte, error) {
		if !f.unwrap {
			return nil, pkcs11.Error(pkcs11.CKR_MECHANISM_INVALID)
		}
		return o.cipher(wrapped, false)
	})
	if err != nil {
		return 0, err
	}
	return f.create(s, template, value)
}

// recipe is the one that a key of the fake fits.
func (f *fakeModule) recipe(k fakeKey) recipe {
	of := recipes[k.use]
	if f.singleBlocks && (k.use == PANSeal || k.use == PANToken) {
		return of[0]
	}
	if k.use == BDK && k.isAES || k.use == ZMK && f.unwrap || len(of) == 1 {
		return of[0]
	}
	return of[1]
}

func (f *fakeModule) create(s pkcs11.SessionHandle, template []*pkcs11.Attribute, value []byte) (pkcs11.ObjectHandle, error) {
	k := fakeKey{use: PINIn, value: value, not: map[uint]any{}, owner: s}
	for _, a := range template {
		k.not[a.Type] = a.Value
		set := len(a.Value) == 1 && a.Value[0] == 1
		switch {
		case a.Type == pkcs11.CKA_CLASS:
			k.data = bytes.Equal(a.Value, pkcs11.NewAttribute(pkcs11.CKA_CLASS, pkcs11.CKO_DATA).Value)
		case a.Type == pkcs11.CKA_VALUE:
			k.value = bytes.Clone(a.Value)
		case a.Type == pkcs11.CKA_LABEL:
			k.label = string(a.Value)
		case a.Type == pkcs11.CKA_TOKEN && set:
			k.owner = 0
		case a.Type == pkcs11.CKA_ENCRYPT && set:
			k.use = PINOut
		}
	}
	if !k.data {
		delete(k.not, pkcs11.CKA_VALUE)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if k.data && f.noData {
		return 0, pkcs11.Error(pkcs11.CKR_ATTRIBUTE_VALUE_INVALID)
	}
	if !k.data && k.isMark() {
		k.use = MACHMAC // of what its template does not say, the fake tells what a key of a use has
	}
	f.keys = append(slices.Clone(f.keys), k) // operations point into the old one
	if f.late != nil {
		if err := f.late(k); err != nil {
			return 0, err
		}
	}
	return pkcs11.ObjectHandle(len(f.keys)), nil
}

func (f *fakeModule) DestroyObject(s pkcs11.SessionHandle, o pkcs11.ObjectHandle) error {
	if _, err := f.before("DestroyObject", s); err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if o < 1 || int(o) > len(f.keys) || f.keys[o-1].gone {
		return pkcs11.Error(pkcs11.CKR_OBJECT_HANDLE_INVALID)
	}
	f.keys[o-1].gone = true
	return nil
}

func (f *fakeModule) Login(s pkcs11.SessionHandle, _ uint, pin string) error {
	if _, err := f.before("Login", s); err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.logins++
	if pin != f.pin {
		return pkcs11.Error(pkcs11.CKR_PIN_INCORRECT)
	}
	f.loggedIn = true
	return nil
}

func (f *fakeModule) FindObjectsInit(s pkcs11.SessionHandle, template []*pkcs11.Attribute) error {
	if _, err := f.before("FindObjectsInit", s); err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.found = nil
	for i, k := range f.keys {
		if f.loggedIn && !k.gone && !slices.ContainsFunc(template, func(a *pkcs11.Attribute) bool {
			return a.Type == pkcs11.CKA_LABEL && string(a.Value) != k.label ||
				a.Type == pkcs11.CKA_CLASS && bytes.Equal(a.Value, pkcs11.NewAttribute(pkcs11.CKA_CLASS, pkcs11.CKO_DATA).Value) != k.data
		}) {
			f.found = append(f.found, pkcs11.ObjectHandle(i+1))
		}
	}
	return nil
}

func (f *fakeModule) FindObjects(pkcs11.SessionHandle, int) ([]pkcs11.ObjectHandle, bool, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	found := f.found
	f.found = nil
	return found, false, nil
}

func (f *fakeModule) FindObjectsFinal(pkcs11.SessionHandle) error { return nil }

func (f *fakeModule) GetAttributeValue(s pkcs11.SessionHandle, o pkcs11.ObjectHandle, want []*pkcs11.Attribute) ([]*pkcs11.Attribute, error) {
	if _, err := f.before("GetAttributeValue", s); err != nil {
		return nil, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if o < 1 || int(o) > len(f.keys) || f.keys[o-1].gone {
		return nil, pkcs11.Error(pkcs11.CKR_OBJECT_HANDLE_INVALID)
	}
	k := f.keys[o-1]
	has := map[uint]any{}
	r := f.recipe(k)
	if !k.data {
		for _, a := range r.template(k.label, k.label, len(k.value)) {
			has[a.Type] = a.Value
		}
		has[pkcs11.CKA_VALUE_LEN] = len(k.value)
	}
	if !k.data && (k.use == PINIn || k.use == ZMK) && len(k.value) > desBytes {
		has[pkcs11.CKA_CHECK_VALUE] = fakeTDES(k.value, make([]byte, 8), true)[:3]
	}
	maps.Copy(has, k.not)
	if shown, isBytes := k.not[pkcs11.CKA_SENSITIVE].([]byte); want[0].Type == pkcs11.CKA_VALUE && !k.data {
		if !isBytes || !bytes.Equal(shown, []byte{0}) {
			return nil, pkcs11.Error(pkcs11.CKR_ATTRIBUTE_SENSITIVE)
		}
		has[pkcs11.CKA_VALUE] = k.value
	}
	value, known := has[want[0].Type]
	if !known {
		return nil, pkcs11.Error(pkcs11.CKR_ATTRIBUTE_TYPE_INVALID)
	}
	return []*pkcs11.Attribute{pkcs11.NewAttribute(want[0].Type, value)}, nil
}

func (f *fakeModule) begin(op string, s pkcs11.SessionHandle, m *pkcs11.Mechanism, o pkcs11.ObjectHandle) error {
	operation, err := f.before(op, s)
	if err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if operation.key != nil {
		return pkcs11.Error(pkcs11.CKR_OPERATION_ACTIVE)
	}
	if !f.loggedIn {
		return pkcs11.Error(pkcs11.CKR_USER_NOT_LOGGED_IN)
	}
	if o < 1 || int(o) > len(f.keys) || f.keys[o-1].gone {
		return pkcs11.Error(pkcs11.CKR_KEY_HANDLE_INVALID)
	}
	*operation = fakeOperation{key: &f.keys[o-1], began: op, mechanism: m}
	return nil
}

func fakeTDES(key, text []byte, encipher bool) []byte {
	if len(key) == 16 {
		key = append(bytes.Clone(key), key[:8]...)
	}
	block, err := des.NewTripleDESCipher(key)
	if err != nil {
		panic(err)
	}
	out := make([]byte, len(text))
	for i := 0; i < len(text); i += 8 {
		if encipher {
			block.Encrypt(out[i:], text[i:])
		} else {
			block.Decrypt(out[i:], text[i:])
		}
	}
	return out
}

func fakeAEAD(key []byte) cipher.AEAD {
	block, err := aes.NewCipher(key)
	if err != nil {
		panic(err)
	}
	gcm, err := cipher.NewGCM(block)
	if err != nil {
		panic(err)
	}
	return gcm
}

// config asks the fake for its keys' check values.
func (f *fakeModule) config() Config {
	cfg := Config{
		Module: fmt.Sprintf("fake module %d", fakes.Add(1)), Token: "fake", PIN: func() ([]byte, error) { return []byte(fakePIN), nil },
		Workers: 2, Queue: 2, CallTimeout: time.Second, SealKey: "seal", TokenKey: "token",
	}
	if err := f.Initialize(); err != nil {
		f.t.Fatal(err)
	}
	s, err := f.OpenSession(0, 0)
	if err == nil {
		err = f.Login(s, pkcs11.CKU_USER, f.pin)
	}
	if err != nil {
		f.t.Fatal(err)
	}
	for i, k := range f.keys {
		kcv, err := f.recipe(k).kcv(f, s, pkcs11.ObjectHandle(i+1))
		if err != nil {
			f.t.Fatal(err)
		}
		cfg.Keys = append(cfg.Keys, Key{Label: k.label, KCV: kcv, Use: k.use})
	}
	if err := f.Finalize(); err != nil {
		f.t.Fatal(err)
	}
	f.lives, f.logins, f.clear = 0, 0, nil
	return cfg
}

// start opens and runs an HSM on the fake. stop ends it and returns what Run returned.
func (f *fakeModule) start(cfg Config, log io.Writer, reg prometheus.Registerer) (h *HSM, stop func() error) {
	f.t.Helper()
	h = f.hsm(cfg, log, reg)
	if err := h.Open(f.t.Context()); err != nil {
		f.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- h.Run(ctx) }()
	return h, func() error { cancel(); return <-done }
}

func (f *fakeModule) hsm(cfg Config, log io.Writer, reg prometheus.Registerer) *HSM {
	f.t.Helper()
	h, err := newHSM(cfg, slog.New(slog.NewTextHandler(log, nil)), reg, func(string) (module, error) { return f, nil })
	if err != nil {
		f.t.Fatal(err)
	}
	h.probed = [][]finding{} // nothing is found out about a fake
	return h
}

const testPAN = "4111111111111111"

// A vector of TDES format 0 translation under the fake's keys: zpk_translation/tdes-iso0-iso0 of vectors.json.
const (
	vectorIn  = "2A3D408A1977DDE9"
	vectorOut = "03C735470A6B72B4"
)

func testCard(t *testing.T) Card {
	t.Helper()
	pan, err := card.ParsePAN(testPAN)
	if err != nil {
		t.Fatal(err)
	}
	block, err := card.NewPINBlock(bytesOf(t, vectorIn))
	if err != nil {
		t.Fatal(err)
	}
	return Card{PAN: pan, PINBlock: block, From: "in", To: "out"}
}
