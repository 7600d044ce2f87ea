package acquirer

import (
	"sync"
	"time"

	"acquirerd/journal"
)

// absences are the runs of answers of one processor that say nothing but "the original is not there", one for each reversal. Such an
// answer proves little by itself: the original may wait in the processor's queue, above all after an outage, or be on its way. It is
// believed when it was the only one for a time in which the processor was at work.
//
// Nothing of it is recorded: a start begins each run again, which is the safe side. Times are on the monotonic clock.
type absences struct {
	final time.Duration // how long a run must last

	mu       sync.Mutex
	since    map[journal.OwedID]time.Time // the first answer of each run
	working  time.Time                    // since when the processor has answered reversals without an interruption
	answered time.Time                    // when it last answered one; zero after an interruption
}

func newAbsences(final time.Duration) *absences {
	return &absences{final: final, since: map[journal.OwedID]time.Time{}}
}

// longestPause is how long the processor may answer no reversal and still count as working. nextAttempt is how soon a reversal in a run
// is sent again, so that it is heard before that.
func (a *absences) longestPause() time.Duration { return a.final / 3 }
func (a *absences) nextAttempt() time.Duration  { return a.final / 4 }

// note takes the outcome of an attempt, and returns for how long the original has been absent.
func (a *absences) note(id journal.OwedID, answered, absent bool) time.Duration {
	a.mu.Lock()
	defer a.mu.Unlock()
	now := time.Now()
	if answered {
		if a.answered.IsZero() || now.Sub(a.answered) > a.longestPause() {
			a.working = now
		}
		a.answered = now
	}
	if !absent {
		delete(a.since, id)
		return 0
	}
	since, begun := a.since[id]
	if !begun {
		since = now
		a.since[id] = now
	}
	if since.Before(a.working) {
		since = a.working
	}
	return now.Sub(since)
}

// forget ends the run of a reversal that is not owed any more.
func (a *absences) forget(id journal.OwedID) {
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.since, id)
}

// interrupt says that the processor cannot be reached.
func (a *absences) interrupt() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.answered = time.Time{}
}
