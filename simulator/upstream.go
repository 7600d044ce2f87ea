package simulator

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"acquirerd/messages"
)

// UpstreamConfig is what an Upstream is made of.
type UpstreamConfig struct {
	Codec       *messages.Codec                         // the dialect of the daemon's upstream door
	Address     string                                  // TCP address of the door, or
	Dial        func(context.Context) (net.Conn, error) // how to connect
	Connections int                                     // default 1
	ZPK         *Key                                    // the zone PIN key of this upstream; nil: it cannot send PINs, unless it has a Device
	Device      *Device                                 // instead of ZPK: the PIN pad of all its requests, where the dialect has key serial numbers
	TLS         *tls.Config                             // of a client; nil: without TLS
	MAC         messages.MACKey                         // of the messages that carry MACs in the dialect; nil: none is made or checked

	ConnectTimeout time.Duration // of a connection, sign-on included; default 5 s
	RetryDelay     time.Duration // after a lost connection or one that failed; default 200 ms
	ReplyTimeout   time.Duration // of one request; default 30 s
	WriteTimeout   time.Duration // of one write; default 5 s

	NoSignOn   bool               // do not sign on; nor is that done where the dialect has no sign-on
	Terminal   string             // default SIM00001
	Merchant   string             // default SIMULATOR
	AcquirerID string             // DE 32, default none
	FirstSTAN  int64              // default 1
	Omits      []messages.Element // that it never sends: what a processor's dialect has no words for, say
	// Keepalives is how often an idle connection sends a frame of no bytes, where the dialect takes one; 0: never.
	Keepalives time.Duration
	Book       *Book // nil: a new one

	Trace func(TraceEvent) // called for each message, by several goroutines; nil: none
	Log   *slog.Logger     // nil: none
}

// An Upstream is a client switch: it keeps connections to the daemon's door, sends requests, many at once, and writes down what it is
// told. It tries a lost connection again, but never a request: what it does about those is its owner's decision.
type Upstream struct {
	cfg    UpstreamConfig
	reader reader
	book   *Book
	stan   atomic.Int64
	next   atomic.Uint64 // which connection's turn it is

	mu      sync.Mutex
	ready   []*connection
	changed chan struct{} // closed and replaced when ready or fault changes
	fault   error         // why the last connection failed
}

