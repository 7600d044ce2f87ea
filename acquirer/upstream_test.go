package acquirer_test

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"acquirerd/acquirer"
	"acquirerd/conn"
	"acquirerd/hsm"
	"acquirerd/journal"
	"acquirerd/messages"
	"acquirerd/specs"
)

// reversalOf is the upstream's reversal of a request.
func reversalOf(req acquirer.Request, mti messages.MTI) acquirer.Request {
	m, err := req.Upstream.Codec.NewReversal(req.Message.Original(), req.Message.PAN(), "", "")
	if err != nil {
		panic(err) // a whole one every dialect can say
	}
	m.MTI = mti
	m.Set(messages.STAN, "9"+req.Message.Get(messages.STAN)[1:]) // numbers of its own; DE 90 names the original
	return acquirer.Request{Upstream: req.Upstream, Message: m}
}

// advice is the upstream's next 0220.
func (w *world) advice() acquirer.Request {
	req := w.request()
	req.Message.MTI = messages.FinancialAdvice
	req.Message.Delete(messages.PINData)
	req.Message.Set(messages.AuthorizationID, "654321")
	req.Key = req.Upstream.Codec.Identity(req.Message)
	return req
}

// named gives a request the key that a door gives it.
func named(req acquirer.Request) acquirer.Request {
	req.Key = req.Upstream.Codec.Identity(req.Message)
	return req
}

// reverse and advise hand a message to the switch as a door does, and deliver the answer.
func (w *world) reverse(req acquirer.Request) *messages.Message {
	w.t.Helper()
	result, err := w.desk.Reverse(w.t.Context(), w.desk.Admit(req))
	if err != nil {
		w.t.Error(err)
	}
	w.desk.Delivered(result)
	return result.Answer
}

func (w *world) advise(req acquirer.Request) *messages.Message {
	w.t.Helper()
	result, err := w.desk.Advise(w.t.Context(), w.desk.Admit(req))
	if err != nil {
		w.t.Error(err)
	}
	w.desk.Delivered(result)
	return result.Answer
}

// codeOf is DE 39, "none" without an answer.
func codeOf(m *messages.Message) string {
	if m == nil {
		return "none"
	}
	return m.Get(messages.ResponseCode)
}

// only returns the one transaction on record.
func (w *world) only() journal.Transaction {
	w.t.Helper()
	rows, err := w.journal.Transactions(w.t.Context(), journal.Filter{})
	if err != nil || len(rows) != 1 {
		w.t.Fatalf("%d transactions, %v", len(rows), err)
	}
	return rows[0]
}

func TestAnUpstreamReversesAnApproval(t *testing.T) {
	for _, mti := range []messages.MTI{"0400", "0401", "0420", "0421"} {
		for _, restarts := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, restarted %v", mti, restarts), func(t *testing.T) {
				inWorld(t, func(t *testing.T, w *world) {
					req := named(w.request())
					w.ask(req, delivered)
					if restarts {
						w.restart()
					}
					for range 2 { // the second is answered from the record
						answer := w.reverse(reversalOf(req, mti))
						if codeOf(answer) != "00" || answer.MTI != mti.Answer() {
							t.Errorf("got %v", answer)
						}
					}
					w.rest()
					row := w.only()
					if row.Owed != journal.StateAcknowledged || w.bank.holds[row.STAN+row.TransmissionTime] != "reversed" || len(w.bank.sent) != 1 {
						t.Errorf("got %+v, bank %v, %d sent", row, w.bank.holds, len(w.bank.sent))
					}
					// A repeat of the request is not told of an approval that is gone.
					if after, ok := w.ask(again(req), delivered); !ok || code(after) != "91" {
						t.Errorf("the request again: %v", after.Answer)
					}
				})
			})
		}
	}
}

