package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strconv"
	"time"

	"acquirerd/journal"
)

// The control socket is how the commands that change something reach a running daemon: HTTP over a Unix socket beside the journal, which
// only the daemon's own user and root can use. Without a daemon the same commands work on the journal themselves.

// longestSocketPath is that of a Unix socket's address on Linux, without its end.
const longestSocketPath = 107

// socketPath is beside the journal, so that it is as private, and there is one for each.
func socketPath(cfg *Config) string { return cfg.Journal.Path + ".sock" }

// stationHeader says for which station a command is meant: it must be the daemon's.
const stationHeader = "Acquirerd-Station"

// An upkeep changes what is owed and what is kept: the journal, or a daemon that holds it.
type upkeep interface {
	Release(ctx context.Context, id journal.OwedID) error
	Park(ctx context.Context, id journal.OwedID) error
	Prune(ctx context.Context, before time.Time, most int) (int, error)
	SetBusinessDate(ctx context.Context, endpoint, date string) (journal.Advanced, error)
}

// listenControl opens the socket. The journal is ours, so a socket that is there already is one that a daemon left behind.
func (d *daemon) listenControl() (net.Listener, error) {
	path := socketPath(d.cfg)
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("opening control socket: %w", err)
	}
	listener, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("opening control socket: %w", err)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		return nil, errors.Join(fmt.Errorf("opening control socket: %w", err), listener.Close())
	}
	return ownUser{listener}, nil
}

// ownUser accepts connections of this process's own user and of root. The socket's permissions say the same; this holds also for the
// moment before they were set.
type ownUser struct{ *net.UnixListener }

// Accept drops the connections of others.
func (l ownUser) Accept() (net.Conn, error) {
	for {
		connection, err := l.AcceptUnix()
		if err != nil {
			return nil, err
		}
		if isOwnUser(connection) {
			return connection, nil
		}
		_ = connection.Close()
	}
}

func isOwnUser(connection *net.UnixConn) bool {
	peer, err := peerOf(connection)
	return err == nil && (peer.Uid == 0 || int(peer.Uid) == os.Geteuid())
}

// serveControl answers commands until ctx ends.
func (d *daemon) serveControl(ctx context.Context, listener net.Listener) error {
	server := &http.Server{Handler: d.control(), ReadHeaderTimeout: operationsHeaderTimeout, MaxHeaderBytes: operationsHeaderBytes,
		BaseContext: func(net.Listener) context.Context { return ctx }, ConnContext: withPeer, ErrorLog: slog.NewLogLogger(d.log.Handler(), slog.LevelWarn)}
	return untilDone(ctx, server, listener)
}

func (d *daemon) control() http.Handler {
	mux := http.NewServeMux()
	change := func(name string, do func(context.Context, journal.OwedID) error) {
		mux.HandleFunc("POST /owed/{id}/"+name, func(w http.ResponseWriter, r *http.Request) {
			id, err := strconv.ParseInt(r.PathValue("id"), 10, 64)
			if err != nil {
				refuseControl(w, http.StatusBadRequest, errors.New("the ID is not a number"))
				return
			}
			if err := do(r.Context(), journal.OwedID(id)); err != nil {
				refuseControl(w, http.StatusConflict, err)
				return
			}
			d.log.Warn("changed by an operator", "command", name, "owed", id)
			answer(w, http.StatusOK, map[string]int64{"id": id})
		})
	}
	change("release", d.release)
	change("park", d.journal.Park)
	mux.HandleFunc("POST /journal/prune", func(w http.ResponseWriter, r *http.Request) {
		before, errBefore := time.Parse(time.RFC3339, r.URL.Query().Get("before"))
		most, errMost := strconv.Atoi(r.URL.Query().Get("most"))
		if err := errors.Join(errBefore, errMost); err != nil {
			refuseControl(w, http.StatusBadRequest, errors.New("before or most is missing"))
			return
		}
		pruned, err := d.journal.Prune(r.Context(), before, most)
		if err != nil {
			refuseControl(w, http.StatusServiceUnavailable, err)
			return
		}
		answer(w, http.StatusOK, map[string]int{"pruned": pruned})
	})
	mux.HandleFunc("POST /business-date/{endpoint}/{date}", d.controlBusinessDate)
	mux.HandleFunc("POST /config/reload", d.controlReload)
	mux.HandleFunc("POST /audit", d.controlAudit)
	mux.HandleFunc("POST /journal/reseal", d.controlReseal)
	mux.HandleFunc("GET /journal/reseal", d.controlResealProgress)
	mux.HandleFunc("POST /keys/rotate/{endpoint}", d.controlRotate)
	mux.HandleFunc("GET /keys", func(w http.ResponseWriter, _ *http.Request) { answer(w, http.StatusOK, servedKeys{keyLabels(d.cfg)}) })
	mux.HandleFunc("GET /links", func(w http.ResponseWriter, _ *http.Request) { answer(w, http.StatusOK, d.links()) })
	for name, do := range map[string]func(links, int) error{"drain": links.Drain, "resume": links.Resume, "cut": links.Cut} {
		mux.HandleFunc("POST /links/{endpoint}/{link}/"+name, func(w http.ResponseWriter, r *http.Request) { d.controlLink(w, r, name, do) })
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if station := r.Header.Get(stationHeader); station != d.cfg.Station {
			refuseControl(w, http.StatusForbidden, fmt.Errorf("the daemon that holds the journal is station %q, not %q", d.cfg.Station, station))
			return
		}
		mux.ServeHTTP(w, r)
	})
}

