// Command acquirersim is the other side of acquirerd for tests, demonstrations and measurements, from the shell: a scripted card
// processor, an upstream switch that checks what it is answered, and a load. It works with test cards and throw-away keys alone, and
// prints neither card numbers nor PINs nor keys.
package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"regexp"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"acquirerd/card"
	"acquirerd/messages"
	"acquirerd/simulator"
	"acquirerd/specs"
)

// Exit codes.
const (
	exitOK    = 0
	exitFault = 1 // it could not be done, or an answer was not the expected one
	exitUsage = 2 // it was not asked rightly
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	context.AfterFunc(ctx, stop) // a second signal ends the process at once
	os.Exit(run(ctx, os.Args[1:], os.Stdout, os.Stderr))
}

// run does what the arguments say and returns the exit code. The end of ctx is the request to stop. Results go to stdout; logs and one
// clear line for what went wrong go to stderr.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	c := &cli{out: stdout, err: stderr, log: slog.New(slog.NewTextHandler(stderr, nil))}
	root := c.root()
	root.SetArgs(args)
	root.SetOut(stdout)
	root.SetErr(stderr)
	err := root.ExecuteContext(ctx)
	var usage *usageError
	switch {
	case err == nil:
		return exitOK
	case errors.As(err, &usage) || !c.begun:
		_, _ = fmt.Fprintf(stderr, "acquirersim: %s (see acquirersim --help)\n", oneLine(err))
		return exitUsage
	}
	_, _ = fmt.Fprintf(stderr, "acquirersim: %s\n", oneLine(err))
	return exitFault
}

// digitRuns are what a mistyped flag could hold of a card number or a key: the flag parser quotes what it cannot read. Amounts and times
// are shorter.
var digitRuns = regexp.MustCompile(`[0-9]{13,}|[0-9A-Fa-f]{16,}`)

func oneLine(err error) string {
	return digitRuns.ReplaceAllString(strings.Join(strings.Fields(err.Error()), " "), "****")
}

// A usageError says that a command was not asked rightly.
type usageError struct{ err error }

func (e *usageError) Error() string { return e.err.Error() }

func (e *usageError) Unwrap() error { return e.err }

func usagef(format string, args ...any) error { return &usageError{fmt.Errorf(format, args...)} }

// usage marks what a constructor refused as a fault of the flags.
func usage(err error) error {
	if err == nil {
		return nil
	}
	return &usageError{err}
}

// A cli is one run of the program.
type cli struct {
	out, err io.Writer
	log      *slog.Logger
	output   string // --output
	begun    bool   // the arguments were right, a command has begun
}

func (c *cli) root() *cobra.Command {
	root := &cobra.Command{
		Use:   "acquirersim",
		Short: "Simulates a card processor, an upstream switch, or a load, for acquirerd",
		Long: "acquirersim plays the parties around acquirerd: the card processor that it sends to, the switch that asks it, and many\n" +
			"such switches at once. It is for test cards and throw-away keys only.",
		Example: "  acquirersim keys --out keys --zone pos-switch --zone processor-a\n" +
			"  acquirersim processor --listen 127.0.0.1:9001 --zpk-file keys/processor-a.key\n" +
			"  acquirersim upstream --connect 127.0.0.1:8583 --card 4111111111111111 --amount 1250 --expect 00\n" +
			"  acquirersim bench --connect 127.0.0.1:8583 --rate 500 --duration 10s",
		SilenceErrors: true, SilenceUsage: true,
		CompletionOptions: cobra.CompletionOptions{DisableDefaultCmd: true},
	}
	root.PersistentFlags().StringVarP(&c.output, "output", "o", "text", "form of the result: text or json")
	root.SetHelpCommand(&cobra.Command{Use: "help [COMMAND]", Short: "Help about a command", Example: "  acquirersim help processor",
		RunE: func(_ *cobra.Command, args []string) error {
			found, rest, err := root.Find(args)
			if err != nil || len(rest) > 0 {
				return usagef("help: unknown command %q", strings.Join(args, " "))
			}
			return found.Help()
		}})
	root.AddCommand(c.processorCommand(), c.upstreamCommand(), c.benchCommand(), c.keysCommand(), c.demoCommand(), c.chaosCommand(), c.measureCommand(), c.drainCommand())
	return root
}

// command makes a command of one function without arguments. Errors before that function begins are faults of usage.
func (c *cli) command(use, short, long, example string, do func(ctx context.Context) error) *cobra.Command {
	return &cobra.Command{Use: use, Short: short, Long: long, Example: "  " + strings.ReplaceAll(example, "\n", "\n  "), Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if c.output != "text" && c.output != "json" {
				return usagef("--output %q is neither text nor json", c.output)
			}
			c.begun = true
			return do(cmd.Context())
		}}
}

// print writes a result: its JSON form, or what text writes.
func (c *cli) print(result any, text func(w io.Writer)) error {
	if c.output != "json" {
		var whole bytes.Buffer
		text(&whole)
		_, err := c.out.Write(whole.Bytes())
		return err
	}
	encoder := json.NewEncoder(c.out)
	encoder.SetIndent("", "  ")
	return encoder.Encode(result)
}

func loadCodec(dialect string) (*messages.Codec, error) {
	loaded, err := specs.Load(dialect)
	if err != nil {
		return nil, usage(err)
	}
	return messages.NewCodec(loaded), nil
}

// macFlags say by which key a party has message authentication codes.
type macFlags struct{ file, algorithm string }

func (f *macFlags) add(command *cobra.Command) {
	command.Flags().StringVar(&f.file, "mac-file", "", "file with the key for message authentication codes in hexadecimal digits, where the dialect has them")
	command.Flags().StringVar(&f.algorithm, "mac-algorithm", string(simulator.MACX919), fmt.Sprintf("of that key: one of %v", simulator.MACAlgorithms))
}

// key is nil without a file. It is needed where the dialect has MACs.
func (f *macFlags) key(codec *messages.Codec) (messages.MACKey, error) {
	mac := codec.Dialect().MAC
	switch wanted := mac.Place == specs.MACLast; {
	case wanted && f.file == "":
		return nil, usagef("--mac-file is missing: messages of the dialect carry a MAC")
	case !wanted && f.file != "":
		return nil, usagef("--mac-file: messages of the dialect carry no MAC")
	case f.file == "":
		return nil, nil
	}
	key, err := simulator.ReadMACKeyFile(f.file, simulator.MACAlgorithm(f.algorithm), mac.Padding)
	if err != nil {
		return nil, usage(err)
	}
	return key, nil
}

// readKey reads the file of a zone PIN key, if one is named, for PIN blocks of a format.
func readKey(path, format string) (*simulator.Key, error) {
	if path == "" {
		return nil, nil
	}
	key, err := simulator.ReadKeyFile(path, simulator.PINFormat(format))
	return key, usage(err)
}

// readDevice reads the base derivation key of a device, nil if there is no file.
func readDevice(path, ksn, format string) (*simulator.Device, error) {
	if (path == "") != (ksn == "") {
		return nil, usagef("--bdk-file and --ksn belong together")
	}
	if path == "" {
		return nil, nil
	}
	first, err := card.ParseKSN(ksn)
	if err != nil {
		return nil, usagef("--ksn: %v", err)
	}
	device, err := simulator.ReadDeviceFile(path, first, simulator.PINFormat(format))
	return device, usage(err)
}
