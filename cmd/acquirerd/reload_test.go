package main

import (
	"bytes"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"acquirerd/conn"
	"acquirerd/hsm"
	"acquirerd/messages"
)

func TestAPlanNamesWhatDiffersAndWhatCannotChange(t *testing.T) {
	const endpoint = `  - name: processor-a
    dialect: iso87-ascii
    links: ["127.0.0.1:9001", "127.0.0.1:9002"]
    pin_key: zpk-proc-a
    reply_timeout: 10s
`
	const upstream = `- { name: pos-switch, dialect: iso87-binary, listen: "127.0.0.1:8583", pin_key: zpk-pos, in_flight: 128 }`
	second := strings.NewReplacer("processor-a", "processor-b", "9001", "9003", "9002", "9004").Replace(endpoint)
	for _, c := range []struct {
		name      string
		before    []string
		after     []string
		changed   []string
		refused   []string
		endpoints []string
		upstreams []string

		newEndpoints, newUpstreams, noUpstreams []string
	}{
		{name: "nothing"},
		{name: "another way to say the same", after: []string{`links: ["127.0.0.1:9001", "127.0.0.1:9002"]`, "links: [{ hosts: [\"127.0.0.1:9001\"], allow: [] }, \"127.0.0.1:9002\"]\n    fail_back: 1m"}},
		{name: "the order of endpoints", before: []string{endpoint, endpoint + second}, after: []string{endpoint, second + endpoint}},
		{name: "timers, limits, links and TLS", after: []string{`links: ["127.0.0.1:9001", "127.0.0.1:9002"]`,
			"links: [\"127.0.0.1:9001\"]\n    echo_misses: 4\n    in_flight: 300\n    tls: { ca_file: /a/b }", "in_flight: 128", "in_flight: 129, rate: 10, allow: [\"10.0.0.0/8\"]"},
			changed: []string{"upstreams[0].in_flight", "upstreams[0].rate", "upstreams[0].burst", "upstreams[0].allow", "endpoints[0].links",
				"endpoints[0].echo_misses", "endpoints[0].in_flight", "endpoints[0].link_in_flight", "endpoints[0].tls"},
			endpoints: []string{"processor-a"}, upstreams: []string{"pos-switch"}},
		{name: "a file of TLS", before: []string{"reply_timeout: 10s", "reply_timeout: 10s\n    tls: { ca_file: /a/b }"},
			after: []string{"reply_timeout: 10s", "reply_timeout: 10s\n    tls: { ca_file: /a/c }"}, changed: []string{"endpoints[0].tls.ca_file"}, endpoints: []string{"processor-a"}},
		{name: "one of two endpoints", before: []string{endpoint, second + endpoint}, after: []string{endpoint, second + strings.Replace(endpoint, "10s", "9s", 1)},
			changed: []string{"endpoints[1].reply_timeout"}, endpoints: []string{"processor-a"}},
		{name: "routes, log and grace", after: []string{`"51-55"`, `"51-54"`, "environment: test", "environment: test\nlog: { level: debug }\nshutdown: { grace: 70s }", "rate: 400", "rate: 4"},
			changed: []string{"routes", "reversals.rate", "log.level", "shutdown.grace"}},
		{name: "what needs a restart", after: []string{"station: acq01", "station: acq02", "queue: 2048", "queue: 2049", "sessions: 8", "sessions: 9", "127.0.0.1:9090", "127.0.0.1:9091",
			"dialect: iso87-ascii", "dialect: iso87-binary", "127.0.0.1:8583", "127.0.0.1:8584", "parallel: 16", "parallel: 15"},
			changed:   []string{"station", "journal.queue", "hsm.sessions", "upstreams[0].listen", "endpoints[0].dialect", "reversals.parallel", "operations.listen"},
			refused:   []string{"station", "journal.queue", "hsm.sessions", "upstreams[0].listen", "endpoints[0].dialect", "reversals.parallel", "operations.listen"},
			endpoints: []string{"processor-a"}, upstreams: []string{"pos-switch"}},
		{name: "an upstream for another, and an endpoint more", after: []string{endpoint, endpoint + second, "name: pos-switch", "name: web"},
			changed: []string{"upstreams[0]", "upstreams", "endpoints[1]"}, newUpstreams: []string{"web"}, noUpstreams: []string{"pos-switch"}, newEndpoints: []string{"processor-b"}},
		{name: "who comes and goes", before: []string{endpoint, endpoint + second}, after: []string{upstream, upstream + "\n  " + strings.NewReplacer("pos-switch", "web", "8583", "8584").Replace(upstream)},
			changed: []string{"upstreams[1]", "endpoints"}, refused: []string{"endpoints"}, newUpstreams: []string{"web"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			load := func(change []string) *Config {
				cfg, err := loadConfig(changed(t, change...))
				var faulty *configError
				if err != nil && (!errors.As(err, &faulty) || faulty.about("station", "journal", "routes") != nil) { // the files of TLS are not there
					t.Fatal(err)
				}
				return cfg
			}
			got := planReload(load(c.before), load(c.after))
			var refused []string
			for _, f := range got.refused {
				refused = append(refused, f.path)
				if !strings.Contains(f.text, "needs a restart") {
					t.Errorf("%s: %s", f.path, f.text)
				}
			}
			if !slices.Equal(got.changed, c.changed) || !slices.Equal(refused, c.refused) || !slices.Equal(got.endpoints, c.endpoints) || !slices.Equal(got.upstreams, c.upstreams) ||
				!slices.Equal(got.newEndpoints, c.newEndpoints) || !slices.Equal(got.newUpstreams, c.newUpstreams) || !slices.Equal(got.noUpstreams, c.noUpstreams) {
				t.Errorf("got %+v", got)
			}
		})
	}
}

