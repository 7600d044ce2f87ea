package hsm

import (
	"bytes"
	"context"
	"crypto/aes"
	"crypto/cipher"
	"encoding/hex"
	"io"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"acquirerd/card"

	"github.com/miekg/pkcs11"
)

// A scriptedUpdates is a fake module whose updates and sessions a test changes.
type scriptedUpdates struct {
	*fakeModule
	mu       sync.Mutex
	update   func(decipher bool, in, out []byte, real func() (int, error)) (int, error) // nil: as the fake does
	sessions int                                                                        // that may still be opened, if most is set
	most     bool
	opened   int
	closed   int
}

func (f *scriptedUpdates) EncryptUpdate(s pkcs11.SessionHandle, in, out []byte) (int, error) {
	real := func() (int, error) { return f.fakeModule.EncryptUpdate(s, in, out) }
	if f.update != nil {
		return f.update(false, in, out, real)
	}
	return real()
}

func (f *scriptedUpdates) DecryptUpdate(s pkcs11.SessionHandle, in, out []byte) (int, error) {
	real := func() (int, error) { return f.fakeModule.DecryptUpdate(s, in, out) }
	if f.update != nil {
		return f.update(true, in, out, real)
	}
	return real()
}

func (f *scriptedUpdates) OpenSession(slot, flags uint) (pkcs11.SessionHandle, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.most && f.sessions == 0 {
		return 0, pkcs11.Error(pkcs11.CKR_SESSION_COUNT)
	}
	f.sessions--
	f.opened++
	return f.fakeModule.OpenSession(slot, flags)
}

func (f *scriptedUpdates) CloseSession(s pkcs11.SessionHandle) error {
	f.mu.Lock()
	f.closed++
	f.sessions++
	f.mu.Unlock()
	return f.fakeModule.CloseSession(s)
}

func (f *scriptedUpdates) Finalize() error {
	f.mu.Lock()
	f.sessions += f.opened - f.closed
	f.closed = f.opened
	f.mu.Unlock()
	return f.fakeModule.Finalize()
}

// start opens and runs an HSM of one worker on the module.
func (f *scriptedUpdates) start(t *testing.T) *HSM {
	t.Helper()
	cfg := f.config()
	cfg.Workers, cfg.CallTimeout = 1, time.Minute // some calls do very much
	return f.startWith(t, cfg)
}

