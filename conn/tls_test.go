package conn

import (
	"context"
	"crypto"
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
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// An authority signs certificates of this test.
type authority struct {
	t    testing.TB
	cert *x509.Certificate
	key  crypto.Signer
	pool *x509.CertPool
}

func newAuthority(t testing.TB) *authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "authority"}, NotBefore: time.Now().Add(-time.Hour),
		NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	a := &authority{t: t, key: key, pool: x509.NewCertPool()}
	if a.cert, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	a.pool.AddCert(a.cert)
	return a
}

// issue makes a certificate for a name that ends after so long.
func (a *authority) issue(name string, lasts time.Duration) tls.Certificate {
	a.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		a.t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: name}, DNSNames: []string{name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(lasts), KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, key.Public(), a.key)
	if err != nil {
		a.t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// dialTLS has the host serve TLS on pipes. The versions of the library are its own.
func (h *host) dialTLS(server *tls.Config) func(context.Context, string) (net.Conn, error) {
	return func(_ context.Context, address string) (net.Conn, error) {
		ours, theirs := net.Pipe()
		h.serve(tls.Server(ours, server), address)
		return newLingering(theirs, h), nil
	}
}

func TestTLSIsCheckedBeforeAnythingIsSaid(t *testing.T) {
	synctest.Test(t, func(t *testing.T) { // so that the clocks of certificates and links agree
		a, other := newAuthority(t), newAuthority(t)
		good := a.issue("bank.example", time.Hour)
		client := a.issue("acquirer.example", time.Hour)
		for name, c := range map[string]struct {
			server *tls.Config
			client *tls.Config
			want   cause // none: in service
		}{
			"good":       {&tls.Config{Certificates: []tls.Certificate{good}}, &tls.Config{RootCAs: a.pool}, causeNone},
			"good, 1.2":  {&tls.Config{Certificates: []tls.Certificate{good}, MaxVersion: tls.VersionTLS12}, &tls.Config{RootCAs: a.pool}, causeNone},
			"a set name": {&tls.Config{Certificates: []tls.Certificate{a.issue("x.example", time.Hour)}}, &tls.Config{RootCAs: a.pool, ServerName: "x.example"}, causeNone},
			"expired":    {&tls.Config{Certificates: []tls.Certificate{a.issue("bank.example", -time.Minute)}}, &tls.Config{RootCAs: a.pool}, causeTLS},
			"another's":  {&tls.Config{Certificates: []tls.Certificate{a.issue("shop.example", time.Hour)}}, &tls.Config{RootCAs: a.pool}, causeTLS},
			"unknown":    {&tls.Config{Certificates: []tls.Certificate{good}}, &tls.Config{RootCAs: other.pool}, causeTLS},
			"TLS 1.1": {&tls.Config{Certificates: []tls.Certificate{good}, MinVersion: tls.VersionTLS10, MaxVersion: tls.VersionTLS11},
				&tls.Config{RootCAs: a.pool, MinVersion: tls.VersionTLS10}, causeTLS},
			"mutual": {&tls.Config{Certificates: []tls.Certificate{good}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: a.pool},
				&tls.Config{RootCAs: a.pool, Certificates: []tls.Certificate{client}}, causeNone},
			"mutual, with another's authority": {&tls.Config{Certificates: []tls.Certificate{good}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: other.pool},
				&tls.Config{RootCAs: a.pool, Certificates: []tls.Certificate{client}}, causeTLS},
			"mutual, without a certificate": {&tls.Config{Certificates: []tls.Certificate{good}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: a.pool},
				&tls.Config{RootCAs: a.pool}, causeTLS},
		} {
			h := newHost(t, "iso87-ascii")
			cfg := config(h)
			cfg.Links, cfg.Dial = []Link{{Hosts: []string{"bank.example:8583"}, TLS: c.client}}, h.dialTLS(c.server)
			r := start(t, cfg, h)
			pass(3500 * time.Millisecond) // a pipe holds nothing: an alert that nobody reads takes the time of a dial
			got := r.Status()[0]
			if c.want == causeNone {
				if got.State != InService || got.LastError != "" {
					t.Errorf("%s: got %+v", name, got)
				}
				r.exchange(request(1)).want(t, nil)
			} else {
				if got.State != Down || got.LastError != string(c.want) {
					t.Errorf("%s: got %+v, want %s", name, got, c.want)
				}
				if n := h.traffic(); n != 0 {
					t.Errorf("%s: the host has read %d bytes", name, n)
				}
			}
			r.end()
		}
	})
}

func TestAHandshakeHasTheTimeOfADial(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t, "iso87-ascii")
		cfg := config(h)
		cfg.Links = []Link{{Hosts: []string{"bank.example:8583"}, TLS: &tls.Config{}}}
		cfg.Dial = func(context.Context, string) (net.Conn, error) {
			ours, theirs := net.Pipe()
			h.running.Go(func() { _, _ = io.Copy(io.Discard, ours) })
			return theirs, nil
		}
		r := start(t, cfg, h)
		pass(3*time.Second - time.Millisecond)
		if got := r.Status()[0]; got.LastError != "" {
			t.Errorf("got %+v", got)
		}
		pass(time.Millisecond)
		if got := r.Status()[0]; got.LastError != string(causeTLS) {
			t.Errorf("got %+v", got)
		}
		r.end()
	})
}

