package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"acquirerd/hsm/hsmtest"
	"acquirerd/journal"
	"acquirerd/messages"
	"acquirerd/specs"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	testPAN = "4111111111111111"
	testPIN = "1234"

	patience = 30 * time.Second // for what comes at once on a machine that is not overloaded
)

func codecOf(t *testing.T, name string) *messages.Codec {
	t.Helper()
	dialect, err := specs.Load(name)
	if err != nil {
		t.Fatal(err)
	}
	return messages.NewCodec(dialect)
}

// A processor is a card processor of one listener: it accepts sign-on and echo, and decide answers the rest.
type processor struct {
	address string
	codec   *messages.Codec
	decide  func(request *messages.Message) *messages.Message // nil: no answer
	follow  func(request *messages.Message) *messages.Message // of the dialogue: what it sends after its answer; nil: nothing
	answers chan *messages.Message                            // to what it has sent of its own accord of the dialogue; decide is given the others
}

func newProcessor(t *testing.T, decide func(*messages.Message) *messages.Message) *processor {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return newProcessorOn(t, listener, decide)
}

func newProcessorOn(t *testing.T, listener net.Listener, decide func(*messages.Message) *messages.Message) *processor {
	t.Helper()
	p := &processor{address: listener.Addr().String(), codec: codecOf(t, "iso87-ascii"), decide: decide, answers: make(chan *messages.Message, 64)}
	var serving sync.WaitGroup
	var mu sync.Mutex
	var open []net.Conn
	serving.Go(func() {
		for {
			link, err := listener.Accept()
			if err != nil {
				return
			}
			mu.Lock()
			open = append(open, link)
			mu.Unlock()
			serving.Go(func() { p.serve(t, link) })
		}
	})
	t.Cleanup(func() {
		_ = listener.Close()
		mu.Lock()
		for _, link := range open {
			_ = link.Close()
		}
		mu.Unlock()
		serving.Wait()
	})
	return p
}

func (p *processor) serve(t *testing.T, link net.Conn) {
	var answering sync.WaitGroup
	defer answering.Wait()
	var writing sync.Mutex
	for {
		body, err := p.codec.ReadFrame(link)
		if err != nil {
			return
		}
		request, err := p.codec.Decode(body)
		if err == nil {
			err = p.codec.Validate(request)
		}
		if err != nil {
			t.Errorf("the processor was sent: %v", err)
			return
		}
		if request.MTI.IsAnswer() && request.MTI.Class() == messages.Network {
			p.answers <- request
			continue
		}
		answering.Go(func() {
			sent := []*messages.Message{messages.NewAnswer(request, "00"), nil}
			if request.MTI.Class() != messages.Network {
				sent[0] = p.decide(request)
			} else if p.follow != nil {
				sent[1] = p.follow(request)
			}
			for _, m := range sent {
				if m == nil {
					return
				}
				frame, err := p.codec.EncodeFrame(m)
				if err != nil {
					t.Errorf("the processor cannot send %s: %v", m.MTI, err)
					return
				}
				writing.Lock()
				_, _ = link.Write(frame)
				writing.Unlock()
			}
		})
	}
}

// approveRightPIN declines with 55 what has not the test's PIN, and approves the rest.
func approveRightPIN(request *messages.Message) *messages.Message {
	code := "00"
	if block, err := request.PINBlock(); err != nil {
		code = "30"
	} else if !block.IsZero() && hsmtest.DecipherPIN(hsmtest.ProcessorZPK, request.PAN().Reveal(), block) != testPIN {
		code = "55"
	}
	answer := messages.NewAnswer(request, code)
	if code == "00" {
		answer.Set(messages.AuthorizationID, "A1B2C3")
	}
	return answer
}

// A site is what one daemon needs: its files and its token.
type site struct {
	t       *testing.T
	token   *hsmtest.Token
	journal string
	changes [][2]string // old and new text of the config
	links   string
	extra   string
}

func newSite(t *testing.T, processors ...*processor) *site {
	t.Helper()
	s := &site{t: t, token: hsmtest.Standard(t), journal: filepath.Join(t.TempDir(), "journal.db"), links: `"127.0.0.1:1"`}
	var links []string
	for _, p := range processors {
		links = append(links, fmt.Sprintf("%q", p.address))
	}
	if len(links) > 0 {
		s.links = strings.Join(links, ", ")
	}
	return s
}

