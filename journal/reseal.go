package journal

import (
	"bytes"
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"time"

	"acquirerd/card"
)

// A SealedPart is what of a record the HSM has sealed.
type SealedPart string

// SealedParts lists all of them.
var SealedParts = []SealedPart{TransactionPAN, TransactionRest, AdvicePAN}

// The parts that are sealed.
const (
	TransactionPAN  SealedPart = "transaction PAN"
	TransactionRest SealedPart = "transaction rest" // of an advice of an upstream: what else of it is sensitive
	AdvicePAN       SealedPart = "advice PAN"       // of an advice of a processor
)

// table and columns of a part.
func (p SealedPart) columns() (table, columns string) {
	switch p {
	case TransactionRest:
		return "transactions", "rest"
	case AdvicePAN:
		return "processor_advices", "pan"
	case TransactionPAN:
	}
	return "transactions", "pan"
}

// A Seal is one thing that the HSM has sealed, as it stands in the journal.
type Seal struct {
	Part   SealedPart
	ID     int64          // of the transaction, or of the advice of a processor
	Sealed card.SealedPAN // or a card.SealedRest
}

// sealWindow is how many IDs one query looks at: a read that lasts keeps SQLite from emptying its log.
const sealWindow = 20_000

// SealedUnder counts what is sealed, by the label of the key that opens it. It reads the journal window by window, so that beside a daemon what is
// written meanwhile may be counted or not.
func (r *Reader) SealedUnder(ctx context.Context) (map[string]int64, error) {
	counts := map[string]int64{}
	for _, part := range SealedParts {
		table, column := part.columns()
		query := fmt.Sprintf("SELECT %s_key_id, count(*) FROM %s WHERE id > ? AND id <= ? AND %s_key_id IS NOT NULL GROUP BY 1", column, table, column)
		for after, more := int64(0), true; more; {
			var first, last int64
			var err error
			if first, last, more, err = r.window(ctx, table, after); err != nil {
				return nil, err
			}
			_, err = rows(ctx, r.db, "counting seals", func(scan scanner) (none struct{}, err error) {
				var key string
				var count int64
				err = scan(&key, &count)
				counts[key] += count
				return none, err
			}, query, first, last)
			if err != nil {
				return nil, err
			}
			after = last
		}
	}
	return counts, nil
}

// SealedUnder is Reader.SealedUnder.
func (j *Journal) SealedUnder(ctx context.Context) (map[string]int64, error) {
	return j.reader.SealedUnder(ctx)
}

// window returns the bounds of the next IDs of a table after one, the first bound left out, and whether more may follow.
func (r *Reader) window(ctx context.Context, table string, after int64) (first, last int64, more bool, err error) {
	var next, newest sql.NullInt64
	err = r.db.QueryRowContext(ctx, fmt.Sprintf("SELECT (SELECT min(id) FROM %s WHERE id > ?), (SELECT max(id) FROM %s)", table, table), after).Scan(&next, &newest)
	if err != nil {
		return 0, 0, false, fmt.Errorf("reading seals: %w", err)
	}
	if !next.Valid {
		return after, after, false, nil
	}
	first = next.Int64 - 1
	last = first + sealWindow
	return first, last, last < newest.Int64, nil
}

// SealsElsewhere returns what of a part is sealed under another key than the one given, in the order of IDs behind after, at most so many of the
// next window: it may be none although more follow. The next call takes the ID that it returns.
func (j *Journal) SealsElsewhere(ctx context.Context, key string, part SealedPart, after int64, most int) (seals []Seal, next int64, more bool, err error) {
	table, column := part.columns()
	first, last, more, err := j.reader.window(ctx, table, after)
	if err != nil {
		return nil, 0, false, err
	}
	seals, err = rows(ctx, j.reader.db, "reading seals", func(scan scanner) (Seal, error) {
		s := Seal{Part: part}
		err := scan(&s.ID, &s.Sealed.KeyID, &s.Sealed.Nonce, &s.Sealed.Ciphertext)
		return s, err
	}, fmt.Sprintf("SELECT id, %[1]s_key_id, %[1]s_nonce, %[1]s_ciphertext FROM %[2]s WHERE id > ? AND id <= ? AND %[1]s_key_id <> ? ORDER BY id LIMIT ?", column, table),
		first, last, key, most)
	if err != nil {
		return nil, 0, false, err
	}
	if len(seals) == most {
		return seals, seals[most-1].ID, true, nil
	}
	return seals, last, more, nil
}

