package simulator_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"acquirerd/simulator"
)

// A play is one of each kind of transaction, at rest, as the three parties have it.
type play struct {
	journal []simulator.Account
	ledger  simulator.Snapshot
	book    simulator.BookSnapshot
}

// The transactions of a play, by their place in the book.
const (
	kept = iota
	cancelled
	lowered
	completed
	unanswered
	declined
)

func (p *play) entry(of int) *simulator.Entry { return &p.book.Entries[of] }

func (p *play) account(of int) *simulator.Account { return p.byUpstreamSTAN(p.book.Entries[of].STAN) }

func (p *play) hold(of int) *simulator.Hold { return p.bySTAN(p.book.Entries[of].STAN) }

func (p *play) advice() (*simulator.Account, *simulator.Hold) {
	stan := p.book.Entries[completed].Advice.STAN
	return p.byUpstreamSTAN(stan), p.bySTAN(stan)
}

func (p *play) byUpstreamSTAN(stan string) *simulator.Account {
	return &p.journal[slices.IndexFunc(p.journal, func(a simulator.Account) bool { return a.UpstreamSTAN == stan })]
}

func (p *play) bySTAN(stan string) *simulator.Hold {
	return &p.ledger.Holds[slices.IndexFunc(p.ledger.Holds, func(h simulator.Hold) bool { return h.STAN == stan })]
}

// remove takes the entries of one number out of the ledger.
func (p *play) remove(stan string) {
	p.ledger.Holds = slices.DeleteFunc(p.ledger.Holds, func(h simulator.Hold) bool { return h.STAN == stan })
}

// played runs it.
func played(t *testing.T) *play {
	t.Helper()
	var all play
	bubble(t, func(t *testing.T) {
		p, listener, stopProcessor := serve(t, simulator.ProcessorConfig{Codec: codec(t, "iso87-binary")})
		defer stopProcessor()
		u, stop := run(t, simulator.UpstreamConfig{Codec: codec(t, "iso87-binary"), ReplyTimeout: 10 * time.Second, AcquirerID: "12345"}, listener)
		defer stop()
		ready(t, u)
		for _, c := range []struct {
			cfg    simulator.DutyConfig
			amount int64
		}{{simulator.DutyConfig{}, 1250}, {simulator.DutyConfig{CancelShare: 1}, 1251}, {simulator.DutyConfig{PartialShare: 1}, 1252},
			{simulator.DutyConfig{AdviceShare: 1}, 1253}, {simulator.DutyConfig{}, 9200}, {simulator.DutyConfig{}, 9051}} {
			c.cfg.Upstream = u
			if _, err := newDuty(t, c.cfg).Do(t.Context(), simulator.Request{PAN: pan(t, visa), Amount: c.amount}); err != nil {
				t.Fatal(err)
			}
		}
		all.ledger, all.book = p.Ledger().Snapshot(), u.Book().Snapshot()
		all.journal = accountsOf(all.ledger)
	})
	unknown := all.account(unanswered)
	unknown.Outcome, unknown.ResponseCode = "unknown", ""
	return &all
}

func (p *play) compare() simulator.Verdict { return simulator.Compare(p.journal, p.ledger, p.book) }

func TestThreeAccountsAgree(t *testing.T) {
	p := played(t)
	verdict := p.compare()
	want := simulator.Verdict{Transactions: 7, Approved: 4, Declined: 1, Unknown: 1, Advices: 1, Reversed: 3, Partial: 1, Unanswered: 1}
	if fmt.Sprint(verdict) != fmt.Sprint(want) {
		t.Errorf("got %+v", verdict)
	}
}