// NewUpstream checks the configuration and starts nothing.
func NewUpstream(cfg UpstreamConfig) (*Upstream, error) {
	if cfg.Codec == nil || (cfg.Address == "") == (cfg.Dial == nil) {
		return nil, errors.New("upstream: it needs a codec, and an address or a way to dial")
	}
	if cfg.Device != nil && (cfg.ZPK != nil || cfg.Codec.KeySerialNumberElement() == 0) {
		return nil, errors.New("upstream: a device stands instead of a zone PIN key, and needs a dialect with key serial numbers")
	}
	if cfg.Dial == nil {
		var dialer net.Dialer
		cfg.Dial = func(ctx context.Context) (net.Conn, error) { return dialer.DialContext(ctx, "tcp", cfg.Address) }
	}
	if cfg.TLS != nil && cfg.Address != "" {
		cfg.TLS = clientConfig(cfg.TLS, cfg.Address)
	}
	defaults := []struct {
		value     *time.Duration
		otherwise time.Duration
	}{{&cfg.ConnectTimeout, defaultTimeout}, {&cfg.RetryDelay, 200 * time.Millisecond}, {&cfg.ReplyTimeout, 30 * time.Second},
		{&cfg.WriteTimeout, defaultTimeout}}
	for _, d := range defaults {
		if *d.value < 0 {
			return nil, errors.New("upstream: a timeout is negative")
		}
		if *d.value == 0 {
			*d.value = d.otherwise
		}
	}
	if cfg.Connections == 0 {
		cfg.Connections = 1
	}
	if cfg.FirstSTAN == 0 {
		cfg.FirstSTAN = 1
	}
	if cfg.Keepalives < 0 || cfg.Connections < 0 || cfg.FirstSTAN < 1 || cfg.FirstSTAN > lastSTAN {
		return nil, errors.New("upstream: connections must be positive, keep-alives not negative, and the first STAN within 1 to 999999")
	}
	cfg.Terminal, cfg.Merchant = byDefault(cfg.Terminal, "SIM00001"), byDefault(cfg.Merchant, "SIMULATOR")
	if cfg.Book == nil {
		cfg.Book = NewBook(0)
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	u := &Upstream{cfg: cfg, reader: readerOf(cfg.Codec), book: cfg.Book, changed: make(chan struct{})}
	u.stan.Store(cfg.FirstSTAN - 1)
	return u, nil
}

// Book is the upstream's account.
func (u *Upstream) Book() *Book { return u.book }

// Run keeps the connections until ctx ends, and returns nil when all its goroutines have ended. Requests that then wait have lost their
// connection.
func (u *Upstream) Run(ctx context.Context) error {
	var running sync.WaitGroup
	for i := range u.cfg.Connections {
		running.Go(func() {
			for ctx.Err() == nil {
				u.keep(ctx, "connection "+strconv.Itoa(i+1))
				timer := time.NewTimer(u.cfg.RetryDelay)
				select {
				case <-timer.C:
				case <-ctx.Done():
					timer.Stop()
				}
			}
		})
	}
	running.Wait()
	return nil
}

// Ready waits until all connections are there and signed on. Its error says why the last one failed.
func (u *Upstream) Ready(ctx context.Context) error {
	for {
		u.mu.Lock()
		ready, changed, fault := len(u.open()), u.changed, u.fault
		u.mu.Unlock()
		if ready == u.cfg.Connections {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			if fault != nil {
				return fault
			}
			return fmt.Errorf("connecting: %w", ctx.Err())
		}
	}
}

// keep opens one connection and serves it until it ends.
func (u *Upstream) keep(ctx context.Context, name string) {
	connecting, release := context.WithTimeout(ctx, u.cfg.ConnectTimeout)
	defer release()
	conn, err := u.cfg.Dial(connecting)
	if err != nil {
		u.change(func() { u.fault = fmt.Errorf("connecting: %w", err) })
		return
	}
	if u.cfg.TLS != nil {
		conn = tls.Client(conn, u.cfg.TLS)
	}
	c := &connection{Upstream: u, wire: newWire(conn, u.cfg.WriteTimeout), name: name, pending: map[messages.Key]*exchange{}}
	var running sync.WaitGroup
	defer running.Wait()
	defer c.close()
	defer context.AfterFunc(ctx, c.close)()
	if err := c.shake(connecting); err != nil {
		u.change(func() { u.fault = err })
		return
	}
	running.Go(c.run)
	running.Go(c.read)
	running.Go(c.keepalive)
	if !u.cfg.NoSignOn && u.demands(messages.SignOn) {
		if err := c.manage(connecting, messages.SignOn); err != nil {
			u.change(func() { u.fault = fmt.Errorf("signing on: %w", err) })
			return
		}
	}
	u.change(func() { u.ready, u.fault = append(u.ready, c), nil })
	u.cfg.Log.Info("connected", "connection", name)
	<-c.closed
	u.change(func() { u.ready = slices.DeleteFunc(u.ready, func(other *connection) bool { return other == c }) })
	u.cfg.Log.Info("connection lost", "connection", name)
}

func (u *Upstream) change(change func()) {
	u.mu.Lock()
	defer u.mu.Unlock()
	change()
	close(u.changed)
	u.changed = make(chan struct{})
}

// choose takes the connections in turn, nil if there is none.
func (u *Upstream) choose() *connection {
	u.mu.Lock()
	defer u.mu.Unlock()
	open := u.open()
	if len(open) == 0 {
		return nil
	}
	return open[u.next.Add(1)%uint64(len(open))]
}

// open are the ready connections without those that have ended a moment ago. Its caller holds mu.
func (u *Upstream) open() []*connection {
	if !slices.ContainsFunc(u.ready, (*connection).ended) {
		return u.ready
	}
	return slices.DeleteFunc(slices.Clone(u.ready), (*connection).ended)
}

// Do sends one request, waits for what becomes of it and returns its entry in the book. The wait ends at the reply timeout; the end of
// ctx ends it before that with the same outcome. An error means that no such request can be made, and that nothing was sent or
// written down.
//
// The same numbers again (Request.Again) take over from a request whose wait has ended without an answer: its late answer then answers the newer one.
func (u *Upstream) Do(ctx context.Context, r Request) (Entry, error) {
	m, err := u.build(r)
	if err != nil {
		return Entry{}, err
	}
	entry := u.newEntry(m, r)
	x, err := u.newExchangeWith(m, r.macFault(), func(code string) { u.book.late(entry, code) })
	if err != nil {
		return Entry{}, err
	}
	c, err := u.place(x)
	if err != nil {
		return Entry{}, err
	}
	u.book.open(entry)
	u.carry(ctx, c, x)
	return u.book.settle(entry, x.reply, u.reader), nil
}

// newEntry is what the book says of a request before it is sent.
func (u *Upstream) newEntry(m *messages.Message, r Request) *Entry {
	return &Entry{Name: u.reader.name(m), MTI: m.MTI, STAN: m.Get(messages.STAN), TransmissionTime: m.Get(messages.TransmissionTime), RRN: m.Get(messages.RRN),
		AcquirerID: m.Get(messages.AcquirerID), Terminal: m.Get(messages.Terminal), PAN: m.PAN().Mask(), Amount: r.Amount,
		Currency: m.Get(messages.Currency), WithPIN: m.Has(messages.PINData), Outcome: Pending, SentAt: time.Now().UTC()}
}

// newExchange encodes a message. noted is told the code of an answer that comes after the timeout.
func (u *Upstream) newExchange(m *messages.Message, noted func(code string)) (*exchange, error) {
	return u.newExchangeWith(m, macRight, noted)
}

// newExchangeWith is newExchange of a message whose MAC may be wrong.
func (u *Upstream) newExchangeWith(m *messages.Message, fault macFault, noted func(code string)) (*exchange, error) {
	frame, err := frameWith(u.cfg.Codec, u.cfg.MAC, m, fault)
	if err != nil {
		return nil, fmt.Errorf("encoding request: %w", err)
	}
	key, keyed := u.cfg.Codec.Key(m)
	if !keyed {
		return nil, errors.New("encoding request: it has no key")
	}
	return &exchange{request: m, frame: frame, key: key, noted: noted, done: make(chan struct{})}, nil
}

// place gives an exchange its connection, nil if there is none.
func (u *Upstream) place(x *exchange) (*connection, error) {
	c := u.choose()
	if c != nil && !c.register(x) {
		return nil, errors.New("sending request: its key is in flight already")
	}
	return c, nil
}

// carry sends an exchange on its connection and waits for its reply.
func (u *Upstream) carry(ctx context.Context, c *connection, x *exchange) {
	if c == nil {
		x.reply = reply{outcome: NotSent, at: time.Now()}
		return
	}
	c.trace(Sent, x.request, len(x.frame))
	if !c.send(outgoing{frame: x.frame}) {
		c.giveUp(x, NotSent)
	}
	c.wait(ctx, x)
}

// Echo sends an echo on one connection and waits for its answer.
func (u *Upstream) Echo(ctx context.Context) error { return u.network(ctx, messages.Echo) }

// SignOn sends a sign-on on one connection, beside the one that each connection begins with.
func (u *Upstream) SignOn(ctx context.Context) error { return u.network(ctx, messages.SignOn) }

// SignOff sends a sign-off on one connection. What the door does then is the door's.
func (u *Upstream) SignOff(ctx context.Context) error { return u.network(ctx, messages.SignOff) }

// demands reports whether the dialect has a part of the dialogue that an upstream sends.
func (u *Upstream) demands(part messages.Dialogue) bool {
	demanded := u.reader.NetworkManagement.Demanded()
	return partsOf(&demanded)[part] != ""
}

func (u *Upstream) network(ctx context.Context, part messages.Dialogue) error {
	if !u.demands(part) {
		return fmt.Errorf("sending %s: the dialect has none", part)
	}
	c := u.choose()
	if c == nil {
		return fmt.Errorf("sending %s: there is no connection", part)
	}
	ctx, release := context.WithTimeout(ctx, u.cfg.ReplyTimeout)
	defer release()
	return c.manage(ctx, part)
}

// A connection is one connection to the daemon.
type connection struct {
	*Upstream
	*wire
	name string

	mu      sync.Mutex
	pending map[messages.Key]*exchange // and those that have timed out, until their late answer or a repeat; nil when the connection has ended
}

func (c *connection) ended() bool { return isClosed(c.closed) }

// An exchange is one message and its answer.
type exchange struct {
	request *messages.Message
	frame   []byte
	key     messages.Key
	noted   func(code string) // nil for the dialogue of a connection: no answer is waited for after the wait
	late    bool              // guarded by connection.mu
	twice   bool              // it replaced one that may be answered, too; guarded by connection.mu
	reply   reply             // set before done is closed
	done    chan struct{}     // closed once
}

// A reply is what came of a message.
type reply struct {
	outcome         Outcome
	at              time.Time
	unproven        string // code of an answer that is not believed; in the dialect's own terms
	code            string // of the answer, as all that follows; in the dialect's own terms
	authorizationID string
	rrn             string
	approves        bool
	amount          int64 // that is approved, of the request's or of a part
}

// register is false if the key is taken by an exchange that still waits. One that has been given up is replaced: its late answer cannot
// be told from the newer one's. On a connection that has ended, the exchange is over at once when it is sent.
func (c *connection) register(x *exchange) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if older := c.pending[x.key]; older != nil {
		if !older.late {
			return false
		}
		older.request.Clear()
		x.twice = true
	}
	if c.pending != nil {
		c.pending[x.key] = x
	}
	return true
}

