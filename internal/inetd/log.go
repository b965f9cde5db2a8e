package inetd

import (
	"time"

	"golang.org/x/sys/unix"
)

// warn logs what a client, a sender or a broken program can make happen often:
// at most a line a second for each message, with the number of those left out.
func (s *server) warn(message string, args ...any) {
	if left, ok := s.limited.Allow(message, time.Now()); ok {
		if left > 0 {
			args = append(args, "suppressed", left)
		}
		s.log.Warn(message, args...)
	}
}

// logConnection writes the one line of a connection that has ended.
func (s *server) logConnection(ch *child, status unix.WaitStatus, now time.Time) {
	args := ch.conn.LogAttrs(ch.conn.listener)
	s.log.Info("connection", append(args, "pid", ch.pid, "status", statusText(status),
		"waited", ch.started.Sub(ch.conn.received), "duration", now.Sub(ch.started))...)
}

// statusText is an exit status as a person says it: "0", "killed by SIGTERM".
func statusText(status unix.WaitStatus) any {
	if status.Signaled() {
		return "killed by " + signalName(status.Signal())
	}
	return status.ExitStatus()
}

// maxDump bounds the children that a dump lists.
const maxDump = 200

// dump writes the state to the log.
func (s *server) dump(now time.Time) {
	args := append([]any{"running", len(s.children), "max", s.o.Max, "held", s.admission.held(),
		"sources", len(s.admission.sources), "stopping", s.stopping}, s.counters.attrs()...)
	if s.receiver != nil {
		args = append(args, "socket", s.receiver.Path())
	}
	if delay, full := s.admission.delay(now); full {
		args = append(args, "start", "when a child ends")
	} else if delay > 0 {
		args = append(args, "start", "in "+delay.Round(time.Millisecond).String())
	}
	s.log.Info("state", args...)
	n := 0
	for pid, ch := range s.children {
		if n++; n > maxDump {
			s.log.Info("more children are not listed", "number", len(s.children)-maxDump)
			return
		}
		s.log.Info("child", "pid", pid, "client", ch.conn.Client(), "age", now.Sub(ch.started), "ending", ch.ending)
	}
}

func (c *counters) attrs() []any {
	return []any{"received", c.received, "bad", c.bad, "gone", c.gone, "started", c.started,
		"ended", c.ended, "failed", c.failed, "lost", c.lost, "timeouts", c.timeouts}
}
