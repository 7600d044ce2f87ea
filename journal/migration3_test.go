package journal

import (
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"acquirerd/card"
)

// schema2 is what version 2 adds to schema1: an advice, a barred request, a reversal in part with numbers of its own.
const schema2 = `
INSERT INTO transactions SELECT 8, upstream, '012|1123220425|000783|TERM0001', '000783', '', endpoint, '0220', '000018', '632700000018', '1123220425',
	acquirer_id, terminal, merchant, '000000002000', currency, masked_pan, pan_token, pan_key_id, pan_nonce, pan_ciphertext, 'pan-seal-1',
	x'323130393837363534333231', x'0e0f', '{"amount":"000000002000","currency":"978","mti":"0220","stan":"000018"}', 1700000008000001, 'accepted', NULL, NULL,
	NULL, NULL, '{"mti":"0230","response_code":"00"}', 1700000008000001 FROM transactions WHERE id = 1;
INSERT INTO transactions SELECT 9, upstream, '010|1123220426|000784|TERM0001', '000784', '', '', '0100', '', '', '', '', '', '', '', '', masked_pan, NULL, NULL,
	NULL, NULL, NULL, NULL, NULL, '{"mti":"0100"}', 1700000009000001, 'not_sent', NULL, NULL, NULL, 'reversed_first', NULL, 1700000009000001 FROM transactions WHERE id = 1;
INSERT INTO owed VALUES (5, 8, 'advice', 'processor-a', 'accepted', '', '', '', 'acknowledged', 1, 1, 1700000008000001, 1700000008000001, '', '00', 1700000012000000),
	(6, 8, 'reversal', 'processor-a', 'upstream', '000000001500', '000019', '1124000000', 'owed', 1, 0, 1700000013000000, 1700000012500000, 'timeout', '', NULL);
INSERT INTO events VALUES (8, 1, NULL, 'begun', 1700000008000001, ''), (8, 2, NULL, 'accepted', 1700000008000001, ''), (8, 3, 5, 'owed', 1700000008000001, 'accepted'),
	(9, 1, NULL, 'begun', 1700000009000001, ''), (9, 2, NULL, 'not_sent', 1700000009000001, 'reversed_first'), (5, 5, 2, 'released', 1700000010000001, 'operator'),
	(4, 8, NULL, 'late_answer', 1700000010000002, '51'), (4, 9, NULL, 'second_answer', 1700000010000003, '51');`

// createSchema2 makes a journal as version 2 would have left it.
func createSchema2(t testing.TB, more string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "journal.db")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	scripts, err := migrations()
	if err != nil {
		t.Fatal(err)
	}
	change(t, path, fmt.Sprintf("PRAGMA application_id = %d; BEGIN; %s; %s; %s; %s; %s; PRAGMA user_version = 2; COMMIT", applicationID, scripts[0], schema1,
		scripts[1], schema2, more))
	return path
}

// dump2 gives all rows, in columns of version 2.
func dump2(t *testing.T, path string) []string {
	t.Helper()
	return slices.Concat(dump(t, path, "journal", "only_row, station, created_at"), dump(t, path, "numbers", "name, reserved"),
		dump(t, path, "transactions", transactions1+", upstream_key, rest_key_id, rest_nonce, rest_ciphertext, answer"),
		dump(t, path, "owed", owed1+", replacement, stan, transmission_time"), dump(t, path, "events", all1))
}

