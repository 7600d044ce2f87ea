package messages

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"acquirerd/specs"
)

// A Passage carries messages from one party's dialect into another's: by what an element means, not by its bytes.
//
// What is the same in both goes as it is; what has another form in the other edition of ISO 8583 is written in that form; numbers, original
// data elements and the cryptograms of a hop are made anew. The rest cannot be carried, and is never lost in silence: Carry names it.
type Passage struct {
	from, to *specs.Dialect
}

// NewPassage returns the passage between two dialects.
func NewPassage(from, to *Codec) Passage { return Passage{from.dialect, to.dialect} }

// otherwise93 are the elements that mean something else in ISO 8583:1993 than in 1987, so that they cannot go as they are.
var otherwise93 = func() map[Element]bool {
	elements := map[Element]bool{LocalTime: true, LocalDate: true, SettlementDate: true, POSEntryMode: true, FunctionCode: true,
		POSConditionCode: true, 26: true, 46: true, SecurityControl: true, 59: true, 65: true, 66: true, NetworkManagement: true, 71: true, 72: true}
	for e := Element(28); e <= 31; e++ {
		elements[e] = true
	}
	for e := Element(56); e <= 58; e++ {
		elements[e] = true
	}
	for e := Element(82); e <= 98; e++ {
		elements[e] = true
	}
	return elements
}()

// Carry returns the message in the other dialect, and the elements that could not be carried, ascending. at is the time by which a date
// without its year is understood: the nearest. The message has no header and no cryptogram. Original data
// elements go as they are, if both have them in one layout.
func (p Passage) Carry(m *Message, at time.Time) (carried *Message, lost []Element) {
	carried = New(m.MTI)
	carried.dialect, carried.source = p.to, p.from
	timed := p.carryTime(m, carried, at)
	for _, entry := range m.elements {
		e := entry.element
		switch {
		case isOfHop(p.from, e), p.isTime(e) && timed:
			continue // made anew, or carried already
		case p.isTime(e):
			lost = append(lost, e)
			continue
		case e == FunctionCode && p.isSaid(string(entry.value)):
			continue // the MTI and the amounts say it
		}
		value, can := p.value(m, e, string(entry.value))
		if can {
			carried.put(e, []byte(value))
		} else {
			lost = append(lost, e)
		}
	}
	if !carried.Has(FunctionCode) { // a function code of the same edition says more
		(&Codec{p.to}).setFunctionCode(carried)
	}
	return carried, lost
}

// isSaid reports whether a function code of 1993 is one that the MTI and the amounts of 1987 say too: an original request, of a known or an
// estimated amount; a request that was authorized before; a reversal, whole or in part. Others ask for something else: an inquiry, say.
func (p Passage) isSaid(code string) bool {
	return p.from.Standard == specs.ISO93 && p.to.Standard != p.from.Standard &&
		slices.Contains([]string{"100", "101", "200", "201", "202", "400", partialReversal93}, code)
}

// value is an element's value in the other dialect, and whether it can be carried.
func (p Passage) value(m *Message, e Element, value string) (string, bool) {
	f, bar := p.barred(m.MTI, e, len(value))
	switch {
	case bar != "":
		return "", false
	case e == ResponseCode:
		code, _ := p.code(value)
		return code, true
	case p.hasValues(e):
		var can bool
		if value, can = p.translated(e, value); !can {
			return "", false
		}
	case e == SettlementDate && p.from.Standard != p.to.Standard && len(value) == 6:
		value = value[2:]
	}
	return p.fit(value, f)
}

// barred is the field of an element in the other dialect, and why one of a length cannot be carried there, whatever it holds; "" if that depends
// on what it holds.
func (p Passage) barred(mti MTI, e Element, length int) (f specs.Field, why string) {
	f, known := p.to.Field(p.to.WireMTI(string(mti)), int(e))
	own, _ := p.from.Field(p.from.WireMTI(string(mti)), int(e))
	switch {
	case !known:
		return f, "it has no field there"
	case e == keySerialNumber(p.to):
		return f, "it is the key serial number there"
	case own.Binary() != f.Binary():
		return f, "it is bytes on one side and text on the other"
	case e == ResponseCode:
		return f, ""
	case e == (&Codec{p.from}).OriginalElement() && p.from.Reversal.Original != p.to.Reversal.Original:
		return f, "it names an original, which is done otherwise there: carried only if the original is on record"
	case p.hasValues(e), p.from.Standard == p.to.Standard || !otherwise93[e]:
		return f, ""
	case e == SettlementDate && length == 4 && f.Length == 6:
		return f, "its year is the processor's to say"
	case e == SettlementDate && length == 6 && f.Length == 4:
		return f, ""
	}
	return f, "it means something else there"
}

// hasValues reports whether at least one of the two dialects gives an element's values in words of ISO 8583:1987.
func (p Passage) hasValues(e Element) bool { return p.from.HasValues(int(e)) || p.to.HasValues(int(e)) }

