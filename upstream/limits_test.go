package upstream_test

import (
	"context"
	"crypto/tls"
	"math"
	"net"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"acquirerd/acquirer"
	"acquirerd/messages"
	"acquirerd/simulator"
	"acquirerd/upstream"
)

// A street is a listener in memory whose connections come from addresses.
type street struct {
	*simulator.PipeListener
	from chan net.Addr
}

func (s *street) Accept() (net.Conn, error) {
	connection, err := s.PipeListener.Accept()
	if err != nil {
		return nil, err
	}
	return addressed{connection, <-s.from}, nil
}

type addressed struct {
	net.Conn
	remote net.Addr
}

func (a addressed) RemoteAddr() net.Addr { return a.remote }

// onStreet opens a door in a bubble, and returns how to come to it from an address.
func onStreet(t *testing.T, change func(*upstream.Config), test func(t *testing.T, h *hall, from func(address string) *caller)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		s := &street{simulator.NewPipeListener(), make(chan net.Addr, 1)}
		h := openAt(t, s, s.Dial, change)
		test(t, h, func(address string) *caller {
			a := netip.MustParseAddr(address)
			s.from <- &net.TCPAddr{IP: a.WithZone("").AsSlice(), Zone: a.Zone(), Port: 1}
			return h.connect()
		})
		if err := h.close(); err != nil {
			t.Error(err)
		}
	})
}

func prefixes(texts ...string) (p []netip.Prefix) {
	for _, text := range texts {
		p = append(p, netip.MustParsePrefix(text))
	}
	return p
}

func TestTheAllowListOfAddresses(t *testing.T) {
	for _, test := range []struct {
		allow   []netip.Prefix
		address string
		served  bool
	}{
		{nil, "203.0.113.9", true},
		{prefixes("10.0.0.0/8", "192.0.2.1/32"), "10.1.2.3", true},
		{prefixes("10.0.0.0/8", "192.0.2.1/32"), "192.0.2.1", true},
		{prefixes("10.0.0.0/8", "192.0.2.1/32"), "192.0.2.2", false},
		{prefixes("10.0.0.0/8"), "::ffff:10.1.2.3", true},
		{prefixes("10.0.0.0/8"), "::ffff:192.0.2.1", false},
		{prefixes("::ffff:10.0.0.0/104"), "10.1.2.3", true},
		{prefixes("::ffff:10.0.0.0/104"), "11.1.2.3", false},
		{prefixes("2001:db8::/32"), "2001:db8::1", true},
		{prefixes("2001:db8::/32"), "2001:db9::1", false},
		{prefixes("::/0"), "10.1.2.3", false},
		{prefixes("fe80::/10"), "fe80::1%eth0", true},
	} {
		onStreet(t, func(cfg *upstream.Config) { cfg.Allow = test.allow }, func(t *testing.T, h *hall, from func(string) *caller) {
			c := from(test.address)
			if test.served && (!c.served(1) || h.refused("address") != 0) {
				t.Errorf("%s is not served, with %v", test.address, test.allow)
			}
			if !test.served && (!c.ended() || h.refused("address") != 1 || !strings.Contains(h.log.String(), "reason=address")) {
				t.Errorf("%s is served, with %v", test.address, test.allow)
			}
			_ = c.Close()
		})
	}
}

// A stranger costs neither a place nor a handshake, and what has no address is a stranger.
func TestTheAddressIsCheckedFirst(t *testing.T) {
	ca := newAuthority(t)
	onStreet(t, func(cfg *upstream.Config) {
		cfg.Allow, cfg.TLS, cfg.Connections = prefixes("10.0.0.0/8"), ca.door(t), 1
	}, func(t *testing.T, h *hall, from func(string) *caller) {
		c := h.caller(tls.Client(from("10.0.0.1").Conn, ca.client(t, named("pos"))))
		if !c.served(1) {
			t.Error("not served")
		}
		started := time.Now()
		if stranger := from("192.0.2.1"); !stranger.ended() || time.Since(started) > 0 {
			t.Error("a stranger may stay")
		}
		if h.refused("address") != 1 || h.refused("too_many") != 0 || h.refused("tls") != 0 {
			t.Error("it is not counted by its address")
		}
		_ = c.Close()
	})
	inHall(t, func(cfg *upstream.Config) { cfg.Allow = prefixes("0.0.0.0/0", "::/0") }, func(t *testing.T, h *hall) {
		if c := h.connect(); !c.ended() || h.refused("address") != 1 {
			t.Error("a connection without an address is served")
		}
	})
}

