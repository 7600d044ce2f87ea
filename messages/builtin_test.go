package messages_test

import (
	"encoding/hex"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"acquirerd/messages"
	"acquirerd/specs"
)

// at is the time of the worked messages.
var at = time.Date(2026, 11, 23, 12, 0, 59, 0, time.UTC)

// The echo of each built-in dialect, byte by byte from its description: the three reference dialects' is the worked message of
// iso87-binary and iso87-ascii in EBCDIC (code 301 there, 270 here).
func TestTheEchoOfEachBuiltInDialectWorkedByHand(t *testing.T) {
	for name, want := range map[string]string{
		"iso87-binary": "001C 0800 8220000000000000 0400000000000000 1123120059 000042 0301",
		"iso87-ascii":  hex.EncodeToString([]byte("0055" + "0800" + "8220000000000000" + "0400000000000000" + "1123120059" + "000042" + "301")),
		"iso87-ebcdic": "0027 F0F8F0F0 8220000000000000 0400000000000000 F1F1F2F3F1F2F0F0F5F9 F0F0F0F0F4F2 F2F7F0",
		"visa-like":    "00320000 16 01 02 0032 000000 000000 0000000000000000000000 0800 8220000000000000 0400000000000000 1123120059 000042 0301",
		"iso93-binary": "001A 1804 0230010000000000 1123120059 000042 261123120059 0831",
	} {
		c := codec(t, name)
		frame, err := c.EncodeFrame(c.NewDialogue(messages.Echo, at, "000042"))
		if err != nil {
			t.Fatal(err)
		}
		if got, want := hex.EncodeToString(frame), strings.ToLower(strings.ReplaceAll(want, " ", "")); got != want {
			t.Errorf("%s: got\n%s, want\n%s", name, got, want)
		}
	}
	if names := specs.Names(); len(names) != 5 {
		t.Errorf("there are %v, and five are worked here", names)
	}
}

// forms are single elements of each built-in dialect, byte by byte from its description.
func TestElementsOfTheBuiltInDialectsWorkedByHand(t *testing.T) {
	for _, row := range []struct {
		dialect, name string
		element       messages.Element
		value, want   string
	}{
		{"iso87-ebcdic", "n..19: two digits of length", 2, "4111111111111111", "F1F6 F4F1F1F1F1F1F1F1F1F1F1F1F1F1F1F1"},
		{"iso87-ebcdic", "z: the separator is an equals sign", 35, "411111=2912", "F1F1 F4F1F1F1F1F1 7E F2F9F1F2"},
		{"iso87-ebcdic", "ans: brackets and the bar of code page 500", 44, "[|]!", "F0F4 4ABB5A4F"},
		{"iso87-ebcdic", "x+n", 28, "C00000125", "C3 F0F0F0F0F0F1F2F5"},
		{"iso87-ebcdic", "chip data: three digits of length, in bytes", 55, "\x9f\x36\x02\x00\x21", "F0F0F5 9F36020021"},
		{"iso87-ebcdic", "PIN block", 52, "\x01\x02\x03\x04\x05\x06\x07\x08", "0102030405060708"},
		{"visa-like", "an even PAN: a length of one byte, in digits", 2, "4111111111111111", "10 4111111111111111"},
		{"visa-like", "an odd PAN is padded on the left", 2, "411111111111116", "0F 0411111111111116"},
		{"visa-like", "an odd track 2 is padded on the left", 35, "41111=29121", "0B 041111D29121"},
		{"visa-like", "three digits of entry mode, and a filler", 22, "051", "0510"},
		{"visa-like", "an odd n of fixed length is padded on the left", 23, "001", "0001"},
		{"visa-like", "text: a length of one byte, in bytes", 44, "5A", "02 F5C1"},
		{"visa-like", "x+n", 28, "D00000125", "C4 F0F0F0F0F0F1F2F5"},
		{"visa-like", "private bytes", 63, "\x80\x00\x00\x00\x02", "05 8000000002"},
		{"visa-like", "a currency is digits", 49, "978", "0978"},
		{"iso93-binary", "an odd n..35 is padded on the right", 56, "1200000101261123130101" + "0512345", "29 1200000101261123130101 0512345 0"},
		{"iso93-binary", "four digits of action code", 39, "9107", "9107"},
		{"iso93-binary", "an12", 22, "510101513344", "353130313031353133333434"},
		{"iso93-binary", "n24", 30, "000000012550000000000000", "000000012550 000000000000"},
		{"iso93-binary", "b..48: a length of one byte, in bytes", 53, "\x01\x02\x03", "03 010203"},
	} {
		c := codec(t, row.dialect)
		m := messages.New("0100")
		m.SetSensitive(row.element, row.value)
		body, err := c.Encode(m)
		if err != nil {
			t.Errorf("%s, %s: %v", row.dialect, row.name, err)
			continue
		}
		skipped := map[string]int{"iso87-ebcdic": 12, "visa-like": 22 + 10, "iso93-binary": 10}[row.dialect] // header, MTI, bit map
		if got, want := hex.EncodeToString(body[skipped:]), strings.ToLower(strings.ReplaceAll(row.want, " ", "")); got != want {
			t.Errorf("%s, %s: got %s, want %s", row.dialect, row.name, got, want)
		}
	}
}

