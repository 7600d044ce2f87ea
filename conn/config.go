package conn

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"time"

	"acquirerd/messages"
	"acquirerd/specs"
)

// Config is one endpoint. The fields without a default are needed.
type Config struct {
	Name  string          // in logs and metrics
	Codec *messages.Codec // of the processor's dialect
	Links []Link          // in the order by which logs, metrics and commands number them, from 0

	ReplyTimeout  time.Duration // longest wait for an answer, from the call of Exchange
	WriteTimeout  time.Duration // longest wait for a turn to write, and then for a frame to be written; less than ReplyTimeout
	FrameTimeout  time.Duration // longest time from a frame's first byte to its last; default WriteTimeout
	DialTimeout   time.Duration // longest time for a connection to be established
	SignOnTimeout time.Duration // longest wait for the answer to a sign-on, to the echo that stands for one, or to a sign-off
	EchoInterval  time.Duration // after this long without a frame from the processor, it is asked for an echo
	EchoTimeout   time.Duration // longest wait for an echo
	EchoMisses    int           // so many echoes missed in a row close the link

	BackoffMin time.Duration // pause before the first new attempt to connect; doubled for each one after it; at least 10 ms
	BackoffMax time.Duration // longest pause; a link that was in service for so long begins at BackoffMin again

	InFlight     int // most exchanges in flight on the endpoint
	LinkInFlight int // most exchanges in flight on one connection; default InFlight
	Abandoned    int // most keys whose late answers are waited for; default 16 × InFlight, which full timeouts cannot fill
	Unasked      int // most unasked messages that wait for Run's callback; over it they are counted and dropped; default 256

	// MAC makes and checks the codes of the messages that carry one in the processor's dialect; nil where that has none.
	MAC           messages.MACKey
	MACFailures   int           // so many messages with a wrong code within a minute, after its sign-on, suspend a link; default 5
	MACSuspension time.Duration // for how long; 0: until Resume

	FailBack time.Duration // how often a link that is on another host than its first one tries the better ones; default 60 s, at least 100 ms

	// Dial establishes a connection of a link; default TCP. TLS is put over it.
	Dial func(ctx context.Context, address string) (net.Conn, error)
	// Listen opens the address at which a processor dials us; default TCP. TLS is put over what it accepts.
	Listen func(ctx context.Context, address string) (net.Listener, error)
}

// Dialled are links that dial one host each.
func Dialled(addresses ...string) []Link {
	links := make([]Link, len(addresses))
	for i, address := range addresses {
		links[i] = Link{Hosts: []string{address}}
	}
	return links
}

// A Link says how one link comes to be: we dial its hosts, or the processor dials us.
type Link struct {
	Hosts  []string       // addresses to dial, the preferred first; none for a link that is dialled by the processor
	Listen string         // address at which the processor dials us; links with the same one share its listener
	Allow  []netip.Prefix // who may dial us; none: nobody. A prefix of IPv4 addresses mapped to IPv6 is that of the IPv4 addresses
	TLS    *tls.Config    // nil for plain TCP; 1.2 or newer whatever it says. Without a ServerName, the host that was dialled is checked
}

// same reports whether a link need not be touched to become the other one. What changes in TLS holds from the next handshake; who may dial
// it, for who has dialled it too.
func (l Link) same(other Link) bool {
	return slices.Equal(l.Hosts, other.Hosts) && l.Listen == other.Listen && (l.TLS == nil) == (other.TLS == nil)
}

// permits reports whether somebody at this address and port may dial the link.
func (l Link) permits(peer string) bool {
	from, err := netip.ParseAddrPort(peer)
	if err != nil {
		return false
	}
	address := from.Addr().Unmap().WithZone("")
	return slices.ContainsFunc(l.Allow, func(prefix netip.Prefix) bool { return prefix.Contains(address) })
}

// Limits of what would hammer a processor's hosts, by mistake of a unit.
const (
	leastBackoff  = 10 * time.Millisecond
	leastFailBack = 100 * time.Millisecond
)

