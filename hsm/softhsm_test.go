package hsm_test

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"acquirerd/card"
	"acquirerd/hsm"
	"acquirerd/hsm/hsmtest"

	"github.com/miekg/pkcs11"
)

// run opens an HSM and runs it until the test ends.
func run(t testing.TB, cfg hsm.Config) *hsm.HSM {
	t.Helper()
	h, err := hsm.New(cfg, slog.New(slog.DiscardHandler), nil)
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

func pan(t testing.TB, digits string) card.PAN {
	t.Helper()
	p, err := card.ParsePAN(digits)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestKeyCheckVectors(t *testing.T) {
	token := hsmtest.New(t) // without the usual zone keys: one of them is a vector's, and no two zones may have the same
	token.Put(hsmtest.SealKey, hsm.PANSeal, hsmtest.SealValue)
	token.Put(hsmtest.TokenKey, hsm.PANToken, hsmtest.TokenValue)
	file, err := readVectors(vectorsFile())
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]string{}
	for _, v := range file {
		if v.Op != "kcv" || v.text(t, "alg") != "tdea" || len(v.text(t, "key")) != 32 {
			continue
		}
		key := v.bytes(t, "key")
		want[v.ID], _ = v.Out["kcv"].(string)
		if key := token.Put(v.ID+" in", hsm.PINIn, key); key.KCV != want[v.ID] {
			t.Fatalf("%s: hsmtest computes %s, want %s", v.ID, key.KCV, want[v.ID])
		}
		token.Put(v.ID+" out", hsm.PINOut, key)
	}
	if len(want) == 0 {
		t.Fatal("no vectors")
	}
	listed, err := hsm.List(token.Config())
	if err != nil {
		t.Fatal(err)
	}
	for id, kcv := range want {
		for _, about := range listed {
			if strings.HasPrefix(about.Label, id) && about.KCV != kcv {
				t.Errorf("%s: KCV %s, want %s", about.Label, about.KCV, kcv)
			}
		}
	}
	cfg := token.Config()
	for i := range cfg.Keys { // case does not matter
		cfg.Keys[i].KCV = strings.ToLower(cfg.Keys[i].KCV)
	}
	run(t, cfg)
}

func TestProtectAndOpen(t *testing.T) {
	h := run(t, hsmtest.Standard(t).Config())
	tokens := map[card.PANToken]bool{}
	for _, digits := range []string{"501234567890", "4222222222222", "378282246310005", "4111111111111111", "5555555555554444", "6304000000000000000"} {
		for _, pin := range []string{"", "1234", "0987654321", "123456789012"} {
			c := hsm.Card{PAN: pan(t, digits)}
			if pin != "" {
				c.PINBlock, c.From, c.To = hsmtest.EncipherPIN(hsmtest.UpstreamZPK, digits, pin), hsmtest.UpstreamKey, hsmtest.ProcessorKey
			}
			p, err := h.Protect(t.Context(), c)
			if err != nil {
				t.Fatalf("PAN of %d digits, PIN of %d: %v", len(digits), len(pin), err)
			}
			if p.PINBlock.IsZero() != (pin == "") {
				t.Error("a PIN block came from nothing, or was lost")
			}
			if pin != "" {
				if got := hsmtest.DecipherPIN(hsmtest.ProcessorZPK, digits, p.PINBlock); got != pin {
					t.Errorf("PAN of %d digits, PIN of %d: another PIN", len(digits), len(pin))
				}
			}
			opened, err := h.OpenPAN(t.Context(), p.Sealed)
			if err != nil || !opened.Equal(c.PAN) {
				t.Errorf("PAN of %d digits: opening: %v", len(digits), err)
			}
			tokens[p.Token] = true
		}
	}
	if len(tokens) != 6 {
		t.Errorf("%d tokens of 6 PANs", len(tokens))
	}
	if err := h.Ready(); err != nil {
		t.Error(err)
	}
}

func TestASealIsBoundToItsKey(t *testing.T) {
	token := hsmtest.Standard(t)
	value := bytes.Repeat([]byte{7}, 32)
	token.Put("old", hsm.PANSeal, value)
	token.Put("new", hsm.PANSeal, value)
	h := run(t, token.Config())
	seal := func() card.SealedPAN {
		p, err := h.Protect(t.Context(), hsm.Card{PAN: pan(t, "4111111111111111")})
		if err != nil {
			t.Fatal(err)
		}
		return p.Sealed
	}
	if got := seal().KeyID; got != "new" {
		t.Fatalf("sealed by %q", got)
	}
	for name, spoil := range map[string]func(*card.SealedPAN){
		"another key of the same value": func(s *card.SealedPAN) { s.KeyID = "old" },
		"another key":                   func(s *card.SealedPAN) { s.KeyID = hsmtest.SealKey },
		"a key of another use":          func(s *card.SealedPAN) { s.KeyID = hsmtest.TokenKey },
		"an unknown key":                func(s *card.SealedPAN) { s.KeyID = "gone" },
		"a changed digit":               func(s *card.SealedPAN) { s.Ciphertext[0] ^= 1 },
		"a changed tag":                 func(s *card.SealedPAN) { s.Ciphertext[len(s.Ciphertext)-1] ^= 1 },
		"a changed nonce":               func(s *card.SealedPAN) { s.Nonce[0] ^= 1 },
		"a short nonce":                 func(s *card.SealedPAN) { s.Nonce = s.Nonce[1:] },
		"a short text":                  func(s *card.SealedPAN) { s.Ciphertext = s.Ciphertext[:17] },
		"no text":                       func(s *card.SealedPAN) { s.Ciphertext = nil },
	} {
		t.Run(name, func(t *testing.T) {
			s := seal()
			spoil(&s)
			if got, err := h.OpenPAN(t.Context(), s); !errors.Is(err, hsm.ErrSealedPAN) || !got.IsZero() {
				t.Errorf("got %v, %v", got, err)
			}
		})
	}
	if s := h.Statement(); s.Generation != 1 || h.Ready() != nil {
		t.Errorf("damaged seals cost generations: now %d", s.Generation)
	}
}

func TestARestIsSealedForItsOwnPurpose(t *testing.T) {
	token := hsmtest.Standard(t)
	token.Put("new", hsm.PANSeal, unhex(t, strings.Repeat("5a", 32)))
	h := run(t, token.Config())
	digits := "4111111111111111"
	seal := func(rest string) card.SealedRest {
		t.Helper()
		sealed, err := h.SealRest(t.Context(), []byte(rest))
		if err != nil {
			t.Fatal(err)
		}
		return sealed
	}
	t.Run("and opened to the same bytes, whatever its length", func(t *testing.T) {
		nonces := map[string]bool{}
		for _, length := range []int{1, 15, 16, 17, 999, 9999} {
			rest := strings.Repeat("\x00\xffr", length)[:length]
			sealed := seal(rest)
			if sealed.KeyID != "new" || nonces[string(sealed.Nonce)] || bytes.Contains(sealed.Ciphertext, []byte(rest)) && length > 1 {
				t.Errorf("%d bytes: key %q, or a nonce used twice, or in clear", length, sealed.KeyID)
			}
			nonces[string(sealed.Nonce)] = true
			if opened, err := h.OpenRest(t.Context(), sealed); err != nil || string(opened) != rest {
				t.Errorf("%d bytes: opened %d bytes, %v", length, len(opened), err)
			}
		}
	})
	t.Run("a rest is not opened as a PAN, even if it is the digits of one", func(t *testing.T) {
		if got, err := h.OpenPAN(t.Context(), card.SealedPAN(seal(digits))); !errors.Is(err, hsm.ErrSealedPAN) || !got.IsZero() {
			t.Errorf("got %v, %v", got, err)
		}
	})
	t.Run("a sealed PAN is not opened as a rest", func(t *testing.T) {
		p, err := h.Protect(t.Context(), hsm.Card{PAN: pan(t, digits)})
		if err != nil {
			t.Fatal(err)
		}
		if got, err := h.OpenRest(t.Context(), card.SealedRest(p.Sealed)); !errors.Is(err, hsm.ErrSealedPAN) || got != nil {
			t.Errorf("got %d bytes, %v", len(got), err)
		}
	})
	for name, spoil := range map[string]func(*card.SealedRest){
		"another key":    func(s *card.SealedRest) { s.KeyID = hsmtest.SealKey },
		"a changed byte": func(s *card.SealedRest) { s.Ciphertext[0] ^= 1 },
		"a changed tag":  func(s *card.SealedRest) { s.Ciphertext[len(s.Ciphertext)-1] ^= 1 },
		"another nonce":  func(s *card.SealedRest) { s.Nonce[0] ^= 1 },
		"a byte less":    func(s *card.SealedRest) { s.Ciphertext = s.Ciphertext[1:] },
	} {
		t.Run(name+" is refused, and the token goes on", func(t *testing.T) {
			sealed := seal("rest of an advice")
			spoil(&sealed)
			if got, err := h.OpenRest(t.Context(), sealed); !errors.Is(err, hsm.ErrSealedPAN) || got != nil {
				t.Errorf("got %d bytes, %v", len(got), err)
			}
			if got := h.Statement().Generation; got != 1 {
				t.Errorf("generation %d: what was spoiled has broken the sessions", got)
			}
		})
	}
}

func TestOpenRefusesWrongTemplates(t *testing.T) {
	token := hsmtest.Standard(t)
	value := bytes.Repeat([]byte{0x13, 0x57}, 8)
	want := map[string]string{}
	bad := func(label string, use hsm.Use, problem string, value []byte, instead ...*pkcs11.Attribute) {
		token.Use(func(m *pkcs11.Ctx) {
			if err := hsmtest.Create(m, token.Login(m), label, use, value, instead...); err != nil {
				t.Fatal(err)
			}
		})
		token.Keys = append(token.Keys, hsm.Key{Label: label, Use: use, KCV: hsmtest.KCV(use, value)})
		want[label] = problem
	}
	attribute := pkcs11.NewAttribute
	bad("extractable", hsm.PINOut, "extractable=false", value, attribute(pkcs11.CKA_EXTRACTABLE, true))
	bad("not sensitive", hsm.PINOut, "sensitive=true", value, attribute(pkcs11.CKA_SENSITIVE, false))
	bad("modifiable", hsm.PINOut, "modifiable=false", value, attribute(pkcs11.CKA_MODIFIABLE, true))
	bad("copyable", hsm.PINOut, "copyable=false", value, attribute(pkcs11.CKA_COPYABLE, true))
	bad("public", hsm.PINOut, "private=true", value, attribute(pkcs11.CKA_PRIVATE, false))
	bad("both ways", hsm.PINOut, "decrypt=false", value, attribute(pkcs11.CKA_DECRYPT, true))
	bad("derives", hsm.PINIn, "derive=false", value, attribute(pkcs11.CKA_DERIVE, true))
	bad("all mechanisms", hsm.PINIn, "mechanisms", value, attribute(pkcs11.CKA_ALLOWED_MECHANISMS,
		append(word(pkcs11.CKM_DES3_ECB), word(pkcs11.CKM_DES3_CBC)...)))
	bad("no list of mechanisms", hsm.PANSeal, "mechanisms", bytes.Repeat(value, 2), attribute(pkcs11.CKA_ALLOWED_MECHANISMS, nil))
	bad("a short token key", hsm.PANToken, "128 bits", value)
	bad("AES-128", hsm.PANSeal, "128 bits", value)
	bad("a PIN key", hsm.PANSeal, "wrong key type", value, attribute(pkcs11.CKA_KEY_TYPE, pkcs11.CKK_DES2))
	token.Keys = append(token.Keys, hsm.Key{Label: "absent", Use: hsm.PINIn, KCV: "000000"})
	want["absent"] = "missing"

	h, err := hsm.New(token.Config(), slog.New(slog.DiscardHandler), nil)
	if err != nil {
		t.Fatal(err)
	}
	err = h.Open(t.Context())
	var faults *hsm.KeyError
	if !errors.As(err, &faults) || !errors.Is(err, hsm.ErrKeyCheck) {
		t.Fatalf("got %v", err)
	}
	for _, fault := range faults.Faults {
		if problem, known := want[fault.Label]; !known || !strings.Contains(fault.Problem, problem) {
			t.Errorf("%q %s, want %q", fault.Label, fault.Problem, problem)
		}
		delete(want, fault.Label)
	}
	for label := range want {
		t.Errorf("%q: no fault", label)
	}
	if strings.Contains(err.Error(), "\n") {
		t.Errorf("not one line: %v", err)
	}
}

func word(n uint) []byte { return pkcs11.NewAttribute(0, n).Value }

// Sixteen callers translate while the sessions are closed and the module is finalised behind the HSM's back, 20 times.
// Each answer is right or ErrUnavailable, and after each loss the keys are checked and calls go through again.
func TestSessionsLostUnderLoad(t *testing.T) {
	token := hsmtest.Standard(t)
	cfg := token.Config()
	cfg.Workers, cfg.Backoff = 4, hsm.Backoff{Min: time.Millisecond, Max: 20 * time.Millisecond}
	h := run(t, cfg)
	behind := pkcs11.New(token.Module)

	// The loss waits for a moment between calls: SoftHSM frees a session that another thread is using, and crashes.
	var quiet sync.RWMutex
	var good, unavailable atomic.Int64
	stop := make(chan struct{})
	var callers sync.WaitGroup
	for i := range 16 {
		digits := []string{"4111111111111111", "5555555555554444", "4000000000000002"}[i%3]
		pin := []string{"1234", "123456", "98765", "0000"}[i%4]
		callers.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				block := hsmtest.EncipherPIN(hsmtest.UpstreamZPK, digits, pin)
				quiet.RLock()
				p, err := h.Protect(t.Context(), hsm.Card{PAN: pan(t, digits), PINBlock: block, From: hsmtest.UpstreamKey, To: hsmtest.ProcessorKey})
				quiet.RUnlock()
				switch {
				case errors.Is(err, hsm.ErrUnavailable):
					unavailable.Add(1)
				case err != nil:
					t.Errorf("neither right nor unavailable: %v", err)
				case hsmtest.DecipherPIN(hsmtest.ProcessorZPK, digits, p.PINBlock) != pin:
					t.Error("a wrong PIN block was given as good")
				default:
					good.Add(1)
				}
			}
		})
	}
	for loss := range 20 {
		generation := h.Statement().Generation
		goods := good.Load()
		quiet.Lock()
		switch loss % 3 {
		case 0:
			if err := behind.CloseAllSessions(token.Slot(behind)); err != nil {
				t.Error(err)
			}
		case 1:
			if err := behind.Finalize(); err != nil {
				t.Error(err)
			}
		case 2: // and initialised again by someone who does not log in
			if err := behind.Finalize(); err != nil {
				t.Error(err)
			}
			if err := behind.Initialize(); err != nil {
				t.Error(err)
			}
		}
		quiet.Unlock()
		until(t, "a new generation that serves", func() bool {
			s := h.Statement()
			return s.Generation > generation && len(s.Keys) == 4 && good.Load() > goods+16
		})
	}
	close(stop)
	callers.Wait()
	t.Logf("%d right, %d unavailable, generation %d", good.Load(), unavailable.Load(), h.Statement().Generation)
}

