package acquirerd_test

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"flag"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"acquirerd/card"
	"acquirerd/messages"
	"acquirerd/simulator"
)

var kills = flag.Int("kills", 6, "how often the kill test kills the daemon")

// buildDaemon builds the real binary, with the race detector, once for all tests.
var buildDaemon = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "acquirerd-test-")
	if err != nil {
		return "", err
	}
	binary := filepath.Join(dir, "acquirerd")
	if out, err := exec.Command("go", "build", "-race", "-o", binary, "./cmd/acquirerd").CombinedOutput(); err != nil {
		return "", fmt.Errorf("%w: %s", err, out)
	}
	return binary, nil
})

func TestMain(m *testing.M) {
	flag.Parse()
	code := m.Run()
	if built != "" {
		_ = os.RemoveAll(filepath.Dir(built))
	}
	os.Exit(code)
}

var built string // the binary, once a test has asked for it

func daemon(t *testing.T) string {
	t.Helper()
	if _, err := exec.LookPath("softhsm2-util"); err != nil {
		if os.Getenv("CI") != "" {
			t.Fatal("SoftHSM is not installed: make deps installs it")
		}
		t.Skip("SoftHSM is not installed: make deps installs it")
	}
	binary, err := buildDaemon()
	if err != nil {
		t.Fatal(err)
	}
	built = binary
	return binary
}

// TestKill is a short make chaos: the real daemon under load, its disk filled once, killed with SIGKILL at random moments, with a bad network
// and a processor that is restarted; and the three ledgers compared.
func TestKill(t *testing.T) {
	result, err := simulator.Chaos(t.Context(), simulator.ChaosConfig{Dir: filepath.Join(t.TempDir(), "stage"), Daemon: daemon(t), Kills: *kills,
		Rate: 300, Seed: uint64(time.Now().UnixNano()), Report: lines{t}})
	if err != nil {
		t.Fatal(err)
	}
	text, err := json.Marshal(result)
	t.Logf("%s %v", text, err)
	if result.Mismatches > 0 {
		t.Errorf("%d mismatches", result.Mismatches)
	}
	if result.Approved == 0 || result.Declined == 0 || result.Unknown == 0 || result.Reversed == 0 || result.Unanswered == 0 {
		t.Error("the load did not meet what it is for")
	}
	if result.Kills != *kills || result.Cuts == 0 || result.ProcessorRestarts == 0 || result.DiskFills != 1 {
		t.Error("the chaos did not do what it is for")
	}
}

// lines writes to the test's log.
type lines struct{ t *testing.T }

func (l lines) Write(p []byte) (int, error) {
	l.t.Log(strings.TrimSpace(string(p)))
	return len(p), nil
}

