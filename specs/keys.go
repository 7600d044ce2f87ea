package specs

import (
	"slices"
	"strings"
)

// lintIdentity checks that a reversal names its original by the elements of identity: by its original data elements, which are the STAN and
// one time, or by what it repeats of it. Without the time a STAN that has come round again would be taken for the request of long ago. DE 41
// names a terminal within DE 42 (ISO 8583:1987, DE 41), so that an upstream of many merchants needs both. What one message of a transaction
// may lack would leave the other one unfound, and the money held.
func (l *linter) lintIdentity() {
	time := 7
	if l.Reversal.Original == OriginalISO93 {
		time = 12
	}
	if !slices.Contains(l.Identity, 11) || !slices.Contains(l.Identity, time) {
		l.fault("identity", "must hold 11 (STAN) and %d (time), by which a reversal names its original: a STAN alone comes round again", time)
	}
	l.elements("identity", l.Identity)
	l.noCardData("identity", l.Identity)
	for _, number := range l.Identity {
		if _, known := l.Fields[number]; !known || CardData(number) {
			continue
		}
		if !slices.Contains([]int{11, time, 41, 42}, number) {
			l.fault("identity", "field %d is not one by which a reversal names its original: 11, %d, 41, 42", number, time)
			continue
		}
		lacking := l.without(l.asking(transactions), number)
		for _, mti := range l.without(l.asking(reversals), number) {
			named := (number == 11 || number == time) && slices.Contains(l.Messages[mti].Mandatory, l.Reversal.originalElement())
			if !named {
				lacking = append(lacking, mti)
			}
		}
		if len(lacking) > 0 {
			l.fault("identity", "field %d is not mandatory in %s", number, strings.Join(lacking, ", "))
		}
	}
}

// repeated are the elements that an answer repeats from its request, as acquirerd's own do (ISO 8583:1987, table of messages).
var repeated = []int{2, 3, 4, 7, 11, 12, 13, 24, 25, 32, 33, 37, 41, 42, 49, 70}

// lintKeys checks that a request and its answer have one key.
func (l *linter) lintKeys() {
	n := &l.NetworkManagement
	for path, key := range map[string][]int{"match.transaction": l.Match.Transaction, "match.network_management": l.Match.NetworkManagement} {
		l.elements(path, key)
		l.noCardData(path, key)
		if !slices.Contains(key, 11) || len(key) < 2 {
			l.fault(path, "must hold 11 (STAN) and at least one more: a STAN alone does not identify a message")
		}
	}
	for _, number := range l.Match.Transaction {
		if _, known := l.Fields[number]; !known || CardData(number) {
			continue
		}
		if number == 4 && len(l.Partial) > 0 {
			l.fault("match.transaction", "field 4 of a partial approval is another than its request's")
		}
		if slices.Contains(repeated, number) {
			continue
		}
		types := l.asking(transactions + reversals)
		for _, mti := range slices.Clone(types) {
			if answer := answerTo(mti); !slices.Contains(types, answer) {
				types = append(types, answer)
			}
		}
		if lacking := l.without(types, number); len(lacking) > 0 {
			l.fault("match.transaction", "field %d is not repeated by answers, and not mandatory in %s", number, strings.Join(lacking, ", "))
		}
	}
	for _, number := range l.Match.NetworkManagement {
		_, carried := n.Carries[number]
		if _, known := l.Fields[number]; !known || CardData(number) || carried || number == 7 || number == 11 || number == n.Element ||
			number == 12 && l.Standard == ISO93 {
			continue
		}
		l.fault("match.network_management", "field %d is in none of the requests of the dialogue", number)
	}
}

// lintForbidden checks that no message has to be without what it is found by.
func (l *linter) lintForbidden() {
	for mti, presence := range l.Messages {
		key := l.Match.Transaction
		if len(mti) == 4 && mti[1] == '8' {
			key = l.Match.NetworkManagement
		}
		for _, number := range presence.Forbidden {
			at := "messages." + mti + ".forbidden"
			if slices.Contains(presence.Mandatory, number) {
				l.fault(at, "field %d is mandatory", number)
			} else if slices.Contains(key, number) {
				l.fault(at, "field %d is one of those by which an answer finds its request (match)", number)
			}
		}
	}
}

// noCardData checks that a key holds nothing that may not be shown or kept.
func (l *linter) noCardData(path string, key []int) {
	for _, number := range key {
		if CardData(number) {
			l.fault(path, "field %d may hold card data, which no key may", number)
		}
	}
}

// ownOfAnswers are the elements of answers that say something of their own, also where an advice has one too (38, 39): decided, kept or made
// by the one who answers.
var ownOfAnswers = []int{38, 39, 44, 52, 53, 54, 55, 64, 128}

// lintEchoed checks that no answer is disbelieved for what it says itself.
func (l *linter) lintEchoed() {
	l.elements("echoed", l.Echoed)
	for _, number := range l.Echoed {
		if slices.Contains(ownOfAnswers, number) {
			l.fault("echoed", "field %d of an answer is its own, and not its request's", number)
		}
	}
}

// lintDropped checks that nobody is sent a message without what makes it whole.
func (l *linter) lintDropped() {
	for path, numbers := range map[string][]int{"dropped": l.Dropped, "dispensable": l.Dispensable} {
		l.elements(path, numbers)
		for _, number := range numbers {
			switch {
			case slices.Contains(indispensable, number):
				l.fault(path, "field %d is one that a transaction cannot be without", number)
			case number == l.Reversal.originalElement():
				l.fault(path, "field %d names the original of an advice or a reversal", number)
			case number == l.Reversal.replacementElement():
				l.fault(path, "field %d says what a partial reversal leaves", number)
			}
		}
	}
}
