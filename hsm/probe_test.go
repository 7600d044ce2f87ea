package hsm

import (
	"bytes"
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/des"
	"crypto/hmac"
	"crypto/sha256"
	"errors"
	"io"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/miekg/pkcs11"
)

// tdesOf is TDES by the standard library, under a key of double length.
func tdesOf(t *testing.T, value string) cipher.Block {
	t.Helper()
	key := unhex(value)
	block, err := des.NewTripleDESCipher(append(key, key[:desBytes]...))
	if err != nil {
		t.Fatal(err)
	}
	return block
}

func aesOf(t *testing.T, value string) cipher.Block {
	t.Helper()
	block, err := aes.NewCipher(unhex(value))
	if err != nil {
		t.Fatal(err)
	}
	return block
}

// The known answers that are no published vectors, from the standard library.
func TestTheKnownAnswersAreRight(t *testing.T) {
	same := func(what string, got []byte, want string) {
		t.Helper()
		if !bytes.Equal(got, unhex(want)) {
			t.Errorf("%s: %X, not %s", what, got, want)
		}
	}
	block := func(b cipher.Block, in []byte) []byte {
		out := make([]byte, len(in))
		for i := 0; i < len(in); i += b.BlockSize() {
			b.Encrypt(out[i:], in[i:])
		}
		return out
	}
	clearFields := map[Format]string{ISO0: "041234FFFFFFFFFF", ISO1: "1412340123456789", ISO3: "341234FEDCBAFEDC", ISO4: "441234AAAAAAAAAA2F69ADDE2E9E7ACE"}
	for _, f := range Formats {
		for _, way := range []struct {
			key  map[Algorithm]string
			want string
		}{{knownKeyIn, knownIn[f]}, {knownKeyOut, knownOut[f]}} {
			var b cipher.Block
			if f == ISO4 {
				b = aesOf(t, way.key[AES])
			} else {
				b = tdesOf(t, way.key[TDES])
			}
			text := unhex(clearFields[f])
			account := map[Format]string{ISO0: "0000111111111111", ISO1: "0000000000000000", ISO3: "0000111111111111", ISO4: "4" + knownPAN + strings.Repeat("0", 15)}[f]
			if f == ISO4 {
				text = block(b, text)
			}
			for i, n := range unhex(account) {
				text[i] ^= n
			}
			same("PIN block of "+string(f), block(b, text), way.want)
		}
		made := make([]byte, f.Bytes())
		f.layout().write(made, unhex(clearFields[f])[:pinFieldBytes], knownFill(f))
		same("PIN field of "+string(f), made, clearFields[f])
	}

	gcm, err := cipher.NewGCM(aesOf(t, known256))
	if err != nil {
		t.Fatal(err)
	}
	same("sealed PAN", gcm.Seal(nil, make([]byte, nonceBytes), []byte(knownPAN), []byte(sealPurpose)), knownSealed)
	mac := hmac.New(sha256.New, unhex(known256))
	_, _ = mac.Write([]byte(knownPAN))
	same("token by HMAC", mac.Sum(nil), knownPANByHMAC)
	var token []byte
	for _, number := range []string{"01", "02"} {
		token = append(token, fakeCMAC(aesOf(t, known256), unhex(number+"10"+knownPAN+"FFFF"+"00000000"))...)
	}
	same("token by CMAC", token, knownPANByCMAC)
	mac = hmac.New(sha256.New, unhex(known256))
	_, _ = mac.Write(unhex(knownText))
	same("HMAC", mac.Sum(nil), knownHMAC)

	same("key under a TDES ZMK", block(tdesOf(t, knownTDES), unhex("1C587F1C13924FEFE5F1A1B1C1D1E1F1")), knownCryptogram)
	same("its check value", block(tdesOf(t, "1C587F1C13924FEFE5F1A1B1C1D1E1F1"), make([]byte, 8))[:3], knownCryptogramKCV)
	same("key under an AES ZMK", block(aesOf(t, knownAESOut), unhex(knownAES)), knownAESCryptogram)
	same("its check value", fakeCMAC(aesOf(t, knownAES), make([]byte, 16))[:3], knownAESCryptogramKCV)

	same("PIN key of DUKPT", block(aesOf(t, knownAES), make([]byte, 16)), knownDUKPT)                                    // X9.24-3: the working key of counter 1
	same("PIN key of TDES-DUKPT", block(tdesOf(t, "042666B49184CF5C68DE9628D0397B36"), make([]byte, 8)), knownTDESDUKPT) // X9.24-1, A.4: of counter 1
	same("KBEK of TDES", block(tdesOf(t, "60C17C9B43020123C16040CCDCBC76F1"), make([]byte, 8)), knownKBEK)
	same("KBEK of AES", block(aesOf(t, "396C9382A6E2E66A088774E1D6E46541F5EAD67D7204F8DD0D7AE8FDA334D3AC"), make([]byte, 16)), knownKBEK256)
}

