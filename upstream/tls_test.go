package upstream_test

import (
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"hash"
	"io"
	"math/big"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"acquirerd/acquirer"
	"acquirerd/messages"
	"acquirerd/upstream"
)

// An authority signs certificates for one test. They are valid also in a bubble, where it is the year 2000.
type authority struct {
	certificate *x509.Certificate
	key         *ecdsa.PrivateKey
}

func newAuthority(t *testing.T) authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test CA"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Date(1999, 1, 1, 0, 0, 0, 0, time.UTC), NotAfter: time.Date(2099, 1, 1, 0, 0, 0, 0, time.UTC), KeyUsage: x509.KeyUsageCertSign}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	certificate, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return authority{certificate, key}
}

func (a authority) pool() *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AddCert(a.certificate)
	return pool
}

func (a authority) issue(t *testing.T, change func(*x509.Certificate)) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(987654321), NotBefore: a.certificate.NotBefore, NotAfter: a.certificate.NotAfter,
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}
	change(template)
	der, err := x509.CreateCertificate(rand.Reader, template, a.certificate, key.Public(), a.key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// door is as careless a configuration as a door may be given.
func (a authority) door(t *testing.T) *tls.Config {
	t.Helper()
	certificate := a.issue(t, func(c *x509.Certificate) {
		c.DNSNames, c.ExtKeyUsage = []string{"door.test"}, []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	})
	return &tls.Config{Certificates: []tls.Certificate{certificate}, ClientCAs: a.pool(), MinVersion: tls.VersionTLS10, ClientAuth: tls.NoClientCert}
}

// client is a configuration that shows a certificate whether or not the door wants one of its CA.
func (a authority) client(t *testing.T, change func(*x509.Certificate)) *tls.Config {
	t.Helper()
	certificate := a.issue(t, change)
	return &tls.Config{RootCAs: a.pool(), ServerName: "door.test",
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &certificate, nil }}
}

func named(names ...string) func(*x509.Certificate) {
	return func(c *x509.Certificate) { c.DNSNames = names }
}

// openTCP opens a door on loopback, outside of a bubble.
func openTCP(t *testing.T, change func(*upstream.Config)) *hall {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return openAt(t, listener, func(ctx context.Context) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "tcp", listener.Addr().String())
	}, change)
}

// secure connects with TLS.
func (h *hall) secure(cfg *tls.Config) *caller {
	h.t.Helper()
	return h.caller(tls.Client(h.connect().Conn, cfg))
}

