package acquirer

import (
	"errors"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"acquirerd/conn"
	"acquirerd/journal"
	"acquirerd/messages"
)

// A refusal is why a request ended before a record of it was made. Nothing was sent.
type refusal string

const (
	refusedBusy       refusal = "busy"
	refusedDraining   refusal = "draining"
	refusedFormat     refusal = "format"
	refusedRoute      refusal = "no_route"
	refusedPIN        refusal = "pin_untranslatable"
	refusedRegression refusal = "ksn_regression" // the key serial number of its PIN block does not rise
	refusedHSM        refusal = "hsm"
	refusedJournal    refusal = "journal"
	refusedAgain      refusal = "refused_before" // another copy of it was
	refusedDuplicate  refusal = "duplicate"      // recorded by somebody else at the same moment; not answered
)

type metrics struct {
	transactions *prometheus.CounterVec
	refusals     *prometheus.CounterVec
	seconds      *prometheus.HistogramVec
	phases       *prometheus.HistogramVec
	reversals    *prometheus.CounterVec
	unasked      *prometheus.CounterVec
	undelivered  prometheus.Counter

	repeats           *prometheus.CounterVec
	upstreamReversals *prometheus.CounterVec
	alarms            *prometheus.CounterVec

	demands      *prometheus.CounterVec
	demandAlarms *prometheus.CounterVec
	undone       *prometheus.CounterVec

	keySync     *prometheus.CounterVec
	keyRequests *prometheus.CounterVec

	regressions *prometheus.CounterVec
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
		phases: prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "acquirerd_transaction_phase_seconds",
			Help:    "What acquirerd_transaction_seconds of a request is made of: waiting for a place and for a turn on a link, the HSM, the journal, the write to the link, the processor. Write and processor only if it was sent.",
			Buckets: []float64{.00001, .000025, .00005, .0001, .00025, .0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30}},
			[]string{"endpoint", "phase"}),
		reversals: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "acquirerd_owed_attempts_total",
			Help: "Reversals and advices sent to processors, by endpoint and what came of them."}, []string{"endpoint", "result"}),
		unasked: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "acquirerd_unasked_messages_total",
			Help: "Messages from processors that nobody waited for."}, []string{"endpoint", "kind"}),
		undelivered: prometheus.NewCounter(prometheus.CounterOpts{Name: "acquirerd_undelivered_approvals_total",
			Help: "Approvals whose answer could not be written to the upstream; each is reversed."}),
		repeats: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "acquirerd_repeats_total",
			Help: "Messages from upstreams whose key was seen before, by how they were answered."}, []string{"result"}),
		upstreamReversals: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "acquirerd_upstream_reversals_total",
			Help: "Reversals from upstreams, by what became of them."}, []string{"result"}),
		alarms: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "acquirerd_owed_alarms_total",
			Help: "Reversals and advices that were sent for the sixth time and not acknowledged."}, []string{"endpoint"}),
		demands: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "acquirerd_demands_total",
			Help: "What processors have sent of their own accord, by what they want and what became of it."}, []string{"endpoint", "kind", "result"}),
		demandAlarms: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "acquirerd_demand_alarms_total",
			Help: "What processors have said and a person must look at, by why: all of it, of which the log has the first and then one a minute."}, []string{"endpoint", "alarm"}),
		undone: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "acquirerd_undone_approvals_total",
			Help: "Reversals from processors, repeats too, of what stands as approved; nothing is done about them but by a person."}, []string{"endpoint"}),
		keySync: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "acquirerd_key_sync_total",
			Help: "Requests that a processor declined because it could not read their PIN, and what came of asking once more under the other zone key."}, []string{"endpoint", "result"}),
		keyRequests: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "acquirerd_key_requests_total",
			Help: "New zone keys that processors were asked for, and what came of it."}, []string{"endpoint", "result"}),
	}
	m.regressions = prometheus.NewCounterVec(prometheus.CounterOpts{Name: "acquirerd_ksn_regressions_total",
		Help: "PIN blocks under DUKPT whose key serial number did not rise for its device: a block that was played again, or two devices with one key. A person must look."},
		[]string{"upstream"})
	for _, result := range []string{repeatJoined, repeatStored, repeatDiffers, repeatSilent} {
		m.repeats.WithLabelValues(result)
	}
	for _, result := range []string{reversalRecorded, reversalKnown, reversalNothing, reversalNotFound, reversalDisagrees, reversalOther, reversalForwarded, reversalSilent} {
		m.upstreamReversals.WithLabelValues(result)
	}
	for _, reason := range []refusal{refusedBusy, refusedDraining, refusedFormat, refusedRoute, refusedPIN, refusedRegression, refusedHSM, refusedJournal, refusedAgain, refusedDuplicate} {
		m.refusals.WithLabelValues(string(reason))
	}
	registry.MustRegister(m.transactions, m.refusals, m.seconds, m.phases, m.reversals, m.unasked, m.undelivered, m.repeats, m.upstreamReversals,
		m.alarms, m.demands, m.demandAlarms, m.undone, m.keySync, m.keyRequests, m.regressions)
	return m
}

