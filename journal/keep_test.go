package journal

import (
	"context"
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"acquirerd/card"
	"acquirerd/messages"
)

// advisingOf is the advice of a processor that bears a STAN of its own and names the transaction of another one.
func advisingOf(stan, names string) Advising {
	m := messages.New(messages.ReversalAdvice)
	for e, value := range map[messages.Element]string{messages.ProcessingCode: "000000", messages.Amount: "000000012345",
		messages.TransmissionTime: "1124000000", messages.STAN: stan, messages.Terminal: "TERM0001", messages.Currency: "978"} {
		m.Set(e, value)
	}
	a := Advising{Endpoint: "processor-a", Identity: "042|1124000000|" + stan + "|TERM0001", Original: m.Original(), MaskedPAN: "411111******1111", Token: card.PANToken{1, 2, 3},
		PAN:      card.SealedPAN{KeyID: "pan-seal-1", Nonce: []byte("123456789012"), Ciphertext: []byte("sealed PAN and its tag")},
		Withheld: []messages.Element{messages.Expiry, messages.AdditionalData}, ResponseCode: "00", Reverses: true}
	if names != "" {
		a.STAN, a.TransmissionTime = names, "1123220418"
	}
	return a
}

func (r *running) keep(a Advising) Advised {
	r.t.Helper()
	advised, err := r.Keep(context.Background(), a)
	if err != nil {
		r.t.Fatal(err)
	}
	return advised
}

func (r *running) advices(f AdviceFilter) []ProcessorAdvice {
	r.t.Helper()
	list, err := r.reader.ProcessorAdvices(context.Background(), f)
	if err != nil {
		r.t.Fatal(err)
	}
	return list
}

func TestAnAdviceOfAProcessorIsRecordedOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		path := create(t)
		r := start(t, Config{Path: path})
		r.cutOver("0101")
		ticket := r.begin("key")
		r.finish(ticket, Outcome{Kind: Approved, ResponseCode: "00"})
		first := advisingOf("700001", ticket.STAN())
		want := Advised{ID: 1, ResponseCode: "00", Transaction: ticket.ID(), Undoes: true}
		if got := r.keep(first); got != want {
			t.Errorf("got %+v", got)
		}
		at := time.Now()
		<-time.After(time.Minute)
		// The answer to a repeat is the first one's, whatever would be answered now; also after its reversal has come to be owed.
		want.Again = true
		repeat := first
		repeat.Original.MTI, repeat.ResponseCode = "0421", "99"
		for range 2 {
			if got := r.keep(repeat); got != want {
				t.Errorf("a repeat: %+v", got)
			}
			if _, err := r.Owe(t.Context(), Reversing{Transaction: ticket.ID(), Reason: "upstream"}); err != nil {
				t.Fatal(err)
			}
			r = r.reopened(path)
			path = r.path
		}
		list := r.advices(AdviceFilter{})
		if len(list) != 1 {
			t.Fatalf("%d advices", len(list))
		}
		got := list[0]
		if got.Endpoint != "processor-a" || got.MTI != "0420" || !got.At.Equal(at) || got.TransactionID != ticket.ID() || !got.Undoes ||
			got.MaskedPAN != "411111******1111" || got.Withheld != "expiry additional_data" || got.ResponseCode != "00" || got.BusinessDate != "2000-01-01" ||
			got.Original.Get(messages.STAN) != "700001" || got.PAN.KeyID != "pan-seal-1" || string(got.PAN.Ciphertext) != "sealed PAN and its tag" {
			t.Errorf("got %+v", got)
		}
		if got := r.history(ticket.ID()); got != "begun approved:00 owed:upstream" {
			t.Errorf("history %q", got)
		}
		reader := openReaderOf(t, path)
		d, err := reader.Dossier(t.Context(), ticket.ID())
		if err != nil || len(d.ProcessorAdvices) != 1 || d.ProcessorAdvices[0].ID != 1 {
			t.Errorf("dossier %+v, %v", d.ProcessorAdvices, err)
		}
		text, err := json.Marshal(d)
		if err != nil || strings.Contains(string(text), "sealed") {
			t.Errorf("%s, %v", text, err)
		}
	})
}

// An identity can come twice by chance, or from a processor that counts badly. What differs is another advice.
func TestAnAdviceOfTheSameNameAndOtherContentIsAnother(t *testing.T) {
	r := start(t, Config{Path: create(t)})
	first := advisingOf("700001", "")
	r.keep(first)
	amount := messages.New("0420")
	amount.Set(messages.STAN, "700001")
	amount.Set(messages.Amount, "000000000001")
	for name, change := range map[string]func(*Advising){
		"endpoint": func(a *Advising) { a.Endpoint = "processor-b" },
		"identity": func(a *Advising) { a.Identity += "x" },
		"content":  func(a *Advising) { a.Original = amount.Original() },
		"card":     func(a *Advising) { a.Token[31]++ },
		"no card":  func(a *Advising) { a.Token, a.PAN, a.MaskedPAN = card.PANToken{}, card.SealedPAN{}, "" },
	} {
		other := first
		change(&other)
		got := r.keep(other)
		if got.Again {
			t.Errorf("another %s: %+v", name, got)
		}
		if again := r.keep(other); !again.Again || again.ID != got.ID {
			t.Errorf("another %s again: %+v", name, again)
		}
	}
	if got := r.keep(first); !got.Again || got.ID != 1 {
		t.Errorf("the first: %+v", got)
	}
}

