package journal

import (
	"embed"
	"fmt"
	"io/fs"
)

// applicationID marks an SQLite file as a journal of acquirerd ("acqd", at byte 68 of the file's header).
const applicationID = 0x61637164

//go:embed migrations/*.sql
var migrationFiles embed.FS

// migrations returns the SQL of each schema version, in order: the first makes version 1 out of an empty file. The number of a
// file is its place in the list, and a released file never changes.
func migrations() ([]string, error) {
	names, err := fs.Glob(migrationFiles, "migrations/*.sql") // sorted
	if err != nil {
		return nil, fmt.Errorf("listing migrations: %w", err)
	}
	scripts := make([]string, len(names))
	for i, name := range names {
		if want := fmt.Sprintf("migrations/%04d_", i+1); name[:min(len(name), len(want))] != want {
			return nil, fmt.Errorf("listing migrations: %s is not number %d", name, i+1)
		}
		script, err := migrationFiles.ReadFile(name)
		if err != nil {
			return nil, fmt.Errorf("listing migrations: %w", err)
		}
		scripts[i] = string(script)
	}
	return scripts, nil
}

// migrate brings the schema to this program's version, each step in a transaction of its own with the new version number.
// A crash leaves the steps that were committed. That the schema is not newer was checked before.
func migrate(conn *connection) error {
	scripts, err := migrations()
	if err != nil {
		return err
	}
	version, err := conn.pragma("user_version")
	if err != nil {
		return err
	}
	for i := int(version); i < len(scripts); i++ {
		script := fmt.Sprintf("BEGIN IMMEDIATE; %s; PRAGMA user_version = %d; COMMIT", scripts[i], i+1)
		if err := conn.execute(script); err != nil {
			return fmt.Errorf("migrating schema to %d: %w", i+1, err)
		}
	}
	return nil
}
