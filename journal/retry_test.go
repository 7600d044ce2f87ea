package journal

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
)

// declinedForKeys is what a processor says that could not read a PIN.
var declinedForKeys = Outcome{Kind: Declined, ResponseCode: "63", Reason: "key_sync"}

// retry has the processor asked again, under numbers of its own.
func (r *running) retry(t *Ticket, key string) *Ticket {
	r.t.Helper()
	t.Spend()
	second, err := r.Retry(context.Background(), t, declinedForKeys, intentOf(r.next("processor-a"), key))
	if err != nil {
		r.t.Fatal(err)
	}
	return second
}

func TestWhatIsAskedForAgainIsTwoRecordsOfOneKey(t *testing.T) {
	path := create(t)
	r := start(t, Config{Path: path})
	first := r.begin("key")
	second := r.retry(first, "key")
	if second.ID() == first.ID() || second.STAN() == first.STAN() {
		t.Errorf("the second ticket is the first one: %s", second)
	}
	if got := r.transaction(first.ID()); got.Outcome != Declined || got.UpstreamKey != "" || got.Reason != "key_sync" || got.ResponseCode != "63" || got.Owed != "" {
		t.Errorf("the first: %+v", got)
	}
	if got := r.transaction(second.ID()); got.Outcome != "" || got.UpstreamKey != "key" || got.UpstreamSTAN != "000777" {
		t.Errorf("the second: %+v", got)
	}
	if got := r.find("key"); got.ID != second.ID() {
		t.Errorf("the key is that of %d", got.ID)
	}
	if r.standing.holds("processor-a", first.STAN()) || !r.standing.holds("processor-a", second.STAN()) {
		t.Error("the numbers that are in use are not the second's")
	}
	if a, b := r.history(first.ID()), r.history(second.ID()); a != "begun declined:63" || b != fmt.Sprintf("begun:retry_of_%d", first.ID()) {
		t.Errorf("histories %q and %q", a, b)
	}
	if _, err := r.Begin(t.Context(), intentOf(r.next("processor-a"), "key")); !errors.Is(err, ErrDuplicate) {
		t.Errorf("the key was taken twice: %v", err)
	}
	r.finish(second, Outcome{Kind: Unknown, Reason: "timeout"})
	owed := r.owed()
	if len(owed) != 1 || owed[0].TransactionID != second.ID() {
		t.Errorf("owed: %+v", owed)
	}
	if !panics(func() { first.Spend() }) || !panics(func() { _ = r.Finish(t.Context(), first, declinedForKeys) }) {
		t.Error("the first ticket may be used again")
	}
}

// A store that fails in the commit leaves both or neither: the first open with its key, or declined without it and the second open with it.
func TestACrashIsNeverBetweenADeclineAndItsRetry(t *testing.T) {
	for _, done := range []bool{false, true} {
		t.Run(fmt.Sprintf("commit failed, done %v", done), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				path := create(t)
				r := start(t, Config{Path: path})
				r.stopped = true
				first := r.begin("key")
				first.Spend()
				again := intentOf(r.next("processor-a"), "key")
				r.writer.fault = func(committed bool) error {
					if committed == done {
						return errors.New("disk on fire")
					}
					return nil
				}
				if _, err := r.Retry(t.Context(), first, declinedForKeys, again); !errors.Is(err, ErrFailed) {
					t.Errorf("Retry: %v", err)
				}
				if err := <-r.ended; !errors.Is(err, ErrFailed) {
					t.Errorf("Run: %v", err)
				}
				if err := r.Close(); err != nil {
					t.Error(err)
				}
				r = start(t, Config{Path: path})
				open, err := r.Unfinished(t.Context())
				if err != nil || len(open) != 1 {
					t.Fatalf("%d open, %v", len(open), err)
				}
				want := first.STAN()
				if done {
					want = again.Original.Get(11)
				}
				if open[0].STAN() != want || r.find("key").ID != open[0].ID() {
					t.Errorf("open is %s, want STAN %s; the key is that of %d", open[0].STAN(), want, r.find("key").ID)
				}
			})
		})
	}
}

// An approval of the declined request that was heard before its decline is on record makes its reversal owed, beside what comes of the second.
func TestADeclineThatWasApprovedBeforeIsReversed(t *testing.T) {
	r := start(t, Config{Path: create(t)})
	first := r.begin("key")
	r.hear(Hearing{Endpoint: "processor-a", STAN: first.STAN(), TransmissionTime: "1123220418", ResponseCode: "00", Approves: true})
	second := r.retry(first, "key")
	r.finish(second, Outcome{Kind: Approved, ResponseCode: "00"})
	if owed := r.owed(); len(owed) != 1 || owed[0].TransactionID != first.ID() {
		t.Errorf("owed: %+v", owed)
	}
}

func TestWhatCannotBeAskedForAgain(t *testing.T) {
	r := start(t, Config{Path: create(t)})
	first := r.begin("key")
	first.Spend()
	same := intentOf(r.next("processor-a"), "key")
	same.Original = r.find("key").Original
	elsewhere := intentOf(r.next("processor-b"), "key")
	elsewhere.Endpoint = "processor-b"
	nameless := intentOf(r.next("processor-a"), "key")
	nameless.Upstream = ""
	for what, in := range map[string]Intent{"under the same numbers": same, "elsewhere": elsewhere, "by nobody": nameless} {
		if _, err := r.Retry(t.Context(), first, declinedForKeys, in); err == nil || errors.Is(err, ErrFailed) {
			t.Errorf("%s: %v", what, err)
		}
	}
	for _, out := range []Outcome{{Kind: Approved, ResponseCode: "00"}, {Kind: Unknown, Reason: "timeout"}, {Kind: NotSent}} {
		if !panics(func() { _, _ = r.Retry(t.Context(), first, out, intentOf(r.next("processor-a"), "key")) }) {
			t.Errorf("%s is asked for again", out.Kind)
		}
	}
	r.finishOnly(first)
}

// finishOnly shows that a ticket was not finished by what was refused.
func (r *running) finishOnly(t *Ticket) {
	r.t.Helper()
	if err := r.Finish(context.Background(), t, Outcome{Kind: Declined, ResponseCode: "63"}); err != nil {
		r.t.Error(err)
	}
}
