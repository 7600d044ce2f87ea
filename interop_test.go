package acquirerd_test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"acquirerd/messages"
	"acquirerd/simulator"
)

const (
	interopFolder = "testdata/interop"
	interopLimit  = 3 * time.Minute  // for all of the test, which takes a quarter of a minute
	peerLimit     = 30 * time.Second // for one event of a peer
	peerGrace     = 5 * time.Second  // from the end of a peer's input to its own
)

// TestInterop puts the real daemon between an upstream and a processor whose messages are packed and unpacked by libraries that are not
// ours, one for each (testdata/interop/README.md), and compares three books at the end: what the upstream was told, what the daemon's
// journal holds, what the processor authorized. It is long because it is one conversation, told in its order.
func TestInterop(t *testing.T) {
	binary, node := daemon(t), foreignParts(t)
	ctx, stop := context.WithTimeout(t.Context(), interopLimit)
	defer stop()

	processor := newPeer(ctx, t, node, "processor.js", "2")
	defer processor.close()
	var links []string
	for _, port := range processor.await("listening", nil).Ports {
		links = append(links, fmt.Sprintf("127.0.0.1:%d", port))
	}
	// Each processor is a dialect file. This one's differs from a built-in one in three encodings.
	stage, err := simulator.NewStage(ctx, simulator.StageConfig{Dir: filepath.Join(t.TempDir(), "stage"), Daemon: binary, Links: links,
		ProcessorDialect: foreignDialect(t, t.TempDir()), ReplyTimeout: 4 * time.Second, RetryMin: 100 * time.Millisecond, RetryMax: time.Second, EchoInterval: time.Second, InFlight: 16})
	if err != nil {
		t.Fatal(err)
	}
	if err := stage.Start(ctx, true); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if t.Failed() {
			_ = stage.Stop()
			log, err := os.ReadFile(stage.Log)
			t.Logf("the daemon's log: %s %v", log, err)
		}
	}()
	host, port, _ := strings.Cut(stage.Upstream, ":")
	upstream := newPeer(ctx, t, node, "upstream.js", host, port)
	defer upstream.close()
	upstream.await("connected", nil)

	// ask sends a request of the upstream and returns its answer: the one with its STAN and the type that it must have.
	ask := func(request elements) elements {
		t.Helper()
		upstream.command(map[string]any{"message": request})
		return upstream.await("received", elements{"0": answerType(request), "11": request["11"]}).Message
	}
	// Every answer is compared whole: an element too many is a fault too.
	expect := func(what string, got, want elements) {
		t.Helper()
		if !maps.Equal(got, want) {
			t.Errorf("%s: the upstream was told\n%v\nwant\n%v", what, got, want)
		}
	}

	// Network management, in each direction at both sides.
	for link := range links {
		processor.awaitOn(link, "received", elements{"0": "0800", "70": "001"})
	}
	for i, code := range []string{"001", "301"} {
		request := elements{"0": "0800", "7": "1123120000", "11": fmt.Sprintf("%06d", i+1), "70": code}
		expect("network management "+code, ask(request), request.with(elements{"0": "0810", "39": "00"}))
	}
	processor.command(map[string]any{"echo": true})
	for link := range links {
		echo := processor.awaitOn(link, "sent", elements{"0": "0800", "70": "301"}).Message
		answer := processor.awaitOn(link, "received", elements{"0": "0810", "11": echo["11"]}).Message
		if want := echo.with(elements{"0": "0810", "39": "00"}); !maps.Equal(answer, want) {
			t.Errorf("the processor's echo was answered %v, want %v", answer, want)
		}
		processor.awaitOn(link, "received", elements{"0": "0800", "70": "301"}) // the daemon's own, of an idle link
	}

	// An authorization with a PIN, which goes from the upstream's zone into the processor's.
	card := simulator.TestCards()[0]
	pan := card.PAN.Reveal()
	block := func(key *simulator.Key) string {
		pin, err := key.PINBlock(card.PIN, card.PAN)
		if err != nil {
			t.Fatal(err)
		}
		return fmt.Sprintf("%X", pin.Reveal())
	}
	request := func(mti, stan, amount string) elements {
		return elements{"0": mti, "2": pan, "3": "000000", "4": amount, "7": "1123120059", "11": stan, "12": "130059", "13": "1123", "18": "5999",
			"22": "012", "25": "00", "32": "12345", "37": "633212" + stan, "41": "TERM0001", "42": "MERCHANT 000001", "49": "978"}
	}
	answerTo := func(request, decided elements) elements {
		answer := request.with(decided)
		for _, asked := range []string{"18", "22", "52", "90"} {
			delete(answer, asked)
		}
		return answer
	}
	approved := func(mti, authorization string) elements {
		return elements{"0": mti, "38": authorization, "39": "00"}
	}
	books := map[string]string{} // by amount, what the upstream believes: "held" or "released"

	first := request("0100", "000011", "000000001000").with(elements{"22": "011", "52": block(stage.UpstreamZPK)})
	want := answerTo(first, approved("0110", "A00001"))
	expect("an authorization", ask(first), want)
	books[first["4"]] = "held"
	seen := processor.await("received", elements{"0": "0100", "4": first["4"]}).Message
	onward := first.with(elements{"7": seen["7"], "11": seen["11"], "37": seen["37"], "52": block(stage.EndpointZPK)})
	seen["52"] = strings.ToUpper(seen["52"]) // which case the library has is its own
	if !maps.Equal(seen, onward) || seen["11"] == first["11"] && seen["7"] == first["7"] {
		t.Errorf("the processor was asked\n%v\nwant, with numbers of the daemon's own,\n%v", seen, onward)
	}

	// Its repeat is answered from the record; the processor's book must not know of it.
	expect("a repeat", ask(first.with(elements{"0": "0101"})), want)

	purchase := request("0200", "000012", "000000002000")
	expect("a purchase", ask(purchase), answerTo(purchase, approved("0210", "A00002")))
	books[purchase["4"]] = "held"

	declined := request("0100", "000013", "000000005100")
	expect("a decline", ask(declined), answerTo(declined, elements{"0": "0110", "39": "51"}))
	books[declined["4"]] = "released"

	// A reversal of the upstream is answered when it is durable, and forwarded.
	undone := request("0100", "000014", "000000003000")
	expect("an authorization to be reversed", ask(undone), answerTo(undone, approved("0110", "A00004")))
	asked := processor.await("received", elements{"0": "0100", "4": undone["4"]}).Message
	reversal := undone.with(elements{"0": "0420", "90": original(undone)})
	delete(reversal, "18")
	delete(reversal, "22")
	for _, mti := range []string{"0420", "0421"} {
		expect("a reversal "+mti, ask(reversal.with(elements{"0": mti})), answerTo(reversal, elements{"0": "0430", "39": "00"}))
	}
	books[undone["4"]] = "released"
	if got, want := processor.await("received", elements{"0": "0420", "4": undone["4"]}).Message["90"], original(asked); got != want {
		t.Errorf("DE 90 of the reversal is %s, want %s", got, want)
	}

	// An authorization that is not answered: the daemon owes its reversal, and pays.
	unanswered := request("0100", "000015", "000000006800")
	expect("an authorization that is not answered", ask(unanswered), answerTo(unanswered, elements{"0": "0110", "39": "91"}))
	books[unanswered["4"]] = "released"
	asked = processor.await("received", elements{"0": "0100", "4": unanswered["4"]}).Message
	owed := processor.await("received", elements{"0": "0420", "4": unanswered["4"]}).Message
	if got, want := owed["90"], original(asked); got != want {
		t.Errorf("DE 90 of the reversal that was owed is %s, want %s", got, want)
	}
	processor.await("sent", elements{"0": "0430", "11": owed["11"], "39": "00"})

	// What does not keep the format names the element.
	for number, broken := range map[string]elements{"004": request("0100", "000016", ""), "041": request("0200", "000017", "000000004000")} {
		delete(broken, strings.TrimLeft(number, "0"))
		expect("a message without DE "+number, ask(broken), answerTo(broken, elements{"0": answerType(broken), "39": "30", "44": number}))
	}

	signOff := elements{"0": "0800", "7": "1123120100", "11": "000018", "70": "002"}
	expect("the sign-off", ask(signOff), signOff.with(elements{"0": "0810", "39": "00"}))

	// At rest the three books agree.
	settle(ctx, t, stage)
	processor.command(map[string]any{"book": true})
	held := map[string]string{}
	for _, hold := range processor.await("book", nil).Holds {
		if _, twice := held[hold.Amount]; twice {
			t.Errorf("the processor was asked twice for %s", hold.Amount)
		}
		if held[hold.Amount] = "released"; hold.Code == "00" && len(hold.Reversals) == 0 {
			held[hold.Amount] = "held"
		}
		if len(hold.Reversals) > 1 {
			t.Errorf("the processor was asked %v to reverse %s", hold.Reversals, hold.Amount)
		}
	}
	if !maps.Equal(held, books) {
		t.Errorf("the processor's book is %v, the upstream's %v", held, books)
	}
	if recorded := recorded(ctx, t, stage); !maps.Equal(recorded, books) {
		t.Errorf("the journal is %v, the upstream's book %v", recorded, books)
	}

	// The daemon signs off and ends well.
	if err := stage.Stop(); err != nil {
		t.Error(err)
	}
	for link := range links {
		processor.awaitOn(link, "received", elements{"0": "0800", "70": "002"})
	}
	upstream.await("closed", nil)

	// Each library writes what it has read to the same bytes again, if it can: the processor's always writes a second bit map.
	for _, e := range slices.Concat(upstream.events, processor.events) {
		if e.Event == "received" && !e.Same && (e.library == "jspos" || e.Message.beyond(64)) {
			t.Errorf("%s packs %v to other bytes than ours", e.library, e.Message)
		}
	}
}

