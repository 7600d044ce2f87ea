package simulator_test

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"acquirerd/messages"
	"acquirerd/simulator"
)

// A door is a stand-in for the daemon that takes its answers from a list, one for each message whatever it is: a response code, or one of
// the words below. Sign-ons are answered beside it.
type door struct {
	codec    *messages.Codec
	listener *simulator.PipeListener
	mu       sync.Mutex
	script   []string
	seen     []*messages.Message
}

const (
	silence = "silence" // no answer
	hangUp  = "hang up" // the connection is closed
	another = "another" // approved for another amount
	half    = "half"    // approved with 10 for half
)

// openDoor serves until stop is called, which waits for its end and says what is left of the script.
func openDoor(t *testing.T, script ...string) (d *door, stop func()) {
	t.Helper()
	d = &door{codec: codec(t, "iso87-binary"), listener: simulator.NewPipeListener(), script: script}
	var serving sync.WaitGroup
	serving.Go(func() {
		for {
			conn, err := d.listener.Accept()
			if err != nil {
				return
			}
			serving.Go(func() { d.serve(conn) })
		}
	})
	return d, func() {
		_ = d.listener.Close()
		serving.Wait()
		if len(d.script) > 0 {
			t.Errorf("nothing came for %q", d.script)
		}
	}
}

func (d *door) serve(conn net.Conn) {
	defer func() { _ = conn.Close() }()
	reader := bufio.NewReader(conn)
	for {
		body, err := d.codec.ReadFrame(reader)
		if err != nil {
			return
		}
		m, err := d.codec.Decode(body)
		if err != nil {
			return
		}
		answer := messages.NewAnswer(m, "00")
		if m.MTI.Class() != messages.Network {
			answer = d.answer(m)
		}
		if answer == nil {
			continue
		}
		frame, err := d.codec.EncodeFrame(answer)
		if err != nil || answer.Get(messages.ResponseCode) == "XX" {
			return
		}
		if _, err := conn.Write(frame); err != nil {
			return
		}
	}
}

func (d *door) answer(m *messages.Message) *messages.Message {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.seen = append(d.seen, m)
	if len(d.script) == 0 {
		return nil
	}
	word := d.script[0]
	d.script = d.script[1:]
	answer := messages.NewAnswer(m, word)
	answer.Set(messages.AuthorizationID, "A1B2C3")
	switch word {
	case silence:
		return nil
	case hangUp:
		answer.Set(messages.ResponseCode, "XX")
	case another:
		answer.Set(messages.ResponseCode, "00")
		answer.Set(messages.Amount, "000000000001")
	case half:
		answer.Set(messages.ResponseCode, "10")
		answer.Set(messages.Amount, "000000000625")
	}
	return answer
}

// types are the message types that came.
func (d *door) types() string {
	d.mu.Lock()
	defer d.mu.Unlock()
	var types []string
	for _, m := range d.seen {
		types = append(types, string(m.MTI))
	}
	return strings.Join(types, " ")
}

func purchase(t testing.TB) simulator.Request {
	return simulator.Request{PAN: pan(t, visa), Amount: 1250}
}

