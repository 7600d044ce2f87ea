package hsm

import (
	"bytes"
	"crypto/subtle"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"

	"acquirerd/card"

	"github.com/miekg/pkcs11"
)

// What the probe tries, and the answers that are known. The PIN blocks, key serial number, MACs and key block keys are published vectors or follow from
// them (X9.24-3, SP 800-38B, ISO 9797-1 B.4, TR-31 A.7); a test makes each of them again with the standard library.

const (
	knownPAN = "4111111111111111"

	knownTDES    = "0123456789ABCDEFFEDCBA9876543210"
	knownTDESOut = "112233445566778889ABCDEF01234567"
	knownAES     = "AF8CB133A78F8DC2D1359F18527593FB"
	knownAESOut  = "000102030405060708090A0B0C0D0E0F"
	known256     = "000102030405060708090A0B0C0D0E0F101112131415161718191A1B1C1D1E1F"
	knownKBPK    = "EFE0853B256B583D868F251CE99EA1D9"
	knownKBPK256 = "88E1AB2A2E3DD38C1FA039A536500CC8A87AB9D62DC92C01058FA79F44657DE6"
	knownBDK     = "FEDCBA9876543210F1F1F1F1F1F1F1F1"
	knownCMAC2   = "4CF15134A2850DD58A3D10BA80570D38"
	knownCMAC128 = "2B7E151628AED2A6ABF7158809CF4F3C"

	knownText = "6BC1BEE22E409F96E93D7E117393172A"
	knownHMAC = "7A6F0E8F490702853449AA544AABD8AF6B4283F3B6458B90FDA921F637756926"

	// Keys under zone master keys: of TDES under knownTDES, and knownAES under knownAESOut.
	knownCryptogram       = "01E9D8DA9182FC1F384F6A841EDBE951"
	knownCryptogramKCV    = "C66607"
	knownAESCryptogram    = "7D26B10253F46F8D187175D6E06DCE28"
	knownAESCryptogramKCV = "98964F"

	// Zeros under derived keys.
	knownDUKPT     = "F663A3FCC0DC9334092003456B0B39B6"
	knownTDESDUKPT = "A10107227C0BBF0A"
	knownKBEK      = "2C91443BE9E5891A"
	knownKBEK256   = "C8A376852F81778F53676B541FBA10F2"
)

// PIN 1234 and its PAN under the keys above, in and out. The fill of format 1 counts up, that of format 3 goes round from F to A.
var (
	knownIn = map[Format]string{
		ISO0: "2A3D408A1977DDE9", ISO1: "646855A2370347D8", ISO3: "E20A0895825AD431", ISO4: "A912150391AB65A67E52883D81CE2D15",
	}
	knownOut = map[Format]string{
		ISO0: "03C735470A6B72B4", ISO1: "CF411CD11AB6C150", ISO3: "AF9776C2D842DB34", ISO4: "4EB686DCB6D4C515052CE434DF8A1F71",
	}
	knownKeyIn  = map[Algorithm]string{TDES: knownTDES, AES: knownAES}
	knownKeyOut = map[Algorithm]string{TDES: knownTDESOut, AES: knownAESOut}
)

func knownFill(f Format) (out fill) {
	l := f.layout()
	for i := range out.digits {
		switch f.orDefault() {
		case ISO1:
			out.digits[i] = byte((i + pinNibbles - shortestPIN) % pinNibbles)
		case ISO3:
			out.digits[i] = 0xF - byte(i+2)%l.fillValues
		case ISO0, ISO4:
			out.digits[i] = l.firstFill
		}
	}
	copy(out.tail[:], unhex("2F69ADDE2E9E7ACE"))
	return out
}

const seenPIN = "the clear PIN block passes through this process's memory: for test, not for production (PCI PIN 1)"

func pinCapabilities() (list []capability) {
	for _, from := range Formats {
		for _, to := range Formats {
			if AllowedPair(from, to, SamePAN) != nil {
				continue
			}
			a, b := from.Algorithm(), to.Algorithm()
			list = append(list, capability{
				name: fmt.Sprintf("PIN translation %s to %s", from, to),
				pair: formatPair{from, to},
				keys: []keyKept{{PINIn, a, nil}, {PINOut, b, nil}}, // or a BDK in the place of the first: see inUse
				ways: []method{
					{TokenResident, 0, unwraps(a, b, from != to), "its length is seen in this process, and no digit", translates(from, to, TokenResident)},
					{Transient, 0, deciphers(a, b), seenPIN, translates(from, to, Transient)},
				},
			})
		}
	}
	return list
}

