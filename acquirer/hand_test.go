package acquirer_test

import (
	"testing"

	"acquirerd/acquirer"
	"acquirerd/messages"
)

// undoing is a reversal with all that its original had, and DE 90.
func undoing(req acquirer.Request, mti messages.MTI) acquirer.Request {
	m := req.Message.Clone()
	m.MTI = mti
	m.Delete(messages.PINData)
	m.Set(messages.OriginalData, string(req.Message.MTI.First())+m.Get(messages.STAN)+m.Get(messages.TransmissionTime)+"0000000000000000000000")
	m.Set(messages.STAN, "9"+m.Get(messages.STAN)[1:])
	return acquirer.Request{Message: m, Upstream: req.Upstream}
}

// The door calls Delivered with whatever had an answer, a reversal's too.
func TestTheDeliveryOfAReversalsAnswer(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		req := named(w.request())
		w.ask(req, delivered)
		result, err := w.desk.Reverse(t.Context(), w.desk.Admit(undoing(req, "0420")))
		if err != nil || code(result) != "00" {
			t.Fatalf("got %v, %v", result.Answer, err)
		}
		func() {
			defer func() {
				if p := recover(); p != nil {
					t.Errorf("Delivered panics: %v", p)
				}
			}()
			w.desk.Delivered(result)
		}()
		w.rest()
	})
}