// foreignParts returns the path of node. The two libraries are where npm ci puts them.
func foreignParts(t *testing.T) (node string) {
	t.Helper()
	node, err := exec.LookPath("node")
	for _, library := range []string{"jspos", "iso_8583"} {
		_, errLibrary := os.Stat(filepath.Join(interopFolder, "node_modules", library))
		err = errors.Join(err, errLibrary)
	}
	if err != nil {
		if os.Getenv("CI") != "" {
			t.Fatal("Node.js or the peers' libraries are not installed: make deps installs them: ", err)
		}
		t.Skip("Node.js or the peers' libraries are not installed: make deps installs them: ", err)
	}
	return node
}

// foreignDialect makes the dialect file of the processor: the built-in text dialect with a binary bit map, binary elements as bytes, and
// a length of two bytes.
func foreignDialect(t *testing.T, dir string) (path string) {
	t.Helper()
	text, err := os.ReadFile("specs/iso87-ascii.yaml")
	if err != nil {
		t.Fatal(err)
	}
	path = filepath.Join(dir, "iso87-text.yaml")
	if err := os.WriteFile(path, text, 0o600); err != nil {
		t.Fatal(err)
	}
	rewrite(t, path, "name: iso87-ascii", "name: iso87-text")
	rewrite(t, path, "length: ascii-4", "length: binary-2")
	rewrite(t, path, "enc: HexText", "enc: Binary")
	return path
}