func newDuty(t testing.TB, cfg simulator.DutyConfig) *simulator.Duty {
	t.Helper()
	d, err := simulator.NewDuty(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func TestADutyBringsATransactionToRest(t *testing.T) {
	const none, approved = simulator.BelievesNone, simulator.BelievesApproved
	const acknowledged, refused = simulator.DebtAcknowledged, simulator.DebtRefused
	const answered, timedOut, lost = simulator.Answered, simulator.TimedOut, simulator.ConnectionLost
	type shares = simulator.DutyConfig
	for _, c := range []struct {
		name     string
		cfg      shares
		script   string // words by comma
		types    string
		belief   simulator.Belief
		amount   int64
		outcome  simulator.Outcome
		reversal simulator.DebtState
		advice   simulator.DebtState
		faults   int
	}{
		{"an approval", shares{}, "00", "0100", approved, 1250, answered, "", "", 0},
		{"an approval in part", shares{}, half, "0100", approved, 625, answered, "", "", 0},
		{"a decline", shares{CancelShare: 1}, "51", "0100", none, 0, answered, "", "", 0},
		{"an outcome that the daemon does not know", shares{RepeatShare: 1}, "91", "0100", none, 0, answered, "", "", 0},
		{"an answer to the repeat", shares{RepeatShare: 1}, "silence,00", "0100 0101", approved, 1250, answered, "", "", 0},
		{"a decline of the repeat", shares{RepeatShare: 1}, "silence,silence,51", "0100 0101 0101", none, 0, answered, "", "", 0},
		{"a lost connection and a repeat", shares{RepeatShare: 1}, "hang up,00", "0100 0101", approved, 1250, answered, "", "", 0},
		{"an answer for something else, and a repeat", shares{RepeatShare: 1}, "another,00", "0100 0101", approved, 1250, answered, "", "", 1},
		{"no answer", shares{}, "silence,00", "0100 0420", none, 0, timedOut, acknowledged, "", 0},
		{"no answer to any repeat", shares{RepeatShare: 1}, "silence,silence,silence,silence,silence,91,96,hang up,00",
			"0100 0101 0101 0101 0420 0421 0421 0421 0421", none, 0, timedOut, acknowledged, "", 0},
		{"no answer, and reversal requests", shares{RequestShare: 1}, "silence,silence,00",
			"0100 0400 0401", none, 0, timedOut, acknowledged, "", 0},
		{"a lost connection, and a reversal that is first sent on the next", shares{}, "hang up,00",
			"0100 0420", none, 0, lost, acknowledged, "", 0},
		{"nothing to reverse", shares{}, "silence,25", "0100 0420", none, 0, timedOut, acknowledged, "", 0},
		{"a reversal that is refused", shares{}, "silence,silence,94", "0100 0420 0421", none, 0, timedOut, refused, "", 1},
		{"a reversal with a format error", shares{}, "silence,30", "0100 0420", none, 0, timedOut, refused, "", 1},
		{"a reversal that is not served", shares{}, "silence,12", "0100 0420", none, 0, timedOut, refused, "", 1},
		{"a cancellation", shares{CancelShare: 1}, "00,silence,00", "0100 0420 0421", none, 0, answered, acknowledged, "", 0},
		{"a cancellation of what the daemon has forgotten", shares{CancelShare: 1}, "00,25", "0100 0420", none, 0, answered, acknowledged, "", 1},
		{"a completion", shares{AdviceShare: 1}, "00,00", "0100 0220", approved, 1250, answered, "", acknowledged, 0},
		{"a completion that takes long", shares{AdviceShare: 1}, "00,silence,91,12,hang up,00",
			"0100 0220 0221 0221 0221 0221", approved, 1250, answered, "", acknowledged, 0},
		{"a duplicate", shares{ResendShare: 1}, "00,00", "0100 01xx", approved, 1250, answered, "", "", 0},
		{"a duplicate without an answer", shares{ResendShare: 1}, "00,silence", "0100 01xx", approved, 1250, answered, "", "", 0},
		{"a duplicate of a decline", shares{ResendShare: 1}, "51,51", "0100 01xx", none, 0, answered, "", "", 0},
		{"a duplicate that is answered otherwise", shares{ResendShare: 1}, "00,51", "0100 01xx", approved, 1250, answered, "", "", 1},
		{"a duplicate that is approved for less", shares{ResendShare: 1}, "00," + half, "0100 01xx", approved, 1250, answered, "", "", 1},
		{"no duplicate of what was refused unread", shares{ResendShare: 1}, "96", "0100", none, 0, answered, "", "", 0},
		{"a duplicate and a cancellation", shares{ResendShare: 1, CancelShare: 1}, "00,00,00",
			"0100 01xx 0420", none, 0, answered, acknowledged, "", 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				d, closeDoor := openDoor(t, strings.Split(c.script, ",")...)
				defer closeDoor()
				u, stop := run(t, simulator.UpstreamConfig{Codec: d.codec, ReplyTimeout: 10 * time.Second, AcquirerID: "12345"}, d.listener)
				defer stop()
				ready(t, u)
				c.cfg.Upstream = u
				entry, err := newDuty(t, c.cfg).Do(t.Context(), purchase(t))
				if err != nil {
					t.Fatal(err)
				}
				types := d.types()
				if want := strings.Replace(c.types, "01xx", "0100", 1); types != want && types != strings.Replace(c.types, "01xx", "0101", 1) {
					t.Errorf("%s came, want %s", types, c.types)
				}
				if entry.Open || !entry.Duty || entry.Belief != c.belief || entry.BelievedAmount != c.amount || entry.Outcome != c.outcome ||
					entry.Reversal.State != c.reversal || entry.Advice.State != c.advice || len(entry.Faults) != c.faults {
					t.Errorf("entered %+v", entry)
				}
				if got := entry.Tries + entry.Resends + entry.Reversal.Tries + entry.Advice.Tries; got != len(d.seen) {
					t.Errorf("%d messages came, %d are in the book", len(d.seen), got)
				}
				if counts := u.Book().Counts(); counts.Open != 0 || counts.Faults != int64(c.faults) || counts.Requests != 1 || counts.Outcomes[c.outcome] != 1 {
					t.Errorf("counted %+v", counts)
				}
				for _, m := range d.seen[1:] {
					checkFollower(t, d.seen[0], m, entry)
				}
			})
		})
	}
}

