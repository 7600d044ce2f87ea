package acquirerd_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	crand "crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"math/big"
	"math/rand/v2"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"acquirerd/acquirer"
	"acquirerd/card"
	"acquirerd/conn"
	"acquirerd/journal"
	"acquirerd/messages"
	"acquirerd/simulator"
	"acquirerd/specs"
	"acquirerd/upstream"
)

var storm = flag.Duration("storm", time.Minute, "how long the test of 16 links breaks them")

// The size of TestSixteenLinks.
const (
	stormLinks    = 4  // of each of four endpoints
	stormRate     = 30 // transactions a second of each of three upstreams
	stormCards    = 500
	stormWhole    = 30 * time.Second // so long a storm meets all that it is for
	stormPatience = 90 * time.Second // for the last answer and the last reversal, when nothing breaks any more
)

// Timers of the daemon and of the processors in it.
const (
	stormReply   = time.Second
	stormWrite   = 300 * time.Millisecond
	stormEcho    = 300 * time.Millisecond
	stormSlow    = 1500 * time.Millisecond // the longest delay of a processor, longer than its answer is waited for
	stormMuted   = 2 * time.Second
	stormRefused = 1500 * time.Millisecond
	stormAbsent  = 5 * time.Second // for how long an original must not be there; longer than anything is held up
)

// TestSixteenLinks runs the daemon's rooms between three upstreams and four processors, each of another dialect, framing and way to come to
// its links, over TCP, for a minute in which they break:
//
//	two-hosts   iso87-ebcdic, each link with two hosts, of which one or the other is cut, refuses or falls silent
//	secured     visa-like, over TLS by both parties' certificates, with requests that the network returns
//	dialling    iso93-binary, whose processor dials the daemon
//	proxied     iso87-ascii with a TPDU header behind a BCD length, with keep-alives, through proxies that cut, tear, stall and slow
//
// All processors lose, delay, garble, repeat and drop, and demand things of their own. The upstreams speak iso87-binary, iso93-binary and
// iso87-ascii, and do their duty. At rest, the four ledgers, the book and the journal must agree: nothing was lost.
//
//	go test -run SixteenLinks . -storm 5s
func TestSixteenLinks(t *testing.T) {
	s := newStorm(t)
	outside, end := context.WithCancel(context.Background())
	var living sync.WaitGroup
	defer living.Wait()
	defer end()
	for _, p := range s.processors {
		living.Go(func() { p.serve(outside) })
	}
	stop := s.serve()
	asking := s.ask(outside, &living)

	breaking, calm := context.WithTimeout(t.Context(), *storm)
	defer calm()
	s.rage(breaking)
	close(asking.enough)
	for _, p := range s.processors {
		if err := p.SetFaults(simulator.Faults{}); err != nil {
			t.Error(err)
		}
	}
	if !s.comesToRest(asking) {
		t.Errorf("after %v something is still open or owed", stormPatience)
	}
	for name, endpoint := range s.endpoints {
		for _, link := range endpoint.Status() {
			if link.State != conn.InService {
				t.Errorf("link %d of %s is %s at rest: %s", link.Number, name, link.State, link.LastError)
			}
		}
	}
	stop()
	end()
	living.Wait()
	s.compare()
}

// A stormProcessor is one endpoint of the storm, from outside.
type stormProcessor struct {
	*simulator.Processor
	name  string
	codec *messages.Codec
	serve func(context.Context)
}

// A storming is the daemon of the test and all around it.
type storming struct {
	t          *testing.T
	chance     *rand.Rand // owned by rage
	path       string     // of the journal
	processors []*stormProcessor
	links      map[string][]conn.Link // by endpoint
	endpoints  map[string]*conn.Endpoint
	hosts      []*simulator.Host
	proxies    []*simulator.Proxy // of links, then of doors
	doors      []net.Listener
	doorCodecs []*messages.Codec
	book       *simulator.Book
}

