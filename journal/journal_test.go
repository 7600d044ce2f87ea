package journal

import (
	"bytes"
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"acquirerd/card"
	"acquirerd/messages"
)

// create makes a journal in the test's directory.
func create(t testing.TB) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "journal.db")
	if err := Create(path, "acq01"); err != nil {
		t.Fatal(err)
	}
	return path
}

// A running is an open journal whose writer runs.
type running struct {
	*Journal
	t        testing.TB
	registry *prometheus.Registry
	cancel   context.CancelFunc
	ended    chan error
	stopped  bool
}

func openJournal(t testing.TB, cfg Config) *Journal {
	t.Helper()
	if cfg.Station == "" {
		cfg.Station = "acq01"
	}
	j, err := Open(cfg, slog.New(slog.DiscardHandler), prometheus.NewRegistry())
	if err != nil {
		t.Fatal(err)
	}
	return j
}

// start opens a journal and runs its writer until the test ends.
func start(t testing.TB, cfg Config) *running {
	t.Helper()
	return run(t, openJournal(t, cfg))
}

func run(t testing.TB, j *Journal) *running {
	ctx, cancel := context.WithCancel(context.Background())
	r := &running{Journal: j, t: t, cancel: cancel, ended: make(chan error, 1)}
	go func() { r.ended <- j.Run(ctx) }()
	t.Cleanup(func() {
		if !r.stopped {
			r.stop()
		}
	})
	return r
}

// stop ends the writer, which must have had no error, and closes the journal.
func (r *running) stop() {
	r.t.Helper()
	r.stopped = true
	r.cancel()
	if err := <-r.ended; err != nil {
		r.t.Errorf("Run: %v", err)
	}
	if err := r.Close(); err != nil {
		r.t.Errorf("Close: %v", err)
	}
}

// next, begin and finish are the steps of a transaction that must work.
func (r *running) next(endpoint string) messages.Numbers {
	r.t.Helper()
	numbers, err := r.Next(context.Background(), endpoint, time.Now())
	if err != nil {
		r.t.Fatal(err)
	}
	return numbers
}

func (r *running) begin(key string) *Ticket {
	r.t.Helper()
	ticket, err := r.Begin(context.Background(), intentOf(r.next("processor-a"), key))
	if err != nil {
		r.t.Fatal(err)
	}
	return ticket
}

func (r *running) finish(ticket *Ticket, out Outcome) {
	r.t.Helper()
	if out.Kind == Approved || out.Kind == Declined {
		ticket.Spend()
	}
	if err := r.Finish(context.Background(), ticket, out); err != nil {
		r.t.Fatal(err)
	}
}

func (r *running) owed() []Owed {
	r.t.Helper()
	owed, err := r.Owed(context.Background(), OwedFilter{Limit: 1 << 20})
	if err != nil {
		r.t.Fatal(err)
	}
	return owed
}

func (r *running) transaction(id TransactionID) Transaction {
	r.t.Helper()
	found, err := r.Transactions(context.Background(), Filter{ID: id})
	if err != nil || len(found) != 1 {
		r.t.Fatalf("transaction %d: %d rows, %v", id, len(found), err)
	}
	return found[0]
}

func (r *running) history(id TransactionID) string {
	r.t.Helper()
	events, err := r.reader.History(context.Background(), id)
	if err != nil {
		r.t.Fatal(err)
	}
	var states []string
	for i, e := range events {
		if e.Number != i+1 || e.At.IsZero() {
			r.t.Errorf("event %d of transaction %d: number %d at %v", i+1, id, e.Number, e.At)
		}
		states = append(states, strings.TrimSuffix(e.State+":"+e.Detail, ":"))
	}
	return strings.Join(states, " ")
}

// intentOf is a purchase of 123.45 EUR.
func intentOf(numbers messages.Numbers, key string) Intent {
	m := messages.New(messages.AuthorizationRequest)
	for element, value := range map[messages.Element]string{
		messages.ProcessingCode: "000000", messages.Amount: "000000012345", messages.TransmissionTime: "1123220418",
		messages.STAN: numbers.STAN, messages.LocalTime: "220418", messages.LocalDate: "1123", messages.MerchantType: "5411",
		messages.POSEntryMode: "051", messages.POSConditionCode: "00", messages.AcquirerID: "123456",
		messages.RRN: numbers.RRN, messages.Terminal: "TERM0001", messages.Merchant: "MERCHANT0000001",
		messages.Currency: "978",
	} {
		m.Set(element, value)
	}
	return Intent{
		Upstream: "pos-switch", UpstreamKey: key, UpstreamSTAN: "000777", UpstreamRRN: "632700000001", Endpoint: "processor-a",
		Original: m.Original(), MaskedPAN: "411111******1111", Token: card.PANToken{1, 2, 3},
		PAN: card.SealedPAN{KeyID: "pan-seal-1", Nonce: []byte("123456789012"), Ciphertext: []byte("sealed PAN and its tag")},
	}
}

