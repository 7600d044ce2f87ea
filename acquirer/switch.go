package acquirer

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/time/rate"

	"acquirerd/card"
	"acquirerd/conn"
	"acquirerd/hsm"
	"acquirerd/journal"
	"acquirerd/messages"
	"acquirerd/specs"
)

// A Switch takes transactions from upstreams to processors. It may be used by many goroutines.
type Switch struct {
	journal   Recorder
	vault     Vault
	keys      KeyChanger            // nil: no key is changed by a message
	table     atomic.Pointer[table] // never nil; Reconfigure changes it
	forwarder *Forwarder
	log       *slog.Logger
	metrics   *metrics

	asks      chan string    // endpoints to be asked for a key
	sometimes rate.Sometimes // for what a misbehaving processor could fill the log with; the metrics count all of it

	mu       sync.Mutex
	draining bool               // guarded by mu
	inFlight sync.WaitGroup     // Add is called under mu, while not draining
	matters  map[asking]*matter // requests in flight; guarded by mu
	refused  refusals           // guarded by mu
	devices  *devices           // of upstreams under DUKPT
	slots    chan struct{}      // one for each message that may be in flight
}

// An Endpoint is a processor as the switch sees it.
type Endpoint struct {
	Name   string
	PINKey string // label of the zone key under which this processor takes PIN blocks; "" if it takes none
	Codec  *messages.Codec

	PINFormat hsm.Format // of the PIN blocks that it takes; "" is format 0

	processor Processor // only send touches it
	demands   *demands
}

// NewEndpoint ties a processor to its name, dialect and zone key.
func NewEndpoint(name, pinKey string, codec *messages.Codec, processor Processor) *Endpoint {
	return &Endpoint{Name: name, PINKey: pinKey, Codec: codec, processor: processor, demands: newDemands()}
}

// Config is what a Switch is made of.
type Config struct {
	Journal   Recorder
	Vault     Vault
	Keys      KeyChanger // nil: processors cannot change keys by a message
	Endpoints []*Endpoint
	Routes    []Route
	InFlight  int // most transactions at once; over it a request is refused at once
	Forward   Forwarding
}

// New checks the configuration and starts nothing.
func New(cfg Config, log *slog.Logger, registry prometheus.Registerer) (*Switch, error) {
	table, err := newTable(cfg.Routes, cfg.Endpoints)
	if err != nil {
		return nil, err
	}
	if cfg.InFlight < 1 {
		return nil, errors.New("in-flight limit must be at least 1")
	}
	s := &Switch{asks: make(chan string, mostAsks), journal: cfg.Journal, vault: cfg.Vault, keys: cfg.Keys, log: log,
		matters: map[asking]*matter{}, refused: newRefusals(), devices: newDevices(), metrics: newMetrics(registry), slots: make(chan struct{}, cfg.InFlight), sometimes: rate.Sometimes{First: 10, Interval: time.Second}}
	s.table.Store(table)
	for _, endpoint := range cfg.Endpoints {
		s.metrics.begin(endpoint.Name)
	}
	s.forwarder, err = newForwarder(cfg.Forward, s, log)
	return s, err
}

// An Upstream is the party that asks.
type Upstream struct {
	Name   string
	PINKey string // label of the zone key under which it sends PIN blocks; "" if it sends none, or under DUKPT
	BDKKey string // instead of PINKey: label of the base derivation key of the devices that have enciphered them under DUKPT
	Codec  *messages.Codec

	PINFormat hsm.Format // of the PIN blocks that it sends; "" is format 0

	WorkingKey hsm.WorkingKey // of AES-DUKPT: the kind of key of its PIN blocks; "" is the default of the format

	// RefuseRegression refuses a PIN block whose key serial number does not rise, as of a block that is played again. Without it, that is an
	// alarm.
	RefuseRegression bool
}

// A Request is one message of an upstream.
type Request struct {
	Upstream *Upstream
	Message  *messages.Message // decoded and validated; the switch does not change it
	Key      string            // by which this upstream would repeat a request or an advice; "" for a reversal, which its original identifies
}

// A Result is what the upstream is answered. Its answer is then either Delivered or Undelivered.
type Result struct {
	Answer  *messages.Message // nil: none, because nobody can say yet what became of it; the upstream asks again or reverses
	Outcome journal.Kind      // of the record that this message made; "" if it made none

	transaction journal.TransactionID
	visit       *Visit
}

