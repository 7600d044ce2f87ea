package journal

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"acquirerd/card"
	"acquirerd/messages"
	"acquirerd/specs"
)

// schema1 holds a row of each kind, as version 1 wrote them.
const schema1 = `
INSERT INTO journal (only_row, station, created_at) VALUES (1, 'acq01', 1700000000000000);
INSERT INTO numbers (name, reserved) VALUES ('rrn', 3000), ('stan:processor-a', 2000);
INSERT INTO transactions (id, upstream, upstream_key, upstream_stan, upstream_rrn, endpoint, mti, stan, rrn, transmission_time, acquirer_id,
	terminal, merchant, amount, currency, masked_pan, pan_token, pan_key_id, pan_nonce, pan_ciphertext, original, begun_at, outcome,
	response_code, authorization_id, approved_amount, reason, finished_at) VALUES
(1, 'pos-switch', '01|1123220418|000777|TERM0001|123456', '000777', '632700000001', 'processor-a', '0100', '000011', '632700000011', '1123220418', '123456',
	'TERM0001', 'MERCHANT0000001', '000000012345', '978', '411111******1111', zeroblob(32), 'pan-seal-1', x'313233343536373839303132', x'0102030405',
	'{"acquirer_id":"123456","amount":"000000012345","currency":"978","mti":"0100","rrn":"632700000011","stan":"000011","terminal":"TERM0001","transmission_time":"1123220418"}',
	1700000001000001, 'approved', '10', 'A12345', '000000010000', '', 1700000001000002),
(2, 'pos-switch', '02|1123220419|000778|TERM0001|00123456', '000778', '', 'processor-a', '0200', '000012', '632700000012', '1123220419', '00123456',
	'TERM0001', '', '000000000100', '840', '', NULL, NULL, NULL, NULL, '{"amount":"000000000100","currency":"840","mti":"0200","stan":"000012"}',
	1700000002000001, 'declined', '51', '', '', '', 1700000002000002),
(3, 'pos-switch', NULL, '', '', 'processor-b', '0100', '000013', '632700000013', '', '', '', '', '', '', '', NULL, NULL, NULL, NULL, '{"mti":"0100","stan":"000013"}',
	1700000003000001, 'not_sent', '', '', '', 'no_link', 1700000003000002),
(4, 'pos-switch', '01|1123220421|000779|TERM0001|', '000779', '', 'processor-a', '0100', '000014', '632700000014', '1123220421', '', 'TERM0001', '',
	'000000000700', '978', '411111******1111', x'0102030405060708010203040506070801020304050607080102030405060708', 'pan-seal-1', x'313233343536373839303132', x'0a0b0c',
	'{"amount":"000000000700","currency":"978","mti":"0100","stan":"000014"}', 1700000004000001, 'unknown', '', '', '', 'timeout', 1700000004000002),
(5, 'pos-switch', '01|1123220422|000780|TERM0001|0', '000780', '', 'processor-a', '0100', '000015', '632700000015', '1123220422', '0', 'TERM0001', '',
	'000000000800', '978', '411111******1111', NULL, NULL, NULL, NULL, '{"amount":"000000000800","currency":"978","mti":"0100","stan":"000015"}',
	1700000005000001, 'unknown', '', '', '', 'timeout', 1700000005000002),
(6, 'pos-switch', NULL, '000781', '', 'processor-a', '0100', '000016', '632700000016', '1123220423', '', 'TERM0001', '', '000000000900', '978', '', NULL, NULL, NULL, NULL,
	'{"amount":"000000000900","currency":"978","mti":"0100","stan":"000016"}', 1700000006000001, 'unknown', '', '', '', 'crash', 1700000006000002),
(7, 'pos-switch', '01|1123220424|000782|TERM0001|123456', '000782', '', 'processor-a', '0100', '000017', '632700000017', '1123220424', '123456', 'TERM0001', '',
	'000000001000', '978', '', NULL, NULL, NULL, NULL, '{"amount":"000000001000","currency":"978","mti":"0100","stan":"000017"}', 1700000007000001, NULL, NULL, NULL, NULL, NULL, NULL);
INSERT INTO owed (id, transaction_id, kind, endpoint, reason, state, attempts, answered, due_at, since, last_reason, response_code, settled_at) VALUES
(1, 4, 'reversal', 'processor-a', 'timeout', 'owed', 2, 1, 1700000009000000, 1700000004000002, 'timeout', '', NULL),
(2, 5, 'reversal', 'processor-a', 'timeout', 'parked', 3, 1, 1700000009000000, 1700000005000002, 'poison', '30', 1700000010000000),
(3, 6, 'reversal', 'processor-a', 'crash', 'acknowledged', 1, 1, 1700000006000002, 1700000006000002, '', '25', 1700000011000000),
(4, 1, 'reversal', 'processor-a', 'undelivered', 'owed', 0, 0, 1700000012000000, 1700000012000000, '', '', NULL);
INSERT INTO events (transaction_id, number, owed_id, state, at, detail) VALUES
(1, 1, NULL, 'begun', 1700000001000001, ''), (1, 2, NULL, 'approved', 1700000001000002, '10'), (1, 3, 4, 'owed', 1700000012000000, 'undelivered'),
(2, 1, NULL, 'begun', 1700000002000001, ''), (2, 2, NULL, 'declined', 1700000002000002, '51'),
(3, 1, NULL, 'begun', 1700000003000001, ''), (3, 2, NULL, 'not_sent', 1700000003000002, 'no_link'),
(4, 1, NULL, 'begun', 1700000004000001, ''), (4, 2, NULL, 'unknown', 1700000004000002, 'timeout'), (4, 3, 1, 'owed', 1700000004000002, 'timeout'),
(4, 4, 1, 'attempted', 1700000005000000, 'attempt_1'), (4, 5, 1, 'again', 1700000005000001, '91'), (4, 6, 1, 'attempted', 1700000006000000, 'attempt_2'),
(4, 7, 1, 'unsent', 1700000006000001, 'no_link'),
(5, 1, NULL, 'begun', 1700000005000001, ''), (5, 2, NULL, 'unknown', 1700000005000002, 'timeout'), (5, 3, 2, 'owed', 1700000005000002, 'timeout'),
(5, 4, 2, 'parked', 1700000010000000, '30'),
(6, 1, NULL, 'begun', 1700000006000001, ''), (6, 2, NULL, 'unknown', 1700000006000002, 'crash'), (6, 3, 3, 'owed', 1700000006000002, 'crash'),
(6, 4, 3, 'attempted', 1700000006500000, 'attempt_1'), (6, 5, 3, 'acknowledged', 1700000011000000, '25'),
(7, 1, NULL, 'begun', 1700000007000001, '');`

