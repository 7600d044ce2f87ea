package hsm

import (
	"bytes"
	"crypto/subtle"
	"errors"
	"io"
	"slices"
	"strings"
	"testing"

	"github.com/miekg/pkcs11"
)

// A token without CKM_DES3_CMAC has a key that enciphers in CBC, and the CMAC is the same. The data are as they were afterwards: the call may be tried
// again.
func TestTheCMACOfTDESByCBCIsThatOfTheToken(t *testing.T) {
	f := newFake(t)
	if err := f.Initialize(); err != nil {
		t.Fatal(err)
	}
	s, err := f.OpenSession(1, pkcs11.CKF_SERIAL_SESSION)
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Login(s, pkcs11.CKU_USER, fakePIN); err != nil {
		t.Fatal(err)
	}
	for _, length := range []int{0, 1, 8, 9, 16, 100} {
		data := bytes.Repeat([]byte("0123456789ABCDEF!"), 6)[:length]
		held := append(make([]byte, 0, length+2*aesBytes), data...)
		for range 2 {
			got, err := cmacByCBC(f, s, 2, held) // the key "out"
			if want := fakeCMAC(fakeBlock(f.keys[1].value, false), data); err != nil || !bytes.Equal(got, want) || !bytes.Equal(held, data) {
				t.Errorf("%d bytes: got %X, %v; want %X", length, got, err, want)
			}
		}
	}
}

func TestAPaddingIsThatOfISO9797(t *testing.T) {
	for _, test := range []struct {
		padding    Padding
		data, want string
	}{
		{0, "", "0000000000000000"}, {PaddingZeros, "01", "0100000000000000"}, {PaddingZeros, "0102030405060708", "0102030405060708"},
		{PaddingOne, "", "8000000000000000"}, {PaddingOne, "01", "0180000000000000"}, {PaddingOne, "0102030405060708", "01020304050607088000000000000000"},
		{PaddingOne, "01020304050607", "0102030405060780"},
		{PaddingLength, "", "00000000000000000000000000000000"}, {PaddingLength, "01", "00000000000000080100000000000000"},
		{PaddingLength, "0102030405060708", "00000000000000400102030405060708"},
	} {
		if got := pad(bytesOf(t, test.data), test.padding); !bytes.Equal(got, bytesOf(t, test.want)) {
			t.Errorf("%q by %d: got %X, want %s", test.data, test.padding, got, test.want)
		}
	}
}

// A MAC that met a lost session is made again in the next generation, by the same data; the copy is cleared once it is made.
func TestAMACIsTriedAgainAfterALoss(t *testing.T) {
	f := newFake(t)
	value := bytesOf(t, "43BC10648532254368767C3889E0DA29")
	half := bytes.Repeat(value[:desBytes], 2)
	whole := fakeKey{label: "retail", use: MACX919, value: value}
	left := fakeKey{label: "retail" + leftSuffix, use: MACX919, value: half}
	zeros := make([]byte, desBytes)
	fakeBlock(half, false).Encrypt(zeros, zeros)
	whole.not = map[uint]any{pkcs11.CKA_ID: []byte("retail left:" + kcvText(zeros))}
	f.keys = append(f.keys, whole, left)
	cfg := f.config()
	cfg.Keys = slices.DeleteFunc(cfg.Keys, func(k Key) bool { return k.Label == left.label })
	h, stop := f.start(cfg, io.Discard, nil)
	defer func() { _ = stop() }()
	lost := 0
	f.mu.Lock()
	f.script = func(op string, _ pkcs11.SessionHandle) error {
		if op == "Encrypt" && lost == 0 {
			lost++
			return pkcs11.Error(pkcs11.CKR_SESSION_HANDLE_INVALID)
		}
		return nil
	}
	f.mu.Unlock()
	data := []byte("sixteen bytes of")
	got, err := h.MAC(t.Context(), MACKey{Label: "retail"}, data)
	chain := make([]byte, desBytes)
	subtle.XORBytes(chain, chain, data[:desBytes])
	fakeBlock(half, false).Encrypt(chain, chain)
	subtle.XORBytes(chain, chain, data[desBytes:])
	fakeBlock(whole.value, false).Encrypt(chain, chain)
	if err != nil || lost != 1 || !bytes.Equal(got, chain) {
		t.Errorf("got %X, %v after %d losses; want %X", got, err, lost, chain)
	}
	if err := h.VerifyMAC(t.Context(), MACKey{Label: "retail"}, data, make([]byte, 8)); !errors.Is(err, ErrMAC) {
		t.Errorf("a wrong one: %v", err)
	}

	// A left half that is not there any more, or is another's, is found by the probe.
	k := h.gen.Load().key("retail")
	f.mu.Lock()
	f.keys[k.left-1].value = whole.value
	f.mu.Unlock()
	if err := k.checkAgain(f, h.gen.Load().sessions[0]); !breaks(err) || !strings.Contains(err.Error(), leftSuffix) {
		t.Errorf("another left half: %v", err)
	}
}
