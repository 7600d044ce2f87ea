package messages

import (
	"bytes"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"acquirerd/specs"
)

// Losses are what a passage cannot carry from one party to the other: what ForProcessor refuses and ForUpstream leaves out. They are found by
// asking the passage itself.
type Losses struct {
	From, To string

	Elements []Loss       // that cannot be carried, or not whatever they hold
	Types    []MTI        // of messages that go to the other party and that only From has
	Broken   []Broken     // rules of To that a message of From cannot keep
	Codes    []Substitute // response codes of From that To has no word for
	Parts    bool         // From sends partial reversals, To takes none

	Dropped []Element // of From's, that one of the two dialects says may be left out: it was decided, and is not among Elements
	Anew    []Element // that both have and that belong to one hop: a PIN block is made anew, the others are left out
}

// Any reports whether anything cannot be carried.
func (l *Losses) Any() bool {
	return len(l.Elements)+len(l.Types)+len(l.Broken)+len(l.Codes) > 0 || l.Parts
}

// A Loss is an element that cannot be carried.
type Loss struct {
	Element Element
	Types   []MTI // of messages, if it is not so in all of From's

	Always     bool             // whatever it holds
	Why        string           // of one that is always lost, or where it depends on something else than length and characters
	Lengths    []Lengths        // that From can hold and To cannot
	Characters specs.Characters // that To has for it, if From has others
}

// Lengths are those of a value, from the first to the last.
type Lengths struct{ First, Last int }

// Covers reports whether a value is one that the loss is about.
func (l *Loss) Covers(value []byte) bool {
	covers := l.Always || l.Why != "" ||
		slices.ContainsFunc(l.Lengths, func(r Lengths) bool { return len(value) >= r.First && len(value) <= r.Last })
	return covers || l.Characters != "" && !l.Characters.Hold(value)
}

// String says why, for people.
func (l *Loss) String() string {
	var reasons []string
	if l.Why != "" {
		reasons = append(reasons, l.Why)
	}
	if len(l.Lengths) > 0 {
		texts := make([]string, len(l.Lengths))
		for i, r := range l.Lengths {
			if texts[i] = fmt.Sprint(r.First); r.Last > r.First {
				texts[i] += fmt.Sprintf("..%d", r.Last)
			}
		}
		if len(texts) > mostLengths {
			texts = append(texts[:mostLengths], "…")
		}
		reasons = append(reasons, "it may have a length of "+strings.Join(texts, ", ")+", which does not fit there")
	}
	if l.Characters != "" {
		reasons = append(reasons, "it may hold other characters than "+string(l.Characters))
	}
	return strings.Join(reasons, "; ")
}

// mostLengths are shown: of a field whose lengths must be even, every other one is a range of its own.
const mostLengths = 4

// A Broken is a rule of To that a message of From cannot keep.
type Broken struct {
	MTI     MTI
	Element Element
	Rule    string
}

// A Substitute is a response code that the other party has no word for.
type Substitute struct {
	Code    string `json:"code"`
	Becomes string `json:"becomes"`
}

// Losses finds what the passage cannot carry.
func (p Passage) Losses() Losses {
	l := Losses{From: p.from.Name, To: p.to.Name}
	types := p.types()
	for number := 2; number <= mostElements; number++ {
		e := Element(number)
		_, has := p.from.Fields[number]
		losses := p.lossesOf(e, types)
		switch {
		case has && p.from.Name != p.to.Name && p.unwanted(e), len(losses) > 0 && p.drops(e):
			l.Dropped = append(l.Dropped, e)
		default:
			l.Elements = append(l.Elements, losses...)
		}
	}
	for _, mti := range types {
		if !p.passes(mti) {
			continue
		}
		if _, known := p.to.Messages[p.to.WireMTI(string(mti.First()))]; !known {
			l.Types = append(l.Types, mti)
		} else {
			l.Broken = append(l.Broken, p.broken(mti)...)
		}
	}
	for _, code := range p.codes() {
		if becomes, same := p.code(code); !same {
			l.Codes = append(l.Codes, Substitute{code, becomes})
		}
	}
	from, to := &Codec{p.from}, &Codec{p.to}
	l.Parts = from.TakesParts() && !to.TakesParts()
	for _, e := range p.ofHop() {
		_, has := p.from.Fields[int(e)]
		_, takes := p.to.Fields[int(e)]
		if has && takes {
			l.Anew = append(l.Anew, e)
		}
	}
	return l
}

// ofHop are the elements of From's that are of one hop, ascending.
func (p Passage) ofHop() []Element {
	var elements []Element
	for e := Element(2); e <= mostElements; e++ {
		if isOfHop(p.from, e) {
			elements = append(elements, e)
		}
	}
	return elements
}

const mostElements = 128

// types are those of From's messages that are carried, in order.
func (p Passage) types() []MTI {
	var types []MTI
	for wire := range p.from.Messages {
		if own, ours := p.from.OwnMTI(wire); ours && MTI(own).Class() != Network {
			types = append(types, MTI(own))
		}
	}
	slices.Sort(types)
	return types
}

