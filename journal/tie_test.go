package journal

import (
	"strings"
	"testing"

	"acquirerd/card"
)

// First six and last four are shared by many cards; the token is the card's own.
func TestAnAdviceIsNotTiedToAnotherCardWithTheSameMask(t *testing.T) {
	r := start(t, Config{Path: create(t)})
	ticket := r.begin("key")
	r.finish(ticket, Outcome{Kind: Approved, ResponseCode: "00"})
	other := advisingOf("700001", ticket.STAN())
	other.Token = card.PANToken{9, 9, 9}
	if got := r.keep(other); got.Transaction != 0 || got.Undoes {
		t.Errorf("the reversal of another card is tied to transaction %d: %+v", ticket.ID(), got)
	}
}

// A processor whose advices all bear one identity, and differ, has each one compared with all before it, in the writer that everybody waits
// for: 30,000 of them cost 1 to 2 ms each. The index must lead to the one that is equal.
func TestARepeatedAdviceIsFoundWithoutReadingAllOfItsName(t *testing.T) {
	r := start(t, Config{Path: create(t)})
	plan, err := rows(t.Context(), r.reader.db, "explaining", func(scan scanner) (detail string, err error) {
		var id, parent, unused int
		err = scan(&id, &parent, &unused, &detail)
		return detail, err
	}, "EXPLAIN QUERY PLAN "+keptBeforeSQL, "", "", []byte{})
	if err != nil {
		t.Fatal(err)
	}
	for _, step := range plan {
		if strings.HasPrefix(step, "SEARCH") && strings.HasSuffix(step, "(endpoint=? AND identity=?)") {
			t.Errorf("what is compared beyond the name is in no index: %s", step)
		}
	}
}

func TestAnAdviceIsTiedToACardByItsTokenWhereBothHaveOne(t *testing.T) {
	r := start(t, Config{Path: create(t)})
	ticket := r.begin("key")
	r.finish(ticket, Outcome{Kind: Approved, ResponseCode: "00"})
	same := advisingOf("700001", ticket.STAN())
	if got := r.keep(same); got.Transaction != ticket.ID() || !got.Undoes {
		t.Errorf("of the same card: %+v", got)
	}
	without := advisingOf("700002", ticket.STAN())
	without.Token = card.PANToken{}
	if got := r.keep(without); got.Transaction != ticket.ID() || !got.Undoes {
		t.Errorf("of a card without a token: %+v", got)
	}
}
