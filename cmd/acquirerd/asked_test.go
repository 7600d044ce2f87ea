package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"acquirerd/hsm"
	"acquirerd/hsm/hsmtest"
	"acquirerd/journal"
)

// toldBy is what rows say, without when and by whom.
func toldBy(rows []auditLine) (list []string) {
	for _, row := range rows {
		list = append(list, strings.Join(strings.Fields(strings.Join([]string{row.What, row.Key, row.KCV, row.Result, row.Detail}, " ")), " "))
	}
	return list
}

// keyChanges are commands that change keys, or leave components of one: each does what it is asked for in a token that has the kbpk key kbpk-1 and the key spare. The files
// that two of them make are in dir.
func keyChanges(t *testing.T, path, dir string, spare hsm.Key) map[string][]string {
	t.Helper()
	changes := map[string][]string{
		"generate": {"--label", "made", "--use", "pan-seal"},
		"import": {"--label", "brought", "--use", "pin-in", "--kcv", hsmtest.KCV(hsm.PINIn, xored(t, componentA, componentB)), "--custodian", "alice", "--custodian", "bob",
			"--component", componentFile(t, componentA, kcvA), "--component", componentFile(t, componentB, kcvB)},
		"export":     {"--label", "given", "--use", "pin-in", "--kbpk", "kbpk-1", "--file", filepath.Join(dir, "block")},
		"components": {"--use", "zmk", "--file", filepath.Join(dir, "a"), "--file", filepath.Join(dir, "b")},
		"destroy":    {"--label", spare.Label, "--kcv", spare.KCV},
	}
	for name, args := range changes {
		changes[name] = append([]string{"keys", name, "--config", path}, args...)
	}
	return changes
}

// xored is the key that two components make.
func xored(t *testing.T, first, second string) []byte {
	t.Helper()
	key, other := make([]byte, len(first)/2), make([]byte, len(second)/2)
	if _, err := fmt.Sscanf(first+" "+second, "%x %x", &key, &other); err != nil {
		t.Fatal(err)
	}
	for i := range key {
		key[i] ^= other[i]
	}
	return key
}

