package acquirer

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"acquirerd/card"
	"acquirerd/journal"
)

// A debtor makes debts of few cards, with ascending IDs.
type debtor struct {
	next journal.OwedID
}

func (d *debtor) debt(kind journal.DebtKind, token byte, transaction journal.TransactionID) journal.Debt {
	d.next++
	debt := journal.Debt{ID: d.next, Transaction: transaction, Kind: kind}
	if token > 0 {
		debt.Card = card.PANToken{token}
	}
	return debt
}

// all takes what may be sent now, and returns the IDs.
func (l *lineup) all(now time.Time) []journal.OwedID {
	var ids []journal.OwedID
	for p, _ := l.next(now); p != nil; p, _ = l.next(now) {
		ids = append(ids, p.ID)
	}
	return ids
}

func TestALineupIsInOrderForACardAndParallelOverCards(t *testing.T) {
	now := time.Now()
	var d debtor
	l := newLineup()
	l.add(d.debt(journal.KindAdvice, 1, 10), now)   // 1
	l.add(d.debt(journal.KindReversal, 1, 11), now) // 2
	l.add(d.debt(journal.KindReversal, 1, 12), now) // 3
	l.add(d.debt(journal.KindAdvice, 2, 13), now)   // 4
	l.add(d.debt(journal.KindReversal, 2, 13), now) // 5: of advice 4
	l.add(d.debt(journal.KindReversal, 0, 14), now) // 6: no card
	l.add(d.debt(journal.KindReversal, 0, 15), now) // 7: no card either
	steps := []struct {
		name string
		do   func()
		want []journal.OwedID
	}{
		{"one of each card; the advice before the reversal of itself", func() {}, []journal.OwedID{2, 4, 6, 7}},
		{"nothing more while they are being sent", func() {}, nil},
		{"the next reversal when the first is done", func() { l.remove(l.places[2]) }, []journal.OwedID{3}},
		{"the reversal of an advice when that is done", func() { l.remove(l.places[4]) }, []journal.OwedID{5}},
		{"what is tried again holds up its card", func() { l.again(l.places[3], turn{attempts: 1, due: now.Add(time.Second)}) }, nil},
		{"but not once it was sent often", func() { l.again(l.places[3], turn{attempts: sentOften, due: now.Add(time.Second)}) }, []journal.OwedID{1}},
		{"what is owed again comes again", func() { l.add(journal.Debt{ID: 7, Transaction: 15, Kind: journal.KindReversal, Attempts: 7}, now) }, []journal.OwedID{7}},
		{"what cannot be opened holds up nothing", func() {
			l.add(d.debt(journal.KindReversal, 3, 20), now) // 8
			l.add(d.debt(journal.KindReversal, 3, 21), now) // 9
			l.all(now)
			l.again(l.places[8], turn{aside: true, due: now.Add(time.Minute)})
		}, []journal.OwedID{9}},
	}
	for _, s := range steps {
		s.do()
		got := l.all(now)
		slices.Sort(got)
		if !slices.Equal(got, s.want) {
			t.Errorf("%s: got %v, want %v", s.name, got, s.want)
		}
	}
	if _, at := l.next(now); !at.Equal(now.Add(time.Second)) {
		t.Errorf("look again at %v", at)
	}
}

// A debt that is owed again while the end of its last attempt is on its way is not taken for the one that has ended.
func TestWhatIsOwedAgainIsNotForgotten(t *testing.T) {
	now := time.Now()
	var d debtor
	l := newLineup()
	debt := d.debt(journal.KindReversal, 1, 10)
	l.add(debt, now)
	attempted, _ := l.next(now)
	l.add(debt, now) // a late approval has come
	l.remove(attempted)
	if got := l.all(now); !slices.Equal(got, []journal.OwedID{1}) {
		t.Errorf("got %v", got)
	}
}

// What comes before something that was offered already goes first.
func TestAReversalThatComesLaterGoesBeforeAnAdviceThatWaits(t *testing.T) {
	now := time.Now()
	var d debtor
	l := newLineup()
	l.add(d.debt(journal.KindAdvice, 1, 10), now.Add(time.Second))
	l.add(d.debt(journal.KindReversal, 1, 11), now)
	if got := l.all(now.Add(time.Second)); !slices.Equal(got, []journal.OwedID{2}) {
		t.Errorf("got %v", got)
	}
	l.remove(l.places[2])
	if got := l.all(now.Add(time.Second)); !slices.Equal(got, []journal.OwedID{1}) {
		t.Errorf("got %v", got)
	}
}