func TestAReversalBearsWhatTheRecordHas(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		req := named(w.request())
		w.ask(req, delivered)
		w.reverse(reversalOf(req, "0420"))
		w.rest()
		row, sent := w.only(), w.bank.sent[0]
		want := "0100" + row.STAN + row.TransmissionTime + strings.Repeat("0", 22)
		if sent.MTI != "0420" || sent.Get(messages.OriginalData) != want || sent.Get(messages.AuthorizationID) != "123456" ||
			sent.Get(messages.Amount) != "000000001000" || sent.Get(messages.STAN) != row.STAN || sent.Get(messages.RRN) != row.RRN ||
			sent.PAN().Reveal() != testPAN || sent.Has(messages.PINData) {
			t.Errorf("got %v", sent)
		}
	})
}

func TestAReversalInPart(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		req := named(w.request())
		w.ask(req, delivered)
		w.bank.mend(false)
		part := reversalOf(req, "0420")
		part.Message.Set(messages.ReplacementAmounts, "000000000400000000000000000000000000000000")
		for range 2 {
			if answer := w.reverse(again(part)); codeOf(answer) != "00" {
				t.Errorf("got %v", answer)
			}
		}
		if e := w.journal.Exposure(); e.Amounts["840"] != 600 {
			t.Errorf("exposure %+v", e)
		}
		other := reversalOf(req, "0420")
		other.Message.Set(messages.ReplacementAmounts, "000000000300000000000000000000000000000000")
		if answer := w.reverse(other); codeOf(answer) != "94" {
			t.Errorf("another part: %v", answer)
		}
		if answer := w.reverse(reversalOf(req, "0420")); codeOf(answer) != "96" {
			t.Errorf("the whole, while the part is on its way: %v", answer)
		}
		w.bank.mend(true)
		w.rest()
		if sent := w.bank.sent[0]; len(w.bank.sent) != 1 || sent.Get(messages.ReplacementAmounts) != "000000000400"+strings.Repeat("0", 30) ||
			sent.Get(messages.Amount) != "000000001000" {
			t.Errorf("sent %v", w.bank.sent)
		}
		row := w.only()
		if row.Owed != journal.StateAcknowledged || row.Replacement != "000000000400" || w.bank.holds[row.STAN+row.TransmissionTime] != "held" {
			t.Errorf("got %+v", row)
		}
		// The approval stands, for less.
		if after, ok := w.ask(again(req), delivered); !ok || code(after) != "00" {
			t.Errorf("the request again: %v", after.Answer)
		}
		// The whole, after the part.
		for range 2 {
			if answer := w.reverse(reversalOf(req, "0421")); codeOf(answer) != "00" {
				t.Errorf("the whole: %v", answer)
			}
		}
		w.rest()
		if sent := w.bank.sent[len(w.bank.sent)-1]; len(w.bank.sent) != 2 || sent.MTI != "0420" || sent.Has(messages.ReplacementAmounts) ||
			w.bank.holds[row.STAN+row.TransmissionTime] != "reversed" || w.only().Replacement != "" {
			t.Errorf("sent %v, bank %v", w.bank.sent, w.bank.holds)
		}
	})
}

