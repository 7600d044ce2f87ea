package conn

import (
	"context"
	"crypto/tls"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// upheave does what operators, reloads and networks do to an endpoint, one thing after the other at random, until ctx ends.
func upheave(ctx context.Context, r *rig, random *rand.Rand, pause func() <-chan time.Time, links [][]Link, network func(random *rand.Rand)) {
	for ctx.Err() == nil {
		select {
		case <-ctx.Done():
			return
		case <-pause():
		}
		number := random.IntN(len(r.config().Links)+1) - 1
		var err error
		switch random.IntN(8) {
		case 0:
			err = r.Drain(max(number, 0))
		case 1, 2:
			err = r.Resume(-1)
		case 3:
			_ = r.Cut(number) // it may have no connection
		case 4:
			err = r.reconfigure(func(c *Config) {
				c.Links = links[random.IntN(len(links))]
				c.EchoInterval = time.Duration(1+random.IntN(20)) * r.config().EchoTimeout
			})
		default:
			network(random)
		}
		if err != nil {
			r.t.Error(err)
		}
	}
}

// settled resumes everything, and checks that all links come into service and that there is no connection beside theirs.
func (r *rig) settled(wait func()) {
	r.t.Helper()
	if err := r.Resume(-1); err != nil {
		r.t.Error(err)
	}
	wait()
	r.Endpoint.mu.Lock()
	defer r.Endpoint.mu.Unlock()
	for _, l := range r.links {
		if state, _ := l.state(); state != InService || len(l.sessions) != 1 || l.session.inFlight != 0 {
			r.t.Errorf("link %d: %s, %d connections", l.number.Load(), state, len(l.sessions))
		}
	}
}

func TestNothingIsLostInAnUpheaval(t *testing.T) {
	for seed := range uint64(6) {
		t.Run(fmt.Sprintf("seed %d", seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h := newHost(t, []string{"iso87-ascii", "iso87-binary"}[seed%2])
				h.codec.Dialect().Match.SameLink = seed%3 == 2
				tm := &troublemaker{h: h, random: rand.New(rand.NewPCG(seed, 1)), unit: time.Second}
				h.handle = tm.handle
				ways := &roads{h: h, closed: map[string]bool{}, lost: map[string]bool{}}
				d := &doorstep{h: h}
				cfg := config(h)
				listening := Link{Listen: "here", Allow: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}}
				ab, ba, c := Link{Hosts: []string{"a", "b"}}, Link{Hosts: []string{"b", "a"}}, Link{Hosts: []string{"c"}}
				links := [][]Link{{ab, ba, listening}, {listening, ab, c}, {ba, ab, ab}, {c, listening, listening, ba}}
				cfg.Links, cfg.Dial, cfg.Listen = links[0], ways.dial, d.listen
				cfg.BackoffMin, cfg.BackoffMax, cfg.InFlight, cfg.LinkInFlight = 100*time.Millisecond, time.Second, 150, 60
				cfg.FailBack = 5 * time.Second
				r := start(t, cfg, h)
				synctest.Wait()
				ctx, stop := context.WithCancel(context.Background())
				var doing sync.WaitGroup
				doing.Go(func() {
					random := rand.New(rand.NewPCG(seed, 2))
					upheave(ctx, r, random, func() <-chan time.Time { return time.After(time.Duration(random.IntN(6000)) * time.Millisecond) }, links,
						func(random *rand.Rand) {
							address := []string{"a", "b", "c"}[random.IntN(3)]
							ways.set([]map[string]bool{ways.closed, ways.lost}[random.IntN(2)], address, random.IntN(2) == 0)
						})
				})
				doing.Go(func() { // the processor that dials
					for ctx.Err() == nil {
						<-time.After(2 * time.Second)
						d.tryDial("192.0.2.1:1000")
					}
				})
				storm(t, r, h, 200, 10, tm.unit)
				stop()
				doing.Wait()
				for _, address := range []string{"a", "b", "c"} {
					ways.set(ways.closed, address, false)
					ways.set(ways.lost, address, false)
				}
				h.script(func(h *host) { h.handle = nil })
				if err := r.reconfigure(func(c *Config) { c.Links = []Link{ab, ba, c.Links[0]}; c.Links[2] = Link{Hosts: []string{"c"}} }); err != nil {
					t.Error(err)
				}
				r.settled(func() { pass(11 * cfg.ReplyTimeout) })
				for _, s := range r.Status() {
					if s.Host != 0 {
						t.Errorf("link %d is on %s", s.Number, s.Address)
					}
				}
				r.Endpoint.mu.Lock()
				r.pending.forget(time.Now())
				for key, x := range r.pending.exchanges {
					if !x.management {
						t.Errorf("%s is remembered for ever in state %d", key, x.state)
					}
				}
				if n := r.pending.abandoned; n != 0 {
					t.Errorf("%d abandoned", n)
				}
				r.Endpoint.mu.Unlock()
				r.end()
			})
		})
	}
}

// tryDial dials whichever listener there is.
func (d *doorstep) tryDial(peer string) {
	d.mu.Lock()
	var p *port
	if len(d.ports) > 0 {
		p = d.ports[len(d.ports)-1]
	}
	d.mu.Unlock()
	if p == nil {
		return
	}
	ours, theirs := net.Pipe()
	d.h.serve(ours, peer)
	select {
	case p.arrive <- from{newLingering(theirs, d.h), peer}:
	case <-p.closed:
		_ = ours.Close()
	}
}

func TestNothingIsLostInAnUpheavalOverTLS(t *testing.T) {
	h := newHost(t, "iso87-ascii")
	a := newAuthority(t)
	server := &tls.Config{Certificates: []tls.Certificate{a.issue("bank.example", time.Hour)}}
	tm := &troublemaker{h: h, random: rand.New(rand.NewPCG(5, 1)), unit: 10 * time.Millisecond}
	h.handle = tm.handle
	one, two := h.listenTLS(server), h.listenTLS(server)
	cfg := tcpConfig(h)
	// The machine may be slow; the write deadline is not what is tested here.
	cfg.ReplyTimeout, cfg.WriteTimeout, cfg.FailBack = 200*time.Millisecond, 100*time.Millisecond, 100*time.Millisecond
	ab := Link{Hosts: []string{one, two}, TLS: &tls.Config{RootCAs: a.pool, ServerName: "bank.example"}}
	ba := Link{Hosts: []string{two, one}, TLS: ab.TLS}
	links := [][]Link{{ab, ba}, {ba, ab, ba}, {ba}, {ab, ab}}
	cfg.Links = links[0]
	r := start(t, cfg, h)
	untilInService(t, r)
	ctx, stop := context.WithCancel(context.Background())
	var doing sync.WaitGroup
	doing.Go(func() {
		random := rand.New(rand.NewPCG(5, 2))
		upheave(ctx, r, random, func() <-chan time.Time { return time.After(time.Duration(random.IntN(60)) * time.Millisecond) }, links,
			func(random *rand.Rand) {
				open := h.open()
				_ = open[random.IntN(len(open))].Close()
			})
	})
	storm(t, r, h, 100, 5, tm.unit)
	stop()
	doing.Wait()
	r.end()
}

// listenTLS serves TLS on a free port and returns its address.
func (h *host) listenTLS(server *tls.Config) string {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		h.t.Fatal(err)
	}
	h.running.Go(func() {
		for {
			c, err := listener.Accept()
			if err != nil {
				return
			}
			h.serve(tls.Server(c, server), listener.Addr().String())
		}
	})
	h.running.Go(func() {
		<-h.stopped
		_ = listener.Close()
	})
	return listener.Addr().String()
}
