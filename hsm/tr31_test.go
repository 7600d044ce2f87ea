package hsm

import (
	"errors"
	"slices"
	"strings"
	"testing"
)

// A block of TR-31:2018, A.7.3.2: a BDK with the KSN of its initial key.
const sampleBlock = "B0104B0TX12S0100KS1800604B120F9292800000BB68BE8680A400D9191AD4ECE45B6E6C0D21C4738A52190E248719E24B433627"

func TestAKeyBlockIsTakenApart(t *testing.T) {
	b, err := parseKeyBlock([]byte(sampleBlock))
	if err != nil {
		t.Fatal(err)
	}
	want := BlockHeader{'B', "B0", 'T', 'X', "12", 'S', '0', []OptionalBlock{{"KS", "00604B120F9292800000"}}}
	if b.Version != want.Version || b.Usage != want.Usage || b.Algorithm != want.Algorithm || b.Mode != want.Mode || b.KeyVersion != want.KeyVersion ||
		b.Exportability != want.Exportability || b.Context != want.Context || !slices.Equal(b.Optional, want.Optional) {
		t.Errorf("got %+v, want %+v", b.BlockHeader, want)
	}
	if string(b.header) != sampleBlock[:40] || len(b.sealed) != 24 || len(b.mac) != 8 || string(b.write()) != sampleBlock {
		t.Errorf("got %+v", b)
	}
}

// Each of these is a sample block with one thing wrong.
func TestAKeyBlockIsRefused(t *testing.T) {
	change := func(at int, text string) string { return sampleBlock[:at] + text + sampleBlock[at+len(text):] }
	long := func(optional string, count int) string { // of version B, whose header is right otherwise
		h := BlockHeader{'B', "B0", 'T', 'X', "12", 'S', '0', nil}
		text, err := h.text(24)
		if err != nil {
			t.Fatal(err)
		}
		text = append(text, optional...)
		text = append(text, strings.Repeat("0", 64)...)
		copy(text[1:], []byte{byte('0' + len(text)/1000), byte('0' + len(text)/100%10), byte('0' + len(text)/10%10), byte('0' + len(text)%10)})
		copy(text[12:], []byte{byte('0' + count/10), byte('0' + count%10)})
		return string(text)
	}
	for _, test := range []struct{ name, block, want string }{
		{"nothing", "", "0 characters"},
		{"too long", strings.Repeat("0", 10_000), "10000 characters"},
		{"a line end", sampleBlock + "\n", "not printable"},
		{"version E", change(0, "E"), "version is 'E'"},
		{"a length of letters", change(1, "01X4"), "not 4 decimal digits"},
		{"another length", change(1, "0096"), "says that it has 96 characters"},
		{"exportability X", change(11, "X"), "exportability is 'X'"},
		{"reserved characters", change(14, "01"), `reserved field is "01"`},
		{"context 3", change(14, "30"), `reserved field is "30"`},
		{"a count of letters", change(12, "0A"), "number of optional blocks"},
		{"more blocks than there are", change(12, "99"), "optional block"},
		{"an ID in small letters", change(16, "ks"), "2 capitals"},
		{"a length in small letters", change(18, "1a"), "a length that cannot be"},
		{"a block shorter than its own beginning", change(18, "03"), "a length that cannot be"},
		{"a block longer than the text", change(18, "FF"), "a length that cannot be"},
		{"a header that is not whole blocks", change(18, "19"), "not a multiple of 8"},
		{"letters in the key", change(50, "G"), "not hexadecimal digits"},
		{"a length of a length of nothing", long("KS00000000000000", 1), "length of a length"},
		{"a length of a length of five", long("KS00050001000000", 1), "length of a length"},
		{"the same block twice", long("KS081111KS082222", 2), "is there twice"},
		{"padding before the end", long("PB081111KS082222", 2), "padding, and not the last"},
		{"no enciphered key", "B0032B0TX12S0000" + strings.Repeat("0", 16), "not whole blocks"},
		{"half a block", "B0056B0TX12S0000" + strings.Repeat("0", 40), "not whole blocks"},
	} {
		t.Run(test.name, func(t *testing.T) {
			if b, err := parseKeyBlock([]byte(test.block)); !errors.Is(err, ErrKeyBlock) || !strings.Contains(err.Error(), test.want) {
				t.Errorf("got %+v, %v, want %q", b, err, test.want)
			}
		})
	}
	if b, err := parseKeyBlock([]byte(long("KS081111PB082222", 2))); err != nil || len(b.Optional) != 1 {
		t.Errorf("the same without a fault: got %+v, %v", b, err)
	}
}

func TestAHeaderIsWritten(t *testing.T) {
	for _, test := range []struct {
		header BlockHeader
		want   string
	}{
		{BlockHeader{'D', "P0", 'A', 'E', "00", 'N', 0, nil}, "D0144P0AE00N0000"},
		{BlockHeader{'B', "P0", 'T', 'D', "00", 'E', '2', nil}, "B0096P0TD00E0020"},
		{BlockHeader{'D', "M7", 'H', 'C', "00", 'N', 0, []OptionalBlock{{"HM", "21"}}}, "D0160M7HC00N0200HM0621PB0A000000"},
		{BlockHeader{'B', "B0", 'T', 'X', "12", 'S', 0, []OptionalBlock{{"KS", "00604B120F9292800000"}}}, "B0120B0TX12S0100KS1800604B120F9292800000"},
	} {
		text, err := test.header.text(sealedLength(test.header.Version, test.header.Algorithm))
		if err != nil || string(text) != test.want {
			t.Errorf("%+v: got %s, %v, want %s", test.header, text, err, test.want)
		}
	}
	// A long optional block: its length is 4 digits, and says that there are 4.
	h := BlockHeader{'D', "P0", 'A', 'E', "00", 'N', 0, []OptionalBlock{{"CT", strings.Repeat("x", 502)}}}
	if text, err := h.text(48); err != nil || string(text[16:28]) != "CT00040200xx" {
		t.Errorf("got %s, %v", text, err)
	}
	for _, bad := range []BlockHeader{{'E', "P0", 'A', 'E', "00", 'N', 0, nil}, {'D', "P", 'A', 'E', "00", 'N', 0, nil}, {'D', "P0", 'A', 'E', "0", 'N', 0, nil},
		{'D', "P0", 'A', 'E', "00", 'N', 0, []OptionalBlock{{"K", ""}}}, {'D', "P0", 'A', 'E', "00", 'N', 0, []OptionalBlock{{"CT", strings.Repeat("x", 9999)}}}} {
		if text, err := bad.text(48); !errors.Is(err, ErrKeyBlock) {
			t.Errorf("%+v: got %s, %v", bad, text, err)
		}
	}
}

