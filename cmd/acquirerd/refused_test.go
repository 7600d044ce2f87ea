package main

import (
	"fmt"
	"log/slog"
	"net"
	"strings"
	"testing"
	"time"

	"acquirerd/hsm/hsmtest"
	"acquirerd/messages"
)

// A port that is taken is found out after endpoints and doors were changed, and changing them back is not the same as not touching them.
func TestARefusedReloadTouchesNoLinkAndNoConnection(t *testing.T) {
	first, second := newProcessor(t, approveRightPIN), newProcessor(t, approveRightPIN)
	site := newSite(t, first, second)
	site.create()
	daemon := site.start()
	daemon.inService(2)
	if got := command(t, "link", "drain", "processor-a/1", "--config", daemon.config); got.code != 0 {
		t.Fatalf("got %+v", got)
	}
	before := daemon.awaitLinks("drained", func(list []linkStatus) bool { return list[1].Held && list[1].State == "down" })
	upstream := daemon.dial()
	if got := upstream.ask(authorization("000001", testPIN)).Get(messages.ResponseCode); got != "00" {
		t.Fatalf("got %q, want 00", got)
	}
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = taken.Close() }()
	third := newProcessor(t, approveRightPIN)
	daemon.rewrite(fmt.Sprintf("links: [%q, %q]", first.address, second.address), fmt.Sprintf("links: [%q]", third.address),
		"dialect: iso87-binary,", `dialect: iso87-binary, allow: ["192.0.2.0/24"],`,
		"endpoints:\n", fmt.Sprintf("  - { name: web, dialect: iso87-binary, listen: %q }\nendpoints:\n", taken.Addr()))
	if got := command(t, "config", "reload", "--config", daemon.config); got.code != 1 || !strings.Contains(got.err, "opening port of upstream web") {
		t.Fatalf("got %+v", got)
	}
	after := daemon.links()
	if len(after) != 2 || after[0].Since != before[0].Since || after[0].FramesOut < before[0].FramesOut {
		t.Errorf("the link that served was touched: it was %+v, and is %+v", before[0], after[0])
	}
	if !after[1].Held {
		t.Errorf("a link that an operator holds down is let up: it was %+v, and is %+v", before[1], after[1])
	}
	_ = upstream.conn.SetDeadline(time.Now().Add(patience))
	frame, err := upstream.codec.EncodeFrame(authorization("000002", testPIN))
	if err != nil {
		t.Fatal(err)
	}
	_, _ = upstream.conn.Write(frame)
	if _, err := upstream.codec.ReadFrame(upstream.conn); err != nil {
		t.Errorf("the upstream's connection was touched: %v", err)
	}
	daemon.stop()
	if code := daemon.exit(); code != 0 {
		t.Errorf("exit %d", code)
	}
}

// The old door's port is closed only after the new one's was opened.
func TestAnUpstreamMayTakeThePortOfTheOneThatItReplaces(t *testing.T) {
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := free.Addr().String()
	_ = free.Close()
	site := newSite(t, newProcessor(t, approveRightPIN))
	site.change(`dialect: iso87-binary, listen: "127.0.0.1:0"`, fmt.Sprintf("dialect: iso87-binary, listen: %q", address))
	site.create()
	daemon := site.start()
	daemon.inService(1)
	daemon.rewrite("name: pos-switch", "name: pos-switch-2")
	if got := command(t, "config", "check", "--config", daemon.config); got.code != 0 {
		t.Fatalf("got %+v", got)
	}
	if got := command(t, "config", "reload", "--config", daemon.config); got.code != 0 {
		t.Errorf("config check says ok, and reload %+v", got)
	}
	for stan := range 3 { // of the connections that wait, none is the one's or the other's
		if got := daemon.dial().ask(authorization(fmt.Sprintf("00000%d", stan+1), testPIN)).Get(messages.ResponseCode); got != "00" {
			t.Errorf("at the port that was handed over: got %q, want 00", got)
		}
	}
	daemon.log.await(t, "transaction", func(line map[string]any) bool { return line["upstream"] == "pos-switch-2" })
	daemon.stop()
	if code := daemon.exit(); code != 0 {
		t.Errorf("exit %d", code)
	}
}

// What cannot be opened before something that serves gives it up is named before anything is tried.
func TestAnAddressThatIsStillInUseIsNamed(t *testing.T) {
	load := func(oldnew ...string) *Config {
		cfg, err := loadConfig(changed(t, oldnew...))
		if err != nil {
			t.Fatal(err)
		}
		return cfg
	}
	const link, listens = `"127.0.0.1:9002"]`, `{ listen: "127.0.0.1:9002", allow: ["10.0.0.0/8"] }]`
	upstream := func(address string) []string {
		return []string{"endpoints:\n", fmt.Sprintf("  - { name: web, dialect: iso87-binary, listen: %q }\nendpoints:\n", address)}
	}
	for _, c := range []struct {
		name          string
		before, after []string
		want          string
	}{
		{"all addresses for one", nil, []string{"name: pos-switch", "name: web", `listen: "127.0.0.1:8583"`, `listen: ":8583"`},
			`upstreams[0].listen: ":8583" is in use by upstream pos-switch until it is given up: needs a reload without that first`},
		{"that of a link that goes", []string{link, listens}, upstream("[::ffff:127.0.0.1]:9002"),
			`upstreams[1].listen: "[::ffff:127.0.0.1]:9002" is in use by endpoint processor-a until it is given up: needs a reload without that first`},
		{"that of an upstream that goes", nil, []string{"name: pos-switch", "name: web", `listen: "127.0.0.1:8583"`, `listen: "localhost:8583"`}, ""},
		{"a free one", nil, upstream("127.0.0.2:8583"), ""},
		{"any", nil, upstream("127.0.0.1:0"), ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := ""
			for _, f := range planReload(load(c.before...), load(c.after...)).refused {
				got += f.String()
			}
			if got != c.want {
				t.Errorf("got %q, want %q", got, c.want)
			}
		})
	}
}

