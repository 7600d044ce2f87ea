package main

import (
	"bufio"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// A pipes listener accepts one end of each pipe that dial makes.
type pipes struct {
	ends   chan net.Conn
	closed chan struct{}
}

func newPipes() *pipes {
	return &pipes{make(chan net.Conn, 2*operationsConnections), make(chan struct{})}
}

func (p *pipes) Accept() (net.Conn, error) {
	select {
	case end := <-p.ends:
		return end, nil
	case <-p.closed:
		return nil, net.ErrClosed
	}
}

func (p *pipes) Close() error   { close(p.closed); return nil } // a second time is a panic
func (p *pipes) Addr() net.Addr { return &net.TCPAddr{} }

func (p *pipes) dial() net.Conn {
	ours, theirs := net.Pipe()
	p.ends <- theirs
	return ours
}

func TestStrangersDoNotUseUpTheOperationsPort(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &daemon{log: slog.New(slog.DiscardHandler), registry: prometheus.NewRegistry()}
		listener := newPipes()
		ctx, stop := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- d.serveOperations(ctx, listener) }()

		const waiting = 3
		for range operationsConnections + waiting {
			defer listener.dial().Close()
		}
		synctest.Wait()
		if got := len(listener.ends); got != waiting {
			t.Errorf("%d connections wait, want %d", got, waiting)
		}

		// The silent ones lose their places when their time for a header is over.
		asker := listener.dial()
		began := time.Now()
		if _, err := io.WriteString(asker, "GET /health/live HTTP/1.1\r\nHost: acquirerd\r\n\r\n"); err != nil {
			t.Fatal(err)
		}
		in := bufio.NewReader(asker)
		response, err := http.ReadResponse(in, nil)
		if err != nil {
			t.Fatal(err)
		}
		_, err = io.Copy(io.Discard, response.Body)
		if closed := response.Body.Close(); response.StatusCode != http.StatusOK || err != nil || closed != nil {
			t.Errorf("got %s, %v, %v", response.Status, err, closed)
		}
		if took := time.Since(began); took != operationsHeaderTimeout {
			t.Errorf("the answer came after %v, want %v", took, operationsHeaderTimeout)
		}

		// One that is kept open for nothing is closed.
		began = time.Now()
		if _, err := in.ReadByte(); !errors.Is(err, io.EOF) {
			t.Errorf("got %v, want the end", err)
		}
		if took := time.Since(began); took != operationsIdleTimeout {
			t.Errorf("it was closed after %v, want %v", took, operationsIdleTimeout)
		}
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
}

func TestALimitedListener(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		inner := newPipes()
		listener := newLimited(inner, 1)
		type accepted struct {
			connection net.Conn
			err        error
		}
		results := make(chan accepted, 1)
		accept := func() {
			go func() {
				connection, err := listener.Accept()
				results <- accepted{connection, err}
			}()
			synctest.Wait()
		}
		defer inner.dial().Close()
		defer inner.dial().Close()
		accept()
		first := <-results
		accept()
		if len(results) > 0 {
			t.Fatal("accepted one over the limit")
		}
		for range 2 { // the second time gives no second place
			if err := first.connection.Close(); err != nil {
				t.Error(err)
			}
		}
		second := <-results
		if second.err != nil {
			t.Fatal(second.err)
		}
		accept()
		if len(results) > 0 {
			t.Error("a connection that was closed twice gave two places")
		}
		for range 2 {
			if err := listener.Close(); err != nil {
				t.Error(err)
			}
		}
		if last := <-results; !errors.Is(last.err, net.ErrClosed) {
			t.Errorf("got %v, want %v", last.err, net.ErrClosed)
		}
		if err := second.connection.Close(); err != nil {
			t.Error(err)
		}
	})
}
