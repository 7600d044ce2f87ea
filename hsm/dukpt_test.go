package hsm

import (
	"bytes"
	"context"
	"crypto/aes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"

	"acquirerd/card"

	"github.com/miekg/pkcs11"
)

// A device enciphers as the terminals of the standards' examples do: the AES part is written here anew, from X9.24-3, 6.3, the TDES part is its
// published results.
const (
	aesBDKValue  = "FEDCBA9876543210F1F1F1F1F1F1F1F1" // X9.24-3:2017, supplement
	tdesBDKValue = "0123456789ABCDEFFEDCBA9876543210" // X9.24-1:2009, A.4
	aesDevice    = "1234567890123456"
	tdesKSN      = "FFFF9876543210E00001"
	tdesBlock1   = "1B9C1845EB993A7A" // PIN 1234 of tdesPAN under tdesKSN
	tdesPANOf    = "4012345678909"
)

// deviceKey is a key of AES-DUKPT.
func deviceKey(t testing.TB, bdk []byte, ksn card.KSN, usage, algorithm uint16, length int) []byte {
	t.Helper()
	derive := func(key []byte, usage, algorithm uint16, length int, context []byte) (out []byte) {
		block, err := aes.NewCipher(key)
		if err != nil {
			t.Fatal(err)
		}
		for number := byte(1); len(out) < length; number++ {
			data := binary.BigEndian.AppendUint16([]byte{1, number}, usage)
			data = binary.BigEndian.AppendUint16(data, algorithm)
			data = binary.BigEndian.AppendUint16(data, uint16(8*length))
			data = append(data, context...)
			block.Encrypt(data, data)
			out = append(out, data...)
		}
		return out[:length]
	}
	own := map[int]uint16{16: 2, 32: 4}[len(bdk)]
	id := ksn.Bytes()[:8]
	key, counter := derive(bdk, 0x8001, own, len(bdk), id), uint32(0)
	for bit := 31; bit >= 0; bit-- {
		if ksn.Counter()>>bit&1 == 1 {
			counter |= 1 << bit
			key = derive(key, 0x8000, own, len(bdk), binary.BigEndian.AppendUint32(slices.Clone(id[4:]), counter))
		}
	}
	return derive(key, usage, algorithm, length, binary.BigEndian.AppendUint32(slices.Clone(id[4:]), counter))
}

func parseKSN(t testing.TB, digits string) card.KSN {
	t.Helper()
	ksn, err := card.ParseKSN(digits)
	if err != nil {
		t.Fatal(err)
	}
	return ksn
}

// deviceCard is what a device of AES-DUKPT sends: a block of format 0, PIN 1234, under its key of 2TDEA.
func deviceCard(t testing.TB, device, counter uint32) Card {
	t.Helper()
	ksn := parseKSN(t, fmt.Sprintf("12345678%08X%08X", device, counter))
	bdk, err := hex.DecodeString(aesBDKValue)
	if err != nil {
		t.Fatal(err)
	}
	key := deviceKey(t, bdk, ksn, 0x1000, 0, 16)
	// 041234FFFFFFFFFF XOR 0000111111111111, the account number field of testPAN
	block, err := card.NewPINBlock(fakeTDES(key, []byte{0x04, 0x12, 0x25, 0xEE, 0xEE, 0xEE, 0xEE, 0xEE}, true))
	if err != nil {
		t.Fatal(err)
	}
	pan, err := card.ParsePAN(testPAN)
	if err != nil {
		t.Fatal(err)
	}
	return Card{PAN: pan, PINBlock: block, KSN: ksn, From: "bdk-aes", To: "out"}
}

func tdesCard(t testing.TB) Card {
	t.Helper()
	value, err := hex.DecodeString(tdesBlock1)
	if err != nil {
		t.Fatal(err)
	}
	block, errBlock := card.NewPINBlock(value)
	pan, errPAN := card.ParsePAN(tdesPANOf)
	if errBlock != nil || errPAN != nil {
		t.Fatal(errBlock, errPAN)
	}
	return Card{PAN: pan, PINBlock: block, KSN: parseKSN(t, tdesKSN), From: "bdk-tdes", To: "out"}
}

