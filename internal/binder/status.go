package binder

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sort"
	"time"

	"socketbox/internal/config"
	"socketbox/internal/dispatch"
	"socketbox/internal/listen"
	"socketbox/internal/privsep"
	"socketbox/internal/rule"
)

// StatusVersion is the version of what `socketbox status --json` prints: fields
// are added without another one, none goes or changes its meaning.
const StatusVersion = 1

// Status is a running instance as `socketbox status --json` shows it; the
// schema is docs/schema/status.json.
type Status struct {
	Version    int              `json:"version"`
	PID        int              `json:"pid"`
	Dispatcher int              `json:"dispatcher"` // 0: none at the moment
	UID        int              `json:"uid"`
	User       string           `json:"user,omitempty"` // as configured
	Since      time.Time        `json:"since"`
	Config     string           `json:"config"`
	ConfigSum  string           `json:"config_sum,omitempty"` // SHA-256 of the file in force
	Dir        string           `json:"dir"`
	Guard      string           `json:"guard"`           // as configured
	Flags      []string         `json:"flags,omitempty"` // keys that flags have set, against the file
	Restarts   uint64           `json:"dispatcher_restarts"`
	Reloads    Reloads          `json:"reloads"`
	HoldTotal  int              `json:"hold_total"`
	GuardState GuardStatus      `json:"guard_state"`
	Events     *Events          `json:"events,omitempty"` // where rules limit sessions
	Total      dispatch.Counts  `json:"total"`
	Processes  []ProcessStatus  `json:"processes"` // as their asker sees them in /proc
	Listeners  []ListenerStatus `json:"listeners"`
	Rules      []RuleStatus     `json:"rules"`
	Targets    []TargetStatus   `json:"targets"`
	Paths      []PathStatus     `json:"paths"`
}

// Reloads are the reloads since the binder started.
type Reloads struct {
	Succeeded uint64     `json:"succeeded"`
	Failed    uint64     `json:"failed"`
	Last      *time.Time `json:"last,omitempty"` // of either kind
	Error     string     `json:"error,omitempty"`
}

// ProcessStatus is a process of the instance. What is wrong with it, or that
// it can't be seen, is Problem.
type ProcessStatus struct {
	Role string `json:"role"` // "binder" or "dispatcher"
	privsep.Process
	Problem string `json:"problem,omitempty"`
}

// ListenerStatus is a listener with its description and counts.
type ListenerStatus struct {
	Name        string             `json:"name"`
	Address     string             `json:"address"`
	Namespace   uint64             `json:"namespace"` // inode; 0: can't be told
	Description listen.Description `json:"description"`
	Guarded     bool               `json:"guarded"`      // passed on, its socket can't be turned around
	Queue       int                `json:"accept_queue"` // connections in the kernel's backlog
	Backlog     int                `json:"backlog"`      // that fit there; 0: can't be told
	State       State              `json:"state"`
	Why         string             `json:"why"`
	StateSince  time.Time          `json:"state_since"`
	Loans       uint64             `json:"loans"`     // so far
	Borrowers   []BorrowerStatus   `json:"borrowers"` // the last few of them
	dispatch.Counts
	HandOff *Times `json:"hand_off_time,omitempty"` // from accept to hand-off
	Limits  string `json:"limits,omitempty"`        // for people
}

// RuleStatus is a rule with what it took since the configuration was loaded;
// number 0 is "no rule".
type RuleStatus struct {
	Number  int    `json:"number"`
	Line    int    `json:"line,omitempty"`
	Place   string `json:"place,omitempty"` // socketbox.toml:14
	Matches string `json:"matches"`
	Target  string `json:"target"`
	Limits  string `json:"limits,omitempty"` // for people
	dispatch.Counts
	Sessions *SessionCount `json:"sessions,omitempty"` // where it limits them
}

