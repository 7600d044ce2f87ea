package hsm

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/miekg/pkcs11"
)

// The processor was told that its change has failed, and goes on with the old key. So must we, also after an orderly restart, which is what
// an operator does whose HSM has trouble.
func TestAKeyChangeThatHasFailedIsNotInUseAfterARestart(t *testing.T) {
	onEachCarrier(t, func(t *testing.T, f *fakeModule, cfg Config) {
		h, stop := f.start(cfg, io.Discard, nil)
		restore := breakAt(f, "FindObjectsInit", 2, pkcs11.Error(pkcs11.CKR_DEVICE_ERROR), "DestroyObject")
		if err := changeTo("out", zoneKey("new")).ask(t.Context(), h); err == nil {
			t.Error("done")
		}
		restore()
		if err := stop(); err != nil {
			t.Error(err)
		}
		h, stop = f.start(cfg, io.Discard, nil)
		if err := translated(t.Context(), t, h, firstIn, firstOut, false); err != nil || h.KeyStatus()[1].Version != 1 {
			t.Errorf("version %d is in use, %v", h.KeyStatus()[1].Version, err)
		}
		if err := stop(); err != nil {
			t.Error(err)
		}
	})
}

// The other side of a zone changes its key every second. It may do so a few times a minute, and no more often than the token has room for: of a
// pin-in key, that is until it has as many versions as it may, and again when the overlap of the first is over; of a pin-out key there is always room.
func TestAKeyThatIsChangedInALoopDoesNotFillTheToken(t *testing.T) {
	for label, want := range map[string]struct{ tenMinutes, all int }{"in": {mostVersions - 1, 2 * (mostVersions - 1)}, "out": {10 * defaultKeyChanges, 20 * defaultKeyChanges}} {
		t.Run(label, func(t *testing.T) {
			onEachCarrier(t, func(t *testing.T, f *fakeModule, cfg Config) {
				h, stop := f.start(cfg, io.Discard, nil)
				done, busy := 0, 0
				for i := range 1200 {
					switch err := changeTo(label, zoneKey(fmt.Sprint("loop ", i))).ask(t.Context(), h); {
					case err == nil:
						done++
					case errors.Is(err, ErrBusy):
						busy++
					default:
						t.Error(err)
					}
					if i == 58 && done != defaultKeyChanges {
						t.Errorf("%d changes in the first minute", done)
					}
					if i == 590 && done != want.tenMinutes {
						t.Errorf("%d changes in the first ten minutes", done)
					}
					if got := f.labels(label); len(got) > mostVersions {
						t.Fatalf("%d versions are in the token", len(got))
					}
					<-time.After(time.Second)
				}
				if done < want.all || h.KeyStatus()[map[string]int{"in": 0, "out": 1}[label]].Version != done+1 {
					t.Errorf("%d changes, %d refused: %+v", done, busy, h.KeyStatus())
				}
				if err := stop(); err != nil {
					t.Error(err)
				}
			})
		})
	}
}

// Where the configuration allows it, a pin-out key changes every second, and the token holds few of its versions: what nothing is enciphered under any more
// goes before its overlap is over, also after a start. The last one before the current one can be asked for all that time.
func TestAPINOutKeyChangesEverySecond(t *testing.T) {
	onEachCarrier(t, func(t *testing.T, f *fakeModule, cfg Config) {
		cfg.KeyChanges = maxKeyChanges
		h, stop := f.start(cfg, io.Discard, nil)
		in, was, most := firstIn, firstOut, 0
		for i := range 120 {
			out := zoneKey(fmt.Sprint("second ", i))
			if err := changeTo("out", out).ask(t.Context(), h); err != nil {
				t.Fatalf("change %d: %v", i, err)
			}
			if err := errors.Join(translated(t.Context(), t, h, in, out, false), translated(t.Context(), t, h, in, was, true)); err != nil {
				t.Fatalf("after change %d: %v", i, err)
			}
			if i%40 == 20 {
				if err := stop(); err != nil {
					t.Fatal(err)
				}
				h, stop = f.start(cfg, io.Discard, nil)
				if err := errors.Join(translated(t.Context(), t, h, in, out, false), translated(t.Context(), t, h, in, was, true)); err != nil {
					t.Fatalf("after a start: %v", err)
				}
			}
			was, most = out, max(most, len(f.labels("out")))
			<-time.After(time.Second)
		}
		if most > 7 {
			t.Errorf("%d versions were in the token at once", most)
		}
		if err := stop(); err != nil {
			t.Error(err)
		}
	})
}

