package messages_test

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"acquirerd/messages"
)

// explained are the faults of an explanation, each on its line.
func explained(e messages.Explanation) []string {
	var lines []string
	for _, fault := range e.Faults {
		lines = append(lines, fault.Error())
	}
	return lines
}

func TestAMessageIsExplained(t *testing.T) {
	tlv := replaced(t, "  55: { type: Binary, length: 999, enc: Binary,", "  55: { type: Binary, length: 999, content: ber-tlv, enc: Binary,",
		`"0100": { mandatory: [3, 4,`, `"0100": { forbidden: [44], when: [ { if: 22, begins: ["05"], then: [55, 23] } ], mandatory: [3, 4,`,
		"fields:\n", "mac: { place: last }\nfields:\n")
	const header = "header: { form: tpdu, value: \"6000010002\" }\n"
	tpdu := strings.Replace(tlv, "mac: {", header+"mac: {", 1)
	framed := strings.Replace(tlv, "length: ascii-4, max: 4096", `length: binary-2, inclusive: true, trailer: "03", max: 200`, 1)
	const echo = "080082200000000000000400000000000000" + "1123120059" + "000042" + "301"
	for _, test := range []struct {
		name, dialect, message string
		frame                  bool
		want                   []string
	}{
		{"a good one", tlv, echo, false, nil},
		{"with its frame", tlv, "0055" + echo, true, nil},
		{"with its header", tpdu, "\x60\x00\x01\x00\x02" + echo, false, nil},
		{"another header", tpdu, echo, false,
			[]string{"MTI does not stand behind the dialect's header, at byte 0: expected a header (tpdu) of 5 bytes that begins with 60"}},
		{"no MTI", tpdu, "\x60\x00\x01\x00\x0208X0", false,
			[]string{"MTI is not four digits, at byte 5: expected an MTI that begins with 0: 4 digits in Digits"}},
		{"an MTI of other characters", strings.Replace(tlv, "  0: { type: String, length: 4, enc: Digits,", "  0: { type: String, length: 4, enc: ASCII7,", 1), "0\x1b[m" + echo[4:], false,
			[]string{"MTI is not four digits, at byte 0: expected an MTI that begins with 0: 4 ASCII with control characters in ASCII7"}},
		{"another edition", tlv, "1" + echo[1:], false,
			[]string{"MTI is of another edition than the dialect's, at byte 0: expected an MTI that begins with 0: 4 digits in Digits"}},
		{"a short bit map", tlv, echo[:15], false, []string{"bit map has less content than its length says, at byte 4: expected a bit map of 8 bytes in HexText",
			"DE 7 is missing", "DE 11 is missing", "DE 70 is missing"}},
		{"letters in DE 11", tlv, strings.Replace(echo, "000042", "00X042", 1), false,
			[]string{"DE 11 has a character that its kind does not allow, at byte 46: expected 6 digits in Digits"}},
		{"it ends within DE 70", tlv, echo[:len(echo)-1], false,
			[]string{"DE 70 has less content than its length says, at byte 52: expected 3 digits in Digits"}},
		{"bytes after the last element", tlv, echo + "9", false,
			[]string{"DE 70 is followed by bytes that belong to no element, at byte 55: expected the end of the message"}},
		{"a length over the most", tlv, "0100" + "7000000000000000" + "20" + strings.Repeat("4", 20), false, []string{
			"DE 2 has a length over the dialect's maximum, at byte 20: expected ..19 digits in Digits after ASCII.LL",
			"DE 7 is missing", "DE 11 is missing", "DE 41 is missing", "DE 49 is missing"}},
		{"a value that is none behind its length", tlv, "0100" + "4000000000000000" + "16" + "4111A11111111111", false, []string{
			"DE 2 has a character that its kind does not allow, at byte 22: expected ..19 digits in Digits after ASCII.LL",
			"DE 3 is missing", "DE 4 is missing", "DE 7 is missing", "DE 11 is missing", "DE 41 is missing", "DE 49 is missing"}},
		{"elements that the dialect does not have", tlv, "0800" + "C220000000000000" + "8000000000000000" + "", false, []string{
			"DE 65 announces a third bit map, at byte 20", "DE 70 is missing"}},
		{"an element that the dialect does not have", strings.Replace(tlv, "  9: {", "  #9: {", 1), "0800" + "8280000000000000" + "0400000000000000" + "1123120059" + "00000042" + "301",
			false, []string{"DE 9 is not one of the dialect's, at byte 6", "DE 11 is missing"}},
		{"two of them", strings.Replace(strings.Replace(tlv, "  9: {", "  #9: {", 1), "  69: {", "  #69: {", 1),
			"0800" + "8280000000000000" + "0C00000000000000" + "1123120059" + "00000042" + "301",
			false, []string{"DE 9 is not one of the dialect's, at byte 6", "DE 69 is not one of the dialect's, at byte 20", "DE 11 is missing"}},
		{"a type that it does not know", tlv, "0600" + echo[4:], false, []string{"MTI is of a type that the dialect does not know, at byte 0"}},
		{"everything that Validate finds", tlv, "0100" + "8000040000100201" + "0400000000000000" + "051" + "02ok" + "003\x9F\x26\x08" + "0123456789ABCDEF" + "301",
			false, []string{"DE 3 is missing", "DE 4 is missing", "DE 7 is missing", "DE 11 is missing", "DE 41 is missing", "DE 49 is missing", "DE 2 is missing",
				"DE 44 is not allowed in this message, at byte 39", "DE 23 is missing, with DE 22 as it is",
				"DE 55 is not BER-TLV, at byte 43", "DE 64 is not the last element, as a MAC is, at byte 49"}},
		{"a MAC before what could not be read", tlv, "0800" + "8220000000000001" + "0400000000000000" + "1123120059" + "000042" + "0123456789ABCDEF" + "3X1", false,
			[]string{"DE 70 has a character that its kind does not allow, at byte 68: expected 3 digits in Digits", "DE 64 is not the last element, as a MAC is, at byte 52"}},
		{"a frame that is too short", framed, "\x00\x3A" + echo, true, []string{
			"MTI does not stand in a frame of the dialect's: it ends before the length says, at byte 57: expected binary-2 length that counts itself, at most 200 bytes, trailer 03"}},
		{"another trailer", framed, "\x00\x39" + echo + "\x04", true, []string{
			"MTI does not stand in a frame of the dialect's: the trailer is another, at byte 57: expected binary-2 length that counts itself, at most 200 bytes, trailer 03"}},
		{"a length that no frame has", framed, "\x08\x00" + echo, true, []string{
			"MTI does not stand in a frame of the dialect's: the length is none that a frame can have, at byte 0: expected binary-2 length that counts itself, at most 200 bytes, trailer 03"}},
		{"digits that are none", tlv, "00X5" + echo, true, []string{
			"MTI does not stand in a frame of the dialect's: the length is not one, at byte 0: expected ascii-4 length, at most 4096 bytes"}},
		{"bytes after the frame", tlv, "0055" + echo + "00", true, []string{
			"MTI is of a frame that 2 bytes follow, at byte 59: expected ascii-4 length, at most 4096 bytes"}},
		{"nothing", tlv, "", true, []string{"MTI is missing: there is no frame, at byte 0: expected ascii-4 length, at most 4096 bytes"}},
		{"a fault behind its frame", framed, "\x00\x39" + strings.Replace(echo, "000042", "00X042", 1) + "\x03", true,
			[]string{"DE 11 has a character that its kind does not allow, at byte 48: expected 6 digits in Digits"}},
		{"a long one", framed, echo + strings.Repeat("0", 200), false, []string{
			"MTI begins a message longer than the dialect's maximum, at byte 200: expected at most 200 bytes"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			c := parsed(t, test.dialect)
			explain := c.Explain
			if test.frame {
				explain = c.ExplainFrame
			}
			if got := explained(explain([]byte(test.message))); !slices.Equal(got, test.want) {
				t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(test.want, "\n"))
			}
		})
	}
}

