package specs

import (
	"bytes"
	"embed"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/moov-io/iso8583"
	"go.yaml.in/yaml/v3"
)

// A Dialect is one party's ISO 8583. It does not change after Load and may be shared. MTIs in it are those on the wire.
type Dialect struct {
	Name     string   `yaml:"name"`
	Version  string   `yaml:"version"`
	Standard Standard `yaml:"standard"` // what its element numbers mean, and the first digit of its MTIs

	Framing Framing `yaml:"framing"` // how messages follow each other on a link
	Header  Header  `yaml:"header,omitempty"`

	// Match names the elements that, with the MTI's class, tie an answer to its request.
	Match Match `yaml:"match"`

	// Echoed are the elements in which an answer may not disagree with its request, where both carry them.
	Echoed []int `yaml:"echoed"`

	// Identity are the elements by which this party names a request of its own again, in a repeat and in a reversal: of 11, the time of its
	// original data elements (7 or 12), 41 and 42. Default 7, 11, 41, or 11, 12, 41 with iso93-de56.
	Identity []int `yaml:"identity,omitempty"`

	// Messages are the message types this party knows, by MTI.
	Messages map[string]Presence `yaml:"messages"`

	NetworkManagement NetworkManagement `yaml:"network_management"`

	Approving []string `yaml:"approving"` // response codes that approve
	Partial   []string `yaml:"partial"`   // those of them that approve less than was asked

	// KeySync are the response codes by which this party declines because it could not read the PIN under its zone key, and for nothing that
	// the cardholder did: the two sides have not changed keys at the same moment. None: it says so by no code of its own.
	KeySync []string `yaml:"key_sync,omitempty"`

	// ResponseCodes give for each code of this party (DE 39) the one of ISO 8583:1987 that says the same, by which other parties are told.
	// Without it, its codes are those.
	ResponseCodes map[string]string `yaml:"response_codes,omitempty"`

	// Values give for values of an element of this party, by its number, those of ISO 8583:1987 that say the same, by which other parties are
	// told, and tell this one. A value that is not there cannot be carried.
	Values map[int]map[string]string `yaml:"values,omitempty"`

	// FunctionCodes are DE 24 of requests that this party is sent, by MTI (ISO 8583:1993).
	FunctionCodes map[string]string `yaml:"function_codes,omitempty"`

	// Dropped are elements, by their numbers in ISO 8583:1987, that this party is not sent from messages of another dialect: they are
	// forwarded without them.
	Dropped []int `yaml:"dropped,omitempty"`

	// Dispensable are elements of this party's own messages that a party of another dialect need not be told, if that has no words for them.
	Dispensable []int `yaml:"dispensable,omitempty"`

	// Sensitive are elements that are masked beyond those that always are, or, of the private ones, less than usual.
	Sensitive map[int]Mask `yaml:"sensitive,omitempty"`

	// KeySerialNumber says where this party's requests have the key serial number of a PIN block, or a MAC, under DUKPT. Without it they have none.
	KeySerialNumber KeySerialNumber `yaml:"key_serial_number,omitempty"`

	MAC    MAC    `yaml:"mac,omitempty"`
	Timers Timers `yaml:"timers,omitempty"`

	// Reversal says how reversals and advices go to this party and which answers settle them, and what becomes of those that it sends.
	Reversal Reversal `yaml:"reversal"`

	// Advices say what of this party's advices may be stored until the processor has them.
	Advices struct {
		Stored []int `yaml:"stored"` // sensitive elements, sealed: none that can hold a card verification value
	} `yaml:"advices"`

	// Answers are the response codes of answers that acquirerd gives itself, when this party is the one that asked.
	Answers Answers `yaml:"answers"`

	Fields map[int]Field `yaml:"fields"`

	spec  *iso8583.MessageSpec
	specs map[string]*iso8583.MessageSpec // of message types with fields of their own
	own   map[string]map[int]Field        // and those fields
	codes map[string]string               // of this party, by those of ISO 8583:1987
	masks map[int]Mask                    // Sensitive, and what follows from the edition
	given map[int]map[string]string       // values of this party, by those of ISO 8583:1987
}

