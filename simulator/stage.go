package simulator

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"text/template"
	"time"
)

// A Stage is a throw-away station in one folder: a SoftHSM token with test keys, a journal, a config, and the real acquirerd as a
// process of its own, which the stage starts, stops and kills.
type Stage struct {
	Dir        string // absolute
	Config     string // the daemon's config file
	Journal    string // the daemon's journal, which MoveJournal moves
	Upstream   string // address of the daemon's door
	Operations string // address of its operations port
	Log        string // the daemon's log, all its runs one after the other

	daemon      string // path of the binary
	UpstreamZPK *Key   // of the upstream's zone
	EndpointZPK *Key   // of the processor's zone
	EndpointZMK *Key   // of the same, under which a new zone key comes; nil: none does
	piped       bool   // the log of the next run goes through a pipe

	mu      sync.Mutex
	process *process // nil while none runs
}

// A process is one run of the daemon.
type process struct {
	*exec.Cmd
	ended chan struct{}
	err   error // set before ended is closed
}

// StageConfig says what a Stage is made of.
type StageConfig struct {
	Dir    string   // made; what is in it of an earlier stage is removed
	Daemon string   // path of the acquirerd binary
	Links  []string // addresses of the processor

	UpstreamDialect  string // a built-in one or a path; default iso87-binary
	ProcessorDialect string // default iso87-ascii
	KnownPorts       bool   // take 8583 and 9090, for a person who looks there, unless somebody has them; else the system chooses

	Token StageToken

	ReplyTimeout time.Duration // how long the daemon waits for the processor
	RetryMin     time.Duration // between the attempts at a reversal
	RetryMax     time.Duration
	NotFound     time.Duration // for how long the processor must not find an original; default ten times ReplyTimeout
	ZMK          bool          // the processor may change its zone key, under a zone master key
	EchoInterval time.Duration // after which the daemon asks a silent processor for an echo; default 5 s
	InFlight     int
}

// A StageToken is the daemon's. Without a label it is made by SoftHSM in the stage's folder; with one it is there already, and empty.
type StageToken struct {
	Module    string // path of the PKCS#11 module; default SoftHSM's
	Arguments string // of the module
	Label     string
	PINFile   string
}

const (
	stageToken    = "acquirerd-stage"
	stageStation  = "stage"
	stageMarker   = ".acquirerd-stage" // a folder without it is not ours to empty
	startTimeout  = 30 * time.Second
	stopTimeout   = 90 * time.Second
	upstreamZone  = "zpk-pos"
	processorZone = "zpk-processor-a"
	masterZone    = "zmk-processor-a"
	doorDialect   = "iso87-binary" // unless the configuration has another
	linkDialect   = "iso87-ascii"
	sealLabel     = "pan-seal-1"
	tokenLabel    = "pan-token-1"
	journalFile   = "journal.db"
	diskFolder    = "disk" // where a small disk is mounted

	defaultEchoInterval = 5 * time.Second
	longestLine         = 64 << 10 // of the log
	loggedLines         = 1_000    // that are looked at together
)

// SoftHSMModules are the places where distributions put SoftHSM.
var SoftHSMModules = []string{"/usr/lib/softhsm/libsofthsm2.so", "/usr/lib/x86_64-linux-gnu/softhsm/libsofthsm2.so",
	"/usr/lib/aarch64-linux-gnu/softhsm/libsofthsm2.so", "/usr/lib64/pkcs11/libsofthsm2.so", "/usr/local/lib/softhsm/libsofthsm2.so"}

