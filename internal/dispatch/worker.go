package dispatch

import (
	"errors"
	"fmt"
	"log/slog"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"socketbox/internal/privsep"
	"socketbox/internal/rule"
)

// worker is the whole state of a dispatcher.
type worker struct {
	epoll   int
	control privsep.Channel
	outbox  []privsep.Message // waits for room in the control pair
	log     *slog.Logger
	setLog  func(*Plan) *slog.Logger

	table     uint32
	plan      *Plan
	rules     *rule.Compiled
	maps      map[uint32]*rule.Map // compiled, by ID
	mapStash  map[uint32]int       // descriptors for the next table, by map ID
	coming    chan *arrival        // a table on its way; nil: none
	bell      int                  // eventfd(2) that rings when it is there
	counters  *Counters
	listeners map[uint32]*listener
	stash     map[uint32]int // descriptors for the next table, by listener ID

	gates    map[int]*gate  // of rules with a limit of sessions, by index
	meters   map[int]*meter // of rules with a limit of rate, by index
	laters   laters
	retiring bool      // backlogs are emptied, whatever the rates say
	sessions *register // nil until a table has such rules

	routes        map[privsep.Key]*route
	routeByID     map[uint32]*route
	lastRoute     uint32
	sinks         map[uint32]*sink
	holding       map[*sink]struct{} // sinks with connections on hold
	waiting       int                // connections on hold in all
	exhausted     []*listener        // paused because descriptors ran out
	draining      bool
	drainingSince time.Time
	yielding      bool // to a successor: everything has been given back or is on its way
	nextSweep     time.Time
	nextRetry     time.Time
	hurry         bool   // something is to be tried again at the next retry
	trim          func() // gives back memory that only start-up and reloads need
	complaints    map[trouble]*complaint
	counts        tally  // of the connection in hand
	orphans       Counts // of listeners that a reload removed
	files         int    // descriptors that listeners, sinks and waiting connections may take

	born time.Time     // all marks count from here
	mark time.Duration // when the connection in hand was begun

	busy        bool // the last wait found something
	moderation  moderation
	gathering   gathering
	peer, local unix.RawSockaddrAny
	peerLen     uint32
	tcpInfo     unix.TCPInfo
	events      [64]unix.EpollEvent
}

// What an epoll event is about, in the upper half of its data; the lower half
// is the ID.
const (
	aboutControl = iota
	aboutListener
	aboutSink
	aboutTable
)

const (
	// batch bounds how many connections one listener gets served before the
	// others are looked at.
	batch = 64
	// sweepEvery is the resolution of hold.time and hold.busy, retryEvery the
	// pause before the kernel is tried again after it ran out of something.
	sweepEvery = 50 * time.Millisecond
	retryEvery = 10 * time.Millisecond
	// busyWait is how long, in milliseconds, a wait may keep the processor if the
	// scheduler's signal, after some 10 ms, fails to end it. It is no shorter,
	// since a timer that is due before the kernel's next tick costs more.
	busyWait = 100
	// reserve is how many descriptors accept leaves free: for what every
	// process has, and for the sockets that the binder sends. Without them no
	// receiver could be reached who would take what is on hold.
	reserve = 32
	// maxOutbox bounds messages to the binder that wait: two per route.
	maxOutbox = 2 * maxRoutes
)

// errEnd ends the worker in good order.
var errEnd = errors.New("the binder has ended")

func newWorker(control privsep.Channel, setLog func(*Plan) *slog.Logger) (*worker, error) {
	epoll, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("epoll_create1: %w", err)
	}
	w := &worker{
		epoll: epoll, control: control, setLog: setLog, log: setLog(&Plan{}),
		listeners: map[uint32]*listener{}, stash: map[uint32]int{}, mapStash: map[uint32]int{},
		routes: map[privsep.Key]*route{}, routeByID: map[uint32]*route{},
		trim:  func() {},
		sinks: map[uint32]*sink{}, holding: map[*sink]struct{}{},
		complaints: map[trouble]*complaint{}, born: time.Now(),
	}
	var lim unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &lim); err != nil {
		return nil, fmt.Errorf("getrlimit: %w", err)
	}
	w.files = int(min(lim.Cur, 1<<30)) - reserve
	if w.bell, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK); err != nil {
		return nil, fmt.Errorf("eventfd: %w", err)
	}
	if err := w.watch(unix.EPOLL_CTL_ADD, w.bell, unix.EPOLLIN, aboutTable, 0); err != nil {
		return nil, err
	}
	return w, w.watch(unix.EPOLL_CTL_ADD, control.FD, unix.EPOLLIN, aboutControl, 0)
}

// run works until the binder ends or says so.
func (w *worker) run() error {
	for {
		n, err := w.wait()
		if err != nil {
			return err
		}
		for i := range n {
			if err := w.handle(&w.events[i]); err != nil {
				return err
			}
		}
		if w.hurry || w.waiting > 0 {
			w.sweep(time.Now())
		}
		if len(w.laters) > 0 {
			w.catchUp()
		}
		if w.yielding && len(w.outbox) == 0 {
			return errEnd
		}
		if w.draining && w.waiting == 0 {
			w.tell(privsep.Message{Kind: privsep.Drained})
			return errEnd
		}
	}
}

