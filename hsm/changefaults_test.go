package hsm

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"acquirerd/card"

	"github.com/miekg/pkcs11"
	"github.com/prometheus/client_golang/prometheus"
)

// zoneKey makes a double-length key of odd parity from a name.
func zoneKey(name string) []byte {
	sum := sha256.Sum256([]byte(name))
	key := sum[:tdes2Bytes]
	oddParity(key)
	return key
}

// changing is a fake whose zone keys may be changed under "zmk".
func changing(t *testing.T, kinds ...func(*fakeModule)) (*fakeModule, Config) {
	f := newFake(t)
	for _, kind := range kinds {
		kind(f)
	}
	f.keys = append(f.keys, fakeKey{label: "zmk", use: ZMK, value: zoneKey("zmk")})
	cfg := f.config()
	cfg.Keys[0].ZMK, cfg.Keys[1].ZMK = "zmk", "zmk"
	return f, cfg
}

// onEachCarrier runs a test of key changes on tokens of each kind: one that keeps objects of data, in which marks are then, and one that does not and unwraps keys
// by itself.
func onEachCarrier(t *testing.T, test func(t *testing.T, f *fakeModule, cfg Config)) {
	for name, kind := range map[string]func(*fakeModule){
		"marks are data": func(*fakeModule) {},
		"marks are keys": func(f *fakeModule) { f.noData, f.unwrap = true, true },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f, cfg := changing(t, kind)
				test(t, f, cfg)
			})
		})
	}
}

// A keyChange is what ChangeKey is asked for.
type keyChange struct {
	Label      string
	Cryptogram []byte
	KCV        string
}

func (c keyChange) ask(ctx context.Context, h *HSM) error {
	return h.ChangeKey(ctx, c.Label, c.Cryptogram, c.KCV)
}

// changeTo is the key change that brings a clear key to the fake.
func changeTo(label string, key []byte) keyChange {
	kcv := kcvText(fakeTDES(key, make([]byte, desBytes), true))
	return keyChange{Label: label, Cryptogram: fakeTDES(zoneKey("zmk"), key, true), KCV: kcv}
}

// translated is a PIN block enciphered under one key and translated, and deciphered under another.
func translated(ctx context.Context, t *testing.T, h *HSM, under, expected []byte, previous bool) error {
	t.Helper()
	clearBlock := fakeTDES(bytesOf(t, "0123456789ABCDEFFEDCBA9876543210"), bytesOf(t, vectorIn), false)
	c := testCard(t)
	block, err := card.NewPINBlock(fakeTDES(under, clearBlock, true))
	if err != nil {
		t.Fatal(err)
	}
	c.PINBlock, c.Previous = block, previous
	p, err := h.Protect(ctx, c)
	if err != nil {
		return err
	}
	if got := fakeTDES(expected, p.PINBlock.Reveal(), false); !bytes.Equal(got, clearBlock) {
		t.Error("the PIN block is not under the key that was expected")
	}
	return nil
}

// labels are those of the token's keys that are there, of one family.
func (f *fakeModule) labels(base string) []string {
	return f.objects(base, false)
}

// marks are the labels of the marks that are there, of one family.
func (f *fakeModule) marks(base string) []string { return f.objects(base, true) }

func (f *fakeModule) objects(base string, marks bool) []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	var labels []string
	for _, k := range f.keys {
		label := strings.TrimSuffix(k.label, markSuffix)
		if of, _, ok := successorOf(label); !k.gone && k.isMark() == marks && k.owner == 0 && (label == base || ok && of == base) {
			labels = append(labels, label)
		}
	}
	return labels
}

var firstIn, firstOut = mustHex("0123456789ABCDEFFEDCBA9876543210"), mustHex("112233445566778889ABCDEF01234567")

func mustHex(s string) []byte {
	b, err := hex.DecodeString(s)
	if err != nil {
		panic(err)
	}
	return b
}

