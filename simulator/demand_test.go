package simulator_test

import (
	"bytes"
	"context"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"acquirerd/messages"
	"acquirerd/simulator"
	"acquirerd/specs"
)

// newKey is what a key change brings: a cryptogram of 16 bytes and a check value of three.
var newKey = messages.NewKey{Cryptogram: []byte("0123456789abcdef"), CheckValue: []byte{0xAB, 0xCD, 0xEF}}

// demanding has a processor make a demand while its test answers, and returns how the demand ended.
func demanding(p *simulator.Processor, d simulator.Demand) (ended chan error) {
	ended = make(chan error, 1)
	go func() { ended <- p.Demand(context.Background(), d) }()
	return ended
}

// TestAProcessorMakesDemands has the daemon's end answer each demand that a dialect has, in every dialect.
func TestAProcessorMakesDemands(t *testing.T) {
	for _, name := range specs.Names() {
		bubble(t, func(t *testing.T) {
			c := codec(t, name)
			d := c.Dialect()
			demanded := d.NetworkManagement.Demanded()
			p, listener, stop := serve(t, simulator.ProcessorConfig{Codec: c, NewKey: newKey})
			defer stop()
			link := dial(t, c, listener, 0)
			link.ask(c.NewDialogue(messages.SignOn, time.Now(), link.number()))
			made := int64(0)
			for _, want := range []struct {
				demand simulator.Demand
				part   messages.Dialogue
				code   string
			}{{simulator.DemandEcho, messages.Echo, demanded.Echo}, {simulator.DemandCutover, messages.Cutover, demanded.Cutover},
				{simulator.DemandKeyChange, messages.KeyChange, demanded.KeyChange}, {simulator.DemandSignOn, messages.SignOn, demanded.SignOn},
				{simulator.DemandAdvice, "", "0120"}, {simulator.DemandReversal, "", "0420"}} {
				takes := want.code != ""
				if want.part == "" {
					_, takes = d.Messages[d.WireMTI(want.code)]
				}
				ended := demanding(p, want.demand)
				if !takes {
					if err := <-ended; err == nil || !strings.Contains(err.Error(), "the dialect has none") {
						t.Errorf("%s: demanding %s gives %v", name, want.demand, err)
					}
					continue
				}
				m := link.receive()
				if err := c.Validate(m); err != nil {
					t.Errorf("%s: %s: %v", name, want.demand, err)
				}
				if got := c.Demanded(m); got != want.part || want.part == "" && string(m.MTI) != want.code {
					t.Errorf("%s: demanding %s sends %v", name, want.demand, m)
				}
				code := d.NetworkManagement.Accepted[0]
				if want.part == "" {
					code = d.Reversal.Acknowledged[0]
				}
				day := map[specs.Standard]string{specs.ISO87: "0102", specs.ISO93: "000102"}[d.Standard] // a bubble begins on 1 January 2000
				if got := m.Get(messages.SettlementDate); want.part == messages.Cutover && got != day {
					t.Errorf("%s: the cutover is to %q, want %q", name, got, day)
				}
				if want.part == messages.KeyChange {
					if got, err := c.NewKey(m); err != nil || !bytes.Equal(got.Cryptogram, newKey.Cryptogram) || !bytes.Equal(got.CheckValue, newKey.CheckValue) {
						t.Errorf("%s: the key change brings %x, %v", name, got, err)
					}
				}
				link.send(messages.NewAnswer(m, code))
				if err := <-ended; err != nil {
					t.Errorf("%s: %v", name, err)
				}
				made++
			}
			if counts := p.Ledger().Counts(); counts.Demands != made || counts.DemandsAnswered != made || counts.Unasked != 0 || made < 3 {
				t.Errorf("%s: after %d demands the ledger counts %+v", name, made, counts)
			}
		})
	}
}

