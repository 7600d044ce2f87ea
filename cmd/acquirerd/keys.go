package main

import (
	"bytes"
	"context"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"log/slog"
	"net"
	"regexp"
	"slices"
	"strings"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/spf13/cobra"

	"acquirerd/hsm"
)

func (c *cli) keysCommands() *cobra.Command {
	list := c.command("list", "List the secret and private keys of the token", "acquirerd keys list --config acquirerd.yaml", cobra.NoArgs, c.keysList)

	var label, use, kind, kcv string
	generate := c.command("generate", "Make a random key in the token",
		"acquirerd keys generate --label pan-seal-1 --use pan-seal\nacquirerd keys generate --label tls-processor-a --type ec-p256", cobra.NoArgs,
		func(context.Context, []string) error { return c.keysGenerate(label, use, kind) })
	generate.Long = "Generate makes a secret key with --use, or with --type a key pair whose private key signs for TLS and never leaves the token."
	generate.Flags().StringVar(&kind, "type", "", "of a key pair for TLS: "+oneOf(hsm.KeyTypes))

	var names []string
	request := c.command("csr", "Print a certificate signing request for a key pair in the token",
		"acquirerd keys csr --label tls-processor-a --name acq01.example.com", cobra.NoArgs,
		func(context.Context, []string) error { return c.keysCSR(label, names) })
	request.Long = "Csr prints a request (PKCS #10, PEM) that the key pair signs in the token. Each name is put in as a DNS name, or as an address if\n" +
		"it is one; the first is the common name too. What else the certificate says is up to who issues it."
	request.Flags().StringVar(&label, "label", "", "label of the key pair")
	request.Flags().StringArrayVar(&names, "name", nil, "DNS name or address of this host; give it once or more")

	var components []string
	load := c.command("import", "Make a key in the token from its components",
		"acquirerd keys import --label zpk-pos --use pin-in --component custodian-1.hex --component custodian-2.hex --kcv 08D7B4",
		cobra.NoArgs, func(context.Context, []string) error { return c.keysImport(label, use, components, kcv) })
	load.Long = "Import makes a key from the XOR of 2 or 3 components of full length, each in hexadecimal digits in a file of its own.\n" +
		"With --kcv no key stays in the token if they combine to one with another check value. The key passes through this process's memory."
	load.Flags().StringArrayVar(&components, "component", nil, "file with one component in hexadecimal digits; give it 2 or 3 times")
	load.Flags().StringVar(&kcv, "kcv", "", "check value that the key must have, six hexadecimal digits")

	for _, command := range []*cobra.Command{generate, load} {
		command.Flags().StringVar(&label, "label", "", "label of the new key: 1 to 64 printable ASCII characters without spaces")
		command.Flags().StringVar(&use, "use", "", "what it is for: "+oneOf(hsm.Uses))
	}
	return c.group("keys", "List and make the keys in the token (of the config they use only hsm.module, token and pin_file)",
		"acquirerd keys list\nacquirerd keys generate --label pan-token-1 --use pan-token", list, generate, load, request, c.keysRotateCommand())
}

func (c *cli) keysList(context.Context, []string) error {
	cfg, err := c.token()
	if err != nil {
		return err
	}
	keys, err := hsm.List(cfg)
	if err != nil {
		return err
	}
	return c.printKeys(append([]hsm.KeyInfo{}, keys...), keys...)
}

func (c *cli) keysGenerate(label, use, kind string) error {
	switch {
	case kind == "":
		if err := checkNewKey(label, use); err != nil {
			return err
		}
	case use != "":
		return usagef("--use and --type exclude each other: a key pair is for TLS")
	case !slices.Contains(hsm.KeyTypes, hsm.KeyType(kind)):
		return usagef("--type %q is not one of %s", kind, oneOf(hsm.KeyTypes))
	default:
		if err := checkLabel(label); err != nil {
			return err
		}
	}
	cfg, err := c.token()
	if err != nil {
		return err
	}
	var key hsm.KeyInfo
	if kind != "" {
		key, err = hsm.GenerateSigner(cfg, label, hsm.KeyType(kind))
	} else {
		key, err = hsm.Generate(cfg, label, hsm.Use(use))
	}
	if err != nil {
		return err
	}
	return c.printKeys(key, key)
}

// dnsName is a host name (RFC 1123, 2.1), with room for a first label "*".
var dnsName = regexp.MustCompile(`^(\*\.)?([A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?\.)*[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?$`)

const mostDNSName = 253 // bytes (RFC 1035, 2.3.4)

func (c *cli) keysCSR(label string, names []string) error {
	if err := checkLabel(label); err != nil {
		return err
	}
	if len(names) == 0 {
		return usagef("--name is missing")
	}
	template := &x509.CertificateRequest{Subject: pkix.Name{CommonName: names[0]}}
	for _, name := range names {
		if address := net.ParseIP(name); address != nil {
			template.IPAddresses = append(template.IPAddresses, address)
		} else if dnsName.MatchString(name) && len(name) <= mostDNSName {
			template.DNSNames = append(template.DNSNames, name)
		} else {
			return usagef("--name %q is neither a DNS name nor an address", name)
		}
	}
	cfg, err := c.token()
	if err != nil {
		return err
	}
	der, err := hsm.CertificateRequest(cfg, label, template)
	if err != nil {
		return err
	}
	text := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})
	if c.output == "json" {
		return c.printJSON(map[string]string{"label": label, "request": string(text)})
	}
	_, err = c.out.Write(text)
	return err
}

