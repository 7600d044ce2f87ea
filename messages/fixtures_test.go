package messages_test

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/text/encoding/charmap"
	"golang.org/x/text/encoding/simplifiedchinese"

	"acquirerd/messages"
	"acquirerd/specs"
)

// Messages of other projects, and neutral definitions of the dialects that they are in. They stay outside the project, and are read where
// they lie; a checkout without them says so.
const fixturesPath = "../../shared/fixtures"

// A fixture is one message of another project, good or bad.
type fixture struct {
	ID         string
	Definition string `json:"dialect_def"`
	Framing    string
	Header     string // of the message, in hexadecimal digits; it is not in Hex
	Frame      string // the whole of it, where its source has it
	Hex        string
	Fields     map[string]string
	Level      string // of a bad one: message, de55, field or frame
	Expect     string // of a bad one: where it must be refused
}

// A definition says in neutral words how the elements of a dialect stand on the wire.
type definition struct {
	MTI         string
	Bitmap      string
	BitmapFixed int `json:"bmfixed"`
	EBCDIC      string
	Fields      map[string]definedField
}

type definedField struct {
	Kind     string `json:"k"`     // n, an, b, x or z
	Enc      string `json:"enc"`   // of the content
	Length   int    `json:"len"`   // the most
	Prefix   int    `json:"lp"`    // size of the length in characters or bytes, 0 for a fixed length
	PrefixIn string `json:"lpenc"` // of the length
	Charset  string `json:"charset"`
}

// unsupported are the fixtures that cannot be read, or not be written again, and why. docs/dialects.md has the same list. One that passes
// must leave it.
var unsupported = map[string]string{
	"kaperys-0200":   "its track 2 was masked with asterisks at its source, and is none: it is refused at DE 35",
	"rkb-1100-mixed": "its DE 7 is bytes, and its DE 4 has four digits: acquirerd could not write a request of that dialect",
}

func readFixtures(t *testing.T, name string) []fixture {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(fixturesPath, name))
	if errors.Is(err, os.ErrNotExist) {
		t.Skipf("NOT TESTED: there are no fixtures of other projects beside this checkout (%s)", fixturesPath)
	}
	if err != nil {
		t.Fatal(err)
	}
	var list []fixture
	for line := range strings.Lines(string(text)) {
		var f fixture
		if err := json.Unmarshal([]byte(line), &f); err != nil {
			t.Fatal(err)
		}
		list = append(list, f)
	}
	return list
}

func readDefinition(t *testing.T, name string) definition {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(fixturesPath, "dialects", name+".json"))
	if err != nil {
		t.Fatal(err)
	}
	var d definition
	if err := json.Unmarshal(text, &d); err != nil {
		t.Fatal(err)
	}
	return d
}

// What a definition does not say: that track 2 has the separator "D" on the wire, or "F" as its pad nibble, and that the bit map is in lower
// case.
var encodersOf = map[string]map[string]string{
	"base24-my":                {"z ascii": "Track2D"},
	"moov-spec87ascii":         {"z ascii": "Track2D"},
	"mc-cis87":                 {"z ebcdic": "EBCDICTrack2D"},
	"hpdh-bcd":                 {"z nibR": "Track2BCDF"},
	"ipm93-ebcdic-hexbm-ascii": {"bitmap hexascii": "HexTextLower"},
}

// contents are our encoders by kind and encoding of a definition.
var contents = map[string]string{
	"n ascii": "Digits", "n ebcdic": "EBCDICDigits", "n bcdL": "BCDLeft", "n bcdR": "BCDRight", "n bcdLF": "BCDLeftF", "n bcdRF": "BCDRightF",
	"an ascii": "Text", "an ebcdic": "EBCDICText", "an gbk": "Raw",
	"b bin": "Binary", "b hexascii": "HexText",
	"x ascii": "SignedDigits", "x ebcdic": "EBCDICSignedDigits", "x xbcd": "SignedBCD",
	"z ascii": "Track2", "z ebcdic": "EBCDICTrack2", "z nibR": "Track2BCD", "z nibL": "Track2BCDLeft", "z bcdL": "Track2BCDLeft",
	"z bcdRF": "Track2BCDF", "z bcdLF": "Track2BCDF", // no fixture has a track 2 in the last one: it is padded on the left
}