func panics(f func()) (did bool) {
	defer func() { did = recover() != nil }()
	f()
	return false
}

func TestLifeOfATransaction(t *testing.T) {
	r := start(t, Config{Path: create(t)})
	numbers := r.next("processor-a")
	in := intentOf(numbers, "key-1")
	in.At = time.Date(2026, 11, 23, 22, 4, 18, 123456000, time.UTC)
	ticket, err := r.Begin(context.Background(), in)
	if err != nil {
		t.Fatal(err)
	}
	if got := r.transaction(ticket.ID()); got.Outcome != "" || !got.FinishedAt.IsZero() {
		t.Errorf("an open transaction has outcome %q", got.Outcome)
	}
	r.finish(ticket, Outcome{Kind: Approved, ResponseCode: "10", AuthorizationID: "A12345", ApprovedAmount: "000000010000"})

	got := r.transaction(ticket.ID())
	if got.FinishedAt.IsZero() {
		t.Error("a finished transaction has no time")
	}
	got.FinishedAt = time.Time{}
	want := Transaction{
		ID: ticket.ID(), Upstream: "pos-switch", UpstreamKey: "key-1", UpstreamSTAN: "000777", UpstreamRRN: "632700000001",
		Endpoint: "processor-a", MTI: "0100", STAN: numbers.STAN, RRN: numbers.RRN, TransmissionTime: "1123220418",
		AcquirerID: "123456", Terminal: "TERM0001", Merchant: "MERCHANT0000001", Amount: "000000012345", Currency: "978",
		MaskedPAN: "411111******1111", Outcome: Approved, ResponseCode: "10", AuthorizationID: "A12345",
		ApprovedAmount: "000000010000", BegunAt: in.At,
	}
	if got != want {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
	if got, want := r.history(ticket.ID()), "begun approved:10"; got != want {
		t.Errorf("history %q, want %q", got, want)
	}
	if e := r.Exposure(); e.Owed != 0 || len(e.Amounts) != 0 {
		t.Errorf("an approval is exposed: %+v", e)
	}
}

func TestEachOutcomeIsRecordedAndOnlyUnknownIsOwed(t *testing.T) {
	r := start(t, Config{Path: create(t)})
	for _, out := range []Outcome{
		{Kind: Approved, ResponseCode: "00"}, {Kind: Declined, ResponseCode: "51"},
		{Kind: NotSent, Reason: "no_link"}, {Kind: Unknown, Reason: "timeout"},
	} {
		ticket := r.begin(string(out.Kind))
		r.finish(ticket, out)
		got := r.transaction(ticket.ID())
		wantOwed := State("")
		if out.Kind == Unknown {
			wantOwed = StateOwed
		}
		if got.Outcome != out.Kind || got.ResponseCode != out.ResponseCode || got.Reason != out.Reason || got.Owed != wantOwed {
			t.Errorf("%s: got %+v", out.Kind, got)
		}
	}
}

func TestWhatIsOwedHoldsWhatItsReversalNeeds(t *testing.T) {
	path := create(t)
	r := start(t, Config{Path: path})
	in := intentOf(r.next("processor-a"), "")
	ticket, err := r.Begin(context.Background(), in)
	if err != nil {
		t.Fatal(err)
	}
	r.finish(ticket, Outcome{Kind: Unknown, Reason: "timeout"})
	r.stop()

	r = start(t, Config{Path: path}) // from the file, not from memory
	due := r.Incurred("processor-a")
	if len(due) != 1 || due[0].Card != in.Token || due[0].Transaction != ticket.ID() || due[0].Kind != KindReversal || due[0].Attempts != 0 {
		t.Fatalf("incurred: %+v", due)
	}
	o, err := r.Owing(context.Background(), due[0].ID)
	if err != nil {
		t.Fatal(err)
	}
	if o.TransactionID != ticket.ID() || o.Kind != "reversal" || o.Endpoint != "processor-a" || o.Reason != "timeout" ||
		o.State != StateOwed || o.Attempts != 0 || o.MaskedPAN != in.MaskedPAN || o.Token != in.Token ||
		o.PAN.KeyID != in.PAN.KeyID || !bytes.Equal(o.PAN.Nonce, in.PAN.Nonce) || !bytes.Equal(o.PAN.Ciphertext, in.PAN.Ciphertext) {
		t.Errorf("got %+v", o)
	}
	got, _ := json.Marshal(o.Original)
	want, _ := json.Marshal(in.Original)
	if !bytes.Equal(got, want) {
		t.Errorf("original %s, want %s", got, want)
	}
	text, err := json.Marshal(o)
	if err != nil || bytes.Contains(text, []byte("pan-seal-1")) {
		t.Errorf("JSON for an operator shows the sealed PAN: %s, %v", text, err)
	}
}

func TestAReversalIsPaidInAttempts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx := context.Background()
		path := create(t)
		r := start(t, Config{Path: path})
		ticket := r.begin("")
		r.finish(ticket, Outcome{Kind: Unknown, Reason: "timeout"})
		id := r.owed()[0].ID
		if incurred := r.Incurred("processor-a"); len(incurred) != 1 || incurred[0].ID != id || !incurred[0].DueAt.Equal(time.Now()) {
			t.Fatalf("incurred %+v", incurred)
		}
		if incurred := r.Incurred("processor-a"); len(incurred) != 0 {
			t.Fatalf("incurred twice: %+v", incurred)
		}

		attempt := func(wantAttempt int) *Ticket {
			t.Helper()
			ticket, err := r.Attempt(ctx, id, Numbers{})
			if err != nil {
				t.Fatal(err)
			}
			if ticket.Attempt() != wantAttempt || ticket.Owed() != id {
				t.Fatalf("got %s, want attempt %d", ticket, wantAttempt)
			}
			return ticket
		}
		settle := func(ticket *Ticket, s Settlement) {
			t.Helper()
			if err := r.Settle(ctx, ticket, s); err != nil {
				t.Fatal(err)
			}
		}

		first := attempt(1)
		if _, err := r.Attempt(ctx, id, Numbers{}); !errors.Is(err, ErrNotOwed) {
			t.Errorf("a second attempt beside the first: %v", err)
		}
		first.Spend()
		settle(first, Again(time.Now().Add(5*time.Second), "timeout", ""))
		if o := r.owed()[0]; !o.DueAt.Equal(time.Now().Add(5*time.Second)) || o.Attempts != 1 {
			t.Errorf("got %+v", o)
		}

		unsent := attempt(2)
		unsent.Spend()
		settle(unsent, Unsent(time.Now(), "no_link"))
		unspent := attempt(2) // the one before never left
		settle(unspent, Again(time.Now(), "no_link", ""))
		attempt(2) // and now we crash: the second send may have left
		r.stop()

		r = start(t, Config{Path: path})
		if incurred := r.Incurred("processor-a"); len(incurred) != 1 || incurred[0].ID != id || incurred[0].Attempts != 2 {
			t.Errorf("incurred %+v", incurred)
		}
		third := attempt(3)
		third.Spend()
		settle(third, Acknowledged("00"))
		if _, err := r.Attempt(ctx, id, Numbers{}); !errors.Is(err, ErrNotOwed) {
			t.Errorf("attempt of what is acknowledged: %v", err)
		}
		got := r.owed()[0]
		if got.State != StateAcknowledged || got.Attempts != 3 || got.ResponseCode != "00" || got.SettledAt.IsZero() {
			t.Errorf("got %+v", got)
		}
		want := "begun unknown:timeout owed:timeout attempted:attempt_1 again:timeout attempted:attempt_2 unsent:no_link " +
			"attempted:attempt_2 again:no_link attempted:attempt_2 attempted:attempt_3 acknowledged:00"
		if got := r.history(ticket.ID()); got != want {
			t.Errorf("history %q\nwant    %q", got, want)
		}
	})
}

