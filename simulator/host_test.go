package simulator_test

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"errors"
	"io"
	"math/big"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"acquirerd/messages"
	"acquirerd/simulator"
)

// hosts serves a processor on two hosts.
func hosts(t *testing.T) (p *simulator.Processor, first, second *simulator.Host, at [2]*simulator.PipeListener, stop func()) {
	t.Helper()
	p, err := simulator.NewProcessor(simulator.ProcessorConfig{Codec: codec(t, "iso87-ascii")})
	if err != nil {
		t.Fatal(err)
	}
	at = [2]*simulator.PipeListener{simulator.NewPipeListener(), simulator.NewPipeListener()}
	first, second = simulator.NewHost(at[0]), simulator.NewHost(at[1])
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- p.Serve(ctx, first, second) }()
	return p, first, second, at, func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}
}

func TestAHostIsTakenAwayAndTheOtherStays(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p, first, second, at, stop := hosts(t)
		defer stop()
		c := codec(t, "iso87-ascii")
		preferred, other := signedOn(t, c, at[0], 0), signedOn(t, c, at[1], 1000)

		first.Refuse(true)
		if got := preferred.code(preferred.request(visa, 100)); got != "00" {
			t.Errorf("a link that was there is answered %s", got)
		}
		if m, err := dial(t, c, at[0], 0).read(); m != nil || err == nil || errors.Is(err, errQuiet) {
			t.Errorf("a refused connection gives %v, %v", m, err)
		}
		first.Cut()
		if m, err := preferred.read(); m != nil || err == nil || errors.Is(err, errQuiet) {
			t.Errorf("a link that is cut gives %v, %v", m, err)
		}
		if got := other.code(other.request(visa, 100)); got != "00" {
			t.Errorf("the other host answers %s", got)
		}
		first.Refuse(false)
		preferred = signedOn(t, c, at[0], 100)
		if got := preferred.code(preferred.request(visa, 100)); got != "00" {
			t.Errorf("the host that is back answers %s", got)
		}
		synctest.Wait()
		if taken, refused, open := first.Counts(); taken != 2 || refused != 1 || open != 1 {
			t.Errorf("the first host counts %d taken, %d refused, %d open", taken, refused, open)
		}
		if taken, refused, open := second.Counts(); taken != 1 || refused != 0 || open != 1 {
			t.Errorf("the second host counts %d taken, %d refused, %d open", taken, refused, open)
		}
		if n := p.SignedOn(); n != 2 {
			t.Errorf("%d links are signed on", n)
		}
	})
}

func TestAHostFallsSilent(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p, first, _, at, stop := hosts(t)
		defer stop()
		c := codec(t, "iso87-ascii")
		link := signedOn(t, c, at[0], 0)
		first.Mute(true)
		link.send(link.request(visa, 100))
		link.quiet()
		fresh := dial(t, c, at[0], 500) // it is accepted, and not answered
		fresh.send(fresh.network("001"))
		fresh.quiet()
		if n := p.Ledger().Counts().Requests; n != 0 {
			t.Errorf("a silent host has taken %d requests", n)
		}
		first.Mute(false)
		for _, gone := range []*peer{link, fresh} {
			if m, err := gone.read(); m != nil || err == nil || errors.Is(err, errQuiet) {
				t.Errorf("when it speaks again, a connection that it was silent on gives %v, %v", m, err)
			}
		}
		again := signedOn(t, c, at[0], 1000)
		if got := again.code(again.request(visa, 100)); got != "00" {
			t.Errorf("a new one is answered %s", got)
		}
	})
}

func TestAHostIsSlow(t *testing.T) {
	bubble(t, func(t *testing.T) {
		_, first, _, at, stop := hosts(t)
		defer stop()
		link := signedOn(t, codec(t, "iso87-ascii"), at[0], 0)
		first.Delay(3 * time.Second)
		began := time.Now()
		if got := link.code(link.request(visa, 100)); got != "00" || time.Since(began) != 3*time.Second {
			t.Errorf("answered %s after %v", got, time.Since(began))
		}
		link.send(link.request(visa, 100))
		synctest.Wait()
		_ = link.conn.Close() // and the write that waits ends with the connection
	})
}

// A daemon's end that listens: what a processor that dials finds.
func listening(t *testing.T, c *messages.Codec, listener net.Listener, firstSTAN int) *peer {
	t.Helper()
	conn, err := listener.Accept()
	if err != nil {
		t.Fatal(err)
	}
	p := &peer{t: t, codec: c, conn: conn, reader: bufio.NewReader(conn), stan: firstSTAN}
	if got := p.code(p.network("001")); got != "00" {
		t.Fatalf("sign-on is answered %q", got)
	}
	return p
}