// until waits for a condition that other goroutines bring about in real time: the module's C code knows no fake clock.
func until(t *testing.T, what string, done func() bool) {
	t.Helper()
	const patience = 30 * time.Second
	deadline := time.NewTimer(patience)
	defer deadline.Stop()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for !done() {
		select {
		case <-tick.C:
		case <-deadline.C:
			t.Fatalf("no %s within %v", what, patience)
		}
	}
}

// The token of an idle HSM goes away and comes back. Nobody calls: readiness has to find out by itself.
func TestATokenDirectoryThatIsMovedAway(t *testing.T) {
	cfg := hsmtest.Standard(t).Config()
	cfg.Backoff = hsm.Backoff{Min: time.Millisecond, Max: 20 * time.Millisecond}
	h := run(t, cfg)
	tokens := filepath.Join(filepath.Dir(os.Getenv("SOFTHSM2_CONF")), "tokens")
	if err := os.Rename(tokens, tokens+".away"); err != nil {
		t.Fatal(err)
	}
	until(t, "end of readiness", func() bool { return h.Ready() != nil })
	if err := os.Rename(tokens+".away", tokens); err != nil {
		t.Fatal(err)
	}
	until(t, "way back", func() bool { return h.Ready() == nil })
	if _, err := h.Protect(t.Context(), hsm.Card{PAN: pan(t, "4111111111111111")}); err != nil || h.Statement().Generation != 2 {
		t.Errorf("generation %d: %v", h.Statement().Generation, err)
	}
}

