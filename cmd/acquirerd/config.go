package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/viper"
	"go.yaml.in/yaml/v3"

	"acquirerd/hsm"
	"acquirerd/specs"
)

// mostConfig bounds the config file, in bytes.
const mostConfig = 1 << 20

// defaultConfigFile is read where --config is not given.
const defaultConfigFile = "/etc/acquirerd/acquirerd.yaml"

// pinVariable holds the token's user PIN where there is no file for it. It has no key in the file.
const pinVariable = "ACQUIRERD_HSM_PIN"

// A Config is the daemon's YAML file, with defaults and environment put in. Durations are written with a unit ("10s").
//
// Each key that does not stand in a list can be overridden by the environment: journal.path by ACQUIRERD_JOURNAL_PATH. Lists
// (upstreams, endpoints, routes, hsm.keys) are what the file says.
type Config struct {
	Station     string           `mapstructure:"station"`     // name of this daemon; its journal belongs to it
	Environment string           `mapstructure:"environment"` // test or production: production warns of what is only for test
	Journal     JournalConfig    `mapstructure:"journal"`
	HSM         HSMConfig        `mapstructure:"hsm"`
	Upstreams   []UpstreamConfig `mapstructure:"upstreams"`
	Endpoints   []EndpointConfig `mapstructure:"endpoints"`
	Routes      []RouteConfig    `mapstructure:"routes"` // the longest BIN that matches decides; of equals, the first
	Reversals   ReversalsConfig  `mapstructure:"reversals"`
	Limits      LimitsConfig     `mapstructure:"limits"`
	Operations  OperationsConfig `mapstructure:"operations"`
	Log         LogConfig        `mapstructure:"log"`
	Shutdown    ShutdownConfig   `mapstructure:"shutdown"`
}

// A JournalConfig says where the durable record is.
type JournalConfig struct {
	Engine string `mapstructure:"engine"` // sqlite
	Path   string `mapstructure:"path"`
	Batch  int    `mapstructure:"batch"` // most records in one commit
	Queue  int    `mapstructure:"queue"` // most callers that wait for a commit; over it a request is refused
}

// An HSMConfig says which token holds the keys, and which keys they are.
type HSMConfig struct {
	Module               string        `mapstructure:"module"`                 // path of the PKCS#11 library
	ModuleArguments      string        `mapstructure:"module_arguments"`       // for the library when it is initialised; most need none
	Token                string        `mapstructure:"token"`                  // label of the token
	PINFile              string        `mapstructure:"pin_file"`               // holds the token's user PIN; or ACQUIRERD_HSM_PIN
	Sessions             int           `mapstructure:"sessions"`               // calls at once
	Queue                int           `mapstructure:"queue"`                  // callers that may wait for a session
	CallTimeout          time.Duration `mapstructure:"call_timeout"`           // of one call with its waiting
	RequireTokenResident bool          `mapstructure:"require_token_resident"` // refuse to serve where a clear PIN block leaves the token
	LegacyCryptogram     bool          `mapstructure:"legacy_cryptogram"`      // keys import takes raw cryptograms too
	KeyOverlap           time.Duration `mapstructure:"key_overlap"`            // after a key change: how long each key before it may still be used
	KeyChanges           int           `mapstructure:"key_changes"`            // most changes of one key in a minute
	Keys                 []KeyConfig   `mapstructure:"keys"`
	SealKey              string        `mapstructure:"seal_key"`  // label of the pan-seal key that seals; others only open
	TokenKey             string        `mapstructure:"token_key"` // label of the pan-token key
}

// A KeyConfig is a key in the token.
type KeyConfig struct {
	Label string  `mapstructure:"label"`
	KCV   string  `mapstructure:"kcv"` // six hexadecimal digits, in quotes; the start is refused if the token's key has another
	Use   hsm.Use `mapstructure:"use"` // pin-in, pin-out, pan-seal, pan-token, zmk, mac-x919, mac-cmac, mac-hmac or bdk
	ZMK   string  `mapstructure:"zmk"` // of a pin-in or pin-out key: the zmk key under which it may be changed by the other side; none: never
}