func TestAReversalThatCannotBe(t *testing.T) {
	cases := []struct {
		name   string
		bank   func(*messages.Message) (string, error)
		change func(*messages.Message)
		want   string
	}{
		{"in part, of nothing approved", func(*messages.Message) (string, error) { return "51", nil },
			func(m *messages.Message) {
				m.Set(messages.ReplacementAmounts, "000000000400000000000000000000000000000000")
			}, "25"},
		{"in part, of what nobody knows", func(*messages.Message) (string, error) { return "00", conn.ErrTimeout },
			func(m *messages.Message) {
				m.Set(messages.ReplacementAmounts, "000000000400000000000000000000000000000000")
			}, "94"},
		{"of what was declined", func(*messages.Message) (string, error) { return "51", nil }, func(*messages.Message) {}, "00"},
		{"of what was not sent", func(*messages.Message) (string, error) { return "", conn.ErrNotSent }, func(*messages.Message) {}, "00"},
		{"of what nobody knows", func(*messages.Message) (string, error) { return "00", conn.ErrTimeout }, func(*messages.Message) {}, "00"},
		{"another amount", nil, func(m *messages.Message) { m.Set(messages.Amount, "000000001001") }, "25"},
		{"another currency", nil, func(m *messages.Message) { m.Set(messages.Currency, "978") }, "25"},
		{"another card", nil, func(m *messages.Message) { m.SetSensitive(messages.PAN, "5555555555554444") }, "25"},
		{"more than there was", nil, func(m *messages.Message) {
			m.Set(messages.ReplacementAmounts, "000000001000000000000000000000000000000000")
		}, "30"},
		{"no DE 90 where one is", nil, func(m *messages.Message) { m.Set(messages.OriginalData, strings.Repeat("9", 42)) }, "30"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			inWorld(t, func(t *testing.T, w *world) {
				if c.bank != nil {
					w.bank.answer = c.bank
				}
				req := named(w.request())
				w.ask(req, delivered)
				w.rest()
				reversals := len(w.bank.sent)
				reversal := reversalOf(req, "0420")
				c.change(reversal.Message)
				if answer := w.reverse(reversal); codeOf(answer) != c.want {
					t.Errorf("got %v, want %s", answer, c.want)
				}
				w.rest()
				if len(w.bank.sent) != reversals {
					t.Errorf("%d were sent", len(w.bank.sent)-reversals)
				}
				w.check()
			})
		})
	}
}

func TestAReversalFindsItsOriginal(t *testing.T) {
	acquirerID := func(id string) func(*messages.Message) {
		return func(m *messages.Message) { m.Set(messages.AcquirerID, id) }
	}
	cases := []struct {
		name     string
		original func(*messages.Message)
		reversal func(*messages.Message)
		want     string
	}{
		{"by DE 90", nil, nil, "00"},
		{"by its own elements without DE 90", nil, func(m *messages.Message) {
			m.Delete(messages.OriginalData)
			m.Set(messages.STAN, "000001")
		}, "00"},
		{"by an acquirer with leading zeros", acquirerID("00000123456"), nil, "00"},
		{"where DE 90 leaves the acquirer open", acquirerID("123456"), func(m *messages.Message) {
			data := m.Get(messages.OriginalData)
			m.Set(messages.OriginalData, data[:20]+strings.Repeat("0", 22))
		}, "00"},
		{"not by another time", nil, func(m *messages.Message) {
			data := m.Get(messages.OriginalData)
			m.Set(messages.OriginalData, data[:10]+"1123120001"+data[20:])
		}, "25"},
		{"not from another terminal", nil, func(m *messages.Message) { m.Set(messages.Terminal, "TERM0002") }, "25"},
		{"not of another class", nil, func(m *messages.Message) {
			m.Set(messages.OriginalData, "0200"+m.Get(messages.OriginalData)[4:])
		}, "25"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			inWorld(t, func(t *testing.T, w *world) {
				req := w.request()
				if c.original != nil {
					c.original(req.Message)
				}
				req = named(req)
				w.ask(req, delivered)
				reversal := reversalOf(req, "0420")
				if c.reversal != nil {
					c.reversal(reversal.Message)
				}
				if answer := w.reverse(reversal); codeOf(answer) != c.want {
					t.Errorf("got %v, want %s", answer, c.want)
				}
			})
		})
	}
}

// A reversal of a request in flight waits for it, and then undoes it.
func TestAReversalWaitsForItsOriginal(t *testing.T) {
	for _, delivers := range []bool{true, false} {
		t.Run(fmt.Sprintf("answer delivered %v", delivers), func(t *testing.T) {
			inWorld(t, func(t *testing.T, w *world) {
				w.bank.answer = func(*messages.Message) (string, error) { <-time.After(5 * time.Second); return "00", nil }
				req := named(w.request())
				visit := w.desk.Admit(req)
				var asking sync.WaitGroup
				asking.Go(func() {
					result, err := w.desk.Authorize(t.Context(), visit)
					if err != nil || code(result) != "00" {
						t.Errorf("got %v, %v", result.Answer, err)
					}
					<-time.After(time.Second) // as long as the answer is on its way, too
					if delivers {
						w.desk.Delivered(result)
					} else if err := w.desk.Undelivered(t.Context(), result); err != nil {
						t.Error(err)
					}
				})
				began := time.Now()
				if answer := w.reverse(reversalOf(req, "0420")); codeOf(answer) != "00" || time.Since(began) != 6*time.Second {
					t.Errorf("got %v after %v", answer, time.Since(began))
				}
				asking.Wait()
				w.rest()
				if row := w.only(); row.Owed != journal.StateAcknowledged || w.bank.holds[row.STAN+row.TransmissionTime] != "reversed" {
					t.Errorf("got %+v", row)
				}
			})
		})
	}
}

