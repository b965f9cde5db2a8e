package relay

import (
	"errors"
	"fmt"
	"os"
	"os/signal"
	"time"

	"golang.org/x/sys/unix"

	"socketbox/internal/handoff"
	"socketbox/internal/listen"
	"socketbox/internal/notify"
	"socketbox/internal/receive"
)

const (
	// openEvery is how often a directory that is not there is looked for.
	openEvery = 200 * time.Millisecond
	// houseEvery is how often the relay looks after itself.
	houseEvery = time.Second
	// endEvery is how often it looks whether it may end.
	endEvery = 10 * time.Millisecond
)

// takeSignals takes over all signals that mean something here. SIGPIPE stays
// unanswered: a log that nobody reads is no reason to end.
func (r *relay) takeSignals() {
	r.signals = make(chan os.Signal, 16)
	signal.Notify(r.signals, unix.SIGTERM, unix.SIGINT, unix.SIGHUP, unix.SIGUSR1, unix.SIGUSR2, unix.SIGPIPE)
}

// open opens everything that connections come from; it waits for socket
// directories. Told to end meanwhile, it leaves r.sources empty.
func (r *relay) open() error {
	for _, passed := range r.o.Inherited {
		if err := r.inherit(passed); err != nil {
			return err
		}
	}
	for _, d := range r.o.Listen {
		fd, err := listen.Open(d)
		if err != nil {
			return err
		}
		r.addListener(fd, d.Name)
	}
	for _, place := range r.o.Places {
		receiver, err := r.openPlace(place)
		if err != nil || receiver == nil {
			return err
		}
		r.sources = append(r.sources, &source{fd: receiver.FD(), receiver: receiver, place: place})
	}
	return nil
}

// addListener owns fd. What clients are to have, its accepted sockets inherit.
func (r *relay) addListener(fd int, name string) {
	r.keepAlive(fd)
	setInt(fd, unix.SOL_TCP, unix.TCP_NODELAY, 1)
	r.sources = append(r.sources, &source{fd: fd, name: name})
}

// inherit takes a socket of the service manager: one that connections are
// handed to, or a listener.
func (r *relay) inherit(passed listen.Passed) error {
	kind, err := unix.GetsockoptInt(passed.FD, unix.SOL_SOCKET, unix.SO_TYPE)
	if err != nil {
		return fmt.Errorf("LISTEN_FDS: inspect descriptor %d: %w", passed.FD, err)
	}
	if kind == unix.SOCK_DGRAM {
		receiver, err := handoff.Inherit(passed.FD, r.o.Receive)
		if err != nil {
			return err
		}
		r.sources = append(r.sources, &source{fd: receiver.FD(), receiver: receiver, place: receive.Place{Path: receiver.Path(), Inherited: passed.FD}})
		return nil
	}
	d, err := listen.Describe(passed.FD)
	if err != nil {
		return err
	}
	if err := unix.SetNonblock(passed.FD, true); err != nil {
		return fmt.Errorf("LISTEN_FDS: set descriptor %d non-blocking: %w", passed.FD, err)
	}
	name := passed.Name
	if listen.CheckName(name) != nil {
		name = d.Name
	}
	r.addListener(passed.FD, name)
	return nil
}

// openPlace opens a receiver; nil if the relay is told to end first.
func (r *relay) openPlace(place receive.Place) (*handoff.Receiver, error) {
	told := false
	for {
		receiver, err := place.Open(r.o.Receive)
		if !errors.Is(err, receive.ErrNoDirectory) {
			return receiver, err
		}
		if !told {
			told = true
			r.log.Warn("waiting for the socket directory, which `socketbox bind` makes", "path", place.Path)
			notify.State("STATUS=Waiting for the socket directory of " + place.Path)
		}
		select {
		case <-time.After(openEvery):
		case sig := <-r.signals:
			if sig == unix.SIGTERM || sig == unix.SIGINT {
				r.log.Info("ended before the socket directory was there", "signal", sig.String())
				r.closeSources()
				return nil, nil
			}
		}
	}
}

// closeSources forgets all sources before anybody takes from them.
func (r *relay) closeSources() {
	for _, s := range r.sources {
		s.closeNow()
	}
	r.sources = nil
}

func (s *source) closeNow() {
	if s.receiver != nil {
		s.receiver.Close()
		return
	}
	unix.Close(s.fd)
}

// loop waits for signals and looks after the relay until it ends.
func (r *relay) loop() error {
	house := time.NewTicker(houseEvery)
	defer house.Stop()
	for !r.stopping {
		select {
		case sig := <-r.signals:
			r.handle(sig)
		case <-house.C:
			r.keepHouse()
		}
	}
	return r.drain()
}

func (r *relay) handle(sig os.Signal) {
	switch sig {
	case unix.SIGTERM, unix.SIGINT:
		r.stop(sig.String())
	case unix.SIGHUP:
		r.names.forget()
		r.log.Info("names will be looked up again", "signal", "SIGHUP")
		notify.Reloaded()
	case unix.SIGUSR1:
		r.dump()
	}
}