// An UpstreamConfig is a switch that submits transactions.
type UpstreamConfig struct {
	Name         string        `mapstructure:"name"`
	Dialect      string        `mapstructure:"dialect"` // a built-in one or a path
	Listen       string        `mapstructure:"listen"`
	PINKey       string        `mapstructure:"pin_key"`       // label of a pin-in key; neither this nor bdk_key: it sends no PINs
	PINFormat    hsm.Format    `mapstructure:"pin_format"`    // of its PIN blocks: iso-0, iso-1, iso-3 or iso-4
	MACKey       string        `mapstructure:"mac_key"`       // label of a mac-x919, mac-cmac or mac-hmac key; needed where its dialect has a MAC
	MACFailures  int           `mapstructure:"mac_failures"`  // so many messages with a wrong MAC within a minute end their connection
	InFlight     int           `mapstructure:"in_flight"`     // most requests at once over all its connections
	Connections  int           `mapstructure:"connections"`   // most at once
	Budget       time.Duration `mapstructure:"budget"`        // how long it waits for an answer
	IdleTimeout  time.Duration `mapstructure:"idle_timeout"`  // of a connection on which nothing arrives
	WriteTimeout time.Duration `mapstructure:"write_timeout"` // of one answer
	FrameTimeout time.Duration `mapstructure:"frame_timeout"` // from a frame's first byte to its last
	Rate         int           `mapstructure:"rate"`          // most requests a second; over it they are refused. 0: no limit
	Burst        int           `mapstructure:"burst"`         // requests at once that rate allows after a pause; default: those of a second
	Allow        []string      `mapstructure:"allow"`         // networks that may connect ("10.0.0.0/8"); none: all
	Peers        []string      `mapstructure:"peers"`         // names, one of which its client certificate must carry; none: the upstream's own
	TLS          *DoorTLS      `mapstructure:"tls"`           // none: plain TCP

	BDKKey        string         `mapstructure:"bdk_key"`        // instead of pin_key: label of a bdk key, from which the keys of its devices are derived (DUKPT)
	WorkingKey    hsm.WorkingKey `mapstructure:"working_key"`    // of AES-DUKPT: the kind of the devices' PIN keys; default 2tdea or, of iso-4, AES as long as the bdk key
	KSNRegression string         `mapstructure:"ksn_regression"` // alarm or refuse a key serial number that does not rise
}

// A DoorTLS is how a door shows itself and knows its upstream. Without it the door is plain TCP; with it, a client certificate is demanded.
type DoorTLS struct {
	CertFile     string `mapstructure:"cert_file"`      // PEM: the certificate, then what leads to its CA
	KeyFile      string `mapstructure:"key_file"`       // PEM; or
	KeyLabel     string `mapstructure:"key_label"`      // of a key pair in the token
	ClientCAFile string `mapstructure:"client_ca_file"` // PEM: who may vouch for the upstream
	MinVersion   string `mapstructure:"min_version"`    // "1.2" or "1.3"
}

// An EndpointConfig is a processor with its links. Its dialect may have other defaults for the timers from reply_timeout to echo_misses.
type EndpointConfig struct {
	Name          string        `mapstructure:"name"`
	Dialect       string        `mapstructure:"dialect"`
	Links         []LinkConfig  `mapstructure:"links"`          // numbered in this order, from 0; one that is only an address dials it
	PINKey        string        `mapstructure:"pin_key"`        // label of a pin-out key; none: it takes no PINs
	PINFormat     hsm.Format    `mapstructure:"pin_format"`     // of the PIN blocks that it takes: iso-0, iso-1, iso-3 or iso-4
	MACKey        string        `mapstructure:"mac_key"`        // label of a mac-x919, mac-cmac or mac-hmac key; needed where its dialect has a MAC
	MACFailures   int           `mapstructure:"mac_failures"`   // so many messages with a wrong MAC within a minute, after its sign-on, suspend their link
	MACSuspension time.Duration `mapstructure:"mac_suspension"` // for how long; 0: until link resume
	ReplyTimeout  time.Duration `mapstructure:"reply_timeout"`
	WriteTimeout  time.Duration `mapstructure:"write_timeout"`
	DialTimeout   time.Duration `mapstructure:"dial_timeout"`
	SignOnTimeout time.Duration `mapstructure:"sign_on_timeout"`
	EchoInterval  time.Duration `mapstructure:"echo_interval"` // idle time after which an echo is sent
	EchoTimeout   time.Duration `mapstructure:"echo_timeout"`
	EchoMisses    int           `mapstructure:"echo_misses"` // unanswered in a row that close a link
	BackoffMin    time.Duration `mapstructure:"backoff_min"` // before the next dial; it doubles
	BackoffMax    time.Duration `mapstructure:"backoff_max"`
	FailBack      time.Duration `mapstructure:"fail_back"`      // how often a link that is not on its first host tries the better ones
	InFlight      int           `mapstructure:"in_flight"`      // most requests at once over all its links
	LinkInFlight  int           `mapstructure:"link_in_flight"` // most requests at once on one link; default: in_flight
	TLS           *LinkTLS      `mapstructure:"tls"`            // of all its links; none: plain TCP
}

