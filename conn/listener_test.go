package conn

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"slices"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"acquirerd/messages"
)

// A port is a listener in memory.
type port struct {
	address string
	arrive  chan net.Conn
	short   chan error // what accept fails by
	once    sync.Once
	closed  chan struct{}
}

func newPort(address string) *port {
	return &port{address: address, arrive: make(chan net.Conn), short: make(chan error, 16), closed: make(chan struct{})}
}

func (p *port) Accept() (net.Conn, error) {
	select {
	case c := <-p.arrive:
		return c, nil
	case err := <-p.short:
		return nil, err
	case <-p.closed:
		return nil, net.ErrClosed
	}
}

func (p *port) Close() error   { p.once.Do(func() { close(p.closed) }); return nil }
func (p *port) Addr() net.Addr { return name(p.address) }

type name string

func (n name) Network() string { return "tcp" }
func (n name) String() string  { return string(n) }

// from is a connection with an address of its other side.
type from struct {
	lingering
	address string
}

func (f from) RemoteAddr() net.Addr { return name(f.address) }

// A doorstep is where a host dials an endpoint.
type doorstep struct {
	h     *host
	mu    sync.Mutex
	ports []*port
	fail  int // so many times
}

func (d *doorstep) listen(_ context.Context, address string) (net.Listener, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.fail > 0 {
		d.fail--
		return nil, errors.New("address in use")
	}
	p := newPort(address + ":9")
	d.ports = append(d.ports, p)
	return p, nil
}

// dial has the host dial the endpoint from an address, and returns its side.
func (d *doorstep) dial(peer string) *hostLink {
	d.h.t.Helper()
	d.mu.Lock()
	p := d.ports[len(d.ports)-1]
	d.mu.Unlock()
	ours, theirs := net.Pipe()
	l := d.h.serve(ours, peer)
	select {
	case p.arrive <- from{newLingering(theirs, d.h), peer}:
	case <-p.closed:
		d.h.t.Error("nobody listens")
		_ = ours.Close()
	}
	synctest.Wait()
	return l
}

// isClosed reports whether the endpoint has closed the connection.
func (l *hostLink) isClosed() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.over
}

func onDoorstep(t *testing.T, links int, change func(*Config, *doorstep), test func(r *rig, h *host, d *doorstep)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t, "iso87-ascii")
		d := &doorstep{h: h}
		cfg := config(h)
		cfg.Links, cfg.Listen = nil, d.listen
		for range links {
			cfg.Links = append(cfg.Links, Link{Listen: "here", Allow: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}})
		}
		if change != nil {
			change(&cfg, d)
		}
		r := start(t, cfg, h)
		defer r.end()
		synctest.Wait()
		test(r, h, d)
	})
}

func TestAProcessorThatDialsUsHasALink(t *testing.T) {
	onDoorstep(t, 2, nil, func(r *rig, h *host, d *doorstep) {
		r.wantStates(Down, Down)
		if got := r.Status()[0]; got.Mode != "listen" || got.Address != "here:9" || got.Peer != "" || len(d.ports) != 1 {
			t.Errorf("got %+v, %d listeners", got, len(d.ports))
		}
		l := d.dial("192.0.2.1:1000")
		if got := r.states(); !slices.Contains(got, InService) || !slices.Contains(got, Down) {
			t.Errorf("links: %v", got)
		}
		r.exchange(request(1)).want(t, nil)
		l.send(management("001", "0102030405", "000777")) // it signs on too
		synctest.Wait()
		if got := l.seen(); !slices.Equal(got, []string{"0800/001", "0100/000001", "0810/001"}) {
			t.Errorf("received %v", got)
		}
		d.dial("[::ffff:192.0.2.2]:1000")
		r.wantStates(InService, InService)
		peers := []string{r.Status()[0].Peer, r.Status()[1].Peer}
		slices.Sort(peers)
		if !slices.Equal(peers, []string{"192.0.2.1:1000", "[::ffff:192.0.2.2]:1000"}) {
			t.Errorf("peers %v", peers)
		}
		pass(time.Second)
		_ = l.Close() // and it dials again at once
		synctest.Wait()
		d.dial("192.0.2.1:1001")
		r.wantStates(InService, InService)
	})
}

