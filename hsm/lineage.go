package hsm

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/miekg/pkcs11"
)

// A lineage is a key of the configuration with what came after it by key changes, as one generation finds it. It is
// never modified: a change puts another one in its place. A key that cannot be changed is its own whole lineage.
type lineage struct {
	current  *key
	previous *key      // nil if there is none
	until    time.Time // previous may be used until then
	old      []*key    // must not be used, and is to be destroyed: older than previous, or never adopted
	highest  int       // version of any of them
}

// before returns the key before the current one while it may still be used, else nil.
func (l *lineage) before(now time.Time) *key {
	if l.previous != nil && now.Before(l.until) {
		return l.previous
	}
	return nil
}

// due returns what may be destroyed. A call that took a key while it was valid gets a CallTimeout to end with it.
func (l *lineage) due(now time.Time, callTimeout time.Duration) []*key {
	var due []*key
	if now.After(l.current.made.Add(callTimeout + time.Second)) { // made has whole seconds
		due = append(due, l.old...)
	}
	if l.previous != nil && now.After(l.until.Add(callTimeout)) {
		due = append(due, l.previous)
	}
	return due
}

// with returns the lineage with one more key to destroy.
func (l *lineage) with(old *key) *lineage {
	next := *l
	next.old = append(slices.Clone(l.old), old)
	next.highest = max(l.highest, old.version)
	return &next
}

// without returns the lineage when a key of it is gone from the token.
func (l *lineage) without(gone *key) *lineage {
	next := *l
	if l.previous == gone {
		next.previous = nil
	}
	next.old = slices.DeleteFunc(slices.Clone(l.old), func(k *key) bool { return k == gone })
	return &next
}

// succeeded returns the lineage after a change.
func (l *lineage) succeeded(by *key, overlap time.Duration) *lineage {
	next := &lineage{current: by, previous: l.current, until: by.made.Add(overlap), old: slices.Clone(l.old), highest: by.version}
	if l.previous != nil {
		next.old = append(next.old, l.previous)
	}
	return next
}

// A line is what this process remembers of a key that may be changed, from one generation to the next.
type line struct {
	changing sync.Mutex // held by the task that changes or destroys: one at a time. Never waited for.

	mu        sync.Mutex
	version   int             // that was current last
	kcv       string          // of it
	unadopted map[string]bool // labels of successors that a change made, or may have made, and did not finish: never to be used
}

// mayHold reports whether an unfinished change may have left a key of that label.
func (l *line) mayHold(label string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.unadopted[label]
}

const firstVersion = 1

// successorLabel names a version of a key that is not the first one.
func successorLabel(label string, version int) string { return fmt.Sprintf("%s#%d", label, version) }

// successorOf is the inverse of successorLabel.
func successorOf(label string) (base string, version int, ok bool) {
	at := strings.LastIndexByte(label, '#')
	if at < 1 {
		return "", 0, false
	}
	version, err := strconv.Atoi(label[at+1:])
	if err != nil || version <= firstVersion || successorLabel(label[:at], version) != label {
		return "", 0, false
	}
	return label[:at], version, true
}

// A record is what the CKA_ID of a successor tells, so that its overlap and its history outlive the process.
type record struct {
	kcv      string
	made     time.Time
	replaced []string // KCVs of the versions before it, the last one first
}

// mostReplaced is how many versions a record remembers: with a label of 64 bytes it stays shorter than 255, which some tokens
// may not exceed.
const mostReplaced = 24

func (r record) text(label string) string {
	return label + " " + r.kcv + " " + r.made.UTC().Format(time.RFC3339) + " " + strings.Join(r.replaced, "")
}

