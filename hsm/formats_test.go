package hsm

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/des"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"testing/synctest"

	"acquirerd/card"

	"github.com/miekg/pkcs11"
)

func TestAccountFields(t *testing.T) {
	for _, c := range []struct {
		name      string
		format    Format
		pan, want string
	}{
		{"format 0, 16 digits: the 12 before the check digit", ISO0, "4111111111111111", "0000111111111111"},
		{"format 0, 13 digits: all but the check digit", ISO0, "4222222222222", "0000422222222222"},
		{"format 0, 12 digits: a zero on the left", ISO0, "501234567890", "0000050123456789"},
		{"format 0, 19 digits: the first 6 are left out", ISO0, "6304985028090561515", "0000502809056151"},
		{"format 1: none", ISO1, "4111111111111111", "0000000000000000"},
		{"format 3 is like format 0", ISO3, "4111111111111111", "0000111111111111"},
		{"format 4, 16 digits: 4 more than 12", ISO4, "4111111111111111", "44111111111111111000000000000000"},
		{"format 4, 19 digits, and the check digit", ISO4, "6304985028090561515", "76304985028090561515000000000000"},
		{"format 4, 12 digits: none more", ISO4, "501234567890", "05012345678900000000000000000000"},
		{"format 4, 11 digits: a zero on the left", ISO4, "50123456789", "00501234567890000000000000000000"},
	} {
		t.Run(c.name, func(t *testing.T) {
			field := make([]byte, c.format.Bytes())
			c.format.layout().writeAccount(field, c.pan)
			if got := hex.EncodeToString(field); got != c.want {
				t.Errorf("got %s, want %s", got, c.want)
			}
		})
	}
}

func TestWellFormedPINFields(t *testing.T) {
	for _, c := range []struct {
		name, field string
		of          []Format
	}{
		{"4 digits of format 0", "041234FFFFFFFFFF", []Format{ISO0}},
		{"12 digits of format 0", "0C123456789012FF", []Format{ISO0}},
		{"9 digits of format 0", "09987654321FFFFF", []Format{ISO0}},
		{"3 digits of format 0", "03123FFFFFFFFFFF", nil},
		{"13 digits of format 0", "0D1234567890123F", nil},
		{"length 0", "00FFFFFFFFFFFFFF", nil},
		{"format 1", "141234A0F09B3C11", []Format{ISO1}},
		{"12 digits of format 1", "1C12345678901200", []Format{ISO1}},
		{"13 digits of format 1", "1D12345678901230", nil},
		{"3 digits of format 1", "13123456789ABCDE", nil},
		{"a letter among the digits of format 1", "1412A4FFFFFFFFFF", nil},
		{"format 2", "241234FFFFFFFFFF", nil},
		{"format 3", "341234ABCDEFABCD", []Format{ISO3}},
		{"format 3 with a digit in the fill", "341234ABCDEFABC9", nil},
		{"format 3 with a digit at the begin of the fill", "3412349BCDEFABCA", nil},
		{"format 4", "441234AAAAAAAAAA", []Format{ISO4}},
		{"12 digits of format 4", "4C123456789012AA", []Format{ISO4}},
		{"format 4 with another fill", "441234AAAAAAAAAB", nil},
		{"format 5", "541234AAAAAAAAAA", nil},
		{"a letter among the digits", "0412A4FFFFFFFFFF", nil},
		{"fill with a hole at its begin", "0412340FFFFFFFFF", nil},
		{"fill with a hole at its end", "041234FFFFFFFFF0", nil},
		{"all zeros", "0000000000000000", nil},
		{"all ones", "FFFFFFFFFFFFFFFF", nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			field, err := hex.DecodeString(c.field)
			if err != nil {
				t.Fatal(err)
			}
			for _, f := range Formats {
				want := len(c.of) == 1 && c.of[0] == f
				if got := f.layout().isWellFormed(field); got != want {
					t.Errorf("%s: got %t, want %t", f, got, want)
				}
			}
		})
	}
}

func TestComparisonsOfNibbles(t *testing.T) {
	for a := range byte(16) {
		for b := range byte(17) {
			if got, want := below(a, b) == 0xFF, a < b; got != want || below(a, b) != 0 && below(a, b) != 0xFF {
				t.Errorf("%d below %d: %#x", a, b, below(a, b))
			}
			for values := byte(1); b+values <= 16; values++ {
				if got, want := outside(a, b, values) == 0xFF, a < b || a >= b+values; got != want {
					t.Errorf("%d outside %d and %d more: %t", a, b, values, got)
				}
			}
		}
	}
}

