package dispatch

import (
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"socketbox/internal/fdpass"
	"socketbox/internal/handoff"
	"socketbox/internal/privsep"
)

// sink is one resolved path: the connected socket, while somebody receives
// there, and the connections on hold for it.
type sink struct {
	id      uint32 // 0: a route's own, before the binder has answered
	version uint32 // of the binder's last word on it
	state   privsep.State
	fd      int      // owned; -1 if none
	routes  int      // that lead here
	groups  []*group // of which some route that leads here is a place
	group   *group   // whose own sink this is: on it waits what no place takes now
	queue   queue
	armed   bool      // in the epoll set: the receiver's queue is full
	starved bool      // the next sweep tries again
	since   time.Time // connections wait for an absent receiver since then
	expired bool      // hold.time is over: nothing is held until it is back
	told    bool      // the binder knows that connections wait
	paused  []*listener
}

func newSink(id uint32) *sink { return &sink{id: id, state: privsep.Absent, fd: -1} }

// join counts that r leads to s; part that it does so no more, and returns true
// where no other route does.
func (s *sink) join(r *route) {
	s.routes++
	if r.isPlace() {
		s.groups = append(s.groups, r.group)
	}
}

func (s *sink) part(r *route) (last bool) {
	s.routes--
	if i := slices.Index(s.groups, r.group); r.isPlace() && i >= 0 {
		s.groups = slices.Delete(s.groups, i, i+1)
	}
	return s.routes == 0
}

// known says whether the binder has answered where connections for s go.
func (s *sink) known() bool {
	if s.group != nil {
		return s.group.known()
	}
	return s.id != 0
}

// place sends c to its route's sink, or holds it. It owns c.
func (w *worker) place(c connection, t *tally) {
	s := c.route.sink
	switch {
	case s.group != nil:
		if !s.group.open() || !w.spread(s.group, &c, t) {
			w.hold(s, c, t)
		}
	case w.gathering.on && s.takes():
		w.gather(s, &c)
	default:
		w.sendOrHold(s, &c, t)
	}
}

// takes says whether a connection may be sent to s: somebody receives there,
// and nobody waits.
func (s *sink) takes() bool { return s.state == privsep.Live && s.queue.len() == 0 }

func (w *worker) sendOrHold(s *sink, c *connection, t *tally) {
	if !s.takes() || !w.send(s, c, t) {
		w.hold(s, *c, t)
	}
}

// packet is what c is sent with.
func (c *connection) packet() *fdpass.Packet {
	if c.mapped {
		return c.l.mapped
	}
	return c.l.packet
}

// send tries to hand c off. It returns true when c is gone: delivered, or
// impossible to deliver.
func (w *worker) send(s *sink, c *connection, t *tally) bool {
	errno := c.packet().Send(s.fd, c.fd)
	switch handoff.OutcomeOf(errno) {
	case handoff.Sent:
		now := time.Since(w.born)
		w.delivered(c, t, now)
		w.mark = now
		return true
	case handoff.Refused:
		w.fail(c, CauseRefused, errno)
		return true
	case handoff.Full:
		w.arm(s)
	case handoff.Starved:
		w.complain("the kernel can't pass more descriptors now, trying again", w.targetName(c.target), errno)
		s.starved, w.hurry = true, true
	case handoff.Gone:
		w.disconnect(s)
	}
	return false
}

// delivered closes and counts c, which was sent and is its receiver's now.
func (w *worker) delivered(c *connection, t *tally, now time.Duration) {
	closeFD(c.fd) // at once: a copy kept here would hold back the FIN
	t.delivered()
	if c.cookie != 0 {
		w.sessions.left(c)
	}
	w.handedOff(c, now)
	w.logConnection(c, "delivered")
	w.decide(c, Delivered, 0, 0)
}

