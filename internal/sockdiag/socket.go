package sockdiag

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"
)

// State is the state of a TCP socket, as in tcp(7) and the kernel's tcp_states.h.
type State uint8

// The states.
const (
	Established State = iota + 1
	SynSent
	SynReceived
	FinWait1
	FinWait2
	TimeWait
	Close
	CloseWait
	LastAck
	Listen
	Closing
	newSynReceived
)

var stateNames = [...]string{"unknown", "established", "syn-sent", "syn-recv", "fin-wait-1", "fin-wait-2",
	"time-wait", "close", "close-wait", "last-ack", "listening", "closing", "syn-recv"}

// String is the state as ss(8) spells it.
func (s State) String() string {
	if int(s) >= len(stateNames) {
		return stateNames[0]
	}
	return stateNames[s]
}

// States is a set of states.
type States uint32

// StatesOf returns a set.
func StatesOf(list ...State) States {
	var set States
	for _, s := range list {
		set |= 1 << s
	}
	return set
}

// Connections are the states of a socket that once was accepted, but for
// TIME_WAIT, which has no socket any more.
var Connections = StatesOf(Established, FinWait1, FinWait2, CloseWait, LastAck, Closing, Close)

// Listening is the state of a listener.
var Listening = StatesOf(Listen)

// Socket is what the kernel says of a TCP socket (struct inet_diag_msg).
type Socket struct {
	Family uint8 // AF_INET or AF_INET6, of the socket: an IPv4 peer's may be AF_INET6
	State  State

	Local, Remote netip.AddrPort // as the kernel has them: not unmapped, without zone
	Interface     uint32         // index of the one that it is bound to, 0: none
	Cookie        uint64         // SO_COOKIE: never used twice while the machine is up

	RecvQueue uint32 // bytes to read; of a listener: connections to accept
	SendQueue uint32 // bytes not acknowledged; of a listener: its backlog
	UID       uint32
	Inode     uint32 // of its file; 0: no process has it (not accepted yet, or closed)

	Cgroup      uint64 // ID of the v2 cgroup in which it was made; 0: the kernel did not say
	Transparent bool   // IP_TRANSPARENT, which accepted sockets have from their listener

	Info *Info // nil if not asked for, or not there
}

// Info is a part of struct tcp_info.
type Info struct {
	RTT, RTTVar time.Duration
	MinRTT      time.Duration
	Sent        uint64        // bytes that the other side has acknowledged
	Received    uint64        // bytes
	Retransmits uint32        // segments, in all
	Idle        time.Duration // since data came or went
}

const (
	idSize     = 48 // struct inet_diag_sockid
	socketSize = 4 + idSize + 5*4

	// Attributes of enum INET_DIAG_… in linux/inet_diag.h.
	attrInfo   = 2
	attrCgroup = 21
	attrOption = 22

	transparentBit = 1 << 5 // in struct inet_diag_sockopt
	typeMask       = 0x3fff // of an attribute's type: the rest are flags
)

// Ended says that there is no socket any more, only what the protocol remembers
// of it for a while: TIME_WAIT, and FIN_WAIT2 that nobody has.
func (s *Socket) Ended() bool {
	return s.State == TimeWait || s.State == FinWait2 && s.Inode == 0
}

// parseSocket reads a struct inet_diag_msg with its attributes.
func parseSocket(b []byte) (Socket, error) {
	if len(b) < socketSize {
		return Socket{}, fmt.Errorf("%w: socket of %d bytes", ErrMessage, len(b))
	}
	s := Socket{Family: b[0], State: State(b[1])}
	if s.Family != unix.AF_INET && s.Family != unix.AF_INET6 {
		return Socket{}, fmt.Errorf("%w: family %d", ErrMessage, s.Family)
	}
	id, rest := b[4:4+idSize], b[4+idSize:]
	s.Local = parseAddress(s.Family, id[0:2], id[4:20])
	s.Remote = parseAddress(s.Family, id[2:4], id[20:36])
	s.Interface = native.Uint32(id[36:])
	s.Cookie = uint64(native.Uint32(id[40:])) | uint64(native.Uint32(id[44:]))<<32
	s.RecvQueue, s.SendQueue = native.Uint32(rest[4:]), native.Uint32(rest[8:])
	s.UID, s.Inode = native.Uint32(rest[12:]), native.Uint32(rest[16:])
	return s, s.parseAttributes(b[socketSize:])
}

func parseAddress(family uint8, port, address []byte) netip.AddrPort {
	p := binary.BigEndian.Uint16(port)
	if family == unix.AF_INET {
		return netip.AddrPortFrom(netip.AddrFrom4([4]byte(address[:4])), p)
	}
	return netip.AddrPortFrom(netip.AddrFrom16([16]byte(address)), p)
}

// parseAttributes reads a list of struct nlattr; unknown ones are passed over.
func (s *Socket) parseAttributes(b []byte) error {
	for len(b) >= unix.NLA_HDRLEN {
		size, kind := int(native.Uint16(b)), native.Uint16(b[2:])&typeMask
		if size < unix.NLA_HDRLEN || size > len(b) {
			return fmt.Errorf("%w: attribute %d says %d bytes, has %d", ErrMessage, kind, size, len(b))
		}
		value := b[unix.NLA_HDRLEN:size]
		switch {
		case kind == attrInfo:
			s.Info = parseInfo(value)
		case kind == attrCgroup && len(value) >= 8:
			s.Cgroup = native.Uint64(value)
		case kind == attrOption && len(value) >= 1:
			s.Transparent = value[0]&transparentBit != 0
		}
		b = b[min(align(size), len(b)):]
	}
	return nil
}

// Offsets in struct tcp_info, which only ever grows at its end. An older kernel
// sends less; what it has not is 0.
const (
	infoLastSent    = 44
	infoLastRecv    = 52
	infoRTT         = 68
	infoRTTVar      = 72
	infoRetransmits = 100
	infoAcked       = 120
	infoReceived    = 128
	infoMinRTT      = 148
)

func parseInfo(b []byte) *Info {
	word := func(at int) uint32 {
		if at+4 > len(b) {
			return 0
		}
		return native.Uint32(b[at:])
	}
	long := func(at int) uint64 {
		if at+8 > len(b) {
			return 0
		}
		return native.Uint64(b[at:])
	}
	micro := func(at int) time.Duration { return time.Duration(word(at)) * time.Microsecond }
	return &Info{
		RTT: micro(infoRTT), RTTVar: micro(infoRTTVar), MinRTT: micro(infoMinRTT),
		Sent: long(infoAcked), Received: long(infoReceived), Retransmits: word(infoRetransmits),
		Idle: time.Duration(min(word(infoLastSent), word(infoLastRecv))) * time.Millisecond,
	}
}
