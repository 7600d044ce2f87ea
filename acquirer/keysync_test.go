package acquirer_test

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"acquirerd/acquirer"
	"acquirerd/card"
	"acquirerd/conn"
	"acquirerd/hsm"
	"acquirerd/journal"
	"acquirerd/messages"
	"acquirerd/specs"
)

// A zonedVault is a vault whose zone key of the bank has versions: a PIN block ends with that which it is under.
type zonedVault struct {
	vault
	mu       sync.Mutex
	version  int
	previous bool  // the one before may still be used
	retry    error // of what asks for the previous one
	asked    []int // versions, in the order of calls; 0 for one that failed
}

func (v *zonedVault) Protect(ctx context.Context, c hsm.Card) (hsm.Protected, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	version := v.version
	protected, err := v.vault.Protect(ctx, hsm.Card{PAN: c.PAN})
	switch {
	case err != nil || c.PINBlock.IsZero():
		return protected, err
	case c.Previous && !v.previous:
		err = hsm.ErrNoPreviousKey
	case c.Previous && v.retry != nil:
		err = v.retry
	case c.Previous:
		version--
	}
	if err != nil {
		v.asked = append(v.asked, 0)
		return hsm.Protected{}, err
	}
	v.asked = append(v.asked, version)
	protected.KeyVersion = version
	protected.PINBlock, err = card.NewPINBlock(fmt.Appendf(nil, "PIN key%d", version))
	return protected, err
}

// changeTo is a key change.
func (v *zonedVault) changeTo(version int) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.version, v.previous = version, true
}

// syncing is iso87-ascii of a bank that says by 63 that it cannot read a PIN.
var syncing = sync.OnceValues(func() (*messages.Codec, error) {
	text, err := os.ReadFile("../specs/iso87-ascii.yaml")
	if err != nil {
		return nil, err
	}
	dialect, err := specs.Parse(bytes.Replace(text, []byte("\npartial:"), []byte("\nkey_sync: [\"63\"]\npartial:"), 1))
	return messages.NewCodec(dialect), err
})

// newSyncingWorld is a world whose bank has the zone key of one version, and no other.
func newSyncingWorld(t testing.TB, ours, theirs int) (*world, *zonedVault) {
	t.Helper()
	w := newWorld(t)
	dialect, err := syncing()
	if err != nil {
		t.Fatal(err)
	}
	v := &zonedVault{version: ours, previous: ours > 1}
	w.dialect, w.vault = dialect, v
	w.bank.answer = reads(t, func() int { return theirs })
	return w, v
}

// reads is a bank that approves what has a PIN block under its key, and declines with 63 what is under another.
func reads(t testing.TB, version func() int) func(*messages.Message) (string, error) {
	return func(m *messages.Message) (string, error) {
		block, err := m.PINBlock()
		if err != nil {
			t.Error(err)
		}
		if string(block.Reveal()) == fmt.Sprintf("PIN key%d", version()) {
			return "00", nil
		}
		return "63", nil
	}
}

// rows are the transactions on record, the first one first.
func (w *world) rows() []journal.Transaction {
	w.t.Helper()
	rows, err := w.journal.Transactions(w.t.Context(), journal.Filter{Limit: 100})
	if err != nil {
		w.t.Fatal(err)
	}
	slices.SortFunc(rows, func(a, b journal.Transaction) int { return int(a.ID - b.ID) })
	return rows
}

