package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"slices"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/spf13/cobra"

	"acquirerd/journal"
)

// leastKept is the shortest time for which transactions are kept: an upstream repeats and reverses for a day or so, and finds its
// original only while it is there (STANDARDS: ISO-19).
const leastKept = 48 * time.Hour

// prunedAtOnce bounds one record of pruning, so that transactions do not wait for it.
const prunedAtOnce = 1000

func (c *cli) upkeepCommands() []*cobra.Command {
	var reveal bool
	var pinFile string
	show := c.command("show ID", "Show one transaction with all that was owed for it and its history, masked; or its whole PAN",
		"acquirerd journal show 4711\nacquirerd journal show 4711 --reveal", cobra.ExactArgs(1), func(ctx context.Context, args []string) error {
			return c.journalShow(ctx, args, reveal, pinFile)
		})
	show.Long = "Show prints one transaction with all that was owed for it and its history, masked. ID is that of journal list, which\n" +
		"journal owed has as TRANSACTION. --reveal prints its whole PAN and nothing else: it asks for the token's user PIN again, offers it to the token\n" +
		"once, and leaves rows in the audit table of who asked and what came of it, also if it is refused. If these cannot be written, nothing is shown."
	show.Flags().BoolVar(&reveal, "reveal", false, "print the whole PAN")
	show.Flags().StringVar(&pinFile, "pin-file", "", "with --reveal: file with the token's user PIN, instead of asking at the terminal")

	var all bool
	release := c.command("release ID...", "Send what is parked again",
		"acquirerd journal release 12\nacquirerd journal release --all", cobra.ArbitraryArgs, func(ctx context.Context, args []string) error {
			return c.journalRelease(ctx, args, all)
		})
	release.Long = "Release makes parked reversals and advices owed again, due at once; the next send of what was sent before is marked as a\n" +
		"repeat. IDs are those of journal owed. An advice whose reversal was sent is not released. What fails does not keep the\n" +
		"others from it. It works beside a running daemon and without one; then the next start sends them."
	release.Flags().BoolVar(&all, "all", false, "all that are parked")

	park := c.command("park ID...", "Set what is owed aside: it is not sent any more until it is released", "acquirerd journal park 12",
		cobra.MinimumNArgs(1), func(ctx context.Context, args []string) error {
			return c.eachOwed(ctx, args, "parked", upkeep.Park)
		})
	park.Long = "Park sets owed reversals and advices aside: they are not sent any more until they are released. IDs are those of journal owed.\n" +
		"It works beside a running daemon and without one. What is being sent at the moment is not parked."

	var keep time.Duration
	var vacuum bool
	prune := c.command("prune", "Delete old transactions that owe nothing",
		"acquirerd journal prune --keep 2160h\nacquirerd journal prune --keep 2160h --vacuum", cobra.NoArgs, func(ctx context.Context, _ []string) error {
			return c.journalPrune(ctx, keep, vacuum)
		})
	prune.Long = "Prune deletes transactions that ended before the time to keep and owe nothing. What is open, owed or parked stays. A repeat or a\n" +
		"reversal of what was deleted does not find it any more. Rows of the audit table stay for ever. It works beside a running daemon; --vacuum,\n" +
		"which makes the file small, does not."
	prune.Flags().DurationVar(&keep, "keep", 0, "how long transactions are kept, at least "+leastKept.String())
	prune.Flags().BoolVar(&vacuum, "vacuum", false, "give the room back to the file system; the daemon must not run")

	var since, until, file string
	export := c.command("export", "Write transactions with all that belongs to them as lines of JSON, masked",
		"acquirerd journal export --since 2026-11-24T00:00:00Z --until 2026-11-25T00:00:00Z --file day.jsonl", cobra.NoArgs,
		func(ctx context.Context, _ []string) error { return c.journalExport(ctx, since, until, file) })
	export.Long = "Export writes one line a transaction that was begun in a time, oldest first, with the advices of processors that name it, and then one\n" +
		"line, {\"processor_advice\": ...}, for each advice that came in that time and names none, and one line, {\"audit\": ...}, for each row of the\n" +
		"audit table of that time."
	export.Flags().StringVar(&since, "since", "", "begun at or after this time, RFC 3339")
	export.Flags().StringVar(&until, "until", "", "begun before this time, RFC 3339")
	export.Flags().StringVar(&file, "file", "-", "a new file; - is standard output")
	date := c.command("business-date ENDPOINT [YYYY-MM-DD]", "Show an endpoint's business date, or set it where it is wrong",
		"acquirerd journal business-date processor-a\nacquirerd journal business-date processor-a 2026-11-25", cobra.RangeArgs(1, 2), c.businessDate)
	date.Long = "Business-date shows the date that a processor's last cutover has begun. With a date, that one takes its place, also if it is earlier:\n" +
		"records that bear the wrong one stay as they are, and the next cutover counts from the new one. It works beside a running daemon and\n" +
		"without one."
	return []*cobra.Command{show, release, park, prune, export, date, c.auditCommand(), c.resealCommand()}
}

