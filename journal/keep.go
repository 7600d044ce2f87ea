package journal

import (
	"bytes"
	"context"
	"crypto/sha256"
	"database/sql"
	"errors"
	"fmt"
	"strings"
	"time"

	"acquirerd/card"
	"acquirerd/messages"
)

// An AdviceID names an advice of a processor in its journal. IDs ascend, and none is used again.
type AdviceID int64

// An Advising is an advice that a processor has sent of its own accord: something that has happened, which nobody can refuse.
type Advising struct {
	Endpoint     string
	Identity     string // by which the processor would repeat it; must hold no card data
	Original     messages.Original
	PAN          card.SealedPAN // zero if it has no PAN
	Token        card.PANToken  // zero if it has no PAN
	MaskedPAN    string
	Withheld     []messages.Element // that it carried and that are not kept
	ResponseCode string             // what the processor is answered if it is recorded now

	// The transaction that it names, by the numbers under which that went to the processor; "" if it names none.
	STAN, TransmissionTime string
	LocalTime              string // DE 12, of dialects that name originals by it (ISO 8583:1993) and not by DE 7
	Reverses               bool   // it says that what it names is undone
}

// An Advised is what an Advising came to.
type Advised struct {
	ID           AdviceID
	Again        bool          // it was recorded before, and so is all that follows
	ResponseCode string        // what the processor is answered
	Transaction  TransactionID // that it names, 0 if it names none that is on record
	Undoes       bool          // of that an upstream was, or may yet be, told that it is approved
}

// Keep records an advice of a processor, once: one with the same identity and content is its repeat, and changes nothing. It is tied to the
// transaction that it names, unless that is of another card. It is marked as undoing if it reverses what stands as approved, or may come to
// stand so, and no whole reversal of ours does the same: nothing else of the transaction is changed by it.
//
// An error wrapping ErrBusy means that nothing was written. It waits for its batch whatever becomes of ctx.
func (j *Journal) Keep(ctx context.Context, a Advising) (Advised, error) {
	r, err := newKeepingRecord(a)
	if err == nil {
		err = ctx.Err()
	}
	if err == nil {
		err = j.record(r, false)
	}
	if err != nil {
		return Advised{}, fmt.Errorf("recording advice of a processor: %w", err)
	}
	return r.advised, nil
}

type keepingRecord struct {
	call
	Advising
	original string // JSON
	withheld string
	digest   [sha256.Size]byte
	advised  Advised
}

func newKeepingRecord(a Advising) (*keepingRecord, error) {
	switch {
	case a.Endpoint == "":
		return nil, errors.New("it has no endpoint")
	case a.Identity == "":
		return nil, errors.New("it has no identity")
	case len(a.Original.MTI) != 4:
		return nil, errors.New("it has no MTI")
	case a.ResponseCode == "":
		return nil, errors.New("it has no answer")
	case longestDigitRun(a.MaskedPAN) > 6:
		return nil, errors.New("its masked PAN is not masked")
	case (a.PAN.KeyID == "") != (len(a.PAN.Ciphertext) == 0):
		return nil, errors.New("its sealed PAN is incomplete")
	}
	r := &keepingRecord{call: newCall(), Advising: a}
	first := a.Original
	first.MTI = first.MTI.First()
	original, err := first.MarshalJSON() // with its names in order: equal if the content is
	if err != nil {
		return nil, err
	}
	names := make([]string, len(a.Withheld))
	for i, e := range a.Withheld {
		names[i] = e.Name()
	}
	r.original, r.withheld = string(original), strings.Join(names, " ")
	r.digest = sha256.Sum256(append(original, a.Token[:]...)) // JSON has an end, and the token one length
	return r, nil
}

// Of two advices with one identity and other content, neither is the other's repeat: nothing may be lost. After a change of the token's key
// a repeat is recorded once more. The index leads to the one that is equal: a processor that gives all its advices one identity does not have
// the writer, for which everybody waits, read all of them.
const keptBeforeSQL = `SELECT id, response_code, coalesce(transaction_id, 0), undoes FROM processor_advices
WHERE endpoint = ? AND identity = ? AND digest = ?`

const namedSQL = `SELECT t.id, coalesce(t.outcome, ''), t.masked_pan, t.pan_token, coalesce(o.state, ''), coalesce(o.replacement, '') FROM transactions t
LEFT JOIN owed o ON o.transaction_id = t.id AND o.kind = 'reversal' WHERE t.stan = ?1 AND t.endpoint = ?2
AND (?3 = '' OR t.transmission_time = ?3) AND (?4 = '' OR t.original ->> '$.local_time' = ?4) ORDER BY t.id DESC LIMIT 1`

const insertAdviceSQL = `INSERT INTO processor_advices (endpoint, identity, mti, original, masked_pan, pan_token, digest, pan_key_id, pan_nonce,
pan_ciphertext, withheld, response_code, transaction_id, undoes, business_date, at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
RETURNING id`

func (r *keepingRecord) write(w *writer, at time.Time) error {
	before, err := w.keptBefore.one(r.Endpoint, r.Identity, r.digest[:])
	if err != nil {
		return err
	}
	if before != nil {
		var undoes int
		r.advised.Again = true
		err := scanRow(before)(&r.advised.ID, &r.advised.ResponseCode, &r.advised.Transaction, &undoes)
		r.advised.Undoes = undoes == 1
		return err
	}
	r.advised.ResponseCode = r.ResponseCode
	if err := r.tie(w); err != nil {
		return err
	}
	var transaction any
	undoes := int64(0)
	if r.advised.Transaction != 0 {
		transaction = int64(r.advised.Transaction)
	}
	if r.advised.Undoes {
		undoes = 1
	}
	row, err := w.insertAdvice.one(r.Endpoint, r.Identity, string(r.Original.MTI), r.original, r.MaskedPAN, tokenOrNull(r.Token),
		r.digest[:], orNull(r.PAN.KeyID), bytesOrNull(r.PAN.Nonce), bytesOrNull(r.PAN.Ciphertext), r.withheld, r.ResponseCode, transaction, undoes,
		w.days[r.Endpoint].date, at.UnixMicro())
	if err != nil {
		return err
	}
	return scanRow(row)(&r.advised.ID)
}