// createSchema1 makes a journal as version 1 would have left it.
func createSchema1(t testing.TB, more string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "journal.db")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	scripts, err := migrations()
	if err != nil {
		t.Fatal(err)
	}
	change(t, path, fmt.Sprintf("PRAGMA application_id = %d; BEGIN; %s; %s; %s; PRAGMA user_version = 1; COMMIT", applicationID, scripts[0], schema1, more))
	return path
}

// dump gives the rows of a table, in columns of version 1.
func dump(t *testing.T, path, table, columns string) []string {
	t.Helper()
	db, err := openReaders(path, 1)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	quoted := "quote(" + strings.ReplaceAll(columns, ", ", ") || ' ' || quote(") + ")"
	lines, err := rows(context.Background(), db, "dumping", func(scan scanner) (line string, err error) {
		err = scan(&line)
		return line, err
	}, "SELECT "+quoted+" FROM "+table+" ORDER BY 1")
	if err != nil {
		t.Fatal(err)
	}
	return lines
}

const (
	transactions1 = "id, upstream, upstream_stan, upstream_rrn, endpoint, mti, stan, rrn, transmission_time, acquirer_id, terminal, merchant, " +
		"amount, currency, masked_pan, pan_token, pan_key_id, pan_nonce, pan_ciphertext, original, begun_at, outcome, response_code, " +
		"authorization_id, approved_amount, reason, finished_at"
	owed1 = "id, transaction_id, kind, endpoint, reason, state, attempts, answered, due_at, since, last_reason, response_code, settled_at"
	all1  = "transaction_id, number, owed_id, state, at, detail"
)

