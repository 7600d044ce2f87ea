package hsm

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/miekg/pkcs11"
)

// A token says of a mechanism what it says; what it does is found out here, once in a process: each capability is tried in each of its ways, with keys
// of the session whose values everybody knows, and has to give the known answer. What does not is not available. The Statement says what was found.

// A capability is something that this package does with keys of the configuration.
type capability struct {
	name string     // of the operation
	pair formatPair // of a PIN translation
	keys []keyKept  // it is in use if the configuration has a key for each
	ways []method   // the best one first
}

// A keyKept is a kind of key that the configuration may have.
type keyKept struct {
	use       Use
	algorithm Algorithm                       // "": any
	named     func(h *HSM, label string) bool // nil: every one
}

// A method is one way of a capability.
type method struct {
	way       Way
	with      uint // of two ways that are the same: the first mechanism of the key's recipe
	mechanism string
	note      string // what passes through this process

	// prepare makes the keys, and returns what is measured. That fails if the answer is not the known one.
	prepare func(*bench) (func() error, error)
}

// capabilities are all that the probe tries, in the order of the Statement. A room of this package that adds an operation adds its capabilities here.
var capabilities = slices.Concat(pinCapabilities(), panCapabilities, keyCapabilities, macCapabilities, derivedCapabilities)

// A finding is what the probe found out about a method.
type finding struct {
	micros float64 // median
	err    error   // why it is not available; nil if it is
	untold bool    // nothing was found out: it may be available
}

// Limits of it.
const (
	probeRuns   = 5                      // that are measured, after one that is not
	probeBudget = 800 * time.Millisecond // after it nothing is tried that is not in use, and after half of it all is measured once
)

// A bench is where a token is tried: a worker with a session of its own, whose end takes everything away that was made in it.
type bench struct{ worker }

// errUnmade: the token makes no key of a known value, as some do not that are certified. So nothing can be known by its answer.
var errUnmade = errors.New("the token makes no key of a known value")

// key makes a key for a recipe.
func (b *bench) key(r recipe, value string) (*key, error) {
	clearKey := unhex(value)
	o, err := b.m.CreateSecret(b.session, inSession(r.template("", "", len(clearKey))), clearKey)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errUnmade, err)
	}
	return &key{recipe: r, handle: o}, nil
}

// of makes a key for the recipe of a use.
func (b *bench) of(use Use, algorithm Algorithm, way Way, value string) (*key, error) {
	i := slices.IndexFunc(recipes[use], func(r recipe) bool { return r.algorithm == algorithm && r.way == way })
	return b.key(recipes[use][i], value)
}

// first makes a key for the recipe of a use whose first mechanism is this one.
func (b *bench) first(use Use, with uint, value string) (*key, error) {
	i := slices.IndexFunc(recipes[use], func(r recipe) bool { return r.mechanisms[0] == with })
	return b.key(recipes[use][i], value)
}

// unhex is for constants.
func unhex(s string) []byte {
	b, err := hex.DecodeString(s)
	if err != nil {
		panic(err)
	}
	return b
}

var errWrongAnswer = errors.New("the answer is not the known one")

// answers compares with the known answer.
func answers(got []byte, want string) error {
	if !bytes.Equal(got, unhex(want)) {
		return errWrongAnswer
	}
	return nil
}

// probeToken tries all capabilities, unless this process has done that: they are the token's, and do not change from one generation to the
// next. A token that fails meanwhile would be found to do little; so a key must work after it.
func (h *HSM) probeToken(ctx context.Context, g *generation) error {
	if h.probed != nil {
		return nil
	}
	began := time.Now()
	found := make([][]finding, len(capabilities))
	for _, inUse := range []bool{true, false} { // what is in use comes first, and has the time that it takes
		for i, c := range capabilities {
			if _, used := h.inUse(g, c); used != inUse {
				continue
			}
			found[i] = make([]finding, len(c.ways))
			for j, m := range c.ways {
				if err := ctx.Err(); err != nil {
					return err
				}
				spent, runs := time.Since(began), probeRuns
				switch {
				case spent > probeBudget && !inUse:
					found[i][j] = finding{err: errors.New("the time of the probe was over"), untold: true}
					continue
				case spent > probeBudget/2:
					runs = 1
				}
				var err error
				if found[i][j], err = h.tryMethod(g, m, runs); err != nil {
					return fmt.Errorf("probing %s: %w", c.name, err)
				}
			}
		}
	}
	if err := g.key(h.cfg.TokenKey).checkAgain(h.module, g.sessions[0]); err != nil {
		return fmt.Errorf("probing the token: %w", err)
	}
	h.probed = found
	for _, o := range h.statement(g).Operations {
		h.tell(Probed, o.Name, "", string(o.Way))
	}
	return nil
}

