package journal

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"testing"
	"testing/synctest"
	"time"
)

// owes makes an unknown transaction and returns what is owed for it.
func (r *running) owes() OwedID {
	r.t.Helper()
	r.finish(r.begin(""), Outcome{Kind: Unknown, Reason: "timeout"})
	return r.owed()[0].ID
}

// attempt and settle are the steps of a payment that must work.
func (r *running) attempt(id OwedID, own Numbers) *Ticket {
	r.t.Helper()
	ticket, err := r.Attempt(context.Background(), id, own)
	if err != nil {
		r.t.Fatal(err)
	}
	ticket.Spend()
	return ticket
}

func (r *running) settle(ticket *Ticket, s Settlement) {
	r.t.Helper()
	if err := r.Settle(context.Background(), ticket, s); err != nil {
		r.t.Fatal(err)
	}
}

func (r *running) park(id OwedID) {
	r.t.Helper()
	if err := r.Park(context.Background(), id); err != nil {
		r.t.Fatal(err)
	}
}

func (r *running) release(id OwedID) {
	r.t.Helper()
	if err := r.Release(context.Background(), id); err != nil {
		r.t.Fatal(err)
	}
}

// incurred are the IDs of what is newly owed.
func (r *running) incurred() []OwedID {
	var ids []OwedID
	for _, d := range r.Incurred("processor-a") {
		ids = append(ids, d.ID)
	}
	return ids
}

// reopened stops the journal and opens a copy of it as it stood before, as after a crash.
func (r *running) reopened(path string) *running {
	r.t.Helper()
	copied := copyJournal(r.t, path)
	r.stop()
	return start(r.t, Config{Path: copied})
}

func TestWhatIsReleasedIsOwedAsIfItWereNew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		path := create(t)
		r := start(t, Config{Path: path})
		id := r.owes()
		r.incurred()
		r.settle(r.attempt(id, Numbers{}), Parked("poison", "30"))
		<-time.After(time.Hour)
		r.release(id)
		for range 2 {
			incurred := r.Incurred("processor-a")
			if len(incurred) != 1 || incurred[0].ID != id || incurred[0].Attempts != 1 || !incurred[0].Since.Equal(time.Now()) || !incurred[0].DueAt.Equal(time.Now()) {
				t.Errorf("incurred %+v", incurred)
			}
			if again := r.incurred(); again != nil {
				t.Errorf("incurred twice: %v", again)
			}
			got := r.owed()[0]
			if got.State != StateOwed || !got.SettledAt.IsZero() || got.LastReason != "poison" || got.Answered != 1 {
				t.Errorf("got %+v", got)
			}
			if e := r.Exposure(); e.Owed != 1 || e.Parked != 0 || e.Amounts["978"] != 12345 || !e.Oldest.Equal(time.Now()) {
				t.Errorf("exposure %+v", e)
			}
			r = r.reopened(path)
			path = r.path
		}
		attempt := r.attempt(id, Numbers{})
		if attempt.Attempt() != 2 {
			t.Errorf("attempt %d after a release: it is not marked as a repeat", attempt.Attempt())
		}
		r.settle(attempt, Acknowledged("00"))
		want := "begun unknown:timeout owed:timeout attempted:attempt_1 parked:30 released:operator attempted:attempt_2 acknowledged:00"
		if got := r.history(attempt.ID()); got != want {
			t.Errorf("history %q\nwant    %q", got, want)
		}
	})
}

