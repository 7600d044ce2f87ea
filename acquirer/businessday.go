package acquirer

import (
	"context"
	"errors"
	"time"

	"acquirerd/journal"
	"acquirerd/messages"
)

// heardDay begins an endpoint's next business day if an approval is the first to bear it in DE 15. That is how processors tell of it whose
// dialects have no cutover. Every other answer costs a comparison in memory: one of yesterday's that comes late is of an earlier day, and one
// that repeats the request's DE 15 tells only what the upstream has said. It is durable when it returns, and nothing of it touches the
// transaction, which is of the day when it was recorded.
func (s *Switch) heardDay(ctx context.Context, e *Endpoint, request, answer *messages.Message, outcome journal.Outcome) {
	if outcome.Kind != journal.Approved || answer == nil || e.Codec.Dialect().NetworkManagement.Demanded().Cutover != "" {
		return
	}
	day := answer.Get(messages.SettlementDate)
	if day == "" || day == request.Get(messages.SettlementDate) || !s.journal.Opens(e.Name, day) {
		return
	}
	select {
	case e.demands.opening <- struct{}{}:
		defer func() { <-e.demands.opening }()
	default:
		return // another answer begins it
	}
	if !e.demands.tries(day) || !s.journal.Opens(e.Name, day) {
		return
	}
	advanced, err := s.journal.Advance(context.WithoutCancel(ctx), journal.Cutover{Endpoint: e.Name, Day: day})
	about := []any{"kind", "answer", "endpoint", e.Name, "from", advanced.From, "to", advanced.To}
	switch {
	case errors.Is(err, journal.ErrBusinessDate):
		e.demands.refuse(day)
		s.alarm(e, alarmCutover, append(about, "error", err)...)
	case err != nil: // full or failed: the next answer tries again, or finds the process stopping
		s.sometimes.Do(func() { s.log.Warn("business day not begun", append(about, "error", err)...) })
	default:
		s.log.Info("business day begun by an answer", about...)
	}
}

// A refusedDay is the last one that could not be an endpoint's next: answers that bear it, all of them perhaps, do not ask the journal each
// time. A day that is too far ahead comes nearer.
type refusedDay struct {
	day string
	at  time.Time
}

func (d *demands) refuse(day string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.absurd = refusedDay{day, time.Now()}
}

// tries reports whether a day is to be tried, now.
func (d *demands) tries(day string) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.absurd.day != day || time.Since(d.absurd.at) >= alarmInterval
}
