package acquirer_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"acquirerd/acquirer"
	"acquirerd/card"
	"acquirerd/conn"
	"acquirerd/hsm"
	"acquirerd/journal"
	"acquirerd/messages"
)

// A keyring stands in for the HSM's zone keys. It keeps the contract of a KeyChanger: what is in use is taken again, what was replaced is
// refused, and an error leaves all as it is. The check value of a key is its first three bytes.
type keyring struct {
	mu       sync.Mutex
	keys     []string // of one label, the last one in use
	err      error
	changing int
	t        testing.TB
	slow     time.Duration

	unchangeable bool // the bank's key has no zone master key
}

func (k *keyring) ChangeKey(_ context.Context, label string, cryptogram []byte, checkValue string) error {
	k.mu.Lock()
	k.changing++
	if k.changing > 1 {
		k.t.Error("two changes of one key at the same time")
	}
	slow := k.slow
	k.mu.Unlock()
	<-time.After(slow)
	k.mu.Lock()
	defer k.mu.Unlock()
	k.changing--
	key := fmt.Sprintf("%s %X", label, cryptogram)
	switch at := slices.Index(k.keys, key); {
	case k.err != nil:
		return k.err
	case fmt.Sprintf("%X", cryptogram[:3]) != checkValue:
		return errors.New("check value does not agree")
	case at >= 0 && at == len(k.keys)-1:
		return nil
	case at >= 0:
		return errors.New("it was replaced before")
	}
	k.keys = append(k.keys, key)
	return nil
}

// KeyStatus is that of the bank's key: version 1 is the one that nobody has sent.
func (k *keyring) KeyStatus() []hsm.KeyStatus {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.unchangeable {
		return []hsm.KeyStatus{{Label: "zpk-pos"}}
	}
	status := hsm.KeyStatus{Label: "zpk-bank", Version: 1 + len(k.keys), KCV: "000000"}
	if len(k.keys) > 0 {
		status.KCV = k.keys[len(k.keys)-1][len("zpk-bank "):][:6]
	}
	return []hsm.KeyStatus{status}
}

func (k *keyring) inUse() string {
	k.mu.Lock()
	defer k.mu.Unlock()
	if len(k.keys) == 0 {
		return ""
	}
	return k.keys[len(k.keys)-1]
}

// demand hands a message of the processor to the switch, in a goroutine that may crash, and returns its answer; nil if there was none.
func (w *world) demand(m *messages.Message) (answer *messages.Message) {
	w.t.Helper()
	return w.demandAs(conn.Unasked{Message: m})
}

func (w *world) demandAs(msg conn.Unasked) (answer *messages.Message) {
	w.t.Helper()
	done := make(chan struct{})
	msg.Message, msg.Arrival = msg.Clone(), conn.Demanding
	if msg.Reply == nil {
		msg.Reply = func(context.Context, *messages.Message) error { return nil }
	}
	reply := msg.Reply
	msg.Reply = func(ctx context.Context, m *messages.Message) error {
		if answer != nil {
			w.t.Errorf("%s was answered twice", msg.MTI)
		}
		sent := m.Clone()
		if err := reply(ctx, m); err != nil {
			return err
		}
		if _, err := w.dialect.Encode(sent); err != nil {
			w.t.Errorf("the answer does not fit the dialect: %v", err)
		}
		answer = sent
		return nil
	}
	go func() {
		defer close(done)
		w.desk.Inbound(w.t.Context(), "bank", msg)
	}()
	<-done
	return answer
}

// told is an advice of the bank with numbers of its own.
func told(mti messages.MTI, stan string) *messages.Message {
	m := messages.New(mti)
	m.SetSensitive(messages.PAN, testPAN)
	m.Set(messages.ProcessingCode, "000000")
	m.Set(messages.Amount, "000000001000")
	m.Set(messages.TransmissionTime, "1124101112")
	m.Set(messages.STAN, stan)
	m.Set(messages.Terminal, "TERM0001")
	m.Set(messages.Currency, "840")
	return m
}

// undoes makes an advice name a transaction on record.
func undoes(m *messages.Message, row journal.Transaction) *messages.Message {
	m.Set(messages.OriginalData, string(row.MTI)+row.STAN+row.TransmissionTime+strings.Repeat("0", 22))
	return m
}

