package simulator

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"
)

// A Disk is a small file system of its own, in memory, that can be filled to the last byte.
type Disk struct{ Dir string }

// ErrNoDisk says that this process may not mount anything.
var ErrNoDisk = errors.New("mounting is not permitted")

const (
	fillerFile  = "filler"
	fillerPiece = 1 << 20
)

// MountDisk mounts a disk of so many bytes at a folder, which is made. It needs CAP_SYS_ADMIN: without it, the error wraps ErrNoDisk.
func MountDisk(dir string, size int64) (*Disk, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	err := unix.Mount("tmpfs", dir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "mode=0700,size="+strconv.FormatInt(size, 10))
	if err == nil {
		return &Disk{dir}, nil
	}
	err = fmt.Errorf("mounting a small disk: %w", err)
	if errors.Is(err, unix.EPERM) || errors.Is(err, unix.EACCES) || errors.Is(err, unix.ENODEV) {
		err = fmt.Errorf("%w: %w", ErrNoDisk, err)
	}
	return nil, errors.Join(err, os.Remove(dir))
}

// Fill takes all the space that is left, to the last page.
func (d *Disk) Fill() (err error) {
	file, err := os.OpenFile(filepath.Join(d.Dir, fillerFile), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	for piece := make([]byte, fillerPiece); len(piece) > 0; {
		_, err := file.Write(piece)
		switch {
		case errors.Is(err, unix.ENOSPC):
			piece = piece[:len(piece)/2]
		case err != nil:
			return fmt.Errorf("filling disk: %w", err)
		}
	}
	return nil
}

// Free gives back what Fill took.
func (d *Disk) Free() error { return os.Remove(filepath.Join(d.Dir, fillerFile)) }

// Unmount ends the disk and all that is on it.
func (d *Disk) Unmount() error {
	if err := unmount(d.Dir); err != nil {
		return fmt.Errorf("unmounting the small disk: %w", err)
	}
	return os.Remove(d.Dir)
}

// unmount detaches what is mounted at a folder, whoever still uses it.
func unmount(dir string) error { return unix.Unmount(dir, unix.MNT_DETACH) }

// limitFiles makes every write of a process fail, with EFBIG, that goes beyond so many bytes of a file: the nearest thing to a full disk
// for who may not mount one. Go programs do not die by the SIGXFSZ that comes with it.
func limitFiles(pid int, bytes uint64) error {
	if err := unix.Prlimit(pid, unix.RLIMIT_FSIZE, &unix.Rlimit{Cur: bytes, Max: bytes}, nil); err != nil {
		return fmt.Errorf("limiting files: %w", err)
	}
	return nil
}
