package acquirer_test

import (
	"errors"
	"fmt"
	"testing"
	"testing/synctest"

	"acquirerd/conn"
	"acquirerd/messages"
	"acquirerd/specs"
)

// What a processor demands changes nothing if its message authentication code is wrong, missing or not to be checked: no key, no day, no record.
func TestADemandThatIsNotProvenIsRefusedAndDoesNothing(t *testing.T) {
	for _, row := range []struct {
		name  string
		fault error
		want  string
	}{
		{"a wrong code", fmt.Errorf("%w: %w", conn.ErrMAC, messages.ErrMAC), "97"},
		{"no form, so that there is no code to check", fmt.Errorf("%w: %w", conn.ErrMAC, &messages.FormatError{Element: 48, Rule: "is odd"}), "97"},
		{"no HSM to check it", fmt.Errorf("%w: %w", conn.ErrMAC, errors.New("HSM cannot serve")), "96"},
	} {
		t.Run(row.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				w.dialect.Dialect().Answers.MACIncorrect = "97"
				defer func() { w.dialect.Dialect().Answers.MACIncorrect = "96" }()
				keys := &keyring{t: t}
				w.keys = keys
				w.start()
				change := management("101", "700001")
				change.SetSensitive(messages.AdditionalData, "000102030405060708090A0B0C0D0E0F000102")
				w.ask(w.request(), delivered)
				undone := undoes(told(messages.ReversalAdvice, "700004"), w.only())
				for _, m := range []*messages.Message{change, cutover("1125", "700002"), told(messages.AuthorizationAdvice, "700003"), undone,
					management("301", "700005")} {
					if got := codeOf(w.demandAs(conn.Unasked{Message: m, Fault: row.fault})); got != row.want {
						t.Errorf("%s %s is answered %s, want %s", m.MTI, m.Get(messages.NetworkManagement), got, row.want)
					}
				}
				if got := keys.inUse(); got != "" {
					t.Errorf("the key is %s", got)
				}
				if got := w.advices(); len(got) != 0 {
					t.Errorf("recorded %+v", got)
				}
				// Without a STAN nobody would know the answer again.
				nameless := told(messages.AuthorizationAdvice, "")
				if got := codeOf(w.demandAs(conn.Unasked{Message: nameless, Fault: row.fault})); got != "none" {
					t.Errorf("one without a STAN is answered %s", got)
				}
				// The same, proven, is served.
				if got := codeOf(w.demand(change)); got != "00" || keys.inUse() == "" {
					t.Errorf("the change itself is answered %s", got)
				}
				w.stop()
			})
		})
	}
}

// A refusal for its code alone is believed of a repeat too, so that the door asks first. It leaves no trace by which a right one would be refused.
func TestKnownIsWhatARefusalWouldBeBelievedOf(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		req := named(w.request())
		if w.desk.Known(t.Context(), req) {
			t.Error("it is known before it came")
		}
		if got, ok := w.ask(req, delivered); !ok || code(got) != "00" {
			t.Fatalf("after the question it is answered %v", got.Answer)
		}
		if !w.desk.Known(t.Context(), again(req)) {
			t.Error("its repeat is not known")
		}
		nameless := again(req)
		nameless.Key = ""
		if w.desk.Known(t.Context(), nameless) {
			t.Error("a reversal is known by no key")
		}
	})
}

// Where messages carry MACs, one key makes those of both sides: a refusal of ours of what somebody has asked by the numbers of our next request would
// be proven to us as the processor's, and decline what that has approved.
func TestARequestOfMoneyIsNotRefusedWithAMAC(t *testing.T) {
	for _, mac := range []specs.MAC{{}, {Place: specs.MACLast}} {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t)
			dialect := *w.dialect.Dialect()
			dialect.MAC = mac
			w.dialect = messages.NewCodec(&dialect)
			w.start()
			for _, mti := range []messages.MTI{"0100", "0200", "0400"} {
				headless := told(mti, "000001")
				headless.Delete(messages.Amount)
				for name, msg := range map[string]conn.Unasked{
					"proven": {Message: told(mti, "000001")}, "not proven": {Message: told(mti, "000001"), Fault: fmt.Errorf("%w: %w", conn.ErrMAC, messages.ErrMAC)},
					"without a form": {Message: headless, Fault: &messages.FormatError{Element: messages.Amount, Rule: "is missing"}},
				} {
					if got := codeOf(w.demandAs(msg)); (got == "none") != (mac.Place == specs.MACLast) {
						t.Errorf("MAC %q: %s, %s: answered %s", mac.Place, mti, name, got)
					}
				}
			}
			w.stop()
		})
	}
}
