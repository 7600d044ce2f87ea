package main

import (
	"cmp"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"acquirerd/acquirer"
	"acquirerd/hsm"
	"acquirerd/messages"
	"acquirerd/specs"
	"acquirerd/upstream"
)

// A fault is one thing that is wrong with a config, and where.
type fault struct{ path, text string }

func (f fault) String() string {
	if f.path == "" {
		return f.text
	}
	return f.path + ": " + f.text
}

// A configError holds every fault of a config in the order of the file.
type configError struct{ faults []fault }

func (e *configError) Error() string {
	lines := make([]string, len(e.faults))
	for i, f := range e.faults {
		lines[i] = f.String()
	}
	return strings.Join(lines, "\n")
}

// about keeps the faults that concern the given keys: those at one of them, below one, or above one. It returns nil if there is none.
// Commands that use a part of the config do not ask for the rest.
func (e *configError) about(paths ...string) error {
	kept := slices.DeleteFunc(slices.Clone(e.faults), func(f fault) bool {
		return !slices.ContainsFunc(paths, func(path string) bool { return within(f.path, path) || within(path, f.path) })
	})
	if len(kept) == 0 {
		return nil
	}
	return &configError{kept}
}

// within reports whether a path is at or below another.
func within(path, above string) bool {
	rest, found := strings.CutPrefix(path, above)
	return found && (above == "" || rest == "" || rest[0] == '.' || rest[0] == '[')
}

// faults collects what is wrong with a config.
type faults struct {
	list   []fault
	places map[string]int // of each key in the file
}

// add notes a fault, unless there is one at that place or above it: what follows from a fault is not another one.
func (f *faults) add(path, format string, args ...any) {
	if !slices.ContainsFunc(f.list, func(known fault) bool { return known.path != "" && within(path, known.path) }) {
		text := fmt.Sprintf(format, args...)
		if name := variable(path); os.Getenv(name) != "" {
			text += " (from " + name + ")"
		}
		f.list = append(f.list, fault{path, text})
	}
}

// err returns all faults in the order of the file. A key that is missing stands where its group does.
func (f *faults) err() error {
	if len(f.list) == 0 {
		return nil
	}
	slices.SortStableFunc(f.list, func(a, b fault) int { return cmp.Compare(f.place(a.path), f.place(b.path)) })
	return &configError{f.list}
}

func (f *faults) place(path string) int {
	for path != "" {
		if place, known := f.places[path]; known {
			return place
		}
		path = path[:max(0, strings.LastIndexAny(path, ".["))]
	}
	return 0
}

// validate checks what the form of a Config does not say.
func (f *faults) validate(c *Config) {
	f.name("station", c.Station)
	f.oneOf("environment", c.Environment, "production", "test")
	f.oneOf("journal.engine", c.Journal.Engine, "sqlite")
	f.given("journal.path", c.Journal.Path)
	if path := socketPath(c); len(path) > longestSocketPath {
		f.add("journal.path", "%d bytes are too long: the control socket stands beside it, and its path may have %d", len(c.Journal.Path),
			longestSocketPath-len(path)+len(c.Journal.Path))
	}
	f.count("journal.batch", c.Journal.Batch, 100_000)
	f.count("journal.queue", c.Journal.Queue, 1_000_000)
	f.validateHSM(&c.HSM)
	f.validateUpstreams(c)
	f.validateEndpoints(c)
	f.validateRoutes(c)
	f.validatePINFormats(c)
	f.durations("reversals", map[string]time.Duration{"retry_min": c.Reversals.RetryMin, "retry_max": c.Reversals.RetryMax,
		"park_after": c.Reversals.ParkAfter, "not_found_final": c.Reversals.NotFoundFinal, "poll": c.Reversals.Poll})
	if c.Reversals.RetryMax < c.Reversals.RetryMin {
		f.add("reversals.retry_max", "%v is shorter than retry_min (%v)", c.Reversals.RetryMax, c.Reversals.RetryMin)
	}
	f.count("reversals.parallel", c.Reversals.Parallel, 1024)
	f.count("reversals.rate", c.Reversals.Rate, 1_000_000)
	f.count("limits.in_flight", c.Limits.InFlight, 1_000_000)
	f.address("operations.listen", c.Operations.Listen, 0)
	f.oneOf("log.level", c.Log.Level, "debug", "info", "warn", "error")
	f.oneOf("log.format", c.Log.Format, "json", "text")
	f.durations("shutdown", map[string]time.Duration{"grace": c.Shutdown.Grace})
	f.validateNesting(c)
	f.validateListeners(c)
	f.validateParts(c)
}