// NewStage makes the folder with all that the daemon needs. The daemon is not started.
func NewStage(ctx context.Context, cfg StageConfig) (*Stage, error) {
	s := &Stage{}
	var err error
	if s.Dir, err = emptyDir(cfg.Dir); err != nil {
		return nil, err
	}
	if s.daemon, err = filepath.Abs(cfg.Daemon); err != nil {
		return nil, err
	}
	s.Config, s.Log, s.Journal = filepath.Join(s.Dir, "acquirerd.yaml"), filepath.Join(s.Dir, "acquirerd.log"), filepath.Join(s.Dir, journalFile)
	if cfg.NotFound == 0 {
		cfg.NotFound = 10 * cfg.ReplyTimeout
	}
	if cfg.EchoInterval == 0 {
		cfg.EchoInterval = defaultEchoInterval
	}
	if cfg.UpstreamDialect, err = dialectPath(cfg.UpstreamDialect, doorDialect); err != nil {
		return nil, err
	}
	if cfg.ProcessorDialect, err = dialectPath(cfg.ProcessorDialect, linkDialect); err != nil {
		return nil, err
	}
	known := []string{anyPort, anyPort}
	if cfg.KnownPorts {
		known = []string{"127.0.0.1:8583", "127.0.0.1:9090"}
	}
	if err = s.chooseAddresses(known[0], known[1]); err != nil {
		return nil, err
	}
	if cfg.Token.Label == "" {
		module, err := s.makeToken(ctx)
		if err != nil {
			return nil, fmt.Errorf("making the token: %w", err)
		}
		cfg.Token = StageToken{Module: byDefault(cfg.Token.Module, module), Label: stageToken, PINFile: filepath.Join(s.Dir, "token.pin")}
	}
	if err := s.writeConfig(cfg, nil); err != nil {
		return nil, err
	}
	keys, err := s.makeKeys(ctx, cfg.ZMK)
	if err != nil {
		return nil, fmt.Errorf("making the keys: %w", err)
	}
	if err := s.writeConfig(cfg, keys); err != nil {
		return nil, err
	}
	if _, err := s.Command(ctx, "init"); err != nil {
		return nil, err
	}
	return s, nil
}

// emptyDir makes the folder, or empties one that an earlier stage made.
func emptyDir(dir string) (string, error) {
	path, err := filepath.Abs(dir)
	if err != nil {
		return "", err
	}
	if entries, err := os.ReadDir(path); err == nil && len(entries) > 0 {
		if _, err := os.Stat(filepath.Join(path, stageMarker)); err != nil {
			return "", fmt.Errorf("%s is not empty, and no stage of ours: name another folder", dir)
		}
		_ = unmount(filepath.Join(path, diskFolder)) // of a stage that was killed
		if err := os.RemoveAll(path); err != nil {
			return "", fmt.Errorf("emptying %s: %w", dir, err)
		}
	}
	if err := os.MkdirAll(filepath.Join(path, "tokens"), 0o700); err != nil {
		return "", err
	}
	return path, os.WriteFile(filepath.Join(path, stageMarker), nil, 0o600)
}

// chooseAddresses takes the addresses that are wanted, or other ports of the same host where somebody has those.
func (s *Stage) chooseAddresses(upstream, operations string) error {
	for _, address := range []struct {
		wanted string
		is     *string
	}{{upstream, &s.Upstream}, {operations, &s.Operations}} {
		listener, err := net.Listen("tcp", address.wanted)
		if err != nil {
			if listener, err = net.Listen("tcp", anyPort); err != nil {
				return err
			}
		}
		defer func() { _ = listener.Close() }() // both are held until both are chosen
		*address.is = listener.Addr().String()
	}
	return nil
}

// dialectPath is a dialect as the daemon's config has it: a file's path is absolute, as the daemon may begin elsewhere.
func dialectPath(dialect, otherwise string) (string, error) {
	dialect = byDefault(dialect, otherwise)
	if !strings.ContainsRune(dialect, filepath.Separator) && !strings.HasSuffix(dialect, ".yaml") {
		return dialect, nil
	}
	return filepath.Abs(dialect)
}

