package journal

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"io"
	"net/url"
	"path/filepath"

	"github.com/mattn/go-sqlite3"
)

// The writer talks to SQLite's driver without database/sql between: its prepared statements belong to one goroutine, and the
// pool's locking, context watching and conversions cost more than the statements do.

// A connection is one SQLite connection of one goroutine.
type connection struct{ conn *sqlite3.SQLiteConn }

// A statement is a prepared statement of a connection.
type statement struct {
	stmt   driver.StmtQueryContext
	closer io.Closer
	args   []driver.NamedValue
	row    []driver.Value
}

// sourceName is the driver's name for a file. mode is "ro" or "rw": neither creates a file that is missing.
func sourceName(path, mode string, options url.Values) (string, error) {
	absolute, err := filepath.Abs(path)
	if err != nil {
		return "", err
	}
	options.Set("mode", mode)
	options.Set("_busy_timeout", "5000") // ms: a backup or another reader may hold a lock for a moment
	return (&url.URL{Scheme: "file", Path: absolute, RawQuery: options.Encode()}).String(), nil
}

// openConnection opens the writer's connection: durable at each commit.
func openConnection(path string) (*connection, error) {
	name, err := sourceName(path, "rw", url.Values{
		"_journal_mode": {"WAL"},
		"_synchronous":  {"FULL"}, // fsync of the log at each commit
		"_foreign_keys": {"on"},
	})
	if err != nil {
		return nil, err
	}
	opened, err := (&sqlite3.SQLiteDriver{}).Open(name)
	if err != nil {
		return nil, err
	}
	c := &connection{opened.(*sqlite3.SQLiteConn)}
	// 64 MiB of cache, and a checkpoint each 32 MiB of log: fewer rewrites of the pages that every batch touches.
	if err := c.execute("PRAGMA cache_size = -65536; PRAGMA wal_autocheckpoint = 8192"); err != nil {
		return nil, errors.Join(err, c.close())
	}
	return c, nil
}

// openReaders opens a pool of connections that cannot write.
func openReaders(path string, most int) (*sql.DB, error) {
	name, err := sourceName(path, "ro", url.Values{"_query_only": {"on"}})
	if err != nil {
		return nil, err
	}
	db, err := sql.Open("sqlite3", name)
	if err != nil {
		return nil, err
	}
	db.SetMaxOpenConns(most)
	db.SetMaxIdleConns(most)
	return db, nil
}

func (c *connection) close() error { return c.conn.Close() }

// execute runs statements without parameters.
func (c *connection) execute(script string) error {
	_, err := c.conn.Exec(script, nil)
	return err
}

// pragma returns the number that a pragma has.
func (c *connection) pragma(name string) (int64, error) {
	value, err := c.pragmaText(name)
	if err != nil {
		return 0, err
	}
	number, ok := value.(int64)
	if !ok {
		return 0, fmt.Errorf("pragma %s is not a number", name)
	}
	return number, nil
}

// pragmaText returns the first row of a pragma: text or a number.
func (c *connection) pragmaText(name string) (driver.Value, error) {
	rows, err := c.conn.Query("PRAGMA "+name, nil)
	if err != nil {
		return nil, err
	}
	value := make([]driver.Value, len(rows.Columns()))
	err = rows.Next(value)
	if err := errors.Join(err, rows.Close()); err != nil {
		return nil, err
	}
	return value[0], nil
}

// prepare makes a statement with so many result columns.
func (c *connection) prepare(query string, columns int) (*statement, error) {
	stmt, err := c.conn.Prepare(query)
	if err != nil {
		return nil, fmt.Errorf("preparing statement: %w", err)
	}
	args := make([]driver.NamedValue, stmt.NumInput())
	for i := range args {
		args[i].Ordinal = i + 1
	}
	return &statement{stmt.(driver.StmtQueryContext), stmt, args, make([]driver.Value, columns)}, nil
}

func (s *statement) close() error { return s.closer.Close() }

// one runs the statement and returns its first row, or nil if it has none. The row is valid until the next call.
//
// The driver binds and steps in one crossing to C for a query, and in one for each argument for an Exec: so all statements are
// run as queries, and those that change rows say RETURNING where it matters whether they did.
func (s *statement) one(args ...driver.Value) ([]driver.Value, error) {
	for i, arg := range args {
		s.args[i].Value = arg
	}
	rows, err := s.stmt.QueryContext(context.Background(), s.args)
	if err != nil {
		return nil, err
	}
	row := s.row
	if err = rows.Next(row); errors.Is(err, io.EOF) {
		row, err = nil, nil
	}
	if closed := rows.Close(); err == nil {
		err = closed
	}
	return row, err
}

// run is one for a statement without result columns.
func (s *statement) run(args ...driver.Value) error {
	_, err := s.one(args...)
	return err
}
