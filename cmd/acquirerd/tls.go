package main

import (
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"os"
	"slices"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// A party is our side of the TLS sessions of one endpoint or upstream: the certificate that it shows and the authorities that it
// trusts. Both come from files that are read again while the sessions go on: a handshake takes what is there at that moment, and no
// session that is up is touched. Files that are no good are logged and counted, and what was read before stays in use.
type party struct {
	name    string // "endpoint processor-a": in logs and metrics
	current atomic.Pointer[material]

	files tlsFiles // owned by the keeper, as is what follows
	seen  []stamp  // of the files, when they were read or found to be no good
}

// A material is what the files of a party held at one moment. It is not changed.
type material struct {
	certificate *tls.Certificate // nil: none is shown
	authorities *x509.CertPool
	spans       map[string][]span // by kind
}

// A span is the time for which a certificate is valid.
type span struct{ from, to time.Time }

func spanOf(c *x509.Certificate) span { return span{c.NotBefore, c.NotAfter} }

// covers is an error if the certificate is not valid at a time.
func (s span) covers(now time.Time) error {
	switch {
	case now.After(s.to):
		return fmt.Errorf("expired on %s", s.to.UTC().Format(time.RFC3339))
	case now.Before(s.from):
		return fmt.Errorf("is not valid before %s", s.from.UTC().Format(time.RFC3339))
	}
	return nil
}

// span is when the certificates of a kind are good: of those that are valid now, that of the first to end; without one, that of the last.
// An authority that has ended does no harm beside others: it verifies nothing.
func (m *material) span(kind string, now time.Time) (best span, has bool) {
	for _, s := range m.spans[kind] {
		valid, better := s.covers(now) == nil, best.covers(now) != nil
		switch {
		case !has, valid && better, valid && s.to.Before(best.to), !valid && better && s.to.After(best.to):
			best, has = s, true
		}
	}
	return best, has
}

// The kinds of acquirerd_certificate_not_after_timestamp_seconds.
const (
	kindOwn       = "own"
	kindAuthority = "authority"
)

var certificateKinds = []string{kindOwn, kindAuthority}

// tlsFiles are the files of a party, under the names of their keys in the config.
type tlsFiles struct {
	certFile, keyFile, keyLabel, caFile string
	isDoor                              bool
}

func (t *DoorTLS) files() tlsFiles {
	return tlsFiles{certFile: t.CertFile, keyFile: t.KeyFile, keyLabel: t.KeyLabel, caFile: t.ClientCAFile, isDoor: true}
}

func (t *LinkTLS) files() tlsFiles {
	return tlsFiles{certFile: t.CertFile, keyFile: t.KeyFile, keyLabel: t.KeyLabel, caFile: t.CAFile}
}

func (t tlsFiles) caKey() string {
	if t.isDoor {
		return "client_ca_file"
	}
	return "ca_file"
}

// keyOf is the config's key of the file with the certificates of a kind.
func (t tlsFiles) keyOf(kind string) string {
	if kind == kindOwn {
		return "cert_file"
	}
	return t.caKey()
}

// tlsVersions are the versions that may be the least. What is older is not spoken (PCI DSS 4.0.1, 4.2.1: strong cryptography).
var tlsVersions = map[string]uint16{"1.2": tls.VersionTLS12, "1.3": tls.VersionTLS13}

// A keyring finds the private key of a key pair in the token: *hsm.HSM. The key that it returns signs in the token, also after the
// token was away.
type keyring interface {
	Signer(label string) (crypto.Signer, error)
}

// mostPEM bounds a file of certificates or a key, in bytes. The authorities of a whole system have a quarter of it.
const mostPEM = 1 << 20

// soonExpired is how long before its end a certificate is warned of: the time that a processor's change procedure takes.
const soonExpired = 30 * 24 * time.Hour

// faults are what is wrong with the files, each with the key of its file. A key in the token is not looked at.
func (t tlsFiles) faults() []fault {
	_, faults := t.read(nil)
	return faults
}

// read reads the files. A key in the token comes from keys; without them it is left out.
//
// That a certificate is not valid at this time is no fault: each handshake judges that by itself. If it were one, a daemon that a crash has
// ended would not start again because of one link, and what is owed to every other processor would not be paid. See untimely.
func (t tlsFiles) read(keys keyring) (*material, []fault) {
	m := &material{authorities: x509.NewCertPool(), spans: map[string][]span{}} // without a pool, those of the system would be trusted
	var faults []fault
	wrong := func(key string, err error) { faults = append(faults, fault{key, oneLine(err)}) }
	if t.certFile != "" {
		chain, err := readCertificates(t.certFile)
		if err != nil {
			wrong("cert_file", err)
		} else {
			m.spans[kindOwn] = []span{spanOf(chain[0])}
			m.certificate = &tls.Certificate{Leaf: chain[0]}
			for _, c := range chain {
				m.certificate.Certificate = append(m.certificate.Certificate, c.Raw)
			}
		}
	}
	if key, named, err := t.key(keys); err != nil {
		wrong(named, err)
	} else if key != nil && m.certificate != nil {
		if public, comparable := key.Public().(interface{ Equal(crypto.PublicKey) bool }); !comparable || !public.Equal(m.certificate.Leaf.PublicKey) {
			wrong(named, errors.New("is not the key of the certificate in cert_file"))
		}
		m.certificate.PrivateKey = key
	}
	if t.caFile != "" {
		authorities, err := readCertificates(t.caFile)
		if err != nil {
			wrong(t.caKey(), err)
		}
		for _, authority := range authorities {
			m.authorities.AddCert(authority)
			m.spans[kindAuthority] = append(m.spans[kindAuthority], spanOf(authority))
		}
	}
	return m, faults
}

// key returns the private key and the name of the config's key that says where it is; nil if there is none, or it is not to be had here.
func (t tlsFiles) key(keys keyring) (key crypto.Signer, named string, err error) {
	switch {
	case t.keyFile != "":
		key, err = readKey(t.keyFile)
		return key, "key_file", err
	case t.keyLabel != "" && keys != nil:
		key, err = keys.Signer(t.keyLabel)
		return key, "key_label", err
	}
	return nil, "", nil
}

// untimely are the certificates that are not valid at a time, each with the key of its file: until others are there, no connection can be
// opened with them, and those that are open go on.
func (t tlsFiles) untimely(m *material, now time.Time) []fault {
	var list []fault
	for _, kind := range certificateKinds {
		if s, has := m.span(kind, now); has && s.covers(now) != nil {
			list = append(list, fault{t.keyOf(kind), s.covers(now).Error()})
		}
	}
	return list
}

// readCertificates reads the certificates of a PEM file, at least one.
func readCertificates(path string) ([]*x509.Certificate, error) {
	blocks, err := readPEM(path)
	if err != nil {
		return nil, err
	}
	var list []*x509.Certificate
	for _, block := range blocks {
		if block.Type != "CERTIFICATE" {
			continue // a key may stand beside its certificate
		}
		certificate, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("%s has a certificate that cannot be read: %w", path, err)
		}
		list = append(list, certificate)
	}
	if len(list) == 0 {
		return nil, fmt.Errorf("%s has no certificate in PEM form", path)
	}
	return list, nil
}

