package hsm_test

import (
	"bytes"
	"encoding/hex"
	"strings"
	"testing"

	"acquirerd/card"
	"acquirerd/hsm"

	"github.com/miekg/pkcs11"
)

// The vectors of DUKPT. Each is derived in the token, as for a message; what is derived here can be read, but for that the templates are the daemon's.
func init() {
	registerVectors("tdes_dukpt_ik", true, initialKeyOfTDES)
	registerVectors("tdes_dukpt_txn", true, transactionOfTDES)
	registerVectors("aes_dukpt_ik", true, initialKeyOfAES)
	registerVectors("aes_dukpt_keys", true, keysOfAES)
	registerVectors("aes_dukpt_pin", true, pinOfAES)
	registerVectors("aes_dukpt_use", true, useOfAES)
	registerVectors("aes_dukpt_ksn_valid", false, counterOfAES)
}

// deriving is a bench on the vector's module.
func deriving(t *testing.T, on *vectorToken) hsm.DUKPTBench {
	t.Helper()
	b := newBench(t, on.Token)
	return hsm.NewDUKPTBench(t, b.Library, b.s)
}

func (v *vector) ksn(t *testing.T) card.KSN {
	t.Helper()
	ksn, err := card.ParseKSN(v.text(t, "ksn"))
	if err != nil {
		t.Fatal(err)
	}
	return ksn
}

// wantDES compares a TDES key without its parity bits, which tokens set.
func (v *vector) wantDES(t *testing.T, field string, got []byte) {
	t.Helper()
	text, _ := v.Out[field].(string)
	want, err := hex.DecodeString(text)
	if err == nil && len(want) == len(got) {
		for i := range got {
			got[i] = got[i]&^1 | want[i]&1
		}
	}
	v.want(t, field, got)
}

// zeroPadded fills data up with zeros to whole blocks.
func zeroPadded(data string, block int) []byte {
	return append([]byte(data), make([]byte, (block-len(data)%block)%block)...)
}

func counterOfAES(t *testing.T, _ *vectorToken, v *vector) {
	v.wantFlag(t, "valid", v.ksn(t).Check() == nil)
}

func initialKeyOfTDES(t *testing.T, on *vectorToken, v *vector) {
	v.wantDES(t, "ik", deriving(t, on).Transaction(v.bytes(t, "bdk"), v.ksn(t).Device()))
}

func transactionOfTDES(t *testing.T, on *vectorToken, v *vector) {
	b, bdk, ksn, data := deriving(t, on), v.bytes(t, "bdk"), v.ksn(t), v.text(t, "data")
	if err := ksn.Check(); err != nil {
		t.Fatal(err)
	}
	if v.expects("txn_key") {
		v.wantDES(t, "txn_key", b.Transaction(bdk, ksn))
	}
	if v.expects("pin_block") {
		pin := v.text(t, "pin")
		block := make([]byte, hsm.ISO0.Bytes())
		encipher := func(dst, src []byte) error {
			return inClear(dst, b.Encipher(b.Variant(bdk, ksn, "pin"), pkcs11.CKM_DES3_ECB, nil, src))
		}
		err := hsm.TranslateBlock(hsm.ISO0, hsm.ISO0, "", v.text(t, "pan"), block, pinField(t, pin), inClear, encipher, len(pin), nil, nil)
		if err != nil {
			t.Fatal(err)
		}
		v.want(t, "pin_block", block)
	}
	for _, direction := range []struct {
		name string
		is   hsm.Direction
	}{{"request", hsm.Request}, {"response", hsm.Response}} {
		mac := b.MAC(bdk, hsm.MACKey{KSN: ksn, Direction: direction.is, Padding: hsm.PaddingZeros}, data)
		if field := "mac_" + direction.name; v.expects(field) {
			v.want(t, field, mac[:4])
		}
		if field := "mac8_" + direction.name; v.expects(field) {
			v.want(t, field, mac)
		}
		if field := "cmac_" + direction.name; v.expects(field) {
			v.want(t, field, b.TDESCMAC(b.Variant(bdk, ksn, "mac_"+direction.name), data))
		}
		if field := "data_" + direction.name; v.expects(field) {
			v.want(t, field, b.Encipher(b.Variant(bdk, ksn, field), pkcs11.CKM_DES3_CBC, make([]byte, 8), zeroPadded(data, 8)))
		}
	}
}

func initialKeyOfAES(t *testing.T, on *vectorToken, v *vector) {
	ksn, err := card.ParseKSN(v.text(t, "ikid") + "00000000")
	if err != nil {
		t.Fatal(err)
	}
	v.want(t, "ik", deriving(t, on).Initial(v.bytes(t, "bdk"), ksn))
}

func keysOfAES(t *testing.T, on *vectorToken, v *vector) {
	b, bdk, ksn := deriving(t, on), v.bytes(t, "bdk"), v.ksn(t)
	for field := range v.Out {
		usage, kind, named := strings.Cut(field, "_")
		switch {
		case field == "derivation_key":
			v.want(t, field, b.Intermediate(bdk, ksn))
		case !named:
			t.Errorf("nobody knows a key %q", field)
		case strings.HasPrefix(kind, "tdea"):
			value, _ := b.Working(bdk, ksn, usage, kind)
			v.wantDES(t, field, value)
		default:
			value, _ := b.Working(bdk, ksn, usage, kind)
			v.want(t, field, value)
		}
	}
}

func pinOfAES(t *testing.T, on *vectorToken, v *vector) {
	b, pin := deriving(t, on), v.text(t, "pin")
	_, key := b.Working(v.bytes(t, "bdk"), v.ksn(t), "pin", v.text(t, "alg"))
	block := make([]byte, hsm.ISO4.Bytes())
	encipher := func(dst, src []byte) error { return inClear(dst, b.Encipher(key, pkcs11.CKM_AES_ECB, nil, src)) }
	err := hsm.TranslateBlock(hsm.ISO0, hsm.ISO4, "", v.text(t, "pan"), block, pinField(t, pin), inClear, encipher, len(pin),
		bytes.Repeat([]byte{0xA}, 14-len(pin)), v.bytes(t, "random"))
	if err != nil {
		t.Fatal(err)
	}
	v.want(t, "pin_block", block)
}

func useOfAES(t *testing.T, on *vectorToken, v *vector) {
	b, bdk, ksn, data := deriving(t, on), v.bytes(t, "bdk"), v.ksn(t), v.text(t, "data")
	for _, direction := range []struct {
		name, mac, data string
		is              hsm.Direction
	}{{"request", "macgen", "dataenc", hsm.Request}, {"response", "macver", "datadec", hsm.Response}} {
		if field := "cmac_" + direction.name; v.expects(field) {
			v.want(t, field, b.MAC(bdk, hsm.MACKey{KSN: ksn, Direction: direction.is}, data))
		}
		if field := "hmac128_" + direction.name; v.expects(field) {
			_, key := b.Working(bdk, ksn, direction.mac, "hmac128")
			if mac, tooShort := b.HMAC(key, data); tooShort {
				v.leave(t, field, "the module takes no key for HMAC-SHA-256 that is shorter than 32 bytes")
			} else {
				v.want(t, field, mac)
			}
		}
		if field := "data_" + direction.name; v.expects(field) {
			_, key := b.Working(bdk, ksn, direction.data, "aes128")
			v.want(t, field, b.Encipher(key, pkcs11.CKM_AES_CBC, make([]byte, 16), zeroPadded(data, 16)))
		}
	}
}
