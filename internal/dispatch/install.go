package dispatch

import (
	"golang.org/x/sys/unix"

	"socketbox/internal/privsep"
	"socketbox/internal/rule"
)

// maxBacklog bounds what retire takes off one listener: twice the largest
// backlog in use, so that a flood can't keep a retiring listener for ever.
const maxBacklog = 1 << 16

// swap replaces the old table by a complete new one. Connections on hold are
// looked up anew; listeners that are in both tables go on as they are.
func (w *worker) swap(a *arrival) {
	plan, counters := a.plan, a.counters
	stay := map[uint32]bool{}
	for _, l := range plan.Listeners {
		stay[l.ID] = true
	}
	for lid, l := range w.listeners {
		if !stay[lid] {
			w.retire(l)
			l.removed = true
			delete(w.listeners, lid)
		}
	}
	waiting := w.takeAll()
	before := w.plan
	w.counters.Unmap()
	counters.settle()
	w.table, w.plan, w.counters, w.rules, w.maps = a.id, plan, counters, a.rules, a.maps
	w.meters = newMeters(plan.Table)
	for i, p := range plan.Listeners {
		w.admit(i, p)
	}
	w.tell(privsep.Message{Kind: privsep.Installed, ID: a.id}) // before anything is asked about it
	w.regate(before)
	for _, c := range waiting {
		w.replace(c)
	}
}

// takeAll empties all sinks and forgets them and all routes.
func (w *worker) takeAll() []connection {
	all := append(w.takeGated(), w.takeLater()...)
	for s := range w.holding {
		all = append(all, s.queue.take(nil)...)
		for _, l := range s.paused {
			w.resume(l)
		}
		s.paused = nil
	}
	for _, s := range w.sinks {
		w.disconnect(s)
	}
	clear(w.sinks)
	clear(w.holding)
	clear(w.routes)
	clear(w.routeByID)
	w.waiting = 0
	return all
}

// admit makes listener p of the plan the one at index i.
func (w *worker) admit(i int, p ListenerPlan) {
	old := w.listeners[p.ID]
	l := newListener(p, -1, i)
	l.asks, l.paused, l.looks = w.asksLocal(l), 1, l.meter != nil // until it is open
	w.listeners[p.ID] = l
	if old != nil {
		l.fd, l.paused = old.fd, old.paused
		for j, e := range w.exhausted {
			if e == old {
				w.exhausted[j] = l
			}
		}
	}
	if fd, came := w.stash[p.ID]; came {
		delete(w.stash, p.ID)
		w.open(l, fd)
	}
	if p.Kept {
		w.close(l)
	}
	w.connectDirect(l)
	l.paced = w.pacers(l)
}

// open gives a listener that was kept so far its descriptor; one that has it
// already needs no other copy.
func (w *worker) open(l *listener, fd int) {
	if l.fd >= 0 {
		unix.Close(fd)
		return
	}
	l.fd = fd
	w.resume(l)
}

// asksLocal says whether the address that a client dialled matters and is not
// known from the listener.
func (w *worker) asksLocal(l *listener) bool {
	if l.Family == privsep.Unix {
		return false
	}
	if l.Port == 0 {
		return true
	}
	if l.Address.IsValid() && !l.Address.IsUnspecified() {
		return false
	}
	for i := range w.plan.Table.Rules { // what a session is counted for must be known after a reload, too
		if r := &w.plan.Table.Rules[i]; !r.Sessions.IsZero() && (r.Listeners == nil || contains(r.Listeners, l.index)) {
			return true
		}
	}
	for _, t := range w.plan.Table.Targets {
		if t.Keys&rule.KeyLocal != 0 {
			return true
		}
	}
	return w.rules.NeedsLocal(l.index)
}

// connectDirect gives l its routes where no rule has to be asked: one rule
// without conditions takes everything, or none can take anything.
func (w *worker) connectDirect(l *listener) {
	index, ok := soleRule(w.plan.Table, l.index)
	if !ok {
		return
	}
	c := connection{l: l, facts: rule.Conn{Listener: l.index, Port: l.Port, Local: l.Address}}
	if index >= 0 {
		c.target = w.plan.Table.Rules[index].Target
	}
	keys := w.plan.Table.Targets[c.target].Keys
	if keys&(rule.KeyLocal|rule.KeyRemote) != 0 || keys&rule.KeyPort != 0 && l.Port == 0 && l.Family != privsep.Unix {
		return
	}
	l.sole = index
	t := &w.plan.Table.Targets[c.target]
	if index >= 0 {
		r := &w.plan.Table.Rules[index]
		l.looks = l.looks || !r.Sessions.IsZero() || !r.Limit.IsZero()
	}
	l.looks = l.looks || t.Balanced() && t.Balance == rule.SourceHash
	for _, c.family = range l.families() {
		if r := w.routeFor(w.keyOf(&c)); r != nil {
			r.direct = true
			l.direct[c.family] = r
		}
	}
}

// soleRule returns the rule that takes every connection of a listener, -1 if
// none can take any; ok is false if that depends on the connection.
func soleRule(t *rule.Table, listener int) (index int, ok bool) {
	for i := range t.Rules {
		r := &t.Rules[i]
		if r.Listeners != nil && !contains(r.Listeners, listener) {
			continue
		}
		return i, r.Local == nil && r.Remote == nil && r.Ports == nil && r.Map == 0 && !r.Reject
	}
	return -1, true
}

func contains(list []int, v int) bool {
	for _, x := range list {
		if x == v {
			return true
		}
	}
	return false
}

// askAhead resolves all direct routes before the first client needs them, so
// that a listener with one target knows it.
func (w *worker) askAhead() {
	for _, r := range w.routes {
		if r.direct {
			w.ask(r)
		}
	}
}

// replace sends a connection that waited under the old table on its way under
// the new one. Its hold begins anew.
func (w *worker) replace(c connection) {
	if l := w.listeners[c.l.ID]; l != nil {
		c.l = l
	} else {
		c.facts.Listener = -1 // removed: only rules for any listener fit
	}
	if c.facts.Listener >= 0 {
		c.facts.Listener = c.l.index
	}
	if w.choose(&c) {
		w.place(c, w.tally(&c))
	}
}

// retire takes what is in the backlog of l, so that nobody who was let in is
// lost, and closes it.
func (w *worker) retire(l *listener) {
	w.begin()
	w.retiring = true
	defer func() { w.retiring = false }()
	for range maxBacklog {
		if l.fd < 0 || !w.serveOne(l) {
			break
		}
	}
	w.close(l)
}