// fieldText is a field of a dialect file.
func fieldText(t *testing.T, name string, d definition, number string, f definedField) string {
	t.Helper()
	kind := f.Kind + " " + f.Enc
	if f.Charset != "" {
		kind = f.Kind + " " + f.Charset
	}
	enc, known := contents[kind]
	if !known {
		t.Fatalf("%s: field %s: there is no encoder for %q", name, number, kind)
	}
	if own, has := encodersOf[name][kind]; has {
		enc = own
	}
	if d.EBCDIC == "cp1047" {
		enc = strings.Replace(enc, "EBCDICText", "EBCDIC1047Text", 1)
	}
	of, content := "String", ""
	if f.Kind == "b" {
		of = "Binary"
	}
	if number == "55" && f.Kind == "b" {
		content = ", content: ber-tlv"
	}
	prefix, length := "Fixed", f.Length
	if f.Prefix > 0 {
		letters := f.Prefix
		if f.PrefixIn == "bcd" {
			letters = max(2*f.Prefix-1, len(strconv.Itoa(f.Length))) // the high nibble of an odd count is 0
			if f.Prefix == 1 {
				letters = 2
			}
		}
		prefix = map[string]string{"ascii": "ASCII", "bcd": "BCD", "bin": "Binary", "ebcdic": "EBCDIC"}[f.PrefixIn] + "." + strings.Repeat("L", letters)
		base := map[string]int{"ascii": 10, "bcd": 10, "bin": 256, "ebcdic": 10}[f.PrefixIn]
		length = min(length, int(math.Pow(float64(base), float64(letters)))-1) // a dialect file promises no more than its prefix holds
	}
	return fmt.Sprintf("  %s: { type: %s, length: %d, enc: %s, prefix: %s%s, description: %q }\n", number, of, length, enc, prefix, content, f.Kind)
}

// needed are the elements that acquirerd itself writes, which a dialect file must have, for a definition that lacks them.
var needed = map[string]definedField{
	"2": {Kind: "n", Enc: "ascii", Length: 19, Prefix: 2, PrefixIn: "ascii"}, "3": {Kind: "n", Enc: "ascii", Length: 6},
	"4": {Kind: "n", Enc: "ascii", Length: 12}, "7": {Kind: "n", Enc: "ascii", Length: 10}, "11": {Kind: "n", Enc: "ascii", Length: 6},
	"12": {Kind: "n", Enc: "ascii", Length: 6}, "13": {Kind: "n", Enc: "ascii", Length: 4}, "24": {Kind: "n", Enc: "ascii", Length: 3},
	"37": {Kind: "an", Enc: "ascii", Length: 12}, "38": {Kind: "an", Enc: "ascii", Length: 6}, "39": {Kind: "an", Enc: "ascii", Length: 2},
	"41": {Kind: "an", Enc: "ascii", Length: 8}, "44": {Kind: "an", Enc: "ascii", Length: 25, Prefix: 2, PrefixIn: "ascii"},
	"49": {Kind: "n", Enc: "ascii", Length: 3}, "70": {Kind: "n", Enc: "ascii", Length: 3},
	"32": {Kind: "n", Enc: "ascii", Length: 11, Prefix: 2, PrefixIn: "ascii"},
	"35": {Kind: "z", Enc: "ascii", Length: 37, Prefix: 2, PrefixIn: "ascii"},
	"55": {Kind: "b", Enc: "bin", Length: 255, Prefix: 3, PrefixIn: "ascii"},
}