// change replaces a text of the config, which must be there.
func (s *site) change(old, with string) { s.changes = append(s.changes, [2]string{old, with}) }

// config writes the config and returns its path.
func (s *site) config() string {
	s.t.Helper()
	var keys strings.Builder
	for _, key := range s.token.Keys {
		fmt.Fprintf(&keys, "    - { label: %s, kcv: %q, use: %s }\n", key.Label, key.KCV, key.Use)
	}
	text := fmt.Sprintf(`station: acq01
environment: test
journal: { path: %q }
hsm:
  module: %q
  module_arguments: %q
  token: %q
  pin_file: %q
  sessions: 2
  keys:
%s  seal_key: %s
  token_key: %s
upstreams:
  - { name: pos-switch, dialect: iso87-binary, listen: "127.0.0.1:0", pin_key: %s }
endpoints:
  - { name: processor-a, dialect: iso87-ascii, links: [%s], pin_key: %s, backoff_min: 10ms, backoff_max: 50ms }
routes:
  - { bins: ["4"], endpoint: processor-a }
operations: { listen: "127.0.0.1:0" }
`, s.journal, s.token.Module, s.token.Arguments, s.token.Label, s.token.PINFile(), keys.String(), hsmtest.SealKey, hsmtest.TokenKey, hsmtest.UpstreamKey,
		s.links, hsmtest.ProcessorKey)
	for _, change := range s.changes {
		if !strings.Contains(text, change[0]) {
			s.t.Fatalf("the config has no %q", change[0])
		}
		text = strings.Replace(text, change[0], change[1], 1)
	}
	path := filepath.Join(s.t.TempDir(), "acquirerd.yaml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		s.t.Fatal(err)
	}
	return path
}

func (s *site) create() {
	s.t.Helper()
	if err := journal.Create(s.journal, "acq01"); err != nil {
		s.t.Fatal(err)
	}
}

// A logbook is what a daemon writes to standard error, line by line.
type logbook struct {
	mu      sync.Mutex
	text    bytes.Buffer
	changed chan struct{} // closed at the next line
}

func newLogbook() *logbook { return &logbook{changed: make(chan struct{})} }

func (l *logbook) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	close(l.changed)
	l.changed = make(chan struct{})
	return l.text.Write(p)
}

func (l *logbook) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// await returns the first line with the message that fits.
func (l *logbook) await(t *testing.T, message string, fits func(line map[string]any) bool) map[string]any {
	t.Helper()
	over := time.After(patience)
	for {
		l.mu.Lock()
		text, changed := l.text.String(), l.changed
		l.mu.Unlock()
		for line := range strings.Lines(text) {
			var found map[string]any
			if json.Unmarshal([]byte(line), &found) == nil && found["msg"] == message && (fits == nil || fits(found)) {
				return found
			}
		}
		select {
		case <-changed:
		case <-over:
			t.Fatalf("no line %q in the log:\n%s", message, text)
		}
	}
}

// A running is a daemon in this process.
type running struct {
	t          *testing.T
	log        *logbook
	stop       context.CancelFunc
	ended      chan int
	config     string // its file
	operations string
	door       string
}

// start runs the daemon as its command does, and returns when it serves.
func (s *site) start() *running {
	s.t.Helper()
	ctx, stop := context.WithCancel(context.Background())
	path := s.config()
	r := &running{t: s.t, log: newLogbook(), stop: stop, ended: make(chan int, 1), config: path}
	go func() { r.ended <- run(ctx, []string{"serve", "--config", path}, io.Discard, r.log) }()
	s.t.Cleanup(func() {
		stop()
		if s.t.Failed() {
			s.t.Logf("log:\n%s", r.log)
		}
	})
	line := r.log.await(s.t, "serving", nil)
	r.operations, _ = line["operations"].(string)
	upstreams, _ := line["upstreams"].(map[string]any)
	r.door, _ = upstreams["pos-switch"].(string)
	return r
}

// inService waits until so many links are in service.
func (r *running) inService(links int) {
	r.t.Helper()
	seen := map[any]bool{}
	r.log.await(r.t, "link state", func(line map[string]any) bool {
		if line["to"] == "in-service" {
			seen[line["link"]] = true
		}
		return len(seen) == links
	})
}