func TestTheClientsCertificateNamesTheUpstream(t *testing.T) {
	ca, other := newAuthority(t), newAuthority(t)
	peers := []string{"pos.example", "pos-2.example"}
	for name, test := range map[string]struct {
		certificate func(*x509.Certificate)
		reason      string // "": it is served
		logged      string
	}{
		"a DNS name":              {named("x.example", "pos-2.example"), "", ""},
		"in capitals":             {named("POS.Example"), "", ""},
		"a subject, nothing else": {func(c *x509.Certificate) { c.Subject.CommonName = "pos.example" }, "", ""},
		"another name":            {named("hidden.example"), "peer", "reason=peer"},
		"no name":                 {func(*x509.Certificate) {}, "peer", "reason=peer"},
		"a part of a name":        {named("pos.example.org", "example"), "peer", "reason=peer"},
		"a wildcard":              {named("*.example"), "peer", "reason=peer"},
		"a subject, and another DNS name": {func(c *x509.Certificate) {
			c.Subject.CommonName, c.DNSNames = "pos.example", []string{"hidden.example"}
		}, "peer", "subject=\"CN=pos.example\""},
		"a subject, and a name of another kind": {func(c *x509.Certificate) {
			c.Subject.CommonName, c.IPAddresses = "pos.example", []net.IP{net.IPv4(127, 0, 0, 1)}
		}, "peer", "subject=\"CN=pos.example\""},
		"expired": {func(c *x509.Certificate) {
			c.DNSNames, c.NotAfter = []string{"pos.example"}, time.Date(2001, 1, 1, 0, 0, 0, 0, time.UTC)
		}, "tls", "certificate expired or not valid yet"},
		"for servers": {func(c *x509.Certificate) {
			c.DNSNames, c.ExtKeyUsage = []string{"pos.example"}, []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
		}, "tls", "certificate not for clients"},
	} {
		for version, is := range map[string]uint16{"TLS 1.2": tls.VersionTLS12, "TLS 1.3": tls.VersionTLS13} {
			t.Run(name+", "+version, func(t *testing.T) {
				h := openTCP(t, func(cfg *upstream.Config) { cfg.TLS, cfg.Peers = ca.door(t), peers })
				client := ca.client(t, test.certificate)
				client.MaxVersion = is
				h.knock(client, test.reason, test.logged)
				if log := h.log.String(); strings.Contains(log, "hidden") || strings.Contains(log, "987654321") {
					t.Errorf("the log quotes the certificate: %s", log)
				}
			})
		}
	}

	t.Run("of another CA", func(t *testing.T) {
		h := openTCP(t, func(cfg *upstream.Config) { cfg.TLS, cfg.Peers = ca.door(t), peers })
		client := other.client(t, named("pos.example"))
		client.RootCAs = ca.pool()
		h.knock(client, "tls", "certificate of an unknown authority")
	})
	t.Run("none", func(t *testing.T) {
		h := openTCP(t, func(cfg *upstream.Config) { cfg.TLS, cfg.Peers = ca.door(t), peers })
		h.knock(&tls.Config{RootCAs: ca.pool(), ServerName: "door.test"}, "tls", "no certificate")
	})
	t.Run("TLS 1.1", func(t *testing.T) {
		h := openTCP(t, func(cfg *upstream.Config) { cfg.TLS, cfg.Peers = ca.door(t), peers })
		client := ca.client(t, named("pos.example"))
		client.MinVersion, client.MaxVersion = tls.VersionTLS10, tls.VersionTLS11
		h.knock(client, "tls", "TLS version")
	})
	t.Run("without peers, the upstream's name", func(t *testing.T) {
		h := openTCP(t, func(cfg *upstream.Config) { cfg.TLS = ca.door(t) })
		h.knock(ca.client(t, named("pos")), "", "")
		h = openTCP(t, func(cfg *upstream.Config) { cfg.TLS = ca.door(t) })
		h.knock(ca.client(t, named("pos.example")), "peer", "")
	})
	t.Run("no TLS at all", func(t *testing.T) {
		h := openTCP(t, func(cfg *upstream.Config) { cfg.TLS = ca.door(t) })
		c := h.connect()
		c.send(request(1))
		if rest, err := io.ReadAll(c); err == nil && len(rest) > 7 { // an alert
			t.Errorf("got %x", rest)
		}
		_ = c.Close()
		h.finish("tls", "not TLS", 0)
	})
}

// knock comes to a door with TLS, and checks that a request is served, or that it is not and why.
func (h *hall) knock(client *tls.Config, reason, logged string) {
	h.t.Helper()
	raw := h.connect()
	defer raw.Close()
	_ = raw.SetDeadline(time.Now().Add(10 * time.Second)) // far more than it takes; what is served where it must not be would wait for ever
	c := h.caller(tls.Client(raw.Conn, client))
	if reason == "" {
		if !c.served(1) {
			h.t.Error("not served")
		}
		_ = raw.Close()
		h.finish("", "", 1)
		return
	}
	// With TLS 1.3 the client learns of it with its first read.
	frame, _ := h.codec.EncodeFrame(request(1))
	_, err := c.Write(frame)
	if err == nil {
		_, err = c.reader.ReadByte()
	}
	var operation *net.OpError
	if !errors.As(err, &operation) || operation.Op != "remote error" {
		h.t.Errorf("got %v, want an alert", err)
	}
	_, _ = io.Copy(io.Discard, raw) // the end of the connection comes after it is counted
	_ = raw.Close()
	h.finish(reason, logged, 0)
}

// finish closes the door and checks what it has counted and logged.
func (h *hall) finish(reason, logged string, requests int) {
	h.t.Helper()
	if err := h.close(); err != nil {
		h.t.Error(err)
	}
	for _, r := range []string{"too_many", "address", "tls", "peer"} {
		want := 0.0
		if r == reason {
			want = 1
		}
		if got := h.refused(r); got != want {
			h.t.Errorf("%v connections refused for %s, want %v", got, r, want)
		}
	}
	if !strings.Contains(h.log.String(), logged) {
		h.t.Errorf("the log does not say %q: %s", logged, h.log)
	}
	if len(h.desk.keys) != requests {
		h.t.Errorf("%d requests went to the switch, want %d", len(h.desk.keys), requests)
	}
}

