package conn

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"errors"
	"log/slog"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"acquirerd/messages"
	"acquirerd/specs"
)

var errHSM = errors.New("HSM cannot serve")

// A softKey is HMAC-SHA-256 in software, which a test can take away or make slow.
type softKey struct {
	mu    sync.Mutex
	gone  bool
	slow  func(data []byte) bool // who it lets wait until they give up
	calls int                    // that go on
	most  int
}

func (k *softKey) change(change func(k *softKey)) {
	k.mu.Lock()
	defer k.mu.Unlock()
	change(k)
}

func (k *softKey) MAC(ctx context.Context, data []byte) ([]byte, error) {
	k.mu.Lock()
	k.calls++
	k.most = max(k.most, k.calls)
	gone, waits := k.gone, k.slow != nil && k.slow(data)
	k.mu.Unlock()
	defer k.change(func(k *softKey) { k.calls-- })
	if waits {
		<-ctx.Done()
		return nil, errHSM
	}
	if gone {
		return nil, errHSM
	}
	h := hmac.New(sha256.New, []byte("a key of a test"))
	_, _ = h.Write(data)
	return h.Sum(nil)[:specs.MostMAC], nil
}

func (k *softKey) VerifyMAC(ctx context.Context, data, mac []byte) error {
	code, err := k.MAC(ctx, data)
	if err == nil && !hmac.Equal(code[:len(mac)], mac) {
		err = messages.ErrMAC
	}
	return err
}

// withMACs is inBubble with a dialect whose messages carry MACs: of these types, or of all but the network's.
func withMACs(t *testing.T, mtis []string, change func(*Config), test func(r *rig, h *host, k *softKey)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		h, k := newHost(t, "iso87-ascii"), &softKey{}
		h.codec.Dialect().MAC = specs.MAC{Place: specs.MACLast, MTIs: mtis}
		h.key = &softKey{}
		cfg := config(h)
		cfg.MAC = k
		if change != nil {
			change(&cfg)
		}
		r := start(t, cfg, h)
		defer r.end()
		synctest.Wait()
		test(r, h, k)
	})
}

// spoil makes the host change one byte of each answer to a transaction, from the first one after the frame's length.
func spoil(h *host, at int) {
	h.script(func(h *host) {
		h.handle = func(l *hostLink, m *messages.Message) {
			frame, err := h.codec.EncodeFrameWithMAC(context.Background(), h.key, messages.NewAnswer(m, "00"))
			if err != nil {
				h.t.Error(err)
				return
			}
			frame[h.codec.Dialect().Framing.Size()+at] ^= 1
			l.write(frame)
		}
	})
}

// bare makes the host answer transactions without a MAC.
func bare(h *host) {
	h.script(func(h *host) {
		h.handle = func(l *hostLink, m *messages.Message) {
			frame, err := h.codec.EncodeFrame(messages.NewAnswer(m, "00"))
			if err != nil {
				h.t.Error(err)
			}
			l.write(frame)
		}
	})
}

func TestRequestsAndAnswersCarryMACs(t *testing.T) {
	withMACs(t, nil, nil, func(r *rig, h *host, _ *softKey) {
		for i, mti := range []messages.MTI{"0100", "0200", "0420", "0421", "0120"} {
			r.exchange(requestOf(mti, i+1)).want(t, nil)
		}
		checked := 0
		for _, l := range h.open() {
			l.mu.Lock()
			for _, m := range l.received {
				if err := h.codec.CheckMAC(context.Background(), h.key, m); err != nil || m.Has(messages.MAC) == (m.MTI.Class() == messages.Network) {
					t.Errorf("%s: %v", m.MTI, err)
				}
				checked++
			}
			l.mu.Unlock()
		}
		if checked != 7 { // two sign-ons
			t.Errorf("%d messages were received", checked)
		}
		r.wantAnswers(kindMatched, 7)
		if got := r.metric("acquirerd_mac_failures_total", "endpoint", "processor-a"); got != 0 {
			t.Errorf("%v failures", got)
		}
	})
}

