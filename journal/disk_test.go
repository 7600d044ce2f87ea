package journal

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sys/unix"

	"acquirerd/messages"
)

// smallDisk mounts a file system of so many bytes, and unmounts it when the test has ended. TestNothingAcknowledgedIsLostOnAFullDisk does
// without one, but a limit of a file is not a full disk: that fails in other calls, and in the index of the log too.
func smallDisk(t *testing.T, size int) string {
	t.Helper()
	disk := t.TempDir()
	err := syscall.Mount("tmpfs", disk, "tmpfs", 0, fmt.Sprintf("size=%d", size))
	if err != nil && os.Getenv("CI") != "" && os.Geteuid() == 0 {
		t.Fatalf("mounting a small disk: %v", err)
	}
	if err != nil {
		t.Skipf("SKIPPED, NOT TESTED: a small disk cannot be mounted: %v", err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(disk, 0); err != nil {
			t.Errorf("unmounting: %v", err)
		}
	})
	return disk
}

func remount(t *testing.T, disk string, flags uintptr, options string) {
	t.Helper()
	if err := syscall.Mount("tmpfs", disk, "tmpfs", syscall.MS_REMOUNT|flags, options); err != nil {
		t.Fatalf("mounting it anew with %q: %v", options, err)
	}
}

// fillUp leaves so many bytes on a disk.
func fillUp(t *testing.T, disk string, left uint64) (ballast string) {
	t.Helper()
	var stat unix.Statfs_t
	if err := unix.Statfs(disk, &stat); err != nil {
		t.Fatal(err)
	}
	ballast = filepath.Join(disk, "ballast")
	if free := stat.Bavail * uint64(stat.Bsize); free > left {
		write(t, ballast, make([]byte, free-left))
	}
	return ballast
}

// oneClearLine fails for an error that an operator could not read.
func oneClearLine(t *testing.T, what string, err error, path string) {
	t.Helper()
	if err == nil || strings.Contains(err.Error(), "\n") || !strings.Contains(err.Error(), "journal "+path+": ") || strings.Count(err.Error(), path) != 1 {
		t.Errorf("%s: %v", what, err)
		return
	}
	t.Logf("%s: %v", what, err)
}

func TestNothingAcknowledgedIsLostOnADiskThatFills(t *testing.T) {
	for _, size := range []int{600 << 10, 1 << 20, 3 << 20} {
		t.Run(fmt.Sprintf("of %d KiB", size>>10), func(t *testing.T) {
			disk := smallDisk(t, size)
			path := filepath.Join(disk, "journal.db")
			if err := Create(path, "acq01"); err != nil {
				t.Fatal(err)
			}
			w := newWitness()
			w.listen(t, child(t, "JOURNAL_CHILD_WRITES="+path), 0)
			if !strings.HasPrefix(w.failed, "failed journal has failed: ") || !strings.Contains(w.failed, "full") || len(w.stan) < 5 {
				t.Errorf("%d transactions, then %q", len(w.stan), w.failed)
			}
			t.Logf("%d transactions, then %q", len(w.stan), w.failed)

			// The operator's first thought is a restart: it says why it cannot, or it works; either way nothing is lost.
			j, err := Open(Config{Path: path, Station: "acq01"}, slog.New(slog.DiscardHandler), prometheus.NewRegistry())
			if err != nil {
				oneClearLine(t, "opening on the full disk", err, path)
			} else if err := j.Close(); err != nil {
				t.Logf("closing on the full disk: %v", err)
			}
			remount(t, disk, 0, "size=64m")
			w.check(t, path)
			w.listen(t, child(t, "JOURNAL_CHILD_WRITES="+path), 500)
			w.check(t, path)
		})
	}
}

func TestCreateOnAFullDiskLeavesNothing(t *testing.T) {
	for _, left := range []uint64{0, 4 << 10, 16 << 10, 40 << 10} {
		disk := smallDisk(t, 1<<20)
		ballast := fillUp(t, disk, left)
		path := filepath.Join(disk, "journal.db")
		err := Create(path, "acq01")
		oneClearLine(t, fmt.Sprintf("%d KiB left", left>>10), err, path)
		entries, err := os.ReadDir(disk)
		if err != nil || len(entries) != 1 {
			t.Errorf("%d KiB left: leftovers %v, %v", left>>10, entries, err)
		}
		remove(t, ballast)
		if err := Create(path, "acq01"); err != nil {
			t.Errorf("with room: %v", err)
		}
	}
}

func TestAMigrationOnAFullDiskLeavesSchema1(t *testing.T) {
	disk := smallDisk(t, 8<<20)
	path := filepath.Join(disk, "journal.db")
	content, err := os.ReadFile(createSchema1(t, `INSERT INTO transactions WITH RECURSIVE n (value) AS (SELECT 1 UNION ALL SELECT value + 1 FROM n WHERE value < 3000)
		SELECT value + 100, upstream, NULL, upstream_stan, upstream_rrn, endpoint, mti, stan, rrn, transmission_time,
		acquirer_id, terminal, merchant, amount, currency, masked_pan, pan_token, pan_key_id, pan_nonce, pan_ciphertext, original, begun_at, outcome,
		response_code, authorization_id, approved_amount, reason, finished_at FROM transactions, n WHERE id = 2`))
	if err != nil {
		t.Fatal(err)
	}
	write(t, path, content)
	before := dump1(t, path)
	for _, left := range []uint64{8 << 10, 64 << 10, 256 << 10} {
		ballast := fillUp(t, disk, left)
		_, err := Open(Config{Path: path, Station: "acq01"}, slog.New(slog.DiscardHandler), prometheus.NewRegistry())
		oneClearLine(t, fmt.Sprintf("%d KiB left", left>>10), err, path)
		remove(t, ballast)
		if after := dump1(t, path); !slices.Equal(before, after) {
			t.Errorf("%d KiB left: schema 1 is not as it was", left>>10)
		}
	}
	r := start(t, Config{Path: path})
	if after := dump1(t, path); !slices.Equal(before, after) {
		t.Error("with room: not all was carried over")
	}
	r.stop()
}

