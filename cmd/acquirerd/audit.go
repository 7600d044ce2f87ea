package main

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/user"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"acquirerd/hsm"
	"acquirerd/journal"
)

// The audit trail: what is done with keys, by the daemon and by commands, and what people do that an auditor asks for. The journal holds it.

// What is done, beside what the HSM says of its keys.
const (
	auditStart  = "start"
	auditStop   = "stop"
	auditReveal = "reveal" // a whole PAN, for a person
	auditReseal = "reseal"
	auditRotate = "rotate" // a new zone key, asked for by a person
)

// Results of more than one of them.
const (
	resultAsked = "asked" // of a first row: another one says what came of it
	resultOK    = "ok"
)

// An auditTrail puts events on record: *journal.Journal.
type auditTrail interface {
	Audit(ctx context.Context, e journal.AuditEvent) (journal.AuditRow, error)
}

// waitingEvents is the room for events that are not on record yet: a rebuild gives one for each key at once, and comes no more than once in 100 ms.
const waitingEvents = 4096

// An auditor puts events on record one after the other, so that a batch of the journal has one of them at the most, and no transaction waits for more.
// Who tells it of an event does not wait. Each row goes to the log with its hash: a collector has the copy that the journal cannot change.
type auditor struct {
	trail   auditTrail
	who     string // of events that do not say it
	log     *slog.Logger
	events  chan told
	ended   chan struct{} // closed when Run has ended
	dropped prometheus.Counter
	written prometheus.Counter
	alarmed atomic.Int64 // Unix seconds of the last alarm

	mu   sync.RWMutex
	over bool // nobody takes events any more; guarded by mu
}

// A told is an event, or a mark: done is closed when all before it are on record.
type told struct {
	journal.AuditEvent
	done chan struct{}
}

func newAuditor(trail auditTrail, who string, log *slog.Logger, reg prometheus.Registerer) (*auditor, error) {
	a := &auditor{trail: trail, who: who, log: log, events: make(chan told, waitingEvents), ended: make(chan struct{}),
		dropped: prometheus.NewCounter(prometheus.CounterOpts{Name: "acquirerd_audit_dropped_total",
			Help: "Audit events that are not on record, because too many waited or the journal refused them. Each is one too many."}),
		written: prometheus.NewCounter(prometheus.CounterOpts{Name: "acquirerd_audit_rows_total", Help: "Audit rows written by the daemon itself."})}
	for _, c := range []prometheus.Collector{a.dropped, a.written} {
		if err := reg.Register(c); err != nil {
			return nil, fmt.Errorf("registering metrics: %w", err)
		}
	}
	return a, nil
}

// note takes an event without waiting. One that finds no room, or comes after the end of Run, is counted and alarmed.
func (a *auditor) note(e journal.AuditEvent) {
	if e.At.IsZero() {
		e.At = time.Now()
	}
	if e.Who == "" {
		e.Who = a.who
	}
	a.mu.RLock()
	defer a.mu.RUnlock()
	if a.over {
		a.drop(e, errors.New("the trail has ended"))
		return
	}
	select {
	case a.events <- told{AuditEvent: e}:
	default:
		a.drop(e, errors.New("too many wait"))
	}
}

// noteKey takes what the HSM tells.
func (a *auditor) noteKey(e hsm.Event) { a.note(auditEvent(e)) }

func auditEvent(e hsm.Event) journal.AuditEvent {
	return journal.AuditEvent{At: e.At, Who: e.Who, What: e.What, Key: e.Key, KCV: e.KCV, Result: e.Result, Detail: e.Detail}
}

// drop counts an event that is lost, and says so at most once a second.
func (a *auditor) drop(e journal.AuditEvent, why error) {
	a.dropped.Inc()
	now := time.Now().Unix()
	if last := a.alarmed.Load(); last != now && a.alarmed.CompareAndSwap(last, now) {
		a.log.Error("audit row lost", "what", e.What, "key", e.Key, "result", e.Result, "error", why)
	}
}