// A reversal that comes before its original is answered that there is none, and from then on that is true.
func TestAReversalThatComesFirstBarsItsOriginal(t *testing.T) {
	for _, restarts := range []bool{false, true} {
		t.Run(fmt.Sprintf("restarted %v", restarts), func(t *testing.T) {
			inWorld(t, func(t *testing.T, w *world) {
				req := named(w.request())
				for range 2 {
					if answer := w.reverse(reversalOf(req, "0420")); codeOf(answer) != "25" {
						t.Errorf("got %v", answer)
					}
				}
				if restarts {
					w.restart()
				}
				if late, ok := w.ask(req, delivered); !ok || code(late) != "91" || len(w.bank.seen) != 0 {
					t.Errorf("the original afterwards: %v, %d sent", late.Answer, len(w.bank.seen))
				}
				if answer := w.reverse(reversalOf(req, "0421")); codeOf(answer) != "25" {
					t.Errorf("once more: %v", answer)
				}
			})
		})
	}
}

// Reversal and request at the same moment: whoever is first on record, what they say agrees.
func TestAReversalAndItsOriginalRace(t *testing.T) {
	for range 50 {
		inWorld(t, func(t *testing.T, w *world) {
			req := named(w.request())
			var both sync.WaitGroup
			both.Go(func() { w.ask(req, delivered) })
			var answer *messages.Message
			both.Go(func() { answer = w.reverse(reversalOf(req, "0420")) })
			both.Wait()
			w.rest()
			row := w.only()
			held := w.bank.holds[row.STAN+row.TransmissionTime] == "held"
			switch codeOf(answer) {
			case "00", "25":
				if held {
					t.Errorf("answered %v, and the bank holds %+v", answer, row)
				}
			default:
				t.Errorf("got %v", answer)
			}
		})
	}
}

func TestAReversalRequestWaitsForTheProcessor(t *testing.T) {
	cases := []struct {
		name    string
		bank    func(*messages.Message) (string, error)
		want    string
		seconds int
	}{
		{"done", func(*messages.Message) (string, error) { <-time.After(3 * time.Second); return "00", nil }, "00", 3},
		{"refused for good", func(*messages.Message) (string, error) { <-time.After(3 * time.Second); return "12", nil }, "00", 3},
		{"no answer", func(*messages.Message) (string, error) { <-time.After(10 * time.Second); return "", conn.ErrTimeout }, "00", 10},
		{"no answer in time", func(*messages.Message) (string, error) { <-time.After(50 * time.Second); return "", conn.ErrTimeout }, "00", 29},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			inWorld(t, func(t *testing.T, w *world) {
				w.bank.reversal = c.bank
				req := named(w.request())
				w.ask(req, delivered)
				budget, release := w.budget(30 * time.Second)
				defer release()
				began := time.Now()
				result, err := w.desk.Reverse(budget, w.desk.Admit(reversalOf(req, "0400")))
				if took := time.Since(began); err != nil || code(result) != c.want || took != time.Duration(c.seconds)*time.Second {
					t.Errorf("got %v after %v, %v", result.Answer, took, err)
				}
			})
		})
	}
}

