package main

import (
	"cmp"
	"context"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
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
	inventory := c.command("inventory", "List all that an auditor asks of each key",
		"acquirerd keys inventory --config acquirerd.yaml --output json", cobra.NoArgs, c.keysInventory)
	inventory.Long = "Inventory lists each key with its algorithm, version, mechanisms and flags, whether the config names it, and how many PANs and rests of\n" +
		"advices in the journal only it opens; and the token's serial number."

	return c.group("keys", "List, make and destroy the keys in the token (of the config they use only hsm.module, token, pin_file and legacy_cryptogram)",
		"acquirerd keys list\nacquirerd keys generate --label pan-token-1 --use pan-token",
		list, inventory, c.keysGenerateCommand(), c.keysComponentsCommand(), c.keysImportCommand(), c.keysExportCommand(), c.keysKCVCommand(), c.keysDestroyCommand(),
		c.keysRotateCommand(), c.keysCSRCommand())
}

// newKeyFlags gives a command the flags that say which key it makes.
func newKeyFlags(command *cobra.Command, label, use, algorithm *string, bits *int) {
	if label != nil {
		command.Flags().StringVar(label, "label", "", "label of the new key: 1 to 64 printable ASCII characters without spaces")
	}
	command.Flags().StringVar(use, "use", "", "what it is for: "+oneOf(hsm.Uses))
	command.Flags().StringVar(algorithm, "algorithm", "", "tdes, aes or hmac, as its use allows; without it "+defaultAlgorithms())
	command.Flags().IntVar(bits, "bits", 0, "length, parity included: 128 or 192 of tdes, 128 or 256 of aes; without it that of what comes, or 128 of tdes and 256 of aes")
}

// defaultAlgorithms says which algorithm the new key of each use has where nobody says another: a component that is taken for one of another algorithm has
// another check value, and that is all that its custodian sees.
func defaultAlgorithms() string {
	var parts []string
	for _, algorithm := range hsm.Algorithms {
		var uses []string
		for _, use := range hsm.Uses {
			if hsm.DefaultAlgorithm(use) == algorithm {
				uses = append(uses, string(use))
			}
		}
		parts = append(parts, fmt.Sprintf("%s for %s", algorithm, strings.Join(uses, ", ")))
	}
	return strings.Join(parts, "; ")
}

func (c *cli) keysGenerateCommand() *cobra.Command {
	var n newKey
	var kind string
	generate := c.command("generate", "Make a random key in the token",
		"acquirerd keys generate --label pan-seal-1 --use pan-seal\nacquirerd keys generate --label tls-processor-a --type ec-p256", cobra.NoArgs,
		func(ctx context.Context, _ []string) error { return c.keysGenerate(ctx, n, kind) })
	generate.Long = "Generate makes a secret key with --use, or with --type a key pair whose private key signs for TLS and never leaves the token.\n" +
		"Nobody else can have a secret key that was generated: see keys export and keys components for those."
	generate.Flags().StringVar(&kind, "type", "", "of a key pair for TLS: "+oneOf(hsm.KeyTypes))
	newKeyFlags(generate, &n.label, &n.use, &n.algorithm, &n.bits)
	return generate
}

func (c *cli) keysComponentsCommand() *cobra.Command {
	var n newKey
	var files []string
	command := c.command("components", "Have the token make the components of a new key, for its custodians",
		"acquirerd keys components --use zmk --file /media/a/zmk-a.component --file /media/b/zmk-a.component", cobra.NoArgs,
		func(ctx context.Context, _ []string) error { return c.keysComponents(ctx, n, files) })
	command.Long = "Components has the token make 2 or 3 random components of a new key, and writes each with its check value to a new file of its own, which\n" +
		"only the user of this command can read. It prints the check values, and that of the key which the components make. The key itself is not in the\n" +
		"token: its custodians bring it there, and to its other side, by keys import."
	command.Flags().StringArrayVar(&files, "file", nil, "new file for one component; give it 2 or 3 times")
	newKeyFlags(command, nil, &n.use, &n.algorithm, &n.bits)
	return command
}

