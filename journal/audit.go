package journal

import (
	"context"
	"crypto/sha256"
	"database/sql"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"acquirerd/card"
)

// An AuditEvent is what was done with a key, or by a person, and has to be on record (PCI DSS 10.2.1, 10.2.2; PCI PIN 21, 26). It holds no card
// data and no key material. Text that is too long is cut, and card numbers in it are masked.
type AuditEvent struct {
	At     time.Time // by the clock of who did it; zero: now
	Who    string    // station of a daemon, or user of the operating system; 128 characters
	What   string    // "load", "use", "change", "import", "reveal" ...; 64
	Key    string    // label; 128
	KCV    string    // 32
	Result string    // "ok", or why not; 256
	Detail string    // 1,024
}

// An AuditRow is an AuditEvent on record.
type AuditRow struct {
	Number int64 // from 1, without a gap
	AuditEvent
	Previous [sha256.Size]byte // hash of the row before
	Hash     [sha256.Size]byte // of this row, Previous included
}

// MarshalJSON writes the hash in hexadecimal digits, so that a copy outside can be compared with the journal.
func (r AuditRow) MarshalJSON() ([]byte, error) {
	return json.Marshal(struct {
		Number int64     `json:"number"`
		At     time.Time `json:"at"`
		Who    string    `json:"who"`
		What   string    `json:"what"`
		Key    string    `json:"key,omitempty"`
		KCV    string    `json:"kcv,omitempty"`
		Result string    `json:"result"`
		Detail string    `json:"detail,omitempty"`
		Hash   string    `json:"hash"`
	}{r.Number, r.At, r.Who, r.What, r.Key, r.KCV, r.Result, r.Detail, hex.EncodeToString(r.Hash[:])})
}

// The longest texts of a row, in characters. The schema says the same.
const (
	mostWho    = 128
	mostWhat   = 64
	mostKey    = 128
	mostKCV    = 32
	mostResult = 256
	mostDetail = 1024
)

// What is hashed begins with its purpose: a hash of one thing is none of another.
const (
	auditOrigin = "acquirerd audit 1"
	auditEntry  = "acquirerd audit row 1"
)

// origin stands for the row before the first: rows of another journal do not fit behind it.
func origin(station string, createdAt int64) [sha256.Size]byte {
	text := append([]byte(auditOrigin), 0)
	text = appendText(text, station)
	return sha256.Sum256(binary.BigEndian.AppendUint64(text, uint64(createdAt))) //nolint:gosec // the same bits
}

// sum is the hash of a row: SHA-256 of the purpose, a zero byte, the hash of the row before, number and time as 8 bytes each, and each text behind
// its length in 4 bytes. Numbers are big-endian. So two rows that differ never hash the same bytes.
func (r *AuditRow) sum() [sha256.Size]byte {
	text := append([]byte(auditEntry), 0)
	text = append(text, r.Previous[:]...)
	text = binary.BigEndian.AppendUint64(text, uint64(r.Number)) //nolint:gosec // the same bits
	text = binary.BigEndian.AppendUint64(text, uint64(r.At.UnixNano()))
	for _, part := range []string{r.Who, r.What, r.Key, r.KCV, r.Result, r.Detail} {
		text = appendText(text, part)
	}
	return sha256.Sum256(text)
}

func appendText(to []byte, text string) []byte {
	return append(binary.BigEndian.AppendUint32(to, uint32(len(text))), text...) //nolint:gosec // a row's texts are short
}

// Audit records an event as the next row of the chain, and returns it when it is durable. It is not refused while transactions wait, nor cut short
// by its context: its callers are few, and each waits for his row, so that a batch has no more of them than there are callers.
func (j *Journal) Audit(_ context.Context, e AuditEvent) (AuditRow, error) {
	if e.Who == "" || e.What == "" {
		return AuditRow{}, errors.New("recording audit event: it does not say who or what")
	}
	r := &auditRecord{call: newCall(), AuditRow: AuditRow{AuditEvent: e.clean()}}
	if err := j.record(r, true); err != nil {
		return AuditRow{}, fmt.Errorf("recording audit event: %w", err)
	}
	return r.AuditRow, nil
}

// clean bounds the texts. Labels and check values stay as they are but for their length.
func (e AuditEvent) clean() AuditEvent {
	for _, part := range []struct {
		text *string
		most int
		hide bool
	}{{&e.Who, mostWho, true}, {&e.What, mostWhat, false}, {&e.Key, mostKey, false}, {&e.KCV, mostKCV, false}, {&e.Result, mostResult, true},
		{&e.Detail, mostDetail, true}} {
		text := strings.Map(func(c rune) rune {
			if unicode.IsControl(c) {
				return ' '
			}
			return c
		}, strings.ToValidUTF8(*part.text, "\uFFFD"))
		if part.hide {
			text = card.HidePANs(text) // whole: a cut could leave one without its check digit
		}
		*part.text = cut(text, part.most)
	}
	if !e.At.IsZero() {
		e.At = time.Unix(0, e.At.UnixNano()).UTC()
	}
	return e
}

// cut takes the first characters.
func cut(text string, most int) string {
	if utf8.RuneCountInString(text) <= most {
		return text
	}
	return string([]rune(text)[:most])
}

type auditRecord struct {
	call
	AuditRow
}

const insertAuditSQL = `INSERT INTO audit (number, at, who, what, key_label, kcv, result, detail, previous, hash) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
RETURNING number`

