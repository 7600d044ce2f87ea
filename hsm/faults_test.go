package hsm

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"acquirerd/card"

	"github.com/miekg/pkcs11"
	"github.com/prometheus/client_golang/prometheus"
)

func TestReturnCodes(t *testing.T) {
	for _, c := range []struct {
		code   uint
		want   class
		breaks bool
	}{
		{pkcs11.CKR_SESSION_HANDLE_INVALID, classSession, true},
		{pkcs11.CKR_USER_NOT_LOGGED_IN, classSession, true},
		{pkcs11.CKR_DEVICE_REMOVED, classDevice, true},
		{pkcs11.CKR_TOKEN_NOT_PRESENT, classDevice, true},
		{pkcs11.CKR_CRYPTOKI_NOT_INITIALIZED, classDevice, true},
		{pkcs11.CKR_PIN_LOCKED, classLogin, true},
		{pkcs11.CKR_KEY_HANDLE_INVALID, classKey, true},
		{pkcs11.CKR_OBJECT_HANDLE_INVALID, classKey, true},
		{pkcs11.CKR_ENCRYPTED_DATA_LEN_RANGE, classData, false},
		{pkcs11.CKR_DATA_INVALID, classData, false},
		{pkcs11.CKR_VENDOR_DEFINED + 5, classUnknown, true},
	} {
		err := fmt.Errorf("wrapped: %w", pkcs11.Error(c.code))
		if got, isCode := classify(err); got != c.want || !isCode || breaks(err) != c.breaks {
			t.Errorf("%v: class %s, breaks %t; want %s, %t", err, got, breaks(err), c.want, c.breaks)
		}
	}
	for _, err := range []error{nil, errors.New("other"), ErrPINBlock, context.DeadlineExceeded} {
		if breaks(err) {
			t.Errorf("%v is not of the module, and breaks the generation", err)
		}
	}
}

func TestNewReportsAllFaultsOfAConfiguration(t *testing.T) {
	_, err := New(Config{
		Workers: -1, Queue: -1, CallTimeout: -1, Backoff: Backoff{Min: 2, Max: 1},
		Keys: []Key{{Label: "a", KCV: "12345", Use: PINIn}, {Label: "a", KCV: "123456", Use: "both"}, {KCV: "123456", Use: PINOut}},
	}, nil, nil)
	if err == nil {
		t.Fatal("accepted")
	}
	for _, want := range []string{"module", "token: no label", "user PIN", "workers", "queue", "call timeout", "backoff",
		`key "a": its KCV`, `key "a": "both" is not a use`, `key "a": given twice`, "key 3: no label", "seal key", "token key"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("no fault with %q in:\n%v", want, err)
		}
	}
}

// protect checks that a result is right to the byte.
func protect(ctx context.Context, t *testing.T, h *HSM) error {
	t.Helper()
	c := testCard(t)
	p, err := h.Protect(ctx, c)
	c.PINBlock.Clear() // the caller may, whatever came of it
	if err != nil {
		if !p.PINBlock.IsZero() || p.Token != (card.PANToken{}) || p.Sealed.Ciphertext != nil {
			t.Errorf("a part of the result was given beside the error %v", err)
		}
		return err
	}
	if got := strings.ToUpper(hex.EncodeToString(p.PINBlock.Reveal())); got != vectorOut {
		t.Errorf("PIN block is %s, not %s", got, vectorOut)
	}
	return nil
}

func TestALostSessionIsRebuiltAndTheCallRetried(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake(t)
		h, stop := f.start(f.config(), io.Discard, nil)
		for loss := range 5 {
			f.loseSessions()
			if err := protect(t.Context(), t, h); err != nil {
				t.Fatalf("after loss %d: %v", loss, err)
			}
		}
		if got := h.Statement().Generation; got != 6 || f.count(&f.lives) != 6 {
			t.Errorf("generation %d, module initialised %d times; want 6", got, f.count(&f.lives))
		}
		if err := stop(); err != nil {
			t.Error(err)
		}
		if f.initialised {
			t.Error("module is not finalised")
		}
		if err := protect(t.Context(), t, h); !errors.Is(err, ErrUnavailable) {
			t.Errorf("after the end: %v", err)
		}
	})
}

func TestACallIsRetriedOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake(t)
		h, stop := f.start(f.config(), io.Discard, nil)
		tries := 0
		f.set(func() {
			f.script = func(op string, _ pkcs11.SessionHandle) error {
				if op == "Encrypt" && h.Ready() == nil { // builds check their keys while it is not ready
					tries++
					return pkcs11.Error(pkcs11.CKR_DEVICE_ERROR)
				}
				return nil
			}
		})
		if err := protect(t.Context(), t, h); !errors.Is(err, ErrUnavailable) || !errors.Is(err, pkcs11.Error(pkcs11.CKR_DEVICE_ERROR)) {
			t.Errorf("got %v", err)
		}
		if tries != 2 {
			t.Errorf("%d tries, want 2", tries)
		}
		f.set(func() { f.script = nil })
		<-time.After(time.Second) // the second rebuild in a row has to wait
		if err := protect(t.Context(), t, h); err != nil {
			t.Errorf("afterwards: %v", err)
		}
		if err := stop(); err != nil {
			t.Error(err)
		}
	})
}

func TestHandlesAreLookedUpAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake(t)
		h, stop := f.start(f.config(), io.Discard, nil)
		f.set(func() { // every old handle names another key now
			f.keys = []fakeKey{f.keys[1], f.keys[3], f.keys[0], f.keys[2]}
		})
		f.loseSessions()
		if err := protect(t.Context(), t, h); err != nil {
			t.Error(err)
		}
		if err := stop(); err != nil {
			t.Error(err)
		}
	})
}

func TestAKeyWithAnotherValueIsNeverUsed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake(t)
		h, stop := f.start(f.config(), io.Discard, nil)
		for i := range f.keys {
			good := f.keys
			f.set(func() {
				f.keys = append([]fakeKey(nil), good...)
				f.keys[i].value = bytes.Repeat([]byte{0x5B}, len(good[i].value))
				f.keys[i].value[0] = 0x13
			})
			f.loseSessions()
			if err := protect(t.Context(), t, h); !errors.Is(err, ErrUnavailable) {
				t.Errorf("key %q has another value: got %v", good[i].label, err)
			}
			before := f.count(&f.lives)
			<-time.After(time.Minute) // the bubble's clock
			if err := h.Ready(); err == nil {
				t.Errorf("key %q has another value, and the HSM is ready", good[i].label)
			}
			if tries := f.count(&f.lives) - before; tries < 5 || tries > 13 {
				t.Errorf("%d rebuilds in a minute of backoff up to 10 s", tries)
			}
			f.set(func() { f.keys = good })
			<-time.After(11 * time.Second)
			if err := protect(t.Context(), t, h); err != nil {
				t.Errorf("with the right key again: %v", err)
			}
		}
		if err := stop(); err != nil {
			t.Error(err)
		}
	})
}

func TestOpenNamesEveryFaultyKey(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake(t)
		cfg := f.config()
		cfg.Keys[0].KCV = "000000"
		f.keys[1].not = map[uint]any{pkcs11.CKA_EXTRACTABLE: true, pkcs11.CKA_DERIVE: true}
		f.keys = append(f.keys[:2], f.keys[3], f.keys[3]) // no "seal", two "token"
		err := f.hsm(cfg, io.Discard, nil).Open(t.Context())
		var faults *KeyError
		if !errors.As(err, &faults) || !errors.Is(err, ErrKeyCheck) || len(faults.Faults) != 4 {
			t.Fatalf("got %v, want a KeyError of 4", err)
		}
		for _, want := range []string{
			`"in" has KCV 08D7B4, and not 000000`, `"out" is not extractable=false, is not derive=false`,
			`"seal" is missing`, `"token" is not unique`,
		} {
			if !strings.Contains(err.Error(), want) {
				t.Errorf("no %s in: %v", want, err)
			}
		}
		if f.initialised {
			t.Error("module is not finalised")
		}
	})
}

func TestARefusedPINIsNotOfferedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake(t)
		cfg := f.config()
		var mu sync.Mutex
		pin := fakePIN
		cfg.PIN = func() ([]byte, error) {
			mu.Lock()
			defer mu.Unlock()
			return []byte(pin), nil
		}
		setPIN := func(s string) { mu.Lock(); pin = s; mu.Unlock() }
		h, stop := f.start(cfg, io.Discard, nil)

		f.set(func() { f.pin, f.logins = "1111", 0 })
		f.loseSessions()
		if err := protect(t.Context(), t, h); !errors.Is(err, ErrUnavailable) {
			t.Errorf("got %v", err)
		}
		<-time.After(time.Hour)
		if f.count(&f.logins) != 1 {
			t.Errorf("the refused PIN was offered %d times in an hour, want once", f.count(&f.logins))
		}
		setPIN("2222")
		<-time.After(time.Hour)
		if f.count(&f.logins) != 2 {
			t.Errorf("%d logins with two wrong PINs, want 2", f.count(&f.logins))
		}
		setPIN("1111")
		<-time.After(11 * time.Second)
		if err := protect(t.Context(), t, h); err != nil {
			t.Errorf("with the right PIN: %v", err)
		}
		if err := stop(); err != nil {
			t.Error(err)
		}
	})
}

func TestOpenRefusesAWrongPIN(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake(t)
		cfg := f.config()
		f.pin = "1111"
		h := f.hsm(cfg, io.Discard, nil)
		for range 3 {
			if err := h.Open(t.Context()); !errors.Is(err, ErrPINRejected) {
				t.Errorf("got %v", err)
			}
		}
		if f.logins != 1 {
			t.Errorf("%d logins, want 1", f.logins)
		}
	})
}

func TestATokenThatIsAboutToLockIsLeftAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake(t)
		cfg := f.config()
		f.flags = pkcs11.CKF_USER_PIN_FINAL_TRY
		if err := f.hsm(cfg, io.Discard, nil).Open(t.Context()); !errors.Is(err, ErrPINRejected) || f.logins != 0 {
			t.Errorf("%d logins, %v", f.logins, err)
		}
	})
}

// hang makes the calls of one operation, or of any for "", block until the returned function is called.
func (f *fakeModule) hang(op string, most int) (release func()) {
	gate := make(chan struct{})
	f.set(func() {
		f.script = func(o string, _ pkcs11.SessionHandle) error {
			f.mu.Lock()
			blocks := (o == op || op == "") && most > 0
			if blocks {
				most--
			}
			f.mu.Unlock()
			if blocks {
				<-gate
			}
			return nil
		}
	})
	return func() { close(gate) }
}

func TestAHungCallCostsOneWorker(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake(t)
		h, stop := f.start(f.config(), io.Discard, nil)
		release := f.hang("Decrypt", 1)
		began := time.Now()
		if err := protect(t.Context(), t, h); !errors.Is(err, ErrUnavailable) || !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v", err)
		}
		if took := time.Since(began); took != time.Second {
			t.Errorf("refused after %v, not after the call timeout of 1s", took)
		}
		if err := h.Ready(); err != nil {
			t.Errorf("one of two workers hangs: %v", err)
		}
		for range 10 {
			if err := protect(t.Context(), t, h); err != nil {
				t.Errorf("on the other worker: %v", err)
			}
		}
		release()
		if err := stop(); err != nil {
			t.Error(err)
		}
	})
}

func TestWhenAllWorkersHangCallsAreRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake(t)
		reg := prometheus.NewRegistry()
		h, stop := f.start(f.config(), io.Discard, reg)
		release := f.hang("Decrypt", 2)
		var callers sync.WaitGroup
		errs := make(chan error, 10)
		for range 4 { // two workers, two in the queue
			callers.Go(func() { errs <- protect(t.Context(), t, h) })
		}
		synctest.Wait()
		began := time.Now()
		if err := protect(t.Context(), t, h); !errors.Is(err, ErrBusy) || time.Since(began) != 0 {
			t.Errorf("queue full: %v after %v", err, time.Since(began))
		}
		short, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
		defer cancel()
		callers.Wait()
		close(errs)
		for err := range errs {
			if !errors.Is(err, ErrUnavailable) || !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("got %v", err)
			}
		}
		if h.Ready() == nil || gauge(t, reg, "acquirerd_hsm_ready") != 0 {
			t.Error("ready while all workers hang")
		}
		began = time.Now()
		if err := protect(short, t, h); !errors.Is(err, ErrUnavailable) || time.Since(began) != 0 {
			t.Errorf("all workers hang: %v after %v", err, time.Since(began))
		}
		release()
		synctest.Wait()
		if err := protect(t.Context(), t, h); err != nil {
			t.Errorf("afterwards: %v", err)
		}
		if err := h.Ready(); err != nil {
			t.Error(err)
		}
		if got := gauge(t, reg, "acquirerd_hsm_errors_total", "class", "timeout"); got != 4 {
			t.Errorf("%v timeouts counted, want 4", got)
		}
		if err := stop(); err != nil {
			t.Error(err)
		}
	})
}

