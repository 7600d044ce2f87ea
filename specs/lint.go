package specs

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
)

// A Fault is one of a dialect file.
type Fault struct {
	Path string // of the key, or "reading" for a text that is no dialect's
	Text string // what is wrong there
}

func (f *Fault) Error() string { return f.Path + ": " + f.Text }

// Faults returns those that an error of Parse holds; of another error, one without a path.
func Faults(err error) []*Fault {
	joined, many := err.(interface{ Unwrap() []error }) // Parse does not wrap what it joins
	if !many {
		if err == nil {
			return nil
		}
		if fault, is := errors.AsType[*Fault](err); is {
			return []*Fault{fault}
		}
		return []*Fault{{Text: err.Error()}}
	}
	var faults []*Fault
	for _, err := range joined.Unwrap() {
		faults = append(faults, Faults(err)...)
	}
	return faults
}

// A linter collects the faults of a dialect, each with its path.
type linter struct {
	*Dialect
	faults []error
}

// lint returns every fault of the file's content, each with its path.
func (d *Dialect) lint() []error {
	l := &linter{Dialect: d}
	l.given("name", d.Name)
	l.given("version", d.Version)
	if d.Standard != ISO87 && d.Standard != ISO93 {
		l.fault("standard", "%q is not one of iso87, iso93", d.Standard)
	}
	d.Framing.lint(l.fault)
	d.Header.lint(d.Framing.Max, l.fault)
	l.lintFields()
	l.lintMessages()
	l.lintTypes()
	l.lintKeys()
	l.lintForbidden()
	l.lintIdentity()
	l.lintEchoed()
	l.lintDropped()
	l.lintValues()
	l.lintNetworkManagement()
	l.lintCodes()
	l.lintKeySync()
	l.lintAnswers()
	l.lintFunctionCodes()
	l.lintReversal()
	l.lintProtection()
	l.lintKeySerialNumber()
	slices.SortFunc(l.faults, func(a, b error) int { return strings.Compare(a.Error(), b.Error()) })
	return l.faults
}

func (l *linter) fault(path, format string, args ...any) {
	l.faults = append(l.faults, &Fault{path, fmt.Sprintf(format, args...)})
}

func (l *linter) given(path, value string) {
	if value == "" {
		l.fault(path, "missing")
	}
}

// elements checks that each is a field.
func (l *linter) elements(path string, numbers []int) {
	for _, number := range numbers {
		if _, known := l.Fields[number]; !known || number < 2 {
			l.fault(path, "field %d is not in fields", number)
		}
	}
}

// code checks that a response code fits DE 39.
func (l *linter) code(path, code string) {
	if f, known := l.Fields[39]; known && len(code) != f.Length {
		l.fault(path, "%q is not %d characters long", code, f.Length)
	} else if known && !l.takes(f, code) {
		l.fault(path, "%q does not fit field 39", code)
	}
}

// takes reports whether a field holds a value, and true of a field that is no field, which is a fault of its own.
func (l *linter) takes(f Field, value string) bool {
	_, knownEnc := encoders[f.Enc]
	_, knownPrefix := prefixes[f.Prefix]
	return !knownEnc || !knownPrefix || f.Length < 1 || f.Length > longestField || f.Takes([]byte(value)) == nil
}

// lintFields checks the fields, also those of a message type, and that those are there that acquirerd itself writes.
func (l *linter) lintFields() {
	bitmap := l.Fields[1]
	for path, f := range l.allFields() {
		f.lint(path, f.number, l.fault)
		l.lintSecret(path, f.number, f.Field)
		l.lintForm(path, f.number, f.Field)
		switch {
		case f.number == 65 && bitmap.Extent != ExtentFixed:
			l.fault(path, "is the announcement of a third bit map, unless field 1 has a fixed extent")
		case f.number > 64 && bitmap.Extent == ExtentFixed && bitmap.Length == 8:
			l.fault(path, "does not fit the bit map, which has 8 bytes and a fixed extent")
		}
	}
	needed := []int{0, 1, 2, 3, 4, 7, 11, 37, 38, 39, 41, 44, 49}
	switch l.Standard {
	case ISO87:
		needed = append(needed, 12, 13)
	case ISO93:
		needed = append(needed, 12, 24)
	}
	for _, number := range needed {
		if _, known := l.Fields[number]; !known {
			l.fault("fields", "%d is missing", number)
		}
	}
	if l.Framing.Length == LengthNone {
		l.lintTerminated()
	}
}

