package hsm

import (
	"context"
	"errors"
	"fmt"

	"acquirerd/card"
)

// A Surrogate is what stands for a PAN in a PIN block: a PAN token, by which the terminal or wallet made the block because it does not know the PAN. The block
// is translated to the PAN itself only with the proof that the one belongs to the other (PCI PIN 3-3, note): else whoever submits it could
// try a PIN on PANs of his choice, or move it to another card.
type Surrogate struct {
	PAN     card.PAN // in the block's account number field; zero: the block was made with the card's own PAN
	Binding []byte   // see BindSurrogate
}

// ErrBinding is an ErrPINBlock: the surrogate is not bound to the PAN by the key of the configuration.
var ErrBinding = fmt.Errorf("%w: its surrogate PAN is not bound to the PAN", ErrPINBlock)

// bindPurpose begins what a binding authenticates, so that no other MAC under its key is one.
const bindPurpose = "acquirerd pan-binding 1"

// binding is what is authenticated. Neither PAN has a zero byte, so that it can be read in one way only.
func binding(surrogate, pan card.PAN) []byte {
	return []byte(bindPurpose + "\x00" + surrogate.Reveal() + "\x00" + pan.Reveal())
}

// BindSurrogate makes the proof that a surrogate stands for a PAN: 8 bytes of a MAC by the key Config.BindKey. Who keeps the table of surrogates asks for it
// when he makes an entry, keeps it there, and gives it with each PIN block. Errors: ErrNoPAN, ErrUnavailable.
func (h *HSM) BindSurrogate(ctx context.Context, surrogate, pan card.PAN) ([]byte, error) {
	if surrogate.IsZero() || pan.IsZero() {
		return nil, ErrNoPAN
	}
	if h.cfg.BindKey == "" {
		return nil, fmt.Errorf("%w: no key binds surrogate PANs", ErrUnavailable)
	}
	data := binding(surrogate, pan)
	defer clear(data)
	proof, err := h.MAC(ctx, MACKey{Label: h.cfg.BindKey}, data)
	if err != nil {
		return nil, fmt.Errorf("binding surrogate PAN: %w", err)
	}
	return proof, nil
}

// checkBinding fails with ErrBinding if a card's surrogate is not bound to its PAN. It asks for the whole proof: a shorter one could be guessed.
func (h *HSM) checkBinding(ctx context.Context, c Card) error {
	if h.cfg.BindKey == "" || len(c.Surrogate.Binding) != macBytes || c.PAN.IsZero() {
		return ErrBinding
	}
	data := binding(c.Surrogate.PAN, c.PAN)
	defer clear(data)
	err := h.VerifyMAC(ctx, MACKey{Label: h.cfg.BindKey}, data, c.Surrogate.Binding)
	if errors.Is(err, ErrMAC) {
		return ErrBinding
	}
	return err
}

// changeOfPAN is what a translation of this card's block does to its PAN.
func (c Card) changeOfPAN() PANChange {
	if c.Surrogate.PAN.IsZero() {
		return SamePAN
	}
	return BoundPAN
}

// blockPAN is the PAN that the card's block was made with.
func (c Card) blockPAN() string {
	if c.Surrogate.PAN.IsZero() {
		return c.PAN.Reveal()
	}
	return c.Surrogate.PAN.Reveal()
}