func TestAnExplanationSaysWhatDecodeAndValidateSayFirst(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	for _, c := range parties(t) {
		good, bad := 0, 0
		for wireMTI := range c.Dialect().Messages {
			for range 10 {
				m := randomMessage(t, r, c, wireMTI)
				body, err := c.Encode(m)
				if err != nil {
					t.Fatal(err)
				}
				switch r.IntN(4) {
				case 0:
					body[r.IntN(len(body))] ^= byte(1 << r.IntN(8))
				case 1:
					body = body[:r.IntN(len(body))]
				case 2:
					body = append(body, 0)
				}
				read, err := c.Decode(bytes.Clone(body))
				if err == nil {
					err = c.Validate(read)
				}
				e := c.Explain(bytes.Clone(body))
				if (err == nil) != (len(e.Faults) == 0) {
					t.Fatalf("%s %s: decoded with %v, explained by %q", c.Dialect().Name, wireMTI, err, explained(e))
				}
				if err == nil {
					good++
					continue
				}
				bad++
				if first := e.Faults[0]; !strings.HasSuffix(err.Error(), first.Rule) && !errors.Is(err, messages.ErrUnsupported) {
					t.Errorf("%s %s: decoded with %v, explained by %q", c.Dialect().Name, wireMTI, err, explained(e))
				}
				for _, fault := range e.Faults {
					if fault.Offset < -1 || fault.Offset > len(body) {
						t.Errorf("%s: a fault at byte %d of %d", c.Dialect().Name, fault.Offset, len(body))
					}
				}
			}
		}
		if good == 0 || bad == 0 {
			t.Errorf("%s: %d good, %d bad: the test shows nothing", c.Dialect().Name, good, bad)
		}
	}
}

