package journal

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"
	"testing/synctest"
	"time"
)

var seedFlag = flag.Uint64("seed", 0, "of the model test: 0 takes a few by chance")

// Random operations, with crashes and reopenings between them, against a model in plain maps.
func TestJournalAgreesWithModel(t *testing.T) {
	seeds := []uint64{*seedFlag}
	if *seedFlag == 0 {
		seeds = []uint64{1, 2, rand.Uint64(), rand.Uint64()}
	}
	for _, seed := range seeds {
		t.Run(fmt.Sprintf("seed=%d", seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m := &model{
					t: t, random: rand.New(rand.NewPCG(seed, 0)), path: create(t), keys: map[string]bool{},
					transactions: map[TransactionID]*modelTransaction{}, owed: map[OwedID]*modelOwed{}, given: map[string]bool{},
				}
				m.open()
				for range 400 {
					m.step()
					if t.Failed() {
						t.Fatalf("after %v", m.steps)
					}
				}
				m.compare()
			})
		})
	}
}

// A model is what the journal should hold.
type model struct {
	t      *testing.T
	random *rand.Rand
	path   string
	r      *running
	steps  []string // the last ones

	keys         map[string]bool
	transactions map[TransactionID]*modelTransaction
	owed         map[OwedID]*modelOwed
	given        map[string]bool // RRNs
}

type modelTransaction struct {
	outcome Kind
	ticket  *Ticket // while it is open
	owed    bool
	events  int
}

type modelOwed struct {
	id          OwedID
	transaction TransactionID
	state       State
	attempts    int
	since       time.Time
	dueAt       time.Time
	ticket      *Ticket // while an attempt is under way
}

func (m *model) open() {
	m.r = start(m.t, Config{Path: m.path, BlockSize: 1 + m.random.IntN(5), Batch: 1 + m.random.IntN(3)})
}

// step does one operation of those that are possible.
func (m *model) step() {
	<-time.After(time.Duration(m.random.IntN(1000)) * time.Millisecond)
	steps := []struct {
		name   string
		weight int
		do     func()
	}{
		{"begin", 8, m.begin}, {"finish", 7, m.finish}, {"owe", 2, m.owe}, {"attempt", 5, m.attempt}, {"settle", 5, m.settle},
		{"compare", 1, m.compare}, {"reopen", 1, func() { m.reopen(false) }}, {"crash", 1, func() { m.reopen(true) }},
	}
	n := m.random.IntN(30)
	for _, s := range steps {
		if n -= s.weight; n < 0 {
			m.steps = append(m.steps[max(0, len(m.steps)-20):], s.name)
			s.do()
			return
		}
	}
}

func (m *model) begin() {
	numbers := m.r.next("processor-a")
	if m.given[numbers.RRN] {
		m.t.Errorf("RRN %s was given out twice", numbers.RRN)
	}
	m.given[numbers.RRN] = true
	key := ""
	if m.random.IntN(3) > 0 {
		key = fmt.Sprint("key-", m.random.IntN(200))
	}
	ticket, err := m.r.Begin(context.Background(), intentOf(numbers, key))
	if m.keys[key] && key != "" {
		if !errors.Is(err, ErrDuplicate) {
			m.t.Errorf("%s again: %v", key, err)
		}
		return
	}
	if err != nil || m.transactions[ticket.ID()] != nil {
		m.t.Errorf("begin: %v, %v", ticket, err)
		return
	}
	m.keys[key] = true
	m.transactions[ticket.ID()] = &modelTransaction{ticket: ticket, events: 1}
}

// pick takes one of those that can be used, nil if there is none. Order makes it the seed's choice.
func pick[K cmp.Ordered, V any](random *rand.Rand, all map[K]V, usable func(V) bool) (key K, value V, found bool) {
	var keys []K
	for _, k := range slices.Sorted(maps.Keys(all)) {
		if usable(all[k]) {
			keys = append(keys, k)
		}
	}
	if len(keys) == 0 {
		return key, value, false
	}
	key = keys[random.IntN(len(keys))]
	return key, all[key], true
}

func (m *model) finish() {
	id, transaction, found := pick(m.random, m.transactions, func(t *modelTransaction) bool { return t.ticket != nil })
	if !found {
		return
	}
	kind := []Kind{Approved, Approved, Declined, NotSent, Unknown}[m.random.IntN(5)]
	if transaction.ticket.Recovered() {
		kind = Unknown
	}
	m.r.finish(transaction.ticket, Outcome{Kind: kind})
	transaction.outcome, transaction.ticket = kind, nil
	transaction.events++
	if kind == Unknown {
		m.incur(id)
	}
}

// incur expects that a transaction is owed since now, with the next ID.
func (m *model) incur(id TransactionID) {
	o := &modelOwed{id: OwedID(len(m.owed) + 1), transaction: id, state: StateOwed, since: time.Now(), dueAt: time.Now()}
	m.owed[o.id] = o
	m.transactions[id].owed = true
	m.transactions[id].events++
}

