package card

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"math/bits"
	"slices"
	"strings"
)

// The lengths of a key serial number, in bytes.
const (
	MinKSNBytes  = 8
	TDESKSNBytes = 10 // ANS X9.24-1:2009, A.1: 59 bits of key set and device, 21 of the counter
	AESKSNBytes  = 12 // ANS X9.24-3:2017, 6.3.2: 8 bytes of initial key id, 4 of the counter
)

// The most one bits of a counter. A device skips the counters that have more, so that no key takes longer to derive.
const (
	mostTDESOnes = 10 // X9.24-1, A.1
	mostAESOnes  = 16 // X9.24-3, 6.3.2
)

const tdesCounterBits = 21

// Errors of key serial numbers. They never quote what was given.
var (
	ErrKSN        = fmt.Errorf("key serial number is not %d to %d bytes of TDES or %d of AES", MinKSNBytes, TDESKSNBytes, AESKSNBytes)
	ErrKSNCounter = errors.New("key serial number has a counter that no transaction has")
)

// A KSN is the key serial number that a device sends with what it has enciphered under DUKPT: which device, and its how-manieth
// key. The zero KSN is absent. It is not secret, and two are equal by ==; but it names a device, of which there are too many for a label
// of a metric.
type KSN struct {
	bytes  [AESKSNBytes]byte // those of a KSN of TDES stand at the left
	length int8              // 0, TDESKSNBytes or AESKSNBytes
}

// NewKSN takes 12 bytes for a KSN of AES, and 8 to 10 for one of TDES: devices may leave out leading bytes FF (X9.24-1, A.1), which are put
// back. It checks the length alone: see Check.
func NewKSN(b []byte) (KSN, error) {
	switch n := len(b); {
	case n == AESKSNBytes:
		k := KSN{length: AESKSNBytes}
		copy(k.bytes[:], b)
		return k, nil
	case n >= MinKSNBytes && n <= TDESKSNBytes:
		k := KSN{length: TDESKSNBytes}
		missing := TDESKSNBytes - n
		for i := range missing {
			k.bytes[i] = 0xFF
		}
		copy(k.bytes[missing:], b)
		return k, nil
	}
	return KSN{}, ErrKSN
}

// ParseKSN reads hexadecimal digits.
func ParseKSN(digits string) (KSN, error) {
	b, err := hex.DecodeString(digits)
	if err != nil {
		return KSN{}, ErrKSN
	}
	return NewKSN(b)
}

// IsZero reports whether the KSN is absent.
func (k KSN) IsZero() bool { return k.length == 0 }

// IsAES reports whether it is one of AES-DUKPT. Else it is one of TDES-DUKPT, or absent.
func (k KSN) IsAES() bool { return k.length == AESKSNBytes }

// Bytes returns a copy of the 10 or 12 bytes, none of the zero KSN.
func (k KSN) Bytes() []byte { return slices.Clone(k.bytes[:k.length]) }

// Counter counts the keys of the device: 21 bits of TDES, 32 of AES.
func (k KSN) Counter() uint32 {
	if k.IsAES() {
		return binary.BigEndian.Uint32(k.bytes[8:])
	}
	return binary.BigEndian.Uint32(k.bytes[TDESKSNBytes-4:TDESKSNBytes]) & (1<<tdesCounterBits - 1)
}

// Device is the KSN with its counter 0: it names the initial key of the device.
func (k KSN) Device() KSN {
	switch {
	case k.IsAES():
		clear(k.bytes[8:])
	case !k.IsZero():
		low := binary.BigEndian.Uint32(k.bytes[TDESKSNBytes-4 : TDESKSNBytes])
		binary.BigEndian.PutUint32(k.bytes[TDESKSNBytes-4:TDESKSNBytes], low&^(1<<tdesCounterBits-1))
	}
	return k
}

// Check refuses the zero KSN, and a counter of which no transaction has a key: 0, which is the initial key's, and those with more one bits
// than 10 of TDES or 16 of AES. The last of AES, all ones, is that of the key under which a device gets a new initial key.
func (k KSN) Check() error {
	most := mostTDESOnes
	if k.IsAES() {
		most = mostAESOnes
	}
	switch ones := bits.OnesCount32(k.Counter()); {
	case k.IsZero():
		return ErrKSN
	case ones == 0, ones > most:
		return ErrKSNCounter
	}
	return nil
}

// String is the KSN in hexadecimal digits, "" for the zero KSN.
func (k KSN) String() string { return strings.ToUpper(hex.EncodeToString(k.bytes[:k.length])) }
