package hsm_test

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/des"
	"crypto/hmac"
	"crypto/sha256"
	"errors"
	"os"
	"slices"
	"testing"

	"acquirerd/hsm"
	"acquirerd/hsm/hsmtest"

	"github.com/miekg/pkcs11"
	"golang.org/x/sys/unix"
)

// A bench is a logged-in session of a token, with the straight calls.
type bench struct {
	*hsm.Library
	testing.TB
	s pkcs11.SessionHandle
}

// onEachModule runs a test on SoftHSM and on NSS.
func onEachModule(t *testing.T, f func(*testing.T, bench)) {
	t.Helper()
	t.Run("SoftHSM", func(t *testing.T) { f(t, newBench(t, hsmtest.New(t))) })
	t.Run("NSS", func(t *testing.T) { f(t, newBench(t, hsmtest.NewNSS(t))) })
}

func newBench(t testing.TB, token *hsmtest.Token) bench {
	t.Helper()
	l, err := hsm.LoadModule(token.Module, token.Arguments)
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Initialize(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Finalize(); err != nil {
			t.Error(err)
		}
	})
	return bench{l, t, token.Login(l.Ctx)}
}

// opened is the bench with a session of its own, so that no operation is left open in the other's.
func (b bench) opened() bench {
	b.Helper()
	token, err := b.GetSessionInfo(b.s)
	if err == nil {
		b.s, err = b.OpenSession(token.SlotID, pkcs11.CKF_SERIAL_SESSION)
	}
	if err != nil {
		b.Fatal(err)
	}
	return b
}

// key makes a key of the session for every use, which may be read.
func (b bench) key(keyType uint, value []byte, instead ...*pkcs11.Attribute) pkcs11.ObjectHandle {
	b.Helper()
	o, err := b.CreateSecret(b.s, readable(keyType, instead...), value)
	if err != nil {
		b.Fatal(err)
	}
	return o
}

func readable(keyType uint, instead ...*pkcs11.Attribute) []*pkcs11.Attribute {
	template := []*pkcs11.Attribute{
		pkcs11.NewAttribute(pkcs11.CKA_CLASS, pkcs11.CKO_SECRET_KEY), pkcs11.NewAttribute(pkcs11.CKA_KEY_TYPE, keyType), pkcs11.NewAttribute(pkcs11.CKA_TOKEN, false),
		pkcs11.NewAttribute(pkcs11.CKA_SENSITIVE, false), pkcs11.NewAttribute(pkcs11.CKA_EXTRACTABLE, true),
	}
	for _, may := range []uint{pkcs11.CKA_ENCRYPT, pkcs11.CKA_DECRYPT, pkcs11.CKA_SIGN, pkcs11.CKA_DERIVE, pkcs11.CKA_WRAP, pkcs11.CKA_UNWRAP} {
		template = append(template, pkcs11.NewAttribute(may, true))
	}
	for _, a := range instead {
		template = append(slices.DeleteFunc(template, func(other *pkcs11.Attribute) bool { return other.Type == a.Type }), a)
	}
	return template
}

func (b bench) value(o pkcs11.ObjectHandle) []byte {
	b.Helper()
	out := make([]byte, 100)
	n, err := b.ReadValue(b.s, o, pkcs11.CKA_VALUE, out)
	if err != nil {
		b.Fatal(err)
	}
	return out[:n]
}

// refused fails the test unless err is one of the codes.
func refused(t *testing.T, err error, codes ...uint) {
	t.Helper()
	if !slices.ContainsFunc(codes, func(code uint) bool { return errors.Is(err, pkcs11.Error(code)) }) {
		t.Errorf("got %v, want code %#x", err, codes)
	}
}

func mechanism(which uint, parameter []byte) []*pkcs11.Mechanism {
	return []*pkcs11.Mechanism{pkcs11.NewMechanism(which, parameter)}
}

