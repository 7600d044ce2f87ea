package simulator

import (
	"encoding/json"
	"fmt"
	"hash/maphash"
	"io"
	"maps"
	"reflect"
	"slices"
	"strings"
	"sync"
	"time"

	"acquirerd/card"
	"acquirerd/messages"
	"acquirerd/specs"
)

// The limits of a ledger.
const (
	DefaultMaxHolds = 2_000_000 // entries; a request over it is answered with the dialect's code for "busy" and not entered
	maxListed       = 1_000     // duplicates and unknown words that are listed; beyond it they are only counted
	maxEvents       = 16        // messages that are listed of one hold; beyond it they are only counted
)

// A State is what has become of a request at the processor.
type State string

// The states of a hold. A request that was never approved holds nothing.
const (
	Held     State = "held"
	Reversed State = "reversed"
	Declined State = "declined"
)

// A Hold is one request, or one advice, as the processor saw it. It holds no card number in clear.
type Hold struct {
	Endpoint         string       `json:"endpoint,omitempty"` // whose ledger it is from, see Merge
	MTI              messages.MTI `json:"mti"`
	STAN             string       `json:"stan"`
	TransmissionTime string       `json:"transmission_time"`
	LocalTime        string       `json:"local_time,omitempty"` // where a reversal names its original by DE 12
	RRN              string       `json:"rrn"`
	PAN              string       `json:"pan"` // masked
	Amount           int64        `json:"amount"`
	ApprovedAmount   int64        `json:"approved_amount"` // less than Amount for a partial approval or reversal, 0 for a decline
	Currency         string       `json:"currency"`
	Terminal         string       `json:"terminal"`
	ResponseCode     string       `json:"response_code"` // of ISO 8583:1987, as everywhere in a ledger
	AuthorizationID  string       `json:"authorization_id,omitempty"`
	State            State        `json:"state"`
	RequestedAt      time.Time    `json:"requested_at"`
	ReversedAt       time.Time    `json:"reversed_at,omitzero"`
	Replacement      int64        `json:"replacement,omitempty"` // what a reversal in part left
	Advice           bool         `json:"advice,omitempty"`      // it was no request: 0120, 0220 or a repeat. Declined: not taken yet

	ReversalCounts
	AdviceCounts
	Events
}

// An Event is one message that came for a hold.
type Event struct {
	At          time.Time    `json:"at"`
	MTI         messages.MTI `json:"mti"`
	Code        string       `json:"code,omitempty"` // of its answer, whether that went out or not; "" for a message that was lost
	Replacement int64        `json:"replacement,omitempty"`
	Effects     []string     `json:"effects,omitempty"` // that it met
}

// Events are the first messages of a hold.
type Events struct {
	Events     []Event `json:"events,omitempty"`
	MoreEvents int     `json:"more_events,omitempty"` // that are not listed
}

func (e *Events) note(r reader, m *messages.Message, code string, effects []string) {
	if len(e.Events) == maxEvents {
		e.MoreEvents++
		return
	}
	_, replacement, _ := r.amounts(m)
	e.Events = append(e.Events, Event{At: time.Now().UTC(), MTI: m.MTI, Code: code, Replacement: replacement, Effects: effects})
}

// AdviceCounts are the messages of one advice.
type AdviceCounts struct {
	Advices         int `json:"advices,omitempty"`          // all of them
	AdviceRepeats   int `json:"advice_repeats,omitempty"`   // those marked as repeats: 0121, 0221
	UnmarkedAdvices int `json:"unmarked_advices,omitempty"` // 0120 or 0220 after another one of them, as for reversals
}

