package listen

import (
	"errors"
	"net/netip"

	"golang.org/x/sys/unix"
)

// OpenAll opens all listeners, in their order. Where any fails it closes the
// others and returns every error, joined. The caller owns the descriptors.
func OpenAll(ds []Description) (fds []int, err error) {
	var errs []error
	for _, d := range ds {
		fd, err := Open(d)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		fds = append(fds, fd)
	}
	if len(errs) > 0 {
		for _, fd := range fds {
			unix.Close(fd)
		}
		return nil, errors.Join(errs...)
	}
	return fds, nil
}

// Open returns a listening socket, non-blocking and close-on-exec, that the
// caller owns. The process stays in its network namespace. Errors are *Error.
func Open(d Description) (fd int, err error) {
	if wrong := d.Check(); len(wrong) > 0 {
		return -1, &Error{Op: "bind", Object: d.object(), Err: wrong[0]}
	}
	open := d.openIP
	if d.Network == Unix {
		open = d.openUnix
	}
	if d.NetNS == "" {
		return open()
	}
	fd = -1
	err = inNamespace(d.NetNS, func() error {
		fd, err = open()
		return err
	})
	return fd, err
}

// openIP sets every option before bind and lets listen follow at once: a TCP
// socket that is bound and does not listen can be taken over by any uid with
// SO_REUSEADDR.
func (d Description) openIP() (int, error) {
	// IPPROTO_TCP by name: protocol 0 may be turned into MPTCP by a BPF
	// program, and receivers and borrowers expect plain TCP.
	kind, protocol := unix.SOCK_STREAM, unix.IPPROTO_TCP
	if d.Network == UDP {
		kind, protocol = unix.SOCK_DGRAM, unix.IPPROTO_UDP
	}
	fd, err := unix.Socket(d.domain(), kind|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, protocol)
	if err != nil {
		return -1, d.fail("make a socket for", err)
	}
	if err := d.bindIP(fd); err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

func (d Description) bindIP(fd int) error {
	if err := d.setOptions(fd); err != nil {
		return err
	}
	address, err := d.sockaddr(fd)
	if err != nil {
		return err
	}
	if err := unix.Bind(fd, address); err != nil {
		return d.fail("bind", err)
	}
	if d.Network == UDP {
		return nil
	}
	if err := unix.Listen(fd, d.backlog()); err != nil {
		return d.fail("listen on", err)
	}
	return nil
}

func (d Description) domain() int {
	switch {
	case d.Network == Unix:
		return unix.AF_UNIX
	case d.Address.Is4():
		return unix.AF_INET
	}
	return unix.AF_INET6
}

func (d Description) backlog() int {
	if d.Backlog == 0 {
		return DefaultBacklog
	}
	return d.Backlog
}

func (d Description) sockaddr(fd int) (unix.Sockaddr, error) {
	if d.Address.Is4() {
		return &unix.SockaddrInet4{Port: int(d.Port), Addr: d.Address.As4()}, nil
	}
	zone, err := InterfaceIndex(fd, d.Zone)
	if err != nil {
		return nil, d.fail("find interface "+d.Zone+" for", err)
	}
	return &unix.SockaddrInet6{Port: int(d.Port), Addr: d.Address.As16(), ZoneId: zone}, nil
}

// addressOf is the reverse of sockaddr.
func addressOf(address unix.Sockaddr) (addr netip.Addr, zone uint32, port uint16) {
	switch a := address.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrFrom4(a.Addr), 0, uint16(a.Port)
	case *unix.SockaddrInet6:
		return netip.AddrFrom16(a.Addr), a.ZoneId, uint16(a.Port)
	}
	return netip.Addr{}, 0, 0
}