func TestParkedIsKeptAndNotDue(t *testing.T) {
	ctx := context.Background()
	path := create(t)
	r := start(t, Config{Path: path})
	r.finish(r.begin(""), Outcome{Kind: Unknown, Reason: "timeout"})
	ticket, err := r.Attempt(ctx, r.owed()[0].ID, Numbers{})
	if err != nil {
		t.Fatal(err)
	}
	ticket.Spend()
	if err := r.Settle(ctx, ticket, Parked("poison", "30")); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if incurred := r.Incurred("processor-a"); len(incurred) != 0 {
			t.Errorf("parked is to be paid: %+v", incurred)
		}
		if got := r.owed()[0]; got.State != StateParked || got.LastReason != "poison" || got.ResponseCode != "30" {
			t.Errorf("got %+v", got)
		}
		if e := r.Exposure(); e.Owed != 0 || e.Parked != 1 || !e.Oldest.IsZero() || len(e.Amounts) != 0 {
			t.Errorf("exposure %+v", e)
		}
		r.stop()
		r = start(t, Config{Path: path})
	}
}

func TestOwe(t *testing.T) {
	ctx := context.Background()
	r := start(t, Config{Path: create(t)})
	ids := map[Kind]TransactionID{}
	for _, kind := range []Kind{Approved, Declined, NotSent, Unknown} {
		ticket := r.begin("")
		r.finish(ticket, Outcome{Kind: kind, ApprovedAmount: "000000000100"})
		ids[kind] = ticket.ID()
	}
	open := r.begin("").ID()
	for range 2 {
		if _, err := r.Owe(ctx, Reversing{Transaction: ids[Approved], Reason: "undelivered"}); err != nil {
			t.Errorf("an approved transaction: %v", err)
		}
	}
	if stands, err := r.Owe(ctx, Reversing{Transaction: ids[Unknown], Reason: "upstream"}); err != nil || stands.State != StateOwed {
		t.Errorf("an unknown transaction: %+v, %v", stands, err)
	}
	for _, id := range []TransactionID{ids[Declined], ids[NotSent], open, 4711} {
		if _, err := r.Owe(ctx, Reversing{Transaction: id, Reason: "undelivered"}); !errors.Is(err, ErrNotApproved) {
			t.Errorf("transaction %d: %v", id, err)
		}
	}
	if got := r.history(ids[Approved]); got != "begun approved owed:undelivered" {
		t.Errorf("history %q", got)
	}
	// The reversal of a partial approval is about the approved amount.
	if e := r.Exposure(); e.Owed != 2 || e.Amounts["978"] != 100+12345 {
		t.Errorf("exposure %+v", e)
	}
}

