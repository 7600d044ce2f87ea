package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"acquirerd/simulator"
)

// processorFlags are the flags of the processor command.
type processorFlags struct {
	dialect, zpkFile, ledger, ledgerListen string
	listen, rules                          []string
	acceptBeforeSignOn, trace              bool
	faults                                 simulator.Faults
}

func (c *cli) processorCommand() *cobra.Command {
	var f processorFlags
	command := c.command("processor", "Serve acquirerd's links as a card processor",
		processorHelp(),
		"acquirersim processor --dialect iso87-ascii --listen 127.0.0.1:9001 --listen 127.0.0.1:9002 --zpk-file keys/processor-a.key --trace\n"+
			"acquirersim processor --listen 127.0.0.1:9001 --rule 'amount=5100 decline=51' --rule 'mti=04 silence attempt=2' --ledger ledger.json",
		func(ctx context.Context) error { return c.processor(ctx, f) })
	flags := command.Flags()
	flags.StringVar(&f.dialect, "dialect", "iso87-ascii", "name of a built-in dialect, or a file")
	flags.StringArrayVar(&f.listen, "listen", []string{"127.0.0.1:9001"}, "TCP address to serve links on; may be given several times")
	flags.StringVar(&f.zpkFile, "zpk-file", "", "file with the zone PIN key in hexadecimal digits; without it PINs are not checked")
	flags.StringArrayVar(&f.rules, "rule", nil, "a rule that goes before the built-in ones; may be given several times")
	flags.StringVar(&f.ledger, "ledger", "-", "file for the ledger at the end, - for standard output")
	flags.StringVar(&f.ledgerListen, "ledger-listen", "", "TCP address that answers GET /ledger while it runs")
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
	text.WriteString("\nEverything else is approved, if the PIN is right (" + simulator.DefaultPIN + ", but for some test cards).")
	return text.String()
}

// processor serves until it is stopped, and then writes the ledger.
func (c *cli) processor(ctx context.Context, f processorFlags) error {
	p, err := c.newProcessor(f)
	if err != nil {
		return err
	}
	listeners, err := listen(ctx, f.listen)
	if err != nil {
		return err
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
		reporting.Go(func() { c.serveLedger(ctx, p.Ledger(), listener) })
	}
	for _, listener := range listeners {
		c.log.Info("listening", "address", listener.Addr().String(), "dialect", f.dialect)
	}
	served := p.Serve(ctx, listeners...)
	return errors.Join(served, c.writeLedger(p.Ledger(), f.ledger))
}

func (c *cli) newProcessor(f processorFlags) (*simulator.Processor, error) {
	codec, err := loadCodec(f.dialect)
	if err != nil {
		return nil, err
	}
	zpk, err := readKey(f.zpkFile)
	if err != nil {
		return nil, err
	}
	cfg := simulator.ProcessorConfig{Codec: codec, ZPK: zpk, Faults: f.faults, AcceptBeforeSignOn: f.acceptBeforeSignOn, Log: c.log}
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

// serveLedger answers GET /ledger until ctx ends.
func (c *cli) serveLedger(ctx context.Context, ledger *simulator.Ledger, listener net.Listener) {
	mux := http.NewServeMux()
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
