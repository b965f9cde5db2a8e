package handoff

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// Forms are the kinds of socket that a listener may be, in the order in which a
// borrower without a preference asks for them: one that takes both families
// before one of each, and UDP last.
var Forms = []Form{
	{Domain: unix.AF_INET6, Type: unix.SOCK_STREAM, Protocol: unix.IPPROTO_TCP},
	{Domain: unix.AF_INET6, Type: unix.SOCK_STREAM, Protocol: unix.IPPROTO_TCP, V6Only: true},
	{Domain: unix.AF_INET, Type: unix.SOCK_STREAM, Protocol: unix.IPPROTO_TCP},
	{Domain: unix.AF_INET6, Type: unix.SOCK_DGRAM, Protocol: unix.IPPROTO_UDP},
	{Domain: unix.AF_INET6, Type: unix.SOCK_DGRAM, Protocol: unix.IPPROTO_UDP, V6Only: true},
	{Domain: unix.AF_INET, Type: unix.SOCK_DGRAM, Protocol: unix.IPPROTO_UDP},
}

// Socket makes a new socket of that form, close-on-exec, to show it to a lender.
// The caller closes it.
func (f Form) Socket() (int, error) {
	fd, err := unix.Socket(f.Domain, f.Type|unix.SOCK_CLOEXEC, f.Protocol)
	if err != nil {
		return -1, os.NewSyscallError("socket", err)
	}
	if f.Domain != unix.AF_INET6 {
		return fd, nil
	}
	only := 0
	if f.V6Only {
		only = 1
	}
	if err := unix.SetsockoptInt(fd, unix.SOL_IPV6, unix.IPV6_V6ONLY, only); err != nil {
		unix.Close(fd)
		return -1, os.NewSyscallError("setsockopt IPV6_V6ONLY", err)
	}
	return fd, nil
}

// BorrowAny is Borrow for whoever can work with any socket: it asks at path for
// one form after another. The caller owns fd.
func BorrowAny(path string, backlog int) (fd int, f Form, err error) {
	for _, f := range Forms {
		own, socketErr := f.Socket()
		if socketErr != nil {
			err = errors.Join(err, socketErr)
			continue // a machine without IPv6
		}
		fd, borrowErr := Borrow(path, own, backlog)
		unix.Close(own)
		var refused *LoanError
		switch {
		case borrowErr == nil:
			return fd, f, nil
		case !errors.As(borrowErr, &refused) || refused.Verdict != TakeConnections:
			return -1, Form{}, borrowErr
		}
		err = borrowErr
	}
	return -1, Form{}, err
}
