package hsm

/*
#cgo linux freebsd LDFLAGS: -ldl
#cgo noescape call_transform
#cgo nocallback call_transform
#cgo noescape call_create
#cgo nocallback call_create
#cgo noescape call_derive_string
#cgo nocallback call_derive_string
#cgo nocallback call_derive_number
#cgo noescape call_wrap
#cgo nocallback call_wrap
#cgo noescape call_unwrap
#cgo nocallback call_unwrap
#cgo noescape call_read
#cgo nocallback call_read

#include <dlfcn.h>
#include <stddef.h>
#include <stdlib.h>

// What is needed here of PKCS#11 v2.40, as Unix systems lay it out: no packing (v2.40, 2.1), CK_ULONG is an unsigned long.
typedef unsigned long ck_ulong;
struct attribute { ck_ulong type; void *value; ck_ulong length; };
struct mechanism { ck_ulong type; void *parameter; ck_ulong length; };
typedef ck_ulong (*transform)(ck_ulong session, unsigned char *in, ck_ulong length, unsigned char *out, ck_ulong *room);

// The table of C_GetFunctionList: a version, and 68 functions in the order of the standard (v2.40, 3.6). Each number is a function's place.
struct functions {
	unsigned char version[2];
	void *before_create[20];
	ck_ulong (*create)(ck_ulong session, struct attribute *template, ck_ulong count, ck_ulong *object);                           // 20
	void *before_read[3];
	ck_ulong (*read)(ck_ulong session, ck_ulong object, struct attribute *template, ck_ulong count);                              // 24
	void *before_encrypt[5];
	transform encrypt, encrypt_update;                                                                                            // 30, 31
	void *before_decrypt[2];
	transform decrypt, decrypt_update;                                                                                            // 34, 35
	void *before_sign[7];
	transform sign;                                                                                                               // 43
	void *before_wrap[16];
	ck_ulong (*wrap)(ck_ulong session, struct mechanism *, ck_ulong under, ck_ulong key, unsigned char *out, ck_ulong *room);      // 60
	ck_ulong (*unwrap)(ck_ulong session, struct mechanism *, ck_ulong under, unsigned char *wrapped, ck_ulong length, struct attribute *template, ck_ulong count, ck_ulong *object); // 61
	ck_ulong (*derive)(ck_ulong session, struct mechanism *, ck_ulong base, struct attribute *template, ck_ulong count, ck_ulong *object); // 62
	void *rest[5];
};
_Static_assert(sizeof(struct functions) == 69 * sizeof(void *), "the version, and 68 functions");
_Static_assert(offsetof(struct functions, derive) == 63 * sizeof(void *), "C_DeriveKey");

// The return code, and what was filled or made.
struct answer { ck_ulong code, value; };

enum { cka_value = 0x11, ckr_function_not_supported = 0x54, ckr_buffer_too_small = 0x150 };

// Nothing is asked for by a length of 0, never by a null pointer: that would ask for the size, and leave an operation as it is.
static unsigned char nothing;

static struct functions *function_list(const char *path) {
	void *handle = dlopen(path, RTLD_LAZY | RTLD_NOLOAD);
	if (handle == NULL) return NULL;
	ck_ulong (*get)(struct functions **) = (ck_ulong (*)(struct functions **))dlsym(handle, "C_GetFunctionList");
	struct functions *list = NULL;
	if (get == NULL || get(&list) != 0) return NULL;
	return list;
}

static struct answer call_transform(transform f, ck_ulong session, unsigned char *in, ck_ulong length, unsigned char *out, ck_ulong room) {
	struct answer a = {ckr_function_not_supported, room};
	if (f != NULL) a.code = f(session, length ? in : &nothing, length, room ? out : &nothing, &a.value);
	return a;
}

// The last attribute of the template becomes the value, for this call.
static struct answer call_create(struct functions *list, ck_ulong session, struct attribute *template, ck_ulong count, unsigned char *value, ck_ulong length) {
	struct answer a = {ckr_function_not_supported, 0};
	struct attribute last = {cka_value, length ? value : &nothing, length}, none = {0, NULL, 0};
	template[count - 1] = last;
	if (list->create != NULL) a.code = list->create(session, template, count, &a.value);
	template[count - 1] = none;
	return a;
}

// The parameter is a CK_KEY_DERIVATION_STRING_DATA.
static struct answer call_derive_string(struct functions *list, ck_ulong session, ck_ulong type, unsigned char *data, ck_ulong length, ck_ulong base, struct attribute *template, ck_ulong count) {
	struct answer a = {ckr_function_not_supported, 0};
	struct { unsigned char *data; ck_ulong length; } parameter = {length ? data : &nothing, length};
	struct mechanism m = {type, &parameter, sizeof parameter};
	if (list->derive != NULL) a.code = list->derive(session, &m, base, template, count, &a.value);
	return a;
}

// The parameter is a CK_EXTRACT_PARAMS or a CK_OBJECT_HANDLE, which are both a CK_ULONG.
static struct answer call_derive_number(struct functions *list, ck_ulong session, ck_ulong type, ck_ulong number, ck_ulong base, struct attribute *template, ck_ulong count) {
	struct answer a = {ckr_function_not_supported, 0};
	struct mechanism m = {type, &number, sizeof number};
	if (list->derive != NULL) a.code = list->derive(session, &m, base, template, count, &a.value);
	return a;
}

static struct answer call_wrap(struct functions *list, ck_ulong session, ck_ulong type, unsigned char *iv, ck_ulong length, ck_ulong under, ck_ulong key, unsigned char *out, ck_ulong room) {
	struct answer a = {ckr_function_not_supported, room};
	struct mechanism m = {type, length ? iv : NULL, length};
	if (list->wrap != NULL) a.code = list->wrap(session, &m, under, key, room ? out : &nothing, &a.value);
	return a;
}

static struct answer call_unwrap(struct functions *list, ck_ulong session, ck_ulong type, unsigned char *iv, ck_ulong length, ck_ulong under, unsigned char *wrapped, ck_ulong size, struct attribute *template, ck_ulong count) {
	struct answer a = {ckr_function_not_supported, 0};
	struct mechanism m = {type, length ? iv : NULL, length};
	if (list->unwrap != NULL) a.code = list->unwrap(session, &m, under, size ? wrapped : &nothing, size, template, count, &a.value);
	return a;
}

// Asked for the length first: NSS 3.87 writes the whole value of an object of the session whatever the room, and says so only afterwards.
static struct answer call_read(struct functions *list, ck_ulong session, ck_ulong object, ck_ulong type, unsigned char *out, ck_ulong room) {
	struct answer a = {ckr_function_not_supported, 0};
	struct attribute wanted = {type, NULL, 0};
	if (list->read == NULL) return a;
	a.code = list->read(session, object, &wanted, 1);
	if (a.code == 0 && wanted.length > room) a.code = ckr_buffer_too_small;
	if (a.code == 0 && wanted.length > 0) {
		wanted.value = out;
		a.code = list->read(session, object, &wanted, 1);
	}
	a.value = wanted.length;
	return a;
}
*/
import "C"

