package conn

import "slices"

// A State is how far a link has come.
type State string

// The states of a link. Only a link in service carries new exchanges.
const (
	Down      State = "down"       // no connection; it is being dialled or waits to be
	Connected State = "connected"  // connected, and waits for the answer to its sign-on
	SignedOn  State = "signed-on"  // the processor has accepted the sign-on
	InService State = "in-service" // it carries exchanges
	Draining  State = "draining"   // it carries those in flight to their end, and no others
)

var states = []State{Down, Connected, SignedOn, InService, Draining}

// transitions is the state machine: from each state, the states that may follow, whatever the reason.
var transitions = map[State][]State{
	Down:      {Connected},
	Connected: {SignedOn, Down},
	SignedOn:  {InService, Down},
	InService: {Draining, Down},
	Draining:  {Down},
}

func (s State) precedes(next State) bool { return slices.Contains(transitions[s], next) }

// A cause is why a session ended, or why there is none. It is the error class of a link's status and log.
type cause string

const (
	causeNone            cause = ""
	causeDial            cause = "dial"             // the connection could not be established
	causeClosed          cause = "closed_by_peer"   // the processor closed it between two frames
	causeRead            cause = "read"             // reading failed: reset, unreachable …
	causeWrite           cause = "write"            // writing failed, or took longer than WriteTimeout
	causeSilence         cause = "silence"          // nothing arrived for longer than the echoes allow
	causeFrameTimeout    cause = "frame_timeout"    // a frame began and did not end
	causeFrameHeader     cause = "frame_header"     // a length header that is not a length
	causeFrameLength     cause = "frame_length"     // a frame of no bytes, or of more than the dialect's maximum
	causeFrameShort      cause = "frame_short"      // the processor closed it inside a frame
	causeSignOnTimeout   cause = "sign_on_timeout"  // the sign-on was not answered
	causeSignOnRefused   cause = "sign_on_refused"  // the sign-on was answered by a code that does not accept it
	causeSignOnUnusable  cause = "sign_on_unusable" // the answer to the sign-on could not be decoded, or was another's
	causeEchoMissed      cause = "echo_missed"      // EchoMisses echoes were not answered
	causeEchoRefused     cause = "echo_refused"     // an echo was answered by a code that does not accept it
	causeSignedOffByPeer cause = "signed_off_by_peer"
	causeStopped         cause = "stopped" // the endpoint stops
)
