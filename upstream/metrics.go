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
			Help: "Messages from upstreams, by what the door did with them; those taken are the switch's: acquirerd_transactions_total, acquirerd_refusals_total."}, []string{"upstream", "kind"})),
	}
}

// kinds are what the door does with a message.
var kinds = []string{kindTaken, kindBusy, kindSilent, kindFormatError, kindUnsupported, kindUnasked, kindSignOn, kindSignOff, kindEcho}

const (
	kindTaken       = "taken"
	kindBusy        = "busy"         // over the limit: refused
	kindSilent      = "silent"       // over the limit, and it repeats what is known: not answered, because a refusal would be believed
	kindFormatError = "format_error" // refused
	kindUnsupported = "unsupported"  // a type or a network management code that is not served: refused
	kindUnasked     = "unasked"      // an answer to nothing: dropped
	kindSignOn      = "sign_on"
	kindSignOff     = "sign_off"
	kindEcho        = "echo"
)

// begin makes an upstream's series, so that the first event of each is seen as a step from 0.
func (m *metrics) begin(upstream string) {
	m.connections.WithLabelValues(upstream)
	m.refused.WithLabelValues(upstream)
	for _, kind := range kinds {
		m.messages.WithLabelValues(upstream, kind)
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
