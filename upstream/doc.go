// Package upstream is the door that upstream switches use: ISO 8583 over TCP, in the upstream's own dialect.
//
// A connection carries many messages at once, and answers go back in the order in which they become known. Requests (0100, 0200), advices
// (0120, 0220), reversals (0400, 0420) and the repeats of all go to the switch, which is told of them in the order in which they arrive; 0800
// sign-on, sign-off and echo are answered here. A message that does not keep the format is answered with the number of the failing element
// if enough of it could be read to say what it answers, a type that is not served with 12; else the connection is closed, because its
// sender would wait for ever.
//
// The door refuses rather than queues: over the limit of messages in flight it asks the switch for a refusal and answers at once, or not at all
// if the message repeats what is in flight or on record; over the limit of connections it closes the new one. What the switch gives no
// answer to is not answered: the upstream asks again, or reverses. The door owns no decision about money but one: when an answer could not
// be written whole, it says so to the switch, which then owes a reversal if the answer was an approval that nobody else was told of. An
// answer that was written whole counts as delivered, also to an upstream that has closed its side: a half-close looks the same.
package upstream
