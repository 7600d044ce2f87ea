package hsm

import (
	"errors"
	"fmt"
	"slices"
)

// ErrPINFormat: PIN blocks of the one format may not be translated into the other, or not with another PAN (PCI PIN 3-3), or are not for the
// algorithm of their key (ISO 9564-1). It is the configuration's fault, and no call is made.
var ErrPINFormat = errors.New("PIN block format is not allowed")

// A PANChange says what a translation does to the PAN of a block.
type PANChange int

const (
	SamePAN      PANChange = iota // the block is bound to the same PAN before and after
	BoundPAN                      // from a surrogate to the PAN that it is bound to by a MAC (PCI PIN 3-3, note)
	UnrelatedPAN                  // to a PAN of which nothing proves that it is the same card's
)

// allowedPairs are the pairs of PCI PIN 3-3, whose table also has 1 to 1, where nothing is reformatted. What is bound to a PAN is never
// unbound, and format 2 is neither here nor there.
var allowedPairs = map[Format][]Format{
	ISO0: {ISO0, ISO3, ISO4},
	ISO1: {ISO0, ISO1, ISO3, ISO4},
	ISO3: {ISO0, ISO3, ISO4},
	ISO4: {ISO0, ISO3, ISO4},
}

// AllowedPair returns nil if PIN blocks of one format may be translated into the other, else an error that wraps ErrPINFormat and says why. It
// looks at no key: that a format is under the cipher that it is for follows from its length (Format.Bytes).
func AllowedPair(from, to Format, change PANChange) error {
	from, to = from.orDefault(), to.orDefault()
	for _, f := range []Format{from, to} {
		if !f.IsKnown() {
			return fmt.Errorf("%w: %q is not one of %s, %s, %s, %s", ErrPINFormat, string(f), ISO0, ISO1, ISO3, ISO4)
		}
	}
	switch {
	case !slices.Contains(allowedPairs[from], to):
		return fmt.Errorf("%w: %s into %s would unbind the PIN from its PAN (PCI PIN 3-3)", ErrPINFormat, from, to)
	case change == UnrelatedPAN:
		return fmt.Errorf("%w: the PAN would change, and nothing binds the one to the other (PCI PIN 3-3)", ErrPINFormat)
	case change == BoundPAN && (from == ISO1 || to == ISO1):
		return fmt.Errorf("%w: %s into %s has no PAN that could change", ErrPINFormat, from, to)
	}
	return nil
}