// begin makes an endpoint's series, so that the first event of each is seen as a step from 0.
func (m *metrics) begin(endpoint string) {
	m.alarms.WithLabelValues(endpoint)
	m.undone.WithLabelValues(endpoint)
	for _, result := range keySyncResults {
		m.keySync.WithLabelValues(endpoint, result)
	}
	for _, result := range keyRequestResults {
		m.keyRequests.WithLabelValues(endpoint, result)
	}
	for _, alarm := range demandAlarms {
		m.demandAlarms.WithLabelValues(endpoint, alarm)
	}
	for _, kind := range []demandKind{demandCutover, demandKeyChange, demandAdvice, demandRequest, demandMalformed, demandUnproven} {
		for _, result := range []string{demandDone, demandAgain, demandRefused, demandFailed, demandBusy} {
			m.demands.WithLabelValues(endpoint, string(kind), result)
		}
	}
	for _, outcome := range []journal.Kind{journal.Approved, journal.Declined, journal.NotSent, journal.Unknown, journal.Accepted} {
		m.transactions.WithLabelValues(endpoint, string(outcome))
	}
	for _, s := range []journal.Settlement{journal.Acknowledged(""), journal.Again(time.Time{}, "", ""), journal.Unsent(time.Time{}, ""), journal.Parked("", "")} {
		m.reversals.WithLabelValues(endpoint, s.Event())
	}
	for _, kind := range []string{unaskedRequest, lateApproval, lateOther, secondApproval, secondOther} {
		m.unasked.WithLabelValues(endpoint, kind)
	}
}

// The kinds of acquirerd_unasked_messages_total.
const (
	unaskedRequest = "request"
	lateApproval   = "late_approval"
	lateOther      = "late_other"
	secondApproval = "second_approval" // after another answer
	secondOther    = "second_other"
)

// refuse answers a message that ended before a record was made, counts it and logs its one line. Without a code it is not answered.
func (s *Switch) refuse(v *Visit, reason refusal, code string, cause error, started time.Time) Result {
	req := v.Request
	s.metrics.refusals.WithLabelValues(string(reason)).Inc()
	attributes := []any{"outcome", "refused", "reason", string(reason), "upstream", req.Upstream.Name, "mti", string(req.Message.MTI),
		"upstream_stan", req.Message.Get(messages.STAN), "pan", req.Message.PAN(), "amount", req.Message.Get(messages.Amount),
		"currency", req.Message.Get(messages.Currency), "terminal", req.Message.Get(messages.Terminal), "response_code", code,
		"elapsed_seconds", time.Since(started).Seconds()}
	if cause != nil {
		attributes = append(attributes, "error", cause)
	}
	s.log.Info("transaction", attributes...)
	if code == "" {
		return Result{}
	}
	s.remember(req, code)
	var format *messages.FormatError
	if errors.As(cause, &format) && reason == refusedFormat {
		return Result{Answer: messages.NewFormatError(req.Message, code, format.Element)}
	}
	return Result{Answer: messages.NewAnswer(req.Message, code)}
}

