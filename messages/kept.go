package messages

import (
	"encoding/hex"
	"encoding/json"
	"errors"
	"regexp"
	"strconv"
	"strings"
	"unicode/utf8"

	"acquirerd/card"
	"acquirerd/specs"
)

// kept is what may be kept of a message: its type and elements that are not sensitive. Its JSON form is an object of the elements'
// names.
type kept struct {
	MTI    MTI
	values map[Element]string
}

// keep takes elements of a message. A card number where none belongs, typed into a merchant's name say, is masked: the journal may not
// hold it, and no processor finds an original by it.
func (m *Message) keep(elements []Element) kept {
	k := kept{MTI: m.MTI, values: make(map[Element]string, len(elements))}
	pan := m.PAN()
	for _, e := range elements {
		value := m.Reveal(e)
		if value == "" {
			continue
		}
		k.values[e] = m.masked(e, value, pan)
	}
	return k
}

// masked hides card numbers where somebody may have written one.
func (m *Message) masked(e Element, value string, pan card.PAN) string {
	if e == Merchant { // a merchant's own number can look like one
		return pan.HideIn(value)
	}
	hidden := card.HidePANs(pan.HideIn(value))
	if hidden == value || !m.freeText(e) {
		return value
	}
	if e == AdditionalAmounts && additionalAmounts.MatchString(value) {
		return value // two amounts beside each other can look like a card number
	}
	return hidden
}

// freeText reports whether people or terminals may have written an element's text: those of which ISO 8583:1987 says so and, in a dialect,
// each that has room for letters and a card number.
func (m *Message) freeText(e Element) bool {
	if e.freeText() {
		return true
	}
	return m.dialect != nil && freeTextIn(m.dialect, m.dialect.WireMTI(string(m.MTI)), e)
}

func freeTextIn(d *specs.Dialect, mti string, e Element) bool {
	f, known := d.Field(mti, int(e))
	if !known || f.Binary() || f.Length < shortestPAN || e == Merchant {
		return false
	}
	switch { // what names an original, or says what is to stand of it, is read again
	case d.Standard == specs.ISO87 && (e == OriginalData || e == ReplacementAmounts):
		return false
	case d.Standard == specs.ISO93 && (e == originalData93 || e == amountsOriginal93):
		return false
	}
	_, err := f.Write([]byte("A")) // numbers have no letters
	return err == nil
}

// shortestPAN is the length of the shortest card number that is looked for, see card.HidePANs.
const shortestPAN = 13

// additionalAmounts is the form of DE 54: account type, amount type, currency, sign and amount, up to six times (ISO 8583:1987).
var additionalAmounts = regexp.MustCompile(`^([0-9]{4}[0-9A-Z]{3}[CD][0-9]{12})+$`)

// plain lists the elements of a message that are not sensitive.
func (m *Message) plain() []Element {
	list := make([]Element, 0, len(m.elements))
	for _, entry := range m.elements {
		if !m.Hides(entry.element) {
			list = append(list, entry.element)
		}
	}
	return list
}

// Get returns the value of an element, "" if it was absent.
func (k kept) Get(e Element) string { return k.values[e] }

// IsZero reports whether nothing was kept.
func (k kept) IsZero() bool { return k.MTI == "" }

// inHex marks the name of a value that is not UTF-8, which JSON cannot hold: a merchant's name in Latin-1, say.
const inHex = ".hex"

// MarshalJSON gives {"mti":"0100","stan":"000001",…}.
func (k kept) MarshalJSON() ([]byte, error) {
	named := map[string]string{"mti": string(k.MTI)}
	for e, value := range k.values {
		if utf8.ValidString(value) {
			named[e.Name()] = value
		} else {
			named[e.Name()+inHex] = hex.EncodeToString([]byte(value))
		}
	}
	return json.Marshal(named)
}