// Authorize takes one request (0100, 0200 and their repeats) through its life. The answer it returns is already recorded. An error means that
// there is no answer that may be given: the outcome could not be recorded, the process must stop, and the upstream's connection is dropped.
//
// A deadline of ctx is the upstream's budget. Until the send, its end refuses the request; from then on nothing is cancelled.
func (s *Switch) Authorize(ctx context.Context, v *Visit) (result Result, err error) {
	started := time.Now()
	spent := phases{since: started}
	req, answers := v.Request, v.Upstream.Codec.Dialect().Answers
	refuse := func(reason refusal, code string, cause error) Result {
		return s.refuseNew(ctx, v, reason, code, cause, started)
	}

	// Repeated? One message goes out for all that have the same key. A repeat of what is in flight is given the same answer. What is on record
	// is answered from there: a marked repeat is looked for at once, any other only before it would be refused, because a refusal would be
	// believed of what may have been approved, and by Begin, which takes no key twice.
	if !s.lead(ctx, v) {
		return Result{}, nil
	}
	if v.follows {
		return s.beside(ctx, v, started), nil
	}
	defer func() { result = s.conclude(v, result) }()
	if req.Message.MTI.IsRepeat() {
		if answered, before := s.before(ctx, v, started); before {
			return answered, nil
		}
	}
	if code := s.refusedBefore(req); code != "" {
		return refuse(refusedAgain, code, nil), nil
	}

	// Admit: a full switch says so at once, instead of making a longer queue.
	leave, reason := s.enter()
	if leave == nil {
		return refuse(reason, answers.Busy, nil), nil
	}
	defer leave()

	// Route: no endpoint, no send.
	pan, err := req.Message.Card()
	if err != nil {
		return refuse(refusedFormat, answers.FormatError, err), nil
	}
	ksn, err := keySerialNumber(req)
	if err != nil {
		return refuse(refusedFormat, answers.FormatError, err), nil
	}
	endpoint := s.route(req.Upstream.Name, req.Message, pan)
	if endpoint == nil {
		return refuse(refusedRoute, answers.NoRoute, nil), nil
	}
	spent.on(phaseQueue)

	// Number: from a block that was reserved durably, so that no crash repeats one.
	numbers, err := s.journal.Next(ctx, endpoint.Name, started)
	if err != nil {
		return refuse(refusedJournal, answers.Malfunction, err), nil
	}
	spent.on(phaseJournal)

	// Protect: the PIN block for the processor's zone, the PAN sealed and tokenised. Never a send with a PIN block that is not one.
	protected, err := s.protect(ctx, req, pan, endpoint, false)
	switch {
	case errors.Is(err, hsm.ErrPINBlock):
		return refuse(refusedPIN, answers.PINUntranslatable, err), nil
	case errors.Is(err, hsm.ErrKSN):
		return refuse(refusedFormat, answers.FormatError, errors.Join(err, ofKSN(req, "is none of the base derivation key"))), nil
	case err != nil:
		return refuse(refusedHSM, answers.Malfunction, err), nil
	}
	defer protected.PINBlock.Clear()
	spent.on(phaseHSM)

	// The block was one, so that its key serial number is the device's word: does it rise?
	if !s.rises(req, ksn) && req.Upstream.RefuseRegression {
		return refuse(refusedRegression, answers.PINUntranslatable, nil), nil // a PIN that is entered anew comes under another key
	}

	// Build the processor's message.
	passage := messages.NewPassage(req.Upstream.Codec, endpoint.Codec)
	msg, err := passage.ForProcessor(req.Message, numbers, started)
	if err != nil {
		return refuse(refusedFormat, answers.FormatError, err), nil
	}
	msg.SetPINBlock(protected.PINBlock)
	defer msg.Clear()
	if err := endpoint.Codec.Validate(msg); err != nil { // the processor would refuse it, and who has asked can do something about it
		return refuse(refusedFormat, refusalOf(err, answers), err), nil
	}

	// Begin: the intent is durable before the first byte leaves. A crash from here on owes a reversal.
	ticket, err := s.journal.Begin(ctx, intentOf(req, endpoint, msg, protected, pan, started))
	if errors.Is(err, journal.ErrDuplicate) {
		answered, _ := s.before(ctx, v, started)
		return answered, nil
	}
	if err != nil {
		return refuse(refusedJournal, answers.Malfunction, err), nil
	}
	spent.on(phaseJournal)

	// Send, and decide what it came to. What the upstream does not wait for any more is not sent.
	sent := &sending{endpoint: endpoint, passage: passage, pan: pan, withPIN: !protected.PINBlock.IsZero(), keyUsed: protected.KeyVersion,
		numbers: numbers, msg: msg, ticket: ticket}
	sent.exchange(ctx)
	spent.onExchange(sent.trace)

	// Declined because the processor could not read the PIN under its zone key? Then once more, as another request under the other key, and with the
	// decline on record before: from here on all is about the second. A crash between the two owes the reversal of the one that stands open.
	if sent.asksForKeySync() {
		second, err := s.underOtherKey(ctx, v, sent, started, &spent)
		if err != nil {
			return Result{}, err
		}
		if second != nil {
			sent = second
			defer second.msg.Clear()
		}
	}

	told := s.compose(req, endpoint, sent.answer, sent.err, sent.outcome)
	sent.outcome.Answer = told.Reply(req.Message)

	// Finish: durable before the answer, and with it. A crash before this line is an Unknown; after it, the record stands and is not reversed
	// from here, because the upstream may have been told. It will repeat or reverse.
	if err := s.journal.Finish(context.WithoutCancel(ctx), sent.ticket, sent.outcome); err != nil {
		return Result{}, fmt.Errorf("recording outcome of %s: %w", sent.ticket, err)
	}
	s.heardDay(ctx, endpoint, sent.msg, sent.answer, sent.outcome)
	spent.on(phaseJournal)
	if sent.outcome.Kind == journal.Unknown {
		s.forwarder.Wake()
	}
	s.report(line{Request: req, id: sent.ticket.ID(), endpoint: endpoint.Name, numbers: sent.numbers, outcome: sent.outcome, answer: told,
		link: sent.trace.Link, errSend: sent.err, started: started, spent: &spent})
	return Result{Answer: told, Outcome: sent.outcome.Kind, transaction: sent.ticket.ID()}, nil
}

