package journal

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// audited records an event that must be taken.
func (r *running) audited(e AuditEvent) AuditRow {
	r.t.Helper()
	row, err := r.Audit(context.Background(), e)
	if err != nil {
		r.t.Fatal(err)
	}
	return row
}

func useOf(key string) AuditEvent {
	return AuditEvent{Who: "acq01", What: "use", Key: key, KCV: "08D7B4", Result: "ok", Detail: "translate"}
}

func (r *running) auditRows(f AuditFilter) []AuditRow {
	r.t.Helper()
	found, err := r.reader.Audited(context.Background(), f)
	if err != nil {
		r.t.Fatal(err)
	}
	return found
}

func TestAuditRowsAreAChain(t *testing.T) {
	path := create(t)
	r := start(t, Config{Path: path})
	at := time.Date(2026, 11, 25, 20, 30, 0, 123456789, time.FixedZone("CET", 3600))
	first := r.audited(AuditEvent{At: at, Who: "acq01", What: "load", Key: "zpk-pos", KCV: "08D7B4", Result: "ok"})
	if first.Number != 1 || !first.At.Equal(at) || first.At.Location() != time.UTC || first.Hash == [32]byte{} || first.Previous == [32]byte{} {
		t.Errorf("first %+v", first)
	}
	before := time.Now()
	second := r.audited(useOf("zpk-pos"))
	if second.Number != 2 || second.Previous != first.Hash || second.At.Before(before) || second.At.After(time.Now()) {
		t.Errorf("second %+v", second)
	}
	ticket := r.begin("key") // in between, and not in the chain
	third := r.audited(useOf("zpk-proc-a"))
	r.finish(ticket, Outcome{Kind: Unknown})

	// The next start goes on with it.
	r = r.reopened(path)
	fourth := r.audited(useOf("zpk-proc-a"))
	if fourth.Number != 4 || fourth.Previous != third.Hash {
		t.Errorf("after a start: %+v", fourth)
	}
	last, err := r.reader.VerifyAudit(t.Context(), nil)
	if err != nil || last != fourth {
		t.Errorf("verified %+v, %v", last, err)
	}
	if _, err := r.reader.VerifyAudit(t.Context(), &Anchor{2, second.Hash}); err != nil {
		t.Errorf("with an anchor: %v", err)
	}
	for name, test := range map[string]struct {
		filter AuditFilter
		want   []int64
	}{
		"all, newest first":  {AuditFilter{}, []int64{4, 3, 2, 1}},
		"of a key":           {AuditFilter{Key: "zpk-pos"}, []int64{2, 1}},
		"of an act":          {AuditFilter{What: "load"}, []int64{1}},
		"since a time":       {AuditFilter{Since: before}, []int64{4, 3, 2}},
		"a page":             {AuditFilter{Limit: 2}, []int64{4, 3}},
		"the page behind it": {AuditFilter{Limit: 2, Before: 3}, []int64{2, 1}},
		"none":               {AuditFilter{Key: "zpk"}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			var got []int64
			for _, row := range r.auditRows(test.filter) {
				got = append(got, row.Number)
			}
			if !slices.Equal(got, test.want) {
				t.Errorf("got %v, want %v", got, test.want)
			}
		})
	}
	want := `{"number":1,"at":"2026-11-25T19:30:00.123456789Z","who":"acq01","what":"load","key":"zpk-pos","kcv":"08D7B4","result":"ok","hash":"` +
		hex.EncodeToString(first.Hash[:]) + `"}`
	if got := toJSON(t, first); got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

// A verifier of another's, and rows of years ago, depend on these bytes.
func TestTheHashOfARowIsFixed(t *testing.T) {
	row := AuditRow{Number: 258, AuditEvent: AuditEvent{At: time.Unix(1, 2), Who: "a", What: "use", Key: "é", Result: "ok"}, Previous: origin("acq01", 3)}
	of := sha256.Sum256([]byte("acquirerd audit 1\x00\x00\x00\x00\x05acq01\x00\x00\x00\x00\x00\x00\x00\x03"))
	want := sha256.Sum256([]byte("acquirerd audit row 1\x00" + string(of[:]) + "\x00\x00\x00\x00\x00\x00\x01\x02" + "\x00\x00\x00\x00\x3b\x9a\xca\x02" +
		"\x00\x00\x00\x01a" + "\x00\x00\x00\x03use" + "\x00\x00\x00\x02\xc3\xa9" + "\x00\x00\x00\x00" + "\x00\x00\x00\x02ok" + "\x00\x00\x00\x00"))
	if got := row.sum(); got != want {
		t.Errorf("got %x, want %x", got, want)
	}
}