func (r *auditRecord) write(w *writer, at time.Time) error {
	if r.At.IsZero() {
		r.At = time.Unix(0, at.UnixNano()).UTC()
	}
	r.Number, r.Previous = w.lastAudit.Number+1, w.lastAudit.Hash
	r.Hash = r.sum()
	if _, err := w.insertAudit.one(r.Number, r.At.UnixNano(), r.Who, r.What, r.Key, r.KCV, r.Result, r.Detail, r.Previous[:], r.Hash[:]); err != nil {
		return err
	}
	w.lastAudit = r.AuditRow
	return nil
}

func (r *auditRecord) done(_ *Journal, err error) { r.answer(err) }

// An AuditFilter chooses rows. Zero fields choose all.
type AuditFilter struct {
	Since  time.Time
	Key    string // label
	What   string
	Before int64 // only older ones: the last number of the page before
	Limit  int   // 0: 100
}

// Audited returns rows of the audit table, newest first.
func (r *Reader) Audited(ctx context.Context, f AuditFilter) ([]AuditRow, error) {
	where := conditions{}
	where.add("at >= ?", f.Since.UnixNano(), !f.Since.IsZero())
	where.add("key_label = ?", f.Key, f.Key != "")
	where.add("what = ?", f.What, f.What != "")
	where.add("number < ?", f.Before, f.Before != 0)
	return rows(ctx, r.db, "listing audit rows", scanAudit, selectAudit+where.String()+" ORDER BY number DESC LIMIT ?",
		append(where.args, limitOr(f.Limit))...)
}

const selectAudit = "SELECT number, at, who, what, key_label, kcv, result, detail, previous, hash FROM audit"

func scanAudit(scan scanner) (AuditRow, error) {
	var a AuditRow
	var at int64
	var previous, hash []byte
	err := scan(&a.Number, &at, &a.Who, &a.What, &a.Key, &a.KCV, &a.Result, &a.Detail, &previous, &hash)
	a.At = time.Unix(0, at).UTC()
	copy(a.Previous[:], previous)
	copy(a.Hash[:], hash)
	return a, err
}

// lastAudit returns the last row, or what stands for the one before the first.
func (r *Reader) lastAudit(ctx context.Context) (AuditRow, error) {
	first, err := r.origin(ctx)
	if err != nil {
		return AuditRow{}, err
	}
	last, err := rows(ctx, r.db, "reading the last audit row", scanAudit, selectAudit+" ORDER BY number DESC LIMIT 1")
	if err != nil || len(last) == 0 {
		return first, err
	}
	return last[0], nil
}

func (r *Reader) origin(ctx context.Context) (AuditRow, error) {
	var createdAt int64
	if err := r.db.QueryRowContext(ctx, "SELECT created_at FROM journal").Scan(&createdAt); err != nil {
		return AuditRow{}, fmt.Errorf("reading whose journal it is: %w", err)
	}
	return AuditRow{Hash: origin(r.station, createdAt)}, nil
}

// An AuditFault is the first place at which the audit table is not as it was written.
type AuditFault struct {
	Number  int64
	Problem string
}

func (f *AuditFault) Error() string { return fmt.Sprintf("audit row %d %s", f.Number, f.Problem) }

// An Anchor is a row that somebody has noted outside of the journal. A chain alone does not show that its end was cut off, or that all of it was
// written anew: the anchor does.
type Anchor struct {
	Number int64
	Hash   [sha256.Size]byte
}

// VerifyAudit follows the chain of all rows and returns the last one, of number 0 if there is none. Its error is an *AuditFault that names the
// first row that is not as it was written (PCI DSS 10.3.4). anchor may be nil.
func (r *Reader) VerifyAudit(ctx context.Context, anchor *Anchor) (AuditRow, error) {
	last, err := r.origin(ctx)
	if err != nil {
		return AuditRow{}, err
	}
	// Numbers begin at 1: a row before that would be listed with the others, and is of no chain.
	before, err := rows(ctx, r.db, "reading audit rows", scanAudit, selectAudit+" WHERE number <= ? ORDER BY number LIMIT 1", last.Number)
	if err != nil {
		return AuditRow{}, err
	}
	if len(before) > 0 {
		return AuditRow{}, &AuditFault{before[0].Number, "was not written here"}
	}
	for {
		page, err := rows(ctx, r.db, "reading audit rows", scanAudit, selectAudit+" WHERE number > ? ORDER BY number LIMIT ?", last.Number, exportPage)
		if err != nil {
			return AuditRow{}, err
		}
		for _, row := range page {
			switch {
			case row.Number != last.Number+1:
				return AuditRow{}, &AuditFault{last.Number + 1, "is missing"}
			case row.Hash != row.sum():
				return AuditRow{}, &AuditFault{row.Number, "is not as it was written"}
			case row.Previous != last.Hash:
				return AuditRow{}, &AuditFault{row.Number, "does not follow the row before it"}
			case anchor != nil && row.Number == anchor.Number && row.Hash != anchor.Hash:
				return AuditRow{}, &AuditFault{row.Number, "is not the one that was noted"}
			}
			last = row
		}
		if len(page) < exportPage {
			break
		}
	}
	if anchor != nil && anchor.Number > last.Number {
		return AuditRow{}, &AuditFault{last.Number + 1, "is missing"}
	}
	return last, nil
}

// auditPage reads rows for Export.
func auditPage(ctx context.Context, tx *sql.Tx, where conditions) ([]AuditRow, error) {
	return rows(ctx, tx, "selecting audit rows", scanAudit, selectAudit+where.String()+" ORDER BY number LIMIT ?", append(where.args, exportPage)...)
}
