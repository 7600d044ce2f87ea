package specs_test

import (
	"os"
	"slices"
	"strings"
	"testing"

	"acquirerd/specs"
)

// A bad line of a dialect: what is changed in iso87-ascii, and the faults that are named then, path and text.
type badLine struct {
	name    string
	changes []string // old, new, old, new …
	want    []string
	more    bool // there are others, which follow from it
}

// Lines of iso87-ascii that changes begin from.
const (
	framingLine = `framing: { length: ascii-4, max: 4096 }`
	field12     = `12: { type: String, length: 6, enc: Digits, prefix: Fixed, description: "time, local transaction" }`
	field39     = `39: { type: String, length: 2, enc: Text, prefix: Fixed,`
	field52     = `52: { type: Binary, length: 8, enc: HexText, prefix: Fixed,`
	field64     = `64: { type: Binary, length: 8, enc: HexText, prefix: Fixed,`
	field48     = `48: { type: String, length: 999, enc: Text, prefix: ASCII.LLL,`
	field1      = `1: { type: Bitmap, length: 8, enc: HexText, prefix: Fixed, description`
	request     = `"0100": { mandatory: [3, 4, 7, 11, 41, 49], one_of: [2, 35] }`
	answerLine  = `"0110": { mandatory: [7, 11, 39] }`
	keyData     = `key_data: { element: 48, cryptogram: 16, check_value: 3 }`
	matchLine   = `match: { transaction: [7, 11, 41], network_management: [7, 11] }`
	echoedLine  = `echoed: [2, 3, 4, 11, 41, 42, 49]`
	base1Value  = `header: { form: base1, value: "16010200000000000000000000000000000000000000" }`
)

