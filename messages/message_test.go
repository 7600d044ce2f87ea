package messages_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"acquirerd/card"
	"acquirerd/messages"
)

const testPAN = "4111111111111111"

func pan(t testing.TB) card.PAN {
	t.Helper()
	p, err := card.ParsePAN(testPAN)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func request(t testing.TB) *messages.Message {
	t.Helper()
	m := messages.New(messages.AuthorizationRequest)
	m.SetPAN(pan(t))
	m.Set(messages.ProcessingCode, "000000")
	m.Set(messages.Amount, "000000012345")
	m.Set(messages.TransmissionTime, "1123120059")
	m.Set(messages.STAN, "000042")
	m.Set(messages.RRN, "632700000042")
	m.Set(messages.AcquirerID, "12345")
	m.Set(messages.Terminal, "TERM0001")
	m.Set(messages.Merchant, "MERCHANT0000001")
	m.Set(messages.Currency, "840")
	m.SetSensitive(messages.Track2, testPAN+"=29122011234500000000")
	block, err := card.NewPINBlock([]byte("PINBLCK!"))
	if err != nil {
		t.Fatal(err)
	}
	m.SetPINBlock(block)
	return m
}

func TestTheWorkedMessageOfTheReferenceDialects(t *testing.T) {
	m := management("301", "1123120059", "000042")
	for name, want := range map[string]string{
		"iso87-binary": "\x00\x1c\x08\x00\x82\x20\x00\x00\x00\x00\x00\x00\x04\x00\x00\x00\x00\x00\x00\x00\x11\x23\x12\x00\x59\x00\x00\x42\x03\x01",
		"iso87-ascii":  "0055" + "0800" + "82200000000000000400000000000000" + "1123120059" + "000042" + "301",
	} {
		frame, err := codec(t, name).EncodeFrame(m)
		if err != nil || string(frame) != want {
			t.Errorf("%s: got %x, %v", name, frame, err)
		}
	}
}

func TestMTI(t *testing.T) {
	for _, row := range []struct{ mti, answer, repeat messages.MTI }{
		{"0100", "0110", "0101"}, {"0101", "0110", "0101"}, {"0200", "0210", "0201"}, {"0420", "0430", "0421"},
		{"0421", "0430", "0421"}, {"0800", "0810", "0801"}, {"0110", "0110", "0111"},
	} {
		if got := row.mti.Answer(); got != row.answer {
			t.Errorf("answer to %s: got %s, want %s", row.mti, got, row.answer)
		}
		if got := row.mti.Repeat(); got != row.repeat {
			t.Errorf("repeat of %s: got %s, want %s", row.mti, got, row.repeat)
		}
	}
	for _, mti := range []messages.MTI{"", "01", "01000"} {
		if mti.Class() != 0 || mti.IsRequest() || mti.IsAnswer() || mti.IsRepeat() || mti.Repeat() != mti {
			t.Errorf("%q is taken for an MTI", mti)
		}
	}
}

func TestAnAnswerHasTheKeyOfItsRequestAndNoOther(t *testing.T) {
	c, m := codec(t, "iso87-ascii"), request(t)
	key, ok := c.Key(m)
	if !ok {
		t.Fatal("no key")
	}
	if other, ok := c.Key(messages.NewAnswer(m, "00")); !ok || other != key {
		t.Errorf("answer: got %q, want %q", other, key)
	}
	change := func(name string, edit func(*messages.Message)) {
		changed := m.Clone()
		edit(changed)
		if other, ok := c.Key(messages.NewAnswer(changed, "00")); ok && other == key {
			t.Errorf("%s: the key does not see it", name)
		}
	}
	change("another STAN", func(m *messages.Message) { m.Set(messages.STAN, "000043") })
	change("another time", func(m *messages.Message) { m.Set(messages.TransmissionTime, "1123120100") })
	change("another terminal", func(m *messages.Message) { m.Set(messages.Terminal, "TERM0002") })
	change("another class", func(m *messages.Message) { m.MTI = "0400" })
	change("an advice", func(m *messages.Message) { m.MTI = "0120" })
	change("no STAN", func(m *messages.Message) { m.Delete(messages.STAN) })

	repeat := undo(t, codec(t, "iso87-ascii"), m.Original(), pan(t), "", "")
	first, _ := c.Key(repeat)
	repeat.MTI = repeat.MTI.Repeat()
	if again, _ := c.Key(repeat); again != first {
		t.Errorf("a repeat has the key %q, its first send %q", again, first)
	}
	if strings.Contains(string(key), testPAN) {
		t.Error("the key holds the PAN")
	}
}

func TestAnAnswerThatDisagreesIsNotBelieved(t *testing.T) {
	c, m := codec(t, "iso87-ascii"), request(t)
	for name, row := range map[string]struct {
		edit func(*messages.Message)
		want messages.Element
	}{
		"as it should be":                  {func(*messages.Message) {}, 0},
		"another amount":                   {func(m *messages.Message) { m.Set(messages.Amount, "000000012346") }, messages.Amount},
		"a smaller amount with a full 00":  {func(m *messages.Message) { m.Set(messages.Amount, "000000000001") }, messages.Amount},
		"a smaller amount with partial 10": {func(m *messages.Message) { m.Set(messages.Amount, "000000000001"); m.Set(messages.ResponseCode, "10") }, 0},
		"a larger amount with partial 10":  {func(m *messages.Message) { m.Set(messages.Amount, "000000099999"); m.Set(messages.ResponseCode, "10") }, messages.Amount},
		"another card":                     {func(m *messages.Message) { m.SetSensitive(messages.PAN, "4000000000000002") }, messages.PAN},
		"no card":                          {func(m *messages.Message) { m.Delete(messages.PAN) }, 0},
		"another currency":                 {func(m *messages.Message) { m.Set(messages.Currency, "978") }, messages.Currency},
	} {
		answer := messages.NewAnswer(m, "00")
		row.edit(answer)
		err := c.Echoes(m, answer)
		var format *messages.FormatError
		if row.want == 0 && err != nil || row.want != 0 && (!errors.As(err, &format) || format.Element != row.want) {
			t.Errorf("%s: got %v, want element %d", name, err, row.want)
		}
	}
}

func TestValidateNamesWhatIsMissing(t *testing.T) {
	c := codec(t, "iso87-binary")
	if err := c.Validate(request(t)); err != nil {
		t.Error(err)
	}
	for _, e := range []messages.Element{messages.ProcessingCode, messages.Amount, messages.TransmissionTime, messages.STAN, messages.Terminal, messages.Currency} {
		m := request(t)
		m.Delete(e)
		var format *messages.FormatError
		if err := c.Validate(m); !errors.As(err, &format) || format.Element != e {
			t.Errorf("without %v: got %v", e, err)
		}
	}
	m := request(t)
	m.Delete(messages.PAN)
	if err := c.Validate(m); err != nil {
		t.Errorf("with track 2 and without DE 2: %v", err)
	}
	m.Delete(messages.Track2)
	if err := c.Validate(m); err == nil {
		t.Error("a request without a card was taken")
	}
	m.MTI = "0106"
	if err := c.Validate(m); !errors.Is(err, messages.ErrUnsupported) {
		t.Errorf("0106: got %v", err)
	}
}

func TestTheProcessorsRequestHasNothingOfTheUpstreamsHop(t *testing.T) {
	m := request(t)
	m.SetSensitive(messages.SecurityControl, "2001010100000000")
	m.SetSensitive(messages.MAC, "12345678")
	out := forProcessor(t, m)
	for _, e := range []messages.Element{messages.PINData, messages.SecurityControl, messages.MAC} {
		if out.Has(e) {
			t.Errorf("%v went through", e)
		}
	}
	for e, want := range map[messages.Element]string{messages.STAN: "900001", messages.RRN: "632700900001",
		messages.TransmissionTime: "1123120100", messages.Amount: "000000012345", messages.Terminal: "TERM0001"} {
		if got := out.Get(e); got != want {
			t.Errorf("%v: got %q, want %q", e, got, want)
		}
	}
	if !out.PAN().Equal(pan(t)) || m.Get(messages.STAN) != "000042" || !m.Has(messages.PINData) {
		t.Error("the card is lost, or the upstream's request was changed")
	}
}

func TestTheUpstreamGetsItsOwnNumbersBack(t *testing.T) {
	m := request(t)
	out := forProcessor(t, m)
	answer := messages.NewAnswer(out, "10")
	answer.Set(messages.AuthorizationID, "A1B2C3")
	answer.Set(messages.Amount, "000000010000")
	answer.SetSensitive(messages.ChipData, "\x91\x0a0123456789")
	answer.SetSensitive(messages.MAC, "12345678")
	back := forUpstream(t, m, answer)
	for e, want := range map[messages.Element]string{messages.STAN: "000042", messages.RRN: "632700000042", messages.TransmissionTime: "1123120059",
		messages.AcquirerID: "12345", messages.Amount: "000000010000", messages.AuthorizationID: "A1B2C3", messages.ResponseCode: "10"} {
		if got := back.Get(e); got != want {
			t.Errorf("%v: got %q, want %q", e, got, want)
		}
	}
	if back.MTI != "0110" || back.Reveal(messages.ChipData) != "\x91\x0a0123456789" || back.Has(messages.MAC) || back.Has(messages.PINData) || back.Has(messages.Track2) {
		t.Errorf("got %v", back)
	}
	m.Delete(messages.RRN)
	if got := forUpstream(t, m, answer).Get(messages.RRN); got != "632700900001" {
		t.Errorf("an upstream without an RRN gets %q", got)
	}
}

func TestARequestIsAboutOneCard(t *testing.T) {
	for _, row := range []struct {
		name, pan, track string
		want             string // of the card, or
		fault            messages.Element
	}{
		{"DE 2", "4111111111111111", "", "4111111111111111", 0},
		{"track 2", "", "4111111111111111=2912", "4111111111111111", 0},
		{"track 2 with its own separator", "", "4111111111111111D2912", "4111111111111111", 0},
		{"both", "4111111111111111", "4111111111111111=2912", "4111111111111111", 0},
		{"neither", "", "", "", messages.PAN},
		{"two cards", "4111111111111111", "5500000000000004=2912", "", messages.Track2},
		{"a short DE 2 beside a track", "411111", "5500000000000004=2912", "", messages.PAN},
		{"letters in DE 2", "41111111111A1111", "", "", messages.PAN},
		{"a track without a separator", "4111111111111111", "5500000000000004", "", messages.Track2},
		{"a track that begins with its separator", "4111111111111111", "=5500000000000004=2912", "", messages.Track2},
	} {
		t.Run(row.name, func(t *testing.T) {
			m := messages.New(messages.AuthorizationRequest)
			m.SetSensitive(messages.PAN, row.pan)
			m.SetSensitive(messages.Track2, row.track)
			pan, err := m.Card()
			var format *messages.FormatError
			if row.fault != 0 {
				if !errors.As(err, &format) || format.Element != row.fault || !pan.IsZero() {
					t.Errorf("got %v, %v", pan, err)
				}
			} else if err != nil || pan.Reveal() != row.want {
				t.Errorf("got %v, %v", pan, err)
			}
		})
	}
}

func TestAReversalNamesItsOriginal(t *testing.T) {
	m := request(t)
	text, err := json.Marshal(m.Original())
	if err != nil {
		t.Fatal(err)
	}
	for _, secret := range []string{testPAN, "PINBLCK!", "2912"} {
		if strings.Contains(string(text), secret) {
			t.Errorf("%s stands in %s", secret, text)
		}
	}
	var original messages.Original
	if err := json.Unmarshal(text, &original); err != nil {
		t.Fatal(err)
	}
	reversal := undo(t, codec(t, "iso87-ascii"), original, pan(t), "A1B2C3", "")
	if got, want := reversal.Get(messages.OriginalData), "010000004211231200590000001234500000000000"; got != want {
		t.Errorf("DE 90: got %s, want %s", got, want)
	}
	for _, name := range []string{"iso87-ascii", "iso87-binary"} {
		c := codec(t, name)
		if err := c.Validate(reversal); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if _, err := c.Encode(reversal); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	if reversal.Has(messages.PINData) || reversal.Has(messages.Track2) || reversal.Get(messages.AuthorizationID) != "A1B2C3" {
		t.Errorf("got %v", reversal)
	}
	for _, bad := range []string{"", "{}", `{"mti":"0100","pan":"4111111111111111"}`, `{"mti":"1"}`, `[]`} {
		if err := json.Unmarshal([]byte(bad), &original); err == nil {
			t.Errorf("%s was read", bad)
		}
	}
}

func TestAMessagePrintsMasked(t *testing.T) {
	m := request(t)
	encoded, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	all := fmt.Sprintf("%v %+v %#v %s %q %x %d", m, m, m, m, m, m, m) + string(encoded) + m.LogValue().String() + fmt.Sprint(m.Describe())
	for _, secret := range []string{testPAN, testPAN[6:12], "PINBLCK!", "2912201", "50494e"} {
		if strings.Contains(all, secret) {
			t.Errorf("%s is printed", secret)
		}
	}
	if !strings.Contains(all, "411111******1111") {
		t.Error("the mask is not printed")
	}
	for _, read := range []func(){
		func() { m.Get(messages.PAN) }, func() { m.Set(messages.PINData, "x") }, func() { m.Get(messages.ChipData) },
	} {
		func() {
			defer func() {
				if recover() == nil {
					t.Error("a sensitive element was read or set by a general way")
				}
			}()
			read()
		}()
	}
	m.Clear()
	if m.Has(messages.PAN) || m.Has(messages.PINData) || !m.Has(messages.STAN) {
		t.Errorf("after Clear: %v", m)
	}
}

func TestFrames(t *testing.T) {
	for _, row := range []struct{ dialect, bytes, want string }{
		{"iso87-ascii", "0004abcd", "abcd"}, {"iso87-binary", "\x00\x04abcd", "abcd"},
		{"iso87-ascii", "-001abcd", messages.FrameHeader}, {"iso87-ascii", "+004abcd", messages.FrameHeader},
		{"iso87-ascii", "0x04abcd", messages.FrameHeader}, {"iso87-ascii", "0000", messages.FrameLength},
		{"iso87-binary", "\x00\x00", messages.FrameLength}, {"iso87-binary", "\xff\xff", messages.FrameLength},
		{"iso87-ascii", "9999", messages.FrameLength}, {"iso87-ascii", "00", messages.FrameShort},
		{"iso87-ascii", "0004abc", messages.FrameShort}, {"iso87-binary", "\x00\x04", messages.FrameShort}, {"iso87-ascii", "", "EOF"},
	} {
		for _, reader := range []io.Reader{strings.NewReader(row.bytes), iotest.OneByteReader(strings.NewReader(row.bytes)), iotest.DataErrReader(strings.NewReader(row.bytes))} {
			body, err := codec(t, row.dialect).ReadFrame(reader)
			got := string(body)
			var frame *messages.FrameError
			switch {
			case errors.As(err, &frame):
				got = frame.Class
			case errors.Is(err, io.EOF):
				got = "EOF"
			case err != nil:
				got = err.Error()
			}
			if got != row.want {
				t.Errorf("%s %q: got %q, want %q", row.dialect, row.bytes, got, row.want)
			}
		}
	}
}

func BenchmarkCodec(b *testing.B) {
	for _, name := range []string{"iso87-binary", "iso87-ascii"} {
		c := codec(b, name)
		m := request(b)
		m.SetSensitive(messages.ChipData, strings.Repeat("\x9f\x26\x08ABCDEFGH", 10))
		body, err := c.Encode(m)
		if err != nil {
			b.Fatal(err)
		}
		b.Run(name+"/encode", func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := c.Encode(m); err != nil {
					b.Fatal(err)
				}
			}
		})
		b.Run(name+"/decode", func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := c.Decode(body); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// A terminal that writes the card number into the merchant's name must not bring it into the journal or onto a screen.
func TestACardNumberInFreeTextIsHidden(t *testing.T) {
	m := request(t)
	m.Set(messages.MerchantName, "X"+testPAN+" AND 5555555555554444")
	m.Set(messages.Merchant, testPAN[:15])
	m.Set(messages.Terminal, "TERM0001")
	o := m.Original()
	if got := o.Get(messages.MerchantName); strings.Contains(got, testPAN) || strings.Contains(got, "5555555555554444") {
		t.Errorf("the original has %q", got)
	}
	if got := o.Get(messages.Merchant); got != testPAN[:15] {
		t.Errorf("a merchant's number became %q", got)
	}
	if text := fmt.Sprint(m); strings.Contains(text, testPAN) || strings.Contains(text, "5555555555554444") {
		t.Errorf("it prints as %s", text)
	}
}

// forProcessor carries a request from one 1987 dialect into the other, under numbers of its own.
func forProcessor(t testing.TB, request *messages.Message) *messages.Message {
	t.Helper()
	m, err := messages.NewPassage(codec(t, "iso87-ascii"), codec(t, "iso87-binary")).ForProcessor(request,
		messages.Numbers{STAN: "900001", RRN: "632700900001"}, time.Date(2026, 11, 23, 12, 1, 0, 0, time.UTC))
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func forUpstream(t testing.TB, request, answer *messages.Message) *messages.Message {
	t.Helper()
	m, lost := messages.NewPassage(codec(t, "iso87-binary"), codec(t, "iso87-ascii")).ForUpstream(request, answer,
		time.Date(2026, 11, 23, 12, 1, 0, 0, time.UTC))
	if len(lost) > 0 {
		t.Errorf("lost %v", lost)
	}
	return m
}

// undo is the reversal of an original, which its dialect can say.
func undo(t testing.TB, c *messages.Codec, o messages.Original, pan card.PAN, authorizationID, replacement string) *messages.Message {
	t.Helper()
	m, err := c.NewReversal(o, pan, authorizationID, replacement)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// management is a request of the link dialogue of ISO 8583:1987, with its code in DE 70.
func management(code, transmissionTime, stan string) *messages.Message {
	m := messages.New(messages.NetworkManagementRequest)
	m.Set(messages.TransmissionTime, transmissionTime)
	m.Set(messages.STAN, stan)
	m.Set(messages.NetworkManagement, code)
	return m
}

func TestAPINBlockUnderAESHasSixteenBytes(t *testing.T) {
	block, err := card.NewPINBlock([]byte("PINBLCK!\x00\x01OF AES"))
	if err != nil {
		t.Fatal(err)
	}
	for name, field := range map[string]string{"iso87-binary": "enc: Binary", "iso87-ascii": "enc: HexText"} {
		for _, own := range []string{"length: 16, " + field + ", prefix: Fixed", "length: 16, " + field + ", prefix: ASCII.LL"} {
			c := changed(t, name, "52: { type: Binary, length: 8, "+field+", prefix: Fixed", "52: { type: Binary, "+own)
			m := request(t)
			m.SetPINBlock(block)
			encoded, err := c.Encode(m)
			if err != nil {
				t.Fatal(err)
			}
			back, err := c.Decode(encoded)
			if err != nil {
				t.Fatal(err)
			}
			if got, err := back.PINBlock(); err != nil || !bytes.Equal(got.Reveal(), block.Reveal()) {
				t.Errorf("%s, %s: got %x, %v", name, own, got.Reveal(), err)
			}
		}
		if _, err := codec(t, name).Encode(func() *messages.Message { m := request(t); m.SetPINBlock(block); return m }()); err == nil {
			t.Errorf("%s: 16 bytes were taken for a DE 52 of 8", name)
		}
	}
	m := messages.New(messages.AuthorizationRequest)
	m.SetSensitive(messages.PINData, "of 9 byte")
	if _, err := m.PINBlock(); err == nil {
		t.Error("9 bytes were taken for a PIN block")
	}
}
