package acquirer_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"acquirerd/acquirer"
	"acquirerd/conn"
	"acquirerd/hsm"
	"acquirerd/messages"
	"acquirerd/specs"
)

// inAnswer is iso87-ascii of a bank whose answer to a key request brings the key.
var inAnswer = sync.OnceValues(func() (*messages.Codec, error) {
	text, err := os.ReadFile("../specs/iso87-ascii.yaml")
	if err != nil {
		return nil, err
	}
	dialect, err := specs.Parse(bytes.Replace(text, []byte("check_value: 3 }"), []byte("check_value: 3, in_answer: true }"), 1))
	return messages.NewCodec(dialect), err
})

// laterKey is the key that the bank gives after newKey; its check value is its first three bytes.
const laterKey = "FEDCBA9876543210FEDCBA9876543210"

// answered is the bank's answer to a key request, with a key in it if there is one.
func answered(code, data string) *messages.Message {
	m := messages.NewAnswer(management("161", "700009"), code)
	m.SetSensitive(messages.AdditionalData, data)
	return m
}

// A key is asked for, comes by a key change, before the answer or after it, and is in use when the command ends.
func TestAKeyIsAskedForAndTaken(t *testing.T) {
	for name, script := range map[string]func(w *world) *messages.Message{
		"after the answer": func(w *world) *messages.Message {
			time.AfterFunc(3*time.Second, func() { w.demand(keyChange(newKey+"012345", "700001")) })
			return answered("00", "")
		},
		"before the answer": func(w *world) *messages.Message {
			w.demand(keyChange(newKey+"012345", "700001"))
			return answered("00", "")
		},
		"with a repeat of it": func(w *world) *messages.Message {
			w.demand(keyChange(newKey+"012345", "700001"))
			w.demand(keyChange(newKey+"012345", "700001"))
			return answered("00", "")
		},
		"in the answer": func(w *world) *messages.Message { return answered("00", newKey+"012345") },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				keys := &keyring{t: t, slow: time.Second}
				w.keys = keys
				if name == "in the answer" {
					dialect, err := inAnswer()
					if err != nil {
						t.Fatal(err)
					}
					w.dialect = dialect
				}
				w.bank.askedKey = func() (*messages.Message, error) { return script(w), nil }
				w.start()
				got, err := w.desk.RotateKey(t.Context(), "bank")
				if want := (acquirer.KeyRotation{Key: "zpk-bank", Version: 2, KCV: newKey[:6], Before: "000000"}); err != nil || got != want {
					t.Errorf("got %+v, %v", got, err)
				}
				if keys.inUse() != "zpk-bank "+newKey {
					t.Errorf("in use is %s", keys.inUse())
				}
				if w.metric("acquirerd_key_requests_total", "bank", "changed") != 1 {
					t.Error("not counted")
				}
				w.stop()
			})
		})
	}
}