func TestAnAnswerWithAChangedByteIsNeverProcessed(t *testing.T) {
	many := func(c *Config) { c.MACFailures = 1 << 20 }
	withMACs(t, nil, many, func(r *rig, h *host, _ *softKey) {
		whole, err := h.codec.EncodeFrameWithMAC(context.Background(), h.key, messages.NewAnswer(request(1), "00"))
		if err != nil {
			t.Fatal(err)
		}
		length := len(whole) - h.codec.Dialect().Framing.Size()
		wrong := 0
		for at := range length {
			spoil(h, at)
			a := r.exchange(request(at + 1))
			<-a.done
			if a.err == nil || errors.Is(a.err, ErrNotSent) {
				t.Errorf("byte %d: got %v, %v", at, a.answer, a.err)
			}
			if errors.Is(a.err, ErrMAC) {
				wrong++
			}
		}
		if wrong < length/2 {
			t.Errorf("of %d bytes, %d were found by the MAC", length, wrong)
		}
		for _, m := range r.inbox { // one has become a request, and none is heard as an answer to something else
			if m.Arrival != Demanding || !errors.Is(m.Fault, ErrMAC) {
				t.Errorf("heard %+v", m)
			}
		}
	})
}

func TestAnAnswerWithoutAMACIsOfAnUnknownFate(t *testing.T) {
	withMACs(t, nil, nil, func(r *rig, h *host, _ *softKey) {
		bare(h)
		a := r.exchange(request(1))
		a.want(t, ErrMAC)
		if a.took > time.Second || errors.Is(a.err, ErrNotSent) {
			t.Errorf("after %v: %v", a.took, a.err)
		}
		r.wantAnswers(kindWrongMAC, 1)
		if got := r.metric("acquirerd_mac_failures_total", "endpoint", "processor-a"); got != 1 {
			t.Errorf("%v failures", got)
		}
		// The right answer may come after it: then it is a late one.
		l, m := last(h, "000001")
		l.answer(m, "00")
		synctest.Wait()
		if got := r.arrivals(); !slices.Equal(got, []Arrival{Late}) {
			t.Errorf("got %v", got)
		}
	})
}

func TestALateAnswerWithAWrongMACIsNotHeard(t *testing.T) {
	withMACs(t, nil, nil, func(r *rig, h *host, _ *softKey) {
		silent(h)
		r.exchange(request(1)).want(t, ErrTimeout)
		l, m := last(h, "000001")
		answer := messages.NewAnswer(m, "00")
		frame, err := h.codec.EncodeFrame(answer)
		if err != nil {
			t.Fatal(err)
		}
		l.write(frame)
		synctest.Wait()
		if got := r.arrivals(); len(got) != 0 {
			t.Errorf("heard %v", got)
		}
		r.wantAnswers(kindWrongMAC, 1)
		l.send(answer)
		synctest.Wait()
		if got := r.arrivals(); !slices.Equal(got, []Arrival{Late}) {
			t.Errorf("the right one: heard %v", got)
		}
	})
}

func TestWithoutAnHSMNothingIsSent(t *testing.T) {
	withMACs(t, nil, nil, func(r *rig, h *host, k *softKey) {
		before := h.traffic()
		k.change(func(k *softKey) { k.gone = true })
		a := r.exchange(request(1))
		a.want(t, ErrNotSent)
		if !errors.Is(a.err, messages.ErrNoMAC) || h.traffic() != before {
			t.Errorf("got %v, %d bytes", a.err, h.traffic()-before)
		}
		k.change(func(k *softKey) { k.gone, k.slow = false, func([]byte) bool { return true } })
		a = r.exchange(request(2))
		a.want(t, ErrNotSent)
		if a.took != 10*time.Second || h.traffic() != before {
			t.Errorf("with one that hangs: after %v, %d bytes", a.took, h.traffic()-before)
		}
		k.change(func(k *softKey) { k.slow = nil })
		r.exchange(request(1)).want(t, nil) // its key is free
	})
}

