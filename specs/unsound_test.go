package specs_test

import (
	"os"
	"strings"
	"testing"

	"acquirerd/specs"
)

// Each of these dialects would lose money, or never work, and not say why: lint has to name it.
func TestLintRefusesADialectThatCannotWork(t *testing.T) {
	for _, row := range []struct{ what, dialect, is, becomes string }{
		{"nothing sent is told as an approval", "iso87-ascii", `not_sent: "91"`, `not_sent: "00"`},
		{"an unknown outcome is told as an approval", "iso87-ascii", `unknown: "91"`, `unknown: "00"`},
		{"a decline is told as an approval", "iso87-ascii", `original_not_found: "25" }`, `original_not_found: "25", declined: "00" }`},
		{"a refusal of the network (base1) is an approval", "visa-like", `format_error: "30"`, `format_error: "00"`},
		{"a missing original is told as an acknowledgement", "iso87-ascii", `original_not_found: "25" }`, `original_not_found: "00" }`},
		{"answers to reversals are not among the messages", "iso87-ascii", `  "0430": { mandatory: [7, 11, 39] }` + "\n", ""},
		{"answers to requests are not among the messages", "iso87-ascii", `  "0110": { mandatory: [7, 11, 39] }` + "\n", ""},
		{"answers of the dialogue are not among the messages", "iso87-ascii", `  "0810": { mandatory: [7, 11, 39] }` + "\n", ""},
		{"reversals are not among the messages", "iso87-ascii", `  "0420": { mandatory: [3, 4, 7, 11, 41, 90], one_of: [2, 35] }` + "\n", ""},
		{"amounts have 10 digits, and comparisons 12", "iso87-ascii", `4: { type: String, length: 12,`, `4: { type: String, length: 10,`},
		{"amounts have 16 digits, and replacements 12", "iso87-ascii", `4: { type: String, length: 12, enc: Digits, prefix: Fixed,`, `4: { type: String, length: 16, pad: left-zero, enc: Digits, prefix: Fixed,`},
		{"STANs have 4 digits", "iso87-ascii", `11: { type: String, length: 6,`, `11: { type: String, length: 4,`},
		{"DE 90 is longer than what is written into it", "iso87-ascii", `90: { type: String, length: 42,`, `90: { type: String, length: 43,`},
		{"DE 95 is longer than what is written into it", "iso87-ascii", `95: { type: String, length: 42,`, `95: { type: String, length: 44,`},
		{"DE 56 is fixed, and its content is not", "iso93-binary", `56: { type: String, length: 35, enc: BCDRight, prefix: BCD.LL,`, `56: { type: String, length: 35, enc: BCDRight, prefix: Fixed,`},
		{"reversals have no function code of their own, and bear that of their original", "iso93-binary", `, "1420": "400", "1421": "400" }`, ` }`},
		{"the identity is not named by DE 56", "iso93-binary", "identity: [11, 12, 41]\n", ""},
		{"the identity is not named by DE 90", "iso87-ascii", "\nechoed:", "\nidentity: [11, 12, 41]\nechoed:"},
		{"the identity has no time: STANs come again", "iso87-ascii", "\nechoed:", "\nidentity: [11, 41]\nechoed:"},
		{"the identity is of sensitive elements, which panic", "iso87-ascii", "\nechoed:", "\nidentity: [2, 7, 11]\nechoed:"},
		{"the identity is of what requests need not have", "iso87-ascii", "\nechoed:", "\nidentity: [7, 11, 60]\nechoed:"},
		{"the match key is the card number", "iso87-ascii", "transaction: [7, 11, 41]", "transaction: [2, 11]"},
		{"the match key is what only an answer has", "iso87-ascii", "transaction: [7, 11, 41]", "transaction: [11, 39]"},
		{"reversals lack DE 3, which the journal does not keep", "iso87-ascii", "\nadvices:", "\nsensitive: { 3: hidden }\nadvices:"},
		{"reversals name no acquirer, which the journal does not keep", "iso87-ascii", "\nadvices:", "\nsensitive: { 32: hidden }\nadvices:"},
		{"DE 56 has no time, which the journal does not keep", "iso93-binary", "identity: [11, 12, 41]\n", "sensitive: { 12: hidden }\n"},
		{"a part loses its replacement amount on the way", "iso87-ascii", "\nechoed:", "\ndropped: [95]\nechoed:"},
		{"an advice loses its original on the way", "iso87-ascii", "\nechoed:", "\ndropped: [90]\nechoed:"},
		{"a header of binary bytes can hold the trailer that ends a message", "iso87-ascii", "framing: { length: ascii-4, max: 4096 }", "framing: { length: none, trailer: \"03\", max: 4096 }\nheader: { form: tpdu, value: \"6003030000\" }"},
		{"a field of a message type can hold the trailer that ends a message", "iso87-ascii", `"0810": { mandatory: [7, 11, 39] }`, `"0810": { mandatory: [7, 11, 39], fields: { 48: { type: Binary, length: 99, enc: Binary, prefix: ASCII.LL, description: "x" } } }`},
		{"what is carried by an 0800 replaces its STAN", "iso87-ascii", `  accepted: ["00"]`, `  accepted: ["00"]` + "\n" + `  carries: { 11: "000001" }`},
		{"what is carried by an 0800 does not fit its field", "iso87-ascii", `  accepted: ["00"]`, `  accepted: ["00"]` + "\n" + `  carries: { 41: "TOOLONGTERMINAL" }`},
		{"new keys do not fit their element", "iso87-ascii", `element: 48, cryptogram: 16`, `element: 38, cryptogram: 16`},
		{"amounts are bytes", "iso87-ascii", `4: { type: String, length: 12, enc: Digits, prefix: Fixed,`, `4: { type: Binary, length: 12, enc: Binary, prefix: Fixed,`},
	} {
		t.Run(row.what, func(t *testing.T) {
			text, err := os.ReadFile(row.dialect + ".yaml")
			if err != nil {
				t.Fatal(err)
			}
			file := string(text)
			if row.what == "a header of binary bytes can hold the trailer that ends a message" || row.what == "a field of a message type can hold the trailer that ends a message" {
				// DE 55 and DE 65 to 128 of this file hold raw bytes: leave out what lint would name for another reason.
				var kept strings.Builder
				for line := range strings.Lines(file) {
					if strings.HasPrefix(line, "  ") && strings.Contains(line, "enc: Binary,") {
						continue
					}
					kept.WriteString(line)
				}
				file = strings.NewReplacer("stored: [14, 55,", "stored: [14,").Replace(kept.String())
				if !strings.Contains(row.becomes, "length: none") {
					file = strings.Replace(file, "framing: { length: ascii-4, max: 4096 }", `framing: { length: none, trailer: "03", max: 4096 }`, 1)
				}
				if _, err := specs.Parse([]byte(strings.Replace(file, "framing: { length: ascii-4, max: 4096 }", `framing: { length: none, trailer: "03", max: 4096 }`, 1))); err != nil {
					t.Fatalf("without the fault: %v", err)
				}
			}
			if !strings.Contains(file, row.is) {
				t.Fatalf("the file does not hold %q", row.is)
			}
			if _, err := specs.Parse([]byte(strings.Replace(file, row.is, row.becomes, 1))); err == nil {
				t.Error("lint has no fault to name")
			} else if testing.Verbose() {
				t.Log(err)
			}
		})
	}
}
