package journal

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"acquirerd/messages"
)

// hold keeps the writer inside its next commit until the returned function is called.
func (r *running) hold() (held <-chan struct{}, release func()) {
	holding, released := make(chan struct{}), make(chan struct{})
	var once sync.Once
	r.writer.fault = func(committed bool) error {
		if !committed {
			once.Do(func() { close(holding); <-released })
		}
		return nil
	}
	return holding, func() { close(released) }
}

// What nobody will send is ended: whether its caller left before its batch, in it, or when it was to be answered.
func TestAnIntentWhoseCallerHasLeftIsEndedAsNotSent(t *testing.T) {
	for _, where := range []string{"in the batch", "behind the batch"} {
		t.Run(where, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				path := create(t)
				r := start(t, Config{Path: path})
				first, left := r.next("processor-a"), r.next("processor-a")
				held, release := r.hold()
				ctx, cancel := context.WithTimeout(t.Context(), time.Second)
				defer cancel()
				var callers sync.WaitGroup
				leave := func() {
					callers.Go(func() {
						ticket, err := r.Begin(ctx, intentOf(left, "left"))
						if !errors.Is(err, context.DeadlineExceeded) || ticket != nil {
							t.Errorf("got %v, %v", ticket, err)
						}
					})
				}
				if where == "in the batch" {
					leave()
					<-held
				} else {
					callers.Go(func() {
						if _, err := r.Begin(t.Context(), intentOf(first, "first")); err != nil {
							t.Error(err)
						}
					})
					<-held
					leave()
				}
				callers.Go(func() { <-ctx.Done() })
				<-ctx.Done()
				synctest.Wait() // it has left, and the writer is still held
				if _, found, err := r.Find(t.Context(), "pos-switch", "left"); found || err != nil {
					t.Errorf("found before its batch: %v", err)
				}
				release()
				callers.Wait()
				synctest.Wait()
				for range 2 {
					got := r.find("left")
					if got.Outcome != NotSent || got.Reason != "budget_ended" || !got.Answer.IsZero() {
						t.Errorf("found %+v", got)
					}
					if got, want := r.history(got.ID), "begun not_sent:budget_ended"; got != want {
						t.Errorf("history %q, want %q", got, want)
					}
					if r.standing.holds("processor-a", left.STAN) {
						t.Error("its STAN is held")
					}
					if e := r.Exposure(); e.Owed != 0 {
						t.Errorf("exposure %+v", e)
					}
					r = r.reopened(path)
					path = r.path
				}
			})
		})
	}
}

func TestAContextThatHasEndedBeginsNothing(t *testing.T) {
	r := start(t, Config{Path: create(t)})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if ticket, err := r.Begin(ctx, intentOf(r.next("processor-a"), "key")); !errors.Is(err, context.Canceled) || ticket != nil {
		t.Errorf("got %v, %v", ticket, err)
	}
	if _, found, err := r.Find(t.Context(), "pos-switch", "key"); found || err != nil {
		t.Errorf("it was written: %v", err)
	}
}

func TestADuplicateWhoseCallerHasLeftChangesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := start(t, Config{Path: create(t)})
		begun := r.begin("key")
		numbers := r.next("processor-a")
		held, release := r.hold()
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error)
		go func() { _, err := r.Begin(ctx, intentOf(numbers, "key")); ended <- err }()
		<-held
		cancel()
		if err := <-ended; !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
		release()
		synctest.Wait()
		if got := r.find("key"); got.ID != begun.ID() || got.Outcome != "" {
			t.Errorf("found %+v", got)
		}
		r.finish(begun, Outcome{Kind: NotSent})
	})
}

// Stop comes between an intent and its end: what was written is ended before Run returns.
func TestStopEndsWhatItsCallersHaveLeft(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		path := create(t)
		r := start(t, Config{Path: path})
		numbers := r.next("processor-a")
		held, release := r.hold()
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error)
		go func() { _, err := r.Begin(ctx, intentOf(numbers, "key")); ended <- err }()
		<-held
		cancel()
		<-ended
		r.cancel() // stop
		release()
		r.stop()
		r = start(t, Config{Path: path})
		if got := r.find("key"); got.Outcome != NotSent {
			t.Errorf("found %+v", got)
		}
	})
}

