package relay

import (
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"socketbox/internal/peer"
)

// connection is a client and, once it has one, its destination. Only its
// worker's thread touches it.
type connection struct {
	w         *worker
	slot      int32
	state     state
	handedOff bool // the sender may still hold the client's socket
	entered   bool // counted among its source's
	busy      bool // is in busyFlows
	winner    int8 // which attempt became the destination

	client, destination end
	out, in             flow // to the destination, to the client

	facts    peer.Facts // if the settings need them
	listener string
	header   *proxied // that the client's proxy has sent
	id       string   // for the destination's log and ours
	dial     *dial    // until connected

	began     int64 // received, in the worker's time
	connected int64
	last      int64 // a byte moved
	due       int64 // next time that something is to be done; 0: none
	place     int   // in timers; -1: not there
	target    string
}

type state int8

const (
	reading  state = iota // the PROXY header of a trusted client
	waiting               // for others of its source
	dialling              // for a destination
	relaying
	ended
)

// prepare makes the client's socket ready and asks for what the settings need.
func (c *connection) prepare() (err error) {
	// A listener of ours passes its options on to its clients by itself.
	c.client.nodelay = !c.handedOff
	if c.handedOff {
		if _, err := unix.FcntlInt(uintptr(c.client.fd), unix.F_SETFL, unix.O_NONBLOCK); err != nil {
			return fmt.Errorf("set non-blocking: %w", err)
		}
		c.w.relay.keepAlive(c.client.fd)
	}
	if c.w.relay.needFacts {
		c.facts, err = peer.Of(c.client.fd)
	}
	return err
}

// start sends the connection on its way, from the header on if it has one.
func (c *connection) start() {
	if err := c.w.watch(c.client.fd, edge, c.about(aboutClient), c.slot); err != nil {
		c.fail("can't wait for the client", err)
		return
	}
	if c.w.relay.trusts(&c.facts) {
		c.state = reading
		c.w.timers.set(c, c.w.now+int64(headerTime))
		c.readHeader()
		return
	}
	c.enter()
}

// enter goes on if the client's source has not got its share yet.
func (c *connection) enter() {
	admitted, opened := c.w.relay.limits.enter(c)
	if opened {
		c.w.relay.roomOpened()
	}
	if !admitted {
		c.state = waiting
		c.w.timers.set(c, 0)
		return
	}
	c.connect()
}

// connect begins to dial.
func (c *connection) connect() {
	c.state = dialling
	c.dial = &dial{c: c}
	c.dial.begin()
}

// established: the destination is there, and it is an end of this connection.
func (c *connection) established(fd int, attempt int) {
	w := c.w
	c.state, c.winner, c.connected, c.last = relaying, int8(attempt), w.now, w.now
	c.target, c.dial = c.dial.won, nil
	c.destination.fd = fd
	// Told or not, it can be written to; whether there is something to read
	// is one call that may be in vain, or an event that is on its way.
	c.destination.writable, c.client.writable = true, true
	c.out = flow{from: &c.client, to: &c.destination}
	c.in = flow{from: &c.destination, to: &c.client}
	if rate := w.relay.o.Rate; rate > 0 {
		c.out.bucket, c.in.bucket = newBucket(rate, w.now), newBucket(rate, w.now)
	}
	w.attrs.connected.Add(1)
	if err := c.sendHeader(); err != nil {
		c.fail("can't send the PROXY header", err)
		return
	}
	c.pump()
}

// clientEvent notes what epoll says of the client.
func (c *connection) clientEvent(events uint32) {
	note(&c.client, events)
	switch c.state {
	case relaying:
		c.pump()
	case reading:
		c.readHeader()
	case dialling, waiting:
		if events&unix.EPOLLERR != 0 {
			c.w.attrs.gone.Add(1)
			c.end("client reset", true)
		}
	}
}

// destinationEvent notes what epoll says of an attempt or of the destination.
func (c *connection) destinationEvent(attempt int, events uint32) {
	switch {
	case c.state == dialling:
		c.dial.event(attempt, events)
	case c.state == relaying && attempt == int(c.winner):
		note(&c.destination, events)
		c.pump()
	}
}

func note(e *end, events uint32) {
	const reads = unix.EPOLLIN | unix.EPOLLRDHUP | unix.EPOLLHUP | unix.EPOLLERR
	e.readable = e.readable || events&reads != 0
	e.writable = e.writable || events&(unix.EPOLLOUT|unix.EPOLLERR|unix.EPOLLHUP) != 0
	e.hup = e.hup || events&(unix.EPOLLRDHUP|unix.EPOLLHUP|unix.EPOLLERR) != 0
}