// management is a request of the link dialogue, with its code in DE 70.
func management(code, stan string) *messages.Message {
	m := messages.New(messages.NetworkManagementRequest)
	m.Set(messages.TransmissionTime, "1124101112")
	m.Set(messages.STAN, stan)
	m.Set(messages.NetworkManagement, code)
	return m
}

func cutover(monthDay, stan string) *messages.Message {
	m := management("201", stan)
	m.Set(messages.SettlementDate, monthDay)
	return m
}

const newKey = "0123456789ABCDEFFEDCBA9876543210"

func keyChange(data, stan string) *messages.Message {
	m := management("101", stan)
	m.SetSensitive(messages.AdditionalData, data)
	return m
}

func (w *world) advices() []journal.ProcessorAdvice {
	w.t.Helper()
	reader, err := journal.OpenReadOnly(w.path)
	if err != nil {
		w.t.Fatal(err)
	}
	defer func() { _ = reader.Close() }()
	list, err := reader.ProcessorAdvices(w.t.Context(), journal.AdviceFilter{})
	if err != nil {
		w.t.Fatal(err)
	}
	return list
}

func (w *world) businessDate() string {
	w.t.Helper()
	reader, err := journal.OpenReadOnly(w.path)
	if err != nil {
		w.t.Fatal(err)
	}
	defer func() { _ = reader.Close() }()
	days, err := reader.BusinessDays(w.t.Context())
	if err != nil || len(days) > 1 {
		w.t.Fatal(days, err)
	}
	if len(days) == 0 {
		return ""
	}
	return days[0].Date
}

// metric adds up the series of a metric that have these labels' values.
func (w *world) metric(name string, values ...string) (sum float64) {
	w.t.Helper()
	families, err := w.registry.Gather()
	if err != nil {
		w.t.Fatal(err)
	}
	for _, family := range families {
		for _, series := range family.GetMetric() {
			var labels []string
			for _, label := range series.GetLabel() {
				labels = append(labels, label.GetValue())
			}
			if family.GetName() == name && !slices.ContainsFunc(values, func(v string) bool { return !slices.Contains(labels, v) }) {
				sum += series.GetCounter().GetValue()
			}
		}
	}
	return sum
}