// Sealed returns the sealed PAN of a transaction, zero if it has none. Its error is ErrNoTransaction for an ID that is not there.
func (r *Reader) Sealed(ctx context.Context, id TransactionID) (card.SealedPAN, error) {
	found, err := rows(ctx, r.db, "reading sealed PAN", func(scan scanner) (card.SealedPAN, error) {
		var s card.SealedPAN
		err := scan(&s.KeyID, &s.Nonce, &s.Ciphertext)
		return s, err
	}, "SELECT coalesce(pan_key_id, ''), pan_nonce, pan_ciphertext FROM transactions WHERE id = ?", int64(id))
	if err == nil && len(found) == 0 {
		err = ErrNoTransaction
	}
	if err != nil {
		return card.SealedPAN{}, fmt.Errorf("reading transaction %d: %w", id, err)
	}
	return found[0], nil
}

// A Resealing puts another seal of the same content in the place of one.
type Resealing struct {
	Old Seal
	New card.SealedPAN // under another key
}

// mostResealed bounds one call of Reseal: transactions wait for it.
const mostResealed = 1000

// Reseal replaces seals, and returns how many of them. One that is not in the journal any more as Old has it, because it was pruned or resealed
// already, stays as it is. All are durable when it returns nil; a crash leaves all or none of them. An error wrapping ErrBusy means that nothing was
// written.
func (j *Journal) Reseal(ctx context.Context, list []Resealing) (int, error) {
	err := ctx.Err()
	if err == nil && len(list) > mostResealed {
		err = fmt.Errorf("%d at once are more than %d", len(list), mostResealed)
	}
	for i := 0; err == nil && i < len(list); i++ {
		err = list[i].check()
	}
	if err != nil {
		return 0, fmt.Errorf("resealing: %w", err)
	}
	r := &resealRecord{call: newCall(), list: list}
	if err := j.record(r, false); err != nil {
		return 0, fmt.Errorf("resealing: %w", err)
	}
	return r.replaced, nil
}

func (r *Resealing) check() error {
	switch {
	case r.New.KeyID == "" || len(r.New.Nonce) == 0 || len(r.New.Ciphertext) == 0:
		return errors.New("a new seal is incomplete")
	case r.New.KeyID == r.Old.Sealed.KeyID:
		return errors.New("a new seal is under the old key")
	case bytes.Equal(r.New.Ciphertext, r.Old.Sealed.Ciphertext):
		return errors.New("a new seal is the old one")
	}
	return nil
}

type resealRecord struct {
	call
	list     []Resealing
	replaced int
}

func (r *resealRecord) write(w *writer, _ time.Time) (err error) {
	// Prepared each time: it is rare, and a batch of it is large.
	statements := map[SealedPart]*statement{}
	defer func() {
		for _, s := range statements {
			err = errors.Join(err, s.close())
		}
	}()
	for _, one := range r.list {
		replace := statements[one.Old.Part]
		if replace == nil {
			table, column := one.Old.Part.columns()
			query := fmt.Sprintf(`UPDATE %[2]s SET %[1]s_key_id = ?, %[1]s_nonce = ?, %[1]s_ciphertext = ?
WHERE id = ? AND %[1]s_key_id = ? AND %[1]s_nonce = ? AND %[1]s_ciphertext = ? RETURNING id`, column, table)
			if replace, err = w.conn.prepare(query, 1); err != nil {
				return err
			}
			statements[one.Old.Part] = replace
		}
		var row []driver.Value
		old := one.Old.Sealed
		if row, err = replace.one(one.New.KeyID, one.New.Nonce, one.New.Ciphertext, one.Old.ID, old.KeyID, old.Nonce, old.Ciphertext); err != nil {
			return err
		}
		if row != nil {
			r.replaced++
		}
	}
	return nil
}

func (r *resealRecord) done(_ *Journal, err error) { r.answer(err) }