// lintSecret checks that what acquirerd makes or reads as bytes is bytes: the PIN block, a MAC, and chip data of which a part may not be
// stored.
func (l *linter) lintSecret(path string, number int, f Field) {
	switch {
	case number == 52 && !f.Binary(),
		(number == 64 || number == 128) && !f.Binary() && l.MAC.Place == MACLast,
		number == 55 && !f.Binary() && slices.Contains(l.Advices.Stored, 55):
		l.fault(path+".type", "%q is not Binary, as acquirerd makes and reads it", f.Type)
	case number == 52 && !l.takes(f, "12345678") && !l.takes(f, "1234567890123456"):
		l.fault(path+".length", "holds neither the 8 bytes of a PIN block under TDES nor the 16 of one under AES")
	}
}

// lintTerminated checks that nothing in a message can hold what ends it: no value, no length, and no header, of which only a literal one has
// bytes that are known.
func (l *linter) lintTerminated() {
	switch h := l.Header; {
	case h.Form == HeaderLiteral && len(l.Framing.Trailer) > 0 && bytes.Contains(h.Value, l.Framing.Trailer):
		l.fault("header.value", "holds the trailer, which ends a message where framing.length is none")
	case h.Form == HeaderEchoed, h.Form == HeaderTPDU, h.Form == HeaderBase1:
		l.fault("header.form", "%s can hold the trailer, which ends a message where framing.length is none", h.Form)
	}
	for path, f := range l.allFields() {
		form, isText := encoders[f.Enc].(textForm)
		hex, isHex := encoders[f.Enc].(hexText)
		switch {
		case isHex && hex.page == nil, isText && form.page == nil && f.Enc != "ASCII7":
		default:
			l.fault(path+".enc", "%s can hold the trailer, which ends a message where framing.length is none", f.Enc)
		}
		if prefix := prefixes[f.Prefix]; f.number > 1 && prefix.digits > 0 && prefix.kind != lengthASCII && prefix.kind != lengthHex {
			l.fault(path+".prefix", "%s can hold the trailer, which ends a message where framing.length is none", f.Prefix)
		}
	}
	for _, b := range l.Framing.Trailer {
		if b >= ' ' && b <= '~' {
			l.fault("framing.trailer", "is text, which a message can hold")
			break
		}
	}
}

func (l *linter) isMTI(path, mti string) {
	if len(mti) != 4 || !allDigits([]byte(mti)) {
		l.fault(path, "is not an MTI of four digits")
	} else if mti[0] != l.Standard.Digit() {
		l.fault(path, "does not begin with %c, as MTIs of %s do", l.Standard.Digit(), l.Standard)
	}
}

func (l *linter) lintMessages() {
	if len(l.Messages) == 0 {
		l.fault("messages", "missing")
	}
	for mti, presence := range l.Messages {
		at := "messages." + mti
		l.isMTI(at, mti)
		l.elements(at+".mandatory", presence.Mandatory)
		l.elements(at+".one_of", presence.OneOf)
		l.elements(at+".forbidden", presence.Forbidden)
		for i, c := range presence.When {
			l.elements(fmt.Sprintf("%s.when[%d].if", at, i), []int{c.If})
			l.elements(fmt.Sprintf("%s.when[%d].then", at, i), c.Then)
			if len(c.Then) == 0 {
				l.fault(fmt.Sprintf("%s.when[%d].then", at, i), "missing")
			}
		}
		for number := range presence.Fields {
			if number < 2 || number == 39 { // response codes are listed once for all
				l.fault(fmt.Sprintf("%s.fields.%d", at, number), "is not one that can differ by message type")
			}
		}
	}
}

