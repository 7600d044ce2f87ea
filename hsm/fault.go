package hsm

import (
	"errors"
	"fmt"
	"strings"

	"github.com/miekg/pkcs11"
)

// What callers branch on, with errors.Is. No text of an error of this package holds a PIN, a PAN, a PIN block or key material.
var (
	// ErrUnavailable: the HSM did not do the work and may do it later: down, rebuilding, all workers busy, or out of
	// time. The caller answers 96 (system malfunction).
	ErrUnavailable = errors.New("HSM unavailable")
	// ErrBusy is an ErrUnavailable: every worker is busy and the queue is full; or of a key change, another one is on its way, or there were too many.
	ErrBusy = fmt.Errorf("%w: busy", ErrUnavailable)
	// ErrPINBlock: the PIN block is not a well-formed block of its format and this PAN under this key. It does not say what
	// is wrong with it: more would make an oracle. The caller declines, and never sends the block.
	ErrPINBlock = errors.New("PIN block cannot be translated")
	// ErrKSN: the key serial number is malformed, has a counter that no transaction has, or is none of a bdk key: of another algorithm, or From
	// is no bdk key. The caller declines.
	ErrKSN = errors.New("no key serial number of the base derivation key")
	// ErrNoPAN: there is no PAN to protect.
	ErrNoPAN = errors.New("no PAN to protect")
	// ErrSealedPAN: a sealed PAN, or the sealed rest of an advice, is damaged, was sealed under another key, or its key is not in the configuration.
	ErrSealedPAN = errors.New("sealed PAN cannot be opened")
	// ErrKeyCheck: at least one key is missing, is not what its use demands, or has another KCV. See KeyError.
	ErrKeyCheck = errors.New("keys in the token are not as they have to be")
	// ErrTransient: an operation in use would let a clear PIN block or key pass through this process, and the configuration forbids that.
	ErrTransient = errors.New("an operation would not be token-resident")
	// ErrPINRejected: the token refused the user PIN. It is not offered again before it changes.
	ErrPINRejected = errors.New("token refused the user PIN")
	// ErrInUse: this process already uses the module.
	ErrInUse = errors.New("PKCS#11 module already in use by this process")
	// ErrKeyExists: the token has a key of that label.
	ErrKeyExists = errors.New("token has a key of that label already")
	// ErrKeyChange: a key change is refused for what it carries; asking again will not help. The old key stays in use.
	ErrKeyChange = errors.New("key change refused")
	// ErrFixedKey: the key has no zone master key under which it could be changed. It is an ErrKeyChange too.
	ErrFixedKey = errors.New("no key to be changed by a message")
	// ErrNoPreviousKey: there is no key from before a change, or the time of the overlap is over.
	ErrNoPreviousKey = errors.New("no previous key")
	// ErrSigner: there is no private key of that label in the token that is fit to sign.
	ErrSigner = errors.New("no key in the token to sign with")
	// ErrComponents: the key components are refused.
	ErrComponents = errors.New("key components refused")
)

// A KeyFault says what is wrong with one key.
type KeyFault struct {
	Label   string
	Problem string
}

// A KeyError holds every fault that was found, not just the first. It is an ErrKeyCheck.
type KeyError struct{ Faults []KeyFault }

func (e *KeyError) Error() string {
	texts := make([]string, len(e.Faults))
	for i, f := range e.Faults {
		texts[i] = fmt.Sprintf("%q %s", f.Label, f.Problem)
	}
	return fmt.Sprintf("%v: %s", ErrKeyCheck, strings.Join(texts, "; "))
}

func (e *KeyError) Unwrap() error { return ErrKeyCheck }

// A class groups return codes by what has to follow. It is the label "class" of acquirerd_hsm_errors_total.
type class string