// A change that is refused again and again is told once a minute, with how often it came, in the log and in the audit trail.
func TestRefusalsOfKeyChangesDoNotFillTheLog(t *testing.T) {
	onEachCarrier(t, func(t *testing.T, f *fakeModule, cfg Config) {
		var log bytes.Buffer
		var events []Event
		cfg.Audit = func(e Event) {
			if e.What == KeyChange {
				events = append(events, e)
			}
		}
		h, stop := f.start(cfg, &log, nil)
		wrong := changeTo("out", zoneKey("new"))
		wrong.KCV = "000000"
		for range 150 {
			if err := wrong.ask(t.Context(), h); !errors.Is(err, ErrKeyChange) {
				t.Error(err)
			}
			<-time.After(time.Second)
		}
		if err := changeTo("nobody", zoneKey("new")).ask(t.Context(), h); !errors.Is(err, ErrFixedKey) {
			t.Error(err)
		}
		if err := changeTo("out", zoneKey("new")).ask(t.Context(), h); err != nil {
			t.Error(err)
		}
		if err := stop(); err != nil {
			t.Error(err)
		}
		if n := strings.Count(log.String(), "hsm key change refused"); n != 4 || strings.Count(log.String(), "times=60 ") != 2 {
			t.Errorf("%d lines:\n%s", n, log.String())
		}
		var told []string
		for _, e := range events {
			told = append(told, e.Key+" "+e.Result)
		}
		if want := []string{"out kcv", "out kcv", "out kcv", "nobody unknown_key", "out ok"}; !slices.Equal(told, want) || events[4].KCV == "" {
			t.Errorf("audited %q, want %q", told, want)
		}
	})
}

// Nor does a processor fill them that sends the key in use once more, as often as it may: audit rows stay for ever.
func TestRepeatsOfAKeyChangeDoNotFillTheAuditTrail(t *testing.T) {
	onEachCarrier(t, func(t *testing.T, f *fakeModule, cfg Config) {
		var log bytes.Buffer
		var told []string
		cfg.Audit = func(e Event) {
			if e.What == KeyChange {
				told = append(told, e.Key+" "+e.Result+" "+e.KCV)
			}
		}
		h, stop := f.start(cfg, &log, nil)
		change := changeTo("out", zoneKey("new"))
		for range 150 {
			if err := change.ask(t.Context(), h); err != nil {
				t.Error(err)
			}
			<-time.After(time.Second)
		}
		if err := stop(); err != nil {
			t.Error(err)
		}
		if len(told) != 4 || strings.Count(log.String(), "hsm key changed") != 4 || strings.Count(log.String(), "times=60 ") != 2 {
			t.Errorf("audited %q\n%s", told, log.String())
		}
	})
}

// Nor does a token that came back with another key, and is looked at every few seconds until somebody mends it. What was wrong is told at once, and that it is
// mended.
func TestAKeyThatStaysWrongDoesNotFillTheAuditTrail(t *testing.T) {
	onEachCarrier(t, func(t *testing.T, f *fakeModule, cfg Config) {
		var mu sync.Mutex
		var told []string
		cfg.Audit = func(e Event) {
			mu.Lock()
			defer mu.Unlock()
			if e.What == KeyLoaded && e.Key == "out" {
				told = append(told, e.Result)
			}
		}
		h, stop := f.start(cfg, io.Discard, nil)
		right := f.keys[1].value
		put := func(value []byte) {
			f.set(func() {
				f.keys = slices.Clone(f.keys)
				f.keys[1].value = value
			})
		}
		put(zoneKey("another"))
		f.loseSessions()
		<-time.After(10 * time.Minute)
		put(right)
		<-time.After(time.Minute)
		if err := errors.Join(h.Ready(), stop()); err != nil {
			t.Error(err)
		}
		mu.Lock()
		defer mu.Unlock()
		wrong := 0
		for _, result := range told {
			if result != resultOK {
				wrong++
			}
		}
		if wrong < 10 || wrong > 12 || told[0] != resultOK || told[1] == resultOK || told[len(told)-1] != resultOK {
			t.Errorf("told %d times that it is wrong: %q", wrong, told)
		}
	})
}

