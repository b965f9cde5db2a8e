package dispatch

import (
	"net/netip"
	"time"

	"golang.org/x/sys/unix"

	"socketbox/internal/privsep"
	"socketbox/internal/rule"
)

// gate is the limit of sessions of one rule: what lives, and what waits to be let
// in. A connection that its rule lets in is a session until its socket is gone,
// wherever that has been passed to: the binder hears it from the kernel.
type gate struct {
	rule.Sessions
	live    int
	sources map[netip.Addr]*source // that have sessions, or connections waiting
	ready   []*source              // with connections waiting that only Max keeps out, in turn
	waiting int
	paused  []*listener // whose connections all come here
}

// source is whom sessions are counted for; one for all where the rule does not
// tell them apart.
type source struct {
	name  netip.Addr
	live  int
	queue queue
	ready bool // among those of the gate
}

// newGates makes the gates of a plan, by index of their rule; nil if there is
// none, so that other tables pay nothing.
func newGates(t *rule.Table) map[int]*gate {
	var all map[int]*gate
	for i := range t.Rules {
		if limit := t.Rules[i].Sessions; !limit.IsZero() {
			if all == nil {
				all = map[int]*gate{}
			}
			all[i] = &gate{Sessions: limit, sources: map[netip.Addr]*source{}}
		}
	}
	return all
}

// source returns whom a client of g is counted for.
func (g *gate) source(client netip.Addr) *source {
	name := netip.Addr{}
	if g.PerSource > 0 {
		name = rule.Source(client)
	}
	s := g.sources[name]
	if s == nil {
		s = &source{name: name}
		g.sources[name] = s
	}
	return s
}

func (g *gate) full() bool             { return g.Max > 0 && g.live >= g.Max }
func (g *gate) fullFor(s *source) bool { return g.PerSource > 0 && s.live >= g.PerSource }

// count counts a session that begins (+1) or ends (-1).
func (g *gate) count(s *source, delta int) {
	g.live += delta
	s.live += delta
	g.forget(s)
}

func (g *gate) forget(s *source) {
	if s.live == 0 && s.queue.len() == 0 && !s.ready {
		delete(g.sources, s.name)
	}
}

// await puts s in line if it has connections that only Max keeps out.
func (g *gate) await(s *source) {
	if !s.ready && s.queue.len() > 0 && !g.fullFor(s) {
		s.ready = true
		g.ready = append(g.ready, s)
	}
}

// next takes the connection whose turn it is, of one source after another; nil
// if nothing may pass.
func (g *gate) next() *connection {
	for len(g.ready) > 0 && !g.full() {
		s := g.ready[0]
		g.ready = g.ready[1:]
		s.ready = false
		if s.queue.len() == 0 || g.fullFor(s) {
			g.forget(s)
			continue
		}
		c := *s.queue.front()
		s.queue.pop()
		g.waiting--
		return &c
	}
	return nil
}

// limit lets c in, or keeps it until a session of its rule has ended. It returns
// false if c waits, or is gone.
func (w *worker) limit(c *connection) bool {
	g := w.gates[c.rule]
	if g == nil || c.family == privsep.Unix { // the kernel does not tell of the end of Unix sockets
		return true
	}
	if c.cookie == 0 {
		c.cookie = cookieOf(c.fd)
	}
	if w.sessions.find(c.cookie) != nil { // it was let in before a reload
		return true
	}
	s := g.source(c.facts.Remote)
	switch {
	case !g.full() && !g.fullFor(s) && s.queue.len() == 0 && w.begins(c, g, s):
		return true
	case g.Reject:
		g.forget(s)
		w.turnAway(c)
	default:
		w.keepOut(c, g, s)
	}
	return false
}

