package relay

import (
	"sync/atomic"
	"time"

	"socketbox/internal/peer"
)

// counters count since the start. Each worker has its own, which others read.
type counters struct {
	received    atomic.Uint64 // connections
	bad         atomic.Uint64 // datagrams that were none
	gone        atomic.Uint64 // clients that went before they were served
	connected   atomic.Uint64
	unreachable atomic.Uint64 // no destination took it: reset; also in failed
	failed      atomic.Uint64 // reset for a reason of ours
	closed      atomic.Uint64 // ended by both ends
	resets      atomic.Uint64 // ended by a reset of one end, passed on
	idle        atomic.Uint64
	lifetimes   atomic.Uint64
	drained     atomic.Uint64 // ended because the relay ended
	shortages   atomic.Uint64 // times that the kernel had to be asked again
	out, in     atomic.Uint64 // bytes of connections that have ended
}

// ended adds what c has moved.
func (n *counters) ended(c *connection) {
	n.out.Add(c.out.moved)
	n.in.Add(c.in.moved)
	if c.out.shut && c.in.shut {
		n.closed.Add(1)
	}
}

// sum returns the counters of all workers as the log shows them.
func (r *relay) sum() []any {
	var args []any
	for _, field := range []struct {
		name string
		of   func(*counters) *atomic.Uint64
	}{
		{"received", func(n *counters) *atomic.Uint64 { return &n.received }},
		{"connected", func(n *counters) *atomic.Uint64 { return &n.connected }},
		{"closed", func(n *counters) *atomic.Uint64 { return &n.closed }},
		{"resets", func(n *counters) *atomic.Uint64 { return &n.resets }},
		{"idle", func(n *counters) *atomic.Uint64 { return &n.idle }},
		{"lifetimes", func(n *counters) *atomic.Uint64 { return &n.lifetimes }},
		{"unreachable", func(n *counters) *atomic.Uint64 { return &n.unreachable }},
		{"failed", func(n *counters) *atomic.Uint64 { return &n.failed }},
		{"gone", func(n *counters) *atomic.Uint64 { return &n.gone }},
		{"drained", func(n *counters) *atomic.Uint64 { return &n.drained }},
		{"bad", func(n *counters) *atomic.Uint64 { return &n.bad }},
		{"shortages", func(n *counters) *atomic.Uint64 { return &n.shortages }},
		{"bytes-out", func(n *counters) *atomic.Uint64 { return &n.out }},
		{"bytes-in", func(n *counters) *atomic.Uint64 { return &n.in }},
	} {
		total := uint64(0)
		for _, w := range r.workers {
			total += field.of(&w.attrs).Load()
		}
		args = append(args, field.name, total)
	}
	return args
}

// dump writes the state to the log.
func (r *relay) dump() {
	served, waiting := r.limits.numbers()
	args := []any{"open", served, "waiting", waiting, "max", r.limits.max, "threads", len(r.workers), "stopping", r.stopping}
	r.log.Info("state", append(args, r.sum()...)...)
	for _, s := range r.sources {
		if s.receiver != nil {
			r.log.Info("receives", "socket", s.receiver.Path())
		} else {
			r.log.Info("listens", "listener", s.name)
		}
	}
}

// warn logs what others can make happen often: at most a line a second for
// each message, with the number of those left out.
func (r *relay) warn(message string, args ...any) {
	if left, ok := r.limiter.Allow(message, time.Now()); ok {
		if left > 0 {
			args = append(args, "suppressed", left)
		}
		r.log.Warn(message, args...)
	}
}

// logAttrs names the connection in a line of the log.
func (c *connection) logAttrs() []any {
	if c.facts.Network == "" {
		facts, err := peer.Of(c.client.fd)
		if err != nil {
			return []any{"client", "gone"}
		}
		c.facts = facts
	}
	args := c.facts.LogAttrs(c.listener)
	if c.header != nil {
		args = append(args, "via", c.header.via)
	}
	if c.id != "" {
		args = append(args, "id", c.id)
	}
	return args
}

// logConnection writes the one line of a connection that has ended.
func (r *relay) logConnection(c *connection, reason string) {
	args := c.logAttrs()
	if c.target != "" {
		args = append(args, "to", c.target, "connect", time.Duration(c.connected-c.began))
	}
	r.log.Info("connection", append(args, "sent", c.out.moved, "received", c.in.moved, "duration", c.age(), "end", reason)...)
}
