package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/user"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"acquirerd/hsm"
	"acquirerd/hsm/hsmtest"
	"acquirerd/journal"
	"acquirerd/messages"
)

// An auditLine is an audit row as a command prints it.
type auditLine struct {
	Number                              int64
	At                                  time.Time
	Who, What, Key, KCV, Result, Detail string
	Hash                                string
}

// auditRows reads the audit table by the command, the oldest row first.
func auditRows(t *testing.T, path string, args ...string) []auditLine {
	t.Helper()
	got := command(t, append([]string{"journal", "audit", "--output", "json", "--config", path}, args...)...)
	var rows []auditLine
	if err := json.Unmarshal([]byte(got.out), &rows); got.code != 0 || err != nil {
		t.Fatalf("got %+v, %v", got, err)
	}
	for i := range len(rows) / 2 {
		rows[i], rows[len(rows)-1-i] = rows[len(rows)-1-i], rows[i]
	}
	return rows
}

// has finds a row.
func has(rows []auditLine, what, key, result string) *auditLine {
	for i, row := range rows {
		if row.What == what && row.Key == key && strings.Contains(row.Result, result) {
			return &rows[i]
		}
	}
	return nil
}

func me(t *testing.T) string {
	t.Helper()
	current, err := user.Current()
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("user %s (%s)", current.Username, current.Uid)
}

func TestLoadsAndUsesOfKeysAreOnRecord(t *testing.T) {
	site := newSite(t, newProcessor(t, approveRightPIN))
	site.create()
	path := site.config()
	daemon := site.start()
	daemon.inService(1)
	if got := daemon.dial().ask(authorization("000001", testPIN)).Get(messages.ResponseCode); got != "00" {
		t.Fatalf("got %q", got)
	}
	used := map[any]bool{}
	daemon.log.await(t, "audit", func(line map[string]any) bool { // the rows are written behind the answer
		if line["what"] == "use" {
			used[line["key"]] = true
		}
		return len(used) == 4
	})
	rows := auditRows(t, path)
	for _, key := range site.token.Keys {
		for _, what := range []string{"load", "use"} {
			row := has(rows, what, key.Label, "")
			if row == nil || row.KCV != key.KCV || row.Who != "acq01" || time.Since(row.At) > time.Hour {
				t.Errorf("%s of %s: %+v", what, key.Label, row)
			}
		}
	}
	if row := has(rows, "load", hsmtest.SealKey, "ok"); row == nil {
		t.Error("no load is ok")
	}
	if row := has(rows, "start", "", "ok"); row == nil || !strings.HasPrefix(row.Detail, "acquirerd ") {
		t.Errorf("start: %+v", row)
	}
	if got := auditRows(t, path, "--key", hsmtest.SealKey); len(got) != 2 || got[0].What != "load" || got[1].What != "use" {
		t.Errorf("of one key: %+v", got)
	}
	if got := auditRows(t, path, "--what", "start"); len(got) != 1 {
		t.Errorf("of starts: %+v", got)
	}
	if got := auditRows(t, path, "--since", time.Now().Add(time.Hour).UTC().Format(time.RFC3339)); len(got) != 0 {
		t.Errorf("of the future: %+v", got)
	}
	if got := auditRows(t, path, "--limit", "1", "--before", "2"); len(got) != 1 || got[0].Number != 1 {
		t.Errorf("a page: %+v", got)
	}
	if got := command(t, "journal", "audit", "--config", path); got.code != 0 || !strings.HasPrefix(got.out, "NUMBER  AT ") || !strings.Contains(got.out, hsmtest.TokenKey) {
		t.Errorf("got %+v", got)
	}
	if _, metrics := daemon.get("/metrics"); !strings.Contains(metrics, "acquirerd_audit_dropped_total 0") || strings.Contains(metrics, "acquirerd_reseal_remaining ") {
		t.Error("metrics of the audit trail are missing, or tell of what nobody asked for")
	}
	daemon.stop()
	if code := daemon.exit(); code != 0 {
		t.Errorf("exit %d", code)
	}
	rows = auditRows(t, path)
	last := rows[len(rows)-1]
	if last.What != "stop" {
		t.Errorf("the last row is %+v", last)
	}
	// What the log tells is what is on record, hash and all.
	daemon.log.await(t, "audit", func(line map[string]any) bool { return line["what"] == "stop" && line["hash"] == last.Hash })

	got := command(t, "journal", "audit", "--verify", "--config", path)
	if want := fmt.Sprintf("verified %d rows; the last one is %d:%s\n", last.Number, last.Number, last.Hash); got != (result{0, want, ""}) {
		t.Errorf("got %+v, want %s", got, want)
	}
	anchor := fmt.Sprintf("%d:%s", rows[2].Number, rows[2].Hash)
	if got := command(t, "journal", "audit", "--verify", "--anchor", anchor, "--output", "json", "--config", path); got.code != 0 || !strings.Contains(got.out, `"hash": "`+last.Hash) {
		t.Errorf("got %+v", got)
	}
	cut := fmt.Sprintf("%d:%s", last.Number+1, last.Hash)
	if got := command(t, "journal", "audit", "--verify", "--anchor", cut, "--config", path); got.code != 1 || got.out != "" ||
		got.err != fmt.Sprintf("acquirerd: verifying the audit table: audit row %d is missing\n", last.Number+1) {
		t.Errorf("got %+v", got)
	}
	other := fmt.Sprintf("%d:%s", last.Number, rows[2].Hash)
	if got := command(t, "journal", "audit", "--verify", "--anchor", other, "--config", path); got.code != 1 || !strings.Contains(got.err, fmt.Sprintf("audit row %d is not the one that was noted", last.Number)) {
		t.Errorf("got %+v", got)
	}
}

