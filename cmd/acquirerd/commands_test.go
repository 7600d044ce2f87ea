package main

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"io"
	"log/slog"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spf13/cobra"

	"acquirerd/hsm"
	"acquirerd/hsm/hsmtest"
	"acquirerd/messages"
	"acquirerd/specs"
)

// sortedLines splits a text into its lines, sorted.
func sortedLines(text string) []string { return slices.Sorted(strings.Lines(text)) }

// result is what one run of the program came to.
type result struct {
	code     int
	out, err string
}

func command(t *testing.T, args ...string) result {
	t.Helper()
	var out, errs bytes.Buffer
	code := run(t.Context(), args, &out, &errs)
	return result{code, out.String(), errs.String()}
}

func TestEveryCommandHasHelpWithAnExample(t *testing.T) {
	var look func(*cobra.Command)
	look = func(c *cobra.Command) {
		if c.Example == "" || c.Short == "" {
			t.Errorf("%s has no example, or does not say what it does", c.CommandPath())
		}
		for _, inner := range c.Commands() {
			if inner.Name() != "help" {
				look(inner)
			}
		}
		words := strings.Fields(c.CommandPath())[1:]
		if got := command(t, append(words, "--help")...); got.code != 0 || !strings.Contains(got.out, c.Example) {
			t.Errorf("%s --help: exit %d\n%s%s", c.CommandPath(), got.code, got.out, got.err)
		}
	}
	look((&cli{}).root())
}

