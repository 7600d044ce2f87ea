package messages_test

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"errors"
	"strings"
	"testing"

	"acquirerd/messages"
	"acquirerd/specs"
)

func TestAMACIsMadeOverAllBeforeIt(t *testing.T) {
	dialect := *codec(t, "iso87-binary").Dialect()
	dialect.MAC = specs.MAC{Place: specs.MACLast}
	c := messages.NewCodec(&dialect)
	m := undo(t, codec(t, "iso87-binary"), request(t).Original(), pan(t), "", "")
	m.SetSensitive(messages.MAC2, "12345678")
	whole, err := c.Encode(m)
	if err != nil {
		t.Fatal(err)
	}
	if got, has := c.MACInput(m); !has || !bytes.Equal(got, whole[:len(whole)-8]) {
		t.Errorf("got %X, %v; want all but the last 8 bytes of %X", got, has, whole)
	}

	repeat := m.Clone()
	repeat.MTI = m.MTI.Repeat()
	first, _ := c.MACInput(m)
	if got, _ := c.MACInput(repeat); bytes.Equal(got, first) {
		t.Error("the code of a repeat is made over the bytes of its first")
	}
	dialect.MAC.ClearRepeat = true // AS 2805.4
	if got, has := c.MACInput(repeat); !has || !bytes.Equal(got, first) {
		t.Errorf("got %X, want %X", got, first)
	}
	if repeat.MTI != m.MTI.Repeat() {
		t.Error("the message was changed")
	}

	for name, m := range map[string]*messages.Message{"none": request(t), "one in the wrong place": m.Clone()} {
		m.SetSensitive(messages.MAC, "")
		m.SetSensitive(messages.MAC2, "")
		if name != "none" {
			m.SetSensitive(messages.MAC, "12345678")
			if err := c.Validate(m); err == nil || err.Error() != "DE 64 is not the last element, as a MAC is" {
				t.Errorf("%s: got %v", name, err)
			}
		}
		if got, has := c.MACInput(m); has {
			t.Errorf("%s: got %X", name, got)
		}
	}
}

// A key of a test: HMAC-SHA-256 in software, which can fail and counts.
type macKey struct {
	value []byte
	fault error
	calls int
}

func (k *macKey) MAC(_ context.Context, data []byte) ([]byte, error) {
	k.calls++
	h := hmac.New(sha256.New, k.value)
	_, _ = h.Write(data)
	return h.Sum(nil)[:specs.MostMAC], k.fault
}

func (k *macKey) VerifyMAC(ctx context.Context, data, mac []byte) error {
	code, err := k.MAC(ctx, data)
	if err == nil && !bytes.Equal(code[:len(mac)], mac) {
		err = messages.ErrMAC
	}
	return err
}

// withMAC is a built-in dialect whose messages carry a MAC.
func withMAC(t *testing.T, name string, mac specs.MAC) *messages.Codec {
	t.Helper()
	dialect := *codec(t, name).Dialect()
	dialect.MAC = mac
	return messages.NewCodec(&dialect)
}

