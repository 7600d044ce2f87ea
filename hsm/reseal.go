package hsm

import (
	"context"
	"errors"
	"fmt"

	"acquirerd/card"

	"github.com/miekg/pkcs11"
)

// SealPAN seals a PAN under the present seal key and does nothing else: for one that was opened under an older key. Errors: ErrUnavailable, ErrNoPAN.
func (h *HSM) SealPAN(ctx context.Context, pan card.PAN) (card.SealedPAN, error) {
	digits := pan.Reveal()
	if digits == "" {
		return card.SealedPAN{}, ErrNoPAN
	}
	var out card.SealedPAN
	err := h.call(ctx, sealOne, func(w *worker) error {
		k := w.gen.key(h.cfg.SealKey)
		h.used(k)
		sealed, err := w.sealPAN(k, digits)
		if err == nil {
			out = sealed
		}
		return err
	})
	if err != nil {
		return card.SealedPAN{}, err
	}
	return out, nil
}

// Reveal opens one sealed PAN for a person who gives the token's user PIN (Config.PIN): a login of its own that works beside a daemon of another process.
// The key is what the configuration says of the one that the seal names. Errors: ErrPINRejected, ErrKeyCheck, ErrSealedPAN, ErrInUse; a wrong PIN
// is offered once. Of the Config it uses Module, Arguments, Token and PIN.
func Reveal(cfg Config, of Key, sealed card.SealedPAN) (card.PAN, error) {
	pan, err := reveal(cfg, of, sealed)
	if err != nil {
		return card.PAN{}, fmt.Errorf("revealing PAN: %w", err)
	}
	return pan, nil
}

func reveal(cfg Config, of Key, sealed card.SealedPAN) (card.PAN, error) {
	if of.Use != PANSeal || of.Label != sealed.KeyID || len(sealed.Nonce) != nonceBytes || len(sealed.Ciphertext) <= tagBits/8 {
		return card.PAN{}, ErrSealedPAN
	}
	memory, err := lockMemory(1)
	if err != nil {
		return card.PAN{}, err
	}
	defer memory.free()
	var pan card.PAN
	err = withToken(cfg, 0, func(m *library, s pkcs11.SessionHandle) error {
		k, problem, err := findKey(m, s, of)
		if err != nil {
			return err
		}
		if problem != "" {
			return &KeyError{[]KeyFault{{of.Label, problem}}}
		}
		once := &generation{sessions: []pkcs11.SessionHandle{s}}
		once.aloof.sessions.Store(true) // for one seal nothing is held open
		w := &worker{m: m, mem: memory.scratch(0)}
		w.join(once)
		pan, err = w.openPAN(k, sealed)
		return err
	})
	if errors.Is(err, pkcs11.Error(pkcs11.CKR_TOKEN_NOT_PRESENT)) {
		err = fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	if err != nil {
		return card.PAN{}, err
	}
	return pan, nil
}
