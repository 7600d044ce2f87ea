package upstream_test

import (
	"context"
	"crypto/tls"
	"io"
	"log/slog"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"acquirerd/acquirer"
	"acquirerd/hsm"
	"acquirerd/messages"
	"acquirerd/specs"
	"acquirerd/upstream"
)

// reconfigure changes the configuration that the door began with.
func (h *hall) reconfigure(change func(*upstream.Config)) {
	h.t.Helper()
	cfg := h.cfg
	change(&cfg)
	// As a reload has it: everything is read again.
	cfg.Upstream = &acquirer.Upstream{Name: cfg.Upstream.Name, PINKey: cfg.Upstream.PINKey, Codec: codecOf(h.t)}
	if err := h.door.Reconfigure(cfg); err != nil {
		h.t.Fatal(err)
	}
}

// held makes the desk wait, and returns what lets n requests go.
func (h *hall) held() func(n int) {
	turn := make(chan struct{}, 100)
	h.desk.authorize = func(ctx context.Context, req acquirer.Request) (acquirer.Result, error) {
		<-turn
		return approve(ctx, req)
	}
	return func(n int) {
		for range n {
			turn <- struct{}{}
		}
	}
}

func TestAFaultyConfigurationIsRefusedAndChangesNothing(t *testing.T) {
	for name, change := range faults(t) {
		t.Run(name, func(t *testing.T) {
			inHall(t, func(cfg *upstream.Config) { cfg.InFlight, cfg.Connections = 1, 1 }, func(t *testing.T, h *hall) {
				c := h.connect()
				cfg := h.cfg
				cfg.InFlight, cfg.Connections = 5, 5
				change(&cfg)
				if _, err := upstream.New(cfg, h.desk, slog.New(slog.DiscardHandler), prometheus.NewRegistry()); err == nil || !strings.Contains(err.Error(), name) {
					t.Errorf("New: got %v", err)
				}
				if err := h.door.Reconfigure(cfg); err == nil || !strings.Contains(err.Error(), name) {
					t.Errorf("Reconfigure: got %v", err)
				}
				if second := h.connect(); !second.ended() {
					t.Error("the number of connections has changed")
				}
				release := h.held()
				c.send(request(1))
				synctest.Wait()
				if c.code(request(2)) != "96" {
					t.Error("the number in flight has changed")
				}
				release(1)
				c.receive()
				_ = c.Close()
			})
		})
	}
}