// What GetConfigForClient chooses is held to the same.
func TestAConfigurationForAClientLeavesNothingOut(t *testing.T) {
	ca, other := newAuthority(t), newAuthority(t)
	choosing := func(chosen *tls.Config) func(*upstream.Config) {
		return func(cfg *upstream.Config) {
			cfg.TLS = ca.door(t)
			cfg.TLS.GetConfigForClient = func(*tls.ClientHelloInfo) (*tls.Config, error) { return chosen, nil }
		}
	}
	none := ca.door(t)
	none.ClientCAs = nil
	anonymous := &tls.Config{RootCAs: ca.pool(), ServerName: "door.test"}
	openTCP(t, choosing(ca.door(t))).knock(ca.client(t, named("pos")), "", "")
	openTCP(t, choosing(nil)).knock(ca.client(t, named("pos")), "", "")
	openTCP(t, choosing(ca.door(t))).knock(anonymous, "tls", "no certificate")
	openTCP(t, choosing(ca.door(t))).knock(ca.client(t, named("other")), "peer", "")
	openTCP(t, choosing(none)).knock(ca.client(t, named("pos")), "tls", "no CA for client certificates")
	doubtful := ca.door(t)
	doubtful.VerifyConnection = func(tls.ConnectionState) error { return errors.New("not on a Sunday") }
	openTCP(t, func(cfg *upstream.Config) { cfg.TLS = doubtful }).knock(ca.client(t, named("pos")), "tls", "handshake failed")
	openTCP(t, choosing(doubtful)).knock(ca.client(t, named("pos")), "tls", "handshake failed")
	strange := other.client(t, named("pos"))
	strange.RootCAs = ca.pool()
	openTCP(t, choosing(nil)).knock(strange, "tls", "unknown authority")
}

func TestSessionsAreNotResumed(t *testing.T) {
	ca := newAuthority(t)
	for version, is := range map[string]uint16{"TLS 1.2": tls.VersionTLS12, "TLS 1.3": tls.VersionTLS13} {
		t.Run(version, func(t *testing.T) {
			h := openTCP(t, func(cfg *upstream.Config) { cfg.TLS = ca.door(t) })
			client := ca.client(t, named("pos"))
			client.MaxVersion, client.ClientSessionCache = is, tls.NewLRUClientSessionCache(4)
			for stan := range 2 {
				c := h.secure(client)
				if !c.served(stan) || c.Conn.(*tls.Conn).ConnectionState().DidResume {
					t.Error("not served, or a resumed session")
				}
				_ = c.Close()
			}
			h.finish("", "", 2)
		})
	}
}

// A tap keeps what is read of a connection.
type tap struct {
	net.Conn
	read []byte
}

func (c *tap) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	c.read = append(c.read, p[:n]...)
	return n, err
}

// An upstream that has closed its side is still answered, and sees the end announced: without the alert, an end could be a stranger's doing.
func TestAHalfCloseWithTLS(t *testing.T) {
	ca := newAuthority(t)
	h := openTCP(t, func(cfg *upstream.Config) { cfg.TLS = ca.door(t) })
	begun, release := make(chan struct{}, 3), make(chan struct{})
	h.desk.authorize = func(ctx context.Context, req acquirer.Request) (acquirer.Result, error) {
		begun <- struct{}{}
		<-release
		return approve(ctx, req)
	}
	client := ca.client(t, named("pos"))
	client.MaxVersion = tls.VersionTLS12 // which shows the types of its records
	records := &tap{Conn: h.connect().Conn}
	c := h.caller(tls.Client(records, client))
	for stan := range 3 {
		c.send(request(stan))
	}
	if err := c.Conn.(*tls.Conn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		<-begun
	}
	close(release)
	for range 3 {
		if got := c.receive(); got.Get(messages.ResponseCode) != "00" {
			t.Errorf("got %v", got)
		}
	}
	if !c.ended() {
		t.Error("the connection stays open")
	}
	var last byte
	for rest := records.read; len(rest) >= 5; rest = rest[5+int(binary.BigEndian.Uint16(rest[3:])):] {
		last = rest[0]
	}
	if last != 21 {
		t.Errorf("the last record is of type %d, want an alert", last)
	}
	_ = c.Close()
	h.finish("", "", 3)
}

