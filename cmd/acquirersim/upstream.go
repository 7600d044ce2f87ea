package main

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"sync"
	"time"

	"github.com/spf13/cobra"
	"go.yaml.in/yaml/v3"

	"acquirerd/card"
	"acquirerd/messages"
	"acquirerd/simulator"
)

// connectFlags say where and how an upstream connects.
type connectFlags struct {
	address, dialect, zpkFile, bdkFile, ksn, pinFormat, terminal, merchant, acquirer string
	connectTimeout, replyTimeout                                                     time.Duration
	keepalives                                                                       time.Duration
	tls                                                                              tlsFlags
	mac                                                                              macFlags
	noSignOn                                                                         bool
	firstSTAN                                                                        int64
}

func (f *connectFlags) add(command *cobra.Command) {
	flags := command.Flags()
	flags.StringVar(&f.address, "connect", "", "TCP address of acquirerd's upstream door")
	flags.StringVar(&f.dialect, "dialect", "iso87-binary", "name of a built-in dialect, or a file")
	flags.StringVar(&f.zpkFile, "zpk-file", "", "file with the zone PIN key in hexadecimal digits, for requests with a PIN")
	flags.StringVar(&f.bdkFile, "bdk-file", "", "instead of --zpk-file: file with the base derivation key (DUKPT) of the device that enciphers the PINs, in hexadecimal digits")
	flags.StringVar(&f.ksn, "ksn", "", "key serial number of the device's first PIN block: 20 hexadecimal digits of TDES, 24 of AES")
	flags.StringVar(&f.pinFormat, "pin-format", string(simulator.ISO0), "format of PIN blocks: iso-0, iso-1, iso-3, or iso-4, for which the key is an AES one")
	flags.StringVar(&f.terminal, "terminal", "", "DE 41 (default SIM00001)")
	flags.StringVar(&f.merchant, "merchant", "", "DE 42 (default SIMULATOR)")
	flags.StringVar(&f.acquirer, "acquirer", "", "DE 32, none by default")
	flags.DurationVar(&f.connectTimeout, "connect-timeout", 5*time.Second, "longest wait for a connection that has signed on")
	flags.DurationVar(&f.replyTimeout, "reply-timeout", 30*time.Second, "longest wait for an answer")
	flags.BoolVar(&f.noSignOn, "no-sign-on", false, "do not sign on")
	flags.DurationVar(&f.keepalives, "keepalives", 0, "how often a frame of no bytes is sent, where the dialect takes one; never by default")
	f.mac.add(command)
	f.tls.add(command)
	flags.Int64Var(&f.firstSTAN, "first-stan", 0, "the first system trace audit number, 1 to 999999 (default from the clock, so that two runs in one second differ)")
}

func (c *cli) newUpstream(f connectFlags, cfg simulator.UpstreamConfig) (*simulator.Upstream, error) {
	if f.address == "" {
		return nil, usagef("--connect is missing")
	}
	codec, err := loadCodec(f.dialect)
	if err != nil {
		return nil, err
	}
	zpk, err := readKey(f.zpkFile, f.pinFormat)
	if err != nil {
		return nil, err
	}
	device, err := readDevice(f.bdkFile, f.ksn, f.pinFormat)
	if err != nil {
		return nil, err
	}
	if f.firstSTAN == 0 {
		f.firstSTAN = time.Now().UnixMicro()%999_999 + 1
	}
	cfg.Codec, cfg.ZPK, cfg.Device, cfg.Address, cfg.NoSignOn, cfg.FirstSTAN = codec, zpk, device, f.address, f.noSignOn, f.firstSTAN
	cfg.Terminal, cfg.Merchant, cfg.AcquirerID = f.terminal, f.merchant, f.acquirer
	cfg.ConnectTimeout, cfg.ReplyTimeout, cfg.Keepalives = f.connectTimeout, f.replyTimeout, f.keepalives
	if cfg.MAC, err = f.mac.key(codec); err != nil {
		return nil, err
	}
	if cfg.TLS, err = f.tls.config(); err != nil {
		return nil, err
	}
	u, err := simulator.NewUpstream(cfg)
	return u, usage(err)
}

// connected runs the upstream as long as f does, and f as soon as it is connected.
func connected(ctx context.Context, u *simulator.Upstream, timeout time.Duration, f func() error) error {
	running, stop := context.WithCancel(context.WithoutCancel(ctx))
	var keeping sync.WaitGroup
	defer keeping.Wait()
	defer stop()
	keeping.Go(func() { _ = u.Run(running) }) // it has no errors
	waiting, release := context.WithTimeout(ctx, timeout)
	defer release()
	if err := u.Ready(waiting); err != nil {
		return err
	}
	return f()
}

// A step is one request of a script.
type step struct {
	Name           string `yaml:"name"`
	MTI            string `yaml:"mti"`
	Card           string `yaml:"card"`
	Track2         string `yaml:"track2"`
	Expiry         string `yaml:"expiry"`
	PIN            string `yaml:"pin"`
	Amount         int64  `yaml:"amount"`
	Currency       string `yaml:"currency"`
	ProcessingCode string `yaml:"processing_code"`
	Terminal       string `yaml:"terminal"`
	Merchant       string `yaml:"merchant"`
	Chip           string `yaml:"chip"`
	OriginalMTI    string `yaml:"original_mti"`
	Replacement    int64  `yaml:"replacement"`
	Again          string `yaml:"again"`
	Expect         string `yaml:"expect"`
}