func settling(stan int, mti messages.MTI) *messages.Message {
	m := request(stan)
	m.MTI = mti
	if mti.Class() == messages.Reversal {
		m.Set(messages.OriginalData, "010000000111231200000000000000000000000000")
	}
	return m
}

// code sends a message and returns the response code of the answer to it.
func (c *caller) code(m *messages.Message) string {
	c.h.t.Helper()
	c.send(m)
	got := c.receive()
	if got.Get(messages.STAN) != m.Get(messages.STAN) {
		c.h.t.Errorf("got the answer to %s, want %s", got.Get(messages.STAN), m.Get(messages.STAN))
	}
	return got.Get(messages.ResponseCode)
}

func TestTheRateIsOneOfRequestsOverAllConnections(t *testing.T) {
	inHall(t, func(cfg *upstream.Config) { cfg.Rate, cfg.Burst = 2, 3 }, func(t *testing.T, h *hall) {
		a, b := h.connect(), h.connect()
		repeat, purchase := request(3), request(2)
		repeat.MTI, purchase.MTI = "0101", "0200"
		for i, m := range []*messages.Message{request(1), purchase, repeat} {
			if got := []*caller{a, b, a}[i].code(m); got != "00" {
				t.Errorf("request %d of the burst: got %s", i+1, got)
			}
		}
		if a.code(request(4)) != "96" || b.code(request(5)) != "96" || h.told("rate") != 2 || h.told("busy") != 0 {
			t.Error("over the rate, requests are taken")
		}
		// What settles debts is taken, and takes nothing of the rate.
		for stan, mti := range []messages.MTI{"0400", "0401", "0420", "0421", "0120", "0121", "0220", "0221"} {
			if got := a.code(settling(stan, mti)); got != "00" {
				t.Errorf("%s over the rate: got %s", mti, got)
			}
		}
		if got := a.code(management("301", "1123120000", "000099")); got != "00" {
			t.Errorf("an echo over the rate: got %s", got)
		}
		<-time.After(time.Second / 2) // one more request, exactly
		if !b.served(6) || a.code(request(7)) != "96" {
			t.Error("after half a second, the rate is not 2 a second")
		}
		<-time.After(4 * time.Minute) // less than the idle timeout
		for stan := range 3 {
			if !a.served(stan) {
				t.Error("the burst is less than 3")
			}
		}
		if a.code(request(8)) != "96" {
			t.Error("the burst is more than 3")
		}
		if h.told("rate") != 4 || h.told("taken") != 15 || h.told("silent") != 0 {
			t.Errorf("counted %v over the rate, %v taken", h.told("rate"), h.told("taken"))
		}
		if !strings.Contains(h.log.String(), "reason=rate") {
			t.Error("the log does not say why")
		}
		_, _ = a.Close(), b.Close()
	})
}

func TestTheBurstIsASecondsWorthUnlessItIsSaid(t *testing.T) {
	for rate, burst := range map[float64]int{0.1: 1, 2.5: 3, 4: 4} {
		inHall(t, func(cfg *upstream.Config) { cfg.Rate = rate }, func(t *testing.T, h *hall) {
			c := h.connect()
			for stan := range burst {
				if !c.served(stan) {
					t.Errorf("rate %v: request %d is refused", rate, stan+1)
				}
			}
			if c.code(request(99)) != "96" {
				t.Errorf("rate %v: the burst is more than %d", rate, burst)
			}
			_ = c.Close()
		})
	}
}

