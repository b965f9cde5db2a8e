package dispatch

import (
	"time"

	"golang.org/x/sys/unix"

	"socketbox/internal/privsep"
	"socketbox/internal/rule"
)

// yield leaves everything to a successor: nothing is accepted any more, so
// that the backlogs are the successor's, and what is on hold goes back to the
// binder. The process ends when the binder has it all.
func (w *worker) yield() {
	for _, l := range w.listeners {
		w.close(l)
	}
	for _, c := range w.takeAll() {
		t := w.tally(&c)
		t.waits(-1)
		w.tell(heldMessage(&c))
	}
	w.tell(privsep.Message{Kind: privsep.Drained})
	w.yielding = true
}

// heldMessage says what a connection on hold is; it takes its descriptor.
func heldMessage(c *connection) privsep.Message {
	m := privsep.Message{Kind: privsep.Held, FDs: []int{c.fd}, Key: privsep.Key{
		Family: c.family, Port: c.facts.Port, Local: c.facts.Local, Remote: c.facts.Remote,
	}}
	if !c.l.removed {
		m.ID = c.l.ID
	}
	if c.mapped {
		m.Value = privsep.Mapped
	}
	return m
}

// adopt takes a connection that an earlier dispatcher had on hold and has
// counted as accepted. Its hold begins anew.
func (w *worker) adopt(m privsep.Message) {
	c := connection{
		fd: m.FDs[0], l: w.listeners[m.ID], family: m.Key.Family, mapped: m.Value == privsep.Mapped,
		facts: rule.Conn{Listener: -1, Port: m.Key.Port, Local: m.Key.Local, Remote: m.Key.Remote},
		since: time.Now(),
	}
	if c.l != nil {
		c.facts.Listener = c.l.index
	} else {
		c.l = newListener(ListenerPlan{}, -1, -1)
		c.l.removed = true
	}
	if w.choose(&c) {
		w.place(c, w.tally(&c))
	}
}

// close stops accepting from l, if that has not been done; its backlog stays
// as it is.
func (w *worker) close(l *listener) {
	if l.fd < 0 {
		return
	}
	if l.paused == 0 {
		w.watch(unix.EPOLL_CTL_DEL, l.fd, 0, aboutListener, l.ID)
	}
	unix.Close(l.fd)
	l.fd = -1
	l.paused++ // nothing resumes it
}

func closeAll(fds []int) {
	for _, fd := range fds {
		closeFD(fd)
	}
}
