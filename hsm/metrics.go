package hsm

import (
	"context"
	"errors"
	"fmt"
	"strconv"

	"github.com/prometheus/client_golang/prometheus"
)

type metrics struct {
	errors     map[class]prometheus.Counter
	seconds    map[string]prometheus.Observer // by operation
	generation prometheus.Gauge
	changes    map[string]prometheus.Counter // by result
	version    map[string]prometheus.Gauge   // by the label of a key that may be changed
	oldKey     map[string]prometheus.Counter // by the same, of pin-in keys
	ways       *prometheus.GaugeVec          // by operation, way and whether it is in use: TDES-DUKPT is transient on every token, and no reason for an alarm where nobody has it
}

// newMetrics registers the metrics of h. A nil Registerer keeps them unregistered.
func newMetrics(reg prometheus.Registerer, h *HSM) (*metrics, error) {
	faults := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "acquirerd_hsm_errors_total", Help: "HSM calls and rebuilds that ended in an error, by class.",
	}, []string{"class"})
	seconds := prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name: "acquirerd_hsm_call_seconds", Help: "Time of an HSM call with its waiting, by operation.",
		Buckets: prometheus.ExponentialBuckets(10e-6, 2.5, 14), // 10 µs to 1.5 s
	}, []string{"operation"})
	changes := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "acquirerd_hsm_key_changes_total", Help: "Key changes, by result.",
	}, []string{"result"})
	version := prometheus.NewGaugeVec(prometheus.GaugeOpts{
		Name: "acquirerd_hsm_key_version", Help: "Current version of a key that may be changed: 1 for the one of the configuration.",
	}, []string{"key"})
	oldKey := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "acquirerd_hsm_old_key_pin_blocks_total", Help: "PIN blocks that were still enciphered under the key before a change, by key.",
	}, []string{"key"})
	ways := prometheus.NewGaugeVec(prometheus.GaugeOpts{
		Name: "acquirerd_hsm_operation_way", Help: "1 for the way that each operation takes for which the config has keys (in_use), and that the token could take of each other one.",
	}, []string{"operation", "way", "in_use"})
	m := &metrics{ways: ways, errors: map[class]prometheus.Counter{}, seconds: map[string]prometheus.Observer{},
		changes: map[string]prometheus.Counter{}, version: map[string]prometheus.Gauge{}, oldKey: map[string]prometheus.Counter{}}
	for _, r := range keyResults {
		m.changes[r] = changes.WithLabelValues(r)
	}
	for label := range h.lines {
		m.version[label] = version.WithLabelValues(label)
		if h.uses[label] == PINIn {
			m.oldKey[label] = oldKey.WithLabelValues(label)
		}
	}
	for _, c := range classes {
		m.errors[c] = faults.WithLabelValues(string(c))
	}
	for _, o := range []string{protectPlain, protectPIN, openOne, sealOne, sealRest, openRest, changeKey, signDigest, makeMAC} {
		m.seconds[o] = seconds.WithLabelValues(o)
	}
	m.generation = prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "acquirerd_hsm_generation", Help: "Number of the present or last generation: loads of the PKCS#11 module.",
	})
	ready := prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "acquirerd_hsm_ready", Help: "1 while a generation is healthy and not all workers hang.",
	}, func() float64 {
		if h.Ready() != nil {
			return 0
		}
		return 1
	})
	if reg == nil {
		return m, nil
	}
	for _, c := range []prometheus.Collector{faults, seconds, m.generation, ready, changes, version, oldKey, ways} {
		if err := reg.Register(c); err != nil {
			return nil, fmt.Errorf("registering HSM metrics: %w", err)
		}
	}
	return m, nil
}

// tellWays is of a generation that is in use from now on.
func (m *metrics) tellWays(s Statement) {
	m.ways.Reset()
	for _, o := range s.Operations {
		m.ways.WithLabelValues(o.Name, string(o.Way), strconv.FormatBool(o.InUse)).Set(1)
	}
}

// count counts an error by its class.
func (h *HSM) count(err error) {
	c, isCode := classify(err)
	switch {
	case errors.Is(err, ErrKeyCheck):
		c = classKCV
	case isCode:
	case errors.Is(err, ErrPINBlock):
		c = classPINBlock
	case errors.Is(err, ErrSealedPAN), errors.Is(err, ErrNoPAN), errors.Is(err, ErrKSN), errors.Is(err, ErrKeyChange), errors.Is(err, ErrNoPreviousKey), errors.Is(err, ErrSigner):
		c = classData
	case errors.Is(err, ErrPINRejected):
		c = classLogin
	case errors.Is(err, ErrBusy):
		c = classBusy
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled), errors.Is(err, errHung):
		c = classTimeout
	case errors.Is(err, ErrUnavailable):
		c = classDown
	default:
		c = classUnknown
	}
	h.metrics.errors[c].Inc()
}
