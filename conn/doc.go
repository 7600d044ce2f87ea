// Package conn holds the links to a card processor and carries exchanges over them.
//
// An Endpoint is a processor's group of links; a link is one address and its state machine (state.go); a session is one connection of a
// link, from dial to close. Exchange sends one request and returns its answer, or says what is known of the request's fate: an error
// that wraps ErrNotSent proves that no byte of it can have left this host, and every other error means that the processor may have
// acted on it.
//
// # Matching
//
// The table of exchanges belongs to the endpoint, not to a link: the loss of a link is not an answer, and an answer may come on another
// link or after a reconnect. An answer finds its request by the dialect's match key, and completes it only if it keeps the format and
// agrees with the request in the elements that the dialect wants echoed. A key goes through these states (pending.go):
//
//	waiting    in flight; another request with this key is refused before the send
//	answered   remembered for one reply timeout, so that a second answer is known as a duplicate
//	abandoned  the caller was told that the fate is unknown; remembered for ten reply timeouts, so that a late answer is known as one
//
// Until it is forgotten a key is used again only by a repeat (0421 after 0420, 0121 after 0120), which is the same transaction.
//
// # Limits
//
// Each is in Config: exchanges in flight on the endpoint and on a link, abandoned keys, unasked messages that wait for the callback,
// bytes of a frame (the dialect's), time to dial, to sign on, to write a frame, to read the rest of a frame, to answer, to answer an
// echo, and between two attempts to connect. At the limit of exchanges or of abandoned keys a request is refused as not sent: an
// abandoned key is never forgotten early, because its late answer could then complete another request. An answered key is forgotten
// early at its limit: its duplicate then counts as unmatched, and completes nothing.
//
// # The connection library
//
// iso8583-connection is used in one way only: over a net.Conn whose every Read and Write has a deadline, frames go out by
// Connection.Write, and come in by a message reader that hands them to the table of this package and returns no message. Its own
// sending, answering and pooling lose answers, block for ever or take the wrong caller's answer, and are not used. One frame at a
// time is given to Connection.Write, so that waiting for one's turn has an end and proves that nothing was sent.
//
// # What it refuses
//
// It sends nothing that is not a request, nothing before a link is signed on, and nothing once it drains. It never sends a request a
// second time: only a frame of which provably no byte was written goes to another link. It knows nothing of money: what an unknown
// fate costs is for its caller to decide.
package conn
