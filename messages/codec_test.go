package messages_test

import (
	"bufio"
	"encoding/hex"
	"encoding/json"
	"errors"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"

	"acquirerd/messages"
	"acquirerd/specs"
)

// codecs are those of the built-in dialects, by name.
var codecs = sync.OnceValues(func() (map[string]*messages.Codec, error) {
	made := map[string]*messages.Codec{}
	for _, name := range specs.Names() {
		dialect, err := specs.Load(name)
		if err != nil {
			return nil, err
		}
		made[name] = messages.NewCodec(dialect)
	}
	return made, nil
})

func codec(t testing.TB, name string) *messages.Codec {
	t.Helper()
	made, err := codecs()
	if err != nil {
		t.Fatal(err)
	}
	if made[name] == nil {
		t.Fatalf("there is no built-in dialect %q", name)
	}
	return made[name]
}

type golden struct {
	Name, Dialect, Provenance, Frame, Hex string
	Fields                                map[string]string
	Element                               int
	Reason                                string
}

func readLines(t testing.TB, path string) []golden {
	t.Helper()
	file, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	var lines []golden
	scanner := bufio.NewScanner(file)
	scanner.Buffer(nil, 1<<20)
	for scanner.Scan() {
		var line golden
		if err := json.Unmarshal(scanner.Bytes(), &line); err != nil {
			t.Fatalf("%s: %v", path, err)
		}
		lines = append(lines, line)
	}
	if err := scanner.Err(); err != nil || len(lines) == 0 {
		t.Fatalf("%s: %d lines, %v", path, len(lines), err)
	}
	return lines
}

