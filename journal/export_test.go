package journal

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"acquirerd/messages"
)

func openReaderOf(t *testing.T, path string) *Reader {
	t.Helper()
	reader, err := OpenReadOnly(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := reader.Close(); err != nil {
			t.Error(err)
		}
	})
	return reader
}

func export(t *testing.T, reader *Reader, since, until time.Time) []Dossier {
	t.Helper()
	var all []Dossier
	if err := reader.Export(t.Context(), Exporting{Since: since, Until: until, Transaction: func(d Dossier) error { all = append(all, d); return nil }}); err != nil {
		t.Fatal(err)
	}
	return all
}

func TestADossierIsAllOfATransaction(t *testing.T) {
	path := create(t)
	r := start(t, Config{Path: path})
	before, id, after := r.begin("before"), r.accept("key"), r.begin("after")
	if _, err := r.Owe(t.Context(), Reversing{Transaction: id, Reason: "upstream", Replacement: "000000000345"}); err != nil {
		t.Fatal(err)
	}
	r.settle(r.attempt(2, Numbers{"900001", "1123220500"}), Again(time.Now(), "timeout", ""))
	r.park(1)
	r.finish(after, Outcome{Kind: Unknown})
	reader := openReaderOf(t, path)

	d, err := reader.Dossier(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	if d.Transaction != r.transaction(id) {
		t.Errorf("got %+v, want %+v", d.Transaction, r.transaction(id))
	}
	if len(d.Owed) != 2 || d.Owed[0].ID != 1 || d.Owed[0].Kind != KindAdvice || d.Owed[0].State != StateParked || d.Owed[1].Replacement != "000000000345" ||
		d.Owed[1].Own.STAN != "900001" {
		t.Errorf("owed %+v", d.Owed)
	}
	var states []string
	for i, e := range d.History {
		if e.Number != i+1 || e.TransactionID != id {
			t.Errorf("event %+v", e)
		}
		states = append(states, e.State)
	}
	if want := []string{"begun", "accepted", "owed", "owed", "attempted", "again", "parked"}; !slices.Equal(states, want) {
		t.Errorf("history %v, want %v", states, want)
	}
	text := toJSON(t, d)
	for _, secret := range []string{"pan-seal-1", "c2VhbGVk", "sealed", "MTIzNDU2Nzg5MDEy"} {
		if strings.Contains(text, secret) {
			t.Errorf("%s stands in %s", secret, text)
		}
	}
	for _, want := range []string{`"id":2,`, `"owed":"owed"`, `"advice":"parked"`, `"debts":[{"id":1,`, `"history":[{"transaction_id":2,"number":1,"state":"begun"`} {
		if !strings.Contains(text, want) {
			t.Errorf("%s is not in %s", want, text)
		}
	}

	open, err := reader.Dossier(t.Context(), before.ID())
	if text := toJSON(t, open); err != nil || !strings.Contains(text, `"debts":[],"history":[{`) || len(open.History) != 1 {
		t.Errorf("an open one: %s, %v", text, err)
	}
	for _, id := range []TransactionID{0, -1, 4711} {
		if d, err := reader.Dossier(t.Context(), id); !errors.Is(err, ErrNoTransaction) || d.ID != 0 {
			t.Errorf("transaction %d: %+v, %v", id, d, err)
		}
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := reader.Dossier(ended, id); !errors.Is(err, context.Canceled) {
		t.Errorf("with an ended context: %v", err)
	}
}

func TestExportGivesWhatWasBegunBetweenTwoTimes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		path := create(t)
		r := start(t, Config{Path: path})
		var begun []time.Time
		for range 5 {
			begun = append(begun, time.Now())
			r.finish(r.begin(""), Outcome{Kind: Unknown})
			<-time.After(time.Hour)
		}
		late := intentOf(r.next("processor-a"), "")
		late.At = begun[2] // its ID is not in the order of its time
		if _, err := r.Begin(t.Context(), late); err != nil {
			t.Fatal(err)
		}
		reader := openReaderOf(t, path)
		for name, test := range map[string]struct {
			since, until time.Time
			want         []TransactionID
		}{
			"all":                         {time.Time{}, time.Time{}, []TransactionID{1, 2, 3, 4, 5, 6}},
			"since one, with it":          {begun[3], time.Time{}, []TransactionID{4, 5}},
			"until one, without it":       {time.Time{}, begun[2], []TransactionID{1, 2}},
			"between":                     {begun[1], begun[3], []TransactionID{2, 3, 6}},
			"a microsecond":               {begun[2], begun[2].Add(time.Microsecond), []TransactionID{3, 6}},
			"nothing between":             {begun[1].Add(time.Microsecond), begun[2], nil},
			"the wrong way round":         {begun[3], begun[1], nil},
			"a time in another zone":      {begun[4].In(time.FixedZone("", 3600)), time.Time{}, []TransactionID{5}},
			"what is still in the future": {begun[4].Add(1000 * time.Hour), time.Time{}, nil},
		} {
			var got []TransactionID
			for _, d := range export(t, reader, test.since, test.until) {
				got = append(got, d.ID)
				if one, err := reader.Dossier(t.Context(), d.ID); err != nil || toJSON(t, one) != toJSON(t, d) {
					t.Errorf("%s: transaction %d is not as its dossier: %v", name, d.ID, err)
				}
			}
			if !slices.Equal(got, test.want) {
				t.Errorf("%s: got %v, want %v", name, got, test.want)
			}
		}
	})
}

