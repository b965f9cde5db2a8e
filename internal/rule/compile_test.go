package rule

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"testing"
)

func prefixes(texts ...string) []netip.Prefix {
	var out []netip.Prefix
	for _, t := range texts {
		out = append(out, netip.MustParsePrefix(t))
	}
	return out
}

func conn(listener int, port uint16, local, remote string) Conn {
	c := Conn{Listener: listener, Port: port}
	if local != "" {
		c.Local = netip.MustParseAddr(local)
	}
	if remote != "" {
		c.Remote = netip.MustParseAddr(remote)
	}
	return c
}

func table(targets int, rules ...Rule) *Table {
	t := &Table{Rules: rules}
	for i := range targets {
		t.Targets = append(t.Targets, Target{Name: fmt.Sprint("t", i)})
	}
	return t
}

func TestLookup(t *testing.T) {
	c := table(9,
		Rule{Listeners: []int{1}, Ports: []PortRange{{22, 22}}, Target: 1},                                     // 0
		Rule{Remote: prefixes("198.51.100.0/24", "2001:db8:1::/48"), Reject: true},                             // 1
		Rule{Local: prefixes("192.0.2.1/32"), Ports: []PortRange{{80, 80}, {8000, 8099}}, Target: 2},           // 2
		Rule{Listeners: []int{0, 2}, Remote: prefixes("0.0.0.0/0"), Target: 3},                                 // 3
		Rule{Local: prefixes("2001:db8::/64"), Remote: prefixes("2001:db8::/32"), Target: 4},                   // 4
		Rule{Listeners: []int{3}, Target: 5},                                                                   // 5
		Rule{Listeners: []int{3}, Ports: []PortRange{{443, 443}}, Target: 6},                                   // 6: behind 5
		Rule{Ports: []PortRange{{65535, 65535}, {1, 2}}, Target: 7},                                            // 7
		Rule{Remote: prefixes("10.0.0.0/8", "10.1.0.0/16", "11.0.0.0/8", "12.0.0.0/8", "fd00::/8"), Target: 8}, // 8
	).Compile()
	const none = -1
	for _, tc := range []struct {
		conn Conn
		want int
	}{
		{conn(1, 22, "192.0.2.1", "203.0.113.1"), 0},
		{conn(0, 22, "192.0.2.1", "203.0.113.1"), 3},
		{conn(1, 23, "192.0.2.1", "203.0.113.1"), none},
		{conn(1, 80, "192.0.2.1", "198.51.100.255"), 1},
		{conn(1, 80, "192.0.2.1", "198.51.101.0"), 2},
		{conn(1, 22, "192.0.2.1", "198.51.100.255"), 0},
		{conn(1, 80, "2001:db8::1", "2001:db8:1:ffff::1"), 1},
		{conn(1, 8000, "192.0.2.1", "203.0.113.1"), 2},
		{conn(1, 8099, "192.0.2.1", "203.0.113.1"), 2},
		{conn(1, 8100, "192.0.2.1", "203.0.113.1"), none},
		{conn(1, 7999, "192.0.2.1", "203.0.113.1"), none},
		{conn(1, 8000, "192.0.2.2", "203.0.113.1"), none},
		{conn(2, 1, "2001:db8::1", "2001:db9::1"), 7},
		{conn(2, 3, "2001:db8::1", "2001:db9::1"), none},
		{conn(2, 3, "2001:db8::1", "2001:db8::2"), 4},
		{conn(2, 3, "2001:db8:0:1::1", "2001:db8::2"), none},
		{conn(3, 443, "2001:db8:0:1::1", "2001:db8::2"), 5},
		{conn(3, 0, "", ""), 5},
		{conn(2, 0, "", ""), none}, // a Unix connection has no address for 0.0.0.0/0
		{conn(4, 65535, "192.0.2.9", "203.0.113.1"), 7},
		{conn(4, 65534, "192.0.2.9", "10.1.2.3"), 8},
		{conn(4, 65534, "192.0.2.9", "13.1.2.3"), none},
		{conn(4, 65534, "fd00::1", "fd00::2"), 8},
		{conn(99, 9, "192.0.2.9", "203.0.113.1"), none},
		{conn(-1, 9, "192.0.2.9", "203.0.113.1"), none},
	} {
		got, ok := c.Lookup(&tc.conn)
		if !ok {
			got = none
		}
		if got != tc.want {
			t.Errorf("%+v: rule %d, want %d", tc.conn, got, tc.want)
		}
	}
}

func TestLookupEmpty(t *testing.T) {
	c := table(1).Compile()
	any := conn(0, 80, "192.0.2.1", "192.0.2.2")
	if i, ok := c.Lookup(&any); ok {
		t.Errorf("rule %d of an empty table", i)
	}
}