// probing is an HSM on the fake that does probe.
func probing(t *testing.T, f *fakeModule, log io.Writer) *HSM {
	h := f.hsm(f.config(), log, nil)
	h.probed = nil
	return h
}

func TestAProbeLeavesNothingAndIsDoneOnceInAProcess(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake(t)
		var told []Event
		h := probing(t, f, io.Discard)
		h.cfg.Audit = func(e Event) {
			if e.What == Probed {
				told = append(told, e)
			}
		}
		g, err := h.open(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		f.mu.Lock()
		sessions, left := len(f.sessions), 0
		for _, k := range f.keys {
			if k.owner != 0 && !k.gone {
				left++
			}
		}
		f.mu.Unlock()
		if sessions != h.cfg.Workers || left != 0 {
			t.Errorf("%d sessions of %d workers, %d objects left", sessions, h.cfg.Workers, left)
		}
		if len(told) != len(capabilities) || told[0].Key != "PIN translation iso-0 to iso-0" || told[0].Result != string(Transient) {
			t.Errorf("told %+v", told)
		}
		if o := h.statement(g).Operations[0]; o.Way != Transient || !o.InUse {
			t.Errorf("%+v", o)
		}
		if h.memory.scratch(0).pin != (blockMemory{}) {
			t.Error("something is left in memory")
		}
		told = nil
		if err := finalize(f); err != nil {
			t.Fatal(err)
		}
		if _, err := h.attempt(t.Context(), 2); err != nil || len(told) != 0 {
			t.Errorf("again: %v, told %+v", err, told)
		}
		if err := finalize(f); err != nil {
			t.Fatal(err)
		}
		h.memory.free()
	})
}