// checkFollower checks a message that follows the first one of its transaction.
func checkFollower(t *testing.T, first, m *messages.Message, entry simulator.Entry) {
	t.Helper()
	approved := entry.Approved
	switch {
	case m.MTI.Class() == messages.Reversal:
		want := "0100" + first.Get(messages.STAN) + first.Get(messages.TransmissionTime) + "00000012345" + "00000000000"
		if got := m.Get(messages.OriginalData); got != want || m.Get(messages.Amount) != first.Get(messages.Amount) || m.Has(messages.ReplacementAmounts) {
			t.Errorf("%v, want DE 90 %s", m, want)
		}
		if approved != (m.Get(messages.AuthorizationID) == "A1B2C3") {
			t.Errorf("DE 38 is %q", m.Get(messages.AuthorizationID))
		}
	case m.MTI == "0220" || m.MTI == "0221":
		if m.Get(messages.STAN) == first.Get(messages.STAN) || m.Get(messages.STAN) != entry.Advice.STAN || m.Get(messages.AuthorizationID) != "A1B2C3" ||
			m.Get(messages.RRN) != first.Get(messages.RRN) || m.Get(messages.Amount) != fmt.Sprintf("%012d", entry.Advice.Amount) ||
			entry.Advice.Amount < 625 {
			t.Errorf("%v after %v", m, entry)
		}
	default:
		same := first.Clone()
		if same.MTI = m.MTI; fmt.Sprint(same) != fmt.Sprint(m) || !same.PAN().Equal(m.PAN()) {
			t.Errorf("%v after %v", m, first)
		}
	}
}

