package hsm

import (
	"crypto/subtle"
	"errors"
	"fmt"

	"github.com/miekg/pkcs11"
)

// The token-resident way of a PIN block: it is unwrapped into a secret of the session, changed by derivation where its format changes, and wrapped
// again. No digit of the PIN is ever in this process.
//
// What is in this process is what surrounds the digits: the control nibble, the PIN's length, and the fill. The unwrapped secret is not readable, and what
// is cut out of it is not either; so a piece is wrapped under the sight, a key of the generation that this process may decipher with. Without that,
// a token would wrap whatever came out of the wrong key, and the processor would be sent it. It also is what reformatting takes: fill that is known can
// be XORed into another.
//
// A piece is whole bytes, and none that is cut holds a digit of a PIN of the length that the block says: so what is not a well-formed block, and then has no PIN, is
// the only thing of which more is seen.

// translateInside is the token-resident way of a translation: see translation.run for what it returns. The worker's memory holds no secret of it, and is
// cleared.
//
// Garbage, and so a wrong key, passes more often than where digits can be seen: for format 0 or 4 once in 61,000, for format 3 once in 1,100, and for
// format 1, whose fill says nothing, once in 28. A wrong PAN is seen for certain of format 0 where it differs under the fill, and elsewhere never;
// of format 3 less often; of format 1 never; of format 4 as a wrong key is.
func (w *worker) translateInside(t translation, from, to *key, out, in []byte) (err error) {
	mem, source, target := &w.mem.pin, t.from.layout(), t.to.layout()
	if len(in) != source.bytes || len(out) != target.bytes || source.bytes == 0 {
		return ErrPINBlock
	}
	v := visit{worker: w}
	defer mem.clear()
	defer v.leave(&err)
	source.writeAccount(mem.account[:source.bytes], t.fromPAN)
	block, err := v.unwrap(source, from, in)
	if err != nil {
		return fmt.Errorf("unwrapping PIN block: %w", err)
	}
	length, err := v.look(source, block)
	if errors.Is(err, ErrPINBlock) {
		return ErrPINBlock
	}
	if err != nil {
		return fmt.Errorf("looking at what surrounds a PIN: %w", err)
	}
	if block, err = v.reformat(t, block, length); err != nil {
		return fmt.Errorf("reformatting PIN block: %w", err)
	}
	clear(mem.account[:])
	target.writeAccount(mem.account[:target.bytes], t.toPAN)
	if err = v.wrap(target, to, block, out); err != nil {
		return fmt.Errorf("wrapping PIN block: %w", err)
	}
	return nil
}

// A visit is one translation inside the token, with the objects that it has made.
type visit struct {
	*worker
	objects [6]pkcs11.ObjectHandle // the most of any pair
	count   int
}

// keep remembers an object that was made.
func (v *visit) keep(o pkcs11.ObjectHandle, err error) (pkcs11.ObjectHandle, error) {
	if err == nil {
		v.objects[v.count] = o
		v.count++
	}
	return o, err
}

// leave destroys what was made. What a token does not destroy ends with the session; so that error comes before all others, and breaks the generation by
// its code.
func (v *visit) leave(err *error) {
	for v.count > 0 {
		v.count--
		if failed := v.m.DestroyObject(v.session, v.objects[v.count]); failed != nil {
			*err = fmt.Errorf("destroying PIN block: %w", failed)
		}
	}
}

// unwrap makes a secret of the block: of 8 bytes the PIN field XOR the account number field, of 16 the PIN field with what is behind it. What stands
// between the two decipherments of format 4 is enciphered still. mem.account holds the account number field.
func (v *visit) unwrap(l layout, from *key, in []byte) (pkcs11.ObjectHandle, error) {
	if l.bytes == aesBytes {
		block := v.mem.pin.block[:]
		if err := v.ecb(from, true, in, block); err != nil {
			return 0, err
		}
		subtle.XORBytes(block, block, v.mem.pin.account[:])
		in = block
	}
	return v.keep(v.m.Unwrap(v.session, from.recipe.algorithm.ecb(), nil, from.handle, in, pinPieces[l.bytes]))
}