func TestTheProcessorSignsOnFirst(t *testing.T) {
	onDoorstep(t, 1, nil, func(r *rig, h *host, d *doorstep) {
		h.script(func(h *host) { // it answers ours only once it has been accepted
			h.manage = func(l *hostLink, m *messages.Message) {
				l.mu.Lock()
				l.after = func() { l.answer(m, "00") }
				l.mu.Unlock()
			}
		})
		l := d.dial("192.0.2.1:1000")
		l.send(management("001", "0102030405", "000777"))
		synctest.Wait()
		if got := l.seen(); !slices.Equal(got, []string{"0800/001", "0810/001"}) {
			t.Errorf("received %v", got)
		}
		r.wantStates(Connected)
		l.after()
		synctest.Wait()
		r.wantStates(InService)
		h.script(func(h *host) { h.manage = nil })
	})
}

func TestOnlyThoseWhoMayDialAreHeard(t *testing.T) {
	onDoorstep(t, 1, nil, func(r *rig, h *host, d *doorstep) {
		for _, peer := range []string{"192.0.3.1:1000", "[2001:db8::1]:1000", "pipe", ""} {
			if l := d.dial(peer); !l.isClosed() || l.bytes() != 0 {
				t.Errorf("%q is heard", peer)
			}
		}
		r.wantStates(Down)
		if got := r.metric("acquirerd_link_refused_total", string(refusedAddress)); got != 4 {
			t.Errorf("refused: %v", got)
		}
		d.dial("192.0.2.255:1000")
		r.wantStates(InService)
	})
}

func TestOneConnectionTooManyIsRefusedAndTakesNoPlaceFromTheLiving(t *testing.T) {
	onDoorstep(t, 2, nil, func(r *rig, h *host, d *doorstep) {
		a, b := d.dial("192.0.2.1:1000"), d.dial("192.0.2.1:1001")
		c := d.dial("192.0.2.1:1002")
		pass(23*time.Second - time.Millisecond) // three echoes of five and their writing of two each, and that of what stands before them
		if c.isClosed() {
			t.Error("refused before it was certain that the others live")
		}
		pass(time.Millisecond)
		if !c.isClosed() || c.bytes() != 0 || a.isClosed() || b.isClosed() {
			t.Error("not the last one was refused")
		}
		for _, l := range []*hostLink{a, b} {
			if got := l.seen(); !slices.Equal(got, []string{"0800/001", "0800/301"}) {
				t.Errorf("received %v, want an echo request", got)
			}
		}
		r.wantStates(InService, InService)
		if got := r.metric("acquirerd_link_refused_total", string(refusedFull)); got != 1 {
			t.Errorf("refused: %v", got)
		}
		// No more of them wait than there are links.
		for range 5 {
			d.dial("192.0.2.1:1003")
		}
		if got := r.metric("acquirerd_link_refused_total", string(refusedFull)); got != 1+3 {
			t.Errorf("refused: %v", got)
		}
		pass(time.Minute)
		r.wantStates(InService, InService)
	})
}

func TestAHalfOpenConnectionGivesItsPlaceToANewOne(t *testing.T) {
	onDoorstep(t, 1, nil, func(r *rig, h *host, d *doorstep) {
		silent(h)
		dead := d.dial("192.0.2.1:1000")
		if err := r.reconfigure(func(c *Config) { c.ReplyTimeout = time.Minute }); err != nil {
			t.Fatal(err)
		}
		a := r.exchange(request(1))
		_, m := last(h, "000001")
		h.script(func(h *host) {
			h.manage = func(l *hostLink, m *messages.Message) {
				if l != dead {
					l.answer(m, "00")
				}
			}
		})
		l := d.dial("192.0.2.9:1000") // it has moved
		pass(9 * time.Second)         // two echoes of three could have been lost on their way
		if dead.isClosed() {
			t.Error("replaced before as many echoes were missed as close a link")
		}
		pass(6 * time.Second)
		if got := r.Status()[0]; got.State != InService || got.Peer != "192.0.2.9:1000" || got.LastError != string(causeReplaced) || !dead.isClosed() {
			t.Errorf("got %+v", got)
		}
		l.answer(m, "00")
		a.want(t, nil)
	})
}

