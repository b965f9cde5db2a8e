package rule

import (
	"math/rand/v2"
	"net/netip"
	"strconv"
	"testing"
)

// A rule takes a connection exactly if all its checks are fine: what explain
// says is what the dispatcher does.
func TestChecksAgreeWithLookup(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	address := func() netip.Addr {
		if random.IntN(2) == 0 {
			return netip.AddrFrom4([4]byte{192, 0, 2, byte(random.IntN(4))})
		}
		return netip.MustParseAddr("2001:db8::" + strconv.Itoa(random.IntN(4)))
	}
	prefixes := func() (all []netip.Prefix) {
		for range random.IntN(3) {
			a := address()
			p, _ := a.Prefix(a.BitLen() - random.IntN(3))
			all = append(all, p)
		}
		return all
	}
	taken := 0
	for range 300 {
		table := &Table{Targets: []Target{{Name: "main"}}}
		for range 1 + random.IntN(12) {
			r := Rule{Local: prefixes(), Remote: prefixes()}
			if random.IntN(2) == 0 {
				r.Listeners = []int{random.IntN(3)}
			}
			if random.IntN(2) == 0 {
				first := uint16(1 + random.IntN(6))
				r.Ports = []PortRange{{first, first + uint16(random.IntN(3))}}
			}
			table.Rules = append(table.Rules, r)
		}
		compiled := table.Compile()
		for range 50 {
			conn := Conn{Listener: random.IntN(3), Port: uint16(1 + random.IntN(8)), Local: address(), Remote: address()}
			explained := -1
			for i := range table.Rules {
				if allOK(table.Rules[i].Checks(&conn, strconv.Itoa)) {
					explained = i
					break
				}
			}
			real, ok := compiled.Lookup(&conn)
			if !ok {
				real = -1
			} else {
				taken++
			}
			if real != explained {
				t.Fatalf("%+v: look-up says rule %d, the checks say %d, of %+v", conn, real, explained, table.Rules)
			}
		}
	}
	if taken < 1000 {
		t.Errorf("only %d connections were taken by a rule", taken)
	}
}

func allOK(checks []Check) bool {
	for _, c := range checks {
		if !c.OK {
			return false
		}
	}
	return true
}