// begins remembers c as a session; false if no more can be remembered.
func (w *worker) begins(c *connection, g *gate, s *source) bool {
	session := Session{
		Cookie: c.cookie, Listener: c.l.ID, Rule: int32(c.rule), Target: int32(c.target),
		remote: pack(c.facts.Remote), local: pack(c.facts.Local), RemotePort: c.port, LocalPort: c.facts.Port, Family: c.family,
	}
	if !w.sessions.add(session) {
		w.complain("too many sessions to remember them all", c.l.Name, unix.ENOSPC)
		return false
	}
	g.count(s, +1)
	if g.full() && !g.Reject && c.l.sole == c.rule && c.l.paused == 0 && !w.draining {
		w.pause(c.l) // its backlog holds whoever comes next
		g.paused = append(g.paused, c.l)
	}
	return true
}

// turnAway resets c, which is over a limit.
func (w *worker) turnAway(c *connection) {
	w.complain("connection rejected: max_sessions reached", w.targetName(c.target), unix.EUSERS)
	w.reject(c)
}

// keepOut has c wait until it may be let in, within the limits of its target.
func (w *worker) keepOut(c *connection, g *gate, s *source) {
	t := w.tally(c)
	if c.since.IsZero() {
		t.accepted()
	}
	cause, over := CauseHoldTotal, w.waiting >= w.plan.HoldTotal
	if g.waiting >= w.plan.Table.Targets[c.target].Hold.Connections && !w.draining {
		cause, over = CauseHoldConnections, true
	}
	if over {
		w.fail(c, cause, unix.EUSERS)
		g.forget(s)
		return
	}
	if c.since.IsZero() {
		c.since = time.Now()
	}
	w.waiting++
	t.waits(+1)
	w.decide(c, Held, 0, unix.EUSERS)
	c.route = nil
	s.queue.push(*c)
	g.waiting++
	g.await(s)
}

// ended notes that sockets are gone, and lets in who has waited for that.
func (w *worker) ended(cookies []uint64) {
	if w.sessions == nil {
		return
	}
	for _, cookie := range cookies {
		session := w.sessions.find(cookie)
		if session == nil {
			continue
		}
		index, client := int(session.Rule), session.Remote().Addr()
		w.sessions.remove(cookie)
		if g := w.gates[index]; g != nil {
			s := g.source(client)
			g.count(s, -1)
			g.await(s)
			w.letIn(g)
		}
	}
}

// letIn passes on what waits at g and may be let in now. Listeners that paused
// are served again once nothing is left that came before.
func (w *worker) letIn(g *gate) {
	for c := g.next(); c != nil; c = g.next() {
		s := g.source(c.facts.Remote)
		if !w.begins(c, g, s) {
			s.queue.push(*c) // at the end; it stays in good company
			g.waiting++
			g.await(s)
			return
		}
		g.await(s)
		w.admitted(c)
	}
	if g.full() || w.draining {
		return
	}
	for _, l := range g.paused {
		w.resume(l)
	}
	g.paused = g.paused[:0]
}

// admitted sends on a connection that has waited at a gate.
func (w *worker) admitted(c *connection) {
	t := w.leave(c)
	before := w.waiting
	if !w.findRoute(c) {
		return
	}
	w.place(*c, t)
	if w.waiting > before { // it waits again: counted once
		w.tally(c).heldAgain()
	}
}

// expireGates ends what has waited longer at a gate than its target allows:
// hold.busy or, while the dispatcher drains, hold.time.
func (w *worker) expireGates(now time.Time) {
	for _, g := range w.gates {
		if g.waiting == 0 {
			continue
		}
		for _, s := range g.sources {
			w.expireSource(g, s, now)
		}
	}
}

func (w *worker) expireSource(g *gate, s *source, now time.Time) {
	for s.queue.len() > 0 {
		c := s.queue.front()
		hold := w.plan.Table.Targets[c.target].Hold
		late := hold.Busy > 0 && now.Sub(c.since) >= hold.Busy
		if w.draining && now.Sub(w.drainingSince) >= hold.Time {
			late = true
		}
		if !late {
			return
		}
		w.leave(c)
		w.fail(c, CauseSessions, unix.EUSERS)
		s.queue.pop()
		g.waiting--
	}
	g.forget(s)
}

