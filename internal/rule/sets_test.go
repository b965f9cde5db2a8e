package rule

import (
	"net/netip"
	"testing"
)

// TestPortSet tries every port against ranges in any order, and the prefixes
// that the set splits into.
func TestPortSet(t *testing.T) {
	for _, ranges := range [][]PortRange{
		{{1, 65535}},
		{{1, 1}},
		{{65535, 65535}},
		{{80, 80}, {443, 443}},
		{{443, 443}, {80, 90}, {85, 100}, {101, 103}, {82, 83}},
		{{8000, 8099}, {1, 1023}, {60000, 65535}},
		{{1, 65534}},
		{{2, 65535}},
	} {
		set := newPortSet(ranges)
		blocks := set.prefixes()
		if len(blocks) > 30*len(ranges) {
			t.Errorf("%v: %d prefixes", ranges, len(blocks))
		}
		for port := range 65536 {
			p := uint16(port)
			want := fitsPort(ranges, p)
			if got := set.has(p); got != want {
				t.Fatalf("%v: port %d: %v, want %v", ranges, p, got, want)
			}
			if got := countHolding(blocks, portAddr(p)); (got == 1) != want || got > 1 {
				t.Fatalf("%v: port %d is in %d prefixes of %v", ranges, p, got, blocks)
			}
		}
	}
}

func countHolding(blocks []netip.Prefix, a netip.Addr) int {
	n := 0
	for _, b := range blocks {
		if b.Contains(a) {
			n++
		}
	}
	return n
}

func TestZeroSetsHoldEverything(t *testing.T) {
	var addresses addressSet
	if !addresses.has(netip.Addr{}) || !addresses.has(netip.MustParseAddr("::1")) {
		t.Error("zero addressSet lacks an address")
	}
	if !portSet(nil).has(0) || !portSet(nil).has(65535) {
		t.Error("nil portSet lacks a port")
	}
}

func TestSource(t *testing.T) {
	for a, want := range map[string]string{
		"192.0.2.7": "192.0.2.7", "2001:db8:1:2:3::4": "2001:db8:1:2::", "2001:db8:1:2::": "2001:db8:1:2::", "::1": "::",
	} {
		if got := Source(netip.MustParseAddr(a)); got != netip.MustParseAddr(want) {
			t.Errorf("%s: counted for %s, expected %s", a, got, want)
		}
	}
	if got := Source(netip.Addr{}); got.IsValid() {
		t.Errorf("no address: counted for %s", got)
	}
}