func TestWhatDoesNotSpeakTLSIsATLSFailure(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t, "iso87-ascii")
		cfg := config(h)
		cfg.Links = []Link{{Hosts: []string{"bank.example:8583"}, TLS: &tls.Config{}}}
		cfg.Dial = func(context.Context, string) (net.Conn, error) {
			ours, theirs := net.Pipe()
			h.running.Go(func() { _, _ = ours.Write([]byte("220 mail.example ESMTP\r\n")); _ = ours.Close() })
			h.running.Go(func() { _, _ = io.Copy(io.Discard, ours) })
			return theirs, nil
		}
		r := start(t, cfg, h)
		synctest.Wait()
		if got := r.Status()[0]; got.LastError != string(causeTLS) {
			t.Errorf("got %+v", got)
		}
		r.end()
	})
}

func TestAStuckLinkIsDroppedThroughTLS(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t, "iso87-ascii")
		a := newAuthority(t)
		cfg := config(h)
		cfg.Links = []Link{{Hosts: []string{"bank.example:8583"}, TLS: &tls.Config{RootCAs: a.pool}}}
		stall := make(chan struct{}, 1)
		plain := h.dialTLS(&tls.Config{Certificates: []tls.Certificate{a.issue("bank.example", 48*time.Hour)}})
		cfg.Dial = func(ctx context.Context, address string) (net.Conn, error) {
			c, err := plain(ctx, address)
			return stalling{c.(lingering), stall}, err
		}
		r := start(t, cfg, h)
		synctest.Wait()
		r.wantStates(InService)
		stall <- struct{}{}
		began := time.Now()
		x := r.exchange(request(1))
		pass(2*time.Second + time.Millisecond) // the write deadline, and no farewell that waits for five seconds
		if got := r.Status()[0]; got.State != Down || got.LastError != string(causeWrite) || !x.running() {
			t.Errorf("after %v: got %+v", time.Since(began), got)
		}
		h.script(func(h *host) {
			if h.dropped != 1 {
				t.Errorf("%d connections were closed with what stood in their buffers", h.dropped)
			}
		})
		x.want(t, ErrWrite)
		r.wantStates(InService)
		r.exchange(request(2)).want(t, nil)
		r.end()
		h.script(func(h *host) {
			if h.dropped != 1 {
				t.Errorf("%d connections were dropped, want none at the stop", h.dropped)
			}
		})
	})
}

// A stalling connection's next write, once there is something in stall, waits for its deadline.
type stalling struct {
	lingering
	stall chan struct{}
}

func (s stalling) Write(p []byte) (int, error) {
	select {
	case <-s.stall:
		unread, nobody := net.Pipe()
		defer nobody.Close()
		_ = unread.SetWriteDeadline(time.Now().Add(2 * time.Second))
		return unread.Write(p)
	default:
		return s.lingering.Write(p)
	}
}

func TestTheProcessorDialsUsWithTLS(t *testing.T) {
	onDoorstep(t, 1, nil, func(r *rig, h *host, d *doorstep) {
		a, other := newAuthority(t), newAuthority(t)
		ours := &tls.Config{Certificates: []tls.Certificate{a.issue("acquirer.example", time.Hour)}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: a.pool}
		if err := r.reconfigure(func(c *Config) { c.Links[0].TLS = ours }); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		dial := func(client *tls.Config) *hostLink {
			client.ServerName, client.RootCAs = "acquirer.example", a.pool
			pipe, theirs := net.Pipe()
			l := h.serve(tls.Client(pipe, client), "192.0.2.1:1000")
			d.ports[0].arrive <- from{newLingering(theirs, h), "192.0.2.1:1000"}
			synctest.Wait()
			return l
		}
		l := dial(&tls.Config{Certificates: []tls.Certificate{other.issue("bank.example", time.Hour)}})
		if got := r.Status()[0]; got.LastError != string(causeTLS) || l.bytes() != 0 {
			t.Errorf("got %+v", got)
		}
		pass(time.Second)
		dial(&tls.Config{Certificates: []tls.Certificate{a.issue("bank.example", time.Hour)}})
		if got := r.Status()[0]; got.State != InService || got.Peer != "192.0.2.1:1000" {
			t.Errorf("got %+v", got)
		}
		r.exchange(request(1)).want(t, nil)

		// A certificate that takes another's place does not touch the connection, and holds for the next.
		renewed := ours.Clone()
		renewed.ClientCAs = other.pool
		if err := r.reconfigure(func(c *Config) { c.Links[0].TLS = renewed }); err != nil {
			t.Fatal(err)
		}
		r.exchange(request(2)).want(t, nil)
		if err := r.Cut(0); err != nil {
			t.Fatal(err)
		}
		pass(time.Second)
		dial(&tls.Config{Certificates: []tls.Certificate{other.issue("bank.example", time.Hour)}})
		r.wantStates(InService)
	})
}

