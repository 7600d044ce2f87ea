package hsm_test

import (
	"context"
	"crypto/aes"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"acquirerd/card"
	"acquirerd/hsm"
	"acquirerd/hsm/hsmtest"

	"github.com/miekg/pkcs11"
)

// Key changes on real tokens of both kinds: SoftHSM, where keys pass through locked memory and marks are objects of data, and NSS, where keys are unwrapped inside
// and marks are keys.

// A zone is a pair of keys that change under one zone master key.
type zone struct {
	name   string // its keys are "in NAME" and "out NAME", its zone master key "zmk NAME"
	format hsm.Format
	zmk    []byte
	kind   hsm.Algorithm // of the zone master key
	length int           // of new keys
	in     []byte        // the current ones
	out    []byte
}

func newZones() []*zone {
	long := slices.Concat(hsmtest.ZoneKey("long zmk", 16), hsmtest.ZoneKey("longer zmk", 16))
	return []*zone{
		{"tdes under tdes", hsm.ISO0, hsmtest.ZoneKey("zmk of a zone", 24), hsm.TDES, 24, hsmtest.ZoneKey("a in", 16), hsmtest.ZoneKey("a out", 16)},
		{"tdes under aes", hsm.ISO3, long, hsm.AES, 16, hsmtest.ZoneKey("b in", 16), hsmtest.ZoneKey("b out", 16)},
		{"aes under aes", hsm.ISO4, long[:16:16], hsm.AES, 16, []byte("c in, of 16 byte"), []byte("c out, of 16 byt")},
	}
}

// fill puts the keys of zones into a token, and returns a configuration in which they may change.
func fill(token *hsmtest.Token, zones []*zone) hsm.Config {
	put := map[hsm.Algorithm]func(string, hsm.Use, []byte) hsm.Key{hsm.TDES: token.Put, hsm.AES: token.PutAES}
	token.Put(hsmtest.SealKey, hsm.PANSeal, hsmtest.SealValue)
	token.Put(hsmtest.TokenKey, hsm.PANToken, hsmtest.TokenValue)
	for _, z := range zones {
		put[z.kind]("zmk "+z.name, hsm.ZMK, z.zmk)
		put[z.format.Algorithm()]("in "+z.name, hsm.PINIn, z.in)
		put[z.format.Algorithm()]("out "+z.name, hsm.PINOut, z.out)
	}
	cfg := token.Config()
	for i, k := range cfg.Keys {
		if k.Use == hsm.PINIn || k.Use == hsm.PINOut {
			_, name, _ := strings.Cut(k.Label, " ")
			cfg.Keys[i].ZMK = "zmk " + name
		}
	}
	return cfg
}

// next is a new key of the zone.
func (z *zone) next(name string) []byte {
	if z.format.Algorithm() == hsm.AES {
		return []byte(fmt.Sprintf("%-16.16s", name))
	}
	return hsmtest.ZoneKey(z.name+name, z.length)
}

func (z *zone) kcv(key []byte) string {
	if z.format.Algorithm() == hsm.AES {
		return hsmtest.AESKCV(key)
	}
	return hsmtest.KCV(hsm.PINOut, key)
}

// change is the key change that brings a key.
func (z *zone) change(t testing.TB, which string, key []byte) keyChange {
	cryptogram := hsmtest.Cryptogram(z.zmk[:min(24, len(z.zmk))], key)
	if z.kind == hsm.AES {
		cryptogram = blocks(aesOf(t, z.zmk).Encrypt, aes.BlockSize, key)
	}
	return keyChange{Label: which + " " + z.name, Cryptogram: cryptogram, KCV: z.kcv(key)}
}

// translates reports whether a block under the key in arrives under the key out, in the given format of its zone.
func (z *zone) translates(t testing.TB, h *hsm.HSM, in, out []byte, previous bool) error {
	t.Helper()
	const digits, pin = "4111111111111111", "12345"
	block, err := card.NewPINBlock(hsm.Enciphered(z.format, pin, digits, 7, softly(t, z.format.Algorithm(), in)))
	if err != nil {
		return err
	}
	p, err := h.Protect(context.Background(), hsm.Card{PAN: pan(t, digits), PINBlock: block, From: "in " + z.name, To: "out " + z.name,
		FromFormat: z.format, ToFormat: z.format, Previous: previous})
	if err != nil {
		return err
	}
	if got, _ := hsm.Deciphered(z.format, digits, p.PINBlock.Reveal(), softly(t, z.format.Algorithm(), out)); got != pin {
		return fmt.Errorf("the processor finds the PIN %q", got)
	}
	return nil
}