// ecbName names the mechanism of single blocks.
func (a Algorithm) ecbName() string {
	if a == AES {
		return "CKM_AES_ECB"
	}
	return "CKM_DES3_ECB"
}

func unwraps(from, to Algorithm, reformats bool) string {
	text := from.ecbName() + " unwrap, CKM_EXTRACT_KEY_FROM_KEY, "
	if reformats {
		text += "CKM_XOR_BASE_AND_DATA, "
	}
	if from == TDES && to == AES {
		text += "CKM_CONCATENATE_BASE_AND_DATA, "
	}
	return text + to.ecbName() + " wrap"
}

func deciphers(from, to Algorithm) string {
	return from.ecbName() + " decipher, " + to.ecbName() + " encipher"
}

func translates(from, to Format, way Way) func(*bench) (func() error, error) {
	return func(b *bench) (_ func() error, err error) {
		a, z := from.Algorithm(), to.Algorithm()
		in, err := b.of(PINIn, a, way, knownKeyIn[a])
		if err != nil {
			return nil, err
		}
		out, err := b.of(PINOut, z, way, knownKeyOut[z])
		if err != nil {
			return nil, err
		}
		if way == TokenResident {
			if b.gen.sight, err = newSight(b.m, b.session); err != nil {
				return nil, err
			}
		}
		t, given, got := translation{from, to, knownPAN, knownPAN, knownFill}, unhex(knownIn[from]), make([]byte, to.Bytes())
		return func() error {
			if err := b.translate(t, in, out, got, given); err != nil {
				return err
			}
			return answers(got, knownOut[to])
		}, nil
	}
}

// panCapabilities are of PANs, which are this process's own: so they are token-resident if the key is.
var panCapabilities = []capability{
	{"PAN seal", noPair, []keyKept{{PANSeal, AES, func(h *HSM, label string) bool { return label == h.cfg.SealKey }}}, []method{
		{TokenResident, pkcs11.CKM_AES_ECB, "CKM_AES_ECB, of AES-GCM", ownPAN, seals(pkcs11.CKM_AES_ECB)},
		{TokenResident, pkcs11.CKM_AES_GCM, "CKM_AES_GCM", ownPAN, seals(pkcs11.CKM_AES_GCM)},
	}},
	{"PAN open", noPair, []keyKept{{PANSeal, AES, nil}}, []method{
		{TokenResident, pkcs11.CKM_AES_ECB, "CKM_AES_ECB, of AES-GCM", openedPAN, opens(pkcs11.CKM_AES_ECB)},
		{TokenResident, pkcs11.CKM_AES_GCM, "CKM_AES_GCM", openedPAN, opens(pkcs11.CKM_AES_GCM)},
	}},
	{"PAN token", noPair, []keyKept{{PANToken, "", func(h *HSM, label string) bool { return label == h.cfg.TokenKey }}}, []method{
		{TokenResident, pkcs11.CKM_AES_ECB, "CKM_AES_ECB, of AES-CMAC", ownPAN, tokens(pkcs11.CKM_AES_ECB, knownPANByCMAC)},
		{TokenResident, pkcs11.CKM_SHA256_HMAC, "CKM_SHA256_HMAC", ownPAN, tokens(pkcs11.CKM_SHA256_HMAC, knownPANByHMAC)},
	}},
}

const (
	ownPAN    = "the key stays in the token; the PAN is this process's own"
	openedPAN = "the key stays in the token; the clear PAN comes back to this process"

	// knownPAN under known256: by AES-256-GCM with a nonce of zeros, and its tokens.
	knownSealed    = "3A8D84EF841DB28C39999804291DA0A8818FD6945E4C1B3C17ACBA71551E6B97"
	knownPANByCMAC = "26A6637D5A3907B80CD15EBBD958CF7E12668ECB1968F664EEFF0C2261663A19"
	knownPANByHMAC = "0622241201382A45912FB22828B3F7DB5153CF2072722A73DED22623EA79ABC9"
)

// seals seals under a nonce that no key in use has with a message of its own: the trial has a key of its own.
func seals(with uint) func(*bench) (func() error, error) {
	return func(b *bench) (func() error, error) {
		k, err := b.first(PANSeal, with, known256)
		if err != nil {
			return nil, err
		}
		return func() error {
			out, err := b.sealWith(k, make([]byte, nonceBytes), []byte(sealPurpose), []byte(knownPAN))
			if err != nil {
				return err
			}
			return answers(out, knownSealed)
		}, nil
	}
}

