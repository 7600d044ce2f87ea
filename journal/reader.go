package journal

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"time"

	"acquirerd/messages"
)

// mostReaders bounds the connections that read at the same time.
const mostReaders = 4

// A Reader reads a journal, also beside a daemon that writes it. It cannot change it. Its rows hold no clear PAN.
type Reader struct {
	db      *sql.DB
	station string
	version int       // of the schema
	finding *sql.Stmt // findSQL, once the schema has its columns
}

// OpenReadOnly opens a journal for reading, whoever holds it.
func OpenReadOnly(path string) (*Reader, error) {
	r, err := openReader(path)
	if err != nil {
		return nil, fmt.Errorf("opening journal %s: %s", path, oneLine(err))
	}
	if scripts, err := migrations(); err != nil || r.version < len(scripts) {
		err = errors.Join(err, r.Close())
		old := fmt.Errorf("opening journal %s: schema %d is old: acquirerd serve brings it up to date", path, r.version)
		return nil, errors.Join(old, err)
	}
	return r, nil
}

func openReader(path string) (_ *Reader, err error) {
	if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
		return nil, errors.New("there is none: make one with acquirerd init")
	}
	db, err := openReaders(path, mostReaders)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, db.Close())
		}
	}()
	r := &Reader{db: db}
	if r.version, err = checkIdentity(db, path); err != nil {
		return nil, err
	}
	if err := db.QueryRow("SELECT station FROM journal").Scan(&r.station); err != nil {
		return nil, err
	}
	return r, nil
}

// Close ends reading.
func (r *Reader) Close() error {
	if r.finding != nil {
		return errors.Join(r.finding.Close(), r.db.Close())
	}
	return r.db.Close()
}

// Station is whose journal it is.
func (r *Reader) Station() string { return r.station }

// A Transaction is a request and what came of it, masked.
type Transaction struct {
	ID               TransactionID `json:"id"`
	Upstream         string        `json:"upstream"`
	UpstreamKey      string        `json:"upstream_key,omitempty"`
	UpstreamSTAN     string        `json:"upstream_stan,omitempty"`
	UpstreamRRN      string        `json:"upstream_rrn,omitempty"`
	Endpoint         string        `json:"endpoint"`
	MTI              messages.MTI  `json:"mti"`
	STAN             string        `json:"stan"`
	RRN              string        `json:"rrn"`
	TransmissionTime string        `json:"transmission_time"` // DE 7: MMDDhhmmss, UTC
	AcquirerID       string        `json:"acquirer_id,omitempty"`
	Terminal         string        `json:"terminal,omitempty"`
	Merchant         string        `json:"merchant,omitempty"`
	Amount           string        `json:"amount"`   // minor units
	Currency         string        `json:"currency"` // ISO 4217 number
	MaskedPAN        string        `json:"masked_pan"`
	Outcome          Kind          `json:"outcome,omitempty"` // "": open
	ResponseCode     string        `json:"response_code,omitempty"`
	AuthorizationID  string        `json:"authorization_id,omitempty"`
	ApprovedAmount   string        `json:"approved_amount,omitempty"`
	Reason           string        `json:"reason,omitempty"`
	BegunAt          time.Time     `json:"begun_at"`
	FinishedAt       time.Time     `json:"finished_at,omitzero"`
	Owed             State         `json:"owed,omitempty"`               // of its reversal, "" if none is or was owed
	Replacement      string        `json:"replacement_amount,omitempty"` // what a partial reversal leaves, minor units
	Advice           State         `json:"advice,omitempty"`             // of an advice, "" for a request
	BusinessDate     string        `json:"business_date,omitempty"`      // of the endpoint's processor, YYYY-MM-DD; "" if none was known
}

// StillOpen is a Filter's Outcome for transactions without one.
const StillOpen Kind = "open"

// A Filter chooses transactions. Zero fields choose all.
type Filter struct {
	ID          TransactionID
	Upstream    string
	UpstreamKey string
	Endpoint    string
	Outcome     Kind
	STAN        string
	RRN         string
	Before      TransactionID // only older ones: the last ID of the page before
	Limit       int           // 0: 100
}

