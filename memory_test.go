package acquirerd_test

import (
	"bufio"
	"bytes"
	"crypto/cipher"
	"crypto/des"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"acquirerd/hsm/hsmtest"
	"acquirerd/messages"
	"acquirerd/simulator"
)

// Where the Go runtime puts its heap on 64-bit systems. What is there is ours, and not the module's.
const goHeap, goHeapEnd = 0xc0_0000_0000, 0xe0_0000_0000

// TestMemoryHoldsNoClearPINOrKey reads the daemon's whole memory again and again while it translates PIN blocks, and looks for the clear blocks of
// the run and for its zone keys.
//
// SoftHSM and NSS are libraries in the daemon's own process: the keys with which they work are in their memory while they do, as they would be in that of
// an HSM, and are counted and shown here. Nothing may be in the daemon's own memory. Clear PIN blocks pass through the daemon with SoftHSM, whose way is
// transient, and SoftHSM keeps copies of them. With NSS the way is token-resident: NSS has a block in its own memory while it works with it, and when no
// transaction is on its way none may be found anywhere, nor a key.
func TestMemoryHoldsNoClearPINOrKey(t *testing.T) {
	if os.Geteuid() != 0 {
		if os.Getenv("CI") != "" {
			t.Fatal("to read the memory of a process that allows no core dump takes root")
		}
		t.Skip("SKIPPED, NOT TESTED: to read the memory of a process that allows no core dump takes root")
	}
	daemon(t) // SoftHSM is there
	binary := filepath.Join(t.TempDir(), "acquirerd")
	if out, err := exec.CommandContext(t.Context(), "go", "build", "-o", binary, "./cmd/acquirerd").CombinedOutput(); err != nil { // no race detector: its shadow is large
		t.Fatalf("%v: %s", err, out)
	}
	t.Run("SoftHSM", func(t *testing.T) { huntIn(t, binary, simulator.StageToken{}, false) })
	t.Run("NSS", func(t *testing.T) {
		token := hsmtest.NewNSS(t)
		huntIn(t, binary, simulator.StageToken{Module: token.Module, Arguments: token.Arguments, Label: token.Label, PINFile: token.PINFile()}, true)
	})
}