// TestNothingThatIsWrittenHoldsCardData sends cards, tracks and PINs through the real daemon, kills it, and looks for them in all that
// it has written.
func TestNothingThatIsWrittenHoldsCardData(t *testing.T) {
	secrets := &secrets{seen: map[string]string{}}
	cast, err := simulator.NewCast(t.Context(), simulator.CastConfig{Stage: simulator.StageConfig{Dir: filepath.Join(t.TempDir(), "stage"),
		Daemon: daemon(t), ReplyTimeout: time.Second, RetryMin: 100 * time.Millisecond, RetryMax: time.Second, InFlight: 64},
		Processor: simulator.ProcessorConfig{Trace: secrets.collect}, Upstream: simulator.UpstreamConfig{Trace: secrets.collect}})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := cast.Close(); err != nil {
			t.Error(err)
		}
	}()
	ctx, stage := t.Context(), cast.Stage
	// A terminal's Ctrl-C goes to a whole process group. The daemon's stage stops it; a second signal would cut that short.
	if group, err := syscall.Getpgid(stage.PID()); err != nil || group == syscall.Getpgrp() {
		t.Errorf("the daemon is in the group %d of its stage, %v", group, err)
	}

	if limits, err := os.ReadFile(fmt.Sprintf("/proc/%d/limits", stage.PID())); err != nil || !regexp.MustCompile(`Max core file size +0 +0 `).Match(limits) {
		t.Errorf("the daemon may leave a core file: %s, %v", limits, err)
	}

	var asking sync.WaitGroup
	// Approvals, a decline, a silence whose reversal opens the PAN again, a dropped link, a garbled answer; by DE 2 and by track 2.
	// One amount after the other, the dropped link last: without a link nothing would reach the processor.
	for i, amount := range []int64{1000, 9051, 9200, 9401, 9000, 9300} {
		for _, c := range simulator.TestCards() {
			if c.Effects != "" || !c.PAN.HasPrefix("4") && !c.PAN.HasPrefix("5") || c.PIN.IsZero() {
				continue
			}
			track, err := card.ParseTrack2(c.PAN.Reveal() + "=2912201987654321")
			if err != nil {
				t.Fatal(err)
			}
			request := simulator.Request{PAN: c.PAN, PIN: c.PIN, Amount: amount, Track2: track, Chip: []byte("\x57\x11" + c.PAN.Reveal())}
			if i%2 == 1 {
				request.PAN = card.PAN{}
			}
			asking.Go(func() {
				if _, err := cast.Upstream.Do(ctx, request); err != nil {
					t.Error(err)
				}
			})
		}
		asking.Wait()
	}
	raw, err := net.Dial("tcp", stage.Upstream)
	if err != nil {
		t.Fatal(err)
	}
	_, _ = raw.Write([]byte("\x00\x20\x01\x00\x40\x00\x00\x00\x00\x00\x00\x00\x16\x41\x11\x11\x11\x11\x11\x11\x1a4111111111")) // a PAN with a wrong digit
	_ = raw.Close()

	written := map[string][]byte{}
	for _, page := range []string{"/metrics", "/links", "/health/ready"} {
		body, err := stage.Get(ctx, page)
		if err != nil {
			t.Fatal(err)
		}
		written[page] = body
	}
	if err := stage.Kill(); err != nil { // so that the write-ahead log stays as it is
		t.Fatal(err)
	}
	for _, command := range []string{"journal list", "journal owed", "journal list --output json", "journal owed --output json", "config show", "keys list", "hsm status"} {
		out, err := stage.Command(ctx, strings.Fields(command)...)
		if err != nil {
			t.Fatal(err)
		}
		written[command] = out
	}
	for _, name := range []string{"acquirerd.log", "journal.db", "journal.db-wal", "journal.db-shm", "acquirerd.yaml"} {
		content, err := os.ReadFile(filepath.Join(stage.Dir, name))
		if err != nil {
			t.Fatal(err)
		}
		written[name] = content
	}
	for _, zone := range []string{"zpk-pos.key", "zpk-processor-a.key", "zpk-pos.component-1", "zpk-pos.component-2"} {
		content, err := os.ReadFile(filepath.Join(stage.Dir, zone))
		if err != nil {
			t.Fatal(err)
		}
		value, err := hex.DecodeString(strings.Fields(string(content))[0])
		if err != nil {
			t.Fatal(err)
		}
		secrets.add("key "+zone, string(value))
	}
	if len(secrets.seen) < 40 {
		t.Fatalf("only %d secrets passed", len(secrets.seen))
	}
	for where, content := range written {
		for form, name := range secrets.forms() {
			if bytes.Contains(content, []byte(form)) {
				t.Errorf("%s holds %s", where, name)
			}
		}
	}
	if !bytes.Contains(written["acquirerd.log"], []byte("411111******1111")) || len(written["journal.db-wal"]) == 0 {
		t.Error("the log has no masked PAN, or there is no write-ahead log: the test looked at nothing")
	}
}

// secrets collects what must not be found, by value.
type secrets struct {
	mu   sync.Mutex
	seen map[string]string
}

func (s *secrets) add(name, value string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.seen[value] = name
}

func (s *secrets) collect(e simulator.TraceEvent) {
	for element, name := range map[messages.Element]string{messages.PAN: "PAN", messages.Track2: "track 2", messages.PINData: "PIN block", messages.ChipData: "chip data"} {
		if value := e.Message.Reveal(element); value != "" {
			s.add(name, value)
		}
	}
}

// forms lists how a value may stand in a file: as it is, in hexadecimal of either case, in BCD on either side, in base64.
func (s *secrets) forms() map[string]string {
	s.mu.Lock()
	defer s.mu.Unlock()
	forms := map[string]string{}
	for value, name := range s.seen {
		forms[value] = name + " as it is"
		lower := hex.EncodeToString([]byte(value))
		forms[lower], forms[strings.ToUpper(lower)] = name+" in hexadecimal", name+" in hexadecimal"
		forms[base64.StdEncoding.EncodeToString([]byte(value))] = name + " in base64"
		digits := strings.NewReplacer("=", "d").Replace(value)
		for _, padded := range []string{digits, "0" + digits, digits + "0", digits + "f"} {
			if packed, err := hex.DecodeString(padded); err == nil {
				forms[string(packed)] = name + " in BCD"
			}
		}
	}
	return forms
}
