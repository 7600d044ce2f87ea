package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"

	"go.uber.org/goleak"

	"acquirerd/simulator"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var update = flag.Bool("update", false, "write the golden files anew")

// acquirersim runs the program and returns what it said.
func acquirersim(ctx context.Context, args ...string) (code int, stdout, stderr string) {
	var out, err safeBuffer
	code = run(ctx, args, &out, &err)
	return code, out.String(), err.String()
}

// A safeBuffer may be written by several goroutines.
type safeBuffer struct {
	mu     sync.Mutex
	buffer bytes.Buffer
}

func (b *safeBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buffer.Write(p)
}

func (b *safeBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buffer.String()
}

func TestHelpIsGolden(t *testing.T) {
	for _, command := range []string{"", "processor", "upstream", "bench", "keys", "demo", "chaos", "drain", "measure"} {
		t.Run("help "+command, func(t *testing.T) {
			args := []string{"--help"}
			name := "acquirersim"
			if command != "" {
				args, name = []string{command, "--help"}, command
			}
			code, out, stderr := acquirersim(t.Context(), args...)
			if code != exitOK || stderr != "" || !strings.Contains(out, "Examples:\n  acquirersim ") {
				t.Errorf("exit %d, %q\n%s", code, stderr, out)
			}
			path := filepath.Join("testdata", name+".help")
			if *update {
				if err := os.WriteFile(path, []byte(out), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if out != string(want) {
				t.Errorf("help is\n%s", out)
			}
		})
	}
}

func TestBadInputIsOneLine(t *testing.T) {
	dir := t.TempDir()
	file := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	badKey := file("bad.key", "0123456789ABCDEFFEDCBA98765432")
	badScript := file("bad.yaml", "- { card: 4111111111111111, amount: 4111111111111111x }\n")
	unknownKey := file("unknown.yaml", "- { cart: \"4111111111111111\" }\n")
	noStep := file("again.yaml", "- { name: b, again: a, card: \"4111111111111111\" }\n")
	empty := file("empty.yaml", "")
	nobody := "127.0.0.1:1"
	for _, c := range []struct {
		name string
		args []string
		code int
		says string
	}{
		{"an unknown command", []string{"replay"}, exitUsage, `unknown command "replay"`},
		{"an unknown flag", []string{"bench", "--speed", "1"}, exitUsage, "unknown flag: --speed"},
		{"an argument", []string{"keys", "x"}, exitUsage, "unknown command"},
		{"another output", []string{"keys", "--output", "xml"}, exitUsage, `"xml" is neither text nor json`},
		{"keys without a folder", []string{"keys"}, exitUsage, "--out is missing"},
		{"a zone that is a path", []string{"keys", "--out", dir, "--zone", "a/b"}, exitFault, "not a zone's name"},
		{"a dialect", []string{"processor", "--dialect", "iso99"}, exitUsage, "no such dialect"},
		{"a rule", []string{"processor", "--rule", "amount=1", "--rule", "explode"}, exitUsage, "--rule 2: reading rule: explode is not a word of rules"},
		{"a rule with a card", []string{"processor", "--rule", "card=411111111111111x"}, exitUsage, "card has a value that it cannot have"},
		{"a probability", []string{"processor", "--fault-drop", "2"}, exitUsage, "probability of 2"},
		{"a key file that is not there", []string{"processor", "--zpk-file", filepath.Join(dir, "none")}, exitUsage, "no such file"},
		{"a key that is none", []string{"processor", "--zpk-file", badKey}, exitUsage, "key is not 32 hexadecimal digits"},
		{"a device without its number", []string{"upstream", "--connect", nobody, "--echo", "--bdk-file", badKey}, exitUsage, "--bdk-file and --ksn belong together"},
		{"a number of no device", []string{"upstream", "--connect", nobody, "--echo", "--bdk-file", badKey, "--ksn", "FFFF"}, exitUsage, "--ksn: key serial number is not"},
		{"a device's key that is none", []string{"upstream", "--connect", nobody, "--echo", "--bdk-file", badKey, "--ksn", "FFFF9876543210E00001"}, exitUsage, "base derivation key is not one"},
		{"an address to listen on", []string{"processor", "--listen", "127.0.0.1:0", "--listen", "nowhere:x"}, exitFault, "listen"},
		{"half of a certificate", []string{"processor", "--tls-cert", badKey}, exitUsage, "belong together"},
		{"a certificate that is none", []string{"upstream", "--connect", nobody, "--echo", "--tls-cert", badKey, "--tls-key", badKey}, exitUsage, "--tls-cert"},
		{"authorities that are none", []string{"processor", "--tls-ca", badKey}, exitUsage, "--tls-ca: it holds no certificate"},
		{"authorities that are not there", []string{"processor", "--tls-ca", filepath.Join(dir, "none")}, exitUsage, "--tls-ca"},
		{"a listener without a certificate", []string{"processor", "--tls-name", "x"}, exitUsage, "who listens must show one"},
		{"no connections to dial", []string{"processor", "--dial", nobody, "--dial-connections", "-1"}, exitUsage, "dialling needs"},
		{"a new key that is none", []string{"processor", "--new-key", "0123456789ABCDEFFEDCBA98765432"}, exitUsage, "--new-key is not 38 hexadecimal digits"},
		{"a new key where the dialect has none", []string{"processor", "--dialect", "visa-like", "--new-key", "01"}, exitUsage, "--new-key is not"},
		{"a rule that the dialect has not", []string{"processor", "--rule", "reject"}, exitUsage, "no reject header"},
		{"a demand that is none", []string{"processor", "--rule", "demand=money"}, exitUsage, "demand has a value that it cannot have"},
		{"an address for the ledger", []string{"processor", "--listen", "127.0.0.1:0", "--ledger-listen", "nowhere:x"}, exitFault, "listen"},
		{"nothing to ask", []string{"upstream", "--connect", nobody}, exitUsage, "--script or --echo is missing"},
		{"nobody to ask", []string{"upstream", "--card", "4111111111111111"}, exitUsage, "--connect is missing"},
		{"a short card", []string{"upstream", "--connect", nobody, "--card", "41111111"}, exitUsage, "card: PAN is not 12 to 19 digits"},
		{"a track", []string{"upstream", "--connect", nobody, "--track2", "4111111111111111"}, exitUsage, "track2: track 2 is not"},
		{"an expiry", []string{"upstream", "--connect", nobody, "--card", "4111111111111111", "--expiry", "1"}, exitUsage, "expiry is not YYMM"},
		{"a PIN", []string{"upstream", "--connect", nobody, "--card", "4111111111111111", "--pin", "99x99"}, exitUsage, "PIN is not 4 to 12 digits"},
		{"chip data", []string{"upstream", "--connect", nobody, "--card", "4111111111111111", "--chip", "9x"}, exitUsage, "chip: it is not hexadecimal digits"},
		{"a card in the place of an amount", []string{"upstream", "--connect", nobody, "--amount", "4111111111111111x"}, exitUsage, "invalid argument"},
		{"a script and a card", []string{"upstream", "--connect", nobody, "--card", "4111111111111111", "--script", badScript}, exitUsage, "exclude each other"},
		{"a script that is not there", []string{"upstream", "--connect", nobody, "--script", filepath.Join(dir, "none")}, exitUsage, "no such file"},
		{"a script that does not fit", []string{"upstream", "--connect", nobody, "--script", badScript}, exitUsage, "line 1"},
		{"a script with an unknown key", []string{"upstream", "--connect", nobody, "--script", unknownKey}, exitUsage, "field cart not found"},
		{"a script that repeats nothing", []string{"upstream", "--connect", nobody, "--script", noStep}, exitUsage, `no earlier request "a"`},
		{"an empty script", []string{"upstream", "--connect", nobody, "--script", empty}, exitUsage, "it has no requests"},
		{"a door that is closed", []string{"upstream", "--connect", nobody, "--card", "4111111111111111", "--connect-timeout", "100ms"}, exitFault, "refused"},
		{"a load without an end", []string{"bench", "--connect", nobody, "--duration", "0s"}, exitUsage, "needs an end"},
		{"a load of two kinds", []string{"bench", "--connect", nobody, "--rate", "1", "--in-flight", "1"}, exitUsage, "either a rate or"},
		{"a load without connections", []string{"bench", "--connect", nobody, "--connections", "0"}, exitUsage, "not positive"},
		{"PINs without a key", []string{"bench", "--connect", nobody, "--pin-share", "1"}, exitUsage, "PINs need"},
		{"a load on a closed door", []string{"bench", "--connect", nobody, "--connect-timeout", "100ms"}, exitFault, "refused"},
	} {
		t.Run(c.name, func(t *testing.T) {
			code, out, stderr := acquirersim(t.Context(), c.args...)
			if code != c.code || out != "" || !strings.Contains(stderr, c.says) {
				t.Errorf("exit %d, want %d with %q; got %q %q", code, c.code, c.says, out, stderr)
			}
			if strings.Count(stderr, "\n") != 1 || !strings.HasPrefix(stderr, "acquirersim: ") {
				t.Errorf("not one line: %q", stderr)
			}
			if strings.Contains(stderr, "4111111") || strings.Contains(stderr, "99x99") || strings.Contains(stderr, "0123456789") {
				t.Errorf("it quotes a secret: %q", stderr)
			}
		})
	}
}

// A running processor, with what it has said.
type processor struct {
	t       *testing.T
	address string
	ledger  string // URL, "" without --ledger-listen
	stop    func() (code int, stdout string)
}

// startProcessor runs the processor command until stop.
func startProcessor(t *testing.T, args ...string) *processor {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	var out safeBuffer
	reader, writer := io.Pipe()
	ended := make(chan int, 1)
	go func() {
		ended <- run(ctx, append([]string{"processor", "--listen", "127.0.0.1:0"}, args...), &out, writer)
		_ = writer.Close()
	}()
	p := &processor{t: t}
	p.stop = sync.OnceValues(func() (int, string) {
		cancel()
		return <-ended, out.String()
	})
	t.Cleanup(func() { p.stop() })
	address, url := regexp.MustCompile(`address=(\S+)`), regexp.MustCompile(`url=(\S+)`)
	wantsURL := strings.Contains(strings.Join(args, " "), "--ledger-listen")
	lines := bufio.NewScanner(reader)
	for lines.Scan() {
		if m := address.FindStringSubmatch(lines.Text()); m != nil {
			p.address = m[1]
		}
		if m := url.FindStringSubmatch(lines.Text()); m != nil {
			p.ledger = m[1]
		}
		if p.address != "" && (p.ledger != "" || !wantsURL) {
			break
		}
	}
	if p.address == "" {
		t.Fatalf("the processor does not listen, exit %d", <-ended)
	}
	drained := make(chan struct{})
	go func() { _, _ = io.Copy(io.Discard, reader); close(drained) }()
	t.Cleanup(func() { <-drained })
	t.Cleanup(func() { p.stop() })
	return p
}

func makeKeys(t *testing.T) (zpk, otherZPK string) {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "keys")
	code, out, stderr := acquirersim(t.Context(), "keys", "--out", dir, "--output", "json")
	if code != exitOK || stderr != "" {
		t.Fatalf("exit %d, %q", code, stderr)
	}
	var zones []simulator.Zone
	if err := json.Unmarshal([]byte(out), &zones); err != nil || len(zones) != 2 || zones[0].Name != "pos-switch" || len(zones[0].KCV) != 6 {
		t.Fatalf("%v, %s", err, out)
	}
	return zones[0].KeyFile, zones[1].KeyFile
}

func TestKeysAreWrittenOnce(t *testing.T) {
	dir := t.TempDir()
	code, out, _ := acquirersim(t.Context(), "keys", "--out", dir, "--zone", "a")
	if code != exitOK || !strings.HasPrefix(out, "a: KCV ") || strings.Count(out, "\n") != 1 {
		t.Errorf("exit %d, %s", code, out)
	}
	if text, err := os.ReadFile(filepath.Join(dir, "a.key")); err != nil || strings.Contains(out, strings.TrimSpace(string(text))) {
		t.Errorf("the key is printed, or not there: %v", err)
	}
	if code, _, stderr := acquirersim(t.Context(), "keys", "--out", dir, "--zone", "a"); code != exitFault || !strings.Contains(stderr, "exists") {
		t.Errorf("exit %d, %s", code, stderr)
	}
}

func TestAnUpstreamAsksAProcessor(t *testing.T) {
	zpk, otherZPK := makeKeys(t)
	ledgerFile := filepath.Join(t.TempDir(), "ledger.json")
	p := startProcessor(t, "--zpk-file", zpk, "--trace", "--ledger", ledgerFile, "--ledger-listen", "127.0.0.1:0", "--rule", "amount=777 decline=57")
	ask := func(args ...string) (int, string, string) {
		return acquirersim(t.Context(), append([]string{"upstream", "--connect", p.address, "--dialect", "iso87-ascii"}, args...)...)
	}
	for _, c := range []struct {
		name string
		args []string
		code int
		says string
	}{
		{"approved", []string{"--zpk-file", zpk, "--card", "4111111111111111", "--amount", "1250", "--pin", "1234", "--expect", "00"}, exitOK, "as expected"},
		{"by another key", []string{"--zpk-file", otherZPK, "--card", "4111111111111111", "--pin", "1234", "--expect", "55"}, exitOK, "as expected"},
		{"declined by a rule", []string{"--card", "4111111111111111", "--amount", "777", "--expect", "00"}, exitFault, "not as expected: 57, expected 00"},
		{"not answered", []string{"--card", "4111111111111111", "--amount", "9200", "--reply-timeout", "50ms", "--expect", "timeout"}, exitOK, "as expected"},
		{"by track 2 and chip", []string{"--track2", "5555555555554444=30121010000000000", "--chip", "9F26080000000000000000", "--expiry", "3012", "--mti", "0200"}, exitOK, ": 00 in"},
		{"an echo", []string{"--echo"}, exitOK, `"301"`},
		{"a PIN without a key", []string{"--card", "4111111111111111", "--pin", "1234"}, exitUsage, "a PIN needs"},
	} {
		t.Run(c.name, func(t *testing.T) {
			code, out, stderr := ask(c.args...)
			if code != c.code || !strings.Contains(out+stderr, c.says) {
				t.Errorf("exit %d\n%s%s", code, out, stderr)
			}
			if strings.Contains(out+stderr, "1111111111") || strings.Contains(out+stderr, "55555555") || strings.Contains(out, "9F2608") {
				t.Errorf("it prints a secret:\n%s%s", out, stderr)
			}
		})
	}

	response, err := http.Get(p.ledger)
	if err != nil {
		t.Fatal(err)
	}
	var live simulator.Snapshot
	err = json.NewDecoder(response.Body).Decode(&live)
	_ = response.Body.Close()
	http.DefaultClient.CloseIdleConnections()
	if err != nil || len(live.Holds) != 5 {
		t.Errorf("GET /ledger: %v, %+v", err, live)
	}

	code, out := p.stop()
	if code != exitOK || !strings.Contains(out, "requests 5: held 3, reversed 0, declined 2") || !strings.Contains(out, "link 1 received 0800") {
		t.Errorf("exit %d\n%s", code, out)
	}
	if strings.Contains(out, "1111111111") || strings.Contains(out, "55555555") {
		t.Error("the processor prints a card number")
	}
	text, err := os.ReadFile(ledgerFile)
	if err != nil {
		t.Fatal(err)
	}
	var ledger simulator.Snapshot
	if err := json.Unmarshal(text, &ledger); err != nil || ledger.Counts.MalformedPINBlocks != 1 || ledger.Counts.RightPINs != 1 {
		t.Errorf("%v, %+v", err, ledger.Counts)
	}
}

func TestAScriptIsPlayed(t *testing.T) {
	p := startProcessor(t, "--output", "json", "--trace")
	dir := t.TempDir()
	script, book := filepath.Join(dir, "script.yaml"), filepath.Join(dir, "book.json")
	if err := os.WriteFile(script, []byte(`
- { name: first, card: "4111111111111111", amount: 1250, currency: "840", expect: "00" }
- { name: the same, again: first, mti: "0101", card: "4111111111111111", amount: 1250, currency: "840", expect: "00" }
- { name: undone, again: first, mti: "0420", card: "4111111111111111", amount: 1250, currency: "840", expect: "00" }
- { card: "4000000000009995", amount: 100, expect: "00" }
`), 0o600); err != nil {
		t.Fatal(err)
	}
	code, out, stderr := acquirersim(t.Context(), "upstream", "--connect", p.address, "--dialect", "iso87-ascii", "--script", script, "--book", book, "--output", "json")
	if code != exitFault || !strings.Contains(stderr, "1 of 4 requests not as expected: request 4: 51, expected 00") {
		t.Errorf("exit %d, %s", code, stderr)
	}
	var results []stepResult
	if err := json.Unmarshal([]byte(out), &results); err != nil || len(results) != 4 || !results[2].OK || results[3].OK || results[3].Name != "request 4" {
		t.Errorf("%v\n%s", err, out)
	}
	var read simulator.BookSnapshot
	text, err := os.ReadFile(book)
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(text, &read); err != nil || len(read.Entries) != 4 {
		t.Errorf("%v, %+v", err, read)
	}
	code, out = p.stop()
	if code != exitOK {
		t.Errorf("exit %d", code)
	}
	// Lines of messages, then the ledger: all of it JSON.
	decoder := json.NewDecoder(strings.NewReader(out))
	var last json.RawMessage
	for decoder.More() {
		if err := decoder.Decode(&last); err != nil {
			t.Fatal(err)
		}
	}
	var ledger simulator.Snapshot
	if err := json.Unmarshal(last, &ledger); err != nil || ledger.Counts.Reversed != 1 || ledger.Counts.RepeatedRequests != 1 || ledger.Counts.Declined != 1 {
		t.Errorf("%v, %+v", err, ledger.Counts)
	}
}

func TestABenchMeasures(t *testing.T) {
	zpk, _ := makeKeys(t)
	p := startProcessor(t, "--zpk-file", zpk)
	code, out, stderr := acquirersim(t.Context(), "bench", "--connect", p.address, "--dialect", "iso87-ascii", "--zpk-file", zpk, "--in-flight", "8", "--count", "500",
		"--pin-share", "0.5", "--decline-share", "0.2", "--pid", strconv.Itoa(os.Getpid()), "--output", "json")
	if code != exitOK {
		t.Fatalf("exit %d, %s", code, stderr)
	}
	var result benchResult
	if err := json.Unmarshal([]byte(out), &result); err != nil {
		t.Fatal(err)
	}
	if result.Outcomes[simulator.Answered] != 500 || result.Codes["00"]+result.Codes["51"] != 500 || result.Latency.Max == 0 || result.Throughput == 0 || result.CPU == nil {
		t.Errorf("%+v", result)
	}
	code, out, stderr = acquirersim(t.Context(), "bench", "--connect", p.address, "--dialect", "iso87-ascii", "--count", "50", "--rate", "1000")
	if code != exitOK || !strings.Contains(out, "50 requests in") || !strings.Contains(out, "code 00 50") {
		t.Errorf("exit %d, %s%s", code, out, stderr)
	}
	code, _, stderr = acquirersim(t.Context(), "bench", "--connect", p.address, "--dialect", "iso87-ascii", "--count", "5", "--rate", "1000", "--silent-share", "1", "--reply-timeout", "20ms")
	if code != exitFault || !strings.Contains(stderr, "no request was answered") {
		t.Errorf("exit %d, %s", code, stderr)
	}
	code, _, stderr = acquirersim(t.Context(), "bench", "--connect", p.address, "--dialect", "iso87-ascii", "--count", "5", "--pid", "-1")
	if code != exitUsage || !strings.Contains(stderr, "reading CPU time") {
		t.Errorf("exit %d, %s", code, stderr)
	}
}

func TestALedgerThatCannotBeWrittenIsAFault(t *testing.T) {
	p := startProcessor(t, "--ledger", filepath.Join(t.TempDir(), "none", "ledger.json"))
	if code, out := p.stop(); code != exitFault || out != "" {
		t.Errorf("exit %d, %s", code, out)
	}
	full := startProcessor(t, "--output", "json")
	if code, out := full.stop(); code != exitOK || !json.Valid([]byte(out)) {
		t.Errorf("exit %d, %s", code, out)
	}
}
