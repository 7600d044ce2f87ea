package hsm

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// A Config says which token, which keys, and the limits.
type Config struct {
	Module    string                 // path of the PKCS#11 library
	Arguments string                 // for the module, in the reserved field of C_Initialize; most have none, NSS's has its directory here
	Token     string                 // label of the token
	PIN       func() ([]byte, error) // gives the user PIN at each login: see PINFile; what it gave is cleared after use

	Workers     int           // calls at once, each in its own session, and one session more for a key change; default 8, at most 1,024
	Queue       int           // callers that may wait for a worker; one more is refused at once; default 256
	CallTimeout time.Duration // of one call with its waiting, if the caller's deadline is not earlier; default 2 s
	Backoff     Backoff       // between attempts to rebuild

	Overlap    time.Duration // after a key change: how long the key before it may still be used; default 10 min, at most 7 days
	KeyChanges int           // most changes of one key in a minute; default 6, at most 120

	// RequireTokenResident refuses to open, and to go on after a rebuild, where an operation in use would be Transient (ErrTransient).
	RequireTokenResident bool

	// Audit takes the audit trail of keys, nil if nobody does. It is called on the path of calls, by many goroutines: it must not wait.
	Audit func(Event)

	Keys     []Key  // every key that may be used
	SealKey  string // label of the pan-seal key that seals; the others only open
	TokenKey string // label of the pan-token key
	BindKey  string // label of the mac-cmac key that binds surrogate PANs to their PANs, and does nothing else; "" if there are no surrogates
}

// A Backoff doubles from Min to Max. Each wait is drawn from the upper half, so that many daemons do not rise together.
type Backoff struct {
	Min time.Duration // default 100 ms
	Max time.Duration // default 10 s
}

// Defaults and limits. Of workers: ten locked pages hold their scratches, and a token rarely has more sessions.
const (
	defaultOverlap     = 10 * time.Minute
	maxOverlap         = 7 * 24 * time.Hour
	defaultKeyChanges  = 6 // the other side of a zone changes its key every day, or every few hours
	maxKeyChanges      = 120
	defaultWorkers     = 8
	maxWorkers         = 1024
	defaultQueue       = 256
	defaultCallTimeout = 2 * time.Second
	defaultBackoffMin  = 100 * time.Millisecond
	defaultBackoffMax  = 10 * time.Second
)

// An HSM protects card data with the keys of one token. See the package documentation for its states.
type HSM struct {
	cfg      Config
	log      *slog.Logger
	metrics  *metrics
	load     func(path string) (module, error)
	module   module           // set by Open
	login    *login           // used by one build at a time
	release  func()           // gives the claim on the module back
	memory   *lockedMemory    // scratches of the workers
	uses     map[string]Use   // of cfg.Keys, by label
	lines    map[string]*line // of the keys that may be changed, by label
	changing chan struct{}    // capacity 1: holds one token while the keys of the token are changed or destroyed
	queue    chan *task
	inflight atomic.Int64               // callers admitted and not yet served
	since    []atomic.Int64             // by worker: when its call began (Unix ns), 0 while it waits
	tidying  []chan struct{}            // by worker, capacity 1: it may hold something of a key that was destroyed
	gen      atomic.Pointer[generation] // nil while there is no healthy one
	broken   chan *generation           // capacity 1: a generation is condemned once, and the next needs a rebuild
	ended    chan struct{}              // closed when no worker will serve any more
	made     time.Time                  // by New; success counts from it, on the monotonic clock
	success  atomic.Int64               // when a call or a build last succeeded (ns since made)
	watched  []string                   // labels of the keys in the order of their probes
	turn     int                        // in watched; owned by supervise
	checked  time.Time                  // when a key was last probed; owned by supervise
	retiring time.Time                  // when keys that could not be destroyed are tried again; owned by supervise
	starting sync.Mutex                 // until Run or Close begins, one call at a time goes round the workers: see borrow
	running  atomic.Bool                // Run was called
	usedOn   usedDays
	refusals refusals          // of key changes
	probed   [][]finding       // by capability and way; set by the first build, and then read
	newFill  func(Format) fill // of new PIN blocks: newFill
	hung     atomic.Bool       // a call into the module was left behind: nobody may touch it any more
	shutting sync.Once         // shut happens once
	shutErr  error             // set by shut
}