func TestBadInputIsOneLine(t *testing.T) {
	for _, c := range []struct {
		args []string
		code int
		want string
	}{
		{[]string{"pay"}, 2, `unknown command "pay"`},
		{[]string{"journal"}, 2, "which of list, owed, advices, show, release, park, prune, export, business-date, audit, reseal?"},
		{[]string{"journal", "lst"}, 2, `unknown command "lst"`},
		{[]string{"serve", "now"}, 2, "unknown command"},
		{[]string{"serve", "--fast"}, 2, "unknown flag: --fast"},
		{[]string{"version", "--output", "xml"}, 2, `--output "xml" is neither text nor json`},
		{[]string{"journal", "list", "--limit", "0"}, 2, "--limit 0 is not 1 to 100000"},
		{[]string{"journal", "list", "--limit", "x"}, 2, `"x" for "--limit" flag: invalid syntax (`},
		{[]string{"journal", "list", "--before", "99999999999999999999"}, 2, `for "--before" flag: value out of range (`},
		{[]string{"journal", "list", "--before", "-5"}, 2, "--before -5 is negative"},
		{[]string{"journal", "list", "--stan", "1"}, 2, `--stan "1" is not six digits`},
		{[]string{"journal", "list", "--stan", "abcdef"}, 2, `--stan "abcdef" is not six digits`},
		{[]string{"journal", "list", "--rrn", "abc"}, 2, `--rrn "abc" is not twelve characters`},
		{[]string{"journal", "list", "--outcome", "lost"}, 2, `--outcome "lost" is not one of approved, declined, not_sent, unknown, accepted, open`},
		{[]string{"journal", "advices", "--limit", "0"}, 2, "--limit 0 is not 1 to 100000"},
		{[]string{"journal", "advices", "--before", "-5"}, 2, "--before -5 is negative"},
		{[]string{"journal", "owed", "--state", "paid"}, 2, `--state "paid" is not one of owed, acknowledged, parked`},
		{[]string{"journal", "show"}, 2, "accepts 1 arg(s), received 0"},
		{[]string{"journal", "show", "x"}, 2, `"x" is not the ID of a transaction`},
		{[]string{"journal", "release"}, 2, "release: name IDs, or --all"},
		{[]string{"journal", "release", "--all", "1"}, 2, "release: name IDs, or --all"},
		{[]string{"journal", "release", "0"}, 2, `"0" is not the ID of something owed`},
		{[]string{"journal", "park"}, 2, "requires at least 1 arg(s)"},
		{[]string{"journal", "park", "-1"}, 2, "unknown shorthand flag"},
		{[]string{"journal", "prune"}, 2, "--keep is missing"},
		{[]string{"journal", "prune", "--keep", "1h"}, 2, "--keep 1h0m0s is shorter than 48h0m0s"},
		{[]string{"journal", "export", "--since", "2026-11-25T00:00:00Z", "--until", "2026-11-24T00:00:00Z"}, 2, "is after --until"},
		{[]string{"journal", "export", "--since", "yesterday"}, 2, `--since "yesterday" is not a time such as 2026-11-25T00:00:00Z`},
		{[]string{"journal", "business-date"}, 2, "accepts between 1 and 2 arg(s), received 0"},
		{[]string{"journal", "business-date", "processor-a", "25.11."}, 2, `"25.11." is not a date such as 2026-11-25`},
		{[]string{"link"}, 2, "which of list, drain, resume, cut?"},
		{[]string{"link", "drain"}, 2, "accepts 1 arg(s), received 0"},
		{[]string{"link", "drain", "processor-a/x"}, 2, `"processor-a/x" is neither an endpoint nor a link such as processor-a/0`},
		{[]string{"link", "cut", "processor-a/-1"}, 2, `"processor-a/-1" is neither an endpoint nor a link`},
		{[]string{"link", "resume", "/1"}, 2, `"/1" is neither an endpoint nor a link`},
		{[]string{"link", "list", "a", "b"}, 2, "accepts at most 1 arg(s)"},
		{[]string{"keys", "generate", "--use", "pin-in"}, 2, "--label is missing"},
		{[]string{"keys", "generate", "--label", "a\nb", "--use", "pin-in"}, 2, "--label is not 1 to 64 printable ASCII characters without spaces"},
		{[]string{"keys", "generate", "--label", strings.Repeat("a", 65), "--use", "pin-in"}, 2, "--label is not 1 to 64"},
		{[]string{"keys", "generate", "--label", "a", "--use", "pin-in", "--type", "ec-p256"}, 2, "--use and --type exclude each other"},
		{[]string{"keys", "generate", "--label", "a", "--type", "rsa-1024"}, 2, `--type "rsa-1024" is not one of ec-p256, rsa-2048, rsa-3072`},
		{[]string{"keys", "generate", "--type", "ec-p256"}, 2, "--label is missing"},
		{[]string{"keys", "csr", "--name", "a"}, 2, "--label is missing"},
		{[]string{"keys", "csr", "--label", "a"}, 2, "--name is missing"},
		{[]string{"keys", "csr", "--label", "a", "--name", "a b"}, 2, `--name "a b" is neither a DNS name nor an address`},
		{[]string{"keys", "csr", "--label", "a", "--name", "-a.example"}, 2, `is neither a DNS name nor an address`},
		{[]string{"keys", "import", "--label", "clé", "--use", "pin-in"}, 2, "--label is not 1 to 64"},
		{[]string{"keys", "generate", "--label", "a", "--use", "b"}, 2, `--use "b" is not one of`},
		{[]string{"keys", "import", "--label", "a", "--use", "pin-in", "--kcv", "08D7B4", "--component", "x", "--custodian", "a", "--custodian", "b"}, 2, "--component is given 1 times, and --custodian 2 times"},
		{[]string{"keys", "import", "--label", "a", "--use", "pin-in", "--component", "x", "--component", "y"}, 2, "--kcv is missing"},
		{[]string{"keys", "import", "--label", "a", "--use", "pin-in", "--kcv", "08D7B4"}, 2, "--custodian is given 0 times"},
		{[]string{"keys", "import", "--label", "a", "--use", "pin-in", "--kcv", "08D7B4", "--custodian", "alice", "--custodian", "Alice"}, 2, "--custodian Alice is given twice"},
		{[]string{"keys", "import", "--label", "a", "--use", "pin-in", "--key-block", "x"}, 2, "--kbpk is missing"},
		{[]string{"keys", "import", "--label", "a", "--use", "pin-in", "--kbpk", "x", "--kcv", "08D7B4"}, 2, "are of --key-block"},
		{[]string{"keys", "import", "--label", "a", "--use", "pin-in", "--key-block", "x", "--kbpk", "k", "--custodian", "alice"}, 2, "--component and --custodian are of"},
		{[]string{"keys", "import", "--label", "a", "--use", "pin-in", "--key-block", "x", "--legacy-key-block"}, 2, "--kbpk-kcv is missing"},
		{[]string{"keys", "import", "--label", "a", "--use", "pin-in", "--key-block", "x", "--legacy-key-block", "--kbpk-kcv", "12"}, 2, "--kbpk-kcv is not six"},
		{[]string{"keys", "import", "--label", "a", "--use", "pin-in", "--key-block", "x", "--legacy-key-block", "--kbpk", "k"}, 2, "takes no --kbpk in the token"},
		{[]string{"keys", "import", "--label", "a", "--use", "pin-in", "--cryptogram", "00", "--kcv", "08D7B4"}, 2, "--zmk is missing"},
		{[]string{"keys", "import", "--label", "a", "--use", "pin-in", "--cryptogram", "00", "--key-block", "x"}, 2, "exclude each other"},
		{[]string{"keys", "import", "--label", "a", "--use", "pin-in", "--cbc", "--kcv", "08D7B4"}, 2, "are of --cryptogram"},
		{[]string{"keys", "generate", "--label", "a", "--use", "pin-in", "--algorithm", "des"}, 2, `--algorithm "des" is not one of tdes, aes, hmac`},
		{[]string{"keys", "generate", "--label", "a", "--type", "ec-p256", "--bits", "128"}, 2, "--type says"},
		{[]string{"keys", "components", "--use", "zmk", "--file", "x"}, 2, "--file is given 1 times"},
		{[]string{"keys", "components", "--file", "x", "--file", "y"}, 2, `--use "" is not one of`},
		{[]string{"keys", "export", "--label", "a", "--use", "pin-in", "--file", "x"}, 2, "--kbpk is missing"},
		{[]string{"keys", "export", "--label", "a", "--use", "pin-in", "--kbpk", "x"}, 2, "--file is missing"},
		{[]string{"keys", "export", "--label", "a", "--use", "pin-in", "--kbpk", "x", "--file", "y", "--exportability", "X"}, 2, "--exportability"},
		{[]string{"keys", "kcv"}, 2, "name a key by --label, or a file by --component"},
		{[]string{"keys", "kcv", "--component", "x", "--algorithm", "des"}, 2, "--algorithm"},
		{[]string{"keys", "destroy", "--kcv", "08D7B4"}, 2, "--label is missing"},
		{[]string{"keys", "destroy", "--label", "x"}, 2, "--kcv is not six"},
		{[]string{"keys", "import", "--label", "a", "--use", "pin-in", "--component", "x", "--component", "y", "--kcv", "12"}, 2, "--kcv is not six"},
		{[]string{"decode"}, 2, "decode takes one message"},
		{[]string{"decode", "no such thing"}, 2, "neither hexadecimal digits nor the name of a file"},
		{[]string{"decode", "--dialect", "iso93", "00"}, 1, "no such dialect"},
		{[]string{"decode", "--dialect", "iso87-ascii", "00"}, 1, "decoding in iso87-ascii: MTI is not four digits"},
		{[]string{"dialect", "lint", "/no/such/file"}, 1, "no such file"},
		{[]string{"dialect", "diff", "iso87-ascii"}, 2, "it takes 2 arguments: two dialects"},
		{[]string{"dialect", "diff", "iso87-ascii", "none"}, 2, "no such dialect"},
		{[]string{"dialect", "explain"}, 2, "dialect explain takes one message"},
		{[]string{"dialect", "explain", "no such thing"}, 2, "dialect explain: what was given is neither"},
		{[]string{"dialect", "explain", "--dialect", "none", "00"}, 1, "no such dialect"},
		{[]string{"dialect", "show", "iso93"}, 1, "no such dialect"},
		{[]string{"dialect", "lint", "/dev/zero"}, 1, "reading dialect: /dev/zero is larger than 1048576 bytes"},
		{[]string{"dialect", "show", "/dev/zero"}, 1, `loading dialect "/dev/zero": is larger than 1048576 bytes`},
		{[]string{"init", "--config", "/no/such/file"}, 1, "no such file"},
	} {
		t.Run(strings.Join(c.args, " "), func(t *testing.T) {
			got := command(t, c.args...)
			if got.code != c.code || !strings.HasPrefix(got.err, "acquirerd: ") || strings.Count(got.err, "\n") != 1 || !strings.Contains(got.err, c.want) {
				t.Errorf("got exit %d, %q; want %d with one line that has %q", got.code, got.err, c.code, c.want)
			}
		})
	}
}

