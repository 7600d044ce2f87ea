package simulator

import (
	"encoding/json"
	"errors"
	"fmt"
	"hash/maphash"
	"io"
	"sync"
	"time"

	"acquirerd/card"
	"acquirerd/messages"
)

// The limits of a ledger.
const (
	DefaultMaxHolds = 2_000_000 // entries; a request over it is answered with the dialect's code for "busy" and not entered
	maxListed       = 1_000     // duplicates and unknown words that are listed; beyond it they are only counted
)

// A State is what has become of a request at the processor.
type State string

// The states of a hold. A request that was never approved holds nothing.
const (
	Held     State = "held"
	Reversed State = "reversed"
	Declined State = "declined"
)

// A Hold is one request as the processor saw it. It holds no card number in clear.
type Hold struct {
	MTI              messages.MTI `json:"mti"`
	STAN             string       `json:"stan"`
	TransmissionTime string       `json:"transmission_time"`
	RRN              string       `json:"rrn"`
	PAN              string       `json:"pan"` // masked
	Amount           int64        `json:"amount"`
	ApprovedAmount   int64        `json:"approved_amount"` // less than Amount for a partial approval, 0 for a decline
	Currency         string       `json:"currency"`
	Terminal         string       `json:"terminal"`
	ResponseCode     string       `json:"response_code"`
	AuthorizationID  string       `json:"authorization_id,omitempty"`
	State            State        `json:"state"`
	RequestedAt      time.Time    `json:"requested_at"`
	ReversedAt       time.Time    `json:"reversed_at,omitzero"`

	ReversalCounts
}

// ReversalCounts are the messages that came to undo one request.
type ReversalCounts struct {
	Reversals       int `json:"reversals"`        // all of them
	Repeats         int `json:"repeats"`          // those marked as repeats: 0401, 0421
	UnmarkedRepeats int `json:"unmarked_repeats"` // 0400 or 0420 after another one of them: the mark is missing
}

// add counts a message. One without the mark is only a fault after another one without it: after a marked one it may be the first that
// was sent, and have been overtaken on its way.
func (c *ReversalCounts) add(mti messages.MTI) (unmarked bool) {
	c.Reversals++
	if mti.IsRepeat() {
		c.Repeats++
		return false
	}
	if c.Reversals-c.Repeats > 1 {
		c.UnmarkedRepeats++
		return true
	}
	return false
}

// An UnknownReversal came for a request that had not arrived. It is kept: if its request comes after all, it is refused.
type UnknownReversal struct {
	OriginalMTI      messages.MTI `json:"original_mti"`
	STAN             string       `json:"stan"` // of the original, as DE 90 says
	TransmissionTime string       `json:"transmission_time"`
	PAN              string       `json:"pan"` // masked
	Amount           int64        `json:"amount"`
	OtherCard        bool         `json:"other_card"` // there is such a request, of another card
	OriginalCame     bool         `json:"original_came"`
	FirstAt          time.Time    `json:"first_at"`

	ReversalCounts
}

// A RequestKey names a request that came twice without a repeat mark: a number was used again.
type RequestKey struct {
	Class            string `json:"class"` // second digit of the MTI
	STAN             string `json:"stan"`
	TransmissionTime string `json:"transmission_time"`
	Terminal         string `json:"terminal"`
	SameContent      bool   `json:"same_content"` // card and amount were the same too
}

// Counts are the totals of a ledger.
type Counts struct {
	Requests             int64            `json:"requests"` // entered: without duplicates, repeats and what was refused unread
	Held                 int64            `json:"held"`
	Reversed             int64            `json:"reversed"`
	Declined             int64            `json:"declined"`
	Reversals            int64            `json:"reversals"`         // reversal messages
	ReversalRepeats      int64            `json:"reversal_repeats"`  // marked as repeats
	UnmarkedRepeats      int64            `json:"unmarked_repeats"`  // that should have been marked
	AlreadyReversed      int64            `json:"already_reversed"`  // answered 00 once more
	UnknownReversals     int64            `json:"unknown_reversals"` // messages answered 25
	RefusedAfterReversal int64            `json:"refused_after_reversal"`
	DisagreeingReversals int64            `json:"disagreeing_reversals"` // amount, currency or terminal are not the original's
	DuplicateRequests    int64            `json:"duplicate_requests"`
	RepeatedRequests     int64            `json:"repeated_requests"` // 0101, 0201 of a known request: the stored answer went out
	FormatErrors         int64            `json:"format_errors"`
	BeforeSignOn         int64            `json:"before_sign_on"`
	Unsupported          int64            `json:"unsupported"`
	Unasked              int64            `json:"unasked"` // answers that nobody asked for
	WrongPINs            int64            `json:"wrong_pins"`
	MalformedPINBlocks   int64            `json:"malformed_pin_blocks"` // no format 0 block of that card under this zone's key
	RightPINs            int64            `json:"right_pins"`
	Full                 int64            `json:"full"`         // requests refused at the ledger's limit
	Effects              map[string]int64 `json:"effects"`      // faults and scripted effects that messages met, by name
	SignOns              int64            `json:"sign_ons"`     // 0800 dialogues that were accepted
	SignOffs             int64            `json:"sign_offs"`    //
	Echoes               int64            `json:"echoes"`       //
	Links                int64            `json:"links"`        // connections that were accepted
	LostAnswers          int64            `json:"lost_answers"` // made, and no link to send them on
}