// The bank has not changed its key yet, or was ahead of us: what it cannot read is asked for once more, and approved. The record has a decline
// and an approval, each under its own numbers, and the upstream knows of one.
func TestAPINIsAskedForAgainUnderTheOtherKey(t *testing.T) {
	for name, test := range map[string]struct {
		ours, theirs int
		after        int  // our version once the first was declined
		over         bool // the overlap of the one before that
		asked        []int
	}{
		"the bank has the key before":                                  {ours: 3, theirs: 2, after: 3, asked: []int{3, 2}},
		"the key was changed while it was under way":                   {ours: 2, theirs: 3, after: 3, asked: []int{2, 2, 3}},
		"the key was changed twice while it was under way":             {ours: 2, theirs: 4, after: 4, asked: []int{2, 3, 4}},
		"the key was changed often while it was under way":             {ours: 1, theirs: 7, after: 7, asked: []int{1, 6, 7}},
		"the key was changed, and the one before may not be used more": {ours: 2, theirs: 3, after: 3, over: true, asked: []int{2, 0, 3}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w, v := newSyncingWorld(t, test.ours, test.theirs)
				read := w.bank.answer
				w.bank.answer = func(m *messages.Message) (string, error) {
					v.changeTo(test.after)
					v.mu.Lock()
					v.previous = !test.over
					v.mu.Unlock()
					return read(m)
				}
				w.start()
				req := named(w.request())
				result, ok := w.ask(req, delivered)
				if !ok || codeOf(result.Answer) != "00" || result.Outcome != journal.Approved {
					t.Fatalf("answered %v, %v", ok, result.Answer)
				}
				if !slices.Equal(v.asked, test.asked) {
					t.Errorf("blocks under %v, want %v", v.asked, test.asked)
				}
				rows := w.rows()
				if len(rows) != 2 || rows[0].Outcome != journal.Declined || rows[0].Reason != "key_sync" || rows[0].UpstreamKey != "" ||
					rows[1].Outcome != journal.Approved || rows[1].UpstreamKey != req.Key || rows[0].STAN == rows[1].STAN || rows[0].RRN == rows[1].RRN {
					t.Errorf("recorded %+v", rows)
				}
				// A repeat finds the answer, and a reversal the second.
				if answer, ok := w.ask(again(req), delivered); !ok || codeOf(answer.Answer) != "00" || len(w.rows()) != 2 {
					t.Errorf("a repeat is answered %v, %v; %d rows", ok, answer.Answer, len(w.rows()))
				}
				reversal := reversalOf(req, "0420")
				reversal.Key = ""
				if answer, failed := w.serve(duty{serve: reverse}, reversal); failed || codeOf(answer) != "00" {
					t.Errorf("the reversal is answered %v", answer)
				}
				w.rest()
				if rows := w.rows(); rows[0].Owed != "" || rows[1].Owed != journal.StateAcknowledged {
					t.Errorf("reversed %+v", rows)
				}
				if got := w.metric("acquirerd_key_sync_total", "bank", "cured"); got != 1 || w.metric("acquirerd_key_sync_total") != 1 {
					t.Errorf("%v cured", got)
				}
				delete(w.told, req.Message.Get(messages.STAN)) // it knows that it has reversed it
				w.check()
				w.stop()
			})
		})
	}
}

// Where there is nothing else to try, the bank's decline is the answer, and a key is asked for, once in a while.
func TestAPINThatCannotBeAskedForAgain(t *testing.T) {
	for name, test := range map[string]struct {
		prepare func(w *world, v *zonedVault)
		budget  time.Duration
		result  string
		rows    int
		asks    int // key requests
	}{
		"no key before":              {prepare: func(_ *world, v *zonedVault) { v.previous = false }, result: "no_key", rows: 1, asks: 1},
		"the key before is no other": {prepare: func(w *world, _ *zonedVault) { w.bank.answer = reads(w.t, func() int { return 7 }) }, result: "persists", rows: 2, asks: 1},
		"the HSM is gone":            {prepare: func(_ *world, v *zonedVault) { v.retry = hsm.ErrUnavailable }, result: "failed", rows: 1},
		"no time": {budget: 5 * time.Second, result: "no_time", rows: 1, prepare: func(w *world, _ *zonedVault) {
			w.bank.answer = func(*messages.Message) (string, error) { <-time.After(2 * time.Second); return "63", nil }
		}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w, v := newSyncingWorld(t, 3, 2)
				asks := 0
				w.keys = &keyring{t: t}
				w.bank.askedKey = func() (*messages.Message, error) { asks++; return nil, conn.ErrTimeout }
				test.prepare(w, v)
				w.start()
				for range 2 {
					req := named(w.request())
					ctx, release := context.WithCancel(t.Context())
					if test.budget > 0 {
						ctx, release = w.budget(test.budget)
					}
					result, err := w.desk.Authorize(ctx, w.desk.Admit(req))
					release()
					if err != nil || codeOf(result.Answer) != "63" || result.Outcome != journal.Declined {
						t.Fatalf("answered %v, %v", result.Answer, err)
					}
					w.desk.Delivered(result)
					w.told[req.Message.Get(messages.STAN)] = "63"
				}
				synctest.Wait()
				if got := w.metric("acquirerd_key_sync_total", "bank", test.result); got != 2 || w.metric("acquirerd_key_sync_total") != 2 {
					t.Errorf("%v %s of %v", got, test.result, w.metric("acquirerd_key_sync_total"))
				}
				if rows := w.rows(); len(rows) != 2*test.rows || rows[0].Outcome != journal.Declined {
					t.Errorf("recorded %+v", rows)
				}
				if asks != test.asks {
					t.Errorf("%d keys were asked for, want %d", asks, test.asks)
				}
				<-time.After(5 * time.Minute)
				w.ask(w.request(), delivered)
				synctest.Wait()
				if test.asks > 0 && asks != test.asks+1 {
					t.Errorf("%d keys were asked for after a while", asks)
				}
				w.check()
				w.stop()
			})
		})
	}
}

