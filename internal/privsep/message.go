package privsep

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"

	"socketbox/internal/fdpass"
)

// Kind is the type of a control message.
type Kind uint8

// The control messages between binder (b) and dispatcher (d). Numbers of
// tables, routes and sinks are never used twice in the life of a dispatcher.
const (
	Ready     Kind = iota + 1 // d→b: confined, waiting for the first table
	Listener                  // b→d: descriptor of listener ID, for table Table: the next one, or the one in force
	Map                       // b→d: descriptor of map ID, for the next table
	Table                     // b→d: install table ID; descriptors: plan, counters
	Installed                 // d→b: table ID is in force (Value 0) or was refused (Value 1)
	Want                      // d→b: to which sink do connections with Key go? They are route ID
	Route                     // b→d: route ID goes to sink Value; 0: there is no such target
	Sink                      // b→d: sink ID is in State as of Value; with its socket, if Live
	Stuck                     // d→b: connections wait for sink ID, which failed as of Value
	Drop                      // d→b: route ID is forgotten
	Drain                     // b→d: take what is in the backlogs, deliver, end
	Drained                   // d→b: nothing is held any more
	Abandon                   // b→d: reset what is held, end
	Yield                     // b→d: accept no more, give back what is held, end
	Held                      // d→b: a connection of listener ID that was held; Value: see Mapped
	Adopt                     // b→d: hold or deliver a connection of listener ID (0: of none that is left)
	Sessions                  // b→d: sessions that live, a memory file; Value: see Foreign
	Ended                     // b→d: the connections with these cookies have ended
)

// Mapped is the Value of a Held or Adopt whose connection is an IPv4 client's on
// a socket of family AF_INET6. Their Key has the facts of the connection.
const Mapped = 1

// Foreign is the Value of a Sessions whose file is to be copied from: nobody has
// remembered those sessions so far. Else it is the dispatcher's own to write in,
// with what the one before it has left there.
const Foreign = 1

// MaxCookies is how many sockets one Ended names: enough for what comes in at
// once, few enough for the pair's buffer.
const MaxCookies = 128

// State is what the dispatcher does with connections for a sink.
type State uint8

// The states of a sink.
const (
	Live   State = iota + 1 // send
	Absent                  // hold: the daemon restarts, or is not there yet
)

// Key is what the binder needs to resolve a target's path: facts, never a
// path. Facts that the target doesn't use are zero.
type Key struct {
	Target   uint32 // index in the table
	Listener uint32 // index in the plan, 1-based; 0 if the target doesn't use it
	Place    uint32 // which of the target's paths
	Port     uint16 // local port
	Family   Family
	Local    netip.Addr // invalid if not used
	Remote   netip.Addr
}

// Family is a connection's address family.
type Family uint8

// The families of connections.
const (
	NoFamily Family = iota
	IPv4
	IPv6
	Unix
)

var familyNames = [...]string{"", "ipv4", "ipv6", "unix"}

// String returns the family as template words have it.
func (f Family) String() string { return familyNames[min(int(f), len(familyNames)-1)] }

// Message is one control message. Which fields it has is for its Kind.
type Message struct {
	Kind  Kind
	Table uint32 // the table that the sender has in force or is installing
	ID    uint32
	Value uint32
	State State
	Key   Key
	Ended []uint64 // cookies
	FDs   []int    // received: owned by the receiver of the message
}

// shape is what a message of a kind must look like: anything else is fatal
// for the partner that sent it.
type shape struct {
	fromBinder bool
	fds        int  // descriptors that come along
	optional   bool // … or none
	key        bool
	cookies    bool // one at least
}

var shapes = map[Kind]shape{
	Ready:     {},
	Listener:  {fromBinder: true, fds: 1},
	Map:       {fromBinder: true, fds: 1},
	Table:     {fromBinder: true, fds: 2},
	Installed: {},
	Want:      {key: true},
	Route:     {fromBinder: true},
	Sink:      {fromBinder: true, fds: 1, optional: true},
	Stuck:     {},
	Drop:      {},
	Drain:     {fromBinder: true},
	Drained:   {},
	Abandon:   {fromBinder: true},
	Yield:     {fromBinder: true},
	Held:      {fds: 1, key: true},
	Adopt:     {fromBinder: true, fds: 1, key: true},
	Sessions:  {fromBinder: true, fds: 1},
	Ended:     {fromBinder: true, cookies: true},
}

const (
	plainSize = 1 + 3*4 + 1
	keySize   = 4 + 4 + 4 + 2 + 1 + 2*(1+16)
	maxSize   = plainSize + MaxCookies*8 // of the two kinds of tail the longer one
)

// Channel is one end of the control pair: a SOCK_SEQPACKET socket, so that a
// message is a packet and a dead partner is an end of file.
type Channel struct {
	FD         int
	FromBinder bool // this end is the binder's
}

// Send sends m without waiting; a full queue is an error that wraps EAGAIN.
// m.FDs stay the caller's.
func (c Channel) Send(m Message) error {
	var buf [maxSize]byte
	return fdpass.Send(c.FD, m.append(buf[:0]), m.FDs...)
}