func TestAProcessorDials(t *testing.T) {
	bubble(t, func(t *testing.T) {
		c := codec(t, "iso87-ascii")
		p, err := simulator.NewProcessor(simulator.ProcessorConfig{Codec: c})
		if err != nil {
			t.Fatal(err)
		}
		there := simulator.NewPipeListener()
		var mu sync.Mutex
		away := true
		var attempts []time.Duration
		began := time.Now()
		ctx, cancel := context.WithCancel(context.Background())
		ended := make(chan error, 1)
		go func() {
			ended <- p.Connect(ctx, simulator.Dialling{Addresses: []string{"daemon:1"}, RetryMin: time.Second, RetryMax: 8 * time.Second,
				Dial: func(ctx context.Context, address string) (net.Conn, error) {
					mu.Lock()
					attempts = append(attempts, time.Since(began))
					gone := away
					mu.Unlock()
					if address != "daemon:1" {
						t.Errorf("dials %q", address)
					}
					if gone {
						return nil, net.ErrClosed
					}
					return there.Dial(ctx)
				}})
		}()
		time.Sleep(60 * time.Second)
		synctest.Wait()
		mu.Lock()
		away = false
		// At once, then after a pause of half to all of 1, 2, 4, 8, 8 … seconds.
		for i, most := range []time.Duration{0, 1, 2, 4, 8, 8, 8} {
			pause := attempts[i]
			if i > 0 {
				pause -= attempts[i-1]
			}
			if most *= time.Second; pause > most || pause < most/2 {
				t.Errorf("attempt %d comes %v after the one before, want %v to %v", i, pause, most/2, most)
			}
		}
		mu.Unlock()
		link := listening(t, c, there, 0)
		if got := link.code(link.request(visa, 1250)); got != "00" {
			t.Errorf("answered %s", got)
		}
		_ = link.conn.Close()
		link = listening(t, c, there, 100)
		if got := link.code(link.request(visa, 1250)); got != "00" {
			t.Errorf("after a new connection answered %s", got)
		}
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		if m, err := link.read(); !errors.Is(err, io.EOF) {
			t.Errorf("at its end the link gives %v, %v", m, err)
		}
		if counts := p.Ledger().Counts(); counts.Links != 2 || counts.SignOns != 2 || counts.Held != 2 {
			t.Errorf("the ledger counts %+v", counts)
		}
	})
	p, err := simulator.NewProcessor(simulator.ProcessorConfig{Codec: codec(t, "iso87-ascii")})
	if err != nil {
		t.Fatal(err)
	}
	for name, how := range map[string]simulator.Dialling{"no address": {}, "negative connections": {Addresses: []string{"a:1"}, Connections: -1},
		"a shortest pause over the longest": {Addresses: []string{"a:1"}, RetryMin: time.Hour}} {
		if err := p.Connect(t.Context(), how); err == nil {
			t.Errorf("%s is taken", name)
		}
	}
}

func TestADiallingProcessorKeepsSeveralConnections(t *testing.T) {
	bubble(t, func(t *testing.T) {
		c := codec(t, "iso87-ascii")
		p, err := simulator.NewProcessor(simulator.ProcessorConfig{Codec: c})
		if err != nil {
			t.Fatal(err)
		}
		at := map[string]*simulator.PipeListener{"a:1": simulator.NewPipeListener(), "b:1": simulator.NewPipeListener()}
		ctx, cancel := context.WithCancel(context.Background())
		ended := make(chan error, 1)
		go func() {
			ended <- p.Connect(ctx, simulator.Dialling{Addresses: []string{"a:1", "b:1"}, Connections: 2,
				Dial: func(ctx context.Context, address string) (net.Conn, error) { return at[address].Dial(ctx) }})
		}()
		for i, address := range []string{"a:1", "b:1", "a:1", "b:1"} {
			listening(t, c, at[address], 100*i)
		}
		if n := p.SignedOn(); n != 4 {
			t.Errorf("%d links are signed on", n)
		}
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
}

// An authority signs certificates for the names that it is asked for.
type authority struct {
	t    *testing.T
	key  *ecdsa.PrivateKey
	cert *x509.Certificate
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	a := &authority{t: t}
	var err error
	if a.key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
		t.Fatal(err)
	}
	a.cert = a.sign(&a.key.PublicKey, &x509.Certificate{IsCA: true, KeyUsage: x509.KeyUsageCertSign, Subject: pkix.Name{CommonName: "test authority"}})
	return a
}

func (a *authority) sign(key *ecdsa.PublicKey, cert *x509.Certificate) *x509.Certificate {
	a.t.Helper()
	cert.SerialNumber, cert.BasicConstraintsValid = big.NewInt(time.Now().UnixNano()), true
	// A bubble's clock begins in 2000.
	cert.NotBefore, cert.NotAfter = time.Date(1999, 1, 1, 0, 0, 0, 0, time.UTC), time.Now().AddDate(40, 0, 0)
	parent := a.cert
	if parent == nil {
		parent = cert
	}
	der, err := x509.CreateCertificate(rand.Reader, cert, parent, key, a.key)
	if err != nil {
		a.t.Fatal(err)
	}
	signed, err := x509.ParseCertificate(der)
	if err != nil {
		a.t.Fatal(err)
	}
	return signed
}

// party is the TLS config of one party, who shows a certificate of its name and wants one of the authority's from the other.
func (a *authority) party(name string) *tls.Config {
	a.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		a.t.Fatal(err)
	}
	cert := a.sign(&key.PublicKey, &x509.Certificate{DNSNames: []string{name}, Subject: pkix.Name{CommonName: name},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}})
	pool := x509.NewCertPool()
	pool.AddCert(a.cert)
	return &tls.Config{MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{{Certificate: [][]byte{cert.Raw}, PrivateKey: key}},
		RootCAs: pool, ClientCAs: pool, ClientAuth: tls.RequireAndVerifyClientCert}
}