func TestWhatProcessorsDemandIsAnswered(t *testing.T) {
	malformed := func(m *messages.Message, e messages.Element) conn.Unasked {
		return conn.Unasked{Message: m, Fault: &messages.FormatError{Element: e, Rule: "has a fault"}}
	}
	without := func(m *messages.Message, list ...messages.Element) *messages.Message {
		for _, e := range list {
			m.Delete(e)
		}
		return m
	}
	with := func(m *messages.Message, e messages.Element, value string) *messages.Message {
		m.SetSensitive(e, value)
		return m
	}
	of := func(m *messages.Message) conn.Unasked { return conn.Unasked{Message: m} }
	for name, test := range map[string]struct {
		msg                conn.Unasked
		mti                messages.MTI // of the answer, "" for none
		code, fault        string
		kind, result       string
		recorded, advances bool
		changes            bool
	}{
		"a financial advice":              {msg: of(told("0220", "700001")), mti: "0230", code: "00", kind: "advice", result: "done", recorded: true},
		"an authorization advice, repeat": {msg: of(told("0121", "700001")), mti: "0130", code: "00", kind: "advice", result: "done", recorded: true},
		"a reversal advice": {msg: of(undoes(told("0420", "700001"), journal.Transaction{MTI: "0100", STAN: "999999", TransmissionTime: "1124101112"})),
			mti: "0430", code: "00", kind: "advice", result: "done", recorded: true},
		"an administrative advice":            {msg: of(without(told("0620", "700001"), messages.PAN)), mti: "0630", code: "00", kind: "advice", result: "done", recorded: true},
		"a network advice without a meaning":  {msg: of(func() *messages.Message { m := management("777", "700001"); m.MTI = "0820"; return m }()), mti: "0830", code: "00", kind: "advice", result: "done", recorded: true},
		"a card by track 2":                   {msg: of(with(without(told("0220", "700001"), messages.PAN), messages.Track2, testPAN+"=29122011234567890")), mti: "0230", code: "00", kind: "advice", result: "done", recorded: true},
		"a card that is none":                 {msg: of(with(told("0220", "700001"), messages.PAN, "4111")), mti: "0230", code: "30", fault: "002", kind: "advice", result: "refused"},
		"two cards":                           {msg: of(with(told("0220", "700001"), messages.Track2, "5555555555554444=29122011234567890")), mti: "0230", code: "30", fault: "035", kind: "advice", result: "refused"},
		"an authorization request":            {msg: of(told("0100", "700001")), mti: "0110", code: "12", kind: "request", result: "refused"},
		"a financial request":                 {msg: of(told("0200", "700001")), mti: "0210", code: "12", kind: "request", result: "refused"},
		"a request of no known type":          {msg: of(told("0300", "700001")), mti: "0310", code: "12", kind: "request", result: "refused"},
		"a network request without a meaning": {msg: of(management("777", "700001")), mti: "0810", code: "12", kind: "request", result: "refused"},
		"a notification":                      {msg: of(told("0140", "700001")), kind: "request", result: "refused"},
		"a request without a STAN":            {msg: of(without(told("0300", "700001"), messages.STAN)), kind: "request", result: "refused"},
		"an advice without a STAN":            {msg: of(without(told("0620", "700001"), messages.STAN)), kind: "advice", result: "refused"},
		"an advice without a time":            {msg: of(without(told("0620", "700001"), messages.TransmissionTime)), kind: "advice", result: "refused"},
		"an advice that lacks an element":     {msg: of(without(told("0220", "700001"), messages.Amount)), mti: "0230", code: "30", fault: "004", kind: "malformed", result: "refused"},
		"a reversal without DE 90":            {msg: of(told("0420", "700001")), mti: "0430", code: "30", fault: "090", kind: "malformed", result: "refused", recorded: true},
		"an advice that cannot be read":       {msg: malformed(told("0220", "700001"), messages.ChipData), mti: "0230", code: "30", fault: "055", kind: "malformed", result: "refused"},
		"one that ends before its STAN":       {msg: malformed(without(told("0220", "700001"), messages.STAN), messages.STAN), kind: "malformed", result: "refused"},
		"a cutover that names its day":        {msg: of(cutover("0102", "700001")), mti: "0810", code: "00", kind: "cutover", result: "done", advances: true},
		"a cutover by an advice":              {msg: of(func() *messages.Message { m := cutover("0102", "700001"); m.MTI = "0820"; return m }()), mti: "0830", code: "00", kind: "cutover", result: "done", advances: true},
		"a cutover that is far ahead":         {msg: of(cutover("0112", "700001")), mti: "0810", code: "30", fault: "015", kind: "cutover", result: "refused"},
		"a cutover to a day that is none":     {msg: of(cutover("0230", "700001")), mti: "0810", code: "30", fault: "015", kind: "cutover", result: "refused"},
		"a key change":                        {msg: of(keyChange(newKey+"012345", "700001")), mti: "0810", code: "00", kind: "key_change", result: "done", changes: true},
		"a key change, its check value wrong": {msg: of(keyChange(newKey+"543210", "700001")), mti: "0810", code: "96", kind: "key_change", result: "failed"},
		"a key change without a key":          {msg: of(management("101", "700001")), mti: "0810", code: "30", fault: "048", kind: "key_change", result: "refused"},
		"a key change that is too short":      {msg: of(keyChange(newKey+"0123", "700001")), mti: "0810", code: "30", fault: "048", kind: "key_change", result: "refused"},
		"a key change that is no hexadecimal": {msg: of(keyChange(newKey+"01234G", "700001")), mti: "0810", code: "30", fault: "048", kind: "key_change", result: "refused"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				keys := &keyring{t: t}
				w.keys = keys
				w.start()
				answer := w.demandAs(test.msg)
				if test.mti == "" {
					if answer != nil {
						t.Errorf("answered %v", answer)
					}
				} else if answer == nil || answer.MTI != test.mti || answer.Get(messages.ResponseCode) != test.code || answer.Get(messages.AdditionalResponse) != test.fault ||
					answer.Get(messages.STAN) != "700001" || answer.Get(messages.TransmissionTime) != "1124101112" {
					t.Errorf("answered %v", answer)
				}
				if got := w.metric("acquirerd_demands_total", "bank", test.kind, test.result); got != 1 || w.metric("acquirerd_demands_total") != 1 {
					t.Errorf("counted %v", got)
				}
				if recorded := len(w.advices()) == 1; recorded != test.recorded {
					t.Errorf("recorded %+v", w.advices())
				}
				if date := w.businessDate(); (date == "2000-01-02") != test.advances || (date == "") == test.advances {
					t.Errorf("business date %q", date)
				}
				if key := keys.inUse(); (key == "zpk-bank "+newKey) != test.changes || (key == "") == test.changes {
					t.Errorf("key %q", key)
				}
				if len(w.bank.sent) != 0 {
					t.Errorf("sent %v", w.bank.sent)
				}
				w.stop()
			})
		})
	}
}

