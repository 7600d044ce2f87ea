package upstream

import (
	"crypto/tls"
	"errors"
	"fmt"
	"math"
	"net/netip"
	"reflect"
	"slices"
	"time"

	"golang.org/x/time/rate"

	"acquirerd/acquirer"
	"acquirerd/messages"
	"acquirerd/specs"
)

// Config is one upstream's door.
type Config struct {
	Upstream *acquirer.Upstream

	// Who may come in. Allow is checked before anything is spent on a connection. IPv4 addresses match IPv4 prefixes alone, also where a socket
	// shows them as ::ffff:a.b.c.d.
	Allow []netip.Prefix // addresses from which connections are taken; none: all
	TLS   *tls.Config    // nil: plain TCP. It needs a certificate and client CAs, and is not changed any more
	Peers []string       // with TLS: names, one of which the client's certificate must carry; none: the upstream's name

	// MAC makes and checks the codes of the messages that carry one in the upstream's dialect; nil where that has none.
	MAC         messages.MACKey
	MACFailures int // so many messages with a wrong code within a minute end their connection; 0: 5

	// How much.
	Connections int     // most connections at once, those that are still in their handshake included
	InFlight    int     // most messages at the switch at once, over all connections
	Rate        float64 // most requests (0100, 0200 and their repeats) a second, over all connections; 0: no limit
	Burst       int     // most requests that Rate lets in at one moment; 0: what it lets in in a second, at least 1

	Budget           time.Duration // how long this upstream waits for an answer
	HandshakeTimeout time.Duration // longest time for a whole TLS handshake; 0: FrameTimeout
	IdleTimeout      time.Duration // a connection on which nothing arrives for this long is closed
	FrameTimeout     time.Duration // longest time from a frame's first byte to its last
	WriteTimeout     time.Duration // longest time for an answer to be written
}

// maxRate keeps a rate within what can be counted; no machine takes so many requests.
const maxRate = 1_000_000

// terms are what a configuration comes to. They are not changed: Reconfigure puts others in their place.
type terms struct {
	Config
	limiter *rate.Limiter // nil: no limit
}

// newTerms fills in the defaults and returns every fault, each under the name of its key in a configuration file.
func newTerms(cfg Config) (*terms, error) {
	var faults []error
	fault := func(format string, args ...any) { faults = append(faults, fmt.Errorf(format, args...)) }
	if cfg.HandshakeTimeout == 0 {
		cfg.HandshakeTimeout = cfg.FrameTimeout
	}
	for _, d := range []struct {
		key   string
		value time.Duration
	}{
		{"budget", cfg.Budget}, {"handshake_timeout", cfg.HandshakeTimeout}, {"idle_timeout", cfg.IdleTimeout},
		{"frame_timeout", cfg.FrameTimeout}, {"write_timeout", cfg.WriteTimeout},
	} {
		if d.value <= 0 {
			fault("%s: must be positive", d.key)
		}
	}
	if cfg.MACFailures == 0 {
		cfg.MACFailures = defaultMACFailures
	}
	if cfg.MACFailures < 0 {
		fault("mac_failures: must be at least 1")
	}
	switch wanted := cfg.Upstream.Codec.Dialect().MAC.Place == specs.MACLast; {
	case wanted && cfg.MAC == nil:
		fault("mac_key: missing: messages of the dialect carry a MAC")
	case !wanted && cfg.MAC != nil:
		fault("mac_key: messages of the dialect carry no MAC")
	}
	if cfg.InFlight < 1 {
		fault("in_flight: must be at least 1")
	}
	if cfg.Connections < 1 {
		fault("connections: must be at least 1")
	}

	switch {
	case !(cfg.Rate >= 0 && cfg.Rate <= maxRate): // NaN is neither
		fault("rate: must be between 0 and %d", maxRate)
	case cfg.Burst < 0:
		fault("burst: must not be negative")
	case cfg.Rate == 0 && cfg.Burst > 0:
		fault("burst: without a rate it limits nothing")
	case cfg.Rate > 0 && cfg.Burst == 0:
		cfg.Burst = max(1, int(math.Ceil(cfg.Rate)))
	}

	cfg.Allow = slices.Clone(cfg.Allow)
	for i, prefix := range cfg.Allow {
		address, bits := prefix.Addr(), prefix.Bits()
		if address.Is4In6() && bits >= 96 {
			prefix = netip.PrefixFrom(address.Unmap(), bits-96)
		}
		if !prefix.IsValid() || prefix.Addr().Is4In6() {
			fault("allow[%d]: not a prefix of addresses", i)
		}
		cfg.Allow[i] = prefix
	}

	cfg.Peers = slices.Clone(cfg.Peers)
	if slices.Contains(cfg.Peers, "") {
		fault("peers: a name is empty")
	}
	switch {
	case cfg.TLS == nil && len(cfg.Peers) > 0:
		fault("peers: without TLS nobody shows a name")
	case cfg.TLS != nil:
		if err := usable(cfg.TLS); err != nil {
			fault("tls: %w", err)
		}
		if len(cfg.Peers) == 0 {
			cfg.Peers = []string{cfg.Upstream.Name}
		}
	}
	t := &terms{Config: cfg}
	if cfg.Rate > 0 {
		t.limiter = rate.NewLimiter(rate.Limit(cfg.Rate), cfg.Burst)
	}
	return t, errors.Join(faults...)
}

