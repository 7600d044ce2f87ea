package journal

import (
	"errors"
	"fmt"
	"sync"
	"time"
)

// A record is something to be written. Its methods are called by the goroutine of Run.
type record interface {
	// write runs in an SQL transaction at the time at. An error fails the journal: refusals (a duplicate) are kept in the
	// record for done, so that the rest of the batch goes on.
	write(w *writer, at time.Time) error
	// done is called once: with nil when the record is durable, or with why the journal is failed or closed.
	done(j *Journal, err error)
}

// A call is a record's caller who waits.
type call struct {
	refused error
	reply   chan error // capacity 1
}

func newCall() call { return call{reply: make(chan error, 1)} }

// replied is where the caller waits.
func (c *call) replied() <-chan error { return c.reply }

// A waited is a record whose caller waits until it is durable.
type waited interface {
	record
	replied() <-chan error
}

// record queues a record and waits for its batch, or for why it was refused. Unless it must be taken, a full queue refuses it.
func (j *Journal) record(r waited, must bool) error {
	if err := j.queue.put(r, must); err != nil {
		return err
	}
	return <-r.replied()
}

// answer releases the caller.
func (c *call) answer(err error) {
	if err == nil {
		err = c.refused
	}
	c.reply <- err
}

// A queue holds the records that wait for the writer. The writer takes all of them at once, so that a record costs its caller
// one short lock and not a channel's hand-over.
type queue struct {
	limit   int
	arrived chan struct{} // capacity 1: something was put since the last take

	mu      sync.Mutex
	waiting []record
	closed  error // why nothing is accepted any more
}

func newQueue(limit int) *queue { return &queue{limit: limit, arrived: make(chan struct{}, 1)} }

// put adds a record. Unless it must be taken, a full queue refuses it.
func (q *queue) put(r record, must bool) error {
	q.mu.Lock()
	if q.closed != nil {
		q.mu.Unlock()
		return q.closed
	}
	if !must && len(q.waiting) >= q.limit {
		q.mu.Unlock()
		return fmt.Errorf("%w: %d records wait", ErrBusy, q.limit)
	}
	q.waiting = append(q.waiting, r)
	q.mu.Unlock()
	select {
	case q.arrived <- struct{}{}:
	default:
	}
	return nil
}

// take removes the oldest records, at most so many.
func (q *queue) take(most int) []record {
	q.mu.Lock()
	defer q.mu.Unlock()
	taken := q.waiting
	if len(taken) <= most {
		q.waiting = nil
		return taken
	}
	q.waiting = append([]record(nil), taken[most:]...)
	return taken[:most:most]
}

// close refuses all that comes from now on, and returns what waits.
func (q *queue) close(why error) []record {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.closed == nil {
		q.closed = why
	}
	waiting := q.waiting
	q.waiting = nil
	return waiting
}

// closeIfEmpty closes the queue unless something waits, and reports whether it did.
func (q *queue) closeIfEmpty(why error) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.waiting) > 0 {
		return false
	}
	q.closed = why
	return true
}

// refusal returns why nothing is accepted, nil if records are.
func (q *queue) refusal() error {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.closed
}

// A writer is the only one that changes the file.
type writer struct {
	conn *connection

	begin, commitWork, rollback                    *statement
	insertTransaction, finishTransaction, approval *statement
	releaseKey                                     *statement
	insertEvent, lastEvent                         *statement
	insertOwed, attemptOwed, settleOwed            *statement
	reversal, reopenOwed, debtOf                   *statement
	answered, suspectOwed, supersedeOwed, reasonOf *statement
	noted                                          *statement
	openDay, keptBefore, named, insertAdvice       *statement
	insertAudit                                    *statement
	reserve                                        *statement
	lastAudit                                      AuditRow // its hash is that of the row before the first if there is none
	lastTransaction                                TransactionID
	lastOwed                                       OwedID
	approvedEarly                                  map[TransactionID]bool // open ones of which an approval was heard
	days                                           map[string]businessDay // the current ones, by endpoint
	// fault is nil outside tests. It is called before and after each commit, and its error is taken for the store's.
	fault func(committed bool) error
}

