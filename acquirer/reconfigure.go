package acquirer

import "fmt"

// SetForwardingRate changes the most sends a second of what is owed, for each endpoint. It is positive.
func (s *Switch) SetForwardingRate(perSecond float64) {
	s.forwarder.setPace(perSecond)
	s.forwarder.Wake()
}

// Reconfigure puts other routes, other zone keys of endpoints and new endpoints into force, at one moment: a transaction that has been routed
// goes on with what it was given, each later one finds all of the new. What is owed to a new endpoint is paid from then on.
//
// An endpoint that goes, or has another processor or dialect, needs a new Switch, whose Recover sees that nothing is owed to who is not
// there. On an error nothing has changed. It is called by one goroutine at a time.
func (s *Switch) Reconfigure(list []Route, endpoints []*Endpoint) error {
	before := s.table.Load()
	after, err := newTable(list, endpoints)
	if err != nil {
		return fmt.Errorf("changing routes: %w", err)
	}
	for name, known := range before.endpoints {
		switch e := after.endpoints[name]; {
		case e == nil:
			return fmt.Errorf("changing routes: endpoint %q is not there any more", name)
		case known.processor != e.processor || known.Codec != e.Codec:
			return fmt.Errorf("changing routes: endpoint %q has another processor or dialect", name)
		}
	}
	for name, e := range after.endpoints {
		if known := before.endpoints[name]; known != nil {
			e.demands = known.demands // a reload is no new burst, and no second change of a key at the same time
			continue
		}
		s.metrics.begin(name)
		s.forwarder.adopt(e)
	}
	s.table.Store(after)
	return nil
}