// dialectText is the dialect file of a fixture: fields of its definition, framing and header of its own line, the edition of its MTI.
// acquirerd needs some elements, which it writes; those that the definition lacks are plain ASCII ones.
func dialectText(t *testing.T, f fixture) string {
	t.Helper()
	d := definition{MTI: "ascii", Bitmap: "hexascii"}
	if f.Definition != "" {
		d = readDefinition(t, f.Definition)
	}
	fields := maps.Clone(d.Fields)
	if fields == nil {
		fields = map[string]definedField{}
	}
	if d.BitmapFixed == 0 {
		delete(fields, "65")
	}
	for number, f := range needed {
		if _, has := fields[number]; !has {
			fields[number] = f
		}
	}
	if fields["90"].Length < 42 {
		fields["90"] = definedField{Kind: "n", Enc: "ascii", Length: 42} // ISO 8583:1993 has another one, which no fixture carries
	}
	digit := "0"
	if mti := f.Fields["0"]; strings.HasPrefix(mti, "1") || strings.HasPrefix(f.Definition, "ipm93") && strings.HasPrefix(f.Hex, "31") {
		digit = "1"
	}
	standard := map[string]string{"0": "iso87", "1": "iso93"}[digit]
	own := map[string]definedField{}
	digits := map[string]int{"iso87": 6, "iso93": 12}[standard]
	if time := fields["12"]; time.Length != digits { // as in messages of the other edition
		fields["12"], own["12"] = definedField{Kind: "n", Enc: "ascii", Length: digits}, time
	}

	var b strings.Builder
	fmt.Fprintf(&b, "name: fixture\nversion: \"1\"\nstandard: %s\n", standard)
	inclusive := strings.HasSuffix(f.Framing, "-inclusive")
	length, most := map[string]string{"none": "binary-2", "2bin": "binary-2", "2bin-inclusive": "binary-2", "2bcd": "bcd-2", "2bin+2reserved": "vmlh"}[f.Framing], 2048
	fmt.Fprintf(&b, "framing: { length: %s, inclusive: %v, max: %d }\n", length, inclusive, most)
	switch header := f.Header; {
	case header == "":
	case f.Framing == "2bin+2reserved":
		if strings.HasPrefix(header, "1A") { // its own stands behind the reject header
			header = header[52:]
		}
		fmt.Fprintf(&b, "header: { form: base1, value: %q }\n", header)
	case strings.HasPrefix(header, "60"):
		fmt.Fprintf(&b, "header: { form: tpdu, value: %q }\n", header)
	default:
		fmt.Fprintf(&b, "header: { form: literal, value: %q }\n", header)
	}
	b.WriteString("match: { transaction: [7, 11], network_management: [7, 11] }\nidentity: [7, 11]\nechoed: [11]\nmessages:\n")
	for _, mti := range []string{"100", "200"} {
		fmt.Fprintf(&b, "  %q: { mandatory: [7, 11], one_of: [2, 35], fields: {", digit+mti)
		for number, f := range own {
			fmt.Fprintf(&b, " %s,", strings.TrimSpace(fieldText(t, "", d, number, f)))
		}
		b.WriteString(" } }\n")
	}
	for _, mti := range []string{"420", "421"} {
		fmt.Fprintf(&b, "  %q: { mandatory: [7, 11, 32], one_of: [2, 35] }\n", digit+mti) // one of the bad ones lacks a card, and one DE 32
	}
	for _, mti := range []string{"110", "210", "430", "810"} {
		fmt.Fprintf(&b, "  %q: { mandatory: [11, 39] }\n", digit+mti)
	}
	code := strings.Repeat("0", fields["39"].Length)
	fmt.Fprintf(&b, "  %q: { mandatory: [11, 70] }\n", digit+"800")
	if digit == "1" {
		fmt.Fprintf(&b, "function_codes: { %q: \"400\" }\n", digit+"420")
	}
	fmt.Fprintf(&b, "network_management: { type: %q, element: 70, echo: %q, accepted: [%q] }\n", digit+"800",
		strings.Repeat("3", fields["70"].Length), code)
	fmt.Fprintf(&b, "approving: [%q]\n", code)
	other := strings.Repeat("9", len(code))
	if len(code) != 2 {
		fmt.Fprintf(&b, "response_codes: { %q: \"00\", %q: \"96\" }\n", code, other)
	}
	fmt.Fprintf(&b, "reversal: { type: %q, numbers: original, original: iso87-de90, replacement: none, acknowledged: [%q], not_found: [], already: [], "+
		"retry: [], poison: [], unknown_original: answer }\nadvices: { stored: [] }\n", digit+"420", code)
	fmt.Fprintf(&b, "answers: { unknown: %[1]q, not_sent: %[1]q, no_route: %[1]q, format_error: %[1]q, unsupported: %[1]q, malfunction: %[1]q, busy: %[1]q, "+
		"pin_untranslatable: %[1]q, duplicate: %[1]q, original_not_found: %[1]q }\n", other)
	b.WriteString("fields:\n")
	b.WriteString(map[string]string{
		"ascii":  "  0: { type: String, length: 4, enc: Digits, prefix: Fixed, description: mti }\n",
		"bcd":    "  0: { type: String, length: 4, enc: BCDLeft, prefix: Fixed, description: mti }\n",
		"ebcdic": "  0: { type: String, length: 4, enc: EBCDICDigits, prefix: Fixed, description: mti }\n",
	}[d.MTI])
	bitmap := map[string]string{"bin": "Binary", "hexascii": "HexText"}[d.Bitmap]
	if own, has := encodersOf[f.Definition]["bitmap "+d.Bitmap]; has {
		bitmap = own
	}
	if d.BitmapFixed > 0 {
		fmt.Fprintf(&b, "  1: { type: Bitmap, length: %d, enc: %s, prefix: Fixed, extent: fixed, description: bit map }\n", d.BitmapFixed, bitmap)
	} else {
		fmt.Fprintf(&b, "  1: { type: Bitmap, length: 8, enc: %s, prefix: Fixed, description: bit map }\n", bitmap)
	}
	for _, number := range slices.Sorted(maps.Keys(fields)) {
		b.WriteString(fieldText(t, f.Definition, d, number, fields[number]))
	}
	return b.String()
}

