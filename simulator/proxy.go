package simulator

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"slices"
	"sync"
	"time"
)

// The limits of a proxy. A direction of a connection that cannot be written is read no further.
const (
	DefaultMaxProxied = 1_024    // connections at a time; more are reset
	proxyBuffer       = 16 << 10 // bytes of one direction of a connection that are on their way here, beside those in the kernel
)

// ProxyConfig is what a Proxy is made of.
type ProxyConfig struct {
	Address string                                  // TCP address of the far party, or
	Dial    func(context.Context) (net.Conn, error) // how to connect to it

	Seed           uint64        // of which connection is cut, where a piece is torn, and how long a slow one takes
	DialTimeout    time.Duration // default 5 s
	MaxConnections int           // default DefaultMaxProxied
}

// A Flow is a direction through a proxy.
type Flow int

// The two flows.
const (
	Forth Flow = iota // from who dialed the proxy, the near party, to whom the proxy dialed, the far one
	Back
)

// A Cut is a way in which a connection ends.
type Cut int

// The ways to cut a connection.
const (
	CutReset  Cut = iota // at once, by RST to both parties: what is on its way is lost
	CutClosed            // at once, by FIN to both parties
	CutTorn              // in the middle of the next piece, which is a frame or some: its first part arrives, then RST or FIN
)

// ProxyCounts are the totals of a proxy.
type ProxyCounts struct {
	Connections int64 // that were taken
	Refused     int64 // that were reset instead, or could not be dialed
	Cuts        int64 // connections that were cut, torn ones and half-open ones included
	Torn        int64
	HalfOpen    int64
	Swallowed   int64 // bytes that went into a half-open connection
}

// A Proxy stands between two parties, forwards what they send, and does to their connections what networks do: it cuts them, holds one
// direction up, slows both down, leaves one party with a connection whose other end is gone, and takes no new ones for a while.
//
// What lasts for a while ends by itself. A second call of the same kind replaces the first.
type Proxy struct {
	cfg ProxyConfig

	mu           sync.Mutex
	chance       *rand.Rand
	crossings    []*crossing // open ones, oldest first
	taken        uint64      // connections so far; the number of the last one
	counts       ProxyCounts
	refusedUntil time.Time
	stalledUntil [2]time.Time // by flow
	slowUntil    time.Time
	latency      time.Duration
}

// NewProxy checks the configuration and starts nothing.
func NewProxy(cfg ProxyConfig) (*Proxy, error) {
	if (cfg.Address == "") == (cfg.Dial == nil) {
		return nil, errors.New("proxy: it needs an address or a way to dial")
	}
	if cfg.Dial == nil {
		var dialer net.Dialer
		cfg.Dial = func(ctx context.Context) (net.Conn, error) { return dialer.DialContext(ctx, "tcp", cfg.Address) }
	}
	if cfg.DialTimeout == 0 {
		cfg.DialTimeout = defaultTimeout
	}
	if cfg.MaxConnections == 0 {
		cfg.MaxConnections = DefaultMaxProxied
	}
	if cfg.DialTimeout < 0 || cfg.MaxConnections < 0 {
		return nil, errors.New("proxy: a limit is negative")
	}
	chance := rand.New(rand.NewPCG(cfg.Seed, 0)) //nolint:gosec // it must be repeatable
	return &Proxy{cfg: cfg, chance: chance}, nil
}

// Serve takes connections from the listener until ctx ends, and then closes both, connections by RST. It returns when all its goroutines
// have ended: nil, or why the listener failed.
func (p *Proxy) Serve(ctx context.Context, listener net.Listener) error {
	ctx, stop := context.WithCancel(ctx)
	defer context.AfterFunc(ctx, func() { _ = listener.Close() })()
	var running sync.WaitGroup
	defer running.Wait()
	defer stop() // before the wait
	for {
		near, err := listener.Accept()
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			_ = listener.Close()
			return fmt.Errorf("accepting connections: %w", err)
		}
		number, taken := p.admit()
		if !taken {
			reset(near)
			continue
		}
		running.Go(func() { p.carry(ctx, near, number) })
	}
}