// Run puts events on record until ctx ends, and then those that wait.
func (a *auditor) Run(ctx context.Context) error {
	defer close(a.ended)
	for {
		select {
		case t := <-a.events:
			a.record(ctx, t)
			continue
		default:
		}
		select {
		case t := <-a.events:
			a.record(ctx, t)
		case <-ctx.Done():
			if a.isOver() {
				return nil
			}
		}
	}
}

// isOver ends the trail, unless events wait.
func (a *auditor) isOver() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.over = len(a.events) == 0
	return a.over
}

func (a *auditor) record(ctx context.Context, t told) {
	if t.done != nil {
		close(t.done)
		return
	}
	row, err := a.trail.Audit(context.WithoutCancel(ctx), t.AuditEvent)
	if err != nil {
		a.drop(t.AuditEvent, err)
		return
	}
	a.written.Inc()
	logAudit(a.log, row)
}

func logAudit(log *slog.Logger, row journal.AuditRow) {
	log.Info("audit", "number", row.Number, "who", row.Who, "what", row.What, "key", row.Key, "kcv", row.KCV, "result", row.Result, "detail", row.Detail,
		"hash", hex.EncodeToString(row.Hash[:]))
}

// enter puts an event of a command on record: it is durable when enter returns nil, and its error is the command's.
func (a *auditor) enter(ctx context.Context, e journal.AuditEvent) error {
	e.At = time.Now()
	row, err := a.trail.Audit(context.WithoutCancel(ctx), e)
	if err != nil {
		return fmt.Errorf("recording %s: %w", e.What, err)
	}
	logAudit(a.log, row)
	return nil
}

// flush waits until what was noted before is on record, or lost, or Run has ended.
func (a *auditor) flush(ctx context.Context) {
	mark := told{done: make(chan struct{})}
	select {
	case a.events <- mark:
	case <-a.ended:
		return
	case <-ctx.Done():
		return
	}
	select {
	case <-mark.done:
	case <-a.ended:
	case <-ctx.Done():
	}
}

// userName is a user of the operating system, for the record.
func userName(uid int) string {
	id := strconv.Itoa(uid)
	if found, err := user.LookupId(id); err == nil {
		return "user " + found.Username + " (" + id + ")"
	}
	return "user " + id
}

// peerKey is the key of the asker's name in the context of a connection to the control socket.
type peerKey struct{}

// withPeer notes who asks, by the word of the kernel and not by his own.
func withPeer(ctx context.Context, connection net.Conn) context.Context {
	unixConnection, isUnix := connection.(*net.UnixConn)
	if !isUnix {
		return ctx
	}
	peer, err := peerOf(unixConnection)
	if err != nil {
		return ctx
	}
	return context.WithValue(ctx, peerKey{}, userName(int(peer.Uid)))
}

// askedBy is who sent a request to the control socket.
func askedBy(r *http.Request) string {
	name, _ := r.Context().Value(peerKey{}).(string)
	if name == "" {
		return "unknown user"
	}
	return name
}

func peerOf(connection *net.UnixConn) (*unix.Ucred, error) {
	raw, err := connection.SyscallConn()
	if err != nil {
		return nil, err
	}
	var peer *unix.Ucred
	var failed error
	err = raw.Control(func(fd uintptr) { peer, failed = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) })
	return peer, errors.Join(err, failed)
}

// mostAudit bounds an event that a command sends, in bytes.
const mostAudit = 16 << 10

// An auditRequest is an event of a command. Who did it, the daemon sees itself.
type auditRequest struct {
	What   string `json:"what"`
	Key    string `json:"key"`
	KCV    string `json:"kcv"`
	Result string `json:"result"`
	Detail string `json:"detail"`
}

// controlAudit puts an event of a command on record, and answers when it is durable.
func (d *daemon) controlAudit(w http.ResponseWriter, r *http.Request) {
	var asked auditRequest
	if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, mostAudit)).Decode(&asked); err != nil {
		refuseControl(w, http.StatusBadRequest, errors.New("the event cannot be read"))
		return
	}
	err := d.auditor.enter(r.Context(), journal.AuditEvent{Who: askedBy(r), What: asked.What, Key: asked.Key, KCV: asked.KCV, Result: asked.Result, Detail: asked.Detail})
	if err != nil {
		refuseControl(w, http.StatusServiceUnavailable, err)
		return
	}
	answer(w, http.StatusOK, struct{}{})
}

