package simulator

import (
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"sync"
	"time"

	"acquirerd/messages"
)

// DefaultMaxEntries is how many requests a book lists; beyond it they are only counted.
const DefaultMaxEntries = 2_000_000

// An Outcome is what an upstream knows of one request.
type Outcome string

// The outcomes of a request.
const (
	Pending        Outcome = "pending"         // nothing yet
	Answered       Outcome = "answered"        // by a response code
	TimedOut       Outcome = "timeout"         // no answer in time; one that comes later is noted beside it
	ConnectionLost Outcome = "connection_lost" // the connection ended before the answer
	NotSent        Outcome = "not_sent"        // there was no connection, and nothing was sent
	Mismatch       Outcome = "mismatch"        // an answer by its key, but for another amount, card or terminal
	Unproven       Outcome = "unproven"        // an answer whose MAC is wrong or missing: nothing that it says counts
)

// A Belief is what an upstream takes for true of a transaction, and acts on.
type Belief string

// The beliefs of a Duty. Upstream.Do alone has none: it leaves what it means to its owner.
const (
	BelievesNothing  Belief = ""         // not yet, or not a Duty's
	BelievesApproved Belief = "approved" // of the believed amount, which may be 0
	BelievesNone     Belief = "none"     // there is no approval, and nothing may be held
)

// A DebtState is how far an upstream's reversal or advice has come. "" if there is none.
type DebtState string

// The states of a reversal or advice of the upstream.
const (
	DebtOpen         DebtState = "open"         // it is being sent, again and again
	DebtAcknowledged DebtState = "acknowledged" // answered by 00, a reversal also by 25
	DebtRefused      DebtState = "refused"      // a reversal that will never be taken: a fault of the book
)

// A BookReversal is the upstream's reversal of a transaction.
type BookReversal struct {
	MTI          messages.MTI `json:"mti"` // of its first message
	State        DebtState    `json:"state"`
	Partial      bool         `json:"partial"`
	Replacement  int64        `json:"replacement"`             // what remains (DE 95), 0 if it is whole
	ResponseCode string       `json:"response_code,omitempty"` // of its last answer
	Tries        int          `json:"tries"`                   // messages that may have been sent
}

// A BookAdvice is the completion that followed an approval.
type BookAdvice struct {
	Name             string       `json:"name"` // as that of its request
	MTI              messages.MTI `json:"mti"`  // of its first message
	STAN             string       `json:"stan"`
	TransmissionTime string       `json:"transmission_time"`
	Amount           int64        `json:"amount"`
	State            DebtState    `json:"state"`
	ResponseCode     string       `json:"response_code,omitempty"` // of its last answer
	Tries            int          `json:"tries"`                   // messages that may have been sent
}

// An Entry is one request and what the upstream was told of it. It holds no card number in clear.
type Entry struct {
	Name             string        `json:"name"` // class, function and the elements by which the dialect names a request: 010|DE 7|STAN|DE 41, say
	MTI              messages.MTI  `json:"mti"`
	STAN             string        `json:"stan"`
	TransmissionTime string        `json:"transmission_time"`
	RRN              string        `json:"rrn"` // the upstream's; in an answer without it, the daemon's is in AnswerRRN
	AnswerRRN        string        `json:"answer_rrn,omitempty"`
	AcquirerID       string        `json:"acquirer_id,omitempty"`
	Terminal         string        `json:"terminal"`
	PAN              string        `json:"pan"` // masked
	Amount           int64         `json:"amount"`
	Currency         string        `json:"currency"`
	WithPIN          bool          `json:"with_pin"`
	Outcome          Outcome       `json:"outcome"`
	ResponseCode     string        `json:"response_code,omitempty"` // of ISO 8583:1987, as everywhere in a book
	Approved         bool          `json:"approved"`                // the dialect calls the code approving
	ApprovedAmount   int64         `json:"approved_amount"`
	AuthorizationID  string        `json:"authorization_id,omitempty"`
	LateCode         string        `json:"late_code,omitempty"`     // of an answer that came after the wait for it
	UnprovenCode     string        `json:"unproven_code,omitempty"` // of the answer that ended the wait and is not believed, as one for people alone
	SentAt           time.Time     `json:"sent_at"`
	Elapsed          time.Duration `json:"elapsed_ns"`

	// What follows is of a Duty's transactions alone.
	Duty               bool         `json:"duty,omitempty"`
	Open               bool         `json:"open,omitempty"` // something is still to be done
	Belief             Belief       `json:"belief,omitempty"`
	BelievedAmount     int64        `json:"believed_amount,omitempty"`
	Tries              int          `json:"tries,omitempty"`               // of the request, that may have been sent
	Repeats            int          `json:"repeats,omitempty"`             // of these, those marked as repeats before there was an answer
	Resends            int          `json:"resends,omitempty"`             // duplicates that were sent after the answer
	DuplicatesAnswered int          `json:"duplicates_answered,omitempty"` // answers to repeats and duplicates
	Reversal           BookReversal `json:"reversal,omitzero"`
	Advice             BookAdvice   `json:"advice,omitzero"`
	Faults             []string     `json:"faults,omitempty"` // what the daemon should not have answered
}

