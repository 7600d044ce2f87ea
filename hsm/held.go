package hsm

import (
	"crypto/subtle"
	"errors"
	"fmt"
	"sync/atomic"

	"github.com/miekg/pkcs11"
)

// Operations held open. To begin an operation costs a token more than a block: on SoftHSM 2.6.1 7 µs against 1. So a worker keeps an ECB
// operation open in a session of its own for each key that it uses, and feeds it a block or a few at a time. ECB has no state from one block to
// the next, so that what a caller gets does not depend on what another was given before.
//
// A token may hold blocks back until an operation ends, or have no sessions left: then each call begins and ends an operation, which is always right.

const (
	mostHeld    = 8      // operations that a worker holds open
	idleTurns   = 1000   // of its worker, after which an operation that was not used makes room for another: sooner, and they would close each other
	mostUpdates = 50_000 // of one operation: SoftHSM 2.6.1 keeps 8 bytes for each call of C_DecryptUpdate
)

// A heldKey names what is held open. The label is the key's own, of a successor with its version, which in one generation never comes twice: a token
// can give the handle of a key that was destroyed, on which an operation may still be open, to the next one that is made.
type heldKey struct {
	object   pkcs11.ObjectHandle
	label    string
	decipher bool
}

// A held operation is one that is open.
type held struct {
	session pkcs11.SessionHandle
	updates int
	turn    uint64 // of the worker, when it was last used
}

// An aloof is what a generation has learned not to hold open.
type aloof struct {
	sessions atomic.Bool       // the token has no more of them
	keeps    [2][2]atomic.Bool // by algorithm (AES: 1) and direction (decipher: 1): it keeps blocks back
}

func (a *aloof) of(algorithm Algorithm, decipher bool) *atomic.Bool {
	return &a.keeps[index(algorithm == AES)][index(decipher)]
}

func index(b bool) int {
	if b {
		return 1
	}
	return 0
}

// ecb enciphers or deciphers whole blocks with a key that may do that. Both slices may be of locked memory, and the same.
func (w *worker) ecb(k *key, decipher bool, in, out []byte) error {
	if w.holds(k, decipher) {
		op, err := w.hold(k, decipher)
		if err != nil {
			return err
		}
		if op != nil {
			return w.feed(op, k, decipher, in, out)
		}
	}
	return w.ecbOnce(k, decipher, in, out)
}

// holds reports whether it is worth a try. A key that lasts no longer than a call is not, and its handle may be given to another one.
func (w *worker) holds(k *key, decipher bool) bool {
	return !k.fleeting && !w.gen.aloof.sessions.Load() && !w.gen.aloof.of(k.recipe.algorithm, decipher).Load()
}

// feed gives blocks to an open operation.
func (w *worker) feed(op *held, k *key, decipher bool, in, out []byte) error {
	n, err := w.update(op, decipher, in, out)
	if err == nil && n == len(in) {
		return nil
	}
	w.release(heldKey{k.handle, k.Label, decipher})
	if err == nil { // it gave the first block back at once and this one not: whatever it is, it is not to be trusted further
		_, err = exactly(len(in), out[:n], nil)
	}
	return err
}

func (w *worker) update(op *held, decipher bool, in, out []byte) (int, error) {
	w.turn++
	op.turn = w.turn
	op.updates++
	if decipher {
		return w.m.DecryptUpdate(op.session, in, out)
	}
	return w.m.EncryptUpdate(op.session, in, out)
}

