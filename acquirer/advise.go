package acquirer

import (
	"context"
	"errors"
	"fmt"
	"time"

	"acquirerd/card"
	"acquirerd/hsm"
	"acquirerd/journal"
	"acquirerd/messages"
)

// Advise takes an advice (0120, 0220 and their repeats) of an upstream: something that has happened, which nobody can refuse any more. It is
// answered as soon as it is durable, and owed to the processor from then on. A refusal says that it was not recorded. An error means that
// the process must stop.
func (s *Switch) Advise(ctx context.Context, v *Visit) (Result, error) {
	started := time.Now()
	return s.once(ctx, v, started, func() (Result, error) { return s.take(ctx, v, started) })
}

// once has something taken that is owed from then on, unless it repeats what is in flight, which it joins, or on record, from where it is
// answered.
func (s *Switch) once(ctx context.Context, v *Visit, started time.Time, take func() (Result, error)) (result Result, err error) {
	if !s.lead(ctx, v) {
		return Result{}, nil
	}
	if v.follows {
		return s.beside(ctx, v, started), nil
	}
	defer func() { result = s.conclude(v, result) }()
	if answered, before := s.before(ctx, v, started); before {
		return answered, nil
	}
	return take()
}

// take takes an advice that is new.
func (s *Switch) take(ctx context.Context, v *Visit, started time.Time) (Result, error) {
	answers := v.Upstream.Codec.Dialect().Answers

	// What it completes, if it names that: the processor knows the original by the numbers that we gave it, and no other processor does.
	original, completes, err := s.completed(ctx, v)
	if err != nil {
		return s.refuse(v, refusedJournal, "", err, started), nil
	}

	// Admit, after what it waits for, and route.
	leave, reason := s.enter()
	if leave == nil {
		return s.refuse(v, reason, answers.Busy, nil, started), nil
	}
	defer leave()
	pan, err := v.Message.Card()
	if err != nil {
		return s.refuse(v, refusedFormat, answers.FormatError, err, started), nil
	}
	endpoint := s.route(v.Upstream.Name, v.Message, pan)
	if endpoint == nil {
		return s.refuse(v, refusedRoute, answers.NoRoute, nil, started), nil
	}

	a := acceptance{endpoint: endpoint, pan: pan, started: started}
	if e := s.endpoint(original.Endpoint); completes && e != nil && original.MaskedPAN == pan.Mask() {
		said, _ := messages.NewPassage(v.Upstream.Codec, e.Codec).Carry(v.Message, started) // the record has the processor's words
		defer said.Clear()
		if said.Get(messages.Currency) == original.Original.Get(messages.Currency) {
			a.endpoint, a.original = e, &original.Original
		}
	}
	return s.accept(ctx, v, a)
}

// completed finds the original that an advice names in DE 90. One that is in flight is waited for.
func (s *Switch) completed(ctx context.Context, v *Visit) (journal.Found, bool, error) {
	if !v.Upstream.Codec.HasOriginal(v.Message) {
		return journal.Found{}, false, nil
	}
	for _, name := range v.Upstream.Codec.OriginalIdentities(v.Message) {
		if name != v.Key && !s.settled(ctx, v.Upstream.Name, []string{name}) {
			return journal.Found{}, false, ctx.Err()
		}
		found, known, err := s.journal.Find(ctx, v.Upstream.Name, name)
		if err != nil || known && found.Endpoint != "" {
			return found, known, err
		}
	}
	return journal.Found{}, false, nil
}

// An acceptance is what is known of an advice when it is recorded.
type acceptance struct {
	endpoint *Endpoint
	pan      card.PAN
	original *messages.Original // what an advice completes, as the processor knows it; nil if that is not known
	started  time.Time
}

