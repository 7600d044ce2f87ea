package simulator

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"acquirerd/messages"
)

// Response codes (ISO 8583:1987, DE 39) that the simulated processor gives, in the words of its dialect. What of them approves, that says.
const (
	codeApproved           = "00"
	codeDeclined           = "05" // do not honour
	codePartial            = "10"
	codeInvalidCard        = "14"
	codeNoAction           = "21" // no action taken: the request was undone before it came
	codeNotFound           = "25" // the original of a reversal is not on file
	codeWrongPIN           = "55"
	codeBeforeSignOn       = "91"
	codeDuplicate          = "94"
	codeByAmount           = "amount" // in a rule: the last two digits of the amount
	amountOfHalf     int64 = -1       // in a rule: half of what was asked
	cutAnywhere      int64 = -1       // in a rule: at a byte that chance chooses
)

// DefaultRules is how the processor decides what no rule of its owner and no card has decided: by the last four digits of the
// amount in minor units. An amount that is not in the table is approved with 00.
var DefaultRules = []struct{ Rule, Meaning string }{
	{"amount=*9000 partial", "approved with 10 for half of the amount"},
	{"amount=*9001-9099 answer=amount", "answered with the last two digits as the code (9051: 51); held if the dialect calls that code approving"},
	{"amount=*9101-9199 delay=amount", "approved at once, answered after the last two digits times 100 ms (9115: 1.5 s)"},
	{"amount=*9200 silence", "approved and held, never answered"},
	{"amount=*9201 lost", "as if the request had never arrived: nothing held, no answer"},
	{"amount=*9202 late=2s", "decided only after 2 s, so that a reversal can overtake the request"},
	{"amount=*9300 drop", "approved and held, then the link is dropped without an answer"},
	{"amount=*9301 lost drop", "the link is dropped, and nothing is held"},
	{"amount=*9302 close", "answered, then the link is closed"},
	{"amount=*9303 drop other-link", "the link is dropped, and the answer comes on another one, or on the next that signs on"},
	{"amount=*9304 cut", "the link is closed in the midst of the answer"},
	{"amount=*9400 duplicate", "answered twice"},
	{"amount=*9401 garble", "the answer cannot be decoded"},
	{"amount=*9402 no-stan", "the answer has no DE 11"},
	{"amount=*9403 other-link", "the answer comes on another link, if there is one"},
	{"amount=*9404 wrong-amount", "the answer names another amount"},
	{"amount=*9405 stall=2s", "answered, and the link is not read for 2 s"},
	{"mti=04 amount=*9500 silence attempt=1", "approved; its first reversal is done and not answered"},
	{"mti=04 amount=*9501 answer=91 attempt=1", "approved; its first reversal is refused with 91 and not done"},
	{"mti=04 amount=*9502 answer=12", "approved; its reversals are always refused with 12"},
	{"mti=04 amount=*9503 lost attempt=1", "approved; its first reversal never arrives"},
	{"mti=022 amount=*9600 silence attempt=1", "a completion (0220) that is taken, and at first not answered"},
	{"mti=022 amount=*9601 answer=91 attempt=1", "a completion that is at first refused with 91 and not taken"},
	{"mti=022 amount=*9602 answer=12", "a completion that is always refused with 12"},
	{"mti=022 amount=*9603 lost attempt=1", "a completion that at first never arrives"},
}

// ruleWords says what a rule is made of.
const ruleWords = `amount, card, currency, terminal, mti, pin, attempt, times (what it applies to); ` +
	`approve, decline, answer, partial, delay, late, silence, lost, drop, close, duplicate, reorder, garble, no-stan, other-link, wrong-amount, ` +
	`cut, stall, reject, keepalive, bad-mac, no-mac, demand (what happens)`

// defaultReject is a reject code, four hexadecimal digits.
const (
	defaultReject    = "0101"
	rejectedByChance = 0x0101
)

