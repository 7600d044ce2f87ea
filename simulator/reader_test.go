package simulator_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"acquirerd/messages"
	"acquirerd/simulator"
)

// Elements of ISO 8583:1993 that this test writes by hand, as a daemon with a fault would.
const (
	amounts93  messages.Element = 30
	original93 messages.Element = 56
)

// TestTheLedgerReadsReversalsItself sends reversals that are written by hand, right ones and wrong ones, in both editions: what the daemon's own code makes of
// them is not asked.
func TestTheLedgerReadsReversalsItself(t *testing.T) {
	zeros := func(n int) string { return strings.Repeat("0", n) }
	for _, c := range []struct {
		name, dialect, mti string
		change             func(reversal, request *messages.Message)
		code               string // the dialect's own
		state              simulator.State
		holds              int64 // what is held of 1250
		disagrees          bool
		unknown            bool
	}{
		{"DE 90 names it", "iso87-ascii", "0420", func(r, q *messages.Message) {
			r.Set(messages.OriginalData, "0100"+q.Get(messages.STAN)+q.Get(messages.TransmissionTime)+"00000012345"+zeros(11))
		}, "00", simulator.Reversed, 1250, false, false},
		{"DE 90 may leave the acquirer open", "iso87-ascii", "0420", func(r, q *messages.Message) {
			r.Set(messages.OriginalData, "0100"+q.Get(messages.STAN)+q.Get(messages.TransmissionTime)+zeros(22))
		}, "00", simulator.Reversed, 1250, false, false},
		{"DE 90 has another acquirer", "iso87-ascii", "0420", func(r, q *messages.Message) {
			r.Set(messages.OriginalData, "0100"+q.Get(messages.STAN)+q.Get(messages.TransmissionTime)+"00000054321"+zeros(11))
		}, "00", simulator.Reversed, 1250, true, false},
		{"DE 90 has a repeat's type", "iso87-ascii", "0420", func(r, q *messages.Message) {
			r.Set(messages.OriginalData, "0101"+q.Get(messages.STAN)+q.Get(messages.TransmissionTime)+zeros(22))
		}, "00", simulator.Reversed, 1250, false, false},
		{"DE 90 has an advice's type", "iso87-ascii", "0420", func(r, q *messages.Message) {
			r.Set(messages.OriginalData, "0120"+q.Get(messages.STAN)+q.Get(messages.TransmissionTime)+zeros(22))
		}, "00", simulator.Reversed, 1250, true, false},
		{"DE 90 has another time", "iso87-ascii", "0420", func(r, q *messages.Message) {
			r.Set(messages.OriginalData, "0100"+q.Get(messages.STAN)+"1123120100"+zeros(22))
		}, "25", simulator.Held, 1250, false, true},
		{"DE 90 has a class that is none", "iso87-ascii", "0420", func(r, q *messages.Message) {
			r.Set(messages.OriginalData, "0800"+q.Get(messages.STAN)+q.Get(messages.TransmissionTime)+zeros(22))
		}, "30", simulator.Held, 1250, false, false},
		{"DE 90 has an answer's type", "iso87-ascii", "0420", func(r, q *messages.Message) {
			r.Set(messages.OriginalData, "0110"+q.Get(messages.STAN)+q.Get(messages.TransmissionTime)+zeros(22))
		}, "30", simulator.Held, 1250, false, false},
		{"DE 95 leaves a part", "iso87-ascii", "0420", func(r, q *messages.Message) {
			r.Set(messages.OriginalData, "0100"+q.Get(messages.STAN)+q.Get(messages.TransmissionTime)+zeros(22))
			r.Set(messages.ReplacementAmounts, "000000000400"+zeros(30))
		}, "00", simulator.Held, 400, false, false},
		{"DE 95 leaves more than there was", "iso87-ascii", "0420", func(r, q *messages.Message) {
			r.Set(messages.OriginalData, "0100"+q.Get(messages.STAN)+q.Get(messages.TransmissionTime)+zeros(22))
			r.Set(messages.ReplacementAmounts, "000000009999"+zeros(30))
		}, "00", simulator.Held, 1250, true, false},
		{"a reversal that must have a number of its own has its original's", "iso87-ebcdic", "0400", func(r, q *messages.Message) {
			r.Set(messages.OriginalData, "0100"+q.Get(messages.STAN)+q.Get(messages.TransmissionTime)+zeros(22))
			r.Set(messages.ReplacementAmounts, zeros(42))
		}, "00", simulator.Reversed, 1250, true, false},
		{"DE 56 names it", "iso93-binary", "0420", func(r, q *messages.Message) {
			r.SetSensitive(original93, "1100"+q.Get(messages.STAN)+q.Get(messages.LocalTime)+"0512345")
			r.Set(messages.FunctionCode, "400")
		}, "4000", simulator.Reversed, 1250, false, false},
		{"DE 56 has the type of another edition", "iso93-binary", "0420", func(r, q *messages.Message) {
			r.SetSensitive(original93, "0100"+q.Get(messages.STAN)+q.Get(messages.LocalTime)+"0512345")
			r.Set(messages.FunctionCode, "400")
		}, "9104", simulator.Held, 1250, false, false},
		{"DE 56 has a length that is not the acquirer's", "iso93-binary", "0420", func(r, q *messages.Message) {
			r.SetSensitive(original93, "1100"+q.Get(messages.STAN)+q.Get(messages.LocalTime)+"0612345")
			r.Set(messages.FunctionCode, "400")
		}, "9104", simulator.Held, 1250, false, false},
		{"DE 56 has DE 7 in the place of DE 12", "iso93-binary", "0420", func(r, q *messages.Message) {
			r.SetSensitive(original93, "1100"+q.Get(messages.STAN)+"00"+q.Get(messages.TransmissionTime)+"0512345")
			r.Set(messages.FunctionCode, "400")
		}, "9114", simulator.Held, 1250, false, true},
		{"DE 4 is what is to stand, DE 30 what was", "iso93-binary", "0420", func(r, q *messages.Message) {
			r.SetSensitive(original93, "1100"+q.Get(messages.STAN)+q.Get(messages.LocalTime)+"0512345")
			r.Set(messages.FunctionCode, "401")
			r.Set(messages.Amount, "000000000400")
			r.Set(amounts93, "000000001250"+zeros(12))
		}, "4000", simulator.Held, 400, false, false},
		{"DE 30 is not what was", "iso93-binary", "0420", func(r, q *messages.Message) {
			r.SetSensitive(original93, "1100"+q.Get(messages.STAN)+q.Get(messages.LocalTime)+"0512345")
			r.Set(messages.FunctionCode, "401")
			r.Set(messages.Amount, "000000000400")
			r.Set(amounts93, "000000000400"+zeros(12))
		}, "4000", simulator.Held, 400, true, false},
		{"a whole one has a part in DE 4", "iso93-binary", "0420", func(r, q *messages.Message) {
			r.SetSensitive(original93, "1100"+q.Get(messages.STAN)+q.Get(messages.LocalTime)+"0512345")
			r.Set(messages.FunctionCode, "400")
			r.Set(messages.Amount, "000000000400")
		}, "4000", simulator.Reversed, 1250, true, false},
	} {
		t.Run(c.dialect+": "+c.name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				in := codec(t, c.dialect)
				p, listener, stop := serve(t, simulator.ProcessorConfig{Codec: in})
				defer stop()
				link := dial(t, in, listener, 0)
				link.ask(in.NewDialogue(messages.SignOn, time.Now(), link.number()))
				request := link.request(visa, 1250)
				request.Set(messages.AcquirerID, "12345")
				if c.dialect == "iso93-binary" {
					request.Set(messages.LocalTime, "251123130059")
					request.Set(messages.FunctionCode, "100")
				}
				if got := link.ask(request); !in.Dialect().Approves(got.Get(messages.ResponseCode)) {
					t.Fatalf("got %v", got)
				}
				reversal := request.Clone()
				reversal.MTI = messages.MTI(c.mti)
				c.change(reversal, request)
				if got := link.code(reversal); got != c.code {
					t.Errorf("answered %s, want %s", got, c.code)
				}
				snapshot := p.Ledger().Snapshot()
				hold := snapshot.Holds[0]
				if hold.State != c.state || hold.ApprovedAmount != c.holds || (snapshot.Counts.DisagreeingReversals > 0) != c.disagrees ||
					(snapshot.Counts.UnknownReversals > 0) != c.unknown {
					t.Errorf("the ledger has it %s, %d of %d; counts %+v", hold.State, hold.ApprovedAmount, hold.Amount, snapshot.Counts)
				}
			})
		})
	}
}