// New validates the configuration, reports all its faults, and starts nothing.
func New(cfg Config, log *slog.Logger, reg prometheus.Registerer) (*HSM, error) {
	return newHSM(cfg, log, reg, func(path string) (module, error) { return loadModule(path, cfg.Arguments) })
}

func newHSM(cfg Config, log *slog.Logger, reg prometheus.Registerer, load func(string) (module, error)) (*HSM, error) {
	cfg.applyDefaults()
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	h := &HSM{
		cfg: cfg, log: log, load: load, login: newLogin(),
		uses:     map[string]Use{},
		lines:    map[string]*line{},
		changing: make(chan struct{}, 1),
		queue:    make(chan *task, cfg.Workers+cfg.Queue),
		since:    make([]atomic.Int64, cfg.Workers),
		tidying:  make([]chan struct{}, cfg.Workers),
		broken:   make(chan *generation, 1),
		ended:    make(chan struct{}),
		made:     time.Now(), checked: time.Now(),
		newFill: newFill,
	}
	for i := range h.tidying {
		h.tidying[i] = make(chan struct{}, 1)
	}
	h.watched = []string{cfg.TokenKey}
	for _, k := range cfg.Keys {
		h.uses[k.Label] = k.Use
		if k.ZMK != "" {
			h.lines[k.Label] = &line{began: map[int]time.Time{}, unfinished: map[string]bool{}}
		}
		if k.Label != cfg.TokenKey {
			h.watched = append(h.watched, k.Label)
		}
	}
	var err error
	if h.metrics, err = newMetrics(reg, h); err != nil {
		return nil, err
	}
	return h, nil
}

func (c *Config) applyDefaults() {
	setDefault(&c.Workers, defaultWorkers)
	setDefault(&c.Queue, defaultQueue)
	setDefault(&c.CallTimeout, defaultCallTimeout)
	setDefault(&c.Overlap, defaultOverlap)
	setDefault(&c.KeyChanges, defaultKeyChanges)
	setDefault(&c.Backoff.Min, defaultBackoffMin)
	setDefault(&c.Backoff.Max, max(defaultBackoffMax, c.Backoff.Min))
}

func setDefault[T comparable](p *T, value T) {
	var zero T
	if *p == zero {
		*p = value
	}
}

// sixHex is a KCV of the configuration.
var sixHex = regexp.MustCompile(`^[0-9A-Fa-f]{6}$`)

