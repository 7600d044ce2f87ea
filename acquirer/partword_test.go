package acquirer_test

import (
	"testing"
	"testing/synctest"
	"time"

	"acquirerd/journal"
	"acquirerd/messages"
)

// A part that the upstream cannot be told of, or of which the processor does not say how much it is, was approved for certain: a processor that does not find it has not understood the reversal, which bears
// the approval's DE 38, and "not found" is no end of it.
func TestAPartThatCannotBeToldIsNotTakenForAbsent(t *testing.T) {
	for name, part := range map[string]string{"no word for it": "000000000400", "no amount": ""} {
		t.Run(name, func(t *testing.T) { isNotTakenForAbsent(t, part) })
	}
}

func isNotTakenForAbsent(t *testing.T, part string) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.start()
		req := w.request()
		req.Upstream.Codec = changed(t, "iso87-binary", `approving: ["00", "08", "10", "11", "85"]`, `approving: ["00", "08", "11", "85"]`, "partial: [\"10\"]\n", "")
		w.bank.answer = func(*messages.Message) (string, error) { return "10", nil }
		w.bank.partial = part
		w.bank.reversal = func(*messages.Message) (string, error) { return "25", nil }
		if got, _ := w.ask(req, delivered); codeOf(got.Answer) != "91" {
			t.Errorf("answered %v", got.Answer)
		}
		<-time.After(5 * time.Minute)
		synctest.Wait()
		owed, err := w.journal.Owed(t.Context(), journal.OwedFilter{Limit: 10})
		if err != nil || len(owed) != 1 || owed[0].State != journal.StateOwed {
			t.Errorf("%+v, %v: the processor has held a part, and nothing is owed", owed, err)
		}
		w.bank.mu.Lock()
		if sent := w.bank.sent; len(sent) == 0 || sent[0].Get(messages.AuthorizationID) != "123456" {
			t.Errorf("sent %v", sent)
		}
		w.bank.mu.Unlock()
		w.stop()
	})
}