// TestALedgerIsOfOneEdition has a ledger outlive its processor: the next one must name originals as the first did.
func TestALedgerIsOfOneEdition(t *testing.T) {
	ledger := simulator.NewLedger(0)
	for _, c := range []struct {
		dialect string
		taken   bool
	}{{"iso87-ascii", true}, {"visa-like", true}, {"iso93-binary", false}, {"iso87-ascii", true}} {
		if _, err := simulator.NewProcessor(simulator.ProcessorConfig{Codec: codec(t, c.dialect), Ledger: ledger}); (err == nil) != c.taken {
			t.Errorf("%s: %v", c.dialect, err)
		}
	}
}

// TestCodesAreThoseOfISO87 has rules and card effects of 1987 in a dialect with codes of its own, and in one that has no word for some.
func TestCodesAreThoseOfISO87(t *testing.T) {
	in := codec(t, "iso93-binary")
	bubble(t, func(t *testing.T) {
		p, listener, stop := serve(t, simulator.ProcessorConfig{Codec: in, Rules: rules(t, "amount=1 decline=51", "amount=2 answer=08", "amount=3 decline=98",
			"amount=4 answer=85", "amount=5 partial=2", "mti=08 answer=91 times=1")})
		defer stop()
		link := dial(t, in, listener, 0)
		signOn := func() string { return link.code(in.NewDialogue(messages.SignOn, time.Now(), link.number())) }
		if got := signOn(); got != "9107" {
			t.Errorf("a sign-on that is refused with 91 is answered %s", got)
		}
		if got := signOn(); got != "8000" {
			t.Errorf("a sign-on is answered %s", got)
		}
		for _, c := range []struct {
			amount   int64
			card     string
			own, has string
		}{{1, visa, "1016", "51"}, {2, visa, "0001", "08"}, {3, visa, "1000", "98"}, {4, visa, "0000", "85"}, {5, visa, "0002", "10"},
			{6, visa, "0000", "00"}, {7, "4000000000000119", "2008", "41"}, {8, "4111111111111112", "1011", "14"}} {
			request := link.request(c.card, c.amount)
			request.Set(messages.LocalTime, "251123130059")
			request.Set(messages.FunctionCode, "100")
			if got := link.code(request); got != c.own {
				t.Errorf("over %d answered %s, want %s", c.amount, got, c.own)
			}
			holds := p.Ledger().Snapshot().Holds
			if hold := holds[len(holds)-1]; hold.ResponseCode != c.has || (hold.State == simulator.Held) != (c.own[:1] == "0") {
				t.Errorf("over %d the ledger has %s, %s", c.amount, hold.ResponseCode, hold.State)
			}
		}
	})
	if _, err := simulator.NewProcessor(simulator.ProcessorConfig{Codec: in, Rules: rules(t, "decline=08")}); err == nil {
		t.Error("a decline that approves in the dialect's own words is taken")
	}
}

