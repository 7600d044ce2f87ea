package main

import (
	"encoding/json"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"acquirerd/conn"
	"acquirerd/messages"
)

func TestLinksAreListedDrainedResumedAndCut(t *testing.T) {
	processor := newProcessor(t, approveRightPIN)
	site := newSite(t, processor, processor)
	site.create()
	daemon := site.start()
	daemon.inService(2)
	do := func(name, what string) result {
		t.Helper()
		return command(t, "link", name, what, "--config", daemon.config)
	}

	got := command(t, "link", "list", "--config", daemon.config)
	rows := strings.Split(strings.TrimSpace(got.out), "\n")
	if got.code != 0 || len(rows) != 3 || strings.Join(strings.Fields(rows[0]), " ") != "ENDPOINT LINK MODE HOST PEER STATE SINCE IN-FLIGHT RECONNECTS ECHO LAST-ERROR HELD" {
		t.Fatalf("got %+v", got)
	}
	row := strings.Fields(rows[2])
	if len(row) != 12 {
		t.Fatalf("got %q", row)
	}
	row[6] = "SINCE"
	if want := []string{"processor-a", "1", "dial", processor.address, "-", "in-service", "SINCE", "0", "0", "-", "-", "no"}; !slices.Equal(row, want) {
		t.Errorf("got %q, want %q", row, want)
	}
	if got := command(t, "link", "list", "processor-b", "--config", daemon.config); got != (result{1, "", "acquirerd: there is no endpoint \"processor-b\"\n"}) {
		t.Errorf("got %+v", got)
	}
	var told []linkStatus
	got = command(t, "link", "list", "processor-a", "--config", daemon.config, "--output", "json")
	if err := json.Unmarshal([]byte(got.out), &told); err != nil || len(told) != 2 || told[1].Number != 1 || told[1].State != conn.InService {
		t.Errorf("got %+v, %v", got, err)
	}

	if got := do("drain", "processor-a/0"); got != (result{0, "drained processor-a/0\n", ""}) {
		t.Errorf("got %+v", got)
	}
	daemon.log.await(t, "changed by an operator", func(line map[string]any) bool {
		return line["command"] == "link drain" && line["endpoint"] == "processor-a" && line["link"] == "0"
	})
	list := daemon.awaitLinks("drained", func(list []linkStatus) bool { return list[0].State == conn.Down })
	if !list[0].Held || list[1].Held || !inService(list[1]) {
		t.Errorf("got %+v", list)
	}
	if _, page := daemon.get("/links"); !strings.Contains(page, `"held":true`) {
		t.Errorf("the operations port says %s", page)
	}
	if got := daemon.dial().ask(authorization("000001", testPIN)).Get(messages.ResponseCode); got != "00" {
		t.Errorf("on the other link: got %q, want 00", got)
	}
	if got := do("resume", "processor-a"); got != (result{0, "resumed processor-a\n", ""}) {
		t.Errorf("got %+v", got)
	}
	daemon.awaitLinks("resumed", func(list []linkStatus) bool { return inService(list[0]) && inService(list[1]) })

	if got := do("cut", "processor-a/1"); got != (result{0, "cut processor-a/1\n", ""}) {
		t.Errorf("got %+v", got)
	}
	list = daemon.awaitLinks("cut", func(list []linkStatus) bool { return list[1].Reconnects > 0 && inService(list[1]) })
	if list[1].LastError == "" || list[0].LastError != "" {
		t.Errorf("got %+v", list)
	}

	for what, want := range map[string]string{"processor-a/2": "there is none", "processor-b/0": `there is no endpoint "processor-b"`} {
		for _, name := range []string{"drain", "resume", "cut"} {
			if got := do(name, what); got.code != 1 || strings.Count(got.err, "\n") != 1 || !strings.HasPrefix(got.err, "acquirerd: ") || !strings.Contains(got.err, want) {
				t.Errorf("%s %s: got %+v, want %s", name, what, got, want)
			}
		}
	}
	daemon.stop()
	if code := daemon.exit(); code != 0 {
		t.Errorf("exit %d", code)
	}
	for _, args := range [][]string{{"list"}, {"drain", "processor-a"}, {"resume", "processor-a"}, {"cut", "processor-a"}} {
		got := command(t, append(append([]string{"link"}, args...), "--config", daemon.config)...)
		if got.code != 1 || got.out != "" || strings.Count(got.err, "\n") != 1 || !strings.HasPrefix(got.err, "acquirerd: no daemon answers at ") {
			t.Errorf("%v without a daemon: got %+v", args, got)
		}
	}
}

// A processor that dials us is served like one that we dial.
// Nothing is wrong with it, and nothing can be carried to it.
func TestAnEndpointThatIsHeldIsNotReadyAndNotFailed(t *testing.T) {
	site := newSite(t, newProcessor(t, approveRightPIN))
	site.create()
	daemon := site.start()
	daemon.inService(1)
	if got := command(t, "link", "drain", "processor-a", "--config", daemon.config); got.code != 0 {
		t.Fatalf("got %+v", got)
	}
	if code, body := daemon.get("/health/ready"); code != 503 || !strings.Contains(body, `{"name":"endpoint processor-a","status":"held"}`) {
		t.Errorf("got %d %s", code, body)
	}
	daemon.stop()
	if code := daemon.exit(); code != 0 {
		t.Errorf("exit %d", code)
	}
}

func TestAProcessorMayDial(t *testing.T) {
	site := newSite(t)
	site.links = `{ listen: "127.0.0.1:0", allow: ["127.0.0.0/8"], links: 2 }`
	site.create()
	daemon := site.start()
	list := daemon.awaitLinks("listening", func(list []linkStatus) bool {
		return len(list) == 2 && list[0].Mode == "listen" && !strings.HasSuffix(list[0].Address, ":0")
	})
	processor := newProcessor(t, approveRightPIN)
	dialled, err := net.Dial("tcp", list[0].Address)
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan struct{})
	go func() {
		defer close(served)
		processor.serve(t, dialled)
	}()
	t.Cleanup(func() {
		_ = dialled.Close()
		<-served
	})
	_ = dialled.SetDeadline(time.Now().Add(patience))
	list = daemon.awaitLinks("in service", func(list []linkStatus) bool { return slices.ContainsFunc(list, inService) })
	at := slices.IndexFunc(list, inService)
	if list[at].Peer != dialled.LocalAddr().String() || list[1-at].State != conn.Down {
		t.Errorf("got %+v", list)
	}
	if got := daemon.dial().ask(authorization("000001", testPIN)).Get(messages.ResponseCode); got != "00" {
		t.Errorf("got %q, want 00", got)
	}
	if got := metricOf(t, daemon, `acquirerd_transaction_phase_seconds_count{endpoint="processor-a",phase="processor"}`); got != "1" {
		t.Errorf("%q transactions have spent time on the processor, want 1", got)
	}
	daemon.stop()
	if code := daemon.exit(); code != 0 {
		t.Errorf("exit %d", code)
	}
}