// A LinkConfig is one link or several alike: we dial its hosts, or the processor dials us. A text in its place is its only host.
type LinkConfig struct {
	Hosts  []string `mapstructure:"hosts"`  // host:port, the preferred first
	Listen string   `mapstructure:"listen"` // or where the processor dials us
	Allow  []string `mapstructure:"allow"`  // networks from which it may ("10.0.0.0/8"); needed with listen
	Links  int      `mapstructure:"links"`  // so many of them
}

// String is where the link leads, for a log.
func (l LinkConfig) String() string {
	if l.Listen != "" {
		return "listen " + l.Listen
	}
	return strings.Join(l.Hosts, " | ")
}

// A LinkTLS is how links show themselves and know the processor. Of a link that listens, the processor's client certificate is demanded.
type LinkTLS struct {
	CAFile     string `mapstructure:"ca_file"`     // PEM: who may vouch for the processor
	CertFile   string `mapstructure:"cert_file"`   // PEM: our certificate, then what leads to its CA; needed to listen
	KeyFile    string `mapstructure:"key_file"`    // PEM; or
	KeyLabel   string `mapstructure:"key_label"`   // of a key pair in the token
	ServerName string `mapstructure:"server_name"` // that its certificate must carry; default: the host that is dialled; of who dials us, any
	MinVersion string `mapstructure:"min_version"` // "1.2" or "1.3"
}

// A RouteConfig sends what it matches to an endpoint. An empty list matches everything.
type RouteConfig struct {
	BINs       []string `mapstructure:"bins"` // "4" or "51-55", in quotes
	Upstreams  []string `mapstructure:"upstreams"`
	MTIs       []string `mapstructure:"mtis"`       // "0100", "0200", "0120", "0220"
	Currencies []string `mapstructure:"currencies"` // ISO 4217 numbers: "978"
	Endpoint   string   `mapstructure:"endpoint"`
}

// A ReversalsConfig says how what is owed is paid.
type ReversalsConfig struct {
	RetryMin  time.Duration `mapstructure:"retry_min"`  // after the first attempt; it doubles
	RetryMax  time.Duration `mapstructure:"retry_max"`  // longest pause
	ParkAfter time.Duration `mapstructure:"park_after"` // age at which one is parked for a person
	// NotFoundFinal is for how long a processor must say that it does not have the original before that ends the reversal. Longer than a
	// stalled link lives until its echoes are missed, and than the processor may be slow: see acquirer.Forwarding.
	NotFoundFinal time.Duration `mapstructure:"not_found_final"`
	Poll          time.Duration `mapstructure:"poll"`     // how often an endpoint or an HSM that was not ready is looked at again
	Parallel      int           `mapstructure:"parallel"` // in flight at once for each endpoint
	Rate          int           `mapstructure:"rate"`     // most sends a second for each endpoint, so that a backlog does not starve live traffic
}

// A LimitsConfig bounds the whole daemon.
type LimitsConfig struct {
	InFlight int `mapstructure:"in_flight"` // most transactions at once; over it a request is refused
}

// An OperationsConfig is the port for metrics and health. It has no authentication: keep it on a loopback or private address.
type OperationsConfig struct {
	Listen string `mapstructure:"listen"`
}

// A LogConfig says what is logged to standard error, and how.
type LogConfig struct {
	Level  string `mapstructure:"level"`  // debug, info, warn or error
	Format string `mapstructure:"format"` // json or text
}