// decoded is what the other side reads of a frame.
func decoded(t *testing.T, c *messages.Codec, frame []byte) *messages.Message {
	t.Helper()
	body, err := c.ReadFrame(bytes.NewReader(frame))
	if err != nil {
		t.Fatal(err)
	}
	m, err := c.Decode(body)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func TestAMessageIsGivenItsMACAndHeldToIt(t *testing.T) {
	for _, name := range []string{"iso87-ascii", "iso87-binary", "iso87-ebcdic", "visa-like", "iso93-binary"} {
		for _, length := range []int{0, 4, 7} {
			c, key := withMAC(t, name, specs.MAC{Place: specs.MACLast, Length: length}), &macKey{value: []byte("key")}
			m := messages.New(messages.AuthorizationRequest)
			m.Set(messages.STAN, "000042")
			m.Set(messages.TransmissionTime, "1123120059")
			m.SetSensitive(messages.MAC2, "anything") // of another sending: it would make the bit map wide
			frame, err := c.EncodeFrameWithMAC(t.Context(), key, m)
			if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			got := decoded(t, c, frame)
			if !got.Has(messages.MAC) || got.Has(messages.MAC2) {
				t.Errorf("%s: has %v", name, got.Elements())
			}
			if err := c.CheckMAC(t.Context(), key, got); err != nil {
				t.Errorf("%s: %v", name, err)
			}
			if value := got.Reveal(messages.MAC); length > 0 && strings.Trim(value[length:], "\x00") != "" || len(value) != 8 {
				t.Errorf("%s: %X is not %d bytes and zeros", name, value, length)
			}
			if err := c.CheckMAC(t.Context(), &macKey{value: []byte("another")}, got); !errors.Is(err, messages.ErrMAC) {
				t.Errorf("%s: another key takes it: %v", name, err)
			}
			got.SetSensitive(messages.MAC, got.Reveal(messages.MAC)[:7]+"\x01")
			if err := c.CheckMAC(t.Context(), key, got); !errors.Is(err, messages.ErrMAC) {
				t.Errorf("%s: another last byte: %v", name, err)
			}
		}
	}
}

func TestAMACStandsInTheLastBitMap(t *testing.T) {
	c, key := withMAC(t, "iso87-binary", specs.MAC{Place: specs.MACLast}), &macKey{value: []byte("key")}
	m := undo(t, codec(t, "iso87-binary"), request(t).Original(), pan(t), "", "")
	frame, err := c.EncodeFrameWithMAC(t.Context(), key, m)
	if err != nil {
		t.Fatal(err)
	}
	got := decoded(t, c, frame)
	if got.Has(messages.MAC) || !got.Has(messages.MAC2) {
		t.Errorf("a reversal has %v", got.Elements())
	}
	if err := c.CheckMAC(t.Context(), key, got); err != nil {
		t.Error(err)
	}
	got.Delete(messages.MAC2)
	got.SetSensitive(messages.MAC, "12345678")
	if err := c.CheckMAC(t.Context(), key, got); !errors.Is(err, messages.ErrMAC) {
		t.Errorf("one that is not last: %v", err)
	}
}

func TestEachBitOfAMessageIsUnderItsMAC(t *testing.T) {
	for _, name := range []string{"iso87-ascii", "iso87-binary", "iso93-binary"} {
		c, key := withMAC(t, name, specs.MAC{Place: specs.MACLast}), &macKey{value: []byte("key")}
		answer := messages.NewAnswer(request(t), c.Dialect().NetworkManagement.Accepted[0])
		frame, err := c.EncodeFrameWithMAC(t.Context(), key, answer)
		if err != nil {
			t.Fatal(err)
		}
		size := c.Dialect().Framing.Size()
		for at := size; at < len(frame); at++ {
			for bit := range 8 {
				spoiled := bytes.Clone(frame[size:])
				spoiled[at-size] ^= 1 << bit
				m, err := c.Decode(spoiled)
				if err == nil && c.CheckMAC(t.Context(), key, m) == nil {
					t.Errorf("%s: byte %d, bit %d: it is taken", name, at, bit)
				}
			}
		}
	}
}

func TestWhichMessagesCarryAMAC(t *testing.T) {
	chosen := specs.MAC{Place: specs.MACLast, MTIs: []string{"0420", "0800"}}
	for _, test := range []struct {
		mac  specs.MAC
		mti  messages.MTI
		want bool
	}{
		{specs.MAC{}, "0100", false},
		{specs.MAC{Place: specs.MACLast}, "0100", true}, {specs.MAC{Place: specs.MACLast}, "0110", true}, {specs.MAC{Place: specs.MACLast}, "0421", true},
		{specs.MAC{Place: specs.MACLast}, "0800", false}, {specs.MAC{Place: specs.MACLast}, "0810", false},
		{chosen, "0100", false}, {chosen, "0420", true}, {chosen, "0421", true}, {chosen, "0430", false}, {chosen, "0800", true}, {chosen, "0810", false},
	} {
		c, key := withMAC(t, "iso87-binary", test.mac), &macKey{value: []byte("key")}
		m := messages.New(test.mti)
		m.Set(messages.STAN, "000042")
		frame, err := c.EncodeFrameWithMAC(t.Context(), key, m)
		if err != nil {
			t.Fatal(err)
		}
		if got := decoded(t, c, frame).Has(messages.MAC); got != test.want || c.HasMAC(test.mti) != test.want || (key.calls == 1) != test.want {
			t.Errorf("%+v: %s has one: %t, %d calls", test.mac, test.mti, got, key.calls)
		}
		m.Delete(messages.MAC)
		if err := c.CheckMAC(t.Context(), key, m); (err != nil) != test.want || err != nil && !errors.Is(err, messages.ErrMAC) {
			t.Errorf("%+v: %s without one: %v", test.mac, test.mti, err)
		}
		m.SetSensitive(messages.MAC, "12345678") // also where none need be
		if err := c.CheckMAC(t.Context(), key, m); !errors.Is(err, messages.ErrMAC) {
			t.Errorf("%+v: %s with another's: %v", test.mac, test.mti, err)
		}
	}
}

func TestAKeyThatFailsSaysNothingOfAMAC(t *testing.T) {
	fault := errors.New("HSM is gone")
	c, key := withMAC(t, "iso87-binary", specs.MAC{Place: specs.MACLast}), &macKey{value: []byte("key"), fault: fault}
	m := request(t)
	if frame, err := c.EncodeFrameWithMAC(t.Context(), key, m); frame != nil || !errors.Is(err, messages.ErrNoMAC) || !errors.Is(err, fault) || m.Has(messages.MAC) {
		t.Errorf("got %X, %v", frame, err)
	}
	m.SetSensitive(messages.MAC, "12345678")
	if err := c.CheckMAC(t.Context(), key, m); !errors.Is(err, fault) || errors.Is(err, messages.ErrMAC) {
		t.Errorf("got %v", err)
	}
	// What does not fit is not the key's fault.
	m.Set(messages.STAN, "4")
	var format *messages.FormatError
	if _, err := c.EncodeFrameWithMAC(t.Context(), key, m); !errors.As(err, &format) || errors.Is(err, messages.ErrNoMAC) {
		t.Errorf("got %v", err)
	}
}