func TestASlowHSMHoldsUpNoLink(t *testing.T) {
	withMACs(t, nil, func(c *Config) { c.Links = c.Links[:1] }, func(r *rig, h *host, k *softKey) {
		silent(h)
		first, second := r.exchange(request(1)), r.exchange(request(2))
		pass(time.Second)
		k.change(func(k *softKey) {
			k.slow = func(data []byte) bool { return bytes.Contains(data, []byte("0405000001")) }
		})
		l, m := last(h, "000001")
		l.answer(m, "00")
		synctest.Wait()
		_, m = last(h, "000002")
		l.answer(m, "00")
		second.want(t, nil)
		if second.took != time.Second || !first.running() {
			t.Errorf("the second took %v", second.took)
		}
		first.want(t, ErrTimeout) // its answer could not be checked
		pass(time.Minute)
		r.wantAnswers(kindUnchecked, 1)
		r.wantStates(InService)
		if got := r.metric("acquirerd_mac_failures_total", "endpoint", "processor-a"); got != 0 {
			t.Errorf("%v failures: nobody knows whether it was one", got)
		}
	})
}

func TestAnHSMThatIsGoneMakesAnAnswerUnknownAtOnce(t *testing.T) {
	withMACs(t, nil, nil, func(r *rig, h *host, k *softKey) {
		silent(h)
		a := r.exchange(request(1))
		synctest.Wait()
		k.change(func(k *softKey) { k.gone = true })
		l, m := last(h, "000001")
		l.answer(m, "00")
		a.want(t, ErrMAC)
		if a.took != 0 || !errors.Is(a.err, errHSM) {
			t.Errorf("after %v: %v", a.took, a.err)
		}
		r.wantAnswers(kindUnchecked, 1)
	})
}

func TestTheChecksThatWaitAreBounded(t *testing.T) {
	few := func(c *Config) { c.Links, c.InFlight, c.Unasked = c.Links[:1], 20, 1 }
	withMACs(t, nil, few, func(r *rig, h *host, k *softKey) {
		k.change(func(k *softKey) { k.slow = func(data []byte) bool { return bytes.Contains(data, []byte("0110")) } })
		l := h.open()[0]
		for i := range 30 {
			l.send(messages.NewAnswer(request(i+1), "00"))
		}
		synctest.Wait()
		k.change(func(k *softKey) {
			if k.most != checksAtOnce {
				t.Errorf("%d calls at once", k.most)
			}
		})
		if got := r.unchecked.Load(); got != 21 {
			t.Errorf("%d wait", got)
		}
		r.wantAnswers(kindUnchecked, 9)
		pass(10 * time.Second)
		r.wantAnswers(kindUnchecked, 30)
		r.wantStates(InService)
	})
}

// fail has the host send so many answers without a MAC on link 0.
func fail(r *rig, h *host, times int) {
	frame, err := h.codec.EncodeFrame(messages.NewAnswer(request(9), "00"))
	if err != nil {
		h.t.Fatal(err)
	}
	for range times {
		h.at("one")[0].write(frame) // which of the links was there first is not known
	}
	synctest.Wait()
}

func TestTooManyWrongMACsSuspendTheirLink(t *testing.T) {
	withMACs(t, nil, nil, func(r *rig, h *host, _ *softKey) {
		fail(r, h, 4)
		r.wantStates(InService, InService)
		pass(time.Minute)
		fail(r, h, 4) // those before do not count any more
		r.wantStates(InService, InService)
		if got := r.metric("acquirerd_link_suspended", "0"); got != 0 {
			t.Errorf("suspended: %v", got)
		}
		fail(r, h, 1)
		r.wantStates(Down, InService)
		s := r.Status()
		if !s[0].Held || !s[0].Suspended || s[0].LastError != string(causeMAC) || s[1].Held || s[1].Suspended {
			t.Errorf("got %+v", s)
		}
		if got := r.metric("acquirerd_link_suspended", "0"); got != 1 {
			t.Errorf("suspended: %v", got)
		}
		if got := h.at("one")[0].seen(); !slices.Equal(got, []string{"0800/001", "0800/301", "0800/002"}) {
			t.Errorf("it was told %v", got)
		}
		for i := range 3 {
			r.exchange(request(i+100)).want(t, nil) // by the other
		}
		pass(24 * time.Hour)
		r.wantStates(Down, InService)
		if err := r.Resume(0); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		r.wantStates(InService, InService)
		if s := r.Status(); s[0].Held || s[0].Suspended {
			t.Errorf("got %+v", s[0])
		}
	})
}

