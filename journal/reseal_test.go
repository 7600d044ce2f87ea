package journal

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"acquirerd/card"
)

// under makes a seal under another key.
func under(key string, old Seal) Resealing {
	return Resealing{old, card.SealedPAN{KeyID: key, Nonce: []byte("210987654321"), Ciphertext: append([]byte("new "), old.Sealed.Ciphertext...)}}
}

// sealed reads all that is sealed under another key.
func (r *running) sealed(key string) (all []Seal) {
	r.t.Helper()
	for _, part := range SealedParts {
		for after, more := int64(0), true; more; {
			var page []Seal
			var err error
			page, after, more, err = r.SealsElsewhere(context.Background(), key, part, after, 2)
			if err != nil {
				r.t.Fatal(err)
			}
			all = append(all, page...)
		}
	}
	return all
}

func (r *running) counted() map[string]int64 {
	r.t.Helper()
	counts, err := r.SealedUnder(context.Background())
	if err != nil {
		r.t.Fatal(err)
	}
	return counts
}

func TestSealsAreReplacedByOnesUnderAnotherKey(t *testing.T) {
	path := create(t)
	r := start(t, Config{Path: path})
	if got := r.counted(); len(got) != 0 {
		t.Errorf("an empty journal: %v", got)
	}
	var tickets []*Ticket
	for range 5 {
		tickets = append(tickets, r.begin(""))
	}
	accepted := r.accept("advice") // with a rest
	advising := advisingOf("700001", "")
	advising.PAN = card.SealedPAN{KeyID: "pan-seal-1", Nonce: []byte("123456789012"), Ciphertext: []byte("sealed PAN")}
	r.keep(advising)
	r.finish(tickets[0], Outcome{Kind: Approved, ResponseCode: "00"})
	r.finish(tickets[1], Outcome{Kind: Unknown})

	all := r.sealed("pan-seal-2")
	var parts []string
	for _, s := range all {
		parts = append(parts, fmt.Sprint(s.Part, " ", s.ID))
		if s.Sealed.KeyID != "pan-seal-1" || len(s.Sealed.Nonce) != 12 || len(s.Sealed.Ciphertext) == 0 {
			t.Errorf("%+v", s)
		}
	}
	want := []string{"transaction PAN 1", "transaction PAN 2", "transaction PAN 3", "transaction PAN 4", "transaction PAN 5", "transaction PAN 6",
		"transaction rest 6", "advice PAN 1"}
	if accepted != 6 || !slices.Equal(parts, want) {
		t.Fatalf("got %v, want %v", parts, want)
	}
	if got := r.sealed("pan-seal-1"); len(got) != 0 {
		t.Errorf("elsewhere than under their own key: %v", got)
	}
	if got := r.counted(); !maps.Equal(got, map[string]int64{"pan-seal-1": 8}) {
		t.Errorf("counted %v", got)
	}
	others := "id, upstream, endpoint, mti, stan, rrn, amount, masked_pan, pan_token, original, begun_at, outcome, finished_at"
	before := slices.Concat(dump(t, path, "transactions", others), dump(t, path, "events", all1), dump(t, path, "owed", owed1))

	list := []Resealing{under("pan-seal-2", all[0]), under("pan-seal-2", all[6]), under("pan-seal-2", all[7])}
	if n, err := r.Reseal(t.Context(), list); n != 3 || err != nil {
		t.Errorf("replaced %d, %v", n, err)
	}
	if n, err := r.Reseal(t.Context(), list); n != 0 || err != nil {
		t.Errorf("again: replaced %d, %v", n, err)
	}
	if got := r.counted(); !maps.Equal(got, map[string]int64{"pan-seal-1": 5, "pan-seal-2": 3}) {
		t.Errorf("counted %v", got)
	}
	if got := r.sealed("pan-seal-2"); len(got) != 5 {
		t.Errorf("left %v", got)
	}
	now, err := r.reader.Sealed(t.Context(), 1)
	if err != nil || now.KeyID != "pan-seal-2" || !bytes.Equal(now.Ciphertext, list[0].New.Ciphertext) || !bytes.Equal(now.Nonce, list[0].New.Nonce) {
		t.Errorf("%+v, %v", now, err)
	}
	if after := slices.Concat(dump(t, path, "transactions", others), dump(t, path, "events", all1), dump(t, path, "owed", owed1)); !slices.Equal(before, after) {
		t.Error("something else has changed")
	}
	o, err := r.Owing(t.Context(), 1) // the advice
	if err != nil || o.PAN.KeyID != "pan-seal-1" || card.SealedPAN(o.Rest).KeyID != "pan-seal-2" {
		t.Errorf("%v, %v, %v", o.PAN.KeyID, card.SealedPAN(o.Rest).KeyID, err)
	}
	// It is durable.
	r = r.reopened(path)
	if got := r.counted(); !maps.Equal(got, map[string]int64{"pan-seal-1": 5, "pan-seal-2": 3}) {
		t.Errorf("after a start: %v", got)
	}
}

