package hsm_test

import (
	"bytes"
	"context"
	"crypto/cipher"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"acquirerd/card"
	"acquirerd/hsm"
	"acquirerd/hsm/hsmtest"

	"github.com/miekg/pkcs11"
)

// Zone keys of these tests: of each algorithm one in and one out.
var (
	zoneIn  = map[hsm.Algorithm][]byte{hsm.TDES: hsmtest.ZoneKey("zone in", 16), hsm.AES: []byte("zone in of AES, a key of 32 byte")}
	zoneOut = map[hsm.Algorithm][]byte{hsm.TDES: hsmtest.ZoneKey("zone out", 24), hsm.AES: []byte("zone out of AES.")}
)

// zones puts a key for each format in each direction into a standard token.
func zones(token *hsmtest.Token) *hsmtest.Token {
	token.Put("in tdes", hsm.PINIn, zoneIn[hsm.TDES])
	token.Put("out tdes", hsm.PINOut, zoneOut[hsm.TDES])
	token.PutAES("in aes", hsm.PINIn, zoneIn[hsm.AES])
	token.PutAES("out aes", hsm.PINOut, zoneOut[hsm.AES])
	return token
}

func softly(t testing.TB, a hsm.Algorithm, value []byte) cipher.Block {
	if a == hsm.TDES {
		return tripleDES(t, value)
	}
	return aesOf(t, value)
}

// zoneCard is a PIN block of a format, as it comes, on its way to another.
func zoneCard(t testing.TB, from, to hsm.Format, digits string, block []byte) hsm.Card {
	t.Helper()
	in, err := card.NewPINBlock(block)
	if err != nil {
		t.Fatal(err)
	}
	return hsm.Card{PAN: pan(t, digits), PINBlock: in, From: "in " + string(from.Algorithm()), To: "out " + string(to.Algorithm()), FromFormat: from, ToFormat: to}
}

func allowedPairs() (list [][2]hsm.Format) {
	for _, from := range hsm.Formats {
		for _, to := range hsm.Formats {
			if hsm.AllowedPair(from, to, hsm.SamePAN) == nil {
				list = append(list, [2]hsm.Format{from, to})
			}
		}
	}
	return list
}

// operation is one of the Statement.
func operation(t *testing.T, h *hsm.HSM, name string) hsm.Operation {
	t.Helper()
	operations := h.Statement().Operations
	i := slices.IndexFunc(operations, func(o hsm.Operation) bool { return o.Name == name })
	if i < 0 {
		t.Fatalf("no operation %q in %+v", name, operations)
	}
	return operations[i]
}

func TestEachPairIsTranslatedInsideTheToken(t *testing.T) {
	h := run(t, zones(hsmtest.StandardNSS(t)).Config())
	for _, pair := range allowedPairs() {
		from, to := pair[0], pair[1]
		t.Run(fmt.Sprintf("%s to %s", from, to), func(t *testing.T) {
			keyIn, keyOut := softly(t, from.Algorithm(), zoneIn[from.Algorithm()]), softly(t, to.Algorithm(), zoneOut[to.Algorithm()])
			for _, digits := range hsm.TestPANs {
				for length := 4; length <= 12; length++ {
					pin := "987654321098"[:length]
					in := hsm.Enciphered(from, pin, digits, byte(length), keyIn)
					p, err := h.Protect(t.Context(), zoneCard(t, from, to, digits, in))
					if err != nil {
						t.Fatalf("PAN of %d, PIN of %d: %v", len(digits), length, err)
					}
					out := p.PINBlock.Reveal()
					got, rest := hsm.Deciphered(to, digits, out, keyOut)
					if got != pin {
						t.Errorf("PAN of %d, PIN of %d: got %q", len(digits), length, got)
					}
					if from == to && !bytes.Equal(out, hsm.Enciphered(to, pin, digits, byte(length), keyOut)) {
						t.Errorf("PAN of %d, PIN of %d: the same format, and another fill %s", len(digits), length, rest)
					}
				}
			}
		})
	}
	if s := h.Statement(); s.Generation != 1 {
		t.Errorf("generation %d", s.Generation)
	}
}

