package specs

import (
	"maps"
	"slices"
	"strings"
)

// Classes of message types, by the second digit of the MTI (ISO 8583:1987, 4.1).
const (
	transactions = "12"
	reversals    = "4"
)

// asking are the message types of these classes that want an answer and that acquirerd serves, which are an acquirer's (x..0, and x..1 for their
// repeats), in order. An MTI that is none is a fault of its own.
func (l *linter) asking(classes string) []string {
	return slices.DeleteFunc(slices.Sorted(maps.Keys(l.Messages)), func(mti string) bool {
		return !l.isAsking(mti) || !strings.Contains(classes, mti[1:2]) || mti[3] > '1'
	})
}

func (l *linter) isAsking(mti string) bool {
	return len(mti) == 4 && allDigits([]byte(mti)) && mti[0] == l.Standard.Digit() && (mti[2] == '0' || mti[2] == '2')
}

func isRepeat(mti string) bool { return (mti[3]-'0')%2 == 1 }

func answerTo(mti string) string {
	return mti[:2] + string([]byte{mti[2] + 1, mti[3] - (mti[3]-'0')%2})
}

// counterpart is the answer to a first sending, or the first sending that an answer answers; "" of what is neither.
func counterpart(mti string) string {
	switch {
	case len(mti) != 4 || !allDigits([]byte(mti)):
		return ""
	case mti[2] == '0' || mti[2] == '2':
		return answerTo(mti)
	case mti[2] == '1' || mti[2] == '3':
		return mti[:2] + string([]byte{mti[2] - 1, mti[3] - (mti[3]-'0')%2})
	}
	return ""
}

func repeatOf(mti string) string { return mti[:3] + string([]byte{mti[3] + 1}) }

// lintTypes checks that the answers to what is listed are listed too: a processor's answer of another type is refused as unsupported, so that
// each transaction would be reversed, and each reversal sent for ever. What an upstream repeats until it is taken has to be taken.
func (l *linter) lintTypes() {
	listed := func(mti, why string, of string) {
		if _, known := l.Messages[mti]; !known {
			l.fault("messages", "%s is missing: %s %s", mti, why, of)
		}
	}
	const answers, repeats = "it answers", "it repeats"
	for _, mti := range l.asking(transactions + reversals) {
		if isRepeat(mti) {
			continue
		}
		listed(answerTo(mti), answers, mti)
		if mti[2] == '2' {
			listed(repeatOf(mti), repeats, mti)
		}
	}
	if r := l.Reversal.Type; l.isAsking(r) {
		if _, known := l.Messages[r]; !known {
			l.fault("messages", "%s is missing: it is reversal.type", r)
		} else if r[2] == '0' && !isRepeat(r) {
			listed(repeatOf(r), repeats, r)
		}
	}
	if n := l.NetworkManagement.Type; l.isAsking(n) {
		if _, known := l.Messages[n]; !known {
			l.fault("messages", "%s is missing: it is network_management.type", n)
		}
		listed(answerTo(n), answers, n)
	}
}

// without are those of the message types in which an element is not mandatory.
func (l *linter) without(types []string, number int) []string {
	return slices.DeleteFunc(slices.Clone(types), func(mti string) bool { return slices.Contains(l.Messages[mti].Mandatory, number) })
}

// lintFunctionCodes checks DE 24 of what this party is sent. A reversal without a code of its own would bear that of its original, and a full
// one with that of a partial one would be taken for it.
func (l *linter) lintFunctionCodes() {
	for mti, code := range l.FunctionCodes {
		l.isMTI("function_codes."+mti, mti)
		if len(code) != 3 || !allDigits([]byte(code)) {
			l.fault("function_codes."+mti, "is not three digits")
		} else if f := l.fieldIn(mti, 24); !l.takes(f, code) {
			l.fault("function_codes."+mti, "does not fit field 24")
		}
	}
	if l.Standard != ISO93 {
		return
	}
	r := l.Reversal.Type
	code := l.FunctionCodes[r]
	switch {
	case code == "" && l.isAsking(r):
		l.fault("function_codes", "%s is missing: a reversal would bear the code of its original", r)
	case code == partialReversal && l.Reversal.Replacement == ReplacementISO93:
		l.fault("function_codes."+r, "%q is that of a partial reversal", code)
	}
	for _, mti := range l.asking(transactions) {
		if slices.Contains(l.Messages[mti].Mandatory, 24) && l.FunctionCodes[mti] == "" && !isRepeat(mti) {
			l.fault("function_codes", "%s is missing: field 24 is mandatory in it, and other editions do not have it", mti)
		}
	}
}

// partialReversal is DE 24 of a partial reversal (ISO 8583:1993).
const partialReversal = "401"