var badLines = []badLine{
	{name: "a KSN of no form", changes: []string{matchLine, matchLine + "\nkey_serial_number: { element: 53 }"}, want: []string{`key_serial_number.form: "" is not one of binary, hex`}},
	{name: "a KSN in no field", changes: []string{matchLine, matchLine + "\nkey_serial_number: { element: 65, form: hex }"}, want: []string{"key_serial_number.element: field 65 is not in fields"}},
	{name: "a KSN without an element", changes: []string{matchLine, matchLine + "\nkey_serial_number: { form: hex }"}, want: []string{"key_serial_number.element: field 0 is not in fields"}},
	{name: "a KSN in a field that is shown", changes: []string{matchLine, matchLine + "\nkey_serial_number: { element: 54, form: hex }"}, want: []string{"key_serial_number.element: field 54 is shown"}},
	{name: "a KSN in a field that is shown but for card numbers", changes: []string{matchLine, matchLine + "\nsensitive: { 48: pans }\nkey_serial_number: { element: 48, form: hex }"},
		more: true, want: []string{"key_serial_number.element: field 48 is shown"}},
	{name: "a KSN in the PIN block", changes: []string{matchLine, matchLine + "\nkey_serial_number: { element: 52, form: binary }"}, want: []string{"key_serial_number.element: field 52 holds something else"}},
	{name: "a KSN in what names an original", more: true, changes: []string{matchLine, matchLine + "\nkey_serial_number: { element: 90, form: hex }"}, want: []string{"key_serial_number.element: field 90 holds something else"}},
	{name: "a KSN that is to be stored", changes: []string{matchLine, matchLine + "\nkey_serial_number: { element: 62, form: hex }", "stored: [14, 55,", "stored: [14, 55, 62,"},
		want: []string{"key_serial_number.element: field 62 is in advices.stored"}},
	{name: "a KSN of bytes in text", changes: []string{matchLine, matchLine + "\nkey_serial_number: { element: 62, form: binary }"}, want: []string{`fields.62.type: "String" is not of key_serial_number.form, which is binary`}},
	{name: "a KSN of text in bytes", changes: []string{matchLine, matchLine + "\nkey_serial_number: { element: 55, form: hex }"}, more: true, want: []string{"key_serial_number.element: field 55 holds something else"}},
	{name: "a KSN in digits", changes: []string{matchLine, matchLine + "\nkey_serial_number: { element: 53, form: hex }"}, want: []string{"fields.53: does not hold a key serial number"}},
	{name: "a KSN in a field that is too short", changes: []string{matchLine, matchLine + "\nkey_serial_number: { element: 62, form: hex }", "  62: { type: String, length: 999,", "  62: { type: String, length: 15,"},
		want: []string{"fields.62: does not hold a key serial number"}},
	{name: "a KSN in a field that is too short in one type", changes: []string{matchLine, matchLine + "\nkey_serial_number: { element: 62, form: hex }",
		request, `"0100": { mandatory: [3, 4, 7, 11, 41, 49], one_of: [2, 35], fields: { 62: { type: String, length: 11, enc: Text, prefix: Fixed, description: x } } }`},
		want: []string{"messages.0100.fields.62: does not hold a key serial number"}},

	{name: "no name", changes: []string{"name: iso87-ascii", `name: ""`}, want: []string{"name: missing"}},
	{name: "no version", changes: []string{`version: "2"`, `version: ""`}, want: []string{"version: missing"}},
	{name: "an edition that is none", changes: []string{"standard: iso87", "standard: iso03"}, want: []string{`standard: "iso03" is not one of iso87, iso93`}},
	{name: "an edition that needs other fields", changes: []string{"standard: iso87", "standard: iso93", "  24: {", "  #24: {"}, more: true,
		want: []string{"fields: 24 is missing", "messages.0100: does not begin with 1, as MTIs of iso93 do", "reversal.type: does not begin with 1"}},
	{name: "what is no YAML", changes: []string{"name: iso87-ascii", "name: [iso87"}, want: []string{"reading: "}},
	{name: "a key that is not known", changes: []string{"name: iso87-ascii", "name: iso87-ascii\nnom: x"}, want: []string{"reading: line "}},
	{name: "a second document", changes: []string{"name: iso87-ascii", "name: iso87-ascii\n---\nname: x"}, want: []string{"reading: more than one document"}},

	{name: "a length that is none", changes: []string{framingLine, `framing: { length: ascii-5, max: 4096 }`}, want: []string{`framing.length: "ascii-5" is not one of ascii-4,`}},
	{name: "a maximum over the length's own", changes: []string{"max: 4096", "max: 10000"}, want: []string{"framing.max: 10000 is not within 1 to 9999"}},
	{name: "a maximum over what remains beside the trailer", changes: []string{"max: 4096", `max: 9999, trailer: "03", trailer_counted: true`},
		want: []string{"framing.max: 9999 is not within 1 to 9998"}},
	{name: "a long trailer", changes: []string{"max: 4096", `max: 4096, trailer: "030303030303030303"`}, want: []string{"framing.trailer: is longer than 8 bytes"}},
	{name: "a trailer that is not hexadecimal", changes: []string{"max: 4096", `max: 4096, trailer: "0x"`}, want: []string{"reading: line "}},
	{name: "nothing that ends a message", changes: []string{framingLine, "framing: { length: none, max: 4096 }", `55: { type: Binary, length: 999, enc: Binary,`,
		`55: { type: Binary, length: 499, enc: HexText,`}, want: []string{"framing.trailer: missing: nothing else"}},
	{name: "an inclusive length of none", changes: []string{framingLine, `framing: { length: none, max: 4096, inclusive: true, trailer: "03" }`,
		`55: { type: Binary, length: 999, enc: Binary,`, `55: { type: Binary, length: 499, enc: HexText,`}, want: []string{"framing.length: none counts nothing"}},
	{name: "a trailer that is counted and not there", changes: []string{"max: 4096", "max: 4096, trailer_counted: true"}, want: []string{"framing.trailer: missing: trailer_counted"}},
	{name: "digits with the low byte first", changes: []string{"max: 4096", "max: 4096, little_endian: true"}, want: []string{"framing.little_endian: is only of a binary"}},
	{name: "a keep-alive that is none", changes: []string{"max: 4096", "max: 4096, keepalive: kept"}, want: []string{`framing.keepalive: "kept" is not one of`}},
	{name: "a keep-alive without a length", changes: []string{framingLine, `framing: { length: none, max: 4096, keepalive: ignored, trailer: "03" }`,
		`55: { type: Binary, length: 999, enc: Binary,`, `55: { type: Binary, length: 499, enc: HexText,`}, want: []string{`framing.keepalive: "ignored" needs a length`}},
	{name: "a value that can hold the trailer", changes: []string{framingLine, `framing: { length: none, max: 4096, trailer: "03" }`},
		want: []string{"fields.55.enc: Binary can hold the trailer"}},
	{name: "a length that can hold the trailer", changes: []string{framingLine, `framing: { length: none, max: 4096, trailer: "03" }`,
		`55: { type: Binary, length: 999, enc: Binary, prefix: ASCII.LLL`, `55: { type: Binary, length: 499, enc: HexText, prefix: BCD.LLL`},
		want: []string{"fields.55.prefix: BCD.LLL can hold the trailer"}},
	{name: "a trailer of text", changes: []string{framingLine, `framing: { length: none, max: 4096, trailer: "2A" }`,
		`55: { type: Binary, length: 999, enc: Binary,`, `55: { type: Binary, length: 499, enc: HexText,`}, want: []string{"framing.trailer: is text"}},

	{name: "a value of no header", changes: []string{framingLine, framingLine + "\nheader: { value: \"60\" }"}, want: []string{"header.value: is only of a header"}},
	{name: "a header without a value", changes: []string{framingLine, framingLine + "\nheader: { form: literal }"}, want: []string{"header.value: is not 1 to 64 bytes"}},
	{name: "a short TPDU", changes: []string{framingLine, framingLine + "\nheader: { form: tpdu, value: \"60000000\" }"}, want: []string{"header.value: is not 5 to 64 bytes"}},
	{name: "a short BASE I header", changes: []string{framingLine, framingLine + "\nheader: { form: base1, value: \"16\" }"}, want: []string{"header.value: is not 22 bytes"}},
	{name: "a message too long for its header", changes: []string{framingLine, "framing: { length: binary-4, max: 70000 }\n" + base1Value},
		want: []string{"framing.max: 70000 does not fit the two bytes"}},
	{name: "a header of no form", changes: []string{framingLine, framingLine + "\nheader: { form: nii, value: \"60\" }"}, want: []string{`header.form: "nii" is not one of`}},

	{name: "a third bit map", changes: []string{"fields:\n", "fields:\n  65: { type: String, length: 1, enc: Digits, prefix: Fixed, description: x }\n"}, want: []string{"fields.65: is the announcement"}},
	{name: "an element over 128", changes: []string{"fields:\n", "fields:\n  129: { type: String, length: 1, enc: Digits, prefix: Fixed, description: x }\n"}, want: []string{"fields.129: is not a data element"}},
	{name: "a needed field that is missing", more: true, changes: []string{"  49: { type: String, length: 3, enc: Text, prefix: Fixed,", "  50: { type: String, length: 3, enc: Text, prefix: Fixed,",
		"  50: { type: String, length: 3, enc: Text, prefix: Fixed, description: \"currency code, settlement\" }\n", "", matchLine, matchLine,
		echoedLine, "echoed: [2, 3, 4, 11, 41, 42]"}, want: []string{"fields: 49 is missing", "messages.0100.mandatory: field 49 is not in fields"}},
	{name: "a field that ISO 8583:1987 needs", changes: []string{"  " + field12 + "\n", ""}, want: []string{"fields: 12 is missing"}},
	{name: "a field that does not fit the bit map", more: true, changes: []string{field1, `1: { type: Bitmap, length: 8, enc: HexText, prefix: Fixed, extent: fixed, description`},
		want: []string{"fields.100: does not fit the bit map"}},
	{name: "a field of one type that does not fit the bit map", more: true, changes: []string{field1, `1: { type: Bitmap, length: 8, enc: HexText, prefix: Fixed, extent: fixed, description`,
		answerLine, `"0110": { mandatory: [7, 11, 39], fields: { 66: { type: String, length: 1, enc: Text, prefix: Fixed, description: x } } }`},
		want: []string{"messages.0110.fields.66: does not fit the bit map"}},
	{name: "a bit map elsewhere", changes: []string{"  46: { type: String, length: 999, enc: Text, prefix: ASCII.LLL,", `  46: { type: Bitmap, length: 8, enc: Binary, prefix: Fixed,`}, want: []string{"fields.46.type: the bit map is field 1"}},
	{name: "a type that is none", changes: []string{field48, `48: { type: Text, length: 999, enc: Text, prefix: ASCII.LLL,`}, want: []string{`fields.48.type: "Text" is not one of`}},
	{name: "an encoder that is none", changes: []string{field48, `48: { type: String, length: 999, enc: Latin, prefix: ASCII.LLL,`}, want: []string{`fields.48.enc: "Latin" is not known`}},
	{name: "bytes as text", changes: []string{field48, `48: { type: String, length: 999, enc: Binary, prefix: ASCII.LLL,`}, want: []string{"fields.48.enc: Binary is not for String"}},
	{name: "a long field", changes: []string{field48, `48: { type: String, length: 10000, enc: Text, prefix: ASCII.LLLLLL,`}, want: []string{"fields.48.length: 10000 is not within 1 to 9999"}},
	{name: "a prefix that is none", changes: []string{field48, `48: { type: String, length: 999, enc: Text, prefix: ASCII.X,`}, want: []string{`fields.48.prefix: "ASCII.X" is not known`}},
	{name: "an MTI with a length", changes: []string{`0: { type: String, length: 4, enc: Digits, prefix: Fixed,`, `0: { type: String, length: 4, enc: Digits, prefix: ASCII.L,`},
		want: []string{"fields.0.prefix: must be Fixed"}},
	{name: "a least length of a fixed field", changes: []string{field39, `39: { type: String, length: 2, least: 1, enc: Text, prefix: Fixed,`}, want: []string{"fields.39.prefix: Fixed has no counts"}},
	{name: "a length that does not fit its prefix", changes: []string{field48, `48: { type: String, length: 999, enc: Text, prefix: ASCII.LL,`}, want: []string{"fields.48.length: 999 does not fit the prefix"}},
	{name: "a length that does not fit with itself", changes: []string{field48, `48: { type: String, length: 999, inclusive: true, enc: Text, prefix: ASCII.LLL,`},
		want: []string{"fields.48.length: 999 does not fit the prefix"}},
	{name: "a least length over the length", more: true, changes: []string{field48, `48: { type: String, length: 999, least: 1000, enc: Text, prefix: ASCII.LLL,`}, want: []string{"fields.48.least: 1000 is not within"}},
	{name: "a count of nothing", changes: []string{field48, `48: { type: String, length: 999, counts: nibbles, enc: Text, prefix: ASCII.LLL,`}, want: []string{`fields.48.counts: "nibbles" is not one of`}},
	{name: "a filling that is none", changes: []string{field39, `39: { type: String, length: 2, pad: left-space, enc: Text, prefix: Fixed,`}, want: []string{`fields.39.pad: "left-space" is not one of`}},
	{name: "a filling of a variable length", changes: []string{field48, `48: { type: String, length: 999, pad: left-zero, enc: Text, prefix: ASCII.LLL,`}, want: []string{"fields.48.pad: is only of text"}},
	{name: "TLV in text", changes: []string{field48, `48: { type: String, length: 999, content: ber-tlv, enc: Text, prefix: ASCII.LLL,`}, want: []string{`fields.48.content: "ber-tlv" is not ber-tlv of a Binary`}},
	{name: "an MTI of three digits", changes: []string{`0: { type: String, length: 4,`, `0: { type: String, length: 3,`}, want: []string{"fields.0.length: the MTI has four digits"}},
	{name: "an extent that is none", changes: []string{field1, `1: { type: Bitmap, length: 8, enc: HexText, prefix: Fixed, extent: long, description`}, want: []string{`fields.1.extent: "long" is not one of`}},
	{name: "a bit map of 16 bytes without an extent", changes: []string{field1, `1: { type: Bitmap, length: 16, enc: HexText, prefix: Fixed, description`}, want: []string{"fields.1.length: a bit map has 8 bytes"}},
	{name: "an extent of a text", changes: []string{field48, `48: { type: String, length: 999, extent: auto, enc: Text, prefix: ASCII.LLL,`}, want: []string{"fields.48.extent: is only of the bit map"}},
	{name: "a PIN block in text", changes: []string{field52, `52: { type: String, length: 16, enc: Text, prefix: Fixed,`}, want: []string{`fields.52.type: "String" is not Binary`}},
	{name: "half a PIN block", changes: []string{field52, `52: { type: Binary, length: 4, enc: HexText, prefix: Fixed,`}, want: []string{"fields.52.length: holds neither the 8 bytes"}},
	{name: "more than a PIN block, always", changes: []string{field52, `52: { type: Binary, length: 24, enc: HexText, prefix: Fixed,`}, want: []string{"fields.52.length: holds neither"}},
	{name: "a MAC in text", changes: []string{field64, `64: { type: String, length: 16, enc: Text, prefix: Fixed,`, "fields:\n", "mac: { place: last }\nfields:\n"},
		want: []string{`fields.64.type: "String" is not Binary`}},
	{name: "chip data in text that are to be stored", changes: []string{`55: { type: Binary, length: 999, enc: Binary,`, `55: { type: String, length: 999, enc: Text,`},
		want: []string{`fields.55.type: "String" is not Binary`}},

	{name: "a message type that is none", changes: []string{request, `"01X0": { mandatory: [3] }`}, want: []string{"messages.01X0: is not an MTI"}},
	{name: "a message type of the other edition", changes: []string{request, `"1100": { mandatory: [3] }`}, want: []string{"messages.1100: does not begin with 0"}},
	{name: "a mandatory field that is none", changes: []string{answerLine, `"0110": { mandatory: [7, 65] }`}, want: []string{"messages.0110.mandatory: field 65 is not in fields"}},
	{name: "one of fields that are none", changes: []string{answerLine, `"0110": { one_of: [1] }`}, want: []string{"messages.0110.one_of: field 1 is not in fields"}},
	{name: "a forbidden field that is none", changes: []string{answerLine, `"0110": { forbidden: [65] }`}, want: []string{"messages.0110.forbidden: field 65 is not in fields"}},
	{name: "a forbidden field that is mandatory", changes: []string{answerLine, `"0110": { mandatory: [7], forbidden: [7] }`}, want: []string{"messages.0110.forbidden: field 7 is mandatory"}},
	{name: "a condition on a field that is none", changes: []string{answerLine, `"0110": { mandatory: [7], when: [ { if: 65, then: [7] } ] }`}, want: []string{"messages.0110.when[0].if: field 65"}},
	{name: "a condition for a field that is none", changes: []string{answerLine, `"0110": { mandatory: [7], when: [ { if: 7, then: [65] } ] }`}, want: []string{"messages.0110.when[0].then: field 65"}},
	{name: "a condition for nothing", changes: []string{answerLine, `"0110": { mandatory: [7], when: [ { if: 7, then: [] } ] }`}, want: []string{"messages.0110.when[0].then: missing"}},
	{name: "a response code of another form in one type", changes: []string{answerLine, `"0110": { mandatory: [7], fields: { 39: { type: String, length: 3, enc: Digits, prefix: Fixed, description: x } } }`},
		want: []string{"messages.0110.fields.39: is not one that can differ"}},
	{name: "a fault of a field of one type", changes: []string{answerLine, `"0110": { mandatory: [7], fields: { 48: { type: String, length: 0, enc: Text, prefix: Fixed, description: x } } }`},
		want: []string{"messages.0110.fields.48.length: 0 is not within"}},

	{name: "a key of the STAN alone", changes: []string{"transaction: [7, 11, 41]", "transaction: [11]"}, want: []string{"match.transaction: must hold 11"}},
	{name: "a key without the STAN", changes: []string{"network_management: [7, 11]", "network_management: [7, 70]"}, want: []string{"match.network_management: must hold 11"}},
	{name: "a key of card data", changes: []string{"transaction: [7, 11, 41]", "transaction: [2, 7, 11]"}, want: []string{"match.transaction: field 2 may hold card data"}},
	{name: "an identity of card data", changes: []string{echoedLine, echoedLine + "\nidentity: [7, 11, 48]"}, want: []string{"identity: field 48 may hold card data"}},
	{name: "an identity of the STAN alone", changes: []string{echoedLine, echoedLine + "\nidentity: [11]"}, want: []string{"identity: must hold 11"}},
	{name: "an identity of fields that are none", changes: []string{echoedLine, echoedLine + "\nidentity: [7, 11, 65]"}, want: []string{"identity: field 65 is not in fields"}},
	{name: "an echo of a field that is none", changes: []string{echoedLine, "echoed: [65]"}, want: []string{"echoed: field 65"}},
	{name: "dropped fields that are none", changes: []string{echoedLine, echoedLine + "\ndropped: [65]"}, want: []string{"dropped: field 65 is not in fields"}},
	{name: "a transaction without its amount", changes: []string{echoedLine, echoedLine + "\ndropped: [4]"}, want: []string{"dropped: field 4 is one that a transaction"}},

	{name: "values of a field that is none", changes: []string{echoedLine, echoedLine + "\nvalues: { 65: { \"1\": \"1\" } }"}, more: true, want: []string{"values.65: field 65 is not in fields"}},
	{name: "values of an amount", changes: []string{echoedLine, echoedLine + "\nvalues: { 4: { \"000000000001\": \"000000000001\" } }"}, want: []string{"values.4: is one that all parties"}},
	{name: "values of what is dropped", changes: []string{echoedLine, echoedLine + "\ndropped: [22]\nvalues: { 22: { \"051\": \"051\" } }"}, want: []string{"values.22: is dropped"}},
	{name: "values of bytes", changes: []string{echoedLine, echoedLine + "\nvalues: { 55: { \"1\": \"1\" } }"}, want: []string{"values.55: is of text"}},
	{name: "no values", changes: []string{echoedLine, echoedLine + "\nvalues: { 22: {} }"}, want: []string{"values.22: missing"}},
	{name: "a value of another length", changes: []string{echoedLine, echoedLine + "\nvalues: { 22: { \"0510\": \"051\" } }"}, want: []string{`values.22.0510: "0510" does not fit`}},
	{name: "a value of other characters", changes: []string{echoedLine, echoedLine + "\nvalues: { 22: { \"05A\": \"051\" } }"}, want: []string{`values.22.05A: "05A" does not fit`}},
	{name: "a value that says nothing", changes: []string{echoedLine, echoedLine + "\nvalues: { 22: { \"051\": \"\" } }"}, want: []string{`values.22.051: "051" does not fit`}},

	{name: "a dialogue of no type", changes: []string{`type: "0800"`, `type: "800"`}, want: []string{"network_management.type: is not an MTI"}},
	{name: "a dialogue in a field that is none", changes: []string{"element: 70", "element: 65"}, want: []string{"network_management.element: field 65"}},
	{name: "a code that does not fit its field", changes: []string{`sign_on: "001"`, `sign_on: "1"`}, want: []string{`network_management.sign_on: "1" does not fit field 70`}},
	{name: "a code of other characters than its field's", changes: []string{`sign_on: "001"`, `sign_on: "ABC"`}, want: []string{`network_management.sign_on: "ABC" does not fit field 70`}},
	{name: "a code twice", changes: []string{`sign_off: "002"`, `sign_off: "001"`}, want: []string{`network_management.sign_off: "001" is sign_on already`}},
	{name: "a demand that does not fit", changes: []string{keyData, keyData + "\n  demands: { echo: \"9999\" }"}, want: []string{`network_management.demands.echo: "9999" does not fit`}},
	{name: "no echo", changes: []string{`  echo: "301"` + "\n", ""}, want: []string{"network_management.echo: missing"}},
	{name: "nothing that accepts", changes: []string{`accepted: ["00"]`, "accepted: []"}, want: []string{"network_management.accepted: missing"}},
	{name: "an element of the dialogue that is none", changes: []string{keyData, keyData + "\n  carries: { 65: x }"}, want: []string{"network_management.carries: field 65"}},
	{name: "an element of the dialogue that does not fit", changes: []string{keyData, keyData + "\n  carries: { 32: x }"}, want: []string{"network_management.carries.32: does not fit field 32"}},
	{name: "a key in no field", changes: []string{keyData, "key_data: { element: 65, cryptogram: 16, check_value: 3 }"}, want: []string{"network_management.key_data.element: field 65"}},
	{name: "a key of no length", changes: []string{keyData, "key_data: { element: 48, cryptogram: 17, check_value: 3 }"}, want: []string{"network_management.key_data.cryptogram: 17 is not"}},
	{name: "a key of less than nothing", changes: []string{keyData, "key_data: { element: 48, cryptogram: -17, check_value: 3 }"}, want: []string{"network_management.key_data.cryptogram: -17 is not"}},
	{name: "a key of more than there is", changes: []string{keyData, "key_data: { element: 48, cryptogram: 4611686018427387904, check_value: 3 }"}, want: []string{"network_management.key_data.cryptogram: 4611686018427387904 is not"}},
	{name: "a field of more than there is", more: true, changes: []string{field39, `39: { type: String, length: 4611686018427387904, pad: left-zero, enc: Text, prefix: Fixed,`}, want: []string{"fields.39.length: 4611686018427387904 is not within"}},
	{name: "a code in a field of more than there is", changes: []string{`70: { type: String, length: 3,`, `70: { type: String, length: 4611686018427387904, pad: left-zero,`},
		want: []string{"fields.70.length: 4611686018427387904 is not within"}},
	{name: "a check value of no length", changes: []string{keyData, "key_data: { element: 48, cryptogram: 16, check_value: 4 }"}, want: []string{"network_management.key_data.check_value: 4 is not"}},
	{name: "a request for a key that does not fit", changes: []string{`key_request: "161"`, `key_request: "16"`}, want: []string{`network_management.key_request: "16" does not fit field 70`}},
	{name: "a request for a key that is an echo", changes: []string{`key_request: "161"`, `key_request: "301"`}, want: []string{`network_management.key_request: "301" is echo already`}},
	{name: "a request for a key that cannot come", changes: []string{`  key_change: "101"` + "\n", ""}, want: []string{"network_management.key_request: the new key would never come"}},
	{name: "a key in an answer to nothing", changes: []string{`  key_request: "161"` + "\n", "", keyData, "key_data: { element: 48, cryptogram: 16, check_value: 3, in_answer: true }"},
		want: []string{"network_management.key_data.in_answer: is only of"}},
	{name: "a key that its answer has no room for", changes: []string{keyData, "key_data: { element: 48, cryptogram: 16, check_value: 3, in_answer: true }",
		`"0810": { mandatory: [7, 11, 39] }`, `"0810": { mandatory: [7, 11, 39], fields: { 48: { type: String, length: 16, enc: Text, prefix: Fixed, description: x } } }`}, more: true,
		want: []string{"network_management.key_data.element: field 48 does not hold cryptogram"}},
	{name: "a code for keys out of step that approves", changes: []string{`partial: ["10"]`, "partial: [\"10\"]\nkey_sync: [\"00\"]"}, want: []string{`key_sync: "00" approves`}},
	{name: "a code for keys out of step twice", changes: []string{`partial: ["10"]`, "partial: [\"10\"]\nkey_sync: [\"63\", \"63\"]"}, want: []string{`key_sync: "63" stands there already`}},
	{name: "a code for keys out of step that does not fit", changes: []string{`partial: ["10"]`, "partial: [\"10\"]\nkey_sync: [\"917\"]"}, want: []string{`key_sync: "917" is not 2 characters`}},
	{name: "a key change without a place for the key", changes: []string{"  " + keyData + "\n", ""}, want: []string{"network_management.key_data: missing"}},

	{name: "nothing that approves", changes: []string{`approving: ["00", "08", "10", "11", "85"]`, "approving: []", `partial: ["10"]`, "partial: []"}, want: []string{"approving: missing"}},
	{name: "a code of another length", changes: []string{`approving: ["00",`, `approving: ["000",`}, want: []string{`approving: "000" is not 2 characters long`}},
	{name: "a code of other characters", changes: []string{field39, `39: { type: String, length: 2, enc: Digits, prefix: Fixed,`, `"85"]`, `"Y1"]`}, want: []string{`approving: "Y1" does not fit field 39`}},
	{name: "a part where the whole is first", changes: []string{`approving: ["00", "08", "10", "11", "85"]`, `approving: ["10", "00"]`}, want: []string{`approving: begins with "10"`}},
	{name: "a part that is no approval", changes: []string{`partial: ["10"]`, `partial: ["51"]`}, want: []string{`partial: "51" is not in approving`}},
	{name: "an answer without a code", changes: []string{`unknown: "91"`, `unknown: ""`}, want: []string{`answers.unknown: "" is not 2 characters long`}},
	{name: "an answer to advices of another length", changes: []string{`original_not_found: "25" }`, `original_not_found: "25", accepted: "000" }`}, more: true, want: []string{`answers.accepted: "000" is not 2 characters long`}},
	{name: "codes that ISO 8583:1987 does not have", more: true, changes: []string{field39, `39: { type: String, length: 3, enc: Digits, prefix: Fixed,`}, want: []string{"response_codes: missing", `approving: "00" is not 3`}},
	{name: "a function code of no type", changes: []string{echoedLine, echoedLine + "\nfunction_codes: { \"100\": \"200\" }"}, want: []string{"function_codes.100: is not an MTI"}},
	{name: "a function code that is none", changes: []string{echoedLine, echoedLine + "\nfunction_codes: { \"0100\": \"20\" }"}, want: []string{"function_codes.0100: is not three digits"}},
	{name: "a function code that does not fit", changes: []string{echoedLine, echoedLine + "\nfunction_codes: { \"0100\": \"200\" }",
		`24: { type: String, length: 3,`, `24: { type: String, length: 4,`}, want: []string{"function_codes.0100: does not fit field 24"}},
	{name: "a meaning that is none", changes: []string{echoedLine, echoedLine + "\n" + withCodes(`"51": "051"`)}, want: []string{`response_codes.51: "051" is not two characters long`}},
	{name: "a decline that is told as an approval", changes: []string{echoedLine, echoedLine + "\n" + withCodes(`"51": "00"`)}, want: []string{`response_codes.51: one of "51" and "00" approves`}},
	{name: "an approval that has no meaning", changes: []string{echoedLine, echoedLine + "\nresponse_codes: { \"00\": \"00\", \"08\": \"08\", \"10\": \"10\", \"11\": \"11\", \"91\": \"91\" }"},
		want: []string{`response_codes: "85" is missing: it approves`}},
	{name: "an unknown that has no meaning", changes: []string{echoedLine, echoedLine + "\nresponse_codes: { \"00\": \"00\", \"08\": \"08\", \"10\": \"10\", \"11\": \"11\", \"85\": \"85\" }"},
		want: []string{`response_codes: "91" is missing: it is answers.unknown`}},

	{name: "a reversal of another type", changes: []string{`type: "0420"`, `type: "0200"`}, want: []string{`reversal.type: "0200" is neither`}},
	{name: "numbers of none", changes: []string{"numbers: original", "numbers: old"}, want: []string{`reversal.numbers: "old" is not original or new`}},
	{name: "original data of times without a date", more: true, changes: []string{"original: iso87-de90", "original: iso93-de56"}, want: []string{"fields.12: is not text of 12 digits"}},
	{name: "original data that do not fit", changes: []string{`90: { type: String, length: 42,`, `90: { type: String, length: 41,`}, want: []string{"reversal.original: field 90 does not hold 42"}},
	{name: "original data of no layout", changes: []string{"original: iso87-de90", "original: de90"}, want: []string{`reversal.original: "de90" is not one of`}},
	{name: "replacement amounts without a field", changes: []string{"replacement: iso87-de95", "replacement: iso93-de30", `30: { type: String, length: 9,`, `65: { type: String, length: 9,`},
		want: []string{`reversal.replacement: "iso93-de30" needs the function codes`, "reversal.replacement: field 30 is not in fields", "fields.65"}},
	{name: "replacement amounts that do not fit", changes: []string{`95: { type: String, length: 42,`, `95: { type: String, length: 40,`}, want: []string{"reversal.replacement: field 95 does not hold 42"}},
	{name: "replacement amounts of no layout", changes: []string{"replacement: iso87-de95", "replacement: de95"}, want: []string{`reversal.replacement: "de95" is not one of`}},
	{name: "an authorization id of neither kind", changes: []string{"replacement: iso87-de95", "replacement: iso87-de95\n  authorization_id: kept"}, want: []string{`reversal.authorization_id: "kept" is not`}},
	{name: "a reversal that nothing settles", changes: []string{`acknowledged: ["00"]`, "acknowledged: []"}, want: []string{"reversal.acknowledged: missing"}},
	{name: "a code of two meanings", changes: []string{`poison: ["12", "30"]`, `poison: ["12", "25"]`}, want: []string{`reversal.poison: "25" means something else already`}},
	{name: "a code of a reversal of another length", changes: []string{`not_found: ["25"]`, `not_found: ["254"]`}, want: []string{`reversal.not_found: "254" is not 2`}},
	{name: "an unknown original that goes nowhere", changes: []string{"unknown_original: answer", "unknown_original: drop"}, want: []string{`reversal.unknown_original: "drop" is not`}},

	{name: "a stored field that is none", changes: []string{"stored: [14, 55, 102, 103]", "stored: [14, 65]"}, want: []string{"advices.stored: field 65"}},
	{name: "a mask of a field that is none", changes: []string{echoedLine, echoedLine + "\nsensitive: { 65: hidden }"}, want: []string{"sensitive: field 65"}},
	{name: "a number that is hidden", changes: []string{echoedLine, echoedLine + "\nsensitive: { 11: hidden }"}, want: []string{"sensitive.11: is one by which messages are found"}},
	{name: "a mask that shows a track", changes: []string{echoedLine, echoedLine + "\nsensitive: { 35: pans }"}, want: []string{`sensitive.35: "pans" is only of private`}},
	{name: "a mask that looks for a card number in bytes", changes: []string{echoedLine, echoedLine + "\nsensitive: { 47: pans }",
		"  47: { type: String, length: 999, enc: Text, prefix: ASCII.LLL,", `  47: { type: Binary, length: 999, enc: Binary, prefix: ASCII.LLL,`}, want: []string{`sensitive.47: "pans" finds a card number only in text`}},
	{name: "a mask that is none", changes: []string{echoedLine, echoedLine + "\nsensitive: { 48: clear }"}, want: []string{`sensitive.48: "clear" is not one of`}},
	{name: "a repeat without a MAC", changes: []string{echoedLine, echoedLine + "\nmac: { clear_repeat: true }"}, want: []string{"mac.clear_repeat: is only of a MAC"}},
	{name: "a MAC without a field", changes: []string{echoedLine, echoedLine + "\nmac: { place: last }", "  " + field64, "  #"}, want: []string{"mac.place: field 64"}},
	{name: "a MAC's ways without a MAC", changes: []string{echoedLine, echoedLine + "\nmac: { padding: 2, length: 4, mtis: [\"0100\"] }"},
		want: []string{"mac.padding: is only of a MAC", "mac.length: is only of a MAC", "mac.mtis: is only of a MAC"}},
	{name: "a padding that is none", changes: []string{echoedLine, echoedLine + "\nmac: { place: last, padding: 4 }"}, want: []string{"mac.padding: 4 is not one of"}},
	{name: "a MAC that is too short", changes: []string{echoedLine, echoedLine + "\nmac: { place: last, length: 3 }"}, want: []string{"mac.length: 3 is not 4 to 8 bytes"}},
	{name: "a MAC that has no room", changes: []string{echoedLine, echoedLine + "\nmac: { place: last, length: 5 }", field64, strings.Replace(field64, "length: 8", "length: 4", 1)},
		want: []string{"fields.64.length: does not hold the 5 bytes of a MAC"}},
	{name: "a MAC of a type that is not known", changes: []string{echoedLine, echoedLine + "\nmac: { place: last, mtis: [\"0300\", \"0421\"] }"},
		want: []string{`mac.mtis[0]: "0300" is not in messages`, `mac.mtis[1]: "0421" is a repeat`}},
	{name: "a MAC of a type that nobody answers", changes: []string{echoedLine, echoedLine + "\nmac: { place: last, length: 3, mtis: [\"0620\"] }", answerLine, answerLine + "\n  \"0620\": {}"},
		want: []string{"mac.length: 3 is not 4 to 8 bytes"}},
	{name: "a request with a MAC and an answer without", changes: []string{echoedLine, echoedLine + "\nmac: { place: last, mtis: [\"0100\", \"0110\", \"0400\", \"0430\", \"0810\"] }"},
		want: []string{`mac.mtis[2]: "0400" carries a MAC, and "0410" does not`, `mac.mtis[3]: "0430" carries a MAC, and "0420" does not`,
			`mac.mtis[4]: "0810" carries a MAC, and "0800" does not`}},
	{name: "a MAC as an element", changes: []string{echoedLine, echoedLine + "\nmac: { place: last }", answerLine, `"0110": { mandatory: [7, 11, 39, 64] }`},
		want: []string{"messages.0110: demands a MAC as an element"}},
	{name: "a MAC that is forbidden", changes: []string{echoedLine, echoedLine + "\nmac: { place: last }", answerLine, `"0110": { mandatory: [7, 11, 39], forbidden: [128] }`},
		want: []string{"messages.0110.forbidden: forbids the MAC"}},
	{name: "a code for a wrong MAC that approves", changes: []string{`busy: "96"`, `busy: "96", mac_incorrect: "00"`}, want: []string{`answers.mac_incorrect: "00" approves`}},
	{name: "a MAC of no place", changes: []string{echoedLine, echoedLine + "\nmac: { place: first }"}, want: []string{`mac.place: "first" is not one of`}},
	{name: "a timer beyond a day", changes: []string{echoedLine, echoedLine + "\ntimers: { reply: 25h }"}, want: []string{"timers.reply: 25h0m0s is not within"}},
	{name: "a count of misses that is none", changes: []string{echoedLine, echoedLine + "\ntimers: { echo_misses: -1 }"}, want: []string{"timers.echo_misses: -1 is not within"}},
}

