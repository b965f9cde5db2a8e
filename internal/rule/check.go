package rule

import (
	"errors"
	"fmt"
	"math"
	"net/netip"
)

// Check reports the first thing in t that Compile and the wire can't have: an
// index out of range, an invalid or unmasked prefix, an invalid port range, a
// number below 0, a list too long.
func (t *Table) Check() error {
	switch {
	case len(t.Targets) == 0:
		return errors.New("no target: the first must be the main socket directory")
	case len(t.Targets) > MaxTargets:
		return fmt.Errorf("%d targets, at most %d", len(t.Targets), MaxTargets)
	case len(t.Maps) > MaxMaps:
		return fmt.Errorf("%d maps, at most %d", len(t.Maps), MaxMaps)
	case len(t.Rules) > MaxRules:
		return fmt.Errorf("%d rules, at most %d", len(t.Rules), MaxRules)
	}
	for i := range t.Targets {
		if err := t.Targets[i].check(); err != nil {
			return fmt.Errorf("target %d: %w", i, err)
		}
	}
	for i, m := range t.Maps {
		if len(m.Name) > maxName || m.Target < 0 || m.Target >= len(t.Targets) {
			return fmt.Errorf("map %d: target %d of %d, name of %d bytes", i, m.Target, len(t.Targets), len(m.Name))
		}
	}
	for i := range t.Rules {
		if err := t.Rules[i].check(len(t.Targets), len(t.Maps)); err != nil {
			return fmt.Errorf("rule %d: %w", i, err)
		}
	}
	return nil
}

func (t *Target) check() error {
	switch {
	case len(t.Name) > maxName:
		return fmt.Errorf("name of %d bytes, at most %d", len(t.Name), maxName)
	case t.Keys&^allKeys != 0:
		return fmt.Errorf("unknown key %#x", uint8(t.Keys&^allKeys))
	case t.Balance >= balances:
		return fmt.Errorf("balance %d", t.Balance)
	case t.Places < 0 || t.Places > MaxMapEntries || t.Balanced() && t.Places > MaxPlaces:
		return fmt.Errorf("%d places", t.Places)
	case t.Hold.Connections < 0 || t.Hold.Connections > math.MaxInt32:
		return fmt.Errorf("hold of %d connections", t.Hold.Connections)
	case t.Hold.Time < 0 || t.Hold.Busy < 0:
		return errors.New("hold for a time below 0")
	}
	return nil
}

func (r *Rule) check(targets, maps int) error {
	switch {
	case r.Map < 0 || r.Map > maps:
		return fmt.Errorf("map %d of %d", r.Map, maps)
	case r.Map > 0 && (r.Reject || r.Target != 0):
		return errors.New("target or reject beside a map")
	case r.Reject && r.Target != 0:
		return errors.New("target beside reject")
	case r.Target < 0 || r.Target >= targets:
		return fmt.Errorf("target %d of %d", r.Target, targets)
	case r.Line < 0 || r.Line > math.MaxInt32:
		return fmt.Errorf("line %d", r.Line)
	}
	for _, l := range r.Listeners {
		if l < 0 || l >= MaxListeners {
			return fmt.Errorf("listener %d, at most %d", l, MaxListeners-1)
		}
	}
	for _, p := range r.Ports {
		if p.First == 0 || p.First > p.Last {
			return fmt.Errorf("ports %d-%d", p.First, p.Last)
		}
	}
	return errors.Join(r.Limit.check(), r.Sessions.check(), checkPrefixes(r.Local), checkPrefixes(r.Remote))
}

func checkPrefixes(prefixes []netip.Prefix) error {
	for _, p := range prefixes {
		switch {
		case !p.IsValid():
			return errors.New("invalid address prefix")
		case p.Addr().Is4In6():
			return fmt.Errorf("prefix %s of mapped addresses: connections have theirs unmapped", p)
		case p != p.Masked():
			return fmt.Errorf("prefix %s has bits behind its length", p)
		}
	}
	return nil
}
