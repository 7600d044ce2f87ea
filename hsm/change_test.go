package hsm_test

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"slices"
	"sort"
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

// zmks of the tests: one of double length and one of triple.
var (
	doubleZMK = hsmtest.ZoneKey("zmk", 16)
	tripleZMK = hsmtest.ZoneKey("zmk", 24)
)

// changeable is a standard token whose zone keys can be changed: the upstream's under "zmk-2", the processor's under "zmk-3".
func changeable(t testing.TB) (*hsmtest.Token, hsm.Config) {
	token := hsmtest.Standard(t)
	token.Put("zmk-2", hsm.ZMK, doubleZMK)
	token.Put("zmk-3", hsm.ZMK, tripleZMK)
	cfg := token.Config()
	cfg.Keys[0].ZMK, cfg.Keys[1].ZMK = "zmk-2", "zmk-3"
	return token, cfg
}

// A keyChange is what ChangeKey is asked for.
type keyChange struct {
	Label      string
	Cryptogram []byte
	KCV        string
}

func (c keyChange) ask(ctx context.Context, h *hsm.HSM) error {
	return h.ChangeKey(ctx, c.Label, c.Cryptogram, c.KCV)
}

func bring(label string, key []byte) keyChange {
	zmk := doubleZMK
	if label == hsmtest.ProcessorKey {
		zmk = tripleZMK
	}
	return keyChange{Label: label, Cryptogram: hsmtest.Cryptogram(zmk, key), KCV: hsmtest.KCV(hsm.PINOut, key)}
}

// pin is the PIN that a processor with the key out finds when an upstream with the key in sends 1234.
func pin(t testing.TB, h *hsm.HSM, in, out []byte, previous bool) (string, error) {
	t.Helper()
	const digits = "4111111111111111"
	p, err := h.Protect(context.Background(), hsm.Card{PAN: pan(t, digits), PINBlock: hsmtest.EncipherPIN(in, digits, "1234"),
		From: hsmtest.UpstreamKey, To: hsmtest.ProcessorKey, Previous: previous})
	if err != nil {
		return "", err
	}
	return hsmtest.DecipherPIN(out, digits, p.PINBlock), nil
}

