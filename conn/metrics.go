package conn

import (
	"errors"
	"fmt"

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
)

var kinds = []kind{kindMatched, kindLate, kindDuplicate, kindUnmatched, kindMismatch, kindUndecodable}

// metrics are one endpoint's part of the vectors that all endpoints of a registry share.
type metrics struct {
	links      map[State]prometheus.Gauge
	answers    map[kind]prometheus.Counter
	seconds    prometheus.Observer
	reconnects prometheus.Counter
	inFlight   prometheus.Gauge
	abandoned  prometheus.Gauge
	dropped    prometheus.Counter
}

func newMetrics(endpoint string, registry prometheus.Registerer) (*metrics, error) {
	var faults []error
	gauge := func(name, help string, labels ...string) *prometheus.GaugeVec {
		return shared(registry, prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: name, Help: help}, append([]string{"endpoint"}, labels...)), &faults)
	}
	counter := func(name, help string, labels ...string) *prometheus.CounterVec {
		return shared(registry, prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, append([]string{"endpoint"}, labels...)), &faults)
	}
	links := gauge("acquirerd_links", "Links to processors, by state.", "state")
	answers := counter("acquirerd_answers_total", "Answers that arrived from processors, by what they turned out to be.", "kind")
	seconds := shared(registry, prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "acquirerd_exchange_seconds",
		Help:    "Time from a request to its answer or to the end of the wait, for requests that may have been sent.",
		Buckets: []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30}}, []string{"endpoint"}), &faults)
	reconnects := counter("acquirerd_link_reconnects_total", "Attempts to connect a link again.")
	inFlight := gauge("acquirerd_exchanges_in_flight", "Exchanges in flight.")
	abandoned := gauge("acquirerd_exchanges_abandoned", "Exchanges that ended without an answer and whose late answer is waited for.")
	dropped := counter("acquirerd_unasked_dropped_total", "Messages that arrived unasked while too many others waited to be looked at.")
	if len(faults) > 0 {
		return nil, fmt.Errorf("registering metrics: %w", errors.Join(faults...))
	}

	m := &metrics{
		links: map[State]prometheus.Gauge{}, answers: map[kind]prometheus.Counter{}, seconds: seconds.WithLabelValues(endpoint),
		reconnects: reconnects.WithLabelValues(endpoint), inFlight: inFlight.WithLabelValues(endpoint),
		abandoned: abandoned.WithLabelValues(endpoint), dropped: dropped.WithLabelValues(endpoint),
	}
	for _, s := range states {
		m.links[s] = links.WithLabelValues(endpoint, string(s))
	}
	for _, k := range kinds {
		m.answers[k] = answers.WithLabelValues(endpoint, string(k))
	}
	return m, nil
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