func TestEveryReloadableKeyIsOne(t *testing.T) {
	for _, path := range reloadable {
		shape := reflect.TypeFor[Config]()
		for part := range strings.SplitSeq(path, ".") {
			name, inList := strings.CutSuffix(part, "[]")
			field, known := fieldOf(shape, name)
			if !known {
				t.Fatalf("%s is not a key", path)
			}
			if shape = field; inList {
				shape = field.Elem()
			}
		}
	}
}

// rewrite changes the config that a daemon was started with.
func (r *running) rewrite(oldnew ...string) {
	r.t.Helper()
	text, err := os.ReadFile(r.config)
	if err != nil {
		r.t.Fatal(err)
	}
	for i := 0; i < len(oldnew); i += 2 {
		if !bytes.Contains(text, []byte(oldnew[i])) {
			r.t.Fatalf("the config has no %q", oldnew[i])
		}
		text = bytes.Replace(text, []byte(oldnew[i]), []byte(oldnew[i+1]), 1)
	}
	if err := os.WriteFile(r.config, text, 0o600); err != nil {
		r.t.Fatal(err)
	}
}

// links lists the daemon's links.
func (r *running) links() []linkStatus {
	r.t.Helper()
	cfg, err := loadConfig(r.config)
	var faulty *configError
	if err != nil && !errors.As(err, &faulty) {
		r.t.Fatal(err)
	}
	var list []linkStatus
	if err := newRemote(cfg).ask(r.t.Context(), "GET", "/links", &list); err != nil {
		r.t.Fatal(err)
	}
	return list
}

// awaitLinks waits until the links are as they should be.
func (r *running) awaitLinks(what string, fits func([]linkStatus) bool) []linkStatus {
	r.t.Helper()
	for over := time.Now().Add(patience); ; {
		r.log.mu.Lock()
		changed := r.log.changed
		r.log.mu.Unlock()
		list := r.links()
		if fits(list) {
			return list
		}
		select {
		case <-changed: // each change of a link is a line in the log
		case <-time.After(time.Until(over)):
			r.t.Fatalf("%s: got %+v", what, list)
		}
	}
}

func inService(l linkStatus) bool { return l.State == conn.InService }

