package rule

import (
	"bytes"
	"math/rand/v2"
	"net/netip"
	"reflect"
	"runtime"
	"strings"
	"testing"
	"time"
)

func fullTable() *Table {
	return &Table{
		Targets: []Target{
			{Name: "/run/socketbox/", Keys: KeyPort | KeyFamily, Hold: Hold{Connections: 1024, Time: 30 * time.Second}},
			{Name: "shop", Keys: allKeys, Hold: Hold{Connections: 0, Time: 0, Busy: time.Hour}, Places: 3, Balance: SourceHash},
			{},
		},
		Rules: []Rule{
			{Listeners: []int{0, MaxListeners - 1}, Local: prefixes("2001:db8::/64", "::/0"), Remote: prefixes("0.0.0.0/0", "198.51.100.7/32"), Ports: []PortRange{{1, 65535}, {443, 443}}, Target: 2, Line: 17},
			{Reject: true, Line: 1 << 30},
			{Map: 1, Limit: Limit{Rate: Rate{5, time.Second}, PerSource: [Tiers]Rate{Tier48: {9, time.Hour}}, Reject: true}},
			{Sessions: Sessions{Max: MaxSessions, Reject: true}},
			{Sessions: Sessions{PerSource: 2}},
			{},
		},
		Maps: []MapInfo{{Name: "tenants", Target: 1}},
	}
}

func TestBinary(t *testing.T) {
	r := rand.New(rand.NewPCG(5, 6))
	tables := []*Table{fullTable(), table(1), manyRules(5000)}
	for range 100 {
		tables = append(tables, randomTable(r, r.IntN(40)))
	}
	for _, want := range tables {
		b, err := want.AppendBinary([]byte("before"))
		if err != nil {
			t.Fatal(err)
		}
		got, err := DecodeTable(bytes.TrimPrefix(b, []byte("before")))
		if err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(got, want) {
			t.Fatalf("got  %+v\nwant %+v", got, want)
		}
	}
}

func TestEncodeRefused(t *testing.T) {
	long := strings.Repeat("x", 256)
	for want, change := range map[string]func(*Table){
		"no target":                 func(t *Table) { t.Targets = nil },
		"65537 targets":             func(t *Table) { t.Targets = make([]Target, MaxTargets+1) },
		"100001 rules":              func(t *Table) { t.Rules = make([]Rule, MaxRules+1) },
		"name of 256 bytes":         func(t *Table) { t.Targets[1].Name = long },
		"unknown key 0x20":          func(t *Table) { t.Targets[1].Keys = 0x21 },
		"hold of -1 connections":    func(t *Table) { t.Targets[1].Hold.Connections = -1 },
		"time below 0":              func(t *Table) { t.Targets[1].Hold.Busy = -1 },
		"target beside reject":      func(t *Table) { t.Rules[1].Target = 1 },
		"map 2 of 1":                func(t *Table) { t.Rules[2].Map = 2 },
		"reject beside a map":       func(t *Table) { t.Rules[2].Reject = true },
		"map 0: target 3 of 3":      func(t *Table) { t.Maps[0].Target = 3 },
		"65 maps":                   func(t *Table) { t.Maps = make([]MapInfo, 65) },
		"balance 4":                 func(t *Table) { t.Targets[1].Balance = 4 },
		"-1 places":                 func(t *Table) { t.Targets[1].Places = -1 },
		"rate of 1 connections":     func(t *Table) { t.Rules[0].Limit.Rate.Count = 1 },
		"target 3 of 3":             func(t *Table) { t.Rules[0].Target = 3 },
		"target -1 of 3":            func(t *Table) { t.Rules[0].Target = -1 },
		"line -1":                   func(t *Table) { t.Rules[0].Line = -1 },
		"listener 4096":             func(t *Table) { t.Rules[0].Listeners[0] = MaxListeners },
		"listener -1":               func(t *Table) { t.Rules[0].Listeners[0] = -1 },
		"ports 0-5":                 func(t *Table) { t.Rules[0].Ports[0] = PortRange{0, 5} },
		"ports 6-5":                 func(t *Table) { t.Rules[0].Ports[0] = PortRange{6, 5} },
		"invalid address prefix":    func(t *Table) { t.Rules[0].Local[0] = netip.Prefix{} },
		"bits behind its length":    func(t *Table) { t.Rules[0].Remote[0] = netip.MustParsePrefix("10.0.0.1/8") },
		"prefix ::ffff:0.0.0.0/96":  func(t *Table) { t.Rules[0].Remote[0] = netip.MustParsePrefix("::ffff:0:0/96") },
		"sessions rejected without": func(t *Table) { t.Rules[0].Sessions.Reject = true },
		"-1 sessions":               func(t *Table) { t.Rules[0].Sessions.Max = -1 },
	} {
		table := fullTable()
		change(table)
		b, err := table.AppendBinary(nil)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
		if len(b) > 0 {
			t.Errorf("%s: %d bytes appended", want, len(b))
		}
	}
}

