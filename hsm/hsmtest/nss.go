package hsmtest

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"

	"github.com/miekg/pkcs11"
)

// nssMaker is the ManufacturerID of NSS's softoken.
const nssMaker = "Mozilla Foundation"

// NewNSS makes an empty token of NSS's softoken (libsoftokn3.so of Debian's libnss3): a database in the test's directory, with a user PIN and
// the label of the Token. Where NSS is not installed it skips the test, or fails it if the environment has CI.
//
// What NSS 3.87 does that is worth knowing, each tried:
//
//   - It wants its arguments in the reserved field of C_Initialize (CKR_ARGUMENTS_BAD without). Slot 1 is its crypto slot, whose objects end with
//     their session; slot 2 is the database, its label is dbTokenDescription.
//   - A new database lets the SO in with an empty PIN, once: C_InitPIN makes it the user's, and afterwards there is no SO (CKR_USER_TYPE_INVALID).
//     A wrong user PIN is CKR_PIN_INCORRECT however often; it never locks.
//   - Secret keys with CKA_TOKEN last, with their label and CKA_ID, under the same handle, also after C_Finalize and in another process. They are
//     seen only after login.
//   - Kept: PRIVATE, SENSITIVE, EXTRACTABLE, MODIFIABLE, all usage flags, TRUSTED, WRAP_WITH_TRUSTED. MODIFIABLE=false holds against
//     C_SetAttributeValue. But C_CopyObject cannot be forbidden, and a copy for the session may be given other usage flags; and C_WrapKey does not
//     look at EXTRACTABLE. So whoever is logged in can take each key out by a wrapping key of their own: what is token-resident here is kept from
//     accidents and from this process's memory, not from the owner of the user PIN. NSS is for tests.
//   - A DES key gets odd parity.
//   - Not kept: COPYABLE and ALLOWED_MECHANISMS. A token object with one of them is refused (CKR_GENERAL_ERROR); an object of the session takes and
//     shows them, and ignores them. There is no CHECK_VALUE.
//   - Objects of data (CKO_DATA) cannot be in the token, nor private in a session (CKR_ATTRIBUTE_VALUE_INVALID).
//   - A new key of the token takes the place of the one that has its class and CKA_ID, without a word. A CKA_ID may have 60,000 bytes.
//   - A key that may not do an operation is CKR_KEY_TYPE_INCONSISTENT (0x63), where SoftHSM says CKR_KEY_FUNCTION_NOT_PERMITTED (0x68).
//   - Each C_…Init, C_WrapKey, C_UnwrapKey or C_DeriveKey with a key of the token reads it from the database and deciphers it: 0.2 ms, and 10 ms more where
//     NSS_MAX_MP_PBE_ITERATION_COUNT does not say otherwise, as it does here. With a copy of the key for the session they take 2 to 4 µs.
//   - With too little room, TDES is CKR_ARGUMENTS_BAD and not CKR_BUFFER_TOO_SMALL, a single shot ends, C_Sign cuts the MAC and says nothing, and
//     C_GetAttributeValue writes beyond the room.
//   - C_Encrypt that is asked for the length of a GCM text tells it without the tag.
//
// The copies of the module of several tokens share the libraries that it needs: the first C_Finalize would end the random numbers of all
// (libfreebl, which NSPR tells apart by file name only) and the table of object identifiers (libnssutil). So each copy has a libfreebl
// of its own name beside it, and calls SECOID_Init where it would call SECOID_Shutdown.
func NewNSS(t testing.TB) *Token {
	t.Helper()
	module := softoken(t)
	dir := t.TempDir()
	token := &Token{Module: filepath.Join(dir, "libsoftokn3.so"), Label: fmt.Sprintf("test-nss-%d", tokensOfNSS.Add(1)), t: t}
	// The names have the length of those that they replace.
	const freebl, end = "libfreeblpriv3.so", "\x00SECOID_Shutdown\x00"
	ownFreebl := fmt.Sprintf("libfreebl%05d.so", tokensOfNSS.Load()%100_000)
	library, err := os.ReadFile(module)
	must(t, err)
	if !bytes.Contains(library, []byte(freebl)) || !bytes.Contains(library, []byte(end)) {
		t.Fatalf("%s is another softoken than this package knows: tokens of one process would end each other", module)
	}
	library = bytes.ReplaceAll(library, []byte(freebl), []byte(ownFreebl))
	library = bytes.ReplaceAll(library, []byte(end), []byte("\x00SECOID_Init\x00\x00\x00\x00\x00"))
	must(t, os.WriteFile(token.Module, library, 0o700))
	library, err = os.ReadFile(filepath.Join(filepath.Dir(module), freebl))
	must(t, err)
	must(t, os.WriteFile(filepath.Join(dir, ownFreebl), library, 0o700))

	database := filepath.Join(dir, "database")
	must(t, os.Mkdir(database, 0o700))
	t.Setenv("NSS_MAX_MP_PBE_ITERATION_COUNT", "1") // of the database's passphrase: 10,000 take a CPU 10 ms for each attribute of a key
	token.Arguments = fmt.Sprintf("configdir='sql:%s' certPrefix='' keyPrefix='' secmod='' dbTokenDescription='%s' flags=noModDB", database, token.Label)
	token.Use(func(m *pkcs11.Ctx) {
		s, err := m.OpenSession(token.Slot(m), pkcs11.CKF_SERIAL_SESSION|pkcs11.CKF_RW_SESSION)
		must(t, err)
		must(t, m.Login(s, pkcs11.CKU_SO, ""))
		must(t, m.InitPIN(s, userPIN))
	})
	return token
}

// StandardNSS is Standard on NSS.
func StandardNSS(t testing.TB) *Token {
	t.Helper()
	return NewNSS(t).standard()
}

// tokensOfNSS counts those of this process.
var tokensOfNSS atomic.Int64

// softoken finds the installed module: NSS_MODULE, or where the distributions put it.
func softoken(t testing.TB) string {
	t.Helper()
	return installed(t, "NSS", "libnss3", "NSS_MODULE", "/usr/lib/x86_64-linux-gnu/libsoftokn3.so", "/usr/lib/aarch64-linux-gnu/libsoftokn3.so",
		"/usr/lib/x86_64-linux-gnu/nss/libsoftokn3.so", "/usr/lib/aarch64-linux-gnu/nss/libsoftokn3.so", "/usr/lib64/libsoftokn3.so", "/usr/lib/libsoftokn3.so")
}