// readKey reads the private key of a PEM file: PKCS #8, or the older forms of RSA and EC keys.
func readKey(path string) (crypto.Signer, error) {
	blocks, err := readPEM(path)
	if err != nil {
		return nil, err
	}
	defer func() {
		for _, block := range blocks {
			clear(block.Bytes)
		}
	}()
	for _, block := range blocks {
		var key any
		switch block.Type {
		case "PRIVATE KEY":
			key, err = x509.ParsePKCS8PrivateKey(block.Bytes)
		case "RSA PRIVATE KEY":
			key, err = x509.ParsePKCS1PrivateKey(block.Bytes)
		case "EC PRIVATE KEY":
			key, err = x509.ParseECPrivateKey(block.Bytes)
		default:
			continue
		}
		signer, can := key.(crypto.Signer)
		if err != nil || !can { // its text could quote the key
			return nil, fmt.Errorf("%s has a private key that cannot be read", path)
		}
		return signer, nil
	}
	return nil, fmt.Errorf("%s has no private key in PEM form that is not encrypted", path)
}

func readPEM(path string) ([]*pem.Block, error) {
	if info, err := os.Stat(path); err == nil && !info.Mode().IsRegular() { // a pipe could be waited for without end, and read only once
		return nil, fmt.Errorf("%s is not a regular file", path)
	}
	text, err := readFile(path, mostPEM)
	if err != nil {
		return nil, err
	}
	defer clear(text)
	var blocks []*pem.Block
	for {
		var block *pem.Block
		if block, text = pem.Decode(text); block == nil {
			return blocks, nil
		}
		blocks = append(blocks, block)
	}
}

