package acquirer

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"acquirerd/conn"
	"acquirerd/hsm"
	"acquirerd/messages"
)

// A KeyRotation is what became of a request for a new zone key.
type KeyRotation struct {
	Key     string // label of the configuration
	Version int    // of the key that is in use now
	KCV     string // of it
	Before  string // KCV of the key that was in use before, which serves until its overlap is over
}

// Why no key is asked for, or none came of it, for errors.Is. After each of them the key is in use that was, but for ErrKeyUnconfirmed.
var (
	// ErrKeyRequest: the endpoint has no key that can be asked for, by its config or its dialect. Nothing was sent.
	ErrKeyRequest = errors.New("no key can be asked for")
	// ErrKeyPending: one is being asked for. Nothing was sent.
	ErrKeyPending = errors.New("a key is being asked for already")
	// ErrKeyDeclined: the processor does not give one.
	ErrKeyDeclined = errors.New("the processor declines to give a key")
	// ErrKeyNotTaken: the key that came is not one that can be used, or the HSM could not take it.
	ErrKeyNotTaken = errors.New("the key that came is not in use")
	// ErrKeyUnconfirmed: the processor was asked, and no key came in time. It may still come, and is taken then.
	ErrKeyUnconfirmed = errors.New("no new key came in time")
)

// keyWait is how long a key is waited for at most, from the request on: a processor makes it in its own HSM, and sends it.
const keyWait = 30 * time.Second

// RotateKey asks an endpoint's processor for a new zone key, on a link in service, and waits until the HSM has taken what the processor sends: in
// its answer or in a key change of its own, as its dialect says. It waits until ctx ends, and no longer than keyWait; where the answer brings the key, it
// waits for the answer whatever becomes of ctx. At most one is asked for at a time of each processor.
//
// Nothing but the request is ours: a key that comes late, or comes again, is taken as any key change is. So a crash leaves nothing behind.
func (s *Switch) RotateKey(ctx context.Context, endpoint string) (KeyRotation, error) {
	rotated, err := s.rotateKey(ctx, endpoint)
	result := keyRequestResult(err)
	if s.endpoint(endpoint) != nil {
		s.metrics.keyRequests.WithLabelValues(endpoint, result).Inc()
	}
	if err != nil {
		s.log.Warn("no key came of a request", "endpoint", endpoint, "result", result, "error", err)
		return KeyRotation{}, fmt.Errorf("asking for a key of %s: %w", endpoint, err)
	}
	s.log.Info("key changed on request", "endpoint", endpoint, "key", rotated.Key, "version", rotated.Version, "kcv", rotated.KCV, "previous_kcv", rotated.Before)
	return rotated, nil
}

// What became of requests for keys, for acquirerd_key_requests_total.
const (
	keyRequestChanged     = "changed"
	keyRequestRefused     = "refused" // by us: it was not sent
	keyRequestDeclined    = "declined"
	keyRequestNotTaken    = "not_taken"
	keyRequestUnconfirmed = "unconfirmed"
)

var keyRequestResults = []string{keyRequestChanged, keyRequestRefused, keyRequestDeclined, keyRequestNotTaken, keyRequestUnconfirmed}

func keyRequestResult(err error) string {
	switch {
	case err == nil:
		return keyRequestChanged
	case errors.Is(err, ErrKeyDeclined):
		return keyRequestDeclined
	case errors.Is(err, ErrKeyNotTaken):
		return keyRequestNotTaken
	case errors.Is(err, ErrKeyUnconfirmed):
		return keyRequestUnconfirmed
	}
	return keyRequestRefused
}

func (s *Switch) rotateKey(ctx context.Context, endpoint string) (KeyRotation, error) {
	e := s.endpoint(endpoint)
	before, err := s.askable(e)
	if err != nil {
		return KeyRotation{}, err
	}
	came, forget := e.demands.awaitKey()
	if came == nil {
		return KeyRotation{}, ErrKeyPending
	}
	defer forget() // it is waited for before it is asked for: it may come before the answer
	inAnswer := e.Codec.Dialect().NetworkManagement.KeyData.InAnswer
	if inAnswer { // the processor enciphers under the key once it has answered: who asks may go, and the answer must not find nobody
		ctx = context.WithoutCancel(ctx)
	}
	ctx, cancel := context.WithTimeout(ctx, keyWait)
	defer cancel()

	answer, err := e.processor.RequestKey(ctx)
	switch {
	case errors.Is(err, conn.ErrNotSent):
		return KeyRotation{}, fmt.Errorf("%w: %w", ErrKeyRequest, err)
	case err != nil:
		return KeyRotation{}, fmt.Errorf("%w: %w", ErrKeyUnconfirmed, err)
	}
	defer answer.Clear()
	if !e.Codec.Accepts(answer) {
		return KeyRotation{}, fmt.Errorf("%w: it answers %s", ErrKeyDeclined, answer.Get(messages.ResponseCode))
	}
	if inAnswer {
		if err := s.takeAnswered(ctx, e, answer); err != nil {
			return KeyRotation{}, fmt.Errorf("%w: %w", ErrKeyNotTaken, err)
		}
		return s.rotated(e, before)
	}
	select {
	case err := <-came:
		if err != nil {
			return KeyRotation{}, fmt.Errorf("%w: %w", ErrKeyNotTaken, err)
		}
		return s.rotated(e, before)
	case <-ctx.Done():
		return KeyRotation{}, ErrKeyUnconfirmed
	}
}

