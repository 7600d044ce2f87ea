package main

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"acquirerd/messages"
	"acquirerd/simulator"
)

// processorFlags are the flags of the processor command.
type processorFlags struct {
	dialect, zpkFile, zmkFile, pinFormat string
	ledger, ledgerListen                 string
	listen, rules                        []string
	dialling                             simulator.Dialling
	newKey                               string
	tls                                  tlsFlags
	mac                                  macFlags
	acceptBeforeSignOn, trace            bool
	faults                               simulator.Faults
}

func (c *cli) processorCommand() *cobra.Command {
	var f processorFlags
	command := c.command("processor", "Serve acquirerd's links as a card processor",
		processorHelp(),
		"acquirersim processor --dialect iso87-ascii --listen 127.0.0.1:9001 --listen 127.0.0.1:9002 --zpk-file keys/processor-a.key --trace\n"+
			"acquirersim processor --listen 127.0.0.1:9001 --rule 'amount=5100 decline=51' --rule 'mti=04 silence attempt=2' --ledger ledger.json\n"+
			"acquirersim processor --dialect visa-like --dial 127.0.0.1:9100 --dial-connections 2 --tls-ca ca.pem --tls-cert p.pem --tls-key p.key",
		func(ctx context.Context) error { return c.processor(ctx, f) })
	flags := command.Flags()
	command.PreRun = func(*cobra.Command, []string) {
		if len(f.dialling.Addresses) > 0 && !flags.Changed("listen") {
			f.listen = nil
		}
	}
	flags.StringVar(&f.dialect, "dialect", "iso87-ascii", "name of a built-in dialect, or a file")
	flags.StringArrayVar(&f.listen, "listen", []string{"127.0.0.1:9001"}, "TCP address to serve links on; may be given several times; with --dial, none by default")
	flags.StringArrayVar(&f.dialling.Addresses, "dial", nil, "TCP address of an acquirerd that is dialled; may be given several times")
	flags.IntVar(&f.dialling.Connections, "dial-connections", 1, "connections that are kept to each of those")
	flags.DurationVar(&f.dialling.RetryMin, "dial-retry-min", 100*time.Millisecond, "pause before a connection is made again; it doubles")
	flags.DurationVar(&f.dialling.RetryMax, "dial-retry-max", 5*time.Second, "longest pause")
	f.tls.add(command)
	flags.StringVar(&f.newKey, "new-key", "", "what a demanded key change brings, in hexadecimal digits: the cryptogram of the new key under the zone master key, and its check value")
	flags.StringVar(&f.zpkFile, "zpk-file", "", "file with the zone PIN key in hexadecimal digits; without it PINs are not checked")
	flags.StringVar(&f.pinFormat, "pin-format", string(simulator.ISO0), "format of PIN blocks: iso-0, iso-1, iso-3, or iso-4, for which the key is an AES one")
	flags.StringVar(&f.zmkFile, "zmk-file", "", "file with the zone master key in hexadecimal digits: each key change, demanded or asked for, brings a new zone PIN key under it")
	flags.StringArrayVar(&f.rules, "rule", nil, "a rule that goes before the built-in ones; may be given several times")
	f.mac.add(command)
	flags.StringVar(&f.ledger, "ledger", "-", "file for the ledger at the end, - for standard output")
	flags.StringVar(&f.ledgerListen, "ledger-listen", "", "TCP address that answers GET /ledger, POST /demand/DEMAND and POST /host/N/STATE while it runs")
	flags.BoolVar(&f.acceptBeforeSignOn, "accept-before-sign-on", false, "take transactions on a link that has not signed on")
	flags.BoolVar(&f.trace, "trace", false, "print every message, masked")
	flags.Uint64Var(&f.faults.Seed, "seed", 1, "seed of what breaks by chance")
	flags.DurationVar(&f.faults.MaxDelay, "fault-max-delay", 2*time.Second, "longest delay by chance")
	for _, p := range []struct {
		value       *float64
		name, usage string
	}{
		{&f.faults.Lost, "lost", "a message never arrives"}, {&f.faults.Late, "late", "a message is decided late"},
		{&f.faults.Delay, "delay", "an answer is late"}, {&f.faults.Silence, "silence", "a message is decided and not answered"},
		{&f.faults.Drop, "drop", "a message is decided and the link dropped"}, {&f.faults.Close, "close", "the link is closed after the answer"},
		{&f.faults.Duplicate, "duplicate", "an answer comes twice"}, {&f.faults.Reorder, "reorder", "an answer changes places with the next"},
		{&f.faults.Garble, "garble", "an answer cannot be decoded"}, {&f.faults.NoSTAN, "no-stan", "an answer has no DE 11"},
		{&f.faults.OtherLink, "other-link", "an answer comes on another link"},
		{&f.faults.CutAnswer, "cut-answer", "the link is closed in the midst of an answer"},
		{&f.faults.Stall, "stall", "a link is not read for a while"},
		{&f.faults.Reject, "reject", "a request comes back behind a reject header, where the dialect has one"},
		{&f.faults.Keepalive, "keepalive", "a frame of no bytes goes before an answer, where the dialect takes one"},
		{&f.faults.BadMAC, "bad-mac", "an answer's MAC is another one, where the dialect has MACs"},
		{&f.faults.Demand, "demand", "the processor demands something of its own: an echo, a cutover, an advice …"},
	} {
		flags.Float64Var(p.value, "fault-"+p.name, 0, "probability, 0 to 1, that "+p.usage)
	}
	return command
}