func TestASurrogateGivesWayToItsPANInsideTheToken(t *testing.T) {
	const surrogate, number = "4000000000000002", "4111111111111111"
	token := zones(hsmtest.StandardNSS(t))
	token.PutAES("bind", hsm.MACCMAC, []byte("binding of PANs."))
	cfg := token.Config()
	cfg.BindKey = "bind"
	h := run(t, cfg)
	proof, err := h.BindSurrogate(t.Context(), pan(t, surrogate), pan(t, number))
	if err != nil {
		t.Fatal(err)
	}
	for _, pair := range allowedPairs() {
		from, to := pair[0], pair[1]
		if hsm.AllowedPair(from, to, hsm.BoundPAN) != nil {
			continue
		}
		keyIn, keyOut := softly(t, from.Algorithm(), zoneIn[from.Algorithm()]), softly(t, to.Algorithm(), zoneOut[to.Algorithm()])
		for _, pin := range []string{"1234", "12345", "123456789012"} {
			c := zoneCard(t, from, to, number, hsm.Enciphered(from, pin, surrogate, 7, keyIn))
			c.Surrogate = hsm.Surrogate{PAN: pan(t, surrogate), Binding: proof}
			p, err := h.Protect(t.Context(), c)
			if err != nil {
				t.Fatalf("%s to %s: %v", from, to, err)
			}
			if got, _ := hsm.Deciphered(to, number, p.PINBlock.Reveal(), keyOut); got != pin {
				t.Errorf("%s to %s: got %q under the PAN, want %q", from, to, got, pin)
			}
		}
	}
}

// refusedBlock fails the test unless a block is refused, and nothing is said of why.
func refusedBlock(t *testing.T, h *hsm.HSM, what string, c hsm.Card) {
	t.Helper()
	p, err := h.Protect(t.Context(), c)
	if !errors.Is(err, hsm.ErrPINBlock) || err.Error() != hsm.ErrPINBlock.Error() || !p.PINBlock.IsZero() {
		t.Errorf("%s to %s, %s: %v", c.FromFormat, c.ToFormat, what, err)
	}
}

func TestABadPINBlockIsRefusedInsideTheToken(t *testing.T) {
	h := run(t, zones(hsmtest.StandardNSS(t)).Config())
	const digits = "4111111111111111"
	// account is what formats 0 and 3 are XORed with.
	account := unhex(t, "0000111111111111")
	for _, pair := range allowedPairs() {
		from, to := pair[0], pair[1]
		key := softly(t, from.Algorithm(), zoneIn[from.Algorithm()])
		// field makes a block of a PIN field.
		field := func(text string) []byte {
			block := unhex(t, text)
			switch from {
			case hsm.ISO0, hsm.ISO3:
				for i := range block {
					block[i] ^= account[i]
				}
			case hsm.ISO4:
				block = append(block, "12345678"...)
				key.Encrypt(block, block)
				for i, b := range unhex(t, "4"+digits+strings.Repeat("0", 15)) {
					block[i] ^= b
				}
			case hsm.ISO1:
			}
			key.Encrypt(block, block)
			return block
		}
		control := strings.TrimPrefix(string(from), "iso-")
		fill := map[hsm.Format]string{hsm.ISO0: "F", hsm.ISO1: "7", hsm.ISO3: "C", hsm.ISO4: "A"}[from]
		if _, err := h.Protect(t.Context(), zoneCard(t, from, to, digits, field(control+"41234"+strings.Repeat(fill, 10)))); err != nil {
			t.Fatalf("%s to %s: %v", from, to, err)
		}
		for _, bad := range []string{"03", "12", "24", "5C", "84", "F4"} { // no control nibble of a format here, but with a length
			if bad[:1] != control {
				refusedBlock(t, h, "control "+bad[:1], zoneCard(t, from, to, digits, field(bad[:1]+"41234"+strings.Repeat(fill, 10))))
			}
		}
		for _, length := range "0123DEF" {
			refusedBlock(t, h, "length "+string(length), zoneCard(t, from, to, digits, field(control+string(length)+"1234"+strings.Repeat(fill, 10))))
		}
		if from == hsm.ISO1 { // of which any fill is right
			continue
		}
		for length := 4; length <= 12; length++ {
			good := fmt.Sprintf("%s%X%s%s", control, length, strings.Repeat("5", length), strings.Repeat(fill, 14-length))
			for at := 2 + length; at < 16; at++ { // each nibble of the fill by itself
				bad := good[:at] + "5" + good[at+1:]
				refusedBlock(t, h, fmt.Sprintf("PIN of %d, fill at %d", length, at), zoneCard(t, from, to, digits, field(bad)))
			}
		}
		other := "5555555555554444"
		refusedBlock(t, h, "the PAN of another card", zoneCard(t, from, to, other, field(control+"41234"+strings.Repeat(fill, 10))))
		garbage := field(control + "41234" + strings.Repeat(fill, 10))
		garbage[3] ^= 0x10
		refusedBlock(t, h, "a changed bit", zoneCard(t, from, to, digits, garbage))
	}
	if s := h.Statement(); s.Generation != 1 || h.Ready() != nil {
		t.Errorf("bad blocks cost generations: now %d", s.Generation)
	}
}

