package hsm

import (
	"bytes"
	"context"
	"crypto/subtle"
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/miekg/pkcs11"
)

// The results of a key change: label "result" of acquirerd_hsm_key_changes_total.
const (
	keyChanged     = "changed"
	keyRepeated    = "repeated"    // it is the current key already: answered as done, and nothing is made
	keyUnknown     = "unknown_key" // the label has no ZMK
	keyLength      = "length"      // of cryptogram or check value
	keyParity      = "parity"
	keyWeak        = "weak"
	keyWeaker      = "weaker"   // than the key in use
	keyWeakZMK     = "weak_zmk" // the ZMK is weaker than the new key
	keyKCV         = "kcv"
	keyReused      = "reused" // it is another zone's, or was replaced before
	keyRefused     = "token_refused"
	keyBusy        = "busy" // another key is being changed, or there were too many changes
	keyUnavailable = "unavailable"
)

var keyResults = []string{keyChanged, keyRepeated, keyUnknown, keyLength, keyParity, keyWeak, keyWeaker, keyWeakZMK, keyKCV, keyReused, keyRefused, keyBusy, keyUnavailable}

// A refusal is an ErrKeyChange with its result.
type refusal struct{ result, reason string }

func (r *refusal) Error() string { return ErrKeyChange.Error() + ": " + r.reason }

func (r *refusal) Unwrap() error { return ErrKeyChange }

// Is makes the refusal of a key that cannot be changed an ErrFixedKey too.
func (r *refusal) Is(target error) bool { return target == ErrFixedKey && r.result == keyUnknown }

func refuse(result, format string, args ...any) error {
	return &refusal{result, fmt.Sprintf(format, args...)}
}

// shortKCV is a check value of a message: 2 bytes or 3.
var shortKCV = regexp.MustCompile(`^[0-9A-Fa-f]{4}([0-9A-Fa-f]{2})?$`)

// ChangeKey makes the key of the cryptogram the current version of the label, which is of a pin-in or pin-out key that has a ZMK in the
// configuration. The cryptogram is the new TDES key in ECB under that ZMK, 16 bytes or 24, and the caller's again when it returns; the check value is
// the first 4 or 6 hexadecimal digits of the new key's KCV. When it returns nil, that version is in the token, survives a
// crash and is in use: answer the processor then, and not before. After any error the old key is in use (but see the package documentation, "Limits"). A change that
// brings the current key once more is a success, so that a processor that has lost our answer may repeat it.
//
// The old key stays for Config.Overlap: for Card.Previous, and for PIN blocks that upstreams still encipher under it.
//
// Errors: ErrKeyChange for what the change carries, ErrUnavailable for all else (ErrBusy while another key of the token is being changed, and after
// too many changes: Config.KeyChanges in a minute, mostVersions in the token).
func (h *HSM) ChangeKey(ctx context.Context, label string, cryptogram []byte, checkValue string) error {
	c, err := h.newChange(label, cryptogram, checkValue)
	if err == nil {
		err = h.change(ctx, c)
	}
	result := keyUnavailable
	var refused *refusal
	switch {
	case err == nil && c.repeated:
		result = keyRepeated
	case err == nil:
		result = keyChanged
	case errors.As(err, &refused):
		result = refused.result
	case errors.Is(err, ErrBusy):
		result = keyBusy
	}
	h.metrics.changes[result].Inc()
	// Both are told here, whatever the caller does: it is the audit trail of the key.
	if err != nil {
		if times, told := h.refusals.tell(label+" "+result, time.Now()); told {
			h.log.Warn("hsm key change refused", "audit", true, "key", label, "result", result, "times", times, "error", err)
			h.tell(KeyChange, label, "", result)
		}
		return fmt.Errorf("changing key %q: %w", label, err)
	}
	times, told := 1, true
	if c.repeated {
		times, told = h.refusals.tell(label+" "+result, time.Now())
	}
	if !told {
		return nil
	}
	h.tell(KeyChange, label, c.adopted.KCV, resultOK)
	h.log.Info("hsm key changed", "audit", true, "times", times, "key", label, "result", result, "version", c.adopted.version, "kcv", c.adopted.KCV,
		"zmk", c.key.ZMK, "previous_kcv", c.replaced, "overlap", h.cfg.Overlap)
	return nil
}