const (
	classSession class = "session" // a session or its login is gone: rebuild
	classDevice  class = "device"  // device, token or module: rebuild
	classLogin   class = "login"   // the token refused the user PIN
	classKey     class = "key"     // a handle does not name the key that was checked: rebuild
	classData    class = "data"    // the caller's data: neither rebuild nor retry
	classUnknown class = "unknown" // not in the table: rebuild

	// Not from return codes.
	classBusy     class = "busy"
	classTimeout  class = "timeout"
	classDown     class = "down"
	classPINBlock class = "pin_block"
	classKCV      class = "kcv"
)

// classes lists the values of the label, so that every series exists from the start.
var classes = []class{classSession, classDevice, classLogin, classKey, classData, classUnknown, classBusy, classTimeout, classDown, classPINBlock, classKCV}

// codes is the one table of return codes (PKCS#11 v2.40, 5.1). Key codes rebuild too: all handles are ours, and each
// key has done its work once when its generation was built, so such a code means that the handle names something else
// by now. A code that is not here is taken for a broken generation: a rebuild too many costs milliseconds.
var codes = map[pkcs11.Error]class{
	pkcs11.CKR_SESSION_CLOSED:            classSession,
	pkcs11.CKR_SESSION_COUNT:             classSession,
	pkcs11.CKR_SESSION_HANDLE_INVALID:    classSession,
	pkcs11.CKR_USER_NOT_LOGGED_IN:        classSession,
	pkcs11.CKR_OPERATION_ACTIVE:          classSession,
	pkcs11.CKR_OPERATION_NOT_INITIALIZED: classSession,

	pkcs11.CKR_CRYPTOKI_NOT_INITIALIZED: classDevice,
	pkcs11.CKR_DEVICE_ERROR:             classDevice,
	pkcs11.CKR_DEVICE_MEMORY:            classDevice,
	pkcs11.CKR_DEVICE_REMOVED:           classDevice,
	pkcs11.CKR_FUNCTION_FAILED:          classDevice,
	pkcs11.CKR_GENERAL_ERROR:            classDevice,
	pkcs11.CKR_HOST_MEMORY:              classDevice,
	pkcs11.CKR_SLOT_ID_INVALID:          classDevice,
	pkcs11.CKR_TOKEN_NOT_PRESENT:        classDevice,
	pkcs11.CKR_TOKEN_NOT_RECOGNIZED:     classDevice,

	pkcs11.CKR_PIN_EXPIRED:              classLogin,
	pkcs11.CKR_PIN_INCORRECT:            classLogin,
	pkcs11.CKR_PIN_INVALID:              classLogin,
	pkcs11.CKR_PIN_LEN_RANGE:            classLogin,
	pkcs11.CKR_PIN_LOCKED:               classLogin,
	pkcs11.CKR_USER_PIN_NOT_INITIALIZED: classLogin,

	pkcs11.CKR_KEY_CHANGED:                classKey,
	pkcs11.CKR_KEY_FUNCTION_NOT_PERMITTED: classKey,
	pkcs11.CKR_KEY_HANDLE_INVALID:         classKey,
	pkcs11.CKR_KEY_SIZE_RANGE:             classKey,
	pkcs11.CKR_KEY_TYPE_INCONSISTENT:      classKey,
	pkcs11.CKR_MECHANISM_INVALID:          classKey,
	pkcs11.CKR_OBJECT_HANDLE_INVALID:      classKey,

	pkcs11.CKR_DATA_INVALID:             classData,
	pkcs11.CKR_DATA_LEN_RANGE:           classData,
	pkcs11.CKR_ENCRYPTED_DATA_INVALID:   classData,
	pkcs11.CKR_ENCRYPTED_DATA_LEN_RANGE: classData,
	pkcs11.CKR_WRAPPED_KEY_INVALID:      classData,
	pkcs11.CKR_WRAPPED_KEY_LEN_RANGE:    classData,
}

// classify returns the class of the return code in err, and whether there is one.
func classify(err error) (class, bool) {
	var code pkcs11.Error
	if !errors.As(err, &code) {
		return "", false
	}
	if c, known := codes[code]; known {
		return c, true
	}
	return classUnknown, true
}

// breaks reports whether err means that its generation must not be used any more.
func breaks(err error) bool {
	c, found := classify(err)
	return found && c != classData
}