func dump1(t *testing.T, path string) []string {
	t.Helper()
	return slices.Concat(dump(t, path, "journal", "only_row, station, created_at"), dump(t, path, "numbers", "name, reserved"),
		dump(t, path, "transactions", transactions1), dump(t, path, "owed", owed1), dump(t, path, "events", all1))
}

func TestSchema1IsCarriedOver(t *testing.T) {
	ctx := context.Background()
	path := createSchema1(t, "")
	if _, err := OpenReadOnly(path); err == nil || !strings.Contains(err.Error(), "schema 1 is old") {
		t.Errorf("read only: %v", err)
	}
	before := dump1(t, path)
	r := start(t, Config{Path: path})
	if after := dump1(t, path); !slices.Equal(before, after) {
		t.Errorf("got  %s\nwant %s", strings.Join(after, "\n     "), strings.Join(before, "\n     "))
	}
	checkForeignKeys(t, path)
	if got := dump(t, path, "pragma_table_list", "name"); slices.ContainsFunc(got, func(name string) bool { return strings.Contains(name, "_2") }) {
		t.Errorf("tables %v", got)
	}

	if e := r.Exposure(); e.Owed != 2 || e.Parked != 1 || e.Amounts["978"] != 700+10000 || e.Oldest.UnixMicro() != 1700000004000002 {
		t.Errorf("exposure %+v", e)
	}
	if got := r.incurred(); !slices.Equal(got, []OwedID{1, 4}) {
		t.Errorf("incurred %v", got)
	}
	for _, stan := range []string{"000011", "000014", "000015", "000017"} { // owed, owed, parked, open
		if !r.standing.holds("processor-a", stan) {
			t.Errorf("STAN %s may be given out", stan)
		}
	}
	for _, stan := range []string{"000012", "000016"} {
		if r.standing.holds("processor-a", stan) {
			t.Errorf("STAN %s is held", stan)
		}
	}
	if got := r.next("processor-a"); got.STAN != "002001" || !strings.HasSuffix(got.RRN, "00003001") {
		t.Errorf("numbers %+v", got)
	}
	tickets, err := r.Unfinished(ctx)
	if err != nil || len(tickets) != 1 || tickets[0].ID() != 7 || tickets[0].STAN() != "000017" {
		t.Fatalf("unfinished %v, %v", tickets, err)
	}
	r.finish(tickets[0], Outcome{Kind: Unknown, Reason: "crash"})

	o, err := r.Owing(ctx, 1)
	if err != nil || o.Attempts != 2 || o.Answered != 1 || o.Replacement != "" || o.Own != (Numbers{}) || o.Rest.KeyID != "" || o.PAN.KeyID != "pan-seal-1" ||
		!bytes.Equal(o.PAN.Ciphertext, []byte{10, 11, 12}) || o.Token[7] != 8 || o.Original.Get(messages.STAN) != "000014" {
		t.Errorf("owing %+v, %v", o, err)
	}
	attempt := r.attempt(1, Numbers{})
	if attempt.Attempt() != 3 || attempt.Own() != (Numbers{}) {
		t.Errorf("%v", attempt)
	}
	r.settle(attempt, Acknowledged("00"))
	r.release(2)
	r.settle(r.attempt(4, Numbers{"002002", "1124000000"}), Acknowledged("00"))
	if heard := r.hear(Hearing{Endpoint: "processor-a", STAN: "000016", TransmissionTime: "1123220423", ResponseCode: "00", Approves: true, NotFound: []string{"25"}}); heard.Owed != 3 {
		t.Errorf("heard %+v", heard)
	}
	r.accept("advice")
	for id, want := range map[TransactionID]string{
		1: "begun approved:10 owed:undelivered attempted:attempt_1 acknowledged:00",
		5: "begun unknown:timeout owed:timeout parked:30 released:operator",
		6: "begun unknown:crash owed:crash attempted:attempt_1 acknowledged:25 late_answer:00 owed:late_approval",
		7: "begun unknown:crash owed:crash",
	} {
		if got := r.history(id); got != want {
			t.Errorf("history %q, want %q", got, want)
		}
	}
	r = r.reopened(path)
	checkForeignKeys(t, r.path)
	if e := r.Exposure(); e.Owed != 4 || e.Parked != 0 {
		t.Errorf("exposure %+v", e)
	}
}