func TestAKeyIsUsedOnce(t *testing.T) {
	ctx := context.Background()
	path := create(t)
	r := start(t, Config{Path: path})
	r.finish(r.begin("key"), Outcome{Kind: NotSent})
	r.begin("")
	r.begin("") // no key, no check
	other := intentOf(r.next("processor-a"), "key")
	other.Upstream = "other-switch"
	if _, err := r.Begin(ctx, other); err != nil {
		t.Errorf("another upstream's key: %v", err)
	}
	for range 2 {
		if _, err := r.Begin(ctx, intentOf(r.next("processor-a"), "key")); !errors.Is(err, ErrDuplicate) {
			t.Errorf("the same key: %v", err)
		}
		r.stop()
		r = start(t, Config{Path: path})
	}

	// Of many at once one begins, and the rest of their batch goes on.
	var mu sync.Mutex
	begun := map[string]int{}
	var callers sync.WaitGroup
	for i := range 60 {
		key := fmt.Sprint("at-once-", i%3)
		in := intentOf(r.next("processor-a"), key)
		callers.Go(func() {
			_, err := r.Begin(ctx, in)
			if err != nil && !errors.Is(err, ErrDuplicate) {
				t.Error(err)
			}
			mu.Lock()
			defer mu.Unlock()
			if err == nil {
				begun[key]++
			}
		})
	}
	callers.Wait()
	if want := map[string]int{"at-once-0": 1, "at-once-1": 1, "at-once-2": 1}; !maps.Equal(begun, want) {
		t.Errorf("begun %v", begun)
	}
}

func TestATicketIsForOneSendAndOneEnd(t *testing.T) {
	ctx := context.Background()
	path := create(t)
	r := start(t, Config{Path: path})
	approved := Outcome{Kind: Approved}
	unknown := Outcome{Kind: Unknown, Reason: "timeout"}

	spent := r.begin("")
	spent.Spend()
	if !panics(spent.Spend) {
		t.Error("spent twice")
	}
	r.finish(func() *Ticket { t := r.begin(""); return t }(), unknown)
	if err := r.Finish(ctx, spent, approved); err != nil {
		t.Fatal(err)
	}
	unspent, lost := r.begin(""), r.begin("")
	attempt, err := r.Attempt(ctx, r.owed()[0].ID, Numbers{})
	if err != nil {
		t.Fatal(err)
	}
	for name, misuse := range map[string]func(){
		"finished twice":                  func() { _ = r.Finish(ctx, spent, approved) },
		"an answer without a send":        func() { _ = r.Finish(ctx, unspent, approved) },
		"no kind":                         func() { _ = r.Finish(ctx, unspent, Outcome{}) },
		"free text as reason":             func() { _ = r.Finish(ctx, unspent, Outcome{Kind: Unknown, Reason: "read tcp: reset"}) },
		"digits as reason":                func() { _ = r.Finish(ctx, unspent, Outcome{Kind: Unknown, Reason: "4111111111111111"}) },
		"settled as an attempt":           func() { _ = r.Settle(ctx, unspent, Acknowledged("00")) },
		"attempt finished as a request":   func() { _ = r.Finish(ctx, attempt, unknown) },
		"acknowledgement without a send":  func() { _ = r.Settle(ctx, attempt, Acknowledged("00")) },
		"settlement of nothing":           func() { _ = r.Settle(ctx, attempt, Settlement{}) },
		"free text as reason for parking": func() { _ = r.Settle(ctx, attempt, Parked("It failed", "")) },
	} {
		if !panics(misuse) {
			t.Errorf("%s: no panic", name)
		}
	}
	attempt.Spend()
	if err := r.Settle(ctx, attempt, Acknowledged("00")); err != nil {
		t.Fatal(err)
	}
	if !panics(func() { _ = r.Settle(ctx, attempt, Acknowledged("00")) }) {
		t.Error("settled twice")
	}
	r.finish(unspent, Outcome{Kind: NotSent, Reason: "no_link"}) // misuse has not taken it
	if !panics(unspent.Spend) {
		t.Error("spent after its end")
	}
	r.stop()

	r = start(t, Config{Path: path})
	recovered, err := r.Unfinished(ctx)
	if err != nil || len(recovered) != 1 || recovered[0].ID() != lost.ID() || !recovered[0].Recovered() {
		t.Fatalf("recovered %v, %v", recovered, err)
	}
	if !panics(recovered[0].Spend) {
		t.Error("a recovered ticket was spent")
	}
	if !panics(func() { _ = r.Finish(ctx, recovered[0], Outcome{Kind: NotSent}) }) {
		t.Error("a recovered ticket was finished as not sent")
	}
	r.finish(recovered[0], Outcome{Kind: Unknown, Reason: "crash"})
}