// Only what has a PIN, and a code of the list, is asked for again.
func TestAnyOtherDeclineIsFinal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, _ := newSyncingWorld(t, 3, 2)
		w.bank.answer = func(*messages.Message) (string, error) { return "55", nil }
		w.start()
		if result, ok := w.ask(w.request(), delivered); !ok || codeOf(result.Answer) != "55" {
			t.Errorf("answered %v", result.Answer)
		}
		w.bank.answer = func(*messages.Message) (string, error) { return "63", nil }
		without := w.request()
		without.Message.Delete(messages.PINData)
		if result, ok := w.ask(without, delivered); !ok || codeOf(result.Answer) != "63" {
			t.Errorf("without a PIN: %v", result.Answer)
		}
		if rows := w.rows(); len(rows) != 2 || w.metric("acquirerd_key_sync_total") != 0 {
			t.Errorf("recorded %+v", rows)
		}
		w.check()
		w.stop()
	})
}

// An approval of the first request that comes after its decline is reversed under the numbers of the first, and what was told stands.
func TestALateApprovalOfWhatWasAskedForAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, _ := newSyncingWorld(t, 3, 2)
		w.start()
		if result, ok := w.ask(w.request(), delivered); !ok || codeOf(result.Answer) != "00" {
			t.Fatalf("answered %v", result.Answer)
		}
		first := w.rows()[0]
		w.bank.mu.Lock()
		w.bank.holds[first.STAN+first.TransmissionTime] = "held"
		w.bank.mu.Unlock()
		late := messages.New("0110")
		late.Set(messages.STAN, first.STAN)
		late.Set(messages.TransmissionTime, first.TransmissionTime)
		late.Set(messages.ResponseCode, "00")
		w.desk.Inbound(t.Context(), "bank", conn.Unasked{Message: late, Arrival: conn.Second})
		w.rest()
		if rows := w.rows(); rows[0].Owed != journal.StateAcknowledged || rows[1].Owed != "" {
			t.Errorf("reversed %+v", rows)
		}
		if hold := w.bank.holds[first.STAN+first.TransmissionTime]; hold != "reversed" {
			t.Errorf("the bank has %q of the first", hold)
		}
		w.stop()
	})
}

// The failure table of asking again: each step of the second fails, or fails although it was done, and the process goes on or crashes. Whatever
// happens, the bank's holds are what the upstream was told.
func TestFailureTableOfKeySync(t *testing.T) {
	for _, step := range []int{stepProtect, stepNext, stepRetry, stepSend, stepFinish, stepAnswer, stepOwing, stepOpenPAN, stepAttempt, stepReverse, stepSettle} {
		for _, done := range []bool{false, true} {
			for _, crashes := range []bool{false, true} {
				for _, behaviour := range []string{"approves", "declines", "persists", "does not answer"} {
					t.Run(fmt.Sprintf("%s fails, done %v, crashes %v, bank %s", stepNames[step], done, crashes, behaviour), func(t *testing.T) {
						synctest.Test(t, func(t *testing.T) { strikeAgain(t, &fault{step: step, done: done, crashes: crashes}, behaviour) })
					})
				}
			}
		}
	}
}