// Test keys: the double and the triple one of odd parity, as tokens correct it.
var (
	doubleKey = hsmtest.ZoneKey("double", 16)
	tripleKey = hsmtest.ZoneKey("triple", 24)
	aesKey    = []byte("a key of 32 bytes for this test.")
	aesZMK    = []byte("a zone master key for this test.")
)

func tripleDES(t testing.TB, key []byte) cipher.Block {
	t.Helper()
	if len(key) == 16 {
		key = append(bytes.Clone(key), key[:8]...)
	}
	block, err := des.NewTripleDESCipher(key)
	if err != nil {
		t.Fatal(err)
	}
	return block
}

func aesOf(t testing.TB, key []byte) cipher.Block {
	t.Helper()
	block, err := aes.NewCipher(key)
	if err != nil {
		t.Fatal(err)
	}
	return block
}

func TestAnOperationHeldOpenGivesEachBlockAtOnce(t *testing.T) {
	onEachModule(t, func(t *testing.T, b bench) {
		for name, c := range map[string]struct {
			mechanism uint
			keyType   uint
			value     []byte
			block     cipher.Block
			iv        []byte
		}{
			"TDES 2 ECB": {pkcs11.CKM_DES3_ECB, pkcs11.CKK_DES2, doubleKey, tripleDES(t, doubleKey), nil},
			"TDES 3 ECB": {pkcs11.CKM_DES3_ECB, pkcs11.CKK_DES3, tripleKey, tripleDES(t, tripleKey), nil},
			"TDES 2 CBC": {pkcs11.CKM_DES3_CBC, pkcs11.CKK_DES2, doubleKey, tripleDES(t, doubleKey), []byte("iv of 8.")},
			"AES ECB":    {pkcs11.CKM_AES_ECB, pkcs11.CKK_AES, aesKey, aesOf(t, aesKey), nil},
			"AES CBC":    {pkcs11.CKM_AES_CBC, pkcs11.CKK_AES, aesKey, aesOf(t, aesKey), []byte("iv of 16 bytes..")},
		} {
			t.Run(name, func(t *testing.T) {
				key, size := b.key(c.keyType, c.value), c.block.BlockSize()
				clearText := []byte("three blocks, of which each is another one......")[:3*size]
				want := make([]byte, len(clearText))
				if c.iv != nil {
					cipher.NewCBCEncrypter(c.block, c.iv).CryptBlocks(want, clearText)
				} else {
					for i := 0; i < len(want); i += size {
						c.block.Encrypt(want[i:], clearText[i:])
					}
				}
				for _, way := range []struct {
					name     string
					init     func(pkcs11.SessionHandle, []*pkcs11.Mechanism, pkcs11.ObjectHandle) error
					update   func(pkcs11.SessionHandle, []byte, []byte) (int, error)
					to       func(pkcs11.SessionHandle, []byte, []byte) (int, error)
					in, want []byte
				}{
					{"enciphering", b.EncryptInit, b.EncryptUpdate, b.EncryptTo, clearText, want},
					{"deciphering", b.DecryptInit, b.DecryptUpdate, b.DecryptTo, want, clearText},
				} {
					b := b.opened()
					if err := way.init(b.s, mechanism(c.mechanism, c.iv), key); err != nil {
						t.Fatal(err)
					}
					for i := 0; i < len(way.in); i += size {
						out := make([]byte, size)
						if n, err := way.update(b.s, way.in[i:i+size], out); n != size || err != nil || !bytes.Equal(out, way.want[i:i+size]) {
							t.Errorf("%s block %d: %d bytes %X, want %X: %v", way.name, i/size, n, out, way.want[i:i+size], err)
						}
					}
					b = b.opened()
					if err := way.init(b.s, mechanism(c.mechanism, c.iv), key); err != nil {
						t.Fatal(err)
					}
					out := make([]byte, len(way.in))
					if n, err := way.to(b.s, way.in, out); n != len(way.want) || err != nil || !bytes.Equal(out, way.want) {
						t.Errorf("%s at once: %d bytes %X, want %X: %v", way.name, n, out, way.want, err)
					}
				}
			})
		}
	})
}