func TestAConnectionThatNeverSignsOnGivesItsPlaceUp(t *testing.T) {
	onDoorstep(t, 1, nil, func(r *rig, h *host, d *doorstep) {
		h.script(func(h *host) { h.manage = func(*hostLink, *messages.Message) {} })
		d.dial("192.0.2.1:1000")
		pass(2 * time.Second)
		h.script(func(h *host) { h.manage = nil })
		d.dial("192.0.2.1:1001")
		r.wantStates(Connected)
		pass(2400 * time.Millisecond) // the sign-on timeout is four, and then there is a pause
		r.wantStates(Down)
		pass(600 * time.Millisecond)
		if got := r.Status()[0]; got.State != InService || got.Peer != "192.0.2.1:1001" || got.LastError != string(causeSignOnTimeout) {
			t.Errorf("got %+v", got)
		}
	})
}

func TestListeningThatFailsIsTriedAgain(t *testing.T) {
	onDoorstep(t, 2, func(_ *Config, d *doorstep) { d.fail = 3 }, func(r *rig, h *host, d *doorstep) {
		for _, s := range r.Status() {
			if s.LastError != string(causeListen) || s.Address != "here" {
				t.Errorf("got %+v", s)
			}
		}
		pass(7 * time.Second)
		d.dial("192.0.2.1:1000")
		// The listener breaks, and what was accepted goes on.
		_ = d.ports[0].Close()
		synctest.Wait()
		if got := r.states(); !slices.Contains(got, InService) {
			t.Errorf("links: %v", got)
		}
		pass(8 * time.Second)
		d.dial("192.0.2.1:1001")
		r.wantStates(InService, InService)
	})
}

func TestADrainedLinkTakesNoConnection(t *testing.T) {
	onDoorstep(t, 1, nil, func(r *rig, h *host, d *doorstep) {
		l := d.dial("192.0.2.1:1000")
		if err := r.Drain(0); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if got := l.seen(); !slices.Equal(got, []string{"0800/001", "0800/002"}) || !l.isClosed() {
			t.Errorf("received %v", got)
		}
		l = d.dial("192.0.2.1:1001")
		pass(23 * time.Second)
		if !l.isClosed() || l.bytes() != 0 {
			t.Error("it is heard")
		}
		if err := r.Resume(0); err != nil {
			t.Fatal(err)
		}
		d.dial("192.0.2.1:1002")
		r.wantStates(InService)
	})
}

func TestAReloadOfListenersKeepsThoseThatAreUsed(t *testing.T) {
	onDoorstep(t, 2, nil, func(r *rig, h *host, d *doorstep) {
		a, b := d.dial("192.0.2.1:1000"), d.dial("192.0.2.1:1001")
		if err := r.reconfigure(func(c *Config) { c.Links = c.Links[:1] }); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if a.isClosed() == b.isClosed() || len(d.ports) != 1 {
			t.Errorf("%v, %v, %d listeners", a.isClosed(), b.isClosed(), len(d.ports))
		}
		// Who may dial changes: the same listener, another link.
		if err := r.reconfigure(func(c *Config) { c.Links[0].Allow = []netip.Prefix{netip.MustParsePrefix("198.51.100.1/32")} }); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		pass(7 * time.Second) // in which another could have come
		if l := d.dial("192.0.2.1:1000"); !l.isClosed() || !a.isClosed() || !b.isClosed() || len(d.ports) != 1 {
			t.Error("it is heard")
		}
		d.dial("198.51.100.1:1")
		r.wantStates(InService)
		if err := r.reconfigure(func(c *Config) { c.Links = Dialled("one") }); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		select {
		case <-d.ports[0].closed:
		default:
			t.Error("it listens")
		}
		r.wantStates(InService)
	})
}