func TestConfigCheckAsJSON(t *testing.T) {
	got := command(t, "config", "check", "--config", goodConfig, "--output", "json")
	if got.code != 0 || got.out != "{\n  \"faults\": [],\n  \"ok\": true,\n  \"warnings\": []\n}\n" {
		t.Errorf("got %+v", got)
	}
	got = command(t, "config", "check", "--config", fiveFaults, "--output", "json")
	var told struct {
		OK     bool
		Faults []struct{ Path, Problem string }
	}
	if err := json.Unmarshal([]byte(got.out), &told); err != nil || got.code != 1 || told.OK || len(told.Faults) != 5 || told.Faults[0].Path != "journal.sync" {
		t.Errorf("got %+v, %v", got, err)
	}
}

func TestInitCreatesAJournalOnce(t *testing.T) {
	journal := filepath.Join(t.TempDir(), "journal.db")
	// What has nothing to do with the journal may be wrong.
	path := changed(t, "/var/lib/acquirerd/journal.db", journal, "sessions: 8", "sessions: many")
	if got, want := command(t, "init", "--config", path), (result{0, "created journal " + journal + " of station acq01\n", ""}); got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
	if got := command(t, "init", "--config", path); got.code != 1 || !strings.Contains(got.err, "already exists") {
		t.Errorf("again: got %+v", got)
	}
	if got := command(t, "journal", "list", "--config", path, "--output", "json"); got != (result{0, "[]\n", ""}) {
		t.Errorf("list: got %+v", got)
	}
	if got := command(t, "journal", "owed", "--config", path); got.code != 0 || !strings.HasPrefix(got.out, "ID  TRANSACTION  KIND  ENDPOINT") {
		t.Errorf("owed: got %+v", got)
	}
	other := changed(t, "/var/lib/acquirerd/journal.db", journal, "station: acq01", "station: acq02")
	for _, what := range []string{"list", "owed"} {
		if got := command(t, "journal", what, "--config", other); got.code != 1 || got.out != "" || !strings.Contains(got.err, `it belongs to station "acq01", not to "acq02"`) {
			t.Errorf("%s with another station's config: got %+v", what, got)
		}
	}
	if got := command(t, "init", "--config", changed(t, "journal: { path: /var/lib/acquirerd/journal.db, queue: 2048 }", "journal: 1")); got.code != 1 ||
		got.err != "journal: is not a mapping of keys to values\n" {
		t.Errorf("got %+v", got)
	}
}

