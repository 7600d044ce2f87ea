package hsm_test

import (
	"bytes"
	"errors"
	"fmt"
	"testing"

	"acquirerd/card"
	"acquirerd/hsm"
	"acquirerd/hsm/hsmtest"
)

func TestASurrogateGivesWayOnlyToThePANThatItIsBoundTo(t *testing.T) {
	const number, surrogate, other = "4111111111111111", "4000000000000002", "5555555555554444"
	token := hsmtest.Standard(t)
	token.Put("bind", hsm.MACCMAC, hsmtest.ZoneKey("bind", 16))
	token.Put("messages", hsm.MACCMAC, hsmtest.ZoneKey("messages", 16))
	cfg := token.Config()
	cfg.BindKey = "bind"
	h := run(t, cfg)
	bound := func(from, to string) []byte {
		t.Helper()
		proof, err := h.BindSurrogate(t.Context(), pan(t, from), pan(t, to))
		if err != nil || len(proof) != 8 {
			t.Fatalf("%d bytes, %v", len(proof), err)
		}
		return proof
	}
	good := bound(surrogate, number)
	asked := func(change func(*hsm.Card)) (hsm.Protected, error) {
		c := hsm.Card{PAN: pan(t, number), PINBlock: hsmtest.EncipherPIN(hsmtest.UpstreamZPK, surrogate, "1234"),
			From: hsmtest.UpstreamKey, To: hsmtest.ProcessorKey, Surrogate: hsm.Surrogate{PAN: pan(t, surrogate), Binding: bytes.Clone(good)}}
		change(&c)
		return h.Protect(t.Context(), c)
	}

	p, err := asked(func(*hsm.Card) {})
	if err != nil {
		t.Fatal(err)
	}
	if got := hsmtest.DecipherPIN(hsmtest.ProcessorZPK, number, p.PINBlock); got != "1234" {
		t.Errorf("got %q under the PAN", got)
	}
	if opened, err := h.OpenPAN(t.Context(), p.Sealed); err != nil || opened.Reveal() != number {
		t.Errorf("what is sealed is not the PAN: %v", err)
	}
	if p, err = asked(func(c *hsm.Card) { c.ToFormat = hsm.ISO3 }); err != nil || p.PINBlock.IsZero() {
		t.Errorf("into format 3: %v", err)
	}

	bad := map[string]func(*hsm.Card){
		"no proof":                       func(c *hsm.Card) { c.Surrogate.Binding = nil },
		"a part of the proof":            func(c *hsm.Card) { c.Surrogate.Binding = c.Surrogate.Binding[:4] },
		"the proof of another surrogate": func(c *hsm.Card) { c.Surrogate.Binding = bound(other, number) },
		"the proof of another PAN":       func(c *hsm.Card) { c.Surrogate.Binding = bound(surrogate, other) },
		"the proof turned round":         func(c *hsm.Card) { c.Surrogate.Binding = bound(number, surrogate) },
		"another PAN":                    func(c *hsm.Card) { c.PAN = pan(t, other) },
		"another surrogate":              func(c *hsm.Card) { c.Surrogate.PAN = pan(t, other) },
		"a MAC of the same two by the same key": func(c *hsm.Card) {
			c.Surrogate.Binding, _ = h.MAC(t.Context(), hsm.MACKey{Label: "bind"}, []byte(surrogate+"\x00"+number))
		},
		"a proof by another key": func(c *hsm.Card) {
			c.Surrogate.Binding, _ = h.MAC(t.Context(), hsm.MACKey{Label: "messages"}, []byte("acquirerd pan-binding 1\x00"+surrogate+"\x00"+number))
		},
	}
	for bit := range 64 {
		bad[fmt.Sprintf("bit %d", bit)] = func(c *hsm.Card) { c.Surrogate.Binding[bit/8] ^= 1 << (bit % 8) }
	}
	for name, change := range bad {
		if p, err := asked(change); !errors.Is(err, hsm.ErrBinding) || !errors.Is(err, hsm.ErrPINBlock) || !p.PINBlock.IsZero() || p.Sealed.Ciphertext != nil {
			t.Errorf("%s: got %v", name, err)
		}
	}
	for name, change := range map[string]func(*hsm.Card){
		"no surrogate, and the block is of one": func(c *hsm.Card) { c.Surrogate = hsm.Surrogate{} },
		"a block of the PAN itself": func(c *hsm.Card) {
			c.PINBlock = hsmtest.EncipherPIN(hsmtest.UpstreamZPK, number, "1234")
		},
	} {
		if _, err := asked(change); !errors.Is(err, hsm.ErrPINBlock) || errors.Is(err, hsm.ErrBinding) {
			t.Errorf("%s: got %v", name, err)
		}
	}
	if _, err := asked(func(c *hsm.Card) { c.FromFormat = hsm.ISO1 }); !errors.Is(err, hsm.ErrPINFormat) {
		t.Errorf("of a format without a PAN: %v", err)
	}
	if _, err := h.BindSurrogate(t.Context(), card.PAN{}, pan(t, number)); !errors.Is(err, hsm.ErrNoPAN) {
		t.Errorf("no surrogate is bound: %v", err)
	}
}

func TestWithoutAKeyNoSurrogateIsBound(t *testing.T) {
	token := hsmtest.Standard(t)
	token.Put("bind", hsm.MACCMAC, hsmtest.ZoneKey("bind", 16))
	cfg := token.Config()
	cfg.BindKey = hsmtest.UpstreamKey
	if _, err := hsm.New(cfg, nil, nil); err == nil {
		t.Error("a key of another use is taken")
	}
	cfg.BindKey = ""
	h := run(t, cfg)
	if _, err := h.BindSurrogate(t.Context(), pan(t, "4000000000000002"), pan(t, "4111111111111111")); !errors.Is(err, hsm.ErrUnavailable) {
		t.Errorf("got %v", err)
	}
	_, err := h.Protect(t.Context(), hsm.Card{PAN: pan(t, "4111111111111111"), PINBlock: hsmtest.EncipherPIN(hsmtest.UpstreamZPK, "4000000000000002", "1234"),
		From: hsmtest.UpstreamKey, To: hsmtest.ProcessorKey, Surrogate: hsm.Surrogate{PAN: pan(t, "4000000000000002"), Binding: make([]byte, 8)}})
	if !errors.Is(err, hsm.ErrBinding) {
		t.Errorf("got %v", err)
	}
}
