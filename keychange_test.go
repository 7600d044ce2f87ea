package acquirerd_test

import (
	"bytes"
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"acquirerd/simulator"
)

var keyChanges = flag.Int("keychanges", 5, "for how many seconds TestKeyChangeEverySecond changes the zone key each second")

// keySyncDialect is iso87-ascii of a processor that says by 63 that it could not read a PIN under its zone key.
func keySyncDialect(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("specs", "iso87-ascii.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "key-sync.yaml")
	changed := bytes.Replace(text, []byte("\npartial:"), []byte("\nkey_sync: [\"63\"]\npartial:"), 1)
	if bytes.Equal(changed, text) {
		t.Fatal("the dialect is not changed")
	}
	if err := os.WriteFile(path, changed, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// TestKeyChangeEverySecond has the processor change its zone key every second while the real daemon translates PINs on a real token: each change
// is accepted, and no transaction fails by one, nor is any PIN block taken for a wrong PIN. One of the changes is asked for by an operator. In the end all
// ledgers agree, and the token holds few versions.
//
//	go test -run KeyChangeEverySecond . -keychanges 60
func TestKeyChangeEverySecond(t *testing.T) {
	t.Setenv("ACQUIRERD_HSM_KEY_CHANGES", "120") // a minute; the default is far less
	// The processor is slower than we are: for a while it reads no PIN under the key that it has sent.
	cast, err := simulator.NewCast(t.Context(), simulator.CastConfig{ProcessorDialect: keySyncDialect(t), Processor: simulator.ProcessorConfig{
		Adoption: 50 * time.Millisecond}, Stage: simulator.StageConfig{
		Dir: filepath.Join(t.TempDir(), "stage"), Daemon: daemon(t), ZMK: true, ReplyTimeout: 10 * time.Second, RetryMin: 100 * time.Millisecond,
		RetryMax: time.Second, InFlight: 64}})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := cast.Close(); err != nil {
			t.Error(err)
		}
	}()
	ctx, stage, pid := t.Context(), cast.Stage, cast.Stage.PID()

	enough := make(chan struct{})
	var asking sync.WaitGroup
	var approved, others atomic.Int64
	var done [4]atomic.Int64 // transactions, by asker
	for i := range done {
		asking.Go(func() {
			for n := i; ; n++ {
				select {
				case <-enough:
					return
				default:
				}
				c := simulator.TestCards()[n%len(simulator.TestCards())]
				if c.Effects != "" || c.PIN.IsZero() || !c.PAN.HasPrefix("4") && !c.PAN.HasPrefix("5") {
					continue
				}
				entry, err := cast.Upstream.Do(ctx, simulator.Request{PAN: c.PAN, PIN: c.PIN, Amount: 1000})
				switch {
				case err != nil:
					t.Error(err)
					return
				case entry.ResponseCode == "00":
					approved.Add(1)
				default:
					others.Add(1)
					t.Errorf("answered %s", entry.ResponseCode)
				}
				done[i].Add(1)
			}
		})
	}
	before, changes := cast.Processor.ZoneKCV(), 0
	for range *keyChanges {
		next := time.After(time.Second)
		was := cast.Processor.ZoneKCV()
		if err := cast.Processor.Demand(ctx, simulator.DemandKeyChange); err != nil {
			t.Error(err)
		}
		changes++
		eventually(t, "the processor's own change", func() bool { return cast.Processor.ZoneKCV() != was })
		// What is in flight has begun since, so that no transaction meets two changes, however slow this machine is.
		for i := range done {
			since := done[i].Load()
			eventually(t, "transactions under the new key", func() bool { return done[i].Load() >= since+2 || t.Failed() })
		}
		<-next
	}
	out, err := stage.Command(ctx, "keys", "rotate", "--endpoint", "processor-a", "--output", "json")
	var rotated struct {
		Version int    `json:"version"`
		KCV     string `json:"kcv"`
	}
	if also := json.Unmarshal(out, &rotated); err != nil || also != nil || rotated.Version != changes+2 {
		t.Errorf("an operator's rotation: %s, %v, %v", out, err, also)
	}
	close(enough)
	asking.Wait()

	eventually(t, "the processor's new key", func() bool { return cast.Processor.ZoneKCV() == rotated.KCV })
	if before == rotated.KCV {
		t.Error("the key has not changed")
	}
	if stage.PID() != pid {
		t.Error("the daemon was started again")
	}
	if err := stage.AwaitNothingOwed(ctx); err != nil {
		t.Error(err)
	}
	accounts, err := stage.Accounts(ctx)
	if err != nil {
		t.Fatal(err)
	}
	again := 0
	for _, a := range accounts {
		if a.UpstreamKey == "" {
			again++
		}
	}
	ledger := cast.Processor.Ledger().Snapshot()
	for _, d := range simulator.Compare(accounts, ledger, cast.Upstream.Book().Snapshot()).Disagreements {
		t.Error(d)
	}
	counts := ledger.Counts
	t.Logf("%d changes, %d transactions, %d of them asked for again under the other key: %d PINs right, %d wrong, %d unread", changes+1, approved.Load(),
		again, counts.RightPINs, counts.WrongPINs, counts.MalformedPINBlocks)
	if counts.WrongPINs > 0 || int(counts.MalformedPINBlocks) != again {
		t.Error("a PIN block was not what it should be")
	}
	if counts.DemandsRefused+counts.DemandsUnanswered+counts.DemandsLost > 0 {
		t.Errorf("a change was not accepted: %+v", counts)
	}
	// The token is the daemon's own: it is looked at when that has ended.
	if err := stage.Stop(); err != nil {
		t.Error(err)
	}
	if out, err = stage.Command(ctx, "keys", "list"); err != nil {
		t.Error(err)
	}
	if n := strings.Count(string(out), "zpk-processor-a"); n < 1 || n > 10 {
		t.Errorf("%d versions are in the token:\n%s", n, out)
	}
}
