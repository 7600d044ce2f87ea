package conn

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"testing/synctest"
	"time"

	"acquirerd/messages"
)

func TestAHeaderThatIsNoLengthClosesTheLinkAndNothingElse(t *testing.T) {
	for _, c := range []struct {
		dialect, header string
		want            cause
	}{
		{"iso87-ascii", "-001", causeFrameHeader},
		{"iso87-ascii", "+001", causeFrameHeader},
		{"iso87-ascii", " 001", causeFrameHeader},
		{"iso87-ascii", "0000", causeFrameLength},
		{"iso87-ascii", "65535", causeFrameLength},
		{"iso87-ascii", "9999", causeFrameLength},
		{"iso87-binary", "\x00\x00", causeFrameLength},
		{"iso87-binary", "\xff\xff", causeFrameLength},
		{"iso87-binary", "-001", causeFrameLength},
	} {
		t.Run(fmt.Sprintf("%s %q", c.dialect, c.header), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h := newHost(t, c.dialect)
				cfg := config(h)
				cfg.Links = cfg.Links[:1]
				r := start(t, cfg, h)
				defer r.end()
				synctest.Wait()
				silent(h)
				a := r.exchange(request(1))
				l, m := last(h, "000001")
				l.write([]byte(c.header))
				synctest.Wait()
				if got := r.Status()[0]; got.State != Down || got.LastError != string(c.want) {
					t.Errorf("got %+v, want %s", got, c.want)
				}
				pass(time.Second)
				h.open()[1].answer(m, "00")
				a.want(t, nil)
			})
		})
	}
}

func TestAFrameThatStopsHalfwayIsCutByItsOwnDeadline(t *testing.T) {
	h := newHost(t, "iso87-ascii")
	frame, err := h.codec.EncodeFrame(messages.NewAnswer(request(1), "00"))
	if err != nil {
		t.Fatal(err)
	}
	for n := 1; n < len(frame); n++ {
		for _, drop := range []bool{true, false} {
			inBubble(t, func(c *Config) { c.Links, c.FrameTimeout = c.Links[:1], time.Second }, func(r *rig, h *host) {
				silent(h)
				a := r.exchange(request(1))
				l, m := last(h, "000001")
				l.write(frame[:n])
				want := causeFrameTimeout
				if drop {
					_ = l.Close()
					want = causeFrameShort
				} else {
					pass(time.Second)
				}
				synctest.Wait()
				if got := r.Status()[0]; got.State != Down || got.LastError != string(want) {
					t.Errorf("after %d bytes: got %+v, want %s", n, got, want)
				}
				pass(time.Second)
				h.open()[1].answer(m, "00")
				a.want(t, nil)
			})
		}
	}
}

func TestAFrameMayArriveInPieces(t *testing.T) {
	inBubble(t, func(c *Config) { c.Links = c.Links[:1] }, func(r *rig, h *host) {
		silent(h)
		var frames []byte
		var attempts []*attempt
		for stan := 1; stan <= 3; stan++ {
			attempts = append(attempts, r.exchange(request(stan)))
			frame, err := h.codec.EncodeFrame(messages.NewAnswer(request(stan), "00"))
			if err != nil {
				t.Fatal(err)
			}
			frames = append(frames, frame...)
		}
		l, _ := last(h, "000003")
		for _, b := range frames {
			l.write([]byte{b})
		}
		for _, a := range attempts {
			a.want(t, nil)
		}
	})
}

func TestATricklingFrameHasNoMoreTimeThanAnother(t *testing.T) {
	inBubble(t, func(c *Config) { c.Links = c.Links[:1] }, func(r *rig, h *host) {
		l := h.open()[0]
		for range 5 {
			l.write([]byte("0"))
			pass(500 * time.Millisecond)
		}
		if got := r.Status()[0]; got.LastError != string(causeFrameHeader) && got.LastError != string(causeFrameTimeout) && got.LastError != string(causeFrameLength) {
			t.Errorf("got %+v", got)
		}
	})
}