// stop closes what connections come from; what had been taken is served on,
// and so is what had been sent.
func (r *relay) stop(why string) {
	r.stopping = true
	notify.State("STOPPING=1\nSTATUS=Serving what was received")
	served, waiting := r.limits.numbers()
	r.log.Info("ending when all connections have ended", "reason", why, "open", served, "waiting", waiting, "drain", r.o.Drain)
	for _, s := range r.sources {
		if s.receiver == nil {
			s.mu.Lock()
			s.ending = true
			s.mu.Unlock()
		} else if err := s.receiver.Shutdown(); err != nil {
			r.log.Error("can't shut the receiving socket", "error", err)
		}
		// A socket that stays open to others says nothing by itself.
		r.workers[0].post(func() { r.workers[0].take(s) })
	}
}

// drain waits until everything is served, or the time is over, or a second
// signal comes.
func (r *relay) drain() error {
	deadline := time.After(r.o.Drain)
	if r.o.Drain == 0 {
		deadline = nil
	}
	look := time.NewTicker(endEvery)
	defer look.Stop()
	why := ""
	for why == "" && !r.drained() {
		select {
		case sig := <-r.signals:
			switch sig {
			case unix.SIGTERM, unix.SIGINT:
				why = "a second signal"
			case unix.SIGUSR1:
				r.dump()
			}
		case <-deadline:
			why = "--drain " + r.o.Drain.String() + " is over"
		case <-look.C:
		}
	}
	if why != "" {
		r.abort(why)
	}
	r.log.Info("ended", r.sum()...)
	if r.replaced {
		return &handoff.HintError{Err: fmt.Errorf("network namespace %s has been made anew", r.o.NetNS), Text: "start socketbox-relay again, which enters the new one; socketbox-relay@.service does so by itself"}
	}
	return nil
}

// drained tells whether there is nothing left: no source with a connection in
// it, and no connection.
func (r *relay) drained() bool {
	for _, s := range r.sources {
		s.mu.Lock()
		closed := s.closed
		s.mu.Unlock()
		if !closed {
			return false
		}
	}
	served, waiting := r.limits.numbers()
	return served == 0 && waiting == 0
}

// abort resets what is left.
func (r *relay) abort(why string) {
	served, waiting := r.limits.numbers()
	r.log.Warn("ending now", "reason", why, "open", served, "waiting", waiting)
	for _, w := range r.workers {
		w.post(w.abort)
	}
	r.running.Wait()
}

func (w *worker) abort() {
	w.over = true
	for _, c := range w.connections {
		if c != nil && c.state != ended {
			w.attrs.drained.Add(1)
			c.end("the relay ended", true)
		}
	}
}

// shut ends the workers and closes what is left.
func (r *relay) shut() {
	for _, w := range r.workers {
		w.post(w.abort)
	}
	r.running.Wait()
	for _, s := range r.sources {
		if !s.closed {
			s.closeNow()
		}
	}
	signal.Stop(r.signals)
}

// close stops taking from s, in which nothing is left: each worker lets go of
// it, and the last one closes it. Any worker may call it, more than once.
func (r *relay) close(s *source) {
	s.mu.Lock()
	begun := s.closing
	if !begun {
		s.closing, s.holders = true, len(r.workers)
	}
	s.mu.Unlock()
	if begun {
		return
	}
	for _, w := range r.workers {
		w.post(func() {
			w.desert(s)
			s.mu.Lock()
			defer s.mu.Unlock()
			if s.holders--; s.holders == 0 {
				s.closeNow()
				s.closed = true
			}
		})
	}
}

// keepHouse looks whether the sockets can still be reached, and the namespace
// is still the one, and tells the service manager how it goes.
func (r *relay) keepHouse() {
	for i, s := range r.sources {
		if s.receiver != nil {
			r.lookAtPath(i, s)
		}
	}
	r.lookAtNamespace()
	served, waiting := r.limits.numbers()
	if status := fmt.Sprintf("STATUS=%d open, %d waiting", served, waiting); status != r.status {
		r.status = status
		notify.State(status)
	}
}

// lookAtPath binds a path again if its file has gone, or the directory was
// made anew: without, every sender would find nobody.
func (r *relay) lookAtPath(i int, s *source) {
	if s.receiver.Bound() {
		s.unbound = nil
		return
	}
	fresh, err := s.place.Open(r.o.Receive)
	if err != nil {
		if s.unbound == nil {
			r.log.Warn("the receiving socket's file is no longer ours, and can't be bound again", "path", s.place.Path, "error", err)
		}
		s.unbound = err
		return
	}
	r.log.Warn("the receiving socket's file had gone: bound again", "path", s.place.Path)
	next := &source{fd: fresh.FD(), receiver: fresh, place: s.place}
	r.sources[i] = next
	for _, w := range r.workers {
		w.post(func() { w.attend(next) })
	}
	s.receiver.Shutdown() // what is queued is taken, then it is closed
}

// lookAtNamespace ends the relay when its namespace's name leads to another
// one: the workers are in the old one and have no right to leave it.
func (r *relay) lookAtNamespace() {
	if r.fixedNetNS == home {
		return
	}
	var st unix.Stat_t
	if unix.Stat(r.fixedNetNS, &st) != nil || (nsID{uint64(st.Dev), st.Ino}) == r.netnsID {
		return // gone is not replaced: its daemons may still be there
	}
	r.replaced = true
	r.stop("the network namespace " + r.fixedNetNS + " has been made anew")
}
