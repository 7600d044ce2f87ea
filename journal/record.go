package journal

import (
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"time"

	"acquirerd/card"
	"acquirerd/messages"
)

// A TransactionID names a transaction in its journal. IDs ascend.
type TransactionID int64

// An OwedID names something owed in its journal. IDs ascend.
type OwedID int64

// An Intent is what is about to be sent to a processor.
type Intent struct {
	Upstream     string // who asked
	UpstreamKey  string // by which upstream would repeat the request, "" if it cannot; must hold no card data
	UpstreamSTAN string // DE 11 of upstream's request
	UpstreamRRN  string // DE 37 of upstream's request
	Endpoint     string
	Original     messages.Original // of the request as it will be sent; MTI and STAN are mandatory
	PAN          card.SealedPAN    // zero if the request has no PAN
	Token        card.PANToken     // zero if the request has no PAN
	Rest         card.SealedRest   // of an advice; zero if nothing else of it is sensitive
	MaskedPAN    string
	At           time.Time // zero: now
}

// A Kind is how a request ended.
type Kind string

// The kinds of outcomes.
const (
	Approved Kind = "approved"
	Declined Kind = "declined"
	NotSent  Kind = "not_sent" // proven: no byte left this host
	Unknown  Kind = "unknown"  // the processor may have acted: a reversal is owed
	Accepted Kind = "accepted" // an advice: it is owed to the processor
)

// An Outcome is what came of a request.
type Outcome struct {
	Kind            Kind
	ResponseCode    string         // DE 39 of the answer
	AuthorizationID string         // DE 38 of the answer
	ApprovedAmount  string         // DE 4 of the answer in minor units, "" if it is the amount that was asked for
	Reason          string         // why, from a closed set: lower-case letters, digits and underscores
	Answer          messages.Reply // what the upstream is told; zero if nobody can be
}

// What a caller may branch on.
var (
	// ErrFailed: the store gave an error once, and what it holds is unknown. The process must stop.
	ErrFailed = errors.New("journal has failed")
	// ErrClosed: Run has ended. Nothing was written.
	ErrClosed = errors.New("journal is closed")
	// ErrBusy: too many callers are waiting. Nothing was written.
	ErrBusy = errors.New("journal is busy")
	// ErrDuplicate: the upstream has used this key before. Nothing was written.
	ErrDuplicate = errors.New("duplicate of an earlier transaction")
	// ErrNotApproved: there is nothing that a reversal could undo, or be owed by Owe. Nothing was written.
	ErrNotApproved = errors.New("transaction is neither approved nor an advice")
	// ErrNotOwed: it was settled meanwhile, or another attempt is under way. Nothing was written.
	ErrNotOwed = errors.New("not owed, or an attempt is under way")
	// ErrNotParked: only what is parked can be released. Nothing was written.
	ErrNotParked = errors.New("not parked")
	// ErrReversed: an advice whose reversal was sent, or is being sent, may not be sent any more. Nothing was written.
	ErrReversed = errors.New("its reversal was sent: the advice would stand after it")
)

// Numbers are those of a reversal that does not have its original's: the same at each attempt.
type Numbers struct {
	STAN             string `json:"stan"`              // DE 11
	TransmissionTime string `json:"transmission_time"` // DE 7
}

// A Ticket allows one message to be sent, once. Only Begin, Attempt and Unfinished make one.
type Ticket struct {
	id        TransactionID
	owed      OwedID // 0: for the transaction's own request
	attempt   int
	recovered bool
	endpoint  string
	stan      string
	token     card.PANToken
	money     money   // what a reversal would be about
	own       Numbers // of an attempt's message

	spent    atomic.Bool
	finished atomic.Bool
}

// ID is the transaction's.
func (t *Ticket) ID() TransactionID { return t.id }

// Endpoint is where its message goes.
func (t *Ticket) Endpoint() string { return t.endpoint }

