package handoff

import "golang.org/x/sys/unix"

// Outcome is what became of one attempt to hand a connection off.
type Outcome uint8

// The outcomes of a send.
const (
	Sent    Outcome = iota
	Full            // the receiver is there, its queue is full: wait until the socket is writable
	Gone            // nobody receives there now: wait for a new socket
	Starved         // the kernel can't take more at the moment: try again soon
	Refused         // it can never be passed
)

// OutcomeOf says what an errno of sendmsg(2) on a connected receiving socket
// means. Full is not absent: a live receiver with a full queue is waited for,
// for as long as it takes.
func OutcomeOf(errno unix.Errno) Outcome {
	switch errno {
	case 0:
		return Sent
	case unix.EAGAIN:
		return Full
	case unix.ETOOMANYREFS, unix.ENOBUFS, unix.ENOMEM, unix.EMFILE, unix.ENFILE:
		return Starved
	case unix.EINVAL, unix.ELOOP:
		return Refused
	default: // ECONNREFUSED, EPIPE, ENOTCONN, ECONNRESET, EPERM, EBADF …
		return Gone
	}
}
