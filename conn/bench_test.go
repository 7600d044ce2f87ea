package conn

import (
	"bufio"
	"context"
	"fmt"
	"log/slog"
	"net"
	"runtime"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"acquirerd/messages"
)

// BenchmarkExchange measures one exchange over TCP on the loopback, two links, 64 in flight. The host answers by patching bytes, so that
// what is measured is ours; cpu-µs/op is user and system time of the process, the host's share included.
func BenchmarkExchange(b *testing.B) {
	h := newHost(b, "iso87-ascii")
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	defer listener.Close()
	go func() {
		for {
			c, err := listener.Accept()
			if err != nil {
				return
			}
			go patchAnswers(h, c)
		}
	}()
	cfg := config(h)
	cfg.Links, cfg.Dial, cfg.InFlight = Dialled(listener.Addr().String(), listener.Addr().String()), nil, 1024
	e, err := New(cfg, slog.New(slog.DiscardHandler), prometheus.NewRegistry())
	if err != nil {
		b.Fatal(err)
	}
	r := &rig{Endpoint: e, t: b, host: h, ended: make(chan error, 1)}
	var ctx context.Context
	ctx, r.stop = context.WithCancel(context.Background())
	go func() { r.ended <- e.Run(ctx, func(context.Context, Unasked) {}) }()
	untilInService(b, r)

	var number atomic.Int64
	b.SetParallelism(64 / runtime.GOMAXPROCS(0))
	b.ReportAllocs()
	b.ResetTimer()
	before := cpu(b)
	b.RunParallel(func(pb *testing.PB) {
		m := request(0)
		for pb.Next() {
			n := number.Add(1)
			m.Set(messages.STAN, fmt.Sprintf("%06d", n%1000000))
			m.Set(messages.TransmissionTime, fmt.Sprintf("01%08d", n/1000000))
			if _, err := e.Exchange(context.Background(), m); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.StopTimer()
	b.ReportMetric(float64((cpu(b)-before).Microseconds())/float64(b.N), "cpu-µs/op")
	r.end()
}

// patchAnswers answers sign-on and sign-off by the codec, and the benchmark's request by copying what differs into a template.
func patchAnswers(h *host, c net.Conn) {
	defer c.Close()
	template, err := h.codec.EncodeFrame(messages.NewAnswer(request(0), "00"))
	if err != nil {
		h.t.Error(err)
		return
	}
	const numbers, size = 4 + 4 + 16 + 18 + 6 + 12, 10 + 6 // before them: length, MTI, bit map, DE 2, 3, 4; they are DE 7 and 11
	from, to := bufio.NewReaderSize(c, 1<<16), bufio.NewWriterSize(c, 1<<16)
	for {
		body, err := h.codec.ReadFrame(from)
		if err != nil {
			return
		}
		if string(body[:2]) == "01" {
			copy(template[numbers:numbers+size], body[numbers-4:])
			_, err = to.Write(template)
		} else {
			m, errDecode := h.codec.Decode(body)
			if errDecode != nil {
				h.t.Error(errDecode)
				return
			}
			frame, errEncode := h.codec.EncodeFrame(messages.NewAnswer(m, "00"))
			if errEncode != nil {
				h.t.Error(errEncode)
				return
			}
			_, err = to.Write(frame)
		}
		if err == nil && from.Buffered() == 0 {
			err = to.Flush()
		}
		if err != nil {
			return
		}
	}
}

func cpu(b *testing.B) time.Duration {
	var usage syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &usage); err != nil {
		b.Fatal(err)
	}
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}