// That the daemon has destroyed a key is in the audit trail, as that it was made (PCI PIN 24).
func TestTheEndOfAKeyIsInTheAuditTrail(t *testing.T) {
	onEachCarrier(t, func(t *testing.T, f *fakeModule, cfg Config) {
		var told []string
		cfg.Audit = func(e Event) {
			if e.What == KeyDestroyed {
				told = append(told, e.Key+" "+e.KCV+" "+e.Result)
			}
		}
		h, stop := f.start(cfg, io.Discard, nil)
		for i := range 2 {
			if err := changeTo("out", zoneKey(fmt.Sprint(i))).ask(t.Context(), h); err != nil {
				t.Fatal(err)
			}
			if err := translated(t.Context(), t, h, firstIn, zoneKey(fmt.Sprint(i)), false); err != nil {
				t.Fatal(err)
			}
			<-time.After(2 * defaultOverlap)
		}
		h.usedOn.days.Range(func(label, _ any) bool {
			if len(f.labels(label.(string))) == 0 { //nolint:forcetypeassert // see usedDays
				t.Errorf("the use of %s is remembered", label)
			}
			return true
		})
		if err := stop(); err != nil {
			t.Error(err)
		}
		if want := []string{"out " + cfg.Keys[1].KCV + " ok", "out#2 " + changeTo("out", zoneKey("0")).KCV + " ok"}; !slices.Equal(told, want) {
			t.Errorf("audited %q, want %q", told, want)
		}
	})
}

// After a ceremony the configuration pins a new key of version 1, under the label that is free since the old one was destroyed. Either it is
// used, or the start is refused; it is not passed over for an older successor, and not destroyed.
func TestAKeyThatTheConfigurationPinsAnewIsNotDestroyed(t *testing.T) {
	onEachCarrier(t, func(t *testing.T, f *fakeModule, cfg Config) {
		h, stop := f.start(cfg, io.Discard, nil)
		if err := changeTo("out", zoneKey("2")).ask(t.Context(), h); err != nil {
			t.Error(err)
		}
		<-time.After(defaultOverlap + time.Minute)
		if err := stop(); err != nil {
			t.Error(err)
		}
		if got := f.labels("out"); !slices.Equal(got, []string{"out#2"}) {
			t.Errorf("keys %q", got)
		}
		ceremony := zoneKey("of a ceremony")
		f.set(func() { f.keys = append(f.keys, fakeKey{label: "out", use: PINOut, value: ceremony}) })
		first, next := cfg.Keys[1].KCV, changeTo("out", ceremony).KCV
		for pinned, want := range map[string]string{
			next:     `"out" is pinned with KCV ` + next + `, which no version before "out#2" had: a new key needs a new label`,
			first:    `"out" has KCV ` + next + ` in the token, which no version before "out#2" had: a new key needs a new label`,
			"123456": `"out" is pinned with KCV 123456, which no version before`,
		} {
			cfg.Keys[1].KCV = pinned
			if err := f.hsm(cfg, io.Discard, nil).Open(t.Context()); !errors.Is(err, ErrKeyCheck) || !strings.Contains(err.Error(), want) {
				t.Errorf("pinned with %s: %v", pinned, err)
			}
		}
		if got := f.labels("out"); !slices.Equal(got, []string{"out#2", "out"}) {
			t.Errorf("keys %q", got)
		}
	})
}