// refusedInterval is the time after a refusal in which those of the same key for the same reason are only counted: who sends a change that
// cannot be made, or is made already, again and again is one fault, and fills neither log nor audit trail.
const refusedInterval = time.Minute

// refusals are the key changes that came to nothing, refused or repeated, by key and result, and the keys that were refused: all of closed sets.
type refusals struct {
	mu    sync.Mutex
	last  map[string]time.Time // guarded by mu
	since map[string]int       // guarded by mu: refusals after it was told last
}

// tell reports whether a refusal is to be told, and how many there were since one was told last, this one included.
func (r *refusals) tell(what string, now time.Time) (times int, told bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.last == nil {
		r.last, r.since = map[string]time.Time{}, map[string]int{}
	}
	r.since[what]++
	times = r.since[what]
	if last, before := r.last[what]; before && now.Sub(last) < refusedInterval {
		return times, false
	}
	r.last[what], r.since[what] = now, 0
	return times, true
}

// A change is one call of ChangeKey. Its task may outlive the call.
type change struct {
	key        Key
	line       *line
	cryptogram []byte
	kcv        string

	// The rest is under line.mu.
	adopted  *key   // the version that is current by this change
	replaced string // KCV of the one before
	repeated bool
	running  bool // its task
	over     bool // nobody waits any more: nothing may be adopted
}

// newChange refuses what needs no token to be refused.
func (h *HSM) newChange(label string, cryptogram []byte, checkValue string) (*change, error) {
	c := &change{line: h.lines[label], cryptogram: bytes.Clone(cryptogram), kcv: strings.ToUpper(checkValue)}
	for _, k := range h.cfg.Keys {
		if k.Label == label {
			c.key = k
		}
	}
	switch n := len(c.cryptogram); {
	case c.line == nil:
		return nil, refuse(keyUnknown, "%q is not a key that has a zone master key", label)
	case n != tdes2Bytes && n != tdes3Bytes && n != aes256Bytes:
		return nil, refuse(keyLength, "the cryptogram has %d bytes, not %d, %d or %d", n, tdes2Bytes, tdes3Bytes, aes256Bytes)
	case !shortKCV.MatchString(c.kcv):
		return nil, refuse(keyLength, "the check value is not 4 or 6 hexadecimal digits")
	}
	// ECB shows equal parts: those of the key are equal then.
	if equalParts(c.cryptogram) {
		return nil, refuse(keyWeak, "the key has equal parts")
	}
	return c, nil
}

// equalParts reports whether two DES keys of a TDES key, or two blocks of its cryptogram, are the same.
func equalParts(key []byte) bool {
	for i := 0; i < len(key); i += desBytes {
		for j := i + desBytes; j < len(key); j += desBytes {
			if subtle.ConstantTimeCompare(key[i:i+desBytes], key[j:j+desBytes]) == 1 {
				return true
			}
		}
	}
	return false
}

// change waits until it is the only change in the token, and has it made. Two zones could take the same key else, both at the same moment.
func (h *HSM) change(ctx context.Context, c *change) error {
	ctx, cancel := context.WithTimeout(ctx, h.cfg.CallTimeout)
	defer cancel()
	select {
	case h.changing <- struct{}{}:
	case <-ctx.Done():
		err := fmt.Errorf("%w: another key is being changed", ErrBusy)
		h.count(err)
		return err
	}
	err := h.call(ctx, changeKey, func(w *worker) error {
		if !c.begin() {
			return errDown
		}
		defer c.end(h.changing)
		return h.replace(w.gen, c, w.mem)
	})
	return c.settle(err, h.changing)
}

func (c *change) begin() bool {
	c.line.mu.Lock()
	defer c.line.mu.Unlock()
	c.running = !c.over
	return c.running
}

