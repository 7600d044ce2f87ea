package acquirer

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"acquirerd/card"
	"acquirerd/conn"
	"acquirerd/journal"
	"acquirerd/messages"
	"acquirerd/specs"
)

func TestClassify(t *testing.T) {
	dialect, err := specs.Load("iso87-ascii")
	if err != nil {
		t.Fatal(err)
	}
	answer := func(code string) *messages.Message {
		m := messages.New("0110")
		m.Set(messages.ResponseCode, code)
		m.Set(messages.Amount, "000000000500")
		m.Set(messages.AuthorizationID, "ABC123")
		return m
	}
	partial := answer("10")
	partial.Delete(messages.Amount)
	for _, row := range []struct {
		name   string
		answer *messages.Message
		err    error
		want   journal.Kind
		reason string
		amount string
	}{
		{"proven not sent", nil, fmt.Errorf("x: %w", conn.ErrNotSent), journal.NotSent, reasonNotSent, ""},
		{"proven not sent, without its code", nil, fmt.Errorf("%w: %w", conn.ErrNotSent, messages.ErrNoMAC), journal.NotSent, reasonNoMAC, ""},
		{"an answer that is not proven", nil, fmt.Errorf("%w: %w", conn.ErrMAC, messages.ErrMAC), journal.Unknown, reasonMAC, ""},
		{"timeout", nil, fmt.Errorf("x: %w", conn.ErrTimeout), journal.Unknown, reasonTimeout, ""},
		{"undecodable", nil, fmt.Errorf("x: %w", conn.ErrUndecodable), journal.Unknown, reasonUndecodable, ""},
		{"mismatch", nil, fmt.Errorf("x: %w", conn.ErrMismatch), journal.Unknown, reasonMismatch, ""},
		{"any other error", nil, errors.New("broken pipe"), journal.Unknown, reasonLinkFailed, ""},
		{"an answer beside an error", answer("00"), errors.New("broken pipe"), journal.Unknown, reasonLinkFailed, ""},
		{"neither answer nor error", nil, nil, journal.Unknown, reasonLinkFailed, ""},
		{"an answer without a code", answer(""), nil, journal.Unknown, reasonUndecodable, ""},
		{"00", answer("00"), nil, journal.Approved, "", ""},
		{"08", answer("08"), nil, journal.Approved, "", ""},
		{"85", answer("85"), nil, journal.Approved, "", ""},
		{"10 without an amount says nothing about money", partial, nil, journal.Unknown, reasonPartial, ""},
		{"10 keeps the partial amount", answer("10"), nil, journal.Approved, "", "000000000500"},
		{"51", answer("51"), nil, journal.Declined, "", ""},
		{"91 from the processor is its word", answer("91"), nil, journal.Declined, "", ""},
	} {
		got := classify(dialect, row.answer, row.err)
		if got.Kind != row.want || got.Reason != row.reason || got.ApprovedAmount != row.amount {
			t.Errorf("%s: got %+v", row.name, got)
		}
	}
}

func TestRoutes(t *testing.T) {
	table, err := newRoutes([]Route{
		{BINs: []string{"4"}, Endpoint: "visa"},
		{BINs: []string{"411111"}, Endpoint: "special"},
		{BINs: []string{"51-55", "2221-2720"}, Endpoint: "mastercard"},
		{BINs: []string{"4"}, Currencies: []string{"978"}, MTIs: []string{"0200"}, Upstreams: []string{"atm"}, Endpoint: "never longer"},
		{BINs: []string{"400000"}, Currencies: []string{"978"}, MTIs: []string{"0200"}, Upstreams: []string{"atm"}, Endpoint: "euro atm"},
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, row := range []struct{ pan, upstream, mti, currency, want string }{
		{"4000000000000002", "pos", "0100", "840", "visa"},
		{"4111111111111111", "pos", "0100", "840", "special"},
		{"5555555555554444", "pos", "0100", "840", "mastercard"},
		{"5600000000000003", "pos", "0100", "840", ""},
		{"2223000048400011", "pos", "0100", "840", "mastercard"},
		{"2220990000000000", "pos", "0100", "840", ""},
		{"4000000000000002", "atm", "0200", "978", "euro atm"},
		{"4000000000000002", "atm", "0100", "978", "visa"},
		{"4000000000000002", "pos", "0200", "978", "visa"},
	} {
		pan, err := card.ParsePAN(row.pan)
		if err != nil {
			t.Fatal(err)
		}
		m := messages.New(messages.MTI(row.mti))
		m.Set(messages.Currency, row.currency)
		got, found := table.find(row.upstream, m, pan)
		if got != row.want || found != (row.want != "") {
			t.Errorf("%+v: got %q, %v", row, got, found)
		}
	}
	for _, bin := range []string{"", "4x", "55-51", "5-55", "-", "4-", "411111111111"} {
		if _, _, err := ParseBIN(bin); err == nil {
			t.Errorf("%q was taken", bin)
		}
	}
	if all, err := newRoutes([]Route{{Endpoint: "any"}}); err != nil {
		t.Error(err)
	} else if name, found := all.find("x", messages.New("0100"), card.PAN{}); !found || name != "any" {
		t.Errorf("a route without BINs: got %q, %v", name, found)
	}
}

func TestPauseDoublesUpToItsMost(t *testing.T) {
	f := &Forwarder{cfg: Forwarding{RetryMin: 5 * time.Second, RetryMax: 300 * time.Second}}
	for attempts, want := range []time.Duration{5, 10, 20, 40, 80, 160, 300, 300} {
		f.random = func() float64 { return 0 }
		low := f.pause(journal.Owed{Attempts: attempts, Since: time.Now()})
		f.random = func() float64 { return 0.999999 }
		high := f.pause(journal.Owed{Attempts: attempts, Since: time.Now()})
		if want *= time.Second; low != want/2 || high > want || high < want*99/100 {
			t.Errorf("after %d attempts: %v to %v, want a half to the whole of %v", attempts, low, high, want)
		}
	}
	if got := f.pause(journal.Owed{Attempts: 1 << 30, Since: time.Now()}); got > 300*time.Second || got <= 0 {
		t.Errorf("after very many attempts: %v", got)
	}
}