func TestAMessageThatANetworkRejectedKeepsItsCodeAndItsBytes(t *testing.T) {
	for _, line := range readLines(t, "../testdata/messages.jsonl") {
		if line.Dialect != "visa-like" {
			continue
		}
		m, err := codec(t, line.Dialect).Decode(unhex(t, line.Hex))
		if err != nil {
			t.Fatal(err)
		}
		want := ""
		if line.Name == "0100-rejected-1234-visa" {
			want = "1234"
		}
		if m.Rejected() != want {
			t.Errorf("%s: rejected %q, want %q", line.Name, m.Rejected(), want)
		}
	}
}

// asked is a request as the upstream of a dialect sends it: what a dialect does not have is left out.
func asked(t testing.TB, c *messages.Codec) *messages.Message {
	t.Helper()
	m := request(t)
	m.SetSensitive(messages.Expiry, "2912")
	m.Set(messages.MerchantType, "5942")
	m.SetSensitive(messages.ChipData, "\x9f\x36\x02\x00\x21")
	if c.Dialect().Standard == specs.ISO93 {
		m.Set(messages.LocalTime, "261123130059")
		m.Set(messages.FunctionCode, "101") // the amount is an estimate
		return m
	}
	m.Set(messages.LocalTime, "130059")
	m.Set(messages.LocalDate, "1123")
	m.Set(messages.POSEntryMode, "051")
	m.Set(messages.POSConditionCode, "00")
	m.Set(messages.FunctionCode, "123") // the network of the terminal's hop
	return m
}

// A request of each built-in dialect goes into each other one, and is a sound message there; so does the answer on its way back.
func TestARequestPassesBetweenAllBuiltInDialects(t *testing.T) {
	for _, upstream := range specs.Names() {
		for _, processor := range specs.Names() {
			t.Run(upstream+" to "+processor, func(t *testing.T) {
				from, to := codec(t, upstream), codec(t, processor)
				request := asked(t, from)
				if err := from.Validate(request); err != nil {
					t.Fatal(err)
				}
				if _, err := from.Encode(request); err != nil {
					t.Fatal(err)
				}
				m, err := messages.NewPassage(from, to).ForProcessor(request, messages.Numbers{STAN: "900001", RRN: "632700900001"}, at)
				if err != nil {
					t.Fatal(err)
				}
				if err := to.Validate(m); err != nil {
					t.Error(err)
				}
				body, err := to.Encode(m)
				if err != nil {
					t.Fatal(err)
				}
				if m, err = to.Decode(body); err != nil {
					t.Fatal(err)
				}
				if to.Dialect().Standard == specs.ISO93 {
					want := map[specs.Standard]string{specs.ISO93: "101", specs.ISO87: "100"}[from.Dialect().Standard]
					if got := m.Get(messages.FunctionCode); got != want {
						t.Errorf("the function code is %q, want %q", got, want)
					}
				}

				partial := to.Dialect().Partial[0]
				answer := messages.NewAnswer(m, partial)
				answer.Set(messages.Amount, "000000010000")
				answer.Set(messages.AuthorizationID, "A1B2C3")
				told, lost := messages.NewPassage(to, from).ForUpstream(request, answer, at)
				if len(lost) > 0 {
					t.Errorf("the answer has lost %v", lost)
				}
				if err := from.Validate(told); err != nil {
					t.Error(err)
				}
				if err := from.Echoes(request, told); err != nil {
					t.Error(err)
				}
				if _, err := from.Encode(told); err != nil {
					t.Error(err)
				}
				if got := told.Get(messages.ResponseCode); !from.Dialect().ApprovesPartially(got) {
					t.Errorf("%s is told as %s, which does not approve partially", partial, got)
				}
			})
		}
	}
}

