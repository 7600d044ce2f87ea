package main

import (
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"acquirerd/messages"
	"acquirerd/specs"
)

// ownDialect writes iso87-ascii with other lines in it, and returns its path.
func ownDialect(t *testing.T, pairs ...string) string {
	t.Helper()
	raw, err := os.ReadFile("../../specs/iso87-ascii.yaml")
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
	return written(t, text) // a path has a separator
}

func TestWhatIsShownOfADialectIsTheDialect(t *testing.T) {
	for _, name := range specs.Names() {
		path := written(t, command(t, "dialect", "show", "--yaml", name).out)
		if got := command(t, "dialect", "lint", path); got != (result{0, "ok\n", ""}) {
			t.Errorf("%s: got %+v", name, got)
		}
		one, err := specs.Load(name)
		if err != nil {
			t.Fatal(err)
		}
		other, err := specs.Load(path)
		if err != nil {
			t.Fatal(err)
		}
		if differences, err := specs.Differences(one, other); err != nil || len(differences) > 0 {
			t.Errorf("%s: got %v, %v", name, differences, err)
		}
		if again := command(t, "dialect", "show", "--yaml", path).out; again != command(t, "dialect", "show", "--yaml", name).out {
			t.Errorf("%s is shown otherwise again", name)
		}
		var dialect map[string]any
		if got := command(t, "dialect", "show", name, "--output", "json"); json.Unmarshal([]byte(got.out), &dialect) != nil || dialect["name"] != name {
			t.Errorf("got %+v", got)
		}
	}
}

func TestADialectIsShownAsTables(t *testing.T) {
	path := ownDialect(t, "framing: { length: ascii-4,", "sensitive: { 47: pans, 60: hidden }\nheader: { form: tpdu, value: \"6000010002\" }\nframing: { trailer: \"03\", length: ascii-4,",
		`"0110": { mandatory: [7, 11, 39] }`, `"0110": { mandatory: [7, 11, 39], when: [ { if: 39, begins: ["00", "10"], then: [38, 37] } ], forbidden: [52],`+
			` fields: { 44: { type: String, length: 5, least: 2, enc: Digits, prefix: ASCII.L, description: "other\e[2J" } } }`)
	got := command(t, "dialect", "show", path)
	if got.code != 0 || got.err != "" || strings.ContainsRune(got.out, 0x1b) {
		t.Fatalf("got %+v", got)
	}
	rows := map[string]bool{}
	for line := range strings.Lines(got.out) {
		rows[strings.Join(strings.Fields(line), " ")] = true
	}
	for _, want := range []string{
		"iso87-ascii, version 2",
		"standard iso87",
		"framing ascii-4 length, at most 4096 bytes, trailer 03",
		"header a header (tpdu) of 5 bytes that begins with 60",
		"match.transaction 7, 11, 41",
		"network_management.sign_on 001",
		"reversal.poison 12, 30",
		"answers.busy 96",
		"MTI MANDATORY ONE OF CONDITIONAL FORBIDDEN FIELDS OF ITS OWN",
		"0100 3, 4, 7, 11, 41, 49 2, 35 - - -",
		"0110 7, 11, 39 - 38, 37 if 39 begins 00 or 10 52 44",
		"DE DESCRIPTION KIND LENGTH WIRE FORM SHOWN",
		"1 bit map bit map 8 HexText as it is",
		"2 primary account number digits ..19 Digits after ASCII.LL first six and last four",
		"35 track 2 data digits and = ..37 Track2 after ASCII.LL first six and last four",
		"43 card acceptor name/location printable ASCII 40 Text card numbers",
		"47 additional data, national printable ASCII ..999 Text after ASCII.LLL card numbers",
		"52 PIN data bytes 8 HexText hidden",
		"60 reserved, private printable ASCII ..999 Text after ASCII.LLL hidden",
		`44 in 0110 other\x1b[2J digits 2..5 Digits after ASCII.L card numbers`,
	} {
		if !rows[want] {
			t.Errorf("%q is not in\n%s", want, got.out)
		}
	}
}