func TestAReversalWhoseOriginalIsNotOnRecordIsForwardedIfTheDialectSaysSo(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		dialect, err := specs.Load("iso87-binary")
		if err != nil {
			t.Fatal(err)
		}
		dialect.Reversal.UnknownOriginal = specs.ForwardUnknown
		w.bank.unknown = true
		req := named(w.request())
		req.Upstream = &acquirer.Upstream{Name: "pos", Codec: messages.NewCodec(dialect)}
		reversal := reversalOf(req, "0420")
		for range 2 {
			if answer := w.reverse(reversal); codeOf(answer) != "00" {
				t.Errorf("got %v", answer)
			}
			reversal = again(reversal)
		}
		w.rest()
		if len(w.bank.sent) != 1 || w.bank.sent[0].MTI != "0420" || w.bank.sent[0].Get(messages.OriginalData) != reversal.Message.Get(messages.OriginalData) {
			t.Errorf("sent %v", w.bank.sent)
		}
		if late, ok := w.ask(req, delivered); !ok || code(late) != "91" || len(w.bank.seen) != 0 {
			t.Errorf("the original afterwards: %v", late.Answer)
		}
	})
}

// accountFrom is DE 102, which the dialects of these tests allow to be stored.
const accountFrom messages.Element = 102

func TestAnAdviceIsOursOnceItIsAnswered(t *testing.T) {
	for _, restarts := range []bool{false, true} {
		t.Run(fmt.Sprintf("restarted %v", restarts), func(t *testing.T) {
			inWorld(t, func(t *testing.T, w *world) {
				tries := 0
				w.bank.answer = func(*messages.Message) (string, error) {
					if tries++; tries < 3 {
						return "00", conn.ErrTimeout
					}
					return "00", nil
				}
				advice := w.advice()
				advice.Message.SetSensitive(messages.Expiry, "2912")
				advice.Message.SetSensitive(accountFrom, "ACCOUNT")
				advice.Message.SetSensitive(messages.ChipData, "\x57\x02\x41\x11\x9a\x03\x26\x11\x25")
				for range 3 {
					if answer := w.advise(advice); codeOf(answer) != "00" || answer.MTI != "0230" {
						t.Errorf("got %v", answer)
					}
					advice = again(advice)
				}
				if restarts {
					w.restart()
				}
				w.rest()
				row := w.only()
				if row.Outcome != journal.Accepted || row.Advice != journal.StateAcknowledged || row.Owed != "" || len(w.bank.sent) != 3 {
					t.Errorf("got %+v, %d sent", row, len(w.bank.sent))
				}
				for i, sent := range w.bank.sent {
					want := messages.MTI("0221")
					if i == 0 {
						want = "0220"
					}
					if sent.MTI != want || sent.Get(messages.STAN) != row.STAN || sent.PAN().Reveal() != testPAN || sent.Get(messages.AuthorizationID) != "654321" ||
						sent.Reveal(messages.Expiry) != "2912" || sent.Reveal(accountFrom) != "ACCOUNT" ||
						sent.Reveal(messages.ChipData) != "\x9a\x03\x26\x11\x25" {
						t.Errorf("sent %v", sent)
					}
				}
			})
		})
	}
}

func TestAnAdviceThatIsRefusedIsNotRecorded(t *testing.T) {
	cases := []struct {
		name   string
		change func(w *world, m *messages.Message)
		want   string
	}{
		{"no route", func(_ *world, m *messages.Message) { m.SetSensitive(messages.PAN, "6011111111111117") }, "92"},
		{"no HSM", func(w *world, _ *messages.Message) { w.vault.(*vault).err = hsm.ErrUnavailable }, "96"},
		{"chip data that cannot be read", func(_ *world, m *messages.Message) { m.SetSensitive(messages.ChipData, "\x57\x7f\x41") }, "30"},
		{"more than the processor's dialect has room for", func(_ *world, m *messages.Message) {
			m.SetSensitive(accountFrom, strings.Repeat("x", 40))
		}, "30"},
		{"what may not be stored", func(_ *world, m *messages.Message) { m.SetSensitive(messages.AdditionalData, "CVV2 123") }, "30"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			inWorld(t, func(t *testing.T, w *world) {
				advice := w.advice()
				c.change(w, advice.Message)
				if answer := w.advise(advice); codeOf(answer) != c.want {
					t.Errorf("got %v, want %s", answer, c.want)
				}
				w.vault.(*vault).err = nil
				w.rest()
				if rows, err := w.journal.Transactions(t.Context(), journal.Filter{}); err != nil || len(rows) != 0 || len(w.bank.sent) != 0 {
					t.Errorf("%d on record, %d sent, %v", len(rows), len(w.bank.sent), err)
				}
			})
		})
	}
}