// tryMethod does it once, and then so many times more. What the token answers is the finding; an error is of the session alone.
func (h *HSM) tryMethod(g *generation, m method, runs int) (found finding, err error) {
	s, err := h.module.OpenSession(g.slot, pkcs11.CKF_SERIAL_SESSION)
	if errors.Is(err, pkcs11.Error(pkcs11.CKR_SESSION_COUNT)) {
		return finding{err: errors.New("the token has no session for it"), untold: true}, nil
	}
	if err != nil {
		return finding{}, fmt.Errorf("opening session: %w", err)
	}
	defer func() {
		if also := h.module.CloseSession(s); err == nil && also != nil {
			err = fmt.Errorf("closing session: %w", also)
		}
	}()
	b := &bench{worker{m: h.module, session: s, mem: h.memory.scratch(0)}}
	b.join(&generation{slot: g.slot, sessions: []pkcs11.SessionHandle{s}})
	defer func() {
		for which := range b.open {
			b.release(which)
		}
	}()
	run, err := m.prepare(b)
	if err == nil {
		err = run()
	}
	if err != nil {
		return finding{err: err, untold: errors.Is(err, errUnmade)}, nil
	}
	took := make([]time.Duration, runs)
	for i := range took {
		began := time.Now()
		if err := run(); err != nil {
			return finding{err: err}, nil
		}
		took[i] = time.Since(began)
	}
	slices.Sort(took)
	const perMicro, tenths = float64(time.Microsecond), 10
	return finding{micros: math.Round(tenths*float64(took[runs/2])/perMicro) / tenths}, nil
}

// inUse returns the recipe of the key that a capability is in use with, and whether it is. Of several the one with the worst way counts.
func (h *HSM) inUse(g *generation, c capability) (worst recipe, used bool) {
	if g == nil {
		return recipe{}, false
	}
	for _, kept := range c.keys {
		found := false
		for _, k := range h.cfg.Keys {
			r := g.key(k.Label).recipe
			switch {
			case kept.isFor(k.Use, r) && (kept.named == nil || kept.named(h, k.Label)):
				if found = true; worst.way != Transient {
					worst = r
				}
			case kept.use == PINIn && k.Use == BDK && (r.algorithm == AES || kept.algorithm == TDES): // PIN keys of devices go the way of the other key
				found = true
			}
		}
		if !found {
			return recipe{}, false
		}
	}
	return worst, true
}

// isFor reports whether a key of this use and recipe is of the kind.
func (kept keyKept) isFor(use Use, r recipe) bool {
	return use == kept.use && (kept.algorithm == "" || kept.algorithm == r.algorithm)
}

// of reports whether it is how a key of the recipe is used.
func (m method) of(r recipe) bool {
	return m.way == r.way && (m.with == 0 || slices.Contains(r.mechanisms[:1], m.with))
}

// operation is the line of the Statement about a capability. What is in use goes the way that its keys allow, whatever the token could do besides.
func (h *HSM) operation(g *generation, c capability, found []finding) Operation {
	if len(found) == 0 {
		found = slices.Repeat([]finding{{err: errors.New("there was no probe"), untold: true}}, len(c.ways))
	}
	by, used := h.inUse(g, c)
	o := Operation{Name: c.name, Way: NotAvailable, InUse: used}
	taken := c.taken(found, by, used)
	var notes []string
	if taken >= 0 {
		m := c.ways[taken]
		o.Way, o.Mechanism, o.Micros, notes = m.way, m.mechanism, found[taken].micros, append(notes, m.note)
	}
	for i, m := range c.ways {
		switch f := found[i]; {
		case m.way == o.Way || used && m.way != TokenResident && !m.of(by): // what would be no better
		case f.untold:
			notes = append(notes, fmt.Sprintf("%s not tried: %v", m.way, f.err))
		case f.err != nil:
			notes = append(notes, fmt.Sprintf("not %s: %v", m.way, f.err))
		case used && m.way == TokenResident:
			notes = append(notes, "the token can do it token-resident, but not with these keys")
		}
	}
	o.Note = strings.Join(notes, "; ")
	return o
}

// proven reports whether keys that have passed their check show that the token can do it. That of two PIN keys shows no translation, and that of a zone master
// key no new key.
func (c capability) proven() bool {
	return c.pair == noPair && !slices.ContainsFunc(c.keys, func(kept keyKept) bool { return kept.use == ZMK })
}

// taken returns the place of the way that is taken: of what is in use the one of its keys, which have done their work in their check, and of the rest the best that
// the token can do. It is -1 if there is none: a PIN translation that was found not to work is refused (see findUnable), and a key change is tried all the same.
func (c capability) taken(found []finding, by recipe, used bool) int {
	for i, m := range c.ways {
		f := found[i]
		if !used && f.err == nil || used && m.of(by) && (f.err == nil || f.untold || c.proven()) {
			return i
		}
	}
	return -1
}

// A formatPair is what a PIN block is translated from and to.
type formatPair struct{ from, to Format }

// noPair is of an operation that translates no PIN blocks.
var noPair formatPair

// findUnable returns the pairs of formats that the token was found unable to translate the way that the PIN keys go, and why. Of that only the text is
// kept: its code would break the generation of whoever is told.
func (h *HSM) findUnable(way Way) map[formatPair]error {
	unable := map[formatPair]error{}
	for i, found := range h.probed {
		c := capabilities[i]
		for j, m := range c.ways {
			if f := found[j]; c.pair != noPair && m.way == way && f.err != nil && !f.untold {
				unable[c.pair] = fmt.Errorf("%w: this token cannot translate %s into %s %s: %s", ErrPINFormat, c.pair.from, c.pair.to, way, f.err.Error())
			}
		}
	}
	return unable
}

// CheckPINPair fails if the token was found unable to translate PIN blocks of a format into another the way that the PIN keys of the configuration go: it
// is never done another way. Errors: ErrPINFormat, or ErrUnavailable if that is not known at present.
func (h *HSM) CheckPINPair(from, to Format) error {
	g := h.gen.Load()
	if g == nil {
		return errDown
	}
	return g.unable[formatPair{from.orDefault(), to.orDefault()}]
}