// processorHelp tells what the built-in rules do.
func processorHelp() string {
	var text strings.Builder
	text.WriteString("Processor answers sign-on, echo, authorizations, advices and reversals, and keeps a ledger of what it holds, which it writes when\n" +
		"it is stopped (SIGINT, SIGTERM). What it does is decided by the first rule that matches: those of --rule, of the test cards, and these,\n" +
		"by the last digits of the amount in minor units:\n\n")
	for _, d := range simulator.DefaultRules {
		_, _ = fmt.Fprintf(&text, "  %-41s %s\n", d.Rule, d.Meaning)
	}
	text.WriteString("\nEverything else is approved, if the PIN is right (" + simulator.DefaultPIN + ", but for some test cards). Codes are those of ISO 8583:1987,\n" +
		"whatever the dialect's own are.\n\nWhile it runs, POST /demand/DEMAND has it send a message of its own and waits for the answer (")
	for i, demand := range simulator.Demands {
		if i > 0 {
			text.WriteString(", ")
		}
		text.WriteString(string(demand))
	}
	text.WriteString("),\nand POST /host/N/STATE changes what the listener of the N-th --listen does, counted from 1: refuse (no new connections; those that\n" +
		"are open stay), mute (what comes is lost, nothing is said), cut (close what is open), restore.")
	return text.String()
}

// processor serves until it is stopped, and then writes the ledger.
func (c *cli) processor(ctx context.Context, f processorFlags) error {
	p, err := c.newProcessor(f)
	if err != nil {
		return err
	}
	if len(f.dialling.Addresses) > 0 {
		if err := f.dialling.Check(); err != nil {
			return usage(err)
		}
	}
	listeners, err := listen(ctx, f.listen)
	if err != nil {
		return err
	}
	var hosts []*simulator.Host
	for i, listener := range listeners {
		hosts = append(hosts, simulator.NewHost(listener))
		listeners[i] = hosts[i]
	}
	var forLedger []net.Listener
	if f.ledgerListen != "" {
		if forLedger, err = listen(ctx, []string{f.ledgerListen}); err != nil {
			closeAll(listeners)
			return err
		}
	}
	ctx, stop := context.WithCancel(ctx)
	var reporting sync.WaitGroup
	defer reporting.Wait()
	defer stop()
	for _, listener := range forLedger {
		c.log.Info("ledger", "url", "http://"+listener.Addr().String()+"/ledger")
		reporting.Go(func() { c.control(ctx, p, hosts, listener) })
	}
	for _, listener := range listeners {
		c.log.Info("listening", "address", listener.Addr().String(), "dialect", f.dialect)
	}
	var dialled error
	var dialling sync.WaitGroup
	if len(f.dialling.Addresses) > 0 {
		c.log.Info("dialling", "addresses", f.dialling.Addresses, "dialect", f.dialect)
		dialling.Go(func() {
			dialled = p.Connect(ctx, f.dialling)
		})
	}
	served := p.Serve(ctx, listeners...)
	stop()
	dialling.Wait()
	return errors.Join(served, dialled, c.writeLedger(p.Ledger(), f.ledger))
}

func (c *cli) newProcessor(f processorFlags) (*simulator.Processor, error) {
	codec, err := loadCodec(f.dialect)
	if err != nil {
		return nil, err
	}
	zpk, err := readKey(f.zpkFile, f.pinFormat)
	if err != nil {
		return nil, err
	}
	zmk, err := readKey(f.zmkFile, f.pinFormat) // of the algorithm of the keys under it
	if err != nil {
		return nil, err
	}
	if zmk != nil && f.newKey != "" {
		return nil, usagef("--new-key and --zmk-file exclude each other")
	}
	cfg := simulator.ProcessorConfig{Codec: codec, ZPK: zpk, ZMK: zmk, Faults: f.faults, AcceptBeforeSignOn: f.acceptBeforeSignOn, Log: c.log}
	if cfg.MAC, err = f.mac.key(codec); err != nil {
		return nil, err
	}
	if cfg.TLS, err = f.tls.config(); err != nil {
		return nil, err
	}
	if cfg.TLS != nil && len(f.listen) > 0 && f.tls.cert == "" {
		return nil, usagef("--tls-cert is missing: who listens must show one")
	}
	if cfg.NewKey, err = readNewKey(codec, f.newKey); err != nil {
		return nil, err
	}
	for i, text := range f.rules {
		rule, err := simulator.ParseRule(text)
		if err != nil {
			return nil, usagef("--rule %d: %w", i+1, err)
		}
		cfg.Rules = append(cfg.Rules, rule)
	}
	if f.trace {
		cfg.Trace = (&tracer{w: c.out, asJSON: c.output == "json"}).trace
	}
	p, err := simulator.NewProcessor(cfg)
	return p, usage(err)
}