func newStorm(t *testing.T) *storming {
	s := &storming{t: t, chance: rand.New(rand.NewPCG(1, 0)), path: filepath.Join(t.TempDir(), "journal.db"), links: map[string][]conn.Link{},
		endpoints: map[string]*conn.Endpoint{}, book: simulator.NewBook(0)}
	if err := journal.Create(s.path, "storm"); err != nil {
		t.Fatal(err)
	}
	authority := newStormAuthority(t)
	tpdu := copied(t, t.TempDir(), "iso87-ascii", "proxied", "framing: { length: ascii-4, max: 4096 }",
		"framing: { length: bcd-2, keepalive: answered, max: 4096 }\nheader: { form: tpdu, value: \"6000010002\" }")

	first, second := s.listen(), s.listen()
	s.hosts = []*simulator.Host{simulator.NewHost(first), simulator.NewHost(second)}
	s.processor("two-hosts", "iso87-ebcdic", nil, s.hosts[0], s.hosts[1])
	s.linked("two-hosts", conn.Link{Hosts: []string{first.Addr().String(), second.Addr().String()}})

	secured := s.listen()
	s.processor("secured", "visa-like", authority.party("processor.test"), secured)
	client := authority.party("daemon.test")
	client.ServerName = "processor.test"
	s.linked("secured", conn.Link{Hosts: []string{secured.Addr().String()}, TLS: client})

	// The daemon's address has to be known before it listens there.
	dialled := freePort(t)
	s.dialling("dialling", "iso93-binary", dialled)
	s.linked("dialling", conn.Link{Listen: dialled, Allow: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}})

	behind := s.listen()
	s.processor("proxied", tpdu, nil, behind)
	s.linked("proxied", conn.Link{Hosts: []string{s.proxy(behind.Addr().String())}})
	return s
}

// linked gives an endpoint its links, which are all alike.
func (s *storming) linked(name string, like conn.Link) {
	s.links[name] = slices.Repeat([]conn.Link{like}, stormLinks)
}

func (s *storming) listen() net.Listener {
	s.t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { _ = listener.Close() })
	return listener
}

// proxy puts one before an address, for as long as the test lasts, and returns where it listens.
func (s *storming) proxy(address string) string {
	s.t.Helper()
	proxy, err := simulator.NewProxy(simulator.ProxyConfig{Address: address, Seed: uint64(len(s.proxies))})
	if err != nil {
		s.t.Fatal(err)
	}
	s.proxies = append(s.proxies, proxy)
	listener := s.listen()
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = proxy.Serve(ctx, listener)
	}()
	s.t.Cleanup(func() {
		stop()
		<-ended
	})
	return listener.Addr().String()
}

// newProcessor makes one that breaks by chance. Its dialect is a built-in one or a file.
func (s *storming) newProcessor(name, dialect string, secured *tls.Config) *stormProcessor {
	s.t.Helper()
	p := &stormProcessor{name: name, codec: codecOf(s.t, dialect)}
	var err error
	p.Processor, err = simulator.NewProcessor(simulator.ProcessorConfig{Codec: p.codec, TLS: secured, DemandTimeout: 2 * stormReply,
		Faults: simulator.Faults{Seed: uint64(len(s.processors)), MaxDelay: stormSlow, Lost: .01, Late: .01, Delay: .05, Silence: .02, Drop: .003, Close: .003,
			Duplicate: .02, Reorder: .03, Garble: .01, NoSTAN: .005, OtherLink: .03, CutAnswer: .003, Stall: .002, Reject: .01, Keepalive: .02, Demand: .01}})
	if err != nil {
		s.t.Fatal(err)
	}
	s.processors = append(s.processors, p)
	return p
}

// processor makes one that listens.
func (s *storming) processor(name, dialect string, secured *tls.Config, listeners ...net.Listener) {
	p := s.newProcessor(name, dialect, secured)
	p.serve = func(ctx context.Context) {
		if err := p.Serve(ctx, listeners...); err != nil {
			s.t.Error(err)
		}
	}
}

// dialling makes one that dials the daemon.
func (s *storming) dialling(name, dialect, address string) {
	p := s.newProcessor(name, dialect, nil)
	p.serve = func(ctx context.Context) {
		if err := p.Connect(ctx, simulator.Dialling{Addresses: []string{address}, Connections: stormLinks, RetryMin: 20 * time.Millisecond,
			RetryMax: 200 * time.Millisecond}); err != nil {
			s.t.Error(err)
		}
	}
}

