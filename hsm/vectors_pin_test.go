package hsm_test

import (
	"bytes"
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/des"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"acquirerd/card"
	"acquirerd/hsm"

	"github.com/miekg/pkcs11"
)

// The vectors of PIN blocks: their formats (pin_encode, pin_decode, iso4_…), the pairs of formats (translate_policy), and whole translations between two
// keys of the token (zpk_translate).
func init() {
	registerVectors("pin_encode", false, encodePIN)
	registerVectors("pin_decode", false, decodePIN)
	registerVectors("iso4_pan_field", false, panFieldOfISO4)
	registerVectors("iso4_encipher", true, encipherISO4)
	registerVectors("iso4_decipher", true, decipherISO4)
	registerVectors("translate_policy", false, pairOfFormats)
	registerVectors("zpk_translate", true, translateBetweenZones)
}

// formatOf is the format that a vector names by its digit.
func formatOf(digit string) hsm.Format { return hsm.Format("iso-" + digit) }

// inClear takes the place of a cipher.
func inClear(dst, src []byte) error {
	if copy(dst, src) != len(dst) {
		return errors.New("a block of another length")
	}
	return nil
}

// pinField is a clear format 0 block of a PIN without an account number field, from which the translation under test makes all others.
func pinField(t *testing.T, pin string) []byte {
	t.Helper()
	return unhex(t, fmt.Sprintf("0%X%s", len(pin), pin)+strings.Repeat("F", 14-len(pin)))
}

// fillDigits are the nibbles of a fill, one a byte.
func fillDigits(t *testing.T, digits string) (nibbles []byte) {
	t.Helper()
	for _, digit := range digits {
		nibbles = append(nibbles, unhex(t, "0"+string(digit))...)
	}
	return nibbles
}

func encodePIN(t *testing.T, _ *vectorToken, v *vector) {
	format, pin := formatOf(v.text(t, "fmt")), v.text(t, "pin")
	skipFormat2(t, v, format)
	block := make([]byte, format.Bytes())
	err := hsm.TranslateBlock(hsm.ISO0, format, "", v.optional(t, "pan"), block, pinField(t, pin), inClear, inClear, len(pin), fillDigits(t, v.optional(t, "fill")), nil)
	if v.refused(t, err) {
		return
	}
	v.want(t, "block", block)
}

// skipFormat2 skips a vector of a format that is accepted nowhere, after it has seen that it is not.
func skipFormat2(t *testing.T, v *vector, format hsm.Format) {
	t.Helper()
	if format != "iso-2" {
		return
	}
	if format.IsKnown() || format.Bytes() != 0 {
		t.Fatal("format 2 is taken")
	}
	v.skip(t, "format 2 is between a terminal and a chip card, and is accepted nowhere (PCI PIN 3-2)")
}

// decoded is the PIN of a block, by the translation under test: into format 0 of no PAN, in clear.
func decoded(format hsm.Format, pan string, block []byte, decipher func(dst, src []byte) error) (pin string, err error) {
	field := make([]byte, hsm.ISO0.Bytes())
	if err := hsm.TranslateBlock(format, hsm.ISO0, pan, "", field, block, decipher, inClear, 0, []byte(strings.Repeat("\x0F", 14)), nil); err != nil {
		return "", err
	}
	return fmt.Sprintf("%X", field)[2 : 2+field[0]], nil
}

func decodePIN(t *testing.T, _ *vectorToken, v *vector) {
	format := formatOf(v.text(t, "fmt"))
	skipFormat2(t, v, format)
	pin, err := decoded(format, v.optional(t, "pan"), v.bytes(t, "block"), inClear)
	if v.refused(t, err) {
		return
	}
	v.wantText(t, "pin", pin)
}

func panFieldOfISO4(t *testing.T, _ *vectorToken, v *vector) {
	v.want(t, "field", hsm.AccountField(hsm.ISO4, v.text(t, "pan")))
}

// aesInToken lets f work with a key of the session in the token.
func aesInToken(t *testing.T, on *vectorToken, value []byte, f func(encipher, decipher func(dst, src []byte) error)) {
	t.Helper()
	on.Use(func(m *pkcs11.Ctx) {
		s := on.Login(m)
		key, err := m.CreateObject(s, []*pkcs11.Attribute{
			pkcs11.NewAttribute(pkcs11.CKA_CLASS, pkcs11.CKO_SECRET_KEY), pkcs11.NewAttribute(pkcs11.CKA_KEY_TYPE, pkcs11.CKK_AES),
			pkcs11.NewAttribute(pkcs11.CKA_TOKEN, false), pkcs11.NewAttribute(pkcs11.CKA_SENSITIVE, true),
			pkcs11.NewAttribute(pkcs11.CKA_ENCRYPT, true), pkcs11.NewAttribute(pkcs11.CKA_DECRYPT, true), pkcs11.NewAttribute(pkcs11.CKA_VALUE, value)})
		if err != nil {
			t.Fatal(err)
		}
		ecb := []*pkcs11.Mechanism{pkcs11.NewMechanism(pkcs11.CKM_AES_ECB, nil)}
		f(func(dst, src []byte) error {
			if err := m.EncryptInit(s, ecb, key); err != nil {
				return err
			}
			out, err := m.Encrypt(s, src)
			return errors.Join(err, inClear(dst, out))
		}, func(dst, src []byte) error {
			if err := m.DecryptInit(s, ecb, key); err != nil {
				return err
			}
			out, err := m.Decrypt(s, src)
			return errors.Join(err, inClear(dst, out))
		})
	})
}