// mostOverlap bounds hsm.key_overlap.
const mostOverlap = 7 * 24 * time.Hour

// mostKeyChanges bounds hsm.key_changes, a minute.
const mostKeyChanges = 120

// versionMark ends the labels of keys that came by a key change.
var versionMark = regexp.MustCompile(`#[0-9]+$`)

func (f *faults) validateHSM(c *HSMConfig) {
	f.given("hsm.module", c.Module)
	if strings.ContainsRune(c.ModuleArguments, 0) {
		f.add("hsm.module_arguments", "holds a zero byte, which would end it")
	}
	f.given("hsm.token", c.Token)
	if c.PINFile == "" && os.Getenv(pinVariable) == "" {
		f.add("hsm.pin_file", "missing, and %s is not set in the environment", pinVariable)
	}
	if c.PINFile != "" && !strings.ContainsRune(c.PINFile, '/') {
		f.add("hsm.pin_file", "is not the path of a file, such as /etc/acquirerd/token.pin: the PIN itself may not stand here") // and is not quoted
	}
	f.count("hsm.sessions", c.Sessions, 1024)
	f.count("hsm.queue", c.Queue, 1_000_000)
	f.durations("hsm", map[string]time.Duration{"call_timeout": c.CallTimeout, "key_overlap": c.KeyOverlap})
	f.count("hsm.key_changes", c.KeyChanges, mostKeyChanges)
	if c.KeyOverlap > mostOverlap {
		f.add("hsm.key_overlap", "is longer than %v", mostOverlap)
	}
	labels := map[string]string{}
	for i, key := range c.Keys {
		at := fmt.Sprintf("hsm.keys[%d]", i)
		f.label(at+".label", key.Label)
		f.unique(at+".label", key.Label, labels)
		if !sixHex.MatchString(key.KCV) {
			f.add(at+".kcv", "is not six hexadecimal digits")
		}
		if !slices.Contains(hsm.Uses, key.Use) {
			f.add(at+".use", "%q is not one of %s", string(key.Use), oneOf(hsm.Uses))
		}
		for j, other := range c.Keys[:i] {
			if problem := hsm.Twins(key.Use, other.Use); problem != "" && key.KCV != "" && strings.EqualFold(key.KCV, other.KCV) {
				f.add(at+".kcv", "%q is hsm.keys[%d].kcv already: %s", strings.ToUpper(key.KCV), j, problem)
				break
			}
		}
		if key.Use != hsm.PINIn && key.Use != hsm.PINOut && key.ZMK != "" {
			f.add(at+".zmk", "only a %s or %s key can be changed", hsm.PINIn, hsm.PINOut)
		}
		if key.ZMK != "" {
			f.key(c, at+".zmk", key.ZMK, hsm.ZMK)
		}
		if version := versionMark.FindStringIndex(key.Label); version != nil && slices.ContainsFunc(c.Keys, func(k KeyConfig) bool {
			return k.ZMK != "" && k.Label == key.Label[:version[0]]
		}) {
			f.add(at+".label", "is what a later version of %q is called in the token", key.Label[:version[0]])
		}
	}
	f.key(c, "hsm.seal_key", c.SealKey, hsm.PANSeal)
	f.key(c, "hsm.token_key", c.TokenKey, hsm.PANToken)
}

func (f *faults) validateUpstreams(c *Config) {
	if len(c.Upstreams) == 0 {
		f.add("upstreams", "missing: at least one is needed")
	}
	names, zones := map[string]string{}, map[string]string{}
	for i, u := range c.Upstreams {
		at := fmt.Sprintf("upstreams[%d]", i)
		f.name(at+".name", u.Name)
		f.unique(at+".name", u.Name, names)
		f.dialect(at+".dialect", u.Dialect)
		f.address(at+".listen", u.Listen, 0)
		f.count(at+".in_flight", u.InFlight, 1_000_000)
		f.count(at+".connections", u.Connections, 100_000)
		f.durations(at, map[string]time.Duration{"budget": u.Budget, "idle_timeout": u.IdleTimeout,
			"write_timeout": u.WriteTimeout, "frame_timeout": u.FrameTimeout})
		f.mac(c, at, u.Dialect, u.MACKey, u.MACFailures)
		if u.PINKey != "" {
			f.key(&c.HSM, at+".pin_key", u.PINKey, hsm.PINIn)
			f.zone(&c.HSM, at+".pin_key", u.PINKey, zones)
		}
		f.dukpt(c, at, &u)
		f.pinFormat(at, u.pinsUnder(), u.PINFormat, u.Dialect)
		f.validateAccess(at, &u)
	}
}

