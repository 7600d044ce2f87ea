package acquirer_test

import (
	"context"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"acquirerd/acquirer"
	"acquirerd/conn"
	"acquirerd/messages"
)

// Many upstream requests with repeats, deliveries that fail and reversals, at random: at rest the bank holds what upstream knows.
func TestStress(t *testing.T) {
	for seed := range uint64(12) {
		inWorld(t, func(t *testing.T, w *world) {
			var mu sync.Mutex
			source := rand.New(rand.NewPCG(seed, 1))
			roll := func(n int) int { mu.Lock(); defer mu.Unlock(); return source.IntN(n) }
			pause := func(n int) { <-time.After(time.Duration(roll(n)+1) * time.Millisecond) }
			w.bank.answer = func(*messages.Message) (string, error) {
				pause(300)
				switch roll(10) {
				case 0:
					return "51", nil
				case 1:
					return "00", conn.ErrTimeout
				case 2:
					return "", conn.ErrTimeout
				case 3:
					return "", conn.ErrNotSent
				}
				return "00", nil
			}
			w.bank.reversal = func(*messages.Message) (string, error) {
				pause(100)
				switch roll(5) {
				case 0:
					return "00", conn.ErrTimeout
				case 1:
					return "91", nil
				}
				return "00", nil
			}
			type book struct {
				req      acquirer.Request
				told     map[string]int
				reversed bool
			}
			var books []*book
			for range 40 {
				req := named(w.request())
				books = append(books, &book{req: req, told: map[string]int{}})
			}
			var all sync.WaitGroup
			for _, b := range books {
				all.Go(func() {
					var visits sync.WaitGroup
					var own sync.Mutex
					pause(500)
					reversing := roll(3) == 0
					for n := range 1 + roll(4) {
						req := b.req
						if n > 0 {
							req = again(b.req)
							pause(200)
						}
						visit := w.desk.Admit(req)
						visits.Go(func() {
							budget, release := context.WithTimeout(t.Context(), time.Duration(50+roll(1000))*time.Millisecond)
							defer release()
							result, err := w.desk.Authorize(budget, visit)
							if err != nil {
								t.Error(err)
							}
							if result.Answer == nil {
								return
							}
							pause(100)
							if roll(3) == 0 {
								if err := w.desk.Undelivered(budget, result); err != nil {
									t.Error(err)
								}
								return
							}
							own.Lock()
							b.told[code(result)]++
							own.Unlock()
							w.desk.Delivered(result)
						})
						if reversing && roll(3) == 0 {
							break
						}
					}
					if !reversing {
						visits.Wait()
					}
					if reversing || len(b.told) == 0 {
						b.reversed = true
						for {
							mti := messages.MTI([]string{"0400", "0420"}[roll(2)])
							budget, release := context.WithTimeout(t.Context(), time.Duration(50+roll(1000))*time.Millisecond)
							result, err := w.desk.Reverse(budget, w.desk.Admit(undoing(b.req, mti)))
							release()
							if err != nil {
								t.Error(err)
							}
							if result.Answer != nil {
								w.desk.Delivered(result)
								if got := code(result); got == "00" || got == "25" {
									break
								}
							}
							pause(500)
						}
						visits.Wait()
					}
				})
			}
			all.Wait()
			<-time.After(20 * time.Minute)
			for _, b := range books {
				stan := b.req.Message.Get(messages.STAN)
				name := b.req.Key
				found, known, err := w.journal.Find(t.Context(), "pos", name)
				if err != nil {
					t.Fatal(err)
				}
				hold := ""
				if known {
					hold = w.bank.holds[found.Original.Get(messages.STAN)+found.Original.Get(messages.TransmissionTime)]
				}
				if approves := b.told["00"] > 0 && !b.reversed; approves != (hold == "held") {
					t.Errorf("seed %d, %s: told %v, reversed %v, record %s %s, reversal %v, bank %q", seed, stan, b.told, b.reversed, found.Outcome,
						found.Reason, found.Reversal, hold)
				}
				if len(b.told) > 1 && !b.reversed {
					t.Errorf("seed %d, %s: told %v, record %s", seed, stan, b.told, found.Outcome)
				}
			}
		})
	}
}
