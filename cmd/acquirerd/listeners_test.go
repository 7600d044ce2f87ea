package main

import (
	"log/slog"
	"testing"
)

// The second would never be in service, and only its log would say why.
func TestOneHostUnderTwoSpellingsIsOneListener(t *testing.T) {
	_, err := loadConfig(changed(t, `links: ["127.0.0.1:9001", "127.0.0.1:9002"]`,
		`links: [{ listen: "127.0.0.1:9001", allow: ["127.0.0.0/8"] }, { listen: "[::ffff:127.0.0.1]:9001", allow: ["127.0.0.0/8"] }]`))
	if err == nil {
		t.Error("two listeners at one address, and no fault")
	}
}

// What config check takes, serve takes.
func TestLinksThatShareAListenerAgreeOnWhoMayDial(t *testing.T) {
	cfg, err := loadConfig(changed(t, `links: ["127.0.0.1:9001", "127.0.0.1:9002"]`,
		`links: [{ listen: "127.0.0.1:0", allow: ["127.0.0.0/8"] }, { listen: "127.0.0.1:0", allow: ["10.0.0.0/8"] }]`))
	if err != nil {
		return // named: fine
	}
	d := newDaemon(cfg, slog.New(slog.DiscardHandler))
	if _, err := d.newKeeper(); err != nil {
		t.Fatal(err)
	}
	if _, err := d.newEndpoint(&cfg.Endpoints[0]); err != nil {
		t.Errorf("config check says ok, and serve %v", err)
	}
}
