package simulator

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"time"

	"acquirerd/messages"
)

// DemoConfig says where the demo plays.
type DemoConfig struct {
	Dir    string // of the stage
	Daemon string // path of the acquirerd binary
	Once   bool   // end after the last step instead of staying up
	Out    io.Writer
}

const (
	demoReplyTimeout = 2 * time.Second
	demoPatience     = 20 * time.Second // for a reversal to be acknowledged
)

// A demo is one performance.
type demo struct {
	cfg  DemoConfig
	cast *Cast

	mu     sync.Mutex // held while something is printed
	failed []string   // guarded by mu
}

// Demo makes a throw-away station, starts a simulated processor and the real daemon, and sends five transactions through them, with
// every message printed in the order in which it passed. It is an error if one of them does not end as expected.
func Demo(ctx context.Context, cfg DemoConfig) (err error) {
	d := &demo{cfg: cfg}
	d.title("A throw-away station in " + cfg.Dir)
	d.cast, err = NewCast(ctx, CastConfig{Stage: StageConfig{Dir: cfg.Dir, Daemon: cfg.Daemon, ReplyTimeout: demoReplyTimeout,
		RetryMin: time.Second, RetryMax: 5 * time.Second, InFlight: 256, KnownPorts: true},
		Processor: ProcessorConfig{Trace: d.trace("processor")},
		Upstream:  UpstreamConfig{ReplyTimeout: 5 * demoReplyTimeout, Trace: d.trace("upstream")}})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.cast.Close()) }()
	d.print("SoftHSM token with two zone PIN keys from components, a PAN sealing key and a PAN token key; an empty journal\n" +
		"acquirerd is ready: both links to the processor are signed on, and so is the upstream\n")

	if err := d.play(ctx); err != nil {
		return err
	}
	if len(d.failed) > 0 {
		return fmt.Errorf("not as expected: %s", strings.Join(d.failed, "; "))
	}
	d.print("\nEvery step ended as expected.\n")
	if cfg.Once {
		return nil
	}
	d.print("It stays up for playing until Ctrl-C.\n")
	<-ctx.Done()
	d.print("\nstopping\n")
	return nil
}

// play is the five steps, and what there is to see after them.
func (d *demo) play(ctx context.Context) error {
	visa, wrong := TestCards()[3].PAN, mustPIN("9999")
	for _, step := range []struct {
		title   string
		request Request
		want    string
	}{
		{"1. An approval with a PIN", Request{PAN: visa, PIN: defaultPIN, Amount: 1250}, "00"},
		{"2. A wrong PIN: the processor deciphers the translated block and refuses it", Request{PAN: visa, PIN: wrong, Amount: 1250}, "55"},
		{"3. A decline", Request{PAN: visa, PIN: defaultPIN, Amount: 9051, MTI: messages.FinancialRequest}, "51"},
	} {
		d.title(step.title)
		entry, err := d.cast.Upstream.Do(ctx, step.request)
		if err != nil {
			return err
		}
		d.expect(step.title, entry.ResponseCode, step.want)
	}
	if err := d.formatError(ctx); err != nil {
		return err
	}
	if err := d.unanswered(ctx); err != nil {
		return err
	}
	for _, look := range []struct {
		title string
		args  []string
	}{{"The journal", []string{"journal", "list"}}, {"What is or was owed", []string{"journal", "owed"}}, {"What the HSM promises", []string{"hsm", "status"}}} {
		d.title(look.title + ": acquirerd " + strings.Join(look.args, " "))
		out, err := d.cast.Stage.Command(ctx, look.args...)
		if err != nil {
			return err
		}
		d.print("%s", out)
	}
	for _, page := range []string{"/links", "/health/ready"} {
		d.title("http://" + d.cast.Stage.Operations + page)
		body, err := d.cast.Stage.Get(ctx, page)
		if err != nil {
			return err
		}
		d.print("%s\n", strings.TrimSpace(string(body)))
	}
	d.title("Where to look")
	environment := "SOFTHSM2_CONF=" + d.cfg.Dir + "/softhsm2.conf "
	daemon := environment + d.cfg.Daemon
	d.print(`upstream door    %s (iso87-binary; zone key in %s/%s.key)
processor links  %s (iso87-ascii)
operations       http://%s/metrics /health/ready /links
files            %s: acquirerd.yaml, acquirerd.log, journal.db, tokens/
next             bin/acquirersim upstream --connect %s --zpk-file %s/%s.key --card 4111111111111111 --amount 1000 --pin 1234
                 %s journal list --config %s/acquirerd.yaml
                 %s keys list --config %s/acquirerd.yaml
`, d.cast.Stage.Upstream, d.cfg.Dir, upstreamZone, strings.Join(d.cast.Links, ", "), d.cast.Stage.Operations, d.cfg.Dir, d.cast.Stage.Upstream, d.cfg.Dir, upstreamZone,
		daemon, d.cfg.Dir, daemon, d.cfg.Dir)
	return nil
}