func (c *cli) keysImportCommand() *cobra.Command {
	var n newKey
	var from bringing
	load := c.command("import", "Make a key in the token from components, a key block, or a cryptogram",
		"acquirerd keys import --label zmk-a --use zmk --kcv 08D7B4 --custodian alice --custodian bob\n"+
			"acquirerd keys import --label zpk-pos --use pin-in --kcv 08D7B4 --component a.component --custodian alice --component b.component --custodian bob\n"+
			"acquirerd keys import --label zpk-proc-a --use pin-out --key-block zpk-proc-a.tr31 --kbpk kbpk-a", cobra.NoArgs,
		func(ctx context.Context, _ []string) error { return c.keysImport(ctx, n, from) })
	load.Long = "Import makes a key from one of these:\n\n" +
		"  components   The XOR of 2 or 3 components of full length makes the key, and its check value --kcv is demanded. Each custodian is named once by\n" +
		"               --custodian. Without --component each types a component and its check value at this terminal, where neither is shown. With it, each\n" +
		"               --component is a file that holds the hexadecimal digits and, on a line of its own, \"kcv\" and the check value. No one is\n" +
		"               custodian twice: a name, a file, or the owner of two files that is not the user of this command, is refused. That two names are two\n" +
		"               people, this command cannot know.\n" +
		"  --key-block  A file with a key block of ANS X9.143 (TR-31), version B or D, under the kbpk key --kbpk. Versions A and C are taken with\n" +
		"               --legacy-key-block; then the components are those of the protection key, and --kbpk-kcv is its check value.\n" +
		"  --cryptogram Hexadecimal digits of a key in ECB, or with --cbc in CBC, under the zmk key --zmk, with its check value --kcv. It needs\n" +
		"               hsm.legacy_cryptogram: such a cryptogram does not say what the key is for, and can be changed unseen.\n\n" +
		"A key with another check value than --kcv is never in the token. A key under a weaker one is refused."
	load.Flags().StringArrayVar(&from.components, "component", nil, "file with one component and its check value; give it 2 or 3 times, or let custodians type")
	load.Flags().StringArrayVar(&from.custodians, "custodian", nil, "name of a custodian, in the order of the components; give it 2 or 3 times")
	load.Flags().StringVar(&n.kcv, "kcv", "", "check value that the key must have, six hexadecimal digits")
	load.Flags().StringVar(&from.keyBlock, "key-block", "", "file with a key block")
	load.Flags().StringVar(&from.kbpk, "kbpk", "", "label of the kbpk key that protects the key block")
	load.Flags().BoolVar(&from.legacy, "legacy-key-block", false, "the key block is of version A or C")
	load.Flags().StringVar(&from.kbpkKCV, "kbpk-kcv", "", "with --legacy-key-block: check value of the protection key")
	load.Flags().StringVar(&from.cryptogram, "cryptogram", "", "the key under a zone master key, in hexadecimal digits")
	load.Flags().StringVar(&from.zmk, "zmk", "", "label of the zmk key that the cryptogram is under")
	load.Flags().BoolVar(&from.cbc, "cbc", false, "the cryptogram is in CBC with an initial vector of zeros")
	newKeyFlags(load, &n.label, &n.use, &n.algorithm, &n.bits)
	return load
}

func (c *cli) keysExportCommand() *cobra.Command {
	var n newKey
	var kbpk, file, exportability string
	command := c.command("export", "Make a new key, and a key block with it for its other side",
		"acquirerd keys export --label zpk-pos --use pin-in --kbpk kbpk-pos --file zpk-pos.tr31", cobra.NoArgs,
		func(ctx context.Context, _ []string) error { return c.keysExport(ctx, n, kbpk, file, exportability) })
	command.Long = "Export makes a random key in the token, and writes it to a new file as a key block of ANS X9.143 (TR-31): version D under a kbpk key for\n" +
		"aes, B under one for tdes. The block permits what the other side does with the key: who gets the block of our pin-in key enciphers with it.\n" +
		"A key that is in the token already never leaves it, because keys are made not extractable: so a key is exported when it is made, or never."
	command.Flags().StringVar(&kbpk, "kbpk", "", "label of the kbpk key that protects the key block")
	command.Flags().StringVar(&file, "file", "", "new file for the key block; - is standard output")
	command.Flags().StringVar(&exportability, "exportability", "N", "whether its receiver may export it: N not, E under a key block protection key, S otherwise too")
	newKeyFlags(command, &n.label, &n.use, &n.algorithm, &n.bits)
	return command
}

func (c *cli) keysKCVCommand() *cobra.Command {
	var label, file, algorithm string
	command := c.command("kcv", "Show the check value of a key in the token, or of a component",
		"acquirerd keys kcv --label zpk-pos\nacquirerd keys kcv --component zmk-a.component --algorithm tdes", cobra.NoArgs,
		func(ctx context.Context, _ []string) error { return c.keysKCV(ctx, label, file, algorithm) })
	command.Long = "Kcv has the token compute a check value. Of a component it is the one that it would have as a key of the algorithm: of tdes the first three\n" +
		"bytes of zeros enciphered, of aes those of the CMAC of a block of zeros, of hmac those of HMAC-SHA-256 of \"acquirerd key check 1\", because no\n" +
		"standard has one. Of a key that was changed by a message it is that of the label's first version: hsm status has the one that is in use."
	command.Flags().StringVar(&label, "label", "", "label of the key")
	command.Flags().StringVar(&file, "component", "", "file with one component, in hexadecimal digits")
	command.Flags().StringVar(&algorithm, "algorithm", "tdes", "of the component's key: tdes, aes or hmac")
	return command
}