func strikeAgain(t *testing.T, f *fault, behaviour string) {
	w, v := newSyncingWorld(t, 3, 2)
	w.recorder = func(r acquirer.Recorder) acquirer.Recorder { return faultyRecorder{r, f} }
	w.vault = faultyVault{v, f}
	f.waits.Store(true)
	second := map[string]func() (string, error){
		"approves": func() (string, error) { return "00", nil }, "declines": func() (string, error) { return "51", nil },
		"persists":        func() (string, error) { return "63", nil },
		"does not answer": func() (string, error) { return "00", conn.ErrTimeout },
	}[behaviour]
	requests := 0
	w.bank.answer = func(*messages.Message) (code string, err error) {
		if requests++; requests == 1 {
			f.waits.Store(false)
			return "63", nil
		}
		if f.strike(stepSend, func() { code, err = second() }) {
			return code, conn.ErrTimeout
		}
		return second()
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
	w.bank.unknown = true // a crash before the send owes the reversal of what never came
	w.start()
	first := w.request()
	stan := first.Message.Get(messages.STAN)
	_, answered := w.ask(first, func(result acquirer.Result) error {
		if f.strike(stepAnswer, func() { w.told[stan] = codeOf(result.Answer) }) && !f.done {
			return errInjected
		}
		return nil
	})
	<-time.After(time.Minute)
	var untold []string
	if recorded := f.step == stepFinish && f.done || f.step == stepAnswer && f.crashes; !answered && recorded && behaviour == "approves" {
		untold = append(untold, stan)
	}
	w.restart()
	w.rest()
	if paid := slices.Contains([]int{stepOwing, stepOpenPAN, stepAttempt, stepReverse, stepSettle}, f.step); !f.struck.Load() && !paid {
		t.Error("the fault did not strike")
	}
	w.check(untold...)
	if requests > 2 {
		t.Errorf("the bank was asked %d times", requests)
	}
	keyed := 0
	for _, row := range w.rows() {
		if row.UpstreamKey != "" {
			keyed++
		}
	}
	if keyed != 1 {
		t.Errorf("%d transactions have the upstream's key", keyed)
	}
	w.bank.answer = func(*messages.Message) (string, error) { return "00", nil }
	if result, ok := w.ask(w.request(), delivered); !ok || codeOf(result.Answer) != "00" {
		t.Errorf("after the fault: answered %v, %v", ok, result.Answer)
	}
	w.check(untold...)
	w.stop()
}

// What the upstream says of its request while the second is under way waits for that: a repeat is given its answer, and a reversal undoes it and not the first.
func TestARepeatAndAReversalComeWhileThePINIsAskedForAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, _ := newSyncingWorld(t, 3, 2)
		read, requests := w.bank.answer, 0
		w.bank.answer = func(m *messages.Message) (string, error) {
			if requests++; requests == 2 {
				<-time.After(5 * time.Second)
			}
			return read(m)
		}
		w.start()
		req := named(w.request())
		reversal := reversalOf(req, "0420")
		reversal.Key = ""
		var codes [3]string
		var all sync.WaitGroup
		all.Go(func() { result, _ := w.ask(req, delivered); codes[0] = codeOf(result.Answer) })
		all.Go(func() {
			<-time.After(time.Second)
			result, err := w.desk.Authorize(t.Context(), w.desk.Admit(again(req)))
			if err != nil {
				t.Error(err)
				return
			}
			codes[1] = codeOf(result.Answer)
			w.desk.Delivered(result)
		})
		all.Go(func() {
			<-time.After(2 * time.Second)
			answer, _ := w.serve(duty{serve: reverse}, reversal)
			codes[2] = codeOf(answer)
		})
		all.Wait()
		if codes != [3]string{"00", "00", "00"} || requests != 2 {
			t.Errorf("answered %v; the bank was asked %d times", codes, requests)
		}
		w.rest()
		if rows := w.rows(); len(rows) != 2 || rows[0].Owed != "" || rows[1].Owed != journal.StateAcknowledged {
			t.Errorf("reversed %+v", rows)
		}
		delete(w.told, req.Message.Get(messages.STAN)) // it knows that it has reversed it
		w.check()
		w.stop()
	})
}
