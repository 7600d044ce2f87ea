package simulator

import (
	"encoding/json"
	"fmt"
	"io"
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
)

// An Entry is one request and what the upstream was told of it. It holds no card number in clear.
type Entry struct {
	MTI              messages.MTI  `json:"mti"`
	STAN             string        `json:"stan"`
	TransmissionTime string        `json:"transmission_time"`
	RRN              string        `json:"rrn"` // the upstream's; in an answer without it, the daemon's is in AnswerRRN
	AnswerRRN        string        `json:"answer_rrn,omitempty"`
	Terminal         string        `json:"terminal"`
	PAN              string        `json:"pan"` // masked
	Amount           int64         `json:"amount"`
	Currency         string        `json:"currency"`
	WithPIN          bool          `json:"with_pin"`
	Outcome          Outcome       `json:"outcome"`
	ResponseCode     string        `json:"response_code,omitempty"`
	Approved         bool          `json:"approved"` // the dialect calls the code approving
	ApprovedAmount   int64         `json:"approved_amount"`
	AuthorizationID  string        `json:"authorization_id,omitempty"`
	LateCode         string        `json:"late_code,omitempty"` // of an answer that came after the timeout
	SentAt           time.Time     `json:"sent_at"`
	Elapsed          time.Duration `json:"elapsed_ns"`
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
	Unlisted    int64             `json:"unlisted"`    // requests beyond the book's limit
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
	if len(b.entries) < b.max {
		b.entries = append(b.entries, e)
	} else {
		b.counts.Unlisted++
	}
}

// settle changes a pending entry by fill and returns a copy.
func (b *Book) settle(e *Entry, outcome Outcome, fill func(*Entry)) Entry {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.counts.Outcomes[Pending]--
	b.counts.Outcomes[outcome]++
	e.Outcome, e.Elapsed = outcome, time.Since(e.SentAt)
	if fill != nil {
		fill(e)
	}
	if outcome == Answered {
		b.counts.Codes[e.ResponseCode]++
		if e.Approved {
			b.counts.Approved++
		}
	}
	return *e
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
		s.Entries[i] = *e
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
