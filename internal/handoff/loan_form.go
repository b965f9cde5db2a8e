package handoff

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// Form is what the code of a borrower depends on: it may have only IPv4
// addresses in its access lists, or another socket for the other family. A
// listener is lent to borrowers of its own form alone.
type Form struct {
	Domain   int // unix.AF_INET, ...
	Type     int // unix.SOCK_STREAM, ...
	Protocol int // unix.IPPROTO_TCP, ...
	V6Only   bool
}

// FormOf asks the kernel for the form of a socket. A socket of MPTCP has the
// form of TCP: whoever accepts from the one can accept from the other.
func FormOf(fd int) (f Form, err error) {
	get := func(level, name int) (value int) {
		if err == nil {
			value, err = unix.GetsockoptInt(fd, level, name)
		}
		return value
	}
	f.Domain = get(unix.SOL_SOCKET, unix.SO_DOMAIN)
	f.Type = get(unix.SOL_SOCKET, unix.SO_TYPE)
	f.Protocol = get(unix.SOL_SOCKET, unix.SO_PROTOCOL)
	if f.Domain == unix.AF_INET6 {
		f.V6Only = get(unix.SOL_IPV6, unix.IPV6_V6ONLY) != 0
	}
	if f.Protocol == unix.IPPROTO_MPTCP {
		f.Protocol = unix.IPPROTO_TCP
	}
	if err != nil {
		return Form{}, fmt.Errorf("look at a socket: %w", err)
	}
	return f, nil
}

// String is for messages: "IPv4 TCP", "IPv6 TCP", "TCP of both families".
func (f Form) String() string {
	protocol := fmt.Sprintf("type %d, protocol %d", f.Type, f.Protocol)
	switch {
	case f.Type == unix.SOCK_STREAM && f.Protocol == unix.IPPROTO_TCP:
		protocol = "TCP"
	case f.Type == unix.SOCK_DGRAM && f.Protocol == unix.IPPROTO_UDP:
		protocol = "UDP"
	}
	switch {
	case f.Domain == unix.AF_INET:
		return "IPv4 " + protocol
	case f.Domain == unix.AF_INET6 && f.V6Only:
		return "IPv6 " + protocol
	case f.Domain == unix.AF_INET6:
		return protocol + " of both families"
	case f.Domain == unix.AF_UNIX:
		return "Unix " + protocol
	}
	return fmt.Sprintf("domain %d %s", f.Domain, protocol)
}