// A rebuild waits for a call that hangs, and so C_Finalize never meets it: the fake fails the test if it does.
func TestARebuildWaitsForHungCalls(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake(t)
		h, stop := f.start(f.config(), io.Discard, nil)
		release := f.hang("Decrypt", 1)
		if err := protect(t.Context(), t, h); !errors.Is(err, ErrUnavailable) {
			t.Errorf("got %v", err)
		}
		f.loseSessions()
		if err := protect(t.Context(), t, h); !errors.Is(err, ErrUnavailable) {
			t.Errorf("got %v", err)
		}
		<-time.After(time.Minute)
		if f.count(&f.lives) != 1 || h.Ready() == nil {
			t.Errorf("module initialised %d times beside a hung call", f.lives)
		}
		release()
		synctest.Wait()
		if err := protect(t.Context(), t, h); err != nil {
			t.Errorf("afterwards: %v", err)
		}
		if err := stop(); err != nil {
			t.Error(err)
		}
	})
}

func TestStopDoesNotWaitForEverForAHungCall(t *testing.T) {
	for _, op := range []string{"Decrypt", "Initialize"} {
		t.Run(op, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newFake(t)
				h, stop := f.start(f.config(), io.Discard, nil)
				release := f.hang(op, 1)
				if op == "Initialize" {
					f.loseSessions()
				}
				if err := protect(t.Context(), t, h); !errors.Is(err, ErrUnavailable) {
					t.Errorf("got %v", err)
				}
				began := time.Now()
				if err := stop(); !errors.Is(err, errHung) {
					t.Errorf("got %v", err)
				}
				if took := time.Since(began); took > 2*time.Second {
					t.Errorf("took %v", took)
				}
				if err := f.hsm(h.cfg, io.Discard, nil).Open(t.Context()); !errors.Is(err, ErrInUse) {
					t.Errorf("a module with a hung call was opened again: %v", err)
				}
				release()
			})
		})
	}
}

func TestOpenIsBoundedByItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake(t)
		cfg := f.config()
		release := f.hang("OpenSession", 1)
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
		defer cancel()
		began := time.Now()
		if err := f.hsm(cfg, io.Discard, nil).Open(ctx); !errors.Is(err, ErrUnavailable) {
			t.Errorf("got %v", err)
		}
		if took := time.Since(began); took != 4*time.Second {
			t.Errorf("took %v, not the context's 3s and a call timeout", took)
		}
		release()
	})
}

func TestTheCallersDeadlineIsKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake(t)
		h, stop := f.start(f.config(), io.Discard, nil)
		release := f.hang("Decrypt", 1)
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		defer cancel()
		began := time.Now()
		if err := protect(ctx, t, h); !errors.Is(err, ErrUnavailable) || time.Since(began) != 50*time.Millisecond {
			t.Errorf("%v after %v", err, time.Since(began))
		}
		release()
		if err := stop(); err != nil {
			t.Error(err)
		}
	})
}

