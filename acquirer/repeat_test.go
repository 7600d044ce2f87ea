package acquirer_test

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"acquirerd/acquirer"
	"acquirerd/conn"
	"acquirerd/hsm"
	"acquirerd/journal"
	"acquirerd/messages"
)

// again is the same request as its upstream would repeat it.
func again(req acquirer.Request) acquirer.Request {
	req.Message = req.Message.Clone()
	req.Message.MTI = req.Message.MTI.Repeat()
	return req
}

func TestARepeatIsAnsweredFromTheRecord(t *testing.T) {
	outcomes := []struct {
		name     string
		bank     func(*messages.Message) (string, error)
		want     string
		approved bool
	}{
		{"approved", func(*messages.Message) (string, error) { return "00", nil }, "00", true},
		{"approved in part", func(*messages.Message) (string, error) { return "10", nil }, "10", true},
		{"declined", func(*messages.Message) (string, error) { return "51", nil }, "51", false},
		{"unknown", func(*messages.Message) (string, error) { return "00", conn.ErrTimeout }, "91", false},
		{"not sent", func(*messages.Message) (string, error) { return "", conn.ErrNotSent }, "91", false},
	}
	for _, o := range outcomes {
		for _, restarts := range []bool{false, true} {
			name := o.name
			if restarts {
				name += " and restarted"
			}
			t.Run(name, func(t *testing.T) {
				inWorld(t, func(t *testing.T, w *world) {
					w.bank.answer = o.bank
					w.bank.partial = "000000000400"
					req := w.request()
					first, ok := w.ask(req, delivered)
					if !ok || code(first) != o.want {
						t.Fatalf("got %v", first.Answer)
					}
					if restarts {
						w.restart()
					}
					for range 2 {
						second, ok := w.ask(again(req), delivered)
						if !ok || second.Answer.MTI != "0110" || !sameAnswer(first.Answer, second.Answer) {
							t.Errorf("got  %v\nwant %v", second.Answer, first.Answer)
						}
					}
					if len(w.bank.seen) > 1 {
						t.Errorf("%d sent", len(w.bank.seen))
					}
					w.rest()
					w.check()
				})
			})
		}
	}
}

// sameAnswer compares two answers of one request.
func sameAnswer(a, b *messages.Message) bool {
	return a.SameRequest(b) // which compares all elements but what each hop makes anew
}

func TestARepeatOfWhatNeverCameIsSentAsAFirst(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		var sent messages.MTI
		w.bank.answer = func(m *messages.Message) (string, error) { sent = m.MTI; return "00", nil }
		if result, ok := w.ask(again(w.request()), delivered); !ok || code(result) != "00" || sent != "0100" {
			t.Errorf("sent as %s, answered %v", sent, result.Answer)
		}
		w.check()
	})
}

// The same bytes again, without the mark of a repeat.
func TestAResendIsAnsweredFromTheRecord(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		req := w.request()
		first, ok := w.ask(req, delivered)
		if !ok || code(first) != "00" {
			t.Fatalf("got %v", first.Answer)
		}
		w.restart()
		if second, ok := w.ask(req, delivered); !ok || !sameAnswer(first.Answer, second.Answer) || second.Outcome != "" {
			t.Errorf("got %v", second.Answer)
		}
		w.vault.(*vault).err = hsm.ErrUnavailable
		if silent, err := w.desk.Authorize(t.Context(), w.desk.Admit(req)); err != nil || silent.Answer != nil {
			t.Errorf("without the HSM: %v, %v", silent.Answer, err)
		}
		if len(w.bank.seen) != 1 {
			t.Errorf("%d sent", len(w.bank.seen))
		}
		w.check()
	})
}

func TestTheSameKeyWithOtherContentIsRefused(t *testing.T) {
	changes := map[string]func(*messages.Message){
		"amount":   func(m *messages.Message) { m.Set(messages.Amount, "000000001001") },
		"currency": func(m *messages.Message) { m.Set(messages.Currency, "978") },
		"card with the same digits shown": func(m *messages.Message) {
			m.SetSensitive(messages.PAN, "4111110000081111")
		},
		"processing code": func(m *messages.Message) { m.Set(messages.ProcessingCode, "200000") },
		"merchant":        func(m *messages.Message) { m.Set(messages.Merchant, "OTHER") },
	}
	for name, change := range changes {
		t.Run(name, func(t *testing.T) {
			inWorld(t, func(t *testing.T, w *world) {
				req := w.request()
				release := make(chan struct{})
				w.bank.answer = func(*messages.Message) (string, error) { <-release; return "00", nil }
				var asking sync.WaitGroup
				asking.Go(func() { w.ask(req, delivered) })
				<-time.After(time.Second)
				other := again(req)
				change(other.Message)
				asking.Go(func() {
					during, err := w.desk.Authorize(t.Context(), w.desk.Admit(other))
					if err != nil || code(during) != "94" {
						t.Errorf("in flight: %v, %v", during.Answer, err)
					}
					w.desk.Delivered(during)
				})
				<-time.After(time.Second)
				close(release)
				asking.Wait()
				after, err := w.desk.Authorize(t.Context(), w.desk.Admit(other))
				if err != nil || code(after) != "94" || after.Outcome != "" {
					t.Errorf("on record: %v, %v", after.Answer, err)
				}
				w.desk.Delivered(after)
				if first, ok := w.ask(again(req), delivered); !ok || code(first) != "00" || len(w.bank.seen) != 1 {
					t.Errorf("the first again: %v, %d sent", first.Answer, len(w.bank.seen))
				}
				w.check()
			})
		})
	}
}

