package acquirer

import (
	"errors"

	"acquirerd/conn"
	"acquirerd/journal"
	"acquirerd/messages"
	"acquirerd/specs"
)

// Why an outcome or an attempt is what it is, in the journal, logs and metrics: a closed set.
const (
	reasonNotSent     = "not_sent"
	reasonNoMAC       = "no_mac" // the HSM could not give it its message authentication code
	reasonTimeout     = "timeout"
	reasonUndecodable = "undecodable"
	reasonMismatch    = "mismatch"
	reasonMAC         = "mac"     // the answer's message authentication code is wrong or missing, or could not be checked
	reasonPartial     = "partial" // the processor approved a part, and did not say which, or the upstream's dialect has no word for that
	reasonLinkFailed  = "link_failed"
	reasonUndelivered = "undelivered"
	reasonUpstream    = "upstream" // the upstream has reversed it
	reasonRecovered   = "recovered"
	reasonBudget      = "budget_ended"
	reasonRefused     = "refused"         // the processor answered with a code by which it is to be tried again
	reasonUnlisted    = "unlisted_code"   // it answered with a code that its dialect does not list
	reasonNotFound    = "not_found"       // it does not have the original, which may still be on its way
	reasonAlready     = "already_refused" // it says that the reversal is done, and has refused each attempt before
	reasonPoison      = "poison"
	reasonFormat      = "format"   // the reversal does not fit the processor's dialect
	reasonKeySync     = "key_sync" // the processor could not read the PIN under its zone key, and is asked again under another
	reasonSealedPAN   = "sealed_pan"
	reasonExpired     = "expired"
)

// classify says what an exchange came to. It is pure. Unknown is the default: the other outcomes must be proven.
func classify(dialect *specs.Dialect, answer *messages.Message, err error) journal.Outcome {
	switch {
	case errors.Is(err, conn.ErrNotSent) && errors.Is(err, messages.ErrNoMAC):
		return journal.Outcome{Kind: journal.NotSent, Reason: reasonNoMAC}
	case errors.Is(err, conn.ErrNotSent):
		return journal.Outcome{Kind: journal.NotSent, Reason: reasonNotSent}
	case errors.Is(err, conn.ErrTimeout):
		return journal.Outcome{Kind: journal.Unknown, Reason: reasonTimeout}
	case errors.Is(err, conn.ErrUndecodable):
		return journal.Outcome{Kind: journal.Unknown, Reason: reasonUndecodable}
	case errors.Is(err, conn.ErrMAC):
		return journal.Outcome{Kind: journal.Unknown, Reason: reasonMAC}
	case errors.Is(err, conn.ErrMismatch):
		return journal.Outcome{Kind: journal.Unknown, Reason: reasonMismatch}
	case err != nil, answer == nil:
		return journal.Outcome{Kind: journal.Unknown, Reason: reasonLinkFailed}
	}
	code := answer.Get(messages.ResponseCode)
	if code == "" {
		return journal.Outcome{Kind: journal.Unknown, Reason: reasonUndecodable}
	}
	if dialect.ApprovesPartially(code) && !answer.Has(messages.Amount) {
		// Approved for less than was asked, and nobody knows for how much.
		return journal.Outcome{Kind: journal.Unknown, ResponseCode: code, Reason: reasonPartial, AuthorizationID: answer.Get(messages.AuthorizationID)}
	}
	outcome := journal.Outcome{Kind: journal.Declined, ResponseCode: code, AuthorizationID: answer.Get(messages.AuthorizationID)}
	if dialect.Approves(code) {
		outcome.Kind = journal.Approved
		if dialect.ApprovesPartially(code) {
			outcome.ApprovedAmount = answer.Get(messages.Amount)
		}
	}
	return outcome
}
