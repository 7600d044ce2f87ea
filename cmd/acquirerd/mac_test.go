package main

import (
	"context"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	"acquirerd/card"
	"acquirerd/hsm"
	"acquirerd/hsm/hsmtest"
	"acquirerd/messages"
	"acquirerd/simulator"
)

// A macSite is a site whose two sides have MACs, each its own: X9.19 of 4 bytes with the upstream, CMAC of AES with the processor, there also on the
// dialogue of its links.
type macSite struct {
	*site
	upstreamCodec, processorCodec *messages.Codec
	upstreamKey, processorKey     *simulator.MACKey
}

func newMACSite(t *testing.T) *macSite {
	t.Helper()
	s := &macSite{site: newSite(t)}
	upstream := dialectFile(t, "iso87-binary", "answers: {", "mac: { place: last, length: 4, padding: 2 }\nanswers: { mac_incorrect: \"97\",")
	processor := dialectFile(t, "iso87-ascii", "\nadvices:", "\nmac: { place: last, mtis: [\"0100\", \"0110\", \"0400\", \"0410\", \"0420\", \"0430\", \"0800\", \"0810\"] }\nadvices:")
	s.upstreamCodec, s.processorCodec = codecOf(t, upstream), codecOf(t, processor)
	retail, aes := hsmtest.ZoneKey("MACs of the upstream", 16), hsmtest.SealValue[:16]
	var err error
	if s.upstreamKey, err = simulator.NewMACKey(simulator.MACX919, 2, retail); err != nil {
		t.Fatal(err)
	}
	if s.processorKey, err = simulator.NewMACKey(simulator.MACCMACAES, 0, aes); err != nil {
		t.Fatal(err)
	}
	s.token.Put("mac-pos", hsm.MACX919, retail)
	s.token.PutAES("mac-proc", hsm.MACCMAC, aes)
	s.change("dialect: iso87-binary", "mac_key: mac-pos, dialect: "+upstream)
	s.change("dialect: iso87-ascii", "mac_key: mac-proc, dialect: "+processor)
	s.change("operations: {", "reversals: { retry_min: 50ms, retry_max: 1s }\noperations: {")
	return s
}

// processor runs a simulated one and has the site's links lead to it.
func (s *macSite) processor(rules ...string) *simulator.Processor {
	s.t.Helper()
	var list []simulator.Rule
	for _, text := range rules {
		rule, err := simulator.ParseRule(text)
		if err != nil {
			s.t.Fatal(err)
		}
		list = append(list, rule)
	}
	p, err := simulator.NewProcessor(simulator.ProcessorConfig{Codec: s.processorCodec, MAC: s.processorKey, Rules: list})
	if err != nil {
		s.t.Fatal(err)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		s.t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- p.Serve(ctx, listener) }()
	s.t.Cleanup(func() { stop(); <-ended })
	s.links = fmt.Sprintf("%q, %q", listener.Addr(), listener.Addr())
	return p
}

// upstream runs a simulated one.
func (s *macSite) upstream(daemon *running) *simulator.Upstream {
	s.t.Helper()
	u, err := simulator.NewUpstream(simulator.UpstreamConfig{Codec: s.upstreamCodec, MAC: s.upstreamKey, Address: daemon.door, ReplyTimeout: patience})
	if err != nil {
		s.t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- u.Run(ctx) }()
	s.t.Cleanup(func() { stop(); <-ended })
	s.ready(u)
	return u
}

func (s *macSite) ready(u *simulator.Upstream) {
	s.t.Helper()
	ctx, stop := context.WithTimeout(context.Background(), patience)
	defer stop()
	if err := u.Ready(ctx); err != nil {
		s.t.Fatal(err)
	}
}

func (s *macSite) ask(u *simulator.Upstream, r simulator.Request) simulator.Entry {
	s.t.Helper()
	var err error
	if r.PAN, err = card.ParsePAN(testPAN); err != nil {
		s.t.Fatal(err)
	}
	entry, err := u.Do(context.Background(), r)
	if err != nil {
		s.t.Fatal(err)
	}
	return entry
}

// await waits until the ledger is as it should be.
func (s *macSite) await(p *simulator.Processor, what string, is func(simulator.Counts) bool) {
	s.t.Helper()
	for over := time.After(patience); ; {
		counts := p.Ledger().Snapshot().Counts
		if is(counts) {
			return
		}
		select {
		case <-time.After(5 * time.Millisecond):
		case <-over:
			s.t.Fatalf("%s: the ledger has %+v", what, counts)
		}
	}
}