// TestCompileShares: a table that its owner goes on to change does not change
// what was compiled.
func TestCompileShares(t *testing.T) {
	r := Rule{Remote: prefixes("10.0.0.0/8"), Ports: []PortRange{{80, 80}}, Listeners: []int{0}}
	c := table(1, r).Compile()
	r.Remote[0], r.Ports[0], r.Listeners[0] = prefixes("11.0.0.0/8")[0], PortRange{81, 81}, 1
	any := conn(0, 80, "192.0.2.1", "10.0.0.1")
	if _, ok := c.Lookup(&any); !ok {
		t.Error("the compiled table has changed")
	}
}

// firstFit is the definition of a look-up: the rules in file order.
func firstFit(t *Table, c Conn) (int, bool) {
	for i, r := range t.Rules {
		if fitsListener(r.Listeners, c.Listener) && fitsPort(r.Ports, c.Port) &&
			fitsAddr(r.Local, c.Local) && fitsAddr(r.Remote, c.Remote) {
			return i, true
		}
	}
	return 0, false
}

func fitsListener(ls []int, l int) bool {
	for _, x := range ls {
		if x == l {
			return true
		}
	}
	return len(ls) == 0
}

func fitsPort(rs []PortRange, p uint16) bool {
	for _, r := range rs {
		if r.First <= p && p <= r.Last {
			return true
		}
	}
	return len(rs) == 0
}

func fitsAddr(ps []netip.Prefix, a netip.Addr) bool {
	for _, p := range ps {
		if p.Contains(a) {
			return true
		}
	}
	return len(ps) == 0
}

// randomTable draws keys from few values, so that rules overlap.
func randomTable(r *rand.Rand, rules int) *Table {
	t := table(3)
	for range rules {
		var x Rule
		for range r.IntN(3) {
			x.Listeners = append(x.Listeners, r.IntN(4))
		}
		for range r.IntN(3) {
			x.Local = append(x.Local, randomPrefix(r))
		}
		for range r.IntN(3) * r.IntN(4) {
			x.Remote = append(x.Remote, randomPrefix(r))
		}
		for range r.IntN(3) {
			first := uint16(1 + r.IntN(300))
			x.Ports = append(x.Ports, PortRange{first, first + uint16(r.IntN(2)*r.IntN(300))})
		}
		if x.Reject = r.IntN(8) == 0; !x.Reject {
			x.Target = r.IntN(3)
		}
		t.Rules = append(t.Rules, x)
	}
	return t
}

func randomPrefix(r *rand.Rand) netip.Prefix {
	a := randomAddr(r)
	p, err := a.Prefix(r.IntN(a.BitLen() + 1))
	if err != nil {
		panic(err)
	}
	return p
}

// randomAddr returns one of 2×256 addresses that differ in their first bits
// and in their last ones.
func randomAddr(r *rand.Rand) netip.Addr {
	if r.IntN(2) == 0 {
		return netip.AddrFrom4([4]byte{byte(r.IntN(4)) << 6, 0, 0, byte(r.IntN(64))})
	}
	return netip.AddrFrom16([16]byte{0: byte(r.IntN(4))<<6 | 1, 15: byte(r.IntN(64))})
}

func randomConn(r *rand.Rand) Conn {
	if r.IntN(20) == 0 {
		return Conn{Listener: r.IntN(6)}
	}
	return Conn{Listener: r.IntN(6), Port: uint16(1 + r.IntN(700)), Local: randomAddr(r), Remote: randomAddr(r)}
}

// TestLookupAgainstDefinition compares the index with the definition on tables
// small enough for none of it and large enough for all of it.
func TestLookupAgainstDefinition(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for _, size := range []int{0, 1, 5, 9, 30, 200} {
		for range 60 {
			table := randomTable(r, size)
			if err := table.Check(); err != nil {
				t.Fatal(err)
			}
			c := table.Compile()
			for range 200 {
				conn := randomConn(r)
				want, wantOK := firstFit(table, conn)
				got, ok := c.Lookup(&conn)
				if ok != wantOK || ok && got != want {
					t.Fatalf("%d rules, %+v: rule %d %v, want %d %v", size, conn, got, ok, want, wantOK)
				}
			}
		}
	}
}