// fixtureCodec makes the dialect of a fixture by the way of a file, so that it passes lint as one does.
func fixtureCodec(t *testing.T, f fixture) *messages.Codec {
	t.Helper()
	text := dialectText(t, f)
	dialect, err := specs.Parse([]byte(text))
	if err != nil {
		t.Fatalf("the dialect file of %s:\n%v\n%s", f.Definition, err, text)
	}
	return messages.NewCodec(dialect)
}

func TestFixturesDecodeAndEncodeToTheSameBytesUnderTheirDefinitions(t *testing.T) {
	passed, list := 0, readFixtures(t, "messages.jsonl")
	for _, f := range list {
		fault := fixtureFault(t, f)
		reason, listed := unsupported[f.ID]
		switch {
		case fault == "" && listed:
			t.Errorf("%s passes: it is not unsupported any more (%s)", f.ID, reason)
		case fault == "":
			passed++
		case !listed:
			t.Errorf("%s: %s", f.ID, fault)
		}
	}
	t.Logf("%d of %d pass", passed, len(list))
	if len(list) < 73 || passed < 70 {
		t.Errorf("%d of %d pass, want at least 70 of 73", passed, len(list))
	}
}

// fixtureFault says what is wrong with a fixture, "" for nothing.
func fixtureFault(t *testing.T, f fixture) string {
	t.Helper()
	dialect, err := specs.Parse([]byte(dialectText(t, f)))
	if err != nil {
		return fmt.Sprintf("the dialect file: %v", err)
	}
	c := messages.NewCodec(dialect)
	body := unhex(t, f.Header+f.Hex)
	m, err := c.Decode(bytes.Clone(body))
	if err != nil {
		return fmt.Sprintf("decoding: %v", err)
	}
	if got, want := c.Dialect().WireMTI(string(m.MTI)), f.Fields["0"]; got != want {
		return fmt.Sprintf("MTI: got %s, want %s", got, want)
	}
	if got, want := len(m.Elements()), len(f.Fields)-1; got != want {
		return fmt.Sprintf("got %d elements, want %d", got, want)
	}
	for _, e := range m.Elements() {
		got, want := m.Reveal(e), f.Fields[strconv.Itoa(int(e))]
		field, _ := c.Dialect().Field(f.Fields["0"], int(e))
		switch {
		case field.Binary():
			got, want = strings.ToUpper(hex.EncodeToString([]byte(got))), strings.ToUpper(want)
		case field.Enc == "Raw":
			if got, err = simplifiedchinese.GBK.NewDecoder().String(got); err != nil {
				return fmt.Sprintf("%v: %v", e, err)
			}
		case e == messages.Track2:
			want = strings.ReplaceAll(want, "D", "=") // which is the separator in our values, whatever stands on the wire
		}
		if got != want {
			return fmt.Sprintf("%v: got %q, want %q", e, got, want)
		}
	}
	again, err := c.Encode(m)
	if err != nil {
		return fmt.Sprintf("encoding: %v", err)
	}
	if !bytes.Equal(again, body) {
		return fmt.Sprintf("encodes to\n%X, want\n%X", again, body)
	}
	frame, err := c.EncodeFrame(m)
	if err != nil {
		return fmt.Sprintf("framing: %v", err)
	}
	if f.Frame != "" && !bytes.Equal(frame, unhex(t, f.Frame)) {
		return fmt.Sprintf("the frame is\n%X, want\n%s", frame, f.Frame)
	}
	if read, err := c.ReadFrame(bytes.NewReader(frame)); err != nil || !bytes.Equal(read, body) {
		return fmt.Sprintf("the frame is read as %X, %v", read, err)
	}
	return ""
}

