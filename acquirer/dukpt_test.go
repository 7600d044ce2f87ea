package acquirer_test

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"acquirerd/acquirer"
	"acquirerd/hsm"
	"acquirerd/journal"
	"acquirerd/messages"
	"acquirerd/specs"
)

// A dukptVault sees what the switch gives it to translate.
type dukptVault struct {
	vault
	cards []hsm.Card
}

func (v *dukptVault) Protect(ctx context.Context, c hsm.Card) (hsm.Protected, error) {
	v.cards = append(v.cards, c)
	return v.vault.Protect(ctx, c)
}

// underDUKPT is a request of an upstream whose devices have an initial key each, with a key serial number.
func underDUKPT(w *world, ksn string) acquirer.Request {
	req := w.request()
	dialect := *req.Upstream.Codec.Dialect()
	dialect.KeySerialNumber = specs.KeySerialNumber{Element: 62, Form: specs.KeySerialNumberHex}
	req.Upstream.PINKey, req.Upstream.BDKKey, req.Upstream.Codec = "", "bdk-pos", messages.NewCodec(&dialect)
	req.Message.SetSensitive(62, ksn)
	return req
}

func inDUKPTWorld(t *testing.T, test func(t *testing.T, w *world, v *dukptVault)) {
	t.Helper()
	inWorld(t, func(t *testing.T, w *world) {
		v := &dukptVault{}
		w.stop()
		w.vault = v
		w.start()
		test(t, w, v)
	})
}

func TestAPINBlockUnderDUKPTIsTranslatedByItsKSN(t *testing.T) {
	inDUKPTWorld(t, func(t *testing.T, w *world, v *dukptVault) {
		var sent *messages.Message
		w.bank.answer = func(req *messages.Message) (string, error) {
			sent = req.Clone()
			return "00", nil
		}
		const ksn = "FFFF9876543210E00001"
		result, ok := w.ask(underDUKPT(w, ksn), delivered)
		if !ok || code(result) != "00" {
			t.Fatalf("got %v", result.Answer)
		}
		if len(v.cards) != 1 || v.cards[0].From != "bdk-pos" || v.cards[0].To != "zpk-bank" || v.cards[0].KSN.String() != ksn {
			t.Errorf("the HSM was given %+v", v.cards)
		}
		if sent.Has(62) || !sent.Has(messages.PINData) || result.Answer.Has(62) {
			t.Errorf("sent %v, answered %v", sent, result.Answer)
		}

		// Without a PIN there is nothing under DUKPT.
		req := underDUKPT(w, "")
		req.Message.Delete(messages.PINData)
		if result, ok := w.ask(req, delivered); !ok || code(result) != "00" || !v.cards[1].KSN.IsZero() {
			t.Errorf("without a PIN: got %v", result.Answer)
		}
		w.rest()
		w.check()
	})
}

func TestAPINBlockWithoutASoundKSNIsNotSent(t *testing.T) {
	for _, row := range []struct {
		name, ksn string
		err       error
		tried     int
		failing   string
	}{
		{"none", "", nil, 0, "062"},
		{"what is none", "FFFF9876543210E0000", nil, 0, "062"},
		{"the counter of no transaction", "FFFF9876543210E00000", nil, 0, "062"},
		{"one of another algorithm", "123456789012345600000001", fmt.Errorf("translating: %w", hsm.ErrKSN), 1, "062"},
	} {
		t.Run(row.name, func(t *testing.T) {
			inDUKPTWorld(t, func(t *testing.T, w *world, v *dukptVault) {
				v.err = row.err
				result, ok := w.ask(underDUKPT(w, row.ksn), delivered)
				if !ok || code(result) != "30" || result.Answer.Get(messages.AdditionalResponse) != row.failing {
					t.Errorf("got %v", result.Answer)
				}
				rows, err := w.journal.Transactions(t.Context(), journal.Filter{})
				if err != nil || len(rows) != 0 || len(w.bank.seen) != 0 || len(v.cards) != row.tried {
					t.Errorf("%d records, %d sent, %d translated, %v", len(rows), len(w.bank.seen), len(v.cards), err)
				}
			})
		})
	}
}

func TestAKSNThatDoesNotRiseIsAlarmed(t *testing.T) {
	for _, refuses := range []bool{false, true} {
		t.Run(fmt.Sprintf("refuse is %v", refuses), func(t *testing.T) {
			inDUKPTWorld(t, func(t *testing.T, w *world, v *dukptVault) {
				var log bytes.Buffer
				w.stop()
				w.log = slog.New(slog.NewTextHandler(&log, nil))
				w.start()
				ask := func(ksn string) string {
					req := underDUKPT(w, ksn)
					req.Upstream.RefuseRegression = refuses
					result, ok := w.ask(req, delivered)
					if !ok {
						t.Fatal("no answer")
					}
					return code(result)
				}
				regressions := func() float64 { return w.metric("acquirerd_ksn_regressions_total", "pos") }

				if got := ask("FFFF9876543210E00005"); got != "00" || regressions() != 0 {
					t.Fatalf("the first: got %s, %v regressions", got, regressions())
				}
				// A block that is none does not speak for its device.
				v.err = hsm.ErrPINBlock
				if got := ask("FFFF9876543210E00100"); got != "55" {
					t.Fatalf("what is no PIN block: got %s", got)
				}
				v.err = nil
				if got := ask("FFFF9876543210E00006"); got != "00" || regressions() != 0 {
					t.Fatalf("the next: got %s, %v regressions", got, regressions())
				}
				want := map[bool]string{false: "00", true: "55"}[refuses]
				for i, ksn := range []string{"FFFF9876543210E00006", "FFFF9876543210E00005"} {
					if got := ask(ksn); got != want || regressions() != float64(i+1) {
						t.Errorf("%s again: got %s, %v regressions", ksn, got, regressions())
					}
				}
				if !strings.Contains(log.String(), "key serial number does not rise") || !strings.Contains(log.String(), "audit=true") {
					t.Errorf("logged is %s", log.String())
				}

				// The same request once more is its repeat.
				req := underDUKPT(w, "FFFF9876543210E00007")
				w.bank.answer = func(*messages.Message) (string, error) { return "00", nil }
				for range 2 {
					if result, ok := w.ask(req, delivered); !ok || code(result) != "00" {
						t.Errorf("a repeat: got %v", result.Answer)
					}
				}
				if got := regressions(); got != 2 {
					t.Errorf("a repeat made it %v regressions", got)
				}
				w.rest()
				w.check()
			})
		})
	}
}
