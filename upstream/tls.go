package upstream

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"log/slog"
	"net"
	"strings"
	"time"

	"acquirerd/conn"
)

// usable checks what a door needs of a TLS configuration. The rest it sets itself; see secured.
func usable(cfg *tls.Config) error {
	if cfg.GetConfigForClient != nil {
		return nil // what it returns is not known before
	}
	var faults []error
	if len(cfg.Certificates) == 0 && cfg.GetCertificate == nil {
		faults = append(faults, errors.New("no certificate"))
	}
	if cfg.ClientCAs == nil {
		faults = append(faults, errNoClientCA)
	}
	if cfg.MaxVersion != 0 && cfg.MaxVersion < tls.VersionTLS12 {
		faults = append(faults, errors.New("at least TLS 1.2 must be allowed"))
	}
	return errors.Join(faults...)
}

// errNoClientCA: without a pool, crypto/tls would take the certificates of all CAs that the system trusts.
var errNoClientCA = errors.New("no CA for client certificates")

// secured is a configuration with what no configuration may leave out: TLS 1.2 or newer, and a client certificate that is verified and
// whose name is judged. Sessions are not resumed: a resumed one would not be verified again, and connections that stay open for days have
// nothing to gain.
func secured(cfg *tls.Config, judge func(tls.ConnectionState) error) *tls.Config {
	c := cfg.Clone()
	c.MinVersion = max(c.MinVersion, tls.VersionTLS12)
	c.ClientAuth = tls.RequireAndVerifyClientCert
	c.SessionTicketsDisabled = true
	further := c.VerifyConnection
	c.VerifyConnection = func(state tls.ConnectionState) error {
		if further != nil {
			if err := further(state); err != nil {
				return err
			}
		}
		return judge(state)
	}
	if choose := c.GetConfigForClient; choose != nil {
		c.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
			chosen, err := choose(hello)
			if err != nil {
				return nil, err
			}
			if chosen == nil {
				chosen = cfg
			}
			if chosen.ClientCAs == nil {
				return nil, errNoClientCA
			}
			return secured(chosen, judge), nil
		}
	}
	return c
}

// handshake puts TLS over the connection. It fails if that takes too long, or if the upstream may not come in.
func (s *session) handshake() error {
	paced := &conn.PacedConn{Conn: s.raw, Timeout: func() time.Duration { return s.door.terms.Load().WriteTimeout }}
	connection := tls.Server(paced, secured(s.tls, s.identify))
	if err := connection.SetDeadline(time.Now().Add(s.door.terms.Load().HandshakeTimeout)); err != nil {
		return err
	}
	if err := connection.HandshakeContext(s.ctx); err != nil {
		return err
	}
	s.connection, s.paced = connection, paced
	return paced.SetWriteDeadline(time.Time{}) // each read has a deadline of its own
}

// identify judges the certificate of a handshake by the terms that hold now, and lets Reconfigure judge it from now on.
func (s *session) identify(state tls.ConnectionState) error {
	if len(state.VerifiedChains) == 0 {
		return barPeer
	}
	d := s.door
	d.mu.Lock()
	defer d.mu.Unlock()
	s.certificate = state.PeerCertificates[0]
	if t := d.terms.Load(); t.TLS != nil && !t.names(s.certificate) {
		return barPeer
	}
	return nil
}

// refuseHandshake counts and logs a handshake that has failed.
func (s *session) refuseHandshake(err error) {
	barred := context.Cause(s.ctx) // by Reconfigure, meanwhile
	switch {
	case errors.Is(err, barPeer), errors.Is(barred, barPeer):
		s.door.refuseConnection(s.raw.RemoteAddr(), refusedPeer, slog.String("subject", subject(s.certificate)))
	case errors.Is(barred, barAddress):
		s.door.refuseConnection(s.raw.RemoteAddr(), refusedAddress)
	case barred != nil: // the door is being closed
	default:
		about := []slog.Attr{slog.String("cause", handshakeCause(err))}
		var unverified *tls.CertificateVerificationError
		if errors.As(err, &unverified) && len(unverified.UnverifiedCertificates) > 0 {
			about = append(about, slog.String("subject", subject(unverified.UnverifiedCertificates[0])))
		}
		s.door.refuseConnection(s.raw.RemoteAddr(), refusedTLS, about...)
	}
}

// subjectBytes is the most of a subject that is logged: strangers can write what they like into theirs.
const subjectBytes = 128

func subject(certificate *x509.Certificate) string {
	if certificate == nil {
		return ""
	}
	name := certificate.Subject.String()
	return strings.ToValidUTF8(name[:min(len(name), subjectBytes)], "")
}

// handshakeCause names what went wrong in words of our own: the errors of crypto/tls and crypto/x509 can quote certificates and hellos.
func handshakeCause(err error) string {
	var (
		unverified *tls.CertificateVerificationError
		invalid    x509.CertificateInvalidError
		unknown    x509.UnknownAuthorityError
		header     tls.RecordHeaderError
		network    net.Error
		operation  *net.OpError
	)
	switch {
	case errors.As(err, &unknown):
		return "certificate of an unknown authority"
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		return "certificate expired or not valid yet"
	case errors.As(err, &invalid) && invalid.Reason == x509.IncompatibleUsage:
		return "certificate not for clients"
	case errors.As(err, &unverified):
		return "certificate not verified"
	case errors.As(err, &header):
		return "not TLS"
	case errors.As(err, &operation) && operation.Op == "remote error":
		return "refused by upstream: " + operation.Err.Error() // a TLS alert: one of a closed set
	case errors.As(err, &network) && network.Timeout():
		return "timeout"
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return "closed by upstream"
	case errors.Is(err, errNoClientCA):
		return err.Error()
	// These two have no type; where their text changes, the cause is less exact.
	case strings.Contains(err.Error(), "client didn't provide a certificate"):
		return "no certificate"
	case strings.Contains(err.Error(), "client offered only unsupported versions"):
		return "TLS version"
	}
	return "handshake failed"
}