// One message goes out for all that ask with one key at the same time, and each is told the same.
func TestARepeatJoinsItsFirst(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		req := w.request()
		w.bank.answer = func(*messages.Message) (string, error) { <-time.After(5 * time.Second); return "00", nil }
		results := make(chan acquirer.Result, 10)
		var asking sync.WaitGroup
		visits := []*acquirer.Visit{w.desk.Admit(req)}
		for range 9 {
			visits = append(visits, w.desk.Admit(again(req)))
		}
		for _, v := range visits {
			asking.Go(func() {
				result, err := w.desk.Authorize(t.Context(), v)
				if err != nil {
					t.Error(err)
				}
				results <- result
			})
		}
		asking.Wait()
		close(results)
		for result := range results {
			if code(result) != "00" || result.Answer.Get(messages.AuthorizationID) != "123456" || result.Answer.PAN().Reveal() != testPAN {
				t.Errorf("got %v", result.Answer)
			}
			result.Answer.Clear() // as a door does: the others keep theirs
			w.desk.Delivered(result)
		}
		w.told[req.Message.Get(messages.STAN)] = "00"
		if len(w.bank.seen) != 1 {
			t.Errorf("%d sent", len(w.bank.seen))
		}
		w.check()
	})
}

// The deliveries of a request and its repeats are one: it is enough that one of them arrives.
func TestAnApprovalIsOwedIfNoneOfItsAnswersWasDelivered(t *testing.T) {
	cases := []struct {
		name           string
		first, repeat  bool
		repeatIsFirst  bool
		wantReversals  int
		wantAfterwards string
	}{
		{"both delivered", true, true, false, 0, "00"},
		{"only the first", true, false, false, 0, "00"},
		{"only the repeat", false, true, false, 0, "00"},
		{"only the repeat, earlier", false, true, true, 0, "00"},
		{"neither", false, false, false, 1, "91"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			inWorld(t, func(t *testing.T, w *world) {
				req := w.request()
				w.bank.answer = func(*messages.Message) (string, error) { <-time.After(time.Second); return "00", nil }
				visits := []*acquirer.Visit{w.desk.Admit(req), w.desk.Admit(again(req))}
				results := make([]acquirer.Result, 2)
				var asking sync.WaitGroup
				for i, v := range visits {
					asking.Go(func() { results[i], _ = w.desk.Authorize(t.Context(), v) })
				}
				asking.Wait()
				order := []int{0, 1}
				if c.repeatIsFirst {
					order = []int{1, 0}
				}
				for _, i := range order {
					if []bool{c.first, c.repeat}[i] {
						w.desk.Delivered(results[i])
						w.told[req.Message.Get(messages.STAN)] = "00"
					} else if err := w.desk.Undelivered(t.Context(), results[i]); err != nil {
						t.Error(err)
					}
				}
				// A repeat that comes now is told what stands, also before the reversal has gone out.
				if after, ok := w.ask(again(req), undelivered); ok || len(w.told) > 0 != (c.wantReversals == 0) {
					t.Errorf("got %v", after.Answer)
				}
				after, _ := w.desk.Authorize(t.Context(), w.desk.Admit(again(req)))
				if code(after) != c.wantAfterwards {
					t.Errorf("afterwards %v, want %s", after.Answer, c.wantAfterwards)
				}
				w.desk.Delivered(after)
				w.rest()
				if len(w.bank.reversals) != c.wantReversals {
					t.Errorf("%d reversals, want %d", len(w.bank.reversals), c.wantReversals)
				}
				w.check()
			})
		})
	}
}

// A repeat that comes while the delivery of the first is not over waits: only then is it known whether the approval stands.
func TestARepeatWaitsForTheDeliveryOfItsFirst(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		req := w.request()
		first, err := w.desk.Authorize(t.Context(), w.desk.Admit(req))
		if err != nil || code(first) != "00" {
			t.Fatalf("got %v, %v", first.Answer, err)
		}
		short, release := context.WithTimeout(t.Context(), time.Second)
		defer release()
		if during, err := w.desk.Authorize(short, w.desk.Admit(again(req))); err != nil || during.Answer != nil {
			t.Errorf("during the delivery: %v, %v", during.Answer, err)
		}
		var after acquirer.Result
		var asking sync.WaitGroup
		asking.Go(func() { after, _ = w.desk.Authorize(t.Context(), w.desk.Admit(again(req))) })
		<-time.After(time.Second)
		if err := w.desk.Undelivered(t.Context(), first); err != nil {
			t.Error(err)
		}
		asking.Wait()
		if code(after) != "91" {
			t.Errorf("after a delivery that failed: %v", after.Answer)
		}
		w.desk.Delivered(after)
		w.rest()
		w.check()
	})
}

