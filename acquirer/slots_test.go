package acquirer_test

import (
	"sync"
	"testing"
	"time"

	"acquirerd/messages"
)

// An upstream repeats a reversal while its original is in flight. All of them wait for that, but not in the place of live traffic.
func TestReversalsThatWaitForTheirOriginalTakeNoSlots(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		slow := named(w.request())
		w.bank.answer = func(m *messages.Message) (string, error) {
			if m.Get(messages.Amount) == "000000009999" {
				<-time.After(20 * time.Second)
			}
			return "00", nil
		}
		slow.Message.Set(messages.Amount, "000000009999")
		var waiting sync.WaitGroup
		visit := w.desk.Admit(slow)
		waiting.Go(func() {
			result, _ := w.desk.Authorize(t.Context(), visit)
			w.desk.Delivered(result)
		})
		<-time.After(time.Second)
		for range 63 {
			waiting.Go(func() { w.reverse(again(reversalOf(slow, "0420"))) })
		}
		<-time.After(time.Second)
		if result, ok := w.ask(named(w.request()), delivered); !ok || code(result) != "00" {
			t.Errorf("another request is answered %v", result.Answer)
		}
		waiting.Wait()
		w.rest()
	})
}

// So it is with completions of an authorization in flight.
func TestAdvicesThatWaitForTheirOriginalTakeNoSlots(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		slow := named(w.request())
		slow.Message.Set(messages.Amount, "000000009999")
		w.bank.answer = func(m *messages.Message) (string, error) {
			if m.Get(messages.Amount) == "000000009999" {
				<-time.After(20 * time.Second)
			}
			return "00", nil
		}
		var waiting sync.WaitGroup
		visit := w.desk.Admit(slow)
		waiting.Go(func() {
			result, _ := w.desk.Authorize(t.Context(), visit)
			w.desk.Delivered(result)
		})
		<-time.After(time.Second)
		for range 63 {
			completion := w.advice()
			completion.Message.Set(messages.OriginalData, "0100"+slow.Message.Get(messages.STAN)+slow.Message.Get(messages.TransmissionTime)+"0000000000000000000000")
			waiting.Go(func() { w.advise(completion) })
		}
		<-time.After(time.Second)
		if result, ok := w.ask(named(w.request()), delivered); !ok || code(result) != "00" {
			t.Errorf("another request is answered %v", result.Answer)
		}
		waiting.Wait()
		w.rest()
	})
}