// The token is filled anew between two generations: in another order, which gives each handle another meaning, and
// then with another value under an old label.
func TestKeysAreCheckedAgainAfterARebuild(t *testing.T) {
	token := hsmtest.Standard(t)
	cfg := token.Config()
	cfg.Backoff, cfg.CallTimeout = hsm.Backoff{Min: time.Millisecond, Max: 20 * time.Millisecond}, 100*time.Millisecond
	behind := pkcs11.New(token.Module)
	var next atomic.Pointer[map[string][]byte] // what the next rebuild finds
	cfg.PIN = func() ([]byte, error) {
		values := next.Load()
		if values == nil {
			return token.PIN()
		}
		// The module is initialised and nobody is logged in: the moment to change the keys.
		refill(t, token, behind, *values)
		next.Store(nil)
		return nil, errors.New("not yet") // the HSM's own session is gone
	}
	h := run(t, cfg)
	var slot uint
	if slots, err := behind.GetSlotList(true); err == nil {
		slot = slots[0]
	}
	translate := func() error {
		const digits = "4111111111111111"
		p, err := h.Protect(t.Context(), hsm.Card{
			PAN: pan(t, digits), From: hsmtest.UpstreamKey, To: hsmtest.ProcessorKey,
			PINBlock: hsmtest.EncipherPIN(hsmtest.UpstreamZPK, digits, "1234"),
		})
		if err == nil && hsmtest.DecipherPIN(hsmtest.ProcessorZPK, digits, p.PINBlock) != "1234" {
			t.Error("a wrong PIN block was given as good")
		}
		if err != nil && !errors.Is(err, hsm.ErrUnavailable) {
			t.Error(err)
		}
		return err
	}
	lose := func(values map[string][]byte) {
		next.Store(&values)
		if err := behind.CloseAllSessions(slot); err != nil {
			t.Error(err)
		}
		_ = translate() // meets the loss
	}
	right := map[string][]byte{
		hsmtest.UpstreamKey: hsmtest.UpstreamZPK, hsmtest.ProcessorKey: hsmtest.ProcessorZPK,
		hsmtest.SealKey: hsmtest.SealValue, hsmtest.TokenKey: hsmtest.TokenValue,
	}
	for range 4 { // a map's order is another one each time
		lose(right)
		until(t, "way back with the keys in another order", func() bool { return translate() == nil })
	}
	for label := range right {
		wrong := maps.Clone(right)
		wrong[label] = bytes.Repeat([]byte{0x57, 0x13}, len(right[label])/2)
		wrong[label][0] = 0x75
		lose(wrong)
		until(t, "change of keys", func() bool { return next.Load() == nil })
		for range 50 {
			if translate() == nil || h.Ready() == nil {
				t.Fatalf("%s has another value, and is used", label)
			}
		}
		next.Store(&right) // the HSM polls by itself
		until(t, "way back with the right keys", func() bool { return translate() == nil })
	}
}

