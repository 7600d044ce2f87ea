package journal

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"maps"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"acquirerd/card"
	"acquirerd/messages"
)

// adviceOf is an advice of 123.45 EUR with a sealed rest.
func adviceOf(numbers messages.Numbers, key string) Intent {
	in := intentOf(numbers, key)
	m := messages.New(messages.FinancialAdvice)
	for _, e := range []messages.Element{messages.ProcessingCode, messages.Amount, messages.TransmissionTime, messages.STAN, messages.LocalTime, messages.RRN,
		messages.AcquirerID, messages.Terminal, messages.Merchant, messages.Currency} {
		m.Set(e, in.Original.Get(e))
	}
	m.Set(messages.ResponseCode, "00")
	in.Original = m.Original()
	in.Rest = card.SealedRest{KeyID: "pan-seal-1", Nonce: []byte("210987654321"), Ciphertext: []byte("sealed rest and its tag")}
	return in
}

// replyOf is an answer to the request of an intent.
func replyOf(in Intent, code string) messages.Reply {
	request := messages.New(in.Original.MTI)
	request.Set(messages.STAN, in.UpstreamSTAN)
	answer := messages.NewAnswer(request, code)
	answer.Set(messages.AuthorizationID, "A12345")
	return answer.Reply(request)
}

func (r *running) accept(key string) TransactionID {
	r.t.Helper()
	in := adviceOf(r.next("processor-a"), key)
	id, err := r.Accept(context.Background(), in, replyOf(in, "00"))
	if err != nil {
		r.t.Fatal(err)
	}
	return id
}

func (r *running) find(key string) Found {
	r.t.Helper()
	f, found, err := r.Find(context.Background(), "pos-switch", key)
	if err != nil || !found {
		r.t.Fatalf("%s: %v, %v", key, found, err)
	}
	return f
}

func TestAnAdviceIsAcceptedAndOwedInOneRecord(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		path := create(t)
		r := start(t, Config{Path: path})
		in := adviceOf(r.next("processor-a"), "key")
		id, err := r.Accept(t.Context(), in, replyOf(in, "00"))
		if err != nil {
			t.Fatal(err)
		}
		r = r.reopened(path)

		if tickets, err := r.Unfinished(t.Context()); err != nil || len(tickets) != 0 {
			t.Errorf("an accepted advice is taken for open: %v, %v", tickets, err)
		}
		if got := r.transaction(id); got.Outcome != Accepted || got.Advice != StateOwed || got.Owed != "" || !got.FinishedAt.Equal(got.BegunAt) {
			t.Errorf("got %+v", got)
		}
		due := r.Incurred("processor-a")
		if len(due) != 1 || due[0].Kind != KindAdvice || due[0].Transaction != id || due[0].Card != in.Token {
			t.Fatalf("incurred %+v", due)
		}
		got, err := r.Owing(t.Context(), due[0].ID)
		if err != nil || got.Kind != KindAdvice || got.Outcome != Accepted || got.Reason != "accepted" || got.Rest.KeyID != in.Rest.KeyID ||
			!bytes.Equal(got.Rest.Nonce, in.Rest.Nonce) || !bytes.Equal(got.Rest.Ciphertext, in.Rest.Ciphertext) ||
			!bytes.Equal(got.PAN.Ciphertext, in.PAN.Ciphertext) {
			t.Errorf("owing %+v, %v", got, err)
		}
		if was, is := toJSON(t, in.Original), toJSON(t, got.Original); was != is || !strings.Contains(is, `"mti":"0220"`) {
			t.Errorf("original %s, want %s", is, was)
		}
		if text := toJSON(t, got); strings.Contains(text, "pan-seal-1") {
			t.Errorf("JSON for an operator shows what is sealed: %s", text)
		}
		if e := r.Exposure(); e.Owed != 1 || !maps.Equal(e.Amounts, map[string]uint64{"978": 12345}) {
			t.Errorf("exposure %+v", e)
		}
		found := r.find("key")
		if found.ID != id || found.Outcome != Accepted || toJSON(t, found.Answer) != toJSON(t, replyOf(in, "00")) || found.Reversal != (Reversal{}) {
			t.Errorf("found %+v", found)
		}
		attempt := r.attempt(due[0].ID, Numbers{})
		r.settle(attempt, Acknowledged("00"))
		if got, want := r.history(id), "begun accepted owed:accepted attempted:attempt_1 acknowledged:00"; got != want {
			t.Errorf("history %q, want %q", got, want)
		}
		if e := r.Exposure(); e.Owed != 0 || len(e.Amounts) != 0 {
			t.Errorf("exposure %+v", e)
		}
	})
}

