package acquirer_test

import (
	"testing"

	"acquirerd/messages"
)

// A processor that knows a message by type, STAN and DE 7 answers one that it has seen from its record. The whole reversal after a part of it
// is another message.
func TestTheWholeAfterAPartIsNotTakenForThePartOnceMore(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		req := named(w.request())
		w.ask(req, delivered)
		part := reversalOf(req, "0420")
		part.Message.Set(messages.ReplacementAmounts, "000000000400000000000000000000000000000000")
		w.reverse(part)
		w.rest()
		w.reverse(reversalOf(req, "0420"))
		w.rest()
		if len(w.bank.sent) != 2 {
			t.Fatalf("sent %v", w.bank.sent)
		}
		a, b := w.bank.sent[0], w.bank.sent[1]
		if a.MTI == b.MTI && a.Get(messages.STAN) == b.Get(messages.STAN) && a.Get(messages.TransmissionTime) == b.Get(messages.TransmissionTime) {
			t.Errorf("both are %s with STAN %s and DE 7 %s", a.MTI, a.Get(messages.STAN), a.Get(messages.TransmissionTime))
		}
	})
}
