package hsm

import (
	"errors"
	"sync"
	"sync/atomic"
	"time"
)

// An Event is a line of the audit trail of keys (PCI PIN 18 and 28, PCI DSS 10.2.1). It holds nothing secret.
type Event struct {
	At     time.Time // UTC
	Who    string    // "" for the daemon itself, or the user of a command
	What   string    // one of the constants below
	Key    string    // label
	KCV    string    // "" if it is not known
	Result string    // "ok", or what is wrong
	Detail string    // what else there is to say: who brought its components, what it came or went under
}

// What happens to a key.
const (
	KeyLoaded = "load"   // found and checked in a new generation, or refused
	KeyUsed   = "use"    // for the first time on a day (UTC)
	KeyChange = "change" // by a message of its other side
	Probed    = "probe"  // when a process opens the token first: Key is the operation, Result its way

	// By commands.
	KeyGenerated  = "generate"
	KeyImported   = "import"
	KeyExported   = "export"
	KeyComponents = "components" // were made of a key that is not in the token
	KeyShown      = "kcv"        // the check value of a key or of a component was asked for
	KeyDestroyed  = "destroy"    // by the daemon, too: one that was replaced and whose overlap is over, or that a change made and did not finish
)

const resultOK = "ok"

// tell adds to the audit trail, if there is one.
func (h *HSM) tell(what, label, kcv, result string) {
	if h.cfg.Audit != nil {
		h.cfg.Audit(Event{At: time.Now().UTC(), What: what, Key: label, KCV: kcv, Result: result})
	}
}

// tellLoads is of a generation that is in use from now on.
func (h *HSM) tellLoads(g *generation) {
	for _, want := range h.cfg.Keys {
		k := g.key(want.Label)
		h.tell(KeyLoaded, k.Label, k.KCV, resultOK)
	}
}

// tellRefused is of keys that kept a generation from being used. A token is looked at again every few seconds until somebody mends it: of each key
// that is told once in refusedInterval.
func (h *HSM) tellRefused(err error) {
	var faulty *KeyError
	if errors.As(err, &faulty) {
		for _, f := range faulty.Faults {
			if _, told := h.refusals.tell(f.Label+" "+KeyLoaded, time.Now()); !told {
				continue
			}
			h.tell(KeyLoaded, f.Label, "", f.Problem)
		}
	}
}

// usedDays remembers the day on which the use of a key was last told, by label, from one generation to the next.
type usedDays struct{ days sync.Map } // of *atomic.Int64

// used tells the first use of a key on a day.
func (h *HSM) used(k *key) {
	today := time.Now().Unix() / int64(24*time.Hour/time.Second)
	day, found := h.usedOn.days.Load(k.Label)
	if !found {
		day, _ = h.usedOn.days.LoadOrStore(k.Label, new(atomic.Int64))
	}
	last := day.(*atomic.Int64)
	if was := last.Load(); was != today && last.CompareAndSwap(was, today) {
		h.tell(KeyUsed, k.Label, k.KCV, string(k.Use))
	}
}
