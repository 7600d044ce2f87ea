package journal

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"acquirerd/messages"
)

// A step is a call that writes one record, in a journal whose transaction 1 is declined, 2 approved, 3 unknown and owed, 4 unknown with a
// reversal that was not found, and 5 unknown and parked.
type step struct {
	call   func(r *running) error
	again  error // what the call gives after it was done and the journal was opened again
	owed   int   // how many are owed then
	parked int
}

func steps() map[string]step {
	ctx := context.Background()
	numbers := messages.Numbers{STAN: "000500", RRN: "632700000500"}
	hear := func(of int, code string) func(*running) error {
		return func(r *running) error {
			_, err := r.Hear(ctx, Hearing{Endpoint: "processor-a", STAN: decimal(uint64(of), 6), TransmissionTime: "1123220418",
				ResponseCode: code, Approves: code == "00", NotFound: []string{"25"}})
			return err
		}
	}
	return map[string]step{
		"Begin": {call: func(r *running) error { _, err := r.Begin(ctx, intentOf(numbers, "new")); return err }, again: ErrDuplicate, owed: 1, parked: 1},
		"Accept": {call: func(r *running) error {
			in := adviceOf(numbers, "new")
			_, err := r.Accept(ctx, in, replyOf(in, "00"))
			return err
		}, again: ErrDuplicate, owed: 2, parked: 1},
		"Bar": {call: func(r *running) error {
			return r.Bar(ctx, Barred{Upstream: "pos-switch", UpstreamKey: "new", MTI: "0100"})
		}, again: ErrDuplicate, owed: 1, parked: 1},
		"Owe": {call: func(r *running) error {
			stands, err := r.Owe(ctx, Reversing{Transaction: 2, Reason: "upstream", Replacement: "000000000345"})
			if err == nil && stands != (Reversal{ID: 4, State: StateOwed, Replacement: "000000000345"}) {
				err = fmt.Errorf("stands %+v", stands)
			}
			return err
		}, owed: 2, parked: 1},
		"Hear a decline":         {call: hear(3, "51"), owed: 1, parked: 1},
		"Hear a late approval":   {call: hear(4, "00"), owed: 2, parked: 1},
		"Hear a second approval": {call: hear(1, "00"), owed: 2, parked: 1},
		"Release":                {call: func(r *running) error { return r.Release(ctx, 3) }, again: ErrNotParked, owed: 2},
		"Park":                   {call: func(r *running) error { return r.Park(ctx, 1) }, again: ErrNotOwed, parked: 2},
		"Prune":                  {call: func(r *running) error { _, err := r.Prune(ctx, time.Now().Add(time.Hour), 2); return err }, owed: 1, parked: 1},
		"Advance": {call: func(r *running) error {
			_, err := r.Advance(ctx, Cutover{Endpoint: "processor-a", Day: "0102"})
			return err
		}, owed: 1, parked: 1},
		"SetBusinessDate": {call: func(r *running) error {
			_, err := r.SetBusinessDate(ctx, "processor-a", time.Now().UTC().Format(time.DateOnly))
			return err
		}, owed: 1, parked: 1},
		"Keep": {call: func(r *running) error {
			advised, err := r.Keep(ctx, advisingOf("700001", "000002"))
			if err == nil && (advised.ID != 1 || advised.Transaction != 2 || !advised.Undoes) {
				err = fmt.Errorf("advised %+v", advised)
			}
			return err
		}, owed: 1, parked: 1},
		"Attempt with its numbers": {call: func(r *running) error {
			ticket, err := r.Attempt(ctx, 1, Numbers{"900001", "1123220500"})
			if err == nil && ticket.Own().STAN != "900001" {
				err = fmt.Errorf("own numbers %+v", ticket.Own())
			}
			return err
		}, owed: 1, parked: 1},
	}
}

func all(t *testing.T, path string) []string {
	t.Helper()
	return slices.Concat(dump(t, path, "transactions", transactions1+", upstream_key, answer, rest_key_id, rest_ciphertext, business_date"),
		dump(t, path, "owed", owed1+", replacement, stan, transmission_time, business_date"), dump(t, path, "events", all1),
		dump(t, path, "business_days", "endpoint, date, began_at"), dump(t, path, "processor_advices", "id, identity, transaction_id, undoes"))
}

