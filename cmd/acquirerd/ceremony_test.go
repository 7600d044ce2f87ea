package main

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"acquirerd/hsm"
	"acquirerd/hsm/hsmtest"
)

// componentFile writes what a custodian brings.
func componentFile(t *testing.T, digits, kcv string) string {
	t.Helper()
	text := "# for a test\ncomponent " + digits[:4] + " " + digits[4:] + "\n"
	if kcv != "" {
		text += "kcv " + kcv + "\n"
	}
	path := filepath.Join(t.TempDir(), "component")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// Two components, with their check values, and that of the TDES key that they make.
const (
	componentA, kcvA = "1C587F1C13924FEFE5F1A1B1C1D1E1F1", "C66607"
	componentB, kcvB = "0123456789ABCDEFFEDCBA9876543210", "08D7B4"
)

func TestACeremonyFromComponentsToTheEndOfTheKey(t *testing.T) {
	site := newSite(t)
	site.create()
	path := site.config()
	for _, kind := range [][]string{{"--use", "zmk"}, {"--use", "zmk", "--bits", "192"}, {"--use", "pin-in", "--algorithm", "aes"}, {"--use", "kbpk", "--algorithm", "aes", "--bits", "128"}} {
		dir := t.TempDir()
		files := []string{filepath.Join(dir, "a"), filepath.Join(dir, "b"), filepath.Join(dir, "c")}
		made := command(t, append([]string{"keys", "components", "--config", path, "--file", files[0], "--file", files[1], "--file", files[2], "-o", "json"}, kind...)...)
		var components struct {
			Components []madeComponent
			KCV        string
		}
		if err := json.Unmarshal([]byte(made.out), &components); err != nil || made.code != 0 || len(components.Components) != 3 || !sixHex.MatchString(components.KCV) {
			t.Fatalf("%v: got %+v, %v", kind, made, err)
		}
		algorithm := "tdes"
		if slices.Contains(kind, "aes") {
			algorithm = "aes"
		}
		for i, file := range files {
			if about, err := os.Stat(file); err != nil || about.Mode().Perm() != 0o600 {
				t.Errorf("%v: %v, %v", kind, about, err)
			}
			if got := command(t, "keys", "kcv", "--config", path, "--component", file, "--algorithm", algorithm); got.code != 0 || got.out != components.Components[i].KCV+"\n" {
				t.Errorf("%v: got %+v, want %s", kind, got, components.Components[i].KCV)
			}
		}
		if again := command(t, append([]string{"keys", "components", "--config", path, "--file", filepath.Join(dir, "new"), "--file", files[1]}, kind...)...); again.code != 1 ||
			!strings.Contains(again.err, "exists") {
			t.Errorf("%v: over what is there: got %+v", kind, again)
		}
		if _, err := os.Stat(filepath.Join(dir, "new")); !os.IsNotExist(err) {
			t.Errorf("%v: a component of no key was left: %v", kind, err)
		}

		load := append([]string{"keys", "import", "--config", path, "--label", "key-1", "--component", files[0], "--component", files[1], "--component", files[2],
			"--custodian", "alice", "--custodian", "bob", "--custodian", "carol", "-o", "json"}, kind...)
		got := command(t, append(load, "--kcv", components.KCV)...)
		var key hsm.KeyInfo
		if err := json.Unmarshal([]byte(got.out), &key); err != nil || got.code != 0 || key.KCV != components.KCV || string(key.Use) != kind[1] || string(key.Algorithm) != algorithm {
			t.Fatalf("%v: got %+v, %v", kind, got, err)
		}
		if got := command(t, "keys", "kcv", "--config", path, "--label", "key-1"); got.out != components.KCV+"\n" {
			t.Errorf("%v: got %+v", kind, got)
		}
		if again := command(t, append(load, "--kcv", components.KCV)...); again.code != 1 || !strings.Contains(again.err, "has a key of that label") {
			t.Errorf("%v: twice: got %+v", kind, again)
		}

		if got := command(t, "keys", "destroy", "--config", path, "--label", "key-1", "--kcv", "000000"); got.code != 1 || !strings.Contains(got.err, "has the check value "+components.KCV) {
			t.Errorf("%v: by another check value: got %+v", kind, got)
		}
		if got := command(t, "keys", "destroy", "--config", path, "--label", "key-1", "--kcv", strings.ToLower(components.KCV)); got.code != 0 || !strings.Contains(got.out, "destroyed key-1") {
			t.Errorf("%v: got %+v", kind, got)
		}
		if got := command(t, "keys", "destroy", "--config", path, "--label", "key-1", "--kcv", components.KCV); got.code != 1 || !strings.Contains(got.err, "0 keys with the label") {
			t.Errorf("%v: twice: got %+v", kind, got)
		}
	}
	rows := command(t, "journal", "audit", "--config", path, "--limit", "1000")
	for _, want := range []string{"components", "3 components of a zmk key", "import", "components of alice, bob, carol", "kcv", "destroy", "token has a key of that label already"} {
		if rows.code != 0 || !strings.Contains(rows.out, want) {
			t.Errorf("the audit table has no %q:\n%s%s", want, rows.out, rows.err)
		}
	}
	if got := command(t, "keys", "destroy", "--config", path, "--label", hsmtest.ProcessorKey, "--kcv", site.token.Keys[1].KCV); got.code != 1 || !strings.Contains(got.err, "is in the config") {
		t.Errorf("a key of the config: got %+v", got)
	}
	if got := command(t, "keys", "destroy", "--config", path, "--label", hsmtest.ProcessorKey, "--kcv", site.token.Keys[1].KCV, "--force-in-use", "-o", "json"); got.code != 0 {
		t.Errorf("a key of the config, by force: got %+v", got)
	}
}

// A file that does not name the key any more is not what the daemon was started with.
func TestAKeyOfTheRunningDaemonIsNotDestroyed(t *testing.T) {
	site := newSite(t)
	key := site.token.Put("spare", hsm.ZMK, hsmtest.ZoneKey("spare", 16))
	site.create()
	daemon := site.start()
	text, err := os.ReadFile(daemon.config)
	if err != nil {
		t.Fatal(err)
	}
	lines := slices.DeleteFunc(strings.SplitAfter(string(text), "\n"), func(line string) bool { return strings.Contains(line, "label: spare,") })
	if err := os.WriteFile(daemon.config, []byte(strings.Join(lines, "")), 0o600); err != nil {
		t.Fatal(err)
	}
	destroy := []string{"keys", "destroy", "--config", daemon.config, "--label", "spare", "--kcv", key.KCV}
	if got := command(t, destroy...); got.code != 1 || !strings.Contains(got.err, "the running daemon uses it: restart it first") || strings.Count(got.err, "\n") != 1 {
		t.Errorf("beside the daemon: got %+v", got)
	}
	if row := has(auditRows(t, daemon.config), "destroy", "spare", "the running daemon uses it"); row == nil {
		t.Error("the refusal is not on record")
	}
	daemon.stop()
	if code := daemon.exit(); code != 0 {
		t.Errorf("exit %d", code)
	}
	if got := command(t, destroy...); got.code != 0 || !strings.Contains(got.out, "destroyed spare") {
		t.Errorf("when it has ended: got %+v", got)
	}
}

func TestWhatCustodiansBringIsRefused(t *testing.T) {
	site := newSite(t)
	site.create()
	path := site.config()
	good := []string{componentFile(t, componentA, kcvA), componentFile(t, componentB, kcvB)}
	open := componentFile(t, componentA, kcvA)
	if err := os.Chmod(open, 0o640); err != nil {
		t.Fatal(err)
	}
	linked := filepath.Join(t.TempDir(), "other-name")
	if err := os.Link(good[0], linked); err != nil {
		t.Fatal(err)
	}
	large := componentFile(t, strings.Repeat("0", mostComponent), "")
	for _, test := range []struct {
		name  string
		files []string
		want  string
	}{
		{"no check value", []string{good[0], componentFile(t, componentB, "")}, `has no line "kcv" with its check value`},
		{"half a check value", []string{good[0], componentFile(t, componentB, "08D7")}, `has no line "kcv" with six hexadecimal digits`},
		{"two check values", []string{good[0], componentFile(t, componentB, kcvB+"\nkcv "+kcvB)}, "or more than one"},
		{"another check value", []string{good[0], componentFile(t, componentB, kcvA)}, "component 2 has the check value 08D7B4 as a key for tdes, not C66607"},
		{"no digits", []string{good[0], componentFile(t, "none to be had", kcvB)}, "does not hold hexadecimal digits"},
		{"another length", []string{good[0], componentFile(t, componentB[:30], kcvB)}, "component 2 has 15 bytes, and component 1 has 16"},
		{"a single DES key", []string{componentFile(t, componentA[:16], kcvA), componentFile(t, componentB[:16], kcvB)}, "128 or 192 bits, not 64"},
		{"the same component", []string{good[0], componentFile(t, componentA, kcvA)}, "components 1 and 2 are equal"},
		{"one file", []string{good[0], good[0]}, "are one file"},
		{"one file by two names", []string{good[0], linked}, "are one file"},
		{"a file that others can read", []string{open, good[1]}, "is open to others than its owner"},
		{"a large file", []string{large, good[1]}, "is larger than 4096 bytes"},
		{"a device without an end", []string{"/dev/zero", good[1]}, "is larger than 4096 bytes"},
		{"no file", []string{filepath.Join(t.TempDir(), "none"), good[1]}, "no such file"},
	} {
		t.Run(test.name, func(t *testing.T) {
			got := command(t, "keys", "import", "--config", path, "--label", "x", "--use", "pin-in", "--kcv", "000000",
				"--component", test.files[0], "--component", test.files[1], "--custodian", "alice", "--custodian", "bob")
			if got.code != 1 || !strings.Contains(got.err, test.want) || strings.Count(got.err, "\n") != 1 {
				t.Errorf("got %+v, want %q", got, test.want)
			}
			for _, digits := range []string{componentA, componentB} {
				if strings.Contains(strings.ToUpper(got.err), digits[8:16]) {
					t.Error("the error shows a component")
				}
			}
		})
	}
	if os.Geteuid() == 0 { // only root can give files away
		theirs := []string{componentFile(t, componentA, kcvA), componentFile(t, componentB, kcvB)}
		for i, uid := range []int{4711, 4711} {
			if err := os.Chown(theirs[i], uid, -1); err != nil {
				t.Fatal(err)
			}
		}
		load := []string{"keys", "import", "--config", path, "--label", "x", "--use", "pin-in", "--kcv", "000000",
			"--component", theirs[0], "--component", theirs[1], "--custodian", "alice", "--custodian", "bob"}
		if got := command(t, load...); got.code != 1 || !strings.Contains(got.err, "belong to one user") {
			t.Errorf("two files of one custodian: got %+v", got)
		}
		if err := os.Chown(theirs[1], 4712, -1); err != nil {
			t.Fatal(err)
		}
		if got := command(t, load...); got.code != 1 || !strings.Contains(got.err, "has the check value") {
			t.Errorf("files of two custodians: got %+v", got)
		}
	}
	if got := command(t, "keys", "list", "--config", path); got.code != 0 || strings.Contains(got.out, "\nx ") {
		t.Errorf("a refused key was made: %+v", got)
	}
}

// Typists answer the prompts of a command at a terminal, one line each, and keep what is seen on it.
type typists struct {
	*terminal
	t       *testing.T
	answers []string
	prompts bytes.Buffer // what the command wrote to standard error
	seen    bytes.Buffer // what the terminal showed of what was typed
	ended   chan struct{}
}

func newTypists(t *testing.T, answers ...string) *typists {
	t.Helper()
	v := &typists{terminal: newTerminal(t), t: t, answers: answers, ended: make(chan struct{})}
	go func() { // ends when the program's end is closed
		defer close(v.ended)
		_, _ = io.Copy(&v.seen, v.keys)
	}()
	return v
}

// Write is the command's standard error: after a prompt comes the next answer.
func (v *typists) Write(p []byte) (int, error) {
	v.prompts.Write(p)
	if bytes.HasSuffix(p, []byte(": ")) {
		if len(v.answers) == 0 {
			v.t.Fatalf("nobody answers %q", p)
		}
		if _, err := v.keys.WriteString(v.answers[0] + "\n"); err != nil {
			v.t.Error(err)
		}
		v.answers = v.answers[1:]
	}
	return len(p), nil
}

// command runs a command whose standard input is the terminal.
func (v *typists) command(args ...string) (out string, err error) {
	v.t.Helper()
	var written bytes.Buffer
	c := &cli{in: v.File, out: &written, err: v}
	root := c.root()
	root.SetArgs(args)
	err = root.ExecuteContext(v.t.Context())
	if !v.echoes(v.t) {
		v.t.Error("the terminal is left without an echo")
	}
	_ = v.Close()
	<-v.ended
	return written.String(), err
}

func TestCustodiansTypeTheirComponents(t *testing.T) {
	site := newSite(t)
	site.create()
	path := site.config()
	whole := make([]byte, 16)
	a, _ := hex.DecodeString(componentA)
	b, _ := hex.DecodeString(componentB)
	for i := range whole {
		whole[i] = a[i] ^ b[i]
	}
	load := []string{"keys", "import", "--config", path, "--label", "zmk-a", "--use", "zmk", "--kcv", hsmtest.KCV(hsm.ZMK, whole), "--custodian", "alice", "--custodian", "bob"}

	// The second one errs twice: in the digits, and in the check value.
	typing := newTypists(t, strings.ToLower(componentA), kcvA, "1234 5X", componentB[:4]+" "+componentB[4:], kcvA, componentB, kcvB)
	out, err := typing.command(load...)
	if err != nil || !strings.Contains(out, "zmk-a") || !strings.Contains(out, hsmtest.KCV(hsm.ZMK, whole)) {
		t.Fatalf("got %q, %v\n%s", out, err, &typing.prompts)
	}
	prompts := typing.prompts.String()
	for _, want := range []string{"component 1 of 2, of alice", "component 2 of 2, of bob", "not hexadecimal digits", "check value 08D7B4, and not the one that was typed", "check value C66607, right"} {
		if !strings.Contains(prompts, want) {
			t.Errorf("prompts without %q:\n%s", want, prompts)
		}
	}
	for _, digits := range []string{componentA, componentB} {
		if shown := strings.ToUpper(typing.seen.String() + prompts + out); strings.Contains(shown, digits[:8]) || strings.Contains(shown, digits[24:]) {
			t.Errorf("a component was shown:\n%s", shown)
		}
	}

	load[5] = "zmk-b"
	typing = newTypists(t, componentA, componentA, componentA, kcvB, componentA, kcvB)
	if _, err := typing.command(load...); err == nil || !strings.Contains(typing.prompts.String(), "not six hexadecimal digits") {
		t.Errorf("a component in the place of its check value: %v\n%s", err, &typing.prompts)
	}
	typing = newTypists(t, componentA, kcvB, componentA, kcvB, componentA, kcvB)
	if _, err := typing.command(load...); err == nil || !strings.Contains(err.Error(), "was typed wrongly 3 times") {
		t.Errorf("got %v", err)
	}
	// Without a terminal nobody is asked.
	if got := command(t, load...); got.code != 1 || !strings.Contains(got.err, "standard input is not a terminal") {
		t.Errorf("got %+v", got)
	}
	if got := command(t, "keys", "list", "--config", path); strings.Contains(got.out, "zmk-b") {
		t.Errorf("a refused key was made: %+v", got)
	}
}

// withKBPK imports a protection key from components, as both sides of a zone do.
func withKBPK(t *testing.T, path, label, algorithm string, value []byte) {
	t.Helper()
	first := bytes.Repeat([]byte{0x5B}, len(value))
	second := make([]byte, len(value))
	for i := range second {
		second[i] = first[i] ^ value[i]
	}
	use := hsm.KBPK
	kcv := func(b []byte) string { return hsmtest.KCV(use, b) }
	if algorithm == "aes" {
		use = hsm.PANSeal // whose check value is that of an AES key too
	}
	args := []string{"keys", "import", "--config", path, "--label", label, "--use", "kbpk", "--algorithm", algorithm, "--kcv", kcv(value), "--custodian", "alice", "--custodian", "bob",
		"--component", componentFile(t, hex.EncodeToString(first), kcv(first)), "--component", componentFile(t, hex.EncodeToString(second), kcv(second))}
	if got := command(t, args...); got.code != 0 {
		t.Fatalf("got %+v", got)
	}
}

func TestAKeyGoesToItsOtherSideInAKeyBlock(t *testing.T) {
	ours, theirs := newSite(t).config(), newSite(t).config()
	tdes, aes := hsmtest.ZoneKey("kbpk", 24), hsmtest.SealValue
	for _, path := range []string{ours, theirs} {
		withKBPK(t, path, "kbpk-tdes", "tdes", tdes)
		withKBPK(t, path, "kbpk-aes", "aes", aes)
	}
	for _, test := range []struct {
		kbpk, ours, theirs, algorithm, bits string
		version                             string
	}{
		{"kbpk-tdes", "pin-in", "pin-out", "tdes", "128", "B"},
		{"kbpk-aes", "pin-out", "pin-in", "tdes", "192", "D"},
		{"kbpk-aes", "pin-in", "pin-out", "aes", "256", "D"},
		{"kbpk-aes", "pan-token", "pan-token", "aes", "256", "D"},
		{"kbpk-aes", "pan-token", "pan-token", "hmac", "256", "D"},
		{"kbpk-aes", "kbpk", "kbpk", "aes", "128", "D"},
	} {
		label := strings.Join([]string{test.ours, test.algorithm, test.bits}, "-")
		file := filepath.Join(t.TempDir(), "key.tr31")
		made := command(t, "keys", "export", "--config", ours, "--label", label, "--use", test.ours, "--algorithm", test.algorithm, "--bits", test.bits, "--kbpk", test.kbpk, "--file", file, "-o", "json")
		var out, in hsm.KeyInfo
		if err := json.Unmarshal([]byte(made.out), &out); err != nil || made.code != 0 {
			t.Fatalf("%s: got %+v, %v", label, made, err)
		}
		block, err := os.ReadFile(file)
		if err != nil || !strings.HasPrefix(string(block), test.version) {
			t.Errorf("%s: got %s, %v", label, block, err)
		}
		load := []string{"keys", "import", "--config", theirs, "--label", label, "--use", test.theirs, "--key-block", file, "--kbpk", test.kbpk, "-o", "json"}
		got := command(t, load...)
		if err := json.Unmarshal([]byte(got.out), &in); err != nil || got.code != 0 || in.KCV != out.KCV || in.Bits != out.Bits || in.Algorithm != out.Algorithm || string(in.Use) != test.theirs {
			t.Errorf("%s: got %+v, %v, want the key %+v", label, got, err, out)
		}
		if again := command(t, load...); again.code != 1 || !strings.Contains(again.err, "has a key of that label") {
			t.Errorf("%s: twice: got %+v", label, again)
		}
	}
	taken := command(t, "keys", "export", "--config", ours, "--label", hsmtest.UpstreamKey, "--use", "pin-in", "--kbpk", "kbpk-aes", "--file", "-")
	if taken.code != 1 || taken.out != "" || !strings.Contains(taken.err, "has a key of that label") {
		t.Errorf("a key that is there already: got %+v", taken)
	}
	file := filepath.Join(t.TempDir(), "none")
	if got := command(t, "keys", "export", "--config", ours, "--label", "strong", "--use", "pin-in", "--algorithm", "aes", "--kbpk", "kbpk-tdes", "--file", file); got.code != 1 ||
		!strings.Contains(got.err, "wrapping key is weaker") {
		t.Errorf("a strong key under a weak one: got %+v", got)
	}
	if _, err := os.Stat(file); !os.IsNotExist(err) {
		t.Errorf("a file of no key was left: %v", err)
	}
	printed := command(t, "keys", "export", "--config", ours, "--label", "printed", "--use", "pin-in", "--kbpk", "kbpk-aes", "--file", "-")
	if printed.code != 0 || len(printed.out) != 113 || !strings.HasPrefix(printed.out, "D0112P0TE00N0000") {
		t.Errorf("got %+v", printed)
	}
}

func TestOlderWaysNeedAWord(t *testing.T) {
	site := newSite(t)
	site.token.Put("zmk-a", hsm.ZMK, hsmtest.ZoneKey("zmk-a", 16))
	key := hsmtest.ZoneKey("a key", 16)
	cryptogram := hex.EncodeToString(hsmtest.Cryptogram(hsmtest.ZoneKey("zmk-a", 16), key))
	path := site.config()
	load := func(path, label, kcv string) result {
		return command(t, "keys", "import", "--config", path, "--label", label, "--use", "pin-out", "--cryptogram", cryptogram, "--zmk", "zmk-a", "--kcv", kcv)
	}
	if got := load(path, "raw", hsmtest.KCV(hsm.PINOut, key)); got.code != 1 || !strings.Contains(got.err, "hsm.legacy_cryptogram is not true") {
		t.Errorf("got %+v", got)
	}
	site.change("sessions: 2", "sessions: 2\n  legacy_cryptogram: true")
	path = site.config()
	if got := load(path, "raw", "000000"); got.code != 1 || !strings.Contains(got.err, "has the check value") {
		t.Errorf("got %+v", got)
	}
	if got := load(path, "raw", hsmtest.KCV(hsm.PINOut, key)); got.code != 0 || !strings.Contains(got.out, hsmtest.KCV(hsm.PINOut, key)) {
		t.Errorf("got %+v", got)
	}

	// TR-31:2018, A.7.2.1: version A.
	block := written(t, "A0072P0TE00E0000F5161ED902807AF26F1D62263644BD24192FDB3193C730301CEE8701\n")
	kbpk, _ := hex.DecodeString("89E88CF7931444F334BD7547FC3F380C")
	withKBPK(t, path, "kbpk-a", "tdes", kbpk)
	if got := command(t, "keys", "import", "--config", path, "--label", "legacy", "--use", "pin-out", "--key-block", block, "--kbpk", "kbpk-a"); got.code != 1 ||
		!strings.Contains(got.err, "version A, which protects too little") {
		t.Errorf("got %+v", got)
	}
	first := bytes.Repeat([]byte{0x13}, 16)
	second := make([]byte, 16)
	for i := range second {
		second[i] = first[i] ^ kbpk[i]
	}
	args := []string{"keys", "import", "--config", path, "--label", "legacy", "--use", "pin-out", "--key-block", block, "--legacy-key-block", "--custodian", "alice", "--custodian", "bob",
		"--component", componentFile(t, hex.EncodeToString(first), hsmtest.KCV(hsm.KBPK, first)), "--component", componentFile(t, hex.EncodeToString(second), hsmtest.KCV(hsm.KBPK, second))}
	if got := command(t, append(args, "--kbpk-kcv", "000000")...); got.code != 1 || !strings.Contains(got.err, "key block protection key") {
		t.Errorf("another protection key: got %+v", got)
	}
	if got := command(t, append(args, "--kbpk-kcv", hsmtest.KCV(hsm.KBPK, kbpk))...); got.code != 0 || !strings.Contains(got.out, "CB9DEA") {
		t.Errorf("got %+v", got)
	}
}

func TestAKeyThatStillOpensRowsIsNotDestroyedUnaware(t *testing.T) {
	site := newSite(t, newProcessor(t, approveRightPIN))
	site.create()
	site.sells(1, 1)
	path := site.config()
	destroy := []string{"keys", "destroy", "--config", path, "--label", hsmtest.SealKey, "--kcv", hsmtest.KCV(hsm.PANSeal, hsmtest.SealValue), "--force-in-use"}
	if got := command(t, destroy...); got.code != 1 || !strings.Contains(got.err, "is all that opens 1 rows") {
		t.Errorf("got %+v", got)
	}
	var all inventory
	if got := command(t, "keys", "inventory", "--config", path, "-o", "json"); json.Unmarshal([]byte(got.out), &all) != nil || all.Keys[0].Label != hsmtest.SealKey ||
		all.Keys[0].Rows == nil || *all.Keys[0].Rows != 1 || !all.Keys[0].InConfig {
		t.Errorf("got %+v", got)
	}
	if got := command(t, append(destroy, "--unreadable", "1")...); got.code != 0 {
		t.Errorf("got %+v", got)
	}
}

func TestTheInventoryTellsOfEachKey(t *testing.T) {
	site := newSite(t)
	path := site.config()
	if got := command(t, "keys", "generate", "--config", path, "--label", "kbpk-1", "--use", "kbpk", "--algorithm", "aes"); got.code != 0 {
		t.Fatalf("got %+v", got)
	}
	got := command(t, "keys", "inventory", "--config", path, "-o", "json")
	var all inventory
	if err := json.Unmarshal([]byte(got.out), &all); err != nil || got.code != 0 || all.Serial == "" || all.Token != site.token.Label || len(all.Keys) != 5 {
		t.Fatalf("got %+v, %v", got, err)
	}
	kbpk := all.Keys[slices.IndexFunc(all.Keys, func(k inventoried) bool { return k.Label == "kbpk-1" })]
	if kbpk.Use != hsm.KBPK || kbpk.Bits != 256 || kbpk.Algorithm != hsm.AES || kbpk.InConfig || kbpk.Version != 1 ||
		!slices.Equal(kbpk.Mechanisms, []string{"AES_ECB", "AES_ECB_ENCRYPT_DATA"}) || !slices.Equal(kbpk.Flags[:2], []string{"encrypt", "derive"}) {
		t.Errorf("got %+v", kbpk)
	}
	if seal := all.Keys[slices.IndexFunc(all.Keys, func(k inventoried) bool { return k.Label == hsmtest.SealKey })]; !seal.InConfig || seal.Rows != nil {
		t.Errorf("got %+v: there is no journal yet", seal)
	}
	// Before there is a journal no key opens anything, and a warning says that nothing is on record.
	var seal hsm.KeyInfo
	if got := command(t, "keys", "generate", "--config", path, "--label", "pan-seal-2", "--use", "pan-seal", "-o", "json"); json.Unmarshal([]byte(got.out), &seal) != nil {
		t.Errorf("got %+v", got)
	}
	if got := command(t, "keys", "destroy", "--config", path, "--label", "pan-seal-2", "--kcv", seal.KCV); got.code != 0 || !strings.Contains(got.err, "there is no journal yet") {
		t.Errorf("got %+v", got)
	}
	if got := command(t, "keys", "inventory", "--config", path); got.code != 0 || !strings.Contains(got.out, "serial  "+all.Serial) || !strings.Contains(got.out, "AES_ECB,AES_ECB_ENCRYPT_DATA") {
		t.Errorf("got %+v", got)
	}
}
