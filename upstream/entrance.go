package upstream

import (
	"context"
	"crypto/x509"
	"encoding/asn1"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strings"
)

// A bar is why a connection may not come in, or may not stay after a change of the configuration.
type bar string

const (
	barAddress bar = "address not allowed"
	barPeer    bar = "certificate carries no name of a peer"
	barPlain   bar = "TLS demanded"
)

func (b bar) Error() string { return string(b) }

// admit gives a connection a place; else it says why not. ctx is the door's.
func (d *Door) admit(ctx context.Context, connection net.Conn) (*session, string) {
	address := addressOf(connection)
	d.mu.Lock()
	defer d.mu.Unlock()
	t := d.terms.Load()
	switch {
	case !t.allows(address):
		return nil, refusedAddress
	case len(d.open) >= t.Connections:
		return nil, refusedTooMany
	}
	s := &session{door: d, raw: connection, connection: connection, address: address, tls: t.TLS,
		log: d.log.With("remote", connection.RemoteAddr().String())}
	s.ctx, s.end = context.WithCancelCause(ctx)
	d.open[s] = struct{}{}
	return s, ""
}

// leave gives back the place of a connection.
func (d *Door) leave(s *session) {
	s.end(nil)
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.open, s)
}

// refuseConnection counts and logs a connection that is not taken. No more of a certificate than its subject goes into the attributes.
func (d *Door) refuseConnection(remote net.Addr, reason string, about ...slog.Attr) {
	d.metrics.refused.WithLabelValues(d.upstream.Name, reason).Inc()
	d.knocking.Do(func() {
		attributes := append([]slog.Attr{slog.String("remote", remote.String()), slog.String("reason", reason)}, about...)
		d.log.LogAttrs(context.Background(), slog.LevelWarn, "connection refused", attributes...)
	})
}

// allows reports whether an address is one from which connections are taken.
func (t *terms) allows(address netip.Addr) bool {
	return len(t.Allow) == 0 || slices.ContainsFunc(t.Allow, func(prefix netip.Prefix) bool { return prefix.Contains(address) })
}

// addressOf is a connection's remote address, invalid if it has none. No prefix contains an address with a zone.
func addressOf(connection net.Conn) netip.Addr {
	remote, ok := connection.RemoteAddr().(*net.TCPAddr)
	if !ok {
		return netip.Addr{}
	}
	return remote.AddrPort().Addr().Unmap().WithZone("")
}

// bars says why an open connection could not be opened again; nil if it could. Called under Door.mu.
func (t *terms) bars(s *session) error {
	switch {
	case !t.allows(s.address):
		return barAddress
	case t.TLS == nil:
		return nil
	case s.tls == nil:
		return barPlain
	case s.certificate != nil && !t.names(s.certificate): // without one, its handshake goes on, and is judged by these terms
		return barPeer
	}
	return nil
}

// names reports whether a certificate carries the name of a peer. The names of a certificate are its DNS names (subjectAltName,
// RFC 5280, 4.2.1.6), or the common name of its subject if it has no subjectAltName at all, as small private CAs make them: where the CA has
// said what the names are, the subject is a text for humans. A wildcard is compared as it stands: it names
// no upstream.
func (t *terms) names(certificate *x509.Certificate) bool {
	carries := func(peer string) bool {
		return slices.ContainsFunc(certificate.DNSNames, func(name string) bool { return strings.EqualFold(name, peer) })
	}
	if !hasAlternativeNames(certificate) {
		carries = func(peer string) bool { return certificate.Subject.CommonName == peer }
	}
	return slices.ContainsFunc(t.Peers, carries)
}

var subjectAltName = asn1.ObjectIdentifier{2, 5, 29, 17}

// hasAlternativeNames looks for the extension itself: it can hold names of kinds that crypto/x509 does not read.
func hasAlternativeNames(certificate *x509.Certificate) bool {
	for _, extension := range certificate.Extensions {
		if extension.Id.Equal(subjectAltName) {
			return true
		}
	}
	return false
}