func (c *cli) upstreamCommand() *cobra.Command {
	var f connectFlags
	var one step
	var script, book string
	var echo bool
	command := c.command("upstream", "Ask acquirerd as an upstream switch",
		"Upstream signs on, sends one request, or those of a script one after the other, prints what it sends and receives, decoded and\n"+
			"masked, and fails if an answer is not the expected one: a response code, or timeout, connection_lost, not_sent, mismatch, unproven.\n\n"+
			"A script is a YAML list. An item has the keys name, mti, card, track2, expiry, pin, amount, currency, processing_code, terminal,\n"+
			"merchant, chip, expect, and: again, the name of an earlier item whose numbers it takes, so that it is the same request once more\n"+
			"or, with an mti of 04xx (and original_mti, if that was not 0100, and replacement, for what is to stand), its reversal. Everything else is the item's own: one that leaves\n"+
			"out the PIN of the first, say, is another request. A reversal by --mti alone has new numbers, and finds no original.\n\n"+
			"  - { name: first, card: \"4111111111111111\", amount: 1250, pin: \"1234\", expect: \"00\" }\n"+
			"  - { name: the same, again: first, card: \"4111111111111111\", amount: 1250, pin: \"1234\", expect: \"00\" }\n"+
			"  - { name: undone, again: first, mti: \"0420\", card: \"4111111111111111\", amount: 1250, expect: \"00\" }",
		"acquirersim upstream --connect 127.0.0.1:8583 --zpk-file keys/pos-switch.key --card 4111111111111111 --amount 1250 --pin 1234 --expect 00\n"+
			"acquirersim upstream --connect 127.0.0.1:8583 --script requests.yaml --output json",
		func(ctx context.Context) error {
			steps, err := stepsOf(one, script)
			if err != nil {
				return err
			}
			return c.upstream(ctx, f, steps, echo, book)
		})
	f.add(command)
	flags := command.Flags()
	flags.StringVar(&one.MTI, "mti", "0100", "message type, as 0100, 0200, 0220 or 0420")
	flags.StringVar(&one.Card, "card", "", "test card number")
	flags.StringVar(&one.Track2, "track2", "", "track 2 of a test card, with =, instead of or beside its number")
	flags.StringVar(&one.Expiry, "expiry", "", "DE 14, YYMM")
	flags.StringVar(&one.PIN, "pin", "", "PIN of the test card; none by default")
	flags.Int64Var(&one.Amount, "amount", 0, "amount in minor units of the currency")
	flags.StringVar(&one.Currency, "currency", "978", "DE 49, three digits")
	flags.StringVar(&one.ProcessingCode, "processing-code", "000000", "DE 3")
	flags.StringVar(&one.Chip, "chip", "", "DE 55 in hexadecimal digits")
	flags.StringVar(&one.Expect, "expect", "", "response code, or what else should become of the request")
	flags.StringVar(&script, "script", "", "file with requests and what to expect; instead of the flags for one request")
	flags.StringVar(&book, "book", "", "file for the book of all requests at the end")
	flags.BoolVar(&echo, "echo", false, "send an 0800 echo first; without a card, nothing else")
	return command
}

// stepsOf is the script, or the one request of the flags, or nothing.
func stepsOf(one step, script string) ([]step, error) {
	hasCard := one.Card != "" || one.Track2 != ""
	if script == "" {
		if !hasCard {
			return nil, nil
		}
		return []step{one}, nil
	}
	if hasCard {
		return nil, usagef("--script and --card exclude each other")
	}
	return readScript(script)
}

// quoted is what the YAML library quotes of a value that does not fit.
var quoted = regexp.MustCompile("`[^`]*`")

func readScript(path string) ([]step, error) {
	text, err := os.ReadFile(filepath.Clean(path))
	if err != nil {
		return nil, usagef("reading script: %w", err)
	}
	decoder := yaml.NewDecoder(bytes.NewReader(text))
	decoder.KnownFields(true)
	var steps []step
	if err := decoder.Decode(&steps); err != nil && !errors.Is(err, io.EOF) {
		return nil, usagef("reading script %s: %s", path, quoted.ReplaceAllString(err.Error(), "a value"))
	}
	if len(steps) == 0 {
		return nil, usagef("reading script %s: it has no requests", path)
	}
	for i := range steps {
		if steps[i].Name == "" {
			steps[i].Name = fmt.Sprintf("request %d", i+1)
		}
	}
	return steps, nil
}

