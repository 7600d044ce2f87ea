package simulator

import (
	"encoding/json"
	"fmt"
	"strconv"
	"strings"

	"acquirerd/messages"
)

// An Account is what the daemon's journal says of one transaction, in the words of its "journal list --output json". The checker knows
// nothing else of the daemon.
type Account struct {
	ID                int64        `json:"id"`
	Endpoint          string       `json:"endpoint"` // the processor's name; its numbers are its own
	MTI               messages.MTI `json:"mti"`
	STAN              string       `json:"stan"` // at the processor
	TransmissionTime  string       `json:"transmission_time"`
	UpstreamSTAN      string       `json:"upstream_stan"`
	UpstreamKey       string       `json:"upstream_key"` // how the upstream names it: 010|DE 7|STAN|DE 41, say
	Terminal          string       `json:"terminal"`
	Amount            string       `json:"amount"`          // minor units
	ApprovedAmount    string       `json:"approved_amount"` // "" if it is the amount
	Outcome           string       `json:"outcome"`         // approved, declined, not_sent, unknown, of an advice accepted; "" if it has none
	Reason            string       `json:"reason"`
	Owed              string       `json:"owed"`               // its reversal: owed, acknowledged, parked; "" if there is none
	ReplacementAmount string       `json:"replacement_amount"` // of its reversal in part
	Advice            string       `json:"advice"`             // the advice that it is: owed, acknowledged, parked; "" if it is none
	ResponseCode      string       `json:"response_code"`
}

// The words of an Account.
const (
	accountApproved = "approved"
	accountDeclined = "declined"
	accountNotSent  = "not_sent"
	accountUnknown  = "unknown"
	accountAccepted = "accepted"
	debtOwed        = "owed"
	debtPaid        = "acknowledged"
	debtParked      = "parked"
)

// A Verdict is the comparison of the journal, the processor's ledger and the upstream's book, at rest.
type Verdict struct {
	Transactions       int `json:"transactions"` // in the journal, advices included
	Approved           int `json:"approved"`
	Declined           int `json:"declined"`
	NotSent            int `json:"not_sent"`
	Unknown            int `json:"unknown"`
	Advices            int `json:"advices"`             // that the daemon has accepted
	Reversed           int `json:"reversed"`            // reversals that the processor has acknowledged
	Partial            int `json:"partial"`             // reversals in part, acknowledged or not
	Parked             int `json:"parked"`              // reversals and advices
	Unanswered         int `json:"unanswered"`          // requests of the upstream that lost their connection or timed out, or whose answer was not proven
	Late               int `json:"late"`                // answers that the upstream got after its timeout
	DuplicatesAnswered int `json:"duplicates_answered"` // answers to the upstream's repeats, and to what it sent once more
	Mismatches         int `json:"mismatches"`

	Disagreements []string `json:"-"` // the first few mismatches, with what each party has

	transcript []string
}

const shownDisagreements = 10

// A comparison is one call of Compare.
type comparison struct {
	Verdict
	journal    []Account
	ledger     *Snapshot
	book       *BookSnapshot
	byNumbers  map[string]*Account // the processor's STAN and DE 7, and its name where the ledger is of several
	byUpstream map[string]*Account // the upstream's key
	bySTAN     map[string]*Account // the upstream's STAN and terminal, where the journal has no such key
	holds      map[*Account][]*Hold
	entries    map[*Account]*Entry // of whose request or advice it is
	first      *transcript         // of the first mismatch that is about a transaction
}

