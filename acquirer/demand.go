package acquirer

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"acquirerd/card"
	"acquirerd/conn"
	"acquirerd/hsm"
	"acquirerd/journal"
	"acquirerd/messages"
)

// demanded takes what a processor sends of its own accord and wants answered. What it says is durable, and a key in use, before it is
// answered: whoever is not answered sends it again, and a repeat is answered as the first was, and recorded once. A crash before the
// record leaves nothing, after it a record whose repeat is still to come.
//
// Nothing of money is decided here: what a processor says of our transactions is recorded with them, and is for a person.
func (s *Switch) demanded(ctx context.Context, e *Endpoint, msg conn.Unasked) {
	defer msg.Clear()
	d := &demand{Unasked: msg, endpoint: e, kind: kindOf(e, msg)}

	// Admit. What is over the limits is not answered.
	leave := e.demands.enter()
	if leave == nil {
		s.reportDemand(d, served{result: demandBusy})
		return
	}
	defer leave()

	// Serve.
	serving, release := context.WithTimeout(ctx, demandBudget)
	defer release()
	out := s.serve(serving, d)
	s.reportDemand(d, out)
	if out.answer == nil {
		return
	}
	defer out.answer.Clear()

	// Answer, on the link that it came on.
	err := errors.New("its link takes no answers")
	if msg.Reply != nil {
		err = msg.Reply(ctx, out.answer)
	}
	if err != nil {
		s.sometimes.Do(func() {
			s.log.Warn("demand of processor not answered", "endpoint", e.Name, "kind", string(d.kind), "mti", string(d.MTI), "error", err)
		})
	}
}

// A demand is one message of a processor on its way through the switch.
type demand struct {
	conn.Unasked
	endpoint *Endpoint
	kind     demandKind
}

// A demandKind is what a processor wants.
type demandKind string

// The kinds of acquirerd_demands_total.
const (
	demandCutover   demandKind = "cutover"
	demandKeyChange demandKind = "key_change"
	demandAdvice    demandKind = "advice"
	demandRequest   demandKind = "request"   // that a processor may not make of us
	demandMalformed demandKind = "malformed" // it does not keep the format
	demandUnproven  demandKind = "unproven"  // its message authentication code is wrong or missing, or could not be checked
)

// What became of demands, for acquirerd_demands_total.
const (
	demandDone    = "done"
	demandAgain   = "again"   // a repeat, answered as the first was
	demandRefused = "refused" // answered with a code that refuses it
	demandFailed  = "failed"  // HSM or journal could not: the processor is to send it again
	demandBusy    = "busy"    // over a limit, and not answered: the processor is to send it again
)

// Why a person must look at a demand: "alarm" in the log.
const (
	alarmUndone        = "approval_undone"    // the processor says that it has reversed what stands as approved here
	alarmUndoneUnknown = "unknown_undone"     // it says that it has reversed what is not on record
	alarmCutover       = "cutover_refused"    // the business date stays as it is
	alarmKeyChange     = "key_not_changed"    // the old key stays in use
	alarmMalformed     = "reversal_malformed" // it says that it has reversed something, in a form that is not its dialect's
)

var demandAlarms = []string{alarmUndone, alarmUndoneUnknown, alarmCutover, alarmKeyChange, alarmMalformed}

func kindOf(e *Endpoint, msg conn.Unasked) demandKind {
	if errors.Is(msg.Fault, conn.ErrMAC) {
		return demandUnproven
	}
	if formatOf(e, msg) != nil {
		return demandMalformed
	}
	switch part := e.Codec.Demanded(msg.Message); {
	case part == messages.Cutover:
		return demandCutover
	case part == messages.KeyChange:
		return demandKeyChange
	case msg.MTI.IsAdvice():
		return demandAdvice
	}
	return demandRequest
}

// formatOf is what of a message does not keep the format; nil if it does. A type that the dialect does not list may still be an advice.
func formatOf(e *Endpoint, msg conn.Unasked) *messages.FormatError {
	err := msg.Fault
	if err == nil {
		err = e.Codec.Validate(msg.Message)
	}
	var fault *messages.FormatError
	if errors.As(err, &fault) {
		return fault
	}
	return nil
}

// Bounds of what one processor can demand. All of them leave room for its late answers, which come the same way, and for live traffic.
const (
	demandsAtOnce  = 8                // half of the calls that an endpoint makes at the same time
	demandsASecond = 200              // each costs an fsync that it may share, and some hundred bytes until it is pruned
	demandsBurst   = 2000             // that were stored while the processor could not reach us
	demandBudget   = 10 * time.Second // of HSM and journal; a processor waits no longer than that
)