func TestABadPINBlockIsTheCallersFault(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake(t)
		reg := prometheus.NewRegistry()
		h, stop := f.start(f.config(), io.Discard, reg)
		garbage, otherPAN, noPAN := testCard(t), testCard(t), testCard(t)
		garbage.PINBlock.Reveal()[3] ^= 1
		otherPAN.PAN, _ = card.ParsePAN("5555555555554444")
		noPAN.PAN = card.PAN{}
		tooLong := testCard(t)
		tooLong.PINBlock, _ = card.NewPINBlock(append(bytes.Clone(tooLong.PINBlock.Reveal()), make([]byte, 8)...))
		for name, c := range map[string]Card{"garbage": garbage, "another PAN": otherPAN, "no PAN": noPAN, "a block of 16 bytes": tooLong} {
			if p, err := h.Protect(t.Context(), c); !errors.Is(err, ErrPINBlock) || errors.Is(err, ErrUnavailable) || p.Sealed.Ciphertext != nil {
				t.Errorf("%s: got %v", name, err)
			}
		}
		if _, err := h.Protect(t.Context(), Card{}); !errors.Is(err, ErrNoPAN) {
			t.Errorf("nothing to protect: got %v", err)
		}
		crossed := testCard(t)
		crossed.From, crossed.To = "out", "in"
		if _, err := h.Protect(t.Context(), crossed); !errors.Is(err, ErrUnavailable) {
			t.Errorf("keys crossed: got %v", err)
		}
		if f.count(&f.lives) != 1 {
			t.Errorf("module initialised %d times, want 1", f.lives)
		}
		if got := gauge(t, reg, "acquirerd_hsm_errors_total", "class", "pin_block"); got != 4 {
			t.Errorf("%v bad PIN blocks counted, want 4", got)
		}
		if err := stop(); err != nil {
			t.Error(err)
		}
	})
}

func TestMemoryIsCleared(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake(t)
		cfg := f.config()
		var pins [][]byte
		cfg.PIN = func() ([]byte, error) {
			pins = append(pins, []byte(fakePIN))
			return pins[len(pins)-1], nil
		}
		h, stop := f.start(cfg, io.Discard, nil)
		good, bad := testCard(t), testCard(t)
		bad.PINBlock.Reveal()[0] ^= 1
		var sealed card.SealedPAN
		for _, c := range []Card{good, bad} {
			if p, err := h.Protect(t.Context(), c); err == nil {
				sealed = p.Sealed
			}
		}
		_, _ = h.OpenPAN(t.Context(), sealed)
		fail := true
		f.set(func() {
			f.script = func(op string, _ pkcs11.SessionHandle) error {
				if op == "Encrypt" && fail {
					fail = false
					return pkcs11.Error(pkcs11.CKR_DEVICE_ERROR)
				}
				return nil
			}
		})
		if err := protect(t.Context(), t, h); err != nil {
			t.Error(err)
		}
		if len(f.clear) < 5 || len(pins) != 2 {
			t.Fatalf("%d clear texts and %d PINs seen: the test tests nothing", len(f.clear), len(pins))
		}
		for i, b := range append(f.clear, pins...) {
			if i < 2 || len(b) == 16 && b[0] == 0 { // trials of the key checks are no secrets
				continue
			}
			if !bytes.Equal(b, make([]byte, len(b))) && !isKeyCheck(f, b) {
				t.Errorf("clear text %d of %d bytes was left in memory", i, len(b))
			}
		}
		if !bytes.Equal(h.memory.pages, make([]byte, len(h.memory.pages))) {
			t.Error("locked memory is not clear between calls")
		}
		if err := stop(); err != nil {
			t.Error(err)
		}
	})
}

// isKeyCheck reports whether b is what the pin-in key makes of zeros at each build.
func isKeyCheck(f *fakeModule, b []byte) bool {
	return bytes.Equal(b, fakeTDES(f.keys[0].value, make([]byte, 8), false))
}