// translated is a value of an element that has values.
func (p Passage) translated(e Element, value string) (string, bool) {
	number := int(e)
	_, known := p.to.Values[number][value]
	if _, own := p.from.Values[number][value]; p.from.Standard == p.to.Standard && own && known || p.sameWords(e) {
		return value, true
	}
	said, can := p.from.ISO87Value(number, value)
	if !can || wordsOf93(p.from, e) || wordsOf93(p.to, e) {
		return "", false
	}
	return p.to.Value(number, said)
}

// sameWords reports whether the values of an element go as they are, because one of the dialects is of the same edition as the other and says
// no more of them.
func (p Passage) sameWords(e Element) bool {
	return p.from.Standard == p.to.Standard && (wordsOf93(p.from, e) || wordsOf93(p.to, e))
}

// wordsOf93 reports whether an element's values are in words of ISO 8583:1993: a dialect without a table has those of its edition.
func wordsOf93(d *specs.Dialect, e Element) bool {
	return !d.HasValues(int(e)) && d.Standard == specs.ISO93 && otherwise93[e]
}

// fit makes a text fit a field: spaces at its end are filling, and may go or come. Characters that the field does not have cannot be carried.
func (p Passage) fit(value string, f specs.Field) (string, bool) {
	if len(value) > f.Length && len(strings.TrimRight(value, " ")) <= f.Length && !f.Binary() {
		value = strings.TrimRight(value, " ")
		if f.IsFixed() {
			value += strings.Repeat(" ", f.Length-len(value))
		}
	}
	filled := f.Fill([]byte(value))
	return string(filled), f.Takes(filled) == nil
}

// isTime reports whether an element is part of the local time of the transaction, which is not the same elements in the other edition: DE 12
// and 13 of 1987, DE 12 of 1993.
func (p Passage) isTime(e Element) bool {
	return p.from.Standard != p.to.Standard && (e == LocalTime || e == LocalDate && p.from.Standard == specs.ISO87)
}

// carryTime carries the local time of the transaction into the other edition. It is false if there is one that cannot be carried.
func (p Passage) carryTime(m, carried *Message, at time.Time) bool {
	time12, date13 := m.Get(LocalTime), m.Get(LocalDate)
	switch {
	case p.from.Standard == p.to.Standard:
		return true
	case p.to.Standard == specs.ISO93:
		on, is := nearest(date13, time12, at)
		return is && p.putTime(carried, LocalTime, on)
	case len(time12) == 12:
		return p.putTime(carried, LocalTime, time12[6:]) && p.putTime(carried, LocalDate, time12[2:6])
	}
	return false
}

// putTime sets an element if the other dialect takes the value.
func (p Passage) putTime(carried *Message, e Element, value string) bool {
	f, known := p.to.Field(p.to.WireMTI(string(carried.MTI)), int(e))
	if !known || f.Takes([]byte(value)) != nil {
		return false
	}
	carried.Set(e, value)
	return true
}

// nearest is DE 12 of 1993 for DE 13 and DE 12 of 1987: in the year that brings them nearest to a time or, without DE 13, on the day that does.
// It is false if they are no date or no time.
func nearest(date13, time12 string, at time.Time) (string, bool) {
	at = at.UTC()
	var days []string
	if date13 == "" {
		for days13 := -1; days13 <= 1; days13++ {
			days = append(days, at.AddDate(0, 0, days13).Format("20060102"))
		}
	} else {
		for year := at.Year() - 1; year <= at.Year()+1; year++ {
			days = append(days, fmt.Sprintf("%04d", year)+date13)
		}
	}
	var best time.Time
	for _, day := range days {
		on, err := time.Parse("20060102150405", day+time12)
		if err == nil && (best.IsZero() || on.Sub(at).Abs() < best.Sub(at).Abs()) { // 29 February is not in each year
			best = on
		}
	}
	return best.Format(localTime93), !best.IsZero()
}

// code is a response code in the other party's words. An approval stays one, and nothing else becomes one, whatever the lists of the two say.
// same says that it is the word for the same, and not only the nearest.
func (p Passage) code(code string) (own string, same bool) {
	said, known := p.from.ISO87Code(code)
	if known {
		own, same = p.to.Code(said)
		if theirs, listed := p.to.ResponseCodes[code]; listed && theirs == said && p.from.Standard == p.to.Standard {
			own = code // of several that say the same
		}
	}
	approved := p.from.Approves(code)
	switch {
	case same && p.to.Approves(own) == approved && p.to.ApprovesPartially(own) == p.from.ApprovesPartially(code):
		return own, true
	case approved && p.from.ApprovesPartially(code) && len(p.to.Partial) > 0:
		return p.to.Partial[0], false
	case approved && p.from.ApprovesPartially(code):
		return p.to.Answers.Unknown, false // never the whole: see TellsParts
	case approved:
		return p.to.Approving[0], false
	case p.to.Answers.Declined != "":
		return p.to.Answers.Declined, false
	}
	if declined, has := p.to.Code(declined87); has && !p.to.Approves(declined) {
		return declined, false
	}
	return p.to.Answers.NotSent, false
}

