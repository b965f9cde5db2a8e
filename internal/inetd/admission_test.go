package inetd

import (
	"net/netip"
	"testing"
	"time"

	"socketbox/internal/peer"
)

func from(address string) *connection {
	c := &connection{fd: -1, Facts: peer.Facts{Network: peer.TCP}}
	c.Remote = netip.AddrPortFrom(netip.MustParseAddr(address), 1)
	c.Source.Addr = c.Remote.Addr()
	return c
}

// startAll starts what may be started and returns it.
func startAll(a *admission, now time.Time) (started []*connection) {
	for {
		if d, full := a.delay(now); full || d > 0 {
			return started
		}
		c := a.next()
		if c == nil {
			return started
		}
		started = append(started, c)
	}
}

func TestMaxIsNeverExceeded(t *testing.T) {
	now := time.Now()
	a := newAdmission(2, 0, 100, Rate{}, now)
	var conns []*connection
	for range 5 {
		c := from("192.0.2.1")
		conns = append(conns, c)
		a.add(c)
	}
	first := startAll(a, now)
	if len(first) != 2 || first[0] != conns[0] || first[1] != conns[1] {
		t.Fatalf("%d started", len(first))
	}
	if a.mayReceive() {
		t.Error("receives while connections are ready that it can't start")
	}
	a.ended(first[0])
	if second := startAll(a, now); len(second) != 1 || second[0] != conns[2] {
		t.Errorf("%d started after one has ended", len(second))
	}
}

func TestSourceOverItsLimitBlocksNobody(t *testing.T) {
	now := time.Now()
	a := newAdmission(10, 2, 100, Rate{}, now)
	var loud []*connection
	for range 5 {
		c := from("192.0.2.1")
		loud = append(loud, c)
		a.add(c)
	}
	quiet := from("192.0.2.2")
	a.add(quiet)
	started := startAll(a, now)
	if len(started) != 3 || started[2] != quiet || a.held() != 3 || !a.mayReceive() {
		t.Fatalf("%d started, %d held", len(started), a.held())
	}
	if a.number(loud[0]) != 2 || a.number(quiet) != 1 {
		t.Errorf("numbers %d and %d", a.number(loud[0]), a.number(quiet))
	}
	for i := 2; i < 5; i++ {
		a.ended(loud[i-2])
		if next := startAll(a, now); len(next) != 1 || next[0] != loud[i] {
			t.Fatalf("after an end %d started, or in the wrong order", len(next))
		}
	}
	a.ended(loud[3])
	a.ended(loud[4])
	a.ended(quiet)
	if a.running != 0 || a.held() != 0 || len(a.sources) != 0 {
		t.Errorf("left: %d running, %d held, %d sources", a.running, a.held(), len(a.sources))
	}
}

func TestHoldIsBounded(t *testing.T) {
	a := newAdmission(10, 1, 3, Rate{}, time.Now())
	n := 0
	for ; a.mayReceive() && n < 100; n++ {
		a.add(from("192.0.2.1"))
		startAll(a, time.Now())
	}
	if n != 4 { // one runs, three wait
		t.Errorf("took %d", n)
	}
}

func TestRateHoldsAndFailureGivesBack(t *testing.T) {
	now := time.Now()
	a := newAdmission(10, 0, 100, Rate{1, time.Second}, now)
	a.add(from("192.0.2.1"))
	a.add(from("192.0.2.1"))
	started := startAll(a, now)
	if len(started) != 1 {
		t.Fatalf("%d started", len(started))
	}
	a.again(started[0], now.Add(50*time.Millisecond))
	if d, full := a.delay(now); full || d != 50*time.Millisecond {
		t.Errorf("delay %v, full %v", d, full)
	}
	if again := startAll(a, now.Add(60*time.Millisecond)); len(again) != 1 || again[0] != started[0] {
		t.Errorf("the failed one is not the next")
	}
	if d, _ := a.delay(now.Add(100 * time.Millisecond)); d <= 900*time.Millisecond || d > time.Second {
		t.Errorf("delay %v", d)
	}
}

func TestDropHeld(t *testing.T) {
	now := time.Now()
	a := newAdmission(1, 1, 100, Rate{}, now)
	for _, address := range []string{"192.0.2.1", "192.0.2.1", "192.0.2.2", "192.0.2.3"} {
		a.add(from(address))
	}
	started := startAll(a, now)
	if dropped := a.dropHeld(); len(dropped) != 3 || a.held() != 0 {
		t.Errorf("%d dropped, %d held", len(dropped), a.held())
	}
	a.ended(started[0])
	if len(startAll(a, now)) != 0 {
		t.Error("something started that was dropped")
	}
}

func TestQueueKeepsOrder(t *testing.T) {
	var q queue[int]
	next, last := 0, 0
	for round := range 50 {
		for range round {
			q.push(last)
			last++
		}
		for range round / 2 {
			got, ok := q.pop()
			if !ok || got != next {
				t.Fatalf("got %d, %v; want %d", got, ok, next)
			}
			next++
		}
	}
	q.pushFront(-1)
	if got, _ := q.pop(); got != -1 {
		t.Errorf("got %d from the front", got)
	}
	if q.len() != last-next || len(q.all()) != q.len() {
		t.Errorf("length %d, want %d", q.len(), last-next)
	}
	for q.len() > 0 {
		q.pop()
	}
	q.pushFront(5)
	if got, ok := q.first(); got != 5 || !ok {
		t.Errorf("first is %d, %v", got, ok)
	}
}