func TestStoppingWhileAProcessorDials(t *testing.T) {
	onDoorstep(t, 1, nil, func(r *rig, h *host, d *doorstep) {
		silent(h)
		l := d.dial("192.0.2.1:1000")
		pass(time.Second)
		a := r.exchange(request(1))
		_, m := last(h, "000001")
		r.stop()
		synctest.Wait()
		_ = l.Close()
		synctest.Wait()
		l = d.dial("192.0.2.1:1001") // for the answer
		r.wantStates(InService)
		l.answer(m, "00")
		a.want(t, nil)
		synctest.Wait()
		if got := l.seen(); got[len(got)-1] != "0800/002" {
			t.Errorf("received %v", got)
		}
		select {
		case <-d.ports[0].closed:
		default:
			t.Error("it listens")
		}
	})
}

func TestANewcomerThatWaitsIsClosedAtTheStop(t *testing.T) {
	onDoorstep(t, 1, nil, func(r *rig, h *host, d *doorstep) {
		d.dial("192.0.2.1:1000")
		l := d.dial("192.0.2.1:1001")
		if l.isClosed() {
			t.Fatal("it does not wait")
		}
		r.stop()
		err := <-r.ended
		synctest.Wait() // the host sees it after Run has returned
		if err != nil || !l.isClosed() {
			t.Errorf("closed %v: %v", l.isClosed(), err)
		}
		r.ended <- nil // for the rig
	})
}

func TestFaultsOfListeningLinksAreNamed(t *testing.T) {
	h := newHost(t, "iso87-ascii")
	allow := []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}
	for want, links := range map[string][]Link{
		"links[0].allow: missing":                       {{Listen: "127.0.0.1:0"}},
		"links[0].listen: \"nowhere\" is not host:port": {{Listen: "nowhere", Allow: allow}},
		"links[0].listen: a link that is dialled":       {{Listen: "127.0.0.1:0", Allow: allow, Hosts: []string{"a:1"}}},
		"links[0].allow: is for links with listen":      {{Hosts: []string{"a:1"}, Allow: allow}},
		"links[1].allow: differs from that of links[0]": {{Listen: "127.0.0.1:0", Allow: allow}, {Listen: "127.0.0.1:0", Allow: allow[:0]}},
	} {
		cfg := config(h)
		cfg.Links = links
		wantFault(t, cfg, want)
	}
}

// The upstream door takes this form; the links must not read it as nobody.
func TestAnAllowListOfMappedAddressesLetsThemIn(t *testing.T) {
	onDoorstep(t, 1, func(c *Config, _ *doorstep) {
		c.Links[0].Allow = []netip.Prefix{netip.MustParsePrefix("::ffff:192.0.2.0/120")}
	}, func(r *rig, _ *host, d *doorstep) {
		d.dial("192.0.2.1:1000")
		r.wantStates(InService)
	})
}

// Who may dial changes nothing for who has dialled and still may; the door of upstreams keeps those too.
func TestAWiderAllowListKeepsTheConnectionOfTheProcessor(t *testing.T) {
	onDoorstep(t, 1, nil, func(r *rig, _ *host, d *doorstep) {
		l := d.dial("192.0.2.1:1000")
		if err := r.reconfigure(func(c *Config) {
			c.Links[0].Allow = append(c.Links[0].Allow, netip.MustParsePrefix("198.51.100.0/24"))
		}); err != nil {
			t.Fatal(err)
		}
		pass(time.Minute)
		if l.isClosed() || !r.InService() {
			t.Errorf("closed: %v; got %+v", l.isClosed(), r.Status())
		}
	})
}

