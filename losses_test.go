package acquirerd_test

import (
	"encoding/binary"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"acquirerd/simulator"
)

var losses = flag.Int("losses", 20, "how often the loss test takes the HSM from the daemon")

// A faultyModule is a PKCS#11 module that does what its control says: see testdata/faulty.
type faultyModule struct {
	t       *testing.T
	path    string
	control []byte
}

// The faults of the module.
const (
	noFault = iota
	sessionsGone
	deviceBroken
	tokenGone
	callsHang
)

func newFaultyModule(t *testing.T, real string) *faultyModule {
	t.Helper()
	dir := t.TempDir()
	f := &faultyModule{t: t, path: filepath.Join(dir, "faulty.so")}
	build := exec.CommandContext(t.Context(), "cc", "-shared", "-fPIC", "-O1", "-o", f.path, filepath.Join("testdata", "faulty", "module.c"), "-ldl") // cgo needs cc too
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	control := filepath.Join(dir, "control")
	if err := os.WriteFile(control, make([]byte, 8), 0o600); err != nil {
		t.Fatal(err)
	}
	file, err := os.OpenFile(control, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = file.Close() }()
	if f.control, err = unix.Mmap(int(file.Fd()), 0, 8, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Munmap(f.control) })
	t.Setenv("FAULTY_MODULE", real)
	t.Setenv("FAULTY_CONTROL", control)
	return f
}

func (f *faultyModule) set(fault uint32) { binary.NativeEndian.PutUint32(f.control, fault) }

// met is how many calls have met a fault.
func (f *faultyModule) met() uint32 { return binary.NativeEndian.Uint32(f.control[4:]) }

// TestTheHSMIsLostUnderLoad takes the HSM from the real daemon again and again while PINs are translated: its sessions, the device, the token, and calls
// that hang. Each time the daemon says that it is not ready, refuses in time what it cannot protect, and comes back by itself. No PIN block
// goes out under a wrong key, and in the end all ledgers agree.
func TestTheHSMIsLostUnderLoad(t *testing.T) {
	binary := daemon(t)
	module := newFaultyModule(t, softHSM(t))
	t.Setenv("ACQUIRERD_HSM_CALL_TIMEOUT", "500ms") // so that a hang is over sooner
	cast, err := simulator.NewCast(t.Context(), simulator.CastConfig{Stage: simulator.StageConfig{Dir: filepath.Join(t.TempDir(), "stage"),
		Daemon: binary, Token: simulator.StageToken{Module: module.path}, ReplyTimeout: 10 * time.Second, RetryMin: 100 * time.Millisecond, RetryMax: time.Second, InFlight: 64}})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		module.set(noFault)
		if err := cast.Close(); err != nil {
			t.Error(err)
		}
	}()
	ctx, stage, pid := t.Context(), cast.Stage, cast.Stage.PID()

	enough := make(chan struct{})
	var asking sync.WaitGroup
	var codes [256]atomic.Int64 // by what the upstream was told: its two digits
	code := func(of string) *atomic.Int64 {
		var n byte
		if _, err := fmt.Sscanf(of, "%d", &n); err != nil || len(of) != 2 {
			n = 255
		}
		return &codes[n]
	}
	for i := range 4 {
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
				if err != nil {
					t.Error(err)
					return
				}
				code(entry.ResponseCode).Add(1)
			}
		})
	}
	for loss := range *losses {
		fault := uint32(loss%4 + 1)
		goods, met := code("00").Load(), module.met()
		module.set(fault)
		eventually(t, "a call that meets the fault", func() bool { return module.met() > met })
		if fault == deviceBroken || fault == tokenGone || fault == callsHang { // lost sessions can be back before anybody looks
			eventually(t, fmt.Sprintf("the end of readiness by fault %d", fault), func() bool { return !ready(t, stage) })
		}
		module.set(noFault)
		eventually(t, fmt.Sprintf("the way back from fault %d", fault), func() bool { return ready(t, stage) && code("00").Load() > goods+16 })
	}
	close(enough)
	asking.Wait()
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
	ledger := cast.Processor.Ledger().Snapshot()
	verdict := simulator.Compare(accounts, ledger, cast.Upstream.Book().Snapshot())
	for _, d := range verdict.Disagreements {
		t.Error(d)
	}
	counts := ledger.Counts
	t.Logf("%d losses: %d approved, %d refused for want of the HSM, %d PINs right, %d wrong, %d malformed", *losses, code("00").Load(), code("96").Load(),
		counts.RightPINs, counts.WrongPINs, counts.MalformedPINBlocks)
	for n := range codes {
		if told := fmt.Sprintf("%02d", n); codes[n].Load() > 0 && told != "00" && told != "96" {
			t.Errorf("%d were told %s", codes[n].Load(), told)
		}
	}
	if counts.WrongPINs+counts.MalformedPINBlocks > 0 {
		t.Error("a PIN block was not what it should be")
	}
	if counts.RightPINs == 0 || code("96").Load() == 0 {
		t.Error("the losses met no load")
	}
}

// eventually waits for what a process of its own brings about in real time.
func eventually(t *testing.T, what string, done func() bool) {
	t.Helper()
	const patience = 60 * time.Second
	for deadline := time.Now().Add(patience); !done(); {
		if time.Now().After(deadline) {
			t.Fatalf("no %s within %v", what, patience)
		}
		select {
		case <-t.Context().Done():
			t.Fatal(t.Context().Err())
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// ready asks the daemon.
func ready(t *testing.T, stage *simulator.Stage) bool {
	t.Helper()
	_, err := stage.Get(t.Context(), "/health/ready")
	return err == nil
}

// softHSM is the path of the module.
func softHSM(t *testing.T) string {
	t.Helper()
	for _, path := range simulator.SoftHSMModules {
		if _, err := os.Stat(path); err == nil {
			return path
		}
	}
	t.Fatalf("no SoftHSM in %s", strings.Join(simulator.SoftHSMModules, ", "))
	return ""
}
