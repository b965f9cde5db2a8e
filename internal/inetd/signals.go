package inetd

import (
	"fmt"
	"os"
	"os/signal"
	"sync/atomic"
	"time"

	"socketbox/internal/notify"

	"golang.org/x/sys/unix"
)

// signals carries signals into the loop: an eventfd wakes it.
type signals struct {
	wake     int
	sleeping atomic.Bool    // the loop sleeps: a child's end is to wake it
	orders   chan os.Signal // for the loop
	raw      chan os.Signal // from the runtime
	children chan os.Signal // SIGCHLD, from the runtime
}

// newSignals takes over all signals that mean something here. It also takes
// those over that a parent may have told us to ignore: what is handled here
// is at its default in the children.
func newSignals() (*signals, error) {
	wake, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return nil, os.NewSyscallError("eventfd", err)
	}
	s := &signals{
		wake:     wake,
		orders:   make(chan os.Signal, 16),
		raw:      make(chan os.Signal, 16),
		children: make(chan os.Signal, 1),
	}
	signal.Notify(s.raw, unix.SIGTERM, unix.SIGINT, unix.SIGHUP, unix.SIGUSR1, unix.SIGUSR2, unix.SIGPIPE)
	signal.Notify(s.children, unix.SIGCHLD)
	go s.forward()
	go s.forwardChildren()
	return s, nil
}

// forward leaves SIGPIPE unanswered: a log that nobody reads is no reason to
// end.
func (s *signals) forward() {
	for sig := range s.raw {
		if sig != unix.SIGPIPE {
			s.orders <- sig
			s.rouse()
		}
	}
}

// forwardChildren wakes the loop only if it sleeps: at work it looks for
// children's ends at each turn.
func (s *signals) forwardChildren() {
	for range s.children {
		if s.sleeping.Load() {
			s.rouse()
		}
	}
}

func (s *signals) rouse() { unix.Write(s.wake, []byte{1, 0, 0, 0, 0, 0, 0, 0}) }

// wait sleeps until fd is readable (-1: none), a signal came, or the time is
// over.
func (s *signals) wait(fd int, timeout time.Duration) {
	fds := []unix.PollFd{{Fd: int32(s.wake), Events: unix.POLLIN}, {Fd: int32(fd), Events: unix.POLLIN}}
	t := unix.NsecToTimespec(timeout.Nanoseconds())
	unix.Ppoll(fds, &t, nil)
	if fds[0].Revents != 0 {
		var count [8]byte
		unix.Read(s.wake, count[:])
	}
}

// next returns a signal that came, nil if there is none.
func (s *signals) next() os.Signal {
	select {
	case sig := <-s.orders:
		return sig
	default:
		return nil
	}
}

func (s *signals) close() {
	signal.Stop(s.raw)
	signal.Stop(s.children)
	close(s.raw)
	close(s.children)
	unix.Close(s.wake)
}

func signalName(sig os.Signal) string {
	if n, ok := sig.(unix.Signal); ok {
		if name := unix.SignalName(n); name != "" {
			return name
		}
	}
	return fmt.Sprint(sig)
}

// handleSignals does what the signals that came ask for.
func (s *server) handleSignals(now time.Time) {
	for sig := s.signals.next(); sig != nil; sig = s.signals.next() {
		switch sig {
		case unix.SIGTERM, unix.SIGINT:
			s.stop(signalName(sig), now)
		case unix.SIGHUP:
			s.log.Info("nothing to reload: socketbox-inetd has no configuration file", "signal", "SIGHUP")
			notify.Reloaded()
		case unix.SIGUSR1:
			s.dump(now)
		}
	}
}

// stop begins the end, or hastens it.
func (s *server) stop(signal string, now time.Time) {
	switch {
	case !s.stopping:
		s.stopping = true
		s.shutdown(signal, now)
	case !s.forced:
		s.forced = true
		s.log.Warn("ending now", "signal", signal, "children", len(s.children), "held", s.admission.held())
		s.dropHeld()
		for _, ch := range s.children {
			s.end(ch, now)
		}
	default:
		for _, ch := range s.children {
			kill(ch, ch)
		}
	}
}

// shutdown closes the receiving socket to senders, who keep from then on what
// they have, and takes what is queued in it.
func (s *server) shutdown(signal string, now time.Time) {
	notify.State("STOPPING=1\nSTATUS=Serving what was received")
	if s.receiver != nil {
		if err := s.receiver.Shutdown(); err != nil {
			s.log.Error("can't shut the receiving socket", "error", err)
		}
		if err := s.drain(now); err != nil {
			s.log.Error("can't take what is queued", "error", err)
		}
	}
	s.log.Info("ending when all children have ended", "signal", signal, "children", len(s.children), "held", s.admission.held())
}

// dropHeld resets all connections that wait.
func (s *server) dropHeld() {
	for _, c := range s.admission.dropHeld() {
		s.counters.lost++
		c.refuse()
	}
}
