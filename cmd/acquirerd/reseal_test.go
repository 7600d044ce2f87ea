package main

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"acquirerd/acquirer"
	"acquirerd/hsm"
	"acquirerd/hsm/hsmtest"
	"acquirerd/journal"
	"acquirerd/messages"
)

// sealedUnder counts the seals of a site, as the commands on keys do.
func (s *site) sealedUnder(path string) map[string]int64 {
	s.t.Helper()
	counts, err := (&cli{config: path}).sealedUnder(s.t.Context())
	if err != nil {
		s.t.Fatal(err)
	}
	return counts
}

// sells has a daemon carry so many authorizations, and ends it.
func (s *site) sells(first, count int) {
	s.t.Helper()
	daemon := s.start()
	daemon.inService(1)
	upstream := daemon.dial()
	for i := range count {
		if got := upstream.ask(authorization(fmt.Sprintf("%06d", first+i), "")).Get(messages.ResponseCode); got != "00" {
			s.t.Fatalf("got %q", got)
		}
	}
	daemon.stop()
	if code := daemon.exit(); code != 0 {
		s.t.Fatalf("exit %d", code)
	}
}

// newSeal gives the site a second seal key, which seals from now on.
func (s *site) newSeal() {
	s.token.Put("pan-seal-2", hsm.PANSeal, []byte("another key of the test, 32 byte"))
	s.change("seal_key: "+hsmtest.SealKey, "seal_key: pan-seal-2")
}

func TestSealsAreRenewedBesideADaemonAndWithoutOne(t *testing.T) {
	site := newSite(t, newProcessor(t, approveRightPIN))
	site.create()
	site.sells(1, 3)
	old := hsmtest.SealKey
	if got := site.sealedUnder(site.config()); !maps.Equal(got, map[string]int64{old: 3}) {
		t.Fatalf("sealed under %v", got)
	}
	site.newSeal()
	path := site.config()
	daemon := site.start()
	daemon.inService(1)
	if got := daemon.dial().ask(authorization("000101", "")).Get(messages.ResponseCode); got != "00" {
		t.Fatalf("got %q", got)
	}
	got := command(t, "journal", "reseal", "--config", path)
	if got.code != 0 || got.out != "resealed 3 under pan-seal-2, 0 unreadable, 0 remaining\n" {
		t.Errorf("got %+v", got)
	}
	if got := site.sealedUnder(path); !maps.Equal(got, map[string]int64{"pan-seal-2": 4}) {
		t.Errorf("sealed under %v", got)
	}
	if _, metrics := daemon.get("/metrics"); !strings.Contains(metrics, "acquirerd_reseal_remaining 0") || !strings.Contains(metrics, "acquirerd_reseal_unreadable 0") {
		t.Error("the gauge is missing")
	}
	got = command(t, "journal", "reseal", "--config", path, "--output", "json")
	var p acquirer.ResealProgress
	if err := json.Unmarshal([]byte(got.out), &p); got.code != 0 || err != nil || p.Total != 0 || p.Running || p.Key != "pan-seal-2" || p.List == nil || got.err != "" {
		t.Errorf("again: got %+v, %v", got, err)
	}
	rows := auditRows(t, path, "--what", "reseal")
	if len(rows) != 4 || rows[0].Who != me(t) || rows[0].Detail != "asked for" || rows[0].Key != "pan-seal-2" || len(rows[0].KCV) != 6 || rows[1].Who != "acq01" ||
		rows[1].Detail != "ended: resealed 3, unreadable 0, remaining 0" || rows[1].Result != "ok" {
		t.Errorf("rows %+v", rows)
	}
	// A repeat is answered from what was resealed, and a later reversal finds its PAN.
	if got := daemon.dial().ask(authorization("000001", "")).Get(messages.ResponseCode); got != "00" {
		t.Errorf("a repeat got %q", got)
	}
	daemon.stop()
	if code := daemon.exit(); code != 0 {
		t.Errorf("exit %d", code)
	}

	// And back, without a daemon.
	site.change("seal_key: pan-seal-2", "seal_key: "+old)
	path = site.config()
	if got := command(t, "journal", "reseal", "--config", path); got != (result{0, "resealed 4 under " + old + ", 0 unreadable, 0 remaining\n", ""}) {
		t.Errorf("got %+v", got)
	}
	if got := site.sealedUnder(path); !maps.Equal(got, map[string]int64{old: 4}) {
		t.Errorf("sealed under %v", got)
	}
	rows = auditRows(t, path, "--what", "reseal")
	if last := rows[len(rows)-1]; last.Who != me(t) || last.Detail != "ended: resealed 4, unreadable 0, remaining 0" {
		t.Errorf("last row %+v", last)
	}
	if row := has(auditRows(t, path, "--key", "pan-seal-2"), "load", "pan-seal-2", "ok"); row == nil {
		t.Error("the command's own load of a key is not on record")
	}
	if got := command(t, "journal", "audit", "--verify", "--config", path); got.code != 0 {
		t.Errorf("got %+v", got)
	}
}