// An endpoint of a reload that is refused has no link: it may not dial the processor, and nothing counts for it.
func TestARefusedEndpointNeverDials(t *testing.T) {
	site := newSite(t, newProcessor(t, approveRightPIN))
	site.create()
	daemon := site.start()
	daemon.inService(1)
	silent, err := net.Listen("tcp", "127.0.0.1:0") // at once the processor, and a port that is taken
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = silent.Close() }()
	daemon.rewrite("endpoints:\n", fmt.Sprintf("  - { name: web, dialect: iso87-binary, listen: %q }\nendpoints:\n"+
		"  - { name: processor-b, dialect: iso87-ascii, links: [%q] }\n", silent.Addr(), silent.Addr()))
	if got := command(t, "config", "reload", "--config", daemon.config); got.code != 1 || !strings.Contains(got.err, "opening port of upstream web") {
		t.Fatalf("got %+v", got)
	}
	if _, metrics := daemon.get("/metrics"); strings.Contains(metrics, `"processor-b"`) || strings.Contains(metrics, `"web"`) {
		t.Errorf("what was refused has series:\n%s", metrics)
	}
	daemon.stop()
	if code := daemon.exit(); code != 0 {
		t.Errorf("exit %d", code)
	}
	_ = silent.(*net.TCPListener).SetDeadline(time.Now().Add(100 * time.Millisecond)) // whatever has dialled is here: the daemon has ended
	if c, err := silent.Accept(); err == nil {
		_ = c.Close()
		t.Error("the endpoint that was refused has dialled")
	}
}

// Its dialect and its key name and encrypt what is on record: to go and to come is no way around the restart.
func TestAnUpstreamComesBackAsItWas(t *testing.T) {
	site := newSite(t, newProcessor(t, approveRightPIN))
	const web = `  - { name: web, dialect: iso87-binary, listen: "127.0.0.1:0" }` + "\n"
	site.change("endpoints:\n", web+"endpoints:\n")
	site.create()
	daemon := site.start()
	daemon.inService(1)
	reload := func(want string, oldnew ...string) {
		t.Helper()
		daemon.rewrite(oldnew...)
		if got := command(t, "config", "reload", "--config", daemon.config); got.out+got.err != want {
			t.Fatalf("got %+v, want %q", got, want)
		}
	}
	other := strings.Replace(web, "iso87-binary", "iso87-ascii, pin_key: "+hsmtest.UpstreamKey, 1)
	reload("changed upstreams\n", web, "")
	reload("upstreams[1].dialect: is another one than \"web\" had, which went, and cannot change while the daemon serves: needs a restart\n"+
		"upstreams[1].pin_key: is another one than \"web\" had, which went, and cannot change while the daemon serves: needs a restart\n",
		"endpoints:\n", other+"endpoints:\n")
	reload("changed upstreams[1]\n", other, web)
	daemon.stop()
	if code := daemon.exit(); code != 0 {
		t.Errorf("exit %d", code)
	}
}

// A gauge that stays would be taken for what is.
func TestADoorThatWentTakesItsSeriesWithIt(t *testing.T) {
	cfg, err := loadConfig(changed(t, "endpoints:\n", `  - { name: web, dialect: iso87-binary, listen: "127.0.0.1:8584" }`+"\nendpoints:\n"))
	if err != nil {
		t.Fatal(err)
	}
	d := newDaemon(cfg, slog.New(slog.DiscardHandler))
	if _, err := d.newKeeper(); err != nil {
		t.Fatal(err)
	}
	made := func(i int) *door {
		o, err := d.newDoor(&cfg.Upstreams[i])
		if err != nil {
			t.Fatal(err)
		}
		d.serving[o.Name]++
		return o
	}
	series := func(upstream string) int {
		families, err := d.registry.Gather()
		if err != nil {
			t.Fatal(err)
		}
		n := 0
		for _, family := range families {
			for _, m := range family.Metric {
				for _, label := range m.Label {
					if label.GetName() == "upstream" && label.GetValue() == upstream {
						n++
					}
				}
			}
		}
		return n
	}
	made(0)
	web, again := made(1), made(1)
	all := series("web")
	web.close()
	d.left(web)
	if got := series("web"); got != all || all == 0 {
		t.Errorf("while another of the name serves there are %d series, want %d", got, all)
	}
	again.close()
	d.left(again)
	if got := series("web"); got != 0 {
		t.Errorf("there are %d series of it", got)
	}
	if got := series("pos-switch"); got != all {
		t.Errorf("there are %d series of another, want %d", got, all)
	}
}