// A ShutdownConfig bounds the orderly end.
type ShutdownConfig struct {
	Grace time.Duration `mapstructure:"grace"` // after it the process ends with an error, and recovery does the rest
}

// defaults are the values of keys that nobody set. A key in a list has "[]" in its path.
var defaults = map[string]any{
	"environment":                 "production",
	"journal.engine":              "sqlite",
	"journal.path":                "/var/lib/acquirerd/journal.db",
	"journal.batch":               512,
	"journal.queue":               4096,
	"hsm.sessions":                16,
	"hsm.queue":                   256,
	"hsm.call_timeout":            "2s",
	"hsm.require_token_resident":  false,
	"hsm.key_overlap":             "10m",
	"hsm.key_changes":             6,
	"upstreams[].pin_format":      "iso-0",
	"upstreams[].mac_failures":    5,
	"upstreams[].ksn_regression":  ksnAlarm,
	"upstreams[].in_flight":       256,
	"upstreams[].connections":     64,
	"upstreams[].budget":          "15s",
	"upstreams[].idle_timeout":    "5m",
	"upstreams[].write_timeout":   "2s",
	"upstreams[].frame_timeout":   "10s",
	"upstreams[].rate":            0,
	"upstreams[].tls.min_version": "1.2",
	"endpoints[].pin_format":      "iso-0",
	"endpoints[].mac_failures":    5,
	"endpoints[].mac_suspension":  "5m",
	"endpoints[].reply_timeout":   "10s",
	"endpoints[].write_timeout":   "2s",
	"endpoints[].dial_timeout":    "5s",
	"endpoints[].sign_on_timeout": "10s",
	"endpoints[].echo_interval":   "60s",
	"endpoints[].echo_timeout":    "10s",
	"endpoints[].echo_misses":     3,
	"endpoints[].backoff_min":     "500ms",
	"endpoints[].backoff_max":     "30s",
	"endpoints[].fail_back":       "60s",
	"endpoints[].in_flight":       256,
	"endpoints[].links[].links":   1,
	"endpoints[].tls.min_version": "1.2",
	"reversals.retry_min":         "5s",
	"reversals.retry_max":         "300s",
	"reversals.park_after":        "24h",
	"reversals.not_found_final":   "180s",
	"reversals.poll":              "500ms",
	"reversals.parallel":          16,
	"reversals.rate":              400,
	"limits.in_flight":            1024,
	"operations.listen":           "127.0.0.1:9090",
	"log.level":                   "info",
	"log.format":                  "json",
	"shutdown.grace":              "60s",
}

// loadConfig reads the file, puts defaults and the environment in, and checks everything. Its error is a *configError with every
// fault, or only says that the file cannot be read. What a fault does not touch is in the Config all the same.
//
// Viper gets only what has the form of a Config: unknown keys and wrong forms are found before, with their place in the file, so
// that they hide nothing of the rest.
func loadConfig(path string) (*Config, error) {
	text, err := readFile(path, mostConfig)
	if err != nil {
		return nil, fmt.Errorf("reading config: %w", err)
	}
	found := &faults{places: map[string]int{}}
	document, err := readDocument(text)
	if err != nil {
		return nil, fmt.Errorf("reading config %s: %s", path, withoutValues(err))
	}
	shape := reflect.TypeFor[Config]()
	if !found.prune(document, "", shape) && found.err() != nil {
		return nil, fmt.Errorf("reading config %s: it %s", path, oneLine(found.err())) // nothing in it has a place
	}
	if text, err = yaml.Marshal(document); err != nil {
		return nil, fmt.Errorf("reading config %s: %w", path, err)
	}

	v := viper.New()
	v.SetConfigType("yaml")
	keys := scalarKeys("", shape)
	for _, key := range keys {
		if err := v.BindEnv(key, variable(key)); err != nil {
			return nil, fmt.Errorf("binding %s: %w", key, err)
		}
		if value, known := defaults[key]; known {
			v.SetDefault(key, value)
		}
	}
	if err := v.ReadConfig(bytes.NewReader(text)); err != nil {
		return nil, fmt.Errorf("reading config %s: %s", path, withoutValues(err))
	}
	var cfg Config
	found.addDecoding(v.UnmarshalExact(&cfg, viper.DecodeHook(convert)))
	found.addEnvironment(keys)
	found.validate(&cfg)
	return &cfg, found.err()
}

