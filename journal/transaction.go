package journal

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"acquirerd/card"
	"acquirerd/messages"
)

// Begin records what is about to be sent and returns the Ticket that allows it. It waits for its batch as long as ctx does. If ctx ends
// first, nobody holds the Ticket: what is written then is ended as not sent.
//
// An error wrapping ErrDuplicate, ErrBusy or ErrClosed means that nothing was written; one wrapping ctx.Err(), that nothing was, or that
// it says of itself that nothing was sent.
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
	select {
	case err = <-r.reply:
	case <-ctx.Done():
		if r.left.CompareAndSwap(false, true) {
			return nil, fmt.Errorf("recording intent: %w", ctx.Err())
		}
		err = <-r.reply // it was being answered at this moment
	}
	if err != nil {
		return nil, fmt.Errorf("recording intent: %w", err)
	}
	return r.ticket, nil
}

// reasonLeft is why an intent was not sent whose caller did not wait for it.
const reasonLeft = "budget_ended"

type intentRecord struct {
	call
	Intent
	original string // JSON
	ticket   *Ticket
	begun    string      // detail of its first event
	left     atomic.Bool // its caller has left, or it was answered: whoever sets it
}

func newIntentRecord(in Intent) (*intentRecord, error) {
	if err := in.check(); err != nil {
		return nil, err
	}
	original, err := in.Original.MarshalJSON() // without json.Marshal, which would check and copy it
	if err != nil {
		return nil, err
	}
	due, err := parseMoney(in.Original.Get(messages.Amount), in.Original.Get(messages.Currency))
	if err != nil {
		return nil, err
	}
	return &intentRecord{call: newCall(), Intent: in, original: string(original), ticket: &Ticket{
		endpoint: in.Endpoint, stan: in.Original.Get(messages.STAN), token: in.Token, money: due,
	}}, nil
}

const insertTransactionSQL = `INSERT INTO transactions (id, upstream, upstream_key, upstream_stan, upstream_rrn, endpoint, mti, stan,
rrn, transmission_time, acquirer_id, terminal, merchant, amount, currency, masked_pan, pan_token, pan_key_id, pan_nonce,
pan_ciphertext, rest_key_id, rest_nonce, rest_ciphertext, original, begun_at, outcome, reason, answer, finished_at, business_date)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (upstream, upstream_key) WHERE upstream_key IS NOT NULL DO NOTHING RETURNING id`

func (r *intentRecord) write(w *writer, at time.Time) error {
	if !r.At.IsZero() {
		at = r.At
	}
	return r.insert(w, at, ending{})
}

// An ending is the outcome of a transaction that has one from the beginning. The zero ending is none.
type ending struct {
	kind   Kind
	reason string
	answer any // JSON, or nil
}

// insert writes the transaction, or refuses its key.
func (r *intentRecord) insert(w *writer, at time.Time, end ending) error {
	id, o := w.lastTransaction+1, r.Original
	var finishedAt any
	if end.kind != "" {
		finishedAt = at.UnixMicro()
	}
	row, err := w.insertTransaction.one(int64(id), r.Upstream, orNull(r.UpstreamKey), r.UpstreamSTAN, r.UpstreamRRN, r.Endpoint,
		string(o.MTI), r.ticket.stan, o.Get(messages.RRN), o.Get(messages.TransmissionTime), o.Get(messages.AcquirerID),
		o.Get(messages.Terminal), o.Get(messages.Merchant), o.Get(messages.Amount), o.Get(messages.Currency), r.MaskedPAN,
		tokenOrNull(r.Token), orNull(r.PAN.KeyID), bytesOrNull(r.PAN.Nonce), bytesOrNull(r.PAN.Ciphertext), orNull(r.Rest.KeyID),
		bytesOrNull(r.Rest.Nonce), bytesOrNull(r.Rest.Ciphertext), r.original, at.UnixMicro(), orNull(string(end.kind)), orNull(end.reason),
		end.answer, finishedAt, w.days[r.Endpoint].date)
	if err != nil {
		return err
	}
	if row == nil {
		r.refused = ErrDuplicate
		return nil
	}
	w.lastTransaction, r.ticket.id = id, id
	return w.note(id, begunEvent, 0, "begun", r.begun, at)
}

func (r *intentRecord) done(j *Journal, err error) {
	begun := err == nil && r.refused == nil
	if begun {
		j.standing.open(r.ticket)
	}
	if r.left.CompareAndSwap(false, true) {
		r.answer(err)
		return
	}
	if !begun {
		return
	}
	// Nobody will send it. If the journal is closed or has failed meanwhile, recovery decides.
	r.ticket.finish()
	_ = j.queue.put(&outcomeRecord{call: newCall(), Outcome: Outcome{Kind: NotSent, Reason: reasonLeft}, ticket: r.ticket}, true)
}

