package messages_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"testing"

	"acquirerd/card"
	"acquirerd/messages"
	"acquirerd/specs"
)

// FuzzDecode reads messages of every built-in dialect and behind every form of header: what is taken is written again as the same bytes,
// nothing may follow it, and no error is anything but a *FormatError.
func FuzzDecode(f *testing.F) {
	names := specs.Names()
	codecs := make([]*messages.Codec, 0, len(names)+3)
	for _, name := range names {
		codecs = append(codecs, codec(f, name))
	}
	for _, path := range []string{"../testdata/messages.jsonl", "../testdata/bad.jsonl"} {
		for _, line := range readLines(f, path) {
			f.Add(byte(slices.Index(names, line.Dialect)), unhex(f, line.Hex))
		}
	}
	for _, header := range []string{"form: tpdu, value: \"6000030000603100\"", "form: echoed, value: \"49534F303235\"", "form: literal, value: \"49534F303235\""} {
		codecs = append(codecs, changed(f, "iso87-binary", "framing: { length: binary-2, max: 4096 }\n", "framing: { length: binary-2, max: 4096 }\nheader: { "+header+" }\n"))
		f.Add(byte(len(codecs)-1), slices.Concat([]byte(codecs[len(codecs)-1].Dialect().Header.Value),
			unhex(f, "0800822000000000000004000000000000001123120059000042"+"0301")))
	}
	f.Fuzz(func(t *testing.T, dialect byte, body []byte) {
		decodes(t, codecs[int(dialect)%len(codecs)], body)
	})
}

// changed is the codec of a built-in dialect with a change of its text.
func changed(t testing.TB, name string, changes ...string) *messages.Codec {
	t.Helper()
	text, err := os.ReadFile("../specs/" + name + ".yaml")
	if err != nil {
		t.Fatal(err)
	}
	own := string(text)
	for i := 0; i < len(changes); i += 2 {
		if !strings.Contains(own, changes[i]) {
			t.Fatalf("%s does not have %q", name, changes[i])
		}
		own = strings.Replace(own, changes[i], changes[i+1], 1)
	}
	dialect, err := specs.Parse([]byte(own))
	if err != nil {
		t.Fatal(err)
	}
	return messages.NewCodec(dialect)
}

// decodes checks what is true of every message of every dialect.
func decodes(t *testing.T, c *messages.Codec, body []byte) {
	t.Helper()
	before := bytes.Clone(body)
	m, err := c.Decode(body)
	var format *messages.FormatError
	if err != nil && !errors.As(err, &format) {
		t.Fatalf("got %T", err)
	}
	if err != nil {
		return
	}
	if len(body) > c.Dialect().Framing.Max {
		t.Fatalf("a message of %d bytes is taken, and the longest has %d", len(body), c.Dialect().Framing.Max)
	}
	again, err := c.Encode(m)
	if err != nil {
		t.Fatalf("decoded, but not encoded: %v", err)
	}
	if !bytes.Equal(again, before) {
		t.Fatalf("encodes to other bytes:\n%x\n%x", before, again)
	}
	for _, more := range []byte{0x00, 0x40, 0xFF} {
		if _, err := c.Decode(append(bytes.Clone(before), more)); err == nil {
			t.Fatalf("%x is taken with one more byte", before)
		}
	}
	// What the rooms do with every message.
	_ = c.Validate(m)
	_, _ = c.Key(m)
	_ = c.Identity(m)
	_ = c.OriginalIdentities(m)
	_, _, _ = c.Reversed(m)
	_ = c.Demanded(m)
	_, _ = c.NewKey(m)
	_ = fmt.Sprint(m)
	_ = m.Original()
}

// framings are all ways in which messages follow each other, in a dialect that any of them can have.
func framings(t testing.TB) []*messages.Codec {
	t.Helper()
	var list []*messages.Codec
	for _, framing := range []string{
		"length: ascii-4", "length: ascii-4, inclusive: true, keepalive: answered", "length: hex-4", "length: bcd-2, keepalive: ignored",
		"length: binary-2", "length: binary-2, inclusive: true", "length: binary-2, little_endian: true, keepalive: answered",
		"length: binary-2, inclusive: true, trailer: \"0D0A\", trailer_counted: true, keepalive: answered", "length: binary-4",
		"length: binary-4, little_endian: true, inclusive: true", "length: vmlh", "length: ascii-4, trailer: \"03\"",
		"length: ascii-4, trailer: \"03\", trailer_counted: true", "length: none, trailer: \"03\"", "length: none, trailer: \"0D0A\"",
	} {
		changes := []string{"framing: { length: ascii-4, max: 4096 }", "framing: { " + framing + ", max: 300 }"}
		if strings.Contains(framing, "none") { // bytes could hold the trailer
			changes = append(changes, "enc: Binary, prefix: ASCII.LLL", "enc: HexText, prefix: ASCII.LLL")
		}
		list = append(list, changed(t, "iso87-ascii", changes...))
	}
	for _, name := range specs.Names() {
		list = append(list, codec(t, name))
	}
	return list
}

// asking remembers the most that was asked of it at once: what its reader has allocated.
type asking struct {
	io.Reader
	most int
}