func TestADutyReversesInPart(t *testing.T) {
	for _, c := range []struct {
		amount int64
		script string
		belief simulator.Belief
		state  simulator.DebtState
		faults int
	}{
		{1250, "00,00", simulator.BelievesApproved, simulator.DebtAcknowledged, 0},
		{1250, half + ",silence,00", simulator.BelievesApproved, simulator.DebtAcknowledged, 0},
		{1250, "00,94", simulator.BelievesApproved, simulator.DebtRefused, 1},
		{1250, "00,25", simulator.BelievesNone, simulator.DebtAcknowledged, 1},
		{1, "00,00", simulator.BelievesNone, simulator.DebtAcknowledged, 0}, // of one unit there is no part
	} {
		bubble(t, func(t *testing.T) {
			d, closeDoor := openDoor(t, strings.Split(c.script, ",")...)
			defer closeDoor()
			u, stop := run(t, simulator.UpstreamConfig{Codec: d.codec, ReplyTimeout: 10 * time.Second}, d.listener)
			defer stop()
			ready(t, u)
			request := simulator.Request{PAN: pan(t, visa), Amount: c.amount}
			entry, err := newDuty(t, simulator.DutyConfig{Upstream: u, PartialShare: 1}).Do(t.Context(), request)
			if err != nil {
				t.Fatal(err)
			}
			replacement := entry.Reversal.Replacement
			if entry.Belief != c.belief || entry.Reversal.State != c.state || len(entry.Faults) != c.faults || entry.Open ||
				entry.Reversal.Partial != (c.amount > 1) || replacement >= entry.ApprovedAmount ||
				c.belief == simulator.BelievesApproved && entry.BelievedAmount != replacement {
				t.Errorf("%s: %+v", c.script, entry)
			}
			want := ""
			if entry.Reversal.Partial {
				want = fmt.Sprintf("%012d%s", replacement, strings.Repeat("0", 30))
			}
			for _, m := range d.seen[1:] {
				if m.Get(messages.ReplacementAmounts) != want || m.Get(messages.Amount) != fmt.Sprintf("%012d", c.amount) {
					t.Errorf("%s: %v, want DE 95 %q", c.script, m, want)
				}
			}
		})
	}
}

func TestALateAnswerAnswersTheRepeat(t *testing.T) {
	bubble(t, func(t *testing.T) {
		_, listener, stopProcessor := serve(t, simulator.ProcessorConfig{Rules: rules(t, "delay=15s times=1", "silence times=1")})
		defer stopProcessor()
		u, stop := run(t, simulator.UpstreamConfig{ReplyTimeout: 10 * time.Second}, listener)
		defer stop()
		ready(t, u)
		began := time.Now()
		entry, err := newDuty(t, simulator.DutyConfig{Upstream: u, RepeatShare: 1}).Do(t.Context(), purchase(t))
		if err != nil || entry.Belief != simulator.BelievesApproved || entry.Tries != 2 || entry.DuplicatesAnswered != 1 ||
			time.Since(began) != 15*time.Second {
			t.Errorf("%+v, %v after %v", entry, err, time.Since(began))
		}
		if counts := u.Book().Counts(); counts.LateAnswers != 0 || counts.Unmatched != 0 {
			t.Errorf("counted %+v", counts)
		}
	})
	t.Run("unless it comes on another connection", func(t *testing.T) {
		bubble(t, func(t *testing.T) {
			_, listener, stopProcessor := serve(t, simulator.ProcessorConfig{Rules: rules(t, "delay=15s times=1", "silence times=1")})
			defer stopProcessor()
			u, stop := run(t, simulator.UpstreamConfig{ReplyTimeout: 10 * time.Second, Connections: 2}, listener)
			defer stop()
			ready(t, u)
			entry, err := newDuty(t, simulator.DutyConfig{Upstream: u, RepeatShare: 1}).Do(t.Context(), purchase(t))
			if err != nil || entry.Belief != simulator.BelievesApproved || entry.Tries != 3 || entry.LateCode != "00" || u.Book().Counts().LateAnswers != 1 {
				t.Errorf("%+v, %v", entry, err)
			}
		})
	})
	t.Run("as one to a plain request does", func(t *testing.T) {
		bubble(t, func(t *testing.T) {
			_, listener, stopProcessor := serve(t, simulator.ProcessorConfig{Rules: rules(t, "delay=15s times=1", "silence times=1")})
			defer stopProcessor()
			u, stop := run(t, simulator.UpstreamConfig{ReplyTimeout: 10 * time.Second}, listener)
			defer stop()
			ready(t, u)
			request := simulator.Request{PAN: pan(t, visa), Amount: 1250}
			first := do(t, u, request)
			again := request.Again(first)
			again.MTI = "0101"
			if entry := do(t, u, again); first.Outcome != simulator.TimedOut || !entry.Approved {
				t.Errorf("%+v, then %+v", first, entry)
			}
		})
	})
	t.Run("but a key that still waits is not taken", func(t *testing.T) {
		bubble(t, func(t *testing.T) {
			_, listener, stopProcessor := serve(t, simulator.ProcessorConfig{Rules: rules(t, "delay=5s")})
			defer stopProcessor()
			u, stop := run(t, simulator.UpstreamConfig{}, listener)
			defer stop()
			ready(t, u)
			request := simulator.Request{PAN: pan(t, visa), Amount: 1250, STAN: "000777"}
			var asking sync.WaitGroup
			asking.Go(func() { do(t, u, request) })
			<-time.After(time.Second)
			request.TransmissionTime = u.Book().Snapshot().Entries[0].TransmissionTime
			if entry, err := newDuty(t, simulator.DutyConfig{Upstream: u}).Do(t.Context(), request); err == nil {
				t.Errorf("%+v", entry)
			}
			asking.Wait()
			if n := u.Book().Counts().Requests; n != 1 {
				t.Errorf("%d requests are in the book", n)
			}
		})
	})
}

