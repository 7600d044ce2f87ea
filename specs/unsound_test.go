package specs_test

import (
	"os"
	"slices"
	"strings"
	"testing"

	"acquirerd/specs"
)

// An unsound line makes a dialect that would be read and written without a fault, and would lose money or never work: what is changed in which
// built-in dialect, and the one path that lint names.
type unsoundLine struct{ what, dialect, is, becomes, named string }

const (
	ascii     = "iso87-ascii"
	iso93     = "iso93-binary"
	accepted  = `  accepted: ["00"]`
	notFound  = `original_not_found: "25" }`
	amount    = `4: { type: String, length: 12, enc: Digits, prefix: Fixed,`
	stan      = `11: { type: String, length: 6, enc: Digits, prefix: Fixed,`
	functions = `"1420": "400", "1421": "400" }`
	line0110  = `  "0110": { mandatory: [7, 11, 39]`
	line0420  = `  "0420": { mandatory: [3, 4, 7, 11, 41, 90], one_of: [2, 35] }` + "\n"
	ended     = `framing: { length: none, trailer: "03", max: 4096 }`
)

var unsoundLines = []unsoundLine{
	{"nothing sent is told as an approval", ascii, `not_sent: "91"`, `not_sent: "00"`, "answers.not_sent"},
	{"an unknown outcome is told as an approval", ascii, `unknown: "91"`, `unknown: "00"`, "answers.unknown"},
	{"a decline is told as an approval", ascii, notFound, `original_not_found: "25", declined: "00" }`, "answers.declined"},
	{"no route is told as an approval", ascii, `no_route: "92"`, `no_route: "11"`, "answers.no_route"},
	{"a refusal of the network (base1) is an approval", "visa-like", `format_error: "30"`, `format_error: "00"`, "answers.format_error"},
	{"a missing original is told as an acknowledgement", iso93, `original_not_found: "9114"`, `original_not_found: "4000"`, "answers.original_not_found"},
	{"an advice that is taken is told as refused", ascii, notFound, `original_not_found: "25", accepted: "96" }`, "answers.accepted"},
	{"a reversal that is refused is told as done before", ascii, `busy: "96"`, `busy: "94"`, "answers.busy"},
	{"a key change that is refused is told as accepted", ascii, accepted, `  accepted: ["00", "12"]`, "answers.unsupported"},

	{"answers to reversals are not among the messages", ascii, `  "0430": { mandatory: [7, 11, 39] }` + "\n", "", "messages"},
	{"answers to requests are not among the messages", ascii, `  "0110": { mandatory: [7, 11, 39] }` + "\n", "", "messages"},
	{"answers to advices are not among the messages", ascii, `  "0230": { mandatory: [7, 11, 39] }` + "\n", "", "messages"},
	{"answers of the dialogue are not among the messages", ascii, `  "0810": { mandatory: [7, 11, 39] }` + "\n", "", "messages"},
	{"the dialogue is not among the messages", ascii, `  "0800": { mandatory: [7, 11, 70] }` + "\n", "", "messages"},
	{"reversals are not among the messages", ascii, line0420, "", "messages"},
	{"repeats of reversals are not among the messages", ascii, strings.Replace(line0420, "0420", "0421", 1), "", "messages"},
	{"repeats of reversal requests are not among the messages", "visa-like", strings.Replace(line0420, "0420", "0401", 1), "", "messages"},
	{"repeats of advices are not among the messages", ascii, `  "0221": { mandatory: [3, 4, 7, 11, 41, 49], one_of: [2, 35] }` + "\n", "", "messages"},

	{"amounts have 10 digits, and comparisons 12", ascii, amount, strings.Replace(amount, "12", "10", 1), "fields.4"},
	{"amounts have 16 digits, and replacements 12", ascii, amount, `4: { type: String, length: 16, pad: left-zero, enc: Digits, prefix: Fixed,`, "fields.4"},
	{"amounts are bytes", ascii, amount, `4: { type: Binary, length: 12, enc: Binary, prefix: Fixed,`, "fields.4"},
	{"amounts are letters", ascii, amount, strings.Replace(amount, "enc: Digits", "enc: Text", 1), "fields.4"},
	{"amounts are shorter than they are", ascii, amount, strings.Replace(amount, "prefix: Fixed", "prefix: ASCII.LL", 1), "fields.4"},
	{"STANs have 4 digits", ascii, stan, strings.Replace(stan, "6", "4", 1), "fields.11"},
	{"times have no seconds", ascii, `7: { type: String, length: 10,`, `7: { type: String, length: 8,`, "fields.7"},
	{"local times have no date", iso93, `12: { type: String, length: 12,`, `12: { type: String, length: 6,`, "fields.12"},
	{"local times of 1987 have a date", ascii, `12: { type: String, length: 6,`, `12: { type: String, length: 12,`, "fields.12"},
	{"local dates have a year", ascii, `13: { type: String, length: 4,`, `13: { type: String, length: 6,`, "fields.13"},
	{"RRNs have 10 characters", ascii, `37: { type: String, length: 12,`, `37: { type: String, length: 10,`, "fields.37"},
	{"authorization ids are bytes", ascii, `38: { type: String, length: 6, enc: Text,`, `38: { type: Binary, length: 6, enc: Binary,`, "fields.38.type"},
	{"the failing element does not fit DE 44", ascii, `44: { type: String, length: 25, enc: Text, prefix: ASCII.LL,`, `44: { type: String, length: 25, enc: Text, prefix: Fixed,`, "fields.44"},
	{"STANs of answers have 12 digits", ascii, line0110, line0110 + `, fields: { 11: { type: String, length: 12, enc: Digits, prefix: Fixed, description: x } }`, "messages.0110.fields.11"},
	{"terminals of answers have 16 characters", ascii, line0110, line0110 + `, fields: { 41: { type: String, length: 16, enc: Text, prefix: Fixed, description: x } }`, "messages.0110.fields.41"},
	{"DE 90 is longer than what is written into it", ascii, `90: { type: String, length: 42,`, `90: { type: String, length: 43,`, "reversal.original"},
	{"DE 90 is filled up", ascii, `90: { type: String, length: 42,`, `90: { type: String, length: 43, pad: left-zero,`, "reversal.original"},
	{"DE 90 of repeats is longer than what is written into it", ascii, line0420, strings.Replace(line0420, " }\n", `, fields: { 90: { type: String, length: 44, enc: Digits, prefix: Fixed, description: x } } }`+"\n", 1), "messages.0420.fields.90"},
	{"DE 95 is longer than what is written into it", ascii, `95: { type: String, length: 42,`, `95: { type: String, length: 44,`, "reversal.replacement"},
	{"DE 30 is shorter than what is written into it", iso93, `30: { type: String, length: 24,`, `30: { type: String, length: 12,`, "reversal.replacement"},
	{"DE 56 is fixed, and its content is not", iso93, `56: { type: String, length: 35, enc: BCDRight, prefix: BCD.LL,`, `56: { type: String, length: 35, enc: BCDRight, prefix: Fixed,`, "reversal.original"},
	{"DE 56 counts bytes, and holds no odd count of digits", iso93, `56: { type: String, length: 35, enc: BCDRight, prefix: BCD.LL,`, `56: { type: String, length: 35, enc: BCDRight, prefix: BCD.LL, counts: wire,`, "reversal.original"},
	{"a field of a message type does not fit the bit map", ascii, line0110, line0110 + `, fields: { 65: { type: Binary, length: 1, enc: Binary, prefix: Fixed, description: x } }`, "messages.0110.fields.65"},

	{"reversals have no function code of their own, and bear that of their original", iso93, ", " + functions, ` }`, "function_codes"},
	{"reversals have the function code of a partial one", iso93, functions, strings.Replace(functions, "400", "401", 1), "function_codes.1420"},
	{"requests have no function code, which is mandatory", iso93, `"1200": "200", `, "", "function_codes"},

	{"the identity is not named by DE 56", iso93, "identity: [11, 12, 41]\n", "identity: [7, 11, 12, 41]\n", "identity"},
	{"the identity is not named by DE 90", ascii, "\nechoed:", "\nidentity: [7, 11, 12, 41]\nechoed:", "identity"},
	{"the identity has no time: STANs come again", ascii, "\nechoed:", "\nidentity: [11, 41]\nechoed:", "identity"},
	{"the identity has a time that DE 90 does not have", ascii, "\nechoed:", "\nidentity: [11, 41, 42]\nechoed:", "identity"},
	{"the identity is of sensitive elements, which panic", ascii, "\nechoed:", "\nidentity: [2, 7, 11]\nechoed:", "identity"},
	{"the identity is of what reversals do not have", ascii, "\nechoed:", "\nidentity: [7, 11, 18]\nechoed:", "identity"},
	{"the identity is of what requests need not have", ascii, "\nechoed:", "\nidentity: [7, 11, 41, 42]\nechoed:", "identity"},
	{"the default identity is of what a reversal need not have", ascii, line0420, strings.Replace(line0420, "41, ", "", 1), "identity"},
	{"the match key is the card number", ascii, "transaction: [7, 11, 41]", "transaction: [2, 11]", "match.transaction"},
	{"the match key is what only an answer has", ascii, "transaction: [7, 11, 41]", "transaction: [11, 39]", "match.transaction"},
	{"the match key is an amount, and partial approvals have another", ascii, "transaction: [7, 11, 41]", "transaction: [4, 11]", "match.transaction"},
	{"the match key of the dialogue is what it does not have", ascii, "network_management: [7, 11]", "network_management: [11, 41]", "match.network_management"},
	{"an answer may not have what it is found by", ascii, line0110, line0110 + ", forbidden: [41]", "messages.0110.forbidden"},
	{"an answer is not believed for its response code", ascii, "echoed: [2,", "echoed: [39, 2,", "echoed"},
	{"an answer is not believed for its chip data", ascii, "echoed: [2,", "echoed: [55, 2,", "echoed"},

	{"reversals lack DE 3, which the journal does not keep", ascii, "\nadvices:", "\nsensitive: { 3: hidden }\nadvices:", "sensitive.3"},
	{"reversals name no acquirer, which the journal does not keep", ascii, "\nadvices:", "\nsensitive: { 32: hidden }\nadvices:", "sensitive.32"},
	{"DE 56 has no time, which the journal does not keep", iso93, "identity: [11, 12, 41]\n", "sensitive: { 12: hidden }\n", "sensitive.12"},
	{"the original of a reversal is hidden", iso93, "\nadvices:", "\nsensitive: { 56: hidden }\nadvices:", "sensitive.56"},
	{"the replacement amount of a reversal is hidden", ascii, "\nadvices:", "\nsensitive: { 95: hidden }\nadvices:", "sensitive.95"},
	{"a card number is looked for in bytes of a message type", ascii, "\n\nmessages:\n" + `  "0100": {`, "\nsensitive: { 47: pans }\nmessages:\n" +
		`  "0100": { fields: { 47: { type: Binary, length: 99, enc: Binary, prefix: ASCII.LL, description: x } },`, "sensitive.47"},
	{"a part loses its replacement amount on the way", ascii, "\nechoed:", "\ndropped: [95]\nechoed:", "dropped"},
	{"an advice loses its original on the way", ascii, "\nechoed:", "\ndropped: [90]\nechoed:", "dropped"},
	{"an original that a party says can be done without", ascii, "\nechoed:", "\ndispensable: [90]\nechoed:", "dispensable"},
	{"an amount that a party says can be done without", ascii, "\nechoed:", "\ndispensable: [4]\nechoed:", "dispensable"},
	{"an advice of 1993 loses its original on the way", iso93, "dropped: [22,", "dropped: [56, 22,", "dropped"},

	{"what is carried by an 0800 replaces its STAN", ascii, accepted, accepted + "\n" + `  carries: { 11: "000001" }`, "network_management.carries.11"},
	{"what is carried by an 0800 replaces its code", ascii, accepted, accepted + "\n" + `  carries: { 70: "001" }`, "network_management.carries.70"},
	{"what is carried by an 0800 does not fit its field", ascii, accepted, accepted + "\n" + `  carries: { 41: "TOOLONGTERMINAL" }`, "network_management.carries.41"},
	{"what is carried by an 0800 is nothing", ascii, accepted, accepted + "\n" + `  carries: { 33: "" }`, "network_management.carries.33"},
	{"new keys do not fit their element", ascii, `element: 48, cryptogram: 16`, `element: 38, cryptogram: 16`, "network_management.key_data.element"},
	{"new keys are hexadecimal digits, and their element takes decimal ones", ascii, `48: { type: String, length: 999, enc: Text,`, `48: { type: String, length: 999, enc: Digits,`, "network_management.key_data.element"},
	{"new keys are shown", ascii, `element: 48, cryptogram: 16`, `element: 54, cryptogram: 16`, "network_management.key_data.element"},
	{"new keys are shown but for card numbers", ascii, "\nadvices:", "\nsensitive: { 48: pans }\nadvices:", "network_management.key_data.element"},
}