// readDocument returns the top of the only document of a YAML text, an empty mapping for an empty text.
func readDocument(text []byte) (*yaml.Node, error) {
	decoder := yaml.NewDecoder(bytes.NewReader(text))
	var document, second yaml.Node
	if err := decoder.Decode(&document); errors.Is(err, io.EOF) {
		return &yaml.Node{Kind: yaml.MappingNode}, nil
	} else if err != nil {
		return nil, err
	}
	if err := decoder.Decode(&second); !errors.Is(err, io.EOF) {
		return nil, errors.New("it holds more than one document")
	}
	return document.Content[0], nil
}

// prune reports what in a part of the file has not the form of a Config, and takes it out. It notes the place of each key.
func (f *faults) prune(node *yaml.Node, path string, shape reflect.Type) (keep bool) {
	f.places[path] = len(f.places)
	if node.Kind == yaml.AliasNode { // expanded, because what it refers to may be taken out
		*node = *node.Alias
	}
	node.Anchor = ""
	if shape.Kind() == reflect.Pointer {
		shape = shape.Elem()
	}
	switch {
	case node.Tag == "!!null":
		return false
	case shape == reflect.TypeFor[LinkConfig]() && node.Kind == yaml.ScalarNode: // only its host
	case shape.Kind() == reflect.Struct && node.Kind != yaml.MappingNode:
		f.add(path, "is not a mapping of keys to values")
		return false
	case shape.Kind() == reflect.Struct:
		f.pruneKeys(node, path, shape)
	case shape.Kind() == reflect.Slice && node.Kind != yaml.SequenceNode:
		f.add(path, "is not a list")
		return false
	case shape.Kind() == reflect.Slice:
		// An element is never taken out: those behind it would change their numbers.
		for i, element := range node.Content {
			at := fmt.Sprintf("%s[%d]", path, i)
			if !f.prune(element, at, shape.Elem()) {
				f.add(at, "is empty")
				node.Content[i] = &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!null", Value: "null"}
			}
		}
	case node.Kind != yaml.ScalarNode:
		f.add(path, "is not a single value")
		return false
	}
	return true
}

// secretKey matches the names of keys under which somebody would write a secret.
var secretKey = regexp.MustCompile(`(^|_)(pin|password|passphrase|secret|value|components?)$`)

func (f *faults) pruneKeys(node *yaml.Node, path string, shape reflect.Type) {
	var kept []*yaml.Node
	seen := map[string]bool{}
	for i := 0; i+1 < len(node.Content); i += 2 {
		key := strings.ToLower(node.Content[i].Value) // viper knows no case
		at := join(path, key)
		field, known := fieldOf(shape, key)
		switch {
		case !known:
			f.places[at] = len(f.places)
			if at == "hsm.pin" {
				f.add(at, "a secret may not stand in this file: give hsm.pin_file, or %s in the environment", pinVariable)
			} else if secretKey.MatchString(key) {
				f.add(at, "unknown key, and no secret may stand in this file")
			} else {
				f.add(at, "unknown key")
			}
		case seen[key]:
			f.add(at, "given twice")
		case f.prune(node.Content[i+1], at, field):
			kept = append(kept, node.Content[i], node.Content[i+1])
		}
		seen[key] = true
	}
	node.Content = kept
}

func fieldOf(shape reflect.Type, key string) (reflect.Type, bool) {
	for field := range fieldsOf(shape) {
		if field.Tag.Get("mapstructure") == key {
			return field.Type, true
		}
	}
	return nil, false
}

func fieldsOf(shape reflect.Type) func(yield func(reflect.StructField) bool) {
	return func(yield func(reflect.StructField) bool) {
		for i := range shape.NumField() {
			if !yield(shape.Field(i)) {
				return
			}
		}
	}
}