func (m *model) owe() {
	id, transaction, found := pick(m.random, m.transactions, func(*modelTransaction) bool { return true })
	if !found {
		return
	}
	_, err := m.r.Owe(context.Background(), Reversing{Transaction: id, Reason: "undelivered"})
	switch {
	case transaction.owed:
		if err != nil {
			m.t.Error(err)
		}
	case transaction.outcome != Approved:
		if !errors.Is(err, ErrNotApproved) {
			m.t.Errorf("owing %q: %v", transaction.outcome, err)
		}
	case err != nil:
		m.t.Error(err)
	default:
		m.incur(id)
	}
}

func (m *model) attempt() {
	id, o, found := pick(m.random, m.owed, func(*modelOwed) bool { return true })
	if !found {
		return
	}
	ticket, err := m.r.Attempt(context.Background(), id, Numbers{})
	if o.state != StateOwed || o.ticket != nil {
		if !errors.Is(err, ErrNotOwed) {
			m.t.Errorf("attempt of %+v: %v", o, err)
		}
		return
	}
	o.attempts++
	m.transactions[o.transaction].events++
	if err != nil || ticket.Attempt() != o.attempts || ticket.ID() != o.transaction {
		m.t.Errorf("attempt of %+v: %v, %v", o, ticket, err)
		return
	}
	o.ticket = ticket
}

func (m *model) settle() {
	_, o, found := pick(m.random, m.owed, func(o *modelOwed) bool { return o.ticket != nil })
	if !found {
		return
	}
	later := time.Now().Add(time.Duration(m.random.IntN(30_000)) * time.Millisecond)
	spent := m.random.IntN(4) > 0
	if spent {
		o.ticket.Spend()
	} else {
		o.attempts--
	}
	var s Settlement
	switch choice := m.random.IntN(6); {
	case choice == 0:
		s, o.state = Parked("expired", ""), StateParked
	case choice <= 2 && spent:
		s, o.state = Acknowledged("00"), StateAcknowledged
	case choice == 3:
		if s, o.dueAt = Unsent(later, "no_link"), later; spent {
			o.attempts--
		}
	default:
		s, o.dueAt = Again(later, "timeout", ""), later
	}
	m.transactions[o.transaction].events++
	if err := m.r.Settle(context.Background(), o.ticket, s); err != nil {
		m.t.Error(err)
	}
	o.ticket = nil
}

// reopen stops the journal, or leaves it as a crash would and goes on with a copy.
func (m *model) reopen(crash bool) {
	m.compare()
	if crash {
		copied := copyJournal(m.t, m.path)
		m.r.stop()
		m.path = copied
	} else {
		m.r.stop()
	}
	m.open()
	tickets, err := m.r.Unfinished(context.Background())
	if err != nil {
		m.t.Error(err)
	}
	open := map[TransactionID]*Ticket{}
	for _, ticket := range tickets {
		open[ticket.ID()] = ticket
	}
	for id, transaction := range m.transactions {
		if (transaction.outcome == "") != (open[id] != nil) {
			m.t.Errorf("transaction %d is %q, and its ticket %v", id, transaction.outcome, open[id])
		}
		transaction.ticket = open[id]
	}
	for _, o := range m.owed {
		o.ticket = nil
	}
	m.compare()
}

// compare reads everything.
func (m *model) compare() {
	ctx := context.Background()
	all, err := m.r.Transactions(ctx, Filter{Limit: 1 << 20})
	if err != nil || len(all) != len(m.transactions) {
		m.t.Errorf("%d transactions, not %d: %v", len(all), len(m.transactions), err)
	}
	for _, got := range all {
		want := m.transactions[got.ID]
		if want == nil || got.Outcome != want.outcome || (got.Owed != "") != want.owed {
			m.t.Errorf("transaction %+v, want %+v", got, want)
			continue
		}
		if events, err := m.r.reader.History(ctx, got.ID); err != nil || len(events) != want.events {
			m.t.Errorf("transaction %d has %d events, want %d: %v", got.ID, len(events), want.events, err)
		}
	}
	want := Exposure{Amounts: map[string]uint64{}}
	for _, id := range slices.Sorted(maps.Keys(m.owed)) {
		o := m.owed[id]
		if o.state == StateParked {
			want.Parked++
		}
		if o.state != StateOwed {
			continue
		}
		if want.Owed++; want.Oldest.IsZero() {
			want.Oldest = o.since
		}
		want.Amounts["978"] += 12345
	}
	owed := m.r.owed()
	if len(owed) != len(m.owed) {
		m.t.Errorf("%d owed, not %d", len(owed), len(m.owed))
	}
	for _, got := range owed {
		want := m.owed[got.ID]
		if want == nil || got.TransactionID != want.transaction || got.State != want.state || got.Attempts != want.attempts ||
			!got.Since.Equal(want.since) || want.state == StateOwed && !got.DueAt.Equal(want.dueAt) {
			m.t.Errorf("owed %+v, want %+v", got, want)
		}
	}
	if got := m.r.Exposure(); got.Owed != want.Owed || got.Parked != want.Parked || !got.Oldest.Equal(want.Oldest) ||
		!maps.Equal(got.Amounts, want.Amounts) {
		m.t.Errorf("exposure %+v, want %+v", got, want)
	}
}
