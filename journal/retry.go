package journal

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// Retry records that a Ticket's request was declined for nothing that the transaction is, and that the processor is about to be asked once more,
// by a new request with numbers of its own: both in one record, so that there is no moment at which the one is on record and the other is not,
// or at which neither, or both, can be found by the upstream's key. It returns the Ticket of the new one.
//
// The key goes over to the new transaction: the upstream asks for one thing, and knows of one answer, which is the new one's. The declined one
// stays on record without it, as what it was: a request that the processor has seen and has declined. Nothing is owed for it, unless an approval of
// it has been heard before. What comes of the new one is Finish's, or after a crash recovery's: then it is Unknown, and the reversal names its
// numbers and not those of the declined one.
//
// It takes the first Ticket, and like Finish does not end before both are durable or the journal has failed, whatever becomes of ctx. An error
// that wraps neither ErrFailed nor ErrClosed is of an intent that cannot be recorded: nothing was written, and the Ticket is not finished.
//
// It panics for an outcome other than Declined, and for one that tells the upstream something.
func (j *Journal) Retry(_ context.Context, t *Ticket, declined Outcome, in Intent) (*Ticket, error) {
	if declined.Kind != Declined || !declined.Answer.IsZero() {
		panic("journal: asking again for what was not declined, or was answered: " + t.String())
	}
	t.refuseOutcome(declined)
	next, err := newIntentRecord(in)
	if err == nil && (next.ticket.stan == t.stan || in.Endpoint != t.endpoint) {
		err = errors.New("it is to have a STAN of its own, at the same endpoint")
	}
	if err != nil {
		return nil, fmt.Errorf("recording that %s is asked for again: %w", t, err)
	}
	t.finish()
	r := &retryRecord{outcomeRecord: &outcomeRecord{call: newCall(), Outcome: declined, ticket: t}, next: next}
	next.begun = fmt.Sprintf("%s%d", retryOf, t.id)
	if err := j.record(r, true); err != nil {
		return nil, fmt.Errorf("recording that %s is asked for again: %w", t, err)
	}
	return next.ticket, nil
}

// retryOf begins the detail of the first event of a transaction that asks again for another one, whose ID it ends with.
const retryOf = "retry_of_"

// releaseKeySQL takes the upstream's key from what was declined, for the one that asks again.
const releaseKeySQL = `UPDATE transactions SET upstream_key = NULL WHERE id = ? AND outcome = 'declined' RETURNING id`

type retryRecord struct {
	*outcomeRecord
	next *intentRecord
}

func (r *retryRecord) write(w *writer, at time.Time) error {
	if err := r.outcomeRecord.write(w, at); err != nil {
		return err
	}
	row, err := w.releaseKey.one(int64(r.ticket.id))
	if err != nil {
		return err
	}
	if err := r.next.write(w, at); err != nil {
		return err
	}
	if row == nil || r.next.refused != nil { // the key was the first one's, and nobody else's
		return errInvariant
	}
	return nil
}

func (r *retryRecord) done(j *Journal, err error) {
	if err == nil {
		j.standing.open(r.next.ticket)
	}
	r.outcomeRecord.done(j, err)
}
