package launch

import (
	"errors"
	"log/slog"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// supervisor is the first process. Its one loop owns everything in it; only
// notifications are answered besides, by goroutines of their own.
type supervisor struct {
	o    *Options
	plan *plan
	log  *slog.Logger

	lender lender
	lent   []lentSocket // of ViaListenFDs and OnDemand

	keeper *keeper // of receiving sockets, where the daemon is started again

	arrivals   *arrivals // at lent, of OnDemand
	lastClient time.Time
	idle       bool      // the daemon was told to end because no client came
	told       time.Time // when

	signals  chan os.Signal // to be passed on
	children chan os.Signal // SIGCHLD
	stopping bool           // TERM or INT came: no other start

	pid    int        // the daemon; 0: it does not run
	alone  bool       // it has ended well and left processes: it has gone to the background
	status ExitStatus // of the daemon's last end
	began  time.Time
	pause  time.Duration // before the next start
}

// Pauses between starts: doubled each time, from the beginning again after the
// daemon has run for a while.
const (
	firstPause = 100 * time.Millisecond
	lastPause  = 10 * time.Second
	ranWell    = 10 * time.Second
)

// Run starts the daemon and stays until it has ended for good. The error is an
// ExitStatus where it is the daemon's.
func Run(o Options) error {
	if o.KillAfter == 0 {
		o.KillAfter = DefaultKillAfter
	}
	if o.FirstFD == 0 {
		o.FirstFD = firstListenFD
	}
	s := &supervisor{o: &o, log: o.Log, pause: firstPause, lender: lender{dir: o.Dir, all: o.Ports.All, wait: o.Wait}}
	var err error
	if s.plan, err = newPlan(&o, o.Log.Debug); err != nil {
		return err
	}
	for _, missing := range s.plan.missing {
		s.log.Warn(missing)
	}
	env, ready, err := s.passReadiness(s.plan.env)
	if err != nil {
		return err
	}
	defer ready.end()
	s.plan.env = env
	if s.plan.via == ViaPreload && (o.Restart != RestartNo || o.OnDemand) {
		if s.keeper, err = newKeeper(o.Dir, o.Log); err != nil {
			return err
		}
		defer s.keeper.end()
	}
	s.handleSignals()
	// What the daemon leaves behind becomes ours, wherever it is in the tree.
	if os.Getpid() != 1 {
		if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
			return os.NewSyscallError("prctl PR_SET_CHILD_SUBREAPER", err)
		}
	}
	if s.plan.via != ViaNone {
		s.awaitDirectory()
	}
	return s.run()
}

// awaitDirectory waits for the socket directory: the daemon may be started
// before `socketbox bind` has made it.
func (s *supervisor) awaitDirectory() {
	for said := false; !s.stopping; said = true {
		if _, err := os.Stat(s.o.Dir); !errors.Is(err, os.ErrNotExist) {
			return // found, or else an error that the bind will be told
		}
		if !said {
			s.log.Info("waiting for the socket directory, which `socketbox bind` makes", "directory", s.o.Dir)
		}
		select {
		case <-time.After(100 * time.Millisecond):
		case sig := <-s.signals:
			s.noteStop(sig)
		}
	}
}

func (s *supervisor) run() error {
	if s.stopping {
		return nil
	}
	for first := true; ; first = false {
		if s.o.OnDemand {
			if err := s.awaitClient(); err != nil || s.stopping {
				return err
			}
		}
		if err := s.start(); err != nil {
			if first || !s.again(true) {
				return err
			}
			s.log.Error("can't start the daemon", "error", err)
		} else {
			s.watch()
			s.endRest()
			if s.o.OnDemand && !s.stopping && (s.idle || s.status == 0) {
				s.pause = firstPause
				continue // it is started by the next client
			}
			if !s.again(s.status != 0) {
				return s.result()
			}
		}
		if s.sleep(); s.stopping {
			return s.result()
		}
	}
}

func (s *supervisor) result() error {
	if s.status == 0 {
		return nil
	}
	return s.status
}

