package simulator

import (
	"bytes"
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/des" //nolint:gosec // X9.19 and CMAC of TDES are what card networks have, and these keys are for tests
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"

	"acquirerd/messages"
	"acquirerd/specs"
)

// A MACAlgorithm is how message authentication codes are made.
type MACAlgorithm string

// The algorithms.
const (
	MACX919     MACAlgorithm = "x919"      // ANS X9.19, by a double-length TDES key
	MACCMACTDES MACAlgorithm = "cmac-tdes" // NIST SP 800-38B
	MACCMACAES  MACAlgorithm = "cmac-aes"
	MACHMAC     MACAlgorithm = "hmac" // with SHA-256
)

// MACAlgorithms are all of them.
var MACAlgorithms = []MACAlgorithm{MACX919, MACCMACTDES, MACCMACAES, MACHMAC}

// ErrMACKey is the error of NewMACKey. It does not quote what was given.
var ErrMACKey = errors.New("key has not the length of its algorithm")

// A MACKey is a key for message authentication codes, for tests: a messages.MACKey in this process's memory. It prints itself as its algorithm.
type MACKey struct {
	algorithm MACAlgorithm
	padding   int // of X9.19: a method of ISO/IEC 9797-1
	value     []byte
}

var _ messages.MACKey = (*MACKey)(nil)

// NewMACKey copies a value. The padding is that of the dialect (specs.MAC).
func NewMACKey(algorithm MACAlgorithm, padding int, value []byte) (*MACKey, error) {
	lengths := map[MACAlgorithm][]int{MACX919: {16}, MACCMACTDES: {16, 24}, MACCMACAES: {16, 32}, MACHMAC: {32}}[algorithm]
	if len(lengths) == 0 {
		return nil, fmt.Errorf("%q is not one of %v", string(algorithm), MACAlgorithms)
	}
	if !slices.Contains(lengths, len(value)) {
		return nil, ErrMACKey
	}
	return &MACKey{algorithm, padding, bytes.Clone(value)}, nil
}

// ReadMACKeyFile reads the key of a file that holds hexadecimal digits.
func ReadMACKeyFile(path string, algorithm MACAlgorithm, padding int) (*MACKey, error) {
	text, err := os.ReadFile(filepath.Clean(path))
	if err != nil {
		return nil, fmt.Errorf("reading key: %w", err)
	}
	defer clear(text)
	digits := bytes.TrimSpace(text)
	value := make([]byte, hex.DecodedLen(len(digits)))
	defer clear(value)
	if _, err := hex.Decode(value, digits); err != nil {
		return nil, fmt.Errorf("reading key %s: %w", path, ErrMACKey)
	}
	key, err := NewMACKey(algorithm, padding, value)
	if err != nil {
		return nil, fmt.Errorf("reading key %s: %w", path, err)
	}
	return key, nil
}

// Format prints the algorithm, whatever the verb.
func (k *MACKey) Format(f fmt.State, _ rune) {
	if k == nil {
		_, _ = f.Write([]byte("no key"))
		return
	}
	_, _ = f.Write([]byte("key for " + string(k.algorithm)))
}

// LogValue is the algorithm.
func (k *MACKey) LogValue() slog.Value { return slog.StringValue(fmt.Sprint(k)) }

// MAC is that of the data, cut to 8 bytes.
func (k *MACKey) MAC(_ context.Context, data []byte) ([]byte, error) {
	var mac []byte
	switch k.algorithm {
	case MACX919:
		mac = k.retail(data)
	case MACCMACTDES:
		mac = cmac(must(des.NewTripleDESCipher(append(bytes.Clone(k.value), k.value[:24-len(k.value)]...))), data) //nolint:gosec // see the import
	case MACCMACAES:
		mac = cmac(must(aes.NewCipher(k.value)), data)
	case MACHMAC:
		h := hmac.New(sha256.New, k.value)
		_, _ = h.Write(data)
		mac = h.Sum(nil)
	}
	return mac[:specs.MostMAC], nil
}