// Random operations against rules that are checked from scratch: nothing is lost, nothing is sent twice at once, nothing goes out of order.
func TestALineupLosesNothing(t *testing.T) {
	for seed := range uint64(200) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			random := rand.New(rand.NewPCG(seed, 0))
			now, l := time.Now(), newLineup()
			var d debtor
			owed, paying := map[journal.OwedID]*place{}, map[journal.OwedID]bool{}
			advices := map[journal.TransactionID]bool{}
			for step := range 300 {
				switch random.IntN(4) {
				case 0:
					transaction, kind, token := journal.TransactionID(step), journal.KindReversal, byte(random.IntN(4))
					if random.IntN(2) == 0 {
						kind = journal.KindAdvice
						advices[transaction] = true
					}
					debt := d.debt(kind, token, transaction)
					owed[debt.ID] = &place{Debt: debt, turn: turn{due: now}}
					l.add(debt, now)
					if kind == journal.KindAdvice && random.IntN(2) == 0 {
						debt := d.debt(journal.KindReversal, token, transaction)
						owed[debt.ID] = &place{Debt: debt, turn: turn{due: now}}
						l.add(debt, now)
					}
				case 1:
					now = now.Add(time.Duration(random.IntN(5000)) * time.Millisecond)
				case 2:
					if p, _ := l.next(now); p != nil {
						want := owed[p.ID]
						if want == nil || paying[p.ID] || want.due.After(now) {
							t.Fatalf("step %d: %+v was given out", step, p.Debt)
						}
						for _, other := range owed {
							if before(other, want, owed) {
								t.Fatalf("step %d: %+v was given out before %+v", step, want.Debt, other.Debt)
							}
						}
						paying[p.ID] = true
					}
				case 3:
					for id := range paying {
						delete(paying, id)
						if random.IntN(3) == 0 {
							delete(owed, id)
							l.remove(l.places[id])
							break
						}
						next := turn{attempts: owed[id].attempts + 1, aside: random.IntN(10) == 0, due: now.Add(time.Duration(random.IntN(9000)) * time.Millisecond)}
						owed[id].turn = next
						l.again(l.places[id], next)
						break
					}
				}
			}
			// At the end everything is paid, one after the other.
			for id := range paying {
				l.remove(l.places[id])
				delete(owed, id)
			}
			for now = now.Add(time.Minute); len(owed) > 0; {
				p, _ := l.next(now)
				if p == nil {
					t.Fatalf("%d are owed, and none may go", len(owed))
				}
				l.remove(p)
				delete(owed, p.ID)
			}
			if len(l.places)+len(l.cards)+len(l.due) != 0 {
				t.Errorf("%d places, %d cards, %d due are left", len(l.places), len(l.cards), len(l.due))
			}
		})
	}
}

// before reports whether one debt must be settled before another may be sent.
func before(one, other *place, owed map[journal.OwedID]*place) bool {
	if one.ID == other.ID || keyOf(one) != keyOf(other) {
		return false
	}
	itself := one.Transaction == other.Transaction && one.Kind == journal.KindAdvice && other.Kind == journal.KindReversal
	if itself {
		return true
	}
	if one.Kind == journal.KindReversal {
		for _, p := range owed { // it waits for its own advice, and holds up nothing
			if p.Kind == journal.KindAdvice && p.Transaction == one.Transaction {
				return false
			}
		}
	}
	if !one.holdsUp() || !other.holdsUp() { // who does not hold up others is not held up either
		return false
	}
	if one.Kind != other.Kind {
		return one.Kind == journal.KindReversal
	}
	return one.ID < other.ID
}

func BenchmarkLineup(b *testing.B) {
	for _, cards := range []int{1, 100_000} {
		b.Run(fmt.Sprintf("100000 owed of %d cards", cards), func(b *testing.B) {
			for b.Loop() {
				now, l := time.Now(), newLineup()
				for i := range 100_000 {
					token := card.PANToken{byte(i % cards), byte(i % cards >> 8), byte(i % cards >> 16), 1}
					l.add(journal.Debt{ID: journal.OwedID(i + 1), Transaction: journal.TransactionID(i + 1), Kind: journal.KindReversal, Card: token}, now)
				}
				for range 100_000 {
					p, _ := l.next(now)
					l.remove(p)
				}
			}
		})
	}
}