// intentOf is what the journal keeps of a request before it is sent.
func intentOf(req Request, endpoint *Endpoint, msg *messages.Message, protected hsm.Protected, pan card.PAN, at time.Time) journal.Intent {
	return journal.Intent{
		Upstream: req.Upstream.Name, UpstreamKey: req.Key,
		UpstreamSTAN: req.Message.Get(messages.STAN), UpstreamRRN: req.Message.Get(messages.RRN),
		Endpoint: endpoint.Name, Original: msg.Original(),
		PAN: protected.Sealed, Token: protected.Token, MaskedPAN: pan.Mask(), At: at,
	}
}

// refusalOf is the code for a message that breaks the rules of its processor's dialect.
func refusalOf(err error, answers specs.Answers) string {
	if errors.Is(err, messages.ErrUnsupported) {
		return answers.Unsupported
	}
	return answers.FormatError
}

// before answers a message whose key is on record, or cannot be looked for; false if it is not.
func (s *Switch) before(ctx context.Context, v *Visit, started time.Time) (Result, bool) {
	found, known, err := s.journal.Find(ctx, v.Upstream.Name, v.Key)
	if err != nil {
		return s.refuse(v, refusedJournal, "", err, started), true
	}
	if known {
		return s.repeated(ctx, v, found, started), true
	}
	return Result{}, false
}

// refuseNew refuses a message unless its key is on record.
func (s *Switch) refuseNew(ctx context.Context, v *Visit, reason refusal, code string, cause error, started time.Time) Result {
	if answered, before := s.before(ctx, v, started); before {
		return answered
	}
	return s.refuse(v, reason, code, cause, started)
}

// beside answers a message that is not the first of its matter: like the first.
func (s *Switch) beside(ctx context.Context, v *Visit, started time.Time) Result {
	what, answer := repeatJoined, s.follow(ctx, v)
	if answer == nil {
		what = repeatSilent
	}
	return s.attach(v, s.repeat(v, journal.Found{}, what, answer, started))
}

// conclude tells the followers what the first is answered.
func (s *Switch) conclude(v *Visit, result Result) Result {
	s.decide(v, result)
	return s.attach(v, result)
}

// attach ties a result to its visit, for the delivery. Without an answer there is none.
func (s *Switch) attach(v *Visit, result Result) Result {
	result.visit = v
	if result.Answer == nil {
		_ = s.leave(context.Background(), v, false) // nothing that has no answer is an approval to be reversed, or the process stops
	}
	return result
}

// enter takes a slot, or says why there is none. The function it returns gives the slot back.
func (s *Switch) enter() (leave func(), reason refusal) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.draining {
		return nil, refusedDraining
	}
	select {
	case s.slots <- struct{}{}:
	default:
		return nil, refusedBusy
	}
	s.inFlight.Add(1)
	return func() {
		<-s.slots
		s.inFlight.Done()
	}, ""
}