// takeGated empties the gates for a new table.
func (w *worker) takeGated() []connection {
	var all []connection
	for _, g := range w.gates {
		for _, s := range g.sources {
			all = append(all, s.queue.take(nil)...)
		}
		for _, l := range g.paused {
			w.resume(l)
		}
	}
	w.gates = nil
	return all
}

// regate makes the gates of a new table and counts for them the sessions that
// live: by the facts of each the rule that would take it now.
func (w *worker) regate(before *Plan) {
	w.gates = newGates(w.plan.Table)
	if w.sessions == nil {
		return
	}
	targets := map[string]int32{}
	for i := range w.plan.Table.Targets {
		targets[w.plan.Table.Targets[i].Name] = int32(i)
	}
	for cookie, i := range w.sessions.place {
		s := &w.sessions.file.places[i]
		target := int32(-1)
		if before != nil && s.Target >= 0 && int(s.Target) < len(before.Table.Targets) {
			if now, ok := targets[before.Table.Targets[s.Target].Name]; ok {
				target = now
			}
		} else if before == nil && int(s.Target) < len(w.plan.Table.Targets) {
			target = s.Target // of a dispatcher that had this very table
		}
		s.Target, s.Sink = target, 0
		if !w.recount(s) {
			w.sessions.remove(cookie)
		}
	}
	for _, g := range w.gates {
		w.pauseFull(g)
	}
}

// recount finds the rule that takes s now; false if it has no limit.
func (w *worker) recount(s *Session) bool {
	facts := rule.Conn{Listener: -1, Port: s.LocalPort, Remote: s.Remote().Addr(), Local: s.Local().Addr()}
	if l := w.listeners[s.Listener]; l != nil {
		facts.Listener = l.index
	}
	i, ok := w.rules.Lookup(&facts)
	g := w.gates[i]
	if !ok || g == nil {
		return false
	}
	s.Rule = int32(i)
	g.count(g.source(facts.Remote), +1)
	return true
}

// pauseFull stops the listeners whose connections all come to a gate that is full.
func (w *worker) pauseFull(g *gate) {
	if !g.full() || g.Reject || w.draining {
		return
	}
	for _, l := range w.listeners {
		if l.sole >= 0 && w.gates[l.sole] == g && l.paused == 0 {
			w.pause(l)
			g.paused = append(g.paused, l)
		}
	}
}

// sessionsMessage obeys the binder: the file of sessions is there, or sessions
// that nobody has remembered so far. It owns m.FDs.
func (w *worker) sessionsMessage(m privsep.Message) error {
	defer unix.Close(m.FDs[0])
	if m.Value != privsep.Foreign {
		r, err := openRegister(m.FDs[0])
		if err == nil && w.sessions == nil {
			w.sessions = r
		}
		return err
	}
	b, err := privsep.ReadFile(m.FDs[0], MaxForeign)
	if err != nil || w.sessions == nil || w.plan == nil {
		return err
	}
	all, err := DecodeSessions(b)
	if err != nil {
		return err
	}
	waiting := w.waitingCookies()
	for i := range all {
		s := &all[i]
		if s.Cookie == 0 || waiting[s.Cookie] || w.sessions.find(s.Cookie) != nil {
			continue
		}
		if w.recount(s) && !w.sessions.add(*s) {
			g := w.gates[int(s.Rule)]
			g.count(g.source(s.Remote().Addr()), -1)
		}
	}
	for _, g := range w.gates {
		w.pauseFull(g)
	}
	return nil
}

// waitingCookies are those of connections that wait to be let in.
func (w *worker) waitingCookies() map[uint64]bool {
	all := map[uint64]bool{}
	for _, g := range w.gates {
		for _, s := range g.sources {
			for _, c := range s.queue.items[s.queue.head:] {
				all[c.cookie] = true
			}
		}
	}
	return all
}

// SoleRule returns the rule that takes every connection of a listener, -1 if none
// can take any; ok is false if that depends on the connection.
func SoleRule(t *rule.Table, listener int) (index int, ok bool) { return soleRule(t, listener) }
