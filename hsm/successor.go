package hsm

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/miekg/pkcs11"
)

// How the token remembers key changes. A version after the first, a successor, is a key of its own with a label of its own; its CKA_ID says which change
// made it. That it was adopted is said by a mark, an object beside it: the key itself cannot say so, because nobody may modify it. Without its mark
// a successor was never in use.

const firstVersion = 1

// successorLabel names a version of a key that is not the first one.
func successorLabel(label string, version int) string { return fmt.Sprintf("%s#%d", label, version) }

// successorOf is the inverse of successorLabel.
func successorOf(label string) (base string, version int, ok bool) {
	at := strings.LastIndexByte(label, '#')
	if at < 1 {
		return "", 0, false
	}
	version, err := strconv.Atoi(label[at+1:])
	if err != nil || version <= firstVersion || successorLabel(label[:at], version) != label {
		return "", 0, false
	}
	return label[:at], version, true
}

// A birth is what the CKA_ID of a successor tells. Its text is of one change and no other, of whatever process.
type birth struct {
	label string // of the successor
	kcv   string
	made  time.Time // whole seconds, UTC
	nonce string
	proof string // of the check value, "" if the key can show it: see checkValue
}

const birthNonceBytes = 8

func newBirth(label string, t trial) birth {
	nonce := make([]byte, birthNonceBytes)
	_, _ = rand.Read(nonce) // never fails: see crypto/rand
	return birth{label, t.kcv, time.Now().UTC().Truncate(time.Second), hex.EncodeToString(nonce), t.proof}
}

func (b birth) text() string {
	text := b.label + " " + b.kcv + " " + b.made.UTC().Format(time.RFC3339) + " " + b.nonce
	if b.proof != "" {
		text += " " + b.proof
	}
	return text
}

var birthNonce = regexp.MustCompile(`^[0-9a-f]{16}$`)

func parseBirth(label, text string) (birth, bool) {
	proof := ""
	if found := proofText.FindString(text); strings.HasPrefix(found, " ") {
		text, proof = strings.TrimSuffix(text, found), found[1:]
	}
	rest, ok := strings.CutPrefix(text, label+" ") // a label may have spaces
	words := strings.Split(rest, " ")
	if !ok || len(words) != 3 || !sixHex.MatchString(words[0]) || !birthNonce.MatchString(words[2]) {
		return birth{}, false
	}
	made, err := time.Parse(time.RFC3339, words[1])
	return birth{label, words[0], made, words[2], proof}, err == nil
}

// A mark is what the text of a mark's object tells: that the successor of this birth was adopted, and what was before it. The object is one of data, with the
// label of the successor and the text in its CKA_VALUE. Where the token keeps no such object, as NSS does not, it is a secret key that can do nothing, of a random
// value that nobody knows, with the text in its CKA_ID. Its label is then none of a successor, so that nothing takes it for a key; and no other key has
// its CKA_ID, by which NSS would let the one take the place of the other without a word. A token may have marks of both kinds, which say the same.
type mark struct {
	birth    string   // its text
	replaced []string // KCVs of the versions before it, the last one first
	handle   pkcs11.ObjectHandle
}

// mostReplaced is how many versions a mark remembers, and version 1 always. With a label of 64 bytes it stays shorter than 2,048 bytes,
// which small tokens have for an object.
const mostReplaced = 300

// history is what the mark of the next version says of those before it.
func (k *key) history() []string {
	all := append([]string{strings.ToUpper(k.KCV)}, k.replaced...)
	if len(all) > mostReplaced {
		all[mostReplaced-1] = all[len(all)-1]
		all = all[:mostReplaced]
	}
	return all
}

// markApplication is the CKA_APPLICATION of marks.
const markApplication = "acquirerd key change 1"

func (m mark) text() string { return m.birth + " " + strings.Join(m.replaced, "") }

func parseMark(label, text string) (mark, bool) {
	at := strings.LastIndexByte(text, ' ')
	if at < 0 {
		return mark{}, false
	}
	m := mark{birth: text[:at]}
	if _, ok := parseBirth(label, m.birth); !ok {
		return mark{}, false
	}
	for rest := text[at+1:]; rest != ""; rest = rest[2*kcvBytes:] {
		if len(rest) < 2*kcvBytes || !sixHex.MatchString(rest[:2*kcvBytes]) {
			return mark{}, false
		}
		m.replaced = append(m.replaced, rest[:2*kcvBytes])
	}
	return m, len(m.replaced) > 0
}