// demands bound those of one processor.
type demands struct {
	places   chan struct{}
	limit    *rate.Limiter
	changing chan struct{} // capacity 1: one change of a key at a time, and the second finds what the first has done
	// answeredOf is when the key was asked for that an answer brought last, as far as its making goes; owned by who holds changing.
	answeredOf time.Time
	opening    chan struct{} // capacity 1: one answer begins a business day, the others that name it go on

	mu     sync.Mutex
	alarms map[string]*alarmed // by their names; guarded by mu
	absurd refusedDay          // guarded by mu

	awaited chan error // capacity 1: told what became of the next key change, nil if nobody waits; guarded by mu
	asked   time.Time  // when a key was last asked for because PINs could not be read, as far as mayAsk counts it; guarded by mu
}

func newDemands() *demands {
	return &demands{places: make(chan struct{}, demandsAtOnce), limit: rate.NewLimiter(demandsASecond, demandsBurst), changing: make(chan struct{}, 1),
		opening: make(chan struct{}, 1), alarms: map[string]*alarmed{}}
}

// alarmInterval is the time after an alarm in which the same one of the same processor is only counted: who repeats a demand that cannot be
// done is one fault, and fills no disk.
const alarmInterval = time.Minute

// An alarmed is when an alarm was last told to a person, and how often it was not told since.
type alarmed struct {
	at    time.Time
	since int
}

// tell reports whether an alarm is to be told to a person, and how often it has come since it was told last, this time included.
func (d *demands) tell(alarm string, now time.Time) (times int, told bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	last := d.alarms[alarm]
	if last == nil {
		last = &alarmed{}
		d.alarms[alarm] = last
	}
	last.since++
	if times = last.since; now.Sub(last.at) < alarmInterval {
		return times, false
	}
	*last = alarmed{at: now}
	return times, true
}

// enter takes a place, which the function that it returns gives back; nil if there is none.
func (d *demands) enter() (leave func()) {
	select {
	case d.places <- struct{}{}:
	default:
		return nil
	}
	if !d.limit.Allow() {
		<-d.places
		return nil
	}
	return func() { <-d.places }
}

// A served is what a demand came to.
type served struct {
	answer *messages.Message // nil: none; the processor sends it again
	result string
	err    error  // why it is not done
	alarm  string // why a person must look; "" if none must
	about  []any  // attributes of its line in the log
}

func (s *Switch) serve(ctx context.Context, d *demand) served {
	answers := d.endpoint.Codec.Dialect().Answers
	switch d.kind {
	case demandCutover:
		return s.cutOver(ctx, d)
	case demandKeyChange:
		return s.changeKey(ctx, d)
	case demandAdvice:
		return s.keep(ctx, d)
	case demandMalformed:
		return s.malformed(ctx, d, formatOf(d.endpoint, d.Unasked))
	case demandUnproven:
		return d.unproven()
	case demandRequest:
	}
	err := errors.New("it is not served")
	if !d.refusable() {
		return served{result: demandRefused, err: err}
	}
	return served{result: demandRefused, err: err, answer: messages.NewAnswer(d.Message, answers.Unsupported)}
}

// unproven refuses a demand that somebody else may have made: nothing of it is done or recorded, whatever it says. One that only could not be
// checked is to be sent again.
func (d *demand) unproven() served {
	out := served{result: demandRefused, err: d.Fault}
	code := d.endpoint.Codec.Dialect().Answers.MACIncorrect
	if !errors.Is(d.Fault, messages.ErrMAC) && formatOf(d.endpoint, d.Unasked) == nil {
		out.result, code = demandFailed, d.endpoint.Codec.Dialect().Answers.Malfunction
	}
	if d.refusable() {
		out.answer = messages.NewAnswer(d.Message, code)
	}
	return out
}

// recognisable reports whether the processor would find its demand by the answer.
func (d *demand) recognisable() bool {
	return d.Has(messages.STAN) && (d.Has(messages.TransmissionTime) || d.Has(messages.LocalTime))
}

