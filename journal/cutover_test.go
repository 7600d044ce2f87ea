package journal

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// cutOver is a cutover that must be taken.
func (r *running) cutOver(day string) Advanced {
	r.t.Helper()
	advanced, err := r.Advance(context.Background(), Cutover{Endpoint: "processor-a", Day: day})
	if err != nil {
		r.t.Fatal(err)
	}
	return advanced
}

func TestTheDayThatACutoverBegins(t *testing.T) {
	at := func(text string) time.Time {
		parsed, err := time.Parse(time.RFC3339, text)
		if err != nil {
			t.Fatal(err)
		}
		return parsed
	}
	const evening, morning = "2026-11-24T22:00:00Z", "2026-11-25T03:00:00Z"
	for _, test := range []struct {
		name           string
		current, since string
		day, at        string
		want           string // "" for refused
	}{
		{"the first, in the evening before", "", "", "", evening, "2026-11-25"},
		{"the first, in its own morning", "", "", "", morning, "2026-11-25"},
		{"the first that is named", "", "", "1126", evening, "2026-11-26"},
		{"the first, as far behind as may be", "", "", "1114", evening, "2026-11-14"},
		{"the first, further behind", "", "", "1113", evening, ""},
		{"the first, as far ahead as may be", "", "", "1204", evening, "2026-12-04"},
		{"the first, further ahead", "", "", "1205", evening, ""},
		{"the next, not named", "2026-11-24", "2026-11-23T22:00:00Z", "", evening, "2026-11-25"},
		{"the next, of a processor that is ahead of the calendar", "2026-11-25", "2026-11-23T22:00:00Z", "", evening, "2026-11-26"},
		{"the next, and one was missed", "2026-11-23", "2026-11-22T22:00:00Z", "", evening, "2026-11-25"},
		{"the next, and a month was missed", "2026-10-23", "2026-10-22T22:00:00Z", "", evening, "2026-11-25"},
		{"the next, far ahead of the calendar", "2026-12-03", "2026-11-23T22:00:00Z", "", evening, "2026-12-04"},
		{"the next, too far ahead of the calendar", "2026-12-04", "2026-11-23T22:00:00Z", "", evening, ""},
		{"the next, just under a day and a half after the last", "2026-11-20", "2026-11-23T10:00:01Z", "", evening, "2026-11-21"},
		{"the next, a day and a half after the last", "2026-11-20", "2026-11-23T10:00:00Z", "", evening, "2026-11-25"},
		{"not named, just under half a day after the last", "2026-11-25", "2026-11-24T10:00:01Z", "", evening, "2026-11-25"},
		{"not named, half a day after the last", "2026-11-24", "2026-11-24T10:00:00Z", "", evening, "2026-11-25"},
		{"not named, after the clock was set back", "2026-11-25", "2026-11-24T23:00:00Z", "", evening, "2026-11-25"},
		{"the same once more", "2026-11-25", "2026-11-24T22:00:00Z", "1125", evening, "2026-11-25"},
		{"the same, long after", "2026-11-25", "2026-11-24T22:00:00Z", "1125", "2026-12-24T22:00:00Z", "2026-11-25"},
		{"named, soon after the last", "2026-11-25", "2026-11-24T21:59:00Z", "1126", evening, "2026-11-26"},
		{"over a weekend", "2026-11-20", "2026-11-19T22:00:00Z", "1123", "2026-11-20T22:00:00Z", "2026-11-23"},
		{"back", "2026-11-25", "2026-11-24T22:00:00Z", "1124", evening, ""},
		{"as far ahead as may be", "2026-11-25", "2026-11-24T22:00:00Z", "1204", evening, "2026-12-04"},
		{"further ahead", "2026-11-25", "2026-11-24T22:00:00Z", "1205", evening, ""},
		{"ahead of a date that is ahead", "2026-12-03", "2026-11-24T22:00:00Z", "1205", evening, ""},
		{"what was left behind is caught up with", "2026-10-01", "2026-09-30T22:00:00Z", "1125", evening, "2026-11-25"},
		{"but not beyond the calendar", "2026-10-01", "2026-09-30T22:00:00Z", "1205", evening, ""},
		{"over the turn of the year", "2026-12-31", "2026-12-30T22:00:00Z", "0101", "2026-12-31T22:00:00Z", "2027-01-01"},
		{"back over the turn of the year", "2027-01-01", "2026-12-31T22:00:00Z", "1231", "2027-01-01T02:00:00Z", ""},
		{"the day of a leap year", "2028-02-28", "2028-02-27T22:00:00Z", "0229", "2028-02-28T22:00:00Z", "2028-02-29"},
		{"the day of a leap year in another", "2026-02-28", "2026-02-27T22:00:00Z", "0229", "2026-02-28T22:00:00Z", ""},
		{"no such day", "2026-11-29", "2026-11-28T22:00:00Z", "1131", "2026-11-30T22:00:00Z", ""},
		{"no such month", "", "", "1301", evening, ""},
		{"no digits", "", "", "11 5", evening, ""},
		{"with its year", "2026-12-31", "2026-12-30T22:00:00Z", "270101", "2026-12-31T22:00:00Z", "2027-01-01"},
		{"with another year", "2026-12-31", "2026-12-30T22:00:00Z", "260101", "2026-12-31T22:00:00Z", ""},
		{"with its year and no such day", "2026-12-31", "2026-12-30T22:00:00Z", "271301", "2026-12-31T22:00:00Z", ""},
		{"five digits", "", "", "11255", evening, ""},
		{"eight digits", "", "", "20261125", evening, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			day := businessDay{date: test.current}
			if test.since != "" {
				day.since = at(test.since)
			}
			got, possible := day.next(test.day, at(test.at))
			if possible != (test.want != "") || possible && got != test.want {
				t.Errorf("got %s, %v; want %q", got, possible, test.want)
			}
		})
	}
}