// askable returns the zone key of an endpoint as it is, if another can be asked for.
func (s *Switch) askable(e *Endpoint) (hsm.KeyStatus, error) {
	refuse := func(why string) (hsm.KeyStatus, error) {
		return hsm.KeyStatus{}, fmt.Errorf("%w: %s", ErrKeyRequest, why)
	}
	switch {
	case e == nil:
		return refuse("there is no such endpoint")
	case s.keys == nil || e.PINKey == "":
		return refuse("it has no pin_key")
	case !e.Codec.Holds(messages.KeyRequest):
		return refuse("its dialect has no key_request")
	}
	keys := s.keys.KeyStatus()
	if keys == nil {
		return refuse("the HSM is not ready, or none of its keys has a zmk")
	}
	at := slices.IndexFunc(keys, func(k hsm.KeyStatus) bool { return k.Label == e.PINKey })
	if at < 0 {
		return refuse(fmt.Sprintf("its key %q has no zmk under which a new one could come", e.PINKey))
	}
	return keys[at], nil
}

// takeAnswered takes the key that an answer to a request brings. The processor is not told what became of it: if it is not in use here, its PIN
// blocks are under another key than ours, which is for a person.
func (s *Switch) takeAnswered(ctx context.Context, e *Endpoint, answer *messages.Message) error {
	change, err := e.Codec.NewKey(answer)
	if err == nil {
		err = s.takeKey(ctx, e, change)
	}
	if err != nil {
		s.alarm(e, alarmKeyChange, "kind", "answer", "endpoint", e.Name, "key", e.PINKey, "error", err)
	}
	return err
}

// takeKey has the HSM take a new zone key of an endpoint, one at a time.
func (s *Switch) takeKey(ctx context.Context, e *Endpoint, change messages.NewKey) error {
	select {
	case e.demands.changing <- struct{}{}:
		defer func() { <-e.demands.changing }()
		return s.keys.ChangeKey(ctx, e.PINKey, change.Cryptogram, fmt.Sprintf("%X", change.CheckValue))
	case <-ctx.Done():
		return ctx.Err()
	}
}

// rotated is what has changed since before. A processor that sends the key that is in use has not changed it.
func (s *Switch) rotated(e *Endpoint, before hsm.KeyStatus) (KeyRotation, error) {
	now, err := s.askable(e)
	if err != nil {
		return KeyRotation{}, fmt.Errorf("%w: %w", ErrKeyUnconfirmed, err) // the HSM has gone since: who looks at it later will see
	}
	if now.Version == before.Version {
		return KeyRotation{}, fmt.Errorf("%w: it is the one that was in use before", ErrKeyNotTaken)
	}
	return KeyRotation{Key: now.Label, Version: now.Version, KCV: now.KCV, Before: before.KCV}, nil
}

// awaitKey registers who waits for the next key change. came gets what became of it, once; it is nil if somebody waits already.
func (d *demands) awaitKey() (came <-chan error, forget func()) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.awaited != nil {
		return nil, nil
	}
	d.awaited = make(chan error, 1)
	return d.awaited, func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		d.awaited = nil
	}
}

// keyCame tells who waits what became of a key change.
func (d *demands) keyCame(err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.awaited == nil {
		return
	}
	select {
	case d.awaited <- err:
	default: // it knows of an earlier one
	}
}

// keyAskInterval is how often a processor is asked for a key because it could not read PINs, at most: what does not help once is for a person.
const keyAskInterval = 5 * time.Minute

// mayAsk reports whether a processor may be asked for a key by ourselves, and takes that for done.
func (d *demands) mayAsk(now time.Time) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.asked.IsZero() && now.Sub(d.asked) < keyAskInterval {
		return false
	}
	d.asked = now
	return true
}

// askForKey has the processor asked for a key, soon, because the two sides' keys are not the same any more. It never waits.
func (s *Switch) askForKey(e *Endpoint) {
	if !e.demands.mayAsk(time.Now()) {
		return
	}
	select {
	case s.asks <- e.Name:
	default: // that many wait: the next PIN that cannot be read asks after keyAskInterval
	}
}

// mostAsks is how many endpoints may wait to be asked for a key.
const mostAsks = 64

// askForKeys asks for the keys that are to be asked for, until ctx ends. Processors are asked beside each other: one that does not answer keeps no
// other from its key.
func (s *Switch) askForKeys(ctx context.Context) {
	var asking sync.WaitGroup
	defer asking.Wait()
	for {
		select {
		case name := <-s.asks: // of an endpoint at most one in keyAskInterval, which is longer than keyWait
			asking.Go(func() { _, _ = s.RotateKey(ctx, name) }) // reports itself
		case <-ctx.Done():
			return
		}
	}
}