func TestOfWhatWasNotSentNothingIsOwed(t *testing.T) {
	bubble(t, func(t *testing.T) {
		u, err := simulator.NewUpstream(simulator.UpstreamConfig{Codec: codec(t, "iso87-binary"), Dial: simulator.NewPipeListener().Dial})
		if err != nil {
			t.Fatal(err)
		}
		entry, err := newDuty(t, simulator.DutyConfig{Upstream: u, RepeatShare: 1}).Do(t.Context(), purchase(t))
		if err != nil || entry.Outcome != simulator.NotSent || entry.Open || entry.Belief != simulator.BelievesNone || entry.Tries != 0 ||
			entry.Reversal.State != "" {
			t.Errorf("%+v, %v", entry, err)
		}
	})
}

func TestTheEndOfADutyLeavesOpenWhatIsOpen(t *testing.T) {
	for _, c := range []struct {
		script string
		want   func(simulator.Entry) bool
	}{
		{"silence", func(e simulator.Entry) bool { return e.Belief == simulator.BelievesNothing && e.Reversal.State == "" }},
		{"silence,silence", func(e simulator.Entry) bool {
			return e.Belief == simulator.BelievesNone && e.Reversal.State == simulator.DebtOpen
		}},
		{"00,silence,silence", func(e simulator.Entry) bool {
			return e.Belief == simulator.BelievesApproved && e.Advice.State == simulator.DebtOpen
		}},
	} {
		bubble(t, func(t *testing.T) {
			words := strings.Split(c.script, ",")
			d, closeDoor := openDoor(t, words...)
			defer closeDoor()
			u, stop := run(t, simulator.UpstreamConfig{Codec: d.codec, ReplyTimeout: 10 * time.Second}, d.listener)
			defer stop()
			ready(t, u)
			patience := 5 * time.Second // of the last word
			for _, word := range words[1:] {
				if word == silence {
					patience += 10 * time.Second
				}
			}
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			entry, err := newDuty(t, simulator.DutyConfig{Upstream: u, AdviceShare: 1, Pause: time.Millisecond}).Do(ctx, purchase(t))
			if err != nil || !entry.Open || !c.want(entry) || u.Book().Counts().Open != 1 {
				t.Errorf("%s: %+v, %v", c.script, entry, err)
			}
			if entry, err := newDuty(t, simulator.DutyConfig{Upstream: u}).Do(ctx, simulator.Request{PAN: pan(t, visa)}); err == nil {
				t.Errorf("after the end: %+v", entry)
			}
			verdict := simulator.Compare(nil, simulator.Snapshot{}, u.Book().Snapshot())
			if verdict.Mismatches != 1 || !strings.Contains(verdict.Disagreements[0], "not at rest") {
				t.Errorf("%s: %+v", c.script, verdict)
			}
		})
	}
}

