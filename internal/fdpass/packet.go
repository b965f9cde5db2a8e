package fdpass

import (
	"encoding/binary"
	"unsafe"

	"golang.org/x/sys/unix"
)

// sendFlags are the flags of every send: a hand-off never blocks its sender
// and never raises SIGPIPE. The dispatcher's filter allows exactly these.
const sendFlags = unix.MSG_DONTWAIT | unix.MSG_NOSIGNAL

// Packet is a ready-made message: a fixed payload and room for one
// descriptor. Sending it allocates nothing and takes one system call, which
// is what the hot path of the dispatcher needs.
//
// A Packet is not safe for use by several goroutines at once.
type Packet struct {
	msg     unix.Msghdr
	iov     unix.Iovec
	control [24]byte // CMSG_SPACE(sizeof(int)) on 64-bit Linux
	payload []byte
}

// NewPacket returns a Packet that carries payload, which must not be empty
// (a datagram without a byte can't be told from an end of file) and is copied.
func NewPacket(payload []byte) *Packet {
	p := &Packet{payload: append([]byte(nil), payload...)}
	p.iov.Base = &p.payload[0]
	p.iov.SetLen(len(p.payload))
	header := (*unix.Cmsghdr)(unsafe.Pointer(&p.control[0]))
	header.Level = unix.SOL_SOCKET
	header.Type = unix.SCM_RIGHTS
	header.SetLen(unix.CmsgLen(4))
	p.msg.Iov = &p.iov
	p.msg.SetIovlen(1)
	p.msg.Control = &p.control[0]
	p.msg.SetControllen(unix.CmsgSpace(4))
	return p
}

// Send sends the payload with fd over the connected Unix socket sock, without
// waiting. fd stays the caller's. It returns 0 or the errno of sendmsg(2).
func (p *Packet) Send(sock, fd int) unix.Errno {
	binary.NativeEndian.PutUint32(p.control[unix.CmsgLen(0):], uint32(fd))
	for {
		_, _, errno := unix.RawSyscall(unix.SYS_SENDMSG, uintptr(sock), uintptr(unsafe.Pointer(&p.msg)), sendFlags)
		if errno != unix.EINTR {
			return errno
		}
	}
}

// BurstMax is how many messages a Burst sends at most.
const BurstMax = 8

// Burst sends one Packet several times, each time with another descriptor, by
// one system call: sendmmsg(2). It allocates nothing. It is not safe for use by
// several goroutines at once.
type Burst struct {
	messages [BurstMax]mmsghdr
	control  [BurstMax][len(Packet{}.control)]byte
}

// mmsghdr is struct mmsghdr of sendmmsg(2).
type mmsghdr struct {
	msg unix.Msghdr
	_   uint32 // bytes sent
}

// Send sends p once for each of fds, at most BurstMax, in their order, over the
// connected Unix socket sock, without waiting. The descriptors stay the
// caller's. It returns how many were sent; why the next one was not, sending
// it alone tells.
func (b *Burst) Send(p *Packet, sock int, fds []int32) int {
	for i, fd := range fds {
		control := &b.control[i]
		*control = p.control
		binary.NativeEndian.PutUint32(control[unix.CmsgLen(0):], uint32(fd))
		b.messages[i].msg = p.msg
		b.messages[i].msg.Control = &control[0]
	}
	for {
		n, _, errno := unix.RawSyscall6(unix.SYS_SENDMMSG, uintptr(sock), uintptr(unsafe.Pointer(&b.messages)),
			uintptr(len(fds)), sendFlags, 0, 0)
		switch errno {
		case 0:
			return int(n)
		case unix.EINTR:
		default:
			return 0
		}
	}
}