// indispensable are the elements by which a transaction is what it is, and is found again.
var indispensable = []int{2, 3, 4, 7, 11, 37, 39, 41, 49, 52}

func (l *linter) lintValues() {
	for number, values := range l.Values {
		at := fmt.Sprintf("values.%d", number)
		l.elements(at, []int{number})
		f := l.Fields[number]
		switch {
		case slices.Contains(indispensable, number) && number != 3:
			l.fault(at, "is one that all parties have to understand as it is (for response codes there is response_codes)")
		case slices.Contains(l.Dropped, number):
			l.fault(at, "is dropped: its values would not be sent")
		case f.Binary():
			l.fault(at, "is of text, and the field is bytes")
		case len(values) == 0:
			l.fault(at, "missing")
		}
		for own, said := range values {
			if own == "" || said == "" || !l.takes(f, own) {
				l.fault(at+"."+own, "%q does not fit the field, or says nothing", own)
			}
		}
	}
}

func (l *linter) lintNetworkManagement() {
	n := &l.NetworkManagement
	l.isMTI("network_management.type", n.Type)
	l.elements("network_management.element", []int{n.Element})
	element := l.fieldIn(n.Type, n.Element)
	for path, d := range map[string]Dialogue{"network_management": n.Dialogue, "network_management.demands": n.Demands} {
		seen := map[string]string{}
		for _, part := range []struct{ name, code string }{{"sign_on", d.SignOn}, {"sign_off", d.SignOff}, {"echo", d.Echo},
			{"key_change", d.KeyChange}, {"cutover", d.Cutover}} {
			if part.code == "" {
				continue
			}
			if !l.takes(element, part.code) {
				l.fault(path+"."+part.name, "%q does not fit field %d", part.code, n.Element)
			}
			if other := seen[part.code]; other != "" {
				l.fault(path+"."+part.name, "%q is %s already", part.code, other)
			}
			seen[part.code] = part.name
		}
	}
	if n.Echo == "" {
		l.fault("network_management.echo", "missing: a link that is silent could not be told from one that is dead")
	}
	l.codes("network_management.accepted", n.Accepted)
	l.elements("network_management.carries", slices.Collect(maps.Keys(n.Carries)))
	for number, value := range n.Carries {
		at := fmt.Sprintf("network_management.carries.%d", number)
		switch {
		case number == 7, number == 11, number == 12, number == n.Element:
			l.fault(at, "is one that acquirerd writes itself: the time, the STAN or the code")
		case value == "":
			l.fault(at, "says nothing")
		case !l.takes(l.fieldIn(n.Type, number), value):
			l.fault(at, "does not fit field %d", number)
		}
	}
	if n.KeyRequest != "" {
		l.lintKeyRequest(element)
	}
	if key := n.KeyData; key != (KeyData{}) {
		l.elements("network_management.key_data.element", []int{key.Element})
		if key.Cryptogram != 16 && key.Cryptogram != 24 && key.Cryptogram != 32 {
			l.fault("network_management.key_data.cryptogram", "%d is not 16, 24 or 32: a key of TDES or AES", key.Cryptogram)
		}
		if key.CheckValue < 2 || key.CheckValue > 3 {
			l.fault("network_management.key_data.check_value", "%d is not 2 or 3", key.CheckValue)
		}
		l.lintKeyElement(key)
		if key.InAnswer && n.KeyRequest == "" {
			l.fault("network_management.key_data.in_answer", "is only of a party that is asked for keys: set network_management.key_request")
		}
	} else if n.Demanded().KeyChange != "" {
		l.fault("network_management.key_data", "missing: there is a code for a key change")
	}
}

