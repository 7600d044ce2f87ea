package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/signal"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"acquirerd/acquirer"
	"acquirerd/conn"
	"acquirerd/hsm"
	"acquirerd/journal"
	"acquirerd/messages"
	"acquirerd/specs"
	"acquirerd/upstream"
)

func (c *cli) serveCommand() *cobra.Command {
	command := c.command("serve", "Serve upstreams until SIGTERM or SIGINT", "acquirerd serve --config acquirerd.yaml", cobra.NoArgs,
		func(ctx context.Context, _ []string) error {
			again := make(chan os.Signal, 1)
			signal.Notify(again, syscall.SIGHUP) // before anything begins: its default would end the process
			defer signal.Stop(again)
			cfg, err := loadConfig(c.config)
			if err != nil {
				return err
			}
			log, level := newLog(cfg, c.err)
			d := newDaemon(cfg, log)
			d.level, d.signals, d.load = level, again, func() (*Config, error) { return loadConfig(c.config) }
			return d.serve(ctx)
		})
	command.Long = "Serve opens the journal and the HSM, gives every transaction that a crash left open its reversal, opens the links to the\n" +
		"processors and the doors for the upstreams, and runs until SIGTERM or SIGINT. Then it takes nothing new, lets what is in\n" +
		"flight end by its own deadlines, signs off, and exits with 0; with 1 if something has not ended within shutdown.grace. The\n" +
		"log goes to standard error. SIGHUP does what config reload does."
	return command
}

// forbidDumps keeps card data, PINs and keys out of core files: those of this process's own, and those that a debugger of the same user would make.
func forbidDumps() error {
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return fmt.Errorf("forbidding core dumps: %w", err)
	}
	if err := unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{}); err != nil {
		return fmt.Errorf("forbidding core dumps: %w", err)
	}
	return nil
}

// addresses are where a daemon listens, with the ports that the system chose for 0.
type addresses struct {
	operations string
	upstreams  map[string]string // by name
}

// serve runs a daemon until ctx ends, and returns when all that it began has ended. Its log line "serving" says where it listens.
//
// It begins in this order: journal, HSM, recovery of what a crash left open, links, forwarder, doors. It stops in the opposite one:
// readiness goes first, then the doors read no more and answer what they took, the switch drains, the forwarder ends, the links sign
// off, and the journal closes last. An error means that it could not begin, that a part of it failed, or that a part did not end
// within the grace; what it left undone then is in the journal, and the next start recovers it.
func (d *daemon) serve(ctx context.Context) error {
	at, err := d.begin(ctx)
	switch {
	case err == nil:
		d.served = true
		d.announce(at)
	case ctx.Err() == nil, !errors.Is(err, context.Canceled): // else it was asked to stop while it began
		d.fail(err)
	}
	return d.untilStopped(ctx)
}

// untilStopped waits for the request to stop or the first fatal fault, and stops accordingly.
func (d *daemon) untilStopped(ctx context.Context) (err error) {
	select {
	case <-ctx.Done():
		grace := time.Duration(d.grace.Load())
		d.log.Info("stopping", "grace", grace.String())
		if d.served {
			d.auditor.note(journal.AuditEvent{What: auditStop, Result: "asked to stop"})
		}
		if err = d.teardown.inOrder(grace, d.failed); err == nil {
			d.log.Info("stopped")
			return nil
		}
	case err = <-d.failed:
	}
	if d.served { // else whoever starts it reads the command's one line
		d.log.Error("stopped by a fault", "error", err)
	}
	if d.auditor != nil { // why a key was refused is on record, where there still is one
		limit, release := context.WithTimeout(context.WithoutCancel(ctx), fatalGrace)
		d.auditor.flush(limit)
		release()
	}
	// The parts can no longer rely on each other, the journal above all: no order, no drain, no answer that is not recorded already.
	// The first error is the one that says why.
	_ = d.teardown.atOnce(fatalGrace)
	return err
}

// fatalGrace is the time that goroutines get to end after a fatal fault. Nothing depends on it: the process ends after it.
const fatalGrace = time.Second