// Transactions returns transactions, newest first.
func (j *Journal) Transactions(ctx context.Context, f Filter) ([]Transaction, error) {
	return j.reader.Transactions(ctx, f)
}

// Transactions returns transactions, newest first.
func (r *Reader) Transactions(ctx context.Context, f Filter) ([]Transaction, error) {
	where := conditions{}
	where.add("t.id = ?", int64(f.ID), f.ID != 0)
	where.add("t.upstream = ?", f.Upstream, f.Upstream != "")
	where.add("t.upstream_key = ?", f.UpstreamKey, f.UpstreamKey != "")
	where.add("t.endpoint = ?", f.Endpoint, f.Endpoint != "")
	where.add("t.outcome = ?", string(f.Outcome), f.Outcome != "" && f.Outcome != StillOpen)
	where.add("t.outcome IS NULL", nil, f.Outcome == StillOpen)
	where.add("t.stan = ?", f.STAN, f.STAN != "")
	where.add("t.rrn = ?", f.RRN, f.RRN != "")
	where.add("t.id < ?", int64(f.Before), f.Before != 0)
	return rows(ctx, r.db, "listing transactions", scanTransaction,
		selectTransaction+where.String()+" ORDER BY t.id DESC LIMIT ?", append(where.args, limitOr(f.Limit))...)
}

const selectTransaction = `SELECT t.id, t.upstream, coalesce(t.upstream_key, ''), t.upstream_stan, t.upstream_rrn, t.endpoint, t.mti, t.stan, t.rrn,
t.transmission_time, t.acquirer_id, t.terminal, t.merchant, t.amount, t.currency, t.masked_pan, coalesce(t.outcome, ''),
coalesce(t.response_code, ''), coalesce(t.authorization_id, ''), coalesce(t.approved_amount, ''),
coalesce(t.reason, ''), t.begun_at, t.finished_at, coalesce(o.state, ''), coalesce(o.replacement, ''), coalesce(a.state, ''), t.business_date
FROM transactions t LEFT JOIN owed o ON o.transaction_id = t.id AND o.kind = 'reversal'
LEFT JOIN owed a ON a.transaction_id = t.id AND a.kind = 'advice'`

func scanTransaction(scan scanner) (Transaction, error) {
	var t Transaction
	var begun int64
	var finished sql.NullInt64
	err := scan(&t.ID, &t.Upstream, &t.UpstreamKey, &t.UpstreamSTAN, &t.UpstreamRRN, &t.Endpoint, &t.MTI, &t.STAN, &t.RRN,
		&t.TransmissionTime, &t.AcquirerID, &t.Terminal, &t.Merchant, &t.Amount, &t.Currency, &t.MaskedPAN, &t.Outcome,
		&t.ResponseCode, &t.AuthorizationID, &t.ApprovedAmount, &t.Reason, &begun, &finished, &t.Owed,
		&t.Replacement, &t.Advice, &t.BusinessDate)
	t.BegunAt, t.FinishedAt = fromMicros(begun), fromNullMicros(finished)
	return t, err
}

// An OwedFilter chooses what is or was owed. Zero fields choose all.
type OwedFilter struct {
	TransactionID TransactionID
	Endpoint      string
	State         State
	Before        OwedID // only older ones: the last ID of the page before
	Limit         int    // 0: 100
}

// Owed returns what is or was owed, newest first.
func (j *Journal) Owed(ctx context.Context, f OwedFilter) ([]Owed, error) {
	return j.reader.Owed(ctx, f)
}

// Owed returns what is or was owed, newest first.
func (r *Reader) Owed(ctx context.Context, f OwedFilter) ([]Owed, error) {
	where := conditions{}
	where.add("o.transaction_id = ?", int64(f.TransactionID), f.TransactionID != 0)
	where.add("o.endpoint = ?", f.Endpoint, f.Endpoint != "")
	where.add("o.state = ?", string(f.State), f.State != "")
	where.add("o.id < ?", int64(f.Before), f.Before != 0)
	return rows(ctx, r.db, "listing what is owed", scanOwed,
		selectOwed+where.String()+" ORDER BY o.id DESC LIMIT ?", append(where.args, limitOr(f.Limit))...)
}

