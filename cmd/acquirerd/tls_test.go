package main

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// An authority signs certificates for tests.
type authority struct {
	t           *testing.T
	key         *ecdsa.PrivateKey
	certificate *x509.Certificate
}

func newAuthority(t *testing.T, name string) *authority {
	t.Helper()
	a := &authority{t: t}
	a.key, a.certificate = a.sign(&x509.Certificate{Subject: pkix.Name{CommonName: name}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign, NotAfter: time.Now().Add(365 * 24 * time.Hour)})
	return a
}

// sign makes a key and its certificate; the first of an authority signs itself.
func (a *authority) sign(template *x509.Certificate) (*ecdsa.PrivateKey, *x509.Certificate) {
	a.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		a.t.Fatal(err)
	}
	if template.NotBefore.IsZero() {
		template.NotBefore = time.Now().Add(-100 * 24 * time.Hour)
	}
	template.SerialNumber = big.NewInt(time.Now().UnixNano())
	parent, signer := a.certificate, a.key
	if parent == nil {
		parent, signer = template, key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, &key.PublicKey, signer)
	if err != nil {
		a.t.Fatal(err)
	}
	certificate, err := x509.ParseCertificate(der)
	if err != nil {
		a.t.Fatal(err)
	}
	return key, certificate
}

// issue signs a certificate for client and server of a name or an address, which ends after a time.
func (a *authority) issue(name string, left time.Duration) (*ecdsa.PrivateKey, *x509.Certificate) {
	template := &x509.Certificate{Subject: pkix.Name{CommonName: name}, NotAfter: time.Now().Add(left), KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}}
	if ip := net.ParseIP(name); ip != nil {
		template.IPAddresses = []net.IP{ip}
	} else {
		template.DNSNames = []string{name}
	}
	return a.sign(template)
}

func (a *authority) pool() *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AddCert(a.certificate)
	return pool
}

// shown is what a peer of the daemon shows.
func (a *authority) shown(name string) tls.Certificate {
	key, certificate := a.issue(name, year)
	return tls.Certificate{Certificate: [][]byte{certificate.Raw}, PrivateKey: key}
}

const year = 365 * 24 * time.Hour

// A folder of TLS files.
type folder struct {
	t    *testing.T
	path string
}

func newFolder(t *testing.T) *folder { return &folder{t, t.TempDir()} }

func (f *folder) file(name string) string { return filepath.Join(f.path, name) }

// write writes a file as one step, as tools that renew certificates do.
func (f *folder) write(name string, blocks ...*pem.Block) {
	f.t.Helper()
	var text bytes.Buffer
	for _, block := range blocks {
		if err := pem.Encode(&text, block); err != nil {
			f.t.Fatal(err)
		}
	}
	f.text(name, text.String())
}

func (f *folder) text(name, text string) {
	f.t.Helper()
	if err := os.WriteFile(f.file(name+".new"), []byte(text), 0o600); err != nil {
		f.t.Fatal(err)
	}
	if err := os.Rename(f.file(name+".new"), f.file(name)); err != nil {
		f.t.Fatal(err)
	}
}

func certificateBlock(c *x509.Certificate) *pem.Block {
	return &pem.Block{Type: "CERTIFICATE", Bytes: c.Raw}
}

func keyBlock(t *testing.T, key *ecdsa.PrivateKey) *pem.Block {
	t.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return &pem.Block{Type: "PRIVATE KEY", Bytes: der}
}

// fill writes ours.pem, ours.key and ca.pem: a certificate of an authority for a name, and who is trusted.
func (f *folder) fill(from *authority, name string, left time.Duration, trusted *authority) {
	f.t.Helper()
	key, certificate := from.issue(name, left)
	f.write("ours.pem", certificateBlock(certificate))
	f.write("ours.key", keyBlock(f.t, key))
	f.write("ca.pem", certificateBlock(trusted.certificate))
}

func (f *folder) files() tlsFiles {
	return tlsFiles{certFile: f.file("ours.pem"), keyFile: f.file("ours.key"), caFile: f.file("ca.pem")}
}