// terminatedLines are the same of iso87-ascii with messages that a trailer ends, and with no field of raw bytes, which could hold it.
var terminatedLines = []unsoundLine{
	{"a header of binary bytes can hold the trailer that ends a message", ascii, ended, ended + "\nheader: { form: tpdu, value: \"6003030000\" }", "header.form"},
	{"a header that is echoed can hold the trailer that ends a message", ascii, ended, ended + "\nheader: { form: echoed, value: \"494F\" }", "header.form"},
	{"a literal header holds the trailer that ends a message", ascii, ended, ended + "\nheader: { form: literal, value: \"4903\" }", "header.value"},
	{"a field of a message type can hold the trailer that ends a message", ascii, `"0810": { mandatory: [7, 11, 39] }`,
		`"0810": { mandatory: [7, 11, 39], fields: { 46: { type: Binary, length: 99, enc: Binary, prefix: ASCII.LL, description: x } } }`, "messages.0810.fields.46.enc"},
	{"a length of a message type can hold the trailer that ends a message", ascii, `"0810": { mandatory: [7, 11, 39] }`,
		`"0810": { mandatory: [7, 11, 39], fields: { 46: { type: String, length: 99, enc: Text, prefix: BCD.LL, description: x } } }`, "messages.0810.fields.46.prefix"},
}

