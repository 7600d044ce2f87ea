package hsm

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"acquirerd/card"
)

// A Card is what Protect is given of a request.
type Card struct {
	PAN      card.PAN
	PINBlock card.PINBlock // under the key From; zero if the request has no PIN
	From, To string        // labels of the pin-in (or, with a KSN, bdk) and the pin-out key; not looked at without a PINBlock
	KSN      card.KSN      // of a block under DUKPT; zero of one under a zone key
	Working  WorkingKey    // of a block under AES-DUKPT: the kind of its key; "" is the default of FromFormat, see WorkingKey

	FromFormat, ToFormat Format // of the block under From, and of the one that is made under To

	// Surrogate is what the block was made with in the place of PAN, with the proof that the one stands for the other. Without one, PAN itself.
	Surrogate Surrogate

	// Previous takes the key that To was before its last change: for a retry after the processor could not read the block
	// under the new one. Without one, or after the overlap, it is ErrNoPreviousKey.
	Previous bool
}

// A Protected is what may leave this room.
type Protected struct {
	Sealed   card.SealedPAN
	Token    card.PANToken
	PINBlock card.PINBlock // under the key To; zero if the Card had none. Its holder clears it after use.

	// KeyVersion is which version of the key To the PINBlock is under: see KeyStatus. A later one means that the key was changed since.
	KeyVersion int
}

// The operations of acquirerd_hsm_call_seconds.
const (
	protectPlain = "protect"
	protectPIN   = "protect_pin"
	openOne      = "open_pan"
	sealOne      = "seal_pan"
	sealRest     = "seal_rest"
	openRest     = "open_rest"
	changeKey    = "change_key"
	signDigest   = "sign"
	makeMAC      = "mac"
)

// Protect translates the PIN block, if there is one, and seals and tokens the PAN, in one task of one worker. It does
// all or nothing. Errors: ErrUnavailable (a pair of formats that is not allowed: ErrPINFormat too), ErrPINBlock (a
// surrogate that is not bound to the PAN: ErrBinding too), ErrKSN, ErrNoPAN, ErrNoPreviousKey. The caller may clear c.PINBlock as soon as it returns.
func (h *HSM) Protect(ctx context.Context, c Card) (Protected, error) {
	pan, operation := c.PAN.Reveal(), protectPlain
	withPIN := !c.PINBlock.IsZero()
	switch {
	case withPIN:
		operation = protectPIN
		if err := h.checkPair(c); err != nil {
			return Protected{}, err
		}
		if pan == "" || len(c.PINBlock.Reveal()) != c.FromFormat.Bytes() {
			h.count(ErrPINBlock)
			return Protected{}, ErrPINBlock
		}
		if c.changeOfPAN() == BoundPAN {
			if err := h.checkBinding(ctx, c); err != nil { // of one that the token refuses, VerifyMAC has counted it
				if errors.Is(err, ErrBinding) {
					h.count(err)
				}
				return Protected{}, err
			}
		}
	case pan == "":
		return Protected{}, ErrNoPAN
	}
	// The task has its own copy of the block: after a timeout it may still run when the caller clears his.
	var block [longestBlock]byte
	in := block[:copy(block[:], c.PINBlock.Reveal())]
	var out Protected
	err := h.call(ctx, operation, func(w *worker) (err error) {
		var p Protected
		if withPIN {
			block, under, err := h.translate(w, c, in, pan)
			if err != nil {
				return err
			}
			p.KeyVersion = under
			p.PINBlock, err = card.NewPINBlock(block)
			clear(block)
			if err != nil {
				return err
			}
			defer func() {
				if err != nil {
					p.PINBlock.Clear()
				}
			}()
		}
		h.used(w.gen.key(h.cfg.SealKey))
		h.used(w.gen.key(h.cfg.TokenKey))
		if p.Sealed, err = w.sealPAN(w.gen.key(h.cfg.SealKey), pan); err != nil {
			return err
		}
		if p.Token, err = w.tokenOf(w.gen.key(h.cfg.TokenKey), pan); err != nil {
			return err
		}
		out = p
		return nil
	})
	if err != nil {
		return Protected{}, err // out may still be written by a task that was left behind
	}
	return out, nil
}

