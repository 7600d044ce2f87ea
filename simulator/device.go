package simulator

import (
	"bytes"
	"crypto/aes"
	"crypto/des" //nolint:gosec // TDES-DUKPT (ANS X9.24-1) is made of it, and this is for tests
	"crypto/subtle"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"

	"acquirerd/card"
)

// A Device is a PIN pad under DUKPT for tests: each PIN block that it makes is under another key, with the key serial number by which acquirerd
// derives that anew. A key serial number of 10 bytes makes it one of TDES (ANS X9.24-1), one of 12 of AES (ANS X9.24-3). It prints itself as that
// number, and may be used by many goroutines.
//
// Its derivation is written apart from acquirerd's, with the standard library, so that the two check each other.
type Device struct {
	initial []byte
	format  PINFormat

	mu   sync.Mutex
	next card.KSN // guarded by mu
}

// ErrBDK is the error of NewDevice for a base derivation key. It does not quote what was given.
var ErrBDK = errors.New("base derivation key is not one of its algorithm: 16 bytes of TDES with two different halves, 16 or 32 of AES")

// NewDevice makes the device that a key serial number names, whose first PIN block has that number. It does not keep the base derivation key. A block of format 4 is
// under AES as long as that key, each other one under TDES of double length.
func NewDevice(bdk []byte, first card.KSN, format PINFormat) (*Device, error) {
	isAES := first.IsAES()
	if err := first.Check(); err != nil {
		return nil, fmt.Errorf("making device: %w", err)
	}
	if _, known := pinFormats[format]; !known || format == ISO4 && !isAES {
		return nil, fmt.Errorf("making device: PIN block format %q is none of its algorithm", string(format))
	}
	d := &Device{format: format, next: first}
	if isAES {
		if len(bdk) != 16 && len(bdk) != 32 {
			return nil, ErrBDK
		}
		d.initial = deriveAES(bdk, 0x8001, aesIndicator(len(bdk)), len(bdk), first.Bytes()[:8])
		return d, nil
	}
	if len(bdk) != keyBytes || bytes.Equal(bdk[:8], bdk[8:]) {
		return nil, ErrBDK
	}
	left := first.Device().Bytes()[:8]
	d.initial = append(tdes(bdk, left), tdes(varied(bdk), left)...)
	return d, nil
}

// ReadDeviceFile reads the base derivation key of a file, in hexadecimal digits.
func ReadDeviceFile(path string, first card.KSN, format PINFormat) (*Device, error) {
	text, err := os.ReadFile(filepath.Clean(path))
	if err != nil {
		return nil, fmt.Errorf("reading key: %w", err)
	}
	defer clear(text)
	digits := bytes.TrimSpace(text)
	value := make([]byte, hex.DecodedLen(len(digits)))
	defer clear(value)
	if _, err := hex.Decode(value, digits); err != nil {
		return nil, fmt.Errorf("reading key %s: %w", path, ErrBDK)
	}
	return NewDevice(value, first, format)
}

// Format prints the next key serial number, whatever the verb.
func (d *Device) Format(f fmt.State, _ rune) {
	_, _ = f.Write([]byte("device " + d.upcoming().String()))
}

// LogValue is the next key serial number.
func (d *Device) LogValue() slog.Value { return slog.StringValue(fmt.Sprint(d)) }

func (d *Device) upcoming() card.KSN {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.next
}

var errUsedUp = errors.New("device has used all of its keys")

// PINBlock enciphers a PIN for a card under the device's next key.
func (d *Device) PINBlock(pin PIN, pan card.PAN) (card.PINBlock, card.KSN, error) {
	ksn, err := d.take()
	if err != nil {
		return card.PINBlock{}, card.KSN{}, fmt.Errorf("enciphering PIN: %w", err)
	}
	key, err := d.pinKey(ksn)
	if err != nil {
		return card.PINBlock{}, card.KSN{}, fmt.Errorf("enciphering PIN: %w", err)
	}
	block, err := key.PINBlock(pin, pan)
	return block, ksn, err
}

// take returns the next key serial number. A counter with too many ones is passed over: the standards' devices have no such keys.
func (d *Device) take() (card.KSN, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	taken := d.next
	if taken.IsZero() {
		return card.KSN{}, errUsedUp
	}
	d.next = card.KSN{}
	for counter := uint64(taken.Counter()) + 1; ; counter++ {
		// The lowest one of a counter with too many is added to it: what lies between has as many or more.
		digits := taken.Device().Bytes()
		most := uint64(1)<<21 - 1
		if taken.IsAES() {
			most = 1<<32 - 1
		}
		if counter > most {
			return taken, nil
		}
		low := binary.BigEndian.Uint32(digits[len(digits)-4:]) | uint32(counter) //nolint:gosec // at most most
		binary.BigEndian.PutUint32(digits[len(digits)-4:], low)
		next, err := card.NewKSN(digits)
		if err != nil {
			return card.KSN{}, err
		}
		if next.Check() == nil {
			d.next = next
			return taken, nil
		}
		counter += counter&-counter - 1
	}
}

