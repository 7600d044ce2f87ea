package journal

import (
	"context"
	"maps"
	"testing"
)

// hear records an answer that comes when nobody waits for it.
func (r *running) hear(h Hearing) Heard {
	r.t.Helper()
	heard, err := r.Hear(context.Background(), h)
	if err != nil {
		r.t.Fatal(err)
	}
	return heard
}

// hearingOf is an answer to the request of a ticket that intentOf made.
func hearingOf(ticket *Ticket, code string) Hearing {
	return Hearing{Endpoint: ticket.Endpoint(), STAN: ticket.STAN(), TransmissionTime: "1123220418", ResponseCode: code,
		Approves: code == "00", NotFound: []string{"25"}}
}

// An answer can overtake the record of the outcome: the one who waited has given up, and is about to write that.
func TestAnAnswerIsHeardBeforeTheOutcomeIsWritten(t *testing.T) {
	path := create(t)
	r := start(t, Config{Path: path})
	ticket := r.begin("")
	ticket.Spend()
	if heard := r.hear(hearingOf(ticket, "51")); heard != (Heard{Transaction: ticket.ID()}) {
		t.Errorf("heard %+v", heard)
	}
	if err := r.Finish(context.Background(), ticket, Outcome{Kind: Unknown, Reason: "timeout"}); err != nil {
		t.Fatal(err)
	}
	if got, want := r.history(ticket.ID()), "begun late_answer:51 unknown:timeout owed:timeout"; got != want {
		t.Errorf("history %q, want %q", got, want)
	}

	// And a crash between the two must not keep the journal from recovering.
	lost := r.begin("")
	r.hear(hearingOf(lost, "00"))
	r.stop()
	r = start(t, Config{Path: path})
	tickets, err := r.Unfinished(context.Background())
	if err != nil || len(tickets) != 1 {
		t.Fatalf("%d unfinished, %v", len(tickets), err)
	}
	r.finish(tickets[0], Outcome{Kind: Unknown, Reason: "crash"})
	if got, want := r.history(lost.ID()), "begun late_answer:00 unknown:crash owed:crash"; got != want {
		t.Errorf("history %q, want %q", got, want)
	}
}

func TestAnApprovalThatOvertakesItsOutcomeIsReversed(t *testing.T) {
	for _, test := range []struct {
		kind   Kind
		reason string
		want   string
	}{
		{Declined, "", "begun second_answer:00 declined:51 owed:late_approval"},
		{NotSent, "no_link", "begun second_answer:00 not_sent:no_link owed:late_approval"},
		{Unknown, "timeout", "begun second_answer:00 unknown:timeout owed:timeout"},
		{Approved, "", "begun second_answer:00 approved:00"},
	} {
		t.Run("of "+string(test.kind), func(t *testing.T) {
			path := create(t)
			r := start(t, Config{Path: path})
			ticket, other := r.begin(""), r.begin("")
			h := hearingOf(ticket, "00")
			h.Second = true
			r.hear(h)
			code := map[Kind]string{Declined: "51", Approved: "00"}[test.kind]
			r.finish(ticket, Outcome{Kind: test.kind, ResponseCode: code, Reason: test.reason})
			r.finish(other, Outcome{Kind: Declined, ResponseCode: "51"})
			if got := r.history(ticket.ID()); got != test.want {
				t.Errorf("history %q, want %q", got, test.want)
			}
			if got := r.history(other.ID()); got != "begun declined:51" {
				t.Errorf("another transaction: %q", got)
			}
			want := map[string]uint64{"978": 12345}
			if test.kind == Approved {
				want = map[string]uint64{}
			}
			for range 2 {
				if e, incurred := r.Exposure(), r.Incurred("processor-a"); !maps.Equal(e.Amounts, want) || len(incurred) != len(want) {
					t.Errorf("exposure %+v, incurred %+v", e, incurred)
				}
				r.stop()
				r = start(t, Config{Path: path})
			}
		})
	}
}
