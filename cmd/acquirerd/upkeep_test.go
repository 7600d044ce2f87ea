package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"acquirerd/messages"
)

// What is parked is released beside a running daemon, which sends it at once, and without one, for the next start.
func TestWhatIsParkedIsReleased(t *testing.T) {
	var code atomic.Value // the processor's answer to reversals
	code.Store("12")
	site := newSite(t, newProcessor(t, func(request *messages.Message) *messages.Message {
		if request.MTI.Class() == messages.Reversal {
			return messages.NewAnswer(request, code.Load().(string))
		}
		return nil // no answer: the outcome is unknown
	}))
	site.change("backoff_min: 10ms", "reply_timeout: 500ms, write_timeout: 200ms, backoff_min: 10ms")
	site.create()
	path := site.config()
	daemon := site.start()
	daemon.inService(1)
	for _, stan := range []string{"000001", "000002"} {
		if got := daemon.dial().ask(authorization(stan, "")).Get(messages.ResponseCode); got != "91" {
			t.Fatalf("got %q, want 91", got)
		}
		daemon.log.await(t, "reversal parked: it needs a person", func(line map[string]any) bool { return line["stan"] == stan })
	}
	code.Store("00")
	if got := command(t, "journal", "release", "1", "--config", path); got != (result{0, "released 1\n", ""}) {
		t.Errorf("got %+v", got)
	}
	daemon.log.await(t, "reversal", func(line map[string]any) bool {
		return line["owed"] == 1. && line["result"] == "acknowledged" && line["mti"] == "0421"
	})
	for _, again := range []string{"1", "4711"} {
		if got := command(t, "journal", "release", again, "--config", path); got.code != 1 || !strings.Contains(got.err, "not parked") {
			t.Errorf("%s again: got %+v", again, got)
		}
	}
	if got := command(t, "journal", "park", "1", "--config", path); got.code != 1 || !strings.Contains(got.err, "not owed, or an attempt is under way") {
		t.Errorf("parking what is done: got %+v", got)
	}
	if got := command(t, "journal", "prune", "--keep", "48h", "--config", path, "--output", "json"); got.code != 0 || !strings.Contains(got.out, `"pruned": 0`) {
		t.Errorf("got %+v", got)
	}
	other := filepath.Join(t.TempDir(), "other.yaml")
	text, err := os.ReadFile(path)
	if err != nil || os.WriteFile(other, []byte(strings.Replace(string(text), "station: acq01", "station: acq02", 1)), 0o600) != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{{"release", "2"}, {"park", "2"}, {"prune", "--keep", "48h"}} {
		got := command(t, append(append([]string{"journal"}, args...), "--config", other)...)
		if got.code != 1 || got.out != "" || !strings.Contains(got.err, `is station "acq01", not "acq02"`) {
			t.Errorf("%v of another station: got %+v", args, got)
		}
	}
	if got := command(t, "journal", "prune", "--keep", "48h", "--vacuum", "--config", path); got.code != 1 || !strings.Contains(got.err, "the daemon runs") {
		t.Errorf("got %+v", got)
	}
	if info, err := os.Stat(site.journal + ".sock"); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("socket: %v, %v", info, err)
	}
	daemon.stop()
	if code := daemon.exit(); code != 0 {
		t.Errorf("exit %d", code)
	}

	// Without the daemon.
	if got := command(t, "journal", "release", "4711", "2", "--config", path); got.code != 1 || got.out != "released 2\n" || !strings.Contains(got.err, "releasing 4711: not parked") {
		t.Errorf("one that is not there, and one that is: got %+v", got)
	}
	if got := command(t, "journal", "park", "2", "--config", path); got.code != 0 {
		t.Errorf("got %+v", got)
	}
	if got := command(t, "journal", "release", "--all", "--config", path, "--output", "json"); got.code != 0 || !strings.Contains(got.out, `"released"`) {
		t.Errorf("got %+v", got)
	}
	if got := command(t, "journal", "park", "2", "--config", path); got != (result{0, "parked 2\n", ""}) {
		t.Errorf("got %+v", got)
	}
	if got := command(t, "journal", "release", "2", "--config", path); got != (result{0, "released 2\n", ""}) {
		t.Errorf("got %+v", got)
	}
	if got := command(t, "journal", "prune", "--keep", "48h", "--vacuum", "--config", path); got.code != 0 || !strings.HasPrefix(got.out, "pruned 0 transactions") {
		t.Errorf("got %+v", got)
	}
	daemon = site.start()
	daemon.log.await(t, "reversal", func(line map[string]any) bool { return line["owed"] == 2. && line["result"] == "acknowledged" })
	daemon.stop()
	if code := daemon.exit(); code != 0 {
		t.Errorf("exit %d", code)
	}
	site.shows(t, path)
}