// A block that permits less than the use needs, or another use, is refused; which is asked of every use, so that a new one is not forgotten.
func TestAHeaderPermitsAUse(t *testing.T) {
	for _, use := range Uses {
		if len(blockUses[use]) == 0 {
			t.Errorf("%s: no key block has a key for it", use)
		}
		for _, want := range blockUses[use] {
			good := BlockHeader{'D', want.usage, want.algorithms[0], want.modes[0], "00", 'N', '0', nil}
			if err := good.permits(use); err != nil {
				t.Errorf("%s: %v", use, err)
			}
			for _, other := range Uses {
				if err := good.permits(other); err == nil && !slices.ContainsFunc(blockUses[other], func(b blockUse) bool { return b.usage == want.usage }) {
					t.Errorf("a block of usage %s is taken for a %s key", want.usage, other)
				}
			}
			for name, spoil := range map[string]func(*BlockHeader){
				"usage": func(h *BlockHeader) { h.Usage = "00" }, "algorithm": func(h *BlockHeader) { h.Algorithm = 'D' }, "mode": func(h *BlockHeader) { h.Mode = 'S' },
				"component": func(h *BlockHeader) { h.KeyVersion = "c1" }, "storage": func(h *BlockHeader) { h.Context = '1' },
			} {
				bad := good
				spoil(&bad)
				if err := bad.permits(use); !errors.Is(err, ErrKeyBlock) {
					t.Errorf("%s with another %s: got %v", use, name, err)
				}
			}
		}
	}
	for _, test := range []struct {
		use  Use
		mode byte
		ok   bool
	}{{PINIn, 'D', true}, {PINIn, 'B', true}, {PINIn, 'N', true}, {PINIn, 'E', false}, {PINOut, 'E', true}, {PINOut, 'D', false}, {ZMK, 'D', true}, {ZMK, 'E', false},
		{KBPK, 'B', true}, {KBPK, 'D', false}, {KBPK, 'E', false}, {PANToken, 'G', true}, {PANToken, 'V', false}, {PANSeal, 'D', false}} {
		h := BlockHeader{'D', blockUses[test.use][0].usage, blockUses[test.use][0].algorithms[0], test.mode, "00", 'N', '0', nil}
		if err := h.permits(test.use); (err == nil) != test.ok {
			t.Errorf("%s, mode %c: got %v", test.use, test.mode, err)
		}
	}
	sha1 := BlockHeader{'D', "M7", 'H', 'G', "00", 'N', '0', []OptionalBlock{{hmacID, "10"}}}
	if err := sha1.permits(PANToken); !errors.Is(err, ErrKeyBlock) {
		t.Errorf("a key for HMAC-SHA-1: got %v", err)
	}
}

// Whatever comes is refused or taken apart, and what was taken apart can be put together again, and means the same then.
func FuzzKeyBlock(f *testing.F) {
	for _, seed := range []string{sampleBlock, "", "D0112P0AE00E0000B82679114F470F540165EDFBF7E250FCEA43F810D215F8D207E2E417C07156A27E8E31DA05F7425509593D03A457DC34",
		"A0112P0TE12E0200KS1400604B120F929280PB047A1BB737854CD7AF58A8A1E4506A942277EDA76EBA6BA228AF62ADDA3AD8799E8B2C8CD7",
		"D0112D0AD00E00009ef4ff063d9757987d1768a1e317a6530de7d8ac81972c19a3659afb28e8d35f48aaa5b0f124e73893163e9a020ae5f3",
		"B0096B0TX12S0200KS00040012345678PB0E000000000000" + strings.Repeat("0", 48), "BX040P0TE00N0000"} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		b, err := parseKeyBlock(text)
		if err != nil {
			if !errors.Is(err, ErrKeyBlock) {
				t.Errorf("got %v", err)
			}
			return
		}
		if len(b.header)+2*len(b.sealed)+2*len(b.mac) != len(text) || !strings.EqualFold(string(b.write()), string(text)) {
			t.Errorf("%q is taken for %q", text, b.write())
		}
		for use := range blockUses {
			_ = b.permits(use)
		}
		again := *b
		if again.header, err = b.text(len(b.sealed)); err != nil {
			return // an optional block in its long form can be too long in ours
		}
		read, err := parseKeyBlock(again.write())
		if err != nil {
			t.Fatalf("%q is written as %q: %v", text, again.write(), err)
		}
		if read.Usage != b.Usage || read.Algorithm != b.Algorithm || read.Mode != b.Mode || read.KeyVersion != b.KeyVersion || read.Exportability != b.Exportability ||
			!slices.Equal(read.Optional, b.Optional) || !slices.Equal(read.sealed, b.sealed) || !slices.Equal(read.mac, b.mac) {
			t.Errorf("%q is written as %q", text, again.write())
		}
	})
}
