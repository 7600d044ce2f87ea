package hsm

import (
	"bytes"
	"context"
	"crypto/subtle"
	"errors"
	"fmt"

	"acquirerd/card"

	"github.com/miekg/pkcs11"
)

// Message authentication codes (MACs) under keys that stay in the token. What is authenticated is this process's own message, so that each of them is
// token-resident. A MAC is compared here and not by C_Verify: of a part of it C_Verify knows nothing (CKR_SIGNATURE_LEN_RANGE), and its
// time is the token's business.

// A MACKey says by which key of use mac-x919, mac-cmac or mac-hmac a MAC is made, or by which that is derived from one of use bdk, and what of it the
// key does not say.
type MACKey struct {
	Label   string
	Padding Padding // of mac-x919, and of a bdk key of TDES; the others have their own

	KSN       card.KSN  // of a bdk key alone: of the device whose key makes it
	Direction Direction // of a bdk key alone
}

// A Direction says who makes a MAC under DUKPT: each has a key of its own.
type Direction int

// The directions.
const (
	Request  Direction = iota // by the device
	Response                  // for the device
)

// A Padding fills a message up to whole blocks: a method of ISO/IEC 9797-1:2011, 6.3.
type Padding int

// The methods; 0 is the first.
const (
	PaddingZeros  Padding = 1 // as few zeros as it needs
	PaddingOne    Padding = 2 // a one, and then zeros: never none
	PaddingLength Padding = 3 // zeros, and a block with the length in bits before all
)

// Lengths of MACs in bytes, and the longest message.
const (
	macBytes      = 8 // that MAC gives, and the most that VerifyMAC compares
	leastMACBytes = 4
	mostMACData   = 1 << 20
)

// ErrMAC: the MAC is not that of these data under this key.
var ErrMAC = errors.New("message authentication code is wrong")

// MAC returns the left-most 8 bytes of the MAC of the data. Errors: ErrUnavailable, ErrKSN. The caller may clear the data as soon as it returns.
func (h *HSM) MAC(ctx context.Context, key MACKey, data []byte) ([]byte, error) {
	code, err := h.wholeMAC(ctx, key, data)
	if err != nil {
		return nil, err
	}
	return code[:macBytes:macBytes], nil
}

func (h *HSM) wholeMAC(ctx context.Context, key MACKey, data []byte) ([]byte, error) {
	switch h.uses[key.Label] {
	case MACX919, MACCMAC, MACHMAC:
		if !key.KSN.IsZero() {
			return nil, fmt.Errorf("%w: %q is not a %s key", ErrKSN, key.Label, BDK)
		}
	case BDK:
		if err := key.KSN.Check(); err != nil {
			return nil, fmt.Errorf("%w: %w", ErrKSN, err)
		}
	case PINIn, PINOut, PANSeal, PANToken, ZMK, TLSKey:
		return nil, fmt.Errorf("%w: %q is not a key that makes MACs", ErrUnavailable, key.Label)
	default:
		return nil, fmt.Errorf("%w: %q is not a key of the configuration", ErrUnavailable, key.Label)
	}
	if len(data) > mostMACData || key.Padding < 0 || key.Padding > PaddingLength {
		return nil, fmt.Errorf("%w: no MAC of %d bytes by padding %d", ErrUnavailable, len(data), key.Padding)
	}
	held := make([]byte, len(data), len(data)+2*aesBytes) // after a timeout the task may still run when the caller clears his; room for the padding
	copy(held, data)
	var out []byte
	err := h.call(ctx, makeMAC, func(w *worker) error {
		k := w.gen.key(key.Label)
		h.used(k)
		var code []byte
		var err error
		if k.Use == BDK {
			code, err = w.macOfDevice(k, key, held)
		} else {
			code, err = k.mac(w.m, w.session, key.Padding, held)
		}
		if err != nil {
			return fmt.Errorf("making MAC: %w", err) // held stays: the call is tried again in the next generation
		}
		clear(held[:cap(held)])
		out = code
		return nil
	})
	if err != nil {
		return nil, err
	}
	return out, nil
}

// VerifyMAC compares a MAC of 4 to 8 bytes with the left-most ones of that of the data, in constant time. Errors: ErrMAC, ErrUnavailable, ErrKSN.
func (h *HSM) VerifyMAC(ctx context.Context, key MACKey, data, mac []byte) error {
	if len(mac) < leastMACBytes || len(mac) > macBytes {
		return ErrMAC
	}
	code, err := h.MAC(ctx, key, data)
	if err != nil {
		return err
	}
	if subtle.ConstantTimeCompare(code[:len(mac)], mac) != 1 {
		return ErrMAC
	}
	return nil
}

