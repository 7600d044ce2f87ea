package conn

import (
	"context"
	"errors"
	"fmt"

	"acquirerd/messages"
)

// ErrNoKeyRequest: the dialect has no code by which its party is asked for a new key. Nothing was sent.
var ErrNoKeyRequest = errors.New("its dialect has no key request")

// RequestKey asks the processor for a new zone key, on a link in service, and returns its answer, which may refuse. The key comes in that answer
// or, as the dialect says, in a key change of the processor's own, to the callback of Run and on whatever link it likes. It waits at most
// ReplyTimeout, or until ctx ends.
//
// An error that wraps ErrNotSent proves that nothing was sent. No money hangs on any other: the processor then may have changed its key, or be
// about to, and its key change says so or, where its answer brings the key, a late answer: the callback of Run is told of that with the time of the
// request, for as long as a late answer is known as one.
func (e *Endpoint) RequestKey(ctx context.Context) (*messages.Message, error) {
	if !e.codec.Holds(messages.KeyRequest) {
		return nil, notSent(ErrNoKeyRequest)
	}
	e.mu.Lock()
	s, err := e.choose(nil)
	if e.draining {
		err = errDraining
	}
	e.mu.Unlock()
	if err != nil {
		return nil, notSent(err)
	}
	answer, err := s.converse(ctx, messages.KeyRequest, e.config().ReplyTimeout, nil)
	if err != nil {
		return nil, fmt.Errorf("asking for a key: %w", err)
	}
	return answer, nil
}