// Why no key comes: it is said, nothing is changed, and the next request is as good as the first.
func TestAKeyThatDoesNotCome(t *testing.T) {
	silent := func(*world) (*messages.Message, error) { <-time.After(30 * time.Second); return nil, conn.ErrTimeout }
	for name, test := range map[string]struct {
		prepare func(w *world, k *keyring)
		script  func(w *world) (*messages.Message, error)
		dialect func() (*messages.Codec, error)
		want    error
		result  string
		alarms  float64
	}{
		"no key is configured": {prepare: func(w *world, _ *keyring) { w.keys = nil }, want: acquirer.ErrKeyRequest, result: "refused"},
		"the key has no zmk":   {prepare: func(_ *world, k *keyring) { k.unchangeable = true }, want: acquirer.ErrKeyRequest, result: "refused"},
		"out of service":       {prepare: func(w *world, _ *keyring) { w.bank.mend(false) }, want: conn.ErrNotSent, result: "refused"},
		"the dialect has none": {dialect: load("visa-like"), want: acquirer.ErrKeyRequest, result: "refused"},
		"it is declined": {script: func(*world) (*messages.Message, error) { return answered("12", ""), nil },
			want: acquirer.ErrKeyDeclined, result: "declined"},
		"it is not answered": {script: silent, want: acquirer.ErrKeyUnconfirmed, result: "unconfirmed"},
		"no key follows": {script: func(*world) (*messages.Message, error) { return answered("00", ""), nil },
			want: acquirer.ErrKeyUnconfirmed, result: "unconfirmed"},
		"another key than its check value's": {script: func(w *world) (*messages.Message, error) {
			w.demand(keyChange(newKey+"543210", "700001"))
			return answered("00", ""), nil
		}, want: acquirer.ErrKeyNotTaken, result: "not_taken", alarms: 1},
		"a key change without a key": {script: func(w *world) (*messages.Message, error) {
			w.demand(keyChange(newKey, "700001"))
			return answered("00", ""), nil
		}, want: acquirer.ErrKeyNotTaken, result: "not_taken", alarms: 1},
		"an answer without its key": {dialect: inAnswer, script: func(*world) (*messages.Message, error) { return answered("00", newKey), nil },
			want: acquirer.ErrKeyNotTaken, result: "not_taken", alarms: 1},
		"an answer that cannot be read": {dialect: inAnswer, script: func(*world) (*messages.Message, error) { return nil, conn.ErrUndecodable },
			want: acquirer.ErrKeyUnconfirmed, result: "unconfirmed", alarms: 1},
		"an answer to something else": {dialect: inAnswer, script: func(*world) (*messages.Message, error) { return nil, conn.ErrMismatch },
			want: acquirer.ErrKeyUnconfirmed, result: "unconfirmed", alarms: 1},
		"an answer that is not proven": {dialect: inAnswer, script: func(*world) (*messages.Message, error) { return nil, conn.ErrMAC },
			want: acquirer.ErrKeyUnconfirmed, result: "unconfirmed", alarms: 1},
		"an answer that cannot be read, and would bring no key": {script: func(*world) (*messages.Message, error) { return nil, conn.ErrUndecodable },
			want: acquirer.ErrKeyUnconfirmed, result: "unconfirmed"},
		"the key that is in use": {prepare: func(_ *world, k *keyring) { k.keys = []string{"zpk-bank " + newKey} },
			script: func(w *world) (*messages.Message, error) {
				w.demand(keyChange(newKey+"012345", "700001"))
				return answered("00", ""), nil
			}, want: acquirer.ErrKeyNotTaken, result: "not_taken"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				keys := &keyring{t: t}
				w.keys = keys
				if test.dialect != nil {
					dialect, err := test.dialect()
					if err != nil {
						t.Fatal(err)
					}
					w.dialect = dialect
				}
				if test.script != nil {
					w.bank.askedKey = func() (*messages.Message, error) { return test.script(w) }
				}
				if test.prepare != nil {
					test.prepare(w, keys)
				}
				w.start()
				before := keys.inUse()
				for n := range 2 {
					began := time.Now()
					if _, err := w.desk.RotateKey(t.Context(), "bank"); !errors.Is(err, test.want) {
						t.Errorf("got %v, want %v", err, test.want)
					}
					if took := time.Since(began); took > 30*time.Second {
						t.Errorf("took %v", took)
					}
					if got := w.metric("acquirerd_key_requests_total", "bank", test.result); got != float64(n+1) {
						t.Errorf("%v counted as %s", got, test.result)
					}
				}
				if keys.inUse() != before {
					t.Errorf("in use is %s", keys.inUse())
				}
				if got := w.metric("acquirerd_demand_alarms_total", "bank", "key_not_changed"); got != 2*test.alarms {
					t.Errorf("%v alarms", got)
				}
				w.stop()
			})
		})
	}
}

func TestOneKeyIsAskedForAtATime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.keys = &keyring{t: t}
		asked := 0
		w.bank.askedKey = func() (*messages.Message, error) {
			asked++
			<-time.After(5 * time.Second)
			return answered("12", ""), nil
		}
		w.start()
		first := make(chan error, 1)
		go func() { _, err := w.desk.RotateKey(t.Context(), "bank"); first <- err }()
		synctest.Wait()
		if _, err := w.desk.RotateKey(t.Context(), "bank"); !errors.Is(err, acquirer.ErrKeyPending) {
			t.Errorf("got %v", err)
		}
		if err := <-first; !errors.Is(err, acquirer.ErrKeyDeclined) || asked != 1 {
			t.Errorf("got %v; asked %d times", err, asked)
		}
		if _, err := w.desk.RotateKey(t.Context(), "nobody"); !errors.Is(err, acquirer.ErrKeyRequest) {
			t.Errorf("of nobody: %v", err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		w.bank.askedKey = func() (*messages.Message, error) { return answered("00", ""), nil }
		began := time.Now()
		if _, err := w.desk.RotateKey(ctx, "bank"); !errors.Is(err, acquirer.ErrKeyUnconfirmed) || time.Since(began) != time.Second {
			t.Errorf("after %v: %v", time.Since(began), err)
		}
		w.stop()
	})
}