// refusals say where each bad fixture is refused, and by which rule.
var refusals = map[string]string{
	"mti-empty":                            "MTI is not four digits",
	"mti-short-moov":                       "MTI is not four digits",
	"mti-short-py":                         "MTI is not four digits",
	"mti-letter":                           "MTI is not four digits",
	"mti-bcd-ABCD":                         "MTI is not four digits",
	"bm1-0":                                "bit map is followed by bytes that belong to no element",
	"bm3-0":                                "DE 65 announces a third bit map",
	"bm1-1":                                "bit map has a character that is not a hexadecimal digit of the dialect's case",
	"bm3-1":                                "DE 65 announces a third bit map",
	"bm1-2":                                "bit map has a character that is not a hexadecimal digit of the dialect's case",
	"bm3-2":                                "DE 65 announces a third bit map",
	"bm1-3":                                "bit map has less content than its length says",
	"bm3-3":                                "DE 65 announces a third bit map",
	"bm1-4":                                "bit map has less content than its length says",
	"bm3-4":                                "DE 65 announces a third bit map",
	"bm-wrong-bits":                        "DE 102 has a length that is not digits",
	"cardutil-mti-ff":                      "MTI is not four digits",
	"cardutil-trailing":                    "DE 94 is followed by bytes that belong to no element",
	"moov-fuzz-c969d21b":                   "DE 2 has a length that is not digits",
	"moov-fuzz-582528dd":                   "MTI is not four digits",
	"f2-00":                                "DE 2 is followed by bytes that belong to no element",
	"f2-01":                                "DE 2 is followed by bytes that belong to no element",
	"f2-03":                                "DE 2 is followed by bytes that belong to no element",
	"f2-04":                                "DE 2 is followed by bytes that belong to no element",
	"f2-06":                                "DE 2 is followed by bytes that belong to no element",
	"f2-07":                                "DE 2 has less content than its length says",
	"f2-09":                                "DE 2 has less content than its length says",
	"f2-10":                                "DE 2 has less content than its length says",
	"f2-12":                                "DE 2 has less content than its length says",
	"f2-13":                                "DE 2 has less content than its length says",
	"f2-15":                                "DE 2 has a length over the dialect's maximum",
	"f2-16":                                "DE 2 has a length over the dialect's maximum",
	"f2-18":                                "DE 2 has a length over the dialect's maximum",
	"f2-19":                                "DE 2 has less content than its length says",
	"f2-21":                                "DE 2 has a character that its kind does not allow",
	"f2-22":                                "DE 2 has a length that is not digits",
	"f2-24":                                "DE 2 has a length that is not digits",
	"bcd-ABCD":                             "DE 2 has a character that is not a digit",
	"bcd-short":                            "DE 2 has less content than its length says",
	"ascii-utf8":                           "DE 2 has a character that its kind does not allow",
	"lll-ascii-short":                      "DE 2 has less content than its length says",
	"lll-bcd-short":                        "DE 2 has less content than its length says",
	"tm-ll-ascii-0":                        "DE 2 has less content than its length says",
	"tm-lll-ascii-ABC":                     "DE 2 has a length that is not digits",
	"tm-ll-ascii-AB":                       "DE 2 has a length that is not digits",
	"tm-lll-bcd-123A":                      "DE 2 has a length that is not digits",
	"tm-lll-ebcdic-space":                  "DE 2 has a length that is not digits",
	"tm-inclusive-01":                      "DE 44 has a length that is less than its own size, which it counts",
	"tm-inclusive-bin-0001":                "DE 44 has a length that is less than its own size, which it counts",
	"haimi-trunc-num":                      "DE 2 has a length over the dialect's maximum",
	"moov-f120-short":                      "DE 120 has less content than its length says",
	"moov-f3-nested-letter":                "DE 3 has a character that its kind does not allow",
	"moov-dat-error_message":               "DE 55 has less content than its length says",
	"moov-dat-iso_reversal_message_advice": "DE 2 is missing",
	"moov-dat-iso_reversal_message_advice_missing_field":   "DE 32 is missing",
	"moov-dat-message_with_error_indicate_numeric":         "DE 28 has less content than its length says",
	"moov-dat-network_management_message_with_error_track": "DE 35 has a character that its kind does not allow",
	"bass-short":                          "bit map has less content than its length says",
	"bass-ff":                             "bit map has less content than its length says",
	"iz-bcd10":                            "DE 2 has less content than its length says",
	"iz-rbcd10":                           "DE 2 has less content than its length says",
	"iz-ll":                               "DE 2 has a length that is not digits",
	"iz-lll":                              "DE 2 has a length that is not digits",
	"wrong-dialect-stark-visa-0100":       "MTI is not four digits",
	"wrong-dialect-cup-pay-request":       "MTI is not four digits",
	"wrong-dialect-nao-0100-auth-request": "DE 35 has a length over the dialect's maximum",
	"wrong-dialect-pyiso-0200-pan":        "bit map has less content than its length says",
	"tlv-cardutil-0":                      "DE 55 is not BER-TLV",
	"tlv-cardutil-1":                      "DE 55 is not BER-TLV",
	"tlv-cardutil-3":                      "DE 55 is not BER-TLV",
	"tlv-cardutil-4":                      "DE 55 is not BER-TLV",
	"tlv-cardutil-6":                      "DE 55 is not BER-TLV",
	"tlv-cardutil-7":                      "DE 55 is not BER-TLV",
	"tlv-cardutil-message":                "DE 55 is not BER-TLV",
	"tlv-moov-5f":                         "DE 55 is not BER-TLV",
	"tlv-moov-len-short":                  "DE 55 is not BER-TLV",
	"tlv-moov-len-over":                   "DE 55 is not BER-TLV",
	"frame-2bin-1byte":                    "frame error: short",
	"frame-2bin-100-5":                    "frame error: short",
	"frame-2bcd-01":                       "frame error: short",
	"frame-vml-ffff":                      "frame error: header",
}

