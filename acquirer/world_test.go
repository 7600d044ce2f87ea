package acquirer_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"acquirerd/acquirer"
	"acquirerd/card"
	"acquirerd/conn"
	"acquirerd/hsm"
	"acquirerd/journal"
	"acquirerd/messages"
	"acquirerd/specs"
)

const testPAN = "4111111111111111"

// A bank is a processor with a ledger of its own. It fails the test if one of our numbers comes twice.
type bank struct {
	t testing.TB

	mu        sync.Mutex
	holds     map[string]string // by STAN and DE 7: "held", "reversed", "declined"
	seen      map[string]bool
	reversals map[string]int      // that reached the bank, by the key of the original
	sent      []*messages.Message // reversals and advices, in the order in which they came
	down      bool

	day        string                                               // DE 15 of answers
	partial    string                                               // amount of an approval with 10
	advices    map[string]int                                       // that reached the bank, by STAN and DE 7
	unknown    bool                                                 // reversals may name originals that were never sent
	otherCards bool                                                 // reversals may name cards other than testPAN
	answer     func(req *messages.Message) (code string, err error) // of a request, after it is in the ledger
	reversal   func(req *messages.Message) (code string, err error)
	askedKey   func() (*messages.Message, error) // nil: it has none to give
	askedWith  context.Context                   // of the last request for a key
}

func newBank(t testing.TB) *bank {
	approve := func(*messages.Message) (string, error) { return "00", nil }
	return &bank{t: t, holds: map[string]string{}, reversals: map[string]int{}, advices: map[string]int{}, seen: map[string]bool{}, answer: approve, reversal: approve}
}

func (b *bank) InService() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return !b.down
}

func (b *bank) RequestKey(ctx context.Context) (*messages.Message, error) {
	if b.askedKey == nil || !b.InService() {
		return nil, fmt.Errorf("no link in service: %w", conn.ErrNotSent)
	}
	b.askedWith = ctx
	return b.askedKey()
}

// mend puts the bank's links in service, or takes them out of it.
func (b *bank) mend(up bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.down = !up
}

func (b *bank) Exchange(_ context.Context, req *messages.Message) (*messages.Message, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.down {
		return nil, fmt.Errorf("no link in service: %w", conn.ErrNotSent)
	}
	key := req.Get(messages.STAN) + req.Get(messages.TransmissionTime)
	if req.MTI.Class() == messages.Reversal {
		return b.reverse(req)
	}
	if req.MTI.IsAdvice() {
		return b.advise(req)
	}
	if b.seen[key] {
		b.t.Errorf("%s was sent twice with STAN %s", req.MTI, req.Get(messages.STAN))
	}
	b.seen[key] = true
	code, err := b.ask(b.answer, req)
	switch code {
	case "":
	case "00", "10":
		b.holds[key] = "held"
	default:
		b.holds[key] = "declined"
	}
	if err != nil {
		return nil, err
	}
	answer := messages.NewAnswer(req, code)
	answer.Set(messages.SettlementDate, b.day)
	if code == "00" || code == "10" {
		answer.Set(messages.AuthorizationID, "123456")
	}
	if code == "10" {
		answer.Set(messages.Amount, b.partial)
	}
	return answer, nil
}

// ask lets the script decide, which may take time, without the lock.
func (b *bank) ask(script func(*messages.Message) (string, error), req *messages.Message) (string, error) {
	b.mu.Unlock()
	defer b.mu.Lock()
	return script(req)
}

// advise takes an advice into the ledger, once.
func (b *bank) advise(req *messages.Message) (*messages.Message, error) {
	code, err := b.ask(b.answer, req)
	if errors.Is(err, conn.ErrNotSent) {
		return nil, err
	}
	key := req.Get(messages.STAN) + req.Get(messages.TransmissionTime)
	if b.advices[key]++; b.advices[key] > 1 && !req.MTI.IsRepeat() {
		b.t.Errorf("an advice comes again as %s", req.MTI)
	}
	if code == "00" && b.holds[key] == "" {
		b.holds[key] = "held"
	}
	b.sent = append(b.sent, req.Clone())
	if err != nil {
		return nil, err
	}
	return messages.NewAnswer(req, code), nil
}

