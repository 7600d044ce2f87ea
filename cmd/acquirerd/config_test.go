package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"acquirerd/hsm"
	"acquirerd/specs"
	"time"
)

const goodConfig, fiveFaults = "../../testdata/config/good.yaml", "../../testdata/config/five-faults.yaml"

// changed writes the good config with texts replaced, and returns its path.
func changed(t *testing.T, oldnew ...string) string {
	t.Helper()
	text, err := os.ReadFile(goodConfig)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(oldnew); i += 2 {
		if !bytes.Contains(text, []byte(oldnew[i])) {
			t.Fatalf("the good config has no %q", oldnew[i])
		}
		text = bytes.Replace(text, []byte(oldnew[i]), []byte(oldnew[i+1]), 1)
	}
	return written(t, string(text))
}

func written(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "acquirerd.yaml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// checked runs "config check" and returns what it wrote to standard error.
func checked(t *testing.T, path string) (code int, faults string) {
	t.Helper()
	var out, errs bytes.Buffer
	code = run(t.Context(), []string{"config", "check", "--config", path}, &out, &errs)
	if (code == 0) != (out.String() == "ok\n") {
		t.Errorf("exit %d with %q on standard output", code, &out)
	}
	return code, errs.String()
}

func TestTheGoodConfigIsGood(t *testing.T) {
	if code, faults := checked(t, goodConfig); code != 0 || faults != "" {
		t.Errorf("got exit %d, %q", code, faults)
	}
	cfg, err := loadConfig(goodConfig)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ got, want any }{
		{cfg.Journal, JournalConfig{Engine: "sqlite", Path: "/var/lib/acquirerd/journal.db", Batch: 512, Queue: 2048}},
		{cfg.HSM.Keys[1], KeyConfig{Label: "zpk-proc-a", KCV: "12E345", Use: "pin-out"}},
		{cfg.Upstreams[0], UpstreamConfig{Name: "pos-switch", Dialect: "iso87-binary", Listen: "127.0.0.1:8583", PINKey: "zpk-pos", KSNRegression: "alarm", PINFormat: hsm.ISO0, InFlight: 128,
			MACFailures: 5, Connections: 64, Budget: 15 * time.Second, IdleTimeout: 5 * time.Minute, WriteTimeout: 2 * time.Second, FrameTimeout: 10 * time.Second}},
		{cfg.Reversals, ReversalsConfig{RetryMin: 5 * time.Second, RetryMax: 5 * time.Minute, ParkAfter: 24 * time.Hour, NotFoundFinal: 3 * time.Minute, Poll: 500 * time.Millisecond, Parallel: 16, Rate: 400}},
		{cfg.Shutdown, ShutdownConfig{Grace: time.Minute}},
	} {
		if !reflect.DeepEqual(c.got, c.want) {
			t.Errorf("got %+v, want %+v", c.got, c.want)
		}
	}
}

func TestLinksTakeManyForms(t *testing.T) {
	path := changed(t, `links: ["127.0.0.1:9001", "127.0.0.1:9002"]`, `link_in_flight: 9
    links:
      - 127.0.0.1:9001
      - { hosts: ["127.0.0.1:9001", "127.0.0.1:9002"] }
      - { listen: "0.0.0.0:9000", allow: ["10.0.0.0/8"], links: 2 }`)
	if code, faults := checked(t, path); code != 0 || faults != "" {
		t.Fatalf("got exit %d, %s", code, faults)
	}
	cfg, err := loadConfig(path)
	if err != nil {
		t.Fatal(err)
	}
	want := []LinkConfig{{Hosts: []string{"127.0.0.1:9001"}, Links: 1}, {Hosts: []string{"127.0.0.1:9001", "127.0.0.1:9002"}, Links: 1},
		{Listen: "0.0.0.0:9000", Allow: []string{"10.0.0.0/8"}, Links: 2}}
	if got := cfg.Endpoints[0].Links; !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, want %+v", got, want)
	}
	if e := cfg.Endpoints[0]; e.LinkInFlight != 9 || e.FailBack != time.Minute {
		t.Errorf("got %+v", e)
	}
	links := cfg.Endpoints[0].forConn(nil, nil)
	if len(links.Links) != 4 || links.Links[3].Listen != "0.0.0.0:9000" || links.Links[3].Allow[0].String() != "10.0.0.0/8" || links.LinkInFlight != 9 {
		t.Errorf("got %+v", links)
	}
}

func TestAConfigWithEverythingIsShownWhole(t *testing.T) {
	a := newAuthority(t, "authority")
	f := newFolder(t)
	f.fill(a, "acquirer", year, a)
	path := changed(t, `links: ["127.0.0.1:9001", "127.0.0.1:9002"]`, fmt.Sprintf(`links:
      - 127.0.0.1:9001
      - { listen: "0.0.0.0:9000", allow: ["10.0.0.0/8"], links: 2 }
    tls: { ca_file: %[1]q, cert_file: %[2]q, key_file: %[3]q, server_name: processor, min_version: "1.3" }`, f.file("ca.pem"), f.file("ours.pem"), f.file("ours.key")),
		"in_flight: 128", fmt.Sprintf(`rate: 50, burst: 100, allow: ["10.0.0.0/8"], peers: [a, b], tls: { client_ca_file: %q, cert_file: %q, key_label: tls-1 }`,
			f.file("ca.pem"), f.file("ours.pem")))
	before, err := loadConfig(path)
	if err != nil {
		t.Fatal(err)
	}
	shown := command(t, "config", "show", "--config", path)
	after, err := loadConfig(written(t, shown.out))
	if err != nil {
		t.Fatalf("%v in\n%s", err, shown.out)
	}
	if differ := planReload(before, after).changed; len(differ) > 0 || after.Endpoints[0].TLS.MinVersion != "1.3" || after.Upstreams[0].TLS.MinVersion != "1.2" {
		t.Errorf("%v differ in\n%s", differ, shown.out)
	}
}

func TestCountsFollowOneAnother(t *testing.T) {
	cfg, err := loadConfig(changed(t, "reply_timeout: 10s", "reply_timeout: 10s\n    in_flight: \"300\"", "in_flight: 128", "rate: 50"))
	if err != nil {
		t.Fatal(err)
	}
	if e, u := cfg.Endpoints[0], cfg.Upstreams[0]; e.LinkInFlight != 300 || u.Burst != 50 {
		t.Errorf("got link_in_flight %d, burst %d", e.LinkInFlight, u.Burst)
	}
}