// dialling is the configuration of a link that dials hosts. The library's own check has authorities that never change; so it is left
// out, and verify does the same with those of now. Nothing is resumed: each session is verified whole.
func (p *party) dialling(t *LinkTLS, hosts []string) *tls.Config {
	var addresses []string // of the hosts that are no names: the library does not tell which one was dialled
	for _, address := range hosts {
		if host, _, err := net.SplitHostPort(address); err == nil && net.ParseIP(host) != nil {
			addresses = append(addresses, host)
		}
	}
	return &tls.Config{MinVersion: tlsVersions[t.MinVersion], ServerName: t.ServerName,
		InsecureSkipVerify: true, //nolint:gosec // VerifyConnection verifies
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			if shown := p.current.Load().certificate; shown != nil {
				return shown, nil
			}
			return &tls.Certificate{}, nil // none, which the processor may accept
		},
		VerifyConnection: func(state tls.ConnectionState) error {
			names := addresses
			if t.ServerName != "" {
				names = []string{t.ServerName}
			} else if state.ServerName != "" {
				names = []string{state.ServerName}
			}
			return p.verify(state, names)
		}}
}

// verify checks the certificate of a server: by whom it was issued, for what, until when, and that it carries one of the names.
func (p *party) verify(state tls.ConnectionState, names []string) error {
	options := x509.VerifyOptions{Roots: p.current.Load().authorities, Intermediates: x509.NewCertPool(),
		KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}
	for _, between := range state.PeerCertificates[1:] {
		options.Intermediates.AddCert(between)
	}
	shown := state.PeerCertificates[0] // a server without one does not come to here
	if _, err := shown.Verify(options); err != nil {
		return err
	}
	return carries(shown, names)
}

// carries is an error if a certificate has none of the names.
func carries(shown *x509.Certificate, names []string) error {
	err := errors.New("there is no name to check the certificate for")
	for _, name := range names {
		if err = shown.VerifyHostname(name); err == nil {
			return nil
		}
	}
	return err
}

// listening is the configuration of a link that listens: the processor must show a certificate, with the name if there is one.
func (p *party) listening(t *LinkTLS) *tls.Config {
	config := p.serving(tlsVersions[t.MinVersion])
	if t.ServerName != "" {
		config.VerifyConnection = func(state tls.ConnectionState) error {
			return carries(state.PeerCertificates[0], []string{t.ServerName})
		}
	}
	return config
}

// serving is the configuration of a server, which demands a certificate of its client. Nothing is resumed: each session is verified
// whole, against the authorities of now.
func (p *party) serving(minVersion uint16) *tls.Config {
	config := &tls.Config{MinVersion: minVersion, ClientAuth: tls.RequireAndVerifyClientCert, SessionTicketsDisabled: true,
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return p.current.Load().certificate, nil }}
	config.ClientCAs = p.current.Load().authorities
	config.GetConfigForClient = func(*tls.ClientHelloInfo) (*tls.Config, error) {
		now := config.Clone()
		now.GetConfigForClient, now.ClientCAs = nil, p.current.Load().authorities
		return now, nil
	}
	return config
}

// certificates keep the parties' files: they look at them again and tell when they end. They are owned by one goroutine.
type certificates struct {
	keys    keyring
	log     *slog.Logger
	parties map[string]*party // by name

	ends  *prometheus.GaugeVec
	reads *prometheus.CounterVec
}

func newCertificates(keys keyring, log *slog.Logger, registry prometheus.Registerer) *certificates {
	c := &certificates{keys: keys, log: log, parties: map[string]*party{},
		ends: prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "acquirerd_certificate_not_after_timestamp_seconds",
			Help: "When the certificate that is shown, or the first authority that is trusted, ends, in seconds since 1970."}, []string{"name", "kind"}),
		reads: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "acquirerd_certificate_reads_total",
			Help: "Readings of changed certificate files; after one that failed, what was read before stays in use."}, []string{"name", "result"})}
	registry.MustRegister(c.ends, c.reads)
	return c
}

// The results of acquirerd_certificate_reads_total.
const (
	readTaken  = "taken"
	readFailed = "failed"
)

// A reading is what the files of a party would be, before it is taken.
type reading struct {
	name  string
	files tlsFiles
	seen  []stamp
	*material
}

