package main

import (
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"acquirerd/messages"
)

// expire writes certificates that have expired, the own one and the only authority.
func (f *folder) expire(a *authority) {
	f.t.Helper()
	key, certificate := a.issue("acquirer", -time.Hour)
	f.write("ours.pem", certificateBlock(certificate))
	f.write("ours.key", keyBlock(f.t, key))
	f.write("ca.pem", certificateBlock(certificate))
}

// Were it a fault, one link would keep a daemon that a crash has ended from paying what is owed to every other processor.
func TestServeStartsWithAnExpiredCertificate(t *testing.T) {
	a := newAuthority(t, "authority")
	f := newFolder(t)
	f.expire(a)
	site := newSite(t, newProcessor(t, approveRightPIN))
	site.change("endpoints:\n", fmt.Sprintf("endpoints:\n  - { name: processor-b, dialect: iso87-ascii, links: [\"127.0.0.1:1\"], tls: { ca_file: %q, cert_file: %q, key_file: %q } }\n",
		f.file("ca.pem"), f.file("ours.pem"), f.file("ours.key")))
	site.create()
	if got := command(t, "config", "check", "--config", site.config()); got.code != 0 || got.out != "ok\n" ||
		!strings.Contains(got.err, "warning: endpoints[0].tls.cert_file: expired on ") || !strings.Contains(got.err, "warning: endpoints[0].tls.ca_file: expired on ") {
		t.Errorf("config check: got %+v", got)
	}
	if got := command(t, "config", "check", "--strict", "--config", site.config()); got.code != 1 || got.out != "" || !strings.HasSuffix(got.err, "checking config: no fault, and 2 to be warned of\n") {
		t.Errorf("strict: got %+v", got)
	}
	daemon := site.start()
	daemon.inService(1)
	daemon.log.await(t, "config warning", func(line map[string]any) bool { return line["key"] == "endpoints[0].tls.cert_file" })
	if got := daemon.dial().ask(authorization("000001", testPIN)).Get(messages.ResponseCode); got != "00" {
		t.Errorf("to the other processor: got %q, want 00", got)
	}
	daemon.rewrite(`bins: ["4"]`, `bins: ["4", "5"]`)
	if got := command(t, "config", "reload", "--config", daemon.config); got != (result{0, "changed routes\n", ""}) {
		t.Errorf("reload: got %+v", got)
	}
	daemon.stop()
	if code := daemon.exit(); code != 0 {
		t.Errorf("exit %d", code)
	}
}

func TestWhatExpiredIsWarnedOfEachHour(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAuthority(t, "authority")
		f := newFolder(t)
		f.fill(a, "acquirer", 30*time.Minute, a) // and then not any more
		cfg, err := loadConfig(changed(t, "reply_timeout: 10s", fmt.Sprintf("reply_timeout: 10s\n    tls: { ca_file: %q, cert_file: %q, key_file: %q }",
			f.file("ca.pem"), f.file("ours.pem"), f.file("ours.key"))))
		if err != nil {
			t.Fatal(err)
		}
		log := newLogbook()
		d := newDaemon(cfg, slog.New(slog.NewJSONHandler(log, nil)))
		k, err := d.newKeeper()
		if err != nil {
			t.Fatal(err)
		}
		d.start("reload", k.run)
		time.Sleep(3*time.Hour + time.Minute) // of the bubble
		synctest.Wait()
		if got := strings.Count(log.String(), `"certificate is not valid: no connection can be opened with it","name":"endpoint processor-a","key":"cert_file"`); got != 3 {
			t.Errorf("it was warned of %d times in three hours, want 3:\n%s", got, log)
		}
		if err := d.teardown.inOrder(time.Minute, nil); err != nil {
			t.Error(err)
		}
	})
}

// Files that expired may be all that there is. They do not take the place of what is valid.
func TestWhatIsValidIsNotReplacedByWhatExpired(t *testing.T) {
	a := newAuthority(t, "authority")
	f := newFolder(t)
	f.fill(a, "acquirer", year, a)
	c, p, registry := newTestCertificates(t, f)
	before := p.current.Load()
	f.expire(a)
	c.look()
	if p.current.Load() != before || metric(t, registry, "acquirerd_certificate_reads_total", "endpoint a", readFailed) != 1 {
		t.Error("files that have expired were taken")
	}
	_, err := c.readAll(&Config{Endpoints: []EndpointConfig{{Name: "a", TLS: &LinkTLS{CAFile: f.file("ca.pem"), CertFile: f.file("ours.pem"), KeyFile: f.file("ours.key")}}}})
	if err == nil || !strings.Contains(err.Error(), "endpoints[0].tls.cert_file: expired on ") || !strings.Contains(err.Error(), "endpoints[0].tls.ca_file: expired on ") {
		t.Errorf("a reload: got %v", err)
	}

	// Nor do they keep out what is as bad, and then what is better.
	f.fill(a, "acquirer", time.Hour, a)
	c.look()
	if p.current.Load() == before {
		t.Error("new files are not taken")
	}
	expired := newFolder(t)
	expired.expire(a)
	c, p, _ = newTestCertificates(t, expired)
	before = p.current.Load()
	expired.expire(a)
	c.look()
	if p.current.Load() == before {
		t.Error("files that are as bad are not taken")
	}
}

func TestTheSpanOfCertificatesIsThatOfTheValidOneThatEndsFirst(t *testing.T) {
	now := time.Now()
	at := func(from, to int) span {
		return span{now.Add(time.Duration(from) * time.Hour), now.Add(time.Duration(to) * time.Hour)}
	}
	for _, c := range []struct {
		name string
		list []span
		want int // hours to its end
	}{
		{"one of them", []span{at(-9, 5)}, 5},
		{"valid ones", []span{at(-9, 5), at(-9, 3), at(-9, 4)}, 3},
		{"an expired one before", []span{at(-9, -1), at(-9, 5)}, 5},
		{"an expired one behind", []span{at(-9, 5), at(-9, -1)}, 5},
		{"expired ones", []span{at(-9, -3), at(-9, -1), at(-9, -2)}, -1},
		{"one of the future beside a valid one", []span{at(1, 9), at(-1, 2), at(1, 3)}, 2},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := &material{spans: map[string][]span{kindAuthority: c.list}}
			got, has := m.span(kindAuthority, now)
			if want := now.Add(time.Duration(c.want) * time.Hour); !has || !got.to.Equal(want) {
				t.Errorf("got %v, want %v", got.to, want)
			}
			if valid := c.want > 0; (got.covers(now) == nil) != valid {
				t.Errorf("valid: got %v, want %v", got.covers(now), valid)
			}
		})
	}
}