func (c *cli) journalShow(ctx context.Context, args []string, reveal bool, pinFile string) error {
	id, err := strconv.ParseInt(args[0], 10, 64)
	switch {
	case err != nil || id < 1:
		return usagef("%q is not the ID of a transaction", args[0])
	case reveal:
		return c.journalReveal(ctx, journal.TransactionID(id), pinFile)
	case pinFile != "":
		return usagef("--pin-file is of --reveal")
	}
	return c.readJournal(func(r *journal.Reader) error {
		d, err := r.Dossier(ctx, journal.TransactionID(id))
		if err != nil {
			return err
		}
		if d.Outcome == "" {
			d.Outcome = journal.StillOpen
		}
		if c.output == "json" {
			return c.printJSON(d)
		}
		about := c.table("FIELD", "VALUE")
		for _, row := range [][2]any{{"id", d.ID}, {"upstream", d.Upstream}, {"upstream_stan", d.UpstreamSTAN}, {"upstream_rrn", d.UpstreamRRN},
			{"endpoint", d.Endpoint}, {"mti", d.MTI}, {"stan", d.STAN}, {"rrn", d.RRN}, {"transmission_time", d.TransmissionTime},
			{"terminal", d.Terminal}, {"merchant", d.Merchant}, {"amount", d.Amount}, {"currency", d.Currency}, {"pan", d.MaskedPAN},
			{"outcome", d.Outcome}, {"response_code", d.ResponseCode}, {"authorization_id", d.AuthorizationID}, {"approved_amount", d.ApprovedAmount},
			{"reason", d.Reason}, {"reversal", d.Transaction.Owed}, {"replacement_amount", d.Replacement}, {"advice", d.Advice},
			{"business_date", d.BusinessDate}, {"begun", clock(d.BegunAt)}, {"finished", clock(d.FinishedAt)}} {
			about.row(row[0], row[1])
		}
		if err := about.Flush(); err != nil {
			return err
		}
		_, _ = fmt.Fprintln(c.out) // Flush tells
		owed := c.table("OWED", "KIND", "WHY", "STATE", "ATTEMPTS", "SINCE", "DUE", "SETTLED", "CODE", "LAST", "BUSINESS_DATE")
		for _, o := range d.Owed {
			owed.row(o.ID, o.Kind, o.Reason, o.State, o.Attempts, clock(o.Since), clock(o.DueAt), clock(o.SettledAt), o.ResponseCode, o.LastReason, o.BusinessDate)
		}
		if err := owed.Flush(); err != nil {
			return err
		}
		_, _ = fmt.Fprintln(c.out)
		if len(d.ProcessorAdvices) > 0 {
			if err := c.advices(d.ProcessorAdvices); err != nil {
				return err
			}
			_, _ = fmt.Fprintln(c.out)
		}
		history := c.table("AT", "STATE", "OWED", "DETAIL")
		for _, e := range d.History {
			about := ""
			if e.OwedID != 0 {
				about = fmt.Sprint(e.OwedID)
			}
			history.row(clock(e.At), e.State, about, e.Detail)
		}
		return history.Flush()
	})
}