func TestWhatDoesNotAgreeIsFound(t *testing.T) {
	for _, c := range []struct {
		name  string
		spoil func(*play)
		want  string // of the first mismatch
	}{
		{"a hold that is lost", func(p *play) { p.remove(p.entry(kept).STAN) }, "without a hold"},
		{"a hold that was undone", func(p *play) { p.hold(kept).State = simulator.Reversed }, "without a hold"},
		{"a hold of another amount", func(p *play) { p.hold(kept).ApprovedAmount = 1 }, "another amount than the journal"},
		{"another amount in journal and ledger", func(p *play) {
			p.hold(kept).ApprovedAmount, p.account(kept).ApprovedAmount = 1, "000000000001"
		}, "another amount than the upstream"},
		{"another belief", func(p *play) { p.entry(kept).BelievedAmount = 1 }, "another amount than the upstream"},
		{"a belief of nothing", func(p *play) { p.entry(kept).Belief = simulator.BelievesNone }, "believes undone"},
		{"an approval that the journal has not", func(p *play) {
			p.remove(p.entry(kept).STAN)
			p.journal = slices.DeleteFunc(p.journal, func(a simulator.Account) bool { return a.UpstreamSTAN == p.entry(kept).STAN })
		}, "approval that the journal does not know"},
		{"a hold that the journal has not", func(p *play) {
			p.journal = slices.DeleteFunc(p.journal, func(a simulator.Account) bool { return a.UpstreamSTAN == p.entry(kept).STAN })
		}, "a request that the journal does not know"},
		{"an approval that the daemon reversed on its own", func(p *play) {
			p.hold(kept).State, p.account(kept).Owed = simulator.Reversed, "acknowledged"
		}, "of which the processor holds nothing"},
		{"a reversal that did nothing", func(p *play) { p.hold(cancelled).State = simulator.Held }, "does not have as approved"},
		{"a reversal that was not sent", func(p *play) {
			p.hold(cancelled).State, p.account(cancelled).Owed = simulator.Held, ""
		}, "believes undone"},
		{"an unknown outcome that is held", func(p *play) { p.hold(unanswered).State = simulator.Held }, "does not have as approved"},
		{"a decline that is held", func(p *play) { p.hold(declined).State = simulator.Held }, "does not have as approved"},
		{"a reversal in part that did nothing", func(p *play) { p.hold(lowered).ApprovedAmount = 1252 }, "another amount than the journal"},
		{"a reversal in part that was not sent", func(p *play) {
			p.hold(lowered).ApprovedAmount, p.account(lowered).Owed, p.account(lowered).ReplacementAmount = 1252, "", ""
		}, "another amount than the upstream"},
		{"a reversal in part that undid all", func(p *play) { p.hold(lowered).State = simulator.Reversed }, "without a hold"},
		{"an original after its reversal", func(p *play) {
			p.hold(unanswered).State = simulator.Held
			a := p.account(unanswered)
			a.Outcome, a.Reason, a.Owed = "not_sent", "reversed_first", ""
		}, "does not have as approved"},
		{"an advice that is lost", func(p *play) { p.remove(p.entry(completed).Advice.STAN) }, "without a hold"},
		{"an advice that the journal lost", func(p *play) {
			stan := p.entry(completed).Advice.STAN
			p.remove(stan)
			p.journal = slices.DeleteFunc(p.journal, func(a simulator.Account) bool { return a.UpstreamSTAN == stan })
		}, "advice was accepted, and the journal does not know"},
		{"an advice that was undone", func(p *play) {
			a, h := p.advice()
			a.Owed, h.State = "acknowledged", simulator.Reversed
		}, "advice was accepted, and the processor does not have"},
		{"an advice of another amount", func(p *play) { _, h := p.advice(); h.ApprovedAmount = 1 }, "another amount than the journal"},
		{"an advice of another amount in journal and ledger", func(p *play) {
			a, h := p.advice()
			a.Amount, h.ApprovedAmount = "000000000001", 1
		}, "advice with another amount"},
		{"an advice that went out as a request", func(p *play) { _, h := p.advice(); h.Advice = false }, "a request and an advice"},
		{"an advice that is still owed", func(p *play) { a, _ := p.advice(); a.Advice = "owed" }, "advice that is still owed"},
		{"an advice that is not owed", func(p *play) { a, _ := p.advice(); a.Advice = "" }, "advice that is not owed"},
		{"an advice that was entered twice", func(p *play) {
			a, h := p.advice()
			a2, h2 := *a, *h
			a2.STAN, a2.UpstreamKey, h2.STAN = "900001", "", "900001"
			p.journal, p.ledger.Holds = append(p.journal, a2), append(p.ledger.Holds, h2)
		}, "never asked for"},
		{"a hold that nobody asked for", func(p *play) {
			a, h := *p.account(kept), *p.hold(kept)
			a.STAN, a.UpstreamSTAN, a.UpstreamKey, h.STAN = "900001", "900001", "010|1125101112|900001|SIM00001", "900001"
			p.journal, p.ledger.Holds = append(p.journal, a), append(p.ledger.Holds, h)
		}, "never asked for"},
		{"a request that went out twice", func(p *play) {
			a, h := *p.account(kept), *p.hold(kept)
			a.STAN, h.STAN = "900001", "900001"
			p.journal, p.ledger.Holds = append(p.journal, a), append(p.ledger.Holds, h)
		}, "one message of the upstream became two"},
		{"a number of the journal that was used twice", func(p *play) {
			a := *p.account(kept)
			a.UpstreamKey = ""
			p.journal = append(p.journal, a)
		}, "used a STAN twice"},
		{"a number that the processor has twice", func(p *play) {
			h := *p.hold(kept)
			h.Terminal = "OTHER"
			p.ledger.Holds = append(p.ledger.Holds, h)
		}, "one number of the journal twice"},
		{"a number that the processor was sent twice", func(p *play) {
			p.ledger.DuplicateRequests = []simulator.RequestKey{{STAN: "000001"}}
		}, "sent a STAN twice"},
		{"a reversal without its mark", func(p *play) {
			p.ledger.Counts.UnmarkedRepeats, p.hold(cancelled).UnmarkedRepeats = 1, 1
		}, "reversals were sent again without"},
		{"a reversal without its mark of what is not listed", func(p *play) { p.ledger.Counts.UnmarkedRepeats = 1 }, "reversals were sent again without"},
		{"an advice without its mark", func(p *play) {
			_, h := p.advice()
			p.ledger.Counts.UnmarkedAdvices, h.UnmarkedAdvices = 1, 1
		}, "advices were sent again without"},
		{"a reversal of something else", func(p *play) { p.ledger.Counts.DisagreeingReversals = 1 }, "reversals disagree"},
		{"an advice of something else", func(p *play) { p.ledger.Counts.DisagreeingAdvices = 1 }, "advices disagree"},
		{"an advice of the processor's that is not answered", func(p *play) { p.ledger.Counts.DemandsOpen = 1 }, "advices of the processor's own"},
		{"a demand that was answered twice", func(p *play) { p.ledger.Counts.DemandsTwice = 1 }, "answered more often"},
		{"a demand that was answered by something else", func(p *play) { p.ledger.Counts.DemandsImproper = 1 }, "by what is not for it"},
		{"a reversal that is still owed", func(p *play) { p.account(cancelled).Owed = "owed" }, "reversal that is still owed"},
		{"an unknown outcome that owes nothing", func(p *play) { p.account(unanswered).Owed = "" }, "for which nothing is owed"},
		{"a transaction without an outcome", func(p *play) { p.account(declined).Outcome = "" }, "without an outcome"},
		{"a book that is not at rest", func(p *play) { p.entry(cancelled).Open = true }, "not at rest"},
		{"a refusal that the book has noted", func(p *play) { p.entry(cancelled).Faults = []string{"a reversal is refused with 94"} }, "refused with 94"},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := played(t)
			c.spoil(p)
			verdict := p.compare()
			if verdict.Mismatches == 0 || !slices.ContainsFunc(verdict.Disagreements, func(d string) bool { return strings.Contains(d, c.want) }) {
				t.Errorf("found %d: %q, want %q", verdict.Mismatches, verdict.Disagreements, c.want)
			}
			if text := strings.Join(append(verdict.Disagreements, verdict.Transcript()...), "\n"); strings.Contains(text, "11111111") {
				t.Error("a card number is printed")
			}
		})
	}
}

