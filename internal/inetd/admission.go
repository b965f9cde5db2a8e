package inetd

import (
	"time"

	"socketbox/internal/peer"
)

// admission decides who may start now. It knows numbers, not processes.
//
// A connection is in one of three places: waiting for its source, which has
// as many children as it may; ready, when only the limits that concern all
// are before it; or running. A source's waiting connections never stand in
// the way of other sources'.
type admission struct {
	max       int // children at once
	perSource int // children at once for one source; 0: no limit
	bound     int // waiting connections at once; then nothing is received
	rate      bucket
	paused    time.Time // no start before, after a failure of the machine

	running int
	waiting int
	ready   queue[*connection]
	sources map[peer.Source]*crowd
}

// crowd is what one source has here.
type crowd struct {
	admitted int // running or ready
	waiting  queue[*connection]
}

func newAdmission(max, perSource, bound int, rate Rate, now time.Time) *admission {
	return &admission{
		max: max, perSource: perSource, bound: bound,
		rate:    newBucket(rate, now),
		sources: make(map[peer.Source]*crowd),
	}
}

// add takes a connection that was received.
func (a *admission) add(c *connection) {
	from := a.sources[c.Source]
	if from == nil {
		from = &crowd{}
		a.sources[c.Source] = from
	}
	if a.perSource > 0 && from.admitted >= a.perSource {
		from.waiting.push(c)
		a.waiting++
		return
	}
	from.admitted++
	a.ready.push(c)
}

// delay returns 0 if one more child may be started now, and else how long at
// least until one may. full tells that only the end of a child can help.
func (a *admission) delay(now time.Time) (d time.Duration, full bool) {
	if a.running >= a.max {
		return 0, true
	}
	return max(a.paused.Sub(now), a.rate.wait(now), 0), false
}

// full tells that no more connections can wait for others of their source.
func (a *admission) full() bool { return a.waiting >= a.bound }

// mayReceive tells whether there is a place for one more connection, whatever
// its source; delay is asked apart.
func (a *admission) mayReceive() bool { return !a.full() && a.ready.len() == 0 }

// next takes the connection to start next; nil if none is ready. The caller
// has asked delay.
func (a *admission) next() *connection {
	c, ok := a.ready.pop()
	if !ok {
		return nil
	}
	a.rate.take()
	a.running++
	return c
}

// number returns how many connections of c's source are admitted, c included.
func (a *admission) number(c *connection) int { return a.sources[c.Source].admitted }

// again puts c, whose start has failed, back in front, until a pause is over.
func (a *admission) again(c *connection, pause time.Time) {
	a.running--
	a.rate.giveBack()
	a.ready.pushFront(c)
	a.paused = pause
}

// ended makes room where c was running, for the next one of its source first.
func (a *admission) ended(c *connection) {
	a.running--
	from := a.sources[c.Source]
	from.admitted--
	if next, ok := from.waiting.pop(); ok {
		a.waiting--
		from.admitted++
		a.ready.push(next)
	}
	if from.admitted == 0 {
		delete(a.sources, c.Source)
	}
}

// held returns how many connections are here and not running.
func (a *admission) held() int { return a.waiting + a.ready.len() }

// dropHeld forgets all connections that are not running and returns them.
func (a *admission) dropHeld() []*connection {
	var dropped []*connection
	for _, from := range a.sources {
		for c, ok := from.waiting.pop(); ok; c, ok = from.waiting.pop() {
			dropped = append(dropped, c)
		}
	}
	for c, ok := a.ready.pop(); ok; c, ok = a.ready.pop() {
		a.sources[c.Source].admitted--
		dropped = append(dropped, c)
	}
	a.waiting = 0
	return dropped
}