// exit waits for the end and returns the exit code.
func (r *running) exit() int {
	r.t.Helper()
	select {
	case code := <-r.ended:
		return code
	case <-time.After(patience):
		r.t.Fatal("the daemon does not end")
		return -1
	}
}

// get asks the operations port.
func (r *running) get(path string) (int, string) {
	r.t.Helper()
	client := &http.Client{Timeout: patience, Transport: &http.Transport{DisableKeepAlives: true}}
	response, err := client.Get("http://" + r.operations + path)
	if err != nil {
		r.t.Fatal(err)
	}
	defer func() { _ = response.Body.Close() }()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		r.t.Fatal(err)
	}
	return response.StatusCode, string(body)
}

// An asker is an upstream's connection.
type asker struct {
	t     *testing.T
	conn  net.Conn
	codec *messages.Codec
}

func (r *running) dial() *asker {
	r.t.Helper()
	conn, err := net.Dial("tcp", r.door)
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { _ = conn.Close() })
	if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
		r.t.Fatal(err)
	}
	return &asker{r.t, conn, codecOf(r.t, "iso87-binary")}
}

func (a *asker) send(m *messages.Message) {
	a.t.Helper()
	frame, err := a.codec.EncodeFrame(m)
	if err != nil {
		a.t.Fatal(err)
	}
	if _, err := a.conn.Write(frame); err != nil {
		a.t.Fatal(err)
	}
}

func (a *asker) receive() *messages.Message {
	a.t.Helper()
	body, err := a.codec.ReadFrame(a.conn)
	if err != nil {
		a.t.Fatal(err)
	}
	m, err := a.codec.Decode(body)
	if err != nil {
		a.t.Fatal(err)
	}
	return m
}

func (a *asker) ask(m *messages.Message) *messages.Message {
	a.t.Helper()
	a.send(m)
	return a.receive()
}

// authorization is an 0100 with the PIN, "" for none.
func authorization(stan, pin string) *messages.Message {
	m := messages.New(messages.AuthorizationRequest)
	m.SetSensitive(messages.PAN, testPAN)
	m.Set(messages.ProcessingCode, "000000")
	m.Set(messages.Amount, "000000001000")
	m.Set(messages.TransmissionTime, "1123120059")
	m.Set(messages.STAN, stan)
	m.Set(messages.RRN, "000000"+stan)
	m.Set(messages.Terminal, "TERM0001")
	m.Set(messages.Merchant, "MERCHANT0000001")
	m.Set(messages.Currency, "978")
	if pin != "" {
		m.SetPINBlock(hsmtest.EncipherPIN(hsmtest.UpstreamZPK, testPAN, pin))
	}
	return m
}

