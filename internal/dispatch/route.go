package dispatch

import (
	"time"

	"golang.org/x/sys/unix"

	"socketbox/internal/privsep"
	"socketbox/internal/rule"
)

// maxRoutes bounds what a scan of a large prefix can make a dispatcher
// remember; beyond it, routes without a waiting connection are forgotten. Of
// those with one there are at most as many again: the binder takes more for an
// attack.
const maxRoutes = 8192

// route is where connections with the same key go. Until the binder has
// answered, its sink is one of its own that nobody receives on.
type route struct {
	id     uint32
	key    privsep.Key
	sink   *sink
	asked  bool
	direct bool   // some listener points at it
	group  *group // that it leads to, or is a place of; nil for a target of one place
	absent bool   // a place whose directory does not exist
}

// connection is one that was accepted and has not left yet.
type connection struct {
	fd     int
	l      *listener
	family privsep.Family
	mapped bool
	rule   int // -1: none
	target int
	place  uint32 // which of the target's paths
	facts  rule.Conn
	looked bool      // facts are complete; until then they are the client's address alone
	since  time.Time // when it was held
	port   uint16    // of the client
	cookie uint64    // of the socket, where its rule limits sessions
	passed uint8     // steps of the meters
	route  *route
}

// take owns fd, a connection of l that has just been accepted.
func (w *worker) take(l *listener, fd int) {
	family, mapped := w.peerFamily()
	if mapped && unmap(fd) {
		mapped = false
	}
	c := connection{fd: fd, l: l, family: family, mapped: mapped, rule: l.sole}
	c.facts.Remote, c.port = address(&w.peer)
	if r := l.direct[family]; r != nil && !l.looks && !w.plan.LogConnections && !w.tracing() {
		c.target, c.route = int(r.key.Target), r
	} else {
		w.look(&c)
		if !w.choose(&c) {
			return
		}
	}
	t := w.tally(&c)
	t.accepted()
	w.place(c, t)
}

// choose finds the rule and the route of a connection. It returns false for one
// that a rule rejects, or that finds no room for its route, which is reset,
// counted and gone, and for one that a limit keeps waiting.
func (w *worker) choose(c *connection) bool {
	if !w.lead(c) {
		w.reject(c)
		return false
	}
	return w.meter(c) && w.limit(c) && w.findRoute(c)
}

// reject resets a connection, and counts it as what a rule wanted.
func (w *worker) reject(c *connection) {
	t := w.tally(c)
	if c.since.IsZero() {
		t.accepted()
	}
	t.rejected()
	w.logConnection(c, "rejected")
	w.decide(c, Rejected, 0, 0)
	reset(c.fd)
}

// findRoute finds the way to the target of c, or resets it where there is no
// room for one more way, and returns false.
func (w *worker) findRoute(c *connection) bool {
	if c.route = w.routeFor(w.keyOf(c)); c.route == nil {
		if c.since.IsZero() {
			w.tally(c).accepted()
		}
		w.fail(c, CausePaths, unix.ENOBUFS)
		return false
	}
	return true
}

// lead finds the rule that takes c, and where that one sends it; false if it
// rejects it.
func (w *worker) lead(c *connection) bool {
	c.rule, c.target, c.place = -1, 0, 0
	i, ok := w.rules.Lookup(&c.facts)
	if !ok {
		return true
	}
	r := &w.plan.Table.Rules[i]
	c.rule, c.target = i, r.Target
	if r.Reject {
		c.target = -1
		return false
	}
	if r.Map == 0 {
		return true
	}
	to, _ := w.rules.MapTo(i, &c.facts)
	if place, isPath := to.Path(); isPath {
		c.target, c.place = w.plan.Table.Maps[r.Map-1].Target, uint32(place)
	} else if c.target, ok = to.Target(); !ok {
		c.target = -1
	}
	return c.target >= 0
}

// keyOf returns the facts that choose the resolved path of c's target.
func (w *worker) keyOf(c *connection) privsep.Key {
	keys := w.plan.Table.Targets[c.target].Keys
	k := privsep.Key{Target: uint32(c.target), Place: c.place}
	if w.plan.Table.Targets[c.target].Balanced() {
		k.Place = rule.AnyPlace
	}
	if keys&rule.KeyPort != 0 {
		k.Port = c.facts.Port
	}
	if keys&rule.KeyFamily != 0 {
		k.Family = c.family
	}
	if keys&rule.KeyListener != 0 && c.facts.Listener >= 0 { // else a reload has removed it
		k.Listener = uint32(c.facts.Listener) + 1
	}
	if keys&rule.KeyLocal != 0 {
		k.Local = c.facts.Local
	}
	if keys&rule.KeyRemote != 0 {
		k.Remote = c.facts.Remote
	}
	return k
}