// refill destroys all keys and makes those given, in any order.
func refill(t *testing.T, token *hsmtest.Token, m *pkcs11.Ctx, values map[string][]byte) {
	s := token.Login(m)
	if err := m.FindObjectsInit(s, nil); err != nil {
		t.Error(err)
	}
	objects, _, err := m.FindObjects(s, 100)
	if err != nil {
		t.Error(err)
	}
	if err := m.FindObjectsFinal(s); err != nil {
		t.Error(err)
	}
	for _, o := range objects {
		if err := m.DestroyObject(s, o); err != nil {
			t.Error(err)
		}
	}
	uses := map[string]hsm.Use{}
	for _, k := range token.Keys {
		uses[k.Label] = k.Use
	}
	for label, value := range values {
		if err := hsmtest.Create(m, s, label, uses[label], value); err != nil {
			t.Error(err)
		}
	}
	if err := m.CloseAllSessions(token.Slot(m)); err != nil {
		t.Error(err)
	}
}

func TestOpenRefusesAWrongPINOnSoftHSM(t *testing.T) {
	cfg := hsmtest.Standard(t).Config()
	cfg.PIN = func() ([]byte, error) { return []byte("0000"), nil }
	h, err := hsm.New(cfg, slog.New(slog.DiscardHandler), nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := h.Open(t.Context()); !errors.Is(err, hsm.ErrPINRejected) || strings.Contains(err.Error(), "0000") {
		t.Errorf("got %v", err)
	}
}

func TestTokensOfOneTestLiveSideBySide(t *testing.T) {
	a, b := hsmtest.Standard(t), hsmtest.Standard(t)
	ha := run(t, a.Config())
	hb, err := hsm.New(b.Config(), slog.New(slog.DiscardHandler), nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := hb.Open(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := hb.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := ha.Protect(t.Context(), hsm.Card{PAN: pan(t, "4111111111111111")}); err != nil || ha.Statement().Generation != 1 {
		t.Errorf("the other token's end was felt: %v", err)
	}
}

// The label of a part or of a version is not that of a key of its own: the one could never be destroyed, and a key change would take the other away.
func TestLabelsOfPartsAndVersionsAreRefused(t *testing.T) {
	token := hsmtest.New(t)
	for _, label := range []string{"mac/left", "bdk/variant", "zpk#2"} {
		if _, err := hsm.Generate(token.Config(), hsm.NewKey{Label: label, Use: hsm.PANSeal}); err == nil || !strings.Contains(err.Error(), "label") {
			t.Errorf("%s: got %v", label, err)
		}
	}
	if got := labels(t, token); len(got) > 0 {
		t.Errorf("refused labels left keys: %q", got)
	}
	for _, label := range []string{"left", "mac/left/1", "zpk#1", "zpk#b"} {
		if _, err := hsm.Generate(token.Config(), hsm.NewKey{Label: label, Use: hsm.PANSeal}); err != nil {
			t.Errorf("%s: got %v", label, err)
		}
	}
}

func TestTheDefaultAlgorithmIsThatOfANewKey(t *testing.T) {
	token := hsmtest.New(t)
	for _, use := range hsm.Uses {
		if about, err := hsm.Generate(token.Config(), hsm.NewKey{Label: string(use), Use: use}); err != nil || about.Algorithm != hsm.DefaultAlgorithm(use) {
			t.Errorf("%s: got %+v, %v; want %s", use, about, err, hsm.DefaultAlgorithm(use))
		}
	}
	if got := hsm.DefaultAlgorithm("none"); got != "" {
		t.Errorf("of no use: got %s", got)
	}
}

func TestGenerateListImport(t *testing.T) {
	token := hsmtest.New(t)
	cfg := token.Config()
	for _, use := range hsm.Uses {
		about, err := hsm.Generate(cfg, hsm.NewKey{Label: "generated " + string(use), Use: use})
		if err != nil {
			t.Fatal(err)
		}
		if about.Use != use || len(about.KCV) != 6 || about.Bits < 128 {
			t.Errorf("generated %+v", about)
		}
		if _, err := hsm.Generate(cfg, hsm.NewKey{Label: "generated " + string(use), Use: use}); !errors.Is(err, hsm.ErrKeyExists) {
			t.Errorf("twice: %v", err)
		}
	}
	// Components whose XOR is a key of the vectors; two of odd parity make even parity, which is set to odd.
	a, b := unhex(t, "1C587F1C13924FEFE5F1A1B1C1D1E1F1"), make([]byte, 16)
	for i := range b {
		b[i] = a[i] ^ hsmtest.UpstreamZPK[i]
	}
	components := []hsm.Component{{Value: a}, {Value: b}}
	about, err := hsm.ImportComponents(cfg, hsm.NewKey{Label: "imported in", Use: hsm.PINIn}, components)
	if err != nil {
		t.Fatal(err)
	}
	if about.KCV != "08D7B4" || about.Type != "DES2" || about.Use != hsm.PINIn {
		t.Errorf("imported %+v", about)
	}
	if !bytes.Equal(a, make([]byte, 16)) || !bytes.Equal(b, make([]byte, 16)) {
		t.Error("components were left in memory")
	}
	zeros := []hsm.Component{{Value: []byte{31: 1}}, {Value: []byte{31: 2}}, {Value: []byte{31: 4}}}
	if about, err := hsm.ImportComponents(cfg, hsm.NewKey{Label: "imported seal", Use: hsm.PANSeal}, zeros); err != nil || about.KCV != hsmtest.KCV(hsm.PANSeal, []byte{31: 7}) {
		t.Errorf("imported %+v, %v", about, err)
	}
	if _, err := hsm.ImportComponents(cfg, hsm.NewKey{Label: "with another value", Use: hsm.PANSeal, KCV: "000000"}, []hsm.Component{{Value: []byte{31: 1}}, {Value: []byte{31: 6}}}); !errors.Is(err, hsm.ErrOtherKCV) {
		t.Errorf("got %v for another check value", err)
	}
	if about, err := hsm.ImportComponents(cfg, hsm.NewKey{Label: "with its value", Use: hsm.PANSeal, KCV: strings.ToLower(hsmtest.KCV(hsm.PANSeal, []byte{31: 7}))},
		[]hsm.Component{{Value: []byte{31: 1}}, {Value: []byte{31: 6}}}); err != nil || about.Label == "" {
		t.Errorf("got %v for its check value", err)
	}
	if keys, err := hsm.List(cfg); err != nil || slices.ContainsFunc(keys, func(k hsm.KeyInfo) bool { return k.Label == "with another value" }) {
		t.Errorf("a key with another check value stays in the token: %v, %v", keys, err)
	}
	if _, err := hsm.ImportComponents(cfg, hsm.NewKey{Label: "imported in", Use: hsm.PINIn}, []hsm.Component{{Value: []byte{15: 1}}, {Value: []byte{14: 2, 15: 9}}}); err == nil {
		t.Error("a label was imported twice, or a weak key")
	}
	keys, err := hsm.List(cfg)
	if err != nil || len(keys) != len(hsm.Uses)+1+3 { // a mac-x919 key is two
		t.Fatalf("%d keys, %v", len(keys), err)
	}
	for _, k := range keys {
		if strings.HasPrefix(k.Label, "generated") && !strings.HasSuffix(k.Label, "/left") {
			cfg.Keys = append(cfg.Keys, hsm.Key{Label: k.Label, KCV: k.KCV, Use: k.Use})
		}
	}
	cfg.SealKey, cfg.TokenKey = "generated pan-seal", "generated pan-token"
	h := run(t, cfg)
	if _, err := h.Protect(t.Context(), hsm.Card{PAN: pan(t, "4111111111111111")}); err != nil {
		t.Error(err)
	}
}

func TestStatementIsHonest(t *testing.T) {
	s := run(t, hsmtest.Standard(t).Config()).Statement()
	if len(s.Keys) != 4 || !strings.Contains(s.Module, "SoftHSM") {
		t.Errorf("got %+v", s)
	}
	for _, o := range s.Operations {
		if o.InUse && (o.Way == hsm.Transient) != strings.HasPrefix(o.Name, "PIN translation") {
			t.Errorf("%s is %s", o.Name, o.Way)
		}
	}
}

func BenchmarkProtect(b *testing.B) {
	for _, c := range []struct{ name, pin string }{{"without PIN", ""}, {"with PIN", "1234"}} {
		for _, callers := range []int{1, 32} {
			b.Run(c.name+", "+map[int]string{1: "1 caller", 32: "32 callers a core"}[callers], func(b *testing.B) {
				h := run(b, hsmtest.Standard(b).Config())
				in := hsm.Card{PAN: pan(b, "4111111111111111")}
				if c.pin != "" {
					in.PINBlock = hsmtest.EncipherPIN(hsmtest.UpstreamZPK, in.PAN.Reveal(), c.pin)
					in.From, in.To = hsmtest.UpstreamKey, hsmtest.ProcessorKey
				}
				protect := func() {
					if _, err := h.Protect(context.Background(), in); err != nil {
						b.Error(err)
					}
				}
				if callers == 1 {
					for b.Loop() {
						protect()
					}
					return
				}
				b.SetParallelism(callers)
				b.RunParallel(func(pb *testing.PB) {
					for pb.Next() {
						protect()
					}
				})
			})
		}
	}
}