// dukptFake has one bdk key of each algorithm beside the usual ones. That of TDES is the standard's, which is the value of the usual zone key, too: a key has
// one purpose, and so this zone has another key.
func dukptFake(t *testing.T) (*fakeModule, Config) {
	t.Helper()
	f := newFake(t)
	f.keys[0].value = bytesOf(t, "43BC10648532254368767C3889E0DA29")
	tdes := bytesOf(t, tdesBDKValue)
	variant := bytes.Clone(tdes)
	for i, m := range variantMask {
		variant[i] ^= m
	}
	kcv := func(value []byte) string { return kcvText(fakeTDES(value, make([]byte, desBytes), true)) }
	f.keys = append(f.keys, fakeKey{label: "bdk-aes", use: BDK, isAES: true, value: bytesOf(t, aesBDKValue)}, fakeKey{label: "bdk-tdes", use: BDK, value: tdes},
		fakeKey{label: "bdk-tdes/variant", use: BDK, value: variant, not: map[uint]any{pkcs11.CKA_ID: "bdk-tdes/variant " + variantID(kcv(tdes), kcv(variant))}})
	cfg := f.config()
	cfg.Keys = slices.DeleteFunc(cfg.Keys, func(k Key) bool { return strings.HasSuffix(k.Label, variantSuffix) })
	return f, cfg
}

// inSessions are the objects that are still there and end with their session.
func (f *fakeModule) inSessions() (list []fakeKey) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, k := range f.keys {
		if k.owner != 0 && !k.gone {
			list = append(list, k)
		}
	}
	return list
}

// startHere opens and runs an HSM until the test ends.
func (f *fakeModule) startHere(t *testing.T, cfg Config) *HSM {
	t.Helper()
	h, stop := f.start(cfg, io.Discard, nil)
	t.Cleanup(func() {
		if err := stop(); err != nil {
			t.Error(err)
		}
	})
	return h
}

func isSet(k fakeKey, attribute uint) bool {
	value, isBytes := k.not[attribute].([]byte)
	return isBytes && bytes.Equal(value, []byte{1})
}

// Whatever fails on the way, no key of a device is left in the token but its initial key, and none in memory. What cannot be destroyed ends with its
// generation.
func TestNothingOfATransactionsKeyIsLeft(t *testing.T) {
	translate := func(card func(testing.TB) Card) func(*testing.T, *HSM) error {
		return func(t *testing.T, h *HSM) error {
			_, err := h.Protect(t.Context(), card(t))
			return err
		}
	}
	authenticate := func(bdk, ksn string) func(*testing.T, *HSM) error {
		return func(t *testing.T, h *HSM) error {
			_, err := h.MAC(t.Context(), MACKey{Label: bdk, KSN: parseKSN(t, ksn), Direction: Response}, []byte("0100 and more than a block"))
			return err
		}
	}
	for name, do := range map[string]func(*testing.T, *HSM) error{
		"AES":         translate(func(t testing.TB) Card { return deviceCard(t, 7, 0x1B) }),
		"TDES":        translate(tdesCard),
		"MAC of AES":  authenticate("bdk-aes", "12345678000000070000001B"),
		"MAC of TDES": authenticate("bdk-tdes", tdesKSN),
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f, cfg := dukptFake(t)
				cfg.Workers = 1
				var mu sync.Mutex
				var ops []string
				fail := 0
				h := f.startHere(t, cfg)
				f.mu.Lock()
				f.script = func(op string, s pkcs11.SessionHandle) error {
					mu.Lock()
					defer mu.Unlock()
					if ops = append(ops, op); len(ops) != fail {
						return nil
					}
					f.set(func() {
						if operation := f.sessions[s]; operation != nil {
							*operation = fakeOperation{} // as an error ends it
						}
					})
					return pkcs11.Error(pkcs11.CKR_DATA_INVALID)
				}
				f.mu.Unlock()
				run := func(at int) error {
					mu.Lock()
					ops, fail = nil, at
					mu.Unlock()
					return do(t, h)
				}
				if err := run(1); err == nil || len(f.inSessions()) != 0 {
					t.Fatalf("the first call fails: got %v, %d objects are left", err, len(f.inSessions()))
				}
				for range 2 { // from the second time on, the initial key is there
					if err := run(0); err != nil {
						t.Fatal(err)
					}
				}
				calls := slices.Clone(ops)
				derived := 0
				for at, op := range calls {
					if op == "DestroyObject" { // see below
						continue
					}
					lives := f.lives
					err := run(at + 1)
					left := f.inSessions()
					if err == nil && f.lives == lives { // else it was done in the next generation
						t.Errorf("%s, call %d, fails, and nobody says so", op, at+1)
					}
					if len(left) > 1 || len(left) == 1 && (!isSet(left[0], pkcs11.CKA_DERIVE) || strings.HasSuffix(name, "TDES")) {
						t.Fatalf("%s, call %d, fails, and %d objects are left", op, at+1, len(left))
					}
					if op == "DeriveKey" || op == "CreateObject" {
						derived++
					}
					if !bytes.Equal(h.memory.pages, bytes.Repeat([]byte{0}, len(h.memory.pages))) {
						t.Fatalf("%s, call %d, fails, and something is left in memory", op, at+1)
					}
				}
				if derived < 3 {
					t.Errorf("%d keys are made on the way: %v", derived, calls)
				}
				keys := 0
				f.mu.Lock()
				for _, k := range f.keys {
					if k.owner == 0 || !isSet(k, pkcs11.CKA_PRIVATE) { // what shows a check value is open
						continue
					}
					if keys++; !isSet(k, pkcs11.CKA_SENSITIVE) || isSet(k, pkcs11.CKA_EXTRACTABLE) {
						t.Errorf("a key of a device can leave the token: %v", k.not)
					}
				}
				f.mu.Unlock()
				if keys < 3 {
					t.Errorf("%d keys of a device were looked at", keys)
				}

				lives := f.lives
				mu.Lock()
				ops, fail = nil, 0
				mu.Unlock()
				f.mu.Lock()
				f.script = func(op string, _ pkcs11.SessionHandle) error {
					mu.Lock()
					defer mu.Unlock()
					if op == "DestroyObject" && fail == 0 {
						fail = 1
						return pkcs11.Error(pkcs11.CKR_FUNCTION_FAILED)
					}
					return nil
				}
				f.mu.Unlock()
				if err := do(t, h); err != nil || f.lives != lives+1 {
					t.Errorf("a key that cannot be destroyed: got %v, %d lives after %d", err, f.lives, lives)
				}
			})
		})
	}
}