// TargetStatus is a target with its counts. Waiting is its queue here.
type TargetStatus struct {
	Name    string `json:"name"`
	Path    string `json:"path"`
	Balance string `json:"balance,omitempty"` // where it has several sockets
	State   string `json:"state"`             // "live", "absent", "mixed", "unasked": no client has needed it yet
	dispatch.Counts
	Causes map[string]uint64 `json:"causes,omitempty"`    // why they failed
	Hold   *Times            `json:"hold_time,omitempty"` // of those that were held
	Limits Limits            `json:"hold"`
}

// Limits are a target's limits of hold, as the configuration spells them.
type Limits struct {
	Connections int    `json:"connections"`
	Time        string `json:"time"`
	Busy        string `json:"busy"` // "0s": for ever
}

// PathStatus is a resolved path that the dispatcher knows.
type PathStatus struct {
	Path    string   `json:"path"` // or which one is missing
	Targets []string `json:"targets"`
	Live    bool     `json:"live"`
	Wanted  bool     `json:"wanted"` // connections wait for it
	Routes  int      `json:"routes"`
}

// Times is a histogram, cumulative, in seconds.
type Times struct {
	Count   uint64   `json:"count"`
	Sum     float64  `json:"sum"`
	Buckets []Bucket `json:"buckets"` // without the last one, whose bound is infinite
}

// Bucket counts what took at most Bound seconds.
type Bucket struct {
	Bound float64 `json:"le"`
	Count uint64  `json:"count"`
}

func newTimes(h dispatch.Histogram) *Times {
	t := &Times{Sum: time.Duration(h.Sum).Seconds()}
	for i, n := range h.Buckets {
		t.Count += n
		if i < len(dispatch.Bounds) {
			t.Buckets = append(t.Buckets, Bucket{dispatch.Bounds[i].Seconds(), t.Count})
		}
	}
	if t.Count == 0 {
		return nil
	}
	return t
}

// find returns the index of a listener, not among used, that differs from d in
// name at most; -1 if there is none.
func (s *Status) find(d listen.Description, used map[int]bool) int {
	for i, l := range s.Listeners {
		same := l.Description
		same.Name = d.Name
		if same == d && !used[i] {
			return i
		}
	}
	return -1
}

// mustBeOf refuses another configuration than the instance was started with.
func (s *Status) mustBeOf(path string) error {
	if s.Config == path {
		return nil
	}
	used := s.Config
	if used == "" {
		used = "no configuration file"
	}
	return withHint(fmt.Errorf("the running instance uses %s, not %s", used, path), "name the same file: socketbox reload "+s.Config)
}

func (b *binder) status() *Status {
	t := b.active
	s := &Status{
		Version: StatusVersion, PID: os.Getpid(), UID: os.Geteuid(), User: t.cfg.User, Since: b.started,
		Config: b.h.Options.Config, ConfigSum: t.cfg.Sum, Dir: t.cfg.Dir, Guard: t.cfg.Guard, Flags: b.h.Options.overridden(),
		Dispatcher: b.dispatcher(), Restarts: b.restarts, Reloads: b.reloads, HoldTotal: t.plan.HoldTotal,
		Paths: b.resolver.paths(), GuardState: b.guardStatus(),
	}
	for i, l := range t.listeners {
		counts := l.base.Add(t.counters.Listener(i).Snapshot())
		queue, backlog := listen.Queue(l.fd)
		s.Total = s.Total.Add(counts)
		ls := ListenerStatus{
			Name: l.description.Name, Address: l.description.String(), Namespace: l.namespace, Description: l.description,
			Queue: queue, Backlog: backlog, Guarded: l.guarded, Counts: counts, HandOff: newTimes(l.handOff.Add(t.counters.HandOff(i).Snapshot())),
		}
		ls.Limits = t.plan.Listeners[i].Limit.String()
		ls.loanStatus(l.standing)
		s.Listeners = append(s.Listeners, ls)
	}
	s.Rules = append(ruleTexts(t.cfg, t.plan.Table), RuleStatus{Target: t.plan.Table.Targets[0].Name, Matches: "everything else"})
	for i := range s.Rules {
		s.Rules[i].Counts = t.counters.Rule(i).Snapshot()
	}
	last := len(s.Rules) - 1
	b.countSessions(s.Rules[:last])
	s.Rules[last].Counts = t.counters.Rule(-1).Snapshot()
	s.Rules = append(s.Rules[last:], s.Rules[:last]...) // "no rule" comes first
	sum := t.sum((*dispatch.Counts).Snapshot)
	states := statesOf(s.Paths)
	for i, target := range t.plan.Table.Targets {
		s.Targets = append(s.Targets, TargetStatus{
			Name: target.Name, Path: targetPath(t.destinations[i]), Balance: balanceOf(target), State: states.of(target.Name),
			Counts: sum.Counts[target.Name], Causes: sum.Causes[target.Name], Hold: newTimes(sum.Hold[target.Name]),
			Limits: limitsOf(target),
		})
	}
	s.Events = b.tracker.events()
	return s
}