func TestAuditIsAskedForRightly(t *testing.T) {
	site := newSite(t)
	site.create()
	path := site.config()
	if got := command(t, "journal", "audit", "--verify", "--config", path); got != (result{0, "verified 0 rows\n", ""}) {
		t.Errorf("an empty one: %+v", got)
	}
	if got := command(t, "journal", "audit", "--output", "json", "--config", path); got != (result{0, "[]\n", ""}) {
		t.Errorf("an empty one: %+v", got)
	}
	hash := strings.Repeat("0a", 32)
	for want, args := range map[string][]string{
		`--since "yesterday" is not a time`: {"--since", "yesterday"},
		"--before -1 is negative":           {"--before", "-1"},
		"--limit 0 is not 1 to":             {"--limit", "0"},
		"--anchor is of --verify":           {"--anchor", "1:" + hash},
		"--verify looks at all rows":        {"--verify", "--key", "a"},
		"--anchor is not the number":        {"--verify", "--anchor", hash},
		"--anchor is not the number of":     {"--verify", "--anchor", "0:" + hash},
		"--anchor is not the number of a":   {"--verify", "--anchor", "1:" + hash + "00"},
		"--anchor is not the number of a r": {"--verify", "--anchor", "1:0a"},
	} {
		if got := command(t, append([]string{"journal", "audit", "--config", path}, args...)...); got.code != exitUsage || got.out != "" || !strings.Contains(got.err, want) ||
			strings.Count(got.err, "\n") != 1 {
			t.Errorf("%v: got %+v", args, got)
		}
	}
}

// The start is refused, and why is on record.
func TestARefusedKeyIsOnRecord(t *testing.T) {
	site := newSite(t)
	site.create()
	for _, key := range site.token.Keys {
		if key.Label == hsmtest.SealKey {
			site.change(fmt.Sprintf("kcv: %q", key.KCV), `kcv: "000000"`)
		}
	}
	path := site.config()
	if got := command(t, "serve", "--config", path); got.code != 1 || !strings.Contains(got.err, "has KCV") {
		t.Fatalf("got %+v", got)
	}
	if row := has(auditRows(t, path), "load", hsmtest.SealKey, "and not 000000"); row == nil {
		t.Errorf("rows %+v", auditRows(t, path))
	}
}

