package upstream

import "sync"

// places are a number of places, of which some are taken. Their number can change meanwhile: who is in stays, and while more are taken
// than there are, nobody else gets in.
type places struct {
	mu          sync.Mutex
	size, taken int
}

// take takes a place, if there is one.
func (p *places) take() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.taken >= p.size {
		return false
	}
	p.taken++
	return true
}

// free gives back a place that was taken.
func (p *places) free() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.taken--
}

func (p *places) resize(size int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.size = size
}