// start starts the daemon.
func (s *supervisor) start() error {
	o := order{
		Path: s.plan.path, FreshNS: s.plan.newNet, Mapped: s.plan.newUser,
		Filter: s.plan.via == ViaNotify, NoNewPrivs: s.o.NoNewPrivs,
		User: s.o.User.Credential, KeepCaps: setOf(s.o.KeepCaps), DropCaps: s.o.DropCaps,
		Limits: s.o.Limits, Chdir: s.o.Chdir, Isolate: s.o.Isolate,
	}
	var fds []int
	if s.plan.netns >= 0 {
		o.NetNS = 1
		fds = append(fds, s.plan.netns)
	}
	if s.plan.via == ViaListenFDs {
		var err error
		if !s.o.OnDemand {
			err = s.borrowAll()
		}
		if err == nil {
			fds, err = s.passListeners(&o, fds)
		}
		if err != nil {
			return err
		}
	}
	if s.keeper != nil {
		fds = s.keeper.pass(&o, fds)
	}
	st, err := s.startStage(s.o.Command, o, fds)
	if err != nil {
		return err
	}
	if err := s.converse(&st, s.answerBinds); err != nil {
		s.abandon(st)
		return err
	}
	unix.Close(st.talk)
	s.pid, s.alone, s.idle, s.began = st.pid, false, false, time.Now()
	s.log.Info("started", "program", s.plan.path, "pid", s.pid, "via", string(s.plan.via))
	return nil
}

// answerBinds serves notifications by a goroutine, which owns fd.
func (s *supervisor) answerBinds(fd int) {
	n := &notifier{fd: fd, ports: s.o.Ports, dir: s.o.Dir, log: s.log, lent: map[uint64]bool{}, lend: s.lender}
	go n.serve()
}

// watch waits for the daemon's end, and passes signals on until then.
func (s *supervisor) watch() {
	var due <-chan time.Time
	if s.o.Idle > 0 {
		ticker := time.NewTicker(s.o.Idle / idleLooks)
		defer ticker.Stop()
		due = ticker.C
	}
	for s.reap() {
		select {
		case <-s.children:
		case <-due:
			s.lookIdle()
		case sig := <-s.signals:
			s.pass(sig)
		}
	}
}

// reap takes the ends of all children that have ended. It returns whether the
// daemon goes on: itself, or what it left behind when it ended well, as
// daemons do that go to the background.
func (s *supervisor) reap() bool {
	for {
		var w unix.WaitStatus
		pid, err := unix.Wait4(-1, &w, unix.WNOHANG, nil)
		switch {
		case err == unix.EINTR:
		case err != nil: // ECHILD
			s.pid = 0
			return false
		case pid == 0:
			return s.pid != 0 || s.alone
		case pid == s.pid:
			s.pid, s.status = 0, statusOf(w)
			s.alone = s.status == 0 && !s.stopping
		case s.alone:
			s.status = statusOf(w)
		}
	}
}

// endRest ends what a daemon has left: with TERM, and KILL later.
func (s *supervisor) endRest() {
	s.alone = false
	signalAll(children(), unix.SIGTERM)
	deadline := time.After(s.o.KillAfter)
	for !s.reapAll() {
		select {
		case <-s.children:
		case sig := <-s.signals:
			s.noteStop(sig)
		case <-deadline:
			for left := children(); len(left) > 0 && !s.reapAll(); left = children() {
				signalAll(left, unix.SIGKILL)
				time.Sleep(time.Millisecond)
			}
			return
		}
	}
}

// reapAll takes the ends of all children that have ended, and tells whether
// none is left.
func (s *supervisor) reapAll() bool {
	for {
		pid, err := unix.Wait4(-1, nil, unix.WNOHANG, nil)
		if err != nil && err != unix.EINTR {
			return true
		}
		if pid == 0 && err == nil {
			return false
		}
	}
}

// again decides whether the daemon is started once more.
func (s *supervisor) again(failed bool) bool {
	if s.stopping || s.o.Restart == RestartNo || s.o.Restart == RestartOnFailure && !failed {
		return false
	}
	if time.Since(s.began) > ranWell {
		s.pause = firstPause
	}
	return true
}

// sleep waits before the next start.
func (s *supervisor) sleep() {
	s.log.Warn("the daemon has ended", "status", int(s.status), "restart in", s.pause)
	timer := time.NewTimer(s.pause)
	defer timer.Stop()
	s.pause = min(2*s.pause, lastPause)
	for !s.stopping {
		select {
		case <-timer.C:
			return
		case <-s.children:
		case sig := <-s.signals:
			s.noteStop(sig)
		}
	}
}
