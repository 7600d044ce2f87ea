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
}

// A Recorder is durable: when a call returns nil, its record survives power loss. After an error the state of the store is unknown and
// the process must stop; recovery decides what was written. The exceptions are journal.ErrBusy, journal.ErrDuplicate and the end of ctx:
// then nothing was written. It may be used by many goroutines.
type Recorder interface {
	// Next returns numbers that no other transaction has or will have, also after a crash.
	Next(ctx context.Context, endpoint string, at time.Time) (messages.Numbers, error)
	// Begin records what is about to be sent, and gives the ticket without which nothing is sent.
	Begin(ctx context.Context, intent journal.Intent) (*journal.Ticket, error)
	// Finish records the outcome. For Unknown, the owed reversal is the same record.
	Finish(ctx context.Context, ticket *journal.Ticket, outcome journal.Outcome) error
	// Owe records that an approved transaction must be reversed because the upstream was not told of it.
	Owe(ctx context.Context, transaction journal.TransactionID, reason string) error
	// Creditors returns the endpoints to which something is owed.
	Creditors(ctx context.Context) ([]string, error)
	// Unfinished returns the tickets of intents without an outcome. They cannot be spent, only finished.
	Unfinished(ctx context.Context) ([]*journal.Ticket, error)

	// Due returns what is owed to an endpoint and due, the longest due first.
	Due(ctx context.Context, turn journal.Turn) ([]journal.Owed, error)
	// Attempt records that a reversal is about to be sent, so that the next one is known to be a repeat.
	Attempt(ctx context.Context, owed journal.OwedID) (*journal.Ticket, error)
	// Settle records what came of an attempt.
	Settle(ctx context.Context, ticket *journal.Ticket, settlement journal.Settlement) error
}

// A Vault protects card data in the HSM. An error wrapping hsm.ErrPINBlock means that the PIN block does not decipher to one; every
// other error means that the HSM cannot serve now. It may be used by many goroutines.
type Vault interface {
	Protect(ctx context.Context, c hsm.Card) (hsm.Protected, error)
	OpenPAN(ctx context.Context, sealed card.SealedPAN) (card.PAN, error)
}