func TestFillIsOfItsFormat(t *testing.T) {
	want := map[Format]string{ISO0: "F", ISO1: "0123456789ABCDEF", ISO3: "ABCDEF", ISO4: "A"}
	for f, digits := range want {
		seen := make([]map[byte]bool, mostDigits)
		tails := map[[8]byte]bool{}
		const draws = 500
		for range draws {
			got := newFill(f)
			for i, n := range got.digits {
				if seen[i] == nil {
					seen[i] = map[byte]bool{}
				}
				seen[i][n] = true
				if !strings.Contains(digits, fmt.Sprintf("%X", n)) {
					t.Fatalf("%s: a fill of %X", f, n)
				}
			}
			tails[got.tail] = true
		}
		for i := range seen {
			if len(seen[i]) != len(digits) { // one draw in 10^13 is without one
				t.Errorf("%s, place %d: %d of %d values in %d draws", f, i, len(seen[i]), len(digits), draws)
			}
		}
		if random := f == ISO4; random != (len(tails) == draws) || !random && len(tails) != 1 {
			t.Errorf("%s: %d tails in %d draws", f, len(tails), draws)
		}
	}
}

// software plays the token: AES or TDES by the standard library, for keys that are made from a word.
func software(t *testing.T, f Format, word string) cipher.Block {
	t.Helper()
	key := []byte(strings.Repeat(word, 24)[:24])
	block, err := des.NewTripleDESCipher(key)
	if f.Bytes() == aesBytes {
		block, err = aes.NewCipher(key[:16])
	}
	if err != nil {
		t.Fatal(err)
	}
	return block
}

func single(do func(dst, src []byte)) cipherBlock {
	return func(dst, src []byte) error { do(dst, src); return nil }
}

// enciphered makes a block of the format from nothing that the code under test has, but for the ciphers' order.
func enciphered(f Format, pin, pan string, random byte, key cipher.Block) []byte {
	text := fmt.Sprintf("%s%X%s", strings.TrimPrefix(string(f), "iso-"), len(pin), pin)
	fill := map[Format]string{ISO0: "F", ISO1: fmt.Sprintf("%X", random%16), ISO3: fmt.Sprintf("%X", 10+random%6), ISO4: "A"}[f]
	text += strings.Repeat(fill, 16-len(text))
	short := pan[:len(pan)-1]
	account := "0000" + strings.Repeat("0", max(0, 12-len(short))) + short[max(0, len(short)-12):]
	if f == ISO1 {
		account = strings.Repeat("0", 16)
	}
	if f == ISO4 {
		text += strings.Repeat(fmt.Sprintf("%02X", random), 8)
		account = fmt.Sprintf("%d%s", len(pan)-12, pan)
		account += strings.Repeat("0", 32-len(account))
	}
	block, _ := hex.DecodeString(text)
	field, _ := hex.DecodeString(account)
	if f == ISO4 {
		key.Encrypt(block, block)
	}
	for i := range block {
		block[i] ^= field[i]
	}
	key.Encrypt(block, block)
	return block
}

// deciphered is the PIN of a block, "" if it is not one of the format and PAN, with the rest of its clear text.
func deciphered(f Format, pan string, block []byte, key cipher.Block) (pin, rest string) {
	for digits := 4; digits <= 12; digits++ {
		// Each length is tried with a PIN of zeros: what differs from that is the PIN and the fill.
		zeros := enciphered(f, strings.Repeat("0", digits), pan, 0, key)
		a, b := make([]byte, len(block)), make([]byte, len(block))
		key.Decrypt(a, block)
		key.Decrypt(b, zeros)
		if f == ISO4 {
			account := f.layout()
			field := make([]byte, 16)
			account.writeAccount(field, pan)
			for i := range a {
				a[i] ^= field[i]
				b[i] ^= field[i]
			}
			key.Decrypt(a, a)
			key.Decrypt(b, b)
		}
		if a[0] != b[0] {
			continue
		}
		for i := range a {
			a[i] ^= b[i]
		}
		text := strings.ToUpper(hex.EncodeToString(a))
		return text[2 : 2+digits], text[2+digits:]
	}
	return "", ""
}