func TestJournalListingsAreMasked(t *testing.T) {
	site := newSite(t, newProcessor(t, func(request *messages.Message) *messages.Message {
		if request.MTI == messages.AuthorizationRequest {
			answer := messages.NewAnswer(request, "00")
			answer.Set(messages.Amount, "000000009999") // not the amount that was asked for: the outcome is unknown
			return answer
		}
		return messages.NewAnswer(request, "00")
	}))
	site.create()
	daemon := site.start()
	daemon.inService(1)
	if got := daemon.dial().ask(authorization("000001", testPIN)).Get(messages.ResponseCode); got != "91" {
		t.Errorf("got %q, want 91", got)
	}
	daemon.log.await(t, "reversal", func(line map[string]any) bool { return line["result"] == "acknowledged" })
	path := site.config()
	times := regexp.MustCompile(`\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z`)
	rrn := regexp.MustCompile(`\b\d{12}\b`)
	for _, c := range []struct{ args, want []string }{
		{[]string{"journal", "list"}, []string{
			"ID BEGUN UPSTREAM ENDPOINT MTI STAN RRN AMOUNT CURRENCY PAN OUTCOME CODE AUTH REASON OWED ADVICE BUSINESS_DATE",
			"1 TIME pos-switch processor-a 0100 000001 N12 N12 978 411111******1111 unknown - - mismatch acknowledged - -"}},
		{[]string{"journal", "list", "--outcome", "approved"}, []string{
			"ID BEGUN UPSTREAM ENDPOINT MTI STAN RRN AMOUNT CURRENCY PAN OUTCOME CODE AUTH REASON OWED ADVICE BUSINESS_DATE"}},
		{[]string{"journal", "owed", "--state", "acknowledged"}, []string{
			"ID TRANSACTION KIND ENDPOINT STAN OWN_STAN RRN AMOUNT LEAVES CURRENCY PAN WHY STATE ATTEMPTS SINCE DUE SETTLED CODE LAST BUSINESS_DATE",
			"1 1 reversal processor-a 000001 - N12 N12 - 978 411111******1111 mismatch acknowledged 1 TIME TIME TIME 00 - -"}},
		{[]string{"journal", "owed", "--state", "parked"}, []string{
			"ID TRANSACTION KIND ENDPOINT STAN OWN_STAN RRN AMOUNT LEAVES CURRENCY PAN WHY STATE ATTEMPTS SINCE DUE SETTLED CODE LAST BUSINESS_DATE"}},
	} {
		got := command(t, append(c.args, "--config", path)...)
		var lines []string
		for line := range strings.Lines(got.out) {
			lines = append(lines, strings.Join(strings.Fields(rrn.ReplaceAllString(times.ReplaceAllString(line, "TIME"), "N12")), " "))
		}
		if got.code != 0 || !slices.Equal(lines, c.want) {
			t.Errorf("%v: got exit %d\n%s\n%s", c.args, got.code, strings.Join(lines, "\n"), got.err)
		}
		got = command(t, append(c.args, "--config", path, "--output", "json")...)
		var rows []map[string]any
		if err := json.Unmarshal([]byte(got.out), &rows); err != nil || len(rows) != len(c.want)-1 || strings.Contains(got.out, testPAN) {
			t.Errorf("%v as JSON: got %s, %v", c.args, got.out, err)
		}
	}
	daemon.stop()
	if code := daemon.exit(); code != 0 {
		t.Errorf("exit %d", code)
	}
}

