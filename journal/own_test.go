package journal

import (
	"errors"
	"maps"
	"slices"
	"testing"
	"time"
)

func held(r *running) map[string]int {
	r.standing.mu.Lock()
	defer r.standing.mu.Unlock()
	return maps.Clone(r.standing.inUse["processor-a"])
}

func TestAReversalKeepsTheNumbersOfItsFirstAttempt(t *testing.T) {
	path := create(t)
	r := start(t, Config{Path: path})
	id := r.owes()
	first, second := Numbers{"900001", "1123220500"}, Numbers{"900002", "1123220600"}

	unsent, err := r.Attempt(t.Context(), id, first)
	if err != nil || unsent.Own() != first || unsent.Attempt() != 1 || unsent.STAN() != "000001" {
		t.Fatalf("%v with %+v, %v", unsent, unsent.Own(), err)
	}
	r.settle(unsent, Unsent(time.Now(), "no_link"))
	for i, own := range []Numbers{second, {}, first, second} {
		attempt := r.attempt(id, own)
		if attempt.Own() != first || attempt.Attempt() != i+1 {
			t.Errorf("%v has %+v, want %+v", attempt, attempt.Own(), first)
		}
		r.settle(attempt, Again(time.Now(), "timeout", ""))
		if i == 1 {
			r = r.reopened(path)
		}
	}
	if got, err := r.Owing(t.Context(), id); err != nil || got.Own != first {
		t.Errorf("got %+v, %v", got, err)
	}
}

func TestAReversalThatBeganWithItsOriginalsNumbersKeepsThem(t *testing.T) {
	r := start(t, Config{Path: create(t)})
	id := r.owes()
	r.settle(r.attempt(id, Numbers{}), Again(time.Now(), "timeout", ""))
	if attempt := r.attempt(id, Numbers{"900001", "1123220500"}); attempt.Own() != (Numbers{}) || attempt.Attempt() != 2 {
		t.Errorf("%v has %+v", attempt, attempt.Own())
	}
	if got := held(r); !maps.Equal(got, map[string]int{"000001": 1}) {
		t.Errorf("held %v", got)
	}
}

func TestSTANsAreHeldAsLongAsTheyCanBeNeeded(t *testing.T) {
	own := Numbers{"900001", "1123220500"}
	const stan = "000001"
	both, none := map[string]int{stan: 1, "900001": 1}, map[string]int{}
	for name, test := range map[string]struct {
		steps func(r *running, id OwedID)
		want  map[string]int
	}{
		"owed": {func(*running, OwedID) {}, map[string]int{stan: 1}},
		"an attempt": {func(r *running, id OwedID) {
			r.attempt(id, own)
		}, both},
		"an attempt that was not sent": {func(r *running, id OwedID) {
			ticket, _ := r.Attempt(t.Context(), id, own)
			r.settle(ticket, Unsent(time.Now(), "no_link"))
		}, both},
		"tried again": {func(r *running, id OwedID) {
			r.settle(r.attempt(id, own), Again(time.Now(), "timeout", ""))
			r.settle(r.attempt(id, Numbers{"900009", ""}), Again(time.Now(), "timeout", ""))
		}, both},
		"acknowledged": {func(r *running, id OwedID) {
			r.settle(r.attempt(id, own), Acknowledged("00"))
		}, none},
		"parked": {func(r *running, id OwedID) {
			r.settle(r.attempt(id, own), Parked("poison", "30"))
		}, both},
		"parked by a person, without a number of its own": {func(r *running, id OwedID) {
			r.park(id)
		}, map[string]int{stan: 1}},
		"released": {func(r *running, id OwedID) {
			r.settle(r.attempt(id, own), Parked("poison", "30"))
			r.release(id)
		}, both},
		"parked and released twice": {func(r *running, id OwedID) {
			r.settle(r.attempt(id, own), Parked("poison", "30"))
			r.release(id)
			r.park(id)
			r.release(id)
		}, both},
		"released and acknowledged": {func(r *running, id OwedID) {
			r.settle(r.attempt(id, own), Parked("poison", "30"))
			r.release(id)
			r.settle(r.attempt(id, Numbers{}), Acknowledged("00"))
		}, none},
		"owed again by a late approval": {func(r *running, id OwedID) {
			r.settle(r.attempt(id, own), Acknowledged("25"))
			r.hear(Hearing{Endpoint: "processor-a", STAN: stan, TransmissionTime: "1123220418", Approves: true, NotFound: []string{"25"}})
		}, both},
		"owed again and acknowledged": {func(r *running, id OwedID) {
			r.settle(r.attempt(id, own), Acknowledged("25"))
			r.hear(Hearing{Endpoint: "processor-a", STAN: stan, TransmissionTime: "1123220418", Approves: true, NotFound: []string{"25"}})
			r.settle(r.attempt(id, Numbers{}), Acknowledged("00"))
		}, none},
	} {
		t.Run(name, func(t *testing.T) {
			path := create(t)
			r := start(t, Config{Path: path})
			test.steps(r, r.owes())
			for _, where := range []string{"in memory", "after a crash", "after a second crash"} {
				if got := held(r); !maps.Equal(got, test.want) {
					t.Errorf("%s: held %v, want %v", where, got, test.want)
				}
				r = r.reopened(path)
				path = r.path
			}
			r.stop()
			change(t, path, "UPDATE numbers SET reserved = 900000 WHERE name = 'stan:processor-a'")
			r = start(t, Config{Path: path})
			if got, free := r.next("processor-a").STAN, test.want["900001"] == 0; (got == "900001") != free {
				t.Errorf("STAN %s is given out, free %v", got, free)
			}
		})
	}
}