func TestTheOldKeyLivesForTheOverlap(t *testing.T) {
	onEachCarrier(t, func(t *testing.T, f *fakeModule, cfg Config) {
		var log bytes.Buffer
		var mu sync.Mutex
		reg := prometheus.NewRegistry()
		h, stop := f.start(cfg, lockedWriter{&mu, &log}, reg)
		in, out := zoneKey("in 2"), zoneKey("out 2")
		if err := translated(t.Context(), t, h, firstIn, firstOut, true); !errors.Is(err, ErrNoPreviousKey) {
			t.Errorf("before any change: %v", err)
		}
		for label, key := range map[string][]byte{"in": in, "out": out} {
			if err := changeTo(label, key).ask(t.Context(), h); err != nil {
				t.Fatal(err)
			}
		}
		synctest.Wait()
		if !bytes.Equal(h.memory.pages, make([]byte, len(h.memory.pages))) {
			t.Error("something of a key is left in memory")
		}
		usable := func(when string, old bool) {
			t.Helper()
			want := func(what string, err, refusal error) {
				t.Helper()
				if old && err != nil || !old && !errors.Is(err, refusal) {
					t.Errorf("%s: %s: %v", when, what, err)
				}
			}
			if err := translated(t.Context(), t, h, in, out, false); err != nil {
				t.Errorf("%s: the new keys: %v", when, err)
			}
			want("a block under the old pin-in key", translated(t.Context(), t, h, firstIn, out, false), ErrPINBlock)
			want("a retry under the old pin-out key", translated(t.Context(), t, h, in, firstOut, true), ErrNoPreviousKey)
		}
		usable("at once", true)
		f.loseSessions()
		usable("in the next generation", true)
		<-time.After(defaultOverlap - 5*time.Second)
		usable("at the end of the overlap", true)
		if got := f.labels("in"); len(got) != 2 {
			t.Errorf("pin-in keys %q", got)
		}
		if s := h.KeyStatus(); len(s) != 2 || s[0].Version != 2 || s[0].PreviousKCV != "08D7B4" || s[1].Until.IsZero() || s[0].KCV != changeTo("in", in).KCV {
			t.Errorf("status %+v", s)
		}
		<-time.After(6 * time.Second)
		usable("after it", false)
		<-time.After(10 * time.Second)
		usable("when the old keys are gone", false)
		for _, label := range []string{"in", "out"} {
			if got := f.labels(label); !slices.Equal(got, []string{label + "#2"}) || !slices.Equal(f.marks(label), got) {
				t.Errorf("keys %q, marks %q", got, f.marks(label))
			}
		}
		if s := h.KeyStatus(); s[0].PreviousKCV != "" || !s[0].Until.IsZero() {
			t.Errorf("status %+v", s)
		}
		generation := h.Statement().Generation
		if err := stop(); err != nil || generation != 2 {
			t.Errorf("generation %d, %v", generation, err)
		}
		h, stop = f.start(cfg, io.Discard, nil)
		usable("after a restart without the keys of the configuration", false)
		if err := stop(); err != nil {
			t.Error(err)
		}

		mu.Lock()
		defer mu.Unlock()
		for name, secret := range map[string][]byte{"new key": in, "other new key": out, "old key": firstIn, "cryptogram": changeTo("in", in).Cryptogram} {
			for _, text := range []string{string(secret), hex.EncodeToString(secret), strings.ToUpper(hex.EncodeToString(secret)), hex.EncodeToString(secret[:8])} {
				if strings.Contains(log.String(), text) {
					t.Errorf("the log has the %s", name)
				}
			}
		}
		for _, line := range []string{"hsm key changed", "hsm old key destroyed", "audit=true", "hsm key version"} {
			if !strings.Contains(log.String(), line) {
				t.Errorf("the log has no %q", line)
			}
		}
		for _, label := range []string{"in", "out"} {
			if got := gauge(t, reg, "acquirerd_hsm_key_version", "key", label); got != 2 {
				t.Errorf("version of %q is %v", label, got)
			}
		}
		if got := gauge(t, reg, "acquirerd_hsm_old_key_pin_blocks_total", "key", "in"); got != 3 {
			t.Errorf("%v PIN blocks under the old key, want 3", got)
		}
	})
}

type lockedWriter struct {
	mu *sync.Mutex
	w  io.Writer
}

func (w lockedWriter) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.w.Write(p)
}

// making is any call that makes an object: a key that is received is created or unwrapped, and a mark created or generated.
const making = "making"

func isMaking(op string) bool {
	return op == "CreateObject" || op == "UnwrapKey" || op == "GenerateKey"
}