// controlReload has the keeper reload the config, and answers with what has changed, or with every fault.
func (d *daemon) controlReload(w http.ResponseWriter, r *http.Request) {
	asking := reloadAsking{make(chan reloadAnswer, 1)}
	select {
	case d.reloads <- asking:
	case <-d.kept:
		refuseControl(w, http.StatusConflict, errors.New("the daemon is stopping"))
		return
	case <-r.Context().Done(): // at a stop, or because the asker is gone
		refuseControl(w, http.StatusConflict, errors.New("the daemon is stopping"))
		return
	}
	result := <-asking.answer // the keeper has it
	var faulty *configError
	switch {
	case errors.As(result.err, &faulty):
		answer(w, http.StatusConflict, refusal{Error: "the config is not reloaded", Faults: faultLines(faulty.faults)})
	case result.err != nil:
		refuseControl(w, http.StatusConflict, result.err)
	default:
		answer(w, http.StatusOK, reloadResult{Changed: append([]string{}, result.changed...)})
	}
}

// everyLink is the number by which a command means all links of an endpoint.
const everyLink = -1

// controlLink drains, resumes or cuts one link of an endpoint, or all of them.
func (d *daemon) controlLink(w http.ResponseWriter, r *http.Request, name string, do func(links, int) error) {
	endpoints := d.processors()
	at := slices.IndexFunc(endpoints, func(e *endpoint) bool { return e.name == r.PathValue("endpoint") })
	if at < 0 {
		refuseControl(w, http.StatusNotFound, fmt.Errorf("there is no endpoint %q", r.PathValue("endpoint")))
		return
	}
	number := everyLink
	if text := r.PathValue("link"); text != "all" {
		var err error
		if number, err = strconv.Atoi(text); err != nil || number < 0 {
			refuseControl(w, http.StatusBadRequest, errors.New("the link is not a number"))
			return
		}
	}
	if err := do(endpoints[at].links, number); err != nil {
		refuseControl(w, http.StatusConflict, err)
		return
	}
	d.log.Warn("changed by an operator", "command", "link "+name, "endpoint", endpoints[at].name, "link", r.PathValue("link"))
	answer(w, http.StatusOK, struct{}{})
}

// controlBusinessDate puts an operator's date in the place of an endpoint's business date.
func (d *daemon) controlBusinessDate(w http.ResponseWriter, r *http.Request) {
	name := r.PathValue("endpoint")
	if !slices.ContainsFunc(d.processors(), func(e *endpoint) bool { return e.name == name }) {
		refuseControl(w, http.StatusNotFound, fmt.Errorf("there is no endpoint %q", name))
		return
	}
	advanced, err := d.journal.SetBusinessDate(r.Context(), name, r.PathValue("date"))
	if err != nil {
		refuseControl(w, http.StatusConflict, err)
		return
	}
	d.log.Warn("changed by an operator", "command", "business-date", "endpoint", name, "from", advanced.From, "to", advanced.To)
	answer(w, http.StatusOK, dateChange{Before: advanced.From, Date: advanced.To})
}

// A dateChange is what became of a business date.
type dateChange struct {
	Before string `json:"before"`
	Date   string `json:"date"`
}

// release sends what is parked again, if its endpoint is still there.
func (d *daemon) release(ctx context.Context, id journal.OwedID) error {
	owed, err := d.journal.Owing(ctx, id)
	if err == nil && !slices.ContainsFunc(d.processors(), func(e *endpoint) bool { return e.name == owed.Endpoint }) {
		return fmt.Errorf("releasing %d: endpoint %q is not in the config: nobody would pay it", id, owed.Endpoint)
	}
	if err := d.journal.Release(ctx, id); err != nil {
		return err
	}
	d.desk.Wake()
	return nil
}

// A refusal is why a command was not done.
type refusal struct {
	Error  string      `json:"error"`
	Faults []faultLine `json:"faults,omitempty"` // of a config
}

// A faultLine is a fault as JSON.
type faultLine struct {
	Path    string `json:"path"`
	Problem string `json:"problem"`
}

// servedKeys are the labels of hsm.keys with which the daemon was started: no reload changes them.
type servedKeys struct {
	Labels []string `json:"labels"`
}

