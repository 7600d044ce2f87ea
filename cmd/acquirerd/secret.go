package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

var errNoTerminal = errors.New("standard input is not a terminal")

// mostSecret bounds a secret that is typed, in bytes with its line end. It is less than what a terminal takes as one line (4,096).
const mostSecret = 256

// secretPoll is how soon a prompt ends after ctx has, in milliseconds.
const secretPoll = 100

// readSecret asks a person at the terminal for one line, without an echo, and restores the terminal however it ends. The caller clears what it returns;
// nothing else holds a copy, which is why it is not term.ReadPassword. Its error is errNoTerminal where nobody can be asked.
func (c *cli) readSecret(ctx context.Context, prompt string) (secret []byte, err error) {
	line := make([]byte, mostSecret)
	n, err := c.readSecretInto(ctx, prompt, line)
	if err != nil {
		return nil, err
	}
	return line[:n], nil
}

// readSecretInto is readSecret into memory of its caller, and returns how many bytes of it the secret has. After an error the memory is cleared.
func (c *cli) readSecretInto(ctx context.Context, prompt string, line []byte) (n int, err error) {
	file, isFile := c.in.(*os.File)
	if !isFile {
		return 0, errNoTerminal
	}
	raw, err := file.SyscallConn()
	if err != nil {
		return 0, errNoTerminal
	}
	failed := raw.Control(func(fd uintptr) { n, err = c.readSilently(ctx, int(fd), prompt, line) })
	if err = errors.Join(failed, err); err != nil {
		clear(line)
	}
	return n, err
}

func (c *cli) readSilently(ctx context.Context, fd int, prompt string, line []byte) (length int, err error) {
	before, err := unix.IoctlGetTermios(fd, unix.TCGETS)
	if err != nil {
		return 0, errNoTerminal
	}
	silent := *before
	silent.Lflag &^= unix.ECHO
	silent.Lflag |= unix.ICANON | unix.ISIG // a whole line at once, and an interrupt is a signal
	silent.Iflag |= unix.ICRNL
	// No key stops or quits: a stopped command would go on at a terminal to which its shell has given the echo back, and a quit leaves it without one.
	const disabled = 0 // _POSIX_VDISABLE of Linux
	silent.Cc[unix.VSUSP], silent.Cc[unix.VQUIT] = disabled, disabled
	// TCSETSF also discards what was typed before: it was echoed, and meant for something else.
	if err := unix.IoctlSetTermios(fd, unix.TCSETSF, &silent); err != nil {
		return 0, fmt.Errorf("asking for a secret: %w", err)
	}
	defer func() {
		// TCSETSF discards what was typed and not taken, because the line was too long or ctx has ended: the shell would show it.
		if restored := unix.IoctlSetTermios(fd, unix.TCSETSF, before); restored != nil {
			err = errors.Join(err, fmt.Errorf("restoring the terminal: %w", restored))
		}
		_, _ = fmt.Fprintln(c.err) // the person's own line end was not shown
	}()
	if _, err := fmt.Fprint(c.err, prompt); err != nil {
		return 0, err
	}
	for {
		if err := ctx.Err(); err != nil {
			return 0, fmt.Errorf("asking for a secret: %w", err)
		}
		ready := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}} //nolint:gosec // a descriptor
		if n, err := unix.Poll(ready, secretPoll); n == 0 || errors.Is(err, unix.EINTR) {
			continue
		} else if err != nil {
			return 0, fmt.Errorf("asking for a secret: %w", err)
		}
		n, err := unix.Read(fd, line)
		if errors.Is(err, unix.EINTR) || errors.Is(err, unix.EAGAIN) {
			continue
		}
		whole := n > 0 && line[n-1] == '\n'
		secret := bytes.TrimRight(line[:max(n, 0)], "\r\n")
		switch {
		case err != nil:
			return 0, fmt.Errorf("asking for a secret: %w", err)
		case !whole && n == len(line):
			return 0, fmt.Errorf("asking for a secret: it is longer than %d bytes", len(line)-1)
		case len(secret) == 0:
			return 0, errors.New("asking for a secret: none was given")
		}
		return len(secret), nil
	}
}
