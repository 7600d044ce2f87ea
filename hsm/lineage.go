package hsm

import (
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/miekg/pkcs11"
)

// A lineage is a key of the configuration with what came after it by key changes, as one generation finds it. It is
// never modified: a change puts another one in its place. A key that cannot be changed is its own whole lineage.
type lineage struct {
	current   *key
	former    []*key // in use before, the last one first: each may be used until its time is over, and is then destroyed
	leftovers []*key // never adopted: not to be used, and destroyed
	highest   int    // version of any of them
}

// mostVersions is how many keys of a label the token may hold. A pin-in key that changes every day needs 9 of them for the longest overlap. Of a
// pin-out key only the last one before the current one is of use, so that it needs no more than what cannot be destroyed yet: at one change a second
// and a CallTimeout of 2 s, 6.
const mostVersions = 10

func (l *lineage) versions() int { return 1 + len(l.former) + len(l.leftovers) }

// before returns the keys before the current one that may still be used, the last one first.
func (l *lineage) before(now time.Time) []*key {
	n := slices.IndexFunc(l.former, func(k *key) bool { return !now.Before(k.until) }) // what is older was replaced earlier
	if n < 0 {
		return l.former
	}
	return l.former[:n]
}

// due returns what may be destroyed. A call that took a key while it was valid gets a CallTimeout to end with it, and the process that makes a
// key as much to adopt it.
func (l *lineage) due(now time.Time, callTimeout time.Duration) []*key {
	var due []*key
	for _, k := range slices.Concat(l.leftovers, l.former) {
		if now.After(k.until.Add(callTimeout + time.Second)) { // the times of births are whole seconds
			due = append(due, k)
		}
	}
	return due
}

// with returns the lineage with one more leftover.
func (l *lineage) with(leftover *key) *lineage {
	next := *l
	next.leftovers = append(slices.Clone(l.leftovers), leftover)
	next.highest = max(l.highest, leftover.version)
	return &next
}

// without returns the lineage when a key of it is gone from the token, or is not ours to destroy.
func (l *lineage) without(gone *key) *lineage {
	next := *l
	is := func(k *key) bool { return k == gone }
	next.former = slices.DeleteFunc(slices.Clone(l.former), is)
	next.leftovers = slices.DeleteFunc(slices.Clone(l.leftovers), is)
	return &next
}

// succeeded returns the lineage after a change, at a time: the key that was current may be used for the overlap.
func (l *lineage) succeeded(by *key, at time.Time, overlap time.Duration) *lineage {
	was := *l.current
	was.until = at.Add(overlap)
	next := &lineage{current: by, former: append([]*key{&was}, l.former...), leftovers: l.leftovers, highest: by.version}
	next.shorten(by.Use, func(int) time.Time { return at })
	return next
}

// shorten ends the time of keys that nothing uses any more: of a pin-out key those before the last one before the current one, since the change
// that made them so. changed gives the time of the change after which a former key, by its place, was that.
func (l *lineage) shorten(use Use, changed func(i int) time.Time) {
	if use != PINOut {
		return
	}
	for i := 1; i < len(l.former); i++ {
		if at := changed(i); at.Before(l.former[i].until) {
			k := *l.former[i] // others may be reading it
			k.until = at
			l.former[i] = &k
		}
	}
}

// A line is what this process remembers of a key that may be changed, from one generation to the next.
type line struct {
	recent []time.Time // of changes that were about to make a key; owned by who holds HSM.changing

	mu         sync.Mutex
	version    int               // that was current last; 0 before the first generation
	kcv        string            // of it
	began      map[int]time.Time // by version: since when it is current, on the monotonic clock
	unfinished map[string]bool   // texts of births: what a change made, or may have made, and did not finish is never to be used
}

// isUnfinished reports whether a change of this process began a key of that birth and did not finish.
func (l *line) isUnfinished(birth string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.unfinished[birth]
}

// forget is for a birth of which nothing is left in the token.
func (l *line) forget(birth string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.unfinished, birth)
}

// since returns since when a version is current, by the time in its birth when this process first sees it, and then whatever becomes of
// the clock. A birth in the future, of a clock that was ahead, counts from now: no overlap lasts longer than one beyond a start.
func (l *line) since(version int, made time.Time) time.Time {
	l.mu.Lock()
	defer l.mu.Unlock()
	if at, known := l.began[version]; known {
		return at
	}
	l.began[version] = monotonic(made)
	return l.began[version]
}

// monotonic returns a past time with its place on the monotonic clock, and the present one for a time in the future.
func monotonic(at time.Time) time.Time {
	now := time.Now()
	return now.Add(-max(0, now.Sub(at)))
}

