package dispatch

import (
	"time"

	"socketbox/internal/fdpass"
)

// gathering is the connections of the listener being served that are about to
// leave together, by one system call, for one sink. They are all of one packet.
type gathering struct {
	on          bool // a listener is being served
	sink        *sink
	packet      *fdpass.Packet
	connections [fdpass.BurstMax]connection
	fds         [fdpass.BurstMax]int32
	n           int
	burst       fdpass.Burst
}

// gather lets c wait for others to s until the listener in hand has been served.
// No more are gathered than may be on hold: s may have room for none of them.
func (w *worker) gather(s *sink, c *connection) {
	g := &w.gathering
	if packet := c.packet(); g.sink != s || g.packet != packet {
		w.sendGathered()
		g.sink, g.packet = s, packet
	}
	g.connections[g.n], g.fds[g.n] = *c, int32(c.fd)
	g.n++
	room := min(w.plan.Table.Targets[c.target].Hold.Connections, w.plan.HoldTotal-w.waiting)
	if g.n >= min(room, len(g.fds)) {
		w.sendGathered()
	}
}

// sendGathered sends what has been gathered, and holds what can't be sent.
func (w *worker) sendGathered() {
	g := &w.gathering
	n, on := g.n, g.on
	g.n, g.on = 0, false
	sent := 0
	if n > 1 && g.sink.takes() {
		sent = g.burst.Send(g.packet, g.sink.fd, g.fds[:n])
	}
	now := time.Since(w.born)
	for i := range sent {
		c := &g.connections[i]
		w.delivered(c, w.tally(c), now)
	}
	if sent > 0 {
		w.mark = now
	}
	for i := sent; i < n; i++ {
		c := &g.connections[i]
		w.sendOrHold(g.sink, c, w.tally(c))
	}
	g.on = on
}