// serve starts the daemon, and returns what stops it in order.
func (s *storming) serve() (stop func()) {
	t := s.t
	log, registry := slog.New(slog.DiscardHandler), prometheus.NewRegistry()
	record, err := journal.Open(journal.Config{Path: s.path, Station: "storm", BlockSize: 200}, log, registry)
	if err != nil {
		t.Fatal(err)
	}
	cfg := acquirer.Config{Journal: record, Vault: &softVault{&station{calm: true}}, InFlight: 1024, Forward: acquirer.Forwarding{
		RetryMin: 200 * time.Millisecond, RetryMax: time.Second, ParkAfter: 24 * time.Hour, NotFoundFinal: stormAbsent, Poll: 100 * time.Millisecond,
		Parallel: 16, Rate: 500}}
	for i, p := range s.processors {
		endpoint, err := conn.New(conn.Config{Name: p.name, Codec: p.codec, Links: s.links[p.name], ReplyTimeout: stormReply, WriteTimeout: stormWrite,
			DialTimeout: stormReply, SignOnTimeout: stormReply, EchoInterval: stormEcho, EchoTimeout: stormEcho, EchoMisses: 2,
			BackoffMin: 20 * time.Millisecond, BackoffMax: 200 * time.Millisecond, InFlight: 256, FailBack: stormReply}, log, registry)
		if err != nil {
			t.Fatal(err)
		}
		s.endpoints[p.name] = endpoint
		cfg.Endpoints = append(cfg.Endpoints, acquirer.NewEndpoint(p.name, "", p.codec, endpoint))
		cfg.Routes = append(cfg.Routes, acquirer.Route{BINs: []string{stormBIN(i)}, Endpoint: p.name})
	}
	desk, err := acquirer.New(cfg, log, registry)
	if err != nil {
		t.Fatal(err)
	}
	var parts []*part // in the order in which they begin
	begin := func(run func(context.Context) error) {
		p := &part{}
		p.begin(run, nil)
		parts = append(parts, p)
	}
	begin(record.Run)
	if _, err := desk.Recover(t.Context()); err != nil {
		t.Fatal(err)
	}
	for name, endpoint := range s.endpoints {
		begin(func(ctx context.Context) error {
			return endpoint.Run(ctx, func(ctx context.Context, m conn.Unasked) { desk.Inbound(ctx, name, m) })
		})
	}
	begin(desk.Run)
	for i, dialect := range []string{"iso87-binary", "iso93-binary", "iso87-ascii"} {
		codec := codecOf(t, dialect)
		door, err := upstream.New(upstream.Config{Upstream: &acquirer.Upstream{Name: fmt.Sprint("upstream-", i), Codec: codec}, InFlight: 512,
			Connections: 16, Budget: 3 * stormReply, IdleTimeout: time.Hour, FrameTimeout: 5 * time.Second, WriteTimeout: 5 * time.Second}, desk, log, registry)
		if err != nil {
			t.Fatal(err)
		}
		listener := s.listen()
		s.doors, s.doorCodecs = append(s.doors, listener), append(s.doorCodecs, codec)
		begin(func(ctx context.Context) error { return door.Serve(ctx, listener) })
	}
	return func() {
		for _, p := range slices.Backward(parts) { // the doors first, the journal last
			if err := p.end(); err != nil {
				t.Error(err)
			}
		}
		if err := record.Close(); err != nil {
			t.Error(err)
		}
	}
}

// stormBIN is the first digits of the cards of an endpoint, of a range that no issuer has.
func stormBIN(endpoint int) string { return fmt.Sprintf("400000%d", endpoint+1) }

// asking is what the upstreams ask.
type asking struct {
	enough chan struct{} // closed when no transaction is to begin any more
	done   chan struct{} // closed when each that has begun is at rest
}

// ask has the upstreams send transactions and do their duty about them.
func (s *storming) ask(outside context.Context, living *sync.WaitGroup) asking {
	t := s.t
	a := asking{make(chan struct{}), make(chan struct{})}
	var traders sync.WaitGroup
	for u, listener := range s.doors {
		// An upstream of the other edition leaves out what processors of this one have no words for.
		omits := map[specs.Standard][]messages.Element{specs.ISO93: {messages.POSEntryMode}}[s.doorCodecs[u].Dialect().Standard]
		client, err := simulator.NewUpstream(simulator.UpstreamConfig{Codec: s.doorCodecs[u], Book: s.book, Connections: 3, Omits: omits,
			Address: s.proxy(listener.Addr().String()), ReplyTimeout: 4 * stormReply, RetryDelay: 20 * time.Millisecond, AcquirerID: fmt.Sprint(12345 + u)})
		if err != nil {
			t.Fatal(err)
		}
		duty, err := simulator.NewDuty(simulator.DutyConfig{Upstream: client, Seed: uint64(u), RepeatShare: .5, CancelShare: .1, PartialShare: .1,
			AdviceShare: .1, RequestShare: .3, ResendShare: .05, Pause: stormReply / 2})
		if err != nil {
			t.Fatal(err)
		}
		living.Go(func() { _ = client.Run(outside) })
		ready, release := context.WithTimeout(t.Context(), 20*time.Second)
		if err := client.Ready(ready); err != nil {
			t.Error(err)
		}
		release()
		traders.Go(func() { s.trade(outside, u, duty, a.enough) })
	}
	living.Go(func() {
		traders.Wait()
		close(a.done)
	})
	return a
}

