// Package conn holds the links to a card processor and carries exchanges over them.
//
// An Endpoint is a processor's group of links. A link is one entry of its configuration: hosts that we dial, in order of preference, or
// an address at which the processor dials us. A session is one connection of a link, from its establishment to its close, and has the
// state machine (state.go), the same whoever has dialled. Exchange sends one request and returns its answer, or says what is known of the
// request's fate: an error that wraps ErrNotSent proves that no byte of it can have left this host, and every other error means that
// the processor may have acted on it.
//
// # Links
//
// The states are down, connected, signed-on, in-service and draining; machine in state.go says what leads from one to the next. Only a
// session in service gets exchanges: of several the one with the fewest in flight, and one whose write is stuck only if there is no other,
// so that a link that is blocked holds up nothing that another could carry. A session leaves the service without a failure when the
// endpoint stops, an operator drains the link, a better host takes over, a reload removes the link, or the processor signs off: it gets
// nothing new, what is in flight ends by its own deadlines, it signs off and is closed; so does one whose processor a reload does not allow
// any more. What the processor may not have read of requests without an answer is dropped at a close. Everything else is a failure of a class in
// state.go: the session is closed, and its exchanges wait for their answers elsewhere, each until its own deadline.
//
// A link that dials tries its hosts in their order, the next one at once when one fails or is lost, and pauses after the last (link.go).
// On another host than the first it tries the better ones every FailBack, beside the session that serves; the new one is signed on before
// the old one drains. Where a dialect has no sign-on, an echo stands for it. A link that is dialled shares its listener with the others of its address; a connection that comes when all links
// have one is refused, unless one of those turns out to be dead (listener.go). Over either there may be TLS (tls.go).
//
// An operator drains, resumes and cuts links while the endpoint runs, and Reconfigure puts another configuration in the place of the
// present one (operate.go). All of what it swaps stands behind Endpoint.config, or in the links themselves.
//
// # Matching
//
// The table of exchanges belongs to the endpoint, not to a link: the loss of a link is not an answer, and an answer may come on another
// link or after a reconnect; where the dialect says so, only on the connection of its request. An answer finds its request by the
// dialect's match key, and completes it only if it keeps the format and agrees with the request in the elements that the dialect wants
// echoed. A key goes through these states (pending.go):
//
//	waiting    in flight; another request with this key is refused before the send
//	answered   remembered for one reply timeout, so that a second answer is known as a duplicate
//	abandoned  the caller was told that the fate is unknown; remembered for ten reply timeouts, so that a late answer is known as one
//
// Nobody is told of late answers to the links' own sign-ons and echoes. But where the answer to a key request brings the key, the processor
// enciphers under it once it has answered: a late one is told as such, and only the key request that is remembered makes it one. No other
// answer can bring a key, whatever stands in it.
//
// Until it is forgotten a key is used again only by a repeat (0421 after 0420, 0121 after 0120), which is the same transaction.
//
// # Message authentication codes
//
// Where the processor's dialect wants them, what goes out is given its code before it has a place in the table, and what comes in is checked before
// it is matched (mac.go). An answer whose code is wrong, missing or not to be checked completes nothing: its request ends with ErrMAC, as one
// whose fate is unknown. So many wrong ones within a minute suspend their link: it drains and stays down, until an operator resumes it or the
// time of the configuration has passed. Before the sign-on the first one closes its connection and counts for no link: it need not be the processor's. A request of ours that comes back is not told to anybody: one key makes the MACs of both directions, and our
// answer to it would be proven as the processor's. An HSM that is slow or gone holds up no reading, and no link.
//
// # Limits
//
// Each is in Config: exchanges in flight on the endpoint and on a connection, abandoned keys, unasked messages that wait for the callback,
// bytes of a frame (the dialect's), time to dial and to shake hands, to sign on, to write a frame, to read the rest of a frame, to
// answer, to answer an echo, between two attempts to connect, and between two at a better host. Of connections that the processor dials,
// no more wait for a place than there are links. At the limit of exchanges or of abandoned keys a request is refused as not sent: an
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
// It sends nothing that is not a request, or the answer to one on the connection that it came on; nothing before a link is signed on, and
// nothing once it drains. It never sends a request a second time: only a frame of which provably no byte was written goes to another
// link. It hears nobody who dials from an address that is not allowed, and speaks no TLS older than 1.2 and none that verifies nothing. It
// knows nothing of money: what an unknown
// fate costs is for its caller to decide.
package conn
