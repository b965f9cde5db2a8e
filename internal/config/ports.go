package config

import (
	"fmt"
	"net/netip"
	"strings"

	"socketbox/internal/listen"
	"socketbox/internal/rule"
)

// This file is about listeners of many ports: a socket for each, or one that a
// whole prefix and range is brought to (sk_lookup).

// manyPorts is from how many ports on their cost is told.
const manyPorts = 100

// readAddress reads where a listener listens; false if that is of no use.
func readAddress(s *section, l *Listener) bool {
	steered, _ := s.boolean("sk_lookup")
	ports, many := readListenerPorts(s)
	address, v, ok := s.text("address")
	if !ok {
		if v.any == nil {
			s.missing("address", `one such as ":80", "192.0.2.1:80" or "unix:/path"`)
		}
		return false
	}
	var err error
	switch {
	case steered:
		err = readSteered(address, &l.Description, ports)
	case many:
		l.Description, err = addressWithout(address, ports.First)
		l.First, l.Last = ports.First, ports.Last
	default:
		l.Description, err = listen.ParseAddress(address)
	}
	if err != nil {
		v.fail("%w", err)
	}
	return err == nil
}

// readListenerPorts reads the key ports.
func readListenerPorts(s *section) (r rule.PortRange, ok bool) {
	v, ok := s.get("ports")
	if !ok {
		return rule.PortRange{First: 1, Last: 65535}, false
	}
	r, err := parsePorts(v.any)
	if err != nil {
		v.fail("%w", err)
		return r, false
	}
	return r, true
}

// readSteered reads the prefix of a listener with sk_lookup.
func readSteered(address string, d *listen.Description, ports rule.PortRange) error {
	prefix, err := parsePrefix(strings.TrimPrefix(address, "tcp:"))
	if err != nil {
		return fmt.Errorf("with sk_lookup: %w; its ports are in the key ports", err)
	}
	d.Name, d.Network = strings.ReplaceAll(address, "/", "-"), listen.TCP
	d.Steer(prefix, ports.First, ports.Last)
	return nil
}

// addressWithout reads an address whose ports are elsewhere.
func addressWithout(address string, port uint16) (listen.Description, error) {
	text := fmt.Sprintf("%s:%d", strings.TrimSuffix(address, ":"), port)
	if a, err := netip.ParseAddr(strings.TrimPrefix(address, "tcp:")); err == nil && a.Is6() {
		text = netip.AddrPortFrom(a, port).String()
	}
	d, err := listen.ParseAddress(text)
	if err != nil || d.Network != listen.TCP {
		return d, fmt.Errorf("address %q: expected an address without a port, such as \":\", \"[::]\" or \"192.0.2.1\", since there is a key ports", address)
	}
	d.Name = address
	return d, nil
}

// spread makes a listener for each port of l's range, if it has one.
func (p *parser) spread(s *section, l Listener) []Listener {
	if l.First == 0 || l.Steered() {
		return []Listener{l}
	}
	first, last := l.First, l.Last
	l.First, l.Last = 0, 0
	if n := int(last-first) + 1; len(p.config.Listeners)+n > rule.MaxListeners {
		s.keyValue("ports").failHint("sk_lookup = true takes them all with one socket",
			"%d ports, a socket each: at most %d in all", n, rule.MaxListeners)
		return []Listener{l}
	}
	if n := int(last-first) + 1; n >= manyPorts {
		p.config.Notes = append(p.config.Notes, fmt.Sprintf("listener %q in line %d is %d sockets, one for each port: a descriptor in each process and some 4 KiB of kernel memory each; sk_lookup = true takes one for all", l.Name, l.Line, n))
	}
	var all []Listener
	for port := int(first); port <= int(last); port++ {
		one := l
		one.Port = uint16(port)
		one.Name = fmt.Sprintf("%s:%d", strings.TrimSuffix(l.Name, ":"), port)
		all = append(all, one)
	}
	return all
}