// scalarKeys lists the paths of all keys outside of lists.
func scalarKeys(path string, shape reflect.Type) []string {
	var keys []string
	for field := range fieldsOf(shape) {
		at := join(path, field.Tag.Get("mapstructure"))
		switch field.Type.Kind() {
		case reflect.Struct:
			keys = append(keys, scalarKeys(at, field.Type)...)
		case reflect.Slice:
		default:
			keys = append(keys, at)
		}
	}
	return keys
}

// variable is the name of the environment variable that overrides a key.
func variable(key string) string {
	return "ACQUIRERD_" + strings.ToUpper(strings.ReplaceAll(key, ".", "_"))
}

// addEnvironment reports variables that look like overrides and are none. Only those that begin as a key does: an orchestrator sets
// others of the same beginning (ACQUIRERD_SERVICE_HOST).
func (f *faults) addEnvironment(keys []string) {
	known := []string{pinVariable}
	for _, key := range keys {
		known = append(known, variable(key))
	}
	for _, entry := range os.Environ() {
		name, _, _ := strings.Cut(entry, "=")
		for field := range fieldsOf(reflect.TypeFor[Config]()) {
			group := variable(field.Tag.Get("mapstructure"))
			grouped := field.Type.Kind() == reflect.Struct || field.Type.Kind() == reflect.Slice
			if grouped && (name == group || strings.HasPrefix(name, group+"_")) && !slices.Contains(known, name) {
				f.add(name, "is set in the environment, and overrides no key")
			}
		}
	}
}

// convert is the only conversion from what stands in the file or the environment: strict, because YAML makes numbers, floats and
// dates out of what is meant as text (a KCV of 12E345, a BIN of 04).
func convert(from, to reflect.Value) (any, error) {
	value := from.Interface()
	text, isText := value.(string)
	switch to.Interface().(type) {
	case UpstreamConfig:
		return asMany(withDefaults(value, "upstreams[]."), "burst", "rate"), nil
	case EndpointConfig:
		return withEndpointDefaults(value), nil
	case DoorTLS:
		return withDefaults(value, "upstreams[].tls."), nil
	case LinkTLS:
		return withDefaults(value, "endpoints[].tls."), nil
	case LinkConfig:
		if isText {
			value = map[string]any{"hosts": []any{text}}
		}
		if _, isMap := value.(map[string]any); !isMap {
			return nil, errors.New("is not text: put it in quotes")
		}
		return withDefaults(value, "endpoints[].links[]."), nil
	case time.Duration:
		d, err := time.ParseDuration(text)
		if err != nil {
			return nil, errors.New(`is not a duration with its unit, such as "10s"`)
		}
		return d, nil
	case int:
		if n, isNumber := value.(int); isNumber {
			return n, nil
		}
		n, err := strconv.Atoi(text)
		if err != nil {
			return nil, errors.New("is not a whole number")
		}
		return n, nil
	case bool:
		if b, isBool := value.(bool); isBool {
			return b, nil
		}
		if text != "true" && text != "false" {
			return nil, errors.New("is neither true nor false")
		}
		return text == "true", nil
	}
	if to.Kind() == reflect.String && !isText {
		return nil, errors.New("is not text: put it in quotes")
	}
	return value, nil
}

// withEndpointDefaults puts in the defaults of an endpoint: the timers of its dialect go before our own.
func withEndpointDefaults(value any) any {
	given, isMap := value.(map[string]any)
	if !isMap {
		return value
	}
	full := maps.Clone(given)
	name, _ := given["dialect"].(string)
	if dialect, err := specs.Load(name); err == nil { // else that is a fault of its own
		timers := map[string]time.Duration{"reply_timeout": dialect.Timers.Reply, "sign_on_timeout": dialect.Timers.SignOn,
			"echo_interval": dialect.Timers.EchoInterval, "echo_timeout": dialect.Timers.Echo}
		for key, timer := range timers {
			if _, isGiven := given[key]; !isGiven && timer > 0 {
				full[key] = timer.String()
			}
		}
		if _, isGiven := given["echo_misses"]; !isGiven && dialect.Timers.EchoMisses > 0 {
			full["echo_misses"] = dialect.Timers.EchoMisses
		}
	}
	return asMany(withDefaults(full, "endpoints[]."), "link_in_flight", "in_flight")
}