// A daemon is what serve puts together.
type daemon struct {
	cfg      *Config // by which it was started: of it holds what cannot change while it serves; the keeper knows the rest
	log      *slog.Logger
	registry *prometheus.Registry
	failed   chan error // capacity 1: the first part that ended without being asked
	teardown teardown
	served   bool         // it has begun whole
	draining atomic.Bool  // it takes nothing new
	grace    atomic.Int64 // nanoseconds

	journal      *journal.Journal
	vault        *hsm.HSM
	auditor      *auditor
	resealer     *acquirer.Resealer
	certificates *certificates // owned by the keeper, once it runs
	desk         *acquirer.Switch
	doors        []*door // owned by the keeper, once it runs
	mu           sync.Mutex
	endpoints    []*endpoint    // guarded by mu: see processors
	serving      map[string]int // doors that serve, by upstream: two while one that went still answers; guarded by mu

	arriving chan *endpoint // from the keeper to what runs them
	opening  chan *door

	load    func() (*Config, error) // reads the config again
	level   *slog.LevelVar
	signals <-chan os.Signal  // each asks for a reload
	reloads chan reloadAsking // from the control socket
	kept    chan struct{}     // closed when nobody answers reloads any more
}

func newDaemon(cfg *Config, log *slog.Logger) *daemon {
	d := &daemon{cfg: cfg, log: log, registry: prometheus.NewRegistry(), failed: make(chan error, 1), level: &slog.LevelVar{}, serving: map[string]int{},
		arriving: make(chan *endpoint), opening: make(chan *door), reloads: make(chan reloadAsking), kept: make(chan struct{}), load: func() (*Config, error) { return cfg, nil }}
	d.grace.Store(int64(cfg.Shutdown.Grace))
	return d
}

// An endpoint is a processor's links under its name.
type endpoint struct {
	links
	name   string
	codec  *messages.Codec
	series *series
}

// links are one processor's: *conn.Endpoint.
type links interface {
	acquirer.Processor
	Run(ctx context.Context, inbound func(context.Context, conn.Unasked)) error
	Status() []conn.LinkStatus
	Drain(link int) error
	Resume(link int) error
	Cut(link int) error
	Reconfigure(cfg conn.Config) error
}

// processors returns the endpoints. The list that it returns does not change.
func (d *daemon) processors() []*endpoint {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.endpoints[:len(d.endpoints):len(d.endpoints)]
}

// A door is an upstream's, with who asks there, and where.
type door struct {
	*upstream.Door
	*acquirer.Upstream
	listener net.Listener
	series   *series
	gone     context.Context // ended by close, when the upstream is taken out of the config
	close    context.CancelFunc
}

// begin builds the parts and starts them. What it built before an error is in the teardown.
func (d *daemon) begin(ctx context.Context) (at addresses, err error) {
	if err := d.registerProcess(); err != nil {
		return at, err
	}
	if err := d.openStores(ctx); err != nil {
		return at, err
	}
	keeper, err := d.newKeeper()
	if err != nil {
		return at, err
	}
	if err := d.wire(); err != nil {
		return at, err
	}
	// The operations port is first, so that it tells of the recovery and, until the end, of the drain.
	operations, err := d.listen(ctx, "operations", d.cfg.Operations.Listen)
	if err != nil {
		return at, err
	}
	at.operations = operations.Addr().String()
	d.start("operations port", func(ctx context.Context) error { return d.serveOperations(ctx, operations) })
	d.start("HSM", d.vault.Run)
	d.start("reseal", d.resealer.Run)

	// Before any link or door opens: what a crash left open owes a reversal from now on.
	recovered, err := d.desk.Recover(ctx)
	if err != nil {
		return at, err
	}
	d.log.Info("recovered", "transactions", recovered)

	control, err := d.listenControl()
	if err != nil {
		return at, err
	}
	d.start("control socket", func(ctx context.Context) error { return d.serveControl(ctx, control) })

	endpoints := d.processors()
	d.start("links", func(ctx context.Context) error { return d.runLinks(ctx, endpoints) })
	d.start("forwarder", d.desk.Run)
	d.teardown.add("transactions in flight", nil, func() error { d.desk.Drain(); return nil })

	at.upstreams = map[string]string{}
	for i, u := range d.cfg.Upstreams { // the doors are in the order of the config
		listener, err := d.listen(ctx, "upstream "+u.Name, u.Listen)
		if err != nil {
			return at, err
		}
		d.doors[i].listener = listener
		at.upstreams[u.Name] = listener.Addr().String()
	}
	doors := slices.Clone(d.doors)
	d.start("doors", func(ctx context.Context) error { return d.runDoors(ctx, doors) })
	d.start("reload", keeper.run) // ends first: nothing changes while the rest stops
	d.teardown.add("readiness", func() { d.draining.Store(true) }, nil)
	return at, nil
}