// check fills in the defaults and returns every fault, each under the name of its key in a configuration file.
func (c *Config) check() error {
	var faults []error
	fault := func(format string, args ...any) { faults = append(faults, fmt.Errorf(format, args...)) }
	if c.Name == "" {
		fault("name: missing")
	}
	if c.Codec == nil {
		fault("dialect: missing")
	}
	if len(c.Links) == 0 {
		fault("links: missing")
	}
	c.Links = slices.Clone(c.Links) // what is made uniform in them is not the caller's
	for i := range c.Links {
		c.checkLink(i, fault)
	}
	if c.FrameTimeout == 0 {
		c.FrameTimeout = c.WriteTimeout
	}
	if c.FailBack == 0 {
		c.FailBack = 60 * time.Second
	}
	for _, d := range []struct {
		key   string
		value time.Duration
	}{
		{"reply_timeout", c.ReplyTimeout}, {"write_timeout", c.WriteTimeout}, {"frame_timeout", c.FrameTimeout},
		{"dial_timeout", c.DialTimeout}, {"sign_on_timeout", c.SignOnTimeout}, {"echo_interval", c.EchoInterval},
		{"echo_timeout", c.EchoTimeout}, {"backoff_min", c.BackoffMin}, {"backoff_max", c.BackoffMax},
		{"fail_back", c.FailBack},
	} {
		if d.value <= 0 {
			fault("%s: must be positive", d.key)
		}
	}
	if c.WriteTimeout > 0 && c.ReplyTimeout > 0 && c.WriteTimeout >= c.ReplyTimeout {
		fault("write_timeout: %v is not less than reply_timeout %v", c.WriteTimeout, c.ReplyTimeout)
	}
	if c.BackoffMin > 0 && c.BackoffMin < leastBackoff {
		fault("backoff_min: %v is less than %v", c.BackoffMin, leastBackoff)
	}
	if c.FailBack > 0 && c.FailBack < leastFailBack {
		fault("fail_back: %v is less than %v", c.FailBack, leastFailBack)
	}
	if c.BackoffMin > c.BackoffMax {
		fault("backoff_min: %v is more than backoff_max %v", c.BackoffMin, c.BackoffMax)
	}
	if c.LinkInFlight == 0 {
		c.LinkInFlight = c.InFlight
	}
	if c.Abandoned == 0 {
		c.Abandoned = 16 * c.InFlight
	}
	if c.Unasked == 0 {
		c.Unasked = 256
	}
	if c.MACFailures == 0 {
		c.MACFailures = defaultMACFailures
	}
	if c.MACSuspension < 0 {
		fault("mac_suspension: must not be negative")
	}
	if c.Codec != nil {
		switch wanted := c.Codec.Dialect().MAC.Place == specs.MACLast; {
		case wanted && c.MAC == nil:
			fault("mac_key: missing: messages of the dialect carry a MAC")
		case !wanted && c.MAC != nil:
			fault("mac_key: messages of the dialect carry no MAC")
		}
	}
	for _, n := range []struct {
		key   string
		value int
	}{
		{"echo_misses", c.EchoMisses}, {"in_flight", c.InFlight}, {"link_in_flight", c.LinkInFlight}, {"abandoned", c.Abandoned},
		{"unasked", c.Unasked}, {"mac_failures", c.MACFailures},
	} {
		if n.value < 1 {
			fault("%s: must be at least 1", n.key)
		}
	}
	if c.Dial == nil {
		c.Dial = func(ctx context.Context, address string) (net.Conn, error) {
			var dialer net.Dialer
			return dialer.DialContext(ctx, "tcp", address)
		}
	}
	if c.Listen == nil {
		c.Listen = func(ctx context.Context, address string) (net.Listener, error) {
			var listening net.ListenConfig
			return listening.Listen(ctx, "tcp", address)
		}
	}
	return errors.Join(faults...)
}

func (c *Config) checkLink(i int, fault func(format string, args ...any)) {
	l := &c.Links[i]
	l.Allow = slices.Clone(l.Allow)
	for j, prefix := range l.Allow {
		if address, bits := prefix.Addr(), prefix.Bits(); address.Is4In6() && bits >= 96 {
			prefix = netip.PrefixFrom(address.Unmap(), bits-96)
		}
		if !prefix.IsValid() || prefix.Addr().Is4In6() {
			fault("links[%d].allow[%d]: not a prefix of addresses", i, j)
		}
		l.Allow[j] = prefix
	}
	switch {
	case l.Listen == "" && len(l.Hosts) == 0:
		fault("links[%d].hosts: missing", i)
	case l.Listen == "" && len(l.Allow) > 0:
		fault("links[%d].allow: is for links with listen", i)
	case l.Listen != "" && len(l.Hosts) > 0:
		fault("links[%d].listen: a link that is dialled by the processor has no hosts", i)
	case l.Listen != "" && len(l.Allow) == 0:
		fault("links[%d].allow: missing: nobody may dial it", i)
	}
	for j, address := range l.Hosts {
		if _, _, err := net.SplitHostPort(address); (err != nil && c.Dial == nil) || address == "" {
			fault("links[%d].hosts[%d]: %q is not host:port", i, j, address)
		}
	}
	if _, _, err := net.SplitHostPort(l.Listen); err != nil && l.Listen != "" && c.Listen == nil {
		fault("links[%d].listen: %q is not host:port", i, l.Listen)
	}
	for j, other := range c.Links[:i] {
		if l.Listen != "" && other.Listen == l.Listen && !slices.Equal(other.Allow, l.Allow) {
			fault("links[%d].allow: differs from that of links[%d], which shares its listener", i, j)
		}
	}
	if l.TLS != nil {
		checkTLS(*l, func(rule string) { fault("links[%d].tls: %s", i, rule) })
	}
}

// silence is how long nothing at all may arrive on a session. It is longer than the echoes need to find out, so that it is the last
// resort: a session whose echo loop is itself stuck in a write.
func (c *Config) silence() time.Duration {
	return c.EchoInterval + time.Duration(c.EchoMisses+1)*(c.EchoTimeout+c.WriteTimeout)
}

// quickWrite is how long a write takes at most while the processor reads: it is the copy of a few hundred bytes into a buffer of this
// host. Behind one that takes longer nobody waits who can go out on another link.
func (c *Config) quickWrite() time.Duration { return c.WriteTimeout / 20 }
