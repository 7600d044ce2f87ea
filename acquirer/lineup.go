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
// What was sent sentOften times without success, cannot be opened or was not found, holds up nothing but the reversal of itself, and waits for nothing: it
// had its turn. No operation costs more than the logarithm of what is owed, but for a debt that leaves the middle of its card's queue. It is owned by the forwarder's goroutine.
type lineup struct {
	places map[journal.OwedID]*place
	cards  map[cardKey]*cardLine
	due    dueHeap // what may be sent once it is due; what something has come before since is found out by next
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
	aside    bool      // it could not be opened, or the processor does not have its original
	due      time.Time // on the monotonic clock
}

// holdsUp reports whether what comes later of the same card waits for it.
func (t turn) holdsUp() bool { return t.attempts < sentOften && !t.aside }

// cardKey names a card by its token. A debt without one is a card of its own.
type cardKey struct {
	token card.PANToken
	alone journal.TransactionID
}

// A cardLine is what is owed for one card: in the queues what holds up its card, the others beside them.
type cardLine struct {
	owed               int
	reversals, advices []*place // by ID
	transactions       map[journal.TransactionID]*pair
}

// A pair is what is owed for one transaction.
type pair struct{ advice, reversal *place }

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
	line := l.cards[keyOf(p)]
	if line == nil {
		line = &cardLine{transactions: map[journal.TransactionID]*pair{}}
		l.cards[keyOf(p)] = line
	}
	line.owed++
	of := line.transactions[d.Transaction]
	if of == nil {
		of = &pair{}
		line.transactions[d.Transaction] = of
	}
	if d.Kind == journal.KindAdvice {
		of.advice = p
		if of.reversal != nil { // an advice that was released: its reversal waits again
			l.leave(line, of.reversal)
		}
	} else {
		of.reversal = p
	}
	l.enter(line, p)
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

// waits reports whether a reversal waits for the advice of its own transaction. Then it holds up nothing.
func (c *cardLine) waits(p *place) bool {
	of := c.transactions[p.Transaction]
	return p.Kind == journal.KindReversal && of != nil && of.advice != nil
}

// head is what may be sent of those that hold up their card; nil if there is none.
func (c *cardLine) head() *place {
	for _, queue := range [][]*place{c.reversals, c.advices} {
		if len(queue) > 0 {
			return queue[0]
		}
	}
	return nil
}

// mayGo reports whether nothing of its card is before it.
func (c *cardLine) mayGo(p *place) bool {
	return !c.waits(p) && (!p.holdsUp() || c.head() == p)
}

// enter puts a place where it belongs among its card's, and offers what may be sent then.
func (l *lineup) enter(line *cardLine, p *place) {
	if p.holdsUp() && !line.waits(p) {
		queue := line.queue(p)
		at, found := slices.BinarySearchFunc(*queue, p, byID)
		if !found {
			*queue = slices.Insert(*queue, at, p)
		}
	}
	l.offer(line, p)
	l.offer(line, line.head())
}

// leave takes a place out of its card's queue and out of the heap.
func (l *lineup) leave(line *cardLine, p *place) {
	if p.at >= 0 {
		heap.Remove(&l.due, p.at)
	}
	queue := line.queue(p)
	at, found := slices.BinarySearchFunc(*queue, p, byID)
	switch {
	case !found:
	case at == 0: // the usual case, without moving the rest
		(*queue)[0] = nil
		*queue = (*queue)[1:]
	default:
		*queue = slices.Delete(*queue, at, at+1)
	}
}

// offer puts a place into the heap if it may be sent.
func (l *lineup) offer(line *cardLine, p *place) {
	if p == nil || p.paying || !line.mayGo(p) {
		return
	}
	if p.at >= 0 {
		heap.Fix(&l.due, p.at)
		return
	}
	heap.Push(&l.due, p)
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
		if l.cards[keyOf(first)].mayGo(first) { // else something has come before it: it is offered again when that is gone
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
	line := l.cards[keyOf(p)]
	l.leave(line, p)
	p.paying, p.turn = false, next
	l.enter(line, p)
}

// remove takes out what is not owed any more. What has been taken in anew meanwhile stays: it is owed again.
func (l *lineup) remove(p *place) {
	if l.places[p.ID] != p {
		return
	}
	delete(l.places, p.ID)
	line := l.cards[keyOf(p)]
	l.leave(line, p)
	of := line.transactions[p.Transaction]
	if p.Kind == journal.KindAdvice {
		of.advice = nil
	} else {
		of.reversal = nil
	}
	if of.advice == nil && of.reversal == nil {
		delete(line.transactions, p.Transaction)
	}
	if line.owed--; line.owed == 0 {
		delete(l.cards, keyOf(p))
		return
	}
	if p.Kind == journal.KindAdvice && of.reversal != nil {
		l.enter(line, of.reversal)
	}
	l.offer(line, line.head())
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
