package specs

import (
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
)

// A Setting is one key of a dialect and its value, for people: "match.transaction" and "7, 11, 41". A field is one setting, and so are the
// values of a list.
type Setting struct{ Path, Value string }

// Settings are the keys of a dialect that say anything, in order of its file, but for its name, its version and its fields' descriptions. Message
// types have the MTI that they have inside of acquirerd.
func (d *Dialect) Settings() ([]Setting, error) {
	var node yaml.Node
	if err := node.Encode(d); err != nil {
		return nil, fmt.Errorf("reading dialect: %w", err)
	}
	w := &settings{dialect: d}
	w.walk("", &node)
	return w.list, nil
}

// messageType is the path of what a message type must carry.
var messageType = regexp.MustCompile(`^messages\.[0-9]+`)

// A Difference is a setting that two dialects do not have alike; "" is none.
type Difference struct{ Path, A, B string }

// Differences are the settings that two dialects do not have alike, in order of their files.
func Differences(a, b *Dialect) ([]Difference, error) {
	ofA, err := a.Settings()
	if err != nil {
		return nil, err
	}
	ofB, err := b.Settings()
	if err != nil {
		return nil, err
	}
	inA, inB := byPath(ofA), byPath(ofB)
	var differences []Difference
	add := func(d Difference) {
		// Of a message type that only one has, no more than that is said.
		if mti := messageType.FindString(d.Path); mti == d.Path || inA[mti] == inB[mti] {
			differences = append(differences, d)
		}
	}
	for _, s := range ofA {
		if inB[s.Path] != s.Value {
			add(Difference{s.Path, s.Value, inB[s.Path]})
		}
	}
	for _, s := range ofB {
		if _, has := inA[s.Path]; !has {
			add(Difference{s.Path, "", s.Value})
		}
	}
	return differences, nil
}

func byPath(list []Setting) map[string]string {
	values := make(map[string]string, len(list))
	for _, s := range list {
		values[s.Path] = s.Value
	}
	return values
}

// settings collects what a tree of YAML says.
type settings struct {
	dialect *Dialect
	list    []Setting
}

// fieldPath is that of a field, also of one of a message type.
var fieldPath = regexp.MustCompile(`(^|\.)fields\.\d+$`)

func (w *settings) walk(path string, node *yaml.Node) {
	switch {
	case path == "name", path == "version":
		return
	case fieldPath.MatchString(path):
		var f Field
		if node.Decode(&f) == nil {
			w.add(path, f.Type+" "+f.Extents()+" "+f.Wire())
		}
		return
	}
	switch node.Kind {
	case yaml.MappingNode:
		if strings.HasPrefix(path, "messages.") && strings.Count(path, ".") == 1 {
			w.add(path, "known") // also of one that demands nothing
		}
		for i := 0; i+1 < len(node.Content); i += 2 {
			key := node.Content[i].Value
			if own, ours := w.dialect.OwnMTI(key); ours && path == "messages" {
				key = own
			}
			w.walk(strings.TrimPrefix(path+"."+key, "."), node.Content[i+1])
		}
	case yaml.SequenceNode:
		var values []string
		for i, inner := range node.Content {
			if inner.Kind != yaml.ScalarNode {
				w.walk(fmt.Sprintf("%s[%d]", path, i), inner)
				continue
			}
			values = append(values, inner.Value)
		}
		w.add(path, strings.Join(values, ", "))
	case yaml.ScalarNode:
		w.add(path, node.Value)
	case yaml.DocumentNode, yaml.AliasNode: // an encoded value has neither
	}
}

func (w *settings) add(path, value string) {
	if value != "" {
		w.list = append(w.list, Setting{path, value})
	}
}

// MTIs are the message types of a dialect, in order.
func (d *Dialect) MTIs() []string { return slices.Sorted(maps.Keys(d.Messages)) }