// Two nodes that share a token are told of the same key at the same time. The one that is second by a moment must not take the other's away:
// that one has answered 00.
func TestAChangeThatFindsAnothersKeyDoesNotDestroyIt(t *testing.T) {
	onEachCarrier(t, func(t *testing.T, f *fakeModule, cfg Config) {
		h, stop := f.start(cfg, io.Discard, nil)
		created := 0
		others := fakeKey{label: "out#2", use: PINOut, value: zoneKey("new")}
		f.set(func() {
			f.script = func(op string, _ pkcs11.SessionHandle) error {
				if isMaking(op) {
					if created++; created == 2 { // between our look and our key
						f.keys = append(f.keys, others)
					}
				}
				return nil
			}
		})
		err := changeTo("out", zoneKey("new")).ask(t.Context(), h)
		f.set(func() { f.script = nil })
		if got := f.labels("out"); err != nil && !slices.Contains(got, "out#2") {
			t.Errorf("the change was refused (%v), and the other's key is gone: %q", err, got)
		}
		if err := stop(); err != nil {
			t.Error(err)
		}
	})
}

// A key of triple length is not replaced by one of double length.
func TestAKeyIsNotChangedToAWeakerOne(t *testing.T) {
	onEachCarrier(t, func(t *testing.T, f *fakeModule, cfg Config) {
		for i := range f.keys {
			if f.keys[i].label == "zmk" || f.keys[i].label == "out" {
				f.keys[i].value = append(slices.Clone(f.keys[i].value), zoneKey("third " + f.keys[i].label)[:8]...)
			}
		}
		again := f.config()
		for i := range cfg.Keys {
			cfg.Keys[i].KCV = again.Keys[i].KCV
		}
		h, stop := f.start(cfg, io.Discard, nil)
		short, zmk := zoneKey("short"), slices.IndexFunc(f.keys, func(k fakeKey) bool { return k.label == "zmk" })
		err := h.ChangeKey(t.Context(), "out", fakeTDES(f.keys[zmk].value, short, true), changeTo("out", short).KCV)
		if !errors.Is(err, ErrKeyChange) || !strings.Contains(err.Error(), "shorter than the one in use") {
			t.Errorf("got %v, version %d", err, h.KeyStatus()[1].Version)
		}
		if err := stop(); err != nil {
			t.Error(err)
		}
	})
}

// What was replaced is refused for as long as a mark remembers it: a message that was written down 299 changes ago.
func TestAKeyOfLongAgoIsNotPlayedAgain(t *testing.T) {
	onEachCarrier(t, func(t *testing.T, f *fakeModule, cfg Config) {
		cfg.Overlap = 15 * time.Second // as the days: each is a minute
		h, stop := f.start(cfg, io.Discard, nil)
		for i := range mostReplaced {
			if err := changeTo("out", zoneKey(fmt.Sprint("day ", i))).ask(t.Context(), h); err != nil {
				t.Error(err)
			}
			<-time.After(time.Minute)
		}
		if err := changeTo("out", zoneKey("day 0")).ask(t.Context(), h); !errors.Is(err, ErrKeyChange) {
			t.Errorf("got %v, version %d", err, h.KeyStatus()[1].Version)
		}
		if err := stop(); err != nil {
			t.Error(err)
		}
	})
}

// The answer to the first change was lost, and the processor makes another key. Its own side, and blocks that wait in queues, are still under
// the one before both, and its overlap has hardly begun.
func TestAKeyIsNotLostByTwoChangesWithinItsOverlap(t *testing.T) {
	onEachCarrier(t, func(t *testing.T, f *fakeModule, cfg Config) {
		h, stop := f.start(cfg, io.Discard, nil)
		for _, key := range []string{"2", "3"} {
			if err := changeTo("in", zoneKey(key)).ask(t.Context(), h); err != nil {
				t.Error(err)
			}
			<-time.After(time.Second)
		}
		if err := translated(t.Context(), t, h, firstIn, firstOut, false); err != nil {
			t.Errorf("a block of two seconds ago: %v", err)
		}
		if err := stop(); err != nil {
			t.Error(err)
		}
	})
}