func TestServeCarriesAuthorizations(t *testing.T) {
	processor := newProcessor(t, approveRightPIN)
	site := newSite(t, processor, processor)
	site.create()
	daemon := site.start()
	daemon.inService(2)
	upstream := daemon.dial()

	t.Run("an approval with a PIN", func(t *testing.T) {
		answer := upstream.ask(authorization("000001", testPIN))
		for element, want := range map[messages.Element]string{messages.ResponseCode: "00", messages.STAN: "000001",
			messages.RRN: "000000000001", messages.TransmissionTime: "1123120059", messages.AuthorizationID: "A1B2C3"} {
			if got := answer.Get(element); got != want {
				t.Errorf("%s: got %q, want %q", element.Name(), got, want)
			}
		}
	})
	t.Run("a wrong PIN", func(t *testing.T) {
		if got := upstream.ask(authorization("000002", "4321")).Get(messages.ResponseCode); got != "55" {
			t.Errorf("got %q, want 55", got)
		}
	})
	t.Run("a format error names its element", func(t *testing.T) {
		broken := authorization("000003", "")
		broken.Delete(messages.Terminal)
		answer := upstream.ask(broken)
		if code, element := answer.Get(messages.ResponseCode), answer.Get(messages.AdditionalResponse); code != "30" || !strings.HasPrefix(element, "041") {
			t.Errorf("got %q with DE 44 %q, want 30 with 041", code, element)
		}
	})
	t.Run("a card without a route", func(t *testing.T) {
		other := authorization("000004", "")
		other.SetSensitive(messages.PAN, "5555555555554444")
		if got := upstream.ask(other).Get(messages.ResponseCode); got != "92" {
			t.Errorf("got %q, want 92", got)
		}
	})
	t.Run("the log has a line for each, with the link that carried it", func(t *testing.T) {
		for outcome, carried := range map[string]bool{"approved": true, "declined": true, "refused": false} {
			line := daemon.log.await(t, "transaction", func(line map[string]any) bool { return line["outcome"] == outcome })
			if _, has := line["link"]; has != carried || line["pan"] == nil || line["elapsed_seconds"] == nil {
				t.Errorf("%s: got %v", outcome, line)
			}
		}
	})
	t.Run("the operations port tells", func(t *testing.T) {
		if code, body := daemon.get("/health/live"); code != 200 || strings.TrimSpace(body) != `{"status":"ok"}` {
			t.Errorf("live: got %d %s", code, body)
		}
		if code, body := daemon.get("/health/ready"); code != 200 || !strings.Contains(body, `{"name":"endpoint processor-a","status":"ok"}`) {
			t.Errorf("ready: got %d %s", code, body)
		}
		code, body := daemon.get("/links")
		var links []struct{ Endpoint, Address, State, Since string }
		if err := json.Unmarshal([]byte(body), &links); err != nil || code != 200 || len(links) != 2 ||
			links[0].Endpoint != "processor-a" || links[0].Address != processor.address || links[0].State != "in-service" || links[0].Since == "" {
			t.Errorf("links: got %d %s, %v", code, body, err)
		}
		_, body = daemon.get("/metrics")
		for _, want := range []string{`acquirerd_transactions_total{endpoint="processor-a",outcome="approved"} 1`, "go_goroutines", "process_open_fds"} {
			if !strings.Contains(body, want) {
				t.Errorf("metrics have no %s", want)
			}
		}
		if code, _ := daemon.get("/debug/pprof/"); code != 404 {
			t.Errorf("profiler: got %d", code)
		}
	})
	t.Run("the journal is read beside the daemon", func(t *testing.T) {
		var out, errs bytes.Buffer
		if code := run(t.Context(), []string{"journal", "list", "--config", site.config(), "--outcome", "approved"}, &out, &errs); code != 0 {
			t.Fatalf("exit %d: %s", code, &errs)
		}
		if got := out.String(); strings.Count(got, "\n") != 2 || !strings.Contains(got, "411111******1111") || strings.Contains(got, testPAN) {
			t.Errorf("got\n%s", got)
		}
	})

	daemon.stop()
	if code := daemon.exit(); code != 0 {
		t.Errorf("exit %d", code)
	}
	if text := daemon.log.String(); strings.Contains(text, testPAN) {
		t.Error("the log has a PAN")
	}
}

func TestReadinessFollowsTheLinks(t *testing.T) {
	processor := newProcessor(t, approveRightPIN)
	site := newSite(t) // no processor at all
	site.create()
	daemon := site.start()
	code, body := daemon.get("/health/ready")
	if want := `"checks":[{"name":"daemon","status":"ok"},{"name":"hsm","status":"ok"},{"name":"journal","status":"ok"},{"name":"endpoint processor-a","status":"failed"}]`; code != 503 || !strings.Contains(body, want) {
		t.Errorf("got %d %s, want 503 with %s", code, body, want)
	}
	if got := daemon.dial().ask(authorization("000001", testPIN)).Get(messages.ResponseCode); got != "91" {
		t.Errorf("without a link: got %q, want 91", got)
	}
	daemon.stop()
	if code := daemon.exit(); code != 0 {
		t.Errorf("exit %d", code)
	}

	site.links = fmt.Sprintf("%q", processor.address)
	daemon = site.start()
	daemon.inService(1)
	if code, body := daemon.get("/health/ready"); code != 200 {
		t.Errorf("got %d %s, want 200", code, body)
	}
	daemon.stop()
	if code := daemon.exit(); code != 0 {
		t.Errorf("exit %d", code)
	}
}