import (
	"fmt"
	"os"
	"slices"
	"unsafe"

	"github.com/miekg/pkcs11"
)

// A library is a PKCS#11 module in this process: miekg's wrapper, and beside it straight calls of the same functions for what is secret or
// hot. The wrapper copies what goes in and out into memory of its own, which it frees without clearing, and asks for the size of each answer
// first. The calls here read and write the caller's bytes in place, so that a secret can stay in locked memory, and allocate nothing where no template is.
//
// Slices may be of any memory, Go's or mapped. A module keeps none of their addresses beyond a call. An error is the pkcs11.Error of the module.
type library struct {
	*pkcs11.Ctx
	functions *C.struct_functions
	arguments string // see Config
	forgets   bool   // it has no place for the attributes that kept leaves out; set by Initialize
}

// loadModule maps the module into the process. It is never unmapped: modules leave exit handlers and threads behind,
// and a module that is loaded again is the same mapping.
func loadModule(path, arguments string) (*library, error) {
	if about, err := os.Stat(path); err != nil {
		return nil, fmt.Errorf("loading PKCS#11 module: %w", err)
	} else if !about.Mode().IsRegular() {
		return nil, fmt.Errorf("loading PKCS#11 module %s: it is not a file", path)
	}
	l := &library{Ctx: pkcs11.New(path), arguments: arguments}
	if l.Ctx != nil {
		name := C.CString(path)
		defer C.free(unsafe.Pointer(name))
		l.functions = C.function_list(name)
	}
	if l.functions == nil {
		return nil, fmt.Errorf("loading PKCS#11 module %s: not a library that offers C_GetFunctionList", path)
	}
	return l, nil
}

// Initialize is C_Initialize with the arguments for the module, if there are any, in the reserved field. The module reads them during the call.
func (l *library) Initialize(options ...pkcs11.InitializeOption) error {
	if l.arguments != "" {
		text := unsafe.Pointer(C.CString(l.arguments))
		defer C.free(text)
		options = append(options, pkcs11.InitializeWithReserved(text))
	}
	if err := l.Ctx.Initialize(options...); err != nil {
		return err
	}
	about, err := l.GetInfo()
	l.forgets = err == nil && about.ManufacturerID == nssMaker
	return nil
}

// nssMaker is what NSS's softoken says of itself.
const nssMaker = "Mozilla Foundation"

