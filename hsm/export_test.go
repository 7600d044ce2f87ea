package hsm

import "context"

// A Library is what tests of the module's straight calls need of this package: hsmtest imports it, so they stand outside.
type Library = library

// LoadModule is loadModule.
var LoadModule = loadModule

// WholeMAC is MAC before it is cut.
func (h *HSM) WholeMAC(ctx context.Context, key MACKey, data []byte) ([]byte, error) {
	return h.wholeMAC(ctx, key, data)
}