// keysImport gives the components to the token, which finds the KCV: a key that is not what its custodians meant does not stay.
func (c *cli) keysImport(label, use string, files []string, kcv string) error {
	if err := checkNewKey(label, use); err != nil {
		return err
	}
	if len(files) < 2 || len(files) > 3 {
		return usagef("--component is given %d times, not 2 or 3 times", len(files))
	}
	if kcv != "" && !sixHex.MatchString(kcv) {
		return usagef("--kcv is not six hexadecimal digits")
	}
	cfg, err := c.token()
	if err != nil {
		return err
	}
	var components [][]byte
	defer func() {
		for _, component := range components {
			clear(component)
		}
	}()
	for _, file := range files {
		component, err := readComponent(file)
		if err != nil {
			return err
		}
		components = append(components, component)
	}
	key, err := hsm.ImportComponents(cfg, label, hsm.Use(use), components, kcv)
	if err != nil {
		return err
	}
	return c.printKeys(key, key)
}

func checkLabel(label string) error {
	if label == "" {
		return usagef("--label is missing")
	}
	if !plainLabel.MatchString(label) {
		return usagef("--label %s", labelRule)
	}
	return nil
}

func checkNewKey(label, use string) error {
	if err := checkLabel(label); err != nil {
		return err
	}
	if !slices.Contains(hsm.Uses, hsm.Use(use)) {
		return usagef("--use %q is not one of %s", use, oneOf(hsm.Uses))
	}
	return nil
}

// mostComponent bounds the file of one component, in bytes: 64 digits, with room for spaces.
const mostComponent = 4 << 10

// readComponent reads hexadecimal digits, whatever the space between them. Its errors quote nothing of the file.
func readComponent(file string) ([]byte, error) {
	text, err := readFile(file, mostComponent)
	if err != nil {
		return nil, fmt.Errorf("reading component: %w", err)
	}
	defer clear(text)
	digits := bytes.Join(bytes.Fields(text), nil)
	defer clear(digits)
	component := make([]byte, hex.DecodedLen(len(digits)))
	if n, err := hex.Decode(component, digits); err != nil || n == 0 {
		clear(component)
		return nil, fmt.Errorf("reading component: %s does not hold hexadecimal digits", file)
	}
	return component, nil
}

// token is what opening the token needs of the config: a token has its keys before the config can name their check values.
func (c *cli) token() (hsm.Config, error) {
	cfg, err := c.loadParts("hsm.module", "hsm.module_arguments", "hsm.token", "hsm.pin", "hsm.pin_file")
	if err != nil {
		return hsm.Config{}, err
	}
	return cfg.HSM.forHSM(), nil
}

// printKeys prints rows, or a value as JSON.
func (c *cli) printKeys(value any, keys ...hsm.KeyInfo) error {
	if c.output == "json" {
		return c.printJSON(value)
	}
	table := c.table("LABEL", "USE", "KCV", "TYPE", "BITS", "FLAGS")
	for _, key := range keys {
		table.row(key.Label, key.Use, key.KCV, key.Type, key.Bits, strings.Join(key.Flags, ","))
	}
	return table.Flush()
}

func (c *cli) hsmCommands() *cobra.Command {
	status := c.command("status", "Check every key of the config, and say what the HSM can promise", "acquirerd hsm status --config acquirerd.yaml",
		cobra.NoArgs, c.hsmStatus)
	status.Long = "Status opens the token as serve does, in a session of its own, checks every key of the config, and says for each operation\n" +
		"whether clear PIN blocks and keys stay in the token (token-resident) or pass through the daemon's memory (transient)."
	return c.group("hsm", "Look at the HSM", "acquirerd hsm status", status)
}

func (c *cli) hsmStatus(ctx context.Context, _ []string) error {
	cfg, err := c.loadParts("hsm")
	if err != nil {
		return err
	}
	vault, err := hsm.New(cfg.HSM.forHSM(), slog.New(slog.DiscardHandler), prometheus.NewRegistry())
	if err != nil {
		return err
	}
	if err := vault.Open(ctx); err != nil {
		return err
	}
	statement := vault.Statement()
	if err := vault.Close(); err != nil {
		return err
	}
	if c.output == "json" {
		return c.printJSON(statement)
	}
	if _, err := fmt.Fprintf(c.out, "token   %s\nmodule  %s\n\n", statement.Token, statement.Module); err != nil {
		return err
	}
	operations := c.table("OPERATION", "WAY", "MECHANISM", "NOTE")
	for _, o := range statement.Operations {
		operations.row(o.Name, o.Way, o.Mechanism, o.Note)
	}
	if err := operations.Flush(); err != nil {
		return err
	}
	_, _ = fmt.Fprintln(c.out) // Flush tells
	keys := c.table("KEY", "USE", "KCV", "VERSION")
	for _, k := range statement.Keys {
		keys.row(k.Label, k.Use, k.KCV, k.Version)
	}
	return keys.Flush()
}
