package hsm

import (
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A scratch is the memory of one worker for what must not reach swap or a core dump. It is all zeros between calls.
type scratch struct {
	pin   blockMemory                // a clear PIN block, between deciphering and enciphering
	key   [aes256Bytes]byte          // a clear zone key, between deciphering and creating
	ahead [mostAhead * aesBytes]byte // what is sealed is XORed with: see tokenBlock
	pan   [2 * aesBytes]byte         // of which a token is made
	tdes  tdesMemory                 // clear keys of TDES-DUKPT
}

const scratchBytes = int(unsafe.Sizeof(scratch{}))

func (s *scratch) clear() { *s = scratch{} }

// A lockedMemory holds the scratches of all workers outside the Go heap, locked and left out of core dumps.
type lockedMemory struct{ pages []byte }

// scratch returns the part of one worker.
func (m *lockedMemory) scratch(worker int) *scratch {
	return (*scratch)(unsafe.Pointer(&m.pages[worker*scratchBytes])) //nolint:gosec // inside the pages, aligned for bytes
}

// lockMemory maps the pages. It fails if RLIMIT_MEMLOCK does not allow them: there is no unlocked substitute.
func lockMemory(workers int) (*lockedMemory, error) {
	page := os.Getpagesize()
	size := (workers*scratchBytes + page - 1) / page * page
	pages, err := unix.Mmap(-1, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return nil, fmt.Errorf("mapping %d bytes for PIN blocks and keys: %w", size, err)
	}
	m := &lockedMemory{pages}
	if err := unix.Mlock(pages); err != nil {
		m.free()
		return nil, fmt.Errorf("locking %d bytes for PIN blocks and keys (RLIMIT_MEMLOCK): %w", size, err)
	}
	if err := unix.Madvise(pages, unix.MADV_DONTDUMP); err != nil {
		m.free()
		return nil, fmt.Errorf("keeping PIN blocks out of core dumps: %w", err)
	}
	return m, nil
}

// free clears and unmaps the pages. No scratch may be in use.
func (m *lockedMemory) free() {
	clear(m.pages)
	_ = unix.Munmap(m.pages) // fails only for an address that is not ours
	m.pages = nil
}