// kept is what a module can take of a template. NSS 3.87 refuses a key for the token with CKA_ALLOWED_MECHANISMS or CKA_COPYABLE (CKR_GENERAL_ERROR): it
// has no place for them. What such a key then is, judge reads in the token.
func (l *library) kept(template []*pkcs11.Attribute) []*pkcs11.Attribute {
	if !l.forgets {
		return template
	}
	return slices.DeleteFunc(slices.Clone(template), func(a *pkcs11.Attribute) bool {
		return a.Type == pkcs11.CKA_ALLOWED_MECHANISMS || a.Type == pkcs11.CKA_COPYABLE
	})
}

// CreateObject is the wrapper's, with what the module can take of the template. So with GenerateKey and UnwrapKey.
func (l *library) CreateObject(s pkcs11.SessionHandle, template []*pkcs11.Attribute) (pkcs11.ObjectHandle, error) {
	return l.Ctx.CreateObject(s, l.kept(template))
}

func (l *library) GenerateKey(s pkcs11.SessionHandle, m []*pkcs11.Mechanism, template []*pkcs11.Attribute) (pkcs11.ObjectHandle, error) {
	return l.Ctx.GenerateKey(s, m, l.kept(template))
}

func (l *library) UnwrapKey(s pkcs11.SessionHandle, m []*pkcs11.Mechanism, under pkcs11.ObjectHandle, wrapped []byte, template []*pkcs11.Attribute) (pkcs11.ObjectHandle, error) {
	return l.Ctx.UnwrapKey(s, m, under, wrapped, l.kept(template))
}

// EncryptUpdate goes on with the operation of EncryptInit, which stays open, and returns how many bytes of out it filled: a token may keep some
// back. Every error but that of too little room ends the operation.
//
// The caller gives room enough. What is done with too little is not the same everywhere: the standard leaves the operation as it was, and says
// CKR_BUFFER_TOO_SMALL (v2.40, 5.2); NSS 3.87 says CKR_ARGUMENTS_BAD of TDES, ends a single shot, and cuts a MAC to the room without a word.
func (l *library) EncryptUpdate(s pkcs11.SessionHandle, in, out []byte) (int, error) {
	return callTransform(l.functions.encrypt_update, s, in, out)
}

// DecryptUpdate is EncryptUpdate of the operation of DecryptInit.
func (l *library) DecryptUpdate(s pkcs11.SessionHandle, in, out []byte) (int, error) {
	return callTransform(l.functions.decrypt_update, s, in, out)
}

// EncryptTo ends the operation of EncryptInit with its only data.
func (l *library) EncryptTo(s pkcs11.SessionHandle, in, out []byte) (int, error) {
	return callTransform(l.functions.encrypt, s, in, out)
}

// DecryptTo ends the operation of DecryptInit with its only data. Some tokens want room for one block more than they fill.
func (l *library) DecryptTo(s pkcs11.SessionHandle, in, out []byte) (int, error) {
	return callTransform(l.functions.decrypt, s, in, out)
}

// SignTo ends the operation of SignInit with its only data.
func (l *library) SignTo(s pkcs11.SessionHandle, data, out []byte) (int, error) {
	return callTransform(l.functions.sign, s, data, out)
}

func callTransform(f C.transform, s pkcs11.SessionHandle, in, out []byte) (int, error) {
	return answerLength(C.call_transform(f, C.ck_ulong(s), address(in), C.ck_ulong(len(in)), address(out), C.ck_ulong(len(out))), out)
}

// CreateSecret makes an object whose CKA_VALUE is value, which is read in place. The template is without one.
func (l *library) CreateSecret(s pkcs11.SessionHandle, template []*pkcs11.Attribute, value []byte) (pkcs11.ObjectHandle, error) {
	t := newAttributeList(l.kept(template), 1)
	defer t.free()
	return answerObject(C.call_create(l.functions, C.ck_ulong(s), t.first(), t.count(), address(value), C.ck_ulong(len(value))))
}

// WrapTo is C_WrapKey by a mechanism whose parameter is an initialisation vector, or nothing. The wrapper's WrapKey lets NSS wrap twice: once for the length.
func (l *library) WrapTo(s pkcs11.SessionHandle, mechanism uint, iv []byte, under, key pkcs11.ObjectHandle, out []byte) (int, error) {
	return answerLength(C.call_wrap(l.functions, C.ck_ulong(s), C.ck_ulong(mechanism), address(iv), C.ck_ulong(len(iv)), C.ck_ulong(under), C.ck_ulong(key), address(out), C.ck_ulong(len(out))), out)
}

// Unwrap is C_UnwrapKey by such a mechanism.
func (l *library) Unwrap(s pkcs11.SessionHandle, mechanism uint, iv []byte, under pkcs11.ObjectHandle, wrapped []byte, template []*pkcs11.Attribute) (pkcs11.ObjectHandle, error) {
	t := newAttributeList(l.kept(template), 0)
	defer t.free()
	return answerObject(C.call_unwrap(l.functions, C.ck_ulong(s), C.ck_ulong(mechanism), address(iv), C.ck_ulong(len(iv)), C.ck_ulong(under), address(wrapped), C.ck_ulong(len(wrapped)), t.first(), t.count()))
}