func TestASuspendedLinkComesBackInItsTime(t *testing.T) {
	withMACs(t, nil, func(c *Config) { c.MACFailures, c.MACSuspension = 1, 10*time.Minute }, func(r *rig, h *host, _ *softKey) {
		fail(r, h, 1)
		r.wantStates(Down, InService)
		pass(10*time.Minute - time.Second)
		r.wantStates(Down, InService)
		pass(time.Second)
		r.wantStates(InService, InService)
	})
	withMACs(t, nil, func(c *Config) { c.MACFailures, c.MACSuspension = 1, 10*time.Minute }, func(r *rig, h *host, _ *softKey) {
		fail(r, h, 1)
		if err := r.Drain(0); err != nil { // an operator wants it down
			t.Fatal(err)
		}
		pass(time.Hour)
		r.wantStates(Down, InService)
	})
}

func TestARequestThatIsNotProvenIsToldAsSuch(t *testing.T) {
	for _, mtis := range [][]string{nil, {"0120", "0130", "0800", "0810"}} {
		withMACs(t, mtis, nil, func(r *rig, h *host, _ *softKey) {
			if !r.InService() {
				t.Fatalf("not in service: %+v", r.Status())
			}
			l := h.open()[0]
			unproven := []*messages.Message{keyChange(), management("301", "0102030405", "000779"), requestOf(messages.AuthorizationAdvice, 1)}
			if mtis == nil {
				unproven = unproven[2:]
			}
			for i, m := range unproven {
				if m.MTI.Class() == messages.Network {
					m.SetSensitive(messages.MAC2, "12345678")
				}
				frame, err := h.codec.EncodeFrame(m)
				if err != nil {
					t.Fatal(err)
				}
				l.write(frame)
				if got := r.demanded(i); got.Arrival != Demanding || !errors.Is(got.Fault, ErrMAC) || got.MTI != m.MTI {
					t.Errorf("%s: got %+v", m.MTI, got)
				}
			}
			if got := l.seen(); len(got) != 1 { // an echo is not answered as one
				t.Errorf("it was told %v", got)
			}
			// The same with its code is served.
			l.send(requestOf(messages.AuthorizationAdvice, 2))
			m := r.demanded(len(unproven))
			if m.Fault != nil {
				t.Fatalf("got %v", m.Fault)
			}
			if err := m.Reply(context.Background(), messages.NewAnswer(m.Message, "00")); err != nil {
				t.Error(err)
			}
			synctest.Wait()
			if got := l.received[len(l.received)-1]; got.MTI != "0130" || h.codec.CheckMAC(context.Background(), h.key, got) != nil {
				t.Errorf("its answer: %v", got)
			}
		})
	}
}

func TestRequestsAreToldInTheOrderInWhichTheyCame(t *testing.T) {
	withMACs(t, nil, func(c *Config) { c.Links = c.Links[:1] }, func(r *rig, h *host, k *softKey) {
		k.change(func(k *softKey) {
			k.slow = func(data []byte) bool { return bytes.Contains(data, []byte("0405000001")) }
		})
		l := h.open()[0]
		for i := 1; i <= 3; i++ {
			l.send(requestOf(messages.AuthorizationAdvice, i))
		}
		pass(9 * time.Second)
		if got := r.unaskedMTIs(); len(got) != 0 {
			t.Errorf("told %v", got)
		}
		pass(time.Second)
		if got := r.unaskedMTIs(); len(got) != 3 {
			t.Errorf("told %v", got)
		}
	})
}

