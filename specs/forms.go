package specs

import (
	"bytes"
	"fmt"
	"iter"
	"slices"
	"strings"
)

// digitsOf is how many digits an element of fixed length has that acquirerd itself writes, names originals by, and compares as text; 0 for every
// other element (ISO 8583:1987 and 1993, data element directory).
func (l *linter) digitsOf(path string, number int) int {
	switch number {
	case 4:
		return 12
	case 7:
		return 10
	case 11:
		return 6
	case 12, 13:
		if l.Reversal.Original != OriginalISO93 && strings.HasPrefix(path, "messages.") && path != "messages."+l.NetworkManagement.Type+".fields.12" {
			return 0 // the local time of another party goes into a message type with another form of it only where it fits
		}
		return l.localDigits(number)
	}
	return 0
}

// localDigits are those of the local time and date of a transaction, with its date in 1993, by which DE 56 names an original.
func (l *linter) localDigits(number int) int {
	dated := l.Standard == ISO93 || l.Reversal.Original == OriginalISO93
	switch {
	case number == 12 && dated:
		return 12
	case number == 12:
		return 6
	case !dated:
		return 4
	}
	return 0
}

// lintForm checks that what acquirerd writes into an element, or takes from it as text, can stand there.
func (l *linter) lintForm(path string, number int, f Field) {
	if _, known := encoders[f.Enc]; !known {
		return // which is a fault of its own
	}
	digits := l.digitsOf(path, number)
	switch {
	case digits > 0 && (f.Length != digits || !f.IsFixed() || f.Binary() || f.Characters() != CharactersDigits):
		l.fault(path, "is not text of %d digits with the prefix Fixed, as acquirerd writes and compares it", digits)
	case number == 37 && (f.Length != 12 || !f.IsFixed() || f.Binary() || !l.takes(f, "000000000012")):
		l.fault(path, "is not text of 12 characters with the prefix Fixed, as acquirerd writes retrieval reference numbers")
	case (number == 38 || number == 39) && f.Binary():
		l.fault(path+".type", "%q is not String: codes are text", f.Type)
	case number == 44 && !l.takes(f, "002"):
		l.fault(path, "does not take the three digits of a failing element, which acquirerd answers")
	}
	if slices.Contains(l.keys(), number) {
		if of, known := l.Fields[number]; known && (f.Length != of.Length || f.IsFixed() != of.IsFixed() || f.Pad != of.Pad || f.Characters() != of.Characters()) {
			l.fault(path, "has another length, filling or other characters than fields.%d: a key of match or identity would be two", number)
		}
	}
}

// keys are the elements by which messages are found again.
func (l *linter) keys() []int {
	return slices.Concat(l.Match.Transaction, l.Match.NetworkManagement, l.Identity)
}

// allFields are the wire forms of all message types and of those with fields of their own, by path and number.
func (l *linter) allFields() iter.Seq2[string, numbered] {
	return func(yield func(string, numbered) bool) {
		for number, f := range l.Fields {
			if !yield(fmt.Sprintf("fields.%d", number), numbered{number, f}) {
				return
			}
		}
		for mti, presence := range l.Messages {
			for number, f := range presence.Fields {
				if !yield(fmt.Sprintf("messages.%s.fields.%d", mti, number), numbered{number, f}) {
					return
				}
			}
		}
	}
}

// A numbered is a field with its number.
type numbered struct {
	number int
	Field
}

// fieldIn is the wire form of an element in a message type.
func (l *linter) fieldIn(mti string, number int) Field {
	if f, own := l.Messages[mti].Fields[number]; own {
		return f
	}
	return l.Fields[number]
}

// holds checks that a field, wherever it has a form, holds a text of least to most digits as it is: one that is filled up would be read as
// another.
func (l *linter) holds(path string, number, least, most int) {
	if _, known := l.Fields[number]; !known {
		l.fault(path, "field %d is not in fields", number)
	}
	count := fmt.Sprint(most)
	if least < most {
		count = fmt.Sprintf("%d to %d", least, most)
	}
	for at, f := range l.allFields() {
		if f.number != number || l.holdsDigits(f.Field, least, most) {
			continue
		}
		if of, own := l.Fields[number]; own && of == f.Field {
			at = path
		}
		l.fault(at, "field %d does not hold %s digits as they are", number, count)
	}
}

func (l *linter) holdsDigits(f Field, least, most int) bool {
	if f.Binary() || f.IsFixed() && (least != most || f.Length != most) {
		return false
	}
	for n := least; n <= most; n++ {
		if !l.takes(f, string(bytes.Repeat([]byte{'0'}, n))) {
			return false
		}
	}
	return true
}

// originalElement is the element in which reversals name their original, 0 if no layout says so.
func (r *Reversal) originalElement() int {
	return map[OriginalLayout]int{OriginalISO87: 90, OriginalISO93: 56}[r.Original]
}

// replacementElement is the element by which reversals say what is to stand, 0 for none.
func (r *Reversal) replacementElement() int {
	return map[ReplacementLayout]int{ReplacementISO87: 95, ReplacementISO87Zeros: 95, ReplacementISO93: 30}[r.Replacement]
}