func listen(ctx context.Context, addresses []string) ([]net.Listener, error) {
	var listeners []net.Listener
	for _, address := range addresses {
		listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", address)
		if err != nil {
			closeAll(listeners)
			return nil, err
		}
		listeners = append(listeners, listener)
	}
	return listeners, nil
}

func closeAll(listeners []net.Listener) {
	for _, listener := range listeners {
		_ = listener.Close()
	}
}

// readNewKey reads what a key change brings: a cryptogram and a check value as long as the dialect has them.
func readNewKey(codec *messages.Codec, text string) (key messages.NewKey, err error) {
	if text == "" {
		return key, nil
	}
	where := codec.Dialect().NetworkManagement.KeyData
	value, err := hex.DecodeString(text)
	if err != nil || where.Cryptogram == 0 || len(value) != where.Cryptogram+where.CheckValue {
		return key, usagef("--new-key is not %d hexadecimal digits, a cryptogram and a check value as the dialect has them", 2*(where.Cryptogram+where.CheckValue))
	}
	return messages.NewKey{Cryptogram: value[:where.Cryptogram], CheckValue: value[where.Cryptogram:]}, nil
}

// changeHost does to a host what POST /host/N/STATE says. It is false for what is none.
func changeHost(hosts []*simulator.Host, number, state string) bool {
	n, err := strconv.Atoi(number)
	if err != nil || n < 1 || n > len(hosts) {
		return false
	}
	host := hosts[n-1]
	switch state {
	case "refuse":
		host.Refuse(true)
	case "mute":
		host.Mute(true)
	case "cut":
		host.Cut()
	case "restore":
		host.Refuse(false)
		host.Mute(false)
	default:
		return false
	}
	return true
}

// control answers GET /ledger, and does what is posted, until ctx ends.
func (c *cli) control(ctx context.Context, p *simulator.Processor, hosts []*simulator.Host, listener net.Listener) {
	ledger := p.Ledger()
	mux := http.NewServeMux()
	mux.HandleFunc("POST /demand/{demand}", func(w http.ResponseWriter, r *http.Request) {
		if err := p.Demand(r.Context(), simulator.Demand(r.PathValue("demand"))); err != nil {
			http.Error(w, oneLine(err), http.StatusConflict)
			return
		}
		_, _ = io.WriteString(w, "answered\n")
	})
	mux.HandleFunc("POST /host/{number}/{state}", func(w http.ResponseWriter, r *http.Request) {
		if !changeHost(hosts, r.PathValue("number"), r.PathValue("state")) {
			http.Error(w, "it has no such host (they are numbered from 1), or no such state (refuse, mute, cut, restore)", http.StatusNotFound)
			return
		}
		_, _ = io.WriteString(w, "done\n")
	})
	mux.HandleFunc("GET /ledger", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		if err := ledger.WriteJSON(w); err != nil {
			c.log.Warn("ledger not delivered", "error", err)
		}
	})
	const patience = 10 * time.Second
	server := &http.Server{Handler: mux, ReadHeaderTimeout: patience, WriteTimeout: 6 * patience}
	defer context.AfterFunc(ctx, func() { _ = server.Close() })()
	if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
		c.log.Error("ledger is not served any more", "error", err)
	}
}

// writeLedger writes the ledger where it was asked for; beside a file, the counts go to standard output.
func (c *cli) writeLedger(ledger *simulator.Ledger, path string) error {
	if path == "-" {
		return ledger.WriteJSON(c.out)
	}
	file, err := os.OpenFile(filepath.Clean(path), os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return fmt.Errorf("writing ledger: %w", err)
	}
	if err := errors.Join(ledger.WriteJSON(file), file.Close()); err != nil {
		return err
	}
	counts := ledger.Counts()
	return c.print(counts, func(w io.Writer) {
		effects, _ := json.Marshal(counts.Effects) // a map of numbers
		_, _ = fmt.Fprintf(w, "requests %d: held %d, reversed %d, declined %d\nreversal messages %d: repeats %d, without their mark %d, of unknown requests %d\n"+
			"duplicate requests %d, format errors %d, wrong PINs %d, PIN blocks that are none %d\neffects %s\n",
			counts.Requests, counts.Held, counts.Reversed, counts.Declined, counts.Reversals, counts.ReversalRepeats, counts.UnmarkedRepeats,
			counts.UnknownReversals, counts.DuplicateRequests, counts.FormatErrors, counts.WrongPINs, counts.MalformedPINBlocks, effects)
	})
}