// newWriter prepares the statements. It owns conn if it returns no error.
func newWriter(conn *connection) (*writer, error) {
	w := &writer{conn: conn, approvedEarly: map[TransactionID]bool{}, days: map[string]businessDay{}}
	for _, s := range []struct {
		statement **statement
		columns   int
		query     string
	}{
		{&w.begin, 0, "BEGIN IMMEDIATE"},
		{&w.commitWork, 0, "COMMIT"},
		{&w.rollback, 0, "ROLLBACK"},
		{&w.insertTransaction, 1, insertTransactionSQL},
		{&w.finishTransaction, 1, finishTransactionSQL},
		{&w.approval, 7, approvalSQL},
		{&w.releaseKey, 1, releaseKeySQL},
		{&w.insertEvent, 1, insertEventSQL},
		{&w.lastEvent, 1, lastEventSQL},
		{&w.insertOwed, 1, insertOwedSQL},
		{&w.attemptOwed, 3, attemptOwedSQL},
		{&w.settleOwed, 1, settleOwedSQL},
		{&w.reversal, 4, reversalSQL},
		{&w.reopenOwed, 1, reopenOwedSQL},
		{&w.debtOf, debtColumns, debtSQL + " WHERE o.id = ?"},
		{&w.answered, 2, answeredSQL},
		{&w.suspectOwed, 1, suspectOwedSQL},
		{&w.supersedeOwed, 1, supersedeOwedSQL},
		{&w.reasonOf, 1, reasonOfSQL},
		{&w.noted, 1, notedSQL},
		{&w.openDay, 1, openDaySQL},
		{&w.keptBefore, 4, keptBeforeSQL},
		{&w.named, 6, namedSQL},
		{&w.insertAdvice, 1, insertAdviceSQL},
		{&w.insertAudit, 1, insertAuditSQL},
		{&w.reserve, 1, reserveSQL},
	} {
		prepared, err := conn.prepare(s.query, s.columns)
		if err != nil {
			return nil, errors.Join(err, w.finalize())
		}
		*s.statement = prepared
	}
	return w, nil
}

// statements returns those that were prepared.
func (w *writer) statements() []*statement {
	return []*statement{w.begin, w.commitWork, w.rollback, w.insertTransaction, w.finishTransaction, w.approval, w.releaseKey, w.insertEvent,
		w.lastEvent, w.insertOwed, w.attemptOwed, w.settleOwed, w.reversal, w.reopenOwed, w.debtOf, w.answered, w.suspectOwed, w.supersedeOwed, w.reasonOf, w.noted,
		w.openDay, w.keptBefore, w.named, w.insertAdvice, w.insertAudit, w.reserve}
}

func (w *writer) finalize() error {
	var err error
	for _, s := range w.statements() {
		if s != nil {
			err = errors.Join(err, s.close())
		}
	}
	return err
}

func (w *writer) close() error { return errors.Join(w.finalize(), w.conn.close()) }

// commit writes a batch in one SQL transaction.
func (w *writer) commit(batch []record, at time.Time) error {
	if err := w.begin.run(); err != nil {
		return fmt.Errorf("beginning batch: %w", err)
	}
	for _, r := range batch {
		if err := r.write(w, at); err != nil {
			return w.abandon(fmt.Errorf("writing record: %w", err))
		}
	}
	if w.fault != nil {
		if err := w.fault(false); err != nil {
			return w.abandon(fmt.Errorf("committing batch: %w", err))
		}
	}
	if err := w.commitWork.run(); err != nil {
		return w.abandon(fmt.Errorf("committing batch: %w", err))
	}
	if w.fault != nil {
		if err := w.fault(true); err != nil {
			return fmt.Errorf("committing batch: %w", err)
		}
	}
	return nil
}

// abandon gives up a batch. The journal has failed whether this works or not: SQLite may have rolled back already.
func (w *writer) abandon(cause error) error {
	_ = w.rollback.run()
	return cause
}

// errInvariant is given when the file is not as the writer left it: somebody else has written.
var errInvariant = errors.New("record is not in the state that it must have")

const insertEventSQL = `INSERT INTO events (transaction_id, number, owed_id, state, at, detail) VALUES (?, ?, ?, ?, ?, ?)
ON CONFLICT DO NOTHING RETURNING number`

const lastEventSQL = `SELECT max(number) FROM events WHERE transaction_id = ?`

// The numbers of a transaction's first events, which are known without asking, unless an answer was heard before its outcome was written.
const (
	begunEvent    = 1
	finishedEvent = 2
	owedEvent     = 3 // that the unknown transaction, or the advice, is owed
	nextEvent     = 0 // the next after the last one
)

// note writes an event. owed is 0 for one of the transaction itself.
func (w *writer) note(id TransactionID, number int64, owed OwedID, state, detail string, at time.Time) error {
	var owedID any
	if owed != 0 {
		owedID = int64(owed)
	}
	if number != nextEvent {
		row, err := w.insertEvent.one(int64(id), number, owedID, state, at.UnixMicro(), detail)
		if err != nil || row != nil {
			return err
		}
	}
	row, err := w.lastEvent.one(int64(id))
	if err != nil {
		return err
	}
	last, _ := row[0].(int64)
	if row, err = w.insertEvent.one(int64(id), last+1, owedID, state, at.UnixMicro(), detail); err == nil && row == nil {
		err = errInvariant
	}
	return err
}
