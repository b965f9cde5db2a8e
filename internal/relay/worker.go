package relay

import (
	"container/heap"
	"fmt"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// worker serves a share of the connections on one thread. Whatever others
// want of it goes through post.
type worker struct {
	relay *relay
	epoll int
	now   int64 // nanoseconds since the relay began, as of this turn
	place place

	connections []*connection // by slot; nil: free
	generations []uint32      // of slots: events of an earlier user are not meant
	free        []int32
	load        atomic.Int64 // connections
	timers      timers
	busyFlows   []*connection // whose turn was over before their bytes
	pipes       pipePool

	wake     int // eventfd
	sleeping atomic.Bool
	mu       sync.Mutex
	inbox    []func()
	over     bool

	taking    map[int]*source // in the epoll set, by descriptor
	pausing   atomic.Bool     // there is no room: sources are out of the epoll set
	lately    int             // so many connections came at once
	retryAt   int64           // take sources in again, after the kernel ran out of something; 0: no
	found     bool            // the last wait found something
	attrs     counters
	buffer    [copySize]byte
	events    [128]unix.EpollEvent
	lastPlace int64 // when the thread's namespace was last looked at
}

// What an epoll event is about: the lowest bits of its Pad. Above them is the
// slot's generation; Fd is the slot or the source's descriptor.
const (
	aboutWake = iota
	aboutSource
	aboutClient
	aboutAttempt // and up to maxAttempts more: the connection's destination, once one has won
	aboutBits    = 3
	aboutMask    = 1<<aboutBits - 1
)

// edge is how a connection's sockets are watched: once, for everything.
const edge = unix.EPOLLIN | unix.EPOLLOUT | unix.EPOLLRDHUP | unix.EPOLLET&0xffffffff

// busyWait is how long, in milliseconds, a wait may keep the processor from
// Go's scheduler: see wait.
const busyWait = 1

func newWorker(r *relay) (*worker, error) {
	w := &worker{relay: r, place: place{home: -1}, taking: make(map[int]*source)}
	w.pipes.budget = &r.pipeBudget
	var err error
	if w.epoll, err = unix.EpollCreate1(unix.EPOLL_CLOEXEC); err != nil {
		return nil, fmt.Errorf("epoll_create1: %w", err)
	}
	if w.wake, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK); err != nil {
		return nil, fmt.Errorf("eventfd: %w", err)
	}
	if err := w.watch(w.wake, unix.EPOLLIN, aboutWake, 0); err != nil {
		return nil, err
	}
	return w, nil
}

// post has the worker do something, soon, on its thread.
func (w *worker) post(do func()) {
	w.mu.Lock()
	w.inbox = append(w.inbox, do)
	w.mu.Unlock()
	if w.sleeping.Load() {
		unix.Write(w.wake, []byte{1, 0, 0, 0, 0, 0, 0, 0})
	}
}

// run works until it is posted that it is over.
func (w *worker) run() {
	for !w.over {
		n := w.wait()
		w.now = w.relay.clock()
		for i := range n {
			w.handle(&w.events[i])
		}
		w.handlePosted()
		w.resumeFlows()
		w.expire()
	}
}

// wait blocks until something is ready, posted or due. While something is
// always ready it waits without telling the Go scheduler, which would
// otherwise take the processor away and wake others at every wait; such a wait
// is short, and the scheduler's preemption signal ends it early.
func (w *worker) wait() int {
	timeout := w.untilDue()
	if w.found || timeout == 0 {
		brief := uintptr(busyWait)
		if timeout >= 0 {
			brief = min(brief, uintptr(timeout))
		}
		n, _, errno := unix.RawSyscall6(unix.SYS_EPOLL_PWAIT, uintptr(w.epoll), uintptr(unsafe.Pointer(&w.events)), uintptr(len(w.events)), brief, 0, 0)
		if w.found = errno == 0 && n > 0; w.found {
			return int(n)
		}
		if timeout == 0 {
			return 0
		}
	}
	w.sleeping.Store(true)
	if w.posted() {
		w.sleeping.Store(false)
		return 0
	}
	n, _ := unix.EpollWait(w.epoll, w.events[:], timeout)
	w.sleeping.Store(false)
	w.found = n > 0
	return max(n, 0)
}