// makeToken makes a SoftHSM token in the folder and returns the module's path.
func (s *Stage) makeToken(ctx context.Context) (module string, err error) {
	for _, path := range SoftHSMModules {
		if _, err := os.Stat(path); err == nil {
			module = path
			break
		}
	}
	if module == "" {
		return "", errors.New("SoftHSM is not installed: run make deps")
	}
	conf := fmt.Sprintf("directories.tokendir = %s\nobjectstore.backend = file\nlog.level = ERROR\n", filepath.Join(s.Dir, "tokens"))
	if err := os.WriteFile(filepath.Join(s.Dir, "softhsm2.conf"), []byte(conf), 0o600); err != nil {
		return "", err
	}
	const pin = "stage-user-pin" // of a token that holds nothing but test keys
	if err := os.WriteFile(filepath.Join(s.Dir, "token.pin"), []byte(pin+"\n"), 0o600); err != nil {
		return "", err
	}
	init := exec.CommandContext(ctx, "softhsm2-util", "--init-token", "--free", "--label", stageToken, "--pin", pin, "--so-pin", pin)
	init.Env = s.environment()
	if out, err := init.CombinedOutput(); err != nil {
		return "", fmt.Errorf("softhsm2-util: %w: %s", err, strings.TrimSpace(string(out)))
	}
	return module, nil
}

// stageKey is one key of the daemon's config.
type stageKey struct{ Label, KCV, Use, ZMK string }

// makeKeys writes the zone keys as components, imports them as custodians would, and has the token make the other two.
func (s *Stage) makeKeys(ctx context.Context, withZMK bool) ([]stageKey, error) {
	var keys []stageKey
	type zone struct {
		label, use, zmk string
		key             **Key
	}
	zones := []zone{{upstreamZone, "pin-in", "", &s.UpstreamZPK}, {processorZone, "pin-out", "", &s.EndpointZPK}}
	if withZMK {
		zones[1].zmk = masterZone
		zones = append(zones, zone{masterZone, "zmk", "", &s.EndpointZMK})
	}
	for _, zone := range zones {
		files, err := WriteZone(s.Dir, zone.label)
		if err != nil {
			return nil, err
		}
		if *zone.key, err = ReadKeyFile(files.KeyFile, ISO0); err != nil {
			return nil, err
		}
		if _, err := s.Command(ctx, "keys", "import", "--label", zone.label, "--use", zone.use, "--kcv", files.KCV,
			"--component", files.Components[0], "--custodian", "first", "--component", files.Components[1], "--custodian", "second"); err != nil {
			return nil, err
		}
		keys = append(keys, stageKey{zone.label, files.KCV, zone.use, zone.zmk})
	}
	for _, key := range []stageKey{{Label: sealLabel, Use: "pan-seal"}, {Label: tokenLabel, Use: "pan-token"}} {
		out, err := s.Command(ctx, "keys", "generate", "--label", key.Label, "--use", key.Use, "--output", "json")
		if err != nil {
			return nil, err
		}
		if err := json.Unmarshal(out, &key); err != nil || key.KCV == "" {
			return nil, fmt.Errorf("reading the check value of %s: %w", key.Label, err)
		}
		keys = append(keys, key)
	}
	return keys, nil
}