func TestSigningWritesIntoTheCallersBytes(t *testing.T) {
	onEachModule(t, func(t *testing.T, b bench) {
		key := b.key(pkcs11.CKK_GENERIC_SECRET, aesKey)
		for _, data := range []string{"", "4111111111111111"} {
			mac := hmac.New(sha256.New, aesKey)
			_, _ = mac.Write([]byte(data))
			if err := b.SignInit(b.s, mechanism(pkcs11.CKM_SHA256_HMAC, nil), key); err != nil {
				t.Fatal(err)
			}
			out := make([]byte, 40)
			if n, err := b.SignTo(b.s, []byte(data), out); err != nil || !bytes.Equal(out[:n], mac.Sum(nil)) || !bytes.Equal(out[n:], make([]byte, 8)) {
				t.Errorf("%d bytes %X, want %X: %v", n, out, mac.Sum(nil), err)
			}
		}
	})
}

// The modules differ in what they say and in whether a single shot is over.
func TestNothingIsWrittenBeyondAShortRoom(t *testing.T) {
	onEachModule(t, func(t *testing.T, b bench) {
		tdesKey, hmacKey := b.key(pkcs11.CKK_DES2, doubleKey), b.key(pkcs11.CKK_GENERIC_SECRET, aesKey)
		encipher, decipher := make([]byte, 8), make([]byte, 8)
		tripleDES(t, doubleKey).Encrypt(encipher, encipher)
		tripleDES(t, doubleKey).Decrypt(decipher, decipher)
		for _, c := range []struct {
			name  string
			begin func() error
			f     func(pkcs11.SessionHandle, []byte, []byte) (int, error)
			want  []byte // of 8 zero bytes
			held  bool
		}{
			{"C_Encrypt", func() error { return b.EncryptInit(b.s, mechanism(pkcs11.CKM_DES3_ECB, nil), tdesKey) }, b.EncryptTo, encipher, false},
			{"C_Decrypt", func() error { return b.DecryptInit(b.s, mechanism(pkcs11.CKM_DES3_ECB, nil), tdesKey) }, b.DecryptTo, decipher, false},
			{"C_EncryptUpdate", func() error { return b.EncryptInit(b.s, mechanism(pkcs11.CKM_DES3_ECB, nil), tdesKey) }, b.EncryptUpdate, encipher, true},
			{"C_DecryptUpdate", func() error { return b.DecryptInit(b.s, mechanism(pkcs11.CKM_DES3_ECB, nil), tdesKey) }, b.DecryptUpdate, decipher, true},
			{"C_Sign", func() error { return b.SignInit(b.s, mechanism(pkcs11.CKM_SHA256_HMAC, nil), hmacKey) }, b.SignTo, nil, false},
		} {
			for _, room := range []int{0, 7} {
				b.s = b.opened().s // for begin too
				if err := c.begin(); err != nil {
					t.Fatal(err)
				}
				out := make([]byte, 40)
				n, err := c.f(b.s, make([]byte, 8), out[:room])
				if !bytes.Equal(out[room:], make([]byte, 40-room)) {
					t.Errorf("%s wrote beyond a room of %d", c.name, room)
				}
				if c.want == nil { // a MAC: NSS cuts it
					if err == nil && n != room {
						t.Errorf("%s: %d bytes in a room of %d", c.name, n, room)
					}
					if err != nil {
						refused(t, err, pkcs11.CKR_BUFFER_TOO_SMALL)
					}
					continue
				}
				refused(t, err, pkcs11.CKR_BUFFER_TOO_SMALL, pkcs11.CKR_ARGUMENTS_BAD)
				if n != 0 {
					t.Errorf("%s: %d bytes in a room of %d", c.name, n, room)
				}
				if n, err := c.f(b.s, make([]byte, 8), out); (err != nil || !bytes.Equal(out[:n], c.want)) && (c.held || !errors.Is(err, pkcs11.Error(pkcs11.CKR_OPERATION_NOT_INITIALIZED))) {
					t.Errorf("%s, with room: %X, want %X: %v", c.name, out[:n], c.want, err)
				}
			}
		}
		base, out := b.key(pkcs11.CKK_AES, aesKey), make([]byte, 40)
		for _, room := range []int{0, 31} {
			n, err := b.ReadValue(b.s, base, pkcs11.CKA_VALUE, out[:room])
			refused(t, err, pkcs11.CKR_BUFFER_TOO_SMALL)
			if n != 0 || !bytes.Equal(out, make([]byte, 40)) {
				t.Errorf("a value of 32 bytes left %X in a room of %d", out, room)
			}
		}
	})
}