// routeFor returns the route with key k, a new one if there is none yet; nil
// if there are too many.
func (w *worker) routeFor(k privsep.Key) *route {
	if r := w.routes[k]; r != nil {
		return r
	}
	need := 1
	if k.Place == rule.AnyPlace {
		need += w.plan.Table.Targets[k.Target].Places
	}
	if len(w.routes)+need > maxRoutes {
		w.sendGathered() // their route may be one that is forgotten
	}
	for n := 0; n < need && len(w.routes)+need > maxRoutes; n++ {
		w.forgetRoute()
	}
	if len(w.routes)+need > 2*maxRoutes {
		return nil
	}
	if k.Place == rule.AnyPlace {
		return w.makeGroup(k)
	}
	r := w.newRoute(k, nil)
	w.assign(r, newSink(0))
	return r
}

// newRoute makes a route that nobody has asked for yet; g is the group that it
// leads to or is a place of.
func (w *worker) newRoute(k privsep.Key, g *group) *route {
	w.lastRoute++
	r := &route{id: w.lastRoute, key: k, group: g}
	w.routes[k], w.routeByID[r.id] = r, r
	return r
}

// ask has the binder resolve r, once.
func (w *worker) ask(r *route) {
	if r.leadsGroup() {
		w.askGroup(r.group)
	} else if !r.asked {
		r.asked = true
		w.tell(privsep.Message{Kind: privsep.Want, ID: r.id, Key: r.key})
	}
}

// assign makes s the sink of r. A sink that loses its last route is closed.
func (w *worker) assign(r *route, s *sink) {
	old := r.sink
	if old == s {
		return
	}
	r.sink = s
	s.join(r)
	if old != nil && old.part(r) {
		w.closeSink(old)
	}
}

// forgetRoute drops one route that nothing waits for; the binder is told. It
// takes what the map yields first, which is as good as any where thousands of
// keys are seen once.
func (w *worker) forgetRoute() {
	for _, r := range w.routes {
		if r.direct || r.sink.queue.len() > 0 || r.isPlace() {
			continue
		}
		if r.leadsGroup() {
			w.dropGroup(r.group)
			return
		}
		w.dropRoute(r)
		w.tell(privsep.Message{Kind: privsep.Drop, ID: r.id})
		return
	}
}

func (w *worker) dropRoute(r *route) {
	delete(w.routes, r.key)
	delete(w.routeByID, r.id)
	if r.sink.part(r) {
		w.closeSink(r.sink)
	}
}

// tally returns the counts that c moves. A listener that a reload removed has
// none of its own any more, and a connection that is rejected has no target.
func (w *worker) tally(c *connection) *tally {
	w.counts = tally{&w.orphans, w.counters.Rule(c.rule), &w.orphans}
	if !c.l.removed {
		w.counts[0] = w.counters.Listener(c.l.index)
	}
	if c.target >= 0 {
		w.counts[2] = w.counters.Target(c.target)
	}
	return &w.counts
}

// solo says whether everything that l accepts goes to s: then l need not
// accept while s can't take, and the kernel's backlog holds the clients. While
// the binder has not answered for any family yet, that is so, too.
func (l *listener) solo(s *sink) bool {
	if s.group != nil && s.group.balance == rule.SourceHash && s.state == privsep.Live {
		return false // full is one place, and other clients have another one
	}
	for _, f := range l.families() {
		if r := l.direct[f]; r == nil || r.sink != s && (s.id != 0 || r.sink.id != 0) && !bothWait(s, r.sink) {
			return false
		}
	}
	return true
}

// routeMessage obeys the binder: route m.ID goes to sink m.Value.
func (w *worker) routeMessage(m privsep.Message) {
	r := w.routeByID[m.ID]
	if r == nil {
		return // forgotten meanwhile
	}
	if m.Value == 0 {
		w.noTarget(r)
		return
	}
	s := w.sinks[m.Value]
	if s == nil {
		w.log.Error("the binder names a sink that is not there", "sink", m.Value)
		return
	}
	old := r.sink
	moved := old.queue.take(r)
	if s.since.IsZero() && s.state == privsep.Absent {
		s.since = old.since
	}
	w.settle(old)
	w.assign(r, s)
	w.release(old)
	for i := range moved {
		w.enqueue(s, moved[i])
	}
	if r.isPlace() {
		w.placeFound(r)
		return
	}
	w.pump(s)
	if old.id == 0 {
		w.curtail(s)
	}
}

// release resumes the listeners that paused for s and now serve others too.
func (w *worker) release(s *sink) {
	stay := s.paused[:0]
	for _, l := range s.paused {
		if l.solo(s) {
			stay = append(stay, l)
		} else {
			w.resume(l)
		}
	}
	s.paused = stay
}

// noTarget resets what waits on r: its directory does not exist. The next
// connection asks again.
func (w *worker) noTarget(r *route) {
	old := r.sink
	moved := old.queue.take(r)
	w.settle(old)
	r.asked = false
	w.assign(r, newSink(0))
	if r.isPlace() {
		w.placeMissing(r)
		return
	}
	w.release(old)
	for i := range moved {
		w.leave(&moved[i])
		w.fail(&moved[i], CauseNoDirectory, unix.ENOENT)
	}
	if !r.direct {
		w.dropRoute(r)
	}
}
