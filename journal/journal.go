package journal

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// A Config bounds a Journal. Zero values take the default.
type Config struct {
	Path      string // of the file that Create made; its log, lock and index stand beside it
	Station   string // must be the one that Create recorded
	Batch     int    // most records in one commit; default 512
	Queue     int    // most waiting callers; default 4,096
	BlockSize int    // STANs or RRNs reserved at a time; default 1,000, at most 100,000
}

// A Journal is an open record. All its methods may be called by any goroutine; those that write wait for Run.
type Journal struct {
	reader   *Reader
	lock     *os.File
	writer   *writer // owned by Run
	queue    *queue
	batch    int
	numbers  numbers
	standing *standing
	days     businessDates
	metrics  *metrics

	path string
	file os.FileInfo // of path when it was opened

	started   atomic.Bool
	running   atomic.Bool
	recovered atomic.Bool
	last      TransactionID // the newest when the journal was opened
	closing   sync.Once
}

// Run writes what is queued until ctx ends, then refuses new calls, writes what is still queued and returns nil. It returns
// an error wrapping ErrFailed when the store gave one: the process must stop then. It can be called once.
func (j *Journal) Run(ctx context.Context) error {
	if !j.started.CompareAndSwap(false, true) {
		panic("journal: running twice")
	}
	j.running.Store(true)
	defer j.running.Store(false)
	idle := time.NewTicker(lookInterval)
	defer idle.Stop()
	looked := time.Now()
	for {
		if time.Since(looked) >= lookInterval {
			looked = time.Now()
			if err := j.inPlace(); err != nil {
				return j.fail(nil, err)
			}
		}
		batch := j.queue.take(j.batch)
		if len(batch) == 0 {
			select {
			case <-j.queue.arrived:
				continue
			case <-idle.C:
				continue
			case <-ctx.Done():
			}
			if j.queue.closeIfEmpty(ErrClosed) {
				return nil
			}
			continue
		}
		if err := j.write(batch); err != nil {
			return j.fail(batch, err)
		}
	}
}

// lookInterval is how often the journal looks whether its file is still there.
const lookInterval = time.Second

// inPlace fails if the file is not the one that was opened. SQLite would go on writing into a file that has no name any more, and all of
// it would be gone with the process.
func (j *Journal) inPlace() error {
	file, err := os.Stat(j.path)
	if err != nil {
		return fmt.Errorf("its file is gone: %w", withoutPath(err))
	}
	if !os.SameFile(file, j.file) {
		return errors.New("its file was replaced by another")
	}
	return nil
}

// write commits a batch and then tells each caller.
//
// A crash before the commit has returned leaves all of the batch or none of it; nobody was told. A crash after it, before
// callers are told, leaves records of which no caller knows: intents that were not sent are then recovered as Unknown, and the
// processor answers their reversals with 25.
func (j *Journal) write(batch []record) error {
	begun := time.Now()
	if err := j.writer.commit(batch, begun); err != nil {
		return err
	}
	j.metrics.commitSeconds.Observe(time.Since(begun).Seconds())
	j.metrics.batchRecords.Observe(float64(len(batch)))
	for _, r := range batch {
		r.done(j, nil)
	}
	return nil
}

// fail makes the journal refuse everything from now on, and tells all who wait.
func (j *Journal) fail(batch []record, cause error) error {
	err := fmt.Errorf("%w: %w", ErrFailed, cause)
	waiting := j.queue.close(err)
	for _, r := range append(batch, waiting...) {
		r.done(j, err)
	}
	return err
}

// Ready returns nil while records can be written.
func (j *Journal) Ready() error {
	if err := j.queue.refusal(); err != nil {
		return err
	}
	if !j.running.Load() {
		return errors.New("journal is not running")
	}
	return nil
}

// Close releases the file. Run must have returned, or not been called.
func (j *Journal) Close() error {
	if j.running.Load() {
		panic("journal: closing while it runs")
	}
	var err error
	j.closing.Do(func() {
		for _, r := range j.queue.close(ErrClosed) { // only if Run was never called
			r.done(j, ErrClosed)
		}
		j.metrics.unregister()
		// Readers first: the writer's connection is then the last one, which empties the log into the file.
		err = errors.Join(j.reader.Close(), j.writer.close(), j.lock.Close())
	})
	if err != nil {
		return fmt.Errorf("closing journal: %w", err)
	}
	return nil
}

// Create makes a new journal for a station. An existing file is never touched, nor a log that an earlier one left behind:
// SQLite would replay it into the new file. After a crash the file is whole or not there.
func Create(path, station string) (err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("creating journal %s: %w", path, err)
		}
	}()
	if station == "" {
		return errors.New("no station name")
	}
	for _, name := range []string{path, path + "-wal", path + "-shm"} {
		if _, err := os.Lstat(name); err == nil { //nolint:gosec // the operator's own path
			return fmt.Errorf("%s already exists", filepath.Base(name))
		}
	}
	// CreateTemp makes the file readable and writable by its owner only.
	file, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+".new-*")
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("its folder %s is not there", filepath.Dir(path))
	}
	if err != nil {
		return withoutPath(err)
	}
	defer func() {
		for _, suffix := range []string{"", "-wal", "-shm"} { // SQLite leaves its own when the disk is full
			if removed := os.Remove(file.Name() + suffix); suffix == "" || !errors.Is(removed, fs.ErrNotExist) { //nolint:gosec // made above
				err = errors.Join(err, removed)
			}
		}
	}()
	defer func() { err = errors.Join(err, file.Close()) }()
	if err := fill(file.Name(), station); err != nil {
		return err
	}
	if err := file.Sync(); err != nil {
		return err
	}
	if err := os.Link(file.Name(), path); err != nil { // fails if somebody was faster
		return err
	}
	return syncDirectory(filepath.Dir(path))
}