func TestTheUpstreamItselfCannotChange(t *testing.T) {
	inHall(t, nil, func(t *testing.T, h *hall) {
		dialect := func(change func(*specs.Dialect)) *messages.Codec {
			d := *codecOf(t).Dialect()
			change(&d)
			return messages.NewCodec(&d)
		}
		other, err := specs.Load("iso87-ascii")
		if err != nil {
			t.Fatal(err)
		}
		for fault, u := range map[string]acquirer.Upstream{
			"name: ":                {Name: "web", Codec: h.codec},
			"pin_key: ":             {Name: "pos", PINKey: "zpk-2", Codec: h.codec},
			"bdk_key: ":             {Name: "pos", BDKKey: "bdk-2", Codec: h.codec},
			"working_key: ":         {Name: "pos", WorkingKey: hsm.AES128, Codec: h.codec},
			"ksn_regression: ":      {Name: "pos", RefuseRegression: true, Codec: h.codec},
			"pin_format: ":          {Name: "pos", PINFormat: hsm.ISO4, Codec: h.codec},
			"iso87-ascii":           {Name: "pos", Codec: messages.NewCodec(other)},
			"version-2":             {Name: "pos", Codec: dialect(func(d *specs.Dialect) { d.Version = "version-2" })},
			"dialect: iso87-binary": {Name: "pos", Codec: dialect(func(d *specs.Dialect) { d.Answers.Busy = "91" })},
		} {
			cfg := h.cfg
			cfg.Upstream = &u
			if err := h.door.Reconfigure(cfg); err == nil || !strings.Contains(err.Error(), fault) || !strings.Contains(err.Error(), "while serving") {
				t.Errorf("%q: got %v", fault, err)
			}
		}
		h.reconfigure(func(*upstream.Config) {}) // read again, and the same
	})
	// A dialect that says the same is the same, whichever it is.
	for _, name := range specs.Names() {
		a, errA := specs.Load(name)
		b, errB := specs.Load(name)
		if errA != nil || errB != nil {
			t.Fatal(errA, errB)
		}
		door, err := upstream.New(upstream.Config{Upstream: &acquirer.Upstream{Name: "pos", Codec: messages.NewCodec(a)}, InFlight: 1, Connections: 1,
			Budget: 1, IdleTimeout: 1, FrameTimeout: 1, WriteTimeout: 1}, &desk{}, slog.New(slog.DiscardHandler), prometheus.NewRegistry())
		if err != nil {
			t.Fatal(err)
		}
		if err := door.Reconfigure(upstream.Config{Upstream: &acquirer.Upstream{Name: "pos", Codec: messages.NewCodec(b)}, InFlight: 1, Connections: 1,
			Budget: 1, IdleTimeout: 1, FrameTimeout: 1, WriteTimeout: 1}); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestTheLimitInFlightChangesWhilePlacesAreTaken(t *testing.T) {
	inHall(t, func(cfg *upstream.Config) { cfg.InFlight = 3 }, func(t *testing.T, h *hall) {
		release := h.held()
		c := h.connect()
		for stan := range 3 {
			c.send(request(stan))
		}
		synctest.Wait()
		h.reconfigure(func(cfg *upstream.Config) { cfg.InFlight = 2 })
		end := func() { // of one request
			t.Helper()
			release(1)
			if got := c.receive(); got.Get(messages.ResponseCode) != "00" {
				t.Errorf("got %v", got)
			}
			synctest.Wait() // until its place is free
		}
		refused := func(stan int, when string) {
			t.Helper()
			if c.code(request(stan)) != "96" {
				t.Errorf("%s, a request is taken", when)
			}
		}
		refused(10, "3 of 2 places taken")
		end()
		refused(11, "2 of 2 places taken")
		end()
		c.send(request(12)) // the second place
		synctest.Wait()
		refused(13, "2 of 2 places taken again")
		h.reconfigure(func(cfg *upstream.Config) { cfg.InFlight = 4 })
		c.send(request(14))
		c.send(request(15))
		synctest.Wait()
		refused(16, "4 of 4 places taken")
		for range 4 {
			end()
		}
		if h.told("taken") != 6 || h.told("busy") != 4 {
			t.Errorf("counted %v taken, %v busy", h.told("taken"), h.told("busy"))
		}
		_ = c.Close()
	})
}

func TestTheLimitOfConnectionsChangesWhileTheyAreOpen(t *testing.T) {
	inHall(t, func(cfg *upstream.Config) { cfg.Connections = 2 }, func(t *testing.T, h *hall) {
		a, b := h.connect(), h.connect()
		synctest.Wait() // until both have their places
		h.reconfigure(func(cfg *upstream.Config) { cfg.Connections = 1 })
		if !a.served(1) || !b.served(2) {
			t.Error("a connection over the new limit does not stay")
		}
		_ = a.Close()
		synctest.Wait()
		if c := h.connect(); !c.ended() {
			t.Error("a connection is taken where the limit is reached")
		}
		h.reconfigure(func(cfg *upstream.Config) { cfg.Connections = 2 })
		c := h.connect()
		if !c.served(3) {
			t.Error("not served")
		}
		_, _ = b.Close(), c.Close()
	})
}

func TestTimesChangeForOpenConnections(t *testing.T) {
	inHall(t, nil, func(t *testing.T, h *hall) {
		c := h.connect()
		c.served(1)
		h.reconfigure(func(cfg *upstream.Config) {
			cfg.Budget, cfg.IdleTimeout, cfg.FrameTimeout = time.Second, 2*time.Minute, 3*time.Second
		})
		var budget time.Duration
		h.desk.authorize = func(ctx context.Context, req acquirer.Request) (acquirer.Result, error) {
			deadline, _ := ctx.Deadline()
			budget = time.Until(deadline)
			return approve(ctx, req)
		}
		if !c.served(2) || budget != time.Second {
			t.Errorf("the budget is %v", budget)
		}
		started := time.Now()
		slow := h.connect()
		slow.raw([]byte{0})
		if !slow.ended() || time.Since(started) != 3*time.Second {
			t.Errorf("a slow frame is cut after %v", time.Since(started))
		}
		if !c.ended() || time.Since(started) != 2*time.Minute {
			t.Errorf("a quiet connection is closed after %v", time.Since(started))
		}
	})
}

func TestAReloadGivesNoNewBurst(t *testing.T) {
	inHall(t, func(cfg *upstream.Config) { cfg.Rate, cfg.Burst = 1, 2 }, func(t *testing.T, h *hall) {
		c := h.connect()
		if !c.served(1) || !c.served(2) {
			t.Error("not served")
		}
		h.reconfigure(func(*upstream.Config) {})
		if c.code(request(3)) != "96" {
			t.Error("a reload refills the burst")
		}
		h.reconfigure(func(cfg *upstream.Config) { cfg.Rate, cfg.Burst = 10, 1 })
		if c.code(request(4)) != "96" {
			t.Error("another rate refills the burst")
		}
		<-time.After(time.Second / 10)
		if !c.served(5) || c.code(request(6)) != "96" {
			t.Error("the new rate does not hold")
		}
		<-time.After(time.Minute)
		if !c.served(7) || c.code(request(8)) != "96" {
			t.Error("the new burst does not hold")
		}
		h.reconfigure(func(cfg *upstream.Config) { cfg.Rate, cfg.Burst = 0, 0 })
		for stan := range 20 {
			if !c.served(stan) {
				t.Error("without a rate, a request is refused")
			}
		}
		h.reconfigure(func(cfg *upstream.Config) { cfg.Rate, cfg.Burst = 1, 1 })
		if !c.served(9) || c.code(request(10)) != "96" {
			t.Error("a rate that is new does not hold")
		}
		_ = c.Close()
	})
}

// Who may not come in any more is answered what is in flight, and nothing else is read.
func TestAnAddressThatIsNotAllowedAnyMore(t *testing.T) {
	onStreet(t, nil, func(t *testing.T, h *hall, from func(string) *caller) {
		release := h.held()
		out, in := from("192.0.2.1"), from("10.0.0.1")
		out.send(request(1))
		in.send(request(2))
		synctest.Wait()
		h.reconfigure(func(cfg *upstream.Config) { cfg.Allow = prefixes("10.0.0.0/8") })
		synctest.Wait()
		unread, err := h.codec.EncodeFrame(request(3))
		if err != nil {
			t.Fatal(err)
		}
		go func() { _, _ = out.Write(unread) }()
		synctest.Wait()
		release(10)
		if got := out.receive(); got.Get(messages.STAN) != "000001" || got.Get(messages.ResponseCode) != "00" {
			t.Errorf("got %v", got)
		}
		if !out.ended() || !strings.Contains(h.log.String(), `cause="address not allowed"`) {
			t.Errorf("it stays open: %s", h.log)
		}
		in.receive()
		if !in.served(4) {
			t.Error("an address that is allowed does not stay")
		}
		if again := from("192.0.2.1"); !again.ended() || h.refused("address") != 1 {
			t.Error("it comes in again")
		}
		if h.told("taken") != 3 {
			t.Errorf("%v requests were taken", h.told("taken"))
		}
		_ = in.Close()
	})
}

func TestAPeerThatIsNoneAnyMore(t *testing.T) {
	ca, other := newAuthority(t), newAuthority(t)
	inHall(t, func(cfg *upstream.Config) { cfg.TLS, cfg.Peers = ca.door(t), []string{"a", "b"} }, func(t *testing.T, h *hall) {
		connect := func(name string) *caller { return h.secure(ca.client(t, named(name))) }
		a, b := connect("a"), connect("b")
		if !a.served(1) || !b.served(2) {
			t.Error("not served")
		}
		// Certificates and CAs are looked at when a connection is opened.
		h.reconfigure(func(cfg *upstream.Config) {
			cfg.TLS = other.door(t)
			cfg.Peers = []string{"b", "c"}
		})
		if !a.ended() || !strings.Contains(h.log.String(), "no name of a peer") {
			t.Error("who is no peer any more stays")
		}
		if !b.served(3) {
			t.Error("who is still a peer does not stay")
		}
		c := h.secure(other.client(t, named("c")))
		if !c.served(4) {
			t.Error("the new certificates do not hold")
		}
		h.reconfigure(func(cfg *upstream.Config) { cfg.TLS, cfg.Peers = nil, nil })
		plain := h.connect()
		if !b.served(5) || !c.served(6) || !plain.served(7) {
			t.Error("without TLS, somebody is not served")
		}
		h.reconfigure(func(cfg *upstream.Config) { cfg.TLS, cfg.Peers = ca.door(t), []string{"b", "c"} })
		if !plain.ended() || !strings.Contains(h.log.String(), "TLS demanded") {
			t.Error("a plain connection stays")
		}
		if !b.served(8) || !c.served(9) {
			t.Error("who has shown the name of a peer does not stay")
		}
		_, _, _ = b.Close(), c.Close(), plain.Close()
	})
}

// A handshake that has begun before a change ends by the new names, and at once if its address is not allowed any more.
func TestAChangeDuringAHandshake(t *testing.T) {
	ca := newAuthority(t)
	for reason, change := range map[string]func(*upstream.Config){
		"peer":    func(cfg *upstream.Config) { cfg.Peers = []string{"b"} },
		"address": func(cfg *upstream.Config) { cfg.Allow = prefixes("192.0.2.0/24") },
		"":        func(cfg *upstream.Config) { cfg.Peers = []string{"b", "a"} },
	} {
		onStreet(t, func(cfg *upstream.Config) { cfg.TLS, cfg.Peers = ca.door(t), []string{"a"} },
			func(t *testing.T, h *hall, from func(string) *caller) {
				client := ca.client(t, named("a"))
				certificate, reached, show := client.GetClientCertificate, make(chan struct{}), make(chan struct{})
				client.GetClientCertificate = func(info *tls.CertificateRequestInfo) (*tls.Certificate, error) {
					close(reached)
					<-show
					return certificate(info)
				}
				c := h.caller(tls.Client(from("10.0.0.1").Conn, client))
				served := make(chan bool)
				go func() {
					err := c.Conn.(*tls.Conn).HandshakeContext(t.Context())
					served <- err == nil && c.reads(1)
				}()
				<-reached
				synctest.Wait()
				h.reconfigure(change)
				synctest.Wait()
				close(show)
				if got := <-served; got != (reason == "") {
					t.Errorf("%q: served: %v", reason, got)
				}
				synctest.Wait()
				if reason != "" && h.refused(reason) != 1 || h.refused("tls") != 0 {
					t.Errorf("%q: not counted: %s", reason, h.log)
				}
				_ = c.Close()
			})
	}
}

// reads sends a request and reports whether anything comes back.
func (c *caller) reads(stan int) bool {
	frame, err := c.h.codec.EncodeFrame(request(stan))
	if err != nil {
		return false
	}
	if _, err := c.Write(frame); err != nil {
		return false
	}
	_, err = c.reader.ReadByte()
	return err == nil
}

// Everything at once, for the race detector. Each request is answered, unless its connection is barred.
func TestChangesUnderLoad(t *testing.T) {
	ca := newAuthority(t)
	door := ca.door(t)
	h := openTCP(t, func(cfg *upstream.Config) { cfg.TLS, cfg.InFlight, cfg.Connections = door, 16, 64 })
	var approved, refused atomic.Int64
	var over atomic.Bool
	var callers sync.WaitGroup
	for i := range 4 {
		client := ca.client(t, named([]string{"pos", "pos", "pos", "web"}[i]))
		callers.Go(func() {
			for !over.Load() {
				raw, err := h.dial(context.Background())
				if err != nil {
					t.Error(err)
					return
				}
				c := h.caller(tls.Client(raw, client))
				for stan := range 10 {
					frame, _ := h.codec.EncodeFrame(request(stan))
					if _, err := c.Write(frame); err != nil {
						break
					}
					body, err := h.codec.ReadFrame(c.reader)
					if err != nil {
						break
					}
					m, err := h.codec.Decode(body)
					if err != nil {
						t.Error(err)
						break
					}
					switch m.Get(messages.ResponseCode) {
					case "00":
						approved.Add(1)
					case "96":
						refused.Add(1)
					default:
						t.Errorf("got %v", m)
					}
				}
				_ = c.Close()
			}
		})
	}
	for i := range 80 {
		h.reconfigure(func(cfg *upstream.Config) {
			cfg.InFlight, cfg.Connections = 1+i%16, 4+i%60
			cfg.Rate = float64(i%3) * 5000
			cfg.Allow = prefixes("127.0.0.0/8", "::1/128")
			if i%8 == 0 {
				cfg.Peers = []string{"pos", "web"}
			}
		})
		before := approved.Load() + refused.Load()
		for approved.Load()+refused.Load() == before && !t.Failed() { // so that the changes are spread over the load
			if c, err := h.dial(context.Background()); err == nil {
				_, _ = io.Copy(io.Discard, deadlined{c})
				_ = c.Close()
			}
		}
	}
	over.Store(true)
	callers.Wait()
	if err := h.close(); err != nil {
		t.Error(err)
	}
	if n := int64(len(h.desk.keys)); n != approved.Load() || n == 0 || h.told("taken") != float64(n) {
		t.Errorf("%d went to the switch, %d were approved, %v counted", n, approved.Load(), h.told("taken"))
	}
}

// deadlined does not wait for what is not there.
type deadlined struct{ net.Conn }

func (d deadlined) Read(p []byte) (int, error) {
	_ = d.SetReadDeadline(time.Now())
	return d.Conn.Read(p)
}
