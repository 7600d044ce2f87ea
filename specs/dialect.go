package specs

import (
	"bytes"
	"embed"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/moov-io/iso8583"
	"go.yaml.in/yaml/v3"
)

// A Dialect is one party's ISO 8583. It does not change after Load and may be shared.
type Dialect struct {
	Name    string `yaml:"name"`
	Version string `yaml:"version"`

	// Framing is how a message's length goes before it on a link.
	Framing struct {
		Length LengthHeader `yaml:"length"`
		Max    int          `yaml:"max"` // longest message, in bytes without the length header
	} `yaml:"framing"`

	// Match names the elements that, with the MTI's class, tie an answer to its request.
	Match struct {
		Transaction       []int `yaml:"transaction"`
		NetworkManagement []int `yaml:"network_management"`
	} `yaml:"match"`

	// Echoed are the elements in which an answer may not disagree with its request, where both carry them.
	Echoed []int `yaml:"echoed"`

	// Messages are the message types this party knows, by MTI.
	Messages map[string]Presence `yaml:"messages"`

	// NetworkManagement holds DE 70 of the link dialogue, and the response codes that accept it.
	NetworkManagement struct {
		SignOn   string   `yaml:"sign_on"`
		SignOff  string   `yaml:"sign_off"`
		Echo     string   `yaml:"echo"`
		Accepted []string `yaml:"accepted"`
	} `yaml:"network_management"`

	Approving []string `yaml:"approving"` // response codes that approve
	Partial   []string `yaml:"partial"`   // those of them that approve less than was asked

	// Reversal says how reversals and advices go to this party and which answers settle them, and what becomes of those that it sends.
	Reversal Reversal `yaml:"reversal"`

	// Advices say what of this party's advices may be stored until the processor has them.
	Advices struct {
		Stored []int `yaml:"stored"` // sensitive elements, sealed: none that can hold a card verification value
	} `yaml:"advices"`

	// Answers are the response codes of answers that acquirerd gives itself, when this party is the one that asked.
	Answers Answers `yaml:"answers"`

	Fields map[int]Field `yaml:"fields"`

	spec *iso8583.MessageSpec
}

// Reversal is a party's way with reversals and advices. A response code in none of its lists is tried again.
type Reversal struct {
	Type    string  `yaml:"type"`    // of the first sending of a reversal: "0420" or "0400"
	Numbers Numbers `yaml:"numbers"` // STAN and DE 7 of a reversal

	Acknowledged []string `yaml:"acknowledged"` // done; the first of them is what this party is answered
	NotFound     []string `yaml:"not_found"`    // the original is not there; it may still be on its way
	Already      []string `yaml:"already"`      // done before: true of a repeat
	Retry        []string `yaml:"retry"`        // not now
	Poison       []string `yaml:"poison"`       // it will never be taken as it is

	UnknownOriginal UnknownOriginal `yaml:"unknown_original"` // what becomes of this party's reversal of something that is not on record
}

// Numbers say which STAN and DE 7 a reversal has.
type Numbers string

// The numbers of a reversal.
const (
	OriginalNumbers Numbers = "original" // those of its original
	NewNumbers      Numbers = "new"      // its own; those of the original are in DE 90 alone
)

// UnknownOriginal says what becomes of an upstream's reversal whose original is not on record.
type UnknownOriginal string

// What becomes of a reversal without an original.
const (
	AnswerUnknown  UnknownOriginal = "answer"  // it is answered that there is none
	ForwardUnknown UnknownOriginal = "forward" // it is recorded and forwarded as it came, under numbers of its own
)

// Presence says what a message of one type must carry.
type Presence struct {
	Mandatory []int `yaml:"mandatory"`
	OneOf     []int `yaml:"one_of"` // at least one of these
}

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
}

// A Field is the wire form of one data element.
type Field struct {
	Type        string `yaml:"type"`
	Length      int    `yaml:"length"` // exact if the prefix is Fixed, else the most: characters, digits or bytes
	Enc         string `yaml:"enc"`
	Prefix      string `yaml:"prefix"`
	Description string `yaml:"description"`
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

// MaxText bounds the text of a dialect file, in bytes. The embedded ones have less than 16 KiB.
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
	if faults := d.lint(); len(faults) > 0 {
		return nil, errors.Join(faults...)
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
		return errors.New("reading: it is empty")
	}
	texts := []string{err.Error()}
	if form, ok := errors.AsType[*yaml.TypeError](err); ok {
		texts = form.Errors
	}
	var faults []error
	for _, text := range texts {
		text = unknownKey.ReplaceAllString(text, "unknown key $1")
		text = misfit.ReplaceAllString(text, "does not have the form that a dialect has here")
		faults = append(faults, fmt.Errorf("reading: %s", strings.Join(strings.Fields(quotation.ReplaceAllString(text, "...")), " ")))
	}
	return errors.Join(faults...)
}

// Spec is the compiled form of Fields, for the codec.
func (d *Dialect) Spec() *iso8583.MessageSpec { return d.spec }

// Approves reports whether a response code approves.
func (d *Dialect) Approves(code string) bool { return slices.Contains(d.Approving, code) }