func opens(with uint) func(*bench) (func() error, error) {
	return func(b *bench) (func() error, error) {
		k, err := b.first(PANSeal, with, known256)
		if err != nil {
			return nil, err
		}
		sealed := card.SealedPAN{Nonce: make([]byte, nonceBytes), Ciphertext: unhex(knownSealed)}
		return func() error {
			out, err := b.openUnder(k, []byte(sealPurpose), sealed)
			if err == nil && string(out) != knownPAN {
				err = errWrongAnswer
			}
			return err
		}, nil
	}
}

func tokens(with uint, want string) func(*bench) (func() error, error) {
	return func(b *bench) (func() error, error) {
		k, err := b.first(PANToken, with, known256)
		if err == nil {
			err = k.findSubkey(b.m, b.session)
		}
		if err != nil {
			return nil, err
		}
		return func() error {
			token, err := b.tokenOf(k, knownPAN)
			if err != nil {
				return err
			}
			return answers(token[:], want)
		}, nil
	}
}

// keyCapabilities are of keys that arrive as cryptograms under a zone master key.
var keyCapabilities = []capability{
	{"key change under tdes", noPair, []keyKept{{ZMK, TDES, namedAsZMK}}, []method{
		{TokenResident, 0, "CKM_DES3_ECB unwrap", "the new key never leaves the token; its parity is not seen",
			takesCryptogram(TDES, TokenResident, knownTDES, knownCryptogram, knownCryptogramKCV)},
		{Transient, 0, "CKM_DES3_ECB decipher, create object", seenKey,
			takesCryptogram(TDES, Transient, knownTDES, knownCryptogram, knownCryptogramKCV)},
	}},
	{"key change under aes", noPair, []keyKept{{ZMK, AES, namedAsZMK}}, []method{
		{TokenResident, 0, "CKM_AES_ECB unwrap", "the new key never leaves the token",
			takesCryptogram(AES, TokenResident, knownAESOut, knownAESCryptogram, knownAESCryptogramKCV)},
		{Transient, 0, "CKM_AES_ECB decipher, create object", seenKey,
			takesCryptogram(AES, Transient, knownAESOut, knownAESCryptogram, knownAESCryptogramKCV)},
	}},
}

const seenKey = "the clear zone PIN key passes through this process's memory: for test, not for production (PCI PIN 1)"

// namedAsZMK reports whether a key of the configuration may be changed under this one.
func namedAsZMK(h *HSM, label string) bool {
	for _, k := range h.cfg.Keys {
		if k.ZMK == label {
			return true
		}
	}
	return false
}

// takesCryptogram does with a cryptogram what a key change does, but that all objects are of the session: it makes a key for trial, a pin-in and a pin-out key of
// it, and the mark of each.
func takesCryptogram(a Algorithm, way Way, zmk, cryptogram, kcv string) func(*bench) (func() error, error) {
	return func(b *bench) (func() error, error) {
		under, err := b.of(ZMK, a, way, zmk)
		if err != nil {
			return nil, err
		}
		bytes := len(cryptogram) / 2
		create := func(template []*pkcs11.Attribute) (pkcs11.ObjectHandle, error) {
			if way == TokenResident {
				return b.m.UnwrapKey(b.session, mechanism(a.ecb()), under.handle, unhex(cryptogram), template)
			}
			value, err := decipher(b.m, b.session, a, under.handle, unhex(cryptogram))
			if err != nil {
				return 0, err
			}
			defer clear(value)
			return b.m.CreateSecret(b.session, template, value)
		}
		return func() error {
			found, zeros, err := measure(b.m, b.session, a, bytes, create)
			if err == nil && !sameKCV(found, kcv) {
				err = errWrongAnswer
			}
			for _, use := range []Use{PINIn, PINOut} {
				if err == nil {
					err = b.succeeds(use, a, bytes, trial{kcv: found, proof: proof(found, zeros)}, create)
				}
			}
			return err
		}, nil
	}
}

// succeeds makes the successor of a key of this use, in the first of its recipes that the token can do, and its mark.
func (b *bench) succeeds(use Use, a Algorithm, bytes int, t trial, create creator) (err error) {
	const label = "acquirerd probe#2"
	born := newBirth(label, t)
	for _, r := range recipes[use] {
		if r.algorithm != a {
			continue
		}
		if err = b.becomes(r, born, bytes, create); err == nil {
			break
		}
	}
	if err != nil {
		return err
	}
	m := mark{birth: born.text(), replaced: []string{t.kcv}}
	class, o, err := m.create(b.m, b.session, label, inSession)
	if err != nil {
		return fmt.Errorf("marking: %w", err)
	}
	found, ok, err := readMark(b.m, b.session, class, label, o)
	if err == nil && (!ok || found.text() != m.text()) {
		err = errWrongAnswer
	}
	return errors.Join(err, b.m.DestroyObject(b.session, o))
}

