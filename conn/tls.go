package conn

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
)

// leastTLS is the oldest version that is spoken, whatever a configuration says (PCI DSS 4.0, 4.2.1: strong cryptography; RFC 8996
// deprecates 1.0 and 1.1).
const leastTLS = tls.VersionTLS12

func checkTLS(l Link, fault func(rule string)) {
	if l.TLS.MaxVersion != 0 && l.TLS.MaxVersion < leastTLS {
		fault("the newest version that it allows is older than TLS 1.2")
	}
	if l.TLS.InsecureSkipVerify && l.TLS.VerifyConnection == nil && l.TLS.VerifyPeerCertificate == nil {
		fault("a certificate that is not verified proves nothing")
	}
	if l.Listen != "" && len(l.TLS.Certificates) == 0 && l.TLS.GetCertificate == nil && l.TLS.GetConfigForClient == nil {
		fault("a link that is dialled by the processor needs a certificate")
	}
}

var errOldTLS = errors.New("the processor speaks a version older than TLS 1.2")

// secure puts TLS over a connection: as the client of the host that was dialled, or as the server if host is empty. ctx bounds the
// handshake. After an error the connection is closed.
func secure(ctx context.Context, under net.Conn, configured *tls.Config, host string) (*tls.Conn, error) {
	cfg := configured.Clone()
	cfg.MinVersion = max(cfg.MinVersion, leastTLS)
	var over *tls.Conn
	if host == "" {
		over = tls.Server(under, cfg)
	} else {
		if cfg.ServerName == "" {
			name, _, err := net.SplitHostPort(host)
			if err != nil {
				name = host
			}
			cfg.ServerName = name
		}
		over = tls.Client(under, cfg)
	}
	err := over.HandshakeContext(ctx)
	if err == nil && over.ConnectionState().Version < leastTLS { // GetConfigForClient has the last word on the version
		err = errOldTLS
	}
	if err != nil {
		_ = under.Close() // not over: its farewell could wait for a peer that reads nothing
		return nil, fmt.Errorf("shaking hands: %w", err)
	}
	return over, nil
}

// underneath returns the connection that TLS stands on, or the connection itself.
func underneath(c net.Conn) net.Conn {
	for {
		over, is := c.(interface{ NetConn() net.Conn })
		if !is {
			return c
		}
		c = over.NetConn()
	}
}

// isTLS reports whether an error is the TLS protocol's: with TLS 1.3 the refusal of our certificate arrives after our handshake.
func isTLS(err error) bool {
	var record tls.RecordHeaderError
	var alert *net.OpError // as which the library wraps those that it receives and those that it sends
	return errors.As(err, &record) || (errors.As(err, &alert) && (alert.Op == "remote error" || alert.Op == "local error"))
}
