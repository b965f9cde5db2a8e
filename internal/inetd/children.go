package inetd

import (
	"container/list"
	"errors"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"socketbox/internal/inetd/spawn"
)

// child is a process that was started for a connection. Its pid is also its
// session and its process group.
type child struct {
	pid     int
	conn    *connection
	launch  spawn.Launch // nil once the program runs
	started time.Time
	done    bool // waited for
	ending  bool // told to end
	orphans bool // done, with processes of its group left
	timeout *list.Element
}

// deadline is a time by which a child is killed.
type deadline struct {
	at    time.Time
	child *child
}

// start makes a child for c, which it owns from here on.
func (s *server) start(c *connection, now time.Time) {
	if s.hurried(now) {
		s.childSignal.set(false)
	}
	s.lastStart = now
	s.vars = appendVars(s.vars[:0], c, s.admission.number(c))
	pid, launch, err := s.spawner.Start(c.fd, s.vars)
	if err != nil {
		s.startFailed(c, err, now)
		return
	}
	ch := &child{pid: pid, conn: c, launch: launch, started: now}
	s.children[pid] = ch
	s.launching = append(s.launching, ch)
	s.counters.started++
	if s.o.Timeout > 0 {
		ch.timeout = s.timeouts.PushBack(ch)
	}
}

// Pauses after a failure that may pass: doubled each time, forgotten at the
// next success.
const (
	firstPause = 50 * time.Millisecond
	lastPause  = 2 * time.Second
)

// startFailed keeps c for another try if the failure may pass, and else gives
// it up.
func (s *server) startFailed(c *connection, err error, now time.Time) {
	s.counters.failed++
	var step *spawn.StepError
	if errors.As(err, &step) && step.Transient() && !s.forced {
		s.pause = min(max(2*s.pause, firstPause), lastPause)
		s.admission.again(c, now.Add(s.pause))
		s.warn("can't start a child now, trying again", "error", err, "client", c.Client())
		return
	}
	s.counters.lost++
	s.warn("can't start a child, connection reset", "error", err, "client", c.Client())
	c.refuse()
	s.admission.ended(c)
}

// settle closes our copies of the sockets whose programs run by now: only the
// child has it then, and its close is the connection's end.
func (s *server) settle() {
	for i := 0; i < len(s.launching); {
		ch := s.launching[i]
		if !ch.launch.Gone() || ch.launch.Err() != nil {
			i++ // a failed one ends by itself, and is dealt with by finish
			continue
		}
		s.settled(ch)
		last := len(s.launching) - 1
		s.launching[i], s.launching[last] = s.launching[last], nil
		s.launching = s.launching[:last]
	}
}

func (s *server) settled(ch *child) {
	ch.conn.close()
	ch.launch.Release()
	ch.launch = nil
	s.pause = 0
}

// reap waits for all children that have ended, ours and, as process 1 or a
// subreaper, others'. It returns how many there were.
func (s *server) reap(now time.Time) int {
	for n := 0; ; n++ {
		var status unix.WaitStatus
		pid, err := unix.Wait4(-1, &status, unix.WNOHANG, nil)
		if err == unix.EINTR {
			continue
		}
		if pid <= 0 {
			return n
		}
		if ch := s.children[pid]; ch != nil {
			s.finish(ch, status, now)
		} else {
			s.log.Debug("waited for a process that is not a child of ours", "pid", pid, "status", statusText(status))
		}
	}
}

// finish books the end of ch.
func (s *server) finish(ch *child, status unix.WaitStatus, now time.Time) {
	ch.done = true
	delete(s.children, ch.pid)
	s.forgetTimeout(ch)
	if ch.launch != nil {
		for i := range s.launching {
			if s.launching[i] == ch {
				s.launching = append(s.launching[:i], s.launching[i+1:]...)
				break
			}
		}
		if err := ch.launch.Err(); err != nil {
			s.counters.started--
			ch.launch.Release()
			s.startFailed(ch.conn, err, now)
			return
		}
		s.settled(ch)
	}
	if ch.ending {
		ch.orphans = unix.Kill(-ch.pid, 0) == nil
	}
	s.counters.ended++
	s.admission.ended(ch.conn)
	if s.o.LogConnections {
		s.logConnection(ch, status, now)
	}
}

// expire tells children that have lived too long to end, and kills those that
// did not. All have the same time, so the oldest is the first.
func (s *server) expire(now time.Time) {
	for e := s.timeouts.Front(); e != nil; e = s.timeouts.Front() {
		ch := e.Value.(*child)
		if ch.started.Add(s.o.Timeout).After(now) {
			break
		}
		s.forgetTimeout(ch)
		s.counters.timeouts++
		s.log.Info("child timed out", "pid", ch.pid, "client", ch.conn.Client(), "timeout", s.o.Timeout)
		s.end(ch, now)
	}
	for d, ok := s.kills.first(); ok && !d.at.After(now); d, ok = s.kills.first() {
		s.kills.pop()
		kill(d.child, s.children[d.child.pid])
	}
}

func (s *server) forgetTimeout(ch *child) {
	if ch.timeout != nil {
		s.timeouts.Remove(ch.timeout)
		ch.timeout = nil
	}
}

// end tells the process group of ch to end, and sets the time of its kill.
func (s *server) end(ch *child, now time.Time) {
	ch.ending = true
	// Before its setsid(2) it has no group, but a program to come.
	if unix.Kill(-ch.pid, unix.SIGTERM) == unix.ESRCH {
		unix.Kill(ch.pid, unix.SIGTERM)
	}
	s.kills.push(deadline{now.Add(s.o.KillAfter), ch})
}

// orphansLeft tells whether processes are still to be killed whose child has
// ended.
func (s *server) orphansLeft() bool {
	return slices.ContainsFunc(s.kills.all(), func(d deadline) bool {
		return d.child.orphans && s.children[d.child.pid] == nil && unix.Kill(-d.child.pid, 0) == nil
	})
}

// kill ends what is left of the process group of ch. Once ch is waited for,
// its number is free again as soon as its group is empty: now, the child of
// ours with that number, must not be another.
func kill(ch, now *child) {
	switch {
	case !ch.done:
		unix.Kill(-ch.pid, unix.SIGKILL)
		unix.Kill(ch.pid, unix.SIGKILL)
	case ch.orphans && now == nil:
		unix.Kill(-ch.pid, unix.SIGKILL)
	}
}
