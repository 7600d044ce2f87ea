package hsm

import "github.com/miekg/pkcs11"

// A worker is one of the goroutines that call the module, with what it has for itself alone. A task gets the worker that runs it, and keeps
// nothing of it.
type worker struct {
	m       module
	index   int
	gen     *generation          // whose handles the task may use
	session pkcs11.SessionHandle // of gen; in no operation between two calls
	mem     *scratch             // all zeros between tasks; nil before Run

	open        map[heldKey]*held // operations held open, of gen: see held.go
	turn        uint64
	gone        uint64                          // keys of gen that were destroyed when it last looked
	sealers     map[pkcs11.ObjectHandle]*sealer // of gen: see sealer.go
	initialKeys initialKeys                     // of gen
}

// join makes a generation the worker's, before each task. What was open in an older one has ended with it; what is open on a key that was destroyed
// since ends now.
func (w *worker) join(g *generation) {
	gone := g.gone.Load()
	if w.gen == g && w.gone == gone {
		return
	}
	w.gone = gone
	if w.gen == g {
		w.releaseGone()
		return
	}
	w.gen, w.session = g, g.sessions[w.index]
	w.open, w.sealers = map[heldKey]*held{}, map[pkcs11.ObjectHandle]*sealer{}
	w.initialKeys.forget()
}
