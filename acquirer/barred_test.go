package acquirer_test

import (
	"slices"
	"testing"
)

// A reversal overtakes its advice on another connection, and is answered. The advice that comes then is over, too: an answer that asks for a
// repeat would be asked for for ever.
func TestABarredAdviceIsNotAskedForAgain(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		req := w.advice()
		if answer := w.reverse(reversalOf(req, "0420")); codeOf(answer) != "25" {
			t.Fatalf("got %v", answer)
		}
		answer := w.advise(again(req))
		if slices.Contains(req.Upstream.Codec.Dialect().Reversal.Retry, codeOf(answer)) {
			t.Errorf("the advice is answered %s, which asks for it once more", codeOf(answer))
		}
	})
}
