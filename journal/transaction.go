package journal

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"time"

	"acquirerd/card"
	"acquirerd/messages"
)

// Begin records what is about to be sent and returns the Ticket that allows it. It waits for its batch even if ctx ends
// meanwhile, because a Ticket that nobody holds would be an intent without an end.
//
// An error wrapping ErrDuplicate, ErrBusy, ErrClosed or ctx.Err() means that nothing was written.
func (j *Journal) Begin(ctx context.Context, in Intent) (*Ticket, error) {
	r, err := newIntentRecord(in)
	if err != nil {
		return nil, fmt.Errorf("recording intent: %w", err)
	}
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("recording intent: %w", err)
	}
	if err := j.queue.put(r, false); err != nil {
		return nil, fmt.Errorf("recording intent: %w", err)
	}
	if err := <-r.reply; err != nil {
		return nil, fmt.Errorf("recording intent: %w", err)
	}
	return r.ticket, nil
}

type intentRecord struct {
	call
	Intent
	original string // JSON
	ticket   *Ticket
}

func newIntentRecord(in Intent) (*intentRecord, error) {
	if err := in.check(); err != nil {
		return nil, err
	}
	original, err := in.Original.MarshalJSON() // without json.Marshal, which would check and copy it
	if err != nil {
		return nil, err
	}
	// encoding/json replaces bytes that are not UTF-8. A reversal that repeats other bytes than its request would not match.
	if bytes.Contains(original, []byte(`\ufffd`)) {
		return nil, errors.New("intent whose message is not UTF-8")
	}
	due, err := parseMoney(in.Original.Get(messages.Amount), in.Original.Get(messages.Currency))
	if err != nil {
		return nil, err
	}
	return &intentRecord{call: newCall(), Intent: in, original: string(original), ticket: &Ticket{
		endpoint: in.Endpoint, stan: in.Original.Get(messages.STAN), money: due,
	}}, nil
}

const insertTransactionSQL = `INSERT INTO transactions (id, upstream, upstream_key, upstream_stan, upstream_rrn, endpoint, mti, stan,
rrn, transmission_time, acquirer_id, terminal, merchant, amount, currency, masked_pan, pan_token, pan_key_id, pan_nonce,
pan_ciphertext, original, begun_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (upstream, upstream_key) WHERE upstream_key IS NOT NULL DO NOTHING RETURNING id`

func (r *intentRecord) write(w *writer, at time.Time) error {
	if !r.At.IsZero() {
		at = r.At
	}
	id, o := w.lastTransaction+1, r.Original
	row, err := w.insertTransaction.one(int64(id), r.Upstream, orNull(r.UpstreamKey), r.UpstreamSTAN, r.UpstreamRRN, r.Endpoint,
		string(o.MTI), r.ticket.stan, o.Get(messages.RRN), o.Get(messages.TransmissionTime), o.Get(messages.AcquirerID),
		o.Get(messages.Terminal), o.Get(messages.Merchant), o.Get(messages.Amount), o.Get(messages.Currency), r.MaskedPAN,
		tokenOrNull(r.Token), orNull(r.PAN.KeyID), bytesOrNull(r.PAN.Nonce), bytesOrNull(r.PAN.Ciphertext), r.original,
		at.UnixMicro())
	if err != nil {
		return err
	}
	if row == nil {
		r.refused = ErrDuplicate
		return nil
	}
	w.lastTransaction, r.ticket.id = id, id
	return w.note(id, begunEvent, 0, "begun", "", at)
}

func (r *intentRecord) done(j *Journal, err error) {
	if err == nil && r.refused == nil {
		j.standing.open(r.ticket)
	}
	r.answer(err)
}

// Finish records what came of a Ticket's request; for Unknown, in the same record, that a reversal is owed, due at once. It
// takes the Ticket, and does not end before the outcome is durable or the journal has failed, whatever becomes of ctx: the
// error then wraps ErrFailed or ErrClosed, the process must stop, and recovery decides.
//
// It panics for a Ticket that was finished before, and for an outcome that cannot be: an answer without a send, and anything
// but Unknown for a recovered Ticket.
func (j *Journal) Finish(_ context.Context, t *Ticket, out Outcome) error {
	t.refuseOutcome(out)
	t.finish()
	r := &outcomeRecord{call: newCall(), Outcome: out, ticket: t}
	if err := j.queue.put(r, true); err != nil {
		return fmt.Errorf("recording outcome of %s: %w", t, err)
	}
	if err := <-r.reply; err != nil {
		return fmt.Errorf("recording outcome of %s: %w", t, err)
	}
	return nil
}

type outcomeRecord struct {
	call
	Outcome
	ticket *Ticket
	debt   *debt // what is owed since, nil if nothing
}

const finishTransactionSQL = `UPDATE transactions SET outcome = ?, response_code = ?, authorization_id = ?, approved_amount = ?,
reason = ?, finished_at = ? WHERE id = ? AND outcome IS NULL RETURNING id`

func (r *outcomeRecord) write(w *writer, at time.Time) error {
	t := r.ticket
	row, err := w.finishTransaction.one(string(r.Kind), r.ResponseCode, r.AuthorizationID, r.ApprovedAmount, r.Reason,
		at.UnixMicro(), int64(t.id))
	if err != nil {
		return err
	}
	if row == nil {
		return errInvariant
	}
	detail := r.ResponseCode
	if detail == "" {
		detail = r.Reason
	}
	if err := w.note(t.id, finishedEvent, 0, string(r.Kind), detail, at); err != nil {
		return err
	}
	if r.Kind != Unknown {
		return nil
	}
	r.debt, err = w.owe(&debt{transaction: t.id, endpoint: t.endpoint, stan: t.stan, money: t.money}, unknownEvent, r.Reason, at)
	if err == nil && r.debt == nil {
		return errInvariant
	}
	return err
}

func (r *outcomeRecord) done(j *Journal, err error) {
	if err == nil {
		j.standing.close(r.ticket)
		j.owes(r.debt)
	}
	r.answer(err)
}

// Unfinished returns a Ticket for each intent that an earlier run left without an outcome, oldest first. They are to be
// finished as Unknown before new work begins. It can be called once: a second Ticket for the same intent must not be.
func (j *Journal) Unfinished(ctx context.Context) ([]*Ticket, error) {
	if !j.recovered.CompareAndSwap(false, true) {
		return nil, errors.New("recovering: unfinished transactions were asked for before")
	}
	tickets, err := j.reader.unfinished(ctx, j.last)
	if err != nil {
		j.recovered.Store(false)
		return nil, fmt.Errorf("recovering: %w", err)
	}
	return tickets, nil
}

// Absent values of columns that may be NULL.

func orNull(s string) any {
	if s == "" {
		return nil
	}
	return s
}

func bytesOrNull(b []byte) any {
	if len(b) == 0 {
		return nil
	}
	return b
}

func tokenOrNull(token card.PANToken) any {
	if token == (card.PANToken{}) {
		return nil
	}
	return token[:]
}
