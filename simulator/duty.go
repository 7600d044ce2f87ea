package simulator

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"math/rand/v2"
	"slices"
	"time"

	"acquirerd/messages"
)

// DutyConfig is what a Duty is made of. Shares are 0 to 1 of what they are said to be of.
type DutyConfig struct {
	Upstream *Upstream // running
	Seed     uint64    // of all that is left to chance

	RepeatShare  float64       // of unanswered tries of a request that are repeated as x1, three times at most; the others are reversed
	CancelShare  float64       // of approvals that are reversed afterwards, whole; and
	PartialShare float64       // in part, where the dialect has that; and
	AdviceShare  float64       // that are followed by an 0220, the completion, where the dialect has that: these three together are not more than 1
	RequestShare float64       // of reversals that are sent as 0400 and 0401 instead of 0420 and 0421, where the dialect has both
	ResendShare  float64       // of answered requests that are sent once more anyway, half of them as x1, half unchanged
	Pause        time.Duration // between two tries of the same message; default 1 s
}

const (
	mostRepeats  = 3
	defaultPause = time.Second
)

// The messages of a Duty beside its requests.
const (
	reversalRequest  messages.MTI = "0400"
	completionAdvice messages.MTI = "0220"
)

// A Duty is an upstream that does its duty: what it was not told it finds out or undoes, and what it owes it sends until it is taken.
//
//   - A request that is not answered is repeated under its numbers, and at last reversed. From then on the upstream believes that there is
//     no approval, whatever comes late.
//   - An answer ends a request, the answer to a repeat too; if it does not approve, nothing is owed.
//   - A request of which nothing was sent owes nothing.
//   - A reversal is sent again, as a repeat if it may have been sent before, until it is answered by what the dialect says acknowledges it
//     (00), or that there is no original (25). An answer that says "later" (91, 96) is no end. Any other is a refusal, which the book counts
//     as a fault of the daemon.
//   - An advice is sent again until it is acknowledged.
//
// So at rest the processor's holds must be exactly what the book believes, which Compare checks. A Duty may be used by many goroutines.
type Duty struct {
	cfg DutyConfig
}

// NewDuty checks the configuration.
func NewDuty(cfg DutyConfig) (*Duty, error) {
	if cfg.Upstream == nil {
		return nil, errors.New("duty: it needs an upstream")
	}
	for _, share := range []float64{cfg.RepeatShare, cfg.CancelShare, cfg.PartialShare, cfg.AdviceShare, cfg.RequestShare, cfg.ResendShare,
		cfg.CancelShare + cfg.PartialShare + cfg.AdviceShare} {
		if !(share >= 0 && share <= 1) { // nor NaN
			return nil, fmt.Errorf("duty: a share of %g is not within 0 to 1", share)
		}
	}
	if cfg.Pause < 0 {
		return nil, errors.New("duty: the pause is negative")
	}
	if cfg.Pause == 0 {
		cfg.Pause = defaultPause
	}
	return &Duty{cfg: cfg}, nil
}

// Do takes one transaction to its end: the request with its repeats, and the reversal or advice that follows. It returns the transaction's
// entry in the book when nothing is open any more, or when ctx ends; then the book says what is open, and it stays so. An error means that
// no such request can be made, and that nothing was sent or written down.
func (d *Duty) Do(ctx context.Context, r Request) (Entry, error) {
	if err := ctx.Err(); err != nil {
		return Entry{}, err
	}
	if r.MTI != "" && r.MTI != messages.AuthorizationRequest && r.MTI != messages.FinancialRequest {
		return Entry{}, fmt.Errorf("building request: %q is not the MTI of a first request", string(r.MTI))
	}
	m, err := d.cfg.Upstream.build(r)
	if err != nil {
		return Entry{}, err
	}
	defer m.Clear()
	entry := d.cfg.Upstream.newEntry(m, r)
	entry.Duty, entry.Open = true, true
	e := &errand{Upstream: d.cfg.Upstream, pause: d.cfg.Pause, request: m, entry: entry, plan: d.plan(m)}
	if err := e.run(ctx); err != nil {
		return Entry{}, err
	}
	return e.book.read(entry), nil
}

