package simulator_test

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"acquirerd/messages"
	"acquirerd/simulator"
	"acquirerd/specs"
)

// TestPartiesTalkInEveryDialect has the simulator's upstream and processor talk to each other, without a daemon between them, in every dialect
// that is built in: ledger and book say the same in all of them, in the words of ISO 8583:1987.
func TestPartiesTalkInEveryDialect(t *testing.T) {
	for _, name := range specs.Names() {
		c := codec(t, name)
		own, _ := c.Dialect().OwnMTI(c.Dialect().Reversal.Type)
		reversal := messages.MTI(own)
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				zpk := key(t, zpkHex)
				p, listener, stopProcessor := serve(t, simulator.ProcessorConfig{Codec: c, ZPK: zpk})
				defer stopProcessor()
				u, stop := run(t, simulator.UpstreamConfig{Codec: c, ZPK: zpk, ReplyTimeout: 10 * time.Second, AcquirerID: "12345"}, listener)
				defer stop()
				ready(t, u)
				if err := u.Echo(t.Context()); err != nil {
					t.Error(err)
				}
				ask := func(r simulator.Request, code string, approved int64) simulator.Entry {
					t.Helper()
					r.PAN = pan(t, visa)
					entry := do(t, u, r)
					if entry.Outcome != simulator.Answered || entry.ResponseCode != code || entry.ApprovedAmount != approved {
						t.Errorf("%s over %d is %s %s for %d, want %s for %d", r.MTI, r.Amount, entry.Outcome, entry.ResponseCode,
							entry.ApprovedAmount, code, approved)
					}
					return entry
				}
				approved := ask(simulator.Request{Amount: 1250, PIN: pin(t, "1234")}, "00", 1250)
				ask(simulator.Request{Amount: 1250, PIN: pin(t, "9999")}, "55", 0)
				ask(simulator.Request{MTI: messages.FinancialRequest, Amount: 9051}, "51", 0)
				parted := ask(simulator.Request{Amount: 9000}, "10", 4500)
				again := simulator.Request{MTI: "0101", Amount: 1250, PIN: pin(t, "1234")}.Again(approved)
				if repeated := ask(again, "00", 1250); repeated.AuthorizationID != approved.AuthorizationID {
					t.Errorf("the repeat has DE 38 %q, and not %q", repeated.AuthorizationID, approved.AuthorizationID)
				}
				undo := func(first simulator.Entry, amount, remains int64, code string) {
					t.Helper()
					r := simulator.Request{PAN: pan(t, visa), MTI: reversal, OriginalMTI: first.MTI, Amount: amount, Replacement: remains,
						AuthorizationID: first.AuthorizationID}.Again(first)
					if entry := do(t, u, r); entry.ResponseCode != code {
						t.Errorf("the reversal of %s down to %d is %s %s, want %s", first.STAN, remains, entry.Outcome, entry.ResponseCode, code)
					}
				}
				undo(approved, 1250, 0, "00")
				undo(parted, 9000, 3000, "00")
				never := approved
				never.STAN = "777777"
				undo(never, 1250, 0, "25")
				ask(simulator.Request{MTI: messages.FinancialAdvice, Amount: 700, AuthorizationID: "ABC123"}, "00", 700)
				if err := u.SignOff(t.Context()); err != nil {
					t.Error(err)
				}
				ask(simulator.Request{Amount: 1250}, "91", 0)

				snapshot := p.Ledger().Snapshot()
				var got []string
				for _, h := range snapshot.Holds {
					got = append(got, fmt.Sprintf("%s %d %s %d %s", h.MTI, h.Amount, h.State, h.ApprovedAmount, h.ResponseCode))
				}
				want := []string{"0100 1250 reversed 1250 00", "0100 1250 declined 0 55", "0200 9051 declined 0 51", "0100 9000 held 3000 10",
					"0220 700 held 700 00"}
				if !slices.Equal(got, want) {
					t.Errorf("the ledger has\n%q, want\n%q", got, want)
				}
				counts := snapshot.Counts
				if counts.SignOns != 1 || counts.SignOffs != 1 || counts.Echoes != 1 || counts.BeforeSignOn != 1 || counts.Reversals != 3 ||
					counts.PartialReversals != 1 || counts.UnknownReversals != 1 || counts.RepeatedRequests != 1 || counts.RightPINs != 2 ||
					counts.DisagreeingReversals+counts.UnmarkedRepeats+counts.FormatErrors+counts.Unsupported+counts.DuplicateRequests > 0 {
					t.Errorf("the ledger counts %+v", counts)
				}
			})
		})
	}
}