// pump moves bytes both ways and ends the connection when both have ended.
func (c *connection) pump() {
	before := c.out.moved + c.in.moved
	for _, f := range []*flow{&c.out, &c.in} {
		progress, errno := c.w.move(f)
		switch progress {
		case fromFailed:
			c.broken(f, f.from, errno)
			return
		case toFailed:
			c.broken(f, f.to, errno)
			return
		case more:
			c.again()
		}
	}
	if c.out.moved+c.in.moved != before {
		c.last = c.w.now
	}
	if c.out.shut && c.in.shut {
		c.end("closed", false)
		return
	}
	c.schedule()
}

// again gives the connection another turn.
func (c *connection) again() {
	if !c.busy {
		c.busy = true
		c.w.busyFlows = append(c.w.busyFlows, c)
	}
}

// broken ends the connection after one end has failed. What that end had sent
// before is passed on first, as far as the other end takes it, and then the
// reset.
func (c *connection) broken(f *flow, failed *end, errno unix.Errno) {
	back := &c.in
	if failed == &c.client {
		back = &c.out
	}
	if back != f {
		c.w.move(back)
	} else {
		c.w.flush(back)
	}
	who := "client"
	if failed == &c.destination {
		who = "destination"
	}
	failed.dead = true
	reason := who + " reset"
	switch errno {
	case unix.ECONNRESET, unix.EPIPE:
	case unix.ETIMEDOUT:
		reason = who + " timed out"
	default:
		reason = who + ": " + errno.Error()
	}
	c.w.attrs.resets.Add(1)
	c.end(reason, true)
}

// schedule sets the timer for what is due next.
func (c *connection) schedule() {
	o := &c.w.relay.o
	due := int64(0)
	sooner := func(t int64) {
		if t > 0 && (due == 0 || t < due) {
			due = t
		}
	}
	if o.IdleTimeout > 0 {
		if c.due > c.w.now && c.due <= c.last+int64(o.IdleTimeout) && !c.w.relay.limited {
			return // looked at then; it need not move with every byte
		}
		sooner(c.last + int64(o.IdleTimeout))
	}
	if o.Lifetime > 0 {
		sooner(c.connected + int64(o.Lifetime))
	}
	sooner(c.out.until)
	sooner(c.in.until)
	c.w.timers.set(c, due)
}

// onTime does what is due.
func (c *connection) onTime() {
	switch c.state {
	case reading:
		c.fail("no PROXY header came", fmt.Errorf("within %v", headerTime))
	case dialling:
		c.dial.onTime()
	case relaying:
		c.relayingOnTime()
	}
}

func (c *connection) relayingOnTime() {
	o, now := &c.w.relay.o, c.w.now
	switch {
	case o.IdleTimeout > 0 && now-c.last >= int64(o.IdleTimeout):
		c.w.attrs.idle.Add(1)
		c.end("idle for "+o.IdleTimeout.String(), true)
	case o.Lifetime > 0 && now-c.connected >= int64(o.Lifetime):
		c.w.attrs.lifetimes.Add(1)
		c.end("lifetime of "+o.Lifetime.String()+" over", true)
	default:
		c.pump()
	}
}

// fail resets a client that can't be served, with a counter and a line in the
// log.
func (c *connection) fail(message string, err error) {
	c.w.attrs.failed.Add(1)
	c.w.relay.warn(message+", connection reset", append([]any{"error", err}, c.logAttrs()...)...)
	c.end(message, true)
}

// end closes everything, by a reset if the connection did not end by itself,
// and starts whoever waits for its place.
func (c *connection) end(reason string, reset bool) {
	w := c.w
	relayed := c.state == relaying
	if c.dial != nil {
		c.dial.stop()
	}
	w.drop(&c.out)
	w.drop(&c.in)
	w.attrs.ended(c)
	if w.relay.o.LogConnections {
		w.relay.logConnection(c, reason)
	}
	if relayed {
		closeEnd(&c.destination, reset)
	}
	c.closeClient(reset)
	c.leave()
}

// reset closes a client that was never begun to be served.
func (c *connection) reset() {
	c.closeClient(true)
	c.leave()
}

func (c *connection) closeClient(reset bool) {
	if c.handedOff {
		c.w.unwatch(c.client.fd)
	}
	closeEnd(&c.client, reset)
}

// leave gives the place of a closed connection to others.
func (c *connection) leave() {
	w := c.w
	wasWaiting := c.state == waiting
	c.state = ended
	w.vacate(c)
	if wasWaiting {
		if w.relay.limits.abandon(c) {
			w.relay.roomOpened()
		}
		return
	}
	next, opened := w.relay.limits.leave(c)
	if next != nil {
		next.w.post(func() {
			if next.state == waiting {
				next.connect()
			}
		})
	}
	if opened {
		w.relay.roomOpened()
	}
}

func closeEnd(e *end, reset bool) {
	if reset && !e.dead {
		resetFD(e.fd)
		return
	}
	closeFD(e.fd)
}

// age returns how long ago it was received.
func (c *connection) age() time.Duration { return time.Duration(c.w.now - c.began) }