// A steppedRecorder fails at the steps of demands, and fails the test if the processor was answered before the record.
type steppedRecorder struct {
	acquirer.Recorder
	*fault
	durable func()
}

const (
	stepKeep = steps + iota
	stepAdvance
	stepChangeKey
	stepReply
)

func (r steppedRecorder) Keep(ctx context.Context, a journal.Advising) (journal.Advised, error) {
	if r.strike(stepKeep, func() { _, _ = r.Recorder.Keep(ctx, a) }) {
		return journal.Advised{}, fmt.Errorf("%w: %w", journal.ErrFailed, errInjected)
	}
	advised, err := r.Recorder.Keep(ctx, a)
	r.durable()
	return advised, err
}

func (r steppedRecorder) Advance(ctx context.Context, c journal.Cutover) (journal.Advanced, error) {
	if r.strike(stepAdvance, func() { _, _ = r.Recorder.Advance(ctx, c) }) {
		return journal.Advanced{}, fmt.Errorf("%w: %w", journal.ErrFailed, errInjected)
	}
	advanced, err := r.Recorder.Advance(ctx, c)
	r.durable()
	return advanced, err
}

type steppedKeys struct {
	acquirer.KeyChanger
	*fault
	durable func()
}

func (k steppedKeys) ChangeKey(ctx context.Context, label string, cryptogram []byte, checkValue string) error {
	if k.strike(stepChangeKey, func() { _ = k.KeyChanger.ChangeKey(ctx, label, cryptogram, checkValue) }) {
		return errInjected
	}
	err := k.KeyChanger.ChangeKey(ctx, label, cryptogram, checkValue)
	k.durable()
	return err
}

// The failure table of demands: each step fails, or fails although it was done, and the process goes on, or crashes and reopens. The
// processor repeats until it is accepted. Then what it said is on record once, and it was not accepted before.
func TestFailureTableOfDemands(t *testing.T) {
	for _, test := range []struct {
		name  string
		first *messages.Message
		steps map[string]int
	}{
		{"a reversal that undoes an approval", nil, map[string]int{"protect": stepProtect, "keep": stepKeep, "reply": stepReply}},
		{"an advice", told("0220", "700001"), map[string]int{"protect": stepProtect, "keep": stepKeep, "reply": stepReply}},
		{"a cutover", cutover("0102", "700001"), map[string]int{"advance": stepAdvance, "reply": stepReply}},
		{"a cutover that names no day", management("201", "700001"), map[string]int{"advance": stepAdvance, "reply": stepReply}},
		{"a key change", keyChange(newKey+"012345", "700001"), map[string]int{"change key": stepChangeKey, "reply": stepReply}},
	} {
		for step, number := range test.steps {
			for _, done := range []bool{false, true} {
				for _, crashes := range []bool{false, true} {
					t.Run(fmt.Sprintf("%s: %s fails, done %v, crashes %v", test.name, step, done, crashes), func(t *testing.T) {
						synctest.Test(t, func(t *testing.T) {
							demandOver(t, test.first, &fault{step: number, done: done, crashes: crashes})
						})
					})
				}
			}
		}
	}
}

