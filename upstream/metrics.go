package upstream

import (
	"errors"

	"github.com/prometheus/client_golang/prometheus"
)

type metrics struct {
	connections *prometheus.GaugeVec
	refused     *prometheus.CounterVec
	messages    *prometheus.CounterVec
}

func newMetrics(registry prometheus.Registerer) *metrics {
	return &metrics{
		connections: shared(registry, prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "acquirerd_upstream_connections",
			Help: "Open connections of upstreams."}, []string{"upstream"})),
		refused: shared(registry, prometheus.NewCounterVec(prometheus.CounterOpts{Name: "acquirerd_upstream_connections_refused_total",
			Help: "Connections closed at once because the upstream had its most."}, []string{"upstream"})),
		messages: shared(registry, prometheus.NewCounterVec(prometheus.CounterOpts{Name: "acquirerd_upstream_messages_total",
			Help: "Messages from upstreams, by what was done with them."}, []string{"upstream", "kind"})),
	}
}

// shared registers a collector, or returns the one that another door has registered.
func shared[C prometheus.Collector](registry prometheus.Registerer, collector C) C {
	var already prometheus.AlreadyRegisteredError
	if err := registry.Register(collector); errors.As(err, &already) {
		return already.ExistingCollector.(C) // registered under one name by this function alone
	}
	return collector
}