// If the journal fails between the two, the intent may stand open: recovery then owes its reversal, which is answered 25.
func TestAnIntentWhoseCallerHasLeftIsRecoveredAfterAFailure(t *testing.T) {
	for _, commit := range []struct {
		fails int // which commit, from the intent's on
		done  bool
		open  int
	}{{1, false, 0}, {1, true, 1}, {2, false, 1}, {2, true, 0}} {
		t.Run(fmt.Sprintf("in commit %d, done %v", commit.fails, commit.done), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				path := create(t)
				r := start(t, Config{Path: path})
				r.stopped = true
				numbers := r.next("processor-a")
				held, released, commits := make(chan struct{}), make(chan struct{}), 0
				r.writer.fault = func(committed bool) error {
					if !committed {
						if commits++; commits == 1 {
							close(held)
							<-released
						}
					}
					if commits == commit.fails && committed == commit.done {
						return errors.New("disk on fire")
					}
					return nil
				}
				ctx, cancel := context.WithCancel(t.Context())
				ended := make(chan error)
				go func() { _, err := r.Begin(ctx, intentOf(numbers, "key")); ended <- err }()
				<-held
				cancel()
				if err := <-ended; !errors.Is(err, context.Canceled) {
					t.Error(err)
				}
				close(released)
				if err := <-r.ended; !errors.Is(err, ErrFailed) {
					t.Errorf("Run: %v", err)
				}
				if err := r.Close(); err != nil {
					t.Error(err)
				}
				r = start(t, Config{Path: path})
				if tickets, err := r.Unfinished(t.Context()); err != nil || len(tickets) != commit.open {
					t.Errorf("%d unfinished, want %d: %v", len(tickets), commit.open, err)
				}
			})
		})
	}
}

// A caller that is answered and one that leaves at the same moment: whoever was first, either the Ticket is held or the intent is ended.
func TestLeavingRacesWithTheAnswer(t *testing.T) {
	path := create(t)
	j, err := Open(Config{Path: path, Station: "acq01", Batch: 3}, slog.New(slog.DiscardHandler), prometheus.NewRegistry())
	if err != nil {
		t.Fatal(err)
	}
	r := run(t, j)
	const callers = 400
	var work sync.WaitGroup
	var mu sync.Mutex
	tickets, left := map[string]*Ticket{}, map[string]bool{}
	for i := range callers {
		key := fmt.Sprint("key-", i)
		work.Go(func() {
			ctx, cancel := context.WithCancel(context.Background())
			go func() {
				for range i * 4 { // the later ones about as long as a batch takes
					runtime.Gosched()
				}
				cancel()
			}()
			ticket, err := r.Begin(ctx, intentOf(messages.Numbers{STAN: decimal(uint64(i+1001), 6)}, key))
			mu.Lock()
			defer mu.Unlock()
			switch {
			case err == nil:
				tickets[key] = ticket
			case errors.Is(err, context.Canceled) && ticket == nil:
				left[key] = true
			default:
				t.Errorf("%s: %v, %v", key, ticket, err)
			}
		})
	}
	work.Wait()
	r.begin("after all of them") // what was left has been ended by a batch before, or by this one's
	r.begin("and once more")
	for i := range callers {
		key := fmt.Sprint("key-", i)
		f, found, err := r.Find(context.Background(), "pos-switch", key)
		if err != nil {
			t.Fatal(err)
		}
		switch {
		case tickets[key] != nil && (!found || f.Outcome != "" || !r.standing.holds("processor-a", tickets[key].STAN())):
			t.Errorf("%s has a ticket and is %v, %q", key, found, f.Outcome)
		case left[key] && found && (f.Outcome != NotSent || r.standing.holds("processor-a", decimal(uint64(i+1001), 6))):
			t.Errorf("%s was left and is %q", key, f.Outcome)
		}
	}
	t.Logf("%d tickets, %d left", len(tickets), len(left))
	for _, ticket := range tickets {
		r.finish(ticket, Outcome{Kind: NotSent}) // panics if it was finished
	}
	r.stop()
	r = start(t, Config{Path: path})
	if open, err := r.Unfinished(context.Background()); err != nil || len(open) != 2 {
		t.Errorf("%d unfinished, %v", len(open), err)
	}
}
