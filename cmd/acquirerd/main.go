// Command acquirerd takes authorizations from a payment company's own switches to a card processor, and never loses one. See the
// README of the project for what it does, and `acquirerd --help` for its commands.
//
// This room is config and wiring. config.go reads and validate.go checks the one file; serve.go puts the rooms together, starts them
// and stops them in order; reload.go changes them while they run; tls.go keeps their certificates; operations.go is the port for metrics
// and health; each other file is a group of commands. It decides nothing about a transaction.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
)

// Exit codes.
const (
	exitOK    = 0
	exitFault = 1 // it could not be done
	exitUsage = 2 // it was not asked rightly
)

func main() {
	if err := forbidDumps(); err != nil { // of every command: people type PINs and components of keys into some
		fmt.Fprintf(os.Stderr, "acquirerd: %v\n", err)
		os.Exit(exitFault)
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	context.AfterFunc(ctx, stop) // a second signal ends the process at once
	os.Exit(run(ctx, os.Args[1:], os.Stdout, os.Stderr))
}

// run does what the arguments say and returns the exit code. The end of ctx is the request to stop. Results go to stdout; logs and one
// clear line for what went wrong go to stderr.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	c := &cli{in: os.Stdin, out: stdout, err: stderr}
	root := c.root()
	root.SetArgs(args)
	root.SetOut(stdout)
	root.SetErr(stderr)
	err := root.ExecuteContext(ctx)
	var usage *usageError
	var faulty *configError
	switch {
	case err == nil:
		return exitOK
	case errors.As(err, &faulty): // a line for each fault
		_, _ = fmt.Fprintln(stderr, faulty)
		return exitFault
	case errors.As(err, &usage) || !c.begun:
		_, _ = fmt.Fprintf(stderr, "acquirerd: %s (see acquirerd --help)\n", oneLine(err))
		return exitUsage
	}
	_, _ = fmt.Fprintf(stderr, "acquirerd: %s\n", oneLine(err))
	return exitFault
}

// A usageError says that a command was not asked rightly.
type usageError struct{ text string }

func (e *usageError) Error() string { return e.text }

func usagef(format string, args ...any) error { return &usageError{fmt.Sprintf(format, args...)} }

// A cli is one run of the program.
type cli struct {
	in       io.Reader
	out, err io.Writer
	config   string // --config
	output   string // --output
	begun    bool   // the arguments were right, a command has begun
}

func (c *cli) root() *cobra.Command {
	root := &cobra.Command{
		Use:   "acquirerd",
		Short: "Carries card authorizations to a processor, and never loses one",
		Long: "acquirerd takes authorizations from your switches, protects the card data in an HSM, writes down what it is about to do,\n" +
			"sends it to the card processor over links that it keeps, and answers. What the processor may have done unseen is reversed.",
		Example:       "  acquirerd config check --config acquirerd.yaml\n  acquirerd init --config acquirerd.yaml\n  acquirerd serve --config acquirerd.yaml",
		SilenceErrors: true, SilenceUsage: true,
		CompletionOptions: cobra.CompletionOptions{DisableDefaultCmd: true},
	}
	root.PersistentFlags().StringVarP(&c.config, "config", "c", defaultConfigFile, "config file")
	root.PersistentFlags().StringVarP(&c.output, "output", "o", "text", "form of the result: text or json")
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error {
		if number, ok := errors.AsType[*strconv.NumError](err); ok { // its text is about a function of ours
			return usagef("%s", strings.Replace(err.Error(), number.Error(), number.Err.Error(), 1))
		}
		return err
	})
	root.SetHelpCommand(&cobra.Command{Use: "help [COMMAND]", Short: "Help about a command", Example: "  acquirerd help keys import",
		RunE: func(_ *cobra.Command, args []string) error {
			found, rest, err := root.Find(args)
			if err != nil || len(rest) > 0 {
				return usagef("help: unknown command %q", strings.Join(args, " "))
			}
			return found.Help()
		}})
	root.AddCommand(c.initCommand(), c.serveCommand(), c.configCommands(), c.linkCommands(), c.journalCommands(), c.keysCommands(), c.hsmCommands(),
		c.decodeCommand(), c.dialectCommands(), c.versionCommand())
	return root
}

// command makes a command of one function. Errors before that function begins are faults of usage.
func (c *cli) command(use, short, example string, args cobra.PositionalArgs, do func(context.Context, []string) error) *cobra.Command {
	return &cobra.Command{Use: use, Short: short, Example: indent(example), Args: args, RunE: func(cmd *cobra.Command, args []string) error {
		if c.output != "text" && c.output != "json" {
			return usagef("--output %q is neither text nor json", c.output)
		}
		c.begun = true
		return do(cmd.Context(), args)
	}}
}

// group makes a command that only holds others.
func (c *cli) group(use, short, example string, commands ...*cobra.Command) *cobra.Command {
	var names []string
	for _, command := range commands {
		names = append(names, command.Name())
	}
	group := &cobra.Command{Use: use, Short: short, Example: indent(example), RunE: func(_ *cobra.Command, args []string) error {
		if len(args) > 0 {
			return usagef("%s: unknown command %q: it has %s", use, args[0], strings.Join(names, ", "))
		}
		return usagef("%s: which of %s?", use, strings.Join(names, ", "))
	}}
	group.AddCommand(commands...)
	return group
}

// withoutConfig leaves --config out of the help of a command that reads no config.
func withoutConfig(command *cobra.Command) *cobra.Command {
	help := command.HelpFunc()
	command.SetHelpFunc(func(cmd *cobra.Command, args []string) {
		_ = cmd.Root().PersistentFlags().MarkHidden("config") // it is there
		help(cmd, args)
	})
	return command
}

func indent(example string) string { return "  " + strings.ReplaceAll(example, "\n", "\n  ") }