// shows reads what the test before has left: two transactions, released and reversed.
func (*site) shows(t *testing.T, path string) {
	t.Helper()
	got := command(t, "journal", "show", "2", "--config", path)
	for _, want := range []string{"outcome             unknown", "411111******1111", "released", "attempt_2", "acknowledged", "parked"} {
		if got.code != 0 || !strings.Contains(got.out, want) {
			t.Errorf("show has no %q: %+v", want, got)
		}
	}
	if got := command(t, "journal", "show", "4711", "--config", path); got.code != 1 || !strings.Contains(got.err, "there is no such transaction") {
		t.Errorf("got %+v", got)
	}
	file := filepath.Join(t.TempDir(), "day.jsonl")
	since := time.Now().Add(-time.Hour).UTC().Format(time.RFC3339)
	if got := command(t, "journal", "export", "--since", since, "--file", file, "--config", path); got != (result{0, "", ""}) {
		t.Errorf("got %+v", got)
	}
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSpace(string(text)), "\n")
	audited := slices.IndexFunc(lines, func(line string) bool { return strings.HasPrefix(line, `{"audit":{"number":1,`) })
	if audited != 2 || !strings.Contains(lines[audited], `"what":"probe"`) {
		t.Fatalf("audit rows from line %d on: %s", audited, text)
	}
	lines = lines[:audited]
	for _, line := range lines {
		var dossier struct {
			Outcome string           `json:"outcome"`
			Owed    string           `json:"owed"`
			Debts   []map[string]any `json:"debts"`
			History []map[string]any `json:"history"`
		}
		if err := json.Unmarshal([]byte(line), &dossier); err != nil || dossier.Outcome != "unknown" || dossier.Owed != "acknowledged" ||
			len(dossier.Debts) != 1 || len(dossier.History) < 5 {
			t.Errorf("got %s, %v", line, err)
		}
	}
	if len(lines) != 2 || strings.Contains(string(text), testPAN) {
		t.Errorf("%d lines: %s", len(lines), text)
	}
	if got := command(t, "journal", "export", "--file", file, "--config", path); got.code != 1 || !strings.Contains(got.err, "file exists") {
		t.Errorf("over a file: got %+v", got)
	}
	if got := command(t, "journal", "export", "--until", since, "--config", path); got != (result{0, "", ""}) {
		t.Errorf("before: got %+v", got)
	}
}

