package inetd

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"time"

	"socketbox/internal/handoff"
	"socketbox/internal/peer"
)

// loop serves until there is nothing left to serve. It keeps its thread: it
// waits in the kernel by itself, and a change of threads at each turn is time
// that no connection has to spare.
func (s *server) loop() error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	for !s.finished() {
		now := time.Now()
		s.reap(now)
		s.settle()
		s.expire(now)
		s.handleSignals(now)
		s.keepHouse(now)
		busy, err := s.step(now)
		if err != nil {
			return err
		}
		if !busy && !s.finished() {
			s.wait(now)
		}
	}
	return s.result()
}

// finished tells whether the server was told to end and has nothing left.
func (s *server) finished() bool {
	return s.stopping && s.receiver == nil && s.admission.held() == 0 && len(s.children) == 0 && !s.orphansLeft()
}

// result logs the sum of it all.
func (s *server) result() error {
	s.log.Info("ended", s.counters.attrs()...)
	if s.forced && s.counters.lost > 0 {
		return fmt.Errorf("ended by a second signal, %d connections were reset", s.counters.lost)
	}
	return nil
}

// step starts one child or takes one datagram. It returns false if it could
// do neither.
func (s *server) step(now time.Time) (busy bool, err error) {
	if delay, full := s.admission.delay(now); full || delay > 0 {
		return false, nil
	}
	if c := s.admission.next(); c != nil {
		s.start(c, now)
		return true, nil
	}
	if s.receiver == nil || !s.mayReceive() {
		return false, nil
	}
	return s.receive(now)
}

// mayReceive tells whether one more connection can be taken: a descriptor for
// which there is no room any more is lost in recvmsg(2) itself.
func (s *server) mayReceive() bool {
	if s.admission.full() {
		s.warn("too many connections wait for others of their client: receiving nothing until one has ended", "waiting", s.admission.waiting)
		return false
	}
	return s.admission.mayReceive() && s.admission.held()+len(s.launching) < s.admission.bound
}

// receive takes one datagram, if there is one.
func (s *server) receive(now time.Time) (bool, error) {
	conn, err := s.receiver.TryRecv()
	switch {
	case err == nil:
		s.take(conn, now)
		return true, nil
	case errors.Is(err, handoff.ErrEmpty):
		return false, nil
	case errors.Is(err, handoff.ErrBad):
		s.counters.bad++
		s.warn("refused a datagram", "error", err)
		return true, nil
	case errors.Is(err, os.ErrClosed):
		s.closeReceiver()
		return true, nil
	}
	return false, err
}

// take owns conn from here on.
func (s *server) take(conn handoff.Conn, now time.Time) {
	s.counters.received++
	c, err := describe(conn, now)
	switch {
	case err == nil:
		s.admission.add(c)
	case errors.Is(err, peer.ErrGone):
		s.counters.gone++
		s.log.Debug("the client had gone before its connection came")
	default:
		s.counters.lost++
		s.warn("can't serve a connection", "error", err)
	}
}

// drain takes everything that is queued in the receiving socket, whatever the
// limits, and closes it: a successor may bind the path at once.
func (s *server) drain(now time.Time) error {
	for s.receiver != nil {
		if busy, err := s.receive(now); err != nil || !busy {
			s.closeReceiver()
			return err
		}
	}
	return nil
}

func (s *server) closeReceiver() {
	if s.receiver != nil {
		s.receiver.Close()
		s.receiver = nil
	}
}

// settleEvery is how soon a socket is closed here whose program runs, when
// nothing else wakes the loop.
const settleEvery = time.Millisecond

// While children have been started lately their ends are looked for this often;
// afterwards SIGCHLD tells, and also while nothing goes on without an end.
const (
	reapEvery = 5 * time.Millisecond
	lately    = 100 * time.Millisecond
)

// hurried tells whether a child was started lately.
func (s *server) hurried(now time.Time) bool { return now.Sub(s.lastStart) < lately }

// wait sleeps until there is something to do: a datagram that may be taken,
// a child's end, a signal, a time.
func (s *server) wait(now time.Time) {
	timeout := s.nextLook.Sub(now)
	sooner := func(d time.Duration) { timeout = min(timeout, d) }
	delay, full := s.admission.delay(now)
	fd := -1
	switch {
	case full:
	case delay > 0:
		sooner(delay)
	case s.receiver != nil && s.mayReceive():
		fd = s.receiver.FD()
	}
	if len(s.launching) > 0 {
		sooner(settleEvery)
	}
	if e := s.timeouts.Front(); e != nil {
		sooner(e.Value.(*child).started.Add(s.o.Timeout).Sub(now))
	}
	if d, ok := s.kills.first(); ok {
		sooner(d.at.Sub(now))
	}
	if s.hurried(now) && !full && !s.stopping {
		sooner(reapEvery)
	} else {
		s.childSignal.set(true)
	}
	s.signals.sleeping.Store(true)
	defer s.signals.sleeping.Store(false)
	if s.reap(now) > 0 {
		return // it ended before the signal handler knew that we sleep
	}
	s.signals.wait(fd, max(timeout, 0))
}
