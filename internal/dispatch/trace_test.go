package dispatch

import (
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"socketbox/internal/rule"
)

// mappedCounters are counters of a plan with one listener and two targets.
func mappedCounters(t *testing.T) *Counters {
	t.Helper()
	plan := &Plan{
		Listeners: []ListenerPlan{{ID: 7, Name: "web"}},
		Table:     &rule.Table{Targets: []rule.Target{{Name: "main"}, {Name: "shop"}}, Rules: []rule.Rule{{Target: 1}}},
	}
	fd, err := NewCountersFile(plan)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	c, err := MapCounters(plan, fd)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Unmap)
	return c
}

// What is not read in time is lost, and counted.
func TestTraceLosesAndCounts(t *testing.T) {
	w := &worker{counters: mappedCounters(t)}
	c := connection{
		l: newListener(ListenerPlan{ID: 7}, -1, 0), rule: 0, target: 1, port: 4321,
		facts: rule.Conn{Remote: netip.MustParseAddr("192.0.2.1"), Local: netip.MustParseAddr("2001:db8::1"), Port: 80},
	}
	w.decide(&c, Delivered, 0, 0)
	if n := w.counters.Latest(); n != 0 {
		t.Fatalf("%d decisions while nobody watches", n)
	}
	w.counters.Trace(true)
	w.decide(&c, Failed, CauseBusy, unix.EAGAIN)
	found, latest, lost := w.counters.Decisions(0)
	if len(found) != 1 || latest != 1 || lost != 0 {
		t.Fatalf("%d found, latest %d, %d lost", len(found), latest, lost)
	}
	d := found[0]
	if d.Listener != 7 || d.Target != 1 || d.Outcome != Failed || d.Cause != CauseBusy || unix.Errno(d.Errno) != unix.EAGAIN ||
		d.Remote() != c.facts.Remote || d.Local() != c.facts.Local || d.RemotePort != 4321 || d.LocalPort != 80 {
		t.Errorf("%+v", d)
	}
	const more = traceRoom + 100
	for range more {
		w.decide(&c, Delivered, 0, 0)
	}
	found, latest, lost = w.counters.Decisions(latest)
	if len(found) != traceRoom || lost != 100 || latest != 1+more {
		t.Errorf("%d found, latest %d, %d lost", len(found), latest, lost)
	}
}

// A dispatcher in hostile hands can write anything into the ring.
func TestTraceBelievesNothing(t *testing.T) {
	c := mappedCounters(t)
	for _, next := range []uint64{0, 5, traceRoom + 1, 1 << 63, ^uint64(0)} {
		c.trace.next = next
		if found, _, _ := c.Decisions(3); len(found) > traceRoom {
			t.Errorf("next %d: %d decisions", next, len(found))
		}
	}
	d := Decision{Outcome: 200, Cause: 200}
	if d.Cause.Name() != "unknown" || d.Cause.String() != "unknown" {
		t.Errorf("cause 200 is %q, %q", d.Cause.Name(), d.Cause)
	}
}

// Each duration is in the first bucket whose bound it does not exceed.
func TestHistogram(t *testing.T) {
	var h Histogram
	for _, d := range []time.Duration{-1, 0, Bounds[0], Bounds[0] + 1, time.Minute, time.Hour} {
		h.observe(d)
	}
	last := len(Bounds)
	if h.Buckets[0] != 3 || h.Buckets[1] != 1 || h.Buckets[last-1] != 1 || h.Buckets[last] != 1 {
		t.Errorf("%v", h.Buckets)
	}
	if sum := time.Duration(h.Sum); sum != 2*Bounds[0]+1+time.Minute+time.Hour {
		t.Errorf("sum %v", sum)
	}
}

// The parts of the file do not overlap, and what waited when a dispatcher died
// has a cause.
func TestCountersFile(t *testing.T) {
	c := mappedCounters(t)
	c.Listener(0).Accepted, c.Rule(-1).Accepted, c.Rule(0).Accepted = 1, 2, 3
	c.Target(0).Accepted, c.Target(1).Accepted = 4, 5
	c.Target(1).Waiting = 9
	c.Causes(1)[CauseBusy] = 6
	c.HandOff(0).Sum, c.Hold(0).Sum, c.Hold(1).Sum = 10, 11, 12
	c.settle()
	if c.Target(1).Failed != 9 || c.Causes(1).Snapshot()["dispatcher_died"] != 9 || c.Causes(1).Snapshot()["busy"] != 6 || c.Causes(0).Snapshot() != nil {
		t.Errorf("%+v, %v, %v", c.Target(1), c.Causes(0).Snapshot(), c.Causes(1).Snapshot())
	}
	if c.Listener(0).Accepted != 1 || c.Rule(-1).Accepted != 2 || c.Rule(0).Accepted != 3 || c.Target(0).Accepted != 4 || c.Target(1).Accepted != 5 ||
		c.HandOff(0).Snapshot().Sum != 10 || c.Hold(0).Snapshot().Sum != 11 || c.Hold(1).Snapshot().Sum != 12 {
		t.Errorf("parts overlap")
	}
}
