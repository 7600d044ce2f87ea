package conn

import (
	"context"
	"errors"
	"math/rand/v2"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// A listener is an address at which the processor dials us, for all links that are configured with it. An accepted connection goes to
// whichever of them has none.
//
// When all have one, the processor may know better: it may have lost a connection of which we still wait for the end (a crash, a
// firewall that forgot). To replace the oldest, or the one from the same address, would let a processor that dials once too often kill
// connections that serve. So nothing that lives is replaced: the newcomer waits, each connection in service is asked for echoes at
// once, and one that misses as many in a row as close a link gives its place up. Whoever may dial us can have that done, but not more often
// than one echo in EchoTimeout. What is not in service yet, or drains, frees its place by its own deadlines.
type listener struct {
	endpoint *Endpoint
	address  string
	arrivals chan net.Conn // a link without a connection receives from it
	stop     context.CancelFunc

	bound net.Addr // while it listens; guarded by Endpoint.mu
}

// listenAt returns the listener of an address, which begins if it was not there. Called under Endpoint.mu.
func (e *Endpoint) listenAt(address string) *listener {
	if ln := e.listeners[address]; ln != nil {
		return ln
	}
	ctx, stop := context.WithCancel(e.serving)
	ln := &listener{endpoint: e, address: address, arrivals: make(chan net.Conn), stop: stop}
	e.listeners[address] = ln
	e.carrying.Go(func() { ln.run(ctx) })
	return ln
}

// run listens until ctx ends, and again after a pause when that fails.
func (ln *listener) run(ctx context.Context) {
	for failures := 0; ctx.Err() == nil; failures++ {
		began := time.Now()
		err := ln.listen(ctx)
		if ctx.Err() != nil {
			return
		}
		cfg := ln.endpoint.config()
		if time.Since(began) >= cfg.BackoffMax {
			failures = 0
		}
		ln.endpoint.mu.Lock()
		for _, l := range ln.endpoint.links {
			if l.listener == ln {
				l.fail(causeListen)
			}
		}
		ln.endpoint.mu.Unlock()
		ln.endpoint.log.Error("listening for the processor failed", "address", ln.address, "error", err)
		wait(ctx, backoff(failures, cfg.BackoffMin, cfg.BackoffMax, rand.Float64())) //nolint:gosec // jitter needs no secrecy
	}
}

// exhausted are the errors of accept that pass: the process or the machine is short of something for now, or the peer was gone already.
var exhausted = []error{syscall.EMFILE, syscall.ENFILE, syscall.ENOBUFS, syscall.ENOMEM, syscall.ECONNABORTED}

// acceptPause and longestAcceptPause bound how long accept waits for what is short; the pause doubles.
const (
	acceptPause        = 5 * time.Millisecond
	longestAcceptPause = time.Second
)

// listen accepts connections until ctx ends or an error, and returns when none of them waits any more.
func (ln *listener) listen(ctx context.Context) error {
	e := ln.endpoint
	socket, err := e.config().Listen(ctx, ln.address)
	if err != nil {
		return err
	}
	defer context.AfterFunc(ctx, func() { _ = socket.Close() })()
	defer func() { _ = socket.Close() }()
	ln.bind(socket.Addr())
	defer ln.bind(nil)
	e.log.Info("listening for the processor", "address", socket.Addr().String())
	admitting, stop := context.WithCancel(ctx)
	var newcomers sync.WaitGroup
	defer newcomers.Wait()
	defer stop()
	var here atomic.Int32 // newcomers that wait
	pause := acceptPause
	for {
		c, err := socket.Accept()
		switch {
		case err != nil && ctx.Err() == nil && slices.ContainsFunc(exhausted, func(passing error) bool { return errors.Is(err, passing) }):
			e.sometimes.Do(func() { e.log.Error("connection not accepted", "address", ln.address, "error", err) })
			wait(ctx, pause)
			pause = min(2*pause, longestAcceptPause)
			continue
		case err != nil:
			return err
		}
		pause = acceptPause
		allowed, places := ln.entry(c.RemoteAddr())
		switch {
		case !allowed:
			ln.refuse(c, refusedAddress)
		case int(here.Load()) >= places:
			ln.refuse(c, refusedFull)
		default:
			here.Add(1)
			newcomers.Go(func() {
				defer here.Add(-1)
				ln.admit(admitting, c)
			})
		}
	}
}

func (ln *listener) bind(address net.Addr) {
	ln.endpoint.mu.Lock()
	defer ln.endpoint.mu.Unlock()
	ln.bound = address
}

// entry reports whether an address may dial us, and how many connections there may be.
func (ln *listener) entry(from net.Addr) (allowed bool, places int) {
	peer := from.String()
	ln.endpoint.mu.Lock()
	defer ln.endpoint.mu.Unlock()
	for _, l := range ln.endpoint.links {
		if l.listener != ln {
			continue
		}
		places++
		allowed = allowed || l.configured.permits(peer)
	}
	return allowed, places
}

// admit gives a connection to a link that has none, or refuses it.
func (ln *listener) admit(ctx context.Context, c net.Conn) {
	select {
	case ln.arrivals <- c:
		return
	default:
	}
	ln.challenge()
	cfg := ln.endpoint.config()
	// The echoes, the writing of each, and that of what stands before them.
	patience := time.NewTimer(time.Duration(cfg.EchoMisses)*(cfg.EchoTimeout+cfg.WriteTimeout) + cfg.WriteTimeout)
	defer patience.Stop()
	select {
	case ln.arrivals <- c:
	case <-ctx.Done():
		_ = c.Close()
	case <-patience.C:
		ln.refuse(c, refusedFull)
	}
}

// challenge has every connection in service ask for echoes.
func (ln *listener) challenge() {
	ln.endpoint.mu.Lock()
	defer ln.endpoint.mu.Unlock()
	for _, l := range ln.endpoint.links {
		if l.listener != ln || l.session == nil {
			continue
		}
		select {
		case l.session.challenge <- struct{}{}:
		default: // it has been told
		}
	}
}

// A refusal is why a connection of the processor was closed at once.
type refusal string

const (
	refusedAddress refusal = "address" // it is not from an address that may dial us
	refusedFull    refusal = "full"    // every link has a connection that lives
)

var refusals = []refusal{refusedAddress, refusedFull}

func (ln *listener) refuse(c net.Conn, why refusal) {
	from := c.RemoteAddr().String()
	_ = c.Close()
	ln.endpoint.metrics.refused[why].Inc()
	ln.endpoint.sometimes.Do(func() {
		ln.endpoint.log.Warn("connection refused", "address", ln.address, "from", from, "cause", string(why))
	})
}
