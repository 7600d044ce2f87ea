// Package card holds the values of a payment card that must not leak: PAN, track 2, expiry and PIN block. Beside them it has the key serial
// number that comes with a PIN block and is no secret.
//
// A value of this package prints itself masked, whatever prints it: fmt with any verb, slog, encoding/json, and also
// when it is an unexported field of another struct. Its digits stand behind a pointer, because fmt does not call the
// methods of unexported fields and would print a plain string's digits there. Reveal is the only way out, so that
// every place that handles clear card data can be found with grep.
//
// A mask shows at most the first six and the last four digits of a PAN (PCI DSS 3.4.1) and nothing of the rest.
package card