// lintKeyRequest checks that a party that is asked for a key is asked for nothing else by that, and that the key can arrive.
func (l *linter) lintKeyRequest(element Field) {
	const at = "network_management.key_request"
	n := &l.NetworkManagement
	if !l.takes(element, n.KeyRequest) {
		l.fault(at, "%q does not fit field %d", n.KeyRequest, n.Element)
	}
	for _, part := range []struct{ name, code string }{{"sign_on", n.SignOn}, {"sign_off", n.SignOff}, {"echo", n.Echo}, {"cutover", n.Cutover}} {
		if part.code == n.KeyRequest {
			l.fault(at, "%q is %s already", n.KeyRequest, part.name)
		}
	}
	if n.Demanded().KeyChange == "" && !n.KeyData.InAnswer {
		l.fault(at, "the new key would never come: there is no code for a key change, and key_data.in_answer is not set")
	}
}

// lintKeyElement checks that a new key fits its element, and that it is not shown there.
func (l *linter) lintKeyElement(key KeyData) {
	if _, known := l.Fields[key.Element]; !known || key.Cryptogram < 1 || key.Cryptogram > 32 || key.CheckValue < 1 || key.CheckValue > 3 {
		return // which is a fault of its own
	}
	const at = "network_management.key_data.element"
	types := []string{l.NetworkManagement.Type}
	if key.InAnswer {
		types = append(types, answerTo(l.NetworkManagement.Type))
	}
	for _, mti := range types {
		f := l.fieldIn(mti, key.Element)
		sample := strings.Repeat("A", key.Cryptogram+key.CheckValue)
		if !f.Binary() {
			sample += sample // hexadecimal digits
		}
		if !l.takes(f, sample) {
			l.fault(at, "field %d does not hold cryptogram and check value, %d characters or bytes", key.Element, len(sample))
			break
		}
	}
	if mask := l.Sensitive[key.Element]; mask == MaskPANs || !CardData(key.Element) && mask != MaskHidden {
		l.fault(at, "field %d is shown, and the cryptogram of a key may not be", key.Element)
	}
}

// codes checks a list of response codes that may not be empty.
func (l *linter) codes(path string, list []string) {
	if len(list) == 0 {
		l.fault(path, "missing")
	}
	for _, c := range list {
		l.code(path, c)
	}
}

func (l *linter) lintCodes() {
	l.codes("approving", l.Approving)
	for i, c := range l.Partial {
		if i == 0 && len(l.Approving) > 0 && l.Approving[0] == c {
			l.fault("approving", "begins with %q, which approves partially: the first one is what a whole approval without a code of its own is told as", c)
		}
		if !l.Approves(c) {
			l.fault("partial", "%q is not in approving", c)
		}
	}
	for _, answer := range l.Answers.all() {
		if answer.name != "declined" && answer.name != "mac_incorrect" || answer.code != "" {
			l.code("answers."+answer.name, answer.code)
		}
	}
	if len(l.ResponseCodes) > 0 {
		l.lintResponseCodes()
	} else if l.Fields[39].Length != 2 && l.Fields[39].Length != 0 {
		l.fault("response_codes", "missing: field 39 does not have the two characters of ISO 8583:1987")
	}
}

// lintAnswers checks that no answer of ours says the contrary to this party: that what was refused, or is not known, was approved; that what is
// still owed was done. A message that comes back behind a reject header is answered with format_error, too.
func (l *linter) lintAnswers() {
	if code := l.Answers.Accepted; code != "" {
		if l.code("answers.accepted", code); !l.Approves(code) && !slices.Contains(l.Reversal.Acknowledged, code) {
			l.fault("answers.accepted", "%q neither approves nor acknowledges: an advice that is taken would be sent for ever", code)
		}
	}
	for _, answer := range l.Answers.all() {
		at, code := "answers."+answer.name, answer.code
		switch {
		case code == "":
		case l.Approves(code):
			l.fault(at, "%q approves", code)
		case slices.Contains(l.Reversal.Acknowledged, code):
			l.fault(at, "%q is in reversal.acknowledged: what is owed would be taken for done", code)
		case slices.Contains(l.Reversal.Already, code) && answer.name != "duplicate":
			l.fault(at, "%q is in reversal.already: what is owed would be taken for done before", code)
		case slices.Contains(l.NetworkManagement.Accepted, code):
			l.fault(at, "%q is in network_management.accepted: a refused key change would be taken for accepted", code)
		}
	}
}

