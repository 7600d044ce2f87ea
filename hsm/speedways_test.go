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
				_, err = signed(h.module, w.session, pkcs11.CKM_SHA256_HMAC, mac, []byte(digits))
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

// ResidentWays are those of a translation inside the token, under keys of the session with the values of the zones: a token in a box has its own
// at hand, and NSS deciphers one of its database for each call.
type ResidentWays struct {
	Bare, Floor, Resident func(n int)
}

// BenchResident makes them for an open HSM. The PIN has four digits.
func (h *HSM) BenchResident(zpkIn, zpkOut []byte, block card.PINBlock, pan card.PAN) (ResidentWays, error) {
	g := h.gen.Load()
	memory, err := lockMemory(1)
	if err != nil {
		return ResidentWays{}, err
	}
	s, err := h.module.OpenSession(g.slot, pkcs11.CKF_SERIAL_SESSION)
	if err != nil {
		return ResidentWays{}, err
	}
	w := &worker{m: h.module, gen: g, session: s, mem: memory.scratch(0), open: map[heldKey]*held{}, sealers: map[pkcs11.ObjectHandle]*sealer{}}
	zone := func(use Use, value []byte) *key {
		r := recipes[use][0]
		o, err := h.module.CreateSecret(s, inSession(r.template("", "", len(value))), value)
		must(err)
		return &key{Key: Key{Label: "bench " + string(use), Use: use}, recipe: r, handle: o}
	}
	in, out := zone(PINIn, zpkIn), zone(PINOut, zpkOut)
	var enciphered [desBytes]byte
	copy(enciphered[:], block.Reveal())
	digits := pan.Reveal()
	t, answer, seen := translation{ISO0, ISO0, digits, digits, h.newFill}, make([]byte, desBytes), make([]byte, aesBytes)
	aside, err := h.module.OpenSession(g.slot, pkcs11.CKF_SERIAL_SESSION)
	if err != nil {
		return ResidentWays{}, err
	}
	must(h.module.DecryptInit(aside, mechanism(pkcs11.CKM_AES_ECB), g.sight.handle))
	object := func(o pkcs11.ObjectHandle, err error) pkcs11.ObjectHandle { must(err); return o }
	unwrap := func() pkcs11.ObjectHandle {
		return object(h.module.Unwrap(s, pkcs11.CKM_DES3_ECB, nil, in.handle, enciphered[:], pinPieces[desBytes]))
	}
	wrap := func(o pkcs11.ObjectHandle) {
		_, err := h.module.WrapTo(s, pkcs11.CKM_DES3_ECB, nil, out.handle, o, answer)
		must(err)
	}
	return ResidentWays{
		Bare: func(n int) {
			for range n {
				o := unwrap()
				wrap(o)
				must(h.module.DestroyObject(s, o))
			}
		},
		Floor: func(n int) {
			const fill = 5 // bytes behind four digits
			for range n {
				o := unwrap()
				for _, piece := range []struct{ bit, bytes uint }{{0, 1}, {8 * (desBytes - fill), fill}} {
					p := object(h.module.DeriveNumber(s, pkcs11.CKM_EXTRACT_KEY_FROM_KEY, piece.bit, o, pinPieces[piece.bytes]))
					_, err := h.module.WrapTo(s, pkcs11.CKM_AES_ECB, nil, g.sight.handle, p, seen)
					must(err)
					_, err = h.module.DecryptUpdate(aside, seen, seen)
					must(err)
					must(h.module.DestroyObject(s, p))
				}
				wrap(o)
				must(h.module.DestroyObject(s, o))
			}
		},
		Resident: func(n int) {
			for range n {
				must(w.translateInside(t, in, out, answer, enciphered[:]))
			}
		},
	}, nil
}
