package main

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"acquirerd/hsm"
	"acquirerd/hsm/hsmtest"
	"acquirerd/messages"
)

// A processor that gives a new key when it is asked for one: the command ends when it is in use, and PINs reach the processor under it.
func TestAKeyIsRotatedOnRequest(t *testing.T) {
	zmk, fresh := hsmtest.ZoneKey("zmk-a", 16), hsmtest.ZoneKey("fresh", 16)
	before, after := hsmtest.KCV(hsm.PINOut, hsmtest.ProcessorZPK), hsmtest.KCV(hsm.PINOut, fresh)
	zpk := hsmtest.ProcessorZPK
	processor := newProcessor(t, func(request *messages.Message) *messages.Message {
		code := "00"
		if block, err := request.PINBlock(); err != nil || hsmtest.DecipherPIN(zpk, request.PAN().Reveal(), block) != testPIN {
			code = "55"
		}
		return messages.NewAnswer(request, code)
	})
	processor.follow = func(request *messages.Message) *messages.Message {
		if request.Get(messages.NetworkManagement) != "161" {
			return nil
		}
		change := messages.New("0800")
		change.Set(messages.TransmissionTime, "1124101112")
		change.Set(messages.STAN, "700001")
		change.Set(messages.NetworkManagement, "101")
		change.SetSensitive(messages.AdditionalData, fmt.Sprintf("%X%s", hsmtest.Cryptogram(zmk, fresh), after))
		return change
	}
	site := newSite(t, processor)
	site.token.Put("zmk-a", hsm.ZMK, zmk)
	site.change("use: pin-out }", "use: pin-out, zmk: zmk-a }")
	site.create()
	daemon := site.start()
	daemon.inService(1)
	rotate := func(args ...string) result {
		return command(t, append([]string{"keys", "rotate", "--config", daemon.config}, args...)...)
	}

	got := rotate("--endpoint", "processor-a", "--output", "json")
	var rotated rotation
	if err := json.Unmarshal([]byte(got.out), &rotated); err != nil || got.code != 0 ||
		rotated != (rotation{"processor-a", hsmtest.ProcessorKey, 2, after, before}) {
		t.Fatalf("got %+v, %v", got, err)
	}
	if answer := <-processor.answers; answer.Get(messages.ResponseCode) != "00" || answer.Get(messages.STAN) != "700001" {
		t.Errorf("its key change is answered %v", answer)
	}
	zpk = fresh
	if got := daemon.dial().ask(authorization("000001", testPIN)).Get(messages.ResponseCode); got != "00" {
		t.Errorf("a PIN under the new key: %s", got)
	}
	daemon.log.await(t, "key changed on request", func(line map[string]any) bool { return line["kcv"] == after && line["previous_kcv"] == before })

	// Both are on record: the change that came, and who has asked for it.
	rows := auditRows(t, daemon.config)
	if row := has(rows, "rotate", hsmtest.ProcessorKey, "ok"); row == nil || row.KCV != after || row.Who != me(t) || row.Detail != "endpoint processor-a" {
		t.Errorf("rotate: %+v", row)
	}
	if row := has(rows, "change", hsmtest.ProcessorKey, "ok"); row == nil || row.KCV != after || row.Who != "acq01" {
		t.Errorf("change: %+v", row)
	}

	// It sends the same key again: nothing has changed, and the command says so.
	if got := rotate("--endpoint", "processor-a"); got.code != 1 || !strings.Contains(got.err, "the one that was in use before") || strings.Count(got.err, "\n") != 1 {
		t.Errorf("got %+v", got)
	}
	for _, test := range []struct {
		args []string
		code int
		want string
	}{
		{[]string{"--endpoint", "processor-b"}, 1, `there is no endpoint "processor-b"`},
		{nil, 2, "--endpoint is missing"},
		{[]string{"--endpoint", "processor-a", "--timeout", "0s"}, 2, "--timeout 0s is not up to 30s"},
		{[]string{"--endpoint", "processor-a", "--timeout", "31s"}, 2, "--timeout 31s is not up to 30s"},
	} {
		if got := rotate(test.args...); got.code != test.code || !strings.Contains(got.err, test.want) {
			t.Errorf("%v: got %+v", test.args, got)
		}
	}
	if got := command(t, "link", "drain", "processor-a", "--config", daemon.config); got.code != 0 {
		t.Fatalf("got %+v", got)
	}
	if got := rotate("--endpoint", "processor-a"); got.code != 1 || !strings.Contains(got.err, "no link is in service") {
		t.Errorf("out of service: %+v", got)
	}
	daemon.stop()
	if code := daemon.exit(); code != 0 {
		t.Errorf("exit %d", code)
	}
	if got := rotate("--endpoint", "processor-a"); got.code != 1 || !strings.Contains(got.err, "no daemon answers at") {
		t.Errorf("without a daemon: %+v", got)
	}
}

func TestAKeyWithoutAZoneMasterKeyIsNotRotated(t *testing.T) {
	site := newSite(t, newProcessor(t, approveRightPIN))
	site.create()
	daemon := site.start()
	daemon.inService(1)
	got := command(t, "keys", "rotate", "--endpoint", "processor-a", "--config", daemon.config)
	if got.code != 1 || !strings.Contains(got.err, "none of its keys has a zmk") || strings.Count(got.err, "\n") != 1 {
		t.Errorf("got %+v", got)
	}
	daemon.stop()
	if code := daemon.exit(); code != 0 {
		t.Errorf("exit %d", code)
	}
}