func (c *cli) keysDestroyCommand() *cobra.Command {
	var label, kcv string
	var inUse bool
	var unreadable int64
	command := c.command("destroy", "Destroy a secret key in the token, for ever",
		"acquirerd keys destroy --label zpk-pos-old --kcv 08D7B4", cobra.NoArgs,
		func(ctx context.Context, _ []string) error { return c.keysDestroy(ctx, label, kcv, inUse, unreadable) })
	command.Long = "Destroy destroys the key of a label if it has that check value. A key that the config names, or with which the running daemon was\n" +
		"started, is refused: a daemon that uses it stops serving, and starts no more. So is one under which the journal has PANs or rests of\n" +
		"advices, which nobody can read then: journal reseal puts them under the present seal key first. A key pair for TLS ends by the token's own tools."
	command.Flags().StringVar(&label, "label", "", "label of the key")
	command.Flags().StringVar(&kcv, "kcv", "", "its check value, six hexadecimal digits")
	command.Flags().BoolVar(&inUse, "force-in-use", false, "also a key that the config names or the running daemon uses")
	command.Flags().Int64Var(&unreadable, "unreadable", 0, "so many rows of the journal may become unreadable")
	return command
}

func (c *cli) keysCSRCommand() *cobra.Command {
	var label string
	var names []string
	request := c.command("csr", "Print a certificate signing request for a key pair in the token",
		"acquirerd keys csr --label tls-processor-a --name acq01.example.com", cobra.NoArgs,
		func(context.Context, []string) error { return c.keysCSR(label, names) })
	request.Long = "Csr prints a request (PKCS #10, PEM) that the key pair signs in the token. Each name is put in as a DNS name, or as an address if\n" +
		"it is one; the first is the common name too. What else the certificate says is up to who issues it."
	request.Flags().StringVar(&label, "label", "", "label of the key pair")
	request.Flags().StringArrayVar(&names, "name", nil, "DNS name or address of this host; give it once or more")
	return request
}

// A newKey is what the flags say of a key to be made.
type newKey struct {
	label, use, algorithm, kcv string
	bits                       int
}

func (n newKey) forHSM() hsm.NewKey {
	return hsm.NewKey{Label: n.label, Use: hsm.Use(n.use), Algorithm: hsm.Algorithm(n.algorithm), Bits: n.bits, KCV: n.kcv}
}

// check refuses flags that no token could make a key of.
func (n newKey) check() error {
	if err := checkLabel(n.label); err != nil {
		return err
	}
	return n.checkKind()
}

func (n newKey) checkKind() error {
	switch {
	case !slices.Contains(hsm.Uses, hsm.Use(n.use)):
		return usagef("--use %q is not one of %s", n.use, oneOf(hsm.Uses))
	case n.algorithm != "" && !slices.Contains(hsm.Algorithms, hsm.Algorithm(n.algorithm)):
		return usagef("--algorithm %q is not one of %s", n.algorithm, oneOf(hsm.Algorithms))
	case n.kcv != "" && !sixHex.MatchString(n.kcv):
		return usagef("--kcv is not six hexadecimal digits")
	}
	return nil
}

// errInterrupted is of a command that was interrupted before it began what it was asked for.
var errInterrupted = errors.New("interrupted: nothing was done")

// audited frames what changes keys by two rows of the audit table. The asking is durable before do begins: a process that is killed, then or when the token has done it,
// leaves that row without an end, which tells to look at the token. Where it cannot be written, nothing is done. An interrupt reaches neither row.
func (c *cli) audited(ctx context.Context, e hsm.Event, do func() (hsm.KeyInfo, error)) (hsm.KeyInfo, error) {
	record, err := c.keyRecord(e)
	if err == nil {
		asked := e
		asked.Result = resultAsked
		err = record(ctx, asked)
	}
	if err != nil {
		return hsm.KeyInfo{}, fmt.Errorf("doing nothing, because it cannot be recorded: %w", err)
	}
	if ctx.Err() != nil {
		do = func() (hsm.KeyInfo, error) { return hsm.KeyInfo{}, errInterrupted }
	}
	return record.end(ctx, e, do)
}

