package acquirer

import (
	"context"
	"errors"
	"fmt"
	"time"

	"acquirerd/card"
	"acquirerd/conn"
	"acquirerd/hsm"
	"acquirerd/journal"
	"acquirerd/messages"
)

// A sending is one request on its way to a processor, and what it came to.
type sending struct {
	endpoint *Endpoint
	passage  messages.Passage
	pan      card.PAN
	withPIN  bool
	keyUsed  int // version of the zone key that the PIN block is under
	numbers  messages.Numbers
	msg      *messages.Message
	ticket   *journal.Ticket

	answer  *messages.Message // nil if there is none
	err     error             // why not
	trace   conn.Trace
	outcome journal.Outcome
}

// exchange sends a request, and decides what it came to. What the upstream does not wait for any more is not sent.
func (x *sending) exchange(ctx context.Context) {
	x.outcome = journal.Outcome{Kind: journal.NotSent, Reason: reasonBudget}
	sending := conn.WithTrace(ctx, &x.trace)
	if x.err = ctx.Err(); x.err == nil {
		x.answer, x.err = x.endpoint.send(sending, x.ticket, x.msg)
		x.outcome = classify(x.endpoint.Codec.Dialect(), x.answer, x.err)
	}
	if x.outcome.ApprovedAmount != "" && !x.passage.TellsParts() { // told that all was, it would give goods for all
		x.outcome.Kind, x.outcome.Reason, x.outcome.ApprovedAmount = journal.Unknown, reasonPartial, "" // its reversal bears DE 38
	}
}

// asksForKeySync reports whether the processor has declined because it could not read the PIN under its zone key.
func (x *sending) asksForKeySync() bool {
	return x.withPIN && x.outcome.Kind == journal.Declined && x.endpoint.Codec.Dialect().AsksForKeySync(x.outcome.ResponseCode)
}

// What became of requests that a processor declined because it could not read their PIN, for acquirerd_key_sync_total.
const (
	keySyncCured    = "cured"    // asked again, under the other key, and not declined for that any more
	keySyncPersists = "persists" // nor could it read that
	keySyncNoKey    = "no_key"   // there is no other key: no change was a moment ago
	keySyncNoTime   = "no_time"  // the upstream does not wait long enough for a second answer
	keySyncFailed   = "failed"   // HSM or journal could not
)

var keySyncResults = []string{keySyncCured, keySyncPersists, keySyncNoKey, keySyncNoTime, keySyncFailed}

// underOtherKey asks the processor once more for what it has declined because it could not read the PIN. The two sides do not change keys at the
// same moment: it may still have the one before our last change, or have been ahead of us when the first was under way.
//
// The first is a decline, so that nothing is held by it, and it is recorded as one, together with the intent of the second: a request of its own,
// with numbers of its own, to which all that follows belongs. A reversal names the second. Should the processor approve the first after all, its
// answer finds the first, and is reversed as any approval of what was declined.
//
// It returns nil if the first answer stands: without another key, without time, or with HSM or journal in the way of a second one. An error is the
// journal's, after which the process must stop.
func (s *Switch) underOtherKey(ctx context.Context, v *Visit, first *sending, started time.Time, spent *phases) (*sending, error) {
	stands := func(why string, err error) (*sending, error) {
		s.reportKeySync(first, why, err)
		return nil, nil
	}
	// As much time must be left as the first one took, twice: what is cut short would be Unknown, and a reversal.
	now := time.Now()
	if deadline, has := ctx.Deadline(); ctx.Err() != nil || has && deadline.Sub(now) < 2*now.Sub(started) {
		return stands(keySyncNoTime, ctx.Err())
	}
	e := first.endpoint
	protected, err := s.protectUnderOther(ctx, v.Request, first)
	switch {
	case errors.Is(err, hsm.ErrNoPreviousKey):
		return stands(keySyncNoKey, nil)
	case err != nil:
		return stands(keySyncFailed, err)
	}
	defer protected.PINBlock.Clear()
	spent.on(phaseHSM)
	numbers, err := s.journal.Next(ctx, e.Name, now)
	if err != nil {
		return stands(keySyncFailed, err)
	}
	msg, err := first.passage.ForProcessor(v.Message, numbers, now)
	if err != nil {
		return stands(keySyncFailed, err)
	}
	msg.SetPINBlock(protected.PINBlock)
	if err := e.Codec.Validate(msg); err != nil {
		msg.Clear()
		return stands(keySyncFailed, err)
	}

	declined := first.outcome
	declined.Reason = reasonKeySync
	ticket, err := s.journal.Retry(context.WithoutCancel(ctx), first.ticket, declined, intentOf(v.Request, e, msg, protected, first.pan, now))
	if err != nil {
		msg.Clear()
		return nil, fmt.Errorf("recording outcome of %s: %w", first.ticket, err)
	}
	first.outcome = declined
	spent.on(phaseJournal)
	s.report(line{Request: v.Request, id: first.ticket.ID(), endpoint: e.Name, numbers: first.numbers, outcome: declined, answer: first.answer,
		link: first.trace.Link, started: started, superseded: true})

	second := &sending{endpoint: e, passage: first.passage, pan: first.pan, withPIN: true, keyUsed: protected.KeyVersion, numbers: numbers, msg: msg, ticket: ticket}
	second.exchange(ctx)
	spent.onExchange(second.trace)
	if second.asksForKeySync() {
		s.reportKeySync(second, keySyncPersists, nil)
	} else {
		s.reportKeySync(second, keySyncCured, nil)
	}
	return second, nil
}

// protectUnderOther translates the PIN block once more, to another version of the zone key than the first was under: the one that is in use by now, if
// the key was changed since, however often; else the one before it. The one before the present one is asked for first, because mostly nothing was
// changed; it is the right one only if it is older than what the first was under, which then is the present one.
func (s *Switch) protectUnderOther(ctx context.Context, req Request, first *sending) (hsm.Protected, error) {
	protected, err := s.protect(ctx, req, first.pan, first.endpoint, true)
	switch {
	case errors.Is(err, hsm.ErrNoPreviousKey): // or not any more
	case err != nil || protected.KeyVersion < first.keyUsed:
		return protected, err
	}
	protected.PINBlock.Clear()
	if protected, err = s.protect(ctx, req, first.pan, first.endpoint, false); err == nil && protected.KeyVersion == first.keyUsed {
		protected.PINBlock.Clear()
		return hsm.Protected{}, hsm.ErrNoPreviousKey
	}
	return protected, err
}

// reportKeySync counts what became of a request whose PIN the processor could not read. Where the other key does not help, or there is none, the
// keys of the two sides differ: the processor is asked for a new one.
func (s *Switch) reportKeySync(x *sending, result string, err error) {
	e := x.endpoint
	s.metrics.keySync.WithLabelValues(e.Name, result).Inc()
	attributes := []any{"endpoint", e.Name, "result", result, "transaction", int64(x.ticket.ID()), "stan", x.numbers.STAN, "key", e.PINKey,
		"response_code", x.outcome.ResponseCode}
	if err != nil {
		attributes = append(attributes, "error", err)
	}
	if result != keySyncPersists && result != keySyncNoKey {
		s.sometimes.Do(func() { s.log.Warn("processor could not read a PIN", attributes...) })
		return
	}
	if times, told := e.demands.tell(result, time.Now()); told {
		s.log.Error("zone key is not the processor's", append(attributes, "times", times)...)
	}
	if e.Codec.Holds(messages.KeyRequest) && s.keys != nil {
		s.askForKey(e)
	}
}