// Compare says where the three do not agree. What agrees:
//
//   - Each hold of the processor is what the journal has it hold: an approval or an acknowledged advice that is not reversed, with its
//     amount, or what a reversal in part left of it; and the other way round. Of what is parked, either will do.
//   - Nothing is still owed.
//   - No number was used twice, and nothing was sent again without its mark or with another content.
//   - What the upstream was told is approved is approved and not reversed. An approval that it was not told of is no mismatch: the daemon
//     may have been killed between the two.
//
// Of a Duty's transactions it asks more, for they are all at rest: the processor holds what the upstream believes approved, once and
// with that amount, and each of its acknowledged advices, and of what it believes undone nothing, whatever the journal says, unless that is
// parked. If the book has no others, each hold must be one of them.
func Compare(journal []Account, ledger Snapshot, book BookSnapshot) Verdict {
	c := &comparison{journal: journal, ledger: &ledger, book: &book, byNumbers: map[string]*Account{}, byUpstream: map[string]*Account{},
		bySTAN: map[string]*Account{}, holds: map[*Account][]*Hold{}, entries: map[*Account]*Entry{}}
	for i := range journal {
		c.enter(&journal[i])
	}
	unknown := c.assign()
	for i := range book.Entries {
		e := &book.Entries[i]
		if a := c.accountOf(e); a != nil {
			c.entries[a] = e
		}
		if a := c.adviceOf(e); a != nil {
			c.entries[a] = e
		}
	}
	for _, h := range unknown {
		c.mismatch("the processor has a request that the journal does not know", h)
	}
	for i := range journal {
		c.held(&journal[i])
	}
	c.sentOnce()
	for i := range book.Entries {
		if e := &book.Entries[i]; e.Duty {
			c.believed(e)
		} else {
			c.told(e)
		}
	}
	if c.exact() {
		c.unclaimed()
	}
	c.Late, c.DuplicatesAnswered = int(book.Counts.LateAnswers), int(book.Counts.DuplicatesAnswered)
	if c.first != nil {
		c.transcript = c.first.lines(c)
	}
	return c.Verdict
}

// mismatch counts one and lists the first few with their evidence.
func (c *comparison) mismatch(what string, evidence ...any) {
	if c.Mismatches++; c.Mismatches > shownDisagreements {
		return
	}
	about := transcript{what: what}
	for i, one := range evidence {
		switch one := one.(type) {
		case *Hold:
			about.hold = one
			short := *one
			short.Events = Events{}
			evidence[i] = short
		case *Account:
			about.account = one
		case *Entry:
			about.entry = one
		}
	}
	if c.first == nil && (about.hold != nil || about.account != nil || about.entry != nil) {
		c.first = &about
	}
	text, err := json.Marshal(evidence)
	if err != nil {
		text = []byte(err.Error())
	}
	c.Disagreements = append(c.Disagreements, fmt.Sprintf("%s: %s", what, text))
}

// enter counts one transaction of the journal and makes it known by its numbers.
func (c *comparison) enter(a *Account) {
	c.Transactions++
	if numbers := c.numbers(a.Endpoint, a.STAN, a.TransmissionTime); a.STAN != "" { // the mark of a reversal without its original may have none
		if c.byNumbers[numbers] != nil {
			c.mismatch("the journal used a STAN twice", a)
		}
		c.byNumbers[numbers] = a
	}
	if other := c.byUpstream[a.UpstreamKey]; a.UpstreamKey != "" && (other == nil || other.Outcome == accountNotSent) {
		c.byUpstream[a.UpstreamKey] = a
	} else if a.UpstreamKey != "" && a.Outcome != accountNotSent {
		c.mismatch("one message of the upstream became two", a, other)
	}
	c.bySTAN[a.UpstreamSTAN+a.Terminal] = a
	switch a.Outcome {
	case accountApproved:
		c.Approved++
	case accountDeclined:
		c.Declined++
	case accountNotSent:
		c.NotSent++
	case accountUnknown:
		c.Unknown++
		if a.Owed == "" {
			c.mismatch("an unknown outcome for which nothing is owed", a)
		}
	case accountAccepted:
		c.Advices++
		if a.Advice == "" && a.Owed == "" {
			c.mismatch("an accepted advice that is not owed", a)
		}
	default:
		c.mismatch("a transaction without an outcome", a)
	}
	if a.ReplacementAmount != "" {
		c.Partial++
	}
	switch a.Owed {
	case debtPaid:
		c.Reversed++
	case debtParked:
		c.Parked++
	case debtOwed:
		c.mismatch("a reversal that is still owed", a)
	}
	switch a.Advice {
	case debtParked:
		c.Parked++
	case debtOwed:
		c.mismatch("an advice that is still owed", a)
	}
}

func (c *comparison) numbers(endpoint, stan, transmissionTime string) string {
	if !c.ledger.merged {
		endpoint = ""
	}
	return endpoint + "|" + stan + transmissionTime
}