func TestAWrongAnswerIsNoWay(t *testing.T) {
	f := newFake(t)
	h := probing(t, f, io.Discard)
	h.load = func(string) (module, error) { return wrongAnswers{f}, nil }
	if err := h.Open(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, o := range h.Statement().Operations {
		if o.Name == "MAC x9.19" && (o.Way != NotAvailable || !strings.Contains(o.Note, errWrongAnswer.Error())) {
			t.Errorf("%+v", o)
		}
	}
	if err := h.Close(); err != nil {
		t.Error(err)
	}
}

// wrongAnswers enciphers two blocks of TDES wrongly, which no check of a key does.
type wrongAnswers struct{ *fakeModule }

func (m wrongAnswers) EncryptTo(s pkcs11.SessionHandle, in, out []byte) (int, error) {
	n, err := m.fakeModule.EncryptTo(s, in, out)
	if n == 2*desBytes {
		out[n-1] ^= 1
	}
	return n, err
}

func TestATokenThatMakesNoKeyOfAKnownValueServesUntried(t *testing.T) {
	for code, says := range map[pkcs11.Error]string{
		pkcs11.CKR_TEMPLATE_INCONSISTENT: errUnmade.Error(),
		pkcs11.CKR_SESSION_COUNT:         "no session",
	} {
		f := newFake(t)
		ready := false
		f.script = func(op string, _ pkcs11.SessionHandle) error {
			if op == "CreateObject" && code != pkcs11.CKR_SESSION_COUNT {
				return code
			}
			if op == "OpenSession" && code == pkcs11.CKR_SESSION_COUNT && ready {
				return code
			}
			ready = ready || op == "FindObjectsInit"
			return nil
		}
		h := probing(t, f, io.Discard)
		if err := h.Open(t.Context()); err != nil {
			t.Fatal(err)
		}
		o := h.Statement().Operations[0]
		if o.Way != Transient || !o.InUse || o.Micros != 0 || !strings.Contains(o.Note, "token-resident not tried") || !strings.Contains(o.Note, says) {
			t.Errorf("%v: %+v", code, o)
		}
		if err := h.CheckPINPair(ISO0, ISO0); err != nil {
			t.Errorf("%v: %v", code, err)
		}
		if err := h.Close(); err != nil {
			t.Error(err)
		}
	}
}

func TestATokenThatGoesDuringTheProbeIsNotTakenForOneThatCannot(t *testing.T) {
	f := newFake(t)
	creations := 0
	f.script = func(op string, _ pkcs11.SessionHandle) error {
		if op == "CreateObject" {
			creations++
		}
		if creations > 20 {
			return pkcs11.Error(pkcs11.CKR_DEVICE_REMOVED)
		}
		return nil
	}
	h := probing(t, f, io.Discard)
	if err := h.Open(t.Context()); !errors.Is(err, pkcs11.Error(pkcs11.CKR_DEVICE_REMOVED)) || h.probed != nil {
		t.Errorf("got %v, found %v", err, h.probed)
	}
	creations = -1000
	if err := h.Open(t.Context()); err != nil {
		t.Fatal(err)
	}
	if o := h.Statement().Operations[0]; o.Way != Transient {
		t.Errorf("%+v", o)
	}
	if err := h.Close(); err != nil {
		t.Error(err)
	}
}

func TestACallThatHangsInTheProbeIsLeftBehind(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake(t)
		release := make(chan struct{})
		f.script = func(op string, _ pkcs11.SessionHandle) error {
			if op == "CreateObject" {
				<-release
			}
			return nil
		}
		h := probing(t, f, io.Discard)
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		began := time.Now()
		if err := h.Open(ctx); !errors.Is(err, errHung) {
			t.Errorf("got %v", err)
		}
		if took, most := time.Since(began), 5*time.Second+h.cfg.CallTimeout; took > most {
			t.Errorf("it took %v, more than %v", took, most)
		}
		close(release)
		synctest.Wait()
	})
}

func TestAProbeEndsWithItsTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake(t)
		opened := 0
		f.script = func(op string, _ pkcs11.SessionHandle) error {
			if op == "OpenSession" {
				if opened++; opened > defaultWorkers {
					time.Sleep(100 * time.Millisecond) // of the bubble's time: a token that is far away
				}
			}
			return nil
		}
		h := probing(t, f, io.Discard)
		began := time.Now()
		if err := h.Open(t.Context()); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(began); took > 8*time.Second { // all would take more than 10
			t.Errorf("it took %v", took)
		}
		operations := h.Statement().Operations
		if first, last := operations[0], operations[len(operations)-1]; first.Way != Transient || last.Way != NotAvailable || !strings.Contains(last.Note, "the time of the probe was over") {
			t.Errorf("%+v, %+v", first, last)
		}
		if err := h.Close(); err != nil {
			t.Error(err)
		}
	})
}

// What is measured is what a worker does: it holds the operations of both keys open.
func TestATrialHoldsItsOperationsOpen(t *testing.T) {
	f := &scriptedUpdates{fakeModule: newFake(t)}
	h := f.start(t)
	before := f.opened
	found, err := h.tryMethod(h.gen.Load(), method{prepare: translates(ISO0, ISO0, Transient)}, 20)
	if err != nil || found.err != nil {
		t.Fatal(err, found.err)
	}
	if n := f.opened - before; n != 3 { // of the trial, and of two operations
		t.Errorf("%d sessions were opened", n)
	}
}