func TestNeedsLocalAndSingle(t *testing.T) {
	local := prefixes("192.0.2.0/24")
	remote := prefixes("198.51.100.0/24")
	port := []PortRange{{80, 80}}
	for name, tc := range map[string]struct {
		rules  []Rule
		needs  bool
		target int
		single bool
	}{
		"no rule":                    {nil, false, 0, true},
		"other listener's rule":      {[]Rule{{Listeners: []int{1}, Local: local, Target: 1}}, false, 0, true},
		"catch-all":                  {[]Rule{{Target: 2}}, false, 2, true},
		"catch-all of the listener":  {[]Rule{{Listeners: []int{0}, Target: 2}}, false, 2, true},
		"local":                      {[]Rule{{Local: local, Target: 1}}, true, 0, false},
		"local, then the same":       {[]Rule{{Local: local, Target: 1}, {Target: 1}}, true, 1, true},
		"local to main":              {[]Rule{{Local: local, Target: 0}}, true, 0, true},
		"local behind a catch-all":   {[]Rule{{Target: 1}, {Local: local, Target: 2}}, false, 1, true},
		"local behind remote":        {[]Rule{{Remote: remote, Target: 1}, {Local: local, Target: 1}, {Target: 1}}, true, 1, true},
		"reject":                     {[]Rule{{Remote: remote, Reject: true}, {Target: 1}}, false, 0, false},
		"reject all":                 {[]Rule{{Reject: true}}, false, 0, false},
		"reject behind a catch-all":  {[]Rule{{Target: 1}, {Reject: true}}, false, 1, true},
		"reject last":                {[]Rule{{Ports: port}, {Reject: true}}, false, 0, false},
		"two targets":                {[]Rule{{Ports: port, Target: 1}, {Target: 2}}, false, 0, false},
		"main, then another":         {[]Rule{{Ports: port, Target: 0}, {Target: 2}}, false, 0, false},
		"one, then the main by rest": {[]Rule{{Ports: port, Target: 1}}, false, 0, false},
		"order over both lists":      {[]Rule{{Target: 1}, {Listeners: []int{0}, Target: 2}}, false, 1, true},
		"order the other way":        {[]Rule{{Listeners: []int{0}, Target: 2}, {Target: 1}}, false, 2, true},
	} {
		c := table(3, tc.rules...).Compile()
		if got := c.NeedsLocal(0); got != tc.needs {
			t.Errorf("%s: NeedsLocal %v, want %v", name, got, tc.needs)
		}
		target, ok := c.Single(0)
		if ok != tc.single || target != tc.target {
			t.Errorf("%s: Single %d %v, want %d %v", name, target, ok, tc.target, tc.single)
		}
	}
}

// TestSingleAgainstLookup: where Single names a target, every look-up does.
func TestSingleAgainstLookup(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	for range 2000 {
		table := randomTable(r, 1+r.IntN(3))
		c := table.Compile()
		for listener := range 4 {
			want, ok := c.Single(listener)
			for range 20 {
				conn := randomConn(r)
				conn.Listener = listener
				i, found := c.Lookup(&conn)
				got := 0
				if found {
					got = table.Rules[i].Target
				}
				if ok && (got != want || found && table.Rules[i].Reject) {
					t.Fatalf("Single(%d) = %d, but %+v goes to rule %d of %+v", listener, want, conn, i, table.Rules)
				}
			}
		}
	}
}

func TestLookupDoesNotAllocate(t *testing.T) {
	c := manyRules(1000).Compile()
	conn := conn(0, 1500, "192.0.2.1", "10.3.2.1")
	if n := testing.AllocsPerRun(100, func() { c.Lookup(&conn) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// manyRules is what a large plain file looks like: a port here, a network
// there, some with both, some for one listener.
func manyRules(n int) *Table {
	t := table(2)
	for i := range n {
		r := Rule{Target: 1, Line: i}
		net := netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i >> 8), byte(i), 0}), 24)
		switch i % 4 {
		case 0:
			r.Ports = []PortRange{{uint16(2000 + i%60000), uint16(2000 + i%60000)}}
		case 1:
			r.Remote = []netip.Prefix{net}
		case 2:
			r.Remote = prefixes("10.0.0.0/8")
			r.Ports = []PortRange{{uint16(2000 + i%60000), uint16(2009 + i%60000)}}
		case 3:
			r.Listeners = []int{i % 16}
			r.Local = []netip.Prefix{net}
		}
		t.Rules = append(t.Rules, r)
	}
	return t
}

func BenchmarkLookup(b *testing.B) {
	for _, size := range []int{0, 1, 10, 1000, 100_000} {
		b.Run(fmt.Sprint(size), func(b *testing.B) {
			c := manyRules(size).Compile()
			miss := conn(3, 443, "192.0.2.1", "203.0.113.9")
			b.ReportAllocs()
			for b.Loop() {
				c.Lookup(&miss)
			}
		})
	}
}

func BenchmarkCompile(b *testing.B) {
	t := manyRules(100_000)
	for b.Loop() {
		t.Compile()
	}
}