func TestEveryFaultOfADialectFileIsNamed(t *testing.T) {
	path := ownDialect(t, "max: 4096", "max: 0", `sign_on: "001"`, `sign_on: "1"`)
	const ofMax, ofSignOn = "framing.max: 0 is not within 1 to 9999\n", "network_management.sign_on: \"1\" does not fit field 70\n"
	if got := command(t, "dialect", "lint", path); got.code != 1 || got.out != "" || !slices.Equal(sortedLines(got.err), []string{ofMax, ofSignOn}) {
		t.Errorf("got %+v", got)
	}
	var said struct {
		OK     bool
		Faults []struct{ Path, Fault string }
	}
	got := command(t, "dialect", "lint", "-o", "json", path)
	if err := json.Unmarshal([]byte(got.out), &said); err != nil || got.code != 1 || said.OK || len(said.Faults) != 2 ||
		said.Faults[0].Path != "framing.max" || said.Faults[1].Fault != `"1" does not fit field 70` {
		t.Errorf("got %+v, %v", got, err)
	}
	if got := command(t, "dialect", "lint", "-o", "json", written(t, "name: [")); got.code != 1 || !strings.Contains(got.out, `"path": "reading"`) {
		t.Errorf("got %+v", got)
	}
}

func TestDialectsThatCarryEverythingAreSaidTo(t *testing.T) {
	got := command(t, "dialect", "diff", "iso87-ascii", "iso87-binary")
	if got.code != 0 || got.err != "" || strings.Count(got.out, "nothing is lost") != 2 || !strings.Contains(got.out, "framing.length") ||
		!strings.Contains(got.out, "of one hop, so that a PIN block is made anew and the others are left out: 52, 53, 64, 128") {
		t.Errorf("got %+v", got)
	}
	if got := command(t, "dialect", "diff", "iso87-ascii", "iso87-ascii"); got.code != 0 || strings.Contains(got.out, "KEY") {
		t.Errorf("with itself: got %+v", got)
	}
}

func TestWhatDialectsCannotCarryIsNamed(t *testing.T) {
	path := ownDialect(t, "name: iso87-ascii", "name: small\ndropped: [63]\nresponse_codes: { \"00\": \"00\", \"08\": \"08\", \"10\": \"10\", \"11\": \"11\", \"85\": \"85\", \"91\": \"91\", \"05\": \"05\" }",
		`  "0220": {`, `  "0222": {`, "replacement: iso87-de95", "replacement: none", "  59: {", "  59: { least: 3,")
	got := command(t, "dialect", "diff", "iso87-ascii", path)
	if got.code != 1 || got.err != "acquirerd: iso87-ascii and small cannot carry everything to each other\n" {
		t.Fatalf("got %+v", got)
	}
	rows := map[string]bool{}
	for line := range strings.Lines(got.out) {
		rows[strings.Join(strings.Fields(line), " ")] = true
	}
	for _, want := range []string{
		"KEY iso87-ascii small",
		"dropped - 63",
		"messages.0222 - known",
		"fields.59 String ..999 Text after ASCII.LLL String 3..999 Text after ASCII.LLL",
		"iso87-ascii to small: something cannot be carried",
		"DE 59 reserved, national - maybe it may have a length of 0..2, which does not fit there",
		"message 0220 - always its type is not known there",
		"response code 01, 02, 03, 04, 06, 07, 09, 12, 13, 14, 15, 16 - always it has no word there, and becomes 05",
		"partial reversals - always they are not taken there: the whole is reversed or refused",
		"left out, as their dialects say: 63",
		"small to iso87-ascii: something cannot be carried",
	} {
		if !rows[want] {
			t.Errorf("%q is not in\n%s", want, got.out)
		}
	}
	var said struct {
		A, B        string
		Differences []struct{ Key, A, B string }
		Directions  []direction
	}
	got = command(t, "dialect", "diff", "--output", "json", "iso87-ascii", path)
	if err := json.Unmarshal([]byte(got.out), &said); err != nil || got.code != 1 || said.B != "small" || len(said.Directions) != 2 || len(said.Differences) == 0 {
		t.Fatalf("got %+v, %v", got, err)
	}
	there := said.Directions[0]
	if there.Lossless || len(there.Elements) != 1 || there.Elements[0].Element != 59 || !there.PartialReversals || !slices.Equal(there.Messages, []string{"0220", "0221"}) ||
		!slices.Contains(there.ResponseCodes, messages.Substitute{Code: "51", Becomes: "05"}) {
		t.Errorf("got %+v", there)
	}
	if back := said.Directions[1]; back.Lossless || !slices.Equal(back.Messages, []string{"0222"}) {
		t.Errorf("back: got %+v", back)
	}
}