func (c *AdviceCounts) add(mti messages.MTI) (unmarked bool) {
	c.Advices++
	if mti.IsRepeat() {
		c.AdviceRepeats++
		return false
	}
	if c.Advices-c.AdviceRepeats > 1 {
		c.UnmarkedAdvices++
		return true
	}
	return false
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
	STAN             string       `json:"stan"`                        // of the original, as its data elements say, and
	TransmissionTime string       `json:"transmission_time,omitempty"` // DE 7, or
	LocalTime        string       `json:"local_time,omitempty"`        // DE 12
	PAN              string       `json:"pan"`                         // masked
	Amount           int64        `json:"amount"`
	OtherCard        bool         `json:"other_card"` // there is such a request, of another card
	OriginalCame     bool         `json:"original_came"`
	FirstAt          time.Time    `json:"first_at"`

	ReversalCounts
	Events
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
	DisagreeingReversals int64            `json:"disagreeing_reversals"` // with their originals, or with one before
	PartialReversals     int64            `json:"partial_reversals"`     // holds that a reversal in part has lowered
	Advices              int64            `json:"advices"`               // entered: without repeats
	RepeatedAdvices      int64            `json:"repeated_advices"`      // of a known one that is taken: answered 00 once more
	UnmarkedAdvices      int64            `json:"unmarked_advices"`      // that should have been marked as repeats
	DisagreeingAdvices   int64            `json:"disagreeing_advices"`   // of a known number, and another card or amount
	DuplicateRequests    int64            `json:"duplicate_requests"`
	RepeatedRequests     int64            `json:"repeated_requests"` // 0101, 0201 of a known request: the stored answer went out
	FormatErrors         int64            `json:"format_errors"`
	BeforeSignOn         int64            `json:"before_sign_on"`
	Unsupported          int64            `json:"unsupported"`
	Unasked              int64            `json:"unasked"` // answers that nobody asked for
	WrongPINs            int64            `json:"wrong_pins"`
	MalformedPINBlocks   int64            `json:"malformed_pin_blocks"` // no block of the zone key's format and that card under it
	RightPINs            int64            `json:"right_pins"`
	WrongMACs            int64            `json:"wrong_macs"`         // messages whose MAC was wrong or missing: refused and not entered
	Full                 int64            `json:"full"`               // requests refused at the ledger's limit
	Effects              map[string]int64 `json:"effects"`            // faults and scripted effects that messages met, by name
	SignOns              int64            `json:"sign_ons"`           // 0800 dialogues that were accepted
	SignOffs             int64            `json:"sign_offs"`          //
	Echoes               int64            `json:"echoes"`             //
	Keepalives           int64            `json:"keepalives"`         // frames of no bytes that were no answers
	Demands              int64            `json:"demands"`            // messages of the processor's own, without their repeats
	DemandsAnswered      int64            `json:"demands_answered"`   // as they should be
	DemandsRefused       int64            `json:"demands_refused"`    // by another code
	DemandsUnanswered    int64            `json:"demands_unanswered"` // in time, of those that are sent once
	DemandsLost          int64            `json:"demands_lost"`       // because their link, or the processor's service, ended
	DemandsOpen          int64            `json:"demands_open"`       // advices that are still sent again and again
	DemandsTwice         int64            `json:"demands_twice"`      // answers beyond one for each sending
	DemandsImproper      int64            `json:"demands_improper"`   // answers that disagree with what they answer
	Links                int64            `json:"links"`              // connections that were accepted, or made
	LostAnswers          int64            `json:"lost_answers"`       // made, and no link to send them on
}

// A Snapshot is a ledger at one moment. It shares nothing with it.
type Snapshot struct {
	Counts            Counts            `json:"counts"`
	Holds             []Hold            `json:"holds"` // in the order of their arrival
	UnknownReversals  []UnknownReversal `json:"unknown_reversals"`
	DuplicateRequests []RequestKey      `json:"duplicate_requests"`

	merged bool
}

// Merge puts the ledgers of several processors together, by the names that the daemon has for them, for one comparison with its journal.
func Merge(ledgers map[string]Snapshot) Snapshot {
	all := Snapshot{Counts: Counts{Effects: map[string]int64{}}, merged: true}
	to := reflect.ValueOf(&all.Counts).Elem()
	for _, name := range slices.Sorted(maps.Keys(ledgers)) {
		one := ledgers[name]
		from := reflect.ValueOf(one.Counts)
		for i := range from.NumField() {
			if from.Field(i).Kind() == reflect.Int64 {
				to.Field(i).SetInt(to.Field(i).Int() + from.Field(i).Int())
			}
		}
		for effect, n := range one.Counts.Effects {
			all.Counts.Effects[effect] += n
		}
		for _, h := range one.Holds {
			h.Endpoint = name
			all.Holds = append(all.Holds, h)
		}
		all.UnknownReversals = append(all.UnknownReversals, one.UnknownReversals...)
		all.DuplicateRequests = append(all.DuplicateRequests, one.DuplicateRequests...)
	}
	return all
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
	reader     reader // of its processors, which all speak one dialect; zero before the first
	cards      maphash.Seed
	maxHolds   int
	holds      []*entry
	index      map[ledgerKey]*entry
	unknown    map[ledgerKey][]*unknownEntry
	order      []*unknownEntry
	duplicates []RequestKey
	counts     Counts
}

