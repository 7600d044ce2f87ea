package main

import (
	"bufio"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"acquirerd/messages"
	"acquirerd/simulator"
)

// certificate writes a certificate that signs itself, and its key, for one name.
func certificate(t *testing.T, name string) (cert, key string) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	form := &x509.Certificate{SerialNumber: big.NewInt(time.Now().UnixNano()), DNSNames: []string{name}, Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true,
		KeyUsage:    x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}}
	signed, err := x509.CreateCertificate(rand.Reader, form, form, &private.PublicKey, private)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	cert, key = filepath.Join(t.TempDir(), name+".pem"), filepath.Join(t.TempDir(), name+".key")
	for path, block := range map[string]*pem.Block{cert: {Type: "CERTIFICATE", Bytes: signed}, key: {Type: "PRIVATE KEY", Bytes: raw}} {
		if err := os.WriteFile(path, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return cert, key
}

func TestPartiesTalkOverTLS(t *testing.T) {
	cert, key := certificate(t, "processor.test")
	clientCert, clientKey := certificate(t, "upstream.test")
	p := startProcessor(t, "--dialect", "iso93-binary", "--tls-cert", cert, "--tls-key", key, "--tls-ca", clientCert)
	ask := func(args ...string) (int, string, string) {
		return acquirersim(t.Context(), append([]string{"upstream", "--connect", p.address, "--dialect", "iso93-binary", "--card", "4111111111111111",
			"--amount", "9051", "--expect", "51"}, args...)...)
	}
	if code, _, stderr := ask("--tls-cert", clientCert, "--tls-key", clientKey, "--tls-ca", cert, "--tls-name", "processor.test"); code != exitOK {
		t.Errorf("exit %d, %s", code, stderr)
	}
	for name, args := range map[string][]string{
		"without a certificate": {"--tls-ca", cert, "--tls-name", "processor.test"},
		"for another name":      {"--tls-cert", clientCert, "--tls-key", clientKey, "--tls-ca", cert},
		"without TLS":           {},
	} {
		if code, _, stderr := ask(append(args, "--connect-timeout", "500ms")...); code != exitFault || strings.Count(stderr, "\n") != 1 {
			t.Errorf("%s: exit %d, %s", name, code, stderr)
		}
	}
}

// A link is the daemon's end of one.
type link struct {
	t      *testing.T
	codec  *messages.Codec
	conn   net.Conn
	reader *bufio.Reader
}

func (l *link) send(m *messages.Message) {
	l.t.Helper()
	frame, err := l.codec.EncodeFrame(m)
	if err != nil {
		l.t.Fatal(err)
	}
	if _, err := l.conn.Write(frame); err != nil {
		l.t.Fatal(err)
	}
}

func (l *link) receive() *messages.Message {
	l.t.Helper()
	body, err := l.codec.ReadFrame(l.reader)
	if err != nil {
		l.t.Fatal(err)
	}
	m, err := l.codec.Decode(body)
	if err != nil {
		l.t.Fatal(err)
	}
	return m
}

func post(t *testing.T, url string) (status int, body string) {
	t.Helper()
	response, err := http.Post(url, "", nil)
	if err != nil {
		t.Error(err)
		return 0, ""
	}
	defer func() { _ = response.Body.Close() }()
	text, err := io.ReadAll(response.Body)
	if err != nil {
		t.Error(err)
	}
	return response.StatusCode, string(text)
}

// TestAProcessorDialsAndDemands has the daemon's end listen: the processor comes, is signed on, and is told by command to demand.
func TestAProcessorDialsAndDemands(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = listener.Close() }()
	p := startProcessor(t, "--dialect", "iso93-binary", "--dial", listener.Addr().String(), "--dial-connections", "1", "--ledger-listen", "127.0.0.1:0",
		"--new-key", strings.Repeat("AB", 16)+"CDCDCD", "--output", "json")
	conn, err := listener.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	if err := conn.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	codec, err := loadCodec("iso93-binary")
	if err != nil {
		t.Fatal(err)
	}
	l := &link{t: t, codec: codec, conn: conn, reader: bufio.NewReader(conn)}
	l.send(codec.NewDialogue(messages.SignOn, time.Now(), "000001"))
	if answer := l.receive(); !codec.Accepts(answer) {
		t.Fatalf("sign-on is answered %v", answer)
	}
	control := strings.TrimSuffix(p.ledger, "ledger")
	for demand, part := range map[string]messages.Dialogue{"echo": messages.Echo, "key-change": messages.KeyChange, "cutover": messages.Cutover} {
		answered := make(chan struct{})
		go func() {
			defer close(answered)
			if status, body := post(t, control+"demand/"+demand); status != http.StatusOK || body != "answered\n" {
				t.Errorf("demanding %s: %d %s", demand, status, body)
			}
		}()
		m := l.receive()
		if codec.Demanded(m) != part {
			t.Errorf("demanding %s sends %v", demand, m)
		}
		l.send(messages.NewAnswer(m, codec.Dialect().NetworkManagement.Accepted[0]))
		<-answered
	}
	if status, body := post(t, control+"demand/money"); status != http.StatusConflict || !strings.Contains(body, "not one of") {
		t.Errorf("demanding money: %d %s", status, body)
	}
	code, out := p.stop()
	var snapshot simulator.Snapshot
	if err := json.Unmarshal([]byte(out), &snapshot); err != nil || code != exitOK {
		t.Fatalf("exit %d, %v", code, err)
	}
	if c := snapshot.Counts; c.SignOns != 1 || c.Demands != 3 || c.DemandsAnswered != 3 || c.Links != 1 {
		t.Errorf("the ledger counts %+v", c)
	}
}

func TestAHostIsTakenAwayByCommand(t *testing.T) {
	p := startProcessor(t, "--ledger-listen", "127.0.0.1:0")
	control := strings.TrimSuffix(p.ledger, "ledger")
	ask := func() int {
		code, _, _ := acquirersim(t.Context(), "upstream", "--connect", p.address, "--dialect", "iso87-ascii", "--echo", "--connect-timeout", "500ms")
		return code
	}
	for _, step := range []struct {
		state string
		code  int
	}{{"refuse", exitFault}, {"restore", exitOK}, {"mute", exitFault}, {"restore", exitOK}, {"cut", exitOK}} {
		if status, body := post(t, control+"host/1/"+step.state); status != http.StatusOK {
			t.Errorf("%s: %d %s", step.state, status, body)
		}
		if code := ask(); code != step.code {
			t.Errorf("after %s an echo ends with %d, want %d", step.state, code, step.code)
		}
	}
	for _, wrong := range []string{"host/2/cut", "host/0/cut", "host/x/cut", "host/1/explode"} {
		if status, _ := post(t, control+wrong); status != http.StatusNotFound {
			t.Errorf("%s: %d", wrong, status)
		}
	}
}
