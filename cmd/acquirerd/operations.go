package main

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus/promhttp"

	"acquirerd/conn"
)

// Limits of the operations port. A scrape takes milliseconds; the rest keeps strangers from holding it.
const (
	operationsHeaderTimeout = 5 * time.Second
	operationsTimeout       = 10 * time.Second
	operationsIdleTimeout   = 30 * time.Second // longer than a scraper's pause, commonly 15 s
	operationsConnections   = 64               // over it one waits until another ends: strangers may not use up the descriptors
	operationsHeaderBytes   = 16 << 10
	operationsStopTimeout   = 2 * time.Second
	scrapesAtOnce           = 4
)

// serveOperations answers metrics and health on the listener until ctx ends.
func (d *daemon) serveOperations(ctx context.Context, listener net.Listener) error {
	server := &http.Server{Handler: d.operations(), ReadHeaderTimeout: operationsHeaderTimeout, ReadTimeout: operationsTimeout,
		WriteTimeout: operationsTimeout, IdleTimeout: operationsIdleTimeout, MaxHeaderBytes: operationsHeaderBytes,
		ErrorLog: slog.NewLogLogger(d.log.Handler(), slog.LevelWarn)}
	return untilDone(ctx, server, newLimited(listener, operationsConnections))
}

// untilDone serves until ctx ends.
func untilDone(ctx context.Context, server *http.Server, listener net.Listener) error {
	ended := make(chan error, 1)
	go func() { ended <- server.Serve(listener) }()
	select {
	case err := <-ended:
		return err
	case <-ctx.Done():
	}
	limit, release := context.WithTimeout(context.WithoutCancel(ctx), operationsStopTimeout)
	defer release()
	if err := server.Shutdown(limit); err != nil {
		_ = server.Close() // somebody holds a request: it is cut
	}
	if err := <-ended; !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// A limited listener accepts while fewer than so many of its connections are open. Over that, Accept waits.
type limited struct {
	net.Listener
	places chan struct{} // one in it for each open connection
	closed chan struct{}
	close  func() error // of this listener, once
}

func newLimited(listener net.Listener, most int) *limited {
	l := &limited{Listener: listener, places: make(chan struct{}, most), closed: make(chan struct{})}
	l.close = sync.OnceValue(func() error {
		close(l.closed)
		return listener.Close()
	})
	return l
}

func (l *limited) Accept() (net.Conn, error) {
	select {
	case l.places <- struct{}{}:
	case <-l.closed:
		return nil, net.ErrClosed
	}
	connection, err := l.Listener.Accept()
	if err != nil {
		<-l.places
		return nil, err
	}
	return &placed{connection, sync.OnceFunc(func() { <-l.places })}, nil
}

func (l *limited) Close() error { return l.close() }

// A placed connection holds a place until it is closed.
type placed struct {
	net.Conn
	leave func() // once
}

func (p *placed) Close() error {
	defer p.leave()
	return p.Conn.Close()
}

// operations is what the port answers. It has no profiler: a heap dump holds card data.
func (d *daemon) operations() http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(d.registry, promhttp.HandlerOpts{Registry: d.registry, MaxRequestsInFlight: scrapesAtOnce,
		Timeout: operationsTimeout / 2, ErrorLog: slog.NewLogLogger(d.log.Handler(), slog.LevelWarn)}))
	mux.HandleFunc("GET /health/live", func(w http.ResponseWriter, _ *http.Request) {
		answer(w, http.StatusOK, map[string]string{"status": statusOK})
	})
	mux.HandleFunc("GET /health/ready", func(w http.ResponseWriter, _ *http.Request) {
		code, status, checks := http.StatusOK, statusOK, d.checks()
		for _, c := range checks {
			if c.Status != statusOK {
				code, status = http.StatusServiceUnavailable, statusFailed
			}
		}
		answer(w, code, map[string]any{"status": status, "checks": checks})
	})
	mux.HandleFunc("GET /links", func(w http.ResponseWriter, _ *http.Request) { answer(w, http.StatusOK, d.links()) })
	return mux
}

// The states of a check.
const (
	statusOK       = "ok"
	statusFailed   = "failed"
	statusDraining = "draining"
	statusHeld     = "held" // an operator has drained every link, and nothing is wrong
)

// A check is one condition of readiness. Why it failed is in the log.
type check struct {
	Name   string `json:"name"`
	Status string `json:"status"`
}

// checks says whether a request that came now could be carried to each processor.
func (d *daemon) checks() []check {
	status := func(fine bool, otherwise string) string {
		if fine {
			return statusOK
		}
		return otherwise
	}
	list := []check{
		{"daemon", status(!d.draining.Load(), statusDraining)},
		{"hsm", status(d.vault.Ready() == nil, statusFailed)},
		{"journal", status(d.journal.Ready() == nil, statusFailed)},
	}
	for _, e := range d.processors() {
		otherwise := statusFailed
		if !slices.ContainsFunc(e.Status(), func(l conn.LinkStatus) bool { return !l.Held || l.Suspended }) {
			otherwise = statusHeld
		}
		list = append(list, check{"endpoint " + e.name, status(e.InService(), otherwise)})
	}
	return list
}

// A linkStatus is one link for operations staff.
type linkStatus struct {
	Endpoint string `json:"endpoint"`
	conn.LinkStatus
}

func (d *daemon) links() []linkStatus {
	list := []linkStatus{}
	for _, e := range d.processors() {
		for _, link := range e.Status() {
			list = append(list, linkStatus{e.name, link})
		}
	}
	return list
}

func answer(w http.ResponseWriter, code int, body any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(body) // the asker is gone if this fails
}