func objects(t *testing.T, h *hsm.HSM) int {
	t.Helper()
	n, err := h.Objects(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func TestTranslationLeavesNoObjectInTheToken(t *testing.T) {
	cfg := zones(hsmtest.StandardNSS(t)).Config()
	cfg.Workers = 1
	h := run(t, cfg)
	before := objects(t, h)
	pairs := allowedPairs()
	for i := range 1000 {
		from, to := pairs[i%len(pairs)][0], pairs[i%len(pairs)][1]
		key := softly(t, from.Algorithm(), zoneIn[from.Algorithm()])
		c := zoneCard(t, from, to, hsm.TestPANs[i%4], hsm.Enciphered(from, "987654321098"[:4+i%9], hsm.TestPANs[i%4], byte(i), key))
		bad := i%10 == 9
		if bad {
			c = zoneCard(t, from, to, hsm.TestPANs[i%4], make([]byte, from.Bytes()))
		}
		if _, err := h.Protect(t.Context(), c); errors.Is(err, hsm.ErrPINBlock) != bad || err != nil && !bad {
			t.Fatalf("%s to %s: %v", from, to, err)
		}
	}
	if after := objects(t, h); after != before {
		t.Errorf("%d objects before, %d after", before, after)
	}
}

// A lameModule fails one call of those that make, change or show objects.
type lameModule struct {
	hsm.Module
	calls atomic.Int64
	lame  atomic.Int64 // which call fails; 0: none
	code  pkcs11.Error
	keeps atomic.Bool // the next object is not destroyed
}

func (m *lameModule) step() error {
	if n := m.calls.Add(1); n == m.lame.Load() {
		return m.code
	}
	return nil
}

func (m *lameModule) Unwrap(s pkcs11.SessionHandle, how uint, iv []byte, under pkcs11.ObjectHandle, wrapped []byte, template []*pkcs11.Attribute) (pkcs11.ObjectHandle, error) {
	if err := m.step(); err != nil {
		return 0, err
	}
	return m.Module.Unwrap(s, how, iv, under, wrapped, template)
}

func (m *lameModule) WrapTo(s pkcs11.SessionHandle, how uint, iv []byte, under, k pkcs11.ObjectHandle, out []byte) (int, error) {
	if err := m.step(); err != nil {
		return 0, err
	}
	return m.Module.WrapTo(s, how, iv, under, k, out)
}

func (m *lameModule) DeriveNumber(s pkcs11.SessionHandle, how, number uint, base pkcs11.ObjectHandle, template []*pkcs11.Attribute) (pkcs11.ObjectHandle, error) {
	if err := m.step(); err != nil {
		return 0, err
	}
	return m.Module.DeriveNumber(s, how, number, base, template)
}

func (m *lameModule) DeriveString(s pkcs11.SessionHandle, how uint, data []byte, base pkcs11.ObjectHandle, template []*pkcs11.Attribute) (pkcs11.ObjectHandle, error) {
	if err := m.step(); err != nil {
		return 0, err
	}
	return m.Module.DeriveString(s, how, data, base, template)
}

// runOn is run on a module that the test changes.
func runOn(t *testing.T, cfg hsm.Config, change func(hsm.Module) hsm.Module) *hsm.HSM {
	t.Helper()
	h, err := hsm.NewOn(cfg, change)
	if err != nil {
		t.Fatal(err)
	}
	if err := h.Open(t.Context()); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- h.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return h
}

func TestAFailedTranslationLeavesNoObjectInTheToken(t *testing.T) {
	cfg := zones(hsmtest.StandardNSS(t)).Config()
	cfg.Workers = 1
	lame := &lameModule{code: pkcs11.CKR_DATA_INVALID} // which breaks no generation: the next would begin without objects
	h := runOn(t, cfg, func(m hsm.Module) hsm.Module { lame.Module = m; return lame })
	before := objects(t, h)
	for _, pair := range allowedPairs() {
		from, to := pair[0], pair[1]
		key := softly(t, from.Algorithm(), zoneIn[from.Algorithm()])
		c := zoneCard(t, from, to, "4111111111111111", hsm.Enciphered(from, "12345", "4111111111111111", 1, key))
		steps := int64(0)
		for {
			lame.calls.Store(0)
			lame.lame.Store(steps + 1)
			_, err := h.Protect(t.Context(), c)
			lame.lame.Store(0)
			if after := objects(t, h); after != before {
				t.Fatalf("%s to %s, call %d: %d objects before, %d after", from, to, steps+1, before, after)
			}
			if err == nil {
				break
			}
			if steps++; !errors.Is(err, pkcs11.Error(pkcs11.CKR_DATA_INVALID)) || errors.Is(err, hsm.ErrPINBlock) {
				t.Fatalf("%s to %s, call %d: %v", from, to, steps, err)
			}
		}
		if least := int64(8); steps < least { // unwrap, three looks of two calls each, wrap
			t.Errorf("%s to %s: only %d calls could fail", from, to, steps)
		}
	}
}

func (m *lameModule) DestroyObject(s pkcs11.SessionHandle, o pkcs11.ObjectHandle) error {
	if m.keeps.CompareAndSwap(true, false) {
		return pkcs11.Error(pkcs11.CKR_DEVICE_ERROR)
	}
	return m.Module.DestroyObject(s, o)
}

func TestAnObjectThatIsNotDestroyedEndsWithTheGeneration(t *testing.T) {
	lame := &lameModule{}
	h := runOn(t, zones(hsmtest.StandardNSS(t)).Config(), func(m hsm.Module) hsm.Module { lame.Module = m; return lame })
	before := objects(t, h)
	lame.keeps.Store(true)
	refusedBlock(t, h, "garbage", zoneCard(t, hsm.ISO0, hsm.ISO0, "4111111111111111", make([]byte, 8))) // by the next generation
	if s, after := h.Statement(), objects(t, h); s.Generation != 2 || after != before {
		t.Errorf("generation %d, %d objects before, %d after", s.Generation, before, after)
	}
}

func TestATokenThatCannotDoAPairRefusesItAndDoesNotDoItTransient(t *testing.T) {
	cfg := zones(hsmtest.StandardNSS(t)).Config()
	h := runOn(t, cfg, func(m hsm.Module) hsm.Module { return withoutXOR{m} })
	const digits = "4111111111111111"
	in := hsm.Enciphered(hsm.ISO0, "1234", digits, 0, softly(t, hsm.TDES, zoneIn[hsm.TDES]))
	if _, err := h.Protect(t.Context(), zoneCard(t, hsm.ISO0, hsm.ISO0, digits, in)); err != nil {
		t.Error(err)
	}
	for _, to := range []hsm.Format{hsm.ISO3, hsm.ISO4} {
		err := h.CheckPINPair(hsm.ISO0, to)
		if want := fmt.Sprintf("this token cannot translate iso-0 into %s token-resident", to); !errors.Is(err, hsm.ErrPINFormat) || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q", err, want)
		}
		_, err = h.Protect(t.Context(), zoneCard(t, hsm.ISO0, to, digits, in))
		if !errors.Is(err, hsm.ErrUnavailable) || !errors.Is(err, hsm.ErrPINFormat) {
			t.Error(err)
		}
		if o := operation(t, h, fmt.Sprintf("PIN translation iso-0 to %s", to)); !o.InUse || o.Way != hsm.NotAvailable || !strings.Contains(o.Note, "CKR_MECHANISM_INVALID") {
			t.Errorf("%+v", o)
		}
	}
	if err := h.CheckPINPair("", hsm.ISO0); err != nil {
		t.Error(err)
	}
	if s := h.Statement(); s.Generation != 1 {
		t.Errorf("generation %d", s.Generation)
	}
}

type withoutXOR struct{ hsm.Module }

func (m withoutXOR) DeriveString(s pkcs11.SessionHandle, how uint, data []byte, base pkcs11.ObjectHandle, template []*pkcs11.Attribute) (pkcs11.ObjectHandle, error) {
	if how == pkcs11.CKM_XOR_BASE_AND_DATA {
		return 0, pkcs11.Error(pkcs11.CKR_MECHANISM_INVALID)
	}
	return m.Module.DeriveString(s, how, data, base, template)
}

func TestPINKeysOfBothWaysAreRefusedTogether(t *testing.T) {
	token := hsmtest.StandardNSS(t)
	value := hsmtest.ZoneKey("transient", 16)
	token.Use(func(m *pkcs11.Ctx) {
		err := hsmtest.Create(m, token.Login(m), "out transient", hsm.PINOut, value, pkcs11.NewAttribute(pkcs11.CKA_WRAP, false), pkcs11.NewAttribute(pkcs11.CKA_ENCRYPT, true))
		if err != nil {
			t.Fatal(err)
		}
	})
	cfg := token.Config()
	cfg.Keys = append(cfg.Keys, hsm.Key{Label: "out transient", Use: hsm.PINOut, KCV: hsmtest.KCV(hsm.PINOut, value)})
	h, err := hsm.NewOn(cfg, func(m hsm.Module) hsm.Module { return m })
	if err != nil {
		t.Fatal(err)
	}
	err = h.Open(t.Context())
	want := `"out transient" is for the transient way, and "zpk-pos" for the token-resident one`
	if !errors.Is(err, hsm.ErrKeyCheck) || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "\n") {
		t.Errorf("got %v, want %q", err, want)
	}
}