type reloadResult struct {
	Changed []string `json:"changed"` // paths of keys
}

func refuseControl(w http.ResponseWriter, code int, err error) {
	answer(w, code, refusal{Error: oneLine(err)})
}

// changeJournal lets do work on the journal of the config: through the daemon that holds it, or by itself if there is none.
func (c *cli) changeJournal(ctx context.Context, do func(upkeep) error) error {
	cfg, err := c.loadParts("station", "journal")
	if err != nil {
		return err
	}
	remote := newRemote(cfg)
	if remote.listens(ctx) {
		return do(remote)
	}
	return c.openJournal(ctx, cfg, func(j *journal.Journal) error { return do(j) })
}

// A remote is a running daemon's upkeep.
type remote struct {
	path    string
	station string
	client  http.Client
}

func newRemote(cfg *Config) *remote {
	r := &remote{path: socketPath(cfg), station: cfg.Station}
	r.client.Transport = &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", r.path)
	}}
	return r
}

// askDaemon lets do ask the daemon that holds the journal of the config. Unlike changes of the journal, these need one.
func (c *cli) askDaemon(ctx context.Context, do func(*remote) error) error {
	cfg, err := c.loadParts("station", "journal")
	if err != nil {
		return err
	}
	r := newRemote(cfg)
	if !r.listens(ctx) {
		return fmt.Errorf("no daemon answers at %s: station %s is not served, or not by a user whose daemon this one may command", r.path, r.station)
	}
	return do(r)
}

// listens reports whether a daemon answers there.
func (r *remote) listens(ctx context.Context) bool {
	connection, err := (&net.Dialer{}).DialContext(ctx, "unix", r.path)
	if err != nil {
		return false
	}
	return connection.Close() == nil
}

// post sends a command and reads its result into result.
func (r *remote) post(ctx context.Context, path string, result any) error {
	return r.ask(ctx, http.MethodPost, path, result)
}

// mostAnswer bounds what a daemon answers, in bytes: a thousand links.
const mostAnswer = 1 << 20

// ask asks the daemon and reads its answer into result. Its error is a *configError if it is about the config.
func (r *remote) ask(ctx context.Context, method, path string, result any) error {
	return r.send(ctx, method, path, nil, result)
}

// send is ask with a body, unless that is nil.
func (r *remote) send(ctx context.Context, method, path string, body, result any) error {
	var content io.Reader
	if body != nil {
		text, err := json.Marshal(body)
		if err != nil {
			return err
		}
		content = bytes.NewReader(text)
	}
	request, err := http.NewRequestWithContext(ctx, method, "http://acquirerd"+path, content)
	if err != nil {
		return err
	}
	request.Header.Set(stationHeader, r.station)
	response, err := r.client.Do(request)
	if err != nil {
		return fmt.Errorf("asking the daemon: %w", err)
	}
	defer func() { _ = response.Body.Close() }() // read whole, or of no use
	text, err := io.ReadAll(io.LimitReader(response.Body, mostAnswer))
	if err != nil {
		return fmt.Errorf("asking the daemon: %w", err)
	}
	if response.StatusCode != http.StatusOK {
		refused := refusal{Error: "it answers " + response.Status}
		_ = json.Unmarshal(text, &refused) // else the status has to do
		if len(refused.Faults) > 0 {
			list := make([]fault, len(refused.Faults))
			for i, f := range refused.Faults {
				list[i] = fault{f.Path, f.Problem}
			}
			return &configError{list}
		}
		return errors.New(refused.Error)
	}
	if err := json.Unmarshal(text, result); err != nil {
		return fmt.Errorf("asking the daemon: %w", err)
	}
	return nil
}

// Release is journal.Release.
func (r *remote) Release(ctx context.Context, id journal.OwedID) error {
	return r.post(ctx, fmt.Sprintf("/owed/%d/release", id), &struct{}{})
}

// Park is journal.Park.
func (r *remote) Park(ctx context.Context, id journal.OwedID) error {
	return r.post(ctx, fmt.Sprintf("/owed/%d/park", id), &struct{}{})
}

// Prune is journal.Prune.
func (r *remote) Prune(ctx context.Context, before time.Time, most int) (int, error) {
	query := url.Values{"before": {before.UTC().Format(time.RFC3339)}, "most": {strconv.Itoa(most)}}
	var result struct {
		Pruned int `json:"pruned"`
	}
	err := r.post(ctx, "/journal/prune?"+query.Encode(), &result)
	return result.Pruned, err
}

// SetBusinessDate is journal.SetBusinessDate.
func (r *remote) SetBusinessDate(ctx context.Context, endpoint, date string) (journal.Advanced, error) {
	var change dateChange
	err := r.post(ctx, "/business-date/"+url.PathEscape(endpoint)+"/"+date, &change)
	return journal.Advanced{From: change.Before, To: change.Date}, err
}