// Whoever can send a few messages with a wrong MAC has a link suspended: without an operator it comes back, unless the file says that it may not.
func TestASuspendedLinkComesBackUnlessTheConfigSaysOtherwise(t *testing.T) {
	for text, want := range map[string]time.Duration{"": 5 * time.Minute, "\n    mac_suspension: 0s": 0, "\n    mac_suspension: 1h": time.Hour} {
		cfg, err := loadConfig(changed(t, "reply_timeout: 10s", "reply_timeout: 10s"+text))
		if err != nil {
			t.Fatal(err)
		}
		if got := cfg.Endpoints[0].forConn(nil, nil).MACSuspension; got != want {
			t.Errorf("%q: got %v, want %v", text, got, want)
		}
	}
}

func TestTimersOfADialectAreDefaults(t *testing.T) {
	text, err := os.ReadFile("../../specs/iso87-ascii.yaml")
	if err != nil {
		t.Fatal(err)
	}
	own := filepath.Join(t.TempDir(), "own.yaml")
	if err := os.WriteFile(own, append(text, "\ntimers: { reply: 4s, echo: 3s, echo_interval: 20s, echo_misses: 7 }\n"...), 0o600); err != nil {
		t.Fatal(err)
	}
	cfg, err := loadConfig(changed(t, "dialect: iso87-ascii", "dialect: "+own+"\n    echo_timeout: 2s", "    reply_timeout: 10s\n", ""))
	if err != nil {
		t.Fatal(err)
	}
	e := cfg.Endpoints[0]
	if e.ReplyTimeout != 4*time.Second || e.EchoTimeout != 2*time.Second || e.EchoInterval != 20*time.Second || e.EchoMisses != 7 || e.SignOnTimeout != 10*time.Second {
		t.Errorf("got %+v", e)
	}
}

func TestWarningsAreNoFaults(t *testing.T) {
	a := newAuthority(t, "authority")
	f := newFolder(t)
	f.fill(a, "acquirer", 29*24*time.Hour, a)
	end := time.Now().Add(29 * 24 * time.Hour)
	files := fmt.Sprintf("tls: { ca_file: %q, cert_file: %q, key_file: %q }", f.file("ca.pem"), f.file("ours.pem"), f.file("ours.key"))
	production := []string{"environment: test", "environment: production", "sessions: 8", "sessions: 8\n  require_token_resident: true"}
	for _, c := range []struct {
		name   string
		change []string
		want   []string
	}{
		{"loopback", production, nil},
		{"PIN blocks that may leave the token", production[:2], []string{"hsm.require_token_resident: is false"}},
		{"for test", []string{"127.0.0.1:9001", "10.0.0.1:9001"}, nil},
		{"plain links and a plain door", slices.Concat(production, []string{"127.0.0.1:9001", "10.0.0.1:9001", "127.0.0.1:8583", ":8583",
			`"127.0.0.1:9002"`, `{ listen: "0.0.0.0:9002", allow: ["10.0.0.0/8"] }`}), []string{
			"endpoints[0].links[0]: 10.0.0.1:9001 is plain TCP: card data should have tls", "endpoints[0].links[1]: listen 0.0.0.0:9002 is plain TCP: card data should have tls",
			"upstreams[0].listen: :8583 is plain TCP: card data should have tls"}},
		{"a certificate near its end", slices.Concat(production, []string{"127.0.0.1:9001", "10.0.0.1:9001", "reply_timeout: 10s", "reply_timeout: 10s\n    " + files}),
			[]string{"endpoints[0].tls.cert_file: expires soon, on " + end.UTC().Format("2006-01-02")}},
	} {
		t.Run(c.name, func(t *testing.T) {
			path := changed(t, c.change...)
			code, got := checked(t, path)
			lines := strings.Split(strings.TrimSuffix(got, "\n"), "\n")
			if got == "" {
				lines = nil
			}
			same := slices.EqualFunc(lines, c.want, func(line, want string) bool { return strings.HasPrefix(line, "warning: "+want) })
			if code != 0 || !same {
				t.Errorf("got exit %d\n%s, want %q", code, got, c.want)
			}
		})
	}
}

func TestFiveFaultsAreAllNamedInTheOrderOfTheFile(t *testing.T) {
	code, faults := checked(t, fiveFaults)
	want := `journal.sync: unknown key
hsm.sessions: is not a whole number
upstreams[0].idle_timeout: is not a duration with its unit, such as "10s"
endpoints[0].pin_key: no key "zpk-nowhere" in hsm.keys
endpoints[0].reply_timeout: 20s is not shorter than upstreams[0].budget (15s)
`
	if code != 1 || faults != want {
		t.Errorf("got exit %d\n%s\nwant 1\n%s", code, faults, want)
	}
}