// fill writes schema and station into an empty file.
func fill(path, station string) (err error) {
	conn, err := openConnection(path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, conn.close()) }()
	if err := conn.execute(fmt.Sprintf("PRAGMA application_id = %d", applicationID)); err != nil {
		return err
	}
	if err := migrate(conn); err != nil {
		return err
	}
	insert, err := conn.prepare("INSERT INTO journal (only_row, station, created_at) VALUES (1, ?, ?)", 0)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, insert.close()) }()
	return insert.run(station, time.Now().UnixMicro())
}

func syncDirectory(path string) error {
	directory, err := os.Open(path) //nolint:gosec // the operator's own path
	if err != nil {
		return err
	}
	return errors.Join(directory.Sync(), directory.Close())
}

// Open opens the journal of a station, locks it against other processes and migrates an older schema. It starts nothing.
// log and reg may not be nil.
func Open(cfg Config, log *slog.Logger, reg prometheus.Registerer) (*Journal, error) {
	j, err := open(cfg, log, reg)
	if err != nil {
		return nil, fmt.Errorf("opening journal %s: %s", cfg.Path, oneLine(err))
	}
	return j, nil
}

func open(cfg Config, log *slog.Logger, reg prometheus.Registerer) (_ *Journal, err error) {
	if err := cfg.complete(); err != nil {
		return nil, err
	}
	j := &Journal{path: cfg.Path,
		batch: cfg.Batch, queue: newQueue(cfg.Queue), standing: newStanding(), days: businessDates{of: map[string]string{}},
	}
	j.numbers = numbers{journal: j, block: int64(cfg.BlockSize), sequences: map[string]*sequence{}}
	var opened []func() error
	defer func() {
		for i := len(opened); err != nil && i > 0; i-- {
			err = errors.Join(err, opened[i-1]())
		}
	}()

	// The reader comes first: it cannot harm a file that is not ours.
	if j.reader, err = openReader(cfg.Path); err != nil {
		return nil, err
	}
	opened = append(opened, j.reader.Close)
	if j.reader.station != cfg.Station {
		return nil, fmt.Errorf("belongs to station %q, not to %q", j.reader.station, cfg.Station)
	}
	// A symbolic link is the same journal.
	real, err := filepath.EvalSymlinks(cfg.Path)
	if err != nil {
		return nil, withoutPath(err)
	}
	if j.lock, err = takeLock(real + ".lock"); err != nil {
		return nil, err
	}
	opened = append(opened, j.lock.Close)
	if j.file, err = os.Stat(cfg.Path); err != nil {
		return nil, withoutPath(err)
	}

	conn, err := openConnection(cfg.Path)
	if err != nil {
		return nil, err
	}
	opened = append(opened, conn.close)
	if err := checkSound(conn, cfg.Path); err != nil {
		return nil, err
	}
	// SQLite opens a file that it may not write for reading, and begins transactions in it. Found at the first intent, that would be late.
	if err := conn.execute("BEGIN IMMEDIATE; UPDATE journal SET station = station; ROLLBACK"); err != nil {
		return nil, err
	}
	if err := migrate(conn); err != nil {
		return nil, err
	}
	if j.writer, err = newWriter(conn); err != nil {
		return nil, err
	}
	opened[len(opened)-1] = j.writer.close
	if j.reader.finding, err = j.reader.db.Prepare(findSQL); err != nil {
		return nil, err
	}
	if err := j.load(); err != nil {
		return nil, err
	}
	if j.metrics, err = newMetrics(reg, j); err != nil {
		return nil, err
	}
	standing := j.Exposure()
	log.Info("journal opened", "station", cfg.Station, "last_transaction", int64(j.last), "owed", standing.Owed,
		"parked", standing.Parked)
	return j, nil
}

// load reads into memory what the writer keeps there.
func (j *Journal) load() error {
	ctx := context.Background()
	last, lastOwed, err := j.reader.lastIDs(ctx)
	if err != nil {
		return err
	}
	j.last, j.writer.lastTransaction, j.writer.lastOwed = last, last, lastOwed
	if j.writer.lastAudit, err = j.reader.lastAudit(ctx); err != nil {
		return err
	}
	days, err := j.reader.BusinessDays(ctx)
	if err != nil {
		return err
	}
	for _, d := range days {
		j.writer.days[d.Endpoint] = businessDay{d.Date, d.BeganAt}
		j.days.set(d.Endpoint, d.Date)
	}
	return j.reader.standing(ctx, j.standing)
}

// complete puts defaults in and checks the rest.
func (c *Config) complete() error {
	for _, limit := range []struct {
		name          string
		value         *int
		normal, least int
		most          int
	}{
		{"batch", &c.Batch, 512, 1, 100_000},
		{"queue", &c.Queue, 4096, 1, 1_000_000},
		{"block size", &c.BlockSize, 1000, 1, 100_000},
	} {
		if *limit.value == 0 {
			*limit.value = limit.normal
		}
		if *limit.value < limit.least || *limit.value > limit.most {
			return fmt.Errorf("%s is not %d to %d", limit.name, limit.least, limit.most)
		}
	}
	if c.Station == "" {
		return errors.New("no station name")
	}
	return nil
}

// oneLine is an error's text for an operator.
func oneLine(err error) string { return strings.ReplaceAll(err.Error(), "\n", "; ") }
