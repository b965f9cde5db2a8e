package dispatch

import (
	"net/netip"
	"reflect"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"socketbox/internal/privsep"
	"socketbox/internal/rule"
)

func examplePlan() *Plan {
	return &Plan{
		LogLevel: "info", LogFormat: "json", LogConnections: true, HoldTotal: 512,
		Listeners: []ListenerPlan{
			{ID: 1, Name: "web", Port: 443},
			{ID: 7, Name: "v4", Family: privsep.IPv4, Port: 80, Address: netip.MustParseAddr("192.0.2.1")},
			{ID: 9, Name: "local", Family: privsep.Unix},
		},
		Maps: []uint32{12},
		Table: &rule.Table{
			Targets: []rule.Target{{Name: "main", Keys: rule.KeyPort | rule.KeyFamily, Hold: rule.Hold{Connections: 1024, Time: 30 * time.Second}},
				{Name: "shop", Hold: rule.Hold{Connections: 5, Time: time.Second, Busy: time.Minute}}},
			Maps:  []rule.MapInfo{{Name: "tenants", Target: 1}},
			Rules: []rule.Rule{{Listeners: []int{0}, Remote: []netip.Prefix{netip.MustParsePrefix("198.51.100.0/24")}, Reject: true, Line: 4}, {Target: 1, Line: 8}, {Map: 1}},
		},
	}
}

func TestPlanRoundTrip(t *testing.T) {
	p := examplePlan()
	b, err := p.Encode()
	if err != nil {
		t.Fatal(err)
	}
	got, err := DecodePlan(b)
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(got, p) {
		t.Errorf("decoded %+v, want %+v", got, p)
	}
	for n := range b {
		if _, err := DecodePlan(b[:n]); err == nil {
			t.Fatalf("a plan cut after %d of %d bytes passes", n, len(b))
		}
	}
}

func FuzzDecodePlan(f *testing.F) {
	b, err := examplePlan().Encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		p, err := DecodePlan(b)
		if err != nil {
			return
		}
		again, err := p.Encode()
		if err != nil {
			t.Fatal(err)
		}
		if q, err := DecodePlan(again); err != nil || !reflect.DeepEqual(p, q) {
			t.Errorf("%+v, then %+v, %v", p, q, err)
		}
	})
}

func TestCounters(t *testing.T) {
	p := examplePlan()
	fd, err := NewCountersFile(p)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	writer, err := MapCounters(p, fd)
	if err != nil {
		t.Fatal(err)
	}
	reader, err := MapCounters(p, fd)
	if err != nil {
		t.Fatal(err)
	}
	tally := tally{writer.Listener(2), writer.Rule(-1), writer.Target(1)}
	tally.accepted()
	tally.waits(+1)
	if got := reader.Target(1).Snapshot(); got != (Counts{Accepted: 1, Held: 1, Waiting: 1}) {
		t.Errorf("one that waits: %+v", got)
	}
	writer.settle()
	if got := reader.Rule(-1).Snapshot(); got != (Counts{Accepted: 1, Held: 1, Failed: 1}) {
		t.Errorf("after its dispatcher died: %+v", got)
	}
	for i := range 2 {
		if got := reader.Rule(i).Snapshot(); got != (Counts{}) {
			t.Errorf("rule %d, which took nothing: %+v", i, got)
		}
	}
	writer.Unmap()
	reader.Unmap()
	if err := unix.Ftruncate(fd, 8); err == nil {
		t.Error("the file can shrink under a mapping")
	}
	p.Listeners = p.Listeners[:1]
	if _, err := MapCounters(p, fd); err == nil {
		t.Error("counters of another plan are mapped")
	}
}

func TestSoleRule(t *testing.T) {
	prefix := []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}
	for _, test := range []struct {
		name  string
		rules []rule.Rule
		index int
		ok    bool
	}{
		{"no rule", nil, -1, true},
		{"one for everything", []rule.Rule{{Target: 1}}, 0, true},
		{"one for another listener", []rule.Rule{{Listeners: []int{5}, Target: 1}}, -1, true},
		{"another's, then everything", []rule.Rule{{Listeners: []int{5}}, {Target: 1}}, 1, true},
		{"a condition first", []rule.Rule{{Remote: prefix}, {Target: 1}}, 0, false},
		{"a condition that comes too late", []rule.Rule{{Target: 1}, {Remote: prefix}}, 0, true},
		{"reject", []rule.Rule{{Reject: true}}, 0, false},
	} {
		index, ok := soleRule(&rule.Table{Rules: test.rules}, 3)
		if ok != test.ok || ok && index != test.index {
			t.Errorf("%s: %d, %v", test.name, index, ok)
		}
	}
}

func TestQueue(t *testing.T) {
	var q queue
	a, b := &route{id: 1}, &route{id: 2}
	for i := range 200 {
		r := a
		if i%2 == 1 {
			r = b
		}
		q.push(connection{fd: i, route: r})
	}
	for i := range 100 {
		if got := q.front().fd; got != i {
			t.Fatalf("front is %d, not %d", got, i)
		}
		q.pop()
	}
	taken := q.take(b)
	if len(taken) != 50 || q.len() != 50 || taken[0].fd != 101 || q.front().fd != 100 {
		t.Errorf("took %d from %d, left %d from %d", len(taken), taken[0].fd, q.len(), q.front().fd)
	}
	if rest := q.take(nil); len(rest) != 50 || q.len() != 0 {
		t.Errorf("took the rest: %d, left %d", len(rest), q.len())
	}
}
