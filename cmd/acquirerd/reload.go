package main

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"acquirerd/acquirer"
	"acquirerd/conn"
	"acquirerd/hsm"
	"acquirerd/specs"
	"acquirerd/upstream"
)

// A reload reads the config again and puts it into force while the daemon serves: everything is read and checked, and every port opened,
// before anything that serves is told, and a fault, or one key that cannot change, leaves all as it was. Nothing is changed back, because
// that is not the same as not to touch it. Links and connections that the change does not concern are not touched.

// reloadable are the keys that may change while the daemon serves, with all that stands below them. Every other one needs a restart:
// because the journal and what is owed are tied to it, or because nobody has needed it yet.
var reloadable = []string{
	"routes", "log.level", "shutdown.grace", "reversals.rate",
	"endpoints[].links", "endpoints[].pin_key", "endpoints[].pin_format", "endpoints[].reply_timeout", "endpoints[].write_timeout", "endpoints[].dial_timeout",
	"endpoints[].sign_on_timeout", "endpoints[].echo_interval", "endpoints[].echo_timeout", "endpoints[].echo_misses",
	"endpoints[].backoff_min", "endpoints[].backoff_max", "endpoints[].fail_back", "endpoints[].in_flight", "endpoints[].link_in_flight",
	"endpoints[].tls", "endpoints[].mac_failures", "endpoints[].mac_suspension",
	"upstreams[].in_flight", "upstreams[].connections", "upstreams[].budget", "upstreams[].idle_timeout", "upstreams[].write_timeout",
	"upstreams[].frame_timeout", "upstreams[].mac_failures", "upstreams[].rate", "upstreams[].burst", "upstreams[].allow", "upstreams[].peers", "upstreams[].tls",
}

const needsRestart = "cannot change while the daemon serves: needs a restart"

// A plan says what differs between two configs.
type plan struct {
	changed []string // paths of keys, in the order of the config
	refused []fault  // of those, the ones that cannot change

	endpoints, newEndpoints              []string // names of those of which something changes, and of those that come
	upstreams, newUpstreams, noUpstreams []string // and of those that go
}

// planReload compares the config that is in force with one that is to follow it. It looks at nothing else. Paths are those of the new one.
func planReload(before, after *Config) plan {
	var p plan
	p.compare("", reflect.ValueOf(*before), reflect.ValueOf(*after))
	p.comparePorts(before, after)
	return p
}

// comparePorts refuses what a new upstream cannot have: an address that is in use until the reload is over, where it could not be
// opened before something that serves has given it up. Only that of an upstream that goes can be handed over, and only whole.
func (p *plan) comparePorts(before, after *Config) {
	held := before.listeners()
	for i, u := range after.Upstreams {
		wanted, fixed := socketOf(u.Listen)
		if !fixed || !slices.Contains(p.newUpstreams, u.Name) {
			continue
		}
		for _, l := range held {
			if !l.overlaps(wanted) || isSameAddress(l.address, u.Listen) && slices.Contains(p.noUpstreams, l.upstream) {
				continue
			}
			p.refused = append(p.refused, fault{fmt.Sprintf("upstreams[%d].listen", i),
				fmt.Sprintf("%q is in use by %s until it is given up: needs a reload without that first", u.Listen, l.owner)})
			break
		}
	}
}

var indices = regexp.MustCompile(`\[\d+\]`)

// compare notes the differences at and below a path.
func (p *plan) compare(path string, before, after reflect.Value) {
	switch {
	case before.Kind() == reflect.Struct:
		for field := range fieldsOf(before.Type()) {
			p.compare(join(path, field.Tag.Get("mapstructure")), before.FieldByIndex(field.Index), after.FieldByIndex(field.Index))
		}
	case before.Kind() == reflect.Pointer && !before.IsNil() && !after.IsNil():
		p.compare(path, before.Elem(), after.Elem())
	case path == "endpoints" || path == "upstreams":
		p.compareNamed(path, before, after)
	case !same(before, after):
		p.changed = append(p.changed, path)
		pattern := indices.ReplaceAllString(path, "[]")
		if !slices.ContainsFunc(reloadable, func(may string) bool { return within(pattern, may) }) {
			p.refused = append(p.refused, fault{path, needsRestart})
		}
	}
}

