package journal

import (
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"reflect"
	"time"
)

// Release makes something that is parked owed again, due at once, as if it were new: the time until it is parked for its age begins
// again. Its attempts stay, so that the next one is marked as a repeat. An error wrapping ErrNotParked
// or ErrReversed means that nothing was written.
func (j *Journal) Release(_ context.Context, id OwedID) error {
	r := &releaseRecord{call: newCall(), id: id, attempted: j.standing.attempted}
	if err := j.record(r, true); err != nil {
		return fmt.Errorf("releasing %d: %w", id, err)
	}
	return nil
}

// reasonOperator is why a person has parked or released something.
const reasonOperator = "operator"

type releaseRecord struct {
	call
	id        OwedID
	attempted func(OwedID) bool
	debt      *Debt
}

func (r *releaseRecord) write(w *writer, at time.Time) error {
	d, state, err := w.debt(r.id)
	if err != nil {
		return err
	}
	if d == nil || state != StateParked {
		r.refused = ErrNotParked
		return nil
	}
	if d.Kind == KindAdvice {
		stands, err := w.reversalOf(d.Transaction)
		if err != nil {
			return err
		}
		reversal, _, err := w.debt(stands.ID)
		if err != nil {
			return err
		}
		if reversal != nil && (reversal.Attempts > 0 || r.attempted(stands.ID)) {
			r.refused = ErrReversed
			return nil
		}
	}
	r.debt, err = w.reopen(r.id, reopening{event: "released", detail: reasonOperator, at: at})
	return err
}

func (r *releaseRecord) done(j *Journal, err error) {
	if err == nil && r.refused == nil {
		j.standing.unpark(r.debt)
		j.owes(r.debt)
	}
	r.answer(err)
}

// Park sets something owed aside for a person. An error wrapping ErrNotOwed means that it is not owed, or being sent at this moment.
func (j *Journal) Park(_ context.Context, id OwedID) error {
	d := j.standing.attempt(id)
	if d == nil {
		return fmt.Errorf("parking %d: %w", id, ErrNotOwed)
	}
	r := &settlementRecord{call: newCall(), Settlement: Parked(reasonOperator, ""), ticket: &Ticket{id: d.Transaction, owed: d.ID}}
	if err := j.record(r, true); err != nil {
		return fmt.Errorf("parking %d: %w", id, err)
	}
	return nil
}

// Prune deletes the transactions that ended before a time and owe nothing, with what belongs to them, the oldest first and at most so
// many, and returns how many. One that an advice of its processor has named since stays. At most so many advices of processors that name
// none go with them. Their keys are forgotten: a repeat would be sent as a new request. What is open, owed or parked stays, and
// so do the newest ones, by which IDs ascend.
func (j *Journal) Prune(_ context.Context, before time.Time, most int) (int, error) {
	r := &pruneRecord{call: newCall(), before: before, most: most}
	if err := j.record(r, false); err != nil {
		return 0, fmt.Errorf("pruning: %w", err)
	}
	return r.pruned, nil
}

type pruneRecord struct {
	call
	before time.Time
	most   int
	pruned int
}

// prunableSQL selects what may go: ?1 is the time. The plus keeps SQLite from searching by the newest ID: it takes one bound, and deleting
// a few out of many it must be theirs.
const prunableSQL = `SELECT t.id FROM transactions t WHERE t.finished_at < ?1 AND +t.id < (SELECT max(id) FROM transactions)
AND t.id <> (SELECT coalesce((SELECT transaction_id FROM owed ORDER BY id DESC LIMIT 1), 0))
AND NOT EXISTS (SELECT 1 FROM owed o WHERE o.transaction_id = t.id AND (o.state <> 'acknowledged' OR o.settled_at >= ?1))
AND NOT EXISTS (SELECT 1 FROM processor_advices a WHERE a.transaction_id = t.id AND a.at >= ?1)`

func (r *pruneRecord) write(w *writer, _ time.Time) (err error) {
	// Prepared each time: it is rare.
	count, err := w.conn.prepare("SELECT count(*), coalesce(max(id), 0) FROM ("+prunableSQL+" ORDER BY t.id LIMIT ?2)", 2)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, count.close()) }()
	row, err := count.one(r.before.UnixMicro(), int64(max(0, r.most))) // to SQLite a negative limit is none
	if err != nil {
		return err
	}
	pruned, _ := row[0].(int64)
	last, _ := row[1].(int64)
	// Rows of owed go before their transactions; without them these stay prunable.
	for _, of := range []string{"events WHERE transaction_id", "processor_advices WHERE transaction_id", "owed WHERE transaction_id", "transactions WHERE id"} {
		if err := r.delete(w, "DELETE FROM "+of+" IN ("+prunableSQL+" AND t.id <= ?2)", last); err != nil {
			return err
		}
	}
	r.pruned = int(pruned)
	const untied = `processor_advices WHERE id IN (SELECT id FROM processor_advices WHERE transaction_id IS NULL AND at < ?1 ORDER BY id LIMIT ?2)`
	return r.delete(w, "DELETE FROM "+untied, int64(max(0, r.most)))
}

// delete runs a query with the time as ?1.
func (r *pruneRecord) delete(w *writer, query string, second int64) (err error) {
	statement, err := w.conn.prepare(query, 0)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, statement.close()) }()
	return statement.run(r.before.UnixMicro(), second)
}

func (r *pruneRecord) done(_ *Journal, err error) { r.answer(err) }

// Vacuum writes the file anew without the room that deleted rows have left. Run must not have been called. The file system needs room for a
// second copy; a crash leaves the file as it was.
func (j *Journal) Vacuum() error {
	if j.started.Load() {
		panic("journal: vacuuming while it runs")
	}
	if err := j.writer.conn.execute("VACUUM; PRAGMA wal_checkpoint(TRUNCATE)"); err != nil {
		return fmt.Errorf("vacuuming journal %s: %w", j.path, err)
	}
	return nil
}

// scanRow reads the writer's rows as database/sql would: the columns that a debt has are integers, texts and blobs.
func scanRow(row []driver.Value) scanner {
	return func(into ...any) error {
		for i, target := range into {
			value := reflect.ValueOf(target).Elem()
			switch column := row[i].(type) {
			case int64:
				value.SetInt(column)
			case string:
				value.SetString(column)
			case []byte:
				value.SetBytes(append([]byte(nil), column...))
			}
		}
		return nil
	}
}
