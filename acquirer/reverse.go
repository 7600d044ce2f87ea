package acquirer

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	"acquirerd/card"
	"acquirerd/journal"
	"acquirerd/messages"
	"acquirerd/specs"
)

// What became of a reversal of an upstream, for the log and acquirerd_upstream_reversals_total.
const (
	reversalRecorded  = "recorded"       // it is owed since
	reversalKnown     = "known"          // it was owed or done before
	reversalNothing   = "nothing_to_do"  // nothing was approved
	reversalNotFound  = "not_found"      // its original has not come, and will not be sent any more
	reversalDisagrees = "disagrees"      // what it names is another transaction than it says
	reversalOther     = "other_reversal" // there is another one of the same original
	reversalForwarded = "forwarded"      // its original is not on record: it goes on as it came
	reversalSilent    = "silent"         // not answered: nobody can say now
)

// Reverse takes a reversal (0400, 0420 and their repeats) of an upstream, full or partial (DE 95). It is answered as soon as it is durable,
// or, if it is a request (0400), after it was sent to the processor once, but at the latest shortly before the end of the upstream's budget;
// what is owed then stays owed. An error means that the process must stop.
func (s *Switch) Reverse(ctx context.Context, v *Visit) (Result, error) {
	started := time.Now()
	dialect := v.Upstream.Codec.Dialect()
	refuse := func(reason refusal, code string, cause error) (Result, error) {
		return s.refuse(v, reason, code, cause, started), nil
	}
	answer := func(what, code string, found journal.Found) (Result, error) {
		return s.reversed(v, what, code, found, started), nil
	}
	accepted := dialect.Reversal.Acknowledged[0]

	// What it says.
	pan, err := v.Message.Card()
	if err != nil {
		return refuse(refusedFormat, dialect.Answers.FormatError, err)
	}
	amount, replacement, err := v.Upstream.Codec.Reversed(v.Message)
	if err != nil {
		return refuse(refusedFormat, dialect.Answers.FormatError, err)
	}
	names := v.Upstream.Codec.OriginalIdentities(v.Message)
	if len(names) == 0 {
		return refuse(refusedFormat, dialect.Answers.FormatError,
			&messages.FormatError{Element: v.Upstream.Codec.OriginalElement(), Rule: "is not one"})
	}

	says := statement{v, amount, pan}

	// Admit, after what it waits for: an original in flight may not cost others their places.
	if !s.settled(ctx, v.Upstream.Name, names) {
		return answer(reversalSilent, "", journal.Found{})
	}
	leave, reason := s.enter()
	if leave == nil {
		return refuse(reason, dialect.Answers.Busy, nil)
	}
	defer func() { leave() }()

	// Find the original. One that has not come will not be sent any more.
	found, err := s.original(ctx, v, names, says)
	switch {
	case errors.Is(err, journal.ErrFailed), errors.Is(err, journal.ErrClosed):
		return Result{}, err
	case err != nil:
		s.log.Warn("original of a reversal cannot be looked for", "error", err)
		return answer(reversalSilent, "", found)
	case found.Reason == journal.ReasonBarred && dialect.Reversal.UnknownOriginal == specs.ForwardUnknown:
		return s.forward(ctx, v, pan, started)
	case found.Reason == journal.ReasonBarred:
		return answer(reversalNotFound, dialect.Answers.OriginalNotFound, found)
	}

	// It must be about what it says: the wrong transaction reversed is money lost.
	if s.disagrees(says, found) {
		return answer(reversalDisagrees, dialect.Answers.OriginalNotFound, found)
	}
	if replacement != "" && found.ApprovedAmount != "" && replacement >= found.ApprovedAmount { // digits of one length
		return refuse(refusedFormat, dialect.Answers.FormatError,
			&messages.FormatError{Element: v.Upstream.Codec.ReplacementElement(), Rule: "is not less than what was approved"})
	}
	if e := s.endpoint(found.Endpoint); replacement != "" && e != nil && !e.Codec.TakesParts() {
		return refuse(refusedFormat, dialect.Answers.FormatError, wholeOnly(v))
	}

	// Record: durable before the answer. What was not approved needs nothing. A part is reversed only once; the whole can be after it.
	if found.Outcome == "" {
		return answer(reversalSilent, "", found) // nobody works on it: only a start can say what it came to
	}
	stands, err := s.journal.Owe(context.WithoutCancel(ctx), journal.Reversing{Transaction: found.ID, Reason: reasonUpstream, Replacement: replacement})
	switch {
	case errors.Is(err, journal.ErrNotApproved) && replacement == "":
		return answer(reversalNothing, accepted, found)
	case errors.Is(err, journal.ErrNotApproved):
		return answer(reversalNothing, dialect.Answers.OriginalNotFound, found) // there is nothing of which a part could stay
	case err != nil:
		return Result{}, fmt.Errorf("recording reversal of transaction %d: %w", found.ID, err)
	case stands.Replacement != "" && replacement == "":
		return answer(reversalOther, dialect.Answers.Busy, found) // the part is on its way: later
	case stands.Replacement != replacement:
		return answer(reversalOther, dialect.Answers.Duplicate, found)
	}
	s.forwarder.Wake()
	what := reversalKnown
	if found.Reversal.ID == 0 || found.Reversal.Replacement != replacement {
		what = reversalRecorded
	}

	// Answer. A request waits for the processor, but not in the place of live traffic; whatever that says, the debt is ours.
	if e := s.endpoint(found.Endpoint); !v.Message.MTI.IsAdvice() && e != nil && e.processor.InService() {
		leave()
		leave = func() {}
		s.forwarder.await(ctx, stands.ID)
	}
	return answer(what, accepted, found)
}