// validateAccess checks who may connect to a door, and how often it may ask.
func (f *faults) validateAccess(at string, u *UpstreamConfig) {
	if u.Rate < 0 || u.Rate > mostRate {
		f.add(at+".rate", "%d is not 0 to %d", u.Rate, mostRate)
	}
	if u.Rate > 0 {
		f.count(at+".burst", u.Burst, mostRate)
	} else if u.Burst > 0 {
		f.add(at+".burst", "is of no use without rate")
	}
	f.networks(at+".allow", u.Allow)
	names := map[string]string{}
	for i, name := range u.Peers {
		f.given(fmt.Sprintf("%s.peers[%d]", at, i), name)
		f.unique(fmt.Sprintf("%s.peers[%d]", at, i), name, names)
	}
	if u.TLS != nil {
		f.tls(at+".tls", u.TLS.files(), u.TLS.MinVersion)
	} else if len(u.Peers) > 0 {
		f.add(at+".peers", "needs tls: without client certificates nobody has a name")
	}
}

// mostRate bounds a rate, in requests a second.
const mostRate = 1_000_000

func (f *faults) validateEndpoints(c *Config) {
	if len(c.Endpoints) == 0 {
		f.add("endpoints", "missing: at least one is needed")
	}
	names, zones := map[string]string{}, map[string]string{}
	for i, e := range c.Endpoints {
		at := fmt.Sprintf("endpoints[%d]", i)
		f.name(at+".name", e.Name)
		f.unique(at+".name", e.Name, names)
		f.dialect(at+".dialect", e.Dialect)
		if len(e.Links) == 0 {
			f.add(at+".links", "missing: at least one address is needed")
		}
		for j := range e.Links {
			f.validateLink(fmt.Sprintf("%s.links[%d]", at, j), &e.Links[j])
		}
		if e.TLS != nil {
			f.tls(at+".tls", e.TLS.files(), e.TLS.MinVersion)
			if e.TLS.CertFile == "" && slices.ContainsFunc(e.Links, func(l LinkConfig) bool { return l.Listen != "" }) {
				f.add(at+".tls.cert_file", "missing: a link that listens shows its own certificate")
			}
		}
		f.count(at+".echo_misses", e.EchoMisses, 100)
		f.count(at+".in_flight", e.InFlight, 1_000_000)
		f.count(at+".link_in_flight", e.LinkInFlight, 1_000_000)
		if e.LinkInFlight > e.InFlight && e.InFlight > 0 {
			f.add(at+".link_in_flight", "%d is more than in_flight (%d)", e.LinkInFlight, e.InFlight)
		}
		f.durations(at, map[string]time.Duration{"reply_timeout": e.ReplyTimeout, "write_timeout": e.WriteTimeout,
			"dial_timeout": e.DialTimeout, "sign_on_timeout": e.SignOnTimeout, "echo_interval": e.EchoInterval,
			"echo_timeout": e.EchoTimeout, "backoff_min": e.BackoffMin, "backoff_max": e.BackoffMax, "fail_back": e.FailBack})
		if c.Environment == "production" {
			for key, pause := range map[string]time.Duration{"backoff_min": e.BackoffMin, "fail_back": e.FailBack} {
				if pause >= leastDuration && pause < leastPause {
					f.add(at+"."+key, "%v is shorter than %v: it would be a flood of connections for the processor", pause, leastPause)
				}
			}
		}
		if e.BackoffMax < e.BackoffMin {
			f.add(at+".backoff_max", "%v is shorter than backoff_min (%v)", e.BackoffMax, e.BackoffMin)
		}
		f.mac(c, at, e.Dialect, e.MACKey, e.MACFailures)
		if e.MACSuspension < 0 || e.MACSuspension > mostSuspension {
			f.add(at+".mac_suspension", "%v is not 0 to %v", e.MACSuspension, mostSuspension)
		}
		if e.PINKey != "" {
			f.key(&c.HSM, at+".pin_key", e.PINKey, hsm.PINOut)
			f.zone(&c.HSM, at+".pin_key", e.PINKey, zones)
			f.otherZone(c, at+".pin_key", e.PINKey)
		}
		f.pinFormat(at, e.PINKey, e.PINFormat, e.Dialect)
	}
}