// untilDue returns how long to wait at most, in milliseconds; -1: for ever.
func (w *worker) untilDue() int {
	if len(w.busyFlows) > 0 {
		return 0
	}
	due := w.retryAt
	if len(w.timers) > 0 && (due == 0 || w.timers[0].due < due) {
		due = w.timers[0].due
	}
	if w.place.path != home && w.place.home >= 0 {
		if next := w.lastPlace + int64(time.Second); due == 0 || next < due {
			due = next
		}
	}
	if due == 0 {
		return -1
	}
	const milli = int64(time.Millisecond)
	return int(max(0, (due-w.relay.clock()+milli-1)/milli))
}

func (w *worker) posted() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.inbox) > 0
}

func (w *worker) handlePosted() {
	w.mu.Lock()
	posted := w.inbox
	w.inbox = nil
	w.mu.Unlock()
	for _, do := range posted {
		do()
	}
}

func (w *worker) handle(e *unix.EpollEvent) {
	about := e.Pad & aboutMask
	switch about {
	case aboutWake:
		var count [8]byte
		unix.Read(w.wake, count[:])
		return
	case aboutSource:
		if s := w.taking[int(e.Fd)]; s != nil {
			w.take(s)
		}
		return
	}
	c := w.connections[e.Fd]
	if c == nil || uint32(e.Pad)>>aboutBits != w.generations[e.Fd]&(1<<(32-aboutBits)-1) {
		return // of a connection that has ended
	}
	if about == aboutClient {
		c.clientEvent(e.Events)
		return
	}
	c.destinationEvent(int(about-aboutAttempt), e.Events)
}

// watch adds a descriptor to the epoll set.
func (w *worker) watch(fd int, events uint32, about int32, slot int32) error {
	e := unix.EpollEvent{Events: events, Fd: slot, Pad: about}
	_, _, errno := unix.RawSyscall6(unix.SYS_EPOLL_CTL, uintptr(w.epoll), unix.EPOLL_CTL_ADD, uintptr(fd), uintptr(unsafe.Pointer(&e)), 0, 0)
	if errno != 0 {
		return fmt.Errorf("epoll_ctl: %w", errno)
	}
	return nil
}

// unwatch takes it out again: for what others may still hold, close(2) alone
// does not.
func (w *worker) unwatch(fd int) {
	var e unix.EpollEvent
	unix.RawSyscall6(unix.SYS_EPOLL_CTL, uintptr(w.epoll), unix.EPOLL_CTL_DEL, uintptr(fd), uintptr(unsafe.Pointer(&e)), 0, 0)
}

// close closes what the worker has for itself.
func (w *worker) close() {
	for _, p := range w.pipes.free {
		w.pipes.drop(p)
	}
	for _, fd := range []int{w.epoll, w.wake, w.place.home} {
		if fd >= 0 {
			unix.Close(fd)
		}
	}
}

// settle gives c a slot.
func (w *worker) settle(c *connection) {
	c.w = w
	if n := len(w.free); n > 0 {
		c.slot = w.free[n-1]
		w.free = w.free[:n-1]
		w.connections[c.slot] = c
	} else {
		c.slot = int32(len(w.connections))
		w.connections = append(w.connections, c)
		w.generations = append(w.generations, 0)
	}
	w.load.Add(1)
}

// vacate frees the slot of c: events on their way to it lead nowhere.
func (w *worker) vacate(c *connection) {
	w.connections[c.slot] = nil
	w.generations[c.slot]++
	w.free = append(w.free, c.slot)
	w.timers.set(c, 0)
	w.load.Add(-1)
}

// about returns the tag of an event of c.
func (c *connection) about(kind int) int32 {
	return int32(c.w.generations[c.slot]<<aboutBits | uint32(kind))
}

// resumeFlows gives another turn to those whose turn was over.
func (w *worker) resumeFlows() {
	if len(w.busyFlows) == 0 {
		return
	}
	turns := w.busyFlows
	w.busyFlows = nil
	for _, c := range turns {
		c.busy = false
		if c.state == relaying {
			c.pump()
		}
	}
}

// expire does what is due.
func (w *worker) expire() {
	for len(w.timers) > 0 && w.timers[0].due <= w.now {
		c := heap.Pop(&w.timers).(*connection)
		c.due = 0
		c.onTime()
	}
	if w.retryAt != 0 && w.retryAt <= w.now {
		w.retryAt = 0
		w.resumeTaking()
	}
	if w.place.home >= 0 && w.now-w.lastPlace >= int64(time.Second) {
		w.lastPlace = w.now
		w.place.rest()
	}
}
