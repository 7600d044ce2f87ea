package acquirer

import "fmt"

// SetForwardingRate changes the most sends a second of what is owed, for each endpoint. It is positive.
func (s *Switch) SetForwardingRate(perSecond float64) {
	s.forwarder.setPace(perSecond)
	s.forwarder.Wake()
}

// Reconfigure puts other routes and other zone keys of endpoints into force, at one moment: a transaction that has been routed goes on with
// what it was given, each later one finds all of the new. The endpoints are those that there are; one that comes, goes or has another
// processor or dialect needs a new Switch, because what is owed to it is paid by what there is. On an error nothing has changed.
func (s *Switch) Reconfigure(list []Route, endpoints []*Endpoint) error {
	before := s.table.Load()
	after, err := newTable(list, endpoints)
	if err != nil {
		return fmt.Errorf("changing routes: %w", err)
	}
	for name, e := range after.endpoints {
		switch known := before.endpoints[name]; {
		case known == nil:
			return fmt.Errorf("changing routes: endpoint %q is new", name)
		case known.processor != e.processor || known.Codec != e.Codec:
			return fmt.Errorf("changing routes: endpoint %q has another processor or dialect", name)
		}
	}
	for name := range before.endpoints {
		if after.endpoints[name] == nil {
			return fmt.Errorf("changing routes: endpoint %q is not there any more", name)
		}
	}
	s.table.Store(after)
	return nil
}