func TestARefusalIsExplained(t *testing.T) {
	body, err := codecOf(t, "iso87-ascii").Encode(authorization("000001", testPIN))
	if err != nil {
		t.Fatal(err)
	}
	good := hex.EncodeToString(body)
	bad := strings.Replace(good, hex.EncodeToString([]byte("1123120059")), hex.EncodeToString([]byte("11231X0059")), 1)

	got := command(t, "dialect", "explain", "--dialect", "iso87-ascii", good)
	if got.code != 0 || got.err != "" || !strings.HasPrefix(got.out, "iso87-ascii would take it\n") || !strings.Contains(got.out, "411111******1111") {
		t.Errorf("a good one: got %+v", got)
	}
	got = command(t, "dialect", "explain", "--dialect", "iso87-ascii", bad)
	want := `iso87-ascii would refuse it
BYTE  WHERE  RULE                                        EXPECTED
56    DE 7   has a character that its kind does not allow  10 digits in Digits
DE  NAME             VALUE
0   mti              0100
2   pan              411111******1111
3   processing_code  000000
4   amount           000000001000
`
	if fields := func(text string) string { return strings.Join(strings.Fields(text), " ") }; got.code != 1 || fields(got.out) != fields(want) ||
		got.err != "acquirerd: explaining: iso87-ascii would refuse it: DE 7 has a character that its kind does not allow, at byte 56: expected 10 digits in Digits\n" {
		t.Errorf("got %+v\nwant %s", got, want)
	}
	got = command(t, "dialect", "explain", bad)
	if got.code != 1 || strings.Count(got.out, "would refuse it: ") != len(specs.Names()) || strings.Count(got.out, "\n") != len(specs.Names()) {
		t.Errorf("without a dialect: got %+v", got)
	}
	if got := command(t, "dialect", "explain", good); got.code != 0 || !strings.Contains(got.out, "iso87-ascii would take it\n") || !strings.Contains(got.out, "iso87-binary would refuse it: MTI") {
		t.Errorf("without a dialect: got %+v", got)
	}
	if got := command(t, "dialect", "explain", "--frame", "--dialect", "iso87-ascii", hex.EncodeToString(fmt.Appendf(nil, "%04d", len(body)))+good); got.code != 0 {
		t.Errorf("with its frame: got %+v", got)
	}
	var x explained
	got = command(t, "dialect", "explain", "-o", "json", "--dialect", "iso87-ascii", bad)
	if err := json.Unmarshal([]byte(got.out), &x); err != nil || x.Taken || len(x.Faults) != 1 || x.Faults[0].Element != 7 || x.Faults[0].Byte == nil || *x.Faults[0].Byte != 56 ||
		len(x.Elements) != 3 || x.MTI != "0100" || strings.Contains(got.out, testPAN) {
		t.Errorf("got %+v, %v", got, err)
	}
	var all []explained
	if got = command(t, "dialect", "explain", "-o", "json", "--frame", "0000"); json.Unmarshal([]byte(got.out), &all) != nil || len(all) != len(specs.Names()) || got.code != 1 {
		t.Errorf("got %+v", got)
	}
}

