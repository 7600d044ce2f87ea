package hsm_test

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"log/slog"
	"math/big"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"acquirerd/hsm"
	"acquirerd/hsm/hsmtest"

	"github.com/miekg/pkcs11"
)

// certified signs a certificate for a public key.
func certified(t *testing.T, public crypto.PublicKey, usage x509.ExtKeyUsage, ca *x509.Certificate, caKey crypto.Signer) *x509.Certificate {
	t.Helper()
	template := &x509.Certificate{SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "acq01.example"}, DNSNames: []string{"acq01.example"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{usage}}
	if ca == nil {
		ca = template
		template.IsCA, template.BasicConstraintsValid, template.KeyUsage, template.ExtKeyUsage = true, true, x509.KeyUsageCertSign, nil
	}
	der, err := x509.CreateCertificate(rand.Reader, template, ca, public, caKey)
	if err != nil {
		t.Fatal(err)
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// An operator's way: a key is made in the token, a request for a certificate is signed, and the key shakes hands as TLS client and as
// server, with TLS 1.2 and 1.3, ECDSA and RSA, after the sessions are lost too.
func TestHandshakesWithAKeyInTheToken(t *testing.T) {
	token := hsmtest.Standard(t)
	kinds := []hsm.KeyType{hsm.ECP256, hsm.RSA2048}
	requests := map[hsm.KeyType]*x509.CertificateRequest{}
	for _, kind := range kinds {
		about, err := hsm.GenerateSigner(token.Config(), "tls-"+string(kind), kind)
		if err != nil {
			t.Fatal(err)
		}
		if about.Use != hsm.TLSKey || about.Bits < 256 || !slices.Equal(about.Flags, []string{"sign", "private", "sensitive"}) {
			t.Errorf("made %+v", about)
		}
		if _, err := hsm.GenerateSigner(token.Config(), "tls-"+string(kind), hsm.ECP256); !errors.Is(err, hsm.ErrKeyExists) {
			t.Errorf("twice: %v", err)
		}
		der, err := hsm.CertificateRequest(token.Config(), "tls-"+string(kind), &x509.CertificateRequest{DNSNames: []string{"acq01.example"}})
		if err != nil {
			t.Fatal(err)
		}
		request, err := x509.ParseCertificateRequest(der)
		if err != nil {
			t.Fatal(err)
		}
		if err := request.CheckSignature(); err != nil {
			t.Error(err)
		}
		requests[kind] = request
	}
	listed, err := hsm.List(token.Config())
	if err != nil || len(listed) != 6 || listed[2].Type != "EC" || listed[3].Type != "RSA" || listed[3].Bits != 2048 {
		t.Errorf("listed %+v, %v", listed, err)
	}
	h, err := hsm.New(token.Config(), slog.New(slog.DiscardHandler), nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := h.Open(t.Context()); err != nil {
		t.Fatal(err)
	}
	early, err := h.Signer("tls-rsa-2048") // before Run, as the daemon wires its links
	if err != nil {
		t.Fatal(err)
	}
	if _, err := h.Signer("absent"); !errors.Is(err, hsm.ErrSigner) {
		t.Errorf("got %v", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- h.Run(ctx) }()
	defer func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		if _, err := early.Sign(nil, make([]byte, 32), crypto.SHA256); !errors.Is(err, hsm.ErrUnavailable) {
			t.Errorf("after the end: %v", err)
		}
	}()

	caPrivate, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	ca := certified(t, caPrivate.Public(), 0, nil, caPrivate)
	roots := x509.NewCertPool()
	roots.AddCert(ca)
	behind := pkcs11.New(token.Module)
	for _, kind := range kinds {
		signer, err := h.Signer("tls-" + string(kind))
		if err != nil {
			t.Fatal(err)
		}
		if !requests[kind].PublicKey.(interface{ Equal(crypto.PublicKey) bool }).Equal(signer.Public()) {
			t.Error("the request was for another key")
		}
		identity := func(usage x509.ExtKeyUsage) tls.Certificate {
			return tls.Certificate{Certificate: [][]byte{certified(t, requests[kind].PublicKey, usage, ca, caPrivate).Raw}, PrivateKey: signer}
		}
		client, server := identity(x509.ExtKeyUsageClientAuth), identity(x509.ExtKeyUsageServerAuth)
		for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
			for _, lose := range []bool{false, true} {
				if lose {
					if err := behind.CloseAllSessions(token.Slot(behind)); err != nil {
						t.Fatal(err)
					}
				}
				a, b := net.Pipe()
				deadline := time.Now().Add(20 * time.Second)
				_, _ = a.SetDeadline(deadline), b.SetDeadline(deadline)
				ours := tls.Client(a, &tls.Config{MinVersion: version, MaxVersion: version, RootCAs: roots, ServerName: "acq01.example", Certificates: []tls.Certificate{client}})
				theirs := tls.Server(b, &tls.Config{MinVersion: version, MaxVersion: version, ClientCAs: roots, ClientAuth: tls.RequireAndVerifyClientCert, Certificates: []tls.Certificate{server}})
				var both sync.WaitGroup
				both.Go(func() {
					if err := theirs.Handshake(); err != nil {
						t.Errorf("%s, TLS %#x, server: %v", kind, version, err)
						_ = b.Close()
						return
					}
					_, _ = theirs.Write([]byte("x"))
				})
				both.Go(func() {
					if _, err := ours.Read(make([]byte, 1)); err != nil {
						t.Errorf("%s, TLS %#x, client: %v", kind, version, err)
						_ = a.Close()
					}
				})
				both.Wait()
				_, _ = a.Close(), b.Close()
			}
		}
	}
	if h.Statement().Generation < 2 {
		t.Error("no session was lost")
	}
}

func TestASignerSignsOnlyWhatTLSNeeds(t *testing.T) {
	token := hsmtest.Standard(t)
	for _, kind := range []hsm.KeyType{hsm.ECP256, hsm.RSA2048} {
		if _, err := hsm.GenerateSigner(token.Config(), string(kind), kind); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := hsm.GenerateSigner(token.Config(), "x", "rsa-1024"); err == nil {
		t.Error("a short key was made")
	}
	public := func(extra ...*pkcs11.Attribute) []*pkcs11.Attribute {
		return append([]*pkcs11.Attribute{pkcs11.NewAttribute(pkcs11.CKA_MODULUS_BITS, 2048), pkcs11.NewAttribute(pkcs11.CKA_PUBLIC_EXPONENT, []byte{1, 0, 1}),
			pkcs11.NewAttribute(pkcs11.CKA_TOKEN, true), pkcs11.NewAttribute(pkcs11.CKA_VERIFY, true)}, extra...)
	}
	token.Use(func(m *pkcs11.Ctx) { // another tool's key, that may decipher and be taken out
		_, _, err := m.GenerateKeyPair(token.Login(m), []*pkcs11.Mechanism{pkcs11.NewMechanism(pkcs11.CKM_RSA_PKCS_KEY_PAIR_GEN, nil)},
			public(pkcs11.NewAttribute(pkcs11.CKA_LABEL, "loose")), []*pkcs11.Attribute{pkcs11.NewAttribute(pkcs11.CKA_LABEL, "loose"), pkcs11.NewAttribute(pkcs11.CKA_TOKEN, true),
				pkcs11.NewAttribute(pkcs11.CKA_PRIVATE, true), pkcs11.NewAttribute(pkcs11.CKA_SIGN, true), pkcs11.NewAttribute(pkcs11.CKA_DECRYPT, true), pkcs11.NewAttribute(pkcs11.CKA_EXTRACTABLE, true)})
		if err != nil {
			t.Fatal(err)
		}
	})
	h := run(t, token.Config())
	if _, err := h.Signer("loose"); !errors.Is(err, hsm.ErrSigner) {
		t.Errorf("a key that may decipher: %v", err)
	}
	ec, err := h.Signer("ec-p256")
	if err != nil {
		t.Fatal(err)
	}
	pkcs1, err := h.Signer("rsa-2048")
	if err != nil {
		t.Fatal(err)
	}
	digest := sha256.Sum256([]byte("text"))
	if s, err := ec.Sign(nil, digest[:], crypto.SHA256); err != nil || !ecdsa.VerifyASN1(ec.Public().(*ecdsa.PublicKey), digest[:], s) {
		t.Errorf("ECDSA: %v", err)
	}
	auto := &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthAuto, Hash: crypto.SHA256}
	if s, err := pkcs1.Sign(nil, digest[:], auto); err != nil || rsa.VerifyPSS(pkcs1.Public().(*rsa.PublicKey), crypto.SHA256, digest[:], s, auto) != nil {
		t.Errorf("PSS: %v", err)
	}
	for name, try := range map[string]func() ([]byte, error){
		"SHA-1":             func() ([]byte, error) { return pkcs1.Sign(nil, make([]byte, 20), crypto.SHA1) },
		"a digest too long": func() ([]byte, error) { return ec.Sign(nil, make([]byte, 33), crypto.SHA256) },
		"no hash":           func() ([]byte, error) { return pkcs1.Sign(nil, digest[:], crypto.Hash(0)) },
		"a short salt": func() ([]byte, error) {
			return pkcs1.Sign(nil, digest[:], &rsa.PSSOptions{SaltLength: 8, Hash: crypto.SHA256})
		},
	} {
		if s, err := try(); !errors.Is(err, hsm.ErrSigner) || s != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	// The key is replaced behind us: handshakes fail, and payments do not notice.
	behind := pkcs11.New(token.Module)
	s, err := behind.OpenSession(token.Slot(behind), pkcs11.CKF_SERIAL_SESSION|pkcs11.CKF_RW_SESSION)
	if err != nil {
		t.Fatal(err)
	}
	for _, label := range []string{"ec-p256", "rsa-2048"} {
		if err := behind.FindObjectsInit(s, []*pkcs11.Attribute{pkcs11.NewAttribute(pkcs11.CKA_LABEL, label)}); err != nil {
			t.Fatal(err)
		}
		found, _, err := behind.FindObjects(s, 10)
		if err != nil || len(found) != 2 {
			t.Fatalf("%d objects, %v", len(found), err)
		}
		if err := behind.FindObjectsFinal(s); err != nil {
			t.Fatal(err)
		}
		for _, o := range found {
			if err := behind.DestroyObject(s, o); err != nil {
				t.Fatal(err)
			}
		}
	}
	if _, err := ec.Sign(nil, digest[:], crypto.SHA256); !errors.Is(err, hsm.ErrSigner) {
		t.Errorf("a key that is gone: %v", err)
	}
	named := func(attributes ...*pkcs11.Attribute) []*pkcs11.Attribute {
		return append(attributes, pkcs11.NewAttribute(pkcs11.CKA_LABEL, "ec-p256"), pkcs11.NewAttribute(pkcs11.CKA_TOKEN, true))
	}
	_, _, err = behind.GenerateKeyPair(s, []*pkcs11.Mechanism{pkcs11.NewMechanism(pkcs11.CKM_EC_KEY_PAIR_GEN, nil)},
		named(pkcs11.NewAttribute(pkcs11.CKA_EC_PARAMS, unhex(t, "06082A8648CE3D030107"))),
		named(pkcs11.NewAttribute(pkcs11.CKA_PRIVATE, true), pkcs11.NewAttribute(pkcs11.CKA_SENSITIVE, true), pkcs11.NewAttribute(pkcs11.CKA_EXTRACTABLE, false),
			pkcs11.NewAttribute(pkcs11.CKA_MODIFIABLE, false), pkcs11.NewAttribute(pkcs11.CKA_COPYABLE, false), pkcs11.NewAttribute(pkcs11.CKA_SIGN, true),
			pkcs11.NewAttribute(pkcs11.CKA_SIGN_RECOVER, false), pkcs11.NewAttribute(pkcs11.CKA_DECRYPT, false), pkcs11.NewAttribute(pkcs11.CKA_UNWRAP, false),
			pkcs11.NewAttribute(pkcs11.CKA_DERIVE, false)))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := ec.Sign(nil, digest[:], crypto.SHA256); !errors.Is(err, hsm.ErrSigner) || !strings.Contains(err.Error(), "another key") {
		t.Errorf("another key of the label: %v", err)
	}
	if fresh, err := h.Signer("ec-p256"); err != nil || fresh.Public().(*ecdsa.PublicKey).Equal(ec.Public()) {
		t.Errorf("a new signer: %v", err)
	}
	if _, err := h.Protect(t.Context(), hsm.Card{PAN: pan(t, "4111111111111111")}); err != nil || h.Statement().Generation != 1 {
		t.Errorf("payments: %v, generation %d", err, h.Statement().Generation)
	}
}