func TestADemandThatIsNotAnsweredIsSeen(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p, listener, stop := serve(t, simulator.ProcessorConfig{DemandTimeout: 3 * time.Second})
		defer stop()
		if err := p.Demand(t.Context(), simulator.DemandEcho); err == nil {
			t.Error("it was made without a link")
		}
		c := codec(t, "iso87-ascii")
		link := signedOn(t, c, listener, 0)

		ended := demanding(p, simulator.DemandEcho)
		unanswered := link.receive()
		if err := <-ended; err == nil || !strings.Contains(err.Error(), "not answered") {
			t.Errorf("without an answer it ends with %v", err)
		}
		link.send(messages.NewAnswer(unanswered, "00")) // too late, and the first one all the same

		ended = demanding(p, simulator.DemandCutover)
		link.send(messages.NewAnswer(link.receive(), "96"))
		if err := <-ended; err == nil || !strings.Contains(err.Error(), "refused with 96") {
			t.Errorf("refused, it ends with %v", err)
		}

		ended = demanding(p, simulator.DemandEcho)
		echo := link.receive()
		link.send(messages.NewAnswer(echo, "00"))
		link.send(messages.NewAnswer(echo, "00"))
		if err := <-ended; err != nil {
			t.Error(err)
		}

		ended = demanding(p, simulator.DemandEcho)
		link.receive()
		_ = link.conn.Close()
		if err := <-ended; err == nil || !strings.Contains(err.Error(), "link ended") {
			t.Errorf("without a link it ends with %v", err)
		}
		link = signedOn(t, c, listener, 100)
		link.send(messages.NewAnswer(link.request(visa, 100), "00")) // nothing like that was asked
		link.code(link.network("301"))
		counts := p.Ledger().Counts()
		if counts.Demands != 4 || counts.DemandsUnanswered != 1 || counts.DemandsRefused != 1 || counts.DemandsAnswered != 1 || counts.DemandsLost != 1 ||
			counts.DemandsTwice != 1 || counts.Unasked != 1 {
			t.Errorf("the ledger counts %+v", counts)
		}
		verdict := simulator.Compare(nil, p.Ledger().Snapshot(), simulator.BookSnapshot{})
		if verdict.Mismatches != 1 || !strings.Contains(verdict.Disagreements[0], "more often than it was sent") {
			t.Errorf("the comparison says %q", verdict.Disagreements)
		}
	})
}

func TestAnAdviceOfTheProcessorIsRepeatedUntilItIsTaken(t *testing.T) {
	for _, d := range []struct {
		demand        simulator.Demand
		first, repeat messages.MTI
		code          string
	}{{simulator.DemandAdvice, "0120", "0121", "00"}, {simulator.DemandReversal, "0420", "0421", "25"}} {
		bubble(t, func(t *testing.T) {
			p, listener, stop := serve(t, simulator.ProcessorConfig{DemandTimeout: 3 * time.Second})
			defer stop()
			c := codec(t, "iso87-ascii")
			link := signedOn(t, c, listener, 0)
			ended := demanding(p, d.demand)
			first := link.receive()
			if first.MTI != d.first {
				t.Errorf("at first it is %v", first)
			}
			open := p.Ledger().Snapshot()
			if verdict := simulator.Compare(nil, open, simulator.BookSnapshot{}); open.Counts.DemandsOpen != 1 || verdict.Mismatches != 1 {
				t.Errorf("while it is not answered, %d are open, and the comparison says %q", open.Counts.DemandsOpen, verdict.Disagreements)
			}
			for _, code := range []string{"", "91", d.code} { // silence, not now, taken
				again := link.receive()
				if again.MTI != d.repeat || again.Get(messages.STAN) != first.Get(messages.STAN) ||
					again.Get(messages.TransmissionTime) != first.Get(messages.TransmissionTime) {
					t.Errorf("after %v the repeat is %v", first, again)
				}
				if code != "" {
					link.send(messages.NewAnswer(again, code))
				}
			}
			if err := <-ended; err != nil {
				t.Error(err)
			}
			link.quiet()
			if counts := p.Ledger().Counts(); counts.DemandsOpen != 0 || counts.DemandsAnswered != 1 || counts.DemandsTwice != 0 {
				t.Errorf("the ledger counts %+v", counts)
			}
		})
	}
}