func toJSON(t *testing.T, v any) string {
	t.Helper()
	text, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func TestAcceptRefusesWhatItCannotRecord(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := start(t, Config{Path: create(t)})
		first := r.accept("key")
		numbers := r.next("processor-a")
		again := adviceOf(numbers, "key")
		if id, err := r.Accept(t.Context(), again, replyOf(again, "94")); !errors.Is(err, ErrDuplicate) || id != 0 {
			t.Errorf("the same key: %d, %v", id, err)
		}
		if got := r.find("key"); got.ID != first || got.Answer.Get(messages.ResponseCode) != "00" {
			t.Errorf("the refused one has changed it: %+v", got)
		}
		ended, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := r.Accept(ended, adviceOf(numbers, "late"), messages.Reply{}); !errors.Is(err, context.Canceled) {
			t.Errorf("an ended context: %v", err)
		}
		incomplete := adviceOf(numbers, "incomplete")
		incomplete.Rest.Ciphertext = nil
		if _, err := r.Accept(t.Context(), incomplete, messages.Reply{}); err == nil {
			t.Error("a rest without its text was taken")
		}
		incomplete = adviceOf(numbers, "incomplete")
		incomplete.Rest.KeyID = ""
		if _, err := r.Accept(t.Context(), incomplete, messages.Reply{}); err == nil {
			t.Error("a rest without its key was taken")
		}
		if got := len(r.owed()); got != 1 {
			t.Errorf("%d owed", got)
		}

		// A full queue refuses an advice: nothing has happened yet.
		held, release := make(chan struct{}), make(chan struct{})
		var once sync.Once
		r.writer.fault = func(bool) error {
			once.Do(func() { close(held); <-release })
			return nil
		}
		r.queue.limit = 1
		var callers sync.WaitGroup
		for _, key := range []string{"written", "waiting"} {
			callers.Go(func() {
				if _, err := r.Accept(t.Context(), adviceOf(numbers, key), messages.Reply{}); err != nil {
					t.Errorf("%s: %v", key, err)
				}
			})
			<-held
			synctest.Wait()
		}
		if _, err := r.Accept(t.Context(), adviceOf(numbers, "refused"), messages.Reply{}); !errors.Is(err, ErrBusy) {
			t.Errorf("on a full queue: %v", err)
		}
		close(release)
		callers.Wait()
		if _, found, err := r.Find(t.Context(), "pos-switch", "refused"); found || err != nil {
			t.Errorf("a refused advice is found: %v", err)
		}
	})
}

func TestAnAdviceWithoutAnAnswerIsFound(t *testing.T) {
	r := start(t, Config{Path: create(t)})
	in := adviceOf(r.next("processor-a"), "key")
	in.Rest, in.PAN, in.Token = card.SealedRest{}, card.SealedPAN{}, card.PANToken{}
	id, err := r.Accept(context.Background(), in, messages.Reply{})
	if err != nil {
		t.Fatal(err)
	}
	if got := r.find("key"); got.ID != id || !got.Answer.IsZero() || got.PAN.KeyID != "" {
		t.Errorf("found %+v", got)
	}
	if got, err := r.Owing(context.Background(), 1); err != nil || got.Rest.KeyID != "" || got.Rest.Ciphertext != nil || got.PAN.Ciphertext != nil {
		t.Errorf("owing %+v, %v", got, err)
	}
}