// look checks what surrounds the PIN, writes the fill into the PIN field in mem.other, where the digits stay zeros, and returns the PIN's length.
func (v *visit) look(l layout, block pkcs11.ObjectHandle) (length int, err error) {
	field := v.mem.pin.other[:pinFieldBytes]
	if err := v.see(block, 0, field[:1]); err != nil { // no account digit is under it
		return 0, err
	}
	length = int(nibble(field, 1))
	if nibble(field, 0) != l.control || length < shortestPIN || length > longestPIN {
		return 0, ErrPINBlock
	}
	// An odd length leaves an odd number of nibbles: the last one is seen with the one before it.
	first := firstPINDigit + length
	var fill [pinFieldBytes]byte
	whole := fill[:(pinNibbles-first)/2]
	if err := v.see(block, first, whole); err != nil {
		return 0, err
	}
	for i := range 2 * len(whole) {
		setNibble(field, first+i, nibble(whole, i))
	}
	if length%2 != 0 {
		if err := v.see(block, pinNibbles-2, field[pinFieldBytes-1:]); err != nil {
			return 0, err
		}
	}
	bad := byte(0)
	for i := first; i < pinNibbles; i++ {
		n := nibble(field, i)
		if l.bytes != aesBytes {
			n ^= nibble(v.mem.pin.account[:], i)
		}
		setNibble(field, i, n)
		bad |= outside(n, l.firstFill, l.fillValues)
	}
	if bad != 0 {
		return 0, ErrPINBlock
	}
	return length, nil
}

// see shows a piece of a secret, from a nibble on.
func (v *visit) see(block pkcs11.ObjectHandle, first int, piece []byte) error {
	const nibbleBits = 4
	o, err := v.keep(v.m.DeriveNumber(v.session, pkcs11.CKM_EXTRACT_KEY_FROM_KEY, uint(first*nibbleBits), block, pinPieces[len(piece)]))
	if err != nil {
		return err
	}
	// The token pads a key to whole blocks with zeros (PKCS#11 v2.40, 2.11.4).
	seen := v.mem.pin.block[:]
	if err := v.wrapTo(v.gen.sight, o, seen); err != nil {
		return err
	}
	if err := v.ecb(v.gen.sight, true, seen, seen); err != nil {
		return err
	}
	copy(piece, seen)
	return nil
}

// wrapTo wraps a secret under a key, into as many bytes as that has to fill.
func (v *visit) wrapTo(under *key, secret pkcs11.ObjectHandle, out []byte) error {
	n, err := v.m.WrapTo(v.session, under.recipe.algorithm.ecb(), nil, under.handle, secret, out)
	if err == nil {
		_, err = exactly(len(out), out[:n], nil)
	}
	return err
}

// reformat makes of a secret the one that is to be wrapped. Where neither format nor PAN changes it is the same; else digits stay, and everything around
// them is XORed with what makes it the new. mem.account holds the old account number field, mem.other the old fill.
func (v *visit) reformat(t translation, block pkcs11.ObjectHandle, length int) (pkcs11.ObjectHandle, error) {
	mem, source, target := &v.mem.pin, t.from.layout(), t.to.layout()
	same := t.from.orDefault() == t.to.orDefault()
	if same && (t.fromPAN == t.toPAN || source.bytes == aesBytes) { // the PAN of format 4 is not in the secret
		return block, nil
	}
	mask := mem.block[:pinFieldBytes]
	clear(mask)
	if source.bytes != aesBytes {
		copy(mask, mem.account[:])
	}
	if target.bytes != aesBytes {
		clear(mem.account[:])
		target.writeAccount(mem.account[:target.bytes], t.toPAN)
		subtle.XORBytes(mask, mask, mem.account[:pinFieldBytes])
	}
	var err error
	if source.bytes == aesBytes && target.bytes != aesBytes {
		if block, err = v.keep(v.m.DeriveNumber(v.session, pkcs11.CKM_EXTRACT_KEY_FROM_KEY, 0, block, pinPieces[pinFieldBytes])); err != nil {
			return 0, err
		}
	}
	fresh := t.fill(t.to)
	if !same {
		mask[0] ^= (source.control ^ target.control) << 4
		for i := firstPINDigit + length; i < pinNibbles; i++ {
			setNibble(mask, i, nibble(mask, i)^nibble(mem.other[:], i)^fresh.digits[i-firstPINDigit])
		}
	}
	if block, err = v.keep(v.m.DeriveString(v.session, pkcs11.CKM_XOR_BASE_AND_DATA, mask, block, pinWhole)); err != nil {
		return 0, err
	}
	if target.bytes == aesBytes {
		return v.keep(v.m.DeriveString(v.session, pkcs11.CKM_CONCATENATE_BASE_AND_DATA, fresh.tail[:], block, pinWhole))
	}
	return block, nil
}