// accountFor finds the journal's account of a hold, nil if it has none.
func (c *comparison) accountFor(h *Hold) *Account {
	return c.byNumbers[c.numbers(h.Endpoint, h.STAN, h.TransmissionTime)]
}

// assign gives each hold to its account and returns those that have none.
func (c *comparison) assign() (unknown []*Hold) {
	for i := range c.ledger.Holds {
		h := &c.ledger.Holds[i]
		if a := c.accountFor(h); a != nil {
			c.holds[a] = append(c.holds[a], h)
		} else {
			unknown = append(unknown, h)
		}
	}
	return unknown
}

// expects is what the journal has the processor hold. It is not sure of what is parked or owed.
func (a *Account) expects() (held bool, amount int64, sure bool) {
	if a.parked() || a.Owed == debtOwed || a.Advice == debtOwed {
		return false, 0, false
	}
	held = a.Outcome == accountApproved || a.Outcome == accountAccepted && a.Advice == debtPaid
	amount = minorUnits(byDefault(a.ApprovedAmount, a.Amount))
	if held && a.Owed == debtPaid {
		replacement := minorUnits(a.ReplacementAmount)
		held, amount = replacement > 0, min(amount, replacement)
	}
	return held, amount, true
}

func (a *Account) parked() bool { return a.Owed == debtParked || a.Advice == debtParked }

// minorUnits reads an amount, -1 if there is none.
func minorUnits(text string) int64 {
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil {
		return -1
	}
	return n
}

// held compares an account with its holds.
func (c *comparison) held(a *Account) {
	if len(c.holds[a]) > 1 {
		c.mismatch("the processor has one number of the journal twice", a, c.holds[a][0], c.holds[a][1])
	}
	h := c.holding(a)
	if h != nil && h.Advice != (a.Outcome == accountAccepted) {
		c.mismatch("a request and an advice have one number", h, a)
	}
	switch held, amount, sure := a.expects(); {
	case !sure:
	case h == nil && held:
		c.mismatch("an approval in the journal without a hold", a)
	case h != nil && !held:
		c.mismatch("the processor holds what the journal does not have as approved", h, a)
	case h != nil && amount >= 0 && h.ApprovedAmount != amount:
		c.mismatch("the processor holds another amount than the journal has", h, a)
	}
}

// holding is what the processor still holds for an account, nil if nothing.
func (c *comparison) holding(a *Account) *Hold {
	for _, h := range c.holds[a] {
		if h.State == Held {
			return h
		}
	}
	return nil
}

// sentOnce checks what the processor has counted: numbers that were used again, and messages without the mark of a repeat.
func (c *comparison) sentOnce() {
	for i := range c.ledger.DuplicateRequests {
		c.mismatch("the processor was sent a STAN twice", c.ledger.DuplicateRequests[i])
	}
	counts := c.ledger.Counts
	for _, fault := range []struct {
		n    int64
		what string
	}{
		{counts.UnmarkedRepeats, "reversals were sent again without the mark of a repeat"},
		{counts.DisagreeingReversals, "reversals disagree with their originals"},
		{counts.UnmarkedAdvices, "advices were sent again without the mark of a repeat"},
		{counts.DisagreeingAdvices, "advices disagree with their first sending"},
		{counts.DemandsOpen, "advices of the processor's own are not answered"},
		{counts.DemandsTwice, "what the processor demanded was answered more often than it was sent"},
		{counts.DemandsImproper, "what the processor demanded was answered by what is not for it"},
	} {
		if fault.n > 0 {
			c.mismatch(fault.what, append([]any{fault.n}, c.unmarked()...)...)
		}
	}
}

// unmarked finds the first hold whose messages were sent again without their mark.
func (c *comparison) unmarked() []any {
	for i := range c.ledger.Holds {
		if h := &c.ledger.Holds[i]; h.UnmarkedRepeats+h.UnmarkedAdvices > 0 {
			return []any{h}
		}
	}
	return nil
}

// accountOf finds the journal's account of an entry, nil if it has none.
func (c *comparison) accountOf(e *Entry) *Account {
	return c.find(e, e.Name, e.MTI, e.TransmissionTime, e.STAN)
}

