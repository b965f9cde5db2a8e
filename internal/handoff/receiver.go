package handoff

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"socketbox/internal/fdpass"
)

// ErrBad marks a datagram that is no hand-off. It has been counted, and
// whatever came with it is closed; the receiver goes on.
var ErrBad = errors.New("bad hand-off")

// Conn is one connection that was handed off.
type Conn struct {
	FD     int // a stream socket, close-on-exec; the caller owns it
	Header Header
}

// ErrEmpty says that nothing is queued just now.
var ErrEmpty = errors.New("no hand-off queued")

// Receiver takes hand-offs from a pathname socket. One goroutine at a time
// may call Recv or TryRecv; Shutdown and Bad may be called from any.
type Receiver struct {
	fd     int
	path   string
	file   fileID // of the path, as it was bound
	from   int
	shared bool // the socket is the service manager's, too
	down   atomic.Bool
	bad    atomic.Uint64

	// Only Recv needs Go's poller. TryRecv's callers wait on FD themselves,
	// and registered there as well, each datagram would wake two threads.
	poll    sync.Once
	pollErr error
	os      *os.File
	raw     syscall.RawConn
}

// newReceiver takes over fd, also on an error.
func newReceiver(fd int, path string, o Options) (*Receiver, error) {
	id, err := lstatID(path)
	if err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("look at socket %s: %w", path, err)
	}
	return &Receiver{fd: fd, path: path, file: id, from: o.From}, nil
}

// poller registers the socket with Go's poller, which then owns it.
func (r *Receiver) poller() (syscall.RawConn, error) {
	r.poll.Do(func() {
		r.os = os.NewFile(uintptr(r.fd), r.path)
		r.raw, r.pollErr = r.os.SyscallConn()
	})
	return r.raw, r.pollErr
}

// FD returns the receiving socket, non-blocking, to wait on until it is
// readable; it stays the receiver's.
func (r *Receiver) FD() int { return r.fd }

// Path returns where the receiver is bound.
func (r *Receiver) Path() string { return r.path }

// Bad returns how many datagrams were refused as no hand-off.
func (r *Receiver) Bad() uint64 { return r.bad.Load() }

// Recv waits for the next connection. After Shutdown it returns what is still
// queued, then os.ErrClosed. An error that wraps ErrBad is about one datagram
// only; any other one ends the receiver.
func (r *Receiver) Recv() (Conn, error) {
	raw, err := r.poller()
	if err != nil {
		return Conn{}, fmt.Errorf("receive on %s: %w", r.path, err)
	}
	for {
		conn, err := r.TryRecv()
		if err != ErrEmpty {
			return conn, err
		}
		waitErr := raw.Read(func(uintptr) bool {
			conn, err = r.TryRecv()
			return err != ErrEmpty
		})
		switch {
		case waitErr == nil:
			return conn, err
		case !errors.Is(waitErr, os.ErrDeadlineExceeded): // that is wake
			return Conn{}, waitErr
		}
	}
}

// TryRecv is Recv without waiting: ErrEmpty when nothing is queued.
func (r *Receiver) TryRecv() (Conn, error) {
	var buf [MaxPayload]byte
	down := r.down.Load() // before the look: what came in until then counts
	m, err := fdpass.Recv(r.fd, buf[:], 1, unix.MSG_DONTWAIT)
	switch {
	case err == nil:
		return r.check(m, buf[:m.N])
	case errors.Is(err, unix.EAGAIN) && down:
		return Conn{}, os.ErrClosed
	case errors.Is(err, unix.EAGAIN):
		return Conn{}, ErrEmpty
	case errors.Is(err, fdpass.ErrTruncated):
		return Conn{}, r.refuse(err)
	}
	return Conn{}, fmt.Errorf("receive on %s: %w", r.path, err)
}