// tie finds the transaction that is named.
func (r *keepingRecord) tie(w *writer) error {
	if r.STAN == "" || r.TransmissionTime == "" && r.LocalTime == "" {
		return nil
	}
	row, err := w.named.one(r.STAN, r.Endpoint, r.TransmissionTime, r.LocalTime)
	if err != nil || row == nil {
		return err
	}
	var named struct {
		id          TransactionID
		outcome     Kind
		maskedPAN   string
		token       []byte // none of a row whose key was barred
		reversal    State
		replacement string
	}
	if err := scanRow(row)(&named.id, &named.outcome, &named.maskedPAN, &named.token, &named.reversal, &named.replacement); err != nil {
		return err
	}
	if named.maskedPAN != "" && r.MaskedPAN != "" && named.maskedPAN != r.MaskedPAN {
		return nil
	}
	// Many cards have one mask. After a change of the token's key an advice is tied to nothing that is older, and is for a person all the same.
	if named.token != nil && r.Token != (card.PANToken{}) && !bytes.Equal(named.token, r.Token[:]) {
		return nil
	}
	r.advised.Transaction = named.id
	stands := named.outcome == Approved || named.outcome == Accepted || named.outcome == "" // open: its answer may approve
	undone := (named.reversal == StateOwed || named.reversal == StateAcknowledged) && named.replacement == ""
	r.advised.Undoes = r.Reverses && stands && !undone
	return nil
}

func (r *keepingRecord) done(_ *Journal, err error) { r.answer(err) }

// A ProcessorAdvice is an advice of a processor as it was recorded, masked.
type ProcessorAdvice struct {
	ID            AdviceID          `json:"id"`
	Endpoint      string            `json:"endpoint"`
	MTI           messages.MTI      `json:"mti"`
	At            time.Time         `json:"at"`
	TransactionID TransactionID     `json:"transaction_id,omitempty"` // that it names, if that is on record
	Undoes        bool              `json:"undoes_approval"`          // a person must look at it
	MaskedPAN     string            `json:"masked_pan,omitempty"`
	Withheld      string            `json:"withheld,omitempty"` // names of the elements that are not kept, with spaces between
	ResponseCode  string            `json:"response_code"`      // what the processor was answered
	BusinessDate  string            `json:"business_date,omitempty"`
	Original      messages.Original `json:"original"` // as a first sending
	PAN           card.SealedPAN    `json:"-"`
}

// An AdviceFilter chooses advices of processors. Zero fields choose all.
type AdviceFilter struct {
	Endpoint string
	Undoing  bool     // only those that undo what stands as approved
	Before   AdviceID // only older ones: the last ID of the page before
	Limit    int      // 0: 100
}

// ProcessorAdvices returns advices of processors, newest first.
func (r *Reader) ProcessorAdvices(ctx context.Context, f AdviceFilter) ([]ProcessorAdvice, error) {
	where := conditions{}
	where.add("endpoint = ?", f.Endpoint, f.Endpoint != "")
	where.add("undoes = 1", nil, f.Undoing)
	where.add("id < ?", int64(f.Before), f.Before != 0)
	return rows(ctx, r.db, "listing advices of processors", scanProcessorAdvice,
		selectProcessorAdvice+where.String()+" ORDER BY id DESC LIMIT ?", append(where.args, limitOr(f.Limit))...)
}

const selectProcessorAdvice = `SELECT id, endpoint, mti, at, coalesce(transaction_id, 0), undoes, masked_pan, withheld, response_code,
business_date, original, coalesce(pan_key_id, ''), pan_nonce, pan_ciphertext FROM processor_advices`

func scanProcessorAdvice(scan scanner) (ProcessorAdvice, error) {
	var a ProcessorAdvice
	var at int64
	var original string
	if err := scan(&a.ID, &a.Endpoint, &a.MTI, &at, &a.TransactionID, &a.Undoes, &a.MaskedPAN, &a.Withheld, &a.ResponseCode, &a.BusinessDate,
		&original, &a.PAN.KeyID, &a.PAN.Nonce, &a.PAN.Ciphertext); err != nil {
		return ProcessorAdvice{}, err
	}
	a.At = fromMicros(at)
	var err error
	if a.Original, err = readOriginal(original); err != nil {
		return ProcessorAdvice{}, fmt.Errorf("advice %d of a processor: %w", a.ID, err)
	}
	return a, nil
}

// advicesOf puts the advices of processors that name a page's transactions into it.
func advicesOf(ctx context.Context, tx *sql.Tx, places map[TransactionID]*Dossier, first, last int64) error {
	_, err := rows(ctx, tx, "selecting advices of processors", func(scan scanner) (none struct{}, err error) {
		a, err := scanProcessorAdvice(scan)
		if d := places[a.TransactionID]; d != nil {
			d.ProcessorAdvices = append(d.ProcessorAdvices, a)
		}
		return none, err
	}, selectProcessorAdvice+" WHERE transaction_id BETWEEN ? AND ? ORDER BY transaction_id, id", first, last)
	return err
}