func TestAnAdviceIsReversed(t *testing.T) {
	path := create(t)
	r := start(t, Config{Path: path})
	id := r.accept("key")
	stands, err := r.Owe(context.Background(), Reversing{Transaction: id, Reason: "upstream"})
	if err != nil || stands != (Reversal{ID: 2, State: StateOwed}) {
		t.Fatalf("stands %+v, %v", stands, err)
	}
	for range 2 {
		if got := r.transaction(id); got.Advice != StateOwed || got.Owed != StateOwed {
			t.Errorf("got %+v", got)
		}
		if got := r.find("key").Reversal; got != stands {
			t.Errorf("found %+v", got)
		}
		if got := r.incurred(); len(got) != 2 || got[0] != 1 || got[1] != 2 { // the advice first
			t.Errorf("incurred %v", got)
		}
		r = r.reopened(path)
		path = r.path
	}
	r.settle(r.attempt(1, Numbers{}), Acknowledged("00"))
	r.settle(r.attempt(2, Numbers{}), Acknowledged("00"))
	if got, want := r.history(id), "begun accepted owed:accepted owed:upstream attempted:attempt_1 acknowledged:00 attempted:attempt_1 acknowledged:00"; got != want {
		t.Errorf("history %q, want %q", got, want)
	}
	if e := r.Exposure(); e.Owed != 0 || len(e.Amounts) != 0 {
		t.Errorf("exposure %+v", e)
	}
}

func TestABarredRequestIsNeverBegun(t *testing.T) {
	ctx := context.Background()
	path := create(t)
	r := start(t, Config{Path: path})
	barred := Barred{Upstream: "pos-switch", UpstreamKey: "key", MTI: messages.AuthorizationRequest, UpstreamSTAN: "000777", MaskedPAN: "411111******1111"}
	if err := r.Bar(ctx, barred); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := r.Bar(ctx, barred); !errors.Is(err, ErrDuplicate) {
			t.Errorf("barred again: %v", err)
		}
		if _, err := r.Begin(ctx, intentOf(r.next("processor-a"), "key")); !errors.Is(err, ErrDuplicate) {
			t.Errorf("begun: %v", err)
		}
		advice := adviceOf(r.next("processor-a"), "key")
		if _, err := r.Accept(ctx, advice, replyOf(advice, "00")); !errors.Is(err, ErrDuplicate) {
			t.Errorf("accepted: %v", err)
		}
		got := r.find("key")
		if got.Outcome != NotSent || got.Reason != ReasonBarred || got.Endpoint != "" || !got.Answer.IsZero() || got.Original.MTI != "0100" || got.MaskedPAN != barred.MaskedPAN {
			t.Errorf("found %+v", got)
		}
		if got := r.transaction(got.ID); got.STAN != "" || got.UpstreamSTAN != "000777" || got.FinishedAt.IsZero() {
			t.Errorf("got %+v", got)
		}
		if got, want := r.history(got.ID), "begun not_sent:reversed_first"; got != want {
			t.Errorf("history %q, want %q", got, want)
		}
		if _, err := r.Owe(ctx, Reversing{Transaction: got.ID, Reason: "upstream"}); !errors.Is(err, ErrNotApproved) {
			t.Errorf("a reversal of it: %v", err)
		}
		if len(r.standing.inUse) > 1 || len(r.standing.inUse[""]) != 0 {
			t.Errorf("it holds a STAN: %v", r.standing.inUse)
		}
		if e := r.Exposure(); e.Owed != 0 || len(e.Amounts) != 0 {
			t.Errorf("exposure %+v", e)
		}
		r = r.reopened(path)
		path = r.path
		if tickets, err := r.Unfinished(ctx); err != nil || len(tickets) != 0 {
			t.Errorf("unfinished %v, %v", tickets, err)
		}
	}
	came := r.begin("came")
	if err := r.Bar(ctx, Barred{Upstream: "pos-switch", UpstreamKey: "came", MTI: "0100"}); !errors.Is(err, ErrDuplicate) {
		t.Errorf("a request that has come: %v", err)
	}
	r.finish(came, Outcome{Kind: Approved, ResponseCode: "00"})
	barred.Upstream = "other-switch"
	if err := r.Bar(ctx, barred); err != nil {
		t.Errorf("another upstream's key: %v", err)
	}
}

func TestBarringNothingIsRefusedAndTheJournalGoesOn(t *testing.T) {
	r := start(t, Config{Path: create(t)})
	for name, b := range map[string]Barred{
		"no upstream": {UpstreamKey: "key", MTI: "0100"},
		"no key":      {Upstream: "pos-switch", MTI: "0100"},
		"no MTI":      {Upstream: "pos-switch", UpstreamKey: "key"},
		"a short MTI": {Upstream: "pos-switch", UpstreamKey: "key", MTI: "010"},
	} {
		if err := r.Bar(context.Background(), b); err == nil || errors.Is(err, ErrFailed) {
			t.Errorf("%s: %v", name, err)
		}
	}
	r.begin("key")
}