// pinKey is the key of a PIN block.
func (d *Device) pinKey(ksn card.KSN) (*Key, error) {
	if !ksn.IsAES() {
		value := d.transactionTDES(ksn)
		for i := 7; i < keyBytes; i += 8 {
			value[i] ^= 0xFF // X9.24-1, A.4.1
		}
		return withFormat(newKey(value))(d.format)
	}
	usage, indicator, length := uint16(0x1000), uint16(0x0000), keyBytes // PIN encryption, 2TDEA
	if d.format == ISO4 {
		indicator, length = aesIndicator(len(d.initial)), len(d.initial)
	}
	value := deriveAES(d.intermediate(ksn), usage, indicator, length, nameOf(ksn, ksn.Counter()))
	if d.format != ISO4 {
		return withFormat(newKey(value))(d.format)
	}
	block, err := aes.NewCipher(value)
	if err != nil {
		return nil, err
	}
	return &Key{cipher: block, format: ISO4}, nil
}

func withFormat(key *Key, err error) func(PINFormat) (*Key, error) {
	return func(format PINFormat) (*Key, error) {
		if err != nil {
			return nil, err
		}
		key.format = format
		return key, nil
	}
}

// transactionTDES is X9.24-1, A.2: a step for each one of the counter, from the highest.
func (d *Device) transactionTDES(ksn card.KSN) []byte {
	key, counter := bytes.Clone(d.initial), ksn.Counter()
	device := ksn.Device().Bytes()
	register := binary.BigEndian.Uint64(device[len(device)-8:])
	for bit := 20; bit >= 0; bit-- {
		if counter>>bit&1 == 0 {
			continue
		}
		register |= 1 << bit
		data := binary.BigEndian.AppendUint64(nil, register)
		right := step(key, data)
		key = append(step(varied(key), data), right...)
	}
	return key
}

// step is half of the non-reversible key generation: E(left, data XOR right) XOR right.
func step(key, data []byte) []byte {
	left, right := key[:8], key[8:]
	cipher, err := des.NewCipher(left) //nolint:gosec // see the import
	if err != nil {
		panic(err) // its length is right
	}
	out := make([]byte, 8)
	subtle.XORBytes(out, data, right)
	cipher.Encrypt(out, out)
	subtle.XORBytes(out, out, right)
	return out
}

// varied is a key XOR C0C0C0C000000000, each half.
func varied(key []byte) []byte {
	out := bytes.Clone(key)
	for i := range out {
		if i%8 < 4 {
			out[i] ^= 0xC0
		}
	}
	return out
}

func tdes(key, block []byte) []byte {
	cipher, err := des.NewTripleDESCipher(append(bytes.Clone(key), key[:8]...)) //nolint:gosec // see the import
	if err != nil {
		panic(err) // its length is right
	}
	out := make([]byte, 8)
	cipher.Encrypt(out, block)
	return out
}

// intermediate is X9.24-3, 6.3: a key for each one of the counter, from the highest.
func (d *Device) intermediate(ksn card.KSN) []byte {
	key, at := d.initial, uint32(0)
	for bit := 31; bit >= 0; bit-- {
		if ksn.Counter()>>bit&1 == 1 {
			at |= 1 << bit
			key = deriveAES(key, 0x8000, aesIndicator(len(key)), len(key), nameOf(ksn, at))
		}
	}
	return key
}

// nameOf is the end of the device's name, and a counter.
func nameOf(ksn card.KSN, counter uint32) []byte {
	return binary.BigEndian.AppendUint32(ksn.Bytes()[4:8], counter)
}

func aesIndicator(length int) uint16 { return uint16(length/8) & 0x6 } //nolint:gosec // 2 of 128 bits, 4 of 256

// deriveAES enciphers derivation data: version, number of the block, usage, algorithm and length in bits of the key, and what names device and counter.
func deriveAES(key []byte, usage, indicator uint16, length int, name []byte) (out []byte) {
	cipher, err := aes.NewCipher(key)
	if err != nil {
		panic(err) // its length is right
	}
	for number := byte(1); len(out) < length; number++ {
		data := []byte{1, number}
		for _, word := range []uint16{usage, indicator, uint16(8 * length)} { //nolint:gosec // at most 256
			data = binary.BigEndian.AppendUint16(data, word)
		}
		data = append(data, name...)
		cipher.Encrypt(data, data)
		out = append(out, data...)
	}
	return out[:length]
}
