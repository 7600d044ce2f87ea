package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/spf13/cobra"

	"acquirerd/acquirer"
	"acquirerd/hsm"
	"acquirerd/journal"
)

// newResealer makes what renews seals in a journal, and starts nothing.
func newResealer(c *HSMConfig, store *journal.Journal, vault *hsm.HSM, trail func(journal.AuditEvent), log *slog.Logger, reg prometheus.Registerer) (*acquirer.Resealer, error) {
	var opens []string
	for _, key := range c.Keys {
		if key.Use == hsm.PANSeal {
			opens = append(opens, key.Label)
		}
	}
	return acquirer.NewResealer(acquirer.ResealConfig{Store: store, Vault: vault, Key: c.SealKey, Opens: opens, Ended: func(p acquirer.ResealProgress) {
		result := resultOK
		if p.Error != "" {
			result = p.Error
		}
		trail(journal.AuditEvent{What: auditReseal, Key: p.Key, KCV: c.kcvOf(p.Key), Result: result,
			Detail: fmt.Sprintf("ended: resealed %d, unreadable %d, remaining %d", p.Resealed, p.Unreadable, p.Remaining)})
	}}, log, reg)
}

// kcvOf is the check value of a key of the config, "" of another.
func (c *HSMConfig) kcvOf(label string) string {
	for _, key := range c.Keys {
		if key.Label == label {
			return key.KCV
		}
	}
	return ""
}

// controlReseal begins a pass, unless one is under way, once it is on record who has asked for it.
func (d *daemon) controlReseal(w http.ResponseWriter, r *http.Request) {
	key := d.cfg.HSM.SealKey
	err := d.auditor.enter(r.Context(), journal.AuditEvent{Who: askedBy(r), What: auditReseal, Key: key, KCV: d.cfg.HSM.kcvOf(key), Result: resultOK, Detail: "asked for"})
	if err != nil {
		refuseControl(w, http.StatusServiceUnavailable, err)
		return
	}
	answer(w, http.StatusOK, d.resealer.Begin())
}

// controlResealProgress tells how far a pass is. That it has ended is on record before anybody is told: the command ends with that.
func (d *daemon) controlResealProgress(w http.ResponseWriter, r *http.Request) {
	p := d.resealer.Progress()
	if !p.Running {
		d.auditor.flush(r.Context())
	}
	answer(w, http.StatusOK, p)
}

func (c *cli) resealCommand() *cobra.Command {
	command := c.command("reseal", "Seal card numbers anew that are under an older key than hsm.seal_key", "acquirerd journal reseal\nacquirerd journal reseal --output json",
		cobra.NoArgs, c.journalReseal)
	command.Long = "Reseal opens each card number, and what else of an advice is sensitive, that is sealed under another key than hsm.seal_key, and seals it anew under\n" +
		"that. A running daemon does it beside its traffic, with a fifth of one HSM session at the most, and goes on with it if this command is interrupted;\n" +
		"without a daemon this command does it. It may end anywhere, and again begins with what is left. What cannot be opened, because it is damaged or its\n" +
		"key is not in the config any more, is listed, stays as it is, and makes the exit code 1. An old key can be destroyed once nothing is sealed under it."
	return command
}

// progressInterval is how often progress is printed.
const progressInterval = time.Second

func (c *cli) journalReseal(ctx context.Context, _ []string) error {
	cfg, err := c.loadParts("station", "journal")
	if err != nil {
		return err
	}
	remote := newRemote(cfg)
	if !remote.listens(ctx) {
		return c.resealAlone(ctx)
	}
	var p acquirer.ResealProgress
	if err := remote.post(ctx, "/journal/reseal", &p); err != nil {
		return err
	}
	p, err = c.watchReseal(ctx, p, func() (p acquirer.ResealProgress, err error) {
		err = remote.ask(ctx, http.MethodGet, "/journal/reseal", &p)
		return p, err
	})
	if errors.Is(err, context.Canceled) {
		return errors.New("resealing: the daemon goes on with it")
	}
	if err != nil {
		return err
	}
	return c.resealed(p)
}