// wait returns when the exchange is done, or has been given up at its timeout.
func (c *connection) wait(ctx context.Context, x *exchange) {
	timer := time.NewTimer(c.cfg.ReplyTimeout)
	defer timer.Stop()
	select {
	case <-x.done:
		return
	case <-timer.C:
	case <-ctx.Done():
	}
	c.giveUp(x, TimedOut)
	<-x.done
}

// giveUp ends an exchange that nobody has ended yet.
func (c *connection) giveUp(x *exchange, outcome Outcome) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if x.late || c.pending != nil && c.pending[x.key] != x || isClosed(x.done) {
		return
	}
	x.late = true
	if outcome != TimedOut || x.noted == nil {
		delete(c.pending, x.key)
	}
	x.finish(reply{outcome: outcome})
}

// finish is called once for each exchange, under the connection's lock.
func (x *exchange) finish(r reply) {
	r.at = time.Now()
	x.reply = r
	close(x.done)
}

func isClosed(done chan struct{}) bool {
	select {
	case <-done:
		return true
	default:
		return false
	}
}

// read delivers answers until the connection ends. Then everything that waits has lost its connection.
func (c *connection) read() {
	defer func() {
		c.close()
		c.mu.Lock()
		defer c.mu.Unlock()
		for _, x := range c.pending {
			if !x.late {
				x.finish(reply{outcome: ConnectionLost})
			}
		}
		c.pending = nil
	}()
	reader := bufio.NewReaderSize(c.conn, readBuffer)
	for {
		body, err := c.cfg.Codec.ReadFrame(reader)
		if err != nil {
			return
		}
		if len(body) == 0 {
			c.beaten(c.reader)
			continue
		}
		m, err := c.cfg.Codec.Decode(body)
		if err != nil {
			c.book.tally(func(counts *BookCounts) { counts.Undecodable++ })
			return
		}
		c.trace(Received, m, c.reader.framed(body))
		if c.cfg.MAC != nil && c.cfg.Codec.CheckMAC(context.Background(), c.cfg.MAC, m) != nil {
			c.disbelieve(m)
			continue
		}
		c.deliver(m)
	}
}

