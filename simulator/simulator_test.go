package simulator_test

import (
	"bufio"
	"context"
	"crypto/des"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"os"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"acquirerd/card"
	"acquirerd/messages"
	"acquirerd/simulator"
	"acquirerd/specs"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	visa        = "4111111111111111"
	mastercard  = "5555555555554444"
	zpkHex      = "0123456789ABCDEFFEDCBA9876543210"
	otherZPKHex = "1032547698BADCFE67452301EFCDAB89"
)

func codec(t testing.TB, name string) *messages.Codec {
	t.Helper()
	dialect, err := specs.Load(name)
	if err != nil {
		t.Fatal(err)
	}
	return messages.NewCodec(dialect)
}

func pan(t testing.TB, digits string) card.PAN {
	t.Helper()
	p, err := card.ParsePAN(digits)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func pin(t testing.TB, digits string) simulator.PIN {
	t.Helper()
	p, err := simulator.ParsePIN(digits)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func key(t testing.TB, text string) *simulator.Key {
	t.Helper()
	k, err := simulator.ParseKey([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func rules(t testing.TB, texts ...string) []simulator.Rule {
	t.Helper()
	var list []simulator.Rule
	for _, text := range texts {
		rule, err := simulator.ParseRule(text)
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, rule)
	}
	return list
}

// serve runs a processor on a listener in memory until stop is called, which waits for its end.
func serve(t testing.TB, cfg simulator.ProcessorConfig) (p *simulator.Processor, listener *simulator.PipeListener, stop func()) {
	t.Helper()
	if cfg.Codec == nil {
		cfg.Codec = codec(t, "iso87-ascii")
	}
	p, err := simulator.NewProcessor(cfg)
	if err != nil {
		t.Fatal(err)
	}
	listener = simulator.NewPipeListener()
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- p.Serve(ctx, listener) }()
	return p, listener, func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}
}

// A peer is the daemon's end of one link, message by message.
type peer struct {
	t      testing.TB
	codec  *messages.Codec
	conn   net.Conn
	reader *bufio.Reader
	stan   int
}

// dial opens a link and, unless first is false, signs on.
func dial(t testing.TB, c *messages.Codec, listener *simulator.PipeListener, firstSTAN int) *peer {
	t.Helper()
	conn, err := listener.Dial(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	return &peer{t: t, codec: c, conn: conn, reader: bufio.NewReader(conn), stan: firstSTAN}
}

func signedOn(t testing.TB, c *messages.Codec, listener *simulator.PipeListener, firstSTAN int) *peer {
	t.Helper()
	p := dial(t, c, listener, firstSTAN)
	if got := p.ask(p.network("001")).Get(messages.ResponseCode); got != "00" {
		t.Fatalf("sign-on is answered %q", got)
	}
	return p
}

func (p *peer) number() string {
	p.stan++
	return fmt.Sprintf("%06d", p.stan)
}

func (p *peer) network(code string) *messages.Message {
	m := messages.New(messages.NetworkManagementRequest)
	m.Set(messages.TransmissionTime, "1123120059")
	m.Set(messages.STAN, p.number())
	m.Set(messages.NetworkManagement, code)
	return m
}

// request builds an 0100 over the amount.
func (p *peer) request(digits string, amount int64) *messages.Message {
	m := messages.New(messages.AuthorizationRequest)
	m.SetSensitive(messages.PAN, digits)
	m.Set(messages.ProcessingCode, "000000")
	m.Set(messages.Amount, fmt.Sprintf("%012d", amount))
	m.Set(messages.TransmissionTime, "1123120059")
	m.Set(messages.STAN, p.number())
	m.Set(messages.RRN, "532712"+m.Get(messages.STAN))
	m.Set(messages.Terminal, "TERM0001")
	m.Set(messages.Currency, "978")
	return m
}

func (p *peer) reversal(of *messages.Message) *messages.Message {
	return undo(p.t, p.codec, of.Original(), of.PAN(), "", "")
}

func (p *peer) send(m *messages.Message) {
	p.t.Helper()
	frame, err := p.codec.EncodeFrame(m)
	if err != nil {
		p.t.Fatal(err)
	}
	if _, err := p.conn.Write(frame); err != nil {
		p.t.Fatal(err)
	}
}

var errQuiet = errors.New("nothing came")

// read returns the next message, or errQuiet after a minute, or the link's end.
func (p *peer) read() (*messages.Message, error) {
	_ = p.conn.SetReadDeadline(time.Now().Add(time.Minute))
	body, err := p.codec.ReadFrame(p.reader)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return nil, errQuiet
	}
	if err != nil {
		return nil, err
	}
	return p.codec.Decode(body)
}

func (p *peer) receive() *messages.Message {
	p.t.Helper()
	m, err := p.read()
	if err != nil {
		p.t.Fatal(err)
	}
	return m
}

func (p *peer) quiet() {
	p.t.Helper()
	if m, err := p.read(); !errors.Is(err, errQuiet) {
		p.t.Fatalf("got %v, %v, want nothing", m, err)
	}
}

func (p *peer) ask(m *messages.Message) *messages.Message {
	p.t.Helper()
	p.send(m)
	return p.receive()
}

func (p *peer) code(m *messages.Message) string {
	p.t.Helper()
	return p.ask(m).Get(messages.ResponseCode)
}

// encipher is TDES in ECB of one block, given in hexadecimal digits.
func encipher(t testing.TB, zpk, block string) string {
	t.Helper()
	key, errKey := hex.DecodeString(zpk + zpk[:16])
	text, errText := hex.DecodeString(block)
	cipher, errCipher := des.NewTripleDESCipher(key)
	if err := errors.Join(errKey, errText, errCipher); err != nil {
		t.Fatal(err)
	}
	cipher.Encrypt(text, text)
	return string(text)
}

func bubble(t *testing.T, f func(t *testing.T)) {
	t.Helper()
	synctest.Test(t, f)
}

func newReader(conn net.Conn) *bufio.Reader { return bufio.NewReader(conn) }

func sprint(m *messages.Message) string { return fmt.Sprint(m) }

// undo is the reversal of an original, which its dialect can say.
func undo(t testing.TB, c *messages.Codec, o messages.Original, pan card.PAN, authorizationID, replacement string) *messages.Message {
	t.Helper()
	m, err := c.NewReversal(o, pan, authorizationID, replacement)
	if err != nil {
		t.Fatal(err)
	}
	return m
}
