package acquirer

import (
	"errors"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"acquirerd/journal"
	"acquirerd/messages"
)

// A refusal is why a request ended before a record of it was made. Nothing was sent.
type refusal string

const (
	refusedBusy      refusal = "busy"
	refusedDraining  refusal = "draining"
	refusedFormat    refusal = "format"
	refusedRoute     refusal = "no_route"
	refusedPIN       refusal = "pin_untranslatable"
	refusedHSM       refusal = "hsm"
	refusedJournal   refusal = "journal"
	refusedDuplicate refusal = "duplicate"
	refusedInFlight  refusal = "in_flight" // its first is not answered yet; not answered itself
)

type metrics struct {
	transactions *prometheus.CounterVec
	refusals     *prometheus.CounterVec
	seconds      *prometheus.HistogramVec
	reversals    *prometheus.CounterVec
	unasked      *prometheus.CounterVec
	undelivered  prometheus.Counter
}

func newMetrics(registry prometheus.Registerer) *metrics {
	m := &metrics{
		transactions: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "acquirerd_transactions_total",
			Help: "Transactions recorded, by endpoint and outcome."}, []string{"endpoint", "outcome"}),
		refusals: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "acquirerd_refusals_total",
			Help: "Requests that were refused before a record was made; nothing was sent. What a door refuses by itself is in acquirerd_upstream_messages_total."}, []string{"reason"}),
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "acquirerd_transaction_seconds",
			Help:    "Time from an upstream's request to its recorded answer, in seconds.",
			Buckets: []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30}}, []string{"endpoint"}),
		reversals: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "acquirerd_reversal_attempts_total",
			Help: "Reversals sent to processors, by endpoint and what came of them."}, []string{"endpoint", "result"}),
		unasked: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "acquirerd_unasked_messages_total",
			Help: "Messages from processors that nobody waited for."}, []string{"endpoint", "kind"}),
		undelivered: prometheus.NewCounter(prometheus.CounterOpts{Name: "acquirerd_undelivered_approvals_total",
			Help: "Approvals whose answer could not be written to the upstream; each is reversed."}),
	}
	for _, reason := range []refusal{refusedBusy, refusedDraining, refusedFormat, refusedRoute, refusedPIN, refusedHSM, refusedJournal, refusedDuplicate, refusedInFlight} {
		m.refusals.WithLabelValues(string(reason))
	}
	registry.MustRegister(m.transactions, m.refusals, m.seconds, m.reversals, m.unasked, m.undelivered)
	return m
}

// begin makes an endpoint's series, so that the first event of each is seen as a step from 0.
func (m *metrics) begin(endpoint string) {
	for _, outcome := range []journal.Kind{journal.Approved, journal.Declined, journal.NotSent, journal.Unknown} {
		m.transactions.WithLabelValues(endpoint, string(outcome))
	}
	for _, s := range []journal.Settlement{journal.Acknowledged(""), journal.Again(time.Time{}, "", ""), journal.Unsent(time.Time{}, ""), journal.Parked("", "")} {
		m.reversals.WithLabelValues(endpoint, s.Event())
	}
	for _, kind := range []string{unaskedRequest, lateApproval, lateOther} {
		m.unasked.WithLabelValues(endpoint, kind)
	}
}

// The kinds of acquirerd_unasked_messages_total.
const (
	unaskedRequest = "request"
	lateApproval   = "late_approval"
	lateOther      = "late_other"
)

// refuse answers a request that ended before a record was made, counts it and logs its one line.
func (s *Switch) refuse(req Request, reason refusal, code string, cause error, started time.Time) Result {
	s.metrics.refusals.WithLabelValues(string(reason)).Inc()
	attributes := []any{"outcome", "refused", "reason", string(reason), "upstream", req.Upstream.Name, "mti", string(req.Message.MTI),
		"upstream_stan", req.Message.Get(messages.STAN), "pan", req.Message.PAN(), "amount", req.Message.Get(messages.Amount),
		"currency", req.Message.Get(messages.Currency), "terminal", req.Message.Get(messages.Terminal), "response_code", code,
		"elapsed_seconds", time.Since(started).Seconds()}
	if cause != nil {
		attributes = append(attributes, "error", cause)
	}
	s.log.Info("transaction", attributes...)
	var format *messages.FormatError
	if errors.As(cause, &format) && reason == refusedFormat {
		return Result{Answer: messages.NewFormatError(req.Message, code, format.Element)}
	}
	return Result{Answer: messages.NewAnswer(req.Message, code)}
}

// A line is what the log tells of a recorded transaction.
type line struct {
	Request
	id       journal.TransactionID
	endpoint string
	numbers  messages.Numbers
	outcome  journal.Outcome
	answer   *messages.Message // to the upstream
	link     int               // -1 if it was given to none
	errSend  error
	started  time.Time
}

// report counts a recorded transaction and logs its one line.
func (s *Switch) report(l line) {
	elapsed := time.Since(l.started).Seconds()
	s.metrics.transactions.WithLabelValues(l.endpoint, string(l.outcome.Kind)).Inc()
	s.metrics.seconds.WithLabelValues(l.endpoint).Observe(elapsed)
	request := l.Message
	attributes := []any{"outcome", string(l.outcome.Kind), "transaction", int64(l.id), "stan", l.numbers.STAN, "rrn", l.numbers.RRN, "mti", string(request.MTI),
		"endpoint", l.endpoint, "upstream", l.Upstream.Name, "upstream_stan", request.Get(messages.STAN), "upstream_rrn", request.Get(messages.RRN),
		"pan", request.PAN(), "amount", request.Get(messages.Amount), "currency", request.Get(messages.Currency), "terminal", request.Get(messages.Terminal),
		"response_code", l.answer.Get(messages.ResponseCode), "elapsed_seconds", elapsed}
	if l.link >= 0 {
		attributes = append(attributes, "link", l.link)
	}
	if l.errSend != nil {
		attributes = append(attributes, "reason", l.outcome.Reason, "error", l.errSend)
	}
	s.log.Info("transaction", attributes...)
}
