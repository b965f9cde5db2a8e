package rule

import "net/netip"

// Compiled is a table made ready for look-up. It is read-only: any number of
// goroutines may use it.
type Compiled struct {
	rules []matcher
	any   index   // rules that fit every listener
	named []index // by listener: rules that name it
}

// matcher is one rule's keys but for its listeners, which chose the index.
type matcher struct {
	local, remote addressSet
	ports         portSet
	m             *Map // takes only what it has
	catchAll      bool // no key at all: nothing behind it is reached
	looksAtLocal  bool
	reject        bool
	target        int
}

// Compile makes t ready for look-up. t must hold what Check accepts, and maps
// be those that it names, in order. The result shares nothing that the caller
// may change.
func (t *Table) Compile(maps ...*Map) *Compiled {
	c := &Compiled{rules: make([]matcher, len(t.Rules))}
	var all []int32
	var named [][]int32
	for i := range t.Rules {
		r := &t.Rules[i]
		c.rules[i] = newMatcher(r)
		if r.Map > 0 {
			c.rules[i].m = maps[r.Map-1]
		}
		if len(r.Listeners) == 0 {
			all = append(all, int32(i))
		}
		for _, l := range r.Listeners {
			for len(named) <= l {
				named = append(named, nil)
			}
			if n := len(named[l]); n == 0 || named[l][n-1] != int32(i) {
				named[l] = append(named[l], int32(i))
			}
		}
	}
	c.any = newIndex(t.Rules, all)
	c.named = make([]index, len(named))
	for l := range named {
		c.named[l] = newIndex(t.Rules, named[l])
	}
	return c
}

func newMatcher(r *Rule) matcher {
	return matcher{
		local:        newAddressSet(r.Local),
		remote:       newAddressSet(r.Remote),
		ports:        newPortSet(r.Ports),
		catchAll:     len(r.Local) == 0 && len(r.Remote) == 0 && len(r.Ports) == 0 && r.Map == 0,
		looksAtLocal: len(r.Local) > 0 || r.Map > 0,
		reject:       r.Reject,
		target:       r.Target,
	}
}

// fits reports whether the rule takes conn, its listener apart.
func (m *matcher) fits(conn *Conn) bool {
	if !m.ports.has(conn.Port) || !m.remote.has(conn.Remote) || !m.local.has(conn.Local) {
		return false
	}
	if m.m == nil {
		return true
	}
	to, ok := m.m.Lookup(conn.Local, conn.Port)
	if ok {
		conn.by, conn.found = m.m, to // a large map is not in the processor's caches: MapTo need not look again
	}
	return ok
}

// Lookup returns the index of the first rule, in file order, that takes conn;
// ok is false where none does, and the connection goes to Targets[0]. It does
// not allocate.
func (c *Compiled) Lookup(conn *Conn) (rule int, ok bool) {
	const none = int32(MaxRules)
	best := none
	if conn.Listener >= 0 && conn.Listener < len(c.named) {
		best = c.named[conn.Listener].first(c.rules, conn, best)
	}
	best = c.any.first(c.rules, conn, best)
	if best == none {
		return 0, false
	}
	return int(best), true
}

// MapTo returns where the map of a rule that Lookup returned sends conn; ok is
// false for a rule without one.
func (c *Compiled) MapTo(rule int, conn *Conn) (to To, ok bool) {
	m := c.rules[rule].m
	switch m {
	case nil:
		return 0, false
	case conn.by:
		return conn.found, true
	}
	return m.Lookup(conn.Local, conn.Port)
}

// NeedsLocal reports whether a rule that connections of listener can reach
// looks at their local address. Where none does, a getsockname is saved.
func (c *Compiled) NeedsLocal(listener int) bool {
	needs := false
	c.reachable(listener, func(m *matcher) bool {
		needs = m.looksAtLocal
		return !needs
	})
	return needs
}

// Single returns the one target that every connection of listener goes to
// whatever its addresses and port; ok is false where there are several or a
// rule that resets can be reached.
func (c *Compiled) Single(listener int) (target int, ok bool) {
	target, ok = -1, true
	end := c.reachable(listener, func(m *matcher) bool {
		ok = !m.reject && m.m == nil && (target < 0 || target == m.target)
		target = m.target
		return ok
	})
	if !ok {
		return 0, false
	}
	if end { // what no rule takes goes to the main socket directory
		return 0, target <= 0
	}
	return target, true
}

// reachable calls visit with the rules that connections of listener may come
// to, in file order, until visit returns false or a rule takes everything. It
// returns true where a connection may pass all of them.
func (c *Compiled) reachable(listener int, visit func(*matcher) bool) (end bool) {
	var own []int32
	if listener >= 0 && listener < len(c.named) {
		own = c.named[listener].rules
	}
	all := c.any.rules
	for len(own)+len(all) > 0 {
		var i int32
		if len(all) == 0 || len(own) > 0 && own[0] < all[0] {
			i, own = own[0], own[1:]
		} else {
			i, all = all[0], all[1:]
		}
		m := &c.rules[i]
		if !visit(m) || m.catchAll {
			return false
		}
	}
	return true
}

// portAddr spells a port as an address, so that ports and addresses are
// indexed alike: the 16 bits of the port lead.
func portAddr(port uint16) netip.Addr {
	return netip.AddrFrom4([4]byte{byte(port >> 8), byte(port)})
}
