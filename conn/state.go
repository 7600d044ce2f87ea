package conn

// A State is how far a connection has come. A link shows that of its connection, and down while it has none.
type State string

// The states. Only a connection in service carries new exchanges.
const (
	Down      State = "down"       // no connection; one is being dialled, or waited for
	Connected State = "connected"  // connected, with TLS where it is wanted, and waits for the answer to its sign-on
	SignedOn  State = "signed-on"  // the processor has accepted the sign-on, or has answered the echo where its dialect has none
	InService State = "in-service" // it carries exchanges
	Draining  State = "draining"   // it carries those in flight to their end, and no others; then it signs off
)

var states = []State{Down, Connected, SignedOn, InService, Draining}

// An event is what takes a connection from one state to the next.
type event string

const (
	established event = "established" // the connection is there, whoever dialled
	accepted    event = "accepted"    // the processor has accepted the sign-on, or the echo that stands for one
	chosen      event = "chosen"      // the link gives it the exchanges, instead of the connection that it had
	leaving     event = "leaving"     // it gets no more of them: by whichever cause that is not a failure
	ended       event = "ended"       // it is closed, by whichever cause
)

// machine is the life of a connection: what each event leads to, in each state that it can happen in. It is the same for those that we
// dial and those that the processor dials.
var machine = map[State]map[event]State{
	Down:      {established: Connected},
	Connected: {accepted: SignedOn, ended: Down},
	SignedOn:  {chosen: InService, ended: Down},
	InService: {leaving: Draining, ended: Down},
	Draining:  {ended: Down},
}

// after returns the state that follows. An event that the table does not have is a fault of this package.
func (s State) after(what event) State {
	next, possible := machine[s][what]
	if !possible {
		panic("conn: " + string(what) + " while " + string(s))
	}
	return next
}

// A cause is why a connection ended, or why there is none. It is the error class of a link's status, log and metrics. It is an error so
// that it can be the cause of a context's end.
type cause string

func (c cause) Error() string { return string(c) }

// The causes that are failures.
const (
	causeNone            cause = ""
	causeListen          cause = "listen"             // the address at which the processor dials us could not be listened at
	causeDial            cause = "dial"               // the connection could not be established
	causeTLS             cause = "tls"                // the handshake failed, or either side refused the other's certificate
	causeClosed          cause = "closed_by_peer"     // the processor closed it between two frames
	causeRead            cause = "read"               // reading failed: reset, unreachable …
	causeWrite           cause = "write"              // writing failed, or took longer than WriteTimeout
	causeSilence         cause = "silence"            // nothing arrived for longer than the echoes allow
	causeFrameTimeout    cause = "frame_timeout"      // a frame began and did not end
	causeFrameHeader     cause = "frame_header"       // a length header that is not a length
	causeFrameLength     cause = "frame_length"       // a frame of no bytes, or of more than the dialect's maximum
	causeFrameShort      cause = "frame_short"        // the processor closed it inside a frame
	causeSignOnTimeout   cause = "sign_on_timeout"    // the sign-on, or the echo that stands for one, was not answered
	causeSignOnRefused   cause = "sign_on_refused"    // it was answered by a code that does not accept it
	causeSignOnUnusable  cause = "sign_on_unusable"   // the answer to it could not be decoded, or was another's
	causeEchoMissed      cause = "echo_missed"        // EchoMisses echoes were not answered
	causeEchoRefused     cause = "echo_refused"       // an echo was answered by a code that does not accept it
	causeReplaced        cause = "replaced"           // the processor dialled anew, and EchoMisses echoes that this was asked for were not answered
	causeSignedOffByPeer cause = "signed_off_by_peer" // the processor wanted it
	causeMAC             cause = "mac"                // messages with a wrong message authentication code came on it, or one before its sign-on
	causeCut             cause = "cut"                // an operator wanted it
)

// The causes that are not: the connection drains, signs off and is closed because we want it so.
const (
	causeStopped  cause = "stopped"     // the endpoint stops
	causeDrained  cause = "drained"     // an operator drains the link
	causeRemoved  cause = "removed"     // the link is not in the configuration any more
	causeFailBack cause = "failed_back" // a better host has taken over

	causeNotAllowed cause = "not_allowed" // the processor may not dial us from that address any more
)

// failures are the causes that are, for what lists them.
var failures = []cause{causeListen, causeDial, causeTLS, causeClosed, causeRead, causeWrite, causeSilence, causeFrameTimeout, causeFrameHeader,
	causeFrameLength, causeFrameShort, causeSignOnTimeout, causeSignOnRefused, causeSignOnUnusable, causeEchoMissed, causeEchoRefused,
	causeReplaced, causeSignedOffByPeer, causeMAC, causeCut}

func (c cause) isFailure() bool {
	switch c {
	case causeNone, causeStopped, causeDrained, causeRemoved, causeFailBack, causeNotAllowed:
		return false
	default:
		return true
	}
}

// drops reports whether what the processor has not taken is dropped at the close, whatever it is. A request that it got after its sender had
// given up on the connection would be one more hold, and its reversal may have come before it; see also stream.Close.
func (c cause) drops() bool {
	switch c {
	case causeWrite, causeEchoMissed, causeSilence, causeFrameTimeout, causeReplaced, causeCut:
		return true
	default:
		return false
	}
}