func TestErrorsAndLogsHoldNoSecret(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake(t)
		var log bytes.Buffer
		cfg := f.config()
		var leak atomic.Bool
		cfg.PIN = func() ([]byte, error) {
			if leak.Load() {
				return nil, errors.New("cannot parse " + fakePIN)
			}
			return []byte(fakePIN), nil
		}
		h, stop := f.start(cfg, &log, nil)
		var texts []string
		try := func(c Card) {
			p, err := h.Protect(t.Context(), c)
			texts = append(texts, fmt.Sprintf("%v %+v %#v", err, p, c))
		}
		try(testCard(t))
		bad := testCard(t)
		bad.PINBlock.Reveal()[0] ^= 1
		try(bad)
		p, err := h.Protect(t.Context(), testCard(t))
		if err != nil {
			t.Fatal(err)
		}
		p.Sealed.Ciphertext[0] ^= 1
		_, err = h.OpenPAN(t.Context(), p.Sealed)
		texts = append(texts, fmt.Sprint(err))
		f.set(func() { f.pin = "1111" })
		f.loseSessions()
		try(testCard(t))
		<-time.After(time.Minute)
		leak.Store(true)
		<-time.After(time.Minute)
		if err := stop(); err != nil {
			t.Error(err)
		}
		all := strings.ToUpper(log.String() + strings.Join(texts, "\n"))
		if !strings.Contains(all, "PIN_INCORRECT") || !strings.Contains(all, "NOT SHOWN") {
			t.Fatalf("the test tests nothing:\n%s", all)
		}
		secrets := []string{fakePIN, testPAN, testPAN[:len(testPAN)-1], vectorIn, "041234"}
		for _, k := range f.keys {
			secrets = append(secrets, hex.EncodeToString(k.value), string(k.value), strings.Trim(fmt.Sprintf("%d", k.value), "[]"))
		}
		for _, s := range secrets {
			for _, form := range []string{s, hex.EncodeToString([]byte(s)), strings.Trim(fmt.Sprintf("%d", []byte(s)), "[]")} {
				if strings.Contains(all, strings.ToUpper(form)) {
					t.Errorf("a secret of %d characters was printed", len(s))
				}
			}
		}
	})
}

func TestOneUserOfAModule(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake(t)
		cfg := f.config()
		h := f.hsm(cfg, io.Discard, nil)
		if err := h.Open(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := f.hsm(cfg, io.Discard, nil).Open(t.Context()); !errors.Is(err, ErrInUse) {
			t.Errorf("a second HSM: %v", err)
		}
		if _, err := Generate(cfg, NewKey{Label: "new", Use: PANSeal}); !errors.Is(err, ErrInUse) {
			t.Errorf("generating beside an open HSM: %v", err)
		}
		if _, err := List(cfg); !errors.Is(err, ErrInUse) {
			t.Errorf("listing beside an open HSM: %v", err)
		}
		components := []Component{{Value: bytes.Repeat([]byte{1}, 32)}, {Value: bytes.Repeat([]byte{2}, 32)}}
		if _, err := ImportComponents(cfg, NewKey{Label: "new", Use: PANSeal}, components); !errors.Is(err, ErrInUse) {
			t.Errorf("importing beside an open HSM: %v", err)
		}
		if err := h.Close(); err != nil {
			t.Error(err)
		}
		if f.initialised {
			t.Error("module is not finalised")
		}
		again := f.hsm(cfg, io.Discard, nil)
		if err := again.Open(t.Context()); err != nil {
			t.Errorf("after Close: %v", err)
		}
		if err := again.Close(); err != nil {
			t.Error(err)
		}
	})
}

// counting counts the calls of one operation from now on. fault is what Initialize answers.
func (f *fakeModule) counting(op string, fault error) *atomic.Int64 {
	n := new(atomic.Int64)
	f.set(func() {
		f.script = func(o string, _ pkcs11.SessionHandle) error {
			if o == op {
				n.Add(1)
			}
			if o == "Initialize" {
				return fault
			}
			return nil
		}
	})
	return n
}

func TestALostTokenIsNoticedWithoutACaller(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake(t)
		reg := prometheus.NewRegistry()
		h, stop := f.start(f.config(), io.Discard, reg)
		f.counting("", pkcs11.Error(pkcs11.CKR_TOKEN_NOT_PRESENT))
		f.loseSessions()
		<-time.After(probeInterval - time.Millisecond)
		if err := h.Ready(); err != nil {
			t.Errorf("not ready before anybody can know: %v", err)
		}
		<-time.After(2 * time.Millisecond)
		for range 12 { // and it stays so
			if h.Ready() == nil || gauge(t, reg, "acquirerd_hsm_ready") != 0 {
				t.Error("ready without a session")
			}
			<-time.After(5 * time.Second)
		}
		if got := gauge(t, reg, "acquirerd_hsm_errors_total", "class", "session"); got != 1 {
			t.Errorf("%v losses of a session counted, want 1", got)
		}
		f.set(func() { f.script = nil })
		<-time.After(11 * time.Second)
		if err := h.Ready(); err != nil || h.Statement().Generation != 2 {
			t.Errorf("generation %d, with the token back: %v", h.Statement().Generation, err)
		}
		if err := protect(t.Context(), t, h); err != nil {
			t.Error(err)
		}
		if err := stop(); err != nil {
			t.Error(err)
		}
	})
}

