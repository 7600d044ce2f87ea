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
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"acquirerd/messages"
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
	newest       TransactionID
	newestOwed   OwedID
	fresh        []OwedID // what the payer has not been told of
	date         string   // the business date of the endpoint
	undated      bool     // that was set by hand, and no cutover was heard: the next one that names no day begins one
	advices      []*modelAdvice
	lastAdvice   AdviceID
}

type modelAdvice struct {
	advising    Advising
	id          AdviceID
	transaction TransactionID
	undoes      bool
	date        string
	at          time.Time
}

type modelTransaction struct {
	said             string // of the answers that were heard
	key              string
	stan             string
	outcome          Kind
	ticket           *Ticket // while it is open
	reversal, advice *modelOwed
	events           int
	finished         time.Time
	early            bool // an approval was heard while it was open, in this run
	date             string
}

type modelOwed struct {
	id          OwedID
	transaction TransactionID
	state       State
	attempts    int
	since       time.Time
	dueAt       time.Time
	settled     time.Time
	money       uint64
	own         Numbers
	code        string  // of the last answer
	date        string  // since when it is owed
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
		{"begin", 8, m.begin}, {"finish", 7, m.finish}, {"owe", 3, m.owe}, {"attempt", 6, m.attempt}, {"settle", 6, m.settle},
		{"accept", 3, m.accept}, {"bar", 1, m.bar}, {"hear", 4, m.hear}, {"park", 2, m.park}, {"release", 3, m.release},
		{"prune", 1, m.prune}, {"incurred", 3, m.incurred}, {"find", 2, m.find},
		{"cutover", 2, m.cutover}, {"correct", 1, m.correct}, {"keep", 4, m.keep},
		{"compare", 1, m.compare}, {"reopen", 1, func() { m.reopen(false) }}, {"crash", 1, func() { m.reopen(true) }},
	}
	n := m.random.IntN(59)
	for _, s := range steps {
		if n -= s.weight; n < 0 {
			m.steps = append(m.steps[max(0, len(m.steps)-20):], s.name)
			s.do()
			return
		}
	}
}

// key is one that may have been used, or none.
func (m *model) key() string {
	if m.random.IntN(3) == 0 {
		return ""
	}
	return fmt.Sprint("key-", m.random.IntN(200))
}

// add expects a new transaction, or that its key was used.
func (m *model) add(id TransactionID, err error, transaction *modelTransaction) bool {
	if m.keys[transaction.key] && transaction.key != "" {
		if !errors.Is(err, ErrDuplicate) {
			m.t.Errorf("%s again: %v", transaction.key, err)
		}
		return false
	}
	if err != nil || id != m.newest+1 {
		m.t.Errorf("transaction %d after %d: %v", id, m.newest, err)
		return false
	}
	m.keys[transaction.key] = true
	m.newest, m.transactions[id] = id, transaction
	return true
}

func (m *model) next() messages.Numbers {
	numbers := m.r.next("processor-a")
	if m.given[numbers.RRN] {
		m.t.Errorf("RRN %s was given out twice", numbers.RRN)
	}
	m.given[numbers.RRN] = true
	return numbers
}

func (m *model) begin() {
	numbers, key := m.next(), m.key()
	ticket, err := m.r.Begin(context.Background(), intentOf(numbers, key))
	var id TransactionID
	if err == nil {
		id = ticket.ID()
	}
	m.add(id, err, &modelTransaction{key: key, stan: numbers.STAN, ticket: ticket, events: 1, date: m.date})
}

func (m *model) accept() {
	in := adviceOf(m.next(), m.key())
	id, err := m.r.Accept(context.Background(), in, replyOf(in, "00"))
	transaction := &modelTransaction{key: in.UpstreamKey, stan: in.Original.Get(messages.STAN), outcome: Accepted, events: 2, finished: time.Now(), date: m.date}
	if m.add(id, err, transaction) {
		transaction.advice = m.incur(id, 12345)
	}
}

func (m *model) bar() {
	key := fmt.Sprint("key-", m.random.IntN(200))
	err := m.r.Bar(context.Background(), Barred{Upstream: "pos-switch", UpstreamKey: key, MTI: "0100"})
	m.add(m.newest+1, err, &modelTransaction{key: key, outcome: NotSent, events: 2, finished: time.Now()})
}

