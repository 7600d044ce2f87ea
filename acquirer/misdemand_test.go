package acquirer_test

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"acquirerd/acquirer"
	"acquirerd/hsm"
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

// Reference data (DE 95 of ISO 8583:1993) are text that people write; the data record (DE 72) is not kept at all.
func TestReferenceDataOfAnAdviceAreNotKeptWithACardNumber(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.dialect = codec(t, "iso93-binary")
		w.start()
		m := messages.New("0624")
		m.Set(messages.STAN, "700001")
		m.Set(messages.TransmissionTime, "1124101112")
		m.Set(messages.LocalTime, "261124101112")
		for _, e := range []messages.Element{72, 95} {
			m.SetSensitive(e, "RETRIEVAL OF CARD "+testPAN+" EXP 2912 CVV 737")
		}
		w.demand(received(t, w.dialect, m))
		list := w.advices()
		if len(list) != 1 || list[0].Withheld != "de72" || list[0].Original.Get(95) != "RETRIEVAL OF CARD 411111******1111 EXP 2912 CVV 737" {
			t.Errorf("recorded %+v", list)
		}
		w.stop()
	})
}

// An advice that brings a key is a key change: it is accepted if the key is in use. One without a key is news.
func TestAKeyThatComesByAnAdviceIsInUse(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		keys := &keyring{t: t}
		w.stop()
		w.keys = keys
		w.start()
		confirmation := management("101", "700002")
		confirmation.MTI = "0820"
		if got := codeOf(w.demand(confirmation)); got != "00" || keys.inUse() != "" || len(w.advices()) != 1 {
			t.Errorf("without a key: answered %s, key %q", got, keys.inUse())
		}
		m := keyChange(newKey+"012345", "700001")
		m.MTI = "0820"
		if got := w.demand(m); codeOf(got) != "00" || got.MTI != "0830" || keys.inUse() != "zpk-bank "+newKey || len(w.advices()) != 1 {
			t.Errorf("answered %v, key %q", got, keys.inUse())
		}
		m.SetSensitive(messages.AdditionalData, newKey+"543210")
		if got := codeOf(w.demand(m)); got != "96" {
			t.Errorf("a wrong check value: answered %s", got)
		}
	})
}

// A processor whose demands cannot be done, and that asks again and again, is one alarm a minute and not a full disk.
func TestDemandsThatFailAgainAndAgainDoNotFillTheLog(t *testing.T) {
	inLoggedWorld(t, func(t *testing.T, w *world, log func() string) {
		w.stop()
		w.keys = &keyring{t: t}
		w.start()
		for alarm, m := range map[string]*messages.Message{"key_not_changed": keyChange(newKey+"543210", "700001"), "cutover_refused": cutover("0230", "700001"),
			"unknown_undone": undoes(told("0420", "700001"), journal.Transaction{MTI: "0100", STAN: "999999", TransmissionTime: "1124101112"})} {
			again := func(n int) (alarms int) {
				before := strings.Count(log(), "level=ERROR")
				for i := range n {
					one := m.Clone()
					one.Set(messages.STAN, fmt.Sprintf("7%05d", int(w.metric("acquirerd_demand_alarms_total"))+i))
					w.demand(one)
				}
				return strings.Count(log(), "level=ERROR") - before
			}
			if got := again(100); got != 1 || !strings.Contains(log(), "alarm="+alarm+" times=1\n") {
				t.Errorf("%s: %d alarms at once", alarm, got)
			}
			<-time.After(time.Minute - time.Nanosecond)
			if got := again(5); got != 0 {
				t.Errorf("%s: %d alarms within a minute", alarm, got)
			}
			<-time.After(time.Nanosecond)
			if got := again(5); got != 1 || !strings.Contains(log(), "alarm="+alarm+" times=105\n") {
				t.Errorf("%s: %d alarms after a minute", alarm, got)
			}
			if got := w.metric("acquirerd_demand_alarms_total", "bank", alarm); got != 110 {
				t.Errorf("%s: %v counted", alarm, got)
			}
		}
	})
}

