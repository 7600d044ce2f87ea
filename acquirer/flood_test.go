package acquirer_test

import (
	"testing"

	"acquirerd/conn"
	"acquirerd/journal"
)

// A processor that sends the same answer again and again does not fill the record.
func TestAnAnswerThatComesAgainAndAgainDoesNotFillTheRecord(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.ask(named(w.request()), delivered)
		second := lateApproval(t, w)
		second.Arrival = conn.Second
		for range 1000 {
			w.desk.Inbound(t.Context(), "bank", second)
		}
		reader, err := journal.OpenReadOnly(w.path)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = reader.Close() }()
		events, err := reader.History(t.Context(), w.only().ID)
		if err != nil || len(events) > 100 {
			t.Errorf("%d events of one transaction, %v", len(events), err)
		}
	})
}
