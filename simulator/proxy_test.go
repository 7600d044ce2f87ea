package simulator_test

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"acquirerd/simulator"
)

// A passage is a proxy between a near party, which dials, and a far one.
type passage struct {
	*simulator.Proxy
	t        *testing.T
	near     func() net.Conn // dials
	far      func() net.Conn // accepts
	stop     func()          // waits for the end
	listener net.Listener
}

// between serves a proxy before listener, or on TCP ports of its own with nil.
func between(t *testing.T, cfg simulator.ProxyConfig, pipes bool) *passage {
	t.Helper()
	p := &passage{t: t}
	var behind net.Listener
	if pipes {
		before, after := simulator.NewPipeListener(), simulator.NewPipeListener()
		cfg.Dial, p.listener, behind = after.Dial, before, after
		p.near = func() net.Conn { return must(before.Dial(t.Context())) }
	} else {
		p.listener, behind = must(net.Listen("tcp", "127.0.0.1:0")), must(net.Listen("tcp", "127.0.0.1:0"))
		cfg.Address = behind.Addr().String()
		p.near = func() net.Conn { return must(net.Dial("tcp", p.listener.Addr().String())) }
	}
	p.far = func() net.Conn { return must(behind.Accept()) }
	p.Proxy = must(simulator.NewProxy(cfg))
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- p.Serve(ctx, p.listener) }()
	p.stop = func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		_ = behind.Close()
	}
	return p
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// says has one party send and the other receive.
func (p *passage) says(from, to net.Conn, text string) {
	p.t.Helper()
	go func() { _, _ = from.Write([]byte(text)) }()
	got := make([]byte, len(text))
	if _, err := io.ReadFull(to, got); err != nil || string(got) != text {
		p.t.Errorf("got %q, %v, want %q", got, err, text)
	}
}

// rest reads to the end, within a few seconds.
func rest(conn net.Conn) (string, error) {
	_ = conn.SetReadDeadline(time.Now().Add(10 * time.Second))
	all, err := io.ReadAll(conn)
	return string(all), err
}

func TestProxyForwards(t *testing.T) {
	p := between(t, simulator.ProxyConfig{}, false)
	near := p.near()
	far := p.far()
	defer func() { _, _ = near.Close(), far.Close() }()
	p.says(near, far, "0100")
	p.says(far, near, "0110")
	large := strings.Repeat("0123456789", 1<<17)
	p.says(near, far, large)
	p.says(far, near, large)

	if err := near.(*net.TCPConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if got, err := rest(far); got != "" || err != nil {
		t.Errorf("after the near party's end, the far one got %q, %v", got, err)
	}
	p.says(far, near, "0110, later")
	_ = far.Close()
	if got, err := rest(near); got != "" || err != nil {
		t.Errorf("after the far party's end, the near one got %q, %v", got, err)
	}
	p.stop()
	if got, want := p.Counts(), (simulator.ProxyCounts{Connections: 1}); got != want {
		t.Errorf("counts %+v, want %+v", got, want)
	}
}

func TestProxyCuts(t *testing.T) {
	for _, test := range []struct {
		name string
		how  simulator.Cut
		want error
	}{{"by RST", simulator.CutReset, syscall.ECONNRESET}, {"by FIN", simulator.CutClosed, nil}} {
		t.Run(test.name, func(t *testing.T) {
			p := between(t, simulator.ProxyConfig{}, false)
			defer p.stop()
			var ends []net.Conn
			for range 3 {
				near := p.near()
				far := p.far()
				p.says(near, far, "0800")
				ends = append(ends, near, far)
			}
			p.CutOne(test.how)
			if got := p.Counts().Cuts; got != 1 {
				t.Errorf("%d are cut, want one", got)
			}
			p.CutAll(test.how)
			if got := p.Counts().Cuts; got != 3 {
				t.Errorf("%d are cut, want three", got)
			}
			for _, end := range ends {
				if got, err := rest(end); got != "" || !errors.Is(err, test.want) {
					t.Errorf("a party got %q, %v, want %v", got, err, test.want)
				}
				_ = end.Close()
			}
		})
	}
}

func TestProxyTearsAFrame(t *testing.T) {
	frame := strings.Repeat("0123456789", 20)
	tear := func(seed uint64) (string, simulator.ProxyCounts) {
		p := between(t, simulator.ProxyConfig{Seed: seed}, false)
		defer p.stop()
		near := p.near()
		far := p.far()
		defer func() { _, _ = near.Close(), far.Close() }()
		p.says(near, far, "0800")
		p.CutAll(simulator.CutTorn)
		if _, err := near.Write([]byte(frame)); err != nil {
			t.Fatal(err)
		}
		got, err := rest(far)
		if err != nil && !errors.Is(err, syscall.ECONNRESET) {
			t.Error(err)
		}
		return got, p.Counts()
	}
	lengths := map[int]bool{}
	for seed := range uint64(8) {
		got, counts := tear(seed)
		if len(got) >= len(frame) || !strings.HasPrefix(frame, got) {
			t.Errorf("%q arrived", got)
		}
		if counts.Cuts != 1 || counts.Torn != 1 {
			t.Errorf("counts %+v", counts)
		}
		if again, _ := tear(seed); again != got {
			t.Errorf("seed %d: %d bytes arrived, and %d the next time", seed, len(got), len(again))
		}
		lengths[len(got)] = true
	}
	if len(lengths) < 4 {
		t.Errorf("it tears at %v alone", lengths)
	}
}

func TestProxyStallsOneFlow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := between(t, simulator.ProxyConfig{}, true)
		defer p.stop()
		near := p.near()
		far := p.far()
		defer func() { _, _ = near.Close(), far.Close() }()
		began := time.Now()
		p.Stall(simulator.Forth, 3*time.Second)
		p.says(far, near, "0810")
		if took := time.Since(began); took != 0 {
			t.Errorf("the other flow took %v", took)
		}
		p.says(near, far, "0100")
		if took := time.Since(began); took != 3*time.Second {
			t.Errorf("the stalled flow took %v", took)
		}

		// What a stalled flow holds is bounded: its sender is read no further.
		p.Stall(simulator.Forth, time.Hour)
		_ = near.SetWriteDeadline(time.Now().Add(time.Minute))
		n, err := near.Write(make([]byte, 1<<20))
		if n > 32<<10 || !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("%d bytes were taken, %v", n, err)
		}
	})
}

