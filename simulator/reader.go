package simulator

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"acquirerd/messages"
	"acquirerd/specs"
)

// A reader is how the simulator's parties read and word the messages of one dialect. What they think, and keep in ledger and book, are the
// response codes of ISO 8583:1987 and amounts in minor units, whatever the dialect's own are.
//
// Of the dialect it knows the file alone: it shares nothing with what the daemon names originals and conversions by, which is under test.
type reader struct{ *specs.Dialect }

func readerOf(codec *messages.Codec) reader { return reader{codec.Dialect()} }

// Elements of ISO 8583:1993 that are others in 1987.
const (
	originalAmounts93 messages.Element = 30 // n24: the amount of the original transaction, and of its reconciliation
	originalData93    messages.Element = 56 // n..35: MTI (4), STAN (6), DE 12 (12), and DE 32 with its length (2)
)

// Function codes of ISO 8583:1993, DE 24.
const (
	function93Authorization = "100" // original authorization, amount accurate
	function93Financial     = "200" // original financial request or advice
	function93Full          = "400" // full reversal
	function93Part          = "401" // partial reversal
)

// approving87 are the response codes of ISO 8583:1987 that approve.
var approving87 = []string{codeApproved, "08", codePartial, "11", "85"}

// code is the dialect's own code for one of ISO 8583:1987. Where it has no word for it, an approval is its first approving code, or the one
// for a part, and everything else is a decline.
func (r reader) code(iso87 string) string {
	own, has := r.Code(iso87)
	approving := slices.Contains(approving87, iso87)
	switch {
	case has:
		return own
	case iso87 == codePartial && len(r.Partial) > 0:
		return r.Partial[0]
	case approving:
		return r.Approving[0]
	case r.Answers.Declined != "":
		return r.Answers.Declined
	}
	if own, has = r.Code(codeDeclined); has {
		return own
	}
	return r.Answers.NotSent
}

// iso87 is what a code of the dialect says in ISO 8583:1987, or the code itself if that has no word for it.
func (r reader) iso87(own string) string {
	said, known := r.ISO87Code(own)
	switch {
	case known:
		return said
	case slices.Contains(r.Reversal.Acknowledged, own):
		return codeApproved
	case slices.Contains(r.Reversal.NotFound, own):
		return codeNotFound
	}
	return own
}

// settling is the code of an answer to a reversal or an advice, for which a dialect may have words of its own.
func (r reader) settling(mti messages.MTI, iso87 string) string {
	own, has := r.Code(iso87)
	switch words := r.Reversal.Acknowledged; {
	case iso87 == codeApproved && (mti.Class() == messages.Reversal || !has || !slices.Contains(words, own)):
		return words[0]
	case iso87 == codeNotFound && len(r.Reversal.NotFound) > 0:
		return r.Reversal.NotFound[0]
	}
	return r.code(iso87)
}

// has reports whether messages of that type can carry an element.
func (r reader) has(mti messages.MTI, e messages.Element) bool {
	_, known := r.Field(r.WireMTI(string(mti)), int(e))
	return known
}

// takes reports whether the dialect knows a message type.
func (r reader) takes(mti messages.MTI) bool {
	_, known := r.Messages[r.WireMTI(string(mti))]
	return known
}

// set gives a message a text, if the dialect has the element, filled with spaces if its length is fixed.
func (r reader) set(m *messages.Message, e messages.Element, value string) {
	f, known := r.Field(r.WireMTI(string(m.MTI)), int(e))
	if !known || value == "" {
		return
	}
	if missing := f.Length - len(value); f.IsFixed() && missing > 0 && strings.Trim(value, "0123456789") != "" {
		value += strings.Repeat(" ", missing)
	}
	m.SetSensitive(e, value)
}

// localTime is DE 12, and DE 13 beside it in ISO 8583:1987 ("" in 1993), of a time whose year is known.
func (r reader) localTime(at time.Time) (time12, date13 string) {
	if r.Standard == specs.ISO93 {
		return at.Format("060102150405"), ""
	}
	return at.Format("150405"), at.Format("0102")
}

// functionCode is DE 24 of a request, "" where the dialect has none.
func (r reader) functionCode(mti messages.MTI) string {
	if code, has := r.FunctionCodes[r.WireMTI(string(mti))]; has {
		return code
	}
	if r.Standard != specs.ISO93 {
		return ""
	}
	switch mti.Class() {
	case messages.Authorization:
		return function93Authorization
	case messages.Financial:
		return function93Financial
	case messages.Reversal:
		return function93Full
	case messages.Network:
	}
	return ""
}

// name is how the party that sends a request names it: class, function, and its dialect's elements of identity.
func (r reader) name(m *messages.Message) string {
	parts := []string{string(m.MTI[:3])}
	for _, number := range r.Identity {
		parts = append(parts, m.Get(messages.Element(number)))
	}
	return strings.Join(parts, "|")
}

// sent is which part of the dialogue a message to this party is, "" for none.
func (r reader) sent(m *messages.Message) messages.Dialogue {
	if request := r.NetworkManagement.KeyRequest; request != "" && r.managed(m) == request {
		return messages.KeyRequest
	}
	return part(&r.NetworkManagement.Dialogue, r.managed(m))
}