func TestAStopAnswersWhatIsInFlight(t *testing.T) {
	arrived, decide := make(chan struct{}), make(chan struct{})
	site := newSite(t, newProcessor(t, func(request *messages.Message) *messages.Message {
		close(arrived)
		<-decide
		return approveRightPIN(request)
	}))
	site.create()
	daemon := site.start()
	daemon.inService(1)
	upstream := daemon.dial()
	upstream.send(authorization("000001", testPIN))
	<-arrived

	daemon.stop()
	daemon.log.await(t, "stopping", nil)
	for began := time.Now(); ; {
		code, body := daemon.get("/health/ready")
		if code == 503 && strings.Contains(body, `{"name":"daemon","status":"draining"}`) {
			break
		}
		if time.Since(began) > patience {
			t.Fatalf("ready: got %d %s", code, body)
		}
	}
	close(decide)
	if got := upstream.receive().Get(messages.ResponseCode); got != "00" {
		t.Errorf("got %q, want 00", got)
	}
	if code := daemon.exit(); code != 0 {
		t.Errorf("exit %d", code)
	}
	if _, err := upstream.codec.ReadFrame(upstream.conn); !errors.Is(err, io.EOF) {
		t.Errorf("after the stop: got %v, want EOF", err)
	}
}

func TestTwoDaemonsServeInOneProcess(t *testing.T) {
	first := newSite(t, newProcessor(t, approveRightPIN))
	second := newSite(t, newProcessor(t, approveRightPIN))
	first.create()
	second.create()
	daemons := []*running{first.start(), second.start()}
	for _, daemon := range daemons {
		daemon.inService(1)
		if got := daemon.dial().ask(authorization("000001", testPIN)).Get(messages.ResponseCode); got != "00" {
			t.Errorf("got %q, want 00", got)
		}
	}
	for _, daemon := range daemons {
		daemon.stop()
		if code := daemon.exit(); code != 0 {
			t.Errorf("exit %d", code)
		}
	}
}

func TestAStartIsRefused(t *testing.T) {
	site := newSite(t)
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = taken.Close() }()
	upstreamKCV := site.token.Keys[0].KCV
	for _, c := range []struct {
		name      string
		old, with string
		create    bool
		want      string
	}{
		{"without a journal", "", "", false, "opening journal"},
		{"with the journal of another station", "station: acq01", "station: acq02", true, `belongs to station "acq01", not to "acq02"`},
		{"with a wrong KCV", upstreamKCV, "000000", true, hsmtest.UpstreamKey},
		{"without the user PIN's file", "token.pin", "other.pin", true, "other.pin"},
		{"with another token", site.token.Label, "nowhere", true, "nowhere"},
		{"with a port of an upstream that is in use", `listen: "127.0.0.1:0"`, fmt.Sprintf("listen: %q", taken.Addr()), true, "opening port of upstream pos-switch"},
		{"with an operations port that is in use", `operations: { listen: "127.0.0.1:0" }`, fmt.Sprintf("operations: { listen: %q }", taken.Addr()), true, "opening port of operations"},
		{"where PIN blocks would leave the token and may not", "sessions: 2", "sessions: 2\n  require_token_resident: true", true, "hsm.require_token_resident"},
	} {
		t.Run(c.name, func(t *testing.T) {
			local := *site
			local.t, local.journal, local.changes = t, filepath.Join(t.TempDir(), "journal.db"), nil
			if c.create {
				local.create()
			}
			if c.old != "" {
				local.change(c.old, c.with)
			}
			local.change("environment: test", "environment: test\nlog: { level: error }")
			log := newLogbook()
			code := run(t.Context(), []string{"serve", "--config", local.config()}, io.Discard, log)
			if got := log.String(); code != 1 || strings.Count(got, "\n") != 1 || !strings.HasPrefix(got, "acquirerd: ") || !strings.Contains(got, c.want) {
				t.Errorf("got exit %d with %q, want 1 with one line that has %q", code, got, c.want)
			}
		})
	}
}

func TestASecondDaemonOnTheSameJournalIsRefused(t *testing.T) {
	site := newSite(t)
	site.create()
	daemon := site.start()
	log := newLogbook()
	if code := run(t.Context(), []string{"serve", "--config", site.config()}, io.Discard, log); code != 1 || !strings.Contains(log.String(), "opening journal") {
		t.Errorf("got exit %d with %s", code, log)
	}
	if code, _ := daemon.get("/health/live"); code != 200 {
		t.Errorf("the first: got %d", code)
	}
	daemon.stop()
	if code := daemon.exit(); code != 0 {
		t.Errorf("exit %d", code)
	}
}