func TestKeysChangeOnSoftHSM(t *testing.T) {
	token, cfg := changeable(t)
	start := func() (*hsm.HSM, func()) {
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
		return h, func() {
			cancel()
			if err := <-done; err != nil {
				t.Error(err)
			}
		}
	}
	good := func(when string, h *hsm.HSM, in, out []byte, previous bool) {
		t.Helper()
		if got, err := pin(t, h, in, out, previous); got != "1234" {
			t.Errorf("%s: %q, %v", when, got, err)
		}
	}
	h, stop := start()
	in, out := hsmtest.UpstreamZPK, hsmtest.ProcessorZPK
	good("before", h, in, out, false)
	for i, length := range []int{16, 24, 24} {
		was := out
		out = hsmtest.ZoneKey(strings.Repeat("out", i), length)
		if err := bring(hsmtest.ProcessorKey, out).ask(t.Context(), h); err != nil {
			t.Fatal(err)
		}
		good("the new pin-out key", h, in, out, false)
		good("the old pin-out key", h, in, was, true)
		before := in
		in = hsmtest.ZoneKey(strings.Repeat("in", i+1), 16)
		short := bring(hsmtest.UpstreamKey, in)
		short.KCV = strings.ToLower(short.KCV[:4])
		if err := short.ask(t.Context(), h); err != nil {
			t.Fatal(err)
		}
		good("the new pin-in key", h, in, out, false)
		good("the old pin-in key", h, before, out, false)
		want := h.KeyStatus()
		stop()
		h, stop = start()
		good("new keys after a start", h, in, out, false)
		good("the old pin-in key after a start", h, before, out, false)
		good("the old pin-out key after a start", h, in, was, true)
		if got := h.KeyStatus(); !slices.Equal(got, want) || got[0].KCV != hsmtest.KCV(hsm.PINIn, in) || got[1].KCV != hsmtest.KCV(hsm.PINOut, out) {
			t.Errorf("after a start: %+v, before %+v", got, want)
		}
	}
	if got := h.KeyStatus()[0].Version; got != 4 {
		t.Errorf("version %d", got)
	}
	s := h.Statement()
	i := slices.IndexFunc(s.Operations, func(o hsm.Operation) bool { return o.Name == "key change under tdes" })
	if o := s.Operations[i]; !o.InUse || o.Way != hsm.Transient || s.Keys[1].Version != 4 {
		t.Errorf("%+v", s)
	}
	stop()

	// The same token when the overlap is over: what is old is destroyed on SoftHSM too.
	cfg.Overlap = time.Nanosecond
	h, stop = start()
	good("after the overlap", h, in, out, false)
	if _, err := pin(t, h, in, out, true); !errors.Is(err, hsm.ErrNoPreviousKey) {
		t.Errorf("got %v", err)
	}
	behind := newLister(t, cfg.Module, cfg.Token)
	until(t, "destroyed keys", func() bool { return len(behind()) <= 6 })
	want := []string{hsmtest.SealKey, hsmtest.TokenKey, "zmk-2", "zmk-3", hsmtest.UpstreamKey + "#4", hsmtest.ProcessorKey + "#4"}
	if got := behind(); !slices.Equal(got, want) {
		t.Errorf("keys %q", got)
	}
	good("when the old keys are gone", h, in, out, false)
	stop()

	// A key of a ceremony has another label, and what is not marked is not used.
	parts := []hsm.Component{{Value: hsmtest.ZoneKey("first", 16)}, {Value: hsmtest.ZoneKey("second", 16)}}
	if _, err := hsm.ImportComponents(cfg, hsm.NewKey{Label: hsmtest.ProcessorKey, Use: hsm.PINOut}, parts); !errors.Is(err, hsm.ErrKeyExists) || !strings.Contains(err.Error(), "needs a new label") {
		t.Errorf("a key of the label of one that was replaced: %v", err)
	}
	token.Use(func(m *pkcs11.Ctx) {
		s := token.Login(m)
		if err := m.FindObjectsInit(s, []*pkcs11.Attribute{pkcs11.NewAttribute(pkcs11.CKA_CLASS, pkcs11.CKO_DATA)}); err != nil {
			t.Fatal(err)
		}
		marks, _, err := m.FindObjects(s, 100)
		if err != nil || len(marks) != 2 {
			t.Errorf("%d marks, %v", len(marks), err)
		}
		if err := m.FindObjectsFinal(s); err != nil {
			t.Error(err)
		}
		for _, mark := range marks {
			if err := m.SetAttributeValue(s, mark, []*pkcs11.Attribute{pkcs11.NewAttribute(pkcs11.CKA_VALUE, "another")}); err == nil {
				t.Error("a mark can be written over")
			}
			if err := m.DestroyObject(s, mark); err != nil {
				t.Error(err)
			}
		}
	})
	h, err := hsm.New(cfg, slog.New(slog.DiscardHandler), nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := h.Open(t.Context()); err == nil || strings.Count(err.Error(), "has no mark of its adoption") != 2 {
		t.Errorf("without their marks: %v", err)
	}
}

func TestARefusedKeyChangeLeavesTheOldKey(t *testing.T) {
	token, cfg := changeable(t)
	h := run(t, cfg)
	in, out := hsmtest.ZoneKey("in", 16), hsmtest.ZoneKey("out", 24)
	join := func(parts ...[]byte) []byte { return slices.Concat(parts...) }
	flipped := bytes.Clone(in[:8])
	for i := range flipped {
		flipped[i] ^= 1
	}
	weak := unhex(t, "0101010101010101")
	for _, c := range []struct {
		name, says string
		change     keyChange
	}{
		{"another check value", "another check value", keyChange{Label: hsmtest.UpstreamKey, Cryptogram: bring(hsmtest.UpstreamKey, in).Cryptogram, KCV: "000000"}},
		{"another short check value", "another check value", keyChange{Label: hsmtest.UpstreamKey, Cryptogram: bring(hsmtest.UpstreamKey, in).Cryptogram, KCV: "0000"}},
		{"no check value", "check value is not", keyChange{Label: hsmtest.UpstreamKey, Cryptogram: bring(hsmtest.UpstreamKey, in).Cryptogram}},
		{"a check value of 5 digits", "check value is not", keyChange{Label: hsmtest.UpstreamKey, Cryptogram: bring(hsmtest.UpstreamKey, in).Cryptogram, KCV: "12345"}},
		{"another zone master key", "odd parity", keyChange{Label: hsmtest.UpstreamKey, Cryptogram: hsmtest.Cryptogram(tripleZMK, in), KCV: hsmtest.KCV(hsm.PINIn, in)}},
		{"a key in clear", "odd parity", keyChange{Label: hsmtest.UpstreamKey, Cryptogram: in, KCV: hsmtest.KCV(hsm.PINIn, in)}},
		{"no cryptogram", "0 bytes", keyChange{Label: hsmtest.UpstreamKey, KCV: "123456"}},
		{"single length", "8 bytes", keyChange{Label: hsmtest.UpstreamKey, Cryptogram: make([]byte, 8), KCV: "123456"}},
		{"a byte too many", "17 bytes", keyChange{Label: hsmtest.UpstreamKey, Cryptogram: make([]byte, 17), KCV: "123456"}},
		{"a length of AES alone", "32 bytes", keyChange{Label: hsmtest.UpstreamKey, Cryptogram: join(in, out[:16]), KCV: "123456"}},
		{"a weaker zone master key", "weaker", bring(hsmtest.UpstreamKey, out)},
		{"equal halves", "equal parts", bring(hsmtest.UpstreamKey, join(in[:8], in[:8]))},
		{"first and last third equal", "equal parts", bring(hsmtest.ProcessorKey, join(out[:16], out[:8]))},
		{"halves equal but for parity", "odd parity", bring(hsmtest.UpstreamKey, join(in[:8], flipped))},
		{"a weak half", "weak half", bring(hsmtest.UpstreamKey, join(in[:8], weak))},
		{"a weak third", "weak third", bring(hsmtest.ProcessorKey, join(out[:16], weak))},
		{"even parity", "odd parity", bring(hsmtest.ProcessorKey, join(out[:23], []byte{out[23] ^ 1}))},
		{"the key of another zone", "key of its own", bring(hsmtest.ProcessorKey, hsmtest.UpstreamZPK)},
		{"a label that is not there", "not a key that has", bring("absent", in)},
		{"a zone master key", "not a key that has", bring("zmk-2", in)},
		{"a key of another use", "not a key that has", bring(hsmtest.SealKey, in)},
	} {
		t.Run(c.name, func(t *testing.T) {
			err := c.change.ask(t.Context(), h)
			if !errors.Is(err, hsm.ErrKeyChange) || !strings.Contains(err.Error(), c.says) {
				t.Errorf("got %v, want %q", err, c.says)
			}
			if fixed := c.says == "not a key that has"; errors.Is(err, hsm.ErrFixedKey) != fixed {
				t.Errorf("a key that no message changes: %v, want %v", !fixed, fixed)
			}
			if got, err := pin(t, h, hsmtest.UpstreamZPK, hsmtest.ProcessorZPK, false); got != "1234" {
				t.Errorf("the old keys: %v", err)
			}
		})
	}
	if err := bring(hsmtest.UpstreamKey, hsmtest.UpstreamZPK).ask(t.Context(), h); err != nil {
		t.Errorf("the key that is in use: %v", err)
	}
	if s := h.KeyStatus(); s[0].Version != 1 || s[1].Version != 1 || s[0].PreviousKCV != "" || h.Statement().Generation != 1 {
		t.Errorf("%+v", s)
	}
	if got := newLister(t, token.Module, token.Label)(); len(got) != 6 {
		t.Errorf("keys %q", got)
	}
}

// Eight callers translate while both keys change as often as they may in a minute. No translation fails, and none is under a key that was not valid.
func TestKeysChangeUnderLoad(t *testing.T) {
	_, cfg := changeable(t)
	cfg.Workers = 4
	h := run(t, cfg)
	const callers, changes = 8, 6
	ins, outs := [][]byte{hsmtest.UpstreamZPK}, [][]byte{hsmtest.ProcessorZPK}
	for i := range changes {
		ins = append(ins, hsmtest.ZoneKey("load in"+strings.Repeat("+", i), 16))
		outs = append(outs, hsmtest.ZoneKey("load out"+strings.Repeat("+", i), []int{16, 24}[i/3]))
	}
	var inVersion, outVersion atomic.Int64 // that ChangeKey has told
	var seen [callers]atomic.Int64         // version of pin-in of each caller's last call
	stop := make(chan struct{})
	var wait sync.WaitGroup
	const digits = "5555555555554444"
	for i := range callers {
		wait.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				in, first := inVersion.Load(), outVersion.Load()
				p, err := h.Protect(context.Background(), hsm.Card{PAN: pan(t, digits), PINBlock: hsmtest.EncipherPIN(ins[in], digits, "98765"),
					From: hsmtest.UpstreamKey, To: hsmtest.ProcessorKey})
				if err != nil {
					t.Errorf("pin-in key %d: %v", in+1, err)
					return
				}
				last := min(outVersion.Load()+1, changes) // one may be on its way
				if !slices.ContainsFunc(outs[first:last+1], func(key []byte) bool { return read(key, digits, p.PINBlock) == "98765" }) {
					t.Errorf("not under a pin-out key of the versions %d to %d", first+1, last+1)
					return
				}
				seen[i].Store(in)
			}
		})
	}
	for n := int64(1); n <= changes; n++ {
		if err := bring(hsmtest.UpstreamKey, ins[n]).ask(t.Context(), h); err != nil {
			t.Error(err)
		}
		inVersion.Store(n)
		if err := bring(hsmtest.ProcessorKey, outs[n]).ask(t.Context(), h); err != nil {
			t.Error(err)
		}
		outVersion.Store(n)
		for i := range callers { // a caller must not be two versions behind
			until(t, "a call under the new key", func() bool { return seen[i].Load() == n || t.Failed() })
		}
	}
	close(stop)
	wait.Wait()
	if s := h.KeyStatus(); s[0].Version != changes+1 || s[1].Version != changes+1 || h.Statement().Generation != 1 {
		t.Errorf("generation %d, %+v", h.Statement().Generation, s)
	}
}