func TestNoConfigurationAllowsOldVersionsOfTLS(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAuthority(t)
		old := &tls.Config{Certificates: []tls.Certificate{a.issue("bank.example", time.Hour)}, RootCAs: a.pool, ServerName: "bank.example",
			MinVersion: tls.VersionTLS10, MaxVersion: tls.VersionTLS11}
		shake := func(ours, theirs *tls.Config, host string, side func(net.Conn, *tls.Config) *tls.Conn) error {
			under, other := net.Pipe()
			done := make(chan error, 1)
			go func() {
				defer other.Close()
				done <- side(other, theirs).Handshake()
			}()
			ctx, cancel := context.WithTimeout(context.Background(), time.Second)
			defer cancel()
			_, err := secure(ctx, under, ours, host)
			<-done
			return err
		}
		offered := []uint16(nil)
		listening := old.Clone()
		listening.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
			offered = hello.SupportedVersions
			return nil, nil
		}
		lax := old.Clone()
		lax.MaxVersion = 0
		if err := shake(lax, listening, "bank.example:1", tls.Server); err == nil {
			t.Error("as the client")
		}
		if len(offered) == 0 || slices.Min(offered) < tls.VersionTLS12 {
			t.Errorf("offered %x", offered)
		}
		lax.GetConfigForClient = func(*tls.ClientHelloInfo) (*tls.Config, error) { return old, nil }
		if err := shake(lax, old, "", tls.Client); !errors.Is(err, errOldTLS) {
			t.Errorf("as the server: %v", err)
		}
	})
}

func TestFaultsOfTLSAreNamed(t *testing.T) {
	h := newHost(t, "iso87-ascii")
	for want, l := range map[string]Link{
		"links[0].tls: the newest version":                {Hosts: []string{"a:1"}, TLS: &tls.Config{MaxVersion: tls.VersionTLS11}},
		"links[0].tls: a certificate that is not":         {Hosts: []string{"a:1"}, TLS: &tls.Config{InsecureSkipVerify: true}},
		"links[0].tls: a link that is dialled by the pro": {Listen: "a:1", Allow: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}, TLS: &tls.Config{}},
	} {
		cfg := config(h)
		cfg.Links = []Link{l}
		wantFault(t, cfg, want)
	}
}

// TLS answers a key update while it reads, under the deadline of the last write, which has passed. Its error comes out at the next write: a
// request of which no byte was written, whose fate is called unknown.
func TestAKeyUpdateOnAQuietLinkLosesNoRequest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t, "iso87-ascii")
		a := newAuthority(t)
		var keys strings.Builder
		var raw net.Conn
		var over *tls.Conn
		cfg := config(h)
		cfg.Links = []Link{{Hosts: []string{"bank.example:8583"}, TLS: &tls.Config{RootCAs: a.pool}}}
		server := &tls.Config{Certificates: []tls.Certificate{a.issue("bank.example", time.Hour)}, KeyLogWriter: &keys, SessionTicketsDisabled: true}
		cfg.Dial = func(_ context.Context, address string) (net.Conn, error) {
			ours, theirs := net.Pipe()
			raw, over = ours, tls.Server(ours, server)
			h.serve(over, address)
			return newLingering(theirs, h), nil
		}
		r := start(t, cfg, h)
		defer r.end()
		synctest.Wait()
		r.wantStates(InService)
		silent(h)
		pass(30 * time.Second) // no echo yet
		record := serverKeyUpdate(t, keys.String(), over.ConnectionState().CipherSuite, 1)
		go func() { _, _ = raw.Write(record) }()
		synctest.Wait()
		x := r.exchange(request(1))
		synctest.Wait()
		if h.requests()["000001"] != 1 {
			t.Errorf("the processor has not received the request; the link: %+v", r.Status()[0])
		}
		<-x.done
	})
}

// serverKeyUpdate is a server's record with a KeyUpdate that asks for one in return (RFC 8446, 4.6.3, 5.2 and 7.3).
func serverKeyUpdate(t *testing.T, keyLog string, suite uint16, sequence uint64) []byte {
	t.Helper()
	var secret []byte
	for line := range strings.Lines(keyLog) {
		if fields := strings.Fields(line); fields[0] == "SERVER_TRAFFIC_SECRET_0" {
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