func (m *model) find() {
	key := fmt.Sprint("key-", m.random.IntN(200))
	got, found, err := m.r.Find(context.Background(), "pos-switch", key)
	if err != nil || found != m.keys[key] {
		m.t.Errorf("%s is found: %v, %v", key, found, err)
		return
	}
	want := m.transactions[got.ID]
	if !found {
		return
	}
	if want == nil || want.key != key || got.Outcome != want.outcome || (got.Reversal.ID == 0) != (want.reversal == nil) ||
		want.reversal != nil && got.Reversal.State != want.reversal.state {
		m.t.Errorf("found %+v, want %+v", got, want)
	}
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
	transaction.outcome, transaction.ticket, transaction.finished = kind, nil, time.Now()
	transaction.events++
	if kind == Unknown || transaction.early && kind != Approved {
		transaction.reversal = m.incur(id, 12345)
	}
}

// incur expects that a transaction is owed since now, with the next ID.
func (m *model) incur(id TransactionID, money uint64) *modelOwed {
	m.newestOwed++
	o := &modelOwed{id: m.newestOwed, transaction: id, state: StateOwed, since: time.Now(), dueAt: time.Now(), money: money, date: m.date}
	m.owed[o.id] = o
	m.fresh = append(m.fresh, o.id)
	m.transactions[id].events++
	return o
}

// again expects that something is owed once more, since now.
func (m *model) again(o *modelOwed) {
	o.state, o.since, o.dueAt, o.settled, o.date = StateOwed, time.Now(), time.Now(), time.Time{}, m.date
	m.fresh = append(m.fresh, o.id)
	m.transactions[o.transaction].events++
}

func (m *model) owe() {
	id, transaction, found := pick(m.random, m.transactions, func(*modelTransaction) bool { return true })
	if !found {
		return
	}
	of := Reversing{Transaction: id, Reason: "undelivered"}
	money := uint64(12345)
	if m.random.IntN(2) == 0 {
		of.Replacement, money = "000000002345", 10000
	}
	stands, err := m.r.Owe(context.Background(), of)
	if o := transaction.reversal; o != nil && o.money != 12345 && o.state != StateOwed && of.Replacement == "" { // the whole after a part
		m.again(o)
		o.attempts, o.own, o.code, o.money = 0, Numbers{}, "", 12345
	}
	switch {
	case transaction.reversal != nil:
		if err != nil || stands.ID != transaction.reversal.id || stands.State != transaction.reversal.state {
			m.t.Errorf("stands %+v, want %+v: %v", stands, transaction.reversal, err)
		}
	case transaction.outcome != Approved && transaction.outcome != Accepted:
		if !errors.Is(err, ErrNotApproved) {
			m.t.Errorf("owing %q: %v", transaction.outcome, err)
		}
	case err != nil:
		m.t.Error(err)
	default:
		transaction.reversal = m.incur(id, money)
	}
}

func (m *model) hear() {
	id, transaction, found := pick(m.random, m.transactions, func(t *modelTransaction) bool { return t.stan != "" })
	if !found {
		return
	}
	h := Hearing{Endpoint: "processor-a", STAN: transaction.stan, TransmissionTime: "1123220418", ResponseCode: "51", NotFound: []string{"25"},
		Second: m.random.IntN(2) == 0}
	if m.random.IntN(2) == 0 {
		h.ResponseCode, h.Approves = "00", true
	}
	heard, err := m.r.Hear(context.Background(), h)
	if said := fmt.Sprint(h.Second, h.ResponseCode); !strings.Contains(transaction.said, said) {
		transaction.said += said + ","
		transaction.events++
	}
	want := Heard{Transaction: id, Outcome: transaction.outcome}
	switch o := transaction.reversal; {
	case !h.Approves:
	case transaction.outcome == "":
		transaction.early = true
	case o != nil && o.state == StateAcknowledged && o.code == "25":
		m.again(o)
		want.Owed = o.id
	case o == nil && (transaction.outcome == Declined || transaction.outcome == NotSent):
		transaction.reversal = m.incur(id, 12345)
		want.Owed = transaction.reversal.id
	}
	if err != nil || heard != want {
		m.t.Errorf("heard %+v, want %+v: %v", heard, want, err)
	}
}