// ruleTexts shows the rules of a configuration, without counts.
func ruleTexts(cfg *config.Config, table *rule.Table) []RuleStatus {
	var all []RuleStatus
	for i := range table.Rules {
		r := &table.Rules[i]
		all = append(all, RuleStatus{
			Number: i + 1, Line: r.Line, Place: placeOf(cfg, r.Line), Matches: matches(r, cfg), Target: ruleTarget(table, r), Limits: r.LimitText(),
		})
	}
	return all
}

func ruleTarget(table *rule.Table, r *rule.Rule) string {
	if r.Reject {
		return "reject"
	}
	if r.Map > 0 {
		return "table:" + table.Maps[r.Map-1].Name
	}
	return table.Targets[r.Target].Name
}

// placeOf names a line of the configuration, as in socketbox.toml:14.
func placeOf(cfg *config.Config, line int) string {
	if cfg.Path == "" || line == 0 {
		return ""
	}
	return fmt.Sprintf("%s:%d", filepath.Base(cfg.Path), line)
}

// states counts the live and the absent paths of each target.
type states map[string]*[2]int

func statesOf(paths []PathStatus) states {
	s := states{}
	for _, p := range paths {
		for _, name := range p.Targets {
			if s[name] == nil {
				s[name] = &[2]int{}
			}
			if p.Live {
				s[name][0]++
			} else {
				s[name][1]++
			}
		}
	}
	return s
}

func (s states) of(target string) string {
	n := s[target]
	switch {
	case n == nil:
		return "unasked"
	case n[1] == 0:
		return "live"
	case n[0] == 0:
		return "absent"
	}
	return "mixed"
}

// paths lists the sinks in a stable order.
func (r *resolver) paths() []PathStatus {
	all := []PathStatus{}
	for _, s := range r.sinks {
		p := PathStatus{Path: s.name, Live: s.live, Wanted: s.wanted, Routes: len(s.routes), Targets: []string{}}
		for rt := range s.routes {
			if name := r.targets[rt.target].Name; !slices.Contains(p.Targets, name) {
				p.Targets = append(p.Targets, name)
			}
		}
		slices.Sort(p.Targets)
		all = append(all, p)
	}
	sort.Slice(all, func(i, j int) bool { return all[i].Path < all[j].Path })
	return all
}

// look adds what /proc says of the instance's processes, with the eyes of the
// command that shows it: the binder is not asked.
func (s *Status) look() {
	roles := []struct {
		name string
		pid  int
	}{{"binder", s.PID}, {"dispatcher", s.Dispatcher}}
	s.Processes = []ProcessStatus{}
	for _, role := range roles {
		if role.pid == 0 {
			continue
		}
		p, err := privsep.Look(role.pid)
		st := ProcessStatus{Role: role.name, Process: p}
		switch {
		case err != nil:
			st.Problem = err.Error()
		case p.Effective != "0" || p.Permitted != "0" || p.Ambient != "0":
			st.Problem = "has capabilities"
		case p.Seccomp != "filter" || !p.NoNewPrivs:
			st.Problem = "is not confined"
		}
		s.Processes = append(s.Processes, st)
	}
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