// end makes room for other changes if the call has ended before: a task that hangs in the module keeps the room until it returns.
func (c *change) end(changing <-chan struct{}) {
	c.line.mu.Lock()
	defer c.line.mu.Unlock()
	if c.running = false; c.over {
		<-changing
	}
}

// settle decides about a change whose call has ended with err. What was adopted meanwhile stays, and what was not never will be.
func (c *change) settle(err error, changing <-chan struct{}) error {
	c.line.mu.Lock()
	defer c.line.mu.Unlock()
	if c.over = true; !c.running {
		<-changing
	}
	if c.adopted != nil {
		return nil
	}
	return err
}

// replace is the task of a change, in this order: a trial key that lives in the session shows that the cryptogram is good; then the
// key is made in the token; then its mark says that it is adopted; then it is used. If we crash before the mark is in the token, the change has
// not happened: the next start uses the old key, and destroys the new one. If we crash after that and before the answer, the processor knows as little
// as after a lost answer: the next start uses the new key, keeps the old one for the overlap, and the processor's repeat is answered as done.
//
// If the generation breaks on the way, the task is tried again in the next one: what the first try may have left in the token is not
// used (line.unfinished), and destroyed.
func (h *HSM) replace(g *generation, c *change, mem *scratch) error {
	defer mem.clear()
	return h.writing(g, func(s pkcs11.SessionHandle) error {
		create, err := h.receive(s, c, g, mem)
		if err != nil {
			return err
		}
		tried, err := h.try(s, c, g.key(c.key.Label), create)
		if err != nil {
			return err
		}
		if tried.isCurrent {
			return c.adopt(nil, func() { c.adopted, c.repeated = g.key(c.key.Label), true })
		}
		if err := h.refuseReuse(g, c.key.Label, tried.kcv); err != nil {
			return err
		}
		if err := h.makeRoom(g, s, c); err != nil {
			return err
		}
		old := g.lineage(c.key.Label)
		b := newBirth(successorLabel(c.key.Label, old.highest+1), tried)
		made, err := h.make(s, c, b, old.current, create)
		if err == nil {
			err = c.adopt(made, func() {
				c.adopted, c.replaced = made, old.current.KCV
				g.keys[c.key.Label].Store(old.succeeded(made, c.line.began[made.version], h.cfg.Overlap))
				h.metrics.version[c.key.Label].Set(float64(made.version))
			})
		}
		// What may be there goes at once, or it is left to retire. The next process knows it by its want of a mark.
		if leftover := unfinished(c.key, b); err != nil && c.line.isUnfinished(leftover.birth) {
			if found, also := h.destroyLeftover(s, leftover); also != nil || !found {
				g.keys[c.key.Label].Store(old.with(leftover))
			} else {
				c.line.forget(leftover.birth)
			}
		}
		return err
	})
}

// makeRoom destroys what is due of the key and refuses a change that comes too soon: a processor that makes new keys in a loop must not fill the token, nor
// push the keys out that PIN blocks are still under.
func (h *HSM) makeRoom(g *generation, s pkcs11.SessionHandle, c *change) error {
	if err := h.destroyDue(g, s, c.key.Label); breaks(err) {
		return err
	} // any other error is for retire, which sees it too
	if n := g.lineage(c.key.Label).versions(); n >= mostVersions {
		return fmt.Errorf("%w: %d versions of the key are in the token, and their overlap is not over", ErrBusy, n)
	}
	now := time.Now()
	c.line.recent = slices.DeleteFunc(c.line.recent, func(at time.Time) bool { return now.Sub(at) >= time.Minute })
	if n := len(c.line.recent); n >= h.cfg.KeyChanges {
		return fmt.Errorf("%w: %d changes of the key in a minute", ErrBusy, n)
	}
	c.line.recent = append(c.line.recent, now)
	return nil
}

// A creator makes the received key from a template without a value.
type creator func(template []*pkcs11.Attribute) (pkcs11.ObjectHandle, error)

