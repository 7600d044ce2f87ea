package hsm

import (
	"bytes"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"slices"
	"unsafe"

	"github.com/miekg/pkcs11"
)

// PINFile is a source of the user PIN for a Config: the file's content without the line end, read at each login. It
// refuses a file that others may read or write.
func PINFile(path string) func() ([]byte, error) {
	return func() ([]byte, error) {
		about, err := os.Stat(path)
		if err != nil {
			return nil, err
		}
		if !about.Mode().IsRegular() {
			return nil, pinSourceError(path + " is not a file") // to read a pipe could last for ever
		}
		if about.Mode().Perm()&0o007 != 0 {
			return nil, pinSourceError(path + " is open to all users: take away the rights of others")
		}
		content, err := os.ReadFile(path) //nolint:gosec // the operator's path
		return bytes.TrimRight(content, "\r\n"), err
	}
}

// PINVariable is a source of the user PIN for a Config: a variable of the environment. Prefer a file: the environment
// of a process can be read by its user, and is inherited.
func PINVariable(name string) func() ([]byte, error) {
	return func() ([]byte, error) {
		if pin := os.Getenv(name); pin != "" {
			return []byte(pin), nil
		}
		return nil, pinSourceError(name + " is not set")
	}
}

// A pinSourceError is known not to hold the PIN.
type pinSourceError string

func (e pinSourceError) Error() string { return string(e) }

// withoutContent keeps of a PIN source's error what cannot hold the PIN.
func withoutContent(err error) error {
	var path *os.PathError
	if errors.As(err, &path) {
		return path
	}
	var ours pinSourceError
	if errors.As(err, &ours) {
		return ours
	}
	return errors.New("its source gives an error that is not shown, lest it holds the PIN")
}

// A login logs in without ever locking a token. A wrong PIN counts, and a token locks after a few: so a PIN that was
// refused is not offered again before its source gives another one, and a token that would lock at the next wrong one
// is left to a human (a daemon that is started over and over by its supervisor forgets what was refused).
type login struct {
	secret  [sha256.Size]byte // hides what is remembered of a refused PIN; random
	refused []byte            // HMAC of the refused PIN, nil if none
	code    error             // what the token said to it
}

// wrongPIN are the codes that mean this PIN, and count. The others mean the token's state, which its security officer can mend (locked,
// expired, not initialised yet), and then the same PIN is right.
var wrongPIN = []pkcs11.Error{pkcs11.CKR_PIN_INCORRECT, pkcs11.CKR_PIN_INVALID, pkcs11.CKR_PIN_LEN_RANGE}

func newLogin() *login {
	l := &login{}
	_, _ = rand.Read(l.secret[:]) // never fails: see crypto/rand
	return l
}

// do logs the user in to the token with these flags (CK_TOKEN_INFO).
func (l *login) do(m module, s pkcs11.SessionHandle, flags uint, source func() ([]byte, error)) error {
	if flags&(pkcs11.CKF_USER_PIN_FINAL_TRY|pkcs11.CKF_USER_PIN_LOCKED) != 0 {
		return fmt.Errorf("logging in: %w: the token is locked, or would lock at the next wrong one; log in by hand with the right one", ErrPINRejected)
	}
	pin, err := source()
	if err != nil {
		return fmt.Errorf("reading the token's user PIN: %w", withoutContent(err))
	}
	defer clear(pin)
	if len(pin) == 0 {
		return fmt.Errorf("reading the token's user PIN: %w: it is empty", ErrPINRejected)
	}
	mark := hmac.New(sha256.New, l.secret[:])
	_, _ = mark.Write(pin) // never fails: see hash.Hash
	sum := mark.Sum(nil)
	if hmac.Equal(sum, l.refused) {
		return fmt.Errorf("logging in: %w, and it has not changed since: %w", ErrPINRejected, l.code)
	}
	// The string is a view of pin, so that it is cleared with it.
	err = m.Login(s, pkcs11.CKU_USER, unsafe.String(&pin[0], len(pin))) //nolint:gosec // a copy could not be cleared
	if errors.Is(err, pkcs11.Error(pkcs11.CKR_USER_ALREADY_LOGGED_IN)) {
		err = nil // some modules keep a login beyond C_Finalize
	}
	if c, _ := classify(err); c == classLogin {
		if slices.ContainsFunc(wrongPIN, func(code pkcs11.Error) bool { return errors.Is(err, code) }) {
			l.refused, l.code = sum, err
		}
		return fmt.Errorf("logging in: %w: %w", ErrPINRejected, err)
	}
	if err != nil {
		return fmt.Errorf("logging in: %w", err)
	}
	l.refused, l.code = nil, nil
	return nil
}
