package sockdiag

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"
)

// Query chooses sockets.
type Query struct {
	States    States
	LocalPort uint16 // 0: any
	Info      bool   // ask for tcp_info too
}

const (
	requestSize = 8 + idSize // struct inet_diag_req_v2

	attrBytecode = 1 // INET_DIAG_REQ_BYTECODE
	extInfo      = 1 << (attrInfo - 1)

	bytecodeSourceGE = 2 // INET_DIAG_BC_S_GE
	bytecodeSourceLE = 3 // INET_DIAG_BC_S_LE
)

// Dump gives every TCP socket of fd's namespace that fits q to each, of both
// families, until each returns an error. A socket that comes or goes meanwhile
// may be missing; where that matters ask Alive.
func Dump(fd int, q Query, each func(*Socket) error) error {
	for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} {
		err := exchange(fd, q.request(family), func(m message) error {
			s, err := parseSocket(m.body)
			if err != nil {
				return err
			}
			if s.State > newSynReceived || q.States&(1<<s.State) == 0 || q.LocalPort != 0 && s.Local.Port() != q.LocalPort {
				return nil
			}
			return each(&s)
		})
		if errors.Is(err, ErrGone) && family == unix.AF_INET6 {
			return nil // a kernel without IPv6
		}
		if err != nil {
			return fmt.Errorf("list sockets: %w", err)
		}
	}
	return nil
}

func (q Query) request(family uint8) []byte {
	var filter []byte
	if q.LocalPort != 0 {
		filter = portBytecode(q.LocalPort)
	}
	b := header(unix.SOCK_DIAG_BY_FAMILY, unix.NLM_F_DUMP, requestSize+len(filter))
	b = append(b, family, unix.IPPROTO_TCP, 0, 0)
	if q.Info {
		b[headerSize+2] = extInfo
	}
	b = native.AppendUint32(b, uint32(q.States))
	b = append(b, make([]byte, idSize)...)
	return append(b, filter...)
}

// portBytecode has the kernel leave out sockets of other local ports: a test
// for at least the port and one for at most, each of which jumps behind the end
// if it fails, which refuses the socket (inet_diag_bc_run in the kernel).
func portBytecode(port uint16) []byte {
	const op = 4
	const size = 4 * op // two tests with an argument each
	b := native.AppendUint16(nil, unix.NLA_HDRLEN+size)
	b = native.AppendUint16(b, attrBytecode)
	for i, code := range []byte{bytecodeSourceGE, bytecodeSourceLE} {
		b = append(b, code, 2*op)
		b = native.AppendUint16(b, uint16(size-2*op*i+op)) // one op behind the end
		b = append(b, 0, 0)
		b = native.AppendUint16(b, port)
	}
	return b
}

// Alive returns what the socket is now that s names by its addresses, its interface
// and its cookie; an error that wraps ErrGone if it has ended. One that was reset,
// and that its process has not closed yet, counts as ended: the kernel does not
// find it any more. For connections: of listening sockets with one address the
// kernel looks at one alone, so ask Dump for those.
func Alive(fd int, s *Socket) (*Socket, error) {
	var found *Socket
	request := s.request(unix.SOCK_DIAG_BY_FAMILY, unix.NLM_F_ACK)
	err := exchange(fd, request, func(m message) error {
		got, err := parseSocket(m.body)
		found = &got
		return err
	})
	if err == nil && (found == nil || found.Ended()) {
		err = ErrGone
	}
	if err != nil {
		return nil, fmt.Errorf("look for the socket of %s: %w", s.Remote, err)
	}
	return found, nil
}

// Destroy ends the connection that s names by its addresses and its cookie, and
// only that one: the other side gets a reset, the process that has the socket
// ECONNABORTED (SOCK_DESTROY). Errors wrap ErrGone, EPERM without CAP_NET_ADMIN
// in the namespace, EOPNOTSUPP on a kernel without CONFIG_INET_DIAG_DESTROY.
func Destroy(fd int, s *Socket) error {
	if s.Cookie == 0 {
		return errors.New("end a connection: it has no cookie")
	}
	err := exchange(fd, s.request(unix.SOCK_DESTROY, unix.NLM_F_ACK), func(message) error { return nil })
	if err != nil {
		return fmt.Errorf("end the connection of %s: %w", s.Remote, err)
	}
	return nil
}

// request names one socket.
func (s *Socket) request(kind, flags uint16) []byte {
	b := header(kind, flags, requestSize)
	b = append(b, s.Family, unix.IPPROTO_TCP, 0, 0)
	b = native.AppendUint32(b, ^uint32(0))
	b = binary.BigEndian.AppendUint16(b, s.Local.Port())
	b = binary.BigEndian.AppendUint16(b, s.Remote.Port())
	b = appendAddress(appendAddress(b, s.Family, s.Local.Addr()), s.Family, s.Remote.Addr())
	b = native.AppendUint32(b, s.Interface)
	b = native.AppendUint32(b, uint32(s.Cookie))
	return native.AppendUint32(b, uint32(s.Cookie>>32))
}

// appendAddress appends 16 bytes, in the form that a socket of the family has.
func appendAddress(b []byte, family uint8, a netip.Addr) []byte {
	var raw [16]byte
	switch {
	case !a.IsValid():
	case family == unix.AF_INET:
		copy(raw[:], a.Unmap().AsSlice())
	default:
		raw = a.As16()
	}
	return append(b, raw[:]...)
}