// receive returns what makes the key of the cryptogram, which is of the algorithm of the key that it is to replace. Where the ZMK unwraps inside the
// token, nothing is seen of the key, and its parity cannot be checked. Else the clear key is in mem from here until the task ends, and nowhere else in
// this process.
func (h *HSM) receive(s pkcs11.SessionHandle, c *change, g *generation, mem *scratch) (creator, error) {
	current, zmk, n := g.key(c.key.Label), g.key(c.key.ZMK), len(c.cryptogram)
	if !slices.Contains(current.recipe.lengths, n) {
		return nil, refuse(keyLength, "the cryptogram has %d bytes, and a key of %s has %s", n, current.recipe.algorithm, oneOf(current.recipe.lengths))
	}
	is, err := current.strength(h.module, s)
	if err != nil {
		return nil, err
	}
	if strengthOf(current.recipe.algorithm, n) < is {
		return nil, refuse(keyWeaker, "the new key is shorter than the one in use")
	}
	if is, err = zmk.strength(h.module, s); err != nil {
		return nil, err
	}
	if is < strengthOf(current.recipe.algorithm, n) { // PCI PIN 10
		return nil, refuse(keyWeakZMK, "the zone master key %q is weaker than the new key", zmk.Label)
	}
	if n%zmk.recipe.algorithm.block() != 0 {
		return nil, refuse(keyLength, "the cryptogram has %d bytes, which are no whole blocks of the zone master key %q", n, zmk.Label)
	}
	if zmk.recipe.way == TokenResident {
		return func(template []*pkcs11.Attribute) (pkcs11.ObjectHandle, error) {
			return h.module.UnwrapKey(s, mechanism(zmk.recipe.algorithm.ecb()), zmk.handle, c.cryptogram, template)
		}, nil
	}
	value := mem.key[:n]
	if err := h.module.DecryptInit(s, mechanism(zmk.recipe.algorithm.ecb()), zmk.handle); err != nil {
		return nil, fmt.Errorf("deciphering key: %w", err)
	}
	got, err := h.module.DecryptTo(s, c.cryptogram, value)
	if err == nil {
		_, err = exactly(n, value[:got], nil)
	}
	if err != nil {
		return nil, fmt.Errorf("deciphering key: %w", err)
	}
	if current.recipe.algorithm == TDES {
		if !hasOddParity(value) {
			return nil, refuse(keyParity, "the key has no odd parity: it is garbled, or was not enciphered under %q", zmk.Label)
		}
		if problem := weakness(value); problem != "" {
			return nil, refuse(keyWeak, "the key %s", problem)
		}
	}
	return func(template []*pkcs11.Attribute) (pkcs11.ObjectHandle, error) {
		return h.module.CreateSecret(s, template, value)
	}, nil
}

// try makes the key for the session only, compares its check value with the one that came, and with the current key.
func (h *HSM) try(s pkcs11.SessionHandle, c *change, current *key, create creator) (t trial, err error) {
	r := current.recipe
	kcv, zeros, err := measure(h.module, s, r.algorithm, len(c.cryptogram), create)
	if err != nil {
		return trial{}, h.refusedByToken(err)
	}
	if !sameKCV(kcv[:len(c.kcv)], c.kcv) {
		return trial{}, refuse(keyKCV, "the key has another check value")
	}
	t.kcv = kcv
	if !r.enciphers() {
		t.proof = proof(kcv, zeros)
	}
	if sameKCV(kcv, current.KCV) {
		t.isCurrent, err = h.twins(s, r, len(c.cryptogram), current.handle, create)
	}
	return t, err
}

// A trial is what was found out about a key that lived for a session.
type trial struct {
	kcv       string
	proof     string // of the check value, of a key that will not be able to show it
	isCurrent bool
}

// twins reports whether the new key makes the same block of zeros as the current one: all of it, where a KCV is 3 bytes.
func (h *HSM) twins(s pkcs11.SessionHandle, r recipe, bytes int, current pkcs11.ObjectHandle, create creator) (bool, error) {
	zeros := make([]byte, r.algorithm.block())
	was, err := r.onBlock(h.module, s, current, zeros)
	if err != nil {
		return false, err
	}
	twin, err := create(inSession(r.template("", "", bytes)))
	if err != nil {
		return false, h.refusedByToken(err)
	}
	is, err := r.onBlock(h.module, s, twin, zeros)
	if err == nil {
		err = keepGeneration(h.module.DestroyObject(s, twin))
	}
	// A token that keeps to itself what it unwraps leaves the check value alone to compare.
	return err == nil && subtle.ConstantTimeCompare(was, is) == 1, err
}