func (c *Config) validate() error {
	var faults []error
	check := func(ok bool, format string, args ...any) {
		if !ok {
			faults = append(faults, fmt.Errorf(format, args...))
		}
	}
	check(c.Module != "", "HSM module: none given")
	check(!strings.Contains(c.Arguments, "\x00"), "HSM module arguments: they hold a zero byte, which would end them")
	check(c.Token != "", "HSM token: no label given")
	check(c.PIN != nil, "HSM user PIN: no source given")
	check(c.Workers >= 1 && c.Workers <= maxWorkers, "HSM workers: %d is not 1 to %d", c.Workers, maxWorkers)
	check(c.Queue >= 0, "HSM queue: %d is negative", c.Queue)
	check(c.CallTimeout > 0, "HSM call timeout: %v is not positive", c.CallTimeout)
	check(c.Backoff.Min > 0 && c.Backoff.Min <= c.Backoff.Max, "HSM backoff: %v to %v is not a range", c.Backoff.Min, c.Backoff.Max)
	check(c.Overlap > 0 && c.Overlap <= maxOverlap, "HSM overlap of keys: %v is not up to %v", c.Overlap, maxOverlap)
	check(c.KeyChanges >= 1 && c.KeyChanges <= maxKeyChanges, "HSM key changes: %d a minute is not 1 to %d", c.KeyChanges, maxKeyChanges)
	uses, changing := map[string]Use{}, map[string]bool{}
	for i, k := range c.Keys {
		_, known := recipes[k.Use]
		check(k.Label != "", "HSM key %d: no label given", i+1)
		check(known, "HSM key %q: %q is not a use: %v are", k.Label, k.Use, Uses)
		check(sixHex.MatchString(k.KCV), "HSM key %q: its KCV is not 6 hexadecimal digits", k.Label)
		_, twice := uses[k.Label]
		check(!twice, "HSM key %q: given twice", k.Label)
		uses[k.Label] = k.Use
		changing[k.Label] = k.ZMK != ""
	}
	for _, k := range c.Keys {
		if k.ZMK != "" {
			check(k.Use == PINIn || k.Use == PINOut, "HSM key %q: only a %s or %s key can have a zone master key", k.Label, PINIn, PINOut)
			check(uses[k.ZMK] == ZMK, "HSM key %q: its zone master key %q is not a key of use %s", k.Label, k.ZMK, ZMK)
		}
		base, _, isSuccessor := successorOf(strings.TrimSuffix(k.Label, markSuffix))
		check(!isSuccessor || !changing[base], "HSM key %q: is a label of the successors of %q", k.Label, base)
	}
	check(uses[c.SealKey] == PANSeal, "HSM seal key %q: no key of use %s has that label", c.SealKey, PANSeal)
	check(uses[c.TokenKey] == PANToken, "HSM token key %q: no key of use %s has that label", c.TokenKey, PANToken)
	check(c.BindKey == "" || uses[c.BindKey] == MACCMAC, "HSM key for surrogate PANs %q: no key of use %s has that label", c.BindKey, MACCMAC)
	return errors.Join(faults...)
}

// Open loads the module, logs in, opens the sessions, and checks every key: the first generation. An error refuses the
// start (ErrKeyCheck with all faulty keys, ErrPINRejected, ErrInUse ...) and leaves nothing open. Calls are served
// while Run runs. An HSM that was opened is given back by Run, or by Close where Run is never called.
func (h *HSM) Open(ctx context.Context) error {
	release, err := claim(h.cfg.Module)
	if err != nil {
		return fmt.Errorf("opening HSM: %w", err)
	}
	g, err := h.open(ctx)
	if err != nil {
		if !h.hung.Load() { // a call that hangs still uses the module, and the memory when it returns
			if h.memory != nil {
				h.memory.free()
				h.memory = nil
			}
			release()
		}
		return fmt.Errorf("opening HSM: %w", err)
	}
	h.release = release
	h.publish(g)
	for _, o := range h.Statement().Operations {
		if o.InUse {
			h.log.Info("hsm operation", "operation", o.Name, "way", string(o.Way), "mechanism", o.Mechanism, "micros", o.Micros)
		}
	}
	return nil
}

func (h *HSM) open(ctx context.Context) (*generation, error) {
	m, err := h.load(h.cfg.Module)
	if err != nil {
		return nil, err
	}
	h.module = m
	if h.memory, err = lockMemory(h.cfg.Workers); err != nil {
		return nil, err
	}
	return h.attempt(ctx, 1)
}

// Run serves calls and rebuilds what breaks, until ctx is done; then it refuses new calls, lets the running ones end,
// and finalises the module. It outlives everything that calls the HSM: end those first. A call that hangs in the module
// is waited for one CallTimeout and then left behind, with the module as it is, and reported as an error.
func (h *HSM) Run(ctx context.Context) error {
	if !h.begin() {
		return errors.New("running HSM: it is not open, or has run already")
	}
	stop := make(chan struct{})
	var workers sync.WaitGroup
	for i := range h.cfg.Workers {
		workers.Go(func() { h.work(i, stop) })
	}
	h.supervise(ctx)
	close(stop)
	ended := make(chan struct{})
	go func() { workers.Wait(); close(ended) }() // ends with the last worker
	select {
	case <-ended:
		close(h.ended)
	case <-time.After(h.cfg.CallTimeout):
		h.hung.Store(true)
		close(h.ended)
	}
	return h.shut()
}

