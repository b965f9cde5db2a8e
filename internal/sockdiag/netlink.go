package sockdiag

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// Open opens a socket to ask or to hear sock_diag in the network namespace of
// the calling thread. It stays with that namespace wherever it is passed to. The
// caller owns the descriptor, which is non-blocking.
func Open() (int, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_SOCK_DIAG)
	if err != nil {
		return -1, fmt.Errorf("open a sock_diag socket: %w", os.NewSyscallError("socket", err))
	}
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		unix.Close(fd)
		return -1, fmt.Errorf("open a sock_diag socket: %w", os.NewSyscallError("bind", err))
	}
	return fd, nil
}

var (
	// ErrGone means that there is no such socket (any more).
	ErrGone = errors.New("no such socket")
	// ErrLost means that events were lost because they were not read in time.
	ErrLost = errors.New("the kernel had no room for an event")
	// ErrMessage is a message that is not what sock_diag(7) says.
	ErrMessage = errors.New("malformed sock_diag message")
)

const (
	headerSize = unix.NLMSG_HDRLEN
	// bufferSize takes what the kernel sends at once: a dump comes in packets of
	// at most 32 KiB (netlink_dump in the kernel).
	bufferSize = 32 << 10
	// maxDump bounds the packets of one dump: some hundred sockets each, hence
	// more sockets than a machine has. A kernel that sends more is not obeyed.
	maxDump = 1 << 20
)

// native is the byte order of netlink; addresses and ports are in network order.
var native = binary.NativeEndian

// header makes the header of a request whose body has n bytes.
func header(kind, flags uint16, n int) []byte {
	b := make([]byte, headerSize, headerSize+n)
	native.PutUint32(b[0:], uint32(headerSize+n))
	native.PutUint16(b[4:], kind)
	native.PutUint16(b[6:], flags|unix.NLM_F_REQUEST)
	native.PutUint32(b[8:], 1) // sequence number: one request at a time on a descriptor
	return b
}

// message is one netlink message.
type message struct {
	kind uint16
	body []byte
}

// next takes the first message off a packet.
func next(packet []byte) (m message, rest []byte, err error) {
	if len(packet) < headerSize {
		return m, nil, fmt.Errorf("%w: %d bytes", ErrMessage, len(packet))
	}
	size := int(native.Uint32(packet))
	if size < headerSize || size > len(packet) {
		return m, nil, fmt.Errorf("%w: says %d bytes, has %d", ErrMessage, size, len(packet))
	}
	m = message{kind: native.Uint16(packet[4:]), body: packet[headerSize:size]}
	return m, packet[min(align(size), len(packet)):], nil
}

func align(n int) int { return (n + unix.NLMSG_ALIGNTO - 1) &^ (unix.NLMSG_ALIGNTO - 1) }

// failure reads the errno of an NLMSG_ERROR or NLMSG_DONE message; nil is an
// acknowledgement.
func (m message) failure() error {
	if len(m.body) < 4 {
		if m.kind == unix.NLMSG_DONE {
			return nil
		}
		return fmt.Errorf("%w: error of %d bytes", ErrMessage, len(m.body))
	}
	switch code := int32(native.Uint32(m.body)); {
	case code == 0:
		return nil
	case code > 0 || code < -4095:
		return fmt.Errorf("%w: error %d", ErrMessage, code)
	default:
		errno := unix.Errno(-code)
		if errno == unix.ENOENT || errno == unix.ESTALE {
			return fmt.Errorf("%w (%w)", ErrGone, errno)
		}
		return errno
	}
}

// exchange sends a request and gives every answer to each, until the kernel says
// that it is done or each returns an error. Nobody else may use fd meanwhile.
func exchange(fd int, request []byte, each func(message) error) error {
	if err := drop(fd); err != nil {
		return err
	}
	if err := unix.Sendto(fd, request, unix.MSG_NOSIGNAL, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return os.NewSyscallError("sendto", err)
	}
	buf := make([]byte, bufferSize)
	for range maxDump {
		packet, err := receive(fd, buf)
		if err == unix.EAGAIN {
			err = wait(fd)
			packet = nil
		}
		if err != nil {
			return err
		}
		for len(packet) > 0 {
			var m message
			if m, packet, err = next(packet); err != nil {
				return err
			}
			if done, err := answer(m, each); done || err != nil {
				return err
			}
		}
	}
	return fmt.Errorf("%w: no end after %d packets", ErrMessage, maxDump)
}

// answer treats one message of an answer.
func answer(m message, each func(message) error) (done bool, err error) {
	switch m.kind {
	case unix.NLMSG_ERROR, unix.NLMSG_DONE:
		return true, m.failure()
	case unix.SOCK_DIAG_BY_FAMILY:
		return false, each(m)
	}
	return false, nil // NLMSG_NOOP and what later kernels may add
}

// drop takes off fd what an earlier request has left there.
func drop(fd int) error {
	var buf [1]byte
	for range maxDump {
		_, _, err := unix.Recvfrom(fd, buf[:], unix.MSG_DONTWAIT)
		switch err {
		case nil, unix.EINTR, unix.ENOBUFS:
		case unix.EAGAIN:
			return nil
		default:
			return os.NewSyscallError("recvfrom", err)
		}
	}
	return fmt.Errorf("%w: no end of old answers", ErrMessage)
}

// receive takes one packet, which must be the kernel's own: any process of the
// namespace may address this socket.
func receive(fd int, buf []byte) ([]byte, error) {
	for {
		n, from, err := unix.Recvfrom(fd, buf, unix.MSG_DONTWAIT|unix.MSG_TRUNC)
		switch {
		case err == unix.EINTR:
			continue
		case err == unix.EAGAIN:
			return nil, unix.EAGAIN
		case err == unix.ENOBUFS:
			return nil, ErrLost
		case err != nil:
			return nil, os.NewSyscallError("recvfrom", err)
		case n > len(buf):
			return nil, fmt.Errorf("%w: packet of %d bytes", ErrMessage, n)
		}
		if sender, ok := from.(*unix.SockaddrNetlink); !ok || sender.Pid != 0 {
			continue
		}
		return buf[:n], nil
	}
}

// answerTime bounds the wait for the kernel, in milliseconds; it answers within
// the call that asks.
const answerTime = 5000

func wait(fd int) error {
	n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, answerTime)
	switch {
	case err == unix.EINTR:
		return nil
	case err != nil:
		return os.NewSyscallError("poll", err)
	case n == 0:
		return fmt.Errorf("the kernel does not answer: %w", unix.ETIMEDOUT)
	}
	return nil
}