// A Standard is an edition of ISO 8583.
type Standard string

// The editions.
const (
	ISO87 Standard = "iso87"
	ISO93 Standard = "iso93"
)

// Digit is the first digit of the edition's MTIs.
func (s Standard) Digit() byte {
	if s == ISO93 {
		return '1'
	}
	return '0'
}

// Match says how an answer finds its request.
type Match struct {
	Transaction       []int `yaml:"transaction"`
	NetworkManagement []int `yaml:"network_management"`
	SameLink          bool  `yaml:"same_link,omitempty"` // an answer on another link than its request's is none
}

// Presence says what a message of one type must carry.
type Presence struct {
	Mandatory []int         `yaml:"mandatory"`
	OneOf     []int         `yaml:"one_of,omitempty"` // at least one of these
	When      []Condition   `yaml:"when,omitempty"`
	Forbidden []int         `yaml:"forbidden,omitempty"`
	Fields    map[int]Field `yaml:"fields,omitempty"` // whose wire form is another in this type
}

// A Condition makes elements mandatory where another one is there, or begins so.
type Condition struct {
	If     int      `yaml:"if"`
	Begins []string `yaml:"begins,omitempty"` // with one of these; none: it is there
	Then   []int    `yaml:"then"`
}

// NetworkManagement is the dialogue of a link. A part of it without a code is none of this party's.
type NetworkManagement struct {
	Type     string           `yaml:"type"`    // MTI of its requests
	Element  int              `yaml:"element"` // that holds the codes: 70, or 24 in ISO 8583:1993
	Dialogue `yaml:",inline"` // codes of what it is sent, and of what it sends unless Demands has another one
	Demands  Dialogue         `yaml:"demands,omitempty"`
	// KeyRequest is the code by which this party is asked for a new key. It may be that of its own key change: the direction tells them apart.
	KeyRequest string         `yaml:"key_request,omitempty"`
	Accepted   []string       `yaml:"accepted"`           // response codes that accept
	Carries    map[int]string `yaml:"carries,omitempty"`  // further elements of what it is sent
	KeyData    KeyData        `yaml:"key_data,omitempty"` // of a key change
}

// A Dialogue holds a code for each part of the dialogue, "" for none.
type Dialogue struct {
	SignOn    string `yaml:"sign_on,omitempty"`
	SignOff   string `yaml:"sign_off,omitempty"`
	Echo      string `yaml:"echo,omitempty"`
	KeyChange string `yaml:"key_change,omitempty"`
	Cutover   string `yaml:"cutover,omitempty"`
}

// KeyData says where the new key of a key change stands: the cryptogram first, then its check value, in one element. Their lengths are in
// bytes; in a text element they are hexadecimal digits, two a byte.
type KeyData struct {
	Element    int `yaml:"element,omitempty"`
	Cryptogram int `yaml:"cryptogram,omitempty"`
	CheckValue int `yaml:"check_value,omitempty"`

	// InAnswer: the answer to a KeyRequest brings the new key itself; else the party sends its key change after it.
	InAnswer bool `yaml:"in_answer,omitempty"`
}

// Demanded are the codes of what this party sends.
func (n *NetworkManagement) Demanded() Dialogue {
	d := n.Dialogue
	for _, code := range []struct{ of, other *string }{{&d.SignOn, &n.Demands.SignOn}, {&d.SignOff, &n.Demands.SignOff},
		{&d.Echo, &n.Demands.Echo}, {&d.KeyChange, &n.Demands.KeyChange}, {&d.Cutover, &n.Demands.Cutover}} {
		if *code.other != "" {
			*code.of = *code.other
		}
	}
	return d
}

// A Mask says how an element is shown to people.
type Mask string