// A refusal of each built-in dialect is told as a refusal in each other one, and an approval as an approval, whatever the code.
func TestCodesOfTheBuiltInDialectsAreTold(t *testing.T) {
	for _, row := range []struct{ from, code, to, want string }{
		{"iso93-binary", "0000", "iso87-ascii", "00"},
		{"iso93-binary", "0002", "iso87-ascii", "10"},
		{"iso93-binary", "1016", "iso87-ascii", "51"},
		{"iso93-binary", "1017", "iso87-binary", "55"},
		{"iso93-binary", "2008", "iso87-ebcdic", "41"},
		{"iso93-binary", "9107", "iso87-ascii", "91"},
		{"iso93-binary", "9111", "visa-like", "91"},
		{"iso93-binary", "4000", "iso87-ascii", "05"}, // no answer to a request
		{"iso87-ascii", "00", "iso93-binary", "0000"},
		{"iso87-ascii", "91", "iso93-binary", "9107"},
		{"iso87-ascii", "96", "iso93-binary", "9109"},
		{"iso87-ascii", "55", "iso93-binary", "1017"},
		{"iso87-ascii", "68", "iso93-binary", "1000"}, // it has no such code
		{"iso87-ebcdic", "87", "iso87-ascii", "10"},   // the purchase without the cash
		{"iso87-ebcdic", "87", "iso93-binary", "0002"},
	} {
		request := asked(t, codec(t, row.to))
		answer := messages.NewAnswer(request, row.code)
		told, _ := messages.NewPassage(codec(t, row.from), codec(t, row.to)).ForUpstream(request, answer, at)
		if got := told.Get(messages.ResponseCode); got != row.want {
			t.Errorf("%s of %s is told to %s as %q, want %q", row.code, row.from, row.to, got, row.want)
		}
	}
}

// What the reversal of each built-in dialect is like: its type, and how it names its original and says what is to stand.
func TestReversalsOfTheBuiltInDialects(t *testing.T) {
	for name, row := range map[string]struct {
		mti               string
		original          string // by the element of original data
		whole, part       string // by the element of replacement amounts
		amount, functions string // of a partial one: DE 4, DE 24 of both
	}{
		"iso87-ascii":  {"0420", "010000004211231200590000001234500000000000", "", "000000010000" + strings.Repeat("0", 30), "000000012345", "123 123"},
		"iso87-binary": {"0420", "010000004211231200590000001234500000000000", "", "000000010000" + strings.Repeat("0", 30), "000000012345", "123 123"},
		"iso87-ebcdic": {"0400", "010000004211231200590000001234500000000000", strings.Repeat("0", 42), "000000010000" + strings.Repeat("0", 30), "000000012345", "123 123"},
		"visa-like":    {"0400", "010000004211231200590000001234500000000000", "", "000000010000" + strings.Repeat("0", 30), "000000012345", "123 123"},
		"iso93-binary": {"1420", "1100" + "000042" + "261123130059" + "05" + "12345", "", "000000012345" + strings.Repeat("0", 12), "000000010000", "400 401"},
	} {
		t.Run(name, func(t *testing.T) {
			c := codec(t, name)
			original := asked(t, c).Original()
			whole := undo(t, c, original, pan(t), "A1B2C3", "")
			part := undo(t, c, original, pan(t), "A1B2C3", "000000010000")
			for _, m := range []*messages.Message{whole, part} {
				if err := c.Validate(m); err != nil {
					t.Error(err)
				}
				body, err := c.Encode(m)
				if err != nil {
					t.Fatal(err)
				}
				if m, err = c.Decode(body); err != nil {
					t.Fatal(err)
				}
				if got := c.Dialect().WireMTI(string(m.MTI)); got != row.mti {
					t.Errorf("it is a %s, want %s", got, row.mti)
				}
				if got := m.Get(c.OriginalElement()); got != row.original {
					t.Errorf("it names %q, want %q", got, row.original)
				}
				if got := c.OriginalIdentities(m); !slices.Contains(got, c.Identity(asked(t, c))) {
					t.Errorf("its original is one of %q, want %q", got, c.Identity(asked(t, c)))
				}
			}
			if got := whole.Get(c.ReplacementElement()); got != row.whole {
				t.Errorf("a whole one has %q, want %q", got, row.whole)
			}
			if got := part.Get(c.ReplacementElement()); got != row.part {
				t.Errorf("a partial one has %q, want %q", got, row.part)
			}
			if got := part.Get(messages.Amount); got != row.amount {
				t.Errorf("a partial one has the amount %q, want %q", got, row.amount)
			}
			if got := whole.Get(messages.FunctionCode) + " " + part.Get(messages.FunctionCode); got != row.functions {
				t.Errorf("they have DE 24 %q, want %q", got, row.functions)
			}
		})
	}
}

