package acquirer_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"acquirerd/acquirer"
	"acquirerd/card"
	"acquirerd/conn"
	"acquirerd/hsm"
	"acquirerd/journal"
	"acquirerd/messages"
)

// inWorld runs a test beside a bank in a bubble of fake time.
func inWorld(t *testing.T, test func(t *testing.T, w *world)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.start()
		test(t, w)
		w.stop()
	})
}

func code(result acquirer.Result) string { return result.Answer.Get(messages.ResponseCode) }

func TestTheUpstreamIsAnswered(t *testing.T) {
	for _, row := range []struct {
		name      string
		bank      func() (string, error)
		want      string
		outcome   journal.Kind
		reversals int
	}{
		{"approval", func() (string, error) { return "00", nil }, "00", journal.Approved, 0},
		{"decline", func() (string, error) { return "51", nil }, "51", journal.Declined, 0},
		{"timeout after approval", func() (string, error) { return "00", conn.ErrTimeout }, "91", journal.Unknown, 1},
		{"mismatch", func() (string, error) { return "00", conn.ErrMismatch }, "91", journal.Unknown, 1},
		{"undecodable", func() (string, error) { return "00", conn.ErrUndecodable }, "91", journal.Unknown, 1},
		{"not sent", func() (string, error) { return "", conn.ErrNotSent }, "91", journal.NotSent, 0},
		{"not proven", func() (string, error) { return "00", fmt.Errorf("%w: %w", conn.ErrMAC, messages.ErrMAC) }, "91", journal.Unknown, 1},
		{"a decline that is not proven", func() (string, error) { return "51", conn.ErrMAC }, "91", journal.Unknown, 1},
		{"not sent for want of a MAC", func() (string, error) { return "", fmt.Errorf("%w: %w", conn.ErrNotSent, messages.ErrNoMAC) }, "96", journal.NotSent, 0},
		{"does not fit the dialect", func() (string, error) {
			return "", fmt.Errorf("%w: %w", conn.ErrNotSent, &messages.FormatError{Element: messages.Merchant, Rule: "is odd"})
		}, "30", journal.NotSent, 0},
	} {
		t.Run(row.name, func(t *testing.T) {
			inWorld(t, func(t *testing.T, w *world) {
				w.bank.answer = func(*messages.Message) (string, error) { return row.bank() }
				req := w.request()
				result, ok := w.ask(req, delivered)
				if !ok || code(result) != row.want || result.Outcome != row.outcome {
					t.Fatalf("got %v %v %v", ok, result.Outcome, result.Answer)
				}
				for _, e := range []messages.Element{messages.STAN, messages.RRN, messages.TransmissionTime, messages.Terminal} {
					if got, want := result.Answer.Get(e), req.Message.Get(e); got != want {
						t.Errorf("%v: got %q, want the upstream's %q", e, got, want)
					}
				}
				if row.want == "30" && result.Answer.Get(messages.AdditionalResponse) != "042" {
					t.Errorf("DE 44 is %q", result.Answer.Get(messages.AdditionalResponse))
				}
				w.rest()
				w.check()
				if len(w.bank.reversals) != row.reversals {
					t.Errorf("%d reversals, want %d", len(w.bank.reversals), row.reversals)
				}
			})
		})
	}
}