func TestRecovery(t *testing.T) {
	ctx := context.Background()
	path := create(t)
	r := start(t, Config{Path: path})
	r.finish(r.begin("finished"), Outcome{Kind: Declined})
	first, second := r.begin("first"), r.begin("second")
	r.stop()

	r = start(t, Config{Path: path})
	r.begin("of this run")
	tickets, err := r.Unfinished(ctx)
	if err != nil || len(tickets) != 2 || tickets[0].ID() != first.ID() || tickets[1].ID() != second.ID() {
		t.Fatalf("recovered %v, %v", tickets, err)
	}
	if _, err := r.Unfinished(ctx); err == nil {
		t.Error("second tickets for the same intents")
	}
	for _, ticket := range tickets {
		r.finish(ticket, Outcome{Kind: Unknown, Reason: "crash"})
	}
	if e := r.Exposure(); e.Owed != 2 || e.Amounts["978"] != 2*12345 {
		t.Errorf("exposure %+v", e)
	}
	if open, err := r.Transactions(ctx, Filter{Outcome: StillOpen}); err != nil || len(open) != 1 {
		t.Errorf("%d still open, %v", len(open), err)
	}
}

func TestIntentsThatCannotBeRecordedAreRefused(t *testing.T) {
	r := start(t, Config{Path: create(t)})
	numbers := r.next("processor-a")
	for name, change := range map[string]func(*Intent){
		"no upstream":           func(in *Intent) { in.Upstream = "" },
		"no endpoint":           func(in *Intent) { in.Endpoint = "" },
		"no message":            func(in *Intent) { in.Original = messages.Original{} },
		"short STAN":            func(in *Intent) { *in = intentOf(messages.Numbers{STAN: "12345", RRN: numbers.RRN}, "") },
		"clear PAN as mask":     func(in *Intent) { in.MaskedPAN = "4111111111111111" },
		"key without PAN":       func(in *Intent) { in.PAN.Ciphertext = nil },
		"PAN without key":       func(in *Intent) { in.PAN.KeyID = "" },
		"amount with a decimal": func(in *Intent) { in.Original = originalWith(messages.Amount, "123.45") },
		"amount too long":       func(in *Intent) { in.Original = originalWith(messages.Amount, "1234567890123") },
	} {
		in := intentOf(numbers, "")
		change(&in)
		if _, err := r.Begin(context.Background(), in); err == nil {
			t.Errorf("%s: accepted", name)
		} else if strings.Contains(err.Error(), "4111") {
			t.Errorf("%s: error quotes content: %v", name, err)
		}
	}
	bare := intentOf(numbers, "")
	bare.PAN, bare.Token, bare.MaskedPAN = card.SealedPAN{}, card.PANToken{}, ""
	if _, err := r.Begin(context.Background(), bare); err != nil {
		t.Errorf("without a PAN: %v", err)
	}
}

func originalWith(e messages.Element, value string) messages.Original {
	m := messages.New(messages.AuthorizationRequest)
	m.Set(messages.STAN, "000001")
	m.Set(e, value)
	return m.Original()
}

