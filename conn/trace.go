package conn

import (
	"context"
	"time"
)

// A Trace is what an Exchange tells of its way beside the answer, for the log of its caller. It is written until Exchange returns.
type Trace struct {
	Link int // number, as in LinkStatus, of the link that the request was written to; -1 if to none

	Queued   time.Duration // from the call of Exchange until it had its turn to write; 0 if nothing was written, as the others
	Written  time.Duration // that the write took
	Answered time.Duration // from the end of the write to the answer; 0 without one, or if it was there before the write returned
}

type traceKey struct{}

// WithTrace returns a context with which one Exchange fills in the trace.
func WithTrace(ctx context.Context, trace *Trace) context.Context {
	*trace = Trace{Link: -1}
	return context.WithValue(ctx, traceKey{}, trace)
}

// traceOf returns the caller's trace, or one that nobody reads.
func traceOf(ctx context.Context) *Trace {
	if trace, ok := ctx.Value(traceKey{}).(*Trace); ok {
		return trace
	}
	return &Trace{Link: -1}
}
