package acquirer

import (
	"cmp"
	"container/heap"
	"slices"
	"time"

	"acquirerd/card"
	"acquirerd/journal"
)

// A lineup is what is owed to one endpoint, in the order in which it may be sent: parallel over cards, in order for one card, its reversals
// before its advices, and each of them in the order in which it came to be owed. An advice goes before the reversal of itself, whatever
// else: a processor that does not know it yet would say that there is nothing to reverse.
//
// What was sent sentOften times without success, or cannot be opened, holds up nothing but the reversal of itself. It is owned by the
// forwarder's goroutine.
type lineup struct {
	places map[journal.OwedID]*place
	cards  map[cardKey]*cardLine
	due    dueHeap // those that may be sent once they are due, but for what changes at another card of theirs: see next
}

// A place is one debt in the lineup.
type place struct {
	journal.Debt
	turn
	paying bool
	at     int // its index in the heap, -1 if it is not there
}

// A turn is when a debt is to be sent, and how often it was.
type turn struct {
	attempts int
	aside    bool      // it could not be opened
	due      time.Time // on the monotonic clock
}

// holdsUp reports whether what comes later of the same card waits for it.
func (t turn) holdsUp() bool { return t.attempts < sentOften && !t.aside }

// cardKey names a card by its token. A debt without one is a card of its own.
type cardKey struct {
	token card.PANToken
	alone journal.TransactionID
}

// A cardLine is what is owed for one card.
type cardLine struct{ reversals, advices []*place }

func newLineup() *lineup {
	return &lineup{places: map[journal.OwedID]*place{}, cards: map[cardKey]*cardLine{}}
}

// add takes a debt in. One that is in it already was owed again.
func (l *lineup) add(d journal.Debt, due time.Time) {
	if before := l.places[d.ID]; before != nil {
		l.remove(before)
	}
	p := &place{Debt: d, turn: turn{attempts: d.Attempts, due: due}, at: -1}
	l.places[d.ID] = p
	key := keyOf(p)
	line := l.cards[key]
	if line == nil {
		line = &cardLine{}
		l.cards[key] = line
	}
	queue := line.queue(p)
	at, _ := slices.BinarySearchFunc(*queue, p, byID)
	*queue = slices.Insert(*queue, at, p)
	l.offer(line)
}

func keyOf(p *place) cardKey {
	if p.Card == (card.PANToken{}) {
		return cardKey{alone: p.Transaction}
	}
	return cardKey{token: p.Card}
}

func byID(a, b *place) int { return cmp.Compare(a.ID, b.ID) }

func (c *cardLine) queue(p *place) *[]*place {
	if p.Kind == journal.KindAdvice {
		return &c.advices
	}
	return &c.reversals
}

// next takes the debt that is due the longest and may be sent now; nil if there is none. Then at is when to look again, zero if that does
// not depend on time.
func (l *lineup) next(now time.Time) (p *place, at time.Time) {
	for len(l.due) > 0 {
		first := l.due[0]
		if first.due.After(now) {
			return nil, first.due
		}
		heap.Pop(&l.due)
		if l.mayGo(first) { // else something has come before it since it was offered: it is offered again when that is gone
			first.paying = true
			return first, time.Time{}
		}
	}
	return nil, time.Time{}
}

// again puts back what was attempted, unless it has been taken out, or in anew, meanwhile.
func (l *lineup) again(p *place, next turn) {
	if l.places[p.ID] != p {
		return
	}
	p.paying, p.turn = false, next
	l.offer(l.cards[keyOf(p)])
}

// remove takes out what is not owed any more. What has been taken in anew meanwhile stays: it is owed again.
func (l *lineup) remove(p *place) {
	if l.places[p.ID] != p {
		return
	}
	delete(l.places, p.ID)
	if p.at >= 0 {
		heap.Remove(&l.due, p.at)
	}
	key := keyOf(p)
	line := l.cards[key]
	queue := line.queue(p)
	if at, found := slices.BinarySearchFunc(*queue, p, byID); found {
		if at == 0 {
			(*queue)[0] = nil
			*queue = (*queue)[1:] // the usual case, without moving the rest
		} else {
			*queue = slices.Delete(*queue, at, at+1)
		}
	}
	if len(line.reversals)+len(line.advices) == 0 {
		delete(l.cards, key)
		return
	}
	l.offer(line)
}

// offer puts what may be sent of a card into the heap.
func (l *lineup) offer(line *cardLine) {
	for p := range line.free(l) {
		if p.at < 0 && !p.paying {
			heap.Push(&l.due, p)
		} else if p.at >= 0 {
			heap.Fix(&l.due, p.at)
		}
	}
}

// mayGo reports whether nothing of its card is before it.
func (l *lineup) mayGo(p *place) bool {
	for q := range l.cards[keyOf(p)].free(l) {
		if q == p {
			return true
		}
	}
	return false
}

// free yields what may be sent of a card, or is being sent: those before which nothing stands.
func (c *cardLine) free(l *lineup) func(yield func(*place) bool) {
	return func(yield func(*place) bool) {
		for _, queue := range [][]*place{c.reversals, c.advices} {
			for _, p := range queue {
				if p.Kind == journal.KindReversal && c.advises(p.Transaction) {
					continue // it waits for its own advice, and holds up nothing
				}
				if !yield(p) || p.holdsUp() {
					return
				}
			}
		}
	}
}

// advises reports whether the advice of a transaction is owed.
func (c *cardLine) advises(id journal.TransactionID) bool {
	return slices.ContainsFunc(c.advices, func(p *place) bool { return p.Transaction == id })
}

// A dueHeap has what is due first on top.
type dueHeap []*place

func (h dueHeap) Len() int           { return len(h) }
func (h dueHeap) Less(i, j int) bool { return h[i].due.Before(h[j].due) }
func (h dueHeap) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].at, h[j].at = i, j
}

// Push is for the package heap.
func (h *dueHeap) Push(x any) {
	p := x.(*place) // nothing else is pushed
	p.at = len(*h)
	*h = append(*h, p)
}

// Pop is for the package heap.
func (h *dueHeap) Pop() any {
	old := *h
	p := old[len(old)-1]
	p.at = -1
	old[len(old)-1] = nil
	*h = old[:len(old)-1]
	return p
}