func TestStraightCallsReturnTheCodesOfTheModule(t *testing.T) {
	onEachModule(t, func(t *testing.T, b bench) {
		const nobody = 0xDEAD
		block := make([]byte, 8)
		for name, f := range map[string]func(pkcs11.SessionHandle, []byte, []byte) (int, error){
			"C_Encrypt": b.EncryptTo, "C_EncryptUpdate": b.EncryptUpdate, "C_Decrypt": b.DecryptTo, "C_DecryptUpdate": b.DecryptUpdate, "C_Sign": b.SignTo,
		} {
			t.Run(name, func(t *testing.T) {
				_, err := f(nobody, block, block)
				refused(t, err, pkcs11.CKR_SESSION_HANDLE_INVALID)
				_, err = f(b.s, block, block)
				refused(t, err, pkcs11.CKR_OPERATION_NOT_INITIALIZED)
			})
		}
		template := readable(pkcs11.CKK_AES)
		_, err := b.CreateSecret(nobody, template, aesKey)
		refused(t, err, pkcs11.CKR_SESSION_HANDLE_INVALID)
		_, err = b.CreateSecret(b.s, nil, aesKey)
		refused(t, err, pkcs11.CKR_TEMPLATE_INCOMPLETE, pkcs11.CKR_ATTRIBUTE_VALUE_INVALID)
		base := b.key(pkcs11.CKK_AES, aesKey)
		_, err = b.DeriveString(nobody, pkcs11.CKM_AES_ECB_ENCRYPT_DATA, make([]byte, 16), base, template)
		refused(t, err, pkcs11.CKR_SESSION_HANDLE_INVALID)
		_, err = b.DeriveString(b.s, pkcs11.CKM_AES_ECB_ENCRYPT_DATA, make([]byte, 16), nobody, template)
		refused(t, err, pkcs11.CKR_OBJECT_HANDLE_INVALID, pkcs11.CKR_KEY_HANDLE_INVALID)
		_, err = b.DeriveString(b.s, pkcs11.CKM_AES_GCM, make([]byte, 16), base, template)
		refused(t, err, pkcs11.CKR_MECHANISM_INVALID)
		_, err = b.DeriveNumber(b.s, pkcs11.CKM_AES_GCM, 0, base, template)
		refused(t, err, pkcs11.CKR_MECHANISM_INVALID)
		_, err = b.ReadValue(nobody, base, pkcs11.CKA_VALUE, block)
		refused(t, err, pkcs11.CKR_SESSION_HANDLE_INVALID)
		_, err = b.ReadValue(b.s, nobody, pkcs11.CKA_VALUE, block)
		refused(t, err, pkcs11.CKR_OBJECT_HANDLE_INVALID)
		secret := b.key(pkcs11.CKK_AES, aesKey, pkcs11.NewAttribute(pkcs11.CKA_SENSITIVE, true))
		_, err = b.ReadValue(b.s, secret, pkcs11.CKA_VALUE, make([]byte, 32))
		refused(t, err, pkcs11.CKR_ATTRIBUTE_SENSITIVE)
	})
}

