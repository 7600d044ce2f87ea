// Package journal is the durable record of acquirerd: what it is about to send, what came of it, which numbers are used up,
// and which reversals it owes. What a call has recorded when it returns nil survives a crash and a power loss.
//
// # Words
//
// An Intent is written by Begin before the first byte of a request leaves, and Begin gives a Ticket for it. A Ticket allows one
// send (Spend) and is finished once, by Finish with an Outcome. An outcome of Unknown writes the reversal that is then owed in
// the same record: there is no moment at which one of the two is known without the other. What is owed is sent under Tickets
// of its own: Attempt gives one, Settle takes it.
//
//	transaction   open → approved | declined | not_sent | unknown
//	owed          owed → acknowledged | parked
//
// A transaction becomes owed by Finish (unknown) or by Owe (approved, and the answer could not be delivered). Parked is kept
// for ever: it needs a human. Each change stands in the table of events with its time, written with it.
//
// # How it writes
//
// One goroutine (Run) takes all that is waiting and writes it in one SQL transaction of SQLite in WAL mode with
// synchronous=FULL: one fsync for many callers (group commit). Callers wait for their batch. Reads use connections of their
// own and never wait for the writer.
//
// After an error of the store nobody can know what it holds. The journal has then failed for good: all that waits and all that
// comes later gets an error wrapping ErrFailed, Run returns the error, and the process must stop. What was written is decided
// by recovery at the next start: Unfinished gives a Ticket for each intent without an outcome.
//
// # Limits
//
// Config bounds the records in one commit, the callers waiting and the size of a block of numbers. A full queue is an honest
// refusal (ErrBusy) of new work. Finish, Owe and Settle are never refused and never cut short by their context, because what
// they record has already happened; their number is bounded by the tickets that are out.
//
// STANs run from 000001 to 999999 for each endpoint and begin again, skipping those of transactions that are open or owed. RRNs
// are "YDDD" (last digit of the year and day of the year, UTC) and a running number of eight digits. Both come from blocks
// that were reserved durably before their first use: a crash skips the rest of a block and repeats nothing.
//
// # What it refuses
//
// A missing file, a file that is not a journal, another station's journal, a schema newer than this program, a corrupt one,
// and one that another process holds: each with one line. It never stores PIN blocks, track data, card verification values,
// chip data or a clear PAN: an Intent has no field for them.
//
// A write-ahead log whose tail was cut off cannot be told from one whose last batch was never written: SQLite recovers up to
// the last whole commit. Losing storage that was fsynced is beyond what one file can promise.
package journal