// Pruning needs room too, and is what an operator tries on a full disk: its failure is as final as any, and takes nothing with it.
func TestPruningOnAFullDiskLosesNothing(t *testing.T) {
	disk := smallDisk(t, 32<<20)
	path := filepath.Join(disk, "journal.db")
	if err := Create(path, "acq01"); err != nil {
		t.Fatal(err)
	}
	r := start(t, Config{Path: path})
	for range 100 {
		r.finish(r.begin(""), Outcome{Kind: Declined})
	}
	r.owes()
	r.stop()
	before := all(t, path)
	r = start(t, Config{Path: path})
	r.stopped = true
	fillUp(t, disk, 0)
	if _, err := r.Prune(t.Context(), fromMicros(1<<60), 1000); !errors.Is(err, ErrFailed) || !strings.Contains(err.Error(), "full") {
		t.Errorf("got %v", err)
	}
	if err := <-r.ended; !errors.Is(err, ErrFailed) {
		t.Errorf("Run: %v", err)
	}
	if err := r.Close(); err != nil {
		t.Logf("closing: %v", err)
	}
	remount(t, disk, 0, "size=64m")
	if after := all(t, path); !slices.Equal(before, after) {
		t.Error("something is gone")
	}
	r = start(t, Config{Path: path})
	if pruned, err := r.Prune(t.Context(), fromMicros(1<<60), 1000); err != nil || pruned != 100 {
		t.Errorf("with room: %d, %v", pruned, err)
	}
	r.stop()
}

func TestAReadOnlyFileSystemIsRefused(t *testing.T) {
	disk := smallDisk(t, 4<<20)
	path := filepath.Join(disk, "journal.db")
	if err := Create(path, "acq01"); err != nil {
		t.Fatal(err)
	}
	r := start(t, Config{Path: path})
	r.owes()
	crashed := copyJournal(t, path)
	r.stop()
	moved := filepath.Join(disk, "crashed.db")
	for _, suffix := range []string{"", "-wal"} {
		content, err := os.ReadFile(crashed + suffix)
		if err != nil {
			t.Fatal(err)
		}
		write(t, moved+suffix, content)
	}
	remount(t, disk, syscall.MS_RDONLY, "size=4m")
	for _, path := range []string{path, moved} {
		_, err := Open(Config{Path: path, Station: "acq01"}, slog.New(slog.DiscardHandler), prometheus.NewRegistry())
		oneClearLine(t, "opening", err, path)
		if !strings.Contains(err.Error(), "its folder cannot be written: read-only file system") {
			t.Errorf("it does not say why: %v", err)
		}
	}
	other := filepath.Join(disk, "other.db")
	oneClearLine(t, "creating", Create(other, "acq01"), other)
	// An operator who reads a copy of the disk gets an answer or one line, and never a part: the debt stands in the log alone.
	for _, path := range []string{path, moved} {
		reader, err := OpenReadOnly(path)
		if err != nil {
			oneClearLine(t, "reading", err, path)
			continue
		}
		if owed, err := reader.Owed(t.Context(), OwedFilter{}); err == nil && len(owed) != 1 {
			t.Errorf("reading %s: %d owed", path, len(owed))
		}
		_ = reader.Close()
	}
	remount(t, disk, 0, "size=4m")
	for _, path := range []string{path, moved} {
		r := start(t, Config{Path: path})
		if e := r.Exposure(); e.Owed != 1 {
			t.Errorf("exposure %+v", e)
		}
		r.stop()
	}
}

// A page that nobody has read at start, met while it runs: the journal fails, and says so in one line.
func TestACorruptPageThatIsMetLaterFailsTheJournal(t *testing.T) {
	path := create(t)
	r := start(t, Config{Path: path})
	for range 50 {
		r.owes()
	}
	r.stop()
	j := openJournal(t, Config{Path: path})
	if err := j.writer.conn.execute("PRAGMA shrink_memory"); err != nil {
		t.Fatal(err)
	}
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	file, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	for at := 4096; at < len(content); at += 4096 {
		if _, err := file.WriteAt(make([]byte, 4096), int64(at)); err != nil {
			t.Fatal(err)
		}
	}
	r = run(t, j)
	r.stopped = true
	_, err = r.Begin(t.Context(), intentOf(messages.Numbers{STAN: "000099"}, ""))
	if !errors.Is(err, ErrFailed) || !strings.Contains(err.Error(), "malformed") || strings.Contains(err.Error(), "\n") {
		t.Errorf("got %v", err)
	}
	if err := <-r.ended; !errors.Is(err, ErrFailed) {
		t.Errorf("Run: %v", err)
	}
	_ = r.Close()
	_ = file.Close() // not before: it would release SQLite's locks
	if _, err := Open(Config{Path: path, Station: "acq01"}, slog.New(slog.DiscardHandler), prometheus.NewRegistry()); err == nil || strings.Contains(err.Error(), "\n") {
		t.Errorf("opened again: %v", err)
	}
}