func TestASecretIsCreatedFromLockedMemory(t *testing.T) {
	onEachModule(t, func(t *testing.T, b bench) {
		page, err := unix.Mmap(-1, 0, os.Getpagesize(), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Munmap(page)
		end := page[len(page)-len(aesKey):] // a read beyond it would fault
		copy(end, aesKey)
		template := readable(pkcs11.CKK_AES, pkcs11.NewAttribute(pkcs11.CKA_LABEL, "from locked memory"))
		key, err := b.CreateSecret(b.s, template, end)
		if err != nil {
			t.Fatal(err)
		}
		clear(end)
		if n, err := b.ReadValue(b.s, key, pkcs11.CKA_VALUE, end); n != len(aesKey) || err != nil || !bytes.Equal(end, aesKey) {
			t.Errorf("read %d bytes %X: %v", n, end, err)
		}
		label := make([]byte, 100)
		if n, err := b.ReadValue(b.s, key, pkcs11.CKA_LABEL, label); err != nil || string(label[:n]) != "from locked memory" {
			t.Errorf("label %q: %v", label[:n], err)
		}
	})
}

func TestADerivationEnciphersItsString(t *testing.T) {
	onEachModule(t, func(t *testing.T, b bench) {
		data := []byte("01234567 and a second block ....")
		want := make([]byte, 32)
		aesOf(t, aesKey).Encrypt(want, data)
		aesOf(t, aesKey).Encrypt(want[16:], data[16:])
		base := b.key(pkcs11.CKK_AES, aesKey)
		got, err := b.DeriveString(b.s, pkcs11.CKM_AES_ECB_ENCRYPT_DATA, data, base, readable(pkcs11.CKK_AES, pkcs11.NewAttribute(pkcs11.CKA_VALUE_LEN, 32)))
		if err != nil || !bytes.Equal(b.value(got), want) {
			t.Errorf("AES: %X, want %X: %v", b.value(got), want, err)
		}
		base = b.key(pkcs11.CKK_DES2, doubleKey)
		want = want[:16]
		tripleDES(t, doubleKey).Encrypt(want, data)
		tripleDES(t, doubleKey).Encrypt(want[8:], data[8:])
		got, err = b.DeriveString(b.s, pkcs11.CKM_DES3_ECB_ENCRYPT_DATA, data[:16], base, readable(pkcs11.CKK_GENERIC_SECRET, pkcs11.NewAttribute(pkcs11.CKA_VALUE_LEN, 16)))
		if err != nil || !bytes.Equal(b.value(got), want) {
			t.Errorf("TDES: %X, want %X: %v", b.value(got), want, err)
		}
	})
}

func TestTheUpdateOfAnOpenOperationAllocatesNothing(t *testing.T) {
	onEachModule(t, func(t *testing.T, b bench) {
		if err := b.EncryptInit(b.s, mechanism(pkcs11.CKM_DES3_ECB, nil), b.key(pkcs11.CKK_DES2, doubleKey)); err != nil {
			t.Fatal(err)
		}
		if n := testing.AllocsPerRun(100, func() {
			var block [8]byte // on the stack
			if _, err := b.EncryptUpdate(b.s, block[:], block[:]); err != nil {
				t.Error(err)
			}
		}); n != 0 {
			t.Errorf("%v allocations", n)
		}
	})
}

func BenchmarkEncryptUpdate(b *testing.B) {
	on := newBench(b, hsmtest.New(b))
	if err := on.EncryptInit(on.s, mechanism(pkcs11.CKM_DES3_ECB, nil), on.key(pkcs11.CKK_DES2, doubleKey)); err != nil {
		b.Fatal(err)
	}
	block := make([]byte, 8)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := on.EncryptUpdate(on.s, block, block); err != nil {
			b.Fatal(err)
		}
	}
}