// translate takes the keys that are right at this moment. A block that does not decipher to a PIN block of the PAN under the current key is tried
// under those before it, while their overlap lasts: the upstream may not have changed yet, and terminals' blocks wait in queues.
// under is the version of the key To that it took.
//
// With each of them as much more garbage passes: with one, twice as much, of format 0 once in 8 million; with the most (mostVersions), once in 1.6 million. Of
// format 1, a block under the old key is taken for one under the new one once in 640. In the token-resident way digits are not seen, and more passes:
// see translateInside.
func (h *HSM) translate(w *worker, c Card, in []byte, pan string) (block []byte, under int, err error) {
	now, from, to := time.Now(), w.gen.lineage(c.From), w.gen.key(c.To)
	if c.Previous {
		former := w.gen.lineage(c.To).before(now)
		if len(former) == 0 {
			return nil, 0, ErrNoPreviousKey
		}
		to = former[0]
	}
	if err := w.gen.unable[formatPair{c.FromFormat.orDefault(), c.ToFormat.orDefault()}]; err != nil {
		return nil, 0, fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	h.used(from.current)
	h.used(to)
	t := translation{c.FromFormat, c.ToFormat, c.blockPAN(), pan, h.newFill}
	block = make([]byte, t.to.Bytes())
	if c.KSN.IsZero() {
		err = w.translate(t, from.current, to, block, in)
	} else {
		err = w.withPINKey(from.current, c, to.recipe.way, func(derived *key) error { return w.translate(t, derived, to, block, in) })
	}
	for _, old := range from.before(now) {
		if !errors.Is(err, ErrPINBlock) {
			break
		}
		if err = w.translate(t, old, to, block, in); err == nil {
			h.metrics.oldKey[c.From].Inc()
		}
	}
	if err != nil {
		return nil, 0, err
	}
	return block, to.version, nil
}

// checkPair refuses labels that are not a pin-in (or, with a KSN, bdk) and a pin-out key, which is a mistake of wiring and which the token would refuse, and formats that
// may not be translated into one another, which the token would not.
func (h *HSM) checkPair(c Card) error {
	if !c.KSN.IsZero() {
		if h.uses[c.From] != BDK {
			return fmt.Errorf("%w: %q is not a %s key of the configuration", ErrKSN, c.From, BDK)
		}
		if err := c.KSN.Check(); err != nil {
			return fmt.Errorf("%w: %w", ErrKSN, err)
		}
	} else if h.uses[c.From] != PINIn {
		return fmt.Errorf("%w: %q is not a %s key of the configuration", ErrUnavailable, c.From, PINIn)
	}
	if h.uses[c.To] != PINOut {
		return fmt.Errorf("%w: %q is not a %s key of the configuration", ErrUnavailable, c.To, PINOut)
	}
	if err := AllowedPair(c.FromFormat, c.ToFormat, c.changeOfPAN()); err != nil {
		return fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	return nil
}

// CheckPINFormat fails if PIN blocks of a format are not for the key of a label, by what the token says of it: see Format.Algorithm. A configuration does not
// say of which algorithm a key is. Errors: ErrPINFormat, or ErrUnavailable if the keys are not known at present.
func (h *HSM) CheckPINFormat(label string, f Format) error {
	g := h.gen.Load()
	if g == nil || g.keys[label] == nil {
		return fmt.Errorf("%w: key %q is not known at present", ErrUnavailable, label)
	}
	return g.key(label).takes(f)
}

// takes fails with ErrPINFormat if PIN blocks of a format are not for this key, or for none that is derived from it.
func (k *key) takes(f Format) error {
	if f.Algorithm() != k.recipe.algorithm && (k.Use != BDK || k.recipe.algorithm != AES) {
		return fmt.Errorf("%w: %s is not for key %q, which is %s", ErrPINFormat, f.orDefault(), k.Label, k.recipe.algorithm)
	}
	return nil
}

// OpenPAN opens a sealed PAN with the key that it names. Errors: ErrUnavailable, ErrSealedPAN.
func (h *HSM) OpenPAN(ctx context.Context, sealed card.SealedPAN) (card.PAN, error) {
	if err := h.checkSealed(sealed); err != nil {
		return card.PAN{}, err
	}
	var out card.PAN
	err := h.call(ctx, openOne, func(w *worker) error {
		pan, err := w.openPAN(w.gen.key(sealed.KeyID), sealed)
		out = pan
		return err
	})
	if err != nil {
		return card.PAN{}, err
	}
	return out, nil
}

// checkSealed refuses what cannot be opened before a worker takes it.
func (h *HSM) checkSealed(sealed card.SealedPAN) error {
	if len(sealed.Nonce) != nonceBytes || len(sealed.Ciphertext) <= tagBits/8 {
		return ErrSealedPAN
	}
	if h.uses[sealed.KeyID] != PANSeal {
		return fmt.Errorf("%w: its key %q is not in the configuration", ErrSealedPAN, sealed.KeyID)
	}
	return nil
}

// SealRest seals the sensitive part of an advice, at least one byte. Error: ErrUnavailable. The caller may clear rest as soon as it
// returns.
func (h *HSM) SealRest(ctx context.Context, rest []byte) (card.SealedRest, error) {
	held := newHeldCopy(rest)
	defer held.end()
	var out card.SealedRest
	err := h.call(ctx, sealRest, func(w *worker) error {
		return held.use(func(rest []byte) error {
			k := w.gen.key(h.cfg.SealKey)
			sealed, err := w.sealUnder(k, sealAAD(restPurpose, k.Label), rest)
			if err != nil {
				return fmt.Errorf("sealing the rest of an advice: %w", err)
			}
			out = card.SealedRest(sealed)
			return nil
		})
	})
	if err != nil {
		return card.SealedRest{}, err
	}
	return out, nil
}

// A heldCopy is a call's own copy of what is sensitive, because a task may still run after a timeout, when the caller clears his, or has gone. It is cleared when the
// call has ended and no task of it runs: not before, because a task may be tried again in the next generation.
type heldCopy struct {
	running sync.Mutex // held by the task: nobody waits for it
	over    atomic.Bool
	secret  []byte // guarded by running
}

func newHeldCopy(of []byte) *heldCopy { return &heldCopy{secret: bytes.Clone(of)} }

// use is of a task.
func (c *heldCopy) use(do func(secret []byte) error) error {
	if !c.running.TryLock() {
		return errDown // the call has ended
	}
	err := errDown
	if !c.over.Load() {
		err = do(c.secret)
	}
	c.running.Unlock()
	if c.over.Load() { // the call has ended meanwhile, and has left it to us
		c.end()
	}
	return err
}

// end is of the call.
func (c *heldCopy) end() {
	c.over.Store(true)
	if c.running.TryLock() {
		clear(c.secret)
		c.running.Unlock()
	}
}

// OpenRest opens what SealRest made. Errors: ErrUnavailable, ErrSealedPAN. Its caller clears the result.
func (h *HSM) OpenRest(ctx context.Context, rest card.SealedRest) ([]byte, error) {
	sealed := card.SealedPAN(rest)
	if err := h.checkSealed(sealed); err != nil {
		return nil, err
	}
	held := newHeldCopy(nil)
	defer held.end()
	err := h.call(ctx, openRest, func(w *worker) error {
		return held.use(func([]byte) (err error) {
			held.secret, err = w.openUnder(w.gen.key(sealed.KeyID), sealAAD(restPurpose, sealed.KeyID), sealed)
			if err != nil && !errors.Is(err, ErrSealedPAN) {
				return fmt.Errorf("opening the rest of an advice: %w", err)
			}
			return err
		})
	})
	if err != nil {
		return nil, err
	}
	out := held.secret
	held.secret = nil // the caller's
	return out, nil
}