func withCodes(one string) string {
	return `response_codes: { "00": "00", "08": "08", "10": "10", "11": "11", "85": "85", "91": "91", ` + one + ` }`
}

func changed(t *testing.T, text string, changes ...string) string {
	t.Helper()
	for i := 0; i < len(changes); i += 2 {
		if !strings.Contains(text, changes[i]) {
			t.Fatalf("%q is not in the file", changes[i])
		}
		text = strings.Replace(text, changes[i], changes[i+1], 1)
	}
	return text
}

func TestEachBadLineIsNamedWithItsPath(t *testing.T) {
	text, err := os.ReadFile("iso87-ascii.yaml")
	if err != nil {
		t.Fatal(err)
	}
	for _, bad := range badLines {
		t.Run(bad.name, func(t *testing.T) {
			_, err := specs.Parse([]byte(changed(t, string(text), bad.changes...)))
			var got []string
			for _, fault := range specs.Faults(err) {
				got = append(got, fault.Error())
				if fault.Path == "" || fault.Text == "" {
					t.Errorf("a fault without its path: %q", fault)
				}
			}
			for _, want := range bad.want {
				if !slices.ContainsFunc(got, func(line string) bool { return strings.HasPrefix(line, want) }) {
					t.Errorf("got %q, want %q", got, want)
				}
			}
			if len(got) < len(bad.want) || len(got) > len(bad.want) && !bad.more || !slices.IsSorted(got) {
				t.Errorf("got %q, want %d", got, len(bad.want))
			}
		})
	}
}