func (a *asking) Read(p []byte) (int, error) {
	a.most = max(a.most, len(p))
	return a.Reader.Read(p)
}

// FuzzReadFrame reads streams in every framing: a length over the maximum is refused before anything is allocated for it, and a frame that is
// taken is written again as the same bytes.
func FuzzReadFrame(f *testing.F) {
	codecs := framings(f)
	for i, c := range codecs {
		kind := byte(i)
		f.Add(kind, c.Dialect().Framing.Append(nil, []byte("abcd")))
		f.Add(kind, c.Dialect().Framing.Append(c.Dialect().Framing.Append(nil, nil), []byte("abcd")))
		f.Add(kind, []byte("\xff\xff\xff\xff"))
		f.Add(kind, []byte("9999"))
		f.Add(kind, []byte("0004abc"))
	}
	f.Fuzz(func(t *testing.T, kind byte, stream []byte) {
		c := codecs[int(kind)%len(codecs)]
		framing := &c.Dialect().Framing
		source := bytes.NewReader(stream)
		reader := &asking{Reader: source}
		for {
			at := len(stream) - source.Len()
			body, err := c.ReadFrame(reader)
			if longest := framing.Max + len(framing.Trailer); reader.most > longest {
				t.Fatalf("%d bytes are allocated for a message of at most %d", reader.most, longest)
			}
			var fault *messages.FrameError
			switch {
			case errors.Is(err, io.EOF):
				if source.Len() > 0 {
					t.Fatalf("the stream ends %d bytes before its end", source.Len())
				}
				return
			case errors.As(err, &fault):
				return
			case err != nil:
				t.Fatalf("got %v", err)
			case len(body) > framing.Max:
				t.Fatalf("a frame of %d bytes", len(body))
			case len(body) == 0 && framing.Keepalive != specs.KeepaliveIgnored && framing.Keepalive != specs.KeepaliveAnswered:
				t.Fatal("a frame of no bytes")
			case len(body) == 0:
				continue // with its own size in the length, or with 0
			}
			frame := framing.Append(nil, body)
			if read := stream[at : len(stream)-source.Len()]; !bytes.Equal(frame, read) {
				t.Fatalf("%x is written again as %x", read, frame)
			}
		}
	})
}

// FuzzChipData reads DE 55: what is not tags, lengths and values to the end is refused, and what may be stored comes back as it was.
func FuzzChipData(f *testing.F) {
	for _, line := range readLines(f, "../testdata/messages.jsonl") {
		if chip := line.Fields["55"]; chip != "" {
			f.Add(unhex(f, chip))
		}
	}
	for _, seed := range []string{"9F", "9F02", "9F0206", "9A83FE0F", "9A84FFFFFFFF00", "E1059F2608DEAD", "0000", "9F360200010000", "7100", "FF01"} {
		f.Add(unhex(f, seed))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		c := codec(t, "iso93-binary")
		m := asked93(data)
		err := c.Validate(m)
		if err != nil {
			var format *messages.FormatError
			if !errors.As(err, &format) || format.Element != messages.ChipData {
				t.Fatalf("got %v", err)
			}
			return
		}
		for _, cut := range []string{"\x9f", "\x9f\x02", "\x9f\x02\x06\x00", "\x9a\x84\xff\xff\xff\xff"} {
			if err := c.Validate(asked93(append(bytes.Clone(data), cut...))); err == nil {
				t.Fatalf("%x is taken with %x behind it", data, cut)
			}
		}
		rest, err := m.Rest([]int{55})
		if err != nil {
			t.Fatalf("it is BER-TLV, and cannot be stored: %v", err)
		}
		again, err := codec(t, "iso87-ascii").NewAdvice(messages.New("0220").Original(), card.PAN{}, rest)
		if err != nil {
			t.Fatal(err)
		}
		if got := []byte(again.Reveal(messages.ChipData)); len(got) > len(data) {
			t.Fatalf("%x is stored as %x", data, got)
		}
	})
}

// asked93 is an authorization request of ISO 8583:1993 with this chip data.
func asked93(chip []byte) *messages.Message {
	m := messages.New("0100")
	for e, value := range map[messages.Element]string{3: "000000", 4: "000000000100", 7: "1123120059", 11: "000042", 12: "261123120059", 24: "100",
		41: "TERM0001", 49: "978", 35: "4111111111111111=2912"} {
		m.SetSensitive(e, value)
	}
	m.SetSensitive(messages.ChipData, string(chip))
	return m
}

// FuzzDialect reads dialect files, and a message in each that is taken: a dialect without a fault has messages without one.
func FuzzDialect(f *testing.F) {
	first := map[string][]byte{}
	for _, line := range readLines(f, "../testdata/messages.jsonl") {
		if first[line.Dialect] == nil {
			first[line.Dialect] = unhex(f, line.Hex)
		}
	}
	for _, name := range specs.Names() {
		text, err := os.ReadFile("../specs/" + name + ".yaml")
		if err != nil {
			f.Fatal(err)
		}
		f.Add(text, first[name])
	}
	f.Fuzz(func(t *testing.T, text, body []byte) {
		dialect, err := specs.Parse(text)
		if err != nil {
			return
		}
		decodes(t, messages.NewCodec(dialect), body)
	})
}