// Audit has the daemon put an event on record.
func (r *remote) Audit(ctx context.Context, e journal.AuditEvent) error {
	return r.send(ctx, http.MethodPost, "/audit", auditRequest{e.What, e.Key, e.KCV, e.Result, e.Detail}, &struct{}{})
}

// auditRow puts an event of this command on record, durably: through the daemon that holds the journal, or by itself.
func (c *cli) auditRow(ctx context.Context, cfg *Config, e journal.AuditEvent) error {
	remote := newRemote(cfg)
	if remote.listens(ctx) {
		return remote.Audit(ctx, e)
	}
	e.At, e.Who = time.Now(), userName(os.Getuid())
	return c.openJournal(ctx, cfg, func(j *journal.Journal) error {
		_, err := j.Audit(ctx, e)
		return err
	})
}

// A keyRecord puts on record what a command does with a key.
type keyRecord func(ctx context.Context, e hsm.Event) error

// keyRecord finds the audit table for an event of this command. A token has its keys before there is a journal: then a warning says that there is no record, and
// none is made. Every error of the record is the caller's to report: the key is not to be dealt with, or was, and nothing tells of it.
func (c *cli) keyRecord(e hsm.Event) (keyRecord, error) {
	cfg, err := c.loadParts("station", "journal")
	// A config for a ceremony says nothing of station and journal. One that says something wrong of the journal is another matter.
	var faulty *configError
	missing := errors.As(err, &faulty) && !slices.ContainsFunc(faulty.faults, func(f fault) bool { return within(f.path, "journal") })
	if err == nil {
		_, err = os.Stat(cfg.Journal.Path)
		missing = errors.Is(err, fs.ErrNotExist)
	}
	switch {
	case missing:
		_, err := fmt.Fprintf(c.err, "acquirerd: warning: there is no journal yet, so %s is not in its audit table\n", doneTo(e))
		return func(context.Context, hsm.Event) error { return nil }, err
	case err != nil:
		return nil, fmt.Errorf("recording %s: %w", doneTo(e), err)
	}
	return func(ctx context.Context, e hsm.Event) error {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), recordTimeout) // an interrupt would be a way to do something without a record
		defer cancel()
		if err := c.auditRow(ctx, cfg, auditEvent(e)); err != nil {
			return fmt.Errorf("recording %s: %w", doneTo(e), err)
		}
		return nil
	}, nil
}

// recordTimeout bounds the record of what is done with a key.
const recordTimeout = 10 * time.Second

// doneTo says what an event is about.
func doneTo(e hsm.Event) string {
	if e.Key == "" { // components of a key that is nowhere
		return e.What
	}
	return e.What + " of key " + e.Key
}

func (c *cli) auditCommand() *cobra.Command {
	var since, anchor string
	var filter journal.AuditFilter
	var verify bool
	command := c.command("audit", "List what was done with keys, and by people who saw whole PANs, newest first; or verify that nothing of it was changed",
		"acquirerd journal audit --since 2026-11-25T00:00:00Z\nacquirerd journal audit --key zpk-pos --output json\nacquirerd journal audit --verify", cobra.NoArgs,
		func(ctx context.Context, _ []string) error {
			if verify {
				return c.journalVerify(ctx, anchor, since != "" || filter != (journal.AuditFilter{Limit: filter.Limit}))
			}
			if anchor != "" {
				return usagef("--anchor is of --verify")
			}
			return c.journalAudit(ctx, filter, since)
		})
	command.Long = "Audit lists the audit table: each load of a key at a start or a rebuild, its first use on a day, what commands were asked to do with keys and did, each\n" +
		"whole PAN that was shown, and what the token was found to be able to do. Rows are never changed and never deleted, by prune neither. Each holds the hash of\n" +
		"the one before. --verify follows that chain and names the first row that is not as it was written. A chain does not show that its end was cut\n" +
		"off, or that all of it was written anew: for that, note NUMBER:HASH of a row elsewhere (--verify prints it, and the daemon's log has each), and\n" +
		"give it as --anchor."
	command.Flags().StringVar(&since, "since", "", "at or after this time, RFC 3339")
	command.Flags().StringVar(&filter.Key, "key", "", "only of this key: its label")
	command.Flags().StringVar(&filter.What, "what", "", "only this: load, use, change, probe, import, reveal ...")
	command.Flags().IntVar(&filter.Limit, "limit", 100, "most rows")
	command.Flags().Int64Var(&filter.Before, "before", 0, "only rows with a smaller number: the last one of the page before")
	command.Flags().BoolVar(&verify, "verify", false, "verify all rows instead of listing them")
	command.Flags().StringVar(&anchor, "anchor", "", "with --verify: a row that was noted elsewhere, NUMBER:HASH")
	return command
}