// admit decides whether a new connection is taken.
func (p *Proxy) admit() (number uint64, taken bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if time.Now().Before(p.refusedUntil) || len(p.crossings) >= p.cfg.MaxConnections {
		p.counts.Refused++
		return 0, false
	}
	p.taken++
	p.counts.Connections++
	return p.taken, true
}

// carry serves one connection until it ends.
func (p *Proxy) carry(ctx context.Context, near net.Conn, number uint64) {
	dialing, release := context.WithTimeout(ctx, p.cfg.DialTimeout)
	far, err := p.cfg.Dial(dialing)
	release()
	if err != nil {
		p.mu.Lock()
		p.counts.Refused++
		p.mu.Unlock()
		reset(near)
		return
	}
	c := &crossing{Proxy: p, near: near, far: far, over: make(chan struct{})}
	p.mu.Lock()
	p.crossings = append(p.crossings, c)
	p.mu.Unlock()
	defer context.AfterFunc(ctx, func() { c.end(reset) })()
	var running sync.WaitGroup
	for flow, ends := range [][2]net.Conn{{near, far}, {far, near}} {
		chance := rand.New(rand.NewPCG(p.cfg.Seed, number<<1|uint64(flow))) //nolint:gosec // it must be repeatable
		running.Go(func() { c.pump(Flow(flow), ends[0], ends[1], chance) })
	}
	running.Wait()
	c.end(finish)
	p.mu.Lock()
	p.crossings = slices.DeleteFunc(p.crossings, func(other *crossing) bool { return other == c })
	p.mu.Unlock()
}

// Counts copies the totals.
func (p *Proxy) Counts() ProxyCounts {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.counts
}

// CutAll cuts all connections.
func (p *Proxy) CutAll(how Cut) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, c := range p.crossings {
		c.cut(how)
	}
}

// CutOne cuts one connection, which chance chooses.
func (p *Proxy) CutOne(how Cut) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.crossings) > 0 {
		p.crossings[p.chance.IntN(len(p.crossings))].cut(how)
	}
}

// Refuse resets new connections for a while.
func (p *Proxy) Refuse(d time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.refusedUntil = time.Now().Add(d)
}

// Stall holds up one flow of all connections for a while: nothing is lost, the sender is read no further, and the other flow goes on.
func (p *Proxy) Stall(flow Flow, d time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.stalledUntil[flow] = time.Now().Add(d)
}

// Slow makes each piece of both flows take up to latency, which chance chooses, for a while.
func (p *Proxy) Slow(latency, d time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.latency, p.slowUntil = latency, time.Now().Add(d)
}

// HalfOpenOne takes one party away from one connection, which chance chooses, as a host or a firewall that loses its memory does: who
// receives the flow is gone at once; who sends it hears nothing of that, and what it sends is lost, until after a while its connection is
// reset.
func (p *Proxy) HalfOpenOne(flow Flow, d time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.crossings) == 0 {
		return
	}
	c := p.crossings[p.chance.IntN(len(p.crossings))]
	if c.stays != nil || isClosed(c.over) {
		return
	}
	stays, gone := c.near, c.far
	if flow == Back {
		stays, gone = gone, stays
	}
	c.stays = stays
	p.counts.Cuts++
	p.counts.HalfOpen++
	_ = stays.SetReadDeadline(time.Now().Add(d)) // then its pump ends it
	reset(gone)
}

// A crossing is one connection through a proxy.
type crossing struct {
	*Proxy
	near, far net.Conn
	over      chan struct{} // closed before both are
	once      sync.Once

	// Guarded by Proxy.mu:
	stays   net.Conn // near or far, when the other is gone and it does not know
	torn    bool
	tornAt  float64        // of the next piece's length
	tornEnd func(net.Conn) // how both ends learn of it
}

