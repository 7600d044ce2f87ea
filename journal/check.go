package journal

import (
	"cmp"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/mattn/go-sqlite3"
	"golang.org/x/sys/unix"
)

// checkedWhole is the size in bytes up to which a journal is checked page by page at start. A larger one would keep the daemon
// down for minutes after a crash: there only the small tables are checked, and a corrupt page of the others stops the journal
// when it is met.
const checkedWhole = 256 << 20

// checkIdentity tells a foreign file from a journal, and one that this program can read from one that it cannot; it returns the
// version of the schema. Only SQLite opens the file: closing a handle of our own would release the locks that SQLite has on it in this process
// (https://www.sqlite.org/howtocorrupt.html, 2.2).
func checkIdentity(db *sql.DB, path string) (version int, err error) {
	var application int
	err = db.QueryRow("PRAGMA application_id").Scan(&application)
	if failure := (sqlite3.Error{}); errors.As(err, &failure) && failure.Code == sqlite3.ErrNotADB {
		return 0, errForeign
	}
	if failure := (sqlite3.Error{}); errors.As(err, &failure) && (failure.Code == sqlite3.ErrCantOpen || failure.Code == sqlite3.ErrReadonly) {
		return 0, cmp.Or(unwritable(path), err)
	}
	if err != nil {
		return 0, err
	}
	if application != applicationID {
		return 0, errForeign
	}
	scripts, err := migrations()
	if err != nil {
		return 0, err
	}
	if err := db.QueryRow("PRAGMA user_version").Scan(&version); err != nil {
		return 0, err
	}
	if version > len(scripts) {
		return 0, fmt.Errorf("schema %d is newer than this program's %d", version, len(scripts))
	}
	return version, nil
}

// unwritable says what SQLite does not when it cannot open a file that is there: it needs to make an index of the log beside it. It is
// nil if the folder can be written.
func unwritable(path string) error {
	if err := unix.Access(filepath.Dir(path), unix.W_OK); err != nil {
		return fmt.Errorf("its folder cannot be written: %w", err)
	}
	return nil
}

var errForeign = errors.New("not a journal of acquirerd")

// checkSound fails for a file whose structure is damaged.
func checkSound(conn *connection, path string) error {
	info, err := os.Stat(path)
	if err != nil {
		return withoutPath(err)
	}
	checks := []string{"quick_check(1)"}
	if info.Size() > checkedWhole {
		checks = []string{"quick_check(journal)", "quick_check(numbers)", "quick_check(owed)", "quick_check(business_days)", "quick_check(audit)"}
	}
	for _, check := range checks {
		found, err := conn.pragmaText(check)
		if err != nil {
			return fmt.Errorf("checking: %w", err)
		}
		if found != "ok" {
			return fmt.Errorf("corrupt: %v", found)
		}
	}
	for name, want := range map[string]any{"journal_mode": "wal", "synchronous": int64(2)} {
		got, err := conn.pragmaText(name)
		if err != nil {
			return fmt.Errorf("reading %s: %w", name, err)
		}
		if got != want {
			return fmt.Errorf("%s is %v, not %v", name, got, want)
		}
	}
	return nil
}

// takeLock locks a file beside the journal. The kernel releases the lock when the file is closed or the process ends, however
// it ends. The file stays, with the process ID of its last holder.
func takeLock(path string) (*os.File, error) {
	file, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600) //nolint:gosec // the operator's own path
	if err != nil {
		return nil, fmt.Errorf("locking: %w", withoutPath(err))
	}
	// flock, not fcntl: a second opening in the same process is refused too.
	err = unix.Flock(int(file.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		holder := make([]byte, 20)
		n, _ := file.ReadAt(holder, 0)
		return nil, errors.Join(fmt.Errorf("in use by process %s", strings.TrimSpace(string(holder[:n]))), file.Close())
	}
	if err == nil {
		err = file.Truncate(0)
	}
	if err == nil {
		_, err = file.WriteAt([]byte(strconv.Itoa(os.Getpid())+"\n"), 0)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("locking: %w", withoutPath(err)), file.Close())
	}
	return file, nil
}

// withoutPath leaves out the path that the outer error gives already.
func withoutPath(err error) error {
	if pathError := (*fs.PathError)(nil); errors.As(err, &pathError) {
		return pathError.Err
	}
	return err
}
