package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"acquirerd/simulator"
)

func (c *cli) benchCommand() *cobra.Command {
	var f connectFlags
	var load simulator.LoadConfig
	var connections, pid int
	command := c.command("bench", "Put acquirerd under a load and measure",
		"Bench sends test transactions at a rate that does not wait for answers, so that a stall shows in the latency of all requests that it\n"+
			"held up, or, with --in-flight, so many at once. It ends by itself, by --duration or --count. The processor behind acquirerd should be\n"+
			"acquirersim's, which knows the amounts for declines and silence.\n\n"+
			"With --pid it reads the CPU time of that process before and after (Linux).",
		"acquirersim bench --connect 127.0.0.1:8583 --rate 500 --duration 10s --zpk-file keys/pos-switch.key --pin-share 0.5\n"+
			"acquirersim bench --connect 127.0.0.1:8583 --in-flight 64 --duration 10s --pid $(pidof acquirerd) --output json",
		func(ctx context.Context) error { return c.bench(ctx, f, load, connections, pid) })
	f.add(command)
	flags := command.Flags()
	flags.Float64Var(&load.Rate, "rate", 0, "requests a second (default 100 without --in-flight)")
	flags.IntVar(&load.InFlight, "in-flight", 0, "requests under way at any time, instead of a rate")
	flags.DurationVar(&load.Duration, "duration", 10*time.Second, "how long new requests begin")
	flags.IntVar(&load.Count, "count", 0, "requests, if that is reached before the duration")
	flags.IntVar(&connections, "connections", 4, "connections to acquirerd")
	flags.Float64Var(&load.PINShare, "pin-share", 0, "share of requests with a PIN, 0 to 1; needs --zpk-file")
	flags.Float64Var(&load.DeclineShare, "decline-share", 0, "share of requests that are declined")
	flags.Float64Var(&load.SilentShare, "silent-share", 0, "share of requests that the processor does not answer")
	flags.IntVar(&load.MaxOutstanding, "max-outstanding", 20_000, "most requests that wait for an answer at a rate; more are counted as shed")
	flags.Uint64Var(&load.Seed, "seed", 1, "seed of the mix")
	flags.IntVar(&pid, "pid", 0, "process whose CPU time is measured")
	return command
}

// A benchResult is what a load has seen, and what it cost.
type benchResult struct {
	simulator.LoadResult
	CPU *cpuCost `json:"cpu,omitempty"`
}

// A cpuCost is the CPU time, user and system, of a process during a load.
type cpuCost struct {
	Total          time.Duration `json:"total_ns"`
	PerTransaction float64       `json:"microseconds_per_transaction"`
	Cores          float64       `json:"cores"` // busy on average
}

func (c *cli) bench(ctx context.Context, f connectFlags, load simulator.LoadConfig, connections, pid int) error {
	if load.Rate == 0 && load.InFlight == 0 {
		load.Rate = 100
	}
	if connections < 1 {
		return usagef("--connections %d is not positive", connections)
	}
	u, err := c.newUpstream(f, simulator.UpstreamConfig{Connections: connections, Book: simulator.NewBook(-1)})
	if err != nil {
		return err
	}
	load.Upstream = u
	if _, err := simulator.NewLoad(load); err != nil {
		return usage(err)
	}
	if _, err := cpuTime(pid); err != nil {
		return usage(err)
	}
	var result benchResult
	err = connected(ctx, u, f.connectTimeout, func() (err error) {
		result, err = measured(ctx, load, pid)
		return err
	})
	if err != nil {
		return err
	}
	if err := c.print(result, func(w io.Writer) { result.print(w) }); err != nil {
		return err
	}
	if result.Outcomes[simulator.Answered] == 0 {
		return errors.New("no request was answered")
	}
	return nil
}

// measured runs a load on an upstream that is connected. With a pid it measures that process beside it.
func measured(ctx context.Context, load simulator.LoadConfig, pid int) (result benchResult, err error) {
	l, err := simulator.NewLoad(load)
	if err != nil {
		return result, err
	}
	before, err := cpuTime(pid)
	if err != nil {
		return result, err
	}
	if result.LoadResult, err = l.Run(ctx); err != nil || pid == 0 {
		return result, err
	}
	after, err := cpuTime(pid)
	if err != nil {
		return result, err
	}
	result.CPU = &cpuCost{Total: after - before, Cores: (after - before).Seconds() / result.Elapsed.Seconds()}
	if answered := result.Outcomes[simulator.Answered]; answered > 0 {
		result.CPU.PerTransaction = float64(result.CPU.Total.Microseconds()) / float64(answered)
	}
	return result, nil
}

func (r benchResult) print(w io.Writer) {
	_, _ = fmt.Fprintf(w, "%d requests in %v, %.0f answers a second", r.Requests, r.Elapsed.Round(time.Millisecond), r.Throughput)
	if r.Shed > 0 {
		_, _ = fmt.Fprintf(w, ", and %d that were due and not begun: too many waited already", r.Shed)
	}
	_, _ = fmt.Fprintf(w, "\nlatency mean %v, p50 %v, p90 %v, p99 %v, p99.9 %v, max %v\n", r.Latency.Mean.Round(time.Microsecond), r.Latency.P50, r.Latency.P90, r.Latency.P99,
		r.Latency.P999, r.Latency.Max)
	for _, outcome := range slices.Sorted(maps.Keys(r.Outcomes)) {
		_, _ = fmt.Fprintf(w, "%s %d\n", outcome, r.Outcomes[outcome])
	}
	for _, code := range slices.Sorted(maps.Keys(r.Codes)) {
		_, _ = fmt.Fprintf(w, "code %s %d\n", code, r.Codes[code])
	}
	if r.CPU != nil {
		_, _ = fmt.Fprintf(w, "CPU %v, %.1f µs a transaction, %.2f cores busy\n", r.CPU.Total, r.CPU.PerTransaction, r.CPU.Cores)
	}
}

// clockTick is the unit of the CPU times in /proc, USER_HZ: 100 a second on every Linux that Go runs on (proc(5), sysconf(3)).
const clockTick = 10 * time.Millisecond

// cpuTime reads the CPU time, user and system, that a process has used, 0 for process 0.
func cpuTime(pid int) (time.Duration, error) {
	if pid == 0 {
		return 0, nil
	}
	stat, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return 0, fmt.Errorf("reading CPU time: %w", err)
	}
	// The process's name, in parentheses, may hold anything. After it, utime and stime are fields 14 and 15 of the whole (proc(5)).
	const afterName, utime, stime = 3, 14, 15
	fields := bytes.Fields(stat[bytes.LastIndexByte(stat, ')')+1:])
	if len(fields) <= stime-afterName {
		return 0, errors.New("reading CPU time: /proc has another form than proc(5) says")
	}
	user, errUser := strconv.ParseInt(string(fields[utime-afterName]), 10, 64)
	system, errSystem := strconv.ParseInt(string(fields[stime-afterName]), 10, 64)
	return time.Duration(user+system) * clockTick, errors.Join(errUser, errSystem)
}
