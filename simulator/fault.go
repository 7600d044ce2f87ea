package simulator

import (
	"errors"
	"fmt"
	"hash/fnv"
	"math/rand/v2"
	"time"

	"acquirerd/messages"
)

// Faults are the probabilities, 0 to 1, with which the processor breaks something of its own accord. One message may meet several.
// They are for requests and reversals; 0800s are left alone.
//
// What a message meets is drawn from the seed, its class, STAN and terminal, and how often it came before: not from the order in
// which messages arrive.
type Faults struct {
	Seed      uint64        `json:"seed"`
	Lost      float64       `json:"lost"`      // the message never arrives
	Late      float64       `json:"late"`      // it is decided after up to MaxDelay
	Delay     float64       `json:"delay"`     // it is answered after up to MaxDelay
	MaxDelay  time.Duration `json:"max_delay"` // default 2 s
	Silence   float64       `json:"silence"`   // it is decided and not answered
	Drop      float64       `json:"drop"`      // it is decided and the link dropped, without an answer
	Close     float64       `json:"close"`     // the link is closed after the answer
	Duplicate float64       `json:"duplicate"` // it is answered twice
	Reorder   float64       `json:"reorder"`   // its answer changes places with the next
	Garble    float64       `json:"garble"`    // its answer cannot be decoded
	NoSTAN    float64       `json:"no_stan"`   // its answer has no DE 11
	OtherLink float64       `json:"other_link"`
	CutAnswer float64       `json:"cut_answer"` // its answer's frame is written up to some byte, none or all of them, and the link closed
	Stall     float64       `json:"stall"`      // the link is not read for up to MaxDelay after it
	Reject    float64       `json:"reject"`     // a request comes back behind a reject header, where the dialect has one
	Keepalive float64       `json:"keepalive"`  // a frame of no bytes goes before its answer, where the dialect takes one
	BadMAC    float64       `json:"bad_mac"`    // its answer's MAC is another, where the dialect has MACs
	Demand    float64       `json:"demand"`     // the processor demands something of its own, an echo mostly, of what the dialect has
}

const defaultMaxDelay = 2 * time.Second

func (f *Faults) probabilities() []*float64 {
	return []*float64{&f.Lost, &f.Late, &f.Delay, &f.Silence, &f.Drop, &f.Close, &f.Duplicate, &f.Reorder, &f.Garble, &f.NoSTAN, &f.OtherLink,
		&f.CutAnswer, &f.Stall, &f.Reject, &f.Keepalive, &f.Demand, &f.BadMAC}
}

// check returns the faults with their defaults.
func (f Faults) check() (Faults, error) {
	if f.MaxDelay == 0 {
		f.MaxDelay = defaultMaxDelay
	}
	if f.MaxDelay < 0 {
		return f, errors.New("faults: the longest delay is negative")
	}
	for _, p := range f.probabilities() {
		if !(*p >= 0 && *p <= 1) { // nor NaN
			return f, fmt.Errorf("faults: a probability of %g is not within 0 to 1", *p)
		}
	}
	return f, nil
}

func (f *Faults) any() bool {
	for _, p := range f.probabilities() {
		if *p > 0 {
			return true
		}
	}
	return false
}

// draw adds to an action what chance does to the attempt-th message of a transaction.
func (f *Faults) draw(m *messages.Message, attempt int64, a *action, demand func(*rand.Rand) Demand) {
	hash := fnv.New64a()
	_, _ = fmt.Fprintf(hash, "%c|%s|%s|%d", m.MTI.Class(), m.Get(messages.STAN), m.Get(messages.Terminal), attempt)
	chance := rand.New(rand.NewPCG(f.Seed, hash.Sum64())) //nolint:gosec // it must be repeatable
	// Every draw is made, so that one probability's change leaves the other faults where they were.
	hit := func(p float64) bool { return chance.Float64() < p }
	wait := func(p float64) time.Duration {
		happens, d := hit(p), time.Duration(chance.Int64N(int64(f.MaxDelay)))+1
		if !happens {
			return 0
		}
		return d
	}
	a.lost = hit(f.Lost) || a.lost
	a.late += wait(f.Late)
	a.delay += wait(f.Delay)
	a.silence = hit(f.Silence) || a.silence
	a.drop = hit(f.Drop) || a.drop
	a.close = hit(f.Close) || a.close
	a.duplicate = hit(f.Duplicate) || a.duplicate
	a.reorder = hit(f.Reorder) || a.reorder
	a.garble = hit(f.Garble) || a.garble
	a.noSTAN = hit(f.NoSTAN) || a.noSTAN
	a.otherLink = hit(f.OtherLink) || a.otherLink
	a.garbleMode = chance.Uint64()
	if cut, at := hit(f.CutAnswer), chance.Uint64(); cut || a.cut == cutAnywhere {
		a.cut, a.cutMode = cutAnywhere, at
	}
	a.stall += wait(f.Stall)
	if rejected := hit(f.Reject); rejected && !isAdvice(m.MTI) && m.MTI.Class() != messages.Reversal {
		a.reject, a.rejectCode = true, rejectedByChance
	}
	a.keepalive = hit(f.Keepalive) || a.keepalive
	if hit(f.Demand) && a.demand == "" {
		a.demand = demand(chance)
	}
	if hit(f.BadMAC) && a.mac == macRight {
		a.mac = macWrong
	}
}

// names lists the faults of an action, for the ledger's counts.
func (a *action) names() []string {
	var names []string
	for _, f := range []struct {
		is   bool
		name string
	}{{a.lost, "lost"}, {a.late > 0, "late"}, {a.delay > 0 || a.delayAmount, "delay"}, {a.silence, "silence"}, {a.drop, "drop"},
		{a.close, "close"}, {a.duplicate, "duplicate"}, {a.reorder, "reorder"}, {a.garble, "garble"}, {a.noSTAN, "no_stan"},
		{a.otherLink, "other_link"}, {a.wrongAmount, "wrong_amount"}, {a.cut != 0, "cut_answer"}, {a.stall > 0, "stall"},
		{a.reject, "reject"}, {a.mac != macRight, "wrong_mac"}, {a.keepalive, "keepalive"}, {a.demand != "", "demand"}} {
		if f.is {
			names = append(names, f.name)
		}
	}
	return names
}
