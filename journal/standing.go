package journal

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"sync"
	"time"

	"acquirerd/card"
)

// money is an amount in minor units of a currency by its ISO 4217 number.
type money struct {
	amount   uint64
	currency string
}

// maxAmountDigits bounds DE 4 (n12), with room: sums of a million of them fit 64 bits.
const maxAmountDigits = 12

// parseMoney takes an absent amount as none.
func parseMoney(amount, currency string) (money, error) {
	if amount == "" {
		return money{currency: currency}, nil
	}
	if len(amount) > maxAmountDigits || !digitsOnly(amount) {
		return money{}, fmt.Errorf("amount is not at most %d digits", maxAmountDigits)
	}
	value, err := strconv.ParseUint(amount, 10, 64)
	if err != nil {
		return money{}, fmt.Errorf("amount is not at most %d digits", maxAmountDigits)
	}
	return money{value, currency}, nil
}

// atStake is the money that a reversal is about: what was approved, without what a partial reversal leaves. An approved amount that is
// none is the processor's, and may not keep the journal from being read: then it is what was asked for.
func atStake(amount, approved, replacement, currency string) (money, error) {
	if approved != "" && len(approved) <= maxAmountDigits && digitsOnly(approved) {
		amount = approved
	}
	whole, err := parseMoney(amount, currency)
	if err != nil || replacement == "" {
		return whole, err
	}
	left, err := parseMoney(replacement, currency)
	whole.amount -= min(left.amount, whole.amount)
	return whole, err
}

// A Debt is something owed, as memory has it.
type Debt struct {
	ID          OwedID
	Transaction TransactionID
	Kind        DebtKind
	Endpoint    string
	Card        card.PANToken // zero if it is not known
	Attempts    int           // before it was taken into memory
	DueAt       time.Time
	Since       time.Time

	stan  string
	own   string // STAN of its message, "" if that is its original's
	money money
}

// A standing is what the journal keeps in memory of its records that are not at rest, true after each commit and loaded at
// start: for the numbers that must not be given out, for attempts under way and for the gauges.
type standing struct {
	mu       sync.Mutex
	inUse    map[string]map[string]int // endpoint, STAN: how many records hold it
	debts    map[OwedID]*Debt
	fresh    map[string][]*Debt // by endpoint, those that its payer has not been told of
	attempts map[OwedID]bool    // those of debts for which a Ticket is out
	ages     []*Debt            // by age; settled ones are dropped later
	amounts  map[string]uint64
	parked   int
}

func newStanding() *standing {
	return &standing{inUse: map[string]map[string]int{}, debts: map[OwedID]*Debt{}, fresh: map[string][]*Debt{}, attempts: map[OwedID]bool{},
		amounts: map[string]uint64{}}
}

// hold keeps a STAN from being given out.
func (s *standing) hold(endpoint, stan string) {
	stans := s.inUse[endpoint]
	if stans == nil {
		stans = map[string]int{}
		s.inUse[endpoint] = stans
	}
	stans[stan]++
}

func (s *standing) release(endpoint, stan string) {
	stans := s.inUse[endpoint]
	if stans[stan]--; stans[stan] <= 0 {
		delete(stans, stan)
	}
}

func (s *standing) holds(endpoint, stan string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.inUse[endpoint][stan] > 0
}

// open and close follow a transaction.
func (s *standing) open(t *Ticket) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.hold(t.endpoint, t.stan)
}

func (s *standing) close(t *Ticket) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.release(t.endpoint, t.stan)
}

// incur adds a debt, the youngest that there is.
func (s *standing) incur(d *Debt) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.debts[d.ID] = d
	s.fresh[d.Endpoint] = append(s.fresh[d.Endpoint], d)
	s.ages = append(s.ages, d)
	s.amounts[d.money.currency] += d.money.amount
	s.hold(d.Endpoint, d.stan)
	if d.own != "" {
		s.hold(d.Endpoint, d.own)
	}
}

// incurred gives an endpoint's fresh debts out, once.
func (s *standing) incurred(endpoint string) []Debt {
	s.mu.Lock()
	defer s.mu.Unlock()
	var list []Debt
	for _, d := range s.fresh[endpoint] {
		if s.debts[d.ID] == d {
			list = append(list, *d)
		}
	}
	delete(s.fresh, endpoint)
	return list
}

// refresh tells the payer once more of a debt that it takes for settled.
func (s *standing) refresh(t *Ticket, due time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if d := s.debts[t.owed]; d != nil {
		d.DueAt, d.Attempts = due, t.attempt
		s.fresh[d.Endpoint] = append(s.fresh[d.Endpoint], d)
	}
}

// number keeps the STAN of a debt's own message from being given out.
func (s *standing) number(id OwedID, own string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if d := s.debts[id]; d != nil && own != "" && d.own == "" {
		d.own = own
		s.hold(d.Endpoint, own)
	}
}

// attempt marks a debt as being paid and returns it; nil if it is not owed or an attempt is under way.
func (s *standing) attempt(id OwedID) *Debt {
	s.mu.Lock()
	defer s.mu.Unlock()
	d := s.debts[id]
	if d == nil || s.attempts[id] {
		return nil
	}
	s.attempts[id] = true
	return d
}

// attempted reports whether an attempt is under way.
func (s *standing) attempted(id OwedID) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.attempts[id]
}

// again ends an attempt: the debt stays.
func (s *standing) again(id OwedID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.attempts, id)
}

// settle ends an attempt and the debt. A parked one keeps its STAN: it may be sent again one day.
func (s *standing) settle(id OwedID, parked bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	d := s.debts[id]
	if d == nil {
		return
	}
	delete(s.debts, id)
	delete(s.attempts, id)
	if s.amounts[d.money.currency] -= d.money.amount; s.amounts[d.money.currency] == 0 {
		delete(s.amounts, d.money.currency)
	}
	for len(s.ages) > 0 && s.debts[s.ages[0].ID] != s.ages[0] {
		s.ages = s.ages[1:]
	}
	if len(s.ages) > 2*len(s.debts)+64 { // an old debt stands before many that were settled
		s.ages = slices.DeleteFunc(s.ages, func(d *Debt) bool { return s.debts[d.ID] != d })
	}
	if parked {
		s.parked++
		return
	}
	s.free(d)
}

// free gives the numbers of a debt back.
func (s *standing) free(d *Debt) {
	s.release(d.Endpoint, d.stan)
	if d.own != "" {
		s.release(d.Endpoint, d.own)
	}
}

// unpark takes back what a parked debt keeps, because it is owed again.
func (s *standing) unpark(d *Debt) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.parked--
	s.free(d)
}

// An Exposure is what stands open with processors. Parked items are not part of the first three.
type Exposure struct {
	Owed    int               // how many are owed
	Oldest  time.Time         // since when the oldest is; zero if none is
	Amounts map[string]uint64 // minor units by currency (ISO 4217 number)
	Parked  int               // how many need a human
}

// Exposure returns what is owed now. It is kept in memory and costs no query.
func (j *Journal) Exposure() Exposure {
	s := j.standing
	s.mu.Lock()
	defer s.mu.Unlock()
	e := Exposure{Owed: len(s.debts), Amounts: maps.Clone(s.amounts), Parked: s.parked}
	if len(s.ages) > 0 {
		e.Oldest = s.ages[0].Since
	}
	return e
}
