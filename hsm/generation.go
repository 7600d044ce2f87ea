package hsm

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/miekg/pkcs11"
)

// A module is what the daemon uses of a library. Tests put a scripted one in its place.
type module interface {
	Initialize(...pkcs11.InitializeOption) error
	Finalize() error
	GetInfo() (pkcs11.Info, error)
	GetSlotList(tokenPresent bool) ([]uint, error)
	GetTokenInfo(slot uint) (pkcs11.TokenInfo, error)
	OpenSession(slot uint, flags uint) (pkcs11.SessionHandle, error)
	Login(s pkcs11.SessionHandle, userType uint, pin string) error
	FindObjectsInit(s pkcs11.SessionHandle, template []*pkcs11.Attribute) error
	FindObjects(s pkcs11.SessionHandle, most int) ([]pkcs11.ObjectHandle, bool, error)
	FindObjectsFinal(s pkcs11.SessionHandle) error
	GetAttributeValue(s pkcs11.SessionHandle, o pkcs11.ObjectHandle, a []*pkcs11.Attribute) ([]*pkcs11.Attribute, error)
	EncryptInit(s pkcs11.SessionHandle, m []*pkcs11.Mechanism, o pkcs11.ObjectHandle) error
	Encrypt(s pkcs11.SessionHandle, clearText []byte) ([]byte, error)
	DecryptInit(s pkcs11.SessionHandle, m []*pkcs11.Mechanism, o pkcs11.ObjectHandle) error
	Decrypt(s pkcs11.SessionHandle, cipherText []byte) ([]byte, error)
	GetMechanismInfo(slot uint, m []*pkcs11.Mechanism) (pkcs11.MechanismInfo, error)
	CloseSession(s pkcs11.SessionHandle) error
	CreateObject(s pkcs11.SessionHandle, template []*pkcs11.Attribute) (pkcs11.ObjectHandle, error)
	UnwrapKey(s pkcs11.SessionHandle, m []*pkcs11.Mechanism, under pkcs11.ObjectHandle, wrapped []byte, template []*pkcs11.Attribute) (pkcs11.ObjectHandle, error)
	DestroyObject(s pkcs11.SessionHandle, o pkcs11.ObjectHandle) error
	SignInit(s pkcs11.SessionHandle, m []*pkcs11.Mechanism, o pkcs11.ObjectHandle) error
	Sign(s pkcs11.SessionHandle, data []byte) ([]byte, error)
	GenerateKey(s pkcs11.SessionHandle, m []*pkcs11.Mechanism, template []*pkcs11.Attribute) (pkcs11.ObjectHandle, error)
	WrapKey(s pkcs11.SessionHandle, m []*pkcs11.Mechanism, under, key pkcs11.ObjectHandle) ([]byte, error)

	// Straight calls: see library.
	EncryptUpdate(s pkcs11.SessionHandle, in, out []byte) (n int, err error)
	DecryptUpdate(s pkcs11.SessionHandle, in, out []byte) (n int, err error)
	EncryptTo(s pkcs11.SessionHandle, in, out []byte) (n int, err error)
	DecryptTo(s pkcs11.SessionHandle, in, out []byte) (n int, err error)
	SignTo(s pkcs11.SessionHandle, data, out []byte) (n int, err error)
	WrapTo(s pkcs11.SessionHandle, mechanism uint, iv []byte, under, key pkcs11.ObjectHandle, out []byte) (n int, err error)
	Unwrap(s pkcs11.SessionHandle, mechanism uint, iv []byte, under pkcs11.ObjectHandle, wrapped []byte, template []*pkcs11.Attribute) (pkcs11.ObjectHandle, error)
	CreateSecret(s pkcs11.SessionHandle, template []*pkcs11.Attribute, value []byte) (pkcs11.ObjectHandle, error)
	DeriveString(s pkcs11.SessionHandle, mechanism uint, data []byte, base pkcs11.ObjectHandle, template []*pkcs11.Attribute) (pkcs11.ObjectHandle, error)
	DeriveNumber(s pkcs11.SessionHandle, mechanism, number uint, base pkcs11.ObjectHandle, template []*pkcs11.Attribute) (pkcs11.ObjectHandle, error)
	ReadValue(s pkcs11.SessionHandle, o pkcs11.ObjectHandle, attribute uint, out []byte) (n int, err error)
}

// claims holds the modules that are in use. This is the state of the process and not of a daemon: a module has one
// initialisation and one login for all of a process, so that its second user would end the first one's sessions.
var claims = struct {
	sync.Mutex
	modules map[string]bool
}{modules: map[string]bool{}}

