package journal

import (
	"context"
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

// An Owed is a message that a processor must acknowledge.
type Owed struct {
	ID              OwedID            `json:"id"`
	TransactionID   TransactionID     `json:"transaction_id"`
	Kind            string            `json:"kind"` // "reversal"
	Endpoint        string            `json:"endpoint"`
	Reason          string            `json:"reason"` // why it is owed
	State           State             `json:"state"`
	Attempts        int               `json:"attempts"` // sends that may have left this host
	Answered        int               `json:"answered"` // of these, how many had an answer; a crash leaves one without
	DueAt           time.Time         `json:"due_at"`
	Since           time.Time         `json:"since"`
	SettledAt       time.Time         `json:"settled_at,omitzero"`
	LastReason      string            `json:"last_reason,omitempty"`   // of the last attempt that failed, or of the parking
	ResponseCode    string            `json:"response_code,omitempty"` // of the last answer to it
	MaskedPAN       string            `json:"masked_pan"`
	AuthorizationID string            `json:"authorization_id,omitempty"` // of the transaction's answer
	ApprovedAmount  string            `json:"approved_amount,omitempty"`  // of the transaction's answer, if it differs
	Original        messages.Original `json:"original"`
	PAN             card.SealedPAN    `json:"-"`
	Token           card.PANToken     `json:"-"`
}

// Owe records that an approved transaction must be reversed, because its answer could not be delivered. A second call for the
// same transaction changes nothing. It waits for its batch whatever becomes of ctx.
//
// An error wrapping ErrNotApproved means that there was no such transaction or that its outcome is another one (an unknown one
// is owed already).
func (j *Journal) Owe(_ context.Context, id TransactionID, reason string) error {
	if !isReason(reason) {
		panic("journal: reason is not of a closed set")
	}
	r := &oweRecord{call: newCall(), id: id, reason: reason}
	if err := j.queue.put(r, true); err != nil {
		return fmt.Errorf("recording reversal owed for transaction %d: %w", id, err)
	}
	if err := <-r.reply; err != nil {
		return fmt.Errorf("recording reversal owed for transaction %d: %w", id, err)
	}
	return nil
}

type oweRecord struct {
	call
	id     TransactionID
	reason string
	debt   *debt // nil if it was owed before
}

const approvalSQL = `SELECT outcome, endpoint, stan, amount, currency, approved_amount FROM transactions WHERE id = ?`

func (r *oweRecord) write(w *writer, at time.Time) error {
	row, err := w.approval.one(int64(r.id))
	if err != nil {
		return err
	}
	if row == nil || row[0] != string(Approved) {
		r.refused = ErrNotApproved
		return nil
	}
	text := make([]string, len(row))
	for i, value := range row {
		text[i], _ = value.(string)
	}
	amount := text[3]
	if text[5] != "" {
		amount = text[5]
	}
	due, err := parseMoney(amount, text[4])
	if err != nil {
		return err
	}
	r.debt, err = w.owe(&debt{transaction: r.id, endpoint: text[1], stan: text[2], money: due}, nextEvent, r.reason, at)
	return err
}

func (r *oweRecord) done(j *Journal, err error) {
	if err == nil {
		j.owes(r.debt)
	}
	r.answer(err)
}

const insertOwedSQL = `INSERT INTO owed (id, transaction_id, kind, endpoint, reason, state, attempts, answered, due_at, since,
last_reason, response_code) VALUES (?1, ?2, 'reversal', ?3, ?4, 'owed', 0, 0, ?5, ?5, '', '')
ON CONFLICT (transaction_id, kind) DO NOTHING RETURNING id`

// owe writes a reversal that is due at once, and returns the debt; nil if it was written before.
func (w *writer) owe(d *debt, event int64, reason string, at time.Time) (*debt, error) {
	d.id, d.since = w.lastOwed+1, at
	row, err := w.insertOwed.one(int64(d.id), int64(d.transaction), d.endpoint, reason, at.UnixMicro())
	if err != nil || row == nil {
		return nil, err
	}
	w.lastOwed = d.id
	return d, w.note(d.transaction, event, d.id, string(StateOwed), reason, at)
}

// owes takes a debt that is durable now into memory.
func (j *Journal) owes(d *debt) {
	if d != nil {
		j.standing.incur(d)
	}
}

// A Turn asks for what is due.
type Turn struct {
	Endpoint string
	Now      time.Time
	Farthest time.Duration // the longest pause between two attempts: what is due later was given its time by a clock that has been set back
	Limit    int
}

// Due returns what is owed to an endpoint and due, the longest due first, without what an attempt is under way for.
// What it returns may be settled a moment later: Attempt then says so.
func (j *Journal) Due(ctx context.Context, turn Turn) ([]Owed, error) {
	before, limit := j.standing.underWay(), turn.Limit
	turn.Limit += len(before)
	owed, err := j.reader.due(ctx, turn)
	if err != nil {
		return nil, fmt.Errorf("reading what is due: %w", err)
	}
	free := owed[:0]
	for _, o := range owed {
		if !before[o.ID] && len(free) < limit {
			free = append(free, o)
		}
	}
	return free, nil
}

// NextDue returns when the next item of an endpoint is due for which no attempt is under way; false if nothing is owed but
// those.
func (j *Journal) NextDue(ctx context.Context, endpoint string) (time.Time, bool, error) {
	underWay := j.standing.underWay()
	ids, times, err := j.reader.nextDue(ctx, endpoint, 1+len(underWay))
	if err != nil {
		return time.Time{}, false, fmt.Errorf("reading what is due: %w", err)
	}
	for i, id := range ids {
		if !underWay[id] {
			return times[i], true, nil
		}
	}
	return time.Time{}, false, nil
}

// Creditors returns the endpoints to which something is owed, in the order of their names.
func (j *Journal) Creditors(ctx context.Context) ([]string, error) {
	return rows(ctx, j.reader.db, "listing endpoints", func(scan scanner) (name string, err error) {
		err = scan(&name)
		return name, err
	}, "SELECT DISTINCT endpoint FROM owed WHERE state = 'owed' ORDER BY endpoint")
}

// Attempt records that something owed is about to be sent, and returns the Ticket for that. It is durable before a byte goes
// out, so that the next send after a crash is known to be a repeat. It waits for its batch even if ctx ends meanwhile.
//
// An error wrapping ErrNotOwed, ErrBusy, ErrClosed or ctx.Err() means that nothing was written.
func (j *Journal) Attempt(ctx context.Context, id OwedID) (*Ticket, error) {
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("recording attempt of owed %d: %w", id, err)
	}
	d := j.standing.attempt(id)
	if d == nil {
		return nil, fmt.Errorf("recording attempt of owed %d: %w", id, ErrNotOwed)
	}
	r := &attemptRecord{call: newCall(), ticket: &Ticket{
		id: d.transaction, owed: d.id, endpoint: d.endpoint, stan: d.stan, money: d.money,
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

const attemptOwedSQL = `UPDATE owed SET attempts = attempts + 1 WHERE id = ? AND state = 'owed' RETURNING attempts`

func (r *attemptRecord) write(w *writer, at time.Time) error {
	row, err := w.attemptOwed.one(int64(r.ticket.owed))
	if err != nil {
		return err
	}
	if row == nil {
		return errInvariant
	}
	attempts, _ := row[0].(int64)
	r.ticket.attempt = int(attempts)
	return w.note(r.ticket.id, nextEvent, r.ticket.owed, "attempted", fmt.Sprintf("attempt_%d", attempts), at)
}

func (r *attemptRecord) done(_ *Journal, err error) { r.answer(err) }

// A Settlement is what came of an attempt. It is made by Acknowledged, Again, Unsent and Parked.
type Settlement struct {
	state  State
	event  string
	code   string
	reason string
	dueAt  time.Time
	unsent bool
}

// State is where the owed item stands after the settlement.
func (s Settlement) State() State { return s.state }

// Event names what happened: acknowledged, again, unsent or parked.
func (s Settlement) Event() string { return s.event }

// ResponseCode is that of the answer, "" without one.
func (s Settlement) ResponseCode() string { return s.code }

// Reason is why it is not acknowledged, "" if it is.
func (s Settlement) Reason() string { return s.reason }

// Acknowledged: the processor has answered with a code that ends it.
func Acknowledged(code string) Settlement {
	return Settlement{state: StateAcknowledged, event: string(StateAcknowledged), code: code}
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
	if err := j.queue.put(r, true); err != nil {
		return fmt.Errorf("settling %s: %w", t, err)
	}
	if err := <-r.reply; err != nil {
		return fmt.Errorf("settling %s: %w", t, err)
	}
	return nil
}

type settlementRecord struct {
	call
	Settlement
	ticket *Ticket
}

const settleOwedSQL = `UPDATE owed SET state = ?, attempts = attempts - ?, answered = answered + ?, due_at = coalesce(?, due_at), last_reason = ?,
response_code = ?, settled_at = ? WHERE id = ? AND state = 'owed' RETURNING id`

func (r *settlementRecord) write(w *writer, at time.Time) error {
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
	default:
		j.standing.settle(r.ticket.owed, r.state == StateParked)
		if r.state == StateParked {
			j.metrics.parked.Inc()
		}
	}
	r.answer(err)
}