// A plan is what chance wants of one transaction.
type plan struct {
	repeats         int // of an unanswered request
	resend, marked  bool
	follow          follow
	reversal        messages.MTI
	remaining, done float64 // parts of the amount: after a partial reversal, of a completion
}

// A follow is what follows an approval.
type follow int

const (
	followNothing follow = iota
	followCancel
	followPartial
	followAdvice
)

// plan draws from the seed, the request's class, STAN and terminal. Every draw is made, so that one share's change leaves the others.
func (d *Duty) plan(m *messages.Message) plan {
	hash := fnv.New64a()
	_, _ = fmt.Fprintf(hash, "duty|%c|%s|%s", m.MTI.Class(), m.Get(messages.STAN), m.Get(messages.Terminal))
	chance := rand.New(rand.NewPCG(d.cfg.Seed, hash.Sum64())) //nolint:gosec // it must be repeatable
	var p plan
	goesOn := true
	for range mostRepeats {
		if goesOn = chance.Float64() < d.cfg.RepeatShare && goesOn; goesOn {
			p.repeats++
		}
	}
	p.resend, p.marked = chance.Float64() < d.cfg.ResendShare, chance.Float64() < .5
	switch kind := chance.Float64(); {
	case kind < d.cfg.CancelShare:
		p.follow = followCancel
	case kind < d.cfg.CancelShare+d.cfg.PartialShare:
		p.follow = followPartial
	case kind < d.cfg.CancelShare+d.cfg.PartialShare+d.cfg.AdviceShare:
		p.follow = followAdvice
	}
	if p.reversal = messages.ReversalAdvice; chance.Float64() < d.cfg.RequestShare {
		p.reversal = reversalRequest
	}
	p.remaining, p.done = chance.Float64(), .5+chance.Float64()/2
	return p.within(d.cfg.Upstream.reader, d.cfg.Upstream.cfg.Codec.TakesParts())
}

// within leaves out of a plan what the dialect does not have.
func (p plan) within(r reader, parts bool) plan {
	if p.follow == followPartial && !parts {
		p.follow = followCancel
	}
	if p.follow == followAdvice && !r.takes(completionAdvice) {
		p.follow = followNothing
	}
	if !r.takes(p.reversal) {
		own, _ := r.OwnMTI(r.Reversal.Type)
		p.reversal = messages.MTI(own)
	}
	return p
}

// An errand is one transaction under way. It is owned by one call of Do.
type errand struct {
	*Upstream
	pause   time.Duration
	request *messages.Message
	entry   *Entry
	opened  bool // the entry is in the book
	plan    plan
}

// run is the transaction from its request to its rest. An error after the first message leaves it open.
func (e *errand) run(ctx context.Context) error {
	r, err := e.ask(ctx)
	if err != nil {
		return err
	}
	e.book.settle(e.entry, r, e.reader)
	switch {
	case r.outcome == NotSent:
		e.believe(BelievesNone, 0)
	case r.outcome != Answered:
		if ctx.Err() != nil {
			return nil
		}
		if err := e.reverse(ctx, reply{}, 0); err != nil {
			return err
		}
	default:
		if e.believe(BelievesNone, 0); r.approves {
			e.believe(BelievesApproved, r.amount)
		}
		if err := e.resend(ctx, r); err != nil {
			return err
		}
		if err := e.follow(ctx, r); err != nil {
			return err
		}
	}
	e.book.change(e.entry, func(entry *Entry, counts *BookCounts) {
		if entry.Reversal.State != DebtOpen && entry.Advice.State != DebtOpen {
			entry.Open = false
			counts.Open--
		}
	})
	return nil
}

// ask sends the request, and its repeats while it is not answered. It returns the answer, or what became of the last message that may
// have been sent, or NotSent if none was.
func (e *errand) ask(ctx context.Context) (reply, error) {
	last := reply{outcome: NotSent, at: time.Now()}
	for try := 0; ; try++ {
		repeated := last.outcome != NotSent
		r, err := e.try(ctx, e.request, repeated, func(code string) { e.book.late(e.entry, code) })
		if err != nil {
			return reply{}, err
		}
		if r.outcome != NotSent {
			last = r
			e.book.change(e.entry, func(entry *Entry, counts *BookCounts) {
				entry.Tries++
				if repeated {
					entry.Repeats++
					counts.Repeats++
				}
				entry.answered(counts, repeated && r.outcome == Answered)
			})
		}
		if r.outcome == Answered || last.outcome == NotSent || try >= e.plan.repeats || !pause(ctx, e.pause) {
			return last, nil
		}
	}
}