func TestWhatIsRefusedIsNeitherSentNorRecorded(t *testing.T) {
	for _, row := range []struct {
		name  string
		spoil func(w *world, req *acquirer.Request)
		want  string
	}{
		{"no route", func(_ *world, r *acquirer.Request) { r.Message.SetSensitive(messages.PAN, "6011111111111117") }, "92"},
		{"two cards", func(_ *world, r *acquirer.Request) { r.Message.SetSensitive(messages.Track2, "5555555555554444=2912") }, "30"},
		{"another card's track that is none", func(_ *world, r *acquirer.Request) { r.Message.SetSensitive(messages.Track2, "5555555555554444") }, "30"},
		{"no PAN", func(_ *world, r *acquirer.Request) { r.Message.SetSensitive(messages.PAN, "41111") }, "30"},
		{"HSM down", func(w *world, _ *acquirer.Request) { w.vault.(*vault).err = hsm.ErrUnavailable }, "96"},
		{"PIN block that is none", func(w *world, _ *acquirer.Request) { w.vault.(*vault).err = hsm.ErrPINBlock }, "55"},
		{"PIN from an upstream without a key", func(_ *world, r *acquirer.Request) { r.Upstream.PINKey = "" }, "55"},
		{"PIN block of 7 bytes", func(_ *world, r *acquirer.Request) { r.Message.SetSensitive(messages.PINData, "7 bytes") }, "55"},
		{"draining", func(w *world, _ *acquirer.Request) { w.desk.Drain() }, "96"},
	} {
		t.Run(row.name, func(t *testing.T) {
			inWorld(t, func(t *testing.T, w *world) {
				req := w.request()
				row.spoil(w, &req)
				result, ok := w.ask(req, delivered)
				if !ok || code(result) != row.want || result.Outcome != "" {
					t.Errorf("got %v %v", ok, result.Answer)
				}
				rows, err := w.journal.Transactions(t.Context(), journal.Filter{})
				if err != nil || len(rows) != 0 || len(w.bank.seen) != 0 {
					t.Errorf("%d records, %d sent, %v", len(rows), len(w.bank.seen), err)
				}
			})
		})
	}
}

func TestAFullSwitchRefusesAtOnce(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		release := make(chan struct{})
		slow := &slowVault{vault{}, release}
		w.stop()
		w.vault = slow
		w.start()
		for range 64 {
			req := w.request()
			go func() { _, _ = w.desk.Authorize(t.Context(), w.desk.Admit(req)) }()
		}
		synctest.Wait()
		if result, ok := w.ask(w.request(), delivered); !ok || code(result) != "96" {
			t.Errorf("got %v", result.Answer)
		}
		close(release)
		w.desk.Drain()
	})
}

type slowVault struct {
	vault
	release chan struct{}
}

func (v *slowVault) Protect(ctx context.Context, c hsm.Card) (hsm.Protected, error) {
	<-v.release
	return v.vault.Protect(ctx, c)
}

func TestReversals(t *testing.T) {
	for _, row := range []struct {
		name    string
		answers []func() (string, error) // of the bank to the reversal, the last one for ever
		sent    int
		state   journal.State
	}{
		{"acknowledged at once", []func() (string, error){func() (string, error) { return "00", nil }}, 1, journal.StateAcknowledged},
		{"not found ends it when the original cannot come any more", []func() (string, error){func() (string, error) { return "25", nil }}, 0, journal.StateAcknowledged},
		{"done before is true after a send without an answer", []func() (string, error){
			func() (string, error) { return "00", conn.ErrTimeout }, func() (string, error) { return "94", nil }}, 2, journal.StateAcknowledged},
		{"done before is not true if each send was answered", []func() (string, error){
			func() (string, error) { return "96", nil }, func() (string, error) { return "94", nil }}, 0, journal.StateParked},
		{"its answer is lost twice", []func() (string, error){
			func() (string, error) { return "00", conn.ErrTimeout }, func() (string, error) { return "", conn.ErrTimeout },
			func() (string, error) { return "00", nil }}, 3, journal.StateAcknowledged},
		{"the processor is unable, then able", []func() (string, error){
			func() (string, error) { return "91", nil }, func() (string, error) { return "00", nil }}, 2, journal.StateAcknowledged},
		{"poison is parked", []func() (string, error){func() (string, error) { return "30", nil }}, 1, journal.StateParked},
		{"an answer for an hour is parked", []func() (string, error){func() (string, error) { return "96", nil }}, 0, journal.StateParked},
	} {
		t.Run(row.name, func(t *testing.T) {
			inWorld(t, func(t *testing.T, w *world) {
				w.bank.answer = func(*messages.Message) (string, error) { return "00", conn.ErrTimeout }
				if strings.HasPrefix(row.name, "not found") {
					w.bank.answer = func(*messages.Message) (string, error) { return "", conn.ErrTimeout }
				}
				sent := 0
				w.bank.reversal = func(*messages.Message) (string, error) {
					sent++
					return row.answers[min(sent, len(row.answers))-1]()
				}
				w.ask(w.request(), delivered)
				<-time.After(2 * time.Hour)
				synctest.Wait()
				owed, err := w.journal.Owed(t.Context(), journal.OwedFilter{})
				if err != nil || len(owed) != 1 || owed[0].State != row.state {
					t.Fatalf("got %+v, %v", owed, err)
				}
				if row.sent != 0 && sent != row.sent {
					t.Errorf("sent %d times, want %d", sent, row.sent)
				}
				w.check()
			})
		})
	}
}

