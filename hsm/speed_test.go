package hsm_test

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"syscall"
	"testing"
	"time"

	"acquirerd/card"
	"acquirerd/hsm"
	"acquirerd/hsm/hsmtest"
)

// The figures of `make bench-hsm`. Each benchmark does its ways in turns of one run, because the machines are shared: what counts is their
// ratio. Nothing here passes or fails. The last column is the first way's CPU time over that of the line's.

// rounds is how many turns each way gets.
const rounds = 20

// A way is one of those that are compared.
type way struct {
	name string
	do   func(n int) // n times
	took time.Duration
	cpu  time.Duration
	n    int
}

// compare gives the ways their turns, and prints a line of each beside the first.
func compare(b *testing.B, title string, n int, ways []*way) {
	b.Helper()
	for _, w := range ways {
		w.do(n / rounds) // warm
	}
	for range rounds {
		for _, w := range ways {
			began, cpu := time.Now(), processCPU()
			w.do(n / rounds)
			w.took += time.Since(began)
			w.cpu += processCPU() - cpu
			w.n += n / rounds
		}
	}
	fmt.Printf("\n%s\n%-66s %12s %10s %10s %9s\n", title, "way", "a second", "µs", "µs CPU", "CPU")
	for _, w := range ways {
		each := w.took.Seconds() / float64(w.n)
		cpu := func(w *way) float64 { return w.cpu.Seconds() / float64(w.n) }
		fmt.Printf("%-66s %12.0f %10.2f %10.2f %8.0f%%\n", w.name, 1/each, each*1e6, cpu(w)*1e6, 100*cpu(ways[0])/cpu(w))
	}
}

func processCPU() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		panic(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// inFlight does n calls by so many callers at once.
func inFlight(callers, n int, call func()) {
	var all sync.WaitGroup
	for i := range callers {
		all.Go(func() {
			for range (n + i) / callers {
				call()
			}
		})
	}
	all.Wait()
}

// BenchmarkHSM compares PIN translation and the protection of a PAN with what the module itself can do.
func BenchmarkHSM(b *testing.B) {
	if b.N > 1 {
		return // it measures by itself, once
	}
	token := hsmtest.Standard(b)
	cfg := token.Config()
	cfg.Workers, cfg.Queue = 2, 1024
	const n = 40_000
	pan, err := card.ParsePAN("4111111111111111")
	if err != nil {
		b.Fatal(err)
	}
	block := hsmtest.EncipherPIN(hsmtest.UpstreamZPK, pan.Reveal(), "1234")
	h, err := hsm.New(cfg, slog.New(slog.DiscardHandler), nil)
	if err != nil {
		b.Fatal(err)
	}
	if err := h.Open(b.Context()); err != nil {
		b.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- h.Run(ctx) }()
	defer func() {
		cancel()
		if err := <-done; err != nil {
			b.Error(err)
		}
	}()
	plain := func() {
		if _, err := h.Protect(ctx, hsm.Card{PAN: pan}); err != nil {
			b.Error(err)
		}
	}
	withPIN := func() {
		if _, err := h.Protect(ctx, hsm.Card{PAN: pan, PINBlock: block, From: hsmtest.UpstreamKey, To: hsmtest.ProcessorKey}); err != nil {
			b.Error(err)
		}
	}
	pins, err := h.BenchWays(hsmtest.UpstreamKey, hsmtest.ProcessorKey, block, pan)
	if err != nil {
		b.Fatal(err)
	}
	compare(b, "PIN translation, TDES format 0, transient (SoftHSM), one thread", n, []*way{
		{name: "the module's own floor: two open operations, one block each", do: pins.Floor},
		{name: "as a worker does it: open operations, check of the block", do: pins.Held},
		{name: "single shots: begin and end an operation, twice", do: pins.Single},
	})
	inside := hsmtest.StandardNSS(b)
	resident, err := hsm.New(inside.Config(), slog.New(slog.DiscardHandler), nil)
	if err != nil {
		b.Fatal(err)
	}
	if err := resident.Open(b.Context()); err != nil {
		b.Fatal(err)
	}
	defer func() {
		if err := resident.Close(); err != nil {
			b.Error(err)
		}
	}()
	ways, err := resident.BenchResident(hsmtest.UpstreamZPK, hsmtest.ProcessorZPK, block, pan)
	if err != nil {
		b.Fatal(err)
	}
	compare(b, "PIN translation, TDES format 0, token-resident (NSS), one thread", n/4, []*way{
		{name: "the module's own floor: the calls of this way and nothing else", do: ways.Floor},
		{name: "as a worker does it: unwrap, look at what surrounds the PIN, wrap", do: ways.Resident},
		{name: "unwrap, wrap, destroy: a block that is garbage goes on as one", do: ways.Bare},
	})
	compare(b, "seal and token of a PAN (SoftHSM)", n, []*way{
		{name: "as a worker does it, one thread", do: pins.Protect},
		{name: "CKM_AES_GCM and CKM_SHA256_HMAC, single shots", do: pins.Naive},
		{name: "a call that does nothing, 128 in flight", do: func(n int) { inFlight(128, n, pins.Nothing) }},
		{name: "Protect without a PIN, 128 in flight", do: func(n int) { inFlight(128, n, plain) }},
		{name: "Protect with a PIN, 128 in flight", do: func(n int) { inFlight(128, n, withPIN) }},
	})
}