// claim makes the caller the one user of the module, or returns ErrInUse.
func claim(path string) (release func(), err error) {
	if real, err := filepath.EvalSymlinks(path); err == nil {
		path = real
	}
	claims.Lock()
	defer claims.Unlock()
	if claims.modules[path] {
		return nil, ErrInUse
	}
	claims.modules[path] = true
	return sync.OnceFunc(func() {
		claims.Lock()
		defer claims.Unlock()
		delete(claims.modules, path)
	}), nil
}

// A generation is one life of the module: initialised, logged in, a session for each worker, every key found and its
// KCV checked. Session and object handles mean nothing outside it: after an initialisation the same numbers can name
// other keys, without an error.
type generation struct {
	number      uint64
	description string
	slot        uint
	sessions    []pkcs11.SessionHandle              // by worker
	sight       *key                                // see resident.go; nil if no PIN key is token-resident
	keys        map[string]*atomic.Pointer[lineage] // by the label of the configuration; swapped by a key change

	aloof   aloof                // what it does not hold open
	unable  map[formatPair]error // pairs of formats that it does not translate, and why
	changes bool                 // keys may be changed in it, which takes a session
	gone    atomic.Uint64        // how many keys were destroyed in it

	mu     sync.Mutex
	users  int   // workers in a call
	fault  error // the first that broke it
	idle   chan struct{}
	next   chan struct{} // closed when another generation is in use
	closed bool          // idle is closed
}

// A key is a Key that was found and checked. Of a successor, Label and KCV are its own and not those of the configuration.
type key struct {
	Key
	recipe  recipe // that it fits
	handle  pkcs11.ObjectHandle
	left    pkcs11.ObjectHandle // of a mac-x919 key: its left half twice
	leftKCV string              // and what that was checked by
	subkey  [aesBytes]byte      // of a pan-token key that enciphers: K1 of its CMAC
	aad     []byte              // of PAN seals
	bdk     base                // of a bdk key
	version int                 // 1: the one of the configuration; more: a successor

	fleeting bool // it is destroyed with the task that made it: nothing of it may be held open

	birth    string    // of a successor: its CKA_ID
	made     time.Time // of a successor: when it was made
	replaced []string  // of a successor: KCVs of the versions before it, the last one first
	until    time.Time // of one that is not current: when it may be used no more
	leftover bool      // of a successor: it was never adopted
}

// lineage returns the key of a label of the configuration with what is left of its predecessors.
func (g *generation) lineage(label string) *lineage { return g.keys[label].Load() }

// knows reports whether a label of the token is one of a key that is in it, of whatever version. That of a trial has keys of its own, which end with it.
func (g *generation) knows(label string) bool {
	if g.keys == nil {
		return true
	}
	base := label
	if g.keys[label] == nil {
		base, _, _ = successorOf(label)
	}
	if g.keys[base] == nil {
		return false
	}
	l := g.lineage(base)
	return l.current.Label == label || slices.ContainsFunc(l.former, func(k *key) bool { return k.Label == label })
}

// key returns the current key of a label of the configuration.
func (g *generation) key(label string) *key { return g.lineage(label).current }

// checkAgain fails with a code that breaks the generation if the handle does not name the key any more that was checked. Some modules
// give the handle of a key that is gone to another one, without an error.
func (k *key) checkAgain(m module, s pkcs11.SessionHandle) error {
	err := k.checkObject(m, s, k.Label, k.handle, k.KCV)
	if err == nil && k.left != 0 {
		err = k.checkObject(m, s, k.Label+leftSuffix, k.left, k.leftKCV)
	}
	if err == nil && k.bdk.kcv != "" {
		err = k.checkObject(m, s, variantOf(k.Label), k.bdk.variant, k.bdk.kcv)
	}
	return err
}

func (k *key) checkObject(m module, s pkcs11.SessionHandle, label string, handle pkcs11.ObjectHandle, want string) error {
	kcv, err := k.recipe.kcv(m, s, handle)
	if breaks(err) {
		return fmt.Errorf("checking key %q again: %w", label, err)
	}
	if err == nil && sameKCV(kcv, want) {
		return nil
	}
	if err == nil {
		err = fmt.Errorf("it has KCV %s, and not %s", kcv, want)
	}
	return fmt.Errorf("checking key %q again: %w: %w", label, err, pkcs11.Error(pkcs11.CKR_KEY_CHANGED))
}

// enter lets a worker use the handles until leave. It is refused once the generation is broken.
func (g *generation) enter() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.fault != nil {
		return false
	}
	g.users++
	return true
}

func (g *generation) leave() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.users--
	g.closeIfIdle()
}