// refusable reports whether a demand may be answered with a code that refuses it. A request of money, which a processor has no reason to make of
// us, is not where the answer would carry a MAC: by the numbers of a request of ours, which can be guessed, the refusal would be proven as
// the processor's to us, and decline what that has approved.
func (d *demand) refusable() bool {
	if !d.MTI.IsRequest() || !d.recognisable() {
		return false
	}
	return d.MTI.IsAdvice() || d.MTI.Class() == messages.Network || !d.endpoint.Codec.HasMAC(d.MTI.Answer())
}

// malformed refuses a demand that does not keep the format. But a processor that tells of a reversal has made it, whatever it lacks: what could
// be read is recorded, as refused, and it is for a person.
func (s *Switch) malformed(ctx context.Context, d *demand, fault *messages.FormatError) served {
	out := d.malformed(fault)
	if d.MTI.Class() != messages.Reversal || !d.MTI.IsAdvice() {
		return out
	}
	out.alarm = alarmMalformed
	kept := s.record(ctx, d, d.PAN(), d.endpoint.Codec.Dialect().Answers.FormatError)
	switch {
	case kept.err != nil: // it may come again, and is told to a person already
		return served{result: demandFailed, err: errors.Join(fault, kept.err), alarm: alarmMalformed}
	case kept.alarm == alarmUndone:
		out.alarm = alarmUndone
	}
	out.about = kept.about
	return out
}

// malformed refuses a demand. Where the processor would not recognise the answer, it is given none.
func (d *demand) malformed(fault *messages.FormatError) served {
	out := served{result: demandRefused, err: fault}
	if d.refusable() {
		out.answer = messages.NewFormatError(d.Message, d.endpoint.Codec.Dialect().Answers.FormatError, fault.Element)
	}
	return out
}

// cutOver begins the processor's next business day. One that cannot be the next is refused, by the date that it states or should have.
func (s *Switch) cutOver(ctx context.Context, d *demand) served {
	dialect := d.endpoint.Codec.Dialect()
	advanced, err := s.journal.Advance(ctx, journal.Cutover{Endpoint: d.endpoint.Name, Day: d.Get(messages.SettlementDate)})
	about := []any{"from", advanced.From, "to", advanced.To}
	switch {
	case errors.Is(err, journal.ErrBusinessDate):
		return served{result: demandRefused, err: err, about: about, alarm: alarmCutover,
			answer: messages.NewFormatError(d.Message, dialect.Answers.FormatError, messages.SettlementDate)}
	case err != nil:
		return served{result: demandFailed, err: err}
	}
	out := served{result: demandDone, about: about, answer: messages.NewAnswer(d.Message, dialect.NetworkManagement.Accepted[0])}
	if advanced.From == advanced.To {
		out.result = demandAgain
	}
	return out
}

// changeKey has the HSM take a new zone key. Only what is in use is accepted: the processor enciphers under the new key from then on.
func (s *Switch) changeKey(ctx context.Context, d *demand) served {
	dialect, label := d.endpoint.Codec.Dialect(), d.endpoint.PINKey
	if s.keys == nil || label == "" {
		return served{result: demandRefused, err: errors.New("this endpoint has no key to be changed by a message"),
			answer: messages.NewAnswer(d.Message, dialect.Answers.Unsupported)}
	}
	change, err := d.endpoint.Codec.NewKey(d.Message)
	checkValue := fmt.Sprintf("%X", change.CheckValue)
	var fault *messages.FormatError
	if errors.As(err, &fault) {
		out := d.malformed(fault)
		out.alarm = alarmKeyChange
		d.endpoint.demands.keyCame(fault)
		return out
	}
	err = s.takeKey(ctx, d.endpoint, time.Time{}, change)
	d.endpoint.demands.keyCame(err)
	about := []any{"key", label, "kcv", checkValue}
	if errors.Is(err, hsm.ErrFixedKey) {
		return served{result: demandRefused, err: err, answer: messages.NewAnswer(d.Message, dialect.Answers.Unsupported)}
	}
	if err != nil {
		return served{result: demandFailed, err: fmt.Errorf("changing key: %w", err), about: about,
			alarm: alarmKeyChange, answer: messages.NewAnswer(d.Message, dialect.Answers.Malfunction)}
	}
	return served{result: demandDone, about: about, answer: messages.NewAnswer(d.Message, dialect.NetworkManagement.Accepted[0])}
}