func TestARuleDemands(t *testing.T) {
	bubble(t, func(t *testing.T) {
		c := codec(t, "iso87-ascii")
		p, listener, stop := serve(t, simulator.ProcessorConfig{Codec: c, Rules: rules(t, "amount=777 demand=echo", "amount=888 demand=sign-off")})
		defer stop()
		link := signedOn(t, c, listener, 0)
		link.send(link.request(visa, 777))
		kinds := map[messages.MTI]*messages.Message{}
		for range 2 { // the answer and the demand, whichever is first
			m := link.receive()
			kinds[m.MTI] = m
		}
		if kinds["0110"] == nil || c.Demanded(kinds["0800"]) != messages.Echo {
			t.Fatalf("got %v", kinds)
		}
		link.send(messages.NewAnswer(kinds["0800"], "00"))

		link.send(link.request(visa, 888))
		for range 2 {
			m := link.receive()
			kinds[m.MTI] = m
		}
		if c.Demanded(kinds["0800"]) != messages.SignOff {
			t.Fatalf("got %v", kinds)
		}
		link.send(messages.NewAnswer(kinds["0800"], "00"))
		if got := link.code(link.request(visa, 100)); got != "91" {
			t.Errorf("signed off, it answers %s", got)
		}
		signOn := link.receive() // the link has stayed
		if c.Demanded(signOn) != messages.SignOn {
			t.Fatalf("got %v", signOn)
		}
		link.send(messages.NewAnswer(signOn, "00"))
		if got := link.code(link.request(visa, 100)); got != "00" {
			t.Errorf("signed on again, it answers %s", got)
		}
		synctest.Wait() // until the demands are counted
		if counts := p.Ledger().Counts(); counts.DemandsAnswered != 3 || counts.Effects["demand"] != 2 {
			t.Errorf("the ledger counts %+v", counts)
		}
	})
	for name, cfg := range map[string]simulator.ProcessorConfig{
		"a cutover that the dialect does not have": {Codec: codec(t, "visa-like"), Rules: rules(t, "demand=cutover")},
		"a key change without a key":               {Codec: codec(t, "iso87-ascii"), Rules: rules(t, "demand=key-change")},
	} {
		if _, err := simulator.NewProcessor(cfg); err == nil {
			t.Errorf("%s is taken", name)
		}
	}
	if _, err := simulator.ParseRule("demand=money"); err == nil {
		t.Error("a demand of nothing is taken")
	}
}

// TestChanceDemands has the same seed demand the same.
func TestChanceDemands(t *testing.T) {
	demanded := func() (kinds string) {
		bubble(t, func(t *testing.T) {
			p, listener, stop := serve(t, simulator.ProcessorConfig{Faults: simulator.Faults{Seed: 7, Demand: .5}, AcceptBeforeSignOn: true})
			defer stop()
			link := signedOn(t, codec(t, "iso87-ascii"), listener, 0)
			for range 60 {
				link.send(link.request(visa, 100))
				for m := link.receive(); ; m = link.receive() {
					if m.MTI.IsAnswer() {
						break
					}
					kinds += fmt.Sprint(m.MTI, link.codec.Demanded(m), " ")
					link.send(messages.NewAnswer(m, "00"))
				}
				for m, err := link.read(); err == nil; m, err = link.read() {
					kinds += fmt.Sprint(m.MTI, link.codec.Demanded(m), " ")
					link.send(messages.NewAnswer(m, "00"))
				}
			}
			if counts := p.Ledger().Counts(); counts.Demands < 20 || counts.DemandsAnswered != counts.Demands {
				t.Errorf("the ledger counts %+v", counts)
			}
		})
		return kinds
	}
	once, again := demanded(), demanded()
	if once != again {
		t.Errorf("the same seed demands\n%s and\n%s", once, again)
	}
	for _, kind := range []string{"0800echo", "0800cutover", "0800sign_off", "0120", "0420"} {
		if !strings.Contains(once, kind) {
			t.Errorf("%s is never demanded: %s", kind, once)
		}
	}
}