// A Snapshot is a ledger at one moment. It shares nothing with it.
type Snapshot struct {
	Counts            Counts            `json:"counts"`
	Holds             []Hold            `json:"holds"` // in the order of their arrival
	UnknownReversals  []UnknownReversal `json:"unknown_reversals"`
	DuplicateRequests []RequestKey      `json:"duplicate_requests"`
}

// InState returns the holds in one state.
func (s Snapshot) InState(state State) []Hold {
	var holds []Hold
	for _, h := range s.Holds {
		if h.State == state {
			holds = append(holds, h)
		}
	}
	return holds
}

// A Ledger is the processor's account of every request. It may be used by many goroutines, outlives its Processor if its owner
// gives it to the next one, and holds nothing secret: cards are compared by a hash with a random key of this process.
type Ledger struct {
	mu         sync.Mutex
	cards      maphash.Seed
	maxHolds   int
	holds      []*entry
	index      map[ledgerKey]*entry
	unknown    map[ledgerKey][]*unknownEntry
	order      []*unknownEntry
	duplicates []RequestKey
	counts     Counts
}

// A ledgerKey is what DE 90 says of a request.
type ledgerKey struct {
	class                  messages.Class
	stan, transmissionTime string
}

type entry struct {
	Hold
	card uint64
	next *entry // of the same key, from another terminal or of another card
}

type unknownEntry struct {
	UnknownReversal
	card uint64
}

// NewLedger returns an empty ledger for at most maxHolds requests, DefaultMaxHolds for 0.
func NewLedger(maxHolds int) *Ledger {
	if maxHolds <= 0 {
		maxHolds = DefaultMaxHolds
	}
	return &Ledger{cards: maphash.MakeSeed(), maxHolds: maxHolds, index: map[ledgerKey]*entry{}, unknown: map[ledgerKey][]*unknownEntry{},
		counts: Counts{Effects: map[string]int64{}}}
}

// A decision is what the rules say about a request, before the ledger has looked at its history.
type decision struct {
	code     string
	approves bool
	amount   int64 // that is approved; 0 is one too, as for an account verification
}

// An entered is what the ledger says about a request.
type entered struct {
	decision
	authorizationID string
	full            bool
}

// request enters a request with what was decided about it, unless its history decides otherwise:
//
//   - A request whose reversal came first holds nothing and is answered 21. Whoever sent the reversal has settled the matter as "never
//     happened"; a hold made now would be one that nobody knows of and nobody would ever undo.
//   - A request that came before under the same key is a duplicate and answered 94, or, if it is marked as a repeat and is the same, with
//     the stored answer.
func (l *Ledger) request(m *messages.Message, d decision) entered {
	l.mu.Lock()
	defer l.mu.Unlock()
	pan := m.PAN()
	key := ledgerKey{m.MTI.Class(), m.Get(messages.STAN), m.Get(messages.TransmissionTime)}
	hashed, terminal, amount := l.hash(pan), m.Get(messages.Terminal), max(0, amountOf(m))
	for known := l.index[key]; known != nil; known = known.next {
		if known.Terminal == terminal {
			return l.again(m.MTI, known, known.card == hashed && known.Amount == amount)
		}
	}
	if len(l.holds) >= l.maxHolds {
		l.counts.Full++
		return entered{full: true}
	}
	l.counts.Requests++
	e := &entry{card: hashed, next: l.index[key], Hold: Hold{MTI: m.MTI, STAN: key.stan, TransmissionTime: key.transmissionTime,
		RRN: m.Get(messages.RRN), PAN: pan.Mask(), Amount: amount, Currency: m.Get(messages.Currency),
		Terminal: terminal, State: Held, RequestedAt: time.Now().UTC()}}
	for _, u := range l.unknown[key] {
		if u.card == hashed {
			u.OriginalCame = true
			e.ReversalCounts = u.ReversalCounts
			d = decision{code: codeNoAction}
			l.counts.RefusedAfterReversal++
		}
	}
	if e.ResponseCode = d.code; d.approves {
		e.ApprovedAmount = d.amount
		e.AuthorizationID = fmt.Sprintf("%06d", (len(l.holds)+1)%1_000_000)
		l.counts.Held++
	} else {
		e.State = Declined
		l.counts.Declined++
	}
	l.holds = append(l.holds, e)
	l.index[key] = e
	return e.stored()
}