// Close gives back an HSM that was opened and never run. While Run runs and after it, it does nothing.
func (h *HSM) Close() error {
	if !h.begin() {
		return nil
	}
	close(h.ended)
	return h.shut()
}

// begin reports whether the HSM is open and neither Run nor Close has begun before.
func (h *HSM) begin() bool {
	h.starting.Lock()
	defer h.starting.Unlock()
	return h.release != nil && h.running.CompareAndSwap(false, true)
}

// shut finalises the module and gives everything back, unless a call still hangs in it.
func (h *HSM) shut() error {
	h.shutting.Do(func() {
		h.gen.Store(nil)
		if h.hung.Load() {
			h.shutErr = fmt.Errorf("closing HSM: %w", errHung)
			return
		}
		now, cancel := context.WithCancel(context.Background())
		cancel() // no more patience than one CallTimeout
		h.shutErr = h.await(now, func() error { return finalize(h.module) })
		if h.hung.Load() {
			return
		}
		h.memory.free()
		h.release()
		h.log.Info("hsm closed")
	})
	return h.shutErr
}

// supervise probes an idle token and rebuilds broken generations until ctx is done. It is the only one that publishes
// after Open, so there is one rebuild at a time, and the only one that probes, so there is one probe at a time.
func (h *HSM) supervise(ctx context.Context) {
	wait := backoff{Backoff: h.cfg.Backoff}
	probe := time.NewTimer(probeInterval)
	defer probe.Stop()
	for {
		var old *generation
		select {
		case <-ctx.Done():
			return
		case <-probe.C:
			h.retire(ctx)
			probe.Reset(h.probe(ctx))
			continue
		case old = <-h.broken:
		}
		h.count(old.fault)
		h.log.Error("hsm generation broken", "generation", old.number, "error", old.fault)
		select { // no C_Finalize before the last call has returned
		case <-ctx.Done():
			return
		case <-old.idle:
		}
		wait.resetIfOld()
		for number := old.number + 1; ; {
			if !wait.sleep(ctx) {
				return
			}
			g, err := h.rebuild(ctx, number)
			if err == nil {
				h.publish(g)
				close(old.next)
				break
			}
			if ctx.Err() != nil {
				return
			}
			h.count(err)
			h.log.Error("hsm rebuild refused", "generation", number, "attempt", wait.attempts, "error", err)
		}
	}
}

// probeInterval is how long no call may have succeeded before the token is asked for a sign of life. Without that an idle
// daemon would stay ready without its token until the first transaction. checkInterval is the longest time between two
// probes, also beside calls that succeed: they do not show that a handle still names the key that was checked.
const (
	probeInterval = 5 * time.Second
	checkInterval = 15 * time.Second
	busyProbe     = time.Second // until a probe that found no room is tried again
)

// probe checks the KCV of one key, each in its turn and the token key first, as any task of a worker, if no call has succeeded for
// probeInterval or no key was checked for checkInterval. It returns the time until it wants to be called again. Its fault, another KCV
// among them, breaks the generation in serve, and is counted and logged with it.
//
// A rebuild loses nothing while supervise waits here: a probe in the queue ends at once when the generation breaks, and
// one in the module would have to be waited for. One that hangs costs its worker, as any call does, so that in the end
// Ready sees that all hang; from then on once admits no more.
func (h *HSM) probe(ctx context.Context) (next time.Duration) {
	if silent, unchecked := h.silence(), time.Since(h.checked); silent < probeInterval && unchecked < checkInterval {
		return min(probeInterval-silent, checkInterval-unchecked)
	}
	label := h.watched[h.turn]
	ctx, cancel := context.WithTimeout(ctx, h.cfg.CallTimeout)
	defer cancel()
	err := h.once(ctx, func(w *worker) error { return w.gen.key(label).checkAgain(w.m, w.session) })
	if errors.Is(err, ErrBusy) {
		return busyProbe // its turn is not over
	}
	h.checked, h.turn = time.Now(), (h.turn+1)%len(h.watched)
	if errors.Is(err, context.DeadlineExceeded) {
		h.count(err)
		h.log.Warn("hsm probe unanswered", "timeout", h.cfg.CallTimeout)
	}
	return probeInterval
}

