package hsm_test

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"

	"acquirerd/hsm/hsmtest"
)

// TestVectors does what the vectors say and compares: one subtest a vector for each place where it can be done, which is a module, or "rules" for what
// needs none. The file is that of VECTORS_FILE, by default testdata/vectors.json, whose format is told in its meta.
//
//	go test -run Vectors -v ./hsm/...                      all of them, and at the end how many pass, and why the others are skipped
//	go test -run Vectors/softhsm/kcv -v ./hsm/...          those of a kind on a module
//	VECTORS_FILE=/path/own.json go test -run Vectors ./hsm/...
//
// A family of operations has a file of its own, which calls registerVectors.
func TestVectors(t *testing.T) {
	file, err := readVectors(vectorsFile())
	if err != nil {
		t.Fatal(err)
	}
	var tally tally
	t.Run("rules", func(t *testing.T) { runVectors(t, file, nil, &tally) })
	for _, module := range vectorModules {
		t.Run(module.name, func(t *testing.T) {
			on := &vectorToken{Module: module.name}
			if slices.ContainsFunc(file, func(v vector) bool { return vectorOps[v.Op].needsToken }) {
				on.Token = module.make(t)
			}
			runVectors(t, file, on, &tally)
		})
	}
	t.Log(tally.summary())
}

// vectorModules are the modules that vectors run on.
var vectorModules = []struct {
	name string
	make func(testing.TB) *hsmtest.Token
}{
	{"softhsm", hsmtest.New},
	{"nss", hsmtest.NewNSS},
}

// A vectorToken is where a vector runs: an empty token that all vectors of a run on its module share, so that labels must be the vector's own.
type vectorToken struct {
	*hsmtest.Token
	Module string // "softhsm" or "nss"
}

// A vectorOp does one vector and compares by its want… methods. on is nil for an operation that needs no token. Where a module, or a rule of ours, cannot do it,
// it calls t.Skip with the reason.
type vectorOp func(t *testing.T, on *vectorToken, v *vector)

var vectorOps = map[string]struct {
	needsToken bool
	run        vectorOp
}{}

// registerVectors makes an operation known. It is called by the init of a family's file.
func registerVectors(op string, needsToken bool, run vectorOp) {
	if _, twice := vectorOps[op]; twice {
		panic("two ways to do the vectors of " + op)
	}
	vectorOps[op] = struct {
		needsToken bool
		run        vectorOp
	}{needsToken, run}
}

// awaitedVectors are operations whose family is not there yet, and its file.
var awaitedVectors = map[string]string{}

// A vector is one of the file.
type vector struct {
	ID      string          `json:"id"`
	Op      string          `json:"op"`
	In      map[string]any  `json:"in"`
	Out     map[string]any  `json:"out"`
	Source  string          `json:"source"`
	Note    string          `json:"note"`
	settled map[string]bool // fields of Out that were compared, or left out for a reason
	skipped string          // the reason
	left    []string        // fields that were left out, with the reason
}

// ownVectors are the project's.
const ownVectors = "../testdata/vectors.json"

func vectorsFile() string {
	if path := os.Getenv("VECTORS_FILE"); path != "" {
		return path
	}
	return ownVectors
}

// readVectors reads all vectors of a file. It refuses one of which a part may be missing: without a vector, with fewer than its meta counts, or with one of
// which nobody would know whether it ran.
func readVectors(path string) ([]vector, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var file struct {
		Meta struct {
			Counts map[string]int `json:"counts"`
			Total  int            `json:"total"`
		} `json:"meta"`
		Vectors map[string][]vector `json:"vectors"`
	}
	if err := json.Unmarshal(text, &file); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	var all []vector
	var faults []error
	ids := map[string]bool{}
	for _, kind := range slices.Sorted(maps.Keys(file.Vectors)) {
		of := file.Vectors[kind]
		if want, counted := file.Meta.Counts[kind]; counted && want != len(of) {
			faults = append(faults, fmt.Errorf("%d vectors of %s, and meta counts %d", len(of), kind, want))
		}
		for _, v := range of {
			if v.ID == "" || ids[v.ID] || len(v.Out) == 0 {
				faults = append(faults, fmt.Errorf("vector %q: its id is missing or not unique, or it expects nothing", v.ID))
			}
			if _, known := vectorOps[v.Op]; !known && awaitedVectors[v.Op] == "" {
				faults = append(faults, fmt.Errorf("vector %q: nobody knows its op %q", v.ID, v.Op))
			}
			ids[v.ID] = true
			all = append(all, v)
		}
	}
	for kind := range file.Meta.Counts {
		if _, there := file.Vectors[kind]; !there {
			faults = append(faults, fmt.Errorf("no vectors of %s, and meta counts some", kind))
		}
	}
	if file.Meta.Total != 0 && file.Meta.Total != len(all) {
		faults = append(faults, fmt.Errorf("%d vectors, and meta counts %d", len(all), file.Meta.Total))
	}
	if len(all) == 0 {
		faults = append(faults, errors.New("no vectors"))
	}
	return all, errors.Join(faults...)
}

// runVectors runs those that belong on a module, or with nil those that need none.
func runVectors(t *testing.T, file []vector, on *vectorToken, tally *tally) {
	place := "rules"
	if on != nil {
		place = on.Module
	}
	for _, v := range file {
		op, known := vectorOps[v.Op]
		if known && op.needsToken != (on != nil) || !known && on != nil {
			continue
		}
		t.Run(v.ID, func(t *testing.T) {
			v.settled = map[string]bool{}
			defer func() { tally.add(t, place, &v) }()
			if !known {
				v.skip(t, awaitedVectors[v.Op]+" is not there yet")
			}
			op.run(t, on, &v)
			for field := range v.Out {
				if !v.settled[field] {
					t.Errorf("%s is expected, and nothing was compared with it", field)
				}
			}
		})
	}
}