// TestADutyIsDoneInEveryDialect has transactions of each kind, with repeats, reversals of both extents and completions, between an upstream that does
// its duty and a processor that breaks what it can break in that dialect. At rest the ledger and the book must agree.
func TestADutyIsDoneInEveryDialect(t *testing.T) {
	for _, name := range specs.Names() {
		t.Run(name, func(t *testing.T) { dutyIsDone(t, codec(t, name)) })
	}
}

// TestADutyIsDoneInEveryFraming is the same over framings and headers that no built-in dialect has.
func TestADutyIsDoneInEveryFraming(t *testing.T) {
	for _, framing := range []string{
		"framing: { length: hex-4, max: 4096 }",
		"framing: { length: bcd-2, keepalive: ignored, max: 4096 }",
		"framing: { length: binary-2, inclusive: true, keepalive: answered, max: 4096 }",
		"framing: { length: binary-4, little_endian: true, keepalive: answered, max: 4096 }",
		"framing: { length: vmlh, max: 4096 }",
		"framing: { length: none, trailer: \"03\", max: 4096 }",
		"framing: { length: ascii-4, trailer: \"0D0A\", trailer_counted: true, keepalive: answered, max: 4096 }",
		"framing: { length: binary-2, max: 4096 }\nheader: { form: literal, value: \"49534F303131303030303030\" }",
		"framing: { length: binary-2, keepalive: ignored, max: 4096 }\nheader: { form: echoed, value: \"0102030405\" }",
		"framing: { length: binary-2, max: 4096 }\nheader: { form: tpdu, value: \"6000010002\" }",
		"framing: { length: bcd-2, max: 4096 }\nheader: { form: base1, value: \"16010200000000000000000000000000000000000000\" }",
	} {
		t.Run(framing, func(t *testing.T) {
			const was = "framing: { length: ascii-4, max: 4096 }"
			if strings.Contains(framing, "length: none") { // nothing may hold the trailer
				dutyIsDone(t, codecWith(t, "iso87-ascii", was, framing, "enc: Binary,", "enc: HexText,"))
				return
			}
			dutyIsDone(t, codecWith(t, "iso87-ascii", was, framing))
		})
	}
}

func dutyIsDone(t *testing.T, c *messages.Codec) {
	bubble(t, func(t *testing.T) {
		p, listener, stopProcessor := serve(t, simulator.ProcessorConfig{Codec: c, AcceptBeforeSignOn: true, Faults: simulator.Faults{Seed: 1,
			Lost: .05, Late: .05, Delay: .1, MaxDelay: 20 * time.Second, Silence: .05, Drop: .05, Close: .05, Duplicate: .05, Reorder: .05,
			Garble: .05, NoSTAN: .05, OtherLink: .05, CutAnswer: .05, Stall: .05, Keepalive: .1}})
		defer stopProcessor()
		u, stop := run(t, simulator.UpstreamConfig{Codec: c, ReplyTimeout: 10 * time.Second, Connections: 3, Keepalives: 300 * time.Millisecond}, listener)
		defer stop()
		ready(t, u)
		duty := newDuty(t, simulator.DutyConfig{Upstream: u, Seed: 1, RepeatShare: .5, CancelShare: .2, PartialShare: .2, AdviceShare: .2,
			RequestShare: .5})
		done := make(chan struct{})
		const transactions = 200 // so many meet each fault, whatever their numbers are
		for n := range transactions {
			go func() {
				defer func() { done <- struct{}{} }()
				time.Sleep(time.Duration(n) * 50 * time.Millisecond)
				r := simulator.Request{PAN: pan(t, visa), Amount: int64(1000 + n), Terminal: fmt.Sprintf("T%07d", n)}
				if n%3 == 0 {
					r.MTI = messages.FinancialRequest
				}
				if _, err := duty.Do(t.Context(), r); err != nil {
					t.Error(err)
				}
			}()
		}
		for range transactions {
			<-done
		}
		synctest.Wait()
		snapshot, book := p.Ledger().Snapshot(), u.Book().Snapshot()
		journal := accountsOf(snapshot)
		for i, h := range snapshot.Holds { // as the dialect names its requests
			name := string(h.MTI[:3])
			for _, number := range c.Dialect().Identity {
				name += "|" + map[int]string{7: h.TransmissionTime, 11: h.STAN, 12: h.LocalTime, 41: h.Terminal}[number]
			}
			journal[i].UpstreamKey = name
		}
		verdict := simulator.Compare(journal, snapshot, book)
		for _, disagreement := range verdict.Disagreements {
			t.Error(disagreement)
		}
		for _, line := range verdict.Transcript() {
			t.Log(line)
		}
		counts, effects := snapshot.Counts, 13
		framing := c.Dialect().Framing
		if framing.Keepalive == specs.KeepaliveAnswered || framing.Keepalive == specs.KeepaliveIgnored {
			if effects++; counts.Keepalives == 0 {
				t.Error("the upstream sent no keep-alive")
			}
		}
		if len(counts.Effects) < effects || counts.Reversed == 0 || counts.PartialReversals == 0 || counts.Advices == 0 || book.Counts.Repeats == 0 {
			t.Errorf("the faults have not met what they are for: %+v", counts)
		}
	})
}