func TestABadDutyIsRefused(t *testing.T) {
	u, err := simulator.NewUpstream(simulator.UpstreamConfig{Codec: codec(t, "iso87-ascii"), Address: "127.0.0.1:1"})
	if err != nil {
		t.Fatal(err)
	}
	for name, cfg := range map[string]simulator.DutyConfig{
		"no upstream":           {},
		"a share over 1":        {Upstream: u, RepeatShare: 1.1},
		"a share below 0":       {Upstream: u, ResendShare: -.1},
		"more than all":         {Upstream: u, CancelShare: .5, PartialShare: .4, AdviceShare: .2},
		"a negative pause":      {Upstream: u, Pause: -1},
		"more requests than it": {Upstream: u, RequestShare: 2},
	} {
		if _, err := simulator.NewDuty(cfg); err == nil {
			t.Errorf("%s is accepted", name)
		}
	}
	d := newDuty(t, simulator.DutyConfig{Upstream: u})
	for name, r := range map[string]simulator.Request{
		"no card":    {Amount: 100},
		"a repeat":   {MTI: "0101", PAN: pan(t, visa), Amount: 100},
		"an advice":  {MTI: "0220", PAN: pan(t, visa), Amount: 100},
		"a reversal": {MTI: "0420", PAN: pan(t, visa), Amount: 100},
		"a long one": {PAN: pan(t, visa), Terminal: "123456789"},
	} {
		if entry, err := d.Do(t.Context(), r); err == nil {
			t.Errorf("%s: %+v", name, entry)
		}
	}
	if n := u.Book().Counts().Requests; n != 0 {
		t.Errorf("%d requests are in the book", n)
	}
}

// accountsOf is a journal as a daemon would have written it that passes everything on under the upstream's own numbers.
func accountsOf(ledger simulator.Snapshot) []simulator.Account {
	var accounts []simulator.Account
	for i, h := range ledger.Holds {
		a := simulator.Account{ID: int64(i + 1), MTI: h.MTI, STAN: h.STAN, TransmissionTime: h.TransmissionTime, UpstreamSTAN: h.STAN, Terminal: h.Terminal,
			UpstreamKey: strings.Join([]string{string(h.MTI[:3]), h.TransmissionTime, h.STAN, h.Terminal}, "|"),
			Amount:      fmt.Sprintf("%012d", h.Amount), Outcome: "approved", ResponseCode: h.ResponseCode}
		switch {
		case h.Advice:
			a.Outcome, a.Advice = "accepted", "acknowledged"
		case h.State == simulator.Declined:
			a.Outcome = "declined"
		case h.State == simulator.Held && h.ApprovedAmount < h.Amount:
			a.ApprovedAmount = fmt.Sprintf("%012d", h.ApprovedAmount)
		}
		if h.State == simulator.Reversed {
			a.Owed = "acknowledged"
		}
		if h.Replacement > 0 {
			a.Owed, a.ReplacementAmount, a.ApprovedAmount = "acknowledged", fmt.Sprintf("%012d", h.Replacement), ""
		}
		accounts = append(accounts, a)
	}
	return accounts
}

