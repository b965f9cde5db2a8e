package rule

import (
	"bytes"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
)

// mapEntry is an entry as the tests write it.
type mapEntry struct {
	prefix string
	port   uint16
	to     To
}

func entriesOf(list []mapEntry) []MapEntry {
	var entries []MapEntry
	for i, e := range list {
		entries = append(entries, NewMapEntry(netip.MustParsePrefix(e.prefix), e.port, e.to, i+1))
	}
	return entries
}

func compileMap(t testing.TB, entries []MapEntry) *Map {
	t.Helper()
	entries = slices.Clone(entries)
	if twice := SortMap(entries); len(twice) > 0 {
		t.Fatalf("%v twice", twice)
	}
	m, err := CompileMap(EncodeMap(entries), MaxTargets, MaxMapEntries)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func TestMap(t *testing.T) {
	m := compileMap(t, entriesOf([]mapEntry{
		{"10.0.0.0/8", 0, ToTarget(1)},
		{"10.1.0.0/16", 443, ToPath(7)},
		{"10.1.0.0/16", 80, ToReject},
		{"10.1.2.0/24", 0, ToPath(0)},
		{"10.1.2.0/24", 22, ToTarget(0)},
		{"10.1.2.3/32", 22, ToPath(1)},
		{"2001:db8::/64", 0, ToTarget(2)},
		{"2001:db8::/64", 8080, ToTarget(3)},
		{"192.0.2.1/32", 25, ToTarget(4)},
	}))
	for _, test := range []struct {
		address string
		port    uint16
		to      To
		ok      bool
	}{
		{"10.9.9.9", 1, ToTarget(1), true},
		{"10.1.0.1", 443, ToPath(7), true},
		{"10.1.0.1", 80, ToReject, true},
		{"10.1.0.1", 81, ToTarget(1), true}, // no such port in the /16: the /8
		{"10.1.2.9", 443, ToPath(0), true},  // the /24 takes every port
		{"10.1.2.9", 22, ToTarget(0), true},
		{"10.1.2.3", 22, ToPath(1), true},
		{"10.1.2.3", 23, ToPath(0), true},
		{"11.0.0.1", 22, 0, false},
		{"192.0.2.1", 25, ToTarget(4), true},
		{"192.0.2.1", 26, 0, false},
		{"2001:db8::9", 80, ToTarget(2), true},
		{"2001:db8::9", 8080, ToTarget(3), true},
		{"2001:db8:1::9", 8080, 0, false},
	} {
		a := netip.MustParseAddr(test.address)
		if to, ok := m.Lookup(a, test.port); ok != test.ok || ok && to != test.to {
			t.Errorf("%s port %d: %#x %v, want %#x %v", a, test.port, to, ok, test.to, test.ok)
		}
		if n := testing.AllocsPerRun(10, func() { m.Lookup(a, test.port) }); n > 0 {
			t.Errorf("%s: %v allocations", a, n)
		}
	}
	if _, ok := m.Lookup(netip.Addr{}, 0); ok {
		t.Error("a connection without an address is taken")
	}
}

// randomMap has prefixes of few bits, so that they lie in each other.
func randomMap(r *rand.Rand, n int) []MapEntry {
	var entries []MapEntry
	for i := range n {
		a, bits := netip.AddrFrom4([4]byte{10, byte(r.IntN(4)), byte(r.IntN(4)), byte(r.IntN(4))}), r.IntN(33)
		if r.IntN(2) == 0 {
			a, bits = netip.AddrFrom16([16]byte{0x20, byte(r.IntN(4)), 15: byte(r.IntN(4))}), r.IntN(129)
		}
		prefix, _ := a.Prefix(bits)
		to := []To{ToReject, ToTarget(r.IntN(9)), ToPath(r.IntN(9))}[r.IntN(3)]
		entries = append(entries, NewMapEntry(prefix, uint16(max(0, r.IntN(8)-4)), to, i+1))
	}
	slices.SortFunc(entries, MapEntry.order)
	return slices.CompactFunc(entries, func(a, b MapEntry) bool { return a.order(b) == 0 })
}

// longest is Lookup in the plainest way.
func longest(entries []MapEntry, a netip.Addr, port uint16) (to To, ok bool) {
	best := -1
	for i := range entries {
		e := &entries[i]
		if p := e.Prefix(); p.Contains(a) && (e.port == 0 || e.port == port) &&
			(best < 0 || 2*p.Bits()+min(int(e.port), 1) > 2*entries[best].Prefix().Bits()+min(int(entries[best].port), 1)) {
			best = i
		}
	}
	if best < 0 {
		return 0, false
	}
	return entries[best].to, true
}

func TestMapAgainstSearch(t *testing.T) {
	r := rand.New(rand.NewPCG(9, 10))
	for range 300 {
		entries := randomMap(r, 1+r.IntN(40))
		m := compileMap(t, entries)
		for range 100 {
			a := netip.AddrFrom4([4]byte{10, byte(r.IntN(4)), byte(r.IntN(4)), byte(r.IntN(4))})
			if r.IntN(2) == 0 {
				a = netip.AddrFrom16([16]byte{0x20, byte(r.IntN(4)), 15: byte(r.IntN(4))})
			}
			port := uint16(r.IntN(5))
			want, wantOK := longest(entries, a, port)
			if got, ok := m.Lookup(a, port); ok != wantOK || got != want {
				t.Fatalf("%s port %d: %#x %v, want %#x %v in %+v", a, port, got, ok, want, wantOK, entries)
			}
			if found, ok, err := SearchMap(EncodeMap(entries), a, port); err != nil || ok != wantOK || found.to != want {
				t.Fatalf("%s port %d: found %+v %v %v, want %#x %v in %+v", a, port, found, ok, err, want, wantOK, entries)
			}
		}
	}
}

func TestSortMapFindsTwice(t *testing.T) {
	twice := SortMap(entriesOf([]mapEntry{
		{"10.0.0.0/8", 0, 1}, {"10.0.0.0/9", 0, 1}, {"10.0.0.0/8", 1, 1}, {"::/0", 0, 1}, {"10.0.0.0/8", 0, 2}, {"10.0.0.0/8", 0, 3},
	}))
	if len(twice) != 2 || twice[0][0].Line() != 1 || twice[0][1].Line() != 5 || twice[1][1].Line() != 6 || twice[0][1].Prefix().String() != "10.0.0.0/8" {
		t.Errorf("%+v", twice)
	}
}

func TestCompileMapRefused(t *testing.T) {
	whole := EncodeMap(randomMap(rand.New(rand.NewPCG(1, 2)), 30))
	for n := range whole {
		if _, err := CompileMap(whole[:n], 9, 9); err == nil {
			t.Errorf("accepted the first %d of %d bytes", n, len(whole))
		}
	}
	for name, b := range map[string][]byte{
		"version":              {2, 0},
		"trailing byte":        append(bytes.Clone(whole), 0),
		"too many":             {1, 0xff, 0xff, 0xff, 0x7f},
		"33 bits":              {1, 1, 33, 0, 1, 2, 3, 4, 5, 1},
		"bits behind":          {1, 1, 4, 0, 0xff, 1},
		"port 0":               {1, 1, 8, 1, 10, 0, 0, 1},
		"has port 2":           {1, 1, 8, 2, 10, 0, 80, 1},
		"target 9 of 9":        {1, 1, 8, 0, 10, 10},
		"path 9 of 9":          {1, 1, 8, 0, 10, 0x89, 0x80, 0x80, 0x80, 0x08},
		"a value that is none": {1, 1, 8, 0, 10, 0x80, 0x80, 0x80, 0x80, 0x04},
		"twice":                {1, 2, 8, 0, 10, 1, 8, 0, 10, 1},
		"descending":           {1, 2, 8, 0, 10, 1, 8, 0, 9, 1},
	} {
		if _, err := CompileMap(b, 9, 9); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

// FuzzCompileMap: what compiles answers as a plain search of its entries does.
func FuzzCompileMap(f *testing.F) {
	f.Add(EncodeMap(nil))
	f.Add(EncodeMap(randomMap(rand.New(rand.NewPCG(1, 2)), 30)))
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := CompileMap(b, 9, 9)
		if err != nil {
			return
		}
		d := decoder{rest: b[1:]}
		var entries []MapEntry
		for range d.int() {
			entries = append(entries, d.mapEntry())
		}
		if again := EncodeMap(entries); !bytes.Equal(again, b) {
			t.Fatalf("%x decodes and encodes to %x", b, again)
		}
		for i := range min(len(entries), 50) {
			a, port := entries[i].Prefix().Addr(), entries[i].port
			want, wantOK := longest(entries, a, port)
			if got, ok := m.Lookup(a, port); ok != wantOK || got != want {
				t.Fatalf("%s port %d: %#x %v, want %#x %v", a, port, got, ok, want, wantOK)
			}
		}
	})
}