// keep records an advice. With the HSM down it is not answered, and comes again.
func (s *Switch) keep(ctx context.Context, d *demand) served {
	if !d.recognisable() {
		return served{result: demandRefused, err: errors.New("it has no STAN or no time, by which its repeat would be known")}
	}
	var pan card.PAN
	if d.Has(messages.PAN) || d.Has(messages.Track2) {
		var err error
		pan, err = d.Card()
		var fault *messages.FormatError
		if errors.As(err, &fault) {
			return s.malformed(ctx, d, fault)
		}
	}
	return s.record(ctx, d, pan, d.accepted())
}

// accepted is the code that accepts an advice of its class.
func (d *demand) accepted() string {
	dialect := d.endpoint.Codec.Dialect()
	switch d.MTI.Class() {
	case messages.Reversal:
		return dialect.Reversal.Acknowledged[0]
	case messages.Network:
		return dialect.NetworkManagement.Accepted[0]
	case messages.Authorization, messages.Financial:
	}
	return dialect.Answers.Accepted
}

// record makes an advice durable, and answers it with a code or, of a repeat, with that of the first. Of what is sensitive in it only the
// PAN is kept, sealed; it is zero if there is none.
func (s *Switch) record(ctx context.Context, d *demand, pan card.PAN, code string) served {
	advising := journal.Advising{Endpoint: d.endpoint.Name, Identity: d.endpoint.Codec.Identity(d.Message), Original: d.Original(), Withheld: d.withheld(),
		ResponseCode: code, Reverses: d.MTI.Class() == messages.Reversal}
	if !pan.IsZero() {
		protected, err := s.vault.Protect(ctx, hsm.Card{PAN: pan})
		if err != nil {
			return served{result: demandFailed, err: fmt.Errorf("sealing PAN: %w", err)}
		}
		advising.PAN, advising.Token, advising.MaskedPAN = protected.Sealed, protected.Token, pan.Mask()
	}
	advising.STAN, advising.TransmissionTime, advising.LocalTime = d.endpoint.Codec.NamedNumbers(d.Message)
	advised, err := s.journal.Keep(ctx, advising)
	if err != nil {
		return served{result: demandFailed, err: err}
	}
	out := served{result: demandDone, answer: messages.NewAnswer(d.Message, advised.ResponseCode),
		about: []any{"advice", int64(advised.ID), "transaction", int64(advised.Transaction)}}
	if advised.Again {
		out.result = demandAgain
	}
	switch {
	case advised.Undoes: // also of a repeat: a crash may have come between the record and the first alarm
		s.metrics.undone.WithLabelValues(d.endpoint.Name).Inc()
		out.alarm = alarmUndone
	case advising.Reverses && advised.Transaction == 0:
		out.alarm = alarmUndoneUnknown
	}
	return out
}

// withheld lists the elements that are not kept.
func (d *demand) withheld() []messages.Element {
	var list []messages.Element
	for _, e := range d.Elements() {
		if d.Hides(e) && e != messages.PAN {
			list = append(list, e)
		}
	}
	return list
}

// reportDemand counts a demand and logs its one line.
func (s *Switch) reportDemand(d *demand, out served) {
	s.metrics.demands.WithLabelValues(d.endpoint.Name, string(d.kind), out.result).Inc()
	code := ""
	if out.answer != nil {
		code = out.answer.Get(messages.ResponseCode)
	}
	attributes := append([]any{"kind", string(d.kind), "result", out.result, "endpoint", d.endpoint.Name, "mti", string(d.MTI),
		"stan", d.Get(messages.STAN), "rrn", d.Get(messages.RRN), "response_code", code}, out.about...)
	if out.err != nil {
		attributes = append(attributes, "error", out.err)
	}
	if out.alarm != "" && s.alarm(d.endpoint, out.alarm, attributes...) {
		return
	}
	report := func() { s.log.Info("demand of processor", attributes...) }
	if out.result == demandRefused || out.result == demandFailed || out.result == demandBusy {
		report = func() { s.log.Warn("demand of processor is not done", attributes...) }
	}
	// A processor may say the same again and again, but what is done is a line.
	if out.result == demandDone {
		report()
		return
	}
	s.sometimes.Do(report)
}

// alarm tells a person, unless the same was told of the same processor a moment ago. All of them are counted.
func (s *Switch) alarm(e *Endpoint, alarm string, attributes ...any) (told bool) {
	s.metrics.demandAlarms.WithLabelValues(e.Name, alarm).Inc()
	times, told := e.demands.tell(alarm, time.Now())
	if told {
		s.log.Error("demand of processor needs a person", append(attributes, "alarm", alarm, "times", times)...)
	}
	return told
}