// UnmarshalJSON reads what MarshalJSON wrote. The name of a sensitive element, or of none, is refused.
func (k *kept) UnmarshalJSON(text []byte) error {
	var named map[string]string
	if err := json.Unmarshal(text, &named); err != nil {
		return errors.New("reading what was kept of a message: it is not an object of texts")
	}
	read := kept{MTI: MTI(named["mti"]), values: make(map[Element]string, len(named))}
	delete(named, "mti")
	for name, value := range named {
		name, isHex := strings.CutSuffix(name, inHex)
		if isHex {
			raw, err := hex.DecodeString(value)
			if err != nil {
				return errors.New("reading what was kept of a message: it has a value that is not hexadecimal")
			}
			value = string(raw)
		}
		e, known := elementNamed(name)
		if !known || e.Sensitive() && e != originalData93 {
			return errors.New("reading what was kept of a message: it has an element that is not kept")
		}
		read.values[e] = value
	}
	if len(read.MTI) != 4 {
		return errors.New("reading what was kept of a message: its MTI is missing")
	}
	*k = read
	return nil
}

// elementNamed is the inverse of Name.
func elementNamed(name string) (Element, bool) {
	if e, known := namedElements[name]; known {
		return e, true
	}
	digits, numbered := strings.CutPrefix(name, "de")
	number, err := strconv.Atoi(digits)
	return Element(number), numbered && err == nil && number > 1 && number <= 128 && Element(number).Name() == name
}

var namedElements = func() map[string]Element {
	named := make(map[string]Element, len(elementNames))
	for e, name := range elementNames {
		named[name] = e
	}
	return named
}()

// An Original is what is kept of a request or an advice, as it was sent to the processor: all that is not sensitive. From it a reversal is
// built, an advice is built again, and a repeat is compared. The PAN is kept sealed beside it, and what else of an advice is sensitive and
// may be stored is in Rest.
type Original struct{ kept }

// originalElements are the elements that a reversal repeats, or builds DE 90 from. It carries neither PIN block nor track (STANDARDS:
// PIN-06, ISO-18).
var originalElements = []Element{
	ProcessingCode, Amount, TransmissionTime, STAN, LocalTime, LocalDate, MerchantType, POSEntryMode, CardSequence, FunctionCode,
	POSConditionCode, AcquirerID, ForwarderID, RRN, Terminal, Merchant, MerchantName, Currency,
}

// Original takes from a message what is kept of it.
func (m *Message) Original() Original { return Original{m.keep(m.plain())} }

// numbering are the elements that number a message on one hop, or name another message by such numbers.
var numbering = map[Element]bool{TransmissionTime: true, STAN: true, RRN: true, OriginalData: true, originalData93: true}

// SameContent reports whether two requests, each as it came or as it was sent, ask for the same, but for their numbers and the mark of a
// repeat. The card is not part of it. If partly, what o does not have is not compared: of a record that an older version wrote.
func (o Original) SameContent(other Original, partly bool) bool {
	return o.MTI.First() == other.MTI.First() && o.within(other) && (partly || other.within(o))
}

// within reports whether the other has the same values, where this one has any.
func (o Original) within(other Original) bool {
	for e, value := range o.values {
		if !numbering[e] && other.values[e] != value {
			return false
		}
	}
	return true
}

// A Reply is what may be kept of an answer beside its request: what it said that is not sensitive. Chip data and private elements are
// not in it.
type Reply struct{ kept }

// Reply takes from an answer what it says beyond its request's own elements.
func (m *Message) Reply(request *Message) Reply {
	var said []Element
	for _, e := range m.plain() {
		if m.Get(e) != request.Get(e) {
			said = append(said, e)
		}
	}
	return Reply{m.keep(said)}
}

// To is the answer once more, to the same request or a repeat of it.
func (r Reply) To(request *Message) *Message {
	m := NewAnswer(request, r.Get(ResponseCode))
	for e, value := range r.values {
		m.Set(e, value)
	}
	return m
}