func TestAnUndecodableAnswerEndsItsExchangeIfItIsSurelyIts(t *testing.T) {
	for name, c := range map[string]struct {
		spoil func(frame []byte) []byte // the frame of an answer 0110 with DE 39 00 in iso87-ascii
		want  error
		after time.Duration
	}{
		"garbage after the key elements": {func(f []byte) []byte { return setLength(append(f, 'x')) }, ErrUndecodable, 0},
		"a currency that is cut":         {func(f []byte) []byte { return setLength(f[:len(f)-1]) }, ErrUndecodable, 0},
		"garbage before the key is read": {func(f []byte) []byte { return spoilAt(f, 4+4+16+18) }, ErrTimeout, 10 * time.Second},
		"no bit map":                     {func(f []byte) []byte { return setLength(f[:4+4]) }, ErrTimeout, 10 * time.Second},
		"no message type":                {func(f []byte) []byte { return spoilAt(f, 4) }, ErrTimeout, 10 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, nil, func(r *rig, h *host) {
				h.script(func(h *host) {
					h.handle = func(l *hostLink, m *messages.Message) {
						frame, err := h.codec.EncodeFrame(messages.NewAnswer(m, "00"))
						if err != nil {
							t.Error(err)
						}
						l.write(c.spoil(frame))
					}
				})
				a := r.exchange(request(1))
				a.want(t, c.want)
				if a.took != c.after {
					t.Errorf("took %v, want %v", a.took, c.after)
				}
				synctest.Wait()
				r.wantAnswers(kindUndecodable, 1)
				r.wantStates(InService, InService) // the frame was whole: the next one begins where it should
				h.script(func(h *host) { h.handle = nil })
				r.exchange(request(2)).want(t, nil)
				r.exchange(request(1)).want(t, ErrNotSent)
			})
		})
	}
	t.Run("without response code", func(t *testing.T) {
		inBubble(t, nil, func(r *rig, h *host) {
			h.script(func(h *host) {
				h.handle = func(l *hostLink, m *messages.Message) { l.answer(m, "") }
			})
			a := r.exchange(request(1))
			if a.want(t, ErrUndecodable); a.took != 0 {
				t.Errorf("took %v", a.took)
			}
		})
	})
}

func setLength(frame []byte) []byte {
	copy(frame, fmt.Sprintf("%04d", len(frame)-4))
	return frame
}

func spoilAt(frame []byte, at int) []byte {
	frame[at] = 'x'
	return frame
}

func TestNoBytesOfAProcessorHarmTheEndpoint(t *testing.T) {
	chip := []string{
		"\x88\xff\xff", "\x5f\x88\xff\xff\xff\xff\xff\xff\xff\xff", "\x70\x80", "\x70\x84\xff\xff\xff\xff\x00", "\xff\xff\xff\xff\xff",
		"\x9f", "\x9f\x26", "\x9f\x26\xff", "\x00\x00\x00",
	}
	t.Run("in chip data", func(t *testing.T) {
		inBubble(t, nil, func(r *rig, h *host) {
			for i, data := range chip {
				h.script(func(h *host) {
					h.handle = func(l *hostLink, m *messages.Message) {
						answer := messages.NewAnswer(m, "00")
						answer.SetSensitive(messages.ChipData, data)
						l.send(answer)
					}
				})
				r.exchange(request(i)).want(t, nil)
			}
		})
	})
	for _, dialect := range []string{"iso87-ascii", "iso87-binary"} {
		t.Run("at random in "+dialect, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h := newHost(t, dialect)
				r := start(t, config(h), h)
				defer r.end()
				synctest.Wait()
				random := rand.New(rand.NewPCG(7, 7))
				framing := &h.codec.Dialect().Framing
				l := h.open()[0]
				for range 2000 {
					body := make([]byte, 1+random.IntN(200))
					for i := range body {
						body[i] = byte(random.Uint32())
					}
					switch random.IntN(3) {
					case 0: // an MTI and a bit map that look well
						frame, err := h.codec.Encode(messages.NewAnswer(request(1), "00"))
						if err != nil {
							t.Fatal(err)
						}
						body = frame
						body[random.IntN(len(body))] = byte(random.Uint32())
					case 1:
						body = append([]byte("0810"), body...)
					}
					l.write(framing.Append(nil, body))
				}
				synctest.Wait()
				r.wantStates(InService, InService)
				r.exchange(request(2)).want(t, nil)
			})
		})
	}
}

func TestUnaskedMessagesHaveALimit(t *testing.T) {
	inBubble(t, func(c *Config) { c.Unasked = 4 }, func(r *rig, h *host) {
		hang := make(chan struct{})
		r.mu.Lock()
		r.hang = hang
		r.mu.Unlock()
		for stan := range 40 {
			h.open()[0].answer(request(stan), "00")
		}
		r.exchange(request(50)).want(t, nil) // answers still arrive
		synctest.Wait()
		close(hang)
		synctest.Wait()
		if dropped, told := r.metric("acquirerd_unasked_dropped_total"), len(r.unaskedMTIs()); dropped != 40-tellers-4 || told != tellers+4 {
			t.Errorf("%v dropped, %d handed over; %d were being looked at and four waited", dropped, told, tellers)
		}
	})
}