func TestAHealthyProbeLeavesNoTrace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake(t)
		reg := prometheus.NewRegistry()
		var log bytes.Buffer
		h, stop := f.start(f.config(), &log, reg)
		synctest.Wait()
		before := log.String()
		signed := f.counting("Sign", nil)
		<-time.After(time.Minute + time.Second)
		synctest.Wait()
		if got := signed.Load(); got != 3 { // 12 probes, each of another one of the 4 keys
			t.Errorf("%d probes of the token key in an idle minute, want 3", got)
		}
		if h.Ready() != nil || f.count(&f.lives) != 1 || log.String() != before {
			t.Errorf("ready: %v, module initialised %d times, log:\n%s", h.Ready(), f.count(&f.lives), log.String())
		}
		families, err := reg.Gather()
		if err != nil {
			t.Fatal(err)
		}
		for _, family := range families {
			for _, m := range family.GetMetric() {
				if m.GetHistogram().GetSampleCount() != 0 || family.GetName() == "acquirerd_hsm_errors_total" && m.GetCounter().GetValue() != 0 {
					t.Errorf("probes are counted: %v", m)
				}
			}
		}
		signed = f.counting("Sign", nil)
		for range 20 {
			if err := protect(t.Context(), t, h); err != nil {
				t.Error(err)
			}
			<-time.After(probeInterval - time.Second)
		}
		if got := signed.Load(); got < 20 || got > 22 { // 80 s have 5 probes, of another key each time
			t.Errorf("%d signatures of 20 calls and at most 2 probes", got)
		}
		if err := stop(); err != nil {
			t.Error(err)
		}
	})
}

// The hazard of modules that give a handle to another key without an error, idle and under load, for each key.
func TestAHandleThatNamesAnotherKeyIsFound(t *testing.T) {
	for i, label := range []string{"in", "out", "seal", "token"} {
		for name, busy := range map[string]bool{"idle": false, "under load": true} {
			t.Run(label+" "+name, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					f := newFake(t)
					h, stop := f.start(f.config(), io.Discard, nil)
					right := f.keys[i].value
					f.set(func() {
						other := bytes.Clone(right)
						other[0] ^= 0x10
						f.keys[i].value = other
					})
					found := false
					for range 70 {
						<-time.After(time.Second)
						if busy && !found {
							_, _ = h.Protect(t.Context(), testCard(t))
						}
						found = found || h.Ready() != nil
					}
					if !found || h.Ready() == nil {
						t.Error("ready with another key")
					}
					f.set(func() { f.keys[i].value = right })
					<-time.After(11 * time.Second)
					if err := h.Ready(); err != nil {
						t.Errorf("with the key back: %v", err)
					}
					if err := stop(); err != nil {
						t.Error(err)
					}
				})
			})
		}
	}
}

// What the token says of itself, and not of the PIN, passes: the daemon comes back without a restart.
func TestATokenThatIsNotReadyForItsUserComesBack(t *testing.T) {
	for _, code := range []pkcs11.Error{pkcs11.CKR_USER_PIN_NOT_INITIALIZED, pkcs11.CKR_PIN_LOCKED, pkcs11.CKR_PIN_EXPIRED} {
		t.Run(code.Error(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newFake(t)
				h, stop := f.start(f.config(), io.Discard, nil)
				f.set(func() {
					f.script = func(op string, _ pkcs11.SessionHandle) error {
						if op == "Login" {
							return code
						}
						return nil
					}
				})
				f.loseSessions()
				<-time.After(time.Minute)
				if h.Ready() == nil {
					t.Error("ready without a login")
				}
				f.set(func() { f.script = nil })
				<-time.After(11 * time.Second)
				if err := h.Ready(); err != nil {
					t.Error(err)
				}
				if err := stop(); err != nil {
					t.Error(err)
				}
			})
		})
	}
}