// protect seals the PAN, makes its token and translates the PIN block: to the endpoint's zone key, or to the one before that.
func (s *Switch) protect(ctx context.Context, req Request, pan card.PAN, endpoint *Endpoint, previous bool) (hsm.Protected, error) {
	block, err := req.Message.PINBlock()
	if err != nil {
		return hsm.Protected{}, errors.Join(hsm.ErrPINBlock, err)
	}
	defer block.Clear()
	from := req.Upstream.PINKey
	ksn, err := keySerialNumber(req)
	if err != nil {
		return hsm.Protected{}, errors.Join(hsm.ErrPINBlock, err)
	}
	if !ksn.IsZero() {
		from = req.Upstream.BDKKey
	}
	if !block.IsZero() && (from == "" || endpoint.PINKey == "") {
		return hsm.Protected{}, fmt.Errorf("%w: no zone key is configured for one of its two sides", hsm.ErrPINBlock)
	}
	return s.vault.Protect(ctx, hsm.Card{PAN: pan, PINBlock: block, From: from, FromFormat: req.Upstream.PINFormat, KSN: ksn, Working: req.Upstream.WorkingKey,
		To: endpoint.PINKey, ToFormat: endpoint.PINFormat, Previous: previous})
}

// send is the only way to a processor: nothing reaches Exchange without a ticket, and a ticket is good for one send.
// A cancellation of ctx does not reach the exchange, its deadline does.
func (e *Endpoint) send(ctx context.Context, ticket *journal.Ticket, msg *messages.Message) (*messages.Message, error) {
	ticket.Spend()
	sending := context.WithoutCancel(ctx)
	if deadline, has := ctx.Deadline(); has {
		var release context.CancelFunc
		sending, release = context.WithDeadline(sending, deadline)
		defer release()
	}
	return e.processor.Exchange(sending, msg)
}

// compose builds the upstream's answer from an outcome.
func (s *Switch) compose(req Request, endpoint *Endpoint, answer *messages.Message, errSend error, outcome journal.Outcome) *messages.Message {
	answers := req.Upstream.Codec.Dialect().Answers
	switch outcome.Kind {
	case journal.Approved, journal.Declined:
		told, lost := messages.NewPassage(endpoint.Codec, req.Upstream.Codec).ForUpstream(req.Message, answer, time.Now())
		if len(lost) > 0 {
			s.sometimes.Do(func() {
				s.log.Warn("answer has elements for which the upstream's dialect has no place", "endpoint", endpoint.Name,
					"upstream", req.Upstream.Name, "mti", string(answer.MTI), "elements", lost)
			})
		}
		return told
	case journal.NotSent:
		// The message did not fit the processor's dialect: the upstream can do something about it.
		var format *messages.FormatError
		if errors.As(errSend, &format) {
			return messages.NewFormatError(req.Message, answers.FormatError, format.Element)
		}
		if errors.Is(errSend, messages.ErrNoMAC) { // it is ours, as if the HSM had failed a line before
			return messages.NewAnswer(req.Message, answers.Malfunction)
		}
		return messages.NewAnswer(req.Message, answers.NotSent)
	case journal.Unknown, journal.StillOpen, journal.Accepted: // a request's finished outcome is neither open nor an advice's
	}
	return messages.NewAnswer(req.Message, answers.Unknown)
}

// Recover gives every intent without an outcome the outcome Unknown, through the same Finish as the living. It is called before any
// door opens. It returns how many there were. It fails if something is owed to an endpoint that is not configured any more: nobody
// would pay it.
func (s *Switch) Recover(ctx context.Context) (int, error) {
	tickets, err := s.journal.Unfinished(ctx)
	if err != nil {
		return 0, fmt.Errorf("reading unfinished transactions: %w", err)
	}
	for _, ticket := range tickets {
		outcome := journal.Outcome{Kind: journal.Unknown, Reason: reasonRecovered}
		if err := s.journal.Finish(ctx, ticket, outcome); err != nil {
			return 0, fmt.Errorf("recovering %s: %w", ticket, err)
		}
		s.log.Warn("transaction", "outcome", string(outcome.Kind), "reason", outcome.Reason, "transaction", int64(ticket.ID()),
			"stan", ticket.STAN(), "endpoint", ticket.Endpoint())
	}
	creditors, err := s.journal.Creditors(ctx)
	if err != nil {
		return 0, fmt.Errorf("reading to whom something is owed: %w", err)
	}
	for _, name := range creditors {
		if s.endpoint(name) == nil {
			return 0, fmt.Errorf("reversals or advices are owed to endpoint %q, which is not in the config: keep it there until they are paid", name)
		}
	}
	return len(tickets), nil
}