// The row of a command says who the kernel says, with a daemon and without one.
func TestACommandsDealingWithAKeyIsOnRecord(t *testing.T) {
	site := newSite(t)
	path := site.config()
	var warnings bytes.Buffer
	c := &cli{in: os.Stdin, out: io.Discard, err: &warnings, config: path, output: "text"}
	event := hsm.Event{Who: "somebody else", What: "import", Key: "zpk-new", KCV: "08D7B4", Result: "ok"}
	record := func() error {
		record, err := c.keyRecord(event)
		if err != nil {
			return err
		}
		return record(t.Context(), event)
	}
	if err := record(); err != nil || !strings.Contains(warnings.String(), "there is no journal yet, so import of key zpk-new") {
		t.Errorf("without a journal: %v, %s", err, &warnings)
	}
	if counts, err := c.sealedUnder(t.Context()); err != nil || len(counts) != 0 {
		t.Errorf("sealed in no journal: %v, %v", counts, err)
	}
	site.create()
	warnings.Reset()
	if err := record(); err != nil || warnings.Len() != 0 {
		t.Errorf("without a daemon: %v, %s", err, &warnings)
	}
	daemon := site.start()
	if err := record(); err != nil {
		t.Errorf("with a daemon: %v", err)
	}
	if got := auditRows(t, path, "--key", "zpk-new"); len(got) != 2 || got[0].Who != me(t) || got[1].Who != me(t) || got[1].KCV != "08D7B4" || got[1].What != "import" || got[1].Result != "ok" {
		t.Errorf("rows %+v, want those of %s", got, me(t))
	}
	// One of another station is refused, and that is an error of the command.
	c.config = written(t, fmt.Sprintf("station: acq02\njournal: { path: %q }\n", site.journal))
	if err := c.auditRow(t.Context(), &Config{Station: "acq02", Journal: JournalConfig{Path: site.journal}}, journal.AuditEvent{What: "import"}); err == nil || !strings.Contains(err.Error(), `is station "acq01"`) {
		t.Errorf("got %v", err)
	}
	remote := newRemote(&Config{Station: "acq01", Journal: JournalConfig{Path: site.journal}})
	if err := remote.Audit(t.Context(), journal.AuditEvent{Result: "ok"}); err == nil || !strings.Contains(err.Error(), "does not say who or what") {
		t.Errorf("an empty event: %v", err)
	}
	if err := remote.Audit(t.Context(), journal.AuditEvent{What: "import", Detail: strings.Repeat("x", mostAudit)}); err == nil || !strings.Contains(err.Error(), "cannot be read") {
		t.Errorf("a large event: %v", err)
	}
	daemon.stop()
	if code := daemon.exit(); code != 0 {
		t.Errorf("exit %d", code)
	}
}

// A trail is a journal that may be slow, or gone.
type trail struct {
	mu     sync.Mutex
	events []journal.AuditEvent
	took   time.Duration
	err    error
}

func (r *trail) Audit(_ context.Context, e journal.AuditEvent) (journal.AuditRow, error) {
	if r.took > 0 {
		<-time.After(r.took)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.err != nil {
		return journal.AuditRow{}, r.err
	}
	r.events = append(r.events, e)
	return journal.AuditRow{Number: int64(len(r.events)), AuditEvent: e}, nil
}

func (r *trail) count() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.events)
}

// value reads a counter.
func value(t *testing.T, registry *prometheus.Registry, name string) float64 {
	t.Helper()
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, family := range families {
		if family.GetName() == name {
			return family.GetMetric()[0].GetCounter().GetValue()
		}
	}
	t.Fatalf("no metric %s", name)
	return 0
}

func TestWhoTellsOfAnEventNeverWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		slow := &trail{took: time.Hour}
		registry, log := prometheus.NewRegistry(), newLogbook()
		a, err := newAuditor(slow, "acq01", slog.New(slog.NewJSONHandler(log, nil)), registry)
		if err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- a.Run(ctx) }()
		a.noteKey(hsm.Event{What: "load", Key: "first"})
		synctest.Wait() // it is being written
		for i := range waitingEvents + 3 {
			a.noteKey(hsm.Event{What: "use", Key: fmt.Sprint("key-", i)})
		}
		if took := time.Since(began); took != 0 {
			t.Errorf("took %v", took)
		}
		if got := value(t, registry, "acquirerd_audit_dropped_total"); got != 3 {
			t.Errorf("%v dropped, want 3", got)
		}
		if got := strings.Count(log.String(), `"audit row lost"`); got != 1 {
			t.Errorf("%d alarms in a second", got)
		}
		<-time.After(time.Second)
		a.note(journal.AuditEvent{What: "use"})
		if got := strings.Count(log.String(), `"audit row lost"`); got != 2 {
			t.Errorf("%d alarms in two seconds", got)
		}
		// A stop writes what waits.
		cancel()
		if err := <-ended; err != nil || slow.count() != waitingEvents+1 {
			t.Errorf("%d on record, %v", slow.count(), err)
		}
		if first := slow.events[0]; first.Who != "acq01" || first.What != "load" || !first.At.Equal(began) {
			t.Errorf("%+v", first)
		}
		if got := value(t, registry, "acquirerd_audit_rows_total"); got != waitingEvents+1 {
			t.Errorf("%v written", got)
		}
	})
}

func TestWhatTheJournalRefusesIsCounted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		gone := &trail{err: fmt.Errorf("recording: %w", journal.ErrFailed)}
		registry, log := prometheus.NewRegistry(), newLogbook()
		a, err := newAuditor(gone, "acq01", slog.New(slog.NewJSONHandler(log, nil)), registry)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- a.Run(ctx) }()
		a.note(journal.AuditEvent{What: "use", Key: "zpk-pos"})
		a.flush(t.Context())
		if got := value(t, registry, "acquirerd_audit_dropped_total"); got != 1 || !strings.Contains(log.String(), `"key":"zpk-pos"`) {
			t.Errorf("%v dropped; %s", got, log)
		}
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		a.flush(t.Context()) // nobody runs, and nobody waits
		if _, err := newAuditor(gone, "acq01", slog.New(slog.DiscardHandler), registry); err == nil {
			t.Error("registered twice")
		}
	})
}

// What is told after the end of the trail, by a part that ends later, is on no record: it is counted as any other.
func TestAnEventAfterTheEndOfTheTrailIsCounted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		kept, registry := &trail{}, prometheus.NewRegistry()
		log := &bytes.Buffer{}
		a, err := newAuditor(kept, "acq01", slog.New(slog.NewJSONHandler(log, nil)), registry)
		if err != nil {
			t.Fatal(err)
		}
		ctx, stop := context.WithCancel(t.Context())
		a.note(journal.AuditEvent{What: "load", Key: "zpk-pos"})
		stop()
		if err := a.Run(ctx); err != nil {
			t.Fatal(err)
		}
		a.note(journal.AuditEvent{What: "destroy", Key: "zpk-pos"})
		if got := value(t, registry, "acquirerd_audit_dropped_total"); got != 1 || kept.count() != 1 || !strings.Contains(log.String(), `"what":"destroy"`) {
			t.Errorf("%v dropped, %d on record; %s", got, kept.count(), log)
		}
		a.flush(t.Context()) // and nobody waits for ever
	})
}

func TestAFlushWaitsForWhatWasNotedBefore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		slow := &trail{took: time.Second}
		a, err := newAuditor(slow, "acq01", slog.New(slog.DiscardHandler), prometheus.NewRegistry())
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- a.Run(ctx) }()
		for range 5 {
			a.note(journal.AuditEvent{What: "use"})
		}
		a.flush(t.Context())
		if got := slow.count(); got != 5 {
			t.Errorf("%d on record", got)
		}
		cancel()
		if err := <-ended; err != nil && !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	})
}