// The ways to show an element.
const (
	MaskHidden Mask = "hidden" // its length only; it is not kept in the journal either
	MaskPANs   Mask = "pans"   // as it is, but for what looks like a card number

	// MaskNone is of DE 56 where it names an original, as ISO 8583:1993 has it: it is no private element there, and is kept. No file says it.
	MaskNone Mask = "none"
)

// MAC says which messages carry a message authentication code, where it stands, and what of it is not the key's to say: the algorithm is that of
// the key, which has one use (TR-31: M3, M6 or M7).
type MAC struct {
	Place       MACPlace `yaml:"place,omitempty"`        // default none
	ClearRepeat bool     `yaml:"clear_repeat,omitempty"` // it is made as if the message were the first sending (AS 2805.4)
	Padding     int      `yaml:"padding,omitempty"`      // method of ISO/IEC 9797-1 (6.3), 1 to 3, of X9.19 alone; default 1
	Length      int      `yaml:"length,omitempty"`       // bytes of it that stand in the element, on the left; what is left of that is zeros. 4 to 8; default 8
	MTIs        []string `yaml:"mtis,omitempty"`         // message types that carry one, without repeats, which are as their first; default all but the network's
}

// Bytes is the length of the MAC.
func (m MAC) Bytes() int {
	if m.Length == 0 {
		return MostMAC
	}
	return m.Length
}

// LeastMAC and MostMAC bound a MAC's length in bytes: that of X9.19 (4) and a block of TDES.
const (
	LeastMAC = 4
	MostMAC  = 8
)

// HasMAC reports whether messages of a type, as it is on the wire, carry a message authentication code.
func (d *Dialect) HasMAC(mti string) bool {
	if d.MAC.Place != MACLast || len(mti) != 4 {
		return false
	}
	if len(d.MAC.MTIs) == 0 {
		return mti[1] != '8'
	}
	first := mti[:3] + string(mti[3]-(mti[3]-'0')%2)
	return slices.Contains(d.MAC.MTIs, first)
}

// A MACPlace is where a message authentication code stands.
type MACPlace string

// The places of a MAC.
const (
	MACNone MACPlace = "none"
	MACLast MACPlace = "last" // DE 64, or DE 128 of a message with a second bit map: always the last element
)

// Timers are this party's, where the config of an endpoint has no others. Zero is none.
type Timers struct {
	Reply        time.Duration `yaml:"reply,omitempty"`         // longest wait for an answer
	SignOn       time.Duration `yaml:"sign_on,omitempty"`       // longest wait for the answer to a sign-on
	EchoInterval time.Duration `yaml:"echo_interval,omitempty"` // idle time after which an echo is sent
	Echo         time.Duration `yaml:"echo,omitempty"`          // longest wait for an echo
	EchoMisses   int           `yaml:"echo_misses,omitempty"`   // so many in a row close a link
}

// Reversal is a party's way with reversals and advices. A response code in none of its lists is tried again.
type Reversal struct {
	Type    string  `yaml:"type"`    // MTI of the first sending of a reversal
	Numbers Numbers `yaml:"numbers"` // STAN and DE 7 of a reversal

	Original        OriginalLayout    `yaml:"original"`                   // how it names its original
	Replacement     ReplacementLayout `yaml:"replacement"`                // how it says what is to stand instead of the original's amount
	AuthorizationID AuthorizationID   `yaml:"authorization_id,omitempty"` // DE 38 of what is undone; default carried

	Acknowledged []string `yaml:"acknowledged"` // done; the first of them is what this party is answered
	NotFound     []string `yaml:"not_found"`    // the original is not there; it may still be on its way
	Already      []string `yaml:"already"`      // done before: true of a repeat
	Retry        []string `yaml:"retry"`        // not now
	Poison       []string `yaml:"poison"`       // it will never be taken as it is

	UnknownOriginal UnknownOriginal `yaml:"unknown_original"` // what becomes of this party's reversal of something that is not on record
}