// same reports whether two values of one type say the same. An empty list says what no list does.
func same(a, b reflect.Value) bool {
	switch a.Kind() {
	case reflect.Struct:
		for field := range fieldsOf(a.Type()) {
			if !same(a.FieldByIndex(field.Index), b.FieldByIndex(field.Index)) {
				return false
			}
		}
		return true
	case reflect.Slice:
		if a.Len() != b.Len() {
			return false
		}
		for i := range a.Len() {
			if !same(a.Index(i), b.Index(i)) {
				return false
			}
		}
		return true
	case reflect.Pointer:
		if a.IsNil() || b.IsNil() {
			return a.IsNil() == b.IsNil()
		}
		return same(a.Elem(), b.Elem())
	default:
		return a.Equal(b)
	}
}

// compareNamed compares lists of what has a name: their order says nothing.
func (p *plan) compareNamed(path string, before, after reflect.Value) {
	known := map[string]reflect.Value{}
	for i := range before.Len() {
		known[before.Index(i).FieldByName("Name").String()] = before.Index(i)
	}
	for i := range after.Len() {
		at, name := fmt.Sprintf("%s[%d]", path, i), after.Index(i).FieldByName("Name").String()
		was, isKnown := known[name]
		delete(known, name)
		differing := len(p.changed)
		if isKnown {
			p.compare(at, was, after.Index(i))
		} else {
			p.changed = append(p.changed, at)
		}
		switch {
		case len(p.changed) == differing:
		case path == "endpoints" && isKnown:
			p.endpoints = append(p.endpoints, name)
		case path == "endpoints":
			p.newEndpoints = append(p.newEndpoints, name)
		case isKnown:
			p.upstreams = append(p.upstreams, name)
		default:
			p.newUpstreams = append(p.newUpstreams, name)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(known)) {
		p.changed = append(p.changed, path)
		if path == "upstreams" {
			p.noUpstreams = append(p.noUpstreams, name)
			continue
		}
		// It may be owed something, or come to be by what is in flight or is reversed later. A start looks at that before it is gone.
		p.refused = append(p.refused, fault{path, fmt.Sprintf("%q is not there any more, and may be owed something: needs a restart", name)})
	}
}

// A keeper reloads the config, and looks at the certificate files in between. Its fields are owned by run, once that is called.
type keeper struct {
	*daemon
	inForce  *Config
	dialects map[string]sum
	left     map[string]departed // upstreams that went, by name

	reloaded   *prometheus.CounterVec
	successful prometheus.Gauge
	since      prometheus.Gauge
}

// The results of acquirerd_config_reloads_total.
const (
	reloadApplied = "applied"
	reloadRefused = "refused"
)

// lookInterval is how often the certificate files are looked at. Nobody waits for them who could also send a signal.
const lookInterval = time.Minute

// remindInterval is how often a certificate that is not valid is warned of.
const remindInterval = time.Hour

// newKeeper reads the certificates of the config. Its error names each fault.
func (d *daemon) newKeeper() (*keeper, error) {
	k := &keeper{daemon: d, inForce: d.cfg, dialects: dialectSums(d.cfg), left: map[string]departed{},
		reloaded: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "acquirerd_config_reloads_total",
			Help: "Reloads of the config while the daemon serves, by result; one that is refused changes nothing."}, []string{"result"}),
		successful: prometheus.NewGauge(prometheus.GaugeOpts{Name: "acquirerd_config_last_reload_successful",
			Help: "1 if the config in force is the one that was read last, 0 if that was refused."}),
		since: prometheus.NewGauge(prometheus.GaugeOpts{Name: "acquirerd_config_last_reload_success_timestamp_seconds",
			Help: "When the config in force was read, in seconds since 1970."})}
	d.registry.MustRegister(k.reloaded, k.successful, k.since)
	k.reloaded.WithLabelValues(reloadApplied)
	k.reloaded.WithLabelValues(reloadRefused)
	d.certificates = newCertificates(d.vault, d.log, d.registry)
	readings, err := d.certificates.readAll(d.cfg)
	if err != nil {
		return nil, err
	}
	for _, r := range readings {
		d.certificates.take(r)
	}
	k.enter(d.cfg)
	return k, nil
}

