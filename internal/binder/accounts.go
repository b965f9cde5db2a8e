package binder

import (
	"socketbox/internal/dispatch"
)

// earlier is what targets had under earlier tables, by their names.
type earlier struct {
	Counts map[string]dispatch.Counts
	Causes map[string]map[string]uint64
	Hold   map[string]dispatch.Histogram
}

// accounts are the final counts of an instance, by what they are of. A field
// that a predecessor of another version does not know is missing, not wrong.
type accounts struct {
	Listeners map[string]dispatch.Counts    // by key of description
	HandOff   map[string]dispatch.Histogram // by key of description
	Targets   map[string]dispatch.Counts    // by name
	Causes    map[string]map[string]uint64  // by name
	Hold      map[string]dispatch.Histogram // by name
	Restarts  uint64
}

// sum returns what targets had so far, under this table and the ones before;
// read says how counts are read.
func (t *table) sum(read func(*dispatch.Counts) dispatch.Counts) earlier {
	s := earlier{map[string]dispatch.Counts{}, map[string]map[string]uint64{}, map[string]dispatch.Histogram{}}
	for i, target := range t.plan.Table.Targets {
		name := target.Name
		s.Counts[name] = t.before.Counts[name].Add(read(t.counters.Target(i)))
		s.Causes[name] = addCauses(t.before.Causes[name], t.counters.Causes(i).Snapshot())
		s.Hold[name] = t.before.Hold[name].Add(t.counters.Hold(i).Snapshot())
	}
	return s
}

// addCauses returns the sum of two sets of causes, nil if there is none.
func addCauses(a, b map[string]uint64) map[string]uint64 {
	if len(a) == 0 {
		return b
	}
	sum := map[string]uint64{}
	for _, causes := range []map[string]uint64{a, b} {
		for name, n := range causes {
			sum[name] += n
		}
	}
	return sum
}

// settled is what a table that is no longer in force leaves: nothing waits,
// and what waited is counted as accepted by the next.
func settled(c *dispatch.Counts) dispatch.Counts {
	s := c.Snapshot()
	s.Waiting = 0
	return s
}

func (b *binder) accounts() accounts {
	t := b.active
	sum := t.sum(settled)
	a := accounts{
		Listeners: map[string]dispatch.Counts{}, HandOff: map[string]dispatch.Histogram{},
		Targets: sum.Counts, Causes: sum.Causes, Hold: sum.Hold, Restarts: b.restarts,
	}
	for i, l := range t.listeners {
		a.Listeners[l.key()] = l.base.Add(settled(t.counters.Listener(i)))
		a.HandOff[l.key()] = l.handOff.Add(t.counters.HandOff(i).Snapshot())
	}
	return a
}