// Where the answer brings the key, the processor enciphers under it from then on: who asked may have gone meanwhile, and the key is taken.
func TestAKeyInTheAnswerIsTakenAfterWhoAskedHasGone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		keys := &keyring{t: t}
		w.keys = keys
		dialect, err := inAnswer()
		if err != nil {
			t.Fatal(err)
		}
		w.dialect = dialect
		w.bank.askedKey = func() (*messages.Message, error) {
			select {
			case <-time.After(5 * time.Second):
				return answered("00", newKey+"012345"), nil
			case <-w.bank.askedWith.Done():
				return nil, conn.ErrTimeout
			}
		}
		w.start()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		_, _ = w.desk.RotateKey(ctx, "bank")
		if keys.inUse() != "zpk-bank "+newKey {
			t.Errorf("in use is %s, and the bank has another", keys.inUse())
		}
		w.stop()
	})
}

// A key request times out, and its answer comes: the bank enciphers under its key. It is taken as one in time, or a person is told. What is no answer of
// a request of ours brings no key.
func TestALateAnswerBringsAKey(t *testing.T) {
	const old = "zpk-bank 89ABCDEF0123456789ABCDEF01234567"
	late := func(m *messages.Message, fault error) func(w *world, k *keyring, asked time.Time) {
		return func(w *world, _ *keyring, asked time.Time) {
			w.desk.Inbound(w.t.Context(), "bank", conn.Unasked{Message: m, Arrival: conn.Late, Fault: fault, KeyAsked: asked})
		}
	}
	for name, test := range map[string]struct {
		comes  func(w *world, k *keyring, asked time.Time)
		inUse  string
		alarms float64
	}{
		"it is whole":              {comes: late(answered("00", newKey+"012345"), nil), inUse: "zpk-bank " + newKey},
		"it declines":              {comes: late(answered("12", newKey+"012345"), nil), inUse: old},
		"it cannot be read":        {comes: late(answered("00", newKey+"012345"), conn.ErrUndecodable), inUse: old, alarms: 1},
		"it is not proven":         {comes: late(answered("00", newKey+"012345"), conn.ErrMAC), inUse: old, alarms: 1},
		"it has no key":            {comes: late(answered("00", newKey), nil), inUse: old, alarms: 1},
		"its check value is wrong": {comes: late(answered("00", newKey+"543210"), nil), inUse: old, alarms: 1},
		"the HSM cannot take it": {inUse: old, alarms: 1, comes: func(w *world, k *keyring, asked time.Time) {
			k.err = hsm.ErrUnavailable
			late(answered("00", newKey+"012345"), nil)(w, k, asked)
		}},
		"a later request was given": {inUse: "zpk-bank " + laterKey, comes: func(w *world, k *keyring, asked time.Time) {
			w.bank.askedKey = func() (*messages.Message, error) { return answered("00", laterKey+"FEDCBA"), nil }
			if _, err := w.desk.RotateKey(w.t.Context(), "bank"); err != nil {
				w.t.Error(err)
			}
			late(answered("00", newKey+"012345"), nil)(w, k, asked)
		}},
		"a later request was declined": {inUse: "zpk-bank " + newKey, comes: func(w *world, k *keyring, asked time.Time) {
			w.bank.askedKey = func() (*messages.Message, error) { return answered("12", ""), nil }
			if _, err := w.desk.RotateKey(w.t.Context(), "bank"); !errors.Is(err, acquirer.ErrKeyDeclined) {
				w.t.Error(err)
			}
			late(answered("00", newKey+"012345"), nil)(w, k, asked)
		}},
		"two late ones, the first one last": {inUse: "zpk-bank " + laterKey, comes: func(w *world, k *keyring, asked time.Time) {
			late(answered("00", laterKey+"FEDCBA"), nil)(w, k, asked.Add(time.Second))
			late(answered("00", newKey+"012345"), nil)(w, k, asked)
		}},
		"nobody asked for it": {inUse: old, alarms: 1, comes: func(w *world, k *keyring, _ time.Time) {
			late(answered("00", newKey+"012345"), nil)(w, k, time.Time{})
		}},
		"nobody asked for it, and it has no key": {inUse: old, comes: func(w *world, k *keyring, _ time.Time) { late(answered("00", ""), nil)(w, k, time.Time{}) }},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				keys := &keyring{t: t, keys: []string{old}}
				w.keys = keys
				dialect, err := inAnswer()
				if err != nil {
					t.Fatal(err)
				}
				w.dialect = dialect
				w.bank.askedKey = func() (*messages.Message, error) { <-time.After(10 * time.Second); return nil, conn.ErrTimeout }
				w.start()
				asked := time.Now()
				if _, err := w.desk.RotateKey(t.Context(), "bank"); !errors.Is(err, acquirer.ErrKeyUnconfirmed) {
					t.Fatal(err)
				}
				if got := w.metric("acquirerd_demand_alarms_total", "bank", "key_not_changed"); got != 0 {
					t.Errorf("%v alarms before it", got)
				}
				test.comes(w, keys, asked)
				if got := keys.inUse(); got != test.inUse {
					t.Errorf("in use is %s", got)
				}
				if got := w.metric("acquirerd_demand_alarms_total", "bank", "key_not_changed"); got != test.alarms {
					t.Errorf("%v alarms", got)
				}
				if got := w.metric("acquirerd_unasked_messages_total", "bank", "late_other"); got == 0 {
					t.Error("not counted")
				}
				w.stop()
			})
		})
	}
}