// zone demands that a key which its other side may change is of no other one: a message of one would change it for both, and the other could
// read no PIN any more. Each zone has a key of its own (PCI PIN 17). seen holds the paths of such keys by label.
func (f *faults) zone(c *HSMConfig, path, label string, seen map[string]string) {
	if !slices.ContainsFunc(c.Keys, func(k KeyConfig) bool { return k.Label == label && k.ZMK != "" }) {
		return
	}
	if first := seen[label]; first != "" {
		f.add(path, "key %q has a zmk and is %s already: a message of one would change it for both", label, first)
		return
	}
	seen[label] = path
}

// otherZone demands that an endpoint's PIN key is no upstream's, by its check value: hsm.Twins cannot know that the directions are of two zones.
func (f *faults) otherZone(c *Config, path, label string) {
	kcv := func(label string) string {
		if i := slices.IndexFunc(c.HSM.Keys, func(k KeyConfig) bool { return k.Label == label }); i >= 0 {
			return strings.ToUpper(c.HSM.Keys[i].KCV)
		}
		return ""
	}
	for i, u := range c.Upstreams {
		if u.PINKey != "" && kcv(u.PINKey) != "" && kcv(u.PINKey) == kcv(label) {
			f.add(path, "key %q has the check value of upstreams[%d].pin_key, %q: each zone has a key of its own", label, i, kcv(label))
			return
		}
	}
}

// The ways with a key serial number that does not rise.
const (
	ksnAlarm  = "alarm"
	ksnRefuse = "refuse"
)

// pinsUnder is the label of the key of an upstream's PIN blocks, "" if it sends none.
func (u *UpstreamConfig) pinsUnder() string { return cmp.Or(u.PINKey, u.BDKKey) }

// dukpt checks the keys of an upstream whose devices have a key for each transaction.
func (f *faults) dukpt(c *Config, at string, u *UpstreamConfig) {
	f.oneOf(at+".ksn_regression", u.KSNRegression, ksnAlarm, ksnRefuse)
	if u.BDKKey == "" {
		if u.WorkingKey != "" {
			f.add(at+".working_key", "is of no use without bdk_key")
		}
		if u.KSNRegression == ksnRefuse {
			f.add(at+".ksn_regression", "is of no use without bdk_key")
		}
		return
	}
	if u.PINKey != "" {
		f.add(at+".bdk_key", "stands beside pin_key: PIN blocks are under the one or the other")
		return
	}
	f.key(&c.HSM, at+".bdk_key", u.BDKKey, hsm.BDK)
	if d, err := specs.Load(u.Dialect); err == nil && d.KeySerialNumber.Element == 0 {
		f.add(at+".bdk_key", "needs the key serial number of each PIN block, and the dialect %q has no key_serial_number", d.Name)
	}
	if u.WorkingKey != "" && !slices.Contains(hsm.WorkingKeys, u.WorkingKey) {
		f.add(at+".working_key", "%q is not one of %s", string(u.WorkingKey), oneOf(hsm.WorkingKeys))
	} else if u.WorkingKey != "" && u.PINFormat.IsKnown() && u.WorkingKey.Algorithm() != u.PINFormat.Algorithm() {
		f.add(at+".working_key", "%s is not for %s", u.WorkingKey, u.PINFormat)
	}
}

// pinFormat checks the format of a party's PIN blocks, and that DE 52 of its dialect holds them.
func (f *faults) pinFormat(at, pinKey string, format hsm.Format, dialect string) {
	if !format.IsKnown() {
		f.add(at+".pin_format", "%q is not one of %s", string(format), oneOf(hsm.Formats))
		return
	}
	if pinKey == "" {
		if format != hsm.ISO0 && format != "" { // the default stands everywhere
			f.add(at+".pin_format", "is of no use without a key of PIN blocks")
		}
		return
	}
	if d, err := specs.Load(dialect); err == nil && !d.HoldsPINBlock(format.Bytes()) {
		f.add(at+".pin_format", "%s needs DE 52 of %d bytes, and the dialect %q does not have it", format, format.Bytes(), d.Name)
	}
}

// bringsPINs reports whether a route brings PIN blocks of an upstream to an endpoint.
func (c *Config) bringsPINs(u *UpstreamConfig, e *EndpointConfig) bool {
	return u.pinsUnder() != "" && e.PINKey != "" && slices.ContainsFunc(c.Routes, func(r RouteConfig) bool {
		return r.Endpoint == e.Name && (len(r.Upstreams) == 0 || slices.Contains(r.Upstreams, u.Name))
	})
}

