package acquirer_test

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
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

// The steps of what the switch does, in any order.
const (
	stepNext = iota
	stepFind
	stepProtect
	stepBegin
	stepSend
	stepFinish
	stepAnswer
	stepSealRest
	stepAccept
	stepBar
	stepOwe
	stepHear
	stepOwing
	stepOpenPAN
	stepOpenRest
	stepAttempt
	stepReverse
	stepSettle
	stepUnfinished
	stepCreditors
	stepRetry
	steps
)

var stepNames = [steps]string{"next", "find", "protect", "begin", "send", "finish", "answer", "seal_rest", "accept", "bar", "owe", "hear", "owing",
	"open_pan", "open_rest", "attempt", "reverse", "settle", "unfinished", "creditors", "retry"}

var errInjected = errors.New("injected fault")

// A fault strikes once, at one step.
type fault struct {
	step    int
	done    bool // the step was done before it failed
	crashes bool // the process ends there
	waits   atomic.Bool
	struck  atomic.Bool
}

// strike reports whether the step must fail, and what happens before.
func (f *fault) strike(step int, do func()) bool {
	if f.step != step || f.waits.Load() || !f.struck.CompareAndSwap(false, true) {
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

func (r faultyRecorder) Find(ctx context.Context, upstream, key string) (journal.Found, bool, error) {
	if r.strike(stepFind, func() {}) {
		return journal.Found{}, false, errInjected
	}
	return r.Recorder.Find(ctx, upstream, key)
}

func (r faultyRecorder) Accept(ctx context.Context, in journal.Intent, answer messages.Reply) (journal.TransactionID, error) {
	if r.strike(stepAccept, func() { _, _ = r.Recorder.Accept(ctx, in, answer) }) {
		return 0, fmt.Errorf("%w: %w", journal.ErrFailed, errInjected)
	}
	return r.Recorder.Accept(ctx, in, answer)
}

func (r faultyRecorder) Bar(ctx context.Context, barred journal.Barred) error {
	if r.strike(stepBar, func() { _ = r.Recorder.Bar(ctx, barred) }) {
		return fmt.Errorf("%w: %w", journal.ErrFailed, errInjected)
	}
	return r.Recorder.Bar(ctx, barred)
}

func (r faultyRecorder) Owe(ctx context.Context, of journal.Reversing) (journal.Reversal, error) {
	if r.strike(stepOwe, func() { _, _ = r.Recorder.Owe(ctx, of) }) {
		return journal.Reversal{}, errInjected
	}
	return r.Recorder.Owe(ctx, of)
}

func (r faultyRecorder) Hear(ctx context.Context, hearing journal.Hearing) (journal.Heard, error) {
	if r.strike(stepHear, func() { _, _ = r.Recorder.Hear(ctx, hearing) }) {
		return journal.Heard{}, errInjected
	}
	return r.Recorder.Hear(ctx, hearing)
}

func (r faultyRecorder) Owing(ctx context.Context, id journal.OwedID) (journal.Owed, error) {
	if r.strike(stepOwing, func() {}) {
		return journal.Owed{}, errInjected
	}
	return r.Recorder.Owing(ctx, id)
}

func (r faultyRecorder) Unfinished(ctx context.Context) ([]*journal.Ticket, error) {
	if r.strike(stepUnfinished, func() {}) {
		return nil, errInjected
	}
	return r.Recorder.Unfinished(ctx)
}

func (r faultyRecorder) Creditors(ctx context.Context) ([]string, error) {
	if r.strike(stepCreditors, func() {}) {
		return nil, errInjected
	}
	return r.Recorder.Creditors(ctx)
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

func (r faultyRecorder) Retry(ctx context.Context, ticket *journal.Ticket, declined journal.Outcome, in journal.Intent) (*journal.Ticket, error) {
	if r.strike(stepRetry, func() { _, _ = r.Recorder.Retry(ctx, ticket, declined, in) }) {
		return nil, fmt.Errorf("%w: %w", journal.ErrFailed, errInjected)
	}
	return r.Recorder.Retry(ctx, ticket, declined, in)
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

func (v faultyVault) SealRest(ctx context.Context, rest []byte) (card.SealedRest, error) {
	if v.strike(stepSealRest, func() { _, _ = v.Vault.SealRest(ctx, rest) }) {
		return card.SealedRest{}, hsm.ErrUnavailable
	}
	return v.Vault.SealRest(ctx, rest)
}

func (v faultyVault) OpenRest(ctx context.Context, rest card.SealedRest) ([]byte, error) {
	if v.strike(stepOpenRest, func() { _, _ = v.Vault.OpenRest(ctx, rest) }) {
		return nil, hsm.ErrUnavailable
	}
	return v.Vault.OpenRest(ctx, rest)
}

// authorizing are the steps of an authorization and of the payment of its reversal.
var authorizing = []int{stepNext, stepProtect, stepBegin, stepSend, stepFinish, stepAnswer, stepOwing, stepOpenPAN, stepAttempt,
	stepReverse, stepSettle}

// The failure table: each step fails, or fails although it was done, and the process goes on, or crashes and reopens.
func TestFailureTable(t *testing.T) {
	for _, step := range authorizing {
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
	if !f.struck.Load() && slices.Index(authorizing, f.step) <= slices.Index(authorizing, stepAnswer) {
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

// A duty is what an upstream does about one transaction: it goes on until it is answered, over all that fails.
type duty struct {
	name string
	// prepare is done before the fault can strike.
	prepare func(w *world) acquirer.Request
	// message is then sent, as a repeat from the second time on, until it is answered with one of the codes.
	message func(req acquirer.Request) acquirer.Request
	serve   func(s *acquirer.Switch, ctx context.Context, v *acquirer.Visit) (acquirer.Result, error)
	codes   []string
	steps   []int  // that it must pass
	want    string // what the bank has of the transaction at rest, "" for nothing
}

var (
	reverse = (*acquirer.Switch).Reverse
	advise  = (*acquirer.Switch).Advise
)

var duties = []duty{
	{name: "a repeat of an approval", prepare: approvedBefore, message: again, serve: (*acquirer.Switch).Authorize, codes: []string{"00"},
		steps: []int{stepFind, stepOpenPAN}, want: "held"},
	{name: "a reversal of an approval", prepare: approvedBefore, message: func(r acquirer.Request) acquirer.Request { return reversalOf(r, "0420") },
		serve: reverse, codes: []string{"00"}, steps: []int{stepFind, stepOwe, stepOwing, stepOpenPAN, stepAttempt, stepReverse, stepSettle},
		want: "reversed"},
	{name: "a reversal request of an approval", prepare: approvedBefore,
		message: func(r acquirer.Request) acquirer.Request { return reversalOf(r, "0400") },
		serve:   reverse, codes: []string{"00"}, steps: []int{stepFind, stepOwe, stepOwing, stepOpenPAN, stepAttempt, stepReverse, stepSettle},
		want: "reversed"},
	{name: "a reversal of what never came", prepare: func(w *world) acquirer.Request { return named(w.request()) },
		message: func(r acquirer.Request) acquirer.Request { return reversalOf(r, "0420") },
		serve:   reverse, codes: []string{"25"}, steps: []int{stepFind, stepBar}},
	{name: "a reversal of an advice", prepare: advisedBefore, message: func(r acquirer.Request) acquirer.Request { return reversalOf(r, "0420") },
		serve: reverse, codes: []string{"00"}, steps: []int{stepFind, stepOwe, stepOwing, stepOpenPAN, stepOpenRest, stepAttempt, stepReverse, stepSettle},
		want: "reversed"},
	{name: "an advice", prepare: func(w *world) acquirer.Request { return w.fullAdvice() }, message: func(r acquirer.Request) acquirer.Request { return r },
		serve: advise, codes: []string{"00"},
		steps: []int{stepNext, stepFind, stepProtect, stepSealRest, stepAccept, stepOwing, stepOpenPAN, stepOpenRest, stepAttempt, stepSend, stepSettle},
		want:  "held"},
}

// fullAdvice is an advice with something to seal.
func (w *world) fullAdvice() acquirer.Request {
	advice := w.advice()
	advice.Message.SetSensitive(accountFrom, "ACCOUNT")
	return advice
}

func approvedBefore(w *world) acquirer.Request {
	req := named(w.request())
	if first, ok := w.ask(req, delivered); !ok || first.Outcome != journal.Approved {
		w.t.Fatalf("got %v", first.Answer)
	}
	return req
}

func advisedBefore(w *world) acquirer.Request {
	w.bank.mend(false) // so that the advice is still owed when its reversal comes
	advice := w.fullAdvice()
	if answer := w.advise(advice); codeOf(answer) != "00" {
		w.t.Fatalf("got %v", answer)
	}
	return advice
}

// The failure table of what upstreams send besides requests: repeats, reversals and advices, and of what is forwarded because of them.
func TestFailureTableOfDuties(t *testing.T) {
	for _, d := range duties {
		for step := range steps {
			for _, done := range []bool{false, true} {
				for _, crashes := range []bool{false, true} {
					t.Run(fmt.Sprintf("%s: %s fails, done %v, crashes %v", d.name, stepNames[step], done, crashes), func(t *testing.T) {
						synctest.Test(t, func(t *testing.T) { d.over(t, &fault{step: step, done: done, crashes: crashes}) })
					})
				}
			}
		}
	}
}

// over does a duty over a fault.
func (d duty) over(t *testing.T, f *fault) {
	w := newWorld(t)
	w.recorder = func(r acquirer.Recorder) acquirer.Recorder { return faultyRecorder{r, f} }
	w.vault = faultyVault{&vault{}, f}
	strikes := func(step int) func(*messages.Message) (string, error) {
		return func(*messages.Message) (string, error) {
			switch {
			case !f.strike(step, func() {}):
				return "00", nil
			case f.done:
				return "00", conn.ErrTimeout
			}
			return "", conn.ErrTimeout
		}
	}
	w.bank.answer, w.bank.reversal = strikes(stepSend), strikes(stepReverse)
	f.waits.Store(true)
	w.start()
	req := d.prepare(w)
	f.waits.Store(false)
	w.bank.mend(true)
	message := d.message(req)
	message.Key = ""
	if message.Message.MTI.Class() != messages.Reversal {
		message = named(message)
	}
	answered := ""
	for try := 0; !slices.Contains(d.codes, answered) && try < 6; try++ {
		if try > 0 {
			message = again(message)
		}
		answer, failed := w.serve(d, message)
		answered = codeOf(answer)
		if failed {
			w.restart()
		}
		<-time.After(5 * time.Second)
	}
	if !slices.Contains(d.codes, answered) {
		t.Errorf("answered %s at last", answered)
	}
	<-time.After(time.Minute)
	w.restart()
	w.rest()
	if !f.struck.Load() && slices.Contains(d.steps, f.step) {
		t.Error("the fault did not strike")
	}
	row := w.only()
	if hold := w.bank.holds[row.STAN+row.TransmissionTime]; hold != d.want {
		t.Errorf("the bank has %q, want %q: %+v", hold, d.want, row)
	}
	if row.Owed == journal.StateOwed || row.Advice == journal.StateOwed || row.Outcome == "" {
		t.Errorf("not at rest: %+v", row)
	}
	w.stop()
}

// serve hands a message to the switch in a goroutine that may crash. failed says that the process must start again.
func (w *world) serve(d duty, req acquirer.Request) (answer *messages.Message, failed bool) {
	done := make(chan struct{})
	failed = true
	go func() {
		defer close(done)
		budget, release := w.budget(30 * time.Second)
		defer release()
		result, err := d.serve(w.desk, budget, w.desk.Admit(req))
		if err != nil {
			return
		}
		failed = false
		if answer = result.Answer; answer != nil {
			w.desk.Delivered(result)
		}
	}()
	<-done
	return answer, failed
}

// The failure table of a start: it fails whole, or gives every open transaction its reversal.
func TestFailureTableOfRecovery(t *testing.T) {
	for _, step := range []int{stepUnfinished, stepFinish, stepCreditors} {
		for _, done := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s fails, done %v", stepNames[step], done), func(t *testing.T) {
				inWorld(t, func(t *testing.T, w *world) {
					for range 3 {
						w.leaveOpen()
					}
					w.stop()
					f := &fault{step: step, done: done}
					w.recorder = func(r acquirer.Recorder) acquirer.Recorder { return faultyRecorder{r, f} }
					w.fails = true
					w.start()
					if !f.struck.Load() || w.recovered == nil {
						t.Errorf("struck %v, recovery %v", f.struck.Load(), w.recovered)
					}
					w.fails = false
					w.restart()
					w.rest()
					rows, err := w.journal.Transactions(t.Context(), journal.Filter{})
					if err != nil || len(rows) != 3 {
						t.Fatalf("%d rows, %v", len(rows), err)
					}
					for _, row := range rows {
						if row.Outcome != journal.Unknown || row.Owed != journal.StateAcknowledged {
							t.Errorf("got %+v", row)
						}
					}
				})
			})
		}
	}
}

// A late approval that ends a rest must be recorded, or come again; it is the only account of a hold.
func TestFailureTableOfALateApproval(t *testing.T) {
	for _, done := range []bool{false, true} {
		t.Run(fmt.Sprintf("hear fails, done %v", done), func(t *testing.T) {
			inWorld(t, func(t *testing.T, w *world) {
				w.stop()
				f := &fault{step: stepHear, done: done}
				w.recorder = func(r acquirer.Recorder) acquirer.Recorder { return faultyRecorder{r, f} }
				w.start()
				w.bank.answer = func(*messages.Message) (string, error) { return "51", nil }
				w.ask(named(w.request()), delivered)
				row := w.only()
				w.bank.holds[row.STAN+row.TransmissionTime] = "held"
				late := messages.New("0110")
				late.Set(messages.STAN, row.STAN)
				late.Set(messages.TransmissionTime, row.TransmissionTime)
				late.Set(messages.ResponseCode, "00")
				w.desk.Inbound(t.Context(), "bank", conn.Unasked{Message: late, Arrival: conn.Second})
				w.restart()
				if !done { // the store has failed before it wrote: the answer is lost with the process, unless the processor sends it again
					w.desk.Inbound(t.Context(), "bank", conn.Unasked{Message: late, Arrival: conn.Late})
				}
				w.rest()
				if !f.struck.Load() || w.bank.holds[row.STAN+row.TransmissionTime] != "reversed" {
					t.Errorf("struck %v, bank %v", f.struck.Load(), w.bank.holds)
				}
			})
		})
	}
}