// markClasses are those of the objects that can be marks.
var markClasses = []uint{pkcs11.CKO_DATA, pkcs11.CKO_SECRET_KEY}

// markSuffix ends the label of a mark that is a key.
const markSuffix = " mark"

// markLabel is the label of the marks of a successor that are of a class.
func markLabel(class uint, successor string) string {
	if class == pkcs11.CKO_SECRET_KEY {
		return successor + markSuffix
	}
	return successor
}

// markedBy is the inverse of markLabel. It is not ok if no mark of the class has that label.
func markedBy(class uint, label string) (successor string, ok bool) {
	successor = label
	if class == pkcs11.CKO_SECRET_KEY {
		if successor, ok = strings.CutSuffix(label, markSuffix); !ok {
			return "", false
		}
	}
	_, _, ok = successorOf(successor)
	return successor, ok
}

// markRecipe is that of a mark that is a key: it may do nothing.
var markRecipe = recipe{algorithm: HMAC, lengths: []int{hmacBytes}, mechanisms: []uint{pkcs11.CKM_SHA256_HMAC}}

// create makes the object of a mark, with templates that are shaped for the token or for the session. A token that refuses the object of data because of its
// template has made none.
func (m mark) create(t module, s pkcs11.SessionHandle, successor string, shaped func([]*pkcs11.Attribute) []*pkcs11.Attribute) (class uint, handle pkcs11.ObjectHandle, err error) {
	handle, refused := t.CreateObject(s, shaped(m.asData(successor)))
	if !refusesData(refused) {
		return pkcs11.CKO_DATA, handle, refused
	}
	template := markRecipe.template(markLabel(pkcs11.CKO_SECRET_KEY, successor), m.text(), hmacBytes)
	handle, err = t.GenerateKey(s, mechanism(generatedBy(HMAC, hmacBytes)), withLength(shaped(template), HMAC, hmacBytes))
	if err != nil {
		err = fmt.Errorf("%w (and no object of data: %s)", err, refused.Error()) // of that the code says nothing
	}
	return pkcs11.CKO_SECRET_KEY, handle, err
}

// refusesData reports whether a token says by its answer that it keeps no object of that kind.
func refusesData(err error) bool {
	return slices.ContainsFunc([]pkcs11.Error{
		pkcs11.CKR_ATTRIBUTE_VALUE_INVALID, // NSS 3.87
		pkcs11.CKR_ATTRIBUTE_TYPE_INVALID, pkcs11.CKR_TEMPLATE_INCONSISTENT, pkcs11.CKR_FUNCTION_NOT_SUPPORTED,
	}, func(code pkcs11.Error) bool { return errors.Is(err, code) })
}

// lasting leaves a template as it is: that of an object in the token.
func lasting(template []*pkcs11.Attribute) []*pkcs11.Attribute { return template }

// asData returns the attributes of a mark that is an object of data.
func (m mark) asData(label string) []*pkcs11.Attribute {
	return []*pkcs11.Attribute{
		pkcs11.NewAttribute(pkcs11.CKA_CLASS, pkcs11.CKO_DATA),
		pkcs11.NewAttribute(pkcs11.CKA_TOKEN, true),
		pkcs11.NewAttribute(pkcs11.CKA_PRIVATE, true),
		pkcs11.NewAttribute(pkcs11.CKA_MODIFIABLE, false),
		pkcs11.NewAttribute(pkcs11.CKA_LABEL, label),
		pkcs11.NewAttribute(pkcs11.CKA_APPLICATION, markApplication),
		pkcs11.NewAttribute(pkcs11.CKA_VALUE, m.text()),
	}
}