func (d *daemon) registerProcess() error {
	for _, collector := range []prometheus.Collector{collectors.NewGoCollector(), collectors.NewBuildInfoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{})} {
		if err := d.registry.Register(collector); err != nil {
			return fmt.Errorf("registering metrics: %w", err)
		}
	}
	return nil
}

// openStores opens what must outlive everything else.
func (d *daemon) openStores(ctx context.Context) (err error) {
	c := d.cfg
	d.journal, err = journal.Open(journal.Config{Path: c.Journal.Path, Station: c.Station, Batch: c.Journal.Batch, Queue: c.Journal.Queue},
		d.log, d.registry)
	if err != nil {
		return err
	}
	d.teardown.add("journal file", nil, d.journal.Close)
	if d.auditor, err = newAuditor(d.journal, d.cfg.Station, d.log, d.registry); err != nil {
		return err
	}
	// Before the keys are loaded: that one is refused is on record, too.
	d.start("journal", d.journal.Run)
	d.start("audit", d.auditor.Run)

	forHSM := c.HSM.forHSM()
	forHSM.Audit = d.auditor.noteKey
	if d.vault, err = hsm.New(forHSM, d.log, d.registry); err != nil {
		return err
	}
	if err := d.vault.Open(ctx); err != nil {
		if errors.Is(err, hsm.ErrTransient) {
			err = fmt.Errorf("hsm.require_token_resident: %w", err)
		}
		return err
	}
	d.teardown.add("HSM module", nil, d.vault.Close)
	if faults := d.misfits(c); len(faults) > 0 {
		return &configError{faults}
	}
	for _, operation := range d.vault.Statement().Operations {
		if operation.InUse && operation.Way == hsm.Transient && c.Environment == "production" {
			d.log.Warn("hsm operation is not token-resident", "operation", operation.Name, "note", operation.Note)
		}
	}
	return nil
}

// misfits names the parties whose PIN blocks are not for the key that they have, and those that the token cannot translate the way that the PIN
// keys go: only the token says of which algorithm a key is, and what it can do. While the HSM is not ready, nothing is known, and the HSM refuses such
// a block itself.
func (d *daemon) misfits(c *Config) (list []fault) {
	check := func(path, label string, format hsm.Format) {
		if label == "" {
			return
		}
		if err := d.vault.CheckPINFormat(label, format); errors.Is(err, hsm.ErrPINFormat) {
			list = append(list, fault{path + ".pin_format", err.Error()})
		}
	}
	for i, u := range c.Upstreams {
		at := fmt.Sprintf("upstreams[%d]", i)
		if check(at, u.pinsUnder(), u.PINFormat); u.BDKKey == "" {
			continue
		}
		if err := d.vault.CheckWorkingKey(u.BDKKey, u.PINFormat, u.WorkingKey); errors.Is(err, hsm.ErrPINFormat) {
			list = append(list, fault{at + ".working_key", err.Error()})
		}
	}
	for i, e := range c.Endpoints {
		check(fmt.Sprintf("endpoints[%d]", i), e.PINKey, e.PINFormat)
		for j, u := range c.Upstreams {
			if !c.bringsPINs(&u, &e) {
				continue
			}
			if err := d.vault.CheckPINPair(u.PINFormat, e.PINFormat); errors.Is(err, hsm.ErrPINFormat) {
				list = append(list, fault{fmt.Sprintf("endpoints[%d].pin_format", i), fmt.Sprintf("does not go with upstreams[%d].pin_format: %v", j, err)})
			}
		}
	}
	return list
}