func TestDecodeRefused(t *testing.T) {
	whole, err := fullTable().AppendBinary(nil)
	if err != nil {
		t.Fatal(err)
	}
	for n := range whole {
		if _, err := DecodeTable(whole[:n]); err == nil {
			t.Errorf("accepted the first %d of %d bytes", n, len(whole))
		}
	}
	smallest := []byte{3, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0} // one target without a name, no map, no rule
	if _, err := DecodeTable(smallest); err != nil {
		t.Errorf("the smallest table: %v", err)
	}
	huge := []byte{0xff, 0xff, 0xff, 0xff, 0x07} // math.MaxInt32
	for name, b := range map[string][]byte{
		"trailing byte":            append(bytes.Clone(whole), 0),
		"version":                  append([]byte{2}, whole[1:]...),
		"long form of a number":    {3, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0x80, 0x00},
		"number beyond 64 bits":    {3, 1, 0, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1, 0, 0, 0},
		"number beyond 31 bits":    {3, 1, 0, 0, 0, 0, 0x80, 0x80, 0x80, 0x80, 0x08, 0, 0, 0, 0},
		"2 thousand million rules": append([]byte{3, 1, 0, 0, 0, 0, 0, 0, 0, 0}, huge...),
		"reject 2":                 {3, 1, 0, 0, 0, 0, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0},
		"map without end":          {3, 1, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0},
		"limit of nothing":         {3, 1, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0},
		"family 5":                 {3, 1, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 1, 5, 0, 0, 0, 0, 0, 0, 0, 0},
		"prefix of 33 bits":        {3, 1, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 1, 4, 33, 0, 0, 0, 0, 0, 0, 0},
		"too large":                make([]byte, MaxEncoded+1),
	} {
		if table, err := DecodeTable(b); err == nil {
			t.Errorf("%s: accepted as %+v", name, table)
		}
	}
}

// TestDecodeAllocation feeds the decoder lengths that lie and the smallest
// items there are.
func TestDecodeAllocation(t *testing.T) {
	const size = 1 << 20
	b := append([]byte{2, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0x07}, make([]byte, size)...)
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	if _, err := DecodeTable(b); err == nil {
		t.Error("accepted")
	}
	runtime.ReadMemStats(&after)
	if n := after.TotalAlloc - before.TotalAlloc; n > 128*size {
		t.Errorf("%d bytes allocated for an input of %d", n, size)
	}
}

// FuzzDecodeTable: what decodes encodes to the same bytes, and compiles.
func FuzzDecodeTable(f *testing.F) {
	for _, t := range []*Table{fullTable(), table(1), manyRules(20)} {
		b, err := t.AppendBinary(nil)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		table, err := DecodeTable(b)
		if err != nil {
			return
		}
		again, err := table.AppendBinary(nil)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(again, b) {
			t.Fatalf("%x decodes and encodes to %x", b, again)
		}
		if len(table.Maps) > 0 {
			return // their entries travel apart
		}
		c := table.Compile()
		r := rand.New(rand.NewPCG(7, 8))
		for range 4 {
			conn := randomConn(r)
			want, wantOK := firstFit(table, conn)
			if got, ok := c.Lookup(&conn); ok != wantOK || got != want {
				t.Fatalf("%+v: rule %d %v, want %d %v", conn, got, ok, want, wantOK)
			}
			c.Single(conn.Listener)
			c.NeedsLocal(conn.Listener)
		}
	})
}
