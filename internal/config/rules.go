package config

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"socketbox/internal/rule"
)

// readRules reads the rules, in file order; listeners are indexes by name.
func (p *parser) readRules(top *section, listeners map[string]int) {
	for _, s := range top.sections("rule", rule.MaxRules) {
		r := rule.Rule{
			Line:      s.line(),
			Listeners: p.readListenerNames(s, listeners),
			Local:     readPrefixes(s, "local"),
			Remote:    readPrefixes(s, "remote"),
			Ports:     readPorts(s),
		}
		p.readRuleTarget(s, &r)
		p.readRuleLimits(s, &r)
		s.refuseRest()
		p.config.Rules = append(p.config.Rules, r)
	}
}

func (p *parser) readListenerNames(s *section, listeners map[string]int) []int {
	var out []int
	for _, v := range s.list("listener") {
		name, ok := v.any.(string)
		if !ok {
			v.expected("a listener's name")
			continue
		}
		i, ok := listeners[name]
		if !ok {
			v.fail("no listener is named %q%s", name, oneOf(listeners))
			continue
		}
		for last := i + max(p.ranges[name], 1); i < last; i++ {
			p.checkRulesOfLent(v, i)
			if !slices.Contains(out, i) {
				out = append(out, i)
			}
		}
	}
	return out
}

// oneOf lists names where they are few enough to help.
func oneOf(names map[string]int) string {
	const few = 8
	if len(names) == 0 || len(names) > few {
		return ""
	}
	var known []string
	for name := range names {
		known = append(known, name)
	}
	slices.Sort(known)
	return ": expected " + quoted(known)
}

func readPrefixes(s *section, key string) []netip.Prefix {
	var out []netip.Prefix
	for _, v := range s.list(key) {
		text, ok := v.any.(string)
		if !ok {
			v.expected(`a prefix such as "198.51.100.0/24"`)
			continue
		}
		prefix, err := parsePrefix(text)
		if err != nil {
			v.fail("%w", err)
			continue
		}
		out = append(out, prefix)
	}
	return out
}

// parsePrefix reads a prefix or a single address.
func parsePrefix(text string) (netip.Prefix, error) {
	prefix, err := netip.ParsePrefix(text)
	if a, addrErr := netip.ParseAddr(text); addrErr == nil && a.Zone() == "" {
		prefix, err = netip.PrefixFrom(a, a.BitLen()), nil
	}
	switch {
	case err != nil:
		return netip.Prefix{}, fmt.Errorf("prefix %q: expected one such as \"198.51.100.0/24\", \"2001:db8::/64\" or an address", text)
	case prefix.Addr().Is4In6():
		return netip.Prefix{}, fmt.Errorf("prefix %q: expected IPv4 as in %q, since connections have their addresses unmapped", text, prefix.Addr().Unmap())
	case prefix != prefix.Masked():
		return netip.Prefix{}, fmt.Errorf("prefix %q has bits behind its length: expected %q or %q", text, prefix.Masked(), prefix.Addr())
	}
	return prefix, nil
}

func readPorts(s *section) []rule.PortRange {
	var out []rule.PortRange
	for _, v := range s.list("port") {
		r, err := parsePorts(v.any)
		if err != nil {
			v.fail("%w", err)
			continue
		}
		out = append(out, r)
	}
	return out
}

// parsePorts reads 443 or "8000-8099"; "443" too.
func parsePorts(v any) (rule.PortRange, error) {
	if n, ok := v.(int64); ok {
		if n < 1 || n > 65535 {
			return rule.PortRange{}, fmt.Errorf("%d: expected a port from 1 to 65535", n)
		}
		return rule.PortRange{First: uint16(n), Last: uint16(n)}, nil
	}
	text, ok := v.(string)
	if !ok {
		return rule.PortRange{}, fmt.Errorf("expected a port such as 443 or a range such as \"8000-8099\", got %s", kindOf(v))
	}
	low, high, isRange := strings.Cut(text, "-")
	if !isRange {
		high = low
	}
	first, err1 := strconv.ParseUint(low, 10, 16)
	last, err2 := strconv.ParseUint(high, 10, 16)
	switch {
	case err1 != nil || err2 != nil || first == 0 || last == 0:
		return rule.PortRange{}, fmt.Errorf("%q: expected a port such as 443 or a range such as \"8000-8099\", from 1 to 65535", text)
	case first > last:
		return rule.PortRange{}, fmt.Errorf("range %q is reversed: expected \"%d-%d\"", text, last, first)
	}
	return rule.PortRange{First: uint16(first), Last: uint16(last)}, nil
}

func (p *parser) readRuleTarget(s *section, r *rule.Rule) {
	const expected = `a target's name, an absolute path, "table:NAME" or "reject"`
	v, ok := s.get("target")
	if !ok {
		s.missing("target", expected)
		return
	}
	text, ok := v.any.(string)
	if !ok {
		v.expected(expected)
		return
	}
	if err := p.pointTo(text, s.line(), r); err != nil {
		v.fail("%w", err)
	}
}

// pointTo sets where a rule leads. Rules with the same path share a target.
func (p *parser) pointTo(text string, line int, r *rule.Rule) error {
	switch text {
	case rejectTarget:
		r.Reject = true
		return nil
	case mainTarget:
		return nil // the first target
	}
	if name, ok := strings.CutPrefix(text, tablePrefix); ok {
		i, known := p.tables[name]
		if !known {
			return fmt.Errorf("no table is named %q%s", name, oneOf(p.tables))
		}
		r.Map = i + 1
		return nil
	}
	if i, ok := p.targets[text]; ok {
		r.Target = i
		return nil
	}
	if !strings.HasPrefix(text, "/") {
		return fmt.Errorf("no target is named %q%s; it may also be an absolute path or \"reject\"", text, oneOf(p.targets))
	}
	t, err := rule.ParseTemplate(text)
	if err != nil {
		return err
	}
	name := t.String()
	i, ok := p.targets[name]
	if !ok {
		if len(p.config.Targets) >= rule.MaxTargets {
			return fmt.Errorf("more than %d targets", rule.MaxTargets)
		}
		i = len(p.config.Targets)
		p.targets[name] = i
		p.config.Targets = append(p.config.Targets, Target{Name: name, Sockets: []rule.Template{t}, Hold: p.hold, Line: line})
	}
	r.Target = i
	return nil
}