// An OriginalLayout is how a reversal names its original.
type OriginalLayout string

// The layouts of original data elements.
const (
	// OriginalISO87: DE 90 of ISO 8583:1987, n42: MTI, STAN, DE 7, DE 32 and DE 33, each filled up with zeros on the left.
	OriginalISO87 OriginalLayout = "iso87-de90"
	// OriginalISO93: DE 56 of ISO 8583:1993, n..35: MTI, STAN, DE 12, and DE 32 with its length.
	OriginalISO93 OriginalLayout = "iso93-de56"
)

// A ReplacementLayout is how a partial reversal says what is to stand instead of the original's amount.
type ReplacementLayout string

// The layouts of replacement amounts.
const (
	// ReplacementISO87: DE 95 of ISO 8583:1987, an42: transaction and settlement amount (12 each), and two fees. DE 4 is the original's.
	ReplacementISO87 ReplacementLayout = "iso87-de95"
	// ReplacementISO87Zeros is the same, and a full reversal carries it with zeros.
	ReplacementISO87Zeros ReplacementLayout = "iso87-de95-always"
	// ReplacementISO93: DE 4 of ISO 8583:1993 is what is to stand; DE 30, n24, begins with the original's amount.
	ReplacementISO93 ReplacementLayout = "iso93-de30"
	// ReplacementNone: this party takes no partial reversals.
	ReplacementNone ReplacementLayout = "none"
)

// AuthorizationID says whether a reversal carries DE 38 of what it undoes.
type AuthorizationID string

// Whether a reversal carries DE 38.
const (
	AuthorizationIDCarried AuthorizationID = "carried"
	AuthorizationIDAbsent  AuthorizationID = "absent"
)

// Numbers say which STAN and DE 7 a reversal has.
type Numbers string

// The numbers of a reversal.
const (
	OriginalNumbers Numbers = "original" // those of its original
	NewNumbers      Numbers = "new"      // its own; those of the original are in the original data elements alone
)

// UnknownOriginal says what becomes of an upstream's reversal whose original is not on record.
type UnknownOriginal string

// What becomes of a reversal without an original.
const (
	AnswerUnknown  UnknownOriginal = "answer"  // it is answered that there is none
	ForwardUnknown UnknownOriginal = "forward" // it is recorded and forwarded as it came, under numbers of its own
)

// Answers are response codes (DE 39) by reason.
type Answers struct {
	Unknown           string `yaml:"unknown"`            // nobody knows what the processor did; a reversal is owed
	NotSent           string `yaml:"not_sent"`           // nothing left this host
	NoRoute           string `yaml:"no_route"`           // no endpoint for this card
	FormatError       string `yaml:"format_error"`       // DE 44 begins with the number of the failing element
	Unsupported       string `yaml:"unsupported"`        // a message type that is not served
	Malfunction       string `yaml:"malfunction"`        // HSM or journal
	Busy              string `yaml:"busy"`               // a limit is reached
	PINUntranslatable string `yaml:"pin_untranslatable"` // the PIN block does not decipher to a PIN block
	Duplicate         string `yaml:"duplicate"`          // the key was seen before, with other content
	OriginalNotFound  string `yaml:"original_not_found"` // the original of a reversal is not on record
	Accepted          string `yaml:"accepted,omitempty"` // of an advice; default what acknowledges a reversal
	Declined          string `yaml:"declined,omitempty"` // the processor declined with a code that this party has none for; default 05's

	MACIncorrect string `yaml:"mac_incorrect,omitempty"` // of a request whose MAC is wrong or missing; default that of malfunction
}

//go:embed *.yaml
var embedded embed.FS

// Names lists the embedded dialects.
func Names() []string {
	files, err := fs.Glob(embedded, "*.yaml")
	if err != nil {
		panic(err) // the pattern is a constant
	}
	for i, file := range files {
		files[i] = strings.TrimSuffix(file, ".yaml")
	}
	return files
}

