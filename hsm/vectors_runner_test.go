package hsm_test

import (
	"encoding/json"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// runsOver lets a process of its own run TestVectors over a file of the text, and returns what it wrote and whether it passed.
func runsOver(t *testing.T, text []byte) (output string, passed bool) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "own.json")
	if err := os.WriteFile(path, text, 0o600); err != nil {
		t.Fatal(err)
	}
	command := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestVectors$", "-test.v", "-test.timeout=3m")
	command.Env = append(os.Environ(), "VECTORS_FILE="+path)
	out, err := command.CombinedOutput()
	return string(out), err == nil
}

// results are what the runs of each vector ended with: PASS, FAIL or SKIP, by its id.
func results(output string) map[string][]string {
	found := map[string][]string{}
	for _, line := range regexp.MustCompile(`(?m)^ *--- (PASS|FAIL|SKIP): TestVectors/[a-z]+/(\S+) `).FindAllStringSubmatch(output, -1) {
		found[line[2]] = append(found[line[2]], line[1])
	}
	return found
}

func TestAVectorFileOfWhichAPartWouldNotRunIsRefused(t *testing.T) {
	const good = `{"meta": {"counts": {"k": 1}, "total": 1}, "vectors": {"k": [{"id": "a", "op": "translate_policy", "in": {"fmt_in": "0", "fmt_out": "0", "pan_change": false}, "out": {"allowed": true}}]}}`
	if output, passed := runsOver(t, []byte(good)); !passed || !strings.Contains(output, "1 vectors: 1 pass, 0 fail, 0 are skipped everywhere") {
		t.Fatalf("the good file: %s", output)
	}
	for _, c := range []struct{ name, old, changed, want string }{
		{"no vectors", `[{"id"`, `[], "l": [{"id"`, "0 vectors of k, and meta counts 1"},
		{"nothing", good, "{}", "no vectors"},
		{"no JSON", good, good[:100], "unexpected end"},
		{"an op that nobody knows", "translate_policy", "translate_politely", `vector "a": nobody knows its op "translate_politely"`},
		{"no op", `"op"`, `"operation"`, `nobody knows its op ""`},
		{"an id that is not unique", `"vectors": {`, `"vectors": {"l": [{"id": "a", "op": "translate_policy", "out": {"allowed": true}}], `, `vector "a": its id is missing or not unique`},
		{"nothing expected", `"allowed": true`, ``, "it expects nothing"},
		{"fewer than are counted", `"total": 1`, `"total": 2`, "1 vectors, and meta counts 2"},
		{"a kind that is gone", `"k": 1`, `"k": 1, "l": 1`, "no vectors of l, and meta counts some"},
		{"something else expected", `"allowed": true`, `"allowed": true, "way": "x"`, "way is expected, and nothing was compared with it"},
		{"another value", `"allowed": true`, `"allowed": false`, "allowed: got true, want false"},
		{"a value of another type", `"allowed": true`, `"allowed": "true"`, "allowed: got true, want true"},
		{"no input", `"fmt_out": "0", `, ``, `the vector has no text "fmt_out"`},
	} {
		t.Run(c.name, func(t *testing.T) {
			text := strings.Replace(good, c.old, c.changed, 1)
			if text == good {
				t.Fatal("nothing was changed")
			}
			if output, passed := runsOver(t, []byte(text)); passed || !strings.Contains(output, c.want) {
				t.Errorf("passed: %t, want %q in\n%s", passed, c.want, output)
			}
		})
	}
}

// One expected value of each vector is changed by one digit, so that over all vectors of an operation each field is, and each run of it that passed must fail.
func TestEachWrongVectorIsFound(t *testing.T) {
	text, err := os.ReadFile(ownVectors)
	if err != nil {
		t.Fatal(err)
	}
	var file map[string]any
	if err := json.Unmarshal(text, &file); err != nil {
		t.Fatal(err)
	}
	before, passed := runsOver(t, text)
	if !passed {
		t.Fatalf("the file as it is: %s", before)
	}
	as, wrong, number := results(before), map[string]string{}, 0
	left := map[string]bool{}
	for _, line := range regexp.MustCompile(`(\S+): (\S+) is left out`).FindAllStringSubmatch(before, -1) {
		left[line[1]+" "+line[2]] = true
	}
	answers := map[string]map[string]any{} // of an operation, what an answer may look like
	each := func(f func(v map[string]any, id, op string, out map[string]any)) {
		kinds := file["vectors"].(map[string]any)
		for _, kind := range slices.Sorted(maps.Keys(kinds)) {
			for _, one := range kinds[kind].([]any) {
				v := one.(map[string]any)
				f(v, v["id"].(string), v["op"].(string), v["out"].(map[string]any))
			}
		}
	}
	each(func(_ map[string]any, _, op string, out map[string]any) {
		if _, refused := out["error"]; !refused && answers[op] == nil {
			answers[op] = maps.Clone(out)
		}
	})
	each(func(v map[string]any, id, op string, out map[string]any) {
		number++
		if _, refused := out["error"]; refused {
			if answers[op] != nil {
				v["out"], wrong[id] = answers[op], "an answer in the place of a refusal"
			}
			return
		}
		fields := slices.DeleteFunc(slices.Sorted(maps.Keys(out)), func(field string) bool { return left[id+" "+field] })
		if len(fields) == 0 {
			return
		}
		field := fields[number%len(fields)]
		out[field], wrong[id] = changedByOneDigit(out[field], number), field
	})
	if text, err = json.Marshal(file); err != nil {
		t.Fatal(err)
	}
	after, passed := runsOver(t, text)
	if passed {
		t.Error("it passes as a whole")
	}
	now := results(after)
	for id, what := range wrong {
		for i, was := range as[id] {
			if len(now[id]) != len(as[id]) || was == "PASS" && now[id][i] != "FAIL" || was == "SKIP" && now[id][i] != "SKIP" {
				t.Errorf("%s with another %s: it was %v, and is %v", id, what, as[id], now[id])
				break
			}
		}
	}
	if len(as) == 0 || len(wrong) == 0 {
		t.Error("nothing was seen")
	}
}

// changedByOneDigit changes a digit of a text, and turns a truth over. Of a hexadecimal digit it is the highest bit, because the lowest may be a parity bit of a
// TDES key.
func changedByOneDigit(value any, which int) any {
	if truth, is := value.(bool); is {
		return !truth
	}
	text := []byte(value.(string))
	at := which % len(text)
	const digits = "0123456789ABCDEF"
	if digit := strings.IndexByte(digits, text[at]); digit >= 0 {
		text[at] = digits[digit^8]
	} else {
		text[at] = '0'
	}
	return string(text)
}
