package specs

import (
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
)

func readManual(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile("../docs/dialects.md")
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// The manual has every key, every name that a key may have as its value, and every built-in dialect, in code quotes.
func TestTheManualHasAllThatADialectFileMayHold(t *testing.T) {
	manual := readManual(t)
	quoted := map[string]bool{}
	for i, part := range strings.Split(manual, "`") {
		if i%2 == 1 {
			quoted[part] = true
			for _, word := range strings.FieldsFunc(part, func(r rune) bool { return strings.ContainsRune(" .:,{}", r) }) {
				quoted[word] = true
			}
		}
	}
	words := append(slices.Collect(maps.Keys(encoders)), Names()...)
	for _, form := range HeaderForms {
		words = append(words, string(form))
	}
	for _, header := range LengthHeaders {
		words = append(words, string(header))
	}
	words = append(words, "Fixed", "ASCII", "EBCDIC", "BCD", "Hex", "Binary", "String", "Bitmap",
		string(OriginalNumbers), string(NewNumbers), string(OriginalISO87), string(OriginalISO93), string(ReplacementISO87), string(ReplacementISO87Zeros),
		string(ReplacementISO93), string(ReplacementNone), string(AuthorizationIDAbsent), string(AuthorizationIDCarried), string(AnswerUnknown),
		string(ForwardUnknown), string(MACNone), string(MACLast), string(MaskHidden), string(MaskPANs), string(PadLeftZero), string(PadRightSpace),
		string(ContentBERTLV), string(ExtentAuto), string(ExtentFixed), string(CountsValue), string(CountsWire), string(KeepaliveRefused),
		string(KeepaliveIgnored), string(KeepaliveAnswered), string(ISO87), string(ISO93),
		string(KeySerialNumberBinary), string(KeySerialNumberHex))
	words = append(words, keysOf(reflect.TypeFor[Dialect]())...)
	for _, word := range words {
		if !quoted[word] {
			t.Errorf("%q is not in docs/dialects.md", word)
		}
	}
}

// keysOf are the keys of a dialect file, without those of the user's own.
func keysOf(of reflect.Type) []string {
	switch of.Kind() {
	case reflect.Map, reflect.Slice, reflect.Pointer:
		return keysOf(of.Elem())
	case reflect.Struct:
	default:
		return nil
	}
	var keys []string
	for i := range of.NumField() {
		field := of.Field(i)
		if key, _, _ := strings.Cut(field.Tag.Get("yaml"), ","); field.IsExported() {
			if key != "" {
				keys = append(keys, key)
			}
			keys = append(keys, keysOf(field.Type)...)
		}
	}
	return keys
}

// The manual's example makes a dialect without a fault that says what the text says.
func TestTheExampleOfTheManual(t *testing.T) {
	_, after, found := strings.Cut(readManual(t), "```sh\n")
	example, _, closed := strings.Cut(after, "```")
	if !found || !closed {
		t.Fatal("there is no example")
	}
	lines := strings.Split(strings.TrimSpace(example), "\n")
	commands := strings.Join(lines[:len(lines)-1], "\n") // the last one is lint
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "specs"), 0o700); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile("iso87-binary.yaml")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "specs", "iso87-binary.yaml"), text, 0o600); err != nil {
		t.Fatal(err)
	}
	shell := exec.Command("sh", "-e", "-c", commands)
	shell.Dir = dir
	if out, err := shell.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	d, err := Load(filepath.Join(dir, "our-processor.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	if d.Name != "our-processor" || d.Framing.Length != LengthASCII4 || d.Header.Form != HeaderTPDU || d.Fields[2].Prefix != "ASCII.LL" ||
		d.Reversal.Type != "0400" || d.NetworkManagement.Type != "0800" {
		t.Errorf("got %+v", d)
	}
}