// A key that is not in the config any more, and a seal that is damaged: both are listed, and nothing is lost.
func TestSealsThatCannotBeRenewedAreListed(t *testing.T) {
	site := newSite(t, newProcessor(t, approveRightPIN))
	site.create()
	site.sells(1, 2)
	site.newSeal()
	site.sells(101, 2)
	with := site.config()
	// The old key is taken out.
	site.token.Keys = slices.DeleteFunc(slices.Clone(site.token.Keys), func(k hsm.Key) bool { return k.Label == hsmtest.SealKey })
	path := site.config()
	got := command(t, "journal", "reseal", "--config", path)
	if got.code != 1 || !strings.HasPrefix(got.out, "resealed 0 under pan-seal-2, 2 unreadable, 0 remaining\nPART             ID  KEY         PROBLEM\n") ||
		strings.Count(got.out, "transaction PAN") != 2 || !strings.Contains(got.out, "its key is not in the configuration") ||
		got.err != "acquirerd: resealing: 2 seals cannot be opened, and stay as they are\n" {
		t.Errorf("got %+v", got)
	}
	if got := site.sealedUnder(path); !maps.Equal(got, map[string]int64{hsmtest.SealKey: 2, "pan-seal-2": 2}) {
		t.Errorf("sealed under %v", got)
	}
	// The key comes back, but of one seal a byte is another.
	if n := damage(t, site.journal, 1); n != 1 {
		t.Fatalf("%d seals damaged", n)
	}
	got = command(t, "journal", "reseal", "--config", with, "--output", "json")
	var p acquirer.ResealProgress
	if err := json.Unmarshal([]byte(got.out), &p); err != nil || got.code != 1 || p.Resealed != 1 || p.Unreadable != 1 || len(p.List) != 1 || p.List[0].ID != 1 ||
		!strings.Contains(p.List[0].Problem, "damaged") {
		t.Errorf("got %+v, %v", got, err)
	}
}

// damage puts another seal under the same name in the place of a transaction's, by way of a seal of a key of no meaning.
func damage(t *testing.T, path string, id int64) int {
	t.Helper()
	damaged := 0
	err := (&cli{}).openJournal(t.Context(), &Config{Station: "acq01", Journal: JournalConfig{Path: path}}, func(j *journal.Journal) error {
		seals, _, _, err := j.SealsElsewhere(t.Context(), "", journal.TransactionPAN, id-1, 1)
		if err != nil || len(seals) != 1 || seals[0].ID != id {
			return fmt.Errorf("%+v, %w", seals, err)
		}
		// The file does not let a seal change under its own key.
		between := seals[0]
		between.Sealed.KeyID, between.Sealed.Ciphertext = "none", append([]byte{seals[0].Sealed.Ciphertext[0] ^ 1}, seals[0].Sealed.Ciphertext[1:]...)
		end := between
		end.Sealed.KeyID, end.Sealed.Ciphertext = seals[0].Sealed.KeyID, append([]byte{between.Sealed.Ciphertext[0] ^ 2}, between.Sealed.Ciphertext[1:]...)
		if _, err := j.Reseal(t.Context(), []journal.Resealing{{Old: seals[0], New: between.Sealed}}); err != nil {
			return err
		}
		damaged, err = j.Reseal(t.Context(), []journal.Resealing{{Old: between, New: end.Sealed}})
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return damaged
}

// Who has asked for a pass is on record before it begins, and its end before the command that waits for it is told: here nobody writes rows behind its back yet.
func TestAPassIsOnRecordWhenItsCommandEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		kept := &trail{took: time.Second}
		a, err := newAuditor(kept, "acq01", slog.New(slog.DiscardHandler), prometheus.NewRegistry())
		if err != nil {
			t.Fatal(err)
		}
		resealer := func() *acquirer.Resealer { // that nobody runs
			r, err := acquirer.NewResealer(acquirer.ResealConfig{Store: struct{ acquirer.SealStore }{}, Vault: struct{ acquirer.Sealer }{}, Key: "seal", Opens: []string{"seal"}},
				slog.New(slog.DiscardHandler), prometheus.NewRegistry())
			if err != nil {
				t.Fatal(err)
			}
			return r
		}
		r := resealer()
		d := &daemon{cfg: &Config{HSM: HSMConfig{SealKey: "seal"}}, auditor: a, resealer: r}
		ask := func(do http.HandlerFunc, method string) int {
			w := httptest.NewRecorder()
			do(w, httptest.NewRequest(method, "/journal/reseal", nil))
			return w.Code
		}
		kept.err = journal.ErrFailed
		if got := ask(d.controlReseal, http.MethodPost); got != http.StatusServiceUnavailable || r.Progress().Running {
			t.Errorf("without a record: %d, and it has begun: %v", got, r.Progress().Running)
		}
		kept.err = nil
		if got := ask(d.controlReseal, http.MethodPost); got != http.StatusOK || !r.Progress().Running || kept.count() != 1 || kept.events[0].Detail != "asked for" {
			t.Errorf("got %d; on record are %+v", got, kept.events)
		}

		d.resealer = resealer() // its pass is over
		ctx, stop := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- a.Run(ctx) }()
		a.note(journal.AuditEvent{What: "reseal", Detail: "ended"})
		if got := ask(d.controlResealProgress, http.MethodGet); got != http.StatusOK || kept.count() != 2 {
			t.Errorf("got %d; on record are %+v", got, kept.events)
		}
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
}
