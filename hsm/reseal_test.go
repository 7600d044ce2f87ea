package hsm_test

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"strings"
	"testing"

	"acquirerd/card"
	"acquirerd/hsm"
	"acquirerd/hsm/hsmtest"
)

func TestAPANIsSealedUnderThePresentKey(t *testing.T) {
	token := hsmtest.Standard(t)
	h := run(t, token.Config())
	const digits = "4111111111111111"
	p, err := h.Protect(t.Context(), hsm.Card{PAN: pan(t, digits)})
	if err != nil {
		t.Fatal(err)
	}
	sealed, err := h.SealPAN(t.Context(), pan(t, digits))
	if err != nil || sealed.KeyID != hsmtest.SealKey || bytes.Equal(sealed.Nonce, p.Sealed.Nonce) || bytes.Equal(sealed.Ciphertext, p.Sealed.Ciphertext) {
		t.Errorf("%+v, %v", sealed, err)
	}
	if opened, err := h.OpenPAN(t.Context(), sealed); err != nil || opened.Reveal() != digits {
		t.Errorf("%v, %v", opened, err)
	}
	if sealed, err := h.SealPAN(t.Context(), card.PAN{}); !errors.Is(err, hsm.ErrNoPAN) || sealed.KeyID != "" {
		t.Errorf("of no PAN: %+v, %v", sealed, err)
	}
}

func TestAPANIsRevealedToWhoHasThePIN(t *testing.T) {
	token := hsmtest.Standard(t)
	const digits = "4111111111111111"
	h, err := hsm.New(token.Config(), slog.New(slog.DiscardHandler), nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := h.Open(t.Context()); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- h.Run(ctx) }()
	p, err := h.Protect(t.Context(), hsm.Card{PAN: pan(t, digits)})
	if err != nil {
		t.Fatal(err)
	}
	key := token.Keys[0]
	for _, k := range token.Keys {
		if k.Label == hsmtest.SealKey {
			key = k
		}
	}
	cfg := hsm.Config{Module: token.Module, Token: token.Label, PIN: token.PIN}
	if _, err := hsm.Reveal(cfg, key, p.Sealed); !errors.Is(err, hsm.ErrInUse) { // in this process
		t.Errorf("beside an open HSM: %v", err)
	}
	cancel()
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	got, err := hsm.Reveal(cfg, key, p.Sealed)
	if err != nil || got.Reveal() != digits {
		t.Errorf("%v, %v", got, err)
	}
	asked := 0
	wrong := cfg
	wrong.PIN = func() ([]byte, error) { asked++; return []byte("000000"), nil }
	if got, err := hsm.Reveal(wrong, key, p.Sealed); !errors.Is(err, hsm.ErrPINRejected) || !got.IsZero() || asked != 1 || strings.Contains(err.Error(), "000000") {
		t.Errorf("a wrong PIN: %v, %v, offered %d times", got, err, asked)
	}
	for name, test := range map[string]struct {
		spoil func(*hsm.Key, *card.SealedPAN)
		want  error
	}{
		"a damaged seal":    {func(_ *hsm.Key, s *card.SealedPAN) { s.Ciphertext[0] ^= 1 }, hsm.ErrSealedPAN},
		"no seal":           {func(_ *hsm.Key, s *card.SealedPAN) { *s = card.SealedPAN{} }, hsm.ErrSealedPAN},
		"a seal of another": {func(_ *hsm.Key, s *card.SealedPAN) { s.KeyID = "gone" }, hsm.ErrSealedPAN},
		"another KCV":       {func(k *hsm.Key, _ *card.SealedPAN) { k.KCV = "000000" }, hsm.ErrKeyCheck},
		"a key that is not there": {func(k *hsm.Key, s *card.SealedPAN) {
			k.Label, s.KeyID = "gone", "gone"
		}, hsm.ErrKeyCheck},
		"a key of another use": {func(k *hsm.Key, _ *card.SealedPAN) { k.Use = hsm.PANToken }, hsm.ErrSealedPAN},
	} {
		t.Run(name, func(t *testing.T) {
			k := key
			s := card.SealedPAN{KeyID: p.Sealed.KeyID, Nonce: bytes.Clone(p.Sealed.Nonce), Ciphertext: bytes.Clone(p.Sealed.Ciphertext)}
			test.spoil(&k, &s)
			if got, err := hsm.Reveal(cfg, k, s); !errors.Is(err, test.want) || !got.IsZero() {
				t.Errorf("got %v, %v", got, err)
			}
		})
	}
	if got, err := hsm.Reveal(cfg, key, p.Sealed); err != nil || got.Reveal() != digits {
		t.Errorf("afterwards: %v, %v", got, err)
	}
}
