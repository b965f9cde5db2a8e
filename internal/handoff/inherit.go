package handoff

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// Inherit makes a receiver of a socket that the service manager has bound
// (sd_listen_fds(3)): a bound Unix datagram socket, of which it takes over
// fd, also on an error. Mode and Group of o are the service manager's affair.
// The path is never unlinked, and Shutdown leaves the socket open to senders.
func Inherit(fd int, o Options) (*Receiver, error) {
	path, err := checkInherited(fd)
	if err == nil && o.From >= 0 {
		err = os.NewSyscallError("setsockopt SO_PASSCRED", unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PASSCRED, 1))
	}
	if err == nil {
		err = os.NewSyscallError("set non-blocking", unix.SetNonblock(fd, true))
	}
	if err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("receive on inherited descriptor %d: %w", fd, err)
	}
	unix.CloseOnExec(fd)
	return &Receiver{fd: fd, path: path, from: o.From, shared: true}, nil
}

// checkInherited returns the path that the socket fd is bound to.
func checkInherited(fd int) (string, error) {
	kind, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TYPE)
	if err != nil {
		return "", os.NewSyscallError("getsockopt SO_TYPE", err)
	}
	bound, err := unix.Getsockname(fd)
	if err != nil {
		return "", os.NewSyscallError("getsockname", err)
	}
	address, ok := bound.(*unix.SockaddrUnix)
	if !ok || kind != unix.SOCK_DGRAM {
		return "", &HintError{errors.New("it is no Unix datagram socket"), "in a socket unit: ListenDatagram=/run/socketbox/PORT.sock"}
	}
	if address.Name == "" || address.Name[0] == '@' { // unnamed, or abstract
		return "", errors.New("it is bound to no path")
	}
	return address.Name, nil
}
