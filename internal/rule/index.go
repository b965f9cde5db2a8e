package rule

import (
	"math"
	"net/netip"

	"github.com/gaissmai/bart"
)

// fewRules is how many rules are tried one after the other before an index is
// faster.
const fewRules = 8

// index finds the first of a set of rules that takes a connection. Each rule
// is filed once, under the key that the fewest rules share with it: a look-up
// tries the handful filed under the connection's port and addresses, and those
// that no key sets apart.
type index struct {
	rules  []int32 // all of them, ascending
	plain  []int32 // those tried for every connection, ascending
	ports  *tree
	local  *tree
	remote *tree
}

// tree files rules under prefixes.
type tree struct{ table bart.Table[*bucket] }

// bucket is the rules of one prefix, ascending, and the bucket of the next
// wider prefix that has one.
type bucket struct {
	rules []int32
	wider *bucket
}

// newIndex files the rules with the given ascending indexes.
func newIndex(rules []Rule, which []int32) index {
	x := index{rules: which}
	if len(which) <= fewRules {
		x.plain = which
		return x
	}
	shares := [3]map[netip.Prefix]int{{}, {}, {}}
	for _, i := range which {
		for k, prefixes := range keyPrefixes(&rules[i]) {
			for _, p := range prefixes {
				shares[k][p]++
			}
		}
	}
	trees := [3]**tree{&x.ports, &x.local, &x.remote}
	for _, i := range which {
		keys := keyPrefixes(&rules[i])
		k := rarest(keys, shares)
		if k < 0 {
			x.plain = append(x.plain, i)
			continue
		}
		if *trees[k] == nil {
			*trees[k] = new(tree)
		}
		(*trees[k]).file(keys[k], i)
	}
	for _, t := range trees {
		(*t).link()
	}
	return x
}

// keyPrefixes returns a rule's ports, local and remote addresses as prefixes;
// none for a key that fits everything.
func keyPrefixes(r *Rule) [3][]netip.Prefix {
	return [3][]netip.Prefix{newPortSet(r.Ports).prefixes(), r.Local, r.Remote}
}

// rarest returns the key whose most common prefix the fewest rules share, -1
// for a rule without keys.
func rarest(keys [3][]netip.Prefix, shares [3]map[netip.Prefix]int) int {
	best, least := -1, math.MaxInt
	for k, prefixes := range keys {
		most := 0
		for _, p := range prefixes {
			most = max(most, shares[k][p])
		}
		if most > 0 && most < least {
			best, least = k, most
		}
	}
	return best
}

// file adds rule i, which is not below any rule filed before.
func (t *tree) file(prefixes []netip.Prefix, i int32) {
	for _, p := range prefixes {
		b, ok := t.table.Get(p)
		if !ok {
			b = new(bucket)
			t.table.Insert(p, b)
		}
		if n := len(b.rules); n == 0 || b.rules[n-1] != i {
			b.rules = append(b.rules, i)
		}
	}
}

// link lets every bucket know the next wider one. A nil tree has none.
func (t *tree) link() {
	if t == nil {
		return
	}
	for p, b := range t.table.All() {
		for _, wider := range t.table.Supernets(p) { // narrowest first, p itself leading
			if wider != b {
				b.wider = wider
				break
			}
		}
	}
}

// first returns the lowest rule below best that takes conn, else best.
func (x *index) first(rules []matcher, conn *Conn, best int32) int32 {
	best = scan(rules, x.plain, conn, best)
	best = x.ports.first(rules, portAddr(conn.Port), conn, best)
	best = x.local.first(rules, conn.Local, conn, best)
	return x.remote.first(rules, conn.Remote, conn, best)
}

func (t *tree) first(rules []matcher, key netip.Addr, conn *Conn, best int32) int32 {
	if t == nil {
		return best
	}
	b, _ := t.table.Lookup(key) // nil where no prefix holds key
	for ; b != nil; b = b.wider {
		best = scan(rules, b.rules, conn, best)
	}
	return best
}

// scan tries ascending rules one after the other, up to best.
func scan(rules []matcher, which []int32, conn *Conn, best int32) int32 {
	for _, i := range which {
		if i >= best {
			break
		}
		if rules[i].fits(conn) {
			return i
		}
	}
	return best
}