func TestADaemonWithMACsOnBothSides(t *testing.T) {
	site := newMACSite(t)
	p := site.processor("amount=777 bad-mac", "amount=778 no-mac", "amount=779 decline=51 bad-mac", "mti=04 amount=777 bad-mac attempt=1")
	site.create()
	daemon := site.start()
	daemon.inService(2)
	u := site.upstream(daemon)

	for amount := range int64(20) {
		if got := site.ask(u, simulator.Request{Amount: 1000 + amount}); got.ResponseCode != "00" || got.Outcome != simulator.Answered {
			t.Fatalf("got %+v", got)
		}
	}
	// Whatever an answer says, without its MAC it says nothing.
	for _, amount := range []int64{777, 778, 779} {
		if got := site.ask(u, simulator.Request{Amount: amount}); got.ResponseCode != "91" {
			t.Errorf("%d: got %+v", amount, got)
		}
	}
	site.await(p, "reversals", func(c simulator.Counts) bool { return c.Reversed == 2 && c.Held == 20 })

	// A message of the upstream with a wrong one goes nowhere, and stands in the way of nothing.
	// Its refusal is for people: it has no MAC, so that it is not believed.
	wrong := site.ask(u, simulator.Request{Amount: 2000, WrongMAC: true})
	for _, got := range []simulator.Entry{wrong, site.ask(u, simulator.Request{Amount: 2001, NoMAC: true})} {
		if got.Outcome != simulator.Unproven || got.UnprovenCode != "97" || got.ResponseCode != "" {
			t.Errorf("got %+v", got)
		}
	}
	if got := site.ask(u, simulator.Request{Amount: 2000}.Again(wrong)); got.ResponseCode != "00" {
		t.Errorf("the same with its MAC: got %+v", got)
	}
	counts := p.Ledger().Snapshot().Counts
	if counts.WrongMACs != 0 || counts.Held != 21 || u.Book().Snapshot().Counts.WrongMACs != 2 {
		t.Errorf("the ledger has %+v, the book %+v", counts, u.Book().Snapshot().Counts)
	}
	if _, page := daemon.get("/metrics"); !strings.Contains(page, `acquirerd_mac_failures_total{name="pos-switch",side="upstream"} 2`) ||
		!strings.Contains(page, `acquirerd_mac_failures_total{name="processor-a",side="endpoint"} 4`) {
		t.Errorf("the metrics say %s", grep(page, "mac_failures"))
	}
	daemon.stop()
	if code := daemon.exit(); code != 0 {
		t.Errorf("exit %d", code)
	}
}

func grep(text, what string) (lines string) {
	for line := range strings.Lines(text) {
		if strings.Contains(line, what) {
			lines += line
		}
	}
	return lines
}

func TestLinksWithWrongMACsAreSuspendedUntilTheyAreResumed(t *testing.T) {
	site := newMACSite(t)
	p := site.processor("amount=777 bad-mac")
	site.change("mac_key: mac-proc", "mac_failures: 2, mac_suspension: 0s, mac_key: mac-proc")
	site.create()
	daemon := site.start()
	daemon.inService(2)
	u := site.upstream(daemon)
	for range 3 { // each link in its turn
		site.ask(u, simulator.Request{Amount: 777})
	}
	daemon.log.await(t, "link suspended: messages with a wrong MAC", nil)
	suspended := func(list []linkStatus) (n int) {
		for _, l := range list {
			if l.Suspended && l.State == "down" {
				n++
			}
		}
		return n
	}
	daemon.awaitLinks("suspended", func(list []linkStatus) bool { return suspended(list) == 1 })
	site.ask(u, simulator.Request{Amount: 777})
	list := daemon.awaitLinks("suspended", func(list []linkStatus) bool { return suspended(list) == 2 })
	if list[0].LastError != "mac" || list[1].LastError != "mac" {
		t.Errorf("got %+v", list)
	}
	if got := site.ask(u, simulator.Request{Amount: 1000}); got.ResponseCode != "91" {
		t.Errorf("without a link: got %+v", got)
	}
	if got := command(t, "link", "list", "--config", daemon.config); strings.Count(got.out, "suspended") != 2 {
		t.Errorf("got %s", got.out)
	}
	if code, page := daemon.get("/readyz"); code == 200 || strings.Contains(page, "held") {
		t.Errorf("readiness is %d: %s", code, page)
	}
	if got := command(t, "link", "resume", "processor-a", "--config", daemon.config); got.code != 0 {
		t.Fatalf("got %+v", got)
	}
	daemon.awaitLinks("resumed", func(list []linkStatus) bool { return inService(list[0]) && inService(list[1]) })
	if got := site.ask(u, simulator.Request{Amount: 1001}); got.ResponseCode != "00" {
		t.Errorf("got %+v", got)
	}
	site.await(p, "reversals", func(c simulator.Counts) bool { return c.Reversed == 4 && c.Held == 1 })
	daemon.stop()
	if code := daemon.exit(); code != 0 {
		t.Errorf("exit %d", code)
	}
}