// The dialogue of each built-in dialect is understood by the party that it is sent to.
func TestTheDialogueOfTheBuiltInDialects(t *testing.T) {
	parts := []messages.Dialogue{messages.SignOn, messages.SignOff, messages.Echo, messages.KeyChange, messages.Cutover}
	for name, want := range map[string]string{
		"iso87-ascii": "001 002 301 101 201", "iso87-binary": "001 002 301 101 201", "iso87-ebcdic": "061 062 270 161 -",
		"visa-like": "071 072 301 - -", "iso93-binary": "801 802 831 811 821",
	} {
		c := codec(t, name)
		var codes []string
		for _, part := range parts {
			if !c.Holds(part) {
				codes = append(codes, "-")
				continue
			}
			m := c.NewDialogue(part, at, "000042")
			if got := c.Demanded(m); got != part {
				t.Errorf("%s: %s is taken for %q", name, part, got)
			}
			if err := c.Validate(m); err != nil {
				t.Errorf("%s: %s: %v", name, part, err)
			}
			codes = append(codes, m.Reveal(messages.Element(c.Dialect().NetworkManagement.Element)))
		}
		if got := strings.Join(codes, " "); got != want {
			t.Errorf("%s: got %s, want %s", name, got, want)
		}
	}
}

// A party is asked for a key by a request that it understands, which says nothing to us where it comes from it: but for a dialect in which
// one code stands for both, the direction decides.
func TestARequestForAKeyOfTheBuiltInDialects(t *testing.T) {
	for name, want := range map[string]struct {
		code string
		back messages.Dialogue
	}{"iso87-ascii": {"161", ""}, "iso87-binary": {"161", ""}, "iso87-ebcdic": {"162", ""}, "iso93-binary": {"811", messages.KeyChange}, "visa-like": {}} {
		c := codec(t, name)
		if got := c.Holds(messages.KeyRequest); got != (want.code != "") {
			t.Errorf("%s: asked for a key: %v", name, got)
		}
		if want.code == "" {
			continue
		}
		m := c.NewDialogue(messages.KeyRequest, at, "000042")
		if err := c.Validate(m); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if got := m.Reveal(messages.Element(c.Dialect().NetworkManagement.Element)); got != want.code {
			t.Errorf("%s: got %s, want %s", name, got, want.code)
		}
		if got := c.Demanded(m); got != want.back {
			t.Errorf("%s: from the party it is taken for %q, want %q", name, got, want.back)
		}
	}
}

