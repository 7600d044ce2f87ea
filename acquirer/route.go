package acquirer

import (
	"fmt"
	"slices"
	"strings"

	"acquirerd/card"
	"acquirerd/messages"
)

// A Route sends the transactions that it matches to an endpoint. An empty list matches everything.
type Route struct {
	BINs       []string // prefixes of the PAN ("4"), or ranges of prefixes of one length ("51-55")
	Upstreams  []string
	MTIs       []string // of first sendings
	Currencies []string // DE 49
	Endpoint   string
}

// maxBINDigits is the longest prefix: account ranges have up to 11 digits, and more of a card number does not belong into a config.
const maxBINDigits = 11

// ParseBIN reads "4" or "51-55" as the first and the last prefix of a range.
func ParseBIN(text string) (first, last string, err error) {
	first, last, isRange := strings.Cut(text, "-")
	if !isRange {
		last = first
	}
	digits := func(s string) bool { return s != "" && strings.Trim(s, "0123456789") == "" }
	if !digits(first) || !digits(last) || len(first) != len(last) || len(first) > maxBINDigits || last < first {
		return "", "", fmt.Errorf("%q is neither a prefix of at most %d digits nor a rising range of prefixes of one length", text, maxBINDigits)
	}
	return first, last, nil
}

// A table is which endpoints there are, and which one a transaction goes to. It is made once and only read afterwards: a transaction looks
// at it once, so that it never sees half of a change.
type table struct {
	routes    routes
	endpoints map[string]*Endpoint // by name
}

func newTable(list []Route, endpoints []*Endpoint) (*table, error) {
	rules, err := newRoutes(list)
	if err != nil {
		return nil, err
	}
	t := &table{routes: rules, endpoints: map[string]*Endpoint{}}
	for _, e := range endpoints {
		if t.endpoints[e.Name] != nil {
			return nil, fmt.Errorf("endpoint %q: there are two of that name", e.Name)
		}
		t.endpoints[e.Name] = e
	}
	for _, route := range list {
		if t.endpoints[route.Endpoint] == nil {
			return nil, fmt.Errorf("route to %q: no such endpoint", route.Endpoint)
		}
	}
	return t, nil
}

// route returns the endpoint for a transaction, nil if there is none.
func (s *Switch) route(upstream string, request *messages.Message, pan card.PAN) *Endpoint {
	t := s.table.Load()
	name, _ := t.routes.find(upstream, request, pan)
	return t.endpoints[name]
}

// endpoint returns the endpoint of a name, nil if there is none.
func (s *Switch) endpoint(name string) *Endpoint { return s.table.Load().endpoints[name] }

type routes []routeRule

type routeRule struct {
	Route
	first, last []string // one pair a BIN
}

func newRoutes(list []Route) (routes, error) {
	table := make(routes, 0, len(list))
	for _, route := range list {
		rule := routeRule{Route: route}
		for _, text := range route.BINs {
			first, last, err := ParseBIN(text)
			if err != nil {
				return nil, fmt.Errorf("reading route to %s: %w", route.Endpoint, err)
			}
			rule.first, rule.last = append(rule.first, first), append(rule.last, last)
		}
		table = append(table, rule)
	}
	return table, nil
}

// find returns the endpoint of the route that matches with the longest BIN; of equals, the first.
func (table routes) find(upstream string, request *messages.Message, pan card.PAN) (endpoint string, found bool) {
	longest := -1
	for _, rule := range table {
		if !accepts(rule.Upstreams, upstream) || !accepts(rule.MTIs, string(request.MTI.First())) ||
			!accepts(rule.Currencies, request.Get(messages.Currency)) {
			continue
		}
		if length := rule.match(pan); length > longest {
			longest, endpoint, found = length, rule.Endpoint, true
		}
	}
	return endpoint, found
}

// match returns the length of the longest BIN that the PAN begins with, 0 for a route without BINs, -1 for none.
func (r routeRule) match(pan card.PAN) int {
	if len(r.BINs) == 0 {
		return 0
	}
	longest, digits := -1, pan.Reveal()
	for i, first := range r.first {
		if n := len(first); n > longest && n <= len(digits) && digits[:n] >= first && digits[:n] <= r.last[i] {
			longest = n
		}
	}
	return longest
}

func accepts(list []string, value string) bool { return len(list) == 0 || slices.Contains(list, value) }
