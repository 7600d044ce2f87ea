package hsm

// What the vectors of PIN blocks need of this package, which gives no clear PIN block to anybody.

// TranslateBlock is the transient translation, with ciphers of the caller's own. fill has the nibbles of a new block's fill, one a byte, for the places
// from the first behind the PIN on, and tail what stands behind the PIN field of format 4.
func TranslateBlock(from, to Format, fromPAN, toPAN string, out, in []byte, decipher, encipher func(dst, src []byte) error, digits int, fillDigits, tail []byte) error {
	newFill := func(Format) fill { return fillOf(digits, fillDigits, tail) }
	var mem blockMemory
	return translation{from, to, fromPAN, toPAN, newFill}.run(&mem, out, in, decipher, encipher)
}

func fillOf(digits int, fillDigits, tail []byte) (f fill) {
	copy(f.digits[digits:], fillDigits)
	copy(f.tail[:], tail)
	return f
}

// SetFill makes new PIN blocks have a fill that is not random. It is called before Run.
func (h *HSM) SetFill(digits int, fillDigits, tail []byte) {
	h.newFill = func(Format) fill { return fillOf(digits, fillDigits, tail) }
}

// AccountField is the account number field of a PAN.
func AccountField(f Format, pan string) []byte {
	field := make([]byte, f.Bytes())
	f.layout().writeAccount(field, pan)
	return field
}