func TestEachRecordBearsTheDateThatWasCurrent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) { // it is 2000-01-01 there
		path := create(t)
		r := start(t, Config{Path: path})
		before := r.begin("before")
		r.finish(before, Outcome{Kind: Approved})
		if got := r.cutOver("0101"); got != (Advanced{"", "2000-01-01"}) {
			t.Errorf("advanced %+v", got)
		}
		yesterday := r.begin("yesterday")
		<-time.After(20 * time.Hour)
		if got := r.cutOver(""); got != (Advanced{"2000-01-01", "2000-01-02"}) {
			t.Errorf("advanced %+v", got)
		}
		for _, again := range []string{"", "0102"} {
			if got := r.cutOver(again); got != (Advanced{"2000-01-02", "2000-01-02"}) {
				t.Errorf("again with %q: advanced %+v", again, got)
			}
		}
		// The reversal of yesterday's counts in the new day.
		r.finish(yesterday, Outcome{Kind: Unknown, Reason: "timeout"})
		if _, err := r.Owe(t.Context(), Reversing{Transaction: before.ID(), Reason: "undelivered"}); err != nil {
			t.Fatal(err)
		}
		advice := r.accept("advice")
		// Another endpoint's day is its own.
		in := intentOf(r.next("processor-b"), "other")
		in.Endpoint = "processor-b"
		other, err := r.Begin(t.Context(), in)
		if err != nil {
			t.Fatal(err)
		}
		for range 2 {
			for id, want := range map[TransactionID]string{before.ID(): "", yesterday.ID(): "2000-01-01", advice: "2000-01-02", other.ID(): ""} {
				if got := r.transaction(id).BusinessDate; got != want {
					t.Errorf("transaction %d is of %q, want %q", id, got, want)
				}
			}
			for _, o := range r.owed() {
				if o.BusinessDate != "2000-01-02" {
					t.Errorf("owed %d is of %q", o.ID, o.BusinessDate)
				}
			}
			r = r.reopened(path)
			path = r.path
			if got := r.cutOver("0102"); got != (Advanced{"2000-01-02", "2000-01-02"}) {
				t.Errorf("after the start: advanced %+v", got)
			}
		}
		days, err := r.reader.BusinessDays(t.Context())
		if err != nil || len(days) != 1 || days[0].Endpoint != "processor-a" || days[0].Date != "2000-01-02" ||
			!days[0].BeganAt.Equal(time.Date(2000, 1, 1, 20, 0, 0, 0, time.UTC)) {
			t.Errorf("business days %+v, %v", days, err)
		}
	})
}

