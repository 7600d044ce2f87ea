package hsm

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestAModuleThatIsNoFileIsNamed(t *testing.T) {
	if _, err := loadModule(filepath.Join(t.TempDir(), "none.so"), ""); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a missing one: %v", err)
	}
	if _, err := loadModule(t.TempDir(), ""); err == nil || !strings.HasSuffix(err.Error(), "it is not a file") {
		t.Errorf("a folder: %v", err)
	}
}

func TestPINSources(t *testing.T) {
	path := filepath.Join(t.TempDir(), "token.pin")
	if _, err := PINFile(path)(); !errors.Is(withoutContent(err), fs.ErrNotExist) {
		t.Errorf("no file: %v", err)
	}
	if err := os.WriteFile(path, []byte("12 34\r\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if pin, err := PINFile(path)(); string(pin) != "12 34" || err != nil {
		t.Errorf("file: %q, %v", pin, err)
	}
	if err := os.Chmod(path, 0o644); err != nil {
		t.Fatal(err)
	}
	if pin, err := PINFile(path)(); pin != nil || !strings.Contains(withoutContent(err).Error(), "open to all users") {
		t.Errorf("file that all may read: %v", err)
	}
	pipe := filepath.Join(t.TempDir(), "pipe")
	if err := unix.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := PINFile(pipe)(); err == nil || !strings.Contains(withoutContent(err).Error(), "is not a file") {
		t.Errorf("a pipe: %v", err)
	}
	t.Setenv("TEST_TOKEN_PIN", "1234")
	if pin, err := PINVariable("TEST_TOKEN_PIN")(); string(pin) != "1234" || err != nil {
		t.Errorf("variable: %q, %v", pin, err)
	}
	if _, err := PINVariable("TEST_NO_TOKEN_PIN")(); err == nil {
		t.Error("a variable that is not set was taken")
	}
}
