package journal

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// BenchmarkTransactions writes an intent and its outcome for each operation, as Authorize does: Next, Begin, Spend, Finish. It
// reports the processor time of the whole process beside the rate. ACQUIRERD_BENCH_DIR chooses the disk.
//
//	go test -run - -bench Transactions -benchtime 100000x ./journal
func BenchmarkTransactions(b *testing.B) {
	for _, callers := range []int{1, 64, 128} {
		b.Run(fmt.Sprintf("callers=%d", callers), func(b *testing.B) { benchmarkTransactions(b, callers) })
	}
}

func benchmarkTransactions(b *testing.B, callers int) {
	directory := b.TempDir()
	if disk := os.Getenv("ACQUIRERD_BENCH_DIR"); disk != "" {
		var err error
		if directory, err = os.MkdirTemp(disk, "journal"); err != nil {
			b.Fatal(err)
		}
		defer os.RemoveAll(directory)
	}
	path := filepath.Join(directory, "journal.db")
	if err := Create(path, "acq01"); err != nil {
		b.Fatal(err)
	}
	j, err := Open(Config{Path: path, Station: "acq01", BlockSize: 10_000}, slog.New(slog.DiscardHandler), prometheus.NewRegistry())
	if err != nil {
		b.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- j.Run(ctx) }()

	var work sync.WaitGroup
	b.ReportAllocs()
	b.ResetTimer()
	cpu, begun := processorTime(b), time.Now()
	for caller := range callers {
		work.Go(func() {
			for i := caller; i < b.N; i += callers {
				numbers, err := j.Next(ctx, "processor-a", time.Now())
				if err != nil {
					b.Error(err)
					return
				}
				ticket, err := j.Begin(ctx, intentOf(numbers, fmt.Sprintf("%d", i)))
				if err != nil {
					b.Error(err)
					return
				}
				ticket.Spend()
				if err := j.Finish(ctx, ticket, Outcome{Kind: Approved, ResponseCode: "00", AuthorizationID: "A12345"}); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	work.Wait()
	b.StopTimer()
	b.ReportMetric(float64(b.N)/time.Since(begun).Seconds(), "tx/s")
	b.ReportMetric(float64((processorTime(b)-cpu).Microseconds())/float64(b.N), "cpu-µs/tx")
	stop()
	if err := <-ended; err != nil {
		b.Fatal(err)
	}
	if err := j.Close(); err != nil {
		b.Fatal(err)
	}
}

func processorTime(b *testing.B) time.Duration {
	var usage syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &usage); err != nil {
		b.Fatal(err)
	}
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}
