package simulator

import (
	"context"
	"crypto/tls"
	"errors"
	"math/rand/v2"
	"net"
	"time"
)

// Dialling says how a processor connects to the daemon, where it is the daemon that listens.
type Dialling struct {
	Addresses   []string                                                    // TCP addresses of the daemon
	Connections int                                                         // that are kept to each of them; default 1
	Dial        func(ctx context.Context, address string) (net.Conn, error) // nil: TCP

	Timeout            time.Duration // of one attempt; default 5 s
	RetryMin, RetryMax time.Duration // the pause after an attempt that failed, or a link that ended: doubled each time; defaults 100 ms and 5 s
}

// Check says what is wrong with it, as Connect would.
func (d Dialling) Check() error {
	_, err := d.check()
	return err
}

// check returns it with its defaults.
func (d Dialling) check() (Dialling, error) {
	if d.Dial == nil {
		var dialer net.Dialer
		d.Dial = func(ctx context.Context, address string) (net.Conn, error) {
			return dialer.DialContext(ctx, "tcp", address)
		}
	}
	if d.Connections == 0 {
		d.Connections = 1
	}
	for _, value := range []struct {
		value     *time.Duration
		otherwise time.Duration
	}{{&d.Timeout, defaultTimeout}, {&d.RetryMin, 100 * time.Millisecond}, {&d.RetryMax, defaultTimeout}} {
		if *value.value == 0 {
			*value.value = value.otherwise
		}
	}
	if len(d.Addresses) == 0 || d.Connections < 0 || d.Timeout < 0 || d.RetryMin < 0 || d.RetryMax < d.RetryMin {
		return d, errors.New("processor: dialling needs an address, and neither a negative limit nor a shortest pause over the longest")
	}
	return d, nil
}

// Connect makes links to the daemon, and makes each again when it has ended, until ctx ends; then it closes them and returns nil when all
// its goroutines have ended. Serve may run beside it.
func (p *Processor) Connect(ctx context.Context, how Dialling) error {
	how, err := how.check()
	if err != nil {
		return err
	}
	s := &service{Processor: p, ctx: ctx}
	for _, address := range how.Addresses {
		for range how.Connections {
			s.running.Go(func() { s.connect(how, address) })
		}
	}
	s.running.Wait()
	return nil
}

// connect keeps one connection.
func (s *service) connect(how Dialling, address string) {
	for failures := 0; s.ctx.Err() == nil; failures++ {
		began := time.Now()
		if conn, err := s.dial(how, address); err != nil {
			s.cfg.Log.Info("link not made", "address", address, "cause", err.Error())
		} else {
			l := s.begin(conn)
			s.running.Go(l.run)
			l.serve()
		}
		if time.Since(began) > how.RetryMax {
			failures = 0
		}
		rest := how.RetryMax
		if failures < 16 {
			rest = min(rest, how.RetryMin<<failures)
		}
		pause(s.ctx, rest/2+time.Duration(rand.Int64N(int64(rest/2)+1))) //nolint:gosec // jitter needs no secrecy
	}
}

func (s *service) dial(how Dialling, address string) (net.Conn, error) {
	ctx, release := context.WithTimeout(s.ctx, how.Timeout)
	defer release()
	conn, err := how.Dial(ctx, address)
	if err != nil || s.cfg.TLS == nil {
		return conn, err
	}
	return tls.Client(conn, clientConfig(s.cfg.TLS, address)), nil
}

// clientConfig is a client's, with the name of the host that it dials, unless it has one.
func clientConfig(config *tls.Config, address string) *tls.Config {
	if config.ServerName != "" || config.InsecureSkipVerify {
		return config
	}
	config = config.Clone()
	config.ServerName = address
	if host, _, err := net.SplitHostPort(address); err == nil {
		config.ServerName = host
	}
	return config
}