// breakAt makes the nth call of op, and what else is in also from then on, answer with err, until the end.
func breakAt(f *fakeModule, op string, nth int, err error, also ...string) (restore func()) {
	var mu sync.Mutex
	calls := 0
	f.set(func() {
		f.script = func(called string, _ pkcs11.SessionHandle) error {
			mu.Lock()
			defer mu.Unlock()
			is := called == op || op == making && isMaking(called)
			if is {
				calls++
			}
			if is && calls == nth && errors.Is(err, pkcs11.Error(pkcs11.CKR_SESSION_HANDLE_INVALID)) {
				f.loseSessions()
			}
			if is && calls == nth || calls >= nth && slices.Contains(also, called) {
				return err
			}
			return nil
		}
	})
	return func() { f.set(func() { f.script = nil }) }
}

// A key change dies at each of its steps, with the process. The next start uses the old key, because the new one has no mark.
func TestACrashInAKeyChange(t *testing.T) {
	dead := pkcs11.Error(pkcs11.CKR_DEVICE_ERROR) // what is called after it does nothing
	all := []string{"OpenSession", "FindObjectsInit", "GetAttributeValue", "CreateObject", "UnwrapKey", "GenerateKey", "DestroyObject", "EncryptInit", "DecryptInit", "CloseSession"}
	for _, step := range []struct {
		name, op string
		nth      int
		made     bool // the key, without its mark
	}{
		{"before its session", "OpenSession", 1, false},
		{"before the trial", making, 1, false},
		{"after the trial", "DestroyObject", 1, false},
		{"before the key is made", making, 2, false},
		{"after the key is made", "FindObjectsInit", 2, true},
		{"before its check", "EncryptInit", 2, true},
		{"before its mark", making, 3, true},
	} {
		t.Run(step.name, func(t *testing.T) {
			onEachCarrier(t, func(t *testing.T, f *fakeModule, cfg Config) {
				h, stop := f.start(cfg, io.Discard, nil)
				restore := breakAt(f, step.op, step.nth, dead, all...)
				key := zoneKey("new")
				if err := changeTo("out", key).ask(t.Context(), h); !errors.Is(err, ErrUnavailable) {
					t.Errorf("the change: %v", err)
				}
				restore()
				if err := stop(); err != nil {
					t.Error(err)
				}
				h, stop = f.start(cfg, io.Discard, nil)
				if err := translated(t.Context(), t, h, firstIn, firstOut, false); err != nil || h.KeyStatus()[1].Version != 1 {
					t.Errorf("after the start: %v, %+v", err, h.KeyStatus()[1])
				}
				if got := f.labels("out"); len(got) == 2 != step.made {
					t.Errorf("keys %q", got)
				}
				<-time.After(10 * time.Second)
				if got := f.labels("out"); !slices.Equal(got, []string{"out"}) {
					t.Errorf("later: keys %q", got)
				}
				// The processor has no answer and asks again.
				if err := changeTo("out", key).ask(t.Context(), h); err != nil {
					t.Error(err)
				}
				if err := translated(t.Context(), t, h, firstIn, key, false); err != nil || h.KeyStatus()[1].PreviousKCV != cfg.Keys[1].KCV {
					t.Errorf("after the repeat: %v, %+v", err, h.KeyStatus()[1])
				}
				if err := stop(); err != nil {
					t.Error(err)
				}
			})
		})
	}
}