// findLineage finds the current version of a key and what is left of the others. The KCV of the configuration is demanded of version 1 while that
// is current, and later among what was replaced; of a successor the KCV of its birth is demanded, and all that its use demands. What is older
// and not as it should be is left alone and not used: it must not stop what is current.
func (h *HSM) findLineage(s pkcs11.SessionHandle, want Key, found *succession) (*lineage, string, error) {
	l := &lineage{highest: firstVersion}
	for _, label := range slices.Backward(found.labels) {
		k, problem, err := h.findSuccessor(s, want, label, found)
		if err != nil {
			return nil, "", err
		}
		_, version, _ := successorOf(label)
		l.highest = max(l.highest, version)
		switch {
		case k != nil && k.leftover:
			k.until = time.Now() // another process may be about to adopt it
			l.leftovers = append(l.leftovers, k)
		case l.current == nil && problem != "":
			return nil, fmt.Sprintf("has a successor %q that %s", label, problem), nil
		case l.current == nil:
			l.current = k
		case problem != "":
			h.log.Warn("hsm old key is not what it was, and is not used", "key", want.Label, "label", label, "problem", problem)
		default:
			l.former = append(l.former, k)
		}
	}
	if problem := h.judgeMarks(l, want, found); problem != "" {
		return nil, problem, nil
	}
	if problem, err := h.findFirst(s, l, want); err != nil || problem != "" {
		return nil, problem, err
	}
	remembered := h.lines[want.Label]
	next := l.current
	for _, k := range l.former {
		k.until = remembered.since(next.version, next.made).Add(h.cfg.Overlap)
		next = k
	}
	l.shorten(want.Use, func(i int) time.Time {
		after := l.current
		if i > 1 {
			after = l.former[i-2]
		}
		return remembered.since(after.version, after.made)
	})
	return l, remembered.confirm(l.current), nil
}

// judgeMarks returns what is wrong if the newest key that was adopted is not there any more. What is older must not come back by that.
func (h *HSM) judgeMarks(l *lineage, want Key, found *succession) (problem string) {
	newest := firstVersion
	if l.current != nil {
		newest = l.current.version
	}
	for label, marks := range found.marks {
		_, version, _ := successorOf(label)
		l.highest = max(l.highest, version)
		if version > newest && slices.ContainsFunc(marks, func(m mark) bool { return !h.lines[want.Label].isUnfinished(m.birth) }) {
			newest, problem = version, fmt.Sprintf("is missing as %q, which was in use", label)
		}
	}
	return problem
}

// findFirst finds version 1, which is the current one while there is no successor. Beside a successor it must be one of those that were replaced, and so
// must what the configuration pins: a key that was made under the same label since then is not passed over, let alone destroyed.
func (h *HSM) findFirst(s pkcs11.SessionHandle, l *lineage, want Key) (problem string, err error) {
	first, problem, err := findKey(h.module, s, want)
	if l.current == nil {
		if problem != "" && len(l.leftovers) > 0 {
			problem += fmt.Sprintf(", and %q has no mark of its adoption", l.leftovers[0].Label)
		}
		l.current = first
		return problem, err
	}
	if err != nil {
		return "", err
	}
	if !l.current.hasReplaced(want.KCV) {
		return fmt.Sprintf("is pinned with KCV %s, which no version before %q had: a new key needs a new label", want.KCV, l.current.Label), nil
	}
	if first != nil {
		l.former = append(l.former, first)
		return "", nil
	}
	handles, err := find(h.module, s, want.Label)
	if err != nil || len(handles) == 0 {
		return "", err // usually it is gone, because its time is over
	}
	h.log.Warn("hsm old key is not what it was, and is not used", "key", want.Label, "label", want.Label, "problem", problem)
	if h.lines[want.Label].isKnown() {
		return "", nil // what an operator does to a token must not stop one that serves
	}
	for _, handle := range handles {
		r, _, err := fitting(want.Use, h.module, s, handle)
		if err != nil {
			return "", err
		}
		kcv, err := r.kcv(h.module, s, handle)
		if c, isCode := classify(err); isCode && c != classKey {
			return "", err
		}
		if err == nil && !l.current.hasReplaced(kcv) {
			return fmt.Sprintf("has KCV %s in the token, which no version before %q had: a new key needs a new label", kcv, l.current.Label), nil
		}
	}
	return "", nil
}

// hasReplaced reports whether a version before this one had that KCV.
func (k *key) hasReplaced(kcv string) bool {
	return slices.ContainsFunc(k.replaced, func(old string) bool { return sameKCV(kcv, old) })
}