// disbelieve ends the wait for an answer by one that anybody may have made: what became of the request is unknown, whatever it says. The right one may
// still come, as a late one.
func (c *connection) disbelieve(m *messages.Message) {
	defer m.Clear()
	c.book.tally(func(counts *BookCounts) { counts.WrongMACs++ })
	key, keyed := c.cfg.Codec.Key(m)
	c.mu.Lock()
	defer c.mu.Unlock()
	x := c.pending[key]
	if !keyed || !m.MTI.IsAnswer() || x == nil || x.late {
		return
	}
	if x.late = true; x.noted == nil {
		delete(c.pending, key)
	}
	x.finish(reply{outcome: Unproven, unproven: m.Get(messages.ResponseCode)})
}

// deliver gives an answer to the request that it answers.
func (c *connection) deliver(m *messages.Message) {
	defer m.Clear()
	key, keyed := c.cfg.Codec.Key(m)
	c.mu.Lock()
	defer c.mu.Unlock()
	x := c.pending[key]
	if !keyed || !m.MTI.IsAnswer() || x == nil {
		c.book.tally(func(counts *BookCounts) { counts.Unmatched++ })
		return
	}
	if x.twice && !x.late {
		defer func() { x.late = true }() // the other answer is a late one
	} else {
		delete(c.pending, key)
	}
	defer x.request.Clear()
	code := m.Get(messages.ResponseCode)
	if x.late {
		x.noted(c.reader.iso87(code))
		return
	}
	r := reply{outcome: Answered, code: code, authorizationID: m.Get(messages.AuthorizationID), rrn: m.Get(messages.RRN)}
	if err := c.cfg.Codec.Echoes(x.request, m); err != nil && x.noted != nil {
		c.cfg.Log.Warn("answer is not for its request", "stan", x.request.Get(messages.STAN), "error", err)
		r.outcome = Mismatch
	}
	if r.outcome == Answered && c.reader.Approves(code) {
		r.approves, r.amount = true, max(0, amountOf(x.request))
		if c.reader.ApprovesPartially(code) {
			r.amount = max(0, amountOf(m))
		}
	}
	x.finish(r)
}

