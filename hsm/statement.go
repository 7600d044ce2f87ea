package hsm

import (
	"fmt"
	"slices"
	"strings"
)

// A Way says where clear PIN blocks or keys are while an operation runs.
type Way string

const (
	TokenResident Way = "token-resident" // only inside the token
	Transient     Way = "transient"      // also in this process's memory, for the length of the call
	NotAvailable  Way = "not available"  // nowhere: the token cannot
)

// An Operation is a line of the Statement: of one that is in use what is done, and of another what the token could do.
type Operation struct {
	Name      string  `json:"name"`
	InUse     bool    `json:"in_use"` // the configuration has keys for it
	Way       Way     `json:"way"`
	Mechanism string  `json:"mechanism"` // "" if it is not available
	Micros    float64 `json:"micros"`    // what one takes, in µs, as measured when the process started; 0 if it was not
	Note      string  `json:"note"`
}

// A Statement is what this HSM can and cannot promise.
type Statement struct {
	Module     string      `json:"module"`     // the module's own description and version, "" before Open
	Token      string      `json:"token"`      // label
	Generation uint64      `json:"generation"` // counts loads of the module; 0 while there is none
	Operations []Operation `json:"operations"`
	Keys       []KeyCheck  `json:"keys"`
}

// A KeyCheck is a key whose KCV was found right in the present generation.
type KeyCheck struct {
	Label string `json:"label"`
	Use   Use    `json:"use"`
	KCV   string `json:"kcv"`

	// Version counts the keys that this label has had, 1 for the one of the configuration.
	Version int `json:"version"`
}

// Transient names the operations in use that are not token-resident.
func (s Statement) Transient() (names []string) {
	for _, o := range s.Operations {
		if o.InUse && o.Way == Transient {
			names = append(names, o.Name)
		}
	}
	return names
}

// demandResident refuses a generation that would do less than RequireTokenResident promises. A key change that the token was found unable to do is tried all the
// same, and begins with the clear key where its zone master key is transient; a PIN translation is not.
func (h *HSM) demandResident(g *generation) error {
	if !h.cfg.RequireTokenResident {
		return nil
	}
	names := h.statement(g).Transient()
	for _, c := range capabilities {
		if by, used := h.inUse(g, c); used && c.pair == noPair && by.way == Transient && !slices.Contains(names, c.name) {
			names = append(names, c.name)
		}
	}
	if len(names) > 0 {
		return fmt.Errorf("%w: %s", ErrTransient, strings.Join(names, ", "))
	}
	return nil
}

// Statement says for each operation which way it takes, and which keys were checked.
func (h *HSM) Statement() Statement { return h.statement(h.gen.Load()) }

func (h *HSM) statement(g *generation) Statement {
	s := Statement{Token: h.cfg.Token}
	for i, c := range capabilities {
		var found []finding
		if i < len(h.probed) {
			found = h.probed[i]
		}
		s.Operations = append(s.Operations, h.operation(g, c, found))
	}
	if g != nil {
		s.Module, s.Generation = g.description, g.number
		for _, k := range h.cfg.Keys {
			now := g.key(k.Label)
			s.Keys = append(s.Keys, KeyCheck{k.Label, k.Use, now.KCV, now.version})
		}
	}
	return s
}