func TestAnAdviceHoldsItsSTANs(t *testing.T) {
	path := create(t)
	r := start(t, Config{Path: path})
	id := r.accept("key")
	if _, err := r.Owe(t.Context(), Reversing{Transaction: id, Reason: "upstream"}); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if got := held(r); !maps.Equal(got, map[string]int{"000001": 2}) {
			t.Errorf("held %v", got)
		}
		r = r.reopened(path)
		path = r.path
	}
	r.settle(r.attempt(1, Numbers{}), Acknowledged("00"))
	if got := held(r); !maps.Equal(got, map[string]int{"000001": 1}) {
		t.Errorf("held %v", got)
	}
	r.settle(r.attempt(2, Numbers{"900001", ""}), Acknowledged("00"))
	if got := held(r); len(got) != 0 {
		t.Errorf("held %v", got)
	}
}

func TestLateAnswers(t *testing.T) {
	unknown := func(r *running) *Ticket {
		ticket := r.begin("")
		r.finish(ticket, Outcome{Kind: Unknown, Reason: "timeout"})
		return ticket
	}
	ended := func(kind Kind) func(*running) *Ticket {
		return func(r *running) *Ticket {
			ticket := r.begin("")
			r.finish(ticket, Outcome{Kind: kind, ResponseCode: map[Kind]string{Declined: "51", Approved: "00"}[kind]})
			return ticket
		}
	}
	settled := func(s Settlement) func(*running) *Ticket {
		return func(r *running) *Ticket {
			ticket := unknown(r)
			r.incurred()
			r.settle(r.attempt(1, Numbers{}), s)
			return ticket
		}
	}
	for name, test := range map[string]struct {
		prepare func(*running) *Ticket
		code    string
		owed    OwedID // that is owed by it
		outcome Kind
		history string // what it adds
	}{
		"a late approval whose reversal is owed":                {unknown, "00", 0, Unknown, " late_answer:00"},
		"a late decline":                                        {unknown, "51", 0, Unknown, " late_answer:51"},
		"a late approval whose reversal was done":               {settled(Acknowledged("00")), "00", 0, Unknown, " late_answer:00"},
		"a late approval whose reversal was not found":          {settled(Acknowledged("25")), "00", 1, Unknown, " late_answer:00 owed:late_approval"},
		"a late decline whose reversal was not found":           {settled(Acknowledged("25")), "51", 0, Unknown, " late_answer:51"},
		"a late approval whose reversal is parked":              {settled(Parked("poison", "30")), "00", 0, Unknown, " late_answer:00"},
		"a late approval whose reversal is parked as not found": {settled(Parked("poison", "25")), "00", 0, Unknown, " late_answer:00"},
		"a late approval whose reversal is tried again":         {settled(Again(time.Now(), "not_found", "25")), "00", 0, Unknown, " late_answer:00"},
		"an approval of what was taken for declined":            {ended(Declined), "00", 1, Declined, " late_answer:00 owed:late_approval"},
		"a second decline":                                      {ended(Declined), "51", 0, Declined, " late_answer:51"},
		"an approval of what was taken for not sent":            {ended(NotSent), "00", 1, NotSent, " late_answer:00 owed:late_approval"},
		"an approval of what is approved, whose upstream knows": {ended(Approved), "00", 0, Approved, " late_answer:00"},
		"a decline of what is approved":                         {ended(Approved), "51", 0, Approved, " late_answer:51"},
	} {
		t.Run(name, func(t *testing.T) {
			path := create(t)
			r := start(t, Config{Path: path})
			ticket := test.prepare(r)
			before, debts := r.history(ticket.ID()), len(r.owed())
			r.incurred()
			h := hearingOf(ticket, test.code)
			if got, want := r.hear(h), (Heard{ticket.ID(), test.outcome, test.owed}); got != want {
				t.Errorf("heard %+v, want %+v", got, want)
			}
			h.Second = true
			if got, want := r.hear(h), (Heard{ticket.ID(), test.outcome, 0}); got != want {
				t.Errorf("heard again %+v, want %+v", got, want)
			}
			want := before + test.history + " second_answer:" + test.code
			var incurred []OwedID
			if test.owed != 0 {
				incurred = []OwedID{test.owed}
				debts = max(debts, int(test.owed))
			}
			if got := r.incurred(); !slices.Equal(got, incurred) {
				t.Errorf("incurred %v, want %v", got, incurred)
			}
			exposure := r.Exposure()
			r = r.reopened(path)
			if got := r.history(ticket.ID()); got != want {
				t.Errorf("history %q\nwant    %q", got, want)
			}
			if got := r.Exposure(); got.Owed != exposure.Owed || got.Parked != exposure.Parked || !maps.Equal(got.Amounts, exposure.Amounts) || len(r.owed()) != debts {
				t.Errorf("exposure %+v, was %+v; %d debts", got, exposure, len(r.owed()))
			}
			for id := OwedID(1); int(id) <= debts; id++ { // and what is owed can be paid, once
				if ticket, err := r.Attempt(t.Context(), id, Numbers{}); err == nil {
					ticket.Spend()
					r.settle(ticket, Acknowledged("00"))
				} else if !errors.Is(err, ErrNotOwed) {
					t.Error(err)
				}
			}
			if got := r.Exposure(); got.Owed != 0 || len(got.Amounts) != 0 {
				t.Errorf("exposure at the end %+v", got)
			}
		})
	}
}