// The same without the death of the process: the old key stays in use, in this generation and the next, the payments keep their
// generation, and what was left in the token is never used and goes.
func TestAKeyChangeThatBreaksOffLeavesTheOldKey(t *testing.T) {
	for _, code := range []uint{pkcs11.CKR_DEVICE_ERROR, pkcs11.CKR_DEVICE_MEMORY, pkcs11.CKR_GENERAL_ERROR, pkcs11.CKR_TOKEN_WRITE_PROTECTED} {
		onEachCarrier(t, func(t *testing.T, f *fakeModule, cfg Config) {
			h, stop := f.start(cfg, io.Discard, nil)
			restore := breakAt(f, "FindObjectsInit", 2, pkcs11.Error(code), "DestroyObject")
			if err := changeTo("out", zoneKey("new")).ask(t.Context(), h); err == nil {
				t.Error("done")
			}
			restore()
			if got := f.labels("out"); len(got) != 2 {
				t.Fatalf("keys %q: nothing was left behind", got)
			}
			for range 2 {
				if err := translated(t.Context(), t, h, firstIn, firstOut, false); err != nil || h.KeyStatus()[1].Version != 1 {
					t.Errorf("%v, %+v", err, h.KeyStatus()[1])
				}
				if generation := h.Statement().Generation; generation > 2 {
					t.Errorf("generation %d", generation)
				}
				f.loseSessions()
			}
			if err := translated(t.Context(), t, h, firstIn, firstOut, false); err != nil {
				t.Error(err)
			}
			<-time.After(20 * time.Second)
			if got := f.labels("out"); !slices.Equal(got, []string{"out"}) {
				t.Errorf("keys %q", got)
			}
			if err := changeTo("out", zoneKey("new")).ask(t.Context(), h); err != nil {
				t.Error(err)
			}
			if err := translated(t.Context(), t, h, firstIn, zoneKey("new"), false); err != nil {
				t.Error(err)
			}
			if err := stop(); err != nil {
				t.Error(err)
			}
		})
	}
}