func TestListing(t *testing.T) {
	ctx := context.Background()
	r := start(t, Config{Path: create(t)})
	var ids []TransactionID
	for i := range 10 {
		ticket := r.begin(fmt.Sprint("key-", i))
		if i < 8 {
			r.finish(ticket, Outcome{Kind: []Kind{Approved, Unknown}[i%2]})
		}
		ids = append(ids, ticket.ID())
	}
	third := r.transaction(ids[2])
	reader, err := OpenReadOnly(filepath.Join(filepath.Dir(databasePath(t, r.reader.db)), "journal.db")) // beside the daemon
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Close()
	if reader.Station() != "acq01" {
		t.Errorf("station %q", reader.Station())
	}
	for _, test := range []struct {
		name   string
		filter Filter
		want   []int
	}{
		{"all, newest first", Filter{}, []int{9, 8, 7, 6, 5, 4, 3, 2, 1, 0}},
		{"a page", Filter{Limit: 3}, []int{9, 8, 7}},
		{"the page after it", Filter{Limit: 3, Before: ids[7]}, []int{6, 5, 4}},
		{"by outcome", Filter{Outcome: Unknown}, []int{7, 5, 3, 1}},
		{"open ones", Filter{Outcome: StillOpen}, []int{9, 8}},
		{"by STAN", Filter{STAN: third.STAN}, []int{2}},
		{"by RRN", Filter{RRN: third.RRN}, []int{2}},
		{"by key", Filter{Upstream: "pos-switch", UpstreamKey: "key-4"}, []int{4}},
		{"by endpoint", Filter{Endpoint: "processor-b"}, nil},
		{"by several", Filter{Endpoint: "processor-a", Outcome: Approved, STAN: third.STAN}, []int{2}},
	} {
		found, err := reader.Transactions(ctx, test.filter)
		if err != nil {
			t.Fatal(err)
		}
		var got []int
		for _, transaction := range found {
			got = append(got, slices.Index(ids, transaction.ID))
		}
		if !slices.Equal(got, test.want) {
			t.Errorf("%s: got %v, want %v", test.name, got, test.want)
		}
	}
	owed, err := reader.Owed(ctx, OwedFilter{State: StateOwed, Endpoint: "processor-a", Limit: 3})
	if err != nil || len(owed) != 3 || owed[0].TransactionID != ids[7] {
		t.Errorf("owed %+v, %v", owed, err)
	}
	if _, err := reader.db.Exec("DELETE FROM owed"); err == nil {
		t.Error("a reader could write")
	}
}

// databasePath asks SQLite for the file that is open.
func databasePath(t *testing.T, db *sql.DB) string {
	var sequence int
	var name, path string
	if err := db.QueryRow("PRAGMA database_list").Scan(&sequence, &name, &path); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestNumbers(t *testing.T) {
	t.Run("are unique over many callers, small blocks and restarts", func(t *testing.T) {
		path := create(t)
		stans, rrns := map[string]bool{}, map[string]bool{}
		for range 3 {
			r := start(t, Config{Path: path, BlockSize: 7})
			var mu sync.Mutex
			var callers sync.WaitGroup
			for range 16 {
				callers.Go(func() {
					for range 50 {
						n, err := r.Next(context.Background(), "processor-a", time.Now())
						mu.Lock()
						if err != nil || stans[n.STAN] || rrns[n.RRN] || len(n.STAN) != 6 || len(n.RRN) != 12 {
							t.Errorf("STAN %s, RRN %s: %v", n.STAN, n.RRN, err)
						}
						stans[n.STAN], rrns[n.RRN] = true, true
						mu.Unlock()
					}
				})
			}
			callers.Wait()
			r.stop()
		}
	})
	t.Run("STANs are counted for each endpoint, RRNs for the journal", func(t *testing.T) {
		r := start(t, Config{Path: create(t)})
		a, b := r.next("processor-a"), r.next("processor-b")
		if a.STAN != "000001" || b.STAN != "000001" || a.RRN == b.RRN {
			t.Errorf("%+v and %+v", a, b)
		}
	})
	t.Run("RRN begins with the day in UTC", func(t *testing.T) {
		r := start(t, Config{Path: create(t)})
		at := time.Date(2027, 1, 1, 1, 0, 0, 0, time.FixedZone("", 2*3600)) // still 31 December 2026
		n, err := r.Next(context.Background(), "processor-a", at)
		if err != nil || n.RRN != "636500000001" {
			t.Errorf("RRN %s, %v", n.RRN, err)
		}
	})
	t.Run("STANs wrap and skip what is open, owed or parked", func(t *testing.T) {
		path := create(t)
		r := start(t, Config{Path: path, BlockSize: 10})
		ctx := context.Background()
		done, open, owed, parked, undelivered := r.begin(""), r.begin(""), r.begin(""), r.begin(""), r.begin("")
		r.finish(done, Outcome{Kind: Declined})
		r.finish(owed, Outcome{Kind: Unknown})
		r.finish(parked, Outcome{Kind: Unknown})
		r.finish(undelivered, Outcome{Kind: Approved})
		if _, err := r.Owe(ctx, Reversing{Transaction: undelivered.ID(), Reason: "undelivered"}); err != nil {
			t.Fatal(err)
		}
		attempt, err := r.Attempt(ctx, 2, Numbers{})
		if err != nil || attempt.ID() != parked.ID() {
			t.Fatal(attempt, err)
		}
		if err := r.Settle(ctx, attempt, Parked("expired", "")); err != nil {
			t.Fatal(err)
		}
		for range 2 { // from memory, and as loaded at start
			r.stop()
			change(t, path, "UPDATE numbers SET reserved = 999997 WHERE name = 'stan:processor-a'")
			r = start(t, Config{Path: path, BlockSize: 10})
			var got []string
			for range 5 {
				got = append(got, r.next("processor-a").STAN)
			}
			if want := []string{"999998", "999999", done.stan, "000006", "000007"}; !slices.Equal(got, want) {
				t.Errorf("got %v, want %v; open has %s", got, want, open.stan)
			}
		}
	})
	t.Run("nobody waits for ever", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			j := openJournal(t, Config{Path: create(t)}) // its writer does not run
			ctx, cancel := context.WithTimeout(context.Background(), time.Second)
			defer cancel()
			if _, err := j.Next(ctx, "processor-a", time.Now()); !errors.Is(err, context.DeadlineExceeded) {
				t.Error(err)
			}
			if err := j.Close(); err != nil {
				t.Error(err)
			}
			if _, err := j.Next(context.Background(), "processor-a", time.Now()); !errors.Is(err, ErrClosed) {
				t.Error(err)
			}
		})
	})
}

