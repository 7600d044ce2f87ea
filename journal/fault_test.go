package journal

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"acquirerd/card"
	"acquirerd/messages"
)

// TestMain makes the test's binary its own child: as a process that writes until it is killed or the disk is full.
func TestMain(m *testing.M) {
	if path := os.Getenv("JOURNAL_CHILD_WRITES"); path != "" {
		os.Exit(childWrites(path))
	}
	if path := os.Getenv("JOURNAL_CHILD_OPENS"); path != "" {
		_, err := Open(Config{Path: path, Station: "acq01"}, slog.New(slog.DiscardHandler), prometheus.NewRegistry())
		fmt.Println(err)
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// childWrites prints what the journal has acknowledged, a line each, after each call: numbers, begun, finished, owed, attempt,
// settled. JOURNAL_CHILD_LIMIT is the size in bytes at which files cannot grow any more.
func childWrites(path string) int {
	j, err := Open(Config{Path: path, Station: "acq01", BlockSize: 50}, slog.New(slog.DiscardHandler), prometheus.NewRegistry())
	if err != nil {
		fmt.Println("error", err)
		return 1
	}
	if limit, err := strconv.ParseUint(os.Getenv("JOURNAL_CHILD_LIMIT"), 10, 64); err == nil {
		signal.Ignore(syscall.SIGXFSZ)
		if err := syscall.Setrlimit(syscall.RLIMIT_FSIZE, &syscall.Rlimit{Cur: limit, Max: limit}); err != nil {
			fmt.Println("error", err)
			return 1
		}
	}
	ended := make(chan error, 1)
	go func() { ended <- j.Run(context.Background()) }()
	ctx := context.Background()
	tickets, err := j.Unfinished(ctx)
	for _, ticket := range tickets {
		err = errors.Join(err, j.Finish(ctx, ticket, Outcome{Kind: Unknown, Reason: "crash"}))
		fmt.Printf("finished %d unknown\n", ticket.ID())
	}
	if err != nil {
		fmt.Println("error", err)
		return 1
	}
	for caller := range 16 {
		go func() {
			for i := 0; ; i++ {
				if childWritesOne(ctx, j, fmt.Sprintf("%d-%d-%d", os.Getpid(), caller, i), Outcome{
					Kind: []Kind{Approved, Declined, NotSent, Unknown}[(i+caller)%4],
				}) != nil {
					return
				}
			}
		}()
	}
	fmt.Println("failed", <-ended)
	return 0
}

func childWritesOne(ctx context.Context, j *Journal, key string, out Outcome) error {
	numbers, err := j.Next(ctx, "processor-a", time.Now())
	if err != nil {
		return err
	}
	fmt.Printf("numbers %s %s\n", numbers.STAN, numbers.RRN)
	ticket, err := j.Begin(ctx, intentOf(numbers, key))
	if err != nil {
		return err
	}
	fmt.Printf("begun %d %s %s\n", ticket.ID(), numbers.STAN, key)
	ticket.Spend()
	if err := j.Finish(ctx, ticket, out); err != nil {
		return err
	}
	fmt.Printf("finished %d %s\n", ticket.ID(), out.Kind)
	if out.Kind == Approved && ticket.ID()%8 == 0 {
		if _, err := j.Owe(ctx, Reversing{Transaction: ticket.ID(), Reason: "undelivered"}); err != nil {
			return err
		}
		fmt.Printf("owed %d\n", ticket.ID())
	}
	if ticket.ID()%5 == 0 {
		if numbers, err = j.Next(ctx, "processor-a", time.Now()); err != nil {
			return err
		}
		fmt.Printf("numbers %s %s\n", numbers.STAN, numbers.RRN)
		in := adviceOf(numbers, key+"-advice")
		id, err := j.Accept(ctx, in, replyOf(in, "00"))
		if err != nil {
			return err
		}
		fmt.Printf("begun %d %s %s\nfinished %d %s\n", id, numbers.STAN, in.UpstreamKey, id, Accepted)
	}
	due := j.Incurred("processor-a")
	if len(due) == 0 {
		return nil
	}
	attempt, err := j.Attempt(ctx, due[0].ID, Numbers{})
	if errors.Is(err, ErrNotOwed) {
		return nil
	}
	if err != nil {
		return err
	}
	fmt.Printf("attempt %d %d\n", due[0].ID, attempt.Attempt())
	attempt.Spend()
	if err := j.Settle(ctx, attempt, Acknowledged("00")); err != nil {
		return err
	}
	fmt.Printf("settled %d\n", due[0].ID)
	return nil
}

// A witness remembers what children have been told, over all their lives.
type witness struct {
	stans, rrns map[string]bool
	stan, key   map[int]string // by transaction
	outcome     map[int]string // by transaction
	owed        map[int]bool   // by transaction
	attempts    map[int]int    // by owed
	settled     map[int]bool   // by owed
	lines       int
	failed      string
}

func newWitness() *witness {
	return &witness{stans: map[string]bool{}, rrns: map[string]bool{}, stan: map[int]string{}, key: map[int]string{},
		outcome: map[int]string{}, owed: map[int]bool{}, attempts: map[int]int{}, settled: map[int]bool{}}
}

// hear takes one line of a child. The last one may be cut by the kill.
func (w *witness) hear(t *testing.T, line string) {
	t.Helper()
	w.lines++
	words := strings.Fields(line)
	number := func(i int) int { n, _ := strconv.Atoi(words[i]); return n }
	switch words[0] {
	case "numbers":
		if w.stans[words[1]] || w.rrns[words[2]] {
			t.Errorf("given out twice: %s", line)
		}
		w.stans[words[1]], w.rrns[words[2]] = true, true
	case "begun":
		if w.stan[number(1)] != "" {
			t.Errorf("ID given out twice: %s", line)
		}
		w.stan[number(1)], w.key[number(1)] = words[2], words[3]
	case "finished":
		w.outcome[number(1)] = words[2]
		w.owed[number(1)] = w.owed[number(1)] || words[2] == string(Unknown) || words[2] == string(Accepted)
	case "owed":
		w.owed[number(1)] = true
	case "attempt":
		w.attempts[number(1)] = max(w.attempts[number(1)], number(2))
	case "settled":
		w.settled[number(1)] = true
	case "failed":
		w.failed = line
	case "error":
		t.Error(line)
	}
}

// check compares the journal with what was acknowledged: it may hold more, never less or other.
func (w *witness) check(t *testing.T, path string) {
	t.Helper()
	j := openJournal(t, Config{Path: path})
	defer j.Close()
	ctx := context.Background()
	found, err := j.Transactions(ctx, Filter{Limit: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	transactions := map[int]Transaction{}
	stans := map[string]bool{}
	for _, transaction := range found {
		transactions[int(transaction.ID)] = transaction
		if stans[transaction.STAN] {
			t.Errorf("STAN %s is recorded twice", transaction.STAN)
		}
		stans[transaction.STAN] = true
	}
	for id, stan := range w.stan {
		if got := transactions[id]; got.STAN != stan || got.UpstreamKey != w.key[id] {
			t.Errorf("transaction %d was begun with STAN %s and is recorded with %q", id, stan, got.STAN)
		}
	}
	for id, outcome := range w.outcome {
		if got := transactions[id].Outcome; string(got) != outcome {
			t.Errorf("transaction %d was finished as %s and is recorded as %q", id, outcome, got)
		}
	}
	all, err := j.Owed(ctx, OwedFilter{Limit: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	owed, byTransaction := map[int]Owed{}, map[int]bool{}
	for _, o := range all {
		owed[int(o.ID)], byTransaction[int(o.TransactionID)] = o, true
	}
	for id, is := range w.owed {
		undelivered := w.outcome[id] == string(Approved) && id%8 == 0 // it may have died before it was told
		if is != byTransaction[id] && (is || !undelivered) {
			t.Errorf("transaction %d is owed: %v, told %v", id, byTransaction[id], is)
		}
	}
	for id, attempts := range w.attempts {
		if got := owed[id].Attempts; got < attempts {
			t.Errorf("owed %d had attempt %d and is recorded with %d", id, attempts, got)
		}
	}
	for id := range w.settled {
		if got := owed[id].State; got != StateAcknowledged {
			t.Errorf("owed %d was acknowledged and is recorded as %q", id, got)
		}
	}
	if e := j.Exposure(); e.Owed != len(all)-countSettled(all) {
		t.Errorf("exposure %+v of %d", e, len(all))
	}
}

func countSettled(all []Owed) (n int) {
	for _, o := range all {
		if o.State != StateOwed {
			n++
		}
	}
	return n
}

func child(t *testing.T, environment ...string) *exec.Cmd {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), environment...)
	cmd.Stderr = os.Stderr
	return cmd
}

// listen runs a child, and kills it with SIGKILL after so many lines; 0 lets it end by itself.
func (w *witness) listen(t *testing.T, cmd *exec.Cmd, lines int) {
	t.Helper()
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	scanner, last := bufio.NewScanner(out), ""
	for heard := 1; scanner.Scan(); heard++ {
		if last != "" {
			w.hear(t, last)
		}
		last = scanner.Text() // heard when another one follows: what the kill has cut is not
		if heard == lines {
			if err := cmd.Process.Kill(); err != nil {
				t.Fatal(err)
			}
		}
	}
	if lines == 0 {
		w.hear(t, last)
	}
	if err := cmd.Wait(); err != nil && lines == 0 {
		t.Fatal(err)
	}
}

func TestNothingAcknowledgedIsLostByKilling(t *testing.T) {
	path := create(t)
	w := newWitness()
	for range 8 {
		w.listen(t, child(t, "JOURNAL_CHILD_WRITES="+path), 500+rand.IntN(1500))
		w.check(t, path)
	}
	t.Logf("%d lines, %d transactions", w.lines, len(w.stan))
}

func TestNothingAcknowledgedIsLostOnAFullDisk(t *testing.T) {
	path := create(t)
	w := newWitness()
	w.listen(t, child(t, "JOURNAL_CHILD_WRITES="+path, "JOURNAL_CHILD_LIMIT=2000000"), 0)
	if !strings.HasPrefix(w.failed, "failed journal has failed: ") || len(w.stan) < 100 {
		t.Errorf("%d transactions, then %q", len(w.stan), w.failed)
	}
	w.check(t, path)
	w.listen(t, child(t, "JOURNAL_CHILD_WRITES="+path), 500) // there is room again
	w.check(t, path)
}

func TestAnErrorOfTheStoreIsFinal(t *testing.T) {
	for _, committed := range []bool{false, true} {
		t.Run(fmt.Sprintf("commit failed, done %v", committed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx := context.Background()
				path := create(t)
				r := start(t, Config{Path: path})
				r.stopped = true // it ends by its own error
				finished, unfinished := r.begin("finished"), r.begin("unfinished")
				finished.Spend()
				r.finish(unfinished, Outcome{Kind: Unknown})
				attempt, err := r.Attempt(ctx, 1, Numbers{})
				if err != nil {
					t.Fatal(err)
				}
				numbers := r.next("processor-a")

				// The first of these is in the batch that fails, the rest waits meanwhile.
				cause, release := errors.New("disk on fire"), make(chan struct{})
				r.writer.fault = func(done bool) error {
					if done != committed {
						return nil
					}
					<-release
					return cause
				}
				var callers sync.WaitGroup
				expectFailed := func(what string, call func() error) {
					callers.Go(func() {
						if err := call(); !errors.Is(err, ErrFailed) || !errors.Is(err, cause) {
							t.Errorf("%s: %v", what, err)
						}
					})
					synctest.Wait()
				}
				expectFailed("Finish", func() error { return r.Finish(ctx, finished, Outcome{Kind: Approved}) })
				expectFailed("Begin", func() error { _, err := r.Begin(ctx, intentOf(numbers, "waiting")); return err })
				expectFailed("Settle", func() error { return r.Settle(ctx, attempt, Unsent(time.Now(), "no_link")) })
				expectFailed("Owe", func() error {
					_, err := r.Owe(ctx, Reversing{Transaction: finished.ID(), Reason: "undelivered"})
					return err
				})
				expectFailed("Next", func() error { _, err := r.Next(ctx, "processor-b", time.Now()); return err })
				if err := r.Ready(); err != nil {
					t.Errorf("not ready before the failure: %v", err)
				}
				close(release)
				callers.Wait()
				if err := <-r.ended; !errors.Is(err, ErrFailed) || !errors.Is(err, cause) {
					t.Errorf("Run: %v", err)
				}
				expectFailed("Begin after it", func() error { _, err := r.Begin(ctx, intentOf(numbers, "late")); return err })
				expectFailed("Next after it", func() error { _, err := r.Next(ctx, "processor-b", time.Now()); return err })
				expectFailed("Ready after it", r.Ready)
				if err := r.Close(); err != nil {
					t.Error(err)
				}

				// Recovery decides by what the store really holds.
				r = start(t, Config{Path: path})
				tickets, err := r.Unfinished(ctx)
				if err != nil {
					t.Fatal(err)
				}
				if want := map[bool]int{false: 1, true: 0}[committed]; len(tickets) != want {
					t.Errorf("%d unfinished, want %d", len(tickets), want)
				}
			})
		})
	}
}

func TestAFullDatabaseFailsTheJournal(t *testing.T) {
	path := create(t)
	j := openJournal(t, Config{Path: path})
	if err := j.writer.conn.execute("PRAGMA max_page_count = 40"); err != nil {
		t.Fatal(err)
	}
	r := run(t, j)
	r.stopped = true
	begun := 0
	var err error
	for ; err == nil; begun++ {
		_, err = r.Begin(context.Background(), intentOf(messages.Numbers{STAN: decimal(uint64(begun), 6)}, ""))
	}
	if !errors.Is(err, ErrFailed) || !strings.Contains(err.Error(), "full") {
		t.Errorf("after %d: %v", begun, err)
	}
	if err := <-r.ended; !errors.Is(err, ErrFailed) {
		t.Errorf("Run: %v", err)
	}
	if err := r.Close(); err != nil {
		t.Error(err)
	}
	r = start(t, Config{Path: path})
	if tickets, err := r.Unfinished(context.Background()); err != nil || len(tickets) != begun-1 {
		t.Errorf("%d unfinished of %d, %v", len(tickets), begun-1, err)
	}
}

func TestOpenRefuses(t *testing.T) {
	for _, test := range []struct {
		name    string
		prepare func(t *testing.T, path string) // of a sound journal
		want    string
	}{
		{"a missing file", func(t *testing.T, path string) { remove(t, path) }, "there is none: make one with acquirerd init"},
		{"an empty file", func(t *testing.T, path string) { write(t, path, nil) }, "not a journal of acquirerd"},
		{"a text file", func(t *testing.T, path string) { write(t, path, []byte(strings.Repeat("text\n", 999))) }, "not a journal of acquirerd"},
		{"a foreign database", func(t *testing.T, path string) {
			change(t, path, "PRAGMA application_id = 7")
		}, "not a journal of acquirerd"},
		{"another station's", func(t *testing.T, path string) {
			change(t, path, "UPDATE journal SET station = 'acq02'")
		}, `belongs to station "acq02", not to "acq01"`},
		{"a newer schema", func(t *testing.T, path string) {
			change(t, path, "PRAGMA user_version = 99")
		}, "schema 99 is newer than this program's 4"},
		{"a corrupt page", func(t *testing.T, path string) {
			page := bytes.Repeat([]byte{0xa5}, 4096)
			file, err := os.OpenFile(path, os.O_WRONLY, 0)
			if err != nil {
				t.Fatal(err)
			}
			_, err = file.WriteAt(page, 3*4096)
			if err := errors.Join(err, file.Close()); err != nil {
				t.Fatal(err)
			}
		}, "corrupt"},
		{"a truncated file", func(t *testing.T, path string) {
			if err := os.Truncate(path, 5*4096); err != nil {
				t.Fatal(err)
			}
		}, "malformed"},
	} {
		t.Run(test.name, func(t *testing.T) {
			path := create(t)
			r := start(t, Config{Path: path})
			for range 100 {
				r.begin("")
			}
			r.stop()
			test.prepare(t, path)
			before, _ := os.ReadFile(path)
			_, err := Open(Config{Path: path, Station: "acq01"}, slog.New(slog.DiscardHandler), prometheus.NewRegistry())
			if err == nil || !strings.Contains(err.Error(), test.want) || strings.Contains(err.Error(), "\n") ||
				strings.Count(err.Error(), path) != 1 {
				t.Errorf("got %v, want %s", err, test.want)
			}
			t.Log(err)
			if after, _ := os.ReadFile(path); !bytes.Equal(before, after) {
				t.Error("the file was changed")
			}
		})
	}
	for name, cfg := range map[string]Config{
		"no station":       {},
		"a negative batch": {Station: "acq01", Batch: -1},
		"a huge block":     {Station: "acq01", BlockSize: 999_999},
	} {
		cfg.Path = create(t)
		if _, err := Open(cfg, slog.New(slog.DiscardHandler), prometheus.NewRegistry()); err == nil {
			t.Errorf("%s: opened", name)
		}
	}
}

func remove(t *testing.T, path string) {
	t.Helper()
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
}

func write(t *testing.T, path string, content []byte) {
	t.Helper()
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestAJournalNeedsItsFolder(t *testing.T) {
	folder := filepath.Join(t.TempDir(), "none")
	if err := Create(filepath.Join(folder, "journal.db"), "acq01"); err == nil || !strings.HasSuffix(err.Error(), "its folder "+folder+" is not there") {
		t.Errorf("got %v", err)
	}
}

func TestOneProcessHoldsAJournal(t *testing.T) {
	path := create(t)
	r := start(t, Config{Path: path})
	want := fmt.Sprintf("opening journal %s: in use by process %d", path, os.Getpid())
	if _, err := Open(Config{Path: path, Station: "acq01"}, slog.New(slog.DiscardHandler), prometheus.NewRegistry()); err == nil || err.Error() != want {
		t.Errorf("a second opening in this process: %v", err)
	}
	out, err := child(t, "JOURNAL_CHILD_OPENS="+path).Output()
	if err != nil || strings.TrimSpace(string(out)) != want {
		t.Errorf("another process: %s, %v", out, err)
	}
	alias := filepath.Join(t.TempDir(), "alias.db")
	if err := os.Symlink(path, alias); err != nil {
		t.Fatal(err)
	}
	_, err = Open(Config{Path: alias, Station: "acq01"}, slog.New(slog.DiscardHandler), prometheus.NewRegistry())
	if err == nil || !strings.Contains(err.Error(), "in use by process") {
		t.Errorf("by a symbolic link: %v", err)
	}
	r.begin("") // the first has not noticed
	r.stop()
	if out, err := child(t, "JOURNAL_CHILD_OPENS="+path).Output(); err != nil || strings.TrimSpace(string(out)) != "<nil>" {
		t.Errorf("another process after the first: %s, %v", out, err)
	}
}

func TestWhatCannotBeWrittenIsRefused(t *testing.T) {
	for name, test := range map[string]struct {
		file, directory os.FileMode
		want            string
	}{
		"a read-only directory with a read-only file": {0o444, 0o555, "its folder cannot be written: permission denied"},
		"a read-only directory":                       {0o666, 0o555, "its folder cannot be written: permission denied"},
		"a read-only file":                            {0o444, 0o777, "attempt to write a readonly database"},
		"a file that cannot be read":                  {0o000, 0o777, "unable to open database file: permission denied"},
	} {
		t.Run(name, func(t *testing.T) {
			path := create(t)
			// A directory of its own: the test's parents may be closed to the user that root has to become.
			directory, err := os.MkdirTemp("", "journal")
			if err != nil {
				t.Fatal(err)
			}
			defer os.RemoveAll(directory)
			moved := filepath.Join(directory, "journal.db")
			content, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			write(t, moved, content)
			if err := errors.Join(os.Chmod(moved, test.file), os.Chmod(directory, test.directory)); err != nil {
				t.Fatal(err)
			}
			defer os.Chmod(directory, 0o700)

			cmd := child(t, "JOURNAL_CHILD_OPENS="+moved)
			if os.Geteuid() == 0 { // root may write anywhere
				becomeNobody(t, cmd)
			}
			out, err := cmd.Output()
			if err != nil || strings.TrimSpace(string(out)) != "opening journal "+moved+": "+test.want {
				t.Errorf("got %s, %v", out, err)
			}
			if err := os.Chmod(moved, 0o600); err != nil {
				t.Fatal(err)
			}
			if after, err := os.ReadFile(moved); err != nil || !bytes.Equal(after, content) {
				t.Errorf("the file was changed: %v", err)
			}
		})
	}
}

// becomeNobody makes a child run as a user without rights, from a copy of the program that this user can read.
func becomeNobody(t *testing.T, cmd *exec.Cmd) {
	t.Helper()
	binary, err := os.ReadFile(cmd.Path)
	if err != nil {
		t.Fatal(err)
	}
	program, err := os.MkdirTemp("", "journal")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(program) })
	cmd.Path = filepath.Join(program, "journal.test")
	if err := errors.Join(os.WriteFile(cmd.Path, binary, 0o755), os.Chmod(program, 0o755)); err != nil {
		t.Fatal(err)
	}
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
}

func TestCreateRefuses(t *testing.T) {
	path := create(t)
	before, _ := os.ReadFile(path)
	if err := Create(path, "acq01"); err == nil || !strings.Contains(err.Error(), "already exists") {
		t.Errorf("over a journal: %v", err)
	}
	if after, _ := os.ReadFile(path); !bytes.Equal(before, after) {
		t.Error("the journal was changed")
	}
	// A log that a lost journal left behind would be replayed into the new one.
	other := filepath.Join(t.TempDir(), "journal.db")
	write(t, other+"-wal", []byte("log"))
	if err := Create(other, "acq01"); err == nil || !strings.Contains(err.Error(), "journal.db-wal already exists") {
		t.Errorf("beside a log: %v", err)
	}
	if err := Create(filepath.Join(t.TempDir(), "missing", "journal.db"), "acq01"); err == nil {
		t.Error("in a missing directory")
	}
	if err := Create(filepath.Join(t.TempDir(), "journal.db"), ""); err == nil {
		t.Error("without a station")
	}
	entries, err := os.ReadDir(filepath.Dir(path))
	if err != nil || len(entries) != 1 {
		t.Errorf("leftovers: %v, %v", entries, err)
	}
}

// A log whose tail is missing is recovered up to the last whole batch, and never holds a part of one.
func TestATruncatedLogGivesItsWholeBatches(t *testing.T) {
	path := create(t)
	r := start(t, Config{Path: path})
	const transactions = 20
	for range transactions {
		r.finish(r.begin(""), Outcome{Kind: Unknown}) // two batches each; the second holds outcome and debt
	}
	log, err := os.ReadFile(path + "-wal")
	if err != nil {
		t.Fatal(err)
	}
	file, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 40 {
		cut := filepath.Join(t.TempDir(), "journal.db")
		write(t, cut, file)
		write(t, cut+"-wal", log[:len(log)*i/40])
		c := start(t, Config{Path: cut})
		open, err := c.Unfinished(context.Background())
		if err != nil || len(open) > 1 {
			t.Errorf("%d open, %v", len(open), err)
		}
		found, err := c.Transactions(context.Background(), Filter{})
		if err != nil || len(found) != len(c.owed())+len(open) {
			t.Errorf("%d transactions, %d owed, %d open, %v", len(found), len(c.owed()), len(open), err)
		}
		for _, transaction := range found {
			if (transaction.Outcome == Unknown) != (transaction.Owed == StateOwed) {
				t.Errorf("transaction %d is %q and %q", transaction.ID, transaction.Outcome, transaction.Owed)
			}
		}
		c.begin("") // and it can be written
		c.stop()
	}
}

func TestReadOnlyAfterACrashAndWithoutADaemon(t *testing.T) {
	path := create(t)
	r := start(t, Config{Path: path})
	r.finish(r.begin(""), Outcome{Kind: Unknown})
	crashed := copyJournal(t, path)
	r.stop()
	for name, path := range map[string]string{"stopped": path, "crashed": crashed} {
		reader, err := OpenReadOnly(path)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		owed, err := reader.Owed(context.Background(), OwedFilter{})
		if err != nil || len(owed) != 1 {
			t.Errorf("%s: %d owed, %v", name, len(owed), err)
		}
		if err := reader.Close(); err != nil {
			t.Error(err)
		}
		if _, err := os.Stat(path + ".lock"); name == "crashed" && err == nil {
			t.Errorf("%s: reading took the lock", name)
		}
	}
	if _, err := OpenReadOnly(filepath.Join(t.TempDir(), "journal.db")); err == nil || !strings.Contains(err.Error(), "there is none") {
		t.Errorf("a missing one: %v", err)
	}
	change(t, path, "PRAGMA user_version = 0")
	if _, err := OpenReadOnly(path); err == nil || !strings.Contains(err.Error(), "schema 0 is old") {
		t.Errorf("an old one: %v", err)
	}
}

// copyJournal copies file and log as they stand, as a crash would leave them.
func copyJournal(t testing.TB, path string) string {
	t.Helper()
	copied := filepath.Join(t.TempDir(), "journal.db")
	for _, suffix := range []string{"", "-wal"} {
		content, err := os.ReadFile(path + suffix)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(copied+suffix, content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return copied
}

// What must never be stored, in the forms in which it could be.
func TestCardDataIsNotStored(t *testing.T) {
	const (
		pan    = "4111111111111111"
		track  = pan + "=29122011234567890"
		pin    = "\x1c\x5e\x9a\x03\x7f\x42\xd8\x66"
		chip   = "\x9f\x26\x08\xde\xad\xbe\xef\x01\x02\x03\x04"
		expiry = "2912"
	)
	path := create(t)
	var logged bytes.Buffer
	j, err := Open(Config{Path: path, Station: "acq01"}, slog.New(slog.NewTextHandler(&logged, &slog.HandlerOptions{Level: slog.LevelDebug})),
		prometheus.NewRegistry())
	if err != nil {
		t.Fatal(err)
	}
	r := run(t, j)
	number, err := card.ParsePAN(pan)
	if err != nil {
		t.Fatal(err)
	}
	m := messages.New(messages.AuthorizationRequest)
	m.SetPAN(number)
	m.Set(messages.STAN, "000001")
	m.SetSensitive(messages.Track2, track)
	m.SetSensitive(messages.Expiry, expiry)
	m.SetSensitive(messages.PINData, pin)
	m.SetSensitive(messages.ChipData, chip)
	in := intentOf(messages.Numbers{STAN: "000001"}, "")
	in.Original, in.MaskedPAN = m.Original(), number.Mask()
	ticket, err := r.Begin(context.Background(), in)
	if err != nil {
		t.Fatal(err)
	}
	r.finish(ticket, Outcome{Kind: Unknown, Reason: "timeout"})
	r.keep(Advising{Endpoint: "processor-a", Identity: "022|1124000000|000001|TERM0001", Original: m.Original(), MaskedPAN: number.Mask(), ResponseCode: "00", Withheld: m.Elements()})

	files, err := filepath.Glob(path + "*") // while the log is full
	if err != nil || len(files) < 3 {
		t.Fatal(files, err)
	}
	written := logged.Bytes()
	for _, file := range files {
		content, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		written = append(written, content...)
	}
	if !bytes.Contains(written, []byte(number.Mask())) {
		t.Error("the mask was not found: the search is broken")
	}
	bcd := func(s string) string {
		var b []byte
		for i := 0; i+1 < len(s); i += 2 {
			b = append(b, (s[i]-'0')<<4|(s[i+1]-'0'))
		}
		return string(b)
	}
	for name, secret := range map[string]string{
		"PAN": pan, "PAN in BCD": bcd(pan), "PAN in hex": fmt.Sprintf("%x", pan), "track": track[17:], "PIN block": pin,
		"PIN block in hex": fmt.Sprintf("%x", pin), "chip data": chip[3:], "chip data in hex": fmt.Sprintf("%x", chip[3:]),
	} {
		if bytes.Contains(bytes.ToLower(written), []byte(strings.ToLower(secret))) {
			t.Errorf("%s was written", name)
		}
	}
}

func TestAJournalWhoseFileIsTakenAwayFails(t *testing.T) {
	for name, take := range map[string]func(path string) error{
		"removed":  os.Remove,
		"replaced": func(path string) error { return errors.Join(os.Rename(path, path+".old"), Create(path, "acq01")) },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				path := filepath.Join(t.TempDir(), "journal.db")
				if err := Create(path, "acq01"); err != nil {
					t.Fatal(err)
				}
				j, err := Open(Config{Path: path, Station: "acq01"}, slog.New(slog.DiscardHandler), prometheus.NewRegistry())
				if err != nil {
					t.Fatal(err)
				}
				ended := make(chan error, 1)
				go func() { ended <- j.Run(t.Context()) }()
				<-time.After(10 * time.Second)
				if err := j.Ready(); err != nil {
					t.Errorf("while it is there: %v", err)
				}
				_ = os.Remove(path + "-wal") // Create will not make a journal beside a log
				_ = os.Remove(path + "-shm")
				if err := take(path); err != nil {
					t.Fatal(err)
				}
				if err := <-ended; !errors.Is(err, ErrFailed) {
					t.Errorf("got %v", err)
				}
				if err := j.Ready(); !errors.Is(err, ErrFailed) {
					t.Errorf("ready: %v", err)
				}
				_ = j.Close() // what SQLite says of files that are gone does not matter
			})
		})
	}
}