// open opens and runs an HSM on a module that the test may change.
func open(t *testing.T, cfg hsm.Config, change func(hsm.Module) hsm.Module) (h *hsm.HSM, stop func()) {
	t.Helper()
	if change == nil {
		change = func(m hsm.Module) hsm.Module { return m }
	}
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
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(stop)
	return h, stop
}

// lasting returns the labels of keys and of marks of one label of the configuration.
func lasting(t *testing.T, h *hsm.HSM, label string) (keys, marks []string) {
	t.Helper()
	for _, class := range []uint{pkcs11.CKO_SECRET_KEY, pkcs11.CKO_DATA} {
		found, err := h.Lasting(t.Context(), class)
		if err != nil {
			t.Fatal(err)
		}
		for _, l := range found {
			switch {
			case l != label && !strings.HasPrefix(l, label+"#"):
			case class == pkcs11.CKO_DATA || strings.HasSuffix(l, " mark"):
				marks = append(marks, l)
			default:
				keys = append(keys, l)
			}
		}
	}
	return keys, marks
}

func TestZonesChangeTheirKeysOnEachToken(t *testing.T) {
	eachKind(t, func(t *testing.T, token *hsmtest.Token) {
		zones := newZones()
		cfg := fill(token, zones)
		inside := strings.Contains(cfg.Arguments, "sql:") // NSS
		cfg.RequireTokenResident = inside
		synctest.Test(t, func(t *testing.T) {
			h, stop := open(t, cfg, nil)
			before := objects(t, h)
			good := func(when string, err error) {
				t.Helper()
				if err != nil {
					t.Errorf("%s: %v", when, err)
				}
			}
			for round := range 2 {
				for _, z := range zones {
					in, out := z.next(fmt.Sprint("in ", round)), z.next(fmt.Sprint("out ", round))
					wrong := z.change(t, "out", out)
					wrong.KCV = "000000"
					if err := wrong.ask(t.Context(), h); !errors.Is(err, hsm.ErrKeyChange) || !strings.Contains(err.Error(), "another check value") {
						t.Errorf("%s: %v", z.name, err)
					}
					good(z.name+", the old keys", z.translates(t, h, z.in, z.out, false))
					for range 2 { // the second time its answer was lost
						good("change of "+z.name, z.change(t, "out", out).ask(t.Context(), h))
					}
					good(z.name+", the new pin-out key", z.translates(t, h, z.in, out, false))
					good(z.name+", the one before it", z.translates(t, h, z.in, z.out, true))
					good("change of "+z.name, z.change(t, "in", in).ask(t.Context(), h))
					good(z.name+", the new pin-in key", z.translates(t, h, in, out, false))
					good(z.name+", the one before it", z.translates(t, h, z.in, out, false))
					want := h.KeyStatus()
					stop()
					h, stop = open(t, cfg, nil)
					if got := h.KeyStatus(); !slices.Equal(got, want) {
						t.Errorf("after a start: %+v, before %+v", got, want)
					}
					good(z.name+", after a start", z.translates(t, h, in, out, false))
					good(z.name+", the old pin-in key after a start", z.translates(t, h, z.in, out, false))
					good(z.name+", the old pin-out key after a start", z.translates(t, h, in, z.out, true))
					good("the repeat after a start", z.change(t, "in", in).ask(t.Context(), h))
					z.in, z.out = in, out
				}
			}
			for _, k := range h.KeyStatus() {
				if k.Version != 3 {
					t.Errorf("%+v", k)
				}
			}
			if got := h.Statement().Transient(); inside && len(got) != 0 {
				t.Errorf("transient: %v", got)
			}
			way := map[bool]hsm.Way{true: hsm.TokenResident, false: hsm.Transient}[inside]
			for _, name := range []string{"key change under tdes", "key change under aes"} {
				if o := operation(t, h, name); !o.InUse || o.Way != way {
					t.Errorf("%+v", o)
				}
			}
			<-time.After(11 * time.Minute) // the overlap is over
			for _, z := range zones {
				good(z.name+", after the overlap", z.translates(t, h, z.in, z.out, false))
				if err := z.translates(t, h, z.in, z.out, true); !errors.Is(err, hsm.ErrNoPreviousKey) {
					t.Errorf("%s: %v", z.name, err)
				}
				for _, which := range []string{"in ", "out "} {
					label := which + z.name
					keys, marks := lasting(t, h, label)
					wantMark := map[bool]string{true: label + "#3 mark", false: label + "#3"}[inside]
					if !slices.Equal(keys, []string{label + "#3"}) || !slices.Equal(marks, []string{wantMark}) {
						t.Errorf("keys %q, marks %q", keys, marks)
					}
				}
			}
			if got, want := objects(t, h), before+len(h.KeyStatus()); got != want { // a mark for each key
				t.Errorf("%d objects, want %d", got, want)
			}
			if s := h.Statement(); s.Generation != 1 {
				t.Errorf("generation %d", s.Generation)
			}
			stop()
		})

		// What a mark is, no command takes for a key.
		out := "out " + zones[0].name
		if got := labels(t, token); len(got) != len(cfg.Keys) || slices.ContainsFunc(got, func(l string) bool { return strings.Contains(l, "mark") }) {
			t.Errorf("keys %q", got)
		}
		parts := []hsm.Component{{Value: hsmtest.ZoneKey("first", 16)}, {Value: hsmtest.ZoneKey("second", 16)}}
		if _, err := hsm.ImportComponents(cfg, hsm.NewKey{Label: out, Use: hsm.PINOut}, parts); !errors.Is(err, hsm.ErrKeyExists) || !strings.Contains(err.Error(), `replaced by "`+out+`#3"`) {
			t.Errorf("a key of the label of one that was replaced: %v", err)
		}
		if inside {
			if _, err := hsm.Destroy(cfg, out+"#3 mark", "000000"); !errors.Is(err, hsm.ErrKeyCheck) || !strings.Contains(err.Error(), "is no key") {
				t.Errorf("destroying a mark: %v", err)
			}
		}
		// Without the permission to change, and without its key, the mark refuses the start.
		refusedStart(t, without(cfg, out), `was replaced by "`+out+`#3"`)
		if _, err := hsm.Destroy(cfg, out+"#3", zones[0].kcv(zones[0].out)); err != nil {
			t.Error(err)
		}
		refusedStart(t, cfg, `is missing as "`+out+`#3", which was in use`)
	})
}