func (c *cli) journalAudit(ctx context.Context, filter journal.AuditFilter, since string) error {
	if since != "" {
		var err error
		if filter.Since, err = time.Parse(time.RFC3339, since); err != nil {
			return usagef("--since %q is not a time such as 2026-11-25T00:00:00Z", since)
		}
	}
	if filter.Before < 0 {
		return usagef("--before %d is negative", filter.Before)
	}
	if err := checkLimit(filter.Limit); err != nil {
		return err
	}
	return c.readJournal(func(r *journal.Reader) error {
		list, err := r.Audited(ctx, filter)
		if err != nil {
			return err
		}
		if c.output == "json" {
			return c.printJSON(append([]journal.AuditRow{}, list...))
		}
		table := c.table("NUMBER", "AT", "WHO", "WHAT", "KEY", "KCV", "RESULT", "DETAIL")
		for _, a := range list {
			table.row(a.Number, clock(a.At), a.Who, a.What, a.Key, a.KCV, a.Result, a.Detail)
		}
		return table.Flush()
	})
}

func (c *cli) journalVerify(ctx context.Context, text string, filtered bool) error {
	if filtered {
		return usagef("--verify looks at all rows: it takes no --since, --key, --what or --before")
	}
	var anchor *journal.Anchor
	if text != "" {
		number, digits, _ := strings.Cut(text, ":")
		n, errNumber := strconv.ParseInt(number, 10, 64)
		hash, errHash := hex.DecodeString(digits)
		anchor = &journal.Anchor{Number: n}
		if errNumber != nil || errHash != nil || n < 1 || copy(anchor.Hash[:], hash) != len(anchor.Hash) || len(hash) != len(anchor.Hash) {
			return usagef("--anchor is not the number of a row, a colon, and 64 hexadecimal digits")
		}
	}
	return c.readJournal(func(r *journal.Reader) error {
		last, err := r.VerifyAudit(ctx, anchor)
		if err != nil {
			return fmt.Errorf("verifying the audit table: %w", err)
		}
		hash := ""
		if last.Number > 0 {
			hash = hex.EncodeToString(last.Hash[:])
		}
		if c.output == "json" {
			return c.printJSON(map[string]any{"rows": last.Number, "hash": hash})
		}
		if last.Number == 0 {
			_, err = fmt.Fprintln(c.out, "verified 0 rows")
			return err
		}
		_, err = fmt.Fprintf(c.out, "verified %d rows; the last one is %d:%s\n", last.Number, last.Number, hash)
		return err
	})
}

// sealedUnder counts what is sealed in the journal of the config, by the label of the key that opens it: nothing where there is no journal yet.
func (c *cli) sealedUnder(ctx context.Context) (map[string]int64, error) {
	cfg, err := c.loadParts("station", "journal")
	if err != nil {
		return nil, err
	}
	if _, err := os.Stat(cfg.Journal.Path); errors.Is(err, fs.ErrNotExist) {
		return map[string]int64{}, nil
	}
	var counts map[string]int64
	err = c.readJournal(func(r *journal.Reader) (err error) {
		counts, err = r.SealedUnder(ctx)
		return err
	})
	return counts, err
}