// A late answer finds a station whose reload has taken the key away.
func TestALateAnswerForNoKey(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.start()
		w.desk.Inbound(t.Context(), "bank", conn.Unasked{Message: answered("00", newKey+"012345"), Arrival: conn.Late, KeyAsked: time.Now()})
		if got := w.metric("acquirerd_demand_alarms_total", "bank", "key_not_changed"); got != 1 {
			t.Errorf("%v alarms", got)
		}
		w.stop()
	})
}

// What was not sent was not asked: with no link in service for a moment, the next PIN that cannot be read has the key asked for, and not one in five
// minutes. But it is not tried with each of them.
func TestAKeyRequestThatWasNotSentIsTriedAgainSoon(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, _ := newSyncingWorld(t, 1, 2)
		w.keys = &keyring{t: t}
		tries, sent := 0, false
		w.bank.askedKey = func() (*messages.Message, error) {
			tries++
			if !sent {
				return nil, fmt.Errorf("no link in service: %w", conn.ErrNotSent)
			}
			return nil, conn.ErrTimeout
		}
		w.start()
		for _, step := range []struct {
			after time.Duration
			sent  bool
			tries int
		}{
			{0, false, 1}, {0, false, 1}, {9 * time.Second, false, 1}, {time.Second, false, 2}, {10 * time.Second, true, 3},
			{10 * time.Second, true, 3}, {4*time.Minute + 49*time.Second, true, 3}, {time.Second, true, 4},
		} {
			<-time.After(step.after)
			sent = step.sent
			w.ask(w.request(), delivered)
			synctest.Wait()
			if tries != step.tries {
				t.Errorf("after %v, %d tries, want %d", step.after, tries, step.tries)
			}
		}
		if got := w.metric("acquirerd_key_requests_total", "bank", "refused"); got != 2 {
			t.Errorf("%v refused", got)
		}
		w.stop()
	})
}

// A PIN that no key helps has a key asked for, and the transactions after it go through under that.
func TestAKeyIsAskedForByItself(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, v := newSyncingWorld(t, 1, 2)
		keys := &keyring{t: t}
		w.keys = keys
		w.bank.askedKey = func() (*messages.Message, error) {
			w.demand(keyChange(newKey+"012345", "700001"))
			v.changeTo(2)
			return answered("00", ""), nil
		}
		w.start()
		if result, ok := w.ask(w.request(), delivered); !ok || codeOf(result.Answer) != "63" {
			t.Errorf("answered %v", result.Answer)
		}
		synctest.Wait()
		if result, ok := w.ask(w.request(), delivered); !ok || codeOf(result.Answer) != "00" {
			t.Errorf("answered %v", result.Answer)
		}
		if keys.inUse() != "zpk-bank "+newKey {
			t.Errorf("in use is %s", keys.inUse())
		}
		if got := fmt.Sprint(w.metric("acquirerd_key_sync_total", "no_key"), w.metric("acquirerd_key_requests_total", "changed")); got != "1 1" {
			t.Errorf("counted %s", got)
		}
		w.check()
		w.stop()
	})
}