// trade is one upstream's.
func (s *storming) trade(ctx context.Context, number int, duty *simulator.Duty, enough chan struct{}) {
	chance := rand.New(rand.NewPCG(2, uint64(number)))
	tick := time.NewTicker(time.Second / stormRate)
	defer tick.Stop()
	var under sync.WaitGroup
	defer under.Wait()
	for n := 0; ; n++ {
		select {
		case <-tick.C:
		case <-enough:
			return
		}
		pan := s.card(chance.IntN(len(s.processors)), chance.IntN(stormCards))
		r := simulator.Request{PAN: pan, Amount: 100 + chance.Int64N(5000), Terminal: fmt.Sprintf("S%d%06d", number, n)}
		switch chance.IntN(8) {
		case 0:
			r.Amount = 9051 // declined
		case 1:
			r.Amount = 9000 // approved for half
		case 2, 3:
			r.MTI = messages.FinancialRequest
		}
		under.Go(func() {
			if _, err := duty.Do(ctx, r); err != nil && ctx.Err() == nil {
				s.t.Error(err)
			}
		})
	}
}

// card is one of an endpoint's, with its check digit.
func (s *storming) card(endpoint, number int) card.PAN {
	for digit := range 10 {
		if pan, err := card.ParsePAN(fmt.Sprintf("%s%08d%d", stormBIN(endpoint), number, digit)); err == nil && pan.LuhnValid() {
			return pan
		}
	}
	panic("a number has no check digit")
}

// rage breaks links until ctx ends, and then mends them.
func (s *storming) rage(ctx context.Context) {
	cuts := []simulator.Cut{simulator.CutReset, simulator.CutClosed, simulator.CutTorn}
	var mending sync.WaitGroup
	for host := 0; ; host = s.chance.IntN(3) { // the preferred one twice as often
		next := time.NewTimer(time.Duration(100+s.chance.IntN(500)) * time.Millisecond)
		select {
		case <-ctx.Done():
			next.Stop()
			mending.Wait()
			for _, h := range s.hosts {
				h.Refuse(false)
				h.Mute(false)
			}
			return
		case <-next.C:
		}
		proxy := s.proxies[s.chance.IntN(len(s.proxies))]
		switch s.chance.IntN(9) {
		case 0, 1:
			proxy.CutOne(cuts[s.chance.IntN(len(cuts))])
		case 2:
			proxy.CutAll(cuts[s.chance.IntN(len(cuts))])
		case 3:
			proxy.Stall(simulator.Flow(s.chance.IntN(2)), time.Duration(s.chance.IntN(1000))*time.Millisecond)
		case 4:
			proxy.Slow(100*time.Millisecond, time.Second)
		case 5:
			proxy.HalfOpenOne(simulator.Flow(s.chance.IntN(2)), time.Second)
		case 6:
			s.processors[s.chance.IntN(len(s.processors))].DropLinks()
		case 7:
			s.hosts[host%2].Cut()
		case 8:
			mending.Wait() // one host at a time is away
			h := s.hosts[host%2]
			silent := s.chance.IntN(2) == 0
			mending.Go(func() { away(ctx, h, silent) })
		}
	}
}

// away takes a host away for a while: its connections are cut and new ones refused, or it falls silent.
func away(ctx context.Context, h *simulator.Host, silent bool) {
	lasts := stormRefused
	if silent {
		lasts = stormMuted
		h.Mute(true)
	} else {
		h.Refuse(true)
		h.Cut()
	}
	timer := time.NewTimer(lasts)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
	h.Mute(false)
	h.Refuse(false)
}

// comesToRest waits until no transaction is open, nothing is owed, and each link is in service again, on its preferred host.
func (s *storming) comesToRest(a asking) bool {
	ctx, stop := context.WithTimeout(s.t.Context(), stormPatience)
	defer stop()
	select {
	case <-a.done:
	case <-ctx.Done():
		return false
	}
	for {
		if s.atRest() {
			return true
		}
		timer := time.NewTimer(100 * time.Millisecond)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return false
		}
	}
}

