package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"acquirerd/simulator"
)

// stageFlags are those of the commands that start the real daemon on a throw-away stage.
type stageFlags struct{ daemon, dir string }

func (f *stageFlags) add(command *cobra.Command) {
	command.Flags().StringVar(&f.daemon, "acquirerd", "bin/acquirerd", "the daemon's binary")
	command.Flags().StringVar(&f.dir, "dir", ".demo", "folder for token, keys, journal and log; emptied first if it is one of ours")
}

func (c *cli) demoCommand() *cobra.Command {
	var f stageFlags
	var once bool
	command := c.command("demo", "Show acquirerd at work",
		"Demo makes a throw-away token, keys and journal, starts a simulated processor and the real daemon, sends five transactions and prints\n"+
			"each message decoded and masked, the journal, and where to look. It stays up until Ctrl-C. It exits with 0 only if every step ended as\n"+
			"expected.",
		"acquirersim demo --acquirerd bin/acquirerd --dir .demo --once",
		func(ctx context.Context) error {
			return simulator.Demo(ctx, simulator.DemoConfig{Dir: f.dir, Daemon: f.daemon, Once: once, Out: c.out})
		})
	f.add(command)
	command.Flags().BoolVar(&once, "once", false, "end after the last step")
	return command
}

func (c *cli) chaosCommand() *cobra.Command {
	var f stageFlags
	var cfg simulator.ChaosConfig
	command := c.command("chaos", "Kill acquirerd under load and compare the ledgers",
		"Chaos puts the real daemon under an open-loop load against a processor with faults of its own. It fills the daemon's disk once, kills\n"+
			"it with SIGKILL at random moments and starts it again, and between daemon, processor and upstream it cuts, tears, stalls and slows\n"+
			"connections, leaves them half-open and restarts the processor. When the upstream has done its duty and nothing is owed, it compares the\n"+
			"processor's ledger, the upstream's book and the daemon's journal. It prints one line of JSON, and exits with 0 only if there is no\n"+
			"mismatch; the first ones are shown on standard error, the very first with all that the parties have of it.\n\n"+
			"The disk is a tmpfs of its own, which only a privileged user may mount; for others the daemon's files are limited in size instead, and\n"+
			"\"disk\" says so. A seed repeats what is chosen, not when the machine gets to it.",
		"acquirersim chaos --acquirerd bin/acquirerd --kills 200",
		func(ctx context.Context) error {
			if cfg.Kills < 1 || cfg.Rate < 1 {
				return usagef("--kills and --rate must be positive")
			}
			if cfg.Seed == 0 {
				cfg.Seed = uint64(time.Now().UnixNano())
			}
			_, _ = fmt.Fprintf(c.err, "seed %d\n", cfg.Seed)
			cfg.Dir, cfg.Daemon, cfg.Report = f.dir, f.daemon, c.err
			result, err := simulator.Chaos(ctx, cfg)
			if err != nil {
				return err
			}
			if err := json.NewEncoder(c.out).Encode(result); err != nil {
				return err
			}
			if result.Mismatches > 0 {
				return fmt.Errorf("%d mismatches", result.Mismatches)
			}
			return nil
		})
	f.add(command)
	command.Flags().IntVar(&cfg.Kills, "kills", 20, "how often the daemon is killed")
	command.Flags().IntVar(&cfg.Rate, "rate", 1000, "transactions a second, whether the daemon answers or not")
	command.Flags().Uint64Var(&cfg.Seed, "seed", 0, "of moments, amounts, faults and cuts; 0: by the clock")
	return command
}

func (c *cli) drainCommand() *cobra.Command {
	var f stageFlags
	var cfg simulator.DrainConfig
	command := c.command("drain", "Measure how fast acquirerd pays a backlog of reversals",
		"Drain lets the processor fall silent until so many reversals are owed, brings it back, and measures how long they take beside live\n"+
			"traffic, whose latency it compares with that before. It prints one line of JSON.",
		"acquirersim drain --acquirerd bin/acquirerd --owed 10000 --delay 50ms",
		func(ctx context.Context) error {
			if cfg.Owed < 1 || cfg.Owed > 50_000 || cfg.Rate <= 0 || cfg.Delay <= 0 {
				return usagef("--owed must be 1 to 50000, --rate and --delay positive")
			}
			cfg.Dir, cfg.Daemon, cfg.Report = f.dir, f.daemon, c.err
			result, err := simulator.Drain(ctx, cfg)
			if err != nil {
				return err
			}
			return json.NewEncoder(c.out).Encode(result)
		})
	f.add(command)
	command.Flags().IntVar(&cfg.Owed, "owed", 10_000, "reversals that are owed")
	command.Flags().Float64Var(&cfg.Rate, "rate", 100, "live requests a second")
	command.Flags().DurationVar(&cfg.Delay, "delay", 50*time.Millisecond, "after which the processor answers")
	return command
}

func (c *cli) measureCommand() *cobra.Command {
	var f stageFlags
	var load simulator.LoadConfig
	command := c.command("measure", "Measure what a transaction costs acquirerd",
		"Measure starts the real daemon on a throw-away stage and keeps so many requests in flight, without a PIN and with one, in turns, and prints\n"+
			"the daemon's CPU time for each transaction (Linux). Processor and upstream run in this process and share the machine.",
		"acquirersim measure --acquirerd bin/acquirerd --in-flight 64 --duration 5s",
		func(ctx context.Context) error { return c.measure(ctx, f, load) })
	f.add(command)
	command.Flags().IntVar(&load.InFlight, "in-flight", 64, "requests under way at any time")
	command.Flags().DurationVar(&load.Duration, "duration", 5*time.Second, "of each turn")
	return command
}

// A measurement is the load of one turn and its cost.
type measurement struct {
	WithPIN bool `json:"with_pin"`
	benchResult
}

const measuredTurns = 2 // of each kind, so that what changes in between shows

func (c *cli) measure(ctx context.Context, f stageFlags, load simulator.LoadConfig) (err error) {
	cast, err := simulator.NewCast(ctx, simulator.CastConfig{Stage: simulator.StageConfig{Dir: f.dir, Daemon: f.daemon,
		ReplyTimeout: 10 * time.Second, RetryMin: time.Second, RetryMax: time.Minute, InFlight: 4 * load.InFlight},
		Upstream: simulator.UpstreamConfig{Connections: 4, Book: simulator.NewBook(-1)}})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, cast.Close()) }()
	load.Upstream = cast.Upstream
	load.Cards = simulator.TestCards()[3:5] // with a route
	var all []measurement
	for range measuredTurns {
		for _, share := range []float64{0, 1} {
			load.PINShare, load.Seed = share, load.Seed+1
			m := measurement{WithPIN: share > 0}
			if m.benchResult, err = measured(ctx, load, cast.Stage.PID()); err != nil {
				return err
			}
			all = append(all, m)
		}
	}
	return c.print(all, func(w io.Writer) {
		for _, m := range all {
			_, _ = fmt.Fprintf(w, "%d in flight, with PIN %v\n", load.InFlight, m.WithPIN)
			m.print(w)
		}
	})
}