// wire builds the endpoints, the switch and the doors, in the order of the config.
func (d *daemon) wire() error {
	cfg := acquirer.Config{Journal: d.journal, Vault: d.vault, Keys: d.vault, InFlight: d.cfg.Limits.InFlight, Routes: d.cfg.routes(), Forward: acquirer.Forwarding{
		RetryMin: d.cfg.Reversals.RetryMin, RetryMax: d.cfg.Reversals.RetryMax, ParkAfter: d.cfg.Reversals.ParkAfter,
		NotFoundFinal: d.cfg.Reversals.NotFoundFinal, Poll: d.cfg.Reversals.Poll, Parallel: d.cfg.Reversals.Parallel,
		Rate: float64(d.cfg.Reversals.Rate)}}
	for i := range d.cfg.Endpoints {
		e := &d.cfg.Endpoints[i]
		made, err := d.newEndpoint(e)
		if err != nil {
			return err
		}
		d.endpoints = append(d.endpoints, made)
		cfg.Endpoints = append(cfg.Endpoints, e.forSwitch(made))
	}
	var err error
	if d.desk, err = acquirer.New(cfg, d.log, d.registry); err != nil {
		return err
	}
	if d.resealer, err = newResealer(&d.cfg.HSM, d.journal, d.vault, d.auditor.note, d.log, d.registry); err != nil {
		return err
	}
	for i := range d.cfg.Upstreams {
		made, err := d.newDoor(&d.cfg.Upstreams[i])
		if err != nil {
			return err
		}
		d.doors = append(d.doors, made)
	}
	return nil
}

// newEndpoint makes an endpoint, and starts nothing.
func (d *daemon) newEndpoint(e *EndpointConfig) (*endpoint, error) {
	codec, err := loadCodec(e.Dialect)
	if err != nil {
		return nil, err
	}
	registered := &series{Registerer: d.registry, labels: prometheus.Labels{"endpoint": e.Name}}
	cfg := e.forConn(codec, d.certificates.parties[e.party()])
	cfg.MAC = newMACKey(d.vault, e.MACKey, codec.Dialect())
	made, err := conn.New(cfg, d.log, registered)
	if err != nil {
		return nil, err
	}
	return &endpoint{made, e.Name, codec, registered}, nil
}

// newDoor makes a door without its listener, and starts nothing.
func (d *daemon) newDoor(u *UpstreamConfig) (*door, error) {
	codec, err := loadCodec(u.Dialect)
	if err != nil {
		return nil, err
	}
	asker := u.forSwitch(codec)
	registered := &series{Registerer: d.registry, labels: prometheus.Labels{"upstream": u.Name}}
	cfg := u.forDoor(asker, d.certificates.parties[u.party()])
	cfg.MAC = newMACKey(d.vault, u.MACKey, codec.Dialect())
	made, err := upstream.New(cfg, d.desk, d.log, registered)
	if err != nil {
		return nil, fmt.Errorf("upstream %s: %w", u.Name, err)
	}
	gone, closed := context.WithCancel(context.Background())
	return &door{Door: made, Upstream: asker, series: registered, gone: gone, close: closed}, nil
}

// forSwitch is this config in the words of the switch.
func (u *UpstreamConfig) forSwitch(codec *messages.Codec) *acquirer.Upstream {
	return &acquirer.Upstream{Name: u.Name, PINKey: u.PINKey, BDKKey: u.BDKKey, PINFormat: u.PINFormat, WorkingKey: u.WorkingKey,
		RefuseRegression: u.KSNRegression == ksnRefuse, Codec: codec}
}

// forSwitch is this config in the words of the switch, with the links that were made by it.
func (e *EndpointConfig) forSwitch(made *endpoint) *acquirer.Endpoint {
	known := acquirer.NewEndpoint(e.Name, e.PINKey, made.codec, made.links)
	known.PINFormat = e.PINFormat
	return known
}

// routes is this config's routing in the words of the switch.
func (c *Config) routes() []acquirer.Route {
	var list []acquirer.Route
	for _, r := range c.Routes {
		list = append(list, acquirer.Route(r))
	}
	return list
}

// forConn is this config in the words of the links. The party is nil for plain TCP.
func (e *EndpointConfig) forConn(codec *messages.Codec, p *party) conn.Config {
	cfg := conn.Config{Name: e.Name, Codec: codec, ReplyTimeout: e.ReplyTimeout, WriteTimeout: e.WriteTimeout, DialTimeout: e.DialTimeout,
		SignOnTimeout: e.SignOnTimeout, EchoInterval: e.EchoInterval, EchoTimeout: e.EchoTimeout, EchoMisses: e.EchoMisses,
		BackoffMin: e.BackoffMin, BackoffMax: e.BackoffMax, FailBack: e.FailBack, InFlight: e.InFlight, LinkInFlight: e.LinkInFlight,
		MACFailures: e.MACFailures, MACSuspension: e.MACSuspension}
	for _, l := range e.Links {
		link := conn.Link{Hosts: l.Hosts, Listen: l.Listen, Allow: prefixes(l.Allow)}
		switch {
		case e.TLS == nil:
		case l.Listen != "":
			link.TLS = p.listening(e.TLS)
		default:
			link.TLS = p.dialling(e.TLS, l.Hosts)
		}
		for range l.Links {
			cfg.Links = append(cfg.Links, link)
		}
	}
	return cfg
}