// An advice tells of what has happened: whatever its format, a reversal of the processor is for a person.
func TestAReversalOfTheProcessorThatDoesNotKeepTheFormatIsForAPerson(t *testing.T) {
	for name, test := range map[string]struct {
		change   func(m *messages.Message)
		code     string // "" for no answer
		alarm    string
		advices  int
		hsm      error
		recorded string // PAN
	}{
		"it lacks what is mandatory": {func(m *messages.Message) { m.Delete(messages.ProcessingCode) }, "30", "approval_undone", 1, nil, "411111******1111"},
		"it names no original":       {func(m *messages.Message) { m.Delete(messages.OriginalData) }, "30", "reversal_malformed", 1, nil, "411111******1111"},
		"its card is none":           {func(m *messages.Message) { m.SetSensitive(messages.PAN, "4111") }, "30", "approval_undone", 1, nil, ""},
		"it has no STAN":             {func(m *messages.Message) { m.Delete(messages.STAN) }, "", "approval_undone", 1, nil, "411111******1111"},
		"and the HSM is down":        {func(m *messages.Message) { m.Delete(messages.ProcessingCode) }, "", "reversal_malformed", 0, hsm.ErrUnavailable, ""},
	} {
		t.Run(name, func(t *testing.T) {
			inLoggedWorld(t, func(t *testing.T, w *world, log func() string) {
				broken := &vault{}
				w.stop()
				w.vault = broken
				w.start()
				w.ask(w.request(), delivered)
				row := w.only()
				m := undoes(told("0420", "700001"), row)
				test.change(m)
				broken.err = test.hsm
				answer := w.demand(m)
				if (answer == nil) != (test.code == "") || answer != nil && codeOf(answer) != test.code {
					t.Errorf("answered %v", answer)
				}
				list := w.advices()
				if len(list) != test.advices || !strings.Contains(log(), "alarm="+test.alarm) {
					t.Errorf("recorded %+v, logged %s", list, log())
				}
				if test.advices == 1 && (list[0].ResponseCode != "30" || list[0].MaskedPAN != test.recorded || list[0].Undoes != (test.alarm == "approval_undone")) {
					t.Errorf("recorded %+v", list[0])
				}
				if after := w.only(); after != row {
					t.Errorf("%+v has become %+v", row, after)
				}
			})
		})
	}
}

// A dialect without a cutover tells of the day in DE 15 of its answers.
func TestABusinessDayBeginsByAnAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) { // it is 2000-01-01 there
		w := newWorld(t)
		var mu sync.Mutex
		var text bytes.Buffer
		w.log = slog.New(slog.NewTextHandler(writerFunc(func(p []byte) (int, error) {
			mu.Lock()
			defer mu.Unlock()
			return text.Write(p)
		}), nil))
		w.dialect = changed(t, "iso87-ascii", "  cutover: \"201\"\n", "")
		advances := 0
		w.recorder = func(r acquirer.Recorder) acquirer.Recorder { return countingRecorder{r, &advances} }
		w.start()
		for _, step := range []struct {
			code, day, date string
			advances        int
		}{
			{"00", "", "", 0}, {"05", "0101", "", 0}, {"00", "0101", "2000-01-01", 1}, {"00", "0101", "2000-01-01", 1},
			{"00", "0102", "2000-01-02", 2}, {"00", "0101", "2000-01-02", 2}, // late
			{"00", "0102", "2000-01-02", 2}, {"00", "0230", "2000-01-02", 2},
			{"00", "0130", "2000-01-02", 3}, {"00", "0130", "2000-01-02", 3}, // refused, and not tried each time
			{"05", "0103", "2000-01-02", 3}, {"00", "0103", "2000-01-03", 4},
		} {
			w.bank.answer = func(*messages.Message) (string, error) { return step.code, nil }
			w.bank.day = step.day
			if got, _ := w.ask(w.request(), delivered); codeOf(got.Answer) != step.code {
				t.Errorf("%+v: answered %v", step, got.Answer)
			}
			if w.businessDate() != step.date || advances != step.advances {
				t.Errorf("%+v: business date %q, %d cutovers", step, w.businessDate(), advances)
			}
		}
		mu.Lock()
		if got := strings.Count(text.String(), "alarm=cutover_refused"); got != 1 {
			t.Errorf("%d alarms: %s", got, text.String())
		}
		mu.Unlock()
		<-time.After(time.Minute) // and then it is tried again
		w.bank.day = "0130"
		w.ask(w.request(), delivered)
		if advances != 5 {
			t.Errorf("%d cutovers", advances)
		}
		w.stop()
	})
}

// Where the dialect has a cutover, DE 15 of an answer may be any day of settlement.
func TestABusinessDayBeginsByNoAnswerWhereThereAreCutovers(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.bank.day = "0102"
		w.ask(w.request(), delivered)
		if got := w.businessDate(); got != "" {
			t.Errorf("business date %s", got)
		}
	})
}

type countingRecorder struct {
	acquirer.Recorder
	advances *int
}

func (r countingRecorder) Advance(ctx context.Context, c journal.Cutover) (journal.Advanced, error) {
	*r.advances++
	return r.Recorder.Advance(ctx, c)
}

// A reload changes nothing of what a processor has used up.
func TestAReloadGivesNoNewBurstOfDemands(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		count := func() (n int) {
			for i := range 2100 {
				if w.demand(management("777", fmt.Sprintf("%06d", i))) != nil {
					n++
				}
			}
			return n
		}
		if got := count(); got != 2000 {
			t.Errorf("%d at once", got)
		}
		if err := w.desk.Reconfigure([]acquirer.Route{{Endpoint: "bank"}}, []*acquirer.Endpoint{acquirer.NewEndpoint("bank", "zpk-bank", w.dialect, w.bank)}); err != nil {
			t.Fatal(err)
		}
		if got := count(); got != 0 {
			t.Errorf("%d after a reload", got)
		}
	})
}