// Each record is there whole or not at all, and recovery goes on from either.
func TestAFailureInEachRecord(t *testing.T) {
	for name, step := range steps() {
		for _, done := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, done %v", name, done), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					path := create(t)
					r := start(t, Config{Path: path})
					r.finish(r.begin("declined"), Outcome{Kind: Declined, ResponseCode: "51"})
					r.finish(r.begin("approved"), Outcome{Kind: Approved, ResponseCode: "00"})
					r.owes()
					r.settle(r.attempt(r.owes(), Numbers{}), Acknowledged("25"))
					r.park(r.owes())
					r.finish(r.begin("last"), Outcome{Kind: NotSent})
					r.incurred()
					before, exposure := all(t, path), r.Exposure()

					r.stopped = true
					cause := errors.New("disk on fire")
					r.writer.fault = func(committed bool) error {
						if committed == done {
							return cause
						}
						return nil
					}
					if err := step.call(r); !errors.Is(err, ErrFailed) || !errors.Is(err, cause) {
						t.Errorf("got %v", err)
					}
					if err := <-r.ended; !errors.Is(err, ErrFailed) {
						t.Errorf("Run: %v", err)
					}
					// Memory holds what was durable and known: nothing of a record whose fate nobody knows.
					if got := r.Exposure(); got.Owed != exposure.Owed || got.Parked != exposure.Parked || r.incurred() != nil {
						t.Errorf("exposure %+v, was %+v", got, exposure)
					}
					if err := step.call(r); err == nil {
						t.Error("a failed journal has recorded something")
					}
					crashed := copyJournal(t, path)
					if err := r.Close(); err != nil {
						t.Error(err)
					}
					for _, path := range []string{crashed, path} {
						after := all(t, path)
						if slices.Equal(before, after) == done {
							t.Errorf("done %v, and the record is there: %v", done, !slices.Equal(before, after))
						}
						checkForeignKeys(t, path)
						r = start(t, Config{Path: path})
						want, owed, parked := step.again, step.owed, step.parked
						if !done {
							want, owed, parked = nil, exposure.Owed, exposure.Parked
						}
						if e := r.Exposure(); e.Owed != owed || e.Parked != parked {
							t.Errorf("exposure %+v, want %d owed and %d parked", e, owed, parked)
						}
						if err := step.call(r); !errors.Is(err, want) || want == nil && err != nil {
							t.Errorf("again: %v, want %v", err, want)
						}
						if e := r.Exposure(); e.Owed != step.owed || e.Parked != step.parked {
							t.Errorf("exposure after it %+v, want %d owed and %d parked", e, step.owed, step.parked)
						}
						r.stop()
					}
				})
			})
		}
	}
}

func TestAClosedJournalRefusesEachRecord(t *testing.T) {
	path := create(t)
	r := start(t, Config{Path: path})
	r.owes()
	r.stop()
	before := all(t, path)
	for name, step := range steps() {
		if err := step.call(r); !errors.Is(err, ErrClosed) && (name != "Park" && name != "Attempt with its numbers" || !errors.Is(err, ErrNotOwed)) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if !slices.Equal(before, all(t, path)) {
		t.Error("something was written")
	}
}

// Records of one batch see each other, in their order.
func TestRecordsOfOneBatchSeeEachOther(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		path := create(t)
		r := start(t, Config{Path: path})
		id := r.owes()
		attempt := r.attempt(id, Numbers{"900001", "1123220500"})
		other := r.next("processor-a")
		holding, release := r.hold()
		go func() { _, _ = r.Begin(context.Background(), intentOf(other, "first")) }()
		<-holding
		results := map[string]chan error{}
		queue := func(name string, call func() error) {
			results[name] = make(chan error, 1)
			go func() { results[name] <- call() }()
			synctest.Wait()
		}
		queue("settle", func() error { return r.Settle(t.Context(), attempt, Parked("poison", "30")) })
		queue("release", func() error { return r.Release(t.Context(), id) })
		queue("release again", func() error { return r.Release(t.Context(), id) })
		queue("bar", func() error {
			return r.Bar(t.Context(), Barred{Upstream: "pos-switch", UpstreamKey: "key", MTI: "0100"})
		})
		queue("begin", func() error { _, err := r.Begin(t.Context(), intentOf(other, "key")); return err })
		in := adviceOf(messages.Numbers{STAN: "000099"}, "advice")
		queue("accept", func() error { _, err := r.Accept(t.Context(), in, messages.Reply{}); return err })
		queue("accept again", func() error { _, err := r.Accept(t.Context(), in, messages.Reply{}); return err })
		queue("owe", func() error { _, err := r.Owe(t.Context(), Reversing{Transaction: 4, Reason: "upstream"}); return err })
		queue("owe again", func() error { _, err := r.Owe(t.Context(), Reversing{Transaction: 4, Reason: "upstream"}); return err })
		release()
		for name, want := range map[string]error{"settle": nil, "release": nil, "release again": ErrNotParked, "bar": nil, "begin": ErrDuplicate,
			"accept": nil, "accept again": ErrDuplicate, "owe": nil, "owe again": nil} {
			if err := <-results[name]; !errors.Is(err, want) || want == nil && err != nil {
				t.Errorf("%s: %v, want %v", name, err, want)
			}
		}
		if got := r.incurred(); !slices.Equal(got, []OwedID{id, 2, 3}) {
			t.Errorf("incurred %v", got)
		}
		for range 2 {
			if e := r.Exposure(); e.Owed != 3 || e.Parked != 0 || e.Amounts["978"] != 3*12345 {
				t.Errorf("exposure %+v", e)
			}
			if got := held(r); got["900001"] != 1 || got["000001"] != 1 || got["000099"] != 2 {
				t.Errorf("held %v", got)
			}
			r = r.reopened(path)
			path = r.path
		}
	})
}