// validatePINFormats checks that each endpoint may have the PIN blocks in its own format that the routes bring it (PCI PIN 3-3).
func (f *faults) validatePINFormats(c *Config) {
	for i, e := range c.Endpoints {
		var bringers []string
		var why error
		for j, u := range c.Upstreams {
			if !c.bringsPINs(&u, &e) || !u.PINFormat.IsKnown() || !e.PINFormat.IsKnown() {
				continue
			}
			if err := hsm.AllowedPair(u.PINFormat, e.PINFormat, hsm.SamePAN); err != nil {
				bringers, why = append(bringers, fmt.Sprintf("upstreams[%d].pin_format", j)), err
			}
		}
		if why != nil {
			f.add(fmt.Sprintf("endpoints[%d].pin_format", i), "does not go with %s, which routes bring to it: %v", strings.Join(bringers, ", "), why)
		}
	}
}

// mostSuspension bounds the time for which a link is out of service by itself.
const mostSuspension = 7 * 24 * time.Hour

// mac checks the key of a party whose messages carry MACs, and that no other has it: a key that two share proves nothing about who of them has
// sent a message.
func (f *faults) mac(c *Config, at, dialect, label string, failures int) {
	f.count(at+".mac_failures", failures, 1_000_000)
	spoken, err := specs.Load(dialect)
	switch {
	case err != nil: // which is a fault already
	case spoken.MAC.Place != specs.MACLast && label != "":
		f.add(at+".mac_key", "%q has no MAC in its messages (mac.place)", spoken.Name)
	case spoken.MAC.Place == specs.MACLast && label == "":
		f.add(at+".mac_key", "missing: %q has a MAC in its messages (mac.place)", spoken.Name)
	}
	if label == "" {
		return
	}
	i := slices.IndexFunc(c.HSM.Keys, func(k KeyConfig) bool { return k.Label == label })
	switch {
	case i < 0:
		f.add(at+".mac_key", "no key %q in hsm.keys", label)
	case !slices.Contains(macUses, c.HSM.Keys[i].Use):
		f.add(at+".mac_key", "key %q has the use %q, not one of %s", label, string(c.HSM.Keys[i].Use), oneOf(macUses))
	case err == nil && spoken.MAC.Padding != 0 && c.HSM.Keys[i].Use != hsm.MACX919:
		f.add(at+".mac_key", "%q has a padding (mac.padding), and a %s key its own", spoken.Name, string(c.HSM.Keys[i].Use))
	}
	for j, u := range c.Upstreams {
		if path := fmt.Sprintf("upstreams[%d]", j); u.MACKey == label && path < at {
			f.add(at+".mac_key", "key %q is %s.mac_key already", label, path)
		}
	}
	for j, e := range c.Endpoints {
		if path := fmt.Sprintf("endpoints[%d]", j); e.MACKey == label && path < at {
			f.add(at+".mac_key", "key %q is %s.mac_key already", label, path)
		}
	}
}

// mostAlike bounds the links that one entry stands for.
const mostAlike = 64

// validateLink checks one entry: either its hosts, or where it listens and to whom.
func (f *faults) validateLink(at string, l *LinkConfig) {
	host := func(i int) string { return fmt.Sprintf("%s.hosts[%d]", at, i) }
	if _, isMapping := f.places[at+".hosts"]; !isMapping && len(l.Hosts) == 1 { // the entry is its only host
		host = func(int) string { return at }
	}
	names := map[string]string{}
	for i, address := range l.Hosts {
		f.address(host(i), address, 1)
		f.unique(host(i), address, names)
	}
	switch {
	case len(l.Hosts) == 0 && l.Listen == "":
		f.add(at, "has neither hosts to dial nor an address to listen on")
	case len(l.Hosts) > 0 && l.Listen != "":
		f.add(at+".listen", "stands beside hosts: a link either dials or is dialled")
	case l.Listen != "":
		f.address(at+".listen", l.Listen, 0)
		if len(l.Allow) == 0 {
			f.add(at+".allow", "missing: who may dial it")
		}
	case len(l.Allow) > 0:
		f.add(at+".allow", "is only for a link that listens")
	}
	f.networks(at+".allow", l.Allow)
	f.count(at+".links", l.Links, mostAlike)
}

// networks checks a list of prefixes, without bits behind their length: those would say that something else was meant.
func (f *faults) networks(path string, list []string) {
	seen := map[string]string{}
	for i, text := range list {
		at := fmt.Sprintf("%s[%d]", path, i)
		if prefix, err := netip.ParsePrefix(text); err != nil || prefix != prefix.Masked() {
			f.add(at, `%q is not a network such as "10.0.0.0/8"`, text)
		}
		f.unique(at, text, seen)
	}
}