// The reversal of an advice may not overtake it: the processor would say that there is nothing to reverse.
func TestAnAdviceGoesBeforeTheReversalOfItself(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.bank.mend(false)
		advice := w.advice()
		w.advise(advice)
		if answer := w.reverse(reversalOf(advice, "0420")); codeOf(answer) != "00" {
			t.Errorf("got %v", answer)
		}
		w.bank.mend(true)
		w.rest()
		row := w.only()
		if len(w.bank.sent) != 2 || w.bank.sent[0].MTI != "0220" || w.bank.sent[1].MTI != "0420" ||
			w.bank.holds[row.STAN+row.TransmissionTime] != "reversed" || row.Owed != journal.StateAcknowledged {
			t.Errorf("sent %v, row %+v", w.bank.sent, row)
		}
	})
}

func TestReversalsOfACardGoBeforeItsAdvices(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		req := named(w.request())
		w.ask(req, delivered)
		w.bank.mend(false)
		first, second := w.advice(), w.advice()
		w.advise(first)
		w.advise(second)
		w.reverse(reversalOf(req, "0420"))
		w.bank.mend(true)
		w.rest()
		var order []string
		for _, m := range w.bank.sent {
			order = append(order, string(m.MTI)+" "+m.Get(messages.STAN))
		}
		if got := strings.Join(order, ", "); got != "0420 000001, 0220 000002, 0220 000003" {
			t.Errorf("sent %s", got)
		}
	})
}

func TestAReversalCanHaveNumbersOfItsOwn(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		dialect, err := specs.Load("iso87-ascii")
		if err != nil {
			t.Fatal(err)
		}
		dialect.Reversal.Numbers, dialect.Reversal.Type = specs.NewNumbers, "0400"
		w.stop()
		w.dialect = messages.NewCodec(dialect)
		w.start()
		tries := 0
		w.bank.reversal = func(*messages.Message) (string, error) {
			if tries++; tries < 3 {
				return "00", conn.ErrTimeout
			}
			return "00", nil
		}
		req := named(w.request())
		w.ask(req, delivered)
		w.reverse(reversalOf(req, "0420"))
		<-time.After(time.Second)
		w.restart()
		w.rest()
		row := w.only()
		if len(w.bank.sent) != 3 {
			t.Fatalf("sent %v", w.bank.sent)
		}
		for i, m := range w.bank.sent {
			want := messages.MTI("0401")
			if i == 0 {
				want = "0400"
			}
			if m.MTI != want || m.Get(messages.STAN) == row.STAN || m.Get(messages.STAN) != w.bank.sent[0].Get(messages.STAN) ||
				m.Get(messages.TransmissionTime) != w.bank.sent[0].Get(messages.TransmissionTime) ||
				m.Get(messages.OriginalData)[:20] != "0100"+row.STAN+row.TransmissionTime {
				t.Errorf("sent %v", m)
			}
		}
	})
}