// condemn marks the generation as broken. It reports whether this was the first fault. When the last worker has left,
// idle is closed and the module may be finalised: C_Finalize during a call is undefined.
func (g *generation) condemn(fault error) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.fault != nil {
		return false
	}
	g.fault = fault
	g.closeIfIdle()
	return true
}

func (g *generation) closeIfIdle() {
	if g.fault != nil && g.users == 0 && !g.closed {
		g.closed = true
		close(g.idle)
	}
}

// build makes a generation: initialise, log in, open sessions, find and check keys. On an error the module is
// finalised again. Calls into the module cannot be cancelled, so ctx is looked at between them.
func (h *HSM) build(ctx context.Context, number uint64) (*generation, error) {
	g := &generation{number: number, keys: map[string]*atomic.Pointer[lineage]{}, idle: make(chan struct{}), next: make(chan struct{})}
	if err := initialize(h.module); err != nil {
		return nil, err
	}
	if err := h.fill(ctx, g); err != nil {
		if also := finalize(h.module); also != nil {
			err = fmt.Errorf("%w, and %w", err, also)
		}
		return nil, err
	}
	return g, nil
}

func (h *HSM) fill(ctx context.Context, g *generation) error {
	slot, flags, err := findToken(h.module, h.cfg.Token)
	if err != nil {
		return err
	}
	g.slot, g.changes = slot, len(h.lines) > 0
	if about, err := h.module.GetInfo(); err == nil {
		g.description = fmt.Sprintf("%s %s %d.%d", about.ManufacturerID, about.LibraryDescription, about.LibraryVersion.Major, about.LibraryVersion.Minor)
	}
	for range h.cfg.Workers {
		if err := ctx.Err(); err != nil {
			return err
		}
		s, err := h.module.OpenSession(slot, pkcs11.CKF_SERIAL_SESSION)
		if err != nil {
			return fmt.Errorf("opening session: %w", err)
		}
		if g.sessions = append(g.sessions, s); len(g.sessions) == 1 {
			if err := h.login.do(h.module, s, flags, h.cfg.PIN); err != nil {
				return err
			}
		}
	}
	keys, err := h.findKeys(g.sessions[0])
	for label, l := range keys {
		g.keys[label] = &atomic.Pointer[lineage]{}
		g.keys[label].Store(l)
	}
	if err != nil {
		return err
	}
	way, err := h.pinWay(g)
	if err == nil && way == TokenResident {
		g.sight, err = newSight(h.module, g.sessions[0])
	}
	return err
}

// initialize is C_Initialize by the one user of the module in this process. "Already initialised" is therefore not
// success: someone went round claim, or an earlier C_Finalize was lost. What they left is ended first, once.
func initialize(m module) error {
	err := m.Initialize()
	if errors.Is(err, pkcs11.Error(pkcs11.CKR_CRYPTOKI_ALREADY_INITIALIZED)) {
		if err = finalize(m); err == nil {
			err = m.Initialize()
		}
	}
	if err != nil {
		return fmt.Errorf("initialising PKCS#11 module: %w", err)
	}
	return nil
}

func finalize(m module) error {
	err := m.Finalize()
	if err != nil && !errors.Is(err, pkcs11.Error(pkcs11.CKR_CRYPTOKI_NOT_INITIALIZED)) {
		return fmt.Errorf("finalising PKCS#11 module: %w", err)
	}
	return nil
}

// findToken returns the slot of the token with the label, and the token's flags. Slot numbers change when a token is
// initialised.
func findToken(m module, label string) (slot, flags uint, err error) {
	slots, err := m.GetSlotList(true)
	if err != nil {
		return 0, 0, fmt.Errorf("listing slots: %w", err)
	}
	found := 0
	for _, candidate := range slots {
		about, err := m.GetTokenInfo(candidate)
		if err != nil {
			return 0, 0, fmt.Errorf("reading token of slot %d: %w", candidate, err)
		}
		if about.Label == label {
			found++
			slot, flags = candidate, about.Flags
		}
	}
	switch found {
	case 0:
		return 0, 0, fmt.Errorf("finding token %q among %d: %w", label, len(slots), pkcs11.Error(pkcs11.CKR_TOKEN_NOT_PRESENT))
	case 1:
		return slot, flags, nil
	}
	return 0, 0, fmt.Errorf("finding token %q: %d have that label: %w", label, found, pkcs11.Error(pkcs11.CKR_TOKEN_NOT_RECOGNIZED))
}