// BookCounts are the totals of a book.
type BookCounts struct {
	Requests    int64             `json:"requests"`
	Approved    int64             `json:"approved"`
	Outcomes    map[Outcome]int64 `json:"outcomes"`
	Codes       map[string]int64  `json:"codes"` // of answers in time
	LateAnswers int64             `json:"late_answers"`
	Unmatched   int64             `json:"unmatched"`   // answers to nothing that was asked, or asked once and answered twice
	Undecodable int64             `json:"undecodable"` // messages that could not be read
	WrongMACs   int64             `json:"wrong_macs"`  // messages whose MAC was wrong or missing: not believed
	Unlisted    int64             `json:"unlisted"`    // requests beyond the book's limit

	Repeats            int64 `json:"repeats"`             // requests sent as x1 before they were answered
	Resends            int64 `json:"resends"`             // duplicates of answered requests
	DuplicatesAnswered int64 `json:"duplicates_answered"` // answers to both
	Reversals          int64 `json:"reversals"`           // begun, whole or in part
	Partial            int64 `json:"partial"`             // those in part
	Advices            int64 `json:"advices"`             // begun
	Open               int64 `json:"open"`                // transactions of a Duty that are not at rest
	Faults             int64 `json:"faults"`              // answers that should not have been given
}

// A BookSnapshot is a book at one moment. It shares nothing with it.
type BookSnapshot struct {
	Counts  BookCounts `json:"counts"`
	Entries []Entry    `json:"entries"` // in the order of sending
}

// A Book is the upstream's account of every request. It may be used by many goroutines and shared by several Upstreams.
type Book struct {
	mu      sync.Mutex
	max     int
	entries []*Entry
	counts  BookCounts
}

// NewBook returns an empty book that lists at most maxEntries requests: DefaultMaxEntries for 0, none below 0.
func NewBook(maxEntries int) *Book {
	if maxEntries == 0 {
		maxEntries = DefaultMaxEntries
	}
	return &Book{max: maxEntries, counts: BookCounts{Outcomes: map[Outcome]int64{}, Codes: map[string]int64{}}}
}

func (b *Book) open(e *Entry) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.counts.Requests++
	b.counts.Outcomes[Pending]++
	if e.Open {
		b.counts.Open++
	}
	if len(b.entries) < b.max {
		b.entries = append(b.entries, e)
	} else {
		b.counts.Unlisted++
	}
}

// settle enters what became of a pending request and returns a copy.
func (b *Book) settle(e *Entry, r reply, in reader) Entry {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.counts.Outcomes[Pending]--
	b.counts.Outcomes[r.outcome]++
	e.Outcome, e.Elapsed = r.outcome, r.at.Sub(e.SentAt)
	e.ResponseCode, e.AuthorizationID, e.UnprovenCode = in.iso87(r.code), r.authorizationID, in.iso87(r.unproven)
	if r.rrn != e.RRN {
		e.AnswerRRN = r.rrn
	}
	e.Approved, e.ApprovedAmount = r.approves, r.amount
	if r.outcome == Answered {
		b.counts.Codes[e.ResponseCode]++
		if r.approves {
			b.counts.Approved++
		}
	}
	return e.copy()
}

// change alters an entry and the totals.
func (b *Book) change(e *Entry, change func(*Entry, *BookCounts)) {
	b.mu.Lock()
	defer b.mu.Unlock()
	change(e, &b.counts)
}

// read copies an entry.
func (b *Book) read(e *Entry) Entry {
	b.mu.Lock()
	defer b.mu.Unlock()
	return e.copy()
}

func (e *Entry) copy() Entry {
	copied := *e
	copied.Faults = slices.Clone(e.Faults)
	return copied
}

func (b *Book) late(e *Entry, code string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.counts.LateAnswers++
	e.LateCode = code
}

func (b *Book) tally(change func(*BookCounts)) {
	b.mu.Lock()
	defer b.mu.Unlock()
	change(&b.counts)
}

// Snapshot copies the book.
func (b *Book) Snapshot() BookSnapshot {
	b.mu.Lock()
	defer b.mu.Unlock()
	s := BookSnapshot{Counts: b.copyCounts(), Entries: make([]Entry, len(b.entries))}
	for i, e := range b.entries {
		s.Entries[i] = e.copy()
	}
	return s
}

// Counts copies the totals alone.
func (b *Book) Counts() BookCounts {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.copyCounts()
}

func (b *Book) copyCounts() BookCounts {
	counts := b.counts
	counts.Outcomes, counts.Codes = map[Outcome]int64{}, map[string]int64{}
	for outcome, n := range b.counts.Outcomes {
		if n > 0 {
			counts.Outcomes[outcome] = n
		}
	}
	for code, n := range b.counts.Codes {
		counts.Codes[code] = n
	}
	return counts
}

// WriteJSON writes a snapshot as one indented JSON object.
func (b *Book) WriteJSON(w io.Writer) error {
	encoder := json.NewEncoder(w)
	encoder.SetIndent("", "  ")
	if err := encoder.Encode(b.Snapshot()); err != nil {
		return fmt.Errorf("writing book: %w", err)
	}
	return nil
}
