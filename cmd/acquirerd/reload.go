package main

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
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
	"acquirerd/specs"
)

// A reload reads the config again and puts it into force while the daemon serves: everything is read and checked before anything is
// changed, and a fault, or one key that cannot change, leaves all as it was. Links and connections that the change does not concern are
// not touched.

// reloadable are the keys that may change while the daemon serves, with all that stands below them. Every other one needs a restart:
// because the journal and what is owed are tied to it, or because nobody has needed it yet.
var reloadable = []string{
	"routes", "log.level", "shutdown.grace", "reversals.rate",
	"endpoints[].links", "endpoints[].pin_key", "endpoints[].reply_timeout", "endpoints[].write_timeout", "endpoints[].dial_timeout",
	"endpoints[].sign_on_timeout", "endpoints[].echo_interval", "endpoints[].echo_timeout", "endpoints[].echo_misses",
	"endpoints[].backoff_min", "endpoints[].backoff_max", "endpoints[].fail_back", "endpoints[].in_flight", "endpoints[].link_in_flight",
	"endpoints[].tls",
	"upstreams[].in_flight", "upstreams[].connections", "upstreams[].budget", "upstreams[].idle_timeout", "upstreams[].write_timeout",
	"upstreams[].frame_timeout", "upstreams[].rate", "upstreams[].burst", "upstreams[].allow", "upstreams[].peers", "upstreams[].tls",
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
	return p
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

// newKeeper reads the certificates of the config. Its error names each fault.
func (d *daemon) newKeeper() (*keeper, error) {
	k := &keeper{daemon: d, inForce: d.cfg, dialects: dialectSums(d.cfg),
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

// remindInterval is how often a certificate that is not valid is warned of.
const remindInterval = time.Hour

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
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-look.C:
			k.certificates.look()
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
	remind := time.NewTicker(remindInterval)
	defer remind.Stop()
	k.successful.Set(0)
	var faulty *configError
	if !errors.As(answer.err, &faulty) {
		k.log.Error("config is not reloaded: the old one stays in force", "by", by, "error", oneLine(answer.err))
		return
	}
		case <-remind.C:
			k.certificates.remind()
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
	k.dialects = dialectSums(after)
	k.enter(after)
	return reloadAnswer{changed: p.changed}
}

// apply changes one part after the other. If one refuses, those before it are changed back. The routes are last of what can refuse: from one
// moment to the next transactions find all of the new ones. What is new begins after them, and who is gone is asked to go.
func (k *keeper) apply(ctx context.Context, p plan, after *Config, readings []reading) (err error) {
	var undo []func() error
	defer func() {
		if err == nil {
			k.certificates.retain(after)
			return
		}
		for _, back := range slices.Backward(undo) {
			err = errors.Join(err, back())
		}
		k.certificates.retain(k.inForce)
	}()
	for _, r := range readings {
		if before := k.certificates.parties[r.name]; before != nil {
			old := reading{before.name, before.files, before.seen, before.current.Load()}
			undo = append(undo, func() error { k.certificates.take(old); return nil })
		}
		k.certificates.take(r)
	}
	endpoints := k.processors()
	for _, e := range endpoints {
		if !slices.Contains(p.endpoints, e.name) {
			continue
		}
		change := func(c *Config) error {
			cfg := c.endpoint(e.name)
			return e.Reconfigure(cfg.forConn(e.codec, k.certificates.parties[cfg.party()]))
		}
		if err := change(after); err != nil {
			return err
		}
		undo = append(undo, func() error { return change(k.inForce) })
	}
	for _, o := range k.doors {
		if !slices.Contains(p.upstreams, o.Name) {
			continue
		}
		change := func(c *Config) error {
			cfg := c.upstream(o.Name)
			return o.Reconfigure(cfg.forDoor(o.Upstream, k.certificates.parties[cfg.party()]))
		}
		if err := change(after); err != nil {
			return fmt.Errorf("upstream %s: %w", o.Name, err)
		}
		undo = append(undo, func() error { return change(k.inForce) })
	}

	var opening []*door
	for _, name := range p.newUpstreams {
		cfg := after.upstream(name)
		o, err := k.newDoor(cfg)
		if err != nil {
			return err
		}
		if o.listener, err = openPort(ctx, "upstream "+name, cfg.Listen); err != nil {
			return err
		}
		undo = append(undo, o.listener.Close)
		opening = append(opening, o)
	}
	known := len(endpoints)
	for _, name := range p.newEndpoints {
		e, err := k.newEndpoint(after.endpoint(name))
		if err != nil {
			return err
		}
		undo = append(undo, func() error { return runNever(e) })
		endpoints = append(endpoints, e)
	}
	var routed []*acquirer.Endpoint
	for _, e := range endpoints {
		routed = append(routed, acquirer.NewEndpoint(e.name, after.endpoint(e.name).PINKey, e.codec, e.links))
	}
	if err := k.desk.Reconfigure(after.routes(), routed); err != nil {
		return err
	}

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

// hand gives something new to what runs it, unless that ends.
func hand[T any](ctx context.Context, to chan<- T, what T) {
	select {
	case to <- what:
	case <-ctx.Done():
	}
}

// runNever takes back what an endpoint that is not to run has made.
func runNever(e *endpoint) error {
	over, end := context.WithCancel(context.Background())
	end()
	return e.Run(over, func(context.Context, conn.Unasked) {})
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
