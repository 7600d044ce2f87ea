package messages_test

import (
	"fmt"
	"strings"
	"testing"

	"acquirerd/messages"
)

// A dialect whose elements are bytes or text other than the standard has them.
func TestValuesAreShownAsTheDialectHasThem(t *testing.T) {
	c := parsed(t, replaced(t,
		"  43: { type: String, length: 40, enc: Text, prefix: Fixed,", "  43: { type: String, length: 99, enc: Raw, prefix: ASCII.LL,",
		"  44: { type: String,", "  #44: { type: String,", "fields:\n", "fields:\n  44: { type: Binary, length: 25, enc: Binary, prefix: ASCII.LL, description: x }\n",
		"  64: { type: Binary, length: 8, enc: HexText,", "  64: { type: String, length: 16, enc: Text,",
		"  60: { type: String, length: 999, enc: Text,", "  60: { type: String, length: 999, enc: Raw,",
		"  61: { type: String, length: 999, enc: Text, prefix: ASCII.LLL", "  61: { type: Binary, length: 999, enc: Binary, prefix: ASCII.LLL",
		"echoed:", "sensitive: { 60: pans }\nechoed:",
		`"0100": {`, `"0100": { fields: { 62: { type: Binary, length: 9, enc: Binary, prefix: ASCII.L, description: x } },`))
	m := messages.New(messages.AuthorizationRequest)
	m.Set(messages.MerchantName, "Caf\xe9 4111111111111111")
	m.SetSensitive(messages.AdditionalResponse, "12\x00")
	m.SetSensitive(messages.MAC, "0123456789ABCDEF")
	m.SetSensitive(60, "\x1b[2J 4111111111111111")
	m.SetSensitive(61, "\x41\x11\x11\x11\x11\x11\x11\x11")
	m.SetSensitive(62, "\x41\x11\x11\x11\x11\x11\x11\x11")
	m.Set(messages.ResponseCode, "00")
	body, err := c.Encode(m)
	if err != nil {
		t.Fatal(err)
	}
	if m, err = c.Decode(body); err != nil {
		t.Fatal(err)
	}
	show := func(lines []messages.Line) string {
		text := ""
		for _, line := range lines {
			text += fmt.Sprintf("%d %s %v\n", line.Element, line.Value, line.Hex)
		}
		return text
	}
	const masked = "436166E9203431313131312A2A2A2A2A2A31313131" // Café 411111******1111
	want := "39 00 false\n43 " + masked + " true\n44 313200 true\n60 1B5B324A203431313131312A2A2A2A2A2A31313131 true\n61 **** (8) false\n62 **** (8) false\n64 **** (16) false\n"
	if got := show(m.Describe()); got != want {
		t.Errorf("got\n%swant\n%s", got, want)
	}
	want = "39 00 false\n43 436166E92034313131313131313131313131313131 true\n44 313200 true\n" +
		"60 1B5B324A2034313131313131313131313131313131 true\n61 4111111111111111 true\n62 4111111111111111 true\n64 0123456789ABCDEF false\n"
	if got := show(m.DescribeUnsafe()); got != want {
		t.Errorf("in clear: got\n%swant\n%s", got, want)
	}
	line := fmt.Sprint(m)
	if !strings.Contains(line, " 43=x'"+masked+"'") || strings.ContainsFunc(line, func(r rune) bool { return r < ' ' || r > '~' }) {
		t.Errorf("got %q", line)
	}
	if answer := messages.NewAnswer(m, "00"); answer.Describe()[0].Value != "00" {
		t.Errorf("an answer shows %v", answer)
	}
}