// silence is how long ago a call or a build last succeeded.
func (h *HSM) silence() time.Duration { return time.Since(h.made) - time.Duration(h.success.Load()) }

func (h *HSM) succeeded() { h.success.Store(int64(time.Since(h.made))) }

func (h *HSM) rebuild(ctx context.Context, number uint64) (*generation, error) {
	if err := h.await(ctx, func() error { return finalize(h.module) }); err != nil {
		return nil, err
	}
	return h.attempt(ctx, number)
}

func (h *HSM) publish(g *generation) {
	h.succeeded()
	h.gen.Store(g)
	h.metrics.generation.Set(float64(g.number))
	h.log.Info("hsm ready", "generation", g.number, "module", g.description, "token", h.cfg.Token, "keys", len(g.keys))
	h.announceLineages(g)
	h.metrics.tellWays(h.statement(g))
	h.tellLoads(g)
}

// errHung: a call into the module did not return in time. Nobody may touch the module before it does.
var errHung = fmt.Errorf("%w: a call into the PKCS#11 module hangs", ErrUnavailable)

// attempt is one build.
func (h *HSM) attempt(ctx context.Context, number uint64) (*generation, error) {
	var g *generation
	err := h.await(ctx, func() (err error) {
		if g, err = h.build(ctx, number); err != nil {
			return err
		}
		if err = h.probeToken(ctx, g); err == nil {
			err = h.demandResident(g)
		}
		if err == nil {
			var way Way
			way, err = h.pinWay(g)
			g.unable = h.findUnable(way)
		}
		if err != nil {
			err = errors.Join(err, finalize(h.module))
		}
		return err
	})
	if err != nil {
		h.tellRefused(err)
		return nil, err // g belongs to the call if that hangs
	}
	return g, nil
}

// await runs one call into the module that is not a worker's. When ctx is done the call gets one CallTimeout more to
// return; then it is left behind.
func (h *HSM) await(ctx context.Context, call func() error) error {
	done := make(chan error, 1)
	go func() { done <- call() }() // ends with the call
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
	}
	select {
	case err := <-done:
		return err
	case <-time.After(h.cfg.CallTimeout):
		h.hung.Store(true)
		return errHung
	}
}

// A backoff counts attempts since the last time of peace.
type backoff struct {
	Backoff
	attempts int
	last     time.Time
}

// resetIfOld forgets earlier attempts if the last rebuild lasted: a generation that breaks at once is not peace.
func (b *backoff) resetIfOld() {
	if time.Since(b.last) > b.Max {
		b.attempts = 0
	}
}

// sleep waits before an attempt, not before the first. It reports false if ctx is done.
func (b *backoff) sleep(ctx context.Context) bool {
	defer func() { b.last = time.Now() }()
	b.attempts++
	if b.attempts == 1 {
		return ctx.Err() == nil
	}
	wait := b.Max
	if shift := b.attempts - 2; shift < 32 && b.Min<<shift < b.Max && b.Min<<shift > 0 {
		wait = b.Min << shift
	}
	wait = wait/2 + rand.N(wait/2+1) //nolint:gosec // jitter is no secret
	select {
	case <-ctx.Done():
		return false
	case <-time.After(wait):
		return true
	}
}

// Ready is nil while a generation is healthy and not all workers hang in the module.
func (h *HSM) Ready() error {
	if h.gen.Load() == nil {
		return fmt.Errorf("%w: no healthy generation", ErrUnavailable)
	}
	if h.allHang() {
		return errHung
	}
	return nil
}

// allHang reports whether every worker's call has lasted longer than CallTimeout.
func (h *HSM) allHang() bool {
	oldest := time.Now().Add(-h.cfg.CallTimeout).UnixNano()
	for i := range h.since {
		if began := h.since[i].Load(); began == 0 || began > oldest {
			return false
		}
	}
	return true
}