func TestOnlyATokenResidentHSMOpensWhereThatIsDemanded(t *testing.T) {
	cfg := hsmtest.StandardNSS(t).Config()
	cfg.RequireTokenResident = true
	h := run(t, cfg)
	if _, err := h.Protect(t.Context(), hsm.Card{PAN: pan(t, "4111111111111111"), From: hsmtest.UpstreamKey, To: hsmtest.ProcessorKey,
		PINBlock: hsmtest.EncipherPIN(hsmtest.UpstreamZPK, "4111111111111111", "1234")}); err != nil {
		t.Error(err)
	}
	if got := h.Statement().Transient(); len(got) != 0 {
		t.Errorf("transient: %v", got)
	}

	cfg = hsmtest.Standard(t).Config()
	cfg.RequireTokenResident = true
	soft, err := hsm.NewOn(cfg, func(m hsm.Module) hsm.Module { return m })
	if err != nil {
		t.Fatal(err)
	}
	if err := soft.Open(t.Context()); !errors.Is(err, hsm.ErrTransient) || !strings.Contains(err.Error(), "PIN translation iso-0 to iso-0") {
		t.Errorf("SoftHSM: %v", err)
	}
	cfg.RequireTokenResident = false
	run(t, cfg) // nothing of the refused start is left
}

// BenchmarkTokenResident is of a whole call with a PIN, one at a time, on NSS.
func BenchmarkTokenResident(b *testing.B) {
	cfg := zones(hsmtest.StandardNSS(b)).Config()
	cfg.Workers = 1
	h := run(b, cfg)
	for _, pair := range allowedPairs() {
		from, to := pair[0], pair[1]
		b.Run(fmt.Sprintf("%s to %s", from, to), func(b *testing.B) {
			const digits = "4111111111111111"
			c := zoneCard(b, from, to, digits, hsm.Enciphered(from, "1234", digits, 1, softly(b, from.Algorithm(), zoneIn[from.Algorithm()])))
			for b.Loop() {
				if _, err := h.Protect(b.Context(), c); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