func TestAuditTextsAreBoundedAndHoldNoCardNumber(t *testing.T) {
	r := start(t, Config{Path: create(t)})
	const pan = "4111111111111111"
	long := strings.Repeat("é", 2000)
	got := r.audited(AuditEvent{Who: long, What: long, Key: long, KCV: long, Result: long, Detail: strings.Repeat("é", 1000) + pan + long})
	for text, most := range map[string]int{got.Who: 128, got.What: 64, got.Key: 128, got.KCV: 32, got.Result: 256, got.Detail: 1024} {
		if n := len([]rune(text)); n != most || strings.Contains(text, "\uFFFD") {
			t.Errorf("%d characters, want %d", n, most)
		}
	}
	if strings.Contains(got.Detail, "4111111111") || !strings.Contains(got.Detail, "411111****") {
		t.Errorf("detail %s", got.Detail[1900:])
	}
	got = r.audited(AuditEvent{Who: "op\n" + pan, What: "reveal", Result: "\x1b[31mok\xff " + pan, Detail: "a\tb"})
	if got.Who != "op 411111******1111" || got.Result != " [31mok\uFFFD 411111******1111" || got.Detail != "a b" {
		t.Errorf("%+v", got)
	}
	for _, e := range []AuditEvent{{What: "use"}, {Who: "acq01"}} {
		if _, err := r.Audit(t.Context(), e); err == nil {
			t.Errorf("%+v was taken", e)
		}
	}
	if _, err := r.reader.VerifyAudit(t.Context(), nil); err != nil {
		t.Error(err)
	}
}

func TestTheFileRefusesToChangeAuditRows(t *testing.T) {
	path := create(t)
	r := start(t, Config{Path: path})
	r.audited(useOf("a"))
	r.audited(useOf("b"))
	r.stop()
	before := dump(t, path, "audit", "number, hash")
	const values = "1, 'a', 'b', '', '', '', '', zeroblob(32), zeroblob(32)"
	for name, script := range map[string]string{
		"update":              "UPDATE audit SET result = 'no' WHERE number = 1",
		"delete":              "DELETE FROM audit WHERE number = 2",
		"delete all":          "DELETE FROM audit",
		"replace":             "INSERT OR REPLACE INTO audit VALUES (1, " + values + ")",
		"replace the last":    "REPLACE INTO audit VALUES (2, " + values + ")",
		"leave a gap":         "INSERT INTO audit VALUES (4, " + values + ")",
		"begin before":        "INSERT INTO audit VALUES (0, " + values + ")",
		"another predecessor": "INSERT INTO audit VALUES (3, " + values + ")",
	} {
		t.Run(name, func(t *testing.T) {
			conn, err := openConnection(path)
			if err != nil {
				t.Fatal(err)
			}
			if err := conn.execute(script); err == nil || !strings.Contains(err.Error(), "audit: ") {
				t.Errorf("got %v", err)
			}
			if err := conn.close(); err != nil {
				t.Fatal(err)
			}
			if after := dump(t, path, "audit", "number, hash"); !slices.Equal(before, after) {
				t.Errorf("it changed: %v", after)
			}
		})
	}
}

