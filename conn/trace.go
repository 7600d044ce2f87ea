package conn

import "context"

// A Trace is what an Exchange tells of its way beside the answer, for the log of its caller. It is written until Exchange returns.
type Trace struct {
	Link int // index in Config.Links of the link that the request was written to; -1 if to none
}

type traceKey struct{}

// WithTrace returns a context with which one Exchange fills in the trace.
func WithTrace(ctx context.Context, trace *Trace) context.Context {
	trace.Link = -1
	return context.WithValue(ctx, traceKey{}, trace)
}

// traceOf returns the caller's trace, or one that nobody reads.
func traceOf(ctx context.Context) *Trace {
	if trace, ok := ctx.Value(traceKey{}).(*Trace); ok {
		return trace
	}
	return &Trace{}
}