func TestFindGivesWhatARepeatNeeds(t *testing.T) {
	path := create(t)
	r := start(t, Config{Path: path})
	in := intentOf(r.next("processor-a"), "key")
	ticket, err := r.Begin(t.Context(), in)
	if err != nil {
		t.Fatal(err)
	}
	want := Found{ID: ticket.ID(), Endpoint: "processor-a", PAN: in.PAN, MaskedPAN: in.MaskedPAN}
	check := func(when string, want Found, code string) {
		t.Helper()
		for range 2 {
			got := r.find("key")
			if toJSON(t, got.Original) != toJSON(t, in.Original) {
				t.Errorf("%s: original %s", when, toJSON(t, got.Original))
			}
			if code == "" != got.Answer.IsZero() || got.Answer.Get(messages.ResponseCode) != code {
				t.Errorf("%s: answer %s, want %q", when, toJSON(t, got.Answer), code)
			}
			got.Original, got.Answer = messages.Original{}, messages.Reply{}
			if toJSON(t, got) != toJSON(t, want) {
				t.Errorf("%s: got %+v, want %+v", when, got, want)
			}
			if when != "open" {
				r = r.reopened(path)
				path = r.path
			}
		}
	}
	check("open", want, "")
	ticket.Spend()
	if err := r.Finish(t.Context(), ticket, Outcome{Kind: Approved, ResponseCode: "10", ApprovedAmount: "000000010000", Answer: replyOf(in, "10")}); err != nil {
		t.Fatal(err)
	}
	want.Outcome, want.ResponseCode, want.ApprovedAmount = Approved, "10", "000000010000"
	check("approved", want, "10")
	if want.Reversal, err = r.Owe(t.Context(), Reversing{Transaction: ticket.ID(), Reason: "upstream", Replacement: "000000004000"}); err != nil {
		t.Fatal(err)
	}
	check("partly reversed", want, "10")
	r.settle(r.attempt(want.Reversal.ID, Numbers{}), Acknowledged("00"))
	want.Reversal.State, want.Reversal.ResponseCode = StateAcknowledged, "00"
	check("paid", want, "10")

	for _, other := range []struct{ upstream, key string }{{"other-switch", "key"}, {"pos-switch", "KEY"}, {"pos-switch", ""}, {"", "key"}} {
		if _, found, err := r.Find(t.Context(), other.upstream, other.key); found || err != nil {
			t.Errorf("%+v: %v, %v", other, found, err)
		}
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if _, found, err := r.Find(ended, "pos-switch", "key"); !found || err != nil {
		t.Errorf("with an ended context: %v, %v", found, err)
	}
}

func TestWhatCannotBeReadIsNotTakenForNothing(t *testing.T) {
	for name, script := range map[string]string{
		"an original that cannot be read": "DROP TRIGGER transactions_begun; UPDATE transactions SET original = '{\"mti\":\"0100\",\"pan\":\"4111111111111111\"}'",
		"an answer that cannot be read":   "UPDATE transactions SET answer = '4111111111111111'",
	} {
		t.Run(name, func(t *testing.T) {
			path := create(t)
			r := start(t, Config{Path: path})
			r.finish(r.begin("key"), Outcome{Kind: Declined, ResponseCode: "51"})
			r.stop()
			change(t, path, script)
			r = start(t, Config{Path: path})
			if _, _, err := r.Find(t.Context(), "pos-switch", "key"); err == nil || strings.Contains(err.Error(), "4111") {
				t.Errorf("got %v", err)
			}
		})
	}
}

// An upstream's repeat can come at any moment: it finds nothing or all of its transaction, and what it finds does not go back.
func TestFindWhileTransactionsAreWritten(t *testing.T) {
	r := start(t, Config{Path: create(t), Batch: 4})
	ranks := map[Kind]int{"": 1, Approved: 2}
	for range 50 {
		in := intentOf(r.next("processor-a"), "key-"+r.next("processor-a").RRN)
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			ticket, err := r.Begin(t.Context(), in)
			if err != nil {
				t.Error(err)
				return
			}
			ticket.Spend()
			if err := r.Finish(t.Context(), ticket, Outcome{Kind: Approved, ResponseCode: "00", Answer: replyOf(in, "00")}); err != nil {
				t.Error(err)
			}
		}()
		for rank, last := 0, false; ; {
			select {
			case <-ended:
				last = true
			default:
			}
			f, found, err := r.Find(t.Context(), in.Upstream, in.UpstreamKey)
			now := ranks[f.Outcome]
			if !found {
				now = 0
			}
			if err != nil || now < rank || f.Outcome == Approved && f.Answer.Get(messages.ResponseCode) != "00" {
				t.Fatalf("after %d: %+v, %v", rank, f, err)
			}
			rank = now
			if last {
				if rank != 2 {
					t.Errorf("durable and not found: %+v", f)
				}
				break
			}
		}
	}
}

