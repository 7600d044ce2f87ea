package hsm

import "github.com/miekg/pkcs11"

// A worker is one of the goroutines that call the module, with what it has for itself alone. A task gets the worker that runs it, and keeps
// nothing of it.
type worker struct {
	m       module
	index   int
	gen     *generation          // whose handles the task may use
	session pkcs11.SessionHandle // of gen
	mem     *scratch             // all zeros between tasks; nil before Run
}

// join makes a generation the worker's.
func (w *worker) join(g *generation) {
	if w.gen == g {
		return
	}
	w.gen, w.session = g, g.sessions[w.index]
}