// TestRequestsHaveTheirDialectsForm has an upstream of each edition ask for the same: times, how the card was read, and function codes.
func TestRequestsHaveTheirDialectsForm(t *testing.T) {
	for _, c := range []struct {
		dialect string
		mti     messages.MTI
		want    map[messages.Element]string
	}{
		{"iso87-ascii", "0100", map[messages.Element]string{messages.LocalTime: "000000", messages.LocalDate: "0101", messages.POSEntryMode: "012",
			messages.FunctionCode: "", messages.POSConditionCode: "00", messages.Terminal: "SIM00001"}},
		{"iso93-binary", "0100", map[messages.Element]string{messages.LocalTime: "000101000000", messages.LocalDate: "", messages.POSEntryMode: "51010110014C",
			messages.FunctionCode: "100", messages.POSConditionCode: "", messages.Terminal: "SIM00001"}},
		{"iso93-binary", "0200", map[messages.Element]string{messages.FunctionCode: "200"}},
		{"iso93-binary", "0220", map[messages.Element]string{messages.FunctionCode: "200"}},
	} {
		bubble(t, func(t *testing.T) {
			seen := map[messages.MTI]map[messages.Element]string{}
			in := codec(t, c.dialect)
			_, listener, stopProcessor := serve(t, simulator.ProcessorConfig{Codec: in})
			defer stopProcessor()
			u, stop := run(t, simulator.UpstreamConfig{Codec: in, Omits: []messages.Element{messages.MerchantType}, Trace: func(e simulator.TraceEvent) {
				if e.Direction != simulator.Sent || e.Message.MTI.Class() == messages.Network {
					return
				}
				seen[e.Message.MTI] = map[messages.Element]string{}
				for _, element := range e.Message.Elements() {
					if !element.Sensitive() {
						seen[e.Message.MTI][element] = e.Message.Get(element)
					}
				}
			}}, listener)
			ready(t, u)
			do(t, u, simulator.Request{MTI: c.mti, PAN: pan(t, visa), Amount: 1250})
			stop()
			for element, want := range c.want {
				if got := seen[c.mti][element]; got != want {
					t.Errorf("%s %s: %v is %q, want %q", c.dialect, c.mti, element, got, want)
				}
			}
			if _, has := seen[c.mti][messages.MerchantType]; has {
				t.Error("what is to be left out is sent")
			}
		})
	}
	if got := fmt.Sprint(simulator.Demands); got != "[echo sign-on sign-off cutover key-change advice reversal]" {
		t.Errorf("the demands are %s", got)
	}
}