// change writes to a closed journal as nobody should.
func change(t testing.TB, path, script string) {
	t.Helper()
	conn, err := openConnection(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(conn.execute(script), conn.close()); err != nil {
		t.Fatal(err)
	}
}

func TestAFullQueueRefusesNewWorkAndNoOutcome(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx := context.Background()
		path := create(t)
		r := start(t, Config{Path: path})
		ticket, debt := r.begin(""), r.begin("")
		r.finish(debt, Outcome{Kind: Unknown})
		attempt, err := r.Attempt(ctx, 1, Numbers{})
		if err != nil {
			t.Fatal(err)
		}
		numbers := r.next("processor-a")

		// The writer is held inside a commit while the queue fills.
		held, release := make(chan struct{}), make(chan struct{})
		var once sync.Once
		r.writer.fault = func(committed bool) error {
			if !committed {
				once.Do(func() { close(held); <-release })
			}
			return nil
		}
		r.queue.limit = 3
		var callers sync.WaitGroup
		begin := func(key string) {
			callers.Go(func() {
				if _, err := r.Begin(ctx, intentOf(numbers, key)); err != nil {
					t.Errorf("%s: %v", key, err)
				}
			})
		}
		begin("in the batch")
		<-held
		for i := range 3 {
			begin(fmt.Sprint("queued ", i))
		}
		synctest.Wait()
		if _, err := r.Begin(ctx, intentOf(numbers, "refused")); !errors.Is(err, ErrBusy) {
			t.Errorf("Begin on a full queue: %v", err)
		}
		if _, err := r.Attempt(ctx, 1, Numbers{}); !errors.Is(err, ErrNotOwed) {
			t.Errorf("Attempt: %v", err)
		}
		// What has happened must be recorded, whatever the queue and the context say.
		ended, cancel := context.WithCancel(ctx)
		cancel()
		callers.Go(func() {
			if err := r.Finish(ended, ticket, Outcome{Kind: NotSent}); err != nil {
				t.Errorf("Finish: %v", err)
			}
		})
		callers.Go(func() {
			if err := r.Settle(ended, attempt, Unsent(time.Now(), "no_link")); err != nil {
				t.Errorf("Settle: %v", err)
			}
		})
		if _, err := r.Begin(ended, intentOf(numbers, "too late")); !errors.Is(err, context.Canceled) {
			t.Errorf("Begin with an ended context: %v", err)
		}
		synctest.Wait()
		close(release)
		callers.Wait()
		found, err := r.Transactions(ctx, Filter{})
		if err != nil || len(found) != 6 {
			t.Errorf("%d transactions, %v", len(found), err)
		}
		if attempt, err := r.Attempt(ctx, 1, Numbers{}); err != nil || attempt.Attempt() != 1 {
			t.Errorf("after a refused attempt: %v, %v", attempt, err)
		}
	})
}

