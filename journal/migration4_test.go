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
)

// schema3 is what version 3 adds to schema2: business days, and advices of processors.
const schema3 = `
INSERT INTO business_days VALUES ('processor-a', '2026-11-23', 1700000001000000), ('processor-a', '2026-11-24', 1700000002000000);
UPDATE transactions SET business_date = '2026-11-24' WHERE id = 8;
INSERT INTO processor_advices (id, endpoint, identity, mti, original, masked_pan, pan_token, digest, pan_key_id, pan_nonce, pan_ciphertext, withheld, response_code,
	transaction_id, undoes, business_date, at) VALUES
(1, 'processor-a', 'one', '0420', '{"mti":"0420"}', '411111******1111', zeroblob(32), zeroblob(32), 'pan-seal-1', x'313233343536373839303132', x'0a0b', 'chip_data', '00', 1, 1,
	'2026-11-24', 1700000014000000),
(2, 'processor-a', 'two', '0120', '{"mti":"0120"}', '', NULL, zeroblob(32), NULL, NULL, NULL, '', '00', NULL, 0, '', 1700000015000000);`

// createSchema3 makes a journal as version 3 would have left it.
func createSchema3(t testing.TB, more string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "journal.db")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	scripts, err := migrations()
	if err != nil {
		t.Fatal(err)
	}
	change(t, path, fmt.Sprintf("PRAGMA application_id = %d; BEGIN; %s; %s; %s; %s; %s; %s; %s; PRAGMA user_version = 3; COMMIT", applicationID, scripts[0], schema1,
		scripts[1], schema2, scripts[2], schema3, more))
	return path
}

// dump3 gives all rows, in columns of version 3.
func dump3(t *testing.T, path string) []string {
	t.Helper()
	return slices.Concat(dump2(t, path), dump(t, path, "transactions", "id, business_date"), dump(t, path, "owed", "id, business_date"),
		dump(t, path, "business_days", "endpoint, date, began_at"), dump(t, path, "processor_advices", "id, endpoint, identity, mti, original, masked_pan, "+
			"pan_token, digest, pan_key_id, pan_nonce, pan_ciphertext, withheld, response_code, transaction_id, undoes, business_date, at"))
}

func TestSchema3IsCarriedOver(t *testing.T) {
	path := createSchema3(t, "")
	if _, err := OpenReadOnly(path); err == nil || !strings.Contains(err.Error(), "schema 3 is old") {
		t.Errorf("read only: %v", err)
	}
	before := dump3(t, path)
	if len(before) != 1+2+9+6+32+9+6+2+2 {
		t.Fatalf("%d rows: %s", len(before), strings.Join(before, "\n"))
	}
	r := start(t, Config{Path: path})
	if after := dump3(t, path); !slices.Equal(before, after) {
		t.Errorf("got  %s\nwant %s", strings.Join(after, "\n     "), strings.Join(before, "\n     "))
	}
	checkForeignKeys(t, path)
	if e := r.Exposure(); e.Owed != 3 || e.Parked != 1 {
		t.Errorf("exposure %+v", e)
	}

	// The chain begins with the change, and what was sealed before can be sealed anew.
	if row := r.audited(useOf("pan-seal-1")); row.Number != 1 {
		t.Errorf("%+v", row)
	}
	seals := r.sealed("pan-seal-2")
	if len(seals) == 0 || r.counted()["pan-seal-1"] != int64(len(seals)) || seals[len(seals)-1].Part != AdvicePAN {
		t.Fatalf("%d seals: %+v", len(seals), r.counted())
	}
	var list []Resealing
	for _, s := range seals {
		list = append(list, under("pan-seal-2", s))
	}
	if n, err := r.Reseal(t.Context(), list); n != len(list) || err != nil {
		t.Errorf("replaced %d of %d, %v", n, len(list), err)
	}
	r = r.reopened(path)
	checkForeignKeys(t, r.path)
	if last, err := r.reader.VerifyAudit(t.Context(), nil); last.Number != 1 || err != nil {
		t.Errorf("%+v, %v", last, err)
	}
	if got := r.counted(); len(got) != 1 || got["pan-seal-2"] != int64(len(list)) {
		t.Errorf("counted %v", got)
	}
}

func TestACrashInTheMigrationLeavesSchema3(t *testing.T) {
	scripts, err := migrations()
	if err != nil {
		t.Fatal(err)
	}
	script := scripts[3] + "PRAGMA user_version = 4;\n"
	// A trigger has a semicolon in it: its end is that of a line with END.
	var statements []string
	for _, part := range statementsOf(script) {
		if n := len(statements); n > 0 && strings.Contains(statements[n-1], "BEGIN ") && !strings.Contains(statements[n-1], "END;") {
			statements[n-1] += part
			continue
		}
		statements = append(statements, part)
	}
	if len(statements) != 12 {
		t.Fatalf("%d statements", len(statements))
	}
	path := createSchema3(t, "")
	before := dump3(t, path)
	for _, done := range []int{0, 1, 4, len(statements) - 1, len(statements)} {
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
			if reader, err := OpenReadOnly(path); err == nil || !strings.Contains(err.Error(), "schema 3 is old") {
				t.Fatalf("%s after %d statements: %v, %v", name, done, reader, err)
			}
			if after := dump3(t, path); !slices.Equal(before, after) {
				t.Fatalf("%s after %d statements: schema 3 is not as it was", name, done)
			}
		}
		r := start(t, Config{Path: crashed})
		r.audited(useOf("a"))
		r.stop()
		if after := dump3(t, crashed); !slices.Equal(before, after) {
			t.Errorf("crash after %d statements: the second try has not carried all over", done)
		}
	}
}

func TestAMigrationThatFailsLeavesSchema3(t *testing.T) {
	// Another's trigger in the way of the last step.
	path := createSchema3(t, "CREATE TRIGGER processor_advices_stay BEFORE UPDATE ON owed BEGIN SELECT 1; END")
	before := dump3(t, path)
	_, err := Open(Config{Path: path, Station: "acq01"}, slog.New(slog.DiscardHandler), prometheus.NewRegistry())
	if err == nil || !strings.Contains(err.Error(), "migrating schema to 4: ") || strings.Contains(err.Error(), "\n") {
		t.Errorf("got %v", err)
	}
	if after := dump3(t, path); !slices.Equal(before, after) {
		t.Error("schema 3 is not as it was")
	}
	if got := dump(t, path, "pragma_table_list", "name"); slices.Contains(got, "'audit'") {
		t.Errorf("tables %v", got)
	}
	change(t, path, "DROP TRIGGER processor_advices_stay")
	start(t, Config{Path: path}).audited(useOf("a"))
}

func TestANewJournalHasTheSchemaOfOneMigratedFromSchema3(t *testing.T) {
	fresh, migrated := create(t), createSchema3(t, "")
	start(t, Config{Path: migrated}).stop()
	const columns = "type, name, tbl_name, sql"
	if got, want := dump(t, migrated, "sqlite_schema", columns), dump(t, fresh, "sqlite_schema", columns); !slices.Equal(got, want) {
		t.Errorf("got  %s\nwant %s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}