func TestPINBlocksUnderDUKPTAreTranslated(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, cfg := dukptFake(t)
		h := f.startHere(t, cfg)
		out := bytesOf(t, "112233445566778889ABCDEF01234567")
		for name, c := range map[string]Card{"AES": deviceCard(t, 1, 3), "AES, the last counter": deviceCard(t, 1, 0xFFFF0000), "TDES": tdesCard(t)} {
			got, err := h.Protect(t.Context(), c)
			if err != nil {
				t.Errorf("%s: %v", name, err)
				continue
			}
			if clearBlock := fakeTDES(out, got.PINBlock.Reveal(), false); clearBlock[0] != 4 || clearBlock[1] != 0x12 {
				t.Errorf("%s: got %X", name, clearBlock)
			}
		}
	})
}

func TestAKSNThatIsNoneOfItsKeyIsRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, cfg := dukptFake(t)
		h := f.startHere(t, cfg)
		for name, row := range map[string]struct {
			change func(*Card)
			want   error
		}{
			"the counter of no transaction":     {func(c *Card) { c.KSN = c.KSN.Device() }, ErrKSN},
			"too many ones":                     {func(c *Card) { c.KSN = parseKSN(t, "12345678000000010001FFFF") }, ErrKSN},
			"of TDES under a key of AES":        {func(c *Card) { c.KSN = parseKSN(t, tdesKSN) }, ErrKSN},
			"of AES under a key of TDES":        {func(c *Card) { c.From = "bdk-tdes" }, ErrKSN},
			"under a zone key":                  {func(c *Card) { c.From = "in" }, ErrKSN},
			"under a key that is not there":     {func(c *Card) { c.From = "bdk" }, ErrKSN},
			"of another device":                 {func(c *Card) { c.KSN = parseKSN(t, "123456780000000200000003") }, ErrPINBlock},
			"of another counter":                {func(c *Card) { c.KSN = parseKSN(t, "123456780000000100000002") }, ErrPINBlock},
			"a kind of key of another size":     {func(c *Card) { c.Working = TDES3 }, ErrPINBlock},
			"a kind of key for format 4":        {func(c *Card) { c.Working = AES128 }, ErrPINFormat},
			"a kind of key that is none":        {func(c *Card) { c.Working = "des" }, ErrPINFormat},
			"none, under a base derivation key": {func(c *Card) { c.KSN = card.KSN{} }, ErrUnavailable},
		} {
			c := deviceCard(t, 1, 3)
			row.change(&c)
			if _, err := h.Protect(t.Context(), c); !errors.Is(err, row.want) || errors.Is(err, ErrKSN) != errors.Is(row.want, ErrKSN) {
				t.Errorf("%s: got %v, want %v", name, err, row.want)
			}
		}
		if f.lives != 1 {
			t.Errorf("what is refused has cost %d generations", f.lives-1)
		}
	})
}

func TestInitialKeysAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, cfg := dukptFake(t)
		cfg.Workers = 1
		h := f.startHere(t, cfg)
		protect := func(device, counter uint32) {
			t.Helper()
			if _, err := h.Protect(t.Context(), deviceCard(t, device, counter)); err != nil {
				t.Fatalf("device %d: %v", device, err)
			}
		}
		derivations := func(do func()) (n int) {
			f.mu.Lock()
			f.script = func(op string, _ pkcs11.SessionHandle) error {
				if op == "DeriveKey" {
					n++
				}
				return nil
			}
			f.mu.Unlock()
			do()
			f.mu.Lock()
			f.script = nil
			f.mu.Unlock()
			return n
		}
		if n := derivations(func() { protect(1, 1) }); n != 3 {
			t.Errorf("the first key of a device takes %d derivations", n)
		}
		if n := derivations(func() { protect(1, 2) }); n != 2 {
			t.Errorf("the second key of a device takes %d derivations", n)
		}
		for device := range uint32(mostInitialKeys) {
			protect(device+2, 1)
		}
		if n := len(f.inSessions()); n != mostInitialKeys {
			t.Errorf("%d initial keys are in the token", n)
		}
		if n := derivations(func() { protect(mostInitialKeys+1, 2) }); n != 2 {
			t.Errorf("a device of which was heard just now takes %d derivations", n)
		}
		if n := derivations(func() { protect(1, 4) }); n != 3 {
			t.Errorf("a device of which was not heard for long takes %d derivations", n)
		}

		// They end with their generation: the next one has other handles.
		f.mu.Lock()
		failed := false
		f.script = func(op string, _ pkcs11.SessionHandle) error {
			if op == "DeriveKey" && !failed {
				failed = true
				return pkcs11.Error(pkcs11.CKR_DEVICE_ERROR)
			}
			return nil
		}
		f.mu.Unlock()
		protect(1, 8)
		if n := derivations(func() { protect(2, 2) }); n != 3 {
			t.Errorf("in the next generation the first key of a device takes %d derivations", n)
		}
	})
}

func TestATDESKeyWithoutItsVariantRefusesTheStart(t *testing.T) {
	at := func(f *fakeModule, label string) *fakeKey {
		return &f.keys[slices.IndexFunc(f.keys, func(k fakeKey) bool { return k.label == label })]
	}
	for want, spoil := range map[string]func(*fakeModule){
		`has 0 variants "bdk-tdes/variant" in the token`: func(f *fakeModule) { at(f, "bdk-tdes/variant").label = "other" },
		`has 2 variants "bdk-tdes/variant" in the token`: func(f *fakeModule) { f.keys = append(f.keys, *at(f, "bdk-tdes/variant")) },
		`that was not made with it`:                      func(f *fakeModule) { at(f, "bdk-tdes/variant").value[3] ^= 2 },
		`has a variant "bdk-tdes/variant" that is not encrypt=true`: func(f *fakeModule) {
			at(f, "bdk-tdes/variant").not[pkcs11.CKA_ENCRYPT] = false
		},
	} {
		f, cfg := dukptFake(t)
		spoil(f)
		err := f.hsm(cfg, io.Discard, nil).Open(t.Context())
		if !errors.Is(err, ErrKeyCheck) || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v", want, err)
		}
	}
}

// A probe of the key sees its variant too.
func TestAVariantThatIsAnotherKeyByNowIsNotUsed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, cfg := dukptFake(t)
		h := f.startHere(t, cfg)
		f.mu.Lock()
		i := slices.IndexFunc(f.keys, func(k fakeKey) bool { return k.label == "bdk-tdes/variant" })
		f.keys[i].value = bytes.Repeat([]byte{0x13}, tdes2Bytes)
		f.mu.Unlock()
		k := h.gen.Load().key("bdk-tdes")
		err := h.once(t.Context(), func(w *worker) error { return k.checkAgain(w.m, w.session) })
		if !errors.Is(err, pkcs11.Error(pkcs11.CKR_KEY_CHANGED)) {
			t.Errorf("got %v", err)
		}
	})
}

func TestTDESDUKPTIsTransient(t *testing.T) {
	f, cfg := dukptFake(t)
	h := f.hsm(cfg, io.Discard, nil)
	if err := h.Open(context.Background()); err != nil {
		t.Fatal(err)
	}
	ways := map[string]Way{}
	for _, o := range h.Statement().Operations {
		ways[o.Name] = o.Way
	}
	if ways["DUKPT derivation, AES"] != TokenResident || ways["DUKPT derivation, TDES"] != Transient {
		t.Errorf("got %v", ways)
	}
	if err := h.Close(); err != nil {
		t.Error(err)
	}
	cfg.RequireTokenResident = true
	if err := f.hsm(cfg, io.Discard, nil).Open(context.Background()); !errors.Is(err, ErrTransient) || !strings.Contains(err.Error(), "DUKPT derivation, TDES") ||
		strings.Contains(err.Error(), "DUKPT derivation, AES") {
		t.Errorf("got %v", err)
	}
}