// accept numbers, protects and records an advice, or a reversal that is forwarded as it came, and answers it.
func (s *Switch) accept(ctx context.Context, v *Visit, a acceptance) (Result, error) {
	dialect := v.Upstream.Codec.Dialect()
	refuse := func(reason refusal, code string, cause error) (Result, error) {
		return s.refuse(v, reason, code, cause, a.started), nil
	}

	// Number.
	numbers, err := s.journal.Next(ctx, a.endpoint.Name, a.started)
	if err != nil {
		return refuse(refusedJournal, dialect.Answers.Malfunction, err)
	}
	asked := v.Message
	if a.original != nil { // it is named by the numbers that the processor knows
		asked = asked.Clone()
		defer asked.Clear()
		asked.Delete(v.Upstream.Codec.OriginalElement())
	}
	msg, err := messages.NewPassage(v.Upstream.Codec, a.endpoint.Codec).ForProcessor(asked, numbers, a.started)
	if err != nil {
		return refuse(refusedFormat, dialect.Answers.FormatError, err)
	}
	defer msg.Clear()
	if a.original != nil {
		a.endpoint.Codec.Name(msg, *a.original)
	}

	// What is sensitive is sealed, if the upstream's dialect allows it to be stored; tracks and PIN block never go on. What is left must fit
	// the processor's dialect: later nobody could be told that it does not.
	rest, err := msg.Rest(dialect.Advices.Stored)
	defer clear(rest)
	if err != nil {
		return refuse(refusedFormat, dialect.Answers.FormatError, err)
	}
	if err := a.endpoint.fits(msg.Original(), a.pan, rest); err != nil {
		return refuse(refusedFormat, refusalOf(err, dialect.Answers), err)
	}
	protected, err := s.vault.Protect(ctx, hsm.Card{PAN: a.pan})
	if err != nil {
		return refuse(refusedHSM, dialect.Answers.Malfunction, err)
	}
	var sealed card.SealedRest
	if len(rest) > 0 {
		if sealed, err = s.vault.SealRest(ctx, rest); err != nil {
			return refuse(refusedHSM, dialect.Answers.Malfunction, err)
		}
	}

	// Record: the advice, its answer and the debt. After this line it is ours, whatever becomes of the answer.
	answer := messages.NewAnswer(v.Message, acceptedCode(v))
	id, err := s.journal.Accept(ctx, journal.Intent{
		Upstream: v.Upstream.Name, UpstreamKey: v.Key,
		UpstreamSTAN: v.Message.Get(messages.STAN), UpstreamRRN: v.Message.Get(messages.RRN),
		Endpoint: a.endpoint.Name, Original: msg.Original(),
		PAN: protected.Sealed, Token: protected.Token, Rest: sealed, MaskedPAN: a.pan.Mask(), At: a.started,
	}, answer.Reply(v.Message))
	switch {
	case errors.Is(err, journal.ErrDuplicate):
		return refuse(refusedDuplicate, "", nil) // somebody else has recorded it at this moment: its repeat will find that
	case errors.Is(err, journal.ErrFailed), errors.Is(err, journal.ErrClosed):
		return Result{}, fmt.Errorf("recording advice: %w", err) // it may be on record: no answer
	case err != nil:
		return refuse(refusedJournal, dialect.Answers.Malfunction, err)
	}
	s.forwarder.Wake()
	s.report(line{Request: v.Request, id: id, endpoint: a.endpoint.Name, numbers: numbers, outcome: journal.Outcome{Kind: journal.Accepted},
		answer: answer, link: -1, started: a.started})
	return Result{Answer: answer, Outcome: journal.Accepted}, nil
}

// acceptedCode is what says that an advice, or a reversal, is taken.
func acceptedCode(v *Visit) string {
	dialect := v.Upstream.Codec.Dialect()
	if v.Message.MTI.Class() == messages.Reversal {
		return dialect.Reversal.Acknowledged[0]
	}
	return dialect.Answers.Accepted
}

// fits reports what of an advice has no room in the endpoint's dialect, or breaks its rules.
func (e *Endpoint) fits(plain messages.Original, pan card.PAN, rest []byte) error {
	advice, err := e.Codec.NewAdvice(plain, pan, rest)
	if err != nil {
		return err
	}
	defer advice.Clear()
	if err := e.Codec.Validate(advice); err != nil {
		return err
	}
	body, err := e.Codec.Encode(advice)
	clear(body)
	return err
}