func TestAStalledHandshakeHoldsItsPlaceForItsTime(t *testing.T) {
	ca := newAuthority(t)
	for name, stall := range map[string]func(*caller){
		"silent": func(*caller) {},
		"slow": func(c *caller) { // the header of a long record, and a byte a second of it
			c.raw([]byte{22, 3, 1, 0x20, 0})
			for {
				if _, err := c.Write([]byte{1}); err != nil {
					return
				}
				<-time.After(time.Second)
			}
		},
		"not reading": func(c *caller) { // the door's answer to the hello, or its alert, is not taken
			hello := make(chan []byte, 1)
			near, far := net.Pipe()
			go func() {
				_ = tls.Client(near, &tls.Config{ServerName: "door.test"}).Handshake()
			}()
			go func() {
				p := make([]byte, 8192)
				n, _ := far.Read(p)
				hello <- p[:n]
				_ = far.Close()
			}()
			c.raw(<-hello)
		},
	} {
		t.Run(name, func(t *testing.T) {
			inHall(t, func(cfg *upstream.Config) {
				cfg.TLS, cfg.Connections, cfg.HandshakeTimeout = ca.door(t), 2, 7*time.Second
			}, func(t *testing.T, h *hall) {
				started := time.Now()
				c := h.connect()
				stalled := make(chan struct{})
				go func() {
					defer close(stalled)
					stall(c)
				}()
				// The door is not held up meanwhile.
				good := h.secure(ca.client(t, named("pos")))
				if !good.served(1) || time.Since(started) > 0 {
					t.Errorf("served after %v", time.Since(started))
				}
				synctest.Wait()
				if third := h.connect(); !third.ended() || h.refused("too_many") != 1 {
					t.Error("a third connection was taken")
				}
				<-time.After(7*time.Second - time.Since(started) - 1)
				synctest.Wait()
				if got := h.count("acquirerd_upstream_connections", ""); got != 2 {
					t.Errorf("%v connections before the deadline", got)
				}
				<-time.After(1)
				synctest.Wait()
				if got := h.count("acquirerd_upstream_connections", ""); got != 1 || h.refused("tls") != 1 || !strings.Contains(h.log.String(), "cause=timeout") {
					t.Errorf("%v connections after it, %s", got, h.log)
				}
				_ = c.Close()
				_ = good.Close()
				<-stalled
			})
		})
	}
}

func TestAStopEndsHandshakes(t *testing.T) {
	ca := newAuthority(t)
	synctest.Test(t, func(t *testing.T) {
		h := open(t, func(cfg *upstream.Config) { cfg.TLS = ca.door(t) })
		c := h.connect()
		synctest.Wait()
		started := time.Now()
		if err := h.close(); err != nil || time.Since(started) > 0 {
			t.Errorf("got %v after %v", err, time.Since(started))
		}
		if h.refused("tls") != 0 {
			t.Error("it is counted as refused")
		}
		_ = c.Close()
	})
}

// TLS writes an alert when it reads what it cannot. A peer that does not read that holds the place no longer than an answer would.
func TestAnAlertThatNobodyReads(t *testing.T) {
	ca := newAuthority(t)
	inHall(t, func(cfg *upstream.Config) { cfg.TLS, cfg.Connections = ca.door(t), 1 }, func(t *testing.T, h *hall) {
		raw := h.connect()
		c := h.caller(tls.Client(raw.Conn, ca.client(t, named("pos"))))
		if !c.served(1) {
			t.Error("not served")
		}
		<-time.After(time.Minute)
		raw.raw([]byte{22, 3, 3, 0, 4, 1, 0, 0, 0}) // a hello that asks for a new handshake, as it would be in the clear
		<-time.After(5*time.Second + upstream.PartingTime)
		synctest.Wait()
		if got := h.count("acquirerd_upstream_connections", ""); got != 0 {
			t.Errorf("%v connections", got)
		}
		_ = raw.Close()
	})
}