// Without its zone master key in the configuration a key cannot be changed any more. What was changed stays changed: the old one, which is in
// the token until its overlap ends, is not in use again without a word.
func TestAKeyThatWasChangedIsNotTakenBackByTheConfiguration(t *testing.T) {
	onEachCarrier(t, func(t *testing.T, f *fakeModule, cfg Config) {
		h, stop := f.start(cfg, io.Discard, nil)
		if err := changeTo("out", zoneKey("2")).ask(t.Context(), h); err != nil {
			t.Error(err)
		}
		if err := stop(); err != nil {
			t.Error(err)
		}
		cfg.Keys[0].ZMK, cfg.Keys[1].ZMK = "", ""
		if err := f.hsm(cfg, io.Discard, nil).Open(t.Context()); !errors.Is(err, ErrKeyCheck) || !strings.Contains(err.Error(), `"out" was replaced by "out#2": without its zone master key`) {
			t.Errorf("got %v", err)
		}
	})
}

// Each zone has a key of its own, also if two processors bring the same one at the same time.
func TestTwoZonesDoNotTakeTheSameKeyAtTheSameTime(t *testing.T) {
	onEachCarrier(t, func(t *testing.T, f *fakeModule, cfg Config) {
		h, stop := f.start(cfg, io.Discard, nil)
		hang, created := make(chan struct{}), 0
		f.set(func() {
			f.script = func(op string, _ pkcs11.SessionHandle) error {
				if isMaking(op) {
					if created++; created == 2 {
						<-hang
					}
				}
				return nil
			}
		})
		first := make(chan error, 1)
		go func() { first <- changeTo("in", zoneKey("same")).ask(t.Context(), h) }()
		synctest.Wait()
		second := changeTo("out", zoneKey("same")).ask(t.Context(), h)
		close(hang)
		if err := <-first; err == nil && second == nil {
			t.Errorf("both have it: %+v", h.KeyStatus())
		}
		if err := stop(); err != nil {
			t.Error(err)
		}
	})
}

// A key is taken for adopted by the answer that its mark is made. A token that says no and has made it leaves nothing that the next start would use,
// as soon as it destroys objects.
func TestAMarkThatTheTokenDeniesIsNoAdoption(t *testing.T) {
	for _, also := range []string{"", "DestroyObject"} { // destroyed at once, or when the token destroys again
		onEachCarrier(t, func(t *testing.T, f *fakeModule, cfg Config) {
			f.unwrap = f.unwrap && also == "" // to check a key that unwraps takes an object that is destroyed
			h, stop := f.start(cfg, io.Discard, nil)
			f.set(func() {
				f.late = func(k fakeKey) error {
					if !k.isMark() {
						return nil
					}
					f.script = func(op string, _ pkcs11.SessionHandle) error {
						if op == also {
							return pkcs11.Error(pkcs11.CKR_DEVICE_ERROR)
						}
						return nil
					}
					return pkcs11.Error(pkcs11.CKR_DEVICE_ERROR)
				}
			})
			if err := changeTo("out", zoneKey("new")).ask(t.Context(), h); !errors.Is(err, ErrUnavailable) {
				t.Errorf("got %v", err)
			}
			if left := len(f.marks("out")) + len(f.labels("out")); (left == 3) != (also != "") {
				t.Errorf("keys %q, marks %q", f.labels("out"), f.marks("out"))
			}
			for range 2 { // in this generation and the next
				if err := translated(t.Context(), t, h, firstIn, firstOut, false); err != nil || h.KeyStatus()[1].Version != 1 {
					t.Errorf("%v, %+v", err, h.KeyStatus()[1])
				}
				f.loseSessions()
			}
			f.set(func() { f.late, f.script = nil, nil })
			<-time.After(retryRetire + 20*time.Second)
			if left := len(f.marks("out")) + len(f.labels("out")); left != 1 {
				t.Errorf("later: keys %q, marks %q", f.labels("out"), f.marks("out"))
			}
			if err := stop(); err != nil {
				t.Error(err)
			}
			h, stop = f.start(cfg, io.Discard, nil)
			if err := translated(t.Context(), t, h, firstIn, firstOut, false); err != nil || h.KeyStatus()[1].Version != 1 {
				t.Errorf("after a start: %v, %+v", err, h.KeyStatus()[1])
			}
			if err := stop(); err != nil {
				t.Error(err)
			}
		})
	}
}