func demandOver(t *testing.T, first *messages.Message, f *fault) {
	w := newWorld(t)
	w.forward.Poll = time.Minute
	keys, durable := &keyring{t: t}, false
	stepped := func(r acquirer.Recorder) acquirer.Recorder {
		return steppedRecorder{r, f, func() { durable = true }}
	}
	w.recorder, w.vault, w.keys = stepped, faultyVault{&vault{}, f}, steppedKeys{keys, f, func() { durable = true }}
	f.waits.Store(true)
	w.start()
	if w.demand(cutover("0101", "700000")) == nil {
		t.Fatal("the day before was not begun")
	}
	if first != nil && first.MTI.Class() == messages.Network && !first.Has(messages.SettlementDate) {
		<-time.After(12 * time.Hour) // sooner, one that names no day would be the repeat of the last
	}
	durable = false
	undoing := first == nil
	if undoing {
		w.ask(w.request(), delivered)
		first = undoes(told("0420", "700001"), w.only())
	}
	f.waits.Store(false)

	accepted := false
	for try := 0; !accepted && try < 6; try++ {
		message := first.Clone()
		if try > 0 && message.MTI.Class() != messages.Network {
			message.MTI = message.MTI.Repeat()
		}
		answer := w.demandAs(conn.Unasked{Message: message, Reply: func(_ context.Context, m *messages.Message) error {
			if m.Get(messages.ResponseCode) == "00" && !durable {
				t.Error("accepted before it was durable")
			}
			arrives := false
			if f.strike(stepReply, func() { arrives = true }) && !arrives {
				return errInjected
			}
			return nil
		}})
		accepted = answer != nil && answer.Get(messages.ResponseCode) == "00"
		if answer == nil { // the journal has failed, or the process crashed: it starts again
			w.stop()
			w.recorder, w.vault, w.keys = stepped, faultyVault{&vault{}, f}, steppedKeys{keys, f, func() { durable = true }}
			w.start()
		}
		<-time.After(10 * time.Second)
	}
	if !accepted {
		t.Error("never accepted")
	}
	if !f.struck.Load() {
		t.Error("the fault did not strike")
	}
	if w.demand(first) == nil { // and once more
		t.Error("a repeat was not answered")
	}
	advices, date, key := 0, "2000-01-01", ""
	switch {
	case first.MTI.IsAdvice():
		advices = 1
	case first.Get(messages.NetworkManagement) == "201":
		date = "2000-01-02"
	default:
		key = "zpk-bank " + newKey
	}
	list := w.advices()
	if len(list) != advices || advices == 1 && list[0].Undoes != undoing {
		t.Errorf("advices %+v", list)
	}
	if got := w.businessDate(); got != date {
		t.Errorf("business date %s, want %s", got, date)
	}
	if got := keys.inUse(); got != key {
		t.Errorf("key %q, want %q", got, key)
	}
	if undoing {
		if alarms := w.metric("acquirerd_undone_approvals_total", "bank"); alarms < 1 {
			t.Error("nobody was alarmed since the start")
		}
		w.rest()
		if row := w.only(); row.Outcome != journal.Approved || row.Owed != "" || len(w.bank.sent) != 0 {
			t.Errorf("something was done about it: %+v, sent %v", row, w.bank.sent)
		}
	}
	w.stop()
}

// inLoggedWorld is a world whose log can be read.
func inLoggedWorld(t *testing.T, test func(t *testing.T, w *world, log func() string)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		var mu sync.Mutex
		var text bytes.Buffer
		w.log = slog.New(slog.NewTextHandler(writerFunc(func(p []byte) (int, error) {
			mu.Lock()
			defer mu.Unlock()
			return text.Write(p)
		}), &slog.HandlerOptions{Level: slog.LevelDebug}))
		w.start()
		test(t, w, func() string {
			mu.Lock()
			defer mu.Unlock()
			return text.String()
		})
		w.stop()
	})
}