func TestTheDialogueCarriesMACs(t *testing.T) {
	withMACs(t, []string{"0800", "0810"}, func(c *Config) { c.Links = c.Links[:1] }, func(r *rig, h *host, k *softKey) {
		r.wantStates(InService)
		l := h.open()[0]
		l.send(management("301", "0102030405", "000779"))
		synctest.Wait()
		l.mu.Lock()
		for _, m := range l.received {
			if err := h.codec.CheckMAC(context.Background(), h.key, m); err != nil {
				t.Errorf("%s: %v", m.MTI, err)
			}
		}
		if len(l.received) != 2 {
			t.Errorf("received %d", len(l.received))
		}
		l.mu.Unlock()

		// An HSM that is gone is to the link as a processor that does not answer.
		k.change(func(k *softKey) { k.gone = true })
		pass(60*time.Second + 2*5*time.Second + time.Second)
		r.wantStates(InService)
		pass(5 * time.Second)
		if s := r.Status()[0]; s.State == InService || s.LastError != string(causeEchoMissed) {
			t.Errorf("got %+v", s)
		}
		pass(time.Minute)
		if s := r.Status()[0]; s.State == InService || s.LastError != string(causeSignOnTimeout) {
			t.Errorf("got %+v", s)
		}
		k.change(func(k *softKey) { k.gone = false })
		pass(time.Minute)
		r.wantStates(InService)
	})
}

// A link whose processor has another key never comes into service, and the log says why: once a minute, however often it is tried.
func TestASignOnThatIsNotProvenIsNone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t, "iso87-ascii")
		h.codec.Dialect().MAC = specs.MAC{Place: specs.MACLast, MTIs: []string{"0800", "0810"}}
		h.key = &softKey{}
		bareAnswer := func(l *hostLink, m *messages.Message) {
			frame, err := h.codec.EncodeFrame(messages.NewAnswer(m, "00"))
			if err != nil {
				t.Error(err)
			}
			l.write(frame)
		}
		h.manage = bareAnswer
		cfg := config(h)
		cfg.Links, cfg.MAC, cfg.MACFailures = cfg.Links[:1], &softKey{}, 3
		var log lines
		r := startWith(t, cfg, h, slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelError}))
		defer r.end()
		pass(strangerInterval - time.Millisecond)
		if s := r.Status()[0]; s.State == InService || s.Suspended || s.LastError != string(causeMAC) || s.Reconnects < 3 {
			t.Errorf("got %+v", s)
		}
		if got := log.holding("before its sign-on"); got != 1 {
			t.Errorf("the log has it %d times: %s", got, &log)
		}
		if got, tries := r.metric("acquirerd_mac_failures_total", "endpoint", "processor-a"), r.metric("acquirerd_link_failures_total", "0", string(causeMAC)); got < 3 || got != tries {
			t.Errorf("%v failures in %v connections", got, tries)
		}
		pass(strangerInterval)
		if got := log.holding("before its sign-on"); got != 2 {
			t.Errorf("a minute later the log has it %d times", got)
		}
		h.script(func(h *host) { h.manage = nil }) // the keys are mended
		pass(time.Minute)
		r.wantStates(InService)
	})
}

// lines are a log.
type lines struct {
	mu   sync.Mutex
	text strings.Builder
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

func (l *lines) holding(what string) int { return strings.Count(l.String(), what) }

func TestAKeyAndADialectBelongTogether(t *testing.T) {
	h := newHost(t, "iso87-ascii")
	cfg := config(h)
	cfg.MAC = &softKey{}
	if err := cfg.check(); err == nil || !strings.Contains(err.Error(), "mac_key: messages of the dialect carry no MAC") {
		t.Errorf("got %v", err)
	}
	h.codec.Dialect().MAC.Place = specs.MACLast
	cfg.MAC, cfg.MACFailures, cfg.MACSuspension = nil, -1, -1
	err := cfg.check()
	for _, want := range []string{"mac_key: missing", "mac_failures: must be at least 1", "mac_suspension: must not be negative"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %s", err, want)
		}
	}
}

// What does not keep the format has no code that could be checked. The callback is told so, and takes it for nobody's.
func TestARequestThatCannotBeReadIsNotProven(t *testing.T) {
	withMACs(t, nil, nil, func(r *rig, h *host, _ *softKey) {
		advice := requestOf(messages.AuthorizationAdvice, 1)
		advice.Set(messages.Terminal, "TERM0001")
		frame, err := h.codec.EncodeFrameWithMAC(context.Background(), h.key, advice)
		if err != nil {
			t.Fatal(err)
		}
		frame[len(frame)-1] = 'x' // of the MAC in hexadecimal digits
		h.open()[0].write(frame)
		got := r.demanded(0)
		var format *messages.FormatError
		if !errors.Is(got.Fault, ErrMAC) || !errors.As(got.Fault, &format) || errors.Is(got.Fault, messages.ErrMAC) {
			t.Errorf("got %v", got.Fault)
		}
		if got := r.metric("acquirerd_mac_failures_total", "endpoint", "processor-a"); got != 0 {
			t.Errorf("%v failures: it may be a fault of the line", got)
		}
	})
}