func TestBatches(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		j := openJournal(t, Config{Path: create(t), Batch: 4})
		var callers sync.WaitGroup
		tickets := make([]*Ticket, 10)
		for i := range tickets {
			in := intentOf(messages.Numbers{STAN: decimal(uint64(i+1), 6), RRN: "632700000001"}, fmt.Sprint(i))
			callers.Go(func() {
				var err error
				if tickets[i], err = j.Begin(context.Background(), in); err != nil {
					t.Error(err)
				}
			})
			synctest.Wait() // they queue in this order
		}
		commits := 0
		j.writer.fault = func(committed bool) error {
			if committed {
				commits++
			}
			return nil
		}
		run(t, j)
		callers.Wait()
		for i, ticket := range tickets {
			if ticket.ID() != TransactionID(i+1) {
				t.Errorf("caller %d has transaction %d", i+1, ticket.ID())
			}
		}
		if commits != 3 { // 4, 4 and 2
			t.Errorf("%d commits", commits)
		}
	})
}

func TestStopWritesWhatIsQueued(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		path := create(t)
		j := openJournal(t, Config{Path: path, Batch: 2})
		if j.Ready() == nil {
			t.Error("ready before it runs")
		}
		var callers sync.WaitGroup
		for i := range 5 {
			callers.Go(func() {
				if _, err := j.Begin(context.Background(), intentOf(messages.Numbers{STAN: "000001"}, fmt.Sprint(i))); err != nil {
					t.Error(err)
				}
			})
		}
		synctest.Wait()
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		if err := j.Run(ctx); err != nil {
			t.Error(err)
		}
		callers.Wait()
		if _, err := j.Begin(context.Background(), intentOf(messages.Numbers{STAN: "000001"}, "late")); !errors.Is(err, ErrClosed) {
			t.Errorf("after the end: %v", err)
		}
		if err := j.Ready(); !errors.Is(err, ErrClosed) {
			t.Errorf("ready after the end: %v", err)
		}
		if err := errors.Join(j.Close(), j.Close()); err != nil {
			t.Error(err)
		}
		r := start(t, Config{Path: path})
		if found, err := r.Transactions(context.Background(), Filter{}); err != nil || len(found) != 5 {
			t.Errorf("%d transactions, %v", len(found), err)
		}
		synctest.Wait()
		if err := r.Ready(); err != nil {
			t.Errorf("not ready while it runs: %v", err)
		}
	})
}

func TestMetrics(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx := context.Background()
		registry := prometheus.NewRegistry()
		path := create(t)
		j, err := Open(Config{Path: path, Station: "acq01"}, slog.New(slog.DiscardHandler), registry)
		if err != nil {
			t.Fatal(err)
		}
		r := run(t, j)
		for range 3 {
			r.finish(r.begin(""), Outcome{Kind: Unknown})
			<-time.After(time.Minute)
		}
		for id, settlement := range map[OwedID]Settlement{1: Acknowledged("00"), 3: Parked("poison", "12")} {
			ticket, err := r.Attempt(ctx, id, Numbers{})
			if err != nil {
				t.Fatal(err)
			}
			ticket.Spend()
			if err := r.Settle(ctx, ticket, settlement); err != nil {
				t.Fatal(err)
			}
		}
		gather := func() map[string]float64 {
			families, err := registry.Gather()
			if err != nil {
				t.Fatal(err)
			}
			values := map[string]float64{}
			for _, family := range families {
				metric := family.GetMetric()[0]
				values[family.GetName()] = metric.GetGauge().GetValue() + metric.GetCounter().GetValue()
				if histogram := metric.GetHistogram(); histogram != nil {
					values[family.GetName()] = float64(histogram.GetSampleCount())
				}
			}
			return values
		}
		got := gather()
		commits := got["acquirerd_journal_commit_seconds"]
		if want := map[string]float64{
			"acquirerd_owed_messages": 1, "acquirerd_owed_oldest_age_seconds": 120, "acquirerd_parked_total": 1,
			"acquirerd_parked_messages": 1, "acquirerd_owed_minor_units": 12345,
			"acquirerd_journal_commit_seconds": commits, "acquirerd_journal_batch_records": commits,
		}; commits == 0 || !maps.Equal(got, want) {
			t.Errorf("got %v\nwant %v", got, want)
		}
		r.stop()
		again, err := Open(Config{Path: path, Station: "acq01"}, slog.New(slog.DiscardHandler), registry) // the same registry
		if err != nil {
			t.Fatal(err)
		}
		if got := gather(); got["acquirerd_parked_messages"] != 1 || got["acquirerd_parked_total"] != 0 {
			t.Errorf("after a restart: got %v", got)
		}
		if err := again.Close(); err != nil {
			t.Error(err)
		}
	})
}