// wrap writes the enciphered block. What stands between the two encipherments of format 4 is enciphered already. mem.account holds the account number field.
func (v *visit) wrap(l layout, to *key, block pkcs11.ObjectHandle, out []byte) error {
	if l.bytes != aesBytes {
		return v.wrapTo(to, block, out)
	}
	between := v.mem.pin.other[:]
	if err := v.wrapTo(to, block, between); err != nil {
		return err
	}
	subtle.XORBytes(between, between, v.mem.pin.account[:])
	return v.ecb(to, false, between, out)
}

// pinSecret is the template of an object that holds a PIN block or a part of one. It is extractable because it is to be wrapped, and lives for the length
// of a call. (CKA_WRAP_WITH_TRUSTED would bind it to keys that a security officer has marked as trusted, where a token heeds that; this package
// makes no such keys.)
func pinSecret(more ...*pkcs11.Attribute) []*pkcs11.Attribute {
	t := []*pkcs11.Attribute{
		pkcs11.NewAttribute(pkcs11.CKA_CLASS, pkcs11.CKO_SECRET_KEY),
		pkcs11.NewAttribute(pkcs11.CKA_KEY_TYPE, pkcs11.CKK_GENERIC_SECRET),
		pkcs11.NewAttribute(pkcs11.CKA_TOKEN, false),
		pkcs11.NewAttribute(pkcs11.CKA_PRIVATE, true),
		pkcs11.NewAttribute(pkcs11.CKA_SENSITIVE, true),
		pkcs11.NewAttribute(pkcs11.CKA_EXTRACTABLE, true),
	}
	for _, u := range usageFlags {
		t = append(t, pkcs11.NewAttribute(u.attribute, u.attribute == pkcs11.CKA_DERIVE))
	}
	return append(t, more...)
}

// Templates by the length of the object, which are read and never changed. XOR and concatenation give the length by themselves.
var (
	pinWhole  = pinSecret()
	pinPieces = func() (of [aesBytes + 1][]*pkcs11.Attribute) {
		for bytes := range of {
			of[bytes] = pinSecret(pkcs11.NewAttribute(pkcs11.CKA_VALUE_LEN, bytes))
		}
		return of
	}()
)

// sightRecipe is that of the sight: a key of the session that wraps what is to be seen, and deciphers it again. It is never outside the token.
var sightRecipe = recipe{algorithm: AES, flags: []uint{pkcs11.CKA_WRAP, pkcs11.CKA_DECRYPT}, mechanisms: aesPIN}

// newSight makes the sight of a generation. It ends with its session.
func newSight(m module, s pkcs11.SessionHandle) (*key, error) {
	const bytes = 32
	template := append(inSession(sightRecipe.template("", "", bytes)), pkcs11.NewAttribute(pkcs11.CKA_VALUE_LEN, bytes))
	o, err := m.GenerateKey(s, mechanism(pkcs11.CKM_AES_KEY_GEN), template)
	if err != nil {
		return nil, fmt.Errorf("making a key to see what surrounds a PIN: %w", err)
	}
	return &key{recipe: sightRecipe, handle: o}, nil
}

// pinWay returns the way of the PIN keys of a generation, "" if it has none. It is one for all: a block that was unwrapped cannot be enciphered, and
// one that was deciphered could be wrapped only as an object made of what this process has seen.
func (h *HSM) pinWay(g *generation) (Way, error) {
	var first *key
	var faults []KeyFault
	for _, want := range h.cfg.Keys {
		if want.Use != PINIn && want.Use != PINOut {
			continue
		}
		l := g.lineage(want.Label)
		for _, k := range append([]*key{l.current}, l.former...) {
			switch {
			case first == nil:
				first = k
			case k.recipe.way != first.recipe.way:
				faults = append(faults, otherWay(k, first))
			}
		}
	}
	switch {
	case len(faults) > 0:
		return "", &KeyError{faults}
	case first == nil:
		return "", nil
	}
	return first.recipe.way, nil
}

// otherWay is the fault of a PIN key whose way is not that of another.
func otherWay(k, other *key) KeyFault {
	return KeyFault{k.Label, fmt.Sprintf("is for the %s way, and %q for the %s one: a PIN block goes one way, so all PIN keys must have the flags of the same",
		k.recipe.way, other.Label, other.recipe.way)}
}
