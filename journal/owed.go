package journal

import (
	"context"
	"database/sql/driver"
	"fmt"
	"time"

	"acquirerd/card"
	"acquirerd/messages"
)

// A State is where something owed stands.
type State string

// The states of something owed.
const (
	StateOwed         State = "owed"
	StateAcknowledged State = "acknowledged" // the processor has answered that it is done
	StateParked       State = "parked"       // needs a human; kept for ever
)

// A DebtKind is what kind of message is owed.
type DebtKind string

// The kinds of what is owed.
const (
	KindReversal DebtKind = "reversal"
	KindAdvice   DebtKind = "advice"
)

// An Owed is a message that a processor must acknowledge.
type Owed struct {
	ID              OwedID            `json:"id"`
	TransactionID   TransactionID     `json:"transaction_id"`
	Kind            DebtKind          `json:"kind"`
	Endpoint        string            `json:"endpoint"`
	Reason          string            `json:"reason"`                       // why it is owed
	Replacement     string            `json:"replacement_amount,omitempty"` // minor units that a partial reversal leaves
	Own             Numbers           `json:"own,omitzero"`                 // of its message, zero if they are its original's
	State           State             `json:"state"`
	BusinessDate    string            `json:"business_date,omitempty"` // of its processor, at Since; "" if none was known
	Attempts        int               `json:"attempts"`                // sends that may have left this host
	Answered        int               `json:"answered"`                // of these, how many had an answer; a crash leaves one without
	DueAt           time.Time         `json:"due_at"`
	Since           time.Time         `json:"since"` // or since it was released
	SettledAt       time.Time         `json:"settled_at,omitzero"`
	LastReason      string            `json:"last_reason,omitempty"`   // of the last attempt that failed, or of the parking
	ResponseCode    string            `json:"response_code,omitempty"` // of the last answer to it
	MaskedPAN       string            `json:"masked_pan"`
	Outcome         Kind              `json:"outcome"`                    // of the transaction
	AuthorizationID string            `json:"authorization_id,omitempty"` // of the transaction's answer
	ApprovedAmount  string            `json:"approved_amount,omitempty"`  // of the transaction's answer, if it differs
	Original        messages.Original `json:"original"`
	PAN             card.SealedPAN    `json:"-"`
	Rest            card.SealedRest   `json:"-"`
	Token           card.PANToken     `json:"-"`
}

// A Reversing is a reversal that is to be owed.
type Reversing struct {
	Transaction TransactionID
	Reason      string // from a closed set
	Replacement string // minor units that a partial reversal leaves, twelve digits; "" for a full one
}

// A Reversal is where the reversal of a transaction stands.
type Reversal struct {
	ID           OwedID // 0: there is none
	State        State
	Replacement  string
	ResponseCode string // of the processor's last answer to it
}

// Owe records that an approved transaction or an advice must be reversed. There is at most one reversal of a transaction: a second call
// changes nothing, and returns the one that there is, but that a full reversal takes the place of a partial one that is settled. It waits
// for its batch whatever becomes of ctx.
//
// An error wrapping ErrNotApproved means that there is no reversal and nothing that one could undo.
func (j *Journal) Owe(_ context.Context, of Reversing) (Reversal, error) {
	if !isReason(of.Reason) || !isReplacement(of.Replacement) {
		panic("journal: reason is not of a closed set, or replacement is not an amount")
	}
	r := &oweRecord{call: newCall(), Reversing: of}
	if err := j.record(r, true); err != nil {
		return Reversal{}, fmt.Errorf("recording reversal owed for transaction %d: %w", of.Transaction, err)
	}
	return r.stands, nil
}

func isReplacement(s string) bool { return s == "" || len(s) == maxAmountDigits && digitsOnly(s) }

type oweRecord struct {
	call
	Reversing
	stands Reversal
	debt   *Debt // nil if it was owed before
	parked *Debt // the parked one that was superseded
}

const approvalSQL = `SELECT outcome, endpoint, stan, amount, currency, coalesce(approved_amount, ''), pan_token FROM transactions WHERE id = ?`

const reversalSQL = `SELECT id, state, replacement, response_code FROM owed WHERE transaction_id = ? AND kind = 'reversal'`