// keepalive sends one now and then, whether the connection is idle or not.
func (c *connection) keepalive() {
	if c.cfg.Keepalives == 0 || !c.reader.takesKeepalives() {
		return
	}
	tick := time.NewTicker(c.cfg.Keepalives)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			c.beat(c.reader)
		case <-c.closed:
			return
		}
	}
}

// demand builds a part of the dialogue that a party of this dialect sends of its own accord.
func demand(codec *messages.Codec, part messages.Dialogue, at time.Time, stan string) *messages.Message {
	m := codec.NewDialogue(part, at, stan)
	n := &codec.Dialect().NetworkManagement
	demanded := n.Demanded()
	m.SetSensitive(messages.Element(n.Element), partsOf(&demanded)[part])
	return m
}

// manage sends a part of the dialogue and waits for an answer that accepts it.
func (c *connection) manage(ctx context.Context, part messages.Dialogue) error {
	now := time.Now().UTC()
	m := demand(c.cfg.Codec, part, now, c.numbers(Request{}, now).STAN)
	x, err := c.newExchange(m, nil)
	if err != nil {
		return err
	}
	if !c.register(x) {
		return fmt.Errorf("sending %s: its key is in flight already", part)
	}
	c.trace(Sent, m, len(x.frame))
	if !c.send(outgoing{frame: x.frame}) {
		return fmt.Errorf("sending %s: the connection is closed", part)
	}
	select {
	case <-x.done:
	case <-ctx.Done():
		c.giveUp(x, TimedOut)
		return fmt.Errorf("waiting for the answer to %s: %w", part, ctx.Err())
	}
	if x.reply.outcome == Unproven {
		return fmt.Errorf("waiting for the answer to %s: its MAC is wrong or missing", part)
	}
	if x.reply.code == "" {
		return fmt.Errorf("waiting for the answer to %s: the connection was closed", part)
	}
	if !slices.Contains(c.reader.NetworkManagement.Accepted, x.reply.code) {
		return fmt.Errorf("%s is answered %s", part, x.reply.code)
	}
	return nil
}

func (c *connection) trace(direction Direction, m *messages.Message, size int) {
	if c.cfg.Trace != nil {
		c.cfg.Trace(TraceEvent{Time: time.Now(), Link: c.name, Direction: direction, Message: m, Bytes: size})
	}
}