// codecWith is that of a built-in dialect in whose text places are changed: what was there, what is.
func codecWith(t *testing.T, name string, changes ...string) *messages.Codec {
	t.Helper()
	text, err := os.ReadFile("../specs/" + name + ".yaml")
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(changes); i += 2 {
		if !strings.Contains(string(text), changes[i]) {
			t.Fatalf("%s has no %q", name, changes[i])
		}
	}
	dialect, err := specs.Parse([]byte(strings.NewReplacer(changes...).Replace(string(text))))
	if err != nil {
		t.Fatal(err)
	}
	return messages.NewCodec(dialect)
}

// TestADialectMayHaveNoSignOn has links that carry transactions from their first message on, and a processor whose own codes are others than the
// daemon's.
func TestADialectMayHaveNoSignOn(t *testing.T) {
	bubble(t, func(t *testing.T) {
		in := codecWith(t, "iso87-ascii", "  sign_on: \"001\"\n", "", "  accepted: [\"00\"]\n", "  accepted: [\"00\"]\n  demands: { echo: \"302\" }\n")
		p, listener, stopProcessor := serve(t, simulator.ProcessorConfig{Codec: in})
		defer stopProcessor()
		u, stop := run(t, simulator.UpstreamConfig{Codec: in}, listener)
		ready(t, u)
		if entry := do(t, u, simulator.Request{PAN: pan(t, visa), Amount: 1250}); entry.ResponseCode != "00" {
			t.Errorf("answered %+v", entry)
		}
		if err := u.SignOn(t.Context()); err == nil {
			t.Error("the upstream has signed on")
		}
		stop()
		link := dial(t, in, listener, 0)
		synctest.Wait() // until the link serves
		ended := demanding(p, simulator.DemandEcho)
		echo := link.receive()
		if got := echo.Get(messages.NetworkManagement); got != "302" {
			t.Errorf("the processor's echo has the code %q", got)
		}
		link.send(messages.NewAnswer(echo, "00"))
		if err := <-ended; err != nil {
			t.Error(err)
		}
		for code, want := range map[string]string{"301": "00", "302": "12"} { // the daemon's own code, and the processor's
			if got := link.code(link.network(code)); got != want {
				t.Errorf("an 0800 with %s is answered %s, want %s", code, got, want)
			}
		}
		if counts := p.Ledger().Counts(); counts.SignOns != 0 || counts.BeforeSignOn != 0 || counts.Echoes != 1 {
			t.Errorf("the ledger counts %+v", counts)
		}
	})
}

// TestADialectMayTakeNoParts has a processor that takes reversals of the whole alone: an upstream's plan becomes that, and a part is refused.
func TestADialectMayTakeNoParts(t *testing.T) {
	bubble(t, func(t *testing.T) {
		in := codecWith(t, "iso87-ascii", "replacement: iso87-de95", "replacement: none")
		p, listener, stopProcessor := serve(t, simulator.ProcessorConfig{Codec: in})
		defer stopProcessor()
		u, stop := run(t, simulator.UpstreamConfig{Codec: in}, listener)
		defer stop()
		ready(t, u)
		entry, err := newDuty(t, simulator.DutyConfig{Upstream: u, PartialShare: 1}).Do(t.Context(), simulator.Request{PAN: pan(t, visa), Amount: 1250})
		if err != nil || entry.Belief != simulator.BelievesNone || entry.Reversal.Partial || entry.Reversal.State != simulator.DebtAcknowledged {
			t.Errorf("got %+v, %v", entry, err)
		}
		link := signedOn(t, in, listener, 500)
		request := link.request(visa, 1250)
		link.ask(request)
		part := link.reversal(request)
		part.Set(messages.ReplacementAmounts, "000000000400"+strings.Repeat("0", 30))
		if got := link.ask(part); got.Get(messages.ResponseCode) != "30" || got.Get(messages.AdditionalResponse) != "095" {
			t.Errorf("a part is answered %v", got)
		}
		if counts := p.Ledger().Counts(); counts.Reversed != 1 || counts.Held != 1 || counts.FormatErrors != 1 {
			t.Errorf("the ledger counts %+v", counts)
		}
	})
}
