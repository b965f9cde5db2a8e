package relay

import (
	"errors"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"socketbox/internal/handoff"
	"socketbox/internal/peer"
	"socketbox/internal/receive"
)

// source is where connections come from: a receiving socket or a listener.
// All workers watch it, each wakes one of them, and that one takes.
type source struct {
	fd       int
	name     string            // of the listener
	receiver *handoff.Receiver // nil: a listener
	place    receive.Place     // of a receiver, to bind it again
	unbound  error             // why its path is not ours any more

	mu      sync.Mutex
	ending  bool // what is in its backlog is the last
	closing bool // nothing is left in it
	holders int  // workers that have not let go of it yet
	closed  bool
}

const (
	// batch bounds how many connections a worker takes before it looks after
	// those that it has.
	batch = 16
	// starved is how long a worker takes nothing when the kernel has run out
	// of descriptors or memory.
	starved = 50 * time.Millisecond
)

// attend begins to take from s.
func (w *worker) attend(s *source) {
	w.taking[s.fd] = s
	if !w.pausing.Load() && w.retryAt == 0 {
		w.watchSource(s)
	}
}

func (w *worker) watchSource(s *source) {
	if err := w.watch(s.fd, unix.EPOLLIN|unix.EPOLLEXCLUSIVE, aboutSource, int32(s.fd)); err != nil {
		w.relay.warn("can't wait for connections", "error", err)
	}
}

// desert stops taking from s, whose descriptor is still open.
func (w *worker) desert(s *source) {
	if w.taking[s.fd] == s {
		w.unwatch(s.fd)
		delete(w.taking, s.fd)
	}
}

// take takes a batch from s, or pauses.
func (w *worker) take(s *source) {
	// Not one more is asked for than came the last time: the next wait tells
	// as well whether there is more.
	for n := range batch {
		if n > w.lately {
			w.lately = n
			return
		}
		if !w.relay.limits.reserve() {
			w.pauseTaking()
			return
		}
		if !w.takeOne(s) {
			if w.relay.limits.release() {
				w.relay.roomOpened()
			}
			w.lately = n
			return
		}
	}
}

// takeOne takes one connection; false if there is none, or none can be taken.
// It uses up the reserved place if it returns true.
func (w *worker) takeOne(s *source) bool {
	fd, listener := -1, s.name
	if s.receiver != nil {
		conn, ok := w.receive(s)
		if !ok {
			return false
		}
		fd, listener = conn.FD, conn.Header.Listener
	} else {
		var errno unix.Errno
		if fd, errno = accept(s.fd); errno != 0 {
			w.acceptFailed(s, errno)
			return false
		}
	}
	w.attrs.received.Add(1)
	w.relay.lightest(w).adopt(fd, listener, s.receiver != nil, w)
	return true
}

// receive takes a datagram.
func (w *worker) receive(s *source) (handoff.Conn, bool) {
	for {
		conn, err := s.receiver.TryRecv()
		switch {
		case err == nil:
			return conn, true
		case errors.Is(err, handoff.ErrBad):
			w.attrs.bad.Add(1)
			w.relay.warn("refused a datagram", "error", err)
			continue
		case errors.Is(err, handoff.ErrEmpty):
		case errors.Is(err, os.ErrClosed):
			w.relay.close(s)
		default:
			w.relay.warn("can't receive", "error", err)
			w.starve()
		}
		return handoff.Conn{}, false
	}
}

// acceptFailed looks why there is no client.
func (w *worker) acceptFailed(s *source, errno unix.Errno) {
	switch errno {
	case unix.EAGAIN:
		if s.isEnding() {
			w.relay.close(s)
		}
	case unix.EMFILE, unix.ENFILE, unix.ENOBUFS, unix.ENOMEM:
		w.relay.warn("can't accept, trying again", "error", errno)
		w.starve()
	case unix.EBADF, unix.EINVAL, unix.ENOTSOCK:
		w.desert(s)
	}
	// The rest is the misfortune of one client (accept(2)).
}

func (s *source) isEnding() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.ending
}

// pauseTaking leaves clients where they are until there is room.
func (w *worker) pauseTaking() {
	if w.pausing.Swap(true) {
		return
	}
	for _, s := range w.taking {
		w.unwatch(s.fd)
	}
	if w.relay.limits.open() { // between the look and the pause
		w.post(w.roomOpened)
	}
}

// roomOpened ends the pause.
func (w *worker) roomOpened() {
	if w.pausing.Swap(false) {
		w.watchAll()
	}
}

// starve takes nothing for a moment.
func (w *worker) starve() {
	if w.retryAt == 0 && !w.pausing.Load() {
		for _, s := range w.taking {
			w.unwatch(s.fd)
		}
	}
	w.retryAt = w.now + int64(starved)
}

// resumeTaking ends that.
func (w *worker) resumeTaking() {
	if !w.pausing.Load() {
		w.watchAll()
	}
}

func (w *worker) watchAll() {
	if w.retryAt != 0 {
		return
	}
	for _, s := range w.taking {
		w.watchSource(s)
	}
}

// adopt makes w own a connection that by has taken. It has a place.
func (w *worker) adopt(fd int, listener string, handedOff bool, by *worker) {
	c := &connection{listener: listener, handedOff: handedOff, place: -1, began: by.now}
	c.client.fd = fd
	if w == by {
		w.begin(c)
		return
	}
	w.load.Add(1) // seen at once by whoever takes the next one
	w.post(func() {
		w.load.Add(-1)
		w.begin(c)
	})
}

// begin looks at a new connection.
func (w *worker) begin(c *connection) {
	w.settle(c)
	if err := c.prepare(); err != nil {
		if errors.Is(err, peer.ErrGone) {
			w.attrs.gone.Add(1)
		} else {
			w.attrs.failed.Add(1)
			w.relay.warn("can't serve a connection", "error", err)
		}
		c.reset()
		return
	}
	c.start()
}
