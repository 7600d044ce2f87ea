package conn

import (
	"errors"
	"fmt"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// A kind is what an arriving answer turned out to be.
type kind string

const (
	kindMatched     kind = "matched"
	kindLate        kind = "late"        // of an exchange that had ended without its answer
	kindDuplicate   kind = "duplicate"   // of an exchange that had its answer, or its late answer
	kindUnmatched   kind = "unmatched"   // of no exchange that is remembered
	kindMismatch    kind = "mismatch"    // disagrees with its request
	kindUndecodable kind = "undecodable" // does not keep the format
	kindWrongMAC    kind = "wrong_mac"   // its message authentication code is wrong or missing
	kindUnchecked   kind = "unchecked"   // its message authentication code could not be checked in time
	kindWrongLink   kind = "wrong_link"  // not on the connection that its request went out on, where the dialect wants that
)

var kinds = []kind{kindMatched, kindLate, kindDuplicate, kindUnmatched, kindMismatch, kindUndecodable, kindWrongMAC, kindUnchecked, kindWrongLink}

// A tally is what a link has counted since it began. A link that is the same in another configuration goes on counting.
type tally struct {
	reconnects          atomic.Int64
	echo                atomic.Int64 // round trip of the last one, in nanoseconds
	framesIn, framesOut atomic.Uint64
	bytesIn, bytesOut   atomic.Uint64
}

// metrics are one endpoint's part of the vectors that all endpoints of a registry share, and its links' own.
type metrics struct {
	answers  map[kind]prometheus.Counter
	refused  map[refusal]prometheus.Counter
	seconds  prometheus.Observer
	inFlight prometheus.Gauge
	dropped  prometheus.Counter
	macs     prometheus.Counter // nil where no messages carry a MAC
	end      func()             // takes the links' series away, so that another endpoint may take the name
}

func newMetrics(e *Endpoint, registry prometheus.Registerer) (*metrics, error) {
	endpoint := e.config().Name
	var faults []error
	gauge := func(name, help string, labels ...string) *prometheus.GaugeVec {
		return shared(registry, prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: name, Help: help}, append([]string{"endpoint"}, labels...)), &faults)
	}
	counter := func(name, help string, labels ...string) *prometheus.CounterVec {
		return shared(registry, prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, append([]string{"endpoint"}, labels...)), &faults)
	}
	answers := counter("acquirerd_answers_total", "Answers that arrived from processors, by what they turned out to be.", "kind")
	refused := counter("acquirerd_link_refused_total", "Connections of processors that were closed at once, by the reason.", "cause")
	seconds := shared(registry, prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "acquirerd_exchange_seconds",
		Help:    "Time from a request to its answer or to the end of the wait, for requests that may have been sent.",
		Buckets: []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30}}, []string{"endpoint"}), &faults)
	inFlight := gauge("acquirerd_exchanges_in_flight", "Exchanges in flight.")
	dropped := counter("acquirerd_unasked_dropped_total", "Messages that arrived unasked while too many others waited to be looked at.")
	macs := shared(registry, MACFailures(), &faults)
	links := newCollector(e, endpoint)
	if len(faults) == 0 {
		if err := registry.Register(links); err != nil {
			faults = append(faults, err)
		}
	}
	if len(faults) > 0 {
		return nil, fmt.Errorf("registering metrics: %w", errors.Join(faults...))
	}

	m := &metrics{
		answers: map[kind]prometheus.Counter{}, refused: map[refusal]prometheus.Counter{}, seconds: seconds.WithLabelValues(endpoint),
		inFlight: inFlight.WithLabelValues(endpoint),
		dropped:  dropped.WithLabelValues(endpoint), end: func() { registry.Unregister(links) },
	}
	if e.config().MAC != nil {
		m.macs = macs.WithLabelValues("endpoint", endpoint)
	}
	for _, k := range kinds {
		m.answers[k] = answers.WithLabelValues(endpoint, string(k))
	}
	for _, r := range refusals {
		m.refused[r] = refused.WithLabelValues(endpoint, string(r))
	}
	return m, nil
}

// MACFailures makes the vector that endpoints and upstreams share: once it is registered, the others find it there.
func MACFailures() *prometheus.CounterVec {
	return prometheus.NewCounterVec(prometheus.CounterOpts{Name: "acquirerd_mac_failures_total",
		Help: "Messages whose message authentication code was wrong or missing, by whose they should have been."}, []string{"side", "name"})
}

// shared registers a collector, or returns the one that another endpoint has registered.
func shared[C prometheus.Collector](registry prometheus.Registerer, collector C, faults *[]error) C {
	err := registry.Register(collector)
	var already prometheus.AlreadyRegisteredError
	if errors.As(err, &already) {
		if existing, ours := already.ExistingCollector.(C); ours {
			return existing
		}
	}
	if err != nil {
		*faults = append(*faults, err)
	}
	return collector
}

