package simulator

import (
	"fmt"
	"strings"
)

// A transcript is what all parties have of the transaction that a mismatch is about. Its maker knows one of them at least.
type transcript struct {
	what    string
	hold    *Hold
	account *Account
	entry   *Entry
}

// Transcript is the first mismatch in lines to read: what the journal, the upstream's book and the processor's ledger have of that
// transaction, and every message that came for it. It is empty if there is no mismatch that is about one.
func (v Verdict) Transcript() []string { return v.transcript }

// lines finds what its maker did not know, and writes all of it.
func (t *transcript) lines(c *comparison) []string {
	if t.account == nil && t.hold != nil {
		t.account = c.accountFor(t.hold)
	}
	if t.account == nil && t.entry != nil {
		t.account = c.accountOf(t.entry)
	}
	if t.entry == nil {
		t.entry = c.entries[t.account]
	}
	accounts := []*Account{t.account}
	if t.entry != nil {
		accounts = []*Account{c.accountOf(t.entry), c.adviceOf(t.entry)}
	}
	lines := []string{t.what}
	if t.entry != nil {
		lines = append(lines, t.entry.lines()...)
	}
	shown := false
	for _, a := range accounts {
		if a == nil {
			continue
		}
		lines = append(lines, a.line())
		for _, h := range c.holds[a] {
			lines = append(lines, h.lines()...)
			shown = shown || h == t.hold
		}
		for i := range c.ledger.UnknownReversals {
			u := &c.ledger.UnknownReversals[i]
			if u.STAN == a.STAN && (u.TransmissionTime == a.TransmissionTime || u.LocalTime != "") { // the journal does not list DE 12
				lines = append(lines, fmt.Sprintf("processor: reversals of an unknown %s %s at %s", u.OriginalMTI, u.STAN,
					byDefault(u.TransmissionTime, u.LocalTime)))
				lines = append(lines, u.lines()...)
			}
		}
	}
	if t.hold != nil && !shown {
		lines = append(lines, t.hold.lines()...)
	}
	return lines
}

// sentence joins what is there.
func sentence(parts ...string) string {
	var there []string
	for _, part := range parts {
		if part != "" {
			there = append(there, part)
		}
	}
	return strings.Join(there, ", ")
}

// said is "name value", or nothing without a value.
func said(name, value string) string {
	if value == "" {
		return ""
	}
	return name + " " + value
}

func (a *Account) line() string {
	return "journal: " + sentence(fmt.Sprintf("transaction %d is %s %s at %s", a.ID, a.MTI, a.STAN, a.TransmissionTime),
		said("upstream", a.UpstreamKey), said("amount", a.Amount), byDefault(a.Outcome, "no outcome"), said("approved", a.ApprovedAmount),
		said("code", a.ResponseCode), said("reason", a.Reason), said("reversal", a.Owed), said("replacement", a.ReplacementAmount),
		said("advice", a.Advice))
}

const clock = "15:04:05.000000"

func (e *Entry) lines() []string {
	name := fmt.Sprintf("%s %s at %s on %s", e.MTI, e.STAN, e.TransmissionTime, strings.TrimSpace(e.Terminal))
	lines := []string{"upstream: " + sentence(name, fmt.Sprintf("amount %d", e.Amount), "sent "+e.SentAt.Format(clock), string(e.Outcome),
		said("code", e.ResponseCode), said("late code", e.LateCode))}
	if !e.Duty {
		return lines
	}
	belief := fmt.Sprintf("believes %s", byDefault(string(e.Belief), "nothing yet"))
	if e.Belief == BelievesApproved {
		belief += fmt.Sprintf(" %d", e.BelievedAmount)
	}
	if e.Open {
		belief += ", and is not at rest"
	}
	lines = append(lines, fmt.Sprintf("upstream: %s; tried %d times, %d of them repeats, %d times more after the answer", belief, e.Tries,
		e.Repeats, e.Resends))
	if r := e.Reversal; r.State != "" {
		amount := "whole"
		if r.Partial {
			amount = fmt.Sprintf("to %d", r.Replacement)
		}
		lines = append(lines, "upstream: "+sentence(fmt.Sprintf("reversal %s %s", r.MTI, amount), string(r.State),
			said("code", r.ResponseCode), fmt.Sprintf("tried %d times", r.Tries)))
	}
	if d := e.Advice; d.State != "" {
		lines = append(lines, "upstream: "+sentence(fmt.Sprintf("advice %s %s at %s", d.MTI, d.STAN, d.TransmissionTime),
			fmt.Sprintf("amount %d", d.Amount), string(d.State), said("code", d.ResponseCode), fmt.Sprintf("tried %d times", d.Tries)))
	}
	for _, fault := range e.Faults {
		lines = append(lines, "upstream: "+fault)
	}
	return lines
}

func (h *Hold) lines() []string {
	line := fmt.Sprintf("processor: %s %s at %s on %s is %s, %d of %d", h.MTI, h.STAN, h.TransmissionTime, strings.TrimSpace(h.Terminal), h.State,
		h.ApprovedAmount, h.Amount)
	return append([]string{line}, h.Events.lines()...)
}

func (e *Events) lines() []string {
	var lines []string
	for _, event := range e.Events {
		what := "answered " + event.Code
		if event.Code == "" {
			what = "not taken notice of"
		}
		if event.Replacement > 0 {
			what = fmt.Sprintf("to %d, %s", event.Replacement, what)
		}
		lines = append(lines, sentence(fmt.Sprintf("  %s %s %s", event.At.Format(clock), event.MTI, what), strings.Join(event.Effects, " ")))
	}
	if e.MoreEvents > 0 {
		lines = append(lines, fmt.Sprintf("  and %d more", e.MoreEvents))
	}
	return lines
}