// What a processor says of its own accord is answered, and an operator finds it: with its transaction, and among what needs a person.
func TestWhatTheProcessorSaysIsShown(t *testing.T) {
	var mu sync.Mutex
	var original string // DE 90 of the first request
	accepted := make(chan *messages.Message, 10)
	today := time.Now().UTC()
	site := newSite(t, newProcessor(t, func(request *messages.Message) *messages.Message {
		mu.Lock()
		defer mu.Unlock()
		switch {
		case request.MTI == "0430" && request.Get(messages.STAN) == "700002":
			accepted <- request.Clone()
			return nil
		case request.MTI.Class() == messages.Reversal:
			return messages.NewAnswer(request, "00")
		}
		switch request.Get(messages.Amount) {
		case "000000000002": // instead of an answer, the day ends
			m := management("201", today.Format("0102150405"), "700001")
			m.Set(messages.SettlementDate, today.Format("0102"))
			return m
		case "000000000003": // and the first one is undone
			m := request.Clone()
			m.MTI = "0420"
			m.Set(messages.STAN, "700002")
			m.Set(messages.OriginalData, original)
			return m
		}
		original = "0100" + request.Get(messages.STAN) + request.Get(messages.TransmissionTime) + strings.Repeat("0", 22)
		return messages.NewAnswer(request, "00")
	}))
	site.change("backoff_min: 10ms", "reply_timeout: 500ms, write_timeout: 200ms, backoff_min: 10ms")
	site.create()
	path := site.config()
	daemon := site.start()
	daemon.inService(1)
	for i, want := range []string{"00", "91", "91"} {
		m := authorization(fmt.Sprintf("00000%d", i+1), "")
		m.Set(messages.Amount, fmt.Sprintf("00000000000%d", i+1))
		if got := daemon.dial().ask(m).Get(messages.ResponseCode); got != want {
			t.Fatalf("%d: got %q, want %q", i+1, got, want)
		}
	}
	if answer := <-accepted; answer.Get(messages.ResponseCode) != "00" || answer.Get(messages.TransmissionTime) == "" {
		t.Errorf("the processor was answered %v", answer)
	}
	daemon.log.await(t, "demand of processor needs a person", func(line map[string]any) bool {
		return line["alarm"] == "approval_undone" && line["transaction"] == 1.
	})

	date := today.Format(time.DateOnly)
	got := command(t, "journal", "advices", "--undoing", "--config", path, "--output", "json")
	var advices []struct {
		ID           int    `json:"id"`
		MTI          string `json:"mti"`
		Transaction  int    `json:"transaction_id"`
		Undoes       bool   `json:"undoes_approval"`
		BusinessDate string `json:"business_date"`
	}
	if err := json.Unmarshal([]byte(got.out), &advices); err != nil || len(advices) != 1 || advices[0].MTI != "0420" || advices[0].Transaction != 1 ||
		!advices[0].Undoes || advices[0].BusinessDate != date {
		t.Errorf("got %+v, %v", got, err)
	}
	if got := command(t, "journal", "advices", "--endpoint", "nobody", "--config", path, "--output", "json"); got.out != "[]\n" {
		t.Errorf("of another endpoint: %+v", got)
	}
	for _, args := range [][]string{{"advices"}, {"show", "1"}} {
		got := command(t, append(append([]string{"journal"}, args...), "--config", path)...)
		for _, want := range []string{"UNDOES", "0420", "700002", "411111******1111", date} {
			if got.code != 0 || !strings.Contains(got.out, want) || strings.Contains(got.out, testPAN) {
				t.Errorf("%v has no %q: %+v", args, want, got)
			}
		}
	}
	if got := command(t, "journal", "show", "2", "--config", path); got.code != 0 || strings.Contains(got.out, "UNDOES") {
		t.Errorf("of another transaction: %+v", got)
	}
	var listed []struct {
		ID           int    `json:"id"`
		BusinessDate string `json:"business_date"`
	}
	got = command(t, "journal", "list", "--config", path, "--output", "json")
	if err := json.Unmarshal([]byte(got.out), &listed); err != nil || len(listed) != 3 || listed[0].BusinessDate != date || listed[2].BusinessDate != "" {
		t.Errorf("got %+v, %v", got, err)
	}
	if got := command(t, "journal", "list", "--config", path); !strings.Contains(got.out, "BUSINESS_DATE") || !strings.Contains(got.out, date+"\n") {
		t.Errorf("got %+v", got)
	}
	// The business date is shown, and mended, beside the daemon and without it.
	date, earlier := today.Format(time.DateOnly), today.AddDate(0, 0, -1).Format(time.DateOnly)
	dateCommand := func(args ...string) result {
		return command(t, append(append([]string{"journal", "business-date"}, args...), "--config", path)...)
	}
	if got := dateCommand("processor-a"); got.code != 0 || !strings.Contains(got.out, date) {
		t.Errorf("got %+v", got)
	}
	if got := dateCommand("processor-a", earlier); got != (result{0, "business date of processor-a is " + earlier + ", was " + date + "\n", ""}) {
		t.Errorf("got %+v", got)
	}
	if line := daemon.log.await(t, "changed by an operator", func(line map[string]any) bool { return line["command"] == "business-date" }); line["to"] != earlier {
		t.Errorf("logged %v", line)
	}
	if got := dateCommand("processor-a", today.AddDate(0, 0, 60).Format(time.DateOnly)); got.code != 1 || !strings.Contains(got.err, "more than 31 days from today") {
		t.Errorf("got %+v", got)
	}
	for _, args := range [][]string{{"nobody"}, {"nobody", date}} {
		if got := dateCommand(args...); got.code == 0 || got.out != "" || !strings.Contains(got.err, `"nobody"`) {
			t.Errorf("got %+v", got)
		}
	}
	daemon.stop()
	if code := daemon.exit(); code != 0 {
		t.Errorf("exit %d", code)
	}
	if got := dateCommand("processor-a", date, "--output", "json"); got.code != 0 || !strings.Contains(got.out, `"before": "`+earlier+`"`) {
		t.Errorf("got %+v", got)
	}
	if got := dateCommand("processor-a", "--output", "json"); got.code != 0 || !strings.Contains(got.out, `"date": "`+date+`"`) {
		t.Errorf("got %+v", got)
	}
}

// management is a request of the link dialogue of ISO 8583:1987, with its code in DE 70.
func management(code, transmissionTime, stan string) *messages.Message {
	m := messages.New(messages.NetworkManagementRequest)
	m.Set(messages.TransmissionTime, transmissionTime)
	m.Set(messages.STAN, stan)
	m.Set(messages.NetworkManagement, code)
	return m
}