// enter notes the config that is in force from now on.
func (k *keeper) enter(cfg *Config) {
	k.inForce = cfg
	k.successful.Set(1)
	k.since.SetToCurrentTime()
	for _, warning := range cfg.warnings(time.Now()) {
		k.log.Warn("config warning", "key", warning.path, "problem", warning.text)
	}
}

// A reloadAsking asks the keeper for a reload. answer has capacity 1.
type reloadAsking struct{ answer chan reloadAnswer }

type reloadAnswer struct {
	changed []string // paths of keys
	err     error    // a *configError, if it is about the config
}

// run reloads when it is asked to, until ctx ends.
func (k *keeper) run(ctx context.Context) error {
	defer close(k.kept)
	look := time.NewTicker(lookInterval)
	defer look.Stop()
	remind := time.NewTicker(remindInterval)
	defer remind.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-look.C:
			k.certificates.look()
		case <-remind.C:
			k.certificates.remind()
		case <-k.signals:
			k.report("signal", k.reload(ctx))
		case asking := <-k.reloads:
			answer := k.reload(ctx)
			k.report("command", answer)
			asking.answer <- answer
		}
	}
}

// report logs and counts a reload. Each key that cannot change has a line.
func (k *keeper) report(by string, answer reloadAnswer) {
	if answer.err == nil {
		k.reloaded.WithLabelValues(reloadApplied).Inc()
		k.log.Warn("changed by an operator", "command", "config reload", "by", by, "changed", answer.changed)
		return
	}
	k.reloaded.WithLabelValues(reloadRefused).Inc()
	k.successful.Set(0)
	var faulty *configError
	if !errors.As(answer.err, &faulty) {
		k.log.Error("config is not reloaded: the old one stays in force", "by", by, "error", oneLine(answer.err))
		return
	}
	for _, f := range faulty.faults {
		k.log.Error("config is not reloaded: the old one stays in force", "by", by, "key", f.path, "problem", f.text)
	}
}

// reload reads and checks everything, and then changes what has changed. After an error all is as it was.
func (k *keeper) reload(ctx context.Context) reloadAnswer {
	after, err := k.load()
	if err != nil {
		return reloadAnswer{err: err}
	}
	p := planReload(k.inForce, after)
	p.refused = append(p.refused, k.changedDialects(after)...)
	p.refused = append(p.refused, k.changedReturns(p, after)...)
	p.refused = append(p.refused, k.misfits(after)...)
	if len(p.refused) > 0 {
		return reloadAnswer{err: &configError{p.refused}}
	}
	readings, err := k.certificates.readAll(after)
	if err != nil {
		return reloadAnswer{err: err}
	}
	if err := k.apply(ctx, p, after, readings); err != nil {
		return reloadAnswer{err: fmt.Errorf("changing the config: %w", err)}
	}
	for _, name := range p.noUpstreams {
		u := k.inForce.upstream(name)
		k.left[name] = departed{u.Dialect, u.PINKey, u.BDKKey, u.PINFormat, u.WorkingKey, k.dialects[u.Dialect]}
	}
	k.dialects = dialectSums(after)
	k.enter(after)
	return reloadAnswer{changed: p.changed}
}