// without is a configuration in which a key may not change.
func without(cfg hsm.Config, label string) hsm.Config {
	cfg.Keys = slices.Clone(cfg.Keys)
	for i, k := range cfg.Keys {
		if k.Label == label {
			cfg.Keys[i].ZMK = ""
		}
	}
	return cfg
}

func refusedStart(t *testing.T, cfg hsm.Config, says string) {
	t.Helper()
	h, err := hsm.NewOn(cfg, func(m hsm.Module) hsm.Module { return m })
	if err != nil {
		t.Fatal(err)
	}
	if err := h.Open(t.Context()); !errors.Is(err, hsm.ErrKeyCheck) || !strings.Contains(err.Error(), says) {
		t.Errorf("got %v, want %q", err, says)
	}
}

// Both keys of a zone change sixty times, once a second, with starts in between.
func TestSixtyKeyChangesInARowOnEachToken(t *testing.T) {
	eachKind(t, func(t *testing.T, token *hsmtest.Token) {
		zones := newZones()[:1]
		cfg := fill(token, zones)
		cfg.KeyChanges, cfg.Overlap = hsm.MaxKeyChanges, 4*time.Second
		synctest.Test(t, func(t *testing.T) {
			h, stop := open(t, cfg, nil)
			z, before := zones[0], objects(t, h)
			for i := range 60 {
				in, out := z.next(fmt.Sprint("in ", i)), z.next(fmt.Sprint("out ", i))
				if err := errors.Join(z.change(t, "in", in).ask(t.Context(), h), z.change(t, "out", out).ask(t.Context(), h)); err != nil {
					t.Fatalf("change %d: %v", i, err)
				}
				if i%25 == 20 {
					stop()
					h, stop = open(t, cfg, nil)
				}
				if err := errors.Join(z.translates(t, h, in, out, false), z.translates(t, h, z.in, out, false), z.translates(t, h, in, z.out, true)); err != nil {
					t.Fatalf("after change %d: %v", i, err)
				}
				z.in, z.out = in, out
				<-time.After(time.Second)
			}
			<-time.After(20 * time.Second)
			if err := z.translates(t, h, z.in, z.out, false); err != nil {
				t.Error(err)
			}
			if got, want := objects(t, h), before+2; got != want {
				t.Errorf("%d objects, want %d", got, want)
			}
			if s := h.KeyStatus(); s[0].Version != 61 || s[1].Version != 61 || h.Statement().Generation != 1 {
				t.Errorf("%+v", s)
			}
			stop()
		})
	})
}

