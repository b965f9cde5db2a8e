package launch

import (
	"fmt"
	"log/slog"
	"os"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"
)

// notifier answers the binds of one tree of processes, each in a goroutine of
// its own, until the last of them has ended.
type notifier struct {
	fd    int // seccomp notifications (seccomp_unotify(2)); owned
	ports Ports
	dir   string
	lend  lender
	log   *slog.Logger

	mu      sync.Mutex
	lent    map[uint64]bool // sockets, by inode, that were put over a daemon's
	noPeeks sync.Once       // said that options can't be copied
}

// maxBinds is how many binds are answered at once. The daemon's other threads
// wait in theirs.
const maxBinds = 32

// notification is struct seccomp_notif.
type notification struct {
	ID    uint64
	PID   uint32 // of the thread, 0 if it is in a pid namespace that we don't see
	Flags uint32
	Nr    int32
	Arch  uint32
	IP    uint64
	Args  [6]uint64
}

// response is struct seccomp_notif_resp.
type response struct {
	ID    uint64
	Val   int64
	Error int32
	Flags uint32
}

// addFD is struct seccomp_notif_addfd.
type addFD struct {
	ID         uint64
	Flags      uint32
	SrcFD      uint32
	NewFD      uint32
	NewFDFlags uint32
}

// serve takes notifications until nobody is left to send one. It owns the
// descriptor.
func (n *notifier) serve() {
	defer unix.Close(n.fd)
	slots := make(chan struct{}, maxBinds)
	defer func() {
		for range maxBinds {
			slots <- struct{}{} // the descriptor is theirs until they are done
		}
	}()
	for {
		fds := []unix.PollFd{{Fd: int32(n.fd), Events: unix.POLLIN}}
		if _, err := unix.Poll(fds, -1); err != nil && err != unix.EINTR {
			n.log.Error("notifications of bind", "error", err)
			return
		}
		switch {
		case fds[0].Revents&unix.POLLIN != 0:
		case fds[0].Revents&(unix.POLLHUP|unix.POLLERR|unix.POLLNVAL) != 0:
			return
		default:
			continue
		}
		q, err := n.receive()
		if err != nil {
			continue // whoever it was is gone, or was interrupted
		}
		slots <- struct{}{}
		go func() {
			defer func() { <-slots }()
			n.answer(q)
		}()
	}
}

func (n *notifier) ioctl(request uintptr, arg unsafe.Pointer) error {
	for {
		_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(n.fd), request, uintptr(arg))
		if errno == 0 {
			return nil
		}
		if errno != unix.EINTR {
			return errno
		}
	}
}

// receive takes one notification. The kernel may have a longer struct than we
// know, hence the room behind it, which must be zero.
func (n *notifier) receive() (*notification, error) {
	var buf struct {
		notification
		_ [256]byte
	}
	if err := n.ioctl(unix.SECCOMP_IOCTL_NOTIF_RECV, unsafe.Pointer(&buf)); err != nil {
		return nil, err
	}
	return &buf.notification, nil
}

// valid tells whether the thread still waits in that bind: only then is what
// was read by its number what it has shown.
func (n *notifier) valid(id uint64) bool {
	return n.ioctl(unix.SECCOMP_IOCTL_NOTIF_ID_VALID, unsafe.Pointer(&id)) == nil
}

// put puts fd, which stays ours, over the daemon's descriptor number.
func (n *notifier) put(id uint64, fd, number int, closeOnExec bool) error {
	a := addFD{ID: id, Flags: unix.SECCOMP_ADDFD_FLAG_SETFD, SrcFD: uint32(fd), NewFD: uint32(number)}
	if closeOnExec {
		a.NewFDFlags = unix.O_CLOEXEC
	}
	if err := n.ioctl(unix.SECCOMP_IOCTL_NOTIF_ADDFD, unsafe.Pointer(&a)); err != nil {
		return os.NewSyscallError("ioctl SECCOMP_IOCTL_NOTIF_ADDFD", err)
	}
	return nil
}

// answer answers one bind.
func (n *notifier) answer(q *notification) {
	r := response{ID: q.ID}
	switch err := n.bind(q).(type) {
	case nil:
	case errnoError:
		r.Error = -int32(err)
	case passError:
		r.Flags = unix.SECCOMP_USER_NOTIF_FLAG_CONTINUE
	}
	n.ioctl(unix.SECCOMP_IOCTL_NOTIF_SEND, unsafe.Pointer(&r))
}

// errnoError is what the daemon's bind fails with.
type errnoError unix.Errno

func (e errnoError) Error() string { return unix.Errno(e).Error() }

// passError is a bind that is the kernel's: in the daemon's own namespace.
// That the daemon may change its arguments meanwhile does no harm, since it
// could have made that other bind as well.
type passError string

func (e passError) Error() string { return string(e) }

// bind decides on one bind. nil: a lent socket is in the place of the
// daemon's, and its bind has succeeded.
func (n *notifier) bind(q *notification) error {
	asked, err := n.read(q)
	if err != nil {
		return err
	}
	log := n.log.With("port", asked.port, "pid", q.PID)
	s, err := n.lookAt(q, asked)
	if err != nil {
		log.Debug("a bind stays in the daemon's namespace", "reason", err)
		return err
	}
	if s == nil {
		return nil
	}
	defer s.close()
	fd, err := n.lend.borrow(asked, s, log)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := n.place(q, s, fd); err != nil {
		log.Error("can't put the listening socket in the place of the daemon's", "error", err)
		return errnoError(unix.EADDRNOTAVAIL)
	}
	log.Info("borrowed", "listener", fmt.Sprintf("%s/%d.listener", n.dir, asked.outside), "form", s.form)
	return nil
}

// place puts the lent socket where the daemon has its own: on every number
// that it has in this process, and in the epoll sets that it was added to.
func (n *notifier) place(q *notification, s *shown, fd int) error {
	if err := s.carryFlags(fd); err != nil {
		return err
	}
	// Close-on-exec and the registrations are read while the daemon's own
	// socket is still there.
	numbers, err := s.numbers()
	if err != nil {
		return err
	}
	sets := s.registrations()
	for number, closeOnExec := range numbers {
		if err := n.put(q.ID, fd, number, closeOnExec); err != nil {
			return err
		}
	}
	n.remember(fd)
	if failed := register(sets, fd); failed != nil {
		n.log.Warn("the daemon's epoll set does not have the listening socket", "reason", failed)
	}
	return nil
}

func (n *notifier) remember(fd int) {
	var st unix.Stat_t
	if unix.Fstat(fd, &st) == nil {
		n.mu.Lock()
		n.lent[st.Ino] = true
		n.mu.Unlock()
	}
}

func (n *notifier) wasLent(inode uint64) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.lent[inode]
}
