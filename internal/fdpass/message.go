package fdpass

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// MaxFDs is the most descriptors that one message can carry: SCM_MAX_FD of
// the kernel (unix(7)).
const MaxFDs = 253

// ErrTruncated is returned for a message whose payload or control data did
// not fit. Every descriptor that did arrive has been closed.
var ErrTruncated = errors.New("truncated message")

// Message is what Recv took from a socket.
type Message struct {
	N    int         // bytes of payload
	FDs  []int       // descriptors, close-on-exec set; the caller owns them
	Cred *unix.Ucred // the sender as the kernel knows it, if SO_PASSCRED is set
}

// Close closes all descriptors of the message.
func (m *Message) Close() {
	for _, fd := range m.FDs {
		unix.Close(fd)
	}
	m.FDs = nil
}

// Send sends payload and fds as one message over the connected Unix socket
// sock, without waiting: a full queue is EAGAIN. The fds stay the caller's.
func Send(sock int, payload []byte, fds ...int) error {
	var control []byte
	if len(fds) > 0 {
		control = unix.UnixRights(fds...)
	}
	for {
		_, err := unix.SendmsgN(sock, payload, control, nil, sendFlags)
		if err != unix.EINTR {
			return os.NewSyscallError("sendmsg", err)
		}
	}
}

// Recv takes one message from sock: its payload into buf, its descriptors
// with close-on-exec set. A message with more than maxFDs descriptors, or
// whose payload is longer than buf, is an error that wraps ErrTruncated; none
// of its descriptors stays open. flags are those of recvmsg(2).
//
// On a socket that its peer or shutdown(2) has ended, Recv returns a Message
// with N == 0 and no descriptors.
func Recv(sock int, buf []byte, maxFDs, flags int) (Message, error) {
	// Room for one descriptor more than allowed, so that a surplus is seen
	// and closed here rather than by the kernel, and for the credentials.
	var control [1024 + 128]byte
	room := unix.CmsgSpace(4*(min(maxFDs, MaxFDs)+1)) + unix.CmsgSpace(unix.SizeofUcred)
	var n, controlLen, gotFlags int
	var err error
	for {
		n, controlLen, gotFlags, _, err = unix.RecvmsgBuffers(sock, [][]byte{buf}, control[:room], flags|unix.MSG_CMSG_CLOEXEC)
		if err != unix.EINTR {
			break
		}
	}
	if err != nil {
		return Message{}, os.NewSyscallError("recvmsg", err)
	}
	m := Message{N: n}
	if err := m.parse(control[:controlLen]); err != nil {
		m.Close()
		return Message{}, err
	}
	switch {
	case gotFlags&(unix.MSG_CTRUNC|unix.MSG_TRUNC) != 0:
		m.Close()
		return Message{}, fmt.Errorf("recvmsg: %w", ErrTruncated)
	case len(m.FDs) > maxFDs:
		got := len(m.FDs)
		m.Close()
		return Message{}, fmt.Errorf("recvmsg: %d descriptors, at most %d expected: %w", got, maxFDs, ErrTruncated)
	}
	return m, nil
}

// parse reads the control messages. On an error the descriptors read so far
// are in m.FDs, for the caller to close.
func (m *Message) parse(control []byte) error {
	for len(control) > 0 {
		header, data, rest, err := unix.ParseOneSocketControlMessage(control)
		if err != nil {
			return fmt.Errorf("recvmsg: control data: %w", err)
		}
		control = rest
		if header.Level != unix.SOL_SOCKET {
			continue
		}
		scm := unix.SocketControlMessage{Header: header, Data: data}
		switch header.Type {
		case unix.SCM_RIGHTS:
			fds, err := unix.ParseUnixRights(&scm)
			if err != nil {
				return fmt.Errorf("recvmsg: SCM_RIGHTS: %w", err)
			}
			m.FDs = append(m.FDs, fds...)
		case unix.SCM_CREDENTIALS:
			if m.Cred, err = unix.ParseUnixCredentials(&scm); err != nil {
				return fmt.Errorf("recvmsg: SCM_CREDENTIALS: %w", err)
			}
		}
	}
	return nil
}