// tls checks what a link or a door shows and trusts: the keys, and then the files as they are now.
func (f *faults) tls(path string, files tlsFiles, minVersion string) {
	f.oneOf(path+".min_version", minVersion, slices.Sorted(maps.Keys(tlsVersions))...)
	if files.keyFile != "" && files.keyLabel != "" {
		f.add(path+".key_label", "stands beside key_file: one of the two is the key")
	}
	if files.keyLabel != "" {
		f.label(path+".key_label", files.keyLabel)
	}
	for key, file := range map[string]string{"cert_file": files.certFile, "key_file": files.keyFile, files.caKey(): files.caFile} {
		if file != "" && (!strings.ContainsRune(file, '/') || strings.ContainsRune(file, '\n')) {
			f.add(join(path, key), "is not the path of a file, such as /etc/acquirerd/tls.pem: what is in it may not stand here") // and is not quoted
		}
	}
	hasKey := files.keyFile != "" || files.keyLabel != ""
	switch {
	case files.certFile == "" && (hasKey || files.isDoor):
		f.add(path+".cert_file", "missing")
	case files.certFile != "" && !hasKey:
		f.add(path+".key_file", "missing, and there is no key_label")
	}
	f.given(path+"."+files.caKey(), files.caFile)
	for _, wrong := range files.faults() {
		f.add(join(path, wrong.path), "%s", wrong.text)
	}
}

func (f *faults) validateRoutes(c *Config) {
	if len(c.Routes) == 0 {
		f.add("routes", "missing: without one no card has an endpoint")
	}
	isEndpoint, isUpstream := map[string]bool{}, map[string]bool{}
	for _, e := range c.Endpoints {
		isEndpoint[e.Name] = true
	}
	for _, u := range c.Upstreams {
		isUpstream[u.Name] = true
	}
	for i, r := range c.Routes {
		at := fmt.Sprintf("routes[%d]", i)
		f.given(at+".endpoint", r.Endpoint)
		if !isEndpoint[r.Endpoint] {
			f.add(at+".endpoint", "no endpoint %q in endpoints", r.Endpoint)
		}
		each := func(key string, list []string, fine func(string) bool, format string) {
			for j, value := range list {
				if !fine(value) {
					f.add(fmt.Sprintf("%s.%s[%d]", at, key, j), format, value)
				}
			}
		}
		each("bins", r.BINs, isBIN, `%q is neither a prefix of digits ("4") nor a rising range of prefixes of one length ("51-55")`)
		each("upstreams", r.Upstreams, func(s string) bool { return isUpstream[s] }, "no upstream %q in upstreams")
		each("mtis", r.MTIs, isRouted, `%q is not one of "0100", "0200", "0120", "0220"`)
		each("currencies", r.Currencies, threeDigits.MatchString, `%q is not a currency number of three digits ("978")`)
	}
}

// validateNesting checks that who waits for another waits longer: a write ends before the wait for its answer does, the wait before
// the upstream gives up, and what is in flight at a stop before the stop is cut short (STANDARDS: ISO-05).
func (f *faults) validateNesting(c *Config) {
	shorter := func(path string, value time.Duration, than string, limit time.Duration) {
		if value >= limit && value > 0 && limit > 0 { // what is not positive is a fault already
			f.add(path, "%v is not shorter than %s (%v)", value, than, limit)
		}
	}
	for i, e := range c.Endpoints {
		at := fmt.Sprintf("endpoints[%d]", i)
		shorter(at+".write_timeout", e.WriteTimeout, "reply_timeout", e.ReplyTimeout)
		for j, u := range c.Upstreams {
			shorter(at+".reply_timeout", e.ReplyTimeout, fmt.Sprintf("upstreams[%d].budget", j), u.Budget)
		}
		shorter(at+".reply_timeout", e.ReplyTimeout, "reversals.not_found_final", c.Reversals.NotFoundFinal)
		if c.Reversals.Parallel > max(1, e.InFlight/2) && e.InFlight > 0 {
			f.add("reversals.parallel", "%d is more than half of %s.in_flight (%d): reversals without an answer would take the places of transactions",
				c.Reversals.Parallel, at, e.InFlight)
		}
	}
	shorter("reversals.not_found_final", c.Reversals.NotFoundFinal, "park_after", c.Reversals.ParkAfter)
	f.validateGrace(c)
}