// VerifyMAC compares a MAC with that of the data.
func (k *MACKey) VerifyMAC(ctx context.Context, data, mac []byte) error {
	want, err := k.MAC(ctx, data)
	if err != nil {
		return err
	}
	if len(mac) < specs.LeastMAC || len(mac) > len(want) || !hmac.Equal(want[:len(mac)], mac) {
		return messages.ErrMAC
	}
	return nil
}

// must is of lengths that NewMACKey has checked.
func must(block cipher.Block, err error) cipher.Block {
	if err != nil {
		panic(err)
	}
	return block
}

// retail is MAC algorithm 3 of ISO/IEC 9797-1: a CBC-MAC by single DES, and its last block deciphered by the right half and enciphered by the left.
func (k *MACKey) retail(data []byte) []byte {
	left, right := must(des.NewCipher(k.value[:8])), must(des.NewCipher(k.value[8:])) //nolint:gosec // see the import
	text := bytes.Clone(data)
	if k.padding == 2 {
		text = append(text, 0x80)
	}
	for len(text) == 0 || len(text)%8 != 0 {
		text = append(text, 0)
	}
	if k.padding == 3 {
		first := make([]byte, 8)
		for i, bits := 7, 8*len(data); bits > 0; i-- {
			first[i] = byte(bits & 0xFF)
			bits >>= 8
		}
		text = append(first, text...)
	}
	mac := make([]byte, 8)
	for i := 0; i < len(text); i += 8 {
		for j := range mac {
			mac[j] ^= text[i+j]
		}
		left.Encrypt(mac, mac)
	}
	right.Decrypt(mac, mac)
	left.Encrypt(mac, mac)
	return mac
}

// cmac is NIST SP 800-38B, 6.2.
func cmac(block cipher.Block, data []byte) []byte {
	size := block.BlockSize()
	doubled := func(b []byte) []byte {
		out := make([]byte, size)
		for i := range out {
			out[i] = b[i] << 1
			if i+1 < size {
				out[i] |= b[i+1] >> 7
			}
		}
		if b[0]&0x80 != 0 {
			out[size-1] ^= map[int]byte{8: 0x1B, 16: 0x87}[size]
		}
		return out
	}
	subkey := make([]byte, size)
	block.Encrypt(subkey, subkey)
	subkey = doubled(subkey)
	text := bytes.Clone(data)
	if len(text) == 0 || len(text)%size != 0 {
		subkey = doubled(subkey)
		for text = append(text, 0x80); len(text)%size != 0; {
			text = append(text, 0)
		}
	}
	mac := make([]byte, size)
	for i := 0; i < len(text); i += size {
		for j := range mac {
			if mac[j] ^= text[i+j]; i+size == len(text) {
				mac[j] ^= subkey[j]
			}
		}
		block.Encrypt(mac, mac)
	}
	return mac
}

// A macFault is what is wrong with the MAC of a message on purpose.
type macFault string

const (
	macRight   macFault = ""
	macWrong   macFault = "bad-mac" // one bit is another
	macMissing macFault = "no-mac"
)

// frameWith encodes a message with its MAC, or with one that is wrong or missing.
func frameWith(codec *messages.Codec, key messages.MACKey, m *messages.Message, fault macFault) ([]byte, error) {
	frame, err := codec.EncodeFrameWithMAC(context.Background(), key, m)
	if err != nil || fault == macRight || key == nil || !codec.HasMAC(m.MTI) {
		return frame, err
	}
	for _, e := range []messages.Element{messages.MAC, messages.MAC2} {
		if value := []byte(m.Reveal(e)); len(value) > 0 {
			if value[0] ^= 1; fault == macMissing {
				value = nil
			}
			m.SetSensitive(e, string(value))
		}
	}
	return codec.EncodeFrame(m)
}