func (c *cli) journalRelease(ctx context.Context, args []string, all bool) error {
	if all == (len(args) > 0) {
		return usagef("release: name IDs, or --all")
	}
	if all {
		err := c.readJournal(func(r *journal.Reader) error {
			parked, err := r.Owed(ctx, journal.OwedFilter{State: journal.StateParked, Limit: mostRows})
			for i := len(parked) - 1; i >= 0; i-- { // the oldest first
				args = append(args, fmt.Sprint(parked[i].ID))
			}
			return err
		})
		if err != nil {
			return err
		}
	}
	return c.eachOwed(ctx, args, "released", upkeep.Release)
}

// eachOwed does something to each of the IDs, and says what was done. What fails does not keep the others from it.
func (c *cli) eachOwed(ctx context.Context, args []string, done string, do func(upkeep, context.Context, journal.OwedID) error) error {
	ids := make([]journal.OwedID, len(args))
	for i, arg := range args {
		id, err := strconv.ParseInt(arg, 10, 64)
		if err != nil || id < 1 {
			return usagef("%q is not the ID of something owed: see journal owed", arg)
		}
		ids[i] = journal.OwedID(id)
	}
	changed := []journal.OwedID{}
	err := c.changeJournal(ctx, func(j upkeep) (failed error) {
		for _, id := range ids {
			if err := do(j, ctx, id); err != nil {
				failed = errors.Join(failed, err)
				continue
			}
			changed = append(changed, id)
			if c.output == "text" {
				if _, err := fmt.Fprintf(c.out, "%s %d\n", done, id); err != nil {
					return err
				}
			}
		}
		return failed
	})
	if c.output == "json" && (err == nil || len(changed) > 0) {
		err = errors.Join(err, c.printJSON(map[string][]journal.OwedID{done: changed}))
	}
	return err
}

// businessDate shows an endpoint's business date, or puts another in its place.
func (c *cli) businessDate(ctx context.Context, args []string) error {
	if len(args) == 1 {
		return c.showBusinessDate(ctx, args[0])
	}
	if _, err := time.Parse(time.DateOnly, args[1]); err != nil {
		return usagef("%q is not a date such as 2026-11-25", args[1])
	}
	cfg, err := c.loadParts("station", "journal", "endpoints")
	if err != nil {
		return err
	}
	if !slices.ContainsFunc(cfg.Endpoints, func(e EndpointConfig) bool { return e.Name == args[0] }) {
		return usagef("endpoint %q is not in the config", args[0])
	}
	var advanced journal.Advanced
	err = c.changeJournal(ctx, func(j upkeep) (err error) {
		advanced, err = j.SetBusinessDate(ctx, args[0], args[1])
		return err
	})
	if err != nil {
		return err
	}
	if c.output == "json" {
		return c.printJSON(map[string]string{"endpoint": args[0], "before": advanced.From, "date": advanced.To})
	}
	before := advanced.From
	if before == "" {
		before = "none"
	}
	_, err = fmt.Fprintf(c.out, "business date of %s is %s, was %s\n", args[0], advanced.To, before)
	return err
}

func (c *cli) showBusinessDate(ctx context.Context, endpoint string) error {
	return c.readJournal(func(r *journal.Reader) error {
		days, err := r.BusinessDays(ctx)
		if err != nil {
			return err
		}
		at := slices.IndexFunc(days, func(d journal.BusinessDay) bool { return d.Endpoint == endpoint })
		if at < 0 {
			return fmt.Errorf("no business date of %q is known: no cutover was heard, and none was set", endpoint)
		}
		if c.output == "json" {
			return c.printJSON(days[at])
		}
		table := c.table("ENDPOINT", "BUSINESS_DATE", "SINCE")
		table.row(endpoint, days[at].Date, clock(days[at].BeganAt))
		return table.Flush()
	})
}