// A Rule says what happens to the messages that it matches. ParseRule makes one from text.
type Rule struct {
	text string
	when condition
	do   action
	used *atomic.Int64
}

// A condition holds for a message if all its parts do; a zero part holds always.
type condition struct {
	mti                string // prefix
	card               string
	amounts            []amountRange
	currency, terminal string
	pin                string // yes or no
	attempt, times     int64
}

// An amountRange holds for amounts, or for their last digits if digits is not 0.
type amountRange struct {
	modulus, low, high int64
}

// An action is what happens to one message. The zero action approves and answers at once.
type action struct {
	code         string        // DE 39; "" approves, codeByAmount takes it from the amount
	approved     int64         // the amount of a partial approval, amountOfHalf, or 0 for all
	late         time.Duration // before anything is decided
	delay        time.Duration // between decision and answer
	delayAmount  bool          // delay by the last two digits of the amount, in tenths of a second
	lost         bool          // nothing is decided
	silence      bool
	drop         bool // the link, before the answer
	close        bool // the link, after the answer
	duplicate    bool
	reorder      bool // the answer changes places with the next one on its link
	garble       bool
	garbleMode   uint64
	noSTAN       bool
	otherLink    bool
	wrongAmount  bool
	cut          int64 // the answer is written up to this byte and the link closed: cutAnywhere, or the bytes and one; 0: whole
	cutMode      uint64
	stall        time.Duration // the link is not read so long after the message
	reject       bool          // the message is returned behind a reject header, and nothing is decided
	rejectCode   uint16
	mac          macFault // of the answer
	keepalive    bool     // a frame of no bytes goes before the answer
	demand       Demand   // that the processor makes after the message, on its link
	declinesOnly bool     // the code was given as a decline
	effects      []string // names of all that breaks
}

// ParseRule reads a rule: words separated by blanks, first to last in any order. What it applies to:
//
//	amount=5100            the amount in minor units; a range 5000-5999; *51 or *9001-9099 for its last digits; several by comma
//	card=4000000000000002  the card
//	currency=978           DE 49
//	terminal=TERM0001      DE 41, without the blanks at its end
//	mti=0200               the MTI or its first digits; without it a rule applies to requests, 010x and 020x
//	pin=yes                whether there is a PIN block
//	attempt=1              only the first so many messages of the same transaction: of its requests, or of its reversals
//	times=3                only the first so many messages that the rule matches
//
// What happens (nothing said: approved with 00, answered at once):
//
//	approve   decline=51   answer=CODE   answer=amount   partial   partial=1000
//	delay=1.5s      decided at once, answered later; delay=amount: the amount's last two digits in tenths of a second
//	late=2s         decided and answered later
//	silence         decided, never answered          lost       as if it had never arrived
//	drop            the link, instead of an answer   close      the link, after the answer
//	duplicate       answered twice                   reorder    answered after the next answer on the link
//	garble          the answer cannot be decoded     no-stan    the answer has no DE 11
//	other-link      answered on another link         wrong-amount   the answer names another amount
//	cut             the link is closed in the midst of the answer, at a byte that chance chooses; cut=N: after N bytes
//	stall=2s        the link is not read for so long after the message
//	reject          the network returns the message behind a reject header, if the dialect has one; reject=0104: with that code
//	demand=echo     the processor demands an echo on the link; or sign-on, sign-off, cutover, key-change, advice (0120), reversal (0420)
//	bad-mac         the answer's MAC is another; no-mac: it has none; where the dialect has MACs
//	keepalive       a frame of no bytes goes before the answer, if the dialect takes one
//
// Codes are those of ISO 8583:1987, whatever the dialect's own are.
//
// For a reversal, an answer other than 00 means that it is not done, and for an advice (mti=012, mti=022), that it is not taken. The error
// quotes no value.
func ParseRule(text string) (Rule, error) {
	rule := Rule{used: new(atomic.Int64)}
	var shown []string
	for _, word := range strings.Fields(text) {
		name, value, hasValue := strings.Cut(word, "=")
		if err := rule.parse(name, value, hasValue); err != nil {
			return Rule{}, fmt.Errorf("reading rule: %s %w", name, err)
		}
		if name == "card" {
			word = "card=…" + value[len(value)-4:]
		}
		shown = append(shown, word)
	}
	if len(shown) == 0 {
		return Rule{}, errors.New("reading rule: it is empty")
	}
	rule.text = strings.Join(shown, " ")
	return rule, nil
}

