package rule

import (
	"fmt"
	"net/netip"
	"strings"
)

// Check is one key of a rule compared with a connection, for people.
type Check struct {
	Key  string `json:"key"`  // as the configuration spells it
	Want string `json:"want"` // what the rule asks for
	Got  string `json:"got"`  // what the connection has
	OK   bool   `json:"ok"`
}

// Checks compares each key that r has with conn, in the order of the
// documentation; listener names listeners. Rules are looked up by Compiled:
// this is for explaining, and for a test that both agree.
func (r *Rule) Checks(conn *Conn, listener func(int) string) []Check {
	all := []Check{}
	if len(r.Listeners) > 0 {
		c := Check{Key: "listener", Got: listener(conn.Listener)}
		var names []string
		for _, l := range r.Listeners {
			names = append(names, listener(l))
			c.OK = c.OK || l == conn.Listener
		}
		const few = 8 // more are a range of ports
		if n := len(names); n > few {
			names = []string{fmt.Sprintf("%s … %s (%d in all)", names[0], names[n-1], n)}
		}
		c.Want = strings.Join(names, ", ")
		all = append(all, c)
	}
	if len(r.Local) > 0 {
		all = append(all, comparePrefixes("local", r.Local, conn.Local))
	}
	if len(r.Ports) > 0 {
		c := Check{Key: "port", Got: fmt.Sprint(conn.Port)}
		var ports []string
		for _, p := range r.Ports {
			ports = append(ports, p.String())
			c.OK = c.OK || p.First <= conn.Port && conn.Port <= p.Last
		}
		c.Want = strings.Join(ports, ", ")
		all = append(all, c)
	}
	if len(r.Remote) > 0 {
		all = append(all, comparePrefixes("remote", r.Remote, conn.Remote))
	}
	return all
}

func comparePrefixes(key string, prefixes []netip.Prefix, a netip.Addr) Check {
	c := Check{Key: key, Got: "none"}
	if a.IsValid() {
		c.Got = a.String()
	}
	var want []string
	for _, p := range prefixes {
		want = append(want, PrefixText(p))
		c.OK = c.OK || p.Contains(a)
	}
	c.Want = strings.Join(want, ", ")
	return c
}

// PrefixText spells a prefix, and one address as an address.
func PrefixText(p netip.Prefix) string {
	if p.IsSingleIP() {
		return p.Addr().String()
	}
	return p.String()
}

// String spells a range as the configuration does.
func (p PortRange) String() string {
	if p.First == p.Last {
		return fmt.Sprint(p.First)
	}
	return fmt.Sprintf("%d-%d", p.First, p.Last)
}