// isKnown reports whether a generation has found the key before.
func (l *line) isKnown() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.version > 0
}

// confirm remembers the current version, or returns what is wrong with it: it may not become older, nor another key.
func (l *line) confirm(current *key) (problem string) {
	l.mu.Lock() // not before: a call into the module may hang
	defer l.mu.Unlock()
	if current.version < l.version {
		return fmt.Sprintf("is missing in version %d, which was in use", l.version)
	}
	if current.version == l.version && !sameKCV(current.KCV, l.kcv) {
		return fmt.Sprintf("has KCV %s in version %d, and not %s as before", current.KCV, l.version, l.kcv)
	}
	l.version, l.kcv = current.version, current.KCV
	return ""
}

// unfinished stands for what a change made, or may have made.
func unfinished(of Key, b birth) *key {
	of.Label, of.KCV = b.label, b.kcv
	_, version, _ := successorOf(b.label)
	return &key{Key: of, version: version, birth: b.text(), made: b.made, leftover: true}
}

// findSuccessor finds one successor by its label, and checks it against its birth and its mark. One without its mark is a leftover.
func (h *HSM) findSuccessor(s pkcs11.SessionHandle, want Key, label string, found *succession) (*key, string, error) {
	b, problem, err := readBirth(h.module, s, label)
	if err != nil || problem != "" {
		return nil, problem, err
	}
	m := found.adopted(label, b.text())
	if m == nil || h.lines[want.Label].isUnfinished(b.text()) {
		return unfinished(want, b), "", nil
	}
	return checkSuccessor(h.module, s, want, b, m.replaced)
}

func readBirth(m module, s pkcs11.SessionHandle, label string) (b birth, problem string, err error) {
	handles, err := find(m, s, label)
	if err != nil {
		return birth{}, "", err
	}
	if len(handles) != 1 {
		return birth{}, fmt.Sprintf("is not unique: %d keys have that label", len(handles)), nil
	}
	id, _, err := attribute(m, s, handles[0], pkcs11.CKA_ID)
	if err != nil {
		return birth{}, "", err
	}
	b, ok := parseBirth(label, string(id))
	if !ok {
		problem = "has no record of a key change"
	}
	return b, problem, nil
}

func checkSuccessor(m module, s pkcs11.SessionHandle, want Key, b birth, replaced []string) (*key, string, error) {
	want.Label, want.KCV = b.label, b.kcv
	k, problem, err := findKey(m, s, want)
	if k != nil {
		_, k.version, _ = successorOf(b.label)
		k.birth, k.made, k.replaced = b.text(), b.made, replaced
	}
	return k, problem, err
}

// announceLineages says which versions a generation uses: the configuration does not pin them.
func (h *HSM) announceLineages(g *generation) {
	for label := range h.lines {
		h.metrics.version[label].Set(float64(g.key(label).version))
	}
	for _, k := range h.keyStatus(g) {
		h.log.Info("hsm key version", "key", k.Label, "version", k.Version, "kcv", k.KCV, "since", k.Since, "previous_kcv", k.PreviousKCV, "until", k.Until)
	}
}

// A KeyStatus is a key that may be changed.
type KeyStatus struct {
	Label       string    `json:"label"` // of the configuration
	Use         Use       `json:"use"`
	ZMK         string    `json:"zmk"`          // label of the key under which a new one arrives
	Version     int       `json:"version"`      // 1: the key of the configuration; it grows by one with each change
	KCV         string    `json:"kcv"`          // of the current version
	Since       time.Time `json:"since"`        // when it was made, UTC; zero for version 1
	PreviousKCV string    `json:"previous_kcv"` // of the key before it, while that may be used; else ""
	Until       time.Time `json:"until"`        // when the previous one may be used no more, UTC; zero without one
}

// KeyStatus tells version and KCV of each key that may be changed, in the order of the configuration; nothing while there
// is no healthy generation.
func (h *HSM) KeyStatus() []KeyStatus {
	if g := h.gen.Load(); g != nil {
		return h.keyStatus(g)
	}
	return nil
}

func (h *HSM) keyStatus(g *generation) []KeyStatus {
	var all []KeyStatus
	for _, k := range h.cfg.Keys {
		if k.ZMK == "" {
			continue
		}
		l := g.lineage(k.Label)
		status := KeyStatus{Label: k.Label, Use: k.Use, ZMK: k.ZMK, Version: l.current.version, KCV: l.current.KCV, Since: l.current.made}
		if old := l.before(time.Now()); len(old) > 0 {
			status.PreviousKCV, status.Until = old[0].KCV, old[0].until.Round(0).UTC()
		}
		all = append(all, status)
	}
	return all
}
