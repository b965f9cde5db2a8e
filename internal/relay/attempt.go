package relay

import (
	"errors"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"

	"socketbox/internal/listen"
	"socketbox/internal/peer"
)

// attempt is one socket on its way.
type attempt struct {
	fd int // 0: none
	to goal
}

func (a *attempt) close() {
	if a.fd != 0 {
		closeFD(a.fd)
		*a = attempt{}
	}
}

// launch makes a socket where it belongs and has it connect. The connection is
// established when launch returns, or an attempt flies, or there is an error.
func (d *dial) launch(to goal) error {
	w := d.c.w
	if err := w.goWhere(d.c); err != nil {
		return err
	}
	fd, err := d.socket(to)
	if err != nil {
		return err
	}
	i := d.slot()
	switch err := d.connect(fd, to); {
	case err == nil:
		if err := w.watch(fd, edge, d.c.about(aboutAttempt+i), d.c.slot); err != nil {
			closeFD(fd)
			return err
		}
		d.landed(fd, i, to)
		return nil
	case errors.Is(err, unix.EINPROGRESS):
		if err := w.watch(fd, edge, d.c.about(aboutAttempt+i), d.c.slot); err != nil {
			closeFD(fd)
			return err
		}
		d.attempts[i] = attempt{fd: fd, to: to}
		d.flying++
		return nil
	default:
		closeFD(fd)
		return fmt.Errorf("connect to %s: %w", to, err)
	}
}

// slot returns a free place among the attempts; there is one.
func (d *dial) slot() int {
	for i := range d.attempts {
		if d.attempts[i].fd == 0 {
			return i
		}
	}
	return maxAttempts - 1
}

// socket makes a socket for to, in the namespace that the thread is in.
func (d *dial) socket(to goal) (int, error) {
	family := unix.AF_UNIX
	protocol := 0
	if to.unix == "" {
		// By name: protocol 0 may be turned into MPTCP by a BPF program.
		family, protocol = unix.AF_INET6, unix.IPPROTO_TCP
		if to.addr.Addr().Is4() {
			family = unix.AF_INET
		}
	}
	fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, protocol)
	if err != nil {
		return -1, fmt.Errorf("make a socket for %s: %w", to, err)
	}
	err = d.check(fd)
	if err == nil && to.unix == "" {
		if !to.addr.Addr().IsLoopback() {
			d.c.w.relay.keepAlive(fd)
		}
		err = d.masquerade(fd, to.addr.Addr())
	}
	if err != nil {
		closeFD(fd)
		return -1, err
	}
	return fd, nil
}

// check refuses the default destination in the listener's own namespace.
func (d *dial) check(fd int) error {
	if d.current.kind != toDialled {
		return nil
	}
	p := &d.c.w.place
	if p.cookie == 0 {
		var err error
		if p.cookie, err = cookieOf(fd); err != nil {
			return err
		}
	}
	theirs, err := cookieOf(d.c.client.fd)
	if err != nil {
		return err
	}
	if theirs == p.cookie {
		return errSameNamespace
	}
	return nil
}

// masquerade gives the socket the client's address as its own.
func (d *dial) masquerade(fd int, to netip.Addr) error {
	from := d.c.facts.Remote
	if !d.c.w.relay.o.Transparent {
		return nil
	}
	if d.c.facts.Network != peer.TCP || from.Addr().Is4() != to.Is4() {
		return fmt.Errorf("--transparent: the client %s has no address of the family of %s", d.c.facts.Client(), to)
	}
	var errno unix.Errno
	if to.Is4() {
		errno = setInt(fd, unix.SOL_IP, unix.IP_TRANSPARENT, 1)
	} else {
		errno = setInt(fd, unix.SOL_IPV6, unix.IPV6_TRANSPARENT, 1)
	}
	if errno != 0 {
		return fmt.Errorf("set IP_TRANSPARENT: %w", errno)
	}
	setInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1) // the port may linger from an earlier connection
	err := unix.Bind(fd, d.sockaddr(fd, from))
	if err == unix.EADDRINUSE {
		err = unix.Bind(fd, d.sockaddr(fd, netip.AddrPortFrom(from.Addr(), 0)))
	}
	if err != nil {
		return fmt.Errorf("bind the client's address %s: %w", from, err)
	}
	return nil
}

// connect begins to connect fd; EINPROGRESS is what usually comes of it.
func (d *dial) connect(fd int, to goal) error {
	if to.unix != "" {
		return unix.Connect(fd, &unix.SockaddrUnix{Name: to.unix})
	}
	return unix.Connect(fd, d.sockaddr(fd, to.addr))
}

// sockaddr is the kernel's form of an address; the interface of a link-local
// one is looked up in the namespace of the socket fd.
func (d *dial) sockaddr(fd int, a netip.AddrPort) unix.Sockaddr {
	if a.Addr().Is4() {
		return &unix.SockaddrInet4{Addr: a.Addr().As4(), Port: int(a.Port())}
	}
	zone, _ := listen.InterfaceIndex(fd, a.Addr().Zone()) // 0: connect says so
	return &unix.SockaddrInet6{Addr: a.Addr().As16(), Port: int(a.Port()), ZoneId: zone}
}

// event: an attempt has succeeded or failed.
func (d *dial) event(i int, events uint32) {
	a := &d.attempts[i]
	if a.fd == 0 {
		return
	}
	var err error
	if events&(unix.EPOLLERR|unix.EPOLLHUP) != 0 {
		code, _ := unix.GetsockoptInt(a.fd, unix.SOL_SOCKET, unix.SO_ERROR)
		if err = unix.Errno(code); code == 0 {
			err = nil // connected, and closed again by the destination
		}
	} else if events&unix.EPOLLOUT == 0 {
		return
	}
	if err == nil {
		fd, to := a.fd, a.to
		*a = attempt{}
		note(&d.c.destination, events)
		d.landed(fd, i, to)
		return
	}
	d.err = fmt.Errorf("connect to %s: %w", a.to, err)
	a.close()
	d.flying--
	d.tryNext()
}

// landed ends the search.
func (d *dial) landed(fd, i int, to goal) {
	c := d.c
	d.won = to.String()
	d.stop()
	c.w.timers.set(c, 0)
	c.established(fd, i)
}
