package main

import (
	"encoding/hex"
	"slices"
	"strings"
	"testing"

	"acquirerd/card"
	"acquirerd/hsm"
	"acquirerd/hsm/hsmtest"
	"acquirerd/messages"
)

// A terminal's requests: PIN 1234 of dukptPAN under the keys of X9.24-1:2009, A.4.
const (
	dukptPAN = "4012345678909"
	dukptBDK = "0123456789ABCDEFFEDCBA9876543210"
)

var dukptBlocks = map[string]string{
	"FFFF9876543210E00001": "1B9C1845EB993A7A",
	"FFFF9876543210E00002": "10A01C8D02C69107",
	"FFFF9876543210E00003": "18DC07B94797B466",
	"FFFF9876543210E00004": "0BC79509D5645DF7",
}

// dukptSite is a site whose upstream sends PIN blocks under DUKPT, with their key serial numbers in DE 62.
func dukptSite(t *testing.T, settings string, processors ...*processor) *site {
	t.Helper()
	s := newSite(t, processors...)
	bdk, err := hex.DecodeString(dukptBDK)
	if err != nil {
		t.Fatal(err)
	}
	s.token.Put("bdk-pos", hsm.BDK, bdk)
	s.token.Keys = slices.DeleteFunc(s.token.Keys, func(k hsm.Key) bool { return k.Label == hsmtest.UpstreamKey }) // the same value, for another use
	own := dialectFile(t, "iso87-binary", "standard: iso87\n", "standard: iso87\nkey_serial_number: { element: 62, form: hex }\n")
	s.change("dialect: iso87-binary, ", "dialect: "+own+", ")
	s.change("pin_key: "+hsmtest.UpstreamKey, "bdk_key: bdk-pos"+settings)
	s.create()
	return s
}

func underDUKPT(t *testing.T, stan, ksn, block string) *messages.Message {
	t.Helper()
	m := authorization(stan, "")
	value, err := hex.DecodeString(block)
	if err != nil {
		t.Fatal(err)
	}
	pinBlock, err := card.NewPINBlock(value)
	if err != nil {
		t.Fatal(err)
	}
	m.SetSensitive(messages.PAN, dukptPAN)
	m.SetPINBlock(pinBlock)
	m.SetSensitive(62, ksn)
	return m
}

func TestServeTranslatesPINBlocksUnderDUKPT(t *testing.T) {
	processor := newProcessor(t, func(request *messages.Message) *messages.Message {
		if request.Has(62) {
			t.Error("the processor is told of a key serial number")
		}
		return approveRightPIN(request)
	})
	site := dukptSite(t, ", ksn_regression: refuse", processor)
	daemon := site.start()
	daemon.inService(1)
	upstream := daemon.dial()
	for _, row := range []struct{ name, stan, ksn, block, want, element string }{
		{"the first key", "000001", "FFFF9876543210E00001", "", "00", ""},
		{"the third key, the second is not used", "000002", "FFFF9876543210E00003", "", "00", ""},
		{"its repeat", "000002", "FFFF9876543210E00003", "", "00", ""},
		{"the second key after the third", "000003", "FFFF9876543210E00002", "", "55", ""},
		{"the third key in another transaction", "000004", "FFFF9876543210E00003", "", "55", ""},
		{"a block under another key than its number says", "000005", "FFFF9876543210E00004", dukptBlocks["FFFF9876543210E00001"], "55", ""},
		{"the fourth key", "000006", "FFFF9876543210E00004", "", "00", ""},
		{"no number", "000007", "", dukptBlocks["FFFF9876543210E00001"], "30", "062"},
		{"the number of no transaction", "000008", "FFFF9876543210E00000", dukptBlocks["FFFF9876543210E00001"], "30", "062"},
		{"a number of AES", "000009", "123456789012345600000001", dukptBlocks["FFFF9876543210E00001"], "30", "062"},
	} {
		block := row.block
		if block == "" {
			block = dukptBlocks[row.ksn]
		}
		answer := upstream.ask(underDUKPT(t, row.stan, row.ksn, block))
		if got := answer.Get(messages.ResponseCode); got != row.want || answer.Get(messages.AdditionalResponse) != row.element || answer.Has(62) {
			t.Errorf("%s: answered %v, want %s", row.name, answer, row.want)
		}
	}
	if _, metrics := daemon.get("/metrics"); !strings.Contains(metrics, `acquirerd_ksn_regressions_total{upstream="pos-switch"} 2`) {
		t.Error("the regressions are not counted")
	}
	daemon.stop()
	if code := daemon.exit(); code != 0 {
		t.Errorf("exit %d", code)
	}
	if strings.Contains(daemon.log.String(), dukptPAN) {
		t.Error("the log has a card number")
	}
}

func TestTDESDUKPTIsRefusedWhereNothingMayBeTransient(t *testing.T) {
	site := dukptSite(t, "")
	site.change("  sessions: 2", "  sessions: 2\n  require_token_resident: true")
	if got := command(t, "serve", "--config", site.config()); got.code != 1 || !strings.Contains(got.err, "DUKPT derivation, TDES") {
		t.Errorf("got %+v", got)
	}
}

func TestAWorkingKeyThatItsKeyDoesNotDeriveRefusesTheStart(t *testing.T) {
	site := dukptSite(t, ", working_key: 2tdea")
	const want = `upstreams[0].working_key: PIN block format is not allowed: key "bdk-pos" is for TDES-DUKPT`
	if got := command(t, "serve", "--config", site.config()); got.code != 1 || !strings.Contains(got.err, want) {
		t.Errorf("got %+v", got)
	}
}