func TestBadFixturesAreRefusedWhereTheySay(t *testing.T) {
	list := readFixtures(t, "bad.jsonl")
	for _, f := range list {
		err, above := refusal(t, f)
		switch {
		case err == nil:
			t.Errorf("%s is taken", f.ID)
			continue
		case above != strings.Contains(f.Expect, "above"):
			t.Errorf("%s is refused above the decoder: %v, want %s (%v)", f.ID, above, f.Expect, err)
		}
		if got, want := err.Error(), refusals[f.ID]; got != want {
			t.Errorf("%s: got %q, want %q", f.ID, got, want)
		}
		if quoted := quotes(err, unhex(t, f.Header+f.Hex)); quoted != "" {
			t.Errorf("%s: the error quotes %q of the message: %v", f.ID, quoted, err)
		}
	}
	if len(list) != len(refusals) {
		t.Errorf("%d bad fixtures, and %d refusals", len(list), len(refusals))
	}
}

// refusal is the error with which a bad fixture is refused, and whether the decoder took it.
func refusal(t *testing.T, f fixture) (err error, above bool) {
	t.Helper()
	raw := unhex(t, f.Header+f.Hex)
	switch f.Level {
	case "message":
		c := fixtureCodec(t, f)
		m, err := c.Decode(raw)
		if err != nil {
			return err, false
		}
		if strings.HasPrefix(f.ID, "tlv-") { // it lacks time and STAN too, which are mandatory
			m.Set(messages.TransmissionTime, "1123120059")
			m.Set(messages.STAN, "000042")
		}
		return c.Validate(m), true
	case "de55":
		c := fixtureCodec(t, f)
		m := messages.New("0200")
		m.SetPAN(pan(t))
		m.Set(messages.TransmissionTime, "1123120059")
		m.Set(messages.STAN, "000042")
		m.SetSensitive(messages.ChipData, string(raw))
		body, err := c.Encode(m)
		if err != nil {
			t.Fatal(err)
		}
		if m, err = c.Decode(body); err != nil {
			t.Fatal(err)
		}
		return c.Validate(m), false
	case "field":
		text := dialectText(t, f)
		own := strings.Replace(text, "44: { type: String, length: 25, enc: Text, prefix: ASCII.LL,", "44: { type: String, length: 25, enc: Text, prefix: "+
			map[string]string{"3031": "ASCII.LL", "0001": "Binary.LL"}[f.Hex]+", inclusive: true,", 1)
		if own == text {
			t.Fatal("there is no such field")
		}
		dialect, err := specs.Parse([]byte(own))
		if err != nil {
			t.Fatal(err)
		}
		_, err = messages.NewCodec(dialect).Decode(append([]byte("02000000000000100000"), raw...)) // DE 44 alone
		return err, false
	case "frame":
		_, err := fixtureCodec(t, f).ReadFrame(bytes.NewReader(raw))
		return err, false
	}
	t.Fatalf("%s: level %q", f.ID, f.Level)
	return nil, false
}