func TestEachChangeOfAKeyIsTwoRows(t *testing.T) {
	site := newSite(t)
	path := site.config()
	spare := site.token.Put("spare", hsm.ZMK, hsmtest.ZoneKey("spare", 16))
	if got := command(t, "keys", "generate", "--config", path, "--label", "kbpk-1", "--use", "kbpk", "--algorithm", "aes"); got.code != 0 ||
		got.err != "acquirerd: warning: there is no journal yet, so generate of key kbpk-1 is not in its audit table\n" {
		t.Fatalf("before there is a journal: got %+v", got)
	}
	site.create()
	changes := keyChanges(t, path, t.TempDir(), spare)
	for _, name := range []string{"generate", "import", "export", "components", "destroy"} {
		if got := command(t, changes[name]...); got.code != 0 || got.err != "" {
			t.Errorf("%s: got %+v", name, got)
		}
	}
	if got := command(t, changes["destroy"]...); got.code != 1 {
		t.Errorf("destroyed twice: got %+v", got)
	}
	shown := command(t, "keys", "kcv", "--config", path, "--label", "brought")
	var kcvs []string // of what was made by chance
	rows := auditRows(t, path)
	for _, i := range []int{1, 5, 7} {
		if len(rows) == 13 && sixHex.MatchString(rows[i].KCV) {
			kcvs = append(kcvs, rows[i].KCV)
		} else {
			t.Fatalf("rows %s", strings.Join(toldBy(rows), "\n"))
		}
	}
	brought := strings.TrimSpace(shown.out)
	want := []string{
		"generate made asked", "generate made " + kcvs[0] + " ok",
		"import brought " + brought + " asked components of alice, bob", "import brought " + brought + " ok components of alice, bob",
		"export given asked key block under kbpk-1", "export given " + kcvs[1] + " ok key block under kbpk-1",
		"components asked 2 components of a zmk key", "components " + kcvs[2] + " ok 2 components of a zmk key",
		"destroy spare " + spare.KCV + " asked", "destroy spare " + spare.KCV + " ok",
		"destroy spare " + spare.KCV + " asked", "destroy spare " + spare.KCV + " the token has 0 keys with the label spare",
		"kcv brought " + brought + " ok", // which changes nothing
	}
	if got := toldBy(rows); !slices.Equal(got, want) {
		t.Errorf("rows\n%s, want\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// A slip of the pen in the config must not take a key off the record.
func TestAFaultOfTheJournalsConfigIsNoWantOfAJournal(t *testing.T) {
	site := newSite(t)
	path := site.config()
	site.create()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, append(text, "\njournal.batch: none\n"...), 0o600); err != nil {
		t.Fatal(err)
	}
	got := command(t, "keys", "generate", "--config", path, "--label", "kbpk-1", "--use", "kbpk", "--algorithm", "aes")
	if got.code != 1 || !strings.Contains(got.err, "journal") {
		t.Errorf("got %+v", got)
	}
	if listed := command(t, "keys", "list", "--config", path); strings.Contains(listed.out, "kbpk-1") {
		t.Error("the key was made")
	}
}

func TestNoKeyIsChangedThatCannotBeRecorded(t *testing.T) {
	site := newSite(t)
	path, dir := site.config(), t.TempDir()
	spare := site.token.Put("spare", hsm.ZMK, hsmtest.ZoneKey("spare", 16))
	if got := command(t, "keys", "generate", "--config", path, "--label", "kbpk-1", "--use", "kbpk", "--algorithm", "aes"); got.code != 0 {
		t.Fatalf("got %+v", got)
	}
	site.create()
	changes := keyChanges(t, path, dir, spare)
	before := command(t, "keys", "list", "--config", path)

	// Somebody else holds the journal, and takes no rows.
	held, err := (&cli{}).openForChange(&Config{Station: "acq01", Journal: JournalConfig{Path: site.journal}})
	if err != nil {
		t.Fatal(err)
	}
	for name, args := range changes {
		if got := command(t, args...); got.code != 1 || got.out != "" || !strings.HasPrefix(got.err, "acquirerd: doing nothing, because it cannot be recorded: recording "+name) {
			t.Errorf("%s: got %+v", name, got)
		}
	}
	if err := held.Close(); err != nil {
		t.Fatal(err)
	}
	if after := command(t, "keys", "list", "--config", path); after != before || after.code != 0 {
		t.Errorf("the token has\n%+v, and had\n%+v", after, before)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 0 {
		t.Errorf("files were left: %v, %v", left, err)
	}
	if rows := auditRows(t, path); len(rows) != 0 {
		t.Errorf("rows %+v", rows)
	}
	for name, args := range changes { // it was the record, and nothing else
		if got := command(t, args...); got.code != 0 {
			t.Errorf("%s: got %+v", name, got)
		}
	}
}

// registrar answers commands at the control socket as a daemon does, with the journal that it holds, until it is stopped. It puts an event on record if may lets it, which is
// given its number.
func registrar(t *testing.T, site *site, may func(r *http.Request, number int) error) (stop func()) {
	t.Helper()
	cfg := &Config{Station: "acq01", Journal: JournalConfig{Path: site.journal}}
	j, err := (&cli{}).openForChange(cfg)
	if err != nil {
		t.Fatal(err)
	}
	listener, err := net.Listen("unix", socketPath(cfg))
	if err != nil {
		t.Fatal(err)
	}
	number := 0 // of one command, which sends them one after the other
	mux := http.NewServeMux()
	mux.HandleFunc("GET /keys", func(w http.ResponseWriter, _ *http.Request) { answer(w, http.StatusOK, servedKeys{}) })
	mux.HandleFunc("POST /audit", func(w http.ResponseWriter, r *http.Request) {
		var asked auditRequest
		err := json.NewDecoder(r.Body).Decode(&asked)
		if number++; err == nil {
			err = may(r, number)
		}
		if err == nil {
			_, err = j.Audit(r.Context(), journal.AuditEvent{Who: "somebody", What: asked.What, Key: asked.Key, KCV: asked.KCV, Result: asked.Result, Detail: asked.Detail})
		}
		if err != nil {
			refuseControl(w, http.StatusServiceUnavailable, err)
			return
		}
		answer(w, http.StatusOK, struct{}{})
	})
	server := &http.Server{Handler: mux, ReadHeaderTimeout: operationsHeaderTimeout}
	running, end := context.WithCancel(context.WithoutCancel(t.Context()))
	ended := make(chan error, 2)
	go func() { ended <- j.Run(running) }()
	go func() { ended <- server.Serve(listener) }()
	return func() {
		err := server.Close()
		end()
		for range 2 {
			if e := <-ended; !errors.Is(e, http.ErrServerClosed) {
				err = errors.Join(err, e)
			}
		}
		if err := errors.Join(err, j.Close()); err != nil {
			t.Error(err)
		}
	}
}

// Killed when the key is gone and before that is on record.
func TestAKilledCommandHasLeftWhatItWasAskedFor(t *testing.T) {
	site := newSite(t)
	site.create()
	path := site.config()
	spare := site.token.Put("spare", hsm.ZMK, hsmtest.ZoneKey("spare", 16))
	done := make(chan struct{})
	stop := registrar(t, site, func(r *http.Request, number int) error {
		if number == 1 {
			return nil
		}
		close(done)
		<-r.Context().Done() // its end is never on record
		return r.Context().Err()
	})
	text, err := json.Marshal([]string{"keys", "destroy", "--config", path, "--label", "spare", "--kcv", spare.KCV})
	if err != nil {
		t.Fatal(err)
	}
	var errs bytes.Buffer
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestCommandOfAnotherProcess$")
	cmd.Env, cmd.Stderr = append(os.Environ(), argumentsOf+"="+string(text)), &errs
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	select {
	case <-done:
		if err := cmd.Process.Kill(); err != nil {
			t.Error(err)
		}
		<-ended
	case err := <-ended:
		t.Errorf("it has ended by itself: %v: %s", err, &errs)
	}
	stop()
	if got, want := toldBy(auditRows(t, path)), []string{"destroy spare " + spare.KCV + " asked"}; !slices.Equal(got, want) {
		t.Errorf("rows %q, want %q", got, want)
	}
	if got := command(t, "keys", "list", "--config", path); got.code != 0 || strings.Contains(got.out, "spare") {
		t.Errorf("the key is there: %+v", got)
	}
}

// What is done is done, and is given to who needs it, when its end cannot be recorded; and the command says so.
func TestAnEndThatCannotBeRecordedIsAnErrorOfTheCommand(t *testing.T) {
	site := newSite(t)
	path := site.config()
	if got := command(t, "keys", "generate", "--config", path, "--label", "kbpk-1", "--use", "kbpk", "--algorithm", "aes"); got.code != 0 {
		t.Fatalf("got %+v", got)
	}
	site.create()
	stop := registrar(t, site, func(_ *http.Request, number int) error {
		if number == 1 {
			return nil
		}
		return errors.New("disk full")
	})
	got := command(t, "keys", "export", "--config", path, "--label", "given", "--use", "pin-in", "--kbpk", "kbpk-1", "--file", "-")
	if got.code != 1 || got.err != "acquirerd: recording export of key given: disk full\n" || !strings.HasPrefix(got.out, "D0112P0TE00N0000") {
		t.Errorf("got %+v", got)
	}
	stop()
	if got, want := toldBy(auditRows(t, path)), []string{"export given asked key block under kbpk-1"}; !slices.Equal(got, want) {
		t.Errorf("rows %q, want %q", got, want)
	}
	if got := command(t, "keys", "list", "--config", path); got.code != 0 || !strings.Contains(got.out, "given") {
		t.Errorf("the key is not there: %+v", got)
	}
}