func TestKeysAreListedMadeAndChecked(t *testing.T) {
	site := newSite(t)
	site.create()
	path := site.config()
	list := command(t, "keys", "list", "--config", path)
	var want []string
	for _, key := range site.token.Keys {
		want = append(want, key.Label+" "+string(key.Use)+" "+key.KCV)
	}
	slices.Sort(want)
	var got []string
	for line := range strings.Lines(list.out) {
		got = append(got, strings.Join(strings.Fields(line)[:3], " "))
	}
	if list.code != 0 || !slices.Equal(got[1:], want) {
		t.Errorf("list: got %+v, want %v", list, want)
	}

	status := command(t, "hsm", "status", "--config", path)
	if status.code != 0 || !strings.Contains(status.out, "PIN translation") || !strings.Contains(status.out, "transient") || !strings.Contains(status.out, hsmtest.SealKey) {
		t.Errorf("status: got %+v", status)
	}
	var statement hsm.Statement
	if status = command(t, "hsm", "status", "--config", path, "--output", "json"); json.Unmarshal([]byte(status.out), &statement) != nil || len(statement.Keys) != 4 {
		t.Errorf("status: got %+v", status)
	}

	made := command(t, "keys", "generate", "--config", path, "--label", "pan-seal-2", "--use", "pan-seal", "--output", "json")
	var key hsm.KeyInfo
	if err := json.Unmarshal([]byte(made.out), &key); err != nil || made.code != 0 || key.Label != "pan-seal-2" || !sixHex.MatchString(key.KCV) {
		t.Errorf("generate: got %+v, %v", made, err)
	}
	if again := command(t, "keys", "generate", "--config", path, "--label", "pan-seal-2", "--use", "pan-seal"); again.code != 1 || strings.Count(again.err, "\n") != 1 {
		t.Errorf("generate again: got %+v", again)
	}
}

func TestAKeyForTLSIsMadeAndACertificateRequested(t *testing.T) {
	site := newSite(t)
	path := site.config()
	for kind, bits := range map[string]int{"ec-p256": 256, "rsa-2048": 2048} {
		label := "tls-" + kind
		made := command(t, "keys", "generate", "--config", path, "--label", label, "--type", kind, "--output", "json")
		var key hsm.KeyInfo
		if err := json.Unmarshal([]byte(made.out), &key); err != nil || made.code != 0 || key.Label != label || key.Use != "tls" || key.Bits != bits {
			t.Errorf("generate: got %+v, %v", made, err)
		}
		got := command(t, "keys", "csr", "--config", path, "--label", label, "--name", "acq01.example", "--name", "192.0.2.1", "--name", "*.acq.example")
		block, rest := pem.Decode([]byte(got.out))
		if got.code != 0 || block == nil || block.Type != "CERTIFICATE REQUEST" || len(rest) != 0 {
			t.Fatalf("got %+v", got)
		}
		request, err := x509.ParseCertificateRequest(block.Bytes)
		if err != nil {
			t.Fatal(err)
		}
		if err := request.CheckSignature(); err != nil {
			t.Error(err)
		}
		if request.Subject.CommonName != "acq01.example" || !slices.Equal(request.DNSNames, []string{"acq01.example", "*.acq.example"}) || request.IPAddresses[0].String() != "192.0.2.1" {
			t.Errorf("request for %v, %v, %v", request.Subject, request.DNSNames, request.IPAddresses)
		}
	}
	var as map[string]string
	if got := command(t, "keys", "csr", "--config", path, "--label", "tls-ec-p256", "--name", "a", "--output", "json"); json.Unmarshal([]byte(got.out), &as) != nil ||
		as["label"] != "tls-ec-p256" || !strings.HasPrefix(as["request"], "-----BEGIN CERTIFICATE REQUEST-----\n") {
		t.Errorf("got %+v", got)
	}
	if got := command(t, "keys", "list", "--config", path); got.code != 0 || !strings.Contains(got.out, "tls-rsa-2048") {
		t.Errorf("got %+v", got)
	}
	if got := command(t, "keys", "kcv", "--config", path, "--label", "tls-rsa-2048"); got.code != 1 || !strings.Contains(got.err, "is a key pair for TLS") {
		t.Errorf("its check value: got %+v", got)
	}
	if got := command(t, "keys", "csr", "--config", path, "--label", hsmtest.UpstreamKey, "--name", "a"); got.code != 1 || !strings.Contains(got.err, "0 private and 0 public keys") {
		t.Errorf("got %+v", got)
	}
}

