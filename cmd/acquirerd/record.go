package main

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"acquirerd/journal"
	"acquirerd/messages"
)

func (c *cli) initCommand() *cobra.Command {
	command := c.command("init", "Create the journal", "acquirerd init --config acquirerd.yaml", cobra.NoArgs, c.initialize)
	command.Long = "Init creates the journal of this station. It never touches one that exists, or what is left of one."
	return command
}

func (c *cli) initialize(context.Context, []string) error {
	cfg, err := c.loadParts("station", "journal")
	if err != nil {
		return err
	}
	if err := journal.Create(cfg.Journal.Path, cfg.Station); err != nil {
		return err
	}
	if c.output == "json" {
		return c.printJSON(map[string]string{"journal": cfg.Journal.Path, "station": cfg.Station})
	}
	_, err = fmt.Fprintf(c.out, "created journal %s of station %s\n", cfg.Journal.Path, cfg.Station)
	return err
}

// mostRows bounds what one listing prints.
const mostRows = 100_000

func (c *cli) journalCommands() *cobra.Command {
	var filter journal.Filter
	var outcome string
	list := c.command("list", "List transactions, newest first, masked",
		"acquirerd journal list --limit 20\nacquirerd journal list --outcome unknown --output json\nacquirerd journal list --endpoint processor-a --stan 000123",
		cobra.NoArgs, func(ctx context.Context, _ []string) error {
			filter.Outcome = journal.Kind(outcome)
			return c.journalList(ctx, filter)
		})
	list.Flags().IntVar(&filter.Limit, "limit", 100, "most rows")
	list.Flags().StringVar(&outcome, "outcome", "", "only this outcome: "+oneOf(outcomes))
	list.Flags().StringVar(&filter.Endpoint, "endpoint", "", "only this endpoint")
	list.Flags().StringVar(&filter.STAN, "stan", "", "only this STAN, six digits")
	list.Flags().StringVar(&filter.RRN, "rrn", "", "only this RRN, twelve characters")
	list.Flags().Int64Var((*int64)(&filter.Before), "before", 0, "only transactions with a smaller ID: the last one of the page before")

	var owedFilter journal.OwedFilter
	var state string
	owed := c.command("owed", "List reversals and advices that are or were owed, newest first, masked",
		"acquirerd journal owed --state owed\nacquirerd journal owed --state parked --output json",
		cobra.NoArgs, func(ctx context.Context, _ []string) error {
			owedFilter.State = journal.State(state)
			return c.journalOwed(ctx, owedFilter)
		})
	owed.Flags().IntVar(&owedFilter.Limit, "limit", 100, "most rows")
	owed.Flags().StringVar(&owedFilter.Endpoint, "endpoint", "", "only this endpoint")
	owed.Flags().StringVar(&state, "state", "", "only this state: "+oneOf(states))
	var adviceFilter journal.AdviceFilter
	advices := c.command("advices", "List the advices that processors have sent of their own accord, newest first, masked",
		"acquirerd journal advices --undoing\nacquirerd journal advices --endpoint processor-a --output json",
		cobra.NoArgs, func(ctx context.Context, _ []string) error { return c.journalAdvices(ctx, adviceFilter) })
	advices.Long = "Advices lists what processors have told of their own accord, newest first, masked. TRANSACTION is the one that an advice names, if\n" +
		"that is on record: journal show has it with the advice. UNDOES says that it reverses what an upstream was told is approved:\n" +
		"nothing was done about it, and a person must look."
	advices.Flags().IntVar(&adviceFilter.Limit, "limit", 100, "most rows")
	advices.Flags().StringVar(&adviceFilter.Endpoint, "endpoint", "", "only this endpoint")
	advices.Flags().BoolVar(&adviceFilter.Undoing, "undoing", false, "only those that undo what an upstream was told is approved")
	advices.Flags().Int64Var((*int64)(&adviceFilter.Before), "before", 0, "only advices with a smaller ID: the last one of the page before")
	return c.group("journal", "Read the journal and keep it, also beside a running daemon",
		"acquirerd journal list --limit 20\nacquirerd journal owed --state parked\nacquirerd journal release 12",
		append([]*cobra.Command{list, owed, advices}, c.upkeepCommands()...)...)
}

var (
	outcomes = []journal.Kind{journal.Approved, journal.Declined, journal.NotSent, journal.Unknown, journal.Accepted, journal.StillOpen}
	states   = []journal.State{journal.StateOwed, journal.StateAcknowledged, journal.StateParked}
)

// The forms of DE 11 (n 6) and DE 37 (an 12): what has another finds nothing.
var (
	sixDigits        = regexp.MustCompile(`^[0-9]{6}$`)
	twelveCharacters = regexp.MustCompile(`^[ -~]{12}$`)
)

func (c *cli) journalList(ctx context.Context, filter journal.Filter) error {
	if filter.Outcome != "" && !slices.Contains(outcomes, filter.Outcome) {
		return usagef("--outcome %q is not one of %s", string(filter.Outcome), oneOf(outcomes))
	}
	switch {
	case filter.STAN != "" && !sixDigits.MatchString(filter.STAN):
		return usagef("--stan %q is not six digits", filter.STAN)
	case filter.RRN != "" && !twelveCharacters.MatchString(filter.RRN):
		return usagef("--rrn %q is not twelve characters", filter.RRN)
	case filter.Before < 0:
		return usagef("--before %d is negative", filter.Before)
	}
	if err := checkLimit(filter.Limit); err != nil {
		return err
	}
	return c.readJournal(func(r *journal.Reader) error {
		transactions, err := r.Transactions(ctx, filter)
		if err != nil {
			return err
		}
		for i := range transactions {
			if transactions[i].Outcome == "" {
				transactions[i].Outcome = journal.StillOpen
			}
		}
		if c.output == "json" {
			return c.printJSON(append([]journal.Transaction{}, transactions...))
		}
		table := c.table("ID", "BEGUN", "UPSTREAM", "ENDPOINT", "MTI", "STAN", "RRN", "AMOUNT", "CURRENCY", "PAN", "OUTCOME", "CODE", "AUTH", "REASON", "OWED", "ADVICE", "BUSINESS_DATE")
		for _, t := range transactions {
			table.row(t.ID, clock(t.BegunAt), t.Upstream, t.Endpoint, t.MTI, t.STAN, t.RRN, t.Amount, t.Currency, t.MaskedPAN, t.Outcome,
				t.ResponseCode, t.AuthorizationID, t.Reason, t.Owed, t.Advice, t.BusinessDate)
		}
		return table.Flush()
	})
}

