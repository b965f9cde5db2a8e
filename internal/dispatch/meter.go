package dispatch

import (
	"container/heap"
	"hash/maphash"
	"net/netip"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"socketbox/internal/privsep"
	"socketbox/internal/rule"
)

// meter is the limit of rate of one listener or rule: a token bucket for all, and
// one for each source in each tier. What is over it waits until there is a token
// again, so that it recovers by itself and never latches. Where every connection of a
// listener counts, the listener itself pauses and the kernel's backlog waits.
type meter struct {
	rule.Limit
	all     bucket
	sources [rule.Tiers]*buckets
	waiting int
}

// bucket is a token bucket by the time, since the worker was born, at which it
// will be full again (the generic cell rate algorithm, ITU-T I.371 annex A). It
// holds as many tokens as the rate's Count.
type bucket time.Duration

// due returns when there is a token.
func (b bucket) due(r rule.Rate) time.Duration {
	return time.Duration(b) - r.Per + r.Per/time.Duration(r.Count)
}

// take takes one, also one that is not there yet.
func (b *bucket) take(now time.Duration, r rule.Rate) {
	*b = max(*b, bucket(now)) + bucket(r.Per/time.Duration(r.Count))
}

// buckets are those of many sources, in memory that does not grow whoever comes: a
// cache of four ways. A source that finds no room takes the place of the one whose
// bucket is the fullest of its four, who has the least to lose: it may come again as if it
// had never been there. The names are hashes with a secret seed, so that nobody can
// choose whose place he takes.
type buckets struct {
	seed maphash.Seed
	sets []set
}

type set [4]struct {
	name uint64
	bucket
}

// sourceSets times four sources times 16 bytes are 1 MiB, of which pages
// that are never touched take nothing.
const sourceSets = 1 << 14

func newBuckets() *buckets {
	return &buckets{seed: maphash.MakeSeed(), sets: make([]set, sourceSets)}
}

func (b *buckets) of(source netip.Addr) *bucket {
	name := source.As16()
	h := maphash.Bytes(b.seed, name[:])
	s := &b.sets[h%sourceSets]
	fullest := 0
	for i := range s {
		if s[i].name == h {
			return &s[i].bucket
		}
		if s[i].bucket < s[fullest].bucket {
			fullest = i
		}
	}
	s[fullest].name, s[fullest].bucket = h, 0
	return &s[fullest].bucket
}

// newMeter returns nil for no limit.
func newMeter(l rule.Limit) *meter {
	if l.IsZero() {
		return nil
	}
	m := &meter{Limit: l}
	for tier, r := range l.PerSource {
		if r.Count > 0 {
			m.sources[tier] = newBuckets()
		}
	}
	return m
}

// paces says whether the listener pauses, rather than each connection waits.
func (m *meter) paces() bool { return m != nil && m.Rate.Count > 0 && !m.Reject }

// newMeters makes the meters of a table, by index of their rule.
func newMeters(t *rule.Table) map[int]*meter {
	var all map[int]*meter
	for i := range t.Rules {
		if m := newMeter(t.Rules[i].Limit); m != nil {
			if all == nil {
				all = map[int]*meter{}
			}
			all[i] = m
		}
	}
	return all
}

// pacers are the meters that count every connection of l, whatever it is.
func (w *worker) pacers(l *listener) []*meter {
	var all []*meter
	for _, m := range []*meter{l.meter, w.meters[l.sole]} {
		if m.paces() {
			all = append(all, m)
		}
	}
	return all
}

// mayAccept says whether the pacers of l have a token for its next connection.
// Else l pauses until they do.
func (w *worker) mayAccept(l *listener) bool {
	now := w.clock()
	at := now
	for _, m := range l.paced {
		at = max(at, m.all.due(m.Rate))
	}
	if at > now {
		w.pause(l)
		w.await(&later{at: at, listener: l})
		return false
	}
	return true
}

// pace counts a connection of l that has been accepted.
func (w *worker) pace(l *listener) {
	if l.paced == nil || w.retiring {
		return
	}
	now := w.clock()
	for _, m := range l.paced {
		m.all.take(now, m.Rate)
	}
}

// meter lets c pass, or keeps it until the rates of its listener and of its rule
// allow it. It returns false if c waits, or is gone.
func (w *worker) meter(c *connection) bool {
	if w.draining {
		return true
	}
	for ; c.passed < passedAll; c.passed++ {
		m := c.l.meter
		if c.passed >= passedListener {
			m = w.meters[c.rule]
		}
		if m == nil {
			continue
		}
		now := w.clock()
		at, patience := now, w.patience(c, m)
		if c.passed%2 == 0 {
			at = m.source(c, now, patience)
		} else if !slices.Contains(c.l.paced, m) {
			at = m.total(now, patience)
		}
		switch {
		case at == never && m.Reject:
			w.complain("connection rejected: rate reached", c.l.Name, unix.EUSERS)
			w.reject(c)
		case at == never:
			w.turnDown(c, m)
		case at > now:
			w.slowDown(c, m, at)
		default:
			continue
		}
		return false
	}
	return true
}