// resealAlone does a pass without a daemon.
func (c *cli) resealAlone(ctx context.Context) error {
	cfg, err := c.loadParts("station", "journal", "hsm")
	if err != nil {
		return err
	}
	return c.openJournal(ctx, cfg, func(j *journal.Journal) (err error) {
		registry, quiet := prometheus.NewRegistry(), slog.New(slog.DiscardHandler)
		trail, err := newAuditor(j, userName(os.Getuid()), quiet, registry)
		if err != nil {
			return err
		}
		running, stop := context.WithCancel(context.WithoutCancel(ctx))
		defer stop()
		ended := make(chan error, 1)
		go func() { ended <- trail.Run(running) }()
		defer func() { stop(); err = errors.Join(err, <-ended) }()
		return c.withVault(ctx, cfg, trail, func(vault *hsm.HSM) error {
			r, err := newResealer(&cfg.HSM, j, vault, trail.note, quiet, registry)
			if err != nil {
				return err
			}
			result := make(chan error, 1)
			go func() {
				_, err := r.Pass(ctx)
				result <- err
			}()
			_, err = c.watchReseal(context.WithoutCancel(ctx), r.Progress(), func() (acquirer.ResealProgress, error) { return r.Progress(), nil }, result)
			if err != nil {
				return err
			}
			return c.resealed(r.Progress())
		})
	})
}

// withVault lends the HSM of the config, and closes it.
func (c *cli) withVault(ctx context.Context, cfg *Config, trail *auditor, work func(*hsm.HSM) error) (err error) {
	forHSM := cfg.HSM.forHSM()
	forHSM.Audit = trail.noteKey
	vault, err := hsm.New(forHSM, slog.New(slog.DiscardHandler), prometheus.NewRegistry())
	if err != nil {
		return err
	}
	if err := vault.Open(ctx); err != nil {
		return err
	}
	running, stop := context.WithCancel(context.WithoutCancel(ctx))
	ended := make(chan error, 1)
	go func() { ended <- vault.Run(running) }()
	err = work(vault)
	stop()
	return errors.Join(err, <-ended)
}

// watchReseal prints the progress of a pass until it has ended. Of one that this process does itself, done gives the end.
func (c *cli) watchReseal(ctx context.Context, p acquirer.ResealProgress, look func() (acquirer.ResealProgress, error), done ...<-chan error) (acquirer.ResealProgress, error) {
	var own <-chan error // nil of a daemon's: it is never ready
	if len(done) > 0 {
		own = done[0]
	}
	tick := time.NewTicker(progressInterval)
	defer tick.Stop()
	shown := int64(-1)
	for own != nil || p.Running {
		select {
		case err := <-own:
			return p, err
		case <-ctx.Done():
			return p, ctx.Err()
		case <-tick.C:
		}
		var err error
		if p, err = look(); err != nil {
			return p, err
		}
		if c.output == "text" && p.Running && p.Total > 0 && p.Remaining != shown {
			shown = p.Remaining
			if _, err := fmt.Fprintf(c.err, "%d of %d looked at, %d resealed, %d unreadable\n", p.Total-p.Remaining, p.Total, p.Resealed, p.Unreadable); err != nil {
				return p, err
			}
		}
	}
	return p, nil
}

// resealed prints what a pass came to. That some seals cannot be opened is an error: nobody may take the old key for useless.
func (c *cli) resealed(p acquirer.ResealProgress) error {
	if c.output == "json" {
		if err := c.printJSON(p); err != nil {
			return err
		}
	} else {
		if _, err := fmt.Fprintf(c.out, "resealed %d under %s, %d unreadable, %d remaining\n", p.Resealed, p.Key, p.Unreadable, p.Remaining); err != nil {
			return err
		}
		if len(p.List) > 0 {
			table := c.table("PART", "ID", "KEY", "PROBLEM")
			for _, u := range p.List {
				table.row(u.Part, u.ID, u.Key, u.Problem)
			}
			if err := table.Flush(); err != nil {
				return err
			}
		}
	}
	switch {
	case p.Error != "":
		return errors.New(p.Error)
	case p.Unreadable > 0:
		return fmt.Errorf("resealing: %d seals cannot be opened, and stay as they are", p.Unreadable)
	}
	return nil
}
