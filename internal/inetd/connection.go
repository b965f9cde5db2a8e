package inetd

import (
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"socketbox/internal/handoff"
)

// connection is a received connection and what the kernel says of it.
type connection struct {
	fd       int // owned; -1 once only the child has it
	listener string
	received time.Time
	source   source

	network       string // "TCP" or "UNIX"
	remote, local netip.AddrPort
	zone          string // of a link-local remote or local address

	remotePath, localPath string      // Unix: a path, "@name", or "" if unnamed
	cred                  *unix.Ucred // Unix: the peer
}

// source is what --max-per-source counts by: an IPv4 address, the /64 of an
// IPv6 address (one customer, one machine), or a Unix peer's uid.
type source struct {
	addr netip.Addr
	uid  uint32
}

// errGone says that the client has gone before its connection was looked at.
var errGone = errors.New("the client has gone")

// describe takes over the hand-off's descriptor, also on an error.
//
// The socket gets back the blocking mode that accept(2) would have given it;
// nothing else of it is touched.
func describe(conn handoff.Conn, now time.Time) (*connection, error) {
	c := &connection{fd: conn.FD, listener: conn.Header.Listener, received: now}
	if err := c.ask(); err != nil {
		unix.Close(c.fd)
		return nil, err
	}
	return c, nil
}

func (c *connection) ask() error {
	if err := restoreBlocking(c.fd); err != nil {
		return err
	}
	remote, err := unix.Getpeername(c.fd)
	if err == unix.ENOTCONN {
		return errGone
	}
	if err != nil {
		return fmt.Errorf("getpeername: %w", err)
	}
	local, err := unix.Getsockname(c.fd)
	if err != nil {
		return fmt.Errorf("getsockname: %w", err)
	}
	switch remote := remote.(type) {
	case *unix.SockaddrInet4, *unix.SockaddrInet6:
		c.setTCP(remote, local)
	case *unix.SockaddrUnix:
		return c.setUnix(remote, local)
	default:
		return fmt.Errorf("getpeername: an address of type %T", remote)
	}
	return nil
}

func restoreBlocking(fd int) error {
	flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
	if err == nil && flags&unix.O_NONBLOCK != 0 {
		_, err = unix.FcntlInt(uintptr(fd), unix.F_SETFL, flags&^unix.O_NONBLOCK)
	}
	if err != nil {
		return fmt.Errorf("restore blocking mode: %w", err)
	}
	return nil
}

func (c *connection) setTCP(remote, local unix.Sockaddr) {
	c.network = "TCP"
	c.remote = c.addrPort(remote)
	c.local = c.addrPort(local)
	c.source.addr = c.remote.Addr()
	if c.source.addr.Is6() {
		prefix, _ := c.source.addr.Prefix(64)
		c.source.addr = prefix.Addr()
	}
}

// addrPort unmaps v4-mapped addresses and notes the zone of link-local ones.
func (c *connection) addrPort(address unix.Sockaddr) netip.AddrPort {
	switch a := address.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(a.Addr), uint16(a.Port))
	case *unix.SockaddrInet6:
		if a.ZoneId != 0 {
			c.zone = interfaceName(c.fd, a.ZoneId)
		}
		return netip.AddrPortFrom(netip.AddrFrom16(a.Addr).Unmap(), uint16(a.Port))
	}
	return netip.AddrPort{}
}

// interfaceName asks the socket itself (netdevice(7)): the interface is one
// of the socket's network namespace, not of ours.
func interfaceName(fd int, index uint32) string {
	request, err := unix.NewIfreq("-")
	if err == nil {
		request.SetUint32(index)
		if unix.IoctlIfreq(fd, unix.SIOCGIFNAME, request) == nil {
			return request.Name()
		}
	}
	return strconv.FormatUint(uint64(index), 10)
}

func (c *connection) setUnix(remote, local unix.Sockaddr) error {
	c.network = "UNIX"
	c.remotePath = unixName(remote)
	c.localPath = unixName(local)
	cred, err := unix.GetsockoptUcred(c.fd, unix.SOL_SOCKET, unix.SO_PEERCRED)
	if err != nil {
		return fmt.Errorf("getsockopt SO_PEERCRED: %w", err)
	}
	c.cred = cred
	c.source.uid = cred.Uid
	return nil
}

// unixName returns a path, "@name" for an abstract address, or "" for an
// unnamed socket, which x/sys calls "@".
func unixName(address unix.Sockaddr) string {
	if a, ok := address.(*unix.SockaddrUnix); ok && a.Name != "@" {
		return a.Name
	}
	return ""
}

// client names the peer, for logs.
func (c *connection) client() string {
	switch {
	case c.network == "TCP":
		return netip.AddrPortFrom(c.withZone(c.remote.Addr()), c.remote.Port()).String()
	case c.remotePath != "":
		return c.remotePath
	}
	return "uid=" + strconv.FormatUint(uint64(c.cred.Uid), 10)
}

func (c *connection) withZone(a netip.Addr) netip.Addr {
	if c.zone != "" && a.Is6() && a.IsLinkLocalUnicast() {
		return a.WithZone(c.zone)
	}
	return a
}

// refuse ends a connection that can't be served in a way that its client can
// tell from a served one: a reset.
func (c *connection) refuse() {
	unix.SetsockoptLinger(c.fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
	c.close()
}

func (c *connection) close() {
	if c.fd >= 0 {
		unix.Close(c.fd)
		c.fd = -1
	}
}
