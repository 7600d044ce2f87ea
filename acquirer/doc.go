// Package acquirer is the life of a transaction: authorize, reverse, recover, forward.
//
// (*Switch).Authorize tells it in order; every decision stands there. What it promises is the invariant of this project: each request
// that may have reached the processor ends in exactly one of outcome recorded, reversal owed, reversal acknowledged, or reversal
// parked. An approval that the upstream was told of is never reversed from here; an approval whose delivery was seen to fail is.
//
// The room refuses to guess. Without a durable record nothing is sent; without a proof that nothing was sent a reversal is owed;
// without a durable outcome nothing is answered, and the process stops, because only the record can say after a restart what
// is true.
//
// The Forwarder pays what is owed: a 0420, then 0421 repeats with growing pauses until the processor acknowledges or says that it
// will never accept; then the reversal is parked for a person, never dropped.
package acquirer
