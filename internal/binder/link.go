package binder

import (
	"errors"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"socketbox/internal/handoff"
	"socketbox/internal/privsep"
)

// link is the binder's end of the control pair, with a queue for what the
// dispatcher has no room for yet: the binder never waits for its dispatcher.
type link struct {
	channel privsep.Channel
	file    *os.File
	raw     syscall.RawConn

	mu     sync.Mutex
	queue  []privsep.Message
	filled chan struct{} // holds one token while the queue may have something
	mute   bool          // nothing is sent any more
	closed bool
}

// newLink takes over the channel's descriptor.
func newLink(c privsep.Channel) (*link, error) {
	file := os.NewFile(uintptr(c.FD), "control")
	raw, err := file.SyscallConn()
	if err != nil {
		file.Close()
		return nil, err
	}
	l := &link{channel: c, file: file, raw: raw, filled: make(chan struct{}, 1)}
	go l.write()
	return l, nil
}

// send queues m; its descriptors belong to the link from here on.
func (l *link) send(m privsep.Message) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.mute {
		closeAll(m.FDs)
		return
	}
	l.queue = append(l.queue, m)
	select {
	case l.filled <- struct{}{}:
	default:
	}
}

// write sends from the queue until the link is closed or the partner is gone.
func (l *link) write() {
	for range l.filled {
		for {
			m, ok := l.next()
			if !ok {
				break
			}
			err := l.deliver(m)
			closeAll(m.FDs)
			if err != nil {
				l.silence() // the reader still hears what the partner said before it ended
				return
			}
		}
	}
}

// starvedPause is how long a message waits that the kernel could not take.
const starvedPause = 10 * time.Millisecond

// deliver sends m, waiting for room in the pair. Where the kernel can't pass
// descriptors just now (they count per uid while in flight: ETOOMANYREFS) it
// tries again, until that has passed or the link is closed: the dispatcher is
// well, and has connections on hold.
func (l *link) deliver(m privsep.Message) error {
	for {
		var err error
		waitErr := l.raw.Write(func(uintptr) bool {
			err = l.channel.Send(m)
			return !errors.Is(err, unix.EAGAIN)
		})
		var errno unix.Errno
		if waitErr != nil || !errors.As(err, &errno) || handoff.OutcomeOf(errno) != handoff.Starved {
			return errors.Join(waitErr, err)
		}
		time.Sleep(starvedPause)
	}
}

// behind is how many messages wait for the dispatcher to read.
func (l *link) behind() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.queue)
}

func (l *link) next() (privsep.Message, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.queue) == 0 {
		l.queue = nil
		return privsep.Message{}, false
	}
	m := l.queue[0]
	l.queue = l.queue[1:]
	return m, true
}

// receive waits for the next message. ok is false at the end of file.
func (l *link) receive() (m privsep.Message, ok bool, err error) {
	waitErr := l.raw.Read(func(uintptr) bool {
		m, ok, err = l.channel.Receive()
		return !errors.Is(err, unix.EAGAIN)
	})
	if waitErr != nil {
		return privsep.Message{}, false, nil // closed on this side
	}
	return m, ok, err
}

// silence ends what is queued on the link, and what would be.
func (l *link) silence() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.mute {
		return
	}
	l.mute = true
	for _, m := range l.queue {
		closeAll(m.FDs)
	}
	l.queue = nil
	close(l.filled)
}

// close ends the link. The partner sees an end of file.
func (l *link) close() {
	l.silence()
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.closed {
		l.closed = true
		l.file.Close()
	}
}