// request reads the step. Its errors quote no card data.
func (s step) request(earlier map[string]simulator.Entry) (simulator.Request, error) {
	r := simulator.Request{MTI: messages.MTI(s.MTI), Amount: s.Amount, Currency: s.Currency, ProcessingCode: s.ProcessingCode, Terminal: s.Terminal,
		Merchant: s.Merchant, OriginalMTI: messages.MTI(s.OriginalMTI), Replacement: s.Replacement}
	var err error
	fault := func(what string, cause error) (simulator.Request, error) { return r, usagef("%s: %w", what, cause) }
	if s.Card != "" {
		if r.PAN, err = card.ParsePAN(s.Card); err != nil {
			return fault("card", err)
		}
	}
	if s.Track2 != "" {
		if r.Track2, err = card.ParseTrack2(s.Track2); err != nil {
			return fault("track2", err)
		}
	}
	if s.Expiry != "" {
		if r.Expiry, err = card.ParseExpiry(s.Expiry); err != nil {
			return fault("expiry", err)
		}
	}
	if r.PIN, err = simulator.ParsePIN(s.PIN); err != nil {
		return fault("pin", err)
	}
	if r.Chip, err = hex.DecodeString(s.Chip); err != nil {
		return fault("chip", errors.New("it is not hexadecimal digits"))
	}
	if s.Again != "" {
		first, known := earlier[s.Again]
		if !known {
			return fault("again", fmt.Errorf("there is no earlier request %q", s.Again))
		}
		r = r.Again(first)
	}
	return r, nil
}

// A stepResult is what became of a step.
type stepResult struct {
	Name     string          `json:"name,omitempty"`
	Expected string          `json:"expected,omitempty"`
	OK       bool            `json:"ok"`
	Entry    simulator.Entry `json:"entry"`
}

// ending is what a step's expectation is compared with.
func ending(e simulator.Entry) string {
	if e.Outcome == simulator.Answered {
		return e.ResponseCode
	}
	return string(e.Outcome)
}

func (c *cli) upstream(ctx context.Context, f connectFlags, steps []step, echo bool, book string) error {
	if len(steps) == 0 && !echo {
		return usagef("--card, --track2, --script or --echo is missing")
	}
	// In JSON the messages would not be part of the one result, so they are not printed.
	cfg := simulator.UpstreamConfig{}
	if c.output == "text" {
		cfg.Trace = (&tracer{w: c.out}).trace
	}
	u, err := c.newUpstream(f, cfg)
	if err != nil {
		return err
	}
	// What can be seen to be wrong is said before anything is sent.
	named := map[string]simulator.Entry{}
	for _, s := range steps {
		if _, err := s.request(named); err != nil {
			return fmt.Errorf("%s%w", prefix(s), err)
		}
		named[s.Name] = simulator.Entry{}
	}
	return connected(ctx, u, f.connectTimeout, func() error {
		results, err := c.play(ctx, u, steps, echo)
		if book != "" {
			err = errors.Join(err, writeBook(u.Book(), book))
		}
		if err != nil || len(steps) == 0 {
			return err
		}
		return c.report(results)
	})
}

func prefix(s step) string {
	if s.Name == "" {
		return ""
	}
	return s.Name + ": "
}

// play sends the steps in their order.
func (c *cli) play(ctx context.Context, u *simulator.Upstream, steps []step, echo bool) ([]stepResult, error) {
	if echo {
		if err := u.Echo(ctx); err != nil {
			return nil, err
		}
	}
	results := []stepResult{}
	earlier := map[string]simulator.Entry{}
	for _, s := range steps {
		request, err := s.request(earlier)
		if err != nil {
			return results, err
		}
		entry, err := u.Do(ctx, request)
		if err != nil {
			return results, usagef("%s%w", prefix(s), err)
		}
		earlier[s.Name] = entry
		results = append(results, stepResult{s.Name, s.Expect, s.Expect == "" || s.Expect == ending(entry), entry})
		if ctx.Err() != nil {
			return results, ctx.Err()
		}
	}
	return results, nil
}

// report prints the results, and fails if one was not as expected.
func (c *cli) report(results []stepResult) error {
	unexpected := 0
	var first stepResult
	for _, r := range results {
		if !r.OK {
			if unexpected++; unexpected == 1 {
				first = r
			}
		}
	}
	err := c.print(results, func(w io.Writer) {
		for _, r := range results {
			verdict := ""
			switch {
			case !r.OK:
				verdict = ", not as expected: " + r.Expected
			case r.Expected != "":
				verdict = ", as expected"
			}
			_, _ = fmt.Fprintf(w, "%s%s %s %s %d.%s: %s in %v%s\n", prefix(step{Name: r.Name}), r.Entry.MTI, r.Entry.STAN, r.Entry.PAN, r.Entry.Amount,
				r.Entry.Currency, ending(r.Entry), r.Entry.Elapsed.Round(time.Microsecond), verdict)
		}
	})
	if err == nil && unexpected > 0 {
		err = fmt.Errorf("%d of %d requests not as expected: %s%s, expected %s", unexpected, len(results), prefix(step{Name: first.Name}), ending(first.Entry), first.Expected)
	}
	return err
}

func writeBook(book *simulator.Book, path string) error {
	file, err := os.OpenFile(filepath.Clean(path), os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return fmt.Errorf("writing book: %w", err)
	}
	return errors.Join(book.WriteJSON(file), file.Close())
}
