package acquirer

import (
	"context"
	"time"

	"acquirerd/card"
	"acquirerd/hsm"
	"acquirerd/journal"
	"acquirerd/messages"
)

// A Processor carries one message to the card processor. It may be used by many goroutines.
//
// Exchange returns an answer, or an error. An error wrapping conn.ErrNotSent means that no byte of req can have left this
// host. Every other error means that the processor may have acted on req. A deadline of ctx shortens the wait for the answer;
// its cancellation does not.
type Processor interface {
	Exchange(ctx context.Context, req *messages.Message) (*messages.Message, error)
	InService() bool
	// RequestKey asks the processor for a new zone key and returns its answer, until ctx ends. Its errors are those of Exchange.
	RequestKey(ctx context.Context) (*messages.Message, error)
}

// A Recorder is durable: when a call returns nil, its record survives power loss. After an error the state of the store is unknown and
// the process must stop; recovery decides what was written. The exceptions are journal.ErrBusy, journal.ErrDuplicate and the end of ctx:
// then nothing was written. It may be used by many goroutines.
type Recorder interface {
	// Next returns numbers that no other transaction has or will have, also after a crash.
	Next(ctx context.Context, endpoint string, at time.Time) (messages.Numbers, error)
	// Find returns the transaction that an upstream began with a key; false if there is none.
	Find(ctx context.Context, upstream, key string) (journal.Found, bool, error)
	// Begin records what is about to be sent, and gives the ticket without which nothing is sent. It waits no longer than ctx.
	Begin(ctx context.Context, intent journal.Intent) (*journal.Ticket, error)
	// Finish records the outcome and what the upstream is told. For Unknown, the owed reversal is the same record.
	Finish(ctx context.Context, ticket *journal.Ticket, outcome journal.Outcome) error
	// Retry records that a request was declined for nothing that the transaction is, and in the same record what is about to be sent instead
	// of it, and gives the ticket of that.
	Retry(ctx context.Context, ticket *journal.Ticket, declined journal.Outcome, intent journal.Intent) (*journal.Ticket, error)
	// Accept records an advice, its answer, and that it is owed.
	Accept(ctx context.Context, intent journal.Intent, answer messages.Reply) (journal.TransactionID, error)
	// Bar takes the key of a request that has not come, so that it is never sent.
	Bar(ctx context.Context, barred journal.Barred) error
	// Owe records that an approved transaction or an advice must be reversed, or returns the reversal that there is.
	Owe(ctx context.Context, reversing journal.Reversing) (journal.Reversal, error)
	// Hear records an answer to a transaction that has ended, and the reversal that is owed because of it.
	Hear(ctx context.Context, hearing journal.Hearing) (journal.Heard, error)
	// Keep records an advice of a processor, once.
	Keep(ctx context.Context, advising journal.Advising) (journal.Advised, error)
	// Advance records that an endpoint's next business day has begun. An error wrapping journal.ErrBusinessDate means that it cannot be.
	Advance(ctx context.Context, cutover journal.Cutover) (journal.Advanced, error)
	// Opens reports whether a day that a processor names is later than its endpoint's business date. It is memory alone, and may be asked of
	// each answer.
	Opens(endpoint, day string) bool
	// Creditors returns the endpoints to which something is owed.
	Creditors(ctx context.Context) ([]string, error)
	// Unfinished returns the tickets of intents without an outcome. They cannot be spent, only finished.
	Unfinished(ctx context.Context) ([]*journal.Ticket, error)

	// Incurred returns what has come to be owed to an endpoint since the last call.
	Incurred(endpoint string) []journal.Debt
	// Owing returns all of one thing that is or was owed.
	Owing(ctx context.Context, id journal.OwedID) (journal.Owed, error)
	// Attempt records that something owed is about to be sent, so that the next send is known to be a repeat. own are numbers for its
	// message, if it is to have some of its own and has none yet.
	Attempt(ctx context.Context, id journal.OwedID, own journal.Numbers) (*journal.Ticket, error)
	// Settle records what came of an attempt.
	Settle(ctx context.Context, ticket *journal.Ticket, settlement journal.Settlement) error
}

// A Vault protects card data in the HSM. An error wrapping hsm.ErrPINBlock means that the PIN block does not decipher to one; every
// other error means that the HSM cannot serve now, but for hsm.ErrNoPreviousKey. It may be used by many goroutines.
type Vault interface {
	Protect(ctx context.Context, c hsm.Card) (hsm.Protected, error)
	OpenPAN(ctx context.Context, sealed card.SealedPAN) (card.PAN, error)
	SealRest(ctx context.Context, rest []byte) (card.SealedRest, error)
	OpenRest(ctx context.Context, rest card.SealedRest) ([]byte, error)
}

// A KeyChanger puts a new zone key in the place of the one with a label. It is durable: when it returns nil, the key was checked against its
// check value (hexadecimal) and is the one under which PIN blocks are enciphered to the endpoint from now on, also after a power loss;
// messages that were enciphered under the one before are still served for a while. After an error the old key is in use as before. The key
// that is in use already is taken again and changes nothing, so that a repeat is answered as the first was; one that was replaced before is
// refused, so that the delayed copy of an old message does not bring it back. The cryptogram is the caller's again when it returns. It may be used by many goroutines; a cancellation of ctx does not leave it half done.
type KeyChanger interface {
	ChangeKey(ctx context.Context, label string, cryptogram []byte, checkValue string) error
	// KeyStatus tells version and check value of each key that may be changed; nothing while the keys cannot be reached.
	KeyStatus() []hsm.KeyStatus
}