// looked looks at a key and puts it on record, in one row, because nothing is another one afterwards.
func (c *cli) looked(ctx context.Context, e hsm.Event, at func() (hsm.KeyInfo, error)) (hsm.KeyInfo, error) {
	record, err := c.keyRecord(e)
	if err != nil {
		return hsm.KeyInfo{}, err
	}
	return record.end(ctx, e, at)
}

// end puts on record what came of it. An error of that is one of the command: what was done is done then.
func (record keyRecord) end(ctx context.Context, e hsm.Event, do func() (hsm.KeyInfo, error)) (hsm.KeyInfo, error) {
	key, err := do()
	e.Result = resultOK
	if key.KCV != "" {
		e.KCV = key.KCV
	}
	if err != nil {
		e.Result = oneLine(err)
	}
	return key, errors.Join(err, record(ctx, e))
}

func (c *cli) keysList(context.Context, []string) error {
	_, cfg, err := c.token()
	if err != nil {
		return err
	}
	keys, err := hsm.List(cfg)
	if err != nil {
		return err
	}
	return c.printKeys(append([]hsm.KeyInfo{}, keys...), keys...)
}

func (c *cli) keysGenerate(ctx context.Context, n newKey, kind string) error {
	switch {
	case kind == "":
		if err := n.check(); err != nil {
			return err
		}
	case n.use != "":
		return usagef("--use and --type exclude each other: a key pair is for TLS")
	case n.algorithm != "" || n.bits != 0:
		return usagef("--type says the algorithm and the length of a key pair")
	case !slices.Contains(hsm.KeyTypes, hsm.KeyType(kind)):
		return usagef("--type %q is not one of %s", kind, oneOf(hsm.KeyTypes))
	default:
		if err := checkLabel(n.label); err != nil {
			return err
		}
	}
	_, cfg, err := c.token()
	if err != nil {
		return err
	}
	key, err := c.audited(ctx, hsm.Event{What: hsm.KeyGenerated, Key: n.label}, func() (hsm.KeyInfo, error) {
		if kind != "" {
			return hsm.GenerateSigner(cfg, n.label, hsm.KeyType(kind))
		}
		return hsm.Generate(cfg, n.forHSM())
	})
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
	_, cfg, err := c.token()
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

func checkLabel(label string) error {
	if label == "" {
		return usagef("--label is missing")
	}
	if !plainLabel.MatchString(label) {
		return usagef("--label %s", labelRule)
	}
	return nil
}

// token is what opening the token needs of the config, and the config: a token has its keys before the config can name their check values.
func (c *cli) token() (*Config, hsm.Config, error) {
	cfg, err := c.loadParts("hsm.module", "hsm.module_arguments", "hsm.token", "hsm.pin", "hsm.pin_file", "hsm.legacy_cryptogram")
	if err != nil {
		return nil, hsm.Config{}, err
	}
	return cfg, cfg.HSM.forHSM(), nil
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
		"whether clear PIN blocks and keys stay in the token (token-resident) or pass through the daemon's memory (transient): of what the\n" +
		"keys of the config are for, what is done; of the rest, what the token can do. Each was tried with keys that end with the trial; the\n" +
		"times are those of one such operation, with a key of the session."
	return c.group("hsm", "Look at the HSM", "acquirerd hsm status", status)
}

func (c *cli) hsmStatus(ctx context.Context, _ []string) error {
	cfg, err := c.loadParts("hsm")
	if err != nil {
		return err
	}
	own := cfg.HSM.forHSM()
	own.RequireTokenResident = false // it is to be seen why serve would refuse
	vault, err := hsm.New(own, slog.New(slog.DiscardHandler), prometheus.NewRegistry())
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
	operations := c.table("OPERATION", "IN USE", "WAY", "µs", "MECHANISM", "NOTE")
	for _, o := range statement.Operations {
		used, micros := "-", "-"
		if o.InUse {
			used = "yes"
		}
		if o.Way != hsm.NotAvailable && o.Micros > 0 {
			micros = fmt.Sprintf("%.1f", o.Micros)
		}
		operations.row(o.Name, used, o.Way, micros, cmp.Or(o.Mechanism, "-"), o.Note)
	}
	if err := operations.Flush(); err != nil {
		return err
	}
	if transient := statement.Transient(); cfg.HSM.RequireTokenResident && len(transient) > 0 {
		_, _ = fmt.Fprintf(c.out, "\nserve would refuse, by hsm.require_token_resident: %s\n", strings.Join(transient, ", "))
	}
	_, _ = fmt.Fprintln(c.out) // Flush tells
	keys := c.table("KEY", "USE", "KCV", "VERSION")
	for _, k := range statement.Keys {
		keys.row(k.Label, k.Use, k.KCV, k.Version)
	}
	return keys.Flush()
}