// A token that hangs takes a worker with each probe, one after the other, until Ready says so; then nothing is added.
func TestAHungTokenIsNoticedWithoutACaller(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake(t)
		reg := prometheus.NewRegistry()
		h, stop := f.start(f.config(), io.Discard, reg)
		release := f.hang("", 1000)
		for after, inside := range []int{0, 1, 2, 2, 2, 2} {
			if got := f.count(&f.inside); got != inside {
				t.Errorf("%d probes in the module after %d, want %d", got, after, inside)
			}
			<-time.After(probeInterval + time.Second + time.Millisecond) // with the CallTimeout of 1 s
		}
		if !errors.Is(h.Ready(), errHung) || h.inflight.Load() != 2 || len(h.queue) != 0 {
			t.Errorf("%d in flight, %d in the queue: %v", h.inflight.Load(), len(h.queue), h.Ready())
		}
		timeouts, busy := gauge(t, reg, "acquirerd_hsm_errors_total", "class", "timeout"), gauge(t, reg, "acquirerd_hsm_errors_total", "class", "busy")
		if timeouts != 2 || busy != 0 {
			t.Errorf("%v timeouts and %v times busy counted, want 2 and 0", timeouts, busy)
		}
		release()
		synctest.Wait()
		if err := h.Ready(); err != nil || f.count(&f.lives) != 1 {
			t.Errorf("afterwards: %v", err)
		}
		if err := stop(); err != nil {
			t.Error(err)
		}
	})
}

func TestRunEndsDuringAProbe(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake(t)
		_, stop := f.start(f.config(), io.Discard, nil)
		release := f.hang("Sign", 1)
		<-time.After(probeInterval + time.Millisecond)
		if f.count(&f.inside) != 1 {
			t.Fatal("no probe: the test tests nothing")
		}
		began := time.Now()
		if err := stop(); !errors.Is(err, errHung) || time.Since(began) != time.Second {
			t.Errorf("%v after %v", err, time.Since(began))
		}
		release()
	})
}

func TestAFullQueueNeedsNoProbe(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake(t)
		reg := prometheus.NewRegistry()
		cfg := f.config()
		cfg.CallTimeout = time.Minute
		h, stop := f.start(cfg, io.Discard, reg)
		release := f.hang("Decrypt", 2) // slow, not hung
		var callers sync.WaitGroup
		for range 4 { // two workers, two in the queue
			callers.Go(func() {
				if err := protect(t.Context(), t, h); err != nil {
					t.Error(err)
				}
			})
		}
		<-time.After(30 * time.Second)
		if got := h.inflight.Load(); got != 4 {
			t.Errorf("%d in flight, want 4", got)
		}
		synctest.Wait()
		if h.turn != 0 {
			t.Errorf("the probes that found no room used up %d turns", h.turn)
		}
		release()
		callers.Wait()
		for _, class := range classes {
			if got := gauge(t, reg, "acquirerd_hsm_errors_total", "class", string(class)); got != 0 {
				t.Errorf("%v errors of class %s counted", got, class)
			}
		}
		if err := h.Ready(); err != nil || f.count(&f.lives) != 1 {
			t.Errorf("module initialised %d times, %v", f.lives, err)
		}
		if err := stop(); err != nil {
			t.Error(err)
		}
	})
}

func TestBackoffGrowsToItsCapWithJitter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := backoff{Backoff: Backoff{Min: 100 * time.Millisecond, Max: time.Second}}
		for i, most := range []time.Duration{0, 100, 200, 400, 800, 1000, 1000} {
			began := time.Now()
			b.sleep(t.Context())
			most *= time.Millisecond
			if took := time.Since(began); took > most || took < most/2 {
				t.Errorf("wait %d was %v, not %v to %v", i, took, most/2, most)
			}
		}
		b.resetIfOld()
		if b.attempts == 0 {
			t.Error("forgot its attempts at once")
		}
		<-time.After(2 * time.Second)
		if b.resetIfOld(); b.attempts != 0 {
			t.Error("kept its attempts after a time of peace")
		}
	})
}

// gauge reads a metric's value, or the value of one with a label.
func gauge(t *testing.T, reg *prometheus.Registry, name string, label ...string) float64 {
	t.Helper()
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, family := range families {
		for _, m := range family.GetMetric() {
			if family.GetName() == name && (len(label) == 0 || m.GetLabel()[0].GetValue() == label[1]) {
				return m.GetGauge().GetValue() + m.GetCounter().GetValue()
			}
		}
	}
	t.Fatalf("no metric %s %v", name, label)
	return 0
}