func TestVerifyNamesTheFirstRowThatIsNotAsItWasWritten(t *testing.T) {
	const count = exportPage + 20 // more than a page
	path := create(t)
	r := start(t, Config{Path: path})
	var noted []AuditRow
	for i := range count {
		noted = append(noted, r.audited(useOf(fmt.Sprintf("key-%d", i))))
	}
	r.stop()
	const free = "DROP TRIGGER audit_grows; DROP TRIGGER audit_stays; DROP TRIGGER audit_is_kept; "
	// forged writes a row anew that was changed, with the hash that it then has.
	forged := func(t *testing.T, path string, number int64) {
		t.Helper()
		reader := openReaderOf(t, path)
		row, err := reader.Audited(t.Context(), AuditFilter{Before: number + 1, Limit: 1})
		if err != nil {
			t.Fatal(err)
		}
		row[0].Result = "forged"
		hash := row[0].sum()
		change(t, path, free+fmt.Sprintf("UPDATE audit SET result = 'forged', hash = x'%x' WHERE number = %d", hash, number))
	}
	anchor := &Anchor{count, noted[count-1].Hash}
	for name, test := range map[string]struct {
		script string
		forge  int64
		anchor *Anchor
		want   string
	}{
		"time":             {script: "UPDATE audit SET at = at + 1 WHERE number = 7", want: "audit row 7 is not as it was written"},
		"who":              {script: "UPDATE audit SET who = 'x' WHERE number = 7", want: "audit row 7 is not as it was written"},
		"what":             {script: "UPDATE audit SET what = 'x' WHERE number = 7", want: "audit row 7 is not as it was written"},
		"key":              {script: "UPDATE audit SET key_label = 'x' WHERE number = 7", want: "audit row 7 is not as it was written"},
		"kcv":              {script: "UPDATE audit SET kcv = 'x' WHERE number = 7", want: "audit row 7 is not as it was written"},
		"result":           {script: "UPDATE audit SET result = 'x' WHERE number = 7", want: "audit row 7 is not as it was written"},
		"detail":           {script: "UPDATE audit SET detail = 'x' WHERE number = 7", want: "audit row 7 is not as it was written"},
		"previous":         {script: "UPDATE audit SET previous = zeroblob(32) WHERE number = 7", want: "audit row 7 is not as it was written"},
		"hash":             {script: "UPDATE audit SET hash = zeroblob(32) WHERE number = 7", want: "audit row 7 is not as it was written"},
		"text moved":       {script: "UPDATE audit SET key_label = key_label || substr(kcv, 1, 1), kcv = substr(kcv, 2) WHERE number = 7", want: "audit row 7 is not as it was written"},
		"two changed":      {script: "UPDATE audit SET detail = 'x' WHERE number IN (9, 507)", want: "audit row 9 is not as it was written"},
		"on a later page":  {script: fmt.Sprintf("UPDATE audit SET detail = 'x' WHERE number = %d", exportPage+1), want: fmt.Sprintf("audit row %d is not as it was written", exportPage+1)},
		"with its hash":    {forge: 7, want: "audit row 8 does not follow the row before it"},
		"the last":         {forge: count, anchor: anchor, want: fmt.Sprintf("audit row %d is not the one that was noted", count)},
		"one deleted":      {script: "DELETE FROM audit WHERE number = 7", want: "audit row 7 is missing"},
		"the first gone":   {script: "DELETE FROM audit WHERE number = 1", want: "audit row 1 is missing"},
		"the end cut off":  {script: "DELETE FROM audit WHERE number > 100", anchor: anchor, want: "audit row 101 is missing"},
		"all gone":         {script: "DELETE FROM audit", anchor: anchor, want: "audit row 1 is missing"},
		"renumbered":       {script: "DELETE FROM audit WHERE number = 7; UPDATE audit SET number = -number WHERE number > 7; UPDATE audit SET number = -number - 1 WHERE number < 0", want: "audit row 7 is not as it was written"},
		"one put before":   {script: "INSERT INTO audit SELECT -5, at, who, 'reveal', key_label, kcv, result, detail, previous, hash FROM audit WHERE number = 7", want: "audit row -5 was not written here"},
		"another's origin": {script: "UPDATE journal SET created_at = created_at + 1", want: "audit row 1 does not follow the row before it"},
	} {
		t.Run(name, func(t *testing.T) {
			working := copyJournal(t, path)
			if test.forge != 0 {
				forged(t, working, test.forge)
			} else {
				change(t, working, free+test.script)
			}
			_, err := openReaderOf(t, working).VerifyAudit(t.Context(), test.anchor)
			var fault *AuditFault
			if !errors.As(err, &fault) || err.Error() != test.want {
				t.Errorf("got %v, want %s", err, test.want)
			}
		})
	}
	if last, err := openReaderOf(t, path).VerifyAudit(t.Context(), anchor); err != nil || last.Number != count {
		t.Errorf("as it was written: %+v, %v", last, err)
	}
}