func TestOnlyWhatIsParkedIsReleased(t *testing.T) {
	ctx := context.Background()
	r := start(t, Config{Path: create(t)})
	owed, underway, done := r.owes(), r.owes(), r.owes()
	attempt := r.attempt(underway, Numbers{})
	r.settle(r.attempt(done, Numbers{}), Acknowledged("00"))
	for name, id := range map[string]OwedID{"owed": owed, "an attempt under way": underway, "acknowledged": done, "not there": 4711} {
		if err := r.Release(ctx, id); !errors.Is(err, ErrNotParked) {
			t.Errorf("%s: %v", name, err)
		}
	}
	r.settle(attempt, Acknowledged("00"))
	r.park(owed)
	errs := make(chan error, 8)
	for range cap(errs) {
		go func() { errs <- r.Release(ctx, owed) }()
	}
	released := 0
	for range cap(errs) {
		if err := <-errs; err == nil {
			released++
		} else if !errors.Is(err, ErrNotParked) {
			t.Error(err)
		}
	}
	if got := r.incurred(); released != 1 || !slices.Equal(got, []OwedID{owed}) {
		t.Errorf("released %d times, incurred %v", released, got)
	}
	if e := r.Exposure(); e.Owed != 1 || e.Parked != 0 || e.Amounts["978"] != 12345 {
		t.Errorf("exposure %+v", e)
	}
}

func TestOnlyWhatIsOwedAndNotBeingSentIsParked(t *testing.T) {
	ctx := context.Background()
	path := create(t)
	r := start(t, Config{Path: path})
	owed, underway, done := r.owes(), r.owes(), r.owes()
	attempt := r.attempt(underway, Numbers{})
	r.settle(r.attempt(done, Numbers{}), Acknowledged("00"))
	r.park(owed)
	for name, id := range map[string]OwedID{"parked": owed, "an attempt under way": underway, "acknowledged": done, "not there": 4711} {
		if err := r.Park(ctx, id); !errors.Is(err, ErrNotOwed) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := r.Attempt(ctx, owed, Numbers{}); !errors.Is(err, ErrNotOwed) {
		t.Errorf("an attempt of what is parked: %v", err)
	}
	r.settle(attempt, Again(time.Now(), "timeout", ""))
	if got := r.incurred(); !slices.Equal(got, []OwedID{underway}) {
		t.Errorf("incurred %v: what is parked or done is to be paid", got)
	}
	for range 2 {
		owing, err := r.Owing(ctx, owed)
		if err != nil || owing.State != StateParked || owing.LastReason != "operator" || owing.SettledAt.IsZero() || owing.Attempts != 0 {
			t.Errorf("got %+v, %v", owing, err)
		}
		if e := r.Exposure(); e.Owed != 1 || e.Parked != 1 || e.Amounts["978"] != 12345 {
			t.Errorf("exposure %+v", e)
		}
		r = r.reopened(path)
		path = r.path
	}
	if got := r.history(1); got != "begun unknown:timeout owed:timeout parked:operator" {
		t.Errorf("history %q", got)
	}
}

// The payer asks whenever it likes: before, between and after the operator's changes, and after a crash.
func TestWhatIsOwedIsHandedToItsPayerOnceForEachTimeThatItIsOwed(t *testing.T) {
	for name, steps := range map[string]struct {
		do   string // p: park, r: release, i: incurred, o: reopen
		want []int  // how many each i is given
	}{
		"never asked":                          {"pri", []int{1}},
		"asked before":                         {"ipri", []int{1, 1}},
		"asked while it is parked":             {"piri", []int{0, 1}},
		"parked and released twice":            {"prpri", []int{1}},
		"parked at last":                       {"prpi", []int{0}},
		"asked after each":                     {"ipiripii", []int{1, 0, 1, 0, 0}},
		"reopened while it is parked":          {"poiri", []int{0, 1}},
		"reopened after the release":           {"iprioi", []int{1, 1, 1}},
		"reopened, then parked and released":   {"oprii", []int{1, 0}},
		"parked, reopened and released, twice": {"porporii", []int{1, 0}},
	} {
		t.Run(name, func(t *testing.T) {
			path := create(t)
			r := start(t, Config{Path: path})
			id := r.owes()
			var got []int
			for _, step := range steps.do {
				switch step {
				case 'p':
					r.park(id)
				case 'r':
					r.release(id)
				case 'i':
					got = append(got, len(r.incurred()))
				case 'o':
					r = r.reopened(path)
					path = r.path
				}
			}
			if !slices.Equal(got, steps.want) {
				t.Errorf("got %v, want %v", got, steps.want)
			}
		})
	}
}

func TestTheOldestIsTheOneThatIsOwedLongest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		path := create(t)
		r := start(t, Config{Path: path})
		var since []time.Time
		for range 4 {
			r.owes()
			since = append(since, time.Now())
			<-time.After(time.Minute)
		}
		oldest := func(when string, want time.Time) {
			t.Helper()
			for _, where := range []string{"in memory", "after a restart", "after a crash"} {
				if got := r.Exposure().Oldest; !got.Equal(want) {
					t.Errorf("%s, %s: oldest since %v, want %v", when, where, got, want)
				}
				if where == "in memory" {
					r.stop()
					r = start(t, Config{Path: path})
				} else {
					r = r.reopened(path)
					path = r.path
				}
			}
		}
		oldest("at first", since[0])
		r.park(1)
		oldest("the first is parked", since[1])
		r.release(1)
		released := time.Now()
		oldest("the first is released", since[1])
		r.park(3) // in the middle
		oldest("the third is parked", since[1])
		r.settle(r.attempt(2, Numbers{}), Acknowledged("25"))
		oldest("the second is acknowledged", since[3])
		<-time.After(time.Minute)
		r.hear(Hearing{Endpoint: "processor-a", STAN: r.transaction(2).STAN, TransmissionTime: "1123220418", ResponseCode: "00", Approves: true, NotFound: []string{"25"}})
		heard := time.Now()
		oldest("the second is owed again", since[3])
		r.park(4)
		oldest("the fourth is parked", released)
		r.settle(r.attempt(1, Numbers{}), Acknowledged("00"))
		oldest("the first is acknowledged", heard)
		r.settle(r.attempt(2, Numbers{}), Acknowledged("00"))
		oldest("none is left", time.Time{})
		if e := r.Exposure(); e.Owed != 0 || e.Parked != 2 || len(e.Amounts) != 0 {
			t.Errorf("exposure %+v", e)
		}
	})
}