func (e *Entry) answered(counts *BookCounts, duplicate bool) {
	if duplicate {
		e.DuplicatesAnswered++
		counts.DuplicatesAnswered++
	}
}

// resend sends an answered request once more, as a network may. Its answer must be the first one; without one nothing is known more.
func (e *errand) resend(ctx context.Context, first reply) error {
	answers := e.reader.Answers
	if !e.plan.resend || ctx.Err() != nil || first.code == answers.Busy || first.code == answers.Malfunction {
		return nil // what was refused unread may be taken the next time
	}
	r, err := e.try(ctx, e.request, e.plan.marked, e.lateToNobody)
	if err != nil || r.outcome == NotSent {
		return err
	}
	e.book.change(e.entry, func(entry *Entry, counts *BookCounts) {
		entry.Resends++
		counts.Resends++
		entry.answered(counts, r.outcome == Answered)
	})
	if r.outcome == Answered && (r.code != first.code || r.amount != first.amount || r.authorizationID != first.authorizationID) {
		e.fault("a duplicate is answered %s for %d (DE 38 %q), after %s for %d (%q)", r.code, r.amount, r.authorizationID,
			first.code, first.amount, first.authorizationID)
	}
	return nil
}

// follow does what the plan wants of an approval.
func (e *errand) follow(ctx context.Context, approval reply) error {
	if !approval.approves || ctx.Err() != nil {
		return nil
	}
	switch e.plan.follow {
	case followCancel:
		return e.reverse(ctx, approval, 0)
	case followPartial: // of less than two units there is no part, and it is reversed whole
		remaining := int64(0)
		if approval.amount > 1 {
			remaining = 1 + int64(e.plan.remaining*float64(approval.amount-1))
		}
		return e.reverse(ctx, approval, remaining)
	case followAdvice:
		return e.advise(ctx, approval)
	case followNothing:
	}
	return nil
}

// reverse undoes the request, so that the replacement remains. The approval is the zero reply if there was none.
func (e *errand) reverse(ctx context.Context, approval reply, replacement int64) error {
	e.book.change(e.entry, func(entry *Entry, counts *BookCounts) {
		entry.Reversal = BookReversal{MTI: e.plan.reversal, State: DebtOpen, Partial: replacement > 0, Replacement: replacement}
		counts.Reversals++
		if replacement > 0 {
			counts.Partial++
		}
	})
	if e.believe(BelievesNone, 0); replacement > 0 {
		e.believe(BelievesApproved, replacement)
	}
	m, err := e.reversal(e.request, Request{MTI: e.plan.reversal, AuthorizationID: approval.authorizationID, Replacement: replacement}, time.Now().UTC())
	if err != nil {
		return err
	}
	defer m.Clear()
	return e.insist(ctx, m, func(r reply) bool {
		state := e.reversed(r, approval)
		e.book.change(e.entry, func(entry *Entry, _ *BookCounts) {
			entry.Reversal.State = state
			if r.outcome != NotSent {
				entry.Reversal.Tries++
			}
			if r.outcome == Answered {
				entry.Reversal.ResponseCode = e.reader.iso87(r.code)
			}
		})
		return state != DebtOpen
	})
}

// reversed is what an answer makes of a reversal.
func (e *errand) reversed(r, approval reply) DebtState {
	answers := e.reader.Answers
	switch {
	case r.outcome != Answered, slices.Contains([]string{answers.Unknown, answers.NotSent, answers.Malfunction, answers.Busy}, r.code):
		return DebtOpen
	case slices.Contains(e.reader.Reversal.Acknowledged, r.code):
		return DebtAcknowledged
	case slices.Contains(e.reader.Reversal.NotFound, r.code), r.code == answers.OriginalNotFound:
		if e.believe(BelievesNone, 0); approval.approves {
			e.fault("the reversal of an approval is answered %s: there is no original", r.code)
		}
		return DebtAcknowledged
	}
	e.fault("a reversal is refused with %s", r.code)
	return DebtRefused
}