// apply makes everything ready that can fail, and touches nothing that serves with it: new parties, checks of what changes, new endpoints,
// new doors and their ports. The routes are the last of that: from one moment to the next transactions find all of the new ones. What cannot
// fail comes after them.
func (k *keeper) apply(ctx context.Context, p plan, after *Config, readings []reading) (err error) {
	var undo []func()
	defer func() {
		if err == nil {
			return
		}
		for _, back := range slices.Backward(undo) {
			back()
		}
		k.certificates.retain(k.inForce)
	}()
	var readAgain []reading
	for _, r := range readings {
		if k.certificates.parties[r.name] != nil {
			readAgain = append(readAgain, r)
		} else {
			k.certificates.take(r) // nobody uses it yet
		}
	}
	endpoints := k.processors()
	changes, err := k.changes(p, after, endpoints)
	if err != nil {
		return err
	}
	known := len(endpoints)
	for _, name := range p.newEndpoints {
		e, err := k.newEndpoint(after.endpoint(name))
		if err != nil {
			return err
		}
		undo = append(undo, e.series.forget) // it has never run: there is nothing else of it
		endpoints = append(endpoints, e)
	}
	var opening []*door
	for _, name := range p.newUpstreams {
		cfg := after.upstream(name)
		o, err := k.newDoor(cfg)
		if err != nil {
			return err
		}
		undo = append(undo, func() { k.forget(o) })
		if o.listener, err = k.openDoor(ctx, p, cfg); err != nil {
			return err
		}
		undo = append(undo, func() { _ = o.listener.Close() })
		opening = append(opening, o)
	}
	var routed []*acquirer.Endpoint
	for _, e := range endpoints {
		routed = append(routed, after.endpoint(e.name).forSwitch(e))
	}
	if err := k.desk.Reconfigure(after.routes(), routed); err != nil {
		return err
	}

	for _, r := range readAgain {
		k.certificates.take(r)
	}
	for _, change := range changes {
		if err := change(); err != nil { // of what was checked: nobody would know by which config this daemon serves
			k.fail(fmt.Errorf("changing the config, of which a part is in force: %w", err))
		}
	}
	k.certificates.retain(after)
	k.mu.Lock()
	k.endpoints = endpoints
	k.mu.Unlock()
	for _, e := range endpoints[known:] {
		hand(ctx, k.arriving, e)
	}
	for _, o := range opening {
		k.log.Info("door opened", "upstream", o.Name, "address", o.listener.Addr().String())
		hand(ctx, k.opening, o)
	}
	k.doors = slices.DeleteFunc(append(k.doors, opening...), func(o *door) bool {
		gone := slices.Contains(p.noUpstreams, o.Name)
		if gone {
			o.close() // it answers what it took
		}
		return gone
	})
	k.desk.SetForwardingRate(float64(after.Reversals.Rate))
	k.level.Set(after.Log.level())
	k.grace.Store(int64(after.Shutdown.Grace))
	return nil
}

// changes checks what the endpoints and doors of before are to become, and returns how they become it.
func (k *keeper) changes(p plan, after *Config, endpoints []*endpoint) (list []func() error, err error) {
	for _, e := range endpoints {
		if !slices.Contains(p.endpoints, e.name) {
			continue
		}
		to := after.endpoint(e.name)
		cfg := to.forConn(e.codec, k.certificates.parties[to.party()])
		cfg.MAC = newMACKey(k.vault, to.MACKey, e.codec.Dialect())
		if err := checkLinks(cfg); err != nil {
			return nil, err
		}
		list = append(list, func() error { return e.Reconfigure(cfg) })
	}
	for _, o := range k.doors {
		if !slices.Contains(p.upstreams, o.Name) {
			continue
		}
		to := after.upstream(o.Name)
		cfg := to.forDoor(o.Upstream, k.certificates.parties[to.party()])
		cfg.MAC = newMACKey(k.vault, to.MACKey, o.Codec.Dialect())
		if err := checkDoor(cfg); err != nil {
			return nil, err
		}
		list = append(list, func() error { return o.Reconfigure(cfg) })
	}
	return list, nil
}

// checkLinks checks what an endpoint is given as conn does, which starts nothing at that.
func checkLinks(cfg conn.Config) error {
	_, err := conn.New(cfg, slog.New(slog.DiscardHandler), prometheus.NewRegistry())
	return err
}

// checkDoor does the same for a door.
func checkDoor(cfg upstream.Config) error {
	if _, err := upstream.New(cfg, nil, slog.New(slog.DiscardHandler), prometheus.NewRegistry()); err != nil {
		return fmt.Errorf("upstream %s: %w", cfg.Upstream.Name, err)
	}
	return nil
}

// openDoor opens the port of a new upstream. That of one that goes is handed over: who dials meanwhile waits for whichever of the two
// accepts first, and none is turned away.
func (k *keeper) openDoor(ctx context.Context, p plan, cfg *UpstreamConfig) (net.Listener, error) {
	for _, o := range k.doors {
		if !isSameAddress(k.inForce.upstream(o.Name).Listen, cfg.Listen) || !slices.Contains(p.noUpstreams, o.Name) {
			continue
		}
		listener, err := sameSocket(o.listener)
		if err != nil {
			return nil, fmt.Errorf("taking over port of upstream %s: %w", o.Name, err)
		}
		return listener, nil
	}
	return openPort(ctx, "upstream "+cfg.Name, cfg.Listen)
}