// A blindVault protects, and opens only what it is told to.
type blindVault struct {
	vault
	fault atomic.Pointer[error]
}

func (v *blindVault) OpenPAN(ctx context.Context, sealed card.SealedPAN) (card.PAN, error) {
	if fault := v.fault.Load(); fault != nil && (errors.Is(*fault, hsm.ErrUnavailable) || sealed.Ciphertext[0] == turn([]byte("5"))[0]) {
		return card.PAN{}, *fault
	}
	return v.vault.OpenPAN(ctx, sealed)
}

func inBlindWorld(t *testing.T, fault error, test func(t *testing.T, w *world, v *blindVault)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		w, v := newWorld(t), &blindVault{}
		v.fault.Store(&fault)
		w.vault = v
		w.bank.answer = func(*messages.Message) (string, error) { return "00", conn.ErrTimeout }
		w.start()
		test(t, w, v)
		w.stop()
	})
}

func TestReversalsWaitForTheHSM(t *testing.T) {
	inBlindWorld(t, hsm.ErrUnavailable, func(t *testing.T, w *world, v *blindVault) {
		w.ask(w.request(), delivered)
		w.ask(w.request(), delivered)
		w.rest()
		owed, err := w.journal.Owed(t.Context(), journal.OwedFilter{State: journal.StateOwed})
		if err != nil || len(owed) != 2 || owed[0].Attempts != 0 || len(w.bank.reversals) != 0 {
			t.Errorf("while the HSM is down: %+v, %v", owed, err)
		}
		v.fault.Store(nil)
		w.rest()
		w.check()
	})
}

func TestReversalsThatCannotBeOpenedHoldUpNoOther(t *testing.T) {
	inBlindWorld(t, hsm.ErrSealedPAN, func(t *testing.T, w *world, v *blindVault) {
		w.bank.otherCards = true
		for range 2 * w.forward.Parallel {
			req := w.request()
			req.Message.SetSensitive(messages.PAN, "5555555555554444")
			w.ask(req, delivered)
		}
		w.ask(w.request(), delivered)
		w.rest()
		owed, err := w.journal.Owed(t.Context(), journal.OwedFilter{State: journal.StateOwed})
		if err != nil || len(owed) != 2*w.forward.Parallel || owed[0].Attempts != 0 || owed[0].LastReason != "sealed_pan" {
			t.Fatalf("%d are owed, %+v, %v", len(owed), owed[0], err)
		}
		if len(w.bank.reversals) != 1 {
			t.Errorf("%d reversals went out, want the one that can be opened", len(w.bank.reversals))
		}
		v.fault.Store(nil)
		<-time.After(10 * time.Minute)
		synctest.Wait()
		w.check()
	})
}

func TestAReversalThatDoesNotFitTheDialectIsParkedAtOnce(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.bank.answer = func(*messages.Message) (string, error) { return "00", conn.ErrTimeout }
		w.bank.reversal = func(*messages.Message) (string, error) {
			return "", fmt.Errorf("%w: %w", conn.ErrNotSent, &messages.FormatError{Element: messages.OriginalData, Rule: "is odd"})
		}
		w.ask(w.request(), delivered)
		w.rest()
		owed, err := w.journal.Owed(t.Context(), journal.OwedFilter{})
		if err != nil || len(owed) != 1 || owed[0].State != journal.StateParked || owed[0].LastReason != "format" {
			t.Errorf("got %+v, %v", owed, err)
		}
	})
}