// declined87 is "do not honour" (ISO 8583:1987, DE 39).
const declined87 = "05"

// setFunctionCode gives a message the function code that this party wants of its type (ISO 8583:1993, DE 24).
func (c *Codec) setFunctionCode(m *Message) {
	if code, has := c.dialect.FunctionCodes[c.dialect.WireMTI(string(m.MTI))]; has {
		m.Set(FunctionCode, code)
	}
}

// ForProcessor builds the processor's request from the upstream's: all that was asked, with numbers and time of our own and without the
// cryptograms of the upstream's hop, its PIN block above all. It is a first sending, also of an upstream's repeat, whose first never came.
// Its error is a *FormatError with an element that the processor's dialect has no place for, and does not list as one that may be dropped.
func (p Passage) ForProcessor(request *Message, numbers Numbers, at time.Time) (*Message, error) {
	m, lost := p.Carry(request, at)
	for _, e := range lost {
		if !p.drops(e) {
			m.Clear()
			return nil, &FormatError{e, "cannot be carried into the processor's dialect"}
		}
	}
	for _, number := range p.to.Dropped {
		if e := Element(number); p.unwanted(e) && p.from.Name != p.to.Name {
			m.Delete(e)
		}
	}
	m.MTI = m.MTI.First()
	if !m.Has(FunctionCode) {
		(&Codec{p.to}).setFunctionCode(m)
	}
	m.Set(TransmissionTime, at.UTC().Format(TransmissionTimeLayout))
	m.Set(STAN, numbers.STAN)
	m.Set(RRN, numbers.RRN)
	if p.to.Reversal.Original == specs.OriginalISO93 && !m.Has(LocalTime) { // a reversal could not name it
		m.Set(LocalTime, at.UTC().Format(localTime93))
	}
	return m, nil
}

// drops reports whether an element may be left out if it cannot be carried: its own dialect can do without it there, or the other one does not
// want it.
func (p Passage) drops(e Element) bool {
	return p.unwanted(e) || slices.Contains(p.from.Dispensable, int(e))
}

// unwanted reports whether an element is one that the other party is not sent. The list has the numbers of ISO 8583:1987: what means something
// else in 1993 is not in it.
func (p Passage) unwanted(e Element) bool {
	return slices.Contains(p.to.Dropped, int(e)) && (p.from.Standard == specs.ISO87 || !otherwise93[e])
}

// TellsParts reports whether the one who asks can be told that less was approved than it asked for.
func (p Passage) TellsParts() bool { return len(p.from.Partial) > 0 }

// SameContent reports whether an upstream's request asks for the same as an original that was sent for it, but for numbers and the mark of a
// repeat. If partly, what the original does not have is not compared: of a record that an older version wrote. The card is not part of it.
func (p Passage) SameContent(original Original, request *Message, partly bool, at time.Time) bool {
	if e := (&Codec{p.from}).OriginalElement(); request.Has(e) { // what it names is named anew, by numbers
		request = request.Clone()
		defer request.Clear()
		request.Delete(e)
	}
	m, err := p.ForProcessor(request, Numbers{}, at)
	if err != nil {
		return false // what was sent could be carried
	}
	defer m.Clear()
	// A time that the upstream did not give whole was completed by the clock of then.
	sent, asked := original.Get(LocalTime), request.Get(LocalTime)
	if asked == "" || p.from.Standard != p.to.Standard && !request.Has(LocalDate) && strings.HasSuffix(sent, asked) {
		m.Set(LocalTime, sent)
	}
	return original.SameContent(m.Original(), partly)
}

// ForUpstream builds the upstream's answer from the processor's: what the processor said, under the upstream's own numbers, time and
// institutions. An upstream that sent no RRN of its own is given ours. lost are the elements of the processor's answer that the upstream's
// dialect has no place for.
func (p Passage) ForUpstream(request, answer *Message, at time.Time) (told *Message, lost []Element) {
	said, lost := p.Carry(answer, at)
	defer said.Clear()
	told = NewAnswer(request, said.Get(ResponseCode))
	told.source = p.from
	for _, entry := range said.elements {
		switch e := entry.element; {
		case e == TransmissionTime, e == STAN, e == AcquirerID, e == ForwarderID, e == PAN, e == Track2,
			p.from.Standard != p.to.Standard && (e == LocalTime || e == FunctionCode):
			// The upstream's own are there already, or it sent none.
		case !told.Has(e), e == Amount: // the amount of a partial approval is the processor's
			told.SetSensitive(e, string(entry.value))
		}
	}
	lost = slices.DeleteFunc(lost, func(e Element) bool { return told.Has(e) })
	return told, lost
}
