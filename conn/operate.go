package conn

import (
	"errors"
	"fmt"
	"slices"
	"time"
)

// LinkStatus is one link as an operator sees it.
type LinkStatus struct {
	Number      int       `json:"number"`  // index in Config.Links; after all of those for a link that departs
	Mode        string    `json:"mode"`    // "dial", or "listen" if the processor dials
	Address     string    `json:"address"` // the host that is in use or tried next, or where the processor dials us
	Host        int       `json:"host"`    // index of that host among the link's; 0 is the preferred one, and that of "listen"
	Peer        string    `json:"peer"`    // address from which the processor has dialled; "" if it has not
	State       State     `json:"state"`
	Since       time.Time `json:"since"`     // of the state
	Held        bool      `json:"held"`      // drained by an operator, and stays down until it is resumed
	Suspended   bool      `json:"suspended"` // held because of messages with a wrong MAC
	Departing   bool      `json:"departing"` // not in the configuration any more: it has not left yet
	InFlight    int       `json:"in_flight"`
	Reconnects  int       `json:"reconnects"`   // connections and attempts after the first
	EchoSeconds float64   `json:"echo_seconds"` // round trip of the last echo; 0 before the first
	FramesIn    uint64    `json:"frames_in"`
	FramesOut   uint64    `json:"frames_out"`
	BytesIn     uint64    `json:"bytes_in"`
	BytesOut    uint64    `json:"bytes_out"`
	LastError   string    `json:"last_error"` // class of the last failure, "" if there was none
}

// Status lists the links in the order of the configuration, and after them those that are not in it any more and have not left yet.
func (e *Endpoint) Status() []LinkStatus {
	e.mu.Lock()
	defer e.mu.Unlock()
	var list []LinkStatus
	for _, l := range e.carriers() {
		list = append(list, l.status())
	}
	return list
}

// status is called under Endpoint.mu.
func (l *link) status() LinkStatus {
	state, since := l.state()
	status := LinkStatus{Number: int(l.number.Load()), Mode: "dial", Host: l.host, State: state, Since: since, Held: l.resumed != nil, Suspended: l.suspended,
		Departing: slices.Contains(l.endpoint.departing, l), InFlight: l.inFlight(), Reconnects: int(l.counted.reconnects.Load()), EchoSeconds: time.Duration(l.counted.echo.Load()).Seconds(),
		FramesIn: l.counted.framesIn.Load(), FramesOut: l.counted.framesOut.Load(), BytesIn: l.counted.bytesIn.Load(),
		BytesOut: l.counted.bytesOut.Load(), LastError: string(l.lastError)}
	if len(l.hosts) > 0 {
		status.Address = l.hosts[l.host]
		return status
	}
	status.Mode, status.Address = "listen", l.configured.Listen
	if l.listener != nil && l.listener.bound != nil {
		status.Address = l.listener.bound.String() // with the port, where the configuration leaves it open
	}
	if l.session != nil {
		status.Peer = l.session.address
	}
	return status
}

// Drain takes one link out of service, or all if it is -1: from now on it gets no exchange, those in flight on it end, it signs off, and it
// stays down until Resume. It does not wait for that.
func (e *Endpoint) Drain(number int) error {
	return e.operate("draining", number, func(l *link) error {
		if l.resumed == nil {
			l.resumed = make(chan struct{})
			l.retire(causeDrained, l.bar)
		}
		l.until = time.Time{} // of one that is suspended: it does not come back by itself
		return nil
	})
}

// Resume lets a link that was drained or suspended come back, or all if it is -1.
func (e *Endpoint) Resume(number int) error {
	return e.operate("resuming", number, func(l *link) error {
		l.resume()
		return nil
	})
}

var errNoConnection = errors.New("it has no connection")

// Cut closes the connections of one link now, or of all if it is -1, and drops what the processor has not taken of them. The exchanges in
// flight wait for answers on other links until their timeouts. The link connects again, as after any loss, unless it is held.
func (e *Endpoint) Cut(number int) error {
	var sessions []*session
	err := e.operate("cutting", number, func(l *link) error {
		if sessions = append(sessions, l.sessions...); len(l.sessions) == 0 && number >= 0 {
			return errNoConnection
		}
		return nil
	})
	for _, s := range sessions {
		s.cut(causeCut)
	}
	return err
}

// operate does something to one link, or to all if number is -1, under mu.
func (e *Endpoint) operate(what string, number int, do func(l *link) error) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	links := e.carriers()
	if number != -1 {
		at := slices.IndexFunc(links, func(l *link) bool { return int(l.number.Load()) == number })
		if at < 0 {
			return fmt.Errorf("%s link %d of endpoint %q: there is none", what, number, e.config().Name)
		}
		links = links[at : at+1]
	}
	for _, l := range links {
		if err := do(l); err != nil {
			return fmt.Errorf("%s link %d of endpoint %q: %w", what, number, e.config().Name, err)
		}
	}
	return nil
}