func TestAReversalThatIsNeverSentIsTriedWithGrowingPauses(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.bank.answer = func(*messages.Message) (string, error) { return "00", conn.ErrTimeout }
		tries := 0
		w.bank.reversal = func(*messages.Message) (string, error) { tries++; return "", conn.ErrNotSent }
		w.ask(w.request(), delivered)
		<-time.After(2 * time.Hour)
		synctest.Wait()
		owed, err := w.journal.Owed(t.Context(), journal.OwedFilter{})
		if err != nil || len(owed) != 1 || owed[0].State != journal.StateOwed || owed[0].Attempts != 0 {
			t.Errorf("got %+v, %v", owed, err)
		}
		if tries < 500 || tries > 2500 { // every 4 to 8 s, and the first few sooner
			t.Errorf("tried %d times in two hours", tries)
		}
	})
}

// The request is slow at the processor and is overtaken by its reversal, which is not final until the request cannot come any more.
func TestNotFoundIsNotTheEndWhileTheOriginalMayBeOnItsWay(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.bank.answer = func(*messages.Message) (string, error) { return "", conn.ErrTimeout }
		req := w.request()
		w.ask(req, delivered)
		<-time.After(10 * time.Second)
		w.bank.mu.Lock()
		for key := range w.bank.seen {
			w.bank.holds[key] = "held" // the processor commits it only now
		}
		w.bank.mu.Unlock()
		w.rest()
		w.check()
	})
}

// The request waits in a queue of the processor during an outage that is longer than NotFoundFinal. Its reversal comes first.
func TestNotFoundAfterAnOutageIsNotTheEnd(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.bank.answer = func(*messages.Message) (string, error) { return "", conn.ErrTimeout }
		w.ask(w.request(), delivered)
		w.bank.mend(false)
		<-time.After(3 * w.forward.NotFoundFinal)
		w.restart() // and the time of a crash counts no more than that of the outage
		<-time.After(3 * w.forward.NotFoundFinal)
		w.bank.mend(true)
		<-time.After(w.forward.NotFoundFinal / 2)
		w.bank.mu.Lock()
		if len(w.bank.reversals) == 0 {
			t.Error("no reversal has come: the test tests nothing")
		}
		for key := range w.bank.seen {
			w.bank.holds[key] = "held" // the processor comes to it only now
		}
		w.bank.mu.Unlock()
		w.rest()
		w.check()
	})
}

// "Not found" was heard before the outage, too: the time of the outage is still none in which the original could have come.
func TestAnOutageInterruptsTheRunOfNotFound(t *testing.T) {
	for name, cut := range map[string]func(w *world, up bool){
		"links down": func(w *world, up bool) { w.bank.mend(up) },
		"HSM down": func(w *world, up bool) {
			if w.vault.(*blindVault).fault.Store(nil); !up {
				w.vault.(*blindVault).fault.Store(&hsm.ErrUnavailable)
			}
		},
		"reversals unanswered": func(w *world, up bool) {
			w.bank.mu.Lock()
			defer w.bank.mu.Unlock()
			w.bank.reversal = func(*messages.Message) (string, error) {
				if up {
					return "00", nil // 25, while the bank does not know the original
				}
				return "", conn.ErrTimeout
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				w.vault = &blindVault{}
				w.start()
				w.bank.answer = func(*messages.Message) (string, error) { return "", conn.ErrTimeout }
				w.ask(w.request(), delivered)
				<-time.After(100 * time.Millisecond)
				cut(w, false)
				<-time.After(10 * w.forward.NotFoundFinal)
				cut(w, true)
				<-time.After(w.forward.NotFoundFinal / 2)
				w.bank.mu.Lock()
				for key := range w.bank.seen {
					w.bank.holds[key] = "held" // the processor comes to it only now
				}
				w.bank.mu.Unlock()
				w.rest()
				w.check()
				w.stop()
			})
		})
	}
}