func TestASealThatIsNotAsItWasReadStays(t *testing.T) {
	r := start(t, Config{Path: create(t)})
	r.begin("")
	old := r.sealed("")[0]
	for name, changed := range map[string]func(*Seal){
		"another ID":         func(s *Seal) { s.ID = 4711 },
		"another part":       func(s *Seal) { s.Part = TransactionRest },
		"another key":        func(s *Seal) { s.Sealed.KeyID = "pan-seal-0" },
		"another nonce":      func(s *Seal) { s.Sealed.Nonce = []byte("000000000000") },
		"another ciphertext": func(s *Seal) { s.Sealed.Ciphertext = []byte("other") },
	} {
		t.Run(name, func(t *testing.T) {
			other := old
			changed(&other)
			if n, err := r.Reseal(t.Context(), []Resealing{under("pan-seal-2", other)}); n != 0 || err != nil {
				t.Errorf("replaced %d, %v", n, err)
			}
			if got := r.counted(); !maps.Equal(got, map[string]int64{"pan-seal-1": 1}) {
				t.Errorf("counted %v", got)
			}
		})
	}
	for name, one := range map[string]Resealing{
		"no key":          {old, card.SealedPAN{Nonce: []byte("123456789012"), Ciphertext: []byte("x")}},
		"no nonce":        {old, card.SealedPAN{KeyID: "pan-seal-2", Ciphertext: []byte("x")}},
		"no ciphertext":   {old, card.SealedPAN{KeyID: "pan-seal-2", Nonce: []byte("123456789012")}},
		"the old key":     {old, card.SealedPAN{KeyID: "pan-seal-1", Nonce: []byte("210987654321"), Ciphertext: []byte("x")}},
		"the same secret": {old, card.SealedPAN{KeyID: "pan-seal-2", Nonce: []byte("210987654321"), Ciphertext: old.Sealed.Ciphertext}},
	} {
		if n, err := r.Reseal(t.Context(), []Resealing{one}); n != 0 || err == nil {
			t.Errorf("%s: replaced %d, %v", name, n, err)
		}
	}
	if _, err := r.Reseal(t.Context(), make([]Resealing, mostResealed+1)); err == nil {
		t.Error("too many were taken")
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := r.Reseal(ended, []Resealing{under("pan-seal-2", old)}); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}

// A journal has more IDs than one query looks at, and gaps among them.
func TestSealsAreFoundBeyondAWindow(t *testing.T) {
	path := create(t)
	r := start(t, Config{Path: path})
	r.begin("")
	r.stop()
	for _, id := range []int{sealWindow, sealWindow + 1, 5 * sealWindow, 5*sealWindow + 1} {
		change(t, path, fmt.Sprintf(`CREATE TEMP TABLE t AS SELECT * FROM transactions WHERE id = 1; UPDATE t SET id = %d, upstream_key = NULL;
			INSERT INTO transactions SELECT * FROM t; DROP TABLE t`, id))
	}
	r = start(t, Config{Path: path})
	var ids []int64
	for _, s := range r.sealed("pan-seal-2") {
		ids = append(ids, s.ID)
	}
	if !slices.Equal(ids, []int64{1, sealWindow, sealWindow + 1, 5 * sealWindow, 5*sealWindow + 1}) {
		t.Errorf("found %v", ids)
	}
	if got := r.counted(); !maps.Equal(got, map[string]int64{"pan-seal-1": 5}) {
		t.Errorf("counted %v", got)
	}
	if _, err := r.reader.Sealed(t.Context(), 2); !errors.Is(err, ErrNoTransaction) {
		t.Errorf("got %v", err)
	}
}

func TestTheFileAllowsNoOtherChangeOfARecord(t *testing.T) {
	path := create(t)
	r := start(t, Config{Path: path})
	r.accept("advice") // with a rest
	r.finish(r.begin(""), Outcome{Kind: Approved, ResponseCode: "00"})
	advising := advisingOf("700001", "")
	advising.PAN = card.SealedPAN{KeyID: "pan-seal-1", Nonce: []byte("123456789012"), Ciphertext: []byte("sealed PAN")}
	r.keep(advising)
	r.stop()
	columns := func(table string) []string {
		var names []string
		for _, quoted := range dump(t, path, "pragma_table_info('"+table+"')", "name") {
			names = append(names, strings.Trim(quoted, "'"))
		}
		return names
	}
	refused := func(t *testing.T, script string) {
		t.Helper()
		conn, err := openConnection(path)
		if err != nil {
			t.Fatal(err)
		}
		err = conn.execute("BEGIN; " + script)
		if err == nil || !strings.Contains(err.Error(), ": ") || strings.Contains(err.Error(), "no such") {
			t.Errorf("%s: %v", script, err)
		}
		if err := conn.close(); err != nil {
			t.Fatal(err)
		}
	}
	// Of a transaction these are written when it ends.
	ending := []string{"outcome", "response_code", "authorization_id", "approved_amount", "reason", "answer", "finished_at"}
	for table, free := range map[string][]string{"transactions": ending, "events": nil, "processor_advices": nil} {
		names := columns(table)
		if len(names) < 6 {
			t.Fatalf("%s has the columns %v", table, names)
		}
		for _, name := range names {
			if slices.Contains(free, name) {
				continue
			}
			t.Run(table+" "+name, func(t *testing.T) { refused(t, "UPDATE "+table+" SET "+name+" = "+name) })
		}
	}
	for name, script := range map[string]string{
		"a seal under its own key":       "UPDATE transactions SET pan_ciphertext = x'00', pan_nonce = x'00'",
		"a seal without a key":           "UPDATE transactions SET pan_key_id = NULL, pan_nonce = NULL, pan_ciphertext = NULL",
		"another key for the same":       "UPDATE transactions SET pan_key_id = 'x'",
		"a seal that was not there":      "UPDATE transactions SET rest_key_id = 'x', rest_nonce = x'00', rest_ciphertext = x'00' WHERE id = 2",
		"a rest without a key":           "UPDATE transactions SET rest_key_id = NULL, rest_nonce = NULL, rest_ciphertext = NULL WHERE id = 1",
		"another key for the same rest":  "UPDATE transactions SET rest_key_id = 'x' WHERE id = 1",
		"a token":                        "UPDATE transactions SET pan_key_id = 'x', pan_nonce = x'00', pan_ciphertext = x'00', pan_token = zeroblob(32)",
		"an advice's seal without a key": "UPDATE processor_advices SET pan_key_id = NULL, pan_nonce = NULL, pan_ciphertext = NULL",
		"an advice's other key":          "UPDATE processor_advices SET pan_key_id = 'x'",
	} {
		t.Run(name, func(t *testing.T) { refused(t, script) })
	}
	change(t, path, "UPDATE transactions SET pan_key_id = 'x', pan_nonce = x'00', pan_ciphertext = x'00'")
	change(t, path, "UPDATE transactions SET rest_key_id = 'x', rest_nonce = x'00', rest_ciphertext = x'00' WHERE id = 1")
	change(t, path, "UPDATE processor_advices SET pan_key_id = 'x', pan_nonce = x'00', pan_ciphertext = x'00'")
}

func TestACrashLeavesAllOrNoneOfABatchOfSeals(t *testing.T) {
	for name, committed := range map[string]bool{"before the commit": false, "after it": true} {
		t.Run(name, func(t *testing.T) {
			path := create(t)
			r := start(t, Config{Path: path})
			r.begin("")
			r.begin("")
			r.stop()
			j := openJournal(t, Config{Path: path})
			seals, _, _, err := j.SealsElsewhere(t.Context(), "pan-seal-2", TransactionPAN, 0, 10)
			if err != nil || len(seals) != 2 {
				t.Fatal(seals, err)
			}
			j.writer.fault = func(after bool) error {
				if after == committed {
					return errors.New("power loss")
				}
				return nil
			}
			ended := make(chan error, 1)
			go func() { ended <- j.Run(context.Background()) }()
			list := []Resealing{under("pan-seal-2", seals[0]), under("pan-seal-2", seals[1])}
			if n, err := j.Reseal(t.Context(), list); !errors.Is(err, ErrFailed) || n != 0 {
				t.Errorf("replaced %d, %v", n, err)
			}
			if err := <-ended; !errors.Is(err, ErrFailed) {
				t.Errorf("Run: %v", err)
			}
			if err := j.Close(); err != nil {
				t.Fatal(err)
			}
			want := map[string]int64{"pan-seal-1": 2}
			if committed {
				want = map[string]int64{"pan-seal-2": 2}
			}
			if got := start(t, Config{Path: path}).counted(); !maps.Equal(got, want) {
				t.Errorf("sealed under %v, want %v", got, want)
			}
		})
	}
}