// A repeat that comes after the change must find what was sent before it: else it is sent twice.
func TestARepeatFindsItsTransactionOfSchema1(t *testing.T) {
	path := createSchema1(t, "")
	r := start(t, Config{Path: path})
	dialect, err := specs.Load("iso87-ascii")
	if err != nil {
		t.Fatal(err)
	}
	names := messages.NewCodec(dialect)
	for id, test := range map[TransactionID]struct {
		mti                                    messages.MTI
		transmissionTime, stan, terminal, de32 string
	}{
		1: {"0100", "1123220418", "000777", "TERM0001", "123456"},
		2: {"0201", "1123220419", "000778", "TERM0001", "00123456"},
		4: {"0100", "1123220421", "000779", "TERM0001", ""},
		5: {"0101", "1123220422", "000780", "TERM0001", "0"},
		7: {"0100", "1123220424", "000782", "TERM0001", "123456"},
	} {
		m := messages.New(test.mti)
		for e, value := range map[messages.Element]string{messages.TransmissionTime: test.transmissionTime, messages.STAN: test.stan,
			messages.Terminal: test.terminal, messages.AcquirerID: test.de32} {
			m.Set(e, value)
		}
		got, found, err := r.Find(t.Context(), "pos-switch", names.Identity(m))
		if err != nil || !found || got.ID != id {
			t.Errorf("%s: found %v, transaction %d, want %d: %v", names.Identity(m), found, got.ID, id, err)
		}
		if !got.Answer.IsZero() {
			t.Errorf("transaction %d has an answer of nowhere", id)
		}
	}
	for _, id := range []TransactionID{3, 6} {
		if got := r.transaction(id); got.UpstreamKey != "" {
			t.Errorf("transaction %d had no key and has %s", id, got.UpstreamKey)
		}
	}
	if _, err := r.Begin(t.Context(), intentOf(r.next("processor-a"), "010|1123220418|000777|TERM0001")); !errors.Is(err, ErrDuplicate) {
		t.Errorf("begun again: %v", err)
	}
}

// Two keys that differ by the acquirer were two keys: one of them stays as it is.
func TestKeysOfSchema1ThatDifferByTheAcquirerDoNotStopTheMigration(t *testing.T) {
	path := createSchema1(t, `INSERT INTO transactions SELECT 8, upstream, '01|1123220418|000777|TERM0001|0123456', upstream_stan, upstream_rrn, endpoint, mti,
		'000018', rrn, transmission_time, '0123456', terminal, merchant, amount, currency, masked_pan, pan_token, pan_key_id, pan_nonce,
		pan_ciphertext, original, begun_at, outcome, response_code, authorization_id, approved_amount, reason, finished_at FROM transactions WHERE id = 1`)
	r := start(t, Config{Path: path})
	if got := r.transaction(8); got.UpstreamKey != "010|1123220418|000777|TERM0001|0123456" {
		t.Errorf("key %s", got.UpstreamKey)
	}
	if got := r.find("010|1123220418|000777|TERM0001"); got.ID != 1 {
		t.Errorf("found %+v", got)
	}
}

// statementsOf are those of a migration.
func statementsOf(script string) []string {
	return strings.SplitAfter(strings.TrimSpace(script), ";\n")
}