var testPANs = []string{"501234567890", "4222222222222", "4111111111111111", "6304985028090561515"}

func TestEachAllowedPairKeepsThePIN(t *testing.T) {
	for _, from := range Formats {
		for _, to := range Formats {
			if AllowedPair(from, to, SamePAN) != nil {
				continue
			}
			t.Run(fmt.Sprintf("%s to %s", from, to), func(t *testing.T) {
				keyIn, keyOut := software(t, from, "incoming"), software(t, to, "outgoing")
				for _, pan := range testPANs {
					for digits := 4; digits <= 12; digits++ {
						pin := "987654321098"[:digits]
						in := enciphered(from, pin, pan, byte(digits), keyIn)
						out, mem := make([]byte, to.Bytes()), blockMemory{}
						err := translation{from, to, pan, pan, newFill}.run(&mem, out, in, single(keyIn.Decrypt), single(keyOut.Encrypt))
						if err != nil {
							t.Fatalf("PAN of %d, PIN of %d: %v", len(pan), digits, err)
						}
						got, rest := deciphered(to, pan, out, keyOut)
						if got != pin {
							t.Errorf("PAN of %d, PIN of %d: got %q", len(pan), digits, got)
						}
						if from == to && !bytes.Equal(out, enciphered(to, pin, pan, byte(digits), keyOut)) {
							t.Errorf("PAN of %d, PIN of %d: the same format, and another fill %s", len(pan), digits, rest)
						}
						if mem != (blockMemory{}) {
							t.Error("something is left in memory")
						}
					}
				}
			})
		}
	}
}

func TestABlockOfAnotherFormatOrPANIsRefused(t *testing.T) {
	for _, from := range Formats {
		key := software(t, from, "incoming")
		for _, sent := range Formats {
			if sent == from || sent.Bytes() != from.Bytes() {
				continue
			}
			in := enciphered(sent, "1234", testPANs[2], 3, key)
			err := translation{from, from, testPANs[2], testPANs[2], newFill}.run(&blockMemory{}, make([]byte, from.Bytes()), in, single(key.Decrypt), single(key.Encrypt))
			if !errors.Is(err, ErrPINBlock) || err.Error() != ErrPINBlock.Error() {
				t.Errorf("%s taken for %s: %v", sent, from, err)
			}
		}
		in := enciphered(from, "1234", testPANs[2], 3, key)
		other := "5555555555554444"
		err := translation{from, from, other, other, newFill}.run(&blockMemory{}, make([]byte, from.Bytes()), in, single(key.Decrypt), single(key.Encrypt))
		if isOfPAN := from != ISO1; errors.Is(err, ErrPINBlock) != isOfPAN {
			t.Errorf("%s of another PAN: %v", from, err)
		}
		for _, n := range []int{0, 7, 9, 15, 17, from.Bytes() ^ 24} {
			err := translation{from, from, other, other, newFill}.run(&blockMemory{}, make([]byte, from.Bytes()), make([]byte, n), single(key.Decrypt), single(key.Encrypt))
			if !errors.Is(err, ErrPINBlock) {
				t.Errorf("%s of %d bytes: %v", from, n, err)
			}
		}
	}
}

func TestASurrogateGivesWayToItsPAN(t *testing.T) {
	surrogate, pan := "9900000000000017", testPANs[2]
	for _, from := range []Format{ISO0, ISO3, ISO4} {
		for _, to := range []Format{ISO0, ISO3, ISO4} {
			keyIn, keyOut := software(t, from, "incoming"), software(t, to, "outgoing")
			out := make([]byte, to.Bytes())
			in := enciphered(from, "123456", surrogate, 5, keyIn)
			if err := (translation{from, to, surrogate, pan, newFill}).run(&blockMemory{}, out, in, single(keyIn.Decrypt), single(keyOut.Encrypt)); err != nil {
				t.Fatalf("%s to %s: %v", from, to, err)
			}
			if got, _ := deciphered(to, pan, out, keyOut); got != "123456" {
				t.Errorf("%s to %s: got %q under the PAN", from, to, got)
			}
		}
	}
}

