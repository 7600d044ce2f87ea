package acquirer_test

import (
	"context"
	"testing"
	"time"

	"acquirerd/messages"
)

// A reversal request is recorded at once. Its answer must leave before the upstream has stopped waiting, not at that moment.
func TestTheAnswerToAReversalRequestComesTooLate(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		req := named(w.request())
		w.ask(req, delivered)
		w.bank.reversal = func(*messages.Message) (string, error) { return "91", nil }
		budget, release := context.WithTimeout(t.Context(), 15*time.Second)
		defer release()
		for _, mti := range []messages.MTI{"0400", "0401"} {
			result, err := w.desk.Reverse(budget, w.desk.Admit(undoing(req, mti)))
			if err != nil || result.Answer == nil || budget.Err() != nil {
				t.Errorf("%s: answered %v when the budget has ended: %v, %v", mti, result.Answer, budget.Err(), err)
			}
			w.desk.Delivered(result)
		}
	})
}
