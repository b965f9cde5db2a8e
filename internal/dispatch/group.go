package dispatch

import (
	"net/netip"
	"time"

	"golang.org/x/sys/unix"

	"socketbox/internal/privsep"
	"socketbox/internal/rule"
)

// group is a target with several sockets, its places, for connections that agree in
// the facts that choose a path. A connection goes to one of the places that live;
// while none takes it, it waits on the group's own sink, of which the binder
// knows nothing, and goes to whichever takes it first.
type group struct {
	route   *route   // leads to the group's own sink
	places  []*route // in the order of the configuration
	balance rule.Balance
	next    int       // place whose turn it is, for RoundRobin
	asked   time.Time // when a place without a directory was asked for last
}

// groupIDs are where the IDs of the sinks of groups begin: far above those that
// the binder gives.
const groupIDs = 1 << 31

// askAgain is how often the binder is asked for a place whose directory did not
// exist while others take the connections.
const askAgain = time.Second

func (r *route) leadsGroup() bool { return r.group != nil && r.group.route == r }
func (r *route) isPlace() bool    { return r.group != nil && r.group.route != r }

// makeGroup makes a group, the route to it, which it returns, and those to its
// places.
func (w *worker) makeGroup(k privsep.Key) *route {
	t := &w.plan.Table.Targets[k.Target]
	g := &group{balance: t.Balance}
	g.route = w.newRoute(k, g)
	own := newSink(groupIDs + g.route.id)
	own.group = g
	w.assign(g.route, own)
	for i := range t.Places {
		k.Place = uint32(i)
		r := w.newRoute(k, g)
		w.assign(r, newSink(0))
		g.places = append(g.places, r)
	}
	return g.route
}

// dropGroup forgets a group that nothing waits for; the binder is told.
func (w *worker) dropGroup(g *group) {
	w.dropRoute(g.route)
	for _, r := range g.places {
		w.dropRoute(r)
		w.tell(privsep.Message{Kind: privsep.Drop, ID: r.id})
	}
}

// askGroup has the binder resolve the places of g.
func (w *worker) askGroup(g *group) {
	for _, r := range g.places {
		w.ask(r)
	}
}

// known says whether the binder has answered for all places, or a place lives.
func (g *group) known() bool {
	if g.route.sink.state == privsep.Live {
		return true
	}
	for _, r := range g.places {
		if r.sink.id == 0 && !r.absent {
			return false
		}
	}
	return true
}

// open says whether a new connection may go ahead of what waits at g: where each
// has a place of its own.
func (g *group) open() bool { return g.balance == rule.SourceHash || g.route.sink.queue.len() == 0 }

// choose returns the place for a client among those that live and are not in
// tried, a set of bits; -1 if there is none.
func (g *group) choose(client netip.Addr, tried uint64) int {
	best, most := -1, uint64(0)
	for n := range g.places {
		i := n
		if g.balance == rule.RoundRobin {
			i = (g.next + n) % len(g.places)
		}
		if tried&(1<<i) != 0 || g.places[i].sink.state != privsep.Live {
			continue
		}
		if g.balance != rule.SourceHash {
			return i
		}
		if weight := rule.HashWeight(client, i); best < 0 || weight > most {
			best, most = i, weight
		}
	}
	return best
}

// spread sends c to the place of g whose turn it is. It returns false where that
// one is full, for RoundRobin where all are, or none is there.
func (w *worker) spread(g *group, c *connection, t *tally) bool {
	w.remind(g)
	for tried := uint64(0); ; {
		i := g.choose(c.facts.Remote, tried)
		if i < 0 {
			return false
		}
		s := g.places[i].sink
		c.route = g.places[i]
		if w.send(s, c, t) {
			g.next = i + 1
			return true
		}
		c.route = g.route
		tried |= 1 << i
		switch {
		case s.state == privsep.Absent: // its receiver has just gone
			w.summon(s)
		case s.starved:
			s.starved, g.route.sink.starved = false, true
			return false
		case g.balance != rule.RoundRobin:
			return false
		}
	}
}

// remind asks again, now and then, for places whose directory did not exist.
func (w *worker) remind(g *group) {
	for _, r := range g.places {
		if r.absent && !r.asked && time.Since(g.asked) >= askAgain {
			g.asked = time.Now()
			w.askGroup(g)
			return
		}
	}
}

// pumpGroup sends what waits at g, for as long as a place takes it.
func (w *worker) pumpGroup(g *group) {
	s := g.route.sink
	if g.balance == rule.SourceHash {
		for _, c := range s.queue.take(nil) {
			if w.spread(g, &c, w.tally(&c)) {
				w.leave(&c)
			} else {
				s.queue.push(c)
			}
		}
	}
	for g.balance != rule.SourceHash && s.queue.len() > 0 {
		c := s.queue.front()
		if !w.spread(g, c, w.tally(c)) {
			break
		}
		w.leave(c)
		s.queue.pop()
	}
	if s.queue.len() > 0 {
		w.summon(s)
		return
	}
	w.settle(s)
}

// syncGroups has the groups that s is a place of follow its state: their own
// sinks are live while a place is.
func (w *worker) syncGroups(s *sink) {
	for _, g := range s.groups {
		w.syncGroup(g)
	}
}

func (w *worker) syncGroup(g *group) {
	own, state := g.route.sink, privsep.Absent
	for _, r := range g.places {
		if r.sink.state == privsep.Live {
			state = privsep.Live
		}
	}
	if own.state == state {
		return
	}
	own.state = state
	if state == privsep.Absent {
		if own.queue.len() > 0 && own.since.IsZero() {
			own.since = time.Now()
		}
		return
	}
	own.since, own.expired = time.Time{}, false
	for _, l := range w.listeners {
		for _, r := range l.direct {
			if r != nil && r.leadsGroup() {
				w.release(r.sink)
			}
		}
	}
}

// bothWait says whether nothing lives behind either of two groups of one target:
// then a listener with both needs to accept no more than one connection.
func bothWait(a, b *sink) bool {
	return a.group != nil && b.group != nil && a.state == privsep.Absent && b.state == privsep.Absent &&
		a.group.route.key.Target == b.group.route.key.Target
}

// placeFound takes the binder's answer for a place.
func (w *worker) placeFound(r *route) {
	own := r.group.route.sink
	r.absent, own.expired = false, false
	w.syncGroup(r.group)
	w.pump(r.sink)
	if own.known() {
		w.curtail(own)
	}
}

// placeMissing takes the binder's answer that the directory of a place does not
// exist. Where none has one, what waits is reset.
func (w *worker) placeMissing(r *route) {
	g := r.group
	own := g.route.sink
	r.absent = true
	w.syncGroup(g)
	for _, p := range g.places {
		if !p.absent || p.asked {
			return
		}
	}
	waiting := own.queue.take(nil)
	w.settle(own)
	for i := range waiting {
		w.leave(&waiting[i])
		w.fail(&waiting[i], CauseNoDirectory, unix.ENOENT)
	}
}