func TestBadMessagesAreExplainedAtTheirElement(t *testing.T) {
	for _, line := range readLines(t, "../testdata/bad.jsonl") {
		e := codec(t, line.Dialect).Explain(unhex(t, line.Hex))
		if len(e.Faults) == 0 || int(e.Faults[0].Element) != line.Element {
			t.Errorf("%s %s: got %q, want element %d", line.Dialect, line.Name, explained(e), line.Element)
		}
	}
}

func TestGoldenMessagesLackNoMoreThanElements(t *testing.T) {
	for _, line := range readLines(t, "../testdata/messages.jsonl") {
		c := codec(t, line.Dialect)
		for _, fault := range c.ExplainFrame(unhex(t, line.Frame)).Faults {
			if fault.Offset >= 0 || fault.Rule != "is missing" { // some have one element, and nothing that is mandatory
				t.Errorf("%s %s: got %v", line.Dialect, line.Name, fault.Error())
			}
		}
	}
}

func TestAnExplanationQuotesNoContent(t *testing.T) {
	c := codec(t, "iso87-ascii")
	m := messages.New(messages.AuthorizationRequest)
	m.SetSensitive(messages.PAN, "4111111111111111")
	m.SetSensitive(messages.Track2, "4111111111111111=29122011234567890")
	m.SetSensitive(messages.PINData, "\x12\x34\x56\x78\x9A\xBC\xDE\xF0")
	m.SetSensitive(messages.AdditionalData, "4111111111111111 cvv 123")
	body, err := c.Encode(m)
	if err != nil {
		t.Fatal(err)
	}
	for at := range body {
		for _, broken := range [][]byte{body[:at], append(bytes.Clone(body[:at]), body[at:]...)} {
			if len(broken) == len(body) {
				broken[at] ^= 0x55
			}
			for _, explain := range []func([]byte) messages.Explanation{c.Explain, c.ExplainFrame} {
				e := explain(broken)
				text := strings.Join(explained(e), " ")
				if e.Message != nil {
					text += fmt.Sprintf("%+v", e.Message)
				}
				for _, secret := range []string{"11111111", "2912201", "56789", "cvv"} {
					if strings.Contains(text, secret) {
						t.Fatalf("broken at byte %d, it says %q", at, text)
					}
				}
			}
		}
	}
}

func FuzzExplain(f *testing.F) {
	a, b := codec(f, "iso87-ascii"), codec(f, "iso87-binary")
	f.Add(unhex(f, "08008220000000000000040000000000000011231200590000420301"))
	f.Fuzz(func(t *testing.T, body []byte) {
		for _, c := range []*messages.Codec{a, b} {
			m, err := c.Decode(bytes.Clone(body))
			if err == nil {
				err = c.Validate(m)
			}
			if e := c.Explain(body); (err == nil) != (len(e.Faults) == 0) {
				t.Errorf("decoded with %v, explained by %q", err, explained(e))
			}
			c.ExplainFrame(body)
		}
	})
}