// Accept records an advice of an upstream, what the upstream is told, and that it is owed to the processor, in one record. Its errors
// are those of Begin; it waits for its batch whatever becomes of ctx.
func (j *Journal) Accept(ctx context.Context, in Intent, answer messages.Reply) (TransactionID, error) {
	intent, err := newIntentRecord(in)
	if err != nil {
		return 0, fmt.Errorf("recording advice: %w", err)
	}
	r := &adviceRecord{intentRecord: intent}
	if !answer.IsZero() {
		if r.told, err = answer.MarshalJSON(); err != nil {
			return 0, fmt.Errorf("recording advice: %w", err)
		}
	}
	if err := ctx.Err(); err != nil {
		return 0, fmt.Errorf("recording advice: %w", err)
	}
	if err := j.record(r, false); err != nil {
		return 0, fmt.Errorf("recording advice: %w", err)
	}
	return r.ticket.id, nil
}

type adviceRecord struct {
	*intentRecord
	told []byte // JSON, nil if nothing
	debt *Debt
}

func (r *adviceRecord) write(w *writer, at time.Time) error {
	if err := r.insert(w, at, ending{kind: Accepted, answer: orNull(string(r.told))}); err != nil || r.refused != nil {
		return err
	}
	if err := w.note(r.ticket.id, finishedEvent, 0, string(Accepted), "", at); err != nil {
		return err
	}
	var err error
	r.debt, err = w.owe(r.ticket.debt(KindAdvice), owing{event: owedEvent, reason: string(Accepted)}, at)
	return err
}

func (r *adviceRecord) done(j *Journal, err error) {
	if err == nil && r.refused == nil {
		j.owes(r.debt)
	}
	r.answer(err)
}

// A Barred names a request that has not come.
type Barred struct {
	Upstream, UpstreamKey string
	MTI                   messages.MTI
	UpstreamSTAN          string
	MaskedPAN             string
}

// ReasonBarred is why a barred request is not sent: its reversal came first.
const ReasonBarred = "reversed_first"

// Bar records that a request which has not come must not be sent any more, because its reversal was answered: it takes the request's
// key. An error wrapping ErrDuplicate means that it has come meanwhile. It waits for its batch whatever becomes of ctx.
func (j *Journal) Bar(_ context.Context, b Barred) error {
	// The store would refuse the first and the last, and that fails the journal; without a key nothing is barred.
	if b.Upstream == "" || b.UpstreamKey == "" || len(b.MTI) != 4 {
		return errors.New("barring a request: it has no upstream, key or MTI")
	}
	original, err := messages.New(b.MTI).Original().MarshalJSON()
	if err != nil {
		return fmt.Errorf("barring a request: %w", err)
	}
	r := &barRecord{&intentRecord{call: newCall(), original: string(original), ticket: &Ticket{}, Intent: Intent{Upstream: b.Upstream,
		UpstreamKey: b.UpstreamKey, UpstreamSTAN: b.UpstreamSTAN, MaskedPAN: b.MaskedPAN, Original: messages.New(b.MTI).Original()}}}
	if err := j.record(r, true); err != nil {
		return fmt.Errorf("barring a request: %w", err)
	}
	return nil
}

type barRecord struct{ *intentRecord }

func (r *barRecord) write(w *writer, at time.Time) error {
	if err := r.insert(w, at, ending{kind: NotSent, reason: ReasonBarred}); err != nil || r.refused != nil {
		return err
	}
	return w.note(r.ticket.id, finishedEvent, 0, string(NotSent), ReasonBarred, at)
}

func (r *barRecord) done(_ *Journal, err error) { r.answer(err) }

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
	if !out.Answer.IsZero() {
		told, err := out.Answer.MarshalJSON()
		if err != nil {
			return fmt.Errorf("recording outcome of %s: %w", t, err)
		}
		r.told = string(told)
	}
	if err := j.record(r, true); err != nil {
		return fmt.Errorf("recording outcome of %s: %w", t, err)
	}
	return nil
}

type outcomeRecord struct {
	call
	Outcome
	ticket *Ticket
	told   string // JSON, "" if nothing
	debt   *Debt  // what is owed since, nil if nothing
}

const finishTransactionSQL = `UPDATE transactions SET outcome = ?, response_code = ?, authorization_id = ?, approved_amount = ?,
reason = ?, answer = ?, finished_at = ? WHERE id = ? AND outcome IS NULL RETURNING id`

func (r *outcomeRecord) write(w *writer, at time.Time) error {
	t := r.ticket
	row, err := w.finishTransaction.one(string(r.Kind), r.ResponseCode, r.AuthorizationID, r.ApprovedAmount, r.Reason,
		orNull(r.told), at.UnixMicro(), int64(t.id))
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
	approvedEarly := w.approvedEarly[t.id]
	delete(w.approvedEarly, t.id)
	reason := r.Reason
	switch {
	case r.Kind == Unknown:
	case approvedEarly && r.Kind != Approved:
		reason = ReasonHeard
	default:
		return nil
	}
	r.debt, err = w.owe(t.debt(KindReversal), owing{event: owedEvent, reason: reason}, at)
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

// debt is what is owed for a Ticket's transaction.
func (t *Ticket) debt(kind DebtKind) *Debt {
	return &Debt{Transaction: t.id, Kind: kind, Endpoint: t.endpoint, Card: t.token, stan: t.stan, money: t.money}
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