// What is owed again is sent again, today.
func TestWhatIsOwedAgainIsOfTheDayWhenItIs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := start(t, Config{Path: create(t)})
		r.cutOver("0101")
		parked, absent := r.owes(), r.owes()
		partial := r.begin("partial")
		r.finish(partial, Outcome{Kind: Approved})
		part, err := r.Owe(t.Context(), Reversing{Transaction: partial.ID(), Reason: "upstream", Replacement: "000000000345"})
		if err != nil {
			t.Fatal(err)
		}
		r.park(parked)
		r.settle(r.attempt(absent, Numbers{}), Acknowledged("25"))
		r.settle(r.attempt(part.ID, Numbers{}), Acknowledged("00"))
		still := r.owes()
		r.cutOver("0102")
		r.release(parked)
		r.hear(Hearing{Endpoint: "processor-a", STAN: r.transaction(2).STAN, TransmissionTime: "1123220418", ResponseCode: "00", Approves: true, NotFound: []string{"25"}})
		if _, err := r.Owe(t.Context(), Reversing{Transaction: partial.ID(), Reason: "upstream"}); err != nil {
			t.Fatal(err)
		}
		want := map[OwedID]string{parked: "2000-01-02", absent: "2000-01-02", part.ID: "2000-01-02", still: "2000-01-01"}
		for _, o := range r.owed() {
			if o.BusinessDate != want[o.ID] || o.State != StateOwed {
				t.Errorf("owed %d is %s and of %q, want %q", o.ID, o.State, o.BusinessDate, want[o.ID])
			}
		}
	})
}

func TestACutoverThatCannotBeChangesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		path := create(t)
		r := start(t, Config{Path: path})
		r.cutOver("0102")
		for day, want := range map[string]Advanced{"0101": {"2000-01-02", "2000-01-01"}, "0112": {"2000-01-02", "2000-01-12"}, "1345": {From: "2000-01-02"}} {
			got, err := r.Advance(t.Context(), Cutover{"processor-a", day})
			if !errors.Is(err, ErrBusinessDate) || got != want {
				t.Errorf("%s: %+v, want %+v: %v", day, got, want, err)
			}
		}
		if _, err := r.Advance(t.Context(), Cutover{Day: "0103"}); err == nil || errors.Is(err, ErrFailed) {
			t.Errorf("without an endpoint: %v", err)
		}
		ended, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := r.Advance(ended, Cutover{"processor-a", "0103"}); !errors.Is(err, context.Canceled) {
			t.Errorf("with an ended context: %v", err)
		}
		if got := dump(t, path, "business_days", "endpoint, date"); strings.Join(got, "; ") != "'processor-a' '2000-01-02'" {
			t.Errorf("business days %v", got)
		}
		if got := r.cutOver("0103"); got != (Advanced{"2000-01-02", "2000-01-03"}) {
			t.Errorf("the next one: %+v", got)
		}
	})
}

// In one batch, what comes before a cutover is of the old day, and what comes after it of the new one.
func TestACutoverBetweenRecordsOfOneBatch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := start(t, Config{Path: create(t)})
		r.cutOver("0101")
		first, second, holder := r.next("processor-a"), r.next("processor-a"), r.next("processor-a")
		holding, release := r.hold()
		go func() { _, _ = r.Begin(context.Background(), intentOf(holder, "holder")) }()
		<-holding
		done := make(chan error, 3)
		for _, call := range []func() error{
			func() error { _, err := r.Begin(t.Context(), intentOf(first, "first")); return err },
			func() error { _, err := r.Advance(t.Context(), Cutover{"processor-a", "0102"}); return err },
			func() error { _, err := r.Begin(t.Context(), intentOf(second, "second")); return err },
		} {
			go func() { done <- call() }()
			synctest.Wait()
		}
		release()
		for range 3 {
			if err := <-done; err != nil {
				t.Error(err)
			}
		}
		if one, two := r.transaction(2), r.transaction(3); one.BusinessDate != "2000-01-01" || two.BusinessDate != "2000-01-02" {
			t.Errorf("%q and %q", one.BusinessDate, two.BusinessDate)
		}
	})
}

