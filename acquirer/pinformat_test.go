package acquirer_test

import (
	"context"
	"testing"
	"testing/synctest"

	"acquirerd/acquirer"
	"acquirerd/hsm"
)

// A witness vault keeps what it was asked for.
type witness struct {
	vault
	asked hsm.Card
}

func (v *witness) Protect(ctx context.Context, c hsm.Card) (hsm.Protected, error) {
	v.asked = c
	return v.vault.Protect(ctx, c)
}

func TestTheVaultIsToldTheFormatsOfBothSides(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		seen := &witness{}
		w.vault = seen
		w.start()
		defer w.stop()
		bank := acquirer.NewEndpoint("bank", "zpk-bank", w.dialect, w.bank)
		bank.PINFormat = hsm.ISO3
		if err := w.desk.Reconfigure([]acquirer.Route{{Endpoint: "bank"}}, []*acquirer.Endpoint{bank}); err != nil {
			t.Fatal(err)
		}
		req := w.request()
		req.Upstream.PINFormat = hsm.ISO1
		w.ask(req, delivered)
		if c := seen.asked; c.From != "zpk-pos" || c.FromFormat != hsm.ISO1 || c.To != "zpk-bank" || c.ToFormat != hsm.ISO3 {
			t.Errorf("got %s of %s to %s of %s", c.From, c.FromFormat, c.To, c.ToFormat)
		}
	})
}