func TestTheModuleGetsItsArguments(t *testing.T) {
	site := newSite(t)
	site.token = hsmtest.StandardNSS(t)
	path := site.config()
	if got := command(t, "keys", "list", "--config", path); got.code != 0 || !strings.Contains(got.out, hsmtest.UpstreamKey) {
		t.Errorf("got %+v", got)
	}
	site.change("module_arguments", "# module_arguments")
	if got := command(t, "keys", "list", "--config", site.config()); got.code != 1 || !strings.Contains(got.err, "CKR_ARGUMENTS_BAD") {
		t.Errorf("without them: got %+v", got)
	}
}

func TestTheStatusShowsWhichKeysCanBeChanged(t *testing.T) {
	site := newSite(t)
	site.token.Put("zmk-a", hsm.ZMK, hsmtest.ZoneKey("zmk-a", 16))
	site.changes = append(site.changes, [2]string{"use: pin-out }", "use: pin-out, zmk: zmk-a }"}, [2]string{"sessions: 2", "sessions: 2\n  key_overlap: 5m\n  key_changes: 60"})
	path := site.config()
	got := command(t, "hsm", "status", "--config", path)
	if got.code != 0 || !strings.Contains(got.out, "key change") || !strings.Contains(got.out, "zmk-a") || !strings.Contains(got.out, "VERSION") {
		t.Errorf("got %+v", got)
	}
	cfg, err := loadConfig(path)
	if err != nil {
		t.Fatal(err)
	}
	if room := cfg.HSM.forHSM(); room.Overlap != 5*time.Minute || room.KeyChanges != 60 || room.Keys[1].ZMK != "zmk-a" || room.Keys[0].ZMK != "" {
		t.Errorf("got %+v", room)
	}
}

func TestKeysAreImportedFromComponents(t *testing.T) {
	site := newSite(t)
	path := site.config()
	for _, use := range hsm.Uses {
		t.Run(string(use), func(t *testing.T) {
			size := 32
			if use == hsm.PINIn || use == hsm.PINOut || use == hsm.ZMK || use == hsm.KBPK || use == hsm.MACX919 {
				size = 16
			}
			kcvOf := func(value []byte) string {
				if use == hsm.MACCMAC || use == hsm.BDK { // of AES: nothing else is asked for
					return hsmtest.AESKCV(value)
				}
				return hsmtest.KCV(use, value)
			}
			var files []string
			whole := make([]byte, size)
			for custodian := range 2 {
				component := make([]byte, size)
				for i := range component {
					component[i] = byte(1 + custodian*37 + i*(11+custodian*6)) // any two that differ
					whole[i] ^= component[i]
				}
				files = append(files, componentFile(t, hex.EncodeToString(component), kcvOf(component)))
			}
			label := "imported-" + string(use)
			kcv := kcvOf(whole)
			load := func(kcv string) result {
				return command(t, "keys", "import", "--config", path, "--label", label, "--use", string(use), "--component", files[0], "--component", files[1],
					"--custodian", "alice", "--custodian", "bob", "--kcv", kcv, "--output", "json")
			}
			if got := load("000000"); got.code != 1 || !strings.Contains(got.err, "has the check value") {
				t.Errorf("another KCV: got %+v", got)
			}
			if got := command(t, "keys", "list", "--config", path); strings.Contains(got.out, label) {
				t.Errorf("a refused key was made:\n%s", got.out)
			}
			got := load(strings.ToLower(kcv))
			var key hsm.KeyInfo
			if err := json.Unmarshal([]byte(got.out), &key); err != nil || got.code != 0 || key.KCV != kcv || key.Use != use {
				t.Errorf("got %+v, %v, want the KCV %s", got, err, kcv)
			}
		})
	}
}

// signOn is the 0800 of both dialects with DE 7, 11 and 70.
const (
	signOnBinary = "08008220000000000000040000000000000011231200590000420001"
	signOnASCII  = "303830303832323030303030303030303030303030343030303030303030303030303030313132333132303035393030303034323030" + "31"
)