// The process dies when the mark is made and before it can answer. The next one uses the new key, and the processor's repeat is answered as done.
func TestACrashBetweenTheMarkAndTheAnswer(t *testing.T) {
	onEachCarrier(t, func(t *testing.T, f *fakeModule, cfg Config) {
		h, stop := f.start(cfg, io.Discard, nil)
		f.set(func() {
			f.late = func(k fakeKey) error {
				if k.isMark() { // from here on nothing of this process reaches the token
					f.script = func(string, pkcs11.SessionHandle) error { return pkcs11.Error(pkcs11.CKR_DEVICE_REMOVED) }
					return pkcs11.Error(pkcs11.CKR_DEVICE_REMOVED)
				}
				return nil
			}
		})
		if err := changeTo("out", zoneKey("new")).ask(t.Context(), h); err == nil {
			t.Error("done") // the answer of a process that is dead
		}
		if err := stop(); err != nil {
			t.Error(err)
		}
		f.set(func() { f.late, f.script = nil, nil })
		h, stop = f.start(cfg, io.Discard, nil)
		if err := changeTo("out", zoneKey("new")).ask(t.Context(), h); err != nil || h.KeyStatus()[1].Version != 2 {
			t.Errorf("the repeat: %v, %+v", err, h.KeyStatus()[1])
		}
		if err := translated(t.Context(), t, h, firstIn, zoneKey("new"), false); err != nil {
			t.Error(err)
		}
		if err := translated(t.Context(), t, h, firstIn, firstOut, true); err != nil {
			t.Errorf("the key before: %v", err)
		}
		if err := stop(); err != nil {
			t.Error(err)
		}
	})
}

// A start finds a key that has no mark yet: another process is about to adopt it, and does.
func TestALeftoverThatIsAdoptedAfterAllIsNotDestroyed(t *testing.T) {
	onEachCarrier(t, func(t *testing.T, f *fakeModule, cfg Config) {
		h, stop := f.start(cfg, io.Discard, nil)
		if err := changeTo("out", zoneKey("2")).ask(t.Context(), h); err != nil {
			t.Fatal(err)
		}
		if err := stop(); err != nil {
			t.Error(err)
		}
		at := len(f.keys) - 1 // the mark is the last
		f.set(func() { f.keys[at].gone = true })
		all := slices.Clone(f.keys)
		all[at].gone = false
		h, stop = f.start(cfg, io.Discard, nil)
		if got := h.KeyStatus()[1].Version; got != 1 {
			t.Errorf("version %d without a mark", got)
		}
		f.set(func() { f.keys = append(f.keys, all[at]) })
		<-time.After(20 * time.Second)
		if got := f.labels("out"); !slices.Equal(got, []string{"out", "out#2"}) {
			t.Errorf("keys %q", got)
		}
		if err := stop(); err != nil {
			t.Error(err)
		}
	})
}