// That an answer could not be written is told when its time is over: TLS would take more for a farewell.
func TestAnAnswerThatCannotBeWrittenWithTLS(t *testing.T) {
	ca := newAuthority(t)
	inHall(t, func(cfg *upstream.Config) { cfg.TLS = ca.door(t) }, func(t *testing.T, h *hall) {
		c := h.secure(ca.client(t, named("pos")))
		c.send(request(1))
		<-time.After(5 * time.Second)
		synctest.Wait()
		h.desk.mu.Lock()
		defer h.desk.mu.Unlock()
		if got := h.count("acquirerd_upstream_connections", ""); len(h.desk.undelivered) != 1 || got != 0 {
			t.Errorf("%d answers undelivered, %v connections", len(h.desk.undelivered), got)
		}
		_ = c.Close()
	})
}

// A peer may ask for new keys at any time, also long after the last answer was written. TLS answers that while it reads.
func TestAKeyUpdateOnAQuietConnection(t *testing.T) {
	t.Run("after an answer", func(t *testing.T) { updateKeys(t, 1) })
	t.Run("after the handshake", func(t *testing.T) { updateKeys(t, 0) })
}

func updateKeys(t *testing.T, answers uint64) {
	ca := newAuthority(t)
	inHall(t, func(cfg *upstream.Config) { cfg.TLS = ca.door(t) }, func(t *testing.T, h *hall) {
		release := make(chan struct{}, 1)
		h.desk.authorize = func(ctx context.Context, req acquirer.Request) (acquirer.Result, error) {
			<-release
			return approve(ctx, req)
		}
		var keys strings.Builder
		client := ca.client(t, named("pos"))
		client.KeyLogWriter = &keys
		raw := h.connect()
		c := h.caller(tls.Client(raw.Conn, client))
		if err := c.Conn.(*tls.Conn).HandshakeContext(t.Context()); err != nil {
			t.Fatal(err)
		}
		for range answers {
			release <- struct{}{}
			if !c.served(1) { // record 0 of the client
				t.Error("not served")
			}
		}
		<-time.After(time.Minute)
		c.send(request(2))
		synctest.Wait()
		var written atomic.Bool
		go func() {
			raw.raw(keyUpdate(t, keys.String(), c.Conn.(*tls.Conn).ConnectionState().CipherSuite, answers+1))
			written.Store(true)
			release <- struct{}{}
		}()
		if got := c.receive(); got.Get(messages.STAN) != "000002" || !written.Load() {
			t.Errorf("got %v", got)
		}
		_ = raw.Close()
	})
}

// keyUpdate is a client's record with a KeyUpdate that asks for one in return (RFC 8446, 4.6.3, 5.2 and 7.3).
func keyUpdate(t *testing.T, keyLog string, suite uint16, sequence uint64) []byte {
	t.Helper()
	var secret []byte
	for line := range strings.Lines(keyLog) {
		if fields := strings.Fields(line); fields[0] == "CLIENT_TRAFFIC_SECRET_0" {
			secret, _ = hex.DecodeString(fields[2])
		}
	}
	digest, size := sha256.New, 16
	switch suite {
	case tls.TLS_AES_128_GCM_SHA256:
	case tls.TLS_AES_256_GCM_SHA384:
		digest, size = sha512.New384, 32
	default:
		t.Skip("this machine prefers ChaCha20-Poly1305, which the standard library does not export")
	}
	expand := func(label string, length int) []byte {
		info := binary.BigEndian.AppendUint16(nil, uint16(length))
		info = append(info, byte(len("tls13 "+label)))
		info = append(info, "tls13 "+label...)
		out, err := hkdf.Expand(func() hash.Hash { return digest() }, secret, string(append(info, 0)), length)
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	block, err := aes.NewCipher(expand("key", size))
	if err != nil {
		t.Fatal(err)
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		t.Fatal(err)
	}
	nonce := expand("iv", 12)
	for i := range 8 {
		nonce[4+i] ^= byte(sequence >> (56 - 8*i))
	}
	inner := []byte{24, 0, 0, 1, 1, 22} // key_update, 1 byte, update_requested; handshake
	header := []byte{23, 3, 3, 0, byte(len(inner) + aead.Overhead())}
	return aead.Seal(header, nonce, inner, header)
}