func (r *oweRecord) write(w *writer, at time.Time) error {
	var err error
	if r.stands, err = w.reversalOf(r.Transaction); err != nil {
		return err
	}
	if r.stands.ID != 0 {
		if r.stands.Replacement != "" && r.Replacement == "" && r.stands.State != StateOwed {
			err = r.supersede(w, at)
		}
		return err
	}
	d, outcome, err := w.approved(r.Transaction, r.Replacement)
	if err != nil {
		return err
	}
	if outcome != Approved && outcome != Accepted {
		r.refused = ErrNotApproved
		return nil
	}
	if r.debt, err = w.owe(d, owing{reason: r.Reason, replacement: r.Replacement}, at); err == nil {
		r.stands = Reversal{ID: r.debt.ID, State: StateOwed, Replacement: r.Replacement}
	}
	return err
}

// supersedeOwedSQL makes a partial reversal that was settled a full one, which was never sent.
const supersedeOwedSQL = `UPDATE owed SET replacement = '', reason = ?2, state = 'owed', attempts = 0, answered = 0, stan = '',
transmission_time = '', due_at = ?3, since = ?3, last_reason = '', response_code = '', settled_at = NULL,
business_date = ` + currentDateSQL + ` WHERE id = ?1 RETURNING id`

// currentDateSQL is the business date of a row's endpoint, for what is owed again: to the processor it is of today.
const currentDateSQL = `coalesce((SELECT max(date) FROM business_days WHERE business_days.endpoint = owed.endpoint), '')`

func (r *oweRecord) supersede(w *writer, at time.Time) error {
	if r.stands.State == StateParked {
		var err error
		if r.parked, _, err = w.debt(r.stands.ID); err != nil { // with the numbers that it keeps
			return err
		}
	}
	if _, err := w.supersedeOwed.one(int64(r.stands.ID), ReasonWhole, at.UnixMicro()); err != nil {
		return err
	}
	r.stands = Reversal{ID: r.stands.ID, State: StateOwed}
	var err error
	if r.debt, _, err = w.debt(r.stands.ID); err != nil {
		return err
	}
	return w.note(r.Transaction, nextEvent, r.stands.ID, string(StateOwed), ReasonWhole, at)
}

// ReasonWhole is why a full reversal is owed that takes the place of a partial one. It has numbers of its own, whatever the dialect says: by
// those of the original it would be taken for the part once more.
const ReasonWhole = "whole_after_part"

func (r *oweRecord) done(j *Journal, err error) {
	if err == nil {
		if r.parked != nil {
			j.standing.unpark(r.parked)
		}
		j.owes(r.debt)
	}
	r.answer(err)
}

// reversalOf returns the reversal of a transaction, the zero Reversal if there is none.
func (w *writer) reversalOf(id TransactionID) (Reversal, error) {
	row, err := w.reversal.one(int64(id))
	if err != nil || row == nil {
		return Reversal{}, err
	}
	number, _ := row[0].(int64)
	return Reversal{ID: OwedID(number), State: State(textOf(row[1])), Replacement: textOf(row[2]), ResponseCode: textOf(row[3])}, nil
}

// approved returns what a reversal of a transaction is about, and the transaction's outcome: "" if there is none.
func (w *writer) approved(id TransactionID, replacement string) (*Debt, Kind, error) {
	row, err := w.approval.one(int64(id))
	if err != nil || row == nil {
		return nil, "", err
	}
	d := &Debt{Transaction: id, Kind: KindReversal, Endpoint: textOf(row[1]), stan: textOf(row[2])}
	outcome := Kind(textOf(row[0]))
	token, _ := row[6].([]byte)
	copy(d.Card[:], token)
	d.money, err = atStake(textOf(row[3]), textOf(row[5]), replacement, textOf(row[4]))
	return d, outcome, err
}

func textOf(value driver.Value) string {
	text, _ := value.(string)
	return text
}

const insertOwedSQL = `INSERT INTO owed (id, transaction_id, kind, endpoint, reason, replacement, stan, transmission_time, state, attempts,
answered, due_at, since, last_reason, response_code, business_date) VALUES (?1, ?2, ?3, ?4, ?5, ?6, '', '', 'owed', 0, 0, ?7, ?7, '', '', ?8)
RETURNING id`

// An owing is how something comes to be owed.
type owing struct {
	event       int64 // number of the event, if it is known
	reason      string
	replacement string
}

// owe writes a debt that is due at once, and returns it.
func (w *writer) owe(d *Debt, how owing, at time.Time) (*Debt, error) {
	d.ID, d.Since, d.DueAt = w.lastOwed+1, at, at
	if _, err := w.insertOwed.one(int64(d.ID), int64(d.Transaction), string(d.Kind), d.Endpoint, how.reason, how.replacement,
		at.UnixMicro(), w.days[d.Endpoint].date); err != nil {
		return nil, err
	}
	w.lastOwed = d.ID
	return d, w.note(d.Transaction, how.event, d.ID, string(StateOwed), how.reason, at)
}

