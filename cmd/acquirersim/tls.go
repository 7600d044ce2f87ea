package main

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"
)

// tlsFlags say how a party shows who it is, and whom it takes.
type tlsFlags struct{ cert, key, ca, name string }

func (f *tlsFlags) add(command *cobra.Command) {
	flags := command.Flags()
	flags.StringVar(&f.cert, "tls-cert", "", "PEM file with the certificate that it shows; with --tls-key or --tls-ca, TLS is used")
	flags.StringVar(&f.key, "tls-key", "", "PEM file with the certificate's key")
	flags.StringVar(&f.ca, "tls-ca", "", "PEM file with the authorities of the other party; where it is dialled, that must show a certificate then")
	flags.StringVar(&f.name, "tls-name", "", "name that the certificate of who is dialled must have (default the host that is dialled)")
}

// config is nil if no TLS was asked for.
func (f *tlsFlags) config() (*tls.Config, error) {
	if *f == (tlsFlags{}) {
		return nil, nil
	}
	config := &tls.Config{MinVersion: tls.VersionTLS12, ServerName: f.name}
	if (f.cert == "") != (f.key == "") {
		return nil, usagef("--tls-cert and --tls-key belong together")
	}
	if f.cert != "" {
		pair, err := tls.LoadX509KeyPair(f.cert, f.key)
		if err != nil {
			return nil, usagef("--tls-cert, --tls-key: %w", err)
		}
		config.Certificates = []tls.Certificate{pair}
	}
	if f.ca != "" {
		pem, err := os.ReadFile(filepath.Clean(f.ca))
		if err != nil {
			return nil, usagef("--tls-ca: %w", err)
		}
		pool := x509.NewCertPool()
		if !pool.AppendCertsFromPEM(pem) {
			return nil, &usageError{fmt.Errorf("--tls-ca: %w", errNoCertificate)}
		}
		config.RootCAs, config.ClientCAs, config.ClientAuth = pool, pool, tls.RequireAndVerifyClientCert
	}
	return config, nil
}

var errNoCertificate = errors.New("it holds no certificate in PEM form")