func (s *storming) atRest() bool {
	for _, a := range s.accounts() {
		if a.Owed == "owed" || a.Advice == "owed" || a.Outcome == "" {
			return false
		}
	}
	for _, endpoint := range s.endpoints {
		for _, link := range endpoint.Status() {
			if link.State != conn.InService || link.Host != 0 || link.InFlight > 0 {
				return false
			}
		}
	}
	for _, p := range s.processors {
		if p.Ledger().Counts().DemandsOpen > 0 {
			return false
		}
	}
	return true
}

func (s *storming) accounts() []simulator.Account {
	s.t.Helper()
	return (&station{t: s.t, path: s.path}).accounts()
}

// compare lays the accounts of all parties side by side.
func (s *storming) compare() {
	t := s.t
	ledgers := map[string]simulator.Snapshot{}
	for _, p := range s.processors {
		snapshot := p.Ledger().Snapshot()
		ledgers[p.name] = snapshot
		counts := snapshot.Counts
		t.Logf("%s: %d requests, %d held, %d reversed, %d in part, %d advices, %d links, %d demands of which %d answered, %d refused, effects %v", p.name,
			counts.Requests, counts.Held, counts.Reversed, counts.PartialReversals, counts.Advices, counts.Links, counts.Demands, counts.DemandsAnswered,
			counts.DemandsRefused, counts.Effects)
		if *storm >= stormWhole && (counts.Held == 0 || counts.Reversed == 0 || counts.PartialReversals == 0 || counts.Advices == 0 ||
			counts.Links <= 2*stormLinks || counts.DemandsAnswered == 0 || len(counts.Effects) < 12) {
			t.Errorf("%s has not met what the test is for", p.name)
		}
		if counts.FormatErrors+counts.Unsupported > 0 {
			t.Errorf("%s was sent %d messages of a wrong format, and %d of no type of its own", p.name, counts.FormatErrors, counts.Unsupported)
		}
	}
	if n := ledgers["secured"].Counts.Effects["reject"]; *storm >= stormWhole && n == 0 {
		t.Error("the network returned nothing")
	}
	verdict := simulator.Compare(s.accounts(), simulator.Merge(ledgers), s.book.Snapshot())
	for _, disagreement := range verdict.Disagreements {
		t.Error(disagreement)
	}
	for _, line := range verdict.Transcript() {
		t.Log(line)
	}
	t.Logf("%+v", verdict)
	if verdict.Parked > 0 {
		t.Errorf("%d are parked", verdict.Parked)
	}
	if *storm >= stormWhole && slices.Contains([]int{verdict.Approved, verdict.Declined, verdict.Unknown, verdict.Reversed, verdict.Partial, verdict.Advices}, 0) {
		t.Error("the storm has not met what it is for")
	}
}

// A stormAuthority signs the certificates of the test.
type stormAuthority struct {
	t    *testing.T
	key  *ecdsa.PrivateKey
	cert *x509.Certificate
}

func newStormAuthority(t *testing.T) *stormAuthority {
	t.Helper()
	a := &stormAuthority{t: t}
	a.cert, a.key = a.sign(&x509.Certificate{IsCA: true, KeyUsage: x509.KeyUsageCertSign, Subject: pkix.Name{CommonName: "authority"}})
	return a
}

func (a *stormAuthority) sign(form *x509.Certificate) (*x509.Certificate, *ecdsa.PrivateKey) {
	a.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), crand.Reader)
	form.SerialNumber, form.BasicConstraintsValid = big.NewInt(time.Now().UnixNano()), true
	form.NotBefore, form.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
	parent, signer := a.cert, a.key
	if parent == nil {
		parent, signer = form, key
	}
	if err != nil {
		a.t.Fatal(err)
	}
	der, err := x509.CreateCertificate(crand.Reader, form, parent, &key.PublicKey, signer)
	if err != nil {
		a.t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		a.t.Fatal(errors.Join(err))
	}
	return cert, key
}

// party is one that shows a certificate of its name, and wants the other's.
func (a *stormAuthority) party(name string) *tls.Config {
	a.t.Helper()
	cert, key := a.sign(&x509.Certificate{DNSNames: []string{name}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}})
	pool := x509.NewCertPool()
	pool.AddCert(a.cert)
	return &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: pool, ClientCAs: pool, ClientAuth: tls.RequireAndVerifyClientCert,
		Certificates: []tls.Certificate{{Certificate: [][]byte{cert.Raw}, PrivateKey: key}}}
}