// cut is called under the proxy's lock.
func (c *crossing) cut(how Cut) {
	switch {
	case isClosed(c.over):
	case how == CutTorn:
		c.torn, c.tornAt, c.tornEnd = true, c.chance.Float64(), reset
		if c.chance.IntN(2) == 0 {
			c.tornEnd = finish
		}
	default:
		c.counts.Cuts++
		if how == CutReset {
			c.end(reset)
		} else {
			c.end(finish)
		}
	}
}

// end closes both connections in one way.
func (c *crossing) end(way func(net.Conn)) {
	c.once.Do(func() {
		close(c.over)
		way(c.near)
		way(c.far)
	})
}

// pump forwards one flow until its sender ends it or the crossing is over. It owns chance.
func (c *crossing) pump(flow Flow, from, to net.Conn, chance *rand.Rand) {
	buffer := make([]byte, proxyBuffer)
	for {
		n, err := from.Read(buffer)
		if n > 0 && !c.pass(flow, to, buffer[:n], chance) {
			return
		}
		if err == nil {
			continue
		}
		switch stays := c.staying(); {
		case stays == to: // from is the one that is gone, and to must not learn of it
		case stays == nil && errors.Is(err, io.EOF):
			closeWrite(to)
		default:
			c.end(reset)
		}
		return
	}
}

// pass forwards one piece. It is false if the crossing is over.
func (c *crossing) pass(flow Flow, to net.Conn, piece []byte, chance *rand.Rand) bool {
	if !c.wait(flow, chance) {
		return false
	}
	piece, end := c.spoil(piece)
	if len(piece) > 0 {
		if _, err := to.Write(piece); err != nil && c.staying() == nil {
			c.end(reset)
			return false
		}
	}
	if end != nil {
		c.end(end)
	}
	return end == nil
}

// wait takes the time that a piece needs. It is false if the crossing is over.
func (c *crossing) wait(flow Flow, chance *rand.Rand) bool {
	c.mu.Lock()
	slow := time.Duration(0)
	if time.Now().Before(c.slowUntil) && c.latency > 0 {
		slow = time.Duration(chance.Int64N(int64(c.latency)))
	}
	c.mu.Unlock()
	for {
		c.mu.Lock()
		d := max(slow, time.Until(c.stalledUntil[flow]))
		c.mu.Unlock()
		if d <= 0 {
			return !isClosed(c.over)
		}
		timer := time.NewTimer(d)
		select {
		case <-timer.C:
		case <-c.over:
			timer.Stop()
			return false
		}
		slow = 0 // a stall may have begun meanwhile
	}
}

// spoil returns what arrives of a piece: all of it; nothing, if one party is gone; or a part, and then how the crossing ends.
func (c *crossing) spoil(piece []byte) (part []byte, end func(net.Conn)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.stays != nil:
		c.counts.Swallowed += int64(len(piece))
		return nil, nil
	case c.torn:
		c.counts.Cuts++
		c.counts.Torn++
		return piece[:int(c.tornAt*float64(len(piece)))], c.tornEnd
	}
	return piece, nil
}

// staying is the party that does not know that the other is gone, nil while both are there.
func (c *crossing) staying() net.Conn {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.stays
}

// finish closes a connection, for its party by FIN, or by RST where something of it waits unread, as every kernel does.
func finish(conn net.Conn) { _ = conn.Close() }

// reset closes a TCP connection by RST. Others have nothing like it.
func reset(conn net.Conn) {
	if tcp, is := conn.(*net.TCPConn); is {
		_ = tcp.SetLinger(0)
	}
	_ = conn.Close()
}

// closeWrite passes on that a party sends no more, where the connection can be closed for one flow alone.
func closeWrite(conn net.Conn) {
	if half, can := conn.(interface{ CloseWrite() error }); can {
		_ = half.CloseWrite()
		return
	}
	_ = conn.Close()
}
