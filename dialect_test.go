package acquirerd_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"acquirerd/messages"
	"acquirerd/simulator"
)

// copied makes a dialect file of a built-in one by changes of its text: what was there, what is.
func copied(t *testing.T, dir, from, to string, changes ...string) (path string) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("specs", from+".yaml"))
	if err != nil {
		t.Fatal(err)
	}
	path = filepath.Join(dir, to+".yaml")
	if err := os.WriteFile(path, text, 0o600); err != nil {
		t.Fatal(err)
	}
	changes = append(changes, "name: "+from, "name: "+to)
	for i := 0; i < len(changes); i += 2 {
		rewrite(t, path, changes[i], changes[i+1])
	}
	return path
}

// TestADialectIsAFile has two parties that no line of Go knows: their dialect files are copies of built-in ones, with other framings, headers,
// encodings, codes and ways with a reversal. The real daemon stands between them, and at the end journal, ledger and book agree.
func TestADialectIsAFile(t *testing.T) {
	binary := daemon(t)
	ctx, dir := t.Context(), t.TempDir()
	upstream := copied(t, dir, "iso87-binary", "pos-switch",
		"framing: { length: binary-2, max: 4096 }", "framing: { length: binary-4, inclusive: true, keepalive: answered, max: 2000 }\nheader: { form: literal, value: \"504F53\" }",
		"enc: Text", "enc: EBCDICText",
		"enc: BCDRight", "enc: BCDRightF",
		`sign_on: "001"`, `sign_on: "081"`)
	processor := copied(t, dir, "iso87-ascii", "processor-x",
		"framing: { length: ascii-4, max: 4096 }", "framing: { length: bcd-2, max: 3000 }\nheader: { form: tpdu, value: \"6000010002\" }",
		"enc: HexText", "enc: Binary", "enc: Text", "enc: EBCDICText", "enc: Digits", "enc: EBCDICDigits", "enc: SignedDigits", "enc: EBCDICSignedDigits",
		"enc: Track2,", "enc: EBCDICTrack2,", "prefix: ASCII.", "prefix: EBCDIC.",
		`sign_on: "001"`, `sign_on: "061"`, `echo: "301"`, `echo: "270"`,
		`type: "0420"`, `type: "0400"`, "numbers: original", "numbers: new", "replacement: iso87-de95", "replacement: iso87-de95-always")
	for _, path := range []string{upstream, processor} {
		if out, err := exec.CommandContext(ctx, binary, "dialect", "lint", path).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	cast, err := simulator.NewCast(ctx, simulator.CastConfig{UpstreamDialect: upstream, ProcessorDialect: processor,
		Stage: simulator.StageConfig{Dir: filepath.Join(dir, "stage"), Daemon: binary, ReplyTimeout: time.Second, RetryMin: 100 * time.Millisecond,
			RetryMax: time.Second, NotFound: 2 * time.Second, EchoInterval: 200 * time.Millisecond, InFlight: 16},
		Upstream: simulator.UpstreamConfig{ReplyTimeout: 20 * time.Second, AcquirerID: "12345", Keepalives: 50 * time.Millisecond}})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := cast.Close(); err != nil {
			t.Error(err)
		}
	}()
	card := simulator.TestCards()[3]
	ask := func(r simulator.Request, want string) simulator.Entry {
		t.Helper()
		r.PAN = card.PAN
		entry, err := cast.Upstream.Do(ctx, r)
		if err != nil {
			t.Fatal(err)
		}
		if entry.Outcome != simulator.Answered || entry.ResponseCode != want {
			t.Errorf("%s over %d is %s %s, want %s", r.MTI, r.Amount, entry.Outcome, entry.ResponseCode, want)
		}
		return entry
	}
	kept := ask(simulator.Request{Amount: 1250, PIN: card.PIN}, "00")
	undone := ask(simulator.Request{MTI: messages.FinancialRequest, Amount: 1300}, "00")
	lowered := ask(simulator.Request{Amount: 1400}, "00")
	parted := ask(simulator.Request{Amount: 9000}, "10")
	ask(simulator.Request{Amount: 9051}, "51")
	wrong, err := simulator.ParsePIN("9999")
	if err != nil {
		t.Fatal(err)
	}
	ask(simulator.Request{Amount: 1500, PIN: wrong}, "55")
	ask(simulator.Request{Amount: 9200}, "91") // decided and never answered: a reversal is owed
	again := simulator.Request{MTI: "0101", Amount: 1250, PIN: card.PIN}.Again(kept)
	if repeated := ask(again, "00"); repeated.AuthorizationID != kept.AuthorizationID {
		t.Errorf("a repeat is answered with DE 38 %q, and not %q", repeated.AuthorizationID, kept.AuthorizationID)
	}
	ask(simulator.Request{MTI: messages.ReversalAdvice, OriginalMTI: undone.MTI, Amount: 1300, AuthorizationID: undone.AuthorizationID}.Again(undone), "00")
	ask(simulator.Request{MTI: messages.ReversalAdvice, Amount: 1400, Replacement: 600, AuthorizationID: lowered.AuthorizationID}.Again(lowered), "00")
	ask(simulator.Request{MTI: messages.FinancialAdvice, Amount: parted.ApprovedAmount, AuthorizationID: parted.AuthorizationID}, "00")
	if err := cast.Stage.AwaitNothingOwed(ctx); err != nil {
		t.Fatal(err)
	}

	accounts, err := cast.Stage.Accounts(ctx)
	if err != nil {
		t.Fatal(err)
	}
	snapshot := cast.Processor.Ledger().Snapshot()
	verdict := simulator.Compare(accounts, snapshot, cast.Upstream.Book().Snapshot())
	for _, disagreement := range verdict.Disagreements {
		if !strings.HasPrefix(disagreement, "an approval that the upstream was told of is reversed") { // it has reversed two itself
			t.Error(disagreement)
		}
	}
	held := map[int64]int64{}
	for _, h := range snapshot.InState(simulator.Held) {
		held[h.Amount] = h.ApprovedAmount
	}
	if len(held) != 4 || held[1250] != 1250 || held[1400] != 600 || held[9000] != 4500 || held[4500] != 4500 {
		t.Errorf("the processor holds %v", held)
	}
	if c := snapshot.Counts; c.Reversed != 2 || c.PartialReversals != 1 || c.Advices != 1 || c.RightPINs == 0 || c.WrongPINs != 1 || c.SignOns < 2 || c.Echoes == 0 ||
		c.FormatErrors+c.MalformedPINBlocks+c.Unsupported > 0 {
		t.Errorf("the processor counts %+v", c)
	}
}

// TestAStageKnowsItsOwnDaemon has a daemon that cannot have its operations port, because another one has it and is well.
func TestAStageKnowsItsOwnDaemon(t *testing.T) {
	binary := daemon(t)
	stageOf := func(name string) *simulator.Stage {
		t.Helper()
		s, err := simulator.NewStage(t.Context(), simulator.StageConfig{Dir: filepath.Join(t.TempDir(), name), Daemon: binary, Links: []string{"127.0.0.1:1"},
			ReplyTimeout: time.Second, RetryMin: time.Second, RetryMax: time.Second, InFlight: 16})
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	first, second := stageOf("first"), stageOf("second")
	if first.Upstream == second.Upstream || first.Operations == second.Operations {
		t.Errorf("two stages have the addresses %s, %s and %s, %s", first.Upstream, first.Operations, second.Upstream, second.Operations)
	}
	if err := first.Start(t.Context(), false); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := first.Stop(); err != nil {
			t.Error(err)
		}
	}()
	rewrite(t, second.Config, second.Operations, first.Operations)
	second.Operations = first.Operations
	if err := second.Start(t.Context(), false); err == nil {
		t.Error("another daemon's health was taken for its own")
		_ = second.Stop()
	}
}