// validateGrace checks that an orderly stop fits into its grace. One after the other end: what upstreams wait for, the reversals on their
// way, and the links: a sign-off may wait for its turn and its answer, for the write between, and for the farewell of TLS after it.
func (f *faults) validateGrace(c *Config) {
	var drain, reversal, signOff time.Duration
	for _, u := range c.Upstreams {
		drain = max(drain, u.Budget+u.WriteTimeout+upstream.PartingTime)
	}
	for _, e := range c.Endpoints {
		reversal, signOff = max(reversal, e.ReplyTimeout), max(signOff, e.SignOnTimeout+2*e.WriteTimeout)
	}
	if need := drain + reversal + signOff; c.Shutdown.Grace <= need && c.Shutdown.Grace > 0 {
		f.add("shutdown.grace", "%v is not longer than an upstream's budget, write_timeout and parting, an endpoint's reply_timeout, its sign_on_timeout and two write_timeouts together (%v)",
			c.Shutdown.Grace, need)
	}
}

// validateListeners checks that no two listen at one address.
func (f *faults) validateListeners(c *Config) {
	var taken []listener
	for _, l := range c.listeners() {
		if at := slices.IndexFunc(taken, func(other listener) bool { return l.overlaps(other.socket) }); at >= 0 {
			f.add(l.path, "%q is %s already", l.address, taken[at].path)
		} else {
			taken = append(taken, l)
		}
	}
	for i, e := range c.Endpoints { // links share a listener only by the same text, and a port of 0 only so
		for j, l := range e.Links {
			first := slices.IndexFunc(e.Links, func(other LinkConfig) bool { return other.Listen == l.Listen })
			if l.Listen != "" && !slices.Equal(l.Allow, e.Links[first].Allow) {
				f.add(fmt.Sprintf("endpoints[%d].links[%d].allow", i, j), "is not that of links[%d], which listens at the same %q", first, l.Listen)
			}
		}
	}
}

// A listener is one place of the config where an address is listened at.
type listener struct {
	path, owner string
	upstream    string // its name, if it is one's
	address     string
	socket
}

// A socket is an address, however it is spelled.
type socket struct {
	host string // "" for all addresses of the host
	port int
}

// socketOf returns what an address means, if it has a port of its own.
func socketOf(address string) (s socket, fixed bool) {
	host, port, err := net.SplitHostPort(address)
	if s.port, _ = strconv.Atoi(port); err != nil || s.port <= 0 {
		return s, false
	}
	if host == "localhost" {
		host = "127.0.0.1" // which net prefers
	}
	if ip, err := netip.ParseAddr(host); err == nil {
		if host = ip.Unmap().String(); ip.Unmap().IsUnspecified() {
			host = ""
		}
	}
	s.host = strings.ToLower(host)
	return s, true
}

// isSameAddress reports whether two addresses are one that has a port of its own. All addresses of the host are so only by the same text:
// those of IPv4 are not those of both versions.
func isSameAddress(a, b string) bool {
	one, fixed := socketOf(a)
	other, _ := socketOf(b)
	return fixed && one == other && (one.host != "" || a == b)
}

// overlaps reports whether two cannot be there at once. One for all addresses of the host takes its port from each of them.
func (s socket) overlaps(other socket) bool {
	return s.port == other.port && (s.host == other.host || s.host == "" || other.host == "")
}

// listeners are the places with a port of their own.
func (c *Config) listeners() (list []listener) {
	add := func(l listener) {
		var fixed bool
		if l.socket, fixed = socketOf(l.address); fixed {
			list = append(list, l)
		}
	}
	for i, u := range c.Upstreams {
		add(listener{path: fmt.Sprintf("upstreams[%d].listen", i), owner: u.party(), upstream: u.Name, address: u.Listen})
	}
	for i, e := range c.Endpoints {
		for j, l := range e.Links {
			add(listener{path: fmt.Sprintf("endpoints[%d].links[%d].listen", i, j), owner: e.party(), address: l.Listen})
		}
	}
	add(listener{path: "operations.listen", owner: "the operations port", address: c.Operations.Listen})
	return list
}