// findKeys looks every key up and checks it. It reports the faults of all keys at once, unless the module itself fails.
func (h *HSM) findKeys(s pkcs11.SessionHandle) (map[string]*lineage, error) {
	successions, err := h.findSuccessions(s)
	if err != nil {
		return nil, err
	}
	keys := make(map[string]*lineage, len(h.cfg.Keys))
	var faults []KeyFault
	for _, want := range h.cfg.Keys {
		var l *lineage
		var problem string
		var err error
		switch found := successions[want.Label]; {
		case want.ZMK != "":
			l, problem, err = h.findLineage(s, want, found)
		case found != nil && len(found.marks) > 0:
			problem = fmt.Sprintf("was replaced by %q: without its zone master key in the configuration the old key would be in use again; "+
				"name that, or give a new key a new label", found.newest())
		default:
			var k *key
			k, problem, err = findKey(h.module, s, want)
			l = &lineage{current: k}
		}
		if err != nil {
			return nil, fmt.Errorf("checking key %q: %w", want.Label, err)
		}
		if problem != "" {
			faults = append(faults, KeyFault{want.Label, problem})
			continue
		}
		keys[want.Label] = l
	}
	if faults = append(faults, h.findTwins(keys)...); len(faults) > 0 {
		return nil, &KeyError{faults}
	}
	return keys, nil
}

// findTwins finds keys that have one check value, whatever the configuration pins: after a key change it is not the one there.
func (h *HSM) findTwins(keys map[string]*lineage) (faults []KeyFault) {
	for i, want := range h.cfg.Keys {
		l := keys[want.Label]
		if l == nil {
			continue
		}
		for _, other := range h.cfg.Keys[:i] {
			if problem := Twins(want.Use, other.Use); problem != "" && keys[other.Label] != nil && sameKCV(l.current.KCV, keys[other.Label].current.KCV) {
				faults = append(faults, KeyFault{want.Label, fmt.Sprintf("has KCV %s as %q of use %s has: %s", strings.ToUpper(l.current.KCV), other.Label, other.Use, problem)})
				break
			}
		}
	}
	return faults
}

// Twins says why two keys of these uses may not have one check value, "" if they may. Each zone has a key of its own (PCI PIN 17), and each key one
// purpose (PCI PIN 19): under a PIN key that also made MACs, the MAC of one block would be a PIN block of anybody's choice; under a seal key that
// also made PAN tokens, a token would be a block of what seals. One may be a PIN key of both directions, and keys for PANs of one use, which are of
// no zone. The start and the check of a configuration have this rule; key changes are refused more. The algorithm is of no account, as a configuration
// does not know it: two values have three bytes of KCV in common by chance once in 16 million.
func Twins(a, b Use) string {
	switch {
	case a == b && (a == PANSeal || a == PANToken):
		return ""
	case a == b:
		return "each zone has a key of its own"
	case isOfPIN(a) && isOfPIN(b):
		return ""
	}
	return "a key has one purpose"
}

func isOfPIN(u Use) bool { return u == PINIn || u == PINOut }

// findKey returns the key, or what is wrong with it.
func findKey(m module, s pkcs11.SessionHandle, want Key) (*key, string, error) {
	handles, err := find(m, s, want.Label)
	if err != nil {
		return nil, "", err
	}
	if len(handles) == 0 {
		return nil, "is missing", nil
	}
	if len(handles) > 1 {
		return nil, fmt.Sprintf("is not unique: %d keys have that label", len(handles)), nil
	}
	r, problem, err := fitting(want.Use, m, s, handles[0])
	if err != nil || problem != "" {
		return nil, problem, err
	}
	kcv, err := r.kcv(m, s, handles[0])
	if c, isCode := classify(err); isCode && c != classKey {
		return nil, "", err
	}
	if err != nil {
		return nil, "does not work: " + err.Error(), nil
	}
	if !sameKCV(kcv, want.KCV) {
		return nil, fmt.Sprintf("has KCV %s, and not %s", kcv, want.KCV), nil
	}
	k := &key{Key: want, recipe: r, handle: handles[0], aad: sealAAD(sealPurpose, want.Label), version: firstVersion}
	if want.Use == PANToken {
		if err := k.findSubkey(m, s); err != nil {
			return nil, "", err
		}
	}
	if want.Use == MACX919 {
		if k.left, k.leftKCV, problem, err = findLeft(m, s, want.Label, k.handle); err != nil || problem != "" {
			return nil, problem, err
		}
	}
	if want.Use == BDK {
		problem, err = k.findBase(m, s)
	}
	return k, problem, err
}

// findSubkey sets the subkey of a pan-token key, which only one that enciphers has.
func (k *key) findSubkey(m module, s pkcs11.SessionHandle) error {
	if k.recipe.algorithm != AES {
		return nil
	}
	zeros, err := k.recipe.onBlock(m, s, k.handle, make([]byte, aesBytes))
	if err == nil {
		copy(k.subkey[:], cmacSubkey(zeros))
	}
	return err
}