func TestACrashInTheMigrationLeavesSchema1(t *testing.T) {
	scripts, err := migrations()
	if err != nil {
		t.Fatal(err)
	}
	statements := append(statementsOf(scripts[1]), "PRAGMA user_version = 2")
	if len(statements) < 15 {
		t.Fatalf("%d statements", len(statements))
	}
	// Many rows and a small cache: pages of the unfinished transaction reach the log, as they do in a large journal.
	const many = `INSERT INTO transactions SELECT value + 100, upstream, NULL, upstream_stan, upstream_rrn, endpoint, mti, stan, rrn, transmission_time,
		acquirer_id, terminal, merchant, amount, currency, masked_pan, pan_token, pan_key_id, pan_nonce, pan_ciphertext, original, begun_at, outcome,
		response_code, authorization_id, approved_amount, reason, finished_at FROM transactions, generate WHERE id = 2`
	path := createSchema1(t, "CREATE TEMP TABLE generate AS WITH RECURSIVE n (value) AS (SELECT 1 UNION ALL SELECT value + 1 FROM n WHERE value < 500) SELECT value FROM n; "+many)
	before := dump1(t, path)
	spilled := false
	for done := range len(statements) + 1 {
		working := copyJournal(t, path)
		conn, err := openConnection(working)
		if err != nil {
			t.Fatal(err)
		}
		if err := conn.execute("PRAGMA cache_size = 4; BEGIN IMMEDIATE; " + strings.Join(statements[:done], "")); err != nil {
			t.Fatalf("after %d statements: %v", done, err)
		}
		crashed := copyJournal(t, working)
		if info, err := os.Stat(crashed + "-wal"); err == nil && info.Size() > 0 {
			spilled = true
		}
		if err := conn.close(); err != nil {
			t.Fatal(err)
		}
		for name, path := range map[string]string{"crash": crashed, "error": working} {
			if reader, err := OpenReadOnly(path); err == nil || !strings.Contains(err.Error(), "schema 1 is old") {
				t.Fatalf("%s after %d statements: %v, %v", name, done, reader, err)
			}
			if after := dump1(t, path); !slices.Equal(before, after) {
				t.Fatalf("%s after %d statements: schema 1 is not as it was", name, done)
			}
		}
		r := start(t, Config{Path: crashed})
		if e := r.Exposure(); e.Owed != 2 || e.Parked != 1 {
			t.Errorf("crash after %d statements: exposure %+v", done, e)
		}
		r.stop()
		if after := dump1(t, crashed); !slices.Equal(before, after) {
			t.Errorf("crash after %d statements: the second try has not carried all over", done)
		}
	}
	if !spilled {
		t.Error("no page of an unfinished migration was in the log: nothing was tested")
	}
}

func TestAMigrationThatFailsLeavesSchema1(t *testing.T) {
	// A table of another's in the way of the last steps.
	path := createSchema1(t, "CREATE TABLE events_2 (x)")
	before := dump1(t, path)
	_, err := Open(Config{Path: path, Station: "acq01"}, slog.New(slog.DiscardHandler), prometheus.NewRegistry())
	if err == nil || !strings.Contains(err.Error(), "migrating schema to 2: ") || strings.Contains(err.Error(), "\n") {
		t.Errorf("got %v", err)
	}
	if after := dump1(t, path); !slices.Equal(before, after) {
		t.Error("schema 1 is not as it was")
	}
	change(t, path, "DROP TABLE events_2")
	start(t, Config{Path: path})
}

func TestANewJournalHasTheSchemaOfAMigratedOne(t *testing.T) {
	fresh, migrated := create(t), createSchema1(t, "")
	start(t, Config{Path: migrated}).stop()
	const columns = "type, name, tbl_name, sql"
	if got, want := dump(t, migrated, "sqlite_schema", columns), dump(t, fresh, "sqlite_schema", columns); !slices.Equal(got, want) {
		t.Errorf("got  %s\nwant %s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	r := start(t, Config{Path: fresh})
	in := adviceOf(r.next("processor-a"), "key")
	in.Token = card.PANToken{}
	if _, err := r.Accept(t.Context(), in, messages.Reply{}); err != nil {
		t.Error(err)
	}
}