// owes takes a debt that is durable now into memory.
func (j *Journal) owes(d *Debt) {
	if d != nil {
		j.standing.incur(d)
	}
}

// Incurred returns what has come to be owed to an endpoint since the last call, and at the first call what was owed when the journal was
// opened. It is for the one who pays it.
func (j *Journal) Incurred(endpoint string) []Debt { return j.standing.incurred(endpoint) }

// Owing returns one thing that is or was owed.
func (j *Journal) Owing(ctx context.Context, id OwedID) (Owed, error) {
	found, err := j.reader.owing(ctx, id)
	if err != nil {
		return Owed{}, fmt.Errorf("reading owed %d: %w", id, err)
	}
	return found, nil
}

// Creditors returns the endpoints to which something is owed, in the order of their names.
func (j *Journal) Creditors(ctx context.Context) ([]string, error) {
	return rows(ctx, j.reader.db, "listing endpoints", func(scan scanner) (name string, err error) {
		err = scan(&name)
		return name, err
	}, "SELECT DISTINCT endpoint FROM owed WHERE state = 'owed' ORDER BY endpoint")
}

// Attempt records that something owed is about to be sent, and returns the Ticket for that. It is durable before a byte goes
// out, so that the next send after a crash is known to be a repeat. The first attempt gives the message numbers of its own, unless they
// are zero; from then on they stay, and are the Ticket's. It waits for its batch even if ctx ends meanwhile.
//
// An error wrapping ErrNotOwed, ErrBusy, ErrClosed or ctx.Err() means that nothing was written.
func (j *Journal) Attempt(ctx context.Context, id OwedID, own Numbers) (*Ticket, error) {
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("recording attempt of owed %d: %w", id, err)
	}
	d := j.standing.attempt(id)
	if d == nil {
		return nil, fmt.Errorf("recording attempt of owed %d: %w", id, ErrNotOwed)
	}
	r := &attemptRecord{call: newCall(), ticket: &Ticket{
		id: d.Transaction, owed: d.ID, endpoint: d.Endpoint, stan: d.stan, token: d.Card, money: d.money, own: own,
	}}
	if err := j.queue.put(r, false); err != nil {
		j.standing.again(id)
		return nil, fmt.Errorf("recording attempt of owed %d: %w", id, err)
	}
	if err := <-r.reply; err != nil {
		return nil, fmt.Errorf("recording attempt of owed %d: %w", id, err)
	}
	return r.ticket, nil
}

type attemptRecord struct {
	call
	ticket *Ticket
}

const attemptOwedSQL = `UPDATE owed SET attempts = attempts + 1, stan = iif(attempts = 0 AND stan = '', ?2, stan),
transmission_time = iif(attempts = 0 AND stan = '', ?3, transmission_time) WHERE id = ?1 AND state = 'owed'
RETURNING attempts, stan, transmission_time`

func (r *attemptRecord) write(w *writer, at time.Time) error {
	row, err := w.attemptOwed.one(int64(r.ticket.owed), r.ticket.own.STAN, r.ticket.own.TransmissionTime)
	if err != nil {
		return err
	}
	if row == nil {
		return errInvariant
	}
	attempts, _ := row[0].(int64)
	r.ticket.attempt, r.ticket.own = int(attempts), Numbers{textOf(row[1]), textOf(row[2])}
	return w.note(r.ticket.id, nextEvent, r.ticket.owed, "attempted", fmt.Sprintf("attempt_%d", attempts), at)
}

func (r *attemptRecord) done(j *Journal, err error) {
	if err == nil {
		j.standing.number(r.ticket.owed, r.ticket.own.STAN)
	}
	r.answer(err)
}

// A Settlement is what came of an attempt. It is made by Acknowledged, Again, Unsent and Parked.
type Settlement struct {
	state  State
	event  string
	code   string
	reason string
	dueAt  time.Time
	unsent bool
	absent bool
}

// State is where the owed item stands after the settlement.
func (s Settlement) State() State { return s.state }

// Event names what happened: acknowledged, again, unsent or parked.
func (s Settlement) Event() string { return s.event }

// ResponseCode is that of the answer, "" without one.
func (s Settlement) ResponseCode() string { return s.code }

// Unsent reports whether the attempt does not count, because no byte left this host.
func (s Settlement) Unsent() bool { return s.unsent }