// An approved amount is a processor's text: one that is no amount may not end the daemon, nor keep it from starting.
func TestAnApprovedAmountThatIsNoneCountsAsWhatWasAsked(t *testing.T) {
	for _, amount := range []string{"C00000001000", "1234567890123", "-1", "0x10", "12345 "} {
		path := create(t)
		r := start(t, Config{Path: path})
		approved := r.begin("")
		r.finish(approved, Outcome{Kind: Approved, ResponseCode: "10", ApprovedAmount: amount})
		if _, err := r.Owe(t.Context(), Reversing{Transaction: approved.ID(), Reason: "undelivered"}); err != nil {
			t.Fatalf("%q: %v", amount, err)
		}
		r.finish(r.begin(""), Outcome{Kind: Unknown, ApprovedAmount: amount})
		for range 2 {
			if e := r.Exposure(); e.Owed != 2 || e.Amounts["978"] != 2*12345 {
				t.Errorf("%q: exposure %+v", amount, e)
			}
			r.stop()
			r = start(t, Config{Path: path})
		}
	}
}

func TestReversalsAreExposedWithWhatIsAtStake(t *testing.T) {
	for _, test := range []struct {
		name, approved, replacement string
		want                        uint64
	}{
		{"a full reversal", "", "", 12345},
		{"of a partial approval", "000000010000", "", 10000},
		{"a partial reversal", "", "000000002345", 10000},
		{"a partial reversal of a partial approval", "000000010000", "000000002345", 7655},
		{"one that leaves more than was approved", "000000000100", "000000002345", 0},
		{"one that leaves all", "", "000000012345", 0},
		{"one that leaves nothing", "", "000000000000", 12345},
	} {
		t.Run(test.name, func(t *testing.T) {
			path := create(t)
			r := start(t, Config{Path: path})
			ticket := r.begin("")
			r.finish(ticket, Outcome{Kind: Approved, ResponseCode: "00", ApprovedAmount: test.approved})
			stands, err := r.Owe(t.Context(), Reversing{Transaction: ticket.ID(), Reason: "upstream", Replacement: test.replacement})
			if err != nil {
				t.Fatal(err)
			}
			exposed := func(when string, want uint64) {
				t.Helper()
				if got := r.Exposure(); got.Amounts["978"] != want {
					t.Errorf("%s: %d, want %d", when, got.Amounts["978"], want)
				}
			}
			exposed("owed", test.want)
			r.stop()
			r = start(t, Config{Path: path})
			exposed("reopened", test.want)
			r.park(stands.ID)
			exposed("parked", 0)
			r.release(stands.ID)
			exposed("released", test.want)
			r.settle(r.attempt(stands.ID, Numbers{}), Again(time.Now(), "timeout", ""))
			exposed("attempted", test.want)
			r.settle(r.attempt(stands.ID, Numbers{}), Acknowledged("00"))
			if e := r.Exposure(); e.Owed != 0 || len(e.Amounts) != 0 || !e.Oldest.IsZero() {
				t.Errorf("exposure at the end %+v", e)
			}
		})
	}
}