// adviceOf finds the journal's account of an entry's advice.
func (c *comparison) adviceOf(e *Entry) *Account {
	if e.Advice.State == "" {
		return nil
	}
	return c.find(e, e.Advice.Name, e.Advice.MTI, e.Advice.TransmissionTime, e.Advice.STAN)
}

func (c *comparison) find(e *Entry, name string, mti messages.MTI, transmissionTime, stan string) *Account {
	key := byDefault(name, strings.Join([]string{string(mti[:3]), transmissionTime, stan, e.Terminal}, "|"))
	if a := c.byUpstream[key]; a != nil {
		return a
	}
	if a := c.bySTAN[stan+e.Terminal]; a != nil && (a.UpstreamKey == "" || strings.HasPrefix(a.UpstreamKey, string(mti[:2])+"|")) {
		return a // the journal has no such key, or an older one, of the MTI's class alone
	}
	return nil
}

// told checks an entry of which the upstream has no belief, but only what it was told.
func (c *comparison) told(e *Entry) {
	if e.Outcome == TimedOut || e.Outcome == ConnectionLost || e.Outcome == Unproven {
		c.Unanswered++
	}
	if e.Outcome == Mismatch {
		c.mismatch("the upstream was given the answer to another request", e)
	}
	if !e.Approved || e.MTI.Class() == messages.Reversal {
		return
	}
	switch a := c.accountOf(e); {
	case a == nil:
		c.mismatch("the upstream was told of an approval that the journal does not know", e)
	case a.Outcome == accountAccepted:
	case a.Outcome != accountApproved || a.Owed != "":
		c.mismatch("an approval that the upstream was told of is reversed or unknown", e, a)
	}
}

// believed checks an entry of a Duty against what the processor holds.
func (c *comparison) believed(e *Entry) {
	if e.Outcome == TimedOut || e.Outcome == ConnectionLost || e.Outcome == Unproven {
		c.Unanswered++
	}
	for _, fault := range e.Faults {
		c.mismatch(fault, e)
	}
	if e.Open {
		c.mismatch("a transaction of the upstream is not at rest", e)
		return
	}
	a := c.accountOf(e)
	h := c.holding(a)
	switch {
	case a != nil && a.parked():
	case e.Belief == BelievesApproved && a == nil:
		c.mismatch("the upstream believes in an approval that the journal does not know", e)
	case e.Belief == BelievesApproved && h == nil:
		c.mismatch("the upstream believes in an approval of which the processor holds nothing", e, a)
	case e.Belief == BelievesApproved && h.ApprovedAmount != e.BelievedAmount:
		c.mismatch("the processor holds another amount than the upstream believes", h, e, a)
	case e.Belief != BelievesApproved && h != nil:
		c.mismatch("the processor holds what the upstream believes undone", h, e, a)
	}
	if e.Advice.State == "" {
		return
	}
	a = c.adviceOf(e)
	h = c.holding(a)
	switch {
	case a != nil && a.parked():
	case a == nil:
		c.mismatch("the upstream's advice was accepted, and the journal does not know it", e)
	case h == nil || !h.Advice:
		c.mismatch("the upstream's advice was accepted, and the processor does not have it", e, a)
	case h.ApprovedAmount != e.Advice.Amount:
		c.mismatch("the processor has the upstream's advice with another amount", h, e, a)
	}
}

// exact reports whether the book lists all that was asked, and knows what became of it.
func (c *comparison) exact() bool {
	for i := range c.book.Entries {
		if !c.book.Entries[i].Duty {
			return false
		}
	}
	return len(c.book.Entries) > 0 && c.book.Counts.Unlisted == 0
}

// unclaimed finds holds of which the upstream knows nothing. Those of an account that it knows are checked with it.
func (c *comparison) unclaimed() {
	for i := range c.ledger.Holds {
		h := &c.ledger.Holds[i]
		a := c.accountFor(h)
		if h.State == Held && a != nil && c.entries[a] == nil && !a.parked() {
			c.mismatch("the processor holds what the upstream never asked for", h, a)
		}
	}
}