// quotes returns what an error quotes of a message: four characters that follow each other in both, as bytes, in EBCDIC or in hexadecimal
// digits; or any digit but an element's number.
func quotes(err error, raw []byte) string {
	text := err.Error()
	ebcdic, errPage := charmap.CodePage037.NewDecoder().Bytes(raw)
	if errPage != nil {
		return errPage.Error()
	}
	for _, content := range []string{string(raw), string(ebcdic), hex.EncodeToString(raw), strings.ToUpper(hex.EncodeToString(raw))} {
		for i := 0; i+4 <= len(content); i++ {
			if strings.Contains(text, content[i:i+4]) {
				return content[i : i+4]
			}
		}
	}
	var format *messages.FormatError
	if errors.As(err, &format) {
		text = format.Rule
	}
	if at := strings.IndexAny(text, "0123456789"); at >= 0 {
		return text[at:]
	}
	return ""
}

// Bit 1 of a bit map of a fixed extent announces nothing, and some senders set it. A MAC covers it, so it stays as it came. No fixture has
// it set.
func TestBit1OfABitMapOfAFixedExtentStaysAsItCame(t *testing.T) {
	text, err := os.ReadFile("../specs/iso87-ascii.yaml")
	if err != nil {
		t.Fatal(err)
	}
	own := strings.Replace(string(text), "1: { type: Bitmap, length: 8, enc: HexText, prefix: Fixed,",
		"1: { type: Bitmap, length: 16, enc: HexText, prefix: Fixed, extent: fixed,", 1)
	if own == string(text) {
		t.Fatal("there is no such field")
	}
	dialect, err := specs.Parse([]byte(own))
	if err != nil {
		t.Fatal(err)
	}
	c := messages.NewCodec(dialect)
	for _, bitmap := range []string{"80200000000000000000000000000000", "00200000000000000000000000000000"} {
		body := "0800" + bitmap + "000042"
		m, err := c.Decode([]byte(body))
		if err != nil {
			t.Fatal(err)
		}
		if again, err := c.Encode(m); err != nil || string(again) != body {
			t.Errorf("encodes to %q, %v, want %q", again, err, body)
		}
	}
}

// The manual lists what is not supported of the fixtures, and how many pass.
func TestTheManualListsTheUnsupportedFixtures(t *testing.T) {
	text, err := os.ReadFile("../docs/dialects.md")
	if err != nil {
		t.Fatal(err)
	}
	for id := range unsupported {
		if !strings.Contains(string(text), "| `"+id+"` |") {
			t.Errorf("docs/dialects.md does not list %s", id)
		}
	}
	for _, count := range []string{fmt.Sprintf("**%d of 73**", 73-len(unsupported)), fmt.Sprintf("**%d**", len(refusals)),
		fmt.Sprintf("%d of them are written in a built-in dialect", len(fixtures))} {
		if !strings.Contains(string(text), count) {
			t.Errorf("docs/dialects.md does not say %s", count)
		}
	}
}