// freePort is an address that nobody else is given soon.
func freePort(t *testing.T) string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = listener.Close() }()
	return listener.Addr().String()
}

// rewrite replaces a text, which must stand in the file.
func rewrite(t *testing.T, path, before, after string) {
	t.Helper()
	text, err := os.ReadFile(filepath.Clean(path))
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(text), before) {
		t.Fatalf("%s does not hold %q", path, before)
	}
	if err := os.WriteFile(path, []byte(strings.ReplaceAll(string(text), before, after)), 0o600); err != nil {
		t.Fatal(err)
	}
}

// original is DE 90 of a reversal of the request.
func original(request elements) string {
	acquirer, _ := strconv.Atoi(request["32"])
	return request["0"] + request["11"] + request["7"] + fmt.Sprintf("%011d%011d", acquirer, 0)
}

// answerType is the MTI of an answer.
func answerType(request elements) string { return string(messages.MTI(request["0"]).Answer()) }

// settle waits until nothing is owed. Each look takes as long as a process takes to start.
func settle(ctx context.Context, t *testing.T, stage *simulator.Stage) {
	t.Helper()
	for {
		var debts []struct{ State string }
		out, err := stage.Command(ctx, "journal", "owed", "--output", "json")
		if err == nil {
			err = json.Unmarshal(out, &debts)
		}
		switch {
		case err != nil:
			t.Fatalf("%v: %s", err, out)
		case !slices.ContainsFunc(debts, func(debt struct{ State string }) bool { return debt.State == "owed" }):
			return
		}
	}
}

// recorded is the journal as a book: by amount, whether the money is held. Nothing may be owed any more.
func recorded(ctx context.Context, t *testing.T, stage *simulator.Stage) map[string]string {
	t.Helper()
	var transactions []struct{ Amount, Outcome, Owed string }
	out, err := stage.Command(ctx, "journal", "list", "--output", "json")
	if err == nil {
		err = json.Unmarshal(out, &transactions)
	}
	if err != nil {
		t.Fatal(err)
	}
	book := map[string]string{}
	for _, transaction := range transactions {
		if book[transaction.Amount] = "released"; transaction.Outcome == "approved" && transaction.Owed == "" {
			book[transaction.Amount] = "held"
		}
		if transaction.Owed != "" && transaction.Owed != "acknowledged" {
			t.Errorf("the reversal of %s is %s", transaction.Amount, transaction.Owed)
		}
	}
	return book
}