func parseRecord(label, text string) (record, bool) {
	words := strings.Split(text, " ")
	if len(words) != 4 || words[0] != label || !sixHex.MatchString(words[1]) {
		return record{}, false
	}
	r := record{kcv: words[1]}
	for rest := words[3]; rest != ""; rest = rest[2*kcvBytes:] {
		if len(rest) < 2*kcvBytes || !sixHex.MatchString(rest[:2*kcvBytes]) {
			return record{}, false
		}
		r.replaced = append(r.replaced, rest[:2*kcvBytes])
	}
	made, err := time.Parse(time.RFC3339, words[2])
	r.made = made
	return r, err == nil && len(r.replaced) > 0
}

// findSuccessors returns the labels of all successors in the token, by the label of the configuration, lowest version first. Numbers can
// be missing, so each label of the token is looked at: once a generation, and only if a key may be changed.
func (h *HSM) findSuccessors(s pkcs11.SessionHandle) (map[string][]string, error) {
	if len(h.lines) == 0 {
		return nil, nil
	}
	handles, err := find(h.module, s, "")
	if err != nil {
		return nil, err
	}
	found := map[string][]string{}
	for _, handle := range handles {
		value, _, err := attribute(h.module, s, handle, pkcs11.CKA_LABEL)
		if err != nil {
			return nil, err
		}
		label := string(value)
		if base, _, ok := successorOf(label); ok && h.lines[base] != nil && !slices.Contains(found[base], label) {
			found[base] = append(found[base], label)
		}
	}
	for _, labels := range found {
		slices.SortFunc(labels, func(a, b string) int {
			_, x, _ := successorOf(a)
			_, y, _ := successorOf(b)
			return x - y
		})
	}
	return found, nil
}

// findLineage finds the newest version of a key and what is left of the others. The KCV of the configuration is demanded of
// version 1 and only while that is current; of a successor the KCV of its record is demanded, and all that its use demands. What
// is older and not as it should be is left alone and not used: it must not stop what is current.
func (h *HSM) findLineage(s pkcs11.SessionHandle, want Key, successors []string) (*lineage, string, error) {
	remembered := h.lines[want.Label]
	l := &lineage{highest: firstVersion}
	for _, label := range slices.Backward(successors) {
		k, problem, err := findSuccessor(h.module, s, want, label)
		if err != nil {
			return nil, "", err
		}
		_, version, _ := successorOf(label)
		l.highest = max(l.highest, version)
		switch {
		case remembered.mayHold(label):
			l.old = append(l.old, unfinished(want, label))
		case l.current == nil && problem != "":
			return nil, fmt.Sprintf("has a successor %q that %s", label, problem), nil
		case l.current == nil:
			l.current = k
		case problem != "":
			h.log.Warn("hsm old key is not what it was, and is not used", "key", want.Label, "label", label, "problem", problem)
		case l.previous == nil:
			l.previous = k
		default:
			l.old = append(l.old, k)
		}
	}
	first, problem, err := findKey(h.module, s, want)
	switch {
	case err != nil:
		return nil, "", err
	case l.current == nil && problem != "":
		return nil, problem, nil
	case l.current == nil:
		l.current = first
	case problem != "": // usually gone, because its time is over
	case l.previous == nil:
		l.previous = first
	default:
		l.old = append(l.old, first)
	}
	remembered.mu.Lock() // not before: a call into the module may hang
	defer remembered.mu.Unlock()
	if l.current.version < remembered.version {
		return nil, fmt.Sprintf("is missing in version %d, which was in use", remembered.version), nil
	}
	if l.current.version == remembered.version && !sameKCV(l.current.KCV, remembered.kcv) {
		return nil, fmt.Sprintf("has KCV %s in version %d, and not %s as before", l.current.KCV, remembered.version, remembered.kcv), nil
	}
	remembered.version, remembered.kcv = l.current.version, l.current.KCV
	l.until = l.current.made.Add(h.cfg.Overlap)
	return l, "", nil
}

// unfinished stands for what a change may have left under a label: good for nothing but to be destroyed.
func unfinished(of Key, label string) *key {
	of.Label = label
	_, version, _ := successorOf(label)
	return &key{Key: of, version: version}
}