// A collector reads an endpoint's links when it is scraped, so that the series are those of the links that there are, and the time in a
// state is right at that moment. The label "link" is the number that operators use: a reload that removes a link before others, or a link that
// departs, moves what they have counted to another number. A counter that falls by that looks like a restart to Prometheus, and one that
// rises like events: sums over an endpoint's links are right but for the moment of the reload.
type collector struct {
	endpoint *Endpoint

	abandoned, links, state, stateSeconds, inFlight, reconnects, echo, frames, bytes, failures, last, suspended *prometheus.Desc
}

func newCollector(e *Endpoint, name string) *collector {
	desc := func(metric, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc(metric, help, labels, prometheus.Labels{"endpoint": name})
	}
	return &collector{
		endpoint:     e,
		abandoned:    desc("acquirerd_exchanges_abandoned", "Exchanges that ended without an answer and whose late answer is waited for."),
		links:        desc("acquirerd_links", "Links to processors, by state.", "state"),
		state:        desc("acquirerd_link_state", "1 for the state that the link is in, 0 for the others.", "link", "state"),
		stateSeconds: desc("acquirerd_link_state_seconds", "For how long the link has been in its state.", "link"),
		inFlight:     desc("acquirerd_link_exchanges_in_flight", "Exchanges in flight on the link.", "link"),
		reconnects:   desc("acquirerd_link_reconnects_total", "Connections of the link, and attempts at one, after the first.", "link"),
		echo:         desc("acquirerd_link_echo_seconds", "Round trip of the last echo; none before the first.", "link"),
		frames:       desc("acquirerd_link_frames_total", "Frames on the link.", "link", "direction"),
		bytes:        desc("acquirerd_link_bytes_total", "Bytes on the link, without what TLS adds.", "link", "direction"),
		failures:     desc("acquirerd_link_failures_total", "Connections of the link that failed, and attempts at one, by the cause.", "link", "cause"),
		suspended:    desc("acquirerd_link_suspended", "1 while the link is out of service for messages with a wrong MAC, else 0.", "link"),
		last:         desc("acquirerd_link_last_failure", "1, with the cause of the link's last failure; none before the first.", "link", "cause"),
	}
}

func (c *collector) Describe(to chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{c.abandoned, c.links, c.state, c.stateSeconds, c.inFlight, c.reconnects, c.echo, c.frames, c.bytes, c.failures, c.last, c.suspended} {
		to <- d
	}
}

func (c *collector) Collect(to chan<- prometheus.Metric) {
	for _, m := range c.collect() { // mu is not held while somebody is waited for
		to <- m
	}
}

func (c *collector) collect() (list []prometheus.Metric) {
	e := c.endpoint
	e.mu.Lock()
	defer e.mu.Unlock()
	add := func(d *prometheus.Desc, kind prometheus.ValueType, value float64, labels ...string) {
		list = append(list, prometheus.MustNewConstMetric(d, kind, value, labels...))
	}
	e.pending.forget(time.Now())
	add(c.abandoned, prometheus.GaugeValue, float64(e.pending.abandoned))
	inState := map[State]int{}
	for _, l := range e.carriers() {
		s := l.status()
		link := strconv.Itoa(s.Number)
		inState[s.State]++
		for _, state := range states {
			value := 0.
			if state == s.State {
				value = 1
			}
			add(c.state, prometheus.GaugeValue, value, link, string(state))
		}
		add(c.stateSeconds, prometheus.GaugeValue, time.Since(s.Since).Seconds(), link)
		add(c.inFlight, prometheus.GaugeValue, float64(s.InFlight), link)
		add(c.reconnects, prometheus.CounterValue, float64(s.Reconnects), link)
		if e.config().MAC != nil {
			suspended := 0.
			if s.Suspended {
				suspended = 1
			}
			add(c.suspended, prometheus.GaugeValue, suspended, link)
		}
		if s.EchoSeconds > 0 {
			add(c.echo, prometheus.GaugeValue, s.EchoSeconds, link)
		}
		add(c.frames, prometheus.CounterValue, float64(s.FramesIn), link, "in")
		add(c.frames, prometheus.CounterValue, float64(s.FramesOut), link, "out")
		add(c.bytes, prometheus.CounterValue, float64(s.BytesIn), link, "in")
		add(c.bytes, prometheus.CounterValue, float64(s.BytesOut), link, "out")
		for _, why := range failures {
			if n := l.failures[why]; n > 0 {
				add(c.failures, prometheus.CounterValue, float64(n), link, string(why))
			}
		}
		if l.lastError != causeNone {
			add(c.last, prometheus.GaugeValue, 1, link, string(l.lastError))
		}
	}
	for _, state := range states {
		add(c.links, prometheus.GaugeValue, float64(inState[state]), string(state))
	}
	return list
}