// settled waits until nothing with these names is in flight. It is false if ctx ends first.
func (s *Switch) settled(ctx context.Context, upstream string, names []string) bool {
	for _, name := range names {
		if ended := s.inFlightWith(upstream, name); ended != nil && !wait(ctx, ended) {
			return false
		}
	}
	return true
}

// original finds the transaction that a reversal is about, after it has ended: of several that its names find, one that it agrees with, and
// of which something stands. If there is none, its names are barred, so that what comes late is not sent, and what it returns says so. A
// name that is barred says nothing while another one is not.
func (s *Switch) original(ctx context.Context, v *Visit, names []string, says statement) (journal.Found, error) {
	for {
		if !s.settled(ctx, v.Upstream.Name, names) {
			return journal.Found{}, ctx.Err()
		}
		var barred, best journal.Found
		var free []string
		rank := 0
		for _, name := range names {
			found, known, err := s.journal.Find(ctx, v.Upstream.Name, name)
			switch {
			case err != nil:
				return found, err
			case !known:
				free = append(free, name)
			case found.Reason == journal.ReasonBarred:
				barred = found
			default:
				if r := s.fitness(says, found); r > rank {
					rank, best = r, found
				}
			}
		}
		if rank > 0 {
			return best, nil
		}
		if len(free) == 0 {
			return barred, nil
		}
		for _, name := range free {
			err := s.journal.Bar(ctx, journal.Barred{Upstream: v.Upstream.Name, UpstreamKey: name, MTI: messages.MTIOf(name),
				UpstreamSTAN: v.Upstream.Codec.STANOf(name), MaskedPAN: says.pan.Mask()})
			if err != nil && !errors.Is(err, journal.ErrDuplicate) {
				return journal.Found{}, err
			}
		}
		// Each is on record now: barred, or because it came at this moment.
	}
}

// A statement is what a reversal says of its original.
type statement struct {
	*Visit
	amount string // of the original, in digits
	pan    card.PAN
}

// fitness ranks what a name of a reversal has found: from 1, for a transaction that it disagrees with.
func (s *Switch) fitness(says statement, found journal.Found) int {
	switch stands := found.Outcome != journal.Declined && found.Outcome != journal.NotSent; {
	case s.disagrees(says, found):
		return 1
	case !stands:
		return 2
	}
	return 3
}