func encipherISO4(t *testing.T, on *vectorToken, v *vector) {
	pin, block := v.text(t, "pin"), make([]byte, hsm.ISO4.Bytes())
	aesInToken(t, on, v.bytes(t, "key"), func(encipher, _ func(dst, src []byte) error) {
		err := hsm.TranslateBlock(hsm.ISO0, hsm.ISO4, "", v.text(t, "pan"), block, pinField(t, pin), inClear, encipher, len(pin),
			[]byte(strings.Repeat("\x0A", 14-len(pin))), v.bytes(t, "random"))
		if v.refused(t, err) {
			return
		}
		v.want(t, "block", block)
	})
}

func decipherISO4(t *testing.T, on *vectorToken, v *vector) {
	aesInToken(t, on, v.bytes(t, "key"), func(_, decipher func(dst, src []byte) error) {
		pin, err := decoded(hsm.ISO4, v.text(t, "pan"), v.bytes(t, "block"), decipher)
		if v.expects("error") && !errors.Is(err, hsm.ErrPINBlock) {
			t.Fatalf("it is refused for another reason, or not at all: %v", err)
		}
		if v.refused(t, err) {
			return
		}
		v.wantText(t, "pin", pin)
	})
}

func pairOfFormats(t *testing.T, _ *vectorToken, v *vector) {
	change := hsm.SamePAN
	if v.flag(t, "pan_change") {
		change = hsm.UnrelatedPAN
	}
	err := hsm.AllowedPair(formatOf(v.text(t, "fmt_in")), formatOf(v.text(t, "fmt_out")), change)
	if err != nil && !errors.Is(err, hsm.ErrPINFormat) {
		t.Fatal(err)
	}
	v.wantFlag(t, "allowed", err == nil)
}

// translateBetweenZones lets a whole HSM translate, with a fill that is the vector's.
func translateBetweenZones(t *testing.T, on *vectorToken, v *vector) {
	from, to := formatOf(v.text(t, "fmt_in")), formatOf(v.text(t, "fmt_out"))
	put := func(side string, use hsm.Use) hsm.Key {
		label, value := v.ID+" "+side, v.bytes(t, "zpk_"+side)
		switch algorithm := v.text(t, "alg_"+side); algorithm {
		case "tdes":
			return on.Put(label, use, value)
		case "aes":
			return on.PutAES(label, use, value)
		default:
			t.Fatalf("no algorithm %q", algorithm)
			return hsm.Key{}
		}
	}
	in, out := put("in", hsm.PINIn), put("out", hsm.PINOut)
	seal, token := on.Put(v.ID+" seal", hsm.PANSeal, make([]byte, 32)), on.Put(v.ID+" token", hsm.PANToken, []byte(strings.Repeat("\x01", 32)))
	cfg := on.Config()
	cfg.Keys, cfg.SealKey, cfg.TokenKey = []hsm.Key{in, out, seal, token}, seal.Label, token.Label

	pin, _ := v.Out["clear_pin"].(string)
	fill := fillDigits(t, v.optional(t, "fill_out"))
	if fixed := map[hsm.Format]string{hsm.ISO0: "\x0F", hsm.ISO4: "\x0A"}[to]; fixed != "" {
		fill = []byte(strings.Repeat(fixed, 14-len(pin)))
	}
	var tail []byte
	if v.has("random_out") {
		tail = v.bytes(t, "random_out")
	}
	h, err := hsm.New(cfg, slog.New(slog.DiscardHandler), nil)
	if err != nil {
		t.Fatal(err)
	}
	h.SetFill(len(pin), fill, tail)
	if err := h.Open(t.Context()); err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- h.Run(ctx) }()
	defer func() {
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}()
	number := pan(t, v.text(t, "pan"))
	block, err := card.NewPINBlock(v.bytes(t, "block_in"))
	if err != nil {
		t.Fatal(err)
	}
	way := map[string]hsm.Way{"softhsm": hsm.Transient, "nss": hsm.TokenResident}[on.Module]
	if o := operation(t, h, fmt.Sprintf("PIN translation %s to %s", from, to)); !o.InUse || o.Way != way {
		t.Errorf("the way is %+v, want %s", o, way)
	}
	protected, err := h.Protect(t.Context(), hsm.Card{PAN: number, PINBlock: block, From: in.Label, FromFormat: from, To: out.Label, ToFormat: to})
	if v.refused(t, err) {
		return
	}
	v.want(t, "block_out", protected.PINBlock.Reveal())
	// The PIN is in no answer of an HSM. What came out is deciphered here, by the reading of formats that pin_decode and iso4_decipher check.
	clearPIN, err := decoded(to, number.Reveal(), protected.PINBlock.Reveal(), zoneCipher(t, v.text(t, "alg_out"), v.bytes(t, "zpk_out")).decipher)
	if err != nil {
		t.Fatal(err)
	}
	v.wantText(t, "clear_pin", clearPIN)
}

// A zoneKey is what a party has that holds the key in clear.
type zoneKey struct{ cipher.Block }

func zoneCipher(t *testing.T, algorithm string, key []byte) zoneKey {
	t.Helper()
	var block cipher.Block
	var err error
	if algorithm == "aes" {
		block, err = aes.NewCipher(key)
	} else {
		block, err = des.NewTripleDESCipher(append(bytes.Clone(key), key[:24-len(key)]...))
	}
	if err != nil {
		t.Fatal(err)
	}
	return zoneKey{block}
}

func (k zoneKey) decipher(dst, src []byte) error {
	k.Decrypt(dst, src)
	return nil
}