// Ages are dropped lazily: an old debt before many that were settled must neither be lost nor keep them.
func TestAgesStayBoundedBehindAnOldDebt(t *testing.T) {
	r := start(t, Config{Path: create(t)})
	first := r.owes()
	since := r.Exposure().Oldest
	for range 200 {
		id := r.owes()
		r.park(id)
		r.release(id)
		r.settle(r.attempt(id, Numbers{}), Acknowledged("00"))
	}
	if got := len(r.standing.ages); got > 2+64+1 {
		t.Errorf("%d ages for one debt", got)
	}
	if e := r.Exposure(); !e.Oldest.Equal(since) || e.Owed != 1 {
		t.Errorf("exposure %+v", e)
	}
	r.settle(r.attempt(first, Numbers{}), Acknowledged("00"))
	if len(r.standing.ages) != 0 {
		t.Errorf("%d ages for no debt", len(r.standing.ages))
	}
}

func TestPrune(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx := context.Background()
		path := create(t)
		r := start(t, Config{Path: path})
		open := r.begin("open")
		for i, kind := range []Kind{Approved, Declined, NotSent} {
			r.finish(r.begin(fmt.Sprint("ended-", i)), Outcome{Kind: kind})
		}
		owed, parked, paid, again := r.owes(), r.owes(), r.owes(), r.owes()
		r.park(parked)
		r.settle(r.attempt(paid, Numbers{}), Acknowledged("00"))
		old := time.Now().Add(time.Minute)
		<-time.After(time.Hour)
		r.settle(r.attempt(again, Numbers{}), Acknowledged("00")) // it ended long ago and was paid just now
		r.finish(r.begin("recent"), Outcome{Kind: Approved})
		r.finish(r.begin("newest"), Outcome{Kind: Approved})

		prune := func(before time.Time, most, want int) {
			t.Helper()
			if got, err := r.Prune(ctx, before, most); err != nil || got != want {
				t.Errorf("pruned %d, want %d: %v", got, want, err)
			}
		}
		ids := func() (list []TransactionID) {
			t.Helper()
			found, err := r.Transactions(ctx, Filter{Limit: 1000})
			if err != nil {
				t.Fatal(err)
			}
			for _, transaction := range found {
				list = append(list, transaction.ID)
			}
			slices.Sort(list)
			return list
		}
		prune(time.Time{}, 100, 0)
		prune(old, 0, 0)
		prune(old, -1, 0)
		prune(old, 2, 2)
		if got, want := ids(), []TransactionID{1, 4, 5, 6, 7, 8, 9, 10}; !slices.Equal(got, want) {
			t.Errorf("left %v, want %v", got, want)
		}
		prune(old, 100, 2)
		prune(old, 100, 0)
		if got, want := ids(), []TransactionID{1, 5, 6, 8, 9, 10}; !slices.Equal(got, want) {
			t.Errorf("left %v, want %v", got, want)
		}
		for _, id := range []TransactionID{2, 3, 4, 7} {
			if got := r.history(id); got != "" {
				t.Errorf("transaction %d has gone and its history has not: %s", id, got)
			}
		}
		if got := r.history(5); got != "begun unknown:timeout owed:timeout" {
			t.Errorf("history %q", got)
		}
		if _, found, err := r.Find(ctx, "pos-switch", "ended-0"); found || err != nil {
			t.Errorf("a pruned key is found: %v, %v", found, err)
		}
		if _, err := r.Owe(ctx, Reversing{Transaction: 2, Reason: "upstream"}); !errors.Is(err, ErrNotApproved) {
			t.Errorf("a reversal of what was pruned: %v", err)
		}
		r.begin("ended-0") // its key is free

		// Everything: what is open, owed or parked stays, and IDs go on where they were.
		prune(time.Now().Add(time.Hour), 100, 2)
		if got, want := ids(), []TransactionID{1, 5, 6, 8, 11}; !slices.Equal(got, want) { // 8 has the newest debt, 11 is the newest
			t.Errorf("left %v, want %v", got, want)
		}
		r = r.reopened(path)
		path = r.path
		if got := r.begin("after"); got.ID() != 12 {
			t.Errorf("ID %d was given out again", got.ID())
		}
		if got := r.owes(); got != again+1 {
			t.Errorf("owed %d was given out again", got)
		}
		if e := r.Exposure(); e.Owed != 2 || e.Parked != 1 || !maps.Equal(e.Amounts, map[string]uint64{"978": 2 * 12345}) {
			t.Errorf("exposure %+v", e)
		}
		r.settle(r.attempt(owed, Numbers{}), Acknowledged("00"))
		r.release(parked)
		if tickets, err := r.Unfinished(ctx); err != nil || len(tickets) != 2 || tickets[0].ID() != open.ID() {
			t.Errorf("unfinished %v, %v", tickets, err)
		}
		r.stop()
		checkForeignKeys(t, path)
	})
}

// checkForeignKeys fails for a row whose transaction has gone.
func checkForeignKeys(t *testing.T, path string) {
	t.Helper()
	reader, err := OpenReadOnly(path)
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Close()
	for _, query := range []string{"SELECT count(*) FROM pragma_foreign_key_check",
		"SELECT count(*) FROM events WHERE transaction_id NOT IN (SELECT id FROM transactions)",
		"SELECT count(*) FROM events WHERE owed_id NOT IN (SELECT id FROM owed)"} {
		var broken int
		if err := reader.db.QueryRow(query).Scan(&broken); err != nil || broken != 0 {
			t.Errorf("%s: %d, %v", query, broken, err)
		}
	}
}