// A mortalModule is of a process that dies at one of the calls that make an object, before or after that: from then on nothing reaches the token.
type mortalModule struct {
	hsm.Module
	calls, last atomic.Int64 // made so far, and the one at which it dies; 0: none
	after       bool
	dead        atomic.Bool
}

const gone = pkcs11.Error(pkcs11.CKR_DEVICE_REMOVED)

func (m *mortalModule) make(do func() (pkcs11.ObjectHandle, error)) (pkcs11.ObjectHandle, error) {
	dies := m.last.Load() != 0 && m.calls.Add(1) == m.last.Load()
	if m.dead.Load() || dies && !m.after {
		m.dead.Store(true)
		return 0, gone
	}
	made, err := do()
	if dies {
		m.dead.Store(true)
		return 0, gone
	}
	return made, err
}

func (m *mortalModule) CreateObject(s pkcs11.SessionHandle, template []*pkcs11.Attribute) (pkcs11.ObjectHandle, error) {
	return m.make(func() (pkcs11.ObjectHandle, error) { return m.Module.CreateObject(s, template) })
}

func (m *mortalModule) CreateSecret(s pkcs11.SessionHandle, template []*pkcs11.Attribute, value []byte) (pkcs11.ObjectHandle, error) {
	return m.make(func() (pkcs11.ObjectHandle, error) { return m.Module.CreateSecret(s, template, value) })
}

func (m *mortalModule) GenerateKey(s pkcs11.SessionHandle, how []*pkcs11.Mechanism, template []*pkcs11.Attribute) (pkcs11.ObjectHandle, error) {
	return m.make(func() (pkcs11.ObjectHandle, error) { return m.Module.GenerateKey(s, how, template) })
}

func (m *mortalModule) UnwrapKey(s pkcs11.SessionHandle, how []*pkcs11.Mechanism, under pkcs11.ObjectHandle, wrapped []byte, template []*pkcs11.Attribute) (pkcs11.ObjectHandle, error) {
	return m.make(func() (pkcs11.ObjectHandle, error) { return m.Module.UnwrapKey(s, how, under, wrapped, template) })
}

func (m *mortalModule) DestroyObject(s pkcs11.SessionHandle, o pkcs11.ObjectHandle) error {
	if m.dead.Load() {
		return gone
	}
	return m.Module.DestroyObject(s, o)
}

// The process dies at each call that makes an object in a key change, before it and after it. The next start uses the old key, unless the mark was made: then the
// new one, with the old one in its overlap. What is left without a mark goes, and the processor's repeat is taken.
func TestAProcessThatDiesInAKeyChangeOnEachToken(t *testing.T) {
	eachKind(t, func(t *testing.T, token *hsmtest.Token) {
		zones := newZones()[:1]
		cfg := fill(token, zones)
		cfg.Overlap, cfg.KeyChanges = time.Second, hsm.MaxKeyChanges
		synctest.Test(t, func(t *testing.T) {
			z, died, adopted := zones[0], 0, 0
			for step, over := int64(1), false; !over; step++ {
				for _, after := range []bool{false, true} {
					mortal := &mortalModule{after: after}
					h, stop := open(t, cfg, func(m hsm.Module) hsm.Module { mortal.Module = m; return mortal })
					was := h.KeyStatus()[1]
					key := z.next(fmt.Sprint("out ", step, after))
					mortal.last.Store(step)
					err := z.change(t, "out", key).ask(t.Context(), h)
					over = !mortal.dead.Load()
					if over != (err == nil) {
						t.Fatalf("call %d: dead %t, %v", step, !over, err)
					}
					if died++; over {
						died--
					}
					stop()
					h, stop = open(t, cfg, nil)
					if now := h.KeyStatus()[1]; now.KCV == z.kcv(key) && now.Version > was.Version {
						if err := z.translates(t, h, z.in, z.out, true); err != nil && !over {
							t.Errorf("call %d, after it %t: the key before: %v", step, after, err)
						}
						if adopted++; over {
							adopted--
						}
					} else if now != was {
						t.Errorf("call %d, after it %t: %+v, before %+v", step, after, now, was)
					}
					current := map[bool][]byte{true: key, false: z.out}[h.KeyStatus()[1].KCV == z.kcv(key)]
					if err := z.translates(t, h, z.in, current, false); err != nil {
						t.Errorf("call %d, after it %t: %v", step, after, err)
					}
					if err := z.change(t, "out", key).ask(t.Context(), h); err != nil {
						t.Errorf("call %d, after it %t: the repeat: %v", step, after, err)
					}
					if err := z.translates(t, h, z.in, key, false); err != nil {
						t.Errorf("call %d, after it %t: %v", step, after, err)
					}
					<-time.After(time.Minute)
					if keys, marks := lasting(t, h, "out "+z.name); len(keys) != 1 || len(marks) != 1 {
						t.Errorf("call %d, after it %t: keys %q, marks %q", step, after, keys, marks)
					}
					z.out = key
					stop()
				}
			}
			if died < 6 || adopted != 1 {
				t.Errorf("died %d times, and %d times with the mark made", died, adopted)
			}
		})
	})
}