// Load returns the embedded dialect of that name, or reads the file if the name has a path separator or ends in ".yaml".
func Load(name string) (*Dialect, error) {
	var text []byte
	var err error
	if strings.ContainsRune(name, filepath.Separator) || strings.HasSuffix(name, ".yaml") {
		text, err = readFile(name)
	} else if text, err = embedded.ReadFile(name + ".yaml"); err != nil {
		err = fmt.Errorf("no such dialect; the built-in ones are %s", strings.Join(Names(), ", "))
	}
	if err != nil {
		return nil, fmt.Errorf("loading dialect %q: %w", name, err)
	}
	dialect, err := Parse(text)
	if err != nil {
		return nil, fmt.Errorf("loading dialect %q: %w", name, err)
	}
	return dialect, nil
}

// MaxText bounds the text of a dialect file, in bytes. The embedded ones have less than 32 KiB.
const MaxText = 1 << 20

// readFile reads one byte more than Parse takes, and no more: a device has no end.
func readFile(name string) ([]byte, error) {
	file, err := os.Open(filepath.Clean(name))
	if err != nil {
		return nil, err
	}
	defer func() { _ = file.Close() }() // only read
	return io.ReadAll(io.LimitReader(file, MaxText+1))
}

// Parse reads, checks and compiles the text of a dialect file, at most MaxText bytes. Its error names every fault, each on a line of
// its own.
func Parse(text []byte) (*Dialect, error) {
	if len(text) > MaxText {
		return nil, fmt.Errorf("is larger than %d bytes", MaxText)
	}
	var d Dialect
	decoder := yaml.NewDecoder(bytes.NewReader(text))
	decoder.KnownFields(true)
	if err := decoder.Decode(&d); err != nil {
		return nil, misread(err)
	}
	if err := decoder.Decode(new(yaml.Node)); !errors.Is(err, io.EOF) {
		return nil, &Fault{"reading", "more than one document, of which all but the first would be passed over"}
	}
	if d.Identity == nil { // by what original data elements name, and the terminal
		d.Identity = []int{7, 11, 41}
		if d.Reversal.Original == OriginalISO93 {
			d.Identity = []int{11, 12, 41}
		}
	}
	if faults := d.lint(); len(faults) > 0 {
		return nil, errors.Join(faults...)
	}
	if d.Answers.Accepted == "" {
		d.Answers.Accepted = d.Reversal.Acknowledged[0]
	}
	if d.Answers.MACIncorrect == "" {
		d.Answers.MACIncorrect = d.Answers.Malfunction
	}
	d.masks = maps.Clone(d.Sensitive)
	if d.Reversal.Original == OriginalISO93 {
		if d.masks == nil {
			d.masks = map[int]Mask{}
		}
		d.masks[56] = MaskNone
	}
	d.codes = inverted(d.ResponseCodes)
	d.given = map[int]map[string]string{}
	for number, values := range d.Values {
		d.given[number] = inverted(values)
	}
	if err := d.compile(); err != nil {
		return nil, err
	}
	return &d, nil
}

// What errors of yaml say: the value that one quotes, a key that is not known, a value that does not fit its place.
var (
	quotation  = regexp.MustCompile("(?s)`.*`|'.*'|\".*\"")
	unknownKey = regexp.MustCompile(`field (\S+) not found in type \S+`)
	misfit     = regexp.MustCompile(`(?s)cannot unmarshal .* into \S+`)
)

// misread makes an error of yaml into one line for each fault, without the values: the file may be another than was meant.
func misread(err error) error {
	if errors.Is(err, io.EOF) {
		return &Fault{"reading", "it is empty"}
	}
	texts := []string{err.Error()}
	if form, ok := errors.AsType[*yaml.TypeError](err); ok {
		texts = form.Errors
	}
	var faults []error
	for _, text := range texts {
		text = unknownKey.ReplaceAllString(text, "unknown key $1")
		text = misfit.ReplaceAllString(text, "does not have the form that a dialect has here")
		faults = append(faults, &Fault{"reading", strings.Join(strings.Fields(quotation.ReplaceAllString(text, "...")), " ")})
	}
	return errors.Join(faults...)
}