// What an answer says of the day is compared in memory, and is a cutover only if it is a later one.
func TestALaterDayOpensANewOne(t *testing.T) {
	synctest.Test(t, func(t *testing.T) { // it is 2000-01-01 there
		path := create(t)
		r := start(t, Config{Path: path})
		if !r.Opens("processor-a", "1231") || r.Opens("processor-a", "0230") || r.Opens("processor-a", "") {
			t.Error("before the first")
		}
		r.cutOver("0102")
		if _, err := r.Advance(t.Context(), Cutover{"processor-a", "0112"}); !errors.Is(err, ErrBusinessDate) {
			t.Errorf("refused: %v", err)
		}
		for range 2 {
			for day, want := range map[string]bool{"1231": false, "0101": false, "0102": false, "000102": false, "0103": true, "000103": true, "0112": true, "1301": false} {
				if got := r.Opens("processor-a", day); got != want {
					t.Errorf("%s: %v", day, got)
				}
			}
			if !r.Opens("processor-b", "0101") {
				t.Error("of another endpoint")
			}
			r = r.reopened(path)
			path = r.path
		}
	})
}

func (r *running) setDate(date string) Advanced {
	r.t.Helper()
	advanced, err := r.SetBusinessDate(context.Background(), "processor-a", date)
	if err != nil {
		r.t.Fatal(err)
	}
	return advanced
}

// A wrong date is mended by a person, to whichever side it is wrong; the cutover that follows begins the day after.
func TestAPersonSetsTheBusinessDate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		path := create(t)
		r := start(t, Config{Path: path})
		if got := r.setDate("1999-12-30"); got != (Advanced{"", "1999-12-30"}) {
			t.Errorf("the first: %+v", got)
		}
		if got := r.cutOver(""); got != (Advanced{"1999-12-30", "1999-12-31"}) { // not the repeat of any
			t.Errorf("and then %+v", got)
		}
		r.cutOver("0111") // wrong
		wrong := r.begin("wrong")
		<-time.After(time.Hour)
		if got := r.setDate("2000-01-01"); got != (Advanced{"2000-01-11", "2000-01-01"}) || !r.Opens("processor-a", "0102") {
			t.Errorf("back: %+v", got)
		}
		right := r.begin("right")
		if r.transaction(wrong.ID()).BusinessDate != "2000-01-11" || r.transaction(right.ID()).BusinessDate != "2000-01-01" {
			t.Error("what was recorded has changed, or what is recorded has not")
		}
		if got := r.setDate("2000-01-01"); got.From != got.To {
			t.Errorf("the same: %+v", got)
		}
		r = r.reopened(path)
		if got := r.cutOver(""); got.To != "2000-01-01" { // an hour after the one that was wrong
			t.Errorf("a repeat: %+v", got)
		}
		<-time.After(22 * time.Hour)
		if got := r.cutOver(""); got != (Advanced{"2000-01-01", "2000-01-02"}) {
			t.Errorf("the next: %+v", got)
		}
		for _, date := range []string{"", "2000-02-30", "20000103", "2000-02-05", "1999-11-30"} {
			if got, err := r.SetBusinessDate(t.Context(), "processor-a", date); !errors.Is(err, ErrCorrection) || got != (Advanced{}) {
				t.Errorf("%q: %+v, %v", date, got, err)
			}
		}
		ended, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := r.SetBusinessDate(ended, "processor-a", "2000-01-03"); !errors.Is(err, context.Canceled) {
			t.Errorf("with an ended context: %v", err)
		}
		if _, err := r.SetBusinessDate(t.Context(), "", "2000-01-03"); err == nil {
			t.Error("of no endpoint")
		}
		if got := dump(t, r.path, "business_days", "date"); strings.Join(got, " ") != "'1999-12-30' '1999-12-31' '2000-01-01' '2000-01-02'" {
			t.Errorf("business days %v", got)
		}
	})
}
