package simulator_test

import (
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"acquirerd/simulator"
)

func TestDiskIsFullUntilItIsFreed(t *testing.T) {
	disk, err := simulator.MountDisk(filepath.Join(t.TempDir(), "disk"), 1<<20)
	if errors.Is(err, simulator.ErrNoDisk) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := disk.Unmount(); err != nil {
			t.Error(err)
		}
		if _, err := os.Stat(disk.Dir); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("the folder is still there: %v", err)
		}
	}()
	file, err := os.Create(filepath.Join(disk.Dir, "journal"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = file.Close() }()
	write := func() error {
		_, err := file.Write(make([]byte, 1<<10))
		return err
	}
	if err := write(); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := disk.Fill(); err != nil {
			t.Fatal(err)
		}
		var full error
		for i := 0; i < 1<<10 && full == nil; i++ { // what is left of a page that the file has
			full = write()
		}
		if !errors.Is(full, syscall.ENOSPC) {
			t.Errorf("on a full disk: %v", full)
		}
		if err := disk.Free(); err != nil {
			t.Fatal(err)
		}
		if err := write(); err != nil {
			t.Errorf("on a freed disk: %v", err)
		}
	}
}

func TestMountDiskNeedsAFolder(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := simulator.MountDisk(file, 1<<20); err == nil || errors.Is(err, simulator.ErrNoDisk) {
		t.Errorf("mounting over a file: %v", err)
	}
}