// read reads files for a party of a name, and changes nothing. Its error is a *configError. What is not valid now may be what there is at a
// start; it does not take the place of what is.
func (c *certificates) read(name string, files tlsFiles) (reading, error) {
	r := reading{name: name, files: files, seen: files.stamps()} // before the files: what changes meanwhile is read again
	var faults []fault
	if r.material, faults = files.read(c.keys); len(faults) > 0 {
		return r, &configError{faults}
	}
	if p, now := c.parties[name], time.Now(); p != nil {
		before := files.untimely(p.current.Load(), now)
		for _, f := range files.untimely(r.material, now) {
			if !slices.ContainsFunc(before, func(b fault) bool { return b.path == f.path }) {
				faults = append(faults, fault{f.path, f.text + ", and what is in use is valid"})
			}
		}
	}
	if len(faults) > 0 {
		return r, &configError{faults}
	}
	return r, nil
}

// take puts a reading into use, and returns its party.
func (c *certificates) take(r reading) *party {
	p := c.parties[r.name]
	if p == nil {
		p = &party{name: r.name}
		c.parties[r.name] = p
		c.reads.WithLabelValues(r.name, readTaken)
		c.reads.WithLabelValues(r.name, readFailed)
	}
	p.files, p.seen = r.files, r.seen
	p.current.Store(r.material)
	for _, kind := range certificateKinds {
		s, has := r.span(kind, time.Now())
		if !has {
			c.ends.DeleteLabelValues(r.name, kind)
			continue
		}
		c.ends.WithLabelValues(r.name, kind).Set(float64(s.to.Unix()))
	}
	return p
}

// readAll reads the files of a config, and changes nothing. Its error names each fault by its path.
func (c *certificates) readAll(cfg *Config) ([]reading, error) {
	var list []reading
	var wrong []fault
	for _, use := range cfg.tlsUses() {
		r, err := c.read(use.party, use.files)
		var faulty *configError
		if errors.As(err, &faulty) {
			for _, f := range faulty.faults {
				wrong = append(wrong, fault{join(use.path, f.path), f.text})
			}
		}
		list = append(list, r)
	}
	if len(wrong) > 0 {
		return nil, &configError{wrong}
	}
	return list, nil
}

// retain forgets the parties that a config does not have.
func (c *certificates) retain(cfg *Config) {
	uses := cfg.tlsUses()
	for name := range c.parties {
		if slices.ContainsFunc(uses, func(u tlsUse) bool { return u.party == name }) {
			continue
		}
		delete(c.parties, name)
		for _, kind := range certificateKinds {
			c.ends.DeleteLabelValues(name, kind)
		}
		for _, result := range []string{readTaken, readFailed} {
			c.reads.DeleteLabelValues(name, result)
		}
	}
}

// look reads the files that have changed since they were read.
func (c *certificates) look() {
	for _, p := range c.parties {
		stamps := p.files.stamps()
		if slices.Equal(stamps, p.seen) {
			continue
		}
		r, err := c.read(p.name, p.files)
		if err != nil {
			if p.files.keyLabel == "" { // else the token may be better in a minute
				p.seen = r.seen // not again until they change again
			}
			c.reads.WithLabelValues(p.name, readFailed).Inc()
			c.log.Error("certificate files are not taken: those that were read before stay in use", "name", p.name, "error", oneLine(err))
			continue
		}
		c.take(r)
		c.reads.WithLabelValues(p.name, readTaken).Inc()
		c.log.Info("certificate files are read again", "name", p.name)
		for _, kind := range certificateKinds {
			if s, has := r.span(kind, time.Now()); has && time.Until(s.to) < soonExpired {
				c.log.Warn("certificate expires soon", "name", p.name, "kind", kind, "not_after", s.to.UTC().Format(time.RFC3339))
			}
		}
	}
}

// remind logs the certificates in use that are not valid.
func (c *certificates) remind() {
	for _, name := range slices.Sorted(maps.Keys(c.parties)) {
		p := c.parties[name]
		for _, f := range p.files.untimely(p.current.Load(), time.Now()) {
			c.log.Warn("certificate is not valid: no connection can be opened with it", "name", name, "key", f.path, "problem", f.text)
		}
	}
}

// A stamp tells whether a file has changed. That of a file that is not there is zero.
type stamp struct {
	changed time.Time
	size    int64
	file    uint64 // its inode: a link may lead to another file
}

func (t tlsFiles) stamps() []stamp {
	var list []stamp
	for _, path := range []string{t.certFile, t.keyFile, t.caFile} {
		var s stamp
		if info, err := os.Stat(path); path != "" && err == nil {
			s = stamp{changed: info.ModTime(), size: info.Size()}
			if about, known := info.Sys().(*syscall.Stat_t); known {
				s.file = about.Ino
			}
		}
		list = append(list, s)
	}
	return list
}