func TestAReloadChangesWhatDiffersAndTouchesNothingElse(t *testing.T) {
	first, second := newProcessor(t, approveRightPIN), newProcessor(t, approveRightPIN)
	site := newSite(t, first)
	site.create()
	daemon := site.start()
	daemon.inService(1)
	upstream := daemon.dial()
	if got := upstream.ask(authorization("000001", testPIN)).Get(messages.ResponseCode); got != "00" {
		t.Fatalf("got %q, want 00", got)
	}
	before := daemon.links()[0]

	if got := command(t, "config", "reload", "--config", daemon.config); got != (result{0, "nothing has changed\n", ""}) {
		t.Errorf("nothing: got %+v", got)
	}
	daemon.rewrite(`links: [`, fmt.Sprintf(`echo_misses: 4, links: [ %q, `, second.address), `bins: ["4"]`, `bins: ["5"]`, "dialect: iso87-binary,", "dialect: iso87-binary, in_flight: 7,")
	if got := command(t, "config", "reload", "--config", daemon.config); got != (result{0,
		"changed upstreams[0].in_flight\nchanged endpoints[0].links\nchanged endpoints[0].echo_misses\nchanged routes\n", ""}) {
		t.Errorf("changes: got %+v", got)
	}
	daemon.log.await(t, "changed by an operator", func(line map[string]any) bool {
		return line["command"] == "config reload" && fmt.Sprint(line["changed"]) != "[]"
	})
	list := daemon.awaitLinks("the new link", func(list []linkStatus) bool { return len(list) == 2 && inService(list[0]) && inService(list[1]) })
	if list[1].Address != first.address || list[1].Since != before.Since || list[1].Reconnects != 0 {
		t.Errorf("the old link was touched: it was %+v, and is %+v", before, list[1])
	}
	if got := upstream.ask(authorization("000002", testPIN)).Get(messages.ResponseCode); got != "92" {
		t.Errorf("on the same connection, by the new routes: got %q, want 92", got)
	}
	if got := metricOf(t, daemon, `acquirerd_config_reloads_total{result="applied"}`); got != "2" {
		t.Errorf("%s reloads were applied, want 2", got)
	}

	// By the signal, which every daemon of the process gets.
	daemon.rewrite(`bins: ["5"]`, `bins: ["4", "5"]`)
	if err := syscall.Kill(os.Getpid(), syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	daemon.log.await(t, "changed by an operator", func(line map[string]any) bool { return line["by"] == "signal" })
	if got := upstream.ask(authorization("000003", testPIN)).Get(messages.ResponseCode); got != "00" {
		t.Errorf("got %q, want 00", got)
	}
	daemon.stop()
	if code := daemon.exit(); code != 0 {
		t.Errorf("exit %d", code)
	}
	if got := command(t, "config", "reload", "--config", daemon.config); got.code != 1 || !strings.HasPrefix(got.err, "acquirerd: no daemon answers at "+site.journal+".sock") {
		t.Errorf("without a daemon: got %+v", got)
	}
}

// metricOf is the value of a series on the operations port.
func metricOf(t *testing.T, r *running, series string) string {
	t.Helper()
	_, body := r.get("/metrics")
	for line := range strings.Lines(body) {
		if value, found := strings.CutPrefix(line, series+" "); found {
			return strings.TrimSpace(value)
		}
	}
	return ""
}

func TestAReloadWithAFaultChangesNothing(t *testing.T) {
	site := newSite(t, newProcessor(t, approveRightPIN))
	site.change(`bins: ["4"]`, `bins: ["4"], currencies: ["978"]`)
	own := filepath.Join(t.TempDir(), "own.yaml")
	text, err := os.ReadFile("../../specs/iso87-binary.yaml")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(own, text, 0o600); err != nil {
		t.Fatal(err)
	}
	site.change("dialect: iso87-binary", "dialect: "+own)
	site.create()
	daemon := site.start()
	daemon.inService(1)
	good, err := os.ReadFile(daemon.config)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name   string
		change []string
		want   string
	}{
		{"a fault beside a change", []string{`bins: ["4"]`, `bins: ["5"]`, "sessions: 2", "sessions: many"}, "hsm.sessions: is not a whole number\n"},
		{"what needs a restart beside a change", []string{`bins: ["4"]`, `bins: ["5"]`, "sessions: 2", "sessions: 3", "backoff_max: 50ms", "backoff_max: 60ms"},
			"hsm.sessions: cannot change while the daemon serves: needs a restart\n"},
		{"no YAML", []string{"station: acq01", "station: ["}, ""},
		{"an upstream's key", []string{"pin_key: " + site.token.Keys[0].Label, "in_flight: 9"}, "upstreams[0].pin_key: cannot change while the daemon serves: needs a restart\n"},
	} {
		daemon.rewrite(c.change...)
		got := command(t, "config", "reload", "--config", daemon.config)
		if c.want == "" {
			// The daemon says the same, but the command needs the config itself to find it.
			if got.code != 1 || strings.Count(got.err, "\n") != 1 {
				t.Errorf("%s: got %+v", c.name, got)
			}
		} else if got != (result{1, "", c.want}) {
			t.Errorf("%s: got %+v, want %s", c.name, got, c.want)
		} else {
			key, _, _ := strings.Cut(c.want, ": ")
			daemon.log.await(t, "config is not reloaded: the old one stays in force", func(line map[string]any) bool { return line["key"] == key })
		}
		if err := os.WriteFile(daemon.config, good, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(own, append(text, "# another\n"...), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := command(t, "config", "reload", "--config", daemon.config); got.code != 1 ||
		got.err != "upstreams[0].dialect: the file has changed, and cannot change while the daemon serves: needs a restart\n" {
		t.Errorf("another dialect under the same name: got %+v", got)
	}
	if got := metricOf(t, daemon, "acquirerd_config_last_reload_successful"); got != "0" {
		t.Errorf("the last reload: got %q, want 0", got)
	}
	if got := metricOf(t, daemon, `acquirerd_config_reloads_total{result="refused"}`); got != "4" {
		t.Errorf("%s reloads were refused, want 4", got)
	}
	asker := daemon.dial()
	asker.codec = codecOf(t, own)
	if got := asker.ask(authorization("000001", testPIN)).Get(messages.ResponseCode); got != "00" {
		t.Errorf("the old routes are not in force: got %q", got)
	}
	daemon.stop()
	if code := daemon.exit(); code != 0 {
		t.Errorf("exit %d", code)
	}
}

// noted links note how they are changed.
type noted struct {
	links
	changes int
}

func (n *noted) Reconfigure(conn.Config) error {
	n.changes++
	return nil
}

func TestNothingIsChangedBeforeEverythingIsChecked(t *testing.T) {
	load := func(oldnew ...string) *Config {
		cfg, err := loadConfig(changed(t, oldnew...))
		if err != nil {
			t.Fatal(err)
		}
		return cfg
	}
	const endpoints = "endpoints:\n"
	const second = endpoints + "  - { name: processor-b, dialect: iso87-ascii, links: [\"127.0.0.1:9003\"], reply_timeout: 10s }\n"
	before := load(endpoints, second)
	after := load(endpoints, strings.Replace(second, "10s", "9s", 1), "reply_timeout: 10s", "reply_timeout: 8s")
	after.endpoint("processor-a").EchoMisses = 0 // which no config can say: the links refuse it
	d := newDaemon(before, slog.New(slog.DiscardHandler))
	var err error
	if d.vault, err = hsm.New(before.HSM.forHSM(), slog.New(slog.DiscardHandler), nil); err != nil { // not open: it knows no key's algorithm
		t.Fatal(err)
	}
	k, err := d.newKeeper()
	if err != nil {
		t.Fatal(err)
	}
	codec := codecOf(t, "iso87-ascii")
	a, b := &noted{}, &noted{}
	d.endpoints = []*endpoint{{links: b, name: "processor-b", codec: codec}, {links: a, name: "processor-a", codec: codec}}
	d.load = func() (*Config, error) { return after, nil }
	if got := k.reload(t.Context()); got.err == nil || !strings.Contains(got.err.Error(), "echo_misses") {
		t.Errorf("got %+v", got)
	}
	if a.changes+b.changes != 0 {
		t.Errorf("links were changed: %d and %d times", a.changes, b.changes)
	}
	if k.inForce != before {
		t.Error("the new config is in force")
	}
}

// Links and doors with TLS: certificates and authorities change, and neither a link nor a connection is dropped.
func TestAReloadTakesNewCertificatesWithoutDroppingAnything(t *testing.T) {
	ours, theirs := newAuthority(t, "ours"), newAuthority(t, "theirs")
	link, doorway := newFolder(t), newFolder(t)
	link.fill(ours, "acquirer", year, theirs)
	doorway.fill(ours, "door", year, theirs)
	processor := newProcessorTLS(t, approveRightPIN, &tls.Config{MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{theirs.shown("127.0.0.1")},
		ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: ours.pool()})
	site := newSite(t, processor)
	site.change("backoff_min: 10ms", fmt.Sprintf("tls: { ca_file: %q, cert_file: %q, key_file: %q }, backoff_min: 10ms",
		link.file("ca.pem"), link.file("ours.pem"), link.file("ours.key")))
	site.change(`listen: "127.0.0.1:0", pin_key`, fmt.Sprintf(`listen: "127.0.0.1:0", peers: ["pos.example"], tls: { client_ca_file: %q, cert_file: %q, key_file: %q }, pin_key`,
		doorway.file("ca.pem"), doorway.file("ours.pem"), doorway.file("ours.key")))
	site.create()
	daemon := site.start()
	daemon.inService(1)
	before := daemon.links()[0]
	dial := func(trusted *authority, shown tls.Certificate) (*asker, error) {
		over, err := tls.Dial("tcp", daemon.door, &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: trusted.pool(), ServerName: "door", Certificates: []tls.Certificate{shown}})
		if err != nil {
			return nil, err
		}
		t.Cleanup(func() { _ = over.Close() })
		return &asker{t, over, codecOf(t, "iso87-binary")}, over.SetDeadline(time.Now().Add(patience))
	}
	upstream, err := dial(ours, theirs.shown("pos.example"))
	if err != nil {
		t.Fatal(err)
	}
	if got := upstream.ask(authorization("000001", testPIN)).Get(messages.ResponseCode); got != "00" {
		t.Errorf("got %q, want 00", got)
	}

	others := newAuthority(t, "others")
	doorway.fill(others, "door", year, others)
	if got := command(t, "config", "reload", "--config", daemon.config); got.code != 0 {
		t.Fatalf("got %+v", got)
	}
	if got := upstream.ask(authorization("000002", testPIN)).Get(messages.ResponseCode); got != "00" {
		t.Errorf("on the old connection: got %q, want 00", got)
	}
	anew, err := dial(others, others.shown("pos.example"))
	if err != nil {
		t.Fatal(err)
	}
	if got := anew.ask(authorization("000003", testPIN)).Get(messages.ResponseCode); got != "00" {
		t.Errorf("on a new connection: got %q, want 00", got)
	}
	if _, err := dial(ours, theirs.shown("pos.example")); err == nil {
		t.Error("the door shows its old certificate")
	}

	link.text("ours.key", "broken")
	if got := command(t, "config", "reload", "--config", daemon.config); got.code != 1 || !strings.HasPrefix(got.err, "endpoints[0].tls.key_file: ") {
		t.Errorf("with a broken key: got %+v", got)
	}
	if after := daemon.links()[0]; after.Since != before.Since || !inService(after) {
		t.Errorf("the link was touched: it was %+v, and is %+v", before, after)
	}
	if got := metricOf(t, daemon, `acquirerd_certificate_not_after_timestamp_seconds{kind="own",name="upstream pos-switch"}`); got == "" {
		t.Error("the door's certificate has no end")
	}
	daemon.stop()
	if code := daemon.exit(); code != 0 {
		t.Errorf("exit %d", code)
	}
}

// newProcessorTLS is a processor whose links have TLS.
func newProcessorTLS(t *testing.T, decide func(*messages.Message) *messages.Message, cfg *tls.Config) *processor {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return newProcessorOn(t, tls.NewListener(listener, cfg), decide)
}

func TestUpstreamsComeAndGoAndEndpointsCome(t *testing.T) {
	first, second := newProcessor(t, approveRightPIN), newProcessor(t, approveRightPIN)
	site := newSite(t, first)
	site.create()
	daemon := site.start()
	daemon.inService(1)
	upstream := daemon.dial()
	const web = `  - { name: web, dialect: iso87-binary, listen: "127.0.0.1:0" }`
	other := fmt.Sprintf(`  - { name: processor-b, dialect: iso87-ascii, links: [%q] }`, second.address)
	const byWeb = `  - { bins: ["4"], upstreams: [web], endpoint: processor-b }`
	daemon.rewrite("endpoints:\n", web+"\nendpoints:\n"+other+"\n", "routes:\n", "routes:\n"+byWeb+"\n")
	if got := command(t, "config", "reload", "--config", daemon.config); got != (result{0, "changed upstreams[1]\nchanged endpoints[0]\nchanged routes\n", ""}) {
		t.Fatalf("got %+v", got)
	}
	daemon.awaitLinks("the new endpoint", func(list []linkStatus) bool {
		return slices.ContainsFunc(list, func(l linkStatus) bool { return l.Endpoint == "processor-b" && inService(l) })
	})
	if code, body := daemon.get("/health/ready"); code != 200 || !strings.Contains(body, `{"name":"endpoint processor-b","status":"ok"}`) {
		t.Errorf("ready: got %d %s", code, body)
	}
	opened := daemon.log.await(t, "door opened", func(line map[string]any) bool { return line["upstream"] == "web" })
	old := daemon.door
	daemon.door, _ = opened["address"].(string)
	anew := daemon.dial()
	if got := anew.ask(authorization("000001", "")).Get(messages.ResponseCode); got != "00" {
		t.Errorf("got %q, want 00", got)
	}
	daemon.log.await(t, "transaction", func(line map[string]any) bool {
		return line["endpoint"] == "processor-b" && line["outcome"] == "approved"
	})

	daemon.rewrite(other+"\n", "")
	if got := command(t, "config", "reload", "--config", daemon.config); got.code != 1 || !strings.Contains(got.err, "routes[0].endpoint") {
		t.Errorf("without the endpoint of a route: got %+v", got)
	}
	daemon.rewrite(byWeb+"\n", "")
	if got := command(t, "config", "reload", "--config", daemon.config); got != (result{1, "",
		"endpoints: \"processor-b\" is not there any more, and may be owed something: needs a restart\n"}) {
		t.Errorf("without an endpoint: got %+v", got)
	}
	daemon.rewrite("endpoints:\n", "endpoints:\n"+other+"\n", web+"\n", "")
	if got := command(t, "config", "reload", "--config", daemon.config); got != (result{0, "changed upstreams\nchanged routes\n", ""}) {
		t.Errorf("without an upstream: got %+v", got)
	}
	if _, err := anew.codec.ReadFrame(anew.conn); !errors.Is(err, io.EOF) {
		t.Errorf("on the connection of an upstream that is gone: got %v, want EOF", err)
	}
	for asked := time.Now(); ; { // its port closes a moment after the command has ended
		c, err := net.Dial("tcp", daemon.door)
		if err != nil {
			break
		}
		_ = c.Close()
		if time.Since(asked) > patience {
			t.Fatal("the door of an upstream that is gone is open")
		}
	}
	daemon.door = old
	if got := upstream.ask(authorization("000002", testPIN)).Get(messages.ResponseCode); got != "00" {
		t.Errorf("the other upstream: got %q, want 00", got)
	}
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = taken.Close() }()
	daemon.rewrite("endpoints:\n", strings.Replace(web, "127.0.0.1:0", taken.Addr().String(), 1)+"\nendpoints:\n", `bins: ["4"]`, `bins: ["5"]`)
	if got := command(t, "config", "reload", "--config", daemon.config); got.code != 1 || !strings.Contains(got.err, "opening port of upstream web") {
		t.Errorf("a port that is taken: got %+v", got)
	}
	if got := daemon.dial().ask(authorization("000003", testPIN)).Get(messages.ResponseCode); got != "00" {
		t.Errorf("after a refusal: got %q, want 00", got)
	}
	daemon.stop()
	if code := daemon.exit(); code != 0 {
		t.Errorf("exit %d", code)
	}
}

// From the key pair in the token to a transaction over a link that shows its certificate.
func TestALinkSignsInTheToken(t *testing.T) {
	ours, theirs := newAuthority(t, "ours"), newAuthority(t, "theirs")
	processor := newProcessorTLS(t, approveRightPIN, &tls.Config{MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{theirs.shown("127.0.0.1")},
		ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: ours.pool()})
	site := newSite(t, processor)
	if got := command(t, "keys", "generate", "--label", "tls-1", "--type", "ec-p256", "--config", site.config()); got.code != 0 {
		t.Fatalf("got %+v", got)
	}
	asked := command(t, "keys", "csr", "--label", "tls-1", "--name", "acq01.example", "--config", site.config())
	block, _ := pem.Decode([]byte(asked.out))
	if block == nil {
		t.Fatalf("got %+v", asked)
	}
	request, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{SerialNumber: big.NewInt(4711), Subject: request.Subject, DNSNames: request.DNSNames,
		NotAfter: time.Now().Add(year), ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}, ours.certificate, request.PublicKey, ours.key)
	if err != nil {
		t.Fatal(err)
	}
	f := newFolder(t)
	f.write("ours.pem", &pem.Block{Type: "CERTIFICATE", Bytes: der})
	f.write("ca.pem", certificateBlock(theirs.certificate))
	site.change("backoff_min: 10ms", fmt.Sprintf("tls: { ca_file: %q, cert_file: %q, key_label: tls-1 }, backoff_min: 10ms", f.file("ca.pem"), f.file("ours.pem")))
	site.create()
	daemon := site.start()
	daemon.inService(1)
	if got := daemon.dial().ask(authorization("000001", testPIN)).Get(messages.ResponseCode); got != "00" {
		t.Errorf("got %q, want 00", got)
	}
	daemon.rewrite("key_label: tls-1", "key_label: tls-2")
	if got := command(t, "config", "reload", "--config", daemon.config); got.code != 1 || !strings.HasPrefix(got.err, "endpoints[0].tls.key_label: ") {
		t.Errorf("a key that is not there: got %+v", got)
	}
	daemon.stop()
	if code := daemon.exit(); code != 0 {
		t.Errorf("exit %d", code)
	}
}
