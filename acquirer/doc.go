// Package acquirer is the life of a transaction: authorize, reverse, advise, recover, forward.
//
// (*Switch).Authorize tells it in order; every decision about a request stands there. Reverse takes the reversals of upstreams, Advise their
// advices: each is answered when it is durable, and is owed from then on. What all promise is the invariant of this project: each request
// that may have reached the processor ends in exactly one of outcome recorded, reversal owed, reversal acknowledged, or reversal
// parked. An approval that the upstream was told of is never reversed from here; an approval whose delivery was seen to fail is.
//
// The room refuses to guess. Without a durable record nothing is sent; without a proof that nothing was sent a reversal is owed;
// without a durable outcome nothing is answered, and the process stops, because only the record can say after a restart what
// is true.
//
// A message passes Admit first, in the order of arrival. Those with the same key are one matter while the first is in flight: one goes out,
// and all are told the same. Later, a repeat is answered from the record. A reversal waits for its original, or bars it if it has not come.
// A refusal is an answer, too: it is remembered for ten minutes, and never given to what may have been approved; who cannot be told the
// truth is not answered, and asks again or reverses. An answer that comes after its request has ended is recorded by Inbound, and never
// delivered; what it approves is reversed, if nobody was told.
//
// What a processor demands of its own accord is served by demand.go: its advices are recorded, its business days begin, its new keys are put in
// use, and then it is answered. An advice that undoes an approval is recorded, marked and alarmed; nothing is done about it here.
//
// The Forwarder pays what is owed, in order for a card and parallel over cards, at a limited rate: a reversal or an advice, then repeats of it
// (0421, 0121, 0221) with growing pauses, until the processor acknowledges it or says that it will never accept it; then it is parked for a
// person, never dropped.
//
// A Resealer puts seals under the present key in the place of those under older ones, in small batches with rests between them. It changes nothing else
// of a transaction, and what it cannot open it lists and leaves.
package acquirer
