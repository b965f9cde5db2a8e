package binder

import (
	"fmt"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// lookout waits for events of the sockets that the binder itself watches, in
// one epoll set: borrowers at loan sockets, first clients at undecided
// listeners, and the end of shared ones.
type lookout struct {
	epoll int
	file  *os.File
	raw   syscall.RawConn
}

// What an event is about, in the upper half of its data; the lower half is
// the ID of the listener or the loan socket.
const (
	aboutListener = iota
	aboutLoanSocket
)

func newLookout() (*lookout, error) {
	epoll, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err == nil {
		err = unix.SetNonblock(epoll, true) // so that Go's poller waits on it
	}
	if err != nil {
		return nil, fmt.Errorf("lookout: %w", err)
	}
	o := &lookout{epoll: epoll, file: os.NewFile(uintptr(epoll), "lookout")}
	if o.raw, err = o.file.SyscallConn(); err != nil {
		return nil, fmt.Errorf("lookout: %w", err)
	}
	return o, nil
}

// watch begins to watch fd, or changes what for.
func (o *lookout) watch(fd int, events uint32, about, id uint32) error {
	e := unix.EpollEvent{Events: events, Fd: int32(id), Pad: int32(about)}
	err := unix.EpollCtl(o.epoll, unix.EPOLL_CTL_ADD, fd, &e)
	if err == unix.EEXIST {
		err = unix.EpollCtl(o.epoll, unix.EPOLL_CTL_MOD, fd, &e)
	}
	if err != nil {
		return fmt.Errorf("epoll_ctl: %w", err)
	}
	return nil
}

// forget stops watching fd, which must come before it is closed: others have
// the same socket, and the kernel goes by that.
func (o *lookout) forget(fd int) { unix.EpollCtl(o.epoll, unix.EPOLL_CTL_DEL, fd, nil) }

// run gives each batch of events to handle until the process ends.
func (o *lookout) run(handle func([]unix.EpollEvent)) {
	events := make([]unix.EpollEvent, 64)
	for {
		n := 0
		o.raw.Read(func(fd uintptr) bool {
			n, _ = unix.EpollWait(int(fd), events, 0)
			return n > 0
		})
		if n > 0 {
			handle(events[:n])
		}
	}
}

// lookOut serves the lookout's events, in the binder's loop.
func (b *binder) lookOut() {
	b.lookout.run(func(events []unix.EpollEvent) {
		done := make(chan struct{})
		b.calls <- func() {
			for i := range events {
				b.sighted(&events[i])
			}
			close(done)
		}
		<-done
	})
}

func (b *binder) sighted(e *unix.EpollEvent) {
	if e.Pad == aboutLoanSocket {
		b.admitBorrower(uint32(e.Fd))
		return
	}
	l := b.active.listenerByID(uint32(e.Fd))
	if l == nil {
		return
	}
	if e.Events&(unix.EPOLLHUP|unix.EPOLLERR) != 0 {
		b.revive(l)
	}
	if e.Events&unix.EPOLLIN != 0 && l.standing.State == Undecided && l.standing.firstClient.IsZero() {
		l.standing.firstClient = time.Now()
		b.scout(l)
	}
}

// observe watches a listener for what matters in its state. A borrower's clients
// are none of the binder's business: without EPOLLIN, the kernel wakes nobody
// for them.
func (b *binder) observe(l *listener) {
	if l.fd < 0 {
		return
	}
	var events uint32
	switch l.standing.State {
	case Connection:
		b.lookout.forget(l.fd)
		return
	case Undecided:
		events = unix.EPOLLET | unix.EPOLLIN
	case Lent:
		events = unix.EPOLLET
	}
	if err := b.lookout.watch(l.fd, events, aboutListener, l.id); err != nil {
		b.log.Error("can't watch a listener", "listener", l.description.Name, "reason", err)
	}
}

// part closes the binder's descriptor of a listener.
func (b *binder) part(l *listener) {
	if l.fd >= 0 {
		b.lookout.forget(l.fd)
		l.closeSockets()
		l.fd = -1
	}
}