// The steps that a connection passes, sources before all, so that who is slowed
// down as a source takes nothing from the others while it waits.
const (
	passedListener = 2
	passedAll      = 4
)

// never is when a connection may pass that must not wait for it.
const never = time.Duration(1<<63 - 1)

// patience is how long c may wait at m.
func (w *worker) patience(c *connection, m *meter) time.Duration {
	hold := w.plan.Table.Targets[c.target].Hold
	switch {
	case m.Reject, w.waiting >= w.plan.HoldTotal, m.waiting >= hold.Connections:
		return 0
	case hold.Busy > 0:
		return hold.Busy
	}
	return 1 << 61 // for ever
}

// source takes a token of each tier of c's source, and returns when the last of
// them is there; never, and takes none, if that is too late.
func (m *meter) source(c *connection, now, patience time.Duration) (at time.Duration) {
	if c.family == privsep.Unix || !m.HasSources() {
		return now
	}
	at = now
	var found [rule.Tiers]*bucket
	for tier, r := range m.PerSource {
		name, ok := rule.SourceTier(c.facts.Remote, tier)
		if r.Count == 0 || !ok {
			continue
		}
		found[tier] = m.sources[tier].of(name)
		due := found[tier].due(r)
		if due > now+min(patience, r.Per) { // of one source no more wait than pass in the rate's time
			return never
		}
		at = max(at, due)
	}
	if m.Reject && m.Rate.Count > 0 && m.all.due(m.Rate) > now {
		return never
	}
	for tier, b := range found {
		if b != nil {
			b.take(now, m.PerSource[tier])
		}
	}
	return at
}

// total takes a token for all, likewise.
func (m *meter) total(now, patience time.Duration) (at time.Duration) {
	if m.Rate.Count == 0 {
		return now
	}
	if at = max(now, m.all.due(m.Rate)); at > now+patience {
		return never
	}
	m.all.take(now, m.Rate)
	return at
}

// turnDown resets c, which is over the limit of m and finds no room to wait.
func (w *worker) turnDown(c *connection, m *meter) {
	if c.since.IsZero() {
		w.tally(c).accepted()
	}
	cause := CauseRate
	switch {
	case w.waiting >= w.plan.HoldTotal:
		cause = CauseHoldTotal
	case m.waiting >= w.plan.Table.Targets[c.target].Hold.Connections:
		cause = CauseHoldConnections
	}
	w.fail(c, cause, unix.EUSERS)
}

// slowDown has c wait until at.
func (w *worker) slowDown(c *connection, m *meter, at time.Duration) {
	t := w.tally(c)
	if c.since.IsZero() {
		t.accepted()
		c.since = time.Now()
	}
	w.waiting++
	m.waiting++
	t.waits(+1)
	w.decide(c, Held, 0, unix.EUSERS)
	c.route = nil
	c.passed++
	w.await(&later{at: at, c: *c, meter: m})
}

// later is something that the worker does at a time: serve a listener again, or
// send a connection on its way.
type later struct {
	at       time.Duration // since the worker was born
	listener *listener
	c        connection // where listener is nil
	meter    *meter
}

// laters is a heap, the earliest first.
type laters []*later

func (l laters) Len() int           { return len(l) }
func (l laters) Less(i, j int) bool { return l[i].at < l[j].at }
func (l laters) Swap(i, j int)      { l[i], l[j] = l[j], l[i] }
func (l *laters) Push(x any)        { *l = append(*l, x.(*later)) }

func (l *laters) Pop() any {
	last := len(*l) - 1
	x := (*l)[last]
	(*l)[last] = nil
	*l = (*l)[:last]
	return x
}

func (w *worker) clock() time.Duration       { return time.Since(w.born) }
func (w *worker) await(l *later)             { heap.Push(&w.laters, l) }
func (w *worker) until(at time.Duration) int { return int((at-w.clock())/time.Millisecond) + 1 }

// catchUp does what is due; while the dispatcher drains, everything is.
func (w *worker) catchUp() {
	for now := w.clock(); len(w.laters) > 0 && (w.laters[0].at <= now || w.draining); {
		l := heap.Pop(&w.laters).(*later)
		if l.listener != nil {
			w.resume(l.listener)
			continue
		}
		l.meter.waiting--
		w.onward(&l.c)
	}
}

// onward sends a connection that has waited for a rate on its way.
func (w *worker) onward(c *connection) {
	t := w.leave(c)
	before := w.waiting
	if w.meter(c) && w.limit(c) && w.findRoute(c) {
		w.place(*c, t)
	}
	if w.waiting > before { // it waits again: counted once
		w.tally(c).heldAgain()
	}
}

// takeLater empties the waiting rooms for a new table, and lets go of listeners.
func (w *worker) takeLater() []connection {
	var all []connection
	for _, l := range w.laters {
		if l.listener != nil {
			w.resume(l.listener)
			continue
		}
		l.c.passed = 0
		all = append(all, l.c)
	}
	w.laters = nil
	return all
}