type writerFunc func(p []byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

// Nothing is done about it in silence, and nothing in fact: the upstream was told that it is approved.
func TestAReversalOfTheProcessorOfAnApprovalIsForAPerson(t *testing.T) {
	inLoggedWorld(t, func(t *testing.T, w *world, log func() string) {
		req := named(w.request())
		w.ask(req, delivered)
		row := w.only()
		if answer := w.demand(undoes(told("0420", "700001"), row)); codeOf(answer) != "00" {
			t.Errorf("answered %v", answer)
		}
		if got := w.metric("acquirerd_undone_approvals_total", "bank"); got != 1 {
			t.Errorf("%v alarms", got)
		}
		if text := log(); strings.Count(text, "alarm=approval_undone") != 1 || !strings.Contains(text, `level=ERROR msg="demand of processor needs a person"`) || !strings.Contains(text, fmt.Sprintf("transaction=%d", row.ID)) {
			t.Errorf("logged %s", text)
		}
		w.rest()
		if after := w.only(); after != row || len(w.bank.sent) != 0 {
			t.Errorf("%+v has become %+v, sent %v", row, after, w.bank.sent)
		}
		if again, _ := w.ask(again(req), delivered); codeOf(again.Answer) != "00" {
			t.Errorf("the upstream's repeat is answered %v", again.Answer)
		}
		// The upstream reverses it after all: that goes to the processor as ever, and a later word of the processor is no alarm.
		if answer := w.reverse(reversalOf(req, "0420")); codeOf(answer) != "00" {
			t.Errorf("the upstream's reversal is answered %v", answer)
		}
		w.rest()
		if answer := w.demand(undoes(told("0420", "700002"), row)); codeOf(answer) != "00" || w.metric("acquirerd_undone_approvals_total") != 1 {
			t.Errorf("answered %v, %v alarms", answer, w.metric("acquirerd_undone_approvals_total"))
		}
		// Of what nobody knows here, a person is told, too.
		row.STAN = "999999"
		w.demand(undoes(told("0420", "700003"), row))
		if !strings.Contains(log(), "alarm=unknown_undone") || w.metric("acquirerd_undone_approvals_total") != 1 {
			t.Errorf("logged %s", log())
		}
	})
}

func TestAnAdviceIsTiedToTheTransactionThatItNames(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.ask(w.request(), delivered)
		row := w.only()
		own := told("0420", row.STAN) // of a dialect whose reversals bear the numbers of their originals
		own.Set(messages.TransmissionTime, row.TransmissionTime)
		own.Set(messages.OriginalData, "")
		own.MTI = "0422" // of no type in the dialect, which would want DE 90
		other := undoes(told("0420", "700002"), row)
		other.SetSensitive(messages.PAN, "5555555555554444")
		for _, m := range []*messages.Message{own, undoes(told("0220", "700001"), row), other, told("0220", "700003")} {
			if w.demand(m) == nil {
				t.Fatalf("%v was not answered", m)
			}
		}
		var got []string
		for _, a := range w.advices() {
			got = append(got, fmt.Sprintf("%s %s: %d %v", a.MTI, a.Original.Get(messages.STAN), a.TransactionID, a.Undoes))
		}
		want := []string{"0220 700003: 0 false", "0420 700002: 0 false", "0220 700001: 1 false", "0422 " + row.STAN + ": 1 true"}
		if !slices.Equal(got, want) {
			t.Errorf("got %q, want %q", got, want)
		}
	})
}

func TestWhatIsSensitiveInAnAdviceIsNeitherLoggedNorKept(t *testing.T) {
	inLoggedWorld(t, func(t *testing.T, w *world, log func() string) {
		w.keys = &keyring{t: t}
		w.stop()
		w.start()
		m := told("0220", "700001")
		m.SetSensitive(messages.Track2, testPAN+"=29122011234567890")
		m.SetSensitive(messages.Expiry, "2912")
		m.SetSensitive(messages.AdditionalData, "CVV 737")
		m.Set(messages.MerchantName, "SHOP "+testPAN)
		handed := m.Clone()
		w.desk.Inbound(t.Context(), "bank", conn.Unasked{Message: handed, Arrival: conn.Demanding})
		if handed.Has(messages.PAN) || handed.Has(messages.Track2) {
			t.Error("the message still holds the card")
		}
		w.demand(keyChange(newKey+"012345", "700002"))
		w.demand(keyChange(newKey+"01234", "700003"))
		list := w.advices()
		if len(list) != 1 || list[0].MaskedPAN != "411111******1111" || list[0].Withheld != "expiry track2 additional_data" ||
			!strings.HasPrefix(list[0].Original.Get(messages.MerchantName), "SHOP 411111****") {
			t.Fatalf("recorded %+v", list)
		}
		pan, err := (&vault{}).OpenPAN(t.Context(), list[0].PAN)
		if err != nil || pan.Reveal() != testPAN {
			t.Errorf("the PAN cannot be opened: %v", err)
		}
		for _, secret := range []string{testPAN, "737", "=2912", newKey, strings.ToLower(newKey)} {
			if strings.Contains(log(), secret) || strings.Contains(fmt.Sprintf("%+v", list), secret) {
				t.Errorf("%s was written", secret)
			}
		}
	})
}