// disagrees reports whether a reversal says something else of its original than the record: other card, amount, currency, terminal or
// acquirer. The record has the processor's words, so it is compared in those. Of the card, the digits that may be shown are compared, so that
// no reversal waits for the HSM.
func (s *Switch) disagrees(says statement, found journal.Found) bool {
	reversal := says.Message
	said, dropped := reversal.Get, []int(nil)
	if e := s.endpoint(found.Endpoint); e != nil {
		carried, _ := messages.NewPassage(says.Upstream.Codec, e.Codec).Carry(reversal, time.Now())
		defer carried.Clear()
		said, dropped = carried.Get, e.Codec.Dialect().Dropped
	}
	differs := func(e messages.Element) bool {
		return reversal.Has(e) && !slices.Contains(dropped, int(e)) &&
			strings.TrimRight(said(e), " ") != strings.TrimRight(found.Original.Get(e), " ")
	}
	acquirerID := found.Original.Get(messages.AcquirerID)
	if reversal.Has(messages.AcquirerID) && acquirerID != "" &&
		strings.TrimLeft(said(messages.AcquirerID), "0") != strings.TrimLeft(acquirerID, "0") {
		return true
	}
	return found.MaskedPAN != says.pan.Mask() || differs(messages.Currency) || differs(messages.Terminal) ||
		says.amount != "" && says.amount != found.Original.Get(messages.Amount) &&
			(found.ApprovedAmount == "" || says.amount != found.ApprovedAmount)
}

// wholeOnly is why a part is refused.
func wholeOnly(v *Visit) error {
	return &messages.FormatError{Element: v.Upstream.Codec.ReplacementElement(), Rule: "is not one that the processor takes: it undoes only the whole"}
}

// forward records a reversal whose original is not on record, under numbers of its own, to be sent as it came.
func (s *Switch) forward(ctx context.Context, v *Visit, pan card.PAN, started time.Time) (Result, error) {
	v = s.Admit(Request{Upstream: v.Upstream, Message: v.Message, Key: v.Upstream.Codec.Identity(v.Message)})
	return s.once(ctx, v, started, func() (Result, error) {
		endpoint := s.route(v.Upstream.Name, v.Message, pan)
		if endpoint == nil {
			return s.refuse(v, refusedRoute, v.Upstream.Codec.Dialect().Answers.NoRoute, nil, started), nil
		}
		if _, replacement, err := v.Upstream.Codec.Reversed(v.Message); err != nil || replacement != "" && !endpoint.Codec.TakesParts() {
			return s.refuse(v, refusedFormat, v.Upstream.Codec.Dialect().Answers.FormatError, wholeOnly(v), started), nil
		}
		s.metrics.upstreamReversals.WithLabelValues(reversalForwarded).Inc()
		return s.accept(ctx, v, acceptance{endpoint: endpoint, pan: pan, started: started})
	})
}

// reversed answers a reversal, counts it and logs its one line. Without a code there is no answer.
func (s *Switch) reversed(v *Visit, what, code string, found journal.Found, started time.Time) Result {
	s.metrics.upstreamReversals.WithLabelValues(what).Inc()
	level := slog.LevelInfo
	if what == reversalDisagrees || what == reversalOther {
		level = slog.LevelWarn
	}
	m := v.Message
	s.log.Log(context.Background(), level, "reversal from upstream", "result", what, "transaction", int64(found.ID), "upstream", v.Upstream.Name,
		"mti", string(m.MTI), "upstream_stan", m.Get(messages.STAN), "endpoint", found.Endpoint, "stan", found.Original.Get(messages.STAN),
		"rrn", found.Original.Get(messages.RRN), "amount", m.Get(messages.Amount), "currency", m.Get(messages.Currency),
		"response_code", code, "elapsed_seconds", time.Since(started).Seconds())
	if code == "" {
		return Result{}
	}
	return Result{Answer: messages.NewAnswer(m, code)}
}
