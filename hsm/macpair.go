package hsm

import (
	"fmt"
	"regexp"

	"github.com/miekg/pkcs11"
)

// A mac-x919 key is two objects, made together and never apart: LABEL is the double-length key KL || KR, and LABEL/left is KL || KL, which is
// single DES under KL by TDES (SoftHSM 2.6.1 shows CKM_DES_CBC and fails to do it). What ties them is in the CKA_ID of the first, which nobody may
// change: the check value of the second.

const leftSuffix = "/left"

// leftKCV is at the end of the CKA_ID of the whole key.
var leftKCV = regexp.MustCompile(` left:([0-9A-F]{6})$`)

// createMACPair makes both objects, each by its creator, and returns the whole key. With an error neither is left, unless the token has lost itself.
func createMACPair(m module, s pkcs11.SessionHandle, label string, whole, left creator) (pkcs11.ObjectHandle, error) {
	if err := refuseExisting(m, s, label+leftSuffix); err != nil {
		return 0, err
	}
	r := recipes[MACX919][0]
	second, err := left(r.template(label+leftSuffix, NewKey{Label: label + leftSuffix, Use: MACX919}.id(""), tdes2Bytes))
	if err != nil {
		return 0, err
	}
	kcv, err := r.kcv(m, s, second)
	var first pkcs11.ObjectHandle
	if err == nil {
		first, err = whole(r.template(label, NewKey{Label: label, Use: MACX919}.id("left:"+kcv), tdes2Bytes))
	}
	if err != nil {
		_ = m.DestroyObject(s, second)
		return 0, err
	}
	return first, nil
}

// findLeft finds the left object of a whole key, and returns what is wrong with it.
func findLeft(m module, s pkcs11.SessionHandle, label string, whole pkcs11.ObjectHandle) (left pkcs11.ObjectHandle, kcv, problem string, err error) {
	id, _, err := attribute(m, s, whole, pkcs11.CKA_ID)
	if err != nil {
		return 0, "", "", err
	}
	said := leftKCV.FindSubmatch(id)
	if said == nil {
		return 0, "", "does not say in its CKA_ID which left half it has", nil
	}
	handles, err := find(m, s, label+leftSuffix)
	if err != nil {
		return 0, "", "", err
	}
	if len(handles) != 1 {
		return 0, "", fmt.Sprintf("has %d keys %q, not one", len(handles), label+leftSuffix), nil
	}
	r, problem, err := fitting(MACX919, m, s, handles[0])
	if err != nil || problem != "" {
		return 0, "", label + leftSuffix + " " + problem, err
	}
	if kcv, err = r.kcv(m, s, handles[0]); err != nil {
		return 0, "", "", err
	}
	if !sameKCV(kcv, string(said[1])) {
		return 0, "", fmt.Sprintf("has another left half in %q than was made with it", label+leftSuffix), nil
	}
	return handles[0], kcv, "", nil
}
