package handoff

import (
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"socketbox/internal/fdpass"
)

// BorrowTime bounds each step of a loan's conversation. A binder answers in
// a millisecond; one that is stopped must not stop its borrower for ever.
const BorrowTime = 5 * time.Second

// LoanError is a lender's answer other than a socket.
type LoanError struct {
	Path    string
	Verdict Verdict // TakeConnections, Denied or Failed
	Reason  string  // the lender's words
}

func (e *LoanError) Error() string {
	what := [...]string{TakeConnections: "it hands connections off instead", Denied: "denied", Failed: "it failed"}[e.Verdict]
	return fmt.Sprintf("borrow %s: %s: %s", e.Path, what, e.Reason)
}

// Hint returns the next step, "" where the reason says it all.
func (e *LoanError) Hint() string {
	switch e.Verdict {
	case TakeConnections:
		return "`socketbox status` shows why; handoff = \"listener\" in the listener's section lends it to the first who asks"
	case Denied:
		return "allow = { users = [...], groups = [...] } in the listener's section says who may borrow it"
	}
	return ""
}

// Borrow borrows the listening or UDP socket that the binder lends at path.
// own is a socket of the borrower's, not bound: its domain, type, protocol and
// IPV6_V6ONLY say what the borrower can work with, and some of its options
// (docs/protocol.md) are applied to what is lent; it stays the caller's.
// backlog is listen's, 0 to leave it as configured.
//
// The result is close-on-exec, shares its open file description (O_NONBLOCK
// included) with every other borrower, and is the caller's. A lender's refusal
// is a *LoanError. ENOENT says that nobody lends at path, ECONNREFUSED that
// whoever did has ended, EAGAIN that he does not answer.
func Borrow(path string, own int, backlog int) (fd int, err error) {
	conn, err := dialLender(path)
	if err != nil {
		return -1, err
	}
	defer unix.Close(conn)
	if backlog < 0 {
		backlog = 0
	}
	if err := fdpass.Send(conn, LoanRequest{Backlog: uint32(backlog)}.Append(nil), own); err != nil {
		return -1, fmt.Errorf("borrow %s: %w", path, err)
	}
	var buf [maxLoanAnswer]byte
	m, err := fdpass.Recv(conn, buf[:], 1, 0)
	if err != nil {
		return -1, fmt.Errorf("borrow %s: %w", path, err)
	}
	fd, err = lentBy(m, buf[:m.N], path)
	if err != nil {
		return -1, err
	}
	if err := checkLent(fd, own); err != nil {
		unix.Close(fd)
		return -1, fmt.Errorf("borrow %s: %w", path, err)
	}
	return fd, nil
}

// dialLender connects to a lender; the caller owns the conversation.
func dialLender(path string) (int, error) {
	conn, err := unix.Socket(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, os.NewSyscallError("socket", err)
	}
	limit := unix.NsecToTimeval(BorrowTime.Nanoseconds())
	err = errors.Join(
		unix.SetsockoptTimeval(conn, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &limit),
		unix.SetsockoptTimeval(conn, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &limit))
	if err == nil {
		err = withShortPath(path, func(p string) error {
			for {
				err := unix.Connect(conn, &unix.SockaddrUnix{Name: p})
				if err != unix.EINTR {
					return err
				}
			}
		})
	}
	if err != nil {
		unix.Close(conn)
		return -1, fmt.Errorf("borrow %s: %w", path, err)
	}
	return conn, nil
}

// lentBy reads an answer; it owns the message's descriptors.
func lentBy(m fdpass.Message, packet []byte, path string) (int, error) {
	answer, err := ParseLoanAnswer(packet)
	switch {
	case err == nil && answer.Verdict == Lent && len(m.FDs) == 1:
		return m.FDs[0], nil
	case len(packet) == 0:
		err = errors.New("the lender ended the conversation")
	case err == nil && answer.Verdict == Lent:
		err = errors.New("the lender's answer has no socket")
	case err == nil:
		err = &LoanError{Path: path, Verdict: answer.Verdict, Reason: answer.Reason}
	}
	m.Close()
	var refused *LoanError
	if !errors.As(err, &refused) {
		err = fmt.Errorf("borrow %s: %w", path, err)
	}
	return -1, err
}

// checkLent lets nothing through that the borrower did not ask for: whoever
// may write into the directory can answer there.
func checkLent(lent, own int) error {
	theirs, err := FormOf(lent)
	if err != nil {
		return fmt.Errorf("what was lent: %w", err)
	}
	ours, err := FormOf(own)
	if err != nil {
		return fmt.Errorf("the borrower's socket: %w", err)
	}
	if theirs != ours {
		return fmt.Errorf("what was lent is a socket of %s, the borrower's is one of %s", theirs, ours)
	}
	listening, err := unix.GetsockoptInt(lent, unix.SOL_SOCKET, unix.SO_ACCEPTCONN)
	if err == nil && theirs.Type == unix.SOCK_STREAM && listening == 0 {
		err = errors.New("what was lent does not listen")
	}
	return err
}
