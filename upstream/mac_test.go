package upstream_test

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"acquirerd/acquirer"
	"acquirerd/messages"
	"acquirerd/simulator"
	"acquirerd/specs"
	"acquirerd/upstream"
)

var errHSM = errors.New("HSM cannot serve")

// A macKey is a key that a test can take away or make slow.
type macKey struct {
	*simulator.MACKey
	mu   sync.Mutex
	gone bool
	slow func(data []byte) bool // who it lets wait until they give up
}

func (k *macKey) change(change func(k *macKey)) {
	k.mu.Lock()
	defer k.mu.Unlock()
	change(k)
}

func (k *macKey) fault(ctx context.Context, data []byte) error {
	k.mu.Lock()
	gone, waits := k.gone, k.slow != nil && k.slow(data)
	k.mu.Unlock()
	if waits {
		<-ctx.Done()
	}
	if gone || waits {
		return errHSM
	}
	return nil
}

func (k *macKey) MAC(ctx context.Context, data []byte) ([]byte, error) {
	if err := k.fault(ctx, data); err != nil {
		return nil, err
	}
	return k.MACKey.MAC(ctx, data)
}

func (k *macKey) VerifyMAC(ctx context.Context, data, mac []byte) error {
	if err := k.fault(ctx, data); err != nil {
		return err
	}
	return k.MACKey.VerifyMAC(ctx, data, mac)
}

func newMACKey(t *testing.T) *macKey {
	t.Helper()
	key, err := simulator.NewMACKey(simulator.MACX919, 0, []byte("0123456789abcdef"))
	if err != nil {
		t.Fatal(err)
	}
	return &macKey{MACKey: key}
}

// withMACs is inHall of an upstream whose messages carry MACs: of these types, or of all but the network's.
func withMACs(t *testing.T, mtis []string, change func(*upstream.Config), test func(t *testing.T, h *hall, k *macKey)) {
	t.Helper()
	k := newMACKey(t)
	inHall(t, func(c *upstream.Config) {
		dialect := *c.Upstream.Codec.Dialect()
		dialect.MAC, dialect.Answers.MACIncorrect = specs.MAC{Place: specs.MACLast, MTIs: mtis}, "97"
		c.Upstream.Codec, c.MAC = messages.NewCodec(&dialect), k
		if change != nil {
			change(c)
		}
	}, func(t *testing.T, h *hall) {
		h.codec = h.cfg.Upstream.Codec
		test(t, h, k)
	})
}

// proven sends a message with its MAC.
func (c *caller) proven(m *messages.Message) {
	c.h.t.Helper()
	frame, err := c.h.codec.EncodeFrameWithMAC(context.Background(), newMACKeyOf(c.h.t), m)
	if err != nil {
		c.h.t.Fatal(err)
	}
	c.raw(frame)
}

func newMACKeyOf(t *testing.T) messages.MACKey { return newMACKey(t).MACKey }

// answer receives one that carries its MAC.
func (c *caller) answer() *messages.Message {
	c.h.t.Helper()
	m := c.receive()
	if err := c.h.codec.CheckMAC(context.Background(), newMACKeyOf(c.h.t), m); err != nil || m.Has(messages.MAC) == (m.MTI.Class() == messages.Network) {
		c.h.t.Errorf("the answer %v: %v", m, err)
	}
	return m
}

func TestRequestsAreHeldToTheirMACsAndAnswersHaveThem(t *testing.T) {
	withMACs(t, nil, nil, func(t *testing.T, h *hall, _ *macKey) {
		c := h.connect()
		for stan := 1; stan <= 3; stan++ {
			m := request(stan)
			if stan == 2 {
				m.MTI = m.MTI.Repeat()
			}
			c.proven(m)
			if got := c.answer(); got.Get(messages.ResponseCode) != "00" {
				t.Errorf("got %v", got)
			}
		}
		c.send(management("301", "1123120000", "000042")) // the network's carry none
		if got := c.answer(); got.Get(messages.ResponseCode) != "00" {
			t.Errorf("got %v", got)
		}
		_ = c.Close()
		synctest.Wait()
		if !strings.Contains(h.log.String(), `cause="closed by upstream"`) {
			t.Errorf("the log has %s", h.log)
		}
	})
}

func TestARequestWithAChangedByteNeverReachesTheSwitch(t *testing.T) {
	withMACs(t, nil, func(c *upstream.Config) { c.MACFailures = 1 << 20 }, func(t *testing.T, h *hall, _ *macKey) {
		frame, err := h.codec.EncodeFrameWithMAC(context.Background(), newMACKeyOf(t), request(1))
		if err != nil {
			t.Fatal(err)
		}
		size := h.codec.Dialect().Framing.Size()
		for at := size; at < len(frame); at++ {
			c := h.connect()
			spoiled := bytes.Clone(frame)
			spoiled[at] ^= 1
			c.raw(spoiled)
			synctest.Wait()
			_ = c.Close()
			synctest.Wait()
		}
		if len(h.desk.keys) != 0 {
			t.Errorf("%q reached it", h.desk.keys)
		}
		c := h.connect()
		c.proven(request(1)) // none of them stands in its way
		if got := c.answer(); got.Get(messages.ResponseCode) != "00" {
			t.Errorf("got %v", got)
		}
		_ = c.Close()
	})
}

