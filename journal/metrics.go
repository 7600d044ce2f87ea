package journal

import (
	"fmt"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics are the journal's, on the registry that Open was given.
type metrics struct {
	commitSeconds prometheus.Histogram
	batchRecords  prometheus.Histogram
	parked        prometheus.Counter
	unregister    func()
}

func newMetrics(reg prometheus.Registerer, j *Journal) (*metrics, error) {
	m := &metrics{
		commitSeconds: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "acquirerd_journal_commit_seconds", Help: "Time to write a batch and make it durable.",
			Buckets: prometheus.ExponentialBuckets(0.0001, 2.5, 12), // 0.1 ms to 2.4 s
		}),
		batchRecords: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "acquirerd_journal_batch_records", Help: "Records written by one commit.",
			Buckets: prometheus.ExponentialBuckets(1, 2, 11), // 1 to 1,024
		}),
		parked: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "acquirerd_parked_total", Help: "Reversals and advices that were parked since the start.",
		}),
	}
	all := []prometheus.Collector{m.commitSeconds, m.batchRecords, m.parked,
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "acquirerd_owed_messages", Help: "Reversals and advices that a processor has not acknowledged, without the parked ones.",
		}, func() float64 { return float64(j.Exposure().Owed) }),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "acquirerd_parked_messages", Help: "Reversals and advices that wait for a person, also those of earlier runs.",
		}, func() float64 { return float64(j.Exposure().Parked) }),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "acquirerd_owed_oldest_age_seconds", Help: "Age of the oldest owed reversal or advice, 0 if none is owed.",
		}, func() float64 {
			if oldest := j.Exposure().Oldest; !oldest.IsZero() {
				return max(0, time.Since(oldest).Seconds())
			}
			return 0
		}),
	}
	all = append(all, owedMoney{j})
	var registered []prometheus.Collector
	m.unregister = func() {
		for _, c := range registered {
			reg.Unregister(c)
		}
	}
	for _, c := range all {
		if err := reg.Register(c); err != nil {
			m.unregister()
			return nil, fmt.Errorf("registering metrics: %w", err)
		}
		registered = append(registered, c)
	}
	return m, nil
}

// owedMoney is the gauge of the money that is owed, by currency.
type owedMoney struct{ journal *Journal }

var owedMoneyMetric = prometheus.NewDesc("acquirerd_owed_minor_units",
	"Money that owed reversals and advices are about, in minor units of the currency (ISO 4217 number), without the parked ones.",
	[]string{"currency"}, nil)

// Describe is for the registry.
func (owedMoney) Describe(metrics chan<- *prometheus.Desc) { metrics <- owedMoneyMetric }

// Collect is for the registry.
func (m owedMoney) Collect(metrics chan<- prometheus.Metric) {
	for currency, amount := range m.journal.Exposure().Amounts {
		metrics <- prometheus.MustNewConstMetric(owedMoneyMetric, prometheus.GaugeValue, float64(amount), currency)
	}
}
