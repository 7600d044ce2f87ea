package acquirer_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"acquirerd/acquirer"
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

func TestAKeySeenBeforeIsNotSentAgain(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		req := w.request()
		if first, ok := w.ask(req, delivered); !ok || code(first) != "00" {
			t.Fatalf("got %v", first.Answer)
		}
		w.restart()
		second, ok := w.ask(req, func(acquirer.Result) error { return nil })
		if !ok || code(second) != "94" || len(w.bank.seen) != 1 {
			t.Errorf("got %v, %d sent", second.Answer, len(w.bank.seen))
		}
	})
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
			go func() { _, _ = w.desk.Authorize(t.Context(), req) }()
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
		{"not found ends it", []func() (string, error){func() (string, error) { return "25", nil }}, 1, journal.StateAcknowledged},
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
			})
		})
	}
}

func TestAReversalWaitsForTheHSMAndForALink(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.bank.answer = func(*messages.Message) (string, error) { return "00", conn.ErrTimeout }
		w.ask(w.request(), delivered)
		w.ask(w.request(), delivered)
		synctest.Wait()
		w.rest()
		w.check()

		w.vault.(*vault).err = hsm.ErrUnavailable
		w.restartKeeping()
		w.bank.down = true
		w.rest()
		if n := len(w.bank.reversals); n != 2 {
			t.Errorf("%d reversals", n)
		}
	})
}

// restartKeeping is a stop and a start with the same vault.
func (w *world) restartKeeping() { w.stop(); w.start() }

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

func TestALateApprovalChangesNothing(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.bank.answer = func(*messages.Message) (string, error) { return "00", conn.ErrTimeout }
		req := w.request()
		w.ask(req, delivered)
		late := messages.NewAnswer(req.Message, "00")
		w.desk.Inbound(t.Context(), "bank", late)
		w.desk.Inbound(t.Context(), "bank", messages.New("0800"))
		w.rest()
		w.check()
		if len(w.bank.reversals) != 1 {
			t.Errorf("%d reversals", len(w.bank.reversals))
		}
	})
}

var _ acquirer.Vault = (*vault)(nil)
