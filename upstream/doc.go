// Package upstream is the door that upstream switches use: ISO 8583 over TCP or TLS, in the upstream's own dialect.
//
// A connection carries many messages at once, and answers go back in the order in which they become known. Requests (0100, 0200), advices
// (0120, 0220), reversals (0400, 0420) and the repeats of all go to the switch, which is told of them in the order in which they arrive; 0800
// sign-on, sign-off and echo are answered here. A message that does not keep the format is answered with the number of the failing element
// if enough of it could be read to say what it answers, a type that is not served with 12; else the connection is closed, because its
// sender would wait for ever.
//
// Who may come in is known by the address, if there is an allow-list, and by the client certificate, if the door has TLS: version 1.2 or newer,
// a certificate that a CA of the configuration has signed, and in it one of the names of the upstream's peers, whatever else the
// configuration says. The address is checked before anything else is spent; the handshake runs in the connection's own goroutine, with one
// deadline for the whole of it, and no session is resumed. Who does not get in is counted by the reason, and logged with no more of a
// certificate than its subject.
//
// The door refuses rather than queues: over the limit of messages in flight, and over the rate, it asks the switch for a refusal and answers at
// once, or not at all if the message repeats what is in flight or on record; over the limit of connections it closes the new one. The rate
// is one of new business: requests and their repeats. Reversals and advices settle what has happened, and their upstream repeats them until
// they are taken, so a refusal would make more of them and leave money unsettled for longer. They take no part of the rate either: many of
// them do not keep new requests out. Network management and what cannot be read cost the switch nothing, and each is answered before the
// next of its connection is read.
//
// Reconfigure changes all of this while the door serves, but for the name, the dialect and the PIN key of the upstream. Connections that could
// not be opened again end, in good order; the others stay.
//
// Where the upstream's dialect has message authentication codes, a message is checked before anything is made of it (mac.go). A refusal of one whose code
// is wrong or missing goes out without a code, and one that could not be checked is not answered: nobody who sends a spoiled copy of a request ahead gets
// an answer that would be believed of the request itself.
//
// What the switch gives no answer to is not answered: the upstream asks again, or reverses. The door owns no decision about money but one: when
// an answer could not be written whole, it says so to the switch, which then owes a reversal if the answer was an approval that nobody else
// was told of. An answer that was written whole counts as delivered, also to an upstream that has closed its side: a half-close looks the same.
package upstream