// check makes a connection of a message; it owns the message's descriptors.
func (r *Receiver) check(m fdpass.Message, payload []byte) (Conn, error) {
	switch {
	case len(payload) == 0:
		m.Close()
		return Conn{}, r.refuse(errors.New("empty datagram"))
	case len(m.FDs) == 0:
		return Conn{}, r.refuse(errors.New("no descriptor"))
	case r.from >= 0 && (m.Cred == nil || int(m.Cred.Uid) != r.from):
		m.Close()
		return Conn{}, r.refuse(fmt.Errorf("sender is not uid %d", r.from))
	}
	fd := m.FDs[0]
	if err := checkStream(fd); err != nil {
		unix.Close(fd)
		return Conn{}, r.refuse(err)
	}
	header, _ := ParseHeader(payload)
	return Conn{FD: fd, Header: header}, nil
}

// checkStream accepts what a TCP or Unix listener's accept returns and
// nothing else: a listening socket or another protocol never reaches a daemon.
func checkStream(fd int) error {
	kind, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TYPE)
	if err != nil {
		return fmt.Errorf("descriptor is no socket: %w", err)
	}
	domain, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DOMAIN)
	if err != nil {
		return fmt.Errorf("getsockopt SO_DOMAIN: %w", err)
	}
	if kind != unix.SOCK_STREAM || (domain != unix.AF_INET && domain != unix.AF_INET6 && domain != unix.AF_UNIX) {
		return fmt.Errorf("socket of domain %d, type %d is no stream connection", domain, kind)
	}
	if listening, _ := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ACCEPTCONN); listening != 0 {
		return errors.New("descriptor is a listening socket")
	}
	return nil
}

func (r *Receiver) refuse(reason error) error {
	r.bad.Add(1)
	return fmt.Errorf("%w on %s: %w", ErrBad, r.path, reason)
}

// Shutdown ends the receiver's intake: later senders get EPIPE and hold what
// they have, and Recv returns what is queued and then os.ErrClosed.
//
// The first shutdown(2) closes the intake, so that an empty queue seen after
// down is set stays empty; the second only wakes a Recv that looked between.
//
// A socket that came from the service manager stays open to senders: what
// comes later waits there for the next start.
func (r *Receiver) Shutdown() error {
	shut := func() error { return unix.Shutdown(r.fd, unix.SHUT_RD) }
	if r.shared {
		shut = r.wake
	}
	if err := shut(); err != nil {
		return os.NewSyscallError("shutdown", err)
	}
	r.down.Store(true)
	return os.NewSyscallError("shutdown", shut())
}

// wake makes a Recv look again.
func (r *Receiver) wake() error {
	if _, err := r.poller(); err != nil {
		return err
	}
	return r.os.SetReadDeadline(time.Unix(1, 0))
}

// Bound tells whether the path still leads to this receiver: false when the
// socket file has been removed or replaced.
func (r *Receiver) Bound() bool {
	if r.shared {
		return true
	}
	id, err := lstatID(r.path)
	return err == nil && id == r.file
}

// Close unlinks the path, if it still is this receiver's, and closes the
// socket. What is queued is lost unless Shutdown came first and Recv has
// returned os.ErrClosed.
func (r *Receiver) Close() error {
	r.unlink()
	if r.os != nil {
		return r.os.Close()
	}
	return os.NewSyscallError("close", unix.Close(r.fd))
}

// unlink removes the path if it is still ours, under the lock under which
// others take it.
func (r *Receiver) unlink() {
	if r.shared {
		return
	}
	if unlock, err := lockDirectory(filepath.Dir(r.path)); err == nil {
		defer unlock()
	}
	if r.Bound() {
		unix.Unlink(r.path)
	}
}

// fileID tells one file from another.
type fileID struct{ dev, ino uint64 }

func lstatID(path string) (fileID, error) {
	var st unix.Stat_t
	err := unix.Lstat(path, &st)
	return fileID{uint64(st.Dev), st.Ino}, err
}