func (b *bank) reverse(req *messages.Message) (*messages.Message, error) {
	original := req.Get(messages.OriginalData)
	if len(original) != 42 || !b.otherCards && req.PAN().Reveal() != testPAN {
		b.t.Errorf("reversal does not name its original: %v", req)
		return messages.NewAnswer(req, "30"), nil
	}
	b.sent = append(b.sent, req.Clone())
	code, err := b.ask(b.reversal, req)
	if errors.Is(err, conn.ErrNotSent) {
		return nil, err
	}
	undone := original + req.Get(messages.ReplacementAmounts)
	if b.reversals[undone]++; b.reversals[undone] > 1 && !req.MTI.IsRepeat() {
		b.t.Errorf("a reversal comes again as %s", req.MTI)
	}
	if code == "00" {
		key := original[4:20]
		if _, known := b.holds[key]; !known && !b.unknown {
			code = "25"
		} else if _, partial, _ := codec(b.t, "iso87-ascii").Reversed(req); b.holds[key] == "held" && partial == "" {
			b.holds[key] = "reversed"
		}
	}
	if err != nil {
		return nil, err
	}
	return messages.NewAnswer(req, code), nil
}

// A vault stands in for the HSM. It only turns digits round, which is enough to see that what is stored is not what came in.
type vault struct{ err error }

func (v *vault) Protect(_ context.Context, c hsm.Card) (hsm.Protected, error) {
	protected := hsm.Protected{Sealed: card.SealedPAN{KeyID: "seal", Nonce: make([]byte, 12), Ciphertext: turn([]byte(c.PAN.Reveal()))},
		PINBlock: c.PINBlock}
	copy(protected.Token[:], turn([]byte(c.PAN.Reveal())))
	return protected, v.err
}

func (v *vault) SealRest(_ context.Context, rest []byte) (card.SealedRest, error) {
	return card.SealedRest{KeyID: "seal", Nonce: make([]byte, 12), Ciphertext: turn(rest)}, v.err
}

func (v *vault) OpenRest(_ context.Context, rest card.SealedRest) ([]byte, error) {
	if v.err != nil {
		return nil, v.err
	}
	return turn(rest.Ciphertext), nil
}

func (v *vault) OpenPAN(_ context.Context, sealed card.SealedPAN) (card.PAN, error) {
	if v.err != nil {
		return card.PAN{}, v.err
	}
	return card.ParsePAN(string(turn(sealed.Ciphertext)))
}

func turn(b []byte) []byte {
	turned := make([]byte, len(b))
	for i, c := range b {
		turned[i] = ^c
	}
	return turned
}

// A world is one station with its bank. It survives crashes of the switch.
type world struct {
	t        testing.TB
	path     string
	bank     *bank
	recorder func(acquirer.Recorder) acquirer.Recorder
	vault    acquirer.Vault
	keys     acquirer.KeyChanger
	forward  acquirer.Forwarding
	log      *slog.Logger
	dialect  *messages.Codec      // of the bank
	registry *prometheus.Registry // of the last start

	journal *journal.Journal
	desk    *acquirer.Switch
	stop    func()

	fails     bool  // recovery may fail
	recovered error // of the last start

	told map[string]string // the upstream's book: the code that each of its STANs was answered
	next int
}

func newWorld(t testing.TB) *world {
	t.Helper()
	w := &world{t: t, path: filepath.Join(t.TempDir(), "journal.db"), bank: newBank(t), vault: &vault{},
		recorder: func(r acquirer.Recorder) acquirer.Recorder { return r }, told: map[string]string{}, dialect: codec(t, "iso87-ascii"), log: slog.New(slog.DiscardHandler),
		forward: acquirer.Forwarding{RetryMin: time.Second, RetryMax: 8 * time.Second, ParkAfter: time.Hour, NotFoundFinal: 20 * time.Second, Poll: time.Second, Parallel: 4, Rate: 1000}}
	if err := journal.Create(w.path, "test"); err != nil {
		t.Fatal(err)
	}
	return w
}