// String is the rule's text with the card number cut to its last four digits.
func (r Rule) String() string { return r.text }

var (
	errNoValue    = errors.New("takes no value")
	errRuleValue  = errors.New("has a value that it cannot have")
	errRuleWord   = fmt.Errorf("is not a word of rules; they are %s", ruleWords)
	errRuleLength = errors.New("is not two characters long")
)

func (r *Rule) parse(name, value string, hasValue bool) error {
	flags := map[string]*bool{"silence": &r.do.silence, "lost": &r.do.lost, "drop": &r.do.drop, "close": &r.do.close,
		"duplicate": &r.do.duplicate, "reorder": &r.do.reorder, "garble": &r.do.garble, "no-stan": &r.do.noSTAN,
		"other-link": &r.do.otherLink, "wrong-amount": &r.do.wrongAmount, "keepalive": &r.do.keepalive}
	if flag, known := flags[name]; known {
		*flag = true
		if hasValue {
			return errNoValue
		}
		return nil
	}
	switch name {
	case string(macWrong), string(macMissing):
		if r.do.mac = macFault(name); hasValue {
			return errNoValue
		}
	case "approve", "partial":
		return r.parseApproval(name, value, hasValue)
	case "amount":
		return r.parseAmounts(value)
	case "card":
		if len(value) < 12 || len(value) > 19 || !digitsOnly(value) {
			return errRuleValue
		}
		r.when.card = value
	case "mti":
		if len(value) > 4 || !digitsOnly(value) {
			return errRuleValue
		}
		r.when.mti = value
	case "currency", "terminal":
		if value == "" {
			return errRuleValue
		}
		*map[string]*string{"currency": &r.when.currency, "terminal": &r.when.terminal}[name] = value
	case "pin":
		if value != "yes" && value != "no" {
			return errRuleValue
		}
		r.when.pin = value
	case "attempt", "times":
		n, err := strconv.ParseInt(value, 10, 32)
		if err != nil || n < 1 {
			return errRuleValue
		}
		*map[string]*int64{"attempt": &r.when.attempt, "times": &r.when.times}[name] = n
	case "decline", "answer":
		if len(value) != 2 && value != codeByAmount {
			return errRuleLength
		}
		r.do.code, r.do.declinesOnly = value, name == "decline"
	case "demand":
		if r.do.demand = Demand(value); !slices.Contains(Demands, r.do.demand) {
			return errRuleValue
		}
	case "delay", "late", "stall":
		return r.parseWait(name, value)
	case "cut":
		return r.parseCut(value, hasValue)
	case "reject":
		code, err := strconv.ParseUint(byDefault(value, defaultReject), 16, 16)
		if err != nil || hasValue && len(value) != len(defaultReject) {
			return errRuleValue
		}
		r.do.reject, r.do.rejectCode = true, uint16(code)
	default:
		return errRuleWord
	}
	return nil
}

func (r *Rule) parseApproval(name, value string, hasValue bool) error {
	if name == "approve" {
		if r.do.code = codeApproved; hasValue {
			return errNoValue
		}
		return nil
	}
	r.do.code, r.do.approved = codePartial, amountOfHalf
	if !hasValue {
		return nil
	}
	n, err := strconv.ParseInt(value, 10, 64)
	if err != nil || n < 1 {
		return errRuleValue
	}
	r.do.approved = n
	return nil
}

