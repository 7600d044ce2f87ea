package main

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"acquirerd/card"
	"acquirerd/hsm"
	"acquirerd/journal"
)

// errAskedOnce: the PIN of a person is offered to the token once.
var errAskedOnce = errors.New("the PIN was offered already")

// journalReveal prints a transaction's whole PAN to a person who knows the token's user PIN. The daemon's own login does not do: this process loads the module
// and logs in by itself, which a token allows to each process, and the PIN that the person gives is offered to the token once.
func (c *cli) journalReveal(ctx context.Context, id journal.TransactionID, pinFile string) error {
	cfg, err := c.loadParts("station", "journal", "hsm")
	if err != nil {
		return err
	}
	pin, err := c.personsPIN(ctx, pinFile)
	if err != nil {
		return err
	}
	defer clear(pin)
	return c.reveal(ctx, cfg, id, pin, func(e journal.AuditEvent) error { return c.auditRow(ctx, cfg, e) })
}

// reveal frames what it does by two rows of the audit table: the asking is on record before the PIN is offered, so that nobody can try PINs unseen, and
// what came of it before anything is shown. Where record cannot write one of them, nothing is shown.
func (c *cli) reveal(ctx context.Context, cfg *Config, id journal.TransactionID, pin []byte, record func(journal.AuditEvent) error) error {
	on := func(result string, key hsm.Key) error {
		err := record(journal.AuditEvent{What: auditReveal, Key: key.Label, KCV: key.KCV, Result: result, Detail: fmt.Sprintf("transaction %d", id)})
		if err != nil {
			return fmt.Errorf("revealing nothing, because it cannot be recorded: %w", err)
		}
		return nil
	}
	if err := on(resultAsked, hsm.Key{}); err != nil {
		return err
	}
	pan, key, refused := c.revealed(ctx, cfg, id, pin)
	if refused != nil {
		return errors.Join(refused, on("refused: "+oneLine(refused), key))
	}
	if err := on("shown", key); err != nil {
		return err
	}
	if c.output == "json" {
		return c.printJSON(map[string]any{"id": id, "pan": pan.Reveal()})
	}
	_, err := fmt.Fprintln(c.out, pan.Reveal())
	return err
}

// revealed opens the PAN of a transaction, by the key that it names.
func (c *cli) revealed(ctx context.Context, cfg *Config, id journal.TransactionID, pin []byte) (pan card.PAN, key hsm.Key, err error) {
	var sealed card.SealedPAN
	err = c.readJournal(func(r *journal.Reader) (err error) {
		sealed, err = r.Sealed(ctx, id)
		return err
	})
	if err == nil && sealed.KeyID == "" {
		err = fmt.Errorf("transaction %d has no PAN", id)
	}
	if err != nil {
		return card.PAN{}, hsm.Key{}, err
	}
	key.Label = sealed.KeyID
	forHSM := cfg.HSM.forHSM()
	at := slices.IndexFunc(forHSM.Keys, func(k hsm.Key) bool { return k.Label == sealed.KeyID && k.Use == hsm.PANSeal })
	if at < 0 {
		return card.PAN{}, key, fmt.Errorf("transaction %d is sealed under %q, which is not in the config", id, sealed.KeyID)
	}
	key = forHSM.Keys[at]
	offered := false
	forHSM.PIN = func() ([]byte, error) {
		if offered {
			return nil, errAskedOnce
		}
		offered = true
		return pin, nil
	}
	pan, err = hsm.Reveal(forHSM, key, sealed)
	return pan, key, err
}

// personsPIN asks for the token's user PIN again: at the terminal without an echo, or from a file for scripts. What the daemon uses does not count.
func (c *cli) personsPIN(ctx context.Context, file string) ([]byte, error) {
	if file != "" {
		pin, err := hsm.PINFile(file)()
		if err != nil {
			return nil, fmt.Errorf("reading the token's user PIN: %w", err)
		}
		return pin, nil
	}
	pin, err := c.readSecret(ctx, "User PIN of the token: ")
	if errors.Is(err, errNoTerminal) {
		return nil, usagef("show --reveal asks for the token's user PIN, and standard input is not a terminal: give --pin-file")
	}
	return pin, err
}