// start opens the journal, recovers, and runs the switch until stop or crash.
func (w *world) start() {
	w.t.Helper()
	log := w.log
	registry := prometheus.NewRegistry()
	opened, err := journal.Open(journal.Config{Path: w.path, Station: "test"}, log, registry)
	if err != nil {
		w.t.Fatal(err)
	}
	w.journal, w.registry = opened, registry
	w.desk, err = acquirer.New(acquirer.Config{
		Journal: w.recorder(opened), Vault: w.vault, Keys: w.keys, InFlight: 64, Forward: w.forward,
		Endpoints: []*acquirer.Endpoint{acquirer.NewEndpoint("bank", "zpk-bank", w.dialect, w.bank)},
		Routes:    []acquirer.Route{{BINs: []string{"4", "51-55"}, Endpoint: "bank"}},
	}, log, registry)
	if err != nil {
		w.t.Fatal(err)
	}
	writing, stopWriting := context.WithCancel(w.t.Context())
	forwarding, stopForwarding := context.WithCancel(w.t.Context())
	var writer, forwarder sync.WaitGroup
	writer.Go(func() { _ = opened.Run(writing) })
	if _, w.recovered = w.desk.Recover(w.t.Context()); w.recovered != nil && !w.fails {
		w.t.Fatal(w.recovered)
	}
	forwarder.Go(func() { _ = w.desk.Run(forwarding) })
	w.stop = func() {
		stopForwarding()
		forwarder.Wait()
		stopWriting()
		writer.Wait()
		if err := opened.Close(); err != nil {
			w.t.Error(err)
		}
	}
}

// restart is a crash and a start after it, without further faults.
func (w *world) restart() {
	w.stop()
	w.recorder = func(r acquirer.Recorder) acquirer.Recorder { return r }
	w.vault = &vault{}
	w.start()
}

// request is the upstream's next 0100.
func (w *world) request() acquirer.Request {
	w.next++
	m := messages.New(messages.AuthorizationRequest)
	m.SetSensitive(messages.PAN, testPAN)
	m.Set(messages.ProcessingCode, "000000")
	m.Set(messages.Amount, "000000001000")
	m.Set(messages.TransmissionTime, "1123120000")
	m.Set(messages.STAN, fmt.Sprintf("%06d", w.next))
	m.Set(messages.RRN, "UPSTREAM0001")
	m.Set(messages.Terminal, "TERM0001")
	m.Set(messages.Currency, "840")
	m.SetSensitive(messages.PINData, "8bytes!!")
	return acquirer.Request{Message: m, Key: m.Get(messages.STAN),
		Upstream: &acquirer.Upstream{Name: "pos", PINKey: "zpk-pos", Codec: codec(w.t, "iso87-binary")}}
}

// ask submits a request and enters the answer in the upstream's book. It is false if the switch crashed on the way.
func (w *world) ask(req acquirer.Request, deliver func(acquirer.Result) error) (result acquirer.Result, answered bool) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		got, err := w.desk.Authorize(w.t.Context(), w.desk.Admit(req))
		if err != nil || got.Answer == nil {
			return
		}
		if err := deliver(got); err != nil {
			_ = w.desk.Undelivered(w.t.Context(), got)
			return
		}
		w.desk.Delivered(got)
		w.told[req.Message.Get(messages.STAN)] = got.Answer.Get(messages.ResponseCode)
		result, answered = got, true
	}()
	<-done
	return result, answered
}

func delivered(acquirer.Result) error { return nil }

func undelivered(acquirer.Result) error { return errInjected }

// budget is how long an upstream waits.
func (w *world) budget(d time.Duration) (context.Context, context.CancelFunc) {
	return context.WithTimeout(w.t.Context(), d)
}

