package upstream

import (
	"errors"

	"github.com/prometheus/client_golang/prometheus"

	"acquirerd/conn"
)

type metrics struct {
	connections *prometheus.GaugeVec
	refused     *prometheus.CounterVec
	messages    *prometheus.CounterVec
	macs        *prometheus.CounterVec
}

func newMetrics(registry prometheus.Registerer) *metrics {
	return &metrics{
		macs: shared(registry, conn.MACFailures()),
		connections: shared(registry, prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "acquirerd_upstream_connections",
			Help: "Open connections of upstreams."}, []string{"upstream"})),
		refused: shared(registry, prometheus.NewCounterVec(prometheus.CounterOpts{Name: "acquirerd_upstream_connections_refused_total",
			Help: "Connections that were not let in, by reason."}, []string{"upstream", "reason"})),
		messages: shared(registry, prometheus.NewCounterVec(prometheus.CounterOpts{Name: "acquirerd_upstream_messages_total",
			Help: "Messages from upstreams, by what the door did with them; those taken are the switch's: acquirerd_transactions_total, acquirerd_refusals_total."}, []string{"upstream", "kind"})),
	}
}

// kinds are what the door does with a message.
var kinds = []string{kindTaken, kindBusy, kindRate, kindSilent, kindFormatError, kindUnsupported, kindUnasked, kindWrongMAC, kindUnchecked, kindSignOn, kindSignOff, kindEcho}

const (
	kindTaken       = "taken"
	kindBusy        = "busy"         // over the limit of messages in flight: refused
	kindRate        = "rate"         // over the rate: refused
	kindSilent      = "silent"       // over one of these, or without a form and so not proven, and it repeats what is known: not answered, because a refusal would be believed
	kindFormatError = "format_error" // refused
	kindUnsupported = "unsupported"  // a type or a network management code that is not served: refused
	kindUnasked     = "unasked"      // an answer to nothing: dropped
	kindWrongMAC    = "wrong_mac"    // its message authentication code is wrong or missing: refused, unless it repeats what is known
	kindUnchecked   = "unchecked"    // its message authentication code could not be checked: dropped, and not answered
	kindSignOn      = "sign_on"
	kindSignOff     = "sign_off"
	kindEcho        = "echo"
)

// sideUpstream is whose messages should have had another MAC.
const sideUpstream = "upstream"

// refusals are why a connection is not let in.
var refusals = []string{refusedTooMany, refusedAddress, refusedTLS, refusedPeer}

const (
	refusedTooMany = "too_many" // the upstream has its most
	refusedAddress = "address"  // not in the allow-list
	refusedTLS     = "tls"      // the handshake failed or took too long, or the certificate was missing or not verified
	refusedPeer    = "peer"     // the certificate was verified, but carries no name of a peer
)

// begin makes an upstream's series, so that the first event of each is seen as a step from 0.
func (m *metrics) begin(upstream string) {
	m.connections.WithLabelValues(upstream)
	for _, reason := range refusals {
		m.refused.WithLabelValues(upstream, reason)
	}
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