// owing returns one row.
func (r *Reader) owing(ctx context.Context, id OwedID) (Owed, error) {
	found, err := rows(ctx, r.db, "selecting", scanOwed, selectOwed+" WHERE o.id = ?", int64(id))
	if err == nil && len(found) == 0 {
		err = errors.New("there is none")
	}
	if err != nil {
		return Owed{}, err
	}
	return found[0], nil
}

const selectOwed = `SELECT o.id, o.transaction_id, o.kind, o.endpoint, o.reason, o.replacement, o.stan, o.transmission_time, o.state,
o.attempts, o.answered, o.due_at, o.since, o.settled_at, o.last_reason, o.response_code, t.masked_pan, coalesce(t.outcome, ''),
coalesce(t.authorization_id, ''), coalesce(t.approved_amount, ''), t.original, coalesce(t.pan_key_id, ''), t.pan_nonce, t.pan_ciphertext,
coalesce(t.rest_key_id, ''), t.rest_nonce, t.rest_ciphertext, t.pan_token, o.business_date
FROM owed o JOIN transactions t ON t.id = o.transaction_id`

func scanOwed(scan scanner) (Owed, error) {
	var o Owed
	var due, since int64
	var settled sql.NullInt64
	var original string
	var token []byte
	if err := scan(&o.ID, &o.TransactionID, &o.Kind, &o.Endpoint, &o.Reason, &o.Replacement, &o.Own.STAN, &o.Own.TransmissionTime, &o.State,
		&o.Attempts, &o.Answered, &due, &since, &settled, &o.LastReason, &o.ResponseCode, &o.MaskedPAN, &o.Outcome, &o.AuthorizationID,
		&o.ApprovedAmount, &original, &o.PAN.KeyID, &o.PAN.Nonce, &o.PAN.Ciphertext, &o.Rest.KeyID, &o.Rest.Nonce, &o.Rest.Ciphertext,
		&token, &o.BusinessDate); err != nil {
		return Owed{}, err
	}
	o.DueAt, o.Since, o.SettledAt = fromMicros(due), fromMicros(since), fromNullMicros(settled)
	copy(o.Token[:], token)
	var err error
	if o.Original, err = readOriginal(original); err != nil {
		return Owed{}, fmt.Errorf("owed %d: %w", o.ID, err)
	}
	return o, nil
}

// readOriginal reads the JSON of a row. Its error quotes nothing of it.
func readOriginal(text string) (messages.Original, error) {
	var o messages.Original
	if err := json.Unmarshal([]byte(text), &o); err != nil {
		return messages.Original{}, errors.New("original message cannot be read")
	}
	return o, nil
}

// An Event is a change of state, and when it was recorded.
type Event struct {
	TransactionID TransactionID `json:"transaction_id"`
	Number        int           `json:"number"` // from 1 for each transaction
	OwedID        OwedID        `json:"owed_id,omitempty"`
	State         string        `json:"state"`
	At            time.Time     `json:"at"`
	Detail        string        `json:"detail,omitempty"`
}

// History returns the changes of a transaction and of what it owes, oldest first.
func (r *Reader) History(ctx context.Context, id TransactionID) ([]Event, error) {
	return rows(ctx, r.db, "listing history", scanEvent, selectEvent+" WHERE transaction_id = ? ORDER BY number", int64(id))
}

const selectEvent = "SELECT transaction_id, number, coalesce(owed_id, 0), state, at, detail FROM events"

func scanEvent(scan scanner) (Event, error) {
	var e Event
	var at int64
	err := scan(&e.TransactionID, &e.Number, &e.OwedID, &e.State, &at, &e.Detail)
	e.At = fromMicros(at)
	return e, err
}

// unfinished returns Tickets for the open intents up to an ID.
func (r *Reader) unfinished(ctx context.Context, last TransactionID) ([]*Ticket, error) {
	return rows(ctx, r.db, "selecting unfinished", func(scan scanner) (*Ticket, error) {
		t := &Ticket{recovered: true}
		var amount, currency string
		var token []byte
		if err := scan(&t.id, &t.endpoint, &t.stan, &token, &amount, &currency); err != nil {
			return nil, err
		}
		copy(t.token[:], token)
		var err error
		t.money, err = parseMoney(amount, currency)
		return t, err
	}, `SELECT id, endpoint, stan, pan_token, amount, currency FROM transactions WHERE outcome IS NULL AND id <= ? ORDER BY id`, int64(last))
}