// lintKeySync checks that what is asked once more under another key was declined, and could not be meant otherwise.
func (l *linter) lintKeySync() {
	seen := map[string]bool{}
	for _, c := range l.KeySync {
		switch l.code("key_sync", c); {
		case l.Approves(c):
			l.fault("key_sync", "%q approves: the transaction would be made twice", c)
		case seen[c]:
			l.fault("key_sync", "%q stands there already", c)
		}
		seen[c] = true
	}
	if _, known := l.Fields[52]; !known && len(l.KeySync) > 0 {
		l.fault("key_sync", "is only of a party that is sent PIN blocks: field 52 is not in fields")
	}
}

// lintResponseCodes checks that no other party can be told that something was approved which was not, and the other way round, and that
// acquirerd has a word in each direction.
func (l *linter) lintResponseCodes() {
	for own, said := range l.ResponseCodes {
		at := "response_codes." + own
		l.code(at, own)
		if len(said) != 2 {
			l.fault(at, "%q is not two characters long", said)
		} else if l.Approves(own) != slices.Contains(approvingISO87, said) {
			l.fault(at, "one of %q and %q approves, and the other does not", own, said)
		}
	}
	for _, code := range l.Approving {
		if _, known := l.ResponseCodes[code]; !known {
			l.fault("response_codes", "%q is missing: it approves", code)
		}
	}
	if _, known := l.ISO87Code(l.Answers.Unknown); !known {
		l.fault("response_codes", "%q is missing: it is answers.unknown", l.Answers.Unknown)
	}
}

// approvingISO87 are the codes of ISO 8583:1987 that approve: approved, honour with identification, approved for partial amount, approved
// (VIP), no reason to decline.
var approvingISO87 = []string{"00", "08", "10", "11", "85"}

func (a Answers) all() []struct{ name, code string } {
	return []struct{ name, code string }{{"unknown", a.Unknown}, {"not_sent", a.NotSent}, {"no_route", a.NoRoute},
		{"format_error", a.FormatError}, {"unsupported", a.Unsupported}, {"malfunction", a.Malfunction}, {"busy", a.Busy},
		{"pin_untranslatable", a.PINUntranslatable}, {"duplicate", a.Duplicate}, {"original_not_found", a.OriginalNotFound},
		{"declined", a.Declined}, {"mac_incorrect", a.MACIncorrect}}
}

