package inetd

import (
	"fmt"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"golang.org/x/sys/unix"
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
	fresh, err := s.o.Place.open(s.o.Receive)
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
		notify(status)
	}
}

// notify tells the service manager, if there is one (sd_notify(3)).
func notify(state string) { daemon.SdNotify(false, state) }

// notifyReloaded answers a reload of a Type=notify-reload unit.
func notifyReloaded() {
	var now unix.Timespec
	if unix.ClockGettime(unix.CLOCK_MONOTONIC, &now) == nil {
		notify(fmt.Sprintf("RELOADING=1\nMONOTONIC_USEC=%d", now.Nano()/1000))
		notify("READY=1")
	}
}