func unhex(t testing.TB, text string) []byte {
	t.Helper()
	b, err := hex.DecodeString(text)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func values(m *messages.Message) map[string]string {
	got := map[string]string{"0": string(m.MTI)}
	for _, line := range m.DescribeUnsafe() {
		got[strconv.Itoa(int(line.Element))] = line.Value
	}
	return got
}

// valuesOf are the values of a message by element, those that its dialect has as bytes in hexadecimal digits, and its MTI as it is on the wire.
func valuesOf(c *messages.Codec, m *messages.Message) map[string]string {
	mti := c.Dialect().WireMTI(string(m.MTI))
	got := map[string]string{"0": mti}
	for _, e := range m.Elements() {
		value := m.Reveal(e)
		if f, _ := c.Dialect().Field(mti, int(e)); f.Binary() {
			value = strings.ToUpper(hex.EncodeToString([]byte(value)))
		}
		got[strconv.Itoa(int(e))] = value
	}
	return got
}

func TestGoldenMessagesDecodeAndEncodeToTheSameBytes(t *testing.T) {
	for _, line := range readLines(t, "../testdata/messages.jsonl") {
		t.Run(line.Dialect+" "+line.Name, func(t *testing.T) {
			c := codec(t, line.Dialect)
			m, err := c.Decode(unhex(t, line.Hex))
			if err != nil {
				t.Fatal(err)
			}
			got := valuesOf(c, m)
			for number, want := range line.Fields {
				if got[number] != want {
					t.Errorf("element %s: got %q, want %q", number, got[number], want)
				}
			}
			if len(got) != len(line.Fields) {
				t.Errorf("got %d elements, want %d", len(got), len(line.Fields))
			}
			body, err := c.Encode(m)
			if err != nil {
				t.Fatal(err)
			}
			if again := strings.ToUpper(hex.EncodeToString(body)); again != line.Hex {
				t.Errorf("encodes to\n%s, want\n%s", again, line.Hex)
			}
			frame, err := c.EncodeFrame(m)
			if err != nil {
				t.Fatal(err)
			}
			if again := strings.ToUpper(hex.EncodeToString(frame)); again != line.Frame {
				t.Errorf("frame is\n%s, want\n%s", again, line.Frame)
			}
			read, err := c.ReadFrame(strings.NewReader(string(frame)))
			if err != nil || string(read) != string(body) {
				t.Errorf("frame reads as %d bytes, %v", len(read), err)
			}
		})
	}
}

func TestGoldenMessagesPassBetweenDialects(t *testing.T) {
	other := map[string]string{"iso87-binary": "iso87-ascii", "iso87-ascii": "iso87-binary"}
	for _, line := range readLines(t, "../testdata/messages.jsonl") {
		if other[line.Dialect] == "" {
			continue // it has elements that those two do not have, or have in another form
		}
		t.Run(line.Dialect+" "+line.Name, func(t *testing.T) {
			from, to := codec(t, line.Dialect), codec(t, other[line.Dialect])
			m, err := from.Decode(unhex(t, line.Hex))
			if err != nil {
				t.Fatal(err)
			}
			body, err := to.Encode(m)
			if err != nil {
				t.Fatal(err)
			}
			back, err := to.Decode(body)
			if err != nil {
				t.Fatal(err)
			}
			body, err = from.Encode(back)
			if err != nil {
				t.Fatal(err)
			}
			if again := strings.ToUpper(hex.EncodeToString(body)); again != line.Hex {
				t.Errorf("comes back as\n%s, want\n%s", again, line.Hex)
			}
		})
	}
}

// Every message type of every built-in dialect has a golden message.
func TestEveryMessageTypeHasAGoldenMessage(t *testing.T) {
	golden := map[string]map[string]bool{}
	for _, line := range readLines(t, "../testdata/messages.jsonl") {
		if golden[line.Dialect] == nil {
			golden[line.Dialect] = map[string]bool{}
		}
		golden[line.Dialect][line.Fields["0"]] = true
	}
	for _, name := range specs.Names() {
		for mti := range codec(t, name).Dialect().Messages {
			if !golden[name][mti] {
				t.Errorf("%s has no golden message of type %s", name, mti)
			}
		}
	}
}

func TestBadMessagesAreRefusedAtTheirElement(t *testing.T) {
	for _, line := range readLines(t, "../testdata/bad.jsonl") {
		t.Run(line.Dialect+" "+line.Name, func(t *testing.T) {
			_, err := codec(t, line.Dialect).Decode(unhex(t, line.Hex))
			var format *messages.FormatError
			if !errors.As(err, &format) {
				t.Fatalf("got %v, want a FormatError (%s)", err, line.Reason)
			}
			if int(format.Element) != line.Element {
				t.Errorf("refused at %v (%v), want element %d (%s)", format.Element, err, line.Element, line.Reason)
			}
		})
	}
}

// fixtures are the messages of other projects whose bytes are those of a built-in dialect. Their definitions may call an n3 element
// an n4, with a filler on either side, and DE 55 text, which are other names for the same bytes.
var fixtures = map[string]string{
	"moov-0200-financial": "iso87-ascii", "moov-0210-financial-resp": "iso87-ascii", "moov-0410-reversal-resp": "iso87-ascii",
	"moov-0401-reversal-repeat": "iso87-ascii", "moov-0800": "iso87-ascii", "moov-0810": "iso87-ascii", "moov-0100-spec": "iso87-ascii",
	"pyiso-0200-pan": "iso87-ascii", "pyiso-0200-icc": "iso87-ascii", "ballerina-0200": "iso87-ascii", "robbik-0800": "iso87-ascii",
	"robbik-0200": "iso87-ascii", "tilln-0100-2": "iso87-ascii", "tilln-0110-3": "iso87-ascii",
	"hpdh-cut-off-req": "iso87-binary", "hpdh-key-exchange-req": "iso87-binary", "hpdh-void-req": "iso87-binary",
	"hpdh-void-reversal-req": "iso87-binary", "hpdh-batch-upload-req": "iso87-binary", "hpdh-final-settlement-req": "iso87-binary",
	"hpdh-sales-reversal-resp": "iso87-binary", "hpdh-void-resp": "iso87-binary", "hpdh-settlement-resp": "iso87-binary",
	"hpdh-batch-upload-resp": "iso87-binary", "credible-0210-so": "iso87-binary", "els-0200-emv": "iso87-binary",
	"els-0810-signon": "iso87-binary", "els-0800-echo": "iso87-binary", "els-0420-mac": "iso87-binary", "els-0421-mac": "iso87-binary",
	"els-0221-mac":  "iso87-binary",
	"stark-mc-0120": "iso87-ebcdic", "stark-mc-0400": "iso87-ebcdic", "derived-0121": "iso87-ebcdic", "derived-0421": "iso87-ebcdic",
	"stark-visa-0100": "visa-like", "stark-visa-0100-pin-emv": "visa-like", "stark-visa-0100-token": "visa-like",
	"stark-visa-0800-signon": "visa-like", "stark-visa-0810-b": "visa-like", "stark-visa-0810-c": "visa-like",
	"stark-visa-0810-reject": "visa-like",
}

// The fixtures of other projects stay outside the project; a checkout without them says so.
func TestFixturesOfOtherProjects(t *testing.T) {
	seen := 0
	for _, fixture := range readFixtures(t, "messages.jsonl") {
		dialect, ours := fixtures[fixture.ID]
		if !ours {
			continue
		}
		seen++
		t.Run(fixture.ID, func(t *testing.T) {
			c := codec(t, dialect)
			header := ""
			if c.Dialect().Header.Form != "" {
				header = fixture.Header
			}
			message := strings.ToUpper(header + fixture.Hex)
			m, err := c.Decode(unhex(t, message))
			if err != nil {
				t.Fatal(err)
			}
			got := valuesOf(c, m)
			for number, want := range fixture.Fields {
				if number == "55" && got[number] != want {
					want = strings.ToUpper(hex.EncodeToString([]byte(want)))
				}
				if number == "35" {
					want = strings.ReplaceAll(want, "D", "=")
				}
				if !strings.EqualFold(got[number], want) && "0"+got[number] != want && (number != "22" || got[number]+"0" != want) {
					t.Errorf("element %s: got %q, want %q", number, got[number], want)
				}
			}
			if len(got) != len(fixture.Fields) {
				t.Errorf("got %d elements, want %d", len(got), len(fixture.Fields))
			}
			body, err := c.Encode(m)
			if err != nil {
				t.Fatal(err)
			}
			if again := strings.ToUpper(hex.EncodeToString(body)); again != message {
				t.Errorf("encodes to\n%s, want\n%s", again, message)
			}
		})
	}
	if seen != len(fixtures) {
		t.Errorf("found %d of %d fixtures", seen, len(fixtures))
	}
}
