package relay

import (
	"slices"
	"sync"

	"socketbox/internal/peer"
)

// limits count connections for all workers. Who is over a limit waits:
// connections beyond max where they are, in the kernel or with the sender;
// those beyond a source's share here, apart, so that they never stand in the
// way of other sources'.
type limits struct {
	max       int // connections served at once
	perSource int // of them for one source; 0: no limit
	bound     int // waiting for others of their source, at most

	mu      sync.Mutex
	served  int
	waiting int
	sources map[peer.Source]*crowd
}

// crowd is what one source has here.
type crowd struct {
	served  int
	waiting []*connection // oldest first
}

// reserve takes a place for one more connection; false if there is none.
func (l *limits) reserve() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.room() {
		return false
	}
	l.served++
	return true
}

func (l *limits) room() bool { return l.served < l.max && l.waiting < l.bound }

// release gives back a place that reserve has taken and nobody is using. It
// tells whether there is room where there was none.
func (l *limits) release() (opened bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	full := !l.room()
	l.served--
	return full && l.room()
}

// enter counts c, which has a place, among its source's. If the source has its
// share c waits, without a place, and enter returns false: leave returns it
// when its time has come.
func (l *limits) enter(c *connection) (admitted, opened bool) {
	if l.perSource == 0 {
		return true, false
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	from := l.sources[c.facts.Source]
	if from == nil {
		from = &crowd{}
		l.sources[c.facts.Source] = from
	}
	if from.served < l.perSource {
		from.served++
		c.entered = true
		return true, false
	}
	full := !l.room()
	from.waiting = append(from.waiting, c)
	l.served--
	l.waiting++
	return false, full && l.room()
}

// leave gives back the place of c. The next one of its source, if one waits,
// gets it: whoever calls starts it.
func (l *limits) leave(c *connection) (next *connection, opened bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	full := !l.room()
	if !c.entered {
		l.served--
		return nil, full && l.room()
	}
	c.entered = false
	from := l.sources[c.facts.Source]
	if len(from.waiting) > 0 {
		next, from.waiting[0] = from.waiting[0], nil
		from.waiting = from.waiting[1:]
		l.waiting--
		next.entered = true
		return next, full && l.room()
	}
	l.served--
	if from.served--; from.served == 0 {
		delete(l.sources, c.facts.Source)
	}
	return nil, full && l.room()
}

// abandon forgets c, which has waited in vain.
func (l *limits) abandon(c *connection) (opened bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	full := !l.room()
	from := l.sources[c.facts.Source]
	if i := slices.Index(from.waiting, c); i >= 0 {
		from.waiting = slices.Delete(from.waiting, i, i+1)
		l.waiting--
	}
	return full && l.room()
}

// open tells whether there is room.
func (l *limits) open() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.room()
}

// numbers returns how many connections are served and how many wait here.
func (l *limits) numbers() (served, waiting int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.served, l.waiting
}