// Receive takes one message, without waiting. ok is false at the end of file.
// A message that is not what the partner may send is an error that wraps
// ErrProtocol; its descriptors are closed.
func (c Channel) Receive() (m Message, ok bool, err error) {
	var buf [maxSize + 1]byte
	packet, err := fdpass.Recv(c.FD, buf[:], 2, unix.MSG_DONTWAIT)
	if errors.Is(err, unix.ECONNRESET) { // the partner ended and left something unread: said once, ahead of what it sent
		packet, err = fdpass.Recv(c.FD, buf[:], 2, unix.MSG_DONTWAIT)
	}
	if err != nil || packet.N == 0 {
		packet.Close()
		return Message{}, false, err
	}
	m, err = parse(buf[:packet.N], !c.FromBinder, len(packet.FDs))
	if err != nil {
		packet.Close()
		return Message{}, false, err
	}
	m.FDs = packet.FDs
	return m, true, nil
}

// ErrProtocol marks a control message that its sender may not send.
var ErrProtocol = fmt.Errorf("control message refused: %w", unix.EBADMSG)

func (m Message) append(b []byte) []byte {
	b = append(b, byte(m.Kind))
	b = binary.LittleEndian.AppendUint32(b, m.Table)
	b = binary.LittleEndian.AppendUint32(b, m.ID)
	b = binary.LittleEndian.AppendUint32(b, m.Value)
	b = append(b, byte(m.State))
	if shapes[m.Kind].cookies {
		for _, cookie := range m.Ended[:min(len(m.Ended), MaxCookies)] {
			b = binary.LittleEndian.AppendUint64(b, cookie)
		}
	}
	if !shapes[m.Kind].key {
		return b
	}
	b = binary.LittleEndian.AppendUint32(b, m.Key.Target)
	b = binary.LittleEndian.AppendUint32(b, m.Key.Listener)
	b = binary.LittleEndian.AppendUint32(b, m.Key.Place)
	b = binary.LittleEndian.AppendUint16(b, m.Key.Port)
	b = append(b, byte(m.Key.Family))
	return appendAddr(appendAddr(b, m.Key.Local), m.Key.Remote)
}

// parse reads a message that came from the binder or from the dispatcher,
// with fds descriptors.
func parse(b []byte, fromBinder bool, fds int) (Message, error) {
	if len(b) < plainSize {
		return Message{}, fmt.Errorf("%w: %d bytes", ErrProtocol, len(b))
	}
	m := Message{
		Kind:  Kind(b[0]),
		Table: binary.LittleEndian.Uint32(b[1:]),
		ID:    binary.LittleEndian.Uint32(b[5:]),
		Value: binary.LittleEndian.Uint32(b[9:]),
		State: State(b[13]),
	}
	s, known := shapes[m.Kind]
	want := plainSize
	switch {
	case s.key:
		want += keySize
	case s.cookies:
		want += min(max(1, (len(b)-plainSize)/8), MaxCookies) * 8
	}
	switch {
	case !known || s.fromBinder != fromBinder:
		return Message{}, fmt.Errorf("%w: type %d", ErrProtocol, m.Kind)
	case len(b) != want:
		return Message{}, fmt.Errorf("%w: type %d with %d bytes", ErrProtocol, m.Kind, len(b))
	case fds != s.fds && !(s.optional && fds == 0):
		return Message{}, fmt.Errorf("%w: type %d with %d descriptors", ErrProtocol, m.Kind, fds)
	case m.State > Absent || m.Kind == Sink && (m.State == Live) != (fds == 1):
		return Message{}, fmt.Errorf("%w: state %d", ErrProtocol, m.State)
	}
	if s.key {
		return m, m.Key.parse(b[plainSize:])
	}
	for tail := b[plainSize:]; len(tail) > 0; tail = tail[8:] {
		m.Ended = append(m.Ended, binary.LittleEndian.Uint64(tail))
	}
	return m, nil
}

func (k *Key) parse(b []byte) error {
	k.Target = binary.LittleEndian.Uint32(b)
	k.Listener = binary.LittleEndian.Uint32(b[4:])
	k.Place = binary.LittleEndian.Uint32(b[8:])
	k.Port = binary.LittleEndian.Uint16(b[12:])
	k.Family = Family(b[14])
	if k.Family > Unix {
		return fmt.Errorf("%w: family %d", ErrProtocol, k.Family)
	}
	var ok1, ok2 bool
	k.Local, ok1 = parseAddr(b[15:])
	k.Remote, ok2 = parseAddr(b[32:])
	if !ok1 || !ok2 {
		return fmt.Errorf("%w: address", ErrProtocol)
	}
	return nil
}

// appendAddr appends an address in 17 bytes: its length and 16 bytes.
func appendAddr(b []byte, a netip.Addr) []byte {
	var raw [17]byte
	if a.IsValid() {
		raw[0] = byte(copy(raw[1:], a.AsSlice()))
	}
	return append(b, raw[:]...)
}

func parseAddr(b []byte) (netip.Addr, bool) {
	if b[0] == 0 {
		return netip.Addr{}, true
	}
	if b[0] != 4 && b[0] != 16 {
		return netip.Addr{}, false
	}
	return netip.AddrFromSlice(b[1 : 1+b[0]])
}