func TestTLSFilesThatAreNoGoodAreFaults(t *testing.T) {
	a := newAuthority(t, "authority")
	otherKey, _ := a.issue("processor", -time.Hour)
	for _, c := range []struct {
		name string
		do   func(f *folder)
		want []string
	}{
		{"good ones", func(*folder) {}, nil},
		{"no certificate file", func(f *folder) { os.Remove(f.file("ours.pem")) }, []string{"cert_file: open DIR/ours.pem: no such file or directory"}},
		{"no key file", func(f *folder) { os.Remove(f.file("ours.key")) }, []string{"key_file: open DIR/ours.key: no such file or directory"}},
		{"no authorities", func(f *folder) { f.text("ca.pem", "nothing\n") }, []string{"ca_file: DIR/ca.pem has no certificate in PEM form"}},
		{"a certificate that is none", func(f *folder) { f.write("ours.pem", &pem.Block{Type: "CERTIFICATE", Bytes: []byte("s3cret")}) },
			[]string{"cert_file: DIR/ours.pem has a certificate that cannot be read: x509: malformed certificate"}},
		{"a key that is none", func(f *folder) { f.write("ours.key", &pem.Block{Type: "PRIVATE KEY", Bytes: []byte("s3cret")}) },
			[]string{"key_file: DIR/ours.key has a private key that cannot be read"}},
		{"a key that is encrypted", func(f *folder) {
			f.write("ours.key", &pem.Block{Type: "ENCRYPTED PRIVATE KEY", Bytes: []byte("s3cret")})
		},
			[]string{"key_file: DIR/ours.key has no private key in PEM form that is not encrypted"}},
		{"another certificate's key", func(f *folder) { f.write("ours.key", keyBlock(t, otherKey)) },
			[]string{"key_file: is not the key of the certificate in cert_file"}},
		{"a pipe", func(f *folder) { os.Remove(f.file("ours.key")); must(f.t, syscall.Mkfifo(f.file("ours.key"), 0o600)) },
			[]string{"key_file: DIR/ours.key is not a regular file"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := newFolder(t)
			f.fill(a, "processor", year, a)
			c.do(f)
			var got []string
			for _, wrong := range f.files().faults() {
				got = append(got, strings.ReplaceAll(wrong.String(), f.path, "DIR"))
			}
			if fmt.Sprint(got) != fmt.Sprint(c.want) {
				t.Errorf("got %q, want %q", got, c.want)
			}
			if strings.Contains(fmt.Sprint(got), "s3cret") {
				t.Error("a fault quotes a file")
			}
		})
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// newTestCertificates keeps one party, "endpoint a", with the files of a folder.
func newTestCertificates(t *testing.T, f *folder) (*certificates, *party, *prometheus.Registry) {
	t.Helper()
	registry := prometheus.NewRegistry()
	c := newCertificates(nil, slog.New(slog.DiscardHandler), registry)
	r, err := c.read("endpoint a", f.files())
	if err != nil {
		t.Fatal(err)
	}
	return c, c.take(r), registry
}

// shake makes a session on loopback, because both sides may write at the same time; the errors are of the client and the server.
func shake(t *testing.T, client, server *tls.Config) (errClient, errServer error) {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = listener.Close() }()
	ended := make(chan error, 1)
	go func() {
		far, err := listener.Accept()
		if err != nil {
			ended <- err
			return
		}
		defer func() { _ = far.Close() }()
		_ = far.SetDeadline(time.Now().Add(patience))
		over := tls.Server(far, server)
		if err = over.Handshake(); err == nil { // with TLS 1.3 a client's refusal comes after it
			if _, err = over.Read(make([]byte, 1)); errors.Is(err, io.EOF) {
				err = nil
			}
		}
		ended <- err
	}()
	near, err := net.Dial("tcp", listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	_ = near.SetDeadline(time.Now().Add(patience))
	over := tls.Client(near, client)
	if errClient = over.Handshake(); errClient == nil {
		_ = over.CloseWrite()
		_, _ = io.Copy(io.Discard, over)
	}
	_ = near.Close()
	return errClient, <-ended
}

func TestALinkVerifiesTheProcessor(t *testing.T) {
	ours, theirs, stranger := newAuthority(t, "ours"), newAuthority(t, "theirs"), newAuthority(t, "stranger")
	f := newFolder(t)
	f.fill(ours, "acquirer", year, theirs)
	_, p, _ := newTestCertificates(t, f)
	server := func(shown tls.Certificate, change func(*tls.Config)) *tls.Config {
		cfg := &tls.Config{MinVersion: tls.VersionTLS10, Certificates: []tls.Certificate{shown}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: ours.pool()}
		if change != nil {
			change(cfg)
		}
		return cfg
	}
	clientOnlyKey, clientOnly := theirs.sign(&x509.Certificate{DNSNames: []string{"processor"}, NotAfter: time.Now().Add(year),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
	for _, c := range []struct {
		name, serverName, host string // host is what conn puts in, where there is no serverName
		minVersion             string
		server                 *tls.Config
		want                   string // of the client's error
	}{
		{"the host's name", "", "processor", "1.2", server(theirs.shown("processor"), nil), ""},
		{"the configured name", "processor", "processor", "1.2", server(theirs.shown("processor"), nil), ""},
		{"another name", "", "processor", "1.2", server(theirs.shown("other"), nil), "valid for other, not processor"},
		{"the host's address", "", "127.0.0.1", "1.2", server(theirs.shown("127.0.0.1"), nil), ""},
		{"the address of no host", "", "127.0.0.1", "1.2", server(theirs.shown("127.0.0.9"), nil), "valid for 127.0.0.9, not 127.0.0.2"},
		{"an unknown authority", "", "processor", "1.2", server(stranger.shown("processor"), nil), "unknown authority"},
		{"a certificate for clients", "", "processor", "1.2", server(tls.Certificate{Certificate: [][]byte{clientOnly.Raw}, PrivateKey: clientOnlyKey}, nil), "incompatible key usage"},
		{"TLS 1.1", "", "processor", "1.2", server(theirs.shown("processor"), func(c *tls.Config) { c.MaxVersion = tls.VersionTLS11 }), "protocol version"},
		{"TLS 1.2 where 1.3 is the least", "", "processor", "1.3", server(theirs.shown("processor"), func(c *tls.Config) { c.MaxVersion = tls.VersionTLS12 }), "protocol version"},
		{"a processor that does not know us", "", "processor", "1.2", server(theirs.shown("processor"), func(c *tls.Config) { c.ClientCAs = stranger.pool(); c.MaxVersion = tls.VersionTLS12 }), "unknown certificate authority"},
	} {
		t.Run(c.name, func(t *testing.T) {
			client := p.dialling(&LinkTLS{ServerName: c.serverName, MinVersion: c.minVersion}, []string{"127.0.0.1:1", "127.0.0.2:1", "processor:1"})
			if client.ServerName == "" {
				client.ServerName = c.host
			}
			errClient, errServer := shake(t, client, c.server)
			if c.want == "" && (errClient != nil || errServer != nil) || c.want != "" && (errClient == nil || !strings.Contains(errClient.Error(), c.want)) {
				t.Errorf("got %v and %v, want %q", errClient, errServer, c.want)
			}
		})
	}
}

func TestALinkThatListensVerifiesTheProcessor(t *testing.T) {
	ours, theirs, stranger := newAuthority(t, "ours"), newAuthority(t, "theirs"), newAuthority(t, "stranger")
	f := newFolder(t)
	f.fill(ours, "acquirer", year, theirs)
	_, p, _ := newTestCertificates(t, f)
	client := func(shown ...tls.Certificate) *tls.Config {
		return &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: ours.pool(), ServerName: "acquirer",
			GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { // also one that the server will not like
				return &append(shown, tls.Certificate{})[0], nil
			}}
	}
	for _, c := range []struct {
		name, serverName string
		client           *tls.Config
		want             string // of the server's error
	}{
		{"any of the authority", "", client(theirs.shown("processor")), ""},
		{"the configured name", "processor", client(theirs.shown("processor")), ""},
		{"another name", "processor", client(theirs.shown("other")), "valid for other, not processor"},
		{"no certificate", "", client(), "didn't provide a certificate"},
		{"an unknown authority", "", client(stranger.shown("processor")), "unknown authority"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, errServer := shake(t, c.client, p.listening(&LinkTLS{ServerName: c.serverName, MinVersion: "1.2"}))
			if c.want == "" && errServer != nil || c.want != "" && (errServer == nil || !strings.Contains(errServer.Error(), c.want)) {
				t.Errorf("got %v, want %q", errServer, c.want)
			}
		})
	}
}

// metric returns the value of a gauge or counter by its labels, -1 if there is none.
func metric(t *testing.T, registry *prometheus.Registry, name string, labels ...string) float64 {
	t.Helper()
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, family := range families {
		for _, m := range family.GetMetric() {
			var values []string
			for _, pair := range m.GetLabel() {
				values = append(values, pair.GetValue())
			}
			if family.GetName() == name && fmt.Sprint(values) == fmt.Sprint(labels) {
				return m.GetGauge().GetValue() + m.GetCounter().GetValue()
			}
		}
	}
	return -1
}

// New files are taken for the next handshake, by configurations that were made before; bad ones change nothing.
func TestCertificateFilesAreReadAgain(t *testing.T) {
	first, second, theirs := newAuthority(t, "first"), newAuthority(t, "second"), newAuthority(t, "theirs")
	f := newFolder(t)
	f.fill(first, "acquirer", year, theirs)
	c, p, registry := newTestCertificates(t, f)
	client, server := p.dialling(&LinkTLS{ServerName: "processor", MinVersion: "1.2"}, nil), p.serving(tls.VersionTLS12)
	trusts := func(by, of *authority) error {
		t.Helper()
		_, err := shake(t, client, &tls.Config{MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{of.shown("processor")},
			ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: by.pool()})
		_, errServing := shake(t, &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: by.pool(), ServerName: "acquirer", Certificates: []tls.Certificate{of.shown("processor")}}, server)
		return errors.Join(err, errServing)
	}
	if err := trusts(first, theirs); err != nil {
		t.Fatal(err)
	}
	const ends, reads = "acquirerd_certificate_not_after_timestamp_seconds", "acquirerd_certificate_reads_total"
	before := metric(t, registry, ends, kindOwn, "endpoint a")

	c.look()
	if got := metric(t, registry, reads, "endpoint a", readTaken); got != 0 {
		t.Errorf("files that have not changed were read %v times", got)
	}
	f.text("ours.key", "broken")
	for range 2 { // the second time nothing has changed
		c.look()
	}
	if got := metric(t, registry, reads, "endpoint a", readFailed); got != 1 {
		t.Errorf("%v readings have failed, want 1", got)
	}
	if err := trusts(first, theirs); err != nil {
		t.Errorf("a bad file does harm: %v", err)
	}
	f.fill(second, "acquirer", 2*year, second)
	c.look()
	if err := trusts(second, second); err != nil {
		t.Errorf("new files are not taken: %v", err)
	}
	if err := trusts(second, theirs); err == nil {
		t.Error("the old authority is trusted still")
	}
	if got := metric(t, registry, reads, "endpoint a", readTaken); got != 1 {
		t.Errorf("%v readings were taken, want 1", got)
	}
	if after := metric(t, registry, ends, kindOwn, "endpoint a"); after-before < 364*24*3600 {
		t.Errorf("the certificate's end went from %v to %v", before, after)
	}
	c.retain(&Config{})
	if got := metric(t, registry, ends, kindOwn, "endpoint a"); got != -1 {
		t.Errorf("a party that is not there any more has an end: %v", got)
	}
}

// A token gives one key for TLS.
type token struct {
	label string
	key   crypto.Signer
}

func (k token) Signer(label string) (crypto.Signer, error) {
	if label != k.label {
		return nil, fmt.Errorf("no key pair %q", label)
	}
	return k.key, nil
}

func TestAKeyInTheToken(t *testing.T) {
	a := newAuthority(t, "authority")
	f := newFolder(t)
	f.fill(a, "acquirer", year, a)
	key, err := readKey(f.file("ours.key"))
	if err != nil {
		t.Fatal(err)
	}
	otherKey, _ := a.issue("other", year)
	files := f.files()
	files.keyFile, files.keyLabel = "", "tls-1"
	if wrong := files.faults(); len(wrong) > 0 {
		t.Errorf("without the token: got %v", wrong)
	}
	for _, c := range []struct {
		name string
		keys keyring
		want string
	}{
		{"the right one", token{"tls-1", key}, ""},
		{"another one", token{"tls-1", otherKey}, "key_label: is not the key of the certificate in cert_file"},
		{"none of the label", token{"tls-2", key}, `key_label: no key pair "tls-1"`},
	} {
		t.Run(c.name, func(t *testing.T) {
			certificates := newCertificates(c.keys, slog.New(slog.DiscardHandler), prometheus.NewRegistry())
			r, err := certificates.read("endpoint a", files)
			if c.want != "" {
				if err == nil || err.Error() != c.want {
					t.Errorf("got %v, want %s", err, c.want)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			server := &tls.Config{MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{a.shown("processor")},
				ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: a.pool()}
			if errClient, errServer := shake(t, certificates.take(r).dialling(&LinkTLS{ServerName: "processor", MinVersion: "1.2"}, nil), server); errClient != nil || errServer != nil {
				t.Errorf("got %v and %v", errClient, errServer)
			}
		})
	}
}
