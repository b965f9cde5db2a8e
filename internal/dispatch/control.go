package dispatch

import (
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"socketbox/internal/privsep"
)

// handleControl reads what the binder says and sends what waits for it. A
// message out of place means that this process and the binder no longer
// agree: that is fatal, and the binder starts another dispatcher.
func (w *worker) handleControl(events uint32) error {
	if events&unix.EPOLLOUT != 0 {
		if err := w.flush(); err != nil {
			return err
		}
	}
	for {
		m, ok, err := w.control.Receive()
		switch {
		case errors.Is(err, unix.EAGAIN):
			return nil
		case err != nil:
			return fmt.Errorf("read the binder's message: %w", err)
		case !ok:
			return errEnd
		}
		if err := w.obey(m); err != nil {
			return err
		}
	}
}

// obey carries out one message of the binder; it owns the message's
// descriptors.
func (w *worker) obey(m privsep.Message) error {
	switch m.Kind {
	case privsep.Listener:
		w.listenerMessage(m)
	case privsep.Map:
		if old, ok := w.mapStash[m.ID]; ok {
			unix.Close(old)
		}
		w.mapStash[m.ID] = m.FDs[0]
	case privsep.Table:
		return w.expect(m)
	case privsep.Route, privsep.Sink:
		w.resolved(m)
	case privsep.Drain:
		w.awaitInstall()
		w.drain()
	case privsep.Abandon:
		w.abandon()
	case privsep.Yield:
		w.awaitInstall()
		w.yield()
	case privsep.Adopt:
		w.adopt(m)
	case privsep.Sessions:
		return w.sessionsMessage(m)
	case privsep.Ended:
		w.ended(m.Ended)
	default:
		return fmt.Errorf("%w: type %d", privsep.ErrProtocol, m.Kind)
	}
	return nil
}

// resolved takes the binder's word on a route or a sink. What it said under the
// table before is about routes and sinks that are forgotten.
func (w *worker) resolved(m privsep.Message) {
	switch {
	case m.Table != w.table:
		closeAll(m.FDs)
	case m.Kind == privsep.Route:
		w.routeMessage(m)
	default:
		w.sinkMessage(m)
	}
}

// listenerMessage takes a listener's descriptor: for the next table, or for the
// one in force, whose listener the binder has kept until now.
func (w *worker) listenerMessage(m privsep.Message) {
	if l := w.listeners[m.ID]; l != nil && m.Table == w.table && !w.draining && !w.yielding {
		w.open(l, m.FDs[0])
		return
	}
	if old, ok := w.stash[m.ID]; ok {
		unix.Close(old)
	}
	w.stash[m.ID] = m.FDs[0]
}

// tell sends m to the binder, now or as soon as there is room. Descriptors
// that go along are closed here once they are sent.
func (w *worker) tell(m privsep.Message) {
	m.Table = w.table
	if len(w.outbox) == 0 {
		err := w.control.Send(m)
		if err == nil {
			closeAll(m.FDs)
			return
		}
		if !errors.Is(err, unix.EAGAIN) {
			closeAll(m.FDs)
			return // the binder is gone; the end of file ends this process
		}
		w.watch(unix.EPOLL_CTL_MOD, w.control.FD, unix.EPOLLIN|unix.EPOLLOUT, aboutControl, 0)
	}
	if len(w.outbox) < maxOutbox || m.Kind == privsep.Held || m.Kind == privsep.Drained {
		w.outbox = append(w.outbox, m)
	}
}

// flush sends from the outbox until the pair is full again.
func (w *worker) flush() error {
	for len(w.outbox) > 0 {
		err := w.control.Send(w.outbox[0])
		if errors.Is(err, unix.EAGAIN) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("write to the binder: %w", err)
		}
		closeAll(w.outbox[0].FDs)
		w.outbox = w.outbox[1:]
	}
	w.outbox = nil
	return w.watch(unix.EPOLL_CTL_MOD, w.control.FD, unix.EPOLLIN, aboutControl, 0)
}

// drain takes what is in the backlogs, closes the listeners, and leaves it to
// run to end once nothing waits.
func (w *worker) drain() {
	w.draining, w.drainingSince = true, time.Now()
	for _, s := range w.sinks {
		s.paused = nil // nothing is served from here on but what waits
	}
	for _, l := range w.listeners {
		w.retire(l)
	}
}

// abandon resets what is on hold, and leaves it to run to end. The backlogs
// are the kernel's to reset, when the listeners close.
func (w *worker) abandon() {
	w.draining = true
	for _, l := range w.listeners {
		w.close(l)
	}
	for _, c := range w.takeAll() {
		w.tally(&c).waits(-1)
		w.fail(&c, CauseStopped, unix.ESHUTDOWN)
	}
}