// lastIDs returns the newest IDs, 0 if there is none.
func (r *Reader) lastIDs(ctx context.Context) (last TransactionID, lastOwed OwedID, err error) {
	err = r.db.QueryRowContext(ctx, `SELECT (SELECT coalesce(max(id), 0) FROM transactions),
		(SELECT coalesce(max(id), 0) FROM owed)`).Scan(&last, &lastOwed)
	return last, lastOwed, err
}

// standing fills memory with what is not at rest.
func (r *Reader) standing(ctx context.Context, s *standing) error {
	open, err := r.unfinished(ctx, 1<<62)
	if err != nil {
		return err
	}
	for _, t := range open {
		s.open(t)
	}
	_, err = rows(ctx, r.db, "loading what is owed", func(scan scanner) (struct{}, error) {
		d, state, err := scanDebt(scan)
		if err != nil {
			return struct{}{}, err
		}
		s.incur(d)
		if state == StateParked {
			s.settle(d.ID, true)
		}
		return struct{}{}, nil
	}, debtSQL+" WHERE o.state = 'owed' UNION ALL "+debtSQL+" WHERE o.state = 'parked' ORDER BY 8, 1") // by since: one that is owed again is younger than its ID
	return err
}

// debtSQL selects what memory keeps of something owed.
const debtSQL = `SELECT o.id, o.transaction_id, o.kind, o.endpoint, o.state, o.attempts, o.due_at, o.since, o.stan, o.replacement, t.stan,
t.pan_token, t.amount, coalesce(t.approved_amount, ''), t.currency FROM owed o JOIN transactions t ON t.id = o.transaction_id`

// debtColumns are those of debtSQL.
const debtColumns = 15

func scanDebt(scan scanner) (*Debt, State, error) {
	d := &Debt{}
	var due, since int64
	var replacement, amount, approved, currency string
	var token []byte
	var state State
	if err := scan(&d.ID, &d.Transaction, &d.Kind, &d.Endpoint, &state, &d.Attempts, &due, &since, &d.own, &replacement, &d.stan, &token,
		&amount, &approved, &currency); err != nil {
		return nil, "", err
	}
	d.DueAt, d.Since = fromMicros(due), fromMicros(since)
	copy(d.Card[:], token)
	var err error
	d.money, err = atStake(amount, approved, replacement, currency)
	return d, state, err
}

// A scanner reads the columns of the present row.
type scanner func(into ...any) error

// A queryer is the pool of readers, or a transaction of one.
type queryer interface {
	QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error)
}

// rows runs a query and reads each row. What wraps its errors.
func rows[T any](ctx context.Context, db queryer, what string, read func(scanner) (T, error), query string, args ...any,
) (_ []T, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("%s: %w", what, err)
		}
	}()
	found, err := db.QueryContext(ctx, query, args...)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, found.Close()) }()
	var all []T
	for found.Next() {
		one, err := read(found.Scan)
		if err != nil {
			return nil, err
		}
		all = append(all, one)
	}
	return all, found.Err()
}

// conditions is a WHERE clause with its arguments.
type conditions struct {
	texts []string
	args  []any
}

// add adds a condition if it is wanted. A nil value has no place in the text.
func (c *conditions) add(text string, value any, wanted bool) {
	if !wanted {
		return
	}
	c.texts = append(c.texts, text)
	if value != nil {
		c.args = append(c.args, value)
	}
}

func (c *conditions) String() string {
	if len(c.texts) == 0 {
		return ""
	}
	return " WHERE " + c.text()
}

// text is the clause without its word.
func (c *conditions) text() string { return strings.Join(c.texts, " AND ") }

func limitOr(limit int) int {
	if limit <= 0 {
		return 100
	}
	return limit
}

func fromMicros(us int64) time.Time { return time.UnixMicro(us).UTC() }

func fromNullMicros(us sql.NullInt64) time.Time {
	if !us.Valid {
		return time.Time{}
	}
	return fromMicros(us.Int64)
}