// becomes makes a successor, and checks it.
func (b *bench) becomes(r recipe, born birth, bytes int, create creator) error {
	o, err := create(inSession(r.template("", born.text(), bytes)))
	if err != nil {
		return err
	}
	kcv, err := r.kcv(b.m, b.session, o)
	if err == nil && !sameKCV(kcv, born.kcv) {
		err = errWrongAnswer
	}
	return errors.Join(err, b.m.DestroyObject(b.session, o))
}

// macCapabilities are of messages, which are this process's own.
var macCapabilities = []capability{
	{"MAC x9.19", noPair, []keyKept{{MACX919, TDES, nil}}, []method{
		{TokenResident, 0, "CKM_DES3_CBC, twice (X9.19)", ownMAC + ", and so is what single DES makes of it on the way: prefer CMAC",
			makesMAC(MACX919, pkcs11.CKM_DES3_CBC, knownTDES, "4E6F77206973207468652074696D6520666F7220616C6C20", "A1C72E74EA3FA9B6")},
	}},
	{"MAC cmac tdes", noPair, []keyKept{{MACCMAC, TDES, nil}}, []method{
		{TokenResident, pkcs11.CKM_DES3_CMAC, "CKM_DES3_CMAC", ownMAC, makesMAC(MACCMAC, pkcs11.CKM_DES3_CMAC, knownCMAC2, "6BC1BEE22E409F96", "4FF2AB813C53CE83")},
		{TokenResident, pkcs11.CKM_DES3_CBC, "CKM_DES3_CBC (CMAC)", ownMAC + ", and so are the subkeys of the last block",
			makesMAC(MACCMAC, pkcs11.CKM_DES3_CBC, knownCMAC2, "6BC1BEE22E409F96", "4FF2AB813C53CE83")},
	}},
	{"MAC cmac aes", noPair, []keyKept{{MACCMAC, AES, nil}}, []method{
		{TokenResident, 0, "CKM_AES_CMAC", ownMAC, makesMAC(MACCMAC, pkcs11.CKM_AES_CMAC, knownCMAC128, knownText, "070A16B46B4D4144F79BDD9DD04A287C")},
	}},
	{"MAC hmac-sha-256", noPair, []keyKept{{MACHMAC, HMAC, nil}}, []method{
		{TokenResident, 0, "CKM_SHA256_HMAC", ownMAC, makesMAC(MACHMAC, pkcs11.CKM_SHA256_HMAC, known256, knownText, knownHMAC)},
	}},
}

const ownMAC = "the key stays in the token; the message is this process's own"

func makesMAC(use Use, with uint, value, data, want string) func(*bench) (func() error, error) {
	return func(b *bench) (func() error, error) {
		k, err := b.first(use, with, value)
		if err != nil {
			return nil, err
		}
		if k.Use = use; use == MACX919 {
			half := value[:2*desBytes] // in hexadecimal digits
			left, err := b.first(use, with, half+half)
			if err != nil {
				return nil, err
			}
			k.left = left.handle
		}
		return func() error {
			mac, err := k.mac(b.m, b.session, PaddingZeros, unhex(data))
			if err != nil {
				return err
			}
			return answers(mac, want)
		}, nil
	}
}

// derivedCapabilities are of keys that are derived inside the token, and never leave it.
var derivedCapabilities = []capability{
	{"DUKPT derivation, AES", noPair, []keyKept{{BDK, AES, nil}}, []method{{TokenResident, 0, "CKM_AES_ECB_ENCRYPT_DATA",
		"no key leaves the token; PIN blocks go the way of PIN translation", derivesPINKey(AES, knownBDK, "123456789012345600000001", knownDUKPT)}}},
	{"DUKPT derivation, TDES", noPair, []keyKept{{BDK, TDES, nil}}, []method{{Transient, 0, "CKM_DES3_ECB encipher, create object",
		"the keys of one device and one transaction pass through this process's memory, because X9.24-1 uses keys as data: for test, not for production (PCI PIN 1)",
		derivesPINKey(TDES, knownTDES, "FFFF9876543210E00001", knownTDESDUKPT)}}},
	{"key block keys tdes", noPair, []keyKept{{KBPK, TDES, nil}}, []method{{TokenResident, 0, "CKM_DES3_ECB_ENCRYPT_DATA", "the keys of the block stay in the token",
		derives(TDES, knownKBPK, tdes2Bytes, knownKBEK, func(zeros []byte) [][]byte { // whole blocks: K1 (TR-31:2018, 5.3.2.1)
			return [][]byte{keyBlockData(cmacSubkey(zeros), "0100000000000080", "0200000000000080")}
		})}}},
	{"key block keys aes", noPair, []keyKept{{KBPK, AES, nil}}, []method{{TokenResident, 0, "CKM_AES_ECB_ENCRYPT_DATA", "the keys of the block stay in the token",
		derives(AES, knownKBPK256, 32, knownKBEK256, func(zeros []byte) [][]byte { // padded blocks: K2 (TR-31:2018, 5.3.2.3)
			return [][]byte{keyBlockData(cmacSubkey(cmacSubkey(zeros)), "01000000000401008000000000000000", "02000000000401008000000000000000")}
		})}}},
}

