package journal

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"

	"acquirerd/card"
	"acquirerd/messages"
)

// A Found is a transaction as a repeat of it or its reversal finds it.
type Found struct {
	ID              TransactionID
	Endpoint        string
	Outcome         Kind // "": open
	Reason          string
	Original        messages.Original
	PAN             card.SealedPAN
	MaskedPAN       string
	ResponseCode    string
	AuthorizationID string
	ApprovedAmount  string         // "" if it is the amount that was asked for
	Answer          messages.Reply // what the upstream was told, zero if that is not known
	Reversal        Reversal
}

const findSQL = `SELECT t.id, t.endpoint, coalesce(t.outcome, ''), coalesce(t.reason, ''), t.original, coalesce(t.pan_key_id, ''),
t.pan_nonce, t.pan_ciphertext, t.masked_pan, coalesce(t.response_code, ''), coalesce(t.authorization_id, ''), coalesce(t.approved_amount, ''), t.answer, coalesce(o.id, 0), coalesce(o.state, ''), coalesce(o.replacement, ''), coalesce(o.response_code, '')
FROM transactions t LEFT JOIN owed o ON o.transaction_id = t.id AND o.kind = 'reversal' WHERE t.upstream = ? AND t.upstream_key = ?`

// Find returns the transaction that an upstream began with a key; false if there is none.
func (j *Journal) Find(ctx context.Context, upstream, key string) (Found, bool, error) {
	f, err := j.reader.find(ctx, upstream, key)
	if errors.Is(err, sql.ErrNoRows) {
		return Found{}, false, nil
	}
	if err != nil {
		return Found{}, false, fmt.Errorf("looking for a transaction by its key: %w", err)
	}
	return f, true, nil
}

func (r *Reader) find(ctx context.Context, upstream, key string) (Found, error) {
	var f Found
	var original string
	var answer sql.NullString
	// Without a way to cancel it: the driver would begin a goroutine for that, and the query is over in microseconds.
	row := r.finding.QueryRowContext(context.WithoutCancel(ctx), upstream, key)
	if err := row.Scan(&f.ID, &f.Endpoint, &f.Outcome, &f.Reason, &original, &f.PAN.KeyID,
		&f.PAN.Nonce, &f.PAN.Ciphertext, &f.MaskedPAN, &f.ResponseCode, &f.AuthorizationID, &f.ApprovedAmount, &answer, &f.Reversal.ID,
		&f.Reversal.State, &f.Reversal.Replacement, &f.Reversal.ResponseCode); err != nil {
		return Found{}, err
	}
	var err error
	if f.Original, err = readOriginal(original); err == nil && answer.Valid && json.Unmarshal([]byte(answer.String), &f.Answer) != nil {
		err = errors.New("its answer cannot be read")
	}
	return f, err
}