// rest is what no advice of a processor changes.
func rest(t *testing.T, path string) []string {
	t.Helper()
	return slices.Concat(dump(t, path, "transactions", transactions1), dump(t, path, "owed", owed1), dump(t, path, "events", all1))
}

func TestWhatAReversalOfAProcessorUndoes(t *testing.T) {
	finished := func(kind Kind) func(*running) TransactionID {
		return func(r *running) TransactionID {
			ticket := r.begin("")
			r.finish(ticket, Outcome{Kind: kind})
			return ticket.ID()
		}
	}
	// reversed is an approval of which all, or a part, is to be reversed, in this state.
	reversed := func(replacement string, state State) func(*running) TransactionID {
		return func(r *running) TransactionID {
			id := finished(Approved)(r)
			stands, err := r.Owe(context.Background(), Reversing{Transaction: id, Reason: "upstream", Replacement: replacement})
			if err != nil {
				r.t.Fatal(err)
			}
			switch state {
			case StateAcknowledged:
				r.settle(r.attempt(stands.ID, Numbers{}), Acknowledged("00"))
			case StateParked:
				r.park(stands.ID)
			case StateOwed:
			}
			return id
		}
	}
	for name, test := range map[string]struct {
		of   func(r *running) TransactionID
		want bool
	}{
		"an approval":                           {finished(Approved), true},
		"an advice":                             {func(r *running) TransactionID { return r.accept("") }, true},
		"what is open, and may be approved yet": {func(r *running) TransactionID { return r.begin("").ID() }, true},
		"a decline":                             {finished(Declined), false},
		"what was not sent":                     {finished(NotSent), false},
		"what is unknown, and owed":             {finished(Unknown), false},
		"an approval whose reversal is owed":    {reversed("", StateOwed), false},
		"an approval that was reversed":         {reversed("", StateAcknowledged), false},
		"an approval whose reversal is parked":  {reversed("", StateParked), true},
		"an approval that was reversed in part": {reversed("000000000345", StateAcknowledged), true},
	} {
		t.Run("of "+name, func(t *testing.T) {
			r := start(t, Config{Path: create(t)})
			id := test.of(r)
			before := rest(t, r.path)
			stan := r.transaction(id).STAN
			if got := r.keep(advisingOf("700001", stan)); got.Transaction != id || got.Undoes != test.want {
				t.Errorf("got %+v", got)
			}
			plain := advisingOf("700002", stan) // it tells of it, and does not reverse it
			plain.Reverses = false
			if got := r.keep(plain); got.Transaction != id || got.Undoes {
				t.Errorf("an advice: %+v", got)
			}
			other := advisingOf("700003", stan)
			other.MaskedPAN = "555555******4444"
			if got := r.keep(other); got.Transaction != 0 || got.Undoes {
				t.Errorf("of another card: %+v", got)
			}
			without := advisingOf("700004", stan)
			without.MaskedPAN, without.PAN, without.Token = "", card.SealedPAN{}, card.PANToken{}
			if got := r.keep(without); got.Transaction != id || got.Undoes != test.want {
				t.Errorf("without a card: %+v", got)
			}
			elsewhere := advisingOf("700005", stan)
			elsewhere.Endpoint = "processor-b"
			if got := r.keep(elsewhere); got.Transaction != 0 {
				t.Errorf("of another endpoint: %+v", got)
			}
			local := advisingOf("700007", stan)
			local.TransmissionTime, local.LocalTime = "", "220418"
			if got := r.keep(local); got.Transaction != id || got.Undoes != test.want {
				t.Errorf("by its local time: %+v", got)
			}
			local = advisingOf("700008", stan)
			local.TransmissionTime, local.LocalTime = "", "220419"
			if got := r.keep(local); got.Transaction != 0 {
				t.Errorf("by another local time: %+v", got)
			}
			if got := r.keep(advisingOf("700006", "999999")); got.Transaction != 0 || got.Undoes {
				t.Errorf("of nothing on record: %+v", got)
			}
			if !slices.Equal(before, rest(t, r.path)) {
				t.Error("a transaction, a debt or an event has changed")
			}
			undoing := 0
			if test.want {
				undoing = 3
			}
			if got := r.advices(AdviceFilter{Undoing: true}); len(got) != undoing {
				t.Errorf("%d undoing, want %d", len(got), undoing)
			}
		})
	}
}