// A task is one call, for one worker. Its function writes only to what the task owns: the caller may be gone.
type task struct {
	ctx  context.Context // the caller's, to skip what nobody waits for any more
	run  func(*worker) error
	done chan error // capacity 1
}

// errStale: the task met a broken generation and was not begun.
var errStale = errors.New("generation is broken")

// call runs a task on a worker. After a failure that broke the generation it waits for the next one and tries once
// more, if the caller's time allows: no operation of this package advances a counter in the token.
func (h *HSM) call(ctx context.Context, operation string, run func(*worker) error) error {
	began := time.Now()
	ctx, cancel := context.WithTimeout(ctx, h.cfg.CallTimeout)
	defer cancel()
	err := h.callTwice(ctx, run)
	h.metrics.seconds[operation].Observe(time.Since(began).Seconds())
	if err != nil {
		h.count(err)
	}
	return err
}

func (h *HSM) callTwice(ctx context.Context, run func(*worker) error) error {
	for attempt := 1; ; attempt++ {
		g := h.gen.Load()
		if g == nil {
			return errDown
		}
		err := h.once(ctx, run)
		if err == nil || !breaks(err) && !errors.Is(err, errStale) {
			return err
		}
		if attempt == 2 {
			return fmt.Errorf("%w: %w", ErrUnavailable, err)
		}
		select {
		case <-g.next:
		case <-ctx.Done():
			return fmt.Errorf("%w: %w", ErrUnavailable, err)
		case <-h.ended:
			return errDown
		}
	}
}

var errDown = fmt.Errorf("%w: not ready", ErrUnavailable)

// once hands a task to a worker and waits for it.
func (h *HSM) once(ctx context.Context, run func(*worker) error) error {
	waiting := h.inflight.Add(1)
	if waiting > int64(h.cfg.Workers+h.cfg.Queue) || waiting > int64(h.cfg.Workers) && h.allHang() {
		h.inflight.Add(-1)
		return ErrBusy
	}
	t := &task{ctx, run, make(chan error, 1)}
	h.queue <- t // has room for all that are admitted
	select {
	case err := <-t.done:
		return err
	case <-ctx.Done():
		return fmt.Errorf("%w: %w", ErrUnavailable, context.Cause(ctx))
	case <-h.ended:
	}
	select { // the worker may have ended with this task
	case err := <-t.done:
		return err
	default:
		return errDown
	}
}

// work serves tasks until stop.
func (h *HSM) work(index int, stop <-chan struct{}) {
	w := &worker{m: h.module, index: index, mem: h.memory.scratch(index)}
	for {
		select {
		case <-stop:
			return
		case t := <-h.queue:
			err := h.serve(t, w)
			h.inflight.Add(-1)
			t.done <- err
		case <-h.tidying[index]:
			h.tidy(w)
		}
	}
}

// tidy has a worker let go of what it holds of keys that were destroyed, though no task may come to it for days.
func (h *HSM) tidy(w *worker) {
	g := w.gen
	if g == nil || g != h.gen.Load() || !g.enter() { // what it holds of a broken one ends with that
		return
	}
	defer g.leave()
	h.since[w.index].Store(time.Now().UnixNano())
	w.join(g)
	h.since[w.index].Store(0)
}

func (h *HSM) serve(t *task, w *worker) error {
	if err := t.ctx.Err(); err != nil {
		return fmt.Errorf("%w: %w", ErrUnavailable, err) // nobody waits for it
	}
	g := h.gen.Load()
	if g == nil || !g.enter() {
		return errStale
	}
	defer g.leave()
	h.since[w.index].Store(time.Now().UnixNano())
	w.join(g)
	err := t.run(w)
	h.since[w.index].Store(0)
	if err == nil {
		h.succeeded()
	}
	if breaks(err) && g.condemn(err) {
		h.gen.CompareAndSwap(g, nil)
		h.broken <- g
	}
	return err
}