// Nothing may be left that the next process would take for the current key.
func TestWhatABrokenChangeLeftIsGoneBeforeTheNextStart(t *testing.T) {
	for _, also := range [][]string{nil, {"DestroyObject"}} { // destroyed at once, or when the token destroys again
		onEachCarrier(t, func(t *testing.T, f *fakeModule, cfg Config) {
			h, stop := f.start(cfg, io.Discard, nil)
			restore := breakAt(f, "FindObjectsInit", 2, pkcs11.Error(pkcs11.CKR_DEVICE_ERROR), also...)
			if err := changeTo("out", zoneKey("new")).ask(t.Context(), h); !errors.Is(err, ErrUnavailable) {
				t.Errorf("got %v", err)
			}
			restore()
			if also != nil {
				<-time.After(2 * probeInterval)
			}
			if got := f.labels("out"); !slices.Equal(got, []string{"out"}) {
				t.Errorf("keys %q", got)
			}
			if err := translated(t.Context(), t, h, firstIn, firstOut, false); err != nil || h.Statement().Generation != 1 {
				t.Errorf("generation %d, %v", h.Statement().Generation, err)
			}
			if err := stop(); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestALeftoverIsNoneOfTheVersions(t *testing.T) {
	onEachCarrier(t, func(t *testing.T, f *fakeModule, cfg Config) {
		h, stop := f.start(cfg, io.Discard, nil)
		restore := breakAt(f, "FindObjectsInit", 2, pkcs11.Error(pkcs11.CKR_DEVICE_ERROR), "DestroyObject")
		if err := changeTo("out", zoneKey("new")).ask(t.Context(), h); err == nil {
			t.Error("done")
		}
		restore()
		if err := changeTo("out", zoneKey("newer")).ask(t.Context(), h); err != nil {
			t.Error(err)
		}
		if got := f.labels("out"); !slices.Equal(got, []string{"out", "out#3"}) { // the second change destroys what the first one left
			t.Errorf("keys %q", got)
		}
		if err := translated(t.Context(), t, h, firstIn, zoneKey("newer"), false); err != nil {
			t.Error(err)
		}
		if err := stop(); err != nil {
			t.Error(err)
		}
	})
}

func TestAKeyChangeGoesOnInTheNextGeneration(t *testing.T) {
	for _, step := range []struct {
		op      string
		nth     int
		version int
	}{{making, 1, 2}, {making, 2, 2}, {"FindObjectsInit", 2, 3}, {making, 3, 3}} {
		onEachCarrier(t, func(t *testing.T, f *fakeModule, cfg Config) {
			h, stop := f.start(cfg, io.Discard, nil)
			breakAt(f, step.op, step.nth, pkcs11.Error(pkcs11.CKR_SESSION_HANDLE_INVALID))
			key := zoneKey("new")
			if err := changeTo("out", key).ask(t.Context(), h); err != nil {
				t.Error(err)
			}
			if s := h.KeyStatus()[1]; h.Statement().Generation > 2 || s.Version != step.version {
				t.Errorf("generation %d, %+v", h.Statement().Generation, s)
			}
			if err := translated(t.Context(), t, h, firstIn, key, false); err != nil {
				t.Error(err)
			}
			if err := translated(t.Context(), t, h, firstIn, firstOut, true); err != nil {
				t.Error(err)
			}
			if err := stop(); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestAKeyChangeThatNobodyWaitsForDoesNotHappen(t *testing.T) {
	onEachCarrier(t, func(t *testing.T, f *fakeModule, cfg Config) {
		h, stop := f.start(cfg, io.Discard, nil)
		hang, made := make(chan struct{}), 0
		f.set(func() {
			f.script = func(op string, _ pkcs11.SessionHandle) error {
				if isMaking(op) {
					if made++; made == 2 {
						<-hang
					}
				}
				return nil
			}
		})
		if err := changeTo("out", zoneKey("new")).ask(t.Context(), h); !errors.Is(err, ErrUnavailable) {
			t.Errorf("got %v", err)
		}
		if err := changeTo("out", zoneKey("newer")).ask(t.Context(), h); !errors.Is(err, ErrBusy) {
			t.Errorf("a second change beside the first: %v", err)
		}
		if err := translated(t.Context(), t, h, firstIn, firstOut, false); err != nil {
			t.Error(err)
		}
		close(hang)
		synctest.Wait()
		if got := f.labels("out"); !slices.Equal(got, []string{"out"}) {
			t.Errorf("keys %q", got)
		}
		if err := translated(t.Context(), t, h, firstIn, firstOut, false); err != nil || h.KeyStatus()[1].Version != 1 {
			t.Errorf("%v, %+v", err, h.KeyStatus())
		}
		if err := stop(); err != nil {
			t.Error(err)
		}
	})
}

func TestARecordedKeyChangeIsNotPlayedAgain(t *testing.T) {
	onEachCarrier(t, func(t *testing.T, f *fakeModule, cfg Config) {
		reg := prometheus.NewRegistry()
		h, stop := f.start(cfg, io.Discard, reg)
		for _, step := range []struct {
			label, key string
			want       error
			version    int
		}{
			{"out", "2", nil, 2},
			{"out", "2", nil, 2}, // its answer was lost
			{"out", "3", nil, 3},
			{"out", "2", ErrKeyChange, 3},
			{"in", "3", ErrKeyChange, 3},
			{"in", "2", ErrKeyChange, 3},
			{"out", "3", nil, 3},
		} {
			if err := changeTo(step.label, zoneKey(step.key)).ask(t.Context(), h); !errors.Is(err, step.want) {
				t.Errorf("%s to %s: got %v, want %v", step.label, step.key, err, step.want)
			}
			if got := h.KeyStatus(); got[1].Version != step.version || got[0].Version != 1 {
				t.Errorf("%s to %s: %+v", step.label, step.key, got)
			}
		}
		if err := stop(); err != nil {
			t.Error(err)
		}
		h, stop = f.start(cfg, io.Discard, nil)
		for range 2 {
			for key, want := range map[string]error{"2": ErrKeyChange, "3": nil} {
				if err := changeTo("out", zoneKey(key)).ask(t.Context(), h); !errors.Is(err, want) || h.KeyStatus()[1].Version != 3 {
					t.Errorf("after a start: %s: %v, %+v", key, err, h.KeyStatus()[1])
				}
			}
			<-time.After(defaultOverlap + 11*time.Second) // and then when the old keys are gone
		}
		if got := f.labels("out"); !slices.Equal(got, []string{"out#3"}) {
			t.Errorf("keys %q", got)
		}
		if err := changeTo("out", zoneKey("4")).ask(t.Context(), h); err != nil {
			t.Error(err)
		}
		for _, key := range []string{"3", "2"} {
			if err := changeTo("out", zoneKey(key)).ask(t.Context(), h); !errors.Is(err, ErrKeyChange) {
				t.Errorf("%s after 4: %v", key, err)
			}
		}
		want := map[string]float64{keyChanged: 2, keyRepeated: 2, keyReused: 3}
		for _, result := range keyResults {
			if got := gauge(t, reg, "acquirerd_hsm_key_changes_total", "result", result); got != want[result] {
				t.Errorf("%s counted %v times, want %v", result, got, want[result])
			}
		}
		if err := stop(); err != nil {
			t.Error(err)
		}
	})
}

func TestATokenThatUnwrapsNeverShowsTheNewKey(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake(t)
		f.unwrap = true
		f.keys = append(f.keys, fakeKey{label: "zmk", use: ZMK, value: zoneKey("zmk")})
		cfg := f.config()
		cfg.Keys[0].ZMK, cfg.Keys[1].ZMK = "zmk", "zmk"
		h, stop := f.start(cfg, io.Discard, nil)
		f.set(func() { f.deciphered = nil })
		bad := changeTo("out", zoneKey("new"))
		bad.KCV = "1234"
		twice := zoneKey("half")
		copy(twice[8:], twice[:8])
		for name, change := range map[string]keyChange{"another check value": bad, "equal halves": changeTo("out", twice)} {
			if err := change.ask(t.Context(), h); !errors.Is(err, ErrKeyChange) {
				t.Errorf("%s: %v", name, err)
			}
		}
		if err := changeTo("out", zoneKey("new")).ask(t.Context(), h); err != nil {
			t.Error(err)
		}
		for _, text := range f.deciphered {
			if bytes.Equal(text, zoneKey("new")) {
				t.Error("the new key was deciphered")
			}
		}
		if err := translated(t.Context(), t, h, firstIn, zoneKey("new"), false); err != nil {
			t.Error(err)
		}
		for _, o := range h.Statement().Operations {
			if o.Name == "key change under tdes" && (!o.InUse || o.Way != TokenResident) {
				t.Errorf("%+v", o)
			}
		}
		if err := stop(); err != nil {
			t.Error(err)
		}
	})
}

func TestSuccessorsThatAreNotWhatTheyWere(t *testing.T) {
	for name, spoil := range map[string]func(f *fakeModule){
		"the newest is gone":               func(f *fakeModule) { f.keys = slices.Delete(f.keys, len(f.keys)-2, len(f.keys)-1) },
		"the newest is gone, and its mark": func(f *fakeModule) { f.keys = f.keys[:len(f.keys)-2] },
		"the mark is gone":                 func(f *fakeModule) { f.keys = f.keys[:len(f.keys)-1] },
		"the newest has another value":     func(f *fakeModule) { f.keys[len(f.keys)-2].value = zoneKey("another") },
		"the newest has no record":         func(f *fakeModule) { f.keys[len(f.keys)-2].not[pkcs11.CKA_ID] = []byte("out#3") },
		"the newest is there twice":        func(f *fakeModule) { f.keys = append(f.keys, f.keys[len(f.keys)-2]) },
		"the newest can be extracted":      func(f *fakeModule) { f.keys[len(f.keys)-2].not[pkcs11.CKA_EXTRACTABLE] = true },
		"another of the same version": func(f *fakeModule) {
			k, beside := &f.keys[len(f.keys)-2], &f.keys[len(f.keys)-1]
			k.value = zoneKey("another")
			b := newBirth("out#3", trial{kcv: kcvText(fakeTDES(k.value, make([]byte, 8), true))})
			k.not[pkcs11.CKA_ID] = []byte(b.text())
			beside.not[map[bool]uint{true: pkcs11.CKA_VALUE, false: pkcs11.CKA_ID}[beside.data]] = []byte(mark{birth: b.text(), replaced: []string{"123456", "40D328"}}.text())
		},
	} {
		t.Run(name, func(t *testing.T) {
			onEachCarrier(t, func(t *testing.T, f *fakeModule, cfg Config) {
				h, stop := f.start(cfg, io.Discard, nil)
				for _, key := range []string{"2", "3"} {
					if err := changeTo("out", zoneKey(key)).ask(t.Context(), h); err != nil {
						t.Fatal(err)
					}
				}
				<-time.After(time.Minute + time.Second) // at a full minute a probe may find the loss first, and calls are refused meanwhile
				f.loseSessions()
				if err := translated(t.Context(), t, h, firstIn, zoneKey("3"), false); err != nil {
					t.Fatal(err)
				}
				var good []fakeKey
				f.set(func() { // without what ends with its session, the newest and its mark are the last
					good = slices.DeleteFunc(slices.Clone(f.keys), func(k fakeKey) bool { return k.gone || k.owner != 0 })
					f.keys = slices.Clone(good)
					for i := range f.keys[len(f.keys)-2:] {
						last := &f.keys[len(f.keys)-2+i]
						last.not = maps.Clone(last.not)
					}
					spoil(f)
				})
				f.loseSessions()
				if err := translated(t.Context(), t, h, firstIn, zoneKey("3"), false); !errors.Is(err, ErrUnavailable) || h.Ready() == nil {
					t.Errorf("got %v", err)
				}
				f.set(func() { f.keys = good })
				<-time.After(11 * time.Second)
				if err := translated(t.Context(), t, h, firstIn, zoneKey("3"), false); err != nil {
					t.Errorf("when it is as it was: %v", err)
				}
				if err := stop(); err != nil {
					t.Error(err)
				}
			})
		})
	}
}

// What is destroyed is looked up again: a handle may name another key by now, and a label too.
func TestOnlyTheKeyThatWasReplacedIsDestroyed(t *testing.T) {
	onEachCarrier(t, func(t *testing.T, f *fakeModule, cfg Config) {
		h, stop := f.start(cfg, io.Discard, nil)
		if err := changeTo("out", zoneKey("2")).ask(t.Context(), h); err != nil {
			t.Fatal(err)
		}
		f.set(func() { // an operator puts something else under the label
			f.keys = slices.Clone(f.keys)
			f.keys[1].value = zoneKey("of the operator")
		})
		<-time.After(defaultOverlap + time.Minute)
		if got := f.labels("out"); !slices.Equal(got, []string{"out", "out#2"}) {
			t.Errorf("keys %q", got)
		}
		if err := translated(t.Context(), t, h, firstIn, zoneKey("2"), false); err != nil || h.Statement().Generation != 1 {
			t.Error(err)
		}
		if err := stop(); err != nil {
			t.Error(err)
		}
	})
}

func TestNewRefusesWrongZones(t *testing.T) {
	_, cfg := changing(t)
	cfg.Overlap = 8 * 24 * time.Hour
	cfg.Keys[0].ZMK = "none"
	cfg.Keys[2].ZMK = "zmk"
	cfg.Keys = append(cfg.Keys, Key{Label: "out#2", KCV: "123456", Use: PINOut}, Key{Label: "seal#1", KCV: "123456", Use: PANSeal})
	_, err := newHSM(cfg, nil, nil, nil)
	if err == nil {
		t.Fatal("accepted")
	}
	for _, want := range []string{"overlap", `"in": its zone master key "none"`, `"seal": only a pin-in or pin-out`, `"out#2": is a label of the successors of "out"`} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("no fault with %q in:\n%v", want, err)
		}
	}
	if strings.Contains(err.Error(), "seal#1") {
		t.Errorf("got %v", err)
	}
}

// A translation took the key of version 1 just before two changes, and uses it when a probe comes by that could destroy it.
func TestACallEndsUnderTheKeyThatItTook(t *testing.T) {
	onEachCarrier(t, func(t *testing.T, f *fakeModule, cfg Config) {
		cfg.Overlap = time.Nanosecond
		h, stop := f.start(cfg, io.Discard, nil)
		<-time.After(probeInterval - 100*time.Millisecond)
		var once sync.Once
		f.set(func() {
			f.script = func(op string, _ pkcs11.SessionHandle) error {
				if op == "EncryptInit" {
					once.Do(func() { <-time.After(500 * time.Millisecond) })
				}
				return nil
			}
		})
		done := make(chan error, 1)
		go func() { done <- translated(t.Context(), t, h, firstIn, firstOut, false) }()
		synctest.Wait() // it is in the module
		f.set(func() { f.script = nil })
		for _, key := range []string{"out 2", "out 3"} {
			if err := changeTo("out", zoneKey(key)).ask(t.Context(), h); err != nil {
				t.Error(err)
			}
		}
		<-time.After(300 * time.Millisecond) // the probe has been
		if got := f.labels("out"); len(got) != 3 {
			t.Errorf("keys %q", got)
		}
		if err := <-done; err != nil || h.Statement().Generation != 1 {
			t.Errorf("generation %d, %v", h.Statement().Generation, err)
		}
		<-time.After(2 * probeInterval)
		if got := f.labels("out"); len(got) != 1 {
			t.Errorf("later: keys %q", got)
		}
		if err := stop(); err != nil {
			t.Error(err)
		}
	})
}