func TestKeepRefusesWhatItCannotRecord(t *testing.T) {
	r := start(t, Config{Path: create(t)})
	for name, change := range map[string]func(*Advising){
		"no endpoint":          func(a *Advising) { a.Endpoint = "" },
		"no identity":          func(a *Advising) { a.Identity = "" },
		"no MTI":               func(a *Advising) { a.Original = messages.Original{} },
		"no answer":            func(a *Advising) { a.ResponseCode = "" },
		"a PAN":                func(a *Advising) { a.MaskedPAN = "4111111111111111" },
		"an incomplete secret": func(a *Advising) { a.PAN.Ciphertext = nil },
	} {
		a := advisingOf("700001", "")
		change(&a)
		_, err := r.Keep(t.Context(), a)
		if err == nil || errors.Is(err, ErrFailed) || strings.Contains(err.Error(), "4111") {
			t.Errorf("%s: %v", name, err)
		}
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := r.Keep(ended, advisingOf("700001", "")); !errors.Is(err, context.Canceled) {
		t.Errorf("with an ended context: %v", err)
	}
	r.queue.mu.Lock()
	r.queue.limit = 0
	r.queue.mu.Unlock()
	if _, err := r.Keep(t.Context(), advisingOf("700001", "")); !errors.Is(err, ErrBusy) {
		t.Errorf("on a full queue: %v", err)
	}
	if _, err := r.Advance(t.Context(), Cutover{Endpoint: "processor-a"}); !errors.Is(err, ErrBusy) {
		t.Errorf("a cutover on a full queue: %v", err)
	}
	r.queue.mu.Lock()
	r.queue.limit = 4096
	r.queue.mu.Unlock()
	if got := r.advices(AdviceFilter{}); len(got) != 0 {
		t.Errorf("recorded %+v", got)
	}
	r.keep(advisingOf("700001", ""))
}

func TestAdvicesOfProcessorsAreListedByPages(t *testing.T) {
	r := start(t, Config{Path: create(t)})
	for i := range 5 {
		a := advisingOf(decimal(uint64(i), 6), "")
		if i%2 == 1 {
			a.Endpoint = "processor-b"
		}
		r.keep(a)
	}
	for _, test := range []struct {
		filter AdviceFilter
		want   []AdviceID
	}{
		{AdviceFilter{}, []AdviceID{5, 4, 3, 2, 1}}, {AdviceFilter{Limit: 2}, []AdviceID{5, 4}}, {AdviceFilter{Limit: 2, Before: 4}, []AdviceID{3, 2}},
		{AdviceFilter{Endpoint: "processor-b"}, []AdviceID{4, 2}}, {AdviceFilter{Undoing: true}, nil},
	} {
		var got []AdviceID
		for _, a := range r.advices(test.filter) {
			got = append(got, a.ID)
		}
		if !slices.Equal(got, test.want) {
			t.Errorf("%+v: %v, want %v", test.filter, got, test.want)
		}
	}
}

// An advice goes with the transaction that it names, and that stays while the advice is young: somebody may have to look at it.
func TestPruningTakesOldAdvicesOfProcessors(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		path := create(t)
		r := start(t, Config{Path: path})
		r.owes() // without anything owed, checkForeignKeys could not tell
		var stans []string
		for range 3 {
			ticket := r.begin("")
			r.finish(ticket, Outcome{Kind: Approved})
			stans = append(stans, ticket.STAN())
		}
		r.keep(advisingOf("700001", stans[0]))
		r.keep(advisingOf("700002", ""))
		r.keep(advisingOf("700003", ""))
		old := time.Now().Add(time.Minute)
		<-time.After(time.Hour)
		r.keep(advisingOf("700004", stans[1]))
		r.keep(advisingOf("700005", ""))
		prune := func(before time.Time, most, want int, left ...AdviceID) {
			t.Helper()
			if got, err := r.Prune(t.Context(), before, most); err != nil || got != want {
				t.Errorf("pruned %d, want %d: %v", got, want, err)
			}
			var ids []AdviceID
			for _, a := range r.advices(AdviceFilter{}) {
				ids = append(ids, a.ID)
			}
			if !slices.Equal(ids, left) {
				t.Errorf("left %v, want %v", ids, left)
			}
		}
		prune(time.Time{}, 10, 0, 5, 4, 3, 2, 1)
		prune(old, 1, 1, 5, 4, 3)
		prune(old, 10, 0, 5, 4)
		prune(time.Now().Add(time.Second), 10, 1)
		r = r.reopened(path)
		if got := r.keep(advisingOf("700001", "")); got.ID != 6 {
			t.Errorf("ID %d was given out again", got.ID)
		}
		r.stop()
		checkForeignKeys(t, r.path)
	})
}

func TestTwoCopiesInOneBatchAreOneAdvice(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := start(t, Config{Path: create(t)})
		holder := r.next("processor-a")
		holding, release := r.hold()
		go func() { _, _ = r.Begin(context.Background(), intentOf(holder, "holder")) }()
		<-holding
		got := make(chan Advised, 2)
		for range 2 {
			go func() { advised, _ := r.Keep(t.Context(), advisingOf("700001", holder.STAN)); got <- advised }()
			synctest.Wait()
		}
		release()
		one, two := <-got, <-got
		if one.ID != 1 || two.ID != 1 || one.Again == two.Again || one.Transaction != 1 || two.Transaction != 1 {
			t.Errorf("%+v and %+v", one, two)
		}
	})
}