// elements are a message as a peer's library gives it: by number, the MTI as 0.
type elements map[string]string

// with returns the elements with others added or instead.
func (e elements) with(others elements) elements {
	all := maps.Clone(e)
	maps.Copy(all, others)
	return all
}

// has reports whether the elements are among these.
func (e elements) has(some elements) bool {
	for number, value := range some {
		if e[number] != value {
			return false
		}
	}
	return true
}

func (e elements) beyond(last int) bool {
	for number := range e {
		if n, err := strconv.Atoi(number); err == nil && n > last {
			return true
		}
	}
	return false
}

// An event is a line that a peer has printed.
type event struct {
	Event   string
	Link    int
	Message elements
	Same    bool // packed again by the peer's library, the message has the same bytes
	Ports   []int
	Holds   []struct {
		Amount, Code string
		Reversals    []string
	}
	Text string

	library string
	taken   bool
}

// A peer is one of the two scripts.
type peer struct {
	t       *testing.T
	name    string
	process *exec.Cmd
	stdin   io.WriteCloser
	printed chan event // closed at the end of the script's output
	events  []event    // that have been printed so far; owned by the test
}

// newPeer starts a script. It is killed at the end of ctx, unless close has ended it before.
func newPeer(ctx context.Context, t *testing.T, node, script string, args ...string) *peer {
	t.Helper()
	library := map[string]string{"upstream.js": "jspos", "processor.js": "iso_8583"}[script]
	p := &peer{t: t, name: script, printed: make(chan event, 1024)}
	p.process = exec.CommandContext(ctx, node, append([]string{filepath.Join(interopFolder, script)}, args...)...)
	p.process.Stderr = lines{t}
	stdin, errIn := p.process.StdinPipe()
	stdout, errOut := p.process.StdoutPipe()
	if err := errors.Join(errIn, errOut); err != nil {
		t.Fatal(err)
	}
	if err := p.process.Start(); err != nil {
		t.Fatal(err)
	}
	p.stdin = stdin
	go func() { // ends with the script, which close waits for
		defer close(p.printed)
		scanner := bufio.NewScanner(stdout)
		for scanner.Scan() {
			e := event{library: library}
			if err := json.Unmarshal(scanner.Bytes(), &e); err != nil {
				e = event{Event: "fault", Text: "printed no event: " + scanner.Text()}
			}
			p.printed <- e
		}
	}()
	return p
}

// close ends the script by the end of its input, or kills it.
func (p *peer) close() {
	_ = p.stdin.Close()
	late := time.AfterFunc(peerGrace, func() { _ = p.process.Process.Kill() })
	defer late.Stop()
	for e := range p.printed {
		p.note(e)
	}
	if err := p.process.Wait(); err != nil {
		p.t.Errorf("%s: %v", p.name, err)
	}
}

func (p *peer) note(e event) {
	if e.Event == "fault" {
		p.t.Errorf("%s: %s", p.name, e.Text)
	}
	p.events = append(p.events, e)
}

// command sends the script a line.
func (p *peer) command(command any) {
	p.t.Helper()
	if err := json.NewEncoder(p.stdin).Encode(command); err != nil {
		p.t.Fatalf("%s: %v", p.name, err)
	}
}

// await returns the first event of this name with these elements that was not returned before, and waits for it if need be.
func (p *peer) await(name string, some elements) event {
	p.t.Helper()
	return p.find(name, some, func(event) bool { return true })
}

// awaitOn is await for one link of the processor.
func (p *peer) awaitOn(link int, name string, some elements) event {
	p.t.Helper()
	return p.find(name, some, func(e event) bool { return e.Link == link })
}

func (p *peer) find(name string, some elements, is func(event) bool) event {
	p.t.Helper()
	limit := time.NewTimer(peerLimit)
	defer limit.Stop()
	for at := 0; ; at++ {
		if at == len(p.events) {
			select {
			case e, open := <-p.printed:
				if !open {
					p.t.Fatalf("%s ended before %s %v", p.name, name, some)
				}
				p.note(e)
			case <-limit.C:
				p.t.Fatalf("%s: no %s %v within %v, but %+v", p.name, name, some, peerLimit, p.events)
			}
		}
		if e := &p.events[at]; !e.taken && e.Event == name && e.Message.has(some) && is(*e) {
			e.taken = true
			return *e
		}
	}
}
