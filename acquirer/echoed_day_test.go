package acquirer_test

import (
	"testing"
	"testing/synctest"

	"acquirerd/messages"
)

// A processor that repeats DE 15 of a request in its answer tells of no day: it is the upstream's. An upstream that is wrong would run the business
// date away, and nothing goes back by itself.
func TestABusinessDayBeginsByNoAnswerThatRepeatsTheRequestsDay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) { // it is 2000-01-01 there
		w := newWorld(t)
		w.dialect = changed(t, "iso87-ascii", "  cutover: \"201\"\n", "")
		w.start()
		req := w.request()
		req.Message.Set(messages.SettlementDate, "0109")
		w.bank.day = "0109" // as an answer that repeats its request
		w.ask(req, delivered)
		if got := w.businessDate(); got != "" {
			t.Errorf("business date %s, by the upstream's own DE 15", got)
		}
		w.stop()
	})
}