func TestDecode(t *testing.T) {
	// An 0100 with PAN and PIN block.
	request := authorization("000001", testPIN)
	body, err := codecOf(t, "iso87-binary").Encode(request)
	if err != nil {
		t.Fatal(err)
	}
	message := hex.EncodeToString(body)
	frame, err := codecOf(t, "iso87-binary").EncodeFrame(request)
	if err != nil {
		t.Fatal(err)
	}

	t.Run("a masked table", func(t *testing.T) {
		got := command(t, "decode", "--dialect", "iso87-binary", message)
		want := `iso87-binary encodes back to the same bytes
DE  NAME               VALUE
0   mti                0100
2   pan                411111******1111
3   processing_code    000000
4   amount             000000001000
7   transmission_time  1123120059
11  stan               000001
37  rrn                000000000001
41  terminal           TERM0001
42  merchant           MERCHANT0000001
49  currency           978
52  pin_data           **** (8)
`
		if got != (result{0, want, ""}) {
			t.Errorf("got %+v\nwant %s", got, want)
		}
	})
	t.Run("in clear, with a warning", func(t *testing.T) {
		got := command(t, "decode", "--dialect", "iso87-binary", "--unsafe", message)
		if got.code != 0 || !strings.Contains(got.out, testPAN) || !strings.Contains(got.err, "for test data only") {
			t.Errorf("got %+v", got)
		}
	})
	t.Run("without a dialect", func(t *testing.T) {
		got := command(t, "decode", "--check", signOnBinary)
		for _, want := range []string{"iso87-ascii cannot read it: MTI is not four digits\n", `iso87-binary encodes back to the same bytes
DE  NAME                VALUE
0   mti                 0800
7   transmission_time   1123120059
11  stan                000042
70  network_management  001
`} {
			if got.code != 0 || got.err != "" || !strings.Contains(got.out, want) {
				t.Errorf("got %+v\nwant %s", got, want)
			}
		}
	})
	t.Run("as JSON", func(t *testing.T) {
		got := command(t, "decode", "--dialect", "iso87-binary", "--output", "json", message)
		var one decoded
		if err := json.Unmarshal([]byte(got.out), &one); err != nil || got.code != 0 || !one.RoundTrips || one.MTI != "0100" || len(one.Elements) != 10 || strings.Contains(got.out, testPAN) {
			t.Errorf("got %+v, %v", got, err)
		}
		var both []decoded
		if got = command(t, "decode", "--output", "json", signOnASCII); json.Unmarshal([]byte(got.out), &both) != nil || len(both) != len(specs.Names()) || got.code != 0 {
			t.Errorf("got %+v", got)
		}
	})
	t.Run("with its frame, from a file", func(t *testing.T) {
		path := written(t, hex.EncodeToString(frame[:10])+"\n "+hex.EncodeToString(frame[10:])+"\n")
		if got := command(t, "decode", "--dialect", "iso87-binary", "--frame", "--check", path); got.code != 0 {
			t.Errorf("got %+v", got)
		}
		if got := command(t, "decode", "--dialect", "iso87-binary", "--check", path); got.code != 1 {
			t.Errorf("without --frame: got %+v", got)
		}
	})
	t.Run("from standard input", func(t *testing.T) {
		var out bytes.Buffer
		c := &cli{in: strings.NewReader(signOnBinary + "\n"), out: &out, err: io.Discard, output: "text"}
		if err := c.decode(decoding{dialect: "iso87-binary", check: true}, "-"); err != nil || !strings.Contains(out.String(), "000042") {
			t.Errorf("got %v, %s", err, &out)
		}
	})
	t.Run("a broken one shows what stood before the fault", func(t *testing.T) {
		got := command(t, "decode", "--dialect", "iso87-binary", message[:len(message)-2])
		if got.code != 1 || !strings.Contains(got.err, "DE 52") || !strings.Contains(got.out, "MERCHANT0000001") || strings.Contains(got.out+got.err, testPAN) {
			t.Errorf("got %+v", got)
		}
	})
}

func TestWhatIsNoDialectIsNotQuoted(t *testing.T) {
	for name, text := range map[string]string{
		"a password file":    "root:x:0:0:s3cret:/root:/bin/sh\ndaemon:x:1:1:daemon:/:/bin/false\n",
		"backquotes":         "s3`cr`et\n",
		"a list":             "- s3cret\n- b\n",
		"a value in its way": "fields: s3cret\n",
	} {
		t.Run(name, func(t *testing.T) {
			path := written(t, text)
			for _, args := range [][]string{{"dialect", "lint", path}, {"dialect", "show", path}, {"decode", "--dialect", path, signOnBinary}} {
				got := command(t, args...)
				// The path is the caller's own word, and its random digits are no part of what is looked for.
				told := strings.ReplaceAll(got.err, path, "")
				if got.code != 1 || got.out != "" || strings.Count(told, "\n") != 1 || !strings.Contains(told, "reading: line 1: does not have the form") ||
					strings.Contains(told, "s3") || strings.Contains(told, "root:") {
					t.Errorf("%v: got %+v", args, got)
				}
			}
		})
	}
}

