package simulator

import (
	"bytes"
	"crypto/cipher"
	"crypto/des" //nolint:gosec // zone PIN keys of card networks are double-length TDES (ISO 9564-2), and this one is for tests
	"crypto/rand"
	"crypto/subtle"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
)

// keyBytes is the length of a double-length TDES key.
const keyBytes = 16

// ErrKey is the error of ParseKey. It does not quote what was given.
var ErrKey = errors.New("key is not 32 hexadecimal digits of a double-length TDES key with two different halves")

// A Key is a double-length TDES key for tests: a zone PIN key. It prints itself as its check value, and may be used by many
// goroutines.
type Key struct {
	cipher cipher.Block
	kcv    string
}

// ParseKey reads a key from hexadecimal digits, with or without white space around them. The parity of its bytes does not matter.
func ParseKey(text []byte) (*Key, error) {
	value := make([]byte, keyBytes)
	defer clear(value)
	text = bytes.TrimSpace(text)
	if hex.DecodedLen(len(text)) != keyBytes || len(text)%2 != 0 {
		return nil, ErrKey
	}
	if _, err := hex.Decode(value, text); err != nil {
		return nil, ErrKey
	}
	return newKey(value)
}

// ReadKeyFile reads the key of a file that holds what ParseKey takes.
func ReadKeyFile(path string) (*Key, error) {
	text, err := os.ReadFile(filepath.Clean(path))
	if err != nil {
		return nil, fmt.Errorf("reading key: %w", err)
	}
	defer clear(text)
	key, err := ParseKey(text)
	if err != nil {
		return nil, fmt.Errorf("reading key %s: %w", path, err)
	}
	return key, nil
}

// newKey makes a key of 16 bytes, which it does not keep.
func newKey(value []byte) (*Key, error) {
	oddParity(value)
	if bytes.Equal(value[:8], value[8:]) {
		return nil, ErrKey
	}
	tripled := append(bytes.Clone(value), value[:8]...)
	defer clear(tripled)
	block, err := des.NewTripleDESCipher(tripled) //nolint:gosec // see the import
	if err != nil {
		return nil, fmt.Errorf("making cipher: %w", err)
	}
	var check [8]byte
	block.Encrypt(check[:], check[:])
	return &Key{block, fmt.Sprintf("%X", check[:3])}, nil
}

// KCV is the check value: the first three bytes of eight zero bytes enciphered, six upper-case hexadecimal digits.
func (k *Key) KCV() string { return k.kcv }

// Format prints the check value, whatever the verb.
func (k *Key) Format(f fmt.State, _ rune) {
	if k == nil {
		_, _ = f.Write([]byte("no key"))
		return
	}
	_, _ = f.Write([]byte("key " + k.kcv))
}

// LogValue is the check value.
func (k *Key) LogValue() slog.Value { return slog.StringValue(fmt.Sprint(k)) }

// A Zone is a throw-away test key as files: in clear for the simulator, and as two components whose XOR is the key, as custodians
// would bring them to acquirerd.
type Zone struct {
	Name       string    `json:"name"`
	KCV        string    `json:"kcv"`
	KeyFile    string    `json:"key_file"`
	Components [2]string `json:"component_files"`
}

// WriteZone makes a random key with odd parity and writes DIR/NAME.key, DIR/NAME.component-1 and DIR/NAME.component-2, each 32
// hexadecimal digits and a line end, readable by the owner alone. It overwrites nothing.
func WriteZone(dir, name string) (Zone, error) {
	if name == "" || name != filepath.Base(name) || name == "." || name == ".." {
		return Zone{}, fmt.Errorf("writing keys: %q is not a zone's name", name)
	}
	for {
		value, first := make([]byte, keyBytes), make([]byte, keyBytes)
		_, _ = rand.Read(value) // never fails
		_, _ = rand.Read(first)
		key, err := newKey(value) // sets the parity
		second := make([]byte, keyBytes)
		subtle.XORBytes(second, value, first)
		if err != nil || bytes.Equal(first, second) {
			continue // one in 2^56
		}
		zone := Zone{Name: name, KCV: key.KCV(), KeyFile: filepath.Join(dir, name+".key"),
			Components: [2]string{filepath.Join(dir, name+".component-1"), filepath.Join(dir, name+".component-2")}}
		err = errors.Join(writeNew(zone.KeyFile, value), writeNew(zone.Components[0], first), writeNew(zone.Components[1], second))
		clear(value)
		clear(first)
		clear(second)
		if err != nil {
			return Zone{}, fmt.Errorf("writing keys: %w", err)
		}
		return zone, nil
	}
}

func writeNew(path string, value []byte) error {
	file, err := os.OpenFile(filepath.Clean(path), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	text := fmt.Appendf(nil, "%X\n", value)
	defer clear(text)
	_, err = file.Write(text)
	return errors.Join(err, file.Close())
}

// oddParity sets the lowest bit of each byte so that the number of ones is odd.
func oddParity(key []byte) {
	for i, b := range key {
		ones := byte(1)
		for rest := b >> 1; rest != 0; rest >>= 1 {
			ones ^= rest & 1
		}
		key[i] = b&0xFE | ones
	}
}
