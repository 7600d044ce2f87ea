package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"acquirerd/hsm"
	"acquirerd/hsm/hsmtest"
	"acquirerd/journal"
	"acquirerd/messages"
)

// argumentsOf names the arguments of a command that this test binary runs as a process of its own: a module has one user in a process.
const argumentsOf = "ACQUIRERD_TEST_ARGUMENTS"

func TestCommandOfAnotherProcess(t *testing.T) {
	var args []string
	if json.Unmarshal([]byte(os.Getenv(argumentsOf)), &args) != nil {
		t.Skip("runs only for other tests")
	}
	os.Args = append([]string{"acquirerd"}, args...)
	main()
}

// process runs a command as a process of its own.
func process(t *testing.T, args ...string) result {
	t.Helper()
	text, err := json.Marshal(args)
	if err != nil {
		t.Fatal(err)
	}
	var out, errs bytes.Buffer
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestCommandOfAnotherProcess$")
	cmd.Env = append(os.Environ(), argumentsOf+"="+string(text))
	cmd.Stdout, cmd.Stderr = &out, &errs
	err = cmd.Run()
	if exit := (*exec.ExitError)(nil); err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return result{cmd.ProcessState.ExitCode(), out.String(), errs.String()}
}

// pinFile writes a PIN file.
func pinFile(t *testing.T, pin string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "pin")
	if err := os.WriteFile(path, []byte(pin+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// results of the rows of reveal, with their details.
func revealRows(t *testing.T, path string) []string {
	t.Helper()
	var list []string
	for _, row := range auditRows(t, path, "--what", "reveal") {
		if row.Who != me(t) {
			t.Errorf("who: %q, want %q", row.Who, me(t))
		}
		list = append(list, strings.TrimSpace(row.Key+" "+row.Detail+" "+row.Result))
	}
	return list
}

func TestAWholePANIsShownToWhoGivesThePIN(t *testing.T) {
	site := newSite(t, newProcessor(t, approveRightPIN))
	site.create()
	daemon := site.start()
	daemon.inService(1)
	path := daemon.config
	if got := daemon.dial().ask(authorization("000001", "")).Get(messages.ResponseCode); got != "00" {
		t.Fatalf("got %q", got)
	}
	right, wrong := site.token.PINFile(), pinFile(t, "000000")
	steps := []struct {
		name string
		args []string
		code int
		out  string
		err  string
		rows []string
	}{
		{"with the right PIN", []string{"1", "--pin-file", right}, 0, testPAN + "\n", "", []string{"transaction 1 asked", hsmtest.SealKey + " transaction 1 shown"}},
		{"as JSON", []string{"1", "--pin-file", right, "--output", "json"}, 0, "{\n  \"id\": 1,\n  \"pan\": \"" + testPAN + "\"\n}\n", "",
			[]string{"transaction 1 asked", hsmtest.SealKey + " transaction 1 shown"}},
		{"with a wrong PIN", []string{"1", "--pin-file", wrong}, 1, "", "token refused the user PIN",
			[]string{"transaction 1 asked", hsmtest.SealKey + " transaction 1 refused: revealing PAN: logging in: token refused the user PIN: pkcs11: 0xA0: CKR_PIN_INCORRECT"}},
		{"of one that is not there", []string{"4711", "--pin-file", right}, 1, "", "there is no such transaction",
			[]string{"transaction 4711 asked", "transaction 4711 refused: reading transaction 4711: there is no such transaction"}},
		{"with no PIN file", []string{"1", "--pin-file", "/nowhere/pin"}, 1, "", "reading the token's user PIN: ", nil},
	}
	want := []string{}
	for _, step := range steps {
		got := process(t, append([]string{"journal", "show", "--reveal", "--config", path}, step.args...)...)
		if got.code != step.code || got.out != step.out || !strings.Contains(got.err, step.err) || strings.Count(got.err, "\n") != step.code || strings.Contains(got.err, "000000") {
			t.Errorf("%s: got %+v", step.name, got)
		}
		want = append(want, step.rows...)
	}
	if got := revealRows(t, path); fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("rows\n%s, want\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	// The daemon's login was not disturbed by any of it.
	if got := daemon.dial().ask(authorization("000002", testPIN)).Get(messages.ResponseCode); got != "00" {
		t.Errorf("afterwards got %q", got)
	}
	if strings.Contains(daemon.log.String(), testPAN) {
		t.Error("the PAN stands in the log")
	}
	daemon.stop()
	if code := daemon.exit(); code != 0 {
		t.Errorf("exit %d", code)
	}

	// Without a daemon, and without --reveal.
	if got := command(t, "journal", "show", "1", "--reveal", "--pin-file", right, "--config", path); got != (result{0, testPAN + "\n", ""}) {
		t.Errorf("got %+v", got)
	}
	if got := command(t, "journal", "show", "1", "--config", path); got.code != 0 || strings.Contains(got.out, testPAN) || !strings.Contains(got.out, "411111******1111") {
		t.Errorf("got %+v", got)
	}
	for want, args := range map[string][]string{
		"--pin-file is of --reveal":        {"1", "--pin-file", right},
		"is not the ID of a transaction":   {"x", "--reveal"},
		"is not a terminal: give --pin-fi": {"1", "--reveal"},
	} {
		if got := process(t, append([]string{"journal", "show", "--config", path}, args...)...); got.code != exitUsage || got.out != "" || !strings.Contains(got.err, want) {
			t.Errorf("%v: got %+v", args, got)
		}
	}
	// What the daemon has for its PIN does not count.
	t.Setenv(pinVariable, "test-user-pin")
	if got := command(t, "journal", "show", "1", "--reveal", "--pin-file", wrong, "--config", path); got.code != 1 || got.out != "" || !strings.Contains(got.err, "token refused the user PIN") {
		t.Errorf("with the daemon's own PIN in the environment: got %+v", got)
	}
}

func TestNothingIsShownThatCannotBeRecorded(t *testing.T) {
	site := newSite(t, newProcessor(t, approveRightPIN))
	site.create()
	site.sells(1, 1)
	path, right := site.config(), site.token.PINFile()

	// Somebody else holds the journal, and takes no rows.
	held, err := (&cli{}).openForChange(&Config{Station: "acq01", Journal: JournalConfig{Path: site.journal}})
	if err != nil {
		t.Fatal(err)
	}
	offered := pinFile(t, "000000")
	for _, pin := range []string{right, offered} { // a wrong PIN is not even tried
		if got := command(t, "journal", "show", "1", "--reveal", "--pin-file", pin, "--config", path); got.code != 1 || got.out != "" ||
			!strings.HasPrefix(got.err, "acquirerd: revealing nothing, because it cannot be recorded: ") || strings.Contains(got.err, "refused the user PIN") {
			t.Errorf("got %+v", got)
		}
	}
	if err := held.Close(); err != nil {
		t.Fatal(err)
	}
	if got := revealRows(t, path); len(got) != 0 {
		t.Errorf("rows %v", got)
	}
	if got := command(t, "journal", "show", "1", "--reveal", "--pin-file", right, "--config", path); got.code != 0 {
		t.Errorf("got %+v", got)
	}
}

func TestNothingIsShownIfItsEndCannotBeRecorded(t *testing.T) {
	site := newSite(t, newProcessor(t, approveRightPIN))
	site.create()
	site.sells(1, 1)
	cfg, err := loadConfig(site.config())
	if err != nil {
		t.Fatal(err)
	}
	full := errors.New("disk full")
	var results []string
	for failing := 1; failing <= 3; failing++ {
		var out bytes.Buffer
		c := &cli{out: &out, err: io.Discard, config: site.config(), output: "text"}
		pin, err := site.token.PIN()
		if err != nil {
			t.Fatal(err)
		}
		results = nil
		err = c.reveal(t.Context(), cfg, 1, pin, func(e journal.AuditEvent) error {
			if results = append(results, e.Result); len(results) == failing {
				return full
			}
			return nil
		})
		if shown := failing == 3; errors.Is(err, full) == shown || (out.Len() > 0) != shown {
			t.Errorf("row %d fails: %v, %q", failing, err, &out)
		}
	}
	if !slices.Equal(results, []string{"asked", "shown"}) {
		t.Errorf("rows %v", results)
	}
}

func TestASealOfAKeyThatIsGoneIsNotRevealed(t *testing.T) {
	site := newSite(t, newProcessor(t, approveRightPIN))
	site.create()
	site.sells(1, 1)
	site.newSeal()
	site.token.Keys = slices.DeleteFunc(site.token.Keys, func(k hsm.Key) bool { return k.Label == hsmtest.SealKey })
	path := site.config()
	if got := command(t, "journal", "show", "1", "--reveal", "--pin-file", site.token.PINFile(), "--config", path); got.code != 1 || got.out != "" ||
		got.err != "acquirerd: transaction 1 is sealed under \"pan-seal-1\", which is not in the config\n" {
		t.Errorf("got %+v", got)
	}
	if got := revealRows(t, path); len(got) != 2 || !strings.HasPrefix(got[1], "pan-seal-1 transaction 1 refused: ") {
		t.Errorf("rows %q", got)
	}
}

// A terminal is one whose other end the test types at.
type terminal struct {
	*os.File          // the program's end
	keys     *os.File // the person's end
}

func newTerminal(t *testing.T) *terminal {
	t.Helper()
	keys, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = keys.Close() })
	raw, err := keys.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var number int
	var failed error
	err = raw.Control(func(fd uintptr) {
		if failed = unix.IoctlSetPointerInt(int(fd), unix.TIOCSPTLCK, 0); failed == nil {
			number, failed = unix.IoctlGetInt(int(fd), unix.TIOCGPTN)
		}
	})
	if err := errors.Join(err, failed); err != nil {
		t.Fatal(err)
	}
	end, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", number), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = end.Close() })
	return &terminal{end, keys}
}

// echoes reports whether what is typed is shown.
func (v *terminal) echoes(t *testing.T) bool {
	t.Helper()
	raw, err := v.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var settings *unix.Termios
	var failed error
	err = raw.Control(func(fd uintptr) { settings, failed = unix.IoctlGetTermios(int(fd), unix.TCGETS) })
	if err := errors.Join(err, failed); err != nil {
		t.Fatal(err)
	}
	return settings.Lflag&unix.ECHO != 0
}

// A prompt does something when it is shown.
type prompt struct {
	bytes.Buffer
	asked func()
}

func (p *prompt) Write(text []byte) (int, error) {
	if p.asked != nil {
		asked := p.asked
		p.asked = nil
		asked()
	}
	return p.Buffer.Write(text)
}

func TestASecretIsAskedForWithoutAnEcho(t *testing.T) {
	for name, test := range map[string]struct {
		typed string
		want  string
		fault string
	}{
		"a line":           {"test-user-pin\r", "test-user-pin", ""},
		"a corrected line": {"tesx\x7ft\r", "test", ""},
		"nothing":          {"\r", "", "none was given"},
		"an end":           {"\x04", "", "none was given"},
		"a long line":      {strings.Repeat("x", mostSecret) + "\r", "", "longer than 255 bytes"},
		"the longest":      {strings.Repeat("x", mostSecret-1) + "\r", strings.Repeat("x", mostSecret-1), ""},
	} {
		t.Run(name, func(t *testing.T) {
			v := newTerminal(t)
			p := &prompt{}
			p.asked = func() {
				if v.echoes(t) {
					t.Error("what is typed is shown")
				}
				if _, err := v.keys.WriteString(test.typed); err != nil {
					t.Error(err)
				}
			}
			c := &cli{in: v.File, err: p}
			got, err := c.readSecret(t.Context(), "PIN: ")
			if string(got) != test.want || (err == nil) != (test.fault == "") || err != nil && !strings.Contains(err.Error(), test.fault) {
				t.Errorf("got %q, %v", got, err)
			}
			if !v.echoes(t) {
				t.Error("the terminal is not as it was")
			}
			if p.String() != "PIN: \n" {
				t.Errorf("shown %q", p.String())
			}
		})
	}
}

// What was typed and not taken is not left to the shell, which would show it and take it for a command.
func TestNothingOfASecretIsLeftInTheTerminal(t *testing.T) {
	v := newTerminal(t)
	p := &prompt{asked: func() {
		if _, err := v.keys.WriteString(strings.Repeat("x", mostSecret) + "secret\r"); err != nil {
			t.Error(err)
		}
	}}
	if got, err := (&cli{in: v.File, err: p}).readSecret(t.Context(), "PIN: "); err == nil || got != nil {
		t.Fatalf("got %q, %v", got, err)
	}
	if _, err := v.keys.WriteString("ls\r"); err != nil {
		t.Fatal(err)
	}
	line := make([]byte, 2*mostSecret)
	if n, err := v.Read(line); err != nil || string(line[:n]) != "ls\n" {
		t.Errorf("the next one reads %q, %v", line[:n], err)
	}
}

func TestAPromptEndsWithItsCommand(t *testing.T) {
	v := newTerminal(t)
	ctx, cancel := context.WithCancel(t.Context())
	c := &cli{in: v.File, err: &prompt{asked: cancel}}
	if got, err := c.readSecret(ctx, "PIN: "); !errors.Is(err, context.Canceled) || got != nil || !v.echoes(t) {
		t.Errorf("got %q, %v", got, err)
	}
	for name, in := range map[string]io.Reader{"a buffer": &bytes.Buffer{}, "a file": mustOpen(t, os.DevNull)} {
		if got, err := (&cli{in: in, err: io.Discard}).readSecret(t.Context(), "PIN: "); !errors.Is(err, errNoTerminal) || got != nil {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
}

func mustOpen(t *testing.T, path string) *os.File {
	t.Helper()
	file, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = file.Close() })
	return file
}

func TestAPINIsTypedToRevealAPAN(t *testing.T) {
	site := newSite(t, newProcessor(t, approveRightPIN))
	site.create()
	site.sells(1, 1)
	pin, err := site.token.PIN()
	if err != nil {
		t.Fatal(err)
	}
	v := newTerminal(t)
	p := &prompt{asked: func() {
		if _, err := v.keys.WriteString(string(pin) + "\r"); err != nil {
			t.Error(err)
		}
	}}
	var out bytes.Buffer
	c := &cli{in: v.File, out: &out, err: p, config: site.config(), output: "text"}
	began := time.Now()
	if err := c.journalReveal(t.Context(), 1, ""); err != nil || out.String() != testPAN+"\n" || p.String() != "User PIN of the token: \n" {
		t.Errorf("got %v, %q, %q after %v", err, &out, p.String(), time.Since(began))
	}
}
