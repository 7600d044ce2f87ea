package hsm

import (
	"crypto/rand"
	"encoding/hex"
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

// A mark is what the value of a mark's object tells: that the successor of this birth was adopted, and what was before it.
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

// template returns the attributes of a mark's object.
func (m mark) template(label string) []*pkcs11.Attribute {
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

// readMark reads the object of that label. It is not ok if it is something else, or spoilt.
func readMark(m module, s pkcs11.SessionHandle, label string, handle pkcs11.ObjectHandle) (found mark, ok bool, err error) {
	application, _, err := attribute(m, s, handle, pkcs11.CKA_APPLICATION)
	if err != nil || string(application) != markApplication {
		return mark{}, false, err
	}
	value, _, err := attribute(m, s, handle, pkcs11.CKA_VALUE)
	if err != nil {
		return mark{}, false, err
	}
	found, ok = parseMark(label, string(value))
	found.handle = handle
	return found, ok, nil
}

// findMarks returns the marks of one birth: one if its key was adopted, more never.
func findMarks(m module, s pkcs11.SessionHandle, label, birth string) ([]mark, error) {
	handles, err := findClass(m, s, pkcs11.CKO_DATA, label)
	if err != nil {
		return nil, err
	}
	var marks []mark
	for _, handle := range handles {
		found, ok, err := readMark(m, s, label, handle)
		if err != nil {
			return nil, err
		}
		if ok && found.birth == birth {
			marks = append(marks, found)
		}
	}
	return marks, nil
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
	for _, class := range []uint{pkcs11.CKO_SECRET_KEY, pkcs11.CKO_DATA} {
		handles, err := findClass(h.module, s, class, "")
		if err != nil {
			return nil, err
		}
		for _, handle := range handles {
			value, _, err := attribute(h.module, s, handle, pkcs11.CKA_LABEL)
			if err != nil {
				return nil, err
			}
			label := string(value)
			base, _, ok := successorOf(label)
			if c := all[base]; ok && c != nil {
				if err := c.add(h.module, s, class, label, handle); err != nil {
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

func (c *succession) add(m module, s pkcs11.SessionHandle, class uint, label string, handle pkcs11.ObjectHandle) error {
	if class == pkcs11.CKO_SECRET_KEY {
		if !slices.Contains(c.labels, label) {
			c.labels = append(c.labels, label)
		}
		return nil
	}
	found, ok, err := readMark(m, s, label, handle)
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
