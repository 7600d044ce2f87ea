package acquirer_test

import (
	"context"
	"strings"
	"testing"
	"time"

	"acquirerd/acquirer"
	"acquirerd/messages"
	"acquirerd/specs"
)

func handReverse(t *testing.T, w *world, req acquirer.Request) string {
	t.Helper()
	budget, release := context.WithTimeout(t.Context(), 15*time.Second)
	defer release()
	result, err := w.desk.Reverse(budget, w.desk.Admit(req))
	if err != nil {
		t.Fatal(err)
	}
	if result.Answer == nil {
		return "silent"
	}
	w.desk.Delivered(result)
	return code(result)
}

// First a part is reversed, then the whole: the upstream's cardholder gives all back. The rest of the hold must go, too.
func TestAFullReversalAfterAPartialOne(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		req := named(w.request())
		w.ask(req, delivered)
		part := undoing(req, "0420")
		part.Message.Set(messages.ReplacementAmounts, "000000000800000000000000000000000000000000")
		if got := handReverse(t, w, part); got != "00" {
			t.Fatalf("partial: %s", got)
		}
		<-time.After(10 * time.Second)
		if got := handReverse(t, w, undoing(req, "0420")); got != "00" {
			t.Errorf("full: %s", got)
		}
		w.rest()
		for key, hold := range w.bank.holds {
			if hold == "held" {
				t.Errorf("the bank holds %s", key)
			}
		}
	})
}

// The processor approved 400 of 1000: a reversal that leaves 500 would leave more than there is.
func TestAReplacementAboveWhatWasApproved(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.bank.answer = func(*messages.Message) (string, error) { return "10", nil }
		w.bank.partial = "000000000400"
		req := named(w.request())
		w.ask(req, delivered)
		part := undoing(req, "0420")
		part.Message.Set(messages.ReplacementAmounts, "000000000500000000000000000000000000000000")
		got := handReverse(t, w, part)
		w.rest()
		if got == "00" || len(w.bank.sent) > 0 {
			t.Errorf("answered %s; sent %v", got, w.bank.sent)
		}
	})
}

// A reversal that the processor refuses for good is parked: the upstream is told the processor's code. Its repeat must not be told another.
func TestTheVerdictOnAParkedReversal(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.bank.reversal = func(*messages.Message) (string, error) { return "12", nil }
		req := named(w.request())
		w.ask(req, delivered)
		first := handReverse(t, w, undoing(req, "0400"))
		repeat := undoing(req, "0401")
		if second := handReverse(t, w, repeat); second != first {
			t.Errorf("first %s, its repeat %s", first, second)
		}
	})
}

// DE 90 and the reversal leave DE 32 out, which the original had: the original is there none the less.
func TestAReversalWithoutAnAcquirer(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		req := w.request()
		req.Message.Set(messages.AcquirerID, "123456")
		req = named(req)
		w.ask(req, delivered)
		reversal := undoing(req, "0420")
		reversal.Message.Delete(messages.AcquirerID)
		if got := handReverse(t, w, reversal); got != "00" {
			t.Errorf("answered %s", got)
		}
	})
}

// forwarding is the upstream's dialect, but for what becomes of a reversal without an original.
func forwarding(t *testing.T) *messages.Codec {
	t.Helper()
	dialect, err := specs.Load("iso87-binary")
	if err != nil {
		t.Fatal(err)
	}
	changed := *dialect
	changed.Reversal.UnknownOriginal = specs.ForwardUnknown
	return messages.NewCodec(&changed)
}

// A reversal request that was forwarded because its original is not on record is repeated: the record answers.
func TestTheRepeatOfAForwardedReversal(t *testing.T) {
	for _, mti := range []messages.MTI{"0400", "0420"} {
		t.Run(string(mti), func(t *testing.T) {
			inWorld(t, func(t *testing.T, w *world) {
				req := named(w.request())
				reversal := undoing(req, mti)
				reversal.Upstream.Codec = forwarding(t)
				first := handReverse(t, w, reversal)
				w.rest()
				reversal.Message.MTI = mti.Repeat()
				if second := handReverse(t, w, reversal); first != "00" || second != first {
					t.Errorf("first %s, its repeat %s", first, second)
				}
			})
		})
	}
}

// advice is a 0220 of the upstream.
func advice(w *world) acquirer.Request {
	req := w.request()
	req.Message.MTI = "0220"
	req.Message.Delete(messages.PINData)
	req.Message.Set(messages.AuthorizationID, "654321")
	return named(req)
}