// cutover names a day near the current one, or none: all of this takes minutes, so that one without a day is a repeat.
func (m *model) cutover() {
	today := time.Now().UTC().Truncate(24 * time.Hour)
	from, earliest, latest := today, today.AddDate(0, 0, -10), today.AddDate(0, 0, 10)
	if m.date != "" {
		from, _ = time.Parse(time.DateOnly, m.date)
		earliest = from
	}
	named := from.AddDate(0, 0, m.random.IntN(25)-12)
	c, want, possible := Cutover{"processor-a", named.Format("0102")}, named, !named.Before(earliest) && !named.After(latest)
	if got, later := m.r.Opens("processor-a", c.Day), named.Format(time.DateOnly) > m.date; got != later {
		m.t.Errorf("from %q, %v opens a day: %v", m.date, named, got)
	}
	if m.random.IntN(4) == 0 {
		c.Day, want, possible = "", from, true // it is early in the day
		if m.undated {
			want = from.AddDate(0, 0, 1)
		}
	}
	got, err := m.r.Advance(context.Background(), c)
	if !possible {
		if !errors.Is(err, ErrBusinessDate) {
			m.t.Errorf("from %q to %v: %+v, %v", m.date, named, got, err)
		}
		return
	}
	if err != nil || got != (Advanced{m.date, want.Format(time.DateOnly)}) {
		m.t.Errorf("from %q to %v: %+v, %v", m.date, want, got, err)
	}
	m.undated = m.undated && got.From == got.To
	m.date = got.To
}

// correct sets the date by hand, near today.
func (m *model) correct() {
	date := time.Now().UTC().AddDate(0, 0, m.random.IntN(9)-4).Format(time.DateOnly)
	got, err := m.r.SetBusinessDate(context.Background(), "processor-a", date)
	if err != nil || got != (Advanced{m.date, date}) {
		m.t.Errorf("from %q set to %s: %+v, %v", m.date, date, got, err)
	}
	if m.date == "" {
		m.undated = true
	}
	m.date = date
}

// keep tells of a transaction, of none, or again of what was told before.
func (m *model) keep() {
	if len(m.advices) > 0 && m.random.IntN(4) == 0 {
		a := m.advices[m.random.IntN(len(m.advices))]
		got, err := m.r.Keep(context.Background(), a.advising)
		if want := (Advised{a.id, true, "00", a.transaction, a.undoes}); err != nil || got != want {
			m.t.Errorf("kept again %+v, want %+v: %v", got, want, err)
		}
		return
	}
	id, transaction, found := pick(m.random, m.transactions, func(t *modelTransaction) bool { return t.stan != "" })
	a := &modelAdvice{id: m.lastAdvice + 1, date: m.date, at: time.Now()}
	stan := ""
	if found && m.random.IntN(4) > 0 {
		stan, a.transaction = transaction.stan, id
	}
	a.advising = advisingOf(decimal(uint64(a.id), 6), stan)
	a.advising.Reverses = m.random.IntN(2) == 0
	if a.transaction != 0 {
		o := transaction.reversal
		undone := o != nil && o.money == 12345 && o.state != StateParked
		stands := transaction.outcome == Approved || transaction.outcome == Accepted || transaction.outcome == ""
		a.undoes = a.advising.Reverses && stands && !undone
	}
	got, err := m.r.Keep(context.Background(), a.advising)
	if want := (Advised{a.id, false, "00", a.transaction, a.undoes}); err != nil || got != want {
		m.t.Errorf("kept %+v, want %+v: %v", got, want, err)
	}
	m.lastAdvice = a.id
	m.advices = append(m.advices, a)
}