// What agrees, or cannot be known.
func TestWhatMayBeIsNoMismatch(t *testing.T) {
	for _, c := range []struct {
		name  string
		spoil func(*play)
	}{
		{"a parked reversal, and the hold", func(p *play) { p.account(cancelled).Owed, p.hold(cancelled).State = "parked", simulator.Held }},
		{"a parked reversal that was done", func(p *play) { p.account(cancelled).Owed = "parked" }},
		{"a parked reversal in part that did nothing", func(p *play) { p.account(lowered).Owed, p.hold(lowered).ApprovedAmount = "parked", 1252 }},
		{"a parked advice that the processor has", func(p *play) { a, _ := p.advice(); a.Advice = "parked" }},
		{"a parked advice that it has not", func(p *play) { a, h := p.advice(); a.Advice, h.State = "parked", simulator.Declined }},
		{"a reversal that came before its original", func(p *play) {
			p.remove(p.entry(unanswered).STAN)
			a := p.account(unanswered)
			a.Outcome, a.Reason, a.Owed, a.STAN, a.TransmissionTime = "not_sent", "reversed_first", "", "", ""
		}},
		{"a request that was given up before it was sent, and then sent", func(p *play) {
			a := *p.account(kept)
			a.STAN, a.Outcome = "900001", "not_sent"
			p.journal = append([]simulator.Account{a}, p.journal...)
		}},
		{"a request that never came", func(p *play) {
			p.remove(p.entry(unanswered).STAN)
			p.journal = slices.DeleteFunc(p.journal, func(a simulator.Account) bool { return a.UpstreamSTAN == p.entry(unanswered).STAN })
		}},
		{"a journal without the upstream's keys", func(p *play) {
			for i := range p.journal {
				p.journal[i].UpstreamKey = ""
			}
		}},
		{"an approval that a plain request was not told of", func(p *play) {
			e := p.entry(kept)
			e.Duty, e.Belief, e.Approved, e.Outcome = false, "", false, simulator.ConnectionLost
		}},
		{"a hold that is in no book, beside a plain request", func(p *play) {
			p.entry(declined).Duty = false
			a, h := *p.account(kept), *p.hold(kept)
			a.STAN, a.UpstreamSTAN, a.UpstreamKey, h.STAN = "900001", "900001", "", "900001"
			p.journal, p.ledger.Holds = append(p.journal, a), append(p.ledger.Holds, h)
		}},
		{"a hold that the book had no room for", func(p *play) {
			p.book.Entries = p.book.Entries[1:]
			p.book.Counts.Unlisted = 1
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := played(t)
			if c.spoil(p); p.compare().Mismatches > 0 {
				t.Errorf("found %q", p.compare().Disagreements)
			}
		})
	}
}