// skip leaves a vector out at this place, for a reason that the summary tells. It does not return.
func (v *vector) skip(t *testing.T, reason string) {
	t.Helper()
	v.skipped = reason
	t.Skip(reason)
}

// bytes is an input in hexadecimal digits.
func (v *vector) bytes(t *testing.T, field string) []byte {
	t.Helper()
	value, err := hex.DecodeString(v.text(t, field))
	if err != nil {
		t.Fatalf("%s: %v", field, err)
	}
	return value
}

// text is an input as it stands in the file.
func (v *vector) text(t *testing.T, field string) string {
	t.Helper()
	text, is := v.In[field].(string)
	if !is {
		t.Fatalf("the vector has no text %q", field)
	}
	return text
}

// optional is an input that need not be there.
func (v *vector) optional(t *testing.T, field string) string {
	t.Helper()
	if !v.has(field) {
		return ""
	}
	return v.text(t, field)
}

// flag is an input that is true or false.
func (v *vector) flag(t *testing.T, field string) bool {
	t.Helper()
	value, is := v.In[field].(bool)
	if !is {
		t.Fatalf("the vector has no flag %q", field)
	}
	return value
}

// has reports whether there is an input, and expects whether there is an output.
func (v *vector) has(field string) bool     { _, has := v.In[field]; return has }
func (v *vector) expects(field string) bool { _, has := v.Out[field]; return has }

// want compares bytes with what is expected in hexadecimal digits, wantText a text, and wantFlag true or false.
func (v *vector) want(t *testing.T, field string, got []byte) {
	t.Helper()
	want, is := v.Out[field].(string)
	v.settled[field] = true
	value, err := hex.DecodeString(want)
	if !is || err != nil || len(value) == 0 || !bytes.Equal(value, got) {
		t.Errorf("%s: got %X, want %v", field, got, v.Out[field])
	}
}

func (v *vector) wantText(t *testing.T, field, got string) {
	t.Helper()
	v.settled[field] = true
	if want, is := v.Out[field].(string); !is || got != want {
		t.Errorf("%s: got %q, want %v", field, got, v.Out[field])
	}
}

func (v *vector) wantFlag(t *testing.T, field string, got bool) {
	t.Helper()
	v.settled[field] = true
	if want, is := v.Out[field].(bool); !is || got != want {
		t.Errorf("%s: got %t, want %v", field, got, v.Out[field])
	}
}

// refused says that an error came, or nil. It reports whether there is nothing else to compare: the vector expects a refusal (its text is a description), or
// there was one that it does not expect.
func (v *vector) refused(t *testing.T, err error) (over bool) {
	t.Helper()
	if v.expects("error") {
		v.settled["error"] = true
		if err == nil {
			t.Errorf("it is not refused, and should be: %v", v.Out["error"])
		}
		return true
	}
	if err != nil {
		t.Fatal(err)
	}
	return false
}

// leave says that an expected value cannot be had here, and why; the others are compared.
func (v *vector) leave(t *testing.T, field, reason string) {
	t.Helper()
	v.settled[field] = true
	v.left = append(v.left, field+": "+reason)
	t.Logf("%s: %s is left out: %s", v.ID, field, reason)
}

// A tally counts what became of vectors.
type tally struct {
	results map[string]map[string]string // "pass", "fail" or "skip" by vector and place
	reasons map[string][]string          // vectors by place and why they, or a part of them, were left out
}

func (c *tally) add(t *testing.T, place string, v *vector) {
	t.Helper()
	if c.results == nil {
		c.results, c.reasons = map[string]map[string]string{}, map[string][]string{}
	}
	if c.results[v.ID] == nil {
		c.results[v.ID] = map[string]string{}
	}
	if t.Skipped() && v.skipped == "" {
		t.Error("it is skipped without a reason that the summary could tell: use skip")
	}
	switch {
	case t.Failed():
		c.results[v.ID][place] = "fail"
	case t.Skipped():
		c.results[v.ID][place] = "skip"
		c.reasons[place+": "+v.skipped] = append(c.reasons[place+": "+v.skipped], v.ID)
	default:
		c.results[v.ID][place] = "pass"
	}
	for _, reason := range v.left {
		c.reasons[place+": without "+reason] = append(c.reasons[place+": without "+reason], v.ID)
	}
}

// summary tells how many vectors passed somewhere and failed nowhere, and what was left out where and why.
func (c *tally) summary() string {
	count, places := map[string]int{}, map[string]map[string]int{}
	for _, results := range c.results {
		all := slices.Sorted(maps.Values(results))
		switch {
		case slices.Contains(all, "fail"):
			count["fail"]++
		case slices.Contains(all, "pass"):
			count["pass"]++
		default:
			count["skip"]++
		}
		for place, result := range results {
			if places[place] == nil {
				places[place] = map[string]int{}
			}
			places[place][result]++
		}
	}
	text := fmt.Sprintf("%d vectors: %d pass, %d fail, %d are skipped everywhere", len(c.results), count["pass"], count["fail"], count["skip"])
	for _, place := range slices.Sorted(maps.Keys(places)) {
		text += fmt.Sprintf("\n%s: %d pass, %d fail, %d skipped", place, places[place]["pass"], places[place]["fail"], places[place]["skip"])
	}
	for _, reason := range slices.Sorted(maps.Keys(c.reasons)) {
		text += fmt.Sprintf("\n%s (%d: %s)", reason, len(c.reasons[reason]), strings.Join(c.reasons[reason], ", "))
	}
	return text
}