func TestAWrongMACIsAnsweredByTheDialectsCode(t *testing.T) {
	withMACs(t, []string{"0100", "0110", "0400", "0410", "0800", "0810"}, nil, func(t *testing.T, h *hall, _ *macKey) {
		c := h.connect()
		reversal := request(2)
		reversal.MTI = messages.ReversalRequest
		for _, m := range []*messages.Message{request(1), reversal, management("002", "1123120000", "000003")} {
			c.send(m)
			got := c.receive()
			if got.Get(messages.ResponseCode) != "97" || got.Get(messages.STAN) != m.Get(messages.STAN) ||
				got.Has(messages.MAC) || got.Has(messages.MAC2) { // it would be believed
				t.Errorf("%s: got %v", m.MTI, got)
			}
		}
		if len(h.desk.keys) != 0 || strings.Contains(h.log.String(), "signed off") {
			t.Errorf("%q reached the switch; %s", h.desk.keys, h.log)
		}
		if got := h.told("wrong_mac"); got != 3 {
			t.Errorf("%v are counted", got)
		}
		// A repeat of what is known would believe the refusal.
		h.desk.known = h.codec.Identity(request(4))
		c.send(request(4))
		c.proven(request(5))
		if got := c.answer(); got.Get(messages.STAN) != "000005" {
			t.Errorf("got %v", got)
		}
		_ = c.Close()
	})
}

// What cannot be read has no MAC that could be checked. It may be a copy that somebody has spoiled, so as to have a refusal that is proven: there is none.
// By the numbers of what is known there is no refusal at all, which an upstream that looks for no MAC would believe of what is being approved.
func TestASpoiledCopyOfWhatIsKnownIsNotRefused(t *testing.T) {
	withMACs(t, nil, nil, func(t *testing.T, h *hall, _ *macKey) {
		h.desk.known = h.codec.Identity(request(1))
		c := h.connect()
		for stan := 1; stan <= 2; stan++ {
			frame, err := h.codec.EncodeFrame(request(stan))
			if err != nil {
				t.Fatal(err)
			}
			frame[len(frame)-1] = 0xFF // of DE 49, behind all by which it is known
			c.raw(frame)
		}
		c.proven(request(3))
		got := c.receive()
		if got.Get(messages.STAN) == "000001" {
			t.Fatalf("refused: %v", got)
		}
		if got.Get(messages.STAN) != "000002" || got.Get(messages.ResponseCode) != "30" || got.Has(messages.MAC) {
			t.Errorf("what is not known: got %v", got)
		}
		if got := c.answer(); got.Get(messages.STAN) != "000003" {
			t.Errorf("got %v", got)
		}
		_ = c.Close()
	})
}

func TestTooManyWrongMACsEndTheirConnection(t *testing.T) {
	withMACs(t, nil, nil, func(t *testing.T, h *hall, _ *macKey) {
		c, other := h.connect(), h.connect()
		for i := range 4 {
			c.send(request(i + 1))
			c.receive()
		}
		<-time.After(time.Minute)
		for i := range 5 {
			c.send(request(i + 1))
			c.receive()
		}
		if !c.ended() {
			t.Error("it stays open")
		}
		synctest.Wait()
		if !strings.Contains(h.log.String(), `cause="messages with a wrong MAC"`) {
			t.Errorf("the log has %s", h.log)
		}
		other.proven(request(6))
		if got := other.answer(); got.Get(messages.ResponseCode) != "00" {
			t.Errorf("got %v", got)
		}
		again := h.connect()
		again.proven(request(7))
		if got := again.answer(); got.Get(messages.ResponseCode) != "00" {
			t.Errorf("got %v", got)
		}
		_, _ = other.Close(), again.Close()
	})
}

func TestASlowHSMStopsNoReadingAndChangesNoOrder(t *testing.T) {
	withMACs(t, nil, nil, func(t *testing.T, h *hall, k *macKey) {
		var order []string
		handled := func() []string {
			h.desk.mu.Lock()
			defer h.desk.mu.Unlock()
			return slices.Clone(order)
		}
		h.desk.authorize = func(ctx context.Context, req acquirer.Request) (acquirer.Result, error) {
			h.desk.mu.Lock()
			order = append(order, req.Message.Get(messages.STAN))
			h.desk.mu.Unlock()
			return approve(ctx, req)
		}
		c := h.connect()
		k.change(func(k *macKey) { // of the request with STAN 1, and not of its answer
			k.slow = func(data []byte) bool {
				return data[1] == 0x00 && bytes.Contains(data, []byte{0x12, 0, 0, 0, 0, 1})
			}
		})
		c.proven(request(1))
		c.proven(request(2))
		c.proven(request(3))
		began := time.Now()
		synctest.Wait()
		if got := handled(); len(got) != 0 {
			t.Errorf("%q were handled before the first", got)
		}
		for range 2 { // the first has no answer: nobody knows whose it was
			if got := c.answer(); got.Get(messages.STAN) == "000001" || time.Since(began) != 30*time.Second {
				t.Errorf("after %v: %v", time.Since(began), got)
			}
		}
		if got := handled(); len(got) != 2 {
			t.Errorf("handled %q", got)
		}
		if got := h.told("unchecked"); got != 1 {
			t.Errorf("%v are counted", got)
		}
		_ = c.Close()
	})
}