// managed is the code of a network management message.
func (r reader) managed(m *messages.Message) string {
	return m.Reveal(messages.Element(r.NetworkManagement.Element))
}

// rejects reports whether the dialect has a reject header.
func (r reader) rejects() bool { return r.Header.Form == specs.HeaderBase1 }

// partsOf are the codes of a dialogue, as specs and as messages name them.
func partsOf(d *specs.Dialogue) map[messages.Dialogue]string {
	return map[messages.Dialogue]string{messages.SignOn: d.SignOn, messages.SignOff: d.SignOff, messages.Echo: d.Echo,
		messages.KeyChange: d.KeyChange, messages.Cutover: d.Cutover}
}

func part(d *specs.Dialogue, code string) messages.Dialogue {
	for part, own := range partsOf(d) {
		if own != "" && own == code {
			return part
		}
	}
	return ""
}

// A ledgerKey is what original data elements say of a request: its class, its STAN, and its DE 7 in ISO 8583:1987 or its DE 12 in 1993.
type ledgerKey struct {
	class      messages.Class
	stan, time string
}

// key is that of a request or an advice.
func (r reader) key(m *messages.Message) ledgerKey {
	return ledgerKey{m.MTI.Class(), m.Get(messages.STAN), m.Get(r.keyTime())}
}

func (r reader) keyTime() messages.Element {
	if r.Reversal.Original == specs.OriginalISO93 {
		return messages.LocalTime
	}
	return messages.TransmissionTime
}

// An original is what a reversal says that it undoes.
type original struct {
	ledgerKey
	mti      messages.MTI // with the first digit 0
	acquirer string       // DE 32 without leading zeros, "" if it is left open
}

// The errors of a reversal that cannot be read.
var (
	errOriginalData = errors.New("original data elements do not name an original")
	errReplacement  = errors.New("replacement amounts do not begin with an amount")
)

// original reads the original data elements. A reversal may have numbers of its own; only these say what it is about.
func (r reader) original(m *messages.Message) (o original, err error) {
	data := m.Reveal(r.originalElement())
	var acquirer string
	switch r.Reversal.Original {
	case specs.OriginalISO93: // MTI, STAN, DE 12, and DE 32 behind its length in two digits
		if len(data) < 24 || !digitsOnly(data) || fmt.Sprintf("%02d", len(data)-24) != data[22:24] {
			return o, errOriginalData
		}
		o.time, acquirer = data[10:22], data[24:]
	case specs.OriginalISO87: // MTI, STAN, DE 7, DE 32, DE 33
		if len(data) != 42 || !digitsOnly(data) {
			return o, errOriginalData
		}
		o.time, acquirer = data[10:20], data[20:31]
	default:
		return o, errOriginalData
	}
	mti, ours := r.OwnMTI(data[:4])
	if o.mti = messages.MTI(mti); !ours || o.mti.IsAnswer() || o.mti.Class() != messages.Authorization && o.mti.Class() != messages.Financial {
		return o, errOriginalData
	}
	o.class, o.stan, o.acquirer = o.mti.Class(), data[4:10], strings.TrimLeft(acquirer, "0")
	return o, nil
}

func (r reader) originalElement() messages.Element {
	if r.Reversal.Original == specs.OriginalISO93 {
		return originalData93
	}
	return messages.OriginalData
}

const amountDigits = 12

// amounts reads what a message is about, -1 if it has no amount, and what a reversal leaves of it, 0 for a whole one: from DE 95 of ISO
// 8583:1987, beside the original amount in DE 4; or, of 1993, from DE 4 of one whose function code says that it is in part, beside the
// original amount in DE 30.
func (r reader) amounts(m *messages.Message) (amount, replacement int64, err error) {
	amount = amountOf(m)
	if m.MTI.Class() != messages.Reversal {
		return amount, 0, nil
	}
	switch r.Reversal.Replacement {
	case specs.ReplacementISO93:
		before, has := leadingAmount(m.Get(originalAmounts93))
		partly := m.Get(messages.FunctionCode) == function93Part
		switch {
		case !has && (partly || m.Has(originalAmounts93)):
			return amount, 0, errReplacement
		case partly:
			return before, max(0, amount), nil
		case has:
			return before, 0, nil
		}
	case specs.ReplacementISO87, specs.ReplacementISO87Zeros, specs.ReplacementNone:
		if !m.Has(messages.ReplacementAmounts) {
			return amount, 0, nil
		}
		left, has := leadingAmount(m.Get(messages.ReplacementAmounts))
		if !has || left > 0 && r.Reversal.Replacement == specs.ReplacementNone {
			return amount, 0, errReplacement
		}
		return amount, left, nil
	}
	return amount, 0, nil
}

// replacementElement is where a reversal says what is to stand.
func (r reader) replacementElement() messages.Element {
	if r.Reversal.Replacement == specs.ReplacementISO93 {
		return originalAmounts93
	}
	return messages.ReplacementAmounts
}

func leadingAmount(text string) (int64, bool) {
	if len(text) < amountDigits || !digitsOnly(text[:amountDigits]) {
		return 0, false
	}
	n, err := strconv.ParseInt(text[:amountDigits], 10, 64)
	return n, err == nil
}
