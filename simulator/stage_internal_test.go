package simulator

import (
	"net"
	"os"
	"os/exec"
	"testing"
)

// TestAProcessListens knows a listener of this process from one of another process, and from one that is gone.
func TestAProcessListens(t *testing.T) {
	if _, err := os.Stat("/proc/net/tcp"); err != nil {
		t.Skip("this kernel does not say who listens")
	}
	listener, err := net.Listen("tcp", anyPort)
	if err != nil {
		t.Fatal(err)
	}
	other := exec.Command("sleep", "60")
	if err := other.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = other.Process.Kill()
		_ = other.Wait()
	}()
	address := listener.Addr().String()
	if !listens(os.Getpid(), address) {
		t.Error("this process does not listen where it does")
	}
	if listens(other.Process.Pid, address) {
		t.Error("another process listens where this one does")
	}
	if err := listener.Close(); err != nil {
		t.Fatal(err)
	}
	if listens(os.Getpid(), address) {
		t.Error("this process listens where it does not any more")
	}
}

func TestAddressesOfAStageAreTwo(t *testing.T) {
	taken, err := net.Listen("tcp", anyPort)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = taken.Close() }()
	s := &Stage{}
	if err := s.chooseAddresses(taken.Addr().String(), anyPort); err != nil {
		t.Fatal(err)
	}
	if s.Upstream == taken.Addr().String() || s.Upstream == s.Operations || s.Upstream == "" || s.Operations == "" {
		t.Errorf("%q and %q, where %s is taken", s.Upstream, s.Operations, taken.Addr())
	}
}