// mac makes the whole MAC of a key, at least macBytes of it. The data may have room behind them, which is used.
func (k *key) mac(m module, s pkcs11.SessionHandle, padding Padding, data []byte) ([]byte, error) {
	switch mechanism := k.recipe.mechanisms[0]; {
	case k.Use == MACX919:
		return retailMAC(m, s, k.left, k.handle, pad(data, padding))
	case k.recipe.has(pkcs11.CKA_SIGN):
		return signed(m, s, mechanism, k.handle, data)
	default:
		return cmacByCBC(m, s, k.handle, data)
	}
}

// signed is C_Sign.
func signed(m module, s pkcs11.SessionHandle, by uint, k pkcs11.ObjectHandle, data []byte) ([]byte, error) {
	if err := m.SignInit(s, mechanism(by), k); err != nil {
		return nil, err
	}
	length := map[uint]int{pkcs11.CKM_DES3_CMAC: desBytes, pkcs11.CKM_AES_CMAC: aesBytes, pkcs11.CKM_SHA256_HMAC: hmacBytes}[by]
	out := make([]byte, hmacBytes)
	n, err := m.SignTo(s, data, out)
	return exactly(length, out[:n], err)
}

// retailMAC is ISO/IEC 9797-1 MAC algorithm 3, ANS X9.19: single DES under the left half of the key in CBC, and TDES under all of it for the last
// block. A token that has no single DES has it as TDES under the left half twice.
func retailMAC(m module, s pkcs11.SessionHandle, left, whole pkcs11.ObjectHandle, padded []byte) ([]byte, error) {
	chain := make([]byte, desBytes)
	defer clear(chain) // single DES of the left half: who has many of these needs 2^56 trials for it
	last := len(padded) - desBytes
	if last > 0 {
		if err := cbcMAC(m, s, left, chain, padded[:last]); err != nil {
			return nil, err
		}
	}
	out := bytes.Clone(chain)
	if err := cbcMAC(m, s, whole, out, padded[last:]); err != nil {
		return nil, err
	}
	return out, nil
}

// cbcMAC goes on with a chain of TDES in CBC over whole blocks, and leaves its last block in it.
func cbcMAC(m module, s pkcs11.SessionHandle, k pkcs11.ObjectHandle, chain, blocks []byte) error {
	if err := m.EncryptInit(s, []*pkcs11.Mechanism{pkcs11.NewMechanism(pkcs11.CKM_DES3_CBC, chain)}, k); err != nil {
		return err
	}
	out := make([]byte, len(blocks))
	defer clear(out)
	n, err := m.EncryptTo(s, blocks, out)
	if _, err := exactly(len(blocks), out[:n], err); err != nil {
		return err
	}
	copy(chain, out[len(out)-desBytes:])
	return nil
}

// cmacByCBC is CMAC of TDES (NIST SP 800-38B, 6.2) by a key that may only encipher in CBC, where the token has no CKM_DES3_CMAC: NSS's.
func cmacByCBC(m module, s pkcs11.SessionHandle, k pkcs11.ObjectHandle, data []byte) ([]byte, error) {
	zeros := make([]byte, desBytes)
	if err := cbcMAC(m, s, k, zeros, make([]byte, desBytes)); err != nil {
		return nil, err
	}
	defer clear(zeros)
	subkey := cmacSubkey(zeros)
	defer clear(subkey)
	padded := data
	if len(data) == 0 || len(data)%desBytes != 0 {
		second := cmacSubkey(subkey)
		copy(subkey, second)
		clear(second)
		padded = pad(data, PaddingOne)
	}
	last := padded[len(padded)-desBytes:]
	subtle.XORBytes(last, last, subkey)
	defer subtle.XORBytes(last, last, subkey) // the data are those of a second try, too
	mac := make([]byte, desBytes)
	return mac, cbcMAC(m, s, k, mac, padded)
}

// pad returns the padded data, in their own memory where there is room behind them.
func pad(data []byte, padding Padding) []byte {
	bits := 8 * uint64(len(data))
	padded := data
	if padding == PaddingOne {
		padded = append(padded, 0x80)
	}
	for len(padded) == 0 || len(padded)%desBytes != 0 {
		padded = append(padded, 0)
	}
	if padding == PaddingLength {
		padded = append(make([]byte, desBytes), padded...)
		for i := desBytes - 1; bits > 0; i-- {
			padded[i] = byte(bits)
			bits >>= 8
		}
	}
	return padded
}