// DeriveString is C_DeriveKey by a mechanism whose parameter is a string: CKM_*_ECB_ENCRYPT_DATA, CKM_XOR_BASE_AND_DATA,
// CKM_CONCATENATE_BASE_AND_DATA, CKM_CONCATENATE_DATA_AND_BASE. A module given that string itself in place of the structure would take its bytes for an address.
func (l *library) DeriveString(s pkcs11.SessionHandle, mechanism uint, data []byte, base pkcs11.ObjectHandle, template []*pkcs11.Attribute) (pkcs11.ObjectHandle, error) {
	t := newAttributeList(l.kept(template), 0)
	defer t.free()
	return answerObject(C.call_derive_string(l.functions, C.ck_ulong(s), C.ck_ulong(mechanism), address(data), C.ck_ulong(len(data)), C.ck_ulong(base), t.first(), t.count()))
}

// DeriveNumber is C_DeriveKey by a mechanism whose parameter is a number: CKM_EXTRACT_KEY_FROM_KEY (the first bit, 0 is the
// top bit of the first byte) or CKM_CONCATENATE_BASE_AND_KEY (the handle of the key that follows).
func (l *library) DeriveNumber(s pkcs11.SessionHandle, mechanism, number uint, base pkcs11.ObjectHandle, template []*pkcs11.Attribute) (pkcs11.ObjectHandle, error) {
	t := newAttributeList(l.kept(template), 0)
	defer t.free()
	return answerObject(C.call_derive_number(l.functions, C.ck_ulong(s), C.ck_ulong(mechanism), C.ck_ulong(number), C.ck_ulong(base), t.first(), t.count()))
}

// ReadValue reads one attribute into out and returns its length.
func (l *library) ReadValue(s pkcs11.SessionHandle, o pkcs11.ObjectHandle, attribute uint, out []byte) (int, error) {
	return answerLength(C.call_read(l.functions, C.ck_ulong(s), C.ck_ulong(o), C.ck_ulong(attribute), address(out), C.ck_ulong(len(out))), out)
}

// answerLength reads an answer whose value is a length. One that cannot be is a device error: such a module is not to be trusted further.
func answerLength(a C.struct_answer, out []byte) (int, error) {
	if a.code != 0 {
		return 0, pkcs11.Error(a.code)
	}
	if a.value > C.ck_ulong(len(out)) {
		return 0, pkcs11.Error(pkcs11.CKR_DEVICE_ERROR)
	}
	return int(a.value), nil
}

// answerObject reads an answer whose value is an object.
func answerObject(a C.struct_answer) (pkcs11.ObjectHandle, error) {
	if a.code != 0 {
		return 0, pkcs11.Error(a.code)
	}
	return pkcs11.ObjectHandle(a.value), nil
}

// address is the address of a slice for C, and means nothing if that is empty.
func address(b []byte) *C.uchar {
	return (*C.uchar)(unsafe.SliceData(b))
}

// An attributeList is a template in C memory, with their values behind it: C may not be given Go memory that holds addresses of Go memory.
type attributeList struct {
	memory     unsafe.Pointer // nil if it is empty
	bytes      []byte         // all of memory
	attributes []C.struct_attribute
}

// newAttributeList copies attributes, and leaves room for more of them behind them.
func newAttributeList(from []*pkcs11.Attribute, more int) attributeList {
	count := len(from) + more
	if count == 0 {
		return attributeList{}
	}
	size := uintptr(count) * unsafe.Sizeof(C.struct_attribute{})
	values := size
	for _, a := range from {
		size += uintptr(len(a.Value))
	}
	memory := C.malloc(C.size_t(size)) // never nil: see cgo
	t := attributeList{
		memory:     memory,
		bytes:      unsafe.Slice((*byte)(memory), size),
		attributes: unsafe.Slice((*C.struct_attribute)(memory), len(from)+more),
	}
	clear(t.bytes)
	for i, a := range from {
		t.attributes[i]._type = C.ck_ulong(a.Type)
		if n := copy(t.bytes[values:], a.Value); n > 0 {
			t.attributes[i].value = unsafe.Pointer(&t.bytes[values])
			t.attributes[i].length = C.ck_ulong(n)
			values += uintptr(n)
		}
	}
	return t
}

func (t attributeList) first() *C.struct_attribute { return unsafe.SliceData(t.attributes) }

func (t attributeList) count() C.ck_ulong { return C.ck_ulong(len(t.attributes)) }

// free clears the memory first.
func (t attributeList) free() {
	clear(t.bytes)
	C.free(t.memory)
}
