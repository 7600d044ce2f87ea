package messages_test

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"acquirerd/messages"
	"acquirerd/specs"
)

// replaced is the text of iso87-ascii with other lines in it.
func replaced(t testing.TB, pairs ...string) string {
	t.Helper()
	raw, err := os.ReadFile("../specs/iso87-ascii.yaml")
	if err != nil {
		t.Fatal(err)
	}
	text := string(raw)
	for i := 0; i < len(pairs); i += 2 {
		if !strings.Contains(text, pairs[i]) {
			t.Fatalf("%q is not in the file", pairs[i])
		}
		text = strings.Replace(text, pairs[i], pairs[i+1], 1)
	}
	return text
}

func parsed(t testing.TB, text string) *messages.Codec {
	t.Helper()
	dialect, err := specs.Parse([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return messages.NewCodec(dialect)
}

// narrow is a dialect that has less room than iso87-ascii, and one message type less.
func narrow(t testing.TB) *messages.Codec {
	return parsed(t, replaced(t, "name: iso87-ascii", "name: narrow",
		`echoed: [2,`, "dropped: [63]\nechoed: [2,",
		`  "0220": {`, `  #"0220": {`, `  "0221": {`, `  #"0221": {`,
		`"0110": { mandatory: [7, 11, 39] }`, `"0110": { mandatory: [7, 11, 39], fields: { 44: { type: String, length: 5, enc: Digits, prefix: ASCII.LL, description: x } } }`,
		`"0200": { mandatory: [3, 4, 7, 11, 41, 49]`, `"0200": { mandatory: [3, 4, 7, 11, 41, 49, 18]`,
		"  32: { type: String, length: 11, enc: Digits", "  32: { type: String, length: 11, least: 3, enc: Digits",
		"  33: { type: String, length: 11,", "  33: { type: String, length: 8,",
		"  42: { type: String, length: 15, enc: Text, prefix: Fixed,", "  42: { type: String, length: 12, enc: Text, prefix: Fixed, pad: right-space,",
		"  48: { type: String, length: 999, enc: Text,", "  48: { type: String, length: 999, enc: Digits,",
		"key_data: { element: 48,", "key_data: { element: 60,",
		"  55: { type: Binary, length: 999, enc: Binary,", "  55: { type: String, length: 999, enc: Text,", "stored: [14, 55,", "stored: [14,",
		"  59: {", "  #59: {", "  18: {", "  #18: {",
		`"0200": { mandatory: [3, 4, 7, 11, 41, 49, 18]`, `"0200": { mandatory: [3, 4, 7, 11, 41, 49, 26]`,
		"  28: { type: String, length: 9, enc: SignedDigits, prefix: Fixed,", "  28: { type: String, length: 9, enc: Digits, prefix: Fixed,",
		"  61: { type: String, length: 999, enc: Text, prefix: ASCII.LLL,", "  61: { type: String, length: 998, enc: BCDLeft, counts: wire, prefix: ASCII.LLL,",
	))
}

// edition93 is iso87-ascii in the other edition, with action codes of four digits.
func edition93(t testing.TB) *messages.Codec {
	text := replaced(t, "name: iso87-ascii", "name: edition93", "standard: iso87", "standard: iso93",
		"  12: { type: String, length: 6,", "  12: { type: String, length: 12,", "  15: { type: String, length: 4,", "  15: { type: String, length: 6,",
		"  30: { type: String, length: 9, enc: SignedDigits,", "  30: { type: String, length: 24, enc: Digits,",
		"  39: { type: String, length: 2, enc: Text,", "  39: { type: String, length: 4, enc: Digits,",
		"original: iso87-de90", "original: iso93-de56", "replacement: iso87-de95", "replacement: iso93-de30")
	text = regexp.MustCompile(`"0(\d{3})"`).ReplaceAllString(text, `"1$1"`)
	text = regexp.MustCompile(`"(\d\d)"`).ReplaceAllString(text, `"00$1"`)
	text = strings.ReplaceAll(text, ", 90]", ", 56]")
	text = strings.ReplaceAll(text, "[3, 4, 7, 11, 41,", "[3, 4, 7, 11, 12, 41,") // by which DE 56 names an original
	codes := "response_codes: {"
	for _, code := range []string{"00", "05", "08", "10", "11", "12", "25", "30", "51", "55", "68", "80", "85", "91", "92", "94", "96"} {
		codes += fmt.Sprintf(" %q: %q,", "00"+code, code)
	}
	text = strings.Replace(text, "fields:\n", codes+" }\nfunction_codes: { \"1100\": \"100\", \"1420\": \"400\" }\nfields:\n", 1)
	return parsed(t, text)
}

// parties are dialects of every kind.
func parties(t testing.TB) []*messages.Codec {
	codecs := []*messages.Codec{narrow(t), edition93(t)}
	for _, name := range specs.Names() {
		dialect, err := specs.Load(name)
		if err != nil {
			t.Fatal(err)
		}
		codecs = append(codecs, messages.NewCodec(dialect))
	}
	return codecs
}

// losses are those of each pair of dialects, which some tests share.
func losses(from, to *messages.Codec) messages.Losses {
	pair := [2]string{from.Dialect().Name, to.Dialect().Name}
	found, _ := known.LoadOrStore(pair, sync.OnceValue(func() messages.Losses { return messages.NewPassage(from, to).Losses() }))
	return found.(func() messages.Losses)()
}

var known sync.Map

// randomValue is a value that a field holds: of any length, the extremes above all, and of any of its characters.
func randomValue(r *rand.Rand, f specs.Field) []byte {
	for {
		n := f.Length
		if !f.IsFixed() {
			n = []int{max(1, f.Least), f.Length, f.Least + r.IntN(f.Length-f.Least+1), f.Least + r.IntN(min(f.Length-f.Least, 30)+1)}[r.IntN(4)]
		}
		value := f.Sample(n)
		kind := r.IntN(3)
		for i := range value {
			b := []byte{byte('0' + r.IntN(10)), byte(' ' + r.IntN(95)), byte(r.IntN(256))}[kind]
			if kind == 1 && i > n/2 && r.IntN(2) == 0 {
				b = ' '
			}
			if f.Characters() == specs.CharactersSigned && i > 0 && b >= '0' && b <= '9' ||
				f.Characters() != specs.CharactersSigned && f.Characters().Hold([]byte{b}) {
				value[i] = b
			}
		}
		if r.IntN(4) == 0 && n > 3 && f.Characters().Hold([]byte("a b")) {
			copy(value[n/2:], bytes.Repeat([]byte(" "), n))
		}
		if n > 0 && f.Takes(value) == nil {
			return value
		}
	}
}

// randomMessage is one that a dialect holds: it is encoded and decoded.
func randomMessage(t *testing.T, r *rand.Rand, c *messages.Codec, wireMTI string) *messages.Message {
	t.Helper()
	own, ours := c.Dialect().OwnMTI(wireMTI)
	if !ours {
		t.Fatalf("%s is not a type of %s", wireMTI, c.Dialect().Name)
	}
	m := messages.New(messages.MTI(own))
	for number := 2; number <= 128; number++ {
		f, has := c.Dialect().Field(wireMTI, number)
		if !has || number == 65 || r.IntN(4) == 0 || f.Length > 200 && r.IntN(8) != 0 {
			continue
		}
		value := randomValue(r, f)
		if named := slices.Sorted(maps.Keys(c.Dialect().Values[number])); len(named) > 0 && r.IntN(3) > 0 {
			value = []byte(named[r.IntN(len(named))])
		}
		if number == 39 && len(c.Dialect().ResponseCodes) > 0 {
			value = []byte(c.Dialect().Approving[0])
		}
		m.SetSensitive(messages.Element(number), string(value))
	}
	body, err := c.Encode(m)
	if format := (*messages.FormatError)(nil); errors.As(err, &format) && format.Element == 0 {
		return randomMessage(t, r, c, wireMTI) // longer than its frame
	}
	if err != nil {
		t.Fatalf("%s %s: %v", c.Dialect().Name, wireMTI, err)
	}
	if m, err = c.Decode(body); err != nil {
		t.Fatalf("%s %s: %v", c.Dialect().Name, wireMTI, err)
	}
	return m
}

// anew are the elements that no message carries from hop to hop.
var anew = []messages.Element{messages.PINData, messages.SecurityControl, messages.MAC, messages.MAC2}

func TestWhatAPassageLosesIsWhatItsLossesSay(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	at := time.Date(2026, 11, 25, 12, 0, 0, 0, time.UTC)
	all := parties(t)
	for _, from := range all {
		for _, to := range all {
			p, said := messages.NewPassage(from, to), losses(from, to)
			t.Run(said.From+" to "+said.To, func(t *testing.T) {
				for wireMTI := range from.Dialect().Messages {
					own, _ := from.Dialect().OwnMTI(wireMTI)
					mti := messages.MTI(own)
					if mti.Class() == messages.Network {
						continue
					}
					for range 4 {
						m := randomMessage(t, r, from, wireMTI)
						carried, lost := p.Carry(m, at)
						for _, e := range m.Elements() {
							covered, always := slices.Contains(said.Dropped, e), false
							for _, loss := range said.Elements {
								if loss.Element == e && (loss.Types == nil || slices.Contains(loss.Types, mti)) {
									covered = covered || loss.Covers([]byte(m.Reveal(e)))
									always = always || loss.Always
								}
							}
							isLost := slices.Contains(lost, e)
							if isLost && !covered {
								t.Fatalf("%s: %v is lost, and nothing says so", mti, e)
							}
							if !isLost && always && !slices.Contains(anew, e) {
								t.Fatalf("%s: %v is always lost, they say, and was not", mti, e)
							}
							if isLost && carried.Has(e) && e != messages.FunctionCode && e != messages.LocalDate {
								t.Fatalf("%s: %v is lost and carried", mti, e)
							}
						}
						if !slices.IsSorted(lost) {
							t.Errorf("lost are %v", lost)
						}
						_, err := to.Encode(carried)
						if format := (*messages.FormatError)(nil); errors.As(err, &format) && format.Element != 0 {
							t.Fatalf("%s: what was carried does not fit: %v", mti, err)
						}
					}
				}
			})
		}
	}
}

// Each loss that is said to depend on what an element holds has a value that is lost and one that is carried.
func TestEveryLossCanHappen(t *testing.T) {
	at := time.Date(2026, 11, 25, 12, 0, 0, 0, time.UTC)
	all := parties(t)
	for _, from := range all {
		for _, to := range all {
			p := messages.NewPassage(from, to)
			for _, loss := range losses(from, to).Elements {
				mti := messages.AuthorizationRequest
				if loss.Types != nil {
					mti = loss.Types[0]
				}
				loses := func(value []byte) bool {
					m := messages.New(mti)
					m.SetSensitive(loss.Element, string(value))
					_, lost := p.Carry(m, at)
					return slices.Contains(lost, loss.Element)
				}
				f, _ := to.Dialect().Field(to.Dialect().WireMTI(string(mti)), int(loss.Element))
				own, _ := from.Dialect().Field(from.Dialect().WireMTI(string(mti)), int(loss.Element))
				for _, lengths := range loss.Lengths {
					for _, n := range []int{lengths.First, lengths.Last} {
						if n > 0 && !loses(f.Sample(n)) {
							t.Errorf("%s to %s: %v of a length of %d is carried", from.Dialect().Name, to.Dialect().Name, loss.Element, n)
						}
					}
				}
				if loss.Characters != "" && !loss.Always {
					other := bytes.Repeat([]byte("~"), own.Length)
					if own.Characters() == specs.CharactersAny {
						other = bytes.Repeat([]byte{0xFF}, own.Length)
					}
					if own.Takes(other) == nil && !loses(other) {
						t.Errorf("%s to %s: %v of other characters is carried", from.Dialect().Name, to.Dialect().Name, loss.Element)
					}
				}
				if loss.String() == "" {
					t.Errorf("%v is lost without a reason", loss.Element)
				}
			}
		}
	}
}

func TestTheLossesOfANarrowDialectAreNamed(t *testing.T) {
	wide, tight := codec(t, "iso87-ascii"), narrow(t)
	losses := messages.NewPassage(wide, tight).Losses()
	var got []string
	for _, loss := range losses.Elements {
		text := fmt.Sprintf("%d", loss.Element)
		if loss.Types != nil {
			text += fmt.Sprint(loss.Types)
		}
		if loss.Always {
			text += " always"
		}
		got = append(got, text+": "+loss.String())
	}
	want := []string{
		"18 always: it has no field there",
		"28 always: it may hold other characters than digits",
		"32: it may have a length of 0..2, which does not fit there",
		"33: it may have a length of 9..11, which does not fit there",
		"42: it may have a length of 15, which does not fit there",
		"44[0110]: it may have a length of 6..25, which does not fit there; it may hold other characters than digits",
		"48: it may hold other characters than digits",
		"55 always: it is bytes on one side and text on the other",
		"59 always: it has no field there",
		"61: it may have a length of 1, 3, 5, 7, …, which does not fit there; it may hold other characters than digits",
	}
	if !slices.Equal(got, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	if !slices.Equal(losses.Types, []messages.MTI{"0220", "0221"}) {
		t.Errorf("types: got %v", losses.Types)
	}
	if len(losses.Codes) != 0 || !losses.Any() || !slices.Equal(losses.Dropped, []messages.Element{63}) || losses.Parts {
		t.Errorf("got %+v", losses)
	}
	if back := messages.NewPassage(tight, tight).Losses(); back.Any() {
		t.Errorf("to itself: got %+v", back)
	}
}

func TestTheReferenceDialectsLoseNothing(t *testing.T) {
	a, b := codec(t, "iso87-ascii"), codec(t, "iso87-binary")
	for _, p := range []messages.Passage{messages.NewPassage(a, b), messages.NewPassage(b, a), messages.NewPassage(a, a)} {
		if losses := p.Losses(); losses.Any() {
			t.Errorf("got %+v", losses)
		}
	}
}

func TestResponseCodesWithoutAWordAreNamed(t *testing.T) {
	losses := messages.NewPassage(codec(t, "iso87-ascii"), edition93(t)).Losses()
	becomes := map[string]string{}
	for _, code := range losses.Codes {
		becomes[code.Code] = code.Becomes
	}
	if _, has := becomes["51"]; has || becomes["54"] != "0005" {
		t.Errorf("got %v", becomes)
	}
	if back := messages.NewPassage(edition93(t), codec(t, "iso87-ascii")).Losses(); len(back.Codes) != 0 {
		t.Errorf("back: got %v", back.Codes)
	}
}

func TestOnlyTypesThatAreCarriedCanBeMissing(t *testing.T) {
	wide := codec(t, "iso87-ascii")
	tight := parsed(t, replaced(t, "name: iso87-ascii", "name: tight", `  "0400": {`, `  #"0400": {`, `  "0401": {`, `  #"0401": {`, `  "0410": {`, `  #"0410": {`,
		`  "0120": {`, `  #"0120": {`, `  "0121": {`, `  #"0121": {`, `  "0200": {`, `  #"0200": {`, `  "0201": {`, `  #"0201": {`,
		`  "0130": {`, `  #"0130": {`, `  "0210": {`, `  #"0210": {`))
	if got := messages.NewPassage(wide, tight).Losses().Types; !slices.Equal(got, []messages.MTI{"0120", "0121", "0200", "0201", "0210"}) {
		t.Errorf("reversals are built anew: got %v", got)
	}
	forwards := parsed(t, replaced(t, "unknown_original: answer", "unknown_original: forward"))
	if got := messages.NewPassage(forwards, tight).Losses().Types; !slices.Equal(got, []messages.MTI{"0120", "0121", "0200", "0201", "0210", "0400", "0401"}) {
		t.Errorf("reversals may be forwarded: got %v", got)
	}
}

func TestRulesThatNoMessageCanKeepAreNamed(t *testing.T) {
	wide := parsed(t, replaced(t, "  18: {", "  #18: {", "  26: {", "  #26: {"))
	strict := parsed(t, replaced(t, "name: iso87-ascii", "name: strict\ndropped: [32]",
		`"0100": { mandatory: [3, 4, 7, 11, 41, 49], one_of: [2, 35] }`, `"0100": { mandatory: [3, 4, 7, 11, 37, 41, 49, 18, 52, 32], one_of: [26, 18], forbidden: [48, 59] }`,
		`"0110": { mandatory: [7, 11, 39] }`, `"0110": { mandatory: [7, 11, 39, 41, 18] }`))
	var got []string
	for _, broken := range messages.NewPassage(wide, strict).Losses().Broken {
		got = append(got, fmt.Sprintf("%s %v %s", broken.MTI, broken.Element, broken.Rule))
	}
	const missing = "is mandatory there, and nothing here is carried into it"
	want := []string{"0100 DE 18 " + missing, "0100 DE 32 " + missing, "0100 DE 26 is mandatory there or another one, and nothing here is carried into any",
		"0100 DE 48 is not allowed there", "0100 DE 59 is not allowed there"}
	if len(got) < 6 || !slices.Equal(got[:5], want) || !slices.Contains(got, "0110 DE 18 "+missing) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

func TestValuesWithoutAWordAreNamed(t *testing.T) {
	a := parsed(t, replaced(t, "echoed:", "values: { 22: { \"051\": \"051\", \"901\": \"021\", \"999\": \"010\" } }\nechoed:"))
	b := parsed(t, replaced(t, "name: iso87-ascii", "name: b", "echoed:", "values: { 22: { \"551\": \"051\", \"222\": \"021\" } }\nechoed:"))
	for _, test := range []struct {
		from, to *messages.Codec
		want     string
	}{
		{a, b, "22 false it may have a value that has no word there: 999 or one of no table"},
		{b, a, "22 false it may have a value that has no word there"},
		{codec(t, "iso87-ascii"), b, "22 false it may have a value that has no word there"},
	} {
		var got []string
		for _, loss := range messages.NewPassage(test.from, test.to).Losses().Elements {
			got = append(got, fmt.Sprintf("%d %v %s", loss.Element, loss.Always, loss.String()))
		}
		if !slices.Equal(got, []string{test.want}) {
			t.Errorf("got %q, want %q", got, test.want)
		}
	}
}

func TestALocalTimeThatCannotBeCarriedIsNamed(t *testing.T) {
	p := messages.NewPassage(codec(t, "iso87-ascii"), edition93(t))
	for _, test := range []struct {
		time, date string
		lost       []messages.Element
	}{
		{"120059", "1123", nil},
		{"120059", "", nil},
		{"", "1123", []messages.Element{messages.LocalDate}},
		{"120059", "9999", []messages.Element{messages.LocalTime, messages.LocalDate}},
	} {
		m := messages.New(messages.AuthorizationRequest)
		m.Set(messages.LocalTime, test.time)
		m.Set(messages.LocalDate, test.date)
		if carried, lost := p.Carry(m, noon); !slices.Equal(lost, test.lost) || (lost == nil) != carried.Has(messages.LocalTime) {
			t.Errorf("%q of %q: lost %v, carried %v", test.time, test.date, lost, carried)
		}
	}
}

func TestACodeThatDoesNotFitHasNoWord(t *testing.T) {
	letters := parsed(t, replaced(t, `retry: ["68",`, `retry: ["N7", "68",`))
	digits := parsed(t, replaced(t, "name: iso87-ascii", "name: digits", "  39: { type: String, length: 2, enc: Text,", "  39: { type: String, length: 2, enc: Digits,"))
	if got := messages.NewPassage(letters, digits).Losses().Codes; !slices.Equal(got, []messages.Substitute{{Code: "N7", Becomes: "05"}}) {
		t.Errorf("got %v", got)
	}
}
