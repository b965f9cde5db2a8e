package dispatch

import (
	"net/netip"
	"unsafe"

	"golang.org/x/sys/unix"

	"socketbox/internal/fdpass"
	"socketbox/internal/handoff"
	"socketbox/internal/privsep"
)

// listener is a listening socket with what the plan says about it.
type listener struct {
	ListenerPlan
	fd     int // -1: kept by the binder
	index  int // in the plan; what rules and counters go by
	packet *fdpass.Packet
	mapped *fdpass.Packet // for an IPv4 connection that stayed AF_INET6

	// direct is set where no rule has to be asked: every connection of the
	// family goes to this route, by rule sole (-1: none).
	direct  [privsep.Unix + 1]*route
	sole    int
	looks   bool     // at each connection nevertheless: rule sole has a limit, or its target goes by the client's address
	asks    bool     // getsockname is needed: a rule or target looks at what the client dialled
	removed bool     // by a reload
	meter   *meter   // of its own limit; nil: none
	paced   []*meter // that let it accept no faster
	lately  int      // connections in the backlog when last asked
	assumed int      // times since that one was taken for granted
	paused  int      // reasons why it is out of the epoll set
}

func newListener(p ListenerPlan, fd, index int) *listener {
	return &listener{
		ListenerPlan: p, fd: fd, index: index, sole: -1, meter: newMeter(p.Limit),
		packet: fdpass.NewPacket(handoff.Header{Listener: p.Name}.Append(nil)),
		mapped: fdpass.NewPacket(handoff.Header{Listener: p.Name, Flags: handoff.FlagMapped}.Append(nil)),
	}
}

// families are those that connections of this listener can have.
func (l *listener) families() []privsep.Family {
	if l.Family == privsep.NoFamily {
		return []privsep.Family{privsep.IPv4, privsep.IPv6}
	}
	return []privsep.Family{l.Family}
}

// accept takes one connection off the backlog, without waiting; its peer is
// in w.peer. The socket stays as the kernel made it.
func (w *worker) accept(l *listener) (int, unix.Errno) {
	w.peerLen = unix.SizeofSockaddrAny
	fd, _, errno := unix.RawSyscall6(unix.SYS_ACCEPT4, uintptr(l.fd), uintptr(unsafe.Pointer(&w.peer)),
		uintptr(unsafe.Pointer(&w.peerLen)), unix.SOCK_CLOEXEC, 0, 0)
	return int(fd), errno
}

// expected returns how many connections to take off the backlog of l, which is
// ready. After one that came alone the kernel is asked every fourth time only:
// where there was one more, the next wait ends at once.
func (w *worker) expected(l *listener) int {
	if l.lately == 1 && l.assumed < 3 {
		l.assumed++
		return 1
	}
	l.assumed = 0
	l.lately = w.queued(l)
	return l.lately
}

// queued returns how many connections are in the backlog of l, which is ready:
// for a listening TCP socket TCP_INFO has that in tcpi_unacked (tcp_get_info in
// the kernel's net/ipv4/tcp.c). Of others it is only known that there is one.
func (w *worker) queued(l *listener) int {
	if l.Family == privsep.Unix {
		return 1
	}
	size := uint32(unsafe.Offsetof(w.tcpInfo.Unacked) + unsafe.Sizeof(w.tcpInfo.Unacked))
	_, _, errno := unix.RawSyscall6(unix.SYS_GETSOCKOPT, uintptr(l.fd), unix.IPPROTO_TCP, unix.TCP_INFO,
		uintptr(unsafe.Pointer(&w.tcpInfo)), uintptr(unsafe.Pointer(&size)), 0)
	if errno != 0 {
		return 1
	}
	return max(int(w.tcpInfo.Unacked), 1)
}

// mappedPrefix begins the IPv6 form of an IPv4 address (RFC 4291, 2.5.5.2).
var mappedPrefix = [12]byte{10: 0xff, 11: 0xff}

// peerFamily returns the family of the peer, and whether it is an IPv4 peer
// in IPv6 clothes.
func (w *worker) peerFamily() (f privsep.Family, mapped bool) {
	switch w.peer.Addr.Family {
	case unix.AF_INET:
		return privsep.IPv4, false
	case unix.AF_INET6:
		sa := (*unix.RawSockaddrInet6)(unsafe.Pointer(&w.peer))
		if [12]byte(sa.Addr[:12]) == mappedPrefix {
			return privsep.IPv4, true
		}
		return privsep.IPv6, false
	default:
		return privsep.Unix, false
	}
}

// address reads a socket address as rules see it: unmapped, without zone.
func address(sa *unix.RawSockaddrAny) (netip.Addr, uint16) {
	switch sa.Addr.Family {
	case unix.AF_INET:
		in := (*unix.RawSockaddrInet4)(unsafe.Pointer(sa))
		return netip.AddrFrom4(in.Addr), in.Port>>8 | in.Port<<8
	case unix.AF_INET6:
		in := (*unix.RawSockaddrInet6)(unsafe.Pointer(sa))
		return netip.AddrFrom16(in.Addr).Unmap(), in.Port>>8 | in.Port<<8
	default:
		return netip.Addr{}, 0
	}
}

// look completes what rules may look at. Where the listener is bound to one
// address and port, that is known without a system call.
func (w *worker) look(c *connection) {
	c.looked = true
	c.facts.Listener, c.facts.Port, c.facts.Local = c.l.index, c.l.Port, c.l.Address
	if c.l.asks {
		size := uint32(unix.SizeofSockaddrAny)
		_, _, errno := unix.RawSyscall(unix.SYS_GETSOCKNAME, uintptr(c.fd), uintptr(unsafe.Pointer(&w.local)), uintptr(unsafe.Pointer(&size)))
		if errno == 0 {
			c.facts.Local, c.facts.Port = address(&w.local)
		}
	}
}

// unmap makes a true AF_INET socket of an IPv4 connection that a two-family
// listener accepted (IPV6_ADDRFORM, ipv6(7)). The kernel refuses once the
// client has closed its side: then the socket is sent as it is, marked.
func unmap(fd int) bool {
	form := int32(unix.AF_INET)
	_, _, errno := unix.RawSyscall6(unix.SYS_SETSOCKOPT, uintptr(fd), unix.SOL_IPV6, unix.IPV6_ADDRFORM,
		uintptr(unsafe.Pointer(&form)), unsafe.Sizeof(form), 0)
	return errno == 0
}

// reset closes fd so that its client sees RST, not an orderly end: nobody
// took the connection. For a Unix connection it is a plain close.
func reset(fd int) {
	linger := unix.Linger{Onoff: 1}
	unix.RawSyscall6(unix.SYS_SETSOCKOPT, uintptr(fd), unix.SOL_SOCKET, unix.SO_LINGER,
		uintptr(unsafe.Pointer(&linger)), unsafe.Sizeof(linger), 0)
	closeFD(fd)
}

// closeFD closes without telling the scheduler: close of a socket that has
// another owner, or that is reset, does not block.
func closeFD(fd int) { unix.RawSyscall(unix.SYS_CLOSE, uintptr(fd), 0, 0) }
