package acquirer_test

import (
	"testing"

	"acquirerd/messages"
)

// The record of a completion has DE 90 as the processor knows it, its repeat as the upstream does. They are the same advice.
func TestTheRepeatOfACompletionIsAnsweredFromTheRecord(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		req := named(w.request())
		w.ask(req, delivered)
		completion := w.advice()
		completion.Message.Set(messages.OriginalData, "0100"+req.Message.Get(messages.STAN)+req.Message.Get(messages.TransmissionTime)+"0000000000000000000000")
		completion = named(completion)
		if answer := w.advise(completion); codeOf(answer) != "00" {
			t.Fatalf("got %v", answer)
		}
		w.rest()
		if answer := w.advise(again(completion)); codeOf(answer) != "00" {
			t.Errorf("its repeat is answered %s", codeOf(answer))
		}
	})
}