func (l *linter) lintReversal() {
	r := &l.Reversal
	if l.isMTI("reversal.type", r.Type); len(r.Type) == 4 && r.Type[1:] != "420" && r.Type[1:] != "400" {
		l.fault("reversal.type", "%q is neither a reversal advice (420) nor a reversal request (400)", r.Type)
	}
	if r.Numbers != OriginalNumbers && r.Numbers != NewNumbers {
		l.fault("reversal.numbers", "%q is not original or new", r.Numbers)
	}
	switch r.Original {
	case OriginalISO87:
		l.holds("reversal.original", 90, 42, 42)
	case OriginalISO93:
		l.holds("reversal.original", 56, 24, 35) // DE 32, at its end, has 0 to 11 digits
	default:
		l.fault("reversal.original", "%q is not one of %s, %s", r.Original, OriginalISO87, OriginalISO93)
	}
	switch r.Replacement {
	case ReplacementISO87, ReplacementISO87Zeros:
		l.holds("reversal.replacement", 95, 42, 42)
	case ReplacementISO93:
		if l.Standard != ISO93 {
			l.fault("reversal.replacement", "%q needs the function codes of iso93", r.Replacement)
		}
		l.holds("reversal.replacement", 30, 24, 24)
	case ReplacementNone:
	default:
		l.fault("reversal.replacement", "%q is not one of %s, %s, %s, %s", r.Replacement, ReplacementISO87, ReplacementISO87Zeros,
			ReplacementISO93, ReplacementNone)
	}
	if r.AuthorizationID != "" && r.AuthorizationID != AuthorizationIDCarried && r.AuthorizationID != AuthorizationIDAbsent {
		l.fault("reversal.authorization_id", "%q is not carried or absent", r.AuthorizationID)
	}
	l.codes("reversal.acknowledged", r.Acknowledged)
	settled := slices.Clone(r.Acknowledged)
	for _, list := range []struct {
		path  string
		codes []string
	}{{"reversal.not_found", r.NotFound}, {"reversal.already", r.Already}, {"reversal.retry", r.Retry}, {"reversal.poison", r.Poison}} {
		for _, c := range list.codes {
			if l.code(list.path, c); slices.Contains(settled, c) {
				l.fault(list.path, "%q means something else already", c)
			}
			settled = append(settled, c)
		}
	}
	if r.UnknownOriginal != AnswerUnknown && r.UnknownOriginal != ForwardUnknown {
		l.fault("reversal.unknown_original", "%q is not answer or forward", r.UnknownOriginal)
	}
}

// lintProtection checks what concerns card data, MAC and timers.
func (l *linter) lintProtection() {
	l.elements("advices.stored", l.Advices.Stored)
	l.elements("sensitive", slices.Collect(maps.Keys(l.Sensitive)))
	l.lintMasks()
	l.lintMAC()
	for _, timer := range []struct {
		name  string
		value time.Duration
	}{{"reply", l.Timers.Reply}, {"sign_on", l.Timers.SignOn}, {"echo_interval", l.Timers.EchoInterval}, {"echo", l.Timers.Echo}} {
		if timer.value < 0 || timer.value > 24*time.Hour {
			l.fault("timers."+timer.name, "%v is not within 0 to 24h", timer.value)
		}
	}
	if l.Timers.EchoMisses < 0 || l.Timers.EchoMisses > 100 {
		l.fault("timers.echo_misses", "%d is not within 0 to 100", l.Timers.EchoMisses)
	}
}

// lintMAC checks that a MAC has its place, and that a message cannot be asked for one that it does not have yet: it is made last, over a message
// that keeps the format. A request without one would be anybody's and have an answer that is proven, and one with it an answer that anybody can give.
func (l *linter) lintMAC() {
	m := &l.MAC
	switch m.Place {
	case "", MACNone:
		for key, is := range map[string]bool{"clear_repeat": m.ClearRepeat, "padding": m.Padding != 0, "length": m.Length != 0, "mtis": len(m.MTIs) > 0} {
			if is {
				l.fault("mac."+key, "is only of a MAC: set mac.place")
			}
		}
		return
	case MACLast:
		l.elements("mac.place", l.macElements())
	default:
		l.fault("mac.place", "%q is not one of none, last", m.Place)
		return
	}
	if m.Padding < 0 || m.Padding > 3 {
		l.fault("mac.padding", "%d is not one of the methods 1, 2 and 3 of ISO/IEC 9797-1", m.Padding)
	}
	length := m.Bytes()
	if length < LeastMAC || length > MostMAC {
		l.fault("mac.length", "%d is not %d to %d bytes", m.Length, LeastMAC, MostMAC)
	}
	for path, f := range l.allFields() {
		if (f.number == 64 || f.number == 128) && f.Binary() && (!f.IsFixed() || f.Length < length) {
			l.fault(path+".length", "does not hold the %d bytes of a MAC: it needs a fixed length of at least so many", length)
		}
	}
	for i, mti := range m.MTIs {
		if !l.lists(mti) {
			l.fault(fmt.Sprintf("mac.mtis[%d]", i), "%q is not in messages", mti)
		} else if len(mti) == 4 && (mti[3]-'0')%2 == 1 {
			l.fault(fmt.Sprintf("mac.mtis[%d]", i), "%q is a repeat, which is as its first sending", mti)
		} else if other := counterpart(mti); l.lists(other) && !slices.Contains(m.MTIs, other) {
			l.fault(fmt.Sprintf("mac.mtis[%d]", i), "%q carries a MAC, and %q does not: of a request and its answer both must be proven, or neither", mti, other)
		}
	}
	for mti, presence := range l.Messages {
		demanded := slices.Concat(presence.Mandatory, presence.OneOf)
		for _, condition := range presence.When {
			demanded = append(demanded, condition.Then...)
		}
		if slices.Contains(demanded, 64) || slices.Contains(demanded, 128) {
			l.fault("messages."+mti, "demands a MAC as an element: mac.mtis says which messages carry one")
		}
		if l.HasMAC(mti) && (slices.Contains(presence.Forbidden, 64) || slices.Contains(presence.Forbidden, 128)) {
			l.fault("messages."+mti+".forbidden", "forbids the MAC that messages of this type carry (mac.mtis)")
		}
	}
}

