package acquirer

import (
	"testing"
	"time"

	"acquirerd/card"
	"acquirerd/journal"
)

// One card with many advices, each reversed: a refund terminal, a test card of the processor.
func TestOneCardWithManyReversedAdvices(t *testing.T) {
	const many = 20_000
	l, now := newLineup(), time.Now()
	token := card.PANToken{1}
	begun := time.Now()
	for i := range many {
		id := journal.TransactionID(i + 1)
		l.add(journal.Debt{ID: journal.OwedID(2*i + 1), Transaction: id, Kind: journal.KindAdvice, Card: token}, now)
		l.add(journal.Debt{ID: journal.OwedID(2*i + 2), Transaction: id, Kind: journal.KindReversal, Card: token}, now)
		if time.Since(begun) > 10*time.Second {
			t.Fatalf("%d pairs took %v to be taken in", i, time.Since(begun))
		}
	}
	t.Logf("taken in after %v", time.Since(begun))
	for n := 0; ; n++ {
		p, _ := l.next(now)
		if p == nil {
			t.Logf("%d paid in %v", n, time.Since(begun))
			break
		}
		l.remove(p)
		if time.Since(begun) > 20*time.Second {
			t.Fatalf("%d paid in %v", n, time.Since(begun))
		}
	}
}

// The same with nothing but reversals, which all were sent often without success and hold up nothing.
func TestOneCardWithManyPoisonedReversals(t *testing.T) {
	const many = 20_000
	l, now := newLineup(), time.Now()
	begun := time.Now()
	for i := range many {
		l.add(journal.Debt{ID: journal.OwedID(i + 1), Transaction: journal.TransactionID(i + 1), Kind: journal.KindReversal, Card: card.PANToken{1},
			Attempts: sentOften}, now)
		if time.Since(begun) > 5*time.Second {
			t.Fatalf("%d took %v to be taken in", i, time.Since(begun))
		}
	}
	t.Logf("taken in after %v", time.Since(begun))
}