// DueAt is when it is due again, zero if it is not.
func (s Settlement) DueAt() time.Time {
	if s.state != StateOwed {
		return time.Time{}
	}
	return s.dueAt
}

// Reason is why it is not acknowledged, "" if it is.
func (s Settlement) Reason() string { return s.reason }

// Acknowledged: the processor has answered with a code that ends it.
func Acknowledged(code string) Settlement {
	return Settlement{state: StateAcknowledged, event: string(StateAcknowledged), code: code}
}

// Absent: the processor has said, for long enough, that it does not have the original. That ends a reversal, unless a late approval was heard
// meanwhile: then it is owed as before, and due at that time.
func Absent(code string, again time.Time) Settlement {
	return Settlement{state: StateAcknowledged, event: string(StateAcknowledged), code: code, absent: true, dueAt: again}
}

// Again: it is owed as before, and due at that time. code is that of an answer which asks for a repeat, "" without an answer.
func Again(at time.Time, reason, code string) Settlement {
	return Settlement{state: StateOwed, event: "again", code: code, reason: reason, dueAt: at}
}

// Unsent: proven that no byte left this host. It is due at that time, and the attempt does not count.
func Unsent(at time.Time, reason string) Settlement {
	return Settlement{state: StateOwed, event: "unsent", reason: reason, dueAt: at, unsent: true}
}

// Parked: a human must look at it. code is that of an answer that caused it, "" without one.
func Parked(reason, code string) Settlement {
	return Settlement{state: StateParked, event: string(StateParked), code: code, reason: reason}
}

// Settle records what came of an attempt. It takes the Ticket, and like Finish does not end before that is durable or the
// journal has failed. An attempt whose Ticket was not spent does not count. It panics for a Ticket that was settled before.
func (j *Journal) Settle(_ context.Context, t *Ticket, s Settlement) error {
	switch {
	case t.owed == 0:
		panic("journal: settling what is to be finished: " + t.String())
	case s.state == "":
		panic("journal: settling without a state: " + t.String())
	case s.state == StateAcknowledged && !t.spent.Load():
		panic("journal: acknowledgement of a ticket that was not spent: " + t.String())
	case !isReason(s.reason):
		panic("journal: reason is not of a closed set: " + t.String())
	}
	t.finish()
	s.unsent = s.unsent || !t.spent.Load()
	r := &settlementRecord{call: newCall(), Settlement: s, ticket: t}
	if err := j.record(r, true); err != nil {
		return fmt.Errorf("settling %s: %w", t, err)
	}
	return nil
}

type settlementRecord struct {
	call
	Settlement
	ticket    *Ticket
	refreshes bool // it is owed in spite of its payer
}

const settleOwedSQL = `UPDATE owed SET state = ?, attempts = attempts - ?, answered = answered + ?, due_at = coalesce(?, due_at), last_reason = ?,
response_code = ?, settled_at = ? WHERE id = ? AND state = 'owed' RETURNING id`

func (r *settlementRecord) write(w *writer, at time.Time) error {
	if r.absent {
		heard, err := w.heardOf(r.ticket.owed)
		if err != nil {
			return err
		}
		if heard {
			r.Settlement, r.refreshes = Again(r.dueAt, ReasonHeard, r.code), true
		}
	}
	var dueAt, settledAt any
	if r.state == StateOwed {
		dueAt = r.dueAt.UnixMicro()
	} else {
		settledAt = at.UnixMicro()
	}
	uncounted := int64(0)
	if r.unsent {
		uncounted = 1
	}
	answered := int64(0)
	if r.code != "" && !r.unsent {
		answered = 1
	}
	row, err := w.settleOwed.one(string(r.state), uncounted, answered, dueAt, r.reason, r.code, settledAt, int64(r.ticket.owed))
	if err != nil {
		return err
	}
	if row == nil {
		return errInvariant
	}
	detail := r.code
	if detail == "" {
		detail = r.reason
	}
	return w.note(r.ticket.id, nextEvent, r.ticket.owed, r.event, detail, at)
}

func (r *settlementRecord) done(j *Journal, err error) {
	switch {
	case err != nil: // the journal has failed: memory is not asked again
	case r.state == StateOwed:
		j.standing.again(r.ticket.owed)
		if r.refreshes {
			j.standing.refresh(r.ticket, r.dueAt)
		}
	default:
		j.standing.settle(r.ticket.owed, r.state == StateParked)
		if r.state == StateParked {
			j.metrics.parked.Inc()
		}
	}
	r.answer(err)
}