func TestFaultsAreNamedWithTheirKeys(t *testing.T) {
	macDialect := dialectFile(t, "iso87-ascii", "\nadvices:", "\nmac: { place: last }\nadvices:")
	withKSN := dialectFile(t, "iso87-binary", "standard: iso87\n", "standard: iso87\nkey_serial_number: { element: 62, form: hex }\n")
	const upstream = `- { name: pos-switch, dialect: iso87-binary, listen: "127.0.0.1:8583", pin_key: zpk-pos, in_flight: 128 }`
	const route = `- { bins: ["4", "51-55"], mtis: ["0100", "0200", "0120", "0220"], endpoint: processor-a }`
	const reversals = "reversals: { park_after: 24h, not_found_final: 180s, parallel: 16, rate: 400 }"
	for _, c := range []struct {
		name   string
		change []string
		want   []string
	}{
		{"an unknown key of the top", []string{"station: acq01", "station: acq01\nstations: 2"}, []string{"stations: unknown key"}},
		{"an unknown key without a value", []string{"sessions: 8", "sesions:"}, []string{"hsm.sesions: unknown key"}},
		{"an unknown key in a list", []string{"reply_timeout: 10s", "timeout: 10s"}, []string{"endpoints[0].timeout: unknown key"}},
		{"arguments of a module that would end early", []string{"sessions: 8", `module_arguments: "a\0b"`}, []string{"hsm.module_arguments: holds a zero byte, which would end it"}},
		{"a path as a key", []string{"environment: test", "environment: test\nlog.level: debug"}, []string{"log.level: unknown key"}},
		{"a key given twice", []string{"station: acq01", "station: acq01\nStation: acq02"}, []string{"station: given twice"}},
		{"a value where keys belong", []string{"journal: { path: /var/lib/acquirerd/journal.db, queue: 2048 }", "journal: /var/lib"},
			[]string{"journal: is not a mapping of keys to values"}},
		{"keys where a list belongs", []string{route, "processor-a: {}"}, []string{"routes: is not a list"}},
		{"a list where a value belongs", []string{"station: acq01", "station: [acq01]"}, []string{"station: is not a single value"}},
		{"a value where a list belongs", []string{`links: ["127.0.0.1:9001", "127.0.0.1:9002"]`, `links: "127.0.0.1:9001"`},
			[]string{"endpoints[0].links: is not a list"}},
		{"an empty element", []string{route, route + "\n  -"}, []string{"routes[1]: is empty"}},
		{"a number where text belongs", []string{"station: acq01", "station: 12"}, []string{"station: is not text: put it in quotes"}},
		{"a KCV that YAML takes for a number", []string{`kcv: "12E345"`, `kcv: 123E45`}, []string{"hsm.keys[1].kcv: is not text: put it in quotes"}},
		{"a BIN that YAML takes for a number", []string{`"4", "51-55"`, `04`}, []string{"routes[0].bins[0]: is not text: put it in quotes"}},
		{"a fraction where a count belongs", []string{"queue: 2048", "queue: 20.5"}, []string{"journal.queue: is not a whole number"}},
		{"a count of zero", []string{"in_flight: 128", "in_flight: 0"}, []string{"upstreams[0].in_flight: 0 is not 1 to 1000000"}},
		{"a duration without its unit", []string{"reply_timeout: 10s", "reply_timeout: 10"},
			[]string{`endpoints[0].reply_timeout: is not a duration with its unit, such as "10s"`}},
		{"a duration of zero", []string{"reply_timeout: 10s", "reply_timeout: 10s\n    dial_timeout: 0s"}, []string{"endpoints[0].dial_timeout: 0s is shorter than 1ms"}},
		{"durations of next to nothing", []string{"reply_timeout: 10s", "reply_timeout: 10s\n    backoff_min: 1ns\n    echo_interval: 999us\n    sign_on_timeout: 1ns",
			reversals, "reversals: { poll: 1ns }\nshutdown: { grace: -1s }"}, []string{
			"endpoints[0].backoff_min: 1ns is shorter than 1ms", "endpoints[0].echo_interval: 999µs is shorter than 1ms",
			"endpoints[0].sign_on_timeout: 1ns is shorter than 1ms", "reversals.poll: 1ns is shorter than 1ms", "shutdown.grace: -1s is shorter than 1ms"}},
		{"a missing name", []string{"name: pos-switch, ", ""}, []string{"upstreams[0].name: missing"}},
		{"a name that is none", []string{"station: acq01", `station: "a b"`},
			[]string{`station: "a b" is not a name of 1 to 64 letters, digits, dots, hyphens and underscores`}},
		{"a missing station", []string{"station: acq01", ""}, []string{"station: missing"}},
		{"no endpoints", []string{"endpoints:", "endpoints: []\nnothing:"}, []string{"endpoints: missing: at least one is needed", "nothing: unknown key", `routes[0].endpoint: no endpoint "processor-a" in endpoints`}},
		{"an engine that is not there", []string{"path: /var", "engine: bolt, path: /var"}, []string{`journal.engine: "bolt" is not one of sqlite`}},
		{"an environment that is none", []string{"environment: test", "environment: staging"}, []string{`environment: "staging" is not one of production, test`}},
		{"an address without a port", []string{`"127.0.0.1:9002"`, `"127.0.0.1"`}, []string{`endpoints[0].links[1]: "127.0.0.1" is not host:port`}},
		{"a link to port 0", []string{`"127.0.0.1:9002"`, `"127.0.0.1:0"`}, []string{`endpoints[0].links[1]: "127.0.0.1:0" is not host:port`}},
		{"a link of no kind", []string{`"127.0.0.1:9002"]`, `{}]`}, []string{"endpoints[0].links[1]: has neither hosts to dial nor an address to listen on"}},
		{"a link of two kinds", []string{`"127.0.0.1:9002"]`, `{ hosts: ["127.0.0.1:9002"], listen: "127.0.0.1:9003", allow: ["127.0.0.1/32"] }]`},
			[]string{"endpoints[0].links[1].listen: stands beside hosts: a link either dials or is dialled"}},
		{"a number for a link", []string{`"127.0.0.1:9002"]`, `9002]`}, []string{"endpoints[0].links[1]: is not text: put it in quotes"}},
		{"a list for a link", []string{`"127.0.0.1:9002"]`, `["127.0.0.1:9002"]]`}, []string{"endpoints[0].links[1]: is not a mapping of keys to values"}},
		{"an unknown key of a link", []string{`"127.0.0.1:9002"]`, `{ host: "127.0.0.1:9002" }]`},
			[]string{"endpoints[0].links[1]: has neither hosts to dial nor an address to listen on", "endpoints[0].links[1].host: unknown key"}},
		{"bad hosts", []string{`"127.0.0.1:9002"]`, `{ hosts: ["127.0.0.1:9002", "127.0.0.1", "127.0.0.1:9002"], links: 65 }]`}, []string{
			`endpoints[0].links[1].hosts[1]: "127.0.0.1" is not host:port`,
			`endpoints[0].links[1].hosts[2]: "127.0.0.1:9002" is endpoints[0].links[1].hosts[0] already`, "endpoints[0].links[1].links: 65 is not 1 to 64"}},
		{"a link that anybody may dial", []string{`"127.0.0.1:9002"]`, `{ listen: "127.0.0.1:9002" }]`}, []string{"endpoints[0].links[1].allow: missing: who may dial it"}},
		{"an allow-list of who is dialled", []string{`"127.0.0.1:9002"]`, `{ hosts: ["127.0.0.1:9002"], allow: ["127.0.0.1/32"] }]`},
			[]string{"endpoints[0].links[1].allow: is only for a link that listens"}},
		{"networks that are none", []string{`"127.0.0.1:9002"]`, `{ listen: "127.0.0.1:9002", allow: ["127.0.0.1", "10.0.0.1/8", "::1/128", "::1/128"] }]`}, []string{
			`endpoints[0].links[1].allow[0]: "127.0.0.1" is not a network such as "10.0.0.0/8"`, `endpoints[0].links[1].allow[1]: "10.0.0.1/8" is not a network such as "10.0.0.0/8"`,
			`endpoints[0].links[1].allow[3]: "::1/128" is endpoints[0].links[1].allow[2] already`}},
		{"a link that listens where a door does", []string{`"127.0.0.1:9002"]`, `{ listen: "127.0.0.1:8583", allow: ["127.0.0.1/32"] }]`},
			[]string{`endpoints[0].links[1].listen: "127.0.0.1:8583" is upstreams[0].listen already`}},
		{"a listener that takes the port of another", []string{`operations: { listen: "127.0.0.1:9090" }`, `operations: { listen: "0.0.0.0:8583" }`},
			[]string{`operations.listen: "0.0.0.0:8583" is upstreams[0].listen already`}},
		{"one address in two spellings", []string{`links: ["127.0.0.1:9001", "127.0.0.1:9002"]`,
			`links: [{ listen: "[::ffff:127.0.0.1]:09001", allow: ["127.0.0.0/8"] }, { listen: "localhost:9001", allow: ["127.0.0.0/8"] }, { listen: "[::]:8583", allow: ["127.0.0.0/8"] }]`},
			[]string{`endpoints[0].links[1].listen: "localhost:9001" is endpoints[0].links[0].listen already`, `endpoints[0].links[2].listen: "[::]:8583" is upstreams[0].listen already`}},
		{"two allow-lists of one listener", []string{`links: ["127.0.0.1:9001", "127.0.0.1:9002"]`,
			`links: [{ listen: "127.0.0.1:0", allow: ["127.0.0.0/8"] }, { listen: "127.0.0.1:0", allow: ["10.0.0.0/8"] }]`},
			[]string{`endpoints[0].links[1].allow: is not that of links[0], which listens at the same "127.0.0.1:0"`}},
		{"pauses that flood a processor", []string{"environment: test", "environment: production", "sessions: 8", "sessions: 8\n  require_token_resident: true", "reply_timeout: 10s", "reply_timeout: 10s\n    backoff_min: 99ms\n    fail_back: 1ms"},
			[]string{"endpoints[0].backoff_min: 99ms is shorter than 100ms: it would be a flood of connections for the processor",
				"endpoints[0].fail_back: 1ms is shorter than 100ms: it would be a flood of connections for the processor"}},
		{"more on a link than on its endpoint", []string{"reply_timeout: 10s", "reply_timeout: 10s\n    link_in_flight: 257"}, []string{"endpoints[0].link_in_flight: 257 is more than in_flight (256)"}},
		{"a count that is none, and what follows from it", []string{"reply_timeout: 10s", "reply_timeout: 10s\n    in_flight: x"}, []string{"endpoints[0].in_flight: is not a whole number"}},
		{"a bad rate", []string{"in_flight: 128", "rate: -1"}, []string{"upstreams[0].rate: -1 is not 0 to 1000000"}},
		{"a burst without a rate", []string{"in_flight: 128", "burst: 5"}, []string{"upstreams[0].burst: is of no use without rate"}},
		{"peers without TLS", []string{"in_flight: 128", "peers: [a]"}, []string{"upstreams[0].peers: needs tls: without client certificates nobody has a name"}},
		{"peers that are none", []string{"in_flight: 128", `peers: ["", a, a], tls: {}`}, []string{"upstreams[0].peers[0]: missing",
			`upstreams[0].peers[2]: "a" is upstreams[0].peers[1] already`, "upstreams[0].tls.cert_file: missing", "upstreams[0].tls.client_ca_file: missing"}},
		{"TLS without anything", []string{"reply_timeout: 10s", "reply_timeout: 10s\n    tls: {}"}, []string{"endpoints[0].tls.ca_file: missing"}},
		{"TLS of an old version", []string{"reply_timeout: 10s", "reply_timeout: 10s\n    tls: { min_version: \"1.1\" }"},
			[]string{"endpoints[0].tls.ca_file: missing", `endpoints[0].tls.min_version: "1.1" is not one of 1.2, 1.3`}},
		{"TLS with a key alone", []string{"reply_timeout: 10s", "reply_timeout: 10s\n    tls: { key_label: \"a b\" }"},
			[]string{"endpoints[0].tls.cert_file: missing", "endpoints[0].tls.ca_file: missing", "endpoints[0].tls.key_label: is not 1 to 64 printable ASCII characters without spaces"}},
		{"TLS with a certificate alone", []string{"reply_timeout: 10s", "reply_timeout: 10s\n    tls: { cert_file: /no/such, ca_file: /no/such }"},
			[]string{"endpoints[0].tls.key_file: missing, and there is no key_label",
				"endpoints[0].tls.cert_file: open /no/such: no such file or directory", "endpoints[0].tls.ca_file: open /no/such: no such file or directory"}},
		{"TLS with two keys", []string{"reply_timeout: 10s", "reply_timeout: 10s\n    tls: { key_file: /no/such, key_label: a }"},
			[]string{"endpoints[0].tls.cert_file: missing", "endpoints[0].tls.ca_file: missing",
				"endpoints[0].tls.key_file: open /no/such: no such file or directory", "endpoints[0].tls.key_label: stands beside key_file: one of the two is the key"}},
		{"a link that listens without a certificate", []string{`"127.0.0.1:9002"]`, "{ listen: \"127.0.0.1:9002\", allow: [\"127.0.0.1/32\"] }]\n    tls: { ca_file: /no/such }"},
			[]string{"endpoints[0].tls.cert_file: missing: a link that listens shows its own certificate", "endpoints[0].tls.ca_file: open /no/such: no such file or directory"}},
		{"a key for its file", []string{"in_flight: 128", "tls: { key_file: s3cret, cert_file: \"s3cret\\n/\" }"}, []string{
			"upstreams[0].tls.client_ca_file: missing", "upstreams[0].tls.key_file: is not the path of a file, such as /etc/acquirerd/tls.pem: what is in it may not stand here",
			"upstreams[0].tls.cert_file: is not the path of a file, such as /etc/acquirerd/tls.pem: what is in it may not stand here"}},
		{"two doors of one name", []string{upstream, upstream + "\n  " + strings.Replace(upstream, "8583", "8584", 1)},
			[]string{`upstreams[1].name: "pos-switch" is upstreams[0].name already`}},
		{"two listeners on one address", []string{`operations: { listen: "127.0.0.1:9090" }`, `operations: { listen: "127.0.0.1:8583" }`},
			[]string{`operations.listen: "127.0.0.1:8583" is upstreams[0].listen already`}},
		{"a label of two lines", []string{"label: pan-token-1", `label: "pan\ntoken"`}, []string{
			"hsm.keys[3].label: is not 1 to 64 printable ASCII characters without spaces", `hsm.token_key: no key "pan-token-1" in hsm.keys`}},
		{"a label that is too long", []string{"label: pan-token-1", "label: " + strings.Repeat("a", 65)}, []string{
			"hsm.keys[3].label: is not 1 to 64 printable ASCII characters without spaces", `hsm.token_key: no key "pan-token-1" in hsm.keys`}},
		{"two keys of one label", []string{"label: pan-token-1", "label: pan-seal-1"},
			[]string{`hsm.keys[3].label: "pan-seal-1" is hsm.keys[2].label already`, `hsm.token_key: no key "pan-token-1" in hsm.keys`}},
		{"a KCV that is too short", []string{`"08D7B4"`, `"08D7"`}, []string{"hsm.keys[0].kcv: is not six hexadecimal digits"}},
		{"a use that is none", []string{"use: pin-in", "use: pin"},
			[]string{`hsm.keys[0].use: "pin" is not one of ` + oneOf(hsm.Uses), `upstreams[0].pin_key: key "zpk-pos" has the use "pin", not pin-in`}},
		{"a key of the wrong use", []string{"pin_key: zpk-proc-a", "pin_key: zpk-pos"}, []string{`endpoints[0].pin_key: key "zpk-pos" has the use "pin-in", not pin-out`}},
		{"a PIN block format that is none", []string{"in_flight: 128", "in_flight: 128, pin_format: iso-2"}, []string{`upstreams[0].pin_format: "iso-2" is not one of iso-0, iso-1, iso-3, iso-4`}},
		{"a format that would unbind the PIN", []string{"pin_key: zpk-proc-a", "pin_key: zpk-proc-a\n    pin_format: iso-1"},
			[]string{"endpoints[0].pin_format: does not go with upstreams[0].pin_format, which routes bring to it: PIN block format is not allowed: iso-0 into iso-1 would unbind the PIN from its PAN (PCI PIN 3-3)"}},
		{"a format for which DE 52 is too short", []string{"in_flight: 128", "in_flight: 128, pin_format: iso-4", "pin_key: zpk-proc-a", "pin_key: zpk-proc-a\n    pin_format: iso-4"}, []string{
			`upstreams[0].pin_format: iso-4 needs DE 52 of 16 bytes, and the dialect "iso87-binary" does not have it`,
			`endpoints[0].pin_format: iso-4 needs DE 52 of 16 bytes, and the dialect "iso87-ascii" does not have it`}},
		{"a format for which DE 52 is too long", []string{"dialect: iso87-ascii", "dialect: " + dialectFile(t, "iso87-ascii", "52: { type: Binary, length: 8,", "52: { type: Binary, length: 16,")},
			[]string{`endpoints[0].pin_format: iso-0 needs DE 52 of 8 bytes, and the dialect "iso87-ascii" does not have it`}},
		{"a format without a key", []string{"pin_key: zpk-pos, in_flight: 128", "pin_format: iso-3"}, []string{"upstreams[0].pin_format: is of no use without a key of PIN blocks"}},
		{"a base derivation key of the wrong use", []string{"pin_key: zpk-pos", "bdk_key: zpk-proc-a", "dialect: iso87-binary", "dialect: " + withKSN},
			[]string{`upstreams[0].bdk_key: key "zpk-proc-a" has the use "pin-out", not bdk`}},
		{"a base derivation key beside a zone key", []string{"pin_key: zpk-pos", "pin_key: zpk-pos, bdk_key: bdk-pos"},
			[]string{"upstreams[0].bdk_key: stands beside pin_key: PIN blocks are under the one or the other"}},
		{"a dialect without key serial numbers", []string{"pin_key: zpk-pos", "bdk_key: zpk-pos", "use: pin-in", "use: bdk"},
			[]string{`upstreams[0].bdk_key: needs the key serial number of each PIN block, and the dialect "iso87-binary" has no key_serial_number`}},
		{"a kind of working key that is none", []string{"pin_key: zpk-pos", "bdk_key: zpk-pos, working_key: des", "use: pin-in", "use: bdk", "dialect: iso87-binary", "dialect: " + withKSN},
			[]string{`upstreams[0].working_key: "des" is not one of 2tdea, 3tdea, aes-128, aes-192, aes-256`}},
		{"a working key for another format", []string{"pin_key: zpk-pos", "bdk_key: zpk-pos, working_key: aes-128", "use: pin-in", "use: bdk", "dialect: iso87-binary", "dialect: " + withKSN},
			[]string{`upstreams[0].working_key: aes-128 is not for iso-0`}},
		{"DUKPT without its key", []string{"pin_key: zpk-pos", "pin_key: zpk-pos, working_key: aes-128, ksn_regression: refuse"},
			[]string{"upstreams[0].working_key: is of no use without bdk_key", "upstreams[0].ksn_regression: is of no use without bdk_key"}},
		{"a way with regressions that is none", []string{"pin_key: zpk-pos", "pin_key: zpk-pos, ksn_regression: ignore"},
			[]string{`upstreams[0].ksn_regression: "ignore" is not one of alarm, refuse`}},
		{"a zone master key of a base derivation key", []string{"use: pin-in", "use: bdk, zmk: pan-seal-1", "pin_key: zpk-pos, ", ""},
			[]string{`hsm.keys[0].zmk: only a pin-in or pin-out key can be changed`}},
		{"a seal key of the wrong use", []string{"seal_key: pan-seal-1", "seal_key: pan-token-1"}, []string{`hsm.seal_key: key "pan-token-1" has the use "pan-token", not pan-seal`}},
		{"an unknown dialect", []string{"dialect: iso87-ascii", "dialect: iso93"},
			[]string{`endpoints[0].dialect: loading dialect "iso93": no such dialect; the built-in ones are ` + strings.Join(specs.Names(), ", ")}},
		{"a dialect with a MAC and no key", []string{"dialect: iso87-ascii", "dialect: " + macDialect},
			[]string{`endpoints[0].mac_key: missing: "iso87-ascii" has a MAC in its messages (mac.place)`}},
		{"a key for MACs and a dialect without", []string{"in_flight: 128", "in_flight: 128, mac_key: mac-1", "use: pin-in }", "use: pin-in }\n    - { label: mac-1, kcv: \"0A0B0C\", use: mac-cmac }"},
			[]string{`upstreams[0].mac_key: "iso87-binary" has no MAC in its messages (mac.place)`}},
		{"a key for MACs that is none", []string{"dialect: iso87-ascii", "mac_key: zpk-pos\n    mac_failures: 0\n    mac_suspension: 200h\n    dialect: " + macDialect},
			[]string{`endpoints[0].mac_key: key "zpk-pos" has the use "pin-in", not one of mac-x919, mac-cmac, mac-hmac`, "endpoints[0].mac_failures: 0 is not 1 to 1000000",
				"endpoints[0].mac_suspension: 200h0m0s is not 0 to 168h0m0s"}},
		{"a padding of a key that has its own", []string{"dialect: iso87-ascii", "mac_key: mac-1\n    dialect: " +
			dialectFile(t, "iso87-ascii", "\nadvices:", "\nmac: { place: last, padding: 2 }\nadvices:"), "use: pin-in }", "use: pin-in }\n    - { label: mac-1, kcv: \"0A0B0C\", use: mac-hmac }"},
			[]string{`endpoints[0].mac_key: "iso87-ascii" has a padding (mac.padding), and a mac-hmac key its own`}},
		{"a key for MACs of two parties", []string{"dialect: iso87-ascii", "mac_key: mac-1\n    dialect: " + macDialect, "dialect: iso87-binary", "mac_key: mac-1, dialect: " +
			macDialect, "use: pin-in }", "use: pin-in }\n    - { label: mac-1, kcv: \"0A0B0C\", use: mac-hmac }"},
			[]string{`upstreams[0].mac_key: key "mac-1" is endpoints[0].mac_key already`}},
		{"a route to nowhere", []string{"endpoint: processor-a }", "endpoint: processor-b }"}, []string{`routes[0].endpoint: no endpoint "processor-b" in endpoints`}},
		{"a bad route", []string{route, `- { bins: ["55-51"], upstreams: [web], mtis: ["0800"], currencies: [EUR], endpoint: processor-a }`}, []string{
			`routes[0].bins[0]: "55-51" is neither a prefix of digits ("4") nor a rising range of prefixes of one length ("51-55")`,
			`routes[0].upstreams[0]: no upstream "web" in upstreams`,
			`routes[0].mtis[0]: "0800" is not one of "0100", "0200", "0120", "0220"`,
			`routes[0].currencies[0]: "EUR" is not a currency number of three digits ("978")`}},
		{"timeouts that do not nest", []string{"reply_timeout: 10s", "reply_timeout: 10s\n    write_timeout: 10s", "in_flight: 128", "in_flight: 128, budget: 9s",
			"environment: test", "environment: test\nshutdown: { grace: 9s }"},
			[]string{"shutdown.grace: 9s is not longer than an upstream's budget, write_timeout and parting, an endpoint's reply_timeout, its sign_on_timeout and two write_timeouts together (53s)", "endpoints[0].reply_timeout: 10s is not shorter than upstreams[0].budget (9s)",
				"endpoints[0].write_timeout: 10s is not shorter than reply_timeout (10s)"}},
		{"a zone master key that is none", []string{`use: pin-in }`, `use: pin-in, zmk: zmk-pos }`, `use: pin-out }`, `use: pin-out, zmk: pan-seal-1 }`},
			[]string{`hsm.keys[0].zmk: no key "zmk-pos" in hsm.keys`, `hsm.keys[1].zmk: key "pan-seal-1" has the use "pan-seal", not zmk`}},
		{"a key that nobody can change", []string{`use: pan-seal }`, `use: pan-seal, zmk: zmk-a }`, `use: pan-token }`, "use: pan-token }\n    - { label: zmk-a, kcv: \"123456\", use: zmk }"},
			[]string{`hsm.keys[2].zmk: only a pin-in or pin-out key can be changed`}},
		{"a label of later versions", []string{`use: pin-out }`, `use: pin-out, zmk: zmk-a }`, `use: pan-token }`,
			"use: pan-token }\n    - { label: zmk-a, kcv: \"123456\", use: zmk }\n    - { label: \"zpk-proc-a#2\", kcv: \"123457\", use: pin-out }\n    - { label: \"zmk-a#2\", kcv: \"123458\", use: zmk }"},
			[]string{`hsm.keys[5].label: is what a later version of "zpk-proc-a" is called in the token`}},
		{"a flood of key changes", []string{"sessions: 8", "sessions: 8\n  key_changes: 121"}, []string{`hsm.key_changes: 121 is not 1 to 120`}},
		{"an overlap of weeks", []string{"sessions: 8", "sessions: 8\n  key_overlap: 169h"}, []string{`hsm.key_overlap: is longer than 168h0m0s`}},
		{"one key for two zones", []string{`kcv: "12E345"`, `kcv: "08d7b4"`}, []string{`endpoints[0].pin_key: key "zpk-proc-a" has the check value of upstreams[0].pin_key, "08D7B4": each zone has a key of its own`}},
		{"one key for two purposes", []string{`use: pan-token }`, "use: pan-token }\n    - { label: zmk-a, kcv: \"08D7B4\", use: zmk }\n    - { label: mac-a, kcv: \"12E345\", use: mac-x919 }"},
			[]string{`hsm.keys[4].kcv: "08D7B4" is hsm.keys[0].kcv already: a key has one purpose`, `hsm.keys[5].kcv: "12E345" is hsm.keys[1].kcv already: a key has one purpose`}},
		{"reversals that could take every place", []string{"reply_timeout: 10s", "reply_timeout: 10s\n    in_flight: 16"},
			[]string{"reversals.parallel: 16 is more than half of endpoints[0].in_flight (16): reversals without an answer would take the places of transactions"}},
		{"an end that comes after parking", []string{reversals, "reversals: { not_found_final: 48h }"},
			[]string{"reversals.not_found_final: 48h0m0s is not shorter than park_after (24h0m0s)"}},
		{"pauses that shrink", []string{reversals, "reversals: { retry_min: 10s, retry_max: 5s }"},
			[]string{"reversals.retry_max: 5s is shorter than retry_min (10s)"}},
		{"a bad log", []string{"environment: test", "environment: test\nlog: { level: loud, format: xml }"},
			[]string{`log.level: "loud" is not one of debug, info, warn, error`, `log.format: "xml" is not one of json, text`}},
		{"the token's PIN", []string{"sessions: 8", "sessions: 8\n  pin: s3cret"},
			[]string{"hsm.pin: a secret may not stand in this file: give hsm.pin_file, or ACQUIRERD_HSM_PIN in the environment"}},
		{"a key's value", []string{`kcv: "08D7B4"`, `kcv: "08D7B4", value: s3cret`}, []string{"hsm.keys[0].value: unknown key, and no secret may stand in this file"}},
		{"the PIN for its file", []string{"pin_file: /etc/acquirerd/token.pin", `pin_file: "s3cret"`},
			[]string{"hsm.pin_file: is not the path of a file, such as /etc/acquirerd/token.pin: the PIN itself may not stand here"}},
		{"no PIN at all", []string{"  pin_file: /etc/acquirerd/token.pin\n", ""}, []string{"hsm.pin_file: missing, and ACQUIRERD_HSM_PIN is not set in the environment"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			code, faults := checked(t, changed(t, c.change...))
			if want := strings.Join(c.want, "\n") + "\n"; code != 1 || faults != want {
				t.Errorf("got exit %d\n%swant 1\n%s", code, faults, want)
			}
			if strings.Contains(faults, "s3cret") {
				t.Error("a fault quotes a secret")
			}
		})
	}
}