func TestADutyAndALedgerAgreeWhateverBreaks(t *testing.T) {
	for seed := range uint64(20) {
		bubble(t, func(t *testing.T) {
			// What comes late on a link that has ended must not be refused as before its sign-on: to a Duty a refusal is final.
			p, listener, stopProcessor := serve(t, simulator.ProcessorConfig{Codec: codec(t, "iso87-binary"), AcceptBeforeSignOn: true,
				Faults: simulator.Faults{Seed: seed, MaxDelay: 15 * time.Second, Lost: .05, Late: .05, Delay: .1, Silence: .1, Drop: .02, Close: .02,
					Duplicate: .03, Reorder: .03, Garble: .02, OtherLink: .05, CutAnswer: .03, Stall: .02}})
			defer stopProcessor()
			u, stop := run(t, simulator.UpstreamConfig{Codec: codec(t, "iso87-binary"), ReplyTimeout: 10 * time.Second, Connections: 3,
				AcquirerID: "0012345"}, listener)
			defer stop()
			ready(t, u)
			d := newDuty(t, simulator.DutyConfig{Upstream: u, Seed: seed, RepeatShare: .5, CancelShare: .2, PartialShare: .2, AdviceShare: .2,
				RequestShare: .3})
			var asking sync.WaitGroup
			for n := range 100 {
				<-time.After(200 * time.Millisecond)
				request := simulator.Request{PAN: pan(t, visa), Amount: int64(1000 + n), Terminal: fmt.Sprintf("SIM%05d", n)}
				switch n % 10 {
				case 1:
					request.Amount = 9051
				case 2:
					request.Amount = 9010
				case 3:
					request.MTI = messages.FinancialRequest
				}
				asking.Go(func() {
					if entry, err := d.Do(t.Context(), request); err != nil || entry.Open {
						t.Errorf("%+v, %v", entry, err)
					}
				})
			}
			asking.Wait()
			<-time.After(time.Minute) // for what the processor decides late
			ledger := p.Ledger().Snapshot()
			verdict := simulator.Compare(accountsOf(ledger), ledger, u.Book().Snapshot())
			if verdict.Mismatches > 0 {
				t.Errorf("seed %d: %q\n%s", seed, verdict.Disagreements, strings.Join(verdict.Transcript(), "\n"))
			}
			if verdict.Reversed == 0 || verdict.Partial == 0 || verdict.Advices == 0 || verdict.DuplicatesAnswered == 0 || verdict.Transcript() != nil {
				t.Errorf("seed %d did not meet what it is for: %+v", seed, verdict)
			}
		})
	}
}

func TestADutysChanceDependsOnTheSeedAlone(t *testing.T) {
	run := func(seed uint64, backwards bool) string {
		var came string
		bubble(t, func(t *testing.T) {
			p, listener, stopProcessor := serve(t, simulator.ProcessorConfig{})
			defer stopProcessor()
			u, stop := run(t, simulator.UpstreamConfig{FirstSTAN: 500}, listener)
			defer stop()
			ready(t, u)
			d := newDuty(t, simulator.DutyConfig{Upstream: u, Seed: seed, CancelShare: .3, PartialShare: .3, AdviceShare: .3, RequestShare: .5})
			order := make([]int, 50)
			for i := range order {
				order[i] = i + 1
			}
			if backwards {
				slices.Reverse(order)
			}
			for _, n := range order {
				if _, err := d.Do(t.Context(), simulator.Request{PAN: pan(t, visa), Amount: 1250, STAN: fmt.Sprintf("%06d", n)}); err != nil {
					t.Fatal(err)
				}
			}
			var lines []string
			for _, e := range u.Book().Snapshot().Entries {
				lines = append(lines, fmt.Sprintf("%s %s %d %s %d", e.STAN, e.Belief, e.BelievedAmount, e.Reversal.MTI, e.Advice.Amount))
			}
			slices.Sort(lines)
			came = strings.Join(lines, "\n")
			if p.Ledger().Counts().DuplicateRequests != 0 {
				t.Error("a number was used twice")
			}
		})
		return came
	}
	if first := run(7, false); first != run(7, true) || first == run(8, false) {
		t.Error("chance depends on the order, or not on the seed")
	}
}

func TestARepeatThatIsAnsweredTwiceHasALateAnswer(t *testing.T) {
	bubble(t, func(t *testing.T) {
		_, listener, stopProcessor := serve(t, simulator.ProcessorConfig{Rules: rules(t, "delay=15s times=1", "delay=8s times=1")})
		defer stopProcessor()
		u, stop := run(t, simulator.UpstreamConfig{ReplyTimeout: 10 * time.Second}, listener)
		defer stop()
		ready(t, u)
		d := newDuty(t, simulator.DutyConfig{Upstream: u, RepeatShare: 1})
		entry, err := d.Do(t.Context(), purchase(t))
		if err != nil || entry.Belief != simulator.BelievesApproved || entry.LateCode != "" {
			t.Errorf("%+v, %v", entry, err)
		}
		<-time.After(time.Minute)
		if s := u.Book().Snapshot(); s.Entries[0].LateCode != "00" || s.Counts.LateAnswers != 1 || s.Counts.Unmatched != 0 {
			t.Errorf("%+v", s)
		}
	})
}
