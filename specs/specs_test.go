package specs_test

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"acquirerd/specs"
)

func TestEveryEmbeddedDialectLoads(t *testing.T) {
	names := specs.Names()
	if !slices.Contains(names, "iso87-binary") || !slices.Contains(names, "iso87-ascii") {
		t.Fatalf("got %v", names)
	}
	for _, name := range names {
		dialect, err := specs.Load(name)
		if err != nil || dialect.Name != name {
			t.Errorf("%s: got %v", name, err)
		}
	}
}

func TestADialectOfTheUsersOwn(t *testing.T) {
	text, err := os.ReadFile("iso87-ascii.yaml")
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "own.yaml")
	if err := os.WriteFile(path, []byte(strings.Replace(string(text), "name: iso87-ascii", "name: own", 1)), 0o600); err != nil {
		t.Fatal(err)
	}
	if dialect, err := specs.Load(path); err != nil || dialect.Name != "own" {
		t.Errorf("got %v", err)
	}
	for _, name := range []string{"no-such", path + ".yaml", "../specs/none.yaml"} {
		if _, err := specs.Load(name); err == nil {
			t.Errorf("%s was loaded", name)
		}
	}
}

func TestEveryFaultOfADialectIsNamed(t *testing.T) {
	text, err := os.ReadFile("iso87-ascii.yaml")
	if err != nil {
		t.Fatal(err)
	}
	file := string(text)
	for _, change := range [][2]string{
		{"length: ascii-4, max: 4096", "length: ascii-4, max: 10000"},
		{"transaction: [7, 11, 41]", "transaction: [11]"},
		{"echoed: [2, 3,", "echoed: [65, 3,"},
		{`approving: ["00",`, `approving: ["000",`},
		{`poison: ["12"`, `poison: ["25"`},
		{`unknown: "91"`, `unknown: ""`},
		{`"0100": { mandatory: [3, 4`, `"01X0": { mandatory: [300, 4`},
		{"2: { type: String, length: 19, enc: Digits, prefix: ASCII.LL", "2: { type: String, length: 190, enc: Digit, prefix: ASCII.LL"},
		{"3: { type: String, length: 6, enc: Digits, prefix: Fixed", "3: { type: Text, length: 0, enc: Digits, prefix: ASCII.LLLLLLL"},
	} {
		changed := strings.Replace(file, change[0], change[1], 1)
		if changed == file {
			t.Fatalf("%q is not in the file", change[0])
		}
		file = changed
	}
	_, err = specs.Parse([]byte(file))
	if err == nil {
		t.Fatal("a dialect full of faults was taken")
	}
	for _, path := range []string{"framing.max", "match.transaction", "echoed", "approving", "reversal.poison", "answers.unknown",
		"messages.01X0:", "messages.01X0.mandatory", "fields.2.length", "fields.2.enc", "fields.3.type", "fields.3.length", "fields.3.prefix"} {
		if !strings.Contains(err.Error(), path) {
			t.Errorf("%s is not named in:\n%v", path, err)
		}
	}
}

func TestAnUnknownKeyOfADialectIsRefused(t *testing.T) {
	text, err := os.ReadFile("iso87-ascii.yaml")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := specs.Parse(append(text, "\nechoes: [2]\n"...)); err == nil || !strings.Contains(err.Error(), "echoes") {
		t.Errorf("got %v", err)
	}
}

func TestWhatIsNoDialectIsNotQuoted(t *testing.T) {
	_, err := specs.Parse([]byte("s3`cr`et\n"))
	if want := "reading: line 1: does not have the form that a dialect has here"; err == nil || err.Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
	if _, err := specs.Parse(nil); err == nil || err.Error() != "reading: it is empty" {
		t.Errorf("an empty one: got %v", err)
	}
	_, err = specs.Parse([]byte("name: [s3cret]\nfields: s3cret\nechoes: [2]\n"))
	if err == nil || strings.Contains(err.Error(), "s3") || strings.Count(err.Error(), "\n") != 2 || strings.Count(err.Error(), "reading: line ") != 3 {
		t.Errorf("got %v, want three faults, each on its line", err)
	}
}

func TestADialectHasALargestSize(t *testing.T) {
	text := bytes.Repeat([]byte("#"), specs.MaxText+1)
	path := filepath.Join(t.TempDir(), "large.yaml")
	if err := os.WriteFile(path, text, 0o600); err != nil {
		t.Fatal(err)
	}
	_, parsing := specs.Parse(text)
	_, loading := specs.Load(path)
	_, endless := specs.Load("/dev/zero")
	for _, err := range []error{parsing, loading, endless} {
		if err == nil || !strings.Contains(err.Error(), "is larger than 1048576 bytes") {
			t.Errorf("got %v", err)
		}
	}
}

// A frame of no bytes has no trailer, and a length that counts itself and the trailer does not count one that is not there.
func TestAKeepaliveHasNoTrailer(t *testing.T) {
	framing := specs.Framing{Length: specs.LengthBinary2, Inclusive: true, Trailer: specs.Bytes{3}, TrailerCounted: true,
		Keepalive: specs.KeepaliveAnswered, Max: 100}
	frame := framing.Append(nil, nil)
	if string(frame) != "\x00\x02" {
		t.Errorf("got %x", frame)
	}
	if length, err := framing.Parse(frame); length != 0 || err != nil {
		t.Errorf("it is read as %d bytes, %v", length, err)
	}
}

func FuzzParse(f *testing.F) {
	for _, name := range specs.Names() {
		text, err := os.ReadFile(name + ".yaml")
		if err != nil {
			f.Fatal(err)
		}
		f.Add(text)
	}
	f.Add([]byte("name: x"))
	f.Fuzz(func(t *testing.T, text []byte) {
		if dialect, err := specs.Parse(text); err == nil && dialect.Spec() == nil {
			t.Error("a dialect without its compiled form")
		}
	})
}

func TestADialectSaysWhichPINBlocksItHolds(t *testing.T) {
	text, err := os.ReadFile("iso87-ascii.yaml")
	if err != nil {
		t.Fatal(err)
	}
	none := "  " + field52 + ` description: "PIN data" }` + "\n"
	for _, c := range []struct {
		name      string
		changes   []string
		tdes, aes bool
	}{
		{"as it is", nil, true, false},
		{"16 bytes", []string{field52, `52: { type: Binary, length: 16, enc: HexText, prefix: Fixed,`}, false, true},
		{"up to 16 bytes", []string{field52, `52: { type: Binary, length: 16, enc: HexText, prefix: ASCII.LL,`}, true, true},
		{"16 bytes in one message type", []string{request,
			`"0100": { mandatory: [3, 4, 7, 11, 41, 49], one_of: [2, 35], fields: { 52: { type: Binary, length: 16, enc: HexText, prefix: Fixed, description: x } } }`}, false, false},
		{"no field", []string{none, ""}, false, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			d, err := specs.Parse([]byte(changed(t, string(text), c.changes...)))
			if err != nil {
				t.Fatal(err)
			}
			if tdes, aes := d.HoldsPINBlock(8), d.HoldsPINBlock(16); tdes != c.tdes || aes != c.aes {
				t.Errorf("8 bytes: %t, 16 bytes: %t", tdes, aes)
			}
		})
	}
}
