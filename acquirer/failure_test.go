package acquirer_test

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"acquirerd/acquirer"
	"acquirerd/card"
	"acquirerd/conn"
	"acquirerd/hsm"
	"acquirerd/journal"
	"acquirerd/messages"
)

// The steps of an authorization and of the payment of a reversal, in order.
const (
	stepNext = iota
	stepProtect
	stepBegin
	stepSend
	stepFinish
	stepAnswer
	stepOpenPAN
	stepAttempt
	stepReverse
	stepSettle
	steps
)

var stepNames = [steps]string{"next", "protect", "begin", "send", "finish", "answer", "open_pan", "attempt", "reverse", "settle"}

var errInjected = errors.New("injected fault")

// A fault strikes once, at one step.
type fault struct {
	step    int
	done    bool // the step was done before it failed
	crashes bool // the process ends there
	struck  atomic.Bool
}

// strike reports whether the step must fail, and what happens before.
func (f *fault) strike(step int, do func()) bool {
	if f.step != step || !f.struck.CompareAndSwap(false, true) {
		return false
	}
	if f.done {
		do()
	}
	if f.crashes {
		runtime.Goexit() // nothing after this line of the switch happens, in this goroutine
	}
	return true
}

type faultyRecorder struct {
	acquirer.Recorder
	*fault
}

func (r faultyRecorder) Next(ctx context.Context, endpoint string, at time.Time) (n messages.Numbers, err error) {
	if r.strike(stepNext, func() { _, err = r.Recorder.Next(ctx, endpoint, at) }) {
		return messages.Numbers{}, errInjected
	}
	return r.Recorder.Next(ctx, endpoint, at)
}

func (r faultyRecorder) Begin(ctx context.Context, intent journal.Intent) (*journal.Ticket, error) {
	if r.strike(stepBegin, func() { _, _ = r.Recorder.Begin(ctx, intent) }) {
		return nil, errInjected
	}
	return r.Recorder.Begin(ctx, intent)
}

func (r faultyRecorder) Finish(ctx context.Context, ticket *journal.Ticket, outcome journal.Outcome) error {
	if r.strike(stepFinish, func() { _ = r.Recorder.Finish(ctx, ticket, outcome) }) {
		return errInjected
	}
	return r.Recorder.Finish(ctx, ticket, outcome)
}

func (r faultyRecorder) Attempt(ctx context.Context, owed journal.OwedID, own journal.Numbers) (*journal.Ticket, error) {
	if r.strike(stepAttempt, func() { _, _ = r.Recorder.Attempt(ctx, owed, own) }) {
		return nil, errInjected
	}
	return r.Recorder.Attempt(ctx, owed, own)
}

func (r faultyRecorder) Settle(ctx context.Context, ticket *journal.Ticket, s journal.Settlement) error {
	if r.strike(stepSettle, func() { _ = r.Recorder.Settle(ctx, ticket, s) }) {
		return errInjected
	}
	return r.Recorder.Settle(ctx, ticket, s)
}

type faultyVault struct {
	acquirer.Vault
	*fault
}

func (v faultyVault) Protect(ctx context.Context, c hsm.Card) (hsm.Protected, error) {
	if v.strike(stepProtect, func() { _, _ = v.Vault.Protect(ctx, c) }) {
		return hsm.Protected{}, hsm.ErrUnavailable
	}
	return v.Vault.Protect(ctx, c)
}

func (v faultyVault) OpenPAN(ctx context.Context, sealed card.SealedPAN) (card.PAN, error) {
	if v.strike(stepOpenPAN, func() { _, _ = v.Vault.OpenPAN(ctx, sealed) }) {
		return card.PAN{}, hsm.ErrUnavailable
	}
	return v.Vault.OpenPAN(ctx, sealed)
}

// The failure table: each step fails, or fails although it was done, and the process goes on, or crashes and reopens.
func TestFailureTable(t *testing.T) {
	for step := range steps {
		for _, done := range []bool{false, true} {
			for _, crashes := range []bool{false, true} {
				for _, behaviour := range []string{"approves", "declines", "does not answer"} {
					name := fmt.Sprintf("%s fails, done %v, crashes %v, bank %s", stepNames[step], done, crashes, behaviour)
					t.Run(name, func(t *testing.T) {
						synctest.Test(t, func(t *testing.T) {
							strikeOnce(t, &fault{step: step, done: done, crashes: crashes}, behaviour)
						})
					})
				}
			}
		}
	}
}

func strikeOnce(t *testing.T, f *fault, behaviour string) {
	w := newWorld(t)
	w.recorder = func(r acquirer.Recorder) acquirer.Recorder { return faultyRecorder{r, f} }
	w.vault = faultyVault{&vault{}, f}
	decide := map[string]func() (string, error){
		"approves":        func() (string, error) { return "00", nil },
		"declines":        func() (string, error) { return "51", nil },
		"does not answer": func() (string, error) { return "00", conn.ErrTimeout },
	}[behaviour]
	w.bank.answer = func(*messages.Message) (code string, err error) {
		if f.strike(stepSend, func() { code, err = decide() }) {
			return code, conn.ErrTimeout
		}
		return decide()
	}
	w.bank.reversal = func(*messages.Message) (string, error) {
		if f.strike(stepReverse, func() {}) {
			if f.done {
				return "00", conn.ErrTimeout
			}
			return "", conn.ErrTimeout
		}
		return "00", nil
	}
	w.start()
	first := w.request()
	var untold []string
	_, answered := w.ask(first, func(result acquirer.Result) error {
		tell := func() { w.told[first.Message.Get(messages.STAN)] = result.Answer.Get(messages.ResponseCode) }
		if f.strike(stepAnswer, tell) {
			if f.done {
				return nil
			}
			return errInjected
		}
		return nil
	})
	<-time.After(time.Minute)
	// Whatever happened, the process is started again, recovers, and pays what it owes. Only where it ended after the record and before
	// the answer can an approval stand that the upstream was not told of.
	recorded := f.step == stepFinish && f.done || f.step == stepAnswer && f.crashes
	if !answered && recorded && behaviour == "approves" {
		untold = append(untold, first.Message.Get(messages.STAN))
	}
	w.restart()
	w.rest()
	if !f.struck.Load() && f.step <= stepAnswer {
		t.Error("the fault did not strike")
	}
	w.check(untold...)

	// And it works again.
	w.bank.answer = func(*messages.Message) (string, error) { return "00", nil }
	if result, ok := w.ask(w.request(), delivered); !ok || result.Answer.Get(messages.ResponseCode) != "00" {
		t.Errorf("after the fault: answered %v, %v", ok, result.Answer)
	}
	w.check(untold...)
	w.stop()
}