func handAdvise(t *testing.T, w *world, req acquirer.Request) string {
	t.Helper()
	result, err := w.desk.Advise(t.Context(), w.desk.Admit(req))
	if err != nil || result.Answer == nil {
		t.Fatal(result, err)
	}
	w.desk.Delivered(result)
	return code(result)
}

// An advice says in DE 95 what it replaced. Its full reversal is none in part.
func TestTheFullReversalOfAnAdviceWithReplacementAmounts(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		req := advice(w)
		req.Message.Set(messages.ReplacementAmounts, "000000000800000000000000000000000000000000")
		if got := handAdvise(t, w, req); got != "00" {
			t.Fatal(got)
		}
		reversal := undoing(req, "0420")
		reversal.Message.Delete(messages.ReplacementAmounts)
		if got := handReverse(t, w, reversal); got != "00" {
			t.Fatalf("answered %s", got)
		}
		w.rest()
		for _, m := range w.bank.sent {
			if m.MTI.Class() == messages.Reversal {
				if _, left, _ := codec(t, "iso87-ascii").Reversed(m); left != "" {
					t.Errorf("the full reversal leaves %s: %v", left, m)
				}
				if m.Get(messages.AuthorizationID) == "" {
					t.Error("DE 38 of the advice is gone from its reversal")
				}
			}
		}
		for key, hold := range w.bank.holds {
			if hold == "held" {
				t.Errorf("the bank holds %s", key)
			}
		}
	})
}

// What an advice says of amounts reaches the processor as it was said.
func TestTheAmountsOfAnAdviceAreMasked(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		req := advice(w)
		// Two amounts: account, type, currency, sign, twelve digits. The second's head follows the first's digits.
		amounts := ""
		for n := range 100 {
			digits := strings.Repeat("0", 10) + string([]byte{byte('0' + n/10), byte('0' + n%10)})
			amounts = "0040840D" + digits + "0042840D000000000100"
			if masked := mask(req, amounts); masked != amounts {
				break
			}
		}
		req.Message.Set(messages.AdditionalAmounts, amounts)
		if got := handAdvise(t, w, req); got != "00" {
			t.Fatal(got)
		}
		w.rest()
		if len(w.bank.sent) != 1 || w.bank.sent[0].Get(messages.AdditionalAmounts) != amounts {
			t.Errorf("said %q, sent %q", amounts, w.bank.sent[0].Get(messages.AdditionalAmounts))
		}
	})
}

func mask(req acquirer.Request, amounts string) string {
	m := req.Message.Clone()
	m.Set(messages.AdditionalAmounts, amounts)
	return m.Original().Get(messages.AdditionalAmounts)
}

// Other additional amounts are other content, in flight and on record.
func TestOtherCashbackIsGivenTheStoredApproval(t *testing.T) {
	for _, element := range []messages.Element{messages.AdditionalAmounts, 28, 6, 51, messages.ReplacementAmounts} {
		t.Run(element.String(), func(t *testing.T) {
			inWorld(t, func(t *testing.T, w *world) {
				req := named(w.request())
				w.ask(req, delivered)
				other := again(req)
				other.Message.Set(element, "0040840D000000000500")
				if result, ok := w.ask(other, delivered); ok && code(result) != "94" {
					t.Errorf("answered %s", code(result))
				}
			})
		})
	}
}

// A repeat may not carry the tracks, the PIN block or the chip data again: devices may not store them.
func TestAnHonestRepeatWithoutTracksInFlight(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.bank.answer = func(*messages.Message) (string, error) { <-time.After(5 * time.Second); return "00", nil }
		req := w.request()
		req.Message.SetSensitive(messages.Track2, testPAN+"=29121010000012345678")
		req = named(req)
		repeat := again(req)
		repeat.Message.Delete(messages.Track2)
		repeat.Message.Delete(messages.PINData)
		visit := w.desk.Admit(req)
		go func() {
			result, _ := w.desk.Authorize(t.Context(), visit)
			_ = w.desk.Undelivered(t.Context(), result) // which is why it is repeated
		}()
		<-time.After(time.Second)
		result, err := w.desk.Authorize(t.Context(), w.desk.Admit(repeat))
		if err != nil || result.Answer == nil || code(result) != "00" {
			t.Errorf("got %v, %v", result.Answer, err)
		}
		w.desk.Delivered(result)
		<-time.After(10 * time.Second)
		if got, ok := w.ask(repeat, delivered); ok {
			t.Logf("on record the same repeat is answered %s", code(got))
		}
		w.rest()
	})
}
