package journal

import (
	"context"
	"fmt"
	"slices"
	"time"
)

// A Hearing is an answer of a processor to a request that has ended.
type Hearing struct {
	Endpoint, STAN   string // of the request
	TransmissionTime string // its DE 7, or
	LocalTime        string // its DE 12, of an answer that has no DE 7 (ISO 8583:1993)
	Second           bool   // it was answered before; else it had been given up
	ResponseCode     string
	Approves         bool

	// NotFound are the codes by which the processor says that it does not have an original. A reversal that ended by one of them did not
	// undo what a late approval tells of.
	NotFound []string
}

// A Heard is what a Hearing came to.
type Heard struct {
	Transaction TransactionID // 0: nobody knows the request
	Outcome     Kind          // "": it is open
	Owed        OwedID        // the reversal that is owed now and was not before, 0 if there is none
}

// Hear records an answer to a request that has ended, and that a reversal is owed if it approves what nobody was told of: an unknown
// transaction whose reversal has ended without being found, or one that was taken for declined or not sent. If the outcome is not written
// yet, Finish writes with it that the reversal is owed. It waits for its batch whatever becomes of ctx.
func (j *Journal) Hear(_ context.Context, h Hearing) (Heard, error) {
	r := &hearingRecord{call: newCall(), Hearing: h}
	if err := j.record(r, true); err != nil {
		return Heard{}, fmt.Errorf("recording a late answer: %w", err)
	}
	return r.heard, nil
}

// The events of late answers.
const (
	eventLate   = "late_answer"
	eventSecond = "second_answer"
)

// ReasonHeard is why a reversal is owed that was not, or not any more: the processor has approved after all.
const ReasonHeard = "late_approval"

type hearingRecord struct {
	call
	Hearing
	heard Heard
	debt  *Debt // nil if nothing is owed by it
}

const answeredSQL = `SELECT id, coalesce(outcome, '') FROM transactions WHERE stan = ?1 AND endpoint = ?2
AND (?3 = '' OR transmission_time = ?3) AND (?4 = '' OR original ->> '$.local_time' = ?4)
ORDER BY id DESC LIMIT 1`

func (r *hearingRecord) write(w *writer, at time.Time) error {
	if r.TransmissionTime == "" && r.LocalTime == "" {
		return nil
	}
	row, err := w.answered.one(r.STAN, r.Endpoint, r.TransmissionTime, r.LocalTime)
	if err != nil || row == nil {
		return err
	}
	number, _ := row[0].(int64)
	r.heard = Heard{Transaction: TransactionID(number), Outcome: Kind(textOf(row[1]))}
	event := eventLate
	if r.Second {
		event = eventSecond
	}
	// A processor that says it again and again does not fill the record.
	said, err := w.noted.one(int64(r.heard.Transaction), event, r.ResponseCode)
	if err != nil {
		return err
	}
	if said == nil {
		if err := w.note(r.heard.Transaction, nextEvent, 0, event, r.ResponseCode, at); err != nil {
			return err
		}
	}
	if !r.Approves {
		return nil
	}
	return r.owe(w, at)
}

// owe writes the reversal of an approval that nobody was told of.
func (r *hearingRecord) owe(w *writer, at time.Time) error {
	stands, err := w.reversalOf(r.heard.Transaction)
	if err != nil {
		return err
	}
	switch {
	case stands.State != StateAcknowledged && stands.ID != 0 && r.heard.Outcome == Unknown:
		_, err = w.suspectOwed.one(int64(stands.ID), ReasonHeard) // from now on "not found" is not its end
		return err
	case stands.ID != 0:
		if stands.State != StateAcknowledged || !slices.Contains(r.NotFound, stands.ResponseCode) {
			return nil
		}
		r.debt, err = w.reopen(stands.ID, reopening{event: string(StateOwed), detail: ReasonHeard, reason: ReasonHeard, at: at})
	case r.heard.Outcome == Declined, r.heard.Outcome == NotSent:
		var d *Debt
		if d, _, err = w.approved(r.heard.Transaction, ""); err == nil {
			r.debt, err = w.owe(d, owing{reason: ReasonHeard}, at)
		}
	case r.heard.Outcome == "":
		w.approvedEarly[r.heard.Transaction] = true // Finish owes it then; after a crash recovery does
		return nil
	default:
		return nil
	}
	if err == nil {
		r.heard.Owed = r.debt.ID
	}
	return err
}

func (r *hearingRecord) done(j *Journal, err error) {
	if err == nil {
		j.owes(r.debt)
	}
	r.answer(err)
}

// suspectOwedSQL says of a reversal of something unknown that there is an original.
const suspectOwedSQL = `UPDATE owed SET reason = ?2 WHERE id = ?1 AND replacement = '' RETURNING id`

const reopenOwedSQL = `UPDATE owed SET state = 'owed', settled_at = NULL, due_at = ?2, since = ?2, reason = iif(?3 = '', reason, ?3),
business_date = ` + currentDateSQL + ` WHERE id = ?1 AND state <> 'owed' RETURNING id`

// A reopening is why something is owed again.
type reopening struct {
	event  string
	detail string // of the event
	reason string // why it is owed now, "" if that is unchanged
	at     time.Time
}

// reopen makes something owed again that was settled, due at once. Its attempts stay: the next one is a repeat.
func (w *writer) reopen(id OwedID, why reopening) (*Debt, error) {
	row, err := w.reopenOwed.one(int64(id), why.at.UnixMicro(), why.reason)
	if err != nil {
		return nil, err
	}
	if row == nil {
		return nil, errInvariant
	}
	d, _, err := w.debt(id)
	if err != nil {
		return nil, err
	}
	return d, w.note(d.Transaction, nextEvent, id, why.event, why.detail, why.at)
}

// debt reads what memory keeps of something owed; nil if there is none.
func (w *writer) debt(id OwedID) (*Debt, State, error) {
	row, err := w.debtOf.one(int64(id))
	if err != nil || row == nil {
		return nil, "", err
	}
	return scanDebt(scanRow(row))
}

// heardOf reports whether a late approval was heard of what is owed.
func (w *writer) heardOf(id OwedID) (bool, error) {
	row, err := w.reasonOf.one(int64(id))
	if err != nil || row == nil {
		return false, err
	}
	return textOf(row[0]) == ReasonHeard, nil
}

const notedSQL = `SELECT 1 FROM events WHERE transaction_id = ? AND state = ? AND detail = ?`

const reasonOfSQL = `SELECT reason FROM owed WHERE id = ?`