func TestAnAnswerThatNobodyKnowsIsNotRecorded(t *testing.T) {
	r := start(t, Config{Path: create(t)})
	ticket := r.begin("")
	r.finish(ticket, Outcome{Kind: Declined})
	for name, change := range map[string]func(*Hearing){
		"another endpoint": func(h *Hearing) { h.Endpoint = "processor-b" },
		"another STAN":     func(h *Hearing) { h.STAN = "000099" },
		"another time":     func(h *Hearing) { h.TransmissionTime = "1123220419" },
		"nothing":          func(h *Hearing) { *h = Hearing{Approves: true} },
	} {
		h := hearingOf(ticket, "00")
		change(&h)
		if got := r.hear(h); got != (Heard{}) {
			t.Errorf("%s: %+v", name, got)
		}
	}
	if got := r.history(ticket.ID()); got != "begun declined" || len(r.owed()) != 0 {
		t.Errorf("history %q, %d owed", got, len(r.owed()))
	}
}

// After a wrap of the STANs two transactions can bear one, and even one DE 7 after a year.
func TestAnAnswerIsOfTheNewestTransactionOfItsNumbers(t *testing.T) {
	path := create(t)
	r := start(t, Config{Path: path})
	old := r.begin("")
	r.finish(old, Outcome{Kind: Declined})
	r.stop()
	change(t, path, "UPDATE numbers SET reserved = 999999 WHERE name = 'stan:processor-a'")
	r = start(t, Config{Path: path})
	young := r.begin("")
	r.finish(young, Outcome{Kind: Declined})
	if got := r.hear(hearingOf(old, "00")); old.STAN() != young.STAN() || got.Transaction != young.ID() {
		t.Errorf("heard %+v of STAN %s and %s", got, old.STAN(), young.STAN())
	}
}
