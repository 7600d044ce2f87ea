package journal

import (
	"context"
	"fmt"
	"sync"
	"time"

	"acquirerd/messages"
)

const (
	lastSTAN = 999_999
	rrnName  = "rrn"
	stanName = "stan:" // and the endpoint
)

// Next returns a STAN of the endpoint and an RRN of the journal that were never given out before, but for the STAN's wrap
// after 999999. at is the time whose day stands in the RRN. An error wraps ErrBusy, ErrFailed, ErrClosed or ctx.Err().
//
// The RRN is "YDDD" and eight digits: the form of ISO 8583:1987 networks that want the last digit of the year and the day of
// the year first (Visa and Mastercard, DE 37).
func (j *Journal) Next(ctx context.Context, endpoint string, at time.Time) (messages.Numbers, error) {
	stan, err := j.nextSTAN(ctx, endpoint)
	if err != nil {
		return messages.Numbers{}, fmt.Errorf("reserving STAN: %w", err)
	}
	running, err := j.numbers.next(ctx, rrnName)
	if err != nil {
		return messages.Numbers{}, fmt.Errorf("reserving RRN: %w", err)
	}
	at = at.UTC()
	rrn := uint64(at.Year()%10)*1e11 + uint64(at.YearDay())*1e8 + uint64(running%1e8) //nolint:gosec // none is negative
	return messages.Numbers{STAN: stan, RRN: decimal(rrn, 12)}, nil
}

// nextSTAN skips the numbers of transactions that are open or owed, of which there are far fewer than STANs.
func (j *Journal) nextSTAN(ctx context.Context, endpoint string) (string, error) {
	for range lastSTAN {
		n, err := j.numbers.next(ctx, stanName+endpoint)
		if err != nil {
			return "", err
		}
		stan := decimal(uint64((n-1)%lastSTAN+1), 6) //nolint:gosec // n is positive
		if !j.standing.holds(endpoint, stan) {
			return stan, nil
		}
	}
	return "", fmt.Errorf("%w: each STAN is in use", ErrBusy)
}

// numbers gives out what was reserved.
type numbers struct {
	journal *Journal
	block   int64

	mu        sync.Mutex
	sequences map[string]*sequence
}

// A sequence counts from 1 and never begins again.
type sequence struct {
	next, end int64 // next to end-1 are reserved and free
	ahead     int64 // end of the block that follows, 0 if none was reserved yet; it begins at ahead-block
	fetching  bool
	arrived   chan struct{} // closed when fetching has ended
}

// next returns the next number of a sequence. When half of a block is used up the next one is reserved, so that nobody waits.
func (n *numbers) next(ctx context.Context, name string) (int64, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	s := n.sequences[name]
	if s == nil {
		s = &sequence{arrived: make(chan struct{})}
		n.sequences[name] = s
	}
	for s.next == s.end {
		if s.ahead != 0 {
			s.next, s.end, s.ahead = s.ahead-n.block, s.ahead, 0
			break
		}
		if err := n.fetch(name, s); err != nil {
			return 0, err
		}
		if err := n.await(ctx, s.arrived); err != nil {
			return 0, err
		}
	}
	number := s.next
	s.next++
	if s.ahead == 0 && s.end-s.next <= n.block/2 {
		_ = n.fetch(name, s) // a journal that refuses is told of when the block is used up
	}
	return number, nil
}

// await waits without the lock.
func (n *numbers) await(ctx context.Context, arrived <-chan struct{}) error {
	n.mu.Unlock()
	defer n.mu.Lock()
	select {
	case <-arrived:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// fetch reserves the next block of a sequence, unless that is under way.
func (n *numbers) fetch(name string, s *sequence) error {
	if s.fetching {
		return nil
	}
	if err := n.journal.queue.put(&blockRecord{name: name, sequence: s, size: n.block}, true); err != nil {
		return err
	}
	s.fetching = true
	return nil
}

type blockRecord struct {
	name     string
	sequence *sequence
	size     int64
	end      int64
}

const reserveSQL = `INSERT INTO numbers (name, reserved) VALUES (?, ?)
ON CONFLICT (name) DO UPDATE SET reserved = reserved + excluded.reserved RETURNING reserved`

func (r *blockRecord) write(w *writer, _ time.Time) error {
	row, err := w.reserve.one(r.name, r.size)
	if err != nil {
		return err
	}
	reserved, ok := row[0].(int64)
	if !ok {
		return errInvariant
	}
	r.end = reserved + 1
	return nil
}

// done makes the block usable. After an error the waiting callers try again, and get the queue's refusal.
func (r *blockRecord) done(j *Journal, err error) {
	j.numbers.mu.Lock()
	defer j.numbers.mu.Unlock()
	if err == nil {
		r.sequence.ahead = r.end
	}
	r.sequence.fetching = false
	close(r.sequence.arrived)
	r.sequence.arrived = make(chan struct{})
}

// decimal gives the last digits of n.
func decimal(n uint64, digits int) string {
	text := make([]byte, digits)
	for i := digits - 1; i >= 0; i-- {
		text[i] = byte('0' + n%10)
		n /= 10
	}
	return string(text)
}