func TestHelpTellsWhatAConfigIsFor(t *testing.T) {
	for words, reads := range map[string]bool{"decode": false, "version": false, "dialect lint": false, "dialect show": false, "dialect diff": false, "dialect explain": false, "config check": true, "serve": true} {
		if got := command(t, append(strings.Fields(words), "--help")...); got.code != 0 || strings.Contains(got.out, "--config string") != reads ||
			!strings.Contains(got.out, "--output string") {
			t.Errorf("%s: got %+v", words, got)
		}
	}
	if got := command(t, "config", "check", "--help"); !strings.Contains(got.out, "no other file and at no token") {
		t.Errorf("got %+v", got)
	}
}

func TestVersion(t *testing.T) {
	if got := command(t, "version"); got.code != 0 || !strings.HasPrefix(got.out, "acquirerd ") || strings.Count(got.out, "\n") != 1 {
		t.Errorf("got %+v", got)
	}
	var b build
	if got := command(t, "version", "--output", "json"); json.Unmarshal([]byte(got.out), &b) != nil || b.Go == "" {
		t.Errorf("got %+v", got)
	}
}

// ends are the names of parts that have ended, in order.
type ends struct {
	mu    sync.Mutex
	names []string
}

func (e *ends) add(name string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.names = append(e.names, name)
}

func (e *ends) are(names ...string) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return slices.Equal(e.names, names)
}

// partsOf makes a daemon of parts that note their ends, for the order of a stop.
func partsOf(ended *ends, names ...string) *daemon {
	d := newDaemon(&Config{Shutdown: ShutdownConfig{Grace: time.Minute}}, slog.New(slog.DiscardHandler))
	for _, name := range names {
		d.start(name, func(ctx context.Context) error {
			<-ctx.Done()
			ended.add(name)
			return nil
		})
	}
	return d
}

func TestAStopEndsTheLastBegunFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var ended ends
		d := partsOf(&ended, "journal", "links", "doors")
		ctx, stop := context.WithCancel(t.Context())
		stop()
		if err := d.untilStopped(ctx); err != nil || !ended.are("doors", "links", "journal") {
			t.Errorf("got %v, %v", ended.names, err)
		}
	})
}

func TestAStopNamesWhatDoesNotEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var ended ends
		d := partsOf(&ended, "journal")
		release := make(chan struct{})
		d.start("stubborn", func(context.Context) error { <-release; return nil })
		ctx, stop := context.WithCancel(t.Context())
		stop()
		began := time.Now()
		err := d.untilStopped(ctx)
		if err == nil || !strings.Contains(err.Error(), "stubborn did not end within 1m0s") {
			t.Errorf("got %v", err)
		}
		if took := time.Since(began); took != time.Minute+fatalGrace {
			t.Errorf("took %v", took)
		}
		close(release)
	})
}

func TestAFatalFaultStopsAtOnceAndDrainsNothing(t *testing.T) {
	full := errors.New("disk full")
	for name, stopping := range map[string]bool{"while it serves": false, "while it drains": true} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var ended ends
				d := partsOf(&ended, "HSM")
				fail, drained := make(chan struct{}), make(chan struct{})
				d.start("journal", func(context.Context) error { <-fail; return full })
				d.teardown.add("transactions in flight", nil, func() error { <-drained; return nil }) // for ever
				ctx, stop := context.WithCancel(t.Context())
				defer stop()
				result := make(chan error, 1)
				go func() { result <- d.untilStopped(ctx) }()
				synctest.Wait()
				if stopping {
					stop()
					synctest.Wait()
				}
				began := time.Now()
				close(fail)
				if err := <-result; !errors.Is(err, full) || !strings.Contains(err.Error(), "running journal") {
					t.Errorf("got %v", err)
				}
				if took := time.Since(began); took > fatalGrace {
					t.Errorf("took %v", took)
				}
				if !ended.are("HSM") {
					t.Error("the HSM was not asked to end")
				}
				close(drained)
			})
		})
	}
}

func TestHelpAboutWhatIsNotThereIsAFault(t *testing.T) {
	if got := command(t, "help", "bogus"); got != (result{exitUsage, "", "acquirerd: help: unknown command \"bogus\" (see acquirerd --help)\n"}) {
		t.Errorf("got %+v", got)
	}
	if got := command(t, "help", "keys", "import"); got.code != 0 || !strings.Contains(got.out, "--component") {
		t.Errorf("got %+v", got)
	}
}

func TestAnOddNumberOfDigitsIsNamed(t *testing.T) {
	for source, want := range map[string]string{"08003": "decode: the number of hexadecimal digits is odd", "": "decode: no message was given",
		written(t, "0800 3\n"): "reading message: the number of its hexadecimal digits is odd"} {
		if got := command(t, "decode", source); got.code == 0 || got.out != "" || !strings.Contains(got.err, want) {
			t.Errorf("%q: got %+v", source, got)
		}
	}
}
