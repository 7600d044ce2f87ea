// Package simulator is the other side of acquirerd's links for tests, demonstrations and measurements: a card processor that does
// what its script says, an upstream switch that keeps a book, and a load.
//
//	Processor   serves the daemon's links, decides by rules, breaks what it is told to break, and keeps a Ledger
//	Ledger      what the processor holds: every request and advice, its state (held, reversed, declined) and what came to undo it
//	Demand      a message of the processor's own, whose answer it checks
//	Host        a listener that can be taken away from its peers and given back
//	Upstream    a client of the daemon's upstream door, with many requests in flight, that keeps a Book
//	Book        every request with what the upstream was told: an answer, a timeout, a lost connection
//	Duty        sends through an Upstream and brings each transaction to rest: repeats, reverses, completes, until it is taken
//	Proxy       stands between two parties and cuts, tears, stalls, slows and half-opens their connections
//	Load        sends through an Upstream at a rate that does not wait for answers, or with a fixed number in flight
//	Card        a test card and what the processor does with it
//	Key         a test zone PIN key in this process's memory
//	MACKey      a test key for message authentication codes in this process's memory
//	Device      a PIN pad under DUKPT, with a test key for each PIN block
//
// Each party speaks any dialect, in any framing, over TLS or without; a processor listens, or dials a daemon that does. Whatever the dialect's
// own are, they think in the response codes of ISO 8583:1987, and ledger and book are kept in them.
//
// The ledger, the book and the daemon's journal are three accounts of the same money, kept by code that shares nothing but the codec: what
// a reversal names, and what it leaves, the ledger reads by itself. Compare reads all three: at rest, with a Duty, the ledger's holds are
// exactly the approvals that the book believes, amounts included.
//
// Everything that is left to chance comes from a seed and a message's own numbers, never from the order in which goroutines run: the
// same seed and the same messages meet the same faults.
//
// What it refuses to do: it knows no real card, writes no card number, PIN or key in clear, and acquirerd does not link it (a test
// in the module's root checks that). Its TDES is software and its keys are throw-away: never give it a key that protects a real PIN.
//
// Limits: holds in a ledger, requests that wait to be handled late, frames queued on a link, entries in a book, requests in flight of a
// load. Each is in the configuration that it belongs to, with its default.
package simulator