// A reject header has no MAC: anybody could turn an approval into a refusal by it.
func TestARejectHeaderProvesNothing(t *testing.T) {
	for _, macs := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			h := newHost(t, "visa-like")
			cfg := config(h)
			if macs {
				h.codec.Dialect().MAC = specs.MAC{Place: specs.MACLast}
				h.key, cfg.MAC = &softKey{}, &softKey{}
			}
			h.handle = func(l *hostLink, m *messages.Message) {
				body, err := h.codec.Encode(m)
				if err != nil {
					t.Error(err)
				}
				returned := append(make([]byte, 26, 26+len(body)), body...) // see simulator.rejection
				copy(returned, body[:22])
				returned[0], returned[3], returned[4], returned[24], returned[25] = 26, byte(len(returned)>>8), byte(len(returned)), 1, 1
				l.write(h.codec.Dialect().Framing.Append(nil, returned))
			}
			r := start(t, cfg, h)
			defer r.end()
			synctest.Wait()
			m := request(1)
			m.Set(messages.RRN, "000000000001")
			m.Set(messages.Merchant, "MERCHANT       ")
			m.Set(messages.POSEntryMode, "051")
			m.Set(messages.POSConditionCode, "00")
			a := r.exchange(m)
			<-a.done
			if macs != errors.Is(a.err, ErrMAC) || !macs && (a.err != nil || a.answer.Get(messages.ResponseCode) != "30") {
				t.Errorf("MACs %t: got %v, %v", macs, a.answer, a.err)
			}
		})
	}
}

// reflect makes the host a mirror, as somebody between the two could be who has no key: it sends each of our transactions back as it came, and
// what we say to that as the answer to it. The processor has none of it.
func reflect(h *host, part func(m *messages.Message) *messages.Message) {
	mirror := func(l *hostLink, m *messages.Message) {
		frame, err := h.codec.EncodeFrame(part(m))
		if err != nil {
			h.t.Error(err)
		}
		l.write(frame)
	}
	h.script(func(h *host) { h.handle = mirror })
}

// One key makes the MACs of both directions: what we have sent is proven by it when it comes back, and so is the answer that we would give. Such an
// answer would decline what the processor has approved, or acknowledge a reversal that it never had.
func TestWhatComesBackIsNotAnswered(t *testing.T) {
	bareOf := func(m *messages.Message) *messages.Message {
		m = m.Clone()
		m.Delete(messages.MAC)
		m.Delete(messages.MAC2)
		return m
	}
	oddOf := func(m *messages.Message) *messages.Message {
		m = m.Clone()
		m.MTI = m.MTI.Repeat()
		return m
	}
	for name, part := range map[string]func(m *messages.Message) *messages.Message{
		"as it is": (*messages.Message).Clone, "without its MAC": bareOf, "as a repeat with a MAC that is not its": oddOf,
	} {
		for _, mti := range []messages.MTI{"0100", "0200", "0420", "0421", "0120"} {
			withMACs(t, nil, nil, func(r *rig, h *host, _ *softKey) {
				reflect(h, part)
				a := r.exchange(requestOf(mti, 1))
				synctest.Wait()
				r.mu.Lock()
				heard := slices.Clone(r.inbox)
				r.mu.Unlock()
				for _, m := range heard { // as the switch does
					if err := m.Reply(context.Background(), messages.NewAnswer(m.Message, "00")); err != nil {
						t.Error(err)
					}
				}
				synctest.Wait()
				for _, l := range h.open() {
					l.mu.Lock()
					received := slices.Clone(l.received)
					l.mu.Unlock()
					for _, m := range received {
						if m.MTI.IsAnswer() {
							l.send(m)
						}
					}
				}
				if a.want(t, ErrTimeout); a.answer != nil {
					t.Errorf("%s %s: our own answer is believed: %v", mti, name, a.answer)
				}
				if len(heard) > 0 {
					t.Errorf("%s %s: told %d", mti, name, len(heard))
				}
				if got := r.metric("acquirerd_mac_failures_total", "endpoint", "processor-a"); got != 1 {
					t.Errorf("%s %s: %v failures", mti, name, got)
				}
			})
		}
	}
}

