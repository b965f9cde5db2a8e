package launch

import (
	"fmt"
	"os"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"socketbox/internal/handoff"
)

// This file is about daemons that run only while clients come. The supervisor
// borrows their listeners for itself, beside the daemon, and accepts nothing: it
// looks whether somebody comes there.

// arrivals watches listening sockets by a thread of its own, which waits in
// poll(2). While no daemon accepts, poll returns when a client waits. A daemon
// that accepts is quicker than this thread, for which there is nothing left then;
// but it has been woken, and the kernel counts that (getrusage(2),
// ru_nvcsw): that is how a client is noticed whom somebody else has accepted.
type arrivals struct {
	fds    []unix.PollFd // the last one is stop
	stop   int           // eventfd
	seen   chan struct{} // a client waits
	thread int
	woken  string // the count at the last look
	done   chan struct{}
}

// watchArrivals watches the sockets, which stay the caller's and must stay open
// until end.
func watchArrivals(sockets []lentSocket) (*arrivals, error) {
	stop, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("eventfd", err)
	}
	a := &arrivals{stop: stop, seen: make(chan struct{}, 1), done: make(chan struct{})}
	for _, s := range sockets {
		a.fds = append(a.fds, unix.PollFd{Fd: int32(s.fd), Events: unix.POLLIN})
	}
	a.fds = append(a.fds, unix.PollFd{Fd: int32(stop), Events: unix.POLLIN})
	started := make(chan int)
	go a.watch(started)
	a.thread = <-started
	return a, nil
}

// seenPause is how long a client who waits is not told of again.
const seenPause = 20 * time.Millisecond

func (a *arrivals) watch(started chan<- int) {
	runtime.LockOSThread() // until the goroutine ends, and the thread with it
	defer close(a.done)
	started <- unix.Gettid()
	for {
		n, err := unix.Poll(a.fds, -1)
		switch {
		case err == unix.EINTR:
			continue
		case err != nil, a.fds[len(a.fds)-1].Revents != 0:
			return
		case n > 0:
			select {
			case a.seen <- struct{}{}:
			default:
			}
			time.Sleep(seenPause)
		}
	}
}

// end ends the watching.
func (a *arrivals) end() {
	unix.Write(a.stop, []byte{1, 0, 0, 0, 0, 0, 0, 0})
	<-a.done
	unix.Close(a.stop)
}

// any says whether a client has come since it was last asked.
func (a *arrivals) any() bool {
	woken := a.wakeups()
	came := woken != a.woken
	a.woken = woken
	select {
	case <-a.seen:
		return true
	default:
		return came
	}
}

// wakeups is how often the thread was woken, as the kernel writes it.
func (a *arrivals) wakeups() string {
	text, _ := os.ReadFile(fmt.Sprintf("/proc/self/task/%d/status", a.thread))
	_, count, _ := strings.Cut(string(text), "\nvoluntary_ctxt_switches:")
	count, _, _ = strings.Cut(count, "\n")
	return count
}

// awaitClient borrows the daemon's listeners and returns as soon as a client
// waits, or the supervisor is to end.
func (s *supervisor) awaitClient() error {
	if s.arrivals != nil {
		s.arrivals.end()
		s.arrivals = nil
	}
	if err := s.borrowAll(); err != nil {
		return &handoff.HintError{Err: err, Text: "--on-demand looks at the listening socket itself: it must be lent (no rule for it, or handoff = \"listener\")"}
	}
	var err error
	if s.arrivals, err = watchArrivals(s.lent); err != nil {
		return err
	}
	s.log.Info("waiting for the first client", "ports", s.o.Ports.String())
	for !s.stopping {
		select {
		case <-s.arrivals.seen:
			s.lastClient = time.Now()
			return nil
		case <-s.children:
			s.reapAll()
		case sig := <-s.signals:
			s.noteStop(sig)
		}
	}
	return nil
}

// idleLooks is how often a running daemon's listeners are looked at, in parts of
// --idle.
const idleLooks = 10

// lookIdle is called from time to time while the daemon runs, and ends it with
// TERM once no client has come for --idle. What comes from then on waits for the
// next start.
func (s *supervisor) lookIdle() {
	came := s.arrivals.any()
	switch {
	case s.stopping:
	case s.idle:
		if time.Since(s.told) > s.o.KillAfter {
			signalAll(append(children(), s.pid), unix.SIGKILL)
		}
	case came:
		s.lastClient = time.Now()
	case time.Since(s.lastClient) >= s.o.Idle:
		s.log.Info("ending the daemon: no client has come", "idle", s.o.Idle)
		s.idle, s.told = true, time.Now()
		signalAll(append(children(), s.pid), unix.SIGTERM)
	}
}