func TestWhatIsNotYAMLIsOneLine(t *testing.T) {
	for name, text := range map[string]string{"a broken bracket": "a: [", "a tab": "a:\n\t- b", "two documents": "a: 1\n---\nb: 2", "a list": "- s3cret\n- b", "text": "s3cret\nb",
		"a tag that does not fit": "station: !!int s3cret", "an alias to nothing": "station: *s3cret"} {
		t.Run(name, func(t *testing.T) {
			code, faults := checked(t, written(t, text))
			if code != 1 || strings.Count(faults, "\n") != 1 || strings.Contains(faults, "s3cret") {
				t.Errorf("got exit %d, %q", code, faults)
			}
		})
	}
	if code, faults := checked(t, filepath.Join(t.TempDir(), "none.yaml")); code != 1 || strings.Count(faults, "\n") != 1 {
		t.Errorf("a missing file: got exit %d, %q", code, faults)
	}
	for _, path := range []string{written(t, strings.Repeat("#", mostConfig+1)), "/dev/zero"} {
		if code, faults := checked(t, path); code != 1 || faults != "acquirerd: reading config: "+path+" is larger than 1048576 bytes\n" {
			t.Errorf("a file without end: got exit %d, %q", code, faults)
		}
	}
	if code, faults := checked(t, written(t, "")); code != 1 || !strings.Contains(faults, "station: missing\n") {
		t.Errorf("an empty file: got exit %d, %q", code, faults)
	}
}

