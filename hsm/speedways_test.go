package hsm

import (
	"context"
	"crypto/rand"

	"acquirerd/card"

	"github.com/miekg/pkcs11"
)

// The ways that the benchmarks compare, of one worker more than the HSM has, in its present generation.
type Ways struct {
	Floor, Held, Single func(n int) // translations of a PIN block
	Protect, Naive      func(n int) // seal and token of a PAN
	Nothing             func()      // a call that does nothing, through the queue
}

// BenchWays makes them for an open HSM.
func (h *HSM) BenchWays(from, to string, block card.PINBlock, pan card.PAN) (Ways, error) {
	g := h.gen.Load()
	memory, err := lockMemory(1)
	if err != nil {
		return Ways{}, err
	}
	session := func() pkcs11.SessionHandle {
		s, err := h.module.OpenSession(g.slot, pkcs11.CKF_SERIAL_SESSION)
		must(err)
		return s
	}
	w := &worker{m: h.module, gen: g, session: session(), mem: memory.scratch(0), open: map[heldKey]*held{}, sealers: map[pkcs11.ObjectHandle]*sealer{}}
	in, out := g.key(from), g.key(to)
	seal, token := g.key(h.cfg.SealKey), g.key(h.cfg.TokenKey)
	var enciphered [desBytes]byte
	copy(enciphered[:], block.Reveal())
	digits := pan.Reveal()
	t, answer := translation{ISO0, ISO0, digits, digits, h.newFill}, make([]byte, desBytes)

	decipher, encipher := session(), session()
	must(h.module.DecryptInit(decipher, mechanism(pkcs11.CKM_DES3_ECB), in.handle))
	must(h.module.EncryptInit(encipher, mechanism(pkcs11.CKM_DES3_ECB), out.handle))
	gcm, mac := naiveKey(h.module, w.session, pkcs11.CKK_AES, pkcs11.CKA_ENCRYPT), naiveKey(h.module, w.session, pkcs11.CKK_GENERIC_SECRET, pkcs11.CKA_SIGN)
	return Ways{
		Nothing: func() { must(h.call(context.Background(), protectPlain, func(*worker) error { return nil })) },
		Floor: func(n int) {
			for range n {
				_, err := h.module.DecryptUpdate(decipher, enciphered[:], w.mem.pin.block[:desBytes])
				must(err)
				_, err = h.module.EncryptUpdate(encipher, w.mem.pin.block[:desBytes], answer)
				must(err)
			}
			w.mem.clear()
		},
		Held: func(n int) {
			for range n {
				must(w.translate(t, in, out, answer, enciphered[:]))
			}
		},
		Single: func(n int) {
			g.aloof.sessions.Store(true)
			defer g.aloof.sessions.Store(false)
			for range n {
				must(w.translate(t, in, out, answer, enciphered[:]))
			}
		},
		Protect: func(n int) {
			for range n {
				_, err := w.sealPAN(seal, digits)
				must(err)
				_, err = w.tokenOf(token, digits)
				must(err)
			}
		},
		Naive: func(n int) {
			nonce := make([]byte, nonceBytes)
			for range n {
				_, _ = rand.Read(nonce)
				_, err := sealByToken(h.module, w.session, gcm, nonce, seal.aad, []byte(digits))
				must(err)
				_, err = sign(h.module, w.session, mac, []byte(digits))
				must(err)
			}
		},
	}, nil
}

func naiveKey(m module, s pkcs11.SessionHandle, keyType, use uint) pkcs11.ObjectHandle {
	value := make([]byte, 32)
	_, _ = rand.Read(value)
	k, err := m.CreateObject(s, []*pkcs11.Attribute{
		pkcs11.NewAttribute(pkcs11.CKA_CLASS, pkcs11.CKO_SECRET_KEY), pkcs11.NewAttribute(pkcs11.CKA_KEY_TYPE, keyType),
		pkcs11.NewAttribute(pkcs11.CKA_TOKEN, false), pkcs11.NewAttribute(use, true), pkcs11.NewAttribute(pkcs11.CKA_VALUE, value),
	})
	must(err)
	return k
}

func must(err error) {
	if err != nil {
		panic(err)
	}
}
