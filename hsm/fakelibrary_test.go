package hsm

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/des"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/binary"
	"slices"

	"github.com/miekg/pkcs11"
)

// The operations of the fake module, in both forms: those of the wrapper, and the straight calls of a library. Scripts see them by the
// names of the C functions without their prefix: EncryptTo is "Encrypt", CreateSecret is "CreateObject", DeriveString is "DeriveKey".

func (f *fakeModule) EncryptInit(s pkcs11.SessionHandle, m []*pkcs11.Mechanism, o pkcs11.ObjectHandle) error {
	return f.begin("EncryptInit", s, m[0], o)
}

func (f *fakeModule) DecryptInit(s pkcs11.SessionHandle, m []*pkcs11.Mechanism, o pkcs11.ObjectHandle) error {
	return f.begin("DecryptInit", s, m[0], o)
}

func (f *fakeModule) SignInit(s pkcs11.SessionHandle, m []*pkcs11.Mechanism, o pkcs11.ObjectHandle) error {
	return f.begin("SignInit", s, m[0], o)
}

func (f *fakeModule) Encrypt(s pkcs11.SessionHandle, text []byte) ([]byte, error) {
	return f.operate("Encrypt", "EncryptInit", s, func(o *fakeOperation) ([]byte, error) { return o.cipher(text, true) }, nil)
}

func (f *fakeModule) Decrypt(s pkcs11.SessionHandle, text []byte) ([]byte, error) {
	out, err := f.operate("Decrypt", "DecryptInit", s, func(o *fakeOperation) ([]byte, error) { return o.cipher(text, false) }, nil)
	f.showed(out, err)
	return out, err
}

func (f *fakeModule) Sign(s pkcs11.SessionHandle, data []byte) ([]byte, error) {
	return f.operate("Sign", "SignInit", s, func(o *fakeOperation) ([]byte, error) { return o.mac(data) }, nil)
}

func (f *fakeModule) EncryptTo(s pkcs11.SessionHandle, in, out []byte) (int, error) {
	got, err := f.operate("Encrypt", "EncryptInit", s, func(o *fakeOperation) ([]byte, error) { return o.cipher(in, true) }, &out)
	return len(got), err
}

func (f *fakeModule) DecryptTo(s pkcs11.SessionHandle, in, out []byte) (int, error) {
	got, err := f.operate("Decrypt", "DecryptInit", s, func(o *fakeOperation) ([]byte, error) { return o.cipher(in, false) }, &out)
	f.showed(got, err)
	return len(got), err
}

func (f *fakeModule) SignTo(s pkcs11.SessionHandle, data, out []byte) (int, error) {
	got, err := f.operate("Sign", "SignInit", s, func(o *fakeOperation) ([]byte, error) { return o.mac(data) }, &out)
	return len(got), err
}

func (f *fakeModule) EncryptUpdate(s pkcs11.SessionHandle, in, out []byte) (int, error) {
	got, err := f.operate("EncryptUpdate", "EncryptInit", s, func(o *fakeOperation) ([]byte, error) { return o.cipher(in, true) }, &out)
	return len(got), err
}

func (f *fakeModule) DecryptUpdate(s pkcs11.SessionHandle, in, out []byte) (int, error) {
	got, err := f.operate("DecryptUpdate", "DecryptInit", s, func(o *fakeOperation) ([]byte, error) { return o.cipher(in, false) }, &out)
	f.showed(got, err)
	return len(got), err
}