// derivesPINKey derives the key of a device's PIN block, as a call does, and deciphers with it what zeros are under it.
func derivesPINKey(a Algorithm, value, serial, zeros string) func(*bench) (func() error, error) {
	return func(b *bench) (func() error, error) {
		bdk, err := b.key(recipes[BDK][slices.IndexFunc(recipes[BDK], func(r recipe) bool { return r.algorithm == a })], value)
		if err != nil {
			return nil, err
		}
		c := Card{FromFormat: ISO0}
		if bdk.bdk.bytes = len(value) / 2; a == AES {
			c.FromFormat = ISO4
		} else {
			varied := unhex(value) // each half XOR C0C0C0C000000000 (X9.24-1, A.6)
			for i := range varied {
				if i%desBytes < desBytes/2 {
					varied[i] ^= 0xC0
				}
			}
			variant, err := b.key(bdk.recipe, hex.EncodeToString(varied))
			if err != nil {
				return nil, err
			}
			bdk.bdk.variant = variant.handle
		}
		if c.KSN, err = card.NewKSN(unhex(serial)); err != nil {
			return nil, err
		}
		return func() error {
			return b.withPINKey(bdk, c, Transient, func(k *key) error {
				out := make([]byte, a.block())
				if err := b.ecb(k, true, unhex(zeros), out); err != nil {
					return err
				}
				if !bytes.Equal(out, make([]byte, a.block())) {
					return errWrongAnswer
				}
				return nil
			})
		}, nil
	}
}

// keyBlockData are blocks of derivation data, each XOR a subkey: so that its encipherment is its CMAC.
func keyBlockData(subkey []byte, blocks ...string) (data []byte) {
	for _, text := range blocks {
		block := unhex(text)
		subtle.XORBytes(block, block, subkey)
		data = append(data, block...)
	}
	return data
}

// derives derives a key by several steps and enciphers zeros with the last one. The data of the steps may need zeros enciphered with the base.
func derives(a Algorithm, base string, bytes int, want string, steps func(zeros []byte) [][]byte) func(*bench) (func() error, error) {
	with := map[Algorithm]uint{TDES: pkcs11.CKM_DES3_ECB_ENCRYPT_DATA, AES: pkcs11.CKM_AES_ECB_ENCRYPT_DATA}[a]
	between := recipe{algorithm: a, flags: []uint{pkcs11.CKA_ENCRYPT, pkcs11.CKA_DERIVE}, mechanisms: []uint{with, a.ecb()}}
	return func(b *bench) (func() error, error) {
		k, err := b.key(between, base)
		if err != nil {
			return nil, err
		}
		// SoftHSM 2.6.1 derives nothing that is not modifiable: it sets the value after all else (CKR_ATTRIBUTE_READ_ONLY).
		template := slices.DeleteFunc(inSession(between.template("", "", bytes)), func(a *pkcs11.Attribute) bool { return a.Type == pkcs11.CKA_MODIFIABLE })
		if a == AES {
			template = append(template, pkcs11.NewAttribute(pkcs11.CKA_VALUE_LEN, bytes))
		}
		return func() (err error) {
			zeros := make([]byte, a.block())
			if err := b.ecbOnce(k, false, zeros, zeros); err != nil {
				return err
			}
			last := k
			for _, data := range steps(zeros) {
				o, err := b.m.DeriveString(b.session, with, data, last.handle, template)
				if err != nil {
					return err
				}
				defer func() { err = errors.Join(err, b.m.DestroyObject(b.session, o)) }()
				last = &key{recipe: between, handle: o}
			}
			clear(zeros)
			if err := b.ecbOnce(last, false, zeros, zeros); err != nil {
				return err
			}
			return answers(zeros, want)
		}, nil
	}
}