func (c *cli) journalPrune(ctx context.Context, keep time.Duration, vacuum bool) error {
	if keep == 0 {
		return usagef("--keep is missing")
	}
	if keep < leastKept {
		return usagef("--keep %v is shorter than %v", keep, leastKept)
	}
	cfg, err := c.loadParts("station", "journal")
	if err != nil {
		return err
	}
	if vacuum && newRemote(cfg).listens(ctx) {
		return errors.New("the daemon runs: --vacuum works only without it")
	}
	before, total := time.Now().Add(-keep), 0
	err = c.changeJournal(ctx, func(j upkeep) error {
		for pruned := prunedAtOnce; pruned == prunedAtOnce; {
			var err error
			if pruned, err = j.Prune(ctx, before, prunedAtOnce); err != nil {
				return err
			}
			total += pruned
		}
		return nil
	})
	if err == nil && vacuum {
		err = c.vacuum(cfg)
	}
	if err != nil {
		return err
	}
	if c.output == "json" {
		return c.printJSON(map[string]int{"pruned": total})
	}
	_, err = fmt.Fprintf(c.out, "pruned %d transactions that ended before %s\n", total, clock(before))
	return err
}

func (c *cli) journalExport(ctx context.Context, since, until, file string) error {
	var times [2]time.Time
	for i, text := range []string{since, until} {
		if text == "" {
			continue
		}
		var err error
		if times[i], err = time.Parse(time.RFC3339, text); err != nil {
			return usagef("--%s %q is not a time such as 2026-11-25T00:00:00Z", []string{"since", "until"}[i], text)
		}
	}
	if times[0].After(times[1]) && !times[1].IsZero() {
		return usagef("--since %s is after --until %s", since, until)
	}
	return c.readJournal(func(r *journal.Reader) (err error) {
		out := c.out
		if file != "-" {
			made, err := os.OpenFile(file, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600) //nolint:gosec // the operator's own path
			if err != nil {
				return fmt.Errorf("exporting: %w", err)
			}
			defer func() { err = errors.Join(err, made.Close()) }()
			out = made
		}
		lines := jsonLines(out)
		return r.Export(ctx, journal.Exporting{Since: times[0], Until: times[1], Transaction: func(d journal.Dossier) error {
			if d.Outcome == "" {
				d.Outcome = journal.StillOpen
			}
			return exported(lines.Encode(d))
		}, Advice: func(a journal.ProcessorAdvice) error {
			return exported(lines.Encode(map[string]journal.ProcessorAdvice{"processor_advice": a}))
		}, Audit: func(a journal.AuditRow) error {
			return exported(lines.Encode(map[string]journal.AuditRow{"audit": a}))
		}})
	})
}

func exported(err error) error {
	if err != nil {
		return fmt.Errorf("exporting: %w", err)
	}
	return nil
}

// openForChange opens the journal of the config, which no daemon may hold.
func (c *cli) openForChange(cfg *Config) (*journal.Journal, error) {
	return journal.Open(journal.Config{Path: cfg.Journal.Path, Station: cfg.Station, Batch: cfg.Journal.Batch, Queue: cfg.Journal.Queue},
		slog.New(slog.DiscardHandler), prometheus.NewRegistry())
}

// openJournal lets work change the journal of the config.
func (c *cli) openJournal(ctx context.Context, cfg *Config, work func(*journal.Journal) error) (err error) {
	j, err := c.openForChange(cfg)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, j.Close()) }()
	running, stop := context.WithCancel(context.WithoutCancel(ctx))
	ended := make(chan error, 1)
	go func() { ended <- j.Run(running) }()
	err = work(j)
	stop()
	return errors.Join(err, <-ended)
}

func (c *cli) vacuum(cfg *Config) error {
	j, err := c.openForChange(cfg)
	if err != nil {
		return err
	}
	return errors.Join(j.Vacuum(), j.Close())
}

// jsonLines encodes one value a line.
func jsonLines(w io.Writer) *json.Encoder {
	encoder := json.NewEncoder(w)
	encoder.SetEscapeHTML(false)
	return encoder
}