func TestLateAnswers(t *testing.T) {
	const approved, declined = "00", "51"
	cases := []struct {
		name     string
		bank     func(*messages.Message) (string, error)
		reversal string // the bank's answer to reversals until the late answer
		arrival  conn.Arrival
		code     string
		outcome  journal.Kind
		again    bool // a reversal goes out because of it
	}{
		{"an approval whose reversal was not found", func(*messages.Message) (string, error) { return "00", conn.ErrTimeout }, "25", conn.Late, approved, journal.Unknown, true},
		{"an approval whose reversal is done", func(*messages.Message) (string, error) { return "00", conn.ErrTimeout }, "00", conn.Late, approved, journal.Unknown, false},
		{"a decline", func(*messages.Message) (string, error) { return "00", conn.ErrTimeout }, "25", conn.Late, declined, journal.Unknown, false},
		{"an approval after a decline", func(*messages.Message) (string, error) { return "51", nil }, "00", conn.Second, approved, journal.Declined, true},
		{"a second approval", func(*messages.Message) (string, error) { return "00", nil }, "00", conn.Second, approved, journal.Approved, false},
		{"an approval of what was not sent", func(*messages.Message) (string, error) { return "", conn.ErrNotSent }, "00", conn.Late, approved, journal.NotSent, true},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			inWorld(t, func(t *testing.T, w *world) {
				w.bank.answer = c.bank
				w.bank.reversal = func(*messages.Message) (string, error) { return c.reversal, nil }
				req := named(w.request())
				w.ask(req, delivered)
				w.rest()
				before, row := len(w.bank.sent), w.only()
				w.bank.mu.Lock()
				w.bank.reversal = func(*messages.Message) (string, error) { return "00", nil }
				if c.code == approved {
					if key := row.STAN + row.TransmissionTime; w.bank.holds[key] != "reversed" {
						w.bank.holds[key] = "held"
					}
				}
				w.bank.mu.Unlock()
				late := messages.New("0110")
				late.Set(messages.STAN, row.STAN)
				late.Set(messages.TransmissionTime, row.TransmissionTime)
				late.Set(messages.ResponseCode, c.code)
				w.desk.Inbound(t.Context(), "bank", conn.Unasked{Message: late, Arrival: c.arrival})
				w.rest()
				if sent := len(w.bank.sent) - before; sent > 0 != c.again || w.only().Outcome != c.outcome {
					t.Errorf("%d reversals were sent because of it, outcome %s", sent, w.only().Outcome)
				}
				if c.again && w.bank.holds[row.STAN+row.TransmissionTime] != "reversed" {
					t.Errorf("the bank has %v", w.bank.holds)
				}
				if stored, ok := w.ask(again(req), delivered); !ok || c.outcome != journal.Approved && code(stored) == "00" {
					t.Errorf("the upstream is told %v", stored.Answer)
				}
			})
		})
	}
}

// An answer can come between the end of its exchange and the record of that.
func TestASecondAnswerWaitsForTheRecordOfTheFirst(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.stop()
		slow := &slowFinish{release: make(chan struct{})}
		w.recorder = func(r acquirer.Recorder) acquirer.Recorder { slow.Recorder = r; return slow }
		w.start()
		w.bank.answer = func(*messages.Message) (string, error) { return "51", nil }
		req := named(w.request())
		var both sync.WaitGroup
		both.Go(func() { w.ask(req, delivered) })
		synctest.Wait()
		row := w.only()
		second := messages.New("0110")
		second.Set(messages.STAN, row.STAN)
		second.Set(messages.TransmissionTime, row.TransmissionTime)
		second.Set(messages.ResponseCode, "00")
		w.bank.mu.Lock()
		w.bank.holds[row.STAN+row.TransmissionTime] = "held"
		w.bank.mu.Unlock()
		both.Go(func() { w.desk.Inbound(t.Context(), "bank", conn.Unasked{Message: second, Arrival: conn.Second}) })
		<-time.After(time.Second)
		close(slow.release)
		both.Wait()
		w.rest()
		if row := w.only(); row.Outcome != journal.Declined || row.Owed != journal.StateAcknowledged || w.bank.holds[row.STAN+row.TransmissionTime] != "reversed" {
			t.Errorf("got %+v, bank %v", row, w.bank.holds)
		}
	})
}

type slowFinish struct {
	acquirer.Recorder
	release chan struct{}
}

func (r *slowFinish) Finish(ctx context.Context, ticket *journal.Ticket, outcome journal.Outcome) error {
	<-r.release
	return r.Recorder.Finish(ctx, ticket, outcome)
}