func TestMemoryIsClearedWhateverHappens(t *testing.T) {
	broken := errors.New("token gone")
	for _, from := range []Format{ISO0, ISO4} {
		for _, to := range []Format{ISO3, ISO4} {
			keyIn, keyOut := software(t, from, "incoming"), software(t, to, "outgoing")
			in := enciphered(from, "1234", testPANs[2], 1, keyIn)
			calls := (from.Bytes() + to.Bytes()) / 8 // format 4 takes two calls of each
			for failing := range calls {
				var mem blockMemory
				n := 0
				fails := func(do func(dst, src []byte)) cipherBlock {
					return func(dst, src []byte) error {
						do(dst, src)
						if n++; n > failing {
							return broken
						}
						return nil
					}
				}
				err := translation{from, to, testPANs[2], testPANs[2], newFill}.run(&mem, make([]byte, to.Bytes()), in, fails(keyIn.Decrypt), fails(keyOut.Encrypt))
				if !errors.Is(err, broken) || errors.Is(err, ErrPINBlock) || n != failing+1 {
					t.Errorf("%s to %s, call %d: %d calls, %v", from, to, failing+1, n, err)
				}
				if mem != (blockMemory{}) {
					t.Errorf("%s to %s, call %d: something is left in memory", from, to, failing+1)
				}
			}
			var mem blockMemory
			in[0] ^= 1
			if err := (translation{from, to, testPANs[2], testPANs[2], newFill}).run(&mem, make([]byte, to.Bytes()), in, single(keyIn.Decrypt), single(keyOut.Encrypt)); !errors.Is(err, ErrPINBlock) {
				t.Errorf("%s to %s, garbage: %v", from, to, err)
			}
			if mem != (blockMemory{}) {
				t.Errorf("%s to %s, garbage: something is left in memory", from, to)
			}
		}
	}
}

func TestPairsOfFormats(t *testing.T) {
	for _, c := range []struct {
		from, to Format
		change   PANChange
		want     string // a part of what is said; "": allowed
	}{
		{"", "", SamePAN, ""},
		{"", ISO4, SamePAN, ""},
		{ISO1, "", SamePAN, ""},
		{ISO0, ISO1, SamePAN, "iso-0 into iso-1 would unbind"},
		{"", ISO1, SamePAN, "iso-0 into iso-1 would unbind"},
		{ISO4, ISO1, SamePAN, "iso-4 into iso-1"},
		{"iso-2", ISO0, SamePAN, `"iso-2" is not one of iso-0, iso-1, iso-3, iso-4`},
		{ISO0, "iso-2", SamePAN, `"iso-2" is not one of`},
		{"0", ISO0, SamePAN, `"0" is not one of`},
		{ISO0, ISO0, UnrelatedPAN, "nothing binds"},
		{ISO0, ISO4, BoundPAN, ""},
		{ISO4, ISO3, BoundPAN, ""},
		{ISO1, ISO0, BoundPAN, "no PAN that could change"},
		{ISO1, ISO0, UnrelatedPAN, "nothing binds"},
		{ISO3, ISO1, BoundPAN, "would unbind"},
	} {
		err := AllowedPair(c.from, c.to, c.change)
		if (err == nil) != (c.want == "") || err != nil && (!strings.Contains(err.Error(), c.want) || !errors.Is(err, ErrPINFormat)) {
			t.Errorf("%q to %q, %d: got %v, want %q", c.from, c.to, c.change, err, c.want)
		}
	}
}

