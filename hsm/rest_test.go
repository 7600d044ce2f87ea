package hsm

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"acquirerd/card"

	"github.com/miekg/pkcs11"
)

const testRest = `{"14":"MjkxMg=="}`

func TestARestIsSealedWholeAfterALostSession(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake(t)
		h, stop := f.start(f.config(), io.Discard, nil)
		f.loseSessions()
		rest := []byte(testRest)
		sealed, err := h.SealRest(t.Context(), rest)
		if err != nil || string(rest) != testRest {
			t.Fatalf("%v; the caller's rest is %s", err, rest)
		}
		if opened, err := h.OpenRest(t.Context(), sealed); err != nil || string(opened) != testRest {
			t.Errorf("opened %q, want %s: %v", opened, testRest, err)
		}
		if got := h.Statement().Generation; got != 2 {
			t.Errorf("generation %d, want 2: nothing was tried again", got)
		}
		if err := stop(); err != nil {
			t.Error(err)
		}
	})
}

func TestARestIsNotSealedOrOpenedWithoutAToken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake(t)
		h, stop := f.start(f.config(), io.Discard, nil)
		sealed, err := h.SealRest(t.Context(), []byte(testRest))
		if err != nil {
			t.Fatal(err)
		}
		f.set(func() {
			f.script = func(string, pkcs11.SessionHandle) error { return pkcs11.Error(pkcs11.CKR_TOKEN_NOT_PRESENT) }
		})
		refused := func(when string) {
			t.Helper()
			if got, err := h.SealRest(t.Context(), []byte(testRest)); !errors.Is(err, ErrUnavailable) || got.KeyID != "" || got.Ciphertext != nil {
				t.Errorf("sealing %s: %+v, %v", when, got, err)
			}
			// Not ErrSealedPAN: the forwarder would give up what can be opened tomorrow.
			if got, err := h.OpenRest(t.Context(), sealed); !errors.Is(err, ErrUnavailable) || errors.Is(err, ErrSealedPAN) || got != nil {
				t.Errorf("opening %s: %q, %v", when, got, err)
			}
		}
		refused("while the token is away")
		f.set(func() { f.script = nil })
		<-time.After(time.Minute)
		if opened, err := h.OpenRest(t.Context(), sealed); err != nil || string(opened) != testRest {
			t.Errorf("after the token is back: %q, %v", opened, err)
		}
		if err := stop(); err != nil {
			t.Error(err)
		}
		refused("after the end")
	})
}

func TestATimeoutWhileARestIsSealedGivesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake(t)
		h, stop := f.start(f.config(), io.Discard, nil)
		release := make(chan struct{})
		f.set(func() {
			f.script = func(op string, _ pkcs11.SessionHandle) error {
				if op == "Encrypt" {
					<-release
				}
				return nil
			}
		})
		rest := []byte(testRest)
		got, err := h.SealRest(t.Context(), rest)
		clear(rest) // the caller may, though the call still runs: -race finds it if it is read
		if !errors.Is(err, ErrUnavailable) || got.Ciphertext != nil {
			t.Errorf("got %+v, %v", got, err)
		}
		close(release)
		synctest.Wait()
		if err := stop(); err != nil {
			t.Error(err)
		}
	})
}

func TestARestThatCannotBeOpenedNeverReachesTheModule(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake(t)
		h, stop := f.start(f.config(), io.Discard, nil)
		sealed, err := h.SealRest(t.Context(), []byte(testRest))
		if err != nil {
			t.Fatal(err)
		}
		f.set(func() {
			f.script = func(op string, _ pkcs11.SessionHandle) error {
				if op == "DecryptInit" {
					t.Error("the module was asked")
				}
				return nil
			}
		})
		for name, spoil := range map[string]func(*card.SealedRest){
			"nothing":            func(s *card.SealedRest) { *s = card.SealedRest{} },
			"a short nonce":      func(s *card.SealedRest) { s.Nonce = s.Nonce[1:] },
			"a tag alone":        func(s *card.SealedRest) { s.Ciphertext = s.Ciphertext[:16] },
			"an unknown key":     func(s *card.SealedRest) { s.KeyID = "gone" },
			"a key of other use": func(s *card.SealedRest) { s.KeyID = "token" },
		} {
			s := card.SealedRest{KeyID: sealed.KeyID, Nonce: bytes.Clone(sealed.Nonce), Ciphertext: bytes.Clone(sealed.Ciphertext)}
			spoil(&s)
			if got, err := h.OpenRest(t.Context(), s); !errors.Is(err, ErrSealedPAN) || got != nil {
				t.Errorf("%s: %q, %v", name, got, err)
			}
		}
		f.set(func() { f.script = nil })
		if err := stop(); err != nil {
			t.Error(err)
		}
	})
}

func TestErrorsOfARestHoldNothingOfIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake(t)
		var logged bytes.Buffer
		h, stop := f.start(f.config(), &logged, nil)
		f.set(func() {
			f.script = func(op string, _ pkcs11.SessionHandle) error {
				if op == "Encrypt" {
					return pkcs11.Error(pkcs11.CKR_DEVICE_ERROR)
				}
				return nil
			}
		})
		_, err := h.SealRest(t.Context(), []byte(testRest))
		if err == nil {
			t.Fatal("sealed")
		}
		if text := fmt.Sprintf("%v %+v", err, err); bytes.Contains([]byte(text), []byte("MjkxMg")) {
			t.Errorf("the error quotes: %s", text)
		}
		if err := stop(); err != nil {
			t.Error(err)
		}
		if bytes.Contains(logged.Bytes(), []byte("MjkxMg")) {
			t.Error("the log quotes")
		}
	})
}

// A copyist is a module that keeps hold of what it was given to seal, and fails as it is told.
type copyist struct {
	*fakeModule
	copies sync.Mutex
	fails  error
	given  [][]byte
}

func (c *copyist) EncryptTo(s pkcs11.SessionHandle, in, out []byte) (int, error) {
	c.copies.Lock()
	defer c.copies.Unlock()
	c.given = append(c.given, in)
	if c.fails != nil && len(in) == len(testRest) { // not of a check
		return 0, c.fails
	}
	return c.fakeModule.EncryptTo(s, in, out)
}

// The task's own copy of what is to be sealed is cleared however the call ends.
func TestARestThatIsNotSealedIsCleared(t *testing.T) {
	for name, test := range map[string]struct {
		fails error
		late  bool // its caller has gone when the module answers
	}{
		"it is sealed":                        {},
		"the module refuses it":               {fails: pkcs11.Error(pkcs11.CKR_DATA_INVALID)},
		"the module fails, and fails again":   {fails: pkcs11.Error(pkcs11.CKR_DEVICE_ERROR)},
		"nobody waits any more":               {late: true},
		"nobody waits any more for a fault":   {late: true, fails: pkcs11.Error(pkcs11.CKR_DEVICE_ERROR)},
		"nobody waits any more for a refusal": {late: true, fails: pkcs11.Error(pkcs11.CKR_DATA_INVALID)},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := &copyist{fakeModule: newFake(t)}
				cfg := f.config()
				h, err := newHSM(cfg, slog.New(slog.DiscardHandler), nil, func(string) (module, error) { return f, nil })
				if err != nil {
					t.Fatal(err)
				}
				if err := h.Open(t.Context()); err != nil {
					t.Fatal(err)
				}
				ctx, stop := context.WithCancel(context.Background())
				done := make(chan error, 1)
				go func() { done <- h.Run(ctx) }()
				f.copies.Lock()
				f.fails = test.fails
				f.copies.Unlock()
				f.set(func() {
					f.script = func(op string, _ pkcs11.SessionHandle) error {
						if op == "EncryptInit" && test.late {
							<-time.After(cfg.CallTimeout + cfg.CallTimeout/2)
						}
						return nil
					}
				})
				if _, err := h.SealRest(t.Context(), []byte(testRest)); (err == nil) != (test.fails == nil && !test.late) {
					t.Errorf("got %v", err)
				}
				<-time.After(time.Minute)
				stop()
				if err := <-done; err != nil {
					t.Error(err)
				}
				found := 0
				for _, given := range f.given {
					if len(given) == len(testRest) {
						found++
						if bytes.ContainsFunc(given, func(r rune) bool { return r != 0 }) {
							t.Errorf("%q is left", given)
						}
					}
				}
				if found == 0 {
					t.Error("the module was given nothing")
				}
			})
		})
	}
}

// Nor is what a task opens left for a caller who has gone.
func TestARestThatIsOpenedForNobodyIsCleared(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake(t)
		cfg := f.config()
		h, stop := f.start(cfg, io.Discard, nil)
		sealed, err := h.SealRest(t.Context(), []byte(testRest))
		if err != nil {
			t.Fatal(err)
		}
		f.set(func() {
			f.clear = nil
			f.script = func(op string, _ pkcs11.SessionHandle) error {
				if op == "Decrypt" {
					<-time.After(cfg.CallTimeout + cfg.CallTimeout/2)
				}
				return nil
			}
		})
		if _, err := h.OpenRest(t.Context(), sealed); !errors.Is(err, ErrUnavailable) {
			t.Errorf("got %v", err)
		}
		<-time.After(2 * cfg.CallTimeout)
		f.set(func() {
			opened := 0
			for _, text := range f.clear {
				if len(text) == len(testRest) {
					opened++
					if bytes.ContainsFunc(text, func(r rune) bool { return r != 0 }) {
						t.Errorf("%q is left", text)
					}
				}
			}
			if opened == 0 {
				t.Error("nothing was opened")
			}
			f.script = nil
		})
		if err := stop(); err != nil {
			t.Error(err)
		}
	})
}
