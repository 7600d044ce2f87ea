package acquirer

import (
	"context"
	"time"

	"acquirerd/messages"
)

// The limits of what is remembered of refusals. A copy of a request that was refused can be on its way only as long as connections last, and
// those end with the process.
const (
	refusalsRemembered = 100_000
	refusalRemembered  = 10 * time.Minute
)

// refusals are the requests that were refused without a record, by their keys. A refusal is an answer, and the upstream believes it: another
// copy of the request, which was sent before that, must not be approved after it. They are lost with the process. Guarded by Switch.mu.
type refusals struct {
	codes map[asking]pastRefusal
	order []datedAsking // each once, as it was entered or was found to have been entered again
}

type pastRefusal struct {
	code string
	at   time.Time
}

type datedAsking struct {
	asking
	at time.Time
}

func newRefusals() refusals { return refusals{codes: map[asking]pastRefusal{}} }

// enter remembers a refusal, and forgets what is old or too much. One that is entered again takes no second place.
func (r *refusals) enter(key asking, code string, now time.Time) {
	_, known := r.codes[key]
	r.codes[key] = pastRefusal{code, now}
	if !known {
		r.order = append(r.order, datedAsking{key, now})
	}
	for len(r.order) > refusalsRemembered || now.Sub(r.order[0].at) >= refusalRemembered {
		oldest := r.order[0]
		r.order = r.order[1:]
		switch last, is := r.codes[oldest.asking]; {
		case is && last.at.After(oldest.at):
			r.order = append(r.order, datedAsking{oldest.asking, last.at})
		case is:
			delete(r.codes, oldest.asking)
		}
	}
}

// code is how a request was refused, "" if it was not.
func (r *refusals) code(key asking, now time.Time) string {
	if known, is := r.codes[key]; is && now.Sub(known.at) < refusalRemembered {
		return known.code
	}
	return ""
}

// remember remembers the refusal of a request. An advice is not refused for good: its upstream sends it until it is taken.
func (s *Switch) remember(req Request, code string) {
	if req.Key == "" || code == "" || req.Message.MTI.IsAdvice() {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.refused.enter(asking{req.Upstream.Name, req.Key}, code, time.Now())
}

// refusedBefore is how a request was refused before, "" if it was not.
func (s *Switch) refusedBefore(req Request) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.refused.code(asking{req.Upstream.Name, req.Key}, time.Now())
}

// TurnAway refuses a message for which its door has no room. It returns nil if that must not be answered: the message repeats one that is in
// flight or on record, or that cannot be looked for, and a refusal would be believed of what may have been approved.
func (s *Switch) TurnAway(ctx context.Context, req Request) *messages.Message {
	code := req.Upstream.Codec.Dialect().Answers.Busy
	if req.Key == "" {
		return messages.NewAnswer(req.Message, code)
	}
	if refusal, decided := s.turnAway(req, code); decided {
		return refusal
	}
	_, known, err := s.journal.Find(ctx, req.Upstream.Name, req.Key)
	if known {
		s.mu.Lock()
		delete(s.refused.codes, asking{req.Upstream.Name, req.Key})
		s.mu.Unlock()
	}
	if known || err != nil {
		return nil
	}
	return messages.NewAnswer(req.Message, code)
}

// Known reports whether a message repeats one that is in flight or on record, or cannot be looked for: a refusal of it would be believed of what
// may have been approved. It leaves no trace of the message, which may be anybody's.
func (s *Switch) Known(ctx context.Context, req Request) bool {
	if req.Key == "" {
		return false
	}
	s.mu.Lock()
	inFlight := s.matters[asking{req.Upstream.Name, req.Key}] != nil
	s.mu.Unlock()
	if inFlight {
		return true
	}
	_, known, err := s.journal.Find(ctx, req.Upstream.Name, req.Key)
	return known || err != nil
}

// turnAway decides by memory, and remembers the refusal before the record is asked: a copy that is admitted from then on is refused, too.
func (s *Switch) turnAway(req Request, code string) (refusal *messages.Message, decided bool) {
	key := asking{req.Upstream.Name, req.Key}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.matters[key] != nil {
		return nil, true
	}
	if before := s.refused.code(key, time.Now()); before != "" {
		return messages.NewAnswer(req.Message, before), true
	}
	if !req.Message.MTI.IsAdvice() {
		s.refused.enter(key, code, time.Now())
	}
	return nil, false
}