func TestSchema2IsCarriedOver(t *testing.T) {
	path := createSchema2(t, "")
	if _, err := OpenReadOnly(path); err == nil || !strings.Contains(err.Error(), "schema 2 is old") {
		t.Errorf("read only: %v", err)
	}
	before := dump2(t, path)
	if len(before) != 1+2+9+6+32 {
		t.Fatalf("%d rows: %s", len(before), strings.Join(before, "\n"))
	}
	r := start(t, Config{Path: path})
	if after := dump2(t, path); !slices.Equal(before, after) {
		t.Errorf("got  %s\nwant %s", strings.Join(after, "\n     "), strings.Join(before, "\n     "))
	}
	checkForeignKeys(t, path)
	if e := r.Exposure(); e.Owed != 3 || e.Parked != 1 || e.Amounts["978"] != 700+10000+500 {
		t.Errorf("exposure %+v", e)
	}
	if got := r.incurred(); !slices.Equal(got, []OwedID{1, 4, 6}) {
		t.Errorf("incurred %v", got)
	}
	if got := r.find("010|1123220418|000777|TERM0001"); got.ID != 1 || got.Reversal.ID != 4 {
		t.Errorf("found %+v", got)
	}

	// The rows of before are of no day; what comes is, and what is owed again.
	r.cutOver("")
	r.release(2)
	accepted := r.accept("new")
	today := r.transaction(accepted).BusinessDate
	if len(today) != 10 || r.transaction(1).BusinessDate != "" {
		t.Errorf("transaction %d is of %q, transaction 1 of %q", accepted, today, r.transaction(1).BusinessDate)
	}
	for _, o := range r.owed() {
		if want := map[OwedID]string{2: today, 7: today}[o.ID]; o.BusinessDate != want {
			t.Errorf("owed %d is of %q, want %q", o.ID, o.BusinessDate, want)
		}
	}
	// And a processor may name what was sent before.
	advising := advisingOf("700001", "000018")
	advising.TransmissionTime, advising.Token = "1123220425", card.PANToken{} // the fixture's
	if got := r.keep(advising); got.Transaction != 8 || !got.Undoes {         // only a part of it is reversed
		t.Errorf("%+v", got)
	}
	r = r.reopened(path)
	checkForeignKeys(t, r.path)
	if got := r.keep(advising); got.Transaction != 8 || !got.Again {
		t.Errorf("%+v", got)
	}
}

func TestACrashInTheMigrationLeavesSchema2(t *testing.T) {
	scripts, err := migrations()
	if err != nil {
		t.Fatal(err)
	}
	statements := append(statementsOf(scripts[2]), "PRAGMA user_version = 3")
	if len(statements) != 8 {
		t.Fatalf("%d statements", len(statements))
	}
	path := createSchema2(t, "")
	before := dump2(t, path)
	for done := range len(statements) + 1 {
		working := copyJournal(t, path)
		conn, err := openConnection(working)
		if err != nil {
			t.Fatal(err)
		}
		if err := conn.execute("PRAGMA cache_size = 1; BEGIN IMMEDIATE; " + strings.Join(statements[:done], "")); err != nil {
			t.Fatalf("after %d statements: %v", done, err)
		}
		crashed := copyJournal(t, working)
		if err := conn.close(); err != nil {
			t.Fatal(err)
		}
		for name, path := range map[string]string{"crash": crashed, "error": working} {
			if reader, err := OpenReadOnly(path); err == nil || !strings.Contains(err.Error(), "schema 2 is old") {
				t.Fatalf("%s after %d statements: %v, %v", name, done, reader, err)
			}
			if after := dump2(t, path); !slices.Equal(before, after) {
				t.Fatalf("%s after %d statements: schema 2 is not as it was", name, done)
			}
		}
		r := start(t, Config{Path: crashed})
		if e := r.Exposure(); e.Owed != 3 || e.Parked != 1 {
			t.Errorf("crash after %d statements: exposure %+v", done, e)
		}
		r.cutOver("")
		r.stop()
		if after := dump2(t, crashed); !slices.Equal(before, after) {
			t.Errorf("crash after %d statements: the second try has not carried all over", done)
		}
	}
}

func TestAMigrationThatFailsLeavesSchema2(t *testing.T) {
	// A table of another's in the way of a later step.
	path := createSchema2(t, "CREATE TABLE processor_advices (x)")
	before := dump2(t, path)
	_, err := Open(Config{Path: path, Station: "acq01"}, slog.New(slog.DiscardHandler), prometheus.NewRegistry())
	if err == nil || !strings.Contains(err.Error(), "migrating schema to 3: ") || strings.Contains(err.Error(), "\n") {
		t.Errorf("got %v", err)
	}
	if after := dump2(t, path); !slices.Equal(before, after) {
		t.Error("schema 2 is not as it was")
	}
	if got := dump(t, path, "pragma_table_list", "name"); slices.Contains(got, "'business_days'") {
		t.Errorf("tables %v", got)
	}
	change(t, path, "DROP TABLE processor_advices")
	start(t, Config{Path: path}).cutOver("")
}

func TestANewJournalHasTheSchemaOfOneMigratedFromSchema2(t *testing.T) {
	fresh, migrated := create(t), createSchema2(t, "")
	start(t, Config{Path: migrated}).stop()
	const columns = "type, name, tbl_name, sql"
	if got, want := dump(t, migrated, "sqlite_schema", columns), dump(t, fresh, "sqlite_schema", columns); !slices.Equal(got, want) {
		t.Errorf("got  %s\nwant %s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}
