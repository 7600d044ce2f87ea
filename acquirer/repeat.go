package acquirer

import (
	"context"
	"fmt"
	"time"

	"acquirerd/journal"
	"acquirerd/messages"
)

// What became of a message that repeats another one, for acquirerd_repeats_total.
const (
	repeatJoined  = "joined"  // the first was in flight: both are given its answer
	repeatStored  = "stored"  // answered from the record
	repeatDiffers = "differs" // the same key with other content: refused
	repeatSilent  = "silent"  // not answered, because nobody can say now what became of the first
)

// repeated answers a request whose key is on record. It never sends anything, and it never refuses what may have been approved: where it
// cannot tell, it does not answer, and the upstream asks again or reverses.
func (s *Switch) repeated(ctx context.Context, v *Visit, found journal.Found, started time.Time) Result {
	answers := v.Upstream.Codec.Dialect().Answers
	if found.Reason == journal.ReasonBarred {
		code := answers.NotSent
		if v.Message.MTI.IsAdvice() { // it is reversed already: there is nothing to be told, and it may not be asked for again
			code = acceptedCode(v)
		}
		return s.repeat(v, found, repeatStored, messages.NewAnswer(v.Message, code), started)
	}
	same, err := s.sameAsFirst(ctx, v, found)
	switch {
	case err != nil:
		s.log.Warn("repeat cannot be compared with its first", "transaction", int64(found.ID), "error", err)
		return s.repeat(v, found, repeatSilent, nil, started)
	case !same:
		return s.repeat(v, found, repeatDiffers, messages.NewAnswer(v.Message, answers.Duplicate), started)
	case found.Outcome == "":
		return s.repeat(v, found, repeatSilent, nil, started)
	}
	return s.repeat(v, found, repeatStored, stored(v.Message, found, answers.Unknown, answers.NotSent), started)
}

// sameAsFirst compares content: the card, and all that is not sensitive. The PAN of the record is opened for it: of a token, the key may have
// been changed since.
func (s *Switch) sameAsFirst(ctx context.Context, v *Visit, found journal.Found) (bool, error) {
	if !s.sameContent(v, found) {
		return false, nil
	}
	pan, err := v.Message.Card()
	if err != nil || found.MaskedPAN != pan.Mask() {
		return false, nil //nolint:nilerr // the first one had a card
	}
	first, err := s.vault.OpenPAN(ctx, found.PAN)
	if err != nil {
		return false, fmt.Errorf("opening the PAN of the first: %w", err)
	}
	return first.Equal(pan), nil
}

// sameContent compares all that is not sensitive: in the dialect in which it was sent, if its endpoint is still there.
func (s *Switch) sameContent(v *Visit, found journal.Found) bool {
	partly := found.Answer.IsZero()
	if e := s.endpoint(found.Endpoint); e != nil {
		return messages.NewPassage(v.Upstream.Codec, e.Codec).SameContent(found.Original, v.Message, partly, time.Now())
	}
	return found.Original.SameContent(v.Message.Original(), partly)
}

// stored is the answer of the record. An approval that was reversed since is none any more.
func stored(request *messages.Message, found journal.Found, unknown, notSent string) *messages.Message {
	reversed := found.Reversal.ID != 0 && found.Reversal.Replacement == ""
	switch {
	case found.Outcome == journal.Approved && reversed, found.Outcome == journal.Unknown:
		return messages.NewAnswer(request, unknown)
	case !found.Answer.IsZero():
		return found.Answer.To(request)
	case found.Outcome == journal.NotSent:
		return messages.NewAnswer(request, notSent)
	}
	// An older version has kept no more of it.
	answer := messages.NewAnswer(request, found.ResponseCode)
	answer.Set(messages.AuthorizationID, found.AuthorizationID)
	if found.ApprovedAmount != "" {
		answer.Set(messages.Amount, found.ApprovedAmount)
	}
	return answer
}