func TestAnEmptyChainIsVerified(t *testing.T) {
	path := create(t)
	start(t, Config{Path: path})
	if last, err := openReaderOf(t, path).VerifyAudit(t.Context(), nil); err != nil || last.Number != 0 {
		t.Errorf("%+v, %v", last, err)
	}
}

// DSS-31: 12 months. Prune deletes no audit row at all.
func TestPruneDeletesNoAuditRow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		path := create(t)
		r := start(t, Config{Path: path})
		for _, age := range []time.Duration{10 * 365 * 24 * time.Hour, 364 * 24 * time.Hour, 0} {
			e := useOf("a")
			e.At = time.Now().Add(-age)
			r.audited(e)
			r.finish(r.begin(""), Outcome{Kind: Declined, ResponseCode: "51"})
		}
		<-time.After(time.Hour)
		r.begin("last")
		pruned, err := r.Prune(t.Context(), time.Now(), 1000)
		if err != nil || pruned != 3 {
			t.Errorf("pruned %d, %v", pruned, err)
		}
		if got := r.auditRows(AuditFilter{}); len(got) != 3 {
			t.Errorf("%d rows", len(got))
		}
		if _, err := r.reader.VerifyAudit(t.Context(), nil); err != nil {
			t.Error(err)
		}
	})
}

// A row is in the batch of what else waits, and of a batch that fails nothing is there.
func TestAnAuditRowOfAFailedBatchIsNotThere(t *testing.T) {
	for name, committed := range map[string]bool{"before the commit": false, "after it": true} {
		t.Run(name, func(t *testing.T) {
			path := create(t)
			j := openJournal(t, Config{Path: path})
			full := errors.New("disk full")
			j.writer.fault = func(after bool) error {
				if after == committed {
					return full
				}
				return nil
			}
			ended := make(chan error, 1)
			go func() { ended <- j.Run(context.Background()) }()
			if _, err := j.Audit(t.Context(), useOf("a")); !errors.Is(err, ErrFailed) || !errors.Is(err, full) {
				t.Errorf("got %v", err)
			}
			if err := <-ended; !errors.Is(err, ErrFailed) {
				t.Errorf("Run: %v", err)
			}
			if err := j.Close(); err != nil {
				t.Fatal(err)
			}
			r := start(t, Config{Path: path})
			want := int64(1)
			if committed {
				want = 2
			}
			if got := r.audited(useOf("b")); got.Number != want {
				t.Errorf("the next row is %d, want %d", got.Number, want)
			}
			if _, err := r.reader.VerifyAudit(t.Context(), nil); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestAnExportHasTheAuditRowsOfItsTime(t *testing.T) {
	path := create(t)
	r := start(t, Config{Path: path})
	day := time.Date(2026, 11, 25, 0, 0, 0, 0, time.UTC)
	for i := range exportPage + 2 { // more than a page
		e := useOf("a")
		e.At = day.Add(time.Duration(i) * time.Minute)
		r.audited(e)
	}
	reader := openReaderOf(t, path)
	exported := func(since, until time.Time) (numbers []int64) {
		t.Helper()
		if err := reader.Export(t.Context(), Exporting{Since: since, Until: until, Audit: func(a AuditRow) error { numbers = append(numbers, a.Number); return nil }}); err != nil {
			t.Fatal(err)
		}
		return numbers
	}
	if got := exported(time.Time{}, time.Time{}); len(got) != exportPage+2 || got[0] != 1 {
		t.Errorf("%d of all", len(got))
	}
	if got := exported(day.Add(time.Minute), day.Add(3*time.Minute)); !slices.Equal(got, []int64{2, 3}) {
		t.Errorf("of two minutes: %v", got)
	}
	full := errors.New("disk full")
	if err := reader.Export(t.Context(), Exporting{Audit: func(AuditRow) error { return full }}); !errors.Is(err, full) {
		t.Errorf("got %v", err)
	}
}