// A choosyModule refuses objects of data, keys of random value that could be marks, or both, as told. A denied object is made before it is refused.
type choosyModule struct {
	hsm.Module
	noData, denies, noKeys atomic.Bool
}

const refusedTemplate = pkcs11.Error(pkcs11.CKR_TEMPLATE_INCONSISTENT)

func (m *choosyModule) CreateObject(s pkcs11.SessionHandle, template []*pkcs11.Attribute) (pkcs11.ObjectHandle, error) {
	data := slices.ContainsFunc(template, func(a *pkcs11.Attribute) bool {
		return a.Type == pkcs11.CKA_CLASS && slices.Equal(a.Value, pkcs11.NewAttribute(pkcs11.CKA_CLASS, pkcs11.CKO_DATA).Value)
	})
	if data && m.noData.Load() {
		return 0, refusedTemplate
	}
	made, err := m.Module.CreateObject(s, template)
	if data && m.denies.Load() && err == nil {
		return 0, refusedTemplate
	}
	return made, err
}

func (m *choosyModule) GenerateKey(s pkcs11.SessionHandle, how []*pkcs11.Mechanism, template []*pkcs11.Attribute) (pkcs11.ObjectHandle, error) {
	if m.noKeys.Load() && how[0].Mechanism == pkcs11.CKM_GENERIC_SECRET_KEY_GEN {
		return 0, refusedTemplate
	}
	return m.Module.GenerateKey(s, how, template)
}

// A token learns to keep objects of data, or forgets it: marks of both kinds are one record.
func TestATokenWithMarksOfBothKinds(t *testing.T) {
	token := hsmtest.New(t)
	zones := newZones()[:1]
	cfg := fill(token, zones)
	synctest.Test(t, func(t *testing.T) {
		z, label, choosy := zones[0], "out "+zones[0].name, &choosyModule{}
		on := func(m hsm.Module) hsm.Module { choosy.Module = m; return choosy }
		h, stop := open(t, cfg, on)
		first := z.next("first")
		for i, way := range []func(){
			func() {},
			func() { choosy.noData.Store(true) },
			func() { choosy.noData.Store(false); choosy.denies.Store(true) }, // both for one key
			func() { choosy.denies.Store(false) },
			func() { choosy.noData.Store(true) },
		} {
			way()
			was := z.out
			z.out = z.next([]string{"first", "2", "3", "4", "5"}[i])
			if err := z.change(t, "out", z.out).ask(t.Context(), h); err != nil {
				t.Fatalf("change %d: %v", i+1, err)
			}
			if i == 2 {
				continue
			}
			stop()
			h, stop = open(t, cfg, on)
			if err := errors.Join(z.translates(t, h, z.in, z.out, false), z.translates(t, h, z.in, was, true)); err != nil || h.KeyStatus()[1].Version != i+2 {
				t.Errorf("after change %d: %v, %+v", i+1, err, h.KeyStatus()[1])
			}
			if err := z.change(t, "out", first).ask(t.Context(), h); i > 0 && !errors.Is(err, hsm.ErrKeyChange) {
				t.Errorf("a recorded change is played again: %v", err)
			}
		}
		if _, marks := lasting(t, h, label); !slices.Equal(marks, []string{label + "#3 mark", label + "#4 mark", label + "#6 mark", label + "#2", label + "#4", label + "#5"}) {
			t.Errorf("marks %q", marks)
		}
		<-time.After(time.Hour)
		if keys, marks := lasting(t, h, label); !slices.Equal(keys, []string{label + "#6"}) || !slices.Equal(marks, []string{label + "#6 mark"}) {
			t.Errorf("keys %q, marks %q", keys, marks)
		}
		stop()
	})
}

