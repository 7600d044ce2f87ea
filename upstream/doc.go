// Package upstream is the door that upstream switches use: ISO 8583 over TCP, in the upstream's own dialect.
//
// A connection carries many requests at once, and answers go back in the order in which they become known. 0100 and 0200 go to
// the switch; 0800 sign-on, sign-off and echo are answered here. A message that does not keep the format is answered with the number of
// the failing element if enough of it could be read to say what it answers; else the connection is closed, because its sender would
// wait for ever.
//
// The door refuses rather than queues: over the limit of requests in flight it answers at once, over the limit of connections it
// closes the new one. It owns no decision about money but one: when an answer could not be written whole, it says so to the switch,
// which then owes a reversal if the answer was an approval. An answer that was written whole counts as delivered, also to an upstream that has
// closed its side: a half-close looks the same.
package upstream
