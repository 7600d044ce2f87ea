package journal

import "testing"

// A partial reversal with numbers of its own is parked, and a full one takes its place: under numbers of its own, too. Those of the partial
// one are not needed any more.
func TestAFullReversalGivesTheNumbersOfTheParkedPartialOneBack(t *testing.T) {
	r := start(t, Config{Path: create(t)})
	ticket := r.begin("000001")
	r.finish(ticket, Outcome{Kind: Approved, ResponseCode: "00"})
	part, err := r.Owe(t.Context(), Reversing{Transaction: ticket.ID(), Reason: "upstream", Replacement: "000000000400"})
	if err != nil {
		t.Fatal(err)
	}
	r.settle(r.attempt(part.ID, Numbers{"900001", "1123220500"}), Parked("poison", "30"))
	full, err := r.Owe(t.Context(), Reversing{Transaction: ticket.ID(), Reason: "upstream"})
	if err != nil || full.ID != part.ID {
		t.Fatal(full, err)
	}
	r.settle(r.attempt(full.ID, Numbers{"900002", "1123220600"}), Acknowledged("00"))
	if got := held(r); len(got) != 0 {
		t.Errorf("held %v, parked %d", got, r.Exposure().Parked)
	}
}