type entry struct {
	Hold
	card     uint64
	acquirer string // DE 32 without leading zeros
	approved int64  // at first: a repeat is told what the request was
	unmarked bool   // one without the mark of a repeat has come
	asked    int64  // what the first reversal was to leave
	undone   bool   // an advice was reversed before it was taken
	next     *entry // of the same key, from another terminal or of another card
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

// read has the ledger read messages of a dialect from now on. What is in it was read in the same one, or it is an error.
func (l *Ledger) read(r reader) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.reader.Dialect != nil && (l.reader.Reversal.Original != r.Reversal.Original || l.reader.Standard != r.Standard) {
		return fmt.Errorf("its ledger has originals named as in %s", l.reader.Name)
	}
	l.reader = r
	return nil
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
//     the stored answer; so is the first one that has no mark, after repeats that have.
func (l *Ledger) request(m *messages.Message, d decision, effects []string) entered {
	l.mu.Lock()
	defer l.mu.Unlock()
	if known := l.find(m); known != nil {
		again := l.again(m, known)
		known.note(l.reader, m, again.code, effects)
		return again
	}
	e, reversed := l.enter(m)
	if e == nil {
		return entered{full: true}
	}
	l.counts.Requests++
	if reversed {
		d = decision{code: codeNoAction}
	}
	if e.ResponseCode = d.code; d.approves {
		e.ApprovedAmount, e.approved = d.amount, d.amount
		e.AuthorizationID = fmt.Sprintf("%06d", len(l.holds)%1_000_000)
		l.counts.Held++
	} else {
		e.State = Declined
		l.counts.Declined++
	}
	e.note(l.reader, m, e.ResponseCode, effects)
	return e.stored()
}

// find returns what was entered under the numbers of a request or an advice.
func (l *Ledger) find(m *messages.Message) *entry {
	known, terminal := l.index[l.reader.key(m)], m.Get(messages.Terminal)
	for known != nil && known.Terminal != terminal {
		known = known.next
	}
	return known
}

// enter makes the entry of a request or an advice, nil if the ledger is full. reversed says that its reversal came first.
func (l *Ledger) enter(m *messages.Message) (e *entry, reversed bool) {
	if len(l.holds) >= l.maxHolds {
		l.counts.Full++
		return nil, false
	}
	key, pan := l.reader.key(m), m.PAN()
	e = &entry{card: l.hash(pan), acquirer: strings.TrimLeft(m.Get(messages.AcquirerID), "0"), next: l.index[key], Hold: Hold{MTI: m.MTI,
		STAN: key.stan, TransmissionTime: m.Get(messages.TransmissionTime),
		RRN: m.Get(messages.RRN), PAN: pan.Mask(), Amount: max(0, amountOf(m)), Currency: m.Get(messages.Currency),
		Terminal: m.Get(messages.Terminal), State: Held, RequestedAt: time.Now().UTC(), Advice: isAdvice(m.MTI)}, unmarked: !m.MTI.IsRepeat()}
	if l.reader.keyTime() != messages.TransmissionTime {
		e.LocalTime = key.time
	}
	for _, u := range l.unknown[key] {
		if u.card == e.card {
			u.OriginalCame, reversed = true, true
			e.ReversalCounts = u.ReversalCounts
			l.counts.RefusedAfterReversal++
		}
	}
	l.holds = append(l.holds, e)
	l.index[key] = e
	return e, reversed
}

// same reports whether a message of known numbers says what the first one said.
func (l *Ledger) same(m *messages.Message, known *entry) bool {
	return known.Advice == isAdvice(m.MTI) && known.card == l.hash(m.PAN()) && known.Amount == max(0, amountOf(m))
}

// again answers a request that came before. One without the mark may be the first that was sent, and have been overtaken by its repeat.
func (l *Ledger) again(m *messages.Message, known *entry) entered {
	same, overtaken := l.same(m, known), !known.unmarked
	known.unmarked = known.unmarked || !m.MTI.IsRepeat()
	if same && (m.MTI.IsRepeat() || overtaken) {
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
	return entered{decision: decision{e.ResponseCode, e.State == Held, e.approved}, authorizationID: e.AuthorizationID}
}

// advise enters an advice and returns the code of the answer, "" at the ledger's limit. With a refusal other than "", it is not taken;
// a repeat may take it later. One that is taken is answered 00 again: its sender must hear that the debt is paid. One whose reversal came
// first is answered 00 too, and holds nothing.
func (l *Ledger) advise(m *messages.Message, refusal string, effects []string) (code string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	known := l.find(m)
	if known == nil {
		var reversed bool
		if known, reversed = l.enter(m); known == nil {
			return ""
		}
		l.counts.Advices++
		l.counts.Declined++
		known.State, known.undone = Declined, reversed // until it is taken, below
	} else if !known.Advice {
		return l.again(m, known).code
	}
	defer func() { known.note(l.reader, m, code, effects) }()
	if known.AdviceCounts.add(m.MTI) {
		l.counts.UnmarkedAdvices++
	}
	if !l.same(m, known) {
		l.counts.DisagreeingAdvices++
		return codeDuplicate
	}
	switch {
	case known.State != Declined:
		l.counts.RepeatedAdvices++
		return codeApproved
	case refusal != "":
		known.ResponseCode = refusal
		return refusal
	}
	l.counts.Declined--
	known.ResponseCode = codeApproved
	if known.undone {
		known.State, known.ReversedAt = Reversed, time.Now().UTC()
		l.counts.Reversed++
		return codeApproved
	}
	known.State, known.ApprovedAmount, known.approved = Held, known.Amount, known.Amount
	l.counts.Held++
	return codeApproved
}

// lost notes a message that never arrived, where what it is about is known.
func (l *Ledger) lost(m *messages.Message, effects []string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	known := l.find(m)
	if m.MTI.Class() == messages.Reversal {
		of, err := l.reader.original(m)
		if err != nil {
			return
		}
		known = l.original(of.ledgerKey, l.hash(m.PAN()))
	}
	if known != nil {
		known.note(l.reader, m, "", effects)
	}
}

// original finds what a reversal and its card name.
func (l *Ledger) original(key ledgerKey, hashed uint64) *entry {
	known := l.index[key]
	for known != nil && known.card != hashed {
		known = known.next
	}
	return known
}

// reverse undoes the hold that a reversal and its card name, or lowers it to what the reversal leaves, and returns the code of the answer. With a
// refusal other than "", the message is counted and answered so, and nothing is undone.
//
// A hold that is reversed already is answered 00 again: the answer to the first reversal may have been lost, and its sender must hear
// that the debt is paid. A reversal of an unknown request is answered 25 and remembered, see request.
func (l *Ledger) reverse(m *messages.Message, refusal string, effects []string) (code string, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	of, err := l.reader.original(m)
	if err != nil {
		return "", err
	}
	amount, replacement, err := l.reader.amounts(m)
	if err != nil {
		return "", err
	}
	l.counts.Reversals++
	if m.MTI.IsRepeat() {
		l.counts.ReversalRepeats++
	}
	known := l.original(of.ledgerKey, l.hash(m.PAN()))
	if known == nil {
		return l.reverseUnknown(m, of, refusal, effects), nil
	}
	defer func() { known.note(l.reader, m, code, effects) }()
	first := known.Reversals == 0
	l.count(known.ReversalCounts.add(m.MTI))
	if amount >= 0 && amount != known.Amount || differs(m, messages.Currency, known.Currency) ||
		differs(m, messages.Terminal, known.Terminal) || replacement > known.Amount || !first && replacement != known.asked ||
		l.reader.Reversal.Numbers == specs.NewNumbers && m.Get(messages.STAN) == known.STAN && m.Get(messages.TransmissionTime) == known.TransmissionTime ||
		of.mti.First() != known.MTI.First() || of.acquirer != "" && of.acquirer != known.acquirer {
		l.counts.DisagreeingReversals++
	}
	if first {
		known.asked = replacement
	}
	switch {
	case refusal != "":
		return refusal, nil
	case known.State == Reversed, known.State == Held && replacement > 0 && known.Replacement == replacement:
		l.counts.AlreadyReversed++
	case known.State == Held && replacement > 0:
		if replacement < known.ApprovedAmount { // else so much is not held, and nothing is to be undone
			known.Replacement, known.ApprovedAmount = replacement, replacement
			l.counts.PartialReversals++
		}
	case known.State == Held:
		known.State, known.ReversedAt = Reversed, time.Now().UTC()
		l.counts.Held--
		l.counts.Reversed++
	case known.Advice: // declined: not taken yet, and now never
		known.undone = true
	}
	return codeApproved, nil
}

func (l *Ledger) reverseUnknown(m *messages.Message, of original, refusal string, effects []string) (code string) {
	key, pan := of.ledgerKey, m.PAN()
	hashed := l.hash(pan)
	var known *unknownEntry
	for _, u := range l.unknown[key] {
		if u.card == hashed {
			known = u
		}
	}
	if known == nil {
		amount, _, _ := l.reader.amounts(m) // reverse has read them
		known = &unknownEntry{card: hashed, UnknownReversal: UnknownReversal{OriginalMTI: of.mti, STAN: key.stan, PAN: pan.Mask(),
			Amount: max(0, amount), OtherCard: l.index[key] != nil, FirstAt: time.Now().UTC()}}
		*map[messages.Element]*string{messages.TransmissionTime: &known.TransmissionTime, messages.LocalTime: &known.LocalTime}[l.reader.keyTime()] = key.time
		l.unknown[key] = append(l.unknown[key], known)
		l.order = append(l.order, known)
	}
	defer func() { known.note(l.reader, m, code, effects) }()
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
		s.Holds[i].Events.Events = slices.Clone(e.Events.Events)
	}
	for i, u := range l.order {
		s.UnknownReversals[i] = u.UnknownReversal
		s.UnknownReversals[i].Events.Events = slices.Clone(u.Events.Events)
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
