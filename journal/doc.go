// Package journal is the durable record of acquirerd: what it is about to send, what came of it, which numbers are used up,
// and which reversals and advices it owes. What a call has recorded when it returns nil survives a crash and a power loss.
//
// # Words
//
// An Intent is written by Begin before the first byte of a request leaves, and Begin gives a Ticket for it. A Ticket allows one
// send (Spend) and is finished once, by Finish with an Outcome. An outcome of Unknown writes the reversal that is then owed in
// the same record: there is no moment at which one of the two is known without the other. What is owed is sent under Tickets
// of its own: Attempt gives one, Settle takes it.
//
// Retry is for a request that was declined for nothing that the transaction is, and is sent once more as another one: it finishes the first and
// begins the second in one record, and the upstream's key goes over to the second. So each request that a processor has seen is a row of its own,
// and a key names one transaction at any moment.
//
// An advice has no open state: Accept writes it, its answer and the debt in one record. Bar writes the key of a request that has not come
// before its reversal, as not_sent: what comes late is a duplicate, and is not sent.
//
//	transaction   open → approved | declined | not_sent | unknown
//	advice        accepted
//	barred        not_sent
//	owed          owed → acknowledged | parked; acknowledged → owed, parked → owed
//
// For a transaction there is at most one reversal and one advice. A reversal is owed by Finish (unknown), by Owe (an approval that could
// not be delivered, or that its upstream reverses, whole or in part; or an advice that its upstream reverses), or by Hear. An advice is owed
// by Accept. What was settled is owed again by
//
//	Release   what is parked; not an advice whose reversal was sent, or is being sent
//	Hear      a reversal that ended as not found, after which the processor has approved
//	Owe       a reversal in part that was settled: the whole takes its place, as another message with numbers of its own
//
// Parked, by Settle or by Park, is kept until it is released: it needs a human. Each change stands in the table of events with its time,
// written with it.
//
// Hear takes an answer that came after its request had ended: an event of its transaction, late_answer or second_answer. An approval of what
// was taken for declined or not sent makes a reversal owed; of what is unknown and owed or parked, it keeps "not found" from being the end; of what
// is open, Finish writes the reversal, unless the outcome is approved.
//
// Processors send messages of their own accord. Keep takes an advice, once, with the transaction that it names; it changes nothing of that,
// and marks what says that an approval is undone. Advance takes a cutover, SetBusinessDate a person's word: from then on each transaction, and
// what comes to be owed, bears the new business date of its endpoint. What came to be owed yesterday and is owed again today is of today.
//
// Find gives the transaction of an upstream's key, with its answer and its reversal: that is how a repeat is answered. Prune deletes
// transactions, with all that belongs to them, that ended before a time and owe nothing; Export reads them as they stood at one moment.
//
// Audit records what was done with a key, or by a person, as a row of a chain: each holds the SHA-256 of the row before and of itself, and the first that of
// the station and the time at which the journal was made. VerifyAudit names the first row that is not as it was written. Whoever can write the
// file can also write the chain anew, or cut off its end: so the hashes go to the log with each row, and VerifyAudit takes one that was noted.
// Rows are never deleted, by Prune neither (PCI DSS 10.5.1 asks for twelve months): a daemon writes a few dozen a day.
//
// Reseal puts seals under another key in the place of those that are there, where they are still as they were read. Triggers refuse every other change of
// what was recorded when a transaction began, of its events, of what a processor has told, and of the audit table: a fault of this program, or a
// person with a tool, has to take the trigger away first.
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
// refusal (ErrBusy) of new work. Finish, Retry, Settle, Owe, Hear, Bar, Park, Release and Audit are never refused and never cut short by their
// context: most record what has already happened. Their number is bounded by the tickets that are out, by the messages in flight, by
// what processors send unasked, and by the few who call Audit and wait for their row. Keep and Advance are refused as new work is: the processor sends them again.
//
// STANs run from 000001 to 999999 for each endpoint and begin again, skipping those of transactions that are open, owed or parked. RRNs
// are "YDDD" (last digit of the year and day of the year, UTC) and a running number of eight digits. Both come from blocks
// that were reserved durably before their first use: a crash skips the rest of a block and repeats nothing.
//
// # What it refuses
//
// A missing file, a file that is not a journal, another station's journal, a schema newer than this program, a corrupt one,
// and one that another process holds: each with one line. A business date that goes back, or far ahead (ErrBusinessDate). A schema that is older is brought up to this program's when it is opened for
// writing. It never stores PIN blocks, track data, card verification values or a clear PAN: neither an Intent nor an Advising has a field for them. The PAN, and of
// an advice the sensitive elements that its dialect allows to be stored, chip data among them, are there only as the HSM has sealed them.
//
// A write-ahead log whose tail was cut off cannot be told from one whose last batch was never written: SQLite recovers up to
// the last whole commit. Losing storage that was fsynced is beyond what one file can promise.
package journal