// sameSocket returns another listener on the socket of one. Each is closed by itself, and the socket with the last.
func sameSocket(listener net.Listener) (net.Listener, error) {
	tcp, is := listener.(*net.TCPListener)
	if !is {
		return nil, errors.ErrUnsupported
	}
	file, err := tcp.File()
	if err != nil {
		return nil, err
	}
	defer func() { _ = file.Close() }() // of a copy, of which the next makes its own
	return net.FileListener(file)
}

// hand gives something new to what runs it, unless that ends.
func hand[T any](ctx context.Context, to chan<- T, what T) {
	select {
	case to <- what:
	case <-ctx.Done():
	}
}

// A series is what one endpoint or upstream has registered, so that it can be taken away with it.
type series struct {
	prometheus.Registerer
	labels prometheus.Labels // that its part of a vector has
	has    []prometheus.Collector
}

// Register notes what is registered for this one alone, and the vectors of which it has a part.
func (s *series) Register(c prometheus.Collector) error {
	err := s.Registerer.Register(c)
	var already prometheus.AlreadyRegisteredError
	switch {
	case err == nil:
		s.has = append(s.has, c)
	case errors.As(err, &already):
		s.has = append(s.has, already.ExistingCollector)
	}
	return err
}

// forget takes it all away. The parts of others stay.
func (s *series) forget() {
	for _, c := range s.has {
		if vector, is := c.(interface {
			DeletePartialMatch(labels prometheus.Labels) int
		}); is {
			vector.DeletePartialMatch(s.labels)
			for side, name := range s.labels { // of what both sides have: see conn.MACFailures
				vector.DeletePartialMatch(prometheus.Labels{"side": side, "name": name})
			}
		} else {
			s.Unregister(c)
		}
	}
}

// endpoint returns an endpoint that is in the config.
func (c *Config) endpoint(name string) *EndpointConfig {
	return &c.Endpoints[slices.IndexFunc(c.Endpoints, func(e EndpointConfig) bool { return e.Name == name })]
}

// upstream returns an upstream that is in the config.
func (c *Config) upstream(name string) *UpstreamConfig {
	return &c.Upstreams[slices.IndexFunc(c.Upstreams, func(u UpstreamConfig) bool { return u.Name == name })]
}

// party is the name under which its certificates are kept.
func (e *EndpointConfig) party() string { return "endpoint " + e.Name }
func (u *UpstreamConfig) party() string { return "upstream " + u.Name }

// A tlsUse is one place of the config where TLS files are named.
type tlsUse struct {
	path, party string
	files       tlsFiles
}

func (c *Config) tlsUses() []tlsUse {
	var list []tlsUse
	for i, u := range c.Upstreams {
		if u.TLS != nil {
			list = append(list, tlsUse{fmt.Sprintf("upstreams[%d].tls", i), u.party(), u.TLS.files()})
		}
	}
	for i, e := range c.Endpoints {
		if e.TLS != nil {
			list = append(list, tlsUse{fmt.Sprintf("endpoints[%d].tls", i), e.party(), e.TLS.files()})
		}
	}
	return list
}