// readMark reads an object whose label is that of a successor's mark. It is not ok if it is something else, or spoilt.
func readMark(m module, s pkcs11.SessionHandle, class uint, successor string, handle pkcs11.ObjectHandle) (found mark, ok bool, err error) {
	which := uint(pkcs11.CKA_ID)
	if class == pkcs11.CKO_DATA {
		which = pkcs11.CKA_VALUE
		application, _, err := attribute(m, s, handle, pkcs11.CKA_APPLICATION)
		if err != nil || string(application) != markApplication {
			return mark{}, false, err
		}
	}
	text, _, err := attribute(m, s, handle, which)
	if err != nil {
		return mark{}, false, err
	}
	found, ok = parseMark(successor, string(text))
	found.handle = handle
	return found, ok, nil
}

// findMarks returns the marks of one birth: one if its key was adopted; two only if a token made one and denied it.
func findMarks(m module, s pkcs11.SessionHandle, successor, birth string) ([]mark, error) {
	var marks []mark
	for _, class := range markClasses {
		handles, err := findClass(m, s, class, markLabel(class, successor))
		if err != nil {
			return nil, err
		}
		for _, handle := range handles {
			found, ok, err := readMark(m, s, class, successor, handle)
			if err != nil {
				return nil, err
			}
			if ok && found.birth == birth {
				marks = append(marks, found)
			}
		}
	}
	return marks, nil
}

// isMark reports whether a secret key is the mark of a key change, and so no key.
func isMark(m module, s pkcs11.SessionHandle, handle pkcs11.ObjectHandle) (bool, error) {
	label, _, err := attribute(m, s, handle, pkcs11.CKA_LABEL)
	if err != nil {
		return false, err
	}
	successor, ok := markedBy(pkcs11.CKO_SECRET_KEY, string(label))
	if !ok {
		return false, nil
	}
	_, ok, err = readMark(m, s, pkcs11.CKO_SECRET_KEY, successor, handle)
	return ok, err
}

// A succession is what the token has of a key beside version 1.
type succession struct {
	labels []string          // of keys, lowest version first
	marks  map[string][]mark // by label, of which there may be no key any more
}

// adopted returns the mark of a birth, nil if it has none.
func (c *succession) adopted(label, birth string) *mark {
	for _, m := range c.marks[label] {
		if m.birth == birth {
			return &m
		}
	}
	return nil
}

// findSuccessions returns what there is of successors, by the label of the configuration, for each zone PIN key. Numbers can be missing, so each label
// of the token is looked at: once a generation.
func (h *HSM) findSuccessions(s pkcs11.SessionHandle) (map[string]*succession, error) {
	all := map[string]*succession{}
	for label, use := range h.uses {
		if use == PINIn || use == PINOut {
			all[label] = &succession{marks: map[string][]mark{}}
		}
	}
	if len(all) == 0 {
		return nil, nil
	}
	for _, class := range markClasses {
		handles, err := findClass(h.module, s, class, "")
		if err != nil {
			return nil, err
		}
		for _, handle := range handles {
			value, _, err := attribute(h.module, s, handle, pkcs11.CKA_LABEL)
			if err != nil {
				return nil, err
			}
			label, isMark := markedBy(class, string(value))
			if !isMark {
				label = string(value)
			}
			base, _, ok := successorOf(label)
			if c := all[base]; ok && c != nil {
				if err := c.add(h.module, s, class, label, isMark, handle); err != nil {
					return nil, err
				}
			}
		}
	}
	for _, c := range all {
		slices.SortFunc(c.labels, byVersion)
	}
	return all, nil
}

// add adds a successor, or what its label says is the mark of one.
func (c *succession) add(m module, s pkcs11.SessionHandle, class uint, label string, isMark bool, handle pkcs11.ObjectHandle) error {
	if !isMark {
		if !slices.Contains(c.labels, label) {
			c.labels = append(c.labels, label)
		}
		return nil
	}
	found, ok, err := readMark(m, s, class, label, handle)
	if ok {
		c.marks[label] = append(c.marks[label], found)
	}
	return err
}

func byVersion(a, b string) int {
	_, x, _ := successorOf(a)
	_, y, _ := successorOf(b)
	return x - y
}

// newest returns the label of the highest version that has a mark, "" if none has.
func (c *succession) newest() string {
	labels := slices.SortedFunc(maps.Keys(c.marks), byVersion)
	if len(labels) == 0 {
		return ""
	}
	return labels[len(labels)-1]
}
