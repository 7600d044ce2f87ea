package simulator

import (
	"encoding/json"
	"fmt"
)

// An Account is what the daemon's journal says of one transaction, in the words of its "journal list --output json". The checker knows
// nothing else of the daemon.
type Account struct {
	ID               int64  `json:"id"`
	STAN             string `json:"stan"` // at the processor
	TransmissionTime string `json:"transmission_time"`
	UpstreamSTAN     string `json:"upstream_stan"`
	Terminal         string `json:"terminal"`
	Outcome          string `json:"outcome"` // approved, declined, not_sent, unknown; "" if it has none
	Reason           string `json:"reason"`
	Owed             string `json:"owed"` // its reversal: owed, acknowledged, parked; "" if there is none
	ResponseCode     string `json:"response_code"`
}

// A Verdict is the comparison of the journal, the processor's ledger and the upstream's book, at rest.
type Verdict struct {
	Transactions int `json:"transactions"` // in the journal
	Approved     int `json:"approved"`
	Declined     int `json:"declined"`
	NotSent      int `json:"not_sent"`
	Unknown      int `json:"unknown"`
	Reversed     int `json:"reversed"` // reversals that the processor has acknowledged
	Parked       int `json:"parked"`
	Unanswered   int `json:"unanswered"` // requests of the upstream that lost their connection or timed out
	Late         int `json:"late"`       // answers that the upstream got after its timeout
	Mismatches   int `json:"mismatches"`

	Disagreements []string `json:"-"` // the first few mismatches, with what each party has
}

const shownDisagreements = 10

func (v *Verdict) mismatch(what string, evidence ...any) {
	if v.Mismatches++; v.Mismatches <= shownDisagreements {
		text, err := json.Marshal(evidence)
		if err != nil {
			text = []byte(err.Error())
		}
		v.Disagreements = append(v.Disagreements, fmt.Sprintf("%s: %s", what, text))
	}
}

// Compare says where the three do not agree. What agrees: each hold of the processor is an approval of the journal, or parked; each
// approval of the journal that is not reversed is a hold; what the upstream was told is approved is approved and not reversed; no
// number was used twice; no reversal was sent again without its mark.
//
// An approval of the journal that the upstream was not told of is no mismatch: the daemon may have been killed between the two.
func Compare(journal []Account, ledger Snapshot, book BookSnapshot) Verdict {
	var v Verdict
	byNumbers, byUpstream := map[string]*Account{}, map[string]*Account{}
	for i := range journal {
		a := &journal[i]
		v.count(a)
		if byNumbers[a.STAN+a.TransmissionTime] != nil {
			v.mismatch("the journal used a STAN twice", a)
		}
		byNumbers[a.STAN+a.TransmissionTime], byUpstream[a.UpstreamSTAN+a.Terminal] = a, a
	}
	held := map[*Account]bool{}
	for i := range ledger.Holds {
		h := &ledger.Holds[i]
		a := byNumbers[h.STAN+h.TransmissionTime]
		if a == nil {
			v.mismatch("the processor has a request that the journal does not know", h)
			continue
		}
		held[a] = h.State == Held
		if held[a] && (a.Outcome != "approved" || a.Owed != "") && a.Owed != "parked" {
			v.mismatch("the processor holds what the journal does not have as approved", h, a)
		}
	}
	for _, a := range byNumbers {
		if a.Outcome == "approved" && a.Owed == "" && !held[a] {
			v.mismatch("an approval in the journal without a hold", a)
		}
	}
	for i := range ledger.DuplicateRequests {
		v.mismatch("the processor was sent a STAN twice", ledger.DuplicateRequests[i])
	}
	if n := ledger.Counts.UnmarkedRepeats; n > 0 {
		v.mismatch("reversals were sent again without the mark of a repeat", n)
	}
	if n := ledger.Counts.DisagreeingReversals; n > 0 {
		v.mismatch("reversals disagree with their originals", n)
	}
	for i := range book.Entries {
		v.told(&book.Entries[i], byUpstream)
	}
	v.Late = int(book.Counts.LateAnswers)
	return v
}

// count enters one transaction of the journal.
func (v *Verdict) count(a *Account) {
	v.Transactions++
	switch a.Outcome {
	case "approved":
		v.Approved++
	case "declined":
		v.Declined++
	case "not_sent":
		v.NotSent++
	case "unknown":
		v.Unknown++
		if a.Owed == "" {
			v.mismatch("an unknown outcome for which nothing is owed", a)
		}
	default:
		v.mismatch("a transaction without an outcome", a)
	}
	switch a.Owed {
	case "acknowledged":
		v.Reversed++
	case "parked":
		v.Parked++
	case "owed":
		v.mismatch("a reversal that is still owed", a)
	}
}

// told checks one entry of the upstream's book.
func (v *Verdict) told(e *Entry, byUpstream map[string]*Account) {
	if e.Outcome == TimedOut || e.Outcome == ConnectionLost {
		v.Unanswered++
	}
	if e.Outcome == Mismatch {
		v.mismatch("the upstream was given the answer to another request", e)
	}
	if !e.Approved {
		return
	}
	switch a := byUpstream[e.STAN+e.Terminal]; {
	case a == nil:
		v.mismatch("the upstream was told of an approval that the journal does not know", e)
	case a.Outcome != "approved" || a.Owed != "":
		v.mismatch("an approval that the upstream was told of is reversed or unknown", e, a)
	}
}