var stageConfigFile = template.Must(template.New("config").Parse(`# Made by acquirersim for a throw-away station.
station: {{.Station}}
journal: { path: {{.Journal}} }
hsm:
  module: {{.Token.Module}}
{{- with .Token.Arguments}}
  module_arguments: {{printf "%q" .}}
{{- end}}
  token: {{.Token.Label}}
  pin_file: {{.Token.PINFile}}
{{- if .Keys}}
  keys:
{{- range .Keys}}
    - { label: {{.Label}}, kcv: "{{.KCV}}", use: {{.Use}}{{if .ZMK}}, zmk: {{.ZMK}}{{end}} }
{{- end}}
  seal_key: {{.Seal}}
  token_key: {{.TokenKey}}
{{- end}}
upstreams:
  - { name: pos-switch, dialect: {{.UpstreamDialect}}, listen: "{{.Upstream}}", pin_key: {{.PINIn}}, in_flight: {{.InFlight}}, budget: {{.Budget}} }
endpoints:
  - name: processor-a
    dialect: {{.ProcessorDialect}}
    links: [{{range $i, $l := .Links}}{{if $i}}, {{end}}"{{$l}}"{{end}}]
    pin_key: {{.PINOut}}
    in_flight: {{.InFlight}}
    reply_timeout: {{.ReplyTimeout}}
    write_timeout: {{.WriteTimeout}}
    backoff_min: 100ms
    backoff_max: 1s
    echo_interval: {{.EchoInterval}}
    echo_timeout: {{.EchoTimeout}}
routes:
  - { bins: ["4", "51-55", "2221-2720"], endpoint: processor-a }
reversals: { retry_min: {{.RetryMin}}, retry_max: {{.RetryMax}}, not_found_final: {{.NotFoundFinal}}, poll: 100ms, parallel: {{.Parallel}} }
limits: { in_flight: {{.InFlight}} }
operations: { listen: "{{.Operations}}" }
shutdown: { grace: {{.Grace}} }
`))

func (s *Stage) writeConfig(cfg StageConfig, keys []stageKey) error {
	var text bytes.Buffer
	if err := stageConfigFile.Execute(&text, map[string]any{
		"Station": stageStation, "Journal": s.Journal, "Token": cfg.Token, "Keys": keys, "Seal": sealLabel, "TokenKey": tokenLabel,
		"UpstreamDialect": cfg.UpstreamDialect, "ProcessorDialect": cfg.ProcessorDialect, "Upstream": s.Upstream, "PINIn": upstreamZone, "PINOut": processorZone, "Links": cfg.Links, "Operations": s.Operations,
		"ReplyTimeout": cfg.ReplyTimeout, "WriteTimeout": cfg.ReplyTimeout / 2, "Budget": cfg.ReplyTimeout * 3, "InFlight": cfg.InFlight,
		"EchoInterval": cfg.EchoInterval, "EchoTimeout": 2 * cfg.EchoInterval, "Grace": time.Minute + 4*cfg.ReplyTimeout,
		"Parallel": min(16, max(1, cfg.InFlight/2)), "NotFoundFinal": cfg.NotFound, "RetryMin": cfg.RetryMin, "RetryMax": cfg.RetryMax,
	}); err != nil {
		return err
	}
	return os.WriteFile(s.Config, text.Bytes(), 0o600)
}

// environment is that of the daemon. It names the journal, because MoveJournal leaves the config file as it is.
func (s *Stage) environment() []string {
	return append(os.Environ(), "SOFTHSM2_CONF="+filepath.Join(s.Dir, "softhsm2.conf"), "ACQUIRERD_JOURNAL_PATH="+s.Journal)
}