// Each key has its own overlap, from the change that replaced it.
func TestEachOldKeyLivesForItsOwnOverlap(t *testing.T) {
	onEachCarrier(t, func(t *testing.T, f *fakeModule, cfg Config) {
		h, stop := f.start(cfg, io.Discard, nil)
		under := map[string][]byte{"1": firstIn, "2": zoneKey("2"), "3": zoneKey("3"), "4": zoneKey("4")}
		usable := func(when string, want ...string) {
			t.Helper()
			for name, key := range under {
				err := translated(t.Context(), t, h, key, firstOut, false)
				if usable := slices.Contains(want, name); usable && err != nil || !usable && !errors.Is(err, ErrPINBlock) {
					t.Errorf("%s: a block under %s: %v", when, name, err)
				}
			}
		}
		for _, name := range []string{"2", "3", "4"} {
			if err := changeTo("in", under[name]).ask(t.Context(), h); err != nil {
				t.Error(err)
			}
			<-time.After(3 * time.Minute)
		}
		usable("9 minutes after the first change", "1", "2", "3", "4") // and 6 and 3 after the others
		if err := stop(); err != nil {
			t.Error(err)
		}
		h, stop = f.start(cfg, io.Discard, nil)
		usable("after a start", "1", "2", "3", "4")
		<-time.After(2 * time.Minute)
		usable("11 minutes", "2", "3", "4")
		f.loseSessions()
		<-time.After(3 * time.Minute)
		usable("14 minutes", "3", "4")
		if got := f.labels("in"); !slices.Equal(got, []string{"in#3", "in#4"}) {
			t.Errorf("keys %q", got)
		}
		<-time.After(3 * time.Minute)
		usable("17 minutes", "4")
		if err := stop(); err != nil {
			t.Error(err)
		}
	})
}

// The clock was a year ahead during the change. After a start the old key has its overlap, and not a year, however often sessions are lost.
func TestAClockThatWasAheadDoesNotKeepTheOldKey(t *testing.T) {
	onEachCarrier(t, func(t *testing.T, f *fakeModule, cfg Config) {
		h, stop := f.start(cfg, io.Discard, nil)
		if err := changeTo("out", zoneKey("2")).ask(t.Context(), h); err != nil {
			t.Fatal(err)
		}
		if err := stop(); err != nil {
			t.Error(err)
		}
		f.set(func() {
			for i, k := range f.keys {
				for _, which := range []uint{pkcs11.CKA_ID, pkcs11.CKA_VALUE} {
					if text, ok := k.not[which].([]byte); ok && !k.gone {
						f.keys[i].not[which] = []byte(strings.Replace(string(text), " 2000-", " 2001-", 1))
					}
				}
			}
		})
		h, stop = f.start(cfg, io.Discard, nil)
		if got := h.KeyStatus()[1].Since.Year(); got != 2001 {
			t.Errorf("since %d", got)
		}
		<-time.After(defaultOverlap - time.Minute - time.Second) // not at the moment of a probe, which may meet the loss first
		f.loseSessions()
		if err := translated(t.Context(), t, h, firstIn, firstOut, true); err != nil {
			t.Error(err)
		}
		<-time.After(2 * time.Minute)
		if err := translated(t.Context(), t, h, firstIn, firstOut, true); !errors.Is(err, ErrNoPreviousKey) {
			t.Errorf("got %v", err)
		}
		if got := f.labels("out"); !slices.Equal(got, []string{"out#2"}) {
			t.Errorf("keys %q", got)
		}
		if err := stop(); err != nil {
			t.Error(err)
		}
	})
}

// Two processors change their keys at the same moment: one waits for the other, and neither is refused.
func TestChangesOfTwoKeysWaitForEachOther(t *testing.T) {
	onEachCarrier(t, func(t *testing.T, f *fakeModule, cfg Config) {
		h, stop := f.start(cfg, io.Discard, nil)
		inside, most := 0, 0
		f.set(func() {
			f.script = func(op string, _ pkcs11.SessionHandle) error {
				if isMaking(op) {
					f.set(func() { inside++; most = max(most, inside) })
					<-time.After(100 * time.Millisecond)
					f.set(func() { inside-- })
				}
				return nil
			}
		})
		first := make(chan error, 1)
		go func() { first <- changeTo("in", zoneKey("in 2")).ask(t.Context(), h) }()
		second := changeTo("out", zoneKey("out 2")).ask(t.Context(), h)
		if err := errors.Join(<-first, second); err != nil || most != 1 {
			t.Errorf("%v, %d at once", err, most)
		}
		for range 2 * defaultKeyChanges { // its answer was lost, again and again
			if err := changeTo("in", zoneKey("in 2")).ask(t.Context(), h); err != nil {
				t.Errorf("the repeat: %v", err)
			}
		}
		if err := stop(); err != nil {
			t.Error(err)
		}
	})
}