// wait blocks until something is ready or the next sweep is due.
//
// While connections keep coming it waits without telling the Go scheduler,
// which would otherwise have its monitor thread take the processor away and
// wake others at every wait: a tenth of the CPU per connection. Such a wait is
// short, and the scheduler's preemption signal ends it early. As soon as
// nothing came, the wait goes through the scheduler.
func (w *worker) wait() (int, error) {
	timeout := w.timeout()
	if w.moderation.due(w.mark) && w.busy {
		nap()
	}
	if w.busy {
		bounded := busyWait
		if timeout >= 0 {
			bounded = min(timeout, busyWait)
		}
		n, _, errno := unix.RawSyscall6(unix.SYS_EPOLL_PWAIT, uintptr(w.epoll), uintptr(unsafe.Pointer(&w.events)),
			uintptr(len(w.events)), uintptr(bounded), 0, 0)
		w.busy = errno == 0 && n > 0
		if w.busy || errno == 0 && bounded == timeout {
			return int(n), nil
		}
	}
	n, err := unix.EpollWait(w.epoll, w.events[:], timeout)
	w.busy = n > 0
	if err == unix.EINTR {
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("epoll_wait: %w", err)
	}
	return n, nil
}

// timeout is how long the next wait may last, in milliseconds; -1: for ever.
func (w *worker) timeout() int {
	timeout := -1
	if w.hurry {
		timeout = int(retryEvery / time.Millisecond)
	} else if w.waiting > 0 {
		timeout = int(sweepEvery / time.Millisecond)
	}
	if len(w.laters) > 0 {
		if soon := max(w.until(w.laters[0].at), 0); timeout < 0 || soon < timeout {
			timeout = soon
		}
	}
	return timeout
}

func (w *worker) handle(e *unix.EpollEvent) error {
	id := uint32(e.Fd)
	switch e.Pad {
	case aboutControl:
		return w.handleControl(e.Events)
	case aboutListener:
		if l := w.listeners[id]; l != nil && l.paused == 0 {
			w.serve(l)
		}
	case aboutTable:
		var count [8]byte
		unix.Read(w.bell, count[:])
		w.awaitInstall()
	case aboutSink:
		if s := w.sinks[id]; s != nil {
			w.pump(s)
		}
	}
	return nil
}

// watch changes the epoll set.
func (w *worker) watch(op, fd int, events uint32, about int32, id uint32) error {
	e := unix.EpollEvent{Events: events, Fd: int32(id), Pad: about}
	if err := unix.EpollCtl(w.epoll, op, fd, &e); err != nil {
		return fmt.Errorf("epoll_ctl: %w", err)
	}
	return nil
}

// serve accepts what is in the backlog of l, until its share is used up or it
// has to pause. It asks for no more than there is: an accept4 that finds nothing
// has made a file, an inode and a socket, and undoes them.
func (w *worker) serve(l *listener) {
	w.begin()
	w.gathering.on = true
	for n := min(w.expected(l), batch); n > 0 && w.serveOne(l) && l.paused == 0; n-- {
	}
	w.gathering.on = false
	w.sendGathered()
}

// serveOne takes one connection off the backlog of l and sends it on its way.
// It returns false when there is none to take now.
func (w *worker) serveOne(l *listener) bool {
	if w.waiting+w.gathering.n+len(w.sinks)+len(w.listeners) >= w.files {
		w.exhaust(l, unix.EMFILE)
		return false
	}
	if l.paced != nil && !w.retiring && !w.mayAccept(l) {
		return false
	}
	fd, errno := w.accept(l)
	switch errno {
	case 0:
		if l.meter == nil && len(w.meters) == 0 {
			w.moderation.came++
		}
		w.pace(l)
		w.take(l, fd)
		return true
	case unix.EAGAIN:
		return false
	case unix.EMFILE, unix.ENFILE, unix.ENOBUFS, unix.ENOMEM:
		w.exhaust(l, errno)
		return false
	case unix.EBADF, unix.EINVAL, unix.ENOTSOCK, unix.EOPNOTSUPP, unix.EFAULT:
		w.complain("listener is dead", l.Name, errno)
		w.pause(l)
		return false
	default: // ECONNABORTED, EINTR, EPERM, network errors of that one connection (accept(2))
		return true
	}
}

// exhaust leaves l alone until the next retry: there is no descriptor or
// memory for its clients.
func (w *worker) exhaust(l *listener, errno unix.Errno) {
	w.complain("can't accept", l.Name, errno)
	w.pause(l)
	w.exhausted = append(w.exhausted, l)
	w.hurry = true
}

// pause takes l out of the epoll set, so that its backlog holds the clients;
// resume undoes one pause.
func (w *worker) pause(l *listener) {
	if l.paused++; l.paused == 1 {
		w.watch(unix.EPOLL_CTL_DEL, l.fd, 0, aboutListener, l.ID)
	}
}

func (w *worker) resume(l *listener) {
	if l.paused--; l.paused == 0 && w.listeners[l.ID] == l {
		w.watch(unix.EPOLL_CTL_ADD, l.fd, unix.EPOLLIN, aboutListener, l.ID)
	}
}

// sweep retries what the kernel could not take and ends what has waited too
// long.
func (w *worker) sweep(now time.Time) {
	if w.hurry && !now.Before(w.nextRetry) {
		w.nextRetry = now.Add(retryEvery)
		w.retry()
	}
	if now.Before(w.nextSweep) {
		return
	}
	w.nextSweep = now.Add(sweepEvery)
	for s := range w.holding {
		w.expire(s, now)
	}
	w.expireGates(now)
}

// retry tries again what the kernel had no descriptor or memory for.
func (w *worker) retry() {
	exhausted := w.exhausted
	w.exhausted, w.hurry = nil, false
	for _, l := range exhausted {
		w.resume(l)
	}
	for s := range w.holding {
		if s.starved {
			s.starved = false
			w.pump(s)
		}
	}
}