func TestAPlainRequestIsCheckedByWhatItWasTold(t *testing.T) {
	for _, c := range []struct {
		name  string
		spoil func(*play)
		want  string
	}{
		{"an approval that is reversed", func(p *play) {
			p.account(kept).Owed, p.hold(kept).State = "acknowledged", simulator.Reversed
		}, "is reversed or unknown"},
		{"an approval that the journal has not", func(p *play) {
			p.remove(p.entry(kept).STAN)
			p.journal = slices.DeleteFunc(p.journal, func(a simulator.Account) bool { return a.UpstreamSTAN == p.entry(kept).STAN })
		}, "does not know"},
		{"another's answer", func(p *play) { p.entry(kept).Approved, p.entry(kept).Outcome = false, simulator.Mismatch }, "answer to another request"},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := played(t)
			e := p.entry(kept)
			e.Duty, e.Belief = false, ""
			if c.spoil(p); p.compare().Mismatches != 1 || !strings.Contains(p.compare().Disagreements[0], c.want) {
				t.Errorf("found %q", p.compare().Disagreements)
			}
		})
	}
}

func TestATranscriptTellsTheStory(t *testing.T) {
	p := played(t)
	p.hold(lowered).ApprovedAmount = 1252
	want := []string{"the processor holds another amount than the journal has",
		"upstream: 0100 ", "upstream: believes approved ", "upstream: reversal 0420 to ", "journal: transaction 3 is 0100 ",
		"processor: 0100 ", "  00:00:00.000000 0100 answered 00", "  00:00:00.000000 0420 to "}
	checkLines(t, p.compare().Transcript(), want)

	p = played(t)
	_, h := p.advice()
	h.State = simulator.Declined
	checkLines(t, p.compare().Transcript(), []string{"an approval in the journal", "upstream: 0100 ", "upstream: believes approved 1253",
		"upstream: advice 0220 ", "journal: ", "processor: 0100 ", "  00:00:00.000000 0100 answered 00", "journal: ", "processor: 0220 ",
		"  00:00:00.000000 0220 answered 00"})

	p = played(t)
	p.entry(unanswered).Faults, p.entry(unanswered).Open = []string{"a reversal is refused with 94"}, true
	p.hold(unanswered).MoreEvents = 3
	stan, at := p.account(unanswered).STAN, p.account(unanswered).TransmissionTime
	p.ledger.UnknownReversals = []simulator.UnknownReversal{{OriginalMTI: "0100", STAN: stan, TransmissionTime: at,
		Events: simulator.Events{Events: []simulator.Event{{MTI: "0420", Effects: []string{"lost"}}}}}}
	checkLines(t, p.compare().Transcript(), []string{"a reversal is refused with 94", "upstream: 0100 ",
		"upstream: believes none, and is not at rest", "upstream: reversal 0420 whole", "upstream: a reversal is refused", "journal: ",
		"processor: 0100 ", "  00:00:00.000000 0100 answered 00, silence", "  00:00:10.000000 0420 answered 00", "  and 3 more",
		"processor: reversals of an unknown 0100 ", "  00:00:00.000000 0420 not taken notice of, lost"})

	p = played(t)
	p.journal = nil
	checkLines(t, p.compare().Transcript(), []string{"the processor has a request that the journal does not know", "processor: 0100 ",
		"  00:00:00.000000 0100 answered 00"})
}