// withDefaults puts the defaults of a list's elements into one of them.
func withDefaults(value any, prefix string) any {
	given, isMap := value.(map[string]any)
	if !isMap {
		return value
	}
	full := map[string]any{}
	for path, value := range defaults {
		if key, ours := strings.CutPrefix(path, prefix); ours && !strings.ContainsAny(key, ".[") {
			full[key] = value
		}
	}
	for key, value := range given {
		full[key] = value
	}
	return full
}

// asMany gives a count that is not given the value of another one. One that is no count is a fault already.
func asMany(value any, key, as string) any {
	if full, isMap := value.(map[string]any); isMap && full[key] == nil {
		if n, err := strconv.Atoi(fmt.Sprint(full[as])); err == nil {
			full[key] = n
		} else {
			full[key] = 1
		}
	}
	return value
}

// addDecoding takes the faults out of the error of UnmarshalExact, which joins them.
func (f *faults) addDecoding(err error) {
	if err == nil {
		return
	}
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		for _, one := range joined.Unwrap() {
			f.addDecoding(one)
		}
		return
	}
	named, ok := err.(interface {
		Name() string
		Unwrap() error
	})
	if !ok {
		if inner := errors.Unwrap(err); inner != nil {
			f.addDecoding(inner)
			return
		}
		f.add("", "%s", withoutValues(err))
		return
	}
	f.add(named.Name(), "%s", oneLine(named.Unwrap()))
}

// node gives the effective config as YAML, in the order of the struct. There is no secret in a Config.
func (c *Config) node() *yaml.Node { return nodeOf(reflect.ValueOf(*c)) }

func nodeOf(value reflect.Value) *yaml.Node {
	node := &yaml.Node{}
	switch {
	case value.Kind() == reflect.Pointer && !value.IsNil():
		return nodeOf(value.Elem())
	case value.Kind() == reflect.Struct:
		node.Kind = yaml.MappingNode
		for field := range fieldsOf(value.Type()) {
			key := &yaml.Node{Kind: yaml.ScalarNode, Value: field.Tag.Get("mapstructure")}
			node.Content = append(node.Content, key, nodeOf(value.FieldByIndex(field.Index)))
		}
	case value.Kind() == reflect.Slice:
		node.Kind = yaml.SequenceNode
		for i := range value.Len() {
			node.Content = append(node.Content, nodeOf(value.Index(i)))
		}
		if value.Type().Elem().Kind() == reflect.String || value.Len() == 0 {
			node.Style = yaml.FlowStyle
		}
	default:
		if err := node.Encode(value.Interface()); err != nil {
			panic(err) // scalars of a Config can be encoded
		}
	}
	return node
}

// pin is where the token's user PIN comes from. The environment goes before the file, as everywhere.
func (c *HSMConfig) pin() func() ([]byte, error) {
	if os.Getenv(pinVariable) != "" {
		return hsm.PINVariable(pinVariable)
	}
	return hsm.PINFile(c.PINFile)
}

func join(path, key string) string {
	if path == "" {
		return key
	}
	return path + "." + key
}

// oneLine is an error's text for one line of a terminal.
func oneLine(err error) string {
	return strings.Join(strings.Fields(strings.ReplaceAll(strings.TrimSpace(err.Error()), "\n", "; ")), " ")
}

// quotation matches the value that an error of yaml quotes.
var quotation = regexp.MustCompile("(?s)`.*`|'.*'|\".*\"")

// withoutValues is the text of an error of yaml for one line of a terminal, without what it quotes of the file.
func withoutValues(err error) string {
	return strings.Join(strings.Fields(quotation.ReplaceAllString(err.Error(), "...")), " ")
}

// readFile reads a file, or a device or pipe up to its end, of at most so many bytes. It holds them in one place, so that a caller
// can clear what must not stay.
func readFile(path string, most int) ([]byte, error) {
	file, err := os.Open(filepath.Clean(path))
	if err != nil {
		return nil, err
	}
	defer func() { _ = file.Close() }() // only read
	text := make([]byte, most+1)
	switch n, err := io.ReadFull(file, text); {
	case err == nil:
		clear(text)
		return nil, fmt.Errorf("%s is larger than %d bytes", path, most)
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return text[:n], nil
	default:
		clear(text)
		return nil, err
	}
}