func read(key []byte, digits string, block card.PINBlock) string {
	return hsmtest.DecipherPIN(key, digits, block)
}

// newLister looks behind an open HSM: it returns the labels of all secret keys of the token, sorted.
func newLister(t *testing.T, module, token string) func() []string {
	t.Helper()
	m := pkcs11.New(module) // the HSM's own initialisation and login: it is one process
	slots, err := m.GetSlotList(true)
	if err != nil {
		t.Fatal(err)
	}
	return func() []string {
		t.Helper()
		var labels []string
		for _, slot := range slots {
			about, err := m.GetTokenInfo(slot)
			if err != nil {
				t.Fatal(err)
			}
			if about.Label != token {
				continue
			}
			s, err := m.OpenSession(slot, pkcs11.CKF_SERIAL_SESSION)
			if err != nil {
				t.Fatal(err)
			}
			if err := m.FindObjectsInit(s, []*pkcs11.Attribute{pkcs11.NewAttribute(pkcs11.CKA_CLASS, pkcs11.CKO_SECRET_KEY)}); err != nil {
				t.Fatal(err)
			}
			handles, _, err := m.FindObjects(s, 100)
			if err != nil {
				t.Fatal(err)
			}
			for _, handle := range handles {
				if got, err := m.GetAttributeValue(s, handle, []*pkcs11.Attribute{pkcs11.NewAttribute(pkcs11.CKA_LABEL, nil)}); err == nil { // else it went just now
					labels = append(labels, string(got[0].Value))
				}
			}
			if err := m.CloseSession(s); err != nil {
				t.Fatal(err)
			}
		}
		sort.Strings(labels)
		return labels
	}
}
