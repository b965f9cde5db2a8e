package inetd

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"socketbox/internal/handoff"
	"socketbox/internal/inetd/spawn"
	"socketbox/internal/notify"
	"socketbox/internal/resident"
)

// waiter runs a wait service, as inetd has it: one program at a time, which gets
// the listening (or UDP) socket itself and accepts, or reads, by itself. It is
// started when somebody comes, and again when it has ended and somebody else
// has come.
type waiter struct {
	o       Options
	log     *slog.Logger
	signals *signals
	spawner *spawn.Spawner

	socket int // borrowed
	form   handoff.Form

	pid      int // of the program; 0: it does not run
	launch   spawn.Launch
	started  time.Time
	pause    time.Duration // after a program that ended at once
	notUntil time.Time
	stopping bool
	killAt   time.Time // zero: not told to end
}

// A program that has run for this long did something; one that ends sooner, with
// somebody still waiting, is started again after a pause only.
const usefulTime = time.Second

// RunWait borrows the socket at path, which the binder serves, and runs a wait
// service until it is told to end. Like Run it takes over the signals of the
// process and its children.
func RunWait(o Options, path string) error {
	s, err := newServer(o) // for what both have in common
	if err != nil {
		return err
	}
	defer s.close()
	w := &waiter{o: o, log: o.Log, signals: s.signals, spawner: s.spawner, socket: -1}
	if err := w.borrow(path); err != nil || w.stopping {
		return err
	}
	defer unix.Close(w.socket)
	resident.Trimmer()()
	w.log.Info("waiting for clients", "listener", path, "form", w.form.String(), "command", strings.Join(o.Command, " "))
	notify.State("READY=1\nSTATUS=Waiting at " + path)
	return w.loop()
}

// borrow waits until somebody lends at path: binder and inetd are started in
// either order.
func (w *waiter) borrow(path string) (err error) {
	for told := false; !w.stopping; told = true {
		w.socket, w.form, err = handoff.BorrowAny(path, 0)
		if !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.ECONNREFUSED) {
			return loanHint(err)
		}
		if !told {
			w.log.Warn("waiting for the listener, which `socketbox bind` lends", "path", path)
			notify.State("STATUS=Waiting for the listener at " + path)
		}
		w.signals.wait(-1, openEvery)
		w.handleSignals()
	}
	return nil
}

func loanHint(err error) error {
	var refused *handoff.LoanError
	if errors.As(err, &refused) && refused.Verdict == handoff.TakeConnections {
		return &handoff.HintError{Err: err, Text: "--wait passes the listening socket itself: it must be lent (no rule for it, or handoff = \"listener\"); without --wait a program is started for each connection"}
	}
	return err
}

func (w *waiter) loop() error {
	for {
		now := time.Now()
		w.handleSignals()
		w.reap(now)
		switch {
		case w.pid == 0 && w.stopping:
			return nil
		case w.pid != 0 || now.Before(w.notUntil):
			w.signals.sleeping.Store(true)
			w.signals.wait(-1, w.patience(now))
			w.signals.sleeping.Store(false)
		case w.somebody(0):
			if err := w.start(now); err != nil {
				return err
			}
		default:
			w.signals.sleeping.Store(true)
			w.signals.wait(w.socket, time.Hour)
			w.signals.sleeping.Store(false)
		}
	}
}

// patience is how long there is nothing to do unless a signal comes. A child's
// end may come between the look for it and the sleep, so that is bounded.
func (w *waiter) patience(now time.Time) time.Duration {
	longest := 500 * time.Millisecond
	if w.pid == 0 {
		longest = w.notUntil.Sub(now)
	}
	if !w.killAt.IsZero() {
		longest = min(longest, max(time.Until(w.killAt), time.Millisecond))
	}
	return longest
}

// somebody says whether a client, or a datagram, waits.
func (w *waiter) somebody(timeout int) bool {
	fds := []unix.PollFd{{Fd: int32(w.socket), Events: unix.POLLIN}}
	n, err := unix.Poll(fds, timeout)
	return err == nil && n > 0
}

// start starts the program. The socket blocks, as that of inetd does.
func (w *waiter) start(now time.Time) error {
	if err := unix.SetNonblock(w.socket, false); err != nil {
		return fmt.Errorf("fcntl O_NONBLOCK: %w", err)
	}
	network := "TCP"
	if w.form.Type == unix.SOCK_DGRAM {
		network = "UDP"
	}
	pid, launch, err := w.spawner.Start(w.socket, appendVar(nil, "PROTO", network))
	var step *spawn.StepError
	switch {
	case err == nil:
		w.pid, w.launch, w.started, w.killAt = pid, launch, now, time.Time{}
		w.log.Info("started", "pid", pid)
	case errors.As(err, &step) && step.Transient():
		w.delay(now)
		w.log.Warn("can't start the program now, trying again", "error", err, "in", w.pause)
	default:
		return startError(w.o.Command[0], err)
	}
	return nil
}

// delay puts the next start off, longer each time.
func (w *waiter) delay(now time.Time) {
	w.pause = min(max(2*w.pause, firstPause), 10*time.Second)
	w.notUntil = now.Add(w.pause)
}

// reap waits for what has ended.
func (w *waiter) reap(now time.Time) {
	for {
		var status unix.WaitStatus
		pid, err := unix.Wait4(-1, &status, unix.WNOHANG, nil)
		if err == unix.EINTR {
			continue
		}
		if pid <= 0 {
			break
		}
		if pid == w.pid {
			w.ended(status, now)
		}
	}
	switch {
	case w.pid == 0:
	case !w.killAt.IsZero() && now.After(w.killAt):
		unix.Kill(-w.pid, unix.SIGKILL)
	case w.o.Timeout > 0 && w.killAt.IsZero() && now.Sub(w.started) > w.o.Timeout:
		w.end(now)
	}
}

func (w *waiter) ended(status unix.WaitStatus, now time.Time) {
	for !w.launch.Gone() {
		time.Sleep(time.Millisecond)
	}
	failure := w.launch.Err()
	w.launch.Release()
	w.pid, w.launch = 0, nil
	level := slog.LevelInfo
	if failure != nil {
		level = slog.LevelError
	}
	w.log.Log(context.Background(), level, "ended", "status", statusText(status), "after", now.Sub(w.started).Round(time.Millisecond), "error", failure)
	if now.Sub(w.started) > usefulTime {
		w.pause = 0
		return
	}
	if w.somebody(0) && !w.stopping {
		w.delay(now)
		w.log.Warn("the program has ended at once, and somebody still waits: it is started again after a pause", "pause", w.pause)
	}
}

// end tells the program to end.
func (w *waiter) end(now time.Time) {
	if w.pid != 0 && w.killAt.IsZero() {
		unix.Kill(-w.pid, unix.SIGTERM)
		w.killAt = now.Add(w.o.KillAfter)
	}
}

func (w *waiter) handleSignals() {
	for sig := w.signals.next(); sig != nil; sig = w.signals.next() {
		switch sig {
		case unix.SIGTERM, unix.SIGINT:
			if w.stopping && w.pid != 0 {
				unix.Kill(-w.pid, unix.SIGKILL)
			}
			if !w.stopping {
				notify.State("STOPPING=1")
				w.log.Info("ending", "signal", signalName(sig))
			}
			w.stopping = true
			w.end(time.Now())
		case unix.SIGHUP:
			w.log.Info("nothing to reload: socketbox-inetd has no configuration file", "signal", "SIGHUP")
			notify.Reloaded()
		case unix.SIGUSR1:
			w.log.Info("state", "pid", w.pid, "pause", w.pause)
		}
	}
}