func TestExportEndsWithTheErrorOfItsCaller(t *testing.T) {
	path := create(t)
	r := start(t, Config{Path: path})
	for range 3 {
		r.begin("")
	}
	reader := openReaderOf(t, path)
	full, calls := errors.New("pipe is closed"), 0
	for range 2 * mostReaders { // each gives its connection back
		calls = 0
		if err := reader.Export(t.Context(), Exporting{Transaction: func(Dossier) error { calls++; return full }}); !errors.Is(err, full) || err.Error() != full.Error() || calls != 1 {
			t.Fatalf("after %d calls: %v", calls, err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := reader.Export(ctx, Exporting{Transaction: func(Dossier) error { return nil }}); !errors.Is(err, context.Canceled) {
		t.Errorf("with an ended context: %v", err)
	}
	if got := len(export(t, reader, time.Time{}, time.Time{})); got != 3 {
		t.Errorf("%d afterwards", got)
	}
}

// While it runs, all of these are written: pages, and what is read of one transaction, must be of one moment.
func TestAnExportIsOfOneMoment(t *testing.T) {
	path := create(t)
	r := start(t, Config{Path: path})
	const count = 2*exportPage + 100
	for range count {
		if _, err := r.Begin(t.Context(), intentOf(messages.Numbers{STAN: "000001"}, "")); err != nil {
			t.Fatal(err)
		}
	}
	reader := openReaderOf(t, path)
	last := r.begin("last")
	got := 0
	err := reader.Export(t.Context(), Exporting{Transaction: func(d Dossier) error {
		if got++; got == 1 {
			r.finish(last, Outcome{Kind: Unknown, Reason: "timeout"})
			r.begin("later")
			if _, err := r.Prune(t.Context(), time.Now(), 1000); err != nil {
				t.Error(err)
			}
		}
		if d.Outcome != "" || len(d.Owed) != 0 || len(d.History) != 1 || d.ID != TransactionID(got) {
			t.Fatalf("dossier %d: %+v", got, d)
		}
		return nil
	}})
	if err != nil || got != count+1 {
		t.Errorf("%d dossiers, want %d: %v", got, count+1, err)
	}
	all := export(t, reader, time.Time{}, time.Time{})
	if d := all[count]; len(all) != count+2 || d.Outcome != Unknown || len(d.Owed) != 1 || len(d.History) != 3 {
		t.Errorf("%d afterwards, and %+v", len(all), d)
	}
}

func TestAnExportIsJSONLines(t *testing.T) {
	path := create(t)
	r := start(t, Config{Path: path})
	r.finish(r.begin("<key>"), Outcome{Kind: Declined, ResponseCode: "51"})
	r.accept("advice")
	var out bytes.Buffer
	encoder := json.NewEncoder(&out)
	if err := openReaderOf(t, path).Export(t.Context(), Exporting{Transaction: func(d Dossier) error { return encoder.Encode(d) }}); err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSpace(out.String()), "\n")
	if len(lines) != 2 {
		t.Fatalf("%d lines", len(lines))
	}
	for i, line := range lines {
		var d Dossier
		if err := json.Unmarshal([]byte(line), &d); err != nil || toJSON(t, d) != line {
			t.Errorf("line %d is not read as it was written: %s, %v", i+1, line, err)
		}
	}
}

func TestAnExportHasTheAdvicesThatNameNoTransaction(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		path := create(t)
		r := start(t, Config{Path: path})
		ticket := r.begin("key")
		r.finish(ticket, Outcome{Kind: Approved, ResponseCode: "00"})
		early := time.Now().Add(time.Second)
		r.keep(advisingOf("700001", ""))
		r.keep(advisingOf("700002", ticket.STAN()))
		<-time.After(time.Minute)
		since := time.Now()
		for i := range exportPage + 1 {
			r.keep(advisingOf(decimal(uint64(700003+i), 6), "")) // more than a page
		}
		until := time.Now().Add(time.Second)
		<-time.After(time.Minute)
		r.keep(advisingOf("799999", ""))
		reader := openReaderOf(t, path)
		exported := func(since, until time.Time) (ids []AdviceID) {
			t.Helper()
			if err := reader.Export(t.Context(), Exporting{Since: since, Until: until, Transaction: func(Dossier) error { return nil },
				Advice: func(a ProcessorAdvice) error { ids = append(ids, a.ID); return nil }}); err != nil {
				t.Fatal(err)
			}
			return ids
		}
		if got := exported(since, until); len(got) != exportPage+1 || got[0] != 3 || got[exportPage] != exportPage+3 {
			t.Errorf("%d advices: %v", len(got), got)
		}
		if got := exported(time.Time{}, early); len(got) != 1 || got[0] != 1 {
			t.Errorf("of the first: %v", got)
		}
		if got := exported(time.Time{}, time.Time{}); len(got) != exportPage+3 {
			t.Errorf("%d of all", len(got))
		}
		full := errors.New("disk full")
		if err := reader.Export(t.Context(), Exporting{Advice: func(ProcessorAdvice) error { return full }}); !errors.Is(err, full) {
			t.Errorf("got %v", err)
		}
	})
}