// hold keeps c until its sink can take it, within the target's limits.
func (w *worker) hold(s *sink, c connection, t *tally) {
	if !c.looked {
		w.look(&c)
	}
	limit := w.plan.Table.Targets[c.target].Hold.Connections
	switch {
	case s.expired:
		w.fail(&c, CauseAbsent, unix.ECONNREFUSED)
		return
	case s.queue.len() >= limit && s.known() && !w.draining:
		w.fail(&c, CauseHoldConnections, unix.EAGAIN)
		return
	case w.waiting >= w.plan.HoldTotal:
		w.fail(&c, CauseHoldTotal, unix.EAGAIN)
		return
	}
	if c.since.IsZero() {
		c.since = time.Now()
	}
	w.waiting++
	t.waits(+1)
	w.decide(&c, Held, 0, s.reason())
	l := c.l
	w.enqueue(s, c)
	w.summon(s)
	if !s.known() || s.group != nil {
		w.ask(c.route)
	}
	if l.solo(s) && !w.draining && !slices.Contains(s.paused, l) {
		w.pause(l)
		s.paused = append(s.paused, l)
	}
}

// reason is why connections wait for s, 0 while the binder has not answered.
func (s *sink) reason() unix.Errno {
	switch {
	case !s.known():
		return 0
	case s.state == privsep.Live:
		return unix.EAGAIN
	}
	return unix.ECONNREFUSED
}

// curtail resets the latest of what waits for s where that is more than the
// target may hold. It came while the binder was asked for the path: until
// then nobody knows whether there is anything to wait for.
func (w *worker) curtail(s *sink) {
	for s.queue.len() > 0 && !w.draining {
		c := s.queue.back()
		if s.queue.len() <= w.plan.Table.Targets[c.target].Hold.Connections {
			return
		}
		w.leave(c)
		w.fail(c, CauseHoldConnections, unix.EAGAIN)
		s.queue.popBack()
	}
}

// enqueue puts a waiting connection at the end of the queue of s.
func (w *worker) enqueue(s *sink, c connection) {
	c.route.sink = s
	s.queue.push(c)
	w.holding[s] = struct{}{}
	if s.state == privsep.Absent && s.since.IsZero() {
		s.since = time.Now()
	}
}

// leave counts that c waits no more.
func (w *worker) leave(c *connection) *tally {
	w.waiting--
	t := w.tally(c)
	t.waits(-1)
	return t
}

// summon tells the binder that connections wait for an absent receiver, once
// for each of the binder's words on it.
func (w *worker) summon(s *sink) {
	if s.group != nil {
		for _, r := range s.group.places {
			w.summon(r.sink)
		}
	} else if s.state == privsep.Absent && s.id != 0 && !s.told {
		s.told = true
		w.tell(privsep.Message{Kind: privsep.Stuck, ID: s.id, Value: s.version})
	}
}

// pump sends what waits for s, for as long as s takes it.
func (w *worker) pump(s *sink) {
	if s.group != nil {
		w.pumpGroup(s.group)
		return
	}
	for s.state == privsep.Live && s.queue.len() > 0 {
		c := s.queue.front()
		if !w.send(s, c, w.tally(c)) {
			break
		}
		w.leave(c)
		s.queue.pop()
	}
	if s.queue.len() > 0 {
		w.summon(s)
		return
	}
	for i := 0; i < len(s.groups); i++ { // a connection that is served meanwhile may have one forgotten
		w.pumpGroup(s.groups[i])
	}
	w.settle(s)
}

// settle goes back to normal once nothing waits for s any more. Listeners
// that paused for s are served first: while clients are plenty, they and s
// stay as they are in the epoll set, which saves four calls per connection.
func (w *worker) settle(s *sink) {
	if len(s.paused) > 0 {
		w.begin()
	}
	for n := 0; s.queue.len() == 0 && len(s.paused) > 0; n++ {
		l := s.paused[0]
		if n < batch && s.state == privsep.Live && w.serveOne(l) {
			continue
		}
		s.paused = s.paused[1:]
		w.resume(l)
	}
	if s.queue.len() == 0 {
		if !s.awaited() {
			w.disarm(s)
		}
		delete(w.holding, s)
	}
}

// awaited says whether connections wait at a group for room in s.
func (s *sink) awaited() bool {
	return slices.ContainsFunc(s.groups, func(g *group) bool { return g.route.sink.queue.len() > 0 })
}