// leaveOpen records a request as a crash before its outcome leaves it.
func (w *world) leaveOpen() {
	w.t.Helper()
	numbers, err := w.journal.Next(w.t.Context(), "bank", time.Now())
	if err != nil {
		w.t.Fatal(err)
	}
	req := w.request()
	m, err := messages.NewPassage(req.Upstream.Codec, w.dialect).ForProcessor(req.Message, numbers, time.Now())
	if err != nil {
		w.t.Fatal(err)
	}
	protected, err := (&vault{}).Protect(w.t.Context(), hsm.Card{PAN: m.PAN()})
	if err != nil {
		w.t.Fatal(err)
	}
	if _, err := w.journal.Begin(w.t.Context(), journal.Intent{Upstream: "pos", Endpoint: "bank", Original: m.Original(), PAN: protected.Sealed,
		Token: protected.Token}); err != nil {
		w.t.Fatal(err)
	}
}

// rest lets time pass until all that is owed is paid or parked.
func (w *world) rest() {
	<-time.After(2 * time.Minute)
	synctest.Wait()
}

// check compares the bank's ledger, the upstream's book and the journal. untold is the STANs of the upstream whose approval was
// recorded but, by a crash, never told.
func (w *world) check(untold ...string) {
	w.t.Helper()
	rows, err := w.journal.Transactions(w.t.Context(), journal.Filter{Limit: 1000})
	if err != nil {
		w.t.Fatal(err)
	}
	owed, err := w.journal.Owed(w.t.Context(), journal.OwedFilter{Limit: 1000})
	if err != nil {
		w.t.Fatal(err)
	}
	debt := map[journal.TransactionID]journal.State{}
	for _, o := range owed {
		debt[o.TransactionID] = o.State
		if o.State == journal.StateOwed {
			w.t.Errorf("reversal of transaction %d is still owed", o.TransactionID)
		}
	}
	recorded := map[string]bool{}
	for _, row := range rows {
		key := row.STAN + row.TransmissionTime
		recorded[key] = true
		told, hold := w.told[row.UpstreamSTAN], w.bank.holds[key]
		switch {
		case row.Outcome == "":
			w.t.Errorf("transaction %d has no outcome at rest", row.ID)
		case row.Outcome == journal.Approved && debt[row.ID] == "":
			if hold != "held" {
				w.t.Errorf("transaction %d is approved, the bank has %q", row.ID, hold)
			}
			if told != "00" && told != "10" && !slices.Contains(untold, row.UpstreamSTAN) {
				w.t.Errorf("transaction %d is approved, the upstream was told %q", row.ID, told)
			}
		case debt[row.ID] == journal.StateAcknowledged:
			if hold == "held" {
				w.t.Errorf("transaction %d was reversed, the bank still holds it", row.ID)
			}
			if told == "00" {
				w.t.Errorf("transaction %d was reversed, and the upstream was told that it is approved", row.ID)
			}
		case row.Outcome == journal.Unknown && debt[row.ID] == "":
			w.t.Errorf("transaction %d is unknown, and nothing is owed", row.ID)
		default:
			if hold == "held" && debt[row.ID] != journal.StateParked {
				w.t.Errorf("transaction %d is %s, the bank holds it", row.ID, row.Outcome)
			}
		}
	}
	for key, hold := range w.bank.holds {
		if !recorded[key] {
			w.t.Errorf("the bank has %s %s, the journal does not know it", key, hold)
		}
	}
}

// codecs are loaded once: there is one for each request and each start.
var codecs = map[string]func() (*messages.Codec, error){"iso87-ascii": load("iso87-ascii"), "iso87-binary": load("iso87-binary")}

func load(name string) func() (*messages.Codec, error) {
	return sync.OnceValues(func() (*messages.Codec, error) {
		dialect, err := specs.Load(name)
		return messages.NewCodec(dialect), err
	})
}

func codec(t testing.TB, name string) *messages.Codec {
	t.Helper()
	c, err := codecs[name]()
	if err != nil {
		t.Fatal(err)
	}
	return c
}