// ApprovesPartially reports whether a response code approves a smaller amount than was asked.
func (d *Dialect) ApprovesPartially(code string) bool { return slices.Contains(d.Partial, code) }

// lint returns every fault of the file's content, each with its path.
func (d *Dialect) lint() []error {
	var faults []error
	fault := func(path, format string, args ...any) {
		faults = append(faults, fmt.Errorf(path+": "+format, args...))
	}
	if d.Name == "" {
		fault("name", "missing")
	}
	if d.Version == "" {
		fault("version", "missing")
	}
	if limit, known := lengthLimits[d.Framing.Length]; !known {
		fault("framing.length", "%q is not one of ascii-4, binary-2", d.Framing.Length)
	} else if d.Framing.Max < 1 || d.Framing.Max > limit {
		fault("framing.max", "%d is not within 1 to %d", d.Framing.Max, limit)
	}
	fields := func(path string, numbers []int) {
		for _, number := range numbers {
			if _, known := d.Fields[number]; !known || number < 2 {
				fault(path, "field %d is not in fields", number)
			}
		}
	}
	fields("match.transaction", d.Match.Transaction)
	fields("match.network_management", d.Match.NetworkManagement)
	fields("echoed", d.Echoed)
	fields("advices.stored", d.Advices.Stored)
	for path, key := range map[string][]int{"match.transaction": d.Match.Transaction, "match.network_management": d.Match.NetworkManagement} {
		if !slices.Contains(key, 11) || len(key) < 2 {
			fault(path, "must hold 11 (STAN) and at least one more: a STAN alone does not identify a message")
		}
	}
	if len(d.Messages) == 0 {
		fault("messages", "missing")
	}
	for mti, presence := range d.Messages {
		if len(mti) != 4 || !allDigits([]byte(mti)) {
			fault("messages."+mti, "is not an MTI of four digits")
		}
		fields("messages."+mti+".mandatory", presence.Mandatory)
		fields("messages."+mti+".one_of", presence.OneOf)
	}
	code := func(path, code string, length int) {
		if len(code) != length {
			fault(path, "%q is not %d characters long", code, length)
		}
	}
	codes := func(path string, list []string) {
		if len(list) == 0 {
			fault(path, "missing")
		}
		for _, c := range list {
			code(path, c, 2)
		}
	}
	code("network_management.sign_on", d.NetworkManagement.SignOn, 3)
	code("network_management.sign_off", d.NetworkManagement.SignOff, 3)
	code("network_management.echo", d.NetworkManagement.Echo, 3)
	codes("network_management.accepted", d.NetworkManagement.Accepted)
	codes("approving", d.Approving)
	for _, c := range d.Partial {
		if !d.Approves(c) {
			fault("partial", "%q is not in approving", c)
		}
	}
	codes("reversal.acknowledged", d.Reversal.Acknowledged)
	settled := slices.Clone(d.Reversal.Acknowledged)
	for _, list := range []struct {
		path  string
		codes []string
	}{{"reversal.not_found", d.Reversal.NotFound}, {"reversal.already", d.Reversal.Already}, {"reversal.retry", d.Reversal.Retry},
		{"reversal.poison", d.Reversal.Poison}} {
		for _, c := range list.codes {
			if code(list.path, c, 2); slices.Contains(settled, c) {
				fault(list.path, "%q means something else already", c)
			}
			settled = append(settled, c)
		}
	}
	code("answers.unknown", d.Answers.Unknown, 2)
	code("answers.not_sent", d.Answers.NotSent, 2)
	code("answers.no_route", d.Answers.NoRoute, 2)
	code("answers.format_error", d.Answers.FormatError, 2)
	code("answers.unsupported", d.Answers.Unsupported, 2)
	code("answers.malfunction", d.Answers.Malfunction, 2)
	code("answers.busy", d.Answers.Busy, 2)
	code("answers.pin_untranslatable", d.Answers.PINUntranslatable, 2)
	code("answers.duplicate", d.Answers.Duplicate, 2)
	code("answers.original_not_found", d.Answers.OriginalNotFound, 2)
	if is := d.Reversal.Type; is != "0420" && is != "0400" {
		fault("reversal.type", "%q is not 0420 or 0400", is)
	}
	if is := d.Reversal.Numbers; is != OriginalNumbers && is != NewNumbers {
		fault("reversal.numbers", "%q is not original or new", is)
	}
	if is := d.Reversal.UnknownOriginal; is != AnswerUnknown && is != ForwardUnknown {
		fault("reversal.unknown_original", "%q is not answer or forward", is)
	}
	for number, f := range d.Fields {
		faults = append(faults, f.lint(number)...)
	}
	for _, number := range []int{0, 1, 2, 3, 4, 7, 11, 37, 38, 39, 41, 44, 49, 70, 90, 95} { // what acquirerd itself writes
		if _, known := d.Fields[number]; !known {
			fault("fields", "%d is missing", number)
		}
	}
	slices.SortFunc(faults, func(a, b error) int { return strings.Compare(a.Error(), b.Error()) })
	return faults
}