// refusedByToken is for errors about an object that only this change knows.
func (h *HSM) refusedByToken(err error) error {
	if c, _ := classify(err); c == classData || c == classUnknown || c == classKey || errors.Is(err, errNoCheckValue) {
		return refuse(keyRefused, "the token does not take the key: %v", err)
	}
	return keepGeneration(err)
}

// refuseReuse refuses a key that any other one is, whatever its use (PCI PIN 17, 19), and one that was replaced before: a delayed or recorded change
// must not bring it back. Not even a PIN key of both directions comes so (see Twins): nobody but the operator can tell that both are of one
// zone. Three bytes of KCV are the same by chance once in 16 million; the other side will send another key.
func (h *HSM) refuseReuse(g *generation, label, kcv string) error {
	for _, k := range h.cfg.Keys {
		now := g.key(k.Label)
		if k.Label != label && sameKCV(kcv, now.KCV) {
			return refuse(keyReused, "the key %q has the same check value: each zone has a key of its own, and each key one purpose", k.Label)
		}
		if now.hasReplaced(kcv) {
			return refuse(keyReused, "the key %q had the same check value before", k.Label)
		}
	}
	return nil
}

// make makes the key in the token, checks it there as a start would, and marks it as adopted.
func (h *HSM) make(s pkcs11.SessionHandle, c *change, b birth, before *key, create creator) (*key, error) {
	replaced := before.history()
	if err := refuseExisting(h.module, s, b.label); err != nil {
		if errors.Is(err, ErrKeyExists) {
			err = fmt.Errorf("%w: %q: does another process change keys in this token?", ErrUnavailable, b.label)
		}
		return nil, err
	}
	if err := c.goOn(func() { c.line.unfinished[b.text()] = true }); err != nil { // from here on it may exist
		return nil, err
	}
	handle, err := create(before.recipe.template(b.label, b.text(), len(c.cryptogram)))
	if err != nil {
		return nil, h.refusedByToken(fmt.Errorf("creating %q: %w", b.label, err))
	}
	made, problem, err := readBirth(h.module, s, b.label)
	var k *key
	if err == nil && problem == "" {
		if k, problem, err = checkSuccessor(h.module, s, c.key, b, replaced); made != b {
			problem = "is not the one that it was told to make"
		}
	}
	if err == nil && problem != "" {
		_ = h.module.DestroyObject(s, handle) // by its handle, whatever the token thinks that it is
		err = refuse(keyRefused, "the token made a key that %s", problem)
	}
	if err == nil {
		err = c.goOn(nil) // if nobody waits, a mark would only be in the way
	}
	if err != nil {
		return nil, keepGeneration(err)
	}
	if _, _, err := (mark{birth: b.text(), replaced: replaced}).create(h.module, s, b.label, lasting); err != nil {
		return nil, h.refusedByToken(fmt.Errorf("marking %q: %w", b.label, err))
	}
	return k, nil
}

// goOn does a step of a change, unless nobody waits for it any more.
func (c *change) goOn(step func()) error {
	c.line.mu.Lock()
	defer c.line.mu.Unlock()
	if c.over {
		return errDown
	}
	if step != nil {
		step()
	}
	return nil
}

// forgotten is how many versions later nobody asks any more since when one was current: far beyond mostVersions, because numbers may be missing.
const forgotten = 100

// adopt lets the change happen, unless nobody waits for it any more.
func (c *change) adopt(made *key, happen func()) error {
	return c.goOn(func() {
		if made != nil {
			delete(c.line.unfinished, made.birth)
			c.line.version, c.line.kcv = made.version, made.KCV
			c.line.began[made.version] = monotonic(made.made)
			maps.DeleteFunc(c.line.began, func(version int, _ time.Time) bool { return version < made.version-forgotten })
		}
		happen()
	})
}