// findSuccessor finds one successor by its label and checks it against its record.
func findSuccessor(m module, s pkcs11.SessionHandle, want Key, label string) (*key, string, error) {
	handles, err := find(m, s, label)
	if err != nil {
		return nil, "", err
	}
	if len(handles) != 1 {
		return nil, fmt.Sprintf("is not unique: %d keys have that label", len(handles)), nil
	}
	id, _, err := attribute(m, s, handles[0], pkcs11.CKA_ID)
	if err != nil {
		return nil, "", err
	}
	r, ok := parseRecord(label, string(id))
	if !ok {
		return nil, "has no record of a key change", nil
	}
	want.Label, want.KCV = label, r.kcv
	k, problem, err := findKey(m, s, want)
	if k != nil {
		_, k.version, _ = successorOf(label)
		k.made, k.replaced = r.made, r.replaced
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
		if old := l.before(time.Now()); old != nil {
			status.PreviousKCV, status.Until = old.KCV, l.until
		}
		all = append(all, status)
	}
	return all
}

// retryRetire is how long keys that could not be destroyed are left in peace.
const retryRetire = time.Minute

// retire destroys keys whose time is over. A key that is no longer needed has to go (PCI PIN 21 and 24, PCI DSS 3.7.5), and what is gone
// cannot come back as current when someone takes the newest away. It is called by supervise alone.
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
		err := h.once(limited, func(g *generation, _ int, _ *scratch) error { return h.destroyDue(g, label) })
		cancel()
		if err != nil && ctx.Err() == nil {
			h.retiring = time.Now().Add(retryRetire)
			h.count(err)
			h.log.Warn("hsm old key not destroyed", "key", label, "error", err)
		}
	}
}

// destroyDue is a task. It trusts no handle: it looks each key up again, and destroys it only if it is the one that it
// knows and the current one does its work.
func (h *HSM) destroyDue(g *generation, label string) error {
	remembered := h.lines[label]
	if !remembered.changing.TryLock() {
		return nil // a change is running, which is a better time to wait for
	}
	defer remembered.changing.Unlock()
	return h.writing(g, func(s pkcs11.SessionHandle) error {
		for _, k := range g.lineage(label).due(time.Now(), h.cfg.CallTimeout) {
			if err := g.key(label).checkAgain(h.module, s); err != nil {
				return err
			}
			switch err := h.destroy(s, k, remembered.mayHold(k.Label)); {
			case errors.Is(err, ErrKeyCheck):
				h.log.Warn("hsm old key is left in the token", "key", label, "version", k.version, "error", err)
			case err != nil:
				return keepGeneration(fmt.Errorf("destroying key %q: %w", k.Label, err))
			default:
				h.log.Info("hsm old key destroyed", "audit", true, "key", label, "version", k.version, "kcv", k.KCV)
			}
			g.keys[label].Store(g.lineage(label).without(k))
		}
		return nil
	})
}

// destroy destroys the one key that has this label and this KCV; one that is gone already is as good. Of a label that an unfinished change
// of this process took, all goes, whatever it is.
func (h *HSM) destroy(s pkcs11.SessionHandle, k *key, unfinished bool) error {
	handles, err := find(h.module, s, k.Label)
	if err != nil || len(handles) == 0 {
		return err
	}
	if unfinished {
		for _, handle := range handles {
			if err := h.module.DestroyObject(s, handle); err != nil {
				return err
			}
		}
		return nil
	}
	if len(handles) > 1 {
		return fmt.Errorf("%w: %d have that label", ErrKeyCheck, len(handles))
	}
	kcv, err := recipes[k.Use].check(h.module, s, handles[0])
	if err != nil {
		return err
	}
	if !sameKCV(kcv, k.KCV) {
		return fmt.Errorf("%w: its KCV is %s, and not %s", ErrKeyCheck, kcv, k.KCV)
	}
	return h.module.DestroyObject(s, handles[0])
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
