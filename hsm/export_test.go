package hsm

import (
	"context"
	"log/slog"
	"slices"

	"github.com/miekg/pkcs11"
)

// hsmtest imports this package, so tests on its tokens stand outside. What they need of the inside is here.

// A Library is a module with straight calls.
type Library = library

// A Module is what an HSM uses of one.
type Module = module

// LoadModule is loadModule.
var LoadModule = loadModule

// WholeMAC is MAC before it is cut.
func (h *HSM) WholeMAC(ctx context.Context, key MACKey, data []byte) ([]byte, error) {
	return h.wholeMAC(ctx, key, data)
}

// NewOn is New on a module that a test changes.
func NewOn(cfg Config, change func(Module) Module) (*HSM, error) {
	return newHSM(cfg, slog.New(slog.DiscardHandler), nil, func(path string) (module, error) {
		m, err := loadModule(path, cfg.Arguments)
		return change(m), err
	})
}

// Objects counts what a session of the token sees.
func (h *HSM) Objects(ctx context.Context) (n int, err error) {
	err = h.once(ctx, func(w *worker) error {
		if err := w.m.FindObjectsInit(w.session, nil); err != nil {
			return err
		}
		defer func() { _ = w.m.FindObjectsFinal(w.session) }()
		for {
			more, _, err := w.m.FindObjects(w.session, 64)
			if n += len(more); err != nil || len(more) == 0 {
				return err
			}
		}
	})
	return n, err
}

// Enciphered and Deciphered do in software what a terminal and a processor do.
var (
	Enciphered = enciphered
	Deciphered = deciphered
	TestPANs   = testPANs
)

// Lasting lists the labels of what is in the token beyond its sessions, of a class of objects, sorted.
func (h *HSM) Lasting(ctx context.Context, class uint) (labels []string, err error) {
	err = h.once(ctx, func(w *worker) error {
		handles, err := findClass(w.m, w.session, class, "")
		for _, handle := range handles {
			var lasts bool
			var label []byte
			if err == nil {
				lasts, _, err = flag(w.m, w.session, handle, pkcs11.CKA_TOKEN)
			}
			if err == nil {
				label, _, err = attribute(w.m, w.session, handle, pkcs11.CKA_LABEL)
			}
			if lasts {
				labels = append(labels, string(label))
			}
		}
		slices.Sort(labels)
		return err
	})
	return labels, err
}

// MaxKeyChanges is the most that a configuration may allow.
const MaxKeyChanges = maxKeyChanges