// passes reports whether messages of a type go from one party to the other. Answers to advices and to reversals are acquirerd's own; a
// reversal is built anew from the record, unless From's dialect has those forwarded whose original is not there.
func (p Passage) passes(mti MTI) bool {
	switch {
	case mti.IsAnswer():
		return mti.IsResponse() && mti.Class() != Reversal
	case mti.Class() == Reversal:
		return p.from.Reversal.UnknownOriginal == specs.ForwardUnknown
	}
	return true
}

// lossesOf are those of an element, one for each way in which it is lost and the types of messages in which it is so.
func (p Passage) lossesOf(e Element, types []MTI) []Loss {
	var losses []Loss
	lossless := 0                       // types
	known := map[[2]specs.Field]*Loss{} // nil for none, by the fields on both sides: the types hardly differ
	for _, mti := range types {
		f, has := p.from.Field(p.from.WireMTI(string(mti)), int(e))
		if !has {
			lossless++
			continue
		}
		to, _ := p.to.Field(p.to.WireMTI(string(mti)), int(e))
		found, before := known[[2]specs.Field{f, to}]
		if !before {
			if loss, is := p.lossOf(mti, e, f); is {
				found = &loss
			}
			known[[2]specs.Field{f, to}] = found
		}
		if found == nil {
			lossless++
			continue
		}
		loss := *found
		at := slices.IndexFunc(losses, func(other Loss) bool {
			return other.String() == loss.String() && other.Always == loss.Always && slices.Equal(other.Lengths, loss.Lengths)
		})
		if at < 0 {
			losses = append(losses, loss)
			at = len(losses) - 1
		}
		losses[at].Types = append(losses[at].Types, mti)
	}
	if len(losses) == 1 && lossless == 0 {
		losses[0].Types = nil
	}
	return losses
}

// lossOf is how an element of a type of messages is lost, if it is.
func (p Passage) lossOf(mti MTI, e Element, f specs.Field) (Loss, bool) {
	to, known := p.to.Field(p.to.WireMTI(string(mti)), int(e))
	switch {
	case isOfHop(p.from, e):
		if e == PINData && !known {
			return Loss{Element: e, Always: true, Why: "it has no field there: a PIN block cannot be sent on"}, true
		}
		return Loss{}, false // made anew, where the other hop has one
	case e == ResponseCode:
		return Loss{}, false // see Codes
	case e == FunctionCode && p.from.Standard == specs.ISO93 && p.to.Standard != p.from.Standard:
		return Loss{Element: e, Why: "it may ask for something that the message type does not say: an inquiry, say"}, true
	case p.isTime(e):
		return p.lossOfTime(e, f)
	}
	if _, why := p.barred(mti, e, f.Length); why == "" && p.hasValues(e) && !p.sameWords(e) {
		return p.lossOfValues(mti, e)
	}
	loss := Loss{Element: e}
	carries, m := false, New(mti)
	first := f.Least
	if f.IsFixed() {
		first = f.Length
	}
	own, there := f.Sample(f.Length), to.Sample(f.Length)
	for n := first; n <= f.Length; n++ {
		if f.Takes(own[:n]) != nil {
			continue // From has none of that length
		}
		if _, why := p.barred(mti, e, n); why != "" {
			loss.Why = why
			continue
		}
		_, can := p.value(m, e, string(there[:n]))
		if carries = carries || can; can {
			continue
		}
		if n > to.Length { // spaces at its end are filling
			sample := append(to.Sample(to.Length), bytes.Repeat([]byte{' '}, n-to.Length)...)
			_, can = p.value(m, e, string(sample))
			carries = carries || can && f.Takes(sample) == nil
		}
		if last := len(loss.Lengths) - 1; last >= 0 && loss.Lengths[last].Last == n-1 {
			loss.Lengths[last].Last = n
		} else {
			loss.Lengths = append(loss.Lengths, Lengths{n, n})
		}
	}
	if known && loss.Why == "" && !f.Characters().Within(to.Characters()) {
		loss.Characters = to.Characters()
	}
	loss.Always = !carries || loss.Characters != "" && f.Characters().Apart(to.Characters())
	return loss, loss.Always || loss.Why != "" || len(loss.Lengths) > 0 || loss.Characters != ""
}

// lossOfValues is how an element is lost whose values at least one side gives in words of ISO 8583:1987.
func (p Passage) lossOfValues(mti MTI, e Element) (Loss, bool) {
	named := slices.Collect(maps.Keys(p.from.Values[int(e)]))
	if len(named) == 0 { // From's values are those words
		named = slices.Collect(maps.Values(p.to.Values[int(e)]))
	}
	slices.Sort(named)
	named = slices.Compact(named)
	var lost []string
	for _, value := range named {
		if _, can := p.value(New(mti), e, value); !can {
			lost = append(lost, value)
		}
	}
	why := "it may have a value that has no word there"
	if len(lost) > 0 {
		why += ": " + strings.Join(lost, ", ") + " or one of no table"
	}
	if len(lost) == len(named) {
		return Loss{Element: e, Always: true, Why: "none of its values has a word there"}, true
	}
	return Loss{Element: e, Why: why}, true
}

