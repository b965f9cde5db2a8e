package rule

import (
	"cmp"
	"net/netip"
	"slices"

	"github.com/gaissmai/bart"
)

// fewPrefixes is how many prefixes are compared one by one before a routing
// table is faster.
const fewPrefixes = 4

// addressSet is a set of addresses; the zero value holds them all, also the
// address that a connection of a Unix listener lacks.
type addressSet struct {
	few  []netip.Prefix
	many *bart.Lite
}

func newAddressSet(prefixes []netip.Prefix) addressSet {
	if len(prefixes) <= fewPrefixes {
		return addressSet{few: slices.Clone(prefixes)}
	}
	table := new(bart.Lite)
	for _, p := range prefixes {
		table.Insert(p)
	}
	return addressSet{many: table}
}

func (s *addressSet) has(a netip.Addr) bool {
	if s.many != nil {
		return s.many.Contains(a)
	}
	for i := range s.few {
		if s.few[i].Contains(a) {
			return true
		}
	}
	return len(s.few) == 0
}

// portSet is a set of ports as sorted ranges with a gap between each two; nil
// holds them all, also the port that a connection of a Unix listener lacks.
type portSet []PortRange

func newPortSet(ranges []PortRange) portSet {
	sorted := slices.Clone(ranges)
	slices.SortFunc(sorted, func(a, b PortRange) int { return cmp.Compare(a.First, b.First) })
	var set portSet
	for _, r := range sorted {
		if n := len(set); n > 0 && int(r.First) <= int(set[n-1].Last)+1 {
			set[n-1].Last = max(set[n-1].Last, r.Last)
			continue
		}
		set = append(set, r)
	}
	return set
}

func (s portSet) has(port uint16) bool {
	if s == nil {
		return true
	}
	low, high := 0, len(s)
	for low < high {
		middle := (low + high) / 2
		if s[middle].Last < port {
			low = middle + 1
		} else {
			high = middle
		}
	}
	return low < len(s) && s[low].First <= port
}

// prefixes splits a set of ports into blocks that a prefix of portAddr
// covers, at most 30 for one range.
func (s portSet) prefixes() []netip.Prefix {
	var out []netip.Prefix
	for _, r := range s {
		for first, last := int(r.First), int(r.Last); first <= last; {
			size := 1
			for first%(2*size) == 0 && first+2*size-1 <= last {
				size *= 2
			}
			bits := 16
			for n := size; n > 1; n /= 2 {
				bits--
			}
			out = append(out, netip.PrefixFrom(portAddr(uint16(first)), bits))
			first += size
		}
	}
	return out
}