// And a debt without money is one too.
func TestSumsOfCurrenciesAreKeptApart(t *testing.T) {
	r := start(t, Config{Path: create(t)})
	for currency, amount := range map[string]string{"978": "000000000001", "840": "000000000000", "": ""} {
		m := messages.New(messages.AuthorizationRequest)
		m.Set(messages.STAN, r.next("processor-a").STAN)
		m.Set(messages.Amount, amount)
		m.Set(messages.Currency, currency)
		in := intentOf(messages.Numbers{}, "")
		in.Original = m.Original()
		ticket, err := r.Begin(t.Context(), in)
		if err != nil {
			t.Fatal(err)
		}
		r.finish(ticket, Outcome{Kind: Unknown})
	}
	if e := r.Exposure(); e.Owed != 3 || e.Amounts["978"] != 1 || e.Amounts["840"] != 0 {
		t.Errorf("exposure %+v", e)
	}
	for _, d := range r.Incurred("processor-a") {
		r.settle(r.attempt(d.ID, Numbers{}), Acknowledged("00"))
	}
	if e := r.Exposure(); e.Owed != 0 || len(e.Amounts) != 0 {
		t.Errorf("exposure at the end %+v", e)
	}
}

func TestTheFirstReversalStands(t *testing.T) {
	path := create(t)
	r := start(t, Config{Path: path})
	ticket := r.begin("")
	r.finish(ticket, Outcome{Kind: Approved, ResponseCode: "00"})
	want, err := r.Owe(t.Context(), Reversing{Transaction: ticket.ID(), Reason: "upstream", Replacement: "000000002345"})
	if err != nil {
		t.Fatal(err)
	}
	check := func(when string) {
		t.Helper()
		for _, replacement := range []string{"", "000000000001", "000000002345"} {
			if replacement == "" && want.State != StateOwed {
				continue // then it takes the place of this one
			}
			if got, err := r.Owe(t.Context(), Reversing{Transaction: ticket.ID(), Reason: "undelivered", Replacement: replacement}); err != nil || got != want {
				t.Errorf("%s: %+v, want %+v, %v", when, got, want, err)
			}
		}
		if got := r.transaction(ticket.ID()); got.Owed != want.State || got.Replacement != "000000002345" {
			t.Errorf("%s: %+v", when, got)
		}
		if got := r.owed(); len(got) != 1 || got[0].Reason != "upstream" || got[0].Replacement != "000000002345" {
			t.Errorf("%s: %+v", when, got)
		}
	}
	check("owed")
	r = r.reopened(path)
	check("reopened")
	r.park(want.ID)
	want.State = StateParked
	check("parked")
	r.release(want.ID)
	want.State = StateOwed
	check("released")
	r.settle(r.attempt(want.ID, Numbers{}), Acknowledged("25"))
	want.State, want.ResponseCode = StateAcknowledged, "25"
	check("acknowledged")
	for name, of := range map[string]Reversing{
		"free text":               {Reason: "it failed"},
		"a short replacement":     {Reason: "upstream", Replacement: "1"},
		"a replacement of words":  {Reason: "upstream", Replacement: "twelve chars"},
		"a signed replacement":    {Reason: "upstream", Replacement: "-00000000001"},
		"a replacement too large": {Reason: "upstream", Replacement: "1234567890123"},
	} {
		of.Transaction = ticket.ID()
		if !panics(func() { _, _ = r.Owe(context.Background(), of) }) {
			t.Errorf("%s: no panic", name)
		}
	}
	// The whole after a part.
	stands, err := r.Owe(t.Context(), Reversing{Transaction: ticket.ID(), Reason: "upstream"})
	if wantFull := (Reversal{ID: want.ID, State: StateOwed}); err != nil || stands != wantFull {
		t.Errorf("the whole: %+v, %v", stands, err)
	}
	if e := r.Exposure(); e.Owed != 1 || e.Amounts["978"] != 12345 {
		t.Errorf("exposure %+v", e)
	}
	if again, err := r.Owe(t.Context(), Reversing{Transaction: ticket.ID(), Reason: "upstream"}); err != nil || again != stands {
		t.Errorf("the whole again: %+v, %v", again, err)
	}
	if attempt := r.attempt(want.ID, Numbers{}); attempt.Attempt() != 1 {
		t.Errorf("it is sent as attempt %d", attempt.Attempt())
	}
}