func (f *scriptedUpdates) startWith(t *testing.T, cfg Config) *HSM {
	t.Helper()
	h, err := newHSM(cfg, slog.New(slog.DiscardHandler), nil, func(string) (module, error) { return f, nil })
	if err != nil {
		t.Fatal(err)
	}
	h.probed = [][]finding{} // nothing is found out about a fake
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

func translatedVector(t *testing.T, h *HSM) string {
	t.Helper()
	p, err := h.Protect(t.Context(), testCard(t))
	if err != nil {
		t.Fatal(err)
	}
	return strings.ToUpper(hex.EncodeToString(p.PINBlock.Reveal()))
}

func TestTranslationsShareAnOpenOperation(t *testing.T) {
	f := &scriptedUpdates{fakeModule: newFake(t)}
	h := f.start(t)
	for range 20 {
		if got := translatedVector(t, h); got != vectorOut {
			t.Fatalf("got %s", got)
		}
	}
	if f.opened != 3 { // the worker's own, one that deciphers, one that enciphers
		t.Errorf("%d sessions were opened", f.opened)
	}
}

func TestATokenThatKeepsBlocksBackGetsWholeOperations(t *testing.T) {
	for name, update := range map[string]func(bool, []byte, []byte, func() (int, error)) (int, error){
		"it keeps them": func(bool, []byte, []byte, func() (int, error)) (int, error) { return 0, nil },
		"it gives another back": func(_ bool, in, out []byte, _ func() (int, error)) (int, error) {
			return copy(out, "12345678") * len(in) / 8, nil
		},
		"it has no updates": func(bool, []byte, []byte, func() (int, error)) (int, error) {
			return 0, pkcs11.Error(pkcs11.CKR_FUNCTION_NOT_SUPPORTED)
		},
	} {
		t.Run(name, func(t *testing.T) {
			f := &scriptedUpdates{fakeModule: newFake(t), update: update}
			h := f.start(t)
			for range 3 {
				if got := translatedVector(t, h); got != vectorOut {
					t.Fatalf("got %s", got)
				}
			}
			if f.opened != 3 || f.closed != 2 {
				t.Errorf("%d sessions were opened and %d closed: it is to be tried once in each direction", f.opened, f.closed)
			}
		})
	}
}

func TestATokenWithoutMoreSessionsGetsWholeOperations(t *testing.T) {
	f := &scriptedUpdates{fakeModule: newFake(t), most: true, sessions: 1}
	h := f.start(t)
	for range 3 {
		if got := translatedVector(t, h); got != vectorOut {
			t.Fatalf("got %s", got)
		}
	}
	if err := h.Ready(); err != nil {
		t.Error(err)
	}
}

func TestAnUpdateThatFailsBreaksTheGenerationAndIsTriedAgainInTheNext(t *testing.T) {
	failed := false
	f := &scriptedUpdates{fakeModule: newFake(t)}
	h := f.start(t)
	if got := translatedVector(t, h); got != vectorOut {
		t.Fatalf("got %s", got)
	}
	f.update = func(_ bool, _, _ []byte, real func() (int, error)) (int, error) {
		if !failed {
			failed = true
			return 0, pkcs11.Error(pkcs11.CKR_SESSION_HANDLE_INVALID)
		}
		return real()
	}
	if got := translatedVector(t, h); got != vectorOut {
		t.Errorf("got %s", got)
	}
	if h.Statement().Generation != 2 {
		t.Errorf("generation %d", h.Statement().Generation)
	}
}

// A token that gives a block back at once, and later less than it got, is not given the block again by another way: what it does is not known.
func TestAShortAnswerLaterBreaksTheGeneration(t *testing.T) {
	f := &scriptedUpdates{fakeModule: newFake(t)}
	h := f.start(t)
	translatedVector(t, h)
	short := false
	f.update = func(_ bool, in, _ []byte, real func() (int, error)) (int, error) {
		n, err := real()
		if !short {
			short = true
			return len(in) - 1, err
		}
		return n, err
	}
	if got := translatedVector(t, h); got != vectorOut || h.Statement().Generation != 2 {
		t.Errorf("got %s in generation %d", got, h.Statement().Generation)
	}
}

func TestAnOperationIsOpenedAgainBeforeItIsOld(t *testing.T) {
	f := &scriptedUpdates{fakeModule: newFake(t)}
	h := f.start(t)
	err := h.call(t.Context(), protectPlain, func(w *worker) error {
		k := w.gen.key("out")
		block := make([]byte, desBytes)
		for range mostUpdates + 1 {
			if err := w.ecb(k, false, block, block); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if f.opened != 3 || f.closed != 1 {
		t.Errorf("%d sessions were opened and %d closed", f.opened, f.closed)
	}
}

func TestAWorkerHoldsAFewOperationsOpen(t *testing.T) {
	f := &scriptedUpdates{fakeModule: newFake(t)}
	h := f.start(t)
	err := h.call(t.Context(), protectPlain, func(w *worker) error {
		out := w.gen.key("out")
		block := make([]byte, desBytes)
		for i := range 3 * mostHeld {
			again := *out // more keys than are held, by other numbers
			if i > 0 {
				o, err := f.CreateSecret(w.session, inSession(out.recipe.template("", "", 16)), fakeValue(i))
				if err != nil {
					return err
				}
				again.handle = o
			}
			want := fakeTDES(fakeValue(i), make([]byte, desBytes), true)
			if i == 0 {
				want = fakeTDES(bytesOf(t, "112233445566778889ABCDEF01234567"), make([]byte, desBytes), true)
			}
			clear(block)
			if err := w.ecb(&again, false, block, block); err != nil {
				return err
			}
			if !bytes.Equal(block, want) {
				t.Errorf("key %d: got % X", i, block)
			}
			if len(w.open) > mostHeld {
				t.Errorf("%d operations are open", len(w.open))
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if f.opened-f.closed != mostHeld+1 {
		t.Errorf("%d sessions were opened and %d closed", f.opened, f.closed)
	}
}

// A worker that serves more keys than it can hold open, in turns, keeps what it has: to open for each call what the next one closes costs more than whole
// operations. What is used no more makes room in the end.
func TestMoreKeysThanCanBeHeldDoNotCloseEachOthersOperations(t *testing.T) {
	f := &scriptedUpdates{fakeModule: newFake(t)}
	h := f.start(t)
	err := h.call(t.Context(), protectPlain, func(w *worker) error {
		out := w.gen.key("out")
		lineages := w.gen.keys["out"]
		var all []*key
		for i := range mostHeld + 2 {
			k := *out
			k.Label, k.version = successorLabel("out", i+2), i+2
			o, err := f.CreateSecret(w.session, inSession(out.recipe.template("", "", 16)), fakeValue(i))
			if err != nil {
				return err
			}
			k.handle = o
			all = append(all, &k)
		}
		lineages.Store(&lineage{current: out, former: all})
		ask := func(i int) error {
			block := make([]byte, desBytes)
			if err := w.ecb(all[i], false, block, block); err != nil {
				return err
			}
			if !bytes.Equal(block, fakeTDES(fakeValue(i), make([]byte, desBytes), true)) {
				t.Errorf("key %d: got % X", i, block)
			}
			return nil
		}
		before := f.opened
		for range 20 {
			for i := range all {
				if err := ask(i); err != nil {
					return err
				}
			}
		}
		if n := f.opened - before; n != mostHeld {
			t.Errorf("%d sessions were opened for %d operations", n, mostHeld)
		}
		last := len(all) - 1
		for range idleTurns {
			if err := ask(last); err != nil {
				return err
			}
		}
		if w.open[heldKey{all[last].handle, all[last].Label, false}] == nil || len(w.open) != mostHeld {
			t.Error("the one key that is used is not held open")
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func fakeValue(i int) []byte {
	return bytes.Repeat([]byte{byte(i), 0x31, byte(2 * i), 0x7F}, 4)
}

// What GCM over a key in the token makes is what the standard library makes of the key itself, of every length, and each opens the other's.
func TestSealsOverSingleBlocksAreGCM(t *testing.T) {
	f := newFake(t)
	value := bytesOf(t, "603DEB1015CA71BE2B73AEF0857D77811F352C073B6108D72D9810A30914DFF4")
	f.keys[2].value = value
	f.singleBlocks = true
	h, stop := f.start(f.config(), io.Discard, nil)
	defer func() {
		if err := stop(); err != nil {
			t.Error(err)
		}
	}()
	block, err := aes.NewCipher(value)
	if err != nil {
		t.Fatal(err)
	}
	gcm, err := cipher.NewGCM(block)
	if err != nil {
		t.Fatal(err)
	}
	aad := sealAAD(restPurpose, "seal")
	for _, length := range []int{1, 15, 16, 17, 511, 512, 513, 2000} {
		text := bytes.Repeat([]byte{0xA5}, length)
		sealed, err := h.SealRest(t.Context(), text)
		if err != nil {
			t.Fatal(err)
		}
		if opened, err := gcm.Open(nil, sealed.Nonce, sealed.Ciphertext, aad); err != nil || !bytes.Equal(opened, text) {
			t.Errorf("%d bytes: %v", length, err)
		}
		sealed.Ciphertext = gcm.Seal(nil, sealed.Nonce, text, aad)
		if opened, err := h.OpenRest(t.Context(), sealed); err != nil || !bytes.Equal(opened, text) {
			t.Errorf("%d bytes: %v", length, err)
		}
		sealed.Ciphertext[length/2] ^= 1
		if _, err := h.OpenRest(t.Context(), sealed); err == nil {
			t.Errorf("%d bytes: what is damaged is opened", length)
		}
	}
	if !bytes.Equal(h.memory.pages, make([]byte, len(h.memory.pages))) {
		t.Error("something is left in locked memory")
	}
}

// The token of a PAN is two CMACs of one block each, as its comment says: here by CMAC as SP 800-38B has it.
func TestTokensAreCMACs(t *testing.T) {
	f := newFake(t)
	f.singleBlocks = true
	h, stop := f.start(f.config(), io.Discard, nil)
	defer func() {
		if err := stop(); err != nil {
			t.Error(err)
		}
	}()
	seen := map[card.PANToken]bool{}
	for pan, digits := range map[string]string{
		"4111111111111111":    "104111111111111111FFFF00000000",
		"411111111111116":     "0F411111111111116FFFFF00000000",
		"4111111111111111110": "134111111111111111110F00000000",
		"411111111113":        "0C411111111113FFFFFFFF00000000",
	} {
		p, err := card.ParsePAN(pan)
		if err != nil {
			t.Fatal(err)
		}
		got, err := h.Protect(t.Context(), Card{PAN: p})
		if err != nil {
			t.Fatal(err)
		}
		key := fakeBlock(f.keys[3].value, true)
		want := append(fakeCMAC(key, bytesOf(t, "01"+digits)), fakeCMAC(key, bytesOf(t, "02"+digits))...)
		if !bytes.Equal(got.Token[:], want) {
			t.Errorf("%s: got %X, want %X", p.Mask(), got.Token[:], want)
		}
		if seen[got.Token] {
			t.Error("two PANs have one token")
		}
		seen[got.Token] = true
	}
}

// A token gives the handle of a key that was destroyed to the next one that is made. What is open on the one before is not the next one's, and ends
// with the key.
func TestAnOperationIsOfAKeyAndNotOfItsHandle(t *testing.T) {
	f := &scriptedUpdates{fakeModule: newFake(t)}
	h := f.start(t)
	err := h.call(t.Context(), protectPlain, func(w *worker) error {
		was := w.gen.key("out")
		block := make([]byte, desBytes)
		if err := w.ecb(was, false, block, block); err != nil {
			return err
		}
		f.set(func() {
			f.keys = slices.Clone(f.keys) // what is open goes on with the old value
			f.keys[was.handle-1].value = fakeValue(1)
		})
		next := *was
		next.Label, next.version = successorLabel("out", 2), 2
		w.gen.keys["out"].Store(w.gen.lineage("out").succeeded(&next, time.Now(), time.Minute))
		clear(block)
		if err := w.ecb(&next, false, block, block); err != nil {
			return err
		}
		if want := fakeTDES(fakeValue(1), make([]byte, desBytes), true); !bytes.Equal(block, want) {
			t.Errorf("the new key gives % X, want % X", block, want)
		}
		if len(w.open) != 2 {
			t.Errorf("%d operations are open: the old key may still be asked for", len(w.open))
		}
		w.gen.keys["out"].Store(w.gen.lineage("out").without(w.gen.lineage("out").former[0]))
		if err := w.ecb(w.gen.key("in"), true, block, block); err != nil {
			return err
		}
		if w.open[heldKey{was.handle, "out", false}] != nil || len(w.open) != 2 {
			t.Errorf("%v are open: the old key is gone", w.open)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// The configuration asks for a session for each worker and one for a key change: that many a token has. What is held open must not take the one of the change.
func TestOperationsHeldOpenLeaveASessionForAKeyChange(t *testing.T) {
	fake, cfg := changing(t)
	f := &scriptedUpdates{fakeModule: fake}
	cfg.Workers = 2
	f.most, f.sessions = true, cfg.Workers+1
	h := f.startWith(t, cfg)
	both := make(chan struct{})
	for range 2 { // both workers
		go func() {
			_ = h.call(context.Background(), protectPlain, func(w *worker) error {
				both <- struct{}{}
				block := make([]byte, desBytes)
				return w.ecb(w.gen.key("out"), false, block, block)
			})
		}()
	}
	<-both
	<-both
	if got := translatedVector(t, h); got != vectorOut {
		t.Fatalf("got %s", got)
	}
	if err := changeTo("out", zoneKey("new")).ask(t.Context(), h); err != nil {
		t.Error(err)
	}
	if err := translated(t.Context(), t, h, firstIn, zoneKey("new"), false); err != nil {
		t.Error(err)
	}
	if got := h.Statement().Generation; got != 1 {
		t.Errorf("generation %d: the change has cost the payments theirs", got)
	}
}

// A key that was destroyed is in no open operation any more once its worker has served another call, whatever that is.
func TestNothingStaysOpenOnAKeyThatWasDestroyed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fake, cfg := changing(t)
		f := &scriptedUpdates{fakeModule: fake}
		cfg.Workers = 1
		h := f.startWith(t, cfg)
		if err := translated(t.Context(), t, h, firstIn, firstOut, false); err != nil {
			t.Fatal(err)
		}
		if err := changeTo("out", zoneKey("new")).ask(t.Context(), h); err != nil {
			t.Fatal(err)
		}
		for range 3 { // over the overlap, and what a call gets to end with it
			if err := translated(t.Context(), t, h, firstIn, zoneKey("new"), false); err != nil {
				t.Fatal(err)
			}
			<-time.After(defaultOverlap)
		}
		if got := f.labels("out"); len(got) != 1 {
			t.Fatalf("the token has %q", got)
		}
		if err := translated(t.Context(), t, h, firstIn, zoneKey("new"), false); err != nil {
			t.Fatal(err)
		}
		if left := f.openOnGone(); len(left) != 0 {
			t.Errorf("operations are open on %q, which are destroyed", left)
		}
	})
}

// Nor is it in one of a worker that is given nothing more to do.
func TestNothingStaysOpenWithAnIdleWorker(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fake, cfg := changing(t)
		f := &scriptedUpdates{fakeModule: fake}
		cfg.Workers = 4
		h := f.startWith(t, cfg)
		var all sync.WaitGroup
		together := make(chan struct{})
		for range cfg.Workers {
			all.Go(func() {
				err := h.call(t.Context(), protectPlain, func(w *worker) error {
					<-together
					block := make([]byte, desBytes)
					return w.ecb(w.gen.key("out"), false, block, block)
				})
				if err != nil {
					t.Error(err)
				}
			})
		}
		synctest.Wait() // each worker has one
		close(together)
		all.Wait()
		if err := changeTo("out", zoneKey("new")).ask(t.Context(), h); err != nil {
			t.Fatal(err)
		}
		for began := time.Now(); len(f.labels("out")) > 1; <-time.After(time.Second) {
			if time.Since(began) > defaultOverlap+time.Minute {
				t.Fatalf("the token has %q", f.labels("out"))
			}
		}
		synctest.Wait()
		if left := f.openOnGone(); len(left) != 0 {
			t.Errorf("operations are open on %q, which are destroyed", left)
		}
		if got := h.Statement().Generation; got != 1 {
			t.Errorf("generation %d", got)
		}
	})
}

// openOnGone are the labels of keys that are not in the token any more and on which an operation is open.
func (f *fakeModule) openOnGone() (labels []string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, o := range f.sessions {
		if o.key != nil && !slices.ContainsFunc(f.keys, func(k fakeKey) bool { return !k.gone && k.label == o.key.label }) {
			labels = append(labels, o.key.label)
		}
	}
	return labels
}