// lossOfTime is how a part of the local time is lost on its way into the other edition.
func (p Passage) lossOfTime(e Element, f specs.Field) (Loss, bool) {
	m := New(AuthorizationRequest)
	m.Set(LocalTime, "261231235959"[12-min(12, p.timeDigits()):])
	if e == LocalDate {
		m.Set(LocalDate, "1231")
	}
	at := time.Date(2026, 12, 31, 23, 59, 59, 0, time.UTC)
	switch {
	case f.Takes(m.bytes(e)) != nil, !p.carryTime(m, New(m.MTI), at):
		return Loss{Element: e, Always: true, Why: "it does not have the form of a local time that the other edition has"}, true
	case p.from.Standard == specs.ISO87:
		return Loss{Element: e, Why: "it may be no date, or have no time beside it"}, true
	case !f.IsFixed() || f.Characters() != specs.CharactersDigits:
		return Loss{Element: e, Why: "it may be no time"}, true
	}
	return Loss{}, false
}

// timeDigits are those of From's DE 12.
func (p Passage) timeDigits() int {
	if p.from.Standard == specs.ISO93 {
		return len("YYMMDDhhmmss")
	}
	return len("hhmmss")
}

// broken are the rules of To that a message of a type cannot keep, whatever From puts into it.
func (p Passage) broken(mti MTI) []Broken {
	presence := p.to.Messages[p.to.WireMTI(string(mti.First()))]
	var broken []Broken
	for _, number := range presence.Mandatory {
		if e := Element(number); !p.fills(mti, e) {
			broken = append(broken, Broken{mti, e, "is mandatory there, and nothing here is carried into it"})
		}
	}
	if len(presence.OneOf) > 0 && !slices.ContainsFunc(presence.OneOf, func(number int) bool { return p.fills(mti, Element(number)) }) {
		broken = append(broken, Broken{mti, Element(presence.OneOf[0]), "is mandatory there or another one, and nothing here is carried into any"})
	}
	for _, number := range presence.Forbidden {
		_, has := p.from.Field(p.from.WireMTI(string(mti)), number)
		if e := Element(number); has && !slices.Contains(p.from.Messages[p.from.WireMTI(string(mti))].Forbidden, number) &&
			!p.unwanted(e) && p.fills(mti, e) {
			broken = append(broken, Broken{mti, e, "is not allowed there"})
		}
	}
	return broken
}

// fills reports whether something can stand in an element of To's message: what is carried, or what acquirerd puts there.
func (p Passage) fills(mti MTI, e Element) bool {
	to := &Codec{p.to}
	switch {
	case e == TransmissionTime, e == STAN, e == RRN, e == ResponseCode, e == to.OriginalElement(), mti.IsAnswer() && slices.Contains(identifying, e):
		return true
	case e == FunctionCode && p.to.FunctionCodes[p.to.WireMTI(string(mti))] != "":
		return true
	case e == LocalTime && p.to.Standard == specs.ISO93 && p.to.Reversal.Original == specs.OriginalISO93:
		return true // ours, if there is no other
	case e == LocalDate && p.from.Standard == specs.ISO93 && p.to.Standard == specs.ISO87:
		return p.fills(mti, LocalTime)
	case e == MAC, e == MAC2:
		return p.to.MAC.Place == specs.MACLast
	case p.unwanted(e):
		return false
	}
	f, has := p.from.Field(p.from.WireMTI(string(mti)), int(e))
	if !has {
		return false
	}
	loss, _ := p.lossOf(mti, e, f)
	return !loss.Always
}

// codes are the response codes that From may send: those of its list or, without one, of ISO 8583:1987 and of its own rules.
func (p Passage) codes() []string {
	d := p.from
	var codes []string
	if len(d.ResponseCodes) == 0 {
		codes = strings.Fields(codes87)
	}
	for code := range d.ResponseCodes {
		codes = append(codes, code)
	}
	r := &d.Reversal
	codes = slices.Concat(codes, d.Approving, d.Partial, d.NetworkManagement.Accepted, r.Acknowledged, r.NotFound, r.Already, r.Retry, r.Poison, d.KeySync)
	slices.Sort(codes)
	return slices.Compact(slices.DeleteFunc(codes, func(code string) bool {
		return d.Fields[int(ResponseCode)].Takes([]byte(code)) != nil
	}))
}

// codes87 are the response codes of ISO 8583:1987 (DE 39) that are not reserved.
const codes87 = "00 01 02 03 04 05 06 07 08 09 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27 28 29 30 31 32 33 34 35 36 37 38 39 " +
	"40 41 42 43 44 51 52 53 54 55 56 57 58 59 60 61 62 63 64 65 66 67 68 75 90 91 92 93 94 95 96"