func TestNSSComputesWithKeysInsideTheToken(t *testing.T) {
	b := newBench(t, hsmtest.NewNSS(t))
	open := func(length int) []*pkcs11.Attribute {
		return readable(pkcs11.CKK_GENERIC_SECRET, pkcs11.NewAttribute(pkcs11.CKA_VALUE_LEN, length))
	}
	base, second := b.key(pkcs11.CKK_GENERIC_SECRET, doubleKey), b.key(pkcs11.CKK_GENERIC_SECRET, []byte("second"))
	xor := make([]byte, 16)
	for i := range xor {
		xor[i] = doubleKey[i] ^ aesKey[i]
	}
	for _, c := range []struct {
		name   string
		derive func() (pkcs11.ObjectHandle, error)
		want   []byte
	}{
		{"XOR", func() (pkcs11.ObjectHandle, error) {
			return b.DeriveString(b.s, pkcs11.CKM_XOR_BASE_AND_DATA, aesKey[:16], base, open(16))
		}, xor},
		{"key, then data", func() (pkcs11.ObjectHandle, error) {
			return b.DeriveString(b.s, pkcs11.CKM_CONCATENATE_BASE_AND_DATA, []byte("data"), base, open(20))
		}, slices.Concat(doubleKey, []byte("data"))},
		{"data, then key", func() (pkcs11.ObjectHandle, error) {
			return b.DeriveString(b.s, pkcs11.CKM_CONCATENATE_DATA_AND_BASE, []byte("data"), base, open(20))
		}, slices.Concat([]byte("data"), doubleKey)},
		{"two keys", func() (pkcs11.ObjectHandle, error) {
			return b.DeriveNumber(b.s, pkcs11.CKM_CONCATENATE_BASE_AND_KEY, uint(second), base, open(22))
		}, slices.Concat(doubleKey, []byte("second"))},
		{"a part", func() (pkcs11.ObjectHandle, error) {
			return b.DeriveNumber(b.s, pkcs11.CKM_EXTRACT_KEY_FROM_KEY, 8*3, base, open(5))
		}, doubleKey[3:8]},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := c.derive()
			if err != nil {
				t.Fatal(err)
			}
			if value := b.value(got); !bytes.Equal(value, c.want) {
				t.Errorf("%X, want %X", value, c.want)
			}
		})
	}
	_, err := b.DeriveNumber(b.s, pkcs11.CKM_EXTRACT_KEY_FROM_KEY, 0, 0xDEAD, open(5))
	refused(t, err, pkcs11.CKR_KEY_HANDLE_INVALID)
	_, err = b.DeriveNumber(0xDEAD, pkcs11.CKM_EXTRACT_KEY_FROM_KEY, 0, base, open(5))
	refused(t, err, pkcs11.CKR_SESSION_HANDLE_INVALID)
}