func TestPartiesTalkOverTLS(t *testing.T) {
	authority := newAuthority(t)
	upstreamParty, processorParty := authority.party("upstream.test"), authority.party("processor.test")
	client := upstreamParty.Clone()
	client.ServerName = "processor.test"
	bubble(t, func(t *testing.T) {
		p, listener, stopProcessor := serve(t, simulator.ProcessorConfig{TLS: processorParty})
		defer stopProcessor()
		u, stop := run(t, simulator.UpstreamConfig{TLS: client}, listener)
		ready(t, u)
		if entry := do(t, u, simulator.Request{PAN: pan(t, visa), Amount: 1250}); entry.ResponseCode != "00" {
			t.Errorf("answered %+v", entry)
		}
		stop()
		for name, wrong := range map[string]*tls.Config{
			"without TLS":         nil,
			"by another name":     {MinVersion: tls.VersionTLS12, RootCAs: client.RootCAs, Certificates: client.Certificates, ServerName: "other.test"},
			"with no certificate": {MinVersion: tls.VersionTLS12, RootCAs: client.RootCAs, ServerName: "processor.test"},
			"of another authority": {MinVersion: tls.VersionTLS12, RootCAs: x509.NewCertPool(), Certificates: client.Certificates,
				ServerName: "processor.test"},
		} {
			before := p.Ledger().Counts().SignOns
			u, stop := run(t, simulator.UpstreamConfig{TLS: wrong}, listener)
			ctx, release := context.WithTimeout(t.Context(), 20*time.Second)
			if err := u.Ready(ctx); err == nil || p.Ledger().Counts().SignOns != before {
				t.Errorf("%s it is connected", name)
			}
			release()
			stop()
		}
	})
}

