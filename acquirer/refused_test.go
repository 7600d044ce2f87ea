package acquirer

import (
	"fmt"
	"testing"
	"time"
)

func TestRefusalsAreBoundedAndForgetTheOldest(t *testing.T) {
	r, now := newRefusals(), time.Now()
	key := func(n int) asking { return asking{"pos", fmt.Sprint(n)} }
	for n := range refusalsRemembered {
		r.enter(key(n), "96", now)
	}
	for range 2 * refusalsRemembered { // one that is refused again and again pushes out nobody
		r.enter(key(0), "91", now.Add(time.Second))
	}
	if r.code(key(1), now) != "96" || r.code(key(0), now) != "91" || len(r.order) != refusalsRemembered {
		t.Errorf("got %q and %q, %d in order", r.code(key(1), now), r.code(key(0), now), len(r.order))
	}
	r.enter(key(-1), "96", now.Add(2*time.Second))
	if r.code(key(1), now) != "" || r.code(key(0), now) != "91" || len(r.codes) != refusalsRemembered {
		t.Errorf("over the limit: %q and %q, %d codes", r.code(key(1), now), r.code(key(0), now), len(r.codes))
	}
	later := now.Add(refusalRemembered + time.Second) // key 0 has been refused a second after the others
	r.enter(key(-2), "96", later)
	// That one has its place behind a younger one, and goes with it; it is not believed any more.
	if got := r.code(key(-1), later); got != "96" || r.code(key(0), later) != "" || len(r.codes) > 3 || len(r.order) != len(r.codes) {
		t.Errorf("later: %q, %d codes, %d in order", got, len(r.codes), len(r.order))
	}
}