func TestANarrowerAllowListDrainsOnlyWhoMayNotDialAnyMore(t *testing.T) {
	onDoorstep(t, 3, nil, func(r *rig, h *host, d *doorstep) {
		stays, goes := d.dial("192.0.2.1:1000"), d.dial("192.0.2.200:1000")
		h.script(func(h *host) { h.manage = func(*hostLink, *messages.Message) {} })
		signing := d.dial("192.0.2.201:1000")
		if err := r.reconfigure(func(c *Config) {
			for i := range c.Links {
				c.Links[i].Allow = []netip.Prefix{netip.MustParsePrefix("192.0.2.0/25")}
			}
		}); err != nil {
			t.Fatal(err)
		}
		h.script(func(h *host) { h.manage = nil })
		pass(4 * time.Second) // in which the sign-off and the sign-on that nobody answers end
		if stays.isClosed() || !goes.isClosed() || !signing.isClosed() {
			t.Errorf("closed: %v, %v, %v", stays.isClosed(), goes.isClosed(), signing.isClosed())
		}
		if got := stays.seen(); len(got) != 1 {
			t.Errorf("received %v", got)
		}
		if got := goes.seen(); got[len(got)-1] != "0800/002" {
			t.Errorf("received %v, want a sign-off at the end", got)
		}
		r.exchange(request(1)).want(t, nil)
	})
}

// The reload comes while it signs on.
func TestWhoMayNotDialAnyMoreDoesNotComeIntoService(t *testing.T) {
	onDoorstep(t, 1, nil, func(r *rig, h *host, d *doorstep) {
		var accept func()
		h.script(func(h *host) {
			h.manage = func(l *hostLink, m *messages.Message) { accept = func() { l.answer(m, "00") } }
		})
		l := d.dial("192.0.2.200:1000")
		h.script(func(h *host) { h.manage = nil })
		if err := r.reconfigure(func(c *Config) { c.Links[0].Allow = []netip.Prefix{netip.MustParsePrefix("192.0.2.0/25")} }); err != nil {
			t.Fatal(err)
		}
		accept()
		synctest.Wait()
		if got := l.seen(); !l.isClosed() || !slices.Equal(got, []string{"0800/001", "0800/002"}) {
			t.Errorf("closed: %v, received %v", l.isClosed(), got)
		}
		if got := r.Status()[0]; got.LastError != "" {
			t.Errorf("got %+v", got)
		}
	})
}

// The socket is kept: to close it would refuse every processor that dials, for want of a file descriptor.
func TestAListenerWaitsOutWhatAcceptIsShortOf(t *testing.T) {
	onDoorstep(t, 1, nil, func(r *rig, _ *host, d *doorstep) {
		for range 12 {
			d.ports[0].short <- &net.OpError{Op: "accept", Err: syscall.EMFILE}
		}
		pass(6 * time.Second) // the pauses double to one second
		if n := len(d.ports[0].short); n != 0 {
			t.Errorf("%d errors are left", n)
		}
		d.dial("192.0.2.1:1000")
		r.wantStates(InService)
		if got := r.Status()[0]; got.LastError != "" || len(d.ports) != 1 {
			t.Errorf("got %+v, %d listeners", got, len(d.ports))
		}
	})
}

// Who may dial can have a connection asked for echoes, and that has a limit.
func TestNewcomersForceNoMoreThanOneEchoInEchoTimeout(t *testing.T) {
	onDoorstep(t, 1, nil, func(r *rig, h *host, d *doorstep) {
		l := d.dial("192.0.2.1:1000")
		for range 50 { // in five seconds
			_ = d.dial("192.0.2.66:1000").Close()
			pass(100 * time.Millisecond)
		}
		if got := l.seen(); !slices.Equal(got, []string{"0800/001", "0800/301"}) {
			t.Errorf("received %v, want one echo request", got)
		}
		pass(time.Minute)
		r.wantStates(InService)
	})
}