// Command runs one acquirerd command with the stage's config and returns what it printed.
func (s *Stage) Command(ctx context.Context, args ...string) ([]byte, error) {
	command := exec.CommandContext(ctx, s.daemon, append(args, "--config", s.Config)...) //nolint:gosec // the user's own binary
	command.Env = s.environment()
	var out, faults bytes.Buffer
	command.Stdout, command.Stderr = &out, &faults
	if err := command.Run(); err != nil {
		return out.Bytes(), fmt.Errorf("acquirerd %s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(faults.String()))
	}
	return out.Bytes(), nil
}

// Start starts the daemon and waits until it is ready, or only until its door is open if ready is false.
func (s *Stage) Start(ctx context.Context, ready bool) error {
	if err := s.Launch(); err != nil {
		return err
	}
	return s.awaitHealth(ctx, ready)
}

// Launch starts the daemon and does not wait for anything.
func (s *Stage) Launch() error {
	log, err := os.OpenFile(s.Log, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	p := &process{Cmd: exec.Command(s.daemon, "serve", "--config", s.Config), ended: make(chan struct{})} //nolint:gosec // the user's own binary
	p.Env, p.Stdout, p.Stderr = s.environment(), log, log
	if s.piped {
		through := struct{ io.Writer }{log} // not a file, so that the process gets a pipe
		p.Stdout, p.Stderr = through, through
	}
	// It does not outlive its stage, and a terminal's Ctrl-C does not reach it: its stage stops it, and a second signal would cut it off.
	p.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	if err := p.Start(); err != nil {
		return errors.Join(fmt.Errorf("starting acquirerd: %w", err), log.Close())
	}
	go func() { // ends with the process
		p.err = p.Wait()
		_ = log.Close()
		close(p.ended)
	}()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.process = p
	return nil
}

// awaitHealth waits until the daemon that was launched is ready, or only until its door is open if ready is false.
func (s *Stage) awaitHealth(ctx context.Context, ready bool) error {
	p := s.running()
	ctx, cancel := context.WithTimeoutCause(ctx, startTimeout, fmt.Errorf("it did not become ready within %v", startTimeout))
	defer cancel()
	path := "/health/live"
	if ready {
		path = "/health/ready"
	}
	for {
		// Another process may have the port, and be well.
		if s.healthy(ctx, path) && listens(p.Process.Pid, s.Operations) && !isClosed(p.ended) {
			return nil
		}
		select {
		case <-p.ended:
			s.take()
			return fmt.Errorf("acquirerd ended while starting: %w: %s", p.err, s.lastLine())
		case <-ctx.Done():
			return fmt.Errorf("starting acquirerd: %w: %s", context.Cause(ctx), s.lastLine())
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// listening is a state in the kernel's list of TCP sockets.
const listening = "0A"

// listens reports whether a process has the socket that listens at an IPv4 address. Where the kernel has no /proc to say so, it is believed.
func listens(pid int, address string) bool {
	of := fmt.Sprintf("/proc/%d", pid)
	list, err := os.ReadFile(of + "/net/tcp") //nolint:gosec // the kernel's
	if err != nil {
		_, err = os.Stat("/proc/net/tcp")
		return err != nil
	}
	at, err := net.ResolveTCPAddr("tcp4", address)
	if err != nil {
		return false
	}
	ip := at.IP.To4()
	local := fmt.Sprintf("%02X%02X%02X%02X:%04X", ip[3], ip[2], ip[1], ip[0], at.Port) // bytes in the order of the machine
	for line := range strings.Lines(string(list)) {
		fields := strings.Fields(line) // number, local and remote address, state, …, inode in the tenth place
		if len(fields) < 10 || fields[1] != local || fields[3] != listening {
			continue
		}
		files, _ := filepath.Glob(of + "/fd/*")
		for _, file := range files {
			if to, err := os.Readlink(file); err == nil && to == "socket:["+fields[9]+"]" {
				return true
			}
		}
	}
	return false
}

func (s *Stage) healthy(ctx context.Context, path string) bool {
	body, err := s.Get(ctx, path)
	return err == nil && len(body) > 0
}

// Get reads a page of the daemon's operations port.
func (s *Stage) Get(ctx context.Context, path string) ([]byte, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+s.Operations+path, nil)
	if err != nil {
		return nil, err
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return nil, err
	}
	defer func() { _ = response.Body.Close() }()
	body, err := io.ReadAll(io.LimitReader(response.Body, 4<<20))
	if err != nil {
		return nil, err
	}
	if response.StatusCode != http.StatusOK {
		return body, fmt.Errorf("%s answers %s", path, response.Status)
	}
	return body, nil
}

// PID is the daemon's process id, 0 if it was not started.
func (s *Stage) PID() int {
	if p := s.running(); p != nil {
		return p.Process.Pid
	}
	return 0
}

// running returns the running process, nil if there is none.
func (s *Stage) running() *process {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.process
}

// take returns the running process, nil if there is none, and forgets it.
func (s *Stage) take() *process {
	s.mu.Lock()
	defer s.mu.Unlock()
	p := s.process
	s.process = nil
	return p
}

// Kill ends the daemon as a power loss would: SIGKILL.
func (s *Stage) Kill() error {
	p := s.take()
	if p == nil {
		return nil
	}
	err := p.Process.Kill()
	<-p.ended
	if status, is := p.ProcessState.Sys().(syscall.WaitStatus); is && status.Signal() != syscall.SIGKILL {
		return fmt.Errorf("acquirerd had ended by itself: %w: %s", p.err, s.lastLine())
	}
	return err
}

// AwaitEnd waits until the daemon ends by itself, and returns its exit code.
func (s *Stage) AwaitEnd(ctx context.Context) (code int, err error) {
	p := s.running()
	if p == nil {
		return 0, errors.New("acquirerd does not run")
	}
	select {
	case <-p.ended:
		s.take()
		return p.ProcessState.ExitCode(), nil
	case <-ctx.Done():
		return 0, fmt.Errorf("acquirerd goes on: %w", ctx.Err())
	}
}

// MoveJournal moves the journal, with what is in its log, into another folder. The daemon must have ended.
func (s *Stage) MoveJournal(dir string) error {
	if s.running() != nil {
		return errors.New("moving journal: the daemon runs")
	}
	to := filepath.Join(dir, journalFile)
	if to == s.Journal {
		return nil
	}
	for _, part := range []string{"-wal", ""} { // SQLite builds its index, -shm, from the log
		content, err := os.ReadFile(s.Journal + part) //nolint:gosec // the stage's own
		if errors.Is(err, fs.ErrNotExist) && part != "" {
			continue
		}
		if err == nil {
			err = os.WriteFile(to+part, content, 0o600) //nolint:gosec // the stage's own
		}
		if err != nil {
			return fmt.Errorf("moving journal: %w", err)
		}
	}
	for _, part := range []string{"", "-wal", "-shm"} {
		if err := os.Remove(s.Journal + part); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("moving journal: %w", err)
		}
	}
	s.Journal = to
	return nil
}

// Stop asks the daemon to end and waits for it. An exit code other than 0 is an error.
func (s *Stage) Stop() error {
	p := s.take()
	if p == nil {
		return nil
	}
	if err := p.Process.Signal(syscall.SIGTERM); errors.Is(err, os.ErrProcessDone) {
		<-p.ended
		return fmt.Errorf("acquirerd had ended by itself: %w: %s", p.err, s.lastLine())
	} else if err != nil {
		return fmt.Errorf("stopping acquirerd: %w", err)
	}
	select {
	case <-p.ended:
		if p.err != nil {
			return fmt.Errorf("acquirerd ended badly: %w: %s", p.err, s.lastLine())
		}
		return nil
	case <-time.After(stopTimeout):
		err := p.Process.Kill()
		<-p.ended
		return errors.Join(err, fmt.Errorf("acquirerd did not end within %v of SIGTERM", stopTimeout))
	}
}

// lastLine is the end of the daemon's log.
func (s *Stage) lastLine() string {
	lines, err := s.logged(max(0, s.logSize()-longestLine), func(string) bool { return true })
	if err != nil || len(lines) == 0 {
		return ""
	}
	return lines[len(lines)-1]
}

// logSize is the length of the log: a position from which logged may begin later.
func (s *Stage) logSize() int64 {
	file, err := os.Stat(s.Log)
	if err != nil {
		return 0
	}
	return file.Size()
}

// logged returns the first lines of the log after a position that are wanted.
func (s *Stage) logged(after int64, wanted func(line string) bool) (lines []string, err error) {
	file, err := os.Open(s.Log)
	if err != nil {
		return nil, err
	}
	defer func() { _ = file.Close() }()
	if _, err := file.Seek(after, io.SeekStart); err != nil {
		return nil, err
	}
	scanner := bufio.NewScanner(file)
	scanner.Buffer(nil, longestLine)
	for scanner.Scan() && len(lines) < loggedLines {
		if line := scanner.Text(); wanted(line) {
			lines = append(lines, line)
		}
	}
	return lines, scanner.Err()
}