// STAN is that of the transaction.
func (t *Ticket) STAN() string { return t.stan }

// Owed is what the attempt pays, 0 for a transaction's own request.
func (t *Ticket) Owed() OwedID { return t.owed }

// Attempt is 1 for the first send of something owed. From 2 on an earlier one may have reached the processor, perhaps before
// a crash, and the message must be marked as a repeat.
func (t *Ticket) Attempt() int { return t.attempt }

// Own are the numbers of an attempt's message, if it does not have those of its original.
func (t *Ticket) Own() Numbers { return t.own }

// Recovered reports whether the Ticket is of an earlier run: it can be finished, as Unknown, and not spent.
func (t *Ticket) Recovered() bool { return t.recovered }

// String names the Ticket in errors and logs.
func (t *Ticket) String() string {
	if t.owed != 0 {
		return fmt.Sprintf("attempt %d of owed %d, transaction %d", t.attempt, t.owed, t.id)
	}
	return fmt.Sprintf("transaction %d", t.id)
}

// Spend marks the Ticket as used for its send. It must be called before the first byte, and panics if the Ticket was spent
// before or belongs to an earlier run: sending twice under one record is a fault of ours that must not reach a processor.
func (t *Ticket) Spend() {
	if t.recovered || t.finished.Load() || !t.spent.CompareAndSwap(false, true) {
		panic("journal: spending a ticket twice: " + t.String())
	}
}

// finish marks the Ticket as finished, once.
func (t *Ticket) finish() {
	if !t.finished.CompareAndSwap(false, true) {
		panic("journal: finishing a ticket twice: " + t.String())
	}
}

// refuseOutcome panics for an outcome that cannot be true of this Ticket.
func (t *Ticket) refuseOutcome(out Outcome) {
	switch {
	case t.owed != 0:
		panic("journal: finishing what is to be settled: " + t.String())
	case out.Kind != Approved && out.Kind != Declined && out.Kind != NotSent && out.Kind != Unknown:
		panic("journal: finishing without a kind: " + t.String())
	case t.recovered && out.Kind != Unknown:
		panic("journal: finishing a recovered ticket as known: " + t.String())
	case (out.Kind == Approved || out.Kind == Declined) && !t.spent.Load():
		panic("journal: answer to a ticket that was not spent: " + t.String())
	case !isReason(out.Reason):
		panic("journal: reason is not of a closed set: " + t.String())
	}
}

// check refuses an Intent that could not be recorded or recovered. Errors do not quote content.
func (in Intent) check() error {
	switch stan := in.Original.Get(messages.STAN); {
	case in.Upstream == "":
		return errors.New("intent without upstream")
	case in.Endpoint == "":
		return errors.New("intent without endpoint")
	case len(in.Original.MTI) != 4:
		return errors.New("intent without MTI")
	case len(stan) != 6 || !digitsOnly(stan):
		return errors.New("intent whose STAN is not six digits")
	case longestDigitRun(in.MaskedPAN) > 6:
		return errors.New("intent whose masked PAN is not masked")
	case (in.PAN.KeyID == "") != (len(in.PAN.Ciphertext) == 0), (in.Rest.KeyID == "") != (len(in.Rest.Ciphertext) == 0):
		return errors.New("intent whose sealed PAN or rest is incomplete")
	}
	return nil
}

// isReason reports whether a text can be of a closed set: no free text, and so no card data, gets into the record by it.
func isReason(s string) bool {
	return len(s) <= 64 && strings.Trim(s, "abcdefghijklmnopqrstuvwxyz0123456789_") == "" && longestDigitRun(s) <= 6
}

func digitsOnly(s string) bool { return longestDigitRun(s) == len(s) }

func longestDigitRun(s string) int {
	longest, run := 0, 0
	for i := range len(s) {
		if s[i] < '0' || s[i] > '9' {
			run = 0
			continue
		}
		run++
		longest = max(longest, run)
	}
	return longest
}
