package specs

import (
	"bytes"
	"encoding/hex"
	"maps"
	"slices"
	"testing"
)

// characterSets are the bytes of each kind, written down apart from the encoders.
var characterSets = map[Characters]func(b byte) bool{
	CharactersDigits:    func(b byte) bool { return b >= '0' && b <= '9' },
	CharactersTrack2:    func(b byte) bool { return b >= '0' && b <= '9' || b == '=' },
	CharactersSigned:    func(b byte) bool { return b >= '0' && b <= '9' },
	CharactersPrintable: func(b byte) bool { return b >= 0x20 && b <= 0x7E },
	CharactersASCII:     func(b byte) bool { return b <= 0x7F },
	CharactersAny:       func(byte) bool { return true },
}

func TestEveryEncoderTakesTheCharactersThatItIsSaidToTake(t *testing.T) {
	if got, want := slices.Sorted(maps.Keys(charactersOf)), slices.Sorted(maps.Keys(encoders)); !slices.Equal(got, want) {
		t.Fatalf("got %v, want %v", got, want)
	}
	for name := range encoders {
		f := Field{Type: "String", Length: 4, Enc: name, Prefix: "Fixed"}
		if err := f.Takes(f.Sample(4)); err != nil {
			t.Errorf("%s does not take its sample: %v", name, err)
		}
		in := characterSets[f.Characters()]
		for b := range 256 {
			value := f.Sample(4)
			value[2] = byte(b)
			if b == 'D' && f.Characters() == CharactersTrack2 {
				continue // written as the separator, and never read
			}
			if got := f.Takes(value) == nil; got != in(byte(b)) {
				t.Errorf("%s takes %#x: got %v", name, b, got)
			}
		}
	}
}

func TestCharactersAreWithinWiderOnes(t *testing.T) {
	sample := func(c Characters) [][]byte {
		var texts [][]byte
		for b := range 256 {
			first := byte(b)
			if c == CharactersSigned {
				first = 'C'
			}
			if text := []byte{first, byte(b), byte(b), byte(b)}; characterSets[c](byte(b)) {
				texts = append(texts, text)
			}
		}
		return texts
	}
	encoder := map[Characters]string{CharactersDigits: "Digits", CharactersTrack2: "Track2", CharactersSigned: "SignedDigits",
		CharactersPrintable: "Text", CharactersASCII: "ASCII7", CharactersAny: "Raw"}
	for c := range characterSets {
		for other := range characterSets {
			f, all := Field{Type: "String", Length: 4, Enc: encoder[other], Prefix: "Fixed"}, true
			for _, text := range sample(c) {
				all = all && f.Takes(text) == nil
			}
			if got := c.Within(other); got != all {
				t.Errorf("%q within %q: got %v", c, other, got)
			}
		}
	}
}

func TestAFieldTakesWhatItsLengthAllows(t *testing.T) {
	for _, test := range []struct {
		f     Field
		takes []int
	}{
		{Field{Type: "String", Length: 3, Enc: "Digits", Prefix: "Fixed"}, []int{3}},
		{Field{Type: "String", Length: 3, Enc: "Digits", Prefix: "Fixed", Pad: PadLeftZero}, []int{0, 1, 2, 3}},
		{Field{Type: "String", Length: 4, Least: 2, Enc: "Digits", Prefix: "ASCII.LL"}, []int{2, 3, 4}},
		{Field{Type: "String", Length: 4, Enc: "BCDLeft", Prefix: "BCD.LL", Counts: CountsWire}, []int{0, 2, 4}},
		{Field{Type: "String", Length: 5, Enc: "SignNibble", Prefix: "ASCII.LL"}, []int{2, 4}},
	} {
		var got []int
		for n := range 8 {
			if test.f.Takes(test.f.Sample(n)) == nil {
				got = append(got, n)
			}
		}
		if !slices.Equal(got, test.takes) {
			t.Errorf("%+v takes %v, want %v", test.f, got, test.takes)
		}
	}
}

func TestAFieldIsDescribed(t *testing.T) {
	for want, f := range map[string]Field{
		"6 BCDLeft":                            {Length: 6, Enc: "BCDLeft", Prefix: "Fixed"},
		"..19 BCDRight after BCD.LL":           {Length: 19, Enc: "BCDRight", Prefix: "BCD.LL"},
		"2..9 Text after ASCII.LL with itself": {Length: 9, Least: 2, Enc: "Text", Prefix: "ASCII.LL", Inclusive: true},
		"..255 Binary after Binary.L of bytes on the wire, ber-tlv": {Length: 255, Enc: "Binary", Prefix: "Binary.L", Counts: CountsWire, Content: ContentBERTLV},
		"8 Text, right-space": {Length: 8, Enc: "Text", Prefix: "Fixed", Pad: PadRightSpace},
		"16 Binary, fixed":    {Length: 16, Enc: "Binary", Prefix: "Fixed", Extent: ExtentFixed},
	} {
		if got := f.Extents() + " " + f.Wire(); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}

func TestAHeaderIsTakenToPieces(t *testing.T) {
	const base1 = "1601020030" + "000001" + "111111" + "2222222222222222222222"
	for _, test := range []struct {
		form   HeaderForm
		header string
		want   []string
	}{
		{HeaderTPDU, "6000120034", []string{"identifier 60", "destination 0012", "source 0034"}},
		{HeaderTPDU, "60001200340102", []string{"identifier 60", "destination 0012", "source 0034", "header 0102"}},
		{HeaderLiteral, "49534F", []string{"header 49534F"}},
		{HeaderEchoed, "", nil},
		{HeaderBase1, base1, []string{"length 16", "flag 01", "text_format 02", "message_length 0030", "destination 000001",
			"source 111111", "status 2222222222222222222222"}},
	} {
		header, err := hex.DecodeString(test.header)
		if err != nil {
			t.Fatal(err)
		}
		h := Header{Form: test.form}
		var got []string
		var all []byte
		for _, part := range h.Parts(header) {
			text, _ := part.Bytes.MarshalYAML()
			got = append(got, part.Name+" "+text.(string))
			all = append(all, part.Bytes...)
		}
		if !slices.Equal(got, test.want) {
			t.Errorf("%s: got %q, want %q", test.form, got, test.want)
		}
		if !bytes.Equal(all, header) {
			t.Errorf("%s: the parts are %X, not the whole", test.form, all)
		}
	}
	h := Header{Form: HeaderBase1}
	rejected, err := hex.DecodeString("1A01020048" + "000001" + "111111" + "33333333333333333333333333" + "0502" + base1)
	if err != nil {
		t.Fatal(err)
	}
	parts := h.Parts(rejected)
	var names []string
	size := 0
	for _, part := range parts {
		names = append(names, part.Name)
		size += len(part.Bytes)
	}
	if size != len(rejected) || !slices.Contains(names, "reject_code") || !slices.Contains(names, "reject_destination") || !slices.Contains(names, "source") {
		t.Errorf("got %v, %d bytes of %d", names, size, len(rejected))
	}
	for _, part := range parts {
		if part.Name == "reject_code" && !bytes.Equal(part.Bytes, rejected[24:26]) {
			t.Errorf("reject_code is %X", part.Bytes)
		}
	}
}