func TestADiallingProcessorIsATLSClient(t *testing.T) {
	authority := newAuthority(t)
	daemon := authority.party("daemon.test")
	bubble(t, func(t *testing.T) {
		c := codec(t, "iso87-ascii")
		p, err := simulator.NewProcessor(simulator.ProcessorConfig{Codec: c, TLS: authority.party("processor.test")})
		if err != nil {
			t.Fatal(err)
		}
		at := simulator.NewPipeListener()
		ctx, cancel := context.WithCancel(context.Background())
		ended := make(chan error, 1)
		go func() {
			ended <- p.Connect(ctx, simulator.Dialling{Addresses: []string{"daemon.test:443"},
				Dial: func(ctx context.Context, _ string) (net.Conn, error) { return at.Dial(ctx) }})
		}()
		link := listening(t, c, tls.NewListener(at, daemon), 0)
		if names := link.conn.(*tls.Conn).ConnectionState().PeerCertificates[0].DNSNames; !slices.Equal(names, []string{"processor.test"}) {
			t.Errorf("the processor shows a certificate of %q", names)
		}
		if got := link.code(link.request(visa, 100)); got != "00" {
			t.Errorf("answered %s", got)
		}
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
}

func TestKeepalives(t *testing.T) {
	for _, c := range []struct {
		name, keepalive string
		answered        bool
	}{{"a frame of no bytes is read over", "ignored", false}, {"a frame of no bytes is answered", "answered", true}} {
		t.Run(c.name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				in := codecWith(t, "iso87-binary", "length: binary-2", "length: binary-2, keepalive: "+c.keepalive)
				p, listener, stop := serve(t, simulator.ProcessorConfig{Codec: in, Rules: rules(t, "amount=777 keepalive")})
				defer stop()
				link := signedOn(t, in, listener, 0)
				beat := func() {
					t.Helper()
					if _, err := link.conn.Write([]byte{0, 0}); err != nil {
						t.Fatal(err)
					}
				}
				empty := func() {
					t.Helper()
					_ = link.conn.SetReadDeadline(time.Now().Add(time.Minute))
					if body, err := in.ReadFrame(link.reader); err != nil || len(body) != 0 {
						t.Fatalf("got %x, %v, want a frame of no bytes", body, err)
					}
				}
				if beat(); c.answered {
					empty()
				}
				if got := link.code(link.request(visa, 100)); got != "00" {
					t.Errorf("after it, a request is answered %s", got)
				}
				link.send(link.request(visa, 777))
				empty() // the processor's own, and then its answer
				if got := link.receive().Get(messages.ResponseCode); got != "00" {
					t.Errorf("answered %s", got)
				}
				if c.answered {
					beat()
				}
				link.quiet() // an answer is not answered
				if beat(); c.answered {
					empty()
				}
				if counts := p.Ledger().Counts(); counts.Keepalives != 2 || counts.Effects["keepalive"] != 1 {
					t.Errorf("the ledger counts %+v", counts)
				}
			})
		})
	}
	t.Run("a dialect without them is sent none, and takes none", func(t *testing.T) {
		bubble(t, func(t *testing.T) {
			in := codec(t, "iso87-binary")
			p, listener, stop := serve(t, simulator.ProcessorConfig{Codec: in, Faults: simulator.Faults{Keepalive: 1}})
			defer stop()
			link := signedOn(t, in, listener, 0)
			if got := link.code(link.request(visa, 100)); got != "00" || p.Ledger().Counts().Effects["keepalive"] != 0 {
				t.Errorf("answered %s, counts %+v", got, p.Ledger().Counts())
			}
			if _, err := link.conn.Write([]byte{0, 0}); err != nil {
				t.Fatal(err)
			}
			if m, err := link.read(); !errors.Is(err, io.EOF) {
				t.Errorf("got %v, %v, want the link's end", m, err)
			}
		})
	})
}

func TestANetworkRejects(t *testing.T) {
	bubble(t, func(t *testing.T) {
		in := codec(t, "visa-like")
		p, listener, stop := serve(t, simulator.ProcessorConfig{Codec: in, Rules: rules(t, "amount=777 reject=0104", "amount=778 reject delay=3s")})
		defer stop()
		link := dial(t, in, listener, 0)
		link.ask(in.NewDialogue(messages.SignOn, time.Now(), link.number()))
		request := link.request(visa, 777)
		sent, err := in.Encode(request)
		if err != nil {
			t.Fatal(err)
		}
		link.send(request)
		body, err := in.ReadFrame(link.reader)
		if err != nil {
			t.Fatal(err)
		}
		// 26 bytes: own length, flag and format of the message, length of all, its stations and status fields, and the code.
		want := hex.EncodeToString([]byte{26, 1, 2, byte((26 + len(sent)) >> 8), byte(26 + len(sent))}) + strings.Repeat("00", 19) + "0104" + hex.EncodeToString(sent)
		if got := hex.EncodeToString(body); got != want {
			t.Errorf("got\n%s, want\n%s", got, want)
		}
		m, err := in.Decode(body)
		if err != nil || m.Rejected() != "0104" || m.MTI != "0100" || m.Get(messages.STAN) != request.Get(messages.STAN) {
			t.Errorf("it is read as %v rejected with %q, %v", m, m.Rejected(), err)
		}
		began := time.Now()
		if m = link.ask(link.request(visa, 778)); m.Rejected() != "0101" || time.Since(began) != 3*time.Second {
			t.Errorf("got %v rejected with %q after %v", m, m.Rejected(), time.Since(began))
		}
		if counts := p.Ledger().Counts(); counts.Requests != 0 || counts.Effects["reject"] != 2 {
			t.Errorf("the ledger counts %+v", counts)
		}
		if err := p.SetFaults(simulator.Faults{Reject: 1}); err != nil {
			t.Error(err)
		}
		if m = link.ask(link.request(visa, 100)); m.Rejected() == "" {
			t.Errorf("by chance, got %v", m)
		}
	})
	if _, err := simulator.NewProcessor(simulator.ProcessorConfig{Codec: codec(t, "iso87-ascii"), Rules: rules(t, "reject")}); err == nil {
		t.Error("a dialect without a reject header has a rule that rejects")
	}
	for _, text := range []string{"reject=", "reject=1", "reject=zzzz", "reject=01045"} {
		if _, err := simulator.ParseRule(text); err == nil {
			t.Errorf("%s is taken", text)
		}
	}
}
