package main

import (
	"crypto/des"
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"acquirerd/hsm"
	"acquirerd/hsm/hsmtest"
	"acquirerd/messages"
)

// onNSS gives a site a token of NSS's softoken, which translates PIN blocks inside.
func onNSS(t *testing.T, processors ...*processor) *site {
	t.Helper()
	s := newSite(t, processors...)
	s.token = hsmtest.StandardNSS(t)
	return s
}

var update = flag.Bool("update", false, "write the golden files")

// What a run prints that the next one prints differently: times, and the names of tokens and modules.
var (
	statusTime = regexp.MustCompile(`\s{2,}\d+\.\d\s{2,}`)
	statusGap  = regexp.MustCompile(`[ \t]{2,}`)
	statusName = regexp.MustCompile(`(?m)^(token|module) .*$`)
)

func TestHSMStatusTellsWhatEachTokenCanDo(t *testing.T) {
	for name, make := range map[string]func(*testing.T) *site{
		"softhsm": func(t *testing.T) *site { return newSite(t) },
		"nss":     func(t *testing.T) *site { return onNSS(t) },
	} {
		t.Run(name, func(t *testing.T) {
			path := make(t).config()
			got := command(t, "hsm", "status", "--config", path)
			if got.code != 0 {
				t.Fatalf("got %+v", got)
			}
			text := statusTime.ReplaceAllString(got.out, "  0.0  ")
			text = statusName.ReplaceAllString(statusGap.ReplaceAllString(text, " | "), "$1")
			golden := filepath.Join("testdata", "hsm-status-"+name+".txt")
			if *update {
				if err := os.WriteFile(golden, []byte(text), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if text != string(want) {
				t.Errorf("got\n%s\nwant\n%s", text, want)
			}

			var statement hsm.Statement
			got = command(t, "hsm", "status", "--config", path, "--output", "json")
			if err := json.Unmarshal([]byte(got.out), &statement); err != nil {
				t.Fatal(err)
			}
			for _, o := range statement.Operations {
				if measured := o.Micros > 0; measured != (o.Way != hsm.NotAvailable) {
					t.Errorf("%+v", o)
				}
			}
		})
	}
}

func TestHSMStatusSaysWhyServeWouldRefuse(t *testing.T) {
	site := newSite(t)
	site.change("sessions: 2", "sessions: 2\n  require_token_resident: true")
	got := command(t, "hsm", "status", "--config", site.config())
	if want := "serve would refuse, by hsm.require_token_resident: PIN translation iso-0 to iso-0"; got.code != 0 || !strings.Contains(got.out, want) {
		t.Errorf("got %+v, want %q", got, want)
	}
}

func TestADaemonServesTokenResidentOnNSS(t *testing.T) {
	var pins atomic.Int32
	site := onNSS(t, newProcessor(t, func(request *messages.Message) *messages.Message {
		block, err := request.PINBlock()
		if err != nil {
			t.Error(err)
		}
		cipher, err := des.NewTripleDESCipher(slices.Concat(hsmtest.ProcessorZPK, hsmtest.ProcessorZPK[:8]))
		if err != nil {
			t.Error(err)
		}
		clearBlock := make([]byte, 8)
		cipher.Decrypt(clearBlock, block.Reveal())
		if clearBlock[0] == byte(len(testPIN)) && clearBlock[1] == 0x12 { // the account number field begins with zeros
			pins.Add(1)
		}
		return messages.NewAnswer(request, "00")
	}))
	site.change("sessions: 2", "sessions: 2\n  require_token_resident: true")
	site.create()
	daemon := site.start()
	daemon.inService(1)
	if got := daemon.dial().ask(authorization("000001", testPIN)).Get(messages.ResponseCode); got != "00" || pins.Load() != 1 {
		t.Errorf("answered %q, %d PINs arrived", got, pins.Load())
	}
	_, metrics := daemon.get("/metrics")
	for _, want := range []string{
		`acquirerd_hsm_operation_way{in_use="true",operation="PIN translation iso-0 to iso-0",way="token-resident"} 1`,
		`acquirerd_hsm_operation_way{in_use="false",operation="DUKPT derivation, TDES",way="transient"} 1`,
	} {
		if !strings.Contains(metrics, want) {
			t.Errorf("no %s", want)
		}
	}
	line := daemon.log.await(t, "serving", nil)
	if ways, _ := line["hsm_operations"].(map[string]any); ways["PIN translation iso-0 to iso-0"] != "token-resident" {
		t.Errorf("logged %v", ways)
	}
	daemon.stop()
	if code := daemon.exit(); code != 0 {
		t.Errorf("exit %d", code)
	}
}