// warnings are what is no fault of a config and should not stay: card data over plain TCP where real cards are, and certificates that
// end soon or are not valid.
func (c *Config) warnings(now time.Time) []fault {
	var list []fault
	warn := func(path, format string, args ...any) { list = append(list, fault{path, fmt.Sprintf(format, args...)}) }
	if c.Environment == "production" {
		if !c.HSM.RequireTokenResident {
			warn("hsm.require_token_resident", "is false: where the token cannot do it inside, clear PIN blocks pass through the daemon's memory")
		}
		for i, u := range c.Upstreams {
			if u.TLS == nil && !isLoopback(u.Listen) {
				warn(fmt.Sprintf("upstreams[%d].listen", i), "%s is plain TCP: card data should have tls", u.Listen)
			}
		}
		for i, e := range c.Endpoints {
			for j, l := range e.Links {
				if e.TLS == nil && slices.ContainsFunc(append([]string{l.Listen}, l.Hosts...), func(a string) bool { return a != "" && !isLoopback(a) }) {
					warn(fmt.Sprintf("endpoints[%d].links[%d]", i, j), "%s is plain TCP: card data should have tls", l)
				}
			}
		}
	}
	for _, use := range c.tlsUses() {
		m, _ := use.files.read(nil)
		for _, f := range use.files.untimely(m, now) {
			warn(join(use.path, f.path), "%s: no connection can be opened with it", f.text)
		}
		for _, kind := range certificateKinds {
			if s, has := m.span(kind, now); has && s.covers(now) == nil && s.to.Sub(now) < soonExpired {
				warn(join(use.path, use.files.keyOf(kind)), "expires soon, on %s", s.to.UTC().Format(time.RFC3339))
			}
		}
	}
	slices.SortStableFunc(list, func(a, b fault) int { return strings.Compare(a.path, b.path) })
	return list
}

// isLoopback reports whether an address never leaves this host.
func isLoopback(address string) bool {
	host, _, err := net.SplitHostPort(address)
	ip := net.ParseIP(host)
	return err == nil && (host == "localhost" || ip != nil && ip.IsLoopback())
}

// A sum tells whether a dialect file has changed.
type sum [sha256.Size]byte

// dialectSums are those of the dialects of a config that are files. What is built in does not change.
func dialectSums(c *Config) map[string]sum {
	sums := map[string]sum{}
	add := func(name string) {
		if text, err := readFile(name, specs.MaxText); err == nil {
			sums[name] = sha256.Sum256(text)
		}
	}
	for _, e := range c.Endpoints {
		add(e.Dialect)
	}
	for _, u := range c.Upstreams {
		add(u.Dialect)
	}
	return sums
}

// changedDialects names the dialects whose files say something else than when they were taken into use: what is on record and in flight
// was written by those.
func (k *keeper) changedDialects(after *Config) []fault {
	var list []fault
	now := dialectSums(after)
	check := func(path, name string) {
		if was, known := k.dialects[name]; known && now[name] != was {
			list = append(list, fault{path, "the file has changed, and " + needsRestart})
		}
	}
	for i, u := range after.Upstreams {
		check(fmt.Sprintf("upstreams[%d].dialect", i), u.Dialect)
	}
	for i, e := range after.Endpoints {
		check(fmt.Sprintf("endpoints[%d].dialect", i), e.Dialect)
	}
	return list
}

// A departed is what an upstream that went had that it cannot come back without.
type departed struct {
	dialect, pinKey, bdkKey string
	pinFormat               hsm.Format
	workingKey              hsm.WorkingKey
	sum                     sum // of the dialect, if that is a file
}

// changedReturns names what keeps an upstream from coming back: what is on record under its name was named by its dialect, and what it
// sends is encrypted for its key, in its format. To go and come must not change what cannot change in one step.
func (k *keeper) changedReturns(p plan, after *Config) []fault {
	var list []fault
	now := dialectSums(after)
	for i, u := range after.Upstreams {
		was, returns := k.left[u.Name]
		if !returns || !slices.Contains(p.newUpstreams, u.Name) {
			continue
		}
		if u.Dialect != was.dialect || now[u.Dialect] != was.sum {
			list = append(list, fault{fmt.Sprintf("upstreams[%d].dialect", i), fmt.Sprintf("is another one than %q had, which went, and %s", u.Name, needsRestart)})
		}
		for _, other := range []struct {
			key string
			is  bool
		}{{"pin_key", u.PINKey != was.pinKey}, {"bdk_key", u.BDKKey != was.bdkKey}, {"pin_format", u.PINFormat != was.pinFormat},
			{"working_key", u.WorkingKey != was.workingKey}} {
			if other.is {
				list = append(list, fault{fmt.Sprintf("upstreams[%d].%s", i, other.key), fmt.Sprintf("is another one than %q had, which went, and %s", u.Name, needsRestart)})
			}
		}
	}
	return list
}