// An outage that is short beside NotFoundFinal, and ends the run when it would be long enough: the first answer after it proves nothing.
func TestAShortOutageInterruptsTheRunOfNotFound(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.forward.NotFoundFinal = time.Minute
		w.start()
		w.bank.answer = func(*messages.Message) (string, error) { return "", conn.ErrTimeout }
		w.ask(w.request(), delivered)
		<-time.After(52 * time.Second)
		w.bank.mend(false)
		<-time.After(10 * time.Second)
		w.bank.mend(true)
		<-time.After(10 * time.Second)
		w.bank.mu.Lock()
		for key := range w.bank.seen {
			w.bank.holds[key] = "held" // the processor comes to it only now
		}
		w.bank.mu.Unlock()
		w.rest()
		w.check()
		w.stop()
	})
}

// With the pauses and ages that the config has by default, a day's outage between two attempts parks nothing that the processor ends.
func TestNotFoundAfterADayEndsAndIsNotParked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.forward = acquirer.Forwarding{RetryMin: 5 * time.Second, RetryMax: 300 * time.Second, ParkAfter: 24 * time.Hour,
			NotFoundFinal: 180 * time.Second, Poll: 500 * time.Millisecond, Parallel: 16, Rate: 1000}
		w.start()
		w.bank.answer = func(*messages.Message) (string, error) { return "", conn.ErrTimeout }
		w.bank.reversal = func(*messages.Message) (string, error) { return "", conn.ErrTimeout }
		w.ask(w.request(), delivered)
		<-time.After(5 * time.Minute) // some attempts without an answer
		w.bank.mend(false)
		<-time.After(25 * time.Hour)
		w.bank.mu.Lock()
		w.bank.reversal = func(*messages.Message) (string, error) { return "25", nil }
		w.bank.mu.Unlock()
		w.bank.mend(true)
		<-time.After(2 * time.Minute)
		synctest.Wait()
		if owed, err := w.journal.Owed(t.Context(), journal.OwedFilter{}); err != nil || len(owed) != 1 || owed[0].State != journal.StateOwed {
			t.Errorf("too early: %+v, %v", owed, err)
		}
		<-time.After(3 * time.Minute)
		synctest.Wait()
		if owed, err := w.journal.Owed(t.Context(), journal.OwedFilter{}); err != nil || len(owed) != 1 || owed[0].State != journal.StateAcknowledged {
			t.Errorf("got %+v, %v", owed, err)
		}
		w.stop()
	})
}

// What was approved is there: a processor that does not find it has not understood the reversal.
func TestNotFoundNeverEndsTheReversalOfAnUndeliveredApproval(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.bank.reversal = func(*messages.Message) (string, error) { return "25", nil }
		w.ask(w.request(), undelivered)
		<-time.After(2 * time.Hour)
		synctest.Wait()
		owed, err := w.journal.Owed(t.Context(), journal.OwedFilter{})
		if err != nil || len(owed) != 1 || owed[0].State != journal.StateParked || owed[0].LastReason != "expired" {
			t.Errorf("got %+v, %v", owed, err)
		}
	})
}

// A recorder whose debts were given their time by a clock that has been set back since.
type aheadRecorder struct{ acquirer.Recorder }

func (r aheadRecorder) Incurred(endpoint string) []journal.Debt {
	debts := r.Recorder.Incurred(endpoint)
	for i := range debts {
		debts[i].DueAt = time.Now().Add(24 * time.Hour)
	}
	return debts
}

func TestAClockThatIsSetBackHoldsUpNoReversal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.recorder = func(r acquirer.Recorder) acquirer.Recorder { return aheadRecorder{r} }
		w.start()
		w.bank.answer = func(*messages.Message) (string, error) { return "00", conn.ErrTimeout }
		w.ask(w.request(), delivered)
		<-time.After(w.forward.RetryMax + 2*w.forward.Poll)
		w.check()
		w.stop()
	})
}

func TestWhatTheUpstreamDoesNotWaitForIsNotSent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.recorder = func(r acquirer.Recorder) acquirer.Recorder { return slowRecorder{r} }
		w.start()
		budget, release := context.WithTimeout(t.Context(), 15*time.Second)
		defer release()
		result, err := w.desk.Authorize(budget, w.desk.Admit(w.request()))
		if err != nil || result.Outcome != journal.NotSent || code(result) != "91" || len(w.bank.seen) != 0 {
			t.Errorf("got %v %v, %v; %d sent", result.Outcome, result.Answer, err, len(w.bank.seen))
		}
		w.rest()
		w.check()
		w.stop()
	})
}