// Over the rate, too, what may have been approved is not refused, and what finds no room takes nothing of the rate.
func TestTheRateAndTheOtherLimits(t *testing.T) {
	inHall(t, func(cfg *upstream.Config) { cfg.Rate, cfg.Burst, cfg.InFlight = 1, 2, 1 }, func(t *testing.T, h *hall) {
		release := make(chan struct{})
		h.desk.authorize = func(ctx context.Context, req acquirer.Request) (acquirer.Result, error) {
			<-release
			return approve(ctx, req)
		}
		h.desk.known = h.codec.Identity(request(7))
		c := h.connect()
		c.send(request(1))
		synctest.Wait()
		for stan := 2; stan < 5; stan++ {
			if c.code(request(stan)) != "96" {
				t.Error("over the limit in flight, a request is taken")
			}
		}
		if c.code(settling(5, "0420")) != "96" || c.code(settling(6, "0220")) != "96" {
			t.Error("over the limit in flight, what settles debts is taken")
		}
		close(release)
		c.receive()
		synctest.Wait() // the place is free after the answer is written
		if !c.served(8) {
			t.Error("refusals have taken of the rate")
		}
		synctest.Wait()
		c.send(request(7)) // no answer
		if c.code(request(9)) != "96" {
			t.Error("over the rate, a request is taken")
		}
		if c.code(settling(10, "0420")) != "00" {
			t.Error("a request over the rate keeps its place in flight")
		}
		if h.told("busy") != 5 || h.told("silent") != 1 || h.told("rate") != 1 {
			t.Errorf("counted busy %v, silent %v, rate %v", h.told("busy"), h.told("silent"), h.told("rate"))
		}
		_ = c.Close()
	})
}

func TestSeriesBeginAtZero(t *testing.T) {
	inHall(t, nil, func(t *testing.T, h *hall) {
		for _, reason := range []string{"too_many", "address", "tls", "peer"} {
			if got := h.refused(reason); got != 0 {
				t.Errorf("%s: got %v", reason, got)
			}
		}
		for _, kind := range []string{"taken", "busy", "rate", "silent"} {
			if got := h.told(kind); got != 0 {
				t.Errorf("%s: got %v", kind, got)
			}
		}
	})
}

// faults are configurations that no door takes, neither at first nor later.
func faults(t *testing.T) map[string]func(*upstream.Config) {
	ca := newAuthority(t)
	return map[string]func(*upstream.Config){
		"in_flight":             func(c *upstream.Config) { c.InFlight = 0 },
		"connections":           func(c *upstream.Config) { c.Connections = 0 },
		"budget":                func(c *upstream.Config) { c.Budget = 0 },
		"idle_timeout":          func(c *upstream.Config) { c.IdleTimeout = 0 },
		"frame_timeout":         func(c *upstream.Config) { c.FrameTimeout = -1 },
		"write_timeout":         func(c *upstream.Config) { c.WriteTimeout = 0 },
		"handshake_timeout":     func(c *upstream.Config) { c.HandshakeTimeout = -1 },
		"rate: must":            func(c *upstream.Config) { c.Rate = -1 },
		"rate: must be between": func(c *upstream.Config) { c.Rate = math.NaN() },
		"and 1000000":           func(c *upstream.Config) { c.Rate = math.Inf(1) },
		"burst: must":           func(c *upstream.Config) { c.Rate, c.Burst = 1, -1 },
		"burst: without":        func(c *upstream.Config) { c.Burst = 1 },
		"allow[1]":              func(c *upstream.Config) { c.Allow = append(prefixes("10.0.0.0/8"), netip.Prefix{}) },
		"allow[0]":              func(c *upstream.Config) { c.Allow = prefixes("::ffff:0.0.0.0/80") },
		"peers: without":        func(c *upstream.Config) { c.Peers = []string{"pos"} },
		"peers: a name":         func(c *upstream.Config) { c.TLS, c.Peers = ca.door(t), []string{"pos", ""} },
		"tls: no certificate": func(c *upstream.Config) {
			c.TLS = ca.door(t)
			c.TLS.Certificates = nil
		},
		"tls: no CA": func(c *upstream.Config) {
			c.TLS = ca.door(t)
			c.TLS.ClientCAs = nil
		},
		"tls: at least TLS 1.2": func(c *upstream.Config) {
			c.TLS = ca.door(t)
			c.TLS.MaxVersion = tls.VersionTLS11
		},
	}
}