// A token that keeps no mark of any kind cannot change keys, and is not said to. What else its keys do it does.
func TestATokenThatKeepsNoMarkIsNotSaidToChangeKeys(t *testing.T) {
	eachKind(t, func(t *testing.T, token *hsmtest.Token) {
		zones := newZones()[:1]
		cfg := fill(token, zones)
		choosy := &choosyModule{}
		choosy.noData.Store(true)
		choosy.noKeys.Store(true)
		h := runOn(t, cfg, func(m hsm.Module) hsm.Module { choosy.Module = m; return choosy })
		before := objects(t, h)
		for name, used := range map[string]bool{"key change under tdes": true, "key change under aes": false} {
			if o := operation(t, h, name); o.InUse != used || o.Way != hsm.NotAvailable || !strings.Contains(o.Note, "marking: pkcs11: 0xD1: CKR_TEMPLATE_INCONSISTENT") {
				t.Errorf("%+v", o)
			}
		}
		z := zones[0]
		if err := z.change(t, "out", z.next("out")).ask(t.Context(), h); !errors.Is(err, hsm.ErrKeyChange) || !strings.Contains(err.Error(), `marking "out tdes under tdes#2"`) {
			t.Errorf("got %v", err)
		}
		if err := z.translates(t, h, z.in, z.out, false); err != nil || h.KeyStatus()[1].Version != 1 || h.Statement().Generation != 1 {
			t.Errorf("%v, %+v", err, h.KeyStatus()[1])
		}
		if got := objects(t, h); got != before {
			t.Errorf("%d objects before, %d after", before, got)
		}
		choosy.noKeys.Store(false) // one kind is enough
		if err := z.change(t, "out", z.next("out")).ask(t.Context(), h); err != nil {
			t.Error(err)
		}
	})
}

// That a change would fail is no excuse for how it begins.
func TestAKeyChangeThatWouldFailIsTransientAllTheSame(t *testing.T) {
	token, value := hsmtest.StandardNSS(t), hsmtest.ZoneKey("transient zmk", 16)
	zeros := blocks(tripleDES(t, value).Decrypt, 8, make([]byte, 8))
	token.Use(func(m *pkcs11.Ctx) {
		if err := hsmtest.Create(m, token.Login(m), "zmk", hsm.ZMK, value, pkcs11.NewAttribute(pkcs11.CKA_UNWRAP, false), pkcs11.NewAttribute(pkcs11.CKA_DECRYPT, true),
			pkcs11.NewAttribute(pkcs11.CKA_ID, fmt.Sprintf("zmk kcv:%s zeros:%X", hsmtest.KCV(hsm.ZMK, value), zeros[:3]))); err != nil {
			t.Fatal(err)
		}
	})
	cfg := token.Config()
	cfg.Keys = append(cfg.Keys, hsm.Key{Label: "zmk", Use: hsm.ZMK, KCV: hsmtest.KCV(hsm.ZMK, value)})
	cfg.Keys[1].ZMK, cfg.RequireTokenResident = "zmk", true
	for _, noMarks := range []bool{false, true} {
		choosy := &choosyModule{}
		choosy.noKeys.Store(noMarks)
		h, err := hsm.NewOn(cfg, func(m hsm.Module) hsm.Module { choosy.Module = m; return choosy })
		if err != nil {
			t.Fatal(err)
		}
		if err := h.Open(t.Context()); !errors.Is(err, hsm.ErrTransient) || !strings.HasSuffix(err.Error(), ": key change under tdes") {
			t.Errorf("without marks %t: %v", noMarks, err)
		}
	}
}
