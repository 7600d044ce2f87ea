package hsm

import "github.com/miekg/pkcs11"

// A failing module answers one call that makes, uses or destroys an object with an error of the device, without doing it.
type failing struct {
	module
	calls, at int
	failed    string
}

func (f *failing) fails(call string) error {
	if f.calls++; f.calls == f.at {
		f.failed = call
		return pkcs11.Error(pkcs11.CKR_DEVICE_ERROR)
	}
	return nil
}

func (f *failing) GenerateKey(s pkcs11.SessionHandle, m []*pkcs11.Mechanism, t []*pkcs11.Attribute) (pkcs11.ObjectHandle, error) {
	if err := f.fails("C_GenerateKey"); err != nil {
		return 0, err
	}
	return f.module.GenerateKey(s, m, t)
}

func (f *failing) CreateSecret(s pkcs11.SessionHandle, t []*pkcs11.Attribute, value []byte) (pkcs11.ObjectHandle, error) {
	if err := f.fails("C_CreateObject"); err != nil {
		return 0, err
	}
	return f.module.CreateSecret(s, t, value)
}

func (f *failing) DeriveString(s pkcs11.SessionHandle, mechanism uint, data []byte, base pkcs11.ObjectHandle, t []*pkcs11.Attribute) (pkcs11.ObjectHandle, error) {
	if err := f.fails("C_DeriveKey"); err != nil {
		return 0, err
	}
	return f.module.DeriveString(s, mechanism, data, base, t)
}

func (f *failing) DeriveNumber(s pkcs11.SessionHandle, mechanism, number uint, base pkcs11.ObjectHandle, t []*pkcs11.Attribute) (pkcs11.ObjectHandle, error) {
	if err := f.fails("C_DeriveKey"); err != nil {
		return 0, err
	}
	return f.module.DeriveNumber(s, mechanism, number, base, t)
}

func (f *failing) EncryptInit(s pkcs11.SessionHandle, m []*pkcs11.Mechanism, o pkcs11.ObjectHandle) error {
	if err := f.fails("C_EncryptInit"); err != nil {
		return err
	}
	return f.module.EncryptInit(s, m, o)
}

func (f *failing) DestroyObject(s pkcs11.SessionHandle, o pkcs11.ObjectHandle) error {
	if err := f.fails("C_DestroyObject"); err != nil {
		return err
	}
	return f.module.DestroyObject(s, o)
}

// GenerateFailing generates a key while the call of a number fails. It says which that was ("": none, there are not so many), what is in the token afterwards, and
// takes it away.
func (c *ceremony) GenerateFailing(n NewKey, at int) (failed string, left []string, err error) {
	whole := c.m
	f := &failing{module: whole, at: at}
	c.m = f
	_, err = c.generate(n)
	c.m = whole
	for _, label := range []string{n.Label, n.Label + leftSuffix, n.Label + variantSuffix} {
		handles, also := find(whole, c.s, label)
		if also != nil {
			return f.failed, left, also
		}
		for _, k := range handles {
			left = append(left, label)
			if also := whole.DestroyObject(c.s, k); also != nil {
				return f.failed, left, also
			}
		}
	}
	return f.failed, left, err
}