// A reversal is sent again for as long as it is owed, and somebody could keep for that the answer that we give to an earlier sending of it, when that is
// not waited for any more.
func TestAReversalThatComesBackMuchLaterIsNotAnswered(t *testing.T) {
	withMACs(t, nil, nil, func(r *rig, h *host, _ *softKey) {
		silent(h)
		r.exchange(requestOf("0421", 1)).want(t, ErrTimeout)
		l, m := last(h, "000001")
		pass(time.Hour)
		l.send(m)
		synctest.Wait()
		if got := r.unaskedMTIs(); len(got) != 0 {
			t.Errorf("told %v", got)
		}
	})
}

// A processor may name what it has reversed by the numbers of our request, and so by those of our reversal.
func TestAReversalOfTheProcessorsWithNumbersOfOursIsHeard(t *testing.T) {
	withMACs(t, nil, nil, func(r *rig, h *host, _ *softKey) {
		silent(h)
		a := r.exchange(requestOf("0420", 1))
		synctest.Wait()
		l, m := last(h, "000001")
		its := m.Clone()
		its.Set(messages.ResponseCode, "68")
		l.send(its)
		synctest.Wait()
		if got := r.unaskedMTIs(); !slices.Equal(got, []string{"0420/000001"}) || !a.running() {
			t.Errorf("told %v", got)
		}
		if got := r.metric("acquirerd_mac_failures_total", "endpoint", "processor-a"); got != 0 {
			t.Errorf("%v failures", got)
		}
		l.answer(m, "00")
		a.want(t, nil)
	})
}

func TestTheMemoryOfWhatWasSentIsBounded(t *testing.T) {
	var s sentMemory
	for i := range mostSent + 10 {
		s.enter(messages.Key(strconv.Itoa(i)), "mac")
		s.enter(messages.Key(strconv.Itoa(i)), "mac") // once
	}
	if len(s.known) != mostSent || len(s.order) != mostSent || s.has("9", "mac") || !s.has("10", "mac") || s.has("10", "other") {
		t.Errorf("%d, %d", len(s.known), len(s.order))
	}
}

func TestASignOnThatComesBackIsNone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t, "iso87-ascii")
		h.codec.Dialect().MAC = specs.MAC{Place: specs.MACLast, MTIs: []string{"0800", "0810"}}
		h.key = &softKey{}
		h.manage = func(l *hostLink, m *messages.Message) {
			frame, err := h.codec.EncodeFrame(m)
			if err != nil {
				t.Error(err)
			}
			l.write(frame)
		}
		cfg := config(h)
		cfg.MAC, cfg.Links = &softKey{}, cfg.Links[:1]
		r := start(t, cfg, h)
		defer r.end()
		synctest.Wait()
		if got := h.open()[0].seen(); len(got) != 1 {
			t.Errorf("it was told %v", got)
		}
		if r.InService() {
			t.Error("in service")
		}
	})
}

// An endpoint keeps its dialect, so that it is that one's MAC that the new configuration needs a key for: a file that says of the same version that
// messages carry none does not have answers believed without.
func TestAReloadTakesNoKeyAway(t *testing.T) {
	withMACs(t, nil, nil, func(r *rig, h *host, k *softKey) {
		without := config(h)
		dialect := *h.codec.Dialect()
		dialect.MAC = specs.MAC{}
		without.Codec = messages.NewCodec(&dialect)
		if err := r.Reconfigure(without); err == nil || !strings.Contains(err.Error(), "mac_key: missing") {
			t.Errorf("got %v", err)
		}
		bare(h)
		r.exchange(request(1)).want(t, ErrMAC)
		with := config(h)
		with.MAC = k
		if err := r.Reconfigure(with); err != nil {
			t.Error(err)
		}
	})
}