// operate does a call of an operation that began as it says. The operation ends, unless the call is an update that succeeds, or room is too
// small. Without room the answer is in memory of its own.
func (f *fakeModule) operate(op, began string, s pkcs11.SessionHandle, do func(*fakeOperation) ([]byte, error), room *[]byte) ([]byte, error) {
	operation, err := f.before(op, s)
	if err != nil {
		return nil, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if operation.key == nil || operation.began != began {
		return nil, pkcs11.Error(pkcs11.CKR_OPERATION_NOT_INITIALIZED)
	}
	kept := bytes.Clone(operation.chain)
	out, err := do(operation)
	if err == nil && room != nil {
		if len(out) > len(*room) {
			operation.chain = kept
			return nil, pkcs11.Error(pkcs11.CKR_BUFFER_TOO_SMALL)
		}
		n := copy(*room, out)
		out = (*room)[:n]
	}
	if err != nil || op != "EncryptUpdate" && op != "DecryptUpdate" {
		*operation = fakeOperation{}
	}
	return out, err
}

// alone is a call that is a whole operation: it needs a session without one, and leaves it so.
func (f *fakeModule) alone(op string, s pkcs11.SessionHandle, m *pkcs11.Mechanism, o pkcs11.ObjectHandle, do func(*fakeOperation) ([]byte, error)) ([]byte, error) {
	if err := f.begin(op, s, m, o); err != nil {
		return nil, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	operation := f.sessions[s]
	if operation == nil { // it was lost just now
		return nil, pkcs11.Error(pkcs11.CKR_SESSION_HANDLE_INVALID)
	}
	defer func() { *operation = fakeOperation{} }()
	return do(operation)
}

// showed records what the caller can see now.
func (f *fakeModule) showed(out []byte, err error) {
	if err != nil {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.clear = append(f.clear, out)
	f.deciphered = append(f.deciphered, bytes.Clone(out))
}

// cipher enciphers or deciphers by the operation's mechanism.
func (o *fakeOperation) cipher(text []byte, encipher bool) ([]byte, error) {
	switch o.mechanism.Mechanism {
	case pkcs11.CKM_AES_GCM: // the wrapper hides nonce and aad: zeros and none do for what is tested here
		if encipher {
			return fakeAEAD(o.key.value).Seal(nil, make([]byte, 12), text, nil), nil
		}
		out, err := fakeAEAD(o.key.value).Open(nil, make([]byte, 12), text, nil)
		if err != nil {
			return nil, pkcs11.Error(pkcs11.CKR_GENERAL_ERROR) // as SoftHSM does
		}
		return out, nil
	case pkcs11.CKM_DES3_ECB, pkcs11.CKM_AES_ECB, pkcs11.CKM_DES3_CBC, pkcs11.CKM_AES_CBC:
	default:
		return nil, pkcs11.Error(pkcs11.CKR_MECHANISM_INVALID)
	}
	block := fakeBlock(o.key.value, o.mechanism.Mechanism == pkcs11.CKM_AES_ECB || o.mechanism.Mechanism == pkcs11.CKM_AES_CBC)
	size := block.BlockSize()
	if len(text)%size != 0 {
		if encipher {
			return nil, pkcs11.Error(pkcs11.CKR_DATA_LEN_RANGE)
		}
		return nil, pkcs11.Error(pkcs11.CKR_ENCRYPTED_DATA_LEN_RANGE)
	}
	chained := o.mechanism.Mechanism == pkcs11.CKM_DES3_CBC || o.mechanism.Mechanism == pkcs11.CKM_AES_CBC
	if chained && o.chain == nil {
		if len(o.mechanism.Parameter) != size {
			return nil, pkcs11.Error(pkcs11.CKR_MECHANISM_PARAM_INVALID)
		}
		o.chain = bytes.Clone(o.mechanism.Parameter)
	}
	out := bytes.Clone(text)
	for i := 0; i < len(out); i += size {
		b := out[i : i+size]
		switch {
		case encipher && chained:
			subtle.XORBytes(b, b, o.chain)
			block.Encrypt(b, b)
			copy(o.chain, b)
		case encipher:
			block.Encrypt(b, b)
		case chained:
			block.Decrypt(b, b)
			subtle.XORBytes(b, b, o.chain)
			copy(o.chain, text[i:i+size])
		default:
			block.Decrypt(b, b)
		}
	}
	return out, nil
}

// mac signs by the operation's mechanism.
func (o *fakeOperation) mac(data []byte) ([]byte, error) {
	switch o.mechanism.Mechanism {
	case pkcs11.CKM_SHA256_HMAC:
		mac := hmac.New(sha256.New, o.key.value)
		_, _ = mac.Write(data)
		return mac.Sum(nil), nil
	case pkcs11.CKM_DES3_CMAC:
		return fakeCMAC(fakeBlock(o.key.value, false), data), nil
	case pkcs11.CKM_AES_CMAC:
		return fakeCMAC(fakeBlock(o.key.value, true), data), nil
	}
	return nil, pkcs11.Error(pkcs11.CKR_MECHANISM_INVALID)
}

// GenerateKey makes a random key of the length that the template or the mechanism says.
func (f *fakeModule) GenerateKey(s pkcs11.SessionHandle, m []*pkcs11.Mechanism, template []*pkcs11.Attribute) (pkcs11.ObjectHandle, error) {
	if _, err := f.before("GenerateKey", s); err != nil {
		return 0, err
	}
	length := map[uint]int{pkcs11.CKM_DES2_KEY_GEN: tdes2Bytes, pkcs11.CKM_DES3_KEY_GEN: tdes3Bytes}[m[0].Mechanism]
	for _, a := range template {
		if a.Type == pkcs11.CKA_VALUE_LEN {
			length = int(binary.NativeEndian.Uint64(a.Value))
		}
	}
	if length == 0 {
		return 0, pkcs11.Error(pkcs11.CKR_TEMPLATE_INCOMPLETE)
	}
	value := make([]byte, length)
	_, _ = rand.Read(value)
	return f.create(s, template, value)
}

// WrapKey needs a token that can, and a key that may leave it.
func (f *fakeModule) WrapKey(s pkcs11.SessionHandle, m []*pkcs11.Mechanism, under, key pkcs11.ObjectHandle) ([]byte, error) {
	return f.alone("WrapKey", s, m[0], under, func(o *fakeOperation) ([]byte, error) {
		inner, err := f.inner(key)
		if err != nil {
			return nil, err
		}
		if may, isBytes := inner.not[pkcs11.CKA_EXTRACTABLE].([]byte); !isBytes || !bytes.Equal(may, []byte{1}) {
			return nil, pkcs11.Error(pkcs11.CKR_KEY_UNEXTRACTABLE)
		}
		return o.cipher(inner.value, true)
	})
}

func (f *fakeModule) WrapTo(s pkcs11.SessionHandle, mechanism uint, iv []byte, under, key pkcs11.ObjectHandle, out []byte) (int, error) {
	wrapped, err := f.WrapKey(s, []*pkcs11.Mechanism{pkcs11.NewMechanism(mechanism, iv)}, under, key)
	if err == nil && len(wrapped) > len(out) {
		return 0, pkcs11.Error(pkcs11.CKR_BUFFER_TOO_SMALL)
	}
	return copy(out, wrapped), err
}

func (f *fakeModule) Unwrap(s pkcs11.SessionHandle, mechanism uint, iv []byte, under pkcs11.ObjectHandle, wrapped []byte, template []*pkcs11.Attribute) (pkcs11.ObjectHandle, error) {
	return f.UnwrapKey(s, []*pkcs11.Mechanism{pkcs11.NewMechanism(mechanism, iv)}, under, wrapped, template)
}

// inner returns a key for what only a token that unwraps can do. Its caller has mu.
func (f *fakeModule) inner(key pkcs11.ObjectHandle) (*fakeKey, error) {
	if !f.unwrap {
		return nil, pkcs11.Error(pkcs11.CKR_MECHANISM_INVALID)
	}
	if key < 1 || int(key) > len(f.keys) || f.keys[key-1].gone {
		return nil, pkcs11.Error(pkcs11.CKR_KEY_HANDLE_INVALID)
	}
	return &f.keys[key-1], nil
}

func (f *fakeModule) CreateSecret(s pkcs11.SessionHandle, template []*pkcs11.Attribute, value []byte) (pkcs11.ObjectHandle, error) {
	if slices.ContainsFunc(template, func(a *pkcs11.Attribute) bool { return a.Type == pkcs11.CKA_VALUE }) {
		f.t.Error("CreateSecret: the template has a value beside the value")
	}
	if _, err := f.before("CreateObject", s); err != nil {
		return 0, err
	}
	return f.create(s, template, bytes.Clone(value))
}

func (f *fakeModule) DeriveString(s pkcs11.SessionHandle, mechanism uint, data []byte, base pkcs11.ObjectHandle, template []*pkcs11.Attribute) (pkcs11.ObjectHandle, error) {
	value, err := f.alone("DeriveKey", s, pkcs11.NewMechanism(mechanism, nil), base, func(o *fakeOperation) ([]byte, error) {
		key := o.key.value
		switch mechanism {
		case pkcs11.CKM_DES3_ECB_ENCRYPT_DATA:
			o.mechanism = pkcs11.NewMechanism(pkcs11.CKM_DES3_ECB, nil)
			return o.cipher(data, true)
		case pkcs11.CKM_AES_ECB_ENCRYPT_DATA:
			o.mechanism = pkcs11.NewMechanism(pkcs11.CKM_AES_ECB, nil)
			return o.cipher(data, true)
		}
		if _, err := f.inner(base); err != nil {
			return nil, err
		}
		switch mechanism {
		case pkcs11.CKM_XOR_BASE_AND_DATA:
			out := make([]byte, min(len(key), len(data)))
			subtle.XORBytes(out, key, data)
			return out, nil
		case pkcs11.CKM_CONCATENATE_BASE_AND_DATA:
			return slices.Concat(key, data), nil
		case pkcs11.CKM_CONCATENATE_DATA_AND_BASE:
			return slices.Concat(data, key), nil
		}
		return nil, pkcs11.Error(pkcs11.CKR_MECHANISM_INVALID)
	})
	return f.derived(s, template, value, err)
}

func (f *fakeModule) DeriveNumber(s pkcs11.SessionHandle, mechanism, number uint, base pkcs11.ObjectHandle, template []*pkcs11.Attribute) (pkcs11.ObjectHandle, error) {
	value, err := f.alone("DeriveKey", s, pkcs11.NewMechanism(mechanism, nil), base, func(o *fakeOperation) ([]byte, error) {
		if _, err := f.inner(base); err != nil {
			return nil, err
		}
		switch mechanism {
		case pkcs11.CKM_EXTRACT_KEY_FROM_KEY:
			if number%8 != 0 || int(number/8) > len(o.key.value) {
				return nil, pkcs11.Error(pkcs11.CKR_MECHANISM_PARAM_INVALID)
			}
			return bytes.Clone(o.key.value[number/8:]), nil
		case pkcs11.CKM_CONCATENATE_BASE_AND_KEY:
			second, err := f.inner(pkcs11.ObjectHandle(number))
			if err != nil {
				return nil, err
			}
			return slices.Concat(o.key.value, second.value), nil
		}
		return nil, pkcs11.Error(pkcs11.CKR_MECHANISM_INVALID)
	})
	return f.derived(s, template, value, err)
}

// derived makes the key that a derivation gave, cut to the length that the template says, or its key type.
func (f *fakeModule) derived(s pkcs11.SessionHandle, template []*pkcs11.Attribute, value []byte, err error) (pkcs11.ObjectHandle, error) {
	if err != nil {
		return 0, err
	}
	for _, a := range template {
		if a.Type != pkcs11.CKA_VALUE_LEN && a.Type != pkcs11.CKA_KEY_TYPE {
			continue
		}
		length := int(binary.NativeEndian.Uint64(a.Value))
		if a.Type == pkcs11.CKA_KEY_TYPE {
			length = map[int]int{pkcs11.CKK_DES2: tdes2Bytes, pkcs11.CKK_DES3: tdes3Bytes}[length]
			if length == 0 {
				continue
			}
		}
		if length > len(value) {
			return 0, pkcs11.Error(pkcs11.CKR_KEY_SIZE_RANGE)
		}
		value = value[:length]
	}
	return f.create(s, template, value)
}

func (f *fakeModule) ReadValue(s pkcs11.SessionHandle, o pkcs11.ObjectHandle, attribute uint, out []byte) (int, error) {
	got, err := f.GetAttributeValue(s, o, []*pkcs11.Attribute{pkcs11.NewAttribute(attribute, nil)})
	if err != nil {
		return 0, err
	}
	if len(got[0].Value) > len(out) {
		return 0, pkcs11.Error(pkcs11.CKR_BUFFER_TOO_SMALL)
	}
	return copy(out, got[0].Value), nil
}

func fakeBlock(key []byte, isAES bool) cipher.Block {
	if isAES {
		block, err := aes.NewCipher(key)
		if err != nil {
			panic(err)
		}
		return block
	}
	if len(key) == tdes2Bytes {
		key = append(bytes.Clone(key), key[:desBytes]...)
	}
	block, err := des.NewTripleDESCipher(key)
	if err != nil {
		panic(err)
	}
	return block
}

// fakeCMAC is SP 800-38B.
func fakeCMAC(block cipher.Block, data []byte) []byte {
	size := block.BlockSize()
	double := func(b []byte) []byte {
		out, carry := make([]byte, size), b[0]>>7
		for i := range out {
			out[i] = b[i] << 1
			if i+1 < size {
				out[i] |= b[i+1] >> 7
			}
		}
		out[size-1] ^= carry * map[int]byte{des.BlockSize: 0x1B, aes.BlockSize: 0x87}[size]
		return out
	}
	zeros := make([]byte, size)
	block.Encrypt(zeros, zeros)
	mask := double(zeros)
	text := bytes.Clone(data)
	if len(text) == 0 || len(text)%size != 0 {
		mask = double(mask)
		text = append(text, 0x80)
		text = append(text, make([]byte, (size-len(text)%size)%size)...)
	}
	subtle.XORBytes(text[len(text)-size:], text[len(text)-size:], mask)
	mac := make([]byte, size)
	for i := 0; i < len(text); i += size {
		subtle.XORBytes(mac, mac, text[i:i+size])
		block.Encrypt(mac, mac)
	}
	return mac
}