// hold returns the open operation of a key, nil if there cannot be one. Before it is used for the first time it has to give a block back at once,
// and the one that a whole operation gives.
func (w *worker) hold(k *key, decipher bool) (*held, error) {
	which := heldKey{k.handle, k.Label, decipher}
	if op := w.open[which]; op != nil {
		if op.updates < mostUpdates {
			return op, nil
		}
		w.release(which)
	}
	w.releaseGone()
	if len(w.open) >= mostHeld && !w.releaseIdle() {
		return nil, nil
	}
	s, err := w.openAside()
	if errors.Is(err, pkcs11.Error(pkcs11.CKR_SESSION_COUNT)) {
		w.gen.aloof.sessions.Store(true)
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("opening session: %w", err)
	}
	op := &held{session: s}
	w.open[which] = op
	steady, err := w.prove(op, k, decipher)
	if err != nil || !steady {
		w.release(which)
	}
	if err != nil {
		return nil, err
	}
	if !steady {
		w.gen.aloof.of(k.recipe.algorithm, decipher).Store(true)
		return nil, nil
	}
	return op, nil
}

// openAside opens a session for an operation that stays open. Where keys may be changed it does not take the last one: a change needs a session of its own, and
// without one it would cost the payments their generation. So a second one is opened, which shows that it is there, and given back.
func (w *worker) openAside() (pkcs11.SessionHandle, error) {
	s, err := w.m.OpenSession(w.gen.slot, pkcs11.CKF_SERIAL_SESSION)
	if err != nil || !w.gen.changes {
		return s, err
	}
	left, err := w.m.OpenSession(w.gen.slot, pkcs11.CKF_SERIAL_SESSION)
	if err == nil {
		err = w.m.CloseSession(left)
	}
	if err != nil {
		_ = w.m.CloseSession(s) // it ends with the generation at the latest
		return 0, err
	}
	return s, nil
}

// prove begins an operation and gives it a block of zeros.
func (w *worker) prove(op *held, k *key, decipher bool) (steady bool, err error) {
	size := k.recipe.algorithm.block()
	zeros, now, want := make([]byte, size), make([]byte, size), make([]byte, size)
	begin := w.m.EncryptInit
	if decipher {
		begin = w.m.DecryptInit
	}
	if err := begin(op.session, mechanism(k.recipe.algorithm.ecb()), k.handle); err != nil {
		return false, err
	}
	n, err := w.update(op, decipher, zeros, now)
	if errors.Is(err, pkcs11.Error(pkcs11.CKR_FUNCTION_NOT_SUPPORTED)) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	if err := w.ecbOnce(k, decipher, zeros, want); err != nil {
		return false, err
	}
	return n == size && subtle.ConstantTimeCompare(now, want) == 1, nil
}

// release closes an operation with its session: to end it might give blocks back that nobody wants. A session that cannot be closed ends with
// the generation at the latest.
func (w *worker) release(which heldKey) {
	if op := w.open[which]; op != nil {
		delete(w.open, which)
		_ = w.m.CloseSession(op.session)
	}
}

// releaseGone ends what is open on keys that are not in the token any more, so that nothing is left of a key that was destroyed. It is called
// by HSM.tidy at once, or before the first task of the worker after that, and when something else is opened.
func (w *worker) releaseGone() {
	for which := range w.open {
		if !w.gen.knows(which.label) {
			w.release(which)
		}
	}
}

// releaseIdle makes room by ending the operation that was used longest ago, if that was long ago.
func (w *worker) releaseIdle() bool {
	w.turn++ // a call without an operation is a turn, too
	var oldest heldKey
	turn := w.turn
	for which, op := range w.open {
		if op.turn < turn {
			oldest, turn = which, op.turn
		}
	}
	if w.turn-turn < idleTurns {
		return false
	}
	w.release(oldest)
	return true
}

// ecbOnce is a whole operation.
func (w *worker) ecbOnce(k *key, decipher bool, in, out []byte) error {
	begin, end := w.m.EncryptInit, w.m.EncryptTo
	if decipher {
		begin, end = w.m.DecryptInit, w.m.DecryptTo
	}
	if err := begin(w.session, mechanism(k.recipe.algorithm.ecb()), k.handle); err != nil {
		return err
	}
	n, err := end(w.session, in, out)
	if err == nil {
		_, err = exactly(len(in), out[:n], nil)
	}
	return err
}