// advise sends the completion of an approval, with numbers of its own.
func (e *errand) advise(ctx context.Context, approval reply) error {
	now := time.Now().UTC()
	m := messages.New(completionAdvice)
	for _, element := range []messages.Element{messages.ProcessingCode, messages.MerchantType, messages.POSEntryMode, messages.POSConditionCode,
		messages.AcquirerID, messages.RRN, messages.Terminal, messages.Merchant, messages.Currency} {
		m.Set(element, e.request.Get(element))
	}
	e.reader.set(m, messages.FunctionCode, e.reader.functionCode(m.MTI))
	m.SetPAN(e.request.PAN())
	defer m.Clear()
	amount := max(min(1, approval.amount), int64(e.plan.done*float64(approval.amount)))
	m.Set(messages.Amount, fmt.Sprintf("%012d", amount))
	m.Set(messages.TransmissionTime, now.Format(messages.TransmissionTimeLayout))
	m.Set(messages.STAN, e.numbers(Request{}, now).STAN)
	time12, date13 := e.reader.localTime(now)
	e.reader.set(m, messages.LocalTime, time12)
	e.reader.set(m, messages.LocalDate, date13)
	e.reader.set(m, messages.AuthorizationID, approval.authorizationID)
	e.book.change(e.entry, func(entry *Entry, counts *BookCounts) {
		entry.Advice = BookAdvice{Name: e.reader.name(m), MTI: m.MTI, STAN: m.Get(messages.STAN),
			TransmissionTime: m.Get(messages.TransmissionTime), Amount: amount, State: DebtOpen}
		counts.Advices++
	})
	return e.insist(ctx, m, func(r reply) bool {
		taken := r.outcome == Answered && slices.Contains(e.reader.Reversal.Acknowledged, r.code)
		e.book.change(e.entry, func(entry *Entry, _ *BookCounts) {
			if r.outcome != NotSent {
				entry.Advice.Tries++
			}
			if r.outcome == Answered {
				entry.Advice.ResponseCode = e.reader.iso87(r.code)
			}
			if taken {
				entry.Advice.State = DebtAcknowledged
			}
		})
		return taken
	})
}

// insist sends a message, marked as a repeat once it may have been sent, until ended is true of what became of it, or ctx ends.
func (e *errand) insist(ctx context.Context, m *messages.Message, ended func(reply) bool) error {
	for sent := false; ; {
		r, err := e.try(ctx, m, sent, e.lateToNobody)
		if err != nil {
			return err
		}
		sent = sent || r.outcome != NotSent
		if ended(r) || !pause(ctx, e.pause) {
			return nil
		}
	}
}

// try sends a copy of a message once. An answer that is not for it is none, and a fault.
func (e *errand) try(ctx context.Context, m *messages.Message, repeat bool, noted func(code string)) (reply, error) {
	m = m.Clone()
	if repeat {
		m.MTI = m.MTI.Repeat()
	}
	x, err := e.newExchange(m, noted)
	if err != nil {
		return reply{}, err
	}
	c, err := e.place(x)
	if err != nil {
		return reply{}, err
	}
	if !e.opened {
		e.opened = true
		e.book.open(e.entry)
	}
	if e.carry(ctx, c, x); x.reply.outcome == Mismatch {
		e.fault("%s is answered with what is not for it", m.MTI)
	}
	return x.reply, nil
}

func (e *errand) lateToNobody(string) {
	e.book.tally(func(counts *BookCounts) { counts.LateAnswers++ })
}

func (e *errand) believe(belief Belief, amount int64) {
	e.book.change(e.entry, func(entry *Entry, _ *BookCounts) { entry.Belief, entry.BelievedAmount = belief, amount })
}

func (e *errand) fault(format string, args ...any) {
	e.book.change(e.entry, func(entry *Entry, counts *BookCounts) {
		entry.Faults = append(entry.Faults, fmt.Sprintf(format, args...))
		counts.Faults++
	})
}