// What may have been approved is never refused: a refusal would be believed.
func TestARepeatIsNotRefused(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		req := w.request()
		if first, ok := w.ask(req, delivered); !ok || code(first) != "00" {
			t.Fatalf("got %v", first.Answer)
		}
		w.vault.(*vault).err = hsm.ErrUnavailable
		if silent, err := w.desk.Authorize(t.Context(), w.desk.Admit(again(req))); err != nil || silent.Answer != nil {
			t.Errorf("without the HSM: %v, %v", silent.Answer, err)
		}
		if refused, ok := w.ask(w.request(), delivered); !ok || code(refused) != "96" {
			t.Errorf("another request without the HSM: %v", refused.Answer)
		}
		w.vault.(*vault).err = nil
		w.desk.Drain()
		if draining, ok := w.ask(again(req), delivered); !ok || code(draining) != "00" {
			t.Errorf("while it drains: %v", draining.Answer)
		}
		if refused, ok := w.ask(w.request(), delivered); !ok || code(refused) != "96" {
			t.Errorf("another request while it drains: %v", refused.Answer)
		}
		if turned := w.desk.TurnAway(t.Context(), again(req)); turned != nil {
			t.Errorf("a door without room says %v", turned)
		}
		w.check()
	})
}

// A recorder that cannot read.
type blindRecorder struct{ acquirer.Recorder }

func (blindRecorder) Find(context.Context, string, string) (journal.Found, bool, error) {
	return journal.Found{}, false, errors.New("reading failed")
}

func TestWithoutARecordToLookAtNothingIsRefused(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.stop()
		w.recorder = func(r acquirer.Recorder) acquirer.Recorder { return blindRecorder{r} }
		w.start()
		refused := w.request()
		refused.Message.SetSensitive(messages.PAN, "6011111111111117") // no route
		for _, req := range []acquirer.Request{again(w.request()), refused} {
			if result, err := w.desk.Authorize(t.Context(), w.desk.Admit(req)); err != nil || result.Answer != nil || len(w.bank.seen) != 0 {
				t.Errorf("got %v, %v; %d sent", result.Answer, err, len(w.bank.seen))
			}
		}
	})
}

// A refusal is an answer, and believed. Another copy of the request, sent before it, is not approved after it.
func TestARefusalIsRemembered(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		down := w.vault.(*vault)
		down.err = hsm.ErrUnavailable
		byHSM, byDoor := w.request(), w.request()
		if refused, ok := w.ask(byHSM, delivered); !ok || code(refused) != "96" {
			t.Errorf("without the HSM: %v", refused.Answer)
		}
		if turned := w.desk.TurnAway(t.Context(), byDoor); codeOf(turned) != "96" {
			t.Errorf("by the door: %v", turned)
		}
		down.err = nil
		for _, req := range []acquirer.Request{byHSM, byDoor} {
			for _, copied := range []acquirer.Request{again(req), req} {
				if refused, ok := w.ask(copied, delivered); !ok || code(refused) != "96" {
					t.Errorf("a copy is told %v", refused.Answer)
				}
				if turned := w.desk.TurnAway(t.Context(), copied); codeOf(turned) != "96" {
					t.Errorf("by the door: %v", turned)
				}
			}
		}
		if len(w.bank.seen) != 0 {
			t.Errorf("%d were sent", len(w.bank.seen))
		}
		// An advice is sent until it is taken.
		down.err = hsm.ErrUnavailable
		advice := w.advice()
		if answer := w.advise(advice); codeOf(answer) != "96" {
			t.Errorf("an advice without the HSM: %v", answer)
		}
		down.err = nil
		if answer := w.advise(again(advice)); codeOf(answer) != "00" {
			t.Errorf("an advice with the HSM: %v", answer)
		}
	})
}

// A copy that is in flight while the door has no room for the other is the one that is answered.
func TestADoorRefusesNothingThatIsInFlight(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		req := w.request()
		visit := w.desk.Admit(req)
		if turned := w.desk.TurnAway(t.Context(), again(req)); turned != nil {
			t.Errorf("got %v", turned)
		}
		result, err := w.desk.Authorize(t.Context(), visit)
		if err != nil || code(result) != "00" {
			t.Errorf("got %v, %v", result.Answer, err)
		}
		w.desk.Delivered(result)
	})
}

func TestRefusalsAreForgotten(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		req := w.request()
		w.desk.TurnAway(t.Context(), req)
		<-time.After(11 * time.Minute)
		if result, ok := w.ask(again(req), delivered); !ok || code(result) != "00" {
			t.Errorf("after a while: %v", result.Answer)
		}
	})
}
