package upstream_test

import (
	"context"
	"crypto/tls"
	"log/slog"
	"net"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"acquirerd/acquirer"
	"acquirerd/messages"
	"acquirerd/upstream"
)

// An upstream that pipelines more than is read before the stop, over real TCP with small buffers: closing with unread requests in the
// socket would make the kernel throw away answers that were written.
func TestAnswersArriveAlthoughRequestsAreLeftUnread(t *testing.T) {
	t.Run("TCP", func(t *testing.T) {
		answersArrive(t, nil, func(c net.Conn) net.Conn { return c })
	})
	t.Run("TLS", func(t *testing.T) {
		ca := newAuthority(t)
		answersArrive(t, ca.door(t), func(c net.Conn) net.Conn { return tls.Client(c, ca.client(t, named("pos"))) })
	})
}

func answersArrive(t *testing.T, secured *tls.Config, wrap func(net.Conn) net.Conn) {
	const taken, left = 200, 2000
	h := &hall{t: t, desk: &desk{authorize: approve}, codec: codecOf(t)}
	door, err := upstream.New(upstream.Config{Upstream: &acquirer.Upstream{Name: "pos", Codec: h.codec}, InFlight: 2 * taken, Connections: 1,
		Budget: time.Minute, IdleTimeout: time.Minute, FrameTimeout: time.Minute, WriteTimeout: time.Minute, TLS: secured}, h.desk, slog.New(slog.DiscardHandler),
		prometheus.NewRegistry())
	if err != nil {
		t.Fatal(err)
	}
	begun, release := make(chan struct{}, taken+left), make(chan struct{})
	h.desk.authorize = func(ctx context.Context, req acquirer.Request) (acquirer.Result, error) {
		begun <- struct{}{}
		<-release
		return approve(ctx, req)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	served := make(chan error, 1)
	go func() { served <- door.Serve(ctx, listener) }()
	raw, err := net.Dial("tcp", listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	if err := raw.(*net.TCPConn).SetReadBuffer(4096); err != nil {
		t.Fatal(err)
	}
	connection := wrap(raw)
	defer connection.Close()
	frame := func(stan int) []byte {
		f, err := h.codec.EncodeFrame(request(stan))
		if err != nil {
			t.Fatal(err)
		}
		return f
	}
	for stan := 1; stan <= taken; stan++ {
		if _, err := connection.Write(frame(stan)); err != nil {
			t.Fatal(err)
		}
	}
	for range taken {
		<-begun
	}
	stop() // nothing more is read
	go func() {
		for stan := taken + 1; stan <= taken+left; stan++ {
			if _, err := connection.Write(frame(stan)); err != nil {
				return
			}
		}
	}()
	close(release)
	got := 0
	for {
		body, err := h.codec.ReadFrame(connection)
		if err != nil {
			break
		}
		if m, err := h.codec.Decode(body); err != nil || m.Get(messages.ResponseCode) != "00" {
			t.Fatalf("got %v, %v", m, err)
		}
		got++
	}
	_ = connection.Close()
	if err := <-served; err != nil {
		t.Error(err)
	}
	if taken > got || len(h.desk.undelivered) > 0 {
		t.Errorf("%d answers arrived, want at least the %d that were taken; %d undelivered", got, taken, len(h.desk.undelivered))
	}
}