// An echo is of the link, and changes nothing: it waits for no check of a request that came before it, or the processor would close the link for a
// slow HSM of ours.
func TestAnEchoWaitsForNoCheck(t *testing.T) {
	withMACs(t, nil, func(c *Config) { c.Links = c.Links[:1] }, func(_ *rig, h *host, k *softKey) {
		k.change(func(k *softKey) { k.slow = func([]byte) bool { return true } })
		l := h.open()[0]
		l.send(requestOf(messages.AuthorizationAdvice, 1))
		l.send(management("301", "0102030405", "000779"))
		synctest.Wait()
		if got := l.seen(); len(got) != 2 || got[1] != "0810/301" {
			t.Errorf("it was told %v", got)
		}
	})
}

// Who may dial a link need not be the processor. What a stranger sends before a sign-on closes the connection; it does not take the processor's link out of
// service, and ends no wait for an answer of the processor.
func TestAStrangerDoesNotSuspendALinkOfTheProcessors(t *testing.T) {
	change := func(c *Config, d *doorstep) {
		d.h.codec.Dialect().MAC = specs.MAC{Place: specs.MACLast}
		d.h.key, c.MAC = &softKey{}, &softKey{}
	}
	onDoorstep(t, 2, change, func(r *rig, h *host, d *doorstep) {
		frame, err := h.codec.EncodeFrame(messages.NewAnswer(request(9), "00"))
		if err != nil {
			t.Fatal(err)
		}
		d.dial("192.0.2.1:5000")
		silent(h)
		a := r.exchange(request(9))
		synctest.Wait()
		l, m := last(h, "000009")

		h.script(func(h *host) { h.manage = func(*hostLink, *messages.Message) {} })
		for i := range 5 {
			stranger := d.dial("192.0.2.1:" + strconv.Itoa(6000+i))
			stranger.write(frame)
			synctest.Wait()
			if !stranger.isClosed() {
				t.Errorf("connection %d stays open", i)
			}
			pass(time.Second)
		}
		if !a.running() {
			t.Errorf("the wait for the processor's answer has ended: %v", a.err)
		}
		l.answer(m, "00")
		a.want(t, nil)
		if got := r.metric("acquirerd_mac_failures_total", "endpoint", "processor-a"); got != 5 {
			t.Errorf("%v failures", got)
		}
		for _, s := range r.Status() {
			if s.Suspended {
				t.Errorf("got %+v", s)
			}
		}
		h.script(func(h *host) { h.manage = nil })
		d.dial("192.0.2.1:5001")
		pass(time.Minute)
		r.wantStates(InService, InService)

		// After the sign-on they count.
		for range 5 {
			l.write(frame)
		}
		synctest.Wait()
		if got := r.states(); !slices.Contains(got, Down) || !slices.ContainsFunc(r.Status(), func(s LinkStatus) bool { return s.Suspended }) {
			t.Errorf("got %+v", r.Status())
		}
	})
}

// On another host than the first one a link tries the better ones beside the session that serves: what comes there takes nothing from that.
func TestABetterHostWithAnotherKeyIsNotTaken(t *testing.T) {
	onHosts(t, []string{"better", "worse"}, func(c *Config, ways *roads) {
		ways.h.codec.Dialect().MAC = specs.MAC{Place: specs.MACLast}
		ways.h.key, c.MAC, c.MACFailures = &softKey{}, &softKey{}, 1
		ways.set(ways.closed, "better", true)
	}, func(r *rig, h *host, ways *roads) {
		r.wantStates(InService)
		frame, err := h.codec.EncodeFrame(messages.NewAnswer(request(9), "00"))
		if err != nil {
			t.Fatal(err)
		}
		h.script(func(h *host) {
			h.manage = func(l *hostLink, m *messages.Message) {
				if l.address == "better" {
					l.write(frame)
					return
				}
				l.answer(m, "00")
			}
		})
		ways.set(ways.closed, "better", false)
		pass(3 * time.Minute)
		if s := r.Status()[0]; s.State != InService || s.Suspended || s.Host != 1 || s.LastError != string(causeMAC) {
			t.Errorf("got %+v", s)
		}
	})
}