// formatError sends a request without its currency on a connection of its own: the upstream simulator makes none that is wrong.
func (d *demo) formatError(ctx context.Context) error {
	const title = "4. A format error: an 0100 without DE 49"
	d.title(title)
	codec := d.cast.Upstream.cfg.Codec
	now := time.Now().UTC()
	m := messages.New(messages.AuthorizationRequest)
	m.SetPAN(TestCards()[3].PAN)
	m.Set(messages.ProcessingCode, "000000")
	m.Set(messages.Amount, "000000001250")
	m.Set(messages.TransmissionTime, now.Format(messages.TransmissionTimeLayout))
	m.Set(messages.STAN, "900001")
	m.Set(messages.Terminal, "SIM00001")
	frame, err := codec.EncodeFrame(m)
	if err != nil {
		return err
	}
	connection, err := (&net.Dialer{}).DialContext(ctx, "tcp", d.cast.Stage.Upstream)
	if err != nil {
		return err
	}
	defer func() { _ = connection.Close() }()
	if err := connection.SetDeadline(now.Add(5 * demoReplyTimeout)); err != nil {
		return err
	}
	trace := d.trace("upstream")
	trace(TraceEvent{Direction: Sent, Message: m, Bytes: len(frame)})
	if _, err := connection.Write(frame); err != nil {
		return err
	}
	body, err := codec.ReadFrame(connection)
	if err != nil {
		return err
	}
	answer, err := codec.Decode(body)
	if err != nil {
		return err
	}
	trace(TraceEvent{Direction: Received, Message: answer, Bytes: len(body) + 2})
	d.expect(title, answer.Get(messages.ResponseCode)+" DE 44 "+answer.Get(messages.AdditionalResponse), "30 DE 44 049")
	return nil
}

// unanswered has the processor approve without a word, and waits until the reversal that is owed then was acknowledged.
func (d *demo) unanswered(ctx context.Context) error {
	const title = "5. No answer: the outcome is unknown, a reversal is owed, and then acknowledged"
	d.title(title)
	entry, err := d.cast.Upstream.Do(ctx, Request{PAN: TestCards()[3].PAN, PIN: defaultPIN, Amount: 9200})
	if err != nil {
		return err
	}
	d.expect(title, entry.ResponseCode, "91")
	waiting, cancel := context.WithTimeout(ctx, demoPatience)
	defer cancel()
	for len(d.cast.Processor.Ledger().Snapshot().InState(Reversed)) == 0 {
		if !pause(waiting, 50*time.Millisecond) {
			d.expect(title, "not reversed", "reversed")
			return nil
		}
	}
	d.expect(title, "reversed", "reversed")
	return d.cast.Stage.AwaitNothingOwed(ctx)
}

// expect prints how a step ended, and remembers it if that is not as it should be.
func (d *demo) expect(step, got, want string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if got == want {
		_, _ = fmt.Fprintf(d.cfg.Out, "  as expected: %s\n", got)
		return
	}
	_, _ = fmt.Fprintf(d.cfg.Out, "  NOT as expected: got %s, want %s\n", got, want)
	d.failed = append(d.failed, step)
}

func (d *demo) title(text string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	_, _ = fmt.Fprintf(d.cfg.Out, "\n== %s\n", text)
}

func (d *demo) print(format string, args ...any) {
	d.mu.Lock()
	defer d.mu.Unlock()
	_, _ = fmt.Fprintf(d.cfg.Out, format, args...)
}

// trace prints the messages between the daemon and one party, masked.
func (d *demo) trace(party string) func(TraceEvent) {
	dialect := map[string]string{"processor": "iso87-ascii", "upstream": "iso87-binary"}[party]
	return func(e TraceEvent) {
		if e.Message.MTI.Class() == messages.Network {
			return
		}
		from, to := party, "acquirerd" // the direction is the party's own
		if e.Direction == Received {
			from, to = to, from
		}
		d.mu.Lock()
		defer d.mu.Unlock()
		_, _ = fmt.Fprintf(d.cfg.Out, "  %s → %s  %s  %s, %d bytes", from, to, e.Message.MTI, dialect, e.Bytes)
		if e.Bytes == 0 {
			_, _ = fmt.Fprint(d.cfg.Out, ": decided, but never sent")
		}
		_, _ = fmt.Fprintln(d.cfg.Out)
		line := "     "
		for _, element := range e.Message.Describe() {
			word := fmt.Sprintf(" %d %s=%s", element.Element, element.Name, strings.TrimRight(element.Value, " "))
			if len(line)+len(word) > 130 {
				_, _ = fmt.Fprintln(d.cfg.Out, line)
				line = "     "
			}
			line += word
		}
		_, _ = fmt.Fprintln(d.cfg.Out, line)
	}
}