// again answers a request that came before.
func (l *Ledger) again(mti messages.MTI, known *entry, same bool) entered {
	if mti.IsRepeat() && same {
		l.counts.RepeatedRequests++
		if known.State == Reversed {
			return entered{decision: decision{code: codeNoAction}}
		}
		return known.stored()
	}
	l.counts.DuplicateRequests++
	if len(l.duplicates) < maxListed {
		l.duplicates = append(l.duplicates, RequestKey{string(known.MTI[1]), known.STAN, known.TransmissionTime, known.Terminal, same})
	}
	return entered{decision: decision{code: codeDuplicate}}
}

func (e *entry) stored() entered {
	return entered{decision: decision{e.ResponseCode, e.State == Held, e.ApprovedAmount}, authorizationID: e.AuthorizationID}
}

// errOriginalData says that a reversal does not name its original.
var errOriginalData = errors.New("DE 90 does not name an original")

// reverse undoes the hold that DE 90 and the card name and returns the code of the answer. With a refusal other than "", the message is
// counted and answered so, and nothing is undone.
//
// A hold that is reversed already is answered 00 again: the answer to the first reversal may have been lost, and its sender must hear
// that the debt is paid. A reversal of an unknown request is answered 25 and remembered, see request.
func (l *Ledger) reverse(m *messages.Message, refusal string) (code string, err error) {
	original := m.Get(messages.OriginalData)
	if len(original) < 20 {
		return "", errOriginalData
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.counts.Reversals++
	if m.MTI.IsRepeat() {
		l.counts.ReversalRepeats++
	}
	mti := messages.MTI(original[:4])
	key := ledgerKey{mti.Class(), original[4:10], original[10:20]}
	pan := m.PAN()
	hashed := l.hash(pan)
	known := l.index[key]
	for known != nil && known.card != hashed {
		known = known.next
	}
	if known == nil {
		return l.reverseUnknown(m, mti, key, pan, refusal), nil
	}
	l.count(known.add(m.MTI))
	if m.Has(messages.Amount) && amountOf(m) != known.Amount || differs(m, messages.Currency, known.Currency) ||
		differs(m, messages.Terminal, known.Terminal) {
		l.counts.DisagreeingReversals++
	}
	switch {
	case refusal != "":
		return refusal, nil
	case known.State == Reversed:
		l.counts.AlreadyReversed++
	case known.State == Held:
		known.State, known.ReversedAt = Reversed, time.Now().UTC()
		l.counts.Held--
		l.counts.Reversed++
	}
	return codeApproved, nil
}

func (l *Ledger) reverseUnknown(m *messages.Message, mti messages.MTI, key ledgerKey, pan card.PAN, refusal string) string {
	hashed := l.hash(pan)
	var known *unknownEntry
	for _, u := range l.unknown[key] {
		if u.card == hashed {
			known = u
		}
	}
	if known == nil {
		known = &unknownEntry{card: hashed, UnknownReversal: UnknownReversal{OriginalMTI: mti, STAN: key.stan,
			TransmissionTime: key.transmissionTime, PAN: pan.Mask(), Amount: max(0, amountOf(m)), OtherCard: l.index[key] != nil,
			FirstAt: time.Now().UTC()}}
		l.unknown[key] = append(l.unknown[key], known)
		l.order = append(l.order, known)
	}
	l.count(known.add(m.MTI))
	if refusal != "" {
		return refusal
	}
	l.counts.UnknownReversals++
	return codeNotFound
}

func (l *Ledger) count(unmarked bool) {
	if unmarked {
		l.counts.UnmarkedRepeats++
	}
}

// tally changes the counts under the ledger's lock.
func (l *Ledger) tally(change func(*Counts)) {
	l.mu.Lock()
	defer l.mu.Unlock()
	change(&l.counts)
}

func (l *Ledger) hash(pan card.PAN) uint64 { return maphash.String(l.cards, pan.Reveal()) }

func differs(m *messages.Message, e messages.Element, want string) bool {
	return m.Has(e) && m.Get(e) != want
}

// Snapshot copies the ledger.
func (l *Ledger) Snapshot() Snapshot {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := Snapshot{Counts: l.copyCounts(), Holds: make([]Hold, len(l.holds)), UnknownReversals: make([]UnknownReversal, len(l.order)),
		DuplicateRequests: append([]RequestKey{}, l.duplicates...)}
	for i, e := range l.holds {
		s.Holds[i] = e.Hold
	}
	for i, u := range l.order {
		s.UnknownReversals[i] = u.UnknownReversal
	}
	return s
}

// Counts copies the totals alone, which is cheap.
func (l *Ledger) Counts() Counts {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.copyCounts()
}

func (l *Ledger) copyCounts() Counts {
	counts := l.counts
	counts.Effects = make(map[string]int64, len(l.counts.Effects))
	for name, n := range l.counts.Effects {
		counts.Effects[name] = n
	}
	return counts
}

// WriteJSON writes a snapshot as one indented JSON object.
func (l *Ledger) WriteJSON(w io.Writer) error {
	encoder := json.NewEncoder(w)
	encoder.SetIndent("", "  ")
	if err := encoder.Encode(l.Snapshot()); err != nil {
		return fmt.Errorf("writing ledger: %w", err)
	}
	return nil
}