// Inbound takes what arrives on an endpoint's links unasked. An answer to a transaction that has ended is recorded with it and never
// delivered. If it approves what the upstream was not told of, and no reversal is on its way, one is owed. A late answer to a key request of ours is
// taken by lateKey. What the processor demands is served, and answered, by demanded.
func (s *Switch) Inbound(ctx context.Context, endpoint string, msg conn.Unasked) {
	e := s.endpoint(endpoint)
	if e != nil && msg.Arrival == conn.Demanding {
		s.metrics.unasked.WithLabelValues(endpoint, unaskedRequest).Inc()
		s.demanded(ctx, e, msg)
		return
	}
	if e == nil {
		s.metrics.unasked.WithLabelValues(endpoint, unaskedRequest).Inc()
		s.sometimes.Do(func() {
			s.log.Warn("request from processor is not served", "endpoint", endpoint, "mti", string(msg.MTI))
		})
		return
	}
	if !msg.KeyAsked.IsZero() {
		s.metrics.unasked.WithLabelValues(endpoint, lateOther).Inc()
		s.lateKey(ctx, e, msg)
		return
	}
	code := msg.Get(messages.ResponseCode)
	isRequest := msg.MTI.Class() == messages.Authorization || msg.MTI.Class() == messages.Financial
	kind := unaskedKind(msg.Arrival, isRequest && msg.MTI.IsResponse() && e.Codec.Dialect().Approves(code))
	s.metrics.unasked.WithLabelValues(endpoint, kind).Inc()
	var heard journal.Heard
	if isRequest && msg.MTI.IsResponse() {
		var err error
		heard, err = s.journal.Hear(ctx, journal.Hearing{Endpoint: endpoint, STAN: msg.Get(messages.STAN),
			TransmissionTime: msg.Get(messages.TransmissionTime), LocalTime: localTimeOf(e, msg.Message), Second: msg.Arrival == conn.Second, ResponseCode: code,
			Approves: kind == lateApproval || kind == secondApproval, NotFound: e.Codec.Dialect().Reversal.NotFound})
		if err != nil {
			s.log.Error("late answer is not recorded", "endpoint", endpoint, "error", err) // the journal has failed, and stops the process
			return
		}
	}
	attributes := []any{"endpoint", endpoint, "mti", string(msg.MTI), "kind", kind, "transaction", int64(heard.Transaction),
		"outcome", string(heard.Outcome), "stan", msg.Get(messages.STAN), "rrn", msg.Get(messages.RRN), "response_code", code}
	switch {
	case e.bringsKey(msg.Message): // of a request of an earlier process, or of nobody's: the processor may encipher under it
		_ = s.keyNotTaken(e, unprompted, errors.New("it answers no key request that is known")) // reported
	case heard.Owed != 0:
		s.log.Error("late approval: its reversal is owed again", attributes...)
		s.forwarder.Wake()
	case kind == lateApproval && heard.Transaction == 0:
		s.log.Error("approval of a request that is not on record", attributes...)
	default:
		s.sometimes.Do(func() { s.log.Warn("answer that nobody waits for", attributes...) })
	}
}

// localTimeOf is DE 12 of an answer by which its request is found where answers need no DE 7.
func localTimeOf(e *Endpoint, answer *messages.Message) string {
	if answer.Has(messages.TransmissionTime) || e.Codec.Dialect().Standard != specs.ISO93 {
		return ""
	}
	return answer.Get(messages.LocalTime)
}

// unaskedKind names an answer in acquirerd_unasked_messages_total.
func unaskedKind(arrival conn.Arrival, approves bool) string {
	switch {
	case arrival == conn.Second && approves:
		return secondApproval
	case arrival == conn.Second:
		return secondOther
	case approves:
		return lateApproval
	}
	return lateOther
}

// Wake has the forwarder look at once for what has come to be owed.
func (s *Switch) Wake() { s.forwarder.Wake() }

// Run pays what is owed, and asks for keys that have to be asked for, until ctx ends. It returns an error only if the process must stop.
func (s *Switch) Run(ctx context.Context) error {
	asking, stop := context.WithCancel(ctx)
	var asker sync.WaitGroup
	defer asker.Wait()
	defer stop()
	asker.Go(func() { s.askForKeys(asking) })
	return s.forwarder.Run(ctx)
}

// Drain refuses new requests and waits until those in flight have ended, each by its own deadline.
func (s *Switch) Drain() {
	s.mu.Lock()
	s.draining = true
	s.mu.Unlock()
	s.inFlight.Wait()
}

var _ Processor = (*conn.Endpoint)(nil)