// Masks says how elements are shown and kept that differ from the others of their number.
func (d *Dialect) Masks() map[int]Mask { return d.masks }

// HoldsPINBlock reports whether PIN blocks of so many bytes fit DE 52 in all message types that have it: 8 of TDES or 16 of AES. A dialect
// without DE 52 holds none.
func (d *Dialect) HoldsPINBlock(bytes int) bool {
	const pinData = 52
	block := make([]byte, bytes)
	f, holds := d.Fields[pinData]
	holds = holds && f.Takes(block) == nil
	for _, presence := range d.Messages {
		if own, has := presence.Fields[pinData]; has {
			holds = holds && own.Takes(block) == nil
		}
	}
	return holds
}

// Approves reports whether a response code approves.
func (d *Dialect) Approves(code string) bool { return slices.Contains(d.Approving, code) }

// AsksForKeySync reports whether a response code says that the PIN could not be read under the key that this party has.
func (d *Dialect) AsksForKeySync(code string) bool { return slices.Contains(d.KeySync, code) }

// ApprovesPartially reports whether a response code approves a smaller amount than was asked.
func (d *Dialect) ApprovesPartially(code string) bool { return slices.Contains(d.Partial, code) }

// ISO87Code is what a response code of this party says in ISO 8583:1987; false if that has no word for it.
func (d *Dialect) ISO87Code(code string) (string, bool) {
	if len(d.ResponseCodes) == 0 {
		return code, true
	}
	said, known := d.ResponseCodes[code]
	return said, known
}

// Code is this party's response code for one of ISO 8583:1987; false if it has none. Of several it is the first in order.
func (d *Dialect) Code(iso87 string) (string, bool) {
	if len(d.ResponseCodes) == 0 {
		return iso87, d.Fields[39].Takes([]byte(iso87)) == nil // one of digits alone has no N7
	}
	code, known := d.codes[iso87]
	return code, known
}

// inverted gives the first in order of the keys that have a value, by that value.
func inverted(table map[string]string) map[string]string {
	inverse := make(map[string]string, len(table))
	for _, key := range slices.Sorted(maps.Keys(table)) {
		if _, has := inverse[table[key]]; !has {
			inverse[table[key]] = key
		}
	}
	return inverse
}

// HasValues reports whether an element's values are others than those of ISO 8583:1987.
func (d *Dialect) HasValues(number int) bool { return len(d.Values[number]) > 0 }

// ISO87Value is what a value of this party's element says in ISO 8583:1987; false if that has no word for it.
func (d *Dialect) ISO87Value(number int, value string) (string, bool) {
	if !d.HasValues(number) {
		return value, true
	}
	said, known := d.Values[number][value]
	return said, known
}

// Value is this party's value of an element for one of ISO 8583:1987; false if it has none. Of several it is the first in order.
func (d *Dialect) Value(number int, iso87 string) (string, bool) {
	if !d.HasValues(number) {
		return iso87, true
	}
	value, known := d.given[number][iso87]
	return value, known
}

// WireMTI is an MTI as it stands on the wire; OwnMTI is the inverse, with the first digit that MTIs have inside of acquirerd.
func (d *Dialect) WireMTI(mti string) string { return withDigit(mti, d.Standard.Digit()) }

// OwnMTI is an MTI of the wire with the first digit that MTIs have inside of acquirerd, 0. It is false if it is of another edition.
func (d *Dialect) OwnMTI(mti string) (string, bool) {
	return withDigit(mti, '0'), len(mti) == 4 && mti[0] == d.Standard.Digit()
}

func withDigit(mti string, digit byte) string {
	if mti == "" || mti[0] == digit {
		return mti
	}
	return string(digit) + mti[1:]
}