// The vector of RFC 3394, 4.1.
func TestAKeyIsWrappedAndUnwrapped(t *testing.T) {
	onEachModule(t, func(t *testing.T, b bench) {
		kek, value := unhex(t, "000102030405060708090A0B0C0D0E0F"), unhex(t, "00112233445566778899AABBCCDDEEFF")
		want := unhex(t, "1FA68B0A8112B447AEF34BD8FB5A7B829D3E862371D2CFE5")
		under, key := b.key(pkcs11.CKK_AES, kek), b.key(pkcs11.CKK_AES, value)
		out := make([]byte, 40)
		n, err := b.WrapTo(b.s, pkcs11.CKM_AES_KEY_WRAP, nil, under, key, out)
		if err != nil || !bytes.Equal(out[:n], want) {
			t.Fatalf("%X, want %X: %v", out[:n], want, err)
		}
		back, err := b.Unwrap(b.s, pkcs11.CKM_AES_KEY_WRAP, nil, under, out[:n], readable(pkcs11.CKK_AES))
		if err != nil {
			t.Fatal(err)
		}
		if got := b.value(back); !bytes.Equal(got, value) {
			t.Errorf("%X, want %X", got, value)
		}
		const nobody = 0xDEAD
		_, err = b.WrapTo(nobody, pkcs11.CKM_AES_KEY_WRAP, nil, under, key, out)
		refused(t, err, pkcs11.CKR_SESSION_HANDLE_INVALID)
		_, err = b.WrapTo(b.s, pkcs11.CKM_AES_KEY_WRAP, nil, nobody, key, out)
		refused(t, err, pkcs11.CKR_WRAPPING_KEY_HANDLE_INVALID, pkcs11.CKR_KEY_HANDLE_INVALID)
		_, err = b.WrapTo(b.s, pkcs11.CKM_AES_KEY_WRAP, nil, under, nobody, out)
		refused(t, err, pkcs11.CKR_KEY_HANDLE_INVALID)
		_, err = b.Unwrap(nobody, pkcs11.CKM_AES_KEY_WRAP, nil, under, want, readable(pkcs11.CKK_AES))
		refused(t, err, pkcs11.CKR_SESSION_HANDLE_INVALID)
		_, err = b.Unwrap(b.s, pkcs11.CKM_AES_KEY_WRAP, nil, nobody, want, readable(pkcs11.CKK_AES))
		refused(t, err, pkcs11.CKR_UNWRAPPING_KEY_HANDLE_INVALID, pkcs11.CKR_KEY_HANDLE_INVALID)
		want[0] ^= 1
		_, err = b.Unwrap(b.s, pkcs11.CKM_AES_KEY_WRAP, nil, under, want, readable(pkcs11.CKK_AES))
		if err == nil {
			t.Error("a damaged key was unwrapped")
		}
	})
}

func deciphered(t testing.TB, key, block []byte) []byte {
	out := make([]byte, len(block))
	tripleDES(t, key).Decrypt(out, block)
	return out
}

func TestNSSTranslatesInsideTheToken(t *testing.T) {
	b := newBench(t, hsmtest.NewNSS(t))
	in, out := b.key(pkcs11.CKK_DES2, doubleKey), b.key(pkcs11.CKK_DES3, tripleKey)
	block, want := []byte("a block."), make([]byte, 8)
	tripleDES(t, tripleKey).Encrypt(want, deciphered(t, doubleKey, block))
	hidden, err := b.Unwrap(b.s, pkcs11.CKM_DES3_ECB, nil, in, block, []*pkcs11.Attribute{
		pkcs11.NewAttribute(pkcs11.CKA_CLASS, pkcs11.CKO_SECRET_KEY), pkcs11.NewAttribute(pkcs11.CKA_KEY_TYPE, pkcs11.CKK_GENERIC_SECRET),
		pkcs11.NewAttribute(pkcs11.CKA_SENSITIVE, true), pkcs11.NewAttribute(pkcs11.CKA_EXTRACTABLE, true),
	})
	if err != nil {
		t.Fatal(err)
	}
	_, err = b.ReadValue(b.s, hidden, pkcs11.CKA_VALUE, make([]byte, 8))
	refused(t, err, pkcs11.CKR_ATTRIBUTE_SENSITIVE)
	got := make([]byte, 8)
	if n, err := b.WrapTo(b.s, pkcs11.CKM_DES3_ECB, nil, out, hidden, got); n != 8 || err != nil || !bytes.Equal(got, want) {
		t.Errorf("%d bytes %X, want %X: %v", n, got, want, err)
	}
	iv := []byte("iv of 8.")
	cipher.NewCBCEncrypter(tripleDES(t, tripleKey), iv).CryptBlocks(want, deciphered(t, doubleKey, block))
	if n, err := b.WrapTo(b.s, pkcs11.CKM_DES3_CBC, iv, out, hidden, got); n != 8 || err != nil || !bytes.Equal(got, want) {
		t.Errorf("in CBC %d bytes %X, want %X: %v", n, got, want, err)
	}
}