func TestAMessageIsShownAsItStandsOnTheWire(t *testing.T) {
	path := ownDialect(t, "framing: {", "header: { form: tpdu, value: \"600001000203\" }\nframing: {", "  44: { type: String, length: 25, enc: Text,", "  44: { type: String, length: 25, enc: Raw,")
	message := hex.EncodeToString([]byte("\x60\x00\x01\x00\x02\x00" + "0800" + "8220000000100000" + "0400000000000000" + "1123120059" + "000042" + "04a\x1b[m" + "301"))
	got := command(t, "decode", "--dialect", path, message)
	if got.code != 0 || strings.ContainsRune(got.out, 0x1b) {
		t.Fatalf("got %+v", got)
	}
	for _, want := range []string{"header identifier x'60'", "header destination x'0001'", "header source x'0002'", "header header x'00'", "44 additional_response x'611B5B6D'", "0 mti 0800"} {
		if !strings.Contains(strings.Join(strings.Fields(got.out), " "), want) {
			t.Errorf("%q is not in\n%s", want, got.out)
		}
	}
	empty := hex.EncodeToString([]byte("\x60\x00\x01\x00\x02\x00" + "0800" + "8220000100100000" + "0400000000000000" + "1123120059" + "000042" + "00" + "03 a " + "301"))
	got = command(t, "decode", "--dialect", path, empty)
	if text := strings.Join(strings.Fields(got.out), " "); !strings.Contains(text, "32 acquirer_id (empty)") || !strings.Contains(text, `44 additional_response " a "`) {
		t.Errorf("got %+v", got)
	}
	var one decoded
	got = command(t, "decode", "--output", "json", "--dialect", path, message)
	if err := json.Unmarshal([]byte(got.out), &one); err != nil || len(one.Header) != 4 || one.Header[0] != (headerPart{"identifier", "60"}) || !one.Elements[2].Hex {
		t.Errorf("got %+v, %v", got, err)
	}
}

func TestOtherFramingsAreTried(t *testing.T) {
	framed := "001e" + signOnBinary // two bytes that count themselves, which is no built-in dialect's
	if got := command(t, "decode", "--frame", framed); got.code != 0 || !strings.Contains(got.out, "iso87-binary encodes back to the same bytes (binary-2 length that counts itself, at most 4096 bytes)") {
		t.Errorf("got %+v", got)
	}
	if got := command(t, "decode", "--frame", "--dialect", "iso87-binary", framed); got.code != 1 {
		t.Errorf("with the dialect's own: got %+v", got)
	}
	if got := command(t, "decode", "--frame", "--check", "001c"+signOnBinary); got.code != 0 || !strings.Contains(got.out, "iso87-binary encodes back to the same bytes (binary-2 length, at most") {
		t.Errorf("its own: got %+v", got)
	}
}

func TestTheOtherEditionAndARejectHeaderAreShown(t *testing.T) {
	body, err := codecOf(t, "iso93-binary").Encode(authorization("000001", testPIN))
	if err != nil {
		t.Fatal(err)
	}
	if got := command(t, "decode", "--dialect", "iso93-binary", hex.EncodeToString(body)); got.code != 0 || !strings.Contains(got.out, "0   mti                1100\n") {
		t.Errorf("got %+v", got)
	}
	if body, err = codecOf(t, "visa-like").Encode(authorization("000001", testPIN)); err != nil {
		t.Fatal(err)
	}
	size := 26 + len(body)
	header := append([]byte{26, 1, 2, byte(size >> 8), byte(size)}, make([]byte, 19)...)
	rejected := append(append(header, 0x05, 0x11), body...)
	got := command(t, "decode", "--dialect", "visa-like", hex.EncodeToString(rejected))
	text := strings.Join(strings.Fields(got.out), " ")
	if got.code != 0 || !strings.Contains(text, "header reject_code x'0511'") || !strings.Contains(text, "- header length x'16'") {
		t.Errorf("got %+v", got)
	}
	if got := command(t, "decode", "--dialect", "visa-like", "-o", "json", hex.EncodeToString(rejected)); !strings.Contains(got.out, `"rejected": "0511"`) {
		t.Errorf("got %+v", got)
	}
}
