package handoff

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"socketbox/internal/fdpass"
)

// RecvLoanRequest takes a borrower's request off the conversation conn,
// without waiting: EAGAIN when it has not come. own is the socket that the
// borrower shows, close-on-exec; the caller owns it, and closes it with
// CloseShown. It may be anything: only that it is one descriptor is checked.
func RecvLoanRequest(conn int) (q LoanRequest, own int, err error) {
	var buf [MaxLoanRequest]byte
	m, err := fdpass.Recv(conn, buf[:], 1, unix.MSG_DONTWAIT)
	if err != nil {
		return LoanRequest{}, -1, err
	}
	q, err = ParseLoanRequest(buf[:m.N])
	if err == nil && len(m.FDs) != 1 {
		err = errors.New("a request without the borrower's socket")
	}
	if err != nil {
		for _, fd := range m.FDs {
			CloseShown(fd)
		}
		return LoanRequest{}, -1, err
	}
	return q, m.FDs[0], nil
}

// CloseShown closes a socket that a borrower has shown. With SO_LINGER set and
// bytes unsent, close would wait for the borrower's pleasure.
func CloseShown(own int) {
	unix.SetsockoptLinger(own, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{})
	unix.Close(own)
}

// SendLoanAnswer answers on the conversation conn, without waiting: its buffer
// is empty, or the borrower has not kept to the wire. fd is the socket that is
// lent, which stays the caller's; it is used with the verdict Lent alone.
func SendLoanAnswer(conn int, a LoanAnswer, fd int) error {
	var fds []int
	if a.Verdict == Lent {
		fds = []int{fd}
	}
	if err := fdpass.Send(conn, a.Append(nil), fds...); err != nil {
		return fmt.Errorf("answer a borrower: %w", err)
	}
	return nil
}
