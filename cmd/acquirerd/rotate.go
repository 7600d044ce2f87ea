package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"acquirerd/acquirer"
	"acquirerd/journal"
)

// A rotation is what became of a request for a new zone key.
type rotation struct {
	Endpoint string `json:"endpoint"`
	Key      string `json:"key"`
	Version  int    `json:"version"`
	KCV      string `json:"kcv"`
	Before   string `json:"previous_kcv"`
}

// Bounds of --timeout. A processor makes the key in its own HSM; what takes longer than that comes as a key change that nobody waits for.
const (
	rotateTimeout     = 30 * time.Second
	mostRotateTimeout = 30 * time.Second // of the switch itself
)

func (c *cli) keysRotateCommand() *cobra.Command {
	var endpoint string
	var timeout time.Duration
	rotate := c.command("rotate", "Ask a processor for a new zone PIN key, and wait until it is in use", "acquirerd keys rotate --endpoint processor-a",
		cobra.NoArgs, func(ctx context.Context, _ []string) error { return c.keysRotate(ctx, endpoint, timeout) })
	rotate.Long = "Rotate has the running daemon send the dialect's key request on a link in service. The processor answers, and sends the key in a key\n" +
		"change of its own or in that answer. The command ends when the key is in use, and prints its check value and that of the key before, which\n" +
		"serves for hsm.key_overlap. A key that comes after --timeout is taken all the same. An upstream's key is changed by nobody's request."
	rotate.Flags().StringVar(&endpoint, "endpoint", "", "the processor's name in the config")
	rotate.Flags().DurationVar(&timeout, "timeout", rotateTimeout, "how long to wait for the key, at most 30s")
	return rotate
}

func (c *cli) keysRotate(ctx context.Context, endpoint string, timeout time.Duration) error {
	switch {
	case endpoint == "":
		return usagef("--endpoint is missing")
	case timeout <= 0 || timeout > mostRotateTimeout:
		return usagef("--timeout %v is not up to %v", timeout, mostRotateTimeout)
	}
	return c.askDaemon(ctx, func(r *remote) error {
		var rotated rotation
		query := url.Values{"timeout": {timeout.String()}}
		if err := r.post(ctx, "/keys/rotate/"+url.PathEscape(endpoint)+"?"+query.Encode(), &rotated); err != nil {
			return err
		}
		if c.output == "json" {
			return c.printJSON(rotated)
		}
		table := c.table("ENDPOINT", "KEY", "VERSION", "KCV", "PREVIOUS KCV")
		table.row(rotated.Endpoint, rotated.Key, rotated.Version, rotated.KCV, rotated.Before)
		return table.Flush()
	})
}

// rotationEvent is what the audit trail has of an operator's request, beside the change itself, which the HSM tells of.
func rotationEvent(who, endpoint string, rotated acquirer.KeyRotation, err error) journal.AuditEvent {
	e := journal.AuditEvent{Who: who, What: auditRotate, Key: rotated.Key, KCV: rotated.KCV, Result: resultOK, Detail: "endpoint " + endpoint}
	if err != nil {
		e.Result = oneLine(err)
	}
	return e
}

// controlRotate asks an endpoint's processor for a new zone key.
func (d *daemon) controlRotate(w http.ResponseWriter, r *http.Request) {
	name := r.PathValue("endpoint")
	if !slices.ContainsFunc(d.processors(), func(e *endpoint) bool { return e.name == name }) {
		refuseControl(w, http.StatusNotFound, fmt.Errorf("there is no endpoint %q", name))
		return
	}
	timeout, err := time.ParseDuration(r.URL.Query().Get("timeout"))
	if err != nil || timeout <= 0 || timeout > mostRotateTimeout {
		refuseControl(w, http.StatusBadRequest, errors.New("the timeout is not one"))
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), timeout)
	defer cancel()
	d.log.Warn("asked by an operator", "command", "keys rotate", "endpoint", name)
	rotated, err := d.desk.RotateKey(ctx, name)
	d.auditor.flush(r.Context()) // the change that came of it
	unrecorded := d.auditor.enter(r.Context(), rotationEvent(askedBy(r), name, rotated, err))
	switch {
	case unrecorded != nil && err == nil:
		refuseControl(w, http.StatusServiceUnavailable, fmt.Errorf("the key is in use, but who has asked for it is not on record: %w", unrecorded))
		return
	case unrecorded != nil:
		err = fmt.Errorf("%w, and %w", err, unrecorded)
	}
	if err != nil {
		code := http.StatusConflict
		if errors.Is(err, acquirer.ErrKeyUnconfirmed) {
			code = http.StatusGatewayTimeout
		}
		refuseControl(w, code, err)
		return
	}
	answer(w, http.StatusOK, rotation{name, rotated.Key, rotated.Version, rotated.KCV, rotated.Before})
}
