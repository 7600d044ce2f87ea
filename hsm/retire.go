package hsm

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/miekg/pkcs11"
)

// retryRetire is how long keys that could not be destroyed are left in peace.
const retryRetire = time.Minute

// retire destroys keys whose time is over. A key that is no longer needed has to go (PCI PIN 21 and 24, PCI DSS 3.7.5). It is called by supervise alone.
func (h *HSM) retire(ctx context.Context) {
	g := h.gen.Load()
	if g == nil || time.Now().Before(h.retiring) {
		return
	}
	for label := range h.lines {
		if len(g.lineage(label).due(time.Now(), h.cfg.CallTimeout)) == 0 {
			continue
		}
		limited, cancel := context.WithTimeout(ctx, h.cfg.CallTimeout)
		err := h.once(limited, func(w *worker) error {
			select {
			case h.changing <- struct{}{}:
				defer func() { <-h.changing }()
				return h.writing(w.gen, func(s pkcs11.SessionHandle) error { return h.destroyDue(w.gen, s, label) })
			default:
				return nil // a change is running, which is a better time to wait for
			}
		})
		cancel()
		if err != nil && ctx.Err() == nil {
			h.retiring = time.Now().Add(retryRetire)
			h.count(err)
			h.log.Warn("hsm old key not destroyed", "key", label, "error", err)
		}
	}
}

// destroyDue destroys what is due of a key, for a task that holds h.changing. It trusts no handle: it looks each key up again, and destroys it only if it
// is the one that it knows and the current one does its work.
func (h *HSM) destroyDue(g *generation, s pkcs11.SessionHandle, label string) error {
	for _, k := range g.lineage(label).due(time.Now(), h.cfg.CallTimeout) {
		if err := g.key(label).checkAgain(h.module, s); err != nil {
			return err
		}
		var err error
		if k.leftover {
			if _, err = h.destroyLeftover(s, k); err == nil {
				h.lines[label].forget(k.birth)
			}
		} else {
			err = h.destroyFormer(s, k)
		}
		switch {
		case errors.Is(err, ErrKeyCheck):
			h.log.Warn("hsm old key is left in the token", "key", label, "version", k.version, "error", err)
		case err != nil:
			return keepGeneration(fmt.Errorf("destroying key %q: %w", k.Label, err))
		default:
			h.log.Info("hsm old key destroyed", "audit", true, "key", label, "version", k.version, "kcv", k.KCV, "adopted", !k.leftover)
			h.tell(KeyDestroyed, k.Label, k.KCV, resultOK)
			h.usedOn.days.Delete(k.Label)
		}
		g.keys[label].Store(g.lineage(label).without(k))
		g.gone.Add(1)
		h.letGo()
	}
	return nil
}

// letGo tells each worker that a key is gone.
func (h *HSM) letGo() {
	for _, worker := range h.tidying {
		select {
		case worker <- struct{}{}:
		default: // it is told, and will look
		}
	}
}

// destroyFormer destroys the one key that has this label and this KCV, after its mark: without it the key is a leftover, if we crash between the two. One
// that is gone already is as good.
func (h *HSM) destroyFormer(s pkcs11.SessionHandle, k *key) error {
	handles, err := find(h.module, s, k.Label)
	if err != nil || len(handles) == 0 {
		return err
	}
	if len(handles) > 1 {
		return fmt.Errorf("%w: %d have that label", ErrKeyCheck, len(handles))
	}
	kcv, err := k.recipe.kcv(h.module, s, handles[0])
	if err != nil {
		return err
	}
	if !sameKCV(kcv, k.KCV) {
		return fmt.Errorf("%w: its KCV is %s, and not %s", ErrKeyCheck, kcv, k.KCV)
	}
	marks, err := findMarks(h.module, s, k.Label, k.birth)
	if err != nil {
		return err
	}
	for _, m := range marks {
		if err := h.module.DestroyObject(s, m.handle); err != nil {
			return err
		}
	}
	return h.module.DestroyObject(s, handles[0])
}

// destroyLeftover destroys what a change made and did not finish: the key of this birth and no other of its label, which another process may have made.
// A mark is in its way, unless the change was ours: another process has adopted the key since. That nothing
// is found proves little, in a session that may have lost its login: only destroyDue, which knows that the current key works, forgets it then.
func (h *HSM) destroyLeftover(s pkcs11.SessionHandle, k *key) (found bool, err error) {
	base, _, _ := successorOf(k.Label)
	ours := h.lines[base].isUnfinished(k.birth)
	marks, err := findMarks(h.module, s, k.Label, k.birth)
	if err != nil {
		return false, err
	}
	if len(marks) > 0 && !ours {
		return false, fmt.Errorf("%w: it was adopted by another process", ErrKeyCheck)
	}
	for _, m := range marks { // first: a mark without its key would stand for a key that was lost
		if err := h.module.DestroyObject(s, m.handle); err != nil {
			return false, err
		}
	}
	handles, err := find(h.module, s, k.Label)
	if err != nil {
		return false, err
	}
	for _, handle := range handles {
		id, _, err := attribute(h.module, s, handle, pkcs11.CKA_ID)
		if err != nil {
			return false, err
		}
		if string(id) != k.birth {
			continue
		}
		found = true
		if err := h.module.DestroyObject(s, handle); err != nil {
			return false, err
		}
	}
	return found, nil
}

// writing lends a session that may write. The workers' own sessions may not.
func (h *HSM) writing(g *generation, do func(pkcs11.SessionHandle) error) error {
	s, err := h.module.OpenSession(g.slot, pkcs11.CKF_SERIAL_SESSION|pkcs11.CKF_RW_SESSION)
	if err != nil {
		return keepGeneration(fmt.Errorf("opening session: %w", err))
	}
	defer func() { _ = h.module.CloseSession(s) }() // it ends with the generation at the latest
	return do(s)
}

// keepGeneration takes the return code from an error, unless a session is gone, and makes it an ErrUnavailable: what goes wrong
// in making and destroying objects, and in signing for TLS, must not cost the payments their generation, or a stranger could
// break it as often as he likes. If the token itself is broken, the next payment or probe finds out.
func keepGeneration(err error) error {
	if c, isCode := classify(err); err == nil || !isCode || c == classSession ||
		errors.Is(err, pkcs11.Error(pkcs11.CKR_CRYPTOKI_NOT_INITIALIZED)) {
		return err
	}
	return fmt.Errorf("%w: %v", ErrUnavailable, err) //nolint:errorlint // the code must not be found
}