func TestTheEnvironmentOverrides(t *testing.T) {
	t.Setenv("ACQUIRERD_STATION", "acq02")
	t.Setenv("ACQUIRERD_JOURNAL_PATH", "/tmp/other.db")
	t.Setenv("ACQUIRERD_JOURNAL_BATCH", "64")
	t.Setenv("ACQUIRERD_HSM_PIN_FILE", "/run/token.pin")
	t.Setenv("ACQUIRERD_HSM_CALL_TIMEOUT", "3s")
	t.Setenv("ACQUIRERD_HSM_REQUIRE_TOKEN_RESIDENT", "true")
	t.Setenv("ACQUIRERD_SERVICE_HOST", "10.0.0.1") // what an orchestrator sets
	cfg, err := loadConfig(goodConfig)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ got, want any }{{cfg.Station, "acq02"}, {cfg.Journal.Path, "/tmp/other.db"}, {cfg.Journal.Batch, 64},
		{cfg.HSM.PINFile, "/run/token.pin"}, {cfg.HSM.CallTimeout, 3 * time.Second}, {cfg.HSM.RequireTokenResident, true}} {
		if c.got != c.want {
			t.Errorf("got %v, want %v", c.got, c.want)
		}
	}
}

func TestFaultsOfTheEnvironmentAreNamed(t *testing.T) {
	t.Setenv("ACQUIRERD_JOURNAL_BATCH", "many")
	t.Setenv("ACQUIRERD_JOURNAL_PTH", "/tmp/other.db")
	t.Setenv("ACQUIRERD_UPSTREAMS", "[]")
	t.Setenv("ACQUIRERD_STATION", "a b")
	_, faults := checked(t, goodConfig)
	want := `ACQUIRERD_JOURNAL_PTH: is set in the environment, and overrides no key
ACQUIRERD_UPSTREAMS: is set in the environment, and overrides no key
journal.batch: is not a whole number (from ACQUIRERD_JOURNAL_BATCH)
station: "a b" is not a name of 1 to 64 letters, digits, dots, hyphens and underscores (from ACQUIRERD_STATION)
`
	if got := strings.Join(sortedLines(faults), ""); got != want {
		t.Errorf("got\n%swant\n%s", got, want)
	}
}