// succeed takes over what is left of the rate of the terms before: a reload gives no new burst.
func (t *terms) succeed(before *terms) {
	if t.limiter == nil || before.limiter == nil {
		return
	}
	t.limiter = before.limiter
	t.limiter.SetLimit(rate.Limit(t.Rate))
	t.limiter.SetBurst(t.Burst)
}

// within reports whether one more request keeps the rate, and counts it if so.
func (t *terms) within() bool { return t.limiter == nil || t.limiter.Allow() }

// Reconfigure puts another configuration in the place of the one that holds, while the door serves or before. With an error, nothing has
// changed. The upstream's name, dialect and PIN key stay what they are: transactions that are open, and what is on record, were named and
// encrypted by them.
//
// The limits, the rate and the budget hold from the next request on, the timeouts from the next frame, the rest from the next connection.
// With a lower limit, what is over it stays until it ends by itself, and nothing new is taken before. Connections stay open but for those that
// could not be opened again: their address is not allowed any more, none of the names of their certificate is a peer's, or they are plain
// and TLS is demanded now. Nothing more is read from these, what they have in flight is answered, and they are closed. A certificate is
// verified when its connection is opened: that it has expired since, or that its CA is not trusted any more, ends no connection.
func (d *Door) Reconfigure(cfg Config) error {
	if err := d.remains(cfg.Upstream); err != nil {
		return err
	}
	next, err := newTerms(cfg)
	if err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	next.succeed(d.terms.Load())
	d.terms.Store(next)
	d.inFlight.resize(next.InFlight)
	for s := range d.open {
		if err := next.bars(s); err != nil {
			s.end(err)
		}
	}
	return nil
}

// remains checks that an upstream is the one that the door was made for.
func (d *Door) remains(u *acquirer.Upstream) error {
	var faults []error
	if u.Name != d.upstream.Name {
		faults = append(faults, fmt.Errorf("name: cannot change from %q to %q while serving", d.upstream.Name, u.Name))
	}
	if u.PINKey != d.upstream.PINKey {
		faults = append(faults, fmt.Errorf("pin_key: cannot change from %q to %q while serving", d.upstream.PINKey, u.PINKey))
	}
	if u.BDKKey != d.upstream.BDKKey {
		faults = append(faults, fmt.Errorf("bdk_key: cannot change from %q to %q while serving", d.upstream.BDKKey, u.BDKKey))
	}
	if u.WorkingKey != d.upstream.WorkingKey {
		faults = append(faults, fmt.Errorf("working_key: cannot change from %q to %q while serving", d.upstream.WorkingKey, u.WorkingKey))
	}
	if u.RefuseRegression != d.upstream.RefuseRegression {
		faults = append(faults, errors.New("ksn_regression: cannot change while serving"))
	}
	if u.PINFormat != d.upstream.PINFormat {
		faults = append(faults, fmt.Errorf("pin_format: cannot change from %q to %q while serving", d.upstream.PINFormat, u.PINFormat))
	}
	if before, now := d.upstream.Codec.Dialect(), u.Codec.Dialect(); !sameDialect(before, now) {
		faults = append(faults, fmt.Errorf("dialect: %s %s cannot change to %s %s while serving", before.Name, before.Version, now.Name, now.Version))
	}
	return errors.Join(faults...)
}

// sameDialect compares what dialects say. They are read again for each configuration, and a file can change without a new version.
func sameDialect(a, b *specs.Dialect) bool {
	if a == b {
		return true
	}
	one, other := reflect.ValueOf(*a), reflect.ValueOf(*b)
	for i := range one.NumField() {
		// What is not exported was compiled from what is.
		if one.Type().Field(i).IsExported() && !reflect.DeepEqual(one.Field(i).Interface(), other.Field(i).Interface()) {
			return false
		}
	}
	return true
}
