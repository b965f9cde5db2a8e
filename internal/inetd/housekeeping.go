package inetd

import (
	"fmt"
	"time"

	"socketbox/internal/notify"
)

// houseEvery is how often the loop looks after itself.
const houseEvery = time.Second

// keepHouse looks, once in a while, whether the socket is still reachable,
// and tells the service manager how it goes.
func (s *server) keepHouse(now time.Time) {
	if now.Before(s.nextLook) {
		return
	}
	s.nextLook = now.Add(houseEvery)
	if s.receiver != nil && !s.stopping {
		s.lookAtPath(now)
	}
	s.tellStatus()
}

// lookAtPath binds the path again if its file has gone, or the directory was
// made anew: without, every sender would find nobody.
func (s *server) lookAtPath(now time.Time) {
	if s.receiver.Bound() {
		s.unbound = nil
		return
	}
	fresh, err := s.o.Place.Open(s.o.Receive)
	if err != nil {
		if s.unbound == nil {
			s.log.Warn("the receiving socket's file is no longer ours, and can't be bound again", "path", s.o.Place.Path, "error", err)
		}
		s.unbound = err
		return
	}
	s.log.Warn("the receiving socket's file had gone: bound again", "path", s.o.Place.Path)
	s.receiver.Shutdown()
	if err := s.drain(now); err != nil {
		s.log.Error("can't take what is queued in the old socket", "error", err)
	}
	s.receiver, s.unbound = fresh, nil
}

// tellStatus tells the service manager what systemctl status shows.
func (s *server) tellStatus() {
	status := fmt.Sprintf("STATUS=%d running, %d waiting, %d served", len(s.children), s.admission.held(), s.counters.ended)
	if status != s.status && !s.stopping {
		s.status = status
		notify.State(status)
	}
}