func (l *linter) lists(mti string) bool {
	_, known := l.Messages[mti]
	return known
}

// macElements are those in which a MAC can stand: the last one of a bit map.
func (l *linter) macElements() []int {
	switch bitmap := l.Fields[1]; {
	case bitmap.Extent != ExtentFixed:
		return []int{64, 128}
	case bitmap.Length == 8:
		return []int{64}
	}
	return []int{128}
}

// kept are the elements that a reversal repeats of its original, or names it by, from what the journal has kept.
var kept = []int{3, 4, 7, 11, 12, 13, 18, 22, 23, 24, 25, 32, 33, 37, 41, 42, 43, 49}

// lintMasks checks that nothing is hidden that has to be kept.
func (l *linter) lintMasks() {
	found := append([]int{4, 7, 11, 37, 38, 39, 41, 49, l.NetworkManagement.Element}, l.keys()...)
	for number, mask := range l.Sensitive {
		at := fmt.Sprintf("sensitive.%d", number)
		switch {
		case mask != MaskHidden && mask != MaskPANs:
			l.fault(at, "%q is not one of hidden, pans", mask)
		case number == l.Reversal.originalElement(), number == l.Reversal.replacementElement():
			l.fault(at, "says what a reversal is about: it is kept as it is")
		case mask == MaskHidden && slices.Contains(found, number):
			l.fault(at, "is one by which messages are found again: it cannot be hidden")
		case mask == MaskHidden && slices.Contains(kept, number):
			l.fault(at, "is one that reversals repeat of their original: what is hidden is not kept")
		case mask == MaskPANs && !privateElement(number):
			l.fault(at, "%q is only of private elements (44, 46 to 48, 56 to 63, 104 to 127): what else is sensitive stays hidden", mask)
		case mask == MaskPANs && l.isBinaryAnywhere(number):
			l.fault(at, "%q finds a card number only in text: what is bytes stays hidden", mask)
		}
	}
}

// isBinaryAnywhere reports whether an element is bytes in all message types or in one.
func (l *linter) isBinaryAnywhere(number int) bool {
	for _, f := range l.allFields() {
		if f.number == number && f.Binary() {
			return true
		}
	}
	return false
}

// CardData reports whether an element may hold cardholder data, sensitive authentication data or a cryptogram (PCI DSS 3.3.1): also the
// additional, reserved and private elements, in which hosts are known to put any of these.
func CardData(number int) bool {
	switch number {
	case 2, 14, 34, 35, 36, 45, 46, 47, 48, 52, 53, 55, 56, 57, 58, 59, 60, 61, 62, 63, 64, 72, 96:
		return true
	}
	return number >= 102
}

// privateElement reports whether networks and hosts say what an element holds.
func privateElement(number int) bool {
	return number == 44 || number >= 46 && number <= 48 || number >= 56 && number <= 63 || number >= 104 && number <= 127
}