// A slowRecorder takes 20 s for an intent.
type slowRecorder struct{ acquirer.Recorder }

func (r slowRecorder) Begin(ctx context.Context, intent journal.Intent) (*journal.Ticket, error) {
	<-time.After(20 * time.Second)
	return r.Recorder.Begin(context.WithoutCancel(ctx), intent)
}

func TestARecoveredTransactionIsLoggedAsEveryOther(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		numbers, err := w.journal.Next(t.Context(), "bank", time.Now())
		if err != nil {
			t.Fatal(err)
		}
		request := w.request().Message
		request.Set(messages.STAN, numbers.STAN)
		if _, err := w.journal.Begin(t.Context(), journal.Intent{Upstream: "pos", Endpoint: "bank", Original: request.Original()}); err != nil {
			t.Fatal(err)
		}
		var log bytes.Buffer
		w.log = slog.New(slog.NewJSONHandler(&log, nil))
		w.restart()
		synctest.Wait() // the forwarder writes to it, too
		var line struct {
			Msg, Outcome, Reason, STAN, Endpoint string
			Transaction                          int
		}
		for text := range strings.Lines(log.String()) {
			if strings.Contains(text, `"recovered"`) {
				if err := json.Unmarshal([]byte(text), &line); err != nil {
					t.Error(err)
				}
			}
		}
		if line.Msg != "transaction" || line.Outcome != "unknown" || line.STAN != numbers.STAN || line.Endpoint != "bank" || line.Transaction != 1 {
			t.Errorf("got %+v of\n%s", line, &log)
		}
	})
}

func TestAnEndpointThatIsOwedToCannotBeLeftOut(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.bank.answer = func(*messages.Message) (string, error) { return "00", conn.ErrTimeout }
		w.bank.reversal = func(*messages.Message) (string, error) { return "", conn.ErrTimeout }
		w.ask(w.request(), delivered)
		w.restartAs("renamed", func(err error) {
			if err == nil || !strings.Contains(err.Error(), `"bank"`) {
				t.Errorf("got %v", err)
			}
		})
	})
}

// restartAs stops the switch and recovers with another endpoint's name, and then starts it again as it was.
func (w *world) restartAs(endpoint string, check func(error)) {
	w.t.Helper()
	w.stop()
	opened, err := journal.Open(journal.Config{Path: w.path, Station: "test"}, slog.New(slog.DiscardHandler), prometheus.NewRegistry())
	if err != nil {
		w.t.Fatal(err)
	}
	desk, err := acquirer.New(acquirer.Config{Journal: opened, Vault: w.vault, InFlight: 1, Forward: w.forward,
		Endpoints: []*acquirer.Endpoint{acquirer.NewEndpoint(endpoint, "", codec(w.t, "iso87-ascii"), w.bank)}},
		slog.New(slog.DiscardHandler), prometheus.NewRegistry())
	if err != nil {
		w.t.Fatal(err)
	}
	_, err = desk.Recover(w.t.Context())
	check(err)
	if err := opened.Close(); err != nil {
		w.t.Error(err)
	}
	w.start()
}

func TestOneReversalWithoutAnAnswerHoldsUpNoOther(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.bank.answer = func(*messages.Message) (string, error) { return "00", conn.ErrTimeout }
		w.bank.reversal = func(req *messages.Message) (string, error) {
			if strings.HasSuffix(req.Get(messages.STAN), "1") {
				return "", conn.ErrTimeout
			}
			return "00", nil
		}
		for range 20 {
			w.ask(w.request(), delivered)
		}
		<-time.After(time.Minute)
		synctest.Wait()
		owed, err := w.journal.Owed(t.Context(), journal.OwedFilter{State: journal.StateOwed})
		if err != nil || len(owed) != 2 {
			t.Errorf("%d are still owed, want the 2 that get no answer; %v", len(owed), err)
		}
	})
}

var _ acquirer.Vault = (*vault)(nil)
