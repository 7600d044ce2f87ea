package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// settings of a terminal.
func (v *terminal) settings(t *testing.T) *unix.Termios {
	t.Helper()
	raw, err := v.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var settings *unix.Termios
	var failed error
	if err := raw.Control(func(fd uintptr) { settings, failed = unix.IoctlGetTermios(int(fd), unix.TCGETS) }); err != nil || failed != nil {
		t.Fatal(err, failed)
	}
	return settings
}

// waiting is how many bytes the next program at a terminal would read as typed.
func (v *terminal) waiting(t *testing.T) (n int) {
	t.Helper()
	raw, err := v.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var failed error
	if err := raw.Control(func(fd uintptr) { n, failed = unix.IoctlGetInt(int(fd), unix.TIOCINQ) }); err != nil || failed != nil {
		t.Fatal(err, failed)
	}
	return n
}

// A stop (Ctrl-Z) gives the terminal back to a shell, which sets its echo, and nobody takes that away when the command goes on; a quit (Ctrl-\\) ends the
// command with the terminal as the prompt has it.
func TestAPromptIsNotLeftByKeys(t *testing.T) {
	v := newTerminal(t)
	before := v.settings(t)
	p := &prompt{asked: func() {
		during := v.settings(t)
		if during.Cc[unix.VSUSP] != 0 || during.Cc[unix.VQUIT] != 0 {
			t.Errorf("stop is the character %#x, and quit %#x", during.Cc[unix.VSUSP], during.Cc[unix.VQUIT])
		}
		if during.Cc[unix.VINTR] != before.Cc[unix.VINTR] || during.Lflag&unix.ISIG == 0 {
			t.Error("an interrupt does not end the prompt")
		}
		if _, err := v.keys.WriteString("secret\n"); err != nil {
			t.Error(err)
		}
	}}
	c := &cli{in: v.File, err: p}
	if got, err := c.readSecret(t.Context(), "PIN: "); err != nil || string(got) != "secret" {
		t.Errorf("got %q, %v", got, err)
	}
	if after := v.settings(t); *after != *before {
		t.Errorf("the terminal is not as it was: %+v, %+v", after, before)
	}
}

// What is left of a line goes to nobody: a shell would show it, run it, and keep it in its history.
func TestNothingThatWasTypedIsLeftForTheShell(t *testing.T) {
	for name, typed := range map[string]string{"a line that is too long": strings.Repeat("A", mostSecret+20) + "\n", "two lines": "first\nsecond\n"} {
		t.Run(name, func(t *testing.T) {
			v := newTerminal(t)
			p := &prompt{asked: func() {
				if _, err := v.keys.WriteString(typed); err != nil {
					t.Error(err)
				}
			}}
			c := &cli{in: v.File, err: p}
			_, _ = c.readSecret(t.Context(), "PIN: ")
			if n := v.waiting(t); n != 0 {
				t.Errorf("%d bytes are left", n)
			}
		})
	}
}

// Who types a component gives it to a process that leaves no core.
func TestCommandsOnKeysLeaveNoCore(t *testing.T) {
	site := newSite(t)
	site.create()
	args, err := json.Marshal([]string{"keys", "import", "--config", site.config(), "--label", "zmk-a", "--use", "zmk", "--kcv", "000000", "--custodian", "alice", "--custodian", "bob"})
	if err != nil {
		t.Fatal(err)
	}
	v := newTerminal(t)
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestCommandOfAnotherProcess$")
	cmd.Env = append(os.Environ(), argumentsOf+"="+string(args))
	cmd.Stdin = v.File
	prompts, err := cmd.StderrPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	asked, err := bufio.NewReader(prompts).ReadString(':')
	if err != nil || !strings.Contains(asked, "of alice") {
		t.Errorf("asked %q, %v", asked, err)
	}
	limits, err := os.ReadFile(fmt.Sprintf("/proc/%d/limits", cmd.Process.Pid))
	if err != nil || !regexp.MustCompile(`Max core file size +0 +0 `).Match(limits) {
		t.Errorf("%v\n%s", err, limits)
	}
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Error(err)
	}
	_ = cmd.Wait() // it ends with a fault: no component was typed
	if !v.echoes(t) {
		t.Error("the terminal is left without an echo")
	}
}
