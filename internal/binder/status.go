package binder

import (
	"encoding/json"
	"os"
	"sort"
	"time"

	"socketbox/internal/dispatch"
	"socketbox/internal/listen"
)

// Status is a running instance as `socketbox status --json` shows it.
type Status struct {
	PID        int              `json:"pid"`
	Dispatcher int              `json:"dispatcher"` // 0: none at the moment
	UID        int              `json:"uid"`
	Since      time.Time        `json:"since"`
	Config     string           `json:"config"`
	Dir        string           `json:"dir"`
	Restarts   uint64           `json:"dispatcher_restarts"`
	HoldTotal  int              `json:"hold_total"`
	Total      dispatch.Counts  `json:"total"`
	Listeners  []ListenerStatus `json:"listeners"`
	Rules      []RuleStatus     `json:"rules"`
	Targets    []TargetStatus   `json:"targets"`
	Paths      []PathStatus     `json:"paths"`
}

// ListenerStatus is a listener with its description and counts.
type ListenerStatus struct {
	Name        string             `json:"name"`
	Address     string             `json:"address"`
	Description listen.Description `json:"description"`
	dispatch.Counts
}

// RuleStatus is a rule with what it took since the configuration was loaded;
// number 0 is "no rule".
type RuleStatus struct {
	Number int    `json:"number"`
	Line   int    `json:"line,omitempty"`
	Target string `json:"target"`
	dispatch.Counts
}

// TargetStatus is a target with its counts.
type TargetStatus struct {
	Name string `json:"name"`
	Path string `json:"path"`
	dispatch.Counts
}

// PathStatus is a resolved path that the dispatcher knows.
type PathStatus struct {
	Path   string `json:"path"` // or which one is missing
	Live   bool   `json:"live"`
	Wanted bool   `json:"wanted"` // connections wait for it
	Routes int    `json:"routes"`
}

// has says whether the instance has a listener that differs from d in name at
// most.
func (s *Status) has(d listen.Description) bool {
	for _, l := range s.Listeners {
		same := l.Description
		same.Name = d.Name
		if same == d {
			return true
		}
	}
	return false
}

func (b *binder) statusJSON() []byte {
	text, err := json.Marshal(b.status())
	if err != nil {
		b.log.Error("status", "reason", err)
	}
	return text
}

func (b *binder) status() *Status {
	t := b.active
	s := &Status{
		PID: os.Getpid(), UID: os.Geteuid(), Since: b.started, Config: b.h.Options.Config, Dir: t.cfg.Dir,
		Dispatcher: b.dispatcher(), Restarts: b.restarts, HoldTotal: t.plan.HoldTotal,
	}
	for i, l := range t.listeners {
		counts := l.base.Add(t.counters.Listener(i).Snapshot())
		s.Total = s.Total.Add(counts)
		s.Listeners = append(s.Listeners, ListenerStatus{l.description.Name, l.description.String(), l.description, counts})
	}
	names := t.plan.Table.Targets
	s.Rules = append(s.Rules, RuleStatus{Target: names[0].Name, Counts: t.counters.Rule(-1).Snapshot()})
	for i, r := range t.plan.Table.Rules {
		target := "reject"
		if !r.Reject {
			target = names[r.Target].Name
		}
		s.Rules = append(s.Rules, RuleStatus{i + 1, r.Line, target, t.counters.Rule(i).Snapshot()})
	}
	for i, target := range names {
		s.Targets = append(s.Targets, TargetStatus{target.Name, targetPath(t.destinations[i]),
			t.before.Counts[target.Name].Add(t.counters.Target(i).Snapshot())})
	}
	s.Paths = b.resolver.paths()
	return s
}

// paths lists the sinks in a stable order.
func (r *resolver) paths() []PathStatus {
	var all []PathStatus
	for _, s := range r.sinks {
		all = append(all, PathStatus{Path: s.name, Live: s.live, Wanted: s.wanted, Routes: len(s.routes)})
	}
	sort.Slice(all, func(i, j int) bool { return all[i].Path < all[j].Path })
	return all
}

// totals sums up all listeners.
func (b *binder) totals() dispatch.Counts {
	var sum dispatch.Counts
	for i, l := range b.active.listeners {
		sum = sum.Add(l.base).Add(b.active.counters.Listener(i).Snapshot())
	}
	return sum
}

// dump writes the state to the log, as USR1 asks.
func (b *binder) dump() {
	s := b.status()
	b.log.Info("state", "dispatcher", s.Dispatcher, "restarts", s.Restarts, "accepted", s.Total.Accepted,
		"delivered", s.Total.Delivered, "waiting", s.Total.Waiting, "rejected", s.Total.Rejected, "failed", s.Total.Failed)
	for _, l := range s.Listeners {
		b.log.Info("state of listener", "listener", l.Name, "address", l.Address, "accepted", l.Accepted,
			"delivered", l.Delivered, "waiting", l.Waiting, "rejected", l.Rejected, "failed", l.Failed)
	}
	for _, p := range s.Paths {
		b.log.Info("state of path", "path", p.Path, "live", p.Live, "wanted", p.Wanted)
	}
}