// Whatever a token deciphers a block to, it is either refused or its PIN goes on as it is, and nothing of it is left in memory.
func FuzzTranslation(f *testing.F) {
	f.Add([]byte("\x04\x12\x25\xee\xee\xee\xee\xee"), byte(0), byte(2))
	f.Add([]byte("\x14\x12\x34\x56\x78\x9a\xbc\xde"), byte(1), byte(3))
	f.Add([]byte("\x34\x12\x25\xbc\xbc\xbc\xbc\xbc"), byte(2), byte(0))
	f.Add([]byte("\x44\x12\x34\xaa\xaa\xaa\xaa\xaa01234567"), byte(3), byte(0))
	f.Fuzz(func(t *testing.T, in []byte, fromIndex, toIndex byte) {
		from, to := Formats[int(fromIndex)%len(Formats)], Formats[int(toIndex)%len(Formats)]
		if AllowedPair(from, to, SamePAN) != nil {
			return
		}
		block, mem, plain := make([]byte, to.Bytes()), blockMemory{}, single(func(dst, src []byte) { copy(dst, src) })
		err := translation{from, to, testPANs[2], testPANs[2], newFill}.run(&mem, block, in, plain, plain)
		if mem != (blockMemory{}) {
			t.Error("something is left in memory")
		}
		if err != nil {
			if !errors.Is(err, ErrPINBlock) || !bytes.Equal(block, make([]byte, to.Bytes())) {
				t.Errorf("refused with %x: %v", block, err)
			}
			return
		}
		pins := make([][]byte, 2)
		for i, one := range []struct {
			format Format
			block  []byte
		}{{from, in}, {to, block}} {
			pins[i] = make([]byte, ISO0.Bytes())
			if err := (translation{one.format, ISO0, testPANs[2], "", newFill}).run(&mem, pins[i], one.block, plain, plain); err != nil {
				t.Fatal(err)
			}
		}
		if !bytes.Equal(pins[0], pins[1]) {
			t.Errorf("%s to %s: %x became %x", from, to, pins[0], pins[1])
		}
	})
}

func BenchmarkTranslationWithoutToken(b *testing.B) {
	none := single(func(dst, src []byte) { copy(dst, src) })
	for _, pair := range [][2]Format{{ISO0, ISO0}, {ISO0, ISO3}, {ISO0, ISO4}, {ISO4, ISO0}} {
		b.Run(fmt.Sprintf("%s to %s", pair[0], pair[1]), func(b *testing.B) {
			var plain [16]byte
			in, out, mem := make([]byte, pair[0].Bytes()), make([]byte, pair[1].Bytes()), blockMemory{}
			pair[0].layout().writeAccount(plain[:pair[0].Bytes()], testPANs[2])
			field, _ := hex.DecodeString("041234FFFFFFFFFF")
			pair[0].layout().write(in, field, newFill(pair[0]))
			for i := range in {
				in[i] ^= plain[i]
			}
			b.ReportAllocs()
			for b.Loop() {
				if err := (translation{pair[0], pair[1], testPANs[2], testPANs[2], newFill}).run(&mem, out, in, none, none); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func TestFormatsAreCheckedBeforeAnyCall(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake(t)
		h, stop := f.start(f.config(), io.Discard, nil)
		long, err := card.NewPINBlock(make([]byte, 16))
		if err != nil {
			t.Fatal(err)
		}
		f.set(func() {
			f.script = func(op string, _ pkcs11.SessionHandle) error {
				t.Errorf("%s is called", op)
				return nil
			}
		})
		for _, c := range []struct {
			from, to Format
			block    card.PINBlock
			want     error
		}{
			{ISO0, ISO1, testCard(t).PINBlock, ErrPINFormat},
			{"iso-2", ISO0, testCard(t).PINBlock, ErrPINFormat},
			{ISO0, ISO4, testCard(t).PINBlock, ErrPINFormat}, // the keys are TDES
			{ISO4, ISO0, long, ErrPINFormat},
			{ISO0, ISO3, long, ErrPINBlock},
			{ISO4, ISO4, testCard(t).PINBlock, ErrPINBlock},
		} {
			asked := testCard(t)
			asked.FromFormat, asked.ToFormat, asked.PINBlock = c.from, c.to, c.block
			p, err := h.Protect(t.Context(), asked)
			if !errors.Is(err, c.want) || errors.Is(err, ErrPINFormat) != errors.Is(err, ErrUnavailable) || p.Sealed.Ciphertext != nil {
				t.Errorf("%s to %s, %d bytes: got %v", c.from, c.to, len(c.block.Reveal()), err)
			}
		}
		for label, want := range map[string]error{"in": ErrPINFormat, "out": ErrPINFormat, "none": ErrUnavailable} {
			if err := h.CheckPINFormat(label, ISO4); !errors.Is(err, want) {
				t.Errorf("key %q: got %v, want %v", label, err, want)
			}
		}
		for _, format := range []Format{"", ISO0, ISO1, ISO3} {
			if err := h.CheckPINFormat("in", format); err != nil {
				t.Errorf("%q: %v", format, err)
			}
		}
		f.set(func() { f.script = nil })
		if err := stop(); err != nil {
			t.Error(err)
		}
	})
}
