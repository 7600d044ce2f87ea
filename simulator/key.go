package simulator

import (
	"bytes"
	"crypto/aes"
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

// ErrAESKey is the error of ParseAESKey. It does not quote what was given.
var ErrAESKey = errors.New("key is not 32 or 64 hexadecimal digits of an AES key")

// A Key is a zone PIN key for tests: a double-length TDES key, or of format 4 an AES one. It prints itself as its check value, and may be used by many
// goroutines.
type Key struct {
	cipher cipher.Block
	format PINFormat // of the blocks that it makes and takes
	kcv    string
}

// ParseKey reads a key from hexadecimal digits, with or without white space around them. The parity of its bytes does not matter. Its PIN blocks are of format 0.
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

// ParseAESKey reads a key of 128 or 256 bits for PIN blocks of format 4.
func ParseAESKey(text []byte) (*Key, error) {
	text = bytes.TrimSpace(text)
	value := make([]byte, hex.DecodedLen(len(text)))
	defer clear(value)
	if _, err := hex.Decode(value, text); err != nil || len(value) != 16 && len(value) != 32 {
		return nil, ErrAESKey
	}
	return newAESKey(value)
}

// newAESKey makes a key of 16 or 32 bytes, which it does not keep.
func newAESKey(value []byte) (*Key, error) {
	block, err := aes.NewCipher(value)
	if err != nil {
		return nil, fmt.Errorf("making cipher: %w", err)
	}
	// The CMAC of a block of zeros: E(K1), where K1 is zeros enciphered and doubled (NIST SP 800-38B, 6.1).
	var check [aes.BlockSize]byte
	block.Encrypt(check[:], check[:])
	carry := byte(0)
	for i := len(check) - 1; i >= 0; i-- {
		check[i], carry = check[i]<<1|carry, check[i]>>7
	}
	check[len(check)-1] ^= 0x87 * carry
	block.Encrypt(check[:], check[:])
	return &Key{block, ISO4, fmt.Sprintf("%X", check[:3])}, nil
}

// ReadKeyFile reads the key of a file that holds what ParseKey takes, or for format 4 ParseAESKey.
func ReadKeyFile(path string, format PINFormat) (*Key, error) {
	parse := ParseKey
	switch format {
	case ISO0, ISO1, ISO3:
	case ISO4:
		parse = ParseAESKey
	default:
		return nil, fmt.Errorf("reading key: PIN block format %q is not one of %s, %s, %s, %s", string(format), ISO0, ISO1, ISO3, ISO4)
	}
	text, err := os.ReadFile(filepath.Clean(path))
	if err != nil {
		return nil, fmt.Errorf("reading key: %w", err)
	}
	defer clear(text)
	key, err := parse(text)
	if err != nil {
		return nil, fmt.Errorf("reading key %s: %w", path, err)
	}
	key.format = format
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
	return &Key{block, ISO0, fmt.Sprintf("%X", check[:3])}, nil
}

// KCV is the check value, six upper-case hexadecimal digits: the first three bytes of eight zero bytes enciphered, or of AES of the CMAC of sixteen.
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
// hexadecimal digits and a line end, a component its check value in a second line, and DIR/NAME.kcv, the key's check value. They are readable by the owner
// alone. It overwrites nothing.
func WriteZone(dir, name string) (Zone, error) { return writeZone(dir, name, keyBytes, newKey) }

// aesKeyBytes is the length of the AES keys that WriteAESZone makes.
const aesKeyBytes = 32

// WriteAESZone is WriteZone of an AES key of 256 bits: for PIN blocks of format 4, AES-DUKPT and CMAC.
func WriteAESZone(dir, name string) (Zone, error) {
	return writeZone(dir, name, aesKeyBytes, newAESKey)
}

// writeZone writes the files of a key that known makes of its value, and may set the parity of.
func writeZone(dir, name string, length int, known func([]byte) (*Key, error)) (Zone, error) {
	if name == "" || name != filepath.Base(name) || name == "." || name == ".." {
		return Zone{}, fmt.Errorf("writing keys: %q is not a zone's name", name)
	}
	for {
		value, first := make([]byte, length), make([]byte, length)
		_, _ = rand.Read(value) // never fails
		_, _ = rand.Read(first)
		key, err := known(value) // sets the parity
		second := make([]byte, length)
		subtle.XORBytes(second, value, first)
		kcvs := [2]string{}
		for i, component := range [][]byte{first, second} {
			part, failed := known(bytes.Clone(component))
			if err = errors.Join(err, failed); failed == nil {
				kcvs[i] = part.KCV()
			}
		}
		if err != nil || bytes.Equal(first, second) {
			continue // one in 2^54
		}
		zone := Zone{Name: name, KCV: key.KCV(), KeyFile: filepath.Join(dir, name+".key"),
			Components: [2]string{filepath.Join(dir, name+".component-1"), filepath.Join(dir, name+".component-2")}}
		err = errors.Join(writeNew(zone.KeyFile, fmt.Appendf(nil, "%X\n", value)), writeNew(filepath.Join(dir, name+".kcv"), []byte(zone.KCV+"\n")),
			writeNew(zone.Components[0], fmt.Appendf(nil, "%X\nkcv %s\n", first, kcvs[0])), writeNew(zone.Components[1], fmt.Appendf(nil, "%X\nkcv %s\n", second, kcvs[1])))
		clear(value)
		clear(first)
		clear(second)
		if err != nil {
			return Zone{}, fmt.Errorf("writing keys: %w", err)
		}
		return zone, nil
	}
}

// writeNew writes a text to a new file, and clears it.
func writeNew(path string, text []byte) error {
	defer clear(text)
	file, err := os.OpenFile(filepath.Clean(path), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
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