var (
	errOtherName    = errors.New("its name cannot change")
	errOtherDialect = errors.New("its dialect cannot change while it runs")
)

// Reconfigure puts another configuration in the place of the present one, or returns an error and changes nothing. Links whose Link is in
// both are not touched, wherever in the order it stands: they keep their connections and whether they are held; what changed in their TLS
// holds from the next handshake. Who may dial a link makes it no other: a connection drains if its processor may not have it any more.
// Those of the new one begin; the others of the old one drain, sign off and end as soon as any of the new configuration is in service, so
// that there is always one where there was one, and at the latest when a new one should have been: of the last reload that added one.
// Times and limits hold from the next use on: what waits already keeps the time that it was given, except for the next echo, the silence
// that may last, and the next try of a better host.
//
// A link that takes the number of one that is held and goes is held too: an operator who has taken bank/0 out of service finds it so
// whatever its hosts are meanwhile.
//
// Name and dialect cannot change. Dialects are told apart by name and version: the present one stays in use.
func (e *Endpoint) Reconfigure(cfg Config) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	old := e.config()
	present, other := old.Codec.Dialect(), cfg.Codec
	if other != nil {
		cfg.Codec = old.Codec // whatever the other one says: it is checked what will be in use
	}
	err := cfg.check()
	if err == nil {
		switch {
		case cfg.Name != old.Name:
			err = errOtherName
		case present.Name != other.Dialect().Name || present.Version != other.Dialect().Version:
			err = errOtherDialect
		case e.draining:
			err = errDraining
		}
	}
	if err != nil {
		return fmt.Errorf("configuring endpoint %q: %w", old.Name, err)
	}

	removed := slices.Clone(e.links)
	var links, added []*link
	for number, configured := range cfg.Links {
		at := slices.IndexFunc(removed, func(l *link) bool { return l.configured.same(configured) })
		if at < 0 {
			l := newLink(e, number, configured)
			links, added = append(links, l), append(added, l)
			continue
		}
		l := removed[at]
		removed = slices.Delete(removed, at, at+1)
		l.number.Store(int32(number))
		l.configured = configured
		links = append(links, l)
		for _, s := range l.sessions {
			if l.unwelcome(l.life, s) == causeNotAllowed {
				s.leave(causeNotAllowed)
			}
		}
	}
	for _, l := range removed {
		at := int(l.number.Load())
		if l.resumed != nil && at < len(links) && slices.Contains(added, links[at]) {
			links[at].resumed, links[at].suspended, links[at].until = make(chan struct{}), l.suspended, l.until
		}
	}
	e.links, e.turn = links, 0
	e.pending.bound(cfg.Abandoned, cfg.ReplyTimeout)
	e.configured.Store(&settings{cfg, make(chan struct{})})
	close(old.replaced)
	if e.serving == nil {
		return nil
	}
	for _, l := range added {
		l.start()
	}
	e.depart(removed, len(added) > 0)
	for address, ln := range e.listeners {
		if !slices.ContainsFunc(links, func(l *link) bool { return l.listener == ln }) {
			ln.stop()
			delete(e.listeners, address)
		}
	}
	return nil
}

// depart has links go that are not in the configuration any more. They make no new connection; one that is in service may carry on for a
// while, until one that the configuration has is in service, or should have been. Called under mu.
func (e *Endpoint) depart(removed []*link, added bool) {
	for _, l := range removed {
		l.end(causeRemoved)
		if len(l.sessions) > 0 {
			e.departing = append(e.departing, l)
		}
	}
	for i, l := range e.departing {
		l.number.Store(int32(len(e.links) + i)) //nolint:gosec // an index
	}
	if !slices.ContainsFunc(e.departing, (*link).inService) || (e.relieved != nil && !added) {
		return
	}
	if e.relieved != nil { // what this reload adds has the time of its own
		close(e.relieved)
	}
	relieved, cfg := make(chan struct{}), e.config()
	e.relieved = relieved
	if e.relieve(); e.relieved == nil {
		return
	}
	e.carrying.Go(func() {
		longest := time.NewTimer(cfg.DialTimeout + cfg.SignOnTimeout)
		defer longest.Stop()
		select {
		case <-relieved:
			return
		case <-e.serving.Done():
		case <-longest.C:
		}
		e.mu.Lock()
		defer e.mu.Unlock()
		if e.relieved == relieved {
			e.dismiss()
		}
	})
}

// relieve has the links that depart leave if one of the configuration is in service. Called under mu.
func (e *Endpoint) relieve() {
	if e.relieved != nil && slices.ContainsFunc(e.links, (*link).inService) {
		e.dismiss()
	}
}

// dismiss has the links that depart leave. Called under mu, and only while they are not relieved.
func (e *Endpoint) dismiss() {
	close(e.relieved)
	e.relieved = nil
	for _, l := range e.departing {
		l.retire(causeRemoved, nil)
	}
}