// A dialect of 1993 with a table for DE 22, which has no common words otherwise: the values of such an element pass both ways, and a value
// that the table does not have is named and not lost.
func TestValuesPassByATable(t *testing.T) {
	text, err := os.ReadFile("../specs/iso93-binary.yaml")
	if err != nil {
		t.Fatal(err)
	}
	own := strings.Replace(string(text), "dropped: [22, 24, 25, 26]\n",
		"dropped: [24, 25, 26]\nvalues: { 22: { \"510101513344\": \"051\", \"510101513345\": \"051\", \"210101211344\": \"021\" }, 25: {} }\n", 1)
	if _, err := specs.Parse([]byte(own)); err == nil || !strings.Contains(err.Error(), "values.25: is dropped") {
		t.Errorf("got %v", err)
	}
	own = strings.Replace(own, ", 25: {} }", " }", 1)
	dialect, err := specs.Parse([]byte(own))
	if err != nil {
		t.Fatal(err)
	}
	codes := map[string]*messages.Codec{"1993 with a table": messages.NewCodec(dialect), "1993": codec(t, "iso93-binary"), "1987": codec(t, "iso87-ascii")}
	for _, row := range []struct{ from, value, to, want string }{
		{"1987", "051", "1993 with a table", "510101513344"},
		{"1987", "021", "1993 with a table", "210101211344"},
		{"1987", "071", "1993 with a table", ""},
		{"1993 with a table", "510101513345", "1987", "051"},
		{"1993 with a table", "999999999999", "1987", ""},
		{"1993 with a table", "510101513345", "1993 with a table", "510101513345"}, // it stays what it is
		{"1993 with a table", "999999999999", "1993", "999999999999"},
		{"1993", "510101513345", "1993 with a table", "510101513345"},
		{"1993", "510101513345", "1987", ""},
		{"1987", "051", "1993", ""},
	} {
		m := messages.New("0100")
		m.Set(messages.POSEntryMode, row.value)
		carried, lost := messages.NewPassage(codes[row.from], codes[row.to]).Carry(m, at)
		if got := carried.Get(messages.POSEntryMode); got != row.want || (len(lost) == 0) != (row.want != "") {
			t.Errorf("%s from %s to %s: got %q, lost %v, want %q", row.value, row.from, row.to, got, lost, row.want)
		}
	}
	for _, fault := range []string{`22: { "51": "051" }`, `22: { "510101513344": "" }`, `22: {}`, `39: { "0000": "00" }`, `222: { "1": "1" }`, `53: { "1": "1" }`} {
		own := strings.Replace(string(text), "dropped: [22, 24, 25, 26]\n", "dropped: [24, 25, 26]\nvalues: { "+fault+" }\n", 1)
		if _, err := specs.Parse([]byte(own)); err == nil || !strings.Contains(err.Error(), "values.") {
			t.Errorf("%s: got %v", fault, err)
		}
	}
}

// Bytes of one party are no text of another: what is private to visa-like is named where it cannot go, and what is private to another party
// does not reach visa-like.
func TestPrivateBytesDoNotPassAsText(t *testing.T) {
	ascii, visa := codec(t, "iso87-ascii"), codec(t, "visa-like")
	request := asked(t, ascii)
	request.SetSensitive(messages.AdditionalData, "PRIVATE")
	request.SetSensitive(63, "PRIVATE")
	m, err := messages.NewPassage(ascii, visa).ForProcessor(request, messages.Numbers{STAN: "900001", RRN: "632700900001"}, at)
	if err != nil {
		t.Fatal(err)
	}
	if m.Has(messages.AdditionalData) || m.Has(63) {
		t.Errorf("got %v", m)
	}
	answer := messages.NewAnswer(m, "00")
	answer.SetSensitive(62, "\x80\x00\x00\x00\x00\x00\x00\x00\xe8")
	told, lost := messages.NewPassage(visa, ascii).ForUpstream(request, answer, at)
	if told.Has(62) || !slices.Equal(lost, []messages.Element{62}) {
		t.Errorf("got %v, lost %v", told, lost)
	}

	request = asked(t, visa)
	request.SetSensitive(60, "\x05\x00\x00\x40")
	_, err = messages.NewPassage(visa, ascii).ForProcessor(request, messages.Numbers{STAN: "900001", RRN: "632700900001"}, at)
	if want := "DE 60 cannot be carried into the processor's dialect"; err == nil || err.Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
}

// What an advice tells of a link, a day or a key is demanded as if it were requested. A key change without a key confirms one.
func TestADialogueByAnAdviceIsDemanded(t *testing.T) {
	for _, name := range []string{"iso87-ascii", "iso93-binary"} {
		c := codec(t, name)
		for _, part := range []messages.Dialogue{messages.SignOn, messages.SignOff, messages.Echo, messages.Cutover, messages.KeyChange} {
			m := c.NewDialogue(part, at, "000042")
			m.MTI = "0820"
			want := part
			if part == messages.KeyChange {
				want = ""
			}
			if got := c.Demanded(m); got != want {
				t.Errorf("%s: %s is taken for %q", name, part, got)
			}
			m.SetSensitive(messages.Element(c.Dialect().NetworkManagement.KeyData.Element), "0123456789ABCDEF")
			if got := c.Demanded(m); got != part {
				t.Errorf("%s: %s with a key is taken for %q", name, part, got)
			}
			for _, mti := range []messages.MTI{"0830", "0840", "0802", "0620"} {
				if m.MTI = mti; c.Demanded(m) != "" {
					t.Errorf("%s: %s of %s is demanded", name, part, mti)
				}
			}
		}
	}
}