// huntIn plays on a token.
func huntIn(t *testing.T, binary string, token simulator.StageToken, isResident bool) {
	hunt := &hunt{wanted: map[string]string{}, canaries: map[string]string{}}
	cast, err := simulator.NewCast(t.Context(), simulator.CastConfig{
		Stage: simulator.StageConfig{Dir: filepath.Join(t.TempDir(), "stage"), Daemon: binary, Token: token,
			ReplyTimeout: 10 * time.Second, RetryMin: time.Second, RetryMax: time.Second, InFlight: 64},
		Upstream: simulator.UpstreamConfig{Trace: hunt.collect},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := cast.Close(); err != nil {
			t.Error(err)
		}
	}()
	for _, zone := range []string{"zpk-pos", "zpk-processor-a"} {
		hunt.addKey(t, zone, filepath.Join(cast.Stage.Dir, zone+".key"))
	}
	hunt.canaries["a label"] = "zpk-processor-a"

	enough := make(chan struct{})
	var asking sync.WaitGroup
	var approved [8]int
	for i := range approved {
		cards := simulator.TestCards()
		asking.Go(func() {
			for n := i; ; n++ {
				select {
				case <-enough:
					return
				default:
				}
				c := cards[n%len(cards)]
				if c.Effects != "" || c.PIN.IsZero() {
					continue
				}
				entry, err := cast.Upstream.Do(t.Context(), simulator.Request{PAN: c.PAN, PIN: c.PIN, Amount: 1000})
				if err != nil {
					t.Error(err)
					return
				}
				if entry.ResponseCode == "00" { // its PIN was translated, and right
					approved[i]++
				}
			}
		})
	}
	found := map[string]int{}
	const readings = 24
	for range readings {
		hits, err := hunt.read(cast.Stage.PID())
		if err != nil {
			t.Error(err)
			break
		}
		for _, h := range hits {
			found[h.name+" in "+h.where]++
			if h.isOurs && !h.isCanary {
				t.Errorf("%s is in the daemon's memory: %s", h.name, h.where)
			}
		}
	}
	close(enough)
	asking.Wait()
	hits, err := hunt.read(cast.Stage.PID()) // every transaction was answered
	if err != nil {
		t.Error(err)
	}
	for _, h := range hits {
		found[h.name+", at rest, in "+h.where]++
		if (h.isOurs || isResident) && !h.isCanary {
			t.Errorf("%s is in the daemon's memory at rest: %s", h.name, h.where)
		}
	}
	total, canaries := 0, 0
	for _, n := range approved {
		total += n
	}
	for what, n := range found {
		t.Logf("%d of %d readings: %s", n, readings, what)
		if strings.HasPrefix(what, "canary") {
			canaries += n
		}
	}
	t.Logf("%d approvals, %d values were looked for", total, len(hunt.wanted))
	if canaries < readings || total < 100 || len(hunt.wanted) < 10 {
		t.Errorf("the test looked at nothing: canaries were found %d times, %d approvals, %d values", canaries, total, len(hunt.wanted))
	}
}

const clearPINBlock = "a clear PIN block"

// A hunt knows what it looks for: by its bytes, their name.
type hunt struct {
	mu       sync.Mutex
	zone     cipher.Block // of the upstream: its blocks are deciphered here
	wanted   map[string]string
	canaries map[string]string // by name: what is there, so that reading is known to find things
}

// collect deciphers the PIN block of a request.
func (h *hunt) collect(e simulator.TraceEvent) {
	block := e.Message.Reveal(messages.PINData)
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.zone == nil || len(block) != des.BlockSize {
		return
	}
	clearBlock := make([]byte, des.BlockSize)
	h.zone.Decrypt(clearBlock, []byte(block))
	h.wanted[string(clearBlock)] = clearPINBlock
}

func (h *hunt) addKey(t *testing.T, name, file string) {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	digits := strings.TrimSpace(string(text))
	value, err := hex.DecodeString(digits)
	if err != nil {
		t.Fatal(err)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.wanted[string(value)] = "the key " + name
	h.wanted[digits], h.wanted[strings.ToLower(digits)] = "the key "+name+" as text", "the key "+name+" as text"
	if name == "zpk-pos" {
		if h.zone, err = des.NewTripleDESCipher(append(bytes.Clone(value), value[:8]...)); err != nil {
			t.Fatal(err)
		}
	}
}

// A hit is one place where something was found.
type hit struct {
	name, where      string
	isOurs, isCanary bool
}

// read looks through all memory of a process that it can read. Its own locked pages are left out: that is where clear blocks are while they are
// translated.
func (h *hunt) read(pid int) ([]hit, error) {
	maps, err := os.Open(fmt.Sprintf("/proc/%d/smaps", pid))
	if err != nil {
		return nil, err
	}
	defer func() { _ = maps.Close() }()
	memory, err := os.Open(fmt.Sprintf("/proc/%d/mem", pid))
	if err != nil {
		return nil, err
	}
	defer func() { _ = memory.Close() }()
	h.mu.Lock()
	wanted := make(map[string]string, len(h.wanted))
	for value, name := range h.wanted {
		wanted[value] = name
	}
	h.mu.Unlock()
	type region struct {
		from, to int64
		name     string
		locked   bool
	}
	var regions []region
	lines := bufio.NewScanner(maps)
	for lines.Scan() {
		words := strings.Fields(lines.Text())
		if span := strings.Split(words[0], "-"); len(span) == 2 && !strings.HasSuffix(words[0], ":") {
			from, errFrom := strconv.ParseInt(span[0], 16, 64)
			to, errTo := strconv.ParseInt(span[1], 16, 64)
			if errFrom != nil || errTo != nil || !strings.HasPrefix(words[1], "r") {
				from, to = 0, 0 // it cannot be read, or is not of user space
			}
			regions = append(regions, region{from: from, to: to, name: strings.Join(words[5:], " ")})
		} else if words[0] == "VmFlags:" && len(regions) > 0 {
			regions[len(regions)-1].locked = strings.Contains(lines.Text(), " lo")
		}
	}
	if err := lines.Err(); err != nil {
		return nil, err
	}
	const chunk, overlap = 4 << 20, 64 // a value on the border of two chunks is whole in one of them
	buffer := make([]byte, chunk+overlap)
	var hits []hit
	for _, r := range regions {
		if r.locked || r.from == r.to {
			continue
		}
		where := r.name
		isOurs := r.from >= goHeap && r.from < goHeapEnd || strings.HasSuffix(r.name, "/acquirerd")
		switch {
		case isOurs && where == "":
			where = "the Go heap"
		case where == "":
			where = "memory without a name"
		}
		for at := r.from; at < r.to; at += chunk {
			n, err := memory.ReadAt(buffer[:min(int64(len(buffer)), r.to-at)], at)
			if err != nil && !errors.Is(err, io.EOF) && n == 0 {
				break // it has gone, or is a device's
			}
			for name, canary := range h.canaries {
				if bytes.Contains(buffer[:n], []byte(canary)) {
					hits = append(hits, hit{"canary: " + name, where, isOurs, true})
				}
			}
			for value, name := range wanted {
				if bytes.Contains(buffer[:n], []byte(value)) {
					hits = append(hits, hit{name, where, isOurs, false})
				}
			}
		}
	}
	return hits, nil
}