// repeat answers a message whose key was seen before, counts it and logs its one line. A nil answer is none.
func (s *Switch) repeat(v *Visit, found journal.Found, what string, answer *messages.Message, started time.Time) Result {
	s.metrics.repeats.WithLabelValues(what).Inc()
	m, code := v.Message, ""
	if answer != nil {
		code = answer.Get(messages.ResponseCode)
	}
	s.log.Info("transaction", "outcome", "repeated", "result", what, "transaction", int64(found.ID), "upstream", v.Upstream.Name,
		"mti", string(m.MTI), "upstream_stan", m.Get(messages.STAN), "pan", m.PAN(), "amount", m.Get(messages.Amount),
		"currency", m.Get(messages.Currency), "terminal", m.Get(messages.Terminal), "response_code", code,
		"elapsed_seconds", time.Since(started).Seconds())
	return Result{Answer: answer}
}

// A phase is what a transaction spends its time on.
type phase int

const (
	phaseQueue phase = iota // until it has a place and a route, and then until it has its turn on a link
	phaseHSM
	phaseJournal
	phaseWrite
	phaseProcessor // until its answer, or the end of the wait for it
	phaseCount
)

var phaseNames = [phaseCount]string{"queue", "hsm", "journal", "write", "processor"}

// phases are how a transaction has spent its time. Together they are the whole of it.
type phases struct {
	since time.Time // the end of the last one
	spent [phaseCount]time.Duration
	sent  bool
}

// on gives a phase the time since the end of the last one.
func (p *phases) on(which phase) {
	now := time.Now()
	p.spent[which] += now.Sub(p.since)
	p.since = now
}

// onExchange gives the time since then to the phases of an exchange.
func (p *phases) onExchange(trace conn.Trace) {
	if trace.Link < 0 { // it has waited in vain
		p.on(phaseQueue)
		return
	}
	p.sent = true
	p.spent[phaseQueue] += trace.Queued
	p.spent[phaseWrite] += trace.Written
	p.on(phaseProcessor)
	p.spent[phaseProcessor] -= trace.Queued + trace.Written
}

func (p *phases) observe(seconds *prometheus.HistogramVec, endpoint string) {
	for which, spent := range p.spent {
		if sending := phase(which) == phaseWrite || phase(which) == phaseProcessor; p.sent || !sending {
			seconds.WithLabelValues(endpoint, phaseNames[which]).Observe(spent.Seconds())
		}
	}
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
	spent    *phases // nil for an advice, which is answered before it is sent

	superseded bool // it was declined, and asked for again: the answer is the processor's, and the upstream is told that of the other
}

// report counts a recorded transaction and logs its one line.
func (s *Switch) report(l line) {
	elapsed := time.Since(l.started).Seconds()
	s.metrics.transactions.WithLabelValues(l.endpoint, string(l.outcome.Kind)).Inc()
	if !l.superseded { // an upstream's request is observed once
		s.metrics.seconds.WithLabelValues(l.endpoint).Observe(elapsed)
	}
	if l.spent != nil {
		l.spent.observe(s.metrics.phases, l.endpoint)
	}
	request := l.Message
	attributes := []any{"outcome", string(l.outcome.Kind), "transaction", int64(l.id), "stan", l.numbers.STAN, "rrn", l.numbers.RRN, "mti", string(request.MTI),
		"endpoint", l.endpoint, "upstream", l.Upstream.Name, "upstream_stan", request.Get(messages.STAN), "upstream_rrn", request.Get(messages.RRN),
		"pan", request.PAN(), "amount", request.Get(messages.Amount), "currency", request.Get(messages.Currency), "terminal", request.Get(messages.Terminal),
		"response_code", l.answer.Get(messages.ResponseCode), "elapsed_seconds", elapsed}
	if l.link >= 0 {
		attributes = append(attributes, "link", l.link)
	}
	if l.superseded {
		attributes = append(attributes, "reason", l.outcome.Reason)
	}
	if l.errSend != nil {
		attributes = append(attributes, "reason", l.outcome.Reason, "error", l.errSend)
	}
	s.log.Info("transaction", attributes...)
}
