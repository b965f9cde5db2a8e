// Package peer is what the kernel says of a connection that was received: who
// is at its ends, and by what its client counts. It trusts nothing but the
// socket, and needs no privilege.
package peer

import (
	"errors"
	"fmt"
	"net/netip"
	"strconv"

	"golang.org/x/sys/unix"
)

// Networks of a connection, as tcpserver and its like spell them.
const (
	TCP  = "TCP"
	Unix = "UNIX"
)

// Facts are the ends of a connection.
type Facts struct {
	Network string // TCP or Unix
	Source  Source

	Remote, Local netip.AddrPort // TCP: unmapped, without zone
	Zone          string         // TCP: of a link-local remote or local address

	RemotePath, LocalPath string      // Unix: a path, "@name", or "" if unnamed
	Cred                  *unix.Ucred // Unix: the peer
}

// Source is what limits for one client count by: an IPv4 address, the /64 of
// an IPv6 address (one customer, one machine), or a Unix peer's uid.
type Source struct {
	Addr netip.Addr
	UID  uint32
}

// ErrGone says that the client has gone before its connection was looked at.
var ErrGone = errors.New("the client has gone")

// Of asks the kernel about the stream socket fd, which stays the caller's.
func Of(fd int) (Facts, error) {
	remote, err := unix.Getpeername(fd)
	if err == unix.ENOTCONN {
		return Facts{}, ErrGone
	}
	if err != nil {
		return Facts{}, fmt.Errorf("getpeername: %w", err)
	}
	local, err := unix.Getsockname(fd)
	if err != nil {
		return Facts{}, fmt.Errorf("getsockname: %w", err)
	}
	switch remote := remote.(type) {
	case *unix.SockaddrInet4, *unix.SockaddrInet6:
		return ofTCP(fd, remote, local), nil
	case *unix.SockaddrUnix:
		return ofUnix(fd, remote, local)
	}
	return Facts{}, fmt.Errorf("getpeername: an address of type %T", remote)
}

func ofTCP(fd int, remote, local unix.Sockaddr) Facts {
	f := Facts{Network: TCP}
	f.Remote = f.addrPort(fd, remote)
	f.Local = f.addrPort(fd, local)
	f.Source = SourceOf(f.Remote.Addr())
	return f
}

// SourceOf returns what a TCP client with this address, unmapped, counts by.
func SourceOf(a netip.Addr) Source {
	if a.Is6() {
		prefix, _ := a.Prefix(64) // fails for lengths above 128 only
		a = prefix.Addr()
	}
	return Source{Addr: a}
}

// addrPort unmaps v4-mapped addresses and notes the zone of link-local ones.
func (f *Facts) addrPort(fd int, address unix.Sockaddr) netip.AddrPort {
	switch a := address.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(a.Addr), uint16(a.Port))
	case *unix.SockaddrInet6:
		if a.ZoneId != 0 {
			f.Zone = interfaceName(fd, a.ZoneId)
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

func ofUnix(fd int, remote, local unix.Sockaddr) (Facts, error) {
	cred, err := unix.GetsockoptUcred(fd, unix.SOL_SOCKET, unix.SO_PEERCRED)
	if err != nil {
		return Facts{}, fmt.Errorf("getsockopt SO_PEERCRED: %w", err)
	}
	return Facts{
		Network: Unix, Source: Source{UID: cred.Uid}, Cred: cred,
		RemotePath: unixName(remote), LocalPath: unixName(local),
	}, nil
}

// unixName returns a path, "@name" for an abstract address, or "" for an
// unnamed socket, which x/sys calls "@".
func unixName(address unix.Sockaddr) string {
	if a, ok := address.(*unix.SockaddrUnix); ok && a.Name != "@" {
		return a.Name
	}
	return ""
}

// Client names the peer, for logs.
func (f *Facts) Client() string {
	switch {
	case f.Network == TCP:
		return netip.AddrPortFrom(f.WithZone(f.Remote.Addr()), f.Remote.Port()).String()
	case f.RemotePath != "":
		return f.RemotePath
	}
	return "uid=" + strconv.FormatUint(uint64(f.Cred.Uid), 10)
}

// LogAttrs is what a line of the log about the connection begins with.
func (f *Facts) LogAttrs(listener string) []any {
	args := []any{"client", f.Client()}
	if f.Network == TCP {
		args = append(args, "local", f.Local.String())
	} else if f.LocalPath != "" {
		args = append(args, "local", f.LocalPath)
	}
	if listener != "" {
		args = append(args, "listener", listener)
	}
	return args
}

// WithZone gives a link-local address of this connection its interface.
func (f *Facts) WithZone(a netip.Addr) netip.Addr {
	if f.Zone != "" && a.Is6() && a.IsLinkLocalUnicast() {
		return a.WithZone(f.Zone)
	}
	return a
}

// Reset ends a connection that can't be served in a way that its client can
// tell from a served one. It owns fd.
func Reset(fd int) {
	unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
	unix.Close(fd)
}