func (r *Rule) parseWait(name, value string) error {
	if name == "delay" && value == codeByAmount {
		r.do.delayAmount = true
		return nil
	}
	wait, err := time.ParseDuration(value)
	if err != nil || wait <= 0 {
		return errRuleValue
	}
	*map[string]*time.Duration{"delay": &r.do.delay, "late": &r.do.late, "stall": &r.do.stall}[name] = wait
	return nil
}

func (r *Rule) parseCut(value string, hasValue bool) error {
	if r.do.cut = cutAnywhere; !hasValue {
		return nil
	}
	n, err := strconv.ParseInt(value, 10, 32)
	if err != nil || n < 0 {
		return errRuleValue
	}
	r.do.cut = n + 1
	return nil
}

func (r *Rule) parseAmounts(value string) error {
	for part := range strings.SplitSeq(value, ",") {
		digits, last := strings.CutPrefix(part, "*")
		low, high, isRange := strings.Cut(digits, "-")
		if !isRange {
			high = low
		}
		amounts := amountRange{}
		var errLow, errHigh error
		amounts.low, errLow = strconv.ParseInt(low, 10, 64)
		amounts.high, errHigh = strconv.ParseInt(high, 10, 64)
		if errLow != nil || errHigh != nil || len(low) > 12 || len(high) > 12 || amounts.low < 0 || amounts.low > amounts.high ||
			last && len(low) != len(high) {
			return errRuleValue
		}
		if last {
			amounts.modulus = 1
			for range len(low) {
				amounts.modulus *= 10
			}
		}
		r.when.amounts = append(r.when.amounts, amounts)
	}
	return nil
}

// matches reports whether the rule applies to a message of that card and amount. attempt returns how many messages of the same transaction came up to this
// one, which is counted only if a rule asks.
func (r *Rule) matches(m *messages.Message, pan string, amount int64, attempt func() int64) bool {
	w := &r.when
	class := m.MTI.Class()
	switch {
	case w.mti != "" && !strings.HasPrefix(string(m.MTI), w.mti),
		w.mti == "" && (isAdvice(m.MTI) || class != messages.Authorization && class != messages.Financial),
		len(w.amounts) > 0 && !slices.ContainsFunc(w.amounts, func(a amountRange) bool { return a.holds(amount) }),
		w.card != "" && pan != w.card,
		w.currency != "" && m.Get(messages.Currency) != w.currency,
		w.terminal != "" && strings.TrimRight(m.Get(messages.Terminal), " ") != w.terminal,
		w.pin != "" && (w.pin == "yes") != m.Has(messages.PINData),
		w.attempt != 0 && attempt() > w.attempt,
		w.times != 0 && r.used.Add(1) > w.times:
		return false
	}
	return true
}

// isAdvice reports whether a message is an advice of a transaction: 012x or 022x.
func isAdvice(mti messages.MTI) bool {
	class := mti.Class()
	return (class == messages.Authorization || class == messages.Financial) && mti[2] == '2'
}

func (a amountRange) holds(amount int64) bool {
	if amount < 0 {
		return false
	}
	if a.modulus > 0 {
		amount %= a.modulus
	}
	return amount >= a.low && amount <= a.high
}

// amountOf reads DE 4, -1 if it is absent. Of a reversal, see reader.amounts.
func amountOf(m *messages.Message) int64 {
	amount, err := strconv.ParseInt(m.Get(messages.Amount), 10, 64)
	if err != nil {
		return -1
	}
	return amount
}

// builtin makes the rules of the cards and of the table.
func builtin(cards []Card) ([]Rule, error) {
	var rules []Rule
	for _, c := range cards {
		if c.Effects == "" {
			continue
		}
		rule, err := ParseRule("card=" + c.PAN.Reveal() + " " + c.Effects)
		if err != nil {
			return nil, err
		}
		rules = append(rules, rule)
	}
	for _, d := range DefaultRules {
		rule, err := ParseRule(d.Rule)
		if err != nil {
			return nil, err
		}
		rules = append(rules, rule)
	}
	return rules, nil
}