func TestProxySlowsDown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		took := func() (all []time.Duration) {
			p := between(t, simulator.ProxyConfig{Seed: 7}, true)
			defer p.stop()
			near := p.near()
			far := p.far()
			defer func() { _, _ = near.Close(), far.Close() }()
			p.Slow(40*time.Millisecond, time.Second)
			for range 5 {
				began := time.Now()
				p.says(near, far, "0100")
				all = append(all, time.Since(began))
			}
			<-time.After(time.Second)
			began := time.Now()
			p.says(near, far, "0100")
			if after := time.Since(began); after != 0 {
				t.Errorf("after it, a piece took %v", after)
			}
			return all
		}
		first := took()
		if slices.Max(first) > 40*time.Millisecond || slices.Max(first) == slices.Min(first) {
			t.Errorf("it took %v", first)
		}
		if again := took(); !slices.Equal(first, again) {
			t.Errorf("it took %v, and %v the next time", first, again)
		}
	})
}

func TestProxyLeavesAConnectionHalfOpen(t *testing.T) {
	for _, flow := range []simulator.Flow{simulator.Forth, simulator.Back} {
		p := between(t, simulator.ProxyConfig{}, false)
		near := p.near()
		far := p.far()
		p.says(near, far, "0800")
		stays, gone := near, far
		if flow == simulator.Back {
			stays, gone = far, near
		}
		began := time.Now()
		p.HalfOpenOne(flow, 300*time.Millisecond)
		if got, err := rest(gone); got != "" || !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("who is gone got %q, %v", got, err)
		}
		if _, err := stays.Write([]byte("0100")); err != nil {
			t.Errorf("who stays cannot write: %v", err)
		}
		if got, err := rest(stays); got != "" || !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("who stays got %q, %v", got, err)
		}
		if took := time.Since(began); took < 300*time.Millisecond {
			t.Errorf("who stays learnt of it after %v", took)
		}
		_, _ = near.Close(), far.Close()
		p.stop()
		if got, want := p.Counts(), (simulator.ProxyCounts{Connections: 1, Cuts: 1, HalfOpen: 1, Swallowed: 4}); got != want {
			t.Errorf("counts %+v, want %+v", got, want)
		}
	}
}

func TestProxyRefuses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := between(t, simulator.ProxyConfig{MaxConnections: 1}, true)
		refused := func(why string) {
			t.Helper()
			near := p.near()
			if got, err := rest(near); got != "" || err != nil {
				t.Errorf("%s, a party got %q, %v", why, got, err)
			}
			_ = near.Close()
		}
		p.Refuse(time.Second)
		refused("while it refuses")
		<-time.After(time.Second)
		near := p.near()
		far := p.far()
		p.says(near, far, "0800")
		refused("at the limit")
		_, _ = near.Close(), far.Close()
		p.stop()
		if got, want := p.Counts(), (simulator.ProxyCounts{Connections: 1, Refused: 2}); got != want {
			t.Errorf("counts %+v, want %+v", got, want)
		}
	})
}

func TestProxyResetsWhomItCannotConnect(t *testing.T) {
	nobody, err := simulator.NewProxy(simulator.ProxyConfig{Dial: func(context.Context) (net.Conn, error) { return nil, syscall.ECONNREFUSED }})
	if err != nil {
		t.Fatal(err)
	}
	listener := must(net.Listen("tcp", "127.0.0.1:0"))
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- nobody.Serve(ctx, listener) }()
	near, err := net.Dial("tcp", listener.Addr().String())
	if err == nil { // else it was reset before it was told that it is connected
		_, err = rest(near)
		_ = near.Close()
	}
	if !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("got %v", err)
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

func TestProxyEndsWithItsContext(t *testing.T) {
	p := between(t, simulator.ProxyConfig{}, false)
	near := p.near()
	far := p.far()
	p.says(near, far, "0800")
	p.Stall(simulator.Forth, time.Hour)
	_, _ = near.Write([]byte("0100"))
	p.stop()
	for _, end := range []net.Conn{near, far} {
		if got, err := rest(end); got != "" || !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("a party got %q, %v", got, err)
		}
		_ = end.Close()
	}
}

func TestNewProxyRefuses(t *testing.T) {
	dial := func(context.Context) (net.Conn, error) { return nil, errors.New("never") }
	for name, cfg := range map[string]simulator.ProxyConfig{"nowhere to go": {}, "two places": {Address: "127.0.0.1:1", Dial: dial},
		"a negative limit": {Dial: dial, MaxConnections: -1}, "a negative timeout": {Dial: dial, DialTimeout: -1}} {
		if _, err := simulator.NewProxy(cfg); err == nil {
			t.Errorf("%s is taken", name)
		}
	}
}