func TestLintNamesWhatCannotWork(t *testing.T) {
	for _, line := range unsoundLines {
		t.Run(line.what, func(t *testing.T) { line.isNamed(t, read(t, line.dialect)) })
	}
	terminated := strings.NewReplacer("framing: { length: ascii-4, max: 4096 }", ended, "stored: [14, 55,", "stored: [14,").Replace(read(t, ascii))
	var kept strings.Builder
	for line := range strings.Lines(terminated) {
		if !strings.HasPrefix(line, "  ") || !strings.Contains(line, "enc: Binary,") {
			kept.WriteString(line)
		}
	}
	for _, line := range terminatedLines {
		t.Run(line.what, func(t *testing.T) { line.isNamed(t, kept.String()) })
	}
}

func read(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile(name + ".yaml")
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// isNamed checks that the line alone makes lint name its path, and no other.
func (line unsoundLine) isNamed(t *testing.T, file string) {
	if _, err := specs.Parse([]byte(file)); err != nil {
		t.Fatalf("without the line: %v", err)
	}
	if strings.Count(file, line.is) == 0 {
		t.Fatalf("the file does not hold %q", line.is)
	}
	_, err := specs.Parse([]byte(strings.Replace(file, line.is, line.becomes, 1)))
	var paths []string
	for _, fault := range specs.Faults(err) {
		paths = append(paths, fault.Path)
	}
	if paths = slices.Compact(paths); !slices.Equal(paths, []string{line.named}) {
		t.Errorf("got %q, want %q: %v", paths, line.named, err)
	}
	if testing.Verbose() {
		t.Log(err)
	}
}

// A dialect that does not say its identity has what its original data elements name.
func TestTheIdentityIsWhatOriginalDataElementsName(t *testing.T) {
	for name, want := range map[string][]int{ascii: {7, 11, 41}, iso93: {11, 12, 41}} {
		dialect, err := specs.Parse([]byte(strings.Replace(read(t, name), "\nidentity: [11, 12, 41]\n", "\n", 1)))
		if err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(dialect.Identity, want) {
			t.Errorf("%s: got %v, want %v", name, dialect.Identity, want)
		}
	}
}

// What is not built in, and sound: nothing of it may be named.
func TestLintTakesWhatIsSound(t *testing.T) {
	for _, line := range []unsoundLine{
		{"an identity with the merchant", ascii, "[3, 4, 7, 11, 41,", "[3, 4, 7, 11, 41, 42,", "\nidentity: [7, 11, 41, 42]\nechoed:"},
		{"an identity of STAN and time alone", ascii, "\nechoed:", "\nechoed:", "\nidentity: [7, 11]\nechoed:"},
		{"a match without the terminal", ascii, "transaction: [7, 11, 41]", "transaction: [7, 11]", "\nechoed:"},
		{"a match with the RRN", ascii, "transaction: [7, 11, 41]", "transaction: [11, 37]", "\nechoed:"},
		{"a match of the dialogue by its code", ascii, "network_management: [7, 11]", "network_management: [11, 70]", "\nechoed:"},
		{"DE 90 of variable length", ascii, "90: { type: String, length: 42, enc: Digits, prefix: Fixed,", "90: { type: String, length: 99, enc: Digits, prefix: ASCII.LL,", "\nechoed:"},
		{"an element carried by the dialogue", ascii, accepted, accepted + "\n  carries: { 33: \"123456\", 41: \"TERM0001\" }", "\nechoed:"},
		{"other elements hidden", ascii, "\nadvices:", "\nsensitive: { 15: hidden, 44: hidden, 54: hidden, 60: pans }\nadvices:", "\nechoed:"},
		{"a type that acquirerd does not serve", ascii, `  "0820": {`, `  "0222": { mandatory: [7, 11] }` + "\n" + `  "0820": {`, "\nechoed:"},
		{"advices that are answered with another approval", ascii, notFound, `original_not_found: "25", accepted: "08" }`, "\nechoed:"},
		{"a party of financial requests alone", ascii, "\n  \"0100\":", "\n  #\"0100\":", "\nechoed:"},
		{"a key in an element that is hidden", ascii, "element: 48, cryptogram: 16", "element: 54, cryptogram: 16", "\nsensitive: { 54: hidden }\nechoed:"},
	} {
		t.Run(line.what, func(t *testing.T) {
			file := read(t, line.dialect)
			if !strings.Contains(file, line.is) {
				t.Fatalf("the file does not hold %q", line.is)
			}
			file = strings.Replace(strings.ReplaceAll(file, line.is, line.becomes), "\nechoed:", line.named, 1)
			if _, err := specs.Parse([]byte(file)); err != nil {
				t.Error(err)
			}
		})
	}
}