// With the HSM down nothing can be kept: the processor is not answered, and sends it again.
func TestAdvicesWaitForTheHSM(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		broken := &vault{err: hsm.ErrUnavailable}
		w.stop()
		w.vault = broken
		w.start()
		if answer := w.demand(told("0220", "700001")); answer != nil || len(w.advices()) != 0 {
			t.Errorf("answered %v, recorded %v", answer, w.advices())
		}
		without := told("0620", "700002") // it has no card
		without.Delete(messages.PAN)
		if answer := w.demand(without); codeOf(answer) != "00" {
			t.Errorf("answered %v", answer)
		}
		broken.err = nil
		if answer := w.demand(told("0221", "700001")); codeOf(answer) != "00" || len(w.advices()) != 2 {
			t.Errorf("answered %v, recorded %v", answer, w.advices())
		}
	})
}

// A hangingVault takes no card before it is let go.
type hangingVault struct {
	vault
	hang chan struct{}
}

func (v *hangingVault) Protect(ctx context.Context, c hsm.Card) (hsm.Protected, error) {
	select {
	case <-v.hang:
		return v.vault.Protect(ctx, c)
	case <-ctx.Done():
		return hsm.Protected{}, ctx.Err()
	}
}

func (v *hangingVault) OpenPAN(ctx context.Context, sealed card.SealedPAN) (card.PAN, error) {
	return v.vault.OpenPAN(ctx, sealed)
}

func TestDemandsHaveALimit(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.bank.answer = func(*messages.Message) (string, error) { return "00", conn.ErrTimeout }
		w.ask(w.request(), delivered)
		w.stop()
		hanging := &hangingVault{hang: make(chan struct{})}
		w.vault = hanging
		w.start()
		var waiting sync.WaitGroup
		answered := make(chan bool, 20)
		for i := range 8 {
			waiting.Go(func() { answered <- w.demand(told("0220", fmt.Sprintf("7000%02d", i))) != nil })
		}
		synctest.Wait()
		began := time.Now()
		if answer := w.demand(told("0220", "700099")); answer != nil || time.Since(began) != 0 {
			t.Errorf("over the limit: answered %v after %v", answer, time.Since(began))
		}
		w.desk.Inbound(t.Context(), "bank", lateApproval(t, w)) // is not kept waiting by them
		if time.Since(began) != 0 {
			t.Errorf("a late answer waited for %v", time.Since(began))
		}
		waiting.Wait()
		if took := time.Since(began); took != 10*time.Second || len(w.advices()) != 0 {
			t.Errorf("took %v, recorded %v", took, w.advices())
		}
		for range 8 {
			if <-answered {
				t.Error("answered without a record")
			}
		}
		if busy, failed := w.metric("acquirerd_demands_total", "busy"), w.metric("acquirerd_demands_total", "failed"); busy != 1 || failed != 8 {
			t.Errorf("%v busy, %v failed", busy, failed)
		}
		close(hanging.hang)
		if answer := w.demand(told("0221", "700099")); codeOf(answer) != "00" {
			t.Errorf("with room: answered %v", answer)
		}
	})
}

// A processor that goes mad does not fill the record faster than so many a second.
func TestDemandsHaveARate(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		count := func(of, from int) (n int) {
			for i := range of {
				m := management("777", fmt.Sprintf("%06d", from+i))
				if w.demand(m) != nil {
					n++
				}
			}
			return n
		}
		if got := count(2500, 0); got != 2000 {
			t.Errorf("%d at once", got)
		}
		<-time.After(time.Second)
		if got := count(500, 3000); got != 200 {
			t.Errorf("%d a second later", got)
		}
	})
}