func TestWithoutAnHSMAnApprovalIsUndelivered(t *testing.T) {
	withMACs(t, nil, nil, func(t *testing.T, h *hall, k *macKey) {
		h.desk.authorize = func(ctx context.Context, req acquirer.Request) (acquirer.Result, error) {
			k.change(func(k *macKey) { k.gone = true })
			return approve(ctx, req)
		}
		c := h.connect()
		c.proven(request(1))
		synctest.Wait()
		if len(h.desk.undelivered) != 1 || h.desk.delivered != 0 {
			t.Errorf("%d undelivered, %d delivered", len(h.desk.undelivered), h.desk.delivered)
		}
		c.proven(request(2)) // not checked, not answered, and the connection stays
		synctest.Wait()
		k.change(func(k *macKey) { k.gone = false })
		h.desk.authorize = approve
		c.proven(request(3))
		if got := c.answer(); got.Get(messages.STAN) != "000003" {
			t.Errorf("got %v", got)
		}
		_ = c.Close()
	})
}

func TestADoorThatStopsHandlesWhatItHasRead(t *testing.T) {
	withMACs(t, nil, nil, func(t *testing.T, h *hall, _ *macKey) {
		c := h.connect()
		c.proven(request(1))
		synctest.Wait()
		h.cancel()
		c.answer()
		if !c.ended() {
			t.Error("it stays open")
		}
	})
}

func TestADoorsKeyAndDialectBelongTogether(t *testing.T) {
	codec := codecOf(t)
	cfg := upstream.Config{Upstream: &acquirer.Upstream{Name: "pos", Codec: codec}, MAC: newMACKey(t), MACFailures: -1}
	if _, err := upstream.New(cfg, nil, nil, nil); err == nil || !strings.Contains(err.Error(), "mac_key: messages of the dialect carry no MAC") ||
		!strings.Contains(err.Error(), "mac_failures: must be at least 1") {
		t.Errorf("got %v", err)
	}
	codec.Dialect().MAC.Place = specs.MACLast
	cfg.MAC = nil
	if _, err := upstream.New(cfg, nil, nil, nil); err == nil || !strings.Contains(err.Error(), "mac_key: missing") {
		t.Errorf("got %v", err)
	}
}

// A refusal that is proven is believed. Whoever can hold back a request, and sends a spoiled copy of it ahead, has one of the request itself: nothing of
// the copy is remembered, so that the request is approved after it, and the answer that says so need only be lost.
func TestARefusalOfWhatIsNotProvenIsNotProvenEither(t *testing.T) {
	withMACs(t, nil, nil, func(t *testing.T, h *hall, _ *macKey) {
		c := h.connect()
		c.send(request(1)) // without a MAC
		refusal := c.receive()
		c.proven(request(1))
		approval := c.answer()
		believed := h.codec.CheckMAC(context.Background(), newMACKeyOf(t), refusal) == nil
		if believed && refusal.Get(messages.ResponseCode) != "00" && approval.Get(messages.ResponseCode) == "00" {
			t.Errorf("one request has two answers that are proven: %v and %v", refusal, approval)
		}
		_ = c.Close()
	})
}

// While the HSM cannot check, or has been given too much to check, anybody's copy is as good as the upstream's. What is remembered of it refuses the
// upstream's own request for ten minutes.
func TestWhatCouldNotBeCheckedLeavesNoTrace(t *testing.T) {
	withMACs(t, nil, nil, func(t *testing.T, h *hall, k *macKey) {
		k.change(func(k *macKey) { k.gone = true })
		c := h.connect()
		m := request(1)
		m.SetSensitive(messages.MAC, "anything")
		c.send(m)
		synctest.Wait()
		k.change(func(k *macKey) { k.gone = false })
		c.proven(request(1))
		if got := c.answer(); got.Get(messages.ResponseCode) != "00" { // and nothing was answered before it
			t.Errorf("got %v", got)
		}
		h.desk.mu.Lock()
		defer h.desk.mu.Unlock()
		if len(h.desk.turned) > 0 {
			t.Errorf("a stranger has had %q refused", h.desk.turned)
		}
		if got := h.told("unchecked"); got != 1 {
			t.Errorf("%v are counted", got)
		}
		_ = c.Close()
	})
}