func TestThePINComesFromTheEnvironmentOrAFileAndIsNeverShown(t *testing.T) {
	const secret = "s3cret-pin"
	file := filepath.Join(t.TempDir(), "token.pin")
	if err := os.WriteFile(file, []byte("from-the-file\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	pin, err := (&HSMConfig{PINFile: file}).pin()()
	if string(pin) != "from-the-file" || err != nil {
		t.Errorf("got %q, %v", pin, err)
	}
	t.Setenv(pinVariable, secret)
	if pin, err := (&HSMConfig{PINFile: file}).pin()(); string(pin) != secret || err != nil {
		t.Errorf("got %q, %v", pin, err)
	}
	path := changed(t, "  pin_file: /etc/acquirerd/token.pin\n", "")
	if code, faults := checked(t, path); code != 0 {
		t.Errorf("got exit %d, %s", code, faults)
	}
	for _, output := range []string{"text", "json"} {
		var out, errs bytes.Buffer
		if code := run(t.Context(), []string{"config", "show", "--config", path, "--output", output}, &out, &errs); code != 0 || strings.Contains(out.String(), secret) {
			t.Errorf("got exit %d, %s%s", code, &out, &errs)
		}
	}
}

func TestWhatIsShownIsAConfigAgain(t *testing.T) {
	want, err := loadConfig(changed(t, `"12E345"`, `"123E45"`))
	if err != nil {
		t.Fatal(err)
	}
	var shown, errs bytes.Buffer
	if code := run(t.Context(), []string{"config", "show", "--config", changed(t, `"12E345"`, `"123E45"`)}, &shown, &errs); code != 0 {
		t.Fatalf("exit %d: %s", code, &errs)
	}
	got, err := loadConfig(written(t, shown.String()))
	if err != nil {
		t.Fatal(err)
	}
	if differ := planReload(want, got).changed; len(differ) > 0 {
		t.Errorf("%v differ: got %+v\nwant %+v", differ, got, want)
	}
}

func TestEveryDefaultIsOfAKey(t *testing.T) {
	for path := range defaults {
		shape := reflect.TypeFor[Config]()
		for part := range strings.SplitSeq(path, ".") {
			name, inList := strings.CutSuffix(part, "[]")
			field, known := fieldOf(shape, name)
			if !known {
				t.Fatalf("%s is not a key", path)
			}
			if shape = field; inList || field.Kind() == reflect.Pointer {
				shape = field.Elem()
			}
		}
	}
}

func FuzzLoadConfig(f *testing.F) {
	for _, path := range []string{goodConfig, fiveFaults} {
		text, err := os.ReadFile(path)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(string(text))
	}
	f.Add("hsm: &a [*a]\n")
	f.Add("journal: {<<: {path: x}}\nupstreams: [null, {}, 1]\n")
	f.Fuzz(func(t *testing.T, text string) {
		path := filepath.Join(t.TempDir(), "acquirerd.yaml")
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		cfg, err := loadConfig(path)
		if err != nil && err.Error() == "" || err == nil && cfg.Station == "" {
			t.Errorf("got %v, %v", cfg, err)
		}
	})
}

// The manual has every key of the config, in code quotes.
func TestTheManualHasEveryKeyOfTheConfig(t *testing.T) {
	text, err := os.ReadFile("../../docs/config.md")
	if err != nil {
		t.Fatal(err)
	}
	parts := strings.Split(string(text), "`")
	quoted := map[string]bool{}
	for i := 1; i < len(parts); i += 2 {
		quoted[parts[i]] = true
		for word := range strings.SplitSeq(parts[i], ".") {
			quoted[word] = true
		}
	}
	var look func(reflect.Type)
	look = func(of reflect.Type) {
		switch of.Kind() {
		case reflect.Slice, reflect.Pointer:
			look(of.Elem())
		case reflect.Struct:
			for field := range fieldsOf(of) {
				if key := field.Tag.Get("mapstructure"); !quoted[key] {
					t.Errorf("%q is not in docs/config.md", key)
				}
				look(field.Type)
			}
		default: // a value
		}
	}
	look(reflect.TypeFor[Config]())
}

// dialectFile is the path of a built-in dialect's file with a change.
func dialectFile(t *testing.T, name, old, changed string) string {
	t.Helper()
	text, err := os.ReadFile("../../specs/" + name + ".yaml")
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(text), old) {
		t.Fatalf("%s has no %q", name, old)
	}
	path := filepath.Join(t.TempDir(), name+".yaml")
	if err := os.WriteFile(path, []byte(strings.Replace(string(text), old, changed, 1)), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestEachRouteBringsPINBlocksThatItsEndpointMayHave(t *testing.T) {
	const upstream = `- { name: pos-switch, dialect: iso87-binary, listen: "127.0.0.1:8583", pin_key: zpk-pos, in_flight: 128 }`
	const route = `- { bins: ["4", "51-55"], mtis: ["0100", "0200", "0120", "0220"], endpoint: processor-a }`
	long := dialectFile(t, "iso87-ascii", "52: { type: Binary, length: 8,", "52: { type: Binary, length: 16,")
	second := strings.NewReplacer("pos-switch", "web", "8583", "8584", "in_flight: 128", "pin_format: iso-3").Replace(upstream)
	for _, c := range []struct {
		name   string
		change []string
		want   string
	}{
		{"0 into 3", []string{"pin_key: zpk-proc-a", "pin_key: zpk-proc-a\n    pin_format: iso-3"}, ""},
		{"1 into 0", []string{"in_flight: 128", "pin_format: iso-1"}, ""},
		{"1 into 1", []string{"in_flight: 128", "pin_format: iso-1", "pin_key: zpk-proc-a", "pin_key: zpk-proc-a\n    pin_format: iso-1"}, ""},
		{"0 into 4", []string{"dialect: iso87-ascii", "dialect: " + long, "pin_key: zpk-proc-a", "pin_key: zpk-proc-a\n    pin_format: iso-4"}, ""},
		{"both bring what it may not have", []string{upstream, upstream + "\n  " + second, "pin_key: zpk-proc-a", "pin_key: zpk-proc-a\n    pin_format: iso-1"},
			"endpoints[0].pin_format: does not go with upstreams[0].pin_format, upstreams[1].pin_format, which routes bring to it: "},
		{"only one of them is routed to it", []string{upstream, upstream + "\n  " + second, "pin_key: zpk-proc-a", "pin_key: zpk-proc-a\n    pin_format: iso-1",
			route, strings.Replace(route, "bins:", "upstreams: [web], bins:", 1)}, "endpoints[0].pin_format: does not go with upstreams[1].pin_format, which routes bring to it: "},
		{"none of them sends PINs", []string{"pin_key: zpk-pos, ", "", "pin_key: zpk-proc-a", "pin_key: zpk-proc-a\n    pin_format: iso-1"}, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			code, faults := checked(t, changed(t, c.change...))
			if fine := c.want == ""; fine != (code == 0) || !strings.HasPrefix(faults, c.want) || fine && faults != "" || strings.Count(faults, "\n") > 1 {
				t.Errorf("got exit %d\n%swant %s", code, faults, c.want)
			}
		})
	}
}