func TestCutoversGoForward(t *testing.T) {
	inLoggedWorld(t, func(t *testing.T, w *world, log func() string) { // it is 2000-01-01 there
		w.ask(w.request(), delivered)
		for i, step := range []struct {
			monthDay, code, date, result string
		}{
			{"0102", "00", "2000-01-02", "done"}, {"0102", "00", "2000-01-02", "again"}, {"0101", "30", "2000-01-02", "refused"}, {"0103", "00", "2000-01-03", "done"},
			{"0112", "30", "2000-01-03", "refused"}, {"0102", "30", "2000-01-03", "refused"}, {"", "00", "2000-01-03", "again"},
		} {
			before := w.metric("acquirerd_demands_total", "cutover", step.result)
			answer := w.demand(cutover(step.monthDay, fmt.Sprintf("70000%d", i)))
			if codeOf(answer) != step.code || w.businessDate() != step.date || w.metric("acquirerd_demands_total", "cutover", step.result) != before+1 {
				t.Errorf("%q: answered %v, business date %s, want %+v", step.monthDay, answer, w.businessDate(), step)
			}
		}
		if got := strings.Count(log(), "alarm=cutover_refused"); got != 1 || w.metric("acquirerd_demand_alarms_total", "bank", "cutover_refused") != 3 {
			t.Errorf("%d alarms: %s", got, log())
		}
		w.ask(w.request(), delivered)
		rows, err := w.journal.Transactions(t.Context(), journal.Filter{})
		if err != nil || len(rows) != 2 || rows[0].BusinessDate != "2000-01-03" || rows[1].BusinessDate != "" {
			t.Errorf("%+v, %v", rows, err)
		}
	})
}

func TestKeyChangesAreOneAtATime(t *testing.T) {
	inLoggedWorld(t, func(t *testing.T, w *world, log func() string) {
		keys := &keyring{t: t, slow: time.Second}
		w.stop()
		w.keys = keys
		w.start()
		codes := make([]string, 4)
		var waiting sync.WaitGroup
		for i := range codes {
			waiting.Go(func() { codes[i] = codeOf(w.demand(keyChange(newKey+"012345", fmt.Sprintf("70000%d", i)))) })
		}
		waiting.Wait()
		if !slices.Equal(codes, []string{"00", "00", "00", "00"}) || len(keys.keys) != 1 {
			t.Errorf("answered %v, keys %v", codes, keys.keys)
		}
		// An HSM that is slower than the processor waits: the old key stays, and the processor hears so.
		keys.mu.Lock()
		keys.err, keys.slow = errInjected, 0
		keys.mu.Unlock()
		other := strings.Repeat("FEDCBA9876543210", 2)
		if answer := w.demand(keyChange(other+"FEDCBA", "700010")); codeOf(answer) != "96" || keys.inUse() != "zpk-bank "+newKey {
			t.Errorf("answered %v, key %q", answer, keys.inUse())
		}
		if !strings.Contains(log(), "alarm=key_not_changed") {
			t.Errorf("logged %s", log())
		}
		keys.mu.Lock()
		keys.err = nil
		keys.mu.Unlock()
		if answer := w.demand(keyChange(other+"FEDCBA", "700010")); codeOf(answer) != "00" || keys.inUse() != "zpk-bank "+other {
			t.Errorf("answered %v, key %q", answer, keys.inUse())
		}
	})
}

func TestWithoutAKeyChangerKeyChangesAreRefused(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		if answer := w.demand(keyChange(newKey+"012345", "700001")); codeOf(answer) != "12" {
			t.Errorf("answered %v", answer)
		}
	})
}

func TestAKeyThatNoMessageChangesIsNoAlarm(t *testing.T) {
	inLoggedWorld(t, func(t *testing.T, w *world, log func() string) {
		w.stop()
		w.keys = &keyring{t: t, err: fmt.Errorf("changing: %w", hsm.ErrFixedKey)}
		w.start()
		if answer := w.demand(keyChange(newKey+"012345", "700001")); codeOf(answer) != "12" || strings.Contains(log(), "alarm=") {
			t.Errorf("answered %v, logged %s", answer, log())
		}
	})
}

// Without a link to answer on, what was said is on record none the less.
func TestADemandThatCannotBeAnsweredIsRecorded(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.desk.Inbound(t.Context(), "bank", conn.Unasked{Message: told("0220", "700001"), Arrival: conn.Demanding})
		if len(w.advices()) != 1 {
			t.Errorf("recorded %v", w.advices())
		}
		if answer := w.demand(told("0221", "700001")); codeOf(answer) != "00" || len(w.advices()) != 1 {
			t.Errorf("answered %v, recorded %v", answer, w.advices())
		}
		w.desk.Inbound(t.Context(), "nobody", conn.Unasked{Message: told("0220", "700002"), Arrival: conn.Demanding})
		if len(w.advices()) != 1 {
			t.Errorf("of no endpoint: recorded %v", w.advices())
		}
	})
}