// forDoor is this config in the words of the door. The party is nil for plain TCP.
func (u *UpstreamConfig) forDoor(asker *acquirer.Upstream, p *party) upstream.Config {
	cfg := upstream.Config{Upstream: asker, InFlight: u.InFlight, Connections: u.Connections, Budget: u.Budget, IdleTimeout: u.IdleTimeout,
		FrameTimeout: u.FrameTimeout, WriteTimeout: u.WriteTimeout, Allow: prefixes(u.Allow), Peers: u.Peers, Rate: float64(u.Rate), Burst: u.Burst,
		MACFailures: u.MACFailures}
	if u.TLS != nil {
		cfg.TLS = p.serving(tlsVersions[u.TLS.MinVersion])
	}
	return cfg
}

// prefixes reads what validate has checked.
func prefixes(list []string) []netip.Prefix {
	var read []netip.Prefix
	for _, text := range list {
		read = append(read, netip.MustParsePrefix(text))
	}
	return read
}

func loadCodec(name string) (*messages.Codec, error) {
	dialect, err := specs.Load(name)
	if err != nil {
		return nil, err
	}
	return messages.NewCodec(dialect), nil
}

func openPort(ctx context.Context, name, address string) (net.Listener, error) {
	listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", address)
	if err != nil {
		return nil, fmt.Errorf("opening port of %s: %w", name, err)
	}
	return listener, nil
}

// listen opens a port until the teardown.
func (d *daemon) listen(ctx context.Context, name, address string) (net.Listener, error) {
	listener, err := openPort(ctx, name, address)
	if err != nil {
		return nil, err
	}
	d.teardown.add("port of "+name, nil, func() error {
		if err := listener.Close(); !errors.Is(err, net.ErrClosed) {
			return err
		}
		return nil
	})
	return listener, nil
}

// runLinks runs all endpoints, also those that come later: at a stop they drain and sign off beside each other.
func (d *daemon) runLinks(ctx context.Context, endpoints []*endpoint) error {
	var group errgroup.Group
	begin := func(e *endpoint) {
		group.Go(func() error {
			err := e.Run(ctx, func(ctx context.Context, m conn.Unasked) { d.desk.Inbound(ctx, e.name, m) })
			if ctx.Err() == nil {
				d.fail(fmt.Errorf("running links of %s: they ended without being asked: %w", e.name, err))
			}
			return err
		})
	}
	for _, e := range endpoints {
		begin(e)
	}
	for {
		select {
		case e := <-d.arriving:
			begin(e)
		case <-ctx.Done():
			return group.Wait()
		}
	}
}

// runDoors runs all doors, also those that come later: at a stop they finish beside each other. The error of one is told at once, not when
// all have ended.
func (d *daemon) runDoors(ctx context.Context, doors []*door) error {
	var group errgroup.Group
	begin := func(o *door) {
		d.mu.Lock()
		d.serving[o.Name]++
		d.mu.Unlock()
		group.Go(func() error {
			defer d.left(o)
			ctx, stop := context.WithCancel(ctx)
			defer stop()
			defer context.AfterFunc(o.gone, stop)()
			err := o.Serve(ctx, o.listener)
			if err != nil {
				d.fail(err)
			}
			return err
		})
	}
	for _, o := range doors {
		begin(o)
	}
	for {
		select {
		case o := <-d.opening:
			begin(o)
		case <-ctx.Done():
			return group.Wait()
		}
	}
}

// left notes that a door serves no more. One that went takes its series with it.
func (d *daemon) left(o *door) {
	d.mu.Lock()
	d.serving[o.Name]--
	d.mu.Unlock()
	if o.gone.Err() != nil {
		d.forget(o)
	}
}

// forget takes a door's series away, unless another one of the name serves: they are its, too.
func (d *daemon) forget(o *door) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.serving[o.Name] == 0 {
		o.series.forget()
	}
}