func (m *model) attempt() {
	id, o, found := pick(m.random, m.owed, func(*modelOwed) bool { return true })
	if !found {
		return
	}
	var own Numbers
	if m.random.IntN(2) == 0 {
		own = Numbers{m.next().STAN, "1123220500"}
	}
	ticket, err := m.r.Attempt(context.Background(), id, own)
	if o.state != StateOwed || o.ticket != nil {
		if !errors.Is(err, ErrNotOwed) {
			m.t.Errorf("attempt of %+v: %v", o, err)
		}
		return
	}
	if o.attempts == 0 && o.own == (Numbers{}) {
		o.own = own
	}
	o.attempts++
	m.transactions[o.transaction].events++
	if err != nil || ticket.Attempt() != o.attempts || ticket.ID() != o.transaction || ticket.Own() != o.own {
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
	o.code = ""
	var s Settlement
	switch choice := m.random.IntN(6); {
	case choice == 0:
		s, o.state, o.settled = Parked("expired", ""), StateParked, time.Now()
	case choice <= 2 && spent:
		o.code = []string{"00", "25"}[m.random.IntN(2)]
		s, o.state, o.settled = Acknowledged(o.code), StateAcknowledged, time.Now()
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

func (m *model) park() {
	id, o, found := pick(m.random, m.owed, func(*modelOwed) bool { return true })
	if !found {
		return
	}
	err := m.r.Park(context.Background(), id)
	if o.state != StateOwed || o.ticket != nil {
		if !errors.Is(err, ErrNotOwed) {
			m.t.Errorf("parking %+v: %v", o, err)
		}
		return
	}
	if err != nil {
		m.t.Error(err)
	}
	o.state, o.settled, o.code = StateParked, time.Now(), ""
	m.transactions[o.transaction].events++
}

func (m *model) release() {
	id, o, found := pick(m.random, m.owed, func(o *modelOwed) bool { return o.state == StateParked || m.random.IntN(5) == 0 })
	if !found {
		return
	}
	err := m.r.Release(context.Background(), id)
	if o.state != StateParked {
		if !errors.Is(err, ErrNotParked) {
			m.t.Errorf("releasing %+v: %v", o, err)
		}
		return
	}
	reversal := m.transactions[o.transaction].reversal
	if m.transactions[o.transaction].advice == o && reversal != nil && (reversal.attempts > 0 || reversal.ticket != nil) {
		if !errors.Is(err, ErrReversed) {
			m.t.Errorf("releasing %+v: %v", o, err)
		}
		return
	}
	if err != nil {
		m.t.Error(err)
	}
	m.again(o)
}

// prune deletes what ended before a time, and expects that the rest stays.
func (m *model) prune() {
	before, most, want := time.Now().Add(-time.Duration(m.random.IntN(120))*time.Second), m.random.IntN(8), 0
	kept := func(o *modelOwed) bool {
		return o != nil && (o.state != StateAcknowledged || !o.settled.Before(before) || o.id == m.newestOwed)
	}
	for _, id := range slices.Sorted(maps.Keys(m.transactions)) {
		t := m.transactions[id]
		named := slices.ContainsFunc(m.advices, func(a *modelAdvice) bool { return a.transaction == id && !a.at.Before(before) })
		if want == most || t.outcome == "" || !t.finished.Before(before) || id == m.newest || kept(t.reversal) || kept(t.advice) || named {
			continue
		}
		want++
		m.advices = slices.DeleteFunc(m.advices, func(a *modelAdvice) bool { return a.transaction == id })
		for _, o := range []*modelOwed{t.reversal, t.advice} {
			if o != nil {
				delete(m.owed, o.id)
			}
		}
		delete(m.keys, t.key)
		delete(m.transactions, id)
	}
	untied := 0
	m.advices = slices.DeleteFunc(m.advices, func(a *modelAdvice) bool {
		goes := a.transaction == 0 && a.at.Before(before) && untied < most
		if goes {
			untied++
		}
		return goes
	})
	if got, err := m.r.Prune(context.Background(), before, most); err != nil || got != want {
		m.t.Errorf("pruned %d, want %d: %v", got, want, err)
	}
}

// incurred asks as the payer does.
func (m *model) incurred() {
	var want []OwedID
	for i, id := range m.fresh { // the last time that it came to be owed counts
		if o := m.owed[id]; o != nil && o.state == StateOwed && !slices.Contains(m.fresh[i+1:], id) {
			want = append(want, id)
		}
	}
	if got := m.r.incurred(); !slices.Equal(got, want) {
		m.t.Errorf("incurred %v, want %v", got, want)
	}
	m.fresh = nil
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
	m.fresh = nil
	for _, o := range m.owed {
		o.ticket = nil
		if o.state == StateOwed {
			m.fresh = append(m.fresh, o.id)
		}
	}
	slices.SortFunc(m.fresh, func(a, b OwedID) int {
		return cmp.Or(m.owed[a].since.Compare(m.owed[b].since), cmp.Compare(a, b))
	})
	for _, transaction := range m.transactions {
		transaction.early = false
	}
	m.compare()
}

// stateOf is the state of something owed, "" if it is not there.
func stateOf(o *modelOwed) State {
	if o == nil {
		return ""
	}
	return o.state
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
		if want == nil || got.Outcome != want.outcome || got.Owed != stateOf(want.reversal) || got.Advice != stateOf(want.advice) ||
			got.UpstreamKey != want.key || got.STAN != want.stan || got.BusinessDate != want.date {
			m.t.Errorf("transaction %+v, want %+v", got, want)
			continue
		}
		if events, err := m.r.reader.History(ctx, got.ID); err != nil || len(events) != want.events {
			m.t.Errorf("transaction %d has %d events, want %d: %v", got.ID, len(events), want.events, err)
		}
	}
	want, stans := Exposure{Amounts: map[string]uint64{}}, map[string]int{}
	for _, transaction := range m.transactions {
		if transaction.outcome == "" {
			stans[transaction.stan]++
		}
	}
	for _, id := range slices.Sorted(maps.Keys(m.owed)) {
		o := m.owed[id]
		if o.state != StateAcknowledged {
			stans[m.transactions[o.transaction].stan]++
			if o.own.STAN != "" {
				stans[o.own.STAN]++
			}
		}
		if o.state == StateParked {
			want.Parked++
		}
		if o.state != StateOwed {
			continue
		}
		if want.Owed++; want.Oldest.IsZero() || o.since.Before(want.Oldest) {
			want.Oldest = o.since
		}
		want.Amounts["978"] += o.money
	}
	if got := held(m.r); !maps.Equal(got, stans) {
		m.t.Errorf("held %v, want %v", got, stans)
	}
	owed := m.r.owed()
	if len(owed) != len(m.owed) {
		m.t.Errorf("%d owed, not %d", len(owed), len(m.owed))
	}
	for _, got := range owed {
		want := m.owed[got.ID]
		if want == nil || got.TransactionID != want.transaction || got.State != want.state || got.Attempts != want.attempts || got.Own != want.own ||
			!got.Since.Equal(want.since) || got.BusinessDate != want.date || want.state == StateOwed && !got.DueAt.Equal(want.dueAt) {
			m.t.Errorf("owed %+v, want %+v", got, want)
		}
	}
	advices := m.r.advices(AdviceFilter{Limit: 1 << 20})
	slices.Reverse(advices)
	if len(advices) != len(m.advices) {
		m.t.Errorf("%d advices of processors, not %d", len(advices), len(m.advices))
	}
	for i, got := range advices[:min(len(advices), len(m.advices))] {
		if want := m.advices[i]; got.ID != want.id || got.TransactionID != want.transaction || got.Undoes != want.undoes || got.BusinessDate != want.date ||
			!got.At.Equal(want.at) {
			m.t.Errorf("advice of a processor %+v, want %+v", got, want)
		}
	}
	days, err := m.r.reader.BusinessDays(ctx)
	if err != nil || len(days) > 1 || len(days) == 1 && days[0].Date != m.date || (m.date == "") != (len(days) == 0) {
		m.t.Errorf("business days %+v, want %q: %v", days, m.date, err)
	}
	if got := m.r.Exposure(); got.Owed != want.Owed || got.Parked != want.Parked || !got.Oldest.Equal(want.Oldest) ||
		!maps.Equal(got.Amounts, want.Amounts) {
		m.t.Errorf("exposure %+v, want %+v", got, want)
	}
}