func (c *cli) journalOwed(ctx context.Context, filter journal.OwedFilter) error {
	if filter.State != "" && !slices.Contains(states, filter.State) {
		return usagef("--state %q is not one of %s", string(filter.State), oneOf(states))
	}
	if err := checkLimit(filter.Limit); err != nil {
		return err
	}
	return c.readJournal(func(r *journal.Reader) error {
		owed, err := r.Owed(ctx, filter)
		if err != nil {
			return err
		}
		if c.output == "json" {
			return c.printJSON(append([]journal.Owed{}, owed...))
		}
		table := c.table("ID", "TRANSACTION", "KIND", "ENDPOINT", "STAN", "OWN_STAN", "RRN", "AMOUNT", "LEAVES", "CURRENCY", "PAN", "WHY", "STATE", "ATTEMPTS", "SINCE", "DUE", "SETTLED", "CODE", "LAST", "BUSINESS_DATE")
		for _, o := range owed {
			table.row(o.ID, o.TransactionID, o.Kind, o.Endpoint, o.Original.Get(messages.STAN), o.Own.STAN,
				o.Original.Get(messages.RRN), o.Original.Get(messages.Amount), o.Replacement, o.Original.Get(messages.Currency), o.MaskedPAN, o.Reason, o.State, o.Attempts,
				clock(o.Since), clock(o.DueAt), clock(o.SettledAt), o.ResponseCode, o.LastReason, o.BusinessDate)
		}
		return table.Flush()
	})
}

func (c *cli) journalAdvices(ctx context.Context, filter journal.AdviceFilter) error {
	if filter.Before < 0 {
		return usagef("--before %d is negative", filter.Before)
	}
	if err := checkLimit(filter.Limit); err != nil {
		return err
	}
	return c.readJournal(func(r *journal.Reader) error {
		advices, err := r.ProcessorAdvices(ctx, filter)
		if err != nil {
			return err
		}
		if c.output == "json" {
			return c.printJSON(append([]journal.ProcessorAdvice{}, advices...))
		}
		return c.advices(advices)
	})
}

// advices prints advices of processors as a table.
func (c *cli) advices(list []journal.ProcessorAdvice) error {
	table := c.table("ID", "AT", "ENDPOINT", "MTI", "STAN", "RRN", "AMOUNT", "CURRENCY", "PAN", "TRANSACTION", "UNDOES", "CODE", "BUSINESS_DATE", "WITHHELD")
	for _, a := range list {
		transaction, undoes := "", "no"
		if a.TransactionID != 0 {
			transaction = fmt.Sprint(a.TransactionID)
		}
		if a.Undoes {
			undoes = "yes"
		}
		table.row(a.ID, clock(a.At), a.Endpoint, a.MTI, a.Original.Get(messages.STAN), a.Original.Get(messages.RRN), a.Original.Get(messages.Amount),
			a.Original.Get(messages.Currency), a.MaskedPAN, transaction, undoes, a.ResponseCode, a.BusinessDate, strings.ReplaceAll(a.Withheld, " ", ","))
	}
	return table.Flush()
}

// readJournal lets read work on the journal of the config, whoever holds it.
func (c *cli) readJournal(read func(*journal.Reader) error) error {
	cfg, err := c.loadParts("station", "journal")
	if err != nil {
		return err
	}
	reader, err := journal.OpenReadOnly(cfg.Journal.Path)
	if err != nil {
		return err
	}
	if reader.Station() != cfg.Station {
		err := fmt.Errorf("reading journal %s: it belongs to station %q, not to %q", cfg.Journal.Path, reader.Station(), cfg.Station)
		return errors.Join(err, reader.Close())
	}
	return errors.Join(read(reader), reader.Close())
}

func checkLimit(limit int) error {
	if limit < 1 || limit > mostRows {
		return usagef("--limit %d is not 1 to %d", limit, mostRows)
	}
	return nil
}

// A table is columns of text. An empty cell is a hyphen, so that scripts can split a row at its spaces.
type table struct{ *tabwriter.Writer }

func (c *cli) table(heads ...any) table {
	const padding = 2
	t := table{tabwriter.NewWriter(c.out, 0, 0, padding, ' ', 0)}
	t.row(heads...)
	return t
}

func (t table) row(cells ...any) {
	texts := make([]string, len(cells))
	for i, cell := range cells {
		if texts[i] = fmt.Sprint(cell); texts[i] == "" {
			texts[i] = "-"
		}
	}
	_, _ = fmt.Fprintln(t, strings.Join(texts, "\t")) // Flush tells
}

// clock is a time in UTC to the millisecond, "" for none.
func clock(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.UTC().Format("2006-01-02T15:04:05.000Z")
}

// oneOf lists values for a person.
func oneOf[T ~string](values []T) string {
	texts := make([]string, len(values))
	for i, value := range values {
		texts[i] = string(value)
	}
	return strings.Join(texts, ", ")
}
