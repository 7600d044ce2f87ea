package acquirer_test

import (
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"acquirerd/journal"
	"acquirerd/messages"
)

func init() { codecs["iso93-binary"] = load("iso93-binary") }

// received is a message as it comes from the wire.
func received(t *testing.T, c *messages.Codec, m *messages.Message) *messages.Message {
	t.Helper()
	wire, err := c.Encode(m)
	if err != nil {
		t.Fatal(err)
	}
	got, err := c.Decode(wire)
	if err != nil {
		t.Fatal(err)
	}
	return got
}

// 4000 is "accepted" of a reversal: an advice of another class and of the network has codes of its own.
func TestAnAdviceIsNotAnsweredWithTheCodeOfReversals(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.dialect = codec(t, "iso93-binary")
		w.start()
		financial := told("0220", "700001")
		financial.Set(messages.LocalTime, "261124101112")
		financial.Set(messages.FunctionCode, "200")
		network := messages.New("0820")
		network.Set(messages.STAN, "700002")
		network.Set(messages.TransmissionTime, "1124101112")
		network.Set(messages.LocalTime, "261124101112")
		network.Set(messages.FunctionCode, "899")
		for want, m := range map[string]*messages.Message{"0000": financial, "8000": network} {
			if got := codeOf(w.demand(received(t, w.dialect, m))); got != want {
				t.Errorf("%s is answered %s, not %s", m.MTI, got, want)
			}
		}
		w.stop()
	})
}

// DE 72 of ISO 8583:1993 is the data record, 999 characters of anything: it is kept as plain text.
func TestTheDataRecordOfAnAdviceIsNotKeptWithACardNumber(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.dialect = codec(t, "iso93-binary")
		w.start()
		m := messages.New("0624")
		m.Set(messages.STAN, "700001")
		m.Set(messages.TransmissionTime, "1124101112")
		m.Set(messages.LocalTime, "261124101112")
		for _, e := range []messages.Element{72, 95} { // data record, card issuer reference data
			m.Set(e, "RETRIEVAL OF CARD "+testPAN+" EXP 2912 CVV 737")
		}
		w.demand(received(t, w.dialect, m))
		for _, a := range w.advices() {
			for _, e := range []messages.Element{72, 95} {
				if text := a.Original.Get(e); strings.Contains(text, testPAN) {
					t.Errorf("the journal keeps %v in clear: %q", e, text)
				}
			}
		}
		if len(w.advices()) != 1 {
			t.Error("not recorded")
		}
		w.stop()
	})
}

// Only 0810/00 after success: an advice that brings a key is a key change by another name, and the key is not in use.
func TestAKeyThatComesByAnAdviceIsNotAcceptedUnlessItIsInUse(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		keys := &keyring{t: t}
		w.stop()
		w.keys = keys
		w.start()
		m := keyChange(newKey+"012345", "700001")
		m.MTI = "0820"
		if got := codeOf(w.demand(m)); got == "00" && keys.inUse() == "" {
			t.Errorf("answered %s, and the key is not in use", got)
		}
	})
}

// A processor whose demands cannot be done, and that asks again and again, is one alarm and not a full disk.
func TestDemandsThatFailAgainAndAgainDoNotFillTheLog(t *testing.T) {
	inLoggedWorld(t, func(t *testing.T, w *world, log func() string) {
		w.stop()
		w.keys = &keyring{t: t}
		w.start()
		for name, m := range map[string]*messages.Message{"key change": keyChange(newKey+"543210", "700001"), "cutover": cutover("0230", "700001"),
			"reversal": undoes(told("0420", "700001"), journal.Transaction{MTI: "0100", STAN: "999999", TransmissionTime: "1124101112"})} {
			before := strings.Count(log(), "level=ERROR")
			for i := range 500 {
				again := m.Clone()
				again.Set(messages.STAN, fmt.Sprintf("7%05d", i))
				w.demand(again)
			}
			if got := strings.Count(log(), "level=ERROR") - before; got > 50 {
				t.Errorf("%s: %d alarms at once", name, got)
			}
			<-time.After(time.Minute)
		}
	})
}

// An advice tells of what has happened: whatever its format, a reversal of the processor is for a person.
func TestAReversalOfTheProcessorThatDoesNotKeepTheFormatIsForAPerson(t *testing.T) {
	inLoggedWorld(t, func(t *testing.T, w *world, log func() string) {
		w.ask(w.request(), delivered)
		m := undoes(told("0420", "700001"), w.only())
		m.Delete(messages.ProcessingCode)
		w.demand(m)
		if len(w.advices()) == 0 && !strings.Contains(log(), "alarm=") {
			t.Errorf("neither recorded nor told to anybody: %s", log())
		}
	})
}