// checkLines compares the beginnings of lines.
func checkLines(t *testing.T, got, want []string) {
	t.Helper()
	for i, line := range got {
		if len(got) != len(want) || !strings.HasPrefix(line, want[i]) {
			t.Fatalf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
		}
	}
	if len(got) != len(want) {
		t.Errorf("got nothing, want\n%s", strings.Join(want, "\n"))
	}
}

// TestLedgersOfSeveralProcessorsAreCompared has two processors whose numbers are the same: each daemon's endpoint counts from the beginning.
func TestLedgersOfSeveralProcessorsAreCompared(t *testing.T) {
	p := played(t)
	other := p.ledger
	other.Holds = slices.Clone(p.ledger.Holds)
	accounts := slices.Clone(p.journal)
	for i := range p.journal {
		p.journal[i].Endpoint, accounts[i].Endpoint = "a", "b"
		// The other processor's are another upstream's.
		accounts[i].UpstreamKey = strings.ReplaceAll(accounts[i].UpstreamKey, accounts[i].Terminal, "OTHER001")
		accounts[i].Terminal = "OTHER001"
	}
	book := p.book
	for _, e := range p.book.Entries {
		e.Name, e.Advice.Name = strings.ReplaceAll(e.Name, e.Terminal, "OTHER001"), strings.ReplaceAll(e.Advice.Name, e.Terminal, "OTHER001")
		e.Terminal = "OTHER001"
		book.Entries = append(book.Entries, e)
	}
	journal := append(slices.Clone(p.journal), accounts...)
	merged := simulator.Merge(map[string]simulator.Snapshot{"a": p.ledger, "b": other})
	if verdict := simulator.Compare(journal, merged, book); verdict.Mismatches != 0 || verdict.Transactions != 2*len(p.journal) {
		t.Errorf("%+v: %q", verdict, verdict.Disagreements)
	}
	if got, want := merged.Counts.Requests, 2*p.ledger.Counts.Requests; got != want || merged.Counts.Effects["silence"] != 2*p.ledger.Counts.Effects["silence"] {
		t.Errorf("together they have %d requests, want %d, and the effects %v", got, want, merged.Counts.Effects)
	}
	// A hold of the one is none of the other's.
	other.Holds = slices.Delete(other.Holds, 0, 1)
	verdict := simulator.Compare(journal, simulator.Merge(map[string]simulator.Snapshot{"a": p.ledger, "b": other}), book)
	if verdict.Mismatches == 0 || !strings.Contains(verdict.Disagreements[0], "without a hold") || !strings.Contains(verdict.Disagreements[0], `"endpoint":"b"`) {
		t.Errorf("%+v: %q", verdict, verdict.Disagreements)
	}
}