// validateParts has the links and the doors check what they would be given, where no fault is known: what is taken here, they take.
func (f *faults) validateParts(c *Config) {
	check := func(at, dialect string, files *tlsFiles, check func(*messages.Codec, *party) error) {
		if slices.ContainsFunc(f.list, func(known fault) bool { return within(known.path, at) }) {
			return
		}
		codec, err := loadCodec(dialect)
		p := &party{}
		if err == nil {
			if files != nil {
				m, _ := files.read(nil)
				p.current.Store(m)
			}
			err = check(codec, p)
		}
		if err != nil {
			f.add(at, "%s", oneLine(err))
		}
	}
	for i, u := range c.Upstreams {
		var files *tlsFiles
		if u.TLS != nil {
			t := u.TLS.files()
			files = &t
		}
		check(fmt.Sprintf("upstreams[%d]", i), u.Dialect, files, func(codec *messages.Codec, p *party) error {
			cfg := u.forDoor(u.forSwitch(codec), p)
			cfg.MAC = newMACKey(nil, u.MACKey, codec.Dialect()) // it is not used
			return checkDoor(cfg)
		})
	}
	for i, e := range c.Endpoints {
		var files *tlsFiles
		if e.TLS != nil {
			t := e.TLS.files()
			files = &t
		}
		check(fmt.Sprintf("endpoints[%d]", i), e.Dialect, files, func(codec *messages.Codec, p *party) error {
			cfg := e.forConn(codec, p)
			cfg.MAC = newMACKey(nil, e.MACKey, codec.Dialect()) // it is not used
			return checkLinks(cfg)
		})
	}
}

var (
	sixHex      = regexp.MustCompile(`^[0-9A-Fa-f]{6}$`)
	threeDigits = regexp.MustCompile(`^[0-9]{3}$`)
	plainLabel  = regexp.MustCompile(`^[!-~]{1,64}$`)
	plainName   = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$`)
)

func isBIN(text string) bool {
	_, _, err := acquirer.ParseBIN(text)
	return err == nil
}

// isRouted reports whether an MTI is one that upstreams may submit.
func isRouted(mti string) bool {
	return slices.Contains([]messages.MTI{messages.AuthorizationRequest, messages.FinancialRequest, messages.AuthorizationAdvice,
		messages.FinancialAdvice}, messages.MTI(mti))
}

func (f *faults) given(path, value string) {
	if value == "" {
		f.add(path, "missing")
	}
}

// name checks what becomes a label of metrics, a value in logs and a key in the journal.
func (f *faults) name(path, value string) {
	f.given(path, value)
	if !plainName.MatchString(value) {
		f.add(path, "%q is not a name of 1 to 64 letters, digits, dots, hyphens and underscores", value)
	}
}

// labelRule says what plainLabel matches: what every token, log and table can show.
const labelRule = "is not 1 to 64 printable ASCII characters without spaces"

// label checks the label of a key.
func (f *faults) label(path, value string) {
	f.given(path, value)
	if !plainLabel.MatchString(value) {
		f.add(path, "%s", labelRule)
	}
}

func (f *faults) unique(path, value string, seen map[string]string) {
	if first, taken := seen[value]; taken && value != "" {
		f.add(path, "%q is %s already", value, first)
		return
	}
	seen[value] = path
}

func (f *faults) oneOf(path, value string, allowed ...string) {
	if !slices.Contains(allowed, value) {
		f.add(path, "%q is not one of %s", value, strings.Join(allowed, ", "))
	}
}

func (f *faults) count(path string, value, most int) {
	if value < 1 || value > most {
		f.add(path, "%d is not 1 to %d", value, most)
	}
}

// leastDuration keeps waits from being none and pauses from being busy loops. No wait on a network is shorter.
const leastDuration = time.Millisecond

// leastPause is the same for what dials a processor again and again, each time with a handshake and a sign-on there.
const leastPause = 100 * time.Millisecond

// durations checks that each is long enough.
func (f *faults) durations(path string, values map[string]time.Duration) {
	for _, key := range slices.Sorted(maps.Keys(values)) {
		if values[key] < leastDuration {
			f.add(join(path, key), "%v is shorter than %v", values[key], leastDuration)
		}
	}
}

// address checks host:port. A port of 0 lets the system choose one.
func (f *faults) address(path, value string, leastPort int) {
	f.given(path, value)
	host, port, err := net.SplitHostPort(value)
	number, errPort := strconv.Atoi(port)
	if err != nil || errPort != nil || number < leastPort || number > 65535 || (leastPort > 0 && host == "") {
		f.add(path, "%q is not host:port", value)
	}
}

func (f *faults) dialect(path, name string) {
	f.given(path, name)
	if _, err := specs.Load(name); err != nil {
		f.add(path, "%s", oneLine(err))
	}
}

// key checks that a label names a key of the use.
func (f *faults) key(c *HSMConfig, path, label string, use hsm.Use) {
	f.given(path, label)
	at := slices.IndexFunc(c.Keys, func(k KeyConfig) bool { return k.Label == label })
	if at < 0 {
		f.add(path, "no key %q in hsm.keys", label)
	} else if c.Keys[at].Use != use {
		f.add(path, "key %q has the use %q, not %s", label, string(c.Keys[at].Use), use)
	}
}