// expire ends what has waited longer for s than its target allows.
func (w *worker) expire(s *sink, now time.Time) {
	for s.queue.len() > 0 {
		c := s.queue.front()
		limits := w.plan.Table.Targets[c.target].Hold
		switch {
		case s.state == privsep.Absent && (s.expired || now.Sub(s.since) >= limits.Time):
			s.expired = true
			w.leave(c)
			w.fail(c, CauseAbsent, unix.ECONNREFUSED)
		case s.state == privsep.Live && limits.Busy > 0 && now.Sub(c.since) >= limits.Busy:
			w.leave(c)
			w.fail(c, CauseBusy, unix.EAGAIN)
		default:
			return
		}
		s.queue.pop()
	}
	w.settle(s)
}

// arm waits for room in the receiver's queue; disarm ends that.
func (w *worker) arm(s *sink) {
	if !s.armed {
		s.armed = true
		w.watch(unix.EPOLL_CTL_ADD, s.fd, unix.EPOLLOUT, aboutSink, s.id)
	}
}

func (w *worker) disarm(s *sink) {
	if s.armed {
		s.armed = false
		w.watch(unix.EPOLL_CTL_DEL, s.fd, 0, aboutSink, s.id)
	}
}

// disconnect drops the socket of s: nobody receives on it any more.
func (w *worker) disconnect(s *sink) {
	w.disarm(s)
	if s.fd >= 0 {
		closeFD(s.fd)
	}
	s.fd, s.state = -1, privsep.Absent
	if s.queue.len() > 0 && s.since.IsZero() {
		s.since = time.Now()
	}
	w.syncGroups(s)
}

// closeSink forgets a sink that no route leads to and nothing waits for.
func (w *worker) closeSink(s *sink) {
	w.disconnect(s)
	delete(w.holding, s)
	if w.sinks[s.id] == s {
		delete(w.sinks, s.id)
	}
}

// sinkMessage obeys the binder: sink m.ID has a new state. It owns m.FDs.
func (w *worker) sinkMessage(m privsep.Message) {
	s := w.sinks[m.ID]
	if s == nil {
		s = newSink(m.ID)
		w.sinks[m.ID] = s
	}
	w.disconnect(s)
	s.version, s.told, s.expired = m.Value, false, false
	if m.State == privsep.Live {
		s.fd, s.state = m.FDs[0], privsep.Live
		s.since = time.Time{}
	}
	for _, g := range s.groups {
		g.route.sink.expired = false
	}
	w.syncGroups(s)
	w.pump(s)
}

// fail resets c, which has been counted as accepted and doesn't wait any
// more, and says why.
func (w *worker) fail(c *connection, cause Cause, errno unix.Errno) {
	w.tally(c).failed()
	if c.target >= 0 {
		w.counters.Causes(c.target)[cause]++
		if !c.since.IsZero() {
			w.held(c)
		}
	}
	w.complain(resetTexts[cause], w.targetName(c.target), errno)
	w.logConnection(c, cause.String())
	w.decide(c, Failed, cause, errno)
	reset(c.fd)
}

// queue is a first-in-first-out list of connections.
type queue struct {
	items []connection
	head  int
}

func (q *queue) len() int           { return len(q.items) - q.head }
func (q *queue) front() *connection { return &q.items[q.head] }
func (q *queue) back() *connection  { return &q.items[len(q.items)-1] }
func (q *queue) push(c connection)  { q.items = append(q.items, c) }

func (q *queue) popBack() {
	q.items[len(q.items)-1] = connection{}
	q.items = q.items[:len(q.items)-1]
}

func (q *queue) pop() {
	q.items[q.head] = connection{}
	if q.head++; q.head == len(q.items) {
		q.items, q.head = q.items[:0], 0
	} else if q.head > 64 && q.head > len(q.items)/2 {
		n := copy(q.items, q.items[q.head:])
		clear(q.items[n:])
		q.items, q.head = q.items[:n], 0
	}
}

// take removes and returns the connections of route r (nil: all), in order.
func (q *queue) take(r *route) []connection {
	var taken, left []connection
	for _, c := range q.items[q.head:] {
		if r == nil || c.route == r {
			taken = append(taken, c)
		} else {
			left = append(left, c)
		}
	}
	q.items, q.head = left, 0
	return taken
}