// announce logs the line by which a person or a script finds this daemon, and what its HSM can promise.
func (d *daemon) announce(at addresses) {
	links, ways := map[string][]string{}, map[string]string{}
	for _, e := range d.cfg.Endpoints {
		for _, l := range e.Links {
			links[e.Name] = append(links[e.Name], l.String())
		}
	}
	statement := d.vault.Statement()
	for _, operation := range statement.Operations {
		if operation.InUse {
			ways[operation.Name] = string(operation.Way)
		}
	}
	d.auditor.note(journal.AuditEvent{What: auditStart, Result: resultOK, Detail: "acquirerd " + version()})
	d.log.Info("serving", "station", d.cfg.Station, "operations", at.operations, "upstreams", at.upstreams, "links", links,
		"hsm_module", statement.Module, "hsm_operations", ways, "version", version())
}

// start runs a part of the daemon in a goroutine of its own until the teardown stops it. A part that ends before is a fault.
func (d *daemon) start(name string, run func(context.Context) error) {
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan struct{})
	var err error // read after ended is closed
	go func() {
		defer close(ended)
		err = run(ctx)
		if ctx.Err() != nil {
			return
		}
		if err == nil {
			err = errors.New("it ended without being asked")
		}
		d.fail(fmt.Errorf("running %s: %w", name, err))
	}()
	d.teardown.add(name, stop, func() error { <-ended; return err })
}

// fail notes the first fatal fault.
func (d *daemon) fail(err error) {
	select {
	case d.failed <- err:
	default:
	}
}

// A teardown is how to stop what has begun, last in first out.
type teardown struct{ steps []step }

// A step asks one part to end, and then waits for its end. Either may be nil. Both may be done again.
type step struct {
	name string
	ask  func()
	wait func() error
}

func (t *teardown) add(name string, ask func(), wait func() error) {
	t.steps = append(t.steps, step{name, ask, wait})
}

// inOrder asks each part to end when those that began after it have ended. It gives up at a fatal fault, and when one does not end
// within the limit; what that part stands on is left as it is then, because it may still be used.
func (t *teardown) inOrder(limit time.Duration, failed <-chan error) error {
	over := time.After(limit)
	var faults []error
	for i := len(t.steps) - 1; i >= 0; i-- {
		s := t.steps[i]
		if s.ask != nil {
			s.ask()
		}
		if s.wait == nil {
			continue
		}
		ended := make(chan error, 1)
		go func() { ended <- s.wait() }() // ends with the part
		select {
		case err := <-ended:
			if err != nil {
				faults = append(faults, fmt.Errorf("stopping %s: %w", s.name, err))
			}
		case err := <-failed:
			return err
		case <-over:
			return fmt.Errorf("stopping: %s did not end within %v; what is not finished is in the journal", s.name, limit)
		}
	}
	return errors.Join(faults...)
}

// atOnce asks all parts to end at the same time.
func (t *teardown) atOnce(limit time.Duration) error {
	for _, s := range t.steps {
		if s.ask != nil {
			s.ask()
		}
	}
	return t.inOrder(limit, nil)
}

// forHSM is this config in the words of the room of the keys.
func (c *HSMConfig) forHSM() hsm.Config {
	cfg := hsm.Config{Module: c.Module, Arguments: c.ModuleArguments, Token: c.Token, PIN: c.pin(), Workers: c.Sessions, Queue: c.Queue, CallTimeout: c.CallTimeout,
		Overlap: c.KeyOverlap, KeyChanges: c.KeyChanges, SealKey: c.SealKey, TokenKey: c.TokenKey,
		RequireTokenResident: c.RequireTokenResident}
	for _, key := range c.Keys {
		cfg.Keys = append(cfg.Keys, hsm.Key{Label: key.Label, KCV: key.KCV, Use: key.Use, ZMK: key.ZMK})
	}
	return cfg
}

// newLog makes the log of a daemon, and what changes its level.
func newLog(cfg *Config, out io.Writer) (*slog.Logger, *slog.LevelVar) {
	level := &slog.LevelVar{}
	level.Set(cfg.Log.level())
	options := &slog.HandlerOptions{Level: level}
	var handler slog.Handler = slog.NewJSONHandler(out, options)
	if cfg.Log.Format == "text" {
		handler = slog.NewTextHandler(out, options)
	}
	return slog.New(handler), level
}

func (c *LogConfig) level() slog.Level {
	var level slog.Level
	if err := level.UnmarshalText([]byte(strings.ToUpper(c.Level))); err != nil {
		return slog.LevelInfo // validate allows only levels
	}
	return level
}
