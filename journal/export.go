package journal

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"
)

// A Dossier is all that the journal can show of a transaction. Its JSON holds no clear PAN, and nothing that is sealed.
type Dossier struct {
	Transaction
	Owed    []Owed  `json:"debts"` // what is or was owed for it, oldest first; "owed" is the state of its reversal
	History []Event `json:"history"`

	ProcessorAdvices []ProcessorAdvice `json:"processor_advices"` // that name it, oldest first
}

// ErrNoTransaction is the error of Dossier for an ID that is not in the journal, or was pruned.
var ErrNoTransaction = errors.New("there is no such transaction")

// Dossier returns one transaction, as it stood at one moment.
func (r *Reader) Dossier(ctx context.Context, id TransactionID) (Dossier, error) {
	var page []Dossier
	err := r.snapshot(ctx, func(tx *sql.Tx) (err error) {
		page, err = dossiers(ctx, tx, "t.id = ?", int64(id))
		return err
	})
	if err == nil && len(page) == 0 {
		err = ErrNoTransaction
	}
	if err != nil {
		return Dossier{}, fmt.Errorf("reading transaction %d: %w", id, err)
	}
	return page[0], nil
}

// exportPage is how many transactions Export holds at a time.
const exportPage = 500

// An Exporting is what Export calls, in this order. A nil one is passed over. Its error ends the export, and is returned as it is.
type Exporting struct {
	Since, Until time.Time // at or after the one and before the other; a zero time is no bound

	Transaction func(Dossier) error         // each that was begun in the time, oldest first
	Advice      func(ProcessorAdvice) error // each of a processor that came in the time and names no transaction
	Audit       func(AuditRow) error        // each audit row of the time
}

// Export reads what happened in a time. All is as it stood when it began, whatever is written meanwhile, and SQLite's log grows until it ends.
func (r *Reader) Export(ctx context.Context, x Exporting) error {
	within := func(id, at string, last int64, unit func(time.Time) int64) conditions {
		where := conditions{}
		where.add(id+" > ?", last, true)
		where.add(at+" >= ?", unit(x.Since), !x.Since.IsZero())
		where.add(at+" < ?", unit(x.Until), !x.Until.IsZero())
		return where
	}
	var failed error // of one of them
	err := r.snapshot(ctx, func(tx *sql.Tx) (err error) {
		failed, err = pages(func(last int64) ([]Dossier, error) {
			where := within("t.id", "t.begun_at", last, time.Time.UnixMicro)
			return dossiers(ctx, tx, where.text(), where.args...)
		}, func(d Dossier) int64 { return int64(d.ID) }, x.Transaction)
		if failed != nil || err != nil {
			return err
		}
		failed, err = pages(func(last int64) ([]ProcessorAdvice, error) {
			where := within("id", "at", last, time.Time.UnixMicro)
			return rows(ctx, tx, "selecting advices of processors", scanProcessorAdvice, selectProcessorAdvice+" WHERE transaction_id IS NULL AND "+
				where.text()+" ORDER BY id LIMIT ?", append(where.args, exportPage)...)
		}, func(a ProcessorAdvice) int64 { return int64(a.ID) }, x.Advice)
		if failed != nil || err != nil {
			return err
		}
		failed, err = pages(func(last int64) ([]AuditRow, error) {
			return auditPage(ctx, tx, within("number", "at", last, time.Time.UnixNano))
		}, func(a AuditRow) int64 { return a.Number }, x.Audit)
		return err
	})
	if failed != nil {
		return failed
	}
	if err != nil {
		return fmt.Errorf("exporting transactions: %w", err)
	}
	return nil
}

// pages reads page after page, each behind the last ID of the one before, and calls each, unless it is nil, with what is on them. failed is its error.
func pages[T any](read func(last int64) ([]T, error), id func(T) int64, each func(T) error) (failed, err error) {
	for last := int64(0); each != nil; {
		page, err := read(last)
		if err != nil {
			return nil, err
		}
		for _, one := range page {
			if failed := each(one); failed != nil {
				return failed, nil
			}
		}
		if len(page) < exportPage {
			return nil, nil
		}
		last = id(page[len(page)-1])
	}
	return nil, nil
}

// snapshot reads in one transaction, which sees nothing of what is written after its first query.
func (r *Reader) snapshot(ctx context.Context, read func(*sql.Tx) error) (err error) {
	tx, err := r.db.BeginTx(ctx, &sql.TxOptions{ReadOnly: true})
	if err != nil {
		return err
	}
	defer func() {
		if ended := tx.Rollback(); !errors.Is(ended, sql.ErrTxDone) { // it has ended with ctx
			err = errors.Join(err, ended)
		}
	}()
	return read(tx)
}

// dossiers returns a page of transactions with what belongs to them, by ID.
func dossiers(ctx context.Context, tx *sql.Tx, where string, args ...any) ([]Dossier, error) {
	found, err := rows(ctx, tx, "selecting transactions", scanTransaction,
		selectTransaction+" WHERE "+where+" ORDER BY t.id LIMIT ?", append(args, exportPage)...)
	if err != nil || len(found) == 0 {
		return nil, err
	}
	page, places := make([]Dossier, len(found)), make(map[TransactionID]*Dossier, len(found))
	for i, transaction := range found {
		page[i] = Dossier{Transaction: transaction, Owed: []Owed{}, History: []Event{}, ProcessorAdvices: []ProcessorAdvice{}} // in JSON [] and not null
		places[transaction.ID] = &page[i]
	}
	first, last := int64(page[0].ID), int64(page[len(page)-1].ID)
	// Between the two there can be others, which where has left out.
	_, err = rows(ctx, tx, "selecting what is owed", func(scan scanner) (none struct{}, err error) {
		o, err := scanOwed(scan)
		if d := places[o.TransactionID]; d != nil {
			d.Owed = append(d.Owed, o)
		}
		return none, err
	}, selectOwed+" WHERE o.transaction_id BETWEEN ? AND ? ORDER BY o.transaction_id, o.id", first, last)
	if err != nil {
		return nil, err
	}
	_, err = rows(ctx, tx, "selecting history", func(scan scanner) (none struct{}, err error) {
		e, err := scanEvent(scan)
		if d := places[e.TransactionID]; d != nil {
			d.History = append(d.History, e)
		}
		return none, err
	}, selectEvent+" WHERE transaction_id BETWEEN ? AND ? ORDER BY transaction_id, number", first, last)
	if err != nil {
		return nil, err
	}
	return page, advicesOf(ctx, tx, places, first, last)
}
