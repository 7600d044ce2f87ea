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

	asked := time.Now()
	answer, err := e.processor.RequestKey(ctx)
	switch {
	case errors.Is(err, conn.ErrNotSent):
		return KeyRotation{}, fmt.Errorf("%w: %w", ErrKeyRequest, err)
	case err != nil:
		if inAnswer && (errors.Is(err, conn.ErrUndecodable) || errors.Is(err, conn.ErrMismatch) || errors.Is(err, conn.ErrMAC)) {
			_ = s.keyNotTaken(e, inTime, err) // reported: it has answered, and we have no key of it
		}
		return KeyRotation{}, fmt.Errorf("%w: %w", ErrKeyUnconfirmed, err)
	}
	defer answer.Clear()
	if !e.Codec.Accepts(answer) {
		return KeyRotation{}, fmt.Errorf("%w: it answers %s", ErrKeyDeclined, answer.Get(messages.ResponseCode))
	}
	if inAnswer {
		if err := s.takeAnswered(ctx, e, asked, inTime, answer); err != nil {
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

// An answering is which answer brings a key: "kind" of the alarm.
type answering string

const (
	inTime     answering = "answer"
	tooLate    answering = "late_answer"    // to a request of ours that has ended without it
	unprompted answering = "unasked_answer" // to none that is known
)

// takeAnswered takes the key that an answer to a request brings, which was made then.
func (s *Switch) takeAnswered(ctx context.Context, e *Endpoint, asked time.Time, which answering, answer *messages.Message) error {
	if s.keys == nil || e.PINKey == "" { // any more, of a late one
		return s.keyNotTaken(e, which, errors.New("this endpoint has no key to be changed by a message"))
	}
	change, err := e.Codec.NewKey(answer)
	if err == nil {
		err = s.takeKey(ctx, e, asked, change)
	}
	if err != nil && !errors.Is(err, errLaterKey) {
		return s.keyNotTaken(e, which, err)
	}
	return err
}

// keyNotTaken alarms that a processor may have given a key that is not in use here, and returns why. It is not told so: its PIN blocks are under another
// key than ours from then on, which is for a person.
func (s *Switch) keyNotTaken(e *Endpoint, which answering, why error) error {
	s.alarm(e, alarmKeyChange, "kind", string(which), "endpoint", e.Name, "key", e.PINKey, "error", why)
	return why
}

// errLaterKey: the processor has given another key since, by the answer to a later request.
var errLaterKey = errors.New("the key of a later request is in use")

// takeKey has the HSM take a new zone key of an endpoint, one at a time. asked is when it was asked for, if an answer brings it: a processor serves our
// requests in their order, so that a key does not take the place of one that was asked for after it, whichever comes first. Else it is zero.
func (s *Switch) takeKey(ctx context.Context, e *Endpoint, asked time.Time, change messages.NewKey) error {
	d := e.demands
	select {
	case d.changing <- struct{}{}:
		defer func() { <-d.changing }()
	case <-ctx.Done():
		return ctx.Err()
	}
	if !asked.IsZero() {
		if asked.Before(d.answeredOf) {
			return errLaterKey
		}
		d.answeredOf = asked
	}
	return s.keys.ChangeKey(ctx, e.PINKey, change.Cryptogram, fmt.Sprintf("%X", change.CheckValue))
}

// lateKey takes the answer to a key request that has ended without it: where answers bring keys, the processor enciphers under this one. Only conn can
// say that it answers one, and it says so once; whatever else comes with a key in it is not ours to believe.
func (s *Switch) lateKey(ctx context.Context, e *Endpoint, msg conn.Unasked) {
	defer msg.Clear()
	if msg.Fault != nil {
		_ = s.keyNotTaken(e, tooLate, msg.Fault) // reported
		return
	}
	if !e.Codec.Accepts(msg.Message) {
		s.log.Info("key declined late", "endpoint", e.Name, "response_code", msg.Get(messages.ResponseCode))
		return
	}
	taking, release := context.WithTimeout(ctx, demandBudget)
	defer release()
	switch err := s.takeAnswered(taking, e, msg.KeyAsked, tooLate, msg.Message); {
	case errors.Is(err, errLaterKey):
		s.log.Warn("key of a late answer not taken", "endpoint", e.Name, "key", e.PINKey, "asked", msg.KeyAsked.UTC(), "error", err)
	case err == nil:
		s.log.Info("key changed by a late answer", "endpoint", e.Name, "key", e.PINKey, "asked", msg.KeyAsked.UTC())
	}
}

// bringsKey reports whether a message looks like the answer to a key request that brings the key.
func (e *Endpoint) bringsKey(m *messages.Message) bool {
	if !e.Codec.Dialect().NetworkManagement.KeyData.InAnswer || m.MTI.Class() != messages.Network || !m.MTI.IsAnswer() || !e.Codec.Accepts(m) {
		return false
	}
	_, err := e.Codec.NewKey(m)
	return err == nil
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

// keyAskInterval is how often a processor is asked for a key because it could not read PINs, at most: what does not help once is for a person. A request that
// was not sent, because no link was in service or the HSM was not ready, has not been asked: it is tried again after keyAskPause, if PINs still cannot be read.
const (
	keyAskInterval = 5 * time.Minute
	keyAskPause    = 10 * time.Second
)

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

// notAsked takes back that mayAsk took a request for done: it was not sent.
func (d *demands) notAsked(now time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.asked = now.Add(keyAskPause - keyAskInterval)
}

// askForKey has the processor asked for a key, soon, because the two sides' keys are not the same any more. It never waits.
func (s *Switch) askForKey(e *Endpoint) {
	if !e.demands.mayAsk(time.Now()) {
		return
	}
	select {
	case s.asks <- e.Name:
	default: // that many wait
		e.demands.notAsked(time.Now())
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
		case name := <-s.asks: // of an endpoint at most one: keyAskInterval is longer than keyWait, and keyAskPause begins with the end of the last
			asking.Go(func() {
				_, err := s.RotateKey(ctx, name) // reports itself
				if e := s.endpoint(name); e != nil && errors.Is(err, ErrKeyRequest) {
					e.demands.notAsked(time.Now())
				}
			})
		case <-ctx.Done():
			return
		}
	}
}
